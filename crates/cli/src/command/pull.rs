//! `moat pull` and `moat push`, with their progress.

use std::path::PathBuf;

use clap::Args;
use moat_engine::Engine;
use moat_engine::image::{self, Image, Platform, PullSpec, PushSpec, Reference, RegistriesSpec};

use crate::failure::{Failure, Result};
use crate::line::Verb;
use crate::progress::Bars;
use crate::session::{Session, print, tell};

#[derive(Args, Debug)]
pub(crate) struct PullImage {
    /// os/arch[/variant]
    #[arg(long)]
    platform: Option<String>,
    /// Print only the name
    #[arg(short, long)]
    quiet: bool,
    /// Image
    #[arg(value_name = "NAME[:TAG|@DIGEST]")]
    name: String,
}

impl Verb for PullImage {
    const NAME: &'static str = "pull";
    const ABOUT: &'static str = "Pull an image from a registry";

    fn run(self, session: &Session) -> Result<u8> {
        let engine = session.engine()?;
        pull(&engine, &self.name, self.platform.as_deref(), self.quiet)?;
        print(&format!("{}\n", Reference::parse(&self.name)?.full()))?;
        Ok(0)
    }
}

/// Pulls an image and shows how it goes, on standard error. No thread is left when it returns.
pub(super) fn pull(engine: &Engine, name: &str, platform: Option<&str>, quiet: bool) -> Result<Image> {
    let reference = Reference::parse(name)?;
    let spec =
        PullSpec { platform: self::platform(platform)?, registries: registries()?, ..PullSpec::default() };
    if quiet {
        return Ok(image::pull(engine.images(), &reference, &spec, &image::silent)?);
    }
    let bars = Bars::new(&format!("Pulling {reference}"));
    let pulled = image::pull(engine.images(), &reference, &spec, &|progress| bars.show(progress));
    bars.finish(pulled.is_ok());
    let image = pulled?;
    if let Some(digest) = image.digests.iter().find(|known| known.repository() == reference.repository()) {
        tell(&format!("Digest: {}", digest.digest().map_or(String::new(), |digest| digest.to_string())));
    }
    Ok(image)
}

/// Pulls an image where it is not there.
pub(super) fn provide(engine: &Engine, name: &str, platform: Option<&str>, quiet: bool) -> Result<()> {
    let wanted = self::platform(platform)?;
    match engine.images().find(name) {
        // One of the name for another machine is as good as none.
        Ok(image) if wanted.is_none_or(|wanted| wanted.accepts(&image.config.platform())) => return Ok(()),
        Ok(_) => {}
        Err(error) if error.kind() == image::Kind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    if !quiet {
        tell(&format!("moat: image {name} is not here; it is pulled"));
    }
    pull(engine, name, platform, quiet).map(drop)
}

/// How registries are reached: what the user says about it, else what the host says.
pub(super) fn registries() -> Result<RegistriesSpec> {
    let own = std::env::var_os("XDG_CONFIG_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    let own = own.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")));
    let own = own.map(|folder| folder.join("moat/registries.json")).filter(|path| path.exists());
    Ok(RegistriesSpec::load(&own.unwrap_or_else(|| PathBuf::from("/etc/moat/registries.json")))?)
}

/// A platform that was given to a flag.
pub(super) fn platform(text: Option<&str>) -> Result<Option<Platform>> {
    let parse =
        |text: &str| text.parse::<Platform>().map_err(|error| Failure::new(format!("--platform: {error}")));
    text.map(parse).transpose()
}

#[derive(Args, Debug)]
pub(crate) struct PushImage {
    /// Push all tags of the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Print only the name
    #[arg(short, long)]
    quiet: bool,
    /// Image
    #[arg(value_name = "NAME[:TAG]")]
    name: String,
}

impl Verb for PushImage {
    const NAME: &'static str = "push";
    const ABOUT: &'static str = "Push an image to a registry";

    fn run(self, session: &Session) -> Result<u8> {
        let engine = session.engine()?;
        let given = Reference::parse_exact(&self.name)?;
        let names = match self.all_tags {
            false => vec![Reference::parse(&self.name)?],
            true if given.tag().is_some() => {
                return Err(Failure::new(format!("--all-tags: {} names a tag already", self.name)));
            }
            true => {
                let own = engine.images().list()?.into_iter().flat_map(|image| image.names);
                own.filter(|name| name.full_repository() == given.full_repository()).collect()
            }
        };
        if names.is_empty() {
            return Err(Failure::new(format!("no image is tagged {}", self.name)));
        }
        let spec = PushSpec { registries: registries()?, ..PushSpec::default() };
        for name in names {
            let image = engine.images().find(&name.to_string())?;
            let digest = if self.quiet {
                image::push(engine.images(), &image, &name, &spec, &image::silent)?
            } else {
                let bars = Bars::new(&format!("Pushing {name}"));
                let pushed =
                    image::push(engine.images(), &image, &name, &spec, &|progress| bars.show(progress));
                bars.finish(pushed.is_ok());
                pushed?
            };
            match self.quiet {
                true => print(&format!("{}\n", name.full()))?,
                false => print(&format!("{name}: digest: {digest}\n"))?,
            }
        }
        Ok(0)
    }
}
