//! Images: references, the store, layers, and the forms in which images come and go.
//!
//! ```text
//! registry, archive, folder --(Source)--> assemble --> ingest (one pass per layer) --> Store
//! ```
//!
//! An image becomes a [`Image`] of the [`Store`]: its configuration, and its layers as folders that are ready to be
//! the lower ones of an overlay ([`Store::layer_paths`]). Who runs a workload of it [holds](Store::hold) it meanwhile.
//!
//! Everything that comes from outside passes one door and is a checked type behind it: [`Reference`], [`Digest`],
//! [`Document`], [`ImageConfig`], and the entries of a layer ([`LayerReader`]). Nothing here needs a daemon or an
//! asynchronous runtime: what moves bytes side by side are threads.

mod archive;
mod assemble;
mod config;
mod digest;
pub mod erofs;
mod error;
mod hello;
mod ingest;
mod layer;
mod manifest;
mod platform;
mod progress;
mod reference;
mod registry;
mod store;
mod stream;

pub use archive::{
    CommitSpec, ImportSpec, LoadSpec, TarWriter, commit, import, import_from, load, load_from, save,
    save_to_folder, write_root, write_upper,
};
pub use config::{HealthCheck, History, ImageConfig, RootFs, RunConfig};
pub use digest::Digest;
pub use error::{Context, Error, Kind, Result};
pub use hello::{hello, hello_environment, hello_program, is_built_in};
pub use layer::{
    Action, Entry, LayerLimits, LayerPath, LayerReader, Metadata, Ownership, TarEntry, TarReader,
    UnpackReport,
};
pub use manifest::{Descriptor, Document, Index, Manifest, media_type};
pub use moat_hello::facts;
pub use platform::Platform;
pub use progress::{LayerProgress, Listener, Progress, silent};
pub use reference::{DEFAULT_DOMAIN, DEFAULT_TAG, Reference};
pub use registry::{
    Credential, Credentials, PullSpec, PushSpec, RegistriesSpec, login, logout, lookup, pull, push,
};
pub use store::{
    DiskUsage, Finding, FindingKind, Hold, Image, ImageUsage, Layer, LayerHistory, Pruned, Removed, Store,
};
pub use tar::EntryType;
