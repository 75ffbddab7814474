//! `moat inspect`, and the same for one kind of object.

use clap::{Args, ValueEnum};
use moat_engine::{Engine, ErrorKind, Workload};

use crate::failure::{Failure, Result};
use crate::format;
use crate::line::Verb;
use crate::session::{Session, print};
use crate::shape::{self, Document};

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Container,
    Image,
    Network,
    Volume,
}

#[derive(Args, Debug)]
pub(crate) struct Inspect {
    /// Form of the answer: json, or a Go template
    #[arg(short, long)]
    format: Option<String>,
    /// Print how much a workload wrote
    #[arg(short, long)]
    size: bool,
    /// Only objects of this kind
    #[arg(long = "type", value_enum)]
    kind: Option<Kind>,
    /// Name or id
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

impl Verb for Inspect {
    const NAME: &'static str = "inspect";
    const ABOUT: &'static str = "Print all about workloads, images, networks and volumes";

    fn run(self, session: &Session) -> Result<u8> {
        let engine = session.engine()?;
        let look = |name: &str| match self.kind {
            Some(kind) => one(&engine, kind, name, self.size),
            None => any(&engine, name, self.size),
        };
        documents(&self.names, self.format.as_deref(), look)
    }
}

/// Prints what was found and tells what was not.
pub(super) fn documents(
    names: &[String],
    format: Option<&str>,
    look: impl Fn(&str) -> Result<Document>,
) -> Result<u8> {
    let (mut found, mut failed) = (Vec::new(), Vec::new());
    for name in names {
        match look(name) {
            Ok(document) => found.push(document),
            Err(failure) => failed.push(failure),
        }
    }
    print(&format::documents(format, &found)?)?;
    failed.iter().for_each(Failure::print);
    Ok(u8::from(!failed.is_empty()))
}

/// A workload, an image, a network or a volume: whichever has the name first.
fn any(engine: &Engine, name: &str, size: bool) -> Result<Document> {
    match engine.find(name) {
        Ok(workload) => return container(&workload, size),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    match engine.images().find(name) {
        Ok(image) => return shape::image::image(&image),
        Err(error) if error.kind() == moat_engine::image::Kind::NotFound => {}
        // What is no name of an image may be one of a volume.
        Err(_) => {}
    }
    for kind in [Kind::Network, Kind::Volume] {
        // Likewise.
        if let Ok(document) = one(engine, kind, name, size) {
            return Ok(document);
        }
    }
    Err(Failure::new(format!("there is no workload, image, network or volume {name:?}")))
}

fn one(engine: &Engine, kind: Kind, name: &str, size: bool) -> Result<Document> {
    match kind {
        Kind::Container => container(&engine.find(name)?, size),
        Kind::Image => shape::image::image(&engine.images().find(name)?),
        Kind::Network => shape::network::document(engine, &super::network::find(engine, name)?),
        Kind::Volume => super::volume::document(engine, name),
    }
}

fn container(workload: &Workload, size: bool) -> Result<Document> {
    let sizes = if size { Some(sizes(workload)?) } else { None };
    shape::container::container(workload, sizes)
}

/// Bytes that a workload wrote, and bytes of all its files.
pub(super) fn sizes(workload: &Workload) -> Result<(u64, u64)> {
    let writable = workload.written_bytes()?.0;
    let image = workload.image().map_or(0, |image| image.size_bytes);
    Ok((writable, writable + image))
}

#[derive(Args, Debug)]
pub(crate) struct InspectContainer {
    /// Form of the answer: json, or a Go template
    #[arg(short, long)]
    format: Option<String>,
    /// Print how much it wrote
    #[arg(short, long)]
    size: bool,
    /// Name or id
    #[arg(required = true, value_name = "WORKLOAD")]
    names: Vec<String>,
}

impl Verb for InspectContainer {
    const NAME: &'static str = "inspect";
    const ABOUT: &'static str = "Print all about workloads";

    fn run(self, session: &Session) -> Result<u8> {
        let engine = session.engine()?;
        documents(&self.names, self.format.as_deref(), |name| one(&engine, Kind::Container, name, self.size))
    }
}

#[derive(Args, Debug)]
pub(crate) struct InspectImage {
    /// Form of the answer: json, or a Go template
    #[arg(short, long)]
    format: Option<String>,
    /// Name or id
    #[arg(required = true, value_name = "IMAGE")]
    names: Vec<String>,
}

impl Verb for InspectImage {
    const NAME: &'static str = "inspect";
    const ABOUT: &'static str = "Print all about images";

    fn run(self, session: &Session) -> Result<u8> {
        let engine = session.engine()?;
        documents(&self.names, self.format.as_deref(), |name| one(&engine, Kind::Image, name, false))
    }
}
