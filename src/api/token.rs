//! Owns host tokens: JWT with HS256 and exactly the claims of interfaces.md section 3.
//!
//! Never: decides what a bad one is answered with (`agents` does), accepts an algorithm
//! that the token chose.

use super::secret::TokenKey;
use crate::model::id::HostId;
use crate::model::time::Wall;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde::Deserialize;
use std::time::Duration;

/// How long a host token is valid.
pub const TOKEN_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Longest token that is looked at, in bytes; ours have about 250.
const TOKEN_BYTES_MAX: usize = 2048;

const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// What a token says, before it is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claims {
    /// The host that it names.
    pub host: HostId,
    /// When it expires.
    pub expires_at: Wall,
    /// Whether we signed it.
    pub genuine: bool,
}

/// What [`sign`] writes and nothing else: a header that says more, `crit` for one, means
/// something that we do not know.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    typ: Option<String>,
}

/// The claims that [`sign`] writes and nothing else.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ours {
    typ: String,
    host_id: HostId,
    sub: Option<HostId>,
    /// Never before 1970.
    iat: Option<u64>,
    exp: u64,
}

/// What any token must say to be one: whoever made it, it names a host.
#[derive(Deserialize)]
struct Payload {
    typ: String,
    host_id: HostId,
    exp: i64,
}

/// A token for a host.
pub fn sign(key: &TokenKey, host: HostId, now: Wall) -> String {
    let (issued, expires) = (now.unix_seconds(), now.after(TOKEN_LIFE).unix_seconds());
    let payload = format!(
        r#"{{"typ":"host","host_id":"{host}","sub":"{host}","iat":{issued},"exp":{expires}}}"#
    );
    let mut token = URL_SAFE_NO_PAD.encode(HEADER);
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(payload, &mut token);
    let signature = hmac::sign(&key.0, token.as_bytes());
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut token);
    token
}

/// What a token says; `None` when it is no host token at all.
pub fn read(key: &TokenKey, token: &str) -> Option<Claims> {
    if token.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let (signed, signature) = token.rsplit_once('.')?;
    let (header, payload) = signed.split_once('.')?;
    let header = URL_SAFE_NO_PAD.decode(header).ok()?;
    let claims = URL_SAFE_NO_PAD.decode(payload).ok()?;
    let payload: Payload = serde_json::from_slice(&claims).ok()?;
    if payload.typ != "host" {
        return None;
    }
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap_or_default();
    let genuine =
        is_ours(&header, &claims) && hmac::verify(&key.0, signed.as_bytes(), &signature).is_ok();
    let expires_at = Wall(payload.exp.saturating_mul(1000));
    Some(Claims { host: payload.host_id, expires_at, genuine })
}

fn is_ours(header: &[u8], claims: &[u8]) -> bool {
    let header = serde_json::from_slice(header);
    let claims = serde_json::from_slice(claims);
    header.is_ok_and(|Header { alg, typ }| alg == "HS256" && typ.is_none_or(|typ| typ == "JWT"))
        && claims.is_ok_and(|Ours { typ, host_id, sub, iat, exp }| {
            typ == "host"
                && sub.is_none_or(|sub| sub == host_id)
                && iat.is_none_or(|iat| iat <= exp)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Validation, decode, encode};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const SECRET: &str = "0123456789abcdef";

    fn key() -> TokenKey {
        TokenKey::of(SECRET)
    }

    fn host() -> HostId {
        HostId::from_u128(42)
    }

    fn foreign(header: &jsonwebtoken::Header, claims: &Value, secret: &str) -> Option<Claims> {
        let token = encode(header, claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap();
        read(&key(), &token)
    }

    #[test]
    fn another_library_reads_what_we_sign() {
        let now = Wall(1_779_000_000_000);
        let token = sign(&key(), host(), now);
        assert!(!token.contains('='), "base64url without padding");
        let mut validation = Validation::new(Algorithm::HS256);
        validation.validate_exp = false;
        let read =
            decode::<Value>(&token, &DecodingKey::from_secret(SECRET.as_bytes()), &validation);
        let id = host().to_string();
        let expected = json!({"typ": "host", "host_id": id, "sub": id, "iat": 1_779_000_000,
            "exp": 1_779_604_800});
        assert_eq!(read.unwrap().claims, expected);
    }

    #[test]
    fn we_read_what_another_library_signs() {
        let claims = json!({"typ": "host", "host_id": host().to_string(), "exp": 5});
        let hs256 = jsonwebtoken::Header::new(Algorithm::HS256);
        let expected = Claims { host: host(), expires_at: Wall(5000), genuine: true };
        assert_eq!(foreign(&hs256, &claims, SECRET), Some(expected));
        let forged = Some(Claims { genuine: false, ..expected });
        assert_eq!(foreign(&hs256, &claims, "another"), forged);
        let hs512 = jsonwebtoken::Header::new(Algorithm::HS512);
        assert_eq!(foreign(&hs512, &claims, SECRET), forged, "an algorithm of its own choice");
        let user = json!({"typ": "user", "host_id": host().to_string(), "exp": 5});
        assert_eq!(foreign(&hs256, &user, SECRET), None);
        let unnamed = json!({"typ": "host", "exp": 5});
        assert_eq!(foreign(&hs256, &unnamed, SECRET), None);
    }

    #[test]
    fn a_token_that_says_more_than_ours_names_its_host_and_is_not_genuine() {
        let claims = json!({"typ": "host", "host_id": host().to_string(), "exp": 5});
        let header = jsonwebtoken::Header::new(Algorithm::HS256);
        let expiring = |at| Some(Claims { host: host(), expires_at: Wall(at), genuine: false });
        let named = expiring(5000);
        let with = |key: &str, value: Value| {
            let mut claims = claims.clone();
            claims[key] = value;
            claims
        };
        assert_eq!(foreign(&header, &with("iss", json!("another")), SECRET), named);
        assert_eq!(foreign(&header, &with("sub", json!(HostId::from_u128(1))), SECRET), named);
        assert_eq!(foreign(&header, &with("sub", json!(5)), SECRET), named);
        assert_eq!(foreign(&header, &with("iat", json!(6)), SECRET), named);
        assert_eq!(foreign(&header, &with("exp", json!(-1)), SECRET), expiring(-1000));
        let keyed = jsonwebtoken::Header { kid: Some("1".to_owned()), ..header };
        assert_eq!(foreign(&keyed, &claims, SECRET), named);
    }

    #[test]
    fn an_unsigned_token_is_not_genuine() {
        let token = sign(&key(), host(), Wall(0));
        let (signed, _) = token.rsplit_once('.').unwrap();
        assert!(!read(&key(), &format!("{signed}.")).unwrap().genuine);
        let (_, payload) = signed.split_once('.').unwrap();
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        assert!(!read(&key(), &format!("{none}.{payload}.")).unwrap().genuine);
    }

    proptest! {
        #[test]
        fn a_changed_token_is_never_genuine(at in 0usize..200, to in "[a-zA-Z0-9_.-]") {
            let token = sign(&key(), host(), Wall(1_779_000_000_000));
            let at = at % token.len();
            let changed = format!("{}{to}{}", &token[..at], &token[at + 1..]);
            // The last digit of a signature holds two bits that mean nothing; the
            // decoder refuses them unless they are zero.
            prop_assert!(changed == token || read(&key(), &changed).is_none_or(|c| !c.genuine));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
            let _ = read(&key(), &text);
        }
    }
}
