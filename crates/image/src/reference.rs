//! The name of an image, read as Docker reads it.
//!
//! `busybox` is `docker.io/library/busybox:latest`. What stands before the first slash is a registry only when it
//! looks like a host: it holds a dot or a colon, is `localhost`, or has an upper-case letter.

use std::fmt;
use std::str::FromStr;

use crate::{Digest, Error, Result};

/// The registry of names that name none.
pub const DEFAULT_DOMAIN: &str = "docker.io";
/// The tag of names that name none.
pub const DEFAULT_TAG: &str = "latest";
/// The longest repository, its registry included, and the longest tag.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A repository in a registry with a tag, a digest or both.
///
/// `Display` gives the familiar form (`busybox:latest`), [`full`](Self::full) the one that leaves nothing to guess.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Reads a name; without tag and digest it means the tag `latest`.
    ///
    /// Errors: a sentence that says which part is not well-formed.
    pub fn parse(text: &str) -> Result<Self> {
        let mut reference = Self::parse_exact(text)?;
        if reference.tag.is_none() && reference.digest.is_none() {
            reference.tag = Some(DEFAULT_TAG.to_owned());
        }
        Ok(reference)
    }

    /// Reads a name and adds no tag to it.
    pub fn parse_exact(text: &str) -> Result<Self> {
        let fault = |what: &str| Error::new(format!("image name {text:?} {what}"));
        if text.is_empty() {
            return Err(fault("is empty"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        let (name, tag) = split_tag(rest);
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(fault(
                "has a malformed tag: it is 1 to 128 of letters, digits, _ . - and begins with none of . -",
            ));
        }
        if looks_like_id(name) {
            return Err(fault("could be taken for an image id: 64 hexadecimal digits are no repository"));
        }
        let (domain, path) = split_domain(name);
        let path = if domain == DEFAULT_DOMAIN && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        if !is_domain(domain) {
            return Err(fault("has a malformed registry before its first slash"));
        }
        if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(fault("has an upper-case letter in its repository, which must be lower case"));
        }
        if !path.split('/').all(is_component) {
            return Err(fault(
                "has a malformed repository: parts of a-z 0-9, joined by one of . _ __ - and by /",
            ));
        }
        if domain.len() + 1 + path.len() > MAX_NAME {
            return Err(fault("is longer than 255 bytes"));
        }
        Ok(Self { domain: domain.to_owned(), path, tag: tag.map(str::to_owned), digest })
    }

    /// The registry's host and port.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within its registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The repository in familiar form, without tag and digest.
    pub fn repository(&self) -> String {
        let own = self.path.strip_prefix("library/").filter(|rest| !rest.contains('/'));
        let familiar = own.unwrap_or(&self.path);
        // `docker.io/a.b/c` stays as it is: without its registry, `a.b` would be taken for one.
        let is_plain = split_domain(familiar) == (DEFAULT_DOMAIN, familiar) && !looks_like_id(familiar);
        if self.domain == DEFAULT_DOMAIN && is_plain {
            return familiar.to_owned();
        }
        self.full_repository()
    }

    /// The repository with its registry, without tag and digest.
    pub fn full_repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The name with everything that is left out in the familiar form.
    pub fn full(&self) -> String {
        self.ending(self.full_repository())
    }

    /// The same repository with a tag and no digest.
    ///
    /// Errors: the tag is malformed.
    pub fn with_tag(&self, tag: &str) -> Result<Self> {
        if !is_tag(tag) {
            return Err(Error::new(format!("tag {tag:?} is malformed")));
        }
        Ok(Self { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }

    /// The same repository with a digest and no tag.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    fn ending(&self, mut name: String) -> String {
        if let Some(tag) = &self.tag {
            name.push(':');
            name.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            name.push('@');
            name.push_str(&digest.to_string());
        }
        name
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.ending(self.repository()))
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

/// Whether a name could be taken for an image id.
fn looks_like_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// The tag is what follows the last colon, unless a slash follows that: then it is a port.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (text, None),
    }
}

fn split_domain(name: &str) -> (&str, &str) {
    let Some((first, rest)) = name.split_once('/') else { return (DEFAULT_DOMAIN, name) };
    let is_host =
        first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase());
    match first {
        // The name of Docker's registry in its own configuration files.
        "index.docker.io" => (DEFAULT_DOMAIN, rest),
        _ if is_host => (first, rest),
        _ => (DEFAULT_DOMAIN, name),
    }
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=MAX_TAG).contains(&tag.len())
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

/// A host name, an IPv4 address or an IPv6 address in brackets; a port may follow.
fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (domain, None),
    };
    let host_ok = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        }),
    };
    let port_ok = port.is_none_or(|port| {
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    host_ok && port_ok
}

/// Runs of a-z and 0-9, joined by one `.`, one or two `_`, or any number of `-`.
fn is_component(component: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends = bytes.first().is_some_and(alphanumeric) && bytes.last().is_some_and(alphanumeric);
    ends && bytes
        .split(|byte| alphanumeric(byte))
        .all(|joint| matches!(joint, b"" | b"." | b"_" | b"__") || joint.iter().all(|byte| *byte == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[track_caller]
    fn reads(text: &str, familiar: &str, full: &str) {
        let reference = Reference::parse(text).unwrap();
        assert_eq!((reference.to_string().as_str(), reference.full().as_str()), (familiar, full));
        assert_eq!(Reference::parse(&reference.full()).unwrap(), reference);
        assert_eq!(Reference::parse(&reference.to_string()).unwrap(), reference);
    }

    #[test]
    fn names_as_docker_reads_them() {
        reads("busybox", "busybox:latest", "docker.io/library/busybox:latest");
        reads("library/busybox", "busybox:latest", "docker.io/library/busybox:latest");
        reads("docker.io/busybox:1.36", "busybox:1.36", "docker.io/library/busybox:1.36");
        reads("index.docker.io/a/b", "a/b:latest", "docker.io/a/b:latest");
        reads("library/a/b", "library/a/b:latest", "docker.io/library/a/b:latest");
        reads("localhost/x", "localhost/x:latest", "localhost/x:latest");
        reads("localhost:5000/x:y", "localhost:5000/x:y", "localhost:5000/x:y");
        reads("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest", "127.0.0.1:5000/a/b/c:latest");
        reads("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest");
        reads("docker.io/a.b/c:1", "docker.io/a.b/c:1", "docker.io/a.b/c:1");
        let nested = "docker.io/docker.io/a.b/c:1";
        reads(nested, nested, nested);
        let id = format!("docker.io/library/{HEX}:1");
        reads(&id, &id, &id);
        reads("docker.io/localhost/c:1", "docker.io/localhost/c:1", "docker.io/localhost/c:1");
        reads("Host/a", "Host/a:latest", "Host/a:latest");
        reads("a__b/c-----d/e.f:T_.-1", "a__b/c-----d/e.f:T_.-1", "docker.io/a__b/c-----d/e.f:T_.-1");
        let (short, full) = (format!("a@sha256:{HEX}"), format!("docker.io/library/a@sha256:{HEX}"));
        reads(&short, &short, &full);
        let both = format!("a:1@sha256:{HEX}");
        reads(&both, &both, &format!("docker.io/library/a:1@sha256:{HEX}"));
    }

    #[test]
    fn malformed_names_are_refused() {
        let long = "a".repeat(256);
        let tag = format!("a:{}", "t".repeat(129));
        for bad in [
            "",
            ":",
            "a:",
            ":a",
            "a/",
            "/a",
            "a//b",
            "A",
            "a/B",
            "docker.io/A",
            "-a",
            "a-",
            "a___b",
            "a..b",
            "a._b",
            "a@",
            "a@sha256:abc",
            "a@sha512:0",
            "a b",
            "a:b c",
            "a:.x",
            "a:-x",
            "..",
            "../a",
            "a/../b",
            "h.:1/a",
            "localhost:0/a",
            "localhost:99999/a",
            "[::1/a",
            "[x]/a",
            "a\0",
            "ä",
            HEX,
            &long,
            &tag,
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_can_be_written_and_read(text in "[a-zA-Z0-9:/@._-]{1,40}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(&Reference::parse(&reference.full()).unwrap(), &reference);
                prop_assert_eq!(&Reference::parse(&reference.to_string()).unwrap(), &reference);
            }
        }
    }
}
