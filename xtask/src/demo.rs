//! `cargo xtask demo`: an image from a registry on loopback, and the life of a workload that is made of it.
//!
//! Everything that it makes lies in a folder of its own and goes with it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::machines::{Machines, PLACE, furnish};
use crate::{build, bundle, command, kernel, packages, registry::Registry, scratch::Scratch};

/// How the emulated host's side of the demonstration is called.
const INSIDE: &str = "--inside";
/// What the workload does: it counts in its volume, and says so.
const COUNT: &str =
    "n=0; while true; do n=$((n + 1)); echo $n > /data/count; echo counted to $n; sleep 1; done";
/// What is looked at from within.
const LOOK: &str = "id; ps; cat /data/count; touch /data/seen /file; touch /etc/passwd && echo written";

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    if arguments.iter().any(|word| word == INSIDE) {
        return both_walls_inside();
    }
    if !rustix::process::geteuid().is_root() {
        bail!("the demonstration needs root: its containers have no user namespace");
    }
    packages::ensure(packages::DEMO)?;
    let program = build::program("moat", "release")?;
    let scratch = Scratch::new("demo")?;
    let registry = Registry::start(scratch.path())?;
    let image = registry.fill(&image(scratch.path())?, "box:1")?;
    let moat = Moat { program, root: scratch.path().join("moat") };
    show(&moat, &image)?;
    both_walls(scratch.path())
}

/// An image of busybox, made by umoci; gives it in skopeo's terms.
fn image(scratch: &Path) -> Result<String> {
    let (rootfs, archive, layout) = (scratch.join("rootfs"), scratch.join("rootfs.tar"), scratch.join("oci"));
    let name = format!("{}:box", layout.display());
    bundle::rootfs(&rootfs)?;
    command::step(Command::new("tar").arg("-C").arg(&rootfs).arg("-cf").arg(&archive).arg("."))?;
    command::step(Command::new("umoci").arg("init").arg("--layout").arg(&layout))?;
    command::step(Command::new("umoci").args(["new", "--image", &name]))?;
    command::step(Command::new("umoci").args(["raw", "add-layer", "--image", &name]).arg(&archive))?;
    let config = ["config", "--image", &name, "--config.cmd", "/bin/sh", "--config.env", "PATH=/bin"];
    command::step(Command::new("umoci").args(config))?;
    Ok(format!("oci:{name}"))
}

/// The story, from the registry to nothing left.
fn show(moat: &Moat, image: &str) -> Result<()> {
    moat.shows(&["pull", image])?;
    moat.shows(&["images"])?;
    let limits = ["--memory", "64m", "--cpus", "0.5", "--pids-limit", "20"];
    let place = ["--network", "none", "--read-only", "--tmpfs", "/tmp", "--volume", "counts:/data"];
    moat.shows(
        &[&["run", "--detach", "--name", "counter"], &limits[..], &place, &[image, "sh", "-c", COUNT]]
            .concat(),
    )?;
    moat.shows(&["ps"])?;
    moat.until(&["logs", "counter"], "counted to 2")?;
    moat.shows(&["logs", "--tail", "2", "counter"])?;
    // Its root file system is read-only, so this ends with 1.
    moat.shows_end(&["exec", "counter", "sh", "-c", LOOK], 1)?;
    moat.shows(&["stats", "--no-stream", "counter"])?;
    moat.shows(&["stop", "--time", "1", "counter"])?;
    moat.shows(&["run", "--rm", "--network", "none", "--volume", "counts:/data:ro", image, "ls", "/data"])?;
    moat.shows(&["rm", "counter"])?;
    moat.shows(&["run", "--rm", "--network", "none", "moat/hello"])?;
    moat.shows(&["run", "--rm", "--network", "none", "--explain", image, "true"])?;
    moat.shows(&["system", "check"])
}

/// One image behind both walls, on an emulated host that has what a machine needs.
fn both_walls(scratch: &Path) -> Result<()> {
    if kernel::built()?.is_none() {
        println!("\nThe second wall needs a kernel for guests: `cargo xtask kernel` builds it once.");
        return Ok(());
    }
    println!("\n--- both walls, on an emulated host");
    let machines = Machines::build(scratch)?;
    command::quiet(&mut machines.lab(&[], &[], &["demo", INSIDE])?)
}

/// The part that happens on the emulated host.
fn both_walls_inside() -> Result<()> {
    furnish()?;
    let moat = Moat { program: PathBuf::from(PLACE).join("moat"), root: PathBuf::from("/tmp/moat") };
    for wall in ["container", "microvm"] {
        let look = "uname -r; id -u; ps; cat /proc/uptime";
        moat.shows(&["run", "--rm", "--isolation", wall, "box", "sh", "-c", look])?;
    }
    moat.shows(&["compare", "box"])?;
    for wall in ["container", "microvm"] {
        moat.shows(&["run", "--rm", "--explain", "--isolation", wall, "box", "true"])?;
    }
    Ok(())
}

/// The built program with a root of its own.
struct Moat {
    program: PathBuf,
    root: PathBuf,
}

impl Moat {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).args(args).stdin(Stdio::null());
        command
    }

    /// Runs a command as a user would, and shows it with all that it says.
    fn shows(&self, args: &[&str]) -> Result<()> {
        self.shows_end(args, 0)
    }

    /// As [`Moat::shows`], of a command that ends with `code`.
    fn shows_end(&self, args: &[&str], code: i32) -> Result<()> {
        let line = typed(args);
        println!("\n$ {line}");
        let status = command::status(&mut self.command(args))?;
        if status.code() != Some(code) {
            bail!("`{line}` ended with {status}");
        }
        Ok(())
    }

    /// Waits until a command says `words`.
    fn until(&self, args: &[&str], words: &str) -> Result<()> {
        while !command::output(&mut self.command(args))?.contains(words) {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Moat {
    fn drop(&mut self) {
        let clear = || -> Result<()> {
            let ids = command::output(&mut self.command(&["ps", "--all", "--quiet"]))?;
            for id in ids.split_whitespace() {
                command::output(&mut self.command(&["rm", "--force", id])).context("the workload stays")?;
            }
            Ok(())
        };
        if let Err(error) = clear() {
            eprintln!("demo: {error:#}");
        }
    }
}

/// A command as it is typed.
fn typed(args: &[&str]) -> String {
    let plain =
        |word: &str| word.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_./:=,".contains(letter));
    let word = |word: &&str| if plain(word) { (*word).to_owned() } else { format!("'{word}'") };
    format!("moat {}", args.iter().map(word).collect::<Vec<_>>().join(" "))
}
