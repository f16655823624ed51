//! Owns what clients need beside the operations themselves: answers that are held until an
//! operation has finished, creates that can be repeated, pings.
//!
//! Never: what becomes of an operation, which the rest of these tests show.

use crate::support::client::Answer;
use crate::support::eventually;
use crate::world::{World, refusal};
use crate::{says, slow};
use roost::agent::wire::{ConnectCode, Method};
use roost::sim::{Faults, Habits};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const WAIT: [(&str, &str); 1] = [("Prefer", "wait=60")];
const WAITING: &str = "roost_http_requests_waiting";

/// The status code of an answer, the preference that counted, and the capsule's status.
fn brief(answer: &Answer) -> (u16, Option<&str>, String) {
    let status = match answer.body.as_str() {
        "" => String::new(),
        _ => answer.json()["status"].as_str().unwrap_or("none").to_owned(),
    };
    (answer.status, answer.header("preference-applied"), status)
}

fn held(status: u16, capsule: &str) -> (u16, Option<&'static str>, String) {
    (status, Some("wait=60"), capsule.to_owned())
}

fn id_of(answer: &Answer) -> String {
    answer.json()["id"].as_str().unwrap().to_owned()
}

/// Asks for `pause`, `resume` or `destroy` of a capsule.
fn ask(world: &World, id: &str, verb: &str, headers: &[(&str, &str)]) -> Answer {
    match verb {
        "destroy" => world.api.send("DELETE", &format!("/v1/capsules/{id}"), headers, ""),
        verb => world.api.send("POST", &format!("/v1/capsules/{id}/{verb}"), headers, ""),
    }
}

/// Waits until no operation is in flight: what a stop cuts is not what these tests are about.
fn settle(world: &World) {
    eventually("every operation ends", || {
        let (_, listed) = world.api.ask("GET", "/v1/capsules", &Value::Null);
        let transient = |one: &Value| {
            ["starting", "pausing", "resuming", "stopping"]
                .contains(&one["status"].as_str().unwrap())
        };
        (!listed.as_array().unwrap().iter().any(transient)).then_some(())
    });
}

fn create(world: &World, headers: &[(&str, &str)]) -> Answer {
    world.api.send("POST", "/v1/capsules", headers, "{}")
}

#[test]
fn an_answer_is_held_until_the_operation_has_finished() {
    let takes = Duration::from_millis(300);
    let habits = Habits {
        create_takes: takes,
        pause_takes: takes,
        resume_takes: takes,
        destroy_takes: takes,
        ..Habits::default()
    };
    let world = World::with(1, habits, &[]);
    let made = create(&world, &WAIT);
    assert_eq!(brief(&made), held(201, "running"));
    assert!(made.json()["started_at"].is_string(), "{made:?}");
    let id = id_of(&made);
    assert_eq!(brief(&ask(&world, &id, "pause", &WAIT)), held(200, "paused"));
    assert_eq!(brief(&ask(&world, &id, "resume", &WAIT)), held(200, "running"));
    assert_eq!(brief(&ask(&world, &id, "destroy", &WAIT)), held(204, ""));
    assert_eq!(world.api.capsule(&id)["status"], "stopped");
    assert_eq!(brief(&ask(&world, &id, "destroy", &WAIT)), held(204, ""), "nothing is left to do");
    let refused = ask(&world, &id, "pause", &WAIT);
    assert_eq!((refused.refusal().0, refused.header("preference-applied")), (409, None));
    world.end(&[]);
}

/// What failed is told by the capsule's status: 0.1.2 of the SDK reads nothing else.
#[test]
fn a_failure_that_was_waited_for_is_in_the_status() {
    let world = World::new(1);
    for (method, verb, status, code) in [
        (Method::Create, "create", "error", 201),
        (Method::Pause, "pause", "running", 200),
        (Method::Resume, "resume", "paused", 200),
    ] {
        let before = if verb == "resume" { "paused" } else { "running" };
        let id = (verb != "create").then(|| world.capsule(before));
        world.fault(0, says(method, ConnectCode::Internal));
        let answer = match &id {
            None => create(&world, &WAIT),
            Some(id) => ask(&world, id, verb, &WAIT),
        };
        assert_eq!(brief(&answer), held(code, status), "{verb}");
        world.fault(0, Faults::default());
    }
    world.end(&[]);
}

#[test]
fn what_takes_longer_is_answered_as_usual() {
    let world = World::with(1, slow(Method::Create), &[]);
    for (prefer, applied) in [("wait=1", Some("wait=1")), ("wait=0", Some("wait=0"))] {
        let answer = create(&world, &[("Prefer", prefer)]);
        assert_eq!(brief(&answer), (202, applied, "starting".to_owned()));
    }
    for ignored in ["wait=soon", "wait=-1", "respond-async", "return=representation"] {
        let answer = create(&world, &[("Prefer", ignored)]);
        assert_eq!(brief(&answer), (202, None, "starting".to_owned()), "{ignored}");
    }
    world.host(0).set_habits(Habits::default());
    settle(&world);
    world.end(&[]);
}

#[test]
fn the_configuration_holds_every_answer_from_one_moment_to_the_next() {
    let world = World::new(1);
    let accepted = (202, None, "starting".to_owned());
    assert_eq!(brief(&create(&world, &[])), accepted);
    world.reload("answers = \"when_done\"\n", &["answers: changed"]);
    let made = create(&world, &[]);
    assert_eq!(brief(&made), (201, None, "running".to_owned()));
    let id = id_of(&made);
    assert_eq!(brief(&ask(&world, &id, "pause", &[])), (200, None, "paused".to_owned()));
    assert_eq!(brief(&ask(&world, &id, "resume", &[])), (200, None, "running".to_owned()));
    assert_eq!(brief(&ask(&world, &id, "destroy", &[])), (204, None, String::new()));
    assert_eq!(brief(&create(&world, &[("Prefer", "respond-async")])), accepted);
    world.reload("answers = \"accepted\"\n", &["answers: changed"]);
    // That line may be the first reload's.
    eventually("answers at once", || (brief(&create(&world, &[])) == accepted).then_some(()));
    settle(&world);
    world.end(&[]);
}

/// Sends a create whose answer is held, and does not read it.
fn held_create(world: &World, key: &str) -> TcpStream {
    let mut stream = TcpStream::connect(world.api.address()).unwrap();
    let request = format!(
        "POST /v1/capsules HTTP/1.1\r\nHost: a\r\nX-API-Key: {key}\r\nPrefer: wait=60\r\n\
         Connection: close\r\nContent-Length: 16\r\n\r\n{{\"memory_mb\": 1}}"
    );
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

fn status_of(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

fn team_key(world: &World) -> String {
    let team = "team-0000000000000000000000007";
    let body = json!({"name": "test", "team_id": team});
    let (code, made) = world.api.ask("POST", "/v1/api-keys", &body);
    assert_eq!(code, 201, "{made}");
    made["key"].as_str().unwrap().to_owned()
}

fn wait_waiting(world: &World, count: u64) {
    eventually("requests that wait", || (world.metric(WAITING) == count).then_some(()));
}

#[test]
fn a_client_that_disconnects_cancels_nothing_and_leaves_its_place() {
    let world = World::with(1, slow(Method::Create), &[]);
    let key = team_key(&world);
    drop(held_create(&world, &key));
    wait_waiting(&world, 0);
    let (_, listed) = world.api.ask("GET", "/v1/capsules", &Value::Null);
    let id = eventually("its capsule", || listed[0]["id"].as_str()).to_owned();
    assert_eq!(listed[0]["status"], "starting");
    world.host(0).set_habits(Habits::default());
    world.api.until(&id, "running");
    world.end(&[]);
}

#[test]
fn one_key_holds_a_quarter_of_the_answers_and_more_are_not_held() {
    let world = World::with(1, slow(Method::Create), &[]);
    let key = team_key(&world);
    let mut waiting: Vec<TcpStream> = (0..64).map(|_| held_create(&world, &key)).collect();
    wait_waiting(&world, 64);
    assert_eq!(status_of(held_create(&world, &key)), "HTTP/1.1 202 Accepted");
    let other = team_key(&world);
    waiting.push(held_create(&world, &other));
    wait_waiting(&world, 65);
    world.host(0).set_habits(Habits::default());
    for stream in waiting {
        assert_eq!(status_of(stream), "HTTP/1.1 201 Created");
    }
    world.end(&[]);
}

#[test]
fn a_stop_answers_who_waits() {
    let mut world = World::with(1, slow(Method::Create), &[]);
    let key = team_key(&world);
    let waiting: Vec<TcpStream> = (0..12).map(|_| held_create(&world, &key)).collect();
    wait_waiting(&world, 12);
    world.begin_stop();
    for stream in waiting {
        assert_eq!(status_of(stream), "HTTP/1.1 202 Accepted");
    }
    world.host(0).set_habits(Habits::default());
    world.stopped();
}

// ---- creates that can be repeated ----

fn once<'a>(key: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&[("Idempotency-Key", key)], more].concat()
}

#[test]
fn a_repeated_create_is_the_same_capsule() {
    let mut world = World::new(1);
    let body = r#"{"memory_mb": 256}"#;
    let send = |world: &World, key: &str, body: &str| {
        world.api.send("POST", "/v1/capsules", &once(key, &[]), body)
    };
    let first = send(&world, "a key", body);
    assert_eq!(first.status, 202);
    let id = id_of(&first);
    world.api.until(&id, "running");
    let again = send(&world, "a key", body);
    assert_eq!((again.status, &again.json()["status"]), (202, &json!("running")), "as it is now");
    assert_eq!(id_of(&again), id);
    let waited = world.api.send("POST", "/v1/capsules", &once("a key", &WAIT), body);
    assert_eq!((brief(&waited), id_of(&waited)), (held(201, "running"), id.clone()));

    for other in ["{}", r#"{"memory_mb": 257}"#, ""] {
        let reused = send(&world, "a key", other);
        assert_eq!(reused.refusal(), (422, "idempotency_key_reused".to_owned()), "{other:?}");
    }
    let (a, b) = (id_of(&send(&world, "b key", body)), id_of(&send(&world, "A key", body)));
    assert!(a != id && b != id && a != b);
    settle(&world);

    world.kill();
    world.start();
    assert_eq!(id_of(&send(&world, "a key", body)), id, "a restart forgets nothing");
    world.api.wish(&id, "destroy");
    world.api.until(&id, "stopped");
    let ended = send(&world, "a key", body);
    assert_eq!((id_of(&ended), &ended.json()["status"]), (id, &json!("stopped")));
    world.end(&[]);
}

#[test]
fn creates_that_are_repeated_at_once_make_one_capsule() {
    let world = World::new(1);
    let ids: Vec<String> = std::thread::scope(|scope| {
        let ask = || id_of(&create(&world, &once("at once", &WAIT)));
        let all: Vec<_> = (0..12).map(|_| scope.spawn(ask)).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let (_, listed) = world.api.ask("GET", "/v1/capsules", &Value::Null);
    assert_eq!(listed.as_array().unwrap().len(), 1);
    world.end(&[]);
}

#[test]
fn keys_of_two_teams_have_nothing_to_do_with_each_other() {
    let world = World::new(1);
    let team = world.api.with_key(&team_key(&world));
    let ids = [&world.api, &team].map(|api| {
        let answer = api.send("POST", "/v1/capsules", &once("same", &WAIT), "{}");
        assert_eq!(answer.status, 201);
        id_of(&answer)
    });
    assert_ne!(ids[0], ids[1]);
    // Another key of the same team shares its scope.
    let sibling = world.api.with_key(&team_key(&world));
    let again = sibling.send("POST", "/v1/capsules", &once("same", &WAIT), "{}");
    assert_eq!(id_of(&again), ids[1]);
    world.end(&[]);
}

#[test]
fn a_create_that_made_nothing_may_be_repeated() {
    let world = World::new(1);
    let body = r#"{"memory_mb": 1000000}"#;
    for _ in 0..2 {
        let answer = world.api.send("POST", "/v1/capsules", &once("k", &[]), body);
        assert_eq!(answer.refusal().1, "no_hosts_available");
    }
    let answer = world.api.send("POST", "/v1/capsules", &once("k", &WAIT), "{}");
    assert_eq!(answer.status, 201, "a refused create has used up no key");
    world.end(&[]);
}

#[test]
fn an_odd_idempotency_key_is_refused_and_makes_nothing() {
    let world = World::new(0);
    let longest = "k".repeat(255);
    for odd in ["", "é", "tab\there", &"k".repeat(256)] {
        let answer = create(&world, &[("Idempotency-Key", odd)]);
        assert_eq!(answer.refusal(), (400, "invalid_request".to_owned()), "{odd:?}");
        assert!(answer.message().contains("Idempotency-Key"), "{}", answer.message());
    }
    let twice = [("Idempotency-Key", "a"), ("idempotency-key", "a")];
    assert_eq!(create(&world, &twice).refusal().0, 400);
    for fine in [longest.as_str(), "a b", "~!\"#,;="] {
        let answer = create(&world, &[("Idempotency-Key", fine)]);
        assert_eq!(answer.refusal().1, "no_hosts_available", "{fine:?}");
    }
    world.end(&[]);
}

// ---- pings ----

#[test]
fn a_ping_is_activity() {
    let mut world = World::new(1);
    let id = world.capsule("running");
    let before = world.api.capsule(&id);
    assert_eq!(world.api.wish(&id, "ping").0, 204);
    let after = world.api.capsule(&id);
    let text = |capsule: &Value| capsule["last_active_at"].as_str().unwrap_or("").to_owned();
    assert!(text(&after) > text(&before), "{before} {after}");
    assert_eq!(after["last_updated"], before["last_updated"], "its status has not changed");
    let (_, listed) = world.api.ask("GET", "/v1/capsules", &Value::Null);
    assert_eq!(listed[0], after);
    world.stop();
    world.start();
    assert_eq!(text(&world.api.capsule(&id)), text(&after), "the last flush has written it");
    // A ping that the agent did not take is none.
    world.fault(0, says(Method::Ping, ConnectCode::Internal));
    assert_eq!(refusal(world.api.wish(&id, "ping"), 502).0, "agent_error");
    assert_eq!(text(&world.api.capsule(&id)), text(&after));
    world.fault(0, Faults::default());
    world.end(&[]);
}

#[test]
fn the_newest_capsule_is_listed_first() {
    let world = World::new(1);
    let mut made: Vec<String> = (0..8).map(|_| id_of(&create(&world, &WAIT))).collect();
    made.reverse();
    let (_, listed) = world.api.ask("GET", "/v1/capsules", &Value::Null);
    let listed: Vec<&str> =
        listed.as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect();
    assert_eq!(listed, made);
    world.end(&[]);
}

#[test]
fn numbers_out_of_range_are_refused_in_the_same_words() {
    let world = World::new(0);
    for (field, least) in [("timeout_sec", 0), ("vcpus", 1), ("memory_mb", 1), ("disk_size_mb", 1)]
    {
        for wrong in [json!(-1), json!(1u64 << 31), json!(4_294_967_295u64), json!("1"), json!(0.5)]
        {
            let (code, message) = refusal(world.api.create(&json!({field: wrong})), 400);
            let expected = format!("{field} must be a whole number from {least} to 2147483647");
            assert_eq!((code.as_str(), message), ("invalid_request", expected), "{wrong}");
        }
    }
    let (code, message) = refusal(world.api.create(&json!({"metadata": {"a": "b"}})), 400);
    assert_eq!(code, "invalid_request");
    assert!(message.starts_with("metadata: "), "{message}");
    for nothing in [json!({"metadata": {}}), json!({"metadata": null})] {
        assert_eq!(refusal(world.api.create(&nothing), 503).0, "no_hosts_available");
    }
    world.end(&[]);
}
