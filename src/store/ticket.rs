//! Owns whether a command that waits in the writer's queue is still wanted.
//!
//! Never: lets a command be both begun and given up. Asked by `writer`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// Who waits for what comes of a command.
pub trait Waits: Send + Sync {
    /// Asked right before the command is begun: false when it must not be, because no client
    /// waits any more. Once this was true, what comes of it is waited for.
    fn begin(&self) -> bool;
}

/// Whether a command that waits is still wanted.
pub struct Ticket {
    state: AtomicU8,
    waits: Arc<dyn Waits>,
}

const WAITING: u8 = 0;
const BEGUN: u8 = 1;
const GIVEN_UP: u8 = 2;

impl Ticket {
    /// Of a command that this client waits for.
    pub fn new(waits: Arc<dyn Waits>) -> Ticket {
        Ticket { state: AtomicU8::new(WAITING), waits }
    }

    /// Whether the command is to be begun; it is then not given up any more.
    pub(super) fn begin(&self) -> bool {
        self.turn(BEGUN) && self.waits.begin()
    }

    /// Gives the command up, unless it was begun.
    pub fn give_up(&self) -> bool {
        self.turn(GIVEN_UP)
    }

    fn turn(&self, to: u8) -> bool {
        self.state.compare_exchange(WAITING, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}
