//! Owns what a handler is given: one whole request.
//!
//! Never: reads a socket, judges a request (`parse` does). Made by `parse`, read by handlers.

use std::fmt;
use std::net::SocketAddr;

/// One whole request, its body read.
#[derive(Debug, Clone)]
pub struct Request {
    /// What is asked for.
    pub method: Method,
    /// As sent, percent-encoding included, up to the `?`; starts with `/`, visible ASCII.
    pub path: String,
    /// As sent, what follows the first `?`; empty without one.
    pub query: String,
    /// All headers.
    pub headers: Headers,
    /// At most `body_bytes_max` bytes, without any transfer coding.
    pub body: Vec<u8>,
    /// The other end of the connection.
    pub peer: SocketAddr,
    /// Which of the listeners given at start accepted the connection.
    pub listener: usize,
}

impl Request {
    /// Whether the client says that it takes a body in gzip.
    pub fn accepts_gzip(&self) -> bool {
        let accepted = self.headers.get("accept-encoding").unwrap_or_default();
        accepted.split(',').any(|coding| {
            let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
            let weight = weight.trim().strip_prefix("q=").map(str::parse::<f32>);
            name.trim().eq_ignore_ascii_case("gzip") && weight != Some(Ok(0.0))
        })
    }
}

/// A request's method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// `GET`
    Get,
    /// `POST`
    Post,
    /// `PUT`
    Put,
    /// `DELETE`
    Delete,
    /// `HEAD`; the transport leaves the response's body out.
    Head,
    /// `OPTIONS`
    Options,
    /// `PATCH`
    Patch,
    /// Any other token.
    Other,
}

impl Method {
    /// The method that a token names; methods are case-sensitive.
    pub(super) fn of(token: &str) -> Method {
        match token {
            "GET" => Method::Get,
            "POST" => Method::Post,
            "PUT" => Method::Put,
            "DELETE" => Method::Delete,
            "HEAD" => Method::Head,
            "OPTIONS" => Method::Options,
            "PATCH" => Method::Patch,
            _ => Method::Other,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Delete => "DELETE",
            Method::Head => "HEAD",
            Method::Options => "OPTIONS",
            Method::Patch => "PATCH",
            Method::Other => "OTHER",
        })
    }
}

/// The headers of one request, at most `HEADERS_MAX`, in the order they came.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers {
    /// Names and values, one after another.
    text: Vec<u8>,
    /// Where each name and each value ends in `text`. A head has less than 64 KiB.
    ends: Vec<(u16, u16)>,
}

impl Headers {
    /// Empty, with room for a head of `bytes` bytes and `count` headers.
    pub(super) fn with_room(bytes: usize, count: usize) -> Headers {
        Headers { text: Vec::with_capacity(bytes), ends: Vec::with_capacity(count) }
    }

    /// Appends one header. What does not fit is left out; `HEAD_BYTES_MAX` keeps it from
    /// happening.
    pub(super) fn push(&mut self, name: &str, value: &[u8]) {
        let name_end = self.text.len() + name.len();
        let value_end = name_end + value.len();
        let ends = (u16::try_from(name_end), u16::try_from(value_end));
        if let (Ok(name_end), Ok(value_end)) = ends {
            self.text.extend_from_slice(name.as_bytes());
            self.text.extend_from_slice(value);
            self.ends.push((name_end, value_end));
        }
    }

    /// The first header of this name, in any case. None when there is none or its value is
    /// not UTF-8.
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.iter().find(|(found, _)| found.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(value).ok()
    }

    /// Every header as sent: name, value without the white space around it.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let mut start = 0;
        self.ends.iter().map(move |&(name_end, value_end)| {
            let (name_end, value_end) = (usize::from(name_end), usize::from(value_end));
            let name = self.text.get(start..name_end).unwrap_or_default();
            let value = self.text.get(name_end..value_end).unwrap_or_default();
            start = value_end;
            (std::str::from_utf8(name).unwrap_or_default(), value)
        })
    }

    /// How many headers there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes this holds on the heap.
    pub(super) fn held_bytes(&self) -> usize {
        self.text.capacity() + self.ends.capacity() * size_of::<(u16, u16)>()
    }
}

/// Names only: values hold keys and tokens, and debug output ends in logs.
impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|(name, _)| name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_found_in_any_case_and_never_shown() {
        let mut headers = Headers::with_room(64, 3);
        headers.push("X-Api-Key", b"roost_secret");
        headers.push("Empty", b"");
        headers.push("x-api-key", b"second");
        headers.push("Latin", b"\xe9");
        assert_eq!(headers.get("x-API-key"), Some("roost_secret"));
        assert_eq!(headers.get("empty"), Some(""));
        assert_eq!(headers.get("latin"), None);
        assert_eq!(headers.get("x-api"), None);
        assert_eq!(headers.len(), 4);
        assert!(!format!("{headers:?}").contains("secret"));
        assert!(format!("{headers:?}").contains("X-Api-Key"));
    }

    #[test]
    fn a_header_that_does_not_fit_is_left_out_whole() {
        let mut headers = Headers::default();
        headers.push("a", &[b'x'; 70_000]);
        headers.push("b", b"y");
        assert_eq!((headers.get("a"), headers.get("b")), (None, Some("y")));
    }
}
