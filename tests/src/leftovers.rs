//! What still names a container after it should be gone.

use std::path::{Path, PathBuf};

/// Every cgroup, mount, process and state folder (below `state`) whose name holds `id`, a line each.
pub fn leftovers(state: &Path, id: &str) -> Vec<String> {
    let mut found = Vec::new();
    groups(Path::new("/sys/fs/cgroup"), id, &mut found);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    found.extend(mounts.lines().filter(|line| line.contains(id)).map(|line| format!("mount {line}")));
    found.extend(processes(id));
    found.extend(folders(state, id).into_iter().map(|path| format!("state {}", path.display())));
    found
}

fn groups(folder: &Path, id: &str, found: &mut Vec<String>) {
    // A group of somebody else's may go while this one looks.
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name().to_string_lossy().contains(id) {
            found.push(format!("cgroup {}", entry.path().display()));
        }
        groups(&entry.path(), id, found);
    }
}

fn processes(id: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
        let stat = String::from_utf8_lossy(&read("stat")).into_owned();
        // What has ended waits for its parent, not for the runtime.
        let ended = stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']));
        let named =
            [read("cgroup"), read("cmdline")].iter().any(|text| String::from_utf8_lossy(text).contains(id));
        if named && !ended && pid != std::process::id() {
            let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            found.push(format!("process {pid} {command}"));
        }
    }
    found
}

fn folders(state: &Path, id: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(state).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains(id)).collect()
}
