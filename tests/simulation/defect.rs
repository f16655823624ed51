//! Owns deliberate defects: what the harness withholds, falsifies or mistimes between the
//! real parts, as if one of Roost's own precautions were missing.
//!
//! Never: changes Roost's code. Each must be caught, or the simulation proves nothing.

use crate::history::{Change, Entry};
use roost::model::policy::Policy;
use roost::model::probe::Probe;
use std::collections::BTreeMap;
use std::time::Duration;

/// One precaution that is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Defect {
    NoConfirmation,
    NoRevisionGuard,
    AnnouncementsNotStored,
    AnnouncementsLostWithTheDisk,
    LostAnswersForgotten,
    AnswersLostWithTheDisk,
    StoredHeartbeatsJudge,
    StartIsNoGap,
    SilenceIsNoGap,
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
    StopCutsCalls,
    MovedCallsWaitedFor,
    OldRegistrationCounts,
    RestoredUnmarked,
    RefusedReportsForgotten,
    AuditEntryMissing,
    AuditEntryInvented,
    EventMissing,
    MovedUntold,
}

impl Defect {
    pub(crate) const ALL: &[(Defect, &str)] = &[
        (Defect::NoConfirmation, "an absence counts although the second look came at once"),
        (Defect::NoRevisionGuard, "answers judge rows that changed after the question"),
        (Defect::AnnouncementsNotStored, "what agents announce is dropped"),
        (Defect::AnnouncementsLostWithTheDisk, "announcements go down with a failed write"),
        (Defect::LostAnswersForgotten, "an answer that was lost is no gap in contact"),
        (Defect::AnswersLostWithTheDisk, "the same, while nothing can be written"),
        (Defect::StoredHeartbeatsJudge, "after a start silence counts from before it"),
        (Defect::StartIsNoGap, "nothing can have been missed before a start"),
        (Defect::SilenceIsNoGap, "heartbeats are made up while a host is silent"),
        (Defect::SleepUnnoticed, "the machine's sleep is not noticed"),
        (Defect::PresumedStopped, "the plain mapping: what is absent is stopped"),
        (Defect::AskedTwice, "what was perhaps carried out is asked for again"),
        (Defect::SentForgotten, "after a start everything is asked for again"),
        (Defect::OvertakenForgotten, "a destroy forgets the create that it overtook"),
        (Defect::DeadlinesIgnored, "operations own their sandbox for no time at all"),
        (Defect::NoMassVanishHold, "many that vanish at once are believed"),
        (Defect::NoSecondLookAtHeartbeats, "a heartbeat during the verdict is overlooked"),
        (Defect::RefreshNotRepeatable, "a refresh token ends when it is shown"),
        (Defect::NotSynced, "what is acknowledged has not reached the disk"),
        (Defect::TombstoneForgotten, "a deleted host is unknown, and its agent hears 503"),
        (Defect::TerminateByAddress, "whoever has a deleted host's address is told to end"),
        (Defect::ForceUnasked, "a host is deleted with all it has, and nobody said so"),
        (Defect::AsideIsDraining, "a host that is set aside is probed and judged"),
        (Defect::AskedOfAnother, "what is created is asked of a second host too"),
        (Defect::AnnouncedForEver, "what was announced once is never used up"),
        (Defect::BeatsForgotten, "heartbeats are answered, and now and then not noted"),
        (Defect::ReturnIgnored, "a host that is heard again stays down"),
        (Defect::SilenceIgnored, "a host that is silent stays up"),
        (Defect::EndsNotWritten, "what came of an operation is not written"),
        (Defect::ZombiesSpared, "what shall be destroyed, since nobody wants it, is not"),
        (Defect::StopCutsCalls, "rule 12: an orderly stop waits for no call"),
        (Defect::MovedCallsWaitedFor, "rule 8: calls to the address before a move are waited for"),
        (Defect::OldRegistrationCounts, "rule 5: a heartbeat of an old registration counts"),
        (Defect::RestoredUnmarked, "rule 11: a restored database counts like any other"),
        (Defect::RefusedReportsForgotten, "rule 3: a report that was refused is no contact gap"),
        (Defect::AuditEntryMissing, "a change is written without its audit entry"),
        (Defect::AuditEntryInvented, "what was not changed is audited"),
        (Defect::EventMissing, "a change is written without its event"),
        (Defect::MovedUntold, "a row moves, and nothing tells of it"),
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
    pub(crate) fn falsify(self, probe: &mut Probe, failing: bool) {
        let dropped = self == Defect::AnnouncementsNotStored
            || self == Defect::AnnouncementsLostWithTheDisk && failing;
        match probe {
            Probe::Listed(listing) if dropped => listing.auto_paused.clear(),
            Probe::Failed(failure) => {
                let forgotten = self == Defect::LostAnswersForgotten
                    || self == Defect::AnswersLostWithTheDisk && failing;
                failure.answer_lost &= !forgotten;
                if dropped {
                    failure.drained.clear();
                }
            }
            Probe::Listed(_) => {}
        }
    }
}
