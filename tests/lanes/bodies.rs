//! Owns bodies that never end: whom they cost their connection.
//!
//! Never: waits for a body's deadline.

use crate::alone;
use crate::support::server::Serving;
use crate::support::{Home, PATIENCE, eventually};
use std::io::{Read, Write};
use std::net::TcpStream;

/// More than may be held of unfinished requests: 64 MiB.
const HOLDERS: usize = 80;

/// What each of them sends of the largest body that is taken, and no more.
const HELD: usize = 1_000_000;

fn begin(serving: &Serving, path: &str, length: usize) -> TcpStream {
    let mut stream = TcpStream::connect(serving.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

fn status(stream: &mut TcpStream) -> Option<u16> {
    let mut head = [0; 12];
    stream.read_exact(&mut head).ok()?;
    std::str::from_utf8(&head[9..]).ok()?.parse().ok()
}

#[test]
fn unfinished_bodies_cost_those_who_hold_most_for_longest() {
    let _alone = alone();
    let home = Home::new();
    let serving = home.serve(&[]);
    let body = vec![b' '; HELD];
    let mut holders: Vec<TcpStream> = (0..HOLDERS)
        .map(|_| {
            let mut stream = begin(&serving, "/v1/templates", HELD + 1);
            // One that is refused meanwhile is not read to its end.
            let _ = stream.write_all(&body);
            stream
        })
        .collect();
    // The first ones had to go; they hear so.
    let refused = eventually("a refusal", || {
        let first = holders.first_mut()?;
        first.set_nonblocking(false).unwrap();
        status(first)
    });
    assert_eq!(refused, 503);
    for length in [20_000, 200_000] {
        for _ in 0..5 {
            let mut late = begin(&serving, "/v1/templates", length);
            late.write_all(&body[..length / 2]).unwrap();
            assert_eq!(serving.get("/healthz").status, 200, "both halves are not one packet");
            late.write_all(&body[length / 2..length]).unwrap();
            assert_eq!(status(&mut late), Some(401), "{length} bytes are taken and answered");
        }
    }
    // What needs no more is not let send it.
    let mut long = begin(&serving, "/v1/hosts/register", HELD);
    assert_eq!(status(&mut long), Some(413));
    drop(holders);
    serving.stop();
}
