//! Owns the workers: each waits for anything to be ready and deals with it.
//!
//! Never: waits for a peer. All workers wait on one poller; one-shot events give each
//! connection to exactly one of them. Started by `server`.

use super::buffer::Buffer;
use super::connection::{Connection, Next, StreamStart};
use super::deferred::{Counted, DeferredStart, Making};
use super::lane::{Job, Slot};
use super::limits::ACCEPTS_PER_TURN;
use super::response::Response;
use super::server::Shared;
use super::stream::StreamWriter;
use super::table::{Found, Place, lock};
use super::token::Token;
use super::transport::Transport;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventFlags};
use rustix::io::Errno;
use rustix::net::{SocketAddrAny, SocketFlags, acceptfrom_with};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// A worker's life.
pub(super) fn run(shared: &Arc<Shared>, number: usize) {
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
        shared.ears.begin(number, shared.timer.now_ms());
        for event in events.drain(..) {
            match Token::decode(event.data) {
                Token::Exit => return,
                Token::Listener(index) => accept_turn(shared, index),
                Token::Connection(place) => match shared.unpark_for_event(place) {
                    Found::Ready(mut connection) => {
                        let next = connection.advance(&mut input, &shared.service);
                        follow(shared, place, connection, next);
                    }
                    Found::HungUp { deadline_ms } => shared.timer.look_at(deadline_ms),
                    Found::Nothing => {}
                },
            }
        }
        shared.ears.end(number, shared.timer.now_ms());
    }
}

/// Does with a connection what has to happen next.
pub(super) fn follow(
    shared: &Arc<Shared>,
    place: Place,
    mut connection: Box<Connection>,
    mut next: Next,
) {
    loop {
        next = match next {
            Next::Readable => return shared.park(place, connection, EventFlags::IN, false),
            Next::Writable => return shared.park(place, connection, EventFlags::OUT, false),
            Next::Close => return shared.close(place, connection),
            Next::Stream(start) => {
                return begin_stream(shared, place, connection, start, None);
            }
            Next::Deferred(start) => {
                let max = start.slot.as_ref().map_or(shared.config.deferred_max, |_| usize::MAX);
                if let Some(counted) = Counted::take(&shared.counts, max) {
                    return begin_deferred(shared, place, connection, start, counted);
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

/// Parks the connection and has another thread make its answer.
fn begin_deferred(
    shared: &Arc<Shared>,
    place: Place,
    mut connection: Box<Connection>,
    start: DeferredStart,
    counted: Counted,
) {
    let DeferredStart { run, slot, exchange } = start;
    let claim = connection.promise(exchange, slot.as_ref().and_then(Slot::patience));
    shared.park(place, connection, EventFlags::RDHUP, false);
    let making = Making::new(shared, place, Arc::clone(&claim), counted);
    // Left here when no thread takes it: who waits must hear of it.
    let work = Arc::new(Mutex::new(Some((making, run))));
    let taken = Arc::clone(&work);
    let begun = match slot {
        Some(slot) => {
            let work = Box::new(move |slot| {
                let work = lock(&taken).take();
                if let Some((making, run)) = work {
                    making.run(run, Some(slot));
                }
            });
            slot.submit(claim, work).map_err(|Job { .. }| ())
        }
        None => {
            let work = move || {
                let work = lock(&taken).take();
                if let Some((making, run)) = work {
                    making.run(run, None);
                }
            };
            Shared::spawn(shared, "http-deferred".to_owned(), work).map(drop).map_err(|error| {
                log::error!("could not start a thread for a response: {error}");
            })
        }
    };
    if begun.is_err() {
        let work = lock(&work).take();
        if let Some((making, _)) = work {
            making.answer(full("no thread is available for the answer"), None);
        }
    }
}

/// Has a stream written, by the present thread if its lane says so.
pub(super) fn begin_stream(
    shared: &Arc<Shared>,
    place: Place,
    mut connection: Box<Connection>,
    start: StreamStart,
    slot: Option<Slot>,
) {
    if !take(&shared.counts.streams, shared.config.streams_max) {
        connection.refuse(shared.service.counted(full("too many streams are open")));
        let next = connection.advance(&mut Buffer::default(), &shared.service);
        return follow(shared, place, connection, next);
    }
    let here = slot.as_ref().is_some_and(Slot::streams);
    let place = Some(place);
    let stream = RunningStream { shared: Arc::clone(shared), place, ended: None, _slot: slot };
    if here {
        return stream.run(connection, start);
    }
    // Left here when no thread takes it.
    let work = Arc::new(Mutex::new(Some((stream, connection, start))));
    let taken = Arc::clone(&work);
    let body = move || {
        let work = lock(&taken).take();
        if let Some((stream, connection, start)) = work {
            stream.run(connection, start);
        }
    };
    if let Err(error) = Shared::spawn(shared, "http-stream".to_owned(), body) {
        log::error!("could not start a thread for a stream: {error}");
        let work = lock(&work).take();
        if let Some((stream, connection, _)) = work {
            stream.refuse(connection);
        }
    }
}

/// Gives back what a stream took, however it ends, also when its thread cannot start.
struct RunningStream {
    shared: Arc<Shared>,
    /// `None`: the connection goes another way.
    place: Option<Place>,
    /// The connection, when the response is complete.
    ended: Option<Box<Connection>>,
    _slot: Option<Slot>,
}

impl RunningStream {
    fn run(mut self, connection: Box<Connection>, start: StreamStart) {
        let (stop, counts) = (Arc::clone(&self.shared.stop), Arc::clone(&self.shared.counts));
        let deadline = self.shared.config.write_deadline;
        let writer = StreamWriter::new(connection, start.chunked, deadline, stop, counts);
        self.ended = catch_unwind(AssertUnwindSafe(|| writer.run(start))).unwrap_or_else(|_| {
            log::error!("a stream panicked");
            None
        });
    }

    /// No thread can be started for it.
    fn refuse(mut self, mut connection: Box<Connection>) {
        let refusal = full("no thread is available for a stream");
        connection.refuse(self.shared.service.counted(refusal));
        let next = connection.advance(&mut Buffer::default(), &self.shared.service);
        if let Some(place) = self.place.take() {
            follow(&self.shared, place, connection, next);
        }
    }
}

impl Drop for RunningStream {
    fn drop(&mut self) {
        self.shared.counts.streams.fetch_sub(1, Ordering::SeqCst);
        match (self.place, self.ended.take()) {
            (Some(place), Some(mut connection)) => {
                connection.begin_linger();
                self.shared.park(place, connection, EventFlags::IN, false);
            }
            (Some(place), None) => self.shared.table.release(place),
            (None, _) => {}
        }
    }
}

fn accept_turn(shared: &Arc<Shared>, index: usize) {
    match accept_some(shared, index, ACCEPTS_PER_TURN) {
        Ok(()) => {
            if shared.ears.open(shared.timer.now_ms()) {
                log::info!("connections are accepted again");
            }
            shared.rearm_listener(index);
        }
        Err(error) => {
            if shared.ears.shut(shared.timer.now_ms()) {
                log::error!("could not accept connections, will go on trying: {error}");
            }
            shared.make_room();
            shared.rest_listener(index);
        }
    }
}

/// Takes in those who have connected before the end of a server.
pub(super) fn accept_last(shared: &Arc<Shared>, index: usize) {
    if let Err(error) = accept_some(shared, index, shared.config.connections_max) {
        log::debug!("connections were lost at the end: {error}");
    }
}

fn accept_some(shared: &Arc<Shared>, index: usize, count_max: usize) -> Result<(), Errno> {
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

fn admit(shared: &Arc<Shared>, socket: OwnedFd, peer: Option<SocketAddrAny>, listener: usize) {
    let Some(peer) = peer.and_then(|peer| SocketAddr::try_from(peer).ok()) else { return };
    let socket = TcpStream::from(socket);
    let tls = shared.config.tls.as_ref().and_then(|tls| tls.current(listener));
    let transport = match tls {
        None => Ok(Transport::plain(socket)),
        Some(tls) => Transport::tls(socket, tls),
    };
    let transport = match transport {
        Ok(transport) => transport,
        Err(error) => return log::error!("could not begin TLS with {peer}: {error}"),
    };
    let place = shared.table.claim();
    let Some(place) = place.or_else(|| shared.make_room().then(|| shared.table.claim())?) else {
        shared.counts.dropped.count();
        if shared.may_say() {
            log::warn!("dropped {peer}: too many connections, all of them busy");
        }
        return;
    };
    let body_bytes_max = shared.config.body_bytes_max;
    let connection = Box::new(Connection::new(transport, peer, listener, body_bytes_max));
    shared.park(place, connection, EventFlags::IN, true);
}
