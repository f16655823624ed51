//! Owns what agents report by themselves, what operators want of hosts, and the stream
//! that shows both, as clients meet them.
//!
//! Never: what a probe decides, which `monitor` shows.

use crate::support::agents::{Agents, Says};
use crate::support::server::Serving;
use crate::support::{Home, PATIENCE, eventually, host, sandbox};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

/// One host with these sandboxes, and an agent that lists those that are running.
fn world(statuses: &[&str]) -> (Home, Agents) {
    let rows = statuses
        .iter()
        .enumerate()
        .map(|(n, status)| json!({"id": sandbox(n as u128), "host_id": host(1), "status": status}));
    let running = statuses.iter().enumerate().filter(|(_, status)| **status == "running");
    let listed: Vec<String> = running.map(|(n, _)| sandbox(n as u128)).collect();
    let listed: Vec<(&str, &str)> = listed.iter().map(|id| (id.as_str(), "running")).collect();
    let agents = Agents::start(vec![Says::lists(&listed)]);
    let hosts = json!([{"id": host(1), "status": "online", "address": agents.address(0),
        "heartbeat_age_s": 5}]);
    let fleet = json!({"hosts": hosts, "sandboxes": rows.collect::<Vec<_>>()});
    (Home::with(&fleet), agents)
}

fn report(home: &Home, serving: &Serving, body: &Value) -> u16 {
    let token = home.token(&host(1));
    let headers = [("X-Host-Token", token.as_str())];
    serving.ask("POST", "/v1/hosts/sandbox-events", &headers, &body.to_string()).status
}

fn event(name: &str, n: u128) -> Value {
    json!({"event": name, "sandbox_id": sandbox(n), "host_id": host(1)})
}

fn status(serving: &Serving, n: u128) -> String {
    let capsule = serving.get(&format!("/v1/capsules/{}", sandbox(n))).json();
    capsule["status"].as_str().unwrap().to_owned()
}

#[test]
fn what_an_agent_reports_is_believed_of_its_own_sandboxes_only() {
    let (home, _agents) = world(&["running", "starting", "paused", "stopped"]);
    let serving = home.serve(&[]);
    assert_eq!(report(&home, &serving, &event("sandbox.stopped", 0)), 204);
    assert_eq!(status(&serving, 0), "stopped");
    assert_eq!(report(&home, &serving, &event("sandbox.failed", 1)), 204);
    assert_eq!(status(&serving, 1), "error");

    assert_eq!(report(&home, &serving, &event("sandbox.started", 3)), 204);
    assert_eq!(status(&serving, 3), "stopped", "over is over");

    assert_eq!(report(&home, &serving, &event("sandbox.dreamed", 2)), 204, "unknown event");
    assert_eq!(report(&home, &serving, &event("sandbox.stopped", 99)), 204, "unknown sandbox");
    let foreign = json!({"event": "sandbox.stopped", "sandbox_id": sandbox(2), "host_id": host(2)});
    assert_eq!(report(&home, &serving, &foreign), 403);
    let nameless = json!({"event": "sandbox.stopped", "host_id": host(1)});
    assert_eq!(report(&home, &serving, &nameless), 400);
    let timeless = json!({"event": "sandbox.stopped", "sandbox_id": sandbox(2),
        "host_id": host(1), "timestamp": "yesterday"});
    assert_eq!(report(&home, &serving, &timeless), 400);
    let body = event("sandbox.stopped", 2).to_string();
    assert_eq!(serving.ask("POST", "/v1/hosts/sandbox-events", &[], &body).status, 401);
    assert_eq!(status(&serving, 2), "paused");
    serving.stop();
    home.verify();
}

/// A report that is refused, whatever it said, will not be made again: what is absent from
/// then on is presumed
/// paused, not gone.
#[test]
fn a_sandbox_is_presumed_paused_when_the_report_of_its_pause_could_not_be_accepted() {
    let (home, agents) = world(&["running"]);
    let flags = ["--probe-interval", "1h", "--confirm-delay", "10ms"];
    let serving = home.serve(&flags);
    steady_contact(&home, &serving);
    let other = rusqlite::Connection::open(home.path("roost.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    for _ in 0..3 {
        assert_eq!(report(&home, &serving, &event("sandbox.resumed", 0)), 503);
    }
    other.execute_batch("ROLLBACK").unwrap();
    agents.say(0, Says::lists(&[]));
    let capsule = eventually("a verdict", || {
        probe(&serving);
        let capsule = serving.get(&format!("/v1/capsules/{}", sandbox(0))).json();
        (capsule["status"] != "running").then_some(capsule)
    });
    assert_eq!(capsule["status_reason"], "presumed_paused", "{capsule}");
    serving.stop();
    home.verify();
}

fn probe(serving: &Serving) {
    let path = format!("/v1/hosts/{}/probe", host(1));
    assert_eq!(serving.post(&path, &json!({})).status, 200);
}

/// Brings about that the host is heard and observed, so that nothing may have been missed.
fn steady_contact(home: &Home, serving: &Serving) {
    assert_eq!(serving.beat(&host(1), &home.token(&host(1))).status, 204);
    eventually("steady contact", || {
        probe(serving);
        (serving.metric("roost_hosts_with_contact_gap") == 0).then_some(())
    });
}

#[test]
fn only_what_was_not_accepted_of_a_genuine_agent_is_a_gap() {
    let (home, _agents) = world(&["running"]);
    let serving = home.serve(&["--probe-interval", "1h"]);
    steady_contact(&home, &serving);
    let gap = || serving.metric("roost_hosts_with_contact_gap");
    let post = |token: Option<&str>, more: &[(&str, &str)], body: &str| {
        let token = token.map(|token| ("X-Host-Token", token));
        let headers: Vec<_> = token.into_iter().chain(more.iter().copied()).collect();
        serving.ask("POST", "/v1/hosts/sandbox-events", &headers, body).status
    };
    let good = home.token(&host(1));
    let body = event("sandbox.auto_paused", 7).to_string();
    let foreign = event("sandbox.auto_paused", 7);
    let foreign = json!({"host_id": host(2), "event": foreign["event"], "sandbox_id": sandbox(7)});
    let forged = crate::support::token::forged(&host(1));
    for (expected, token, body) in [
        (204, Some(good.as_str()), body.as_str()),
        (400, Some(&good), "{"),
        (400, Some(&good), "{}"),
        (403, Some(&good), &foreign.to_string()),
        (401, None, &body),
        (401, Some("nonsense"), &body),
        (401, Some(&forged), &body),
    ] {
        assert_eq!(post(token, &[], body), expected, "{token:?} {body}");
        assert_eq!(gap(), 0, "{token:?} {body}");
    }
    let expired = home.expired_token(&host(1));
    for (expected, token, more) in
        [(401, &expired, &[][..]), (415, &good, &[("Content-Encoding", "gzip")])]
    {
        assert_eq!(post(Some(token), more, &body), expected);
        assert_eq!(gap(), 1, "{expected}");
        steady_contact(&home, &serving);
    }
    serving.stop();
    home.verify();
}

/// A host's clock may show anything: it is compared with none of ours.
#[test]
fn the_time_of_a_report_means_nothing_here() {
    for timestamp in [json!(1), json!(1_900_000_000), json!("2001-02-03T04:05:06Z")] {
        let (home, agents) = world(&["running"]);
        let serving = home.serve(&[]);
        agents.say(0, Says::lists(&[]));
        let mut paused = event("sandbox.auto_paused", 0);
        paused["timestamp"] = timestamp;
        assert_eq!(report(&home, &serving, &paused), 204);
        eventually("it to be paused", || (status(&serving, 0) == "paused").then_some(()));
        serving.stop();
    }
}

/// Whatever ended a sandbox, but a user's request.
#[test]
fn a_report_of_a_pause_brings_back_what_no_user_ended() {
    for (from, reason, comes_back) in [
        ("stopped", "vanished", true),
        ("stopped", "reported", true),
        ("stopped", "snapshot_gone", true),
        ("error", "not_started", true),
        ("error", "operation_failed", true),
        ("stopped", "requested", false),
        ("stopped", "operation_succeeded", false),
        ("stopped", "destroy_finished", false),
    ] {
        let agents = Agents::start(vec![Says::lists(&[])]);
        let home = Home::with(&json!({
            "hosts": [{"id": host(1), "status": "online", "address": agents.address(0),
                "heartbeat_age_s": 5}],
            "sandboxes": [{"id": sandbox(0), "host_id": host(1), "status": from,
                "status_reason": reason}],
        }));
        let serving = home.serve(&["--probe-interval", "1s", "--probe-timeout", "1s"]);
        assert_eq!(report(&home, &serving, &event("sandbox.auto_paused", 0)), 204);
        if comes_back {
            eventually("it to be paused", || (status(&serving, 0) == "paused").then_some(()));
        } else {
            let asked = agents.calls(0);
            eventually("two probes", || (agents.calls(0) >= asked + 2).then_some(()));
            assert_eq!(status(&serving, 0), from, "{reason}");
        }
        serving.stop();
        home.verify();
    }
}

#[test]
fn an_announced_pause_is_looked_at_and_a_listing_outranks_it() {
    let (home, agents) = world(&["running", "running"]);
    let serving = home.serve(&[]);
    // The agent still lists the second: what it said of it is stale.
    agents.say(0, Says::lists(&[(&sandbox(1), "running")]));
    assert_eq!(report(&home, &serving, &event("sandbox.auto_paused", 0)), 204);
    assert_eq!(report(&home, &serving, &event("sandbox.auto_paused", 1)), 204);
    eventually("the first is paused", || (status(&serving, 0) == "paused").then_some(()));
    assert_eq!(status(&serving, 1), "running");
    serving.stop();
    home.verify();
}

#[test]
fn what_an_operator_wants_of_a_host_shows_and_is_undone() {
    let (home, _agents) = world(&["running"]);
    let serving = home.serve(&[]);
    let path = |what: &str| format!("/v1/hosts/{}/{what}", host(1));
    for (what, status) in [
        ("drain", "draining"),
        ("drain", "draining"),
        ("offline", "offline"),
        ("undrain", "online"),
    ] {
        let answer = serving.post(&path(what), &json!({}));
        assert_eq!((answer.status, answer.json()["status"].as_str()), (200, Some(status)));
    }
    assert_eq!(serving.post(&format!("/v1/hosts/{}/drain", host(9)), &json!({})).status, 404);
    assert_eq!(serving.ask("POST", &path("drain"), &[], "").status, 401);
    serving.stop();
    let audit = home.json(&["audit"]);
    let actions: Vec<&str> =
        audit.as_array().unwrap().iter().rev().filter_map(|e| e["action"].as_str()).collect();
    assert_eq!(actions, ["drain", "offline", "undrain"], "a repeat changes nothing");
    home.verify();
}

/// A client of the event stream.
pub(crate) struct Stream(BufReader<TcpStream>);

impl Stream {
    pub(crate) fn open(serving: &Serving, query: &str, last: Option<&str>) -> Stream {
        let mut socket = TcpStream::connect(serving.address()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let last = last.map_or_else(String::new, |id| format!("Last-Event-ID: {id}\r\n"));
        let key = serving.key();
        let head =
            format!("GET /v1/events{query} HTTP/1.1\r\nHost: r\r\nX-API-Key: {key}\r\n{last}\r\n");
        socket.write_all(head.as_bytes()).unwrap();
        Stream(BufReader::new(socket))
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The next event: id, kind and data.
    pub(crate) fn event(&mut self) -> (String, String, Value) {
        let (mut id, mut kind) = (String::new(), String::new());
        loop {
            let line = self.line();
            if let Some(rest) = line.strip_prefix("id: ") {
                id = rest.to_owned();
            } else if let Some(rest) = line.strip_prefix("event: ") {
                kind = rest.to_owned();
            } else if let Some(data) = line.strip_prefix("data: ") {
                return (id, kind, serde_json::from_str(data).unwrap());
            }
        }
    }
}

#[test]
fn the_stream_shows_what_happens_and_is_resumed_where_it_broke_off() {
    let (home, _agents) = world(&["running", "running", "running"]);
    let serving = home.serve(&[]);
    let mut all = Stream::open(&serving, "", None);
    while all.line() != ": listening" {}
    let mut one = Stream::open(&serving, &format!("?sandbox_id={}", sandbox(2)), None);
    while one.line() != ": listening" {}
    for n in 0..3 {
        assert_eq!(report(&home, &serving, &event("sandbox.stopped", n)), 204);
    }
    let (first, kind, data) = all.event();
    assert_eq!((kind.as_str(), &data["sandbox_id"]), ("sandbox.stopped", &json!(sandbox(0))));
    assert_eq!(data["revision"].to_string(), first);
    let (second, _, _) = all.event();
    let (_, _, only) = one.event();
    assert_eq!(only["sandbox_id"], json!(sandbox(2)), "the filter leaves the others out");

    let mut resumed = Stream::open(&serving, "", Some(&first));
    let mut after = Stream::open(&serving, &format!("?after={first}"), None);
    assert_eq!(resumed.event().0, second);
    assert_eq!(after.event().0, second);
    let refused = serving.get("/v1/events?after=soon");
    assert_eq!(refused.refusal(), (400, "invalid_request".to_owned()));
    assert_eq!(serving.ask("GET", "/v1/events", &[], "").status, 401);
    // Open streams do not hold up a stop.
    serving.stop();
    home.verify();
}
