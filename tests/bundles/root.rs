//! Root file systems and mounts that can not be had.

use serde_json::{Value, json};

use super::Sentences;

#[test]
fn roots() {
    let mut said = Sentences::new();
    said.spoilt("missing", |bundle| {
        bundle.set("/root/path", json!("nowhere"));
    });
    said.spoilt("a file", |bundle| {
        bundle.set("/root/path", json!("config.json"));
    });
    said.spoilt("a loop", |bundle| {
        std::os::unix::fs::symlink("loop", bundle.path().join("loop")).unwrap();
        bundle.set("/root/path", json!("loop"));
    });
    said.hold("roots");
}

#[test]
fn mounts() {
    let mut said = Sentences::new();
    let bind = |source: &str, options: &[&str]| json!({ "type": "bind", "source": source, "destination": "/mnt", "options": options });
    let other = |kind: &str, options: &[&str]| json!({ "type": kind, "source": "none", "destination": "/tmp", "options": options });
    let cases: Vec<(&str, Value)> = vec![
        ("missing source", bind("/nowhere/source", &["bind"])),
        ("missing relative source", bind("nowhere", &["rbind", "ro"])),
        ("no source", json!({ "type": "bind", "destination": "/mnt" })),
        ("no type", json!({ "source": "tmpfs", "destination": "/mnt" })),
        ("unknown type", other("moatfs", &[])),
        ("unknown option", other("tmpfs", &["sizee=1m"])),
        ("bad value", other("tmpfs", &["size=much"])),
        ("remount", bind("/tmp", &["bind", "remount", "ro"])),
        ("idmap without mappings", bind("/tmp", &["bind", "idmap"])),
        ("idmap of no bind", other("tmpfs", &["idmap"])),
        (
            "half a mapping",
            json!({ "type": "bind", "source": "/tmp", "destination": "/mnt", "options": ["bind"],
            "uidMappings": [{ "containerID": 0, "hostID": 0, "size": 1 }] }),
        ),
        (
            "a file on a folder",
            json!({ "type": "bind", "source": "/etc/passwd", "destination": "/tmp", "options": ["bind"] }),
        ),
        (
            "a folder on a file",
            json!({ "type": "bind", "source": "/tmp", "destination": "/etc/passwd", "options": ["bind"] }),
        ),
        ("below a file", json!({ "type": "tmpfs", "source": "tmpfs", "destination": "/etc/passwd/sub" })),
        ("empty destination", json!({ "type": "tmpfs", "source": "tmpfs", "destination": "" })),
    ];
    for (name, mount) in cases {
        said.spoilt(name, |bundle| {
            bundle.push("/mounts", mount);
        });
    }
    said.spoilt("proc on a link", |bundle| {
        bundle.link("tmp", "proc");
    });
    said.spoilt("no device", |bundle| {
        bundle.set("/linux/devices", json!([{ "path": "/dev/fuse", "type": "c", "major": 1, "minor": 3 }]));
        let mapping = json!([{ "containerID": 0, "hostID": 100_000, "size": 10 }]);
        bundle.push("/linux/namespaces", json!({ "type": "user" }));
        bundle.set("/linux/uidMappings", mapping.clone()).set("/linux/gidMappings", mapping);
    });
    said.hold("mounts");
}
