//! What the host can do, and what is missing for what: the first half of `moat system check`.
//!
//! Features are found by using them where that leaves nothing behind, in a child process; what a file says is only
//! asked where nothing can be tried.

use std::path::Path;

use moat_linux::process::{self as sys, Clone3, Forked};
use moat_linux::{Errno, mount};

/// How well something is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grade {
    /// As it should be.
    Good,
    /// There, with limits.
    Limited,
    /// Not there.
    Missing,
}

impl Grade {
    /// The word for it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Limited => "limited",
            Self::Missing => "missing",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug)]
pub(crate) struct Fact {
    /// What.
    pub(crate) topic: &'static str,
    /// How well it is there.
    pub(crate) grade: Grade,
    /// What was found, and what it means.
    pub(crate) finding: String,
    /// How to get what is missing.
    pub(crate) remedy: Option<String>,
}

fn fact(topic: &'static str, grade: Grade, finding: impl Into<String>, remedy: &str) -> Fact {
    let remedy = (!remedy.is_empty()).then(|| remedy.to_owned());
    Fact { topic, grade, finding: finding.into(), remedy }
}

/// Looks at everything.
pub(crate) fn examine() -> Vec<Fact> {
    vec![
        kernel(),
        cgroups(),
        namespaces(),
        user_namespaces(),
        rootless(),
        overlay(),
        seccomp(),
        security(),
        kvm(),
    ]
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Major and minor number of the kernel's version.
fn version() -> (u32, u32) {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn kernel() -> Fact {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    match version() >= (5, 12) {
        true => fact("kernel", Grade::Good, format!("Linux {release}"), ""),
        false => fact(
            "kernel",
            Grade::Missing,
            format!("Linux {release}: mounts by descriptor need mount_setattr(2)"),
            "use Linux 5.12 or later",
        ),
    }
}

/// Which hierarchies are mounted, and with which controllers.
fn cgroups() -> Fact {
    let mountinfo = read("/proc/self/mountinfo");
    let (mut unified, mut old) = (None, Vec::new());
    for line in mountinfo.lines() {
        let Some((front, back)) = line.split_once(" - ") else { continue };
        let point = front.split(' ').nth(4).unwrap_or_default();
        match back.split(' ').next() {
            Some("cgroup2") => unified = Some(point.to_owned()),
            Some("cgroup") => {
                let name = Path::new(point).file_name().unwrap_or_default();
                old.push(name.to_string_lossy().into_owned());
            }

            _ => {}
        }
    }
    let Some(point) = unified else {
        return match old.is_empty() {
            true => {
                fact("cgroups", Grade::Missing, "no hierarchy is mounted", "mount cgroup2 at /sys/fs/cgroup")
            }
            false => fact(
                "cgroups",
                Grade::Limited,
                format!("version 1 alone ({}): no pressure, no limits for ordinary users", old.join(", ")),
                "boot with systemd.unified_cgroup_hierarchy=1",
            ),
        };
    };
    let controllers = read(&format!("{point}/cgroup.controllers"));
    let controllers: Vec<&str> = controllers.split_whitespace().collect();
    let missing: Vec<&str> =
        ["cpu", "io", "memory", "pids"].into_iter().filter(|name| !controllers.contains(name)).collect();
    match (missing.is_empty(), old.is_empty()) {
        (true, _) => fact("cgroups", Grade::Good, format!("version 2 with {}", controllers.join(", ")), ""),
        (false, false) => fact(
            "cgroups",
            Grade::Limited,
            format!(
                "hybrid: version 2 at {point} without {}, which version 1 has: limits hold, ordinary users have none",
                missing.join(", ")
            ),
            "boot with systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all",
        ),
        (false, true) => fact(
            "cgroups",
            Grade::Limited,
            format!("version 2 without {}: such limits are refused", missing.join(", ")),
            "boot with cgroup_no_v1=all, and in a container or service delegate the controllers",
        ),
    }
}

const NAMESPACES: [(u64, &str); 8] = [
    (sys::namespace::MOUNT, "mount"),
    (sys::namespace::UTS, "uts"),
    (sys::namespace::IPC, "ipc"),
    (sys::namespace::PID, "pid"),
    (sys::namespace::NETWORK, "network"),
    (sys::namespace::CGROUP, "cgroup"),
    (sys::namespace::USER, "user"),
    (sys::namespace::TIME, "time"),
];

/// What `act` says in a child of this process, which can change what it likes.
fn in_child(act: impl FnOnce() -> moat_linux::Result<()>) -> Result<(), Errno> {
    match sys::fork(Clone3::default()) {
        Ok(Forked::Child) => {
            let code = match act() {
                Ok(()) => 0,
                Err(error) => error.errno().raw_os_error().clamp(1, 255),
            };
            std::process::exit(code)
        }
        Ok(Forked::Parent(pid, _)) => match sys::wait(pid, true) {
            Ok(Some(status)) => match sys::exit_code(status) {
                0 => Ok(()),
                code => Err(Errno::from_raw_os_error(code)),
            },
            Ok(None) => Err(Errno::CHILD),
            Err(error) => Err(error.errno()),
        },
        Err(error) => Err(error.errno()),
    }
}

fn namespaces() -> Fact {
    // Without root they are made within a user namespace, as a rootless workload's are.
    let user = if moat_linux::credentials::effective_user() == 0 { 0 } else { sys::namespace::USER };
    let denied: Vec<String> = NAMESPACES
        .iter()
        .filter_map(|(bits, name)| {
            let error = in_child(|| sys::unshare(bits | user)).err()?;
            Some(format!("{name} ({})", moat_linux::errno_name(error)))
        })
        .collect();
    match denied.is_empty() {
        true => fact("namespaces", Grade::Good, "all eight kinds can be made", ""),
        false => fact(
            "namespaces",
            Grade::Missing,
            format!("can not be made: {}", denied.join(", ")),
            "within a container it needs --privileged, or --security-opt seccomp=unconfined",
        ),
    }
}

fn user_namespaces() -> Fact {
    const TOPIC: &str = "user namespaces";
    if read("/proc/sys/user/max_user_namespaces").trim() == "0" {
        return fact(
            TOPIC,
            Grade::Missing,
            "user.max_user_namespaces is 0",
            "sysctl user.max_user_namespaces=28633",
        );
    }
    if read("/proc/sys/kernel/unprivileged_userns_clone").trim() == "0" {
        return fact(
            TOPIC,
            Grade::Limited,
            "only root may make them: no rootless workloads",
            "sysctl kernel.unprivileged_userns_clone=1",
        );
    }
    if read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").trim() == "1" {
        return fact(
            TOPIC,
            Grade::Limited,
            "AppArmor takes the capabilities of those that ordinary users make: no rootless workloads",
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or give moat an AppArmor profile with userns",
        );
    }
    fact(TOPIC, Grade::Good, "ordinary users may make them", "")
}

fn rootless() -> Fact {
    const TOPIC: &str = "rootless";
    let found = |name: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
    };
    if !found("newuidmap") || !found("newgidmap") {
        return fact(
            TOPIC,
            Grade::Limited,
            "newuidmap and newgidmap are missing: a rootless workload has one user",
            "install the package uidmap",
        );
    }
    let ranges = |file: &str| read(file).lines().filter(|line| line.split(':').count() == 3).count();
    match (ranges("/etc/subuid"), ranges("/etc/subgid")) {
        (1.., 1..) => {
            fact(TOPIC, Grade::Good, "newuidmap is there, and users have ranges in /etc/subuid", "")
        }
        _ => fact(
            TOPIC,
            Grade::Limited,
            "no user has a range in /etc/subuid and /etc/subgid: a rootless workload has one user",
            "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER",
        ),
    }
}

fn overlay() -> Fact {
    const TOPIC: &str = "overlay";
    if !read("/proc/filesystems")
        .lines()
        .any(|line| line.trim() == "nodev\toverlay" || line.ends_with("\toverlay"))
    {
        return fact(
            TOPIC,
            Grade::Missing,
            "the kernel has no overlayfs: images can not be mounted",
            "modprobe overlay",
        );
    }
    // Setting a parameter mounts nothing.
    let knows = |name: &str, value: Option<&str>| {
        in_child(|| {
            if moat_linux::credentials::effective_user() != 0 {
                sys::unshare(sys::namespace::USER | sys::namespace::MOUNT)?;
            }
            let context = mount::FsContext::open("overlay")?;
            match value {
                Some(value) => context.set(name, value),
                None => context.set_flag(name),
            }
        })
    };
    let by_layer = knows("lowerdir+", Some("/")).is_ok();
    let by_users = knows("userxattr", None).is_ok();
    let mut words = vec![match by_layer {
        true => "layers are given one by one, at least 200",
        false => "layers are given in one line, as many as fit",
    }];
    words.push(if by_users { "ordinary users can mount it" } else { "only root can mount it" });
    let grade = if by_layer && by_users { Grade::Good } else { Grade::Limited };
    let remedy = if by_layer { "" } else { "use Linux 6.5 or later for images of very many layers" };
    fact(TOPIC, grade, words.join("; "), remedy)
}

fn seccomp() -> Fact {
    let actions = read("/proc/sys/kernel/seccomp/actions_avail");
    match actions.split_whitespace().any(|action| action == "errno") {
        true => fact("seccomp", Grade::Good, format!("filters with {}", actions.trim()), ""),
        false => fact(
            "seccomp",
            Grade::Missing,
            "the kernel filters no system calls: workloads are refused unless --security-opt seccomp=unconfined",
            "use a kernel with CONFIG_SECCOMP_FILTER",
        ),
    }
}

fn security() -> Fact {
    let active = read("/sys/kernel/security/lsm");
    let active: Vec<&str> =
        active.trim().split(',').filter(|name| ["apparmor", "selinux"].contains(name)).collect();
    match active.is_empty() {
        true => fact(
            "security modules",
            Grade::Good,
            "neither AppArmor nor SELinux is active; the other walls stand alone",
            "",
        ),
        false => fact("security modules", Grade::Good, format!("{} is active", active.join(" and ")), ""),
    }
}

/// Which kind of KVM: what runs a stock kernel at full speed needs the processor's help.
fn kvm() -> Fact {
    const TOPIC: &str = "microVMs (KVM)";
    let info = read("/proc/cpuinfo");
    let flags = info.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    let hardware = match (has("vmx"), has("svm")) {
        (true, _) => Some("Intel VT-x"),
        (_, true) => Some("AMD SVM"),
        _ => None,
    };
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    match (opened, hardware) {
        (Ok(_), Some(name)) => fact(TOPIC, Grade::Good, format!("/dev/kvm with {name}"), ""),
        (Ok(_), None) if info.contains("aarch64") || std::env::consts::ARCH == "aarch64" => {
            fact(TOPIC, Grade::Good, "/dev/kvm", "")
        }
        (Ok(_), None) => fact(
            TOPIC,
            Grade::Limited,
            "/dev/kvm without hardware virtualization (PVM): the kernel interprets guests that do not know it, some \
             thousand times slower; stock kernels do not finish booting",
            "use a host whose processor shows vmx or svm, such as bare metal or a machine type with nested \
             virtualization",
        ),
        (Err(error), _) if error.kind() == std::io::ErrorKind::PermissionDenied => fact(
            TOPIC,
            Grade::Limited,
            "/dev/kvm may not be opened by this user",
            "add the user to the group kvm: usermod --append --groups kvm USER",
        ),
        (Err(_), Some(name)) => fact(
            TOPIC,
            Grade::Missing,
            format!("the processor has {name}, but there is no /dev/kvm"),
            "modprobe kvm_intel or kvm_amd; virtualization may be switched off in the firmware",
        ),
        (Err(_), None) => fact(
            TOPIC,
            Grade::Missing,
            "there is no /dev/kvm, and the processor shows neither vmx nor svm",
            "switch virtualization on in the firmware, or nested virtualization at the host of this machine; \
             containers work without it",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::{Grade, examine};

    #[test]
    fn every_topic_is_judged_and_what_is_not_good_has_a_remedy() {
        let facts = examine();
        assert_eq!(facts.len(), 9);
        for fact in facts {
            assert!(!fact.finding.is_empty());
            assert!(fact.grade != Grade::Missing || fact.remedy.is_some(), "{fact:?}");
        }
    }
}
