//! Owns what agents, users and the monitor get to hear of a restored database, before and
//! after an operator accepts it.
//!
//! Never: how it was restored.

use crate::support::agents::{Agents, Says};
use crate::support::client::Answer;
use crate::support::server::Serving;
use crate::support::{Home, PATIENCE, eventually, host, sandbox, sim_fleet};
use roost::agent::wire::Method;
use roost::model::id::SandboxId;
use roost::sim::SimState;
use roost::store::Connection;
use serde_json::{Value, json};
use std::time::Duration;
use tempfile::TempDir;

const FLAGS: [&str; 6] =
    ["--probe-interval", "1s", "--probe-timeout", "1s", "--confirm-delay", "100ms"];

fn refresh(serving: &Serving, token: &Value) -> Answer {
    let body = json!({"refresh_token": token});
    serving.ask("POST", "/v1/hosts/auth/refresh", &[], &body.to_string())
}

/// The refresh token of an answer that must have succeeded.
fn renewed(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["refresh_token"].clone()
}

/// Registers a host that is there already.
fn register_known(serving: &Serving, id: &str, address: &str) -> Value {
    let added = serving.post(&format!("/v1/hosts/{id}/token"), &json!({})).json();
    let body = json!({"token": added["registration_token"], "address": address});
    let answer = serving.ask("POST", "/v1/hosts/register", &[], &body.to_string());
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.json()
}

/// A database that was restored from a backup, and what was done after it was taken.
struct World {
    home: Home,
    agents: Agents,
    /// The tokens of host 1 in the order in which they were given out; the first is in the
    /// backup, the last is what its agent has.
    tokens: Vec<Value>,
    /// A host of which the backup knows nothing, with what it was given.
    newcomer: Value,
    /// The newest revision of the backup, and the newest that was ever given out.
    revisions: (u64, u64),
    _out: TempDir,
}

impl World {
    fn new() -> World {
        let agents =
            Agents::start(vec![Says::lists(&[(&sandbox(1), "running")]), Says::lists(&[])]);
        let home = Home::with(&json!({
            "hosts": [
                {"id": host(1), "status": "online", "heartbeat_age_s": 5, "address": agents.address(0)},
                {"id": host(3), "status": "online", "heartbeat_age_s": 5},
            ],
            "sandboxes": [{"id": sandbox(1), "host_id": host(1), "status": "running"}],
        }));
        let serving = home.serve(&FLAGS);
        let mut tokens =
            vec![register_known(&serving, &host(1), &agents.address(0))["refresh_token"].clone()];
        let out = tempfile::tempdir().unwrap();
        let copy = out.path().join("copy");
        let copy = copy.to_str().unwrap();
        home.roost(&["db", "backup", copy]).ok();
        let known = home.json(&["status", "--db", copy])["revision"].as_u64().unwrap();

        for _ in 0..2 {
            let next = renewed(&refresh(&serving, &tokens[tokens.len() - 1]));
            tokens.push(next);
        }
        let newcomer = serving.register(&agents.address(1));
        let path = format!("/v1/hosts/{}?force=true", host(3));
        let key = [("X-API-Key", serving.key())];
        assert_eq!(serving.ask("DELETE", &path, &key, "").status, 204);
        assert_eq!(serving.beat(&host(3), &home.token(&host(3))).status, 404);
        serving.stop();
        let given_out = home.revision();
        assert!(given_out > known + 1, "{given_out} {known}");
        agents.say(0, Says::lists(&[]));
        home.roost(&["db", "restore", copy]).ok();
        World { home, agents, tokens, newcomer, revisions: (known, given_out), _out: out }
    }

    fn accept(&self, serving: &Serving) -> String {
        let url = format!("http://{}", serving.address());
        self.home.roost(&["db", "accept", "--url", &url]).ok()
    }

    fn beat(&self, serving: &Serving, n: u128) -> u16 {
        // Of a registration that the backup may not know.
        serving.beat(&host(n), &self.home.token_of(&host(n), u64::MAX)).status
    }
}

/// Status of an answer to a resumed stream; a stream that is given has no end.
fn resumed(serving: &Serving, after: u64) -> u16 {
    use std::io::{BufRead, BufReader, Write};
    let mut socket = std::net::TcpStream::connect(serving.address()).unwrap();
    let key = serving.key();
    write!(socket, "GET /v1/events?after={after} HTTP/1.1\r\nHost: r\r\nX-API-Key: {key}\r\n\r\n")
        .unwrap();
    let mut line = String::new();
    BufReader::new(socket).read_line(&mut line).unwrap();
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn until_it_is_accepted_everybody_waits_and_nothing_is_decided() {
    let world = World::new();
    let calls = world.agents.calls(0);
    let serving = world.home.serve_restored(&FLAGS);
    serving.logged(&["restored", "not accepted"]);
    let before = world.home.dump();

    let ready = serving.get("/readyz");
    assert_eq!((ready.status, ready.message().contains("roost db accept")), (503, true));
    for path in ["/healthz", "/", "/metrics", "/v1/hosts", "/v1/capsules?all=true", "/v1/audit"] {
        assert_eq!(serving.get(path).status, 200, "{path}");
    }
    assert_eq!(serving.metric("roost_restored_not_accepted"), 1);

    let waits = |answer: Answer| {
        assert_eq!(answer.refusal(), (503, "unavailable".to_owned()));
        assert!(answer.message().contains("not accepted"), "{}", answer.message());
    };
    // Known, known again, unknown, not genuine, expired, and nothing at all.
    for n in [1, 3, 9] {
        waits(serving.beat(&host(n), &world.home.token(&host(n))));
    }
    waits(serving.beat(&host(1), &crate::support::token::forged(&host(1))));
    waits(serving.beat(&host(1), &world.home.expired_token(&host(1))));
    waits(serving.beat(&host(1), "nonsense"));
    world.tokens.iter().for_each(|token| waits(refresh(&serving, token)));
    waits(refresh(&serving, &json!("0".repeat(64))));
    let token = world.home.token(&host(1));
    for path in ["/v1/hosts/register", "/v1/hosts/sandbox-events"] {
        waits(serving.ask("POST", path, &[("X-Host-Token", &token)], "{}"));
    }
    waits(serving.post("/v1/capsules", &json!({})));
    waits(serving.post("/v1/hosts", &json!({})));
    waits(serving.post(&format!("/v1/hosts/{}/drain", host(1)), &json!({})));
    waits(serving.post(&format!("/v1/hosts/{}/probe", host(1)), &json!({})));
    let path = format!("/v1/capsules/{}", sandbox(1));
    waits(serving.ask("DELETE", &path, &[("X-API-Key", serving.key())], ""));
    let unknown = serving.ask("POST", "/v1/database/accept", &[], "{}").refusal();
    assert_eq!(unknown, (401, "unauthorized".to_owned()), "not everybody accepts");

    assert_eq!(world.agents.calls(0), calls, "nobody was asked");
    let without_ages = crate::support::without_ages;
    assert_eq!(without_ages(world.home.dump()), without_ages(before), "nothing was decided");
    serving.stop();

    // Nor by a pass of its own; what it would change can be seen.
    let refused = world.home.roost(&["check"]);
    assert!(refused.code == 1 && refused.stderr.contains("roost db accept"), "{refused:?}");
    assert_eq!(world.home.roost(&["check", "--dry-run"]).code, 0);
    world.home.verify();
}

#[test]
fn after_it_is_accepted_genuine_agents_go_on_and_nothing_counts_as_vanished() {
    let world = World::new();
    let serving = world.home.serve_restored(&FLAGS);
    let said = world.accept(&serving);
    assert!(said.contains("counts since"), "{said}");
    assert_eq!(world.accept(&serving), said, "once is enough");
    eventually("readiness", || (serving.get("/readyz").status == 200).then_some(()));
    assert_eq!(serving.metric("roost_restored_not_accepted"), 0);

    // Known, known again because its deletion is undone, and not known any more.
    assert_eq!((world.beat(&serving, 1), world.beat(&serving, 3)), (204, 204));
    let newcomer = world.newcomer["host"]["id"].as_str().unwrap();
    assert_eq!(serving.beat(newcomer, world.newcomer["token"].as_str().unwrap()).status, 503);

    // Its agent listed nothing when it was asked: nobody heard what it did meanwhile.
    let capsule = eventually("a verdict", || {
        let capsule = serving.get(&format!("/v1/capsules/{}", sandbox(1))).json();
        (capsule["status"] != json!("running")).then_some(capsule)
    });
    assert_eq!(
        (&capsule["status"], &capsule["status_reason"]),
        (&json!("paused"), &json!("presumed_paused"))
    );
    let audit = world.home.json(&["audit", "--limit", "100"]);
    let accepted = audit.as_array().unwrap().iter().filter(|e| e["action"] == json!("accept"));
    assert_eq!(accepted.count(), 1);
    serving.stop();
    world.home.verify();
}

#[test]
fn a_token_that_the_backup_does_not_know_counts_again_and_a_made_up_one_never_does() {
    let world = World::new();
    let serving = world.home.serve_restored(&FLAGS);
    world.accept(&serving);
    let status = |token: &Value| refresh(&serving, token).status;

    // Nobody is told to give up while tokens may have been forgotten, and nobody gains.
    assert_eq!(status(&json!("0".repeat(64))), 503);
    assert_eq!(status(&json!("f".repeat(64))), 503);
    assert_eq!(status(&world.newcomer["refresh_token"]), 503, "of a host that is not known");

    // Renewal could be served, so an expired token may be told so.
    assert_eq!(serving.beat(&host(1), &world.home.expired_token(&host(1))).status, 401);
    let [first, second, third] = &world.tokens[..] else { panic!("{:?}", world.tokens) };
    let answer = refresh(&serving, third);
    let next = renewed(&answer);
    assert_eq!(answer.json()["host"]["id"], json!(host(1)));
    serving.logged(&["refresh token", "restored from an older backup"]);
    assert_eq!(status(third), 200, "its answer may have been lost");
    for old in [first, second] {
        assert_eq!(status(old), 503, "what came before has done its work");
    }
    let last = renewed(&refresh(&serving, &next));
    assert_eq!((status(third), status(second)), (503, 503), "used up");
    serving.stop();

    let serving = world.home.serve(&FLAGS);
    assert_eq!(refresh(&serving, &last).status, 200);
    assert_eq!(refresh(&serving, third).status, 503);
    serving.stop();
    world.home.verify();
}

#[test]
fn whoever_follows_events_is_told_that_some_are_undone() {
    let world = World::new();
    let (known, given_out) = world.revisions;
    let serving = world.home.serve_restored(&FLAGS);
    let statuses = || {
        let after = [known, known + 1, given_out, 999_999_999_999];
        after.map(|after| resumed(&serving, after))
    };
    assert_eq!(statuses(), [200, 410, 410, 410]);
    world.accept(&serving);
    let drain = format!("/v1/hosts/{}/drain", host(1));
    assert_eq!(serving.post(&drain, &json!({})).status, 200);
    let newest = world.home.revision();
    assert!(newest > given_out + 1_000_000, "{newest}");
    assert_eq!(statuses(), [200, 410, 410, 410]);
    assert_eq!(resumed(&serving, newest), 200);
    let events = world.home.json(&["events", "--after", &known.to_string()]);
    let reasons: Vec<u64> =
        events.as_array().unwrap().iter().map(|e| e["revision"].as_u64().unwrap()).collect();
    assert!(reasons[0] > given_out && reasons.is_sorted(), "{reasons:?}");

    // The history from before counts by its entries, not by the numbers that were left out.
    serving.stop();
    let serving = world.home.serve(&["--events-keep-count", "1000"]);
    let all = world.home.json(&["events", "--after", "0", "--limit", "1000"]);
    assert_eq!(all[0]["revision"], json!(1), "{all}");
    serving.stop();
    world.home.verify();
}

/// What was made after the backup is somebody's work, whatever shall be done with zombies.
#[test]
fn what_a_restore_has_forgotten_is_reported_and_never_destroyed() {
    let fleet = sim_fleet(1, 0);
    let agent = &fleet.hosts()[0];
    let home = Home::with(&json!({"hosts": [{"id": agent.id().to_string(), "status": "online",
        "address": agent.address().to_string(), "heartbeat_age_s": 5}],
        "sandboxes": [{"id": sandbox(1), "host_id": agent.id().to_string(), "status": "stopped",
            "status_reason": "requested", "status_age_s": 600}]}));
    let out = tempfile::tempdir().unwrap();
    let copy = out.path().join("copy");
    let copy = copy.to_str().unwrap();
    home.roost(&["db", "backup", copy]).ok();
    home.roost(&["db", "restore", copy]).ok();
    home.roost(&["db", "accept"]).ok();
    // A user has stopped 1, and nobody knows of 2.
    let old = Duration::from_secs(600);
    let [stopped, forgotten] = [1, 2].map(SandboxId::from_u128);
    [stopped, forgotten].into_iter().for_each(|id| agent.put(id, SimState::Running, old));

    let flags = [&FLAGS[..], &["--zombies", "destroy", "--transient-grace", "1s"]].concat();
    let serving = home.serve(&flags);
    assert!(agent.wait_state(stopped, None, PATIENCE), "what is known to be over is destroyed");
    let reported = eventually("a report", || {
        let events = home.json(&["events", "--limit", "100", "--sandbox", &sandbox(2)]);
        events.get(0).cloned()
    });
    assert_eq!(reported["kind"], json!("sandbox.forgotten"), "{reported}");
    assert!(reported["reason"].as_str().unwrap().contains("restore"), "{reported}");
    let asked = agent.calls(Method::List);
    assert!(agent.wait_calls(Method::List, asked + 3, PATIENCE));
    assert_eq!(agent.calls_of(Method::Destroy, forgotten), 0);
    assert_eq!(serving.metric("roost_zombies"), 1);
    serving.stop();
    assert_eq!(agent.state(forgotten), Some(SimState::Running));

    // A day later what is recorded stays forgotten; what turns up only then is a zombie.
    let conn = Connection::open(home.path("roost.db")).unwrap();
    conn.execute_batch("UPDATE restores SET accepted_at = accepted_at - 90000000").unwrap();
    drop(conn);
    let late = SandboxId::from_u128(3);
    agent.put(late, SimState::Running, old);
    let serving = home.serve(&flags);
    assert!(agent.wait_state(late, None, PATIENCE));
    assert_eq!(agent.state(forgotten), Some(SimState::Running));
    serving.stop();
    home.verify();
}

#[test]
fn a_database_that_was_not_restored_has_nothing_to_accept() {
    let home = Home::new();
    assert!(home.roost(&["db", "accept"]).stderr.contains("no database"));
    home.roost(&["db", "init"]).ok();
    assert!(home.roost(&["db", "accept"]).ok().contains("nothing was to do"));
    let serving = home.serve(&[]);
    let answer = serving.post("/v1/database/accept", &json!({}));
    assert_eq!((answer.status, answer.json()), (200, json!({"restored": false})));
}
