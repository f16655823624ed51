//! Owns what must hold for a fleet at every moment, whatever is true on its hosts: how often a
//! host is asked, how long what can be known stays unknown, and what is never destroyed.
//!
//! Never: repairs or forgives anything.

use crate::history::{Change, Row};
use crate::plane::Plane;
use crate::tally::Fault;
use crate::world::{Machine, SECOND, World};
use roost::agent::client::CallError;
use roost::agent::wire::ConnectCode;
use roost::model::event::EventKind;
use roost::model::host::{Host, Intent, Liveness};
use roost::model::id::{HostId, SandboxId};
use roost::model::operation::OperationKind;
use roost::model::policy::ZombiePolicy;
use roost::model::probe::Details;
use roost::model::sandbox::{Reason, SandboxStatus};
use std::collections::{BTreeMap, BTreeSet};

/// A host is probed at most once in that time (rule 13).
const PROBED_EVERY_MIN_MS: u64 = SECOND;

/// What can be known is known after that time (rules 8 and 12): the delays between three
/// calls, or between two observations, and what a slow agent takes for each.
const KNOWN_WITHIN_MS: u64 = 60 * SECOND;

/// Observations of a host from which the outcome of a call follows: two that agree, and one
/// for each that a change may outdate.
const OBSERVATIONS_ENOUGH: u32 = 4;

/// How late a create on an unreachable host may be settled: heartbeats are flushed every ten
/// seconds.
const SETTLED_WITHIN_MS: u64 = 30 * SECOND;

/// A create that is not over.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    since_ms: u64,
    /// Calls of it of which it is not certain that no agent took them.
    uncertain: u32,
}

/// What is remembered for these rules.
#[derive(Debug, Default)]
pub(crate) struct Bounds {
    /// When the plane that runs last asked each host for its list.
    probed_ms: BTreeMap<HostId, u64>,
    /// Lists of each host that the plane took in, since something last stood in their way.
    observed: BTreeMap<HostId, u32>,
    /// Creates that the plane that runs has taken in.
    creates: BTreeMap<SandboxId, Waiting>,
    /// What was under way when the plane started, or when its host registered: nothing has
    /// become of it since, nor was it asked for again.
    unsettled: BTreeMap<SandboxId, (HostId, u64)>,
    /// What users wanted destroyed, by what the database knows, and operators.
    destroyed: BTreeSet<SandboxId>,
    /// What operators wanted destroyed where it should not be.
    ended_strangers: BTreeSet<(HostId, SandboxId)>,
    /// Creates that a host declined, and that were placed on another one.
    elsewhere: BTreeSet<(HostId, SandboxId)>,
}

impl World {
    pub(crate) fn bound_probe(&mut self, host: HostId) {
        let now_ms = self.now_ms();
        let before = self.bounds.probed_ms.insert(host, now_ms);
        if before.is_some_and(|before| now_ms - before < PROBED_EVERY_MIN_MS) {
            self.wrong(format!("{host} is probed twice in a second"));
        }
    }

    /// A list of this host was taken in.
    pub(crate) fn observed(&mut self, host: HostId) {
        let at = self.machine_of(host);
        let Machine { link, standing, half_declined, .. } = &self.machines[at];
        let like_another = !self.tls && !half_declined.is_empty();
        if link.taken_by.is_some() || standing.successor.is_some() || like_another {
            // Another one has answered, or may have by what is listed.
            return;
        }
        *self.bounds.observed.entry(host).or_default() += 1;
    }

    /// A call is made; `reached`: something was sent.
    pub(crate) fn bound_call(
        &mut self,
        host: HostId,
        sandbox: SandboxId,
        kind: OperationKind,
        reached: bool,
    ) {
        self.bounds.unsettled.remove(&sandbox);
        if kind == OperationKind::Create
            && reached
            && let Some(create) = self.bounds.creates.get_mut(&sandbox)
        {
            create.uncertain += 1;
        }
        if kind == OperationKind::Destroy && !self.may_be_destroyed(host, sandbox) {
            self.wrong(format!("{sandbox} on {host} is destroyed, and no user wanted that"));
        }
    }

    /// What came of a call that was sent.
    pub(crate) fn bound_result(
        &mut self,
        sandbox: SandboxId,
        result: &Result<Option<Details>, CallError>,
    ) {
        let declined = matches!(
            result,
            Err(CallError::Refused {
                code: ConnectCode::Unavailable | ConnectCode::ResourceExhausted,
                ..
            })
        );
        if declined && let Some(create) = self.bounds.creates.get_mut(&sandbox) {
            create.uncertain = create.uncertain.saturating_sub(1);
        }
    }

    /// Only what a user or an operator wanted destroyed, what a host declined to create, and,
    /// where the policy says so, what has no row.
    fn may_be_destroyed(&self, host: HostId, id: SandboxId) -> bool {
        let Some(history) = &self.history else { return false };
        let bounds = &self.bounds;
        // What a restore has forgotten was made by a user, and none wanted it destroyed.
        let is_zombie = self.policy.zombies == ZombiePolicy::Destroy
            && !history.has_row(id)
            && !self.restores.forgotten.contains(&id);
        let asked = bounds.destroyed.contains(&id) || bounds.ended_strangers.contains(&(host, id));
        asked || bounds.elsewhere.contains(&(host, id)) || is_zombie
    }

    pub(crate) fn operator_destroys(&mut self, host: HostId, id: SandboxId) {
        self.bounds.ended_strangers.insert((host, id));
    }

    /// What a change says of these rules.
    pub(crate) fn bound_change(&mut self, change: &Change) {
        let now_ms = self.now_ms();
        use EventKind::{HostDown, HostIntent, HostRegistered, HostUp};
        if matches!(change.kind, HostDown | HostUp | HostIntent | HostRegistered) {
            self.bounds.observed.remove(&change.host);
        }
        if change.kind == HostRegistered {
            self.expect_settled(Some(change.host));
        }
        let (Some(id), Some(to)) = (change.sandbox, change.to) else { return };
        self.bounds.unsettled.remove(&id);
        if let Some(left) = change.left.filter(|_| change.is_placed_elsewhere()) {
            self.tally.struck(Fault::PlacedElsewhere);
            self.bounds.elsewhere.insert((left, id));
        }
        if to != SandboxStatus::Starting {
            self.bounds.creates.remove(&id);
        } else if change.from.is_none() {
            let waiting = Waiting { since_ms: now_ms, uncertain: 0 };
            self.bounds.creates.insert(id, waiting);
        }
        let over = matches!(to, SandboxStatus::Stopping | SandboxStatus::Stopped);
        if change.by_user && over && change.reason == Reason::Requested {
            self.bounds.destroyed.insert(id);
        }
        if change.by_user && change.reason == Reason::Adopted {
            self.bounds.destroyed.remove(&id);
        }
        if !over && self.bounds.destroyed.contains(&id) {
            self.wrong(format!("{id} was destroyed by a user and is {to} ({})", change.reason));
        }
    }

    /// A backup took the place of the database: what users wanted since is lost.
    pub(crate) fn bound_restore(&mut self) {
        let Some(history) = &self.history else { return };
        let is_destroyed = |row: &Row| {
            let by_user = row.reason.as_ref().is_some_and(Reason::is_users_destroy);
            row.status == SandboxStatus::Stopping || row.status == SandboxStatus::Stopped && by_user
        };
        let destroyed = history.rows.iter().filter(|(_, row)| is_destroyed(row));
        self.bounds.destroyed = destroyed.map(|(id, _)| *id).collect();
    }

    /// The plane starts: it knows nothing of what went before.
    pub(crate) fn bound_start(&mut self) {
        self.bounds.probed_ms.clear();
        self.bounds.observed.clear();
        self.bounds.creates.clear();
        self.bounds.unsettled.clear();
        self.expect_settled(None);
    }

    /// What is under way is settled soon from now on: on one host, or on all.
    fn expect_settled(&mut self, host: Option<HostId>) {
        let now_ms = self.now_ms();
        let Some(history) = &self.history else { return };
        // What has no operation, since a restore, is settled when its grace is over.
        let owned: BTreeSet<SandboxId> =
            history.open_operations().into_iter().map(|(_, id)| id).collect();
        for (id, row) in history.rows.iter().filter(|(id, _)| owned.contains(id)) {
            let under_way = matches!(
                row.status,
                SandboxStatus::Starting | SandboxStatus::Pausing | SandboxStatus::Resuming
            );
            if under_way && host.is_none_or(|host| host == row.host) {
                self.bounds.unsettled.insert(*id, (row.host, now_ms));
            }
        }
    }

    /// For how long the plane could do all that it wanted.
    fn steady_ms(&self) -> u64 {
        let works = |plane: &Plane| !plane.stopping && !plane.held;
        if self.locker.is_some() || !self.plane.as_ref().is_some_and(works) {
            return 0;
        }
        let since = self.listening_ms.max(self.disk_failed_ms).max(self.stalled_until);
        self.now_ms().saturating_sub(since)
    }

    /// What must be known by now.
    pub(crate) fn judge_bounds(&mut self) {
        let (now_ms, steady_ms) = (self.now_ms(), self.steady_ms());
        let Some(history) = &self.history else { return };
        let mut wrong = Vec::new();
        if steady_ms > SETTLED_WITHIN_MS {
            let until = self.now().wall.before(std::time::Duration::from_millis(SETTLED_WITHIN_MS));
            for id in history.starting_on_unreachable(until) {
                wrong.push(format!("{id} is starting on an unreachable host, and nothing waits"));
            }
        }
        if steady_ms > KNOWN_WITHIN_MS {
            let is_up = |h: &Host| h.liveness == Liveness::Alive && h.intent != Intent::Offline;
            for (id, (host, since_ms)) in &self.bounds.unsettled {
                let lists = self.bounds.observed.get(host).copied().unwrap_or(0);
                let up = history.hosts.get(host).is_some_and(is_up);
                let long = now_ms - since_ms > KNOWN_WITHIN_MS;
                if up && long && lists >= OBSERVATIONS_ENOUGH {
                    wrong.push(format!("{id} was under way at {since_ms} ms, and still is"));
                }
            }
            for (id, create) in &self.bounds.creates {
                let waited_ms = now_ms - create.since_ms;
                if create.uncertain == 0 && waited_ms > KNOWN_WITHIN_MS {
                    wrong.push(format!("no agent took the create of {id} for {waited_ms} ms"));
                }
            }
        }
        wrong.into_iter().for_each(|what| self.wrong(what));
    }
}
