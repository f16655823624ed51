//! Owns the property of the request parser: it is total, pieces do not matter, and whoever
//! else reads the same bytes by the letter of RFC 9112 finds the same requests in the same
//! places. That is what keeps a request from being smuggled past a proxy.
//!
//! Never: shares a line with the parser it is held against.

use roost::http::Method;
use roost::http::transcript::{Message, Rest, read};

/// Small, so that the limit is met.
const BODY_BYTES_MAX: usize = 1024;

/// Fails when the property does not hold for these bytes.
pub fn holds(bytes: &[u8]) {
    let (messages, rest) = read([bytes], BODY_BYTES_MAX);
    for size in [1, 7] {
        let by_pieces = read(bytes.chunks(size), BODY_BYTES_MAX);
        assert_eq!(by_pieces, (messages.clone(), rest), "in pieces of {size}");
    }
    let mut start = 0;
    for message in &messages {
        compare(message, &bytes[start..], start);
        start = message.end;
    }
    match rest {
        Rest::Nothing => assert!(bytes[start..].is_empty() || &bytes[start..] == b"\r\n"),
        Rest::Partial => assert!(by_the_letter(&bytes[start..]).is_none(), "waits for no more"),
        Rest::Refused(status) => assert!((400..=505).contains(&status)),
    }
}

fn compare(ours: &Message, bytes: &[u8], start: usize) {
    let theirs = by_the_letter(bytes).expect("what we take is a request by the letter");
    assert_eq!(ours.end - start, theirs.bytes, "where the request ends");
    assert_eq!(ours.body, theirs.body);
    let known = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"];
    let method = if known.contains(&theirs.method) { theirs.method } else { "OTHER" };
    assert_eq!(ours.method.to_string(), method);
    assert_eq!(ours.method == Method::Other, method == "OTHER");
    let target = match theirs.target.contains('?') {
        true => format!("{}?{}", ours.path, ours.query),
        false => ours.path.clone(),
    };
    assert_eq!(target, theirs.target);
    let headers: Vec<(&str, &[u8])> = ours.headers.iter().collect();
    assert_eq!(headers, theirs.headers);
}

/// One request as the grammar reads it.
struct Letter<'a> {
    method: &'a str,
    target: &'a str,
    headers: Vec<(&'a str, &'a [u8])>,
    body: Vec<u8>,
    /// How many bytes it is long, an empty line before it included.
    bytes: usize,
}

/// Reads one whole request; none when there is none or it breaks the grammar.
fn by_the_letter(bytes: &[u8]) -> Option<Letter<'_>> {
    let blank = if bytes.starts_with(b"\r\n") { 2 } else { 0 };
    let mut rest = &bytes[blank..];
    let request_line = std::str::from_utf8(take_line(&mut rest)?).ok()?;
    let [method, target, version] = words(request_line)?;
    let origin_form = target.starts_with('/') && target.bytes().all(|b| (b'!'..=b'~').contains(&b));
    if !is_token(method) || !origin_form || !["HTTP/1.0", "HTTP/1.1"].contains(&version) {
        return None;
    }
    let mut headers = Vec::new();
    loop {
        match take_line(&mut rest)? {
            [] => break,
            line => headers.push(field(line)?),
        }
    }
    let body = body(&headers, version, &mut rest)?;
    Some(Letter { method, target, headers, body, bytes: bytes.len() - rest.len() })
}

/// What comes before the next CR LF; no other control character may be in it.
fn take_line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    let (line, after) = (&rest[..end], &rest[end + 2..]);
    *rest = after;
    line.iter().all(|&b| b == b'\t' || b >= b' ' && b != 0x7f).then_some(line)
}

fn words(line: &str) -> Option<[&str; 3]> {
    line.split(' ').collect::<Vec<_>>().try_into().ok()
}

fn is_token(text: &str) -> bool {
    let special = b"!#$%&'*+-.^_`|~";
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || special.contains(&b))
}

fn field(line: &[u8]) -> Option<(&str, &[u8])> {
    let colon = line.iter().position(|&b| b == b':')?;
    let name = std::str::from_utf8(&line[..colon]).ok().filter(|name| is_token(name))?;
    let mut value = &line[colon + 1..];
    while let [b' ' | b'\t', inner @ ..] | [inner @ .., b' ' | b'\t'] = value {
        value = inner;
    }
    Some((name, value))
}

fn body(headers: &[(&str, &[u8])], version: &str, rest: &mut &[u8]) -> Option<Vec<u8>> {
    let all = |name: &str| -> Vec<&[u8]> {
        let found = headers.iter().filter(|(found, _)| found.eq_ignore_ascii_case(name));
        found.map(|(_, value)| *value).collect()
    };
    let (lengths, codings) = (all("content-length"), all("transfer-encoding"));
    match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => Some(Vec::new()),
        ([length], []) => {
            let length = std::str::from_utf8(length).ok()?;
            let digits = length.bytes().all(|b| b.is_ascii_digit());
            take(rest, length.parse().ok().filter(|_| digits)?)
        }
        ([], [coding]) if version == "HTTP/1.1" && coding.eq_ignore_ascii_case(b"chunked") => {
            chunks(rest)
        }
        // Two opinions on where the body ends, or none that we know.
        (_, _) => None,
    }
}

fn take(rest: &mut &[u8], count: usize) -> Option<Vec<u8>> {
    let (taken, after) = rest.split_at_checked(count)?;
    *rest = after;
    Some(taken.to_vec())
}

fn chunks(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = take_line(rest)?;
        let size = line.split(|&b| b == b';').next().filter(|size| !size.is_empty())?;
        if !size.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        match usize::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()? {
            0 => break,
            size => body.extend(take(rest, size)?),
        }
        if take(rest, 2)? != b"\r\n" {
            return None;
        }
    }
    loop {
        match take_line(rest)? {
            [] => return Some(body),
            trailer => field(trailer)?,
        };
    }
}
