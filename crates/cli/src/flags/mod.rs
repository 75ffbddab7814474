//! What people type, as checked values: a module for each family of flags.
//!
//! A parser gives a sentence that says what is wrong with the value; clap puts the flag's name and the
//! value before it.

pub(crate) mod create;
pub(crate) mod duration;
pub(crate) mod environment;
pub(crate) mod limits;
pub(crate) mod list;
pub(crate) mod mount;
pub(crate) mod namespace;
pub(crate) mod network;
pub(crate) mod port;
pub(crate) mod security;
pub(crate) mod size;
pub(crate) mod ulimit;
pub(crate) mod volume;

use moat_model::workload::{DeviceSpec, Isolation, RestartPolicy};

/// A truth value as Go reads one.
pub(crate) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

/// The parser of a flag that people know from elsewhere and that is refused, with the reason.
pub(crate) fn refused(
    reason: &'static str,
) -> impl Fn(&str) -> Result<String, &'static str> + Clone + Send + Sync + 'static {
    move |_| Err(reason)
}

/// `NAME=value` with a name; without `=` the value is empty.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    if name.is_empty() {
        return Err(format!("{text:?} has no name before the ="));
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// `NAME=value`, where the = must be there.
pub(crate) fn assignment(text: &str) -> Result<(String, String), String> {
    if text.contains('=') { pair(text) } else { Err(format!("{text:?} should be NAME=VALUE")) }
}

/// `no`, `always`, `unless-stopped` or `on-failure[:TIMES]`.
pub(crate) fn restart(text: &str) -> Result<RestartPolicy, String> {
    let (name, times) = text.split_once(':').map_or((text, None), |(name, times)| (name, Some(times)));
    let policy = match name {
        "" | "no" => RestartPolicy::No,
        "always" => RestartPolicy::Always,
        "unless-stopped" => RestartPolicy::UnlessStopped,
        "on-failure" => {
            let times = times.unwrap_or("0");
            let max_retries = times.parse().map_err(|_| format!("{times:?} is no number of retries"))?;
            return Ok(RestartPolicy::OnFailure { max_retries });
        }
        _ => return Err(format!("{name:?} is not one of no, always, unless-stopped and on-failure[:TIMES]")),
    };
    match times {
        None => Ok(policy),
        Some(_) => Err(format!("only on-failure takes a number of retries, {name} does not")),
    }
}

/// `container` or `microvm`; `default` is the first.
pub(crate) fn isolation(text: &str) -> Result<Isolation, String> {
    match text {
        "" | "default" | "container" => Ok(Isolation::Container),
        "microvm" => Ok(Isolation::Microvm),
        _ => Err(format!("{text:?} is not one of container and microvm")),
    }
}

/// `HOST[:PATH][:rwm]`.
pub(crate) fn device(text: &str) -> Result<DeviceSpec, String> {
    let rights = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|byte| b"rwm".contains(&byte))
            && part.bytes().enumerate().all(|(at, byte)| !part.as_bytes()[..at].contains(&byte))
    };
    let parts: Vec<&str> = text.split(':').collect();
    let (host, path, access) = match *parts.as_slice() {
        [host] => (host, host, "rwm"),
        [host, access] if rights(access) => (host, host, access),
        [host, path] => (host, path, "rwm"),
        [host, path, access] if rights(access) => (host, path, access),
        [_, _, access] => return Err(format!("{access:?} should be some of r, w and m")),
        _ => return Err(format!("{text:?} should be HOST[:PATH][:rwm]")),
    };
    for part in [host, path] {
        if !part.starts_with('/') {
            return Err(format!("{part:?} is not an absolute path of a device"));
        }
    }
    Ok(DeviceSpec { host: host.to_owned(), path: path.to_owned(), access: access.to_owned() })
}

#[cfg(test)]
mod tests {
    use moat_model::workload::RestartPolicy;

    use super::{device, restart};

    #[test]
    fn restart_policies() {
        for (text, policy) in [
            ("", RestartPolicy::No),
            ("no", RestartPolicy::No),
            ("always", RestartPolicy::Always),
            ("unless-stopped", RestartPolicy::UnlessStopped),
            ("on-failure", RestartPolicy::OnFailure { max_retries: 0 }),
            ("on-failure:5", RestartPolicy::OnFailure { max_retries: 5 }),
        ] {
            assert_eq!(restart(text), Ok(policy), "{text}");
        }
        for text in
            ["never", "always:1", "no:0", "on-failure:", "on-failure:x", "on-failure:-1", "on-failure:1:2"]
        {
            assert!(restart(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn devices() {
        for (text, host, path, access) in [
            ("/dev/kvm", "/dev/kvm", "/dev/kvm", "rwm"),
            ("/dev/kvm:r", "/dev/kvm", "/dev/kvm", "r"),
            ("/dev/kvm:/dev/x", "/dev/kvm", "/dev/x", "rwm"),
            ("/dev/kvm:/dev/x:rw", "/dev/kvm", "/dev/x", "rw"),
        ] {
            let found = device(text).unwrap();
            assert_eq!((&*found.host, &*found.path, &*found.access), (host, path, access), "{text}");
        }
        for text in
            ["", "kvm", "/dev/kvm:", "/dev/kvm:x", "/dev/kvm:/dev/x:rr", "/dev/kvm:/dev/x:rwx", "/a:/b:r:w"]
        {
            assert!(device(text).is_err(), "{text:?}");
        }
    }
}
