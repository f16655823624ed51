//! Owns what a feed is: a response without an end that shares its threads with all others,
//! for example server-sent events.
//!
//! Never: writes to a socket (`hub` does), knows what is sent. Made by handlers.

use super::parse::Version;
use super::response::{BodyEnd, head};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// Bytes for any number of clients, framed once for all of them.
#[derive(Debug)]
pub struct Chunk {
    framed: Vec<u8>,
    plain: Range<usize>,
}

impl Chunk {
    /// `data` as one chunk.
    pub fn new(data: &[u8]) -> Arc<Chunk> {
        let mut framed = format!("{:x}\r\n", data.len()).into_bytes();
        let plain = framed.len()..framed.len() + data.len();
        framed.extend_from_slice(data);
        framed.extend_from_slice(b"\r\n");
        Arc::new(Chunk { framed, plain })
    }

    /// What is sent as it is, to clients of every version.
    pub(super) fn raw(framed: Vec<u8>) -> Arc<Chunk> {
        Arc::new(Chunk { plain: 0..framed.len(), framed })
    }

    /// The part that a client gets: all of it when the body is chunked.
    pub(super) fn range(&self, chunked: bool) -> Range<usize> {
        if chunked { 0..self.framed.len() } else { self.plain.clone() }
    }

    pub(super) fn bytes(&self, range: &Range<usize>) -> &[u8] {
        self.framed.get(range.clone()).unwrap_or_default()
    }
}

/// What a feed does next.
#[derive(Debug)]
pub enum Step {
    /// Send this, then ask again.
    Send(Arc<Chunk>),
    /// Nothing yet: ask again when the bell has rung, and once a second.
    Wait,
    /// Nothing of what was looked at, but there is more to look at.
    Again,
    /// Call [`Feed::catch_up`], which may take a while.
    CatchUp,
    /// The response ends.
    End,
}

/// One client's feed. Dropped as soon as the client disconnects.
pub trait Feed: Send {
    /// What comes next. All feeds share the thread that asks, so this must not wait. It is
    /// asked only when the client has taken what came before; `now` is the same for all feeds
    /// of a round.
    fn next(&mut self, now: Instant) -> Step;

    /// Does what `next` would have had to wait for, on a thread that serves one feed at a time.
    fn catch_up(&mut self, now: Instant) -> Step;
}

/// A feed that has not begun.
pub(super) struct FeedStart {
    pub(super) head: Vec<u8>,
    pub(super) chunked: bool,
    pub(super) feed: Box<dyn Feed>,
}

impl FeedStart {
    pub(super) fn new(
        status: u16,
        headers: &[(&'static str, String)],
        version: Version,
        feed: Box<dyn Feed>,
    ) -> FeedStart {
        let (end, chunked) = match version {
            Version::Http10 => (BodyEnd::Close, false),
            Version::Http11 => (BodyEnd::Chunked, true),
        };
        FeedStart { head: head(status, headers, end, version, false), chunked, feed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_chunk_serves_both_versions() {
        let chunk = Chunk::new(b"data: 1\n\n");
        assert_eq!(chunk.bytes(&chunk.range(true)), b"9\r\ndata: 1\n\n\r\n");
        assert_eq!(chunk.bytes(&chunk.range(false)), b"data: 1\n\n");
        let raw = Chunk::raw(b"HTTP/1.1".to_vec());
        assert_eq!(raw.bytes(&raw.range(true)), raw.bytes(&raw.range(false)));
    }
}
