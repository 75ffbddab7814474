//! The host's side of the agent's protocol, as a test needs it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use moat_model::agent::{self, Answer, PORT, READY_PORT, Request, Stream};
use serde::de::DeserializeOwned;

/// A machine with the agent as its first process.
pub(crate) struct Machine {
    monitor: Child,
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

/// What a process wrote, and how it ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Machine {
    /// Boots one with `disks` (file, serial number) and waits until its agent is ready.
    pub(crate) fn boot(kernel: &Path, initramfs: &Path, monitor: &Path, disks: &[(PathBuf, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("vsock");
        let ready = UnixListener::bind(folder.path().join(format!("vsock_{READY_PORT}"))).unwrap();
        let mut command = Command::new(monitor);
        command.args(["run", "--memory", "256M", "--no-rng"]);
        command.arg("--cmdline").arg("console=ttyS0 rdinit=/init panic=-1 reboot=t quiet loglevel=4");
        command.arg("--kernel").arg(kernel).arg("--initrd").arg(initramfs);
        command.arg("--vsock").arg(format!("3,{}", socket.display()));
        for (file, serial) in disks {
            let option = if *serial == "writable" { "" } else { ",ro" };
            command.arg("--disk").arg(format!("{},id={serial}{option}", file.display()));
        }
        let monitor = command.stdin(Stdio::null()).spawn().unwrap();
        drop(ready.accept().unwrap());
        Self { monitor, socket, _folder: folder }
    }

    /// A connection to the agent.
    pub(crate) fn connect(&self) -> Connection {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        writeln!(stream, "CONNECT {PORT}").unwrap();
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        assert!(line.starts_with(b"OK "), "{}", String::from_utf8_lossy(&line));
        Connection(stream)
    }

    /// One question, one answer.
    pub(crate) fn ask(&self, request: &Request) -> Answer {
        let mut connection = self.connect();
        connection.send(request);
        connection.receive()
    }

    /// The stream of a process.
    pub(crate) fn attach(&self, process: u32, stream: Stream) -> UnixStream {
        let mut connection = self.connect();
        connection.send(&Request::Attach { process, stream });
        assert_eq!(connection.receive::<Answer>(), Answer::Done);
        connection.0
    }

    /// All that a process that was just made writes, and its end.
    pub(crate) fn finish(&self, created: &Answer) -> Ended {
        let &Answer::Created { process, .. } = created else { panic!("{created:?}") };
        let read = |stream| {
            let mut stream = self.attach(process, stream);
            std::thread::spawn(move || {
                let mut text = String::new();
                stream.read_to_string(&mut text).unwrap();
                text
            })
        };
        let (stdout, stderr) = (read(Stream::Stdout), read(Stream::Stderr));
        let Answer::Exited(exit) = self.ask(&Request::Wait { process }) else { panic!("no end") };
        Ended { code: exit.code, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
    }

    /// Switches the machine off and gives the monitor's exit code.
    pub(crate) fn power_off(mut self) -> Option<i32> {
        assert_eq!(self.ask(&Request::PowerOff), Answer::Done);
        self.monitor.wait().unwrap().code()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It has ended where the test came to its own end.
        let _ = self.monitor.kill();
        let _ = self.monitor.wait();
    }
}

pub(crate) struct Connection(pub(crate) UnixStream);

impl Connection {
    pub(crate) fn send(&mut self, request: &Request) {
        self.0.write_all(&agent::encode(request).unwrap()).unwrap();
    }

    pub(crate) fn receive<T: DeserializeOwned>(&mut self) -> T {
        let mut bytes = Vec::new();
        loop {
            if let Some((value, length)) = agent::decode(&bytes).unwrap() {
                assert_eq!(length, bytes.len(), "more than one answer");
                return value;
            }
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            bytes.push(byte[0]);
        }
    }
}

/// A tree as an EROFS image beside it.
pub(crate) fn layer(tree: &Path) -> PathBuf {
    let path = tree.with_extension("erofs");
    let image = File::create_new(&path).unwrap();
    let root = File::open(tree).unwrap();
    moat_image::erofs::write(
        std::os::fd::AsFd::as_fd(&root),
        &image,
        [0; 16],
        moat_image::Ownership::Privileged,
    )
    .unwrap();
    path
}
