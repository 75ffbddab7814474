//! SIGKILL at any system call of a command, or of what it starts.
//!
//! A command is recorded once. Each call that one of its processes made there is a point: the n-th call of that name.
//! Then it is run again for each point, and whoever comes to that call is killed there.

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Stdio};

/// The n-th call of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// The system call.
    pub call: String,
    /// How many-th of its process, from 1.
    pub nth: usize,
}

/// How a command ended that was to be killed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Killed {
    /// Which of its processes were killed, in the order of their first call: 0 is the command itself.
    pub processes: Vec<usize>,
}

fn traced(strace: &mut Command, command: &Command, output: &Path) {
    strace.args(["-f", "-qq", "-o"]).arg(output).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => strace.env(name, value),
            None => strace.env_remove(name),
        };
    }
    strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
}

/// Every call that the command and what it starts make. It must end by itself.
pub fn points(command: &Command, output: &Path) -> Vec<Point> {
    traced(&mut Command::new("strace"), command, output);
    let text = std::fs::read_to_string(output).unwrap();
    let mut seen: HashMap<(&str, &str), usize> = HashMap::new();
    let mut points = Vec::new();
    for line in text.lines() {
        let Some((process, rest)) = line.split_once(' ') else { continue };
        let Some((call, _)) = rest.trim_start().split_once('(') else { continue };
        // What is resumed, signals and ends are no calls.
        if call.is_empty() || !call.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            continue;
        }
        let nth = seen.entry((process, call)).or_default();
        *nth += 1;
        points.push(Point { call: call.to_owned(), nth: *nth });
    }
    points
}

/// Runs the command; each of its processes that comes to the point is killed there.
pub fn killed_at(command: &Command, point: &Point, output: &Path) -> Killed {
    let mut strace = Command::new("strace");
    strace.args(["-e", &format!("inject={}:signal=KILL:when={}", point.call, point.nth)]);
    traced(&mut strace, command, output);
    let text = std::fs::read_to_string(output).unwrap();
    let mut order: Vec<&str> = Vec::new();
    let mut killed = Killed::default();
    for line in text.lines() {
        let Some((process, rest)) = line.split_once(' ') else { continue };
        let number = order.iter().position(|known| *known == process).unwrap_or_else(|| {
            order.push(process);
            order.len() - 1
        });
        if rest.contains("+++ killed by SIGKILL +++") {
            killed.processes.push(number);
        }
    }
    killed
}
