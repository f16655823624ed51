//! Owns TCP connections to agents: how they are opened, and what they hold while they wait.
//!
//! Never: waits without the caller's deadline, where there is one; holds memory for an answer
//! before its first byte is there. As many agents can hang as there are threads to ask them.
//! Called by `transport`.

use super::fence::TeamFence;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socket_with, sockopt,
};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use ureq::unversioned::transport::time::Duration as Span;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, NextTimeout, Transport};

/// Shortest try at one of several addresses. Larger: a deadline is overrun by more. Smaller:
/// addresses that answer are given up.
const TRY_MIN: Duration = Duration::from_millis(10);

/// Opens a connection to the first of the addresses that takes one. Each gets half of the
/// time that is left, and the last one all of it. What is outside the fence is passed over.
pub(super) fn connect(
    details: &ConnectionDetails<'_>,
    fence: Option<&TeamFence>,
) -> Result<Tcp, ureq::Error> {
    let (began, patience) = (Instant::now(), details.timeout.not_zero().map(|span| *span));
    let mut last = ureq::Error::ConnectionFailed;
    let count = details.addrs.len();
    for (at, address) in details.addrs.iter().enumerate() {
        if let Some(Err(why)) = fence.map(|fence| fence.admit(address.ip())) {
            last = io::Error::other(why).into();
            continue;
        }
        let left = patience.map(|patience| patience.saturating_sub(began.elapsed()));
        let share = left.map(|left| if at + 1 < count { left / 2 } else { left }.max(TRY_MIN));
        match open(address, share) {
            Ok(Some(socket)) => {
                let config = details.config;
                let (input, output) = (config.input_buffer_size(), config.output_buffer_size());
                return Ok(Tcp { socket, held: Held::new(input, output), sends: 0 });
            }
            Ok(None) => last = ureq::Error::Timeout(ureq::Timeout::Connect),
            Err(errno) => last = io::Error::from(errno).into(),
        }
    }
    Err(last)
}

/// A connection; none within the patience.
fn open(address: &SocketAddr, patience: Option<Duration>) -> Result<Option<OwnedFd>, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    match net::connect(&socket, address) {
        Ok(()) => return Ok(Some(socket)),
        // A signal leaves it to go on by itself.
        Err(Errno::INPROGRESS | Errno::INTR) => {}
        Err(errno) => return Err(errno),
    }
    if !ready(&socket, PollFlags::OUT, patience)? {
        return Ok(None);
    }
    sockopt::socket_error(&socket)??;
    Ok(Some(socket))
}

/// Waits until something can be done with a socket; false when the patience is over.
fn ready(socket: &OwnedFd, what: PollFlags, patience: Option<Duration>) -> Result<bool, Errno> {
    let until = patience.map(|patience| Instant::now() + patience);
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.map(Timespec::try_from).transpose().unwrap_or(None);
        match poll(&mut [PollFd::new(socket, what)], left.as_ref()) {
            // Signals are for others.
            Err(Errno::INTR) => {}
            waited => return Ok(waited? > 0),
        }
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Tcp {
    socket: OwnedFd,
    held: Held,
    /// How often something was sent.
    sends: u32,
}

impl Tcp {
    /// Does what a socket lets do only now and then, as soon as it does. It is tried at once
    /// when it is likely to succeed.
    fn eventually<T>(
        &mut self,
        timeout: NextTimeout,
        (what, at_once): (PollFlags, bool),
        mut act: impl FnMut(&mut Tcp) -> Result<T, Errno>,
    ) -> Result<T, ureq::Error> {
        let patience = left(timeout)?;
        let mut waited = !at_once;
        loop {
            if waited && !ready(&self.socket, what, patience).map_err(io::Error::from)? {
                return Err(ureq::Error::Timeout(timeout.reason));
            }
            match act(self) {
                Err(Errno::AGAIN) => waited = true,
                Err(Errno::INTR) => {}
                done => return Ok(done.map_err(io::Error::from)?),
            }
        }
    }

    /// Sends what is to be sent.
    fn send_pending(&mut self, timeout: NextTimeout) -> Result<(), ureq::Error> {
        if self.held.pending.is_empty() {
            return Ok(());
        }
        // What goes out in one piece is not held back by the system, what follows might be.
        if self.sends == 1 {
            sockopt::set_tcp_nodelay(&self.socket, true).map_err(io::Error::from)?;
        }
        self.sends += 1;
        let mut sent = 0;
        while sent < self.held.pending.len() {
            sent += self.eventually(timeout, (PollFlags::OUT, true), |tcp| {
                net::send(&tcp.socket, &tcp.held.pending[sent..], SendFlags::NOSIGNAL)
            })?;
        }
        self.held.pending.clear();
        Ok(())
    }
}

/// How long one wait may be; an error when there is no time left.
fn left(timeout: NextTimeout) -> Result<Option<Duration>, ureq::Error> {
    match timeout.after {
        Span::Exact(after) if after.is_zero() => Err(ureq::Error::Timeout(timeout.reason)),
        Span::Exact(after) => Ok(Some(after)),
        Span::NotHappening => Ok(None),
    }
}

impl Transport for Tcp {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.held
    }

    /// Head and body come one after the other; they go out together, before the answer is
    /// waited for.
    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        if self.held.pending.len() + amount > self.held.output_bytes {
            self.send_pending(timeout)?;
        }
        self.held.keep_output(amount);
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.send_pending(timeout)?;
        // The first bytes of an answer take their time, and nothing is in hand for them
        // before; the others mostly are there.
        let at_once = !self.held.input.is_empty();
        let amount = self.eventually(timeout, (PollFlags::IN, at_once), |tcp| {
            let into = tcp.held.input_append_buf();
            net::recv(&tcp.socket, into, RecvFlags::empty()).map(|(amount, _)| amount)
        })?;
        self.held.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        // Connections are not used twice.
        false
    }
}

impl Drop for Tcp {
    /// Last words, a TLS alert say, as far as they can go at once.
    fn drop(&mut self) {
        let pending = &self.held.pending;
        if !pending.is_empty() {
            let _ = net::send(&self.socket, pending, SendFlags::NOSIGNAL);
        }
    }
}

/// Memory of a connection, each part from its first use on.
#[derive(Debug)]
struct Held {
    input_bytes: usize,
    output_bytes: usize,
    input: Vec<u8>,
    /// What is in `input` and not consumed.
    start: usize,
    end: usize,
    output: Vec<u8>,
    /// Output that is not sent yet.
    pending: Vec<u8>,
    /// For bodies without a length.
    chunk: Vec<u8>,
    /// The last look at the input consumed some of it.
    progress: bool,
}

impl Held {
    fn new(input_bytes: usize, output_bytes: usize) -> Held {
        Held {
            input_bytes,
            output_bytes,
            input: Vec::new(),
            start: 0,
            end: 0,
            output: Vec::new(),
            pending: Vec::new(),
            chunk: Vec::new(),
            progress: false,
        }
    }

    /// Output of so many bytes is to be sent.
    fn keep_output(&mut self, amount: usize) {
        if self.pending.is_empty() {
            // Mostly the head, and what follows is short.
            std::mem::swap(&mut self.pending, &mut self.output);
            self.pending.truncate(amount);
        } else {
            self.pending.extend_from_slice(&self.output[..amount]);
        }
    }
}

impl Buffers for Held {
    fn output(&mut self) -> &mut [u8] {
        self.output.resize(self.output_bytes, 0);
        &mut self.output
    }

    fn input(&self) -> &[u8] {
        &self.input[self.start..self.end]
    }

    fn input_append_buf(&mut self) -> &mut [u8] {
        self.input.resize(self.input_bytes, 0);
        if self.start > 0 {
            self.input.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.input[self.end..]
    }

    fn input_appended(&mut self, amount: usize) {
        self.end += amount;
    }

    fn input_consume(&mut self, amount: usize) {
        self.progress = amount > 0;
        self.start += amount;
    }

    fn tmp_and_output(&mut self) -> (&mut [u8], &mut [u8]) {
        self.chunk.resize(self.output_bytes, 0);
        self.output.resize(self.output_bytes, 0);
        (&mut self.chunk, &mut self.output)
    }

    fn can_use_input(&self) -> bool {
        self.start < self.end && self.progress
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_held_for_an_answer_before_it_comes() {
        let mut held = Held::new(16, 8);
        assert_eq!((held.output().len(), held.tmp_and_output().1.len()), (8, 8));
        assert_eq!((held.input.capacity(), held.input()), (0, &[][..]));
        assert_eq!(held.input_append_buf().len(), 16);
    }

    #[test]
    fn what_is_consumed_makes_room() {
        let mut held = Held::new(4, 8);
        held.input_append_buf().copy_from_slice(b"abcd");
        held.input_appended(4);
        assert!(!held.can_use_input(), "nobody has looked at it");
        assert_eq!(held.input_append_buf().len(), 0, "full");
        held.input_consume(3);
        assert!(held.can_use_input());
        assert_eq!(held.input(), b"d");
        held.input_append_buf()[..2].copy_from_slice(b"ef");
        held.input_appended(2);
        assert_eq!(held.input(), b"def");
        held.input_consume(0);
        assert!(!held.can_use_input(), "more has to come first");
    }
}
