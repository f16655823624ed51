//! Owns the places of all connections, and those that wait.
//!
//! Never: does anything to a connection but close it. A connection is either parked here or
//! in the hands of exactly one thread. Called by `worker`, `reaper` and `server`.

use super::connection::Connection;
use super::deferred::Claim;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A fixed number of places.
pub(super) struct Table {
    slots: Box<[Mutex<Slot>]>,
    free: Mutex<Vec<u32>>,
    freed: Condvar,
}

#[derive(Default)]
struct Slot {
    /// Counts the connections that had this place, so that an event for one of them is not
    /// taken for its successor's.
    generation: u32,
    parked: Option<Box<Connection>>,
}

/// One connection's place for as long as it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// Connections taken out, each with its place.
pub(super) type Taken = Vec<(Place, Box<Connection>)>;

/// What an event of a place's socket comes to.
pub(super) enum Found {
    /// It is to be advanced.
    Ready(Box<Connection>),
    /// It waits for an answer and its client hung up: it waits until then at the latest.
    HungUp {
        /// Milliseconds on the server's timer.
        deadline_ms: u64,
    },
    /// The connection is gone, or in other hands.
    Nothing,
}

impl Table {
    /// With this many places.
    pub(super) fn new(places: usize) -> Table {
        let places = u32::try_from(places).unwrap_or(u32::MAX);
        Table {
            slots: (0..places).map(|_| Mutex::default()).collect(),
            free: Mutex::new((0..places).rev().collect()),
            freed: Condvar::new(),
        }
    }

    /// A free place, to be given back with `release`.
    pub(super) fn claim(&self) -> Option<Place> {
        let index = lock(&self.free).pop()?;
        Some(Place { index, generation: lock(self.slots.get(index as usize)?).generation })
    }

    /// Gives a place back. Whatever was parked there must have been taken out.
    pub(super) fn release(&self, place: Place) {
        if let Some(slot) = self.slots.get(place.index as usize) {
            let mut slot = lock(slot);
            slot.generation = slot.generation.wrapping_add(1);
        }
        lock(&self.free).push(place.index);
        self.freed.notify_all();
    }

    /// Puts a connection into its place and calls `arm`, before anybody can take it out.
    /// When `arm` fails the connection comes back.
    pub(super) fn park<E>(
        &self,
        place: Place,
        connection: Box<Connection>,
        arm: impl FnOnce(&Connection) -> Result<(), E>,
    ) -> Result<(), (Box<Connection>, E)> {
        let Some(slot) = self.slots.get(place.index as usize) else { return Ok(()) };
        let mut slot = lock(slot);
        match arm(&connection) {
            Ok(()) => {
                slot.parked = Some(connection);
                Ok(())
            }
            Err(error) => Err((connection, error)),
        }
    }

    /// The connection of this place for an event of its socket, if it is parked and still the
    /// same. One that waits for an answer stays.
    pub(super) fn take_for_event(&self, place: Place, now_ms: u64) -> Found {
        let Some(slot) = self.slots.get(place.index as usize) else { return Found::Nothing };
        let mut slot = lock(slot);
        if slot.generation != place.generation {
            return Found::Nothing;
        }
        match slot.parked.take() {
            Some(mut waiting) if waiting.is_promised() => {
                let deadline_ms = waiting.hang_up(now_ms);
                slot.parked = Some(waiting);
                Found::HungUp { deadline_ms }
            }
            Some(connection) => Found::Ready(connection),
            None => Found::Nothing,
        }
    }

    /// The connection of this place, if it waits for the answer to this claim.
    pub(super) fn take_promised(
        &self,
        place: Place,
        claim: &Arc<Claim>,
    ) -> Option<Box<Connection>> {
        let mut slot = lock(self.slots.get(place.index as usize)?);
        let parked = slot.parked.as_ref().filter(|_| slot.generation == place.generation);
        if parked?.is_promised_to(claim) { slot.parked.take() } else { None }
    }

    /// Takes out every one.
    pub(super) fn take_all(&self) -> Taken {
        let mut taken = Vec::new();
        self.for_each_slot(|index, slot| {
            let place = Place { index, generation: slot.generation };
            taken.extend(slot.parked.take().map(|connection| (place, connection)));
        });
        taken
    }

    /// Takes out all whose deadline is due at `now_ms`; also says when the next will be.
    /// What has begun for a client that waits for an answer is waited for.
    pub(super) fn take_due(&self, now_ms: u64) -> (Taken, Option<u64>) {
        let (mut due, mut next) = (Vec::new(), None);
        self.for_each_slot(|index, slot| {
            let Some(deadline_ms) = slot.parked.as_mut().map(|parked| parked.judge(now_ms)) else {
                return;
            };
            if deadline_ms > now_ms {
                next = Some(next.map_or(deadline_ms, |next: u64| next.min(deadline_ms)));
            } else if let Some(connection) = slot.parked.take() {
                due.push((Place { index, generation: slot.generation }, connection));
            }
        });
        (due, next)
    }

    /// Takes out the part of the parked ones that have waited longest for their peer: one in
    /// `one_in`, at least one, if any is parked at all.
    pub(super) fn take_longest_waiting(&self, one_in: usize) -> Taken {
        let mut parked = Vec::new();
        self.for_each_slot(|index, slot| {
            if let Some(connection) = slot.parked.as_ref().filter(|parked| !parked.is_promised()) {
                let place = Place { index, generation: slot.generation };
                parked.push((connection.waiting_since_ms(), place));
            }
        });
        parked.sort_unstable_by_key(|&(since_ms, place)| (since_ms, place.index));
        parked.truncate((parked.len() / one_in).max(1));
        self.take_those(parked.into_iter().map(|(_, place)| place))
    }

    /// Takes out those that hold much for long, the worst by bytes and milliseconds first,
    /// until `bytes` are given up; none that holds `bytes_free` or less.
    pub(super) fn take_holders(&self, bytes: usize, bytes_free: usize, now_ms: u64) -> Taken {
        let mut holders = Vec::new();
        self.for_each_slot(|index, slot| {
            let Some(parked) = slot.parked.as_ref().filter(|parked| !parked.is_promised()) else {
                return;
            };
            let held = parked.held_bytes();
            if held > bytes_free {
                let waited_ms = now_ms.saturating_sub(parked.waiting_since_ms());
                let cost = (held as u64).saturating_mul(waited_ms.saturating_add(1));
                holders.push((cost, held, Place { index, generation: slot.generation }));
            }
        });
        holders.sort_unstable_by_key(|&(cost, _, place)| (std::cmp::Reverse(cost), place.index));
        let mut left = bytes;
        self.take_those(holders.into_iter().map_while(|(_, held, place)| {
            let needed = left > 0;
            left = left.saturating_sub(held);
            needed.then_some(place)
        }))
    }

    fn take_those(&self, places: impl Iterator<Item = Place>) -> Taken {
        let take = |place| {
            let mut slot = lock(self.slots.get(place_index(place))?);
            let is_same = slot.generation == place.generation;
            let free = slot.parked.as_ref().is_some_and(|parked| !parked.is_promised());
            if is_same && free { Some((place, slot.parked.take()?)) } else { None }
        };
        places.filter_map(take).collect()
    }

    /// Shows every parked connection.
    pub(super) fn for_each_parked(&self, mut see: impl FnMut(Place, &mut Connection)) {
        self.for_each_slot(|index, slot| {
            let place = Place { index, generation: slot.generation };
            if let Some(connection) = &mut slot.parked {
                see(place, connection);
            }
        });
    }

    /// Places that are taken.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - lock(&self.free).len()
    }

    /// Waits until every place is free, for at most `timeout`; says whether it is so.
    pub(super) fn wait_empty(&self, timeout: Duration) -> bool {
        let all = self.slots.len();
        let free = lock(&self.free);
        let free = self.freed.wait_timeout_while(free, timeout, |free| free.len() < all);
        free.unwrap_or_else(PoisonError::into_inner).0.len() == all
    }

    fn for_each_slot(&self, mut see: impl FnMut(u32, &mut Slot)) {
        for (index, slot) in (0..).zip(&*self.slots) {
            see(index, &mut lock(slot));
        }
    }
}

fn place_index(place: Place) -> usize {
    place.index as usize
}

/// What a lock guards stays valid when a thread panics: every change is one assignment.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::limits::ServerConfig;
    use super::super::testing::connected;
    use super::*;

    fn park(table: &Table, now_ms: u64) -> Place {
        let place = table.claim().expect("a place");
        let mut connection = connected().0;
        connection.wait_from(now_ms, &ServerConfig::default());
        assert!(table.park(place, Box::new(connection), |_| Ok::<(), ()>(())).is_ok());
        place
    }

    fn take(table: &Table, place: Place) -> Option<Box<Connection>> {
        match table.take_for_event(place, 0) {
            Found::Ready(connection) => Some(connection),
            Found::HungUp { .. } | Found::Nothing => None,
        }
    }

    fn places(taken: &Taken) -> Vec<Place> {
        taken.iter().map(|(place, _)| *place).collect()
    }

    #[test]
    fn an_event_for_a_predecessor_finds_nobody() {
        let table = Table::new(1);
        let first = park(&table, 0);
        assert!(table.claim().is_none());
        assert!(take(&table, first).is_some());
        assert!(take(&table, first).is_none());
        table.release(first);
        let second = park(&table, 0);
        assert_eq!(first.index, second.index);
        assert!(take(&table, first).is_none());
        assert!(take(&table, second).is_some());
    }

    #[test]
    fn the_due_are_taken_and_the_next_is_known() {
        let table = Table::new(8);
        let parked: Vec<_> = [300, 100, 200].map(|now_ms| park(&table, now_ms)).into();
        let (due, next_ms) = table.take_due(10_099);
        assert_eq!((due.len(), next_ms), (0, Some(10_100)));
        let (due, next_ms) = table.take_due(10_200);
        assert_eq!((places(&due), next_ms), (vec![parked[1], parked[2]], Some(10_300)));
        assert_eq!(places(&table.take_due(u64::MAX).0), [parked[0]]);
    }

    #[test]
    fn those_who_waited_longest_are_taken_first() {
        let table = Table::new(8);
        assert_eq!(table.take_longest_waiting(2).len(), 0);
        let parked: Vec<_> = [30, 10, 20, 40].map(|now_ms| park(&table, now_ms)).into();
        assert_eq!(places(&table.take_longest_waiting(2)), [parked[1], parked[2]]);
        assert_eq!(places(&table.take_longest_waiting(100)), [parked[0]]);
    }

    #[test]
    fn what_cannot_be_armed_comes_back() {
        let table = Table::new(1);
        let place = table.claim().expect("a place");
        let parked = table.park(place, Box::new(connected().0), |_| Err("no"));
        assert!(matches!(parked, Err((_, "no"))));
        assert!(take(&table, place).is_none());
        assert!(!table.wait_empty(Duration::ZERO));
        table.release(place);
        assert!(table.wait_empty(Duration::ZERO));
    }
}
