//! Output of workloads: `logs`, `attach`, `events`.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

use moat_tests::{Moat, wait_until};

#[test]
fn logs_by_line_time_and_stream() {
    let moat = Moat::new();
    moat.run(&[
        "--name",
        "talks",
        "busybox",
        "sh",
        "-c",
        "for i in 1 2 3; do echo line $i; done; echo oops >&2",
    ])
    .success();
    let all = moat.call(&["logs", "talks"]);
    assert_eq!((all.success(), &*all.stderr), ("line 1\nline 2\nline 3\n", "oops\n"));
    let last = moat.call(&["logs", "--tail", "2", "talks"]);
    assert_eq!((last.success(), &*last.stderr), ("line 3\n", "oops\n"));
    let stamped = moat.call(&["logs", "-t", "-n", "1", "talks"]);
    assert!(stamped.stderr.starts_with("20") && stamped.stderr.ends_with("Z oops\n"), "{stamped:?}");
    assert_eq!(moat.call(&["logs", "--until", "2001-01-01", "talks"]).success(), "");
    assert_eq!(moat.call(&["logs", "--since", "1h", "talks"]).success().lines().count(), 3);
    assert!(moat.call(&["logs", "--since", "yesterday", "talks"]).failure().contains("yesterday"));
    moat.run(&["--name", "mute", "--log-driver", "none", "busybox", "echo", "x"]).success();
    assert_eq!(moat.call(&["logs", "mute"]).stdout, "");
}

#[test]
fn logs_follow_until_the_end() {
    let moat = Moat::new();
    moat.start("talks", &[], "echo first; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo last");
    let mut command = moat.command(&["logs", "--follow", "talks"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, "first\n");
    moat.call(&["exec", "talks", "touch", "/tmp/go"]).success();
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "last\n");
    assert!(child.wait().unwrap().success());
}

#[test]
fn attach_takes_input_and_gives_the_exit_code() {
    let moat = Moat::new();
    moat.start("asks", &["-i"], "read word; echo got $word; exit 4");
    let mut command = moat.command(&["attach", "asks"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "got hello\n");
    assert_eq!(child.wait().unwrap().code(), Some(4));
    assert!(moat.call(&["attach", "asks"]).failure().contains("not running"));
}

#[test]
fn signals_are_passed_on_and_a_killed_caller_harms_nothing() {
    let moat = Moat::new();
    let script = "trap 'echo caught; exit 6' TERM; echo ready; while :; do sleep 0.05; done";
    let mut command =
        moat.command(&["run", "--network", "none", "--name", "deaf", "busybox", "sh", "-c", script]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let pid = i32::try_from(child.id()).unwrap();
    moat_linux::process::kill(pid, 15).unwrap();
    line.clear();
    lines.read_line(&mut line).unwrap();
    assert_eq!((line.as_str(), child.wait().unwrap().code()), ("caught\n", Some(6)));

    moat.call(&["start", "deaf"]).success();
    let mut attached = moat.command(&["attach", "deaf"]).stdout(Stdio::null()).spawn().unwrap();
    attached.kill().unwrap();
    attached.wait().unwrap();
    assert_eq!(moat.status("deaf"), "running");
}

#[test]
fn events_are_told_in_order() {
    let moat = Moat::new();
    moat.run(&["--name", "short", "busybox", "true"]).success();
    moat.call(&["rm", "short"]).success();
    let events = moat.call(&[
        "events",
        "--since",
        "1h",
        "--until",
        "0s",
        "--format",
        "{{.Action}}",
        "--filter",
        "container=short",
    ]);
    assert_eq!(events.code, 0, "{events:?}");
    let words: Vec<&str> = events.stdout.split_whitespace().collect();
    let place = |word: &str| {
        words.iter().position(|found| *found == word).unwrap_or_else(|| panic!("{word} in {words:?}"))
    };
    assert!(
        place("create") < place("start") && place("start") < place("die") && place("die") < place("destroy")
    );
    let json = moat.call(&[
        "system",
        "events",
        "--since",
        "1h",
        "--until",
        "0s",
        "--format",
        "json",
        "--filter",
        "event=die",
    ]);
    let event: serde_json::Value = serde_json::from_str(json.success().lines().next().unwrap()).unwrap();
    assert_eq!(
        (&event["Type"], &event["Actor"]["Attributes"]["exitCode"]),
        (&"container".into(), &"0".into())
    );
}

#[test]
fn wait_waits() {
    let moat = Moat::new();
    moat.start("slow", &[], "while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 11");
    let child = moat.command(&["wait", "slow"]).stdout(Stdio::piped()).spawn().unwrap();
    wait_until(|| moat.call(&["exec", "slow", "touch", "/tmp/go"]).code == 0);
    assert_eq!(child.wait_with_output().unwrap().stdout, b"11\n");
}
