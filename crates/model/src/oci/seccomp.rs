//! The `linux.seccomp` section of `config.json`.

use serde::{Deserialize, Serialize};

use super::nullable;

/// Specification, "Seccomp".
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Seccomp {
    /// Action for what no rule matches.
    pub default_action: String,
    /// Error number of a default action that carries one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_errno_ret: Option<u32>,
    /// `SCMP_ARCH_X86_64` and so on; the native one when empty.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub architectures: Vec<String>,
    /// `SECCOMP_FILTER_FLAG_LOG` and so on.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub flags: Vec<String>,
    /// Unix socket of the agent that gets the listener of `SCMP_ACT_NOTIFY`.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub listener_path: String,
    /// Opaque text for that agent.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub listener_metadata: String,
    /// Rules.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub syscalls: Vec<SeccompRule>,
}

/// One rule: an action for some system calls, under conditions on their arguments.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SeccompRule {
    /// System calls.
    #[serde(deserialize_with = "nullable")]
    pub names: Vec<String>,
    /// `SCMP_ACT_ALLOW` and so on.
    pub action: String,
    /// Error number of an action that carries one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno_ret: Option<u32>,
    /// Conditions; all must hold.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub args: Vec<SeccompArg>,
}

/// A condition on one argument.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SeccompArg {
    /// Which argument, 0 to 5.
    pub index: u32,
    /// What it is compared with; the mask for `SCMP_CMP_MASKED_EQ`.
    pub value: u64,
    /// What the masked argument is compared with.
    #[serde(skip_serializing_if = "is_zero", deserialize_with = "nullable")]
    pub value_two: u64,
    /// `SCMP_CMP_EQ` and so on.
    pub op: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}
