//! The name of a container, as a checked type.

use std::fmt;

/// The longest identifier: it becomes a file name.
const MAX_LEN: usize = 255;

/// A container's identifier: 1 to 255 of `[A-Za-z0-9_+.-]`, neither `.` nor `..`.
///
/// It names a folder and a cgroup, so it can never hold a path separator.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContainerId(String);

/// Why a string is no container identifier.
#[derive(Debug, PartialEq, Eq)]
pub struct InvalidId(String);

impl fmt::Display for InvalidId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "container id {:?} must be 1 to {MAX_LEN} of the characters A-Z a-z 0-9 _ + . -, and not . or ..",
            self.0
        )
    }
}

impl std::error::Error for InvalidId {}

impl ContainerId {
    /// Checks `name`.
    pub fn new(name: &str) -> Result<Self, InvalidId> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_+.-".contains(&byte);
        let ok =
            (1..=MAX_LEN).contains(&name.len()) && name.bytes().all(legal) && name != "." && name != "..";
        if ok { Ok(Self(name.to_owned())) } else { Err(InvalidId(name.to_owned())) }
    }

    /// The identifier as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::ContainerId;

    #[test]
    fn only_names_that_stay_in_one_folder() {
        for good in ["a", "A-1_b+c.d", &"x".repeat(255)] {
            assert_eq!(ContainerId::new(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "a/b", "../x", "a b", "a\0", "ä", &"x".repeat(256)] {
            assert!(ContainerId::new(bad).is_err(), "{bad:?}");
        }
    }
}
