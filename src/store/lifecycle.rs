//! Owns lifecycle operations as durable rows: how they begin, what is noted while they
//! are carried out, how they end.
//!
//! Never: calls an agent; lets two unfinished operations own one sandbox.

use super::StoreError;
use super::bounds::OverQuota;
use super::idempotency::Created;
use super::journal::Actor;
use super::rows;
use super::templates::NotMade;
use super::transition::Move;
use super::usage::OnHost;
use super::writer::{After, Writer};
use crate::model::host::{HostStatus, Liveness};
use crate::model::id::{HostId, OpId, PLATFORM_TEAM, SandboxId, TeamId, TemplateId};
use crate::model::operation::OperationKind;
use crate::model::probe::Details;
use crate::model::sandbox::{Reason, Sandbox, SandboxStatus};
use crate::model::template::{DISK_SIZE_MB_DEFAULT, MEMORY_MB_DEFAULT, VCPUS_DEFAULT};
use crate::model::time::{Mono, Now, Wall};
use crate::plan::history::audit_of_wish;
use crate::plan::liveness::landing;
use crate::plan::operation::{Answer, Earlier, may_begin, transient};
use crate::plan::placement::{Candidate, Free, Need, NoHost, Overcommit, has_room, place};
use rusqlite::{Connection, OptionalExtension, Row, params};
use std::time::Duration;

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
    /// This destroy overtook a call that may still succeed.
    pub overtook: bool,
    /// What an earlier call of this operation left behind.
    pub earlier: Earlier,
    /// The status of the sandbox when the operation began.
    pub from: Option<SandboxStatus>,
    /// The template that a snapshot makes, and its name.
    pub makes: Option<(TemplateId, String)>,
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
    /// It has ended already. The request is recorded; with it comes the operation that makes
    /// sure on the host, where that can matter.
    AlreadyTerminal(Option<Box<Work>>),
    /// Its host has no room for it to run.
    NoRoom(Free),
    /// The team has to wait.
    OverQuota(OverQuota),
    /// No such sandbox, or another team's.
    NotFound,
}

/// What came of placing a create on another host.
#[derive(Debug, Clone)]
pub enum Placed {
    /// It is to be called there. The host that refused is asked to destroy what it may have
    /// begun.
    At(Box<Work>, Option<Box<Work>>),
    /// No other host takes it now.
    NoHost,
    /// The operation has ended meanwhile.
    Over,
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

/// What the agent's answer says beside yes or no.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Said {
    /// Why not, for people; bounded.
    pub error: Option<String>,
    /// Size of the template that was made, in bytes.
    pub size_bytes: Option<u64>,
}

/// An operation whose outcome an observation of the host must tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Looking {
    /// Observations that were asked for earlier do not tell.
    pub(super) since: Mono,
    pub(super) answer: Answer,
    pub(super) said: Said,
}

impl Looking {
    /// Asked before we started; the call has ended with its connection.
    pub(super) fn since_ever() -> Looking {
        Looking { since: Mono(0), answer: Answer::Ended, said: Said::default() }
    }
}

/// An operation to begin.
#[derive(Debug, Clone)]
pub(super) struct NewOperation {
    pub(super) host: HostId,
    pub(super) sandbox: SandboxId,
    pub(super) kind: OperationKind,
    /// The status of the sandbox now.
    pub(super) from: Option<SandboxStatus>,
    /// It is a destroy that overtakes a call which may still succeed.
    pub(super) overtook: bool,
    /// The template that a snapshot makes, and its name.
    pub(super) makes: Option<(TemplateId, String)>,
}

impl NewOperation {
    pub(super) fn new(host: HostId, sandbox: SandboxId, kind: OperationKind) -> NewOperation {
        NewOperation { host, sandbox, kind, from: None, overtook: false, makes: None }
    }
}

/// How long a host that refused a create takes none. Larger and a host that was restarted
/// stays idle; smaller and every create is tried there first.
const AVOID_AFTER_REFUSAL: Duration = Duration::from_secs(60);

/// Columns of [`Work`].
const WORK: &str = "o.id, o.kind, o.sandbox_id, o.host_id, o.deadline_at, o.sent_at, o.settle_at, \
    coalesce(s.team_id, h.team_id), s.template, s.vcpus, s.memory_mb, s.timeout_sec, \
    s.disk_size_mb, s.metadata, o.from_status, o.template_id, o.template_name, s.template_id, \
    t.team_id, s.default_user, s.default_env \
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
        overtook: row.get::<_, Option<i64>>(6)?.is_some(),
        earlier: Earlier::None,
        from: rows::parsed_opt(row, 14)?,
        makes: rows::parsed_opt(row, 15)?.zip(row.get(16)?),
        team: rows::id(row, 7)?,
        template: row.get(8)?,
        vcpus: row.get(9)?,
        memory_mb: row.get::<_, Option<u32>>(10)?.map(u64::from),
        timeout_sec: row.get(11)?,
        disk_size_mb: row.get::<_, Option<u32>>(12)?.map(u64::from),
        metadata: row.get(13)?,
        template_id: rows::parsed_opt(row, 17)?,
        template_team: rows::parsed_opt(row, 18)?,
        default_user: row.get(19)?,
        default_env: row.get(20)?,
    })
}

/// Every unfinished operation, oldest first: what a start takes up again.
pub fn unfinished(conn: &Connection) -> Result<Vec<Work>, StoreError> {
    let sql = format!("SELECT {WORK} WHERE o.finished_at IS NULL ORDER BY o.created_at, o.id");
    let mut select = conn.prepare(&sql)?;
    let works = select.query_map([], work)?.collect::<Result<_, _>>()?;
    Ok(works)
}

/// What a host has, behind its id.
const SIZE: &str = "h.id, h.cpu_cores, h.memory_mb FROM hosts h";

fn candidate(row: &Row<'_>, used: &OnHost) -> rusqlite::Result<Candidate> {
    Ok(Candidate {
        cpu_cores: row.get(1)?,
        memory_mb: row.get::<_, Option<u32>>(2)?.map(u64::from),
        used_vcpus: u64::try_from(used.vcpus).unwrap_or_default(),
        used_memory_mb: u64::try_from(used.memory_mb).unwrap_or_default(),
    })
}

impl Writer {
    /// Makes a sandbox of a template, on the least loaded host that has it, and begins its
    /// create.
    pub(super) fn create_sandbox(
        &mut self,
        new: NewSandbox,
        now: Now,
    ) -> Result<Created, StoreError> {
        let template = match self.template_for(new.team, &new.template)? {
            Ok(template) => template,
            Err(unknown) => return Ok(Err(NotMade::NoTemplate(unknown))),
        };
        let template_id = (!template.is_minimal()).then_some(template.id);
        let vcpus = new.vcpus.or(template.vcpus).unwrap_or(VCPUS_DEFAULT);
        let memory_mb = new.memory_mb.or(template.memory_mb).unwrap_or(MEMORY_MB_DEFAULT);
        let disk_size_mb =
            new.disk_size_mb.or(template.disk_size_mb).unwrap_or(DISK_SIZE_MB_DEFAULT);
        let need = Need { vcpus, memory_mb: u64::from(memory_mb) };
        // A host that refused of late is better than none.
        let placed = match self.place(new.team, template_id, need, now)? {
            Err(_) => {
                self.avoided.clear();
                self.place(new.team, template_id, need, now)?
            }
            placed => placed,
        };
        let host = match placed {
            Ok(host) => host,
            Err(NoHost::NoneAvailable) if !template.hosts.is_empty() => {
                return Ok(Err(NotMade::NoHostHas(template.name)));
            }
            Err(no_host) => return Ok(Err(NotMade::NoHost(no_host))),
        };
        let room = self.may_have_one_more(new.team, &new.actor);
        if let Err(over) = room.and_then(|()| self.may_change(new.team, &new.actor, now)) {
            return Ok(Err(NotMade::OverQuota(over)));
        }
        self.in_savepoint(|w| {
            let (status, reason) = (SandboxStatus::Starting, Reason::Requested);
            let id: SandboxId = w.random.id();
            let sandbox = Sandbox {
                status_reason: Some(reason.clone()),
                revision: w.revision + 1,
                template: Some(template.name.to_string()),
                vcpus: Some(vcpus),
                memory_mb: Some(u64::from(memory_mb)),
                timeout_sec: Some(i64::from(new.timeout_sec)),
                disk_size_mb: Some(u64::from(disk_size_mb)),
                template_id,
                // Copied, so that a resume does not need the template any more.
                default_user: template.default_user,
                default_env: template.default_env,
                ..Sandbox::new(id, host, new.team, status, now.wall)
            };
            rows::insert_sandbox(&w.conn, &sandbox)?;
            w.usage.made(&sandbox);
            let key = host.to_string();
            let (team, from) = (new.team, status);
            let (reason, filled_by, detail) = (&reason, None, None);
            let new_row =
                Move { host, key: &key, id, team, from, to: status, reason, filled_by, detail };
            let audit = audit_of_wish(OperationKind::Create);
            w.mover(now, &new.actor)?.tell_move(&new_row, None, Some(audit))?;
            let create = NewOperation::new(host, id, OperationKind::Create);
            let work = w.begin_operation(&create, now.wall)?;
            Ok(Ok((sandbox, work)))
        })
    }

    /// The least loaded host that takes a new sandbox of this team and has this template
    /// (`None`: `minimal`).
    fn place(
        &mut self,
        team: TeamId,
        template: Option<TemplateId>,
        need: Need,
        now: Now,
    ) -> Result<Result<HostId, NoHost>, StoreError> {
        self.avoided.retain(|_, until| *until > now.mono);
        let (hosts, candidates) = self.candidates(team, template)?;
        Ok(place(&candidates, need, self.overcommit()).map(|at| hosts[at]))
    }

    fn overcommit(&self) -> Overcommit {
        Overcommit {
            memory_percent: self.policy.memory_overcommit_percent,
            cpu_percent: self.policy.cpu_overcommit_percent,
        }
    }

    /// Places a create on another host, because this one did not take it. `clean`: its agent
    /// itself said so, and may have begun.
    pub(super) fn place_elsewhere(
        &mut self,
        op: OpId,
        clean: bool,
        now: Now,
    ) -> Result<Placed, StoreError> {
        let Some(work) = self.work(op)? else { return Ok(Placed::Over) };
        let Some(sandbox) = self.sandbox(work.sandbox)? else { return Ok(Placed::Over) };
        if work.kind != OperationKind::Create || sandbox.status != SandboxStatus::Starting {
            return Ok(Placed::Over);
        }
        self.avoided.insert(work.host, now.mono.after(AVOID_AFTER_REFUSAL));
        let need = Need {
            vcpus: sandbox.vcpus.unwrap_or_default(),
            memory_mb: sandbox.memory_mb.unwrap_or_default(),
        };
        let (team, template) = (sandbox.team_id, sandbox.template_id);
        let Ok(host) = self.place(team, template, need, now)? else { return Ok(Placed::NoHost) };
        self.in_savepoint(|w| w.move_create(&work, sandbox, host, clean, now))
    }

    fn move_create(
        &mut self,
        work: &Work,
        mut sandbox: Sandbox,
        host: HostId,
        clean: bool,
        now: Now,
    ) -> Result<Placed, StoreError> {
        self.rehost(&sandbox, host)?;
        sandbox.host_id = host;
        let mut update = self
            .conn
            .prepare_cached("UPDATE operations SET host_id = ?2, sent_at = NULL WHERE id = ?1")?;
        update.execute([work.op.to_string(), host.to_string()])?;
        drop(update);
        let (to, reason) = (SandboxStatus::Starting, Reason::PlacedElsewhere);
        self.move_whole(&mut sandbox, to, reason, None, now, |w, t| w.move_sandbox(t, now))?;
        let destroy = NewOperation::new(work.host, work.sandbox, OperationKind::Destroy);
        let cleaning = clean.then(|| self.begin_operation(&destroy, now.wall)).transpose()?;
        let gone = || StoreError::BadRow(format!("{} names no host", work.op));
        let work = self.work(work.op)?.ok_or_else(gone)?;
        Ok(Placed::At(Box::new(work), cleaning.map(Box::new)))
    }

    /// Hosts that take new sandboxes of a team, its own and the platform's, and have this
    /// template (`None`: `minimal`), and what is on them.
    fn candidates(
        &self,
        team: TeamId,
        template: Option<TemplateId>,
    ) -> Result<(Vec<HostId>, Vec<Candidate>), StoreError> {
        let sql = format!(
            "SELECT {SIZE} WHERE h.registered_at IS NOT NULL AND h.intent = 'active' \
             AND h.liveness = 'alive' AND h.rejoining = 0 AND h.degraded = 0 \
             AND h.address IS NOT NULL AND h.team_id IN (?1, ?2) \
             AND (?3 IS NULL OR NOT EXISTS \
                 (SELECT 1 FROM template_hosts WHERE template_id = ?3) \
             OR EXISTS \
                 (SELECT 1 FROM template_hosts WHERE template_id = ?3 AND host_id = h.id)) \
             ORDER BY h.id"
        );
        let mut select = self.conn.prepare_cached(&sql)?;
        let (team, platform) = (team.to_string(), PLATFORM_TEAM.to_string());
        let template = template.map(|id| id.to_string());
        let mut rows_of = select.query(params![team, platform, template])?;
        let (mut hosts, mut candidates) = (Vec::new(), Vec::new());
        while let Some(row) = rows_of.next()? {
            let host = rows::id(row, 0)?;
            if !self.avoided.contains_key(&host) {
                hosts.push(host);
                candidates.push(candidate(row, &self.usage.on(host))?);
            }
        }
        Ok((hosts, candidates))
    }

    /// Whether a sandbox that is to run again has room on its host.
    fn has_room(&self, sandbox: &Sandbox) -> Result<Result<(), Free>, StoreError> {
        let mut select = self.conn.prepare_cached(&format!("SELECT {SIZE} WHERE h.id = ?1"))?;
        let used = self.usage.on(sandbox.host_id);
        let host = select.query_row([sandbox.host_id.to_string()], |row| candidate(row, &used))?;
        let need = Need {
            vcpus: sandbox.vcpus.unwrap_or_default(),
            memory_mb: sandbox.memory_mb.unwrap_or_default(),
        };
        Ok(has_room(&host, need, self.overcommit()))
    }

    /// Begins an operation on an existing sandbox, if its status allows.
    pub(super) fn begin_wished(&mut self, wish: Wish, now: Now) -> Result<Begun, StoreError> {
        let may_see = |s: &Sandbox| wish.team.is_none_or(|team| team == s.team_id);
        let Some(sandbox) = self.sandbox(wish.sandbox)?.filter(may_see) else {
            return Ok(Begun::NotFound);
        };
        if wish.kind == OperationKind::Destroy && sandbox.status == SandboxStatus::Stopped {
            return self.destroy_terminal(sandbox, &wish, now);
        }
        let open = self.open_operation(sandbox.host_id, sandbox.id)?;
        if open.as_ref().is_some_and(|work| work.kind == wish.kind) {
            return Ok(Begun::Already(Box::new(sandbox)));
        }
        let owned = open.is_some() && wish.kind != OperationKind::Destroy;
        if owned || !may_begin(wish.kind, sandbox.status, sandbox.status_reason.as_ref()) {
            return Ok(Begun::InvalidState(sandbox.status));
        }
        if let Some(away) = self.host_is_away(&sandbox, wish.kind)? {
            return Ok(Begun::HostAway(away));
        }
        if wish.kind == OperationKind::Resume
            && let Err(free) = self.has_room(&sandbox)?
        {
            return Ok(Begun::NoRoom(free));
        }
        if wish.kind != OperationKind::Destroy
            && let Err(over) = self.may_change(sandbox.team_id, &wish.actor, now)
        {
            return Ok(Begun::OverQuota(over));
        }
        self.in_savepoint(|w| w.begin_wish(sandbox, open, &wish, now))
    }

    /// Records that a user wants a sandbox destroyed that has ended already. One that has
    /// ended by anything but such a request may be there all the same: its host is asked too.
    fn destroy_terminal(
        &mut self,
        mut sandbox: Sandbox,
        wish: &Wish,
        now: Now,
    ) -> Result<Begun, StoreError> {
        if sandbox.is_ended_by_user() {
            return Ok(Begun::AlreadyTerminal(None));
        }
        self.in_savepoint(|w| {
            let audit = Some(audit_of_wish(OperationKind::Destroy));
            let (to, reason) = (SandboxStatus::Stopped, Reason::Requested);
            w.move_whole(&mut sandbox, to, reason, None, now, |w, t| {
                w.mover(now, &wish.actor)?.move_for(t, audit)
            })?;
            if w.open_operation(sandbox.host_id, sandbox.id)?.is_some() {
                return Ok(Begun::AlreadyTerminal(None));
            }
            let (host, kind) = (sandbox.host_id, OperationKind::Destroy);
            let destroy = NewOperation::new(host, sandbox.id, kind);
            let work = w.begin_operation(&destroy, now.wall)?;
            Ok(Begun::AlreadyTerminal(Some(Box::new(work))))
        })
    }

    /// A destroy waits for its host; a pause or a resume is wanted now.
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
        let mut overtook = false;
        if let Some(work) = overtaken {
            // What was asked of the agent may succeed after the destroy.
            let makes_a_microvm =
                matches!(work.kind, OperationKind::Create | OperationKind::Resume);
            overtook = makes_a_microvm && work.sent;
            self.close_operation(work.op, Some("overtaken by a destroy"), now.wall)?;
            self.template_not_made(&work, now)?;
        }
        if wish.kind == OperationKind::Pause {
            // It may have paused itself already; then the agent will refuse.
            self.keep_announced(&sandbox.host_id.to_string(), self.revision + 1)?;
        }
        let operation = NewOperation {
            from: Some(sandbox.status),
            overtook,
            ..NewOperation::new(sandbox.host_id, sandbox.id, wish.kind)
        };
        let audit = Some(audit_of_wish(wish.kind));
        let (to, reason) = (transient(wish.kind), Reason::Requested);
        self.move_whole(&mut sandbox, to, reason, None, now, |w, t| {
            w.mover(now, &wish.actor)?.move_for(t, audit)
        })?;
        let work = self.begin_operation(&operation, now.wall)?;
        Ok(Begun::Started(Box::new(sandbox), Box::new(work)))
    }

    /// Has `write` move a row that was read whole, and says so in `sandbox` too.
    pub(super) fn move_whole(
        &mut self,
        sandbox: &mut Sandbox,
        to: SandboxStatus,
        reason: Reason,
        detail: Option<&str>,
        now: Now,
        write: impl FnOnce(&mut Writer, &Move<'_>) -> Result<u64, StoreError>,
    ) -> Result<(), StoreError> {
        let (host, id, team) = (sandbox.host_id, sandbox.id, sandbox.team_id);
        let (key, from, filled_by) = (host.to_string(), sandbox.status, None);
        let t = Move { host, key: &key, id, team, from, to, reason: &reason, filled_by, detail };
        sandbox.revision = write(self, &t)?;
        sandbox.status = to;
        sandbox.status_reason = Some(reason);
        sandbox.status_detail = detail.map(str::to_owned);
        sandbox.status_changed_at = now.wall;
        Ok(())
    }

    /// Writes a new operation. The caller has seen that no other owns the sandbox.
    pub(super) fn begin_operation(
        &mut self,
        new: &NewOperation,
        now: Wall,
    ) -> Result<Work, StoreError> {
        let op: OpId = self.random.id();
        let mut insert = self.conn.prepare_cached(
            "INSERT INTO operations (id, sandbox_id, host_id, kind, created_at, deadline_at, \
             settle_at, from_status, template_id, template_name) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?;
        insert.execute(params![
            op.to_string(),
            new.sandbox.to_string(),
            new.host.to_string(),
            new.kind.as_str(),
            now.0,
            now.after(new.kind.deadline()).0,
            new.overtook.then_some(now.0),
            new.from.map(SandboxStatus::as_str),
            new.makes.as_ref().map(|(id, _)| id.to_string()),
            new.makes.as_ref().map(|(_, name)| name),
        ])?;
        drop(insert);
        let gone = || StoreError::BadRow(format!("{op} names no host"));
        self.work(op)?.ok_or_else(gone)
    }

    fn work(&self, op: OpId) -> Result<Option<Work>, StoreError> {
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
    /// hangs on its way may then succeed after the sandbox was resumed, unannounced.
    pub(super) fn expect_late_pause(&mut self, work: &Work, now: Now) {
        self.late_pauses.retain(|_, until| *until >= now.mono);
        if work.kind == OperationKind::Pause && work.sent {
            let until = now.mono.after(work.deadline_at.since(now.wall));
            self.late_pauses.insert(work.sandbox, until);
        }
    }

    /// Records that the agent is about to be asked: after a crash an observation decides
    /// first. False when the operation has ended; the agent must not be asked then.
    pub(super) fn sent(&mut self, op: OpId, now: Now) -> Result<bool, StoreError> {
        let mut update = self.conn.prepare_cached(
            "UPDATE operations SET sent_at = ?2 WHERE id = ?1 AND finished_at IS NULL",
        )?;
        Ok(update.execute(params![op.to_string(), now.wall.0])? > 0)
    }

    /// Records that observations of the host decide from now on, unless it has ended. What was
    /// seen of the sandbox before counts no more.
    pub(super) fn look(
        &mut self,
        op: OpId,
        since: Mono,
        answer: Answer,
        said: Said,
    ) -> Result<(), StoreError> {
        if let Some(work) = self.work(op)? {
            if answer != Answer::Outstanding
                && let Some(record) = self.records.get_mut(&work.host)
            {
                record.looks.count_anew(work.sandbox);
            }
            self.looking.insert(op, Looking { since, answer, said });
        }
        Ok(())
    }

    /// Has the call of an operation made again, with all of its time.
    pub(super) fn call_again(
        &mut self,
        host: HostId,
        sandbox: SandboxId,
        earlier: Earlier,
        now: Now,
    ) -> Result<Option<Work>, StoreError> {
        let Some(work) = self.open_operation(host, sandbox)? else { return Ok(None) };
        let deadline_at = now.wall.after(work.kind.deadline());
        let mut update = self.conn.prepare_cached(
            "UPDATE operations SET sent_at = NULL, created_at = ?2, deadline_at = ?3 WHERE id = ?1",
        )?;
        update.execute(params![work.op.to_string(), now.wall.0, deadline_at.0])?;
        self.after.push(After::CalledAgain(work.op));
        Ok(Some(Work { sent: false, deadline_at, earlier, ..work }))
    }

    /// Ends an operation. Its sandbox changes only while it still waits for it: what was
    /// learned meanwhile in another way is newer.
    pub(super) fn finish(&mut self, ended: &Ended, now: Now) -> Result<bool, StoreError> {
        let Some(work) = self.work(ended.op)? else { return Ok(false) };
        self.in_savepoint(|w| {
            w.close_operation(ended.op, ended.error.as_deref(), now.wall)?;
            let sql =
                format!("SELECT {} FROM sandboxes WHERE host_id = ?1 AND id = ?2", rows::SANDBOX);
            let found: Option<Sandbox> = w
                .conn
                .prepare_cached(&sql)?
                .query_row([work.host.to_string(), work.sandbox.to_string()], rows::sandbox)
                .optional()?;
            let Some(mut sandbox) = found else {
                w.forget_stranger(work.host, work.sandbox)?;
                return Ok(true);
            };
            if sandbox.status == transient(work.kind) && sandbox.status != ended.status {
                w.land(&mut sandbox, ended, now)?;
            }
            if matches!(sandbox.status, SandboxStatus::Running | SandboxStatus::Missing) {
                w.fill_details(&sandbox, ended.details.as_ref(), now)?;
            }
            Ok(true)
        })
    }

    /// Gives a sandbox the status that its operation ended with, or the one that its host's
    /// silence leaves.
    fn land(&mut self, sandbox: &mut Sandbox, ended: &Ended, now: Now) -> Result<(), StoreError> {
        let to = self.landing(sandbox.host_id, ended.status)?;
        let reason = match to == ended.status {
            true => ended.reason.clone(),
            false => Reason::HostUnreachable,
        };
        let detail = ended.error.as_deref();
        self.move_whole(sandbox, to, reason, detail, now, |w, t| w.move_sandbox(t, now))?;
        match to == SandboxStatus::Running {
            true => self.keep_announced_since(sandbox, ended.known_at),
            false => Ok(()),
        }
    }

    /// The status that a sandbox on this host gets when it is to get `to`.
    pub(super) fn landing(
        &self,
        host: HostId,
        to: SandboxStatus,
    ) -> Result<SandboxStatus, StoreError> {
        let liveness = self.host(host)?.map_or(Liveness::Alive, |host| host.liveness);
        Ok(landing(to, liveness))
    }

    /// On a host that is unreachable no create may stay open beyond its deadline: no
    /// observation will settle it. And nothing runs there, which an earlier version did not
    /// make sure of.
    pub(super) fn settle_on_unreachable(&mut self, now: Now) -> Result<(), StoreError> {
        self.settle_running_on_unreachable(now)?;
        let sql = format!(
            "SELECT {WORK} WHERE o.finished_at IS NULL AND o.kind = 'create' \
             AND h.liveness = 'unreachable' AND o.deadline_at < ?1 AND s.status = 'starting'"
        );
        let mut select = self.conn.prepare_cached(&sql)?;
        let over: Vec<Work> = select.query_map([now.wall.0], work)?.collect::<Result<_, _>>()?;
        drop(select);
        for work in over {
            self.close_operation(work.op, Some("its host is unreachable"), now.wall)?;
            let Some(mut sandbox) = self.sandbox(work.sandbox)? else { continue };
            let (to, reason) = (SandboxStatus::Missing, Reason::HostUnreachable);
            self.move_whole(&mut sandbox, to, reason, None, now, |w, t| w.move_sandbox(t, now))?;
        }
        Ok(())
    }

    /// Once after each start: from then on no write leaves such a row behind.
    fn settle_running_on_unreachable(&mut self, now: Now) -> Result<(), StoreError> {
        if self.settled {
            return Ok(());
        }
        let sql = format!(
            "SELECT {} FROM sandboxes INDEXED BY sandboxes_by_host \
             WHERE ended = 0 AND status = 'running' AND host_id IN \
             (SELECT id FROM hosts WHERE liveness = 'unreachable')",
            rows::SANDBOX
        );
        let mut select = self.conn.prepare(&sql)?;
        let left: Vec<Sandbox> = select.query_map([], rows::sandbox)?.collect::<Result<_, _>>()?;
        drop(select);
        for mut sandbox in left {
            let (to, reason) = (SandboxStatus::Missing, Reason::HostUnreachable);
            self.move_whole(&mut sandbox, to, reason, None, now, |w, t| w.move_sandbox(t, now))?;
        }
        self.after.push(After::Settled);
        Ok(())
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
        (to, reason): (SandboxStatus, Reason),
        detail: Option<&str>,
        details: Option<&Details>,
        now: Now,
    ) -> Result<(), StoreError> {
        self.move_whole(&mut sandbox, to, reason, detail, now, |w, t| w.move_sandbox(t, now))?;
        match details {
            Some(details) => self.fill_details(&sandbox, Some(details), now),
            None => Ok(()),
        }
    }

    fn fill_details(
        &mut self,
        sandbox: &Sandbox,
        details: Option<&Details>,
        now: Now,
    ) -> Result<(), StoreError> {
        let metadata = details.and_then(|d| d.metadata.as_deref());
        let kept = metadata.map(|m| self.metadata_to_keep(sandbox.host_id, m, now)).transpose()?;
        let mut update = self.conn.prepare_cached(
            "UPDATE sandboxes SET host_ip = coalesce(?3, host_ip), \
             metadata = coalesce(?4, metadata), started_at = coalesce(started_at, ?5), \
             last_active_at = ?5 WHERE host_id = ?1 AND id = ?2",
        )?;
        update.execute(params![
            sandbox.host_id.to_string(),
            sandbox.id.to_string(),
            details.and_then(|d| d.host_ip.as_deref()),
            kept,
            now.wall.0
        ])?;
        Ok(())
    }
}
