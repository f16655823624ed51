//! Owns lanes: bounded threads and places for work of one kind, with a share for each holder.
//!
//! Never: knows what the work is; lets one lane use the threads of another. Threads start
//! when they are needed and end when they were idle for a while. Filled by handlers
//! (`Response::in_lane`), run by `deferred`.

use super::deferred::Claim;
use super::limits::{LANE_IDLE_FOR, STACK_BYTES};
use super::table::lock;
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// One holder may have one in this many of a lane's places and threads. Larger: a program
/// with many requests at once hears 503 or waits; smaller: it leaves others too little.
const SHARE_ONE_IN: usize = 4;

/// One in this many is kept for the operator. Larger: an operator may have to wait for
/// users; smaller: users have fewer.
const RESERVED_ONE_IN: usize = 8;

/// Who has a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Holder {
    /// The operator, for whom some places are kept and who may have all.
    Operator,
    /// A key, a host or an address, as the handler numbers them.
    Other(u128),
}

/// What one lane may use.
#[derive(Debug, Clone, Copy)]
pub struct LaneLimits {
    /// Names its threads.
    pub name: &'static str,
    /// Requests that are worked on at a time, each by a thread of its own.
    pub threads: usize,
    /// Requests that are worked on or wait for a thread; more hear 503.
    pub places: usize,
    /// From the end of a request until it is answered 503, unless its work has begun to
    /// change something; `None`: the work has a deadline of its own.
    pub patience: Option<Duration>,
    /// A body that is written bit by bit is written by the thread that made the response.
    pub streams: bool,
}

/// See the head of this file; clones share it.
#[derive(Clone)]
pub struct Lane(Arc<Inner>);

struct Inner {
    limits: LaneLimits,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    /// Places that are taken.
    taken: Counted,
    /// Jobs that are worked on.
    running: Counted,
    threads: usize,
    idle: usize,
}

/// Work that waits for a thread.
pub(super) struct Job {
    pub(super) slot: Slot,
    /// Whether a client still waits for it.
    pub(super) claim: Arc<Claim>,
    pub(super) work: Box<dyn FnOnce(Slot) + Send>,
}

/// One place of a lane; given back when dropped.
pub struct Slot {
    lane: Lane,
    holder: Holder,
}

impl Lane {
    /// Without threads.
    pub fn new(limits: LaneLimits) -> Lane {
        Lane(Arc::new(Inner { limits, state: Mutex::default(), changed: Condvar::new() }))
    }

    /// A place for this holder; `None`: it has its share, or too few are left.
    pub fn take(&self, holder: Holder) -> Option<Slot> {
        let mut state = lock(&self.0.state);
        if !state.taken.fits(holder, self.0.limits.places) {
            // Dropped without the lock: each gives its place back.
            let dead = state.take_dead();
            drop(state);
            drop(dead);
            state = lock(&self.0.state);
        }
        let fits = state.taken.fits(holder, self.0.limits.places);
        fits.then(|| {
            state.taken.add(holder);
            Slot { lane: self.clone(), holder }
        })
    }

    /// Requests that have a place.
    pub fn open(&self) -> usize {
        lock(&self.0.state).taken.all
    }

    /// Requests that are worked on.
    pub fn running(&self) -> usize {
        lock(&self.0.state).running.all
    }

    /// Carries the job out when its turn comes. It comes back when there is no thread at all
    /// and none can be started.
    fn submit(&self, job: Job) -> Result<(), Job> {
        let mut state = lock(&self.0.state);
        let claim = Arc::clone(&job.claim);
        state.queue.push_back(job);
        if state.queue.len() > state.idle && state.threads < self.0.limits.threads {
            state.threads += 1;
            drop(state);
            if let Err(error) = self.start_thread() {
                let mut state = lock(&self.0.state);
                state.threads -= 1;
                if state.threads == 0 {
                    log::error!("could not start a thread for {}: {error}", self.0.limits.name);
                    return state.take_back(&claim).map_or(Ok(()), Err);
                }
            }
        }
        self.0.changed.notify_one();
        Ok(())
    }

    fn start_thread(&self) -> std::io::Result<()> {
        let inner = Arc::clone(&self.0);
        let thread = std::thread::Builder::new().name(format!("http-{}", self.0.limits.name));
        thread.stack_size(STACK_BYTES).spawn(move || inner.work()).map(drop)
    }
}

impl Inner {
    fn work(&self) {
        while let Some(Job { slot, work, .. }) = self.next() {
            let holder = slot.holder;
            // A panic of a handler is caught and answered before it gets here.
            if catch_unwind(AssertUnwindSafe(|| work(slot))).is_err() {
                log::error!("work of the lane {} panicked", self.limits.name);
            }
            lock(&self.state).running.remove(holder);
        }
    }

    /// The next job; `None` when there was none for a while.
    fn next(&self) -> Option<Job> {
        loop {
            let mut state = lock(&self.state);
            if let Some(job) = state.pick(self.limits.threads) {
                if job.claim.is_over() {
                    state.running.remove(job.slot.holder);
                    // Gives its place back, which takes the lock.
                    drop(state);
                    drop(job);
                    continue;
                }
                return Some(job);
            }
            state.idle += 1;
            let waited = self.changed.wait_timeout(state, LANE_IDLE_FOR);
            let (mut state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
            if timeout.timed_out() && !state.has_work(self.limits.threads) {
                state.threads -= 1;
                return None;
            }
        }
    }
}

impl State {
    /// Takes the first job of those whose holders have the fewest threads, and may have another:
    /// who asks for one thing does not wait behind all of who asks for many.
    fn pick(&mut self, threads: usize) -> Option<Job> {
        let holders = self.queue.iter().map(|job| job.slot.holder).enumerate();
        let may_run = holders.filter(|(_, holder)| self.running.fits(*holder, threads));
        let (at, _) = may_run.min_by_key(|(_, holder)| self.running.of(*holder))?;
        let job = self.queue.remove(at)?;
        self.running.add(job.slot.holder);
        Some(job)
    }

    fn has_work(&self, threads: usize) -> bool {
        self.queue.iter().any(|job| self.running.fits(job.slot.holder, threads))
    }

    /// Takes out the jobs that no client waits for any more.
    fn take_dead(&mut self) -> Vec<Job> {
        let (dead, alive) =
            std::mem::take(&mut self.queue).into_iter().partition(|job| job.claim.is_over());
        self.queue = alive;
        Vec::from(dead as VecDeque<Job>)
    }

    fn take_back(&mut self, claim: &Arc<Claim>) -> Option<Job> {
        let at = self.queue.iter().position(|job| Arc::ptr_eq(&job.claim, claim))?;
        self.queue.remove(at)
    }
}

impl Slot {
    /// How long its client is to be kept waiting.
    pub(super) fn patience(&self) -> Option<Duration> {
        self.lane.0.limits.patience
    }

    /// Whether the thread that made the response also streams it.
    pub(super) fn streams(&self) -> bool {
        self.lane.0.limits.streams
    }

    /// Has its lane do the work; see [`Lane::submit`].
    pub(super) fn submit(
        self,
        claim: Arc<Claim>,
        work: Box<dyn FnOnce(Slot) + Send>,
    ) -> Result<(), Job> {
        let lane = self.lane.clone();
        lane.submit(Job { slot: self, claim, work })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.lane.0.state).taken.remove(self.holder);
    }
}

/// How many of something each holder has.
#[derive(Default)]
struct Counted {
    all: usize,
    by_holder: HashMap<Holder, usize>,
}

impl Counted {
    /// Whether this holder may have one more of `max`.
    fn fits(&self, holder: Holder, max: usize) -> bool {
        match holder {
            Holder::Operator => self.all < max,
            Holder::Other(_) => {
                self.of(holder) < (max / SHARE_ONE_IN).max(1)
                    && self.all < max - max / RESERVED_ONE_IN
            }
        }
    }

    /// How many this holder has.
    fn of(&self, holder: Holder) -> usize {
        self.by_holder.get(&holder).copied().unwrap_or(0)
    }

    fn add(&mut self, holder: Holder) {
        self.all += 1;
        *self.by_holder.entry(holder).or_default() += 1;
    }

    fn remove(&mut self, holder: Holder) {
        self.all -= 1;
        match self.by_holder.get_mut(&holder) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) | None => drop(self.by_holder.remove(&holder)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

    const PATIENCE: Duration = Duration::from_secs(60);

    fn lane(threads: usize, places: usize) -> Lane {
        Lane::new(LaneLimits { name: "test", threads, places, patience: None, streams: false })
    }

    fn submit(lane: &Lane, holder: Holder, work: impl FnOnce() + Send + 'static) -> Arc<Claim> {
        let (claim, keep) = Claim::open();
        // Never dropped: its client waits until the end.
        std::mem::forget(keep);
        let slot = lane.take(holder).expect("a place");
        let work = Box::new(move |_slot: Slot| work());
        assert!(slot.submit(Arc::clone(&claim), work).is_ok());
        claim
    }

    /// Work that says its number and waits for the gate to open.
    fn gated(say: &Sender<u128>, gate: &Receiver<()>, n: u128) -> impl FnOnce() + Send + 'static {
        let (say, gate) = (say.clone(), gate.clone());
        move || {
            say.send(n).expect("the test listens");
            assert!(gate.recv().is_err(), "nothing is ever sent");
        }
    }

    #[test]
    fn one_key_gets_a_quarter_and_the_operator_always_finds_room() {
        let lane = lane(1, 16);
        let mut slots: Vec<Slot> = (0..9).map_while(|_| lane.take(Holder::Other(1))).collect();
        assert_eq!(slots.len(), 4, "a quarter and no more");
        slots.extend((2..20).map_while(|n| lane.take(Holder::Other(n))));
        assert_eq!(slots.len(), 14, "an eighth is left");
        let operator: Vec<Slot> = (0..9).map_while(|_| lane.take(Holder::Operator)).collect();
        assert_eq!(operator.len(), 2);
        drop(operator);
        slots.remove(0);
        assert!(lane.take(Holder::Other(1)).is_some(), "given back");
        slots.clear();
        assert!(lock(&lane.0.state).taken.by_holder.is_empty(), "nothing is remembered");
    }

    #[test]
    fn one_key_does_not_keep_all_threads() {
        let lane = lane(8, 64);
        let ((say, said), (gate, closed)) = (unbounded(), bounded(0));
        (0..10).for_each(|_| drop(submit(&lane, Holder::Other(1), gated(&say, &closed, 1))));
        drop(submit(&lane, Holder::Other(2), gated(&say, &closed, 2)));
        drop(submit(&lane, Holder::Operator, gated(&say, &closed, 3)));
        let mut begun: Vec<u128> =
            (0..4).map(|_| said.recv_timeout(PATIENCE).expect("begins")).collect();
        begun.sort_unstable();
        assert_eq!(begun, [1, 1, 2, 3], "two of eight for each key, in whatever order they came");
        assert_eq!(lane.running(), 4);
        drop(gate);
        for _ in 0..8 {
            assert_eq!(said.recv_timeout(PATIENCE), Ok(1), "the others have their turn");
        }
    }

    #[test]
    fn who_asks_for_one_thing_does_not_wait_behind_who_asks_for_many() {
        let lane = lane(2, 64);
        let ((say, said), (open, gate)) = (unbounded(), unbounded::<()>());
        let step = |n: u128| {
            let (say, gate) = (say.clone(), gate.clone());
            move || {
                say.send(n).expect("the test listens");
                gate.recv().expect("the test opens the gate");
            }
        };
        (0..10).for_each(|_| drop(submit(&lane, Holder::Operator, step(1))));
        for _ in 0..2 {
            assert_eq!(said.recv_timeout(PATIENCE), Ok(1));
        }
        drop(submit(&lane, Holder::Other(2), step(2)));
        open.send(()).expect("a job waits");
        assert_eq!(said.recv_timeout(PATIENCE), Ok(2), "the next thread that is free");
        (0..10).for_each(|_| open.send(()).expect("a job waits"));
        for _ in 0..8 {
            assert_eq!(said.recv_timeout(PATIENCE), Ok(1));
        }
    }

    #[test]
    fn what_no_client_waits_for_is_not_begun_and_makes_room() {
        let lane = lane(1, 8);
        let ((say, said), (gate, closed)) = (unbounded(), bounded(0));
        drop(submit(&lane, Holder::Operator, gated(&say, &closed, 1)));
        assert_eq!(said.recv_timeout(PATIENCE), Ok(1));
        let claims: Vec<_> =
            (2..9).map(|n| submit(&lane, Holder::Operator, gated(&say, &closed, n))).collect();
        assert!(lane.take(Holder::Operator).is_none(), "all are taken");
        assert!(claims[..6].iter().all(|claim| claim.give_up()));
        assert!(lane.take(Holder::Operator).is_some(), "those that gave up make room");
        drop(gate);
        assert_eq!(said.recv_timeout(PATIENCE), Ok(8), "the only one that waits");
        assert!(said.is_empty());
    }
}
