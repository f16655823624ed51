//! Owns the way between the control plane and the hosts: what arrives, when, and what is
//! lost on the way.
//!
//! Never: knows what a message means to either side.

use crate::agent::{Arrived, Out, Truth};
use crate::defect::Defect;
use crate::plane::{Told, Want};
use crate::tally::Fault;
use crate::world::{
    Attention, BEGIN, CONNECT_TIMEOUT_MS, Event, MINUTE, Machine, PROBE_TIMEOUT_MS, SECOND, World,
};
use roost::agent::client::CallError;
use roost::agent::wire::ConnectCode;
use roost::model::id::{OpId, SandboxId};
use roost::model::operation::OperationKind;
use roost::model::probe::{Details, FailureKind, Listing, Probe, ProbeFailure};
use roost::model::sandbox::Reason;
use roost::model::time::Wall;
use roost::plan::report::ReportKind;
use roost::store::journal::Actor;
use roost::store::lifecycle::Wish;
use roost::store::reports::AgentReport;
use roost::store::writer::Command;
use std::time::Duration;

/// A clock that is slower than that shows a notice as older than the sandbox's last start.
const SLOW_CLOCK_MS: i64 = 60_000;

/// How often an agent sends one report.
const REPORT_TRIES: u32 = 3;

/// One try to report something.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    pub(crate) kind: ReportKind,
    pub(crate) sandbox: SandboxId,
    /// The life of the agent that sends it.
    boot: u32,
    tries: u32,
}

impl World {
    pub(crate) fn one_way(&mut self, host: usize) -> u64 {
        let delay_ms = self.machines[host].link.delay_ms;
        self.chance.within(1, delay_ms + 1)
    }

    pub(crate) fn is_lost(&mut self, host: usize) -> bool {
        let lost = self.machines[host].link.lost;
        self.chance.permille(lost)
    }

    /// A host that does not listen refuses at once; one that is cut off says nothing.
    pub(crate) fn unreached_after(&mut self, host: usize) -> Option<u64> {
        let Machine { agent, link, standing, .. } = &self.machines[host];
        let taken = link.taken_by.is_some() || standing.successor.is_some() || standing.moved;
        match (agent.up, link.calls && !taken) {
            (true, true) => None,
            (false, true) => Some(5),
            (_, false) => Some(CONNECT_TIMEOUT_MS),
        }
    }

    pub(crate) fn send(&mut self, want: Want) {
        let life = self.life;
        match want {
            Want::List(number, id) => {
                let host = self.machine_of(id);
                self.bound_probe(id);
                if self.machines[host].standing.aside {
                    self.wrong(format!("{id} is set aside and probed"));
                }
                let fails = |kind, answer_lost| {
                    let failure = ProbeFailure::new(kind, "as the simulation wants it");
                    Probe::Failed(ProbeFailure { answer_lost, ..failure })
                };
                if let Some(other) = self.imposter(host) {
                    self.tally.struck(Fault::ImposterAnswered);
                    let listing = self.machines[other].agent.list();
                    return self.after(20, Event::Answer(life, number, Probe::Listed(listing)));
                }
                if let Some(after_ms) = self.unreached_after(host) {
                    let failed = fails(FailureKind::Unreachable, false);
                    return self.after(after_ms, Event::Answer(life, number, failed));
                }
                self.perhaps_meddle(host);
                let timed_out = fails(FailureKind::TimedOut, true);
                self.after(PROBE_TIMEOUT_MS, Event::Answer(life, number, timed_out));
                let way = self.one_way(host);
                match self.is_lost(host) {
                    true => self.tally.struck(Fault::QuestionLost),
                    false => self.after(way, Event::Listed(host, life, number)),
                }
            }
            Want::Call { number, op, host, sandbox, kind, timeout_s, within } => {
                let id = host;
                let host = self.machine_of(host);
                let unreached = self.unreached_after(host);
                self.bound_call(id, sandbox, kind, unreached.is_none());
                if let Some(after_ms) = unreached {
                    let kind = FailureKind::Unreachable;
                    let error = CallError::NotReached { kind, detail: String::new() };
                    return self.after(after_ms, Event::Result(life, number, Err(error)));
                }
                self.count(host, op, sandbox, kind);
                self.in_flight.insert(number, host);
                let gives_up = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
                self.after(gives_up, Event::GivesUp(life, number));
                let way = self.one_way(host);
                let call = Arrived { number, kind, timeout_s };
                if self.defect == Some(Defect::AskedOfAnother) && kind == OperationKind::Create {
                    let other = (host + 1) % self.machines.len();
                    self.after(way, Event::Called(other, life, sandbox, call));
                }
                let (lost, told) = (self.is_lost(host), self.chance.permille(500));
                if lost {
                    self.tally.struck(Fault::CallLost);
                }
                match (lost, told) {
                    (false, _) => self.after(way, Event::Called(host, life, sandbox, call)),
                    (true, true) => self.after(way, Event::Result(life, number, Err(unknown()))),
                    (true, false) => {}
                }
            }
        }
    }

    /// Who answers at the address of a host that belongs to another one now. With TLS
    /// nobody does, and without it a host that has nothing could not be told apart.
    pub(crate) fn imposter(&mut self, host: usize) -> Option<usize> {
        let Machine { link, standing, .. } = &self.machines[host];
        let other = link.taken_by.or(standing.successor)?;
        let Machine { agent, link, .. } = &self.machines[other];
        let answers = agent.up && link.calls && link.hung_until <= self.now_ms();
        let lists =
            answers && agent.all().any(|(_, truth)| truth == Truth::Running) && !agent.blind;
        (lists && !self.tls).then_some(other)
    }

    pub(crate) fn count(&mut self, host: usize, op: OpId, sandbox: SandboxId, kind: OperationKind) {
        let now_ms = self.now_ms();
        self.note(|| format!("  host {host} is asked to {kind} {sandbox}"));
        let machine = &mut self.machines[host];
        *machine.asked.entry(op).or_default() += 1;
        if kind == OperationKind::Create {
            let asked = machine.creates_asked.entry(sandbox).or_default();
            *asked = (now_ms, asked.1 + 1);
        }
    }

    /// A question arrives; a host that hangs looks at it later.
    pub(crate) fn listed(&mut self, host: usize, life: u64, number: u64) {
        let now_ms = self.now_ms();
        let machine = &mut self.machines[host];
        if machine.link.hung_until > now_ms {
            let at = machine.link.hung_until;
            return self.at(at, Event::Listed(host, life, number));
        }
        if !machine.agent.up {
            return;
        }
        let mut listing = machine.agent.list();
        self.perhaps_misread(host, &mut listing);
        let (listed, told) = (listing.sandboxes.len(), listing.auto_paused.len());
        self.note(|| format!("  host {host} lists {listed}, announces {told}"));
        let deaf = told > 0 && std::mem::take(&mut self.machines[host].link.deaf);
        if deaf || !self.machines[host].link.answers || self.is_lost(host) {
            self.tally.struck(Fault::AnswerLost);
            if told > 0 {
                self.tally.struck(Fault::AnnouncementLost);
            }
            return;
        }
        let slowly = self.machines[host].agent.habits.lists_slowly;
        let slow_ms = if slowly { self.chance.within(0, PROBE_TIMEOUT_MS) } else { 0 };
        let way = self.one_way(host) + slow_ms;
        if way > PROBE_TIMEOUT_MS {
            self.tally.struck(Fault::AnswerLate);
        }
        if self.chance.permille(5) {
            self.tally.struck(Fault::AnswerTwice);
            let again = Probe::Listed(listing.clone());
            self.after(way * 2, Event::Answer(life, number, again));
        }
        self.after(way, Event::Answer(life, number, Probe::Listed(listing)));
    }

    /// What a defect makes of a list.
    fn perhaps_misread(&mut self, host: usize, listing: &mut Listing) {
        let (now, slow) = (self.now(), self.machines[host].skew_ms < -SLOW_CLOCK_MS);
        let Some(history) = &self.history else { return };
        let row = |id: &SandboxId| history.rows.get(id);
        let is_ended = |id: &SandboxId| {
            row(id).is_some_and(|row| {
                let by_user = row.reason.as_ref().is_some_and(Reason::is_users_destroy);
                row.status.is_over() && !by_user
            })
        };
        match self.defect {
            Some(Defect::HostClocksBelieved) if slow => listing.auto_paused.clear(),
            Some(Defect::EndedForGood) => listing.sandboxes.retain(|entry| !is_ended(&entry.id)),
            Some(Defect::StrangersNotRecorded) => {
                listing.sandboxes.retain(|entry| row(&entry.id).is_some());
            }
            Some(Defect::EndedIsDestroyed) => {
                let ended = listing.sandboxes.iter().map(|entry| entry.id).filter(is_ended);
                let Some(plane) = &mut self.plane else { return };
                for sandbox in ended {
                    let (kind, actor) = (OperationKind::Destroy, Actor::SYSTEM);
                    let wish = Box::new(Wish { sandbox, kind, team: None, actor });
                    plane.ask(now, Told::Begun, |reply| Command::Begin(wish, reply));
                }
            }
            _ => {}
        }
    }

    pub(crate) fn called(&mut self, host: usize, life: u64, sandbox: SandboxId, call: Arrived) {
        let now_ms = self.now_ms();
        let now_unix = self.unix_of(host);
        let machine = &mut self.machines[host];
        if machine.link.hung_until > now_ms {
            let at = machine.link.hung_until;
            return self.at(at, Event::Called(host, life, sandbox, call));
        }
        if !machine.agent.up {
            return self.after(1, Event::Result(life, call.number, Err(unknown())));
        }
        if machine.gone.contains(&call.number) && !machine.agent.habits.finishes_orphans {
            return;
        }
        let (blind, draining) = (machine.agent.blind, machine.agent.draining);
        if blind || draining || self.chance.permille(5) {
            self.tally.struck(if draining { Fault::DeclinedAtEnd } else { Fault::Declined });
            let (code, message) = match (blind, draining) {
                (_, true) => (ConnectCode::Unavailable, "shutting down"),
                (true, false) => (ConnectCode::Unavailable, "starting"),
                (false, false) => (ConnectCode::ResourceExhausted, "too many at once"),
            };
            if !blind && !draining && call.kind == OperationKind::Create {
                self.perhaps_begins(host, sandbox, call, now_unix);
            }
            let error = CallError::Refused { code, message: message.to_owned() };
            return self.answer(host, call.number, Err(error));
        }
        let machine = &mut self.machines[host];
        let out = machine.agent.call(sandbox, call, now_unix, &mut self.chance);
        self.judge_place(sandbox);
        if self.stormy && self.chance.permille(10) {
            let (boot, after) = (self.machines[host].agent.boot, self.chance.within(0, 3 * SECOND));
            self.after(after, Event::AgentDies(host, boot));
        }
        self.comes_of(host, out);
    }

    /// An agent that declines a create may have begun it, and go on.
    fn perhaps_begins(&mut self, host: usize, sandbox: SandboxId, call: Arrived, now_unix: i64) {
        if self.stormy && self.chance.permille(600) {
            self.tally.struck(Fault::DeclinedAndBegun);
            let machine = &mut self.machines[host];
            machine.half_declined.insert(sandbox);
            let unheard = Arrived { number: 0, ..call };
            let out = machine.agent.call(sandbox, unheard, now_unix, &mut self.chance);
            self.comes_of(host, out);
        }
    }

    pub(crate) fn answered(&mut self, life: u64, number: u64, probe: Probe) {
        let now = self.now();
        if life == self.life
            && let Some(plane) = &mut self.plane
        {
            let listed = matches!(probe, Probe::Listed(_));
            let host = plane.answered(number, probe, now);
            if let Some(host) = host.filter(|_| listed) {
                self.observed(host);
            }
        }
    }

    pub(crate) fn call_ended(
        &mut self,
        life: u64,
        number: u64,
        result: Result<Option<Details>, CallError>,
    ) {
        let now = self.now();
        if life != self.life {
            return;
        }
        let Some(plane) = &mut self.plane else { return };
        self.in_flight.remove(&number);
        let answer = result.clone();
        let text = result.as_ref().map_or_else(ToString::to_string, |_| "done".to_owned());
        if let Some(work) = plane.called(number, result, now) {
            if work.kind == OperationKind::Create {
                self.bound_result(work.sandbox, &answer);
            }
            self.note(|| format!("  {} of {}: {text}", work.kind, work.sandbox));
        }
    }

    pub(crate) fn comes_of(&mut self, host: usize, out: Vec<Out>) {
        let boot = self.machines[host].agent.boot;
        for out in out {
            match out {
                Out::Later(span_ms, later) => self.after(span_ms, Event::Agent(host, boot, later)),
                Out::Answer(number, result) => self.answer(host, number, result),
                Out::Report(kind, sandbox) => self.send_report(host, kind, sandbox),
            }
        }
    }

    pub(crate) fn answer(
        &mut self,
        host: usize,
        number: u64,
        result: Result<Option<Details>, CallError>,
    ) {
        if !self.machines[host].link.answers || self.is_lost(host) {
            self.tally.struck(Fault::ResultLost);
            if self.chance.permille(500) {
                self.after(5, Event::Result(number >> 32, number, Err(unknown())));
            }
            return;
        }
        let way = self.one_way(host);
        if self.chance.permille(10) {
            self.tally.struck(Fault::ResultTwice);
            self.after(way * 2, Event::Result(number >> 32, number, result.clone()));
        }
        self.after(way, Event::Result(number >> 32, number, result));
    }

    /// Nothing came of a call for as long as it may take: its connection is closed.
    pub(crate) fn gives_up(&mut self, life: u64, number: u64) {
        let Some(host) = self.in_flight.get(&number).copied().filter(|_| life == self.life) else {
            return;
        };
        self.call_ended(life, number, Err(unknown()));
        self.close_call(host, number);
    }

    /// The connection of a call is closed from here. Its agent notices if that gets through.
    pub(crate) fn close_call(&mut self, host: usize, number: u64) {
        match self.machines[host].link.calls {
            true => {
                let way = self.one_way(host);
                self.after(way, Event::HungUp(host, number));
            }
            false => self.tally.struck(Fault::HangUpUnnoticed),
        }
    }

    /// An agent notices that the caller is gone; one that hangs notices later.
    pub(crate) fn hung_up(&mut self, host: usize, number: u64) {
        let (now_ms, now_unix) = (self.now_ms(), self.unix_of(host));
        let machine = &mut self.machines[host];
        if machine.link.hung_until > now_ms {
            let at = machine.link.hung_until;
            return self.at(at, Event::HungUp(host, number));
        }
        // The call itself may be on its way.
        machine.gone.insert(number);
        if !machine.agent.up {
            return;
        }
        let (ended, out) = machine.agent.hang_up(number, now_unix, &mut self.chance);
        if ended {
            self.tally.struck(Fault::CallCancelled);
            self.note(|| format!("  host {host} ends call {number}: its caller is gone"));
        }
        self.comes_of(host, out);
    }

    /// Reports may be late or repeated; one that is not taken is sent three times in all.
    pub(crate) fn send_report(&mut self, host: usize, kind: ReportKind, sandbox: SandboxId) {
        if !self.machines[host].reports {
            return;
        }
        let boot = self.machines[host].agent.boot;
        let report = Sent { kind, sandbox, boot, tries: 1 };
        let late = if self.chance.permille(150) { 90 * SECOND } else { 200 };
        let after = self.chance.within(1, late);
        if after > 30 * SECOND {
            self.tally.struck(Fault::ReportLate);
        }
        self.after(after, Event::Report(host, report));
        if self.chance.permille(80) {
            self.tally.struck(Fault::ReportTwice);
            let after = self.chance.within(1, 5 * MINUTE);
            self.after(after, Event::Report(host, report));
        }
    }

    pub(crate) fn report(&mut self, host: usize, sent: Sent) {
        let now = self.now();
        let Sent { kind, sandbox, boot, tries } = sent;
        let machine = &self.machines[host];
        if tries > 1 && machine.agent.boot != boot {
            return;
        }
        let reachable = machine.link.beats && self.attention == Attention::Listening;
        let lost = self.is_lost(host) || self.stormy && self.chance.permille(300);
        if !reachable || lost {
            self.tally.struck(Fault::ReportLost);
            return self.report_again(host, sent);
        }
        if self.machines[host].standing.superseded {
            return;
        }
        let machine = &mut self.machines[host];
        if kind == ReportKind::AutoPaused && machine.agent.truth(sandbox) != Truth::Paused {
            machine.stale.insert(sandbox);
        }
        let id = machine.id;
        let slow = self.machines[host].skew_ms < -SLOW_CLOCK_MS;
        if self.defect == Some(Defect::HostClocksBelieved) && slow {
            return self.reported(host, sent, true);
        }
        let forgets = self.defect == Some(Defect::RefusedReportsForgotten);
        let Some(plane) = &mut self.plane else { return };
        let forgets = forgets && plane.failing;
        if plane.held || forgets {
            return self.report_refused(host, sent);
        }
        let error = match kind {
            ReportKind::Error | ReportKind::PauseFailed | ReportKind::ResumeFailed => {
                self.tally.struck(Fault::FailureReported);
                Some("as the simulation wants it".to_owned())
            }
            ReportKind::AutoPaused
            | ReportKind::Stopped
            | ReportKind::Started
            | ReportKind::Resumed
            | ReportKind::Paused
            | ReportKind::Failed => None,
        };
        plane.report(
            now,
            AgentReport { host: id, sandbox, kind, host_ip: None, error },
            host,
            sent,
        );
        self.note(|| format!("{id} reports {kind} of {sandbox}"));
    }

    /// What became of a report that was heard.
    pub(crate) fn reported(&mut self, host: usize, sent: Sent, taken: bool) {
        if !taken {
            return self.report_refused(host, sent);
        }
        if sent.kind == ReportKind::AutoPaused && self.machines[host].agent.boot == sent.boot {
            self.machines[host].agent.was_told(sent.sandbox);
        }
    }

    fn report_refused(&mut self, host: usize, sent: Sent) {
        self.note(|| format!("the report {} of {} is refused", sent.kind, sent.sandbox));
        self.tally.struck(Fault::ReportRefused);
        let (id, now) = (self.machines[host].id, self.now().mono);
        if let Some(plane) = &self.plane
            && self.defect != Some(Defect::RefusedReportsForgotten)
        {
            plane.presence.report_refused(id, now);
        }
        if sent.kind == ReportKind::AutoPaused {
            self.machines[host].refused.insert(sent.sandbox);
        }
        self.report_again(host, sent);
    }

    fn report_again(&mut self, host: usize, sent: Sent) {
        if sent.tries < REPORT_TRIES {
            let after = self.chance.within(SECOND, 4 * SECOND);
            let again = Sent { tries: sent.tries + 1, ..sent };
            return self.after(after, Event::Report(host, again));
        }
        self.tally.struck(Fault::ReportGivenUp);
        let agent = &mut self.machines[host].agent;
        if sent.kind == ReportKind::AutoPaused && agent.boot == sent.boot {
            agent.gave_up_telling(sent.sandbox);
        }
    }

    /// The right time, which the control plane's own clock may not show.
    pub(crate) fn true_wall(&self) -> Wall {
        BEGIN.after(Duration::from_millis(self.now_ms()))
    }

    pub(crate) fn unix_of(&self, host: usize) -> i64 {
        Wall(self.true_wall().0 + self.machines[host].skew_ms).unix_seconds()
    }
}

pub(crate) fn unknown() -> CallError {
    CallError::Unknown { kind: FailureKind::TimedOut, detail: String::new() }
}
