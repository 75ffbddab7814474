//! `system df`, `system prune`, `system info`.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use moat_model::workload::Status;
use moat_sandbox::cgroup::Layout;
use moat_sandbox::host::Host;

use crate::stats::{host_memory, processors};
use crate::{Context, Engine, ErrorKind, RemoveOptions, Result, Timestamp, Workload};

/// What is on the disk.
#[derive(Clone, Debug, Default)]
pub struct DiskUsage {
    /// Images and layers.
    pub images: moat_image::DiskUsage,
    /// Each workload.
    pub workloads: Vec<WorkloadUsage>,
}

/// What one workload takes beside its image.
#[derive(Clone, Debug)]
pub struct WorkloadUsage {
    /// The workload.
    pub workload: Workload,
    /// Whether it can not be pruned now.
    pub running: bool,
    /// Bytes of the files that it wrote over its image.
    pub written_bytes: u64,
    /// Bytes of its logs.
    pub log_bytes: u64,
}

/// What is to go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PruneSpec {
    /// Workloads that do not run.
    pub workloads: bool,
    /// Images without a name that no workload uses.
    pub images: bool,
    /// Also images with a name that no workload uses.
    pub all_images: bool,
    /// Only what was made before.
    pub until: Option<Timestamp>,
    /// Only what has each label, as `key` or `key=value`.
    pub labels: Vec<String>,
}

/// What has gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Ids of workloads.
    pub workloads: Vec<String>,
    /// Names and images.
    pub images: moat_image::Removed,
    /// Bytes that are free now.
    pub reclaimed_bytes: u64,
}

/// The engine and its host.
#[derive(Clone, Debug)]
pub struct Info {
    /// Workloads by status.
    pub running: usize,
    /// Frozen ones.
    pub paused: usize,
    /// All others.
    pub stopped: usize,
    /// Images.
    pub images: usize,
    /// Where what lasts is kept.
    pub data_root: String,
    /// Version of the kernel.
    pub kernel: String,
    /// Name and version of the distribution.
    pub operating_system: String,
    /// The processors' architecture.
    pub architecture: String,
    /// The host's name.
    pub host_name: String,
    /// Processors that are online.
    pub processors: u32,
    /// Memory of the host.
    pub memory_bytes: u64,
    /// 1, 2, or 0 where there are none.
    pub cgroup_version: u8,
    /// Whether this is the engine of an ordinary user.
    pub rootless: bool,
    /// What confines programs beside namespaces: `seccomp`, `apparmor`, `selinux`, `userns`.
    pub security: Vec<String>,
}

impl Workload {
    /// Bytes of what it wrote over its image, and of its logs.
    pub fn written_bytes(&self) -> Result<(u64, u64)> {
        Ok((tree_bytes(&self.folder().upper())?, tree_bytes(&self.folder().log())?))
    }

    fn matches(&self, until: Option<Timestamp>, labels: &[String]) -> bool {
        until.is_none_or(|until| self.record().created < until)
            && labels.iter().all(|label| has_label(&self.spec().labels, label))
    }
}

impl Engine {
    /// Counts what is on the disk.
    pub fn disk_usage(&self) -> Result<DiskUsage> {
        let mut usage = DiskUsage { images: self.images().disk_usage()?, workloads: Vec::new() };
        for workload in self.list()? {
            let (written_bytes, log_bytes) = workload.written_bytes()?;
            let running = workload.state()?.monitor_expected();
            usage.workloads.push(WorkloadUsage { workload, running, written_bytes, log_bytes });
        }
        Ok(usage)
    }

    /// Removes what is not used.
    pub fn prune(&self, spec: &PruneSpec) -> Result<Pruned> {
        let mut pruned = Pruned::default();
        if spec.workloads {
            self.prune_workloads(spec, &mut pruned)?;
        }
        if spec.images || spec.all_images {
            let wanted = |image: &moat_image::Image| {
                let old = |until: Timestamp| {
                    let created = image.created.as_deref().and_then(Timestamp::parse);
                    created.is_none_or(|created| created < until)
                };
                spec.until.is_none_or(old)
                    && spec.labels.iter().all(|label| has_label(&image.config.config.labels, label))
            };
            let gone = self.images().prune(spec.all_images, &wanted)?;
            pruned.reclaimed_bytes += gone.reclaimed_bytes;
            pruned.images = gone.removed;
        }
        Ok(pruned)
    }

    fn prune_workloads(&self, spec: &PruneSpec, pruned: &mut Pruned) -> Result<()> {
        for workload in self.list()? {
            let state = workload.state()?;
            let idle = matches!(state.status, Status::Created | Status::Exited | Status::Dead);
            if !idle || state.monitor_expected() || !workload.matches(spec.until, &spec.labels) {
                continue;
            }
            let (written, log) = workload.written_bytes()?;
            match workload.remove(&RemoveOptions { force: false, volumes: false }) {
                Ok(()) => {
                    pruned.reclaimed_bytes += written + log;
                    pruned.workloads.push(workload.id().to_string());
                }
                // It was started, or removed by somebody else, meanwhile.
                Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Says what the engine and its host are like.
    pub fn info(&self) -> Result<Info> {
        let read = |path: &str| -> Result<String> {
            Ok(std::fs::read_to_string(path).context(|| path.to_owned())?.trim().to_owned())
        };
        let host = Host::detect()?;
        let (mut running, mut paused, mut stopped) = (0, 0, 0);
        for workload in self.list()? {
            match workload.state()?.status {
                Status::Running => running += 1,
                Status::Paused => paused += 1,
                _ => stopped += 1,
            }
        }
        let mut security = vec!["seccomp".to_owned()];
        security.extend(host.apparmor.then(|| "apparmor".to_owned()));
        security.extend(host.selinux.then(|| "selinux".to_owned()));
        security.extend(host.rootless().then(|| "rootless".to_owned()));
        Ok(Info {
            running,
            paused,
            stopped,
            images: self.images().list()?.len(),
            data_root: self.roots().data.display().to_string(),
            kernel: read("/proc/sys/kernel/osrelease")?,
            operating_system: operating_system(),
            architecture: std::env::consts::ARCH.to_owned(),
            host_name: read("/proc/sys/kernel/hostname")?,
            processors: processors()?,
            memory_bytes: host_memory()?,
            cgroup_version: cgroup_version(&host.cgroups),
            rootless: host.rootless(),
            security,
        })
    }
}

fn cgroup_version(layout: &Layout) -> u8 {
    match layout {
        Layout::Unified(_) => 2,
        _ if !layout.hierarchies().is_empty() => 1,
        _ => 0,
    }
}

/// PRETTY_NAME of os-release(5).
fn operating_system() -> String {
    let files = ["/etc/os-release", "/usr/lib/os-release"];
    let text = files.iter().find_map(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("Linux").trim_matches('"').to_owned()
}

/// Whether `labels` has `key`, or `key=value`.
pub(crate) fn has_label(labels: &std::collections::BTreeMap<String, String>, wanted: &str) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
        None => labels.contains_key(wanted),
    }
}

/// Bytes of all files below a folder, each counted once however many names it has; 0 where there is none. What goes
/// away meanwhile is left out.
pub(crate) fn tree_bytes(path: &Path) -> Result<u64> {
    let mut seen = BTreeSet::new();
    let mut folders = vec![path.to_owned()];
    let mut bytes = 0;
    while let Some(folder) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.context(|| format!("read {}", folder.display()))?,
        };
        for entry in entries {
            let entry = entry.context(|| format!("read {}", folder.display()))?;
            let Ok(found) = entry.metadata() else { continue };
            if found.is_dir() {
                folders.push(entry.path());
            } else if found.nlink() == 1 || seen.insert((found.dev(), found.ino())) {
                bytes += found.len();
            }
        }
    }
    Ok(bytes)
}

/// The moment before which something was made that is older than `age`.
pub fn older_than(age: Duration) -> Timestamp {
    Timestamp::from(SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_two_names_counts_once() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        std::fs::write(folder.path().join("one"), [0; 1000]).unwrap();
        std::fs::hard_link(folder.path().join("one"), folder.path().join("sub/two")).unwrap();
        std::fs::write(folder.path().join("sub/three"), [0; 10]).unwrap();
        assert_eq!(tree_bytes(folder.path()).unwrap(), 1010);
        assert_eq!(tree_bytes(&folder.path().join("none")).unwrap(), 0);
    }

    #[test]
    fn labels() {
        let labels = std::collections::BTreeMap::from([("a".to_owned(), "b=c".to_owned())]);
        for (wanted, found) in [("a", true), ("a=b=c", true), ("a=b", false), ("b", false)] {
            assert_eq!(has_label(&labels, wanted), found, "{wanted}");
        }
    }
}
