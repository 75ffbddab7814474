//! `ps`, `images`, `inspect`: columns, templates, JSON, filters.

use moat_tests::{Moat, wait_until};
use serde_json::Value;

#[test]
fn ps_has_dockers_columns() {
    let moat = Moat::new();
    let id = moat.start("web", &["--label", "tier=front"], "while :; do sleep 1; done");
    let table = moat.call(&["ps"]);
    let mut lines = table.success().lines();
    assert_eq!(
        lines.next().unwrap().split("   ").map(str::trim).filter(|word| !word.is_empty()).collect::<Vec<_>>(),
        ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]
    );
    let line = lines.next().unwrap();
    assert!(line.starts_with(&id[..12]) && line.contains("\"sh -c 'while") == line.contains("'"), "{line}");
    assert!(line.contains("busybox") && line.contains("Up ") && line.ends_with("web"), "{line}");
    let whole =
        moat.call(&["ps", "--no-trunc", "--format", "{{.ID}} {{.Label \"tier\"}} {{.State}} {{.Networks}}"]);
    assert_eq!(whole.success(), format!("{id} front running none\n"));
    let json: Value = serde_json::from_str(moat.call(&["ps", "--format", "json"]).success()).unwrap();
    assert_eq!((&json["Names"], &json["Image"]), (&"web".into(), &"busybox".into()));
    let sizes = moat.call(&["ps", "-s"]);
    assert!(sizes.success().contains("(virtual "), "{sizes:?}");
}

#[test]
fn ps_filters() {
    let moat = Moat::new();
    moat.start("runs", &["--label", "a=1"], "while :; do sleep 1; done");
    moat.start("failed", &["--label", "a=2"], "exit 3");
    wait_until(|| moat.status("failed") == "exited");
    let names = |args: &[&str]| {
        let args = [&["ps", "--format", "{{.Names}}"], args].concat();
        let mut names: Vec<String> = moat.call(&args).success().lines().map(str::to_owned).collect();
        names.sort();
        names.join(" ")
    };
    assert_eq!(names(&[]), "runs");
    assert_eq!(names(&["-a"]), "failed runs");
    assert_eq!(names(&["-l"]), "failed");
    assert_eq!(names(&["-n", "2"]), "failed runs");
    assert_eq!(names(&["--filter", "status=exited"]), "failed");
    assert_eq!(names(&["--filter", "exited=3"]), "failed");
    assert_eq!(names(&["-a", "--filter", "exited=4"]), "");
    assert_eq!(names(&["-a", "--filter", "label=a"]), "failed runs");
    assert_eq!(names(&["-a", "--filter", "label=a=2"]), "failed");
    assert_eq!(names(&["-a", "--filter", "label!=a=2"]), "runs");
    assert_eq!(names(&["-a", "--filter", "name=un"]), "runs");
    assert_eq!(names(&["-a", "--filter", "ancestor=busybox"]), "failed runs");
    assert_eq!(names(&["-a", "--filter", "since=runs"]), "failed");
    assert_eq!(names(&["-a", "--filter", "before=failed"]), "runs");
    assert!(moat.call(&["ps", "--filter", "color=red"]).failure().contains("color"));
    assert!(moat.call(&["ps", "--filter", "status=asleep"]).failure().contains("asleep"));
}

#[test]
fn inspect_has_dockers_shape() {
    let moat = Moat::new();
    let flags = [
        "-m",
        "64m",
        "-e",
        "A=1",
        "--label",
        "x=y",
        "-v",
        "/tmp:/mnt:ro",
        "--restart",
        "on-failure:3",
        "-u",
        "web",
    ];
    let id = moat.start("web", &flags, "while :; do sleep 1; done");
    let found = moat.inspect("web");
    for (pointer, value) in [
        ("/Id", Value::from(id.as_str())),
        ("/Name", "/web".into()),
        ("/Path", "sh".into()),
        ("/Args/0", "-c".into()),
        ("/State/Status", "running".into()),
        ("/State/Running", true.into()),
        ("/State/ExitCode", 0.into()),
        ("/Config/Image", "busybox".into()),
        ("/Config/User", "web".into()),
        ("/Config/Env/1", "A=1".into()),
        ("/Config/Labels/x", "y".into()),
        ("/Config/Labels/org.example.kind", "box".into()),
        ("/Config/Cmd/0", "sh".into()),
        ("/HostConfig/Memory", (64 << 20).into()),
        ("/HostConfig/NetworkMode", "none".into()),
        ("/HostConfig/Binds/0", "/tmp:/mnt:ro".into()),
        ("/HostConfig/RestartPolicy/Name", "on-failure".into()),
        ("/HostConfig/RestartPolicy/MaximumRetryCount", 3.into()),
        ("/Mounts/0/Destination", "/mnt".into()),
        ("/Mounts/0/RW", false.into()),
    ] {
        assert_eq!(found.pointer(pointer), Some(&value), "{pointer}");
    }
    let pid = found["State"]["Pid"].as_i64().unwrap();
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
    for key in ["ResolvConfPath", "HostnamePath", "HostsPath"] {
        let path = found[key].as_str().unwrap();
        assert!(std::path::Path::new(path).exists(), "{key} {path}");
    }
    // The file comes with the first output.
    assert!(found["LogPath"].as_str().unwrap().ends_with("/log/json.log"), "{found}");
    let template = "{{range .Mounts}}{{.Source}}:{{.Destination}}{{end}} {{json .Config.Cmd}} {{.State.Pid}}";
    let text = moat.call(&["inspect", "--format", template, "web"]);
    assert!(text.success().starts_with("/tmp:/mnt [\"sh\",\"-c\","), "{text:?}");
    assert!(text.stdout.trim().ends_with(&pid.to_string()), "{text:?}");
}

#[test]
fn inspect_finds_any_kind_and_tells_what_is_missing() {
    let moat = Moat::new();
    moat.call(&["volume", "create", "data"]).success();
    let ids = moat.call(&[
        "inspect",
        "--format",
        "{{if index . \"Mountpoint\"}}volume{{else}}image{{end}}",
        "data",
        "busybox",
    ]);
    assert_eq!(ids.success(), "volume\nimage\n");
    let missing = moat.call(&["inspect", "busybox", "nothing"]);
    assert_eq!(missing.code, 1);
    assert!(missing.stdout.contains("\"RepoTags\"") && missing.stderr.contains("nothing"), "{missing:?}");
    let wrong = moat.call(&["inspect", "--format", "{{.Nonsense}}", "busybox"]);
    assert!(wrong.failure().contains("Nonsense"), "{wrong:?}");
    assert_eq!(moat.call(&["inspect", "--type", "volume", "busybox"]).code, 1);
}
