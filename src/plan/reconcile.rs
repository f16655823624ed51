//! Owns the table of behaviour.md section 4: what one report means for one sandbox.
//!
//! Never: looks at a second sandbox (`observation` does), counts looks, knows an agent.

use crate::model::policy::{CONFIRMATIONS, Policy};
use crate::model::sandbox::{Reason, SandboxStatus};
use std::time::Duration;

/// What the database says of one sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Its status.
    pub status: SandboxStatus,
    /// Whether a `stopped` was a user's request. Anything else that ended a sandbox is no
    /// proof against a host that shows it alive.
    pub ended_by_user: bool,
    /// Time since its last status change that can be held against it.
    pub age: Duration,
    /// Whether an operation owns it.
    pub operation: OperationState,
}

/// Whether an unfinished operation owns a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OperationState {
    /// None unfinished.
    None,
    /// Unfinished, before its deadline.
    Live,
    /// Unfinished, past its deadline.
    Expired,
}

/// What one observation says of one id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Report {
    /// Listed, any status but paused.
    Running,
    /// Listed as paused.
    Paused,
    /// Listed as failed.
    Error,
    /// Not listed, but announced as paused by the agent itself.
    AutoPaused,
    /// Neither.
    Absent,
}

/// What surrounds a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// The report.
    pub report: Report,
    /// Whether the agent may have paused everything unannounced since it was last seen.
    pub contact_gap: bool,
    /// Looks in a row that said the same of the same row, this one included, each at
    /// least `confirm_delay` after the one before.
    pub agreeing: u32,
}

/// What follows from one report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nothing.
    Keep,
    /// Another look must say the same first.
    Confirm,
    /// The row changes.
    Move(SandboxStatus, Reason),
    /// What was asked of the agent is asked again.
    Again(Action),
    /// Alive on the host and over for us.
    Zombie,
}

/// What can be asked of an agent a second time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// A pause that left the sandbox running.
    Pause,
    /// A destroy that left the sandbox there.
    Destroy,
}

/// Decides for one sandbox; `known` is `None` for an id without a row. Total.
pub fn reconcile(known: Option<Known>, look: Look, policy: &Policy) -> Decision {
    match (known, policy.is_strict()) {
        // The recorded mapping knows no operations; one that is under way keeps its row.
        (Some(known), true) if known.operation == OperationState::Live => {
            match strict(known.status, look.report) {
                promoted @ Decision::Move(SandboxStatus::Running, _) => promoted,
                Decision::Move(..)
                | Decision::Keep
                | Decision::Confirm
                | Decision::Again(_)
                | Decision::Zombie => Decision::Keep,
            }
        }
        (Some(known), true) => strict(known.status, look.report),
        (None, true) => Decision::Keep,
        (Some(known), false) => default(known, look, policy),
        (None, false) => match look.report {
            Report::Running | Report::Paused | Report::Error | Report::AutoPaused => {
                Decision::Zombie
            }
            Report::Absent => Decision::Keep,
        },
    }
}

fn default(known: Known, look: Look, policy: &Policy) -> Decision {
    use Decision::{Again, Keep, Move, Zombie};
    use Report::{Absent, AutoPaused, Error, Paused, Running};
    use SandboxStatus as S;

    let confirmed =
        |decision| if look.agreeing >= CONFIRMATIONS { decision } else { Decision::Confirm };
    let owned = known.operation == OperationState::Live;
    let in_grace = owned || known.age <= policy.transient_grace;
    let after_grace = |decision| if in_grace { Keep } else { decision };
    let unless_owned = |decision| if owned { Keep } else { decision };
    let paused = Move(
        S::Paused,
        match look.report {
            Paused => Reason::ListedPaused,
            Running | Error | AutoPaused | Absent => Reason::AutoPaused,
        },
    );
    let failed = Move(S::Error, Reason::ListedError);

    match (known.status, look.report) {
        (S::Running, Running) => Keep,
        (S::Running, Paused | AutoPaused) => unless_owned(paused),
        (S::Running, Absent) if owned => Keep,
        (S::Running, Absent) if look.contact_gap => {
            confirmed(Move(S::Paused, Reason::PresumedPaused))
        }
        (S::Running, Absent) => confirmed(Move(S::Stopped, Reason::Vanished)),

        (S::Running | S::Paused | S::Starting | S::Resuming | S::Pausing, Error) => {
            unless_owned(failed)
        }
        (S::Missing, Error) => failed,

        (S::Missing, Running) => Move(S::Running, Reason::Restored),
        (S::Missing, Paused | AutoPaused) => paused,
        (S::Missing, Absent) => confirmed(Move(S::Paused, Reason::PresumedPaused)),

        (S::Starting | S::Resuming, Running) => Move(S::Running, Reason::ListedRunning),
        (S::Starting | S::Resuming, Paused | AutoPaused) => unless_owned(paused),
        // It may have been made, and paused with everything else behind the gap.
        (S::Starting, Absent) if look.contact_gap => {
            after_grace(confirmed(Move(S::Paused, Reason::PresumedPaused)))
        }
        (S::Starting, Absent) => after_grace(Move(S::Error, Reason::NotStarted)),
        (S::Resuming, Absent) => after_grace(Move(S::Paused, Reason::NotResumed)),

        (S::Pausing, Running) => after_grace(Again(Action::Pause)),
        (S::Pausing, Paused | AutoPaused) => unless_owned(paused),
        (S::Pausing, Absent) => after_grace(Move(S::Paused, Reason::PauseFinished)),

        (S::Stopping, Running | Paused | Error | AutoPaused) => after_grace(Again(Action::Destroy)),
        (S::Stopping, Absent) => after_grace(Move(S::Stopped, Reason::DestroyFinished)),

        (S::Paused, Running) => confirmed(Move(S::Running, Reason::Adopted)),
        (S::Paused, Paused | AutoPaused | Absent) => Keep,

        (S::Stopped, Running | Paused | Error | AutoPaused) if known.ended_by_user => Zombie,
        (S::Stopped | S::Error, Running) => Move(S::Running, Reason::Adopted),
        (S::Stopped | S::Error, Paused | AutoPaused) => paused,
        (S::Stopped, Error) => failed,
        (S::Error, Error) | (S::Stopped | S::Error, Absent) => Keep,

        (S::Pending | S::Hibernated, Running | Paused | Error | AutoPaused | Absent) => Keep,
    }
}

fn strict(status: SandboxStatus, report: Report) -> Decision {
    use Decision::{Keep, Move};
    use SandboxStatus as S;

    let alive = match report {
        Report::Running | Report::Paused | Report::Error => true,
        Report::AutoPaused | Report::Absent => false,
    };
    match (status, alive) {
        (S::Running | S::Pausing | S::Stopping, true) => Keep,
        (S::Running, false) => match report {
            Report::AutoPaused => Move(S::Paused, Reason::AutoPaused),
            Report::Running | Report::Paused | Report::Error | Report::Absent => {
                Move(S::Stopped, Reason::Vanished)
            }
        },
        (S::Missing, true) => Move(S::Running, Reason::Restored),
        (S::Missing, false) => Move(S::Stopped, Reason::Vanished),
        (S::Starting | S::Resuming, true) => Move(S::Running, Reason::ListedRunning),
        (S::Starting, false) => Move(S::Error, Reason::NotStarted),
        (S::Resuming, false) => Move(S::Error, Reason::NotResumed),
        (S::Pausing, false) => Move(S::Paused, Reason::PauseFinished),
        (S::Stopping, false) => Move(S::Stopped, Reason::DestroyFinished),
        (S::Pending | S::Paused | S::Stopped | S::Error | S::Hibernated, true | false) => Keep,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    const REPORTS: [Report; 5] =
        [Report::Running, Report::Paused, Report::Error, Report::AutoPaused, Report::Absent];
    const OPERATIONS: [OperationState; 3] =
        [OperationState::None, OperationState::Live, OperationState::Expired];

    /// Every combination of what a decision depends on.
    fn every() -> impl Iterator<Item = (Option<Known>, Look)> {
        let mut all = Vec::new();
        for &status in SandboxStatus::ALL {
            for ended_by_user in [false, true] {
                for age in [Duration::ZERO, Duration::from_secs(120), Duration::from_secs(121)] {
                    for operation in OPERATIONS {
                        all.push(Some(Known { status, ended_by_user, age, operation }));
                    }
                }
            }
        }
        all.push(None);
        all.into_iter().flat_map(|known| {
            let looks = REPORTS.iter().flat_map(|&report| {
                [false, true].into_iter().flat_map(move |contact_gap| {
                    (1..=3).map(move |agreeing| Look { report, contact_gap, agreeing })
                })
            });
            looks.map(move |look| (known, look)).collect::<Vec<_>>()
        })
    }

    /// One line for each status and report; a cell that depends on more shows every
    /// outcome in the order first look, confirmed, confirmed after a gap.
    fn table(policy: &Policy, operation: OperationState, age_s: u64) -> String {
        let mut out = String::new();
        let mut line = |name: String, known: Option<Known>| {
            let _ = write!(out, "{name:<22}");
            for report in REPORTS {
                let mut seen: Vec<String> = Vec::new();
                for (agreeing, contact_gap) in [(1, false), (2, false), (2, true)] {
                    let look = Look { report, contact_gap, agreeing };
                    let text = match reconcile(known, look, policy) {
                        Decision::Keep => "-".to_owned(),
                        Decision::Confirm => "confirm".to_owned(),
                        Decision::Move(to, reason) => format!("{to}({reason})"),
                        Decision::Again(action) => format!("again:{action:?}").to_lowercase(),
                        Decision::Zombie => "zombie".to_owned(),
                    };
                    if seen.last() != Some(&text) {
                        seen.push(text);
                    }
                }
                let _ = write!(out, " | {}", seen.join(" then "));
            }
            out.push('\n');
        };
        for &status in SandboxStatus::ALL {
            let age = Duration::from_secs(age_s);
            let known = |ended_by_user| Some(Known { status, ended_by_user, age, operation });
            line(status.to_string(), known(false));
            if status == SandboxStatus::Stopped {
                line("stopped by a user".to_owned(), known(true));
            }
        }
        line("no row".to_owned(), None);
        out
    }

    #[test]
    fn default_table_after_grace() {
        expect_test::expect_file!["golden/default-after-grace.txt"].assert_eq(&table(
            &Policy::default(),
            OperationState::None,
            600,
        ));
    }

    #[test]
    fn default_table_within_grace() {
        expect_test::expect_file!["golden/default-within-grace.txt"].assert_eq(&table(
            &Policy::default(),
            OperationState::None,
            5,
        ));
    }

    #[test]
    fn default_table_with_live_operation() {
        expect_test::expect_file!["golden/default-live-operation.txt"].assert_eq(&table(
            &Policy::default(),
            OperationState::Live,
            600,
        ));
    }

    #[test]
    fn strict_table() {
        expect_test::expect_file!["golden/strict.txt"].assert_eq(&table(
            &Policy::strict(),
            OperationState::None,
            600,
        ));
    }

    #[test]
    fn a_move_always_moves() {
        for (known, look) in every() {
            for policy in [Policy::default(), Policy::strict()] {
                if let Decision::Move(to, _) = reconcile(known, look, &policy) {
                    assert_ne!(Some(to), known.map(|k| k.status), "{known:?} {look:?}");
                }
            }
        }
    }

    #[test]
    fn alive_is_never_stopped_and_absence_is_never_proof_at_once() {
        let policy = Policy::default();
        for (known, look) in every() {
            let decision = reconcile(known, look, &policy);
            let to = match &decision {
                Decision::Move(to, _) => *to,
                Decision::Keep | Decision::Confirm | Decision::Again(_) | Decision::Zombie => {
                    continue;
                }
            };
            let status = known.map(|k| k.status);
            if look.report == Report::Running {
                assert_eq!(to, SandboxStatus::Running, "{known:?} {look:?}");
            }
            if to == SandboxStatus::Stopped && status != Some(SandboxStatus::Stopping) {
                assert!(look.agreeing >= 2 && !look.contact_gap, "{known:?} {look:?}");
                assert_eq!(look.report, Report::Absent);
            }
            if to == SandboxStatus::Error && look.report != Report::Error {
                assert_eq!(status, Some(SandboxStatus::Starting), "a snapshot is given up");
            }
        }
    }

    #[test]
    fn a_live_operation_is_overruled_only_by_a_running_sandbox() {
        for (known, look) in every() {
            let Some(known) = known.filter(|k| k.operation == OperationState::Live) else {
                continue;
            };
            if !known.status.is_transient() {
                continue;
            }
            let decision = reconcile(Some(known), look, &Policy::default());
            let promoted = Decision::Move(SandboxStatus::Running, Reason::ListedRunning);
            assert!(decision == Decision::Keep || decision == promoted, "{known:?} {look:?}");
        }
    }

    #[test]
    fn what_was_decided_stays_decided() {
        for (known, look) in every() {
            let Some(known) = known else { continue };
            let Decision::Move(to, reason) = reconcile(Some(known), look, &Policy::default())
            else {
                continue;
            };
            let after = Known {
                status: to,
                ended_by_user: reason == Reason::DestroyFinished,
                age: Duration::ZERO,
                operation: OperationState::None,
            };
            let again = reconcile(Some(after), Look { agreeing: 1, ..look }, &Policy::default());
            assert_eq!(again, Decision::Keep, "{known:?} {look:?} moved to {to}");
        }
    }
}
