//! `cargo xtask bench net`: how fast workloads speak beside a bare pair of devices on a bridge that was made by hand,
//! and how the packet filter grows with the number of workloads.
//!
//! The bare bridge is in a network namespace without any rule of a packet filter. Both sides take turns, second by
//! second, in an order that changes.

use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::contender::silent;
use super::engine::Engine;
use super::measure::{Figures, Unit, turns};
use super::report::{self, Bound, Limit};
use super::{Options, private};
use crate::{command, packages, scratch::Scratch};

const NEIGHBOURS: &str = "container to container";
const HOST: &str = "host to container";
/// Rounds, where nobody says how many.
const ROUNDS: usize = 15;

/// A number of workloads, and the courses with the time that it took to come there, and what the filter then holds.
const GROWTH: [(u16, &str, &str); 4] = [
    (25, "start 25, 3 ports each", "nft objects of 25"),
    (50, "start 50, 3 ports each", "nft objects of 50"),
    (100, "start 100, 3 ports each", "nft objects of 100"),
    (200, "start 200, 3 ports each", "nft objects of 200"),
];
const REMOVAL: &str = "remove 200";

const LIMITS: &[Limit] = &[
    Limit { course: NEIGHBOURS, bound: Bound::AtLeastOf(0.95, "bare") },
    Limit { course: HOST, bound: Bound::AtLeastOf(0.95, "bare") },
    // Eight times as many workloads.
    Limit { course: GROWTH[3].2, bound: Bound::OfCourse(8.0, GROWTH[0].2) },
    Limit { course: GROWTH[3].1, bound: Bound::OfCourse(8.8, GROWTH[0].1) },
];

pub(super) fn run(arguments: &[String]) -> Result<ExitCode> {
    let options = Options::parse(arguments, "--moat", ROUNDS)?;
    packages::ensure(packages::BENCH_NET)?;
    let program = options.program("moat")?;
    if !private::inside() {
        return private::enter(arguments, "--moat", &program);
    }
    private::settle()?;
    private::cover("/run")?;
    let mark = format!("moat-bench-{}", std::process::id());
    let measured = measure(&program, &options, &mark);
    private::remove_cgroups(&mark);
    report::publish(&measured?, LIMITS, None, &options)
}

fn measure(program: &Path, options: &Options, mark: &str) -> Result<Figures> {
    let scratch = Scratch::new("net")?;
    let moat = Engine::moat(program, scratch.path(), mark);
    moat.probe(&super::run::archive(scratch.path())?)?;
    let mut figures = Figures::default();
    throughput(&moat, options.runs, &mut figures)?;
    moat.clear()?;
    grow(&moat, &mut figures)?;
    silent(&mut moat.command(&["system", "check"]))?;
    Ok(figures)
}

/// One of two sides: how to start a client of iperf3 beside the server and on the host, and the server's address.
struct Side<'a> {
    name: &'static str,
    neighbour: &'a dyn Fn() -> Command,
    host: &'a dyn Fn() -> Command,
    address: String,
}

impl Side<'_> {
    /// Sends for a second; the megabits of a second that came in.
    fn send(&self, mut client: Command) -> Result<f64> {
        client.args(["--client", &self.address, "--time", "1", "--json"]);
        let said = command::output(&mut client)?;
        let report: Value = serde_json::from_str(&said).context("what iperf3 says")?;
        let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
        Ok(bits.with_context(|| format!("iperf3 measured nothing: {said}"))? / 1e6)
    }
}

fn throughput(moat: &Engine, rounds: usize, figures: &mut Figures) -> Result<()> {
    let iperf = command::find("iperf3").context("iperf3 is not in PATH")?;
    let iperf = iperf.to_str().context("the name of iperf3 is no text")?;
    // The program of the host, with its libraries.
    let mounts = ["usr", "lib", "lib64"].map(|name| format!("--volume=/{name}:/{name}:ro"));
    let flags: Vec<&str> = mounts.iter().map(String::as_str).collect();
    let start = |name: &str, words: &[&str]| {
        silent(&mut moat.make(
            &["run", "--detach"],
            &[&["--name", name], flags.as_slice()].concat(),
            &[&[iperf], words].concat(),
        ))
    };
    start("server", &["--server"])?;
    start("client", &["--server", "--port", "5999"])?;
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let address = command::output(&mut moat.command(&["inspect", "--format", format, "server"]))?;
    let bare = Bare::make(iperf)?;
    let sides = [
        Side {
            name: "moat",
            neighbour: &|| moat.command(&["exec", "client", iperf]),
            host: &|| Command::new(iperf),
            address: address.trim().to_owned(),
        },
        Side {
            name: "bare",
            neighbour: &|| Bare::inside("client", iperf),
            host: &|| Bare::inside("host", iperf),
            address: Bare::SERVER.to_owned(),
        },
    ];
    eprintln!("--- bench: throughput, {rounds} seconds for each of four ways");
    let both: Vec<&Side<'_>> = sides.iter().collect();
    turns(1, &both, |side| side.send((side.neighbour)()).map(drop))?;
    turns(rounds, &both, |side| {
        figures.add(NEIGHBOURS, Unit::MegabitsPerS, side.name, side.send((side.neighbour)())?);
        figures.add(HOST, Unit::MegabitsPerS, side.name, side.send((side.host)())?);
        Ok(())
    })?;
    drop(bare);
    Ok(())
}

/// Three network namespaces: a host with a bridge, and two at pairs of devices on it.
struct Bare(Child);

impl Bare {
    const SERVER: &str = "10.99.0.2";

    fn make(iperf: &str) -> Result<Self> {
        let script = "ip netns add bare-host; h='ip -n bare-host'; $h link set lo up
            $h link add bare0 type bridge; $h addr add 10.99.0.1/24 dev bare0; $h link set bare0 up
            for one in server:2 client:3; do
              name=${one%:*}; ip netns add bare-$name; n=\"ip -n bare-$name\"; $n link set lo up
              $h link add $name type veth peer name eth0 netns bare-$name; $h link set $name master bare0 up
              $n addr add 10.99.0.${one#*:}/24 dev eth0; $n link set eth0 up
            done";
        command::quiet(Command::new("sh").args(["-ec", script]))?;
        let mut server = Self::inside("server", iperf);
        server.arg("--server").stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Self(server.spawn().context("cannot start iperf3")?))
    }

    fn inside(name: &str, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/bare-{name}")).arg(program);
        command
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // The namespaces go with the mounts of this benchmark. A server that has ended can not be killed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts more and more workloads, each with three ports, and counts what stands in the packet filter.
fn grow(moat: &Engine, figures: &mut Figures) -> Result<()> {
    let start = Instant::now();
    let ms = || start.elapsed().as_secs_f64() * 1e3;
    let mut counting_ms = 0.0;
    let mut number = 0;
    for (count, time, objects) in GROWTH {
        eprintln!("--- bench: {time}");
        while number < count {
            let first = 10_000 + 3 * number;
            let ports = [80, 81, 82].map(|port| format!("--publish={}:{port}", first + port - 80));
            let flags: Vec<&str> = ports.iter().map(String::as_str).collect();
            silent(&mut moat.make(&["run", "--detach"], &flags, &["sleep", "1000000"]))?;
            number += 1;
        }
        figures.add(time, Unit::Ms, moat.name, ms() - counting_ms);
        let before = ms();
        figures.add(objects, Unit::Objects, moat.name, objects_of_filter()?);
        counting_ms += ms() - before;
    }
    let before = ms();
    moat.clear()?;
    figures.add(REMOVAL, Unit::Ms, moat.name, ms() - before);
    Ok(())
}

/// Tables, chains, sets, rules and the elements of sets.
#[allow(clippy::cast_precision_loss)] // some thousands
fn objects_of_filter() -> Result<f64> {
    let text = command::output(Command::new("nft").args(["--json", "list", "ruleset"]))?;
    let document: Value = serde_json::from_str(&text).context("what nft lists")?;
    let objects = document["nftables"].as_array().context("nft lists nothing")?;
    let elements = |object: &Value| {
        let content = object.as_object().and_then(|object| object.values().next());
        content.and_then(|content| content["elem"].as_array()).map_or(0, Vec::len)
    };
    let count: usize = objects.iter().map(|object| 1 + elements(object)).sum();
    if count < 100 {
        bail!("the packet filter holds {count} objects: there is no filter of workloads");
    }
    Ok(count as f64)
}
