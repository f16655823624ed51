//! Owns lifecycle answers that wait: who asks for one (RFC 7240, `Prefer`), and the wait
//! for a capsule's operation.
//!
//! Never: fails a request that was accepted: what takes longer, or cannot be waited for, is
//! answered 202.

use super::access::Caller;
use super::lanes::Lane;
use super::view::CapsuleView;
use super::waiting::{NOTICE, pass, still_needed};
use super::{Problem, Ready, json};
use crate::http::{Caller as Client, Headers, Request, Response};
use crate::model::id::SandboxId;
use crate::model::operation::OperationKind;
use crate::model::sandbox::Sandbox;
use crate::model::time::Mono;
use crate::store::read;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Longest wait that a request may ask for. Larger: clients and proxies between give up
/// first; use.md promises it.
const WAIT_MAX_S: u64 = 60;

/// Wait of a request that asks for none, with `answers = "when_done"`. Larger: SDKs give up
/// first; smaller: an ordinary pause is answered 202.
const WHEN_DONE: Duration = Duration::from_secs(30);

/// Shortest time between two reads of a capsule. Larger: answers come later; smaller: a
/// busy fleet's many transitions make every client that waits read the database each time.
const READ_GAP: Duration = Duration::from_millis(20);

/// How long to hold an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wait {
    limit: Duration,
    /// The request asked for it, and is told so.
    preferred: bool,
}

/// What a request came to before any wait.
pub(super) enum Accepted {
    /// Its operation is in flight.
    InFlight(Box<Sandbox>),
    /// There was nothing to do.
    NothingToDo,
}

/// Has `begin` carry out a lifecycle request of this kind and answers it: 202, or, when the
/// client or the configuration asks for it, once the capsule's status is no longer
/// transient, with the capsule as it is then.
pub(super) fn answer(
    ready: &Arc<Ready>,
    caller: &Caller,
    request: &Request,
    kind: OperationKind,
    begin: impl FnOnce(&Ready) -> Result<Accepted, Problem> + Send + 'static,
) -> Result<Response, Problem> {
    let wait = wait(lines(&request.headers), ready.answers_when_done.load(Ordering::Relaxed));
    let Some(wait) = wait.filter(|wait| !wait.limit.is_zero()) else {
        return accepted(begin(ready)?, wait);
    };
    let slot = ready.lanes.take(Lane::Conversation, caller.into());
    match (begin(ready)?, slot) {
        (Accepted::InFlight(sandbox), Some(slot)) => {
            Ok(ready.in_lane(Lane::Conversation, slot, move |ready, client| {
                at_rest(ready, client, kind, *sandbox, wait)
            }))
        }
        (Accepted::NothingToDo, Some(_)) => accepted(Accepted::NothingToDo, Some(wait)),
        // Too many wait already.
        (begun, None) => accepted(begun, None),
    }
}

/// The answer at once.
fn accepted(accepted: Accepted, wait: Option<Wait>) -> Result<Response, Problem> {
    let response = match accepted {
        Accepted::InFlight(sandbox) => json(202, &CapsuleView::from(*sandbox))?,
        Accepted::NothingToDo => Response::empty(204),
    };
    Ok(applied(response, wait))
}

/// The answer once the capsule's status is no longer transient, or 202 with what is known
/// by then.
fn at_rest(
    ready: &Ready,
    client: &mut Client,
    kind: OperationKind,
    mut sandbox: Sandbox,
    wait: Wait,
) -> Result<Response, Problem> {
    let until = ready.now().mono.after(wait.limit);
    let mut seen = sandbox.revision;
    loop {
        if !sandbox.status.is_transient() {
            return Ok(applied(done(kind, sandbox)?, Some(wait)));
        }
        if !wait_newer(ready, client, seen, until) {
            return accepted(Accepted::InFlight(Box::new(sandbox)), Some(wait));
        }
        seen = ready.revision.newest();
        match find(ready, sandbox.id) {
            Ok(Some(found)) => sandbox = found,
            // Its host was deleted, and it with it.
            Ok(None) => return gone(kind),
            // The request was accepted all the same.
            Err(_) => return accepted(Accepted::InFlight(Box::new(sandbox)), Some(wait)),
        }
    }
}

/// Waits for a revision newer than `seen`; false when there is no more reason to wait.
fn wait_newer(ready: &Ready, client: &mut Client, seen: u64, until: Mono) -> bool {
    if pass(ready, client, READ_GAP).is_err() {
        return false;
    }
    loop {
        let left = until.since(ready.now().mono);
        if ready.revision.wait_newer(seen, left.min(NOTICE)) > seen {
            return true;
        }
        if left.is_zero() || still_needed(ready, client).is_err() {
            return false;
        }
    }
}

fn find(ready: &Ready, id: SandboxId) -> Result<Option<Sandbox>, Problem> {
    Ok(read::sandbox(&*ready.read()?, id)?)
}

fn done(kind: OperationKind, sandbox: Sandbox) -> Result<Response, Problem> {
    let status = match kind {
        OperationKind::Destroy => return Ok(Response::empty(204)),
        OperationKind::Create | OperationKind::Snapshot => 201,
        OperationKind::Pause | OperationKind::Resume => 200,
    };
    json(status, &CapsuleView::from(sandbox))
}

fn gone(kind: OperationKind) -> Result<Response, Problem> {
    match kind {
        OperationKind::Destroy => Ok(Response::empty(204)),
        OperationKind::Create
        | OperationKind::Snapshot
        | OperationKind::Pause
        | OperationKind::Resume => Err(Problem::not_found("capsule; its host was deleted")),
    }
}

fn applied(response: Response, wait: Option<Wait>) -> Response {
    match wait.filter(|wait| wait.preferred) {
        Some(wait) => {
            response.with_header("preference-applied", format!("wait={}", wait.limit.as_secs()))
        }
        None => response,
    }
}

/// How long this request is to be held; `when_done`: the configuration holds all.
fn wait<'a>(lines: impl Iterator<Item = &'a str>, when_done: bool) -> Option<Wait> {
    let (mut wait, mut respond_async) = (None, false);
    for (name, value) in preferences(lines) {
        match name.as_str() {
            // Of several the first counts, also when it says nothing.
            "wait" if wait.is_none() => wait = Some(seconds(&value)),
            "respond-async" => respond_async = true,
            _ => {}
        }
    }
    match wait.flatten() {
        Some(limit) => Some(Wait { limit, preferred: true }),
        None if when_done && !respond_async => Some(Wait { limit: WHEN_DONE, preferred: false }),
        None => None,
    }
}

/// Seconds as RFC 7240 writes them; `None` for what is malformed, which counts as not said.
fn seconds(value: &str) -> Option<Duration> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    // What has too many digits is more than the most.
    digits.then(|| Duration::from_secs(value.parse().unwrap_or(u64::MAX).min(WAIT_MAX_S)))
}

/// Every `Prefer` header; what is not UTF-8 says nothing.
fn lines(headers: &Headers) -> impl Iterator<Item = &str> {
    let lines = headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("prefer"));
    lines.filter_map(|(_, value)| std::str::from_utf8(value).ok())
}

/// The preferences that these lines hold, names in lower case, without their parameters.
fn preferences<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<(String, String)> {
    let all = lines.flat_map(|line| outside_quotes(line, ','));
    all.filter_map(|preference| {
        let said = outside_quotes(preference, ';').next()?;
        let (name, value) = said.split_once('=').unwrap_or((said, ""));
        let value = value.trim();
        let unquoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        Some((name.trim().to_ascii_lowercase(), unquoted.unwrap_or(value).to_owned()))
    })
    .collect()
}

/// The parts between separators that do not stand in quotes.
fn outside_quotes(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c| {
        match (c, escaped) {
            (_, true) => escaped = false,
            ('\\', false) if quoted => escaped = true,
            ('"', false) => quoted = !quoted,
            (_, false) => return c == separator && !quoted,
        }
        false
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preferences_are_read_as_rfc_7240_says() {
        let waits =
            |lines: &[&str]| wait(lines.iter().copied(), false).map(|wait| wait.limit.as_secs());
        for (lines, expected) in [
            (&["wait=10"][..], Some(10)),
            (&["Wait = 7 "], Some(7)),
            (&["wait=\"9\""], Some(9)),
            (&["respond-async, wait=10"], Some(10)),
            (&["handling=lenient; a=\"x, wait=3\", wait=4; b=c"], Some(4)),
            (&["return=minimal", "wait=5"], Some(5)),
            (&["wait=5, wait=6"], Some(5)),
            (&["wait=5", "wait=6"], Some(5)),
            (&["wait=0"], Some(0)),
            (&["wait=61"], Some(60)),
            (&["wait=99999999999999999999999"], Some(60)),
            // Malformed: ignored, not refused.
            (&["wait"], None),
            (&["wait="], None),
            (&["wait=-1"], None),
            (&["wait=1.5"], None),
            (&["wait=+5"], None),
            (&["wait=ten, wait=5"], None),
            (&["wait 10"], None),
            (&["x=\"wait=5"], None),
            (&["x=\"\\\", wait=5\""], None),
            (&["waiting=5"], None),
            (&[""], None),
            (&[",;=,"], None),
            (&[], None),
        ] {
            assert_eq!(waits(lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn a_request_takes_precedence_over_the_configuration() {
        let waits = |line: &str| {
            wait([line].into_iter(), true).map(|wait| (wait.limit.as_secs(), wait.preferred))
        };
        assert_eq!(waits(""), Some((30, false)));
        assert_eq!(waits("wait=ten"), Some((30, false)));
        assert_eq!(waits("wait=2"), Some((2, true)));
        assert_eq!(waits("wait=0"), Some((0, true)));
        assert_eq!(waits("respond-async"), None);
    }
}
