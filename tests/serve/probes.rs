//! Owns probes that an operator asks for: what each outcome looks like, who is asked and
//! who is not, and what becomes of a wait that leads nowhere.
//!
//! Never: what an answer does to sandboxes.

use crate::support::agents::{Agents, HungAgent, Says};
use crate::support::client::Answer;
use crate::support::server::Serving;
use crate::support::{Home, PATIENCE, eventually, host, sandbox, sim_fleet};
use roost::agent::wire::Method;
use roost::sim::{AnswerFault, Faults, SimFleet, SimHost, SimState};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::net::TcpListener;
use std::time::Duration;

/// Nobody is probed but at the start and when somebody asks.
const RARELY: [&str; 2] = ["--probe-interval", "1h"];

fn online(n: u128, address: &str) -> Value {
    json!({"id": host(n), "status": "online", "address": address, "heartbeat_age_s": 5})
}

fn probe(serving: &Serving, n: u128) -> Answer {
    serving.post(&format!("/v1/hosts/{}/probe", host(n)), &json!({}))
}

/// Waits for the first probes of all hosts, so that what is asked for is asked anew.
fn settled(serving: &Serving) {
    eventually("the first probes", || {
        let hosts = serving.get("/v1/hosts").json();
        let asked = |host: &Value| !host["last_probe"].is_null() || host["address"].is_null();
        let idle = serving.metric("roost_probes_in_flight") == 0;
        (hosts.as_array().unwrap().iter().all(asked) && idle).then_some(())
    });
}

#[test]
fn every_outcome_is_told_as_it_is() {
    let running = sandbox(1);
    let theirs: Vec<String> = (10..13).map(sandbox).collect();
    let theirs: Vec<(&str, &str)> = theirs.iter().map(|id| (id.as_str(), "running")).collect();
    let agents = Agents::start(vec![
        Says::lists(&[(&running, "running")]),
        Says::Error("unavailable"),
        Says::Listing(json!({"sandboxes": 7})),
        Says::lists(&theirs),
    ]);
    let hung = HungAgent::start();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let address = |n: usize| agents.address(n);
    let rows =
        theirs.iter().map(|(id, _)| json!({"id": id, "host_id": host(1), "status": "paused"}));
    let mut rows: Vec<Value> = rows.collect();
    rows.push(json!({"id": running, "host_id": host(1), "status": "running"}));
    let home = Home::with(&json!({
        "hosts": [online(1, &address(0)), online(2, &address(1)), online(3, &address(2)),
            online(4, &address(3)), online(5, &hung.address()), online(6, &nobody)],
        "sandboxes": rows,
    }));
    let serving = home.serve(&[&RARELY[..], &["--probe-timeout", "300ms"]].concat());
    settled(&serving);
    let outcomes =
        ["observation", "refused", "malformed", "wrong_host", "timed_out", "unreachable"];
    for (n, outcome) in (1..).zip(outcomes) {
        let before = serving.get(&format!("/v1/hosts/{}", host(n))).json();
        let answer = probe(&serving, n);
        let mut found = answer.json();
        assert_eq!((answer.status, &found["outcome"]), (200, &json!(outcome)), "{found}");
        assert_eq!(found["host_id"], json!(host(n)));
        assert!(found["took_ms"].is_u64() && found["at"].is_string(), "{found}");
        assert_eq!(found["detail"].is_string(), outcome != "observation", "{found}");
        assert!(found["at"].as_str() > before["last_probe"]["at"].as_str(), "{before} {found}");
        found.as_object_mut().unwrap().remove("host_id");
        let after = serving.get(&format!("/v1/hosts/{}", host(n))).json();
        assert_eq!(after["last_probe"], found, "the same is shown from then on");
    }
    assert_eq!(probe(&serving, 1).json()["sandboxes"], 1);
    serving.stop();
    home.verify();
}

/// What a probe finds has been applied when it is answered.
#[test]
fn the_answer_comes_when_the_rows_have_moved() {
    let agents = Agents::start(vec![Says::lists(&[(&sandbox(1), "running")])]);
    let home = Home::with(&json!({"hosts": [online(1, &agents.address(0))],
        "sandboxes": [{"id": sandbox(1), "host_id": host(1), "status": "running"}]}));
    let serving = home.serve(&RARELY);
    settled(&serving);
    agents.say(0, Says::lists(&[(&sandbox(1), "paused")]));
    assert_eq!(probe(&serving, 1).status, 200);
    let capsule = serving.get(&format!("/v1/capsules/{}", sandbox(1))).json();
    assert_eq!(capsule["status"], "paused");
    serving.stop();
    home.verify();
}

#[test]
fn who_cannot_be_asked_is_not_asked() {
    let agents = Agents::start(vec![Says::lists(&[(&sandbox(1), "running")])]);
    let unreachable = json!({"id": host(1), "status": "unreachable", "address": agents.address(0),
        "heartbeat_age_s": 500});
    let home = Home::with(&json!({
        "hosts": [unreachable, {"id": host(2), "status": "pending"},
            {"id": host(3), "status": "offline", "address": "127.0.0.1:1", "heartbeat_age_s": 5},
            {"id": host(4), "status": "online", "heartbeat_age_s": 5}],
        "sandboxes": [{"id": sandbox(1), "host_id": host(1), "status": "missing"}],
    }));
    let serving = home.serve(&RARELY);
    let found = probe(&serving, 1).json();
    assert_eq!((&found["outcome"], &found["sandboxes"]), (&json!("observation"), &json!(1)));
    assert_eq!(found["note"], "agent answers, heartbeats missing");
    let capsule = serving.get(&format!("/v1/capsules/{}", sandbox(1))).json();
    assert_eq!(capsule["status"], "missing", "for diagnosis only");

    for (n, why) in [(2, "never registered"), (3, "undrain"), (4, "no address")] {
        let refused = probe(&serving, n);
        assert_eq!(refused.refusal(), (409, "invalid_state".to_owned()), "{why}");
        assert!(refused.message().contains(why), "{}", refused.message());
    }
    assert_eq!(probe(&serving, 9).refusal(), (404, "not_found".to_owned()));
    let path = format!("/v1/hosts/{}/probe", host(1));
    assert_eq!(serving.ask("POST", &path, &[], "").status, 401);
    assert_eq!(serving.get(&path).refusal(), (405, "method_not_allowed".to_owned()));
    serving.stop();
    home.verify();
}

/// One host whose first probe is answered when the test says so.
struct Held {
    home: Home,
    fleet: SimFleet,
    serving: Serving,
}

impl Held {
    fn new(probe_timeout: &str) -> Held {
        let fleet = sim_fleet(1, 0);
        fleet.set_faults(0, Faults::answering_to(Method::List, AnswerFault::Held)).unwrap();
        let address = fleet.hosts()[0].address().to_string();
        let home = Home::with(&json!({"hosts": [online(1, &address)], "sandboxes": []}));
        let serving = home.serve(&[&RARELY[..], &["--probe-timeout", probe_timeout]].concat());
        assert!(fleet.hosts()[0].wait_calls(Method::List, 1, PATIENCE));
        Held { home, fleet, serving }
    }

    fn sim(&self) -> &SimHost {
        &self.fleet.hosts()[0]
    }

    fn release(&self) {
        self.fleet.set_faults(0, Faults::default()).unwrap();
    }

    /// Waits until so many requests wait for an agent.
    fn wait_waiting(&self, count: usize) {
        eventually("requests that wait", || {
            (self.serving.metric("roost_http_requests_waiting") == count as u64).then_some(())
        });
    }
}

/// Requests that wait for an agent: more than there are workers.
const WAITING: usize = 12;

#[test]
fn a_probe_in_flight_does_not_count_and_the_next_serves_all() {
    let held = Held::new("60s");
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let ask = || probe(&held.serving, 1);
        let all: Vec<_> = (0..WAITING).map(|_| scope.spawn(ask)).collect();
        held.wait_waiting(WAITING);
        assert_eq!(held.serving.beat(&host(1), &held.home.token(&host(1))).status, 204);
        assert_eq!(held.sim().calls(Method::List), 1, "one at a time");
        // What is in flight was told before this one was there.
        let new = sandbox(1).parse().unwrap();
        held.sim().put(new, SimState::Running, Duration::ZERO);
        held.release();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    for answer in &answers {
        assert_eq!((answer.status, &answer.json()["sandboxes"]), (200, &json!(1)), "{answer:?}");
    }
    let calls = held.sim().calls(Method::List);
    assert!(calls <= WAITING as u64, "{calls} calls, not one for each request");
    held.serving.stop();
    held.home.verify();
}

#[test]
fn a_stop_ends_the_wait() {
    let mut held = Held::new("60s");
    std::thread::scope(|scope| {
        let ask = || probe(&held.serving, 1).refusal();
        let all: Vec<_> = (0..WAITING).map(|_| scope.spawn(ask)).collect();
        held.wait_waiting(WAITING);
        held.serving.signal(Signal::TERM);
        for one in all {
            assert_eq!(one.join().unwrap(), (503, "unavailable".to_owned()));
        }
    });
    assert_eq!(held.serving.wait(), 0);
    held.home.verify();
}

#[test]
fn a_deletion_ends_the_wait() {
    let held = Held::new("60s");
    std::thread::scope(|scope| {
        let ask = || probe(&held.serving, 1).refusal();
        let all: Vec<_> = (0..WAITING).map(|_| scope.spawn(ask)).collect();
        let key = [("X-API-Key", held.serving.key())];
        let path = format!("/v1/hosts/{}?force=true", host(1));
        assert_eq!(held.serving.ask("DELETE", &path, &key, "").status, 204);
        for one in all {
            assert_eq!(one.join().unwrap(), (404, "not_found".to_owned()));
        }
    });
    held.release();
    held.serving.stop();
    held.home.verify();
}

#[test]
fn nobody_waits_for_ever() {
    let held = Held::new("60s");
    let answer = probe(&held.serving, 1);
    assert_eq!(answer.refusal(), (504, "timed_out".to_owned()));
    assert_eq!(held.sim().calls(Method::List), 1);
    held.release();
    assert_eq!(probe(&held.serving, 1).status, 200);
    held.serving.stop();
    held.home.verify();
}

/// The agent paused it by itself, and no report says so: the next regular probe is an hour
/// away.
#[test]
fn a_ping_of_what_its_host_does_not_run_probes_the_host() {
    let fleet = sim_fleet(1, 1);
    let sim = &fleet.hosts()[0];
    let id = sim.sandboxes()[0].0.to_string();
    let home = Home::with(&json!({"hosts": [online(1, &sim.address().to_string())],
        "sandboxes": [{"id": id, "host_id": host(1), "status": "running"}]}));
    let serving = home.serve(&RARELY);
    settled(&serving);
    let ping = || serving.post(&format!("/v1/capsules/{id}/ping"), &json!({}));
    assert_eq!(ping().status, 204);
    assert!(sim.auto_pause(id.parse().unwrap()));
    assert_eq!(ping().refusal(), (409, "invalid_state".to_owned()));
    let paused = || {
        let capsule = serving.get(&format!("/v1/capsules/{id}")).json();
        (capsule["status"] == "paused").then_some(())
    };
    eventually("it is seen to be paused", paused);
    serving.stop();
    home.verify();
}
