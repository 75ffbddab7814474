//! One line of a log as JSON.

use serde::Deserialize;

use crate::Timestamp;
use crate::frame::Stream;

/// Appends a line to `out`. What is not UTF-8 is replaced, as Docker does.
pub(super) fn append(out: &mut Vec<u8>, stream: Stream, text: &[u8], time: &str) {
    out.extend_from_slice(b"{\"log\":\"");
    for part in text.utf8_chunks() {
        part.valid().bytes().for_each(|byte| escape(out, byte));
        if !part.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
    out.extend_from_slice(b"\",\"stream\":\"");
    out.extend_from_slice(stream.name().as_bytes());
    out.extend_from_slice(b"\",\"time\":\"");
    out.extend_from_slice(time.as_bytes());
    out.extend_from_slice(b"\"}\n");
}

fn escape(out: &mut Vec<u8>, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    match byte {
        b'"' => out.extend_from_slice(b"\\\""),
        b'\\' => out.extend_from_slice(b"\\\\"),
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        // The last three as Go writes them, for those who show a log in a page.
        0..0x20 | 0x7f | b'<' | b'>' | b'&' => {
            let digit = |nibble: u8| HEX.get(usize::from(nibble)).copied().unwrap_or(b'0');
            out.extend_from_slice(&[b'\\', b'u', b'0', b'0', digit(byte >> 4), digit(byte & 15)]);
        }
        _ => out.push(byte),
    }
}

/// A line as it is read.
#[derive(Debug, Deserialize)]
pub(super) struct Line {
    log: String,
    stream: String,
    time: Timestamp,
}

/// Reads a line; `None` for one that was cut off.
pub(super) fn parse(line: &[u8]) -> Option<super::LogLine> {
    let line: Line = serde_json::from_slice(line).ok()?;
    let stream = match line.stream.as_str() {
        "stdout" => Stream::Stdout,
        "stderr" => Stream::Stderr,
        _ => return None,
    };
    Some(super::LogLine { stream, time: line.time, text: line.log.into_bytes() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_survives_or_is_replaced() {
        let all: Vec<u8> = (0..=127).chain("ä€🦀".bytes()).collect();
        let time = Timestamp::now();
        let mut line = Vec::new();
        append(&mut line, Stream::Stderr, &all, &time.to_string());
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let read = parse(&line).unwrap();
        assert_eq!((read.stream, read.time, read.text), (Stream::Stderr, time, all));

        let mut line = Vec::new();
        append(&mut line, Stream::Stdout, b"a\xff\xfeb", &time.to_string());
        assert_eq!(parse(&line).unwrap().text, "a\u{fffd}\u{fffd}b".as_bytes());
    }

    #[test]
    fn as_docker_writes_it() {
        let mut line = Vec::new();
        append(&mut line, Stream::Stdout, b"<a> & \"b\"\n", "2026-01-02T03:04:05.000000006Z");
        let text = r#"{"log":"\u003ca\u003e \u0026 \"b\"\n","stream":"stdout","time":"2026-01-02T03:04:05.000000006Z"}"#;
        assert_eq!(String::from_utf8(line).unwrap(), format!("{text}\n"));
    }

    #[test]
    fn damaged_lines_are_none() {
        for line in
            [&b""[..], b"{", b"{\"log\":\"x\"}", b"null", b"{\"log\":\"\",\"stream\":\"x\",\"time\":\"\"}"]
        {
            assert!(parse(line).is_none(), "{line:?}");
        }
    }
}
