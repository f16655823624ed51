//! Owns when sandboxes were last used, by the pings that passed through us.
//!
//! Never: writes because of a ping (that goes to disk with the heartbeats, at most once a
//! minute for each sandbox); grows with sandboxes that are not used any more.

use super::StoreError;
use super::writer::Writer;
use crate::model::id::SandboxId;
use crate::model::time::{Now, Wall};
use rusqlite::params;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How exactly the database knows when a sandbox was last used. Larger: a crash forgets
/// more; smaller: a client that pings costs a page of the disk with every flush.
const ACTIVE_STEP: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy)]
struct Use {
    at: Wall,
    /// The last use that the database knows of.
    flushed: Option<Wall>,
}

impl Use {
    /// Not used for a while; a clock that was set back is believed.
    fn is_old(&self, now: Wall) -> bool {
        now.since(self.at) >= ACTIVE_STEP
    }

    fn must_be_flushed(&self, now: Wall) -> bool {
        let near = |at: Wall| self.at >= at && self.at.since(at) < ACTIVE_STEP;
        match self.flushed {
            None => true,
            Some(flushed) if flushed == self.at => false,
            Some(flushed) => !near(flushed) || self.is_old(now),
        }
    }
}

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Activity {
    uses: Mutex<HashMap<SandboxId, Use>>,
}

impl Activity {
    fn lock(&self) -> MutexGuard<'_, HashMap<SandboxId, Use>> {
        // Every critical section leaves the map whole, so a panic elsewhere is no reason to stop.
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A sandbox is used now.
    pub fn note(&self, sandbox: SandboxId, now: Wall) {
        self.lock().entry(sandbox).or_insert(Use { at: now, flushed: None }).at = now;
    }

    /// When it was last used, if that is not long ago.
    pub fn last(&self, sandbox: SandboxId) -> Option<Wall> {
        self.lock().get(&sandbox).map(|used| used.at)
    }

    /// What has to be written; marks it as written. What is known to the database and was
    /// not used for a while is forgotten.
    fn take_used(&self, now: Wall) -> Vec<(SandboxId, Wall)> {
        let mut uses = self.lock();
        uses.retain(|_, used| used.flushed != Some(used.at) || !used.is_old(now));
        let due = uses.iter_mut().filter(|(_, used)| used.must_be_flushed(now));
        due.map(|(id, used)| {
            used.flushed = Some(used.at);
            (*id, used.at)
        })
        .collect()
    }

    /// The last flush failed: everything has to be written again.
    pub(super) fn unflushed(&self) {
        self.lock().values_mut().for_each(|used| used.flushed = None);
    }
}

impl Writer {
    /// Writes which sandboxes were used, in the transaction that writes heartbeats.
    pub(super) fn flush_activity(&mut self, now: Now) -> Result<(), StoreError> {
        let used = self.presence.activity.take_used(now.wall);
        let mut update = self.conn.prepare_cached(
            "UPDATE sandboxes SET last_active_at = ?2 WHERE id = ?1 \
             AND (last_active_at IS NULL OR last_active_at < ?2)",
        )?;
        for (id, at) in used {
            update.execute(params![id.to_string(), at.0])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_are_written_once_a_minute_and_forgotten_after() {
        let activity = Activity::default();
        let sandbox = SandboxId::from_u128(1);
        let used = |ms: i64| {
            activity.note(sandbox, Wall(ms));
            activity.take_used(Wall(ms)).iter().map(|(_, at)| at.0).collect::<Vec<_>>()
        };
        assert_eq!(activity.take_used(Wall(0)), []);
        assert_eq!(used(100_000), [100_000]);
        assert_eq!(used(100_001), [0; 0]);
        assert_eq!(used(159_999), [0; 0]);
        assert_eq!(activity.last(sandbox), Some(Wall(159_999)), "memory knows better");
        assert_eq!(used(160_000), [160_000]);
        assert_eq!(used(150_000), [150_000], "the clock was set back");
        activity.unflushed();
        assert_eq!(used(150_001), [150_001], "what failed is written again");
        assert_eq!(activity.take_used(Wall(210_001)), []);
        assert_eq!(activity.last(sandbox), None, "nothing is kept of what is not used");
    }

    #[test]
    fn the_last_use_is_written_once_it_stays_the_last() {
        let activity = Activity::default();
        let sandbox = SandboxId::from_u128(1);
        activity.note(sandbox, Wall(0));
        assert_eq!(activity.take_used(Wall(0)).len(), 1);
        activity.note(sandbox, Wall(30_000));
        assert_eq!(activity.take_used(Wall(89_999)), []);
        assert_eq!(activity.take_used(Wall(90_000)), [(sandbox, Wall(30_000))]);
        assert_eq!(activity.last(sandbox), Some(Wall(30_000)));
        assert_eq!(activity.take_used(Wall(90_001)), []);
        assert_eq!(activity.last(sandbox), None);
    }
}
