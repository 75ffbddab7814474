//! What cgroups the host offers, and where a container's group lies in them.

use std::path::{Path, PathBuf};

use super::file;
use crate::{Context, Error, Result};

/// The cgroup hierarchies of the host, as this process sees them.
#[derive(Clone, Debug, PartialEq)]
pub enum Layout {
    /// cgroup v2 alone.
    Unified(Unified),
    /// cgroup v1, perhaps with a cgroup2 mount beside it (systemd calls that hybrid).
    Legacy {
        /// The v1 hierarchies.
        hierarchies: Vec<Hierarchy>,
        /// The cgroup2 mount of a hybrid layout: it serves the controllers that no v1 hierarchy took, and
        /// always cgroup.kill, the freezer and PSI.
        unified: Option<Unified>,
    },
    /// No cgroup file system is mounted.
    None,
}

/// The cgroup2 mount.
#[derive(Clone, Debug, PartialEq)]
pub struct Unified {
    /// The mount point.
    pub mount: PathBuf,
    /// Which group is the root of the mount; `/` but in containers without a cgroup namespace.
    pub root: String,
    /// The group of this process.
    pub own: String,
    /// The controllers at the mount's root.
    pub controllers: Vec<String>,
    /// Whether this process may make the group; only [`Layout::probe`] finds that it may not.
    pub writable: bool,
}

/// A cgroup v1 hierarchy.
#[derive(Clone, Debug, PartialEq)]
pub struct Hierarchy {
    /// The mount point.
    pub mount: PathBuf,
    /// Which group is the root of the mount.
    pub root: String,
    /// The group of this process.
    pub own: String,
    /// The controllers, several for a joined mount (`cpu,cpuacct`), none for a named one.
    pub controllers: Vec<String>,
    /// The name of a hierarchy without controllers, as in `name=systemd`.
    pub name: Option<String>,
    /// Whether this process may make the group; only [`Layout::probe`] finds that it may not.
    pub writable: bool,
}

/// Reads the host's layout from /proc/self/mountinfo and /proc/self/cgroup.
pub fn detect() -> Result<Layout> {
    let mounts = file::read(Path::new("/proc/self/mountinfo")).context(|| "the host's mounts")?;
    let groups = file::read(Path::new("/proc/self/cgroup")).context(|| "the cgroups of this process")?;
    let systemd = Path::new("/run/systemd/system").exists();
    let mut layout = parse(&mounts, &groups, systemd);
    if let Some(unified) = layout.unified_mut() {
        let controllers = file::read_optional(&unified.mount.join("cgroup.controllers"))
            .context(|| "the controllers of cgroup v2")?;
        unified.controllers = controllers.unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    }
    Ok(layout)
}

struct CgroupMount<'text> {
    root: &'text str,
    point: PathBuf,
    v2: bool,
    options: Vec<&'text str>,
}

/// One line of mountinfo, proc_pid_mountinfo(5), when it is a cgroup mount.
fn cgroup_mount(line: &str) -> Option<CgroupMount<'_>> {
    let (left, right) = line.split_once(" - ")?;
    let mut right = right.split(' ');
    let v2 = match right.next()? {
        "cgroup" => false,
        "cgroup2" => true,
        _ => return None,
    };
    let options = right.nth(1).unwrap_or_default().split(',').collect();
    let mut left = left.split(' ').skip(3);
    let (root, point) = (left.next()?, left.next()?);
    Some(CgroupMount { root, point: PathBuf::from(unescape(point)), v2, options })
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// A hierarchy without controllers limits and counts nothing: in it, systemd keeps book of which process belongs to
/// which service. Where there is no systemd it is left out.
fn parse(mountinfo: &str, proc_cgroup: &str, systemd: bool) -> Layout {
    let mounts: Vec<_> = mountinfo.lines().filter_map(cgroup_mount).collect();
    let mut hierarchies = Vec::new();
    let mut unified = None;
    // /proc/self/cgroup lists the newest hierarchy first; the order of mounting reads better.
    for line in proc_cgroup.lines().rev() {
        let mut fields = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(own)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let fits = |mount: &&CgroupMount<'_>| match (number, controllers) {
            ("0", "") => mount.v2,
            _ => !mount.v2 && controllers.split(',').all(|wanted| mount.options.contains(&wanted)),
        };
        let Some(mount) = mounts.iter().find(fits) else { continue };
        let (point, root, own) = (mount.point.clone(), mount.root.to_owned(), below(mount.root, own));
        if mount.v2 {
            unified = Some(Unified { mount: point, root, own, controllers: Vec::new(), writable: true });
            continue;
        }
        let name = controllers.strip_prefix("name=").map(str::to_owned);
        if name.is_some() && !systemd {
            continue;
        }
        let controllers = match &name {
            Some(_) => Vec::new(),
            None => controllers.split(',').map(str::to_owned).collect(),
        };
        hierarchies.push(Hierarchy { mount: point, root, own, controllers, name, writable: true });
    }
    match (hierarchies.is_empty(), unified) {
        (true, Some(unified)) => Layout::Unified(unified),
        (true, None) => Layout::None,
        (false, unified) => Layout::Legacy { hierarchies, unified },
    }
}

/// The path of a group below the mount, whose root may be a group itself.
fn below(root: &str, group: &str) -> String {
    match group.strip_prefix(root) {
        Some("") => "/".to_owned(),
        Some(rest) if root != "/" && rest.starts_with('/') => rest.to_owned(),
        _ => group.to_owned(),
    }
}

impl Layout {
    /// The cgroup2 mount, if there is one.
    pub fn unified(&self) -> Option<&Unified> {
        match self {
            Self::Unified(unified) => Some(unified),
            Self::Legacy { unified, .. } => unified.as_ref(),
            Self::None => None,
        }
    }

    fn unified_mut(&mut self) -> Option<&mut Unified> {
        match self {
            Self::Unified(unified) => Some(unified),
            Self::Legacy { unified, .. } => unified.as_mut(),
            Self::None => None,
        }
    }

    /// The v1 hierarchies.
    pub fn hierarchies(&self) -> &[Hierarchy] {
        match self {
            Self::Legacy { hierarchies, .. } => hierarchies,
            Self::Unified(_) | Self::None => &[],
        }
    }

    /// Finds out, for a runtime that is not root, in which hierarchies it may make the container's group.
    ///
    /// This is the only question that planning can not answer from the layout, so it is asked before: access(2)
    /// of the deepest directory on the way to the group that exists.
    pub fn probe(&mut self, path: &str, id: &str) -> Result<()> {
        let place = Place::parse(path, id, true)?;
        if let Self::Legacy { hierarchies, .. } = self {
            for hierarchy in hierarchies {
                hierarchy.writable = may_create(&hierarchy.mount, &place.within(&hierarchy.own, false));
            }
        }
        let alone = matches!(self, Self::Unified(_));
        if let Some(unified) = self.unified_mut() {
            unified.writable = may_create(&unified.mount, &place.within(&unified.own, alone));
        }
        Ok(())
    }
}

fn may_create(mount: &Path, group: &str) -> bool {
    let directory = directory(mount, group);
    let existing = directory.ancestors().find(|ancestor| ancestor.exists());
    existing.is_some_and(|path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok())
}

/// The directory of a group.
pub(super) fn directory(mount: &Path, group: &str) -> PathBuf {
    mount.join(group.trim_start_matches('/'))
}

/// Where the container's group is to be, from `linux.cgroupsPath`; the same in every hierarchy.
#[derive(Debug, PartialEq)]
pub(super) struct Place {
    path: String,
    relative: bool,
}

impl Place {
    /// Checks `cgroupsPath`, which comes from outside.
    ///
    /// An absolute path lies below the root of the hierarchies. The specification leaves to the runtime
    /// where a relative one and none at all (then it is the container's id) lie: below the root too, as
    /// with crun, so that the group does not depend on who called the runtime. A rootless runtime could
    /// not write there: its groups lie beside its own (as with runc), which is what systemd delegates.
    pub(super) fn parse(path: &str, id: &str, rootless: bool) -> Result<Self> {
        let refused = |why: &str| Err(Error::new(format!("linux.cgroupsPath {path:?} {why}")));
        if path.matches(':').count() == 2 && !path.contains('/') {
            return refused(
                "has systemd's form slice:prefix:name, but --systemd-cgroup is not supported yet",
            );
        }
        if path.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
            return refused("has a control character");
        }
        let relative = rootless && !path.starts_with('/');
        let text = if path.is_empty() { id } else { path };
        let parts: Vec<&str> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
        if parts.contains(&"..") {
            return refused("contains \"..\"");
        }
        if parts.iter().any(|part| part.len() > 255) {
            return refused("has a component of more than 255 bytes");
        }
        if parts.is_empty() {
            return refused("is the root of the hierarchy, not a group of the container's own");
        }
        Ok(Self { path: format!("/{}", parts.join("/")), relative })
    }

    /// The group's path in a hierarchy where this process is in `own`.
    pub(super) fn within(&self, own: &str, v2: bool) -> String {
        if !self.relative {
            return self.path.clone();
        }
        // A group with processes can have no controllers for its children on v2, and `own` has one.
        let parent = if v2 { own.rsplit_once('/').map_or("", |(parent, _)| parent) } else { own };
        format!("{}{}", parent.trim_end_matches('/'), self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/my\\040systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";

    #[test]
    fn hybrid_hosts_are_legacy_with_a_unified_mount() {
        let own = "3:name=systemd:/\n2:memory:/a/b\n1:cpu,cpuacct:/\n4:net_cls:/\n0::/";
        let Layout::Legacy { hierarchies, unified } = parse(HYBRID, own, true) else { panic!("not legacy") };
        let text: Vec<String> = hierarchies
            .iter()
            .map(|one| format!("{} {:?} {:?} {}", one.mount.display(), one.controllers, one.name, one.own))
            .collect();
        assert_eq!(
            text,
            [
                "/sys/fs/cgroup/cpu,cpuacct [\"cpu\", \"cpuacct\"] None /",
                "/sys/fs/cgroup/memory [\"memory\"] None /a/b",
                "/sys/fs/cgroup/my systemd [] Some(\"systemd\") /",
            ]
        );
        assert_eq!(unified.unwrap().mount, Path::new("/sys/fs/cgroup/unified"));
    }

    #[test]
    fn the_hierarchy_of_systemd_is_left_out_where_it_does_not_run() {
        let layout = parse(HYBRID, "3:name=systemd:/\n2:memory:/\n0::/", false);
        assert_eq!(layout.hierarchies().iter().map(|one| one.name.clone()).collect::<Vec<_>>(), [None]);
        assert!(layout.unified().is_some());
    }

    #[test]
    fn cgroup2_alone_is_unified() {
        let mounts = "25 23 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate";
        let Layout::Unified(unified) = parse(mounts, "0::/user.slice", true) else { panic!("not unified") };
        assert_eq!((unified.own.as_str(), unified.root.as_str()), ("/user.slice", "/"));
        assert_eq!(parse("", "0::/", true), Layout::None);
    }

    #[test]
    fn own_group_is_told_below_the_root_of_the_mount() {
        let mounts = "35 31 0:32 /docker/x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";
        assert_eq!(parse(mounts, "2:memory:/docker/x", true).hierarchies()[0].own, "/");
        assert_eq!(parse(mounts, "2:memory:/docker/x/y", true).hierarchies()[0].own, "/y");
        assert_eq!(parse(mounts, "2:memory:/docker/xy", true).hierarchies()[0].own, "/docker/xy");
    }

    #[test]
    fn places() {
        let within = |path: &str, rootless: bool, own: &str, v2| {
            Place::parse(path, "box", rootless).map(|place| place.within(own, v2)).unwrap()
        };
        assert_eq!(within("", false, "/own", true), "/box");
        assert_eq!(within("/a//./b/", false, "/own", true), "/a/b");
        assert_eq!(within("a/b", false, "/own", true), "/a/b");
        assert_eq!(within("", true, "/user.slice/session", true), "/user.slice/box");
        assert_eq!(within("", true, "/", true), "/box");
        assert_eq!(within("a", true, "/own", false), "/own/a");
        assert_eq!(within("/a", true, "/own", true), "/a");
        assert_eq!(within("/kube:pods:x/a", false, "/", true), "/kube:pods:x/a");
    }

    #[test]
    fn hostile_paths_are_refused() {
        let sentence = |path: &str| Place::parse(path, "box", false).unwrap_err().to_string();
        assert_eq!(sentence("/a/../b"), "linux.cgroupsPath \"/a/../b\" contains \"..\"");
        assert_eq!(
            sentence("system.slice:moat:box"),
            "linux.cgroupsPath \"system.slice:moat:box\" has systemd's form slice:prefix:name, but \
             --systemd-cgroup is not supported yet"
        );
        assert_eq!(
            sentence("//."),
            "linux.cgroupsPath \"//.\" is the root of the hierarchy, not a group of the container's own"
        );
        assert_eq!(sentence("/a\nb"), "linux.cgroupsPath \"/a\\nb\" has a control character");
        assert!(sentence(&"x".repeat(256)).ends_with("has a component of more than 255 bytes"));
    }
}
