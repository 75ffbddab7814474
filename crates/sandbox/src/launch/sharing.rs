//! Building by an init that works in the runtime's memory while the runtime sleeps (`linux::vfork`).
//!
//! A fork is dear: the page tables are copied, and then most pages that either process writes to. It is worth that
//! where the runtime has something to do for init, or has to end before the program runs. Where it has not, init
//! shares its memory: it finds the plan there and leaves its error there, and the kernel wakes the runtime when the
//! program runs or init has ended. What the runtime would do beside init it does before, or init does it.
//!
//! The memory is out of a container's reach as a copy would be: the process can not be dumped or traced by anybody
//! without privileges on the host.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use moat_linux::process::{self as sys, Clone3, namespace};
use moat_linux::{credentials, vfork};

use super::{Builder, Building, Built, Event, Order, join_pid_namespace};
use crate::apply::{Init, Outcome, Sharing};
use crate::step::{Action, Place, Step};
use crate::{Context, Error, Result};

/// What the kernel refuses to processes that share memory, or what makes a traced one a danger.
const ALONE: u64 = namespace::USER | namespace::TIME;

/// What building needs of the kernel's memory, and much more. Below it init may be killed for want of memory, and
/// the kernel kills whoever shares the memory of what it kills: a runtime that has its own can tell what happened.
const ENOUGH_BYTES: u64 = 32 << 20;

/// Whether init can build without the runtime, and in its memory.
pub(super) fn possible(order: &Order<'_>) -> bool {
    let fits = |step: &Step| match &step.action {
        // The runtime has to answer, or to take something from init while that is at work.
        Action::Hooks { .. }
        | Action::AwaitHooks
        | Action::MapIds { .. }
        | Action::OpenSource { .. }
        | Action::MoveNetDevice { .. }
        | Action::Terminal(_) => false,
        Action::Seccomp(filter) => !filter.notifies,
        // It stays in the memory for good.
        Action::StayAsInit => false,
        Action::BecomeRoot { .. } | Action::TimeOffsets(_) => false,
        Action::Cgroup(operation) => operation.memory_bound().is_none_or(|bytes| bytes >= ENOUGH_BYTES),
        Action::Clone { namespaces, joins } => joins.is_empty() && namespaces & ALONE == 0,
        Action::Unshare { namespaces } | Action::JoinContainer { namespaces } => namespaces & ALONE == 0,
        Action::JoinNamespace(join) => join.namespace & ALONE == 0,
        _ => true,
    };
    let privileged = credentials::effective_user() == 0;
    vfork::SUPPORTED && privileged && order.fifos.is_none() && order.steps.iter().all(fits)
}

impl Builder<'_, '_> {
    /// Makes the groups, and then has init do all else. Returns when the program runs.
    pub(super) fn build_sharing(mut self) -> Result<Built> {
        let steps = self.order.steps;
        let groups = steps.iter().filter(|step| matches!(step.action, Action::Cgroup(_)));
        groups.map(|step| &step.action).try_for_each(|action| self.step(action))?;
        let clone = steps.iter().find_map(|step| match &step.action {
            Action::Clone { namespaces, .. } => Some((&step.action, *namespaces)),
            _ => None,
        });
        let (action, namespaces) = clone.ok_or_else(|| Error::new("the plan starts no process"))?;

        let group = self.order.cgroup.open_unified()?;
        let runtime = sys::pidfd(rustix::process::getpid().as_raw_nonzero().get())?;
        if !self.order.dumpable {
            sys::set_dumpable(false)?;
        }
        if let Some((container, namespaces)) = &self.order.container {
            join_pid_namespace(container, *namespaces)?;
        }
        let start = Instant::now();
        let (mut began, mut outcome) = (start, Outcome::default());
        let options = Clone3 { namespaces, sibling: false, cgroup: group.as_ref().map(AsFd::as_fd) };
        let (pid, pidfd) = vfork::run_sharing(options, &mut |pid| {
            began = Instant::now();
            if let Err(error) = self.prepare_init(pid).and_then(|()| self.init(runtime.as_fd(), &mut outcome))
            {
                outcome.failure = Some(error);
            }
        })
        .context(|| "start the container's first process")?;
        self.process = Some(Building { pid, pidfd, done: false });
        if let Some(error) = outcome.failure {
            return Err(error);
        }
        if !outcome.executes {
            return Err(self.death());
        }
        self.recorder.performed(start, began - start, || (action.to_string(), action.by_hand()));
        (self.notify)(Event::Ready(pid))?;
        self.built(began)
    }

    /// In the child: what the runtime does to init from outside where it has its own memory. The container is
    /// known before a limit can be in the way of that.
    fn prepare_init(&mut self, pid: i32) -> Result<()> {
        (self.notify)(Event::Building(pid))?;
        for step in self.order.steps.iter().filter(|step| step.place == Place::Runtime) {
            match &step.action {
                Action::Limit { resource, name, soft, hard } => {
                    credentials::set_limit(0, *resource, *soft, *hard)
                        .context(|| format!("process.rlimits {name}"))?;
                }
                Action::OomScoreAdjust { value, best_effort } => {
                    super::adjust_oom_score(pid, *value, *best_effort)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// In the child: the steps of init. Its descriptors are copies that the runtime never sees.
    fn init(&self, runtime: BorrowedFd<'_>, outcome: &mut Outcome) -> Result<()> {
        let container =
            self.order.container.as_ref().map(|(container, _)| container.try_clone()).transpose()?;
        let sharing = Sharing { runtime, cgroup: self.order.cgroup, outcome };
        let mut init = Init { container, sharing: Some(sharing), ..self.bare_init() };
        Err(init.build(self.order.steps))
    }
}
