//! Owns the carrying out of lifecycle operations: one call at a time for each sandbox,
//! retries, and handing what calls leave open to looks at the host.
//!
//! Never: decides how an operation goes on (`plan::operation` does), asks an agent before
//! that is noted in the database, asks twice for what may have been carried out.

use super::monitor::Input;
use super::pool::Pool;
use super::scheduler::Mail;
use crate::agent::client::{AgentClient, CallError};
use crate::agent::wire::{ConnectCode, CreateSandboxRequest, ResumeSandboxRequest};
use crate::clock::Clock;
use crate::model::id::SandboxId;
use crate::model::operation::OperationKind;
use crate::model::probe::Details;
use crate::model::time::{Mono, Now};
use crate::plan::operation::{Call, Next, Progress, after_call};
use crate::store::StoreError;
use crate::store::lifecycle::{Ended, Work};
use crate::store::presence::Presence;
use crate::store::writer::{Command, WriterHandle};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Calls at a time. Larger and a burst of creates starts as many threads; smaller and
/// slow pauses hold up everybody else's.
pub(super) const CALLS_MAX: usize = 64;

/// How long to wait before a result that could not be written is written again.
const REWRITE_AFTER: Duration = Duration::from_secs(1);

/// Shortest deadline of a call: what is left of an operation may be nothing.
const CALL_DEADLINE_MIN: Duration = Duration::from_secs(1);

/// What can wake the operations thread.
pub(super) enum OpMail {
    /// An operation began, or was found unfinished at the start.
    Work(Box<Work>),
    /// A call ended.
    Called(Box<Called>),
    /// A result was written, or could not be.
    Written(Box<Ended>, Result<bool, StoreError>),
    /// No more calls; the thread ends.
    Stop,
}

/// One call to make.
pub(super) struct CallJob {
    work: Work,
    attempts: u32,
}

/// One call that ended.
pub(super) struct Called {
    work: Work,
    attempts: u32,
    outcome: Outcome,
}

enum Outcome {
    /// The operation was over before the agent was asked.
    Over,
    /// The agent was asked.
    Told(Call, Option<Details>, Option<String>),
}

/// Where the operations of one sandbox stand.
enum Slot {
    /// A call is under way; what comes after it waits.
    Calling(VecDeque<Work>),
    /// The next call is due then.
    Waiting(Mono, Box<CallJob>),
}

pub(super) struct Operations {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) writer: WriterHandle,
    pub(super) calls: Pool<CallJob>,
    pub(super) mail: Receiver<OpMail>,
    pub(super) post: Sender<OpMail>,
    pub(super) scheduler: Sender<Mail>,
    slots: HashMap<SandboxId, Slot>,
    rewrites: Vec<(Mono, Box<Ended>)>,
}

impl Operations {
    pub(super) fn new(
        clock: Arc<dyn Clock>,
        writer: WriterHandle,
        calls: Pool<CallJob>,
        (post, mail): (Sender<OpMail>, Receiver<OpMail>),
        scheduler: Sender<Mail>,
    ) -> Operations {
        let (slots, rewrites) = (HashMap::new(), Vec::new());
        Operations { clock, writer, calls, mail, post, scheduler, slots, rewrites }
    }

    /// Runs until [`OpMail::Stop`]; then waits, bounded, for calls under way. What they
    /// leave open is taken up by the next start.
    pub(super) fn run(mut self, patience: Duration) -> bool {
        loop {
            let mail = match self.next_wake() {
                None => self.mail.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(wake) => self.mail.recv_timeout(wake.since(self.clock.now().mono)),
            };
            match mail {
                Ok(OpMail::Work(work)) => self.take_up(*work),
                Ok(OpMail::Called(called)) => self.called(*called),
                Ok(OpMail::Written(ended, result)) => self.written(ended, result),
                Ok(OpMail::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.start_due();
        }
        let drained = self.calls.drain(patience);
        if !drained {
            log::warn!(
                "{} operations are under way; the next start takes them up",
                self.calls.open()
            );
        }
        // Results that arrived meanwhile are written while the writer still runs.
        for mail in self.mail.clone().try_iter() {
            if let OpMail::Called(called) = mail {
                self.called(*called);
            }
        }
        drained
    }

    fn next_wake(&self) -> Option<Mono> {
        let due = self.slots.values().filter_map(|slot| match slot {
            Slot::Waiting(due, _) => Some(*due),
            Slot::Calling(_) => None,
        });
        due.chain(self.rewrites.iter().map(|(due, _)| *due)).min()
    }

    fn start_due(&mut self) {
        let now = self.clock.now().mono;
        let is_due = |slot: &Slot| match slot {
            Slot::Waiting(due, _) => *due <= now,
            Slot::Calling(_) => false,
        };
        let due: Vec<SandboxId> =
            self.slots.iter().filter(|(_, slot)| is_due(slot)).map(|(id, _)| *id).collect();
        for id in due {
            if let Some(Slot::Waiting(_, job)) = self.slots.remove(&id) {
                self.call(*job, VecDeque::new());
            }
        }
        let (ready, later) = self.rewrites.drain(..).partition(|(due, _)| *due <= now);
        self.rewrites = later;
        let ready: Vec<(Mono, Box<Ended>)> = ready;
        ready.into_iter().for_each(|(_, ended)| self.write(ended));
    }

    fn take_up(&mut self, work: Work) {
        if work.sent && work.kind != OperationKind::Destroy {
            // Asked before we started, perhaps carried out: looks decide.
            return self.probe_now(&work);
        }
        match self.slots.get_mut(&work.sandbox) {
            Some(Slot::Calling(behind)) => behind.push_back(work),
            // What waited is overtaken: there is one unfinished operation for a sandbox.
            Some(Slot::Waiting(..)) | None => {
                self.call(CallJob { work, attempts: 1 }, VecDeque::new());
            }
        }
    }

    fn call(&mut self, job: CallJob, behind: VecDeque<Work>) {
        self.slots.insert(job.work.sandbox, Slot::Calling(behind));
        self.calls.submit(job);
    }

    fn called(&mut self, called: Called) {
        let Called { work, attempts, outcome } = called;
        let now = self.clock.now();
        let mut behind = match self.slots.remove(&work.sandbox) {
            Some(Slot::Calling(behind)) => behind,
            Some(Slot::Waiting(..)) | None => VecDeque::new(),
        };
        let known = match &outcome {
            Outcome::Over => true,
            Outcome::Told(call, _, _) => *call != Call::Unknown,
        };
        if let Outcome::Told(call, details, error) = outcome {
            let progress = progress(&work, attempts, now);
            match after_call(progress, call) {
                Next::Finish(status, reason) => {
                    let error = error.filter(|_| call != Call::Succeeded);
                    self.write(Box::new(Ended { op: work.op, status, reason, details, error }));
                }
                Next::CallAfter(delay) if behind.is_empty() => {
                    let id = work.sandbox;
                    let job = Box::new(CallJob { work, attempts: attempts + 1 });
                    self.slots.insert(id, Slot::Waiting(now.mono.after(delay), job));
                    return;
                }
                // Overtaken while it was called: what is behind it goes on.
                Next::CallAfter(_) => {}
                Next::Look { refused } => self.look(&work, refused, now),
                Next::LeaveToMonitor => self.probe_now(&work),
            }
        }
        if let Some(mut next) = behind.pop_front() {
            if known {
                // The call that this one overtook is over: nothing more can come of it.
                next.settle_at = None;
            }
            self.call(CallJob { work: next, attempts: 1 }, behind);
        }
    }

    fn look(&self, work: &Work, refused: bool, now: Now) {
        let op = work.op;
        let reply = Box::new(move |result: Result<(), StoreError>| {
            if let Err(error) = result {
                log::error!("could not note that {op} needs a look: {error}");
            }
        });
        self.writer.send(now, Command::Look { op, refused, reply });
        self.probe_now(work);
    }

    fn probe_now(&self, work: &Work) {
        drop(self.scheduler.send(Mail::input(Input::ProbeNow(work.host))));
    }

    fn write(&self, ended: Box<Ended>) {
        let post = self.post.clone();
        let copy = ended.clone();
        let reply = Box::new(move |result| drop(post.send(OpMail::Written(copy, result))));
        self.writer.send(self.clock.now(), Command::Finish(ended, reply));
    }

    fn written(&mut self, ended: Box<Ended>, result: Result<bool, StoreError>) {
        if let Err(error) = result {
            log::error!("could not write how {} ended: {error}", ended.op);
            self.rewrites.push((self.clock.now().mono.after(REWRITE_AFTER), ended));
        }
    }
}

fn progress(work: &Work, attempts: u32, now: Now) -> Progress {
    Progress {
        kind: work.kind,
        attempts,
        expired: now.wall > work.deadline_at,
        unsettled: work.settle_at.is_some_and(|at| now.wall <= at),
    }
}

/// A pool that calls agents and posts what they answered.
pub(super) fn pool(
    agent: AgentClient,
    clock: Arc<dyn Clock>,
    writer: WriterHandle,
    presence: Arc<Presence>,
    post: Sender<OpMail>,
) -> Pool<CallJob> {
    let run = move |job: CallJob| {
        let CallJob { work, attempts } = job;
        let outcome = match writer.call(clock.now(), |reply| Command::Sent(work.op, reply)) {
            Ok(true) => ask(&agent, &presence, &work, clock.now()),
            Ok(false) => Outcome::Over,
            // Not noted, so not asked: tried again like an agent that was not reached.
            Err(error) => Outcome::Told(Call::NotReached, None, Some(error.to_string())),
        };
        drop(post.send(OpMail::Called(Box::new(Called { work, attempts, outcome }))));
    };
    Pool::new("operation", CALLS_MAX, Box::new(run))
}

fn ask(agent: &AgentClient, presence: &Presence, work: &Work, now: Now) -> Outcome {
    let Some(at) = presence.get(work.host).and_then(|host| host.address) else {
        return Outcome::Told(Call::NotReached, None, Some("the host has no address".to_owned()));
    };
    let left = work.deadline_at.since(now.wall).max(CALL_DEADLINE_MIN);
    let result = match work.kind {
        OperationKind::Create => {
            agent.create(work.host, &at, &create_request(work), left).map(Some)
        }
        OperationKind::Resume => {
            agent.resume(work.host, &at, &resume_request(work), left).map(Some)
        }
        OperationKind::Pause => agent.pause(work.host, &at, work.sandbox, left).map(|()| None),
        OperationKind::Destroy => {
            agent.destroy(work.host, &at, work.sandbox, work.kind.deadline()).map(|()| None)
        }
    };
    match result {
        Ok(details) => Outcome::Told(Call::Succeeded, details, None),
        Err(error) => {
            log::info!("{} of {} on {}: {error}", work.kind, work.sandbox, work.host);
            Outcome::Told(call_of(&error), None, Some(error.to_string()))
        }
    }
}

fn create_request(work: &Work) -> CreateSandboxRequest<'_> {
    CreateSandboxRequest {
        sandbox_id: work.sandbox.to_string().into(),
        template: work.template.as_deref().unwrap_or_default().into(),
        vcpus: small(work.vcpus.map(i64::from)),
        memory_mb: small(work.memory_mb.and_then(|n| i64::try_from(n).ok())),
        timeout_sec: small(work.timeout_sec),
        disk_size_mb: small(work.disk_size_mb.and_then(|n| i64::try_from(n).ok())),
        team_id: work.team.to_uuid().into(),
        ..CreateSandboxRequest::default()
    }
}

fn resume_request(work: &Work) -> ResumeSandboxRequest<'_> {
    ResumeSandboxRequest {
        sandbox_id: work.sandbox.to_string().into(),
        timeout_sec: small(work.timeout_sec),
        kernel_version: kernel_version(work).unwrap_or_default().into(),
        ..ResumeSandboxRequest::default()
    }
}

/// A snapshot runs on the kernel that it was made with.
fn kernel_version(work: &Work) -> Option<String> {
    let metadata: serde_json::Value = serde_json::from_str(work.metadata.as_deref()?).ok()?;
    metadata["kernel_version"].as_str().map(str::to_owned)
}

/// The wire's numbers are 32 bits; larger ones were refused at the edge.
fn small(number: Option<i64>) -> i32 {
    number.and_then(|n| i32::try_from(n).ok()).unwrap_or_default()
}

fn call_of(error: &CallError) -> Call {
    if error.is_snapshot_gone() {
        return Call::Gone;
    }
    match error {
        CallError::NotReached { .. } => Call::NotReached,
        CallError::Unknown { .. } | CallError::Malformed { .. } => Call::Unknown,
        CallError::Refused { code, .. } => match code {
            ConnectCode::AlreadyExists => Call::Exists,
            // The agent, or something before it, gave up; what it did until then is not said.
            ConnectCode::Canceled | ConnectCode::DeadlineExceeded | ConnectCode::Unknown => {
                Call::Unknown
            }
            ConnectCode::Unavailable => Call::NotReached,
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
