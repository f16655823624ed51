//! Owns what is counted of the database for whoever watches it. Sandboxes are counted once,
//! on a snapshot; from then on what the writer moved is added up, so that a million rows
//! cost no more than ten.
//!
//! Never: holds the writer up (it only lets a snapshot begin between two transactions),
//! writes, says what a count is called (`api::metrics` does).

use super::StoreError;
use super::read::{Reader, Readers};
use super::rows;
use super::writer::{Command, WriterFigures, WriterHandle};
use crate::model::host::HostStatus;
use crate::model::operation::OperationKind;
use crate::model::sandbox::SandboxStatus;
use crate::model::time::{Now, Wall};
use rusqlite::{Connection, Row};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long whoever counts waits for a connection and for the writer. Larger: a scrape that
/// finds a busy database misses its own deadline; smaller: it goes without for no need.
const PATIENCE: Duration = Duration::from_secs(1);

const STATUSES: usize = SandboxStatus::ALL.len();

/// How sandboxes moved, by status in the order of [`SandboxStatus::ALL`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// How many more there are.
    change: [i64; STATUSES],
    /// How many came into it.
    entered: [u64; STATUSES],
}

impl Tally {
    /// One sandbox moved, was made or is gone.
    pub(super) fn moved(&mut self, from: Option<SandboxStatus>, to: Option<SandboxStatus>) {
        if let Some(from) = from {
            self.change[from as usize] -= 1;
        }
        if let Some(to) = to {
            self.change[to as usize] += 1;
            self.entered[to as usize] += 1;
        }
    }

    /// So many sandboxes that were over are gone.
    pub(super) fn gone(&mut self, status: SandboxStatus, count: usize) {
        self.change[status as usize] -= i64::try_from(count).unwrap_or(i64::MAX);
    }
}

/// What moved since the start and is committed.
#[derive(Debug, Default)]
pub struct Tallied(Mutex<Tally>);

impl Tallied {
    /// Adds what a transaction moved. Called by the writer after its commit.
    pub(super) fn add(&self, more: &Tally) {
        if *more != Tally::default() {
            let mut sum = self.lock();
            sum.change.iter_mut().zip(more.change).for_each(|(n, more)| *n += more);
            sum.entered.iter_mut().zip(more.entered).for_each(|(n, more)| *n += more);
        }
    }

    /// How many sandboxes came into each status since the start.
    pub fn entered(&self) -> [u64; STATUSES] {
        self.lock().entered
    }

    fn now(&self) -> Tally {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Tally> {
        // Numbers only: a panic elsewhere leaves them as they were.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many sandboxes there were before anything moved.
#[derive(Debug, Clone, Copy)]
pub struct Base([i64; STATUSES]);

impl Base {
    /// Counts every sandbox once: as long as reading all rows takes.
    pub fn count(
        readers: &Readers,
        writer: &WriterHandle,
        figures: &Arc<WriterFigures>,
        now: Now,
    ) -> Result<Base, StoreError> {
        let reader = readers.get_within(PATIENCE)?;
        let (tx, rx) = mpsc::channel();
        let figures = Arc::clone(figures);
        let reply = Box::new(move |result: Result<(), StoreError>| {
            // On the writer's thread: nothing is committed between these two.
            let begun = result.and_then(|()| Snapshot::begin(reader));
            // Nobody waits any more: the snapshot ends where it began.
            let _ = tx.send(begun.map(|snapshot| (snapshot, figures.tallied.now())));
        });
        if !writer.try_send(now, Command::Between(reply)) {
            return Err(StoreError::Busy);
        }
        let (snapshot, moved) = rx.recv_timeout(PATIENCE).map_err(|_| StoreError::Busy)??;
        let mut counts = sandboxes(&snapshot.0)?;
        counts.iter_mut().zip(moved.change).for_each(|(n, moved)| *n -= moved);
        Ok(Base(counts))
    }

    /// How many there are now, in the order of [`SandboxStatus::ALL`].
    pub fn now(&self, tallied: &Tallied) -> [u64; STATUSES] {
        let moved = tallied.now().change;
        std::array::from_fn(|at| u64::try_from(self.0[at] + moved[at]).unwrap_or_default())
    }
}

/// A reader that sees one moment; ends with it.
struct Snapshot(Reader);

impl Snapshot {
    fn begin(reader: Reader) -> Result<Snapshot, StoreError> {
        let snapshot = Snapshot(reader);
        snapshot.0.execute_batch("BEGIN; SELECT revision FROM state")?;
        Ok(snapshot)
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if !self.0.is_autocommit()
            && let Err(error) = self.0.execute_batch("ROLLBACK")
        {
            log::error!("could not end a snapshot: {error}");
        }
    }
}

fn sandboxes(conn: &Connection) -> Result<[i64; STATUSES], StoreError> {
    let mut counts = [0; STATUSES];
    let mut select =
        conn.prepare_cached("SELECT status, count(*) FROM sandboxes GROUP BY status")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        counts[rows::parsed::<SandboxStatus>(row, 0)? as usize] = row.get(1)?;
    }
    Ok(counts)
}

/// Hosts as they are stored.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostCounts {
    /// By public status, in the order of [`HostStatus::ALL`].
    pub by_status: [u64; HostStatus::ALL.len()],
    /// Those whose probes fail while they beat.
    pub degraded: u64,
}

/// Counts hosts.
pub fn hosts(conn: &Connection) -> Result<HostCounts, StoreError> {
    let mut counts = HostCounts::default();
    let mut select = conn.prepare_cached(
        "SELECT registered_at IS NOT NULL, intent, liveness, sum(degraded), count(*) \
         FROM hosts GROUP BY 1, 2, 3",
    )?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let status = HostStatus::derive(row.get(0)?, rows::parsed(row, 1)?, rows::parsed(row, 2)?);
        counts.by_status[status as usize] += rows::unsigned(row, 4)?;
        counts.degraded += rows::unsigned(row, 3)?;
    }
    Ok(counts)
}

/// Operations that are not over.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unfinished {
    /// By kind, in the order of [`OperationKind::ALL`].
    pub by_kind: [u64; OperationKind::ALL.len()],
    /// When the oldest began.
    pub oldest: Option<Wall>,
}

/// Counts operations that are not over; reads no others.
pub fn unfinished(conn: &Connection) -> Result<Unfinished, StoreError> {
    let mut found = Unfinished::default();
    let mut select = conn.prepare_cached(
        "SELECT kind, count(*), min(created_at) FROM operations INDEXED BY operations_unfinished \
         WHERE finished_at IS NULL GROUP BY kind",
    )?;
    let mut rows = select.query([])?;
    let oldest = |row: &Row<'_>| rows::wall(row, 2);
    while let Some(row) = rows.next()? {
        found.by_kind[rows::parsed::<OperationKind>(row, 0)? as usize] = rows::unsigned(row, 1)?;
        let began = oldest(row)?;
        found.oldest = Some(found.oldest.map_or(began, |at| at.min(began)));
    }
    Ok(found)
}

/// The version of SQLite.
pub fn sqlite_version() -> &'static str {
    rusqlite::version()
}

/// What the database takes on its disk, and what is left there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes of the file.
    pub database_bytes: u64,
    /// Bytes of its write-ahead log.
    pub log_bytes: u64,
    /// Bytes that may yet be written on its disk by who is not root.
    pub free_bytes: u64,
    /// Bytes of its disk.
    pub disk_bytes: u64,
}

impl Readers {
    /// A connection; waits no longer than this for one.
    pub(super) fn get_within(&self, patience: Duration) -> Result<Reader, StoreError> {
        self.pool.get_timeout(patience).map_err(|_| StoreError::Busy)
    }

    /// A connection for who would rather go without than wait for long.
    pub fn get_soon(&self) -> Result<Reader, StoreError> {
        self.get_within(PATIENCE)
    }

    /// What the database takes. Asks the file system, not the database.
    pub fn space(&self) -> Result<Space, StoreError> {
        let failed = |error: std::io::Error| StoreError::io(&self.path, &error);
        let mut log = self.path.clone().into_os_string();
        log.push("-wal");
        let disk = rustix::fs::statvfs(&self.path).map_err(|error| failed(error.into()))?;
        Ok(Space {
            database_bytes: std::fs::metadata(&self.path).map_err(failed)?.len(),
            // Absent where nothing was written since the last start.
            log_bytes: std::fs::metadata(log).map_or(0, |log| log.len()),
            free_bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
            disk_bytes: disk.f_blocks.saturating_mul(disk.f_frsize),
        })
    }
}
