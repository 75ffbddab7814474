//! Device nodes and the filter that decides who opens them.
//!
//! [`look_up`] asks the host what a path is; [`rules`] is pure.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use moat_model::oci::{Device, DeviceRule};
use moat_model::workload::{DeviceLimit, DeviceSpec, LimitsSpec, WorkloadSpec};

use super::BlockDevices;
use crate::{Context, Error, Result};

/// A node, and of `rwm` what may be done with it.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadyDevice {
    /// The node in the workload.
    pub node: Device,
    /// What may be done.
    pub access: String,
}

/// Folders below the host's /dev that are file systems of their own or hold links; /dev/console is the terminal's.
const NOT_DEVICES: [&str; 8] = ["pts", "shm", "fd", "mqueue", "console", ".lxc", ".lxd-mounts", ".udev"];

/// How deep folders of devices may lie in each other.
const MAX_DEPTH: usize = 16;

/// The nodes that a workload asks for. A privileged one gets all of the host's, as with Docker.
pub fn look_up(spec: &WorkloadSpec) -> Result<Vec<ReadyDevice>> {
    let mut found = Vec::new();
    if spec.privileged {
        walk(Path::new("/dev"), Path::new("/dev"), "rwm", 0, &mut found)?;
    }
    for wanted in &spec.devices {
        check_access(wanted)?;
        let path = std::fs::canonicalize(&wanted.host)
            .context(|| format!("--device {}: there is no such device", wanted.host))?;
        let metadata = std::fs::metadata(&path).context(|| format!("--device {}", wanted.host))?;
        let inside = Path::new(&wanted.path);
        if !inside.is_absolute() {
            return Err(Error::new(format!(
                "--device {}: {} is not an absolute path",
                wanted.host, wanted.path
            )));
        }
        if metadata.is_dir() {
            let before = found.len();
            walk(&path, inside, &wanted.access, 0, &mut found)?;
            if found.len() == before {
                return Err(Error::new(format!(
                    "--device {}: there is no device below this folder",
                    wanted.host
                )));
            }
        } else {
            let node = node(&metadata, inside);
            let node = node.ok_or_else(|| Error::new(format!("--device {} is not a device", wanted.host)))?;
            found.retain(|known: &ReadyDevice| known.node.path != node.path);
            found.push(ReadyDevice { node, access: access(&wanted.access) });
        }
    }
    Ok(found)
}

fn check_access(wanted: &DeviceSpec) -> Result<()> {
    let legal = |text: &str| text.bytes().all(|byte| b"rwm".contains(&byte)) && text.len() <= 3;
    if legal(&wanted.access) {
        return Ok(());
    }
    Err(Error::new(format!("--device {}: {:?} is not made of r, w and m", wanted.host, wanted.access)))
}

fn access(text: &str) -> String {
    if text.is_empty() { "rwm".to_owned() } else { text.to_owned() }
}

/// Every node below a folder, without following links out of it.
fn walk(
    folder: &Path,
    inside: &Path,
    wanted: &str,
    depth: usize,
    found: &mut Vec<ReadyDevice>,
) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Error::new(format!(
            "{}: folders of devices lie more than {MAX_DEPTH} deep",
            folder.display()
        )));
    }
    let entries = std::fs::read_dir(folder).context(|| folder.display().to_string())?;
    for entry in entries {
        let entry = entry.context(|| folder.display().to_string())?;
        let name = entry.file_name();
        if depth == 0 && folder == Path::new("/dev") && NOT_DEVICES.iter().any(|other| name == *other) {
            continue;
        }
        // What vanishes while the folder is read was unplugged.
        let Ok(metadata) = entry.metadata() else { continue };
        let inside = inside.join(&name);
        if metadata.is_dir() {
            walk(&entry.path(), &inside, wanted, depth + 1, found)?;
        } else if let Some(node) = node(&metadata, &inside) {
            found.push(ReadyDevice { node, access: access(wanted) });
        }
    }
    found.sort_by(|one, other| one.node.path.cmp(&other.node.path));
    Ok(())
}

fn node(metadata: &std::fs::Metadata, inside: &Path) -> Option<Device> {
    let kind = metadata.file_type();
    let kind = if kind.is_char_device() {
        "c"
    } else if kind.is_block_device() {
        "b"
    } else {
        return None;
    };
    Some(Device {
        path: inside.to_owned(),
        kind: kind.to_owned(),
        major: rustix::fs::major(metadata.rdev()).into(),
        minor: rustix::fs::minor(metadata.rdev()).into(),
        file_mode: Some(metadata.mode() & 0o7777),
        uid: Some(metadata.uid()),
        gid: Some(metadata.gid()),
    })
}

/// The numbers of the block devices that limits name.
pub fn block_devices(limits: &LimitsSpec) -> Result<BlockDevices> {
    let lists: [&[DeviceLimit]; 5] = [
        &limits.blkio_weight_device,
        &limits.device_read_bps,
        &limits.device_write_bps,
        &limits.device_read_iops,
        &limits.device_write_iops,
    ];
    let mut found = BlockDevices::new();
    for limit in lists.into_iter().flatten() {
        let metadata = std::fs::metadata(&limit.path).context(|| format!("limit of {}", limit.path))?;
        if !metadata.file_type().is_block_device() {
            return Err(Error::new(format!("limit of {}: it is not a block device", limit.path)));
        }
        let number = metadata.rdev();
        found.insert(limit.path.clone(), (rustix::fs::major(number), rustix::fs::minor(number)));
    }
    Ok(found)
}

/// The nodes to make and the rules of the filter. The sandbox adds the devices that every container has.
pub(super) fn rules(spec: &WorkloadSpec, ready: &[ReadyDevice]) -> Result<(Vec<Device>, Vec<DeviceRule>)> {
    let rule = |allow: bool, kind: &str, major, minor, access: &str| DeviceRule {
        allow,
        kind: kind.to_owned(),
        major,
        minor,
        access: access.to_owned(),
    };
    let nodes: Vec<Device> = ready.iter().map(|device| device.node.clone()).collect();
    if spec.privileged {
        return Ok((nodes, vec![rule(true, "a", None, None, "rwm")]));
    }
    let mut rules = vec![rule(false, "a", None, None, "rwm")];
    for device in ready {
        let node = &device.node;
        rules.push(rule(true, &node.kind, Some(node.major), Some(node.minor), &device.access));
    }
    for text in &spec.device_cgroup_rules {
        rules.push(parse_rule(text)?);
    }
    Ok((nodes, rules))
}

/// Parses `c 1:3 rwm`, with `*` for any number.
fn parse_rule(text: &str) -> Result<DeviceRule> {
    let bad = || {
        Error::new(format!("--device-cgroup-rule {text:?} is not of the form TYPE MAJOR:MINOR ACCESS"))
            .hint("as in \"c 42:* rmw\"; the type is a, b or c")
    };
    let mut words = text.split(' ');
    let (Some(kind), Some(numbers), Some(access), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(bad());
    };
    let number = |text: &str| match text {
        "*" => Some(None),
        digits => super::namespaces::strict_u32(digits)
            .filter(|_| !digits.is_empty())
            .map(|one| Some(i64::from(one))),
    };
    let (major, minor) = numbers.split_once(':').ok_or_else(bad)?;
    let (major, minor) = (number(major).ok_or_else(bad)?, number(minor).ok_or_else(bad)?);
    let legal = (1..=3).contains(&access.len()) && access.bytes().all(|byte| b"rwm".contains(&byte));
    if !matches!(kind, "a" | "b" | "c") || !legal {
        return Err(bad());
    }
    Ok(DeviceRule { allow: true, kind: kind.to_owned(), major, minor, access: access.to_owned() })
}

#[cfg(test)]
mod tests {
    use moat_model::workload::{DeviceSpec, WorkloadSpec};

    use super::{look_up, parse_rule, rules};

    fn spec(host: &str, access: &str) -> WorkloadSpec {
        let device =
            DeviceSpec { host: host.to_owned(), path: "/dev/x".to_owned(), access: access.to_owned() };
        WorkloadSpec { devices: vec![device], ..WorkloadSpec::default() }
    }

    #[test]
    fn a_node_of_the_host_gets_its_rule() {
        let spec = spec("/dev/null", "r");
        let found = look_up(&spec).unwrap();
        let (nodes, rules) = rules(&spec, &found).unwrap();
        assert_eq!((nodes[0].kind.as_str(), nodes[0].major, nodes[0].minor), ("c", 1, 3));
        assert!(!rules[0].allow);
        assert_eq!((rules[1].major, rules[1].minor, rules[1].access.as_str()), (Some(1), Some(3), "r"));
    }

    #[test]
    fn what_is_no_device_is_refused() {
        let sentence = |host: &str, access: &str| look_up(&spec(host, access)).unwrap_err().to_string();
        assert_eq!(sentence("/etc/passwd", "rwm"), "--device /etc/passwd is not a device");
        assert!(
            sentence("/dev/there-is-none", "rwm")
                .starts_with("--device /dev/there-is-none: there is no such")
        );
        assert_eq!(sentence("/dev/null", "rx"), "--device /dev/null: \"rx\" is not made of r, w and m");
    }

    #[test]
    fn privileged_means_every_node() {
        let found = look_up(&WorkloadSpec { privileged: true, ..WorkloadSpec::default() }).unwrap();
        assert!(found.iter().any(|device| device.node.path.ends_with("null")));
        assert!(!found.iter().any(|device| device.node.path.starts_with("/dev/pts")));
    }

    #[test]
    fn cgroup_rules() {
        let rule = parse_rule("c 42:* rm").unwrap();
        assert_eq!((rule.major, rule.minor, rule.access.as_str()), (Some(42), None, "rm"));
        for bad in ["", "c 1:3", "x 1:3 r", "c 1 r", "c 1:3 q", "c -1:3 r", "c 1:3 r w", "c :3 r"] {
            assert!(parse_rule(bad).is_err(), "{bad}");
        }
    }
}
