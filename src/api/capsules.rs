//! Owns `/v1/capsules`: sandboxes as users see them.
//!
//! Never: talks to an agent itself.

use super::view::CapsuleView;
use super::{Problem, Ready, json};
use crate::http::Response;
use crate::model::id::SandboxId;
use crate::store::read::{self, SandboxFilter};

/// `GET /v1/capsules[?all=true]`
pub(super) fn list(ready: &Ready, query: &str) -> Result<Response, Problem> {
    let mut filter = SandboxFilter::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=').unwrap_or((pair, "")) {
            ("all", "true" | "1") => filter.all = true,
            ("all", "false" | "0" | "") => filter.all = false,
            ("all", _) => return Err(Problem::invalid("all must be true or false")),
            ("host_id", id) => {
                filter.host =
                    Some(id.parse().map_err(|e| Problem::invalid(format!("host_id: {e}")))?);
            }
            ("status", word) => {
                filter.status =
                    Some(word.parse().map_err(|e| Problem::invalid(format!("status: {e}")))?);
            }
            _ => {}
        }
    }
    let sandboxes = read::sandboxes(&*ready.read()?, &filter)?;
    let views: Vec<CapsuleView> = sandboxes.into_iter().map(CapsuleView::from).collect();
    json(200, &views)
}

/// `GET /v1/capsules/{id}`
pub(super) fn show(ready: &Ready, id: &str) -> Result<Response, Problem> {
    let id: SandboxId = id.parse().map_err(|_| Problem::not_found("capsule"))?;
    let sandbox = read::sandbox(&*ready.read()?, id)?;
    json(200, &CapsuleView::from(sandbox.ok_or_else(|| Problem::not_found("capsule"))?))
}
