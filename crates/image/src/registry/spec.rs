//! What the user says about registries: `registries.json`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::{Context, Error, Result};

/// Folders in which Docker and Podman look for the certificates of single registries.
const CERTIFICATE_FOLDERS: [&str; 2] = ["/etc/docker/certs.d", "/etc/containers/certs.d"];

/// How registries are reached. The keys of the file are these names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistriesSpec {
    /// Registries (`HOST[:PORT]`) whose certificate is not checked, and that may speak plain HTTP.
    pub insecure: Vec<String>,
    /// For a registry, others that are asked first: `URL` or `HOST[:PORT]`, with a path where the mirror has one.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Folders that hold a folder `HOST[:PORT]` for each registry, with its authorities as `*.crt` and the client's
    /// certificate and key as `*.cert` and `*.key`.
    pub certificates: Vec<PathBuf>,
}

impl Default for RegistriesSpec {
    fn default() -> Self {
        Self {
            insecure: Vec::new(),
            mirrors: BTreeMap::new(),
            certificates: CERTIFICATE_FOLDERS.map(PathBuf::from).to_vec(),
        }
    }
}

impl RegistriesSpec {
    /// Reads a file; where there is none, the default holds.
    pub fn load(path: &Path) -> Result<Self> {
        let text = match std::fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            other => other.context(|| path.display().to_string())?,
        };
        serde_json::from_slice(&text).map_err(|error| Error::new(format!("{}: {error}", path.display())))
    }

    /// Whether a registry may be reached without a certificate that can be checked: those that are named, and those
    /// on this machine.
    pub(super) fn is_insecure(&self, domain: &str) -> bool {
        is_loopback(domain) || self.insecure.iter().any(|named| named == domain)
    }
}

/// The host of `HOST[:PORT]`, without the brackets of an IPv6 address.
pub(super) fn host_of(domain: &str) -> &str {
    let host = match domain.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => host,
        _ => domain,
    };
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// Whether a registry is on this machine.
pub(super) fn is_loopback(domain: &str) -> bool {
    let host = host_of(domain);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_on_this_machine() {
        for here in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.8.9.1", "[::1]:5000", "[::1]"] {
            assert!(is_loopback(here), "{here}");
        }
        for there in ["docker.io", "localhost.evil.com", "127.0.0.1.evil.com", "[::2]:5000", "1.2.3.4:5"] {
            assert!(!is_loopback(there), "{there}");
        }
    }

    #[test]
    fn unknown_keys_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("registries.json");
        assert_eq!(RegistriesSpec::load(&path).unwrap(), RegistriesSpec::default());
        std::fs::write(&path, r#"{"insecure":["a:5000"],"mirrors":{"docker.io":["m"]}}"#).unwrap();
        assert!(RegistriesSpec::load(&path).unwrap().is_insecure("a:5000"));
        std::fs::write(&path, r#"{"insecur":["a:5000"]}"#).unwrap();
        assert!(RegistriesSpec::load(&path).is_err());
    }
}
