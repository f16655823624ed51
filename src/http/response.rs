//! Owns what a handler gives back, and how its head is written.
//!
//! Never: writes to a socket. Made by handlers, sent by `connection` and `stream`.

use super::deferred::{Caller, Deferred};
use super::lane::Slot;
use super::parse::Version;
use super::reject::Reject;
use super::stream::StreamWriter;
use std::fmt;
use std::io::Write;

/// One response.
#[derive(Debug)]
pub struct Response {
    /// 200 to 599.
    pub status: u16,
    /// Headers beside those that are the transport's: `Content-Length`,
    /// `Transfer-Encoding` and `Connection` are ignored here.
    pub headers: Vec<(&'static str, String)>,
    /// What follows the head.
    pub body: Body,
}

/// The body of a response.
pub enum Body {
    /// None. Right for 204.
    Empty,
    /// All of it.
    Bytes(Vec<u8>),
    /// Written bit by bit, for example server-sent events. Runs on a thread of its own until
    /// it returns; the connection closes after it. When `streams_max` run already, the
    /// client gets 503 instead and it is never called.
    Stream(Box<dyn FnOnce(&mut StreamWriter) + Send>),
    /// A whole response, its own status and headers included, that takes time to make; see
    /// [`Response::deferred`].
    Deferred(Deferred, Option<Slot>),
    /// No answer at all: the connection closes, status and headers are not sent. For
    /// simulated agents whose answers get lost.
    Cut,
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Body::Empty => f.write_str("Empty"),
            Body::Bytes(bytes) => write!(f, "Bytes({})", bytes.len()),
            Body::Stream(_) => f.write_str("Stream"),
            Body::Deferred(..) => f.write_str("Deferred"),
            Body::Cut => f.write_str("Cut"),
        }
    }
}

impl Response {
    /// Without headers and body.
    pub fn empty(status: u16) -> Response {
        Response { status, headers: Vec::new(), body: Body::Empty }
    }

    /// With a body of this content type.
    pub fn bytes(status: u16, content_type: &str, body: Vec<u8>) -> Response {
        let headers = vec![("content-type", content_type.to_owned())];
        Response { status, headers, body: Body::Bytes(body) }
    }

    /// With a body that is JSON already.
    pub fn json(status: u16, body: Vec<u8>) -> Response {
        Response::bytes(status, "application/json", body)
    }

    /// An error as the API words it: `{"error":{"code":…,"message":…}}`.
    pub fn error(status: u16, code: &str, message: &str) -> Response {
        let error = serde_json::json!({ "error": { "code": code, "message": message } });
        Response::json(status, error.to_string().into_bytes())
    }

    /// No answer: the connection closes.
    pub fn cut() -> Response {
        Response { status: 500, headers: Vec::new(), body: Body::Cut }
    }

    /// A response that takes time to make, for example because an agent is asked first.
    /// `run` makes it on a thread of its own with a small stack; a worker then sends it like
    /// any other. When `deferred_max` are being made already, the client gets 503 instead and
    /// `run` is never called. It should return soon once its [`Caller`] says that the client
    /// is gone or the server stops.
    pub fn deferred(run: impl FnOnce(&mut Caller) -> Response + Send + 'static) -> Response {
        let run: Deferred = Box::new(run);
        Response { status: 500, headers: Vec::new(), body: Body::Deferred(run, None) }
    }

    /// The same on a thread of the lane in which this is a place. When its turn does not come
    /// within the lane's patience, the client gets 503 and `run` is dropped.
    pub fn in_lane(
        slot: Slot,
        run: impl FnOnce(&mut Caller) -> Response + Send + 'static,
    ) -> Response {
        let run: Deferred = Box::new(run);
        Response { status: 500, headers: Vec::new(), body: Body::Deferred(run, Some(slot)) }
    }

    /// In the stead of a response that a handler should have made.
    pub(super) fn panicked() -> Response {
        Response::error(500, "internal_error", "internal error")
    }

    /// With one more header.
    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Response {
        self.headers.push((name, value.into()));
        self
    }
}

impl From<Reject> for Response {
    fn from(reject: Reject) -> Response {
        let response = Response::error(reject.status(), reject.code(), reject.message());
        match reject.status() {
            503 => response.with_header("retry-after", "5"),
            _ => response,
        }
    }
}

/// How the client learns where the body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyEnd {
    /// No body by the status: 204 and 304.
    Nothing,
    /// After so many bytes.
    Length(usize),
    /// After the last chunk.
    Chunked,
    /// With the connection; for streams to HTTP/1.0.
    Close,
}

/// The head of a response, with its empty line.
pub(super) fn head(
    status: u16,
    headers: &[(&'static str, String)],
    end: BodyEnd,
    version: Version,
    keep_alive: bool,
) -> Vec<u8> {
    let mut head = Vec::with_capacity(160);
    line(&mut head, format_args!("HTTP/1.1 {status} {}", reason(status)));
    for (name, value) in headers {
        if is_ours(name) {
            continue;
        }
        if value.bytes().any(|byte| byte != b'\t' && byte.is_ascii_control()) {
            log::error!("left out response header {name}: its value has control characters");
            continue;
        }
        line(&mut head, format_args!("{name}: {value}"));
    }
    match end {
        BodyEnd::Length(bytes) => line(&mut head, format_args!("content-length: {bytes}")),
        BodyEnd::Chunked => line(&mut head, format_args!("transfer-encoding: chunked")),
        BodyEnd::Nothing | BodyEnd::Close => {}
    }
    match (keep_alive, version) {
        (false, Version::Http10 | Version::Http11) => {
            line(&mut head, format_args!("connection: close"));
        }
        (true, Version::Http10) => line(&mut head, format_args!("connection: keep-alive")),
        (true, Version::Http11) => {}
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// Whether 204 and 304 forbid a body.
pub(super) fn is_bodiless(status: u16) -> bool {
    status == 204 || status == 304
}

fn is_ours(name: &str) -> bool {
    ["content-length", "transfer-encoding", "connection"]
        .iter()
        .any(|ours| name.eq_ignore_ascii_case(ours))
}

fn line(head: &mut Vec<u8>, text: fmt::Arguments<'_>) {
    // Writing to a Vec cannot fail.
    let _ = head.write_fmt(text);
    head.extend_from_slice(b"\r\n");
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Status",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(headers: &[(&'static str, &str)], end: BodyEnd, keep_alive: bool, expected: &str) {
        let headers: Vec<_> = headers.iter().map(|(n, v)| (*n, (*v).to_owned())).collect();
        let head = head(200, &headers, end, Version::Http11, keep_alive);
        assert_eq!(String::from_utf8_lossy(&head), format!("HTTP/1.1 200 OK\r\n{expected}\r\n"));
    }

    #[test]
    fn heads() {
        check(&[("a", "b")], BodyEnd::Length(3), true, "a: b\r\ncontent-length: 3\r\n");
        check(&[], BodyEnd::Chunked, false, "transfer-encoding: chunked\r\nconnection: close\r\n");
        check(&[], BodyEnd::Nothing, true, "");
        check(&[("Connection", "x"), ("Content-Length", "9")], BodyEnd::Nothing, true, "");
    }

    #[test]
    fn a_value_cannot_smuggle_another_header() {
        check(&[("a", "b\r\nset-cookie: c"), ("d", "\0")], BodyEnd::Nothing, true, "");
        check(&[("a", "tab\tand ünicode")], BodyEnd::Nothing, true, "a: tab\tand ünicode\r\n");
    }

    #[test]
    fn errors_have_the_shape_of_the_api() {
        let Body::Bytes(body) = Response::error(400, "invalid_request", "bad \"x\"").body else {
            panic!("no body");
        };
        let expected = r#"{"error":{"code":"invalid_request","message":"bad \"x\""}}"#;
        assert_eq!(String::from_utf8_lossy(&body), expected);
    }
}
