//! A blob as a stream that goes on where a broken connection has left it.

use std::io::{self, Read};

use ureq::http::StatusCode;

use super::client::{Answer, Call, Endpoint};
use crate::{Context, Digest, Error, Result};

/// So many times in a row a connection may break without bringing a byte.
const MAX_BREAKS: u32 = 5;

/// Reads a blob of a known size.
pub(super) struct BlobStream<'a> {
    endpoint: &'a Endpoint<'a>,
    path: String,
    size: u64,
    done: u64,
    reader: Option<Box<dyn Read + Send>>,
    breaks: u32,
}

impl<'a> BlobStream<'a> {
    /// Asks for the blob; its bytes come with the reads.
    ///
    /// Errors: the registry does not have it, or does not answer.
    pub(super) fn open(
        endpoint: &'a Endpoint<'a>,
        repository: &str,
        digest: &Digest,
        size: u64,
    ) -> Result<Self> {
        let path = format!("/v2/{repository}/blobs/{digest}");
        let mut stream = Self { endpoint, path, size, done: 0, reader: None, breaks: 0 };
        stream.reader = Some(stream.request()?);
        Ok(stream)
    }

    /// Asks for what is missing.
    fn request(&self) -> Result<Box<dyn Read + Send>> {
        let mut headers = Vec::new();
        if self.done > 0 {
            headers.push(("range", format!("bytes={}-", self.done)));
        }
        let answer = self.endpoint.send(&Call::get(&self.path, &headers))?;
        let skip = match answer.status() {
            _ if self.done == 0 => 0,
            StatusCode::PARTIAL_CONTENT if range_start(&answer) == Some(self.done) => 0,
            // It sends all of it again.
            StatusCode::OK => self.done,
            other => return Err(Error::new(format!("it answers {other} when asked for a part of a blob"))),
        };
        let mut reader = answer.into_body().into_reader();
        let skipped = io::copy(&mut Read::by_ref(&mut reader).take(skip), &mut io::sink());
        if skipped.context(|| "read the blob again")? != skip {
            return Err(Error::new("the blob has become shorter"));
        }
        Ok(Box::new(reader))
    }

    /// Whether another try is worth it; waits before it is.
    fn may_go_on(&mut self, reason: &Error) -> bool {
        self.breaks += 1;
        self.reader = None;
        if self.breaks > MAX_BREAKS {
            return false;
        }
        self.endpoint.pause(reason, self.breaks, None);
        true
    }
}

fn range_start(answer: &Answer) -> Option<u64> {
    let header = answer.headers().get("content-range")?.to_str().ok()?;
    header.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

impl Read for BlobStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.done >= self.size || buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let reader = match &mut self.reader {
                Some(reader) => reader,
                None => match self.request() {
                    Ok(reader) => self.reader.insert(reader),
                    Err(error) if self.may_go_on(&error) => continue,
                    Err(error) => return Err(error.into()),
                },
            };
            let error = match reader.read(buffer) {
                Ok(0) => Error::new(format!("the blob ends after {} of {} bytes", self.done, self.size)),
                Ok(count) => {
                    self.done += count as u64;
                    self.breaks = 0;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
                Err(error) => Error::from(error),
            };
            if !self.may_go_on(&error) {
                return Err(error.into());
            }
        }
    }
}
