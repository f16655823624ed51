//! Owns the places of all connections, and those that wait.
//!
//! Never: does anything to a connection but close it. A connection is either parked here or
//! in the hands of exactly one thread. Called by `worker`, `reaper` and `server`.

use super::connection::Connection;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
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

    /// The connection of this place, if it is parked and still the same.
    pub(super) fn take(&self, place: Place) -> Option<Box<Connection>> {
        let mut slot = lock(self.slots.get(place.index as usize)?);
        if slot.generation == place.generation { slot.parked.take() } else { None }
    }

    /// Takes out all whose deadline is due at `now_ms`; also says when the next will be.
    pub(super) fn take_due(&self, now_ms: u64) -> (Taken, Option<u64>) {
        let (mut due, mut next) = (Vec::new(), None);
        self.for_each_slot(|index, slot| {
            let Some(deadline_ms) = slot.parked.as_ref().map(|parked| parked.deadline_ms()) else {
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
            if let Some(connection) = &slot.parked {
                let place = Place { index, generation: slot.generation };
                parked.push((connection.waiting_since_ms(), place));
            }
        });
        parked.sort_unstable_by_key(|&(since_ms, place)| (since_ms, place.index));
        parked.truncate((parked.len() / one_in).max(1));
        let places = parked.into_iter().map(|(_, place)| place);
        places.filter_map(|place| Some((place, self.take(place)?))).collect()
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

    fn places(taken: &Taken) -> Vec<Place> {
        taken.iter().map(|(place, _)| *place).collect()
    }

    #[test]
    fn an_event_for_a_predecessor_finds_nobody() {
        let table = Table::new(1);
        let first = park(&table, 0);
        assert!(table.claim().is_none());
        assert!(table.take(first).is_some());
        assert!(table.take(first).is_none());
        table.release(first);
        let second = park(&table, 0);
        assert_eq!(first.index, second.index);
        assert!(table.take(first).is_none());
        assert!(table.take(second).is_some());
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
        assert!(table.take(place).is_none());
        assert!(!table.wait_empty(Duration::ZERO));
        table.release(place);
        assert!(table.wait_empty(Duration::ZERO));
    }
}
