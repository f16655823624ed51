//! Owns TCP connections to agents: how they are opened, and what they hold while they wait.
//!
//! Never: waits without the caller's deadline, where there is one; holds memory for an answer
//! before its first byte is there. As many agents can hang as there are threads to ask them.
//! Called by `transport`.

use super::fence::TeamFence;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
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
            Ok(stream) => {
                if details.config.no_delay() {
                    stream.set_nodelay(true)?;
                }
                let config = details.config;
                let (input, output) = (config.input_buffer_size(), config.output_buffer_size());
                return Ok(Tcp { stream, held: Held::new(input, output) });
            }
            Err(e) => last = named(e, ureq::Timeout::Connect),
        }
    }
    Err(last)
}

fn open(address: &SocketAddr, patience: Option<Duration>) -> io::Result<TcpStream> {
    match patience {
        Some(patience) => TcpStream::connect_timeout(address, patience),
        None => TcpStream::connect(address),
    }
}

fn named(error: io::Error, timeout: ureq::Timeout) -> ureq::Error {
    let late = matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock);
    if late { ureq::Error::Timeout(timeout) } else { error.into() }
}

/// How long one system call may wait; an error when there is no time left.
fn left(timeout: NextTimeout) -> Result<Option<Duration>, ureq::Error> {
    match timeout.after {
        Span::Exact(after) if after.is_zero() => Err(ureq::Error::Timeout(timeout.reason)),
        Span::Exact(after) => Ok(Some(after)),
        Span::NotHappening => Ok(None),
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Tcp {
    stream: TcpStream,
    held: Held,
}

impl Tcp {
    /// Bytes of an answer as they come; zero at its end.
    fn receive(&mut self) -> io::Result<usize> {
        if self.held.input.is_empty() {
            // Waits with nothing in hand.
            uninterrupted(|| self.stream.peek(&mut [0]))?;
        }
        let into = self.held.input_append_buf();
        uninterrupted(|| self.stream.read(into))
    }
}

/// Signals are for others.
fn uninterrupted(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

impl Transport for Tcp {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.held
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.stream.set_write_timeout(left(timeout)?)?;
        let output = &self.held.output()[..amount];
        self.stream.write_all(output).map_err(|e| named(e, timeout.reason))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.stream.set_read_timeout(left(timeout)?)?;
        let amount = self.receive().map_err(|e| named(e, timeout.reason))?;
        self.held.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        // Connections are not used twice.
        false
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
            chunk: Vec::new(),
            progress: false,
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
