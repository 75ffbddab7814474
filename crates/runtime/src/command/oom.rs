//! What the kernel killed for lack of memory, as `state` and `events` tell it.

use moat_sandbox::cgroup;
use serde::Serialize;

/// A process that was killed.
#[derive(Serialize)]
pub(crate) struct Victim {
    pid: i32,
    name: String,
}

impl From<&cgroup::Victim> for Victim {
    fn from(victim: &cgroup::Victim) -> Self {
        Self { pid: victim.pid, name: victim.name.clone() }
    }
}

/// The `oom` of a state.
#[derive(Serialize)]
pub(crate) struct Kills {
    cgroup: String,
    kills: u64,
    victims: Vec<Victim>,
}

impl Kills {
    /// Nothing where nothing was killed.
    pub(crate) fn new(oom: &cgroup::Oom) -> Option<Self> {
        (oom.kills > 0).then(|| Self {
            cgroup: oom.group.clone(),
            kills: oom.kills,
            victims: oom.victims.iter().map(Victim::from).collect(),
        })
    }
}
