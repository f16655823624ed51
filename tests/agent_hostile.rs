//! Agents that are broken, slow or malicious: each harms only its own probe, within the
//! deadline, and is named for what it did. One table per kind of harm, over real sockets.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "agent_raw/mod.rs"]
mod raw;

use flate2::{Compression, write::GzEncoder};
use raw::{Step, address, answer, client, json, serve, untouched};
use roost::agent::client::{
    AgentClient, BODY_BYTES_MAX, CallError, ClientConfig, DETAIL_CHARS_MAX,
};
use roost::model::host::AgentAddress;
use roost::model::id::SandboxId;
use roost::model::probe::{FailureKind, Probe};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// What a probe made of a hostile server.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// Nothing wrong was seen: this many sandboxes.
    Listed(usize),
    /// Failed, and this many auto-paused ids were saved.
    Failed(FailureKind, usize),
}

use FailureKind::{Malformed, TimedOut, Unreachable};
use Outcome::{Failed, Listed};
use Step::{Drip, Flood, Hold, Read, Send};

type Case = (&'static str, Vec<Step>, Outcome);

/// Enough for any answer that comes at once, however large, on a machine under load.
const AMPLE: Duration = Duration::from_secs(60);
/// The deadline where it is what ends the probe.
const SHORT: Duration = Duration::from_millis(300);
/// No probe may take longer than its deadline and this.
const LEEWAY: Duration = Duration::from_secs(4);
/// Nor longer than this, whatever its deadline.
const BOUND: Duration = Duration::from_secs(50);

const A: &str = "cl-0000000001d7tmz9j2abdrls0";
const SAVED: &str = r#""autoPausedSandboxIds":["cl-0000000001d7tmz9j2abdrls0"]"#;
const JSON: &str = "Content-Type: application/json\r\n";
const LIMIT: usize = BODY_BYTES_MAX as usize;

fn outcome(probe: &Probe) -> Outcome {
    match probe {
        Probe::Listed(listing) => Listed(listing.sandboxes.len()),
        Probe::Failed(failure) => {
            let one_line = failure.detail.chars().all(|c| !c.is_control());
            let short = failure.detail.chars().count() <= DETAIL_CHARS_MAX;
            assert!(one_line && short && !failure.detail.is_empty(), "{failure}");
            Failed(failure.kind, failure.drained.len())
        }
    }
}

/// Probes every server of a table, all at once.
fn check(probe_timeout: Duration, cases: Vec<Case>) {
    let client = client(probe_timeout);
    thread::scope(|scope| {
        for (name, steps, expected) in cases {
            let client = &client;
            scope.spawn(move || {
                let server = serve(steps);
                let start = Instant::now();
                let probe = client.list_sandboxes(raw::host(), &server.address);
                let took = start.elapsed();
                assert_eq!(outcome(&probe), expected, "{name}: {:.300}", format!("{probe:?}"));
                assert!(took < BOUND.min(probe_timeout + LEEWAY), "{name} took {took:?}");
                if expected == Failed(TimedOut, 0) {
                    assert!(took >= probe_timeout, "{name} gave up after {took:?}");
                }
            });
        }
    });
}

fn after_request(bytes: impl Into<Vec<u8>>) -> Vec<Step> {
    vec![Read, Send(bytes.into())]
}

fn then(bytes: impl Into<Vec<u8>>, last: Step) -> Vec<Step> {
    vec![Read, Send(bytes.into()), last]
}

/// A head without a length: the body ends with the connection.
fn open_ended(body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 200 OK\r\n{JSON}\r\n").as_bytes(), body].concat()
}

fn chunked(chunks: &[&[u8]]) -> Vec<u8> {
    let mut bytes =
        format!("HTTP/1.1 200 OK\r\n{JSON}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
    for chunk in chunks {
        write!(bytes, "{:x}\r\n", chunk.len()).unwrap();
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// A whole body in chunks, but for what may follow the last one.
fn before_trailers() -> String {
    format!("HTTP/1.1 200 OK\r\n{JSON}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n")
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn gzipped(body: &[u8]) -> Vec<u8> {
    answer("200 OK", &format!("{JSON}Content-Encoding: gzip\r\n"), body)
}

/// An object with an auto-paused id, filled up with spaces.
fn padded(bytes: usize) -> Vec<u8> {
    let mut body = format!("{{{SAVED}").into_bytes();
    body.resize(bytes - 1, b' ');
    body.push(b'}');
    body
}

#[test]
fn slow_servers_meet_the_deadline() {
    let long = "Content-Length: 1000000\r\n";
    let head = format!("HTTP/1.1 200 OK\r\n{JSON}{long}\r\n");
    let gzip_head = format!("HTTP/1.1 200 OK\r\n{JSON}Content-Encoding: gzip\r\n{long}\r\n");
    let cases = vec![
        ("silence at once", vec![Hold], Failed(TimedOut, 0)),
        ("silence after the request", vec![Read, Hold], Failed(TimedOut, 0)),
        ("silence in the status", then("HTTP/1.1 20", Hold), Failed(TimedOut, 0)),
        ("silence in the head", then("HTTP/1.1 200 OK\r\nA: ", Hold), Failed(TimedOut, 0)),
        ("silence after the head", then(head.clone(), Hold), Failed(TimedOut, 0)),
        ("silence in the body", then(head.clone() + "{", Hold), Failed(TimedOut, 0)),
        ("silence in a chunk", then(chunked(&[b"{}"]), Hold), Failed(TimedOut, 0)),
        ("silence after the body", then(open_ended(b"{}"), Hold), Failed(TimedOut, 0)),
        ("slow status", then("HTTP/1.1 200 O", Drip(b"K".into())), Failed(TimedOut, 0)),
        ("slow head", then("HTTP/1.1 200 OK\r\n", Drip(b"a: b\r\n".into())), Failed(TimedOut, 0)),
        ("slow body", then(head, Drip(b" ".into())), Failed(TimedOut, 0)),
        ("slow open end", then(open_ended(b""), Drip(b" ".into())), Failed(TimedOut, 0)),
        ("slow chunks", then(chunked(&[]), Drip(b"1\r\n \r\n".into())), Failed(TimedOut, 0)),
        ("slow trailers", then(before_trailers(), Drip(b"a: b\r\n".into())), Failed(TimedOut, 0)),
        ("slow gzip", then(gzip_head, Drip(gzip(b"{}"))), Failed(TimedOut, 0)),
        (
            "slow interim answers",
            vec![Read, Drip(b"HTTP/1.1 100 Continue\r\n\r\n".into())],
            Failed(TimedOut, 0),
        ),
        (
            "trailers without end",
            then(before_trailers(), Flood(b"a: b\r\n".repeat(100))),
            Failed(TimedOut, 0),
        ),
    ];
    check(SHORT, cases);
}

#[test]
fn large_answers_are_cut_off() {
    let spaces = vec![b' '; 64 * 1024];
    let declared = format!("HTTP/1.1 200 OK\r\n{JSON}Content-Length: {}\r\n\r\n", LIMIT + 1);
    let absurd = format!("HTTP/1.1 200 OK\r\n{JSON}Content-Length: {}\r\n\r\n", u64::MAX);
    let padding = "a: b\r\n".repeat(1000) + &"x".repeat(100_000);
    let cases = vec![
        ("exactly the limit", after_request(json(&padded(LIMIT))), Listed(0)),
        ("one byte more", after_request(json(&padded(LIMIT + 1))), Failed(Malformed, 0)),
        ("one byte more, declared only", then(declared, Hold), Failed(Malformed, 0)),
        ("2^64 - 1 bytes, declared only", then(absurd, Hold), Failed(Malformed, 0)),
        ("open end, the limit", after_request(open_ended(&padded(LIMIT))), Listed(0)),
        (
            "open end, one byte more",
            after_request(open_ended(&padded(LIMIT + 1))),
            Failed(Malformed, 0),
        ),
        ("chunked, the limit", after_request(chunked(&[&padded(LIMIT), b""])), Listed(0)),
        (
            "chunked, one byte more",
            after_request(chunked(&[&padded(LIMIT), b" ", b""])),
            Failed(Malformed, 0),
        ),
        ("gzip, the limit", after_request(gzipped(&gzip(&padded(LIMIT)))), Listed(0)),
        (
            "gzip, one byte more",
            after_request(gzipped(&gzip(&padded(LIMIT + 1)))),
            Failed(Malformed, 0),
        ),
        (
            "gzip bomb",
            after_request(gzipped(&gzip(&vec![b' '; 64 * 1024 * 1024]))),
            Failed(Malformed, 0),
        ),
        (
            "gzip bomb of many members",
            after_request(gzipped(&gzip(&spaces).repeat(10_000))),
            Failed(Malformed, 0),
        ),
        ("no end", then(open_ended(b""), Flood(spaces.clone())), Failed(Malformed, 0)),
        (
            "chunks without end",
            then(chunked(&[]), Flood([b"10000\r\n", &spaces[..], b"\r\n"].concat())),
            Failed(Malformed, 0),
        ),
        ("head without end", then("HTTP/1.1 200 OK\r\nA: ", Flood(spaces)), Failed(Malformed, 0)),
        (
            "huge head",
            after_request(format!("HTTP/1.1 200 OK\r\n{padding}\r\n\r\n")),
            Failed(Malformed, 0),
        ),
        (
            "too many headers",
            after_request(answer("200 OK", &(JSON.to_owned() + &"a: b\r\n".repeat(200)), b"{}")),
            Failed(Malformed, 0),
        ),
        (
            "chunk size without end",
            then(chunked(&[]), Flood(vec![b'0'; 1000])),
            Failed(Malformed, 0),
        ),
        (
            "trailer without end",
            then(before_trailers() + "a: ", Flood(vec![b'a'; 1000])),
            Failed(Malformed, 0),
        ),
        (
            "interim answers without end",
            vec![Read, Flood(b"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(100))],
            Failed(Malformed, 0),
        ),
    ];
    check(AMPLE, cases);
}

/// What this thread has spent.
fn thread_cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(now).unwrap()
}

#[test]
fn answers_that_cost_more_than_they_hold() {
    let empty = gzip(b"");
    let members = |member: &[u8]| member.repeat(LIMIT / member.len());
    let cases = [
        ("empty members", members(&empty)),
        ("members of one byte", members(&gzip(b" "))),
        ("empty members after a listing", [gzip(b"{}"), members(&empty)].concat()),
    ];
    let client = client(AMPLE);
    for (name, packed) in cases {
        let server = serve(after_request(gzipped(&packed[..packed.len().min(LIMIT)])));
        let began = thread_cpu();
        let probe = client.list_sandboxes(raw::host(), &server.address);
        let spent = thread_cpu() - began;
        let Probe::Failed(failure) = probe else { panic!("{name}: {probe:?}") };
        assert_eq!(failure.to_string(), "malformed: gzip: more than 16 members", "{name}");
        // A listing of as many bytes costs less than this, too.
        assert!(spent < Duration::from_millis(200), "{name}: {spent:?}");
    }
}

#[test]
fn answers_that_break_off() {
    let whole = format!(r#"{{"sandboxes":[],{SAVED}}}"#);
    let more = format!("HTTP/1.1 200 OK\r\n{JSON}Content-Length: {}\r\n\r\n{whole}", 1000);
    let gzip_more = format!(
        "HTTP/1.1 200 OK\r\n{JSON}Content-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
        1000
    );
    let http_10 = format!("HTTP/1.0 200 OK\r\n{JSON}\r\n{}", &whole[..20]);
    let cases = vec![
        ("at once", vec![], Failed(Unreachable, 0)),
        ("after the request", vec![Read], Failed(Unreachable, 0)),
        ("in the status", after_request("HTTP/1.1 2"), Failed(Unreachable, 0)),
        ("in the head", after_request("HTTP/1.1 200 OK\r\nConte"), Failed(Unreachable, 0)),
        (
            "before the body",
            after_request(&more[..more.len() - whole.len()]),
            Failed(Unreachable, 0),
        ),
        ("length says more", after_request(more), Failed(Unreachable, 0)),
        ("between chunks", after_request(chunked(&[whole.as_bytes()])), Failed(Unreachable, 0)),
        ("in a chunk", after_request(&chunked(&[whole.as_bytes()])[..120]), Failed(Unreachable, 0)),
        (
            "in gzip",
            after_request([gzip_more.as_bytes(), &gzip(b"{}")[..15]].concat()),
            Failed(Unreachable, 0),
        ),
        // Only what was read shows that it is not whole.
        ("open end", after_request(open_ended(&whole.as_bytes()[..20])), Failed(Malformed, 0)),
        ("HTTP/1.0", after_request(http_10), Failed(Malformed, 0)),
        ("open end, nothing", after_request(open_ended(b"")), Failed(Malformed, 0)),
        // The last chunk is enough; the empty line after it is not waited for.
        (
            "after the last chunk",
            after_request({
                let mut bytes = chunked(&[whole.as_bytes(), b""]);
                bytes.truncate(bytes.len() - 2);
                bytes
            }),
            Listed(0),
        ),
    ];
    check(AMPLE, cases);
}

#[test]
fn answers_that_are_not_http() {
    let length =
        |headers: &str, body: &str| format!("HTTP/1.1 200 OK\r\n{JSON}{headers}\r\n{body}");
    let sized = |size: &str| {
        length("Transfer-Encoding: chunked\r\n", &format!("{size}\r\n{{}}\r\n0\r\n\r\n"))
    };
    let cases = vec![
        ("garbage", after_request("garbage\r\n\r\n"), Failed(Malformed, 0)),
        ("another protocol", after_request("SSH-2.0-OpenSSH_9.6\r\n"), Failed(Malformed, 0)),
        ("a TLS alert", after_request(b"\x15\x03\x03\x00\x02\x02\x32"), Failed(Malformed, 0)),
        (
            "HTTP/2 settings",
            after_request(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"),
            Failed(Malformed, 0),
        ),
        ("zero bytes", after_request(vec![0; 100]), Failed(Malformed, 0)),
        ("HTTP/2 in words", after_request("HTTP/2.0 200 OK\r\n\r\n{}"), Failed(Malformed, 0)),
        ("a status of letters", after_request("HTTP/1.1 OK\r\n\r\n{}"), Failed(Malformed, 0)),
        (
            "a header without colon",
            after_request("HTTP/1.1 200 OK\r\nA\r\n\r\n"),
            Failed(Malformed, 0),
        ),
        (
            "length of letters",
            after_request(length("Content-Length: two\r\n", "{}")),
            Failed(Malformed, 0),
        ),
        (
            "negative length",
            after_request(length("Content-Length: -2\r\n", "{}")),
            Failed(Malformed, 0),
        ),
        (
            "length over 2^64",
            after_request(length("Content-Length: 99999999999999999999\r\n", "{}")),
            Failed(Malformed, 0),
        ),
        (
            "two lengths",
            after_request(length("Content-Length: 2\r\nContent-Length: 3\r\n", "{} ")),
            Failed(Malformed, 0),
        ),
        ("chunk size of letters", after_request(sized("xyz")), Failed(Malformed, 0)),
        ("chunk size over 2^64", after_request(sized("fffffffffffffffff")), Failed(Malformed, 0)),
        ("negative chunk size", after_request(sized("-2")), Failed(Malformed, 0)),
        ("chunk longer than said", after_request(sized("1")), Failed(Malformed, 0)),
        ("HTTP/1.0", after_request(format!("HTTP/1.0 200 OK\r\n{JSON}\r\n{{}}")), Listed(0)),
        (
            "interim answers first",
            after_request(
                ["HTTP/1.1 100 Continue\r\n\r\n", &length("Content-Length: 2\r\n", "{}")].concat(),
            ),
            Listed(0),
        ),
        // What comes after an answer is not ours.
        (
            "length says less, whole before",
            after_request(length("Content-Length: 2\r\n", "{}garbage")),
            Listed(0),
        ),
        (
            "length says less",
            after_request(length("Content-Length: 20\r\n", r#"{"sandboxes":[],"a":[]}"#)),
            Failed(Malformed, 0),
        ),
    ];
    check(AMPLE, cases);
}

#[test]
fn answers_of_the_wrong_kind() {
    let body = format!("{{{SAVED}}}");
    let body = body.as_bytes();
    let kind = |kind: &str| after_request(answer("200 OK", kind, body));
    let status = |status: &str| after_request(answer(status, JSON, body));
    let encoding = |name: &str, bytes: &[u8]| {
        after_request(answer("200 OK", &format!("{JSON}Content-Encoding: {name}\r\n"), bytes))
    };
    let packed = gzip(body);
    let mut wrong_sum = packed.clone();
    let sum = wrong_sum.len() - 8;
    wrong_sum[sum] ^= 1;
    let cases = vec![
        ("text", kind("Content-Type: text/plain\r\n"), Failed(Malformed, 1)),
        ("no type", kind(""), Failed(Malformed, 1)),
        ("nearly JSON", kind("Content-Type: application/jsonx\r\n"), Failed(Malformed, 1)),
        ("protobuf", kind("Content-Type: application/proto\r\n"), Failed(Malformed, 1)),
        ("type of other bytes", kind("Content-Type: \u{fc}\r\n"), Failed(Malformed, 1)),
        (
            "JSON with a charset",
            kind("Content-Type: Application/JSON ; charset=utf-8\r\n"),
            Listed(0),
        ),
        ("created", status("201 Created"), Failed(Malformed, 0)),
        ("no content", after_request("HTTP/1.1 204 No Content\r\n\r\n"), Failed(Malformed, 0)),
        ("partial content", status("206 Partial Content"), Failed(Malformed, 0)),
        ("not modified", after_request("HTTP/1.1 304 Not Modified\r\n\r\n"), Failed(Malformed, 0)),
        (
            "switching protocols",
            after_request("HTTP/1.1 101 Switching Protocols\r\n\r\n"),
            Failed(Malformed, 0),
        ),
        ("unheard-of status", status("999 Whatever"), Failed(Malformed, 0)),
        ("internal error without words", status("500 Oops"), Failed(Malformed, 0)),
        ("gzip", encoding("gzip", &packed), Listed(0)),
        ("gzip in two members", encoding("gzip", &[gzip(b"{"), gzip(b"}")].concat()), Listed(0)),
        ("plain and said so", encoding("identity", body), Listed(0)),
        ("plain and called gzip", encoding("gzip", body), Failed(Malformed, 0)),
        ("gzip and not called so", after_request(json(&packed)), Failed(Malformed, 0)),
        ("gzip cut off", encoding("gzip", &packed[..packed.len() - 12]), Failed(Malformed, 0)),
        (
            "gzip without its sum",
            encoding("gzip", &packed[..packed.len() - 8]),
            Failed(Malformed, 0),
        ),
        ("gzip with a wrong sum", encoding("gzip", &wrong_sum), Failed(Malformed, 0)),
        (
            "gzip and garbage",
            encoding("gzip", &[&packed[..], b"garbage"].concat()),
            Failed(Malformed, 0),
        ),
        ("gzip of nothing", encoding("gzip", b""), Failed(Malformed, 0)),
        ("not asked for", encoding("br", body), Failed(Malformed, 0)),
        ("packed twice", encoding("gzip, gzip", &gzip(&packed)), Failed(Malformed, 0)),
    ];
    check(AMPLE, cases);
}

#[test]
fn listings_that_cannot_be_believed() {
    let deep = |open: &str, close: &str| open.repeat(100_000) + "1" + &close.repeat(100_000);
    let (lists, objects) = (deep("[", "]"), deep("{\"a\":", "}"));
    let million = |element: &str| vec![element; 1_000_000].join(",");
    let listed = |body: String| after_request(json(body.as_bytes()));
    let with = |sandboxes: &str| listed(format!(r#"{{"sandboxes":{sandboxes},{SAVED}}}"#));
    let cases = vec![
        (
            "an id twice",
            with(&format!(r#"[{{"sandboxId":"{A}"}},{{"sandboxId":"{A}"}}]"#)),
            Failed(Malformed, 1),
        ),
        (
            "a host's id",
            with(r#"[{"sandboxId":"host-0000000001d7tmz9j2abdrls0"}]"#),
            Failed(Malformed, 1),
        ),
        (
            "an id over 128 bits",
            with(r#"[{"sandboxId":"cl-zzzzzzzzzzzzzzzzzzzzzzzzz"}]"#),
            Failed(Malformed, 1),
        ),
        ("no id", with("[{}]"), Failed(Malformed, 1)),
        (
            "a wrong type",
            with(&format!(r#"[{{"sandboxId":"{A}","createdAtUnix":[]}}]"#)),
            Failed(Malformed, 1),
        ),
        ("null for the list", with("null"), Failed(Malformed, 1)),
        (
            "a bad id among the paused",
            listed(format!(r#"{{"autoPausedSandboxIds":["x","{A}"]}}"#)),
            Failed(Malformed, 1),
        ),
        (
            "not UTF-8",
            after_request(json(
                &[br#"{"x":""#, &b"\xff"[..], br#"","#, SAVED.as_bytes(), b"}"].concat(),
            )),
            Failed(Malformed, 1),
        ),
        (
            "UTF-16",
            after_request(json(
                &"{}".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>(),
            )),
            Failed(Malformed, 0),
        ),
        ("deep lists", listed(lists.clone()), Failed(Malformed, 0)),
        ("deep lists for the list", with(&lists), Failed(Malformed, 1)),
        (
            "deep lists for a status",
            with(&format!(r#"[{{"sandboxId":"{A}","status":{lists}}}]"#)),
            Failed(Malformed, 1),
        ),
        (
            "deep objects for metadata",
            with(&format!(r#"[{{"sandboxId":"{A}","metadata":{objects}}}]"#)),
            Failed(Malformed, 1),
        ),
        (
            "deep lists among the paused",
            listed(format!(r#"{{"autoPausedSandboxIds":["{A}",{lists}]}}"#)),
            Failed(Malformed, 1),
        ),
        // A field we do not know may hold anything.
        (
            "deep lists in a new field",
            listed(format!(
                r#"{{"new":{lists},"sandboxes":[{{"sandboxId":"{A}","new":{objects}}}]}}"#
            )),
            Listed(1),
        ),
        ("lists that never close", listed("[".repeat(1_000_000)), Failed(Malformed, 0)),
        ("a million numbers", with(&format!("[{}]", million("1"))), Failed(Malformed, 1)),
        ("a million empty objects", with(&format!("[{}]", million("{}"))), Failed(Malformed, 1)),
        (
            "a million numbers among the paused",
            listed(format!(r#"{{"autoPausedSandboxIds":[{},"{A}"]}}"#, million("1"))),
            Failed(Malformed, 1),
        ),
        (
            "half a million times the same paused",
            listed(format!(
                r#"{{"autoPausedSandboxIds":[{}]}}"#,
                vec![format!("\"{A}\""); 500_000].join(",")
            )),
            Listed(0),
        ),
        ("a million fields", listed(format!("{{{},{SAVED}}}", million(r#""a":1"#))), Listed(0)),
        (
            "an error with status 200",
            listed(r#"{"code":"internal","message":"m"}"#.to_owned()),
            Failed(Malformed, 0),
        ),
    ];
    check(AMPLE, cases);
}

#[test]
fn redirects_are_not_followed() {
    for status in ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"] {
        let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
        let location = format!("{JSON}Location: http://{}/\r\n", address(&elsewhere));
        let server = serve(after_request(answer(status, &location, b"{}")));
        let probe = client(AMPLE).list_sandboxes(raw::host(), &server.address);
        assert_eq!(outcome(&probe), Failed(Malformed, 0), "{probe:?}");
        assert!(untouched(&elsewhere), "{status} was followed");
        // The same listener does see a request when there is one.
        let stream = TcpStream::connect(elsewhere.local_addr().unwrap()).unwrap();
        assert!(!untouched(&elsewhere));
        drop(stream);
    }
}

/// An address where nobody listens.
fn nobody() -> AgentAddress {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    address(&listener)
}

#[test]
fn nobody_there() {
    let start = Instant::now();
    let probe = client(AMPLE).list_sandboxes(raw::host(), &nobody());
    assert_eq!(outcome(&probe), Failed(Unreachable, 0));
    assert!(start.elapsed() < LEEWAY);
    let tls: AgentAddress = format!("https://{}", nobody()).parse().unwrap();
    let Probe::Failed(failure) = client(AMPLE).list_sandboxes(raw::host(), &tls) else {
        panic!("listed")
    };
    assert_eq!(failure.kind, Unreachable);
    assert!(failure.detail.contains("agent_tls"), "{failure}");
}

/// A listener that takes in no more connections: the kernel drops what asks for one.
#[cfg(target_os = "linux")]
fn full_listener() -> (rustix::fd::OwnedFd, TcpStream, AgentAddress) {
    use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};
    let listener = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    bind(&listener, &any).unwrap();
    listen(&listener, 0).unwrap();
    let at = std::net::SocketAddr::try_from(getsockname(&listener).unwrap()).unwrap();
    let filler = TcpStream::connect(at).unwrap();
    (listener, filler, at.to_string().parse().unwrap())
}

#[cfg(target_os = "linux")]
#[test]
fn a_connection_that_does_not_come_about() {
    let (_listener, _filler, at) = full_listener();
    let client = AgentClient::new(ClientConfig { connect_timeout: SHORT, ..Default::default() });
    let start = Instant::now();
    assert_eq!(outcome(&client.list_sandboxes(raw::host(), &at)), Failed(TimedOut, 0));
    // The HTTP client rounds a connection's time down to milliseconds.
    assert!(start.elapsed() >= SHORT / 2 && start.elapsed() < SHORT + LEEWAY);
    let error = client.pause(raw::host(), &at, SandboxId::from_u128(1), AMPLE).unwrap_err();
    assert!(matches!(error, CallError::NotReached { kind: TimedOut, .. }), "{error}");
    // The deadline of the whole call holds for connecting too.
    let start = Instant::now();
    let error = client.pause(raw::host(), &at, SandboxId::from_u128(1), SHORT / 3).unwrap_err();
    assert!(matches!(error, CallError::NotReached { kind: TimedOut, .. }), "{error}");
    assert!(start.elapsed() < SHORT, "{:?}", start.elapsed());
}

#[test]
fn calls_say_whether_they_may_have_been_executed() {
    let id = SandboxId::from_u128(1);
    let call = |steps, deadline| {
        let server = serve(steps);
        client(AMPLE).destroy(raw::host(), &server.address, id, deadline).unwrap_err()
    };
    let error = client(AMPLE).destroy(raw::host(), &nobody(), id, AMPLE).unwrap_err();
    assert!(matches!(error, CallError::NotReached { kind: Unreachable, .. }), "{error}");
    let error = call(vec![Read], AMPLE);
    assert!(matches!(error, CallError::Unknown { kind: Unreachable, .. }), "{error}");
    let error = call(vec![Read, Send(b"HTTP/1.1 200 OK\r\n".into())], AMPLE);
    assert!(matches!(error, CallError::Unknown { kind: Unreachable, .. }), "{error}");
    let start = Instant::now();
    let error = call(vec![Read, Hold], SHORT);
    assert!(matches!(error, CallError::Unknown { kind: TimedOut, .. }), "{error}");
    assert!(start.elapsed() >= SHORT && start.elapsed() < SHORT + LEEWAY);
    let error = call(after_request("garbage"), AMPLE);
    assert!(matches!(error, CallError::Malformed { .. }), "{error}");
    let error = call(after_request(json(&padded(LIMIT + 1))), AMPLE);
    assert!(matches!(error, CallError::Malformed { .. }), "{error}");
}

#[test]
fn a_client_is_as_good_after_hostile_agents_as_before() {
    let client = client(AMPLE);
    let good = format!(r#"{{"sandboxes":[{{"sandboxId":"{A}"}}]}}"#);
    // One thread, and so the same memory for every answer.
    for _ in 0..3 {
        for bytes in [gzipped(&gzip(&padded(LIMIT + 1))), open_ended(b"{"), gzipped(b"\x1f\x8b")] {
            let server = serve(after_request(bytes));
            assert_eq!(
                outcome(&client.list_sandboxes(raw::host(), &server.address)),
                Failed(Malformed, 0)
            );
            for bytes in [json(good.as_bytes()), gzipped(&gzip(good.as_bytes()))] {
                let server = serve(after_request(bytes));
                assert_eq!(
                    outcome(&client.list_sandboxes(raw::host(), &server.address)),
                    Listed(1)
                );
            }
        }
    }
}
