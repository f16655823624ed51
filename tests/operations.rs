//! Owns lifecycle operations from outside: a real server, simulated agents on the real
//! wire, and what clients see of create, pause, resume and destroy.
//!
//! Never: the decisions one by one, which `plan` shows.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use roost::agent::wire::{ConnectCode, Method};
use roost::model::id::SandboxId;
use roost::sim::{AnswerFault, Faults, Habits, SimFleet, SimState};
use serde_json::{Value, json};
use std::time::Duration;
use support::server::Serving;
use support::{Home, PATIENCE, eventually, sim_fleet};

/// One simulated host, and a server that knows it.
struct World {
    home: Home,
    fleet: SimFleet,
    flags: Vec<&'static str>,
}

impl World {
    fn new() -> World {
        let fleet = sim_fleet(1, 0);
        let address = fleet.hosts()[0].address().to_string();
        let id = fleet.hosts()[0].id().to_string();
        let home = Home::with(&json!({"hosts": [{"id": id, "status": "online",
            "address": address, "heartbeat_age_s": 5, "cpu_cores": 4, "memory_mb": 8192}],
            "sandboxes": []}));
        let flags =
            vec!["--probe-interval", "2s", "--confirm-delay", "100ms", "--probe-timeout", "1s"];
        World { home, fleet, flags }
    }

    fn serve(&self) -> Serving {
        self.home.serve(&self.flags)
    }

    fn state(&self, id: &str) -> Option<SimState> {
        self.fleet.hosts()[0].state(id.parse::<SandboxId>().unwrap())
    }

    fn faults(&self, faults: Faults) {
        self.fleet.set_faults(0, faults).unwrap();
    }

    fn asked(&self, method: Method) -> u64 {
        self.fleet.hosts()[0].calls(method)
    }

    /// Ends everything; the database must be whole, and the last event of every capsule
    /// must say what its row says.
    fn end(self, serving: Serving) {
        serving.stop();
        self.home.verify();
    }
}

fn create(serving: &Serving) -> String {
    let answer = serving.post("/v1/capsules", &json!({}));
    let capsule = answer.json();
    assert_eq!((answer.status, capsule["status"].as_str()), (202, Some("starting")), "{capsule}");
    capsule["id"].as_str().unwrap().to_owned()
}

fn capsule(serving: &Serving, id: &str) -> Value {
    serving.get(&format!("/v1/capsules/{id}")).json()
}

fn becomes(serving: &Serving, id: &str, status: &str) -> Value {
    eventually(&format!("{id} is {status}"), || {
        let capsule = capsule(serving, id);
        (capsule["status"] == status).then_some(capsule)
    })
}

fn wish(serving: &Serving, id: &str, what: &str) -> (u16, String) {
    let answer = match what {
        "destroy" => {
            let key = [("X-API-Key", serving.key())];
            serving.ask("DELETE", &format!("/v1/capsules/{id}"), &key, "")
        }
        what => serving.post(&format!("/v1/capsules/{id}/{what}"), &json!({})),
    };
    let json = answer.json();
    let word = json["status"].as_str().or(json["error"]["code"].as_str());
    (answer.status, word.unwrap().to_owned())
}

fn accepted(status: &str) -> (u16, String) {
    (202, status.to_owned())
}

fn refused() -> (u16, String) {
    (409, "invalid_state".to_owned())
}

#[test]
fn a_sandbox_is_made_paused_resumed_and_destroyed() {
    let world = World::new();
    let serving = world.serve();
    let id = create(&serving);
    let running = becomes(&serving, &id, "running");
    assert!(running["host_ip"].is_string() && running["started_at"].is_string(), "{running}");
    let made = (&running["template"], &running["vcpus"], &running["memory_mb"]);
    assert_eq!(made, (&json!("minimal"), &json!(1), &json!(512)));
    assert_eq!(serving.post(&format!("/v1/capsules/{id}/ping"), &json!({})).status, 204);

    assert_eq!(wish(&serving, &id, "resume"), refused());
    assert_eq!(wish(&serving, &id, "pause"), accepted("pausing"));
    becomes(&serving, &id, "paused");
    assert_eq!(world.state(&id), Some(SimState::Paused));
    assert_eq!(serving.post(&format!("/v1/capsules/{id}/ping"), &json!({})).status, 409);
    assert_eq!(wish(&serving, &id, "resume"), accepted("resuming"));
    becomes(&serving, &id, "running");
    assert_eq!(wish(&serving, &id, "destroy"), accepted("stopping"));
    becomes(&serving, &id, "stopped");
    assert_eq!(world.state(&id), None);
    let key = [("X-API-Key", serving.key())];
    let again = serving.ask("DELETE", &format!("/v1/capsules/{id}"), &key, "");
    assert_eq!((again.status, again.body.as_str()), (204, ""));
    world.end(serving);
}

#[test]
fn bad_wishes_are_refused_with_their_reason() {
    let world = World::new();
    let serving = world.serve();
    let refusal = |body: Value| serving.post("/v1/capsules", &body).refusal();
    assert_eq!(refusal(json!({"vcpus": 0})), (400, "invalid_request".to_owned()));
    assert_eq!(refusal(json!({"memory_mb": "much"})), (400, "invalid_request".to_owned()));
    assert_eq!(refusal(json!({"memory_mb": 99_999})), (503, "no_hosts_available".to_owned()));
    let too_big = serving.post("/v1/capsules", &json!({"vcpus": 99}));
    assert!(too_big.message().contains("bigger than any host"), "{}", too_big.message());
    assert_eq!(wish(&serving, &SandboxId::from_u128(7).to_string(), "pause").0, 404);
    assert_eq!(wish(&serving, "cl-nonsense", "pause").0, 404);
    world.end(serving);
}

#[test]
fn what_the_agent_refuses_is_told_and_nothing_is_lost() {
    let world = World::new();
    let serving = world.serve();
    let id = create(&serving);
    becomes(&serving, &id, "running");

    // Refused, while it is listed: it runs on.
    let no = Faults::answering(AnswerFault::Refused(ConnectCode::Internal));
    world.faults(no);
    let asked = world.asked(Method::Pause);
    assert_eq!(wish(&serving, &id, "pause"), accepted("pausing"));
    assert!(world.fleet.hosts()[0].wait_calls(Method::Pause, asked + 1, PATIENCE));
    world.faults(Faults::default());
    becomes(&serving, &id, "running");

    wish(&serving, &id, "pause");
    becomes(&serving, &id, "paused");
    world.faults(no);
    wish(&serving, &id, "resume");
    becomes(&serving, &id, "paused");
    world.faults(Faults::default());
    // The snapshot is gone: only the agent's own word for it gives the sandbox up.
    world.fleet.hosts()[0].lose(id.parse().unwrap());
    wish(&serving, &id, "resume");
    assert_eq!(becomes(&serving, &id, "stopped")["status_reason"], "snapshot_gone");
    world.end(serving);
}

#[test]
fn an_answer_that_never_comes_is_looked_up_and_never_asked_twice() {
    let world = World::new();
    let serving = world.serve();
    world.faults(Faults::answering(AnswerFault::Dropped));
    let id = create(&serving);
    assert!(world.fleet.hosts()[0].wait_calls(Method::Create, 1, PATIENCE));
    world.faults(Faults::default());
    becomes(&serving, &id, "running");
    assert_eq!(world.asked(Method::Create), 1);

    world.faults(Faults::answering(AnswerFault::Dropped));
    wish(&serving, &id, "pause");
    assert!(world.fleet.hosts()[0].wait_calls(Method::Pause, 1, PATIENCE));
    world.faults(Faults::default());
    becomes(&serving, &id, "paused");
    assert_eq!((world.asked(Method::Pause), world.state(&id)), (1, Some(SimState::Paused)));
    world.end(serving);
}

#[test]
fn a_destroy_waits_for_its_host_and_repeats_join_it() {
    let world = World::new();
    let serving = world.serve();
    let id = create(&serving);
    becomes(&serving, &id, "running");
    world.faults(Faults { closed: true, ..Faults::default() });
    assert_eq!(wish(&serving, &id, "destroy"), accepted("stopping"));
    assert_eq!(wish(&serving, &id, "destroy"), accepted("stopping"), "the same wish joins");
    assert_eq!(wish(&serving, &id, "pause"), refused(), "another one does not");
    assert_eq!(world.state(&id), Some(SimState::Running));
    world.faults(Faults::default());
    becomes(&serving, &id, "stopped");
    assert_eq!(world.state(&id), None);
    world.end(serving);
}

#[test]
fn a_destroy_overtakes_a_create_and_leaves_no_microvm() {
    let world = World::new();
    let habits = Habits { create_takes: Duration::from_secs(2), ..Habits::default() };
    world.fleet.hosts()[0].set_habits(habits);
    let serving = world.serve();
    let id = create(&serving);
    assert!(world.fleet.hosts()[0].wait_calls(Method::Create, 1, PATIENCE));
    assert_eq!(wish(&serving, &id, "destroy"), accepted("stopping"));
    becomes(&serving, &id, "stopped");
    assert_eq!(world.state(&id), None);
    assert!(world.fleet.hosts()[0].sandboxes().is_empty());
    world.end(serving);
}

/// `kill -9` in the middle of each kind of operation: the next server brings it to an end, and
/// nothing is made twice, whether the agent breaks off what its caller has left or finishes it.
#[test]
fn a_killed_server_takes_its_operations_up_again() {
    taken_up_again(false);
    taken_up_again(true);
}

fn taken_up_again(finishes_orphans: bool) {
    let world = World::new();
    let slow = Duration::from_millis(1500);
    let habits =
        Habits { create_takes: slow, pause_takes: slow, resume_takes: slow, ..Habits::default() };
    world.fleet.hosts()[0].set_habits(habits);
    world.faults(Faults { finishes_orphans, ..Faults::default() });
    let mut serving = world.serve();
    let id = create(&serving);
    let steps = [
        (None, Method::Create, "running"),
        (Some("pause"), Method::Pause, "paused"),
        (Some("resume"), Method::Resume, "running"),
        (Some("destroy"), Method::Destroy, "stopped"),
    ];
    for (what, method, ends) in steps {
        if let Some(what) = what {
            assert_eq!(wish(&serving, &id, what).0, 202, "{what}");
        }
        assert!(world.fleet.hosts()[0].wait_calls(method, 1, PATIENCE), "{what:?}");
        serving.kill();
        world.home.verify();
        serving = world.serve();
        becomes(&serving, &id, ends);
        let asked = world.asked(method);
        assert!(asked <= 2 || method == Method::Destroy, "{method:?} was asked {asked} times");
    }
    assert_eq!(world.state(&id), None);
    let events = world.home.json(&["events", "--limit", "1000", "--sandbox", &id]);
    let kinds: Vec<&str> =
        events.as_array().unwrap().iter().map(|e| e["kind"].as_str().unwrap()).collect();
    let expected =
        ["starting", "running", "pausing", "paused", "resuming", "running", "stopping", "stopped"];
    assert_eq!(kinds, expected.map(|status| format!("sandbox.{status}")));
    world.end(serving);
}
