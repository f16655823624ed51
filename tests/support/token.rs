//! Owns host tokens made and read by another library, genuine and forged.
//!
//! Never: our own signing, which is what is tested.

use super::Home;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

const DAY_S: i64 = 24 * 3600;

pub fn now_s() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

/// A token signed with `secret` that is valid for so long from now on, as the version before
/// gave it out: it names no registration.
pub fn signed(secret: &str, host: &str, valid_s: i64) -> String {
    signed_of(secret, host, valid_s, None)
}

fn signed_of(secret: &str, host: &str, valid_s: i64, registration: Option<u64>) -> String {
    let now = now_s();
    let mut claims = json!({"typ": "host", "host_id": host, "sub": host,
        "iat": now - 7 * DAY_S, "exp": now + valid_s});
    if let Some(registration) = registration {
        claims["reg"] = json!(registration);
    }
    let key = EncodingKey::from_secret(secret.as_bytes());
    encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap()
}

/// The claims of a token that must be genuine.
pub fn claims(secret: &str, token: &str) -> Value {
    let key = DecodingKey::from_secret(secret.as_bytes());
    decode::<Value>(token, &key, &Validation::new(Algorithm::HS256)).unwrap().claims
}

impl Home {
    /// The key that signs host tokens.
    pub fn token_key(&self) -> String {
        std::fs::read_to_string(self.path("host-token.key")).unwrap().trim().to_owned()
    }

    /// A genuine token, valid for a day.
    pub fn token(&self, host: &str) -> String {
        signed(&self.token_key(), host, DAY_S)
    }

    /// A genuine token of this registration of a host, valid for a day.
    pub fn token_of(&self, host: &str, registration: u64) -> String {
        signed_of(&self.token_key(), host, DAY_S, Some(registration))
    }

    /// A genuine token that has expired.
    pub fn expired_token(&self, host: &str) -> String {
        signed(&self.token_key(), host, -1)
    }
}

/// A token for a host that somebody else signed.
pub fn forged(host: &str) -> String {
    signed("not the key of this server", host, DAY_S)
}
