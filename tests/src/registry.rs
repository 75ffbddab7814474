//! Debian's docker-registry on a port of its own, and images that Debian's tools make.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// A registry on loopback; it ends with this.
#[derive(Debug)]
pub struct Registry {
    server: Child,
    port: u16,
    _folder: TempDir,
}

impl Registry {
    /// Starts one that everybody may use.
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// Starts one with further lines of configuration.
    pub fn start_with(further: &str) -> Self {
        Self::start_in(tempfile::Builder::new().prefix("moat-registry-").tempdir().unwrap(), further)
    }

    /// Starts one that only a user with a password may use.
    pub fn closed(user: &str, password: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("moat-registry-").tempdir().unwrap();
        let crypt = "import crypt, sys; \
                     print(sys.argv[1] + ':' + crypt.crypt(sys.argv[2], crypt.mksalt(crypt.METHOD_BLOWFISH)))";
        let line = done(Command::new("python3").args(["-W", "ignore", "-c", crypt, user, password]));
        let file = folder.path().join("htpasswd");
        std::fs::write(&file, line).unwrap();
        let auth = format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", file.display());
        Self::start_in(folder, &auth)
    }

    fn start_in(folder: TempDir, further: &str) -> Self {
        let data = folder.path().join("data");
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n{further}",
            data.display()
        );
        let config = folder.path().join("config.yml");
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut server = command.spawn().expect("docker-registry is not installed");
        let mut lines = BufReader::new(server.stderr.take().unwrap()).lines();
        let port = loop {
            let line = lines.next().expect("docker-registry has ended").unwrap();
            if let Some((_, rest)) = line.split_once("listening on 127.0.0.1:") {
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                break digits.parse().unwrap();
            }
        };
        // It would block on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { server, port, _folder: folder }
    }

    /// `HOST:PORT`.
    pub fn domain(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A name of an image in it.
    pub fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.domain())
    }

    /// Has skopeo copy an image into it; `from` is in skopeo's terms.
    pub fn fill(&self, from: &str, rest: &str) {
        let to = format!("docker://{}", self.name(rest));
        done(Command::new("skopeo").args(["copy", "-q", "--dest-tls-verify=false", from, &to]));
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Runs a command that must succeed; gives what it wrote.
#[track_caller]
pub fn done(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {said}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Debian's smallest root file system as an archive, which mmdebstrap makes once for this machine.
pub fn debian() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let cache = cache.expect("neither HOME nor XDG_CACHE_HOME is set").join("moat");
    std::fs::create_dir_all(&cache).unwrap();
    let archive = cache.join("debian-bookworm-1.tar");
    // Two tests at once would make it twice; the second finds what the first has made.
    let lock = std::fs::File::create(cache.join("debian.lock")).unwrap();
    lock.lock().unwrap();
    if !archive.exists() {
        let part = cache.join("debian.part.tar");
        done(Command::new("mmdebstrap").args(["--quiet", "--variant=minbase", "bookworm"]).arg(&part));
        std::fs::rename(&part, &archive).unwrap();
    }
    archive
}

/// An OCI layout that umoci works on.
#[derive(Debug)]
pub struct Umoci {
    folder: TempDir,
}

impl Umoci {
    /// A layout with an image `x` of no layers.
    pub fn new() -> Self {
        let umoci = Self { folder: tempfile::Builder::new().prefix("moat-umoci-").tempdir().unwrap() };
        done(Command::new("umoci").arg("init").arg("--layout").arg(umoci.layout()));
        umoci.run(&["new"], &[]);
        umoci
    }

    /// A layout that an image of skopeo's terms was copied into.
    pub fn of(from: &str) -> Self {
        let umoci = Self { folder: tempfile::Builder::new().prefix("moat-umoci-").tempdir().unwrap() };
        let to = format!("oci:{}:x", umoci.layout().display());
        done(Command::new("skopeo").args(["copy", "-q", "--src-tls-verify=false", from, &to]));
        umoci
    }

    /// The folder of the layout.
    pub fn layout(&self) -> PathBuf {
        self.folder.path().join("oci")
    }

    /// The image in skopeo's terms.
    pub fn name(&self) -> String {
        format!("oci:{}:x", self.layout().display())
    }

    /// A place beside the layout.
    pub fn place(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, verb: &[&str], rest: &[&Path]) {
        let image = format!("{}:x", self.layout().display());
        done(Command::new("umoci").args(verb).arg("--image").arg(image).args(rest));
    }

    /// Adds an archive as a layer.
    pub fn add(&self, archive: &Path) {
        self.run(&["raw", "add-layer"], &[archive]);
    }

    /// Unpacks the image; gives the root file system.
    pub fn unpack(&self, name: &str) -> PathBuf {
        let bundle = self.place(name);
        self.run(&["unpack"], &[&bundle]);
        bundle.join("rootfs")
    }

    /// Makes a layer of what was changed in a root file system that `unpack` has given.
    pub fn repack(&self, name: &str) {
        self.run(&["repack", "--refresh-bundle"], &[&self.place(name)]);
    }
}

impl Default for Umoci {
    fn default() -> Self {
        Self::new()
    }
}
