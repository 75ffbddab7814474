//! Debian's docker-registry on loopback, for the benchmark and the demonstration.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::command;

/// Debian's docker-registry; it ends with this.
pub(crate) struct Registry {
    server: Child,
    domain: String,
}

impl Registry {
    pub(crate) fn start(scratch: &Path) -> Result<Self> {
        let config = scratch.join("registry.yml");
        let data = scratch.join("registry");
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n",
            data.display()
        );
        std::fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut server = command.spawn().context("cannot start docker-registry")?;
        let errors = server.stderr.take().context("docker-registry has no standard error")?;
        let mut registry = Self { server, domain: String::new() };
        let mut lines = BufReader::new(errors).lines();
        while registry.domain.is_empty() {
            let line = lines.next().context("docker-registry has ended")?.context("docker-registry")?;
            if let Some((_, rest)) = line.split_once("listening on ") {
                registry.domain = rest
                    .chars()
                    .take_while(|&character| character.is_ascii_digit() || ".:".contains(character))
                    .collect();
            }
        }
        // It would block on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(registry)
    }

    /// Copies an image of skopeo's terms into it; gives the image's name.
    pub(crate) fn fill(&self, from: &str, rest: &str) -> Result<String> {
        let name = format!("{}/{rest}", self.domain);
        let to = format!("docker://{name}");
        command::quiet(Command::new("skopeo").args(["copy", "-q", "--dest-tls-verify=false", from, &to]))?;
        Ok(name)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
