//! The sentences of wrong calls, as people see them.

use moat_tests::Moat;

/// What a call says, with the test's own folder left out.
fn said(moat: &Moat, args: &[&str]) -> String {
    let done = moat.call(args);
    let own = moat.path("").display().to_string();
    format!("$ moat {}\n{}[{}]\n", args.join(" "), done.stderr.replace(&own, "/"), done.code)
}

fn all(moat: &Moat, calls: &[&[&str]]) -> String {
    calls.iter().map(|args| said(moat, args)).collect::<Vec<_>>().join("\n")
}

#[test]
fn flags() {
    let moat = Moat::empty();
    insta::assert_snapshot!(all(
        &moat,
        &[
            &["run"],
            &["rnu"],
            &["run", "--nmae", "x", "busybox"],
            &["run", "-m", "lots", "busybox"],
            &["run", "-p", "70000:80", "busybox"],
            &["run", "-v", "a:b", "busybox"],
            &["run", "--mount", "type=nfs,target=/x", "busybox"],
            &["run", "--ulimit", "nofile=5:1", "busybox"],
            &["run", "--restart", "sometimes", "busybox"],
            &["run", "--rm", "--restart", "always", "--pull", "never", "busybox"],
            &["run", "--gpus", "all", "busybox"],
            &["run", "--link", "a", "busybox"],
            &["run", "--health-interval", "often", "busybox"],
            &["run", "-d", "-a", "stdout", "busybox"],
            &["ps", "--format", "{{.ID"],
            &["ps", "--filter", "color=red"],
            &["logs"],
        ]
    ));
}

#[test]
fn objects() {
    let moat = Moat::empty();
    insta::assert_snapshot!(all(
        &moat,
        &[
            &["run", "--pull", "never", "busybox"],
            &["start", "web"],
            &["stop", "web"],
            &["rm", "web"],
            &["exec", "web", "true"],
            &["logs", "web"],
            &["inspect", "web"],
            &["rmi", "web"],
            &["tag", "web", "Web"],
            &["volume", "rm", "web"],
            &["volume", "create", "/x"],
            &["import", "/does/not/exist", "x"],
            &["system", "prune"],
        ]
    ));
}
