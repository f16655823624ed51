//! Owns what agents report by themselves, and what operators want of hosts.
//!
//! Never: believes an agent about a sandbox of another host; lets a late report undo
//! what is newer.

use super::StoreError;
use super::journal::{Actor, Audit, Event};
use super::rows;
use super::writer::{After, Writer};
use crate::logging::seldom;
use crate::model::event::{AuditAction, AuditStatus, EventKind, ResourceType};
use crate::model::host::{Host, Intent};
use crate::model::id::{HostId, SandboxId};
use crate::model::probe::Details;
use crate::model::sandbox::{Reason, Sandbox, SandboxStatus};
use crate::model::time::Now;
use crate::plan::report::{Effect, ReportKind, effect};
use rusqlite::{OptionalExtension, params};

/// What an agent reports.
#[derive(Debug, Clone)]
pub struct AgentReport {
    /// Which host's agent.
    pub host: HostId,
    /// About which sandbox.
    pub sandbox: SandboxId,
    /// What happened.
    pub kind: ReportKind,
    /// The sandbox's address, when it runs.
    pub host_ip: Option<String>,
    /// What went wrong.
    pub error: Option<String>,
}

impl AgentReport {
    /// The sandbox that the agent says it has paused by itself.
    pub(super) fn auto_paused(&self) -> Option<SandboxId> {
        (self.kind == ReportKind::AutoPaused).then_some(self.sandbox)
    }
}

impl Writer {
    /// Takes in a report. True when the host should be looked at now.
    pub(super) fn report(&mut self, report: AgentReport, now: Now) -> Result<bool, StoreError> {
        let sql = format!("SELECT {} FROM sandboxes WHERE host_id = ?1 AND id = ?2", rows::SANDBOX);
        let found: Option<Sandbox> = self
            .conn
            .prepare_cached(&sql)?
            .query_row(params![report.host.to_string(), report.sandbox.to_string()], rows::sandbox)
            .optional()?;
        let Some(sandbox) = found else {
            let AgentReport { host, kind, .. } = report;
            seldom!(Info, "reports of others' sandboxes", host =>
                "{} reports {kind} of a sandbox that is not its own", self.presence.named(host));
            return Ok(false);
        };
        match effect(report.kind, sandbox.status, sandbox.is_ended_by_user()) {
            Effect::Probe => {}
            Effect::Notice => {
                self.in_savepoint(|w| w.note_drained(report.host, &[report.sandbox], now))?;
            }
            // What it says too often, an observation tells.
            Effect::Move(_) if !self.may_turn(report.host, 1, 0, now) => {}
            Effect::Move(status) => {
                self.in_savepoint(|w| w.move_reported(sandbox, status, &report, now))?;
            }
        }
        Ok(true)
    }

    fn move_reported(
        &mut self,
        sandbox: Sandbox,
        status: SandboxStatus,
        report: &AgentReport,
        now: Now,
    ) -> Result<(), StoreError> {
        let details =
            Details { host_ip: report.host_ip.as_deref().map(Box::from), ..Details::default() };
        let open = self.open_operation(sandbox.host_id, sandbox.id)?;
        let running = status == SandboxStatus::Running;
        let failed = status == SandboxStatus::Error
            || matches!(report.kind, ReportKind::Failed | ReportKind::ResumeFailed);
        // The answer to a call that makes a microVM is still to come and says more.
        if let Some(work) = open.filter(|_| !running) {
            let said = report.kind.as_str().to_owned();
            let failed = failed || status != SandboxStatus::Paused;
            let error = failed.then(|| report.error.clone().unwrap_or(said));
            self.close_operation(work.op, error.as_deref(), now.wall)?;
            self.expect_late_pause(&work, now);
        }
        let to = self.landing(sandbox.host_id, status)?;
        let destroyed =
            (sandbox.status, status) == (SandboxStatus::Stopping, SandboxStatus::Stopped);
        let reason = match (to == status, destroyed) {
            (true, true) => Reason::DestroyFinished,
            (true, false) => Reason::Reported,
            (false, _) => Reason::HostUnreachable,
        };
        let details = running.then_some(details);
        let detail = report.error.as_deref().filter(|_| failed);
        self.move_row(sandbox, (to, reason), detail, details.as_ref(), now)
    }

    /// Changes what is wanted of a host. `None`: no such host.
    pub(super) fn set_intent(
        &mut self,
        host: HostId,
        intent: Intent,
        actor: &Actor,
        now: Now,
    ) -> Result<Option<Host>, StoreError> {
        let Some(mut host) = self.host(host)? else { return Ok(None) };
        if host.intent == intent {
            return Ok(Some(host));
        }
        let from = host.status();
        host.intent = intent;
        host.updated_at = now.wall;
        let to = host.status();
        let action = match intent {
            Intent::Active => AuditAction::Undrain,
            Intent::Draining => AuditAction::Drain,
            Intent::Offline => AuditAction::Offline,
        };
        self.in_savepoint(|w| {
            let reason = Reason::Requested;
            let mut journal = w.journal(now, actor)?;
            host.revision = journal.event(&Event {
                kind: EventKind::HostIntent,
                host: host.id,
                sandbox: None,
                team: host.team_id,
                from: Some(from.as_str()),
                to: Some(to.as_str()),
                reason: &reason,
                detail: host.place().as_deref(),
            })?;
            let id = host.id.to_string();
            let (revision, intent) = (host.revision, intent.as_str());
            journal.audit(&Audit {
                team: host.team_id,
                resource: (ResourceType::Host, &id),
                action,
                status: AuditStatus::Success,
                metadata: &format!(
                    r#"{{"from":"{from}","to":"{to}","reason":"{reason}","revision":{revision}}}"#
                ),
            })?;
            drop(journal);
            w.conn
                .prepare_cached(
                    "UPDATE hosts SET intent = ?2, revision = ?3, updated_at = ?4 WHERE id = ?1",
                )?
                .execute(params![id, intent, revision as i64, now.wall.0])?;
            w.after.push(After::HostChanged { host: Box::new(host.clone()), now });
            Ok(Some(host))
        })
    }
}
