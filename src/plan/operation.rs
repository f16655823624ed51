//! Owns how a lifecycle operation proceeds: after the agent's answer to the call, and, when
//! that says too little, after an observation of the host.
//!
//! Never: calls an agent. What it leaves open when the deadline passes, the table of
//! `reconcile` settles.

use super::observation::CLOCK_TOLERANCE;
use super::reconcile::{Look, OperationState, Report};
use crate::model::operation::OperationKind;
use crate::model::policy::CONFIRMATIONS;
use crate::model::sandbox::{Reason, SandboxStatus};
use crate::model::time::Wall;
use std::time::Duration;

/// First delay before a call that did not reach the agent is made again; doubles.
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// Longest delay between two calls. Larger and a destroy waits long after its host is
/// back; smaller and a dead host is knocked at all the time.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Calls that certainly were not carried out after which a create fails when no other host
/// takes it. Larger and a user waits for a host that is dead; smaller and an agent that is
/// being restarted fails creates.
const CREATE_ATTEMPTS_MAX: u32 = 3;

/// The same for a pause, a resume or a snapshot, which no other host can carry out: half a
/// minute with the delays between them.
const ATTEMPTS_MAX: u32 = 5;

/// Time between two observations of a host while an outcome is not known. Larger and users
/// wait for what is long done; smaller and a host in trouble is asked all the time.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A call that is not answered for so long is watched beside it. Larger and a lost answer
/// hides for longer; smaller and every usual create costs a probe.
pub const LOOK_BESIDE_AFTER: Duration = Duration::from_secs(15);

/// Time before an agent that has no snapshot is asked again. An agent that was restarted
/// says so until it has read its disk. Larger and a user waits for what is really gone;
/// smaller and an agent that reads for long is believed.
pub const SNAPSHOT_GONE_AGAIN_AFTER: Duration = Duration::from_secs(20);

/// What is known of a call to an agent. The agent's codes are coarse: what matters is
/// whether it was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Carried out.
    Succeeded,
    /// The agent has no sandbox, or no snapshot, of this id.
    Gone,
    /// The agent says that there is one already.
    Exists,
    /// Not carried out.
    Refused,
    /// Not carried out: the agent takes no work now, because it shuts down or is full.
    Declined,
    /// Never reached the agent.
    NotReached,
    /// Perhaps carried out.
    Unknown,
}

/// What the agent has said of a call when its host is observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Nothing yet: the call is in progress, and may still be carried out.
    Outstanding,
    /// Nothing that could be understood, and nothing more will come. The agent may not have
    /// noticed that its caller is gone.
    Unclear,
    /// Nothing, and the call has ended with its connection: Roost was restarted, or the
    /// agent. Two observations that agree give the outcome.
    Ended,
    /// No.
    Refusal,
    /// No, after an earlier call of the same operation whose outcome is not known: that one
    /// may have been carried out.
    LateRefusal,
    /// It has no snapshot to resume from. Believed when it says so twice.
    NoSnapshot,
    /// Done; what became of the sandbox is for an observation to tell: it had to be sure that
    /// no call which was overtaken has succeeded since, or that made a template of it.
    Done,
}

/// What an earlier call of the same operation left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Earlier {
    /// There was none, or it was certainly not carried out.
    #[default]
    None,
    /// Its outcome is not known.
    Unknown,
    /// The agent had no snapshot.
    NoSnapshot,
}

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What was requested.
    pub kind: OperationKind,
    /// Calls made so far, this one included.
    pub attempts: u32,
    /// Time until the deadline passes.
    pub left: Duration,
    /// What calls before that left behind.
    pub earlier: Earlier,
    /// The destroy overtook another operation.
    pub overtook: Overtook,
}

/// What a destroy has to do with the operation that it overtook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overtook {
    /// There was none that makes a microVM.
    #[default]
    None,
    /// Its call is still in progress, and may yet succeed.
    InProgress,
    /// Its call has ended, perhaps with success.
    Ended,
}

/// What follows from a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// It has finished: the sandbox gets this status.
    Finish(SandboxStatus, Reason),
    /// The call is made again after this time.
    CallAfter(Duration),
    /// Another host is to carry it out; without one, this follows. `clean`: this agent
    /// itself refused, and is asked to destroy what it may have begun.
    PlaceElsewhere {
        /// See above.
        clean: bool,
        /// See above.
        without: Box<Next>,
    },
    /// An observation of the host decides.
    Look(Answer),
    /// Too late: the monitor settles what is left.
    LeaveToMonitor,
}

/// What follows from an observation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It tells too little; the next one follows after the usual time.
    Wait,
    /// It has finished: the sandbox gets this status.
    Finish(SandboxStatus, Reason),
    /// The call is made again.
    CallAgain(Earlier),
}

/// The transient status that belongs to an operation.
pub const fn transient(kind: OperationKind) -> SandboxStatus {
    match kind {
        OperationKind::Create => SandboxStatus::Starting,
        OperationKind::Pause | OperationKind::Snapshot => SandboxStatus::Pausing,
        OperationKind::Resume => SandboxStatus::Resuming,
        OperationKind::Destroy => SandboxStatus::Stopping,
    }
}

/// Whether an operation may begin in this status. A snapshot that the agent did not find may
/// be there all the same, so its sandbox may be resumed.
pub fn may_begin(kind: OperationKind, status: SandboxStatus, reason: Option<&Reason>) -> bool {
    match kind {
        OperationKind::Create => false,
        OperationKind::Pause => status == SandboxStatus::Running,
        OperationKind::Snapshot => {
            status == SandboxStatus::Running || status == SandboxStatus::Paused
        }
        OperationKind::Resume => {
            status == SandboxStatus::Paused
                || status == SandboxStatus::Stopped && reason == Some(&Reason::SnapshotGone)
        }
        // Terminal ones are recorded, and destroyed again where that can matter.
        OperationKind::Destroy => status != SandboxStatus::Stopped,
    }
}

/// Whether an operation is left over: its row has moved on, and no answer comes any more.
/// It would own the sandbox for ever. `answer` is what is known when its host is observed.
pub fn is_left_over(
    kind: OperationKind,
    status: SandboxStatus,
    state: OperationState,
    answer: Option<Answer>,
) -> bool {
    let is_unanswered = match (state, answer) {
        (OperationState::Expired, _) => true,
        (OperationState::Live, Some(Answer::Outstanding) | None) | (OperationState::None, _) => {
            false
        }
        (
            OperationState::Live,
            Some(
                Answer::Unclear
                | Answer::Ended
                | Answer::Refusal
                | Answer::LateRefusal
                | Answer::NoSnapshot
                | Answer::Done,
            ),
        ) => true,
    };
    is_unanswered && status != transient(kind)
}

/// Whether an operation's time is over. `listened`: for how long we have listened; after a
/// jump of the clock a deadline is not held against an operation before that is as long.
/// One that begins in the future tells of a clock that was set back. A destroy continues
/// until the agent says that it is done.
pub fn is_expired(
    kind: OperationKind,
    (created_at, deadline_at): (Wall, Wall),
    now: Wall,
    listened: Option<Duration>,
) -> bool {
    let past = now > deadline_at || created_at > now.after(CLOCK_TOLERANCE);
    past && kind != OperationKind::Destroy && listened.is_none_or(|span| span > kind.deadline())
}

/// What follows from the agent's answer to a call.
pub fn after_call(progress: Progress, call: Call) -> Next {
    use OperationKind::{Create, Destroy, Pause, Resume, Snapshot};
    let delay = backoff(progress.attempts);
    // A call that begins after the deadline may be carried out when its caller is gone.
    let retry_in_time = || match delay < progress.left {
        true => Next::CallAfter(delay),
        false => Next::LeaveToMonitor,
    };
    let retry_or =
        |max: u32, last: Next| if progress.attempts < max { retry_in_time() } else { last };
    let finish = |status, reason| Next::Finish(status, reason);
    let failed = |status| finish(status, Reason::OperationFailed);
    let refusal = || {
        Next::Look(match progress.earlier {
            Earlier::Unknown => Answer::LateRefusal,
            Earlier::None | Earlier::NoSnapshot => Answer::Refusal,
        })
    };
    match (progress.kind, call) {
        (Create | Resume, Call::Succeeded) => {
            finish(SandboxStatus::Running, Reason::OperationSucceeded)
        }
        (Pause, Call::Succeeded) => finish(SandboxStatus::Paused, Reason::OperationSucceeded),
        (Snapshot, Call::Succeeded) => Next::Look(Answer::Done),

        // The earlier call may be what stands in the way of this one.
        (Create | Resume, Call::Gone | Call::Refused) if progress.earlier == Earlier::Unknown => {
            refusal()
        }
        (Create, Call::Declined | Call::NotReached) if progress.earlier == Earlier::Unknown => {
            retry_in_time()
        }
        (Create, Call::Gone | Call::Refused) => failed(SandboxStatus::Error),
        (Create, Call::Declined | Call::NotReached) => Next::PlaceElsewhere {
            clean: call == Call::Declined,
            without: Box::new(retry_or(CREATE_ATTEMPTS_MAX, failed(SandboxStatus::Error))),
        },

        (Resume, Call::Gone) if progress.earlier == Earlier::NoSnapshot => {
            finish(SandboxStatus::Stopped, Reason::SnapshotGone)
        }
        (Resume, Call::Gone) => Next::Look(Answer::NoSnapshot),
        (Resume, Call::Refused) => failed(SandboxStatus::Paused),
        (Resume, Call::Declined | Call::NotReached) => {
            retry_or(ATTEMPTS_MAX, failed(SandboxStatus::Paused))
        }

        (Pause | Snapshot, Call::Gone | Call::Refused | Call::Exists) => refusal(),
        (Pause | Snapshot, Call::Declined | Call::NotReached) => retry_or(ATTEMPTS_MAX, refusal()),

        (Create | Resume, Call::Exists) => Next::Look(Answer::Unclear),
        (Create | Pause | Resume | Snapshot, Call::Unknown) => Next::Look(Answer::Unclear),

        (Destroy, Call::Succeeded | Call::Gone) => match progress.overtook {
            Overtook::None => finish(SandboxStatus::Stopped, Reason::OperationSucceeded),
            Overtook::InProgress => Next::CallAfter(delay),
            Overtook::Ended => Next::Look(Answer::Done),
        },
        // A destroy is retried until it succeeds.
        (
            Destroy,
            Call::Exists | Call::Refused | Call::Declined | Call::NotReached | Call::Unknown,
        ) => Next::CallAfter(delay),
    }
}

/// Whether the host is observed while a call of this kind is in progress. A destroy is sent
/// again instead.
pub const fn is_looked_after(kind: OperationKind) -> bool {
    match kind {
        OperationKind::Create
        | OperationKind::Pause
        | OperationKind::Resume
        | OperationKind::Snapshot => true,
        OperationKind::Destroy => false,
    }
}

/// What follows from an observation of the host before the deadline. `from` is the status in
/// which the operation began.
///
/// While the answer is outstanding only what the agent shows to be done counts. What it
/// does not list yet may be in the making, what it lists as running may be on its way to
/// being paused, and what has left the list may be announced a moment later.
pub fn after_look(
    kind: OperationKind,
    answer: Answer,
    from: Option<SandboxStatus>,
    look: Look,
) -> Outcome {
    let outcome = match kind {
        OperationKind::Create => create_after_look(answer, look),
        OperationKind::Resume => resume_after_look(answer, look),
        OperationKind::Pause => pause_after_look(answer, look),
        OperationKind::Snapshot => snapshot_after_look(answer, from, look),
        OperationKind::Destroy => destroy_after_look(answer, look),
    };
    // The agent may list a sandbox as failed before it has said so to its caller.
    let is_failure = look.report == Report::Error && kind != OperationKind::Destroy;
    match is_failure && answer != Answer::Outstanding {
        true => Outcome::Finish(SandboxStatus::Error, Reason::ListedError),
        false => outcome,
    }
}

/// The call is made again when two observations agree that it was not carried out.
fn call_again_if_confirmed(look: Look) -> Outcome {
    match look.agreeing >= CONFIRMATIONS {
        true => Outcome::CallAgain(Earlier::Unknown),
        false => Outcome::Wait,
    }
}

fn found_paused(look: Look) -> Outcome {
    let reason = match look.report {
        Report::AutoPaused => Reason::AutoPaused,
        Report::Running | Report::Paused | Report::Error | Report::Absent => Reason::ListedPaused,
    };
    Outcome::Finish(SandboxStatus::Paused, reason)
}

const FOUND_RUNNING: Outcome = Outcome::Finish(SandboxStatus::Running, Reason::ListedRunning);

fn create_after_look(answer: Answer, look: Look) -> Outcome {
    let confirmed = look.agreeing >= CONFIRMATIONS;
    match (look.report, answer) {
        (Report::Running, _) => FOUND_RUNNING,
        // It was made, and has paused itself since.
        (Report::Paused | Report::AutoPaused, _) => found_paused(look),
        // Agents list a sandbox only when it is ready.
        (Report::Absent, Answer::Ended) => call_again_if_confirmed(look),
        // The earlier call made it, and the agent paused it with everything else: it refuses to
        // make it twice.
        (Report::Absent, Answer::LateRefusal) if confirmed && look.contact_gap => {
            Outcome::Finish(SandboxStatus::Paused, Reason::PresumedPaused)
        }
        (Report::Absent, Answer::LateRefusal) if confirmed => {
            Outcome::Finish(SandboxStatus::Error, Reason::OperationFailed)
        }
        (
            Report::Absent,
            Answer::Outstanding
            | Answer::Unclear
            | Answer::Refusal
            | Answer::LateRefusal
            | Answer::NoSnapshot
            | Answer::Done,
        )
        | (Report::Error, _) => Outcome::Wait,
    }
}

fn resume_after_look(answer: Answer, look: Look) -> Outcome {
    match (look.report, answer) {
        (Report::Running, _) => FOUND_RUNNING,
        (Report::Paused | Report::AutoPaused | Report::Absent, Answer::Ended) => {
            call_again_if_confirmed(look)
        }
        // That it is not shown running is all that this observation has to say.
        (Report::Paused | Report::AutoPaused | Report::Absent, Answer::NoSnapshot) => {
            Outcome::CallAgain(Earlier::NoSnapshot)
        }
        (Report::Paused | Report::AutoPaused | Report::Absent, Answer::LateRefusal)
            if look.agreeing >= CONFIRMATIONS =>
        {
            Outcome::Finish(SandboxStatus::Paused, Reason::OperationFailed)
        }
        // Newer agents list it as paused until it runs.
        (
            Report::Paused | Report::AutoPaused | Report::Absent,
            Answer::Outstanding
            | Answer::Unclear
            | Answer::Refusal
            | Answer::LateRefusal
            | Answer::Done,
        )
        | (Report::Error, _) => Outcome::Wait,
    }
}

fn pause_after_look(answer: Answer, look: Look) -> Outcome {
    let confirmed = look.agreeing >= CONFIRMATIONS;
    let finish = |status, reason| Outcome::Finish(status, reason);
    match (look.report, answer) {
        (Report::Paused | Report::AutoPaused, _) => found_paused(look),
        (Report::Running, Answer::Refusal | Answer::LateRefusal) => {
            finish(SandboxStatus::Running, Reason::OperationFailed)
        }
        (Report::Running, Answer::Ended) => call_again_if_confirmed(look),
        (Report::Absent, Answer::Unclear | Answer::Ended | Answer::LateRefusal) => {
            finish(SandboxStatus::Paused, Reason::PauseFinished)
        }
        // It left the list and may be announced a moment later.
        (Report::Absent, Answer::Refusal) if !confirmed => Outcome::Wait,
        // It refused because it had paused everything before, and announced nothing.
        (Report::Absent, Answer::Refusal) if look.contact_gap => {
            finish(SandboxStatus::Paused, Reason::PresumedPaused)
        }
        (Report::Absent, Answer::Refusal) => finish(SandboxStatus::Error, Reason::OperationFailed),
        // Agents list a sandbox as running also while it is being paused.
        (
            Report::Running,
            Answer::Outstanding | Answer::Unclear | Answer::NoSnapshot | Answer::Done,
        )
        | (Report::Absent, Answer::Outstanding | Answer::NoSnapshot | Answer::Done)
        | (Report::Error, _) => Outcome::Wait,
    }
}

/// Older agents destroy the sandbox once its template is made; newer ones let it continue.
fn snapshot_after_look(answer: Answer, from: Option<SandboxStatus>, look: Look) -> Outcome {
    let confirmed = look.agreeing >= CONFIRMATIONS;
    let reason = match answer {
        Answer::Done => Reason::OperationSucceeded,
        Answer::Outstanding
        | Answer::Unclear
        | Answer::Ended
        | Answer::Refusal
        | Answer::LateRefusal
        | Answer::NoSnapshot => Reason::OperationFailed,
    };
    let was_paused = from == Some(SandboxStatus::Paused);
    match (look.report, answer) {
        (_, Answer::Outstanding) | (Report::Error, _) => Outcome::Wait,
        // The agent may not have noticed that its caller is gone.
        (Report::Running, Answer::Unclear | Answer::Ended) if !confirmed => Outcome::Wait,
        (Report::Running, _) => Outcome::Finish(SandboxStatus::Running, reason),
        (Report::Paused | Report::AutoPaused, _) => Outcome::Finish(SandboxStatus::Paused, reason),
        (Report::Absent, _) if !confirmed => Outcome::Wait,
        (Report::Absent, Answer::Done) => {
            Outcome::Finish(SandboxStatus::Stopped, Reason::Snapshotted)
        }
        // Older agents list nothing that is paused, before or after.
        (Report::Absent, _) if was_paused => Outcome::Finish(SandboxStatus::Paused, reason),
        // Only an agent that has made the template gives a running sandbox up.
        (Report::Absent, Answer::Unclear | Answer::Ended | Answer::LateRefusal) => {
            Outcome::Finish(SandboxStatus::Stopped, Reason::Snapshotted)
        }
        (Report::Absent, Answer::Refusal | Answer::NoSnapshot) if look.contact_gap => {
            Outcome::Finish(SandboxStatus::Paused, Reason::PresumedPaused)
        }
        (Report::Absent, Answer::Refusal | Answer::NoSnapshot) => {
            Outcome::Finish(SandboxStatus::Error, Reason::OperationFailed)
        }
    }
}

/// A destroy that overtook a create is done when nothing of it has appeared since.
fn destroy_after_look(answer: Answer, look: Look) -> Outcome {
    match (look.report, answer) {
        (Report::Absent, Answer::Done) if look.agreeing >= CONFIRMATIONS => {
            Outcome::Finish(SandboxStatus::Stopped, Reason::OperationSucceeded)
        }
        (Report::Absent, _) => Outcome::Wait,
        (Report::Running | Report::Paused | Report::Error | Report::AutoPaused, Answer::Done) => {
            Outcome::CallAgain(Earlier::None)
        }
        (
            Report::Running | Report::Paused | Report::Error | Report::AutoPaused,
            Answer::Outstanding
            | Answer::Unclear
            | Answer::Ended
            | Answer::Refusal
            | Answer::LateRefusal
            | Answer::NoSnapshot,
        ) => Outcome::Wait,
    }
}

/// Whether an operation that ended so has made its template.
pub fn has_made_template(kind: OperationKind, reason: &Reason) -> bool {
    kind == OperationKind::Snapshot
        && matches!(reason, Reason::OperationSucceeded | Reason::Snapshotted)
}

fn backoff(attempts: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(8);
    (RETRY_FIRST * 2u32.pow(doublings)).min(RETRY_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    const CALLS: [Call; 7] = [
        Call::Succeeded,
        Call::Gone,
        Call::Exists,
        Call::Refused,
        Call::Declined,
        Call::NotReached,
        Call::Unknown,
    ];

    const ANSWERS: [Answer; 7] = [
        Answer::Outstanding,
        Answer::Unclear,
        Answer::Ended,
        Answer::Refusal,
        Answer::LateRefusal,
        Answer::NoSnapshot,
        Answer::Done,
    ];

    const EARLIER: [Earlier; 3] = [Earlier::None, Earlier::Unknown, Earlier::NoSnapshot];

    const OVERTOOK: [Overtook; 3] = [Overtook::None, Overtook::InProgress, Overtook::Ended];

    const REPORTS: [Report; 5] =
        [Report::Running, Report::Paused, Report::Error, Report::AutoPaused, Report::Absent];

    fn progress(kind: OperationKind) -> Progress {
        let (earlier, overtook) = (Earlier::None, Overtook::None);
        Progress { kind, attempts: 1, left: kind.deadline(), earlier, overtook }
    }

    /// Every combination of what a call can follow.
    fn every_progress() -> impl Iterator<Item = Progress> {
        let kinds = OperationKind::ALL.iter().copied();
        kinds.flat_map(|kind| {
            EARLIER.into_iter().flat_map(move |earlier| {
                OVERTOOK.into_iter().flat_map(move |overtook| {
                    [1, 2, 3, 5, 500].into_iter().flat_map(move |attempts| {
                        [0, 60].map(|left| {
                            let left = Duration::from_secs(left);
                            Progress { kind, attempts, left, earlier, overtook }
                        })
                    })
                })
            })
        })
    }

    #[test]
    fn after_every_call() {
        let mut seen = String::new();
        for &kind in OperationKind::ALL {
            for call in CALLS {
                let next = after_call(progress(kind), call);
                let _ = writeln!(seen, "{kind} {call:?}: {next:?}");
                for earlier in [Earlier::Unknown, Earlier::NoSnapshot] {
                    let other = after_call(Progress { earlier, ..progress(kind) }, call);
                    if other != next {
                        let _ = writeln!(seen, "  earlier {earlier:?}: {other:?}");
                    }
                }
                let late = after_call(Progress { attempts: 5, ..progress(kind) }, call);
                if late != next {
                    let _ = writeln!(seen, "  fifth time: {late:?}");
                }
            }
        }
        expect_test::expect_file!["golden/operation-calls.txt"].assert_eq(&seen);
    }

    #[test]
    fn after_every_look() {
        let mut seen = String::new();
        for &kind in OperationKind::ALL {
            for answer in ANSWERS {
                for report in REPORTS {
                    let after = |agreeing, contact_gap, from| {
                        after_look(kind, answer, from, Look { report, agreeing, contact_gap })
                    };
                    let first = after(1, false, None);
                    let second = after(2, false, None);
                    let gap = after(2, true, None);
                    let paused = after(2, false, Some(SandboxStatus::Paused));
                    let _ = write!(seen, "{kind} {answer:?} {report:?}: {first:?}");
                    if second != first {
                        let _ = write!(seen, " then {second:?}");
                    }
                    if gap != second {
                        let _ = write!(seen, ", after a gap {gap:?}");
                    }
                    if paused != second {
                        let _ = write!(seen, ", from paused {paused:?}");
                    }
                    seen.push('\n');
                }
            }
        }
        expect_test::expect_file!["golden/operation-looks.txt"].assert_eq(&seen);
    }

    #[test]
    fn an_outstanding_answer_is_overruled_by_positive_evidence_only() {
        for &kind in OperationKind::ALL {
            for report in REPORTS {
                let look = Look { report, agreeing: 99, contact_gap: true };
                let outcome = after_look(kind, Answer::Outstanding, None, look);
                let shown = match report {
                    Report::Running => Some(SandboxStatus::Running),
                    Report::Paused | Report::AutoPaused => Some(SandboxStatus::Paused),
                    Report::Error | Report::Absent => None,
                };
                match outcome {
                    Outcome::Wait => {}
                    Outcome::Finish(to, _) => assert_eq!(Some(to), shown, "{kind} {report:?}"),
                    Outcome::CallAgain(_) => panic!("{kind} is called twice at a time"),
                }
            }
        }
    }

    /// A call whose outcome is not known may be carried out yet: only where its connection
    /// has certainly ended, or the agent itself said no, is it made again.
    #[test]
    fn nothing_is_called_again_that_may_be_in_progress() {
        for &kind in OperationKind::ALL {
            for (answer, report) in ANSWERS.iter().flat_map(|a| REPORTS.map(|r| (*a, r))) {
                for agreeing in [1, 2] {
                    let look = Look { report, agreeing, contact_gap: false };
                    let again = after_look(kind, answer, None, look);
                    if let Outcome::CallAgain(_) = again {
                        let ended = answer == Answer::Ended && agreeing == 2;
                        let said = answer == Answer::NoSnapshot || answer == Answer::Done;
                        assert!(ended || said, "{kind} {answer:?} {report:?}");
                        assert!(report != Report::Running || kind != OperationKind::Resume);
                    }
                }
            }
        }
    }

    #[test]
    fn a_deadline_passes_by_a_clock_that_is_believed() {
        let at = |s: i64| Wall(1_000_000_000 + s * 1000);
        let expired = |kind: OperationKind, now_s, listened_s| {
            let deadline_s = kind.deadline().as_secs() as i64;
            let listened = Some(Duration::from_secs(listened_s));
            is_expired(kind, (at(0), at(deadline_s)), at(now_s), listened)
        };
        assert!(!expired(OperationKind::Create, 120, 9999));
        assert!(expired(OperationKind::Create, 121, 9999));
        assert!(!expired(OperationKind::Create, 121, 120), "perhaps only the clock moved");
        assert!(expired(OperationKind::Create, -86_400, 121), "the clock was set back");
        assert!(!expired(OperationKind::Create, -4, 9999));
        assert!(!expired(OperationKind::Destroy, 999_999, 999_999), "never given up");
    }

    #[test]
    fn what_is_left_over_owns_nothing() {
        use OperationState::{Expired, Live};
        let left =
            |status, state, answer| is_left_over(OperationKind::Resume, status, state, answer);
        assert!(left(SandboxStatus::Running, Live, Some(Answer::Unclear)));
        assert!(left(SandboxStatus::Running, Live, Some(Answer::Ended)));
        assert!(left(SandboxStatus::Running, Expired, None));
        assert!(!left(SandboxStatus::Running, Live, None), "the answer says more");
        assert!(!left(SandboxStatus::Running, Live, Some(Answer::Outstanding)));
        assert!(!left(SandboxStatus::Resuming, Expired, Some(Answer::Unclear)));
    }

    #[test]
    fn a_snapshot_is_given_up_only_when_the_agent_has_none_twice() {
        for (at, call) in every_progress().flat_map(|at| CALLS.map(|call| (at, call))) {
            if let Next::Finish(SandboxStatus::Stopped, _) = after_call(at, call) {
                let destroyed = at.kind == OperationKind::Destroy && at.overtook == Overtook::None;
                let gone = at.kind == OperationKind::Resume
                    && call == Call::Gone
                    && at.earlier == Earlier::NoSnapshot;
                assert!(destroyed || gone, "{at:?} {call:?}");
            }
        }
    }

    #[test]
    fn a_destroy_ends_only_by_success() {
        for at in every_progress().filter(|at| at.kind == OperationKind::Destroy) {
            for call in CALLS {
                let next = after_call(at, call);
                let said = matches!(call, Call::Succeeded | Call::Gone);
                match next {
                    Next::CallAfter(delay) => {
                        assert!(!said || at.overtook == Overtook::InProgress);
                        assert!((RETRY_FIRST..=RETRY_MAX).contains(&delay));
                    }
                    Next::Finish(..) => assert!(said && at.overtook == Overtook::None),
                    Next::Look(Answer::Done) => assert!(said && at.overtook == Overtook::Ended),
                    Next::PlaceElsewhere { .. } | Next::Look(_) | Next::LeaveToMonitor => {
                        panic!("{at:?} {call:?}: {next:?}")
                    }
                }
            }
        }
    }

    /// Two hosts never run one sandbox: only a create that this host certainly did not carry
    /// out goes to another.
    #[test]
    fn only_what_was_certainly_not_carried_out_is_placed_elsewhere() {
        for (at, call) in every_progress().flat_map(|at| CALLS.map(|call| (at, call))) {
            if let Next::PlaceElsewhere { clean, .. } = after_call(at, call) {
                assert_eq!(
                    (at.kind, at.earlier == Earlier::Unknown),
                    (OperationKind::Create, false)
                );
                assert!(matches!(call, Call::Declined | Call::NotReached));
                assert_eq!(clean, call == Call::Declined);
            }
        }
    }

    #[test]
    fn no_call_but_a_destroy_begins_after_its_deadline() {
        for &kind in OperationKind::ALL.iter().filter(|kind| **kind != OperationKind::Destroy) {
            for call in [Call::NotReached, Call::Declined] {
                let next = |left| match after_call(Progress { left, ..progress(kind) }, call) {
                    Next::PlaceElsewhere { without, .. } => *without,
                    next @ (Next::Finish(..)
                    | Next::CallAfter(_)
                    | Next::Look(_)
                    | Next::LeaveToMonitor) => next,
                };
                assert_eq!(next(RETRY_FIRST), Next::LeaveToMonitor);
                let in_time = RETRY_FIRST + Duration::from_millis(1);
                assert_eq!(next(in_time), Next::CallAfter(RETRY_FIRST));
            }
        }
    }

    /// What was never carried out is over within a minute, whatever its deadline.
    #[test]
    fn what_no_agent_takes_fails_soon() {
        for &kind in OperationKind::ALL.iter().filter(|kind| **kind != OperationKind::Destroy) {
            for call in [Call::NotReached, Call::Declined] {
                let (mut attempts, mut waited) = (0, Duration::ZERO);
                loop {
                    attempts += 1;
                    let at = Progress { attempts, ..progress(kind) };
                    let next = match after_call(at, call) {
                        Next::PlaceElsewhere { without, .. } => *without,
                        next @ (Next::Finish(..)
                        | Next::CallAfter(_)
                        | Next::Look(_)
                        | Next::LeaveToMonitor) => next,
                    };
                    if matches!(next, Next::Finish(..) | Next::Look(Answer::Refusal)) {
                        break;
                    }
                    let Next::CallAfter(delay) = next else { panic!("{kind} {call:?}: {next:?}") };
                    waited += delay;
                }
                assert!(waited < Duration::from_secs(60), "{kind} takes {waited:?}");
            }
        }
    }

    #[test]
    fn what_may_begin_where() {
        let mut seen = String::new();
        for &kind in OperationKind::ALL {
            let may = |status: &&SandboxStatus| may_begin(kind, **status, None);
            let from: Vec<&str> =
                SandboxStatus::ALL.iter().filter(may).map(|status| status.as_str()).collect();
            let _ = writeln!(seen, "{kind}: {}", from.join(", "));
        }
        expect_test::expect![[r#"
            create: 
            pause: running
            resume: paused
            destroy: pending, starting, running, pausing, paused, resuming, stopping, missing, error, hibernated
            snapshot: running, paused
        "#]]
        .assert_eq(&seen);
        let gone = Some(&Reason::SnapshotGone);
        assert!(may_begin(OperationKind::Resume, SandboxStatus::Stopped, gone));
    }
}
