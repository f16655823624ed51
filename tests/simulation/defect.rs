//! Owns deliberate defects: what the harness withholds, falsifies or mistimes between the
//! real parts, as if one of Roost's own precautions were missing.
//!
//! Never: changes Roost's code. Each must be caught, or the simulation proves nothing.

use roost::model::policy::Policy;
use roost::model::probe::Probe;
use std::time::Duration;

/// One precaution that is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Defect {
    NoConfirmation,
    NoRevisionGuard,
    AnnouncementsNotStored,
    AnnouncementsLostWithTheDisk,
    LostAnswersForgotten,
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
}

impl Defect {
    pub(crate) const ALL: &[(Defect, &str)] = &[
        (Defect::NoConfirmation, "an absence counts although the second look came at once"),
        (Defect::NoRevisionGuard, "answers judge rows that changed after the question"),
        (Defect::AnnouncementsNotStored, "what agents announce is dropped"),
        (Defect::AnnouncementsLostWithTheDisk, "announcements go down with a failed write"),
        (Defect::LostAnswersForgotten, "an answer that was lost is no gap in contact"),
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

    /// What does not come through of an answer.
    pub(crate) fn falsify(self, probe: &mut Probe, failing: bool) {
        let dropped = self == Defect::AnnouncementsNotStored
            || self == Defect::AnnouncementsLostWithTheDisk && failing;
        match probe {
            Probe::Listed(listing) if dropped => listing.auto_paused.clear(),
            Probe::Failed(failure) => {
                failure.answer_lost &= self != Defect::LostAnswersForgotten;
                if dropped {
                    failure.drained.clear();
                }
            }
            Probe::Listed(_) => {}
        }
    }
}
