//! Owns the property of host tokens: any text is read or refused; what another library
//! refuses is never genuine, with the right key too; and both read the same claims.
//!
//! Never: a key that is used anywhere.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::crypto::sign;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Validation, decode};
use roost::api::secret::TokenKey;
use roost::api::token::read;
use serde_json::Value;

const SECRET: &str = "0123456789abcdef";

/// Fails when the property does not hold for these bytes: as a token, and, when they are two
/// lines, as its header and payload, signed by whoever has the key.
pub fn holds(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    compare(text);
    if let Some((header, payload)) = text.split_once('\n') {
        let encode = |part: &str| URL_SAFE_NO_PAD.encode(part);
        let signed = format!("{}.{}", encode(header), encode(payload));
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        let signature = sign(signed.as_bytes(), &key, Algorithm::HS256).expect("signed");
        compare(&format!("{signed}.{signature}"));
    }
}

fn compare(token: &str) {
    let Some(claims) = read(&TokenKey::of(SECRET), token).filter(|claims| claims.genuine) else {
        return;
    };
    let mut validation = Validation::new(Algorithm::HS256);
    // Neither asks for the time; and whom else a token is for is nobody's question here.
    validation.validate_exp = false;
    validation.validate_aud = false;
    let key = DecodingKey::from_secret(SECRET.as_bytes());
    let theirs = decode::<Value>(token, &key, &validation).expect("another library agrees").claims;
    assert_eq!(theirs["typ"], "host");
    assert_eq!(theirs["host_id"], claims.host.to_string());
    let expires_at = theirs["exp"].as_i64().expect("whole seconds").saturating_mul(1000);
    assert_eq!(claims.expires_at.0, expires_at);
}
