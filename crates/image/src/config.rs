//! The configuration of an image, as OCI and Docker write it: the door for what an image says about itself.
//!
//! What stands here never sets anything on the host. Labels and annotations are text that is shown; the rest is what
//! a workload starts with unless its user says otherwise.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::manifest::{MAX_LAYERS, is_object};
use crate::{Digest, Error, Kind, Platform, Result};

/// The largest configuration that is read.
pub(crate) const MAX_CONFIG_BYTES: u64 = 8 << 20;

/// An image's configuration. Its digest is the image's id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Go's name of the architecture.
    #[serde(default, deserialize_with = "or_default")]
    pub architecture: String,
    /// Go's name of the operating system.
    #[serde(default, deserialize_with = "or_default")]
    pub os: String,
    /// The variant of the architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// When it was made, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Who made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// A remark; `import -m` and `commit -m` set it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// What a workload of this image starts with.
    #[serde(default, deserialize_with = "or_default")]
    pub config: RunConfig,
    /// The layers.
    #[serde(default, deserialize_with = "or_default")]
    pub rootfs: RootFs,
    /// How it came to be, oldest first.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
}

/// What a workload of an image starts with, in Docker's names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RunConfig {
    /// `USER[:GROUP]`, names or numbers of the image's own.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// `PORT[/PROTOCOL]`.
    #[serde(default, with = "set", skip_serializing_if = "BTreeSet::is_empty")]
    pub exposed_ports: BTreeSet<String>,
    /// `NAME=VALUE`.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// What stands before `cmd`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// The program and its arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// How to see whether it is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<HealthCheck>,
    /// Folders that outlive the workload's root file system.
    #[serde(default, with = "set", skip_serializing_if = "BTreeSet::is_empty")]
    pub volumes: BTreeSet<String>,
    /// The working directory.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Free text.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The signal that stops it: a name or a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Seconds between that signal and SIGKILL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    /// The shell of the shell form of a Dockerfile's instructions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<Vec<String>>,
    /// Instructions for a build on top of this image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_build: Option<Vec<String>>,
}

/// Docker's health check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HealthCheck {
    /// `["NONE"]`, `["CMD", ...]` or `["CMD-SHELL", LINE]`; empty: as the image below has it.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    /// Nanoseconds between two checks; 0: 30 s.
    #[serde(default, skip_serializing_if = "is_zero", rename = "Interval")]
    pub interval_ns: i64,
    /// Nanoseconds that one may take; 0: 30 s.
    #[serde(default, skip_serializing_if = "is_zero", rename = "Timeout")]
    pub timeout_ns: i64,
    /// Nanoseconds during which a failure does not count.
    #[serde(default, skip_serializing_if = "is_zero", rename = "StartPeriod")]
    pub start_period_ns: i64,
    /// Nanoseconds between two checks in that period; 0: 5 s.
    #[serde(default, skip_serializing_if = "is_zero", rename = "StartInterval")]
    pub start_interval_ns: i64,
    /// Failures in a row that make it unhealthy; 0: 3.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: i64,
}

/// The layers of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// `layers`.
    #[serde(default, rename = "type", deserialize_with = "or_default")]
    pub kind: String,
    /// The digests of the layers' archives before compression, lowest first.
    #[serde(default, deserialize_with = "or_default")]
    pub diff_ids: Vec<Digest>,
}

/// One line of an image's history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// When, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// By which command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// By whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// A remark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Whether it made no layer.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

impl ImageConfig {
    /// Reads a configuration.
    ///
    /// Errors: it is malformed or too large, has more layers than can be stacked, or holds a NUL where a program or
    /// the kernel would see a text end.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let fault = |what: String| Error::new(format!("image configuration {what}")).with_kind(Kind::Corrupt);
        if bytes.len() as u64 > MAX_CONFIG_BYTES {
            return Err(fault(format!("is larger than {MAX_CONFIG_BYTES} bytes")).with_kind(Kind::TooLarge));
        }
        if !is_object(bytes) {
            return Err(fault("is no object".to_owned()));
        }
        let config: Self =
            serde_json::from_slice(bytes).map_err(|error| fault(format!("is malformed: {error}")))?;
        let layers = config.rootfs.diff_ids.len();
        if layers > MAX_LAYERS {
            return Err(fault(format!("has {layers} layers; at most {MAX_LAYERS} can be stacked"))
                .with_kind(Kind::TooLarge));
        }
        if !matches!(config.rootfs.kind.as_str(), "layers" | "") {
            return Err(fault(format!(
                "has a root file system of type {:?}, not layers",
                config.rootfs.kind
            )));
        }
        if let Some(text) = config.config.texts().find(|text| text.contains('\0')) {
            return Err(fault(format!("holds a NUL in {text:?}")));
        }
        Ok(config)
    }

    /// What it is for.
    pub fn platform(&self) -> Platform {
        Platform {
            architecture: self.architecture.clone(),
            os: self.os.clone(),
            variant: self.variant.clone().filter(|variant| !variant.is_empty()),
        }
    }

    /// The text whose digest is the image's id.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|error| Error::new(format!("image configuration: {error}")))
    }
}

impl RunConfig {
    /// Everything that a program or a system call gets to see.
    fn texts(&self) -> impl Iterator<Item = &String> {
        let fixed = [&self.user, &self.working_dir].into_iter().chain(&self.stop_signal);
        let lists = [&self.entrypoint, &self.cmd, &self.shell].into_iter().flatten().flatten();
        let health = self.healthcheck.iter().flat_map(|check| &check.test);
        fixed.chain(&self.env).chain(lists).chain(health).chain(&self.volumes).chain(&self.exposed_ports)
    }
}

fn is_zero(value: &i64) -> bool {
    *value == 0
}

/// Docker writes `null` where it has nothing.
fn or_default<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(
    from: D,
) -> std::result::Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// Go's sets: objects whose values are empty objects.
mod set {
    use super::{BTreeMap, BTreeSet, Deserialize, Deserializer, Serializer};
    use serde::de::IgnoredAny;
    use serde::ser::SerializeMap;

    pub(super) fn serialize<S: Serializer>(set: &BTreeSet<String>, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(set.len()))?;
        for name in set {
            map.serialize_entry(name, &serde_json::Map::new())?;
        }
        map.end()
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeSet<String>, D::Error> {
        let map = Option::<BTreeMap<String, IgnoredAny>>::deserialize(from)?;
        Ok(map.unwrap_or_default().into_keys().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_nulls_and_sets() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"Env":["A=b"],"Cmd":null,"Entrypoint":["/x"],
            "ExposedPorts":{"80/tcp":{}},"Volumes":{"/v":{}},"Labels":null,"OnBuild":null,"User":"1000:0",
            "Healthcheck":{"Test":["CMD","x"],"Interval":1000}},"rootfs":{"type":"layers","diff_ids":[]},
            "history":[{"created_by":"x","empty_layer":true}],"unknown":{"a":[1]}}"#;
        let config = ImageConfig::parse(text.as_bytes()).unwrap();
        assert_eq!(config.config.exposed_ports, BTreeSet::from(["80/tcp".to_owned()]));
        assert_eq!(config.config.volumes, BTreeSet::from(["/v".to_owned()]));
        assert_eq!(config.config.entrypoint.as_deref(), Some(&["/x".to_owned()][..]));
        assert_eq!(config.config.healthcheck.as_ref().unwrap().interval_ns, 1000);
        assert!(config.history[0].empty_layer && config.config.labels.is_empty());
        let again = ImageConfig::parse(&config.to_bytes().unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn what_is_refused() {
        let many = format!(
            r#"{{"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            vec![format!("\"{}\"", Digest::of(b"")); 501].join(",")
        );
        for bad in [
            "",
            "[]",
            r#"{"config":{"Env":["A=\u0000"]}}"#,
            r#"{"config":{"User":"\u0000"}}"#,
            r#"{"rootfs":{"type":"zfs"}}"#,
            r#"{"rootfs":{"diff_ids":["sha256:../../x"]}}"#,
            &many,
        ] {
            assert!(ImageConfig::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
