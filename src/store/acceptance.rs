//! Owns what is known of restores: that a database was restored, of when it is, whether an
//! operator has accepted it, and what is undone of the time between.
//!
//! Never: forgets a restore: the revisions that were given out after a backup are never
//! given out again.

use super::StoreError;
use super::identity::TokenHash;
use super::journal::{Actor, Audit};
use super::lifecycle::{self, Work};
use super::rows;
use super::writer::{After, Writer};
use crate::model::event::{AuditAction, AuditStatus, EventKind, ResourceType};
use crate::model::id::{HostId, PLATFORM_TEAM};
use crate::model::operation::OperationKind;
use crate::model::sandbox::Reason;
use crate::model::time::{Now, Wall};
use rusqlite::{Connection, OptionalExtension, params};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Revisions that a restored database leaves out. Larger: numbers get long; smaller: more
/// may have been given out since the backup, and whoever follows events misses some.
pub const SKIPPED: i64 = 1_000_000_000;

/// How long after the acceptance of a restored database an unknown sandbox is one that the
/// restore has forgotten. Larger: a real zombie is kept for longer; smaller: an agent that was
/// away meanwhile loses what it made since the backup.
const FORGOTTEN_AFTER_ACCEPTANCE: Duration = Duration::from_secs(24 * 3600);

/// The newest restore of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restore {
    /// The newest time that the backup knew of.
    pub as_of: Wall,
    /// When it was restored.
    pub restored_at: Wall,
    /// When an operator accepted it.
    pub accepted_at: Option<Wall>,
}

impl Restore {
    /// A sandbox without a row that is seen until then may be one that the restore has
    /// forgotten.
    pub(super) fn forgotten_until(self) -> Wall {
        self.accepted_at.map_or(Wall(i64::MAX), |at| at.after(FORGOTTEN_AFTER_ACCEPTANCE))
    }
}

/// The newest restore; `None`: this database was never restored.
pub fn newest(conn: &Connection) -> Result<Option<Restore>, StoreError> {
    let sql = "SELECT as_of, restored_at, accepted_at FROM restores ORDER BY revision DESC LIMIT 1";
    let restore = conn.prepare_cached(sql)?.query_row([], |row| {
        Ok(Restore {
            as_of: rows::wall(row, 0)?,
            restored_at: rows::wall(row, 1)?,
            accepted_at: row.get::<_, Option<i64>>(2)?.map(Wall),
        })
    });
    Ok(restore.optional()?)
}

/// Revisions that were left out: after the first of each pair, up to the second.
pub(super) fn skipped(conn: &Connection) -> Result<Vec<(u64, u64)>, StoreError> {
    let mut select =
        conn.prepare_cached("SELECT last_known, revision FROM restores ORDER BY revision")?;
    let pairs =
        select.query_map([], |row| Ok((rows::unsigned(row, 0)?, rows::unsigned(row, 1)?)))?;
    Ok(pairs.collect::<Result<_, _>>()?)
}

/// Whether this revision is of a time that a restore has undone, or of none yet.
pub fn is_undone(conn: &Connection, revision: u64) -> Result<bool, StoreError> {
    let lost = skipped(conn)?.iter().any(|(last, next)| *last < revision && revision < *next);
    Ok(lost || revision > super::read::revision(conn)?)
}

/// Marks a database as restored from a backup; gives of when it is.
pub fn mark(conn: &mut Connection, now: Wall) -> Result<Wall, StoreError> {
    mark_beyond(conn, 0, now)
}

/// The same. `given_out`: a revision that is known to have been given out, also of another
/// database.
pub(super) fn mark_beyond(
    conn: &mut Connection,
    given_out: u64,
    now: Wall,
) -> Result<Wall, StoreError> {
    let tx = conn.transaction()?;
    let as_of: i64 = tx.query_row(
        "SELECT max(created_at, coalesce(listened_until, 0), \
         coalesce((SELECT max(at) FROM events), 0), \
         coalesce((SELECT max(created_at) FROM audit_logs), 0)) FROM state",
        [],
        |row| row.get(0),
    )?;
    tx.execute(
        "INSERT INTO restores (revision, last_known, as_of, restored_at) \
         SELECT max(revision, ?4) + ?1, revision, ?2, ?3 FROM state",
        params![SKIPPED, as_of, now.0, given_out.cast_signed()],
    )?;
    tx.execute("UPDATE state SET revision = (SELECT max(revision) FROM restores)", [])?;
    tx.commit()?;
    Ok(Wall(as_of))
}

/// What everybody may know of the newest restore without asking the database.
#[derive(Debug, Default)]
pub struct Acceptance {
    newest: Mutex<Option<Restore>>,
}

impl Acceptance {
    /// What the database says.
    pub(super) fn load(conn: &Connection) -> Result<Acceptance, StoreError> {
        Ok(Acceptance { newest: Mutex::new(newest(conn)?) })
    }

    /// The newest restore.
    pub fn newest(&self) -> Option<Restore> {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The restore that waits for an operator, if one does: nothing may be decided.
    pub fn awaited(&self) -> Option<Restore> {
        self.newest().filter(|restore| restore.accepted_at.is_none())
    }

    fn accepted(&self, at: Wall) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(restore) = newest.as_mut() {
            restore.accepted_at = Some(at);
        }
    }
}

/// A refresh token that bears our signature and that the database does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostToken {
    /// SHA-256 of it.
    pub hash: TokenHash,
    /// Whose it is.
    pub host: HostId,
    /// When it was given out.
    pub issued_at: Wall,
    /// When it ends.
    pub expires_at: Wall,
}

/// What came of an acceptance.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// What was accepted, now or before.
    pub restore: Restore,
    /// Operations that wait since the backup. Empty when it was accepted before.
    pub work: Vec<Work>,
}

impl Writer {
    /// An operator takes a restored database for what counts. Whatever the agents did since
    /// the backup nobody heard: every host has a gap in contact. `None`: it was not restored.
    pub(super) fn accept(
        &mut self,
        actor: &Actor,
        now: Now,
    ) -> Result<Option<Accepted>, StoreError> {
        let Some(restore) = newest(&self.conn)? else { return Ok(None) };
        if restore.accepted_at.is_some() {
            return Ok(Some(Accepted { restore, work: Vec::new() }));
        }
        self.in_savepoint(|w| {
            let sql = "UPDATE restores SET accepted_at = ?1 WHERE accepted_at IS NULL";
            w.conn.execute(sql, [now.wall.0])?;
            w.conn.execute("UPDATE hosts SET contact_gap = 1", [])?;
            w.close_operations_of_backup(now)?;
            let Restore { as_of, restored_at, .. } = restore;
            let metadata = format!(r#"{{"as_of":"{as_of}","restored_at":"{restored_at}"}}"#);
            w.journal(now, actor)?.audit(&Audit {
                team: PLATFORM_TEAM,
                resource: (ResourceType::Database, "database"),
                action: AuditAction::Accept,
                status: AuditStatus::Warning,
                metadata: &metadata,
            })?;
            w.after.push(After::Accepted(now));
            let restore = Restore { accepted_at: Some(now.wall), ..restore };
            Ok(Some(Accepted { restore, work: lifecycle::unfinished(&w.conn)? }))
        })
    }

    /// What a backup says is in progress ended long ago, in a history that is lost: it is not
    /// asked for again. Only destroys are, which nothing undoes.
    fn close_operations_of_backup(&mut self, now: Now) -> Result<(), StoreError> {
        let left = lifecycle::unfinished(&self.conn)?;
        for work in left.iter().filter(|work| work.kind != OperationKind::Destroy) {
            self.close_operation(work.op, Some("the database was restored"), now.wall)?;
        }
        Ok(())
    }

    /// Takes a token back that was given out after the backup: it is of a known host, and
    /// newer than every token that is known of it. What was given out before has done its
    /// work. False: it stays unknown.
    pub(super) fn take_back_token(
        &mut self,
        lost: LostToken,
        now: Now,
    ) -> Result<bool, StoreError> {
        if self.host(lost.host)?.is_none_or(|host| host.registered_at.is_none()) {
            return Ok(false);
        }
        let host = lost.host.to_string();
        let sql = "SELECT max(created_at) FROM refresh_tokens WHERE host_id = ?1";
        let newest: Option<i64> = self.conn.query_row(sql, [&host], |row| row.get(0))?;
        if newest.is_some_and(|newest| lost.issued_at <= Wall(newest)) {
            self.note_reuse(&lost, now)?;
            return Ok(false);
        }
        self.in_savepoint(|w| {
            w.conn.execute("DELETE FROM refresh_tokens WHERE host_id = ?1", [&host])?;
            w.insert_found_token(&lost)?;
            Ok(true)
        })
    }

    /// Records that a token was shown which has done its work: its successor was used, or the
    /// host registered again. An agent shows such a one only when its machine was set back to
    /// an older state; otherwise it was copied.
    fn note_reuse(&mut self, spent: &LostToken, now: Now) -> Result<(), StoreError> {
        let is_old = spent.expires_at <= now.wall;
        if is_old || !self.presence.note_reuse(spent.host, now.mono) {
            return Ok(());
        }
        let Some(host) = self.host(spent.host)? else { return Ok(()) };
        let (issued_at, team) = (spent.issued_at, host.team_id);
        log::warn!(
            "a refresh token of {} (team {team}) was shown that was used up, given out on \
             {issued_at}: unless the machine was set back to an older state, the token was copied; \
             register the host again (`roost hosts token {}`), which ends all its tokens",
            host.named(),
            host.id
        );
        let reason = Reason::Other("a refresh token that was used up was shown".into());
        let metadata = format!(r#"{{"issued_at":"{issued_at}"}}"#);
        self.in_savepoint(|w| {
            w.host_event(&host, EventKind::HostTokenReused, None, &reason, now)?;
            w.journal(now, &Actor::SYSTEM)?.audit(&Audit {
                team,
                resource: (ResourceType::Host, &host.id.to_string()),
                action: AuditAction::TokenReused,
                status: AuditStatus::Warning,
                metadata: &metadata,
            })
        })?;
        Ok(())
    }

    pub(super) fn make_accepted(&mut self, now: Now) {
        self.acceptance.accepted(now.wall);
        self.presence.listen_anew(now.mono, true);
    }
}
