//! Owns `/v1/notifications` and the maintenance of hosts for operators.
//!
//! Never: shows where a target is, or a secret of one.

use super::body::Fields;
use super::view::HostView;
use super::{Problem, Ready, json};
use crate::http::{Request, Response};
use crate::model::id::HostId;
use crate::model::notify::NotifyKind;
use crate::model::time::Wall;
use crate::store::notify::{self, MAINTENANCE_MAX, Maintenance};
use crate::store::read;
use crate::store::writer::Command;
use serde::Serialize;
use std::time::Duration;

/// Longest reason of a maintenance.
const REASON_BYTES_MAX: usize = 200;

/// What the engine does for those who ask.
pub trait Notify: Send + Sync {
    /// Every target, and how it fared since the start.
    fn targets(&self) -> Vec<TargetState>;
    /// Sends each target a test message and waits, bounded, for what comes of it.
    fn test(&self) -> Vec<Tested>;
    /// Looks for what to announce, soon.
    fn look(&self);
}

/// A target and how it fared since the start.
#[derive(Debug, Clone, Serialize)]
pub struct TargetState {
    /// Its name.
    pub name: String,
    /// How it is told.
    pub kind: &'static str,
    /// Messages that arrived.
    pub sent: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Messages that were given up.
    pub given_up: u64,
    /// When a message last arrived.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent_at: Option<Wall>,
    /// What the last attempt failed of, unless one succeeded since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What came of a test.
#[derive(Debug, Clone, Serialize)]
pub struct Tested {
    /// The target.
    pub name: String,
    /// How it is told.
    pub kind: &'static str,
    /// Whether it took the message.
    pub ok: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[derive(Serialize)]
struct ProblemView {
    kind: NotifyKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_id: Option<HostId>,
    since: Wall,
    sandboxes: u64,
    announced: bool,
    /// It is over; its end is about to be told.
    over: bool,
}

#[derive(Serialize)]
struct TargetView {
    #[serde(flatten)]
    state: TargetState,
    waiting: u64,
}

#[derive(Serialize)]
struct Overview {
    problems: Vec<ProblemView>,
    targets: Vec<TargetView>,
}

/// `GET /v1/notifications`
pub(super) fn overview(ready: &Ready) -> Result<Response, Problem> {
    let reader = ready.read()?;
    let problems = notify::problems(&reader)?.into_iter().map(|p| ProblemView {
        kind: p.kind,
        host_id: p.host,
        since: p.opened_at,
        sandboxes: p.sandboxes,
        announced: p.announced.is_some(),
        over: p.gone_at.is_some(),
    });
    let waiting = notify::waiting(&reader)?;
    let targets = ready.notify.targets().into_iter().map(|state| {
        let waiting = waiting.get(&state.name).copied().unwrap_or(0);
        TargetView { state, waiting }
    });
    json(200, &Overview { problems: problems.collect(), targets: targets.collect() })
}

/// `POST /v1/notifications/test`
pub(super) fn test(ready: &Ready) -> Result<Response, Problem> {
    json(200, &ready.notify.test())
}

/// `POST /v1/hosts/{id}/maintenance`
pub(super) fn begin(ready: &Ready, id: &str, request: &Request) -> Result<Response, Problem> {
    let fields = Fields::read(request)?;
    let longest = MAINTENANCE_MAX.as_secs();
    let span = fields.count("for_s")?.map(u64::from).filter(|s| (1..=longest).contains(s));
    let span = span.ok_or_else(|| {
        Problem::invalid(format!("for_s must be a whole number of seconds from 1 to {longest}"))
    })?;
    let reason = fields.text("reason")?;
    let odd = |text: &String| text.len() > REASON_BYTES_MAX || text.chars().any(char::is_control);
    if reason.as_ref().is_some_and(odd) {
        return Err(Problem::invalid(format!(
            "reason must be at most {REASON_BYTES_MAX} bytes without control characters"
        )));
    }
    let until = ready.now().wall.after(Duration::from_secs(span));
    maintain(ready, id, Some(until), reason)
}

/// `DELETE /v1/hosts/{id}/maintenance`
pub(super) fn end(ready: &Ready, id: &str) -> Result<Response, Problem> {
    maintain(ready, id, None, None)
}

fn maintain(
    ready: &Ready,
    id: &str,
    until: Option<Wall>,
    reason: Option<String>,
) -> Result<Response, Problem> {
    let unknown = || Problem::not_found("host");
    let host: HostId = id.parse().map_err(|_| unknown())?;
    let wanted = Maintenance { host, until, reason };
    if !ready.write(|reply| Command::Maintain(wanted, reply))? {
        return Err(unknown());
    }
    match until {
        Some(until) => log::info!("{host} is in maintenance until {until}"),
        None => log::info!("{host} is in maintenance no more"),
    }
    ready.notify.look();
    let found = read::host(&*ready.read()?, host)?.ok_or_else(unknown)?;
    json(200, &HostView::of(&found, &ready.presence).maintained(until))
}
