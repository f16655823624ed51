//! Owns the probe threads: takes hosts to ask, asks, hands the answer on.
//!
//! Never: decides when to ask (`scheduler`) or what an answer means (`store`). Threads
//! are started when they are needed and end when they were idle for a while.

use crate::agent::client::AgentClient;
use crate::clock::Clock;
use crate::model::host::AgentAddress;
use crate::model::id::HostId;
use crate::model::probe::{FailureKind, LastProbe, Probe, ProbeFailure};
use crate::model::time::{Mono, Now};
use crate::store::writer::Revision;
use crossbeam_channel::{Receiver, Sender};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Stack of a probe thread: HTTP, JSON and TLS need far less. Larger costs address space
/// only until it is touched; smaller and a deep call overflows.
const STACK_BYTES: usize = 256 * 1024;

/// A thread that had nothing to do for so long ends. Larger and threads of one bad hour
/// stay; smaller and they are started anew for every round of probes.
const IDLE_FOR: Duration = Duration::from_secs(10);

/// A host to ask.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) host: HostId,
    pub(super) address: AgentAddress,
}

/// What asking brought.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) host: HostId,
    /// The newest revision before the question.
    pub(super) revision: u64,
    pub(super) asked_at: Mono,
    pub(super) now: Now,
    pub(super) took: Duration,
    pub(super) probe: Probe,
}

impl Answered {
    pub(super) fn summary(&self) -> LastProbe {
        let outcome = match &self.probe {
            Probe::Listed(listing) => Ok(listing.sandboxes.len()),
            Probe::Failed(failure) => Err(failure.clone()),
        };
        LastProbe { at: self.now.wall, took: self.took, outcome }
    }
}

struct Shared {
    agent: AgentClient,
    clock: Arc<dyn Clock>,
    revision: Arc<Revision>,
    deliver: Box<dyn Fn(Answered) + Send + Sync>,
    jobs: Receiver<Job>,
    threads: AtomicUsize,
    /// Jobs given and not yet delivered.
    open: AtomicUsize,
}

/// The pool.
pub(super) struct Workers {
    queue: Sender<Job>,
    shared: Arc<Shared>,
    threads_max: usize,
}

impl Workers {
    /// A pool of at most `threads_max` threads. `deliver` is called on them, may block,
    /// and is called once for every job.
    pub(super) fn new(
        agent: AgentClient,
        clock: Arc<dyn Clock>,
        revision: Arc<Revision>,
        threads_max: usize,
        deliver: Box<dyn Fn(Answered) + Send + Sync>,
    ) -> Workers {
        let (queue, jobs) = crossbeam_channel::unbounded();
        let (threads, open) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let shared = Shared { agent, clock, revision, deliver, jobs, threads, open };
        Workers { queue, shared: Arc::new(shared), threads_max }
    }

    /// Asks a host soon. The schedule bounds how many are open.
    pub(super) fn submit(&self, job: Job) {
        let open = self.shared.open.fetch_add(1, Ordering::SeqCst) + 1;
        // Cannot fail: `shared` keeps the receiver.
        let _ = self.queue.send(job);
        let threads = self.shared.threads.load(Ordering::SeqCst);
        if threads < open && threads < self.threads_max {
            self.start();
        }
    }

    fn start(&self) {
        self.shared.threads.fetch_add(1, Ordering::SeqCst);
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name("probe".to_owned()).stack_size(STACK_BYTES);
        if let Err(error) = thread.spawn(move || shared.run()) {
            // Others will take the job; with none at all the next submit tries again.
            self.shared.threads.fetch_sub(1, Ordering::SeqCst);
            log::error!("could not start a probe thread: {error}");
        }
    }

    /// Probes that are open.
    pub(super) fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Waits until nothing is open or the patience is over; true when all were delivered.
    pub(super) fn drain(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        while self.open() > 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.open() == 0
    }
}

impl Shared {
    fn run(&self) {
        loop {
            match self.jobs.recv_timeout(IDLE_FOR) {
                Ok(job) => self.carry_out(&job),
                Err(_) => {
                    self.threads.fetch_sub(1, Ordering::SeqCst);
                    // A job that came meanwhile would otherwise wait for the next one.
                    let Ok(job) = self.jobs.try_recv() else { return };
                    self.threads.fetch_add(1, Ordering::SeqCst);
                    self.carry_out(&job);
                }
            }
        }
    }

    fn carry_out(&self, job: &Job) {
        let revision = self.revision.newest();
        let asked_at = self.clock.now().mono;
        let ask = AssertUnwindSafe(|| self.agent.list_sandboxes(&job.address));
        let probe = std::panic::catch_unwind(ask).unwrap_or_else(|_| {
            let detail = "reading the answer failed; this is a bug in roost";
            Probe::Failed(ProbeFailure::new(FailureKind::Malformed, detail))
        });
        let now = self.clock.now();
        let took = now.mono.since(asked_at);
        (self.deliver)(Answered { host: job.host, revision, asked_at, now, took, probe });
        self.open.fetch_sub(1, Ordering::SeqCst);
    }
}
