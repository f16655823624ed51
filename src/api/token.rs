//! Owns host tokens: JWT with HS256 and exactly the claims of interfaces.md section 3; and
//! refresh tokens, which say, to us only, whose they are and when they were given out.
//!
//! Never: decides what a bad one is answered with (`agents` does), accepts an algorithm
//! that the token chose.

use super::secret::{self, TokenKey};
use crate::model::id::HostId;
use crate::model::time::Wall;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde::Deserialize;
use std::time::Duration;
use subtle::ConstantTimeEq;

/// How long a host token is valid.
pub const TOKEN_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Longest token that is looked at, in bytes; ours have about 250.
const TOKEN_BYTES_MAX: usize = 2048;

/// Bytes of a refresh token that are the moment and chance; as many after them prove the
/// rest. Fewer can be guessed; more do not fit.
const NONCE_BYTES: usize = 16;

/// What a refresh token is signed as, so that it cannot be taken for anything else.
const REFRESH: &[u8] = b"refresh token ";

const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// What a token says, before it is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claims {
    /// The host that it names.
    pub host: HostId,
    /// When it expires.
    pub expires_at: Wall,
    /// Which registration of the host it belongs to; 0 for a token of a version that did not
    /// say.
    pub registration: u64,
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
    reg: Option<u64>,
}

/// What any token must say to be one: whoever made it, it names a host.
#[derive(Deserialize)]
struct Payload {
    typ: String,
    host_id: HostId,
    exp: i64,
}

/// A token for this registration of a host.
pub fn sign(key: &TokenKey, host: HostId, registration: u64, now: Wall) -> String {
    let (issued, expires) = (now.unix_seconds(), now.after(TOKEN_LIFE).unix_seconds());
    let payload = format!(
        r#"{{"typ":"host","host_id":"{host}","sub":"{host}","iat":{issued},"exp":{expires},"reg":{registration}}}"#
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
    let verified = hmac::verify(&key.0, signed.as_bytes(), &signature).is_ok();
    let registration = registration(&header, &claims).filter(|_| verified);
    Some(Claims {
        host: payload.host_id,
        expires_at: Wall(payload.exp.saturating_mul(1000)),
        registration: registration.unwrap_or(0),
        genuine: registration.is_some(),
    })
}

/// The registration that a token of ours names; `None` when it says anything else than ours
/// do.
fn registration(header: &[u8], claims: &[u8]) -> Option<u64> {
    let Header { alg, typ } = serde_json::from_slice(header).ok()?;
    let ours: Ours = serde_json::from_slice(claims).ok()?;
    let is_ours = alg == "HS256"
        && typ.is_none_or(|typ| typ == "JWT")
        && ours.typ == "host"
        && ours.sub.is_none_or(|sub| sub == ours.host_id)
        && ours.iat.is_none_or(|iat| iat <= ours.exp);
    is_ours.then(|| ours.reg.unwrap_or(0))
}

/// A refresh token for a host: 64 hexadecimal digits that nobody else can make. It counts
/// while the database knows its hash; its signature counts only after a restore, when the
/// database has forgotten what was given out after the backup.
pub fn refresh_token(key: &TokenKey, host: HostId, now: Wall) -> String {
    let mut nonce: [u8; NONCE_BYTES] = secret::bytes();
    nonce[..6].copy_from_slice(&now.0.to_be_bytes()[2..]);
    hex(&nonce) + &hex(&proof(key, host, &nonce))
}

/// Whose refresh token this is, and when it was given out, if it is one of these hosts'.
pub fn owner(
    key: &TokenKey,
    token: &str,
    hosts: impl IntoIterator<Item = HostId>,
) -> Option<(HostId, Wall)> {
    let bytes = unhex(token)?;
    let (nonce, shown) = bytes.split_first_chunk::<NONCE_BYTES>()?;
    let shown: &[u8; NONCE_BYTES] = shown.try_into().ok()?;
    let is_of = |host: &HostId| bool::from(proof(key, *host, nonce).ct_eq(shown));
    let mut moment = [0; 8];
    moment[2..].copy_from_slice(&nonce[..6]);
    let host = hosts.into_iter().find(is_of)?;
    Some((host, Wall(i64::from_be_bytes(moment))))
}

fn proof(key: &TokenKey, host: HostId, nonce: &[u8; NONCE_BYTES]) -> [u8; NONCE_BYTES] {
    let mut context = hmac::Context::with_key(&key.0);
    context.update(REFRESH);
    context.update(host.to_string().as_bytes());
    context.update(nonce);
    let mut proof = [0; NONCE_BYTES];
    proof.copy_from_slice(&context.sign().as_ref()[..NONCE_BYTES]);
    proof
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let is_ours = rest.is_empty() && text.len() == 4 * NONCE_BYTES;
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    is_ours.then(|| pairs.iter().map(byte).collect())?
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
        let token = sign(&key(), host(), 17, now);
        assert!(!token.contains('='), "base64url without padding");
        let mut validation = Validation::new(Algorithm::HS256);
        validation.validate_exp = false;
        let read =
            decode::<Value>(&token, &DecodingKey::from_secret(SECRET.as_bytes()), &validation);
        let id = host().to_string();
        let expected = json!({"typ": "host", "host_id": id, "sub": id, "iat": 1_779_000_000,
            "exp": 1_779_604_800, "reg": 17});
        assert_eq!(read.unwrap().claims, expected);
    }

    #[test]
    fn we_read_what_another_library_signs() {
        let claims = json!({"typ": "host", "host_id": host().to_string(), "exp": 5});
        let hs256 = jsonwebtoken::Header::new(Algorithm::HS256);
        let of = |registration| Claims {
            host: host(),
            expires_at: Wall(5000),
            registration,
            genuine: true,
        };
        let expected = of(0);
        assert_eq!(foreign(&hs256, &claims, SECRET), Some(expected), "of an earlier version");
        let mut named = claims.clone();
        named["reg"] = json!(17);
        assert_eq!(foreign(&hs256, &named, SECRET), Some(of(17)));
        let forged = Claims { genuine: false, ..expected };
        assert_eq!(foreign(&hs256, &named, "another"), Some(forged), "believed in nothing");
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
        let expiring = |at| {
            let expires_at = Wall(at);
            Some(Claims { host: host(), expires_at, registration: 0, genuine: false })
        };
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
        assert_eq!(foreign(&header, &with("reg", json!(-1)), SECRET), named);
        assert_eq!(foreign(&header, &with("reg", json!("17")), SECRET), named);
        let keyed = jsonwebtoken::Header { kid: Some("1".to_owned()), ..header };
        assert_eq!(foreign(&keyed, &claims, SECRET), named);
    }

    #[test]
    fn an_unsigned_token_is_not_genuine() {
        let token = sign(&key(), host(), 17, Wall(0));
        let (signed, _) = token.rsplit_once('.').unwrap();
        assert!(!read(&key(), &format!("{signed}.")).unwrap().genuine);
        let (_, payload) = signed.split_once('.').unwrap();
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        assert!(!read(&key(), &format!("{none}.{payload}.")).unwrap().genuine);
    }

    #[test]
    fn a_refresh_token_says_to_us_whose_it_is_and_to_nobody_else() {
        let now = Wall(1_779_000_000_123);
        let token = refresh_token(&key(), host(), now);
        assert_eq!(token.len(), 64);
        assert_ne!(token, refresh_token(&key(), host(), now), "chance is in it");
        let others = (1..100).map(HostId::from_u128);
        assert_eq!(owner(&key(), &token, others.clone()), Some((host(), now)));
        assert_eq!(owner(&TokenKey::of("another"), &token, others.clone()), None);
        assert_eq!(owner(&key(), &token, others.filter(|id| *id != host())), None);
        assert_eq!(owner(&key(), &token[..62], [host()]), None);
        assert_eq!(owner(&key(), &secret::fresh(), [host()]), None);
        assert_eq!(owner(&key(), &"é".repeat(32), [host()]), None);
    }

    proptest! {
        #[test]
        fn a_changed_refresh_token_is_nobodys(at in 0usize..64, to in "[0-9a-f]") {
            let token = refresh_token(&key(), host(), Wall(1_779_000_000_123));
            let changed = format!("{}{to}{}", &token[..at], &token[at + 1..]);
            prop_assert!(changed == token || owner(&key(), &changed, [host()]).is_none());
        }

        #[test]
        fn a_changed_token_is_never_genuine(at in 0usize..200, to in "[a-zA-Z0-9_.-]") {
            let token = sign(&key(), host(), 17, Wall(1_779_000_000_000));
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
