//! Owns how hosts come and go: operators delete them, set them aside and back, and add new
//! ones, also at an address that another one had or still has in the database.
//!
//! Never: looks behind the control plane, but for what an agent does that was told to end.

use crate::defect::Defect;
use crate::fleet::{machine, registration};
use crate::network::unknown;
use crate::people::person;
use crate::plane::Told;
use crate::tally::Fault;
use crate::world::{Event, MINUTE, Machine, SECOND, TOKEN_LIFE, World};
use roost::engine::monitor::Input;
use roost::model::host::{AgentAddress, Host, Intent, Liveness};
use roost::model::id::PLATFORM_TEAM;
use roost::model::time::Mono;
use roost::store::StoreError;
use roost::store::deletion::{Deleted, Deletion};
use roost::store::identity::{NewHost, Registered};
use roost::store::writer::Command;

/// Where a host stands with its operators, as far as they were told.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    pub(crate) registered: bool,
    /// Its deletion was committed.
    pub(crate) deleted: bool,
    /// Its agent destroyed everything, as it was told, and ended for good.
    pub(crate) ended: bool,
    /// It was acknowledged that the host is offline.
    pub(crate) aside: bool,
    /// Another host has its address for good.
    pub(crate) successor: Option<usize>,
    /// Another machine has registered as this host since.
    pub(crate) superseded: bool,
    /// It was deleted once, whatever the database says of it now.
    pub(crate) was_deleted: bool,
    /// The database, which was restored, does not know it.
    pub(crate) lost: bool,
    /// It is away, and registers at another address when it is back.
    pub(crate) moves: bool,
    /// It listens where the database does not know of.
    pub(crate) moved: bool,
    /// When its agent last asked to be registered, which is contact like a heartbeat.
    pub(crate) asked_ms: u64,
    /// When it was last registered, or its operators' intent last changed.
    pub(crate) since_ms: u64,
}

/// Who comes.
#[derive(Debug, Clone)]
pub(crate) struct Newcomer {
    pub(crate) address: AgentAddress,
    /// The host that it takes the address from.
    pub(crate) instead_of: Option<usize>,
}

impl World {
    pub(crate) fn intend(&mut self, host: usize, intent: Intent) {
        let now = self.now();
        let sent = match (intent, self.defect) {
            (Intent::Offline, Some(Defect::AsideIsDraining)) => Intent::Draining,
            (intent, _) => intent,
        };
        let id = self.machines[host].id;
        let Some(plane) = self.plane.as_mut().filter(|plane| !plane.held) else { return };
        let told = move |found: Option<Host>| Told::Intended(host, intent, found.is_some());
        plane.ask(now, told, |reply| Command::SetIntent(id, sent, person(), reply));
    }

    pub(crate) fn intended(&mut self, host: usize, intent: Intent, found: bool) {
        let now = self.now();
        let id = self.machines[host].id;
        let host = self.machine_of(id);
        if found == self.machines[host].standing.deleted {
            self.wrong(format!("{id} was found: {found}"));
        }
        let aside = intent == Intent::Offline;
        match intent {
            Intent::Draining => self.tally.struck(Fault::Drained),
            Intent::Offline => self.tally.struck(Fault::SetAside),
            Intent::Active => {}
        }
        self.machines[host].standing.aside = aside;
        let asks = !aside && self.chance.permille(500);
        if let Some(plane) = &mut self.plane {
            plane.tell(now, Input::Changed(id));
            if asks {
                plane.tell(now, Input::ProbeNow(id));
            }
        }
    }

    /// Whatever was set aside comes back, as soon as that can be said to anybody.
    pub(crate) fn set_back(&mut self, host: usize) {
        let Some(history) = &self.history else { return self.after(MINUTE, Event::SetBack(host)) };
        let intent = history.hosts.get(&self.machines[host].id).map(|host| host.intent);
        if intent.is_some_and(|intent| intent != Intent::Active) {
            self.intend(host, Intent::Active);
            self.after(MINUTE, Event::SetBack(host));
        }
    }

    /// A host shall go: as it is, only if it has nothing, or after another one has taken
    /// its address.
    pub(crate) fn part_with(&mut self, host: usize) {
        let Standing { registered, deleted, successor, .. } = self.machines[host].standing;
        if !registered || deleted || successor.is_some() {
            return;
        }
        match self.chance.within(0, 6) {
            0 | 1 => self.delete(host, false),
            2 | 3 => {
                let address = self.machines[host].address.clone();
                let instead_of = Some(host);
                self.after(SECOND, Event::Arrives(Newcomer { address, instead_of }));
            }
            _ => self.delete(host, true),
        }
    }

    pub(crate) fn delete(&mut self, host: usize, force: bool) {
        let now = self.now();
        if self.machines[host].standing.deleted || self.machines[host].standing.lost {
            return;
        }
        let id = self.machines[host].id;
        if force {
            // Until it is done, whatever happens meanwhile.
            self.after(MINUTE, Event::Delete(host, true));
            self.forced.insert(id);
        }
        let life = self.life;
        let tls = self.tls;
        let Some(plane) = self.plane.as_mut().filter(|plane| !plane.held) else { return };
        // As the API: an observation says whether the host is empty, and whose agent it is.
        if force && tls {
            return self.delete_now(host, force, life, now.mono);
        }
        plane.tell(now, Input::ProbeNow(id));
        let after = self.chance.within(SECOND, 10 * SECOND);
        self.after(after, Event::DeleteNow(host, force, life, now.mono));
    }

    /// What was observed since it was asked for decides.
    pub(crate) fn delete_now(&mut self, host: usize, force: bool, life: u64, since: Mono) {
        let (now, id) = (self.now(), self.machines[host].id);
        let sent = force || self.defect == Some(Defect::ForceUnasked);
        let plane = self.plane.as_mut().filter(|plane| !plane.held && life == self.life);
        let Some(plane) = plane else { return };
        let told = move |deletion| Told::Deleted(host, force, deletion);
        plane.ask(now, told, |reply| Command::DeleteHost {
            host: id,
            force: sent,
            since,
            actor: person(),
            reply,
        });
    }

    pub(crate) fn deleted(&mut self, host: usize, force: bool, deletion: Deletion) {
        let now = self.now();
        let id = self.machines[host].id;
        // Another machine may be this host by now.
        let host = self.machine_of(id);
        let was_deleted = self.machines[host].standing.deleted;
        let gone = match deletion {
            Deletion::NotFound if was_deleted => return,
            Deletion::HasActive(ids) if !force && !ids.is_empty() => {
                return self.tally.struck(Fault::DeletionRefused);
            }
            Deletion::Lists(_) | Deletion::NotObserved if !force => {
                return self.tally.struck(Fault::DeletionUnseen);
            }
            Deletion::Deleted(gone) if was_deleted => gone,
            Deletion::NotFound
            | Deletion::HasActive(_)
            | Deletion::Lists(_)
            | Deletion::NotObserved
            | Deletion::Deleted(_) => {
                return self.wrong(format!("the deletion of {id} ended with {deletion:?}"));
            }
        };
        self.tally.struck(if force { Fault::DeletedWithAll } else { Fault::Deleted });
        let shown = self.machines[host].heart.refresh_token;
        let fresh = self.secret();
        if let Some(plane) = &mut self.plane {
            plane.tell(now, Input::Changed(id));
            plane.ask_all(
                now,
                move |result| Told::Dead(host, result),
                |reply| Command::Refresh { shown, fresh, lenient: true, reply },
            );
        }
        self.terminate(host, &gone);
    }

    /// As the API does after a deletion: only an agent that is proved to be the host's ends.
    fn terminate(&mut self, host: usize, gone: &Deleted) {
        let is_up = gone.host.liveness == Liveness::Alive && gone.host.address.is_some();
        let is_proved = gone.is_its_agent || self.tls;
        if !(is_up && is_proved) && self.defect != Some(Defect::TerminateByAddress) {
            return self.note(|| format!("host {host} is deleted, and its agent is not told"));
        }
        let Machine { link, standing, .. } = &self.machines[host];
        let other = standing.successor.or(link.taken_by);
        let there = other.filter(|_| !self.tls).unwrap_or(host);
        let unreached = match other {
            Some(_) => !self.machines[there].agent.up,
            None => self.unreached_after(there).is_some(),
        };
        if !unreached && !self.is_lost(there) {
            let way = self.one_way(there);
            self.after(way, Event::Terminate(there));
        }
    }

    pub(crate) fn terminated(&mut self, host: usize) {
        let hung_until = self.machines[host].link.hung_until;
        if hung_until > self.now_ms() {
            return self.at(hung_until, Event::Terminate(host));
        }
        if self.machines[host].agent.up {
            self.obey_end(host);
        }
    }

    /// The agent does literally what it was told: no credentials, no sandboxes, no agent.
    pub(crate) fn obey_end(&mut self, host: usize) {
        self.note(|| format!("  host {host} destroys everything and ends"));
        let machine = &mut self.machines[host];
        let id = machine.id;
        machine.standing.ended = true;
        self.tally.struck(Fault::ToldToEnd);
        let broken = machine.agent.end(false, false);
        machine.agent.destroy_all();
        if !machine.standing.was_deleted {
            self.wrong(format!("{id} was told to destroy everything"));
        }
        for number in broken {
            self.answer(host, number, Err(unknown()));
        }
    }

    /// Somebody adds a host.
    pub(crate) fn arrives(&mut self, newcomer: Newcomer) {
        let now = self.now();
        let token = self.secret();
        let Some(plane) = self.plane.as_mut().filter(|plane| !plane.held) else {
            return self.after(MINUTE, Event::Arrives(newcomer));
        };
        let new = NewHost {
            team: PLATFORM_TEAM,
            kind: "regular".to_owned(),
            provider: None,
            availability_zone: None,
            token,
            actor: person(),
        };
        let told = move |host: Host| Told::Added(Box::new(host), newcomer);
        plane.ask(now, told, |reply| Command::CreateHost(new, reply));
    }

    pub(crate) fn added(&mut self, host: &Host, newcomer: &Newcomer) {
        let now = self.now().wall;
        let at = self.machines.len();
        let mut new = machine(host.id, newcomer.address.clone(), &mut self.chance, now);
        new.instead_of = newcomer.instead_of;
        self.note(|| format!("host {at} is {} at {}", host.id, newcomer.address.as_str()));
        self.machines.push(new);
        self.tally.struck(Fault::HostAdded);
        self.after(SECOND, Event::Register(at));
    }

    /// Its agent registers; when that comes to nothing, it gets another token.
    pub(crate) fn register(&mut self, host: usize) {
        let now = self.now();
        let Standing { registered, deleted, superseded, .. } = self.machines[host].standing;
        if deleted && !registered {
            // An operator who has it registered again finds that there is no such host.
            return self.switch_off(host);
        }
        if registered || deleted || superseded {
            return;
        }
        self.after(2 * MINUTE, Event::Register(host));
        if !self.machines[host].agent.up {
            return;
        }
        self.machines[host].standing.asked_ms = self.now_ms();
        self.machines[host].heart.asked_at = now.wall;
        let (token, refresh) = (self.secret(), self.secret());
        let id = self.machines[host].id;
        let registration = registration(&self.machines[host], token, refresh);
        let Some(plane) = self.plane.as_mut().filter(|plane| !plane.held) else { return };
        plane.order(now, Command::NewRegistrationToken(id, token, Box::new(|_| {})));
        let told = move |found| Told::Registered(host, refresh, found);
        plane.ask(now, told, |reply| Command::Register(Box::new(registration), reply));
    }

    pub(crate) fn registered(&mut self, host: usize, refresh: [u8; 32], found: &Registered) {
        let now = self.now();
        let id = self.machines[host].id;
        let found = match found {
            Registered::Done(_) => true,
            Registered::BadToken => false,
            Registered::AddressInUse(_) => {
                self.tally.struck(Fault::AddressInUse);
                false
            }
        };
        if let Some(plane) = &mut self.plane {
            if found && self.defect != Some(Defect::MovedCallsWaitedFor) {
                plane.registered(now, id);
            }
            plane.tell(now, Input::Changed(id));
        }
        let registration = self.registrations.get(&id).copied().unwrap_or(0);
        let lost = self.chance.permille(100);
        if !found || lost || self.machines[host].standing.registered {
            return;
        }
        let new = &mut self.machines[host];
        new.standing.registered = true;
        new.heart.registration = registration;
        new.heart.refresh_token = refresh;
        new.heart.issued_at = new.heart.asked_at;
        new.heart.token_expires_at = now.wall.after(TOKEN_LIFE);
        let (boot, instead_of) = (new.agent.boot, new.instead_of);
        let at = self.chance.within(0, 30 * SECOND);
        self.after(at, Event::Beat(host, boot, true));
        let address = self.machines[host].address.clone();
        // Unless that one has moved meanwhile.
        if let Some(other) = instead_of.filter(|other| self.machines[*other].address == address) {
            self.machines[other].standing.successor = Some(host);
            self.tally.struck(Fault::SuccessorCame);
            // Or it comes back one day.
            if self.chance.permille(500) {
                let after = self.chance.within(MINUTE, 10 * MINUTE);
                self.after(after, Event::Delete(other, true));
            }
        }
    }

    /// The deletion of a host is committed.
    pub(crate) fn judge_deletion(&mut self, host: usize) {
        let machine = &mut self.machines[host];
        (machine.standing.deleted, machine.standing.aside) = (true, false);
        let (id, address) = (machine.id, machine.address.clone());
        let of_host = self.machines.iter_mut().filter(|machine| machine.id == id);
        of_host.for_each(|machine| machine.standing.was_deleted = true);
        self.replace_no_more(id);
        let machine = &self.machines[host];
        let taken = machine.standing.successor.is_some();
        let left = self.history.as_ref().map(|history| history.left_of(id)).unwrap_or_default();
        for table in left {
            self.wrong(format!("{id} was deleted and is in {table}"));
        }
        let after = self.chance.within(MINUTE, 10 * MINUTE);
        let elsewhere = || {
            let place = format!("10.0.1.{}:50051", self.machines.len());
            place.parse().expect("an address")
        };
        let address = match self.chance.permille(500) && !taken {
            true => address,
            false => elsewhere(),
        };
        self.after(after, Event::Arrives(Newcomer { address, instead_of: None }));
    }

    /// The token that its agent had when it was deleted was shown once more.
    pub(crate) fn shown_dead(&mut self, host: usize, result: &Result<Option<Host>, StoreError>) {
        if let Ok(Some(_)) = result {
            self.wrong(format!("the refresh token of host {host}, which is deleted, was taken"));
        }
    }
}
