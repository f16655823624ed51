//! Owns how lists are answered: a page where a limit is given, else all of it, read and sent
//! part by part; packed for who asks for that.
//!
//! Never: holds more than one part of a list in memory, or a snapshot of the database while a
//! client reads: each part is a short read of its own. What is there throughout is in the
//! list once; what comes, goes or changes meanwhile may be in it or not, in one of its states.

use super::Problem;
use super::query::Query;
use crate::http::{Body, Request, Response, StreamWriter};
use crate::store::StoreError;
use crate::store::read::NoPlace;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;
use std::fmt::{self, Display};
use std::io::{self, Write};
use std::str::FromStr;

/// Rows on one page. Larger: one answer is held in memory for each client; smaller: clients
/// page more.
const LIMIT_MAX: u32 = 1000;

/// Rows of a whole list that are read before anything is sent. Larger: the first byte waits
/// for them; smaller: short lists take a thread of their own.
const FIRST_ROWS: u32 = 100;

/// Rows that are read at a time after that. Larger: more memory for each client; smaller:
/// more reads for the same list.
const PART_ROWS: u32 = 150;

/// Bytes from which packing is worth its while.
const PACKED_MIN: usize = 1024;

/// Some rows of a list, as JSON.
#[derive(Debug)]
pub(super) struct Part<K> {
    json: Vec<u8>,
    /// Whether more rows follow.
    pub(super) more: bool,
    /// Behind which place they do.
    pub(super) after: Option<K>,
}

impl<K> Part<K> {
    /// Without rows yet.
    pub(super) fn new(more: bool, after: Option<K>) -> Part<K> {
        Part { json: Vec::new(), more, after }
    }

    /// One more row.
    pub(super) fn push(&mut self, row: &impl Serialize) -> Result<(), StoreError> {
        if !self.json.is_empty() {
            self.json.push(b',');
        }
        let written = serde_json::to_writer(&mut self.json, row);
        written.map_err(|error| StoreError::BadRow(format!("cannot be written as JSON: {error}")))
    }
}

/// A place behind two keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Both<A, B>(pub(super) A, pub(super) B);

impl<A: Display, B: Display> Display for Both<A, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl<A: FromStr, B: FromStr> FromStr for Both<A, B> {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Both<A, B>, NoPlace> {
        let (a, b) = text.split_once('.').ok_or(NoPlace)?;
        Ok(Both(a.parse().map_err(|_| NoPlace)?, b.parse().map_err(|_| NoPlace)?))
    }
}

/// Answers with a list. `read` gives the rows behind a place, at most so many; it may give
/// fewer, and says whether more follow.
pub(super) fn answer<K: FromStr + Display + Send + 'static>(
    request: &Request,
    query: &Query,
    mut read: impl FnMut(Option<K>, u32) -> Result<Part<K>, StoreError> + Send + 'static,
) -> Result<Response, Problem>
where
    K::Err: Display,
{
    let after = query.parsed("after")?;
    let packs = request.accepts_gzip();
    let Some(limit) = query.parsed::<u32>("limit")? else {
        let first = read(after, FIRST_ROWS)?;
        return Ok(whole(first, packs, move |after| read(after, PART_ROWS)));
    };
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(Problem::invalid(format!("limit must be 1 to {LIMIT_MAX}")));
    }
    let part = read(after, limit)?;
    let next = part.after.as_ref().filter(|_| part.more).map(|place| place.to_string());
    let response =
        whole(Part { more: false, ..part }, packs, |_: Option<K>| Ok(Part::new(false, None)));
    Ok(match next {
        // Relative, so that it holds behind whatever path a proxy puts before it.
        Some(next) => {
            response.with_header("link", format!("<{}>; rel=\"next\"", query.with("after", &next)))
        }
        None => response,
    })
}

/// A list that begins with `first`; when more follows, the rest is sent as it is read.
fn whole<K: Send + 'static>(
    first: Part<K>,
    packs: bool,
    read: impl FnMut(Option<K>) -> Result<Part<K>, StoreError> + Send + 'static,
) -> Response {
    let packs = packs && (first.more || first.json.len() >= PACKED_MIN);
    let mut out = Array::new(packs);
    out.rows(&first.json);
    let body = match first.more {
        false => Body::Bytes(out.end()),
        true => Body::Stream(Box::new(move |to| {
            if let Err(error) = send(out, first.after, read, to) {
                log::debug!("a list was not sent to its end: {error}");
                // It must not look like a whole one.
                to.cut();
            }
        })),
    };
    let mut headers = vec![
        ("content-type", "application/json".to_owned()),
        ("vary", "accept-encoding".to_owned()),
    ];
    if packs {
        headers.push(("content-encoding", "gzip".to_owned()));
    }
    Response { status: 200, headers, body }
}

fn send<K>(
    mut out: Array,
    mut after: Option<K>,
    mut read: impl FnMut(Option<K>) -> Result<Part<K>, StoreError>,
    to: &mut StreamWriter,
) -> io::Result<()> {
    // What is there is sent at once, packed or not.
    to.write(&out.take_all())?;
    loop {
        if to.is_stopping() {
            return Err(io::Error::other("the server stops"));
        }
        let part = read(after).map_err(io::Error::other)?;
        out.rows(&part.json);
        if !part.more {
            return to.write(&out.end());
        }
        after = part.after;
        to.write(&out.take())?;
    }
}

/// A JSON array that is written bit by bit.
struct Array {
    out: Out,
    has_rows: bool,
}

enum Out {
    Plain(Vec<u8>),
    Packed(GzEncoder<Vec<u8>>),
}

impl Array {
    fn new(packs: bool) -> Array {
        let out = match packs {
            true => Out::Packed(GzEncoder::new(Vec::new(), Compression::new(4))),
            false => Out::Plain(Vec::new()),
        };
        let mut array = Array { out, has_rows: false };
        array.write(b"[");
        array
    }

    fn write(&mut self, bytes: &[u8]) {
        match &mut self.out {
            Out::Plain(out) => out.extend_from_slice(bytes),
            // Writing to a Vec cannot fail.
            Out::Packed(out) => drop(out.write_all(bytes)),
        }
    }

    /// Rows, with commas between them.
    fn rows(&mut self, json: &[u8]) {
        if json.is_empty() {
            return;
        }
        if self.has_rows {
            self.write(b",");
        }
        self.has_rows = true;
        self.write(json);
    }

    /// What can be sent by now.
    fn take(&mut self) -> Vec<u8> {
        match &mut self.out {
            Out::Plain(out) => std::mem::take(out),
            Out::Packed(out) => std::mem::take(out.get_mut()),
        }
    }

    /// All that was written.
    fn take_all(&mut self) -> Vec<u8> {
        if let Out::Packed(out) = &mut self.out {
            drop(out.flush());
        }
        self.take()
    }

    fn end(mut self) -> Vec<u8> {
        self.write(b"]");
        match self.out {
            Out::Plain(out) => out,
            Out::Packed(out) => out.finish().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::GzDecoder;
    use std::io::Read;

    #[test]
    fn arrays_are_whole_packed_or_not() {
        for parts in
            [vec!["", ""], vec!["1"], vec!["1,2", "3", "4,5"], vec!["1", ""], vec!["", "1"]]
        {
            for packs in [false, true] {
                let (mut array, mut sent) = (Array::new(packs), Vec::new());
                for part in &parts {
                    array.rows(part.as_bytes());
                    sent.extend(if parts.len() > 2 { array.take_all() } else { array.take() });
                }
                sent.extend(array.end());
                let mut text = String::new();
                match packs {
                    true => GzDecoder::new(&sent[..]).read_to_string(&mut text).unwrap(),
                    false => (&sent[..]).read_to_string(&mut text).unwrap(),
                };
                let filled: Vec<_> = parts.iter().filter(|p| !p.is_empty()).copied().collect();
                assert_eq!(text, format!("[{}]", filled.join(",")));
            }
        }
    }
}
