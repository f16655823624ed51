//! Owns what is asked of the database as a whole: that a restored one counts from now on.
//!
//! Never: accepts by itself. Until an operator does, what the agents have is not compared
//! with what a backup says, and nobody is told anything that could end a sandbox.

use super::access::Caller;
use super::{Problem, Ready, Wake, json};
use crate::http::Response;
use crate::store::acceptance::Restore;
use crate::store::writer::Command;
use serde_json::json;

/// `POST /v1/database/accept`
pub(super) fn accept(ready: &Ready, caller: &Caller) -> Result<Response, Problem> {
    let Some(accepted) = ready.write(|reply| Command::Accept(caller.actor(), reply))? else {
        return json(200, &json!({"restored": false}));
    };
    for work in accepted.work {
        (ready.wake)(Wake::Work(Box::new(work)));
    }
    (ready.wake)(Wake::Accepted);
    let Restore { as_of, restored_at, accepted_at } = accepted.restore;
    let answer = json!({"restored": true, "as_of": as_of, "restored_at": restored_at,
        "accepted_at": accepted_at});
    json(200, &answer)
}

/// Why nothing is decided and nothing taken, while an operator has not accepted a restored
/// database.
pub(super) fn awaits(ready: &Ready) -> Result<(), Problem> {
    let Some(restore) = ready.acceptance.awaited() else { return Ok(()) };
    Err(Problem::unavailable(format!(
        "the database was restored from a backup of {} and is not accepted yet; an operator \
         looks at it and runs `roost db accept`",
        restore.as_of
    )))
}
