//! Owns scrapes of a real server: the format, the figures against what really happened, and
//! what is left when the database fails.
//!
//! Never: trusts a figure that nothing else says too.

use crate::promtool;
use crate::support::server::Serving;
use crate::support::{Home, eventually, host, sandbox};
use roost::api::metrics::families::{ALL, Family, Type};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// One scrape, read as strictly as Prometheus reads it.
#[derive(Debug, Default)]
pub(crate) struct Scrape {
    /// Names with their types.
    types: BTreeMap<String, String>,
    /// By name and labels, as they are written.
    pub(crate) samples: BTreeMap<String, f64>,
}

impl Scrape {
    pub(crate) fn of(serving: &Serving) -> Scrape {
        let answer = serving.ask("GET", "/metrics", &[], "");
        assert_eq!(answer.status, 200, "{answer:?}");
        Scrape::read(&answer.body)
    }

    fn read(text: &str) -> Scrape {
        let mut scrape = Scrape::default();
        let mut current = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                assert!(!help.is_empty(), "{line}");
                current = name.to_owned();
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert_eq!(name, current, "the type follows the help");
                let before = scrape.types.insert(name.to_owned(), kind.to_owned());
                assert_eq!(before, None, "{name} is there twice");
            } else {
                let (key, value) = line.rsplit_once(' ').unwrap();
                let family = family_of(key);
                assert_eq!(family, current, "{line} stands with its family");
                let value: f64 = value.parse().unwrap();
                assert!(value.is_finite() && value >= 0.0, "{line}");
                let before = scrape.samples.insert(key.to_owned(), value);
                assert_eq!(before, None, "{key} is there twice");
            }
        }
        scrape
    }

    pub(crate) fn get(&self, key: &str) -> f64 {
        *self.samples.get(key).unwrap_or_else(|| panic!("no {key} in {self:#?}"))
    }

    fn has(&self, name: &str) -> bool {
        self.samples.keys().any(|key| family_of(key) == name)
    }

    /// Sandboxes by status, those that there are.
    fn sandboxes(&self) -> BTreeMap<String, u64> {
        let prefix = "roost_sandboxes{status=\"";
        let of = |(key, count): (&String, &f64)| {
            let status = key.strip_prefix(prefix)?.strip_suffix("\"}")?;
            (*count > 0.0).then(|| (status.to_owned(), *count as u64))
        };
        self.samples.iter().filter_map(of).collect()
    }
}

/// What a sample belongs to: its name, less what histograms add.
fn family_of(key: &str) -> &str {
    let name = key.split('{').next().unwrap();
    let histograms = ALL.iter().filter(|family| family.kind == Type::Histogram);
    let mut stems = histograms.map(|family| family.name);
    let parts = ["_bucket", "_sum", "_count"];
    let stem = stems.find(|stem| parts.iter().any(|part| name.strip_suffix(part) == Some(*stem)));
    stem.unwrap_or(name)
}

/// Simulated agents that joined; ended when dropped.
pub(crate) struct Joined(Child);

impl Joined {
    pub(crate) fn start(home: &Home, serving: &Serving, tokens: &[String]) -> Joined {
        let url = format!("http://{}", serving.address);
        let tokens = tokens.join(",");
        let args = ["agent-sim", "--join", &url, "--token", &tokens, "--base-port", "0"];
        let mut command = home.command(&args);
        command.args(["--heartbeat-ms", "500", "--sandboxes", "0"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Joined(command.spawn().unwrap())
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Adds a host; its id and its registration token.
pub(crate) fn add_host(serving: &Serving) -> (String, String) {
    let added = serving.post("/v1/hosts", &json!({})).json();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&added["host"]["id"]), text(&added["registration_token"]))
}

pub(crate) fn until(serving: &Serving, what: &str, is_so: impl Fn(&Scrape) -> bool) -> Scrape {
    eventually(what, || Some(Scrape::of(serving)).filter(&is_so))
}

pub(crate) fn create(serving: &Serving) -> String {
    let made = eventually("a host that takes sandboxes", || {
        Some(serving.post("/v1/capsules", &json!({}))).filter(|made| made.status == 202)
    });
    let id = made.json()["id"].as_str().unwrap().to_owned();
    until_status(serving, &id, "running");
    id
}

fn until_status(serving: &Serving, id: &str, status: &str) {
    eventually(&format!("{id} {status}"), || {
        let found = serving.get(&format!("/v1/capsules/{id}")).json();
        (found["status"] == status).then_some(())
    });
}

fn wish(serving: &Serving, id: &str, verb: &str, status: &str) {
    let key = [("X-API-Key", serving.key())];
    let answer = match verb {
        "destroy" => serving.ask("DELETE", &format!("/v1/capsules/{id}"), &key, ""),
        verb => serving.ask("POST", &format!("/v1/capsules/{id}/{verb}"), &key, ""),
    };
    assert_eq!(answer.status, 202, "{answer:?}");
    until_status(serving, id, status);
}

/// What the database says by itself.
fn stored(home: &Home) -> BTreeMap<String, u64> {
    let status = home.json(&["status"]);
    let counts = status["sandboxes"].as_object().unwrap().iter();
    counts.map(|(status, count)| (status.clone(), count.as_u64().unwrap())).collect()
}

/// The figures of a server at rest are what the database says.
fn agrees(home: &Home, serving: &Serving) {
    eventually("figures that agree", || {
        let scrape = Scrape::of(serving);
        (scrape.sandboxes() == stored(home)).then_some(())
    });
}

#[test]
fn after_real_traffic_every_metric_is_there_and_none_beside() {
    let home = Home::new();
    let serving = home.serve(&["--probe-interval", "1s", "--heartbeat-flush", "200ms"]);
    let first = Scrape::of(&serving);
    let hosts: Vec<_> = (0..2).map(|_| add_host(&serving)).collect();
    let tokens: Vec<String> = hosts.iter().map(|(_, token)| token.clone()).collect();
    let _agents = Joined::start(&home, &serving, &tokens);
    let id = create(&serving);
    wish(&serving, &id, "pause", "paused");
    wish(&serving, &id, "resume", "running");
    wish(&serving, &id, "destroy", "stopped");
    create(&serving);
    // Nobody listens there, and it beats.
    let silent = serving.register("127.0.0.1:1");
    let (silent, token) =
        (silent["host"]["id"].as_str().unwrap(), silent["token"].as_str().unwrap());
    for (token, status) in [
        (token, 204),
        ("nonsense", 401),
        (&home.expired_token(silent), 401),
        (&home.token(&host(9)), 503),
    ] {
        assert_eq!(serving.beat(silent, token).status, status);
    }
    let busy = until(&serving, "a flush, listings and a refusal", |scrape| {
        scrape.get("roost_heartbeat_flushes_total{result=\"succeeded\"}") > 0.0
            && scrape.get("roost_probes_total{outcome=\"listed\"}") > 1.0
            && scrape.get("roost_probes_total{outcome=\"unreachable\"}") > 2.0
            && scrape.get("roost_hosts_degraded") == 1.0
    });
    for (key, value) in [
        ("roost_ready", 1.0),
        ("roost_hosts{status=\"online\"}", 3.0),
        ("roost_operations_total{kind=\"create\",result=\"succeeded\"}", 2.0),
        ("roost_operations_total{kind=\"pause\",result=\"succeeded\"}", 1.0),
        ("roost_operations_total{kind=\"resume\",result=\"succeeded\"}", 1.0),
        ("roost_operations_total{kind=\"destroy\",result=\"succeeded\"}", 1.0),
        ("roost_operations_total{kind=\"create\",result=\"failed\"}", 0.0),
        ("roost_operations_unfinished{kind=\"create\"}", 0.0),
        ("roost_sandbox_transitions_total{to=\"starting\"}", 2.0),
        ("roost_sandbox_transitions_total{to=\"running\"}", 3.0),
        ("roost_sandbox_transitions_total{to=\"paused\"}", 1.0),
        ("roost_heartbeats_total{answer=\"401\"}", 2.0),
        ("roost_heartbeats_total{answer=\"503\"}", 1.0),
        ("roost_probe_interval_seconds", 1.0),
    ] {
        assert_eq!(busy.get(key), value, "{key}");
    }
    assert!(busy.get("roost_heartbeats_total{answer=\"204\"}") >= 3.0);
    assert!(busy.get("roost_commits_total") >= busy.get("roost_commit_duration_seconds_count"));
    assert!(busy.get("roost_http_requests_total{class=\"4xx\"}") >= 2.0);
    let pages = std::fs::read_to_string(format!("/proc/{}/statm", serving.pid())).unwrap();
    let resident = pages.split(' ').nth(1).unwrap().parse::<f64>().unwrap() * 4096.0;
    assert!(busy.get("process_resident_memory_bytes") > resident / 4.0);
    agrees(&home, &serving);

    let text = serving.get("/metrics").body;
    promtool(&["check", "metrics"], &text);
    check_names(&Scrape::read(&text), &["roost_api_certificate_expiry_timestamp_seconds"]);
    check_counters(&first, &busy);
    check_counters(&busy, &Scrape::of(&serving));
    serving.stop();
}

/// Every documented metric has samples, with every value of its labels, and no other has.
fn check_names(scrape: &Scrape, without: &[&str]) {
    let documented: BTreeSet<&str> = ALL.iter().map(|family| family.name).collect();
    let found: BTreeSet<&str> = scrape.types.keys().map(String::as_str).collect();
    assert_eq!(found, documented);
    for family in ALL.iter().filter(|family| !without.contains(&family.name)) {
        assert_eq!(scrape.types[family.name], family.kind.as_str());
        assert!(scrape.has(family.name), "no sample of {}", family.name);
        check_labels(scrape, family);
    }
    let wanted = |name: &str| documented.contains(name);
    assert!(scrape.samples.keys().all(|key| wanted(family_of(key))));
}

fn check_labels(scrape: &Scrape, family: &Family) {
    let closed = family.labels.iter().filter(|label| !label.words.is_empty());
    for (label, word) in closed.flat_map(|l| l.words.iter().map(move |word| (l.name, word))) {
        let wanted = format!("{label}=\"{word}\"");
        let mut keys = scrape.samples.keys().filter(|key| family_of(key) == family.name);
        assert!(keys.any(|key| key.contains(&wanted)), "{} has no {wanted}", family.name);
    }
}

fn check_counters(before: &Scrape, after: &Scrape) {
    for (key, was) in &before.samples {
        let family = ALL.iter().find(|family| family.name == family_of(key)).unwrap();
        match family.kind {
            Type::Counter | Type::Histogram => {
                assert!(after.get(key) >= *was, "{key} went from {was} to {}", after.get(key));
            }
            Type::Gauge => {}
        }
    }
}

/// Made, moved, deleted with their host, given up with age: kept counts are those of the rows.
#[test]
fn kept_counts_are_those_of_the_rows() {
    let home = Home::new();
    let rows = |host_n: u128, status: &str, age_s: u64, ids: std::ops::Range<u128>| {
        let row = |n| {
            json!({"id": sandbox(n), "host_id": host(host_n), "status": status,
                             "status_age_s": age_s})
        };
        ids.map(row).collect::<Vec<Value>>()
    };
    let offline = |n| json!({"id": host(n), "status": "offline", "heartbeat_age_s": 5});
    let sandboxes = [
        rows(1, "running", 60, 0..5),
        rows(1, "stopped", 60, 5..7),
        rows(1, "error", 60, 7..8),
        rows(2, "paused", 60, 8..11),
        rows(2, "stopped", 7200, 11..18),
        rows(2, "error", 7200, 18..20),
    ];
    home.load(&json!({"hosts": [offline(1), offline(2)], "sandboxes": sandboxes.concat()}));
    let serving = home.serve(&["--probe-interval", "1s"]);
    agrees(&home, &serving);
    let counted = Scrape::of(&serving).sandboxes();
    assert_eq!(counted["stopped"], 9);

    let (key, path) = ([("X-API-Key", serving.key())], format!("/v1/hosts/{}", host(1)));
    assert_eq!(serving.ask("DELETE", &format!("{path}?force=true"), &key, "").status, 204);
    agrees(&home, &serving);
    assert_eq!(Scrape::of(&serving).sandboxes().get("running"), None);

    home.write("roost.toml", "stopped_keep_age = \"1h\"\n");
    serving.signal(rustix::process::Signal::HUP);
    until(&serving, "what is over is given up", |scrape| {
        !scrape.sandboxes().contains_key("stopped")
    });
    agrees(&home, &serving);
    let left = BTreeMap::from([("paused".to_owned(), 3)]);
    assert_eq!(Scrape::of(&serving).sandboxes(), left);
    serving.stop();
}

/// A scrape reads no sandbox, nor does the first.
#[test]
fn a_scrape_costs_the_same_however_many_sandboxes_there_are() {
    let home = Home::new();
    let row = |n| json!({"id": sandbox(n), "host_id": host(1), "status": "stopped"});
    let sandboxes: Vec<Value> = (0..20_000).map(row).collect();
    home.load(&json!({"hosts": [{"id": host(1), "status": "offline", "heartbeat_age_s": 5}],
                      "sandboxes": sandboxes}));
    let serving = home.serve(&[]);
    let read = || -> u64 {
        let io = std::fs::read_to_string(format!("/proc/{}/io", serving.pid())).unwrap();
        io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
    };
    let first = read();
    assert_eq!(Scrape::of(&serving).get("roost_sandboxes{status=\"stopped\"}"), 20_000.0);
    let second = read();
    assert!(second - first < 256 * 1024, "counted: {}", second - first);
    serving.stop();
}

#[test]
fn while_somebody_keeps_the_database_locked_there_are_figures() {
    let home = Home::new();
    let serving = home.serve(&[]);
    let other = rusqlite::Connection::open(home.path("roost.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let began = Instant::now();
    let scrape = Scrape::of(&serving);
    assert!(began.elapsed() < Duration::from_secs(8), "a scrape waits for {:?}", began.elapsed());
    assert_eq!(scrape.get("roost_hosts{status=\"online\"}"), 0.0, "readers go on");
    assert!(scrape.has("roost_sandboxes"), "the writer is not asked");
    assert!(scrape.has("roost_commits_total") && scrape.has("process_threads"));
    other.execute_batch("ROLLBACK").unwrap();
    serving.stop();
}

#[test]
fn a_damaged_database_still_has_figures_and_they_say_so() {
    let home = Home::new();
    home.load(&json!({"hosts": [{"id": host(1), "status": "offline", "heartbeat_age_s": 5}]}));
    let serving = home.serve(&[]);
    assert_eq!(Scrape::of(&serving).get("roost_ready"), 1.0);
    let db = home.path("roost.db");
    let other = rusqlite::Connection::open(&db).unwrap();
    eventually("the log is folded in", || {
        let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
        let busy: bool = other.query_row(sql, [], |row| row.get(0)).unwrap();
        (!busy).then_some(())
    });
    let sql = "SELECT rootpage FROM sqlite_schema WHERE name = 'hosts'";
    let page: u32 = other.query_row(sql, [], |row| row.get(0)).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&db).unwrap();
    file.write_all_at(&[0xa5; 4096], u64::from(page - 1) * 4096).unwrap();
    other.execute_batch("UPDATE state SET boot_id = boot_id").unwrap();
    let scrape = until(&serving, "damage is told", |scrape| {
        scrape.get("roost_database_trouble{kind=\"damaged\"}") == 1.0
    });
    assert_eq!(scrape.get("roost_ready"), 0.0);
    assert!(!scrape.has("roost_hosts") && scrape.has("roost_heartbeats_total"));
    assert_eq!(serving.get("/readyz").status, 503);
    serving.stop();
}

/// With HTTPS there is one metric more: until when its certificate counts, and again after
/// the file was renewed.
#[test]
fn the_certificate_of_the_api_says_until_when_it_counts() {
    let home = Home::new();
    let write = |until_year: i32| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["tls.example".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(until_year, 1, 1);
        let until = params.not_after.unix_timestamp();
        let pem = |label: &str, der: &[u8]| {
            use base64::Engine;
            let digits = base64::engine::general_purpose::STANDARD.encode(der);
            format!("-----BEGIN {label}-----\n{digits}\n-----END {label}-----\n")
        };
        let certificate = params.self_signed(&key).unwrap();
        home.write("tls.key", &pem("PRIVATE KEY", key.serialized_der()));
        home.write("tls.pem", &pem("CERTIFICATE", certificate.der()));
        until
    };
    let mut until = write(2040);
    let files = [home.path("tls.pem"), home.path("tls.key")];
    let text = format!("tls_cert = {:?}\ntls_key = {:?}\n", files[0], files[1]);
    home.write("roost.toml", &text);
    let serving = Serving::start(home.command(&["serve", "--listen", "127.0.0.1:0"]));
    for renewed in [2041, 2042] {
        let wanted = format!("roost_api_certificate_expiry_timestamp_seconds {until}");
        eventually(&format!("the line {wanted}"), || {
            let text = secretly(serving.address, &files[0])?;
            text.lines().any(|line| line == wanted).then_some(())
        });
        until = write(renewed);
        serving.signal(rustix::process::Signal::HUP);
    }
    serving.stop();
}

/// What `/metrics` answers over TLS; `None` while it does not.
fn secretly(address: std::net::SocketAddr, trusted: &std::path::Path) -> Option<String> {
    use std::io::{Read, Write};
    let config = roost::http::trust_in(trusted).unwrap();
    let name = "tls.example".to_owned().try_into().unwrap();
    let connection = rustls::ClientConnection::new(config, name).unwrap();
    let stream = std::net::TcpStream::connect(address).ok()?;
    let mut stream = rustls::StreamOwned::new(connection, stream);
    let request = "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.starts_with("HTTP/1.1 200").then_some(answer)
}
