//! What goes on behind the page in each scene of `scenes.mjs`.

use crate::browser::{Place, tools};
use crate::days::now_ms;
use crate::support::server::Serving;
use crate::support::{Home, eventually, host, sandbox, sim_fleet};
use crate::troubled::Troubled;
use roost::model::id::{SandboxId, TeamId, TemplateId};
use roost::model::sandbox::SandboxStatus;
use roost::sim::{SimFleet, SimState};
use rusqlite::{Connection, params};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::time::Duration;

/// Nobody is judged silent while a scene plays.
const PATIENT: [&str; 4] = ["--startup-grace", "1h", "--unreachable-after", "1h"];

/// Simulated hosts, and a database that knows them, its sandboxes as `change` leaves them.
fn fleet(hosts: usize, sandboxes: usize, change: &dyn Fn(&mut Value)) -> (SimFleet, Home) {
    fleet_of(hosts, sandboxes, &|all| {
        all["sandboxes"].as_array_mut().unwrap().iter_mut().for_each(change);
    })
}

/// As above, all of it as `change` leaves it.
fn fleet_of(hosts: usize, sandboxes: usize, change: &dyn Fn(&mut Value)) -> (SimFleet, Home) {
    let fleet = sim_fleet(hosts, sandboxes);
    let mut fixture = Vec::new();
    fleet.write_fixture(SandboxStatus::Running, &mut fixture).unwrap();
    let mut fixture: Value = serde_json::from_slice(&fixture).unwrap();
    change(&mut fixture);
    (fleet, Home::with(&fixture))
}

/// Plays a scene in which `want` acts on the server.
fn play(scene: &str, home: &Home, flags: &[&str], want: impl Fn(&Serving, &str)) {
    let Some(tools) = tools() else { return };
    let serving = home.serve(flags);
    tools.play(scene, &Place::of(&serving), |what| want(&serving, what));
    serving.stop();
}

fn nothing(_: &Serving, what: &str) {
    panic!("nobody knows how to {what}");
}

#[test]
fn a_new_user_is_told_what_to_do() {
    play("empty", &Home::new(), &[], |serving, what| match what {
        "register" => drop(serving.register("127.0.0.1:1")),
        other => nothing(serving, other),
    });
}

#[test]
fn the_page_follows_filters_and_acts() {
    let (_fleet, home) = fleet(2, 3, &|_| {});
    play("act", &home, &PATIENT, |serving, what| match what {
        "create" => {
            let answer = serving.post("/v1/capsules", &json!({"vcpus": 7}));
            assert_eq!(answer.status, 202);
        }
        other => nothing(serving, other),
    });
}

/// A team that owns a host and what is on it.
#[test]
fn a_team_with_a_host_of_its_own_looks_and_changes_nothing() {
    let Some(tools) = tools() else { return };
    let team = TeamId::from_u128(1).to_string();
    let (_fleet, home) = fleet_of(2, 3, &|all| {
        all["hosts"][0]["team_id"] = json!(team);
        for row in all["sandboxes"].as_array_mut().unwrap() {
            if row["host_id"] == json!(host(1)) {
                row["team_id"] = json!(team);
            }
        }
    });
    let serving = home.serve(&PATIENT);
    let made = serving.post("/v1/api-keys", &json!({"name": "page", "team_id": team})).json();
    let place = Place { address: serving.address(), key: made["key"].as_str().unwrap().into() };
    tools.play("owner", &place, |what| nothing(&serving, what));
    serving.stop();
}

#[test]
fn a_host_is_set_offline_and_deleted_with_what_it_has() {
    let (_fleet, home) = fleet(2, 3, &|_| {});
    play("hosts", &home, &PATIENT, |serving, what| match what {
        "empty host" => assert_eq!(serving.post("/v1/hosts", &json!({})).status, 201),
        other => nothing(serving, other),
    });
}

#[test]
fn who_did_what_is_read_back_to_the_beginning() {
    let (_fleet, home) = fleet(2, 3, &|_| {});
    play("audit", &home, &PATIENT, |serving, what| match what {
        "much" => {
            for what in ["undrain", "drain"].repeat(60).iter().rev() {
                let path = format!("/v1/hosts/{}/{what}", host(2));
                assert_eq!(serving.post(&path, &json!({})).status, 200);
            }
        }
        other => nothing(serving, other),
    });
}

/// What sandboxes are made from, as an operator sees it and as a team does.
#[test]
fn templates_are_listed_and_added() {
    let Some(tools) = tools() else { return };
    let team = TeamId::from_u128(1).to_string();
    let id = |n| TemplateId::from_u128(n).to_string();
    let (_fleet, home) = fleet_of(2, 1, &|all| {
        all["templates"] = json!([
            {"id": id(1), "name": "python3.12", "vcpus": 2, "memory_mb": 1536, "hosts": [host(1)]},
            {"id": id(2), "name": "deps", "type": "snapshot", "team_id": team,
             "size_bytes": 2u64 << 30, "hosts": [host(1), host(2)]},
        ]);
    });
    let serving = home.serve(&PATIENT);
    tools.play("templates", &Place::of(&serving), |what| match what {
        "add" => {
            let answer = serving.post("/v1/templates", &json!({"name": "node"}));
            assert_eq!(answer.status, 201, "{answer:?}");
        }
        other => nothing(&serving, other),
    });
    let made = serving.post("/v1/api-keys", &json!({"name": "page", "team_id": team})).json();
    let place = Place { address: serving.address(), key: made["key"].as_str().unwrap().into() };
    tools.play("templatesOfATeam", &place, |what| nothing(&serving, what));
    serving.stop();
}

#[test]
fn what_the_database_does_not_know_is_shown() {
    let Some(tools) = tools() else { return };
    let (fleet, home) = fleet(1, 1, &|_| {});
    let stranger = SandboxId::from_u128(77);
    fleet.hosts()[0].put(stranger, SimState::Running, Duration::from_secs(600));
    let quick = ["--probe-interval", "1s", "--confirm-delay", "50ms", "--transient-grace", "1s"];
    let serving = home.serve(&[&PATIENT[..], &quick].concat());
    assert_eq!(serving.beat(&host(77), &home.token(&host(77))).status, 503);
    tools.play("strangers", &Place::of(&serving), |what| nothing(&serving, what));
    serving.stop();
}

/// Hosts that are not there at all.
#[test]
fn verdicts_that_are_held_are_told_above_everything() {
    let silent = |n: u128| json!({"id": host(n), "status": "online", "heartbeat_age_s": 5});
    let hosts: Vec<Value> = (1..=4).map(silent).collect();
    let home = Home::with(&json!({"hosts": hosts, "sandboxes": []}));
    home.write("roost.toml", "startup_grace = \"0s\"\nunreachable_after = \"1s\"\n");
    play("guard", &home, &[], |serving, what| match what {
        "patience" => {
            home.write("roost.toml", "startup_grace = \"0s\"\nunreachable_after = \"1h\"\n");
            serving.signal(Signal::HUP);
        }
        other => nothing(serving, other),
    });
}

#[test]
fn a_database_that_cannot_be_used_is_told_above_everything() {
    let (_fleet, home) = fleet(1, 2, &|_| {});
    let other = RefCell::new(None);
    play("locked", &home, &PATIENT, |serving, what| match what {
        "lock" => {
            let conn = Connection::open(home.path("roost.db")).unwrap();
            conn.execute_batch("BEGIN IMMEDIATE").unwrap();
            other.replace(Some(conn));
        }
        "unlock" => drop(other.take()),
        other => nothing(serving, other),
    });
}

#[test]
fn a_restored_database_is_accepted_after_a_question() {
    let Some(tools) = tools() else { return };
    let (_fleet, home) = fleet(1, 2, &|_| {});
    home.serve(&PATIENT).stop();
    let backup = home.path("backup.db");
    home.roost(&["db", "backup", backup.to_str().unwrap()]).ok();
    home.roost(&["db", "restore", backup.to_str().unwrap()]).ok();
    let serving = home.serve_restored(&PATIENT);
    tools.play("restored", &Place::of(&serving), |what| nothing(&serving, what));
    serving.stop();
}

/// What contrib/try-install looks at on a machine of its own.
#[test]
fn what_is_installed_is_seen() {
    let (_fleet, home) = fleet(1, 1, &|_| {});
    play("installed", &home, &PATIENT, nothing);
}

/// A database as the first release left it.
#[test]
fn what_is_upgraded_is_seen() {
    let home = Home::new();
    std::fs::create_dir(home.dir()).unwrap();
    let conn = Connection::open(home.path("roost.db")).unwrap();
    conn.execute_batch(include_str!("../../src/store/migrations/0001.sql")).unwrap();
    let now = now_ms();
    let team = "team-0000000000000000000000000";
    let state =
        "INSERT INTO state (id, revision, listened_until, created_at) VALUES (1, 0, ?1, ?1)";
    conn.execute(state, [now]).unwrap();
    let insert = "INSERT INTO hosts (id, team_id, type, address, intent, liveness, registered_at, \
         revision, created_at, updated_at) \
         VALUES (?1, ?2, 'regular', '127.0.0.1:9', 'active', 'alive', ?3, 0, ?3, ?3)";
    conn.execute(insert, params![host(1), team, now]).unwrap();
    let insert = "INSERT INTO sandboxes (host_id, id, team_id, status, status_changed_at, \
         revision, created_at) VALUES (?1, ?2, ?3, 'running', ?4, 0, ?4)";
    conn.execute(insert, params![host(1), sandbox(1), team, now]).unwrap();
    conn.execute_batch("PRAGMA application_id = 0x526f6f73; PRAGMA user_version = 1").unwrap();
    drop(conn);
    play("upgraded", &home, &PATIENT, nothing);
}

#[test]
fn a_silent_host_is_told_in_one_sentence() {
    let (_fleet, home) = fleet(1, 12, &|_| {});
    let quick = ["--startup-grace", "10s", "--unreachable-after", "10s"];
    play("silent", &home, &quick, |serving, what| match what {
        "heartbeat" => assert_eq!(serving.beat(&host(1), &home.token(&host(1))).status, 204),
        other => nothing(serving, other),
    });
}

/// A team that owns the sandboxes of the first host, and no host.
#[test]
fn a_team_sees_its_own_and_no_controls_of_hosts() {
    let Some(tools) = tools() else { return };
    let (_fleet, home) = fleet(2, 3, &|row| {
        if row["host_id"] == json!(host(1)) {
            row["team_id"] = json!(TeamId::from_u128(1).to_string());
        }
    });
    let serving = home.serve(&PATIENT);
    let wish = json!({"name": "page", "team_id": TeamId::from_u128(1).to_string()});
    let made = serving.post("/v1/api-keys", &wish).json();
    let (id, key) = (made["api_key"]["id"].as_str().unwrap(), made["key"].as_str().unwrap());
    let place = Place { address: serving.address(), key: key.to_owned() };
    tools.play("team", &place, |what| match what {
        "revoke" => {
            let admin = [("X-API-Key", serving.key())];
            let gone = serving.ask("DELETE", &format!("/v1/api-keys/{id}"), &admin, "");
            assert_eq!(gone.status, 204);
        }
        other => nothing(&serving, other),
    });
    serving.stop();
}

fn create(serving: &Serving) {
    assert_eq!(serving.post("/v1/capsules", &json!({})).status, 202);
}

fn streams(serving: &Serving, wanted: u64) {
    eventually(&format!("{wanted} streams"), || {
        (serving.metric("roost_event_streams") == wanted).then_some(())
    });
}

#[test]
fn any_number_of_tabs_share_one_stream_and_hidden_ones_need_none() {
    let (_fleet, home) = fleet(2, 3, &|_| {});
    play("tabs", &home, &PATIENT, |serving, what| match what {
        "create" => create(serving),
        "one stream" => streams(serving, 1),
        "no stream" => streams(serving, 0),
        other => nothing(serving, other),
    });
}

#[test]
fn the_answers_of_a_proxy_in_front_are_not_the_servers() {
    play_through_kills("gateway");
}

#[test]
fn lists_do_not_wait_for_a_stream_that_a_proxy_keeps() {
    let (_fleet, home) = fleet(2, 3, &|_| {});
    play("kept", &home, &PATIENT, |serving, what| match what {
        "create" => create(serving),
        other => nothing(serving, other),
    });
}

#[test]
fn a_lost_connection_is_seen_and_comes_back() {
    play_through_kills("lost");
}

#[test]
fn events_that_were_given_up_are_not_missed() {
    play_through_kills("pruned");
}

/// Plays a scene in which the server ends and comes back at the same address.
fn play_through_kills(scene: &str) {
    let Some(tools) = tools() else { return };
    let (_fleet, home) = fleet(2, 3, &|_| {});
    let serving = home.serve(&PATIENT);
    let place = Place::of(&serving);
    let address = place.address.to_string();
    let again = [&["serve", "--listen", address.as_str()], PATIENT.as_slice()].concat();
    let mut server = Some(serving);
    tools.play(scene, &place, |what| match (what, server.take()) {
        ("kill", Some(running)) => drop(running.kill()),
        // Ends the stream; what is asked next is answered by the scene.
        ("cut", Some(running)) => {
            running.stop();
            server = Some(home.served(home.command(&again)));
        }
        ("start", None) => server = Some(home.served(home.command(&again))),
        ("restart", Some(running)) => {
            running.kill();
            server = Some(home.served(home.command(&again)));
        }
        ("create", Some(running)) => {
            assert_eq!(running.post("/v1/capsules", &json!({})).status, 202);
            server = Some(running);
        }
        (other, _) => panic!("nobody knows how to {other}"),
    });
    server.unwrap().stop();
}

#[test]
fn a_thousand_hosts_and_fifty_thousand_sandboxes_stay_usable() {
    if tools().is_none() {
        return;
    }
    let hosts: Vec<Value> = (1..=1000)
        .map(|n| json!({"id": host(n), "status": "online", "heartbeat_age_s": 5}))
        .collect();
    let sandboxes: Vec<Value> = (0..50_000)
        .map(|n| {
            let status = if n % 1000 == 999 { "error" } else { "running" };
            json!({"id": sandbox(n + 1), "host_id": host(n / 50 + 1), "status": status})
        })
        .collect();
    let home = Home::with(&json!({"hosts": hosts, "sandboxes": sandboxes}));
    play("crowd", &home, &PATIENT, |serving, what| match what {
        "drain" => {
            let path = format!("/v1/hosts/{}/drain", host(7));
            assert_eq!(serving.post(&path, &json!({})).status, 200);
        }
        other => nothing(serving, other),
    });
}

/// Also makes the pictures of the README when `PAGE_PICTURES` names a directory.
#[test]
fn a_day_with_trouble_reads_well_on_every_screen() {
    if tools().is_some() {
        let troubled = Troubled::start();
        play("day", &troubled.home, &Troubled::FLAGS, nothing);
    }
}
