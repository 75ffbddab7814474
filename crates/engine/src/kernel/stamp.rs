//! The digest of a program, looked up by what the file is: to read and hash the agent would take longer than many a
//! start.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use moat_image::Digest;
use serde::{Deserialize, Serialize};

use crate::file::{self, Lasting};
use crate::{Context, Result};

/// What is kept beside the kernel.
const NAME: &str = "agent.json";
/// A file that was changed so short a while ago may be changed again without being told from what it was.
const SETTLED_S: i64 = 2;

/// A file, as its inode tells it. Whoever changes it can not choose the time of the change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    device: u64,
    inode: u64,
    size_bytes: u64,
    changed_s: i64,
    changed_ns: i64,
}

#[derive(Serialize, Deserialize)]
struct Known {
    stamp: Stamp,
    digest: Digest,
}

/// The digest of the program at `path`, whose stamp is kept in `folder`.
pub(super) fn digest(path: &Path, folder: &Path) -> Result<Digest> {
    let what = || path.display().to_string();
    let found = path.metadata().context(what)?;
    let stamp = Stamp {
        device: found.dev(),
        inode: found.ino(),
        size_bytes: found.size(),
        changed_s: found.ctime(),
        changed_ns: found.ctime_nsec(),
    };
    let place = folder.join(NAME);
    // One that can not be read is one that is not there.
    if let Ok(Some(known)) = file::read::<Known>(&place)
        && known.stamp == stamp
    {
        return Ok(known.digest);
    }
    let digest = Digest::of(&std::fs::read(path).context(what)?);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    if stamp.changed_s + SETTLED_S < now.as_secs().cast_signed() {
        file::write(&place, &Known { stamp, digest }, Lasting::Renamed)?;
    }
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_stays_is_read_once() {
        let folder = tempfile::tempdir().unwrap();
        let program = std::path::PathBuf::from("/bin/sh");
        let first = digest(&program, folder.path()).unwrap();
        assert_eq!(first, Digest::of(&std::fs::read(&program).unwrap()));
        let place = folder.path().join(NAME);
        let mut known: Known = file::read(&place).unwrap().unwrap();
        known.digest = Digest::of(b"another");
        file::write(&place, &known, Lasting::Renamed).unwrap();
        assert_eq!(digest(&program, folder.path()).unwrap(), known.digest, "it was not read again");
        known.stamp.inode += 1;
        file::write(&place, &known, Lasting::Renamed).unwrap();
        assert_eq!(digest(&program, folder.path()).unwrap(), first, "another file is read");
    }

    #[test]
    fn what_was_changed_just_now_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        std::fs::write(&program, "new").unwrap();
        assert_eq!(digest(&program, folder.path()).unwrap(), Digest::of(b"new"));
        assert!(!folder.path().join(NAME).exists());
    }
}
