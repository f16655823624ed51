//! Owns the chunked transfer coding of request bodies.
//!
//! Never: reads a socket, is lenient. Two programs that disagree on where a body ends are
//! how requests get smuggled, so whatever is not exactly RFC 9112 section 7.1 is refused.
//! Called by `parse`.

use super::buffer::Buffer;
use super::limits::{CHUNK_EXTENSION_BYTES_MAX, CHUNK_LINE_BYTES_MAX, TRAILER_BYTES_MAX};
use super::reject::Reject;

/// Where in a chunked body the reader is.
#[derive(Debug)]
pub(super) struct Chunked {
    at: At,
    extension_bytes: usize,
}

#[derive(Debug)]
enum At {
    /// Before a chunk-size line.
    Size,
    /// In a chunk, so many bytes before its end.
    Data(usize),
    /// Before the line break after a chunk.
    DataEnd,
    /// After the last chunk, with so many bytes of trailers read.
    Trailers(usize),
}

/// What a step came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The rest has not arrived.
    More,
    /// The body is complete.
    Done,
}

const BAD_SIZE: Reject = Reject::Invalid("invalid chunk size");
const BAD_END: Reject = Reject::Invalid("chunk is not followed by a line break");
const BAD_LINE: Reject = Reject::Invalid("invalid line in chunked body");
const LONG_LINE: Reject = Reject::Invalid("chunk extensions or trailers are too long");

impl Chunked {
    /// At the start of a body.
    pub(super) fn new() -> Chunked {
        Chunked { at: At::Size, extension_bytes: 0 }
    }

    /// Moves what has arrived from `input` to `body`, which must not get longer than
    /// `body_bytes_max`.
    pub(super) fn step(
        &mut self,
        input: &mut Buffer,
        body: &mut Vec<u8>,
        body_bytes_max: usize,
    ) -> Result<Progress, Reject> {
        loop {
            self.at = match self.at {
                At::Size => {
                    let Some(line) = line(input.unread(), CHUNK_LINE_BYTES_MAX)? else {
                        return Ok(Progress::More);
                    };
                    let (size, extension_bytes) = chunk_size(line)?;
                    let line_bytes = line.len() + 2;
                    self.extension_bytes += extension_bytes;
                    if self.extension_bytes > CHUNK_EXTENSION_BYTES_MAX {
                        return Err(LONG_LINE);
                    }
                    if size > body_bytes_max.saturating_sub(body.len()) {
                        return Err(Reject::BodyTooLarge);
                    }
                    input.consume(line_bytes);
                    if size == 0 { At::Trailers(0) } else { At::Data(size) }
                }
                At::Data(left) => match left - input.move_to(body, left) {
                    0 => At::DataEnd,
                    left => {
                        self.at = At::Data(left);
                        return Ok(Progress::More);
                    }
                },
                At::DataEnd => match input.unread() {
                    [b'\r', b'\n', ..] => {
                        input.consume(2);
                        At::Size
                    }
                    [] | [b'\r'] => return Ok(Progress::More),
                    [..] => return Err(BAD_END),
                },
                At::Trailers(read) => {
                    let Some(line) = line(input.unread(), TRAILER_BYTES_MAX - read)? else {
                        return Ok(Progress::More);
                    };
                    let (bytes, last, named) = (line.len() + 2, line.is_empty(), is_field(line));
                    input.consume(bytes);
                    if last {
                        return Ok(Progress::Done);
                    }
                    if !named {
                        return Err(BAD_LINE);
                    }
                    At::Trailers((read + bytes).min(TRAILER_BYTES_MAX))
                }
            };
        }
    }
}

/// The first line without its line break, or nothing when it has not arrived as a whole.
fn line(bytes: &[u8], bytes_max: usize) -> Result<Option<&[u8]>, Reject> {
    let Some(end) = bytes.iter().take(bytes_max + 2).position(|&byte| byte == b'\n') else {
        return if bytes.len() >= bytes_max + 2 { Err(LONG_LINE) } else { Ok(None) };
    };
    let line = bytes.get(..end).and_then(|line| line.strip_suffix(b"\r")).ok_or(BAD_LINE)?;
    let clean = line.iter().all(|&byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f));
    if clean { Ok(Some(line)) } else { Err(BAD_LINE) }
}

/// Whether a trailer has a name, as headers have. Another reader may take anything else for
/// the beginning of the next request.
fn is_field(line: &[u8]) -> bool {
    let name = line.split(|&byte| byte == b':').next().unwrap_or_default();
    let in_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !name.is_empty() && name.len() < line.len() && name.iter().all(in_token)
}

/// The size a line says, and how many bytes of extensions follow it.
fn chunk_size(line: &[u8]) -> Result<(usize, usize), Reject> {
    let digits = line.iter().position(|&byte| byte == b';').unwrap_or(line.len());
    let (size, extension) = line.split_at(digits);
    // Eight digits are 4 GiB: far beyond any body, and no overflow.
    if size.is_empty() || size.len() > 8 || !size.iter().all(u8::is_ascii_hexdigit) {
        return Err(BAD_SIZE);
    }
    let size = std::str::from_utf8(size).map_err(|_| BAD_SIZE)?;
    let size = usize::from_str_radix(size, 16).map_err(|_| BAD_SIZE)?;
    Ok((size, extension.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes `wire` in pieces of every size; all must come to the same.
    fn check(wire: &str, expected: Result<(&str, &str), Reject>) {
        for piece in 1..=wire.len() {
            let (mut input, mut body) = (Buffer::default(), Vec::new());
            let mut chunked = Chunked::new();
            let mut pieces = wire.as_bytes().chunks(piece);
            let outcome = loop {
                match chunked.step(&mut input, &mut body, 16) {
                    Ok(Progress::More) => match pieces.next() {
                        Some(piece) => input.push(piece),
                        None => break Ok(None),
                    },
                    Ok(Progress::Done) => break Ok(Some(())),
                    Err(reject) => break Err(reject),
                }
            };
            for rest in pieces {
                input.push(rest);
            }
            match expected {
                Ok((expected, rest)) => {
                    assert_eq!(outcome, Ok(Some(())), "{wire:?} by {piece}");
                    assert_eq!(body, expected.as_bytes(), "{wire:?} by {piece}");
                    assert_eq!(input.unread(), rest.as_bytes(), "{wire:?} by {piece}");
                }
                Err(reject) => assert_eq!(outcome, Err(reject), "{wire:?} by {piece}"),
            }
        }
    }

    #[test]
    fn bodies() {
        check("0\r\n\r\n", Ok(("", "")));
        check("5\r\nhello\r\n0\r\n\r\nGET", Ok(("hello", "GET")));
        check("a\r\n0123456789\r\n00006\r\nabcdef\r\n0\r\n\r\n", Ok(("0123456789abcdef", "")));
        check("1;a=b\r\nx\r\n0;c\r\nTrailer: 1\r\nSum: 2\r\n\r\n", Ok(("x", "")));
    }

    #[test]
    fn what_is_not_exactly_chunked_is_refused() {
        for bad in
            ["\r\n", "x\r\n", "-1\r\n", "+1\r\n", "0x1\r\n", " 1\r\n", "1 \r\n", "123456789\r\n"]
        {
            check(bad, Err(BAD_SIZE));
        }
        check("1;\u{1}\r\n", Err(BAD_LINE));
        check("1\nx", Err(BAD_LINE));
        check("1\r\r\n", Err(BAD_LINE));
        check("0\r\n\n", Err(BAD_LINE));
        for no_field in ["GET / HTTP/1.1", "0", ": x", " a: b", "a : b", "a\u{e9}: b"] {
            check(&format!("0\r\n{no_field}\r\n\r\n"), Err(BAD_LINE));
        }
        check("1\r\nxy\r\n", Err(BAD_END));
        check("1\r\nx\n0\r\n\r\n", Err(BAD_END));
        check("11\r\n", Err(Reject::BodyTooLarge));
        check("10\r\n0123456789abcdef\r\n1\r\n", Err(Reject::BodyTooLarge));
        check(&format!("1;{}\r\n", "e".repeat(CHUNK_LINE_BYTES_MAX)), Err(LONG_LINE));
        let line = format!("1;{}\r\nx\r\n", "e".repeat(200));
        check(&line.repeat(6), Err(LONG_LINE));
        check(&format!("0\r\na: {}\r\n\r\n", "t".repeat(TRAILER_BYTES_MAX)), Err(LONG_LINE));
        check(&format!("0\r\n{}\r\n", "abc: def\r\n".repeat(500)), Err(LONG_LINE));
    }
}
