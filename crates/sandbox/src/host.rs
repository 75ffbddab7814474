//! What the host offers, read once; with the configuration it is all that a plan depends on.

use std::path::Path;

use moat_linux::capability;

use crate::{Context, Result, cgroup};

/// Facts about the host and about who runs the runtime.
#[derive(Clone, Debug)]
pub struct Host {
    /// The effective user id of the runtime.
    pub user: u32,
    /// The effective group id of the runtime.
    pub group: u32,
    /// Whether the runtime itself runs inside a user namespace that is not the initial one.
    pub in_user_namespace: bool,
    /// Whether setgroups(2) is denied to everybody in this user namespace, user_namespaces(7).
    pub groups_denied: bool,
    /// The cgroup hierarchies.
    pub cgroups: cgroup::Layout,
    /// The bounding set: no container gets more.
    pub bounding: capability::Set,
    /// Whether AppArmor is active.
    pub apparmor: bool,
    /// Whether SELinux is active.
    pub selinux: bool,
}

impl Host {
    /// Reads /proc and /sys.
    pub fn detect() -> Result<Self> {
        let in_user_namespace =
            moat_linux::credentials::in_user_namespace().context(|| "/proc/self/uid_map")?;
        Ok(Self {
            user: moat_linux::credentials::effective_user(),
            group: moat_linux::credentials::effective_group(),
            in_user_namespace,
            groups_denied: in_user_namespace
                && std::fs::read("/proc/self/setgroups").is_ok_and(|text| text.starts_with(b"deny")),
            cgroups: cgroup::detect()?,
            bounding: capability::bounding(),
            apparmor: std::fs::read("/sys/module/apparmor/parameters/enabled")
                .is_ok_and(|text| text.starts_with(b"Y")),
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
        })
    }

    /// Whether the runtime lacks the privileges of the initial user namespace.
    pub fn rootless(&self) -> bool {
        self.user != 0 || self.in_user_namespace
    }
}
