//! Owns a server from start to end: what its threads share, how they start and stop.
//!
//! Never: reads or writes a connection itself. Called by `engine`, `sim` and tests.

use super::buffer::Buffer;
use super::connection::{Connection, Waiting};
use super::deferred::Claim;
use super::ears::{Ears, Hearing};
use super::figures::{Counts, HttpFigures};
use super::limits::{
    ACCEPT_PAUSE, EVICT_ONE_IN, HELD_BYTES_EVICTED, HELD_BYTES_FREE, HELD_BYTES_MAX, JOIN_GRACE,
    SAY_FULL_EVERY, SHUTDOWN_READ_GRACE, STACK_BYTES, ServerConfig,
};
use super::reject::Reject;
use super::service::{Handler, Service};
use super::stop::StopSignal;
use super::table::{Found, Place, Table, lock};
use super::timer::Timer;
use super::token::Token;
use super::{reaper, worker};
use rustix::event::epoll::{self, EventFlags};
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A running server. Dropping it stops it without waiting for requests in flight.
pub struct Server {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Serves all of `listeners` with one handler. Fails when the kernel refuses a thread or
    /// a file descriptor.
    pub fn start(
        listeners: Vec<TcpListener>,
        handler: Arc<dyn Handler>,
        config: ServerConfig,
    ) -> io::Result<Server> {
        let workers = config.workers.max(1);
        let shared = Arc::new(Shared::new(listeners, handler, config)?);
        let mut server = Server { shared, threads: Vec::with_capacity(workers + 1) };
        server.start_thread("http-reaper".to_owned(), reaper::run)?;
        for number in 0..workers {
            let run = move |shared: &Arc<Shared>| worker::run(shared, number);
            server.start_thread(format!("http-{number}"), run)?;
        }
        for listener in 0..server.shared.listeners.len() {
            server.shared.watch_listener(listener)?;
        }
        Ok(server)
    }

    /// Connections that are open now.
    pub fn connections(&self) -> usize {
        self.shared.table.len()
    }

    /// Whether clients can be heard.
    pub fn hearing(&self) -> Hearing {
        Hearing::new(&self.shared)
    }

    /// What is counted here; counts on after the server has ended.
    pub fn figures(&self) -> HttpFigures {
        HttpFigures::new(Arc::clone(&self.shared.table), Arc::clone(&self.shared.counts))
    }

    /// Closes the listener of this index; who connects is refused. Connections that are open
    /// go on.
    pub fn close_listener(&self, index: usize) {
        if let Some(listener) = self.shared.listeners.get(index) {
            lock(listener).take();
        }
    }

    /// Listens in the place of a listener that was closed. Fails when the kernel refuses to
    /// watch it; there is no such place is no error.
    pub fn reopen_listener(&self, index: usize, listener: TcpListener) -> io::Result<()> {
        if let Some(place) = self.shared.listeners.get(index) {
            *lock(place) = Some(listener);
        }
        self.shared.watch_listener(index)
    }

    /// Stops listening, closes idle connections, tells streams to return, lets requests in
    /// flight finish until `deadline`, cuts what is left and ends the threads. False when a
    /// handler or stream did not return in time; its thread is left behind.
    pub fn shutdown(mut self, deadline: Duration) -> bool {
        self.stop(deadline)
    }

    fn start_thread(
        &mut self,
        name: String,
        run: impl FnOnce(&Arc<Shared>) + Send + 'static,
    ) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        self.threads.push(Shared::spawn(&shared.clone(), name, move || run(&shared))?);
        Ok(())
    }

    fn stop(&mut self, deadline: Duration) -> bool {
        let until = Instant::now() + deadline;
        self.shared.begin_stop();
        if !self.shared.table.wait_empty(deadline) {
            let left = self.shared.table.len();
            log::warn!("{left} connections were cut because they did not end in time");
        }
        self.shared.exit.raise();
        self.shared.timer.end();
        let left = until.saturating_duration_since(Instant::now()) + JOIN_GRACE;
        let ended = self.shared.threads.wait_ended(left);
        if ended {
            self.threads.drain(..).for_each(|thread| {
                // Its panic was reported when it happened.
                let _ = thread.join();
            });
        } else {
            log::warn!("a handler or stream did not return in time; its thread is left behind");
        }
        // A thread left behind keeps what is shared; the connections must not stay open too.
        drop(self.shared.table.take_all());
        self.threads.clear();
        ended
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.shared.exit.is_raised() {
            self.stop(Duration::ZERO);
        }
    }
}

/// What all threads of one server share.
pub(super) struct Shared {
    pub(super) config: ServerConfig,
    pub(super) service: Service,
    pub(super) epoll: OwnedFd,
    pub(super) table: Arc<Table>,
    pub(super) counts: Arc<Counts>,
    pub(super) timer: Timer,
    /// Each behind a lock so that it can be closed while the server lives on.
    pub(super) listeners: Vec<Mutex<Option<TcpListener>>>,
    /// Listeners that rest because they could not accept.
    pub(super) resting: Mutex<Vec<usize>>,
    /// No new work; what runs should return.
    pub(super) stop: Arc<StopSignal>,
    /// Workers leave.
    pub(super) exit: StopSignal,
    /// Whether clients can be heard.
    pub(super) ears: Ears,
    threads: ThreadCount,
    held_bytes: AtomicUsize,
    said_full_ms: Mutex<Option<u64>>,
}

impl Shared {
    fn new(
        listeners: Vec<TcpListener>,
        handler: Arc<dyn Handler>,
        config: ServerConfig,
    ) -> io::Result<Shared> {
        let stop = Arc::new(StopSignal::new()?);
        let counts = Arc::new(Counts::default());
        let shared = Shared {
            service: Service::new(handler, Arc::clone(&stop), Arc::clone(&counts)),
            counts,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            table: Arc::new(Table::new(config.connections_max.max(1))),
            timer: Timer::new(),
            listeners: listeners.into_iter().map(|listener| Mutex::new(Some(listener))).collect(),
            resting: Mutex::default(),
            stop,
            exit: StopSignal::new()?,
            threads: ThreadCount::default(),
            ears: Ears::new(config.workers.max(1)),
            held_bytes: AtomicUsize::new(0),
            said_full_ms: Mutex::default(),
            config,
        };
        epoll::add(&shared.epoll, &shared.exit, Token::Exit.encode(), EventFlags::IN)?;
        Ok(shared)
    }

    /// Runs `body` on a thread that `shutdown` waits for.
    pub(super) fn spawn(
        shared: &Arc<Shared>,
        name: String,
        body: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let counted = ThreadCount::enter(shared);
        std::thread::Builder::new().name(name).stack_size(STACK_BYTES).spawn(move || {
            let _counted = counted;
            body();
        })
    }

    fn watch_listener(&self, index: usize) -> io::Result<()> {
        let Some(listener) = self.listeners.get(index) else { return Ok(()) };
        if let Some(listener) = &*lock(listener) {
            listener.set_nonblocking(true)?;
            // Accepted sockets inherit it: responses are written at once, there is nothing
            // to wait for.
            rustix::net::sockopt::set_tcp_nodelay(listener, true)?;
            let flags = EventFlags::IN | EventFlags::ONESHOT;
            epoll::add(&self.epoll, listener, Token::Listener(index).encode(), flags)?;
        }
        Ok(())
    }

    /// Lets a listener that had its turn queue again.
    pub(super) fn rearm_listener(&self, index: usize) {
        let Some(listener) = self.listeners.get(index) else { return };
        if let Some(listener) = &*lock(listener) {
            let flags = EventFlags::IN | EventFlags::ONESHOT;
            let token = Token::Listener(index).encode();
            if let Err(error) = epoll::modify(&self.epoll, listener, token, flags) {
                log::error!("could not go on listening: {error}");
            }
        }
    }

    /// Lets a listener rest for a moment.
    pub(super) fn rest_listener(&self, index: usize) {
        lock(&self.resting).push(index);
        self.timer.look_at(self.timer.now_ms() + millis(ACCEPT_PAUSE));
    }

    /// Puts a connection to sleep until its socket is ready for `flags` or its deadline is
    /// due.
    pub(super) fn park(
        self: &Arc<Shared>,
        place: Place,
        mut connection: Box<Connection>,
        flags: EventFlags,
        is_new: bool,
    ) {
        let now_ms = self.timer.now_ms();
        connection.wait_from(now_ms, &self.config);
        if self.stop.is_raised() {
            connection.hurry(now_ms + millis(SHUTDOWN_READ_GRACE));
        }
        if self.exit.is_raised() {
            return self.close(place, connection);
        }
        if !self.hold(&connection) {
            self.evict_holders();
            if !self.hold(&connection) {
                return self.evict(place, connection);
            }
        }
        let deadline_ms = connection.deadline_ms();
        let token = Token::Connection(place).encode();
        let arm = |connection: &Connection| {
            // Asked while the place is locked: either this sees the stop, or the stop, which
            // locks every place after it was raised, sees this connection.
            let stopping = self.stop.is_raised() && connection.is_untouched();
            let flags = if stopping { AT_ONCE } else { flags | EventFlags::ONESHOT };
            if is_new {
                epoll::add(&self.epoll, connection, token, flags)
            } else {
                epoll::modify(&self.epoll, connection, token, flags)
            }
        };
        match self.table.park(place, connection, arm) {
            Ok(()) => self.timer.look_at(deadline_ms),
            Err((connection, error)) => {
                log::error!("could not watch a connection: {error}");
                self.unhold(&connection);
                self.close(place, connection);
            }
        }
    }

    /// Takes a parked connection out because of an event of its socket.
    pub(super) fn unpark_for_event(&self, place: Place) -> Found {
        let found = self.table.take_for_event(place, self.timer.now_ms());
        if let Found::Ready(connection) = &found {
            self.unhold(connection);
        }
        found
    }

    /// Takes out a connection that waits for the answer to this claim.
    pub(super) fn unpark_waiting(
        &self,
        place: Place,
        claim: &Arc<Claim>,
    ) -> Option<Box<Connection>> {
        let connection = self.table.take_promised(place, claim)?;
        self.unhold(&connection);
        Some(connection)
    }

    /// Ends a connection that nobody else has.
    pub(super) fn close(&self, place: Place, connection: Box<Connection>) {
        drop(connection);
        self.table.release(place);
    }

    /// Drops those that have waited longest for their peer, to make room. False when nobody
    /// waits.
    pub(super) fn make_room(&self) -> bool {
        let dropped = self.table.take_longest_waiting(EVICT_ONE_IN);
        let any = !dropped.is_empty();
        self.counts.dropped.add(dropped.len() as u64);
        self.say_seldom(dropped.len());
        for (place, connection) in dropped {
            self.unhold(&connection);
            self.close(place, connection);
        }
        any
    }

    /// Takes room for bytes from those that hold most for longest: the newcomer is not
    /// the one to blame.
    fn evict_holders(self: &Arc<Shared>) {
        let now_ms = self.timer.now_ms();
        let taken = self.table.take_holders(HELD_BYTES_EVICTED, HELD_BYTES_FREE, now_ms);
        if !taken.is_empty() && self.may_say() {
            let count = taken.len();
            log::warn!("too much is held for slow clients: refused {count} that hold most");
        }
        for (place, connection) in taken {
            self.unhold(&connection);
            self.evict(place, connection);
        }
    }

    /// Ends a connection that holds too much, with an answer where one can be read.
    fn evict(self: &Arc<Shared>, place: Place, mut connection: Box<Connection>) {
        self.counts.dropped.count();
        match connection.waiting() {
            Waiting::Head | Waiting::Body => {
                connection.forget_request();
                self.service.refused(Reject::NoRoom);
                connection.refuse(Reject::NoRoom.into());
                let next = connection.advance(&mut Buffer::default(), &self.service);
                worker::follow(self, place, connection, next);
            }
            Waiting::Handshake
            | Waiting::First
            | Waiting::Idle
            | Waiting::Answer
            | Waiting::Writing
            | Waiting::Lingering => self.close(place, connection),
        }
    }

    /// A flood of connections must not become a flood of log lines.
    fn say_seldom(&self, dropped: usize) {
        if self.may_say() {
            log::warn!("out of room for connections: dropped {dropped} that waited longest");
        }
    }

    /// Whether it was not said for a while that there is no room.
    pub(super) fn may_say(&self) -> bool {
        let now_ms = self.timer.now_ms();
        let mut said_ms = lock(&self.said_full_ms);
        let may = said_ms.is_none_or(|said_ms| now_ms >= said_ms + millis(SAY_FULL_EVERY));
        if may {
            *said_ms = Some(now_ms);
        }
        may
    }

    /// Counts what a waiting connection holds; false when that is too much.
    fn hold(&self, connection: &Connection) -> bool {
        let bytes = connection.held_bytes();
        let before = self.held_bytes.fetch_add(bytes, Ordering::SeqCst);
        let fits = before <= HELD_BYTES_MAX || bytes <= HELD_BYTES_FREE;
        if !fits {
            self.unhold(connection);
        }
        fits
    }

    /// The reverse of `hold`; must come before the connection changes.
    pub(super) fn unhold(&self, connection: &Connection) {
        self.held_bytes.fetch_sub(connection.held_bytes(), Ordering::SeqCst);
    }

    fn begin_stop(self: &Arc<Shared>) {
        // What has connected before must be answered: it is taken in before the listeners
        // close.
        for (index, listener) in self.listeners.iter().enumerate() {
            worker::accept_last(self, index);
            lock(listener).take();
        }
        self.stop.raise();
        self.table.for_each_parked(|place, connection| {
            // Its answer is on its way, or its deadline.
            if connection.is_promised() {
                return;
            }
            let token = Token::Connection(place).encode();
            if let Err(error) = epoll::modify(&self.epoll, &*connection, token, AT_ONCE) {
                log::error!("could not wake a connection: {error}");
            }
        });
    }
}

/// Both directions: a worker looks at the connection at once, closes it when it is idle, and
/// answers what has arrived in the meantime.
const AT_ONCE: EventFlags = EventFlags::IN.union(EventFlags::OUT).union(EventFlags::ONESHOT);

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Threads that have not ended.
#[derive(Default)]
struct ThreadCount {
    count: Mutex<usize>,
    changed: Condvar,
}

impl ThreadCount {
    fn enter(shared: &Arc<Shared>) -> CountedThread {
        *lock(&shared.threads.count) += 1;
        CountedThread(Arc::clone(shared))
    }

    fn wait_ended(&self, timeout: Duration) -> bool {
        let count = lock(&self.count);
        let count = self.changed.wait_timeout_while(count, timeout, |count| *count > 0);
        *count.unwrap_or_else(PoisonError::into_inner).0 == 0
    }
}

/// Counts one thread for as long as it runs, or until it turns out that it cannot start.
struct CountedThread(Arc<Shared>);

impl Drop for CountedThread {
    fn drop(&mut self) {
        *lock(&self.0.threads.count) -= 1;
        self.0.threads.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Echo, connected};
    use super::*;
    use rustix::buffer::spare_capacity;
    use rustix::event::Timespec;

    #[test]
    fn a_connection_parked_idle_after_the_stop_is_looked_at_at_once() {
        let shared = Shared::new(Vec::new(), Arc::new(Echo), ServerConfig::default());
        let shared = Arc::new(shared.expect("starts"));
        let place = shared.table.claim().expect("a place");
        let (connection, _client) = connected();
        shared.stop.raise();
        shared.park(place, Box::new(connection), EventFlags::IN, true);
        let mut events = Vec::with_capacity(4);
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        epoll::wait(&shared.epoll, spare_capacity(&mut events), Some(&second)).expect("waits");
        let tokens: Vec<_> = events.iter().map(|event| Token::decode(event.data)).collect();
        assert_eq!(tokens, [Token::Connection(place)]);
    }

    #[test]
    fn nothing_is_parked_after_the_end() {
        let shared = Shared::new(Vec::new(), Arc::new(Echo), ServerConfig::default());
        let shared = Arc::new(shared.expect("starts"));
        let place = shared.table.claim().expect("a place");
        shared.exit.raise();
        shared.park(place, Box::new(connected().0), EventFlags::IN, true);
        assert_eq!(shared.table.len(), 0);
    }
}
