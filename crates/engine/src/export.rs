//! A workload's root file system as an archive, and as an image.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use moat_image::{CommitSpec, Image, Listener, write_root};

use crate::view::View;
use crate::{Context, Result, Workload};

impl Workload {
    /// Writes its root file system, layers and changes merged, as a tar archive. What is mounted is left out but for the
    /// folders that it is mounted on.
    pub fn export(&self, to: impl Write) -> Result<()> {
        let view = View::open(self, false)?;
        let root = PathBuf::from(format!("/proc/self/fd/{}", view.root().as_raw_fd()));
        let ownership = self.engine().images().ownership();
        let what = || format!("export workload {}", self.name());
        write_root(&root, ownership, to, &|_| false).context(what)
    }

    /// Makes an image of its image and what it has changed. It is paused meanwhile if `pause` says so and it runs.
    ///
    /// What the engine made for mounts is no part of the image.
    pub fn commit(&self, spec: CommitSpec, pause: bool, progress: Listener<'_>) -> Result<Image> {
        self.refuse_microvm("can not commit")?;
        let what = || format!("commit workload {}", self.name());
        let paused = pause && self.state()?.status == moat_model::workload::Status::Running;
        if paused {
            self.pause().context(what)?;
        }
        let places = self.mount_places()?;
        let left_out = |path: &Path| {
            let path = Path::new("/").join(path);
            places.contains(&path)
        };
        let upper = self.folder().upper();
        let store = self.engine().images();
        let image = self
            .image()
            .and_then(|base| Ok(moat_image::commit(store, base, &upper, &left_out, spec, progress)?));
        if paused {
            self.unpause().context(what)?;
        }
        image.context(what)
    }
}
