//! What a guest that was taken over may answer, in the place of the agent. The host name that the workload was given
//! says which lie is told.
#![allow(
    clippy::unwrap_used,
    reason = "a first process that ends is a panic of its kernel, which a test sees"
)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use moat_linux::vsock;
use moat_model::agent::{
    Answer, Exit, FRAME_HEADER_BYTES, GuestMemory, MAX_FRAME_BYTES, PORT, ProcessRow, READY_PORT, Request,
    encode,
};
use rustix::event::{PollFd, PollFlags, poll};

/// What would move a terminal's cursor, and more.
const SPELL: &str = "\x1b[2J\x1b]0;owned\x07\r\n";

fn main() {
    let listener = vsock::listen(PORT).unwrap();
    let _ready = vsock::connect(vsock::HOST, READY_PORT);
    let lie = Arc::new(Mutex::new(String::new()));
    loop {
        poll(&mut [PollFd::new(&listener, PollFlags::IN)], None).unwrap();
        let Ok(socket) = vsock::accept(listener.as_fd()) else { continue };
        let lie = Arc::clone(&lie);
        std::thread::spawn(move || {
            rustix::io::ioctl_fionbio(&socket, false).unwrap();
            // The host may hang up at any time.
            let _ = converse(File::from(socket), &lie);
        });
    }
}

fn converse(mut socket: File, lie: &Mutex<String>) -> std::io::Result<()> {
    let mut header = [0; FRAME_HEADER_BYTES];
    socket.read_exact(&mut header)?;
    let mut text = vec![0; u32::from_le_bytes(header) as usize];
    socket.read_exact(&mut text)?;
    let request: Request = serde_json::from_slice(&text).unwrap();
    if let Request::Configure(spec) = &request {
        lie.lock().unwrap().clone_from(&spec.hostname);
    }
    let lie = lie.lock().unwrap().clone();
    let answer = match (request, lie.as_str()) {
        (Request::Configure(_), lie) => return configured(socket, lie),
        (Request::Create(_), _) => Answer::Created { process: 1, pid: i32::MIN },
        (Request::Exec(_), _) => Answer::Created { process: u32::MAX, pid: -1 },
        (Request::Wait { .. }, "numbers") => Answer::Exited(Exit {
            code: i32::MIN,
            oom_kills: u64::MAX,
            oom_victims: vec![(i32::MIN, SPELL.repeat(1000)); 100],
        }),
        (Request::Wait { .. } | Request::Signal { .. } | Request::PowerOff, _) => return hang(&socket),
        (Request::Attach { .. }, _) => {
            say(&mut socket, &Answer::Done)?;
            return hang(&socket);
        }
        (Request::Stats, _) => Answer::Stats { container: figures(), memory: memory() },
        (Request::Processes, _) => Answer::Processes { list: vec![row(); 5000] },
        _ => Answer::Done,
    };
    say(&mut socket, &answer)
}

/// The answer to the first question, which decides whether the workload starts at all.
fn configured(mut socket: File, lie: &str) -> std::io::Result<()> {
    match lie {
        "silent" => hang(&socket),
        "panic" => std::process::exit(3),
        "huge" => socket.write_all(&[0xff; 64]),
        "garbage" => {
            let mut bytes = [0; 4096];
            File::open("/dev/urandom").or_else(|_| File::open("/init"))?.read_exact(&mut bytes)?;
            bytes[..4].copy_from_slice(&4092_u32.to_le_bytes());
            socket.write_all(&bytes)
        }
        "deep" => {
            let text = "[".repeat(MAX_FRAME_BYTES - 1);
            socket.write_all(&(text.len() as u32).to_le_bytes())?;
            socket.write_all(text.as_bytes())
        }
        "slow" => {
            socket.write_all(&(MAX_FRAME_BYTES as u32).to_le_bytes())?;
            loop {
                socket.write_all(b" ")?;
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        "other" => say(&mut socket, &Answer::Exited(Exit::default())),
        "spell" => {
            let message = SPELL.repeat(10_000);
            say(&mut socket, &Answer::Failed { hint: Some(message.clone()), message, code: 0 })
        }
        _ => say(&mut socket, &Answer::Done),
    }
}

fn say(socket: &mut File, answer: &Answer) -> std::io::Result<()> {
    socket.write_all(&encode(answer).unwrap())
}

/// Until the host hangs up.
fn hang(socket: &File) -> std::io::Result<()> {
    let mut socket = socket;
    while socket.read(&mut [0; 4096])? > 0 {}
    Ok(())
}

fn figures() -> serde_json::Value {
    let entry =
        serde_json::json!({"limit": u64::MAX, "usage": u64::MAX, "max": u64::MAX, "failcnt": u64::MAX});
    let moved = serde_json::json!({"major": 1, "minor": 1, "op": "Read", "value": u64::MAX});
    serde_json::json!({
        "cpu": {"usage": {"total": u64::MAX, "kernel": u64::MAX, "user": u64::MAX}},
        "memory": {"cache": u64::MAX, "usage": entry, "swap": entry, "raw": {"inactive_file": 1}},
        "pids": {"current": u64::MAX, "limit": u64::MAX},
        "blkio": {"ioServiceBytesRecursive": [moved, moved, moved]},
    })
}

fn memory() -> GuestMemory {
    GuestMemory { total_bytes: u64::MAX, available_bytes: u64::MAX }
}

fn row() -> ProcessRow {
    ProcessRow { pid: i32::MIN, parent: i32::MAX, uid: u32::MAX, cpu_ms: u64::MAX, command: SPELL.to_owned() }
}
