//! Volumes, mounts and their commands.

use moat_tests::Moat;

#[test]
fn a_volume_outlives_its_workloads() {
    let moat = Moat::new();
    assert_eq!(moat.call(&["volume", "create", "--label", "a=b", "data"]).success(), "data\n");
    moat.run(&["--rm", "-v", "data:/d", "busybox", "sh", "-c", "echo kept > /d/x"]).success();
    assert_eq!(moat.run(&["--rm", "-v", "data:/d:ro", "busybox", "cat", "/d/x"]).success(), "kept\n");
    assert!(
        moat.run(&["--rm", "--mount", "source=data,target=/d,readonly", "busybox", "touch", "/d/y"])
            .failure()
            .contains("Read-only")
    );
    let table = moat.call(&["volume", "ls"]);
    assert_eq!(table.success(), "DRIVER    VOLUME NAME\nlocal     data\n");
    let found =
        moat.call(&["volume", "inspect", "--format", "{{.Name}} {{.Labels.a}} {{.Mountpoint}}", "data"]);
    assert!(found.success().starts_with("data b /"), "{found:?}");
    assert_eq!(moat.call(&["volume", "ls", "-q", "--filter", "dangling=true"]).success(), "data\n");
    moat.start("user", &["-v", "data:/d"], "while :; do sleep 1; done");
    assert_eq!(moat.call(&["volume", "rm", "data"]).code, 1);
    assert_eq!(moat.call(&["volume", "ls", "-q", "--filter", "dangling=true"]).success(), "");
    moat.call(&["rm", "-f", "user"]).success();
    assert_eq!(moat.call(&["volume", "rm", "data"]).success(), "data\n");
    assert_eq!(moat.call(&["volume", "rm", "data"]).code, 1);
    moat.call(&["volume", "rm", "-f", "data"]).success();
}

#[test]
fn anonymous_volumes_go_with_rm_and_prune() {
    let moat = Moat::new();
    moat.run(&["--rm", "-v", "/d", "busybox", "touch", "/d/x"]).success();
    assert_eq!(moat.call(&["volume", "ls", "-q"]).success(), "", "--rm removes them");
    moat.run(&["--name", "one", "-v", "/d", "busybox", "touch", "/d/x"]).success();
    moat.call(&["rm", "one"]).success();
    assert_eq!(moat.call(&["volume", "ls", "-q"]).success().lines().count(), 1, "rm keeps them");
    assert!(moat.call(&["volume", "prune", "-f"]).success().contains("Deleted Volumes:"));
    moat.run(&["--name", "two", "-v", "/d", "busybox", "true"]).success();
    moat.call(&["rm", "-v", "two"]).success();
    assert_eq!(moat.call(&["volume", "ls", "-q"]).success(), "", "rm -v removes them");
}

#[test]
fn paths_of_the_host() {
    let moat = Moat::new();
    std::fs::create_dir(moat.path("share")).unwrap();
    std::fs::write(moat.path("share/x"), "from the host\n").unwrap();
    let share = moat.path("share").display().to_string();
    let done = moat.run(&[
        "--rm",
        "-v",
        &format!("{share}:/s"),
        "busybox",
        "sh",
        "-c",
        "cat /s/x; echo back > /s/y",
    ]);
    assert_eq!(done.success(), "from the host\n");
    assert_eq!(std::fs::read_to_string(moat.path("share/y")).unwrap(), "back\n");
    let missing = moat.path("missing").display().to_string();
    let refused =
        moat.run(&["--rm", "--mount", &format!("type=bind,src={missing},dst=/s"), "busybox", "true"]);
    assert_eq!(refused.code, 125, "{refused:?}");
    assert!(refused.stderr.contains("missing"), "{refused:?}");
}
