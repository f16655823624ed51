//! Owns the scheduler thread: lets time and messages into the monitor and carries out
//! what it wants.
//!
//! Never: waits for a probe or a commit. Its mailbox is unbounded so that the writer
//! never waits for it; what can be in it is bounded by hosts and probes in flight.

use super::calls::OpMail;
use super::monitor::{Effect, Input, Monitor};
use super::operations;
use super::pool::Pool;
use super::probes::{Answered, Job};
use crate::api::Pulse;
use crate::clock::{Clock, Reading};
use crate::http::Hearing;
use crate::model::sandbox::StrangerKind;
use crate::model::time::Now;
use crate::plan::observation::Stranger;
use crate::store::StoreError;
use crate::store::apply::{Applied, Probed};
use crate::store::presence::{Found, Presence};
use crate::store::writer::{Command, WriterHandle};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What can wake the scheduler.
pub(super) enum Mail {
    /// Something happened to a host, a probe or a write.
    Input(Box<Input>),
    /// Somebody asks whether the scheduler goes on.
    Echo(Sender<()>),
    /// No more probes are started; the thread ends.
    Stop,
}

impl Mail {
    pub(super) fn input(input: Input) -> Mail {
        Mail::Input(Box::new(input))
    }
}

pub(super) struct Scheduler {
    pub(super) monitor: Monitor,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) writer: WriterHandle,
    pub(super) probes: Pool<Job>,
    pub(super) operations: Sender<OpMail>,
    /// Whether agents can be heard.
    pub(super) hearing: Hearing,
    pub(super) mail: Receiver<Mail>,
    pub(super) post: Sender<Mail>,
    pub(super) pulse: Arc<Pulse>,
    /// Rings when the mass guard begins or ends to hold.
    pub(super) bell: Sender<()>,
}

impl Scheduler {
    /// Runs until [`Mail::Stop`]; then waits, bounded, for probes in flight: what they
    /// bring is not asked for again.
    pub(super) fn run(mut self, patience: Duration) -> bool {
        loop {
            let reading = Reading::of(&*self.clock);
            let now = reading.now;
            self.monitor.tick(reading);
            self.monitor.could_not_hear(now.mono, self.hearing.take_deaf());
            for effect in self.monitor.effects(now) {
                self.carry_out(effect, now);
            }
            self.show(now);
            let wait = self.monitor.next_wake().since(self.clock.now().mono);
            match self.mail.recv_timeout(wait) {
                Ok(Mail::Input(input)) => self.take_in(*input),
                Ok(Mail::Echo(answer)) => drop(answer.send(())),
                Ok(Mail::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            for mail in self.mail.clone().try_iter() {
                match mail {
                    Mail::Input(input) => self.take_in(*input),
                    Mail::Echo(answer) => drop(answer.send(())),
                    Mail::Stop => return self.finish(patience),
                }
            }
        }
        self.finish(patience)
    }

    fn take_in(&mut self, input: Input) {
        self.monitor.handle(self.clock.now().mono, input);
    }

    /// True when nothing was left in flight.
    fn finish(self, patience: Duration) -> bool {
        let drained = self.probes.drain(patience);
        if !drained {
            log::warn!("{} probes are still in flight; leaving them", self.probes.open());
        }
        drained
    }

    fn show(&self, now: Now) {
        let holding = self.monitor.holding_since().map_or(0, |since| since.0.max(1));
        self.pulse.last_round_ms.store(now.mono.0, Ordering::Relaxed);
        self.pulse.interval_ms.store(self.monitor.interval_ms(), Ordering::Relaxed);
        self.pulse.holding_since_ms.store(holding, Ordering::Relaxed);
        let held = self.monitor.held().map_or(Pulse::NOT_JUDGED, |held| held as u64);
        if self.pulse.held.swap(held, Ordering::Relaxed) != held {
            // A full bell rings already.
            let _ = self.bell.try_send(());
        }
        self.pulse.in_flight.store(self.monitor.in_flight() as u64, Ordering::Relaxed);
        self.pulse.slow_in_flight.store(self.monitor.slow_in_flight() as u64, Ordering::Relaxed);
    }

    fn carry_out(&self, effect: Effect, now: Now) {
        let post = self.post.clone();
        // The scheduler may have ended; what was written is written all the same.
        let tell = move |input| drop(post.send(Mail::input(input)));
        match effect {
            Effect::Probe(host, address) => self.probes.submit(Job { host, address }),
            Effect::Work(work) => {
                drop(self.operations.send(OpMail::input(operations::Input::Work(work))));
            }
            Effect::MarkDown(hosts) => {
                let reply = Box::new(move |result| tell(Input::MarkedDown(result)));
                self.writer.send(now, Command::MarkDown(hosts, reply));
            }
            Effect::MarkUp(host) => {
                let reply = Box::new(move |result| tell(Input::MarkedUp(host, result)));
                self.writer.send(now, Command::MarkUp(host, reply));
            }
            Effect::Flush => {
                let pulse = Arc::clone(&self.pulse);
                let reply = Box::new(move |result: Result<(), StoreError>| {
                    pulse.flushes.count(usize::from(result.is_err()));
                    if result.is_ok() {
                        pulse.last_flush_ms.store(now.mono.0, Ordering::Relaxed);
                    }
                    tell(Input::Flushed(result));
                });
                self.writer.send(now, Command::Flush(reply));
            }
            Effect::Prune => {
                let reply = Box::new(move |result| tell(Input::Pruned(result)));
                self.writer.send(now, Command::Prune(reply));
            }
        }
    }
}

/// Hands every answer to the writer, and what came of it to the scheduler.
pub(super) fn deliver(
    writer: WriterHandle,
    presence: Arc<Presence>,
    pulse: Arc<Pulse>,
    post: Sender<Mail>,
) -> Box<dyn Fn(Answered) + Send + Sync> {
    Box::new(move |answered: Answered| {
        let mut summary = answered.summary();
        let Answered { host, revision, asked_at, now, took, probe, proven } = answered;
        // Strict policy looks at no age.
        let age_cap = Some(presence.listening(now.mono));
        let probed = Probed { host, revision, asked_at, age_cap, probe, proven };
        let (post, noted, pulse) = (post.clone(), Arc::clone(&presence), Arc::clone(&pulse));
        let reply = Box::new(move |result: Result<Applied, StoreError>| {
            // The rows tell of a wrong host; by now what was found has been applied.
            if let Ok(Applied { failure: Some(failure), .. }) = &result {
                summary.outcome = Err(failure.clone());
            }
            match &summary.outcome {
                Ok(_) => pulse.probes_listed.count(),
                Err(failure) => pulse.probes_failed.count(failure.kind as usize),
            }
            pulse.probes_took.note(took);
            if let Ok(applied) = result.as_ref()
                && applied.observed
            {
                let misplaced = |s: &&Stranger| s.kind == StrangerKind::Misplaced;
                let misplaced = applied.strangers.iter().filter(misplaced).count();
                let zombies = applied.strangers.len() - misplaced;
                let held = applied.held.len();
                noted.note_found(host, Found { zombies, misplaced, held });
            }
            noted.note_probe(host, summary);
            drop(post.send(Mail::input(Input::Ended { host, took, result })));
        });
        writer.send(now, Command::Probed(Box::new(probed), reply));
    })
}
