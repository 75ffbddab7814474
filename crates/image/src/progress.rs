//! What happens while an image comes or goes, as values.

use crate::{Digest, UnpackReport};

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// The image and its layers are known.
    Resolved {
        /// The digest of the manifest or index that the registry has under the name.
        digest: Digest,
        /// Its layers' digests, lowest first, and their compressed sizes.
        layers: Vec<(Digest, u64)>,
    },
    /// Something happened to one layer.
    Layer {
        /// The number of the layer, from the lowest.
        index: usize,
        /// Its digest: of the compressed archive where that is known, else of the archive itself.
        digest: Digest,
        /// What.
        state: LayerProgress,
    },
    /// Something is tried again.
    Retry {
        /// What failed, a sentence.
        reason: String,
        /// Milliseconds until then.
        after_ms: u64,
    },
    /// Something that the user should know, a sentence.
    Note(String),
}

/// Where a layer is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerProgress {
    /// It waits for its turn.
    Waiting,
    /// The store or the registry has it already.
    Exists,
    /// Bytes have moved; downloading and unpacking are one.
    Moving {
        /// So far.
        done_bytes: u64,
        /// Of so many; `None` where nobody knows.
        total_bytes: Option<u64>,
    },
    /// All its bytes are unpacked; it waits for the layers below.
    Unpacked(UnpackReport),
    /// It is in place.
    Done,
}

/// Who wants to know. It is called from several threads.
pub type Listener<'a> = &'a (dyn Fn(Progress) + Sync);

/// Nobody wants to know.
pub fn silent(_: Progress) {}
