//! Owns the count of what happened in a world: how often each kind of fault struck, and
//! which wish met a sandbox in which status.
//!
//! Never: has a say in what happens.

use roost::model::operation::OperationKind;
use roost::model::sandbox::SandboxStatus;
use std::collections::BTreeMap;

/// One kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    QuestionLost,
    AnswerLost,
    AnnouncementLost,
    AnswerLate,
    AnswerTwice,
    CallLost,
    ResultLost,
    ResultTwice,
    CallBrokenOff,
    CallCancelled,
    HangUpUnnoticed,
    Declined,
    DeclinedAtEnd,
    DeclinedAndBegun,
    ReportLost,
    ReportRefused,
    ReportGivenUp,
    FailureReported,
    HeartbeatAnsweredLate,
    HeartbeatStraggled,
    RenewalAnsweredLate,
    ReportLate,
    ReportTwice,
    CallsCut,
    AnswersCut,
    BeatsCut,
    AllCut,
    UplinkCut,
    Hung,
    Slow,
    AgentRestarted,
    AgentDrained,
    DiskReadSlowly,
    AgentLostSight,
    AgentGaveUp,
    HostPowerLost,
    MicroVmDied,
    PlaneEnded,
    StopWaited,
    StopCutOff,
    PlaneKilled,
    PlanePowerLost,
    LogCut,
    DiedBehindWrite,
    Slept,
    Dozed,
    ClockForward,
    ClockBack,
    ClockFarOff,
    DiskFailed,
    DiskStalled,
    ImposterAnswered,
    SuccessorCame,
    Drained,
    SetAside,
    DeletionRefused,
    DeletionUnseen,
    AddressInUse,
    AddressLost,
    Deleted,
    DeletedWithAll,
    ToldToEnd,
    HostAdded,
    NoHost,
    AllFull,
    NoRoom,
    BackedUp,
    Restored,
    Accepted,
    TokenTakenBack,
    PlacedElsewhere,
    Moved,
    Replaced,
    OldMachineRefused,
    StrangerAdopted,
    StrangerEnded,
    Misplaced,
    ResumedAtEnd,
    EndedAgain,
    EndedTwice,
}

impl Fault {
    pub(crate) const ALL: &[(Fault, &str)] = &[
        (Fault::QuestionLost, "a question did not arrive"),
        (Fault::AnswerLost, "a host listed what it has, and nobody heard"),
        (Fault::AnnouncementLost, "the same, and it forgot what it announced"),
        (Fault::AnswerLate, "a list came after nobody waited for it any more"),
        (Fault::AnswerTwice, "a list came twice"),
        (Fault::CallLost, "a call did not arrive"),
        (Fault::ResultLost, "what came of a call was not heard"),
        (Fault::ResultTwice, "what came of a call was heard twice"),
        (Fault::CallBrokenOff, "an agent ended while it worked on a call"),
        (Fault::CallCancelled, "an agent ended a call whose caller was gone"),
        (Fault::HangUpUnnoticed, "a caller went, and the agent could not notice"),
        (Fault::Declined, "an agent took no call, because it was starting or full"),
        (Fault::DeclinedAtEnd, "the same, because it was shutting down"),
        (Fault::DeclinedAndBegun, "an agent declined a create, and made it all the same"),
        (Fault::ReportRefused, "a report arrived and was answered with 503"),
        (Fault::ReportGivenUp, "a report was tried three times in vain"),
        (Fault::FailureReported, "an agent reported a failure under a newer name"),
        (Fault::HeartbeatAnsweredLate, "a heartbeat was answered after 10 s"),
        (Fault::HeartbeatStraggled, "a heartbeat that was given up arrived later"),
        (Fault::RenewalAnsweredLate, "a renewal was not answered within 15 s"),
        (Fault::ReportLost, "a report did not arrive"),
        (Fault::ReportLate, "a report came long after what it tells"),
        (Fault::ReportTwice, "a report came twice"),
        (Fault::CallsCut, "one way was cut: no call arrived"),
        (Fault::AnswersCut, "one way was cut: no answer came back"),
        (Fault::BeatsCut, "one way was cut: no heartbeat arrived"),
        (Fault::AllCut, "both ways were cut"),
        (Fault::UplinkCut, "both ways to every host were cut"),
        (Fault::Hung, "an agent stood still"),
        (Fault::Slow, "every message took seconds"),
        (Fault::AgentRestarted, "an agent was started anew"),
        (Fault::DiskReadSlowly, "the same, and it did not know its snapshots for a while"),
        (Fault::AgentDrained, "an agent shut down in order"),
        (Fault::AgentLostSight, "an agent was started anew, and it found its microVMs later"),
        (Fault::AgentGaveUp, "a renewal failed, and an agent gave up"),
        (Fault::HostPowerLost, "a host lost its power"),
        (Fault::MicroVmDied, "a microVM died"),
        (Fault::PlaneEnded, "Roost was ended in order"),
        (Fault::StopWaited, "an orderly stop began during calls"),
        (Fault::StopCutOff, "an orderly stop waited no longer for calls"),
        (Fault::PlaneKilled, "Roost was killed"),
        (Fault::PlanePowerLost, "Roost's machine lost its power"),
        (Fault::LogCut, "the same, and what was not synced was gone"),
        (Fault::DiedBehindWrite, "Roost died between a commit and what follows from it"),
        (Fault::Slept, "Roost's machine slept"),
        (Fault::Dozed, "the same, for a moment"),
        (Fault::ClockForward, "the clock was set forward"),
        (Fault::ClockBack, "the clock was set back"),
        (Fault::ClockFarOff, "the clock was set by more than a day"),
        (Fault::DiskFailed, "the disk could not be written"),
        (Fault::DiskStalled, "the disk took its time"),
        (Fault::ImposterAnswered, "another host answered at the address of one"),
        (Fault::SuccessorCame, "a host registered at the address of another one"),
        (Fault::Drained, "a host was drained"),
        (Fault::SetAside, "a host was set aside"),
        (Fault::DeletionRefused, "a host that has sandboxes was to be deleted"),
        (Fault::DeletionUnseen, "the same, of one that nothing shows to be empty"),
        (Fault::AddressInUse, "a host was to register at the address of one that is alive"),
        (Fault::AddressLost, "a host was without an address that another one has"),
        (Fault::Deleted, "a host was deleted that had none"),
        (Fault::DeletedWithAll, "a host was deleted with all that it had"),
        (Fault::ToldToEnd, "the agent of a deleted host ended"),
        (Fault::HostAdded, "a host was added"),
        (Fault::NoHost, "a user found no host"),
        (Fault::AllFull, "a user found every host full"),
        (Fault::NoRoom, "a host had no room for a resume"),
        (Fault::BackedUp, "a backup was made"),
        (Fault::Restored, "a backup took the place of the database"),
        (Fault::Accepted, "an operator accepted it"),
        (Fault::TokenTakenBack, "a token that it did not know counted again"),
        (Fault::Moved, "a host registered at another address"),
        (Fault::Replaced, "another machine registered as a host"),
        (Fault::OldMachineRefused, "the machine before was refused"),
        (Fault::StrangerAdopted, "an operator took over what should not be there"),
        (Fault::StrangerEnded, "an operator had it destroyed"),
        (Fault::Misplaced, "the same, of what belongs to another host"),
        (Fault::ResumedAtEnd, "a user resumed a sandbox when the storm was over"),
        (Fault::PlacedElsewhere, "a create was placed on another host"),
        (Fault::EndedAgain, "a user destroyed what was over by itself"),
        (Fault::EndedTwice, "a user destroyed what was destroyed already"),
    ];
}

/// In which status a sandbox can be wished anything of. Nobody makes the others.
pub(crate) const STATUSES: &[SandboxStatus] = &[
    SandboxStatus::Starting,
    SandboxStatus::Running,
    SandboxStatus::Pausing,
    SandboxStatus::Paused,
    SandboxStatus::Resuming,
    SandboxStatus::Stopping,
    SandboxStatus::Stopped,
    SandboxStatus::Missing,
    SandboxStatus::Error,
];

/// What can be wished of one that is there.
pub(crate) const WISHES: &[OperationKind] =
    &[OperationKind::Pause, OperationKind::Resume, OperationKind::Destroy];

/// How often what happened.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    faults: BTreeMap<Fault, u64>,
    wishes: BTreeMap<(&'static str, &'static str), u64>,
}

impl Tally {
    pub(crate) fn struck(&mut self, fault: Fault) {
        *self.faults.entry(fault).or_default() += 1;
    }

    pub(crate) fn wished(&mut self, kind: OperationKind, status: SandboxStatus) {
        *self.wishes.entry((kind.as_str(), status.as_str())).or_default() += 1;
    }

    pub(crate) fn of(&self, fault: Fault) -> u64 {
        self.faults.get(&fault).copied().unwrap_or(0)
    }

    pub(crate) fn of_wish(&self, kind: OperationKind, status: SandboxStatus) -> u64 {
        self.wishes.get(&(kind.as_str(), status.as_str())).copied().unwrap_or(0)
    }
}
