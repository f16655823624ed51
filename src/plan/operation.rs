//! Owns how a lifecycle operation goes on: after the agent's answer to the call, and,
//! when that says too little, after a look at the host.
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

/// Time between two looks at the host while an outcome is not known. Larger and users wait
/// for what is long done; smaller and a host in trouble is asked all the time.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A call that is not answered for so long is looked after beside it. Larger and a lost
/// answer hides for longer; smaller and every usual create costs a probe.
pub const LOOK_BESIDE_AFTER: Duration = Duration::from_secs(15);

/// What is known of a call to an agent. The agent's codes are coarse (behaviour.md
/// section 7): what matters is whether it was carried out.
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
    /// Never reached the agent.
    NotReached,
    /// Perhaps carried out.
    Unknown,
}

/// What the agent has said of a call when its host is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Nothing yet: the call is under way, and may still be carried out.
    Outstanding,
    /// Nothing that could be understood, and nothing more will come.
    Unclear,
    /// No.
    Refusal,
}

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What was asked for.
    pub kind: OperationKind,
    /// Calls made so far, this one included.
    pub attempts: u32,
    /// Time until the deadline passes.
    pub left: Duration,
    /// A create that this destroy overtook may still come true.
    pub unsettled: bool,
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// It is over: the sandbox gets this status.
    Finish(SandboxStatus, Reason),
    /// The call is made again after this time.
    CallAfter(Duration),
    /// The host must be looked at.
    Look(Answer),
    /// Too late: the monitor settles what is left.
    LeaveToMonitor,
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

/// Whether an operation may begin in this status: the status is kept by a repeat of what
/// is under way, and destroying is allowed from everywhere but `stopped`.
pub const fn may_begin(kind: OperationKind, status: SandboxStatus) -> bool {
    match kind {
        OperationKind::Create => false,
        OperationKind::Pause => matches!(status, SandboxStatus::Running),
        OperationKind::Snapshot => matches!(status, SandboxStatus::Running | SandboxStatus::Paused),
        OperationKind::Resume => matches!(status, SandboxStatus::Paused),
        OperationKind::Destroy => !matches!(status, SandboxStatus::Stopped),
    }
}

/// Whether an operation is left over: its row has moved on, and no answer comes any more.
/// It would own the sandbox for ever. `answer` is what is known when its host is looked at.
pub fn is_left_over(
    kind: OperationKind,
    status: SandboxStatus,
    state: OperationState,
    answer: Option<Answer>,
) -> bool {
    let nobody_answers = match (state, answer) {
        (OperationState::Expired, _) => true,
        (OperationState::Live, Some(Answer::Unclear | Answer::Refusal)) => true,
        (OperationState::Live, Some(Answer::Outstanding) | None) | (OperationState::None, _) => {
            false
        }
    };
    nobody_answers && status != transient(kind)
}

/// Whether an operation's time is over. `listened`: for how long we have listened; after a
/// jump of the clock a deadline is not held against an operation before that is as long.
/// One that begins in the future tells of a clock that was set back. A destroy goes on
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
    let retry = || Next::CallAfter(delay);
    // A call that begins after the deadline may come true when nobody waits for it any more.
    let retry_in_time = || if delay < progress.left { retry() } else { Next::LeaveToMonitor };
    let finish = |status, reason| Next::Finish(status, reason);
    match (progress.kind, call) {
        (Create | Resume, Call::Succeeded) => {
            finish(SandboxStatus::Running, Reason::OperationSucceeded)
        }
        (Pause | Snapshot, Call::Succeeded) => {
            finish(SandboxStatus::Paused, Reason::OperationSucceeded)
        }

        (Create, Call::Gone | Call::Refused) => {
            finish(SandboxStatus::Error, Reason::OperationFailed)
        }
        (Resume, Call::Gone) => finish(SandboxStatus::Stopped, Reason::SnapshotGone),
        (Resume, Call::Refused) => finish(SandboxStatus::Paused, Reason::OperationFailed),
        (Pause | Snapshot, Call::Gone | Call::Refused | Call::Exists) => {
            Next::Look(Answer::Refusal)
        }
        (Create | Resume, Call::Exists) => Next::Look(Answer::Unclear),

        (Destroy, Call::Succeeded | Call::Gone) if progress.unsettled => retry(),
        (Destroy, Call::Succeeded | Call::Gone) => {
            finish(SandboxStatus::Stopped, Reason::OperationSucceeded)
        }
        // A destroy is never given up.
        (Destroy, Call::Exists | Call::Refused | Call::NotReached | Call::Unknown) => retry(),

        (Create | Pause | Resume | Snapshot, Call::NotReached) => retry_in_time(),
        (Create | Pause | Resume | Snapshot, Call::Unknown) => Next::Look(Answer::Unclear),
    }
}

/// Whether a call of this kind is looked after while it is under way. A destroy is asked
/// for again instead.
pub const fn is_looked_after(kind: OperationKind) -> bool {
    match kind {
        OperationKind::Create
        | OperationKind::Pause
        | OperationKind::Resume
        | OperationKind::Snapshot => true,
        OperationKind::Destroy => false,
    }
}

/// What follows from a look at the host before the deadline; `None` while it is still
/// open.
///
/// While the answer is outstanding only what the agent shows to be done counts. What it
/// does not list yet may be in the making, what it lists as running may be on its way to
/// being paused, and what has left the list may be announced a moment later.
pub fn after_look(
    kind: OperationKind,
    answer: Answer,
    look: Look,
) -> Option<(SandboxStatus, Reason)> {
    use Answer::{Outstanding, Refusal, Unclear};
    use OperationKind::{Create, Destroy, Pause, Resume, Snapshot};
    let paused = || match look.report {
        Report::AutoPaused => (SandboxStatus::Paused, Reason::AutoPaused),
        Report::Running | Report::Paused | Report::Absent => {
            (SandboxStatus::Paused, Reason::ListedPaused)
        }
    };
    match (kind, look.report, answer) {
        (Create | Resume, Report::Running, _) => {
            Some((SandboxStatus::Running, Reason::ListedRunning))
        }
        // It was made, and has paused itself since.
        (Create, Report::Paused | Report::AutoPaused, _) => Some(paused()),
        // Agents list a sandbox only when it is ready; newer ones list it as paused until then.
        (Create | Resume, Report::Absent, _) | (Resume, Report::Paused | Report::AutoPaused, _) => {
            None
        }

        (Pause, Report::Paused | Report::AutoPaused, _) => Some(paused()),
        (Pause, Report::Running, Refusal) => {
            Some((SandboxStatus::Running, Reason::OperationFailed))
        }
        // Agents list a sandbox as running also while it is being paused.
        (Pause, Report::Running, Outstanding | Unclear) => None,
        (Pause, Report::Absent, Outstanding) => None,
        (Pause, Report::Absent, Unclear) => Some((SandboxStatus::Paused, Reason::PauseFinished)),
        // It left the list and may be announced a moment later.
        (Pause, Report::Absent, Refusal) if look.agreeing < CONFIRMATIONS => None,
        // It refused because it had paused everything before, and announced nothing.
        (Pause, Report::Absent, Refusal) if look.contact_gap => {
            Some((SandboxStatus::Paused, Reason::PresumedPaused))
        }
        (Pause, Report::Absent, Refusal) => Some((SandboxStatus::Error, Reason::OperationFailed)),

        (
            Destroy | Snapshot,
            Report::Running | Report::Paused | Report::AutoPaused | Report::Absent,
            _,
        ) => None,
    }
}

fn backoff(attempts: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(8);
    (RETRY_FIRST * 2u32.pow(doublings)).min(RETRY_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    const CALLS: [Call; 6] =
        [Call::Succeeded, Call::Gone, Call::Exists, Call::Refused, Call::NotReached, Call::Unknown];

    const REPORTS: [Report; 4] =
        [Report::Running, Report::Paused, Report::AutoPaused, Report::Absent];

    fn progress(kind: OperationKind) -> Progress {
        Progress { kind, attempts: 1, left: kind.deadline(), unsettled: false }
    }

    #[test]
    fn after_every_call() {
        let mut seen = String::new();
        for &kind in OperationKind::ALL {
            for call in CALLS {
                let next = after_call(progress(kind), call);
                let _ = writeln!(seen, "{kind} {call:?}: {next:?}");
            }
        }
        expect_test::expect_file!["golden/operation-calls.txt"].assert_eq(&seen);
    }

    #[test]
    fn after_every_look() {
        let mut seen = String::new();
        for &kind in OperationKind::ALL {
            for answer in [Answer::Outstanding, Answer::Unclear, Answer::Refusal] {
                for report in REPORTS {
                    let after = |agreeing, contact_gap| {
                        after_look(kind, answer, Look { report, agreeing, contact_gap })
                    };
                    let (first, second, gap) = (after(1, false), after(2, false), after(2, true));
                    let _ = write!(seen, "{kind} {answer:?} {report:?}: {first:?} then {second:?}");
                    let _ = match gap == second {
                        true => writeln!(seen),
                        false => writeln!(seen, ", after a gap {gap:?}"),
                    };
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
                let told = after_look(kind, Answer::Outstanding, look);
                let shown = match report {
                    Report::Running => Some(SandboxStatus::Running),
                    Report::Paused | Report::AutoPaused => Some(SandboxStatus::Paused),
                    Report::Absent => None,
                };
                assert!(told.is_none() || told.map(|(to, _)| to) == shown, "{kind} {report:?}");
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
        assert!(left(SandboxStatus::Running, Expired, None));
        assert!(!left(SandboxStatus::Running, Live, None), "the answer says more");
        assert!(!left(SandboxStatus::Running, Live, Some(Answer::Outstanding)));
        assert!(!left(SandboxStatus::Resuming, Expired, Some(Answer::Unclear)));
    }

    #[test]
    fn a_snapshot_is_given_up_only_when_the_agent_has_none() {
        for &kind in OperationKind::ALL {
            for call in CALLS {
                for (left, unsettled) in [(60, false), (0, false), (0, true)] {
                    let left = Duration::from_secs(left);
                    let at = Progress { left, unsettled, ..progress(kind) };
                    if let Next::Finish(SandboxStatus::Stopped, _) = after_call(at, call) {
                        let destroyed = kind == OperationKind::Destroy && !unsettled;
                        let gone = kind == OperationKind::Resume && call == Call::Gone;
                        assert!(destroyed || gone, "{at:?} {call:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_destroy_ends_only_by_success() {
        for call in [Call::Exists, Call::Refused, Call::NotReached, Call::Unknown] {
            for attempts in [1, 5, 500] {
                let left = Duration::ZERO;
                let late = Progress { attempts, left, ..progress(OperationKind::Destroy) };
                let Next::CallAfter(delay) = after_call(late, call) else {
                    panic!("a destroy was given up after {call:?}");
                };
                assert!((RETRY_FIRST..=RETRY_MAX).contains(&delay));
            }
        }
        let overtook = Progress { unsettled: true, ..progress(OperationKind::Destroy) };
        assert!(matches!(after_call(overtook, Call::Gone), Next::CallAfter(_)));
    }

    #[test]
    fn no_call_but_a_destroy_begins_after_its_deadline() {
        for kind in [OperationKind::Create, OperationKind::Pause, OperationKind::Resume] {
            let next = |left| after_call(Progress { left, ..progress(kind) }, Call::NotReached);
            assert_eq!(next(RETRY_FIRST), Next::LeaveToMonitor);
            let in_time = RETRY_FIRST + Duration::from_millis(1);
            assert_eq!(next(in_time), Next::CallAfter(RETRY_FIRST));
        }
    }

    #[test]
    fn destroy_may_begin_everywhere_but_when_it_is_over() {
        for &status in SandboxStatus::ALL {
            let may = may_begin(OperationKind::Destroy, status);
            assert_eq!(may, status != SandboxStatus::Stopped);
        }
    }
}
