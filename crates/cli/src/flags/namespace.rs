//! `--pid`, `--ipc`, `--uts`, `--cgroupns` and `--userns`.

use moat_model::workload::NamespaceMode;

/// `private`, `host` or `container:NAME`.
pub(crate) fn joinable(text: &str) -> Result<NamespaceMode, String> {
    match text {
        "" | "private" => Ok(NamespaceMode::Private),
        "host" => Ok(NamespaceMode::Host),
        _ => match text.strip_prefix("container:") {
            Some(name) if !name.is_empty() => Ok(NamespaceMode::Container(name.to_owned())),
            Some(_) => Err("container: needs the name of a workload".to_owned()),
            None => Err(format!("{text:?} is not one of private, host and container:NAME")),
        },
    }
}

/// As [`joinable`]; any private IPC namespace can be shared, so `shareable` says nothing more.
pub(crate) fn ipc(text: &str) -> Result<NamespaceMode, String> {
    match text {
        "shareable" => Ok(NamespaceMode::Private),
        "none" => Err("a workload without /dev/shm is not supported; use private".to_owned()),
        _ => joinable(text),
    }
}

/// `private` or `host`.
pub(crate) fn cgroup(text: &str) -> Result<NamespaceMode, String> {
    match text {
        "" | "private" => Ok(NamespaceMode::Private),
        "host" => Ok(NamespaceMode::Host),
        _ => Err(format!("{text:?} is not one of private and host")),
    }
}

/// `host`, `auto`, or maps `UID:HOST:SIZE` between commas.
pub(crate) fn user(text: &str) -> Result<String, String> {
    let map = |part: &str| {
        let numbers: Vec<_> = part.split(':').map(str::parse::<u32>).collect();
        numbers.len() == 3 && numbers.iter().all(Result::is_ok)
    };
    if ["host", "auto"].contains(&text) || text.split(',').all(map) {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is not one of host, auto and maps as 0:100000:65536"))
}

#[cfg(test)]
mod tests {
    use moat_model::workload::NamespaceMode;

    use super::{cgroup, ipc, joinable, user};

    #[test]
    fn modes() {
        assert_eq!(joinable(""), Ok(NamespaceMode::Private));
        assert_eq!(joinable("host"), Ok(NamespaceMode::Host));
        assert_eq!(joinable("container:web"), Ok(NamespaceMode::Container("web".to_owned())));
        assert_eq!(ipc("shareable"), Ok(NamespaceMode::Private));
        assert!(user("host").is_ok() && user("auto").is_ok() && user("0:100000:65536,65536:9:1").is_ok());
        for text in ["container:", "Host", "none", "ns:/x"] {
            assert!(joinable(text).is_err() && ipc(text).is_err() && cgroup(text).is_err(), "{text:?}");
        }
        assert!(cgroup("container:web").is_err());
        for text in ["", "keep-id", "0:1", "0:1:-1", "0:1:2,"] {
            assert!(user(text).is_err(), "{text:?}");
        }
    }
}
