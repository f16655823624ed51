//! What goes on behind the page in each scene of `scenes.mjs`.

use crate::browser::{Place, tools};
use crate::support::server::Serving;
use crate::support::{Home, host, sandbox, sim_fleet};
use crate::troubled::Troubled;
use roost::model::id::TeamId;
use roost::model::sandbox::SandboxStatus;
use roost::sim::SimFleet;
use serde_json::{Value, json};

/// Nobody is judged silent while a scene plays.
const PATIENT: [&str; 4] = ["--startup-grace", "1h", "--unreachable-after", "1h"];

/// Simulated hosts, and a database that knows them, its sandboxes as `change` leaves them.
fn fleet(hosts: usize, sandboxes: usize, change: &dyn Fn(&mut Value)) -> (SimFleet, Home) {
    let fleet = sim_fleet(hosts, sandboxes);
    let mut fixture = Vec::new();
    fleet.write_fixture(SandboxStatus::Running, &mut fixture).unwrap();
    let mut fixture: Value = serde_json::from_slice(&fixture).unwrap();
    fixture["sandboxes"].as_array_mut().unwrap().iter_mut().for_each(change);
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
            let answer = serving.post("/v1/capsules", &json!({"template": "tall"}));
            assert_eq!(answer.status, 202);
        }
        other => nothing(serving, other),
    });
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

#[test]
fn a_lost_connection_is_seen_and_comes_back() {
    play_through_kills("lost");
}

#[test]
fn events_that_were_given_up_are_not_missed() {
    play_through_kills("pruned");
}

/// Plays a scene in which the server is killed and comes back at the same address.
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
