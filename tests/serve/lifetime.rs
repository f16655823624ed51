//! Owns how a server starts, stops and comes back: signals, power cuts, a second server,
//! databases that are not ours, a configuration that changes.
//!
//! Never: what is answered in between, but for what agents hear while it starts and stops.

use crate::support::agents::HungAgent;
use crate::support::client::try_ask;
use crate::support::server::{Serving, listening};
use crate::support::{Done, Home, PATIENCE, eventually, host};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Stdio};

fn fleet(address: Option<String>) -> Value {
    let row = json!({"id": host(1), "status": "online", "address": address, "heartbeat_age_s": 50});
    json!({"hosts": [row]})
}

fn heard_at(home: &Home) -> String {
    let hosts = home.json(&["hosts"]);
    hosts[0]["last_heartbeat_at"].as_str().unwrap().to_owned()
}

/// A server that must refuse to start.
fn refused(home: &Home, flags: &[&str]) -> Done {
    home.roost(&[&["serve", "--listen", "127.0.0.1:0"], flags].concat())
}

#[test]
fn a_stop_writes_what_was_heard() {
    for signal in [Signal::TERM, Signal::INT] {
        let home = Home::with(&fleet(None));
        let mut serving = home.serve(&["--heartbeat-flush", "5m"]);
        let before = heard_at(&home);
        assert_eq!(serving.beat(&host(1), &home.token(&host(1))).status, 204);
        assert_eq!(heard_at(&home), before, "kept in memory");
        serving.signal(signal);
        assert_eq!(serving.wait(), 0, "{:?}", serving.log());
        assert!(heard_at(&home) > before, "written at the stop");
        assert!(serving.log().iter().any(|line| line.ends_with("stopped")));
        assert!(try_ask(serving.address, "GET", "/healthz", &[], "").is_err(), "closed");
        home.verify();
    }
}

#[test]
fn heartbeats_are_written_after_a_while() {
    let home = Home::with(&fleet(None));
    let serving = home.serve(&["--heartbeat-flush", "100ms"]);
    let before = heard_at(&home);
    serving.beat(&host(1), &home.token(&host(1)));
    eventually("a flush", || (heard_at(&home) > before).then_some(()));
}

/// A server that is asked to stop while an agent hangs.
fn stopping(home: &Home, probe_timeout: &str) -> Serving {
    let flags = ["--probe-timeout", probe_timeout, "--probe-interval", "5m"];
    let serving = home.serve(&flags);
    eventually("a probe", || (serving.metric("roost_probes_in_flight") == 1).then_some(()));
    serving.signal(Signal::TERM);
    eventually("the stop", || {
        let answer = serving.get("/readyz");
        (answer.status == 503 && answer.message() == "shutting down").then_some(())
    });
    serving
}

#[test]
fn agents_are_answered_while_it_stops_and_a_second_signal_forces() {
    let hung = HungAgent::start();
    let home = Home::with(&fleet(Some(hung.address())));
    let mut serving = stopping(&home, "5m");
    assert_eq!(serving.beat(&host(1), &home.token(&host(1))).status, 204);
    // A renewal could still be served, but the next one might not: the agent waits.
    let answer = serving.beat(&host(1), &home.expired_token(&host(1)));
    assert_eq!(answer.refusal(), (503, "unavailable".to_owned()));
    serving.signal(Signal::TERM);
    assert_eq!(serving.wait(), 1);
    assert!(serving.log().iter().any(|line| line.contains("second signal")));
    home.verify();
}

#[test]
fn a_stop_does_not_wait_for_an_agent_that_hangs_for_long() {
    let hung = HungAgent::start();
    let home = Home::with(&fleet(Some(hung.address())));
    let mut serving = stopping(&home, "5m");
    assert_eq!(serving.wait(), 0, "{PATIENCE:?} is less than the probe would take");
    home.verify();
}

#[test]
fn a_start_after_a_power_cut_needs_no_hand() {
    let home = Home::new();
    let serving = home.serve(&[]);
    let registered = serving.register("127.0.0.1:1");
    let (id, token) = (registered["host"]["id"].as_str().unwrap(), &registered["token"]);
    serving.kill();
    home.verify();
    let serving = home.serve(&[]);
    let hosts = serving.get("/v1/hosts").json();
    assert_eq!((&hosts[0]["id"], &hosts[0]["status"]), (&json!(id), &json!("online")));
    assert_eq!(serving.beat(id, token.as_str().unwrap()).status, 204);
    serving.stop();
    home.verify();
}

#[test]
fn the_admin_key_stays_the_same() {
    let home = Home::new();
    let first = home.serve(&[]);
    let key = first.key().to_owned();
    first.stop();
    assert_eq!(home.serve(&[]).key(), key);
}

#[test]
fn one_server_at_a_time() {
    let home = Home::new();
    let first = home.serve(&[]);
    let pid = format!("pid {}", first.pid());
    let second = refused(&home, &[]);
    assert_eq!((second.code, second.stdout.as_str()), (1, ""));
    assert!(second.stderr.contains(&pid) && second.stderr.contains("stop it first"), "{second:?}");
    let check = home.roost(&["check"]);
    assert!(check.code == 1 && check.stderr.contains(&pid), "{check:?}");
    assert_eq!(home.roost(&["check", "--dry-run"]).code, 0, "looking is allowed");
    let load = home.load_text("{\"hosts\":[]}");
    assert!(load.code == 1 && load.stderr.contains(&pid), "{load:?}");
    assert_eq!(first.get("/readyz").status, 200, "the first does not mind");
    first.kill();
    home.serve(&[]).stop();
}

#[test]
fn an_address_in_use_is_named() {
    let (home, other) = (Home::new(), Home::new());
    let serving = home.serve(&[]);
    let address = serving.address.to_string();
    let second = other.roost(&["serve", "--listen", &address]);
    assert_eq!(second.code, 1);
    assert!(second.stderr.contains(&address) && second.stderr.contains("--listen"), "{second:?}");
}

fn sql(path: &Path, statement: &str) {
    rusqlite::Connection::open(path).unwrap().execute_batch(statement).unwrap();
}

/// A database that is not ours to open is left as it is, and the line says what to do.
#[test]
fn a_database_that_is_not_ours_is_refused() {
    let check = |make: fn(&Path), words: &[&str]| {
        let home = Home::new();
        home.load(&fleet(None));
        make(&home.path("roost.db"));
        let before = std::fs::read(home.path("roost.db")).unwrap();
        for command in [vec!["serve", "--listen", "127.0.0.1:0"], vec!["status"], vec!["check"]] {
            let done = home.roost(&command);
            assert_eq!((done.code, done.stdout.as_str()), (1, ""), "{command:?} {words:?}");
            assert!(done.stderr.starts_with("roost: could not "), "{done:?}");
            assert_eq!(done.stderr.lines().count(), 1, "{done:?}");
            for word in words {
                assert!(done.stderr.contains(word), "{command:?} {words:?}: {done:?}");
            }
        }
        assert!(std::fs::read(home.path("roost.db")).unwrap() == before, "untouched");
    };
    check(|db| sql(db, "PRAGMA user_version = 99"), &["schema 99", "newer roost"]);
    check(|db| std::fs::write(db, "not a database at all ".repeat(100)).unwrap(), &["damaged"]);
    check(
        |db| {
            std::fs::remove_file(db).unwrap();
            sql(db, "CREATE TABLE theirs (x)");
        },
        &["is not a roost database", "another path"],
    );
    check(|db| sql(db, "PRAGMA application_id = 7"), &["is not a roost database"]);
}

#[test]
fn damage_deep_in_the_file_is_refused_too() {
    let home = Home::with(&fleet(None));
    let db = home.path("roost.db");
    let mut bytes = std::fs::read(&db).unwrap();
    // Every page but the first, which says what the file is.
    bytes[4096..].fill(0xa5);
    std::fs::write(&db, &bytes).unwrap();
    let done = refused(&home, &[]);
    assert!(done.code == 1 && done.stderr.contains("damaged"), "{done:?}");
    assert!(done.stderr.contains("restore a backup"), "{done:?}");
}

#[test]
fn a_data_directory_that_cannot_be_is_named() {
    let home = Home::new();
    home.write("file", "");
    let dir = home.path("file").join("data");
    let db = dir.join("roost.db");
    let done = refused(&home, &["--db", db.to_str().unwrap()]);
    assert!(done.code == 1 && done.stderr.contains(dir.to_str().unwrap()), "{done:?}");
}

#[test]
fn the_database_may_lie_elsewhere() {
    let (home, other) = (Home::new(), Home::new());
    other.write("keep", "");
    let db = other.path("fleet.db");
    let serving = home.serve(&["--db", db.to_str().unwrap()]);
    serving.register("127.0.0.1:1");
    let second = refused(&other, &["--db", db.to_str().unwrap()]);
    assert!(second.code == 1 && second.stderr.contains("pid"), "{second:?}");
    serving.stop();
    assert!(db.exists() && !home.path("roost.db").exists());
    let hosts = home.json(&["hosts", "--db", db.to_str().unwrap()]);
    assert_eq!(hosts.as_array().unwrap().len(), 1);
}

#[test]
fn a_changed_configuration_is_taken_over_on_request() {
    let home = Home::with(&fleet(None));
    home.write("roost.toml", "unreachable_after = \"1h\"\nstartup_grace = \"0s\"\n");
    let serving = home.serve(&[]);
    let status = || serving.get(&format!("/v1/hosts/{}", host(1))).json()["status"].clone();
    assert_eq!(status(), json!("online"));

    home.write("roost.toml", "unreachable_after = \"soon\"\n");
    serving.signal(Signal::HUP);
    let line = serving.logged(&["ERROR", "could not reload", "keeping the old one"]);
    assert!(line.contains("unreachable_after") && line.contains("roost.toml:1"), "{line}");

    home.write("roost.toml", "wrokers = 3\n");
    serving.signal(Signal::HUP);
    serving.logged(&["ERROR", "could not reload", "wrokers"]);
    assert_eq!((status(), serving.get("/readyz").status), (json!("online"), 200));

    home.write("roost.toml", "unreachable_after = \"1s\"\nstartup_grace = \"0s\"\nworkers = 3\n");
    serving.signal(Signal::HUP);
    serving.logged(&["INFO", "unreachable_after: changed"]);
    serving.logged(&["INFO", "workers: changes with the next start"]);
    eventually("the new value counts", || (status() == json!("unreachable")).then_some(()));
    let log = serving.stop();
    assert!(!log.iter().any(|line| line.contains("startup_grace: ")), "unchanged: {log:?}");
}

#[test]
fn heartbeats_are_written_as_often_as_the_newest_configuration_says() {
    let home = Home::with(&fleet(None));
    home.write("roost.toml", "heartbeat_flush = \"5m\"\n");
    let serving = home.serve(&[]);
    serving.beat(&host(1), &home.token(&host(1)));
    let before = heard_at(&home);
    home.write("roost.toml", "heartbeat_flush = \"100ms\"\n");
    serving.signal(Signal::HUP);
    serving.logged(&["heartbeat_flush: changed"]);
    eventually("a flush", || (heard_at(&home) > before).then_some(()));
}

#[test]
fn the_log_can_be_turned_up_while_it_runs() {
    let home = Home::new();
    home.write("roost.toml", "log = \"error\"\n");
    let serving = home.serve(&[]);
    assert_eq!(serving.log(), [] as [&str; 0]);
    // A change is told by the filter that was in force; the next one shows the new one.
    let mut workers = 3..=1024;
    eventually("the new filter", || {
        let workers = workers.next().unwrap();
        let text = format!("log = \"info\"\nlog_format = \"json\"\nworkers = {workers}\n");
        home.write("roost.toml", &text);
        serving.signal(Signal::HUP);
        let log = serving.log();
        log.last().filter(|line| line.starts_with('{')).map(|_| ())
    });
    serving.signal(Signal::TERM);
    let line = serving.logged(&["stopping"]);
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["level"], &line["message"]), (&json!("INFO"), &json!("stopping")));
}

/// The socket listens before the database is open: here a key that does not come keeps the
/// start waiting for as long as the test wants.
#[test]
fn agents_that_knock_during_the_start_are_asked_to_wait() {
    let home = Home::with(&fleet(None));
    let pipe = home.path("host-token.key");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let mut command = home.command(&["serve", "--listen", "127.0.0.1:0"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let address = eventually("a socket that listens", || listening(child.id()));
    let path = format!("/v1/hosts/{}/heartbeat", host(1));
    let token = crate::support::token::signed("secret", &host(1), 60);
    let beat = || try_ask(address, "POST", &path, &[("X-Host-Token", &token)], "").unwrap();
    assert_eq!(beat().refusal(), (503, "unavailable".to_owned()));
    assert_eq!(try_ask(address, "GET", "/healthz", &[], "").unwrap().status, 200);

    std::fs::write(&pipe, "secret\n").unwrap();
    eventually("the database is open", || (beat().status == 204).then_some(()));
    child.kill().unwrap();
    child.wait().unwrap();
}
