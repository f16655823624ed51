//! Owns what must hold: every change that Roost makes is held against what is true at that
//! moment, and at the end everything must agree.
//!
//! Never: repairs or forgives anything.

use crate::agent::Truth;
use crate::history::Change;
use crate::leaving::Standing;
use crate::world::{Machine, PROBE_TIMEOUT_MS, Verdict, World};
use roost::model::event::EventKind;
use roost::model::host::{Host, Liveness};
use roost::model::id::{HostId, SandboxId};
use roost::model::policy::{MASS_VANISH_MIN, ZombiePolicy};
use roost::model::sandbox::{Reason, SandboxStatus};

/// Three missed beats.
const UNREACHABLE_AFTER_MS: u64 = 90_000;

/// The longest that a verdict may take: three missed beats, the mass guard, another grace.
const JUDGED_WITHIN_MS: u64 = 90_000 + 300_000 + 180_000 + 30_000;

/// Longest deadline of a create.
const CREATE_DEADLINE_MS: u64 = 120_000;

/// Longest time from when a list was made to when it is applied, but for a disk that fails.
const ANSWER_AGE_MAX_MS: u64 = 2 * PROBE_TIMEOUT_MS;

/// Reasons that only a look at the host gives, or its silence.
fn is_seen(reason: &Reason) -> bool {
    [
        Reason::ListedRunning,
        Reason::ListedPaused,
        Reason::AutoPaused,
        Reason::Restored,
        Reason::Adopted,
        Reason::Vanished,
        Reason::PresumedPaused,
        Reason::NotStarted,
        Reason::NotResumed,
        Reason::PauseFinished,
        Reason::DestroyFinished,
        Reason::HostUnreachable,
    ]
    .contains(reason)
}

impl World {
    pub(crate) fn judge(&mut self, change: &Change) {
        if change.kind == EventKind::HostRegistered {
            self.supersede(change.host, change.revision);
        }
        self.bound_change(change);
        let (host, kind) = (self.machine_of(change.host), change.kind);
        let Change { revision, reason, .. } = change;
        let Some(id) = change.sandbox else {
            self.note(|| format!("r{revision} host {host}: {kind} ({reason})"));
            if kind == EventKind::HostDown {
                self.judge_down(host);
            }
            return self.judge_standing(host, kind);
        };
        let truth = self.machines[host].agent.truth(id);
        let from = change.from.map_or("none", SandboxStatus::as_str);
        self.note(|| {
            format!("r{revision} {id} on {host}: {from} -> {kind} ({reason}), is {truth:?}")
        });
        if kind == EventKind::SandboxZombie {
            self.zombies.insert(id);
        }
        // An answer that is older than the row it judges.
        let told_paused = *reason == Reason::ListedPaused || *reason == Reason::AutoPaused;
        let ran = change.from == Some(SandboxStatus::Running);
        // A report of an earlier pause, and an agent that does not list what it has.
        let misled = self.machines[host].stale.contains(&id) && self.was_blind(host);
        if ran && told_paused && truth == Truth::Running && !misled {
            self.wrong(format!("{id} was marked paused ({reason}) and runs"));
        }
        if let (Some(from), Some(to)) = (change.from, change.to) {
            self.judge_move(change, id, (from, to), truth);
        }
    }

    fn judge_standing(&mut self, host: usize, kind: EventKind) {
        let now_ms = self.now_ms();
        let machine = &mut self.machines[host];
        if kind == EventKind::HostRegistered {
            machine.standing.since_ms = now_ms;
            machine.heard_ms = Some(machine.standing.asked_ms);
        }
        if kind == EventKind::HostIntent {
            // Whoever asked for it has not heard yet what it is now.
            (machine.standing.since_ms, machine.standing.aside) = (now_ms, false);
        }
        if kind == EventKind::HostDeleted {
            self.judge_emptiness(host);
            self.judge_deletion(host);
        }
    }

    /// A host that goes without force has nothing that its agent could have listed.
    fn judge_emptiness(&mut self, host: usize) {
        let Machine { id, agent, late, .. } = &self.machines[host];
        let runs = |(id, truth): (SandboxId, Truth)| {
            (truth == Truth::Running && !late.contains(&id)).then_some(id)
        };
        let running: Vec<SandboxId> = agent.all().filter_map(runs).collect();
        if !self.forced.contains(id) && !running.is_empty() && !agent.blind {
            self.wrong(format!("{id} was deleted without force and has {running:?}"));
        }
    }

    /// What is over must be over in truth.
    fn judge_move(
        &mut self,
        change: &Change,
        id: SandboxId,
        (from, to): (SandboxStatus, SandboxStatus),
        truth: Truth,
    ) {
        let reason = &change.reason;
        let host = self.machine_of(change.host);
        let Standing { aside, .. } = self.machines[host].standing;
        let forced = self.forced.contains(&change.host);
        // Nothing runs on a host that was unreachable before it was set aside (rule 4).
        let is_down = *reason == Reason::HostUnreachable && self.is_unreachable(change.host);
        if aside && is_seen(reason) && !is_down && !change.by_user {
            self.wrong(format!("{id} went to {to} ({reason}) on a host that is set aside"));
        }
        let with_host = *reason == Reason::HostDeleted;
        if with_host && !forced && !from.is_over() {
            self.wrong(format!("{id} was {from} when its host was deleted, and nobody said so"));
        }
        let over = to == SandboxStatus::Stopped || to == SandboxStatus::Error;
        if over && truth != Truth::Nothing && !with_host && self.excuse(change, id, truth).is_none()
        {
            self.wrong(format!("{id} went from {from} to {to} ({reason}) and is {truth:?}"));
        }
    }

    /// Whether an agent has lost sight of its microVMs, or had when it made the list that is
    /// applied now.
    fn was_blind(&self, host: usize) -> bool {
        let Machine { agent, found_ms, .. } = &self.machines[host];
        agent.blind || *found_ms > 0 && self.now_ms() - found_ms < ANSWER_AGE_MAX_MS
    }

    fn is_unreachable(&self, host: HostId) -> bool {
        let host = self.history.as_ref().and_then(|history| history.hosts.get(&host));
        host.is_some_and(|host| host.liveness == Liveness::Unreachable)
    }

    /// Why something may be over in the database that is not over in truth, if there is a
    /// reason that Roost cannot know of.
    fn excuse(&self, change: &Change, id: SandboxId, truth: Truth) -> Option<&'static str> {
        let host = self.machine_of(change.host);
        let machine = &self.machines[host];
        let agent = &machine.agent;
        let (from, to) = (change.from?, change.to?);
        let refused = from == SandboxStatus::Pausing && change.reason == Reason::OperationFailed;
        let vanished = change.reason == Reason::Vanished;
        let asked_again = machine.creates_asked.get(&id).is_some_and(|(_, times)| *times > 1);
        let was_blind = self.was_blind(host);
        match (&change.reason, truth) {
            // The agent is asked to destroy it from then on; at the end it must have done so.
            (Reason::Requested, _) if from.is_over() => Some("a user ends what was over already"),
            (Reason::OperationFailed, _) if machine.half_declined.contains(&id) => {
                Some("its agent declined to make it, and made it all the same")
            }
            (_, Truth::Failed) if to == SandboxStatus::Error => Some("it failed by itself"),
            (Reason::NotStarted, _) if from == SandboxStatus::Starting => {
                Some("a create that outlives its deadline is reported as a zombie")
            }
            (Reason::Reported, Truth::Making) if asked_again && from == SandboxStatus::Starting => {
                Some("the failure of an earlier call is reported, and the next one goes on")
            }
            (_, Truth::Making) if from == SandboxStatus::Stopping => {
                Some("destroyed while its create goes on; the deadline of that create bounds it")
            }
            (_, Truth::Paused)
                if from == SandboxStatus::Stopping && agent.disowned.contains(&id) =>
            {
                Some("the agent said that it has none, and had not read its disk")
            }
            (Reason::SnapshotGone, Truth::Paused) if agent.denials(id) >= 2 => {
                Some("the agent said twice that it has no snapshot; it can be resumed all the same")
            }
            // Nothing tells what an agent forgot to announce from microVMs that died with it.
            // What we refused to hear does: that is a contact gap.
            (_, Truth::Paused) if vanished || refused => {
                let unheard = agent.has_not_told(id) && !machine.refused.contains(&id);
                unheard.then_some("it paused by itself, and no notice of that reached Roost")
            }
            (_, Truth::Running) if vanished && self.few_vanish(host) || refused && was_blind => {
                Some("its agent has lost sight of it, and it comes back when it is listed")
            }
            _ => None,
        }
    }

    /// Whether an agent that has lost sight of its microVMs has so few of them that no hold
    /// applies; they are taken back when it finds them.
    fn few_vanish(&self, host: usize) -> bool {
        let Some(history) = &self.history else { return false };
        let Machine { id: host, agent, .. } = &self.machines[host];
        let vanished = history.rows.iter().filter(|(id, row)| {
            row.host == *host
                && row.reason == Some(Reason::Vanished)
                && agent.truth(**id) == Truth::Running
        });
        agent.blind && vanished.count() < MASS_VANISH_MIN
    }

    /// A verdict on a host waits to be written: what counts is what is known now.
    pub(crate) fn note_verdict(&mut self, host: usize) {
        let now_ms = self.now_ms();
        let silent_ms = self.machines[host].heard_ms.map_or(u64::MAX, |heard| now_ms - heard);
        let listened_ms = now_ms - self.listening_ms;
        self.machines[host].verdict = Some(Verdict { at_ms: now_ms, silent_ms, listened_ms });
    }

    /// Nobody whose heartbeats arrive may be down.
    fn judge_down(&mut self, host: usize) {
        let Some(verdict) = self.machines[host].verdict.take() else {
            return self.wrong(format!("host {host} is down, and nobody said so"));
        };
        let Verdict { at_ms, silent_ms, listened_ms } = verdict;
        if self.machines[host].heard_ms.is_some_and(|heard| heard > at_ms) {
            self.wrong(format!("host {host} is down and was heard after the verdict"));
        }
        if self.machines[host].standing.aside {
            self.wrong(format!("host {host} is set aside and judged"));
        }
        if silent_ms <= UNREACHABLE_AFTER_MS || listened_ms < UNREACHABLE_AFTER_MS {
            self.wrong(format!(
                "host {host} is down, was heard {silent_ms} ms ago, listened for {listened_ms} ms"
            ));
        }
    }

    /// A heartbeat arrived: whoever was heard before must be up by now.
    pub(crate) fn judge_beat(&mut self, host: usize) {
        let now_ms = self.now_ms();
        let calm_since = self.listening_ms.max(self.disk_failed_ms);
        let calm_since = calm_since.max(self.machines[host].standing.since_ms);
        let Some(history) = &self.history else { return };
        let is_down = |h: &Host| h.is_active() && h.liveness == Liveness::Unreachable;
        let down = |id| history.hosts.get(&id).is_some_and(is_down);
        let heard = self.machines[host].heard_ms.is_some_and(|heard| {
            // The beat before this one was heard too.
            heard > calm_since && (1_000..60_000).contains(&(now_ms - heard))
        });
        if heard && !self.writes_wait() && down(self.machines[host].id) {
            self.wrong(format!("host {host} beats and is down"));
        }
    }

    /// Whoever is silent for long must be down.
    pub(crate) fn judge_silence(&mut self) {
        let now_ms = self.now_ms();
        let calm_since = self.listening_ms.max(self.disk_failed_ms);
        let steady_ms = if self.writes_wait() { 0 } else { now_ms - calm_since };
        let judges = self.plane.as_ref().is_some_and(|plane| !plane.held);
        let runs = judges && steady_ms > JUDGED_WITHIN_MS;
        let Some(history) = self.history.as_ref().filter(|_| runs) else {
            return;
        };
        let mut wrong = Vec::new();
        let is_current = |(at, m): &(usize, &Machine)| self.machine_of(m.id) == *at;
        for (at, machine) in self.machines.iter().enumerate().filter(is_current) {
            let is_up = |h: &Host| h.is_active() && h.liveness == Liveness::Alive;
            let up = history.hosts.get(&machine.id).is_some_and(is_up);
            let since = calm_since.max(machine.standing.since_ms);
            let silent_ms = now_ms - machine.heard_ms.unwrap_or(0).max(since);
            if up && silent_ms > JUDGED_WITHIN_MS {
                wrong.push(format!("host {at} is silent for {silent_ms} ms and up"));
            }
        }
        wrong.into_iter().for_each(|what| self.wrong(what));
    }

    /// A sandbox is in one place. An agent has it once; Roost must not give it to two.
    pub(crate) fn judge_place(&mut self, id: SandboxId) {
        // A machine that another one took the place of is no host any more; what a host has
        // declined and makes all the same is destroyed there, or listed and reported.
        let has = |machine: &&Machine| {
            let declined = machine.half_declined.contains(&id);
            machine.agent.truth(id) != Truth::Nothing && !machine.standing.superseded && !declined
        };
        let there = self.machines.iter().filter(has).count();
        if there > 1 {
            self.wrong(format!("{there} hosts have {id}"));
        }
    }

    /// A call came true: what was destroyed before must not have come to life.
    /// A call whose connection has ended, and which its agent finished all the same, may come
    /// true at any time: it is reported then.
    pub(crate) fn judge_truth(&mut self, host: usize, id: SandboxId, number: u64) {
        let truth = self.machines[host].agent.truth(id);
        let row = self.history.as_ref().and_then(|history| history.rows.get(&id));
        let stopped = row.is_some_and(|row| row.status == SandboxStatus::Stopped);
        let (asked, _) = self.machines[host].creates_asked.get(&id).copied().unwrap_or_default();
        let orphaned = !self.in_flight.contains_key(&number);
        let in_time = self.now_ms() - asked <= CREATE_DEADLINE_MS && !orphaned;
        if truth == Truth::Running && stopped && !in_time {
            self.machines[host].late.insert(id);
        }
        if truth == Truth::Running && stopped && in_time && !self.clock_moved {
            self.wrong(format!("{id} was destroyed and came to life"));
        }
    }

    /// Users have had time to resume all that is paused.
    pub(crate) fn judge_resumed(&mut self) {
        if !self.resuming.is_empty() && self.violations.is_empty() {
            self.wrong("users are not done with what is paused".to_owned());
        }
    }

    /// Faults ended long ago: rows and truth must agree.
    pub(crate) fn judge_end(&mut self) {
        let mut wrong = Vec::new();
        let Some(history) = &mut self.history else {
            return self.wrong("the control plane does not run at the end".to_owned());
        };
        history.verify(self.clock_moved, &mut wrong);
        history.look_at_hosts();
        let history = &*history;
        for (id, row) in &history.rows {
            let is_host = |m: &&Machine| m.id == row.host && !m.standing.superseded;
            let machine = self.machines.iter().find(is_host);
            let truth = machine.map_or(Truth::Nothing, |machine| machine.agent.truth(*id));
            let zombie = self.policy.zombies == ZombiePolicy::Report && self.zombies.contains(id);
            let by_user = row.reason.as_ref().is_some_and(Reason::is_users_destroy);
            let forgotten = machine.is_some_and(|machine| {
                let agent = &machine.agent;
                let unheard = agent.has_not_told(*id) && !by_user;
                unheard || agent.disowned.contains(id) || machine.late.contains(id)
            });
            // What the database says of it was true at the time of a backup.
            let rewound = self.restores.rewound.contains(id);
            let stale = row.reason == Some(Reason::AutoPaused)
                && machine.is_some_and(|machine| machine.stale.contains(id));
            let gone = row.reason == Some(Reason::SnapshotGone);
            let presumed = row.reason == Some(Reason::PresumedPaused)
                || row.reason == Some(Reason::PauseFinished)
                || row.reason == Some(Reason::NotResumed)
                || row.reason == Some(Reason::OperationFailed);
            let fits = match (row.status, truth) {
                (SandboxStatus::Running, Truth::Running) => true,
                (SandboxStatus::Paused, Truth::Paused) => true,
                // The first resume finds out.
                (SandboxStatus::Paused, Truth::Nothing) => {
                    presumed || stale || self.left_behind.contains(id) || rewound
                }
                (SandboxStatus::Stopped | SandboxStatus::Error, Truth::Nothing) => true,
                (SandboxStatus::Stopped | SandboxStatus::Error, Truth::Paused) if forgotten => true,
                (SandboxStatus::Error, Truth::Failed) => true,
                (SandboxStatus::Stopped | SandboxStatus::Error, Truth::Paused) if rewound => true,
                // It can be resumed all the same.
                (SandboxStatus::Stopped, Truth::Paused) if gone => true,
                // It was made after all, unseen, and has paused since: nobody lists it.
                (SandboxStatus::Error, Truth::Paused) => row.reason == Some(Reason::NotStarted),
                (SandboxStatus::Stopped | SandboxStatus::Error, _) => zombie,
                _ => false,
            };
            if !fits {
                let reason = row.reason.as_ref().map_or("", Reason::as_str);
                wrong.push(format!("{id} is {} ({reason}) and in truth {truth:?}", row.status));
            }
        }
        for host in history.hosts.values().filter(|host| host.registered_at.is_some()) {
            if host.liveness != Liveness::Alive || host.rejoining || host.degraded {
                wrong.push(format!("{} is not in order: {host:?}", host.id));
            }
        }
        for (kind, id) in history.open_operations() {
            wrong.push(format!("the {kind} of {id} does not end"));
        }
        let rows = &history.rows;
        let current = |(_, m): &(usize, &Machine)| !m.standing.superseded;
        for (at, machine) in self.machines.iter().enumerate().filter(current) {
            let is_here = |id: &SandboxId| rows.get(id).is_some_and(|row| row.host == machine.id);
            let known = |id: &SandboxId| is_here(id) || history.given_up.contains(id);
            // What a restore has forgotten and no agent lists, an operator cannot see.
            let unseen = |id: &SandboxId, truth: Truth| {
                let forgotten = self.restores.forgotten.contains(id);
                let misplaced = machine.half_declined.contains(id);
                (forgotten || misplaced) && truth == Truth::Paused
            };
            let strangers =
                machine.agent.all().filter(|(id, truth)| !known(id) && !unseen(id, *truth));
            wrong.extend(strangers.map(|(id, truth)| format!("{id} on host {at} is {truth:?}")));
            if machine.standing.deleted && !machine.standing.ended {
                wrong.push(format!("host {at} was deleted, and nobody told its agent"));
            }
        }
        wrong.into_iter().for_each(|what| self.wrong(what));
    }
}
