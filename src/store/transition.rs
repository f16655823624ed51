//! Owns how one sandbox changes its status: the row, its event and, when it gets one, its
//! audit entry, under one revision.
//!
//! Never: decides whether it changes, or what the history says of it (`plan` does both).
//! The only place that writes a status into an existing row.

use super::StoreError;
use super::journal::{Actor, Audit, Event, Journal, metadata};
use super::tally::Tally;
use super::usage::{Usage, room_changes};
use super::writer::Writer;
use crate::model::event::{AuditAction, AuditStatus, EventKind, ResourceType};
use crate::model::id::{HostId, SandboxId, TeamId};
use crate::model::policy::Policy;
use crate::model::probe::Listed;
use crate::model::sandbox::{Reason, SandboxStatus};
use crate::model::time::Now;
use crate::plan::history::audit_of_transition;
use rusqlite::{CachedStatement, Connection, params};

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
    /// Why it failed, in the agent's words.
    pub(super) detail: Option<&'a str>,
    /// What the agent says of a row that becomes running.
    pub(super) filled_by: Option<&'a Listed>,
}

/// Moves any number of rows for one actor at one moment.
pub(super) struct Mover<'a> {
    conn: &'a Connection,
    update: CachedStatement<'a>,
    journal: Journal<'a>,
    tally: &'a mut Tally,
    usage: &'a mut Usage,
    policy: &'a Policy,
    now: Now,
}

/// Left alone, SQLite looks each row up in the index by id first, all over that index.
const MOVE: &str = "\
    UPDATE sandboxes INDEXED BY sqlite_autoindex_sandboxes_1 SET status = ?3, \
    status_reason = ?4, status_changed_at = ?5, revision = ?6, \
    host_ip = coalesce(?7, host_ip), metadata = coalesce(?8, metadata), \
    started_at = coalesce(started_at, ?9), status_detail = ?10 WHERE host_id = ?1 AND id = ?2";

/// The indexes for lists know what has ended.
const END: &str = "\
    UPDATE sandboxes INDEXED BY sqlite_autoindex_sandboxes_1 SET ended = ?3, status = ?4 \
    WHERE host_id = ?1 AND id = ?2";

/// What a sandbox takes of its host while it holds a microVM.
const TAKES: &str = "SELECT coalesce(vcpus, 0), coalesce(memory_mb, 0) FROM sandboxes \
    INDEXED BY sqlite_autoindex_sandboxes_1 WHERE host_id = ?1 AND id = ?2";

impl Writer {
    /// Moves rows for somebody.
    pub(super) fn mover<'a>(
        &'a mut self,
        now: Now,
        actor: &'a Actor,
    ) -> Result<Mover<'a>, StoreError> {
        let update = self.conn.prepare_cached(MOVE)?;
        let counters = (&mut self.revision, &mut self.random);
        let journal = Journal::new(&self.conn, counters, now.wall, actor)?;
        let (tally, usage) = (&mut self.tally, &mut self.usage);
        Ok(Mover { conn: &self.conn, update, journal, tally, usage, policy: &self.policy, now })
    }

    /// Moves one row by what Roost found out. Gives the revision.
    pub(super) fn move_sandbox(&mut self, t: &Move<'_>, now: Now) -> Result<u64, StoreError> {
        self.mover(now, &Actor::SYSTEM)?.move_sandbox(t)
    }
}

impl Mover<'_> {
    /// Moves a row by what Roost found out; `plan::history` says what is audited. Gives
    /// the revision.
    pub(super) fn move_sandbox(&mut self, t: &Move<'_>) -> Result<u64, StoreError> {
        let audit = audit_of_transition(t.from, t.to, t.reason, self.policy);
        self.move_for(t, audit)
    }

    /// Moves a row. Gives the revision.
    pub(super) fn move_for(
        &mut self,
        t: &Move<'_>,
        audit: Option<(AuditAction, AuditStatus)>,
    ) -> Result<u64, StoreError> {
        self.count(t)?;
        let details = t.filled_by.map(|entry| &entry.details);
        let started = t.filled_by.map(|entry| match entry.created_at_unix {
            ..=0 => self.now.wall.0,
            unix => unix.saturating_mul(1000),
        });
        self.update.execute(params![
            t.key,
            t.id.text().as_str(),
            t.to.as_str(),
            t.reason.as_str(),
            self.now.wall.0,
            self.journal.next_revision() as i64,
            details.and_then(|details| details.host_ip.as_deref()),
            details.and_then(|details| details.metadata.as_deref()),
            started,
            t.detail,
        ])?;
        self.tell_move(t, Some(t.from), audit)
    }

    fn count(&mut self, t: &Move<'_>) -> Result<(), StoreError> {
        let id = t.id.text();
        let takes = match room_changes(t.from, t.to) {
            true => self
                .conn
                .prepare_cached(TAKES)?
                .query_row([t.key, id.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?,
            false => (0, 0),
        };
        self.usage.moved((t.host, t.team), (t.from, t.to), takes);
        if t.from.is_over() != t.to.is_over() {
            let ends = params![t.key, id.as_str(), t.to.is_over(), t.to.as_str()];
            self.conn.prepare_cached(END)?.execute(ends)?;
        }
        Ok(())
    }

    /// Writes the event of a move, of a new row too, and its audit entry. Gives the revision.
    pub(super) fn tell_move(
        &mut self,
        t: &Move<'_>,
        from: Option<SandboxStatus>,
        audit: Option<(AuditAction, AuditStatus)>,
    ) -> Result<u64, StoreError> {
        self.tally.entered(t.to);
        let (from, to) = (from.map(SandboxStatus::as_str), t.to.as_str());
        let revision = self.journal.event(&Event {
            kind: EventKind::of(t.to),
            host: t.host,
            sandbox: Some(t.id),
            team: t.team,
            from,
            to: Some(to),
            reason: t.reason,
            detail: t.detail,
        })?;
        if let Some((action, status)) = audit {
            let from = from.unwrap_or("none");
            self.journal.audit(&Audit {
                team: t.team,
                resource: (ResourceType::Sandbox, t.id.text().as_str()),
                action,
                status,
                metadata: &metadata(from, to, t.reason, t.detail, t.host, revision),
            })?;
        }
        Ok(revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::open::SCHEMA;
    use rusqlite::Connection;

    #[test]
    fn a_move_opens_the_row_and_nothing_else() {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(SCHEMA).unwrap();
        let mut explain = conn.prepare(&format!("EXPLAIN {MOVE}")).unwrap();
        let steps = explain.query_map([None::<i64>; 10], |row| row.get(1)).unwrap();
        let steps: Vec<String> = steps.map(Result::unwrap).collect();
        let opened: Vec<&String> = steps.iter().filter(|step| step.starts_with("Open")).collect();
        assert_eq!(opened, ["OpenWrite"], "{steps:?}");
    }
}
