//! Owns `/v1/api-keys`: how an operator gives others a key, and takes it back.
//!
//! Never: keeps a key or shows it twice; what stays is its SHA-256 and its last digits.

use super::access::operator;
use super::body::Fields;
use super::secret::{self, API_KEY_PREFIX};
use super::view::KeyView;
use super::{Problem, Ready, json};
use crate::http::{Request, Response};
use crate::model::id::{KeyId, PLATFORM_TEAM};
use crate::store::keys::{KEYS_MAX, NewKey};
use crate::store::writer::Command;
use serde::Serialize;

/// Longest name. Larger and every audit entry of the key carries it; smaller and a
/// sentence does not fit.
const NAME_BYTES_MAX: usize = 100;

/// Digits of a key that stay readable: enough to tell two apart, of no use to guess one.
const SUFFIX_DIGITS: usize = 4;

/// A new key, which is shown this once.
#[derive(Serialize)]
struct WithKey {
    api_key: KeyView,
    key: String,
}

/// `POST /v1/api-keys`
pub(super) fn create(ready: &Ready, request: &Request) -> Result<Response, Problem> {
    let fields = Fields::read(request)?;
    let name = fields.required("name")?;
    if name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(Problem::invalid(format!(
            "name must be at most {NAME_BYTES_MAX} bytes without control characters"
        )));
    }
    let key = format!("{API_KEY_PREFIX}{}", secret::fresh());
    let new = NewKey {
        hash: secret::hash(&key),
        team: fields.optional("team_id")?.unwrap_or(PLATFORM_TEAM),
        name,
        suffix: key[key.len() - SUFFIX_DIGITS..].to_owned(),
        actor: operator(),
    };
    let made = ready.write(|reply| Command::CreateKey(Box::new(new), reply))?;
    let api_key = made.ok_or_else(|| {
        let message = format!("there are {KEYS_MAX} API keys; revoke one first");
        Problem::new(409, "too_many_keys", message)
    })?;
    json(201, &WithKey { api_key: KeyView::from(api_key), key })
}

/// `GET /v1/api-keys`
pub(super) fn list(ready: &Ready) -> Result<Response, Problem> {
    let views: Vec<KeyView> = ready.keys.list().into_iter().map(KeyView::from).collect();
    json(200, &views)
}

/// `DELETE /v1/api-keys/{id}`
pub(super) fn revoke(ready: &Ready, id: &str) -> Result<Response, Problem> {
    let unknown = || Problem::not_found("API key");
    let id: KeyId = id.parse().map_err(|_| unknown())?;
    match ready.write(|reply| Command::RevokeKey(id, operator(), reply))? {
        true => Ok(Response::empty(204)),
        false => Err(unknown()),
    }
}
