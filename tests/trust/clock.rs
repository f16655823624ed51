//! Owns what a clock that cannot be believed means for host tokens: a server in this process,
//! whose clock the test sets.
//!
//! Never: waits for a day.

use crate::support::client::try_ask;
use crate::support::{Home, host};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use roost::clock::{Clock, ManualClock, SystemClock};
use roost::config::{Config, Inputs, Key};
use roost::engine;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Of 2020-01-01.
const LONG_AGO_S: i64 = 1_577_836_800;

#[test]
fn a_token_that_expired_long_ago_counts_for_a_day_after_a_jump_of_the_clock() {
    let home = Home::with(&json!({"hosts": [{"id": host(1), "status": "online",
        "address": "127.0.0.1:1", "heartbeat_age_s": 5}], "listened_age_s": 0}));
    let flag = |key, value: &str| (key, value.to_owned());
    let dir = home.dir().to_str().unwrap();
    let flags = vec![flag(Key::DataDir, dir), flag(Key::Listen, "127.0.0.1:0")];
    let config = Config::load(&Inputs { flags, ..Inputs::default() }).unwrap();
    // The database was last written two days before, by this clock.
    let clock = Arc::new(ManualClock::new(SystemClock.now().wall.after(2 * DAY)));
    let paths = config.paths();
    let running = engine::serve(&config, &paths, clock.clone(), &mut |_| false).unwrap();
    let token = |expires_s: i64| {
        let claims = json!({"typ": "host", "host_id": host(1), "exp": expires_s});
        let key = EncodingKey::from_secret(home.token_key().as_bytes());
        encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap()
    };
    let (old, new) = (token(LONG_AGO_S), token(clock.now().wall.unix_seconds() + 30 * 24 * 3600));
    let beat = |token: &str| {
        let path = format!("/v1/hosts/{}/heartbeat", host(1));
        let header = [("X-Host-Token", token)];
        try_ask(running.address(), "POST", &path, &header, "{}").unwrap().status
    };
    assert_eq!((beat(&old), beat(&new)), (204, 204));
    clock.advance(DAY);
    assert_eq!((beat(&old), beat(&new)), (204, 204), "agents have a day to renew their tokens");
    clock.advance(Duration::from_millis(1));
    assert_eq!((beat(&old), beat(&new)), (401, 204), "the clock ran steadily for a day");
    assert!(running.stop(DAY, Duration::from_secs(60)));
    home.verify();
}
