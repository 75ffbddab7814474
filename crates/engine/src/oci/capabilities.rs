//! Which capabilities a workload gets, by Docker's rules for `--cap-add`, `--cap-drop` and `--privileged`.

use moat_linux::capability::Set;
use moat_model::oci::Capabilities;
use moat_model::workload::WorkloadSpec;

use crate::{Error, Result};

/// What Docker gives every container, each with its reason. They act inside its namespaces and its root only.
const DEFAULT: [&str; 14] = [
    "CAP_CHOWN",            // package managers and entrypoints give files to their service's user
    "CAP_DAC_OVERRIDE",     // root in the container reads its own files whatever their modes
    "CAP_FOWNER",           // as above, for chmod and utimes
    "CAP_FSETID",           // set-group-ID bits survive a change of the file
    "CAP_KILL",             // an init signals services that run as other users
    "CAP_SETGID",           // services drop to their own group
    "CAP_SETUID",           // services drop to their own user
    "CAP_SETPCAP",          // services drop capabilities from their bounding set
    "CAP_NET_BIND_SERVICE", // ports below 1024 of the own network namespace
    "CAP_NET_RAW",          // ping
    "CAP_SYS_CHROOT",       // services lock themselves in
    "CAP_MKNOD",            // archives with device nodes unpack; the device filter decides who opens them
    "CAP_AUDIT_WRITE",      // login and sudo write to the audit log
    "CAP_SETFCAP",          // package managers set file capabilities
];

/// The capabilities of a workload, all of which it has at the start when it runs as root.
pub(super) fn set(spec: &WorkloadSpec, bounding: Set) -> Result<Set> {
    if spec.privileged {
        return Ok(bounding);
    }
    let (add_all, add) = parse(&spec.cap_add, "--cap-add")?;
    let (drop_all, drop) = parse(&spec.cap_drop, "--cap-drop")?;
    let base = if add_all {
        bounding
    } else if drop_all {
        Set::default()
    } else {
        DEFAULT.iter().filter_map(|name| Set::number(name)).fold(Set::default(), Set::with)
    };
    // What is added by name wins over what is dropped, except that ALL with exceptions has exceptions.
    Ok(if add_all { Set(base.0 & !drop.0) } else { Set(base.0 & !drop.0 | add.0) })
}

/// The five sets of a process of `user`. Nothing is inheritable: a program with file capabilities must not get what its
/// caller lacks. Who is not root has nothing but the limit from the start: execve(2) would take the rest away, and whether the
/// program can be reached and executed is to be judged without it.
pub(super) fn sets(set: Set, user: u32) -> Capabilities {
    let names: Vec<String> = set.names().into_iter().map(str::to_owned).collect();
    let own = if user == 0 { names.clone() } else { Vec::new() };
    Capabilities {
        bounding: names,
        effective: own.clone(),
        permitted: own,
        inheritable: Vec::new(),
        ambient: Vec::new(),
    }
}

/// The limit of a process, as it was given to [`sets`].
pub(super) fn limit(of: &Capabilities) -> Set {
    of.bounding.iter().filter_map(|name| Set::number(name)).fold(Set::default(), Set::with)
}

fn parse(names: &[String], flag: &str) -> Result<(bool, Set)> {
    let mut all = false;
    let mut set = Set::default();
    for name in names {
        if name.eq_ignore_ascii_case("ALL") || name.eq_ignore_ascii_case("CAP_ALL") {
            all = true;
            continue;
        }
        let number = Set::number(name);
        set = set.with(number.ok_or_else(|| {
            Error::new(format!("{flag} {name}: there is no such capability"))
                .hint("capabilities(7) lists them")
        })?);
    }
    Ok((all, set))
}

#[cfg(test)]
mod tests {
    use moat_linux::capability::{NAMES, Set};
    use moat_model::workload::WorkloadSpec;

    use super::{DEFAULT, set};

    fn names(privileged: bool, add: &[&str], drop: &[&str]) -> Vec<&'static str> {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let spec =
            WorkloadSpec { privileged, cap_add: list(add), cap_drop: list(drop), ..WorkloadSpec::default() };
        let all = Set((1 << NAMES.len()) - 1);
        set(&spec, all).unwrap().names()
    }

    #[test]
    fn dockers_rules() {
        assert_eq!(names(false, &[], &[]).len(), DEFAULT.len());
        assert!(names(false, &["net_admin"], &[]).contains(&"CAP_NET_ADMIN"));
        assert_eq!(names(false, &[], &["all"]), Vec::<&str>::new());
        assert_eq!(names(false, &["CAP_CHOWN"], &["ALL"]), ["CAP_CHOWN"]);
        assert_eq!(names(false, &["CHOWN"], &["CHOWN"]).len(), DEFAULT.len());
        assert_eq!(names(false, &["ALL"], &["SYS_ADMIN"]).len(), NAMES.len() - 1);
        assert_eq!(names(true, &[], &["ALL"]).len(), NAMES.len());
    }

    #[test]
    fn unknown_names_are_refused() {
        let spec = WorkloadSpec { cap_drop: vec!["SYS_MAGIC".to_owned()], ..WorkloadSpec::default() };
        let error = set(&spec, Set(0)).unwrap_err();
        assert_eq!(error.to_string(), "--cap-drop SYS_MAGIC: there is no such capability");
    }
}
