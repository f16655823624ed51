//! Owns the property of an agent's answers: any bytes are read or refused; what is read is
//! written and read again the same; and no auto-paused id that a JSON parser can find in
//! the answer is ever lost, since the agent forgets what it has told.
//!
//! Never: a socket.

use roost::agent::listing::{self, AUTO_PAUSED_MAX};
use roost::agent::wire::{CreateSandboxResponse, Empty, ErrorBody};
use roost::model::id::SandboxId;
use serde_json::Value;
use std::collections::HashSet;

/// Fails when the property does not hold for these bytes.
pub fn holds(bytes: &[u8]) {
    let saved = match listing::read(bytes) {
        Ok(listing) => {
            let written = listing::write(&listing).expect("what was read can be written");
            assert_eq!(listing::read(&written).as_ref(), Ok(&listing));
            let ids: HashSet<SandboxId> =
                listing.sandboxes.iter().map(|listed| listed.id).collect();
            assert_eq!(ids.len(), listing.sandboxes.len(), "every sandbox once");
            listing.auto_paused
        }
        Err(unreadable) => {
            assert!(!unreadable.detail.is_empty());
            unreadable.drained
        }
    };
    let once: HashSet<SandboxId> = saved.iter().copied().collect();
    assert!(once.len() == saved.len() && saved.len() <= AUTO_PAUSED_MAX, "every id once");
    for id in findable(bytes) {
        assert!(once.contains(&id), "{id} was told and is lost");
    }
    other_answers(bytes);
}

/// The ids that a general parser finds where announcements stand.
fn findable(bytes: &[u8]) -> Vec<SandboxId> {
    let text = String::from_utf8_lossy(bytes);
    let Ok(Value::Object(fields)) = serde_json::from_str(&text) else { return Vec::new() };
    let names = ["autoPausedSandboxIds", "auto_paused_sandbox_ids"];
    let lists = names.iter().filter_map(|name| fields.get(*name)?.as_array());
    lists.flatten().filter_map(|id| id.as_str()?.parse().ok()).collect()
}

fn other_answers(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(answer) = serde_json::from_str::<CreateSandboxResponse<'_>>(text) {
        let again = serde_json::to_string(&answer).expect("written");
        assert_eq!(serde_json::from_str::<CreateSandboxResponse<'_>>(&again).unwrap(), answer);
    }
    if let Ok(error) = serde_json::from_str::<ErrorBody<'_>>(text) {
        let again = serde_json::to_string(&error).expect("written");
        assert_eq!(serde_json::from_str::<ErrorBody<'_>>(&again).unwrap(), error);
    }
    // Any object is an empty message with fields that we do not know.
    let empty = serde_json::from_str::<Empty<'_>>(text).is_ok();
    let object = matches!(serde_json::from_str(text), Ok(Value::Object(_)));
    assert!(empty || !object);
}
