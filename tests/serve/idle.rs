//! Owns what a server writes while nothing happens but heartbeats.
//!
//! Never: measures processor or memory (`benches/further` does).

use crate::support::server::Serving;
use crate::support::{Home, eventually, host};
use serde_json::{Value, json};

const HOSTS: u128 = 10;

/// Flushes that are counted.
const FLUSHES: u32 = 20;

/// Bytes a day on a small machine with an SD card.
const A_DAY_MAX: u64 = 30_000_000;

const PAGE: u64 = 4096;

/// Bytes that the process has written to files; sockets are not among them.
fn written(serving: &Serving) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{}/io", serving.pid())).unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: "));
    line.unwrap().parse().unwrap()
}

#[test]
fn heartbeats_of_a_small_fleet_write_little_in_a_day() {
    let online = |n| json!({"id": host(n), "status": "online", "heartbeat_age_s": 1});
    let boxes = |n| json!({"id": crate::support::sandbox(n), "host_id": host(n % HOSTS + 1), "status": "running"});
    let home = Home::with(&json!({
        "hosts": (1..=HOSTS).map(online).collect::<Vec<_>>(),
        "sandboxes": (1..=50).map(boxes).collect::<Vec<_>>(),
    }));
    let config: Value =
        serde_json::from_str(&home.roost(&["config", "--format", "json"]).ok()).unwrap();
    let every = config["settings"]["heartbeat_flush"]["value"].as_str().unwrap();
    let every = roost::config::parse_span(every).unwrap().as_millis() as u64;
    let serving = home.serve(&["--heartbeat-flush", "100ms", "--probe-interval", "5m"]);
    let tokens: Vec<String> = (1..=HOSTS).map(|n| home.token(&host(n))).collect();
    // Every flush has all hosts to write, as when heartbeats are spread over their interval.
    let flushes = |count: u32| {
        for _ in 0..count {
            for (n, token) in (1..=HOSTS).zip(&tokens) {
                assert_eq!(serving.beat(&host(n), token).status, 204);
            }
            let commits = serving.metric("roost_commits_total");
            eventually("a flush", || {
                (serving.metric("roost_commits_total") > commits).then_some(())
            });
        }
    };
    flushes(3);
    let (before, commits) = (written(&serving), serving.metric("roost_commits_total"));
    flushes(FLUSHES);
    let commits = serving.metric("roost_commits_total") - commits;
    let bytes = (written(&serving) - before) / commits;
    // What is appended begins and ends within a page, pages are written whole, and three of the
    // log's index change with it.
    let a_day = (bytes + 4 * PAGE) * 86_400_000 / every;
    assert!(commits >= u64::from(FLUSHES) && bytes > 0, "{commits} {bytes}");
    assert!(a_day <= A_DAY_MAX, "{bytes} bytes a flush, {a_day} a day");
}
