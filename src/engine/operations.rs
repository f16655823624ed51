//! Owns the carrying out of lifecycle operations as a state machine: operations, answers
//! and time go in; calls to make, observations to wait for and results to write come out.
//!
//! Never: does anything itself, decides how an operation proceeds (`plan::operation` does),
//! has what may have been carried out asked twice. `calls` drives it with real time and
//! threads, tests and the simulation with a manual clock.

use crate::agent::client::CallError;
use crate::agent::wire::ConnectCode;
use crate::logging::seldom;
use crate::model::id::{HostId, OpId};
use crate::model::operation::OperationKind;
use crate::model::probe::Details;
use crate::model::sandbox::Reason;
use crate::model::time::{Mono, Now};
use crate::plan::operation::{
    Answer, Call, LOOK_BESIDE_AFTER, Next, Overtook, Progress, SNAPSHOT_GONE_AGAIN_AFTER,
    after_call, is_looked_after,
};
use crate::store::StoreError;
use crate::store::lifecycle::{Ended, Placed, Said, Work};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

/// How long to wait before a result that could not be written is written again. Larger and
/// users wait for what is done; smaller and a full disk is knocked at all the time.
const REWRITE_AFTER: Duration = Duration::from_secs(1);

/// Calls to one host at a time, and as many destroys beside them. Larger and a few hosts
/// that hang take all the threads there are for calls; smaller and a burst of creates on one
/// host takes longer than its agent does.
const CALLS_PER_HOST_MAX: usize = 16;

/// What can happen.
#[derive(Debug)]
pub enum Input {
    /// An operation began, or was found unfinished at the start.
    Work(Box<Work>),
    /// A call ended.
    Called(Box<Called>),
    /// A result was written, or could not be.
    Written(Box<Ended>, Result<bool, StoreError>),
    /// Another host was looked for.
    Placed(OpId, Result<Placed, StoreError>),
    /// A host registered: the calls to the agent that was there before ended with it.
    Registered(HostId),
    /// No new calls; those in flight end.
    Stop,
}

/// What shall be done.
#[derive(Debug)]
pub enum Effect {
    /// Record that the agent is about to be asked, and ask it.
    Call(Box<Job>),
    /// Record that observations of the host decide from now on.
    Look {
        /// Which operation.
        op: OpId,
        /// Observations that were asked for earlier do not tell.
        since: Mono,
        /// What the agent has said.
        answer: Answer,
        /// What it says beside that.
        said: Said,
    },
    /// Probe this host.
    ProbeNow(HostId),
    /// Place a create on another host; `clean`: its agent may have begun.
    PlaceElsewhere {
        /// Which operation.
        op: OpId,
        /// See above.
        clean: bool,
    },
    /// Write how an operation ended.
    Write(Box<Ended>),
}

/// One call to make.
#[derive(Debug, Clone)]
pub struct Job {
    /// For which operation.
    pub work: Work,
    /// Calls made for it, this one included.
    pub attempts: u32,
    /// Tells this call from every other: an operation may be called again while an earlier
    /// call of it hangs.
    pub number: u64,
    /// What the destroy had to do with what it overtook when this call began.
    pub overtook: Overtook,
}

/// One call that ended.
#[derive(Debug)]
pub struct Called {
    /// Which.
    pub job: Job,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a call.
#[derive(Debug)]
pub enum Outcome {
    /// The operation had ended before the agent was asked.
    Over,
    /// The agent was asked: what is known, what it says of a sandbox that runs, and what it
    /// says beside that.
    Told(Call, Option<Details>, Said),
}

/// An operation that calls are made for.
#[derive(Debug)]
struct Open {
    work: Work,
    attempts: u32,
    state: State,
    /// When its deadline passes. Measured from when we took it up: the clock on the wall
    /// may be set to anything meanwhile.
    expires_at: Mono,
    /// Calls in progress that this destroy overtook and that may make a microVM yet.
    overtaken: Vec<OpId>,
}

#[derive(Debug)]
enum State {
    /// A call is in progress; its host is observed from this moment on.
    Calling { number: u64, look_at: Option<Mono> },
    /// The next call is due then.
    Waiting(Mono),
    /// The next call is due; it has its place in the queue.
    Queued,
    /// Another host is looked for; without one, this follows.
    Placing { without: Next, said: Said },
}

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Operations {
    open: BTreeMap<OpId, Open>,
    /// Whose call is due, in the order in which they became it.
    queue: VecDeque<OpId>,
    rewrites: Vec<(Mono, Box<Ended>)>,
    /// Probes that are due later.
    probes: Vec<(Mono, HostId)>,
    /// Calls whose outcome is not known and that may be in progress at their agents, until
    /// their operations are over at the latest.
    unclear: Vec<(Mono, Work)>,
    /// Results that are being written.
    writing: usize,
    effects: Vec<Effect>,
    numbers: u64,
    stopping: bool,
}

impl Operations {
    /// Takes in what happened.
    pub fn handle(&mut self, now: Now, input: Input) {
        match input {
            Input::Work(work) => self.take_up(*work, now),
            Input::Called(called) => self.called(*called, now),
            Input::Written(ended, result) => self.written(ended, result, now),
            Input::Placed(op, result) => self.placed(op, result, now),
            Input::Registered(host) => self.registered(host, now),
            Input::Stop => self.stopping = true,
        }
    }

    /// Whether nothing is in flight that an orderly stop waits for.
    pub fn is_idle(&self) -> bool {
        let is_busy = |open: &Open| match open.state {
            State::Calling { .. } | State::Placing { .. } => true,
            State::Waiting(_) | State::Queued => false,
        };
        let is_written = self.writing == 0 && self.rewrites.is_empty() && self.effects.is_empty();
        is_written && !self.open.values().any(is_busy)
    }

    /// Operations whose calls are in flight.
    pub fn in_flight(&self) -> impl Iterator<Item = &Work> {
        self.open.values().filter(|open| open.is_called()).map(|open| &open.work)
    }

    fn written(&mut self, ended: Box<Ended>, result: Result<bool, StoreError>, now: Now) {
        self.writing -= 1;
        match result {
            // What the agent lists now is known at once, not a probe interval later.
            Ok(_) => self.effects.push(Effect::ProbeNow(ended.host)),
            Err(error) => {
                seldom!(Error, "failures of the database", "the database" =>
                    "could not write how {} ended: {error}", ended.op);
                self.rewrites.push((now.mono.after(REWRITE_AFTER), ended));
            }
        }
    }

    /// What shall be done now.
    pub fn effects(&mut self, now: Mono) -> Vec<Effect> {
        for (op, open) in &mut self.open {
            match &mut open.state {
                State::Waiting(due) if *due <= now => {
                    open.state = State::Queued;
                    self.queue.push_back(*op);
                }
                State::Calling { look_at, .. } if look_at.is_some_and(|at| at <= now) => {
                    *look_at = None;
                    let (op, answer, said) = (*op, Answer::Outstanding, Said::default());
                    self.effects.push(Effect::Look { op, since: now, answer, said });
                    self.effects.push(Effect::ProbeNow(open.work.host));
                }
                State::Waiting(_)
                | State::Queued
                | State::Calling { .. }
                | State::Placing { .. } => {}
            }
        }
        if !self.stopping {
            self.call_queued(now);
        }
        let due = self.probes.extract_if(.., |(due, _)| *due <= now);
        self.effects.extend(due.map(|(_, host)| Effect::ProbeNow(host)));
        let due = self.rewrites.extract_if(.., |(due, _)| *due <= now);
        self.effects.extend(due.map(|(_, ended)| Effect::Write(ended)));
        let effects = std::mem::take(&mut self.effects);
        self.writing += effects.iter().filter(|e| matches!(e, Effect::Write(_))).count();
        effects
    }

    /// Makes the calls that are due, but for those of hosts that have enough in flight: a
    /// host that hangs keeps its own operations waiting, and no others.
    fn call_queued(&mut self, now: Mono) {
        if self.queue.is_empty() {
            return;
        }
        let mut in_flight: HashMap<_, usize> = HashMap::new();
        for open in self.open.values().filter(|open| open.is_called()) {
            *in_flight.entry(open.lane()).or_default() += 1;
        }
        self.queue.retain(|op| {
            // Overtaken while it waited.
            let Some(open) = self.open.get_mut(op) else { return false };
            let calls = in_flight.entry(open.lane()).or_default();
            let full = *calls >= CALLS_PER_HOST_MAX;
            if !full {
                *calls += 1;
                self.numbers += 1;
                self.effects.push(open.call(self.numbers, now));
            }
            full
        });
    }

    /// When to look again if nothing happens before.
    pub fn next_wake(&self) -> Option<Mono> {
        let due = self.open.values().filter_map(|open| match open.state {
            State::Waiting(due) => Some(due),
            State::Queued | State::Placing { .. } => None,
            State::Calling { look_at, .. } => look_at,
        });
        let due = due.filter(|_| !self.stopping);
        let probes = self.probes.iter().map(|(due, _)| *due);
        due.chain(probes).chain(self.rewrites.iter().map(|(due, _)| *due)).min()
    }

    /// Begins at once, also beside a call for the same sandbox that hangs: agents work on
    /// one sandbox in order, and an operation that has ended takes no answer any more.
    fn take_up(&mut self, mut work: Work, now: Now) {
        self.unclear.retain(|(_, other)| other.op != work.op);
        if work.sent && work.kind != OperationKind::Destroy {
            // Asked before we started, perhaps carried out: observations decide.
            return self.effects.push(Effect::ProbeNow(work.host));
        }
        // What waits to be called again is overtaken, and was never carried out.
        let waited = self.open.extract_if(.., |_, open| open.waits_for(&work)).count() > 0;
        work.overtook &= !waited;
        let makes = |open: &&Open| open.is_called_for(&work) && makes_a_microvm(&open.work);
        let left = work.deadline_at.since(now.wall).min(work.kind.deadline());
        let open = Open {
            attempts: 0,
            state: State::Queued,
            expires_at: now.mono.after(left),
            overtaken: self.open.values().filter(makes).map(|open| open.work.op).collect(),
            work,
        };
        self.queue.push_back(open.work.op);
        self.open.insert(open.work.op, open);
    }

    fn called(&mut self, called: Called, now: Now) {
        let Called { job, outcome } = called;
        let op = job.work.op;
        // Its connection has closed: nothing more can come of this call.
        self.settle(op, now.mono);
        if !self.open.get(&op).is_some_and(|open| open.is_call(job.number)) {
            return;
        }
        let Some(open) = self.open.remove(&op) else { return };
        let Outcome::Told(call, details, said) = outcome else { return };
        let next = after_call(open.progress(job.overtook, now.mono), call);
        // Settled while it was called: nothing to wait for any more.
        let settled = job.overtook == Overtook::InProgress && open.overtaken.is_empty();
        let is_due = settled && matches!(next, Next::CallAfter(_));
        let next = if is_due { Next::CallAfter(Duration::ZERO) } else { next };
        self.proceed(open, next, details, said, now);
    }

    fn proceed(
        &mut self,
        mut open: Open,
        next: Next,
        details: Option<Details>,
        said: Said,
        now: Now,
    ) {
        let (op, host) = (open.work.op, open.work.host);
        match next {
            Next::Finish(status, reason) => {
                let error = said.error.filter(|_| reason != Reason::OperationSucceeded);
                let known_at = now.mono;
                let ended = Ended { op, host, status, reason, details, error, known_at };
                self.effects.push(Effect::Write(Box::new(ended)));
            }
            Next::CallAfter(delay) => {
                open.state = State::Waiting(now.mono.after(delay));
                self.open.insert(op, open);
            }
            Next::PlaceElsewhere { clean, without } => {
                open.state = State::Placing { without: *without, said };
                self.open.insert(op, open);
                self.effects.push(Effect::PlaceElsewhere { op, clean });
            }
            Next::Look(answer) => self.look(&open.work, answer, said, now.mono),
            Next::LeaveToMonitor => self.look(&open.work, Answer::Unclear, said, now.mono),
        }
    }

    fn look(&mut self, work: &Work, answer: Answer, said: Said, now: Mono) {
        let since = match answer {
            Answer::NoSnapshot => now.after(SNAPSHOT_GONE_AGAIN_AFTER),
            Answer::Outstanding
            | Answer::Unclear
            | Answer::Ended
            | Answer::Refusal
            | Answer::LateRefusal
            | Answer::Done => now,
        };
        self.unclear.retain(|(until, other)| *until > now && other.op != work.op);
        if answer == Answer::Unclear {
            self.unclear.push((now.after(work.kind.deadline() * 2), work.clone()));
        }
        self.effects.push(Effect::Look { op: work.op, since, answer, said });
        self.probes.push((since, work.host));
    }

    fn placed(&mut self, op: OpId, result: Result<Placed, StoreError>, now: Now) {
        let Some(open) = self.open.remove(&op) else { return };
        let State::Placing { without, said } = &open.state else {
            return drop(self.open.insert(op, open));
        };
        let (without, said) = (without.clone(), said.clone());
        match result {
            Ok(Placed::At(work, clean)) => {
                self.take_up(*work, now);
                if let Some(clean) = clean {
                    self.take_up(*clean, now);
                }
            }
            Ok(Placed::NoHost) => self.proceed(open, without, None, said, now),
            Ok(Placed::Over) => {}
            // Not recorded, so still where it was: this host is asked again.
            Err(_) => self.proceed(open, Next::CallAfter(REWRITE_AFTER), None, said, now),
        }
    }

    /// The agent that was called is not there any more. Observations of the one that
    /// registered decide; a destroy is sent again.
    fn registered(&mut self, host: HostId, now: Now) {
        let cut = |open: &Open| open.work.host == host && open.is_called();
        let ended: Vec<Open> =
            self.open.extract_if(.., |_, open| cut(open)).map(|(_, o)| o).collect();
        for mut open in ended {
            self.settle(open.work.op, now.mono);
            if open.work.kind == OperationKind::Destroy {
                open.state = State::Waiting(now.mono);
                self.open.insert(open.work.op, open);
            } else {
                self.look(&open.work, Answer::Ended, Said::default(), now.mono);
            }
        }
        let unclear: Vec<Work> =
            self.unclear.extract_if(.., |(_, work)| work.host == host).map(|(_, w)| w).collect();
        for work in unclear {
            self.look(&work, Answer::Ended, Said::default(), now.mono);
        }
    }

    /// Nothing more can come of this call: a destroy that overtook it need not wait.
    fn settle(&mut self, ended: OpId, now: Mono) {
        for open in self.open.values_mut().filter(|open| open.overtaken.contains(&ended)) {
            open.overtaken.retain(|op| *op != ended);
            if open.overtaken.is_empty()
                && let State::Waiting(due) = &mut open.state
            {
                *due = now.min(*due);
            }
        }
    }
}

impl Open {
    fn is_for(&self, work: &Work) -> bool {
        (self.work.sandbox, self.work.host) == (work.sandbox, work.host)
    }

    fn waits_for(&self, work: &Work) -> bool {
        match self.state {
            State::Waiting(_) | State::Queued | State::Placing { .. } => self.is_for(work),
            State::Calling { .. } => false,
        }
    }

    fn is_called_for(&self, work: &Work) -> bool {
        self.is_called() && self.is_for(work)
    }

    fn is_called(&self) -> bool {
        match self.state {
            State::Calling { .. } => true,
            State::Waiting(_) | State::Queued | State::Placing { .. } => false,
        }
    }

    fn is_call(&self, wanted: u64) -> bool {
        match self.state {
            State::Calling { number, .. } => number == wanted,
            State::Waiting(_) | State::Queued | State::Placing { .. } => false,
        }
    }

    /// What shares a limit on calls: destroys do not wait for what hangs.
    fn lane(&self) -> (HostId, bool) {
        (self.work.host, self.work.kind == OperationKind::Destroy)
    }

    fn overtook(&self) -> Overtook {
        match (self.work.overtook, self.overtaken.is_empty()) {
            (false, _) => Overtook::None,
            (true, false) => Overtook::InProgress,
            (true, true) => Overtook::Ended,
        }
    }

    /// A destroy that began while the other call was in progress proves nothing.
    fn progress(&self, overtook: Overtook, now: Mono) -> Progress {
        Progress {
            kind: self.work.kind,
            attempts: self.attempts,
            left: self.expires_at.since(now),
            earlier: self.work.earlier,
            overtook,
        }
    }

    /// Counts the call that this makes.
    fn call(&mut self, number: u64, now: Mono) -> Effect {
        self.attempts += 1;
        let look_at = is_looked_after(self.work.kind).then(|| now.after(LOOK_BESIDE_AFTER));
        self.state = State::Calling { number, look_at };
        let (work, attempts, overtook) = (self.work.clone(), self.attempts, self.overtook());
        Effect::Call(Box::new(Job { work, attempts, number, overtook }))
    }
}

fn makes_a_microvm(work: &Work) -> bool {
    match work.kind {
        OperationKind::Create | OperationKind::Resume => true,
        OperationKind::Pause | OperationKind::Destroy | OperationKind::Snapshot => false,
    }
}

/// What is known of a call that failed, by how it did.
pub fn call_of(error: &CallError) -> Call {
    if error.is_snapshot_gone() {
        return Call::Gone;
    }
    match error {
        CallError::NotReached { .. } => Call::NotReached,
        CallError::Unknown { .. } | CallError::Malformed { .. } => Call::Unknown,
        CallError::Refused { code, .. } => match code {
            ConnectCode::AlreadyExists => Call::Exists,
            // The agent shuts down, or is full.
            ConnectCode::Unavailable | ConnectCode::ResourceExhausted => Call::Declined,
            // The agent, or something before it, gave up; what it did until then is not said.
            ConnectCode::Canceled | ConnectCode::DeadlineExceeded | ConnectCode::Unknown => {
                Call::Unknown
            }
            ConnectCode::NotFound => Call::Gone,
            ConnectCode::InvalidArgument
            | ConnectCode::PermissionDenied
            | ConnectCode::FailedPrecondition
            | ConnectCode::Aborted
            | ConnectCode::OutOfRange
            | ConnectCode::Unimplemented
            | ConnectCode::Internal
            | ConnectCode::DataLoss
            | ConnectCode::Unauthenticated => Call::Refused,
        },
    }
}

#[cfg(test)]
mod tests;
