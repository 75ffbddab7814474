//! Ids and names of workloads.
//!
//! A name is claimed by a symbolic link of that name to the workload's folder: the link is made, whole, only
//! where there is none.

use std::io::ErrorKind;

use moat_linux::Errno;

use crate::roots::{Roots, make_folder};
use crate::{Context, Error, Result};

/// How many hexadecimal digits an id has.
const ID_DIGITS: usize = 64;

/// The id of a workload: 64 hexadecimal digits, as Docker's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkloadId(String);

impl WorkloadId {
    /// A new one, from 256 random bits.
    pub(crate) fn random() -> Result<Self> {
        Ok(Self(hex(&random_bytes::<32>()?)))
    }

    /// Checks `text`.
    pub fn parse(text: &str) -> Option<Self> {
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (text.len() == ID_DIGITS && text.bytes().all(digit)).then(|| Self(text.to_owned()))
    }

    /// All digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 digits, as lists show them.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl std::fmt::Display for WorkloadId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn random_bytes<const COUNT: usize>() -> Result<[u8; COUNT]> {
    let mut bytes = [0; COUNT];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).context(|| "getrandom")?;
    Ok(bytes)
}

/// A name as Docker allows it: a letter or digit, then letters, digits and `_.-`, two characters at least.
///
/// Errors: the rule, with the name.
pub fn check_name(name: &str) -> Result<()> {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if first && rest && (2..=128).contains(&name.len()) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "name {name:?} must be 2 to 128 of the characters A-Z a-z 0-9 _ . -, the first a letter or a digit"
    )))
}

/// Claims `name` for a workload whose folder exists.
pub(super) fn claim(roots: &Roots, name: &str, id: &WorkloadId) -> Result<()> {
    check_name(name)?;
    let folder = roots.names();
    let link = folder.join(name);
    let target = format!("../workloads/{id}");
    let made = match std::os::unix::fs::symlink(&target, &link) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            make_folder(&folder).context(|| folder.display().to_string())?;
            std::os::unix::fs::symlink(&target, &link)
        }
        other => other,
    };
    match made {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let holder =
                holder(roots, name)?.map_or_else(String::new, |id| format!(" by workload {}", id.short()));
            Err(Error::conflict(format!("the name {name:?} is in use{holder}"))
                .hint(format!("remove that one with `moat rm {name}`, rename it, or choose another name")))
        }
        other => other.context(|| format!("claim the name {name:?}")),
    }
}

/// Claims a name that nobody has.
pub(super) fn claim_any(roots: &Roots, id: &WorkloadId) -> Result<String> {
    // 64 by 64 pairs; the number that is added later keeps it from ever ending.
    for attempt in 0_u32.. {
        let name = made_up(random_bytes()?, attempt);
        match claim(roots, &name, id) {
            Err(error) if error.kind() == crate::ErrorKind::Conflict => {}
            other => return other.map(|()| name),
        }
    }
    Err(Error::new("no name is free"))
}

fn made_up([one, other, digit]: [u8; 3], attempt: u32) -> String {
    let pick = |list: &[&'static str], byte: u8| {
        list.get(usize::from(byte) % list.len().max(1)).copied().unwrap_or("a")
    };
    let name = format!("{}_{}", pick(&ADJECTIVES, one), pick(&NOUNS, other));
    if attempt < 8 { name } else { format!("{name}{}", u32::from(digit) + attempt) }
}

/// Gives a name back, if it is this workload's.
pub(super) fn release(roots: &Roots, name: &str, id: &WorkloadId) -> Result<()> {
    if holder(roots, name)?.as_ref() == Some(id) {
        crate::file::remove_if_there(&roots.names().join(name))?;
    }
    Ok(())
}

/// Who has a name.
pub(crate) fn holder(roots: &Roots, name: &str) -> Result<Option<WorkloadId>> {
    if check_name(name).is_err() {
        return Ok(None);
    }
    let link = roots.names().join(name);
    match std::fs::read_link(&link) {
        Ok(target) => Ok(target.file_name().and_then(|id| id.to_str()).and_then(WorkloadId::parse)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        // A file in its place is damage that `system check` tells of; it is nobody's name.
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Ok(None),
        Err(error) => Err(error).context(|| format!("read {}", link.display())),
    }
}

const ADJECTIVES: [&str; 64] = [
    "able", "amber", "ancient", "arched", "autumn", "bold", "brave", "bright", "brisk", "calm", "candid",
    "careful", "cheerful", "civil", "clear", "clever", "cool", "cosy", "crisp", "curious", "daring", "deep",
    "eager", "early", "fair", "famous", "fine", "firm", "gentle", "glad", "golden", "grand", "green",
    "happy", "hardy", "honest", "humble", "jolly", "keen", "kind", "lively", "loyal", "lucid", "merry",
    "mild", "modest", "noble", "patient", "plain", "polite", "proud", "quick", "quiet", "rapid", "royal",
    "sharp", "silent", "smart", "steady", "sturdy", "swift", "tidy", "warm", "wise",
];

const NOUNS: [&str; 64] = [
    "anchor",
    "arch",
    "bailey",
    "barbican",
    "bastion",
    "battlement",
    "beacon",
    "bridge",
    "buttress",
    "canal",
    "castle",
    "causeway",
    "chapel",
    "citadel",
    "cloister",
    "column",
    "courtyard",
    "crown",
    "cupola",
    "dock",
    "donjon",
    "drawbridge",
    "dyke",
    "embrasure",
    "fort",
    "fosse",
    "fountain",
    "gable",
    "garden",
    "gate",
    "gatehouse",
    "guard",
    "hall",
    "harbour",
    "keep",
    "lantern",
    "lighthouse",
    "lock",
    "loophole",
    "manor",
    "mill",
    "moat",
    "orchard",
    "palisade",
    "parapet",
    "pier",
    "portcullis",
    "quay",
    "rampart",
    "redoubt",
    "spire",
    "stable",
    "stair",
    "terrace",
    "tower",
    "turret",
    "vault",
    "viaduct",
    "wall",
    "ward",
    "watch",
    "well",
    "wharf",
    "yard",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids() {
        for good in ["ab", "a.b-c_d", "0x", &"a".repeat(128)] {
            check_name(good).unwrap();
        }
        for bad in ["", "a", "_a", "..", "a/b", "a b", "ä1", "a\n", &"a".repeat(129)] {
            assert_eq!(check_name(bad).unwrap_err().kind(), crate::ErrorKind::Invalid, "{bad:?}");
        }
        let id = WorkloadId::random().unwrap();
        assert_eq!(WorkloadId::parse(id.as_str()), Some(id.clone()));
        assert_eq!(id.short().len(), 12);
        for bad in ["", "abc", &"A".repeat(64), &"g".repeat(64), &"a".repeat(65)] {
            assert_eq!(WorkloadId::parse(bad), None);
        }
    }

    #[test]
    fn made_up_names_are_names() {
        for (adjective, noun) in ADJECTIVES.iter().zip(NOUNS) {
            check_name(&format!("{adjective}_{noun}")).unwrap();
        }
        check_name(&made_up([255, 255, 255], 9)).unwrap();
        assert_ne!(made_up([1, 2, 3], 8), made_up([1, 2, 3], 9));
    }
}
