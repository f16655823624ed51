//! Owns the event stream in numbers, from outside: a thousand clients at once, those that
//! leave, those that do not read, and those that begin far back.
//!
//! Never: what one stream shows to whom; that is in `serve/keys.rs`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

#[path = "streams/crowd.rs"]
mod crowd;
#[path = "streams/feeds.rs"]
mod feeds;

use crowd::{Crowd, allow_files, cpu, request};
use roost::http::trust_in;
use roost::model::id::TeamId;
use rusqlite::{Connection, params};
use rustix::net::sockopt::set_socket_linger;
use rustix::process::Signal;
use rustls::{ClientConnection, StreamOwned};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use support::server::Serving;
use support::{Home, PATIENCE, eventually, host, sandbox};

/// Nothing happens but what a test does.
const CALM: [&str; 4] = ["--startup-grace", "1h", "--unreachable-after", "1h"];

/// Places for one key, and for all but the operator's.
const SHARE: usize = 300;
const PLACES: usize = 1200;
const RESERVED: usize = 100;

fn home() -> Home {
    Home::with(&json!({"hosts": [{"id": host(1), "status": "online", "heartbeat_age_s": 1}]}))
}

/// So many events of the past; every `rare`th is about a sandbox of its own.
fn past(home: &Home, count: i64, rare: i64) -> i64 {
    let conn = Connection::open(home.path("roost.db")).unwrap();
    let newest: i64 = conn.query_row("SELECT revision FROM state", [], |r| r.get(0)).unwrap();
    let insert = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?1) \
         INSERT INTO events (revision, at, kind, host_id, sandbox_id, team_id, from_status, \
         to_status, reason, actor) \
         SELECT ?2 + n, unixepoch() * 1000, 'sandbox.paused', ?3, \
         CASE WHEN n % ?4 = 0 THEN ?5 ELSE ?6 END, ?7, 'running', 'paused', 'user_request', 'system' FROM n";
    let team = TeamId::from_u128(0).to_string();
    conn.execute(insert, params![count, newest, host(1), rare, sandbox(1), sandbox(2), team])
        .unwrap();
    conn.execute("UPDATE state SET revision = revision + ?1", [count]).unwrap();
    newest
}

/// Makes one event.
fn happen(serving: &Serving, n: usize) {
    let path = format!("/v1/hosts/{}/{}", host(1), ["drain", "undrain"][n % 2]);
    assert_eq!(serving.post(&path, &json!({})).status, 200);
}

fn make_key(serving: &Serving, n: u128) -> String {
    let wanted = json!({"name": format!("streams {n}"), "team_id": TeamId::from_u128(n)});
    let made = serving.post("/v1/api-keys", &wanted).json();
    made["key"].as_str().unwrap().to_owned()
}

/// A stream that has answered with this status.
fn open(address: SocketAddr, key: &str, query: &str) -> (u16, BufReader<TcpStream>) {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(request(key, query).as_bytes()).unwrap();
    let mut stream = BufReader::new(socket);
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    (line[9..12].parse().unwrap(), stream)
}

fn rss_kib(serving: &Serving) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", serving.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_thousand_streams_receive_every_event_in_order() {
    allow_files();
    let home = home();
    let serving = home.serve(&CALM);
    let empty = rss_kib(&serving);
    let mut crowd = Crowd::open(serving.address, serving.key(), "", 1000);
    let events = 60;
    let newest = serving.get("/v1/history").json()["revision"].as_u64().unwrap();
    let (began, cpu_before) = (Instant::now(), cpu(serving.pid()));
    for n in 0..events {
        happen(&serving, n);
    }
    crowd.gather("all events everywhere", |seen| seen.len() >= events);
    let (took, used) = (began.elapsed(), cpu(serving.pid()) - cpu_before);
    let expected = crowd.members[0].seen.clone();
    assert!(expected.is_sorted() && expected[0] > newest && expected.len() == events);
    assert!(crowd.members.iter().all(|member| member.seen == expected), "one missed something");
    let deliveries = (events * crowd.members.len()) as f64;
    println!(
        "{deliveries} deliveries to 1000 streams in {took:.2?}: {:.0} a second, {:.1} us of CPU \
         each, the requests that made the {events} events included",
        deliveries / took.as_secs_f64(),
        used.as_secs_f64() * 1e6 / deliveries
    );
    let grown = rss_kib(&serving).saturating_sub(empty);
    println!("1000 streams: {grown} KiB");
    assert!(grown < 16 * 1024, "{grown} KiB");
    assert_eq!(serving.metric("roost_event_streams"), 1000);
    drop(crowd);
    eventually("no streams", || (serving.metric("roost_event_streams") == 0).then_some(()));
    serving.stop();
}

/// How a client leaves.
#[derive(Debug, Clone, Copy)]
enum Leaves {
    Orderly,
    Reset,
}

fn leave(socket: &TcpStream, how: Leaves) {
    match how {
        Leaves::Orderly => {}
        Leaves::Reset => set_socket_linger(socket, Some(Duration::ZERO)).unwrap(),
    }
}

#[test]
fn places_are_free_within_a_second_after_their_clients_have_left() {
    allow_files();
    let home = home();
    let serving = home.serve(&CALM);
    let key = make_key(&serving, 1);
    for how in [Leaves::Orderly, Leaves::Reset, Leaves::Orderly, Leaves::Reset] {
        let crowd = Crowd::open(serving.address, &key, "", SHARE);
        let (status, mut refused) = open(serving.address, &key, "");
        let mut answer = String::new();
        refused.read_to_string(&mut answer).unwrap();
        assert_eq!(status, 503);
        assert!(answer.contains("retry-after: ") && answer.contains("its share"), "{answer}");
        crowd.members.iter().for_each(|member| leave(&member.socket, how));
        drop(crowd);
        let left = Instant::now();
        // The last of those that were here makes room like the first.
        let again = eventually("room for all of them again", || {
            let opened: Vec<_> = (0..SHARE).map(|_| open(serving.address, &key, "")).collect();
            opened.iter().all(|(status, _)| *status == 200).then_some(opened)
        });
        let took = left.elapsed();
        println!("{how:?}: all {SHARE} places were taken again {took:.2?} after they were left");
        // Opening them is part of it.
        assert!(took < Duration::from_secs(5), "{how:?}: {took:?}");
        drop(again);
        eventually("no streams", || (serving.metric("roost_event_streams") == 0).then_some(()));
    }
    serving.stop();
}

#[test]
fn tls_clients_free_their_places_as_well() {
    let home = home();
    let own = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["tls.example".to_owned()]).unwrap();
    let certificate = params.self_signed(&own).unwrap();
    let pem = |label: &str, der: &[u8]| {
        use base64::Engine;
        let digits = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN {label}-----\n{digits}\n-----END {label}-----\n")
    };
    home.write("tls.pem", &pem("CERTIFICATE", certificate.der()));
    home.write("tls.key", &pem("PRIVATE KEY", own.serialized_der()));
    let (cert, key) = (home.path("tls.pem"), home.path("tls.key"));
    home.write("roost.toml", &format!("tls_cert = {cert:?}\ntls_key = {key:?}\n"));
    let serving = Serving::start(home.serving(&CALM));
    let trusted = trust_in(&cert).unwrap();
    let admin = eventually("the key", || std::fs::read_to_string(home.path("admin.key")).ok());
    let connect = || {
        let name = "tls.example".to_owned().try_into().unwrap();
        let connection = ClientConnection::new(trusted.clone(), name).unwrap();
        let socket = TcpStream::connect(serving.address()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        StreamOwned::new(connection, socket)
    };
    let listen = || {
        let mut stream = connect();
        stream.write_all(request(admin.trim(), "").as_bytes()).unwrap();
        let mut read = Vec::new();
        while !read.ends_with(b": listening\n\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            read.extend(byte);
        }
        assert!(read.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&read));
        stream
    };
    let streams = || {
        let mut stream = connect();
        let ask = request(admin.trim(), "").replace("/v1/events", "/metrics");
        stream.write_all(ask.as_bytes()).unwrap();
        let mut text = String::new();
        // The server closes without a goodbye of TLS's when it is done.
        let _ = stream.read_to_string(&mut text);
        let line = text.lines().find_map(|line| line.strip_prefix("roost_event_streams "));
        line.and_then(|count| count.parse::<usize>().ok())
    };
    eventually("readiness", || streams().filter(|count| *count == 0));
    for how in ["close_notify", "orderly", "reset"] {
        let mut open: Vec<_> = (0..8).map(|_| listen()).collect();
        assert_eq!(streams(), Some(8));
        let left = Instant::now();
        match how {
            // Only TLS's own end: the socket stays open.
            "close_notify" => {
                for stream in &mut open {
                    stream.conn.send_close_notify();
                    stream.conn.write_tls(&mut stream.sock).unwrap();
                }
            }
            "orderly" => open.clear(),
            _ => {
                open.iter().for_each(|stream| leave(&stream.sock, Leaves::Reset));
                open.clear();
            }
        }
        eventually("no streams", || streams().filter(|count| *count == 0));
        assert!(left.elapsed() < Duration::from_secs(5), "{how}: {:?}", left.elapsed());
    }
    serving.stop();
}

#[test]
fn keys_have_their_shares_and_the_operator_a_reserve() {
    allow_files();
    let home = home();
    let serving = home.serve(&CALM);
    let keys: Vec<String> = (1..=4).map(|n| make_key(&serving, n)).collect();
    let mut crowds = Vec::new();
    for key in &keys[..3] {
        crowds.push(Crowd::open(serving.address, key, "", SHARE));
        assert_eq!(open(serving.address, key, "").0, 503);
    }
    let left = PLACES - RESERVED - 3 * SHARE;
    crowds.push(Crowd::open(serving.address, &keys[3], "", left));
    let (status, mut refused) = open(serving.address, &keys[3], "");
    let mut answer = String::new();
    refused.read_to_string(&mut answer).unwrap();
    assert!(status == 503 && answer.contains("are taken"), "{answer}");
    crowds.push(Crowd::open(serving.address, serving.key(), "", RESERVED));
    assert_eq!(open(serving.address, serving.key(), "").0, 503);
    // Nothing else is harder to get because of it.
    assert_eq!(serving.get("/v1/hosts").status, 200);
    assert_eq!(serving.beat(&host(1), "none").status, 401);
    serving.stop();
}

/// The kernel's buffers of those who do not read are full of the past.
#[test]
fn who_does_not_read_costs_little_and_delays_no_one() {
    let home = home();
    let first = past(&home, 40_000, 1000);
    let serving = home.serve(&CALM);
    let mut live = Crowd::open(serving.address, serving.key(), "", 1);
    let before = rss_kib(&serving);
    let deaf: Vec<_> = (0..200)
        .map(|_| open(serving.address, serving.key(), &format!("?after={first}")))
        .collect();
    assert!(deaf.iter().all(|(status, _)| *status == 200));
    // Meanwhile everything is as usual for who reads: live, and from the same place.
    happen(&serving, 0);
    live.gather("the live event", |seen| seen.len() == 1);
    let mut reads = Crowd::open(serving.address, serving.key(), &format!("?after={first}"), 1);
    reads.gather("the whole past", |seen| seen.len() >= 40_001);
    let seen = &reads.members[0].seen;
    assert!(seen.is_sorted_by(|a, b| a < b) && seen.len() == 40_001);
    let grown = rss_kib(&serving).saturating_sub(before);
    println!("200 streams that are not read: {grown} KiB");
    assert!(grown < 24 * 1024, "{grown} KiB");
    eventually("an end of those", || (serving.metric("roost_event_streams") == 2).then_some(()));
    assert!(serving.metric("roost_event_streams_cut_total") > 0);
    serving.stop();
}

/// What is read from the past and what is heard live fit together without a gap.
#[test]
fn a_stream_that_catches_up_misses_nothing_while_things_happen() {
    let home = home();
    let first = past(&home, 9_000, 3_000);
    let serving = home.serve(&CALM);
    let (all, rare) =
        (format!("?after={first}"), format!("?after={first}&sandbox_id={}", sandbox(1)));
    let events = 120;
    let address = serving.address;
    let begin = |query: &str, streams: usize, count: usize| {
        let (query, key) = (query.to_owned(), serving.key().to_owned());
        std::thread::spawn(move || {
            let mut crowd = Crowd::open(address, &key, &query, streams);
            crowd.gather(&query, |seen| seen.len() >= count);
            crowd.members.into_iter().map(|member| member.seen).collect::<Vec<_>>()
        })
    };
    let mut readers = Vec::new();
    for n in 0..events {
        happen(&serving, n);
        if n % 20 == 0 {
            readers.push((3, begin(&rare, 1, 3)));
            readers.push((9_000 + events, begin(&all, 4, 9_000 + events)));
        }
    }
    let expected = begin(&all, 1, 9_000 + events).join().unwrap().remove(0);
    assert!(expected.is_sorted_by(|a, b| a < b));
    for (count, reader) in readers {
        for seen in reader.join().unwrap() {
            assert!(seen.len() == count && (count == 3 || seen == expected));
        }
    }
    serving.stop();
}

#[test]
fn a_stop_ends_every_stream() {
    let home = home();
    let first = past(&home, 20_000, 10);
    let mut serving = home.serve(&CALM);
    let mut reading = Crowd::open(serving.address, serving.key(), "", 100);
    let _deaf: Vec<_> =
        (0..20).map(|_| open(serving.address, serving.key(), &format!("?after={first}"))).collect();
    let began = Instant::now();
    serving.signal(Signal::TERM);
    reading.read_out();
    for member in &reading.members {
        assert!(member.text.ends_with("\r\n0\r\n\r\n"), "not complete: {:?}", member.text);
    }
    assert_eq!(serving.wait(), 0);
    println!("all ended {:.2?} after the signal", began.elapsed());
}

#[test]
fn proxies_are_told_to_pass_on_what_they_are_given() {
    let home = home();
    let serving = home.serve(&CALM);
    let (status, mut stream) = open(serving.address, serving.key(), "");
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        stream.read_line(&mut head).unwrap();
    }
    assert_eq!(status, 200);
    for line in [
        "content-type: text/event-stream\r\n",
        "cache-control: no-cache, no-store, no-transform\r\n",
        "x-accel-buffering: no\r\n",
    ] {
        assert!(head.contains(line), "{line:?} is not in {head}");
    }
    let gone = serving.get("/v1/events?after=99999999");
    let error: Value = gone.json();
    assert_eq!((gone.status, &error["error"]["code"]), (410, &json!("gone")));
    serving.stop();
}
