//! Owns what is recorded of strangers: sandboxes that a host has although this database does
//! not place them there. Who they are is `plan`'s decision.
//!
//! Never: changes a sandbox that was not asked for; destroys one unasked.

use super::StoreError;
use super::journal::{Actor, Audit};
use super::lifecycle::{NewOperation, Work};
use super::read::Page;
use super::rows;
use super::transition::Move;
use super::writer::{After, Writer};
use crate::logging::seldom;
use crate::model::event::{AuditAction, AuditStatus, EventKind, ResourceType};
use crate::model::host::Host;
use crate::model::id::{HostId, PLATFORM_TEAM, SandboxId, TeamId};
use crate::model::operation::OperationKind;
use crate::model::sandbox::{Reason, Sandbox, SandboxStatus, StrangerKind};
use crate::model::time::{Now, Wall};
use crate::plan::history::audit_of_wish;
use crate::plan::observation::{HostPlan, Stranger};
use rusqlite::{Connection, OptionalExtension, params};

/// One recorded stranger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Which host has it.
    pub host: HostId,
    /// Its id.
    pub sandbox: SandboxId,
    /// In which way it is one.
    pub kind: StrangerKind,
    /// When it was first seen.
    pub seen_at: Wall,
    /// The host that it belongs to, when it is misplaced.
    pub owner: Option<HostId>,
}

/// Every recorded stranger, host by host.
pub fn strangers(conn: &Connection) -> Result<Vec<Recorded>, StoreError> {
    Ok(strangers_after(conn, None, i64::from(u32::MAX))?.rows)
}

/// Those behind this one, at most so many.
pub fn strangers_after(
    conn: &Connection,
    after: Option<(HostId, SandboxId)>,
    limit: i64,
) -> Result<Page<Recorded>, StoreError> {
    let mut select = conn.prepare_cached(
        "SELECT t.host_id, t.sandbox_id, t.kind, t.seen_at, s.host_id FROM strangers t \
         LEFT JOIN sandboxes s ON s.id = t.sandbox_id \
         WHERE (t.host_id, t.sandbox_id) > (?1, ?2) ORDER BY t.host_id, t.sandbox_id LIMIT ?3",
    )?;
    let after = after.map(|(host, id)| (host.to_string(), id.to_string()));
    let (host, id) = after.unwrap_or_default();
    let recorded = select.query_map(params![host, id, limit + 1], |row| {
        let (host, owner): (HostId, Option<HostId>) =
            (rows::id(row, 0)?, rows::parsed_opt(row, 4)?);
        Ok(Recorded {
            host,
            sandbox: rows::id(row, 1)?,
            kind: rows::parsed(row, 2)?,
            seen_at: rows::wall(row, 3)?,
            owner: owner.filter(|owner| *owner != host),
        })
    })?;
    Ok(Page::cut(recorded.collect::<Result<_, _>>()?, limit))
}

/// A request to take a stranger over.
#[derive(Debug, Clone)]
pub struct Adoption {
    /// Which one.
    pub sandbox: SandboxId,
    /// On which host; `None` when only one has it.
    pub host: Option<HostId>,
    /// Whose it is from then on, when it has no row yet.
    pub team: Option<TeamId>,
    /// Who requests it.
    pub actor: Actor,
}

/// What came of it.
#[derive(Debug, Clone)]
pub enum Adopted {
    /// It is where the host has it.
    Done(Box<Sandbox>),
    /// No host is recorded to have it.
    NotSeen,
    /// Several hosts have it; one must be named.
    Several(Vec<HostId>),
    /// An operation owns it.
    Busy(SandboxStatus),
}

impl Writer {
    /// The strangers that a host is known for, sorted by id.
    pub(super) fn strangers_of(
        &self,
        host: &str,
    ) -> Result<Vec<(SandboxId, StrangerKind)>, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT sandbox_id, kind FROM strangers WHERE host_id = ?1 ORDER BY sandbox_id",
        )?;
        let recorded =
            select.query_map([host], |row| Ok((rows::id(row, 0)?, rows::parsed(row, 1)?)))?;
        Ok(recorded.collect::<Result<_, _>>()?)
    }

    /// Records new strangers, with an event each within bounds, and forgets those that are gone.
    pub(super) fn write_strangers(
        &mut self,
        host: &Host,
        plan: &HostPlan,
        now: Now,
    ) -> Result<(), StoreError> {
        for stranger in plan.strangers.iter().filter(|stranger| stranger.new) {
            self.record_stranger(host, stranger, now)?;
        }
        for id in &plan.departed {
            self.forget_stranger(host.id, *id)?;
        }
        Ok(())
    }

    fn record_stranger(
        &mut self,
        host: &Host,
        stranger: &Stranger,
        now: Now,
    ) -> Result<(), StoreError> {
        let Stranger { id, kind, status, new: _ } = *stranger;
        let (event, words) = match kind {
            StrangerKind::Zombie => (EventKind::SandboxZombie, "runs on the host"),
            StrangerKind::Forgotten => {
                (EventKind::SandboxForgotten, "runs on the host; a restore has forgotten it")
            }
            StrangerKind::Misplaced => {
                (EventKind::SandboxMisplaced, "runs on the host; belongs to another host")
            }
        };
        seldom!(Warn, "strangers", host.id =>
            "{} has {id}, which should not be there ({kind})", host.named());
        let mut insert = self.conn.prepare_cached(
            "INSERT INTO strangers (host_id, sandbox_id, kind, seen_at) VALUES (?1, ?2, ?3, ?4) \
             ON CONFLICT DO UPDATE SET kind = excluded.kind",
        )?;
        insert.execute(params![host.id.to_string(), id.to_string(), kind.as_str(), now.wall.0])?;
        drop(insert);
        // Of another team's sandbox the host's team learns no more than it lists.
        let from = status.filter(|_| kind != StrangerKind::Misplaced);
        self.caused_event(host, event, (Some(id), from), words, now)
    }

    pub(super) fn forget_stranger(&self, host: HostId, id: SandboxId) -> Result<(), StoreError> {
        let mut delete = self
            .conn
            .prepare_cached("DELETE FROM strangers WHERE host_id = ?1 AND sandbox_id = ?2")?;
        delete.execute([host.to_string(), id.to_string()])?;
        Ok(())
    }

    /// The hosts on which a stranger was seen.
    fn hosts_with(&self, id: SandboxId) -> Result<Vec<HostId>, StoreError> {
        let sql = "SELECT host_id FROM strangers WHERE sandbox_id = ?1 ORDER BY host_id";
        let mut select = self.conn.prepare_cached(sql)?;
        let hosts = select.query_map([id.to_string()], |row| rows::id(row, 0))?;
        Ok(hosts.collect::<Result<_, _>>()?)
    }

    /// Takes a stranger over: moves its row to the host that has it, or makes one.
    pub(super) fn adopt(&mut self, wanted: Adoption, now: Now) -> Result<Adopted, StoreError> {
        let seen = self.hosts_with(wanted.sandbox)?;
        let host = match (wanted.host, seen.as_slice()) {
            (Some(host), seen) if seen.contains(&host) => host,
            (None, [host]) => *host,
            (Some(_), _) | (None, []) => return Ok(Adopted::NotSeen),
            (None, several) => return Ok(Adopted::Several(several.to_vec())),
        };
        let row = self.sandbox(wanted.sandbox)?;
        if let Some(row) = &row
            && self.open_operation(row.host_id, row.id)?.is_some()
        {
            return Ok(Adopted::Busy(row.status));
        }
        self.in_savepoint(|w| {
            let adopted = match row {
                Some(row) => w.move_row_to(host, row, &wanted.actor, now)?,
                None => w.make_row_of(host, &wanted, now)?,
            };
            w.forget_stranger(host, wanted.sandbox)?;
            // What its agent announced of it before was ignored.
            w.after.push(After::AnswerLost(host));
            Ok(Adopted::Done(Box::new(adopted)))
        })
    }

    fn move_row_to(
        &mut self,
        host: HostId,
        mut row: Sandbox,
        actor: &Actor,
        now: Now,
    ) -> Result<Sandbox, StoreError> {
        self.rehost(&row, host)?;
        row.host_id = host;
        // Its host lists it; what it is there, the next observation says.
        let audit = Some((AuditAction::Adopt, AuditStatus::Warning));
        let to = self.landing(host, SandboxStatus::Running)?;
        self.move_whole(&mut row, to, Reason::Adopted, None, now, |w, t| {
            w.mover(now, actor)?.move_for(t, audit)
        })?;
        Ok(row)
    }

    fn make_row_of(
        &mut self,
        host: HostId,
        wanted: &Adoption,
        now: Now,
    ) -> Result<Sandbox, StoreError> {
        let (id, team) = (wanted.sandbox, wanted.team.unwrap_or(PLATFORM_TEAM));
        let status = self.landing(host, SandboxStatus::Running)?;
        let reason = Reason::Adopted;
        let sandbox = Sandbox {
            started_at: Some(now.wall),
            status_reason: Some(reason.clone()),
            revision: self.revision + 1,
            ..Sandbox::new(id, host, team, status, now.wall)
        };
        rows::insert_sandbox(&self.conn, &sandbox)?;
        self.usage.made(&sandbox);
        let key = host.to_string();
        let (from, reason, filled_by, detail) = (status, &reason, None, None);
        let t = Move { host, key: &key, id, team, from, to: status, reason, filled_by, detail };
        let audit = Some((AuditAction::Adopt, AuditStatus::Warning));
        self.mover(now, &wanted.actor)?.tell_move(&t, None, audit)?;
        Ok(sandbox)
    }

    /// Moves a row, and what hangs on it, to another host.
    pub(super) fn rehost(&mut self, row: &Sandbox, to: HostId) -> Result<(), StoreError> {
        let (from, id) = (row.host_id.to_string(), row.id.to_string());
        self.conn
            .prepare_cached("DELETE FROM auto_pause_inbox WHERE host_id = ?1 AND sandbox_id = ?2")?
            .execute([&from, &id])?;
        self.conn
            .prepare_cached("UPDATE sandboxes SET host_id = ?3 WHERE host_id = ?1 AND id = ?2")?
            .execute([from, id, to.to_string()])?;
        self.usage.rehosted(row, to);
        Ok(())
    }

    /// Begins to destroy a stranger; `None`: no host is recorded to have it there.
    pub(super) fn destroy_stranger(
        &mut self,
        id: SandboxId,
        host: Option<HostId>,
        actor: &Actor,
        now: Now,
    ) -> Result<Option<Vec<Work>>, StoreError> {
        let seen = self.hosts_with(id)?;
        let wanted: Vec<HostId> =
            seen.into_iter().filter(|h| host.is_none_or(|host| host == *h)).collect();
        if wanted.is_empty() {
            return Ok(None);
        }
        self.in_savepoint(|w| {
            let mut begun = Vec::new();
            for host in wanted {
                w.audit_destroy_of_stranger(id, host, actor, now)?;
                if w.open_operation(host, id)?.is_none() {
                    let destroy = NewOperation::new(host, id, OperationKind::Destroy);
                    begun.push(w.begin_operation(&destroy, now.wall)?);
                }
            }
            Ok(Some(begun))
        })
    }

    fn audit_destroy_of_stranger(
        &mut self,
        id: SandboxId,
        host: HostId,
        actor: &Actor,
        now: Now,
    ) -> Result<(), StoreError> {
        let team = self.host(host)?.map_or(PLATFORM_TEAM, |host| host.team_id);
        let (action, status) = audit_of_wish(OperationKind::Destroy);
        self.journal(now, actor)?.audit(&Audit {
            team,
            resource: (ResourceType::Sandbox, id.text().as_str()),
            action,
            status,
            metadata: &format!(r#"{{"host_id":"{host}"}}"#),
        })?;
        Ok(())
    }

    /// The row of a sandbox, on whichever host.
    pub(super) fn sandbox(&self, id: SandboxId) -> Result<Option<Sandbox>, StoreError> {
        let sql = format!("SELECT {} FROM sandboxes WHERE id = ?1", rows::SANDBOX);
        let mut select = self.conn.prepare_cached(&sql)?;
        Ok(select.query_row([id.to_string()], rows::sandbox).optional()?)
    }
}
