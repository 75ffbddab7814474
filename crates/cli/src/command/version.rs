//! `moat version`.

use clap::Args;
use serde::Serialize;

use crate::failure::Result;
use crate::format;
use crate::line::Verb;
use crate::session::{Session, print};

#[derive(Args, Debug)]
pub(crate) struct Version {
    /// Form of the answer: json, or a Go template
    #[arg(short, long)]
    format: Option<String>,
}

/// There is no server: what Docker tells of both is one program here.
#[derive(Serialize)]
struct Told {
    #[serde(flatten)]
    own: Facts,
    #[serde(rename = "Client")]
    client: Facts,
    #[serde(rename = "Server")]
    server: Facts,
}

#[derive(Clone, Serialize)]
struct Facts {
    #[serde(rename = "Version")]
    version: &'static str,
    #[serde(rename = "Os")]
    os: &'static str,
    #[serde(rename = "Arch")]
    arch: &'static str,
    #[serde(rename = "KernelVersion")]
    kernel: String,
    #[serde(rename = "OciVersion")]
    oci: &'static str,
}

impl Verb for Version {
    const NAME: &'static str = "version";
    const ABOUT: &'static str = "Print the version";

    fn run(self, _: &Session) -> Result<u8> {
        let facts = Facts {
            version: env!("CARGO_PKG_VERSION"),
            os: "linux",
            arch: architecture(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            oci: moat_model::oci::VERSION,
        };
        if self.format.is_some() {
            let told = Told { own: facts.clone(), client: facts.clone(), server: facts };
            print(&format::documents(self.format.as_deref(), &[told])?)?;
            return Ok(0);
        }
        print(&format!(
            "Version:        {}\nOS/Arch:        {}/{}\nKernel Version: {}\nOCI Version:    {}\n",
            facts.version, facts.os, facts.arch, facts.kernel, facts.oci
        ))?;
        Ok(0)
    }
}

/// The machine as Go and the image formats name it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
