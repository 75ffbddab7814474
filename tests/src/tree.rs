//! What a folder shows, a line for each entry, so that two can be compared.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use moat_image::Digest;
use moat_linux::fs;
use moat_linux::mount::FsContext;
use rustix::fs::{FileType, OFlags};

/// Lists everything below a folder: path, type, mode, owner, size, time, digest of the content or what a link says,
/// attributes, and the first other name of a file that has several. Sorted by path; times of folders are left out.
pub fn list_tree(root: BorrowedFd<'_>) -> Vec<String> {
    let (mut lines, mut names) = (Vec::new(), BTreeMap::new());
    folder(root, Path::new("."), &mut names, &mut lines);
    lines.sort();
    lines
}

/// As [`list_tree`], of a path.
pub fn list_path(root: &Path) -> Vec<String> {
    list_tree(File::open(root).unwrap().as_fd())
}

/// What an overlay of these folders shows, topmost first, without mounting it anywhere.
pub fn list_overlay(layers: &[PathBuf]) -> Vec<String> {
    overlay(layers, false)
}

/// As [`list_overlay`], of layers whose marks are `user.overlay.*`.
pub fn list_user_overlay(layers: &[PathBuf]) -> Vec<String> {
    overlay(layers, true)
}

fn overlay(layers: &[PathBuf], user: bool) -> Vec<String> {
    if let [only] = layers {
        return list_path(only);
    }
    let overlay = FsContext::open("overlay").unwrap();
    if user {
        overlay.set_flag("userxattr").unwrap();
    }
    for layer in layers {
        overlay.set("lowerdir+", layer.to_str().unwrap()).unwrap();
    }
    let mount: OwnedFd = overlay.mount(0).unwrap();
    let root = fs::open_at(mount.as_fd(), Path::new("."), OFlags::RDONLY | OFlags::DIRECTORY, 0).unwrap();
    list_tree(root.as_fd())
}

type Names = BTreeMap<(u64, u64), PathBuf>;

fn folder(dir: BorrowedFd<'_>, path: &Path, names: &mut Names, lines: &mut Vec<String>) {
    lines.push(line(dir, path, "dir", ""));
    let mut entries = fs::entries(dir).unwrap();
    entries.sort_by(|(one, _), (other, _)| one.cmp(other));
    for (name, _) in entries {
        let (path, name) = (path.join(&name), Path::new(&name));
        let stat = fs::stat_at(dir, name)
            .unwrap()
            .unwrap_or_else(|| panic!("{} is listed, but not there", path.display()));
        let flags = OFlags::NOFOLLOW;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let inner = fs::open_at(dir, name, OFlags::RDONLY | OFlags::DIRECTORY | flags, 0).unwrap();
                folder(inner.as_fd(), &path, names, lines);
            }
            FileType::RegularFile => {
                let mut file = File::from(fs::open_at(dir, name, OFlags::RDONLY | flags, 0).unwrap());
                let first = names.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| path.clone()).clone();
                let mut bytes = Vec::new();
                std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
                let what = format!("{} as {}", Digest::of(&bytes).short(), first.display());
                lines.push(line(file.as_fd(), &path, "file", &what));
            }
            kind => {
                let node = fs::open_at(dir, name, OFlags::PATH | flags, 0).unwrap();
                let what = match kind {
                    FileType::Symlink => fs::read_link(node.as_fd()).unwrap().display().to_string(),
                    _ => format!("{}", stat.st_rdev),
                };
                lines.push(line(node.as_fd(), &path, &format!("{kind:?}"), &what));
            }
        }
    }
}

fn line(fd: BorrowedFd<'_>, path: &Path, kind: &str, what: &str) -> String {
    let stat = fs::stat(fd).unwrap();
    let mut attributes = Vec::new();
    if matches!(kind, "file" | "dir") {
        for name in fs::list_xattrs(fd).unwrap() {
            let name = name.into_string().unwrap();
            let value = fs::get_xattr(fd, &name).unwrap().unwrap_or_default();
            attributes.push(format!("{name}={}", Digest::of(&value).short()));
        }
        attributes.sort();
    }
    let is_folder = kind == "dir";
    let (size, time) = if is_folder { (0, 0) } else { (stat.st_size, stat.st_mtime) };
    format!(
        "{} {kind} {:04o} {}:{} {size} {time} {what} [{}]",
        path.display(),
        stat.st_mode & 0o7777,
        stat.st_uid,
        stat.st_gid,
        attributes.join(",")
    )
}
