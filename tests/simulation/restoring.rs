//! Owns backups and restores: the database is copied at any moment, takes its own later
//! place, and what was made in between is forgotten by it.
//!
//! Never: how a backup is made or put in place on a real disk (`store::restore` and its tests
//! do).

use crate::agent::Truth;
use crate::defect::Defect;
use crate::disk::{self, wal_of};
use crate::history::History;
use crate::leaving::Newcomer;
use crate::people::person;
use crate::plane::Told;
use crate::tally::Fault;
use crate::world::{Attention, End, Event, MINUTE, SECOND, World};
use roost::model::host::{Host, Intent};
use roost::model::id::SandboxId;
use roost::store::Connection;
use roost::store::acceptance::{LostToken, mark};
use roost::store::identity::REFRESH_TOKEN_LIFE;
use roost::store::writer::Command;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// What is known of restores.
#[derive(Debug, Default)]
pub(crate) struct Restores {
    /// The newest backup.
    backup: Option<PathBuf>,
    /// The database was restored.
    pub(crate) any: bool,
    /// Sandboxes that a restored database has no row of, and that were there then.
    pub(crate) forgotten: BTreeSet<SandboxId>,
    /// Sandboxes of which it told what had been true at some time before.
    pub(crate) rewound: BTreeSet<SandboxId>,
}

impl World {
    /// A backup is made.
    pub(crate) fn back_up(&mut self) {
        if self.attention != Attention::Listening || self.plane.as_ref().is_some_and(|p| p.held) {
            return;
        }
        self.dbs += 1;
        let file = self.disk.path(self.dbs);
        disk::copy(&self.db, &file, u64::MAX);
        disk::copy(&wal_of(&self.db), &wal_of(&file), u64::MAX);
        self.restores.backup = Some(file);
        self.note(|| "a backup is made".to_owned());
        self.tally.struck(Fault::BackedUp);
    }

    /// The backup takes the place of the database.
    pub(crate) fn restore(&mut self) {
        if self.attention != Attention::Listening {
            return;
        }
        let Some(file) = self.restores.backup.take() else { return };
        self.end_plane(End::Killed);
        self.note(|| "the backup takes the place of the database".to_owned());
        self.tally.struck(Fault::Restored);
        let mut conn = Connection::open(&file).expect("the backup opens");
        if self.defect != Some(Defect::RestoredUnmarked) {
            mark(&mut conn, self.now().wall).expect("the backup can be marked");
        }
        drop(conn);
        self.db = file;
        self.history = Some(History::open(&self.db, &self.policy, self.defect));
        self.restores.any = true;
        self.forget_what_came_after();
        let away = self.chance.within(500, MINUTE);
        self.after(away, Event::PlaneStarts);
        let accepted = away + self.chance.within(30 * SECOND, 6 * MINUTE);
        self.after(accepted, Event::Accept);
    }

    /// An operator accepts the restored database, as soon as that can be said.
    pub(crate) fn accept(&mut self) {
        let now = self.now();
        let waits = self.plane.as_ref().is_none_or(|plane| plane.held);
        if let Some(plane) = self.plane.as_mut().filter(|plane| plane.held) {
            plane.ask(now, Told::Accepted, |reply| Command::Accept(person(), reply));
        }
        if waits {
            self.after(MINUTE, Event::Accept);
        }
    }

    /// What the database says counts; what was since is known by the agents only.
    fn forget_what_came_after(&mut self) {
        let Some(history) = &self.history else { return };
        let there = |id: &SandboxId| history.rows.contains_key(id);
        self.restores.rewound.extend(history.rows.keys().copied());
        let machines = self.machines.iter().filter(|machine| !machine.standing.superseded);
        let has = |(id, truth): (SandboxId, Truth)| (truth != Truth::Nothing).then_some(id);
        let all = machines.flat_map(|machine| machine.agent.all().filter_map(has));
        let forgotten: Vec<SandboxId> = all.filter(|id| !there(id)).collect();
        self.restores.forgotten.extend(forgotten);
        self.bound_restore();
        for host in 0..self.machines.len() {
            self.restore_standing(host);
        }
    }

    fn restore_standing(&mut self, host: usize) {
        let now_ms = self.now_ms();
        let machine = &self.machines[host];
        let id = machine.id;
        let found = self.history.as_ref().and_then(|history| history.hosts.get(&id)).cloned();
        let standing = &mut self.machines[host].standing;
        if standing.superseded {
            // Its tokens would count again where the backup knows of no newer registration.
            self.switch_off(host);
            return;
        }
        if self.replacing.remove(&id).is_some_and(|new| new == host) {
            standing.superseded = true;
            return self.switch_off(host);
        }
        standing.since_ms = now_ms;
        match found {
            None if !standing.deleted => self.lose(host),
            None => {}
            Some(found) => self.found_again(host, &found),
        }
    }

    pub(crate) fn switch_off(&mut self, host: usize) {
        let machine = &mut self.machines[host];
        machine.standing.ended = true;
        machine.agent.end(false, false);
        machine.agent.destroy_all();
    }

    /// The database knows nothing of this host. Its agent waits, until an operator adds its
    /// machine as another host.
    fn lose(&mut self, host: usize) {
        self.note(|| format!("host {host} is forgotten"));
        self.machines[host].standing.lost = true;
        let after = self.chance.within(5 * MINUTE, 10 * MINUTE);
        self.after(after, Event::AddAnew(host));
    }

    pub(crate) fn add_anew(&mut self, host: usize) {
        let machine = &mut self.machines[host];
        (machine.standing.superseded, machine.standing.deleted) = (true, true);
        self.switch_off(host);
        let address = self.new_address();
        self.after(SECOND, Event::Arrives(Newcomer { address, instead_of: None }));
    }

    /// A host as the database has it now.
    fn found_again(&mut self, host: usize, found: &Host) {
        let known = |host: &usize| {
            let id = self.machines[*host].id;
            self.history.as_ref().is_some_and(|history| history.hosts.contains_key(&id))
        };
        let successor_is_known = self.machines[host].standing.successor.iter().any(known);
        let machine = &mut self.machines[host];
        let moved = found.address.as_ref() != Some(&machine.address);
        let pending = found.registered_at.is_none();
        let standing = &mut machine.standing;
        standing.aside = found.intent == Intent::Offline;
        standing.successor = standing.successor.filter(|_| successor_is_known);
        if std::mem::take(&mut standing.deleted) {
            self.forced.remove(&found.id);
            self.note(|| format!("host {host} is not deleted any more"));
            // Whether its agent has heard of its deletion or not.
            return self.after(10 * MINUTE, Event::Delete(host, true));
        }
        if moved || pending {
            // An operator has its agent registered again.
            (standing.registered, standing.moved) = (false, moved);
            self.note(|| format!("host {host} is not where the database says"));
            self.after(7 * MINUTE, Event::Register(host));
        }
    }

    /// As the API: a refresh token that was given out after the backup counts again, when it
    /// is newer than all that the database knows of.
    pub(crate) fn take_back(&mut self, host: usize, fresh: [u8; 32]) {
        let now = self.now();
        let machine = &self.machines[host];
        let (hash, issued_at) = (machine.heart.refresh_token, machine.heart.issued_at);
        let expires_at = issued_at.after(REFRESH_TOKEN_LIFE);
        let lost = LostToken { hash, host: machine.id, issued_at, expires_at };
        let Some(plane) = &mut self.plane else { return };
        if issued_at > now.wall && !plane.presence.clock_is_suspect(now.mono) {
            return self.taken_back(host, fresh, false);
        }
        let told = move |counts| Told::TakenBack(host, fresh, counts);
        plane.ask(now, told, |reply| Command::TakeBack(lost, reply));
    }

    /// Whether it counts. Where it does not, an operator has the agent registered again.
    pub(crate) fn taken_back(&mut self, host: usize, fresh: [u8; 32], counts: bool) {
        if counts {
            self.tally.struck(Fault::TokenTakenBack);
            return self.ask_renewal(host, fresh);
        }
        self.gives_up_beating(host);
        self.machines[host].standing.registered = false;
        self.after(7 * MINUTE, Event::Register(host));
    }
}
