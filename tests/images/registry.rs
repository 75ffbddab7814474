//! Registries: Debian's, and a small one of our own that misbehaves.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::{Arc, Mutex};

use moat_image::{
    Credential, Credentials, Digest, Kind, LoadSpec, Progress, PullSpec, PushSpec, Reference, RegistriesSpec,
    load, login, logout, pull, push, silent,
};
use moat_tests::{LayerTar, Registry, done, plain_layout};
use serde_json::json;

use super::{Scratch, assert_same};

fn anonymous() -> PullSpec {
    PullSpec { credentials: Credentials::none(), ..PullSpec::default() }
}

fn layer(content: &str) -> Vec<u8> {
    LayerTar::new().folder("etc").file("etc/content", content).finish()
}

#[test]
fn what_is_pushed_is_pulled_by_others() {
    let registry = Registry::start();
    let scratch = Scratch::new();
    let layout = plain_layout(&scratch.path().join("layout"), &[layer("one"), layer("two")]);
    let image = load(&scratch.store, &layout, &LoadSpec::default(), &silent).unwrap().remove(0);
    let spec = PushSpec { credentials: Credentials::none(), ..PushSpec::default() };
    let name: Reference = registry.name("some/where:1").parse().unwrap();
    let digest = push(&scratch.store, &image, &name, &spec, &silent).unwrap();
    let inspected = done(Command::new("skopeo").args([
        "inspect",
        "--tls-verify=false",
        &format!("docker://{}@{digest}", registry.name("some/where")),
    ]));
    assert!(inspected.contains(&image.layers[1].blob.digest.to_string()), "{inspected}");
    // A second repository gets the layers from the first.
    let again = scratch.store.find(&image.id.to_string()).unwrap();
    assert_eq!(again.digests, [name.with_digest(digest)]);
    let second: Reference = registry.name("else/where:2").parse().unwrap();
    assert_eq!(push(&scratch.store, &again, &second, &spec, &silent).unwrap(), digest);
    // By tag and by digest.
    let other = Scratch::new();
    let pulled = pull(&other.store, &second, &anonymous(), &silent).unwrap();
    assert_eq!((pulled.id, &pulled.names), (image.id, &vec![second.clone()]));
    let by_digest = pull(&other.store, &name.with_digest(digest), &anonymous(), &silent).unwrap();
    assert_eq!((by_digest.id, by_digest.digests.len()), (image.id, 2));
    let found = other.store.find(&format!("{}@{digest}", registry.name("some/where"))).unwrap();
    assert_eq!(found.id, image.id);
    assert_same(&other.tree(&pulled), &scratch.tree(&image));
    let missing = registry.name("some/where:3").parse().unwrap();
    let error = pull(&other.store, &missing, &anonymous(), &silent).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{error}");
    other.assert_clean();
}

#[test]
fn names_passwords_and_helpers() {
    let scratch = Scratch::new();
    let registry = Registry::closed("user", "secret");
    let layout = plain_layout(&scratch.path().join("layout"), &[layer("x")]);
    let image = load(&scratch.store, &layout, &LoadSpec::default(), &silent).unwrap().remove(0);
    let name: Reference = registry.name("closed:1").parse().unwrap();
    let credentials = Credentials::of_file(&scratch.path().join("docker/config.json"));
    let spec = PushSpec { credentials: credentials.clone(), ..PushSpec::default() };
    let error = push(&scratch.store, &image, &name, &spec, &silent).unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthorized, "{error}");
    assert!(error.hint_text().is_some_and(|hint| hint.contains("moat login")), "{error}");

    let registries = RegistriesSpec::default();
    let basic = |password: &str| Credential::Basic { user: "user".to_owned(), password: password.to_owned() };
    let error = login(&credentials, &registries, &registry.domain(), &basic("wrong")).unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthorized, "{error}");
    login(&credentials, &registries, &registry.domain(), &basic("secret")).unwrap();
    let mode = std::fs::metadata(scratch.path().join("docker/config.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    push(&scratch.store, &image, &name, &spec, &silent).unwrap();
    // Others read what was kept.
    let file = scratch.path().join("docker/config.json");
    let docker = format!("docker://{name}");
    let mut skopeo = Command::new("skopeo");
    done(skopeo.args(["inspect", "--tls-verify=false", "--authfile"]).arg(&file).arg(docker));
    assert!(logout(&credentials, &registry.domain()).unwrap());
    assert!(push(&scratch.store, &image, &name, &spec, &silent).is_err());
}

/// A helper of Docker's protocol keeps what is told to it, and nothing stands in the file.
#[test]
fn credential_helpers_are_asked() {
    let scratch = Scratch::new();
    let folder = scratch.path().join("bin");
    std::fs::create_dir(&folder).unwrap();
    let helper = folder.join("docker-credential-test");
    let script = format!(
        "#!/bin/sh\nkept={}/kept\ncase $1 in\nstore) cat > $kept ;;\n\
         get) cat > $kept.asked; test -e $kept && cat $kept || {{ echo credentials not found; exit 1; }} ;;\n\
         erase) rm $kept ;;\nesac\n",
        folder.display()
    );
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let config = scratch.path().join("config.json");
    std::fs::write(&config, r#"{"credsStore":"test"}"#).unwrap();
    let layer = layer("x");
    let (blobs, manifest) = image_of(&layer);
    let fake = Fake::start(move |asked, _| {
        if asked.headers.get("authorization").map(String::as_str) != Some("Basic dTpw") {
            let challenge = "Basic realm=x".to_owned();
            return Answer {
                status: 401,
                headers: vec![("WWW-Authenticate", challenge)],
                ..Answer::default()
            };
        }
        ok(blobs.get(&asked.path).unwrap_or(&manifest).clone())
    });
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let images = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_images"));
        command.arg(scratch.store.root()).args(arguments).env("PATH", &path);
        command.env("DOCKER_CONFIG", scratch.path()).output().unwrap()
    };
    let domain = format!("127.0.0.1:{}", fake.port);
    let name = fake.name("x:1").to_string();
    assert!(!images(&["pull", &name]).status.success(), "nobody has logged in");
    assert!(!images(&["login", &domain, "u", "wrong"]).status.success());
    assert!(images(&["login", &domain, "u", "p"]).status.success());
    assert_eq!(std::fs::read_to_string(&config).unwrap(), r#"{"credsStore":"test"}"#);
    let pulled = images(&["pull", &name]);
    assert!(pulled.status.success(), "{}", String::from_utf8_lossy(&pulled.stderr));
    assert_eq!(std::fs::read_to_string(folder.join("kept.asked")).unwrap(), domain);
    assert_eq!(images(&["logout", &domain]).stdout, b"true\n");
    assert!(!folder.join("kept").exists());
    assert_eq!(images(&["logout", &domain]).stdout, b"false\n");
}

/// A registry elsewhere must prove who it is: by an authority that the user names, or not at all where the user says
/// so. In a network namespace of its own, with an address that is not the loopback's.
#[test]
fn certificates_are_checked() {
    let scratch = Scratch::new();
    let folder = scratch.path();
    let layout = plain_layout(&folder.join("layout"), &[layer("x")]);
    let config = format!(
        "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {0}/data\nhttp:\n  addr: 10.77.0.1:5000\n  \
         tls:\n    certificate: {0}/own.crt\n    key: {0}/own.key\n",
        folder.display()
    );
    std::fs::write(folder.join("config.yml"), config).unwrap();
    let certificates = json!({ "certificates": [folder.join("certs.d")] }).to_string();
    std::fs::write(folder.join("named.json"), certificates).unwrap();
    std::fs::write(folder.join("insecure.json"), r#"{"insecure":["10.77.0.1:5000"]}"#).unwrap();
    let script = format!(
        "set -e; cd {folder}
        key='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'
        openssl req -x509 $key -days 2 -subj /CN=authority -keyout ca.key -out ca.crt 2> openssl.log
        openssl req $key -subj /CN=test -keyout own.key -out own.csr 2>> openssl.log
        echo subjectAltName=IP:10.77.0.1 > own.ext
        openssl x509 -req -in own.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile own.ext \
            -out own.crt 2>> openssl.log
        ip link set lo up; ip addr add 10.77.0.1/32 dev lo
        docker-registry serve config.yml > /dev/null 2> registry.log & server=$!
        trap 'kill $server' EXIT
        until grep -q 'listening on' registry.log; do sleep 0.02; done
        skopeo copy -q --dest-tls-verify=false oci:{layout} docker://10.77.0.1:5000/x:1
        images() {{ {program} {folder}/$1 pull 10.77.0.1:5000/x:1; }}
        export HOME={folder}
        if images unknown 2> said > /dev/null; then echo taken; fi; cat said
        IMAGES_REGISTRIES={folder}/insecure.json images insecure
        mkdir -p certs.d/10.77.0.1:5000; cp ca.crt certs.d/10.77.0.1:5000/ca.crt
        IMAGES_REGISTRIES={folder}/named.json images named",
        folder = folder.display(),
        layout = layout.display(),
        program = env!("CARGO_BIN_EXE_images"),
    );
    let said = done(Command::new("unshare").args(["-n", "sh", "-c", &script]));
    let lines: Vec<&str> = said.lines().collect();
    let [refused, insecure, named] = lines.as_slice() else { panic!("{said}") };
    assert!(refused.contains("certificate") && refused.contains("pull 10.77.0.1:5000/x:1"), "{refused}");
    assert!(insecure.starts_with("sha256:") && insecure == named, "{said}");
}

type Headers = BTreeMap<String, String>;

/// What our own registry is asked, and what it answers.
struct Asked {
    method: String,
    path: String,
    headers: Headers,
}

#[derive(Default)]
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// The connection breaks after so many bytes of the body.
    cut: Option<usize>,
}

fn ok(body: Vec<u8>) -> Answer {
    Answer { status: 200, body, ..Answer::default() }
}

/// A registry that answers by a closure.
struct Fake {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    fn start(answer: impl Fn(&Asked, usize) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (answer, log) = (Arc::new(answer), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                std::thread::spawn(move || serve(&stream.unwrap(), &*answer, &log));
            }
        });
        Self { port, asked }
    }

    fn name(&self, rest: &str) -> Reference {
        format!("127.0.0.1:{}/{rest}", self.port).parse().unwrap()
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(stream: &TcpStream, answer: &dyn Fn(&Asked, usize) -> Answer, log: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        // It begins with a TLS greeting, which is no text.
        if reader.read_line(&mut line).is_err() || line.is_empty() {
            return;
        }
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let [method, path, _] = words.as_slice() else { return };
        let mut headers = Headers::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim().split_once(": ") else { break };
            headers.insert(name.to_lowercase(), value.to_owned());
        }
        let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let asked = Asked { method: method.clone(), path: path.clone(), headers };
        let key = format!("{method} {path}");
        let times = {
            let mut log = log.lock().unwrap();
            log.push(key.clone());
            log.iter().filter(|one| **one == key).count()
        };
        let Answer { status, headers, body, cut } = answer(&asked, times);
        let mut text = format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        let sent = cut.unwrap_or(body.len());
        let mut to = stream;
        if to.write_all(text.as_bytes()).and_then(|()| to.write_all(&body[..sent])).is_err() || cut.is_some()
        {
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return;
        }
    }
}

/// An image of one layer: its blobs by path, and the bytes of its manifest.
fn image_of(layer: &[u8]) -> (BTreeMap<String, Vec<u8>>, Vec<u8>) {
    image_of_packed(layer, layer)
}

/// As [`image_of`], with the layer as it is packed.
fn image_of_packed(plain: &[u8], layer: &[u8]) -> (BTreeMap<String, Vec<u8>>, Vec<u8>) {
    let diff_id = Digest::of(plain).to_string();
    let config = json!({
        "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    });
    let config = config.to_string().into_bytes();
    let describe = |kind: &str, bytes: &[u8]| json!({ "mediaType": kind, "digest": Digest::of(bytes).to_string(), "size": bytes.len() });
    let manifest = json!({
        "schemaVersion": 2,
        "config": describe("application/vnd.oci.image.config.v1+json", &config),
        "layers": [describe("application/vnd.oci.image.layer.v1.tar", layer)],
    });
    let path = |bytes: &[u8]| format!("/v2/x/blobs/{}", Digest::of(bytes));
    let blobs = BTreeMap::from([(path(&config), config), (path(layer), layer.to_vec())]);
    (blobs, manifest.to_string().into_bytes())
}

fn big_layer() -> Vec<u8> {
    let content: String = (0..200_000).map(|number| format!("{number} ")).collect();
    layer(&content)
}

/// A connection that breaks within a blob is made again, and asks for the rest only.
#[test]
fn a_broken_blob_goes_on() {
    let layer = big_layer();
    let (blobs, manifest) = image_of(&layer);
    let path = format!("/v2/x/blobs/{}", Digest::of(&layer));
    let ranges = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&ranges);
    let fake = Fake::start(move |asked, times| {
        if asked.path.contains("/manifests/") {
            return ok(manifest.clone());
        }
        let Some(body) = blobs.get(&asked.path) else { return Answer { status: 404, ..Answer::default() } };
        if asked.path != path {
            return ok(body.clone());
        }
        let range = asked.headers.get("range").cloned();
        seen.lock().unwrap().extend(range.clone());
        match (times, range) {
            (1, _) => Answer { cut: Some(body.len() / 3), ..ok(body.clone()) },
            (2, Some(range)) => {
                let start: usize = range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
                let rest = body[start..].to_vec();
                let told = format!("bytes {start}-{}/{}", body.len() - 1, body.len());
                let cut = Some(rest.len() / 2);
                Answer { status: 206, headers: vec![("Content-Range", told)], body: rest, cut }
            }
            // The third time it ignores what is asked for, as some do.
            _ => ok(body.clone()),
        }
    });
    let scratch = Scratch::new();
    let retries = Mutex::new(0);
    let listen = |progress| {
        if let Progress::Retry { .. } = progress {
            *retries.lock().unwrap() += 1;
        }
    };
    let image = pull(&scratch.store, &fake.name("x:1"), &anonymous(), &listen).unwrap();
    assert_eq!(image.layers[0].diff_id, Digest::of(&layer));
    assert_eq!((ranges.lock().unwrap().len(), *retries.lock().unwrap()), (2, 2));
    scratch.assert_clean();
}

#[test]
fn a_registry_that_is_busy_is_asked_again() {
    let layer = layer("x");
    let (blobs, manifest) = image_of(&layer);
    let fake = Fake::start(move |asked, times| match (asked.path.as_str(), times) {
        (path, 1) if path.contains("/manifests/") => Answer { status: 503, ..Answer::default() },
        (path, 2) if path.contains("/manifests/") => {
            Answer { status: 429, headers: vec![("Retry-After", "0".to_owned())], ..Answer::default() }
        }
        (path, _) if path.contains("/manifests/") => ok(manifest.clone()),
        (path, _) => {
            blobs.get(path).map_or(Answer { status: 404, ..Answer::default() }, |body| ok(body.clone()))
        }
    });
    let scratch = Scratch::new();
    pull(&scratch.store, &fake.name("x:1"), &anonymous(), &silent).unwrap();
    assert_eq!(fake.asked().iter().filter(|one| one.contains("/manifests/")).count(), 3);
}

/// A token is asked for once, with the scope that the registry tells, and shown with every request.
#[test]
fn tokens_are_fetched() {
    let layer = layer("x");
    let (blobs, manifest) = image_of(&layer);
    let own = Arc::new(Mutex::new(0));
    let port = Arc::clone(&own);
    let fake = Fake::start(move |asked, _| {
        if asked.path.starts_with("/token") {
            assert_eq!(asked.headers["authorization"], "Basic dTpw");
            assert!(asked.path.contains("service=reg") && asked.path.contains("scope=repository%3Ax%3Apull"));
            return ok(br#"{"token":"abc"}"#.to_vec());
        }
        if asked.headers.get("authorization").map(String::as_str) != Some("Bearer abc") {
            let challenge = format!(
                r#"Bearer realm="http://127.0.0.1:{}/token",service="reg",scope="repository:x:pull""#,
                port.lock().unwrap()
            );
            return Answer {
                status: 401,
                headers: vec![("WWW-Authenticate", challenge)],
                ..Answer::default()
            };
        }
        match blobs.get(&asked.path) {
            Some(body) => ok(body.clone()),
            None => ok(manifest.clone()),
        }
    });
    *own.lock().unwrap() = fake.port;
    let scratch = Scratch::new();
    let basic = Credential::Basic { user: "u".to_owned(), password: "p".to_owned() };
    let spec = PullSpec { credentials: Credentials::given(basic), ..PullSpec::default() };
    pull(&scratch.store, &fake.name("x:1"), &spec, &silent).unwrap();
    assert_eq!(fake.asked().iter().filter(|one| one.contains("/token")).count(), 1);
}

/// Bytes that are not what their digest says bring nothing into the store.
#[test]
fn wrong_bytes_are_refused() {
    let honest = layer("honest");
    let (blobs, manifest) = image_of(&honest);
    let evil = layer("evil!!");
    assert_eq!(evil.len(), honest.len());
    for what in ["layer", "config", "manifest"] {
        let (blobs, manifest, evil) = (blobs.clone(), manifest.clone(), evil.clone());
        let digest = Digest::of(&manifest);
        let layer_path = format!("/v2/x/blobs/{}", Digest::of(&honest));
        let fake = Fake::start(move |asked, _| match blobs.get(&asked.path) {
            Some(_) if what == "layer" && asked.path == layer_path => ok(evil.clone()),
            Some(body) if what == "config" && asked.path != layer_path => ok(vec![b' '; body.len()]),
            Some(body) => ok(body.clone()),
            None if what == "manifest" => ok([manifest.as_slice(), b" "].concat()),
            None => ok(manifest.clone()),
        });
        let scratch = Scratch::new();
        let name = fake.name("x:1").with_digest(digest);
        let error = pull(&scratch.store, &name, &anonymous(), &silent).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{what}: {error}");
        assert_eq!(scratch.store.list().unwrap(), []);
        scratch.assert_clean();
    }
}

/// Other bytes that decompress to the same archive are not what was promised.
#[test]
fn packed_otherwise_is_refused() {
    let plain = layer("x");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let packed = gzip.finish().unwrap();
    for flip in [0, 1] {
        let (blobs, manifest) = image_of_packed(&plain, &packed);
        let path = format!("/v2/x/blobs/{}", Digest::of(&packed));
        let mut sent = packed.clone();
        // The time in gzip's header means nothing.
        sent[4] ^= flip;
        let fake = Fake::start(move |asked, _| match blobs.get(&asked.path) {
            Some(_) if asked.path == path => ok(sent.clone()),
            Some(body) => ok(body.clone()),
            None => ok(manifest.clone()),
        });
        let scratch = Scratch::new();
        let pulled = pull(&scratch.store, &fake.name("x:1"), &anonymous(), &silent);
        assert_eq!(pulled.is_ok(), flip == 0, "{pulled:?}");
        scratch.assert_clean();
    }
}

#[test]
fn mirrors_come_first_and_platforms_are_selected() {
    let (arm, amd) = (layer("arm"), layer("amd"));
    let (mut blobs, arm_manifest) = image_of(&arm);
    let (more, amd_manifest) = image_of(&amd);
    blobs.extend(more);
    let entry = |bytes: &[u8], architecture: &str| {
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": Digest::of(bytes).to_string(),
            "size": bytes.len(), "platform": { "os": "linux", "architecture": architecture },
        })
    };
    let list = [entry(&arm_manifest, "arm64"), entry(&amd_manifest, "amd64")];
    let index = json!({ "schemaVersion": 2, "manifests": list }).to_string().into_bytes();
    let index_digest = Digest::of(&index);
    for manifest in [arm_manifest, amd_manifest] {
        blobs.insert(format!("/v2/x/manifests/{}", Digest::of(&manifest)), manifest);
    }
    blobs.insert("/v2/x/manifests/1".to_owned(), index);
    let fake = Fake::start(move |asked, _| {
        assert_eq!(asked.method, "GET");
        blobs.get(&asked.path).map_or(Answer { status: 404, ..Answer::default() }, |body| ok(body.clone()))
    });
    let mut spec = anonymous();
    let mirror = format!("http://127.0.0.1:{}", fake.port);
    spec.registries.mirrors.insert("registry.invalid".to_owned(), vec![mirror]);
    spec.platform = Some("linux/amd64".parse().unwrap());
    let scratch = Scratch::new();
    let name: Reference = "registry.invalid/x:1".parse().unwrap();
    let image = pull(&scratch.store, &name, &spec, &silent).unwrap();
    assert_eq!(image.layers[0].diff_id, Digest::of(&amd));
    assert_eq!((image.names, image.digests), (vec![name.clone()], vec![name.with_digest(index_digest)]));
    spec.platform = Some("linux/s390x".parse().unwrap());
    let error = pull(&scratch.store, &name, &spec, &silent).unwrap_err();
    assert!(error.to_string().contains("only for linux/arm64, linux/amd64"), "{error}");
}
