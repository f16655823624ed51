//! Owns how the monitor's decisions reach the database: probes, verdicts on silent
//! hosts, returns, heartbeat flushes. Loads rows, asks `plan`, writes what it says.
//!
//! Never: decides anything that `plan` could; runs outside the writer's transaction.

mod flush;

use super::StoreError;
use super::acceptance::Restore;
use super::journal::{Actor, Audit, Event};
use super::lifecycle::{NewOperation, Work};
use super::open::open_writer;
use super::rows;
use super::transition::Move;
use super::writer::{After, HostRecord, LastObservation, Writer};
use crate::logging::seldom;
use crate::model::event::{AuditAction, AuditStatus, EventKind, ResourceType};
use crate::model::host::{Host, HostStatus, Liveness};
use crate::model::id::{HostId, PLATFORM_TEAM, SandboxId, TeamId};
use crate::model::operation::OperationKind;
use crate::model::probe::{Details, FailureKind, Listed, Listing, Probe, ProbeFailure};
use crate::model::sandbox::{Reason, SandboxStatus};
use crate::model::time::{Mono, Now, Wall};
use crate::plan::observation::{
    AskAgain, HostPlan, LookingFor, Question, Row, Stranger, Transition, Unplaced, lists_others,
    plan_host, unplaced, wrong_host,
};
use crate::plan::operation::{has_made_template, is_expired, is_left_over};
use crate::plan::reconcile::{Action, OperationState};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

/// Failures in a row, with heartbeats arriving, after which a host is degraded.
const DEGRADED_AFTER: u32 = 3;

/// Answers in a row after which it is not any more.
const RECOVERED_AFTER: u32 = 2;

/// Longest time from a question to when its answer is applied: a probe, and a disk that is
/// slow. Larger: what agents announce is kept in memory for longer. Smaller: an older answer
/// may take an announcement for outdated.
const ANSWER_AGE_MAX: Duration = Duration::from_secs(3600);

/// Ended sandboxes of a host that a probe reads with the others, in the order in which they
/// lie, even where they are more than these. Larger: a small host with a long past is slow to
/// observe; smaller: its few rows are looked up one by one.
const ENDED_READ_MAX: i64 = 256;

/// One probe that ended.
#[derive(Debug)]
pub struct Probed {
    /// Whom we asked.
    pub host: HostId,
    /// The newest revision before we asked.
    pub revision: u64,
    /// When we asked.
    pub asked_at: Mono,
    /// Longest age of a status that counts against a row; see `Question::age_cap`.
    pub age_cap: Option<Duration>,
    /// What came back.
    pub probe: Probe,
    /// Whether the connection proved that this host has answered.
    pub proven: bool,
}

/// One transition as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Whose.
    pub sandbox: SandboxId,
    /// Before.
    pub from: SandboxStatus,
    /// After.
    pub to: SandboxStatus,
    /// Why.
    pub reason: Reason,
    /// Under which revision.
    pub revision: u64,
}

/// What one command did to one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Which host.
    pub host: HostId,
    /// Public status before and after, when it changed, with the reason.
    pub host_transition: Option<(HostStatus, HostStatus, Reason)>,
    /// Sandboxes that changed.
    pub transitions: Vec<Written>,
    /// Sandboxes whose stop is held.
    pub held: Vec<SandboxId>,
    /// Sandboxes that the host has and should not.
    pub strangers: Vec<Stranger>,
    /// Operations that this began: asked once more, or zombies to destroy.
    pub work: Vec<Work>,
    /// Why there was no observation, if there was none.
    pub failure: Option<ProbeFailure>,
    /// Whether an observation was applied to the rows.
    pub observed: bool,
    /// When to ask again.
    pub ask_again: AskAgain,
}

impl Applied {
    fn nothing(host: HostId) -> Applied {
        Applied {
            host,
            host_transition: None,
            transitions: Vec::new(),
            held: Vec::new(),
            strangers: Vec::new(),
            work: Vec::new(),
            failure: None,
            observed: false,
            ask_again: AskAgain::AsUsual,
        }
    }
}

/// Columns of a [`Row`], in the order that [`row`] reads.
const ROW: &str = "SELECT id, status, status_reason, status_changed_at, revision, team_id \
    FROM sandboxes";

/// A row about which nothing else is known yet.
fn row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    let status: SandboxStatus = rows::parsed(row, 1)?;
    let reason = row.get_ref(2)?.as_str_or_null().ok().flatten();
    Ok(Row {
        id: rows::id(row, 0)?,
        team: rows::id(row, 5)?,
        status,
        ended_by_user: status == SandboxStatus::Stopped
            && reason.is_some_and(|reason| Reason::from(reason).is_users_destroy()),
        changed_at: rows::wall(row, 3)?,
        revision: rows::unsigned(row, 4)?,
        operation: OperationState::None,
        left_over: false,
        looking: None,
        announced: false,
        announced_since: false,
        pause_outstanding: false,
    })
}

impl Writer {
    /// Applies what a probe found.
    pub(super) fn probed(&mut self, probed: Probed, now: Now) -> Result<Applied, StoreError> {
        let Some(host) = self.host(probed.host)? else {
            return Ok(Applied::nothing(probed.host));
        };
        match &probed.probe {
            Probe::Listed(listing) => self.listed(&host, &probed, listing, now),
            Probe::Failed(failure) => {
                let drained = failure.drained.clone();
                self.failed(&host, failure.clone(), &drained, now)
            }
        }
    }

    pub(super) fn host(&self, id: HostId) -> Result<Option<Host>, StoreError> {
        let sql = format!("SELECT {} FROM hosts WHERE id = ?1", rows::HOST);
        let mut select = self.conn.prepare_cached(&sql)?;
        Ok(select.query_row([id.to_string()], rows::host).optional()?)
    }

    fn listed(
        &mut self,
        host: &Host,
        probed: &Probed,
        listing: &Listing,
        now: Now,
    ) -> Result<Applied, StoreError> {
        let rows = self.rows_of(probed, listing, now)?;
        let unplaced = self.owners(host.id, unplaced(listing, &rows))?;
        // Looked up here once: a host may announce what it likes.
        let is_own = |id: &&SandboxId| rows.binary_search_by_key(*id, |row| row.id).is_ok();
        let announced: Vec<SandboxId> =
            listing.auto_paused.iter().filter(is_own).copied().collect();
        // A connection that proves its host is none to another one.
        let has_own = listing.sandboxes.len() > unplaced.len();
        let others = match probed.proven || has_own {
            true => Vec::new(),
            false => self.others_with(host.id, &unplaced)?,
        };
        if lists_others(listing, &unplaced, &others) {
            self.observed_by_mistake(&others);
            let last = |host| self.records.get(&host).and_then(|record| record.last);
            let lists = |host| last(host).map_or(0, |last| last.listed);
            if let Some(other) = wrong_host(&others, lists) {
                let detail = format!("most sandboxes in the answer belong to {other}");
                let failure = ProbeFailure::new(FailureKind::WrongHost, detail);
                return self.failed(host, failure, &announced, now);
            }
        }
        let may_apply = match (host.status(), self.policy.is_strict()) {
            (HostStatus::Online, _) | (HostStatus::Draining, false) => true,
            (HostStatus::Draining, true)
            | (HostStatus::Pending | HostStatus::Unreachable | HostStatus::Offline, _) => false,
        };
        // A host that returned after the question is looked at by the next one: agents
        // pause everything before they beat again.
        let outdated = host.revision > probed.revision;
        if !may_apply || outdated {
            // For diagnosis only; but what an agent tells once must not be lost.
            self.in_savepoint(|w| w.note_drained(host.id, &announced, now))?;
            let ask_again = if may_apply { AskAgain::AtOnce } else { AskAgain::AsUsual };
            return Ok(Applied { ask_again, ..Applied::nothing(host.id) });
        }
        let question = Question {
            revision: probed.revision,
            asked_at: probed.asked_at,
            now,
            contact_gap: self.presence.has_contact_gap(host.id, now.mono, &self.policy),
            age_cap: probed.age_cap,
            forgotten_until: self.acceptance.newest().map(Restore::forgotten_until),
        };
        let recorded = self.strangers_of(&host.id.to_string())?;
        let looks = &self.records.entry(host.id).or_default().looks;
        let plan = plan_host(&rows, listing, &unplaced, &recorded, looks, &question, &self.policy);
        let turned = plan.transitions.iter().filter(|t| !t.ends_operation).count();
        if !self.may_turn(host.id, turned + plan.again.len(), rows.len(), now) {
            let detail = format!("contradicts itself: {turned} sandboxes changed once more");
            let failure = ProbeFailure::new(FailureKind::Malformed, detail);
            return self.failed(host, failure, &announced, now);
        }
        let last = LastObservation {
            asked_at: probed.asked_at,
            listed: listing.sandboxes.len(),
            own: listing.sandboxes.len() - unplaced.len(),
        };
        self.apply(host, plan, (listing, &announced), last, now)
    }

    /// The host that these sandboxes belong to may have answered in place of another: what it
    /// announced by that it will not say again, and who says so proves nothing here.
    fn observed_by_mistake(&mut self, others: &[HostId]) {
        let mut owners = others.to_vec();
        crate::model::order::distinct(&mut owners);
        self.after.extend(owners.into_iter().map(After::AnswerLost));
    }

    /// The hosts that unplaced sandboxes belong to, or are recorded with as strangers: one for
    /// each that has such a host.
    fn others_with(&self, host: HostId, unplaced: &[Unplaced]) -> Result<Vec<HostId>, StoreError> {
        let mut others: Vec<HostId> = unplaced.iter().filter_map(|u| u.owner).collect();
        let unknown: Vec<&Unplaced> = unplaced.iter().filter(|u| u.owner.is_none()).collect();
        if unknown.is_empty() {
            return Ok(others);
        }
        let sql = "SELECT sandbox_id, host_id FROM strangers WHERE host_id <> ?1";
        let mut select = self.conn.prepare_cached(sql)?;
        let mut cursor = select.query([host.to_string()])?;
        while let Some(row) = cursor.next()? {
            let id: SandboxId = rows::id(row, 0)?;
            if unknown.binary_search_by_key(&id, |u| u.id).is_ok() {
                others.push(rows::id(row, 1)?);
            }
        }
        Ok(others)
    }

    /// The rows of a host, sorted by id, with their operations and announcements. Of those
    /// that have ended only the named ones are needed.
    fn rows_of(
        &self,
        probed: &Probed,
        listing: &Listing,
        now: Now,
    ) -> Result<Vec<Row>, StoreError> {
        let key = probed.host.to_string();
        let on_host = self.usage.on(probed.host);
        let mut rows = match on_host.ended() > ENDED_READ_MAX.max(on_host.alive()) {
            true => self.alive_or_named(&key, listing)?,
            false => self.all_rows(&key, listing.sandboxes.len())?,
        };
        self.mark_operations(&key, &mut rows, probed, now.wall)?;
        self.mark_announced(&key, &mut rows, probed, listing, now)?;
        for (id, until) in &self.late_pauses {
            if let Ok(at) = rows.binary_search_by_key(id, |row| row.id) {
                rows[at].pause_outstanding = now.mono <= *until;
            }
        }
        Ok(rows)
    }

    fn all_rows(&self, host: &str, about: usize) -> Result<Vec<Row>, StoreError> {
        let sql = format!("{ROW} WHERE host_id = ?1 ORDER BY id");
        let mut rows = Vec::with_capacity(about);
        let mut select = self.conn.prepare_cached(&sql)?;
        let mut cursor = select.query([host])?;
        while let Some(found) = cursor.next()? {
            rows.push(row(found)?);
        }
        Ok(rows)
    }

    /// Without the ended ones that nothing names, of which the plan decides nothing.
    fn alive_or_named(&self, host: &str, listing: &Listing) -> Result<Vec<Row>, StoreError> {
        let sql = format!("{ROW} INDEXED BY sandboxes_by_host WHERE host_id = ?1 AND ended = 0");
        let mut select = self.conn.prepare_cached(&sql)?;
        let mut rows: Vec<Row> = select.query_map([host], row)?.collect::<Result<_, _>>()?;
        rows.sort_unstable_by_key(|row| row.id);
        let alive = rows.len();
        let mut named: Vec<SandboxId> = listing.sandboxes.iter().map(|entry| entry.id).collect();
        named.extend(&listing.auto_paused);
        named.extend(self.spoken_of(host)?);
        named.sort_unstable();
        named.dedup();
        named.retain(|id| rows.binary_search_by_key(id, |row| row.id).is_err());
        let mut select = self.conn.prepare_cached(&format!(
            "{ROW} INDEXED BY sqlite_autoindex_sandboxes_1 WHERE host_id = ?1 AND id = ?2"
        ))?;
        for id in named {
            rows.extend(select.query_row([host, id.text().as_str()], row).optional()?);
        }
        if rows.len() > alive {
            rows.sort_unstable_by_key(|row| row.id);
        }
        Ok(rows)
    }

    /// Sandboxes of a host that an operation or an announcement is about.
    fn spoken_of(&self, host: &str) -> Result<Vec<SandboxId>, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT sandbox_id FROM operations WHERE host_id = ?1 AND finished_at IS NULL \
             UNION ALL SELECT sandbox_id FROM auto_pause_inbox WHERE host_id = ?1",
        )?;
        Ok(select.query_map([host], |row| rows::id(row, 0))?.collect::<Result<_, _>>()?)
    }

    fn mark_operations(
        &self,
        host: &str,
        rows: &mut [Row],
        probed: &Probed,
        now: Wall,
    ) -> Result<(), StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT sandbox_id, created_at, deadline_at, id, kind, from_status FROM operations \
             WHERE host_id = ?1 AND finished_at IS NULL",
        )?;
        let mut cursor = select.query([host])?;
        while let Some(operation) = cursor.next()? {
            let id: SandboxId = rows::id(operation, 0)?;
            let Ok(at) = rows.binary_search_by_key(&id, |row| row.id) else { continue };
            let times = (rows::wall(operation, 1)?, rows::wall(operation, 2)?);
            let kind: OperationKind = rows::parsed(operation, 4)?;
            let state = match is_expired(kind, times, now, probed.age_cap) {
                true => OperationState::Expired,
                false => OperationState::Live,
            };
            let looking = self.looking.get(&rows::id(operation, 3)?);
            let told = looking.filter(|looking| looking.since <= probed.asked_at);
            let row = &mut rows[at];
            if is_left_over(kind, row.status, state, told.map(|told| told.answer)) {
                row.left_over = true;
                continue;
            }
            row.operation = state;
            let from = rows::parsed_opt(operation, 5)?;
            row.looking = told.map(|looking| LookingFor { kind, answer: looking.answer, from });
        }
        Ok(())
    }

    /// Marks what this answer and, but for strict policy, earlier ones announced.
    fn mark_announced(
        &self,
        host: &str,
        rows: &mut [Row],
        probed: &Probed,
        listing: &Listing,
        now: Now,
    ) -> Result<(), StoreError> {
        // What another process noted, a dry run, has the clock on the wall only; a time later
        // than now tells of one that was set back, not of a question.
        let asked_at = now.wall.before(now.mono.since(probed.asked_at));
        let since_asked = |id: SandboxId, noted_at: Wall| {
            self.noted.get(&id).is_some_and(|noted| *noted >= probed.asked_at)
                || (asked_at..=now.wall).contains(&noted_at)
        };
        if !self.policy.is_strict() {
            let mut select = self.conn.prepare_cached(
                "SELECT sandbox_id, revision, noted_at FROM auto_pause_inbox WHERE host_id = ?1",
            )?;
            let mut cursor = select.query([host])?;
            while let Some(entry) = cursor.next()? {
                let id: SandboxId = rows::id(entry, 0)?;
                let revision = rows::unsigned(entry, 1)?;
                let noted_at = rows::wall(entry, 2)?;
                if let Ok(at) = rows.binary_search_by_key(&id, |row| row.id) {
                    // A status newer than the announcement outdates it.
                    rows[at].announced = rows[at].revision <= revision;
                    rows[at].announced_since = rows[at].announced && since_asked(id, noted_at);
                }
            }
        }
        for id in &listing.auto_paused {
            if let Ok(at) = rows.binary_search_by_key(id, |row| row.id) {
                rows[at].announced = true;
            }
        }
        Ok(())
    }

    /// Who owns each of the listed ids that are not this host's.
    fn owners(&self, host: HostId, ids: Vec<SandboxId>) -> Result<Vec<Unplaced>, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT (SELECT host_id FROM sandboxes WHERE id = ?1), EXISTS (SELECT 1 \
             FROM operations WHERE host_id = ?2 AND sandbox_id = ?1 AND finished_at IS NULL)",
        )?;
        let key = host.to_string();
        ids.into_iter()
            .map(|id| {
                let (owner, destroying): (Option<HostId>, bool) = select
                    .query_row([&id.to_string(), &key], |row| {
                        Ok((rows::parsed_opt(row, 0)?, row.get(1)?))
                    })?;
                Ok(Unplaced { id, owner: owner.filter(|owner| *owner != host), destroying })
            })
            .collect()
    }

    fn apply(
        &mut self,
        host: &Host,
        mut plan: HostPlan,
        (listing, announced): (&Listing, &[SandboxId]),
        last: LastObservation,
        now: Now,
    ) -> Result<Applied, StoreError> {
        let before = self.records.entry(host.id).or_default();
        let record = HostRecord {
            looks: std::mem::take(&mut plan.memory),
            failures: 0,
            successes: before.successes.saturating_add(1),
            strangers: plan.strangers.len(),
            last: Some(last),
        };
        let recovered =
            host.degraded && record.successes >= RECOVERED_AFTER && self.may_recover(host.id, now);
        let mut applied = Applied::nothing(host.id);
        applied.observed = true;

        let drained = self.drained_to_keep(&plan, announced);
        self.foreign_notices(host.id, plan.foreign_notices);
        let news =
            plan.strangers.iter().any(|s| s.new) || !plan.departed.is_empty() || plan.hold_began;
        let writes = !plan.transitions.is_empty()
            || !plan.spent.is_empty()
            || !drained.is_empty()
            || !plan.again.is_empty()
            || !plan.call_again.is_empty()
            || !plan.left_over.is_empty()
            || !plan.destroy.is_empty()
            || news
            || recovered
            || host.rejoining
            || host.probe_failure.is_some();
        let observed = After::Observed { host: host.id, asked_at: last.asked_at, now, record };
        if writes {
            (applied.transitions, applied.work) = self.in_savepoint(|w| {
                w.note_drained(host.id, &drained, now)?;
                w.close_left_over(host.id, &plan.left_over, now)?;
                let written = w.write_transitions(host, &plan, listing, now)?;
                w.spend(host.id, &plan.spent)?;
                w.write_news(host, &plan, now)?;
                w.write_strangers(host, &plan, now)?;
                w.write_probe_health(host, recovered, now)?;
                let work = w.begin_again(host.id, &plan, now)?;
                w.after.push(observed);
                Ok((written, work))
            })?;
        } else {
            self.after.push(observed);
        }
        applied.held = plan.held;
        applied.strangers = plan.strangers;
        applied.ask_again = plan.ask_again;
        Ok(applied)
    }

    /// Announced ids that this very plan does not use up.
    fn drained_to_keep(&self, plan: &HostPlan, announced: &[SandboxId]) -> Vec<SandboxId> {
        let spent = |id: &SandboxId| plan.spent.binary_search(id).is_ok();
        let keep = |id: &&SandboxId| !spent(id) && !self.policy.is_strict();
        announced.iter().filter(keep).copied().collect()
    }

    /// Keeps auto-pause notices of a host about its own sandboxes; others are ignored.
    pub(super) fn note_drained(
        &mut self,
        host: HostId,
        ids: &[SandboxId],
        now: Now,
    ) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        for id in note(&self.conn, host, ids, self.revision as i64, now.wall)? {
            self.noted.insert(id, now.mono);
        }
        Ok(())
    }

    /// Counts what a host says about sandboxes that are not its own.
    fn foreign_notices(&self, host: HostId, count: usize) {
        if count > 0 {
            seldom!(Warn, "notices about others' sandboxes", host =>
                "{} says that it paused {count} sandboxes that are not its own",
                self.presence.named(host));
            self.count_foreign(count);
        }
    }

    fn spend(&mut self, host: HostId, ids: &[SandboxId]) -> Result<(), StoreError> {
        let mut delete = self.conn.prepare_cached(
            "DELETE FROM auto_pause_inbox WHERE host_id = ?1 AND sandbox_id = ?2",
        )?;
        for id in ids {
            delete.execute([host.to_string(), id.to_string()])?;
        }
        Ok(())
    }

    fn close_left_over(
        &mut self,
        host: HostId,
        ids: &[SandboxId],
        now: Now,
    ) -> Result<(), StoreError> {
        for id in ids {
            if let Some(work) = self.open_operation(host, *id)? {
                self.close_operation(work.op, Some("the sandbox has moved on"), now.wall)?;
            }
        }
        Ok(())
    }

    fn write_transitions(
        &mut self,
        host: &Host,
        plan: &HostPlan,
        listing: &Listing,
        now: Now,
    ) -> Result<Vec<Written>, StoreError> {
        let key = host.id.to_string();
        let mut written = Vec::with_capacity(plan.transitions.len());
        let details = self.details_of(host.id, plan)?;
        let cut = self.with_metadata_to_keep(host.id, plan, listing, now)?;
        let mut mover = self.mover(now, &Actor::SYSTEM)?;
        for (t, detail) in plan.transitions.iter().zip(&details) {
            let (id, team, from, to, reason) = (t.id, t.team, t.from, t.to, &t.reason);
            let (filled_by, detail) = (
                t.filled_by.map(|at| cut.get(&at).unwrap_or(&listing.sandboxes[at])),
                detail.as_deref(),
            );
            let t =
                Move { host: host.id, key: &key, id, team, from, to, reason, filled_by, detail };
            let revision = mover.move_sandbox(&t)?;
            written.push(Written { sandbox: id, from, to, reason: reason.clone(), revision });
        }
        drop(mover);
        for t in plan.transitions.iter().filter(|t| t.ends_operation) {
            if let Some(work) = self.open_operation(host.id, t.id)? {
                self.end_by_observation(&work, (t.to, &t.reason), now)?;
            }
        }
        Ok(written)
    }

    /// The entries that fill a row and have more metadata than is kept, as they are kept.
    fn with_metadata_to_keep(
        &mut self,
        host: HostId,
        plan: &HostPlan,
        listing: &Listing,
        now: Now,
    ) -> Result<HashMap<usize, Listed>, StoreError> {
        let mut cut = HashMap::new();
        for at in plan.transitions.iter().filter_map(|t| t.filled_by) {
            let entry = &listing.sandboxes[at];
            let metadata = entry.details.metadata.as_deref().unwrap_or_default();
            if let Cow::Owned(kept) = self.metadata_to_keep(host, metadata, now)? {
                let details = Details { metadata: Some(kept.into()), ..entry.details.clone() };
                cut.insert(at, Listed { details, ..entry.clone() });
            }
        }
        Ok(cut)
    }

    /// What agents said of the operations that fail by this plan, for each transition.
    fn details_of(&self, host: HostId, plan: &HostPlan) -> Result<Vec<Option<String>>, StoreError> {
        let detail = |t: &Transition| -> Result<Option<String>, StoreError> {
            if !t.ends_operation || t.reason != Reason::OperationFailed {
                return Ok(None);
            }
            let work = self.open_operation(host, t.id)?;
            let looking = work.and_then(|work| self.looking.get(&work.op));
            Ok(looking.and_then(|looking| looking.said.error.clone()))
        };
        plan.transitions.iter().map(detail).collect()
    }

    fn end_by_observation(
        &mut self,
        work: &Work,
        (to, reason): (SandboxStatus, &Reason),
        now: Now,
    ) -> Result<(), StoreError> {
        let said = self.looking.get(&work.op).map(|looking| looking.said.clone());
        let said = said.unwrap_or_default();
        let made = has_made_template(work.kind, reason);
        if made {
            self.template_made(work, said.size_bytes, now)?;
        } else if to == SandboxStatus::Running {
            // It was listed, so what the agent may have begun is not all that is left of it.
            self.template_not_made(work, now)?;
        }
        let error = said.error.unwrap_or_else(|| reason.as_str().to_owned());
        self.close_operation(work.op, (!made).then_some(error.as_str()), now.wall)?;
        self.expect_late_pause(work, now);
        Ok(())
    }

    /// Begins what shall be asked of the agent once more, and the end of zombies. Nothing
    /// else owns the rows: they were read in this transaction.
    fn begin_again(
        &mut self,
        host: HostId,
        plan: &HostPlan,
        now: Now,
    ) -> Result<Vec<Work>, StoreError> {
        // What the plan asks for again is over, whatever the clock says by now; an operation on
        // a zombie may go on. A destroy is never given up.
        let again = plan.again.iter().map(|(id, action)| match action {
            Action::Pause => (*id, OperationKind::Pause, true),
            Action::Destroy => (*id, OperationKind::Destroy, true),
        });
        let destroy = plan.destroy.iter().map(|id| (*id, OperationKind::Destroy, false));
        let mut begun = Vec::new();
        let mut room = self.room_for_destroys(host, &plan.destroy)?;
        for (id, kind, is_over) in again.chain(destroy) {
            let is_zombie = !is_over;
            if is_zombie && room == 0 {
                continue;
            }
            if let Some(open) = self.open_operation(host, id)? {
                let is_over = is_over || now.wall > open.deadline_at;
                if !is_over || open.kind == OperationKind::Destroy {
                    continue;
                }
                self.close_operation(open.op, Some("deadline passed"), now.wall)?;
            }
            if is_zombie {
                if !self.may_destroy_zombie(host, now) {
                    room = 0;
                    continue;
                }
                room -= 1;
            }
            begun.push(self.begin_operation(&NewOperation::new(host, id, kind), now.wall)?);
        }
        for (id, earlier) in &plan.call_again {
            begun.extend(self.call_again(host, *id, *earlier, now)?);
        }
        Ok(begun)
    }

    fn write_news(&mut self, host: &Host, plan: &HostPlan, now: Now) -> Result<(), StoreError> {
        if plan.hold_began {
            let lost = plan.held.len();
            seldom!(Warn, "mass vanishes", host.id =>
                "{} lost {lost} sandboxes at once; looking again", host.named());
            let words = format!("{lost} sandboxes vanished at once");
            self.caused_event(host, EventKind::HostMassVanish, (None, None), &words, now)?;
        }
        Ok(())
    }

    pub(super) fn host_event(
        &mut self,
        host: &Host,
        kind: EventKind,
        change: Option<(HostStatus, HostStatus)>,
        reason: &Reason,
        now: Now,
    ) -> Result<u64, StoreError> {
        self.journal(now, &Actor::SYSTEM)?.event(&Event {
            kind,
            host: host.id,
            sandbox: None,
            team: host.team_id,
            from: change.map(|(from, _)| from.as_str()),
            to: change.map(|(_, to)| to.as_str()),
            reason,
            detail: host.place().as_deref(),
        })
    }

    /// An applied observation ends rejoining and probe trouble and may end degradation.
    fn write_probe_health(
        &mut self,
        host: &Host,
        recovered: bool,
        now: Now,
    ) -> Result<(), StoreError> {
        if recovered {
            let reason = Reason::Other("probes succeed again".into());
            self.host_event(host, EventKind::HostRecovered, None, &reason, now)?;
        }
        if recovered || host.rejoining || host.probe_failure.is_some() {
            let mut update = self.conn.prepare_cached(
                "UPDATE hosts SET rejoining = 0, degraded = ?2, probe_outcome = NULL, \
                 probe_detail = NULL, probe_at = NULL, updated_at = ?3 WHERE id = ?1",
            )?;
            let degraded = host.degraded && !recovered;
            update.execute(params![host.id.to_string(), degraded, now.wall.0])?;
        }
        Ok(())
    }

    /// A probe without an observation: keeps what was drained, counts towards degraded.
    fn failed(
        &mut self,
        host: &Host,
        failure: ProbeFailure,
        drained: &[SandboxId],
        now: Now,
    ) -> Result<Applied, StoreError> {
        let heard = matches!(host.status(), HostStatus::Online | HostStatus::Draining);
        let before = self.records.entry(host.id).or_default();
        let record = HostRecord {
            looks: std::mem::take(&mut before.looks),
            // Only failures while heartbeats arrive make a host degraded.
            failures: if heard { before.failures.saturating_add(1) } else { 0 },
            successes: 0,
            strangers: before.strangers,
            last: before.last,
        };
        let degrades = heard && !host.degraded && record.failures >= DEGRADED_AFTER;
        let trouble = host.probe_failure.as_ref();
        let changed = trouble.is_none_or(|t| t.kind != failure.kind || t.detail != failure.detail);
        if degrades || changed || !drained.is_empty() {
            self.in_savepoint(|w| {
                w.note_drained(host.id, drained, now)?;
                w.write_trouble(host, &failure, degrades, now)
            })?;
        }
        self.after.push(After::Failed { host: host.id, record });
        if failure.answer_lost {
            self.after.push(After::AnswerLost(host.id));
        }
        Ok(Applied { failure: Some(failure), ..Applied::nothing(host.id) })
    }

    fn write_trouble(
        &mut self,
        host: &Host,
        failure: &ProbeFailure,
        degrades: bool,
        now: Now,
    ) -> Result<(), StoreError> {
        let same_kind = host.probe_failure.as_ref().filter(|t| t.kind == failure.kind);
        let since = same_kind.map_or(now.wall, |t| t.since);
        let mut update = self.conn.prepare_cached(
            "UPDATE hosts SET probe_outcome = ?2, probe_detail = ?3, probe_at = ?4, \
             degraded = degraded OR ?5, updated_at = ?6 WHERE id = ?1",
        )?;
        update.execute(params![
            host.id.to_string(),
            failure.kind.as_str(),
            failure.detail,
            since.0,
            degrades,
            now.wall.0
        ])?;
        drop(update);
        if degrades {
            seldom!(Warn, "degradations", host.id => "{} is degraded: {failure}", host.named());
            // Its team reads this event.
            let (kind, detail) = match host.team_id == PLATFORM_TEAM {
                true => (failure.kind, &*failure.detail),
                false => failure.kind.for_team(),
            };
            let words = format!("{kind}: {detail}");
            let reason = Reason::Other(words.into());
            self.host_event(host, EventKind::HostDegraded, None, &reason, now)?;
        }
        Ok(())
    }

    /// Sets one silent host unreachable and its active sandboxes missing, unless it was
    /// heard after it was judged. `None` when it was, or is not to be judged any more.
    pub(super) fn mark_down(
        &mut self,
        host: HostId,
        heard_at: Option<Mono>,
        now: Now,
    ) -> Result<Option<Applied>, StoreError> {
        let Some(host) = self.host(host)? else { return Ok(None) };
        let from = host.status();
        let may = match from {
            HostStatus::Online | HostStatus::Draining => true,
            HostStatus::Pending | HostStatus::Unreachable | HostStatus::Offline => false,
        };
        if !may || !self.presence.set_unreachable_unless_heard(host.id, heard_at) {
            return Ok(None);
        }
        self.in_savepoint(|w| {
            w.after.push(After::MarkedUnreachable(host.id));
            w.write_down(&host, from, now)
        })
        .map(Some)
    }

    fn write_down(
        &mut self,
        host: &Host,
        from: HostStatus,
        now: Now,
    ) -> Result<Applied, StoreError> {
        let reason = Reason::HostUnreachable;
        let to = HostStatus::Unreachable;
        let revision =
            self.host_event(host, EventKind::HostDown, Some((from, to)), &reason, now)?;
        self.set_liveness(host.id, Liveness::Unreachable, revision, now)?;
        let key = host.id.to_string();
        let mut applied = Applied::nothing(host.id);
        let lost = self.lost_with(&key, now)?;
        self.keep_announced(&key, self.revision + lost.len() as u64)?;
        let mut mover = self.mover(now, &Actor::SYSTEM)?;
        for (sandbox, team, from) in lost {
            let (to, reason) = (SandboxStatus::Missing, &reason);
            let (host, key, id, filled_by) = (host.id, key.as_str(), sandbox, None);
            let t = Move { host, key, id, team, from, to, reason, filled_by, detail: None };
            let revision = mover.move_sandbox(&t)?;
            let reason = reason.clone();
            applied.transitions.push(Written { sandbox, from, to, reason, revision });
        }
        drop(mover);
        let lost = applied.transitions.len();
        log::warn!("{} is unreachable; {lost} sandboxes are missing", host.named());
        let metadata = format!(
            r#"{{"from":"{from}","to":"{to}","reason":"{reason}","revision":{revision},"sandboxes_missing":{lost}}}"#
        );
        self.host_audit(host, AuditAction::MarkedDown, AuditStatus::Error, &metadata, now)?;
        applied.host_transition = Some((from, to, reason));
        Ok(applied)
    }

    /// Sandboxes that go missing with their host. A starting one with an unfinished
    /// operation stays with its operation.
    fn lost_with(
        &self,
        host: &str,
        now: Now,
    ) -> Result<Vec<(SandboxId, TeamId, SandboxStatus)>, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT s.id, s.team_id, s.status FROM sandboxes s INDEXED BY sandboxes_by_host \
             WHERE s.host_id = ?1 AND s.ended = 0 AND (s.status IN ('running', 'pending') OR s.status = 'starting' \
             AND NOT EXISTS (SELECT 1 FROM operations o WHERE o.host_id = s.host_id \
                 AND o.sandbox_id = s.id AND o.finished_at IS NULL AND o.deadline_at >= ?2)) \
             ORDER BY s.id",
        )?;
        let rows = select.query_map(params![host, now.wall.0], |row| {
            Ok((rows::id(row, 0)?, rows::id(row, 1)?, rows::parsed(row, 2)?))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// A status newer than an announcement outdates it, but not one that we only infer
    /// from silence, nor the wish for a pause: announcements that count now still count at
    /// `revision`.
    pub(super) fn keep_announced(&mut self, host: &str, revision: u64) -> Result<(), StoreError> {
        let mut update = self.conn.prepare_cached(
            "UPDATE auto_pause_inbox SET revision = ?2 WHERE host_id = ?1 AND revision >= \
             (SELECT s.revision FROM sandboxes s WHERE s.host_id = ?1 AND s.id = sandbox_id)",
        )?;
        Ok(update.execute(params![host, revision as i64]).map(drop)?)
    }

    pub(super) fn host_audit(
        &mut self,
        host: &Host,
        action: AuditAction,
        status: AuditStatus,
        metadata: &str,
        now: Now,
    ) -> Result<(), StoreError> {
        let id = host.id.to_string();
        let resource = (ResourceType::Host, id.as_str());
        let audit = Audit { team: host.team_id, resource, action, status, metadata };
        self.journal(now, &Actor::SYSTEM)?.audit(&audit).map(drop)
    }

    fn set_liveness(
        &mut self,
        host: HostId,
        liveness: Liveness,
        revision: u64,
        now: Now,
    ) -> Result<(), StoreError> {
        let mut update = self.conn.prepare_cached(
            "UPDATE hosts SET liveness = ?2, rejoining = ?3, revision = ?4, updated_at = ?5 \
             WHERE id = ?1",
        )?;
        let rejoining = liveness == Liveness::Alive;
        update.execute(params![
            host.to_string(),
            liveness.as_str(),
            rejoining,
            revision as i64,
            now.wall.0
        ])?;
        Ok(())
    }

    /// Takes an unreachable host that was heard back. False when it was not unreachable.
    pub(super) fn mark_up(&mut self, host: HostId, now: Now) -> Result<bool, StoreError> {
        let Some(mut host) = self.host(host)? else { return Ok(false) };
        let from = host.status();
        if host.liveness == Liveness::Alive {
            return Ok(false);
        }
        host.liveness = Liveness::Alive;
        let to = host.status();
        self.in_savepoint(|w| {
            let reason = Reason::HeartbeatReceived;
            let revision =
                w.host_event(&host, EventKind::HostUp, Some((from, to)), &reason, now)?;
            w.set_liveness(host.id, Liveness::Alive, revision, now)?;
            if !w.policy.is_strict() {
                let metadata = format!(
                    r#"{{"from":"{from}","to":"{to}","reason":"{reason}","revision":{revision}}}"#
                );
                w.host_audit(&host, AuditAction::MarkedUp, AuditStatus::Success, &metadata, now)?;
            }
            log::info!("{} is back", host.named());
            w.after.push(After::HostChanged { host: Box::new(host), now });
            Ok(true)
        })
    }
}

/// Keeps auto-pause notices in a database that another process may be serving: what agents
/// told a dry run they will not tell again. The only write outside the writer.
pub fn keep_announcements(
    db: &Path,
    notices: &[(HostId, Vec<SandboxId>)],
    now: Now,
) -> Result<(), StoreError> {
    if notices.iter().all(|(_, ids)| ids.is_empty()) {
        return Ok(());
    }
    let mut conn = open_writer(db, false, now.wall)?;
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let revision: i64 = tx.query_row("SELECT revision FROM state", [], |row| row.get(0))?;
    for (host, ids) in notices {
        note(&tx, *host, ids, revision, now.wall)?;
    }
    Ok(tx.commit()?)
}

/// Keeps what a host says of its own sandboxes; gives those ids.
fn note(
    conn: &Connection,
    host: HostId,
    ids: &[SandboxId],
    revision: i64,
    at: Wall,
) -> Result<Vec<SandboxId>, StoreError> {
    let mut insert = conn.prepare_cached(
        "INSERT INTO auto_pause_inbox (host_id, sandbox_id, revision, noted_at) \
         SELECT host_id, id, ?3, ?4 FROM sandboxes WHERE host_id = ?1 AND id = ?2 \
         ON CONFLICT DO UPDATE SET revision = excluded.revision, noted_at = excluded.noted_at",
    )?;
    let mut own = Vec::new();
    for id in ids {
        if insert.execute(params![host.to_string(), id.to_string(), revision, at.0])? > 0 {
            own.push(*id);
        }
    }
    Ok(own)
}

#[cfg(test)]
mod tests;
