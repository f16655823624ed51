//! Owns what a registration means: which machine is a host, and which address is whose.
//!
//! Never: certificates, which `tests/trust` looks at.

use crate::support::client::Answer;
use crate::support::server::Serving;
use crate::support::token::claims;
use crate::support::{Home, eventually, host};
use serde_json::{Value, json};

fn text<'a>(credentials: &'a Value, name: &str) -> &'a str {
    credentials[name].as_str().unwrap()
}

/// Registers a host, known already, at this address.
fn try_register(serving: &Serving, id: &str, address: &str) -> Answer {
    let made = serving.post(&format!("/v1/hosts/{id}/token"), &json!({})).json();
    register_with(serving, text(&made, "registration_token"), address)
}

fn register_with(serving: &Serving, token: &str, address: &str) -> Answer {
    let body = json!({"token": token, "address": address}).to_string();
    serving.ask("POST", "/v1/hosts/register", &[], &body)
}

fn register_again(serving: &Serving, id: &str, address: &str) -> Value {
    let answer = try_register(serving, id, address);
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.json()
}

fn refresh(serving: &Serving, credentials: &Value) -> Answer {
    let body = json!({"refresh_token": credentials["refresh_token"]}).to_string();
    serving.ask("POST", "/v1/hosts/auth/refresh", &[], &body)
}

fn report(serving: &Serving, id: &str, token: &str) -> Answer {
    let body = json!({"event": "sandbox.stopped", "sandbox_id": "cl-0", "host_id": id});
    let header = [("X-Host-Token", token)];
    serving.ask("POST", "/v1/hosts/sandbox-events", &header, &body.to_string())
}

fn registration(home: &Home, token: &str) -> u64 {
    claims(&home.token_key(), token)["reg"].as_u64().unwrap()
}

#[test]
fn a_new_registration_ends_the_old_one() {
    let home = Home::new();
    let serving = home.serve(&[]);
    let first = serving.register("127.0.0.1:1");
    let id = text(&first["host"], "id").to_owned();
    assert_eq!(serving.beat(&id, text(&first, "token")).status, 204);
    let renewed = refresh(&serving, &first).json();
    assert_eq!(
        registration(&home, text(&renewed, "token")),
        registration(&home, text(&first, "token")),
        "a renewal is no registration"
    );

    let second = register_again(&serving, &id, "127.0.0.1:2");
    let newer = registration(&home, text(&second, "token"));
    assert!(newer > registration(&home, text(&first, "token")));
    let refused = |serving: &Serving| {
        for old in [&first, &renewed] {
            let beat = serving.beat(&id, text(old, "token"));
            assert_eq!(beat.refusal(), (401, "unauthorized".to_owned()));
            assert!(beat.message().contains("earlier registration"), "{}", beat.message());
            assert_eq!(report(serving, &id, text(old, "token")).refusal().0, 401);
            assert_eq!(refresh(serving, old).refusal().0, 401);
        }
        assert_eq!(serving.beat(&id, text(&second, "token")).status, 204);
    };
    refused(&serving);
    let renewed = refresh(&serving, &second).json();
    assert_eq!(registration(&home, text(&renewed, "token")), newer);
    serving.kill();
    let serving = home.serve(&[]);
    refused(&serving);
    serving.stop();
    home.verify();
}

#[test]
fn the_old_machine_does_not_keep_its_host_online() {
    let home = Home::new();
    let serving = home.serve(&["--unreachable-after", "1s", "--startup-grace", "0s"]);
    let first = serving.register("127.0.0.1:1");
    let id = text(&first["host"], "id").to_owned();
    register_again(&serving, &id, "127.0.0.1:2");
    eventually("the new machine is silent", || {
        assert_eq!(serving.beat(&id, text(&first, "token")).status, 401);
        let host = serving.get(&format!("/v1/hosts/{id}")).json();
        (host["status"] == "unreachable").then_some(())
    });
    serving.stop();
    home.verify();
}

#[test]
fn tokens_without_a_registration_count_until_the_host_registers_again() {
    let home = Home::with(&json!({"hosts": [{"id": host(1), "status": "online",
        "address": "127.0.0.1:1", "heartbeat_age_s": 5}]}));
    let serving = home.serve(&[]);
    let old = home.token(&host(1));
    assert_eq!(serving.beat(&host(1), &old).status, 204);
    let new = register_again(&serving, &host(1), "127.0.0.1:2");
    assert_eq!(serving.beat(&host(1), &old).status, 401);
    assert_eq!(serving.beat(&host(1), text(&new, "token")).status, 204);
    // Given out before a restore from a backup, by a database that knew more.
    let lost = home.token_of(&host(1), registration(&home, text(&new, "token")) + 100);
    assert_eq!(serving.beat(&host(1), &lost).status, 204);
    serving.stop();
    home.verify();
}

// ---- addresses ----

/// Adds a host of this team; gives its id and its registration token.
fn added(serving: &Serving, team: u128) -> (String, String) {
    let team = roost::model::id::TeamId::from_u128(team).to_string();
    let made = serving.post("/v1/hosts", &json!({"team_id": team})).json();
    (text(&made["host"], "id").to_owned(), text(&made, "registration_token").to_owned())
}

/// The address of a live host is its own, however another spells it.
#[test]
fn the_address_of_a_live_host_is_refused_however_it_is_spelt() {
    for (address, spellings) in [
        (
            "127.0.0.1:7001",
            &[
                "127.0.0.1:7001",
                "localhost:7001",
                "LOCALHOST.:7001",
                "[::ffff:127.0.0.1]:7001",
                "[::FFFF:7F00:1]:7001",
                "http://127.0.0.1:7001/",
                "https://localhost:7001",
                "127.0.0.1:07001",
            ][..],
        ),
        ("http://LocalHost", &["127.0.0.1:80", "http://127.0.0.1/", "[::1]:80", "localhost:80"]),
        (
            "Edge.Invalid:7001",
            &["edge.invalid:7001", "EDGE.INVALID.:7001", "https://edge.invalid:7001"],
        ),
        ("[2001:DB8::1]:7001", &["[2001:db8:0:0:0:0:0:1]:7001", "http://[2001:0db8::1]:7001"]),
    ] {
        let home = Home::new();
        let serving = home.serve(&["--probe-interval", "1h"]);
        let first = serving.register(address);
        let (id, token) = added(&serving, 0);
        let owner = text(&first["host"], "id");
        for spelling in spellings {
            let answer = register_with(&serving, &token, spelling);
            assert_eq!(answer.refusal(), (409, "address_in_use".to_owned()), "{spelling}");
            assert!(answer.message().contains(owner), "{}", answer.message());
        }
        // The others may be counted only: a host's refusals fill no log.
        let logged = spellings[0].trim_end_matches('/');
        serving.logged(&["WARN", &id, owner, logged, "refused"]);
        assert_eq!(serving.beat(text(&first["host"], "id"), text(&first, "token")).status, 204);
        // The token is still good, for an address of its own.
        for other in ["127.0.0.1:7002", "127.0.0.2:7001", "other.invalid:7001"] {
            if other == "127.0.0.1:7002" {
                assert_eq!(register_with(&serving, &token, other).status, 201);
            } else {
                register_again(&serving, &id, other);
            }
        }
        serving.stop();
        home.verify();
    }
}

#[test]
fn a_host_keeps_its_own_address_and_takes_over_that_of_a_dead_one() {
    let home = Home::with(&json!({"hosts": [
        {"id": host(1), "status": "online", "address": "127.0.0.1:7001", "heartbeat_age_s": 5},
        {"id": host(2), "status": "unreachable", "address": "127.0.0.1:7002",
            "heartbeat_age_s": 500},
        {"id": host(3), "status": "offline", "address": "127.0.0.1:7003", "heartbeat_age_s": 500},
        {"id": host(4), "status": "draining", "address": "127.0.0.1:7004", "heartbeat_age_s": 5},
    ]}));
    let serving = home.serve(&["--probe-interval", "1h"]);
    register_again(&serving, &host(1), "localhost:7001");
    let shown = |id: &str| serving.get(&format!("/v1/hosts/{id}")).json();
    for (dead, free) in [(host(2), "localhost:7002"), (host(3), "localhost:7003")] {
        let (id, token) = added(&serving, 0);
        assert_eq!(register_with(&serving, &token, free).status, 201, "{free}");
        assert_eq!(shown(&id)["status"], "online");
        assert_eq!(shown(&dead).get("address"), None, "probes of it would reach the other");
        serving.logged(&["WARN", &dead, &id, "loses its address"]);
    }
    for taken in ["localhost:7001", "localhost:7002", "localhost:7004"] {
        let (_, token) = added(&serving, 0);
        assert_eq!(register_with(&serving, &token, taken).refusal().0, 409, "{taken}");
    }
    serving.stop();
    home.verify();
}

#[test]
fn another_team_does_not_hear_whose_an_address_is() {
    let home = Home::new();
    let here = "127.0.0.0/8, ::1";
    let serving = home.serve(&["--probe-interval", "1h", "--agent-networks", here]);
    let (owner, token) = added(&serving, 1);
    assert_eq!(register_with(&serving, &token, "127.0.0.1:7001").status, 201);
    for (team, hears) in [(0, true), (1, true), (2, false)] {
        let (_, token) = added(&serving, team);
        let answer = register_with(&serving, &token, "localhost:7001");
        assert_eq!(answer.refusal(), (409, "address_in_use".to_owned()));
        assert_eq!(answer.message().contains(&owner), hears, "{team}: {}", answer.message());
    }
    let (_, token) = added(&serving, 2);
    register_with(&serving, &token, "localhost:7001");
    serving.logged(&["WARN", &owner, "refused"]);
    serving.stop();
}
