//! Owns the lanes of the API: which work shares threads and places with which other, and how
//! long its clients are kept waiting.
//!
//! Never: lets work that may wait for the disk, for an agent or for a long answer share
//! threads with heartbeats; lets one key, host or address have all places of a lane.

use super::access::Caller;
use super::stream::STREAMS_MAX;
use crate::http::{self, Holder, LaneLimits, Slot};
use std::net::IpAddr;
use std::time::Duration;

/// What a route's work may wait for. Each route names its lane (`routes`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Agents and health. What waits for nothing (heartbeats, `/healthz`) is answered by the
    /// thread that read it; what may wait (registrations, renewals, reports, `/readyz`) has
    /// threads, and readers of the database, that nothing else uses.
    Vital,
    /// Waits for the writer.
    Write,
    /// Reads the database, perhaps for long.
    Read,
    /// Waits for an agent, or talks with one for its client.
    Conversation,
    /// Opens an event stream, which then has neither a thread nor a place here.
    Opening,
}

/// Longest wait of an agent for the writer. Larger: agents, which wait 10 s and 15 s, give up
/// first; smaller: a disk that is slow for a moment costs a renewal.
const VITAL_PATIENCE: Duration = Duration::from_secs(8);

/// Longest wait of any other client. Larger: clients wait for a disk that hangs; smaller: changes
/// are refused that a slow disk would have taken.
pub(super) const WRITE_PATIENCE: Duration = Duration::from_secs(5);

/// Longest wait for a read, its turn included. Larger: clients wait for a disk that hangs;
/// smaller: long lists that others wait behind are refused.
const READ_PATIENCE: Duration = Duration::from_secs(30);

const VITAL: LaneLimits = LaneLimits {
    name: "vital",
    // Each registers or renews one host at a time, many in one commit. Larger: memory when a
    // disk hangs; smaller: a whole fleet that registers at once waits.
    threads: 16,
    // A fleet that is started at once. Larger: memory; smaller: its agents try again.
    places: 1024,
    patience: Some(VITAL_PATIENCE),
    streams: false,
};

const WRITE: LaneLimits = LaneLimits {
    name: "write",
    // So many may wait in the writer's queue, which has room for eight times as many. Larger:
    // memory when a disk hangs; smaller: fewer changes share a commit.
    threads: 32,
    places: 256,
    patience: Some(WRITE_PATIENCE),
    streams: false,
};

const READ: LaneLimits = LaneLimits {
    name: "read",
    // Half of the readers of the database. Larger: memory for as many lists, and changes wait
    // for a reader; smaller: one long list holds up others.
    threads: 4,
    places: 256,
    patience: Some(READ_PATIENCE),
    streams: true,
};

const CONVERSATION: LaneLimits = LaneLimits {
    name: "conversation",
    // As many as places: none waits for a thread. Larger: memory for stacks; smaller: fewer
    // clients can wait. use.md promises so many.
    threads: 256,
    places: 256,
    // Each has a deadline of its own.
    patience: None,
    streams: true,
};

const OPENING: LaneLimits = LaneLimits {
    name: "opening",
    // Each reads a little. Larger: readers of the database that others wait for; smaller: a
    // crowd that connects anew at once waits for longer.
    threads: 2,
    // As many as there can be streams, so that one key opens its share at once.
    places: STREAMS_MAX,
    patience: Some(READ_PATIENCE),
    streams: false,
};

/// The lanes of one server.
pub(super) struct Lanes {
    vital: http::Lane,
    write: http::Lane,
    read: http::Lane,
    conversation: http::Lane,
    opening: http::Lane,
}

impl Lanes {
    pub(super) fn new() -> Lanes {
        Lanes {
            vital: http::Lane::new(VITAL),
            write: http::Lane::new(WRITE),
            read: http::Lane::new(READ),
            conversation: http::Lane::new(CONVERSATION),
            opening: http::Lane::new(OPENING),
        }
    }

    /// Requests that wait for an agent, or talk with one.
    pub(super) fn conversations(&self) -> usize {
        self.conversation.open()
    }

    /// A place in a lane, unless this holder has its share or too few are left.
    pub(super) fn take(&self, lane: Lane, holder: Holder) -> Option<Slot> {
        match lane {
            Lane::Vital => self.vital.take(holder),
            Lane::Write => self.write.take(holder),
            Lane::Read => self.read.take(holder),
            Lane::Conversation => self.conversation.take(holder),
            Lane::Opening => self.opening.take(holder),
        }
    }
}

impl Lane {
    /// How long a client may wait until the writer begins what it wants.
    pub(super) fn patience(self) -> Duration {
        match self {
            Lane::Vital => VITAL_PATIENCE,
            Lane::Write | Lane::Read | Lane::Conversation | Lane::Opening => WRITE_PATIENCE,
        }
    }
}

impl From<&Caller> for Holder {
    fn from(caller: &Caller) -> Holder {
        match caller {
            Caller::Admin => Holder::Operator,
            Caller::Key(key) => Holder::Other(key.id.as_u128()),
        }
    }
}

/// Of a client that shows nothing: its address, and of IPv6, where one client has many, its
/// network.
pub(super) fn holder_at(peer: IpAddr) -> Holder {
    let bits = match peer.to_canonical() {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address) >> 64 << 64,
    };
    Holder::Other(bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::writer::QUEUE_MAX;

    #[test]
    fn what_clients_wait_for_leaves_room_in_the_writers_queue() {
        const { assert!((VITAL.threads + WRITE.threads) * 4 <= QUEUE_MAX) };
    }

    #[test]
    fn who_shows_nothing_is_told_by_the_address() {
        let holder = |text: &str| holder_at(text.parse().unwrap());
        assert_eq!(holder("::ffff:10.0.0.1"), holder("10.0.0.1"));
        assert_ne!(holder("10.0.0.2"), holder("10.0.0.1"));
        assert_eq!(holder("2001:db8::1"), holder("2001:db8::ffff:2"));
        assert_ne!(holder("2001:db8::1"), holder("2001:db8:0:1::1"));
    }
}
