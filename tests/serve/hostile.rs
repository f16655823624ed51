//! Owns a whole server among hostile neighbours: agents that lie, flood and hang beside
//! healthy ones, clients that attack beside agents that beat. What they must not do is
//! change anything of anybody else's, or take the server's memory.
//!
//! Never: each trick by itself, which is shown where the agent's client and the transport
//! live.

use crate::support::agents::{Agents, HungAgent, Says};
use crate::support::server::Serving;
use crate::support::token::forged;
use crate::support::{Home, PATIENCE, eventually, host, sandbox};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

/// The kernel's figure for a process, in KiB: `VmRSS:` is what it has, `VmHWM:` the most it
/// had.
fn memory_kib(serving: &Serving, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", serving.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

// ---- agents ----

/// What an agent does with every connection once it has the request: says the first, then
/// the second again and again until the client goes away.
struct Trick {
    name: &'static str,
    first: Vec<u8>,
    again: Vec<u8>,
}

/// One hostile agent on a port of its own; it ends when dropped.
struct HostileAgent {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl HostileAgent {
    fn start(Trick { first, again, .. }: Trick) -> HostileAgent {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stopped) = (Arc::clone(&asked), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                count.fetch_add(1, Ordering::SeqCst);
                // Whatever breaks, the client went away.
                let _ = play(&mut stream.unwrap(), &first, &again);
            }
        });
        HostileAgent { address, asked, stop, thread: Some(thread) }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for HostileAgent {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes it; a server that is gone ends what it was at.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn play(stream: &mut TcpStream, first: &[u8], again: &[u8]) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let _ = stream.read(&mut [0; 4096])?;
    stream.write_all(first)?;
    while !again.is_empty() {
        stream.write_all(again)?;
    }
    Ok(())
}

fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// Every kind of hostile agent. `neighbour` is where a healthy one listens, `theirs` and
/// `theirs_too` are sandboxes of healthy hosts.
fn tricks(neighbour: &str, theirs: &str, theirs_too: &str) -> Vec<Trick> {
    let open = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
    let trick = |name, first: Vec<u8>, again: &[u8]| Trick { name, first, again: again.to_vec() };
    let listing = |name, body: &str| trick(name, answer("200 OK", "", body.as_bytes()), b"");
    let gigabyte = format!("{open}Content-Length: 1073741824\r\n\r\n{{\"sandboxes\":[");
    let entry = format!("{{\"sandboxId\":\"{theirs}\",\"status\":\"paused\"}},");
    let entries = entry.repeat(1000);
    let deep = format!("{{\"sandboxes\":{}{}}}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    let location = format!("Location: http://{neighbour}/\r\n");
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    vec![
        trick("closes at once", Vec::new(), b""),
        trick("closes in the head", b"HTTP/1.1 200 OK\r\nConte".to_vec(), b""),
        trick("closes in the body", format!("{open}Content-Length: 99\r\n\r\n{{").into(), b""),
        trick("head without end", open.as_bytes().to_vec(), b"X: y\r\n"),
        trick("body without end", format!("{open}\r\n").into(), &[b' '; 65536]),
        trick(
            "chunks without end",
            format!("{open}Transfer-Encoding: chunked\r\n\r\n").into(),
            chunk.as_bytes(),
        ),
        trick("a gigabyte of entries", gigabyte.into(), entries.as_bytes()),
        trick("HTTP/1.0, cut", b"HTTP/1.0 200 OK\r\n\r\n{\"sandboxes\":[".to_vec(), b""),
        trick("not HTTP", b"\x15\x03\x03\x00\x02\x02\x32".to_vec(), b""),
        trick("redirect", answer("307 Temporary Redirect", &location, b""), b""),
        trick("not UTF-8", answer("200 OK", "", b"{\"sandboxes\":[],\"\xff\":\"\xfe\"}"), b""),
        listing("deep lists", &deep),
        listing("wrong types", r#"{"sandboxes":{"a":1}}"#),
        listing("not JSON", "<html>"),
        listing(
            "the same id twice",
            &format!("{{\"sandboxes\":[{entry}{entry}]}}").replace(",]", "]"),
        ),
        listing(
            "other hosts' sandboxes",
            &json!({"sandboxes": [{"sandboxId": theirs, "status": "paused"},
                {"sandboxId": theirs_too, "status": "paused"}],
                "autoPausedSandboxIds": [theirs, theirs_too]})
            .to_string(),
        ),
    ]
}

const HEALTHY: usize = 4;
const HUNG: usize = 80;

/// Rounds of probes of every healthy host. Were they to wait for those that hang, each
/// would take ten seconds and more, and nobody would wait for all of them.
const ROUNDS: usize = 8;

/// A probe takes at most 16 MiB as it came and 16 MiB unpacked, and four of the agents
/// here send as much as they can; an answer of a gigabyte that is believed goes far beyond.
const AGENTS_KIB_MAX: u64 = 192 * 1024;

#[test]
fn hostile_agents_harm_only_their_own_hosts() {
    let says = (1..=HEALTHY as u128).map(|n| Says::lists(&[(&sandbox(n), "running")]));
    let agents = Agents::start(says.collect());
    let tricks = tricks(&agents.address(0), &sandbox(1), &sandbox(2));
    let names: Vec<&str> = tricks.iter().map(|trick| trick.name).collect();
    let hung: Vec<HungAgent> = (0..HUNG).map(|_| HungAgent::start()).collect();
    let hostile: Vec<HostileAgent> = tricks.into_iter().map(HostileAgent::start).collect();

    let mut addresses: Vec<String> = (0..HEALTHY).map(|n| agents.address(n)).collect();
    addresses.extend(hostile.iter().map(|agent| agent.address.to_string()));
    addresses.extend(hung.iter().map(HungAgent::address));
    let row = |(n, address): (u128, &String)| json!({"id": host(n), "status": "online", "address": address, "heartbeat_age_s": 0});
    let status = |n: u128| if n <= HEALTHY as u128 { "missing" } else { "running" };
    let boxed = |n: u128| json!({"id": sandbox(n), "host_id": host(n), "status": status(n)});
    let count = addresses.len() as u128;
    let home = Home::with(&json!({
        "hosts": (1..).zip(&addresses).map(row).collect::<Vec<_>>(),
        "sandboxes": (1..=count).map(boxed).collect::<Vec<_>>(),
    }));
    let flags = ["--workers", "2", "--probe-interval", "1s", "--probe-timeout", "1s"];
    let calm = ["--startup-grace", "10m", "--unreachable-after", "10m"];
    let serving = home.serve(&[&flags[..], &calm].concat());

    eventually("every healthy host is asked again and again", || {
        let healthy = (0..HEALTHY).all(|n| agents.calls(n) >= ROUNDS);
        let hostile = hostile.iter().all(|agent| agent.asked() > 0);
        (healthy && hostile).then_some(())
    });
    let peak_kib = memory_kib(&serving, "VmHWM:");
    assert!(peak_kib < AGENTS_KIB_MAX, "{peak_kib} KiB at the peak");

    for n in 1..=count {
        let capsule = serving.get(&format!("/v1/capsules/{}", sandbox(n))).json();
        assert_eq!(capsule["status"], "running", "sandbox {n}");
    }
    for (n, name) in (HEALTHY as u128 + 1..).zip(&names) {
        let shown = serving.get(&format!("/v1/hosts/{}", host(n))).json();
        let outcome = &shown["last_probe"]["outcome"];
        assert!(outcome.is_string() && outcome != "observation", "{name}: {shown}");
    }
    for n in 1..=HEALTHY as u128 {
        let shown = serving.get(&format!("/v1/hosts/{}", host(n))).json();
        assert_eq!((&shown["status"], &shown["degraded"]), (&json!("online"), &json!(false)));
    }
    assert_eq!(serving.get("/readyz").status, 200);
    home.verify();
    // The agents' threads end with the server's side of their connections.
    let log = serving.stop();
    assert!(log.iter().all(|line| !line.contains("panicked")), "{log:?}");
}

// ---- clients ----

/// A connection that a well-behaved agent keeps open.
struct Beating {
    stream: TcpStream,
    request: Vec<u8>,
}

impl Beating {
    fn new(serving: &Serving, home: &Home, n: u128) -> Beating {
        let (id, token) = (host(n), home.token(&host(n)));
        let request = format!(
            "POST /v1/hosts/{id}/heartbeat HTTP/1.1\r\nHost: a\r\nX-Host-Token: {token}\r\n\
             Content-Length: 2\r\n\r\n{{}}"
        );
        Beating { stream: connect(serving), request: request.into_bytes() }
    }

    fn beat(&mut self, during: &str) {
        const NO_CONTENT: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";
        self.stream.write_all(&self.request).unwrap();
        let mut answer = [0; NO_CONTENT.len()];
        self.stream.read_exact(&mut answer).unwrap_or_else(|e| panic!("{during}: {e}"));
        assert_eq!(
            String::from_utf8_lossy(&answer),
            String::from_utf8_lossy(NO_CONTENT),
            "{during}"
        );
    }
}

fn connect(serving: &Serving) -> TcpStream {
    let stream = TcpStream::connect(serving.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Sends what can be sent, and returns the statuses that come back before the end.
fn statuses(serving: &Serving, bytes: &[u8]) -> Vec<u16> {
    let mut stream = connect(serving);
    // After a refusal the server may have closed already.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answers = Vec::new();
    let _ = stream.read_to_end(&mut answers);
    let text = String::from_utf8_lossy(&answers);
    let mut found = text.match_indices("HTTP/1.1 ").map(|(at, start)| &text[at + start.len()..]);
    let status = |line: &str| line.get(..3)?.parse().ok();
    std::iter::from_fn(|| found.next().and_then(status)).collect()
}

/// Requests that end by themselves, with what they must be answered.
fn attacks(home: &Home) -> Vec<(&'static str, Vec<u8>, Vec<u16>)> {
    let (victim, own) = (host(1), home.token(&host(2)));
    let beat = |id: &str, token: &str, more: &str| {
        format!(
            "POST /v1/hosts/{id}/heartbeat HTTP/1.1\r\nHost: a\r\nX-Host-Token: {token}\r\n{more}\r\n"
        )
    };
    let smuggled = beat(&victim, &own, "");
    let delete = "DELETE /v1/capsules/x HTTP/1.1\r\nHost: a\r\n\r\n";
    let post = |path: &str, headers: &str, body: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: a\r\n{headers}\r\n{body}").into_bytes()
    };
    let both = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n";
    let event = json!({"event": "sandbox.stopped", "sandbox_id": sandbox(1), "host_id": victim});
    let event = event.to_string();
    let as_own = format!("X-Host-Token: {own}\r\nContent-Length: {}\r\n", event.len());
    vec![
        (
            "a body that ends in two places",
            post("/v1/hosts/register", both, &format!("0\r\n\r\n{delete}")),
            vec![400],
        ),
        (
            "a coding in disguise",
            post("/", "Transfer-Encoding : chunked\r\n", &smuggled),
            vec![400],
        ),
        (
            "two lengths",
            post("/", "Content-Length: 0\r\nContent-Length: 90\r\n", &smuggled),
            vec![400],
        ),
        ("a folded header", post("/", "X: y\r\n Content-Length: 90\r\n", &smuggled), vec![400]),
        ("bare line feeds", b"GET / HTTP/1.1\nHost: a\n\n".to_vec(), vec![400]),
        ("a bad chunk", post("/", "Transfer-Encoding: chunked\r\n", "-1\r\n"), vec![400]),
        (
            "a head without end",
            format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(1 << 20)).into(),
            vec![431],
        ),
        ("a target without end", format!("GET /{}", "x".repeat(1 << 20)).into(), vec![414]),
        (
            "headers without end",
            format!("GET / HTTP/1.1\r\n{}", "a: b\r\n".repeat(100_000)).into(),
            vec![431],
        ),
        (
            "a body over the limit",
            post("/v1/hosts/register", "Content-Length: 1048577\r\n", ""),
            vec![413],
        ),
        (
            "a deep body",
            {
                let body = "[".repeat(60_000);
                post("/v1/hosts/register", &format!("Content-Length: {}\r\n", body.len()), &body)
            },
            vec![400],
        ),
        (
            "a body that is not UTF-8",
            [&post("/v1/hosts/register", "Content-Length: 4\r\n", "")[..], b"{\"\xff\""].concat(),
            vec![400],
        ),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), vec![400]),
        ("zeros", vec![0; 100_000], vec![400]),
        ("no token", beat(&victim, "", "").into(), vec![401]),
        ("a bad token", beat(&victim, "a.b.c", "").into(), vec![401]),
        ("a forged token", beat(&victim, &forged(&victim), "").into(), vec![401]),
        ("another host's token", smuggled.clone().into(), vec![403]),
        (
            "a report on another's sandbox",
            post("/v1/hosts/sandbox-events", &as_own, &event),
            vec![403],
        ),
        ("a token as long as it may be", beat(&victim, &"x".repeat(9000), "").into(), vec![401]),
        (
            "pipelined, the last is bad",
            format!("{}\0", smuggled.repeat(40)).into(),
            [vec![403; 40], vec![400]].concat(),
        ),
    ]
}

/// Paths that mean a known one to somebody else. None may lead anywhere without a key, and
/// none may be taken for a deleted host's.
fn odd_paths() -> Vec<String> {
    let id = host(1);
    let mut paths: Vec<String> = [
        "/v1/hosts/../hosts",
        "/v1/./hosts",
        "/v1//hosts",
        "//v1/hosts",
        "/v1/hosts/",
        "/V1/hosts",
        "/v1/hosts%2f",
        "/v1%2fhosts",
        "/%76%31/hosts",
        "/v1/hosts;x=y",
        "/v1/hosts/%2e%2e/hosts",
        "/v1\\hosts",
        "/v1/hosts/..%2f..%2fetc%2fpasswd",
        "/../../etc/passwd",
        "/v1/hosts%00",
        "/v1/hosts?/healthz",
        "/healthz/../v1/hosts",
        "/readyz%2f..%2fv1/hosts",
        "/admin.key",
    ]
    .map(str::to_owned)
    .into();
    paths.push(format!("/v1/hosts/register/../{id}"));
    paths.push(format!("/v1/hosts/{id}%2ftoken"));
    paths
}

/// Clients that stay: they begin, and then do nothing, or do not read.
fn lingering(serving: &Serving) -> Vec<TcpStream> {
    let body = "POST /v1/hosts/register HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n";
    let beginnings: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"P".to_vec(),
        b"POST /v1/hosts/register HTTP/1.1\r\nHost: a\r\nX: ".to_vec(),
        format!("{body}{}", " ".repeat(999_999)).into(),
        format!("{}5\r\n", body.replace("Content-Length: 1000000", "Transfer-Encoding: chunked"))
            .into(),
        "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".repeat(200).into(),
    ];
    let begin = |bytes: &Vec<u8>| {
        let mut stream = connect(serving);
        // For some there is no room in the middle, and they are cut.
        let _ = stream.write_all(bytes);
        stream
    };
    beginnings.iter().cycle().take(beginnings.len() * 20).map(begin).collect()
}

/// What waiting connections may hold (64 MiB), twice for what the allocator keeps, and the
/// server itself.
const CLIENTS_KIB_MAX: u64 = 128 * 1024;

#[test]
fn hostile_clients_keep_nobody_from_beating() {
    let fleet = json!({
        "hosts": (1..=3).map(|n| json!({"id": host(n), "status": "online", "heartbeat_age_s": 0})).collect::<Vec<Value>>(),
        "sandboxes": [{"id": sandbox(1), "host_id": host(1), "status": "running"}],
        "tombstones": [host(9)],
    });
    let home = Home::with(&fleet);
    let serving = home.serve(&[]);
    let mut kept = Beating::new(&serving, &home, 3);
    let mut stay = Vec::new();
    for _ in 0..3 {
        // Whoever waited longest makes room for others, so the beating one is not first.
        kept.beat("before");
        stay.extend(lingering(&serving));
        for (name, bytes, expected) in attacks(&home) {
            assert_eq!(statuses(&serving, &bytes), expected, "{name}");
            kept.beat(name);
            Beating::new(&serving, &home, 3).beat(name);
        }
    }
    for path in odd_paths() {
        for method in ["GET", "POST", "DELETE"] {
            let answer = serving.ask(method, &path, &[], "");
            assert!([400, 401, 404, 405].contains(&answer.status), "{method} {path}: {answer:?}");
            assert!(!answer.body.contains("host-"), "{method} {path}: {answer:?}");
        }
        kept.beat(&path);
    }
    let peak_kib = memory_kib(&serving, "VmHWM:");
    assert!(peak_kib < CLIENTS_KIB_MAX, "{peak_kib} KiB at the peak");

    let hosts = serving.get("/v1/hosts").json();
    assert_eq!(hosts.as_array().unwrap().len(), 3, "nobody was made");
    let beaten = |n: u128| {
        let shown = serving.get(&format!("/v1/hosts/{}", host(n))).json();
        shown["last_heartbeat_at"].as_str().unwrap().to_owned()
    };
    assert!(beaten(1) < beaten(3), "nobody beat in the name of another");
    let capsule = serving.get(&format!("/v1/capsules/{}", sandbox(1))).json();
    assert_eq!(capsule["status"], "running");
    drop(stay);
    home.verify();
    let log = serving.stop();
    assert!(log.iter().all(|line| !line.contains("panicked")), "{log:?}");
}
