//! Owns `GET /`: the status page, one embedded file, and the headers that keep it to itself.
//!
//! Never: puts anything into the file; the page asks the API like every other client.

use crate::http::{Body, Request, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::Write;
use std::sync::OnceLock;

/// The file.
pub const PAGE: &str = include_str!("page/index.html");

/// Largest file, in bytes. Larger: a phone on a poor link waits; smaller: no room.
pub const PAGE_BYTES_MAX: usize = 100 * 1024;

const _: () = assert!(PAGE.len() <= PAGE_BYTES_MAX);

/// What is made of the file once.
struct Made {
    policy: String,
    /// `None` when it could not be compressed.
    gzipped: Option<Vec<u8>>,
}

/// `GET /`
pub(super) fn page(request: &Request) -> Response {
    static MADE: OnceLock<Made> = OnceLock::new();
    let made = MADE.get_or_init(|| Made { policy: policy(PAGE), gzipped: gzip(PAGE) });
    let mut response = Response::bytes(200, "text/html; charset=utf-8", Vec::new())
        .with_header("content-security-policy", made.policy.as_str())
        .with_header("referrer-policy", "no-referrer")
        .with_header("cache-control", "no-cache")
        .with_header("vary", "accept-encoding");
    response.body = match &made.gzipped {
        Some(gzipped) if request.accepts_gzip() => {
            response = response.with_header("content-encoding", "gzip");
            Body::Bytes(gzipped.clone())
        }
        Some(_) | None => Body::Bytes(PAGE.as_bytes().to_vec()),
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

fn gzip(page: &str) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(page.as_bytes()).ok()?;
    encoder.finish().ok()
}
