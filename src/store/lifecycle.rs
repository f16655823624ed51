//! Owns lifecycle operations as durable rows: how they begin, what is noted while they
//! are carried out, how they end.
//!
//! Never: calls an agent; lets two unfinished operations own one sandbox.

use super::StoreError;
use super::journal::Actor;
use super::rows;
use super::templates::NotMade;
use super::transition::Move;
use super::writer::{After, Writer};
use crate::model::host::HostStatus;
use crate::model::id::{HostId, OpId, PLATFORM_TEAM, SandboxId, TeamId, TemplateId};
use crate::model::operation::OperationKind;
use crate::model::probe::Details;
use crate::model::sandbox::{Reason, Sandbox, SandboxStatus};
use crate::model::template::{
    DISK_SIZE_MB_DEFAULT, MEMORY_MB_DEFAULT, TemplateName, VCPUS_DEFAULT,
};
use crate::model::time::{Mono, Now, Wall};
use crate::plan::history::audit_of_wish;
use crate::plan::operation::{Answer, may_begin, transient};
use crate::plan::placement::{Candidate, Need, NoHost, place};
use rusqlite::{Connection, OptionalExtension, Row, params};

/// What an operation worker needs to carry an operation out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// Which operation.
    pub op: OpId,
    /// What was asked for.
    pub kind: OperationKind,
    /// Of which sandbox.
    pub sandbox: SandboxId,
    /// On which host.
    pub host: HostId,
    /// When the operation stops owning the sandbox.
    pub deadline_at: Wall,
    /// The agent may have been asked before we started.
    pub sent: bool,
    /// Until then a create that this destroy overtook may still come true.
    pub settle_at: Option<Wall>,
    /// Who owns the sandbox.
    pub team: TeamId,
    /// What it is made from.
    pub template: Option<String>,
    /// Virtual processors.
    pub vcpus: Option<u32>,
    /// Memory in MiB.
    pub memory_mb: Option<u64>,
    /// Idle seconds before the agent pauses it.
    pub timeout_sec: Option<i64>,
    /// Disk in MiB.
    pub disk_size_mb: Option<u64>,
    /// What the agent said of it.
    pub metadata: Option<String>,
    /// Id of the template that it is made from; `None` for `minimal`.
    pub template_id: Option<TemplateId>,
    /// The team that owns that template; `None` when the template is gone.
    pub template_team: Option<TeamId>,
    /// User that its commands run as.
    pub default_user: Option<String>,
    /// Environment of its commands: a JSON object of strings.
    pub default_env: Option<String>,
    /// Status of the sandbox when the operation began, where that matters.
    pub from_status: Option<SandboxStatus>,
    /// The template that a snapshot makes.
    pub makes: Option<Makes>,
}

/// The template that a snapshot makes, for the team that owns the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Makes {
    /// Its id.
    pub id: TemplateId,
    /// Its name.
    pub name: TemplateName,
}

/// A sandbox that somebody wants.
#[derive(Debug, Clone)]
pub struct NewSandbox {
    /// Who owns it.
    pub team: TeamId,
    /// Name or id of the template that it is made from.
    pub template: String,
    /// Virtual processors; `None` for the template's.
    pub vcpus: Option<u32>,
    /// Memory in MiB; `None` for the template's.
    pub memory_mb: Option<u32>,
    /// Idle seconds before the agent pauses it; 0 is never.
    pub timeout_sec: u32,
    /// Disk in MiB; `None` for the template's.
    pub disk_size_mb: Option<u32>,
    /// Who wants it.
    pub actor: Actor,
}

/// An operation that somebody wants on an existing sandbox.
#[derive(Debug, Clone)]
pub struct Wish {
    /// On which sandbox.
    pub sandbox: SandboxId,
    /// What.
    pub kind: OperationKind,
    /// Only if this team owns it; `None` for whoever may see all.
    pub team: Option<TeamId>,
    /// Who wants it.
    pub actor: Actor,
}

/// What came of a wish.
#[derive(Debug, Clone)]
pub enum Begun {
    /// It is under way.
    Started(Box<Sandbox>, Box<Work>),
    /// The same is under way already.
    Already(Box<Sandbox>),
    /// Not in this status.
    InvalidState(SandboxStatus),
    /// Its host is not there to do it.
    HostAway(HostStatus),
    /// No such sandbox, or another team's.
    NotFound,
}

/// How an operation ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Which one.
    pub op: OpId,
    /// On which host.
    pub host: HostId,
    /// The status that its sandbox gets.
    pub status: SandboxStatus,
    /// Why.
    pub reason: Reason,
    /// What the agent says of a sandbox that runs.
    pub details: Option<Details>,
    /// What went wrong, for people.
    pub error: Option<String>,
    /// When this was known; it may be written much later.
    pub known_at: Mono,
}

/// An operation whose outcome a look at the host must tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Looking {
    pub(super) since: Mono,
    pub(super) answer: Answer,
}

impl Looking {
    /// Asked before we started: every look tells.
    pub(super) const fn since_ever() -> Looking {
        Looking { since: Mono(0), answer: Answer::Unclear }
    }
}

/// Columns of [`Work`].
const WORK: &str = "o.id, o.kind, o.sandbox_id, o.host_id, o.deadline_at, o.sent_at, o.settle_at, \
    coalesce(s.team_id, h.team_id), s.template, s.vcpus, s.memory_mb, s.timeout_sec, \
    s.disk_size_mb, s.metadata, s.template_id, t.team_id, s.default_user, s.default_env, \
    o.from_status, o.template_id, o.template_name \
    FROM operations o JOIN hosts h ON h.id = o.host_id \
    LEFT JOIN sandboxes s ON s.host_id = o.host_id AND s.id = o.sandbox_id \
    LEFT JOIN templates t ON t.id = s.template_id";

fn work(row: &Row<'_>) -> rusqlite::Result<Work> {
    Ok(Work {
        op: rows::id(row, 0)?,
        kind: rows::parsed(row, 1)?,
        sandbox: rows::id(row, 2)?,
        host: rows::id(row, 3)?,
        deadline_at: rows::wall(row, 4)?,
        sent: row.get::<_, Option<i64>>(5)?.is_some(),
        settle_at: row.get::<_, Option<i64>>(6)?.map(Wall),
        team: rows::id(row, 7)?,
        template: row.get(8)?,
        vcpus: row.get(9)?,
        memory_mb: row.get::<_, Option<u32>>(10)?.map(u64::from),
        timeout_sec: row.get(11)?,
        disk_size_mb: row.get::<_, Option<u32>>(12)?.map(u64::from),
        metadata: row.get(13)?,
        template_id: rows::parsed_opt(row, 14)?,
        template_team: rows::parsed_opt(row, 15)?,
        default_user: row.get(16)?,
        default_env: row.get(17)?,
        from_status: rows::parsed_opt(row, 18)?,
        makes: makes(row)?,
    })
}

fn makes(row: &Row<'_>) -> rusqlite::Result<Option<Makes>> {
    let Some(id) = rows::parsed_opt(row, 19)? else { return Ok(None) };
    Ok(Some(Makes { id, name: rows::parsed(row, 20)? }))
}

/// Every unfinished operation, oldest first: what a start takes up again.
pub fn unfinished(conn: &Connection) -> Result<Vec<Work>, StoreError> {
    let sql = format!("SELECT {WORK} WHERE o.finished_at IS NULL ORDER BY o.created_at, o.id");
    let mut select = conn.prepare(&sql)?;
    let works = select.query_map([], work)?.collect::<Result<_, _>>()?;
    Ok(works)
}

/// Statuses that hold, or may hold, a microVM: what placement counts.
const HOLDS_A_MICROVM: &str =
    "('pending', 'starting', 'running', 'pausing', 'resuming', 'stopping', 'missing')";

impl Writer {
    /// Makes a sandbox of a template, on the least loaded host that has it, and begins its
    /// create.
    pub(super) fn create_sandbox(
        &mut self,
        new: NewSandbox,
        now: Now,
    ) -> Result<Result<(Sandbox, Work), NotMade>, StoreError> {
        let template = match self.template_for(new.team, &new.template)? {
            Ok(template) => template,
            Err(unknown) => return Ok(Err(NotMade::NoTemplate(unknown))),
        };
        let template_id = (!template.is_minimal()).then_some(template.id);
        let vcpus = new.vcpus.or(template.vcpus).unwrap_or(VCPUS_DEFAULT);
        let memory_mb = new.memory_mb.or(template.memory_mb).unwrap_or(MEMORY_MB_DEFAULT);
        let disk_size_mb =
            new.disk_size_mb.or(template.disk_size_mb).unwrap_or(DISK_SIZE_MB_DEFAULT);
        let (hosts, candidates) = self.candidates(new.team, template_id)?;
        let need = Need { vcpus, memory_mb: u64::from(memory_mb) };
        let host = match place(&candidates, need) {
            Ok(at) => hosts[at],
            Err(NoHost::NoneAvailable) if !template.hosts.is_empty() => {
                return Ok(Err(NotMade::NoHostHas(template.name)));
            }
            Err(no_host) => return Ok(Err(NotMade::NoHost(no_host))),
        };
        self.in_savepoint(|w| {
            let status = SandboxStatus::Starting;
            let reason = Reason::Requested;
            let id: SandboxId = w.random.id();
            let sandbox = Sandbox {
                id,
                host_id: host,
                team_id: new.team,
                status,
                status_reason: Some(reason.clone()),
                status_changed_at: now.wall,
                revision: w.revision + 1,
                template: Some(template.name.to_string()),
                vcpus: Some(vcpus),
                memory_mb: Some(u64::from(memory_mb)),
                timeout_sec: Some(i64::from(new.timeout_sec)),
                disk_size_mb: Some(u64::from(disk_size_mb)),
                guest_ip: None,
                host_ip: None,
                metadata: None,
                created_at: now.wall,
                started_at: None,
                last_active_at: None,
                status_detail: None,
                template_id,
                // Copied, so that a resume does not need the template any more.
                default_user: template.default_user,
                default_env: template.default_env,
            };
            rows::insert_sandbox(&w.conn, &sandbox)?;
            let key = host.to_string();
            let (team, from) = (new.team, status);
            let (reason, filled_by) = (&reason, None);
            let new_row = Move {
                host,
                key: &key,
                id,
                team,
                from,
                to: status,
                reason,
                filled_by,
                detail: None,
            };
            let audit = audit_of_wish(OperationKind::Create);
            w.mover(now, &new.actor)?.tell_move(&new_row, None, Some(audit))?;
            let work = w.begin_operation(host, id, OperationKind::Create, None, now.wall)?;
            Ok(Ok((sandbox, work)))
        })
    }

    /// Hosts that take new sandboxes of a team, its own and the platform's, and have this
    /// template (`None`: `minimal`), and what is on them.
    fn candidates(
        &self,
        team: TeamId,
        template: Option<TemplateId>,
    ) -> Result<(Vec<HostId>, Vec<Candidate>), StoreError> {
        let sql = format!(
            "SELECT h.id, h.cpu_cores, h.memory_mb, coalesce(sum(s.vcpus), 0), \
             coalesce(sum(s.memory_mb), 0) FROM hosts h LEFT JOIN sandboxes s \
             ON s.host_id = h.id AND s.status IN {HOLDS_A_MICROVM} \
             WHERE h.registered_at IS NOT NULL AND h.intent = 'active' AND h.liveness = 'alive' \
             AND h.rejoining = 0 AND h.degraded = 0 AND h.address IS NOT NULL \
             AND h.team_id IN (?1, ?2) \
             AND (?3 IS NULL OR NOT EXISTS \
                 (SELECT 1 FROM template_hosts WHERE template_id = ?3) \
             OR EXISTS \
                 (SELECT 1 FROM template_hosts WHERE template_id = ?3 AND host_id = h.id)) \
             GROUP BY h.id ORDER BY h.id"
        );
        let mut select = self.conn.prepare_cached(&sql)?;
        let (team, platform) = (team.to_string(), PLATFORM_TEAM.to_string());
        let template = template.map(|id| id.to_string());
        let mut rows_of = select.query(params![team, platform, template])?;
        let (mut hosts, mut candidates) = (Vec::new(), Vec::new());
        while let Some(row) = rows_of.next()? {
            hosts.push(rows::id(row, 0)?);
            candidates.push(Candidate {
                cpu_cores: row.get(1)?,
                memory_mb: row.get::<_, Option<u32>>(2)?.map(u64::from),
                used_vcpus: rows::unsigned(row, 3)?,
                used_memory_mb: rows::unsigned(row, 4)?,
            });
        }
        Ok((hosts, candidates))
    }

    /// Begins an operation on an existing sandbox, if its status allows.
    pub(super) fn begin_wished(&mut self, wish: Wish, now: Now) -> Result<Begun, StoreError> {
        let sql = format!("SELECT {} FROM sandboxes WHERE id = ?1", rows::SANDBOX);
        let found: Option<Sandbox> = self
            .conn
            .prepare_cached(&sql)?
            .query_row([wish.sandbox.to_string()], rows::sandbox)
            .optional()?;
        let may_see = |s: &Sandbox| wish.team.is_none_or(|team| team == s.team_id);
        let Some(sandbox) = found.filter(may_see) else { return Ok(Begun::NotFound) };
        let open = self.open_operation(sandbox.host_id, sandbox.id)?;
        if open.as_ref().is_some_and(|work| work.kind == wish.kind) {
            return Ok(Begun::Already(Box::new(sandbox)));
        }
        let owned = open.is_some() && wish.kind != OperationKind::Destroy;
        if owned || !may_begin(wish.kind, sandbox.status) {
            return Ok(Begun::InvalidState(sandbox.status));
        }
        if let Some(away) = self.host_is_away(&sandbox, wish.kind)? {
            return Ok(Begun::HostAway(away));
        }
        self.in_savepoint(|w| w.begin_wish(sandbox, open, &wish, now))
    }

    /// A destroy waits for its host; whoever pauses or resumes wants it now.
    pub(super) fn host_is_away(
        &self,
        sandbox: &Sandbox,
        kind: OperationKind,
    ) -> Result<Option<HostStatus>, StoreError> {
        let status = self.host(sandbox.host_id)?.map(|host| host.status());
        Ok(match (kind, status) {
            (OperationKind::Destroy, _) => None,
            (_, Some(HostStatus::Online | HostStatus::Draining)) => None,
            (_, Some(away)) => Some(away),
            (_, None) => Some(HostStatus::Offline),
        })
    }

    fn begin_wish(
        &mut self,
        mut sandbox: Sandbox,
        overtaken: Option<Work>,
        wish: &Wish,
        now: Now,
    ) -> Result<Begun, StoreError> {
        let mut settle_at = None;
        if let Some(work) = overtaken {
            // What was asked of the agent may come true after the destroy.
            let makes_a_microvm =
                matches!(work.kind, OperationKind::Create | OperationKind::Resume);
            settle_at = (makes_a_microvm && work.sent).then_some(work.deadline_at);
            self.close_operation(work.op, Some("overtaken by a destroy"), now.wall)?;
            self.template_not_made(&work, now)?;
        }
        if wish.kind == OperationKind::Pause {
            // It may have paused itself already; then the agent will refuse.
            self.keep_announced(&sandbox.host_id.to_string(), self.revision + 1)?;
        }
        let audit = Some(audit_of_wish(wish.kind));
        let (to, reason) = (transient(wish.kind), Reason::Requested);
        self.move_whole(&mut sandbox, to, reason, now, |w, t| {
            w.mover(now, &wish.actor)?.move_for(t, audit)
        })?;
        let work =
            self.begin_operation(sandbox.host_id, sandbox.id, wish.kind, settle_at, now.wall)?;
        Ok(Begun::Started(Box::new(sandbox), Box::new(work)))
    }

    /// Has `write` move a row that was read whole, and says so in `sandbox` too.
    pub(super) fn move_whole(
        &mut self,
        sandbox: &mut Sandbox,
        to: SandboxStatus,
        reason: Reason,
        now: Now,
        write: impl FnOnce(&mut Writer, &Move<'_>) -> Result<u64, StoreError>,
    ) -> Result<(), StoreError> {
        let (host, id, team) = (sandbox.host_id, sandbox.id, sandbox.team_id);
        let (key, from) = (host.to_string(), sandbox.status);
        let t = Move {
            host,
            key: &key,
            id,
            team,
            from,
            to,
            reason: &reason,
            filled_by: None,
            detail: None,
        };
        sandbox.revision = write(self, &t)?;
        sandbox.status = to;
        sandbox.status_reason = Some(reason);
        sandbox.status_changed_at = now.wall;
        Ok(())
    }

    /// Writes a new operation. The caller has seen that no other owns the sandbox.
    pub(super) fn begin_operation(
        &mut self,
        host: HostId,
        sandbox: SandboxId,
        kind: OperationKind,
        settle_at: Option<Wall>,
        now: Wall,
    ) -> Result<Work, StoreError> {
        let op: OpId = self.random.id();
        let mut insert = self.conn.prepare_cached(
            "INSERT INTO operations (id, sandbox_id, host_id, kind, created_at, deadline_at, \
             settle_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?;
        insert.execute(params![
            op.to_string(),
            sandbox.to_string(),
            host.to_string(),
            kind.as_str(),
            now.0,
            now.after(kind.deadline()).0,
            settle_at.map(|at| at.0)
        ])?;
        drop(insert);
        let gone = || StoreError::BadRow(format!("{op} names no host"));
        self.work(op)?.ok_or_else(gone)
    }

    pub(super) fn work(&self, op: OpId) -> Result<Option<Work>, StoreError> {
        let sql = format!("SELECT {WORK} WHERE o.id = ?1 AND o.finished_at IS NULL");
        let mut select = self.conn.prepare_cached(&sql)?;
        Ok(select.query_row([op.to_string()], work).optional()?)
    }

    /// The unfinished operation that owns a sandbox.
    pub(super) fn open_operation(
        &self,
        host: HostId,
        sandbox: SandboxId,
    ) -> Result<Option<Work>, StoreError> {
        let sql = format!(
            "SELECT {WORK} WHERE o.host_id = ?1 AND o.sandbox_id = ?2 AND o.finished_at IS NULL"
        );
        let mut select = self.conn.prepare_cached(&sql)?;
        Ok(select.query_row([host.to_string(), sandbox.to_string()], work).optional()?)
    }

    pub(super) fn close_operation(
        &mut self,
        op: OpId,
        error: Option<&str>,
        now: Wall,
    ) -> Result<(), StoreError> {
        let mut update = self.conn.prepare_cached(
            "UPDATE operations SET finished_at = ?2, error = ?3 WHERE id = ?1 RETURNING kind",
        )?;
        let closed = params![op.to_string(), now.0, error];
        let kind = update.query_row(closed, |row| rows::parsed(row, 0)).optional()?;
        drop(update);
        if let Some(kind) = kind {
            self.after.push(After::OperationClosed { op, kind, failed: error.is_some() });
        }
        Ok(())
    }

    /// Notes that an operation ended by other means than the agent's answer. A pause that
    /// hangs on its way may then come true after the sandbox was resumed, and is announced
    /// by nobody.
    pub(super) fn expect_late_pause(&mut self, work: &Work, now: Now) {
        self.late_pauses.retain(|_, until| *until >= now.mono);
        if work.kind == OperationKind::Pause && work.sent {
            let until = now.mono.after(work.deadline_at.since(now.wall));
            self.late_pauses.insert(work.sandbox, until);
        }
    }

    /// Notes that the agent is about to be asked: after a crash it is not asked again.
    /// False when the operation is over; the agent must not be asked then.
    pub(super) fn sent(&mut self, op: OpId, now: Now) -> Result<bool, StoreError> {
        let mut update = self.conn.prepare_cached(
            "UPDATE operations SET sent_at = ?2 WHERE id = ?1 AND finished_at IS NULL",
        )?;
        Ok(update.execute(params![op.to_string(), now.wall.0])? > 0)
    }

    /// Notes that looks at the host decide from now on, unless it is over.
    pub(super) fn look(&mut self, op: OpId, answer: Answer, now: Now) -> Result<(), StoreError> {
        if self.work(op)?.is_some() {
            self.looking.insert(op, Looking { since: now.mono, answer });
        }
        Ok(())
    }

    /// Ends an operation. Its sandbox changes only while it still waits for it: what was
    /// learned meanwhile in another way is newer.
    pub(super) fn finish(&mut self, ended: &Ended, now: Now) -> Result<bool, StoreError> {
        let Some(work) = self.work(ended.op)? else { return Ok(false) };
        self.in_savepoint(|w| {
            w.close_operation(ended.op, ended.error.as_deref(), now.wall)?;
            if ended.error.is_none() {
                w.template_made(&work, None, now)?;
            }
            let sql =
                format!("SELECT {} FROM sandboxes WHERE host_id = ?1 AND id = ?2", rows::SANDBOX);
            let found: Option<Sandbox> = w
                .conn
                .prepare_cached(&sql)?
                .query_row([work.host.to_string(), work.sandbox.to_string()], rows::sandbox)
                .optional()?;
            let Some(mut sandbox) = found else { return Ok(true) };
            if sandbox.status == transient(work.kind) && sandbox.status != ended.status {
                let (to, reason) = (ended.status, ended.reason.clone());
                w.move_whole(&mut sandbox, to, reason, now, |w, t| w.move_sandbox(t, now))?;
                if ended.status == SandboxStatus::Running {
                    w.keep_announced_since(&sandbox, ended.known_at)?;
                }
            }
            if sandbox.status == SandboxStatus::Running {
                w.fill_details(&sandbox, ended.details.as_ref(), now.wall)?;
            }
            Ok(true)
        })
    }

    /// A result that is written late does not outdate what was announced after it was known.
    fn keep_announced_since(&self, sandbox: &Sandbox, known_at: Mono) -> Result<(), StoreError> {
        if self.noted.get(&sandbox.id).is_none_or(|noted| *noted < known_at) {
            return Ok(());
        }
        let mut update = self.conn.prepare_cached(
            "UPDATE auto_pause_inbox SET revision = ?3 WHERE host_id = ?1 AND sandbox_id = ?2",
        )?;
        let (host, id) = (sandbox.host_id.to_string(), sandbox.id.to_string());
        Ok(update.execute(params![host, id, self.revision as i64]).map(drop)?)
    }

    /// Moves a row by what was reported of it, with its event and audit entry.
    pub(super) fn move_row(
        &mut self,
        mut sandbox: Sandbox,
        to: SandboxStatus,
        reason: Reason,
        details: Option<&Details>,
        now: Now,
    ) -> Result<(), StoreError> {
        self.move_whole(&mut sandbox, to, reason, now, |w, t| w.move_sandbox(t, now))?;
        match details {
            Some(details) => self.fill_details(&sandbox, Some(details), now.wall),
            None => Ok(()),
        }
    }

    fn fill_details(
        &self,
        sandbox: &Sandbox,
        details: Option<&Details>,
        now: Wall,
    ) -> Result<(), StoreError> {
        let mut update = self.conn.prepare_cached(
            "UPDATE sandboxes SET host_ip = coalesce(?3, host_ip), \
             metadata = coalesce(?4, metadata), started_at = coalesce(started_at, ?5), \
             last_active_at = ?5 WHERE host_id = ?1 AND id = ?2",
        )?;
        update.execute(params![
            sandbox.host_id.to_string(),
            sandbox.id.to_string(),
            details.and_then(|d| d.host_ip.as_deref()),
            details.and_then(|d| d.metadata.as_deref()),
            now.0
        ])?;
        Ok(())
    }
}
