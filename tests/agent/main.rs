//! The agent as the first process of a machine of `moat-vmm`, asked as the engine asks it. It needs KVM with
//! hardware virtualization, so it runs in the emulated host.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests")]

mod host;

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use host::{Ended, Machine, layer};
use moat_model::agent::{
    Answer, CreateSpec, DiskSpec, ExecSpec, FileSpec, GuestSpec, Request, RootSpec, Stream,
};
use moat_model::oci;
use moat_tests::{GuestKernel, in_lab, run_in_lab_with};
use serde_json::json;

#[test]
fn a_workload_runs_in_a_guest() {
    if in_lab() {
        inside();
    } else if let Some(guest) = GuestKernel::find() {
        run_in_lab_with("a_workload_runs_in_a_guest", &guest.files());
    } else {
        println!(
            "skipped: there is no guest kernel; `cargo xtask kernel` builds it once, in a quarter of an hour"
        );
    }
}

/// One boot, many questions.
fn inside() {
    let folder = tempfile::tempdir().unwrap();
    let layers = layers(folder.path());
    let kernel = GuestKernel::in_lab();
    let disks = [(layers[0].clone(), "top"), (layers[1].clone(), "base")];
    let machine = Machine::boot(&kernel.kernel, &kernel.initramfs, &kernel.monitor, &disks);

    let early = machine.ask(&Request::Create(Box::new(create("early", &["true"]))));
    assert!(matches!(early, Answer::Failed { .. }), "{early:?}");
    assert_eq!(machine.ask(&Request::Configure(Box::new(guest()))), Answer::Done);
    let again = machine.ask(&Request::Configure(Box::new(guest())));
    assert!(matches!(again, Answer::Failed { .. }), "{again:?}");

    let script = "echo out; echo err >&2; cat /etc/layer /etc/hosts; ls /gone; hostname; id -u; echo $$; \
                  while read line; do echo got $line; done; exit 7";
    let created = machine.ask(&Request::Create(Box::new(create("first", &["sh", "-c", script]))));
    let &Answer::Created { process, pid } = &created else { panic!("{created:?}") };
    assert!(pid > 1);
    let mut input = machine.attach(process, Stream::Stdin);
    input.write_all(b"one\ntwo\n").unwrap();
    further_processes(&machine);
    terminal(&machine);
    look_and_change(&machine);
    not_a_frame(&machine);
    // The stream ends with the connection.
    drop(input);
    let ended = machine.finish(&created);
    let stdout = "out\nof the top\n10.0.0.1 here\nguest-one\n0\n1\ngot one\ngot two\n";
    let stderr = "err\nls: /gone: No such file or directory\n";
    assert_eq!(ended, Ended { code: 7, stdout: stdout.to_owned(), stderr: stderr.to_owned() });
    let again = machine.ask(&Request::Attach { process, stream: Stream::Stdout });
    assert!(matches!(again, Answer::Failed { .. }), "{again:?}");
    let unknown = machine.ask(&Request::Wait { process: 99 });
    assert!(matches!(unknown, Answer::Failed { .. }), "{unknown:?}");
    assert_eq!(machine.power_off(), Some(0));
}

fn process(args: &[&str], terminal: bool) -> oci::Process {
    let mut process = spec(args).process.unwrap();
    process.terminal = terminal;
    process
}

fn exec(machine: &Machine, args: &[&str], terminal: bool) -> Answer {
    let spec = ExecSpec { process: process(args, terminal), stdin: false };
    machine.ask(&Request::Exec(Box::new(spec)))
}

fn further_processes(machine: &Machine) {
    let ended = machine.finish(&exec(machine, &["sh", "-c", "echo more; kill -9 $$"], false));
    assert_eq!(ended, Ended { code: 137, stdout: "more\n".to_owned(), stderr: String::new() });
    let missing = exec(machine, &["no-such-program"], false);
    let Answer::Failed { message, .. } = &missing else { panic!("{missing:?}") };
    assert!(message.contains("no-such-program"), "{message}");

    // More than pipes and buffers hold, to a reader that comes late.
    let created = exec(machine, &["sh", "-c", "seq 1 200000; echo end >&2"], false);
    let &Answer::Created { process, .. } = &created else { panic!("{created:?}") };
    let mut stderr = String::new();
    let mut late = machine.attach(process, Stream::Stdout);
    let mut whole = String::new();
    late.read_to_string(&mut whole).unwrap();
    machine.attach(process, Stream::Stderr).read_to_string(&mut stderr).unwrap();
    assert_eq!(
        (whole.lines().count(), whole.lines().last(), stderr.as_str()),
        (200_000, Some("200000"), "end\n")
    );

    // Whoever reads may leave; the process goes on.
    let created = exec(machine, &["sh", "-c", "while echo again; do :; done; sleep 1000"], false);
    let &Answer::Created { process, .. } = &created else { panic!("{created:?}") };
    drop(machine.attach(process, Stream::Stdout));
    assert_eq!(machine.ask(&Request::Signal { process, signal: 9, all: false }), Answer::Done);
    let Answer::Exited(exit) = machine.ask(&Request::Wait { process }) else { panic!("no end") };
    assert_eq!(exit.code, 137);
}

fn terminal(machine: &Machine) {
    let created = exec(machine, &["sh", "-c", "read word; stty size; echo $word"], true);
    let &Answer::Created { process, .. } = &created else { panic!("{created:?}") };
    assert_eq!(machine.ask(&Request::Resize { process, rows: 31, columns: 97 }), Answer::Done);
    let mut terminal = machine.attach(process, Stream::Terminal);
    terminal.write_all(b"typed\n").unwrap();
    let mut text = String::new();
    terminal.read_to_string(&mut text).unwrap();
    assert_eq!(text, "typed\r\n31 97\r\ntyped\r\n");
}

fn look_and_change(machine: &Machine) {
    let Answer::Processes { list } = machine.ask(&Request::Processes) else { panic!("no list") };
    assert!(list.iter().any(|row| row.command.starts_with("sh -c echo out") && row.uid == 0), "{list:?}");
    let resources = json!({ "pids": { "limit": 17 }, "memory": { "limit": 64 << 20 } });
    let resources = serde_json::from_value(resources).unwrap();
    assert_eq!(machine.ask(&Request::Update(Box::new(resources))), Answer::Done);
    let answer = machine.ask(&Request::Stats);
    let Answer::Stats { container, memory } = &answer else { panic!("{answer:?}") };
    assert_eq!(container["pids"]["limit"], 17, "{container}");
    assert_eq!(container["memory"]["usage"]["limit"], 64 << 20, "{container}");
    assert!(memory.total_bytes > 100 << 20 && memory.available_bytes < memory.total_bytes, "{memory:?}");
    let greedy = exec(machine, &["sh", "-c", "head -c 100000000 /dev/zero | tail"], false);
    let &Answer::Created { process, .. } = &greedy else { panic!("{greedy:?}") };
    let Answer::Exited(exit) = machine.ask(&Request::Wait { process }) else { panic!("no end") };
    assert!(exit.oom_kills > 0 && exit.oom_victims.iter().any(|(_, name)| name == "tail"), "{exit:?}");
    assert_eq!(machine.ask(&Request::Freeze), Answer::Done);
    assert_eq!(machine.ask(&Request::Thaw), Answer::Done);
}

/// What is no request ends its connection, and no other.
fn not_a_frame(machine: &Machine) {
    for bytes in [&b"\xff\xff\xff\xff"[..], b"\x02\0\0\0{}", b"\x04\0\0\0null", b"\x01\0"] {
        let mut connection = machine.connect();
        connection.0.write_all(bytes).unwrap();
        connection.0.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        connection.0.read_to_end(&mut answer).unwrap();
        assert!(answer.is_empty() || answer.windows(6).any(|part| part == b"failed"), "{answer:?}");
    }
    assert!(matches!(machine.ask(&Request::Processes), Answer::Processes { .. }));
}

/// What runc would propose, without namespaces that a machine of its own makes needless.
fn spec(args: &[&str]) -> oci::Spec {
    let mut config = moat_tests::default_config();
    config["process"]["args"] = json!(args);
    config["process"]["terminal"] = json!(false);
    let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "network" && namespace["type"] != "uts");
    config.as_object_mut().unwrap().remove("hostname");
    let hosts = json!({ "destination": "/etc/hosts", "type": "bind", "source": "/run/moat/files/hosts", "options": ["bind"] });
    config["mounts"].as_array_mut().unwrap().push(hosts);
    serde_json::from_value(config).unwrap()
}

fn create(id: &str, args: &[&str]) -> CreateSpec {
    CreateSpec { id: id.to_owned(), config: spec(args), stdin: true, init: false }
}

fn guest() -> GuestSpec {
    let disk = |serial: &str| DiskSpec { serial: serial.to_owned() };
    GuestSpec {
        hostname: "guest-one".to_owned(),
        machine_id: "0".repeat(32),
        clock_ns: 1_700_000_000_000_000_000,
        entropy: vec![7; 64],
        root: RootSpec { layers: vec![disk("top"), disk("base")], writable: None, memory_bytes: 32 << 20 },
        files: vec![FileSpec { name: "hosts".to_owned(), content: b"10.0.0.1 here\n".to_vec(), mode: 0o644 }],
        ..GuestSpec::default()
    }
}

/// A base of busybox, and a layer that hides one of its files and replaces another.
fn layers(folder: &Path) -> [PathBuf; 2] {
    let (top, base) = (folder.join("top"), folder.join("base"));
    moat_tests::make_root(&base);
    fs::write(base.join("gone"), "of the base").unwrap();
    fs::write(base.join("etc/layer"), "of the base\n").unwrap();
    fs::write(base.join("etc/hosts"), "").unwrap();
    fs::create_dir_all(top.join("etc")).unwrap();
    fs::write(top.join("etc/layer"), "of the top\n").unwrap();
    let here = fs::File::open(&top).unwrap();
    let kind = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(&here, "gone", kind, rustix::fs::Mode::empty(), 0).unwrap();
    [layer(&top), layer(&base)]
}
