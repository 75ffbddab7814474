//! One workload in the foreground: streams, terminal, exit codes.

use std::io::Write;
use std::process::Stdio;

use moat_tests::{Pty, read_master};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::house::{House, yes};
use crate::{Case, Group, case};

pub(crate) const GROUP: Group = Group { title: "Streams and exit codes", before, cases: CASES };

fn before(house: &House) {
    let script = "echo out; echo err >&2; exit 7";
    house.keep("plain", house.run(&["--rm", "busybox", "sh", "-c", script]));
    let script = "wc -c; echo end";
    house.keep("input", house.run_with(&["--rm", "-i", "busybox", "sh", "-c", script], &[b'x'; 300_000]));
    let script = "test $$ != 1 && echo another; sh -c 'kill -9 $$'; echo $?; kill -9 $$";
    house.keep("init", house.run(&["--rm", "--init", "busybox", "sh", "-c", script]));
    typed(house);
}

/// A session at a terminal of 33 rows and 77 columns.
fn typed(house: &House) {
    let mut terminal = Pty::new();
    let size = Winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&terminal.master, size).unwrap();
    let mut command = house.moat.command(&house.words(&["--rm", "-it", "busybox", "sh"]));
    let end = || Stdio::from(terminal.open());
    let mut child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
    drop(command);
    terminal.master.write_all(b"stty size; test -t 2 && echo te''rminal; exit $((6*7))\n").unwrap();
    let said = read_master(&mut terminal.master);
    let code = child.wait().unwrap().code().unwrap();
    house.keep("typed", moat_tests::Output { code, signal: None, stdout: said, stderr: String::new() });
}

const CASES: &[Case] = &[
    case("exit code", "7", |house| house.kept("plain").code.to_string()),
    case("standard output", "out", |house| house.kept("plain").stdout.trim().to_owned()),
    case("standard error", "err", |house| house.kept("plain").stderr.trim().to_owned()),
    case("`--rm` leaves nothing", "", |house| house.say("ps --all --quiet")),
    case("`-i`: input to its end", "300000 end", |house| {
        house.kept("input").stdout.split_whitespace().collect::<Vec<_>>().join(" ")
    }),
    case("`--init`: another PID 1", "yes", |house| yes(house.kept("init").stdout.contains("another"))),
    case("a child that was killed", "yes", |house| yes(house.kept("init").stdout.contains("137"))),
    case("exit code of a signal", "137", |house| house.kept("init").code.to_string()),
    case("`-it`: size of the terminal", "yes", |house| yes(house.kept("typed").stdout.contains("33 77"))),
    case("`-it`: it is a terminal", "yes", |house| yes(house.kept("typed").stdout.contains("terminal"))),
    case("`-it`: exit code", "42", |house| house.kept("typed").code.to_string()),
    case("program that is not there", "127", |house| {
        house.run(&["--rm", "busybox", "nothing"]).code.to_string()
    }),
    case("program that is none", "126", |house| {
        house.run(&["--rm", "busybox", "/etc/passwd"]).code.to_string()
    }),
    case("`--entrypoint`", "a b", |house| {
        house.run(&["--rm", "--entrypoint", "/bin/echo", "busybox", "a", "b"]).stdout.trim().to_owned()
    }),
    case("the image's own command", "piped", |house| {
        house.run_with(&["--rm", "-i", "busybox"], b"echo piped\n").stdout.trim().to_owned()
    }),
    case("user that is not there", "125", |house| {
        house.run(&["--rm", "-u", "nobody-here", "busybox", "true"]).code.to_string()
    }),
    case("image that is not there", "125", |house| {
        house.run(&["--pull", "never", "nothing-here", "true"]).code.to_string()
    }),
    case("flag that is not there", "125", |house| house.run(&["--no-such-flag", "busybox"]).code.to_string()),
    case("`--cidfile`", "64", |house| {
        let file = house.path("cid").display().to_string();
        house.run(&["--rm", "--cidfile", &file, "busybox", "true"]).success();
        let id = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_file(file).unwrap();
        id.trim().len().to_string()
    }),
    case("name that is taken", "125", |house| {
        house.on_networks("create", &["--network", "none", "--name", "taken", "busybox"]).success();
        house.on_networks("create", &["--network", "none", "--name", "taken", "busybox"]).code.to_string()
    }),
];
