//! What `/` answers: the file, whole and alone, and the headers that keep it so.

use crate::support::Home;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use roost::api::page::PAGE_BYTES_MAX;
use serde_json::json;
use std::io::{Read, Write};

/// The file, which the program has packed.
const PAGE: &str = include_str!("../../src/api/page/index.html");

/// The header that decides what the browser runs.
fn policy(home: &Home) -> String {
    let serving = home.serve(&[]);
    let answer = serving.ask("GET", "/", &[], "");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
    assert_eq!(answer.body, PAGE);
    let policy = answer.header("content-security-policy").unwrap().to_owned();
    serving.stop();
    policy
}

fn hash_of(tag: &str) -> String {
    let parts: Vec<&str> = PAGE.split(&format!("<{tag}>")).collect();
    let [_, after] = parts.as_slice() else { panic!("not exactly one <{tag}>") };
    let (inside, rest) = after.split_once(&format!("</{tag}>")).unwrap();
    assert!(!rest.contains(&format!("<{tag}")), "a second <{tag}>");
    let digest = ring::digest::digest(&ring::digest::SHA256, inside.as_bytes());
    format!("'sha256-{}'", STANDARD.encode(digest))
}

#[test]
fn the_page_may_run_itself_and_nothing_else() {
    let policy = policy(&Home::new());
    let allowed: Vec<&str> = policy.split("; ").collect();
    let expected = [
        "default-src 'none'",
        &format!("script-src {}", hash_of("script")),
        &format!("style-src {}", hash_of("style")),
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ];
    assert_eq!(allowed, expected);
}

#[test]
fn the_file_names_nothing_outside_and_is_small() {
    assert!(PAGE.len() <= PAGE_BYTES_MAX, "{} bytes", PAGE.len());
    // A name of a vocabulary, which nobody fetches.
    let text = PAGE.replace("http://www.w3.org/2000/svg", "");
    let text = text.replace("http:%2F%2Fwww.w3.org/2000/svg", "");
    for outside in ["http:", "https:", "//cdn", "src=", "@import", "url(", "innerHTML", "eval("] {
        assert!(!text.contains(outside), "the page has {outside:?}");
    }
}

#[test]
fn who_accepts_it_gets_it_compressed() {
    let home = Home::new();
    let serving = home.serve(&[]);
    let mut stream = std::net::TcpStream::connect(serving.address()).unwrap();
    let request =
        "GET / HTTP/1.1\r\nHost: x\r\nAccept-Encoding: br, gzip\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_lowercase();
    assert!(
        head.contains("content-encoding: gzip") && head.contains("vary: accept-encoding"),
        "{head}"
    );
    let body = &bytes[end + 4..];
    let mut page = String::new();
    flate2::read::GzDecoder::new(body).read_to_string(&mut page).unwrap();
    assert_eq!(page, PAGE);
    assert!(body.len() * 2 < PAGE.len());
    serving.stop();
}

#[test]
fn other_methods_and_strangers_are_refused() {
    let home = Home::new();
    let serving = home.serve(&[]);
    assert_eq!(serving.ask("POST", "/", &[], "").refusal().0, 405);
    assert_eq!(serving.ask("GET", "/v1/history", &[], "").refusal().0, 401);
    let key = serving.post("/v1/api-keys", &json!({"name": "somebody"})).json();
    let key = [("X-API-Key", key["key"].as_str().unwrap())];
    assert_eq!(serving.ask("GET", "/v1/history", &key, "").refusal().0, 403);
    assert_eq!(serving.ask("POST", "/v1/history", &[], "").refusal().0, 405);

    serving.stop();
}
