//! Owns the templates that sandboxes are made from: their rows, the hosts that have them,
//! and the lookup of a name.
//!
//! Never: asks an agent to make or delete one (`engine` does); keeps a row for `minimal`,
//! which every agent has; lets "no host has it" come to mean "every host has it".
//!
//! A snapshot that a user deletes is invisible at once. Its row stays, with the hosts that
//! have yet to delete it, until none is left.

use super::StoreError;
use super::bounds::OverQuota;
use super::journal::{Actor, Audit};
use super::read::Page;
use super::rows;
use super::writer::Writer;
use crate::model::event::{AuditAction, AuditStatus, ResourceType};
use crate::model::id::{HostId, PLATFORM_TEAM, SandboxId, TeamId, TemplateId};
use crate::model::sandbox::{Reason, SandboxStatus};
use crate::model::template::{MINIMAL, MINIMAL_ID, Template, TemplateKind, TemplateName};
use crate::model::time::{Now, Wall};
use crate::plan::placement::NoHost;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::{Map, Value, json};

/// Templates that one team may have. Larger: one team fills the database and every listing;
/// smaller: a team with nightly snapshots has to tidy up.
pub const TEMPLATES_MAX: u64 = 1000;

/// Names in the answer to an unknown one. Larger: the answer is no longer read; smaller: the
/// name that was meant is missing.
pub const AVAILABLE_MAX: usize = 20;

/// Columns of a template, in the order that [`template`] reads.
const TEMPLATE: &str = "id, team_id, name, type, vcpus, memory_mb, disk_size_mb, size_bytes, \
    default_user, default_env, metadata, created_at";

/// Reads a template; columns of [`TEMPLATE`]. Its hosts are read afterwards.
fn template(row: &Row<'_>) -> rusqlite::Result<Template> {
    Ok(Template {
        id: rows::id(row, 0)?,
        team_id: rows::id(row, 1)?,
        name: rows::parsed(row, 2)?,
        kind: rows::parsed(row, 3)?,
        vcpus: row.get(4)?,
        memory_mb: row.get(5)?,
        disk_size_mb: row.get(6)?,
        size_bytes: row.get::<_, Option<i64>>(7)?.and_then(|bytes| u64::try_from(bytes).ok()),
        default_user: row.get(8)?,
        default_env: row.get(9)?,
        metadata: row.get(10)?,
        created_at: rows::wall(row, 11)?,
        hosts: Vec::new(),
    })
}

fn with_hosts(conn: &Connection, template: Template) -> Result<Template, StoreError> {
    let mut select = conn.prepare_cached(
        "SELECT host_id FROM template_hosts WHERE template_id = ?1 ORDER BY host_id",
    )?;
    let hosts = select.query_map([template.id.to_string()], |row| rows::id(row, 0))?;
    Ok(Template { hosts: hosts.collect::<Result<_, _>>()?, ..template })
}

/// Writes a template and its hosts.
pub(super) fn insert(
    conn: &Connection,
    template: &Template,
    deleted_at: Option<Wall>,
) -> Result<(), StoreError> {
    let sql = format!(
        "INSERT INTO templates ({TEMPLATE}, deleted_at) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)"
    );
    conn.prepare_cached(&sql)?.execute(params![
        template.id.to_string(),
        template.team_id.to_string(),
        template.name.as_str(),
        template.kind.as_str(),
        template.vcpus,
        template.memory_mb,
        template.disk_size_mb,
        template.size_bytes.and_then(|bytes| i64::try_from(bytes).ok()),
        template.default_user,
        template.default_env,
        template.metadata,
        template.created_at.0,
        deleted_at.map(|at| at.0),
    ])?;
    let mut add =
        conn.prepare_cached("INSERT INTO template_hosts (template_id, host_id) VALUES (?1, ?2)")?;
    for host in &template.hosts {
        add.execute([template.id.to_string(), host.to_string()])?;
    }
    Ok(())
}

/// Whose templates are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// A team's own, then the platform's.
    Team(TeamId),
    /// Every team's: for operators.
    Any,
}

impl Scope {
    /// As a condition in SQL.
    fn condition(self) -> String {
        match self {
            Scope::Team(team) => format!("team_id IN ('{team}', '{PLATFORM_TEAM}')"),
            Scope::Any => "1".to_owned(),
        }
    }
}

/// Templates by name, `minimal` first.
pub fn list(
    conn: &Connection,
    scope: Scope,
    kind: Option<TemplateKind>,
) -> Result<Vec<Template>, StoreError> {
    Ok(list_after(conn, scope, kind, None, i64::from(u32::MAX))?.rows)
}

/// Those behind this name of this team, at most so many. `minimal` comes before all names.
pub fn list_after(
    conn: &Connection,
    scope: Scope,
    kind: Option<TemplateKind>,
    after: Option<(String, TeamId)>,
    limit: i64,
) -> Result<Page<Template>, StoreError> {
    let mut found = Vec::new();
    if after.is_none() && kind != Some(TemplateKind::Snapshot) {
        found.push(minimal(conn)?);
    }
    let sql = format!(
        "SELECT {TEMPLATE} FROM templates WHERE deleted_at IS NULL AND {} \
         AND (?1 IS NULL OR type = ?1) AND (name, team_id) > (?2, ?3) \
         ORDER BY name, team_id LIMIT ?4",
        scope.condition()
    );
    let mut select = conn.prepare(&sql)?;
    let (name, team) = after.map(|(name, team)| (name, team.to_string())).unwrap_or_default();
    let kind = kind.map(TemplateKind::as_str);
    let stored = select.query_map(params![kind, name, team, limit + 1], template)?;
    for template in stored {
        found.push(with_hosts(conn, template?)?);
    }
    Ok(Page::cut(found, limit))
}

/// Every template that has a row, by id, and since when it is being deleted.
pub(super) fn all(conn: &Connection) -> Result<Vec<(Template, Option<Wall>)>, StoreError> {
    let sql = format!("SELECT {TEMPLATE}, deleted_at FROM templates ORDER BY id");
    let mut select = conn.prepare_cached(&sql)?;
    let found = select
        .query_map([], |row| Ok((template(row)?, row.get::<_, Option<i64>>(12)?.map(Wall))))?;
    let found: Vec<_> = found.collect::<Result<_, _>>()?;
    let whole = |(template, deleted_at)| Ok((with_hosts(conn, template)?, deleted_at));
    found.into_iter().map(whole).collect()
}

/// `minimal`, as old as the database.
fn minimal(conn: &Connection) -> Result<Template, StoreError> {
    let created = conn.query_row("SELECT created_at FROM state", [], |row| rows::wall(row, 0))?;
    Ok(Template::minimal(created))
}

/// Every template that a name or an id means: at most one for a team, whose own counts before
/// the platform's.
fn find(conn: &Connection, scope: Scope, wanted: &str) -> Result<Vec<Template>, StoreError> {
    if wanted == MINIMAL || wanted.parse() == Ok(MINIMAL_ID) {
        return Ok(vec![minimal(conn)?]);
    }
    // No name looks like an id.
    let column = if wanted.parse::<TemplateId>().is_ok() { "id" } else { "name" };
    let sql = format!(
        "SELECT {TEMPLATE} FROM templates WHERE deleted_at IS NULL AND {} AND {column} = ?1 \
         ORDER BY team_id = '{PLATFORM_TEAM}', team_id",
        scope.condition()
    );
    let mut select = conn.prepare(&sql)?;
    let found = select.query_map([wanted], template)?;
    let mut found: Vec<Template> = found.collect::<Result<_, _>>()?;
    if let Scope::Team(_) = scope {
        found.truncate(1);
    }
    found.into_iter().map(|template| with_hosts(conn, template)).collect()
}

/// One template, also one that is being deleted.
pub(super) fn by_id(conn: &Connection, id: TemplateId) -> Result<Option<Template>, StoreError> {
    let sql = format!("SELECT {TEMPLATE} FROM templates WHERE id = ?1");
    let found = conn.prepare_cached(&sql)?.query_row([id.to_string()], template).optional()?;
    found.map(|template| with_hosts(conn, template)).transpose()
}

/// How many there are of each type, in the order of [`TemplateKind::ALL`].
pub fn counts(conn: &Connection) -> Result<[u64; TemplateKind::ALL.len()], StoreError> {
    let mut counts = [0; TemplateKind::ALL.len()];
    let mut select = conn.prepare_cached(
        "SELECT type, count(*) FROM templates WHERE deleted_at IS NULL GROUP BY type",
    )?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        counts[rows::parsed::<TemplateKind>(row, 0)? as usize] = rows::unsigned(row, 1)?;
    }
    Ok(counts)
}

/// How many templates hosts have yet to delete, each counted once for each host.
pub fn to_delete(conn: &Connection) -> Result<u64, StoreError> {
    let mut count = conn.prepare_cached(
        "SELECT count(*) FROM templates t JOIN template_hosts h ON h.template_id = t.id \
         WHERE t.deleted_at IS NOT NULL",
    )?;
    Ok(count.query_row([], |row| rows::unsigned(row, 0))?)
}

/// An unknown template, and what could have been named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    /// Names, at most [`AVAILABLE_MAX`].
    pub available: Vec<String>,
    /// How many more there are.
    pub more: usize,
}

/// What a team can name.
pub fn available(conn: &Connection, scope: Scope) -> Result<Unknown, StoreError> {
    let sql = format!(
        "SELECT DISTINCT name FROM templates WHERE deleted_at IS NULL AND {} ORDER BY name",
        scope.condition()
    );
    let mut select = conn.prepare(&sql)?;
    let names = select.query_map([], |row| row.get(0))?;
    let mut available = vec![MINIMAL.to_owned()];
    for name in names {
        available.push(name?);
    }
    let more = available.len().saturating_sub(AVAILABLE_MAX);
    available.truncate(AVAILABLE_MAX);
    Ok(Unknown { available, more })
}

/// Why a sandbox was not made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotMade {
    /// There is no room for it.
    NoHost(NoHost),
    /// Hosts have room, and none of them has this template.
    NoHostHas(TemplateName),
    /// There is no such template.
    NoTemplate(Unknown),
    /// The team has to wait.
    OverQuota(OverQuota),
}

/// A template that an operator has put on hosts.
#[derive(Debug, Clone)]
pub struct NewTemplate {
    /// The id that agents know it by; `None`: a new one.
    pub id: Option<TemplateId>,
    /// Who owns it.
    pub team: TeamId,
    /// Its name.
    pub name: TemplateName,
    /// Virtual processors of a sandbox whose request does not say.
    pub vcpus: Option<u32>,
    /// The same for memory in MiB.
    pub memory_mb: Option<u32>,
    /// The same for the disk in MiB.
    pub disk_size_mb: Option<u32>,
    /// User that commands run as.
    pub default_user: Option<String>,
    /// Environment of commands: a JSON object of strings.
    pub default_env: Option<String>,
    /// Hosts that have it; none: every host.
    pub hosts: Vec<HostId>,
    /// Who adds it.
    pub actor: Actor,
}

/// What became of [`NewTemplate`].
#[derive(Debug, Clone)]
pub enum Added {
    /// It is there.
    Added(Box<Template>),
    /// The team has one of this name, or is making one.
    NameTaken,
    /// Another template has this id.
    IdTaken(TemplateId),
    /// There is no such host; its place in the list.
    NoHost(usize, HostId),
    /// The team has [`TEMPLATES_MAX`].
    TooMany,
}

/// What is to be done with a template that is no longer wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposal {
    /// Its hosts delete it.
    Delete,
    /// Its hosts keep it.
    Forget,
}

/// A template that is no longer wanted.
#[derive(Debug, Clone)]
pub struct Removal {
    /// Its name or id.
    pub wanted: String,
    /// Where that is looked up.
    pub scope: Scope,
    /// Whether an operator requests it.
    pub by_operator: bool,
    /// What is to be done.
    pub disposal: Disposal,
    /// Who requests it.
    pub actor: Actor,
}

/// What became of a [`Removal`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// It can no longer be named.
    Removed(Box<Template>),
    /// There is no such template.
    NotFound(Unknown),
    /// The name means several, of different teams.
    Ambiguous(Vec<TemplateId>),
    /// It is the platform's, and only operators remove these.
    Platform,
    /// It is part of every agent.
    Minimal,
    /// An operator put it on the hosts: Roost does not delete it there.
    NoSnapshot(Box<Template>),
    /// These sandboxes are being made from it.
    InUse(Vec<SandboxId>),
}

/// A template that a host has yet to delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Erasure {
    /// Which host.
    pub host: HostId,
    /// Which template.
    pub template: TemplateId,
    /// The team that owns it: agents know it by both.
    pub team: TeamId,
}

/// What hosts have yet to delete. A template that a sandbox of the host was made from, and
/// may need again, waits for the end of that sandbox.
pub fn erasures(conn: &Connection) -> Result<Vec<Erasure>, StoreError> {
    let mut select = conn.prepare_cached(
        "SELECT h.host_id, t.id, t.team_id FROM templates t \
         JOIN template_hosts h ON h.template_id = t.id WHERE t.deleted_at IS NOT NULL \
         AND NOT EXISTS (SELECT 1 FROM sandboxes s INDEXED BY sandboxes_by_host \
             WHERE s.host_id = h.host_id AND s.ended = 0 AND s.template_id = t.id) \
         ORDER BY h.host_id, t.deleted_at, t.id",
    )?;
    let found = select.query_map([], |row| {
        Ok(Erasure {
            host: rows::id(row, 0)?,
            template: rows::id(row, 1)?,
            team: rows::id(row, 2)?,
        })
    })?;
    Ok(found.collect::<Result<_, _>>()?)
}

impl Writer {
    /// The template that a new sandbox of this team is made from.
    pub(super) fn template_for(
        &self,
        team: TeamId,
        wanted: &str,
    ) -> Result<Result<Template, Unknown>, StoreError> {
        let scope = Scope::Team(team);
        Ok(match find(&self.conn, scope, wanted)?.pop() {
            Some(template) => Ok(template),
            None => Err(available(&self.conn, scope)?),
        })
    }

    /// Adds what an operator has put on hosts.
    pub(super) fn add_template(&mut self, new: NewTemplate, now: Now) -> Result<Added, StoreError> {
        for (at, host) in new.hosts.iter().enumerate() {
            if self.host(*host)?.is_none() {
                return Ok(Added::NoHost(at, *host));
            }
        }
        if self.has_enough_templates(new.team)? {
            return Ok(Added::TooMany);
        }
        if !matches!(self.holder_of(new.team, &new.name)?, Holder::Free) {
            return Ok(Added::NameTaken);
        }
        let id = new.id.unwrap_or_else(|| self.random.id());
        if by_id(&self.conn, id)?.is_some() {
            return Ok(Added::IdTaken(id));
        }
        let mut hosts = new.hosts;
        crate::model::order::distinct(&mut hosts);
        let template = Template {
            id,
            team_id: new.team,
            name: new.name,
            kind: TemplateKind::Base,
            vcpus: new.vcpus,
            memory_mb: new.memory_mb,
            disk_size_mb: new.disk_size_mb,
            size_bytes: None,
            default_user: new.default_user,
            default_env: new.default_env,
            metadata: None,
            created_at: now.wall,
            hosts,
        };
        self.in_savepoint(|w| {
            insert(&w.conn, &template, None)?;
            w.audit_template(&template, AuditAction::Create, None, &new.actor, now)?;
            Ok(Added::Added(Box::new(template)))
        })
    }

    /// Removes a template: at once from what can be named, later from its hosts.
    pub(super) fn remove_template(
        &mut self,
        removal: &Removal,
        now: Now,
    ) -> Result<Removed, StoreError> {
        let mut found = find(&self.conn, removal.scope, &removal.wanted)?;
        if found.len() > 1 {
            return Ok(Removed::Ambiguous(found.iter().map(|template| template.id).collect()));
        }
        let Some(template) = found.pop() else {
            return Ok(Removed::NotFound(available(&self.conn, removal.scope)?));
        };
        if template.is_minimal() {
            return Ok(Removed::Minimal);
        }
        if template.is_platform() && !removal.by_operator {
            return Ok(Removed::Platform);
        }
        if template.kind == TemplateKind::Base && removal.disposal == Disposal::Delete {
            return Ok(Removed::NoSnapshot(Box::new(template)));
        }
        let starting = self.starting_from(&template)?;
        if !starting.is_empty() {
            return Ok(Removed::InUse(starting));
        }
        self.in_savepoint(|w| {
            match removal.disposal {
                Disposal::Delete => w.hide_template(template.id, now.wall)?,
                Disposal::Forget => w.forget_template(template.id)?,
            }
            w.audit_template(&template, AuditAction::Delete, None, &removal.actor, now)?;
            Ok(Removed::Removed(Box::new(template)))
        })
    }

    /// Sandboxes that are being made from a template.
    fn starting_from(&self, template: &Template) -> Result<Vec<SandboxId>, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT id FROM sandboxes INDEXED BY sandboxes_by_host WHERE host_id = ?1 \
             AND ended = 0 AND template_id = ?2 AND status = 'starting'",
        )?;
        let mut starting: Vec<SandboxId> = Vec::new();
        // Only hosts are read that have such a sandbox.
        for host in self.usage.hosts_with(SandboxStatus::Starting) {
            if template.hosts.is_empty() || template.hosts.contains(&host) {
                let of = [host.to_string(), template.id.to_string()];
                for id in select.query_map(of, |row| rows::id(row, 0))? {
                    starting.push(id?);
                }
            }
        }
        starting.sort_unstable();
        Ok(starting)
    }

    /// Can no longer be named; its hosts have yet to delete it.
    pub(super) fn hide_template(&mut self, id: TemplateId, now: Wall) -> Result<(), StoreError> {
        let mut hide =
            self.conn.prepare_cached("UPDATE templates SET deleted_at = ?2 WHERE id = ?1")?;
        hide.execute(params![id.to_string(), now.0])?;
        drop(hide);
        self.drop_deleted(id)
    }

    fn forget_template(&mut self, id: TemplateId) -> Result<(), StoreError> {
        for sql in [
            "DELETE FROM template_hosts WHERE template_id = ?1",
            "DELETE FROM templates WHERE id = ?1",
        ] {
            self.conn.prepare_cached(sql)?.execute([id.to_string()])?;
        }
        Ok(())
    }

    /// Removes the row of a deleted template that no host has any more.
    fn drop_deleted(&mut self, id: TemplateId) -> Result<(), StoreError> {
        let mut delete = self.conn.prepare_cached(
            "DELETE FROM templates WHERE id = ?1 AND deleted_at IS NOT NULL \
             AND NOT EXISTS (SELECT 1 FROM template_hosts WHERE template_id = ?1)",
        )?;
        Ok(delete.execute([id.to_string()]).map(drop)?)
    }

    /// A host has deleted a template, or never had it.
    pub(super) fn erased(&mut self, erasure: Erasure) -> Result<(), StoreError> {
        let mut delete = self.conn.prepare_cached(
            "DELETE FROM template_hosts WHERE template_id = ?1 AND host_id = ?2 AND EXISTS \
             (SELECT 1 FROM templates WHERE id = ?1 AND deleted_at IS NOT NULL)",
        )?;
        delete.execute([erasure.template.to_string(), erasure.host.to_string()])?;
        drop(delete);
        self.drop_deleted(erasure.template)
    }

    /// A host leaves: what only it has is gone with it. Part of the host's deletion.
    pub(super) fn drop_templates_of(
        &mut self,
        host: HostId,
        actor: &Actor,
        now: Now,
    ) -> Result<(), StoreError> {
        let key = host.to_string();
        let sql = format!(
            "SELECT {TEMPLATE}, deleted_at IS NOT NULL FROM templates t WHERE \
             EXISTS (SELECT 1 FROM template_hosts WHERE template_id = t.id AND host_id = ?1) \
             AND NOT EXISTS \
             (SELECT 1 FROM template_hosts WHERE template_id = t.id AND host_id <> ?1)"
        );
        let mut select = self.conn.prepare_cached(&sql)?;
        let found = select.query_map([&key], |row| Ok((template(row)?, row.get(12)?)))?;
        let only_there: Vec<(Template, bool)> = found.collect::<Result<_, _>>()?;
        drop(select);
        for (template, deleted) in only_there {
            self.forget_template(template.id)?;
            if !deleted {
                let why = Some(&Reason::HostDeleted);
                self.audit_template(&template, AuditAction::Delete, why, actor, now)?;
            }
        }
        let mut delete =
            self.conn.prepare_cached("DELETE FROM template_hosts WHERE host_id = ?1")?;
        Ok(delete.execute([key]).map(drop)?)
    }

    pub(super) fn has_enough_templates(&self, team: TeamId) -> Result<bool, StoreError> {
        let mut count = self.conn.prepare_cached(
            "SELECT count(*) FROM templates WHERE team_id = ?1 AND deleted_at IS NULL",
        )?;
        Ok(count.query_row([team.to_string()], |row| rows::unsigned(row, 0))? >= TEMPLATES_MAX)
    }

    /// Who has a name within a team.
    pub(super) fn holder_of(
        &self,
        team: TeamId,
        name: &TemplateName,
    ) -> Result<Holder, StoreError> {
        let sql = format!(
            "SELECT {TEMPLATE} FROM templates \
             WHERE team_id = ?1 AND name = ?2 AND deleted_at IS NULL"
        );
        let of = [team.to_string(), name.to_string()];
        let found =
            self.conn.prepare_cached(&sql)?.query_row(of.each_ref(), template).optional()?;
        if let Some(template) = found {
            return Ok(Holder::Template(Box::new(template)));
        }
        let mut select = self.conn.prepare_cached(
            "SELECT 1 FROM operations o INDEXED BY operations_unfinished \
             JOIN sandboxes s ON s.host_id = o.host_id AND s.id = o.sandbox_id \
             WHERE o.finished_at IS NULL AND o.template_name = ?2 AND s.team_id = ?1",
        )?;
        Ok(if select.exists(of.each_ref())? { Holder::Operation } else { Holder::Free })
    }

    pub(super) fn audit_template(
        &mut self,
        template: &Template,
        action: AuditAction,
        reason: Option<&Reason>,
        actor: &Actor,
        now: Now,
    ) -> Result<(), StoreError> {
        let is_end = action == AuditAction::Delete;
        let status = if is_end { AuditStatus::Warning } else { AuditStatus::Success };
        let id = template.id.to_string();
        let mut metadata = Map::new();
        metadata.insert("name".to_owned(), json!(template.name.as_str()));
        metadata.insert("type".to_owned(), json!(template.kind));
        metadata.extend(reason.map(|reason| ("reason".to_owned(), json!(reason))));
        self.journal(now, actor)?.audit(&Audit {
            team: template.team_id,
            resource: (ResourceType::Template, &id),
            action,
            status,
            metadata: &Value::Object(metadata).to_string(),
        })?;
        Ok(())
    }
}

/// Who has a name.
pub(super) enum Holder {
    /// Nothing has it.
    Free,
    /// A template.
    Template(Box<Template>),
    /// A snapshot in progress.
    Operation,
}

#[cfg(test)]
pub(super) mod tests;
