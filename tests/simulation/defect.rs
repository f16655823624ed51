//! Owns deliberate defects: what the harness withholds, falsifies or mistimes between the
//! real parts, as if one of Roost's own precautions were missing.
//!
//! Never: changes Roost's code. Each must be caught, or the simulation proves nothing.
//!
//! Where a defect breaks a rule that real agents taught (docs/reliability.md), its text names it.
//! The simulation cannot show that a host is not taken at its word about others (rule 13; agents
//! do not lie here: `plan::observation`), addresses that are spelled in two ways (rule 6:
//! `model::endpoint`, tests/serve), where strangers, causes and unknown hosts are shown to people
//! (rule 10: tests/cli, tests/page), that what a host declined is destroyed there (rule 8:
//! `engine::operations`), that a host is deleted by a new observation only (rule 12:
//! `store::deletion`), and that doubt in a clock ends after a day (rule 14; no course is that
//! long: tests/trust).
//! What an observation announces while nothing can be written needs no defect of its own: an
//! observation that could not be stored is a contact gap, whatever it announced.

use crate::history::{Change, Entry};
use roost::model::policy::Policy;
use roost::model::probe::{ListedState, Probe};
use std::collections::BTreeMap;
use std::time::Duration;

/// One precaution that is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Defect {
    NoConfirmation,
    NoRevisionGuard,
    AnnouncementsNotStored,
    LostAnswersForgotten,
    StoredHeartbeatsJudge,
    StartIsNoGap,
    SilenceIsNoGap,
    SilenceOverAtOnce,
    SleepUnnoticed,
    PresumedStopped,
    AskedTwice,
    SentForgotten,
    OvertakenForgotten,
    DeadlinesIgnored,
    NoMassVanishHold,
    NoSecondLookAtHeartbeats,
    RefreshNotRepeatable,
    NotSynced,
    TombstoneForgotten,
    TerminateByAddress,
    ForceUnasked,
    AsideIsDraining,
    AskedOfAnother,
    AnnouncedForEver,
    BeatsForgotten,
    ReturnIgnored,
    SilenceIgnored,
    EndsNotWritten,
    ZombiesSpared,
    SnapshotGoneAtOnce,
    EndedForGood,
    EndedIsDestroyed,
    HostClocksBelieved,
    RefusedReportsForgotten,
    LateAnswersRun,
    OldRegistrationCounts,
    RoomNotCounted,
    DeclinedIsUnknown,
    MovedCallsWaitedFor,
    EndedNotDestroyed,
    FailedIsRunning,
    StrangersNotRecorded,
    RestoredUnmarked,
    StopCutsCalls,
    RestartWaitsAnew,
    ProbedAtOnce,
    AuditEntryMissing,
    AuditEntryInvented,
    EventMissing,
    MovedUntold,
    SumsDrift,
}

impl Defect {
    /// Each with a seed that caught it when this was written; it is tried first.
    pub(crate) const ALL: &[(Defect, u64, &str)] = &[
        (Defect::NoConfirmation, 2, "an absence counts although the second look came at once"),
        (Defect::NoRevisionGuard, 1, "answers judge rows that changed after the question"),
        (Defect::AnnouncementsNotStored, 1, "what agents announce is dropped"),
        (Defect::LostAnswersForgotten, 14, "an answer that was lost is no gap in contact"),
        (Defect::StoredHeartbeatsJudge, 4, "after a start silence counts from before it"),
        (Defect::StartIsNoGap, 1, "rule 3: nothing can have been missed before a start"),
        (Defect::SilenceIsNoGap, 3, "heartbeats are made up while a host is silent"),
        (Defect::SilenceOverAtOnce, 60, "a heartbeat that was given up long ago ends a silence"),
        (Defect::SleepUnnoticed, 13, "the machine's sleep is not noticed"),
        (Defect::PresumedStopped, 1, "the plain mapping: what is absent is stopped"),
        (Defect::AskedTwice, 1, "rule 8: what was perhaps carried out is asked for again"),
        (Defect::SentForgotten, 8, "after a start everything is asked for again"),
        (Defect::OvertakenForgotten, 2, "rule 12: a destroy forgets the create it overtook"),
        (Defect::DeadlinesIgnored, 3, "operations own their sandbox for no time at all"),
        (Defect::NoMassVanishHold, 3, "many that vanish at once are believed"),
        (Defect::NoSecondLookAtHeartbeats, 4, "a heartbeat during the verdict is overlooked"),
        (Defect::RefreshNotRepeatable, 1, "a refresh token ends when it is shown"),
        (Defect::NotSynced, 1, "what is acknowledged has not reached the disk"),
        (Defect::TombstoneForgotten, 4, "a deleted host is unknown, and its agent hears 503"),
        (Defect::TerminateByAddress, 45, "rule 6: what has a deleted host's address is ended"),
        (Defect::ForceUnasked, 11, "a host is deleted with all it has, without force"),
        (Defect::AsideIsDraining, 1, "a host that is set aside is probed and judged"),
        (Defect::AskedOfAnother, 1, "what is created is asked of a second host too"),
        (Defect::AnnouncedForEver, 6, "what was announced once is never used up"),
        (Defect::BeatsForgotten, 1, "heartbeats are answered, and now and then not noted"),
        (Defect::ReturnIgnored, 1, "a host that is heard again stays down"),
        (Defect::SilenceIgnored, 7, "a host that is silent stays up"),
        (Defect::EndsNotWritten, 1, "what came of an operation is not written"),
        (Defect::ZombiesSpared, 1, "what no user wants, and the policy destroys, is left"),
        (Defect::SnapshotGoneAtOnce, 1, "rule 1: an agent without a snapshot is believed once"),
        (Defect::EndedForGood, 52, "rule 1: what ended by inference does not come back"),
        (Defect::EndedIsDestroyed, 2, "rule 1: what ended by inference is destroyed when listed"),
        (Defect::HostClocksBelieved, 2, "rule 2: a notice of a host whose clock is slow is late"),
        (Defect::RefusedReportsForgotten, 31, "rule 3: a report that was refused is no gap"),
        (Defect::LateAnswersRun, 1, "rule 4: what a late answer says runs on a dead host"),
        (Defect::OldRegistrationCounts, 39, "rule 5: a heartbeat of an old registration counts"),
        (Defect::RoomNotCounted, 1, "rule 7: a host takes whatever is to run there"),
        (Defect::DeclinedIsUnknown, 1, "rule 8: a create that was not taken is waited for"),
        (Defect::MovedCallsWaitedFor, 93, "rule 8: calls to the address before a move go on"),
        (Defect::EndedNotDestroyed, 85, "rule 9: a user's destroy of what is over is ignored"),
        (Defect::FailedIsRunning, 16, "rule 10: what is listed as failed runs"),
        (Defect::StrangersNotRecorded, 12, "rules 10 and 11: what has no row is not seen"),
        (Defect::RestoredUnmarked, 16, "rule 11: a restored database counts like any other"),
        (Defect::StopCutsCalls, 1, "rule 12: an orderly stop waits for no call"),
        (Defect::RestartWaitsAnew, 1, "rule 12: after a start calls may be in progress"),
        (Defect::ProbedAtOnce, 1, "rule 13: whatever asks for a probe gets one at once"),
        (Defect::AuditEntryMissing, 1, "a change is written without its audit entry"),
        (Defect::AuditEntryInvented, 1, "what was not changed is audited"),
        (Defect::EventMissing, 1, "a change is written without its event"),
        (Defect::MovedUntold, 1, "a row moves, and nothing tells of it"),
        (Defect::SumsDrift, 1, "what is kept of a host is not what its rows come to"),
    ];

    /// Numbers that take a precaution away; for the writer only.
    pub(crate) fn spoil(self, policy: &mut Policy) {
        if self == Defect::NoConfirmation {
            policy.confirm_delay = Duration::ZERO;
        }
        if self == Defect::NoMassVanishHold {
            policy.probe_interval = Duration::ZERO;
        }
        if self == Defect::PresumedStopped {
            policy.name = Policy::strict().name;
        }
        if self == Defect::RoomNotCounted {
            policy.memory_overcommit_percent = 10_000;
        }
    }

    /// What is read of the newest changes and audit entries is not what was written.
    pub(crate) fn misread(self, changes: &mut Vec<Change>, entries: &mut BTreeMap<u64, Entry>) {
        if self == Defect::EventMissing {
            changes.pop();
        }
        if self == Defect::AuditEntryMissing {
            entries.pop_last();
        }
        if self == Defect::AuditEntryInvented
            && let Some((revision, entry)) = entries.pop_last()
        {
            entries.insert(revision + 1_000, entry.clone());
            entries.insert(revision, entry);
        }
    }

    /// What does not come through of an answer.
    pub(crate) fn falsify(self, probe: &mut Probe) {
        let dropped = self == Defect::AnnouncementsNotStored;
        match probe {
            Probe::Listed(listing) => {
                if dropped {
                    listing.auto_paused.clear();
                }
                let failed = |state| state == ListedState::Error;
                let entries = listing.sandboxes.iter_mut().filter(|entry| failed(entry.state));
                if self == Defect::FailedIsRunning {
                    entries.for_each(|entry| entry.state = ListedState::Running);
                }
            }
            Probe::Failed(failure) => {
                failure.answer_lost &= self != Defect::LostAnswersForgotten;
                if dropped {
                    failure.drained.clear();
                }
            }
        }
    }
}
