//! The attach socket.

use std::os::fd::AsFd;

use moat_engine::{AttachSpec, ExitStatus, Received, StartOptions, StopOptions, Stream};
use moat_linux::net;
use moat_model::workload::{Status, WorkloadSpec};

use crate::house::{House, wait_until};

const OUTPUT: AttachSpec = AttachSpec { stdin: false, stdout: true, stderr: true };

pub(crate) fn input_and_output(house: &House) {
    let spec = WorkloadSpec { open_stdin: true, stdin_once: true, ..house.spec(&["cat"]) };
    let (_, started) = house.start(spec);
    let mut attached = started.attached.unwrap();
    // More than all buffers hold, so that both directions have to wait for each other.
    let text = "0123456789abcdef".repeat(1 << 16);
    let mut sent = 0;
    let mut heard = String::new();
    let exit = loop {
        if sent < text.len() {
            let taken = attached.offer_input(&text.as_bytes()[sent..]).unwrap().unwrap();
            sent += taken;
            if sent == text.len() {
                attached.end_input().unwrap();
            }
            if taken > 0 {
                continue;
            }
        }
        match attached.receive().unwrap() {
            Received::Output(Stream::Stdout, data) => heard += std::str::from_utf8(data).unwrap(),
            Received::Exit(exit) => break exit,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(exit, ExitStatus::default());
    assert!(heard == text);

    // Without stdin_once the input stays open for the next.
    let spec = WorkloadSpec { open_stdin: true, ..house.spec(&["cat"]) };
    let workload = house.engine.run(spec, &StartOptions::default()).unwrap().0;
    for _ in 0..2 {
        let mut attached = workload.attach(&AttachSpec { stdin: true, ..OUTPUT }).unwrap();
        attached.send_input(b"line\n").unwrap();
        assert_eq!(attached.receive().unwrap(), Received::Output(Stream::Stdout, b"line\n"));
        attached.end_input().unwrap();
    }
    assert_eq!(workload.state().unwrap().status, Status::Running);
}

pub(crate) fn a_stuck_reader_holds_nobody_up(house: &House) {
    let script = "i=0; while true; do i=$((i+1)); echo $i; done";
    let workload = house.detached(&["sh", "-c", script]);
    let stuck = workload.attach(&OUTPUT).unwrap();
    let mut reader = workload.attach(&OUTPUT).unwrap();
    let bytes = |workload: &moat_engine::Workload| workload.written_bytes().unwrap().1;
    // The stuck one stops everybody, until its patience of ten seconds is over.
    let mut heard = 0_u64;
    let begin = std::time::Instant::now();
    while begin.elapsed().as_secs() < 11 || heard < 4 << 20 {
        match reader.receive().unwrap() {
            Received::Output(_, data) => heard += data.len() as u64,
            other => panic!("{other:?}"),
        }
        assert!(begin.elapsed().as_secs() < 60, "{heard} bytes");
    }
    assert!(bytes(&workload) > 4 << 20);
    let state = workload.state().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", state.monitor.pid)).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 2048, "{peak} KiB");
    drop(stuck);
    workload.stop(&StopOptions { signal: Some(9), timeout_ms: None }).unwrap();
}

pub(crate) fn ten_thousand_attachments_leak_nothing(house: &House) {
    let workload = house.detached(&["sh", "-c", "while true; do echo x; sleep 0.01; done"]);
    let monitor = workload.state().unwrap().monitor.pid;
    let descriptors = || std::fs::read_dir(format!("/proc/{monitor}/fd")).unwrap().count();
    let memory = || {
        let text = std::fs::read_to_string(format!("/proc/{monitor}/smaps_rollup")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let attach = |count: usize| {
        for number in 0..count {
            let attached = workload.attach(&OUTPUT).unwrap();
            if number % 100 == 0 {
                // Some take something before they leave.
                let mut attached = attached;
                assert!(matches!(attached.receive().unwrap(), Received::Output(Stream::Stdout, _)));
            }
        }
    };
    // The first output has the monitor open its log.
    attach(1);
    let before = descriptors();
    attach(500);
    let settled = memory();
    attach(9500);
    wait_until(|| descriptors() <= before);
    assert!(memory() <= settled + 64, "{settled} KiB became {}", memory());
}

pub(crate) fn nonsense_on_the_socket(house: &House) {
    let workload = house.detached(&["sleep", "1000"]);
    let run = house.path().join("run/workloads").join(workload.id().as_str());
    let folder = std::fs::File::open(&run).unwrap();
    let packets: [&[u8]; 9] = [
        b"?",
        b"?{}",
        b"?null",
        b"i",
        b"\0",
        b"x",
        b"?{\"stop\":{\"signal\":-1}}",
        &[b'?'; 40_000],
        b"rabcd",
    ];
    for packet in packets {
        let socket = net::connect_in(folder.as_fd(), "attach.sock").unwrap();
        net::send(socket.as_fd(), packet, &[]).unwrap();
        let mut answer = [0; 100];
        // Whoever speaks nonsense is let go.
        match net::receive(socket.as_fd(), &mut answer) {
            Ok((count, _)) => assert_eq!(count, 0, "{packet:?}"),
            Err(error) => assert_eq!(error.errno(), moat_linux::Errno::CONNRESET, "{packet:?}"),
        }
    }
    // One that says nothing at all is no trouble to anybody.
    let _silent: Vec<_> = (0..20).map(|_| net::connect_in(folder.as_fd(), "attach.sock").unwrap()).collect();
    assert_eq!(workload.state().unwrap().status, Status::Running);
    workload.stop(&StopOptions { signal: Some(9), timeout_ms: None }).unwrap();
    assert_eq!(workload.wait().unwrap().code, 137);
}
