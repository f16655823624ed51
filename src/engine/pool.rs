//! Owns threads that carry out jobs which wait for somebody else: probes and operations.
//!
//! Never: knows what a job is. Threads are started when they are needed and end when
//! they were idle for a while.

use crossbeam_channel::{Receiver, Sender};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Stack of a thread: HTTP, JSON and TLS need far less. Larger costs address space only
/// until it is touched; smaller and a deep call overflows.
const STACK_BYTES: usize = 256 * 1024;

/// A thread that had nothing to do for so long ends. Larger and threads of one bad hour
/// stay; smaller and they are started anew for every round of probes.
const IDLE_FOR: Duration = Duration::from_secs(10);

struct Shared<J> {
    run: Box<dyn Fn(J) + Send + Sync>,
    jobs: Receiver<J>,
    threads: AtomicUsize,
    /// Jobs given and not yet done.
    open: AtomicUsize,
}

/// See the head of this file.
pub(super) struct Pool<J> {
    name: &'static str,
    queue: Sender<J>,
    shared: Arc<Shared<J>>,
    threads_max: usize,
}

impl<J: Send + 'static> Pool<J> {
    /// A pool of at most `threads_max` threads. `run` is called on them, once for every
    /// job, and may block.
    pub(super) fn new(
        name: &'static str,
        threads_max: usize,
        run: Box<dyn Fn(J) + Send + Sync>,
    ) -> Pool<J> {
        let (queue, jobs) = crossbeam_channel::unbounded();
        let (threads, open) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let shared = Arc::new(Shared { run, jobs, threads, open });
        Pool { name, queue, shared, threads_max }
    }

    /// Carries a job out soon. The caller bounds how many are open.
    pub(super) fn submit(&self, job: J) {
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
        let thread = std::thread::Builder::new().name(self.name.to_owned()).stack_size(STACK_BYTES);
        if let Err(error) = thread.spawn(move || shared.work()) {
            // Others will take the job; with none at all the next submit tries again.
            self.shared.threads.fetch_sub(1, Ordering::SeqCst);
            log::error!("could not start a {} thread: {error}", self.name);
        }
    }

    /// Jobs that are open.
    pub(super) fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Waits until nothing is open or the patience is over; true when all were done.
    pub(super) fn drain(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        while self.open() > 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.open() == 0
    }
}

impl<J> Shared<J> {
    fn work(&self) {
        loop {
            match self.jobs.recv_timeout(IDLE_FOR) {
                Ok(job) => self.carry_out(job),
                Err(_) => {
                    self.threads.fetch_sub(1, Ordering::SeqCst);
                    // A job that came meanwhile would otherwise wait for the next one.
                    let Ok(job) = self.jobs.try_recv() else { return };
                    self.threads.fetch_add(1, Ordering::SeqCst);
                    self.carry_out(job);
                }
            }
        }
    }

    fn carry_out(&self, job: J) {
        // The panic hook has logged it; the thread goes on with the next job.
        drop(std::panic::catch_unwind(AssertUnwindSafe(|| (self.run)(job))));
        self.open.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_job_is_done_by_no_more_threads_than_allowed() {
        let (done, seen) = crossbeam_channel::unbounded();
        let pool = Pool::new(
            "test",
            3,
            Box::new(move |n: u32| {
                done.send((n, std::thread::current().id())).unwrap();
                assert_ne!(n, 7, "a panic must not end the pool");
            }),
        );
        (0..100).for_each(|n| pool.submit(n));
        assert!(pool.drain(Duration::from_secs(20)));
        let seen: Vec<_> = seen.try_iter().collect();
        let threads: std::collections::HashSet<_> = seen.iter().map(|(_, id)| *id).collect();
        assert_eq!(seen.len(), 100);
        assert!(threads.len() <= 3);
    }
}
