//! Owns what agents are answered: registration, heartbeats, renewal. Agents obey literally,
//! so every status here is one that an agent lives or dies by.
//!
//! Never: probes or the monitor.

use crate::support::client::Answer;
use crate::support::server::Serving;
use crate::support::token::{claims, forged, now_s};
use crate::support::{Home, eventually, host};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const KNOWN: u128 = 1;
const OTHER: u128 = 2;
const DELETED: u128 = 3;
const UNKNOWN: u128 = 4;

/// Two hosts and one that was deleted. Nobody is probed: they have no address.
fn fleet() -> Value {
    json!({
        "hosts": [
            {"id": host(KNOWN), "status": "online", "heartbeat_age_s": 5},
            {"id": host(OTHER), "status": "online", "heartbeat_age_s": 5},
        ],
        "tombstones": [host(DELETED)],
    })
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn register(serving: &Serving, body: &Value) -> Answer {
    serving.ask("POST", "/v1/hosts/register", &[], &body.to_string())
}

fn refresh(serving: &Serving, token: &Value) -> Answer {
    let body = json!({"refresh_token": token});
    serving.ask("POST", "/v1/hosts/auth/refresh", &[], &body.to_string())
}

/// The refresh token of an answer that must have succeeded.
fn renewed(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["refresh_token"].clone()
}

#[test]
fn a_heartbeat_is_answered_as_the_agent_needs_it() {
    let home = Home::with(&fleet());
    let serving = home.serve(&[]);
    let check = |why: &str, id: &str, token: Option<&str>, expected: (u16, &str)| {
        let headers: Vec<(&str, &str)> = token.map(|t| ("X-Host-Token", t)).into_iter().collect();
        let answer = serving.ask("POST", &format!("/v1/hosts/{id}/heartbeat"), &headers, "{}");
        assert_eq!(answer.refusal(), (expected.0, expected.1.to_owned()), "{why}");
        assert_eq!(answer.header("retry-after").is_some(), answer.status == 503, "{why}");
    };
    let (known, other, deleted, unknown) = (host(KNOWN), host(OTHER), host(DELETED), host(UNKNOWN));
    let genuine = |id: &str| home.token(id);

    check("no token", &known, None, (401, "unauthorized"));
    check("an empty token", &known, Some(""), (401, "unauthorized"));
    check("no token at all", &known, Some("garbage"), (401, "unauthorized"));
    check("dots only", &known, Some("a.b.c"), (401, "unauthorized"));
    check("forged", &known, Some(&forged(&known)), (401, "unauthorized"));
    check("expired", &known, Some(&home.expired_token(&known)), (401, "unauthorized"));
    check("another host's", &other, Some(&genuine(&known)), (403, "forbidden"));
    check("the path of an unknown host", &unknown, Some(&genuine(&known)), (403, "forbidden"));
    check("the path of a deleted host", &deleted, Some(&genuine(&known)), (403, "forbidden"));

    check("unknown", &unknown, Some(&genuine(&unknown)), (503, "unavailable"));
    check("unknown and forged", &unknown, Some(&forged(&unknown)), (503, "unavailable"));
    let expired = home.expired_token(&unknown);
    check("unknown and expired", &unknown, Some(&expired), (503, "unavailable"));

    check("deleted", &deleted, Some(&genuine(&deleted)), (404, "not_found"));
    check("deleted and forged", &deleted, Some(&forged(&deleted)), (401, "unauthorized"));

    // Never 404: the agent would destroy everything for a misspelt path.
    let upper = known.to_uppercase();
    for id in ["host-", "host-1", "cl-0000000000000000000000001", "%20", upper.as_str(), "x"] {
        check(id, id, Some(&genuine(&known)), (400, "invalid_request"));
    }
}

#[test]
fn a_heartbeat_that_counts_is_answered_with_nothing() {
    let home = Home::with(&fleet());
    let serving = home.serve(&[]);
    let before = serving.get(&format!("/v1/hosts/{}", host(KNOWN))).json();
    for body in ["", "{}", "{\"anything\": 1}", "not json"] {
        let path = format!("/v1/hosts/{}/heartbeat", host(KNOWN));
        let token = home.token(&host(KNOWN));
        let answer = serving.ask("POST", &path, &[("X-Host-Token", &token)], body);
        assert_eq!((answer.status, answer.body.as_str()), (204, ""), "{body:?}");
        assert_eq!(answer.header("content-type"), None);
    }
    let after = serving.get(&format!("/v1/hosts/{}", host(KNOWN))).json();
    let beat = |host: &Value| host["last_heartbeat_at"].as_str().unwrap().to_owned();
    assert!(beat(&before) < beat(&after), "{before} {after}");
    let other = serving.get(&format!("/v1/hosts/{}", host(OTHER))).json();
    assert!(beat(&other) < beat(&after), "nobody else was heard");
}

#[test]
fn a_registration_gives_what_an_agent_needs() {
    let home = Home::new();
    let serving = home.serve(&[]);
    let added = serving.post("/v1/hosts", &json!({"type": "metal", "provider": "own"}));
    assert_eq!(added.status, 201);
    let added = added.json();
    assert_eq!(keys(&added), BTreeSet::from(["host", "registration_token"]));
    assert_eq!(added["host"]["status"], json!("pending"));
    let token = added["registration_token"].as_str().unwrap();
    assert!(token.len() == 64 && token.chars().all(|c| c.is_ascii_hexdigit()), "{token}");

    let answer = register(
        &serving,
        &json!({"token": token, "arch": "x86_64", "cpu_cores": 8, "memory_mb": 16384,
            "disk_gb": 200, "address": "127.0.0.1:1", "version": "9", "unknown": {"x": []}}),
    );
    assert_eq!(answer.status, 201, "{answer:?}");
    let mut credentials = answer.json();
    // The host is probed at once, and nobody listens there: it may show already.
    credentials["host"].as_object_mut().unwrap().remove("last_probe");
    // Without mTLS there are no certificates to give, and empty fields are left out.
    assert_eq!(keys(&credentials), BTreeSet::from(["host", "token", "refresh_token"]));
    let host = &credentials["host"];
    let expected = ["id", "type", "status", "liveness", "intent", "degraded", "provider", "arch"];
    let expected = expected.into_iter().chain(["cpu_cores", "memory_mb", "disk_gb", "address"]);
    let expected = expected.chain(["team_id", "last_heartbeat_at", "created_at", "updated_at"]);
    assert_eq!(keys(host), expected.collect());
    assert_eq!(host["status"], json!("online"));
    assert_eq!((&host["cpu_cores"], &host["memory_mb"]), (&json!(8), &json!(16384)));
    assert_eq!((&host["disk_gb"], &host["address"]), (&json!(200), &json!("127.0.0.1:1")));

    let refresh_token = credentials["refresh_token"].as_str().unwrap();
    assert!(refresh_token.len() == 64 && refresh_token.chars().all(|c| c.is_ascii_hexdigit()));
    let token = credentials["token"].as_str().unwrap();
    let id = added["host"]["id"].as_str().unwrap();
    let claims = claims(&home.token_key(), token);
    let issued = claims["iat"].as_i64().unwrap();
    assert!((now_s() - issued).abs() < 120, "{claims}");
    let week = issued + 7 * 24 * 3600;
    let expected =
        json!({"typ": "host", "host_id": id, "sub": id, "iat": issued, "exp": week, "reg": 1});
    assert_eq!(claims, expected, "reg is the revision of the registration");
    assert!(!token.contains('='), "base64url without padding");
    assert_eq!(serving.beat(id, token).status, 204);
}

#[test]
fn a_failed_registration_does_not_use_the_token_up() {
    let home = Home::new();
    let serving = home.serve(&[]);
    let added = serving.post("/v1/hosts", &json!({})).json();
    let token = &added["registration_token"];
    let check = |body: Value, status: u16, code: &str, named: &str| {
        let answer = register(&serving, &body);
        assert_eq!(answer.refusal(), (status, code.to_owned()), "{body}");
        assert!(answer.message().contains(named), "{body}: {}", answer.message());
    };
    let address = "127.0.0.1:1";
    check(json!({"token": "0".repeat(64), "address": address}), 401, "unauthorized", "token");
    check(json!({"token": "", "address": address}), 400, "invalid_request", "token");
    check(json!({"address": address}), 400, "invalid_request", "token");
    check(json!({"token": 7, "address": address}), 400, "invalid_request", "token");
    check(json!({"token": token}), 400, "invalid_request", "address");
    check(json!({"token": token, "address": null}), 400, "invalid_request", "address");
    check(json!({"token": token, "address": ""}), 400, "invalid_request", "address");
    for wrong in ["nowhere", "host:port", "1.2.3.400:1", "a b:1", "ftp://a:1", "a:1\r\nX: y"] {
        check(json!({"token": token, "address": wrong}), 400, "invalid_request", "address");
    }
    let with = |field: &str, value: Value| {
        let mut body = json!({"token": token, "address": address});
        body[field] = value;
        body
    };
    check(with("cpu_cores", json!(-1)), 400, "invalid_request", "cpu_cores");
    check(with("memory_mb", json!("many")), 400, "invalid_request", "memory_mb");
    check(with("disk_gb", json!(1.5)), 400, "invalid_request", "disk_gb");
    check(with("arch", json!(["x"])), 400, "invalid_request", "arch");
    check(json!(["a list"]), 400, "invalid_request", "object");
    let answer = serving.ask("POST", "/v1/hosts/register", &[], "{\"token\":");
    assert_eq!(answer.refusal(), (400, "invalid_request".to_owned()));

    let good = json!({"token": token, "address": address});
    assert_eq!(register(&serving, &good).status, 201, "the token is as good as new");
    assert_eq!(register(&serving, &good).refusal(), (401, "unauthorized".to_owned()), "once");
}

#[test]
fn a_new_registration_token_ends_the_one_before() {
    let home = Home::new();
    let serving = home.serve(&[]);
    let first = serving.post("/v1/hosts", &json!({})).json();
    let id = first["host"]["id"].as_str().unwrap();
    let path = format!("/v1/hosts/{id}/token");
    let second = serving.post(&path, &json!({}));
    assert_eq!(second.status, 201);
    let second = second.json();
    let attempt = |from: &Value| {
        let token = &from["registration_token"];
        register(&serving, &json!({"token": token, "address": "127.0.0.1:1"})).status
    };
    assert_eq!((attempt(&first), attempt(&second)), (401, 201));
    // A host that registers anew is the same host; its old refresh token has ended.
    let again = serving.post(&path, &json!({})).json();
    assert_eq!(again["host"]["id"], json!(id));
    assert_eq!(attempt(&again), 201);
    let hosts = serving.get("/v1/hosts").json();
    assert_eq!(hosts.as_array().unwrap().len(), 1);
}

#[test]
fn a_renewal_costs_nothing_when_its_answer_is_lost() {
    let home = Home::new();
    let serving = home.serve(&[]);
    let registered = serving.register("127.0.0.1:1");
    let id = registered["host"]["id"].as_str().unwrap();
    let first = &registered["refresh_token"];

    let answer = refresh(&serving, first);
    let lost = renewed(&answer);
    assert_eq!(keys(&answer.json()), keys(&registered), "the same shape as register");
    assert_eq!(answer.json()["host"]["id"], json!(id));
    let answer = refresh(&serving, first);
    let second = renewed(&answer);
    let token = answer.json()["token"].as_str().unwrap().to_owned();
    assert_eq!(serving.beat(id, &token).status, 204);
    assert_eq!(BTreeSet::from([first.as_str(), lost.as_str(), second.as_str()]).len(), 3);
    // A heartbeat uses no refresh token: the first is still good.
    renewed(&refresh(&serving, first));

    let third = renewed(&refresh(&serving, &second));
    let unauthorized = (401, "unauthorized".to_owned());
    assert_eq!(refresh(&serving, first).refusal(), unauthorized, "its successor was used");
    assert_eq!(refresh(&serving, &lost).refusal(), unauthorized, "a sibling of the used one");
    renewed(&refresh(&serving, &second));
    renewed(&refresh(&serving, &third));
    // Tokens given out before stay valid for their time.
    let old = registered["token"].as_str().unwrap();
    assert_eq!(serving.beat(id, old).status, 204);
}

#[test]
fn a_renewal_survives_a_restart() {
    let home = Home::new();
    let serving = home.serve(&[]);
    let registered = serving.register("127.0.0.1:1");
    let second = renewed(&refresh(&serving, &registered["refresh_token"]));
    serving.kill();
    let serving = home.serve(&[]);
    renewed(&refresh(&serving, &registered["refresh_token"]));
    renewed(&refresh(&serving, &second));
    assert_eq!(refresh(&serving, &registered["refresh_token"]).status, 401);
}

#[test]
fn what_is_no_refresh_token_is_refused() {
    let home = Home::with(&fleet());
    let serving = home.serve(&[]);
    let check = |token: Value, expected: (u16, &str)| {
        let refusal = refresh(&serving, &token).refusal();
        assert_eq!(refusal, (expected.0, expected.1.to_owned()), "{token}");
    };
    check(json!("garbage"), (401, "unauthorized"));
    check(json!("0".repeat(64)), (401, "unauthorized"));
    check(json!(home.token(&host(KNOWN))), (401, "unauthorized"));
    check(json!(""), (400, "invalid_request"));
    check(json!(null), (400, "invalid_request"));
    check(json!(7), (400, "invalid_request"));
    assert!(refresh(&serving, &json!(null)).message().contains("refresh_token"));
}

/// After a lost or emptied database agents must wait, not give up.
#[test]
fn an_emptied_database_makes_nobody_a_stranger() {
    let home = Home::new();
    let serving = home.serve(&[]);
    let registered = serving.register("127.0.0.1:1");
    let (id, token) = (registered["host"]["id"].as_str().unwrap(), &registered["token"]);
    let token = token.as_str().unwrap();
    assert_eq!(serving.beat(id, token).status, 204);
    serving.stop();
    for name in ["roost.db", "roost.db-wal", "roost.db-shm"] {
        let _ = std::fs::remove_file(home.path(name));
    }

    let check = |serving: &Serving| {
        let unavailable = (503, "unavailable".to_owned());
        assert_eq!(serving.beat(id, token).refusal(), unavailable);
        assert_eq!(serving.beat(id, &forged(id)).refusal(), unavailable);
        let answer = refresh(serving, &registered["refresh_token"]);
        assert_eq!(answer.refusal(), unavailable);
        assert_eq!(serving.get("/v1/hosts").json(), json!([]));
    };
    // The mark beside the keys knows better: an operator must accept it.
    let serving = home.serve_restored(&[]);
    check(&serving);
    serving.stop();

    // The keys are lost as well.
    check(&Home::new().serve(&[]));
}

/// Hosts of another database, or of one that was lost: an operator sees them.
#[test]
fn hosts_that_are_not_in_this_database_are_shown_until_they_are_silent_or_known() {
    let home = Home::with(&fleet());
    let serving = home.serve(&["--heartbeat-flush", "100ms"]);
    assert_eq!(serving.get("/v1/unknown-hosts").json(), json!([]));
    assert_eq!(serving.metric("roost_unknown_hosts"), 0);
    let (lost, foreign) = (host(70), host(71));
    let none = |id: &str, token: &str| {
        assert_eq!(serving.beat(id, token).refusal(), (503, "unavailable".to_owned()));
    };
    none(&foreign, &forged(&foreign));
    none(&lost, &home.token(&lost));
    none(&lost, &forged(&lost));
    let found = serving.get("/v1/unknown-hosts").json();
    let of = |n: usize| (found[n]["host_id"].clone(), found[n]["genuine"].clone());
    assert_eq!(of(0), (json!(lost), json!(true)), "a forged token of its name changes nothing");
    assert_eq!(of(1), (json!(foreign), json!(false)));
    assert_eq!(serving.metric("roost_unknown_hosts"), 2);
    serving.logged(&["WARN", &lost, "a token of this server", "not in this database"]);
    serving.logged(&["WARN", &foreign, "a token of another server", "not in this database"]);
    let key = serving.post("/v1/api-keys", &json!({"name": "one"})).json();
    let key = [("X-API-Key", key["key"].as_str().unwrap())];
    assert_eq!(serving.ask("GET", "/v1/unknown-hosts", &key, "").status, 403);

    // `status` reads the database.
    let status = || home.json(&["status"])["unknown_hosts"].clone();
    let shown = eventually("they are written", || {
        status().as_array().filter(|all| all.len() == 2).cloned()
    });
    assert_eq!(shown[0]["host_id"], json!(lost));
    let text = home.roost(&["status"]).ok();
    assert!(text.contains(&lost) && text.contains("is this the right database?"), "{text}");
    serving.kill();
    let serving = home.serve(&["--heartbeat-flush", "100ms"]);
    assert_eq!(serving.metric("roost_unknown_hosts"), 2, "a restart forgets none");
    serving.stop();

    // One of them is restored to the database; the other has been silent for a day.
    let db = rusqlite::Connection::open(home.path("roost.db")).unwrap();
    let known = format!(
        "INSERT INTO hosts (id, team_id, type, intent, liveness, revision, created_at, updated_at) \
         SELECT '{lost}', team_id, type, intent, liveness, revision, created_at, updated_at \
         FROM hosts LIMIT 1; \
         UPDATE unknown_hosts SET last_seen_at = last_seen_at - 86400000 WHERE host_id = '{foreign}'"
    );
    db.execute_batch(&known).unwrap();
    let serving = home.serve(&["--heartbeat-flush", "100ms"]);
    assert_eq!(serving.get("/v1/unknown-hosts").json(), json!([]));
    let rows = || {
        let sql = "SELECT count(*) FROM unknown_hosts";
        db.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap()
    };
    eventually("their rows are gone", || (rows() == 0).then_some(()));
    serving.stop();
    home.verify();
}

/// Events and audit entries about spent refresh tokens.
fn reuses(home: &Home, serving: &Serving) -> (Vec<Value>, Vec<Value>) {
    let events: Vec<Value> =
        serde_json::from_str(&home.roost(&["events", "--format", "json"]).ok()).unwrap();
    let audit = serving.get("/v1/audit?limit=200").json();
    let entries = audit["items"].as_array().unwrap().clone();
    (
        events.into_iter().filter(|event| event["kind"] == "host.token_reused").collect(),
        entries.into_iter().filter(|entry| entry["action"] == "token_reused").collect(),
    )
}

#[test]
fn a_refresh_token_that_is_shown_after_its_successor_was_is_recorded_and_said() {
    let home = Home::new();
    let serving = home.serve(&["--agent-networks", "127.0.0.0/8"]);
    let seven = crate::keys::team(7);
    let added = serving.post("/v1/hosts", &json!({"team_id": seven})).json();
    let body = json!({"token": added["registration_token"], "address": "127.0.0.1:7"});
    let registered = register(&serving, &body).json();
    let first = &registered["refresh_token"];
    let id = registered["host"]["id"].as_str().unwrap();

    // An agent whose answers get lost shows the same again, and that is right.
    for _ in 0..3 {
        renewed(&refresh(&serving, first));
    }
    let second = renewed(&refresh(&serving, first));
    let third = renewed(&refresh(&serving, &second));
    renewed(&refresh(&serving, &second));
    assert_eq!(refresh(&serving, &json!("0".repeat(64))).status, 401, "of no host");
    assert_eq!(reuses(&home, &serving), (vec![], vec![]));

    for spent in [first, first, first] {
        assert_eq!(refresh(&serving, spent).status, 401);
    }
    let (events, entries) = reuses(&home, &serving);
    assert_eq!((events.len(), entries.len()), (1, 1), "not one for each: {events:?} {entries:?}");
    assert_eq!((&events[0]["host_id"], &events[0]["team_id"]), (&json!(id), &json!(seven)));
    assert_eq!(events[0]["detail"], "at 127.0.0.1:7", "{events:?}");
    assert_eq!((&entries[0]["resource_id"], &entries[0]["team_id"]), (&json!(id), &json!(seven)));
    assert_eq!(entries[0]["status"], "warning");
    let line = serving.logged(&["WARN", "used up", id]);
    assert!(line.contains("127.0.0.1:7") && line.contains(&seven), "{line}");
    assert!(line.contains("roost hosts token"), "what to do: {line}");
    renewed(&refresh(&serving, &third));
}
