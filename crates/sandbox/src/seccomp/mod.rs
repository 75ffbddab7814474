//! The system call filter: the specification's language, compiled to classic BPF.
//!
//! [`compile`] is pure: a configuration goes in, a program comes out. [`Filter::install`] is the one
//! system call that puts it in force, for ever, for this process and all that it starts. [`evaluate`]
//! says what a program does to a call, and [`decide`] says the same from the rules alone; the tests and the
//! fuzzer hold one against the other.
//!
//! Where the specification is silent Moat does as runc and libseccomp do, because profiles count on it:
//! names that are unknown are left out; a rule that repeats the default action says nothing; conditions
//! that name one argument twice are alternatives; a rule without conditions stands above those that have
//! some; calls that are newer than everything that the profile names get ENOSYS, so that programs fall
//! back to an older call; calls of an architecture that is not listed kill the thread; on ABIs that have
//! socketcall and ipc a rule about a call holds for both ways to make it. One thing is simpler: of several
//! conditional rules that hold, the first is taken (libseccomp sorts them, or refuses).

mod arch;
mod bpf;
mod compile;
mod decide;
mod notify;
mod profile;
mod rules;
mod table;
#[cfg(test)]
mod tests;

use std::fmt;
use std::os::fd::OwnedFd;

use moat_linux::seccomp::{Flags, Instruction};
use moat_model::oci::Seccomp;

use crate::Result;

pub use bpf::{SeccompData, evaluate};
pub use decide::decide;
pub use notify::hand_over;
pub use profile::default_profile;
pub use rules::{ACTIONS, FLAGS, OPERATORS};

/// A compiled filter, ready to be installed.
#[derive(Clone, Debug)]
pub struct Filter {
    /// The program.
    pub program: Vec<Instruction>,
    /// The flags that it is installed with.
    pub flags: Flags,
    /// Whether a rule asks an agent, so that installing gives a listener.
    pub notifies: bool,
    /// The agent's socket.
    pub listener_path: String,
    /// Opaque text for the agent.
    pub listener_metadata: String,
    /// Names in the configuration that are no system calls; they are left out.
    pub unknown: Vec<String>,
}

/// Compiles a configuration. It is checked whole, and no input makes this panic.
pub fn compile(config: &Seccomp) -> Result<Filter> {
    let policy = rules::Policy::new(config)?;
    let program = compile::program(&policy)?;
    Ok(Filter {
        program,
        flags: policy.flags,
        notifies: policy.notifies,
        listener_path: config.listener_path.clone(),
        listener_metadata: config.listener_metadata.clone(),
        unknown: policy.unknown,
    })
}

impl Filter {
    /// Installs the filter; gives the listener if a rule asks an agent.
    ///
    /// The thread needs no_new_privs or CAP_SYS_ADMIN, and must be the only one of its process.
    pub fn install(&self) -> Result<Option<OwnedFd>> {
        Ok(moat_linux::seccomp::install(&self.program, self.flags)?)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bpf::Listing(&self.program).fmt(f)
    }
}

/// The names of the architectures that a configuration can list.
pub fn architectures() -> impl Iterator<Item = &'static str> {
    arch::ARCHES.iter().map(|arch| arch.name)
}

/// The names of [`FLAGS`] that the running kernel knows.
pub fn supported_flags() -> Vec<&'static str> {
    let known = FLAGS.iter().filter(|(_, flags)| moat_linux::seccomp::flags_available(*flags));
    known.map(|(name, _)| *name).collect()
}

/// The name of the architecture that this program is built for.
pub fn native_architecture() -> &'static str {
    arch::Arch::native().name
}

/// The number of a system call in an architecture of the specification, as the kernel reports it.
pub fn number(architecture: &str, name: &str) -> Option<u32> {
    let arch = arch::Arch::find(architecture)?;
    let number = arch.number(table::find(name)?)?;
    Some(if arch.is_x32() { number | arch::X32_BIT } else { number })
}

/// The AUDIT_ARCH value of an architecture of the specification.
pub fn audit_value(architecture: &str) -> Option<u32> {
    arch::Arch::find(architecture).map(|arch| arch.audit)
}
