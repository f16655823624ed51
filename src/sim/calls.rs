//! Owns how a host carries out calls that change a sandbox: begun, given their time, and
//! finished, or undone when their caller leaves.
//!
//! Never: knows the wire (`answer` does) or what a call means (`agent` does).

use super::agent::{Begun, Change, Done, Step};
use super::host::SimHost;
use super::lock;
use super::refusal::Refusal;
use super::report::ReportEvent;
use super::wait::Client;
use crate::agent::wire::Method;
use crate::model::id::SandboxId;
use std::time::Duration;

/// Why a call has no answer that says it is done.
#[derive(Debug)]
pub(super) enum End {
    /// The agent says no.
    Refused(Refusal),
    /// The connection closes: its caller has left, or the agent ended.
    Cut,
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> End {
        End::Refused(refusal)
    }
}

impl SimHost {
    /// Carries out one call.
    pub(super) fn carry_out(
        &self,
        id: SandboxId,
        change: &Change<'_>,
        client: &mut Client<'_>,
    ) -> Result<Done, End> {
        let begun = self.change(|inner| {
            let step = inner.agent.begin(id, change, self.now(inner))?;
            Ok((step, inner.boot))
        });
        let (begun, boot) = match begun {
            Ok((Step::Done(done), _)) => return Ok(done),
            Ok((Step::Takes(begun), boot)) => (begun, boot),
            Err(refusal) => return Err(self.failed(id, change, refusal)),
        };
        let stayed = client.spend(
            || {
                let inner = lock(&self.inner);
                let ended = inner.boot != boot;
                if ended { Duration::ZERO } else { inner.habits.takes(method(change)) }
            },
            || self.faults().finishes_orphans,
        );
        if !stayed {
            self.orphaned(id, begun, boot);
            return Err(End::Cut);
        }
        let done = self.change(|inner| {
            (inner.boot == boot).then(|| inner.agent.finish(id, begun, self.now(inner)))
        });
        match done {
            Some(Ok(done)) => Ok(done),
            Some(Err(refusal)) => Err(self.failed(id, change, refusal)),
            None => Err(End::Cut),
        }
    }

    /// The caller has left before the call was done.
    fn orphaned(&self, id: SandboxId, begun: Begun, boot: u64) {
        let failed = match begun {
            Begun::Pause => Some(ReportEvent::PauseFailed),
            Begun::Resume { .. } => Some(ReportEvent::ResumeFailed),
            Begun::Create | Begun::Destroy | Begun::Snapshot { .. } => None,
        };
        self.change(|inner| {
            if inner.boot != boot {
                return;
            }
            if begun == Begun::Destroy && inner.habits.finishes_destroys {
                inner.agent.lose(id);
            }
            inner.agent.undo(id, begun);
            if let Some(event) = failed {
                self.report(inner, event, id, "context canceled");
            }
        });
    }

    /// Reports a refusal where real agents do.
    fn failed(&self, id: SandboxId, change: &Change<'_>, refusal: Refusal) -> End {
        self.report_failure(id, method(change), &refusal);
        End::Refused(refusal)
    }

    /// Reports that a call of this method was refused, where real agents do.
    pub(super) fn report_failure(&self, id: SandboxId, method: Method, (_, why): &Refusal) {
        let event = match method {
            Method::Pause => ReportEvent::PauseFailed,
            Method::Resume => ReportEvent::ResumeFailed,
            Method::List
            | Method::Create
            | Method::Destroy
            | Method::Ping
            | Method::CreateSnapshot
            | Method::DeleteSnapshot
            | Method::TemplateSize
            | Method::Terminate => return,
        };
        self.change(|inner| {
            if inner.agent.state(id).is_some() {
                self.report(inner, event, id, why);
            }
        });
    }
}

fn method(change: &Change<'_>) -> Method {
    match change {
        Change::Create(..) => Method::Create,
        Change::Resume { .. } => Method::Resume,
        Change::Pause => Method::Pause,
        Change::Destroy => Method::Destroy,
        Change::Snapshot(_) => Method::CreateSnapshot,
    }
}
