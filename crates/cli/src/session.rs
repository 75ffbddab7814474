//! What every command works with: the roots that were asked for, and standard output.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use moat_engine::{Engine, Roots};

use crate::failure::{Context, Failure, Result};

// Flags that stand before the command. (A doc comment would become the text of the help.)
#[derive(Args, Debug, Default)]
pub(crate) struct Global {
    /// Folder for images, workloads and volumes [default: /var/lib/moat, for others than root $XDG_DATA_HOME/moat]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) root: Option<PathBuf>,
    /// Folder for sockets and mount points [default: /run/moat, for others than root $XDG_RUNTIME_DIR/moat]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) run_root: Option<PathBuf>,
}

/// What Moat says to itself, so that it becomes the resolver of a network. It is no command for people.
pub(crate) const RESOLVER: &str = "--network-resolver";

/// A command that runs.
#[derive(Debug)]
pub(crate) struct Session {
    global: Global,
}

impl Session {
    pub(crate) fn new(global: Global) -> Self {
        Self { global }
    }

    /// The engine, for a command that starts something: what a workload comes near runs from a file that can not
    /// be written. This may execute the program again, so it comes before anything that is not to be done twice.
    pub(crate) fn engine_to_start(&self) -> Result<Engine> {
        let roots = self.roots()?;
        moat_engine::rootless::enter(&roots)?;
        moat_engine::protect().map_err(|error| Failure::new(error.to_string()))?;
        open(&roots)
    }

    /// The engine of the roots. An ordinary user's process becomes root within a user namespace, for which the
    /// program is executed again: it comes before anything that is not to be done twice.
    pub(crate) fn engine(&self) -> Result<Engine> {
        let roots = self.roots()?;
        moat_engine::rootless::enter(&roots)?;
        open(&roots)
    }

    fn roots(&self) -> Result<Roots> {
        Ok(Roots::find(self.global.root.as_deref(), self.global.run_root.as_deref())?)
    }
}

/// The engine of roots, with this program as the resolver of networks.
fn open(roots: &Roots) -> Result<Engine> {
    // A fork of this program may run from a file that has no path any more.
    let resolver = ["/proc/self/exe", RESOLVER].map(std::ffi::OsString::from).to_vec();
    Ok(Engine::open(roots)?.with_resolver(resolver))
}

/// Writes to standard output.
///
/// Errors: it can not be written. A reader that has gone away ends the command as SIGPIPE would.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::gone()),
        other => other.context(|| "standard output"),
    }
}

/// Says something that is no result, on standard error.
pub(crate) fn tell(text: &str) {
    // A closed standard error leaves nowhere to complain.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Asks whether to go on. Anything but yes is no, and so is no terminal to ask on.
pub(crate) fn confirm(what: &str) -> Result<bool> {
    if !crate::terminal::has_input() {
        return Err(
            Failure::new(format!("{what} Nobody can be asked whether to go on")).hint("--force does not ask")
        );
    }
    print(&format!("{what} Go on? [y/N] "))?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context(|| "standard input")?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
