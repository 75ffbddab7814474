//! Images in local forms: archives of `docker save`, OCI layouts, and bare root file systems.

mod export;
mod import;
mod layout;
mod load;
mod save;
mod write;

pub use export::{write_root, write_upper};
pub use import::{CommitSpec, ImportSpec, commit, import, import_from};
pub use load::{LoadSpec, load, load_from};
pub use save::{save, save_to_folder};
pub use write::TarWriter;
