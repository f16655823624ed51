//! Owns the wait of a thread that has a connection to itself: for the peer, the server's
//! stop, or a moment.
//!
//! Never: reads or writes. Called by `stream`.

use super::stop::StopSignal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// The time is over.
    TimedOut,
    /// The server stops; the handler should return.
    Stopping,
    /// The peer has closed its side of the connection; the handler should return.
    PeerGone,
}

/// What a wait found.
pub(super) struct Ready {
    /// What was wanted of the peer, or that it is gone.
    pub(super) peer: bool,
    /// The server stops.
    pub(super) stopping: bool,
}

/// Waits for `timeout`, or less when there is no more reason to wait.
pub(super) fn wait(peer: &impl AsFd, stop: &StopSignal, timeout: Duration) -> io::Result<Waited> {
    let until = Instant::now() + timeout.min(LONGEST_WAIT);
    loop {
        let ready = watch(peer, PollFlags::RDHUP, Some(stop), until)?;
        if ready.stopping {
            return Ok(Waited::Stopping);
        } else if ready.peer {
            return Ok(Waited::PeerGone);
        } else if Instant::now() >= until {
            return Ok(Waited::TimedOut);
        }
    }
}

/// One wait until `wanted` is so of the peer, the server stops, or it is `until`; may end
/// earlier with neither.
pub(super) fn watch(
    peer: &impl AsFd,
    wanted: PollFlags,
    stop: Option<&StopSignal>,
    until: Instant,
) -> io::Result<Ready> {
    let left = until.saturating_duration_since(Instant::now());
    let timeout = Timespec::try_from(left).map_err(|_| ErrorKind::InvalidInput)?;
    let peer = PollFd::new(peer, wanted);
    let mut fds = match stop {
        Some(stop) => vec![peer, PollFd::new(stop, PollFlags::IN)],
        None => vec![peer],
    };
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) => {
            let mut found = fds.iter().map(|fd| !fd.revents().is_empty());
            let (peer, stopping) = (found.next(), found.next());
            Ok(Ready { peer: peer.unwrap_or(false), stopping: stopping.unwrap_or(false) })
        }
        // A signal: the caller looks at the time and waits again.
        Err(Errno::INTR) => Ok(Ready { peer: false, stopping: false }),
        Err(error) => Err(error.into()),
    }
}

/// Far enough away, and no overflow when added to a moment.
const LONGEST_WAIT: Duration = Duration::from_secs(365 * 24 * 3600);
