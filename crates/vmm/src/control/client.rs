//! The other side of the control socket, for the command line.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::{Context, Error, Result};

/// What the monitor answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// The most that an answer may have.
const MOST_BYTES: u64 = 64 << 20;

/// Sends one request and reads its answer.
pub fn request(socket: &Path, method: &str, target: &str, body: &str) -> Result<Answer> {
    let what = || format!("control socket {}", socket.display());
    let mut stream = UnixStream::connect(socket).context(what)?;
    let length = body.len();
    let text = format!(
        "{method} {target} HTTP/1.1\r\nHost: moat-vmm\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    stream.write_all(text.as_bytes()).context(what)?;
    let mut answer = Vec::new();
    stream.take(MOST_BYTES).read_to_end(&mut answer).context(what)?;
    parse(&answer).ok_or_else(|| Error::new(format!("{}: the answer is no HTTP", what())))
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(size) = head.parse(bytes).ok()? else { return None };
    let body = String::from_utf8_lossy(bytes.get(size..)?).into_owned();
    Some(Answer { status: head.code?, body })
}
