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
        let fits = match status {
            "running" => state == Some(SimState::Running),
            "paused" => matches!(state, Some(SimState::Paused | SimState::Shelved)),
            "stopped" | "error" => state.is_none(),
            other => panic!("{id} is left {other}"),
        };
        assert!(fits, "{id} is {status} and really {state:?}");
        expected.extend(state.map(|_| id));
    }
    for (id, state) in host.sandboxes() {
        assert!(expected.contains(&id), "{id} is {state:?} on {host:?} and should not be");
    }
}
