//! Owns how one sandbox changes its status: the row, its event and, when it gets one, its
//! audit entry, under one revision.
//!
//! Never: decides whether it changes, or what the history says of it (`plan` does both).
//! The only place that writes a status into an existing row.

use super::StoreError;
use super::journal::{Actor, Audit, Event, metadata};
use super::writer::Writer;
use crate::model::event::{AuditAction, AuditStatus, EventKind, ResourceType};
use crate::model::id::{HostId, SandboxId, TeamId};
use crate::model::sandbox::{Reason, SandboxStatus};
use crate::model::time::Now;
use crate::plan::history::audit_of_transition;
use rusqlite::params;

/// One row on its way to another status.
pub(super) struct Move<'a> {
    pub(super) host: HostId,
    /// The host's id as text, made once for all its rows.
    pub(super) key: &'a str,
    pub(super) id: SandboxId,
    pub(super) team: TeamId,
    pub(super) from: SandboxStatus,
    pub(super) to: SandboxStatus,
    pub(super) reason: &'a Reason,
}

impl Writer {
    /// Moves a row by what Roost found out; `plan::history` says what is audited. Gives
    /// the revision.
    pub(super) fn move_sandbox(&mut self, t: &Move<'_>, now: Now) -> Result<u64, StoreError> {
        let audit = audit_of_transition(t.from, t.to, t.reason, &self.policy);
        self.move_for(t, audit, &Actor::SYSTEM, now)
    }

    /// Moves a row for somebody. Gives the revision.
    pub(super) fn move_for(
        &mut self,
        t: &Move<'_>,
        audit: Option<(AuditAction, AuditStatus)>,
        actor: &Actor,
        now: Now,
    ) -> Result<u64, StoreError> {
        let mut update = self.conn.prepare_cached(
            "UPDATE sandboxes SET status = ?3, status_reason = ?4, status_changed_at = ?5, \
             revision = ?6 WHERE host_id = ?1 AND id = ?2",
        )?;
        update.execute(params![
            t.key,
            t.id.text().as_str(),
            t.to.as_str(),
            t.reason.as_str(),
            now.wall.0,
            (self.revision + 1) as i64
        ])?;
        drop(update);
        self.tell_move(t, Some(t.from), audit, actor, now)
    }

    /// Writes the event of a move, of a new row too, and its audit entry. Gives the revision.
    pub(super) fn tell_move(
        &mut self,
        t: &Move<'_>,
        from: Option<SandboxStatus>,
        audit: Option<(AuditAction, AuditStatus)>,
        actor: &Actor,
        now: Now,
    ) -> Result<u64, StoreError> {
        self.tally.moved(from, Some(t.to));
        let (from, to) = (from.map(SandboxStatus::as_str), t.to.as_str());
        let mut journal = self.journal(now, actor);
        let revision = journal.event(&Event {
            kind: EventKind::of(t.to),
            host: t.host,
            sandbox: Some(t.id),
            team: t.team,
            from,
            to: Some(to),
            reason: t.reason,
        })?;
        if let Some((action, status)) = audit {
            let from = from.unwrap_or("none");
            journal.audit(&Audit {
                team: t.team,
                resource: (ResourceType::Sandbox, t.id.text().as_str()),
                action,
                status,
                metadata: &metadata(from, to, t.reason, t.host, revision),
            })?;
        }
        Ok(revision)
    }
}
