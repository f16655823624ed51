//! Owns what one observation means for one host: the table for each row, and what only
//! the host as a whole can tell (wrong host, mass vanish, strangers, looks that agree).
//!
//! Never: reads or writes the database; `store` brings the rows and applies the plan.

use super::operation::{Answer, Earlier, LOOK_EVERY, Outcome, after_look, transient};
use super::reconcile::{Action, Decision, Known, Look, OperationState, Report, reconcile};
use crate::model::id::{HostId, SandboxId, TeamId};
use crate::model::operation::OperationKind;
use crate::model::policy::{CONFIRMATIONS, MASS_VANISH_MIN, Policy, ZombiePolicy};
use crate::model::probe::{Listed, ListedState, Listing};
use crate::model::sandbox::{Reason, SandboxStatus, StrangerKind};
use crate::model::time::{Mono, Now, Wall};
use std::time::Duration;

/// Strangers of one host that are recorded. Larger: a hostile agent fills the database;
/// smaller: an operator does not see all that a restore has forgotten.
const STRANGERS_MAX: usize = 1_000;

/// Strangers of one listing that are looked at, in order of their ids. Larger: what is
/// remembered of a hostile host until its next listing takes more memory; smaller: a host that
/// lost its rows is cleared up after more slowly.
const STRANGERS_SEEN_MAX: usize = 4_096;

/// How far in the future the time of a status may lie before the clock was set back.
pub(super) const CLOCK_TOLERANCE: Duration = Duration::from_secs(5);

/// One row of the host, as the writer's transaction sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Whose row.
    pub id: SandboxId,
    /// Who owns it; goes into its history.
    pub team: TeamId,
    /// Its status.
    pub status: SandboxStatus,
    /// Whether a `stopped` was a user's request.
    pub ended_by_user: bool,
    /// When the status last changed.
    pub changed_at: Wall,
    /// Revision of that change.
    pub revision: u64,
    /// Whether an operation owns it.
    pub operation: OperationState,
    /// Whether its operation is left over and shall be closed; it owns nothing any more.
    pub left_over: bool,
    /// The operation whose outcome this look may tell; it was asked for before the look.
    pub looking: Option<LookingFor>,
    /// Whether the agent announced that it paused it (in the inbox, not proven stale).
    pub announced: bool,
    /// Whether it did so after it was asked: this answer is older than that.
    pub announced_since: bool,
    /// Whether a pause that nobody waits for any more may still come true, which the agent
    /// would not announce.
    pub pause_outstanding: bool,
}

/// An operation that waits for a look at its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LookingFor {
    /// What was asked for.
    pub kind: OperationKind,
    /// What the agent has said.
    pub answer: Answer,
    /// The status in which the operation began.
    pub from: Option<SandboxStatus>,
}

/// A listed id that is not among the host's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unplaced {
    /// The id.
    pub id: SandboxId,
    /// The host that the database says it belongs to, if it has a row at all.
    pub owner: Option<HostId>,
    /// This host was asked to destroy it.
    pub destroying: bool,
}

/// When and by which state of the database the question was asked, and what surrounds
/// its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// Newest revision when the agent was asked; newer rows are not this answer's business.
    pub revision: u64,
    /// When the agent was asked.
    pub asked_at: Mono,
    /// When the answer is applied.
    pub now: Now,
    /// Whether the agent may have paused everything unannounced since it was last seen.
    pub contact_gap: bool,
    /// Longest age of a status that can be held against a row: how long we have listened.
    /// `None` when ages are taken as they are.
    pub age_cap: Option<Duration>,
    /// A sandbox without a row that is seen until then is one that a restore has forgotten.
    /// `None`: the database was never restored.
    pub forgotten_until: Option<Wall>,
}

/// What is remembered of one host from look to look. Losing it (a restart) only delays.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostMemory {
    /// Looks that wait for another one; sorted by id.
    sightings: Vec<Sighting>,
    /// Since when a mass vanish is held.
    vanish_held_since: Option<Mono>,
}

impl HostMemory {
    /// Sandboxes whose stop is held because too many vanished at once.
    pub fn held(&self) -> usize {
        let absent = |s: &&Sighting| s.what == Seen::Absent;
        self.vanish_held_since.map_or(0, |_| self.sightings.iter().filter(absent).count())
    }

    /// Whether something that was absent behind a contact gap waits for another look.
    pub fn waits_behind_gap(&self) -> bool {
        self.sightings.iter().any(|s| s.contact_gap && s.what == Seen::Absent)
    }

    /// Counts what is seen of one sandbox anew: observations from before agree with none that
    /// follows. That it was absent behind a contact gap stays true.
    pub fn count_anew(&mut self, id: SandboxId) {
        self.sightings.retain_mut(|sighting| {
            if sighting.id == id {
                sighting.revision = NO_REVISION;
            }
            sighting.id != id || sighting.contact_gap && sighting.what == Seen::Absent
        });
    }
}

/// In the place of a row's revision: no row, or none that a later observation agrees with.
const NO_REVISION: u64 = 0;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Sighting {
    id: SandboxId,
    what: Seen,
    /// Revision of the row that was observed.
    revision: u64,
    first_at: Mono,
    last_at: Mono,
    agreeing: u32,
    /// Whether any of the looks came after a contact gap: later ones do not undo that.
    contact_gap: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Absent,
    Alive,
}

/// One row that changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// Whose row.
    pub id: SandboxId,
    /// Who owns it.
    pub team: TeamId,
    /// Status before.
    pub from: SandboxStatus,
    /// Status after.
    pub to: SandboxStatus,
    /// Why.
    pub reason: Reason,
    /// Position in the listing of the entry that fills the row, when it becomes running.
    pub filled_by: Option<usize>,
    /// Whether the operation that owned the row is over by this.
    pub ends_operation: bool,
}

/// A sandbox that the host has although this database does not place it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stranger {
    /// Its id.
    pub id: SandboxId,
    /// In which way it is one.
    pub kind: StrangerKind,
    /// What the database says of it on this host; `None` without a row here.
    pub status: Option<SandboxStatus>,
    /// Whether this observation is the first to report it.
    pub new: bool,
}

/// When the host should be asked again because of this answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AskAgain {
    /// Nothing is open.
    #[default]
    AsUsual,
    /// A row changed after the question.
    AtOnce,
    /// A look waits for another one.
    After(Duration),
}

impl AskAgain {
    fn sooner(self, other: AskAgain) -> AskAgain {
        match (self, other) {
            (AskAgain::AtOnce, _) | (_, AskAgain::AtOnce) => AskAgain::AtOnce,
            (AskAgain::AsUsual, after) | (after, AskAgain::AsUsual) => after,
            (AskAgain::After(a), AskAgain::After(b)) => AskAgain::After(a.min(b)),
        }
    }
}

/// Everything one observation decides for one host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostPlan {
    /// Rows that change, in order of id.
    pub transitions: Vec<Transition>,
    /// Rows whose operation is left over.
    pub left_over: Vec<SandboxId>,
    /// What is asked of the agent once more.
    pub again: Vec<(SandboxId, Action)>,
    /// Operations whose call is made again, and what the earlier call left behind.
    pub call_again: Vec<(SandboxId, Earlier)>,
    /// Rows whose stop is held because too many vanished at once.
    pub held: Vec<SandboxId>,
    /// Whether this look is the first to hold.
    pub hold_began: bool,
    /// Strangers, confirmed and old enough.
    pub strangers: Vec<Stranger>,
    /// Those of them that are destroyed.
    pub destroy: Vec<SandboxId>,
    /// Recorded strangers that are gone.
    pub departed: Vec<SandboxId>,
    /// Ids of other hosts, or of none, that the agent says it paused. They are ignored.
    pub foreign_notices: usize,
    /// Announcements that are used up or proven stale.
    pub spent: Vec<SandboxId>,
    /// Rows that could not be judged because they changed after the question.
    pub newer: usize,
    /// When to ask again.
    pub ask_again: AskAgain,
    /// What to remember until then.
    pub memory: HostMemory,
}

/// Positions of the listing's entries in order of id; what the other functions merge by.
pub fn by_id(listing: &Listing) -> Vec<u32> {
    let mut order: Vec<u32> = (0..listing.sandboxes.len() as u32).collect();
    order.sort_unstable_by_key(|&at| listing.sandboxes[at as usize].id);
    order
}

/// Listed ids that have no row among `rows` (sorted by id), in order.
pub fn unplaced(listing: &Listing, rows: &[Row]) -> Vec<SandboxId> {
    let listed = listing.sandboxes.iter().map(|entry| entry.id);
    let mut unknown: Vec<SandboxId> = listed.filter(|&id| !is_among(rows, id)).collect();
    unknown.sort_unstable();
    unknown
}

fn is_among(rows: &[Row], id: SandboxId) -> bool {
    rows.binary_search_by_key(&id, |row| row.id).is_ok()
}

/// Whether most of what is listed belongs to other hosts, and none of it to this one.
/// `others`: the hosts that listed ids belong to, or are recorded with as strangers.
pub fn lists_others(listing: &Listing, unplaced: &[Unplaced], others: &[HostId]) -> bool {
    let own = listing.sandboxes.len() - unplaced.len();
    own == 0 && others.len() * 2 > listing.sandboxes.len()
}

/// The host that has answered in place of this one, when most of what is listed belongs to
/// `others`. A few of their sandboxes are strangers here: an agent that answers in place of
/// another lists all that it lists at its own address (`lists`).
pub fn wrong_host(others: &[HostId], lists: impl Fn(HostId) -> usize) -> Option<HostId> {
    let mut others = others.to_vec();
    crate::model::order::sort_by_key(&mut others, |host| *host);
    let most = others.chunk_by(|a, b| a == b).max_by_key(|ids| ids.len())?;
    (most.len() * 2 >= lists(most[0])).then_some(most[0])
}

/// Plans for one host. `rows` are sorted by id; `unplaced` are those of [`unplaced`], with
/// their owners; `recorded` are the strangers that this host is known for, sorted by id.
pub fn plan_host(
    rows: &[Row],
    listing: &Listing,
    unplaced: &[Unplaced],
    recorded: &[(SandboxId, StrangerKind)],
    memory: &HostMemory,
    question: &Question,
    policy: &Policy,
) -> HostPlan {
    let mut planner = Planner {
        plan: HostPlan::default(),
        memory,
        recorded,
        question,
        policy,
        running_rows: 0,
        strangers_seen: 0,
    };
    let order = by_id(listing);
    let mut listed = order.iter().map(|&at| at as usize).peekable();
    for row in rows {
        while listed.next_if(|&at| listing.sandboxes[at].id < row.id).is_some() {}
        let entry = listed.next_if(|&at| listing.sandboxes[at].id == row.id);
        planner.row(row, entry, listing);
    }
    let mut listed = order.iter().map(|&at| &listing.sandboxes[at as usize]).peekable();
    for unplaced in unplaced.iter().filter(|u| !u.destroying) {
        while listed.next_if(|entry| entry.id < unplaced.id).is_some() {}
        if let Some(entry) = listed.next_if(|entry| entry.id == unplaced.id) {
            planner.unplaced(entry, unplaced.owner.is_some());
        }
    }
    let foreign = listing.auto_paused.iter().filter(|id| !is_among(rows, **id));
    planner.plan.foreign_notices = foreign.count();
    planner.departed(listing, &order);
    planner.finish()
}

struct Planner<'a> {
    plan: HostPlan,
    memory: &'a HostMemory,
    recorded: &'a [(SandboxId, StrangerKind)],
    question: &'a Question,
    policy: &'a Policy,
    running_rows: usize,
    strangers_seen: usize,
}

impl Planner<'_> {
    fn row(&mut self, row: &Row, entry: Option<usize>, listing: &Listing) {
        if row.revision > self.question.revision || row.announced_since {
            self.plan.newer += 1;
            let kept = self.unjudged(row.id, entry.is_some());
            self.plan.memory.sightings.extend(kept);
            return;
        }
        if row.status == SandboxStatus::Running {
            self.running_rows += 1;
        }
        if row.left_over {
            self.plan.left_over.push(row.id);
        }
        let report = match entry.map(|at| listing.sandboxes[at].state) {
            Some(ListedState::Running) => Report::Running,
            Some(ListedState::Paused) => Report::Paused,
            Some(ListedState::Error) => Report::Error,
            None if row.announced => Report::AutoPaused,
            None => Report::Absent,
        };
        let seen = if report == Report::Absent { Seen::Absent } else { Seen::Alive };
        let gap = self.question.contact_gap || row.pause_outstanding;
        let sighting = self.sighting(row.id, seen, row.revision, gap);
        let look = Look { report, contact_gap: sighting.contact_gap, agreeing: sighting.agreeing };
        let outcome = self.decided_by_look(row, look);
        let decision = match &outcome {
            Some(Outcome::Wait | Outcome::CallAgain(_)) => Decision::Keep,
            Some(Outcome::Finish(to, reason)) => Decision::Move(*to, reason.clone()),
            None => reconcile(Some(self.known(row)), look, self.policy),
        };
        self.spend(row, report, &decision, outcome.as_ref());
        if let Some(Outcome::CallAgain(earlier)) = outcome {
            self.plan.call_again.push((row.id, earlier));
            // What the second call leaves open may be decided when the gap is long closed.
            let kept = Some(sighting).filter(|sighting| sighting.contact_gap);
            return self.plan.memory.sightings.extend(kept);
        }
        match decision {
            Decision::Keep if outcome.is_some() => {
                let delay = LOOK_EVERY.min(match sighting.agreeing {
                    1 => self.policy.confirm_delay,
                    _ => LOOK_EVERY,
                });
                self.plan.ask_again = self.plan.ask_again.sooner(AskAgain::After(delay));
                self.plan.memory.sightings.push(sighting);
            }
            // What its operation leaves open may be decided when the gap is long closed.
            Decision::Keep if row.operation == OperationState::Live && sighting.contact_gap => {
                self.plan.memory.sightings.push(sighting);
            }
            Decision::Keep => {}
            Decision::Confirm => self.remember(sighting),
            Decision::Move(to, reason) => {
                let filled_by = entry.filter(|_| to == SandboxStatus::Running);
                let (id, team, from) = (row.id, row.team, row.status);
                let ends_operation = ends_operation(row);
                let t = Transition { id, team, from, to, reason, filled_by, ends_operation };
                self.plan.transitions.push(t);
            }
            Decision::Again(action) => self.plan.again.push((row.id, action)),
            Decision::Zombie => {
                if let Some(at) = entry {
                    let status = Some(row.status);
                    let kind = StrangerKind::Zombie;
                    self.stranger(listing.sandboxes[at].id, kind, status, row.revision);
                }
            }
        }
    }

    /// What a look tells of the operation that waits for it; `None` when none does.
    fn decided_by_look(&self, row: &Row, look: Look) -> Option<Outcome> {
        let owned = row.operation == OperationState::Live;
        let waits = |l: &LookingFor| owned && row.status == transient(l.kind);
        let looking = row.looking.filter(waits)?;
        Some(after_look(looking.kind, looking.answer, looking.from, look))
    }

    fn known(&self, row: &Row) -> Known {
        let now = self.question.now.wall;
        // A status from the future tells of a clock that was set back: it may be any age.
        let age = match row.changed_at > now.after(CLOCK_TOLERANCE) {
            true => Duration::MAX,
            false => now.since(row.changed_at),
        };
        Known {
            status: row.status,
            ended_by_user: row.ended_by_user,
            age: self.question.age_cap.map_or(age, |cap| age.min(cap)),
            operation: row.operation,
        }
    }

    fn earlier(&self, id: SandboxId) -> Option<&Sighting> {
        let at = self.memory.sightings.binary_search_by_key(&id, |s| s.id).ok()?;
        Some(&self.memory.sightings[at])
    }

    /// What is remembered of a row of which this look says nothing. What earlier looks saw is
    /// not undone by it, and the gap that it closes for the host stays one for an absent row.
    fn unjudged(&self, id: SandboxId, listed: bool) -> Option<Sighting> {
        let earlier = self.earlier(id).cloned();
        if listed || !self.question.contact_gap {
            return earlier;
        }
        let now = self.question.now.mono;
        let none = Sighting {
            id,
            what: Seen::Absent,
            revision: NO_REVISION,
            first_at: now,
            last_at: now,
            agreeing: 0,
            contact_gap: true,
        };
        let absent = earlier.filter(|sighting| sighting.what == Seen::Absent);
        Some(absent.map_or(none, |sighting| Sighting { contact_gap: true, ..sighting }))
    }

    /// The sighting that this look makes of an earlier one of the same row, or its first.
    fn sighting(&self, id: SandboxId, what: Seen, revision: u64, gap: bool) -> Sighting {
        let now = self.question.now.mono;
        let earlier = self.earlier(id).filter(|s| s.what == what);
        // A wish that came between two looks undoes no gap that the first one saw.
        let gap = gap || what == Seen::Absent && earlier.is_some_and(|s| s.contact_gap);
        match earlier.filter(|s| s.revision == revision) {
            None => Sighting {
                id,
                what,
                revision,
                first_at: now,
                last_at: now,
                agreeing: 1,
                contact_gap: gap,
            },
            Some(earlier) => {
                let waited =
                    self.question.asked_at >= earlier.last_at.after(self.policy.confirm_delay);
                Sighting {
                    agreeing: earlier.agreeing.saturating_add(u32::from(waited)),
                    last_at: if waited { now } else { earlier.last_at },
                    contact_gap: earlier.contact_gap || gap,
                    ..earlier.clone()
                }
            }
        }
    }

    fn remember(&mut self, sighting: Sighting) {
        let waited = self.question.now.mono.since(sighting.last_at);
        let left = self.policy.confirm_delay.saturating_sub(waited);
        self.plan.ask_again = self.plan.ask_again.sooner(AskAgain::After(left));
        self.plan.memory.sightings.push(sighting);
    }

    /// Notes whether the auto-pause notice of this row has done its work. What is called again
    /// because of it is not called again for the same notice.
    fn spend(&mut self, row: &Row, report: Report, decision: &Decision, outcome: Option<&Outcome>) {
        let is_called_again = matches!(outcome, Some(Outcome::CallAgain(_)));
        let waits_for_operation = row.operation == OperationState::Live
            && report != Report::Running
            && *decision == Decision::Keep
            && !is_called_again;
        if row.announced && !waits_for_operation {
            self.plan.spent.push(row.id);
        }
    }

    /// A listed sandbox without a row on this host.
    fn unplaced(&mut self, entry: &Listed, has_owner: bool) {
        let is_forgotten =
            self.question.forgotten_until.is_some_and(|u| self.question.now.wall <= u);
        let kind = match (has_owner, is_forgotten) {
            (true, _) => StrangerKind::Misplaced,
            (false, true) => StrangerKind::Forgotten,
            (false, false) => StrangerKind::Zombie,
        };
        self.stranger(entry.id, kind, None, NO_REVISION);
    }

    /// Reports a stranger once it is confirmed. What a restore may have forgotten is recorded
    /// at once, and stays forgotten: it is never destroyed unasked.
    fn stranger(
        &mut self,
        id: SandboxId,
        kind: StrangerKind,
        status: Option<SandboxStatus>,
        revision: u64,
    ) {
        let recorded = self.recorded_as(id);
        self.strangers_seen += 1;
        if recorded.is_none() && self.strangers_seen > STRANGERS_SEEN_MAX {
            return;
        }
        let sighting = self.sighting(id, Seen::Alive, revision, self.question.contact_gap);
        let seen_for = self.question.now.mono.since(sighting.first_at);
        let is_old = seen_for > self.policy.transient_grace;
        let is_confirmed = sighting.agreeing >= CONFIRMATIONS;
        let kind = recorded.filter(|r| *r == StrangerKind::Forgotten).unwrap_or(kind);
        let is_due = match kind {
            StrangerKind::Forgotten => true,
            StrangerKind::Misplaced => is_confirmed,
            StrangerKind::Zombie => is_confirmed && is_old,
        };
        let is_full = self.recorded.len() + self.plan.strangers.len() >= STRANGERS_MAX;
        if recorded.is_some() || is_due && !is_full {
            let new = recorded != Some(kind);
            self.plan.strangers.push(Stranger { id, kind, status, new });
        }
        let is_zombie = kind == StrangerKind::Zombie && is_due;
        match self.policy.zombies {
            ZombiePolicy::Destroy if is_zombie => self.plan.destroy.push(id),
            ZombiePolicy::Destroy | ZombiePolicy::Report => {}
        }
        match is_confirmed {
            true => self.plan.memory.sightings.push(sighting),
            false => self.remember(sighting),
        }
    }

    fn recorded_as(&self, id: SandboxId) -> Option<StrangerKind> {
        let at = self.recorded.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(self.recorded[at].1)
    }

    /// Recorded strangers that are not listed any more. A forgotten one may be paused, which
    /// older agents do not list.
    fn departed(&mut self, listing: &Listing, order: &[u32]) {
        let is_listed = |id: SandboxId| {
            order.binary_search_by_key(&id, |&at| listing.sandboxes[at as usize].id).is_ok()
        };
        let departed = self.recorded.iter().filter(|(id, kind)| match kind {
            StrangerKind::Forgotten => false,
            StrangerKind::Zombie | StrangerKind::Misplaced => !is_listed(*id),
        });
        self.plan.departed = departed.map(|(id, _)| *id).collect();
    }

    fn finish(mut self) -> HostPlan {
        self.hold_mass_vanish();
        if self.plan.newer > 0 {
            self.plan.ask_again = AskAgain::AtOnce;
        }
        self.plan.memory.sightings.sort_unstable_by_key(|s| s.id);
        self.plan
    }

    /// A host that loses at least three and at least half of its running sandboxes at
    /// once may have restarted its agent: one more look, a whole interval later. Until then
    /// nothing of it vanishes, however few are left of those that are held.
    fn hold_mass_vanish(&mut self) {
        let vanishes =
            |t: &Transition| t.reason == Reason::Vanished && t.from == SandboxStatus::Running;
        let vanished = self.plan.transitions.iter().filter(|t| vanishes(t)).count();
        let many = vanished >= MASS_VANISH_MIN && vanished * 2 >= self.running_rows;
        let holds = many || self.memory.vanish_held_since.is_some() && vanished > 0;
        if self.policy.is_strict() || !holds {
            return;
        }
        let now = self.question.now.mono;
        let since = self.memory.vanish_held_since.unwrap_or(now);
        let until = since.after(self.policy.probe_interval);
        if self.memory.vanish_held_since.is_some() && self.question.asked_at >= until {
            return;
        }
        self.plan.hold_began = self.memory.vanish_held_since.is_none();
        self.plan.memory.vanish_held_since = Some(since);
        let (held, moving): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.plan.transitions).into_iter().partition(vanishes);
        self.plan.transitions = moving;
        self.plan.held = held.iter().map(|t| t.id).collect();
        for id in &self.plan.held {
            if let Ok(at) = self.memory.sightings.binary_search_by_key(id, |s| s.id) {
                self.plan.memory.sightings.push(self.memory.sightings[at].clone());
            }
        }
        let left = until.since(now);
        self.plan.ask_again = self.plan.ask_again.sooner(AskAgain::After(left));
    }
}

/// Whether the operation that owns a row is over when the row moves: what is left of it
/// would own the sandbox for ever. But a destroy goes on until the agent says so.
fn ends_operation(row: &Row) -> bool {
    match row.operation {
        OperationState::None => false,
        OperationState::Live => row.status != SandboxStatus::Stopping,
        OperationState::Expired => true,
    }
}

#[cfg(test)]
mod tests;
