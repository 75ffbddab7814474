//! `cargo xtask bench pull`: an image of twelve layers and 300 MB from a registry on loopback, by Moat, by Podman, and
//! by skopeo and umoci together.
//!
//! Contenders take turns, each time into an empty store. Moat's part is the store alone, on the command line of its
//! tests; it syncs what it writes, the others do not.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{command, packages, registry::Registry, scratch::Scratch};

const USAGE: &str = "usage: cargo xtask bench pull [--runs N] [--gate]";
/// Layers of the image, and bytes of their files.
const LAYERS: u64 = 12;
const IMAGE_BYTES: u64 = 300_000_000;
const FILE_BYTES: u64 = 40_000;
/// The promise: at most so much memory.
const MAX_PEAK_KIB: f64 = 64.0 * 1024.0;

/// Seconds and peak memory in KiB.
type Measured = Result<(f64, f64)>;
/// A name, and one pull into an empty store.
type Contender<'a> = (&'a str, &'a dyn Fn() -> Measured);

/// What one contender needed.
#[derive(Default)]
struct Figures {
    seconds: Vec<f64>,
    peak_kib: Vec<f64>,
}

pub(super) fn run(arguments: &[String]) -> Result<ExitCode> {
    let (runs, gate) = parse(arguments)?;
    packages::ensure(packages::BENCH_PULL)?;
    command::step(command::cargo().args([
        "build",
        "--release",
        "--locked",
        "--package",
        "moat-tests",
        "--bin",
        "images",
    ]))?;
    let program = command::built("release")?.join("images");
    let scratch = Scratch::new("pull")?;
    let floor = super::floor(scratch.path())?;
    let registry = Registry::start(scratch.path())?;
    let name = fill(&registry, scratch.path())?;
    let course = Course { folder: scratch.path().to_owned(), floor, program, name };

    let contenders: [Contender<'_>; 3] = [
        ("moat", &|| course.moat()),
        ("podman pull", &|| course.podman()),
        ("skopeo copy, umoci unpack", &|| course.skopeo_and_umoci()),
    ];
    let mut figures = [Figures::default(), Figures::default(), Figures::default()];
    for round in 0..=runs {
        eprintln!("--- bench: pull, round {round} of {runs}");
        for ((_, contender), figures) in contenders.iter().zip(&mut figures) {
            let (seconds, peak_kib) = contender()?;
            // The first round warms the caches and is not counted.
            if round > 0 {
                figures.seconds.push(seconds);
                figures.peak_kib.push(peak_kib);
            }
        }
    }
    println!("{LAYERS} layers, {} MB, medians of {runs}", IMAGE_BYTES / 1_000_000);
    for ((name, _), figures) in contenders.iter().zip(&mut figures) {
        println!(
            "{name:<26} {:6.2} s  {:6.0} KiB",
            median(&mut figures.seconds),
            median(&mut figures.peak_kib)
        );
    }
    let [moat, podman, skopeo] = figures.each_mut().map(|one| median(&mut one.seconds));
    let peak = median(&mut figures[0].peak_kib);
    let limits = [
        ("time beside the faster of the others, at most 1", moat / podman.min(skopeo), 1.0),
        ("peak memory in KiB", peak, MAX_PEAK_KIB),
    ];
    let mut kept = true;
    for (what, value, limit) in limits {
        let passed = value <= limit;
        kept &= passed;
        println!("{} {what}: {value:.2}", if passed { "PASS" } else { "FAIL" });
    }
    Ok(if gate && !kept { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn parse(arguments: &[String]) -> Result<(usize, bool)> {
    let (mut runs, mut gate) = (5, false);
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--runs" => {
                let text = words.next().with_context(|| format!("--runs needs a value; {USAGE}"))?;
                runs = text.parse().with_context(|| format!("{text:?} is not a number of runs"))?;
            }
            "--gate" => gate = true,
            other => bail!("{other:?} is no option of the benchmark; {USAGE}"),
        }
    }
    if runs == 0 {
        bail!("--runs must be at least 1");
    }
    Ok((runs, gate))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

struct Course {
    folder: PathBuf,
    floor: PathBuf,
    program: PathBuf,
    name: String,
}

impl Course {
    fn measure(&self, measured: &Command) -> Measured {
        let program = measured.get_program().to_str().and_then(command::find);
        let program = program.with_context(|| format!("{} is not in PATH", command::line(measured)))?;
        let mut peak = Command::new(&self.floor);
        peak.arg("peak").arg(program).args(measured.get_args());
        let start = Instant::now();
        let said = command::output(&mut peak)?;
        let seconds = start.elapsed().as_secs_f64();
        let last = said.lines().last().unwrap_or_default();
        Ok((seconds, last.parse().with_context(|| format!("`floor peak` said {last:?}"))?))
    }

    fn empty(&self, name: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        if path.exists() {
            std::fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        // What the last one has written is not this one's to wait for.
        rustix::fs::sync();
        Ok(path)
    }

    fn moat(&self) -> Measured {
        let store = self.empty("store")?;
        let mut pull = Command::new(&self.program);
        self.measure(pull.arg(store).args(["pull", &self.name]))
    }

    fn podman(&self) -> Measured {
        let root = self.empty("podman")?;
        let mut podman = Command::new("podman");
        podman.arg("--root").arg(&root).arg("--runroot").arg(self.folder.join("podman-run"));
        podman.args(["--storage-driver", "overlay", "pull", "--quiet", "--tls-verify=false", &self.name]);
        self.measure(&podman)
    }

    fn skopeo_and_umoci(&self) -> Measured {
        let (layout, bundle) = (self.empty("layout")?, self.empty("bundle")?);
        let from = format!("docker://{}", self.name);
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["copy", "-q", "--src-tls-verify=false", &from, &format!("oci:{}:x", layout.display())]);
        let copied = self.measure(&skopeo)?;
        let mut umoci = Command::new("umoci");
        umoci.args(["unpack", "--image", &format!("{}:x", layout.display())]).arg(bundle);
        let unpacked = self.measure(&umoci)?;
        Ok((copied.0 + unpacked.0, copied.1.max(unpacked.1)))
    }
}

/// Makes the image and copies it into the registry; gives its name.
fn fill(registry: &Registry, scratch: &Path) -> Result<String> {
    let layout = scratch.join("image");
    let image = format!("{}:x", layout.display());
    command::quiet(Command::new("umoci").arg("init").arg("--layout").arg(&layout))?;
    command::quiet(Command::new("umoci").args(["new", "--image", &image]))?;
    for layer in 0..LAYERS {
        eprintln!("--- bench: making layer {} of {LAYERS}", layer + 1);
        let (folder, archive) = (scratch.join("layer"), scratch.join("layer.tar"));
        write_files(&folder.join(format!("layer-{layer}")), layer)?;
        command::quiet(Command::new("tar").arg("-C").arg(&folder).arg("-cf").arg(&archive).arg("."))?;
        command::quiet(Command::new("umoci").args(["raw", "add-layer", "--image", &image]).arg(&archive))?;
        std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    registry.fill(&format!("oci:{image}"), "bench:1")
}

/// Files of words that chance picks: they pack about as programs and texts do.
fn write_files(folder: &Path, seed: u64) -> Result<()> {
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ (seed + 1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for number in 0..IMAGE_BYTES / LAYERS / FILE_BYTES {
        let folder = folder.join((number / 50).to_string());
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mut content = Vec::new();
        while content.len() < usize::try_from(FILE_BYTES)? {
            // Some words come often, some hardly ever.
            let word = next() % 4096 % (1 + next() % 4096);
            write!(content, "{:x} ", word * 0x9e37_79b9).context("cannot write to memory")?;
        }
        let path = folder.join(number.to_string());
        std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
