//! Owns what machines ask about Roost itself: alive, ready, figures.
//!
//! Never: needs a key, tells anything of a single host or sandbox, reads every sandbox for
//! a scrape, lets more than one scrape wait for the database: a disk that hangs holds one
//! thread, not all that answer heartbeats.

pub mod families;
mod process;
mod text;

use super::notify::TargetState;
use super::{Problem, Ready, load};
use crate::figures::Counters;
use crate::http::Response;
use crate::model::operation::OperationKind;
use crate::model::time::Now;
use crate::store::StoreError;
use crate::store::notify;
use crate::store::tally::{self, Base};
use crate::store::templates;
use families as f;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, TryLockError};
use std::time::Duration;
use text::{Scrape, seconds};

/// Status codes that a heartbeat can be answered with.
const HEARTBEAT_ANSWERS: &[&str] = &["204", "400", "401", "403", "404", "503"];

/// Classes of status codes.
const HTTP_CLASSES: &[&str] = &["1xx", "2xx", "3xx", "4xx", "5xx"];

/// How something ends that can fail.
const RESULTS: &[&str] = &["succeeded", "failed"];

/// How a probe ends: with a listing, or as `FailureKind` says.
const PROBE_OUTCOMES: &[&str] =
    &["listed", "unreachable", "timed_out", "refused", "malformed", "wrong_host"];

/// What can keep the database from being used.
const TROUBLES: &[&str] = &["damaged", "disk", "cannot_open", "moved", "busy", "other"];

/// What the API itself counts, and what it remembers between two scrapes.
#[derive(Debug, Default)]
pub struct Scraped {
    heartbeats: Counters<{ HEARTBEAT_ANSWERS.len() }>,
    /// How many sandboxes there were when they were counted. Held by the one scrape that
    /// asks the database.
    base: Mutex<Option<Base>>,
}

impl Scraped {
    /// Counts a heartbeat that was answered with this status code.
    pub(super) fn count_heartbeat(&self, status: u16) {
        let word = status.to_string();
        if let Some(at) = HEARTBEAT_ANSWERS.iter().position(|answer| *answer == word) {
            self.heartbeats.count(at);
        }
    }
}

/// `GET /healthz`: the process answers.
pub(super) fn healthz() -> Response {
    Response::bytes(200, "text/plain; charset=utf-8", b"ok\n".to_vec())
}

/// `GET /readyz`: the database answers and the scheduler ran within two intervals. A second
/// line says so when the mass guard holds verdicts back.
pub(super) fn readyz(ready: &Ready) -> Result<Response, Problem> {
    may_work(ready)?;
    crate::store::read::revision(&*ready.read()?)?;
    let mut text = String::from("ready\n");
    if load(&ready.pulse.holding_since_ms) > 0 {
        text +=
            "most hosts fell silent together: suspecting our own network, holding the verdict\n";
    }
    Ok(Response::bytes(200, "text/plain; charset=utf-8", text.into_bytes()))
}

/// What can be said without asking the database.
fn may_work(ready: &Ready) -> Result<(), Problem> {
    if ready.pulse.stopping.load(Ordering::Relaxed) {
        return Err(Problem::unavailable("shutting down"));
    }
    if let Some(trouble) = ready.figures.trouble() {
        return Err(Problem::unavailable(format!("the database cannot be used: {trouble}")));
    }
    super::database::awaits(ready)?;
    let since_round = ready.now().mono.0.saturating_sub(load(&ready.pulse.last_round_ms));
    if since_round > load(&ready.pulse.interval_ms).saturating_mul(2) {
        return Err(Problem::unavailable(format!(
            "the scheduler has not run for {} s",
            since_round / 1000
        )));
    }
    Ok(())
}

/// `GET /metrics`: Prometheus text. What cannot be known now has no samples.
pub(super) fn metrics(ready: &Ready) -> Response {
    let (mut out, now) = (Scrape::default(), ready.now());
    let answers = match ready.scraped.base.try_lock() {
        Ok(mut base) => ask_database(ready, &mut base, &mut out, now).is_ok(),
        // It holds a count or none, whatever became of the thread that counted.
        Err(TryLockError::Poisoned(base)) => {
            ask_database(ready, &mut base.into_inner(), &mut out, now).is_ok()
        }
        // Another scrape is at it. That says nothing against the database.
        Err(TryLockError::WouldBlock) => true,
    };
    out.one(&f::READY, u8::from(answers && may_work(ready).is_ok()));
    watched(ready, &mut out, now);
    monitored(ready, &mut out, now);
    written(ready, &mut out);
    transported(ready, &mut out);
    announced(ready, &mut out);
    process::scrape(&mut out);
    let (version, commit) = (env!("CARGO_PKG_VERSION"), env!("BUILT_FROM_COMMIT"));
    out.sample(&f::BUILD, &[version, commit, tally::sqlite_version()], 1);
    let text = out.text().into_bytes();
    Response::bytes(200, "text/plain; version=0.0.4; charset=utf-8", text)
}

/// What only the database knows.
fn ask_database(
    ready: &Ready,
    base: &mut Option<Base>,
    out: &mut Scrape,
    now: Now,
) -> Result<(), StoreError> {
    let asked = read(ready, base, out, now);
    if let Err(error) = &asked {
        log::warn!("could not count what is in the database: {error}");
        if let StoreError::Damaged(_) = error {
            ready.figures.suffer(error);
        }
    }
    asked
}

fn read(
    ready: &Ready,
    base: &mut Option<Base>,
    out: &mut Scrape,
    now: Now,
) -> Result<(), StoreError> {
    if let Ok(space) = ready.readers.space() {
        out.one(&f::DATABASE_SIZE, space.database_bytes);
        out.one(&f::WAL_SIZE, space.log_bytes);
        out.one(&f::DISK_FREE, space.free_bytes);
        out.one(&f::DISK_SIZE, space.disk_bytes);
    }
    let reader = ready.readers.get_soon()?;
    let hosts = tally::hosts(&reader)?;
    out.each(&f::HOSTS, hosts.by_status);
    out.one(&f::HOSTS_DEGRADED, hosts.degraded);
    out.each(&f::TEMPLATES, templates::counts(&reader)?);
    out.one(&f::TEMPLATES_DELETED, templates::to_delete(&reader)?);
    let unfinished = tally::unfinished(&reader)?;
    out.each(&f::OPERATIONS_UNFINISHED, unfinished.by_kind);
    let oldest = unfinished.oldest.map_or(Duration::ZERO, |at| now.wall.since(at));
    out.one(&f::OPERATIONS_OLDEST, seconds(oldest));
    out.one(&f::NOTIFICATIONS_WAITING, notify::waiting(&reader)?.values().sum::<u64>());
    drop(reader);
    if base.is_none() {
        // Needs the writer for a moment: while that waits for somebody else, readers answer.
        match Base::count(&ready.readers, &ready.writer, &ready.figures, now) {
            Ok(counted) => *base = Some(counted),
            Err(error) => log::warn!("could not count sandboxes: {error}"),
        }
    }
    base.iter().for_each(|base| out.each(&f::SANDBOXES, base.now(&ready.figures.tallied)));
    Ok(())
}

/// What is known of hosts without the database.
fn watched(ready: &Ready, out: &mut Scrape, now: Now) {
    let interval = Duration::from_millis(load(&ready.pulse.interval_ms));
    let all = ready.presence.overview(now, interval);
    out.one(&f::UNKNOWN_HOSTS, super::hosts::unknown_now(ready).len());
    out.one(&f::CONTACT_GAPS, all.contact_gaps);
    out.one(&f::ZOMBIES, all.zombies);
    out.one(&f::MISPLACED, all.misplaced);
    out.one(&f::FOREIGN, ready.figures.foreign.get());
    out.one(&f::HELD, all.held);
    out.one(&f::HEARTBEAT_AGE, seconds(all.heartbeat_age_max));
    out.one(&f::OBSERVATION_AGE, seconds(all.observation_age_max));
    out.one(&f::CLOCK_SUSPECT, u8::from(ready.presence.clock_is_suspect(now.mono)));
    out.each(&f::HEARTBEATS, ready.scraped.heartbeats.get());
}

fn monitored(ready: &Ready, out: &mut Scrape, now: Now) {
    let pulse = &ready.pulse;
    let since = |ms: u64| seconds(Duration::from_millis(now.mono.0.saturating_sub(ms)));
    out.each(&f::FLUSHES, pulse.flushes.get());
    out.one(&f::FLUSH_AGE, since(load(&pulse.last_flush_ms)));
    let outcomes = [pulse.probes_listed.get()].into_iter().chain(pulse.probes_failed.get());
    out.each(&f::PROBES, outcomes);
    out.histogram(&f::PROBES_TOOK, &pulse.probes_took);
    out.one(&f::PROBES_IN_FLIGHT, load(&pulse.in_flight));
    out.one(&f::PROBES_SLOW, load(&pulse.slow_in_flight));
    out.one(&f::PROBE_INTERVAL, seconds(Duration::from_millis(load(&pulse.interval_ms))));
    out.one(&f::ROUND_AGE, since(load(&pulse.last_round_ms)));
    let holding_since = Some(load(&pulse.holding_since_ms)).filter(|since| *since > 0);
    out.one(&f::RESTORED, u8::from(ready.acceptance.awaited().is_some()));
    out.one(&f::MASS_GUARD, u8::from(holding_since.is_some()));
    out.one(&f::MASS_GUARD_FOR, holding_since.map_or(0.0, since));
    let expires_s = Some(load(&pulse.certificate_expires_s)).filter(|expires_s| *expires_s > 0);
    expires_s.into_iter().for_each(|expires_s| out.one(&f::CERTIFICATE_EXPIRES, expires_s));
}

fn written(ready: &Ready, out: &mut Scrape) {
    let figures = &ready.figures;
    let results = figures.succeeded.get().into_iter().zip(figures.failed.get());
    for (kind, (succeeded, failed)) in OperationKind::WORDS.iter().zip(results) {
        for (result, count) in RESULTS.iter().zip([succeeded, failed]) {
            out.sample(&f::OPERATIONS, &[kind, result], count);
        }
    }
    out.each(&f::SANDBOX_MOVES, figures.tallied.entered());
    out.one(&f::COMMITS, load(&figures.commits));
    out.one(&f::IDLE_TRANSACTIONS, load(&figures.idle));
    out.one(&f::COMMIT_FAILURES, load(&figures.failures));
    out.histogram(&f::COMMIT_TOOK, &figures.commit_took);
    out.one(&f::COMMANDS, figures.commands.get());
    out.one(&f::QUEUE, ready.writer.queued());
    out.one(&f::ROWS, load(&figures.rows));
    out.one(&f::EVENTS, figures.events.get());
    out.one(&f::REVISION, ready.revision.newest());
    let trouble = figures.trouble().map(|trouble| word_of(&trouble));
    out.each(&f::TROUBLE, TROUBLES.iter().map(|word| u8::from(trouble == Some(*word))));
}

/// What became of notifications, over all targets: their names may say more than figures
/// should.
fn announced(ready: &Ready, out: &mut Scrape) {
    let targets = ready.notify.targets();
    let sum = |of: fn(&TargetState) -> u64| targets.iter().map(of).sum::<u64>();
    out.one(&f::NOTIFICATIONS, sum(|target| target.sent));
    out.one(&f::NOTIFICATIONS_FAILED, sum(|target| target.failed));
    out.one(&f::NOTIFICATIONS_GIVEN_UP, sum(|target| target.given_up));
}

/// One of [`TROUBLES`].
fn word_of(trouble: &StoreError) -> &'static str {
    match trouble {
        StoreError::Damaged(_) => "damaged",
        StoreError::Disk(_) => "disk",
        StoreError::CannotOpen(_) => "cannot_open",
        StoreError::Moved(_) => "moved",
        StoreError::Busy | StoreError::Stalled(_) => "busy",
        StoreError::Missing(_)
        | StoreError::NoFile(_)
        | StoreError::Exists(_)
        | StoreError::NotWhole { .. }
        | StoreError::NotAccepted
        | StoreError::Foreign(_)
        | StoreError::NewerSchema { .. }
        | StoreError::OlderSchema { .. }
        | StoreError::Held { .. }
        | StoreError::Io { .. }
        | StoreError::BadRow(_)
        | StoreError::Sqlite(_)
        | StoreError::Stopped
        | StoreError::GivenUp => "other",
    }
}

fn transported(ready: &Ready, out: &mut Scrape) {
    out.each(&f::ANSWERS, ready.http.answers());
    out.one(&f::CONNECTIONS, ready.http.connections());
    out.one(&f::DROPPED, ready.http.dropped());
    out.one(&f::WAITING, ready.lanes.conversations());
    out.one(&f::STREAMS, ready.http.streams());
    out.one(&f::STREAMS_CUT, ready.http.streams_cut());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Histogram;
    use crate::model::probe::FailureKind;
    use families::{ALL, Type};

    #[test]
    fn every_name_is_one_that_prometheus_would_choose() {
        let mut names: Vec<&str> = ALL.iter().map(|family| family.name).collect();
        for family in ALL {
            let name = family.name;
            assert!(name.starts_with("roost_") || name.starts_with("process_"), "{name}");
            assert!(name.bytes().all(|b| b == b'_' || b.is_ascii_lowercase()), "{name}");
            assert_eq!(family.kind == Type::Counter, name.ends_with("_total"), "{name}");
            assert_eq!(
                family.kind == Type::Histogram,
                name.ends_with("_duration_seconds"),
                "{name}"
            );
            assert!(
                family.help.ends_with('.') && !family.help.contains(['\\', '\n', '|']),
                "{name}"
            );
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }

    #[test]
    fn the_words_of_labels_are_those_of_what_is_counted() {
        assert_eq!(&PROBE_OUTCOMES[1..], FailureKind::WORDS);
        let unknown = word_of(&StoreError::Stopped);
        assert!(TROUBLES.contains(&unknown));
    }

    #[test]
    fn a_histogram_is_written_in_seconds() {
        let (mut out, histogram) = (Scrape::default(), Histogram::default());
        histogram.note(Duration::from_millis(30));
        out.histogram(&f::COMMIT_TOOK, &histogram);
        let text = out.text();
        for line in [
            "# TYPE roost_commit_duration_seconds histogram",
            "roost_commit_duration_seconds_bucket{le=\"0.025\"} 0",
            "roost_commit_duration_seconds_bucket{le=\"0.1\"} 1",
            "roost_commit_duration_seconds_bucket{le=\"+Inf\"} 1",
            "roost_commit_duration_seconds_sum 0.03",
            "roost_commit_duration_seconds_count 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }
}
