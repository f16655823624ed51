//! Owns what an event of the poller says about whom it concerns.
//!
//! Never: more than that. Used by `server` and `worker`.

use super::table::Place;
use rustix::event::epoll::EventData;

/// Everything that can wake a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// The server ends.
    Exit,
    /// Somebody connects to the listener of this index.
    Listener(usize),
    /// A connection's socket is ready.
    Connection(Place),
}

/// No listener and no place has this index.
const LISTENERS: u32 = u32::MAX;
const EXIT: u64 = u64::MAX;

impl Token {
    /// As the kernel keeps it.
    pub(super) fn encode(self) -> EventData {
        EventData::new_u64(match self {
            Token::Exit => EXIT,
            Token::Listener(index) => pack(LISTENERS, index as u32),
            Token::Connection(place) => pack(place.index, place.generation),
        })
    }

    /// From what the kernel kept.
    pub(super) fn decode(data: EventData) -> Token {
        let bits = data.u64();
        let (high, low) = ((bits >> 32) as u32, bits as u32);
        match high {
            LISTENERS if bits == EXIT => Token::Exit,
            LISTENERS => Token::Listener(low as usize),
            index => Token::Connection(Place { index, generation: low }),
        }
    }
}

fn pack(high: u32, low: u32) -> u64 {
    (u64::from(high) << 32) | u64::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        for token in [
            Token::Exit,
            Token::Listener(0),
            Token::Listener(999),
            Token::Connection(Place { index: 0, generation: u32::MAX }),
            Token::Connection(Place { index: 4095, generation: 7 }),
        ] {
            assert_eq!(Token::decode(token.encode()), token);
        }
    }
}
