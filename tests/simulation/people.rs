//! Owns users and operators: what they want at any moment, whether it fits or not.
//!
//! Never: looks behind the control plane.

use crate::defect::Defect;
use crate::plane::Told;
use crate::tally::{STATUSES, WISHES};
use crate::world::{Event, MINUTE, SECOND, World};
use roost::model::event::ActorType;
use roost::model::host::Intent;
use roost::model::id::{PLATFORM_TEAM, SandboxId};
use roost::model::operation::OperationKind;
use roost::model::sandbox::SandboxStatus;
use roost::store::journal::Actor;
use roost::store::lifecycle::{NewSandbox, Wish};
use roost::store::writer::Command;

impl World {
    pub(crate) fn user(&mut self) {
        if !self.stormy {
            return;
        }
        let usual = 240 * SECOND / self.machines.len() as u64;
        let after = self.chance.within(SECOND, usual * self.pace);
        self.after(after, Event::User);
        let now = self.now();
        let Some(history) = &self.history else { return };
        let alive = |(id, row): (&SandboxId, &crate::history::Row)| {
            let over = matches!(row.status, SandboxStatus::Stopped);
            (!over).then_some((*id, row.status))
        };
        let rows: Vec<(SandboxId, SandboxStatus)> = history.rows.iter().filter_map(alive).collect();
        let odd_status = self.chance.pick(STATUSES).copied();
        let odd = history.rows.iter().filter(|(_, row)| Some(row.status) == odd_status);
        let odd: Vec<SandboxId> = odd.map(|(id, _)| *id).collect();
        let few = rows.len() < self.machines.len() * 7;
        let create = few && self.chance.permille(600) || self.chance.permille(100);
        let picked = self.chance.pick(&rows).copied();
        let dice = self.chance.within(0, 100);
        let (timeout, vcpus) = (self.chance.within(0, 1200), self.chance.within(1, 3) as u32);
        let memory_mb = self.chance.pick(&[256, 512, 512, 1024]).copied().unwrap_or(512);
        let Some(plane) = self.plane.as_mut().filter(|plane| !plane.held) else { return };
        match picked.filter(|_| !create) {
            None => {
                let new = NewSandbox {
                    team: PLATFORM_TEAM,
                    template: "minimal".to_owned(),
                    vcpus: Some(vcpus),
                    memory_mb: Some(memory_mb),
                    timeout_sec: if timeout < 120 { 0 } else { timeout as u32 },
                    disk_size_mb: Some(1024),
                    actor: person(),
                };
                let told = |created: Result<_, _>| Told::Created(created.map(Box::new));
                plane.ask(now, told, |reply| Command::CreateSandbox(Box::new(new), reply));
            }
            Some((sandbox, status)) => {
                // Some know nothing of how things stand.
                if dice >= 90 {
                    let any = self.chance.pick(&odd).copied().unwrap_or(sandbox);
                    let kind = self.chance.pick(WISHES).copied().unwrap_or(OperationKind::Pause);
                    return self.wish(any, kind);
                }
                let kind = match (status, dice) {
                    (_, 0..12) => OperationKind::Destroy,
                    (SandboxStatus::Error, 0..60) => OperationKind::Destroy,
                    (SandboxStatus::Paused, _) => OperationKind::Resume,
                    (_, _) => OperationKind::Pause,
                };
                self.wish(sandbox, kind);
            }
        }
    }

    /// Somebody resumes a sandbox while its host is asked for its list, or wants something
    /// else of one that is not paused.
    pub(crate) fn perhaps_meddle(&mut self, host: usize) {
        if !self.stormy || !self.chance.permille(30) {
            return;
        }
        let Some(history) = &self.history else { return };
        let id = self.machines[host].id;
        let paused = history
            .rows
            .iter()
            .filter(|(_, row)| row.host == id && row.status == SandboxStatus::Paused);
        let paused: Vec<SandboxId> = paused.map(|(id, _)| *id).collect();
        let others = history.rows.iter().filter(|(_, row)| {
            row.host == id && !matches!(row.status, SandboxStatus::Paused | SandboxStatus::Stopped)
        });
        let others: Vec<SandboxId> = others.map(|(id, _)| *id).collect();
        if self.chance.permille(200)
            && let Some(sandbox) = self.chance.pick(&others).copied()
        {
            let after = self.chance.within(0, SECOND);
            let kind = self.chance.pick(WISHES).copied().unwrap_or(OperationKind::Pause);
            return self.after(after, Event::Wish(sandbox, kind));
        }
        if let Some(sandbox) = self.chance.pick(&paused).copied() {
            let after = self.chance.within(0, SECOND);
            self.after(after, Event::Wish(sandbox, OperationKind::Resume));
        }
    }

    pub(crate) fn wish(&mut self, sandbox: SandboxId, kind: OperationKind) {
        let now = self.now();
        let Some(plane) = self.plane.as_mut().filter(|plane| !plane.held) else { return };
        if let Some(row) = self.history.as_ref().and_then(|history| history.rows.get(&sandbox)) {
            self.tally.wished(kind, row.status);
            let over = row.status == SandboxStatus::Stopped && kind == OperationKind::Destroy;
            if over && self.defect == Some(Defect::EndedNotDestroyed) {
                return;
            }
        }
        let wish = Wish { sandbox, kind, team: None, actor: person() };
        plane.ask(now, Told::Begun, |reply| Command::Begin(Box::new(wish), reply));
    }

    pub(crate) fn operator(&mut self) {
        let latest = if self.stormy { 40 } else { 6 };
        let after = self.chance.within(5 * MINUTE, latest * MINUTE);
        self.after(after, Event::Operator);
        let host = self.chance.within(0, self.machines.len() as u64) as usize;
        self.look_after_strangers();
        self.find_addresses();
        if self.machines[host].standing.superseded || self.machines[host].standing.lost {
            return;
        }
        match self.chance.within(0, 100) {
            _ if !self.stormy => self.intend(host, Intent::Active),
            0..25 => self.intend(host, Intent::Draining),
            25..50 => self.intend(host, Intent::Offline),
            50..65 => self.part_with(host),
            65..72 => self.move_host(host),
            72..79 => self.replace_host(host),
            _ => self.intend(host, Intent::Active),
        }
    }
}

pub(crate) fn person() -> Actor {
    Actor { kind: ActorType::ApiKey, id: None, name: Some("simulated".to_owned()) }
}
