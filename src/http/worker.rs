//! Owns the workers: each waits for anything to be ready and deals with it.
//!
//! Never: waits for a peer. All workers wait on one poller; one-shot events give each
//! connection to exactly one of them. Started by `server`.

use super::buffer::Buffer;
use super::connection::{Connection, Next, StreamStart};
use super::deferred::{Caller, DeferredStart};
use super::limits::ACCEPTS_PER_TURN;
use super::response::Response;
use super::server::Shared;
use super::stream::StreamWriter;
use super::table::{Place, lock};
use super::token::Token;
use super::transport::Transport;
use crate::logging::seldom;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventFlags};
use rustix::io::Errno;
use rustix::net::{SocketAddrAny, SocketFlags, acceptfrom_with};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A worker's life.
pub(super) fn run(shared: &Arc<Shared>) {
    let mut input = Buffer::default();
    // One event at a time: whatever else is ready is for the other workers.
    let mut events = Vec::with_capacity(1);
    loop {
        match epoll::wait(&shared.epoll, spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                log::error!("an HTTP worker ends: could not wait for events: {error}");
                return;
            }
        }
        for event in events.drain(..) {
            match Token::decode(event.data) {
                Token::Exit => return,
                Token::Listener(index) => accept_turn(shared, index),
                Token::Connection(place) => {
                    if let Some(mut connection) = shared.unpark(place) {
                        let next = connection.advance(&mut input, &shared.service);
                        follow(shared, place, connection, next, &mut input);
                    }
                }
            }
        }
    }
}

/// Does with a connection what has to happen next.
pub(super) fn follow(
    shared: &Arc<Shared>,
    place: Place,
    mut connection: Box<Connection>,
    mut next: Next,
    input: &mut Buffer,
) {
    loop {
        next = match next {
            Next::Readable => return shared.park(place, connection, EventFlags::IN, false),
            Next::Writable => return shared.park(place, connection, EventFlags::OUT, false),
            Next::Close => return shared.close(place, connection),
            Next::Stream(start) => {
                if take(&shared.counts.streams, shared.config.streams_max) {
                    return start_stream(shared, place, connection, start);
                }
                connection.refuse(shared.service.counted(full("too many streams are open")));
                connection.advance(input, &shared.service)
            }
            Next::Feed(start) if shared.config.feeds => {
                return shared.hub.add(place, connection, start);
            }
            Next::Feed(_) => {
                connection.refuse(shared.service.counted(full("this server has no feeds")));
                connection.advance(input, &shared.service)
            }
            Next::Deferred(start) => {
                if take(&shared.counts.deferred, shared.config.deferred_max) {
                    return start_deferred(shared, place, connection, start);
                }
                let refusal = full("too many requests wait for an answer already");
                let refusal = shared.service.counted(refusal);
                connection.complete(refusal, start.exchange, &shared.service)
            }
        };
    }
}

/// One more of what is limited; false when there are `max` already.
fn take(count: &AtomicUsize, max: usize) -> bool {
    let taken = count.fetch_add(1, Ordering::SeqCst) < max;
    if !taken {
        count.fetch_sub(1, Ordering::SeqCst);
    }
    taken
}

fn full(message: &str) -> Response {
    Response::error(503, "unavailable", message).with_header("retry-after", "5")
}

fn start_deferred(
    shared: &Arc<Shared>,
    place: Place,
    connection: Box<Connection>,
    start: DeferredStart,
) {
    let running = RunningDeferred { shared: Arc::clone(shared), place, made: None };
    let caller = Caller::new(connection, Arc::clone(&shared.stop));
    let body = move || {
        let mut running = running;
        running.made = Some(caller.run(start, &running.shared.service));
    };
    if let Err(error) = Shared::spawn(shared, "http-deferred".to_owned(), body) {
        seldom!(Error, "responses without a thread", "clients" =>
            "could not start a thread for a response: {error}");
    }
}

/// Gives back what a deferred response took, also when its thread cannot start.
struct RunningDeferred {
    shared: Arc<Shared>,
    place: Place,
    /// The connection and what comes next, when the response is made.
    made: Option<(Box<Connection>, Next)>,
}

impl Drop for RunningDeferred {
    fn drop(&mut self) {
        self.shared.counts.deferred.fetch_sub(1, Ordering::SeqCst);
        match self.made.take() {
            Some((connection, next)) => {
                let mut input = Buffer::default();
                follow(&self.shared, self.place, connection, next, &mut input);
            }
            None => self.shared.table.release(self.place),
        }
    }
}

fn start_stream(
    shared: &Arc<Shared>,
    place: Place,
    connection: Box<Connection>,
    start: StreamStart,
) {
    let stream = RunningStream { shared: Arc::clone(shared), place, ended: None };
    let stop = Arc::clone(&shared.stop);
    let counts = Arc::clone(&shared.counts);
    let deadline = shared.config.write_deadline;
    let writer = StreamWriter::new(connection, start.chunked, deadline, stop, counts);
    let body = move || {
        let mut stream = stream;
        stream.ended = catch_unwind(AssertUnwindSafe(|| writer.run(start))).unwrap_or_else(|_| {
            seldom!(Error, "panics of streams", "clients" => "a stream panicked");
            None
        });
    };
    if let Err(error) = Shared::spawn(shared, "http-stream".to_owned(), body) {
        seldom!(Error, "streams without a thread", "clients" =>
            "could not start a thread for a stream: {error}");
    }
}

/// Gives back what a stream took, however it ends, also when its thread cannot start.
struct RunningStream {
    shared: Arc<Shared>,
    place: Place,
    /// The connection, when the response is complete.
    ended: Option<Box<Connection>>,
}

impl Drop for RunningStream {
    fn drop(&mut self) {
        self.shared.counts.streams.fetch_sub(1, Ordering::SeqCst);
        match self.ended.take() {
            Some(mut connection) => {
                connection.begin_linger();
                self.shared.park(self.place, connection, EventFlags::IN, false);
            }
            None => self.shared.table.release(self.place),
        }
    }
}

fn accept_turn(shared: &Shared, index: usize) {
    match accept_some(shared, index, ACCEPTS_PER_TURN) {
        Ok(()) => {
            if shared.cannot_accept.swap(false, Ordering::SeqCst) {
                seldom!(Info, "returns of the listener", "clients" =>
                    "connections are accepted again");
            }
            shared.rearm_listener(index);
        }
        Err(error) => {
            if !shared.cannot_accept.swap(true, Ordering::SeqCst) {
                seldom!(Error, "failures to accept", "clients" =>
                    "could not accept connections, will go on trying: {error}");
            }
            shared.make_room();
            shared.rest_listener(index);
        }
    }
}

/// Takes in those who have connected before the end of a server.
pub(super) fn accept_last(shared: &Shared, index: usize) {
    if let Err(error) = accept_some(shared, index, shared.config.connections_max) {
        log::debug!("connections were lost at the end: {error}");
    }
}

fn accept_some(shared: &Shared, index: usize, count_max: usize) -> Result<(), Errno> {
    let Some(listener) = shared.listeners.get(index) else { return Ok(()) };
    let listener = lock(listener);
    let Some(listener) = &*listener else { return Ok(()) };
    for accepted in 0..count_max {
        match acceptfrom_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok((socket, peer)) => admit(shared, socket, peer, index),
            Err(Errno::WOULDBLOCK) => return Ok(()),
            // About that one connection, not about the listener; accept(2) lists them.
            Err(Errno::CONNABORTED | Errno::INTR | Errno::PROTO | Errno::PERM) => {}
            Err(Errno::NETDOWN | Errno::HOSTDOWN | Errno::HOSTUNREACH | Errno::NETUNREACH) => {}
            // Without a file descriptor left accept fails even when nobody connects. If
            // somebody does, the listener's next turn will tell.
            Err(_) if accepted > 0 => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn admit(shared: &Shared, socket: OwnedFd, peer: Option<SocketAddrAny>, listener: usize) {
    let Some(peer) = peer.and_then(|peer| SocketAddr::try_from(peer).ok()) else { return };
    let socket = TcpStream::from(socket);
    let tls = shared.config.tls.as_ref().and_then(|tls| tls.current(listener));
    let transport = match tls {
        None => Ok(Transport::plain(socket)),
        Some(tls) => Transport::tls(socket, tls),
    };
    let transport = match transport {
        Ok(transport) => transport,
        Err(error) => {
            seldom!(Error, "failures to begin TLS", peer.ip() =>
                "could not begin TLS with {peer}: {error}");
            return;
        }
    };
    let place = shared.table.claim();
    let Some(place) = place.or_else(|| shared.make_room().then(|| shared.table.claim())?) else {
        shared.counts.dropped.count();
        seldom!(Warn, "dropped on arrival", peer.ip() =>
            "dropped {peer}: too many connections, all of them busy");
        return;
    };
    let body_bytes_max = shared.config.body_bytes_max;
    let connection = Box::new(Connection::new(transport, peer, listener, body_bytes_max));
    shared.park(place, connection, EventFlags::IN, true);
}
