//! Owns when simulated agents beat: one thread for all hosts of the process.
//!
//! Never: knows what an answer means (`heartbeat` does). Started by `demo` and tests.

use super::heartbeat::{Beat, Beater};
use super::host::SimHost;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Stack of the thread: HTTP and JSON need far less. Larger: address space; smaller: a deep
/// call overflows.
const STACK_BYTES: usize = 512 * 1024;

/// A wait without anything due. Larger or smaller: it is only looked at again.
const IDLE: Duration = Duration::from_secs(3600);

/// The thread that beats; dropping it ends it after the beat under way.
#[derive(Debug)]
pub struct Heartbeats {
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread is told.
enum Order {
    /// Beat for this host, at once and then in every interval.
    Enrol(Arc<SimHost>, Box<Beater>),
    /// Beat for every host now, whatever is due, and tell what came of it.
    All(Sender<Vec<Beat>>),
}

impl Heartbeats {
    /// Starts the thread. Fails when the system gives none.
    pub fn start(interval: Duration) -> io::Result<Heartbeats> {
        let (orders, received) = crossbeam_channel::unbounded();
        let thread = std::thread::Builder::new()
            .name("heartbeats".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || Pulse::new(interval).run(&received))?;
        Ok(Heartbeats { orders: Some(orders), thread: Some(thread) })
    }

    /// Beats for `host` from now on, at once and then in every interval. A host that was
    /// enrolled before gets its new credentials.
    pub fn enrol(&self, host: Arc<SimHost>, beater: Beater) {
        self.tell(Order::Enrol(host, Box::new(beater)));
    }

    /// Beats for every host now, in order of enrolment, and says what came of it.
    pub fn beat_all(&self) -> Vec<Beat> {
        let (tell, told) = crossbeam_channel::bounded(1);
        self.tell(Order::All(tell));
        // Without the thread nobody beats.
        told.recv().unwrap_or_default()
    }

    fn tell(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // The thread only ends with this, or by a panic that was logged.
            let _ = orders.send(order);
        }
    }
}

impl Drop for Heartbeats {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // Its panic was reported when it happened.
            let _ = thread.join();
        }
    }
}

/// One host that beats.
struct Enrolled {
    host: Arc<SimHost>,
    beater: Box<Beater>,
}

impl Enrolled {
    fn beat(&mut self) -> Beat {
        self.beater.beat(&self.host)
    }
}

struct Pulse {
    interval: Duration,
    enrolled: Vec<Enrolled>,
    due: BinaryHeap<Reverse<(Instant, usize)>>,
}

impl Pulse {
    fn new(interval: Duration) -> Pulse {
        Pulse { interval, enrolled: Vec::new(), due: BinaryHeap::new() }
    }

    fn run(mut self, orders: &Receiver<Order>) {
        loop {
            match orders.recv_timeout(self.until_due()) {
                Ok(Order::Enrol(host, beater)) => self.enrol(host, beater),
                Ok(Order::All(tell)) => {
                    let beats = self.enrolled.iter_mut().map(Enrolled::beat).collect();
                    // Who asked may have gone.
                    let _ = tell.send(beats);
                }
                Err(RecvTimeoutError::Timeout) => self.beat_next(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn until_due(&self) -> Duration {
        let due = self.due.peek().map(|Reverse((at, _))| *at);
        due.map_or(IDLE, |at| at.saturating_duration_since(Instant::now()))
    }

    fn enrol(&mut self, host: Arc<SimHost>, beater: Box<Beater>) {
        if let Some(known) = self.enrolled.iter_mut().find(|known| Arc::ptr_eq(&known.host, &host))
        {
            known.beater = beater;
            return;
        }
        self.due.push(Reverse((Instant::now(), self.enrolled.len())));
        self.enrolled.push(Enrolled { host, beater });
    }

    fn beat_next(&mut self) {
        let Some(Reverse((at, number))) = self.due.pop() else { return };
        if Instant::now() < at {
            return self.due.push(Reverse((at, number)));
        }
        if let Some(enrolled) = self.enrolled.get_mut(number) {
            enrolled.beat();
        }
        // A late beat does not make the next one early.
        self.due.push(Reverse((at.max(Instant::now()) + self.interval, number)));
    }
}
