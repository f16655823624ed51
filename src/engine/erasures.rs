//! Owns the thread that has hosts delete the templates that users deleted.
//!
//! Never: decides which those are (the database says so, also after a restart), gives one up
//! before its host has deleted it, waits for a call. A host that takes long delays itself
//! only.

use super::pool::Pool;
use crate::agent::client::{AgentClient, CallError};
use crate::agent::wire::ConnectCode;
use crate::clock::Clock;
use crate::logging::seldom;
use crate::model::host::{AgentAddress, Liveness};
use crate::model::id::HostId;
use crate::model::time::Mono;
use crate::store::acceptance::Acceptance;
use crate::store::presence::Presence;
use crate::store::read::Readers;
use crate::store::templates::{self, Erasure};
use crate::store::writer::{Command, WriterHandle};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// How long a host may take to delete one. Larger: a host that hangs occupies its thread for
/// longer; smaller: a slow disk is asked again while it deletes.
const DEADLINE: Duration = Duration::from_secs(60);

/// Calls at a time, over all hosts, one for each. Larger: many hosts that hang take as many
/// threads; smaller: they delay the others.
const CALLS_MAX: usize = 8;

/// First delay before a host is asked again; doubles.
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// Longest delay. Larger: disks stay full for longer once a host can delete again; smaller:
/// one that cannot is asked for nothing.
const RETRY_MAX: Duration = Duration::from_secs(300);

/// Time between two looks at the database without news. Larger: a snapshot that failed
/// occupies its host's disk for longer; smaller: an idle server reads for nothing.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// The same while something waits for its last sandbox or for its host: nothing else says
/// when they end or come back.
const LOOK_WHILE_WAITING: Duration = Duration::from_secs(5);

/// What can wake the thread.
pub(super) enum EraseMail {
    /// There may be more to delete.
    Look,
    /// A call ended; whether the host has it no more.
    Called(Erasure, bool),
    /// No more calls; the thread ends.
    Stop,
}

/// One call to make.
pub(super) struct Job {
    erasure: Erasure,
    address: AgentAddress,
}

/// The thread.
pub(super) struct Eraser {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) readers: Readers,
    pub(super) writer: WriterHandle,
    pub(super) presence: Arc<Presence>,
    pub(super) acceptance: Arc<Acceptance>,
    pub(super) pool: Pool<Job>,
    pub(super) mail: Receiver<EraseMail>,
}

/// A pool that calls agents and posts what came of it.
pub(super) fn pool(agent: AgentClient, post: Sender<EraseMail>) -> Pool<Job> {
    let run = move |Job { erasure, address }: Job| {
        let Erasure { host, template, team } = erasure;
        let called = agent.delete_snapshot(host, &address, (team, template), DEADLINE);
        if let Err(error) = &called {
            seldom!(Info, "templates that were not deleted", host =>
                "could not delete {template} on {host} ({address}): {error}; trying again");
        }
        drop(post.send(EraseMail::Called(erasure, is_gone(&called))));
    };
    Pool::new("erasure", CALLS_MAX, Box::new(run))
}

/// A host that never had it, or deleted it before its answer was lost, has it no more.
fn is_gone(called: &Result<(), CallError>) -> bool {
    match called {
        Ok(()) | Err(CallError::Refused { code: ConnectCode::NotFound, message: _ }) => true,
        Err(
            CallError::Refused { .. }
            | CallError::NotReached { .. }
            | CallError::Unknown { .. }
            | CallError::Malformed { .. },
        ) => false,
    }
}

impl Eraser {
    /// Runs until [`EraseMail::Stop`]. Calls in flight are not waited for: a host that was
    /// cut off is asked again by the next start.
    pub(super) fn run(self) {
        let mut backlog = Backlog::default();
        loop {
            let now = self.clock.now().mono;
            let (pending, waiting) = self.pending();
            for (erasure, address) in backlog.due(now, &pending, |host| self.reach(host)) {
                self.pool.submit(Job { erasure, address });
            }
            let look = if waiting { LOOK_WHILE_WAITING } else { LOOK_EVERY };
            let wait = backlog.next_due(now).map_or(look, |due| due.min(look));
            match self.mail.recv_timeout(wait) {
                Ok(EraseMail::Look) | Err(RecvTimeoutError::Timeout) => {}
                Ok(EraseMail::Called(erasure, gone)) => {
                    let gone = gone && self.record(erasure);
                    backlog.called(self.clock.now().mono, erasure, gone);
                }
                Ok(EraseMail::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// What there is to delete now, and whether anything waits; nothing while a restored
    /// database is not accepted.
    fn pending(&self) -> (Vec<Erasure>, bool) {
        if self.acceptance.awaited().is_some() {
            return (Vec::new(), false);
        }
        let read = self.readers.get().and_then(|reader| {
            let pending = templates::erasures(&reader)?;
            let all = templates::to_delete(&reader)?;
            let is_away = |erasure: &Erasure| self.reach(erasure.host).is_none();
            let waiting = all > pending.len() as u64 || pending.iter().any(is_away);
            Ok((pending, waiting))
        });
        read.unwrap_or_else(|error| {
            seldom!(Error, "failures of the database", "the database" =>
                "could not read which templates to delete: {error}");
            (Vec::new(), false)
        })
    }

    /// Where a host is asked; `None` while it cannot be.
    fn reach(&self, host: HostId) -> Option<AgentAddress> {
        let host = self.presence.get(host)?;
        host.address.filter(|_| host.active && host.liveness == Liveness::Alive)
    }

    /// Writes that a host has it no more; false when that has to be tried again.
    fn record(&self, erasure: Erasure) -> bool {
        let written = self.writer.call(self.clock.now(), |reply| Command::Erased(erasure, reply));
        if let Err(error) = &written {
            seldom!(Error, "failures of the database", "the database" =>
                "could not record that {} is deleted: {error}", erasure.template);
        }
        written.is_ok()
    }
}

/// Whom to ask when.
#[derive(Debug, Default)]
struct Backlog {
    /// Hosts with a call in flight.
    calling: HashSet<HostId>,
    /// What failed: how often, and when it is due again.
    failed: HashMap<Erasure, (u32, Mono)>,
}

impl Backlog {
    /// What is to be asked now, one for each host that can be reached.
    fn due(
        &mut self,
        now: Mono,
        pending: &[Erasure],
        reach: impl Fn(HostId) -> Option<AgentAddress>,
    ) -> Vec<(Erasure, AgentAddress)> {
        let still: HashSet<&Erasure> = pending.iter().collect();
        self.failed.retain(|erasure, _| still.contains(erasure));
        let mut due = Vec::new();
        for erasure in pending {
            let waits = self.failed.get(erasure).is_some_and(|(_, at)| *at > now);
            if waits || self.calling.len() >= CALLS_MAX || self.calling.contains(&erasure.host) {
                continue;
            }
            if let Some(address) = reach(erasure.host) {
                self.calling.insert(erasure.host);
                due.push((*erasure, address));
            }
        }
        due
    }

    fn called(&mut self, now: Mono, erasure: Erasure, gone: bool) {
        self.calling.remove(&erasure.host);
        if gone {
            self.failed.remove(&erasure);
            return;
        }
        let (times, at) = self.failed.entry(erasure).or_insert((0, now));
        *at = now.after((RETRY_FIRST * 2u32.pow((*times).min(16))).min(RETRY_MAX));
        *times += 1;
    }

    /// Time until something that failed is due again.
    fn next_due(&self, now: Mono) -> Option<Duration> {
        let waits = self.failed.iter().filter(|(erasure, _)| !self.calling.contains(&erasure.host));
        waits.map(|(_, (_, at))| at.since(now)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{PLATFORM_TEAM, TemplateId};

    const BEGIN: Mono = Mono(1_000_000);

    fn erasure(host: u128, template: u128) -> Erasure {
        Erasure {
            host: HostId::from_u128(host),
            template: TemplateId::from_u128(template),
            team: PLATFORM_TEAM,
        }
    }

    fn everywhere(_: HostId) -> Option<AgentAddress> {
        Some("127.0.0.1:1".parse().unwrap())
    }

    fn due(backlog: &mut Backlog, now: Mono, pending: &[Erasure]) -> Vec<Erasure> {
        backlog.due(now, pending, everywhere).into_iter().map(|(erasure, _)| erasure).collect()
    }

    #[test]
    fn a_host_is_asked_one_thing_at_a_time() {
        let mut backlog = Backlog::default();
        let pending = [erasure(1, 1), erasure(1, 2), erasure(2, 1)];
        assert_eq!(due(&mut backlog, BEGIN, &pending), [erasure(1, 1), erasure(2, 1)]);
        assert_eq!(due(&mut backlog, BEGIN, &pending), [], "in flight");
        backlog.called(BEGIN, erasure(1, 1), true);
        assert_eq!(due(&mut backlog, BEGIN, &pending[1..]), [erasure(1, 2)]);
    }

    #[test]
    fn what_fails_is_asked_again_later_and_later() {
        let mut backlog = Backlog::default();
        let pending = [erasure(1, 1)];
        let mut now = BEGIN;
        let mut waits = Vec::new();
        for _ in 0..12 {
            assert_eq!(due(&mut backlog, now, &pending), pending);
            assert_eq!(backlog.next_due(now), None, "in flight");
            backlog.called(now, pending[0], false);
            let wait = backlog.next_due(now).unwrap();
            waits.push(wait.as_secs());
            assert_eq!(due(&mut backlog, now.after(wait - Duration::from_millis(1)), &pending), []);
            now = now.after(wait);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
    }

    #[test]
    fn what_is_no_longer_pending_is_forgotten() {
        let mut backlog = Backlog::default();
        due(&mut backlog, BEGIN, &[erasure(1, 1)]);
        backlog.called(BEGIN, erasure(1, 1), false);
        assert_eq!(due(&mut backlog, BEGIN, &[]), []);
        assert_eq!(backlog.next_due(BEGIN), None);
    }

    #[test]
    fn hosts_that_cannot_be_reached_are_passed_over() {
        let mut backlog = Backlog::default();
        let pending = [erasure(1, 1), erasure(2, 1)];
        let second = |host: HostId| everywhere(host).filter(|_| host == HostId::from_u128(2));
        let asked = backlog.due(BEGIN, &pending, second);
        assert_eq!(asked.iter().map(|(erasure, _)| *erasure).collect::<Vec<_>>(), [pending[1]]);
        assert_eq!(due(&mut backlog, BEGIN, &pending), [pending[0]], "back again");
    }

    #[test]
    fn so_many_calls_and_no_more() {
        let mut backlog = Backlog::default();
        let pending: Vec<Erasure> = (0..20).map(|n| erasure(n, 1)).collect();
        assert_eq!(due(&mut backlog, BEGIN, &pending).len(), CALLS_MAX);
        assert_eq!(due(&mut backlog, BEGIN, &pending), []);
        backlog.called(BEGIN, pending[3], true);
        assert_eq!(due(&mut backlog, BEGIN, &pending[8..]).len(), 1);
    }

    #[test]
    fn only_a_clear_answer_counts() {
        let refused = |code| Err(CallError::Refused { code, message: String::new() });
        let detail = || String::from("cut");
        let kind = crate::model::probe::FailureKind::TimedOut;
        assert!(is_gone(&Ok(())));
        assert!(is_gone(&refused(ConnectCode::NotFound)));
        for &code in ConnectCode::ALL.iter().filter(|code| **code != ConnectCode::NotFound) {
            assert!(!is_gone(&refused(code)), "{code}");
        }
        assert!(!is_gone(&Err(CallError::Unknown { kind, detail: detail() })));
        assert!(!is_gone(&Err(CallError::NotReached { kind, detail: detail() })));
        assert!(!is_gone(&Err(CallError::Malformed { detail: detail() })));
    }
}
