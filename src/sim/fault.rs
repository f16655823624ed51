//! Owns what can go wrong with a simulated host on purpose.
//!
//! Never: carries a fault out (`answer` and `heartbeat` do). Set by `demo` and tests.

use crate::agent::wire::{ConnectCode, Method};
use std::time::Duration;

/// What is wrong with a host now. The default is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Faults {
    /// What becomes of its heartbeats.
    pub heartbeats: HeartbeatFault,
    /// Nothing listens on its port: connections are refused.
    pub closed: bool,
    /// Every answer comes this much later; beyond the caller's patience it hangs. A call
    /// that waits notices when this is changed.
    pub delay: Duration,
    /// What becomes of its answers.
    pub answers: AnswerFault,
    /// The only method whose calls are slow and whose answers are spoiled; `None`: all.
    pub only: Option<Method>,
    /// A call whose caller has left is finished all the same.
    pub finishes_orphans: bool,
    /// What becomes of its reports.
    pub reports: ReportFault,
}

impl Faults {
    /// Only slow: every answer comes `delay` late.
    pub fn slow(delay: Duration) -> Faults {
        Faults { delay, ..Faults::default() }
    }

    /// Only this is wrong with its answers.
    pub fn answering(answers: AnswerFault) -> Faults {
        Faults { answers, ..Faults::default() }
    }

    /// Only this is wrong with its answers to calls of one method.
    pub fn answering_to(method: Method, answers: AnswerFault) -> Faults {
        Faults { answers, only: Some(method), ..Faults::default() }
    }

    /// Only this is wrong with its heartbeats.
    pub fn beating(heartbeats: HeartbeatFault) -> Faults {
        Faults { heartbeats, ..Faults::default() }
    }

    /// What becomes of the answers to calls of this method.
    pub(super) fn answer_to(&self, method: Method) -> AnswerFault {
        if self.concern(method) { self.answers } else { AnswerFault::None }
    }

    /// Whether calls of this method are slow and their answers are spoiled.
    pub(super) fn concern(&self, method: Method) -> bool {
        self.only.is_none_or(|only| only == method)
    }

    /// Nothing gets through in either direction, as behind a cable that was pulled.
    pub fn partitioned() -> Faults {
        Faults { heartbeats: HeartbeatFault::CutOff, closed: true, ..Faults::default() }
    }
}

/// What becomes of heartbeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HeartbeatFault {
    /// They arrive.
    #[default]
    None,
    /// None is sent, and the agent does not mind.
    Silent,
    /// None arrives: the agent notices, and pauses everything after the third.
    CutOff,
}

/// What becomes of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AnswerFault {
    /// They are what they should be.
    #[default]
    None,
    /// The call is refused with this code, and nothing is done.
    Refused(ConnectCode),
    /// The call is carried out, and half of the answer is sent as if it were whole.
    Malformed,
    /// The call is carried out, and the connection closes without an answer.
    Dropped,
    /// Nothing is done, and the connection closes without an answer.
    Severed,
    /// The call is carried out, and the answer does not come before this fault is over.
    Held,
}

/// What becomes of reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReportFault {
    /// They are sent at once.
    #[default]
    None,
    /// None is sent.
    Lost,
    /// Each is sent so much later, with the time of what it reports.
    Late(Duration),
}
