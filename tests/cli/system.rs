//! `system ...`, `info`, `version`.

use moat_tests::Moat;
use serde_json::Value;

#[test]
fn check_tells_of_the_host_and_mends_the_state() {
    let moat = Moat::new();
    let told = moat.call(&["system", "check"]);
    for topic in [
        "kernel",
        "cgroups",
        "namespaces",
        "overlay",
        "seccomp",
        "microVMs (KVM)",
        "everything is as it should be",
    ] {
        assert!(told.success().contains(topic), "{topic} in {}", told.stdout);
    }
    std::fs::create_dir_all(moat.root().join("workloads").join("a".repeat(64))).unwrap();
    let found = moat.call(&["system", "check"]);
    assert_eq!(found.code, 1, "{found:?}");
    assert!(found.stdout.contains("--repair"), "{found:?}");
    let json: Value =
        serde_json::from_str(moat.call(&["system", "check", "--format", "json"]).stdout.as_str()).unwrap();
    assert_eq!(json["Findings"].as_array().unwrap().len(), 1);
    moat.call(&["system", "check", "--repair"]).success();
    moat.call(&["system", "check"]).success();
}

#[test]
fn df_counts_and_prune_frees() {
    let moat = Moat::new();
    moat.run(&[
        "--name",
        "wrote",
        "busybox",
        "sh",
        "-c",
        "dd if=/dev/zero of=/big bs=1M count=3 2>/dev/null",
    ])
    .success();
    let table = moat.call(&["system", "df"]);
    assert!(table.success().starts_with("TYPE"), "{table:?}");
    let containers =
        moat.call(&["system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Active}} {{.Size}}"]);
    let line = containers.success().lines().find(|line| line.starts_with("Containers")).unwrap();
    assert!(line.starts_with("Containers 1 0 3."), "{line}");
    assert!(moat.call(&["system", "df", "-v"]).success().contains("wrote"));
    let pruned = moat.call(&["system", "prune", "--force"]);
    assert!(pruned.success().contains("Deleted Containers:"), "{pruned:?}");
    assert_eq!(moat.call(&["ps", "-aq"]).success(), "");
    moat.run(&["--name", "again", "busybox", "true"]).success();
    assert!(moat.call(&["container", "prune", "-f"]).success().contains("Total reclaimed space:"));
    assert_eq!(moat.call(&["ps", "-aq"]).success(), "");
}

#[test]
fn info_and_version() {
    let moat = Moat::new();
    moat.start("runs", &[], "while :; do sleep 1; done");
    let info: Value = serde_json::from_str(moat.call(&["info", "--format", "json"]).success()).unwrap();
    assert_eq!((&info["ContainersRunning"], &info["Images"]), (&1.into(), &1.into()));
    assert_eq!(info["DockerRootDir"], moat.root().display().to_string());
    assert!(moat.call(&["system", "info"]).success().contains("Kernel Version: "));
    let version = moat.call(&["version", "--format", "{{.Version}} {{.Os}}"]);
    assert_eq!(version.success(), format!("{} linux\n", env!("CARGO_PKG_VERSION")));
    let both = moat.call(&["version", "--format", "{{.Client.Version}} {{.Server.Version}}"]);
    assert_eq!(both.success(), format!("{0} {0}\n", env!("CARGO_PKG_VERSION")));
}
