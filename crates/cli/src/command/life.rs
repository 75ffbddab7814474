//! Short commands about workloads: `rm`, `pause`, `unpause`, `wait`, `port`, `rename`, `update`.

use clap::Args;
use moat_engine::RemoveOptions;
use moat_model::workload::{LimitsSpec, RestartPolicy};

use super::each;
use super::start::change;
use crate::failure::{Failure, Result};
use crate::flags;
use crate::flags::limits::LimitFlags;
use crate::line::Verb;
use crate::session::{Session, print};

#[derive(Args, Debug)]
pub(crate) struct Remove {
    /// Kill a workload that runs
    #[arg(short, long)]
    force: bool,
    /// Remove its anonymous volumes, too
    #[arg(short, long)]
    volumes: bool,
    /// Workload
    #[arg(required = true, value_name = "WORKLOAD")]
    workloads: Vec<String>,
}

impl Verb for Remove {
    const NAME: &'static str = "rm";
    const ABOUT: &'static str = "Remove workloads";

    fn run(self, session: &Session) -> Result<u8> {
        let engine = session.engine()?;
        let options = RemoveOptions { force: self.force, volumes: self.volumes };
        each(&self.workloads, |name| {
            let workload = match engine.find(name) {
                // As `rm -f` of files: what is gone already is fine, but told.
                Err(error) if self.force && error.kind() == moat_engine::ErrorKind::NotFound => {
                    crate::session::tell(&format!("moat: {error}"));
                    return Ok(None);
                }
                other => other?,
            };
            workload.remove(&options)?;
            Ok(Some(name.to_owned()))
        })
    }
}

#[derive(Args, Debug)]
pub(crate) struct Pause {
    /// Workload
    #[arg(required = true, value_name = "WORKLOAD")]
    workloads: Vec<String>,
}

impl Verb for Pause {
    const NAME: &'static str = "pause";
    const ABOUT: &'static str = "Freeze all processes of workloads";

    fn run(self, session: &Session) -> Result<u8> {
        change(&session.engine()?, &self.workloads, |workload| Ok(workload.pause()?))
    }
}

#[derive(Args, Debug)]
pub(crate) struct Unpause {
    /// Workload
    #[arg(required = true, value_name = "WORKLOAD")]
    workloads: Vec<String>,
}

impl Verb for Unpause {
    const NAME: &'static str = "unpause";
    const ABOUT: &'static str = "Let frozen workloads go on";

    fn run(self, session: &Session) -> Result<u8> {
        change(&session.engine()?, &self.workloads, |workload| Ok(workload.unpause()?))
    }
}

#[derive(Args, Debug)]
pub(crate) struct Wait {
    /// Workload
    #[arg(required = true, value_name = "WORKLOAD")]
    workloads: Vec<String>,
}

impl Verb for Wait {
    const NAME: &'static str = "wait";
    const ABOUT: &'static str = "Wait until workloads have ended, and print their exit codes";

    fn run(self, session: &Session) -> Result<u8> {
        let engine = session.engine()?;
        each(&self.workloads, |name| Ok(Some(engine.find(name)?.wait()?.code.to_string())))
    }
}

#[derive(Args, Debug)]
pub(crate) struct Port {
    /// Workload
    workload: String,
    /// Port of the workload, as PORT[/PROTOCOL]
    port: Option<String>,
}

impl Verb for Port {
    const NAME: &'static str = "port";
    const ABOUT: &'static str = "Print where ports of a workload are published";

    fn run(self, session: &Session) -> Result<u8> {
        let workload = session.engine()?.find(&self.workload)?;
        let wanted = self.port.as_deref().map(flags::port::expose).transpose()?;
        let mut lines = String::new();
        let attachment = if workload.state()?.is_running() { workload.attachment()? } else { None };
        for published in crate::shape::network::published(attachment.as_ref()) {
            let inside = format!("{}/{}", published.port, published.protocol.name());
            let outside = published.place();
            match &wanted {
                None => lines += &format!("{inside} -> {outside}\n"),
                Some(wanted) if wanted.contains(&inside) => lines += &format!("{outside}\n"),
                Some(_) => {}
            }
        }
        if lines.is_empty()
            && let Some(port) = &self.port
        {
            return Err(Failure::new(format!(
                "port {port} of workload {} is not published",
                workload.name()
            )));
        }
        print(&lines)?;
        Ok(0)
    }
}

#[derive(Args, Debug)]
pub(crate) struct Rename {
    /// Workload
    workload: String,
    /// Its name from now on
    name: String,
}

impl Verb for Rename {
    const NAME: &'static str = "rename";
    const ABOUT: &'static str = "Give a workload another name";

    fn run(self, session: &Session) -> Result<u8> {
        session.engine()?.find(&self.workload)?.rename(&self.name)?;
        Ok(0)
    }
}

#[derive(Args, Debug)]
pub(crate) struct Update {
    #[command(flatten)]
    limits: LimitFlags,
    /// What happens when it has ended
    #[arg(long, value_name = "POLICY", value_parser = flags::restart)]
    restart: Option<RestartPolicy>,
    /// Workload
    #[arg(required = true, value_name = "WORKLOAD")]
    workloads: Vec<String>,
}

impl Verb for Update {
    const NAME: &'static str = "update";
    const ABOUT: &'static str = "Change limits of workloads";

    fn run(self, session: &Session) -> Result<u8> {
        let limits = self.limits.spec().map_err(Failure::new)?;
        if limits == LimitsSpec::default() && self.restart.is_none() {
            return Err(Failure::new("nothing is to be changed").hint("give at least one limit or --restart"));
        }
        change(&session.engine()?, &self.workloads, |workload| Ok(workload.update(&limits, self.restart)?))
    }
}
