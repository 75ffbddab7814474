//! The jail of a machine's monitor as the kernel shows it, not as it was asked for.

use std::collections::BTreeMap;
use std::path::Path;

use moat_linux::landlock;

use crate::{Context, Error, Result, Workload};

/// What holds whoever breaks out of a guest into its monitor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JailState {
    /// The monitor's user on the host.
    pub user: u32,
    /// Its group on the host.
    pub group: u32,
    /// The namespaces that are not those of this process, by kind: the number of each.
    pub namespaces: BTreeMap<String, u64>,
    /// Its control group.
    pub cgroup: String,
    /// What it may still do of what root may, in any way: its bounding set, inheritable, permitted and effective ones.
    pub capabilities: u64,
    /// Nothing that it executes gives it more.
    pub no_new_privileges: bool,
    /// How many filters each of its system calls passes; 0 where none is installed.
    pub seccomp_filters: u32,
    /// The version of landlock by which paths are out of its reach; 0 where the host has none.
    pub landlock_version: u32,
    /// What its root file system holds.
    pub root: Vec<String>,
}

/// Kinds as /proc names them.
const KINDS: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

impl Workload {
    /// The jail around the monitor of its machine; `None` where it is no microVM, or does not run.
    pub fn jail(&self) -> Result<Option<JailState>> {
        let state = self.state()?;
        if !self.is_microvm() || !state.is_running() {
            return Ok(None);
        }
        let jail = read(state.process.pid);
        // One that ends gives up its namespaces first.
        let holds = Path::new("/proc").join(state.process.pid.to_string()).join("ns/mnt");
        if !state.process.is_alive() || std::fs::read_link(holds).is_err() {
            return Ok(None);
        }
        jail.map(Some).context(|| format!("the jail of workload {}", self.name()))
    }
}

fn read(pid: i32) -> Result<JailState> {
    let proc = Path::new("/proc").join(pid.to_string());
    let text = |name: &str| {
        let path = proc.join(name);
        std::fs::read_to_string(&path).context(|| path.display().to_string())
    };
    let status = Fields(text("status")?);
    let sets = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
    let capabilities = sets.iter().try_fold(0, |all, name| Ok::<_, Error>(all | status.number(name, 16)?))?;
    Ok(JailState {
        user: status.number("Uid", 10)? as u32,
        group: status.number("Gid", 10)? as u32,
        namespaces: namespaces(&proc)?,
        cgroup: cgroup(&text("cgroup")?),
        capabilities,
        no_new_privileges: status.number("NoNewPrivs", 10)? == 1,
        seccomp_filters: status.number("Seccomp_filters", 10)? as u32,
        landlock_version: landlock::version(),
        root: crate::file::names_in(&proc.join("root"))?,
    })
}

/// Lines of a name and what it has.
struct Fields(String);

impl Fields {
    /// The first number of a line.
    fn number(&self, name: &str, radix: u32) -> Result<u64> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let word = line.and_then(|line| line.split_ascii_whitespace().next());
        word.and_then(|word| u64::from_str_radix(word, radix).ok())
            .ok_or_else(|| Error::new(format!("/proc shows no {name}")))
    }
}

fn namespaces(proc: &Path) -> Result<BTreeMap<String, u64>> {
    let mut found = BTreeMap::new();
    for kind in KINDS {
        let of = |process: &Path| {
            let path = process.join("ns").join(kind);
            std::fs::read_link(&path).context(|| path.display().to_string())
        };
        let (theirs, ours) = (of(proc)?, of(Path::new("/proc/self"))?);
        // As `net:[4026531840]`.
        let number = theirs.to_str().and_then(|text| text.split(['[', ']']).nth(1)?.parse().ok());
        if let (true, Some(number)) = (theirs != ours, number) {
            found.insert(kind.to_owned(), number);
        }
    }
    Ok(found)
}

/// That of version 2, where its controllers are.
fn cgroup(text: &str) -> String {
    let path = |line: &str| line.splitn(3, ':').nth(2).map(str::to_owned);
    let unified = text.lines().find(|line| line.starts_with("0::/") && *line != "0::/");
    unified.or(text.lines().next()).and_then(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_group_of_either_version() {
        assert_eq!(cgroup("0::/moat/a:b\n"), "/moat/a:b");
        assert_eq!(cgroup("4:memory:/moat/x\n0::/\n"), "/moat/x");
        assert_eq!(cgroup(""), "");
    }

    #[test]
    fn this_process_has_no_jail_of_its_own() {
        let own = read(std::process::id().cast_signed()).unwrap();
        assert!(own.namespaces.is_empty() && !own.cgroup.is_empty(), "{own:?}");
        assert_eq!(own.user, rustix::process::getuid().as_raw());
        assert!(own.root.iter().any(|name| name == "proc"), "{own:?}");
    }
}
