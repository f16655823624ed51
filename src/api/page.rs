//! Owns `GET /`: the status page, one embedded file, and the headers that keep it to itself.
//!
//! Never: puts anything into the file; the page asks the API like every other client.

use crate::http::{Body, Request, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::read::GzDecoder;
use std::io::Read;
use std::sync::OnceLock;

/// The file, as the build packs it and most browsers get it.
const PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/index.html.gz"));

/// Largest file, in bytes. Larger: a phone on a poor link waits; smaller: no room.
pub const PAGE_BYTES_MAX: usize = 100 * 1024;

const _: () = assert!(include_str!("page/index.html").len() <= PAGE_BYTES_MAX);

/// A text that the build packed; empty if it did not, which a test of each would show.
pub fn unpacked(packed: &[u8]) -> String {
    let mut text = String::new();
    let read = GzDecoder::new(packed).read_to_string(&mut text);
    read.map(|_| text).unwrap_or_default()
}

/// `GET /`
pub(super) fn page(request: &Request) -> Response {
    static POLICY: OnceLock<String> = OnceLock::new();
    let policy = POLICY.get_or_init(|| policy(&unpacked(PACKED)));
    let mut response = Response::bytes(200, "text/html; charset=utf-8", Vec::new())
        .with_header("content-security-policy", policy.as_str())
        .with_header("referrer-policy", "no-referrer")
        .with_header("cache-control", "no-cache")
        .with_header("vary", "accept-encoding");
    response.body = match request.accepts_gzip() {
        true => {
            response = response.with_header("content-encoding", "gzip");
            Body::Bytes(PACKED.to_vec())
        }
        false => Body::Bytes(unpacked(PACKED).into_bytes()),
    };
    response
}

/// Nothing but the file's own script and style, by their hashes, and requests to where the
/// page came from. Nobody may frame it; text cannot become markup.
fn policy(page: &str) -> String {
    let hash = |tag: &str| {
        STANDARD.encode(ring::digest::digest(&ring::digest::SHA256, inside(page, tag).as_bytes()))
    };
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; \
         img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'",
        hash("script"),
        hash("style"),
    )
}

/// What stands between the first such tag and its end.
fn inside<'a>(page: &'a str, tag: &str) -> &'a str {
    let after = page.split_once(&format!("<{tag}>")).map_or("", |(_, after)| after);
    after.split_once(&format!("</{tag}>")).map_or("", |(inside, _)| inside)
}
