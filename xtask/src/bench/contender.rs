//! Who is measured, and the course that each of them runs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::private;
use crate::{bundle, command};

/// What a working runtime makes its container say.
pub(super) const PROBE: &str = "the-container-ran";

/// One of those that are compared.
pub(super) struct Contender {
    pub(super) name: &'static str,
    program: PathBuf,
}

impl Contender {
    pub(super) fn is_floor(&self) -> bool {
        self.name == "floor"
    }
}

pub(super) struct Bundles {
    /// One for each container of the crowd that runs at the same time.
    pub(super) lanes: Vec<PathBuf>,
    pub(super) probe: PathBuf,
    pub(super) rootfs: PathBuf,
}

/// The bundles, the folder for state, and everybody's programs.
pub(super) struct Course {
    scratch: PathBuf,
    floor: PathBuf,
    runtime: PathBuf,
    config: Value,
    bundles: Bundles,
    /// Begins the name of every cgroup that this run makes.
    mark: String,
}

impl Course {
    pub(super) fn build(scratch: &Path, floor: &Path, runtime: &Path) -> Result<Self> {
        let mark = format!("moat-bench-{}", std::process::id());
        let runc = command::find("runc").context("runc is not in PATH")?;
        let config = bundle::default_config(&runc, scratch)?;
        let bundles = super::runtime::bundles(scratch, &config, &mark)?;
        Ok(Self {
            scratch: scratch.to_owned(),
            floor: floor.to_owned(),
            runtime: runtime.to_owned(),
            config,
            bundles,
            mark,
        })
    }

    /// Those that really run a container; a program that ends at once would win every race.
    pub(super) fn contenders(&self) -> Vec<Contender> {
        let program = |name: &str| command::find(name).unwrap_or_else(|| PathBuf::from(name));
        let mut contenders = vec![Contender { name: "floor", program: self.floor.clone() }];
        for (name, program) in
            [("moat", self.runtime.clone()), ("crun", program("crun")), ("runc", program("runc"))]
        {
            let contender = Contender { name, program };
            match self.probe(&contender) {
                Ok(()) => contenders.push(contender),
                Err(error) => eprintln!("bench: {name} is left out: {error:#}"),
            }
        }
        contenders
    }

    pub(super) fn moat<'a>(&self, contenders: &'a [Contender]) -> Option<&'a Contender> {
        contenders.iter().find(|one| one.name == "moat")
    }

    fn probe(&self, one: &Contender) -> Result<()> {
        let said = command::output(&mut self.run_in(one, &self.bundles.probe, "probe"))?;
        if said.trim() != PROBE {
            bail!("its container should say {PROBE:?} and said {said:?}");
        }
        Ok(())
    }

    /// The runtime with its state in a folder of its own.
    fn command(&self, one: &Contender) -> Command {
        let mut command = Command::new(&one.program);
        command.arg("--root").arg(self.state(one));
        command
    }

    fn state(&self, one: &Contender) -> PathBuf {
        self.scratch.join("state").join(one.name)
    }

    fn id(one: &Contender, what: &str) -> String {
        format!("{}-{what}", one.name)
    }

    fn run_in(&self, one: &Contender, bundle: &Path, what: &str) -> Command {
        let mut command = self.command(one);
        command.arg("run").arg("--bundle").arg(bundle).arg(Self::id(one, what));
        command
    }

    pub(super) fn run(&self, one: &Contender) -> Result<()> {
        if one.is_floor() {
            let mut floor = Command::new(&one.program);
            return silent(floor.arg("run").arg(&self.bundles.rootfs).arg("/bin/true"));
        }
        silent(&mut self.run_in(one, &self.bundles.lanes[0], "run"))
    }

    pub(super) fn create(&self, one: &Contender) -> Result<()> {
        let mut command = self.command(one);
        command.arg("create").arg("--bundle").arg(&self.bundles.lanes[0]);
        command.arg("--pid-file").arg(self.pid_file(one)).arg(Self::id(one, "create"));
        silent(&mut command)
    }

    fn pid_file(&self, one: &Contender) -> PathBuf {
        self.scratch.join(format!("{}.pid", one.name))
    }

    /// The process of the container that was just created.
    pub(super) fn pid(&self, one: &Contender) -> Result<u32> {
        let path = self.pid_file(one);
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        text.trim().parse().with_context(|| format!("{} holds no process id", path.display()))
    }

    pub(super) fn start(&self, one: &Contender) -> Result<()> {
        silent(self.command(one).arg("start").arg(Self::id(one, "create")))
    }

    pub(super) fn delete(&self, one: &Contender) -> Result<()> {
        silent(self.command(one).arg("delete").arg(Self::id(one, "create")))
    }

    /// A container that stays, for `exec`.
    pub(super) fn start_sleeper(&self, one: &Contender) -> Result<()> {
        let name = format!("sleep-{}", one.name);
        let cgroup = format!("/{}-{name}", self.mark);
        let arguments = ["/bin/sleep", "1000000"];
        let folder = self.scratch.join(&name);
        let bundle = bundle::write(folder, &self.bundles.rootfs, &self.config, &cgroup, &arguments)?;
        let mut command = self.command(one);
        command.args(["run", "--detach", "--bundle"]).arg(bundle).arg(Self::id(one, "sleep"));
        silent(&mut command)
    }

    pub(super) fn exec(&self, one: &Contender) -> Result<()> {
        silent(self.command(one).arg("exec").arg(Self::id(one, "sleep")).arg("/bin/true"))
    }

    pub(super) fn stop_sleeper(&self, one: &Contender) -> Result<()> {
        silent(self.command(one).args(["delete", "--force"]).arg(Self::id(one, "sleep")))
    }

    /// The peak of the runtime's process and of what it has waited for.
    pub(super) fn peak_kib(&self, one: &Contender) -> Result<f64> {
        let run = self.run_in(one, &self.bundles.lanes[0], "peak");
        let mut peak = Command::new(&self.floor);
        peak.arg("peak").arg(run.get_program()).args(run.get_args());
        let said = command::output(&mut peak)?;
        let last = said.lines().last().unwrap_or_default();
        last.parse().with_context(|| format!("`floor peak` said {last:?}"))
    }

    /// Many containers; each lane starts its next one when the last has ended.
    pub(super) fn crowd(&self, one: &Contender, size: usize) -> Result<()> {
        let next = AtomicUsize::new(0);
        let lane = |bundle: &Path| -> Result<()> {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= size {
                    return Ok(());
                }
                silent(&mut self.run_in(one, bundle, &format!("crowd-{number}")))?;
            }
        };
        std::thread::scope(|scope| {
            let lanes: Vec<_> =
                self.bundles.lanes.iter().map(|bundle| scope.spawn(|| lane(bundle))).collect();
            lanes.into_iter().try_for_each(|lane| match lane.join() {
                Ok(result) => result,
                Err(_) => bail!("a lane of the crowd panicked"),
            })
        })
    }

    /// One run that tells its steps.
    pub(super) fn explain(&self, one: &Contender) -> Result<String> {
        let mut command = self.command(one);
        command.args(["run", "--explain", "--bundle"]).arg(&self.bundles.lanes[0]);
        command.arg(Self::id(one, "explain")).stdin(Stdio::null());
        let done = command.output().context("cannot start moat-runtime")?;
        let mut text = String::from_utf8_lossy(&done.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&done.stderr));
        Ok(text)
    }

    /// Removes what a run that failed half-way may have left.
    pub(super) fn clean(&self) {
        private::remove_cgroups(&self.mark);
    }
}

impl Drop for Course {
    fn drop(&mut self) {
        let roots = std::fs::read_dir(self.scratch.join("state")).into_iter().flatten().flatten();
        for root in roots {
            let name = root.file_name();
            let program = match name.to_str() {
                Some("moat") => self.runtime.clone(),
                Some(peer) => PathBuf::from(peer),
                None => continue,
            };
            for container in std::fs::read_dir(root.path()).into_iter().flatten().flatten() {
                let mut command = Command::new(&program);
                command.arg("--root").arg(root.path()).args(["delete", "--force"]);
                // Most are gone already, and then this says so; nobody needs to hear it.
                let _ = silent(command.arg(container.file_name()));
            }
        }
        self.clean();
    }
}

/// Runs a command that should say nothing; when it fails, its complaint is the error.
pub(super) fn silent(command: &mut Command) -> Result<()> {
    // A pipe for the complaint would have to be emptied; the file is only read on failure.
    let complaint = tempfile()?;
    let reader = complaint.try_clone().context("cannot share a temporary file")?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(complaint);
    let status = command::status(command)?;
    if status.success() {
        return Ok(());
    }
    use std::io::{Read, Seek};
    let (mut reader, mut said) = (reader, String::new());
    let _ = reader.rewind().and_then(|()| reader.read_to_string(&mut said));
    bail!("`{}` ended with {status}: {}", command::line(command), said.trim());
}

fn tempfile() -> Result<std::fs::File> {
    use rustix::fs::{MemfdFlags, memfd_create};
    let fd = memfd_create("complaint", MemfdFlags::CLOEXEC).context("cannot make a memory file")?;
    Ok(std::fs::File::from(fd))
}

/// Waits until a process that is not our child has ended. Its entry may stay as a zombie's.
pub(super) fn wait_until_ended(pid: u32) {
    let alive = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        state.is_some_and(|state| state != 'Z' && state != 'X')
    };
    while alive() {
        std::thread::sleep(Duration::from_micros(200));
    }
}
