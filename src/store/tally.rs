//! Owns what is counted of the database for metrics.
//!
//! Never: asks the writer, reads sandboxes (what the writer keeps of each host says how many
//! there are), writes, says what a count is called (`api::metrics` does).

use super::StoreError;
use super::read::{Reader, Readers};
use super::rows;
use super::usage;
use crate::figures::Counters;
use crate::model::host::HostStatus;
use crate::model::operation::OperationKind;
use crate::model::sandbox::SandboxStatus;
use crate::model::time::Wall;
use rusqlite::{Connection, Row};
use std::time::Duration;

/// How long a count waits for a connection. Larger: a scrape that finds a busy database misses
/// its own deadline; smaller: it goes without for no need.
const PATIENCE: Duration = Duration::from_secs(1);

const STATUSES: usize = SandboxStatus::ALL.len();

/// How many sandboxes came into each status, in the order of [`SandboxStatus::ALL`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally([u64; STATUSES]);

impl Tally {
    /// One sandbox came into this status, or was made in it.
    pub(super) fn entered(&mut self, status: SandboxStatus) {
        self.0[status as usize] += 1;
    }
}

/// How many sandboxes came into each status since the start, as it is committed.
#[derive(Debug, Default)]
pub struct Tallied(Counters<STATUSES>);

impl Tallied {
    /// Adds what a transaction moved. Called by the writer after its commit.
    pub(super) fn add(&self, more: &Tally) {
        for (at, count) in more.0.iter().enumerate().filter(|(_, count)| **count > 0) {
            self.0.add(at, *count);
        }
    }

    /// In the order of [`SandboxStatus::ALL`].
    pub fn entered(&self) -> [u64; STATUSES] {
        self.0.get()
    }
}

/// How many sandboxes there are, in the order of [`SandboxStatus::ALL`]. Reads what the
/// writer keeps of each host, and no sandbox.
pub fn sandboxes(conn: &Connection) -> Result<[u64; STATUSES], StoreError> {
    usage::totals(conn)
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
