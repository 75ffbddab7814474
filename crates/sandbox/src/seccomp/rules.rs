//! The language of the specification, checked: what is text in the configuration becomes a value here.

use moat_linux::seccomp::Flags;
use moat_model::oci::{Seccomp, SeccompArg, SeccompRule};

use super::arch::{Arch, Bundled};
use super::bpf::LIMIT;
use super::table::{self, Row};
use crate::{Error, Result};

/// Values that a filter returns, `linux/seccomp.h`.
pub(super) const KILL_THREAD: u32 = 0;
pub(super) const KILL_PROCESS: u32 = 0x8000_0000;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const NOTIFY: u32 = 0x7fc0_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;

const EPERM: u32 = 1;
/// ENOSYS; MIPS has a number of its own, and Moat runs on no MIPS.
pub(super) const NO_SUCH_CALL: u32 = ERRNO | 38;

/// The actions of the specification.
pub const ACTIONS: [(&str, u32); 9] = [
    ("SCMP_ACT_ALLOW", ALLOW),
    ("SCMP_ACT_ERRNO", ERRNO),
    ("SCMP_ACT_KILL", KILL_THREAD),
    ("SCMP_ACT_KILL_PROCESS", KILL_PROCESS),
    ("SCMP_ACT_KILL_THREAD", KILL_THREAD),
    ("SCMP_ACT_LOG", LOG),
    ("SCMP_ACT_NOTIFY", NOTIFY),
    ("SCMP_ACT_TRACE", TRACE),
    ("SCMP_ACT_TRAP", TRAP),
];

/// The flags of the specification, and TSYNC, which container managers write.
pub const FLAGS: [(&str, Flags); 4] = [
    ("SECCOMP_FILTER_FLAG_LOG", Flags::LOG),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", Flags::SPEC_ALLOW),
    // The filter is installed by the only thread of its process: there is nobody to synchronise.
    ("SECCOMP_FILTER_FLAG_TSYNC", Flags(0)),
    ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", Flags::WAIT_KILLABLE_RECV),
];

/// The operators of the specification.
pub const OPERATORS: [&str; 7] = [
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];

/// What an argument is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Test {
    Equal(u64),
    NotEqual(u64),
    AtLeast(u64),
    Above(u64),
    AtMost(u64),
    Below(u64),
    Masked { mask: u64, value: u64 },
}

/// A condition on one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) index: u32,
    pub(super) test: Test,
}

/// A rule: when the name and all conditions of one alternative hold, the action is taken.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) action: u32,
    /// Empty: the rule has no conditions.
    pub(super) alternatives: Vec<Vec<Condition>>,
    pub(super) calls: Vec<Call>,
}

/// A system call of a rule, found in the tables.
#[derive(Clone, Copy)]
pub(super) struct Call {
    pub(super) row: &'static Row,
    pub(super) bundled: Option<Bundled>,
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.row.name)
    }
}

/// The whole configuration, checked.
#[derive(Debug)]
pub(super) struct Policy {
    pub(super) default: u32,
    pub(super) arches: Vec<&'static Arch>,
    pub(super) flags: Flags,
    pub(super) notifies: bool,
    /// What differs from the default action. The others only say which calls the profile knows.
    pub(super) rules: Vec<Rule>,
    pub(super) known: Vec<Call>,
    pub(super) unknown: Vec<String>,
    /// Whether calls that are newer than what the profile knows are answered with ENOSYS.
    pub(super) hides_newer: bool,
}

/// The name of a value that a filter returns.
pub(super) fn action_name(value: u32) -> String {
    let (action, data) = (value & 0xffff_0000, value & 0xffff);
    let known = ACTIONS.iter().rev().find(|(_, known)| *known == action);
    let name = known.and_then(|(name, _)| name.strip_prefix("SCMP_ACT_"));
    match (name, action) {
        (Some(name), ERRNO | TRACE) => format!("{name} {data}"),
        (Some(name), _) => name.to_owned(),
        (None, _) => format!("{value:#x}"),
    }
}

impl Policy {
    /// Checks a configuration. Nothing is left out silently but unknown names, which are collected.
    pub(super) fn new(config: &Seccomp) -> Result<Self> {
        let default = action(&config.default_action, config.default_errno_ret)?;
        if default == NOTIFY {
            return Err(Error::new("seccomp: SCMP_ACT_NOTIFY cannot be the default action")
                .hint("the container's own start would wait for the agent"));
        }
        let mut policy = Self {
            default,
            arches: arches(&config.architectures)?,
            flags: Flags::default(),
            notifies: false,
            rules: Vec::with_capacity(config.syscalls.len()),
            known: Vec::new(),
            unknown: Vec::new(),
            hides_newer: !matches!(default & 0xffff_0000, ALLOW | LOG | TRACE),
        };
        for rule in &config.syscalls {
            policy.add(rule)?;
        }
        for name in &config.flags {
            policy.flags = policy.flags.with(flag(name)?);
        }
        if policy.notifies {
            policy.flags = policy.flags.with(Flags::NEW_LISTENER);
        } else {
            // Without a listener the kernel refuses the flag, and there is nothing to wait for.
            policy.flags = Flags(policy.flags.0 & !Flags::WAIT_KILLABLE_RECV.0);
        }
        Ok(policy)
    }

    /// The highest number that the profile knows in an ABI, whatever it says about it.
    pub(super) fn newest(&self, arch: &Arch) -> Option<u32> {
        let numbers = |call: &Call| {
            let bundled = call.bundled.and_then(|bundled| arch.bundled(bundled));
            arch.number(call.row).max(bundled.map(|(number, _)| number))
        };
        self.known.iter().filter_map(numbers).max()
    }

    fn add(&mut self, rule: &SeccompRule) -> Result<()> {
        let action = action(&rule.action, rule.errno_ret)?;
        let alternatives = alternatives(&rule.args)?;
        let mut calls = Vec::with_capacity(rule.names.len());
        for name in &rule.names {
            if name.is_empty() {
                return Err(Error::new("seccomp: a rule has an empty system call name"));
            }
            if action == NOTIFY && name == "write" {
                return Err(Error::new("seccomp: SCMP_ACT_NOTIFY cannot be used for write")
                    .hint("the container's own start would wait for the agent"));
            }
            match table::find(name) {
                Some(row) => calls.push(Call { row, bundled: Bundled::find(name) }),
                None => self.unknown.push(name.clone()),
            }
        }
        self.notifies |= action == NOTIFY;
        self.known.extend(&calls);
        // A rule that repeats the default action says nothing, as in runc: it hides no other rule.
        if action != self.default && !calls.is_empty() {
            if alternatives.len().saturating_mul(calls.len()) > LIMIT {
                return Err(Error::new(format!(
                    "seccomp: a rule has {} conditions for {} system calls: a filter has at most {LIMIT} \
                     instructions",
                    rule.args.len(),
                    calls.len()
                )));
            }
            self.rules.push(Rule { action, alternatives, calls });
        }
        Ok(())
    }
}

fn action(name: &str, errno: Option<u32>) -> Result<u32> {
    let Some((_, action)) = ACTIONS.iter().find(|(known, _)| *known == name) else {
        return Err(Error::new(format!("seccomp: unknown action {name:?}")));
    };
    match *action {
        carries @ (ERRNO | TRACE) => {
            let data = errno.unwrap_or(EPERM);
            if data > 0xffff {
                return Err(Error::new(format!("seccomp: the errnoRet {data} of {name} is above 65535")));
            }
            Ok(carries | data)
        }
        plain => Ok(plain),
    }
}

/// The architectures, the native one first: the filter is of no use without it.
fn arches(names: &[String]) -> Result<Vec<&'static Arch>> {
    let mut found = vec![Arch::native()];
    for name in names {
        let Some(arch) = Arch::find(name) else {
            return Err(Error::new(format!("seccomp: unknown architecture {name:?}")));
        };
        if found.iter().all(|known| known.name != arch.name) {
            found.push(arch);
        }
    }
    Ok(found)
}

fn flag(name: &str) -> Result<Flags> {
    let known = FLAGS.iter().find(|(known, _)| *known == name);
    known.map(|(_, flag)| *flag).ok_or_else(|| Error::new(format!("seccomp: unknown flag {name:?}")))
}

/// The conditions of a rule. All must hold; but where an argument is named twice, any one is enough:
/// so runc has it since its beginnings, and profiles count on it.
fn alternatives(args: &[SeccompArg]) -> Result<Vec<Vec<Condition>>> {
    let mut conditions = Vec::with_capacity(args.len());
    let mut seen = 0u32;
    let mut twice = false;
    for arg in args {
        let condition = condition(arg)?;
        twice |= seen & 1 << condition.index != 0;
        seen |= 1 << condition.index;
        conditions.push(condition);
    }
    Ok(match conditions.is_empty() {
        true => Vec::new(),
        false if twice => conditions.into_iter().map(|condition| vec![condition]).collect(),
        false => vec![conditions],
    })
}

fn condition(arg: &SeccompArg) -> Result<Condition> {
    let value = arg.value;
    if arg.index > 5 {
        return Err(Error::new(format!(
            "seccomp: a condition names argument {}; system calls have arguments 0 to 5",
            arg.index
        )));
    }
    let test = match arg.op.as_str() {
        "SCMP_CMP_EQ" => Test::Equal(value),
        "SCMP_CMP_NE" => Test::NotEqual(value),
        "SCMP_CMP_GE" => Test::AtLeast(value),
        "SCMP_CMP_GT" => Test::Above(value),
        "SCMP_CMP_LE" => Test::AtMost(value),
        "SCMP_CMP_LT" => Test::Below(value),
        "SCMP_CMP_MASKED_EQ" => Test::Masked { mask: value, value: arg.value_two },
        other => return Err(Error::new(format!("seccomp: unknown operator {other:?}"))),
    };
    Ok(Condition { index: arg.index, test })
}
