//! Owns snapshots: how one that makes a template of a sandbox begins, how it went, and what
//! it leaves in the tables.
//!
//! Never: asks an agent (`engine` does), decides what became of the sandbox (an observation
//! does); gives one name to two templates of a team.

use super::StoreError;
use super::bounds::OverQuota;
use super::journal::Actor;
use super::lifecycle::{NewOperation, Work};
use super::read;
use super::rows;
use super::templates::{Holder, by_id, insert};
use super::writer::Writer;
use crate::model::event::AuditAction;
use crate::model::host::HostStatus;
use crate::model::id::{OpId, SandboxId, TeamId, TemplateId};
use crate::model::operation::OperationKind;
use crate::model::sandbox::{Reason, Sandbox, SandboxStatus};
use crate::model::template::{Template, TemplateKind, TemplateName};
use crate::model::time::{Now, Wall};
use crate::plan::history::audit_of_wish;
use crate::plan::operation::{may_begin, transient};
use rusqlite::{Connection, OptionalExtension};

/// A snapshot that a user requests.
#[derive(Debug, Clone)]
pub struct NewSnapshot {
    /// Of which sandbox.
    pub sandbox: SandboxId,
    /// Only if this team owns it; `None` for operators.
    pub team: Option<TeamId>,
    /// What it is to be called; `None`: after its template and the moment.
    pub name: Option<TemplateName>,
    /// Whether it may take the place of another snapshot of this name.
    pub overwrite: bool,
    /// Who requests it.
    pub actor: Actor,
}

/// What became of a [`NewSnapshot`].
#[derive(Debug, Clone)]
pub enum SnapshotBegun {
    /// It is in progress.
    Started(Box<Sandbox>, Box<Work>),
    /// The same is in progress already.
    Already(Box<Sandbox>, Box<Work>),
    /// Not in this status, or another operation is in progress.
    InvalidState(SandboxStatus),
    /// Its host cannot do it now.
    HostAway(HostStatus),
    /// No such sandbox, or another team's.
    NotFound,
    /// The team has a template of this name, or is making one.
    NameTaken(TemplateName),
    /// The platform has a template of this name, and only operators replace these.
    Platform(TemplateName),
    /// The team has [`TEMPLATES_MAX`].
    TooMany,
    /// The team has to wait.
    OverQuota(OverQuota),
}

/// How a snapshot went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotOutcome {
    /// It is in progress.
    UnderWay,
    /// The template is there.
    Made(Box<Template>),
    /// It failed, for this reason.
    Failed(String),
}

/// How a snapshot that was begun went.
pub fn snapshot_outcome(conn: &Connection, op: OpId) -> Result<SnapshotOutcome, StoreError> {
    let sql = "SELECT finished_at IS NOT NULL, error, template_id FROM operations WHERE id = ?1";
    let found = conn
        .prepare_cached(sql)?
        .query_row([op.to_string()], |row| {
            Ok((row.get(0)?, row.get(1)?, rows::parsed_opt(row, 2)?))
        })
        .optional()?;
    let failed = |why: Option<String>| {
        SnapshotOutcome::Failed(why.unwrap_or_else(|| "the snapshot was not made".to_owned()))
    };
    Ok(match found {
        Some((false, _, _)) => SnapshotOutcome::UnderWay,
        Some((true, None, Some(id))) => match by_id(conn, id)? {
            Some(template) => SnapshotOutcome::Made(Box::new(template)),
            None => failed(None),
        },
        Some((true, error, _)) => failed(error),
        None => failed(None),
    })
}

impl Writer {
    /// Begins to make a template of a sandbox, which belongs to the operation until it is
    /// done.
    pub(super) fn begin_snapshot(
        &mut self,
        new: NewSnapshot,
        now: Now,
    ) -> Result<SnapshotBegun, StoreError> {
        let found = read::sandbox(&self.conn, new.sandbox)?;
        let may_see = |s: &Sandbox| new.team.is_none_or(|team| team == s.team_id);
        let Some(sandbox) = found.filter(may_see) else { return Ok(SnapshotBegun::NotFound) };
        if let Some(work) = self.open_operation(sandbox.host_id, sandbox.id)? {
            return Ok(match is_same(&work, &new) {
                true => SnapshotBegun::Already(Box::new(sandbox), Box::new(work)),
                false => SnapshotBegun::InvalidState(sandbox.status),
            });
        }
        let reason = sandbox.status_reason.as_ref();
        if !may_begin(OperationKind::Snapshot, sandbox.status, reason) {
            return Ok(SnapshotBegun::InvalidState(sandbox.status));
        }
        if let Some(away) = self.host_is_away(&sandbox, OperationKind::Snapshot)? {
            return Ok(SnapshotBegun::HostAway(away));
        }
        let name = match self.snapshot_name(&sandbox, &new, now.wall)? {
            Ok(name) => name,
            Err(refusal) => return Ok(refusal),
        };
        if let Err(over) = self.may_change(sandbox.team_id, &new.actor, now) {
            return Ok(SnapshotBegun::OverQuota(over));
        }
        self.in_savepoint(|w| w.write_snapshot(sandbox, &name, &new.actor, now))
    }

    /// What a snapshot is called, or why it cannot be called so.
    fn snapshot_name(
        &self,
        sandbox: &Sandbox,
        new: &NewSnapshot,
        now: Wall,
    ) -> Result<Result<TemplateName, SnapshotBegun>, StoreError> {
        let team = sandbox.team_id;
        let holder = match &new.name {
            Some(name) => self.holder_of(team, name)?,
            None => Holder::Free,
        };
        let replaces = match (&new.name, &holder) {
            (Some(name), Holder::Template(held)) => {
                if !new.overwrite || held.kind == TemplateKind::Base {
                    return Ok(Err(SnapshotBegun::NameTaken(name.clone())));
                }
                if held.is_platform() && new.team.is_some() {
                    return Ok(Err(SnapshotBegun::Platform(name.clone())));
                }
                true
            }
            (Some(name), Holder::Operation) => {
                return Ok(Err(SnapshotBegun::NameTaken(name.clone())));
            }
            (_, Holder::Free) | (None, _) => false,
        };
        if !replaces && self.has_enough_templates(team)? {
            return Ok(Err(SnapshotBegun::TooMany));
        }
        match &new.name {
            Some(name) => Ok(Ok(name.clone())),
            None => self.free_name(sandbox, now).map(Ok),
        }
    }

    /// A name after the sandbox's template and this second, or the next that is free.
    fn free_name(&self, sandbox: &Sandbox, now: Wall) -> Result<TemplateName, StoreError> {
        let mut at = now;
        loop {
            let name = TemplateName::of_snapshot(sandbox.template.as_deref(), at);
            if matches!(self.holder_of(sandbox.team_id, &name)?, Holder::Free) {
                return Ok(name);
            }
            at = Wall(at.0.saturating_add(1000));
        }
    }

    fn write_snapshot(
        &mut self,
        mut sandbox: Sandbox,
        name: &TemplateName,
        actor: &Actor,
        now: Now,
    ) -> Result<SnapshotBegun, StoreError> {
        let host = sandbox.host_id;
        let id: TemplateId = self.random.id();
        let operation = NewOperation {
            from: Some(sandbox.status),
            makes: Some((id, name.to_string())),
            ..NewOperation::new(host, sandbox.id, OperationKind::Snapshot)
        };
        // It may have paused itself already; then the agent will refuse.
        self.keep_announced(&host.to_string(), self.revision + 1)?;
        let audit = Some(audit_of_wish(OperationKind::Snapshot));
        let (to, reason) = (transient(OperationKind::Snapshot), Reason::Requested);
        self.move_whole(&mut sandbox, to, reason, None, now, |w, t| {
            w.mover(now, actor)?.move_for(t, audit)
        })?;
        let work = self.begin_operation(&operation, now.wall)?;
        Ok(SnapshotBegun::Started(Box::new(sandbox), Box::new(work)))
    }

    /// The template that a snapshot makes is there, on the host of its sandbox: it can be
    /// named from now on, and takes the place of another of its name. Part of the end of the
    /// operation; the sandbox's row still has to be there.
    pub(super) fn template_made(
        &mut self,
        work: &Work,
        size_bytes: Option<u64>,
        now: Now,
    ) -> Result<(), StoreError> {
        let Some(template) = self.template_of(work, size_bytes, now.wall)? else { return Ok(()) };
        if let Holder::Template(replaced) = self.holder_of(template.team_id, &template.name)? {
            self.hide_template(replaced.id, now.wall)?;
            let why = Some(&Reason::Requested);
            self.audit_template(&replaced, AuditAction::Delete, why, &Actor::SYSTEM, now)?;
        }
        insert(&self.conn, &template, None)?;
        let why = Some(&Reason::Snapshotted);
        self.audit_template(&template, AuditAction::Create, why, &Actor::SYSTEM, now)
    }

    /// A snapshot failed or was overtaken, and its sandbox is still there or no longer
    /// wanted: what the agent may have left of it has to be deleted. Not for a sandbox that
    /// the agent has given up: then this may be all that is left of it.
    pub(super) fn template_not_made(&mut self, work: &Work, now: Now) -> Result<(), StoreError> {
        match self.template_of(work, None, now.wall)? {
            Some(template) => insert(&self.conn, &template, Some(now.wall)),
            None => Ok(()),
        }
    }

    /// What a snapshot makes; `None` for another operation, or when it is there already.
    fn template_of(
        &self,
        work: &Work,
        size_bytes: Option<u64>,
        now: Wall,
    ) -> Result<Option<Template>, StoreError> {
        let Some((id, name)) = &work.makes else { return Ok(None) };
        let bad = |error| StoreError::BadRow(format!("{}: template name {error}", work.op));
        let name: TemplateName = name.parse().map_err(bad)?;
        let sandbox = read::sandbox(&self.conn, work.sandbox)?;
        let Some(sandbox) = sandbox.filter(|sandbox| sandbox.host_id == work.host) else {
            return Ok(None);
        };
        if by_id(&self.conn, *id)?.is_some() {
            return Ok(None);
        }
        let small = |size: Option<u64>| size.and_then(|size| u32::try_from(size).ok());
        Ok(Some(Template {
            id: *id,
            team_id: sandbox.team_id,
            name,
            kind: TemplateKind::Snapshot,
            vcpus: sandbox.vcpus,
            memory_mb: small(sandbox.memory_mb),
            disk_size_mb: small(sandbox.disk_size_mb),
            size_bytes,
            default_user: sandbox.default_user,
            default_env: sandbox.default_env,
            metadata: sandbox.metadata,
            created_at: now,
            hosts: vec![work.host],
        }))
    }
}

/// Whether a snapshot in progress is the one that is wanted.
fn is_same(work: &Work, new: &NewSnapshot) -> bool {
    let same_name = |made: &str| new.name.as_ref().is_none_or(|name| name.as_str() == made);
    work.makes.as_ref().is_some_and(|(_, made)| same_name(made))
}

#[cfg(test)]
mod tests;
