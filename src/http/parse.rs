//! Owns the way from bytes to whole requests: heads, framing, limits.
//!
//! Never: reads a socket or a clock, guesses. It is a state machine that is given bytes in
//! any pieces and comes to the same requests and refusals whatever the pieces. Called by
//! `connection`.

use super::buffer::Buffer;
use super::chunked::{Chunked, Progress};
use super::limits::{HEAD_BYTES_MAX, HEADERS_MAX, REQUEST_LINE_BYTES_MAX, TARGET_BYTES_MAX};
use super::reject::Reject;
use super::request::{Headers, Method};

/// What a step came to.
#[derive(Debug)]
pub(super) enum Step {
    /// The rest of the request has not arrived.
    More,
    /// The client waits for `100 Continue` before it sends the body.
    Continue,
    /// A whole request.
    Complete(Box<Parsed>),
    /// No request; the parser must not be asked again.
    Reject(Reject),
}

/// A request as the bytes say it, before it is known from whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parsed {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) headers: Headers,
    pub(super) body: Vec<u8>,
    pub(super) version: Version,
    /// Whether the client wants to send more requests.
    pub(super) keep_alive: bool,
}

/// The versions we speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    Http10,
    Http11,
}

/// How far the request under way has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing of it has arrived.
    Boundary,
    /// Some of its head has arrived.
    Head,
    /// Its head has arrived.
    Body,
}

/// Bytes of body that a request of this method and path may have.
pub(super) type BodyLimit<'a> = dyn Fn(Method, &str) -> usize + 'a;

/// Reads one connection's requests, one after another.
#[derive(Debug)]
pub(super) struct Parser {
    state: State,
    /// Of any request, and of the one under way.
    body_bytes_max: usize,
    body_bytes_max_now: usize,
    /// Unread bytes known not to end a head.
    scanned: usize,
    /// RFC 9112 section 2.2: one empty line before a request is to be ignored.
    blank_skipped: bool,
}

#[derive(Debug)]
enum State {
    Head,
    Body(Box<Pending>),
}

#[derive(Debug)]
struct Pending {
    parsed: Parsed,
    framing: Framing,
    continue_due: bool,
}

#[derive(Debug)]
enum Framing {
    /// So many bytes to come.
    Length(usize),
    Chunked(Chunked),
}

impl Parser {
    /// At a connection's start. Bodies over `body_bytes_max` bytes are refused.
    pub(super) fn new(body_bytes_max: usize) -> Parser {
        Parser {
            state: State::Head,
            body_bytes_max,
            body_bytes_max_now: body_bytes_max,
            scanned: 0,
            blank_skipped: false,
        }
    }

    /// The same at the same limit, as if nothing had arrived.
    pub(super) fn anew(&self) -> Parser {
        Parser::new(self.body_bytes_max)
    }

    /// How far the request under way has come.
    pub(super) fn stage(&self) -> Stage {
        match &self.state {
            State::Head if self.scanned == 0 => Stage::Boundary,
            State::Head => Stage::Head,
            State::Body(_) => Stage::Body,
        }
    }

    /// Bytes this holds on the heap.
    pub(super) fn held_bytes(&self) -> usize {
        match &self.state {
            State::Head => 0,
            State::Body(pending) => {
                let parsed = &pending.parsed;
                size_of::<Pending>()
                    + parsed.headers.held_bytes()
                    + parsed.path.capacity()
                    + parsed.query.capacity()
                    + parsed.body.capacity()
            }
        }
    }

    /// Goes on with what has arrived. `limit` says how many bytes of body a request of this
    /// method and path may have, if less than others.
    pub(super) fn step(&mut self, input: &mut Buffer, limit: &BodyLimit<'_>) -> Step {
        match self.try_step(input, limit) {
            Ok(step) => step,
            Err(reject) => Step::Reject(reject),
        }
    }

    fn try_step(&mut self, input: &mut Buffer, limit: &BodyLimit<'_>) -> Result<Step, Reject> {
        if let State::Head = self.state {
            self.skip_blank_line(input);
            let Some(head_bytes) = self.find_head(input.unread())? else {
                return Ok(Step::More);
            };
            let head = input.unread().get(..head_bytes).unwrap_or_default();
            let body_bytes_max = self.body_bytes_max;
            let max = |method, path: &str| body_bytes_max.min(limit(method, path));
            let (pending, max) = parse_head(head, &max)?;
            self.state = State::Body(Box::new(pending));
            self.body_bytes_max_now = max;
            input.consume(head_bytes);
            self.scanned = 0;
        }
        self.body(input)
    }

    fn skip_blank_line(&mut self, input: &mut Buffer) {
        if self.scanned <= 1 && !self.blank_skipped && input.unread().starts_with(b"\r\n") {
            input.consume(2);
            self.blank_skipped = true;
            self.scanned = 0;
        }
    }

    /// The length of the head when it has arrived as a whole.
    fn find_head(&mut self, bytes: &[u8]) -> Result<Option<usize>, Reject> {
        match bytes.first() {
            None => return Ok(None),
            Some(b'\r') if bytes.len() == 1 && !self.blank_skipped => {}
            Some(first) if first.is_ascii_alphabetic() => {}
            // Not HTTP at all, for example a TLS handshake: no need to wait for more.
            Some(_) => return Err(Reject::Invalid("request does not start with a method")),
        }
        let line = bytes.get(..REQUEST_LINE_BYTES_MAX);
        if line.is_some_and(|line| !line.contains(&b'\n')) {
            return Err(Reject::TargetTooLong);
        }
        let end = head_end(bytes, self.scanned);
        self.scanned = bytes.len();
        match end {
            Some(end) if end > HEAD_BYTES_MAX => Err(Reject::HeadTooLarge),
            None if bytes.len() >= HEAD_BYTES_MAX => Err(Reject::HeadTooLarge),
            Some(_) | None => Ok(end),
        }
    }

    fn body(&mut self, input: &mut Buffer) -> Result<Step, Reject> {
        let State::Body(pending) = &mut self.state else { return Ok(Step::More) };
        let body = &mut pending.parsed.body;
        let progress = match &mut pending.framing {
            Framing::Length(left) => {
                *left -= input.move_to(body, *left);
                if *left == 0 { Progress::Done } else { Progress::More }
            }
            Framing::Chunked(chunked) => chunked.step(input, body, self.body_bytes_max_now)?,
        };
        match progress {
            Progress::Done => Ok(self.complete()),
            // A client that sends its body unasked is not waiting.
            Progress::More if pending.continue_due && body.is_empty() && input.is_empty() => {
                pending.continue_due = false;
                Ok(Step::Continue)
            }
            Progress::More => Ok(Step::More),
        }
    }

    fn complete(&mut self) -> Step {
        self.blank_skipped = false;
        match std::mem::replace(&mut self.state, State::Head) {
            State::Body(pending) => Step::Complete(Box::new(pending.parsed)),
            State::Head => Step::More,
        }
    }
}

/// The length of the head, its empty line included; `scanned` bytes were looked at before.
/// Bare line feeds end a head too, so that they are refused now and not after a timeout.
fn head_end(bytes: &[u8], scanned: usize) -> Option<usize> {
    let fresh = bytes.get(scanned..)?;
    let ends = |at: usize| match bytes.get(..at) {
        Some([.., b'\n']) | Some([.., b'\n', b'\r']) => true,
        Some(_) | None => false,
    };
    let breaks = fresh.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    breaks.map(|(at, _)| scanned + at).find(|&at| ends(at)).map(|at| at + 1)
}

fn parse_head(head: &[u8], limit: &BodyLimit<'_>) -> Result<(Pending, usize), Reject> {
    require_line_breaks(head)?;
    let mut slots = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut raw = httparse::Request::new(&mut slots);
    match raw.parse(head) {
        Ok(httparse::Status::Complete(bytes)) if bytes == head.len() => {}
        Ok(_) => return Err(Reject::Invalid("invalid request head")),
        Err(error) => return Err(head_error(error, head)),
    }
    let version = if raw.version == Some(0) { Version::Http10 } else { Version::Http11 };
    let method = Method::of(raw.method.unwrap_or_default());
    let (path, query) = split_target(raw.path.unwrap_or_default())?;
    let facts = Facts::gather(raw.headers)?;
    facts.require_host(version)?;
    let body_bytes_max = limit(method, path);
    let framing = facts.framing(version, body_bytes_max)?;
    let continue_due = facts.continue_due(version)?;
    let mut headers = Headers::with_room(head.len(), raw.headers.len());
    raw.headers.iter().for_each(|header| headers.push(header.name, header.value));
    let parsed = Parsed {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        body: Vec::new(),
        version,
        keep_alive: facts.keep_alive(version),
    };
    Ok((Pending { parsed, framing, continue_due }, body_bytes_max))
}

/// httparse takes a bare line feed for a line break; others do not, so nobody may send one.
fn require_line_breaks(head: &[u8]) -> Result<(), Reject> {
    let mut before = 0;
    for &byte in head {
        if (byte == b'\n') != (before == b'\r') {
            return Err(Reject::Invalid("line breaks must be CR LF"));
        }
        before = byte;
    }
    Ok(())
}

fn head_error(error: httparse::Error, head: &[u8]) -> Reject {
    match error {
        httparse::Error::TooManyHeaders => Reject::HeadTooLarge,
        httparse::Error::Version if names_a_version(head) => Reject::Version,
        httparse::Error::HeaderName => Reject::Invalid("invalid header name"),
        httparse::Error::HeaderValue => Reject::Invalid("invalid header value"),
        httparse::Error::NewLine
        | httparse::Error::Status
        | httparse::Error::Token
        | httparse::Error::Version => Reject::Invalid("invalid request line"),
    }
}

/// Whether the request line is complete but for a version like `HTTP/2.0`.
fn names_a_version(head: &[u8]) -> bool {
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|&byte| byte == b' ');
    match (words.next(), words.next(), words.next(), words.next()) {
        (
            Some(_),
            Some([_, ..]),
            Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor]),
            None,
        ) => major.is_ascii_digit() && minor.is_ascii_digit(),
        (_, _, _, _) => false,
    }
}

/// Path and query of a target in origin form, the only form an origin server is sent.
fn split_target(target: &str) -> Result<(&str, &str), Reject> {
    if target.len() > TARGET_BYTES_MAX {
        return Err(Reject::TargetTooLong);
    }
    if !target.starts_with('/') {
        return Err(Reject::Invalid("request target must start with a slash"));
    }
    if !target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        return Err(Reject::Invalid("invalid character in request target"));
    }
    Ok(target.split_once('?').unwrap_or((target, "")))
}

/// What the headers say about the connection itself.
#[derive(Default)]
struct Facts<'h> {
    lengths: usize,
    length: &'h [u8],
    codings: usize,
    coding: &'h [u8],
    hosts: usize,
    host: &'h [u8],
    expect: Option<&'h [u8]>,
    close: bool,
    keep: bool,
}

impl<'h> Facts<'h> {
    fn gather(headers: &[httparse::Header<'h>]) -> Result<Facts<'h>, Reject> {
        let mut facts = Facts::default();
        for header in headers {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            if header.name.is_empty() {
                return Err(Reject::Invalid("invalid header name"));
            } else if is("content-length") {
                (facts.lengths, facts.length) = (facts.lengths + 1, header.value);
            } else if is("transfer-encoding") {
                (facts.codings, facts.coding) = (facts.codings + 1, header.value);
            } else if is("host") {
                (facts.hosts, facts.host) = (facts.hosts + 1, header.value);
            } else if is("expect") {
                facts.expect = Some(header.value);
            } else if is("connection") {
                facts.close |= has_token(header.value, "close");
                facts.keep |= has_token(header.value, "keep-alive");
            }
        }
        Ok(facts)
    }

    fn require_host(&self, version: Version) -> Result<(), Reject> {
        match (self.hosts, version) {
            (0, Version::Http10) => return Ok(()),
            (1, Version::Http10 | Version::Http11) => {}
            (_, Version::Http10 | Version::Http11) => {
                return Err(Reject::Invalid("exactly one Host header is required"));
            }
        }
        let valid = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%:[]".contains(byte);
        if self.host.iter().all(valid) {
            Ok(())
        } else {
            Err(Reject::Invalid("invalid Host header"))
        }
    }

    fn framing(&self, version: Version, body_bytes_max: usize) -> Result<Framing, Reject> {
        match (self.lengths, self.codings) {
            (0, 0) => Ok(Framing::Length(0)),
            (1, 0) => self.length_framing(body_bytes_max),
            (0, 1) if version == Version::Http10 => {
                Err(Reject::Invalid("Transfer-Encoding needs HTTP/1.1"))
            }
            (0, 1) if self.coding.eq_ignore_ascii_case(b"chunked") => {
                Ok(Framing::Chunked(Chunked::new()))
            }
            (0, 1) => Err(Reject::Coding),
            (_, 0) => Err(Reject::Invalid("more than one Content-Length")),
            (0, _) => Err(Reject::Invalid("more than one Transfer-Encoding")),
            (_, _) => Err(Reject::Invalid("both Content-Length and Transfer-Encoding")),
        }
    }

    fn length_framing(&self, body_bytes_max: usize) -> Result<Framing, Reject> {
        if self.length.is_empty() || !self.length.iter().all(u8::is_ascii_digit) {
            return Err(Reject::Invalid("invalid Content-Length"));
        }
        // A number that does not fit its type is a large one.
        let length = std::str::from_utf8(self.length).ok().and_then(|text| text.parse().ok());
        match length {
            Some(length) if length <= body_bytes_max => Ok(Framing::Length(length)),
            Some(_) | None => Err(Reject::BodyTooLarge),
        }
    }

    fn continue_due(&self, version: Version) -> Result<bool, Reject> {
        match (self.expect, version) {
            (None, Version::Http10 | Version::Http11) | (Some(_), Version::Http10) => Ok(false),
            (Some(value), Version::Http11) if value.eq_ignore_ascii_case(b"100-continue") => {
                Ok(true)
            }
            (Some(_), Version::Http11) => Err(Reject::Expectation),
        }
    }

    fn keep_alive(&self, version: Version) -> bool {
        match version {
            Version::Http10 => self.keep && !self.close,
            Version::Http11 => !self.close,
        }
    }
}

fn has_token(list: &[u8], token: &str) -> bool {
    let mut tokens = list.split(|&byte| byte == b',');
    tokens.any(|found| found.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

#[cfg(test)]
mod tests;
