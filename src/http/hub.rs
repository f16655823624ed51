//! Owns the connections of all feeds, on two threads: one writes and notices disconnects,
//! one waits for what a feed has to catch up with.
//!
//! Never: keeps more for a client than the one chunk that it is about to read; waits for a
//! client. Started by `server`, given connections by `worker`.

use super::connection::{Connection, unblocked};
use super::feed::{Chunk, Feed, FeedStart, Step};
use super::limits::{
    FEED_SEND_BUFFER_BYTES, FEED_UNACKNOWLEDGED_MAX, LINGER_BYTES_MAX, READ_BYTES,
    STREAM_STOP_GRACE,
};
use super::server::Shared;
use super::table::{Place, lock};
use crossbeam_channel::{Receiver, Sender, select};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, Event, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;
use rustix::net::sockopt;
use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How often every feed is asked and every deadline is checked when nothing happens.
const TICK: Duration = Duration::from_secs(1);

/// The same while the server stops, when there is a second for everything.
const STOPPING_TICK: Duration = Duration::from_millis(50);

/// Ready sockets that are looked at before it is checked who has arrived.
const EVENTS_PER_TURN: usize = 256;

/// What `epoll` says instead of a member's number.
const ALARM: u64 = u64::MAX;
const STOP: u64 = u64::MAX - 1;
const EXIT: u64 = u64::MAX - 2;

/// Tells all feeds that there may be news.
#[derive(Debug, Clone)]
pub struct Bell {
    alarm: Arc<OwnedFd>,
    feeds: Arc<AtomicUsize>,
}

impl Bell {
    fn new() -> io::Result<Bell> {
        let alarm = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Bell { alarm: Arc::new(alarm), feeds: Arc::default() })
    }

    /// Has every feed asked soon; one ring may stand for several.
    pub fn ring(&self) {
        if self.feeds.load(Ordering::SeqCst) > 0 {
            self.alarm();
        }
    }

    fn alarm(&self) {
        match rustix::io::write(&self.alarm, &1_u64.to_ne_bytes()) {
            // Full: it rings already.
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(error) => log::error!("could not wake the event streams: {error}"),
        }
    }

    fn answer(&self) {
        // Empty: another ring was answered with this one.
        let _ = rustix::io::read(&self.alarm, &mut [0_u8; 8]);
    }
}

/// The way to the threads.
pub(super) struct Hub {
    pub(super) bell: Bell,
    /// What the first thread waits for. Made at the start, while there are file descriptors.
    epoll: OwnedFd,
    mail: Mutex<Vec<Mail>>,
    behind: Sender<Behind>,
    catching_up: Receiver<Behind>,
}

/// What the first thread is given.
enum Mail {
    New(Box<Member>),
    /// A feed that has caught up a little; without a step when it panicked.
    Back(Behind, Option<Step>),
}

/// A feed on its way to the second thread and back.
struct Behind {
    number: u64,
    feed: Box<dyn Feed>,
}

/// One client.
struct Member {
    place: Place,
    connection: Box<Connection>,
    chunked: bool,
    /// `None` while it catches up.
    feed: Option<Box<dyn Feed>>,
    pending: Option<Pending>,
    /// Nothing follows what is pending.
    ending: bool,
    /// Bytes that the client may still send; they are not read for anything.
    unread: usize,
}

/// What the client has to read before there is more.
struct Pending {
    chunk: Arc<Chunk>,
    left: Range<usize>,
    until: Instant,
}

/// What becomes of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It waits: for the bell, or for its socket.
    Waits,
    /// It sent something and may have more.
    GoesOn,
    /// It is behind.
    Behind,
    /// The response is complete.
    Complete,
    /// The client is gone.
    Gone,
}

impl Hub {
    /// Fails when no file descriptor is left.
    pub(super) fn new() -> io::Result<Hub> {
        let (behind, catching_up) = crossbeam_channel::unbounded();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Hub { bell: Bell::new()?, epoll, mail: Mutex::default(), behind, catching_up })
    }

    /// How many feeds are open.
    pub(super) fn count(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.bell.feeds)
    }

    /// Takes over a connection.
    pub(super) fn add(&self, place: Place, connection: Box<Connection>, start: FeedStart) {
        let FeedStart { head, chunked, feed } = start;
        self.bell.feeds.fetch_add(1, Ordering::SeqCst);
        let mut member = Box::new(Member {
            place,
            connection,
            chunked,
            feed: Some(feed),
            pending: None,
            ending: false,
            unread: LINGER_BYTES_MAX,
        });
        // Its time begins when it is sent.
        member.put(Chunk::raw(head), Instant::now(), FEED_UNACKNOWLEDGED_MAX);
        self.post(Mail::New(member));
    }

    fn post(&self, mail: Mail) {
        lock(&self.mail).push(mail);
        self.bell.alarm();
    }
}

/// The second thread.
pub(super) fn catch_up(shared: &Arc<Shared>) {
    let exit = shared.exit.channel();
    loop {
        let mut behind = select! {
            recv(shared.hub.catching_up) -> behind => match behind {
                Ok(behind) => behind,
                Err(_) => return,
            },
            recv(exit) -> _ => return,
        };
        let step = guarded(|| behind.feed.catch_up(Instant::now()));
        shared.hub.post(Mail::Back(behind, step));
    }
}

/// The first thread.
pub(super) fn run(shared: &Arc<Shared>) {
    let ended = Members::new(shared).and_then(|mut members| members.run());
    if let Err(error) = ended {
        log::error!("no event is streamed from now on: could not wait for events: {error}");
    }
}

struct Members {
    shared: Arc<Shared>,
    members: HashMap<u64, Box<Member>>,
    next_number: u64,
    /// Members that may have more to send.
    again: Vec<u64>,
    ticked: Instant,
    stopping: bool,
}

impl Members {
    fn new(shared: &Arc<Shared>) -> io::Result<Members> {
        let epoll = &shared.hub.epoll;
        let data = epoll::EventData::new_u64;
        epoll::add(epoll, &shared.hub.bell.alarm, data(ALARM), EventFlags::IN)?;
        epoll::add(epoll, &*shared.stop, data(STOP), EventFlags::IN | EventFlags::ONESHOT)?;
        epoll::add(epoll, &shared.exit, data(EXIT), EventFlags::IN)?;
        Ok(Members {
            shared: Arc::clone(shared),
            members: HashMap::new(),
            next_number: 0,
            again: Vec::new(),
            ticked: Instant::now(),
            stopping: false,
        })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS_PER_TURN);
        let mut input = Vec::new();
        loop {
            let timeout = self.timeout()?;
            match epoll::wait(&self.shared.hub.epoll, spare_capacity(&mut events), timeout.as_ref())
            {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let now = Instant::now();
            let mut ask_all = false;
            let again = std::mem::take(&mut self.again);
            for event in events.drain(..) {
                match event.data.u64() {
                    EXIT => return Ok(()),
                    STOP => self.stop(now),
                    ALARM => {
                        self.shared.hub.bell.answer();
                        ask_all = true;
                    }
                    number => self.ready(number, &event, &mut input, now),
                }
            }
            self.take_mail(now);
            if now.duration_since(self.ticked) >= self.tick() {
                self.ticked = now;
                self.cut_late(now);
                ask_all = true;
            }
            if ask_all {
                self.ask_all(now);
            } else {
                again.into_iter().for_each(|number| self.go_on(number, now));
            }
        }
    }

    fn tick(&self) -> Duration {
        if self.stopping { STOPPING_TICK } else { TICK }
    }

    fn timeout(&self) -> io::Result<Option<Timespec>> {
        if self.members.is_empty() {
            return Ok(None);
        }
        let tick = self.tick().saturating_sub(self.ticked.elapsed());
        let span = if self.again.is_empty() { tick } else { Duration::ZERO };
        Timespec::try_from(span).map(Some).map_err(|_| ErrorKind::InvalidInput.into())
    }

    fn take_mail(&mut self, now: Instant) {
        let mail = std::mem::take(&mut *lock(&self.shared.hub.mail));
        for mail in mail {
            match mail {
                Mail::New(member) => self.begin(member, now),
                Mail::Back(behind, step) => self.back(behind, step, now),
            }
        }
    }

    fn begin(&mut self, mut member: Box<Member>, now: Instant) {
        let number = self.next_number;
        self.next_number += 1;
        member.ending = self.stopping;
        if let Some(pending) = &mut member.pending {
            pending.until = now + self.patience();
        }
        let watched = member.watch(&self.shared.hub.epoll, number);
        self.members.insert(number, member);
        match watched {
            Ok(()) => self.go_on(number, now),
            Err(error) => {
                log::error!("could not watch an event stream: {error}");
                self.remove(number);
            }
        }
    }

    fn back(&mut self, behind: Behind, step: Option<Step>, now: Instant) {
        let patience = self.patience();
        // Without a member the client is gone, and the feed with it.
        let Some(member) = self.members.get_mut(&behind.number) else { return };
        member.feed = Some(behind.feed);
        match step {
            Some(Step::Send(chunk)) => member.put(chunk, now, patience),
            Some(Step::Wait | Step::Again | Step::CatchUp) => {}
            Some(Step::End) => member.end(now, patience),
            None => return self.remove(behind.number),
        }
        self.go_on(behind.number, now);
    }

    fn patience(&self) -> Duration {
        let usual = self.shared.config.write_deadline;
        if self.stopping { usual.min(STREAM_STOP_GRACE) } else { usual }
    }

    /// A socket has changed.
    fn ready(&mut self, number: u64, event: &Event, input: &mut Vec<u8>, now: Instant) {
        let flags = event.flags;
        let Some(member) = self.members.get_mut(&number) else { return };
        let gone = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        let is_gone = flags.intersects(gone)
            || (flags.contains(EventFlags::IN) && member.is_closed_by_read(input));
        if is_gone {
            self.remove(number);
        } else if member.pending.is_some() {
            self.go_on(number, now);
        }
    }

    /// Asks every feed whose client waits.
    fn ask_all(&mut self, now: Instant) {
        let numbers: Vec<u64> = self.members.keys().copied().collect();
        numbers.into_iter().for_each(|number| self.go_on(number, now));
    }

    /// Does for one client what can be done now, at most one chunk.
    fn go_on(&mut self, number: u64, now: Instant) {
        let patience = self.patience();
        let Some(member) = self.members.get_mut(&number) else { return };
        match member.go_on(now, patience) {
            Fate::Waits => {}
            Fate::GoesOn => self.again.push(number),
            Fate::Behind => {
                if let Some(feed) = member.feed.take() {
                    // The other end is in `Hub`, which lives for as long as this.
                    drop(self.shared.hub.behind.send(Behind { number, feed }));
                }
            }
            Fate::Complete => self.complete(number),
            Fate::Gone => self.remove(number),
        }
    }

    fn stop(&mut self, now: Instant) {
        self.stopping = true;
        for member in self.members.values_mut() {
            member.end(now, STREAM_STOP_GRACE);
        }
        self.ask_all(now);
    }

    /// Cuts those who do not read.
    fn cut_late(&mut self, now: Instant) {
        let late = |member: &Member| member.pending.as_ref().is_some_and(|p| p.until <= now);
        let late: Vec<u64> =
            self.members.iter().filter(|(_, m)| late(m)).map(|(&number, _)| number).collect();
        for number in late {
            self.shared.counts.streams_cut.count();
            self.remove(number);
        }
    }

    fn remove(&mut self, number: u64) {
        if let Some(member) = self.leave(number) {
            self.shared.close(member.place, member.connection);
        }
    }

    fn complete(&mut self, number: u64) {
        if let Some(mut member) = self.leave(number) {
            if let Err(error) = epoll::delete(&self.shared.hub.epoll, &*member.connection) {
                log::debug!("could not let go of an event stream: {error}");
            }
            member.connection.begin_linger();
            self.shared.park(member.place, member.connection, EventFlags::IN, false);
        }
    }

    /// Without its feed: what that holds is free before the client can know.
    fn leave(&mut self, number: u64) -> Option<Box<Member>> {
        let mut member = self.members.remove(&number)?;
        drop(member.feed.take());
        self.shared.hub.bell.feeds.fetch_sub(1, Ordering::SeqCst);
        Some(member)
    }
}

impl Drop for Members {
    /// When the server exits nothing is owed to those who are left.
    fn drop(&mut self) {
        let numbers: Vec<u64> = self.members.keys().copied().collect();
        numbers.into_iter().for_each(|number| self.remove(number));
    }
}

impl Member {
    /// Edge-triggered: a change of the socket needs no call to be reported again.
    fn watch(&self, epoll: &OwnedFd, number: u64) -> io::Result<()> {
        let connection = &*self.connection;
        let timeout_ms = FEED_UNACKNOWLEDGED_MAX.as_millis() as u32;
        sockopt::set_socket_send_buffer_size(connection, FEED_SEND_BUFFER_BYTES)?;
        sockopt::set_tcp_user_timeout(connection, timeout_ms)?;
        let flags = EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        // A TLS client may say goodbye without closing.
        let flags = if connection.is_tls() { flags | EventFlags::IN } else { flags };
        Ok(epoll::add(epoll, connection, epoll::EventData::new_u64(number), flags)?)
    }

    fn put(&mut self, chunk: Arc<Chunk>, now: Instant, patience: Duration) {
        let left = chunk.range(self.chunked);
        self.pending = Some(Pending { chunk, left, until: now + patience });
    }

    /// Has the response end after what is pending.
    fn end(&mut self, now: Instant, patience: Duration) {
        self.ending = true;
        if let Some(pending) = &mut self.pending {
            pending.until = pending.until.min(now + patience);
        }
    }

    fn go_on(&mut self, now: Instant, patience: Duration) -> Fate {
        if let Some(fate) = self.flushed() {
            return fate;
        }
        if self.ending && !std::mem::take(&mut self.chunked) {
            return Fate::Complete;
        }
        if self.ending {
            // The last chunk, for clients that can tell.
            self.put(Chunk::raw(b"0\r\n\r\n".to_vec()), now, patience);
            return self.flushed().unwrap_or(Fate::Complete);
        }
        let Some(feed) = &mut self.feed else { return Fate::Waits };
        match guarded(|| feed.next(now)) {
            Some(Step::Wait) => return Fate::Waits,
            Some(Step::Again) => return Fate::GoesOn,
            Some(Step::CatchUp) => return Fate::Behind,
            Some(Step::End) => self.ending = true,
            Some(Step::Send(chunk)) => self.put(chunk, now, patience),
            // It must not look complete.
            None => return Fate::Gone,
        }
        self.flushed().unwrap_or(Fate::GoesOn)
    }

    /// `None` when nothing is pending any more.
    fn flushed(&mut self) -> Option<Fate> {
        match unblocked(self.flush()) {
            Ok(Some(())) => None,
            Ok(None) => Some(Fate::Waits),
            Err(error) => {
                log::debug!("stream to {} ends: {error}", self.connection.peer());
                Some(Fate::Gone)
            }
        }
    }

    /// `WouldBlock` until nothing is pending and the kernel has it all.
    fn flush(&mut self) -> io::Result<()> {
        let Some(pending) = &mut self.pending else { return Ok(()) };
        let transport = self.connection.transport();
        while !pending.left.is_empty() {
            let count = transport.write(pending.chunk.bytes(&pending.left), &[])?;
            pending.left.start += count;
        }
        transport.flush()?;
        self.pending = None;
        Ok(())
    }

    /// Reads and forgets what has arrived; whether the client has closed, or sends without end.
    fn is_closed_by_read(&mut self, input: &mut Vec<u8>) -> bool {
        loop {
            input.clear();
            input.reserve(READ_BYTES);
            match unblocked(self.connection.transport().read(input)) {
                Ok(None) => return false,
                Ok(Some(0)) | Err(_) => return true,
                Ok(Some(count)) => match self.unread.checked_sub(count) {
                    Some(left) => self.unread = left,
                    None => return true,
                },
            }
        }
    }
}

/// `None` when the feed panicked.
fn guarded(ask: impl FnOnce() -> Step) -> Option<Step> {
    let asked = catch_unwind(AssertUnwindSafe(ask));
    asked.inspect_err(|_| log::error!("a stream panicked")).ok()
}
