//! The OCI runtime specification's `config.json`, version 1.3, and the state of a container.
//!
//! The types follow the specification field by field, so that a sentence of the specification can
//! be found by the name of a field. They are our own, not a library's, because the library at hand
//! refuses scheduler flags that the specification names, and keeps maps in random order, which
//! would make two plans of one configuration differ.
//!
//! Go programs write `null` for an empty list; wherever a list or a map may stand, `null` is empty.

mod linux;
mod process;
mod resources;
mod seccomp;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};

pub use linux::*;
pub use process::*;
pub use resources::*;
pub use seccomp::*;

/// The version of the specification that `moat-runtime spec` writes and that states carry.
pub const VERSION: &str = "1.3.0";

/// The root object of `config.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// Version of the specification that the bundle follows (SemVer 2.0.0).
    pub oci_version: String,
    /// The root file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
    /// The process that `start` runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// Host name in the UTS namespace.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub hostname: String,
    /// NIS domain name in the UTS namespace.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub domainname: String,
    /// Mounts beside the root, in the order in which they are made.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub mounts: Vec<Mount>,
    /// Programs to run at points of the container's life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
    /// Arbitrary metadata.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub annotations: BTreeMap<String, String>,
    /// The Linux section.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linux: Option<Linux>,
}

/// The container's root file system.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Root {
    /// Path of the root, absolute or relative to the bundle.
    pub path: PathBuf,
    /// Whether the root is read-only inside the container.
    #[serde(skip_serializing_if = "is_false")]
    pub readonly: bool,
}

/// A mount beside the root.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Mount {
    /// Where it goes, absolute inside the container.
    pub destination: PathBuf,
    /// File system type; `bind` or none for a bind mount.
    #[serde(rename = "type", skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub kind: String,
    /// Device, name or path; a relative path is relative to the bundle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<PathBuf>,
    /// Mount options as in fstab(5), plus those that the specification adds.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub options: Vec<String>,
    /// User id mappings of an idmapped mount.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub uid_mappings: Vec<IdMapping>,
    /// Group id mappings of an idmapped mount.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub gid_mappings: Vec<IdMapping>,
}

/// The six kinds of hooks, each run in the listed order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hooks {
    /// As `create_runtime`; deprecated by the specification, still used.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub prestart: Vec<Hook>,
    /// After the namespaces exist, before pivot_root; in the runtime's namespaces.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub create_runtime: Vec<Hook>,
    /// After `create_runtime`, before pivot_root; in the container's namespaces.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub create_container: Vec<Hook>,
    /// Before the user's process; in the container.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub start_container: Vec<Hook>,
    /// After the user's process was started; in the runtime's namespaces.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub poststart: Vec<Hook>,
    /// After the container was deleted; in the runtime's namespaces.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub poststop: Vec<Hook>,
}

impl Hooks {
    /// Every kind with its name in the configuration.
    pub fn kinds(&self) -> [(&'static str, &[Hook]); 6] {
        [
            ("prestart", &self.prestart),
            ("createRuntime", &self.create_runtime),
            ("createContainer", &self.create_container),
            ("startContainer", &self.start_container),
            ("poststart", &self.poststart),
            ("poststop", &self.poststop),
        ]
    }
}

/// One hook.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hook {
    /// Absolute path of the program.
    pub path: PathBuf,
    /// Its arguments, the program's name first, as execv(3) has them.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub args: Vec<String>,
    /// Its environment, `NAME=value` each.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub env: Vec<String>,
    /// Seconds after which it is killed.
    #[serde(rename = "timeout", skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<i64>,
}

/// What `state` prints and hooks get on standard input (specification, "State").
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Version of the specification.
    pub oci_version: String,
    /// The container's identifier.
    pub id: String,
    /// `creating`, `created`, `running` or `stopped`; `paused` as runc has it.
    pub status: String,
    /// The container's first process as the host sees it; 0 when there is none.
    #[serde(default)]
    pub pid: i32,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// The annotations of the configuration.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What a seccomp agent is told with a listener (specification, "The Container Process State").
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerProcessState {
    /// Version of the specification.
    pub oci_version: String,
    /// Names of the descriptors that are sent along, in their order.
    pub fds: Vec<String>,
    /// The process that the descriptors belong to, as the runtime sees it.
    pub pid: i32,
    /// `listenerMetadata` of the configuration.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub metadata: String,
    /// The container's state.
    pub state: State,
}

/// Reads `null` as the empty value.
pub(crate) fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
pub(crate) fn is_false(value: &bool) -> bool {
    !value
}
