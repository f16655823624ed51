//! Owns the one signal that tells threads to end.
//!
//! Never: is taken back. Raised by `server`, awaited in `epoll`, `poll` and `select!`.

use crossbeam_channel::{Receiver, Sender};
use rustix::event::{EventfdFlags, eventfd};
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// A signal that can be awaited in three ways: as a flag, as a file descriptor that becomes
/// readable, and as a channel that disconnects.
#[derive(Debug)]
pub(super) struct StopSignal {
    raised: AtomicBool,
    readable: OwnedFd,
    sender: Mutex<Option<Sender<Infallible>>>,
    disconnects: Receiver<Infallible>,
}

impl StopSignal {
    /// Not raised. Fails when no file descriptor is left.
    pub(super) fn new() -> io::Result<StopSignal> {
        let (sender, disconnects) = crossbeam_channel::bounded(0);
        Ok(StopSignal {
            raised: AtomicBool::new(false),
            readable: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            sender: Mutex::new(Some(sender)),
            disconnects,
        })
    }

    /// Raises it, for good.
    pub(super) fn raise(&self) {
        self.raised.store(true, Ordering::SeqCst);
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Nobody reads it, so the counter cannot overflow by two raises.
        if let Err(error) = rustix::io::write(&self.readable, &1_u64.to_ne_bytes()) {
            log::error!("could not wake the threads of the HTTP server: {error}");
        }
    }

    /// Whether it was raised.
    pub(super) fn is_raised(&self) -> bool {
        self.raised.load(Ordering::SeqCst)
    }

    /// Disconnects when it is raised; nothing is ever sent.
    pub(super) fn channel(&self) -> &Receiver<Infallible> {
        &self.disconnects
    }
}

/// Readable for ever from the moment the signal is raised.
impl AsFd for StopSignal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }
}
