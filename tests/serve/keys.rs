//! Owns what keys open: how they are made, shown once and taken back, and that two teams
//! never see each other's things on any path.
//!
//! Never: the audit log's own paging and filters.

use crate::support::client::Answer;
use crate::support::server::Serving;
use crate::support::{Home, PATIENCE, eventually, host, sandbox, sim_fleet};
use roost::model::id::{KeyId, PLATFORM_TEAM, TeamId};
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Instant;

/// The id of team number `n`; 0 is the platform's.
pub(crate) fn team(n: u128) -> String {
    TeamId::from_u128(PLATFORM_TEAM.as_u128() + n).to_string()
}

/// A key as its holder and the operator know it.
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) text: String,
}

impl Serving {
    /// Makes a key for a team.
    pub(crate) fn make_key(&self, name: &str, team: &str) -> Key {
        let made = self.post("/v1/api-keys", &json!({"name": name, "team_id": team}));
        assert_eq!(made.status, 201, "{made:?}");
        let made = made.json();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        Key { id: text(&made["api_key"]["id"]), text: text(&made["key"]) }
    }

    /// Asks with a key.
    pub(crate) fn ask_as(&self, key: &str, method: &str, path: &str, body: &Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.ask(method, path, &[("X-API-Key", key)], &body)
    }

    pub(crate) fn get_as(&self, key: &str, path: &str) -> Answer {
        self.ask_as(key, "GET", path, &Value::Null)
    }

    fn delete(&self, path: &str) -> Answer {
        self.ask_as(self.key(), "DELETE", path, &Value::Null)
    }
}

fn reader(home: &Home) -> Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    Connection::open_with_flags(home.path("roost.db"), flags).unwrap()
}

/// When the database says that the only key was last used.
fn used_on_disk(home: &Home) -> Option<i64> {
    reader(home).query_row("SELECT last_used_at FROM api_keys", [], |row| row.get(0)).unwrap()
}

fn ids(list: &Answer) -> BTreeSet<String> {
    assert_eq!(list.status, 200, "{list:?}");
    let list = list.json();
    list.as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
}

fn set(ids: &[String]) -> BTreeSet<String> {
    ids.iter().cloned().collect()
}

const UNAUTHORIZED: (u16, &str) = (401, "unauthorized");
const FORBIDDEN: (u16, &str) = (403, "forbidden");
const NOT_FOUND: (u16, &str) = (404, "not_found");

fn assert_refused(answer: &Answer, expected: (u16, &str), what: &str) {
    let (status, code) = answer.refusal();
    assert_eq!((status, code.as_str()), expected, "{what}: {answer:?}");
}

#[test]
fn a_key_is_shown_once_and_opens_until_it_is_revoked() {
    let home = Home::new();
    let serving = home.serve(&[]);
    let made = serving.post("/v1/api-keys", &json!({"name": "ci of edge", "x": [1]}));
    assert_eq!(made.status, 201, "{made:?}");
    let made = made.json();
    let (key, api_key) = (made["key"].as_str().unwrap(), &made["api_key"]);
    assert!(key.starts_with("roost_") && key.len() == 6 + 64, "{key}");
    let id = api_key["id"].as_str().unwrap();
    assert!(id.parse::<KeyId>().is_ok(), "{id}");
    let expected = json!({"id": id, "name": "ci of edge", "team_id": team(0),
        "key_suffix": &key[66..], "created_at": api_key["created_at"]});
    assert_eq!(*api_key, expected);
    assert_eq!(made.as_object().unwrap().len(), 2);

    let list = serving.get("/v1/api-keys");
    assert_eq!((list.status, list.json()), (200, json!([expected])));
    assert_eq!(serving.get_as(key, "/v1/hosts").status, 200);
    for wrong in [&key[..69], &format!("{key}0"), &key[6..], &key.to_uppercase(), "roost_"] {
        assert_refused(&serving.get_as(wrong, "/v1/hosts"), UNAUTHORIZED, wrong);
    }

    let path = format!("/v1/api-keys/{id}");
    let revoked = serving.delete(&path);
    assert_eq!((revoked.status, revoked.body.as_str()), (204, ""));
    assert_refused(&serving.get_as(key, "/v1/hosts"), UNAUTHORIZED, "at once");
    assert_refused(&serving.delete(&path), NOT_FOUND, "twice");
    assert_eq!(serving.get("/v1/api-keys").json(), json!([]));

    let entries = serving.get(&format!("/v1/audit?resource_id={id}")).json();
    let entry = |n: usize, action: &str, status: &str| {
        let entry = &entries["items"][n];
        json!({"id": entry["id"], "team_id": team(0), "actor_type": "api_key",
            "actor_name": "admin", "resource_type": "api_key", "resource_id": id,
            "action": action, "scope": "team", "status": status,
            "metadata": {"name": "ci of edge", "suffix": &key[66..]},
            "created_at": entry["created_at"]})
    };
    let expected = json!({"items": [entry(0, "revoke", "warning"), entry(1, "create", "success")]});
    assert_eq!(entries, expected);
    assert!(!serving.log().join("\n").contains(&key[6..66]), "no key in the log");
    serving.stop();
    home.verify();
}

#[test]
fn the_database_holds_the_hash_only_and_a_dump_not_even_that() {
    let home = Home::new();
    let serving = home.serve(&[]);
    let key = serving.make_key("ci", &team(1));
    assert_eq!(serving.get_as(&key.text, "/v1/hosts").status, 200);
    let hash: [u8; 32] =
        reader(&home).query_row("SELECT hash FROM api_keys", [], |row| row.get(0)).unwrap();
    assert_eq!(hash, roost::api::secret::hash(&key.text));
    serving.kill();
    for file in std::fs::read_dir(home.dir()).unwrap().map(|file| file.unwrap().path()) {
        let bytes = std::fs::read(&file).unwrap();
        let secret = &key.text.as_bytes()[6..];
        assert!(!bytes.windows(secret.len()).any(|part| part == secret), "{}", file.display());
    }
    home.verify();
    let (dump, copy) = (home.dump(), Home::new());
    assert!(!dump.to_string().contains(&key.id), "a fixture is a fleet, without its keys");
    copy.load(&dump);
    copy.verify();
}

#[test]
fn keys_survive_what_a_server_survives() {
    let home = Home::new();
    let serving = home.serve(&[]);
    let (kept, revoked) = (serving.make_key("kept", &team(1)), serving.make_key("old", &team(1)));
    serving.delete(&format!("/v1/api-keys/{}", revoked.id));
    serving.kill();
    let serving = home.serve(&[]);
    assert_eq!(serving.get_as(&kept.text, "/v1/capsules").status, 200);
    assert_refused(&serving.get_as(&revoked.text, "/v1/capsules"), UNAUTHORIZED, "revoked");
    assert_eq!(ids(&serving.get("/v1/api-keys")), set(&[kept.id]));
}

#[test]
fn a_used_key_costs_no_transaction() {
    let home = Home::new();
    let serving = home.serve(&["--heartbeat-flush", "5m", "--probe-interval", "5m"]);
    let key = serving.make_key("ci", &team(1));
    let listed = || serving.get("/v1/api-keys").json()[0]["last_used_at"].clone();
    assert_eq!(listed(), Value::Null, "left out");
    let commits = serving.metric("roost_commits_total");
    for _ in 0..50 {
        assert_eq!(serving.get_as(&key.text, "/v1/capsules").status, 200);
    }
    assert_eq!(serving.metric("roost_commits_total"), commits);
    assert!(listed().as_str().unwrap().ends_with('Z'), "memory knows");
    assert_eq!(used_on_disk(&home), None, "the disk does not yet");
    let used = listed();
    serving.stop();
    assert!(used_on_disk(&home).is_some(), "a stop writes it with the heartbeats");
    let serving = home.serve(&[]);
    assert_eq!(serving.get("/v1/api-keys").json()[0]["last_used_at"], used);
}

#[test]
fn the_use_of_a_key_is_written_with_the_heartbeats() {
    let home = Home::new();
    let serving = home.serve(&["--heartbeat-flush", "100ms"]);
    let key = serving.make_key("ci", &team(1));
    serving.get_as(&key.text, "/v1/capsules");
    let first = eventually("a flush", || used_on_disk(&home));
    serving.get_as(&key.text, "/v1/capsules");
    let commits = serving.metric("roost_commits_total");
    eventually("another flush", || {
        (serving.metric("roost_commits_total") > commits + 1).then_some(())
    });
    assert_eq!(used_on_disk(&home), Some(first), "once a minute is enough");
}

/// Two teams and the platform. Sandbox `10 * team + n` is that team's, host `team + 1` too;
/// sandboxes whose number ends in 1 are on the platform's host, as are those that are over.
fn fleet() -> Value {
    let row = |n: u128| {
        json!({"id": host(n + 1), "team_id": team(n), "status": "online", "heartbeat_age_s": 1,
            "address": "127.0.0.1:1", "cpu_cores": 8, "memory_mb": 8192})
    };
    let capsule = |n: u128, last: u128, on: u128, status: &str| {
        json!({"id": sandbox(10 * n + last), "team_id": team(n), "host_id": host(on),
            "status": status})
    };
    let capsules = [
        capsule(0, 1, 1, "running"),
        capsule(1, 1, 1, "running"),
        capsule(2, 1, 1, "running"),
        capsule(1, 2, 2, "running"),
        capsule(2, 3, 3, "running"),
        capsule(1, 8, 1, "stopped"),
        capsule(2, 9, 1, "stopped"),
    ];
    json!({"hosts": [row(0), row(1), row(2)], "sandboxes": capsules})
}

/// A server with that fleet, which nothing changes by itself.
fn quiet(home: &Home) -> Serving {
    home.load(&fleet());
    home.serve(&["--probe-interval", "5m", "--startup-grace", "30m"])
}

#[test]
fn a_team_sees_its_own_capsules_and_hosts_only() {
    let home = Home::new();
    let serving = quiet(&home);
    let keys = [serving.make_key("one", &team(1)).text, serving.make_key("two", &team(2)).text];
    let capsules = |n: u128| [sandbox(10 * n + 1), sandbox(10 * n + n + 1)];
    for (n, key) in (1..).zip(&keys) {
        let get = |path: &str| serving.get_as(key, path);
        let own = capsules(n);
        assert_eq!(ids(&get("/v1/capsules")), set(&own));
        let over = sandbox(10 * n + 7 + n);
        assert_eq!(ids(&get("/v1/capsules?all=true")), set(&[&own[..], &[over]].concat()));
        let here = format!("/v1/capsules?host_id={}", host(1));
        assert_eq!(ids(&get(&here)), set(&own[..1]));
        assert_eq!(ids(&get("/v1/hosts")), set(&[host(n + 1)]));
        let shown = get(&format!("/v1/hosts/{}", host(n + 1))).json();
        assert_eq!(shown["team_id"], json!(team(n)));
        for other in [1, 2, 3].into_iter().filter(|other| *other != n + 1) {
            let answer = get(&format!("/v1/hosts/{}", host(other)));
            assert_eq!(answer.refusal(), get(&format!("/v1/hosts/{}", host(9))).refusal());
        }
    }
    let all: Vec<String> = (0..3).flat_map(capsules).collect();
    assert_eq!(ids(&serving.get("/v1/capsules")), set(&all), "the admin sees everything");
    assert_eq!(ids(&serving.get("/v1/hosts")).len(), 3);
}

#[test]
fn another_teams_capsule_is_like_one_that_was_never_there() {
    let home = Home::new();
    let serving = quiet(&home);
    let key = serving.make_key("one", &team(1)).text;
    let revision = serving.metric("roost_revision");
    let doors = [("GET", ""), ("POST", "/pause"), ("POST", "/resume"), ("POST", "/ping")];
    for (method, verb) in doors.into_iter().chain([("DELETE", "")]) {
        let ask = |id: &str| {
            serving.ask_as(&key, method, &format!("/v1/capsules/{id}{verb}"), &Value::Null)
        };
        let without_date = |answer: Answer| (answer.status, answer.body);
        let unknown = ask(&sandbox(99));
        assert_refused(&unknown, NOT_FOUND, verb);
        let unknown = without_date(unknown);
        let long = "cl-".to_owned() + &"0".repeat(3000);
        for id in [sandbox(1), sandbox(21), sandbox(23), host(1), long] {
            assert_eq!(without_date(ask(&id)), unknown, "{method} {id}{verb}");
        }
        // Its own is there. Nobody answers at its host's address, and that is told.
        let own = ask(&sandbox(12)).status;
        assert_ne!(own, 404, "{method} {verb}");
    }
    let events = home.json(&["events", "--limit", "1000"]);
    let events = events.as_array().unwrap().iter();
    let since = events.filter(|event| event["revision"].as_u64() > Some(revision));
    let touched: BTreeSet<&str> = since.filter_map(|event| event["team_id"].as_str()).collect();
    assert_eq!(touched, BTreeSet::from([team(1).as_str()]), "nobody else's was touched");
}

#[test]
fn what_a_key_does_is_in_its_name() {
    let home = Home::new();
    let serving = quiet(&home);
    let key = serving.make_key("deploy bot", &team(1));
    let other = serving.make_key("other", &team(2));
    let path = format!("/v1/capsules/{}", sandbox(12));
    assert_eq!(serving.ask_as(&key.text, "DELETE", &path, &Value::Null).status, 202);
    serving.post(&format!("/v1/capsules/{}/pause", sandbox(23)), &json!({}));
    let items = |key: &str, query: &str| {
        serving.get_as(key, &format!("/v1/audit{query}")).json()["items"].clone()
    };
    let mine = items(&key.text, "");
    let teams = |items: &Value| -> BTreeSet<String> {
        let items = items.as_array().unwrap().iter();
        items.map(|entry| entry["team_id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(teams(&mine), set(&[team(1)]));
    let destroy = &mine[0];
    assert_eq!(destroy["action"], json!("destroy"));
    let actor = (&destroy["actor_type"], &destroy["actor_id"], &destroy["actor_name"]);
    assert_eq!(actor, (&json!("api_key"), &json!(key.id), &json!("deploy bot")));
    assert_eq!(teams(&items(&other.text, "")), set(&[team(2)]));
    let foreign = format!("?resource_id={}", sandbox(12));
    assert_eq!(items(&other.text, &foreign), json!([]));
    assert_eq!(items(&other.text, &format!("?actor_id={}", key.id)), json!([]));
    assert!(teams(&items(serving.key(), "")).is_superset(&set(&[team(1), team(2)])));
}

#[test]
fn only_the_admin_key_manages_keys_and_hosts() {
    let home = Home::new();
    let serving = quiet(&home);
    let key = serving.make_key("one", &team(1));
    let own = |verb: &str| format!("/v1/hosts/{}{verb}", host(2));
    let before = (serving.get("/v1/hosts").json(), serving.get("/v1/audit").json());
    for (method, path) in [
        ("GET", "/v1/api-keys".to_owned()),
        ("POST", "/v1/api-keys".to_owned()),
        ("DELETE", format!("/v1/api-keys/{}", key.id)),
        ("DELETE", "/v1/api-keys/x".to_owned()),
        ("POST", "/v1/hosts".to_owned()),
        ("POST", own("/token")),
        ("POST", own("/drain")),
        ("POST", own("/undrain")),
        ("POST", own("/offline")),
    ] {
        let body = json!({"name": "mine"});
        let answer = serving.ask_as(&key.text, method, &path, &body);
        assert_refused(&answer, FORBIDDEN, &path);
        assert_eq!(answer.message(), "this needs the admin key");
        assert_refused(&serving.ask(method, &path, &[], "{}"), UNAUTHORIZED, &path);
    }
    assert_eq!((serving.get("/v1/hosts").json(), serving.get("/v1/audit").json()), before);
    assert_eq!(ids(&serving.get("/v1/api-keys")), set(&[key.id]));
}

#[test]
fn a_capsule_goes_to_its_teams_hosts_or_the_platforms() {
    let home = Home::new();
    // Agents that carry creates out: a host that refuses one is avoided for a while.
    let (agents, mut fleet) = (sim_fleet(3, 0), fleet());
    for (host, agent) in fleet["hosts"].as_array_mut().unwrap().iter_mut().zip(agents.hosts()) {
        host["address"] = json!(agent.address().to_string());
    }
    home.load(&fleet);
    let serving = home.serve(&["--probe-interval", "5m", "--startup-grace", "30m"]);
    let keys = [1, 2].map(|n| serving.make_key("placing", &team(n)).text);
    let places = |key: &str, body: Value| -> BTreeSet<String> {
        let create = |_| {
            let made = serving.ask_as(key, "POST", "/v1/capsules", &body);
            assert_eq!(made.status, 202, "{made:?}");
            let made = made.json();
            let expected = body["team_id"].as_str().map(str::to_owned);
            assert!(expected.is_none_or(|team| made["team_id"] == team), "{made}");
            made["host_id"].as_str().unwrap().to_owned()
        };
        (0..4).map(create).collect()
    };
    assert_eq!(places(&keys[0], json!({})), set(&[host(1), host(2)]));
    assert_eq!(places(&keys[1], json!({"team_id": team(2)})), set(&[host(1), host(3)]));
    assert_eq!(places(serving.key(), json!({})), set(&[host(1)]));
    assert_eq!(places(serving.key(), json!({"team_id": team(0)})), set(&[host(1)]));
    assert!(places(serving.key(), json!({"team_id": team(1)})).contains(&host(2)));

    serving.post(&format!("/v1/hosts/{}/drain", host(1)), &json!({}));
    assert_eq!(places(&keys[0], json!({})), set(&[host(2)]));
    let homeless = serving.post("/v1/capsules", &json!({"team_id": team(7)}));
    assert_refused(&homeless, (503, "no_hosts_available"), "others' hosts only");

    let stolen = serving.ask_as(&keys[0], "POST", "/v1/capsules", &json!({"team_id": team(2)}));
    assert_refused(&stolen, FORBIDDEN, "another team's");
    for wrong in [json!("team-1"), json!("host-0000000000000000000000001"), json!(7)] {
        let answer = serving.post("/v1/capsules", &json!({"team_id": wrong}));
        assert_refused(&answer, (400, "invalid_request"), "team_id");
        assert!(answer.message().contains("team_id"), "{answer:?}");
    }
}

#[test]
fn a_host_belongs_to_the_team_it_was_added_for() {
    let home = Home::new();
    let serving = home.serve(&[]);
    let key = serving.make_key("one", &team(1)).text;
    let added = serving.post("/v1/hosts", &json!({"team_id": team(1)})).json();
    assert_eq!(added["host"]["team_id"], json!(team(1)));
    let platform = serving.post("/v1/hosts", &json!({})).json();
    assert_eq!(platform["host"]["team_id"], json!(team(0)));
    let id = added["host"]["id"].as_str().unwrap().to_owned();
    assert_eq!(ids(&serving.get_as(&key, "/v1/hosts")), set(&[id]));
    let wrong = serving.post("/v1/hosts", &json!({"team_id": "team-"}));
    assert_refused(&wrong, (400, "invalid_request"), "team_id");
    assert!(wrong.message().contains("team_id"), "{wrong:?}");
}

#[test]
fn a_wrong_wish_for_a_key_is_told_by_field() {
    let home = Home::new();
    let serving = home.serve(&[]);
    let long = "x".repeat(101);
    for (body, word) in [
        ("", "name"),
        ("{}", "name"),
        (r#"{"name": ""}"#, "name"),
        (r#"{"name": null}"#, "name"),
        (r#"{"name": 5}"#, "name"),
        (r#"{"name": ["a"]}"#, "name"),
        (r#"{"name": "a\nb"}"#, "name"),
        (r#"{"name": "\u001b[31m"}"#, "name"),
        (&format!(r#"{{"name": "{long}"}}"#), "name"),
        (r#"{"name": "a", "team_id": "mine"}"#, "team_id"),
        (r#"{"name": "a", "team_id": 1}"#, "team_id"),
        (r#"{"name": "a", "team_id": "key-0000000000000000000000001"}"#, "team_id"),
        (r#"{"name": "a""#, "JSON"),
        (r#"["a"]"#, "JSON object"),
        ("\u{0}", "JSON"),
    ] {
        let answer = serving.ask("POST", "/v1/api-keys", &[("X-API-Key", serving.key())], body);
        assert_refused(&answer, (400, "invalid_request"), body);
        assert!(answer.message().contains(word), "{body}: {answer:?}");
    }
    assert_eq!(serving.get("/v1/api-keys").json(), json!([]));
    let unknown = KeyId::from_u128(1).to_string();
    let (foreign, long) = (host(1), "key-".to_owned() + &"0".repeat(5000));
    for id in [unknown.as_str(), &foreign, &long, "key-", "%00", "key-000000000000000000000000A"] {
        assert_refused(&serving.delete(&format!("/v1/api-keys/{id}")), NOT_FOUND, id);
    }
    let name = "x".repeat(100);
    assert_eq!(serving.post("/v1/api-keys", &json!({"name": name})).status, 201);
    let put = serving.ask("PUT", "/v1/api-keys", &[("X-API-Key", serving.key())], "");
    assert_refused(&put, (405, "method_not_allowed"), "PUT");
}

#[test]
fn there_is_an_end_to_keys() {
    let home = Home::with(&json!({"hosts": []}));
    let conn = Connection::open(home.path("roost.db")).unwrap();
    conn.execute_batch("BEGIN").unwrap();
    for n in 1..1000_u64 {
        let id = KeyId::from_u128(n.into()).to_string();
        let hash = roost::api::secret::hash(&id).to_vec();
        let sql = "INSERT INTO api_keys VALUES (?1, ?2, ?3, 'old', '0000', ?4, NULL)";
        conn.execute(sql, rusqlite::params![id, hash, team(1), n as i64]).unwrap();
    }
    conn.execute_batch("COMMIT").unwrap();
    drop(conn);
    let serving = home.serve(&[]);
    let last = serving.make_key("last", &team(1));
    let full = serving.post("/v1/api-keys", &json!({"name": "too many"}));
    assert_refused(&full, (409, "too_many_keys"), "1001");
    serving.delete(&format!("/v1/api-keys/{}", KeyId::from_u128(5)));
    serving.make_key("again", &team(1));
    let list = serving.get("/v1/api-keys").json();
    let list = list.as_array().unwrap();
    assert_eq!((list.len(), &list[998]["id"]), (1000, &json!(last.id)), "the oldest first");
}

/// An event stream that is being read.
struct Stream(BufReader<TcpStream>);

impl Stream {
    fn open(serving: &Serving, key: &str, query: &str) -> Stream {
        let mut stream = TcpStream::connect(serving.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!(
            "GET /v1/events{query} HTTP/1.1\r\nHost: roost\r\nConnection: close\r\n\
             X-API-Key: {key}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut stream = Stream(BufReader::new(stream));
        assert!(stream.line().unwrap().starts_with("HTTP/1.1 200 "));
        while stream.line().unwrap() != ": listening" {}
        stream
    }

    /// The next line; `None` at the end.
    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let bytes = self.0.read_line(&mut line).unwrap();
        (bytes > 0).then(|| line.trim_end().to_owned())
    }

    /// The next event's data; `None` when the stream ends before.
    fn event(&mut self) -> Option<Value> {
        let until = Instant::now() + PATIENCE;
        loop {
            // Comments keep a stream without events alive for ever.
            assert!(Instant::now() < until, "neither an event nor the end");
            if let Some(data) = self.line()?.strip_prefix("data: ") {
                return Some(serde_json::from_str(data).unwrap());
            }
        }
    }
}

#[test]
fn a_team_hears_of_its_own_only_live_and_replayed() {
    let home = Home::new();
    let serving = quiet(&home);
    let keys = [1, 2].map(|n| serving.make_key("listening", &team(n)));
    let destroy = |id: String| {
        let path = format!("/v1/capsules/{id}");
        assert_eq!(serving.ask_as(serving.key(), "DELETE", &path, &Value::Null).status, 202);
    };
    let mut live = Stream::open(&serving, &keys[0].text, "");
    let mut all = Stream::open(&serving, serving.key(), "");
    let order = [sandbox(21), sandbox(1), sandbox(11), sandbox(23), sandbox(12)];
    order.iter().cloned().for_each(destroy);
    let heard = |stream: &mut Stream, count: usize| -> Vec<String> {
        let next = |_| stream.event().unwrap()["sandbox_id"].as_str().unwrap().to_owned();
        (0..count).map(next).collect()
    };
    assert_eq!(heard(&mut all, 5), order);
    assert_eq!(heard(&mut live, 2), [sandbox(11), sandbox(12)]);
    let mut replayed = Stream::open(&serving, &keys[1].text, "?after=0");
    assert_eq!(heard(&mut replayed, 2), [sandbox(21), sandbox(23)]);
    let foreign = format!("?after=0&sandbox_id={}", sandbox(12));
    let mut foreign = Stream::open(&serving, &keys[1].text, &foreign);

    // A revoked key hears no more, not even what is its team's.
    serving.delete(&format!("/v1/api-keys/{}", keys[1].id));
    assert_eq!(foreign.event(), None);
    serving.post(&format!("/v1/hosts/{}/drain", host(3)), &json!({}));
    assert_eq!(replayed.event(), None);
    serving.post(&format!("/v1/hosts/{}/drain", host(2)), &json!({}));
    let event = live.event().unwrap();
    assert_eq!((&event["kind"], &event["host_id"]), (&json!("host.intent"), &json!(host(2))));
}

#[test]
fn a_cursor_from_before_the_history_is_told_so_whoever_asks() {
    let home = Home::new();
    home.load(&fleet());
    let conn = Connection::open(home.path("roost.db")).unwrap();
    for revision in 7..=9 {
        let sql = "INSERT INTO events \
                 (revision, at, kind, host_id, sandbox_id, team_id, from_status, to_status, reason, actor) \
                 VALUES (?1, unixepoch() * 1000, 'host.up', ?2, NULL, ?3, \
                   NULL, NULL, 'reported', 'system')";
        conn.execute(sql, rusqlite::params![revision, host(3), team(2)]).unwrap();
    }
    conn.execute("UPDATE state SET revision = 9", []).unwrap();
    drop(conn);
    let serving = home.serve(&["--probe-interval", "5m", "--startup-grace", "30m"]);
    for n in [1, 2] {
        let key = serving.make_key("listening", &team(n)).text;
        let gone = serving.get_as(&key, "/v1/events?after=5");
        assert_eq!((gone.status, &gone.json()["error"]["newest_revision"]), (410, &json!(9)));
        // What is kept, but not the team's, is no reason to begin anew.
        drop(Stream::open(&serving, &key, "?after=6"));
    }
}
