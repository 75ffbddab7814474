//! The system call filter: the default profile, none, or one in the form that Docker reads.
//!
//! Docker's form is the specification's with conditions: a rule may ask for capabilities, architectures or a version
//! of the kernel, and a table says which other architectures a machine runs. It becomes the specification's form here,
//! since a runtime knows no conditions.

use moat_linux::capability::Set;
use moat_model::oci::{Seccomp, SeccompArg, SeccompRule};
use moat_model::workload::SeccompChoice;
use serde::Deserialize;

use super::{HostFacts, Inputs, capabilities};
use crate::{Error, Result};

/// The longest profile that is read; Docker's own has 13 kB.
const MAX_BYTES: usize = 1 << 20;

pub(super) fn filter(inputs: &Inputs<'_>) -> Result<Option<Seccomp>> {
    let (spec, host) = (inputs.spec, inputs.host);
    let capabilities = capabilities::set(spec, host.sandbox.bounding)?;
    match &spec.security.seccomp {
        SeccompChoice::Unconfined => Ok(None),
        SeccompChoice::Default if spec.privileged => Ok(None),
        SeccompChoice::Default => {
            Ok(Some(moat_sandbox::seccomp::default_profile(capabilities, &host.architecture, host.kernel)))
        }
        SeccompChoice::Profile(text) => {
            let profile = parse_profile(text, capabilities, host)?;
            // What the sandbox would refuse is told before anything is made.
            moat_sandbox::seccomp::compile(&profile)
                .map_err(|error| Error::new(format!("--security-opt seccomp: {error}")))?;
            Ok(Some(profile))
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    #[serde(default)]
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    #[serde(default)]
    arch_map: Option<Vec<Architecture>>,
    #[serde(default)]
    flags: Option<Vec<String>>,
    #[serde(default)]
    listener_path: Option<String>,
    #[serde(default)]
    listener_metadata: Option<String>,
    #[serde(default)]
    syscalls: Option<Vec<Rule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Architecture {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    /// The form before Docker 1.12.
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    names: Option<Vec<String>>,
    action: String,
    #[serde(default)]
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<SeccompArg>>,
    #[serde(default)]
    includes: Option<Conditions>,
    #[serde(default)]
    excludes: Option<Conditions>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Conditions {
    #[serde(default)]
    arches: Option<Vec<String>>,
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    min_kernel: Option<String>,
}

/// Reads a profile in Docker's form for a workload with these capabilities on this host.
///
/// Errors: a sentence with line and column of what is not JSON or not of Docker's types.
pub fn parse_profile(text: &str, capabilities: Set, host: &HostFacts) -> Result<Seccomp> {
    let refuse = |what: String| Error::new(format!("--security-opt seccomp: the profile {what}"));
    if text.len() > MAX_BYTES {
        return Err(refuse(format!("has {} bytes, more than {MAX_BYTES}", text.len())));
    }
    let profile: Profile =
        serde_json::from_str(text).map_err(|error| refuse(format!("can not be read: {error}")))?;
    let listed = profile.architectures.unwrap_or_default();
    let map = profile.arch_map.unwrap_or_default();
    if !listed.is_empty() && !map.is_empty() {
        return Err(refuse("names both architectures and archMap: it can be only one".to_owned()));
    }
    let native = map.into_iter().find(|entry| entry.architecture == host.architecture);
    let architectures = match native {
        Some(entry) => {
            let others = entry.sub_architectures.unwrap_or_default();
            std::iter::once(entry.architecture).chain(others).collect()
        }
        None => listed,
    };
    let mut syscalls = Vec::new();
    for rule in profile.syscalls.unwrap_or_default() {
        let mut names = rule.names.unwrap_or_default();
        match rule.name.filter(|name| !name.is_empty()) {
            Some(name) if names.is_empty() => names.push(name),
            Some(name) => return Err(refuse(format!("has a rule with both name {name:?} and names"))),
            None => {}
        }
        let wanted = rule.includes.unwrap_or_default().all(capabilities, host).map_err(refuse)?;
        let unwanted = rule.excludes.unwrap_or_default().any(capabilities, host).map_err(refuse)?;
        if wanted && !unwanted {
            let args = rule.args.unwrap_or_default();
            syscalls.push(SeccompRule { names, action: rule.action, errno_ret: rule.errno_ret, args });
        }
    }
    Ok(Seccomp {
        default_action: profile.default_action,
        default_errno_ret: profile.default_errno_ret,
        architectures,
        flags: profile.flags.unwrap_or_default(),
        listener_path: profile.listener_path.unwrap_or_default(),
        listener_metadata: profile.listener_metadata.unwrap_or_default(),
        syscalls,
    })
}

impl Conditions {
    /// Whether all that is named holds; of architectures and versions there is one, of capabilities each counts.
    fn all(&self, capabilities: Set, host: &HostFacts) -> std::result::Result<bool, String> {
        let arches = self.arches.as_deref().unwrap_or_default();
        let caps = self.caps.as_deref().unwrap_or_default();
        Ok((arches.is_empty() || names_architecture(arches, host))
            && caps.iter().all(|name| has(capabilities, name))
            && self.kernel(host)?.unwrap_or(true))
    }

    /// Whether something that is named holds.
    fn any(&self, capabilities: Set, host: &HostFacts) -> std::result::Result<bool, String> {
        let arches = self.arches.as_deref().unwrap_or_default();
        let caps = self.caps.as_deref().unwrap_or_default();
        Ok(names_architecture(arches, host)
            || caps.iter().any(|name| has(capabilities, name))
            || self.kernel(host)?.unwrap_or(false))
    }

    /// Whether the kernel is new enough; `None` where nothing is asked.
    fn kernel(&self, host: &HostFacts) -> std::result::Result<Option<bool>, String> {
        let Some(wanted) = self.min_kernel.as_deref().filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let numbers: Option<Vec<u32>> = wanted.split('.').map(super::namespaces::strict_u32).collect();
        match numbers.as_deref() {
            Some([major, minor]) => Ok(Some(host.kernel >= (*major, *minor))),
            _ => Err(format!("has the kernel version {wanted:?}, which is not of the form 4.8")),
        }
    }
}

fn has(capabilities: Set, name: &str) -> bool {
    Set::number(name).is_some_and(|number| capabilities.has(number))
}

/// Docker writes Go's names here.
fn names_architecture(names: &[String], host: &HostFacts) -> bool {
    const GO: [(&str, &str); 13] = [
        ("386", "X86"),
        ("amd64", "X86_64"),
        ("arm", "ARM"),
        ("arm64", "AARCH64"),
        ("loong64", "LOONGARCH64"),
        ("mips", "MIPS"),
        ("mips64", "MIPS64"),
        ("mips64le", "MIPSEL64"),
        ("mipsle", "MIPSEL"),
        ("ppc64", "PPC64"),
        ("ppc64le", "PPC64LE"),
        ("riscv64", "RISCV64"),
        ("s390x", "S390X"),
    ];
    let native = host.architecture.strip_prefix("SCMP_ARCH_").unwrap_or(&host.architecture);
    let go = GO.iter().find(|(_, own)| *own == native).map(|(go, _)| *go);
    // x32 runs on an amd64 machine only.
    let x32 = native == "X86_64" && names.iter().any(|name| name == "x32");
    x32 || names.iter().any(|name| Some(name.as_str()) == go || name == native)
}

#[cfg(test)]
mod tests {
    use super::super::tests::facts;
    use super::*;

    const TEXT: &str = r#"{
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
                    {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": null}],
        "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": null, "comment": "", "includes": {}, "excludes": {}},
            {"name": "write", "action": "SCMP_ACT_ALLOW"},
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"], "arches": ["s390x"]}},
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
            {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.0"}},
            {"names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64", "x32"]}},
            {"names": ["sync_file_range2"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["ppc64le"]}}
        ]}"#;

    fn names(capabilities: Set) -> Vec<String> {
        let profile = parse_profile(TEXT, capabilities, &facts()).unwrap();
        assert_eq!(profile.architectures, ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]);
        profile.syscalls.into_iter().flat_map(|rule| rule.names).collect()
    }

    #[test]
    fn conditions() {
        assert_eq!(names(Set::default()), ["read", "write", "clone", "ptrace", "arch_prctl"]);
        let admin = Set::default().with(Set::number("SYS_ADMIN").unwrap());
        assert_eq!(names(admin), ["read", "write", "mount", "ptrace", "arch_prctl"]);
    }

    #[test]
    fn what_is_no_profile() {
        let sentence = |text: &str| parse_profile(text, Set::default(), &facts()).unwrap_err().to_string();
        assert!(sentence("[]").contains("can not be read"));
        assert!(
            sentence(r#"{"defaultAction": "x", "architectures": ["a"], "archMap": [{"architecture": "b"}]}"#)
                .contains("only one")
        );
        let rule = |rule: &str| format!(r#"{{"defaultAction": "x", "syscalls": [{rule}]}}"#);
        assert!(sentence(&rule(r#"{"name": "a", "names": ["b"], "action": "c"}"#)).contains("both name"));
        assert!(
            sentence(&rule(r#"{"action": "c", "includes": {"minKernel": "four"}}"#))
                .contains("kernel version")
        );
        assert!(sentence(&" ".repeat(2 << 20)).contains("more than"));
    }
}
