//! Images as files and names: `import`, `save`, `load`, `tag`, `rmi`, `history`, `export`.

use moat_tests::Moat;

#[test]
fn images_and_tags() {
    let moat = Moat::new();
    let table = moat.call(&["images"]);
    assert!(table.success().starts_with("REPOSITORY   TAG       IMAGE ID       CREATED"), "{table:?}");
    moat.call(&["tag", "busybox", "localhost:5000/team/box:v1"]).success();
    let names = moat.call(&["image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]);
    let mut lines: Vec<&str> = names.success().lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["busybox:latest", "localhost:5000/team/box:v1"]);
    assert_eq!(moat.call(&["images", "-q", "--no-trunc"]).success().lines().count(), 1);
    assert_eq!(moat.call(&["images", "--format", "{{.Tag}}", "localhost:5000/team/box"]).success(), "v1\n");
    assert_eq!(moat.call(&["images", "-q", "--filter", "reference=team/*"]).success(), "");
    let gone = moat.call(&["rmi", "localhost:5000/team/box:v1"]);
    assert_eq!(gone.success(), "Untagged: localhost:5000/team/box:v1\n");
    let gone = moat.call(&["image", "rm", "busybox"]);
    assert!(gone.success().contains("Deleted: sha256:"), "{gone:?}");
    assert_eq!(moat.call(&["images", "-q"]).success(), "");
    assert_eq!(moat.call(&["rmi", "busybox"]).code, 1);
}

#[test]
fn an_image_in_use_stays() {
    let moat = Moat::new();
    moat.start("web", &[], "while :; do sleep 1; done");
    assert_eq!(moat.call(&["rmi", "busybox"]).code, 1);
    moat.call(&["exec", "web", "true"]).success();
}

#[test]
fn save_and_load_bring_the_same_image() {
    let moat = Moat::new();
    let file = moat.path("box.tar").display().to_string();
    moat.call(&["save", "-o", &file, "busybox"]).success();
    let id = moat.call(&["images", "-q", "--no-trunc"]).success().to_owned();
    let other = Moat::empty();
    assert_eq!(other.call(&["load", "-q", "-i", &file]).success(), "Loaded image: busybox:latest\n");
    assert_eq!(other.call(&["images", "-q", "--no-trunc"]).success(), id);
    assert_eq!(other.run(&["--rm", "busybox", "echo", "loaded"]).success(), "loaded\n");
    let bytes = std::fs::read(&file).unwrap();
    let piped = Moat::empty();
    piped.call_with(&["load", "--quiet"], &bytes).success();
    assert_eq!(piped.call(&["images", "-q", "--no-trunc"]).success(), id);
    assert!(moat.call(&["load", "-i", "/does/not/exist"]).failure().contains("/does/not/exist"));
}

#[test]
fn history_has_a_line_for_each_step() {
    let moat = Moat::new();
    let table = moat.call(&["history", "busybox"]);
    assert!(table.success().starts_with("IMAGE          CREATED"), "{table:?}");
    let sizes = moat.call(&["history", "-H=false", "--format", "{{.Size}}", "busybox"]);
    assert!(sizes.success().lines().next().unwrap().parse::<u64>().unwrap() > 500_000, "{sizes:?}");
}

#[test]
fn export_and_import_go_round() {
    let moat = Moat::new();
    moat.run(&["--name", "work", "busybox", "sh", "-c", "echo kept > /kept; rm /etc/group"]).success();
    let file = moat.path("root.tar").display().to_string();
    moat.call(&["export", "-o", &file, "work"]).success();
    moat.call(&["import", "-c", "ENV PATH=/bin", "-m", "exported", &file, "flat"]).success();
    assert_eq!(moat.run(&["--rm", "flat", "cat", "/kept"]).success(), "kept\n");
    assert_eq!(moat.run(&["--rm", "flat", "test", "-e", "/etc/group"]).code, 1);
    let bytes = std::fs::read(&file).unwrap();
    moat.call_with(&["import", "-c", "ENV PATH=/bin", "-", "piped"], &bytes).success();
    assert_eq!(moat.run(&["--rm", "piped", "cat", "/kept"]).success(), "kept\n");
    assert!(moat.call(&["import", "https://example.com/x.tar", "x"]).failure().contains("URL"));
}

#[test]
fn inspect_has_dockers_shape() {
    let moat = Moat::new();
    let told = moat.call(&["image", "inspect", "busybox"]);
    let documents: serde_json::Value = serde_json::from_str(told.success()).unwrap();
    let id = moat.call(&["images", "-q", "--no-trunc", "busybox"]).success().trim().to_owned();
    for (pointer, value) in [
        ("/0/Id", id.as_str()),
        ("/0/RepoTags/0", "busybox:latest"),
        ("/0/Os", "linux"),
        ("/0/Config/Cmd/0", "/bin/sh"),
        ("/0/Config/Env/0", "PATH=/bin"),
        ("/0/Config/Labels/org.example.kind", "box"),
        ("/0/RootFS/Type", "layers"),
    ] {
        assert_eq!(
            documents.pointer(pointer).and_then(|found| found.as_str()),
            Some(value),
            "{pointer}: {told:?}"
        );
    }
    assert!(documents[0]["Size"].as_u64().unwrap() > 500_000);
    assert_eq!(documents[0]["RootFS"]["Layers"].as_array().unwrap().len(), 1);
    // What the image does not say has a place all the same.
    let unsaid = "{{json .Config.Entrypoint}} {{.Config.WorkingDir}} {{len .Config.ExposedPorts}}";
    assert_eq!(moat.call(&["image", "inspect", "-f", unsaid, "busybox"]).success(), "null  0\n");
    let missing = moat.call(&["image", "inspect", "nothing"]);
    assert!(
        missing.code == 1 && missing.stdout == "[]\n" && missing.stderr.contains("nothing"),
        "{missing:?}"
    );
}

#[test]
fn prune_removes_what_has_no_name() {
    let moat = Moat::new();
    moat.run(&["--name", "work", "busybox", "touch", "/x"]).success();
    moat.call(&["commit", "work", "busybox"]).success();
    assert_eq!(moat.call(&["images", "-q", "--filter", "dangling=true"]).success().lines().count(), 1);
    moat.call(&["rm", "work"]).success();
    assert!(moat.call(&["image", "prune"]).failure().contains("--force"));
    let pruned = moat.call(&["image", "prune", "--force"]);
    assert!(
        pruned.success().contains("deleted: sha256:") && pruned.stdout.contains("Total reclaimed space:"),
        "{pruned:?}"
    );
    assert_eq!(moat.call(&["images", "-q", "--filter", "dangling=true"]).success(), "");
}
