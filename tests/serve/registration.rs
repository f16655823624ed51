//! Owns what a registration means: which machine is a host, and which address is whose.
//!
//! Never: certificates, which `tests/trust` looks at.

use crate::support::client::Answer;
use crate::support::server::Serving;
use crate::support::token::{claims, now_s};
use crate::support::{Home, eventually, host};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

const DAY_S: i64 = 24 * 3600;

/// A genuine token for this registration of a host.
fn token_of(home: &Home, host: &str, registration: u64) -> String {
    let claims = json!({"typ": "host", "host_id": host, "sub": host, "iat": now_s(),
        "exp": now_s() + DAY_S, "reg": registration});
    let key = EncodingKey::from_secret(home.token_key().as_bytes());
    encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap()
}

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
    let lost = token_of(&home, &host(1), registration(&home, text(&new, "token")) + 100);
    assert_eq!(serving.beat(&host(1), &lost).status, 204);
    serving.stop();
    home.verify();
}
