//! Owns how hosts register again: a machine that moves to another address, and another machine
//! that takes the place of one that is still alive.
//!
//! Never: looks behind the control plane.

use crate::fleet::machine;
use crate::leaving::Standing;
use crate::tally::Fault;
use crate::world::{Event, MINUTE, SECOND, World};
use roost::model::host::{AgentAddress, Host};
use roost::model::id::HostId;

impl World {
    /// Whether a host is as registered as its agent believes, and nothing else is under way.
    fn is_settled(&self, host: usize) -> bool {
        let machine = &self.machines[host];
        let Standing { registered, deleted, superseded, moved, moves, successor, .. } =
            machine.standing;
        let alone = !self.replacing.contains_key(&machine.id) && successor.is_none();
        registered && !deleted && !superseded && !moved && !moves && alone
    }

    /// A machine goes, with or without a word, and comes back at another address. Its agent is
    /// started with a new registration token there.
    pub(crate) fn move_host(&mut self, host: usize) {
        if !self.is_settled(host) || !self.machines[host].agent.up {
            return;
        }
        let away = self.chance.within(SECOND, 5 * MINUTE);
        if self.chance.permille(500) {
            // No connection is refused there, and what was under way is never answered.
            let link = self.machines[host].link;
            self.change(host, away, link.cut());
        }
        self.machines[host].standing.moves = true;
        self.note(|| format!("host {host} moves"));
        self.end_agent(host, false, away);
    }

    /// The agent of a machine that has moved starts.
    pub(crate) fn arrive_elsewhere(&mut self, host: usize) {
        let address = self.new_address();
        let machine = &mut self.machines[host];
        let standing = &mut machine.standing;
        (standing.moves, standing.moved, standing.registered) = (false, true, false);
        machine.address = address;
        self.tally.struck(Fault::Moved);
        self.after(SECOND, Event::Register(host));
    }

    pub(crate) fn new_address(&mut self) -> AgentAddress {
        self.addresses += 1;
        let number = self.addresses;
        let place = format!("10.1.{}.{}:50051", number / 200, number % 200 + 1);
        place.parse().expect("an address")
    }

    /// A dead host loses its address to one that registers there. An operator has it
    /// registered again, at another address.
    pub(crate) fn find_addresses(&mut self) {
        let Some(history) = &self.history else { return };
        let lost = |host: &&Host| host.registered_at.is_some() && host.address.is_none();
        let lost: Vec<HostId> = history.hosts.values().filter(lost).map(|host| host.id).collect();
        for id in lost {
            let host = self.machine_of(id);
            if self.is_settled(host) || self.machines[host].standing.successor.is_some() {
                self.tally.struck(Fault::AddressLost);
                self.machines[host].standing.successor = None;
                self.arrive_elsewhere(host);
            }
        }
    }

    /// Another machine is to be this host; the one that it was does not know that.
    pub(crate) fn replace_host(&mut self, host: usize) {
        if !self.is_settled(host) {
            return;
        }
        let (id, now) = (self.machines[host].id, self.now().wall);
        let address = self.new_address();
        let at = self.machines.len();
        let new = machine(id, address, &mut self.chance, now);
        self.machines.push(new);
        self.replacing.insert(id, at);
        self.note(|| format!("host {at} is to take the place of host {host}, {id}"));
        self.after(SECOND, Event::Register(at));
    }

    /// A registration was committed: from now on only this machine is the host.
    pub(crate) fn supersede(&mut self, id: HostId, revision: u64) {
        self.registrations.insert(id, revision);
        if let Some(new) = self.replacing.remove(&id) {
            let old = self.machine_of(id);
            self.tally.struck(Fault::Replaced);
            self.note(|| format!("host {old} is host {new} now, {id}"));
            self.machines[old].standing.superseded = true;
            let of_host = self.history.iter().flat_map(|history| &history.rows);
            let left = of_host.filter(|(_, row)| row.host == id).map(|(id, _)| *id);
            self.left_behind.extend(left);
            if self.chance.permille(400) {
                // It does not last long, and only the old one is heard.
                let (after, lasts) = (self.chance.within(MINUTE, 5 * MINUTE), 12 * MINUTE);
                self.after(after, Event::Cut(new, lasts));
            }
        }
        let current = self.machine_of(id);
        self.machines[current].standing.moved = false;
        let there = |(number, at): (&u64, &usize)| (*at == current).then_some(*number);
        self.abandoned.extend(self.in_flight.iter().filter_map(there));
    }

    /// The host that a machine was to become is deleted.
    pub(crate) fn replace_no_more(&mut self, id: HostId) {
        if let Some(new) = self.replacing.remove(&id) {
            let machine = &mut self.machines[new];
            machine.standing.superseded = true;
            machine.agent.end(false, false);
        }
    }
}
