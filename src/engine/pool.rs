//! Owns threads that carry out jobs which wait for others: probes and operations.
//!
//! Never: knows what a job is. Threads are started when they are needed and end when
//! they were idle for a while. Jobs that are quick share a few threads, none of which is
//! woken for each of them; a job that waits is joined by others.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Stack of a thread: HTTP, JSON and TLS need far less. Larger costs address space only
/// until it is touched; smaller and a deep call overflows.
const STACK_BYTES: usize = 256 * 1024;

/// A thread that had nothing to do for so long ends. Larger and threads of one bad hour
/// stay; smaller and they are started anew for every round of probes.
const IDLE_FOR: Duration = Duration::from_secs(10);

/// Jobs that run at a time while all of them may yet be quick. Larger and threads take turns
/// where fewer would do; smaller and processors idle while a job waits for an answer.
const QUICK_AT_ONCE: usize = 4;

/// A job that runs for longer waits for something, and another is begun beside it. Larger
/// and many slow jobs are begun late; smaller and a busy machine starts threads for nothing.
const QUICK: Duration = Duration::from_millis(2);

struct Shared<J> {
    name: &'static str,
    threads_max: usize,
    run: Box<dyn Fn(J) + Send + Sync>,
    state: Mutex<State<J>>,
    bell: Condvar,
    /// Jobs given and not yet done.
    open: AtomicUsize,
}

struct State<J> {
    queue: VecDeque<J>,
    threads: usize,
    /// Threads that wait for a job.
    idle: usize,
    /// One of them is there to begin a job as soon as those that run are not quick. There
    /// always is one while jobs are queued, unless every thread that may be has a job.
    watched: bool,
    /// When the jobs that run were begun.
    running: Vec<Instant>,
}

/// What a thread without a job does.
enum Next<J> {
    Begin(J, Instant),
    /// Looks again after this time.
    Watch(Duration),
    Idle,
}

impl<J> State<J> {
    fn next(&mut self, now: Instant) -> Next<J> {
        if self.queue.is_empty() {
            return Next::Idle;
        }
        let left = |begun: &Instant| QUICK.checked_sub(now.duration_since(*begun));
        let quick = || self.running.iter().filter_map(left);
        if quick().count() >= QUICK_AT_ONCE {
            return Next::Watch(quick().min().unwrap_or_default());
        }
        match self.queue.pop_front() {
            Some(job) => {
                self.running.push(now);
                Next::Begin(job, now)
            }
            None => Next::Idle,
        }
    }

    fn ended(&mut self, begun: Instant) {
        if let Some(at) = self.running.iter().position(|other| *other == begun) {
            self.running.swap_remove(at);
        }
    }
}

/// See the head of this file.
pub(super) struct Pool<J>(Arc<Shared<J>>);

impl<J: Send + 'static> Pool<J> {
    /// A pool of at most `threads_max` threads. `run` is called on them, once for every
    /// job, and may block.
    pub(super) fn new(
        name: &'static str,
        threads_max: usize,
        run: Box<dyn Fn(J) + Send + Sync>,
    ) -> Pool<J> {
        let (queue, running) = (VecDeque::new(), Vec::new());
        let state = Mutex::new(State { queue, threads: 0, idle: 0, watched: false, running });
        let (bell, open) = (Condvar::new(), AtomicUsize::new(0));
        Pool(Arc::new(Shared { name, threads_max, run, state, bell, open }))
    }

    /// Carries a job out soon. The caller bounds how many are open.
    pub(super) fn submit(&self, job: J) {
        self.0.open.fetch_add(1, Ordering::SeqCst);
        let mut state = self.0.locked();
        state.queue.push_back(job);
        self.0.see_to_queue(&mut state);
    }

    /// Jobs that are open.
    pub(super) fn open(&self) -> usize {
        self.0.open.load(Ordering::SeqCst)
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

impl<J: Send + 'static> Shared<J> {
    /// What is counted stays true when a thread panics.
    fn locked(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure that a thread looks after the jobs that are queued.
    fn see_to_queue(self: &Arc<Self>, state: &mut State<J>) {
        if state.queue.is_empty() || state.watched {
            return;
        }
        let on_its_way = state.threads - state.idle - state.running.len();
        if state.idle > 0 {
            self.bell.notify_one();
        } else if on_its_way == 0 && state.threads < self.threads_max {
            state.threads += 1;
            self.start(state);
        }
    }

    fn start(self: &Arc<Self>, state: &mut State<J>) {
        let shared = Arc::clone(self);
        let thread = std::thread::Builder::new().name(self.name.to_owned()).stack_size(STACK_BYTES);
        if let Err(error) = thread.spawn(move || shared.work()) {
            // Others will take the job; with none at all the next submit tries again.
            state.threads -= 1;
            log::error!("could not start a {} thread: {error}", self.name);
        }
    }

    fn work(self: &Arc<Self>) {
        let (mut state, mut idle_since) = (self.locked(), Instant::now());
        loop {
            let patience = match state.next(Instant::now()) {
                Next::Begin(job, begun) => {
                    self.see_to_queue(&mut state);
                    drop(state);
                    self.carry_out(job);
                    (state, idle_since) = (self.locked(), Instant::now());
                    state.ended(begun);
                    continue;
                }
                Next::Watch(left) if !state.watched => Some(left),
                Next::Watch(_) | Next::Idle => None,
            };
            let watches = patience.is_some();
            state.watched |= watches;
            state.idle += 1;
            let waited = self.bell.wait_timeout(state, patience.unwrap_or(IDLE_FOR));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.idle -= 1;
            state.watched &= !watches;
            if state.queue.is_empty() && idle_since.elapsed() >= IDLE_FOR {
                state.threads -= 1;
                return;
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

    #[test]
    fn jobs_that_wait_are_joined_by_others() {
        let jobs = 5 * QUICK_AT_ONCE;
        let barrier = Arc::new(std::sync::Barrier::new(jobs));
        let run = move |_: usize| {
            barrier.wait();
        };
        let pool = Pool::new("test", jobs, Box::new(run));
        (0..jobs).for_each(|n| pool.submit(n));
        assert!(pool.drain(Duration::from_secs(20)), "{} jobs wait for each other", pool.open());
        (0..jobs).for_each(|n| pool.submit(n));
        assert!(pool.drain(Duration::from_secs(20)), "the threads that are there, too");
        assert_eq!(pool.0.locked().threads, jobs);
    }
}
