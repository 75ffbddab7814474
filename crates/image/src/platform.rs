//! Which of an index's images is for this machine.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// An operating system, an architecture and its variant, in Go's names: `linux/amd64`, `linux/arm/v7`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `amd64`, `arm64`, `arm`, ...
    #[serde(default)]
    pub architecture: String,
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// `v8`, `v7`, ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// This machine's.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" => ("ppc64le", None),
            other => (other, None),
        };
        let variant = variant.map(str::to_owned);
        Self { architecture: architecture.to_owned(), os: "linux".to_owned(), variant }
    }

    /// Whether an image for `offered` serves who wants `self`. One that does not say what it is for may.
    pub fn accepts(&self, offered: &Self) -> bool {
        offered.architecture.is_empty() || self.score(offered).is_some()
    }

    /// How well an image for `offered` serves who wants `self`; `None` when it does not.
    pub(crate) fn score(&self, offered: &Self) -> Option<u8> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        // What an index that tells no variant means by these.
        let usual = match self.architecture.as_str() {
            "arm64" => Some("v8"),
            "arm" => Some("v7"),
            "amd64" => Some("v1"),
            _ => None,
        };
        let wanted = self.variant.as_deref().or(usual);
        let found = offered.variant.as_deref().or(usual);
        match (wanted, found) {
            (wanted, found) if wanted == found => Some(255),
            (Some(wanted), Some(found)) if number(found)? < number(wanted)? => Some(number(found)?),
            _ => None,
        }
    }
}

fn number(variant: &str) -> Option<u8> {
    variant.strip_prefix('v')?.parse().ok()
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = Error;

    /// `OS/ARCHITECTURE[/VARIANT]`, or the architecture alone, which is Linux's.
    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let word = |part: &&str| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        };
        let (os, architecture, variant) = match parts[..] {
            _ if !parts.iter().all(word) => ("", "", None),
            [architecture] => ("linux", architecture, None),
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => ("", "", None),
        };
        // The kernel's names for what Go calls otherwise.
        let architecture = match architecture {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        if os != "linux" {
            return Err(Error::new(format!("platform {text:?} must be linux/ARCHITECTURE[/VARIANT]")));
        }
        Ok(Self {
            architecture: architecture.to_owned(),
            os: os.to_owned(),
            variant: variant.map(str::to_owned),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_variant_serves() {
        let platform = |text: &str| text.parse::<Platform>().unwrap();
        let score = |wanted: &str, offered: &str| platform(wanted).score(&platform(offered));
        assert_eq!(score("linux/amd64", "linux/amd64"), Some(255));
        assert_eq!(score("x86_64", "linux/amd64"), Some(255));
        assert_eq!(score("linux/arm64", "linux/arm64/v8"), Some(255));
        assert_eq!(score("linux/arm/v7", "linux/arm/v6"), Some(6));
        assert_eq!(score("linux/arm/v6", "linux/arm/v7"), None);
        assert_eq!(score("linux/amd64", "linux/arm64"), None);
        for bad in ["", "linux/", "windows/amd64", "linux/a/b/c", "linux/a b"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }
}
