//! HTTP/1.1, as much as a control socket needs: requests and answers with a length, one after the other.

use std::fmt::Write;

/// A request or an answer is not longer than this, head and body together.
pub const MOST_BYTES: usize = 256 << 10;
/// So many header lines are read.
const MOST_HEADERS: usize = 64;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `PUT`, `POST`.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// What stands behind `?`, pair by pair, not decoded: no value here needs it.
    pub query: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Request {
    /// The value of a query parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The type of the body.
    pub content_type: &'static str,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// JSON.
    pub fn json(value: &impl serde::Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self { status: 200, content_type: "application/json", body },
            Err(error) => Self::failed(500, &error.to_string()),
        }
    }

    /// Text for a person.
    pub fn text(text: &str) -> Self {
        Self { status: 200, content_type: "text/plain; charset=utf-8", body: text.as_bytes().to_vec() }
    }

    /// Done, and nothing to say.
    pub fn done() -> Self {
        Self { status: 204, content_type: "application/json", body: Vec::new() }
    }

    /// An error, with its sentence.
    pub fn failed(status: u16, message: &str) -> Self {
        let body = serde_json::json!({ "message": message }).to_string().into_bytes();
        Self { status, content_type: "application/json", body }
    }

    /// As it goes over the socket.
    pub fn bytes(&self, keep: bool) -> Vec<u8> {
        let reason = match self.status {
            200 => "OK",
            204 => "No Content",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            409 => "Conflict",
            413 => "Content Too Large",
            _ => "Internal Server Error",
        };
        let mut head = String::new();
        let connection = if keep { "keep-alive" } else { "close" };
        // Writing into a string cannot fail.
        let _ = write!(
            head,
            "HTTP/1.1 {} {reason}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n",
            self.status,
            self.content_type,
            self.body.len()
        );
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// What stands at the start of a buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Not all of a request.
    Partial,
    /// A request, how many bytes it took, and whether the connection goes on.
    Request(Request, usize, bool),
    /// No request: the status and the sentence to answer with. The connection ends.
    Refused(u16, String),
}

/// Parses the request at the start of a buffer.
pub fn parse(buffer: &[u8]) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let head_bytes = match head.parse(buffer) {
        Ok(httparse::Status::Complete(bytes)) => bytes,
        Ok(httparse::Status::Partial) if buffer.len() < MOST_BYTES => return Parsed::Partial,
        Ok(httparse::Status::Partial) => return too_large(),
        Err(error) => return Parsed::Refused(400, format!("this is no HTTP request: {error}")),
    };
    let (Some(method), Some(target)) = (head.method, head.path) else { return Parsed::Partial };
    let mut length = 0;
    let mut keep = head.version == Some(1);
    for header in head.headers.iter() {
        let value = std::str::from_utf8(header.value).unwrap_or_default().trim();
        if header.name.eq_ignore_ascii_case("content-length") {
            match value.parse::<usize>() {
                Ok(bytes) => length = bytes,
                Err(_) => return Parsed::Refused(400, format!("Content-Length: {value:?} is no number")),
            }
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Parsed::Refused(400, "a body needs a Content-Length here".to_owned());
        } else if header.name.eq_ignore_ascii_case("connection") {
            keep &= !value.eq_ignore_ascii_case("close");
        }
    }
    let Some(end) = head_bytes.checked_add(length).filter(|end| *end <= MOST_BYTES) else {
        return too_large();
    };
    let Some(body) = buffer.get(head_bytes..end) else { return Parsed::Partial };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key.to_owned(), value.to_owned())
    };
    let query = query.split('&').filter(|pair| !pair.is_empty()).map(pair).collect();
    let request = Request { method: method.to_owned(), path: path.to_owned(), query, body: body.to_vec() };
    Parsed::Request(request, end, keep)
}

fn too_large() -> Parsed {
    Parsed::Refused(413, format!("a request is at most {MOST_BYTES} bytes long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_complete_with_its_body_and_leaves_the_rest() {
        let text = b"PUT /machine?a=1&b HTTP/1.1\r\ncontent-length: 4\r\n\r\nbodyGET /";
        for size in 0..text.len() - 5 {
            assert_eq!(parse(&text[..size]), Parsed::Partial, "{size}");
        }
        let Parsed::Request(request, taken, keep) = parse(text) else { panic!("{:?}", parse(text)) };
        assert_eq!((request.method.as_str(), request.path.as_str()), ("PUT", "/machine"));
        assert_eq!((request.parameter("a"), request.parameter("b")), (Some("1"), Some("")));
        assert_eq!((request.body.as_slice(), taken, keep), (b"body".as_slice(), text.len() - 5, true));
    }

    #[test]
    fn what_is_no_request_or_too_long_is_refused() {
        let status = |text: &str| match parse(text.as_bytes()) {
            Parsed::Refused(status, _) => status,
            other => panic!("{other:?}"),
        };
        assert_eq!(status("\0\0\0"), 400);
        assert_eq!(status("GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n"), 400);
        assert_eq!(status("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"), 400);
        assert_eq!(status("GET / HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\n"), 413);
        assert_eq!(status(&format!("GET /{}", "x".repeat(MOST_BYTES))), 413);
    }
}
