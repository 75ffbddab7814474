//! Images and root file systems as files: `load`, `save`, `import`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use moat_engine::image::{self, ImportSpec, LoadSpec, Reference};

use super::pull::platform;
use crate::changes;
use crate::failure::{Context, Failure, Result};
use crate::line::Verb;
use crate::progress::Bars;
use crate::session::{Session, print};
use crate::terminal;

#[derive(Args, Debug)]
pub(crate) struct Load {
    /// Archive or folder [default: standard input]
    #[arg(short, long, value_name = "PATH")]
    input: Option<PathBuf>,
    /// os/arch[/variant]
    #[arg(long)]
    platform: Option<String>,
    /// Do not show how it goes
    #[arg(short, long)]
    quiet: bool,
}

impl Verb for Load {
    const NAME: &'static str = "load";
    const ABOUT: &'static str = "Load images from an archive or a folder";

    fn run(self, session: &Session) -> Result<u8> {
        if self.input.is_none() && terminal::has_input() {
            return Err(Failure::new("standard input is a terminal").hint("name an archive with --input"));
        }
        let engine = session.engine()?;
        let spec = LoadSpec { platform: platform(self.platform.as_deref())? };
        let bars = (!self.quiet && terminal::has_output()).then(|| Bars::new("Loading"));
        let show = |progress| bars.iter().for_each(|bars| bars.show(Clone::clone(&progress)));
        let loaded = match &self.input {
            Some(path) => image::load(engine.images(), path, &spec, &show),
            None => image::load_from(engine.images(), &mut std::io::stdin().lock(), &spec, &show),
        };
        bars.iter().for_each(|bars| bars.finish(loaded.is_ok()));
        let mut text = String::new();
        for image in loaded? {
            match image.names.as_slice() {
                [] => text += &format!("Loaded image ID: {}\n", image.id),
                names => names.iter().for_each(|name| text += &format!("Loaded image: {name}\n")),
            }
        }
        print(&text)?;
        Ok(0)
    }
}

#[derive(Args, Debug)]
pub(crate) struct Save {
    /// File, or folder where the path ends in a slash [default: standard output]
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// Image
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Verb for Save {
    const NAME: &'static str = "save";
    const ABOUT: &'static str = "Write images into one archive";

    fn run(self, session: &Session) -> Result<u8> {
        let engine = session.engine()?;
        let names: Vec<&str> = self.images.iter().map(String::as_str).collect();
        let folder = self.output.as_ref().filter(|path| path.as_os_str().as_encoded_bytes().ends_with(b"/"));
        if let Some(folder) = folder {
            image::save_to_folder(engine.images(), &names, folder)?;
            return Ok(0);
        }
        write_archive(self.output.as_deref(), |to| Ok(image::save(engine.images(), &names, to)?))
    }
}

/// Writes an archive to a file, which appears only when it is whole, or to standard output.
pub(crate) fn write_archive(
    output: Option<&Path>,
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<u8> {
    let Some(path) = output else {
        if terminal::has_output() {
            return Err(Failure::new("standard output is a terminal").hint("name a file with --output"));
        }
        let mut out = BufWriter::with_capacity(1 << 20, std::io::stdout().lock());
        write(&mut out)?;
        out.flush().context(|| "standard output")?;
        return Ok(0);
    };
    let what = || format!("--output {}", path.display());
    if path.exists() && !path.is_file() {
        // A device or a pipe is written to as it is.
        let mut out =
            BufWriter::with_capacity(1 << 20, File::options().write(true).open(path).context(what)?);
        write(&mut out)?;
        out.flush().context(what)?;
        return Ok(0);
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let written = File::create_new(&temporary).context(what).and_then(|file| {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        write(&mut out)?;
        out.flush().context(what)?;
        std::fs::rename(&temporary, path).context(what)
    });
    if written.is_err() {
        // The first error is what the caller has to know.
        let _ = std::fs::remove_file(&temporary);
    }
    written.map(|()| 0)
}

#[derive(Args, Debug)]
pub(crate) struct Import {
    /// Instruction of a Dockerfile for the image, as in CMD /bin/sh
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Remark for the history
    #[arg(short, long)]
    message: Option<String>,
    /// os/arch[/variant]
    #[arg(long)]
    platform: Option<String>,
    /// Archive, folder, or - for standard input
    source: String,
    /// Name of the image
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<String>,
}

impl Verb for Import {
    const NAME: &'static str = "import";
    const ABOUT: &'static str = "Make an image of a root file system";

    fn run(self, session: &Session) -> Result<u8> {
        if self.source.contains("://") {
            return Err(Failure::new("an archive is not fetched from a URL")
                .hint(format!("`curl -L {} | moat import - NAME` does it", self.source)));
        }
        let engine = session.engine()?;
        let mut config = image::RunConfig::default();
        changes::apply(&mut config, &self.change)?;
        let spec = ImportSpec {
            name: self.name.as_deref().map(Reference::parse).transpose()?,
            config,
            message: self.message,
            platform: platform(self.platform.as_deref())?,
        };
        let image = match self.source.as_str() {
            "-" => image::import_from(engine.images(), &mut std::io::stdin().lock(), spec, &image::silent)?,
            path => image::import(engine.images(), Path::new(path), spec, &image::silent)?,
        };
        print(&format!("{}\n", image.id))?;
        Ok(0)
    }
}
