//! Owns `--wait`: follows a sandbox until nothing is under way with it, whatever happens to
//! the server in between.
//!
//! Never: asks for anything to be done; waits beyond its time. Called by the commands that
//! act on sandboxes.

use super::client::{PATIENCE, ServerClient, Trouble};
use super::word;
use crate::cli::output::with_detail;
use crate::clock::Clock;
use crate::model::id::SandboxId;
use crate::model::sandbox::SandboxStatus;
use crate::model::time::Mono;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;
use std::time::Duration;
use ureq::http::Method;

/// Time between two looks while there is no stream of events. Larger and people wait;
/// smaller and a server that starts is asked for nothing.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Until when somebody waits.
pub(super) struct Deadline {
    clock: Arc<dyn Clock>,
    at: Mono,
}

impl Deadline {
    /// So long from now.
    pub(super) fn after(span: Duration) -> Deadline {
        let clock = crate::cli::clock();
        let at = clock.now().mono.after(span);
        Deadline { clock, at }
    }

    fn left(&self) -> Duration {
        self.at.since(self.clock.now().mono)
    }

    /// Waits until it is time for another look; false when the time is up.
    pub(super) fn wait(&self) -> bool {
        let left = self.left();
        std::thread::sleep(LOOK_EVERY.min(left));
        !left.is_zero()
    }
}

/// Where a sandbox came to rest.
pub(super) struct Rest {
    /// `None`: there is no such sandbox any more.
    pub(super) status: Option<SandboxStatus>,
    /// Why it is in this status, with the agent's words where there are any.
    pub(super) reason: String,
}

/// Why the rest was not seen.
pub(super) enum Unseen {
    /// Time is up; the status that was seen last.
    TimeUp(String),
    /// The server refuses to show it.
    Trouble(Trouble),
}

/// Waits until nothing is under way with a sandbox, which was in status `first` a moment
/// ago, and says how it came to rest. The stream of its events is opened before its row is read, so nothing happens unseen; when
/// either breaks, both begin anew.
pub(super) fn rest_of(
    server: &ServerClient,
    id: SandboxId,
    first: &str,
    deadline: &Deadline,
) -> Result<Rest, Unseen> {
    let mut seen = Seen { status: first.to_owned(), revision: None };
    loop {
        let stream = server.events(&seen.query(id), deadline.left());
        if let Some(rest) = look(server, id, deadline, &mut seen)? {
            return Ok(rest);
        }
        if let Ok(stream) = stream
            && let Some(rest) = listen(stream, &mut seen)
        {
            return Ok(rest);
        }
        if !deadline.wait() {
            return Err(Unseen::TimeUp(seen.status));
        }
    }
}

/// What is known so far.
struct Seen {
    status: String,
    revision: Option<u64>,
}

impl Seen {
    /// What to ask the stream for: what follows the last event, or what follows from now on.
    fn query(&self, id: SandboxId) -> String {
        let after = self.revision.map(|revision| format!("&after={revision}"));
        format!("sandbox_id={id}{}", after.unwrap_or_default())
    }
}

/// Reads the row: where the sandbox rests, or nothing when it does not rest yet or the
/// server cannot say for now.
fn look(
    server: &ServerClient,
    id: SandboxId,
    deadline: &Deadline,
    seen: &mut Seen,
) -> Result<Option<Rest>, Unseen> {
    let patience = PATIENCE.min(deadline.left());
    match server.ask(Method::GET, &format!("/v1/capsules/{id}"), None, patience) {
        Ok(capsule) => {
            let status = word(&capsule, "status").parse::<SandboxStatus>();
            let status = status.map_err(|e| Unseen::Trouble(Trouble::Strange(e.to_string())))?;
            seen.status = status.to_string();
            Ok(rest(status, word(&capsule, "status_reason"), word(&capsule, "status_detail")))
        }
        Err(Trouble::Refused(404, _)) => Ok(Some(Rest { status: None, reason: String::new() })),
        // A server that starts or stops says so with a status of its own.
        Err(Trouble::Away(_) | Trouble::Cut(_) | Trouble::Refused(500.., _)) => Ok(None),
        Err(
            trouble @ (Trouble::NoKey
            | Trouble::Unusable(_)
            | Trouble::Refused(..)
            | Trouble::Strange(_)),
        ) => Err(Unseen::Trouble(trouble)),
    }
}

/// Reads events until one says where the sandbox rests, or the stream ends.
fn listen(stream: BufReader<impl Read>, seen: &mut Seen) -> Option<Rest> {
    for line in stream.lines().map_while(Result::ok) {
        let data = line.strip_prefix("data:").map(serde_json::from_str::<Value>);
        let Some(Ok(event)) = data else { continue };
        seen.revision = event["revision"].as_u64().or(seen.revision);
        if let Ok(status) = word(&event, "to").parse::<SandboxStatus>() {
            seen.status = status.to_string();
            if let Some(rest) = rest(status, word(&event, "reason"), word(&event, "detail")) {
                return Some(rest);
            }
        }
    }
    None
}

fn rest(status: SandboxStatus, reason: &str, detail: &str) -> Option<Rest> {
    let moves = status.is_transient() || status == SandboxStatus::Pending;
    let reason = with_detail(reason, Some(detail).filter(|detail| !detail.is_empty()));
    (!moves).then_some(Rest { status: Some(status), reason })
}
