//! What making or changing a group takes, as values: printed, explained, applied.

use std::fmt;
use std::path::{Path, PathBuf};

use moat_linux::Errno;

use super::devices::{self, Rule};
use super::file;
use crate::{Context, Error, Result};

/// A write of one value into one file of a group.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// The file.
    pub file: PathBuf,
    /// What is written.
    pub value: String,
    /// The configuration's key that asks for it, as `linux.resources.memory.limit`.
    pub key: String,
    /// What a missing file means.
    pub missing: Missing,
}

/// What it means that the kernel has no such file.
#[derive(Clone, Debug, PartialEq)]
pub enum Missing {
    /// The limit can not be set.
    Fail,
    /// There is nothing to limit.
    Skip,
    /// Another file takes another value.
    Instead(PathBuf, String),
}

/// One step of making or changing a group.
#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    /// mkdir(2) of a group.
    MakeDirectory {
        /// The group.
        directory: PathBuf,
        /// It is the container's own group: when it exists it may have no processes.
        own: bool,
        /// It is a v1 cpuset, which starts empty and takes its parent's CPUs and memory nodes.
        inherit_cpuset: bool,
    },
    /// Lets the children of a v2 group have controllers.
    EnableControllers {
        /// The parent.
        directory: PathBuf,
        /// Every controller there is, so that statistics work.
        controllers: Vec<String>,
        /// Those that a limit needs.
        required: Vec<String>,
    },
    /// Writes a file.
    Write(Write),
    /// Writes files that bound each other (memory and memory plus swap, quota and period): in this order, but what
    /// the kernel refuses is tried again after the others. So no present value need be known.
    WriteTogether(Vec<Write>),
    /// Refuses a memory limit below what is in use (`checkBeforeUpdate`).
    CheckMemory {
        /// The file with the usage in bytes.
        usage: PathBuf,
        /// The limit.
        limit_bytes: u64,
        /// The configuration's key.
        key: String,
    },
    /// Attaches the eBPF program that the rules compile to, in place of an earlier one (v2).
    DeviceFilter {
        /// The group.
        directory: PathBuf,
        /// The last match wins; what no rule matches is denied.
        rules: Vec<Rule>,
    },
    /// Writes the rules to devices.deny and devices.allow (v1).
    DeviceRules {
        /// The group.
        directory: PathBuf,
        /// A rule for all devices, then its exceptions.
        rules: Vec<Rule>,
    },
}

impl Write {
    #[expect(clippy::needless_pass_by_value, reason = "numbers and texts alike, written as they are")]
    pub(super) fn new(file: impl Into<PathBuf>, value: impl ToString, key: &str) -> Self {
        let key = format!("linux.resources.{key}");
        Self { file: file.into(), value: value.to_string(), key, missing: Missing::Fail }
    }

    pub(super) fn or_skip(mut self) -> Self {
        self.missing = Missing::Skip;
        self
    }

    #[expect(clippy::needless_pass_by_value, reason = "numbers and texts alike, written as they are")]
    pub(super) fn or_instead(mut self, file: impl Into<PathBuf>, value: impl ToString) -> Self {
        self.missing = Missing::Instead(file.into(), value.to_string());
        self
    }

    fn below(mut self, directory: &Path) -> Self {
        self.file = directory.join(self.file);
        if let Missing::Instead(file, _) = &mut self.missing {
            *file = directory.join(&*file);
        }
        self
    }

    fn attempt(&self) -> moat_linux::Result<()> {
        match (file::write(&self.file, &self.value), &self.missing) {
            (Err(error), Missing::Skip) if error.errno() == Errno::NOENT => Ok(()),
            (Err(error), Missing::Instead(file, value)) if error.errno() == Errno::NOENT => {
                file::write(file, value)
            }
            (done, _) => done,
        }
    }

    fn apply(&self) -> Result<()> {
        self.attempt().map_err(|error| self.sentence(&error))
    }

    fn sentence(&self, error: &moat_linux::Error) -> Error {
        let text = format!("{}: {error}", self.key);
        let name = self.file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let usage = match name {
            "memory.max" => "memory.current",
            "memory.limit_in_bytes" | "memory.memsw.limit_in_bytes" => "memory.usage_in_bytes",
            _ => "",
        };
        match error.errno() {
            // A file of a group that exists: this kernel, or this controller, has no such knob.
            Errno::NOENT => Error::new(text).hint(format!("the kernel has no {name}")),
            Errno::BUSY if !usage.is_empty() => {
                let used = file::number(&self.file.with_file_name(usage)).unwrap_or(0);
                Error::new(text).hint(format!("the group uses {used} bytes"))
            }
            Errno::INVAL if name.starts_with("cpu.rt_") => {
                Error::new(text).hint("the parent group has no real-time CPU time to give")
            }
            _ => Error::new(text),
        }
    }

    fn by_hand(&self) -> String {
        format!("echo {} > {}", quote(&self.value), quote(&self.file.display().to_string()))
    }
}

impl Operation {
    /// The directory that it concerns, or a file in it.
    pub fn path(&self) -> &Path {
        match self {
            Self::MakeDirectory { directory, .. }
            | Self::EnableControllers { directory, .. }
            | Self::DeviceFilter { directory, .. }
            | Self::DeviceRules { directory, .. } => directory,
            Self::Write(write) => &write.file,
            Self::WriteTogether(writes) => writes.first().map_or(Path::new(""), |write| &write.file),
            Self::CheckMemory { usage, .. } => usage,
        }
    }

    /// The lowest bound in bytes that it sets to the memory of a group; `None` where it sets none.
    pub(crate) fn memory_bound(&self) -> Option<u64> {
        let writes = match self {
            Self::Write(write) => std::slice::from_ref(write),
            Self::WriteTogether(writes) => writes,
            _ => return None,
        };
        let bounds = writes.iter().filter(|write| {
            let name = write.file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with("memory.") && (name.ends_with(".max") || name.ends_with("limit_in_bytes"))
        });
        bounds.filter_map(|write| write.value.parse().ok()).min()
    }
}

impl Operation {
    /// Makes relative files of a limit those of a group.
    pub(super) fn below(self, directory: &Path) -> Self {
        match self {
            Self::Write(write) => Self::Write(write.below(directory)),
            Self::WriteTogether(writes) => {
                Self::WriteTogether(writes.into_iter().map(|write| write.below(directory)).collect())
            }
            Self::CheckMemory { usage, limit_bytes, key } => {
                Self::CheckMemory { usage: directory.join(usage), limit_bytes, key }
            }
            other => other,
        }
    }

    /// The configuration's key behind a limit.
    pub(super) fn key(&self) -> Option<&str> {
        match self {
            Self::Write(write) => Some(&write.key),
            Self::WriteTogether(writes) => writes.first().map(|write| write.key.as_str()),
            Self::CheckMemory { key, .. } => Some(key),
            _ => None,
        }
    }

    /// The shell command that does the same.
    pub fn by_hand(&self) -> String {
        match self {
            Self::MakeDirectory { directory, inherit_cpuset, .. } => {
                let path = quote(&directory.display().to_string());
                let copy = "for f in cpuset.cpus cpuset.mems; do cat";
                match inherit_cpuset {
                    true => format!("mkdir -p {path}; {copy} {path}/../$f > {path}/$f; done"),
                    false => format!("mkdir -p {path}"),
                }
            }
            Self::EnableControllers { directory, controllers, .. } => {
                let file = directory.join("cgroup.subtree_control");
                format!("echo '{}' > {}", plus(controllers), quote(&file.display().to_string()))
            }
            Self::Write(write) => write.by_hand(),
            Self::WriteTogether(writes) => writes.iter().map(Write::by_hand).collect::<Vec<_>>().join("; "),
            Self::CheckMemory { usage, limit_bytes, .. } => {
                format!("test $(cat {}) -lt {limit_bytes}", quote(&usage.display().to_string()))
            }
            Self::DeviceFilter { directory, .. } => {
                let path = quote(&directory.display().to_string());
                format!("bpftool cgroup attach {path} device pinned /sys/fs/bpf/FILTER multi")
            }
            Self::DeviceRules { directory, rules } => {
                let line = |rule: &Rule| {
                    let file = directory.join(rule.v1_file());
                    format!("echo {} > {}", quote(&rule.v1_line()), quote(&file.display().to_string()))
                };
                rules.iter().map(line).collect::<Vec<_>>().join("; ")
            }
        }
    }

    /// Does it.
    pub fn apply(&self) -> Result<()> {
        match self {
            Self::MakeDirectory { directory, own, inherit_cpuset } => {
                make_directory(directory, *own, *inherit_cpuset)
            }
            Self::EnableControllers { directory, controllers, required } => {
                enable_controllers(directory, controllers, required)
            }
            Self::Write(write) => write.apply(),
            Self::WriteTogether(writes) => write_together(writes),
            Self::CheckMemory { usage, limit_bytes, key } => {
                let used = file::number(usage)?;
                if used < *limit_bytes {
                    return Ok(());
                }
                Err(Error::new(format!("{key}: the limit of {limit_bytes} bytes is below the {used} in use")))
            }
            Self::DeviceFilter { directory, rules } => devices::attach(directory, rules),
            Self::DeviceRules { directory, rules } => devices::write_rules(directory, rules),
        }
    }
}

impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.file.display(), self.value)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |rules: &[Rule]| rules.iter().map(Rule::to_string).collect::<Vec<_>>().join(", ");
        match self {
            Self::MakeDirectory { directory, inherit_cpuset: true, .. } => {
                write!(f, "make group {} with the CPUs of its parent", directory.display())
            }
            Self::MakeDirectory { directory, .. } => write!(f, "make group {}", directory.display()),
            Self::EnableControllers { directory, controllers, .. } => {
                write!(f, "enable {} below {}", controllers.join(" "), directory.display())
            }
            Self::Write(write) => write!(f, "set {write}"),
            Self::WriteTogether(writes) => {
                write!(f, "set {}", writes.iter().map(Write::to_string).collect::<Vec<_>>().join(", "))
            }
            Self::CheckMemory { usage, limit_bytes, .. } => {
                write!(f, "check that {} is below {limit_bytes}", usage.display())
            }
            Self::DeviceFilter { directory, rules } => {
                write!(f, "filter devices of {}: {}", directory.display(), list(rules))
            }
            Self::DeviceRules { directory, rules } => {
                write!(f, "set devices of {}: {}", directory.display(), list(rules))
            }
        }
    }
}

fn write_together(writes: &[Write]) -> Result<()> {
    let mut refused: Vec<(&Write, moat_linux::Error)> = Vec::new();
    for write in writes {
        match write.attempt() {
            Err(error) if error.errno() == Errno::INVAL => refused.push((write, error)),
            done => done.map_err(|error| write.sentence(&error))?,
        }
    }
    // Each round must bring at least one home; the first refusal is the one that explains.
    while !refused.is_empty() {
        let before = refused.len();
        refused.retain(|(write, _)| write.attempt().is_err());
        if let (true, Some((write, error))) = (refused.len() == before, refused.first()) {
            return Err(write.sentence(error));
        }
    }
    Ok(())
}

fn plus(controllers: &[String]) -> String {
    controllers.iter().map(|name| format!("+{name}")).collect::<Vec<_>>().join(" ")
}

/// A word as a shell reads it.
fn quote(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-:,+=@%".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Makes a group and, where they are missing, those above it.
fn make_directory(directory: &Path, own: bool, inherit_cpuset: bool) -> Result<()> {
    let made = moat_linux::fs::mkdir_at(rustix::fs::CWD, directory, 0o755);
    let existed = match made {
        Ok(()) => false,
        Err(error) if error.errno() == Errno::EXIST => true,
        Err(error) if error.errno() == Errno::NOENT => {
            // Above the mount nothing is missing, so this ends.
            let parent = directory.parent().ok_or_else(|| Error::from(error.clone()))?;
            make_directory(parent, false, inherit_cpuset)?;
            moat_linux::fs::mkdir_at(rustix::fs::CWD, directory, 0o755)
                .context(|| format!("cgroup {}", directory.display()))?;
            false
        }
        Err(error) => return Err(unmakeable(directory, &error)),
    };
    if existed && own {
        refuse_used(directory)?;
    }
    if inherit_cpuset {
        for name in ["cpuset.cpus", "cpuset.mems"] {
            inherit(directory, name, existed).context(|| format!("cgroup {}", directory.display()))?;
        }
    }
    Ok(())
}

fn unmakeable(directory: &Path, error: &moat_linux::Error) -> Error {
    let sentence = Error::new(format!("cgroup {}: {error}", directory.display()));
    match error.errno() {
        Errno::ACCESS | Errno::PERM | Errno::ROFS => {
            sentence.hint("this user may make no group there: ask for none, or have one delegated")
        }
        Errno::AGAIN => {
            sentence.hint("a group above allows no more: see its cgroup.max.descendants and .depth")
        }
        _ => sentence,
    }
}

/// A group that a container has, or that somebody put processes into, is not taken over: limits and signals
/// for one would hit the other.
fn refuse_used(directory: &Path) -> Result<()> {
    let pids =
        file::read(&directory.join("cgroup.procs")).context(|| format!("cgroup {}", directory.display()))?;
    match pids.lines().count() {
        0 => Ok(()),
        count => Err(Error::new(format!("cgroup {} is in use by {count} processes", directory.display()))),
    }
}

/// A new v1 cpuset is empty, and nothing can join it before it has both lists.
fn inherit(directory: &Path, name: &str, existed: bool) -> moat_linux::Result<()> {
    let own = directory.join(name);
    if existed && !file::read(&own)?.is_empty() {
        return Ok(());
    }
    let parent = directory.parent().map(|parent| parent.join(name));
    match parent {
        Some(parent) => file::write(&own, &file::read(&parent)?),
        None => Ok(()),
    }
}

fn enable_controllers(directory: &Path, controllers: &[String], required: &[String]) -> Result<()> {
    let what = || format!("cgroup {}", directory.display());
    let control = directory.join("cgroup.subtree_control");
    let enabled = file::read(&control).context(what)?;
    let missing = |name: &&String| !enabled.split_whitespace().any(|enabled| enabled == *name);
    if !controllers.iter().any(|name| missing(&name)) {
        return Ok(());
    }
    let given = file::read(&directory.join("cgroup.controllers")).context(what)?;
    let is_given = |name: &&String| given.split_whitespace().any(|given| given == *name);
    if let Some(name) = required.iter().find(|name| !is_given(name)) {
        let sentence = format!("{} was not given the controller {name} by the group above it", what());
        return Err(Error::new(sentence));
    }
    let wanted: Vec<String> = controllers.iter().filter(missing).filter(is_given).cloned().collect();
    let Err(error) = file::write(&control, &plus(&wanted)) else { return Ok(()) };
    let needed = required.iter().find(missing);
    let whole = [Errno::BUSY, Errno::OPNOTSUPP, Errno::ACCESS, Errno::PERM, Errno::ROFS];
    if whole.contains(&error.errno()) {
        // This user may not, or it has processes, or is threaded. One by one, the kernel would take cpu, cpuset and pids, and so turn it
        // into the root of a threaded tree, whose children can have no processes of their own.
        return needed.map_or(Ok(()), |name| Err(not_enabled(directory, name, &error)));
    }
    // One controller that can not be enabled spoils the whole write: the others one by one.
    for name in &wanted {
        match file::write(&control, &format!("+{name}")) {
            Err(error) if required.contains(name) => return Err(not_enabled(directory, name, &error)),
            _ => {}
        }
    }
    Ok(())
}

fn not_enabled(directory: &Path, controller: &str, error: &moat_linux::Error) -> Error {
    let group = directory.display();
    let sentence = match error.errno() {
        Errno::BUSY => format!(
            "cgroup {group} has processes of its own, so its children can not have the controller {controller}: {error}"
        ),
        Errno::OPNOTSUPP => {
            format!(
                "cgroup {group} is threaded, so its children can not have the controller {controller}: {error}"
            )
        }
        _ => format!("cgroup {group} can not give the controller {controller} to its children: {error}"),
    };
    let sentence = Error::new(sentence);
    match error.errno() {
        Errno::BUSY => sentence.hint("choose a linux.cgroupsPath whose parent holds no processes"),
        _ => sentence,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_the_shell() {
        assert_eq!(quote("/a/b-c.d"), "/a/b-c.d");
        assert_eq!(quote("50000 100000"), "'50000 100000'");
        assert_eq!(quote("it's"), "'it'\\''s'");
        assert_eq!(quote(""), "''");
    }
}
