//! Making a workload.
//!
//! The folder first, then the hold on the image and the name, and `spec.json` last: before that, whatever stops the
//! engine leaves something that nobody takes for a workload.

use moat_model::workload::{Isolation, WorkloadSpec};

use super::folder::Lock;
use super::{Folder, Workload, WorkloadId, WorkloadRecord, name};
use crate::events::Action;
use crate::launch::tell;
use crate::volume;
use crate::{Context, Engine, Error, Result, Timestamp};

impl Engine {
    /// Makes a workload from an image that is at hand.
    ///
    /// Errors: there is no such image; the name is taken; the wish can not be fulfilled. Nothing is left behind.
    pub fn create(&self, spec: WorkloadSpec) -> Result<Workload> {
        let workload = self.create_locked(spec)?.0;
        Ok(workload)
    }

    /// As [`Engine::create`]; nobody else can change the workload as long as the lock is held.
    pub(crate) fn create_locked(&self, spec: WorkloadSpec) -> Result<(Workload, Lock)> {
        check_wish(&spec)?;
        let image = self.images().find(&spec.image)?;
        check_platform(&spec, &image)?;
        let id = WorkloadId::random()?;
        let folder = Folder::new(self.roots(), id);
        let record = WorkloadRecord {
            id: folder.id.to_string(),
            name: spec.name.clone().unwrap_or_default(),
            created: Timestamp::now(),
            image: image.id.to_string(),
            spec,
        };
        let lock = folder.make()?;
        let mut workload = Workload::new(self, folder, record);
        match self.furnish(&mut workload, &image) {
            Ok(()) => {
                workload.remember_image(image);
                tell(self, &workload.record, Action::Create, &[])?;
                Ok((workload, lock))
            }
            Err(error) => {
                // The first error is what the caller has to know; `system check` mends what this leaves.
                let _ = super::remove::remove_files(self, &workload.folder, &workload.record, false);
                Err(error)
            }
        }
    }

    fn furnish(&self, workload: &mut Workload, image: &moat_image::Image) -> Result<()> {
        let folder = &workload.folder;
        self.images().hold(image, folder.id.as_str())?;
        for path in [folder.upper(), folder.work()] {
            crate::roots::claim_folder(&path).context(|| format!("make {}", path.display()))?;
        }
        // The root of a workload is what everybody in it may enter.
        let open = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
        std::fs::set_permissions(folder.upper(), open).context(|| "the upper directory")?;
        if workload.record.name.is_empty() {
            workload.record.name = name::claim_any(self.roots(), &folder.id)?;
        } else {
            name::claim(self.roots(), &workload.record.name, &folder.id)?;
        }
        let mut image = image.config.config.clone();
        if workload.record.spec.isolation == Isolation::Microvm {
            // Its disk is its own already: what the image wants to be a volume is a folder there.
            image.volumes.clear();
        }
        let others = |name: &str| self.find(name)?.mounts();
        let mounts =
            volume::resolve(&self.volumes(), folder.id.as_str(), &workload.record.spec, &image, &others)?;
        let saved = if mounts.is_empty() { Ok(()) } else { folder.save_mounts(&mounts) };
        let saved = saved.and_then(|()| folder.save_record(&workload.record));
        if saved.is_err() {
            // The first error is what the caller has to know; `system check` mends what this leaves.
            let _ = self.volumes().release(&mounts, folder.id.as_str(), true);
        }
        saved
    }
}

/// An image that is at hand may be for another machine than was asked for.
fn check_platform(spec: &WorkloadSpec, image: &moat_image::Image) -> Result<()> {
    let Some(text) = &spec.platform else { return Ok(()) };
    let wanted: moat_image::Platform = text.parse()?;
    let found = image.config.platform();
    if wanted.accepts(&found) {
        return Ok(());
    }
    Err(Error::invalid(format!("image {} is for {found}, not for {wanted}", spec.image)))
}

/// Refuses what no start could give.
pub(crate) fn check_wish(spec: &WorkloadSpec) -> Result<()> {
    if spec.isolation == Isolation::Microvm {
        crate::isolation::check_microvm(spec)?;
    }
    if spec.auto_remove && spec.restart != moat_model::workload::RestartPolicy::No {
        return Err(Error::invalid("a workload that is removed when it has ended can not be started again")
            .hint("leave out --rm or --restart"));
    }
    if spec.root_bytes.is_some() && spec.isolation != Isolation::Microvm {
        return Err(Error::invalid("a quota of the writable layer is not supported yet"));
    }
    if let Some(wanted) = spec.userns.as_deref().filter(|wanted| !matches!(*wanted, "" | "host")) {
        return Err(Error::invalid(format!(
            "--userns {wanted}: a user namespace of the workload's own is not supported yet"
        )));
    }
    if let Some(name) = &spec.name {
        super::check_name(name)?;
    }
    crate::network::check(spec)
}
