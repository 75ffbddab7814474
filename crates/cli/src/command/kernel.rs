//! `moat kernel ...`: the kernels of microVMs.

use std::path::PathBuf;

use clap::Args;
use moat_engine::kernel::{HOST, ImportSpec, Kernel};

use super::{each, each_line};
use crate::failure::Result;
use crate::format::{self, Column, Format, Row, human};
use crate::line::Verb;
use crate::session::{Session, print};

#[derive(Args, Debug)]
pub(crate) struct List {
    /// Form of the answer: table, json, or a Go template
    #[arg(long)]
    format: Option<String>,
    /// Only names
    #[arg(short, long)]
    quiet: bool,
}

const COLUMNS: [Column; 6] = [
    ("Name", "NAME"),
    ("Version", "VERSION"),
    ("Modules", "MODULES"),
    ("Size", "SIZE"),
    ("Default", "DEFAULT"),
    ("Source", "SOURCE"),
];

impl Verb for List {
    const NAME: &'static str = "ls";
    const ABOUT: &'static str = "List the kernels of microVMs";

    fn run(self, session: &Session) -> Result<u8> {
        let format = Format::parse(self.format.as_deref())?;
        let kernels = session.engine()?.kernels();
        let found = kernels.list()?;
        if self.quiet && self.format.is_none() {
            print(&each_line(&found.into_iter().map(|kernel| kernel.name).collect::<Vec<_>>()))?;
            return Ok(0);
        }
        let chosen = kernels.default_name()?;
        let rows = found.iter().map(|kernel| row(kernel, chosen.as_deref())).collect();
        let shown = ["Name", "Version", "Modules", "Size", "Default", "Source"];
        print(&format::rows(&format, &shown, &COLUMNS, rows)?)?;
        Ok(0)
    }
}

fn row(kernel: &Kernel, chosen: Option<&str>) -> Row {
    let mut row = Row::default();
    row.set("Name", kernel.name.as_str())
        .set("Version", kernel.state.version.as_str())
        .set("Modules", if kernel.state.modules { "loaded" } else { "built in" })
        .set("Size", human::size(kernel.size_bytes))
        .set("Default", if chosen == Some(kernel.name.as_str()) { "yes" } else { "" })
        .set("Source", kernel.state.source.display().to_string());
    row
}

#[derive(Args, Debug)]
pub(crate) struct Use {
    /// Kernel; host: the one that the host itself has in /boot
    #[arg(value_name = "KERNEL")]
    name: String,
}

impl Verb for Use {
    const NAME: &'static str = "use";
    const ABOUT: &'static str = "Choose the kernel of microVMs that name none";

    fn run(self, session: &Session) -> Result<u8> {
        let name = Some(self.name.as_str()).filter(|name| *name != HOST);
        session.engine()?.kernels().set_default(name)?;
        print(&format!("{}\n", self.name))?;
        Ok(0)
    }
}

#[derive(Args, Debug)]
pub(crate) struct Import {
    /// What to call it [default: its version]
    #[arg(long)]
    name: Option<String>,
    /// Folder with its modules, lib/modules/VERSION, where it is not beside the kernel
    #[arg(long, value_name = "FOLDER")]
    modules: Option<PathBuf>,
    /// A vmlinux, a bzImage, a Debian package, or the folder of an unpacked one
    #[arg(value_name = "PATH")]
    source: PathBuf,
}

impl Verb for Import {
    const NAME: &'static str = "import";
    const ABOUT: &'static str = "Import a kernel for microVMs";

    fn run(self, session: &Session) -> Result<u8> {
        let spec = ImportSpec { source: self.source, name: self.name, modules: self.modules };
        let kernel = session.engine()?.kernels().import(&spec)?;
        print(&format!("{}\n", kernel.name))?;
        Ok(0)
    }
}

#[derive(Args, Debug)]
pub(crate) struct Remove {
    /// Kernel
    #[arg(required = true, value_name = "KERNEL")]
    names: Vec<String>,
}

impl Verb for Remove {
    const NAME: &'static str = "rm";
    const ABOUT: &'static str = "Remove kernels; microVMs that run keep theirs";

    fn run(self, session: &Session) -> Result<u8> {
        let kernels = session.engine()?.kernels();
        each(&self.names, |name| {
            kernels.remove(name)?;
            Ok(Some(name.to_owned()))
        })
    }
}
