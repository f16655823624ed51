//! Owns what operators learn of sandboxes that a host has although the database does not
//! place them there, and what they do with them.
//!
//! Never: decides which sandbox is a stranger.

use crate::support::server::Serving;
use crate::support::{Done, Home, PATIENCE, eventually, sandbox, sim_fleet};
use roost::agent::wire::Method;
use roost::model::id::SandboxId;
use roost::sim::{SimFleet, SimState};
use serde_json::{Value, json};
use std::time::Duration;

const FLAGS: [&str; 8] = [
    "--probe-interval",
    "1s",
    "--probe-timeout",
    "1s",
    "--confirm-delay",
    "50ms",
    "--transient-grace",
    "1s",
];

const OLD: Duration = Duration::from_secs(600);

fn id(n: u128) -> SandboxId {
    SandboxId::from_u128(n)
}

/// Two hosts; sandbox 1 is on the first and sandbox 2 on the second, and each host has its own.
fn world() -> (Home, SimFleet, Serving) {
    let fleet = sim_fleet(2, 0);
    let host = |n: usize| fleet.hosts()[n].id().to_string();
    let hosts = [0, 1].map(|n| {
        json!({"id": host(n), "status": "online", "heartbeat_age_s": 5,
            "address": fleet.hosts()[n].address().to_string()})
    });
    let rows = [0, 1]
        .map(|n| json!({"id": sandbox(n as u128 + 1), "host_id": host(n), "status": "running"}));
    let home = Home::with(&json!({"hosts": hosts, "sandboxes": rows}));
    for n in 0..2 {
        fleet.hosts()[n].put(id(n as u128 + 1), SimState::Running, OLD);
    }
    let serving = home.serve(&FLAGS);
    (home, fleet, serving)
}

/// Waits until a stranger is recorded; gives how it is shown.
fn recorded(serving: &Serving, n: u128) -> Value {
    eventually("a stranger", || {
        let all = serving.get("/v1/strangers").json();
        all.as_array().unwrap().iter().find(|s| s["sandbox_id"] == sandbox(n)).cloned()
    })
}

/// A command that acts on this server.
fn acting(home: &Home, serving: &Serving, args: &[&str]) -> Done {
    let url = format!("http://{}", serving.address);
    Done::of(home.command(args).env("ROOST_URL", url).output().unwrap())
}

fn events_of(home: &Home, n: u128) -> Vec<String> {
    let events = home.json(&["events", "--after", "0", "--limit", "100", "--sandbox", &sandbox(n)]);
    events.as_array().unwrap().iter().map(|e| e["kind"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_sandbox_on_another_host_is_reported_and_stays_until_it_is_adopted() {
    let (home, fleet, serving) = world();
    let (first, second) = (&fleet.hosts()[0], &fleet.hosts()[1]);
    second.put(id(1), SimState::Running, OLD);
    let shown = recorded(&serving, 1);
    assert_eq!(shown["kind"], "misplaced");
    assert_eq!(shown["host_id"], second.id().to_string());
    assert_eq!(shown["belongs_to"], first.id().to_string());
    eventually("the metric", || (serving.metric("roost_misplaced_sandboxes") == 1).then_some(()));
    assert_eq!(events_of(&home, 1), ["sandbox.misplaced"]);
    let text = home.roost(&["status"]).ok();
    assert!(text.contains("stranger") && text.contains("adopt"), "{text}");

    // The row stays, and neither host pays for it.
    let capsule = || serving.get(&format!("/v1/capsules/{}", sandbox(1))).json();
    let asked = second.calls(Method::List);
    assert!(second.wait_calls(Method::List, asked + 3, PATIENCE));
    assert_eq!(capsule()["host_id"], first.id().to_string());
    for host in [first, second] {
        let host = serving.get(&format!("/v1/hosts/{}", host.id())).json();
        assert_eq!((&host["status"], &host["degraded"]), (&json!("online"), &json!(false)));
    }

    // Its own host loses it: an operator moves the row to where it runs.
    assert!(first.lose(id(1)));
    eventually("it to be gone from its host", || (capsule()["status"] != "running").then_some(()));
    let adopt = ["sandboxes", "adopt", &sandbox(1), "--host", &second.id().to_string()];
    let text = acting(&home, &serving, &adopt).ok();
    assert!(text.contains("running"), "{text}");
    assert_eq!(capsule()["host_id"], second.id().to_string());
    eventually("no stranger", || (serving.get("/v1/strangers").json() == json!([])).then_some(()));
    let audit = home.json(&["audit", "--sandbox", &sandbox(1), "--limit", "100"]);
    let newest = &audit[0];
    assert_eq!((&newest["action"], &newest["actor_type"]), (&json!("adopt"), &json!("api_key")));
    let again = acting(&home, &serving, &adopt);
    assert!(again.stderr.contains("no host is known"), "{}", again.stderr);
    serving.stop();
    home.verify();
}

/// Several hosts have it: which one is meant must be said.
#[test]
fn an_adoption_names_its_host_when_several_have_it() {
    let (home, fleet, serving) = world();
    for host in fleet.hosts() {
        host.put(id(7), SimState::Running, OLD);
    }
    eventually("both to be recorded", || {
        let all = serving.get("/v1/strangers").json();
        (all.as_array().unwrap().len() == 2).then_some(())
    });
    let path = format!("/v1/strangers/{}/adopt", sandbox(7));
    let answer = serving.post(&path, &json!({}));
    assert_eq!(answer.status, 400);
    assert!(answer.message().contains("host_id: several hosts"), "{}", answer.message());
    let wanted = fleet.hosts()[1].id().to_string();
    let adopted = serving.post(&path, &json!({"host_id": wanted})).json();
    assert_eq!((&adopted["host_id"], &adopted["status"]), (&json!(wanted), &json!("running")));
    // On the other host it is misplaced now.
    let shown = eventually("the other", || {
        let all = serving.get("/v1/strangers").json();
        all.as_array().unwrap().iter().find(|s| s["kind"] == "misplaced").cloned()
    });
    assert_eq!(shown["host_id"], fleet.hosts()[0].id().to_string());
    let path = format!("/v1/strangers/{}?host_id={}", sandbox(7), fleet.hosts()[0].id());
    assert_eq!(serving.ask("DELETE", &path, &[("X-API-Key", serving.key())], "").status, 204);
    assert!(fleet.hosts()[0].wait_state(id(7), None, PATIENCE));
    assert_eq!(fleet.hosts()[1].state(id(7)), Some(SimState::Running));
    serving.stop();
    home.verify();
}

#[test]
fn an_operator_destroys_what_has_no_row() {
    let (home, fleet, serving) = world();
    let host = &fleet.hosts()[0];
    host.put(id(9), SimState::Running, OLD);
    assert_eq!(recorded(&serving, 9)["kind"], "zombie");
    assert_eq!(host.calls_of(Method::Destroy, id(9)), 0, "nothing is destroyed unasked");
    acting(&home, &serving, &["sandboxes", "destroy", &sandbox(9)]).ok();
    assert!(host.wait_state(id(9), None, PATIENCE));
    eventually("no stranger", || (serving.get("/v1/strangers").json() == json!([])).then_some(()));
    let unknown = acting(&home, &serving, &["sandboxes", "destroy", &sandbox(99)]);
    assert!(unknown.stderr.contains("no such capsule"), "{}", unknown.stderr);
    serving.stop();
    home.verify();
}
