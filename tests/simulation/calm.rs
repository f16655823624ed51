//! Owns what users and operators do when the storm is over: operators look after what should
//! not be there, and users resume all that is paused.
//!
//! Never: a fault.

use crate::agent::Truth;
use crate::people::person;
use crate::plane::Told;
use crate::tally::Fault;
use crate::world::{Event, MINUTE, SECOND, World};
use roost::model::id::{HostId, SandboxId};
use roost::model::operation::OperationKind;
use roost::model::sandbox::{Reason, SandboxStatus, StrangerKind};
use roost::store::strangers::{Adoption, Recorded};
use roost::store::writer::Command;

/// How long a user waits for a resume, and for a destroy.
const PATIENCE_MS: u64 = 2 * MINUTE;

/// What a user does with one host, one sandbox after the other: that needs room for one.
#[derive(Debug, Default)]
pub(crate) struct Resuming {
    now: Option<(SandboxId, u64)>,
    /// What was resumed, or could not be.
    done: Vec<SandboxId>,
}

impl World {
    /// Operators take a sandbox over that a host has and should not have, or have it destroyed.
    pub(crate) fn look_after_strangers(&mut self) {
        let Some(history) = &self.history else { return };
        let recorded = history.strangers();
        for stranger in recorded {
            if !self.stormy || self.chance.permille(300) {
                self.look_after(&stranger);
            }
        }
    }

    fn look_after(&mut self, stranger: &Recorded) {
        let now = self.now();
        let Recorded { host, sandbox, kind, owner, .. } = *stranger;
        let adopts = match kind {
            StrangerKind::Zombie => self.stormy && self.chance.permille(100),
            StrangerKind::Forgotten => self.chance.permille(600),
            // An operator looks at its own host first.
            StrangerKind::Misplaced => !owner.is_some_and(|owner| self.is_there(owner, sandbox)),
        };
        if kind == StrangerKind::Misplaced {
            self.tally.struck(Fault::Misplaced);
        }
        let Some(plane) = self.plane.as_mut().filter(|plane| !plane.held) else { return };
        if adopts {
            let actor = person();
            let wanted = Adoption { sandbox, host: Some(host), team: None, actor };
            return plane.ask(now, Told::Adopted, |reply| Command::Adopt(Box::new(wanted), reply));
        }
        let actor = person();
        let told = move |works: Option<_>| Told::StrangerEnds(works.unwrap_or_default());
        plane.ask(now, told, |reply| Command::DestroyStranger {
            sandbox,
            host: Some(host),
            actor,
            reply,
        });
        self.tally.struck(Fault::StrangerEnded);
        self.operator_destroys(host, sandbox);
    }

    fn is_there(&self, host: HostId, sandbox: SandboxId) -> bool {
        self.machines[self.machine_of(host)].agent.truth(sandbox) != Truth::Nothing
    }

    /// Where nothing proves which host has answered, one that has nothing but a sandbox of
    /// another cannot be told from that other one. An operator goes to the machine.
    pub(crate) fn look_at_machines(&mut self) {
        let tls = self.tls;
        for machine in self.machines.iter_mut().filter(|_| !tls) {
            let half = std::mem::take(&mut machine.half_declined);
            let rows = self.history.iter().flat_map(|history| &history.rows);
            let here = |id: &SandboxId| rows.clone().any(|(i, r)| i == id && r.host == machine.id);
            let astray: Vec<SandboxId> = half.into_iter().filter(|id| !here(id)).collect();
            machine.agent.remove(&astray);
        }
    }

    /// Users destroy what runs, and then resume what is paused, one at a time on each host.
    pub(crate) fn resume_all(&mut self) {
        let Some(history) = &self.history else { return };
        let running = history.rows.iter().filter(|(_, row)| row.status == SandboxStatus::Running);
        let running: Vec<SandboxId> = running.map(|(id, _)| *id).collect();
        running.into_iter().for_each(|id| self.wish(id, OperationKind::Destroy));
        let hosts: Vec<HostId> = history_hosts(self);
        for host in hosts {
            self.after(30 * SECOND, Event::ResumeNext(host));
        }
    }

    /// A user of this host's sandboxes goes on.
    pub(crate) fn resume_next(&mut self, host: HostId) {
        let now_ms = self.now_ms();
        let mut resuming = self.resuming.remove(&host).unwrap_or_default();
        let status = |world: &World, id: SandboxId| {
            let history = world.history.as_ref()?;
            history.rows.get(&id).map(|row| (row.status, row.reason.clone()))
        };
        if let Some((id, since_ms)) = resuming.now {
            match status(self, id) {
                Some((SandboxStatus::Running, _)) => {
                    self.tally.struck(Fault::ResumedAtEnd);
                    self.wish(id, OperationKind::Destroy);
                }
                Some((SandboxStatus::Stopped, Some(Reason::OperationSucceeded))) => {
                    resuming.now = None;
                }
                found if now_ms - since_ms > PATIENCE_MS => {
                    self.wrong(format!("{id} is paused in truth and cannot be resumed: {found:?}"));
                }
                _ => {}
            }
        }
        if resuming.now.is_none() {
            let next = self.resumable(host).into_iter().find(|id| !resuming.done.contains(id));
            let Some(id) = next else { return };
            resuming.now = Some((id, now_ms));
            resuming.done.push(id);
            self.wish(id, OperationKind::Resume);
        }
        self.resuming.insert(host, resuming);
        self.after(2 * SECOND, Event::ResumeNext(host));
    }

    /// What is paused on a host in truth, and can be resumed by what the database says of it.
    fn resumable(&self, host: HostId) -> Vec<SandboxId> {
        let at = self.machine_of(host);
        let Some(history) = &self.history else { return Vec::new() };
        let is_paused = |(id, row): &(&SandboxId, &crate::history::Row)| {
            let gone = row.reason == Some(Reason::SnapshotGone);
            let may =
                row.status == SandboxStatus::Paused || row.status == SandboxStatus::Stopped && gone;
            row.host == host && may && self.machines[at].agent.truth(**id) == Truth::Paused
        };
        history.rows.iter().filter(is_paused).map(|(id, _)| *id).collect()
    }
}

fn history_hosts(world: &World) -> Vec<HostId> {
    world.history.iter().flat_map(|history| history.hosts.keys().copied()).collect()
}
