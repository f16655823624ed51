//! Owns every query that only looks: the pool of read-only connections and what readers
//! may ask.
//!
//! Never: writes, blocks the writer (WAL snapshots), decides who may see what (`api`).

use super::StoreError;
use super::identity::TokenHash;
use super::open::open_reader;
use super::rows;
use crate::model::event::{AuditEntry, Event};
use crate::model::host::Host;
use crate::model::id::{HostId, SandboxId, TeamId};
use crate::model::sandbox::{Reason, Sandbox, SandboxStatus};
use crate::model::time::Wall;
use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params_from_iter};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Readers at a time, twice as many as long lists that are made at a time. Larger and each
/// costs a page cache; smaller and lists hold up who reads a row.
const POOL_MAX: u32 = 8;

/// Readers of a pool for few.
const FEW: u32 = 2;

/// How long a reader waits for a connection.
const POOL_WAIT: Duration = Duration::from_secs(5);

/// Page cache of one reader in KiB.
const READER_CACHE_KIB: i64 = 512;

/// Rows that one listing gives at most. Larger and one answer fills the memory; smaller
/// and clients page more.
pub const ROWS_MAX: u32 = 1000;

/// A pool of read-only connections.
#[derive(Clone)]
pub struct Readers {
    pub(super) path: PathBuf,
    pub(super) pool: r2d2::Pool<SqliteConnectionManager>,
}

/// A connection on loan.
pub type Reader = r2d2::PooledConnection<SqliteConnectionManager>;

impl Readers {
    /// A pool on an existing database of the current schema.
    pub fn open(path: &Path) -> Result<Readers, StoreError> {
        Readers::at_most(POOL_MAX, path)
    }

    /// The same for those who read a row now and then, and must not wait for others.
    pub fn few(path: &Path) -> Result<Readers, StoreError> {
        Readers::at_most(FEW, path)
    }

    fn at_most(max: u32, path: &Path) -> Result<Readers, StoreError> {
        drop(open_reader(path)?);
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let manager = SqliteConnectionManager::file(path).with_flags(flags).with_init(|conn| {
            conn.busy_timeout(POOL_WAIT)?;
            conn.pragma_update(None, "cache_size", -READER_CACHE_KIB)
        });
        let pool = r2d2::Pool::builder()
            .max_size(max)
            .min_idle(Some(0))
            .test_on_check_out(false)
            .idle_timeout(None)
            .max_lifetime(None)
            .connection_timeout(POOL_WAIT)
            .thread_pool(Arc::new(scheduled_thread_pool::ScheduledThreadPool::new(1)))
            .build(manager)
            .map_err(|e| StoreError::Sqlite(e.to_string()))?;
        Ok(Readers { path: path.to_owned(), pool })
    }

    /// A connection; waits a bounded time for one.
    pub fn get(&self) -> Result<Reader, StoreError> {
        self.pool.get().map_err(|_| StoreError::Busy)
    }
}

/// Which sandboxes to list.
#[derive(Debug, Clone, Default)]
pub struct SandboxFilter {
    /// Of one team only.
    pub team: Option<TeamId>,
    /// Of one host only.
    pub host: Option<HostId>,
    /// In one status only.
    pub status: Option<SandboxStatus>,
    /// Also those that are over.
    pub all: bool,
    /// The newest first, instead of in order of ids.
    pub newest_first: bool,
}

/// Which events or audit entries to list.
#[derive(Debug, Clone, Default)]
pub struct HistoryFilter {
    /// Of one team only.
    pub team: Option<TeamId>,
    /// About this host or its sandboxes.
    pub host: Option<HostId>,
    /// About this sandbox.
    pub sandbox: Option<SandboxId>,
    /// At most so many.
    pub limit: u32,
}

/// The newest revision.
pub fn revision(conn: &Connection) -> Result<u64, StoreError> {
    Ok(conn.query_row("SELECT revision FROM state", [], |row| rows::unsigned(row, 0))?)
}

/// Until when a server listened; `None`: until now (a fixture).
pub fn listened_until(conn: &Connection) -> Result<Option<Wall>, StoreError> {
    let at: Option<i64> = conn.query_row("SELECT listened_until FROM state", [], |r| r.get(0))?;
    Ok(at.map(Wall))
}

/// Hosts that were deleted.
pub fn tombstones(conn: &Connection) -> Result<Vec<HostId>, StoreError> {
    let mut select = conn.prepare_cached("SELECT host_id FROM tombstones ORDER BY host_id")?;
    collect(select.query([])?, |row| rows::id(row, 0))
}

/// The host that this registration token was made for, valid or not.
pub fn host_to_register(
    conn: &Connection,
    token: &TokenHash,
) -> Result<Option<HostId>, StoreError> {
    let sql = "SELECT host_id FROM registration_tokens WHERE hash = ?1";
    Ok(conn.prepare_cached(sql)?.query_row([token], |row| rows::id(row, 0)).optional()?)
}

/// The host that this refresh token was given to, valid or not.
pub fn host_to_refresh(conn: &Connection, token: &TokenHash) -> Result<Option<HostId>, StoreError> {
    let sql = "SELECT host_id FROM refresh_tokens WHERE hash = ?1";
    Ok(conn.prepare_cached(sql)?.query_row([token], |row| rows::id(row, 0)).optional()?)
}

/// All hosts, in order of ids.
pub fn hosts(conn: &Connection) -> Result<Vec<Host>, StoreError> {
    let sql = format!("SELECT {} FROM hosts ORDER BY id", rows::HOST);
    let mut select = conn.prepare_cached(&sql)?;
    collect(select.query([])?, rows::host)
}

/// One host.
pub fn host(conn: &Connection, id: HostId) -> Result<Option<Host>, StoreError> {
    let sql = format!("SELECT {} FROM hosts WHERE id = ?1", rows::HOST);
    Ok(conn.prepare_cached(&sql)?.query_row([id.to_string()], rows::host).optional()?)
}

/// Sandboxes, in the order that the filter says.
pub fn sandboxes(conn: &Connection, filter: &SandboxFilter) -> Result<Vec<Sandbox>, StoreError> {
    let mut sql = format!("SELECT {} FROM sandboxes WHERE 1", rows::SANDBOX);
    let mut values = Vec::new();
    let mut and = |clause: &str, value: Option<String>| {
        sql.push_str(clause);
        values.extend(value.map(Value::Text));
    };
    if let Some(team) = filter.team {
        and(" AND team_id = ?", Some(team.to_string()));
    }
    if let Some(host) = filter.host {
        and(" AND host_id = ?", Some(host.to_string()));
    }
    match filter.status {
        Some(status) => and(" AND status = ?", Some(status.to_string())),
        None if !filter.all => and(" AND status NOT IN ('stopped', 'error')", None),
        None => {}
    }
    let order = if filter.newest_first { "created_at DESC, id" } else { "id" };
    sql.push_str(&format!(" ORDER BY {order}"));
    let mut select = conn.prepare_cached(&sql)?;
    collect(select.query(params_from_iter(values))?, rows::sandbox)
}

/// One sandbox.
pub fn sandbox(conn: &Connection, id: SandboxId) -> Result<Option<Sandbox>, StoreError> {
    let sql = format!("SELECT {} FROM sandboxes WHERE id = ?1", rows::SANDBOX);
    Ok(conn.prepare_cached(&sql)?.query_row([id.to_string()], rows::sandbox).optional()?)
}

/// How many sandboxes each host has in each status.
pub fn counts(conn: &Connection) -> Result<HashMap<HostId, Vec<(SandboxStatus, u64)>>, StoreError> {
    let mut select = conn.prepare_cached(
        "SELECT host_id, status, count(*) FROM sandboxes GROUP BY host_id, status",
    )?;
    let rows = collect(select.query([])?, |row| {
        Ok((rows::id(row, 0)?, rows::parsed(row, 1)?, rows::unsigned(row, 2)?))
    })?;
    let mut counts: HashMap<HostId, Vec<(SandboxStatus, u64)>> = HashMap::new();
    for (host, status, count) in rows {
        counts.entry(host).or_default().push((status, count));
    }
    Ok(counts)
}

/// Events after a revision, oldest first.
pub fn events_after(
    conn: &Connection,
    after: u64,
    filter: &HistoryFilter,
) -> Result<Vec<Event>, StoreError> {
    events(conn, &format!("revision > {after}"), "ASC", filter)
}

/// The newest events, oldest of them first.
pub fn events_latest(conn: &Connection, filter: &HistoryFilter) -> Result<Vec<Event>, StoreError> {
    let mut latest = events(conn, "1", "DESC", filter)?;
    latest.reverse();
    Ok(latest)
}

/// Revision of the oldest event that is kept.
pub fn oldest_event(conn: &Connection) -> Result<Option<u64>, StoreError> {
    let oldest: Option<i64> =
        conn.query_row("SELECT min(revision) FROM events", [], |row| row.get(0))?;
    Ok(oldest.and_then(|revision| u64::try_from(revision).ok()))
}

fn events(
    conn: &Connection,
    from: &str,
    order: &str,
    filter: &HistoryFilter,
) -> Result<Vec<Event>, StoreError> {
    let mut sql = format!(
        "SELECT revision, at, kind, host_id, sandbox_id, team_id, from_status, to_status, \
         reason, actor, detail FROM events WHERE {from}"
    );
    let mut values = Vec::new();
    if let Some(team) = filter.team {
        sql.push_str(" AND team_id = ?");
        values.push(Value::Text(team.to_string()));
    }
    if let Some(host) = filter.host {
        sql.push_str(" AND host_id = ?");
        values.push(Value::Text(host.to_string()));
    }
    if let Some(sandbox) = filter.sandbox {
        sql.push_str(" AND sandbox_id = ?");
        values.push(Value::Text(sandbox.to_string()));
    }
    sql.push_str(&format!(" ORDER BY revision {order} LIMIT {}", filter.limit));
    let mut select = conn.prepare(&sql)?;
    collect(select.query(params_from_iter(values))?, event)
}

fn event(row: &Row<'_>) -> rusqlite::Result<Event> {
    let reason: String = row.get(8)?;
    Ok(Event {
        revision: rows::unsigned(row, 0)?,
        at: rows::wall(row, 1)?,
        kind: rows::parsed(row, 2)?,
        host_id: rows::id(row, 3)?,
        sandbox_id: rows::parsed_opt(row, 4)?,
        team_id: rows::id(row, 5)?,
        from: row.get(6)?,
        to: row.get(7)?,
        reason: Reason::from(reason.as_str()),
        actor: rows::parsed(row, 9)?,
        detail: row.get(10)?,
    })
}

/// Where a page of the audit log begins: before a place, before a time, or at the newest.
#[derive(Debug, Clone, Copy, Default)]
pub struct Before {
    /// Entries before this place.
    pub seq: Option<u64>,
    /// Entries older than this.
    pub at: Option<Wall>,
}

/// Audit entries of a page, newest first.
pub fn audit_before(
    conn: &Connection,
    before: Before,
    filter: &HistoryFilter,
) -> Result<Vec<AuditEntry>, StoreError> {
    let mut sql = format!("SELECT {AUDIT} FROM audit_logs WHERE 1");
    let mut values = Vec::new();
    if let Some(team) = filter.team {
        sql.push_str(&format!(" AND team_id = '{team}'"));
    }
    if let Some(seq) = before.seq {
        sql.push_str(&format!(" AND seq < {seq}"));
    }
    if let Some(at) = before.at {
        sql.push_str(&format!(" AND created_at < {}", at.0));
    }
    if let Some(host) = filter.host {
        sql.push_str(" AND (resource_id = ?1 OR metadata ->> 'host_id' = ?1)");
        values.push(Value::Text(host.to_string()));
    }
    if let Some(sandbox) = filter.sandbox {
        sql.push_str(&format!(" AND resource_id = ?{}", values.len() + 1));
        values.push(Value::Text(sandbox.to_string()));
    }
    sql.push_str(&format!(" ORDER BY seq DESC LIMIT {}", filter.limit));
    let mut select = conn.prepare(&sql)?;
    collect(select.query(params_from_iter(values))?, audit_entry)
}

/// Columns of an audit entry, in the order that [`audit_entry`] reads.
pub(super) const AUDIT: &str = "seq, id, team_id, actor_type, actor_id, actor_name, \
    resource_type, resource_id, action, scope, status, metadata, created_at";

/// Reads an audit entry; columns of [`AUDIT`].
pub(super) fn audit_entry(row: &Row<'_>) -> rusqlite::Result<AuditEntry> {
    Ok(AuditEntry {
        seq: rows::unsigned(row, 0)?,
        id: rows::id(row, 1)?,
        team_id: rows::id(row, 2)?,
        actor_type: rows::parsed(row, 3)?,
        actor_id: row.get(4)?,
        actor_name: row.get(5)?,
        resource_type: rows::parsed(row, 6)?,
        resource_id: row.get(7)?,
        action: rows::parsed(row, 8)?,
        scope: row.get(9)?,
        status: rows::parsed(row, 10)?,
        metadata: row.get(11)?,
        created_at: rows::wall(row, 12)?,
    })
}

fn collect<T>(
    mut cursor: rusqlite::Rows<'_>,
    read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, StoreError> {
    let mut out = Vec::new();
    while let Some(row) = cursor.next()? {
        out.push(read(row)?);
    }
    Ok(out)
}
