//! Another name for a workload.

use super::{Workload, name};
use crate::events::Action;
use crate::{Error, Result};

impl Workload {
    /// Gives it another name.
    ///
    /// The new one is claimed, then written down, then the old one is given back: whatever stops this in between, one
    /// of the two leads to the workload. Errors: the name is taken.
    pub fn rename(&mut self, new: &str) -> Result<()> {
        let _lock = self.folder().lock()?;
        let Some(mut record) = self.folder().record()? else {
            return Err(Error::not_found(format!("workload {} does not exist any more", self.id().short())));
        };
        let old = record.name.clone();
        if old == new {
            return Err(Error::conflict(format!(
                "workload {} has the name {new:?} already",
                self.id().short()
            )));
        }
        let roots = self.engine().roots();
        name::claim(roots, new, self.id())?;
        new.clone_into(&mut record.name);
        if let Err(error) = self.folder().save_record(&record) {
            // The first error is what the caller has to know; `system check` gives the name back.
            let _ = name::release(roots, new, self.id());
            return Err(error);
        }
        name::release(roots, &old, self.id())?;
        self.announce_name(&record)?;
        self.record = record;
        self.tell(Action::Rename, &[("oldName", old)])
    }
}
