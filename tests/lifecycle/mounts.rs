//! Mounts and what is done to the root file system.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use moat_tests::{Bundle, Runtime};
use serde_json::{Value, json};

use crate::{in_private_mounts, sleeping};

fn mount(kind: &str, source: &Path, destination: &str, options: &[&str]) -> Value {
    json!({ "type": kind, "source": source, "destination": destination, "options": options })
}

fn bind(source: &Path, destination: &str, options: &[&str]) -> Value {
    mount("bind", source, destination, options)
}

/// A folder beside the root file system.
fn folder(bundle: &Bundle, name: &str) -> std::path::PathBuf {
    let folder = bundle.path().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn an_idmapped_mount_shows_other_owners() {
    let runtime = Runtime::new();
    let mut bundle = Bundle::shell("stat -c '%u:%g' /data/*; echo > /data/new; stat -c %u /data/new");
    let data = folder(&bundle, "data");
    for (name, owner) in [("a", 1000), ("b", 1005), ("c", 9000)] {
        std::fs::write(data.join(name), "").unwrap();
        chown(data.join(name), Some(owner), Some(owner + 1)).unwrap();
    }
    chown(&data, Some(1000), Some(1000)).unwrap();
    let mut entry = bind(&data, "/data", &["bind", "idmap"]);
    entry["uidMappings"] = json!([{ "containerID": 1000, "hostID": 0, "size": 10 }]);
    entry["gidMappings"] = json!([{ "containerID": 1000, "hostID": 0, "size": 10 }]);
    bundle.push("/mounts", entry);
    bundle.set("/root/readonly", json!(false));
    let output = runtime.run(&bundle);
    // Who is not mapped is nobody.
    assert_eq!(output.success(), "0:1\n5:6\n65534:65534\n0\n");
    let owner = std::os::unix::fs::MetadataExt::uid(&data.join("new").metadata().unwrap());
    assert_eq!(owner, 1000);
}

#[test]
fn recursive_attributes_reach_the_mounts_below() {
    let runtime = Runtime::new();
    let script = "for f in /plain/top /plain/sub/below /deep/top /deep/sub/below; do \
        echo x 2>/dev/null > $f && echo $f; done; true";
    let mut bundle = Bundle::shell(script);
    bundle.set("/root/readonly", json!(false));
    let data = folder(&bundle, "data/sub");
    let data = data.parent().unwrap();
    bundle.push("/mounts", bind(data, "/plain", &["rbind", "ro"]));
    bundle.push("/mounts", bind(data, "/deep", &["rbind", "rro"]));
    let prepare = format!("mount -t tmpfs none {}/sub && exec \"$@\"", data.display());
    let output = in_private_mounts(&prepare, &runtime.build("run", &bundle, &[], &runtime.id()));
    assert_eq!(output.success(), "/plain/sub/below\n");
}

#[test]
fn a_bind_that_is_not_recursive_leaves_the_mounts_below() {
    let runtime = Runtime::new();
    let mut bundle = Bundle::shell("ls /all/sub /one/sub");
    bundle.set("/root/readonly", json!(false));
    let data = folder(&bundle, "data/sub");
    let data = data.parent().unwrap();
    bundle.push("/mounts", bind(data, "/one", &["bind"])).push("/mounts", bind(data, "/all", &["rbind"]));
    let prepare =
        format!("mount -t tmpfs none {0}/sub && echo > {0}/sub/file && exec \"$@\"", data.display());
    let output = in_private_mounts(&prepare, &runtime.build("run", &bundle, &[], &runtime.id()));
    assert_eq!(output.success(), "/all/sub:\nfile\n\n/one/sub:\n");
}

#[test]
fn a_tmpfs_can_begin_with_what_was_there() {
    let runtime = Runtime::new();
    let script = "cat /data/file /data/link /data/deep/er; stat -c '%a %u' /data/file /data/deep; \
        echo changed > /data/file; rm -r /data/deep; cat /data/link";
    let mut bundle = Bundle::shell(script);
    bundle.file("data/file", "first\n").file("data/deep/er", "below\n").link("file", "data/link");
    let root = bundle.rootfs();
    std::fs::set_permissions(root.join("data/file"), PermissionsExt::from_mode(0o640)).unwrap();
    std::fs::set_permissions(root.join("data/deep"), PermissionsExt::from_mode(0o711)).unwrap();
    chown(root.join("data/file"), Some(33), None).unwrap();
    bundle.push("/mounts", mount("tmpfs", Path::new("tmpfs"), "/data", &["tmpcopyup", "size=1m"]));
    let all = json!(["CAP_DAC_OVERRIDE", "CAP_CHOWN"]);
    bundle.set("/process/capabilities", json!({ "bounding": all, "effective": all, "permitted": all }));
    let output = runtime.run(&bundle);
    assert_eq!(output.success(), "first\nfirst\nbelow\n640 33\n711 0\nchanged\n");
    assert_eq!(std::fs::read_to_string(root.join("data/file")).unwrap(), "first\n");
    assert!(root.join("data/deep/er").exists());
}

/// The optional fields of the root's line in mountinfo say how mounts travel.
#[test]
fn the_root_has_the_propagation_that_was_asked_for() {
    let runtime = Runtime::new();
    let script = "while read id parent dev root point options rest; do \
        [ \"$point\" = / ] && echo \"${rest%%-*}\"; done < /proc/self/mountinfo; true";
    for (wanted, shared, master) in [
        ("shared", true, false),
        ("rshared", true, false),
        ("slave", false, true),
        ("rslave", false, true),
        ("private", false, false),
        ("rprivate", false, false),
        ("unbindable", false, false),
        ("", false, true),
    ] {
        let mut bundle = Bundle::shell(script);
        if !wanted.is_empty() {
            bundle.set("/linux/rootfsPropagation", json!(wanted));
        }
        let prepare = "mount --make-rshared / && exec \"$@\"";
        let output = in_private_mounts(prepare, &runtime.build("run", &bundle, &[], &runtime.id()));
        let fields = output.success();
        assert_eq!(fields.lines().count(), 1, "{wanted}: {fields}");
        assert_eq!(fields.contains("shared:"), shared, "{wanted}: {fields}");
        assert_eq!(fields.contains("master:"), master, "{wanted}: {fields}");
        assert_eq!(fields.contains("unbindable"), wanted == "unbindable", "{wanted}: {fields}");
    }
}

#[test]
fn the_root_is_writable_or_not() {
    let runtime = Runtime::new();
    for readonly in [true, false] {
        let mut bundle = Bundle::shell("echo x > /written");
        bundle.set("/root/readonly", json!(readonly));
        let output = runtime.run(&bundle);
        assert_eq!(output.code == 0, !readonly, "{output:?}");
        assert_eq!(output.stderr.contains("Read-only file system"), readonly, "{output:?}");
        assert_eq!(bundle.rootfs().join("written").exists(), !readonly);
    }
}

#[test]
fn paths_are_masked_and_read_only() {
    let runtime = Runtime::new();
    let mut bundle = Bundle::shell(
        "cat /etc/secret; ls -A /etc/folder; cat /etc/frozen/file; echo y > /etc/folder/new; \
         echo x > /etc/frozen/file; echo y > /etc/free && echo free",
    );
    bundle.set("/root/readonly", json!(false));
    bundle
        .file("etc/secret", "secret\n")
        .file("etc/folder/file", "secret\n")
        .file("etc/frozen/file", "seen\n");
    bundle.set("/linux/maskedPaths", json!(["/etc/secret", "/etc/folder", "/nowhere/at/all"]));
    bundle.set("/linux/readonlyPaths", json!(["/etc/frozen", "/nowhere"]));
    let output = runtime.run(&bundle);
    assert_eq!(output.success(), "seen\nfree\n");
    assert_eq!(output.stderr.matches("Read-only file system").count(), 2, "{output:?}");
}

#[test]
fn sysctls_are_set_in_the_namespaces_of_the_container() {
    let runtime = Runtime::new();
    let names = ["net/ipv4/ip_forward", "kernel/msgmax", "net/ipv4/ip_unprivileged_port_start"];
    let before = names.map(|name| std::fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap());
    let mut bundle = Bundle::shell(&format!("cd /proc/sys; cat {}", names.join(" ")));
    bundle.set(
        "/linux/sysctl",
        json!({
            "net.ipv4.ip_forward": "1", "kernel.msgmax": "4321", "net/ipv4/ip_unprivileged_port_start": "77",
        }),
    );
    assert_eq!(runtime.run(&bundle).success(), "1\n4321\n77\n");
    let after = names.map(|name| std::fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap());
    assert_eq!(before, after);
}

#[test]
fn the_root_can_be_moved_instead_of_pivoted() {
    let runtime = Runtime::new();
    let mut bundle = Bundle::shell("ls /; cat /proc/mounts | grep -c ' / '; ls /../..; cat /etc/hostsfile");
    bundle.file("etc/hostsfile", "own\n");
    bundle.set("/root/readonly", json!(true));
    let output = runtime.run_with(&bundle, &["--no-pivot"]);
    let listing = "bin\ndev\netc\nproc\nroot\nsys\ntmp\n";
    assert_eq!(output.success(), format!("{listing}1\n{listing}own\n"));
    let container = runtime.create_with(&sleeping(), &["--no-pivot"]).unwrap();
    container.start().success();
    assert_eq!(container.exec(&["ls", "/"]).success(), listing);
}

#[test]
fn mount_points_that_are_missing_are_made() {
    let runtime = Runtime::new();
    let mut bundle = Bundle::shell("cat /etc/deep/er/file /given; ls /new/folder; echo x > /given");
    let data = folder(&bundle, "data");
    std::fs::write(data.join("file"), "bound\n").unwrap();
    bundle.file("given", "covered\n");
    bundle.set("/root/readonly", json!(false));
    bundle.push("/mounts", bind(&data.join("file"), "/etc/deep/er/file", &["bind", "ro"]));
    bundle.push("/mounts", bind(&data.join("file"), "/given", &["rbind", "ro"]));
    bundle.push("/mounts", bind(&data, "/new/folder", &["rbind"]));
    let output = runtime.run(&bundle);
    assert_eq!(output.stdout, "bound\nbound\nfile\n");
    assert!(output.failure().contains("Read-only file system"), "{output:?}");
    assert!(bundle.rootfs().join("etc/deep/er/file").is_file());
    assert!(bundle.rootfs().join("new/folder").is_dir());
    assert_eq!(std::fs::read_to_string(bundle.rootfs().join("given")).unwrap(), "covered\n");
}
