//! `pause` and `resume`.

use moat_sandbox::{Result, change};

use super::{Session, container_id};
use crate::cli::Id;

pub(crate) fn pause(session: &Session<'_>, args: &Id) -> Result<u8> {
    change::pause(&session.store, &container_id(&args.id)?)?;
    Ok(0)
}

pub(crate) fn resume(session: &Session<'_>, args: &Id) -> Result<u8> {
    change::resume(&session.store, &container_id(&args.id)?)?;
    Ok(0)
}
