//! What a workload has written: `cp`, `diff`, `export`, `commit`.

use std::fs;

use moat_tests::Moat;

#[test]
fn cp_in_both_directions() {
    let moat = Moat::new();
    moat.start("box", &[], "mkdir /data; echo inside > /data/file; while :; do sleep 1; done");
    moat_tests::wait_until(|| moat.call(&["exec", "box", "test", "-s", "/data/file"]).code == 0);
    let local = moat.path("out");
    let local = local.to_str().unwrap();
    moat.call(&["cp", "box:/data", local]).success();
    assert_eq!(fs::read_to_string(moat.path("out/file")).unwrap(), "inside\n");
    fs::write(moat.path("out/file"), "outside\n").unwrap();
    moat.call(&["cp", &format!("{local}/file"), "box:/data/second"]).success();
    assert_eq!(moat.call(&["exec", "box", "cat", "/data/second"]).success(), "outside\n");
    // The link is followed below the root of the workload, where it leads to another file than on the host.
    moat.call(&["exec", "box", "ln", "-s", "/etc/passwd", "/data/link"]).success();
    moat.call(&["cp", "-L", "box:/data/link", &format!("{local}/passwd")]).success();
    let theirs = moat.call(&["exec", "box", "cat", "/etc/passwd"]);
    assert_eq!(fs::read_to_string(moat.path("out/passwd")).unwrap(), theirs.success());
    let archive = moat.command(&["cp", "box:/data/file", "-"]).output().unwrap().stdout;
    let done = moat.call_with(&["cp", "-", "box:/tmp"], &archive);
    done.success();
    assert_eq!(moat.call(&["exec", "box", "cat", "/tmp/file"]).success(), "inside\n");
    assert!(moat.call(&["cp", "box:/nothing", local]).failure().contains("/nothing"));
    assert!(moat.call(&["cp", "a", "b"]).failure().contains("WORKLOAD:PATH"));
    assert_eq!(moat.call(&["cp", "box:/a", "box:/b"]).code, 1);
}

#[test]
fn diff_export_and_commit_agree() {
    let moat = Moat::new();
    moat.start("box", &[], "echo new > /root/new; rm /bin/yes; while :; do sleep 1; done");
    moat_tests::wait_until(|| moat.call(&["exec", "box", "test", "-e", "/bin/yes"]).code == 1);
    let diff = moat.call(&["diff", "box"]);
    for line in ["A /root/new", "D /bin/yes", "C /root", "C /bin"] {
        assert!(diff.success().lines().any(|found| found == line), "{line}: {diff:?}");
    }
    assert!(!diff.stdout.contains("/etc/hosts"), "{diff:?}");

    let archive = moat.path("root.tar");
    moat.call(&["export", "--output", archive.to_str().unwrap(), "box"]).success();
    let names = std::process::Command::new("tar").arg("-tf").arg(&archive).output().unwrap();
    let names = String::from_utf8(names.stdout).unwrap();
    assert!(names.lines().any(|name| name.trim_start_matches("./") == "root/new"), "{names}");
    assert!(!names.lines().any(|name| name.ends_with("bin/yes")), "{names}");

    let change = "CMD [\"cat\", \"/root/new\"]";
    let id = moat.call(&["commit", "--message", "by hand", "--change", change, "box", "changed:1"]);
    assert!(id.success().starts_with("sha256:"), "{id:?}");
    assert_eq!(moat.status("box"), "running");
    assert_eq!(moat.run(&["--rm", "changed:1"]).success(), "new\n");
    assert_eq!(moat.run(&["--rm", "changed:1", "test", "-e", "/bin/yes"]).code, 1);
    assert!(moat.call(&["history", "changed:1"]).success().contains("by hand"));
    assert_eq!(moat.call(&["history", "-q", "changed:1"]).success().lines().count(), 2);
}
