//! Owns what must hold of heartbeats, and of all other requests, while some wait: for a
//! frozen disk, a locked database, long lists, an agent that hangs, a hostile host, bodies
//! that never end.
//!
//! Never: skips in silence. A disk is frozen on a loop device, which takes root; where that is
//! not permitted the test says so, and fails when `CI` is set. Every disk is thawed and
//! unmounted, also when a test fails. One test runs at a time: what is measured is the
//! server, not the other tests.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(clippy::print_stdout, reason = "figures, with --nocapture")]

mod support;

#[path = "lanes/beats.rs"]
mod beats;
#[path = "lanes/bodies.rs"]
mod bodies;
#[path = "lanes/disk.rs"]
mod disk;
#[path = "lanes/shares.rs"]
mod shares;
#[path = "lanes/stopped.rs"]
mod stopped;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Tells threads of a scope to end, also when the test fails.
pub(crate) struct Stop(std::sync::atomic::AtomicBool);

impl Stop {
    pub(crate) fn new() -> Stop {
        Stop(std::sync::atomic::AtomicBool::new(false))
    }

    pub(crate) fn is_raised(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// Raised when this is dropped.
    pub(crate) fn at_the_end(&self) -> AtTheEnd<'_> {
        AtTheEnd(self)
    }
}

pub(crate) struct AtTheEnd<'a>(&'a Stop);

impl Drop for AtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.0.store(true, std::sync::atomic::Ordering::SeqCst);
    }
}

fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
