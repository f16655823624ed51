//! Owns the proof that what others can make grow has a bound for each of them: a real server,
//! agents that lie and flood, teams that create without end. What is asserted is that growth
//! stops, and that no one else pays for it.
//!
//! Never: a bound of the transport, which is shown where that lives.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use roost::http::{Handler, Request, Response, Server, ServerConfig};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support::server::Serving;
use support::{Home, PATIENCE, eventually, host, sandbox, sim_fleet};

/// Quick looks; a sandbox that should not be there is one after a second.
const FLAGS: [&str; 14] = [
    "--probe-interval",
    "1s",
    "--probe-timeout",
    "1s",
    "--confirm-delay",
    "20ms",
    "--transient-grace",
    "1s",
    "--heartbeat-flush",
    "100ms",
    "--startup-grace",
    "10m",
    "--unreachable-after",
    "10m",
];

/// The id of the lying agent's host.
fn its_host() -> String {
    host(99)
}

/// Events of one kind that a host causes before they are only counted; a few more may follow
/// while a test lasts.
const EVENTS_MAX: usize = 32 + 4;

// ---- agents that lie ----

/// What a lying agent does.
struct Lies {
    /// The listing that follows so many others.
    lists: Box<dyn Fn(usize) -> Value + Send + Sync>,
    listed: AtomicUsize,
    destroys: AtomicUsize,
    refuses_destroys: AtomicBool,
}

impl Handler for Lies {
    fn handle(&self, request: Request) -> Response {
        let answer = |value: Value| Response::json(200, value.to_string().into_bytes());
        match request.path.rsplit('/').next() {
            Some("ListSandboxes") => {
                answer((self.lists)(self.listed.fetch_add(1, Ordering::SeqCst)))
            }
            Some("DestroySandbox") => {
                self.destroys.fetch_add(1, Ordering::SeqCst);
                if !self.refuses_destroys.load(Ordering::SeqCst) {
                    return answer(json!({}));
                }
                let body = json!({"code": "unavailable", "message": "not now"});
                Response::json(503, body.to_string().into_bytes())
            }
            _ => Response::json(404, b"{}".to_vec()),
        }
    }
}

/// A lying agent on a port of its own; it ends when dropped.
struct Liar {
    lies: Arc<Lies>,
    address: SocketAddr,
    server: Option<Server>,
}

impl Liar {
    fn start(lists: impl Fn(usize) -> Value + Send + Sync + 'static) -> Liar {
        let lies = Arc::new(Lies {
            lists: Box::new(lists),
            listed: AtomicUsize::new(0),
            destroys: AtomicUsize::new(0),
            refuses_destroys: AtomicBool::new(false),
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::start(vec![listener], lies.clone(), ServerConfig::default()).unwrap();
        Liar { lies, address, server: Some(server) }
    }

    fn listed(&self) -> usize {
        self.lies.listed.load(Ordering::SeqCst)
    }

    fn destroys(&self) -> usize {
        self.lies.destroys.load(Ordering::SeqCst)
    }

    /// Waits until it was asked so often more.
    fn wait(&self, more: usize) {
        let until = self.listed() + more;
        eventually("more observations", || (self.listed() >= until).then_some(()));
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown(Duration::from_secs(5));
        }
    }
}

fn entry(n: u128, status: &str) -> Value {
    json!({"sandboxId": sandbox(n), "status": status, "createdAtUnix": "1700000000"})
}

/// Sandboxes that no one made, other ones after every fifth listing.
fn made_up(each: usize) -> impl Fn(usize) -> Value + Send + Sync {
    move |listing| {
        let first = 1_000_000 * (1 + listing as u128 / 5);
        let ids = (first..).take(each);
        json!({"sandboxes": ids.map(|n| entry(n, "running")).collect::<Vec<_>>()})
    }
}

/// A liar and a simulated, honest neighbour with one sandbox that no one made either.
struct World {
    home: Home,
    serving: Serving,
    liar: Liar,
    neighbour: String,
    _fleet: roost::sim::SimFleet,
}

impl World {
    fn new(liar: Liar, rows: &[Value], flags: &[&str]) -> World {
        let fleet = sim_fleet(1, 1);
        let neighbour = fleet.hosts()[0].id().to_string();
        let at = fleet.hosts()[0].address().to_string();
        let row = |id: &str, address: &str| json!({"id": id, "status": "online", "heartbeat_age_s": 1, "address": address});
        let hosts = [row(&its_host(), &liar.address.to_string()), row(&neighbour, &at)];
        let home = Home::with(&json!({"hosts": hosts, "sandboxes": rows}));
        let serving = home.serve(&[&FLAGS[..], flags].concat());
        World { home, serving, liar, neighbour, _fleet: fleet }
    }

    /// Events of a kind about a host.
    fn events(&self, host: &str, kind: &str) -> Vec<Value> {
        let all = self.home.json(&["events", "--after", "0", "--limit", "1000", "--host", host]);
        let of_kind = |event: &&Value| event["kind"] == kind;
        all.as_array().unwrap().iter().filter(of_kind).cloned().collect()
    }

    fn strangers(&self) -> usize {
        self.serving.get("/v1/strangers").json().as_array().unwrap().len()
    }

    fn open_destroys(&self) -> u64 {
        let text = self.serving.get("/metrics").body;
        let name = r#"roost_operations_unfinished{kind="destroy"} "#;
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name}in {text}")).parse().unwrap()
    }
}

/// Lines of a log with these words.
fn lines(log: &[String], words: &str) -> usize {
    log.iter().filter(|line| line.contains(words)).count()
}

/// Fails when there are more lines with these words than one a second since `began`.
fn at_most_one_a_second(log: &[String], words: &str, began: Instant) {
    let most = began.elapsed().as_secs() as usize + 2;
    let found = lines(log, words);
    assert!(found <= most, "{found} lines with {words:?} in {most} s");
}

#[test]
fn a_host_that_lists_other_sandboxes_each_time_fills_nothing() {
    let began = Instant::now();
    let world = World::new(Liar::start(made_up(200)), &[], &[]);
    let zombies = |host: &str| world.events(host, "sandbox.zombie");
    eventually("zombies", || (zombies(&its_host()).len() >= 32).then_some(()));
    world.liar.wait(12);
    let seen = zombies(&its_host());
    assert!(seen.len() <= EVENTS_MAX, "{} events", seen.len());
    assert!(world.strangers() <= 1001, "{} strangers", world.strangers());
    let theirs = eventually("the neighbour's", || zombies(&world.neighbour).pop());
    assert!(theirs["sandbox_id"].is_string(), "{theirs}");
    assert_eq!(world.serving.get("/readyz").status, 200);
    let log = world.serving.stop();
    assert!(lines(&log, "which should not be there") > 0);
    at_most_one_a_second(&log, &format!("{} has cl-", its_host()), began);
    assert!(log.iter().any(|line| line.contains(" more")), "what is left out is counted: {log:?}");
    world.home.verify();
}

#[test]
fn zombies_that_are_to_be_destroyed_wait_for_their_turn() {
    let liar = Liar::start(
        |_| json!({"sandboxes": (900_000..900_300).map(|n| entry(n, "running")).collect::<Vec<_>>()}),
    );
    liar.lies.refuses_destroys.store(true, Ordering::SeqCst);
    let world = World::new(liar, &[], &["--zombies", "destroy"]);
    eventually("destroys", || (world.open_destroys() >= 64).then_some(()));
    world.liar.wait(3);
    assert!(world.open_destroys() <= 64 + 1, "{} open", world.open_destroys());
    world.liar.lies.refuses_destroys.store(false, Ordering::SeqCst);
    let refused = world.liar.destroys();
    eventually("all others, too", || (world.liar.destroys() >= refused + 300).then_some(()));
    world.serving.stop();
    world.home.verify();
}

// ---- reports ----

/// Reports over one connection; gives the status of each answer.
fn report(serving: &Serving, token: &str, body: &Value, times: usize) -> Vec<u16> {
    let mut stream = TcpStream::connect(serving.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let body = body.to_string();
    let request = format!(
        "POST /v1/hosts/sandbox-events HTTP/1.1\r\nHost: a\r\nX-Host-Token: {token}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let one = |_| {
        stream.write_all(request.as_bytes()).unwrap();
        let (mut answer, mut bytes) = (Vec::new(), [0; 4096]);
        loop {
            let count = stream.read(&mut bytes).unwrap();
            answer.extend_from_slice(&bytes[..count]);
            let text = String::from_utf8_lossy(&answer);
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if length.is_none_or(|length| length.parse() == Ok(body.len())) {
                return head["HTTP/1.1 ".len()..][..3].parse().unwrap();
            }
        }
    };
    (0..times).map(one).collect()
}

#[test]
fn reports_of_nonsense_are_short_in_the_log_and_have_a_rate() {
    let rows = [json!({"id": sandbox(100_000), "host_id": its_host(), "status": "running"})];
    let liar = Liar::start(|_| json!({"sandboxes": [entry(100_000, "running")]}));
    let world = World::new(liar, &rows, &[]);
    let (serving, token) = (&world.serving, world.home.token(&its_host()));
    let began = Instant::now();
    let of =
        |event: &str, id: &str| json!({"event": event, "sandbox_id": id, "host_id": its_host()});
    let nonsense = of(&"\u{1}\u{202e}".repeat(250), &"\u{9b}".repeat(500));
    let not_ours = of("sandbox.stopped", &sandbox(77));
    assert_eq!(report(serving, &token, &nonsense, 400), vec![204; 400]);
    assert_eq!(report(serving, &token, &not_ours, 100), vec![204; 100]);

    // Far beyond what an honest host sends.
    eventually("a refusal", || {
        report(serving, &token, &nonsense, 2000).contains(&429).then_some(())
    });
    let refused = serving.ask(
        "POST",
        "/v1/hosts/sandbox-events",
        &[("X-Host-Token", &token)],
        &nonsense.to_string(),
    );
    assert_eq!(refused.refusal(), (429, "too_many_requests".to_owned()));
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    // A neighbour pays for nothing, and the flood's own host beats.
    let other = json!({"event": "sandbox.stopped", "sandbox_id": sandbox(500_000), "host_id": world.neighbour});
    let theirs = world.home.token(&world.neighbour);
    assert_eq!(report(serving, &theirs, &other, 3), [204; 3]);
    assert_eq!(serving.beat(&its_host(), &token).status, 204);

    let log = world.serving.stop();
    at_most_one_a_second(&log, "means nothing here", began);
    at_most_one_a_second(&log, "not its own", began);
    let longest = log.iter().map(String::len).max().unwrap();
    assert!(longest < 2000, "a line of {longest} bytes");
    let controls = |line: &&String| line.chars().any(|c| c.is_control() || c == '\u{202e}');
    assert_eq!(log.iter().find(controls), None);
}

// ---- metadata ----

#[test]
fn metadata_is_bounded_for_each_sandbox_and_host() {
    const ROWS: u128 = 1500;
    const ROWS_FROM: u128 = 100_000;
    let metadata = json!({"a": "x".repeat(3000), "b": "y".repeat(40_000), "kernel_version": "6.1"});
    let listing = move |listing: usize| {
        let with = |n: u128| {
            let mut entry = entry(n, "running");
            entry["metadata"] = metadata.clone();
            entry
        };
        // All of them at once would be more than one answer may be.
        let first = ROWS_FROM + ROWS / 10 * (listing as u128 % 10);
        let big = first..first + ROWS / 10;
        let all = (ROWS_FROM..ROWS_FROM + ROWS)
            .map(|n| if big.contains(&n) { with(n) } else { entry(n, "running") });
        json!({"sandboxes": all.collect::<Vec<_>>()})
    };
    let row = |n: u128| json!({"id": sandbox(n), "host_id": its_host(), "status": "missing"});
    let rows: Vec<Value> = (ROWS_FROM..ROWS_FROM + ROWS).map(row).collect();
    let world = World::new(Liar::start(listing), &rows, &[]);
    let list = || world.serving.get("/v1/capsules").json();
    let all = |list: Value| list.as_array().unwrap().clone();
    let running = |c: &&Value| c["status"] == "running";
    let capsules = eventually("all of them", || {
        Some(all(list())).filter(|list| list.iter().filter(running).count() >= 1000)
    });
    let kept: Vec<String> = capsules
        .iter()
        .filter(|c| c["metadata"].is_object())
        .map(|c| c["metadata"].to_string())
        .collect();
    assert!(kept.len() >= 100, "{} have metadata", kept.len());
    let longest = kept.iter().map(String::len).max().unwrap();
    assert!((3000..=4096).contains(&longest), "{longest} bytes");
    assert!(kept.iter().all(|kept| kept.contains(r#""kernel_version":"6.1""#)));
    assert!(kept.iter().map(String::len).sum::<usize>() < 5 * 1024 * 1024);
    world.serving.logged(&["of metadata of a sandbox", &its_host()]);
    world.serving.stop();
    world.home.verify();
}

// ---- teams ----

fn key_of(serving: &Serving, team: u128) -> String {
    let team = roost::model::id::TeamId::from_u128(team).to_string();
    let made = serving.post("/v1/api-keys", &json!({"name": "t", "team_id": team}));
    assert_eq!(made.status, 201, "{made:?}");
    made.json()["key"].as_str().unwrap().to_owned()
}

/// Asks with this key, and waits until what was begun is over.
fn change(serving: &Serving, key: &str, method: &str, path: &str) -> support::client::Answer {
    serving.ask(method, path, &[("X-API-Key", key), ("Prefer", "wait=50")], "{}")
}

#[test]
fn a_team_has_as_many_capsules_as_it_may_and_no_more() {
    let home = Home::new();
    let flags = ["--team-sandboxes-max", "3"];
    let serving = home.serve(&flags);
    let fleet = sim_fleet(1, 0);
    serving.register(&fleet.hosts()[0].address().to_string());
    let (one, other) = (key_of(&serving, 7), key_of(&serving, 8));
    let create = |serving: &Serving, key: &str| change(serving, key, "POST", "/v1/capsules");
    let first = eventually("a capsule", || {
        let made = create(&serving, &one);
        (made.status == 201).then(|| made.json()["id"].as_str().unwrap().to_owned())
    });
    assert_eq!(create(&serving, &one).status, 201);
    assert_eq!(create(&serving, &one).status, 201);
    let refused = create(&serving, &one);
    assert_eq!(refused.refusal(), (429, "quota_exceeded".to_owned()));
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    assert!(refused.message().contains("team_sandboxes_max"), "{refused:?}");

    // No one else pays for it, and the operator is exempt, for the team too.
    assert_eq!(create(&serving, &other).status, 201);
    let team = roost::model::id::TeamId::from_u128(7).to_string();
    assert_eq!(serving.post("/v1/capsules", &json!({"team_id": team})).status, 202);
    serving.stop();

    // A restart forgets no row.
    let serving = home.serve(&flags);
    eventually("its host", || {
        let hosts = serving.get("/v1/hosts").json();
        (hosts[0]["last_probe"]["outcome"] == "observation").then_some(())
    });
    assert_eq!(create(&serving, &one).status, 429);
    let path = format!("/v1/capsules/{first}");
    assert_eq!(change(&serving, &one, "DELETE", &path).status, 204);
    assert_eq!(create(&serving, &one).status, 429, "the operator's counts as well");
    serving.stop();
    let serving = home.serve(&["--team-sandboxes-max", "4"]);
    eventually("one in the place of the first", || {
        (create(&serving, &one).status == 201).then_some(())
    });
    assert_eq!(create(&serving, &one).status, 429);
    serving.stop();
    home.verify();
}

#[test]
fn a_team_that_creates_and_destroys_in_a_loop_has_a_rate() {
    let home = Home::new();
    let serving = home.serve(&["--team-creates-per-minute", "10"]);
    let fleet = sim_fleet(1, 0);
    serving.register(&fleet.hosts()[0].address().to_string());
    let (one, other) = (key_of(&serving, 7), key_of(&serving, 8));
    let began = Instant::now();
    let (mut made, mut refused) = (Vec::new(), None);
    eventually("a refusal", || {
        let answer = change(&serving, &one, "POST", "/v1/capsules");
        match answer.status {
            201 => made.push(answer.json()["id"].as_str().unwrap().to_owned()),
            429 => refused = Some(answer),
            // Not probed yet.
            _ => assert!(made.is_empty(), "{answer:?}"),
        }
        refused.clone()
    });
    let refused = refused.unwrap();
    let most = 10 + 1 + began.elapsed().as_secs() as usize / 6;
    assert!((10..=most).contains(&made.len()), "{} in {:?}", made.len(), began.elapsed());
    assert_eq!(refused.refusal(), (429, "too_many_requests".to_owned()));
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=6).contains(&wait), "{wait}");
    let path = |n: usize, what: &str| format!("/v1/capsules/{}{what}", made[n]);
    // What frees is never refused; another team and the operator go on.
    assert_eq!(change(&serving, &one, "DELETE", &path(0, "")).status, 204);
    assert_eq!(change(&serving, &other, "POST", "/v1/capsules").status, 201);
    assert_eq!(change(&serving, serving.key(), "POST", "/v1/capsules").status, 201);
    // Pauses and resumes fill the history as well as creates do.
    let turns = (0..40).map(|n| {
        let what = if n % 2 == 0 { "/pause" } else { "/resume" };
        change(&serving, &one, "POST", &path(1, what)).status
    });
    assert!(turns.take(40).any(|status| status == 429));
    serving.stop();
    home.verify();
}
