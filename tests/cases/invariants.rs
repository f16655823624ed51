//! Owns what must hold at every moment of every case, whatever the case is about.
//!
//! Never: repairs or forgives; knows what a case expects.

use roost::model::event::{ActorType, AuditEntry, Event};
use roost::model::id::{HostId, SandboxId};
use roost::store::fixture::Fleet;
use roost::store::read::{self, Before, HistoryFilter, SandboxFilter};
use roost::store::verify::verify;
use rusqlite::Connection;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};

/// Everything that is wrong, a line each. `fleet` is what the database began with.
pub(crate) fn violations(conn: &Connection, fleet: &Fleet) -> Vec<String> {
    let history = HistoryFilter { limit: u32::MAX, ..HistoryFilter::default() };
    let mut wrong = verify(conn).expect("the database can be verified");
    let events = read::events_after(conn, 0, &history).expect("events can be read");
    let audit =
        read::audit_before(conn, Before::default(), &history).expect("the audit log can be read");
    wrong.extend(revisions(conn, &events));
    wrong.extend(sandboxes(conn, fleet, &events));
    wrong.extend(hosts(conn, fleet, &events));
    wrong.extend(entries(&events, &audit));
    wrong
}

/// Every revision has exactly one event.
fn revisions(conn: &Connection, events: &[Event]) -> Vec<String> {
    let newest = read::revision(conn).expect("the revision can be read");
    let found: Vec<u64> = events.iter().map(|event| event.revision).collect();
    let whole = found == (1..=newest).collect::<Vec<_>>();
    (!whole).then(|| format!("revision {newest}, but events {found:?}")).into_iter().collect()
}

/// Every change of a sandbox starts where the one before ended, and the rows are where
/// the last ones ended.
fn sandboxes(conn: &Connection, fleet: &Fleet, events: &[Event]) -> Vec<String> {
    let begin = |s: &roost::store::fixture::FleetSandbox| (s.row.id, s.row.status.to_string());
    let mut at: BTreeMap<SandboxId, String> = fleet.sandboxes.iter().map(begin).collect();
    let mut wrong = Vec::new();
    for event in events {
        let (Some(id), Some(from), Some(to)) = (event.sandbox_id, &event.from, &event.to) else {
            continue;
        };
        if at.insert(id, to.clone()).as_ref() != Some(from) {
            wrong.push(format!("{id} left {from} without being there: {event:?}"));
        }
    }
    let all = SandboxFilter { all: true, ..SandboxFilter::default() };
    let rows = read::sandboxes(conn, &all).expect("sandboxes can be read");
    let rows: BTreeMap<_, _> = rows.iter().map(|row| (row.id, row.status.to_string())).collect();
    if rows != at {
        wrong.push(format!("the events lead to {at:?}, the rows say {rows:?}"));
    }
    wrong
}

/// The same for the public status of hosts.
fn hosts(conn: &Connection, fleet: &Fleet, events: &[Event]) -> Vec<String> {
    let begin = |host: &roost::model::host::Host| (host.id, host.status().to_string());
    let mut at: BTreeMap<HostId, String> = fleet.hosts.iter().map(begin).collect();
    let mut wrong = Vec::new();
    for event in events.iter().filter(|event| event.sandbox_id.is_none()) {
        let (Some(from), Some(to)) = (&event.from, &event.to) else { continue };
        if at.insert(event.host_id, to.clone()).as_ref() != Some(from) {
            wrong.push(format!("{} left {from} without being there", event.host_id));
        }
    }
    let rows = read::hosts(conn).expect("hosts can be read");
    let rows: BTreeMap<_, _> = rows.iter().map(begin).collect();
    if rows != at {
        wrong.push(format!("the events lead to {at:?}, the hosts are {rows:?}"));
    }
    wrong
}

/// Every audit entry tells of exactly one change, as it happened, and no change has two.
fn entries(events: &[Event], audit: &[AuditEntry]) -> Vec<String> {
    let mut by_revision: HashMap<u64, &Event> = events.iter().map(|e| (e.revision, e)).collect();
    let mut wrong = Vec::new();
    for entry in audit {
        let metadata: Value = serde_json::from_str(&entry.metadata).unwrap_or_default();
        let revision = metadata["revision"].as_u64().unwrap_or_default();
        let told = by_revision.remove(&revision).is_some_and(|event| {
            let resource = match event.sandbox_id {
                Some(sandbox) => sandbox.to_string(),
                None => event.host_id.to_string(),
            };
            entry.resource_id == resource
                && metadata["from"].as_str() == event.from.as_deref()
                && metadata["to"].as_str() == event.to.as_deref()
                && metadata["reason"] == event.reason.as_str()
        });
        if !told || entry.scope != "team" || entry.actor_type != ActorType::System {
            wrong.push(format!("an audit entry without its change: {entry:?}"));
        }
    }
    wrong
}
