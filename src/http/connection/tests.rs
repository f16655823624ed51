//! Owns a connection's cases that no client can force: moments, turns, sizes.
//!
//! Never: waits for real time.

use super::super::testing::{connected, service};
use super::*;
use std::io::{Read, Write};
use std::net::TcpStream;

const REQUEST: &str = "GET /a HTTP/1.1\r\nHost: a\r\n\r\n";

/// Gives the connection a turn once what was sent has arrived.
fn turn(connection: &mut Connection, client: &mut TcpStream, sent: &str) -> Next {
    client.write_all(sent.as_bytes()).expect("writes");
    let mut fds = [rustix::event::PollFd::new(&*connection, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut fds, None).expect("arrives");
    connection.advance(&mut Buffer::default(), &service().0)
}

#[test]
fn deadlines_begin_with_what_is_waited_for_and_not_with_each_byte() {
    let (mut connection, mut client) = connected();
    let config = ServerConfig::default();
    let (head_ms, idle_ms, body_ms) = (10_000, 120_000, 30_000);
    let mut check = |sent: &str, now_ms: u64, cause: Waiting, deadline_ms: u64| {
        if !sent.is_empty() {
            assert!(matches!(turn(&mut connection, &mut client, sent), Next::Readable));
        }
        assert_eq!(connection.waiting(), cause, "after {sent:?}");
        assert_eq!(connection.wait_from(now_ms, &config), deadline_ms, "after {sent:?}");
        assert_eq!(connection.deadline_ms(), deadline_ms);
    };
    check("", 100, Waiting::First, 100 + head_ms);
    check("GET", 200, Waiting::Head, 200 + head_ms);
    check(" /", 300, Waiting::Head, 200 + head_ms);
    check(" HTTP/1.1\r\nHost: a\r\n\r\n", 400, Waiting::Idle, 400 + idle_ms);
    check("", 500, Waiting::Idle, 400 + idle_ms);
    check(&format!("{REQUEST}GET"), 600, Waiting::Head, 600 + head_ms);
    // Another head, of another request: its client is not late.
    check(&format!("{}GET", &REQUEST[3..]), 700, Waiting::Head, 700 + head_ms);
    let post = " / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n";
    check(post, 800, Waiting::Body, 800 + body_ms);
    check("ab", 900, Waiting::Body, 800 + body_ms);
    check("c", 1000, Waiting::Idle, 1000 + idle_ms);
    check("bad\0request\r\n\r\n", 1100, Waiting::Lingering, 1100 + 2000);
    check("more", 1200, Waiting::Lingering, 1100 + 2000);
}

#[test]
fn only_part_of_a_request_is_hurried() {
    let config = ServerConfig::default();
    for (sent, expected) in [("", 10_000), ("GET", 50), (REQUEST, 120_000)] {
        let (mut connection, mut client) = connected();
        if !sent.is_empty() {
            turn(&mut connection, &mut client, sent);
        }
        connection.wait_from(0, &config);
        connection.hurry(50);
        connection.hurry(70);
        assert_eq!(connection.deadline_ms(), expected, "after {sent:?}");
    }
}

#[test]
fn a_last_request_is_the_end_at_once_unless_more_was_sent() {
    let last = "GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let (mut connection, mut client) = connected();
    assert!(matches!(turn(&mut connection, &mut client, last), Next::Close));
    // To close now would reset the connection, and might destroy the answer.
    let (mut connection, mut client) = connected();
    let next = turn(&mut connection, &mut client, &format!("{last}more"));
    assert!(matches!(next, Next::Readable));
    assert_eq!(connection.waiting(), Waiting::Lingering);
}

#[test]
fn a_client_that_pipelines_gives_others_their_turn() {
    let (mut connection, mut client) = connected();
    let count = REQUESTS_PER_TURN as usize * 2 + 1;
    let mut next = turn(&mut connection, &mut client, &REQUEST.repeat(count));
    let mut turns = 1;
    while let Next::Writable = next {
        next = connection.advance(&mut Buffer::default(), &service().0);
        turns += 1;
    }
    assert!(matches!(next, Next::Readable));
    assert_eq!((turns, connection.served as usize), (3, count));
}

#[test]
fn an_idle_connection_is_small() {
    assert!(size_of::<Connection>() <= 320, "{} bytes", size_of::<Connection>());
    let (mut connection, mut client) = connected();
    turn(&mut connection, &mut client, REQUEST);
    assert_eq!(connection.held_bytes(), 0);
    turn(&mut connection, &mut client, "GET /");
    assert_eq!(connection.held_bytes(), 5);
}

#[test]
fn a_stop_ends_what_is_idle_and_answers_what_has_arrived() {
    let (service, stop) = service();
    let mut input = Buffer::default();
    stop.raise();
    let (mut idle, _client) = connected();
    assert!(matches!(idle.advance(&mut input, &service), Next::Close));

    let (mut busy, mut client) = connected();
    client.write_all(REQUEST.as_bytes()).expect("writes");
    let mut fds = [rustix::event::PollFd::new(&busy, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut fds, None).expect("arrives");
    assert!(matches!(busy.advance(&mut input, &service), Next::Readable));
    assert_eq!(busy.waiting(), Waiting::Lingering);
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("ends");
    assert!(answer.contains("connection: close\r\n"), "{answer}");
}
