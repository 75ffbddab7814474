//! A configuration for the host as one for the sandbox in a guest: the same walls hold there, too. What only the host
//! has is taken out of it, and the files that the host made are sent along.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use moat_model::agent::{FILES, FileSpec};
use moat_model::oci::{self, NamespaceKind};
use rustix::fs::OFlags;

use crate::{Context, Error, Result};

/// All files together. They go in one frame, in which three bytes take four.
const MAX_FILES_BYTES: u64 = 2 << 20;

/// The network of the guest's kernel, which the agent sets up. Nobody but the workload lives there.
const NETWORK: &str = "/proc/1/ns/net";

/// Takes out of the configuration what is the host's, and gives the files to send along.
///
/// Errors: it mounts a folder of the host.
pub(super) fn for_guest(config: &oci::Spec) -> Result<(oci::Spec, Vec<FileSpec>)> {
    let mut guest = config.clone();
    guest.hooks = None;
    if let Some(process) = &mut guest.process {
        process.apparmor_profile.clear();
        process.selinux_label.clear();
    }
    if let Some(linux) = &mut guest.linux {
        linux.mount_label.clear();
        // Those of the host have other numbers there.
        linux.devices.clear();
        let network = linux.namespaces.iter_mut().filter(|one| one.kind == NamespaceKind::Network);
        network.for_each(|one| one.path = Some(NETWORK.into()));
    }
    let mut files = Vec::new();
    let mut left = MAX_FILES_BYTES;
    for mount in &mut guest.mounts {
        let bound =
            mount.kind == "bind" || mount.options.iter().any(|option| option == "bind" || option == "rbind");
        if let Some(source) = mount.source.clone().filter(|_| bound) {
            let name = format!("{}-file", files.len());
            files.push(
                copy(&source, name.clone(), &mut left)
                    .context(|| format!("mount {}", mount.destination.display()))?,
            );
            mount.source = Some(Path::new(FILES).join(name));
        }
    }
    Ok((guest, files))
}

fn copy(source: &Path, name: String, left: &mut u64) -> Result<FileSpec> {
    let what = || source.display().to_string();
    let mut file = File::from(moat_linux::fs::open(source, OFlags::RDONLY | OFlags::NONBLOCK).context(what)?);
    let found = file.metadata().context(what)?;
    if !found.is_file() {
        return Err(super::check::no_folders()).context(what);
    }
    let mut content = Vec::new();
    file.by_ref().take(*left + 1).read_to_end(&mut content).context(what)?;
    *left = left.checked_sub(content.len() as u64).ok_or_else(|| {
        Error::invalid(format!("the files for the guest are larger than {MAX_FILES_BYTES} bytes together"))
    })?;
    let mode = std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o777;
    Ok(FileSpec { name, content, mode })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(mount: oci::Mount) -> oci::Spec {
        let namespace = |kind| oci::Namespace { kind, path: None };
        let linux = oci::Linux {
            devices: vec![oci::Device::default()],
            namespaces: vec![namespace(NamespaceKind::Pid), namespace(NamespaceKind::Network)],
            ..oci::Linux::default()
        };
        let process = oci::Process { apparmor_profile: "p".to_owned(), ..oci::Process::default() };
        oci::Spec {
            hostname: "h".to_owned(),
            mounts: vec![mount],
            linux: Some(linux),
            process: Some(process),
            ..oci::Spec::default()
        }
    }

    #[test]
    fn files_are_sent_and_folders_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts");
        std::fs::write(&path, "text").unwrap();
        let mount = |source: &Path| oci::Mount {
            destination: "/etc/hosts".into(),
            kind: "bind".to_owned(),
            source: Some(source.to_owned()),
            ..oci::Mount::default()
        };
        let (guest, files) = for_guest(&with(mount(&path))).unwrap();
        assert_eq!(guest.mounts[0].source.as_deref(), Some(Path::new("/run/moat/files/0-file")));
        assert_eq!((files[0].name.as_str(), files[0].content.as_slice()), ("0-file", &b"text"[..]));
        assert_eq!(guest.hostname, "h");
        let linux = guest.linux.unwrap();
        assert!(linux.devices.is_empty() && guest.process.unwrap().apparmor_profile.is_empty());
        let paths = linux.namespaces.iter().map(|one| one.path.as_deref());
        assert_eq!(paths.collect::<Vec<_>>(), [None, Some(Path::new(NETWORK))]);
        let error = for_guest(&with(mount(folder.path()))).unwrap_err().to_string();
        assert!(error.starts_with("mount /etc/hosts: ") && error.contains("folders of the host"), "{error}");
        std::fs::write(&path, vec![0; 3 << 20]).unwrap();
        assert!(for_guest(&with(mount(&path))).unwrap_err().to_string().contains("larger than"));
    }
}
