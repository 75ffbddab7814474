//! Device access: the rules of the specification, for v1's devices.allow and devices.deny.
//!
//! The specification says that the last matching rule wins. A request may ask for several kinds of
//! access at once (read and write); it is allowed when each kind by itself is. What no rule names is
//! denied. v2 gets an eBPF program that does exactly this (see `filter`); v1 can only keep one default
//! with exceptions, so the rules are flattened, and a list that does not fit is refused.

use std::fmt;
use std::path::Path;

use moat_model::oci;
use rustix::fs::OFlags;

use super::filter;
use crate::{Context, Error, Result};

/// Kinds of access, as the kernel numbers them.
pub(super) const MKNOD: u8 = 1;
pub(super) const READ: u8 = 2;
pub(super) const WRITE: u8 = 4;
pub(super) const ALL: u8 = MKNOD | READ | WRITE;

/// The kind of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Block and character devices.
    Any,
    /// Block devices.
    Block,
    /// Character devices.
    Character,
}

/// A checked rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Whether a match is allowed.
    pub allow: bool,
    /// Which kind it matches.
    pub kind: Kind,
    /// The major number it matches, any when none.
    pub major: Option<u32>,
    /// The minor number it matches, any when none.
    pub minor: Option<u32>,
    /// Bits of access: 1 mknod, 2 read, 4 write.
    pub(super) access: u8,
}

impl Rule {
    /// A rule for every device and every access.
    pub(super) fn for_all(allow: bool) -> Self {
        Self { allow, kind: Kind::Any, major: None, minor: None, access: ALL }
    }

    pub(super) fn is_for_all(&self) -> bool {
        *self == Self::for_all(self.allow)
    }

    fn checked(rule: &oci::DeviceRule, index: usize) -> Result<Self> {
        let refused = |field: &str, value: &dyn fmt::Debug| {
            Error::new(format!(
                "linux.resources.devices[{index}].{field} {value:?} is not one of the specification's"
            ))
        };
        let kind = match rule.kind.as_str() {
            "" | "a" => Kind::Any,
            "b" => Kind::Block,
            "c" | "u" => Kind::Character,
            other => return Err(refused("type", &other)),
        };
        let number = |field: &str, value: Option<i64>| match value {
            None => Ok(None),
            Some(value) if value < 0 => Ok(None),
            Some(value) => u32::try_from(value).map(Some).map_err(|_| refused(field, &value)),
        };
        let mut access = 0;
        for letter in rule.access.chars() {
            access |= match letter {
                'm' => MKNOD,
                'r' => READ,
                'w' => WRITE,
                _ => return Err(refused("access", &rule.access)),
            };
        }
        let access = if access == 0 { ALL } else { access };
        let (major, minor) = (number("major", rule.major)?, number("minor", rule.minor)?);
        Ok(Self { allow: rule.allow, kind, major, minor, access })
    }

    fn access_letters(&self) -> String {
        let letters = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')];
        letters.iter().filter(|(bit, _)| self.access & bit != 0).map(|(_, letter)| letter).collect()
    }

    /// The v1 file that takes the rule.
    pub(super) fn v1_file(&self) -> &'static str {
        if self.allow { "devices.allow" } else { "devices.deny" }
    }

    /// The rule as v1 reads it; `a` means all, whatever stands behind it.
    pub(super) fn v1_line(&self) -> String {
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
        let kind = match self.kind {
            Kind::Any => return "a".to_owned(),
            Kind::Block => 'b',
            Kind::Character => 'c',
        };
        format!("{kind} {}:{} {}", number(self.major), number(self.minor), self.access_letters())
    }

    /// Whether every device of `other` is one of this rule's.
    fn covers(&self, other: &Self) -> bool {
        let part = |own: Option<u32>, other: Option<u32>| own.is_none() || own == other;
        self.kind == other.kind && part(self.major, other.major) && part(self.minor, other.minor)
    }

    fn overlaps(&self, other: &Self) -> bool {
        let part = |one: Option<u32>, two: Option<u32>| one.is_none() || two.is_none() || one == two;
        self.kind == other.kind && part(self.major, other.major) && part(self.minor, other.minor)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.allow { "allow " } else { "deny " })?;
        match self.is_for_all() {
            true => f.write_str("all"),
            false if self.kind == Kind::Any => {
                let line = Self { kind: Kind::Character, ..*self }.v1_line();
                write!(f, "a{}", line.trim_start_matches('c'))
            }
            false => f.write_str(&self.v1_line()),
        }
    }
}

/// Checks the rules of the configuration.
pub(super) fn checked(rules: &[oci::DeviceRule]) -> Result<Vec<Rule>> {
    rules.iter().enumerate().map(|(index, rule)| Rule::checked(rule, index)).collect()
}

/// The rules as v1 can keep them: a default for all devices, then its exceptions.
pub(super) fn flatten(rules: &[Rule]) -> Result<Vec<Rule>> {
    let mut default = Rule::for_all(false);
    let mut exceptions: Vec<Rule> = Vec::new();
    for rule in rules {
        if rule.is_for_all() {
            default = *rule;
            exceptions.clear();
            continue;
        }
        let kinds = match rule.kind {
            Kind::Any => vec![Kind::Block, Kind::Character],
            kind => vec![kind],
        };
        for kind in kinds {
            let rule = Rule { kind, ..*rule };
            if rule.allow == default.allow {
                except_no_more(&mut exceptions, &rule)?;
            } else {
                add_exception(&mut exceptions, rule);
            }
        }
    }
    exceptions.insert(0, default);
    Ok(exceptions)
}

fn add_exception(exceptions: &mut Vec<Rule>, rule: Rule) {
    let same = |other: &&mut Rule| other.covers(&rule) && rule.covers(other);
    match exceptions.iter_mut().find(same) {
        Some(other) => other.access |= rule.access,
        None => exceptions.push(rule),
    }
}

/// v1 forgets whole exceptions only; it can not punch a hole into a wider one.
fn except_no_more(exceptions: &mut Vec<Rule>, rule: &Rule) -> Result<()> {
    for exception in exceptions.iter_mut() {
        if rule.covers(exception) {
            exception.access &= !rule.access;
        } else if rule.overlaps(exception) && rule.access & exception.access != 0 {
            return Err(Error::new(format!(
                "linux.resources.devices: cgroup v1 can not {rule} after the wider rule {exception}"
            )));
        }
    }
    exceptions.retain(|exception| exception.access != 0);
    Ok(())
}

/// Writes flattened rules; each file is opened once.
pub(super) fn write_rules(directory: &Path, rules: &[Rule]) -> Result<()> {
    let mut files: [Option<std::os::fd::OwnedFd>; 2] = [None, None];
    for rule in rules {
        let path = directory.join(rule.v1_file());
        let slot = &mut files[usize::from(rule.allow)];
        let fd = match slot {
            Some(fd) => fd,
            None => slot
                .insert(moat_linux::fs::open(&path, OFlags::WRONLY).context(|| "linux.resources.devices")?),
        };
        let line = rule.v1_line();
        if let Err(errno) = rustix::io::write(fd, line.as_bytes()) {
            let error = moat_linux::Error::new("write", format!("{}, {line:?}", path.display()), errno);
            let sentence = Error::new(format!("linux.resources.devices: {error}"));
            return Err(match errno {
                moat_linux::Errno::PERM => sentence.hint("the group above does not allow this device"),
                _ => sentence,
            });
        }
    }
    Ok(())
}

/// Compiles, loads and attaches the rules; an update replaces the earlier program without a gap.
pub(super) fn attach(directory: &Path, rules: &[Rule]) -> Result<()> {
    use moat_linux::bpf;
    use std::os::fd::AsFd;
    let what = || "linux.resources.devices";
    let program = bpf::load_device_filter(&filter::compile(rules), "moat_devices").context(what)?;
    let group = moat_linux::fs::open(directory, OFlags::RDONLY | OFlags::DIRECTORY).context(what)?;
    let mut earlier = Vec::new();
    for id in bpf::attached_device_filters(group.as_fd()).context(what)? {
        earlier.extend(bpf::program_by_id(id).context(what)?);
    }
    bpf::attach_device_filter(group.as_fd(), program.as_fd(), earlier.first().map(AsFd::as_fd))
        .context(what)?;
    for rest in earlier.iter().skip(1) {
        bpf::detach_device_filter(group.as_fd(), rest.as_fd()).context(what)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(allow: bool, kind: &str, numbers: (i64, i64), access: &str) -> oci::DeviceRule {
        let (major, minor) = (Some(numbers.0), Some(numbers.1));
        oci::DeviceRule { allow, kind: kind.to_owned(), major, minor, access: access.to_owned() }
    }

    fn flat(rules: &[oci::DeviceRule]) -> Vec<String> {
        flatten(&checked(rules).unwrap()).unwrap().iter().map(Rule::to_string).collect()
    }

    #[test]
    fn v1_gets_a_default_and_its_exceptions() {
        let rules = [
            rule(true, "c", (9, 9), "r"),
            rule(false, "a", (-1, -1), "rwm"),
            rule(true, "c", (-1, -1), "m"),
            rule(true, "c", (1, 3), "r"),
            rule(true, "c", (1, 3), "w"),
            rule(true, "b", (8, -1), "rw"),
            rule(false, "b", (8, -1), "w"),
        ];
        assert_eq!(flat(&rules), ["deny all", "allow c *:* m", "allow c 1:3 rw", "allow b 8:* r"]);
        assert_eq!(flat(&[rule(true, "", (-1, -1), "")]), ["allow all"]);
        assert_eq!(flat(&[rule(true, "c", (1, 5), "r")]), ["deny all", "allow c 1:5 r"]);
    }

    #[test]
    fn a_partial_rule_for_all_kinds_becomes_two() {
        let rules = [rule(true, "a", (-1, -1), "r")];
        assert_eq!(flat(&rules), ["deny all", "allow b *:* r", "allow c *:* r"]);
        let rules = [rule(true, "a", (-1, -1), ""), rule(false, "a", (7, -1), "w")];
        assert_eq!(flat(&rules), ["allow all", "deny b 7:* w", "deny c 7:* w"]);
    }

    #[test]
    fn v1_refuses_holes() {
        let rules = [rule(true, "c", (1, -1), "rwm"), rule(false, "c", (1, 3), "w")];
        assert_eq!(
            flatten(&checked(&rules).unwrap()).unwrap_err().to_string(),
            "linux.resources.devices: cgroup v1 can not deny c 1:3 w after the wider rule allow c 1:* rwm"
        );
    }

    #[test]
    fn malformed_rules_are_refused() {
        let sentence = |rule| checked(&[rule]).unwrap_err().to_string();
        assert_eq!(
            sentence(rule(true, "x", (1, 1), "")),
            "linux.resources.devices[0].type \"x\" is not one of the specification's"
        );
        assert!(sentence(rule(true, "c", (1, 1), "rx")).contains("access \"rx\""));
        assert!(sentence(rule(true, "c", (1 << 32, 1), "r")).contains("major 4294967296"));
    }
}
