//! Owns asking the machine what time it is, and noticing when its answer jumps.
//!
//! Never: decides what a jump means. Nothing else in the program reads a clock; `engine`
//! asks here and passes the answer on.

use crate::model::time::{Mono, Now, Wall};
use rustix::time::{ClockId, clock_gettime};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Something that knows the time.
pub trait Clock: Send + Sync {
    /// One reading of the clock for measuring and the clock for writing down.
    fn now(&self) -> Now;

    /// Milliseconds on a clock that runs like the one for measuring, but also while the
    /// machine is suspended.
    fn boot_ms(&self) -> u64;
}

/// The clocks of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Now {
        Now { mono: Mono(read_ms(ClockId::Monotonic)), wall: system_wall() }
    }

    fn boot_ms(&self) -> u64 {
        read_ms(ClockId::Boottime)
    }
}

fn read_ms(clock: ClockId) -> u64 {
    let at = clock_gettime(clock);
    // Neither clock is ever negative; both start at the boot.
    let seconds = u64::try_from(at.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(at.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000)
}

fn system_wall() -> Wall {
    let (span, sign) = match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(after) => (after, 1),
        Err(before) => (before.duration(), -1),
    };
    Wall(i64::try_from(span.as_millis()).unwrap_or(i64::MAX) * sign)
}

/// A clock that stands still until it is moved: for tests and simulations.
#[derive(Debug)]
pub struct ManualClock(Mutex<Reading>);

/// One reading of all three clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// For measuring, and for writing down.
    pub now: Now,
    /// Runs during suspend, in milliseconds.
    pub boot_ms: u64,
}

impl Reading {
    /// Asks `clock`.
    pub fn of(clock: &dyn Clock) -> Reading {
        Reading { now: clock.now(), boot_ms: clock.boot_ms() }
    }
}

impl ManualClock {
    /// A clock that starts now and has been running for a while.
    pub fn new(wall: Wall) -> ManualClock {
        const UPTIME_MS: u64 = 1_000_000;
        let now = Now { mono: Mono(UPTIME_MS), wall };
        ManualClock(Mutex::new(Reading { now, boot_ms: UPTIME_MS }))
    }

    /// Time passes on all clocks.
    pub fn advance(&self, span: Duration) {
        let mut reading = self.lock();
        reading.now.mono = reading.now.mono.after(span);
        pass_outside(&mut reading, span);
    }

    /// Somebody sets the clock on the wall.
    pub fn set_wall(&self, wall: Wall) {
        self.lock().now.wall = wall;
    }

    /// The machine sleeps: the clock for measuring stands still.
    pub fn suspend(&self, span: Duration) {
        pass_outside(&mut self.lock(), span);
    }

    fn lock(&self) -> MutexGuard<'_, Reading> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pass_outside(reading: &mut Reading, span: Duration) {
    reading.now.wall = reading.now.wall.after(span);
    let span_ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    reading.boot_ms = reading.boot_ms.saturating_add(span_ms);
}

impl Clock for ManualClock {
    fn now(&self) -> Now {
        self.lock().now
    }

    fn boot_ms(&self) -> u64 {
        self.lock().boot_ms
    }
}

/// Clocks that differ by more than this between two readings did not drift apart. Larger:
/// a short suspend is taken for listening; smaller: a busy machine, which reads its clocks
/// one after the other, looks like one that slept.
pub const JUMP_MIN: Duration = Duration::from_secs(5);

/// What happened between two readings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockChange {
    /// All clocks ran alike.
    Steady,
    /// The machine was suspended for this long: it heard nothing.
    Suspended(Duration),
    /// The wall clock was set this much later.
    WallForward(Duration),
    /// The wall clock was set this much earlier.
    WallBack(Duration),
}

/// Compares each reading with the one before. Every change is reported once; when a suspend
/// hides a jump of the wall clock, the next reading reports the jump.
#[derive(Debug, Clone, Copy, Default)]
pub struct JumpDetector {
    before: Option<Reading>,
}

impl JumpDetector {
    /// A detector without a past: its first reading is steady.
    pub fn new() -> JumpDetector {
        JumpDetector::default()
    }

    /// Takes the next reading and says what happened since the one before.
    pub fn feed(&mut self, reading: Reading) -> ClockChange {
        let Some(before) = self.before.replace(reading) else {
            return ClockChange::Steady;
        };
        let awake_ms = difference(reading.now.mono.0, before.now.mono.0);
        let total_ms = difference(reading.boot_ms, before.boot_ms);
        let wall_ms = reading.now.wall.0.saturating_sub(before.now.wall.0);

        let jumped_ms = wall_ms.saturating_sub(total_ms);
        if let Some(span) = beyond_jump_min(total_ms.saturating_sub(awake_ms)) {
            // What the suspend does not explain stays to be reported.
            let mut rest = reading;
            rest.now.wall = Wall(rest.now.wall.0.saturating_sub(jumped_ms));
            self.before = Some(rest);
            return ClockChange::Suspended(span);
        }
        match beyond_jump_min(jumped_ms) {
            Some(span) if jumped_ms < 0 => ClockChange::WallBack(span),
            Some(span) => ClockChange::WallForward(span),
            None => ClockChange::Steady,
        }
    }
}

fn difference(later: u64, earlier: u64) -> i64 {
    i64::try_from(i128::from(later) - i128::from(earlier)).unwrap_or(i64::MAX)
}

fn beyond_jump_min(span_ms: i64) -> Option<Duration> {
    let span = Duration::from_millis(span_ms.unsigned_abs());
    (span > JUMP_MIN).then_some(span)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Wall = Wall(1_779_000_000_000);

    fn secs(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// Feeds a first reading, lets `happen` move the clock, and compares what follows.
    fn check(happen: impl Fn(&ManualClock), expected: &[ClockChange]) {
        let clock = ManualClock::new(START);
        let mut detector = JumpDetector::new();
        assert_eq!(detector.feed(Reading::of(&clock)), ClockChange::Steady);
        happen(&clock);
        for change in expected {
            assert_eq!(detector.feed(Reading::of(&clock)), *change);
        }
        assert_eq!(detector.feed(Reading::of(&clock)), ClockChange::Steady, "reported twice");
    }

    #[test]
    fn time_that_passes_is_no_jump() {
        check(|clock| clock.advance(secs(3600)), &[ClockChange::Steady]);
        check(|_| (), &[ClockChange::Steady]);
    }

    #[test]
    fn a_suspend_explains_the_wall_clock() {
        check(|clock| clock.suspend(secs(60)), &[ClockChange::Suspended(secs(60))]);
        check(|clock| clock.suspend(secs(5)), &[ClockChange::Steady]);
    }

    #[test]
    fn the_wall_clock_is_set() {
        let ahead = START.after(secs(6));
        check(|clock| clock.set_wall(ahead), &[ClockChange::WallForward(secs(6))]);
        let behind = START.before(secs(86_400));
        check(|clock| clock.set_wall(behind), &[ClockChange::WallBack(secs(86_400))]);
        check(|clock| clock.set_wall(START.after(secs(5))), &[ClockChange::Steady]);
        check(|clock| clock.set_wall(START.before(secs(5))), &[ClockChange::Steady]);
    }

    #[test]
    fn a_jump_behind_a_suspend_is_reported_next() {
        let happen = |clock: &ManualClock| {
            clock.suspend(secs(600));
            clock.set_wall(START.before(secs(100)));
        };
        check(happen, &[ClockChange::Suspended(secs(600)), ClockChange::WallBack(secs(700))]);
    }

    #[test]
    fn extreme_readings_do_not_overflow() {
        let reading = |mono, wall, boot_ms| Reading {
            now: Now { mono: Mono(mono), wall: Wall(wall) },
            boot_ms,
        };
        let mut detector = JumpDetector::new();
        detector.feed(reading(0, i64::MIN, u64::MAX));
        detector.feed(reading(u64::MAX, i64::MAX, 0));
        detector.feed(reading(0, i64::MIN, u64::MAX));
    }

    #[test]
    fn the_system_clock_runs_forward() {
        let (first, second) = (Reading::of(&SystemClock), Reading::of(&SystemClock));
        assert!(second.now.mono >= first.now.mono);
        assert!(second.boot_ms >= first.boot_ms);
        assert!(first.now.wall > Wall(0));
    }
}
