//! Owns `GET /v1/audit`: who did what, newest first, a page at a time.
//!
//! Never: shows another team's entries; gives an entry twice or leaves one out while new
//! ones are written. A cursor is a place in the log, and that never moves.

use super::access::Caller;
use super::query::Query;
use super::view::AuditView;
use super::{Problem, Ready, json};
use crate::http::{Request, Response};
use crate::store::audit::{self, AuditFilter};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;

/// Entries on a page when nobody says.
const LIMIT_DEFAULT: u32 = 50;

/// Most entries on a page. Larger and one answer fills the memory; smaller and clients
/// page more.
const LIMIT_MAX: u32 = 500;

/// A page. May hold fewer entries than asked for, even none, also when more follow: a page
/// looks at a bounded part of the log.
#[derive(Serialize)]
struct Page {
    items: Vec<AuditView>,
    /// Where the next page begins; left out at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// `GET /v1/audit`
pub(super) fn list(ready: &Ready, caller: &Caller, request: &Request) -> Result<Response, Problem> {
    let query = Query::read(&request.query)?;
    let limit = query.parsed("limit")?.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(Problem::invalid(format!("limit must be 1 to {LIMIT_MAX}")));
    }
    let below = query.text("cursor").map(place).transpose()?;
    let filter = AuditFilter {
        team: caller.team(),
        resource_type: query.parsed("resource_type")?,
        resource_id: query.text("resource_id").map(str::to_owned),
        host: query.parsed("host_id")?,
        action: query.parsed("action")?,
        actor_type: query.parsed("actor_type")?,
        actor_id: query.text("actor_id").map(str::to_owned),
        status: query.parsed("status")?,
        after: query.parsed("after")?,
        before: query.parsed("before")?,
    };
    let page = audit::page(&*ready.read()?, &filter, below, limit)?;
    let items = page.entries.into_iter().map(AuditView::from).collect();
    json(200, &Page { items, next_cursor: page.next.map(cursor) })
}

fn cursor(place: u64) -> String {
    URL_SAFE_NO_PAD.encode(place.to_be_bytes())
}

fn place(cursor: &str) -> Result<u64, Problem> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.map(u64::from_be_bytes).ok_or_else(|| {
        Problem::invalid("cursor: must be a next_cursor of an earlier answer, unchanged")
    })
}
