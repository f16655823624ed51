//! Owns one connection: what it waits for, and what to do when that has come.
//!
//! Never: blocks, looks at a clock (moments are arguments), knows epoll or threads. Driven by
//! `worker` when its socket is ready, by `reaper` when its deadline is due.

use super::buffer::Buffer;
use super::deferred::{Claim, DeferredStart, Presence};
use super::limits::{
    BEGUN_GRACE_MS, HANG_UP_GRACE_MS, LINGER_BYTES_MAX, READ_BYTES, REQUESTS_PER_TURN, ServerConfig,
};
use super::parse::{Parsed, Parser, Stage, Step, Version};
use super::reject::Reject;
use super::request::{Method, Request};
use super::response::{Body, BodyEnd, Response, head, is_bodiless};
use super::service::Service;
use super::stream::StreamWriter;
use super::transport::Transport;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

/// One accepted connection, from its first byte to its last.
#[derive(Debug)]
pub(super) struct Connection {
    transport: Transport,
    peer: SocketAddr,
    listener: usize,
    parser: Parser,
    /// Read and not yet understood, kept here between turns.
    saved: Vec<u8>,
    out: Option<Box<Outgoing>>,
    /// The answer that another thread makes.
    promised: Option<Box<Promised>>,
    /// Bytes still to be forgotten, when refused or closing.
    lingering: Option<usize>,
    /// Requests begun so far, so that two waits for two requests are not taken for one.
    served: u32,
    wait: Option<Wait>,
}

/// What a connection waits for, and until when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wait {
    cause: Waiting,
    served: u32,
    since_ms: u64,
    deadline_ms: u64,
}

/// Why a connection does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiting {
    /// For the peer's part of the TLS handshake.
    Handshake,
    /// For the first byte of the first request.
    First,
    /// For the first byte of another request.
    Idle,
    /// For the rest of a head.
    Head,
    /// For the rest of a body.
    Body,
    /// For an answer that another thread makes.
    Answer,
    /// For the peer to read.
    Writing,
    /// For the peer to read the last response and close.
    Lingering,
}

/// What has to happen next to a connection.
pub(super) enum Next {
    /// Wait until there is something to read.
    Readable,
    /// Wait until there is room to write, or go on at once when there is.
    Writable,
    /// A stream begins; it needs a thread.
    Stream(StreamStart),
    /// A response is to be made; that needs a thread.
    Deferred(DeferredStart),
    /// It is over.
    Close,
}

/// What a response needs to know of its request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exchange {
    method: Method,
    version: Version,
    keep_alive: bool,
    /// Nothing had arrived beyond the request.
    all_read: bool,
}

/// An answer that another thread makes.
#[derive(Debug)]
struct Promised {
    claim: Arc<Claim>,
    /// Given up when the client hangs up.
    presence: Option<Presence>,
    exchange: Exchange,
    patience: Option<Duration>,
}

impl Drop for Promised {
    fn drop(&mut self) {
        // What has begun goes on without a client.
        self.claim.give_up();
    }
}

/// A streaming response that has not begun.
pub(super) struct StreamStart {
    pub(super) head: Vec<u8>,
    pub(super) chunked: bool,
    pub(super) run: Box<dyn FnOnce(&mut StreamWriter) + Send>,
}

/// A response on its way.
#[derive(Debug)]
struct Outgoing {
    head: Vec<u8>,
    body: Vec<u8>,
    sent: usize,
    after: After,
}

/// What follows a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    /// The next request, or the body of this one after `100 Continue`.
    GoOn,
    /// The end; the client has nothing more to say.
    Close,
    /// The end, once the client had time to read this.
    Linger,
}

impl Connection {
    /// Just accepted by the listener of this index.
    pub(super) fn new(
        transport: Transport,
        peer: SocketAddr,
        listener: usize,
        body_bytes_max: usize,
    ) -> Connection {
        Connection {
            transport,
            peer,
            listener,
            parser: Parser::new(body_bytes_max),
            saved: Vec::new(),
            out: None,
            promised: None,
            lingering: None,
            served: 0,
            wait: None,
        }
    }

    /// Does all that can be done now. `input` is empty before and after; it is the caller's
    /// so that waiting connections need no buffer.
    pub(super) fn advance(&mut self, input: &mut Buffer, service: &Service) -> Next {
        input.push(&std::mem::take(&mut self.saved));
        let next = self.go_on(input, service).unwrap_or_else(|error| {
            log::debug!("connection from {} ends: {error}", self.peer);
            Next::Close
        });
        self.saved = input.take_unread();
        next
    }

    /// The deadline is due: an answer if one is owed, else the end.
    pub(super) fn expire(&mut self, input: &mut Buffer, service: &Service) -> Next {
        match self.waiting() {
            Waiting::Head | Waiting::Body => {
                service.refused(Reject::Timeout);
                self.refuse(Reject::Timeout.into());
                self.advance(input, service)
            }
            Waiting::Answer => match self.end_wait() {
                Some(exchange) => self.complete(service.counted(too_late()), exchange, service),
                None => Next::Close,
            },
            Waiting::Handshake
            | Waiting::First
            | Waiting::Idle
            | Waiting::Writing
            | Waiting::Lingering => Next::Close,
        }
    }

    /// Waits for an answer that another thread makes; with whose claim.
    pub(super) fn promise(&mut self, exchange: Exchange, patience: Option<Duration>) -> Arc<Claim> {
        let (claim, presence) = Claim::open();
        let presence = Some(presence);
        self.promised =
            Some(Box::new(Promised { claim: Arc::clone(&claim), presence, exchange, patience }));
        claim
    }

    /// Whether it waits for an answer that another thread makes.
    pub(super) fn is_promised(&self) -> bool {
        self.promised.is_some()
    }

    /// Whether it waits for the answer to this claim.
    pub(super) fn is_promised_to(&self, claim: &Arc<Claim>) -> bool {
        self.promised.as_ref().is_some_and(|promised| Arc::ptr_eq(&promised.claim, claim))
    }

    /// Waits for no answer any more; how one is to be sent.
    pub(super) fn end_wait(&mut self) -> Option<Exchange> {
        Some(self.promised.take()?.exchange)
    }

    /// Its client hung up while it waits for an answer. One that only has nothing more to say
    /// may yet want it, so what takes a moment is done; gives the deadline of the wait.
    pub(super) fn hang_up(&mut self, now_ms: u64) -> u64 {
        let Some(promised) = &mut self.promised else { return self.deadline_ms() };
        promised.presence = None;
        let has_deadline = promised.patience.is_some();
        if let Some(wait) = self.wait.as_mut().filter(|_| has_deadline) {
            wait.deadline_ms = wait.deadline_ms.min(now_ms + HANG_UP_GRACE_MS);
        }
        self.deadline_ms()
    }

    /// When it has waited for too long, judged at `now_ms`: what has begun for its client is
    /// waited for.
    pub(super) fn judge(&mut self, now_ms: u64) -> u64 {
        if let (Some(promised), Some(wait)) = (&self.promised, &mut self.wait)
            && wait.deadline_ms <= now_ms
            && !promised.claim.give_up()
        {
            wait.deadline_ms = now_ms + BEGUN_GRACE_MS;
        }
        self.deadline_ms()
    }

    /// Gives up what has arrived of a request.
    pub(super) fn forget_request(&mut self) {
        self.saved = Vec::new();
        self.parser = self.parser.anew();
    }

    /// Puts an answer of ours in the stead of the handler's; the connection ends after it.
    pub(super) fn refuse(&mut self, response: Response) {
        self.respond(response, Version::Http11, After::Linger, Method::Get);
    }

    /// Why it does nothing.
    pub(super) fn waiting(&self) -> Waiting {
        if self.lingering.is_some() {
            return Waiting::Lingering;
        }
        if self.promised.is_some() {
            return Waiting::Answer;
        }
        if self.out.is_some() {
            return Waiting::Writing;
        }
        if self.transport.is_handshaking() {
            return Waiting::Handshake;
        }
        match self.parser.stage() {
            Stage::Boundary if self.served == 0 => Waiting::First,
            Stage::Boundary => Waiting::Idle,
            Stage::Head => Waiting::Head,
            Stage::Body => Waiting::Body,
        }
    }

    /// Begins or continues a wait at `now_ms`; returns its deadline. A wait that goes on
    /// keeps its deadline, or a client could send a byte now and then for ever.
    pub(super) fn wait_from(&mut self, now_ms: u64, config: &ServerConfig) -> u64 {
        let (cause, served) = (self.waiting(), self.served);
        let wait = match self.wait {
            Some(wait) if (wait.cause, wait.served) == (cause, served) => wait,
            Some(_) | None => {
                let deadline_ms = now_ms.saturating_add(self.patience_ms(cause, config));
                Wait { cause, served, since_ms: now_ms, deadline_ms }
            }
        };
        self.wait = Some(wait);
        wait.deadline_ms
    }

    /// Whether nothing of a request has arrived, so that nobody misses an answer.
    pub(super) fn is_untouched(&self) -> bool {
        match self.waiting() {
            Waiting::Handshake | Waiting::First | Waiting::Idle => self.saved.is_empty(),
            Waiting::Head
            | Waiting::Body
            | Waiting::Answer
            | Waiting::Writing
            | Waiting::Lingering => false,
        }
    }

    /// Brings the deadline forward to `deadline_ms` if part of a request has arrived.
    pub(super) fn hurry(&mut self, deadline_ms: u64) {
        let partial = match self.waiting() {
            Waiting::Head | Waiting::Body | Waiting::Lingering => true,
            Waiting::Handshake
            | Waiting::First
            | Waiting::Idle
            | Waiting::Answer
            | Waiting::Writing => false,
        };
        if let Some(wait) = self.wait.as_mut().filter(|_| partial) {
            wait.deadline_ms = wait.deadline_ms.min(deadline_ms);
        }
    }

    /// When it has waited for too long.
    pub(super) fn deadline_ms(&self) -> u64 {
        self.wait.map_or(u64::MAX, |wait| wait.deadline_ms)
    }

    /// Since when it has been waiting.
    pub(super) fn waiting_since_ms(&self) -> u64 {
        self.wait.map_or(u64::MAX, |wait| wait.since_ms)
    }

    /// Bytes this holds on the heap for what is half-read or half-written.
    pub(super) fn held_bytes(&self) -> usize {
        let out = self.out.as_ref().map_or(0, |out| out.head.capacity() + out.body.capacity());
        self.saved.capacity() + self.parser.held_bytes() + out
    }

    /// The other end.
    pub(super) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The bytes themselves, for a stream.
    pub(super) fn transport(&mut self) -> &mut Transport {
        &mut self.transport
    }

    /// Sends nothing more; what still arrives is forgotten.
    pub(super) fn begin_linger(&mut self) {
        self.transport.finish();
        self.saved = Vec::new();
        self.lingering = Some(LINGER_BYTES_MAX);
    }

    fn patience_ms(&self, cause: Waiting, config: &ServerConfig) -> u64 {
        let span = match cause {
            Waiting::Handshake => config.handshake_deadline,
            Waiting::First | Waiting::Head => config.head_deadline,
            Waiting::Idle => config.idle_timeout,
            Waiting::Body => config.body_deadline,
            Waiting::Answer => {
                self.promised.as_ref().and_then(|p| p.patience).unwrap_or(Duration::MAX)
            }
            Waiting::Writing => {
                let bytes = self.out.as_ref().map_or(0, |out| out.body.len()) as u64;
                let pace = config.write_bytes_per_second_min.max(1);
                config.write_deadline + Duration::from_secs(bytes / pace)
            }
            Waiting::Lingering => config.linger,
        };
        u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
    }

    fn go_on(&mut self, input: &mut Buffer, service: &Service) -> io::Result<Next> {
        let mut may_read = true;
        let last = self.served.saturating_add(REQUESTS_PER_TURN);
        loop {
            if self.lingering.is_some() {
                return self.forget(input);
            }
            match unblocked(self.flush())? {
                None => return Ok(Next::Writable),
                Some(After::GoOn) => {}
                Some(After::Close) => {
                    self.transport.finish();
                    return Ok(Next::Close);
                }
                Some(After::Linger) => {
                    self.begin_linger();
                    continue;
                }
            }
            if self.served >= last {
                return Ok(Next::Writable);
            }
            match self.parser.step(input, &|method, path| service.body_bytes_max(method, path)) {
                Step::Complete(parsed) => {
                    if let Some(next) = self.answer(*parsed, input, service) {
                        return Ok(next);
                    }
                }
                Step::Continue => self.send(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec(), After::GoOn),
                Step::Reject(reject) => {
                    log::debug!("refused a request from {}: {}", self.peer, reject.message());
                    service.refused(reject);
                    self.refuse(reject.into());
                }
                Step::More if !may_read => return Ok(self.rest(input, service)),
                Step::More => match unblocked(self.read(input))? {
                    None => return Ok(self.rest(input, service)),
                    Some(0) => return Ok(Next::Close),
                    // A full buffer means that more is there; less means that asking again
                    // would only cost a system call.
                    Some(count) => may_read = count >= READ_BYTES,
                },
            }
        }
    }

    fn rest(&self, input: &Buffer, service: &Service) -> Next {
        if self.transport.wants_write() {
            Next::Writable
        } else if self.is_untouched() && input.is_empty() && service.is_stopping() {
            Next::Close
        } else {
            Next::Readable
        }
    }

    fn read(&mut self, input: &mut Buffer) -> io::Result<usize> {
        self.transport.read(input.with_room(READ_BYTES))
    }

    /// Reads and forgets until the peer closes, nothing more is there, or enough is enough.
    fn forget(&mut self, input: &mut Buffer) -> io::Result<Next> {
        loop {
            input.consume(input.unread().len());
            match unblocked(self.read(input))? {
                None => return Ok(Next::Readable),
                Some(0) => return Ok(Next::Close),
                Some(count) => match self.lingering.and_then(|left| left.checked_sub(count)) {
                    Some(left) => self.lingering = Some(left),
                    None => return Ok(Next::Close),
                },
            }
        }
    }

    /// Hands out what is on its way; says what follows once all of it is out.
    fn flush(&mut self) -> io::Result<After> {
        let Some(out) = &mut self.out else {
            self.transport.flush()?;
            return Ok(After::GoOn);
        };
        loop {
            let head = out.head.get(out.sent..).unwrap_or_default();
            let body_sent = out.sent.saturating_sub(out.head.len());
            let body = out.body.get(body_sent..).unwrap_or_default();
            if head.is_empty() && body.is_empty() {
                break;
            }
            out.sent += self.transport.write(head, body)?;
        }
        self.transport.flush()?;
        let after = out.after;
        self.out = None;
        Ok(after)
    }

    /// Asks the handler; what can be sent at once is put on its way.
    fn answer(&mut self, parsed: Parsed, input: &Buffer, service: &Service) -> Option<Next> {
        self.served = self.served.saturating_add(1);
        let Parsed { method, path, query, headers, body, version, keep_alive } = parsed;
        let (peer, listener) = (self.peer, self.listener);
        let exchange = Exchange { method, version, keep_alive, all_read: input.is_empty() };
        let request = Request { method, path, query, headers, body, peer, listener };
        self.put(service.answer(request), exchange, service)
    }

    /// Puts the response on its way that a deferred one has become; says what comes next.
    pub(super) fn complete(
        &mut self,
        response: Response,
        exchange: Exchange,
        service: &Service,
    ) -> Next {
        self.put(response, exchange, service).unwrap_or(Next::Writable)
    }

    fn put(&mut self, response: Response, exchange: Exchange, service: &Service) -> Option<Next> {
        let Response { status, headers, body } = response;
        let Exchange { method, version, keep_alive, all_read } = exchange;
        let after = match (keep_alive, service.is_stopping()) {
            (true, false) => After::GoOn,
            (false, false) if all_read => After::Close,
            (false, false) | (_, true) => After::Linger,
        };
        match body {
            Body::Deferred(run, slot) => {
                return Some(Next::Deferred(DeferredStart { run, slot, exchange }));
            }
            Body::Stream(run) => {
                let start = StreamStart::new(status, &headers, version, run);
                if method != Method::Head {
                    return Some(Next::Stream(start));
                }
                self.send(start.head, After::Linger);
            }
            Body::Cut => return Some(Next::Close),
            Body::Empty | Body::Bytes(_) => {
                self.respond(Response { status, headers, body }, version, after, method);
            }
        }
        None
    }

    fn respond(&mut self, response: Response, version: Version, after: After, method: Method) {
        let body = match response.body {
            Body::Bytes(bytes) => bytes,
            Body::Empty | Body::Stream(_) | Body::Deferred(..) | Body::Cut => Vec::new(),
        };
        let bodiless = is_bodiless(response.status);
        let end = if bodiless { BodyEnd::Nothing } else { BodyEnd::Length(body.len()) };
        let keep_alive = after == After::GoOn;
        let head = head(response.status, &response.headers, end, version, keep_alive);
        self.send(head, after);
        if let Some(out) = self.out.as_mut().filter(|_| !bodiless && method != Method::Head) {
            out.body = body;
        }
    }

    fn send(&mut self, head: Vec<u8>, after: After) {
        self.out = Some(Box::new(Outgoing { head, body: Vec::new(), sent: 0, after }));
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.transport.as_fd()
    }
}

impl StreamStart {
    fn new(
        status: u16,
        headers: &[(&'static str, String)],
        version: Version,
        run: Box<dyn FnOnce(&mut StreamWriter) + Send>,
    ) -> StreamStart {
        let (end, chunked) = match version {
            Version::Http10 => (BodyEnd::Close, false),
            Version::Http11 => (BodyEnd::Chunked, true),
        };
        StreamStart { head: head(status, headers, end, version, false), chunked, run }
    }
}

/// In the stead of an answer that was not made in time.
fn too_late() -> Response {
    let message = "not begun: the disk or other requests keep it waiting; nothing was changed; \
                   try again";
    Response::error(503, "unavailable", message).with_header("retry-after", "5")
}

/// None for what cannot be done without waiting.
pub(super) fn unblocked<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
