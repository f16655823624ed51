//! Owns every limit and deadline of the transport.
//!
//! Never: does anything with them. Read by every file of the room and by who starts a server.

use super::tls::TlsSource;
use std::time::Duration;

/// Bytes of request line and headers, with the empty line. Larger: half-open clients hold
/// more memory; smaller: browsers with many cookies are refused.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Headers of one request. Larger: more work before a request can be refused; smaller:
/// requests that came through several proxies are refused.
pub const HEADERS_MAX: usize = 64;

/// Bytes of a request target. Larger: longer lines in logs and more work for routes;
/// smaller: long filters of `GET /v1/audit` do not fit.
pub const TARGET_BYTES_MAX: usize = 8 * 1024;

/// Bytes of a request line: a target with room for method and version. Larger or smaller
/// than that only blurs the line between 414 and 431.
pub(super) const REQUEST_LINE_BYTES_MAX: usize = TARGET_BYTES_MAX + 64;

/// Default for the bytes of one request body. Larger: a few clients hold much memory;
/// smaller: metadata-rich requests are refused. interfaces.md promises it.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;

/// Bytes of one chunk-size line. Larger: buys nothing, nobody sends extensions; smaller: a
/// harmless extension is refused.
pub(super) const CHUNK_LINE_BYTES_MAX: usize = 256;

/// Bytes of all chunk extensions of one body. Larger: a client may send hundreds of times
/// its body in bytes that nobody reads; smaller: as above.
pub(super) const CHUNK_EXTENSION_BYTES_MAX: usize = 1024;

/// Bytes of all trailers of one body, which are read and forgotten. Larger: wasted reading;
/// smaller: a client that sends a digest is refused.
pub(super) const TRAILER_BYTES_MAX: usize = 4 * 1024;

/// Bytes asked of the kernel at once, and the size of each worker's buffer beside a head.
/// Larger: memory per worker; smaller: more system calls per body.
pub(super) const READ_BYTES: usize = 16 * 1024;

/// Requests answered for one connection before others have their turn. Larger: one
/// pipelining client holds a worker; smaller: more system calls per pipelined request.
pub(super) const REQUESTS_PER_TURN: u32 = 16;

/// Connections accepted from one listener before it has to queue again. Larger: a flood of
/// connections holds a worker; smaller: more system calls per connection.
pub(super) const ACCEPTS_PER_TURN: usize = 64;

/// Bytes that waiting connections hold together, half-read requests and half-written
/// responses. Larger: a hostile client can take that much memory; smaller: fewer clients
/// can fetch large listings at once.
pub(super) const HELD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// When more is held, so much of `HELD_BYTES_MAX` is taken from those that hold most for
/// longest. Larger: more uploads are refused at once; smaller: more looks over all
/// connections under a flood.
pub(super) const HELD_BYTES_EVICTED: usize = HELD_BYTES_MAX / 16;

/// A connection that holds no more than this is not dropped for `HELD_BYTES_MAX`. Larger:
/// the bound above is less of a bound; smaller: heads and heartbeats fall victim to a
/// hostile client's bodies.
pub(super) const HELD_BYTES_FREE: usize = 8 * 1024;

/// Deadlines are rounded up to a multiple of this. Larger: later verdicts; smaller: more
/// looks over the connections per second when many deadlines are due one after another.
pub(super) const DEADLINE_GRAIN_MS: u64 = 50;

/// Bytes read and forgotten after a refusal, so that the client gets to read it. Larger: a
/// hostile upload is read for longer; smaller: clients in mid-upload see a reset instead of
/// the answer.
pub(super) const LINGER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Rest of a listener that could not accept, for example for want of file descriptors.
/// Larger: clients wait longer once it is over; smaller: more wake-ups while it lasts.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Part of the open connections that is dropped when there are too many: one in this many.
/// Larger: more looks over all connections under a flood; smaller: more bystanders dropped.
pub(super) const EVICT_ONE_IN: usize = 128;

/// How often it is logged that there is no room for connections. More often: a flood fills
/// the log; less often: nobody notices.
pub(super) const SAY_FULL_EVERY: Duration = Duration::from_secs(60);

/// At a shutdown half-read requests may take this long to arrive. Larger: one half-open
/// client delays every restart; smaller: requests on slow links are lost.
pub(super) const SHUTDOWN_READ_GRACE: Duration = Duration::from_secs(1);

/// At a shutdown a stream's write in progress may take this long. Larger: a reader that
/// stopped reading delays every restart; smaller: the last event may be cut.
pub(super) const STREAM_STOP_GRACE: Duration = Duration::from_secs(1);

/// Beyond the caller's deadline a shutdown waits this long for threads that have nothing
/// left to do but end. Larger: a handler that hangs delays the exit; smaller: threads are
/// reported as left behind that are not.
pub(super) const JOIN_GRACE: Duration = Duration::from_millis(500);

/// Stack of a worker and of a thread for one stream or one deferred response. Larger: address space; smaller: a deep
/// handler overflows it, which ends the process.
pub(super) const STACK_BYTES: usize = 512 * 1024;

/// Workers that are all at one thing for so long do not hear. Larger: a pause of several
/// seconds goes unnoticed; smaller: a busy machine looks deaf.
pub(super) const STUCK_AFTER_MS: u64 = 1000;

/// A thread of a lane that had nothing to do for so long ends. Larger: threads of one bad hour
/// stay; smaller: they are started anew for every burst.
pub(super) const LANE_IDLE_FOR: Duration = Duration::from_secs(10);

/// A client that hangs up while it waits for an answer is answered for so long yet. Larger:
/// work is begun for clients that are gone; smaller: a client that only closes its sending side
/// is refused on a busy server.
pub(super) const HANG_UP_GRACE_MS: u64 = 1000;

/// How often it is looked whether an answer past its deadline, for which something has begun,
/// still has to be waited for. Larger: nothing; smaller: more looks.
pub(super) const BEGUN_GRACE_MS: u64 = 1000;

/// What one server may use and how patient it is.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Threads that read, answer and write. Larger: memory, and contention below; smaller:
    /// fewer requests are answered at a time.
    pub workers: usize,
    /// Streaming responses at a time, each with a thread of its own; more get 503.
    pub streams_max: usize,
    /// Deferred responses that are made at a time, each by a thread of its own; more get 503.
    /// Larger: threads, and memory for their stacks; smaller: fewer clients can wait.
    pub deferred_max: usize,
    /// Open connections, streams included. Beyond that those that have waited longest for
    /// their peer are dropped.
    pub connections_max: usize,
    /// Bytes of one request body; more get 413.
    pub body_bytes_max: usize,
    /// From the first byte of a request, or from the connection's start, to the end of its
    /// head.
    pub head_deadline: Duration,
    /// From the end of a head to the end of its body.
    pub body_deadline: Duration,
    /// For one whole response that the peer is slow to read, beside what
    /// `write_bytes_per_second_min` grants. For a stream: for one write.
    pub write_deadline: Duration,
    /// The pace at which a large response may be read. Larger: a listing over a poor link is
    /// cut; smaller: a slow reader holds memory for longer.
    pub write_bytes_per_second_min: u64,
    /// How long a connection may be silent between two requests. Must be longer than the
    /// agents' 30 s between heartbeats.
    pub idle_timeout: Duration,
    /// For one TLS handshake.
    pub handshake_deadline: Duration,
    /// How long a refused client may take to read the refusal and close.
    pub linger: Duration,
    /// With it listeners that it has a configuration for speak TLS only.
    pub tls: Option<TlsSource>,
}

impl Default for ServerConfig {
    fn default() -> ServerConfig {
        ServerConfig {
            workers: 8,
            streams_max: 64,
            deferred_max: 256,
            connections_max: 4096,
            body_bytes_max: BODY_BYTES_MAX,
            head_deadline: Duration::from_secs(10),
            body_deadline: Duration::from_secs(30),
            write_deadline: Duration::from_secs(10),
            write_bytes_per_second_min: 256 * 1024,
            idle_timeout: Duration::from_secs(120),
            handshake_deadline: Duration::from_secs(10),
            linger: Duration::from_secs(2),
            tls: None,
        }
    }
}
