//! Planning the process: limits, labels, credentials, filter, and the program itself.

use moat_linux::capability::Set;
use moat_linux::credentials::RLIMITS;
use moat_linux::process::namespace;
use moat_linux::sched;
use moat_model::oci;

use super::{Request, Steps, check, groups_allowed, in_field, parse_list};
use crate::host::Host;
use crate::seccomp;
use crate::step::{Action, Sets, StartSignal, Step, Terminal};
use crate::{Error, Result};

/// What is done while the host's /proc is still in reach.
pub(super) fn early(
    steps: &mut Steps,
    request: &Request<'_>,
    process: &oci::Process,
    host: &Host,
) -> Result<()> {
    if !request.no_new_keyring {
        // A keyring of its own: the caller's keys stay out of reach.
        steps.init(Action::Keyring(format!("_ses.{}", request.id)));
    }
    labels(steps, process, host)
}

fn labels(steps: &mut Steps, process: &oci::Process, host: &Host) -> Result<()> {
    if !process.apparmor_profile.is_empty() {
        if !host.apparmor {
            return Err(Error::new(format!(
                "process.apparmorProfile {}: AppArmor is not active on this host",
                process.apparmor_profile
            )));
        }
        let text = format!("exec {}", process.apparmor_profile);
        steps.init(Action::Label { module: "apparmor", text });
    }
    if !process.selinux_label.is_empty() {
        if !host.selinux {
            return Err(Error::new(format!(
                "process.selinuxLabel {}: SELinux is not active on this host",
                process.selinux_label
            )));
        }
        steps.init(Action::Label { module: "selinux", text: process.selinux_label.clone() });
    }
    Ok(())
}

/// What is done inside the new root.
pub(super) fn late(
    steps: &mut Steps,
    request: &Request<'_>,
    process: &oci::Process,
    linux: &oci::Linux,
    host: &Host,
) -> Result<()> {
    if let Some(policy) = &linux.memory_policy {
        steps.init(in_field(memory_policy(policy), "linux.memoryPolicy")?);
    }
    if let Some(personality) = &linux.personality {
        steps.init(Action::Personality(in_field(persona(personality), "linux.personality")?));
    }
    let groups = groups_allowed(linux, host);
    scheduling(steps, process)?;
    let filter = system_call_filter(linux)?;
    let hooks = request.spec.hooks.as_ref().map(|hooks| hooks.start_container.clone()).unwrap_or_default();
    let start = if request.wait_for_start { StartSignal::Fifo } else { StartSignal::Runtime };
    let kept = Kept { filter, start, hooks, init: request.init };
    credentials(steps, process, groups, host, kept)
}

fn system_call_filter(linux: &oci::Linux) -> Result<Option<seccomp::Filter>> {
    let filter = linux.seccomp.as_ref().map(seccomp::compile).transpose()?;
    if filter.as_ref().is_some_and(|filter| filter.notifies && filter.listener_path.is_empty()) {
        return Err(Error::new("linux.seccomp.listenerPath is missing: SCMP_ACT_NOTIFY has nobody to ask"));
    }
    Ok(filter)
}

/// What stands at the end of the credentials.
struct Kept {
    filter: Option<seccomp::Filter>,
    start: StartSignal,
    /// Hooks of startContainer.
    hooks: Vec<oci::Hook>,
    init: bool,
}

fn credentials(
    steps: &mut Steps,
    process: &oci::Process,
    groups: bool,
    host: &Host,
    kept: Kept,
) -> Result<()> {
    let sets = capability_sets(steps, process, host)?;
    let no_new_privileges = process.no_new_privileges;
    if no_new_privileges {
        steps.init(Action::NoNewPrivileges);
    }
    let drop = Set(host.bounding.0 & !sets.bounding.0);
    steps.init(Action::Bounding { keep: sets.bounding, drop });
    // Before the user changes: the directory may be below one that only root may search.
    steps.init(Action::WorkingDirectory(process.cwd.clone()));
    steps.init(Action::User {
        uid: process.user.uid,
        gid: process.user.gid,
        groups: groups.then(|| process.user.additional_gids.clone()),
        umask: process.user.umask,
    });
    // Without no_new_privs the filter can only be installed by CAP_SYS_ADMIN, which is dropped right after.
    let privileged_filter = kept.filter.is_some() && !no_new_privileges;
    steps.init(Action::Capabilities(if privileged_filter { with_admin(sets) } else { sets }));
    steps.init(Action::FindProgram(process.args.first().cloned().unwrap_or_default()));
    // The listener of a filter that notifies is handed over while the runtime is still there; any other
    // filter waits, so that a profile need not allow what the wait does.
    let (early, late) = match kept.filter {
        Some(filter) if filter.notifies && !kept.init => (Some(filter), None),
        other => (None, other),
    };
    if let Some(filter) = early {
        filter_steps(steps, filter, privileged_filter.then_some(sets));
    }
    steps.init(Action::AwaitStart(kept.start));
    if !kept.hooks.is_empty() {
        steps.init(Action::Hooks { kind: "startContainer", hooks: kept.hooks });
    }
    if kept.init {
        steps.init(Action::StayAsInit);
    }
    if let Some(filter) = late {
        filter_steps(steps, filter, privileged_filter.then_some(sets));
    }
    steps.init(Action::Execute(process.args.clone()));
    Ok(())
}

/// The sets with CAP_SYS_ADMIN, which installs a filter. All else is given up before the program is looked up
/// and hooks run.
fn with_admin(sets: Sets) -> Sets {
    const SYS_ADMIN: u32 = 21;
    Sets { effective: sets.effective.with(SYS_ADMIN), permitted: sets.permitted.with(SYS_ADMIN), ..sets }
}

fn filter_steps(steps: &mut Steps, filter: seccomp::Filter, then: Option<Sets>) {
    steps.init(Action::Seccomp(Box::new(filter)));
    if let Some(sets) = then {
        steps.init(Action::Capabilities(sets));
    }
}

/// The five sets: unknown names are errors; what the host can not give is left out with a warning.
fn capability_sets(steps: &mut Steps, process: &oci::Process, host: &Host) -> Result<Sets> {
    let Some(wanted) = &process.capabilities else { return Ok(Sets::default()) };
    let mut missing = Set::default();
    let mut parse = |names: &[String], field: &str| -> Result<Set> {
        let mut set = Set::default();
        for name in names {
            let number = name.starts_with("CAP_").then(|| Set::number(name)).flatten();
            let number = number.ok_or_else(|| {
                Error::new(format!("process.capabilities.{field}: {name:?} is not a capability"))
            })?;
            if host.bounding.has(number) {
                set = set.with(number);
            } else {
                missing = missing.with(number);
            }
        }
        Ok(set)
    };
    let bounding = parse(&wanted.bounding, "bounding")?;
    let permitted = parse(&wanted.permitted, "permitted")?;
    let effective = parse(&wanted.effective, "effective")?;
    parse(&wanted.inheritable, "inheritable")?;
    let ambient = parse(&wanted.ambient, "ambient")?;
    if missing != Set::default() {
        steps.warnings.push(format!("this host can not give {}", missing.names().join(", ")));
    }
    let beyond = Set(effective.0 & !permitted.0);
    if beyond != Set::default() {
        return Err(Error::new(format!(
            "process.capabilities.effective: {} is not permitted",
            beyond.names().join(", ")
        )));
    }
    // An inheritable capability would let a program with file capabilities keep it over execve(2), past the
    // bounding set of whoever runs it; so the set holds only what the ambient set can not do without.
    let ambient = Set(ambient.0 & permitted.0);
    Ok(Sets { effective, permitted, inheritable: ambient, bounding, ambient })
}

/// Resource limits, set from outside: the ceiling may have to be raised.
pub(super) fn limits(steps: &mut Steps, process: &oci::Process) -> Result<()> {
    for (index, limit) in process.rlimits.iter().enumerate() {
        let known = RLIMITS.iter().find(|(name, _)| *name == limit.kind);
        let Some((_, resource)) = known else {
            return Err(Error::new(format!(
                "process.rlimits[{index}]: {:?} is not a resource limit",
                limit.kind
            )));
        };
        if process.rlimits.iter().take(index).any(|earlier| earlier.kind == limit.kind) {
            return Err(Error::new(format!("process.rlimits names {} twice", limit.kind)));
        }
        if limit.soft > limit.hard {
            return Err(Error::new(format!(
                "process.rlimits {}: the soft limit {} is above the hard limit {}",
                limit.kind, limit.soft, limit.hard
            )));
        }
        steps.runtime(Action::Limit {
            resource: *resource,
            name: limit.kind.clone(),
            soft: limit.soft,
            hard: limit.hard,
        });
    }
    Ok(())
}

fn scheduling(steps: &mut Steps, process: &oci::Process) -> Result<()> {
    if let Some(wanted) = &process.scheduler {
        steps.init(Action::Scheduler(in_field(scheduler(wanted), "process.scheduler")?));
    }
    if let Some(wanted) = &process.io_priority {
        let class = match wanted.class.as_str() {
            "IOPRIO_CLASS_RT" => 1,
            "IOPRIO_CLASS_BE" => 2,
            "IOPRIO_CLASS_IDLE" => 3,
            other => {
                return Err(Error::new(format!("process.ioPriority.class {other:?} is not an I/O class")));
            }
        };
        let priority = u32::try_from(wanted.priority).ok().filter(|priority| *priority < 8);
        let priority = priority.ok_or_else(|| {
            Error::new(format!("process.ioPriority.priority {} is not within 0 to 7", wanted.priority))
        })?;
        steps.init(Action::IoPriority { class, priority });
    }
    Ok(())
}

fn scheduler(wanted: &oci::Scheduler) -> Result<sched::Attributes> {
    const POLICIES: [(&str, u32); 7] = [
        ("SCHED_OTHER", 0),
        ("SCHED_FIFO", 1),
        ("SCHED_RR", 2),
        ("SCHED_BATCH", 3),
        ("SCHED_ISO", 4),
        ("SCHED_IDLE", 5),
        ("SCHED_DEADLINE", 6),
    ];
    const FLAGS: [(&str, u64); 7] = [
        ("SCHED_FLAG_RESET_ON_FORK", 0x01),
        ("SCHED_FLAG_RECLAIM", 0x02),
        ("SCHED_FLAG_DL_OVERRUN", 0x04),
        ("SCHED_FLAG_KEEP_POLICY", 0x08),
        ("SCHED_FLAG_KEEP_PARAMS", 0x10),
        ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
        ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
    ];
    let policy = POLICIES.iter().find(|(name, _)| *name == wanted.policy);
    let (_, policy) = policy.ok_or_else(|| Error::new(format!("policy {:?} is not known", wanted.policy)))?;
    let mut flags = 0;
    for name in &wanted.flags {
        let flag = FLAGS.iter().find(|(known, _)| known == name);
        flags |= flag.ok_or_else(|| Error::new(format!("flag {name:?} is not known")))?.1;
    }
    let priority = u32::try_from(wanted.priority)
        .map_err(|_| Error::new(format!("priority {} is negative", wanted.priority)))?;
    if wanted.nice != 0 && !matches!(policy, 0 | 3) {
        return Err(Error::new(format!("nice has no effect with {}", wanted.policy)));
    }
    if priority != 0 && !matches!(policy, 1 | 2) {
        return Err(Error::new(format!("priority has no effect with {}", wanted.policy)));
    }
    Ok(sched::Attributes {
        policy: *policy,
        flags,
        nice: wanted.nice,
        priority,
        runtime_ns: wanted.runtime_ns,
        deadline_ns: wanted.deadline_ns,
        period_ns: wanted.period_ns,
        ..sched::Attributes::default()
    })
}

/// The modes of linux.memoryPolicy with their MPOL_* numbers.
pub const MEMORY_POLICY_MODES: [(&str, i32); 7] = [
    ("MPOL_DEFAULT", 0),
    ("MPOL_PREFERRED", 1),
    ("MPOL_BIND", 2),
    ("MPOL_INTERLEAVE", 3),
    ("MPOL_LOCAL", 4),
    ("MPOL_PREFERRED_MANY", 5),
    ("MPOL_WEIGHTED_INTERLEAVE", 6),
];

/// Its flags.
pub const MEMORY_POLICY_FLAGS: [(&str, i32); 3] = [
    ("MPOL_F_STATIC_NODES", 1 << 15),
    ("MPOL_F_RELATIVE_NODES", 1 << 14),
    ("MPOL_F_NUMA_BALANCING", 1 << 13),
];

fn memory_policy(wanted: &oci::MemoryPolicy) -> Result<Action> {
    let mode = MEMORY_POLICY_MODES.iter().find(|(name, _)| *name == wanted.mode);
    let mut mode = mode.ok_or_else(|| Error::new(format!("mode {:?} is not known", wanted.mode)))?.1;
    for name in &wanted.flags {
        let flag = MEMORY_POLICY_FLAGS.iter().find(|(known, _)| known == name);
        mode |= flag.ok_or_else(|| Error::new(format!("flag {name:?} is not known")))?.1;
    }
    let nodes = if wanted.nodes.is_empty() { Vec::new() } else { parse_list(&wanted.nodes, "nodes")? };
    Ok(Action::MemoryPolicy { mode, nodes })
}

fn persona(wanted: &oci::Personality) -> Result<u64> {
    if let Some(flag) = wanted.flags.first() {
        return Err(Error::new(format!("flag {flag:?}: the specification defines none")));
    }
    match wanted.domain.as_str() {
        "LINUX" => Ok(0x0000),
        "LINUX32" => Ok(0x0008),
        other => Err(Error::new(format!("domain {other:?} is neither LINUX nor LINUX32"))),
    }
}

/// A further process in a running container.
#[derive(Clone, Debug)]
pub struct ExecRequest<'a> {
    /// The process.
    pub process: &'a oci::Process,
    /// The container's configuration.
    pub spec: &'a oci::Spec,
    /// CLONE_NEW* bits of the namespaces in which the container differs from the runtime.
    pub namespaces: u64,
}

/// Plans a further process: it joins the container, so only credentials and the filter are left to do.
pub fn plan_exec(request: &ExecRequest<'_>, host: &Host) -> Result<(Vec<Step>, Vec<String>)> {
    let process = request.process;
    check::check_process(process)?;
    let none = oci::Linux::default();
    let linux = request.spec.linux.as_ref().unwrap_or(&none);
    let mut steps = Steps::default();
    steps.runtime(Action::Clone { namespaces: 0, joins: Vec::new() });
    limits(&mut steps, process)?;
    if let Some(value) = process.oom_score_adj {
        steps.runtime(Action::OomScoreAdjust { value, best_effort: host.rootless() });
    }
    steps.runtime(Action::OpenCgroup);
    let affinity = process.exec_cpu_affinity.clone().unwrap_or_default();
    if let Some(list) = &affinity.initial {
        steps.init(Action::Affinity(parse_list(list, "process.execCPUAffinity.initial")?));
    }
    steps.init(Action::JoinCgroup);
    if let Some(list) = &affinity.last {
        steps.init(Action::Affinity(parse_list(list, "process.execCPUAffinity.final")?));
    }
    labels(&mut steps, process, host)?;
    // A PID namespace is joined by the clone of a process, and a user namespace on the way to it.
    let staged = host.user != 0;
    let cloned = namespace::PID | if staged { namespace::USER } else { 0 };
    let joined = request.namespaces & !cloned;
    if joined != 0 {
        steps.init(Action::JoinContainer { namespaces: joined });
    }
    if request.namespaces & namespace::USER != 0 {
        steps.init(Action::BecomeRoot { drop_groups: groups_allowed(linux, host), wait_for_map: false });
    }
    if process.terminal {
        steps.init(Action::Terminal(Terminal {
            size: process.console_size,
            console: false,
            owner: process.user.uid,
        }));
    }
    scheduling(&mut steps, process)?;
    let filter = system_call_filter(linux)?;
    let groups = groups_allowed(linux, host);
    credentials(
        &mut steps,
        process,
        groups,
        host,
        Kept { filter, start: StartSignal::Runtime, hooks: Vec::new(), init: false },
    )?;
    Ok((steps.list, steps.warnings))
}
