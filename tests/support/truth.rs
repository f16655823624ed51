//! Owns the comparison of what the database says with what simulated hosts really have.
//!
//! Never: asks anybody; both sides must have come to rest.

use roost::model::id::SandboxId;
use roost::sim::{SimHost, SimState};

/// Fails unless a host has exactly what the rows of it say, and besides `strangers` nothing.
pub fn check_host<'a>(
    host: &SimHost,
    rows: impl IntoIterator<Item = (SandboxId, &'a str)>,
    strangers: &[SandboxId],
) {
    let mut expected: Vec<SandboxId> = strangers.to_vec();
    for (id, status) in rows {
        let state = host.state(id);
        let is_known = strangers.contains(&id);
        assert!(is_known || fits(status, state), "{id} is {status} and really {state:?}");
        expected.extend(state.map(|_| id));
    }
    for (id, state) in host.sandboxes() {
        assert!(expected.contains(&id), "{id} is {state:?} on {host:?} and should not be");
    }
}

/// Whether a status that rests says what is really there.
pub fn fits(status: &str, really: Option<SimState>) -> bool {
    match status {
        "running" => really == Some(SimState::Running),
        "paused" => matches!(really, Some(SimState::Paused | SimState::Shelved)),
        "stopped" => really.is_none(),
        "error" => matches!(really, None | Some(SimState::Error)),
        _ => false,
    }
}
