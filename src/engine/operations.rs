//! Owns the carrying out of lifecycle operations as a state machine: operations, answers
//! and time go in; calls to make, looks and results to write come out.
//!
//! Never: does anything itself, decides how an operation goes on (`plan::operation` does),
//! has what may have been carried out asked twice. `calls` drives it with real time and
//! threads, tests and the simulation with a manual clock.

use crate::agent::client::CallError;
use crate::agent::wire::ConnectCode;
use crate::model::id::{HostId, OpId, SandboxId};
use crate::model::operation::OperationKind;
use crate::model::probe::Details;
use crate::model::time::{Mono, Now, Wall};
use crate::plan::operation::{
    Answer, Call, LOOK_BESIDE_AFTER, Next, Progress, after_call, is_looked_after,
};
use crate::store::StoreError;
use crate::store::lifecycle::{Ended, Work};
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
}

/// What shall be done.
#[derive(Debug)]
pub enum Effect {
    /// Note that the agent is about to be asked, and ask it.
    Call(Box<Job>),
    /// Note that looks at the host decide from now on.
    Look(OpId, Answer),
    /// Look at this host.
    ProbeNow(HostId),
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
    /// What the operation overtook might still come true when this call began.
    pub unsettled: bool,
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
    /// The operation was over before the agent was asked.
    Over,
    /// The agent was asked: what is known, what it says of a sandbox that runs, and what
    /// went wrong, for people.
    Told(Call, Option<Details>, Option<String>),
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
    /// Until when what it overtook may come true.
    settles_at: Option<Mono>,
    /// Calls under way that this destroy overtook and that may make a microVM yet. One that
    /// ends without telling stays here, so that only time settles it.
    overtaken: Vec<OpId>,
}

#[derive(Debug)]
enum State {
    /// A call is under way; its host is looked at from this moment on.
    Calling { look_at: Option<Mono> },
    /// The next call is due then.
    Waiting(Mono),
    /// The next call is due; it has its place in the queue.
    Queued,
}

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Operations {
    open: BTreeMap<OpId, Open>,
    /// Whose call is due, in the order in which they became it.
    queue: VecDeque<OpId>,
    rewrites: Vec<(Mono, Box<Ended>)>,
    effects: Vec<Effect>,
}

impl Operations {
    /// Takes in what happened.
    pub fn handle(&mut self, now: Now, input: Input) {
        match input {
            Input::Work(work) => self.take_up(*work, now),
            Input::Called(called) => self.called(*called, now),
            // What the agent lists now is known at once, not a probe interval later.
            Input::Written(ended, Ok(_)) => self.effects.push(Effect::ProbeNow(ended.host)),
            Input::Written(ended, Err(error)) => {
                log::error!("could not write how {} ended: {error}", ended.op);
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
                State::Calling { look_at } if look_at.is_some_and(|at| at <= now) => {
                    *look_at = None;
                    self.effects.push(Effect::Look(*op, Answer::Outstanding));
                    self.effects.push(Effect::ProbeNow(open.work.host));
                }
                State::Waiting(_) | State::Queued | State::Calling { .. } => {}
            }
        }
        self.call_queued(now);
        let due = self.rewrites.extract_if(.., |(due, _)| *due <= now);
        self.effects.extend(due.map(|(_, ended)| Effect::Write(ended)));
        std::mem::take(&mut self.effects)
    }

    /// Makes the calls that are due, but for those of hosts that have enough under way: a
    /// host that hangs keeps its own operations waiting, and nobody else's.
    fn call_queued(&mut self, now: Mono) {
        if self.queue.is_empty() {
            return;
        }
        let mut under_way: HashMap<_, usize> = HashMap::new();
        for open in self.open.values().filter(|open| open.is_called()) {
            *under_way.entry(open.lane()).or_default() += 1;
        }
        self.queue.retain(|op| {
            // Overtaken while it waited.
            let Some(open) = self.open.get_mut(op) else { return false };
            let calls = under_way.entry(open.lane()).or_default();
            let full = *calls >= CALLS_PER_HOST_MAX;
            if !full {
                *calls += 1;
                self.effects.push(open.call(now));
            }
            full
        });
    }

    /// When to look again if nothing happens before.
    pub fn next_wake(&self) -> Option<Mono> {
        let due = self.open.values().filter_map(|open| match open.state {
            State::Waiting(due) => Some(due),
            State::Queued => None,
            State::Calling { look_at } => look_at,
        });
        due.chain(self.rewrites.iter().map(|(due, _)| *due)).min()
    }

    /// Begins at once, also beside a call for the same sandbox that hangs: agents work on
    /// one sandbox in order, and an operation that is over takes no answer any more.
    fn take_up(&mut self, work: Work, now: Now) {
        if work.sent && work.kind != OperationKind::Destroy {
            // Asked before we started, perhaps carried out: looks decide.
            return self.effects.push(Effect::ProbeNow(work.host));
        }
        // What waits to be called again is overtaken, and was never carried out.
        let waited = self.open.extract_if(.., |_, open| open.waits_for(work.sandbox)).count() > 0;
        let left = |until: Wall, at_most| now.mono.after(until.since(now.wall).min(at_most));
        let settles_at = work.settle_at.filter(|at| !waited && now.wall <= *at);
        let makes = |open: &&Open| open.work.sandbox == work.sandbox && makes_a_microvm(&open.work);
        let open = Open {
            attempts: 0,
            state: State::Queued,
            expires_at: left(work.deadline_at, work.kind.deadline()),
            settles_at: settles_at.map(|at| left(at, OperationKind::Resume.deadline())),
            overtaken: self.open.values().filter(makes).map(|open| open.work.op).collect(),
            work,
        };
        self.queue.push_back(open.work.op);
        self.open.insert(open.work.op, open);
    }

    fn called(&mut self, called: Called, now: Now) {
        let Called { job: Job { work, attempts: _, unsettled }, outcome } = called;
        let Some(open) = self.open.remove(&work.op) else { return };
        let Outcome::Told(call, details, error) = outcome else {
            return self.settle(&work, now.mono);
        };
        if call != Call::Unknown {
            self.settle(&work, now.mono);
        }
        match after_call(open.progress(unsettled, now.mono), call) {
            Next::Finish(status, reason) => {
                let error = error.filter(|_| call != Call::Succeeded);
                let (op, host, known_at) = (work.op, work.host, now.mono);
                let ended = Ended { op, host, status, reason, details, error, known_at };
                self.effects.push(Effect::Write(Box::new(ended)));
            }
            Next::CallAfter(delay) => self.wait(open, unsettled, delay, now.mono),
            Next::Look(answer) => {
                self.effects.push(Effect::Look(work.op, answer));
                self.effects.push(Effect::ProbeNow(work.host));
            }
            Next::LeaveToMonitor => {
                self.effects.push(Effect::Look(work.op, Answer::Unclear));
                self.effects.push(Effect::ProbeNow(work.host));
            }
        }
    }

    fn wait(&mut self, mut open: Open, unsettled: bool, delay: Duration, now: Mono) {
        // Settled while it was called: nothing to wait for any more.
        let settled = unsettled && open.settles_at.is_none();
        open.state = State::Waiting(if settled { now } else { now.after(delay) });
        self.open.insert(open.work.op, open);
    }

    /// Nothing more can come of this call: a destroy that overtook it need not wait.
    fn settle(&mut self, ended: &Work, now: Mono) {
        for open in self.open.values_mut().filter(|open| open.overtaken.contains(&ended.op)) {
            open.overtaken.retain(|op| *op != ended.op);
            if open.overtaken.is_empty() {
                open.settles_at = None;
                if let State::Waiting(due) = &mut open.state {
                    *due = now.min(*due);
                }
            }
        }
    }
}

impl Open {
    fn waits_for(&self, sandbox: SandboxId) -> bool {
        match self.state {
            State::Waiting(_) | State::Queued => self.work.sandbox == sandbox,
            State::Calling { .. } => false,
        }
    }

    fn is_called(&self) -> bool {
        match self.state {
            State::Calling { .. } => true,
            State::Waiting(_) | State::Queued => false,
        }
    }

    /// What shares a limit on calls: destroys do not wait for what hangs.
    fn lane(&self) -> (HostId, bool) {
        (self.work.host, self.work.kind == OperationKind::Destroy)
    }

    /// A call that began unsettled proves nothing until what it overtook is over.
    fn progress(&self, unsettled: bool, now: Mono) -> Progress {
        Progress {
            kind: self.work.kind,
            attempts: self.attempts,
            left: self.expires_at.since(now),
            unsettled: unsettled && self.settles_at.is_none_or(|at| now <= at),
        }
    }

    /// Counts the call that this makes.
    fn call(&mut self, now: Mono) -> Effect {
        self.attempts += 1;
        let look_at = is_looked_after(self.work.kind).then(|| now.after(LOOK_BESIDE_AFTER));
        self.state = State::Calling { look_at };
        let unsettled = self.settles_at.is_some();
        let (work, attempts) = (self.work.clone(), self.attempts);
        Effect::Call(Box::new(Job { work, attempts, unsettled }))
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
            // The agent, or something before it, gave up; what it did until then is not said.
            ConnectCode::Canceled
            | ConnectCode::DeadlineExceeded
            | ConnectCode::Unavailable
            | ConnectCode::Unknown => Call::Unknown,
            ConnectCode::NotFound => Call::Gone,
            ConnectCode::InvalidArgument
            | ConnectCode::PermissionDenied
            | ConnectCode::ResourceExhausted
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
