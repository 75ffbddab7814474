//! `moat cp` to the host beside `docker cp`.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use moat_tests::{Moat, wait_until};

use super::docker::Docker;

/// A tree with whatever a tree can hold.
const TREE: &str = "mkdir -p /d/sub; echo a > /d/plain; echo b > /d/suid; chown 1000:26 /d/suid; chmod 6755 /d/suid; \
    mknod /d/dev c 1 3; mkfifo /d/fifo; ln -s /etc/passwd /d/absolute; ln -s plain /d/relative; ln /d/plain /d/hard; \
    chmod 0 /d/plain; chown 1000:1000 /d/sub; chmod 1777 /d/sub; touch -d '2001-02-03 04:05:06' /d/sub/old /d/sub; \
    touch /ready; while :; do sleep 1; done";

/// A line for each entry below a folder: path, kind and mode, owner, size of a file, target of a link, links, whole
/// seconds where they say something.
fn list(folder: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    walk(folder, folder, &mut lines);
    lines.sort();
    lines
}

fn walk(top: &Path, folder: &Path, lines: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let found = path.symlink_metadata().unwrap();
        let target =
            std::fs::read_link(&path).map(|target| format!(" -> {}", target.display())).unwrap_or_default();
        let name = path.strip_prefix(top).unwrap().display().to_string();
        let time = if found.mtime() < 1_000_000_000 { found.mtime() } else { 0 };
        let size = if found.is_file() { found.size() } else { 0 };
        lines.push(format!(
            "{name} {:o} {}:{} {size} {} {} {time}{target}",
            found.mode(),
            found.uid(),
            found.gid(),
            if found.is_dir() { 0 } else { found.nlink() },
            found.rdev(),
        ));
        if found.is_dir() {
            walk(top, &path, lines);
        }
    }
}

#[test]
fn to_the_host_beside_docker() {
    let (docker, moat) = (Docker::new(), Moat::new());
    docker.import(&moat.path("busybox"));
    docker.call(&["run", "-d", "--name", "box", "--network", "none", "box", "sh", "-c", TREE]).success();
    moat.start("box", &[], TREE);
    wait_until(|| docker.call(&["exec", "box", "test", "-e", "/ready"]).code == 0);
    wait_until(|| moat.call(&["exec", "box", "test", "-e", "/ready"]).code == 0);
    let folders = [moat.path("of-docker"), moat.path("of-moat")];
    let copy = |flags: &[&str], from: &str, to: &str| {
        for folder in &folders {
            let _ = std::fs::remove_dir_all(folder);
            std::fs::create_dir_all(folder.join("there")).unwrap();
            std::fs::write(folder.join("file"), "before").unwrap();
        }
        let to = |folder: &Path| format!("{}/{to}", folder.display());
        let line = |to: &str| [vec!["cp"], flags.to_vec(), vec![from]].concat().join(" ") + " " + to;
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let of = |folder: &Path| words(&line(&to(folder)));
        let (one, two) = (of(&folders[0]), of(&folders[1]));
        let docker = docker.call(&one.iter().map(String::as_str).collect::<Vec<_>>()).code;
        let moat = moat.call(&two.iter().map(String::as_str).collect::<Vec<_>>()).code;
        assert_eq!(moat, docker, "{flags:?} {from}");
        (list(&folders[0]), list(&folders[1]))
    };
    for (flags, from, to) in [
        (&[][..], "box:/d", "new"),
        (&[], "box:/d", "there"),
        (&[], "box:/d", "there/"),
        (&[], "box:/d/.", "new"),
        (&[], "box:/d/.", "there"),
        (&[], "box:/d/sub/", "there"),
        (&[], "box:/d/plain", "there"),
        (&[], "box:/d/plain", "new"),
        (&[], "box:/d/plain", "file"),
        (&[], "box:/d/plain", "nowhere/"),
        (&[], "box:/d/plain", "nowhere/file"),
        (&[], "box:/d", "file"),
        (&[], "box:/d/plain/", "there"),
        (&[], "box:/d/fifo", "there"),
        (&[], "box:/d/absolute", "there"),
        (&[], "box:/d/relative", "new"),
        (&["-L"], "box:/d/absolute", "there"),
        (&["-L"], "box:/d/relative", "new"),
        (&["-q"], "box:/d/suid", "new"),
        (&[], "box:/nothing", "there"),
        (&[], "box:/proc/version", "there"),
        (&[], "nobody:/d", "there"),
    ] {
        let (docker, moat) = copy(flags, from, to);
        // Docker lets a workload leave programs and devices on its host that give anybody rights.
        let harmless = docker.into_iter().map(|line| {
            let line = line.replace(" 106755 ", " 100755 ");
            if line.contains("dev 20644") { line.replace("dev 20644", "dev 20600") } else { line }
        });
        assert_eq!(moat, harmless.collect::<Vec<_>>(), "{flags:?} {from} {to}");
    }
}
