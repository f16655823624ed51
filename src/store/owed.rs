//! Owns announcements that could not be written: agents say once what they paused by
//! themselves, so it waits in memory until the disk takes it.
//!
//! Never: grows without bound, or lets one host take the room of another.

use crate::model::id::{HostId, SandboxId};
use std::collections::{BTreeMap, BTreeSet};

/// Announcements kept for one host: twice what the largest hosts run. Larger and an agent
/// that makes ids up fills the memory while the disk is full; smaller and what a large host
/// paused is presumed paused instead of known.
const OWED_PER_HOST_MAX: usize = 1024;

/// Announcements kept for all hosts, about 4 MiB. Larger: as above; smaller: as above, for
/// a large fleet.
const OWED_MAX: usize = 65_536;

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Owed {
    by_host: BTreeMap<HostId, BTreeSet<SandboxId>>,
    count: usize,
}

impl Owed {
    /// Keeps what a host announced, each id once. False when something had to be dropped:
    /// of this host nobody knows what else it paused.
    #[must_use]
    pub(super) fn keep(&mut self, host: HostId, ids: impl IntoIterator<Item = SandboxId>) -> bool {
        let mut all = true;
        for id in ids {
            let kept = self.by_host.entry(host).or_default();
            if kept.contains(&id) {
                continue;
            }
            let fits = kept.len() < OWED_PER_HOST_MAX && self.count < OWED_MAX;
            if fits {
                kept.insert(id);
                self.count += 1;
            }
            all &= fits;
        }
        all
    }

    /// Every id, host by host.
    pub(super) fn ids(&self) -> impl Iterator<Item = (HostId, Vec<SandboxId>)> {
        self.by_host.iter().map(|(host, ids)| (*host, ids.iter().copied().collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(from: u128, count: usize) -> impl Iterator<Item = SandboxId> {
        (from..from + count as u128).map(SandboxId::from_u128)
    }

    #[test]
    fn what_is_kept_is_bounded_and_each_host_has_its_share() {
        let mut owed = Owed::default();
        let (loud, quiet) = (HostId::from_u128(1), HostId::from_u128(2));
        assert!(owed.keep(loud, ids(0, OWED_PER_HOST_MAX)));
        assert!(owed.keep(loud, ids(0, OWED_PER_HOST_MAX)), "said again is not said more");
        assert!(!owed.keep(loud, ids(5000, 1_000_000)));
        assert!(owed.keep(quiet, ids(9_000_000, 3)));
        let all = |owed: &Owed| -> Vec<SandboxId> { owed.ids().flat_map(|(_, ids)| ids).collect() };
        assert_eq!(all(&owed).len(), OWED_PER_HOST_MAX + 3);
        assert!(ids(9_000_000, 3).all(|id| all(&owed).contains(&id)));
        for host in 3..1000 {
            let first = u128::from(host as u32) * 1_000_000_000;
            let _ = owed.keep(HostId::from_u128(host), ids(first, OWED_PER_HOST_MAX));
        }
        assert_eq!(all(&owed).len(), OWED_MAX);
    }
}
