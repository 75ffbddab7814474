//! Images as files and names: `import`, `save`, `load`, `tag`, `rmi`, `history`, `commit`, `export`.

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
fn commit_keeps_changes_and_diff_tells_them() {
    let moat = Moat::new();
    moat.run(&[
        "--name",
        "work",
        "busybox",
        "sh",
        "-c",
        "echo new > /etc/new; rm /etc/group; echo more >> /etc/passwd",
    ])
    .success();
    let changes = moat.call(&["diff", "work"]);
    for line in ["A /etc/new", "D /etc/group", "C /etc/passwd"] {
        assert!(changes.success().lines().any(|found| found == line), "{line} in {changes:?}");
    }
    let id = moat.call(&["commit", "-m", "by hand", "-c", "CMD [\"cat\", \"/etc/new\"]", "work", "worked:1"]);
    assert!(id.success().starts_with("sha256:"), "{id:?}");
    assert_eq!(moat.run(&["--rm", "worked:1"]).success(), "new\n");
    assert_eq!(moat.run(&["--rm", "worked:1", "ls", "/etc/group"]).code, 1);
    assert!(moat.call(&["history", "worked:1"]).success().contains("by hand"));
    assert_eq!(moat.call(&["history", "-q", "worked:1"]).success().lines().count(), 2);
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
fn copies_go_both_ways() {
    let moat = Moat::new();
    moat.start("box", &[], "while :; do sleep 1; done");
    std::fs::write(moat.path("note"), "hello\n").unwrap();
    let note = moat.path("note").display().to_string();
    moat.call(&["cp", &note, "box:/tmp/there"]).success();
    assert_eq!(moat.call(&["exec", "box", "cat", "/tmp/there"]).success(), "hello\n");
    let back = moat.path("back").display().to_string();
    moat.call(&["cp", "box:/tmp/there", &back]).success();
    assert_eq!(std::fs::read_to_string(&back).unwrap(), "hello\n");
    moat.call(&["cp", "box:/etc", &moat.path("etc").display().to_string()]).success();
    assert!(moat.path("etc/passwd").is_file());
    let tar = moat.call(&["cp", "box:/etc/passwd", "-"]);
    assert!(tar.success().contains("web:x:1000"), "a tar archive holds the file as it is");
    assert!(moat.call(&["cp", "box:/nothing", &back]).failure().contains("/nothing"));
    assert_eq!(moat.call(&["cp", "box:/a", "box:/b"]).code, 1);
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
