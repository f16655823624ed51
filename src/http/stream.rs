//! Owns streaming responses: a body that is written bit by bit by a thread of its own.
//!
//! Never: waits for a peer beyond the write deadline, nor for anything beyond a moment once
//! the server stops. Started by `worker`, used by handlers.

use super::connection::{Connection, StreamStart, unblocked};
use super::figures::Counts;
use super::limits::STREAM_STOP_GRACE;
use super::stop::StopSignal;
use super::watch::{self, Waited, watch};
use crossbeam_channel::Receiver;
use rustix::event::PollFlags;
use std::convert::Infallible;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Writes the body of one streaming response.
#[derive(Debug)]
pub struct StreamWriter {
    connection: Box<Connection>,
    chunked: bool,
    write_deadline: Duration,
    stop: Arc<StopSignal>,
    counts: Arc<Counts>,
    failed: bool,
}

impl StreamWriter {
    pub(super) fn new(
        connection: Box<Connection>,
        chunked: bool,
        write_deadline: Duration,
        stop: Arc<StopSignal>,
        counts: Arc<Counts>,
    ) -> StreamWriter {
        StreamWriter { connection, chunked, write_deadline, stop, counts, failed: false }
    }

    /// Writes all of `data` and waits until the kernel has it. `TimedOut` when the peer does
    /// not read within the write deadline, or within a second once the server stops; any
    /// error is final.
    pub fn write(&mut self, data: &[u8]) -> io::Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        if !self.chunked {
            return self.send(data);
        }
        let mut chunk = format!("{:x}\r\n", data.len()).into_bytes();
        chunk.extend_from_slice(data);
        chunk.extend_from_slice(b"\r\n");
        self.send(&chunk)
    }

    /// Ends the connection without the end of the body, so that the client can tell that
    /// something is missing.
    pub fn cut(&mut self) {
        self.failed = true;
    }

    /// Whether the server stops and the stream should return.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_raised()
    }

    /// A channel that disconnects when the server stops, for `select!`.
    pub fn stopping(&self) -> Receiver<Infallible> {
        self.stop.channel().clone()
    }

    /// Waits for `timeout`, or less when there is no more reason to wait.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<Waited> {
        watch::wait(&self.connection, &self.stop, timeout)
    }

    /// Sends the head, lets the handler write, ends the body. Gives the connection back when
    /// the client can tell that the response is complete.
    pub(super) fn run(mut self, start: StreamStart) -> Option<Box<Connection>> {
        let mut ended = self.send(&start.head);
        if ended.is_ok() {
            (start.run)(&mut self);
            ended = self.send(if self.chunked { b"0\r\n\r\n" } else { b"" });
        }
        match ended {
            Ok(()) => Some(self.connection),
            Err(error) => {
                log::debug!("stream to {} ends: {error}", self.connection.peer());
                None
            }
        }
    }

    /// After an error part of a chunk may be out: nothing that follows would make sense.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.failed {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let sent = self.send_in_time(bytes);
        self.failed = sent.is_err();
        sent
    }

    fn send_in_time(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut until = Instant::now() + self.write_deadline;
        let (mut left, mut stopping) = (bytes, false);
        loop {
            if unblocked(self.send_some(&mut left))?.is_some() {
                return Ok(());
            }
            if !stopping && self.is_stopping() {
                stopping = true;
                until = until.min(Instant::now() + STREAM_STOP_GRACE);
            }
            let stop = (!stopping).then_some(&*self.stop);
            let ready = watch(&self.connection, PollFlags::OUT, stop, until)?;
            if !ready.peer && Instant::now() >= until {
                self.counts.streams_cut.count();
                return Err(ErrorKind::TimedOut.into());
            }
        }
    }

    /// `WouldBlock` until nothing is left and the kernel has it all.
    fn send_some(&mut self, left: &mut &[u8]) -> io::Result<()> {
        let transport = self.connection.transport();
        while !left.is_empty() {
            let count = transport.write(left, &[])?;
            *left = left.get(count..).unwrap_or_default();
        }
        transport.flush()
    }
}
