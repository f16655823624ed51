//! Owns a view of the parser from outside the room: what a connection's bytes come to. For
//! the tests and fuzz targets that hold it against another reading of the same bytes.
//!
//! Never: part of a running server.

use super::buffer::Buffer;
use super::parse::{Parser, Stage, Step};
use super::request::{Headers, Method};

/// One request that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What is asked for.
    pub method: Method,
    /// As sent, up to the `?`.
    pub path: String,
    /// As sent, what follows the first `?`.
    pub query: String,
    /// All headers.
    pub headers: Headers,
    /// Without transfer coding.
    pub body: Vec<u8>,
    /// Where it ends among all bytes: the next request begins here.
    pub end: usize,
}

/// What the bytes come to after the last whole request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Nothing is left.
    Nothing,
    /// The beginning of a request.
    Partial,
    /// Refused with this status; nothing after it is read.
    Refused(u16),
}

/// Reads a connection's bytes as they come in these pieces; bodies over `body_bytes_max`
/// bytes are refused.
pub fn read<'p>(
    pieces: impl IntoIterator<Item = &'p [u8]>,
    body_bytes_max: usize,
) -> (Vec<Message>, Rest) {
    let (mut parser, mut input) = (Parser::new(body_bytes_max), Buffer::default());
    let (mut messages, mut arrived) = (Vec::new(), 0);
    for piece in pieces {
        input.push(piece);
        arrived += piece.len();
        loop {
            match parser.step(&mut input, &|_, _| usize::MAX) {
                Step::More => break,
                Step::Continue => {}
                Step::Complete(parsed) => messages.push(Message {
                    method: parsed.method,
                    path: parsed.path,
                    query: parsed.query,
                    headers: parsed.headers,
                    body: parsed.body,
                    end: arrived - input.unread().len(),
                }),
                Step::Reject(reject) => return (messages, Rest::Refused(reject.status())),
            }
        }
    }
    let rest = match parser.stage() {
        Stage::Boundary => Rest::Nothing,
        Stage::Head | Stage::Body => Rest::Partial,
    };
    (messages, rest)
}
