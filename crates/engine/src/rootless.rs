//! The engine of an ordinary user.
//!
//! What takes root (owning the files of an image, mounting an overlay, making namespaces) an ordinary user may do
//! within a user namespace, whose id 0 is the user and whose other ids are the subordinate ranges of subuid(5). All
//! commands and monitors of one user are in *one* such namespace: only from within can a command reach the mounts and
//! namespaces of a workload that another command has started.
//!
//! Nothing keeps that namespace but who is in it. Each process that enters writes itself into the file `RUN/members`,
//! under a lock; whoever comes next joins the namespace of one that lives, and makes a new one when nobody does. So
//! no process waits in the background, and none is needed to be there first.
//!
//! Once inside, the program executes itself again: its memory then belongs to the namespace, and with it /proc/self.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use moat_linux::process::{self as sys, Clone3, Forked, namespace};
use moat_linux::{credentials, fs, net};
use moat_model::oci::IdMapping;
use rustix::fs::{FlockOperation, OFlags};

use crate::user::Identity;
use crate::workload::ProcessState;
use crate::{Context, Error, Result, Roots};

/// The file of the roots' run folder with the processes that are in the user's namespace: a line `PID START` for each.
const MEMBERS: &str = "members";

/// Whether this process is root only within a user namespace.
pub fn is_inside() -> bool {
    credentials::in_user_namespace().unwrap_or(false)
}

/// Whether an id exists in this process's user namespace; `map` is uid_map or gid_map of /proc/self.
pub(crate) fn is_mapped(map: &str, id: u32) -> Result<bool> {
    let text = fs::read_text(Path::new(map))?;
    let within = |line: &str| {
        let mut fields = line.split_ascii_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), _, Some(Ok(size))) = (fields.next(), fields.next(), fields.next()) else {
            return false;
        };
        (first..first.saturating_add(size)).contains(&id.into())
    };
    Ok(text.lines().any(within))
}

/// Refuses ids that the user's namespace has not.
pub(crate) fn check_identity(identity: &Identity) -> Result<()> {
    let hint = "`usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER` gives a user more ids; \
                it holds when none of the user's workloads run any more";
    if !is_mapped("/proc/self/uid_map", identity.uid)? {
        return Err(Error::invalid(format!(
            "user {} is none of the ids that this user may map",
            identity.uid
        ))
        .hint(hint));
    }
    for gid in std::iter::once(&identity.gid).chain(&identity.groups) {
        if !is_mapped("/proc/self/gid_map", *gid)? {
            return Err(
                Error::invalid(format!("group {gid} is none of the ids that this user may map")).hint(hint)
            );
        }
    }
    Ok(())
}

/// Makes the process of an ordinary user root within the user's namespace; does nothing in a process that is root.
///
/// It executes the program again with the same arguments and environment, so it comes before anything that is not to
/// be done twice. The process must have a single thread. Errors: the host lets ordinary users make no namespaces; the
/// roots can not be made.
pub fn enter(roots: &Roots) -> Result<()> {
    if credentials::effective_user() == 0 {
        return Ok(());
    }
    let what = || "become root within a user namespace";
    roots.prepare()?;
    let members = Members::open(roots)?;
    match members.living().iter().find_map(|member| namespace_of(*member)) {
        Some(found) => sys::join(found.as_fd(), namespace::USER).context(what)?,
        None => make().context(what)?,
    }
    // So that what this process mounts is its own.
    sys::unshare(namespace::MOUNT).context(what)?;
    // The change of privileges has closed /proc/self to whoever has not those of the host.
    sys::set_dumpable(true).context(what)?;
    members.add(ProcessState::of(std::process::id().cast_signed()))?;
    drop(members);
    // What was written belongs before what the program writes then.
    let _ = std::io::stdout().flush();
    Err(sys::execute_again(None, c"/proc/self/exe", None).into())
}

/// Notes that a process is in the user's namespace: the monitor of a workload, which stays longer than who started it,
/// and the workload's own, which may stay longer than the monitor.
pub(crate) fn note(roots: &Roots, process: ProcessState) -> Result<()> {
    Members::open(roots)?.add(process)
}

/// The list of who is in the namespace, locked.
struct Members {
    file: File,
    text: String,
}

impl Members {
    fn open(roots: &Roots) -> Result<Self> {
        let path = roots.run.join(MEMBERS);
        let what = || path.display().to_string();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).context(what)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)
            .map_err(std::io::Error::from)
            .context(what)?;
        let mut text = String::new();
        file.read_to_string(&mut text).context(what)?;
        Ok(Self { file, text })
    }

    /// Those who live. What a death has cut off is nobody.
    fn living(&self) -> Vec<ProcessState> {
        let parse = |line: &str| {
            let (pid, start) = line.split_once(' ')?;
            Some(ProcessState { pid: pid.parse().ok()?, start_ticks: start.parse().ok()? })
        };
        self.text.lines().filter_map(parse).filter(|member| member.is_alive()).collect()
    }

    /// Adds a process, and drops who has ended.
    fn add(&self, process: ProcessState) -> Result<()> {
        use std::os::unix::fs::FileExt;
        let mut all = self.living();
        if !all.contains(&process) {
            all.push(process);
        }
        let text: String =
            all.iter().map(|member| format!("{} {}\n", member.pid, member.start_ticks)).collect();
        let written = self.file.write_all_at(text.as_bytes(), 0);
        written.and_then(|()| self.file.set_len(text.len() as u64)).context(|| MEMBERS)
    }
}

/// The user namespace of a process, unless it is this process's own.
fn namespace_of(member: ProcessState) -> Option<OwnedFd> {
    let theirs = format!("/proc/{}/ns/user", member.pid);
    let name = |path: &str| std::fs::read_link(path).ok();
    if name(&theirs)? == name("/proc/self/ns/user")? {
        return None;
    }
    let opened = fs::open(Path::new(&theirs), OFlags::RDONLY).ok()?;
    // It may have ended meanwhile, and another have got its number.
    member.is_alive().then_some(opened)
}

/// Makes a user namespace for this process. Its ids are mapped by a child that stays outside.
fn make() -> Result<()> {
    let maps = Maps::of_user()?;
    let (ours, theirs) = net::packet_pair()?;
    let own = std::process::id().cast_signed();
    match sys::fork(Clone3::default())? {
        Forked::Child => {
            drop(ours);
            sys::exit_now(i32::from(map_from_outside(&theirs, own, &maps).is_err()))
        }
        Forked::Parent(child, _) => {
            drop(theirs);
            let mapped = be_mapped(&ours);
            drop(ours);
            sys::wait(child, true)?;
            mapped
        }
    }
}

fn be_mapped(child: &OwnedFd) -> Result<()> {
    let hint = "`moat system check` says what of the host is in the way";
    sys::unshare(namespace::USER).map_err(|error| Error::from(error).hint(hint))?;
    // newuidmap(1) looks at who owns /proc/PID.
    sys::set_dumpable(true)?;
    net::send(child.as_fd(), b"go", &[])?;
    let mut answer = [0; 4096];
    let (length, _) = net::receive(child.as_fd(), &mut answer)?;
    match String::from_utf8_lossy(answer.get(..length).unwrap_or_default()).as_ref() {
        "done" => Ok(()),
        "" => Err(Error::new("the process that maps ids was killed")),
        failed => Err(Error::new(failed)),
    }
}

fn map_from_outside(parent: &OwnedFd, pid: i32, maps: &Maps) -> Result<()> {
    let (length, _) = net::receive(parent.as_fd(), &mut [0; 2])?;
    if length == 0 {
        return Ok(());
    }
    let mapped = moat_sandbox::map_ids(pid, &maps.uids, &maps.gids, maps.by_helpers, !maps.by_helpers);
    let answer = mapped.err().map_or("done".to_owned(), |error| error.to_string());
    Ok(net::send(parent.as_fd(), answer.as_bytes(), &[])?)
}

/// Which ids a user may map.
#[derive(Debug, PartialEq, Eq)]
struct Maps {
    uids: Vec<IdMapping>,
    gids: Vec<IdMapping>,
    /// Ranges are mapped by newuidmap(1); the user alone needs nobody.
    by_helpers: bool,
}

impl Maps {
    fn of_user() -> Result<Self> {
        let (uid, gid) = (credentials::effective_user(), credentials::effective_group());
        let read = |path: &str| match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            other => other.context(|| path),
        };
        let passwd = read("/etc/passwd")?;
        let name = passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, _, number) = (fields.next()?, fields.next()?, fields.next()?);
            (number.parse() == Ok(uid)).then_some(name)
        });
        Ok(Self::new((uid, gid), name, &read("/etc/subuid")?, &read("/etc/subgid")?))
    }

    /// The user as 0, and behind it the ranges that both files grant; the user alone where one of them grants none.
    fn new((uid, gid): (u32, u32), name: Option<&str>, subuid: &str, subgid: &str) -> Self {
        let number = uid.to_string();
        let granted = |text: &str, own: u32| {
            let mut maps = vec![IdMapping { container_id: 0, host_id: own, size: 1 }];
            let mut next = 1;
            for line in text.lines() {
                let fields: Vec<&str> = line.split(':').collect();
                let &[owner, first, size] = fields.as_slice() else { continue };
                let (Ok(host_id), Ok(size)) = (first.parse::<u32>(), size.parse::<u32>()) else { continue };
                let ours = Some(owner) == name || owner == number;
                let fits = host_id.checked_add(size).is_some() && u32::checked_add(next, size).is_some();
                if ours && fits && size > 0 {
                    maps.push(IdMapping { container_id: next, host_id, size });
                    next += size;
                }
            }
            maps
        };
        let (mut uids, mut gids) = (granted(subuid, uid), granted(subgid, gid));
        let by_helpers = uids.len() > 1 && gids.len() > 1;
        if !by_helpers {
            uids.truncate(1);
            gids.truncate(1);
        }
        Self { uids, gids, by_helpers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(container_id: u32, host_id: u32, size: u32) -> IdMapping {
        IdMapping { container_id, host_id, size }
    }

    #[test]
    fn ranges_follow_the_user() {
        let subuid = "other:1:5\nme:100000:65536\n# me\nme:x:3\n1000:300000:10\nme:4294967295:2\n";
        let maps = Maps::new((1000, 1001), Some("me"), subuid, "me:200000:65536");
        assert_eq!(maps.uids, [map(0, 1000, 1), map(1, 100_000, 65536), map(65537, 300_000, 10)]);
        assert_eq!(maps.gids, [map(0, 1001, 1), map(1, 200_000, 65536)]);
        assert!(maps.by_helpers);
    }

    #[test]
    fn a_user_without_ranges_is_alone() {
        for (subuid, subgid) in [("", ""), ("me:100000:65536", ""), ("", "me:1:2"), ("you:1:2", "you:1:2")] {
            let maps = Maps::new((7, 8), Some("me"), subuid, subgid);
            assert_eq!((maps.uids, maps.gids), (vec![map(0, 7, 1)], vec![map(0, 8, 1)]));
            assert!(!maps.by_helpers);
        }
    }
}
