//! Owns how hosts are deleted, as operators, clients and the host's own agent meet it:
//! simulated agents on the real wire, calls in flight, servers that are killed.
//!
//! Never: what one transaction does with what else is in it, which the store shows.

use crate::support::server::Serving;
use crate::support::token::forged;
use crate::support::{Home, PATIENCE, eventually, host, sandbox, sim_fleet};
use roost::agent::wire::Method;
use roost::sim::{
    AnswerFault, Beat, Beater, BeaterOptions, Credentials, Faults, SimFleet, SimHost, SimState,
};
use serde_json::{Value, json};
use std::time::Duration;

/// Nobody is probed but at the start and when somebody asks.
const RARELY: [&str; 2] = ["--probe-interval", "1h"];

/// Longer than any test.
const FOREVER: Duration = Duration::from_secs(3600);

/// Simulated hosts that are registered with a server.
struct World {
    home: Home,
    fleet: SimFleet,
    serving: Serving,
    hosts: Vec<Credentials>,
}

impl World {
    fn new(hosts: usize, flags: &[&str]) -> World {
        let fleet = sim_fleet(hosts, 0);
        let home = Home::new();
        let serving = home.serve(flags);
        let mut world = World { home, fleet, serving, hosts: Vec::new() };
        world.register();
        world
    }

    fn register(&mut self) {
        let options = self.options();
        for host in self.fleet.hosts() {
            let added = self.serving.post("/v1/hosts", &json!({})).json();
            let token = added["registration_token"].as_str().unwrap();
            let beater = Beater::register(&options, host, token).unwrap();
            self.hosts.push(beater.credentials().clone());
        }
    }

    fn options(&self) -> BeaterOptions {
        BeaterOptions {
            url: format!("http://{}", self.serving.address),
            timeout: PATIENCE,
            tls: None,
        }
    }

    fn sim(&self, n: usize) -> &SimHost {
        &self.fleet.hosts()[n]
    }

    fn id(&self, n: usize) -> String {
        self.hosts[n].host_id.to_string()
    }

    fn faults(&self, n: usize, faults: Faults) {
        self.fleet.set_faults(n, faults).unwrap();
    }

    fn capsule(&self, status: &str) -> String {
        let answer = self.serving.post("/v1/capsules", &json!({}));
        assert_eq!(answer.status, 202, "{answer:?}");
        let id = answer.json()["id"].as_str().unwrap().to_owned();
        eventually(&format!("{id} {status}"), || {
            let capsule = self.serving.get(&format!("/v1/capsules/{id}")).json();
            (capsule["status"] == status).then_some(())
        });
        id
    }

    fn delete(&self, n: usize, query: &str) -> u16 {
        delete(&self.serving, &self.id(n), query).status
    }

    /// Beats with the token that host `n` was given.
    fn beat(&self, n: usize) -> u16 {
        self.serving.beat(&self.id(n), &self.hosts[n].token).status
    }

    /// Kills the server and starts another on what it left.
    fn restart(mut self) -> World {
        self.serving.kill();
        self.home.verify();
        self.serving = self.home.serve(&[]);
        self
    }

    fn end(self) {
        self.serving.stop();
        self.home.verify();
    }
}

fn delete(serving: &Serving, id: &str, query: &str) -> crate::support::client::Answer {
    let path = format!("/v1/hosts/{id}{query}");
    serving.ask("DELETE", &path, &[("X-API-Key", serving.key())], "")
}

fn events(home: &Home) -> Vec<String> {
    let events = home.json(&["events", "--limit", "1000"]);
    let text = |event: &Value, key: &str| event[key].as_str().unwrap_or("-").to_owned();
    let line = |e: &Value| {
        let parts = ["kind", "from", "to", "reason", "actor"].map(|key| text(e, key));
        parts.join(" ")
    };
    events.as_array().unwrap().iter().map(line).collect()
}

/// Audit entries of a host or sandbox, oldest first.
fn audit(home: &Home, id: &str) -> Vec<Value> {
    let entries = home.json(&["audit", "--limit", "1000"]);
    let of = |e: &&Value| e["resource_id"] == id;
    entries.as_array().unwrap().iter().rev().filter(of).cloned().collect()
}

#[test]
fn a_preview_tells_what_a_deletion_would_destroy() {
    let row = |n: u128, status: &str, reason: &str, age_s: u64| {
        json!({"id": sandbox(n), "host_id": host(1), "status": status, "status_reason": reason,
            "status_age_s": age_s})
    };
    let home = Home::with(&json!({
        "hosts": [{"id": host(1), "status": "online", "heartbeat_age_s": 5},
                  {"id": host(2), "status": "pending"}],
        "sandboxes": [row(1, "running", "requested", 600), row(2, "paused", "requested", 600),
            row(3, "stopped", "operation_succeeded", 5), row(4, "missing", "requested", 600),
            row(5, "error", "operation_failed", 3700), row(6, "hibernated", "requested", 600),
            row(7, "stopped", "vanished", 3500), row(8, "error", "not_started", 5),
            row(9, "stopped", "snapshot_gone", 3700)],
    }));
    let serving = home.serve(&[]);
    let preview = |id: &str| serving.get(&format!("/v1/hosts/{id}/delete-preview"));
    let answer = preview(&host(1));
    // What ended lately, and not at a user's request, may come back.
    let active = json!([1, 2, 4, 6, 7, 8].map(sandbox));
    let found = answer.json();
    assert_eq!((answer.status, &found["sandbox_ids"]), (200, &active));
    assert_eq!(found["sandboxes"], 6);
    assert_eq!(found["host"], serving.get(&format!("/v1/hosts/{}", host(1))).json());
    let none = preview(&host(2)).json();
    assert_eq!((&none["sandbox_ids"], &none["sandboxes"]), (&json!([]), &json!(0)));
    for id in [host(9), sandbox(1), "x".to_owned()] {
        assert_eq!(preview(&id).refusal(), (404, "not_found".to_owned()));
    }

    for query in ["", "?force=false", "?force=0", "?force"] {
        let refused = delete(&serving, &host(1), query);
        let error = &refused.json()["error"];
        assert_eq!((refused.status, &error["code"]), (409, &json!("has_active_sandboxes")));
        assert_eq!(error["sandbox_ids"], active, "the same as the preview");
        assert!(refused.message().contains("force=true"), "{}", refused.message());
    }
    let unclear = delete(&serving, &host(1), "?force=perhaps");
    assert_eq!(unclear.refusal(), (400, "invalid_request".to_owned()));
    assert_eq!(delete(&serving, &host(9), "?force=true").status, 404);
    let keyless = serving.ask("DELETE", &format!("/v1/hosts/{}", host(2)), &[], "");
    assert_eq!(keyless.status, 401);
    assert_eq!(home.revision(), 0, "looking and being refused change nothing");
    serving.stop();
    home.verify();
}

#[test]
fn a_deleted_host_leaves_its_history_and_nothing_else() {
    let world = World::new(2, &RARELY);
    world.faults(1, Faults { closed: true, ..Faults::default() });
    // The second host takes none: whatever is made is made on the first.
    let offline = format!("/v1/hosts/{}/offline", world.id(1));
    assert_eq!(world.serving.post(&offline, &json!({})).status, 200);
    let ids: Vec<String> = (0..3).map(|_| world.capsule("running")).collect();
    let unused = world.serving.post(&format!("/v1/hosts/{}/token", world.id(0)), &json!({})).json();
    assert_eq!(world.delete(0, ""), 409);
    assert_eq!(world.sim(0).calls(Method::Terminate), 0);
    assert_eq!(world.delete(0, "?force=true"), 204);

    assert_eq!((world.sim(0).calls(Method::Terminate), world.sim(0).has_exited()), (1, true));
    assert_eq!(world.sim(0).sandboxes(), []);
    for id in &ids {
        assert_eq!(world.serving.get(&format!("/v1/capsules/{id}")).status, 404);
    }
    let path = format!("/v1/hosts/{}", world.id(0));
    assert_eq!(world.serving.get(&path).refusal(), (404, "not_found".to_owned()));
    assert_eq!(world.serving.get(&format!("{path}/delete-preview")).status, 404);
    assert_eq!(world.serving.post(&format!("{path}/drain"), &json!({})).status, 404);
    assert_eq!(world.serving.post(&format!("{path}/probe"), &json!({})).status, 404);
    assert_eq!(world.delete(0, "?force=true"), 404, "once");
    let left = world.serving.get("/v1/hosts").json();
    assert_eq!(left.as_array().unwrap().len(), 1);

    useless_credentials(&world, unused["registration_token"].as_str().unwrap());
    let world = world.restart();
    useless_credentials(&world, unused["registration_token"].as_str().unwrap());
    assert_eq!(world.beat(1), 204, "nobody else's");
    the_history_is_complete(&world, &ids);
    world.end();
}

/// What the agent of deleted host 0 hears.
fn useless_credentials(world: &World, registration_token: &str) {
    let (id, serving) = (world.id(0), &world.serving);
    assert_eq!(world.beat(0), 404);
    assert_eq!(serving.beat(&id, &world.home.expired_token(&id)).status, 404, "away for long");
    assert_eq!(serving.beat(&id, &forged(&id)).status, 401);
    let body = json!({"refresh_token": world.hosts[0].refresh_token}).to_string();
    assert_eq!(serving.ask("POST", "/v1/hosts/auth/refresh", &[], &body).status, 401);
    let body = json!({"token": registration_token, "address": "127.0.0.1:1"}).to_string();
    assert_eq!(serving.ask("POST", "/v1/hosts/register", &[], &body).status, 401);
    let report = json!({"event": "sandbox.stopped", "sandbox_id": sandbox(1), "host_id": id});
    let headers = [("X-Host-Token", world.hosts[0].token.as_str())];
    let answer = serving.ask("POST", "/v1/hosts/sandbox-events", &headers, &report.to_string());
    assert_eq!(answer.status, 204, "not to be sent again");
}

fn the_history_is_complete(world: &World, ids: &[String]) {
    let events = events(&world.home);
    let end = events.len() - 4;
    let stopped = "sandbox.stopped running stopped host_deleted api_key";
    assert_eq!(events[end..end + 3], [stopped; 3]);
    assert_eq!(events[end + 3], "host.deleted online deleted requested api_key");
    for id in ids {
        let entries = audit(&world.home, id);
        let last = entries.last().unwrap();
        let expected = (&json!("destroy"), &json!("warning"), &json!("api_key"));
        assert_eq!((&last["action"], &last["status"], &last["actor_type"]), expected);
        assert_eq!(last["metadata"]["reason"], "host_deleted");
    }
    let entries = audit(&world.home, &world.id(0));
    let last = entries.last().unwrap();
    assert_eq!((&last["action"], &last["status"]), (&json!("delete"), &json!("warning")));
    assert_eq!(last["metadata"]["sandboxes_destroyed"], 3);
}

/// Whom the call does not reach, the next heartbeat tells.
#[test]
fn an_agent_that_cannot_be_reached_hears_it_when_it_beats() {
    let world = World::new(1, &RARELY);
    let id = world.capsule("running");
    world.faults(0, Faults { closed: true, ..Faults::default() });
    assert_eq!(world.delete(0, "?force=true"), 204);
    world.serving.logged(&[&world.id(0), "next heartbeat tells its agent"]);
    assert_eq!(world.sim(0).state(id.parse().unwrap()), Some(SimState::Running));
    let mut beater = Beater::new(&world.options(), world.hosts[0].clone());
    assert_eq!(beater.beat(world.sim(0)), Beat::Deleted);
    assert_eq!(world.sim(0).sandboxes(), []);
    world.end();
}

#[test]
fn hosts_without_an_agent_are_deleted_too() {
    let home = Home::with(&json!({
        "hosts": [{"id": host(1), "status": "unreachable", "heartbeat_age_s": 500},
                  {"id": host(2), "status": "offline", "heartbeat_age_s": 500}],
        "sandboxes": [{"id": sandbox(1), "host_id": host(1), "status": "missing"},
                      {"id": sandbox(2), "host_id": host(2), "status": "error"}],
    }));
    let serving = home.serve(&[]);
    let pending = serving.post("/v1/hosts", &json!({})).json();
    let pending_id = pending["host"]["id"].as_str().unwrap();
    assert_eq!(delete(&serving, pending_id, "").status, 204);
    let body = json!({"token": pending["registration_token"], "address": "127.0.0.1:1"});
    let registration = serving.ask("POST", "/v1/hosts/register", &[], &body.to_string());
    assert_eq!(registration.status, 401);
    assert_eq!(delete(&serving, &host(1), "").status, 409);
    assert_eq!(delete(&serving, &host(1), "?force=1").status, 204);
    let refused = delete(&serving, &host(2), "");
    assert_eq!(refused.json()["error"]["sandbox_ids"], json!([sandbox(2)]), "it failed lately");
    assert_eq!(delete(&serving, &host(2), "?force=1").status, 204);
    for id in [pending_id, &host(1), &host(2)] {
        assert_eq!(serving.beat(id, &home.token(id)).status, 404);
    }
    assert_eq!(serving.get("/v1/capsules?all=true").json(), json!([]));
    serving.stop();
    let expected = [
        "host.deleted pending deleted requested api_key",
        "sandbox.stopped missing stopped host_deleted api_key",
        "host.deleted unreachable deleted requested api_key",
        "sandbox.stopped error stopped host_deleted api_key",
        "host.deleted offline deleted requested api_key",
    ];
    assert_eq!(events(&home), expected);
    home.verify();
}

/// Agents that take the call and say nothing: a deletion waits a little, and more of them
/// than there are workers delay no heartbeat.
#[test]
fn agents_that_hang_delay_only_their_own_deletion() {
    const HUNG: usize = 10;
    let world = World::new(HUNG + 1, &RARELY);
    for n in 0..HUNG {
        let only = Some(Method::Terminate);
        world.faults(n, Faults { delay: FOREVER, only, ..Faults::default() });
    }
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let world = &world;
        let all: Vec<_> =
            (0..HUNG).map(|n| scope.spawn(move || world.delete(n, "?force=true"))).collect();
        eventually("all calls hang", || {
            (world.serving.metric("roost_http_requests_waiting") == HUNG as u64).then_some(())
        });
        assert_eq!(world.beat(HUNG), 204);
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(statuses, [204; HUNG]);
    for n in 0..HUNG {
        world.faults(n, Faults::default());
        assert_eq!(world.delete(n, "?force=true"), 404);
    }
    world.end();
}

/// The agent of a deleted host answers when nobody waits for it any more.
#[test]
fn a_probe_in_flight_does_no_harm() {
    let world = World::new(2, &["--probe-interval", "1s"]);
    world.capsule("running");
    let at = world.serving.get("/v1/capsules").json()[0]["host_id"].clone();
    let n = if at == world.id(0) { 0 } else { 1 };
    let held = Faults::answering_to(Method::List, AnswerFault::Held);
    let asked = world.sim(n).calls(Method::List);
    world.faults(n, held);
    assert!(world.sim(n).wait_calls(Method::List, asked + 1, PATIENCE));
    assert_eq!(world.delete(n, "?force=true"), 204);
    world.faults(n, Faults::default());
    let idle = || (world.serving.metric("roost_probes_in_flight") == 0).then_some(());
    eventually("no probe in flight", idle);

    // The other host is looked at as ever, the deleted one by nobody.
    let (asked, other) = (world.sim(n).calls(Method::List), 1 - n);
    let more = world.sim(other).calls(Method::List) + 3;
    assert!(world.sim(other).wait_calls(Method::List, more, PATIENCE));
    assert_eq!(world.sim(n).calls(Method::List), asked);
    assert_eq!((world.beat(n), world.beat(other)), (404, 204));
    let log = world.serving.log();
    assert!(!log.iter().any(|line| line.contains("ERROR")), "{log:#?}");
    world.end();
}

/// The answer to an operation comes when its sandbox and host are gone.
#[test]
fn an_operation_in_flight_ends_with_its_host() {
    let wishes = [
        (Method::Create, "POST", "/v1/capsules"),
        (Method::Pause, "POST", "/v1/capsules/ID/pause"),
        (Method::Destroy, "DELETE", "/v1/capsules/ID"),
    ];
    for (method, wish, path) in wishes {
        let world = World::new(1, &RARELY);
        let path = path.replace("ID", &world.capsule("running"));
        let before = world.sim(0).calls(method);
        world.faults(0, Faults::answering_to(method, AnswerFault::Held));
        let key = [("X-API-Key", world.serving.key())];
        assert_eq!(world.serving.ask(wish, &path, &key, "{}").status, 202);
        assert!(world.sim(0).wait_calls(method, before + 1, PATIENCE));
        assert_eq!(world.delete(0, "?force=true"), 204);
        world.faults(0, Faults::default());
        world.sim(0).restart();
        assert_eq!(world.serving.get("/v1/capsules?all=true").json(), json!([]));

        // A stop waits for calls in flight: by now every answer was dealt with.
        let World { home, fleet, serving, .. } = world;
        serving.stop();
        home.verify();
        let log = home.serve(&[]).stop();
        assert!(!log.iter().any(|line| line.contains("ERROR")), "{log:#?}");
        assert_eq!(fleet.hosts()[0].calls(method), before + 1, "nothing is asked again");
        let events = events(&home);
        assert!(events.last().unwrap().starts_with("host.deleted"), "{method:?}: {events:#?}");
    }
}

/// Either the wish comes first, and the host is not empty, or the deletion does, and no
/// host is left to take it.
#[test]
fn of_a_wish_and_a_deletion_at_the_same_moment_one_wins() {
    for _ in 0..6 {
        let world = World::new(1, &RARELY);
        let (wished, deleted) = std::thread::scope(|scope| {
            let wishes = scope.spawn(|| {
                let wish = |_| world.serving.post("/v1/capsules", &json!({})).status;
                (0..3).map(wish).collect::<Vec<u16>>()
            });
            let deleted = scope.spawn(|| world.delete(0, ""));
            (wishes.join().unwrap(), deleted.join().unwrap())
        });
        match deleted {
            204 => assert_eq!(wished, [503; 3]),
            409 => assert_eq!(wished, [202; 3]),
            other => panic!("{other}"),
        }
        world.end();
    }
}

fn refusal(answer: crate::support::client::Answer) -> String {
    assert_eq!(answer.refusal(), (409, "invalid_state".to_owned()));
    answer.message()
}

/// Without force a host goes only when an observation newer than the request shows that it
/// has nothing.
#[test]
fn a_host_that_is_not_seen_to_be_empty_stays() {
    let world = World::new(4, &RARELY);
    let ask = |n: usize| delete(&world.serving, &world.id(n), "");
    // Something runs there that the database knows nothing of.
    world.sim(0).put(sandbox(7).parse().unwrap(), SimState::Running, Duration::ZERO);
    assert!(refusal(ask(0)).contains("its agent lists 1 sandboxes"));
    world.faults(1, Faults { closed: true, ..Faults::default() });
    let message = refusal(ask(1));
    assert!(message.contains("cannot be observed") && message.contains("force=true"), "{message}");
    let offline = format!("/v1/hosts/{}/offline", world.id(2));
    assert_eq!(world.serving.post(&offline, &json!({})).status, 200);
    assert!(refusal(ask(2)).contains("it is offline; undrain it"));
    for n in 0..3 {
        assert_eq!(world.beat(n), 204, "it is still there");
        assert!(!world.sim(n).has_exited());
    }
    assert_eq!(ask(3).status, 204);
    world.sim(0).lose(sandbox(7).parse().unwrap());
    assert_eq!(ask(0).status, 204);
    for n in [1, 2] {
        assert_eq!(world.delete(n, "?force=true"), 204);
    }
    world.end();
}

#[test]
fn an_unreachable_host_is_deleted_by_force_only_and_its_agent_is_not_called() {
    let fleet = sim_fleet(1, 1);
    let sim = &fleet.hosts()[0];
    let id = sim.sandboxes()[0].0;
    let home = Home::with(&json!({
        "hosts": [{"id": host(1), "status": "unreachable", "heartbeat_age_s": 500,
            "address": sim.address().to_string()}],
        "sandboxes": [],
    }));
    let serving = home.serve(&RARELY);
    assert!(refusal(delete(&serving, &host(1), "")).contains("it is unreachable"));
    assert_eq!(delete(&serving, &host(1), "?force=true").status, 204);
    serving.logged(&["next heartbeat tells its agent", "it is unreachable"]);
    assert_eq!((sim.calls(Method::Terminate), sim.state(id)), (0, Some(SimState::Running)));
    serving.stop();
    home.verify();
}

/// Who answers at the address of a deleted host may be another host's agent: only one whose
/// listing shows this host's sandboxes, and no others, is told to end.
#[test]
fn only_the_agent_that_is_proved_to_be_the_hosts_is_ended() {
    // Of the host's own sandbox and another's: which are listed, and whether it is ended.
    for (own, foreign, ended) in
        [(true, false, true), (true, true, false), (false, true, false), (false, false, false)]
    {
        let world = World::new(2, &["--probe-interval", "1h", "--confirm-delay", "1m"]);
        let offline = format!("/v1/hosts/{}/offline", world.id(1));
        assert_eq!(world.serving.post(&offline, &json!({})).status, 200);
        let id = world.capsule("running");
        if !own {
            world.sim(0).lose(id.parse().unwrap());
        }
        if foreign {
            world.sim(0).put(sandbox(7).parse().unwrap(), SimState::Running, Duration::ZERO);
        }
        assert_eq!(world.delete(0, "?force=true"), 204);
        let calls = world.sim(0).calls(Method::Terminate);
        assert_eq!(
            (calls, world.sim(0).has_exited()),
            (u64::from(ended), ended),
            "{own} {foreign}"
        );
        if !ended {
            world.serving.logged(&["next heartbeat tells its agent", "nothing proves"]);
        }
        assert_eq!(world.beat(0), 404, "and that ends it in any case");
        world.end();
    }
}
