//! Layers: from an archive to a folder that overlayfs can stack, and back.
//!
//! ```text
//! archive --Entries--> raw entries --LayerReader--> checked entries --Unpacker--> folder --complete--> lowerdir
//! ```
//!
//! Unpacking a layer needs nothing of the layers below it, so the layers of an image unpack side by side. What does
//! depend on them is little and comes last, in order: see [`complete`].

mod archive;
pub(crate) mod complete;
mod entry;
pub(crate) mod limits;
mod path;
mod pax;
pub(crate) mod tree;
pub(crate) mod unpack;

pub use archive::{Entries as TarReader, RawEntry as TarEntry};
pub use entry::{Action, Entry, LayerReader, Metadata};
pub use limits::LayerLimits;
pub use path::LayerPath;
pub use unpack::UnpackReport;

use crate::Error;

/// Whom the files of layers belong to, and by which attributes overlayfs knows opaque folders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// Owners as the layer says, devices, `trusted.overlay.*`: for root of the machine.
    Privileged,
    /// Owners as the layer says, within the ids of a user namespace; no devices; `user.overlay.*`.
    Mapped,
    /// Everything belongs to the caller: for a user with no ids but the own; `user.overlay.*`.
    Caller,
}

impl Ownership {
    /// What the calling process can do.
    ///
    /// An ordinary user with subordinate ids gets `Mapped` by entering a user namespace first.
    pub fn detect() -> Self {
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        if !rustix::process::geteuid().is_root() {
            return Self::Caller;
        }
        let lines: Vec<Vec<u64>> = map
            .lines()
            .map(|line| line.split_whitespace().filter_map(|field| field.parse().ok()).collect())
            .collect();
        let count: u64 = lines.iter().filter_map(|line| line.get(2)).sum();
        match lines.first().map(Vec::as_slice) {
            Some([0, 0, 4_294_967_295]) => Self::Privileged,
            _ if count > 1 => Self::Mapped,
            _ => Self::Caller,
        }
    }

    /// The prefix of overlayfs's own attributes.
    pub(crate) fn overlay_prefix(self) -> &'static str {
        match self {
            Self::Privileged => "trusted.overlay.",
            Self::Mapped | Self::Caller => "user.overlay.",
        }
    }

    /// Whether a file that `own` has made must be given to `wanted`.
    fn changes(self, wanted: (u32, u32), own: (u32, u32)) -> bool {
        self != Self::Caller && wanted != own
    }

    /// An owner that the user namespace does not map is the usual reason for EINVAL.
    fn explain(self, error: moat_linux::Error, metadata: &Metadata) -> Error {
        let unmapped = self == Self::Mapped && error.errno() == moat_linux::Errno::INVAL;
        let error = Error::from(error);
        if !unmapped {
            return error;
        }
        error.hint(format!(
            "the ids {}:{} are not among those of this user namespace; give the user a larger range in /etc/subuid \
             and /etc/subgid",
            metadata.uid, metadata.gid
        ))
    }
}
