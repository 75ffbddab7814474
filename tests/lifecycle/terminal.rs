//! Terminals of containers.

use std::fs::File;
use std::io::{Read, Write};
use std::process::Command;

use moat_tests::{Bundle, ConsoleSocket, Pty, Runtime, read_master};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};
use serde_json::json;

use crate::sleeping;

fn with_terminal(script: &str) -> Bundle {
    let mut bundle = Bundle::shell(script);
    bundle.set("/process/terminal", json!(true));
    bundle
}

/// Reads until a word has come.
fn read_until(master: &mut File, word: &str) -> String {
    let mut text = String::new();
    let mut part = [0; 256];
    while !text.contains(word) {
        let count = master.read(&mut part).unwrap();
        text += &String::from_utf8_lossy(part.get(..count).unwrap());
    }
    text
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

#[test]
fn the_socket_gets_the_master() {
    let runtime = Runtime::new();
    let socket = ConsoleSocket::new(runtime.folder().join("console"));
    let mut bundle = with_terminal(
        "tty; stty size; stat -c '%t:%T' /dev/console /dev/pts/0; echo controlled > /dev/tty; \
         echo console > /dev/console; for n in 0 1 2; do [ -t $n ] && echo terminal $n; done",
    );
    bundle.set("/process/consoleSize", json!({ "height": 31, "width": 117 }));
    let flags = ["--console-socket", socket.path().to_str().unwrap()];
    let container = runtime.create_with(&bundle, &flags).unwrap();
    let mut master = socket.receive();
    container.start().success();
    let text = read_master(&mut master);
    let expected =
        "/dev/pts/0\n31 117\n88:0\n88:0\ncontrolled\nconsole\nterminal 0\nterminal 1\nterminal 2\n";
    assert_eq!(text.replace("\r\n", "\n"), expected);
    assert_eq!(container.stdout(), "");
    container.wait();
}

#[test]
fn the_terminal_controls_the_program() {
    let runtime = Runtime::new();
    let socket = ConsoleSocket::new(runtime.folder().join("console"));
    let bundle =
        with_terminal("trap 'echo interrupted; exit 0' INT; echo ready; while :; do sleep 0.02; done");
    let flags = ["--console-socket", socket.path().to_str().unwrap()];
    let container = runtime.create_with(&bundle, &flags).unwrap();
    let mut master = socket.receive();
    container.start().success();
    read_until(&mut master, "ready");
    master.write_all(b"\x03").unwrap();
    assert!(read_master(&mut master).contains("interrupted"));
    container.wait();
}

/// A command on a terminal, as a person starts it.
fn on(pty: &Pty, mut command: Command) -> std::process::Child {
    command.stdin(pty.open()).stdout(pty.open()).stderr(pty.open()).spawn().unwrap()
}

#[test]
fn run_serves_the_terminal_of_its_caller() {
    let runtime = Runtime::new();
    let mut pty = Pty::new();
    let slave = pty.open();
    tcsetwinsize(&pty.master, size(25, 99)).unwrap();
    let before = format!("{:?}", tcgetattr(&slave).unwrap());
    let bundle = with_terminal(
        "tty; stty size; echo ready; read line; echo got $line; \
         until [ \"$(stty size)\" = '40 100' ]; do sleep 0.02; done; echo resized; exit 3",
    );
    let mut child = on(&pty, runtime.build("run", &bundle, &[], &runtime.id()));
    let text = read_until(&mut pty.master, "ready");
    assert!(text.contains("/dev/pts/0\r\n25 99\r\n"), "{text:?}");
    assert_ne!(format!("{:?}", tcgetattr(&slave).unwrap()), before, "the caller's terminal is raw");
    pty.master.write_all(b"a line\r").unwrap();
    read_until(&mut pty.master, "got a line");
    tcsetwinsize(&pty.master, size(40, 100)).unwrap();
    // The kernel tells the terminal's own session alone, to which this runtime does not belong.
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::WINCH)
        .unwrap();
    read_until(&mut pty.master, "resized");
    assert_eq!(child.wait().unwrap().code(), Some(3));
    assert_eq!(format!("{:?}", tcgetattr(&slave).unwrap()), before, "the terminal is as it was");
}

#[test]
fn exec_has_a_terminal_of_its_own() {
    let runtime = Runtime::new();
    let container = runtime.start(&sleeping());
    let mut pty = Pty::new();
    tcsetwinsize(&pty.master, size(20, 60)).unwrap();
    let script = "tty; stty size; echo controlled > /dev/tty; exit 4";
    let slave = pty.open();
    let mut child = on(&pty, container.exec_command(&["--tty"], &["sh", "-c", script]));
    let text = read_until(&mut pty.master, "controlled");
    assert_eq!(text.trim_end(), "/dev/pts/0\r\n20 60\r\ncontrolled");
    assert_eq!(child.wait().unwrap().code(), Some(4));
    drop(slave);
}
