//! Owns when simulated agents send heartbeats and reports: one thread for all hosts of the
//! process.
//!
//! Never: knows what an answer means (`heartbeat` does). Started by `demo` and tests.

use super::heartbeat::{Beat, Beater, Reported};
use super::host::SimHost;
use super::report::{Report, TRIES_MAX, pause_after};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Stack of the thread: HTTP and JSON need far less. Larger: address space; smaller: a deep
/// call overflows.
const STACK_BYTES: usize = 512 * 1024;

/// A wait without anything due. Larger or smaller: it is only looked at again.
const IDLE: Duration = Duration::from_secs(3600);

/// The thread that sends; dropping it ends it after what it sends now.
#[derive(Debug)]
pub struct Heartbeats {
    orders: Sender<Order>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread is asked to do.
enum Order {
    /// Send heartbeats of this host, at once and then in every interval, and its reports.
    Enrol(Arc<SimHost>, Box<Beater>),
    /// Send a heartbeat of every host now, whatever is due, and answer what came of it.
    All(Sender<Vec<Beat>>),
    /// The host of this number has something to report.
    Report(usize),
    /// End.
    End,
}

impl Heartbeats {
    /// Starts the thread. Fails when the system gives none.
    pub fn start(interval: Duration) -> io::Result<Heartbeats> {
        let (orders, received) = crossbeam_channel::unbounded();
        let pulse = Pulse::new(interval, orders.clone());
        let thread = std::thread::Builder::new()
            .name("heartbeats".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || pulse.run(&received))?;
        Ok(Heartbeats { orders, thread: Some(thread) })
    }

    /// Sends heartbeats of `host` from now on, at once and then in every interval, and its
    /// reports. A host that was enrolled before gets its new credentials.
    pub fn enrol(&self, host: Arc<SimHost>, beater: Beater) {
        self.order(Order::Enrol(host, Box::new(beater)));
    }

    /// Sends a heartbeat of every host now, in order of enrolment, and says what came of it.
    pub fn beat_all(&self) -> Vec<Beat> {
        let (answer, answered) = crossbeam_channel::bounded(1);
        self.order(Order::All(answer));
        // Without the thread there are no heartbeats.
        answered.recv().unwrap_or_default()
    }

    fn order(&self, order: Order) {
        // The thread only ends with this, or by a panic that was logged.
        let _ = self.orders.send(order);
    }
}

impl Drop for Heartbeats {
    fn drop(&mut self) {
        self.order(Order::End);
        if let Some(thread) = self.thread.take() {
            // Its panic was reported when it happened.
            let _ = thread.join();
        }
    }
}

/// One host that sends.
struct Enrolled {
    host: Arc<SimHost>,
    beater: Box<Beater>,
}

impl Enrolled {
    fn beat(&mut self) -> Beat {
        self.beater.beat(&self.host)
    }
}

/// A report that was not accepted yet.
struct Pending {
    number: usize,
    report: Report,
    /// How often it was sent.
    tries: u32,
}

struct Pulse {
    interval: Duration,
    /// For the hosts, to say that they have something to report.
    orders: Sender<Order>,
    enrolled: Vec<Enrolled>,
    due: BinaryHeap<Reverse<(Instant, usize)>>,
    /// By when they are due, and in the order in which they came.
    reports: BTreeMap<(Instant, u64), Pending>,
    reports_taken: u64,
}

impl Pulse {
    fn new(interval: Duration, orders: Sender<Order>) -> Pulse {
        Pulse {
            interval,
            orders,
            enrolled: Vec::new(),
            due: BinaryHeap::new(),
            reports: BTreeMap::new(),
            reports_taken: 0,
        }
    }

    fn run(mut self, orders: &Receiver<Order>) {
        loop {
            match orders.recv_timeout(self.until_due()) {
                Ok(Order::Enrol(host, beater)) => self.enrol(host, beater),
                Ok(Order::All(answer)) => {
                    let beats = self.enrolled.iter_mut().map(Enrolled::beat).collect();
                    // The asker may have gone.
                    let _ = answer.send(beats);
                }
                Ok(Order::Report(number)) => self.take_reports(number),
                Err(RecvTimeoutError::Timeout) => {
                    self.beat_next();
                    self.report_next();
                }
                Ok(Order::End) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn until_due(&self) -> Duration {
        let beat = self.due.peek().map(|Reverse((at, _))| *at);
        let report = self.reports.keys().next().map(|(at, _)| *at);
        let due = beat.into_iter().chain(report).min();
        due.map_or(IDLE, |at| at.saturating_duration_since(Instant::now()))
    }

    fn enrol(&mut self, host: Arc<SimHost>, beater: Box<Beater>) {
        if let Some(known) = self.enrolled.iter_mut().find(|known| Arc::ptr_eq(&known.host, &host))
        {
            known.beater = beater;
            return;
        }
        let number = self.enrolled.len();
        let orders = self.orders.clone();
        host.on_report(move || {
            // The thread may have ended.
            let _ = orders.send(Order::Report(number));
        });
        self.due.push(Reverse((Instant::now(), number)));
        self.enrolled.push(Enrolled { host, beater });
        self.take_reports(number);
    }

    fn beat_next(&mut self) {
        let Some(Reverse((at, number))) = self.due.pop() else { return };
        if Instant::now() < at {
            return self.due.push(Reverse((at, number)));
        }
        if let Some(enrolled) = self.enrolled.get_mut(number) {
            enrolled.beat();
        }
        // A late heartbeat does not make the next one early.
        self.due.push(Reverse((at.max(Instant::now()) + self.interval, number)));
    }

    fn take_reports(&mut self, number: usize) {
        let Some(Enrolled { host, .. }) = self.enrolled.get(number) else { return };
        for report in host.take_reports() {
            self.later(report.due, Pending { number, report, tries: 0 });
        }
    }

    fn later(&mut self, at: Instant, pending: Pending) {
        self.reports.insert((at, self.reports_taken), pending);
        self.reports_taken += 1;
    }

    fn report_next(&mut self) {
        let due = self.reports.first_entry().filter(|first| first.key().0 <= Instant::now());
        let Some(mut pending) = due.map(|due| due.remove()) else { return };
        let Some(Enrolled { host, beater }) = self.enrolled.get_mut(pending.number) else { return };
        let reported = beater.report(host, &pending.report);
        pending.tries += 1;
        if reported != Reported::Accepted && pending.tries < TRIES_MAX {
            self.later(Instant::now() + pause_after(pending.tries), pending);
        }
    }
}
