//! Owns every query that only looks: the pool of read-only connections and what readers
//! may ask.
//!
//! Never: writes, blocks the writer (WAL snapshots), decides who may see what (`api`).

use super::StoreError;
use super::identity::TokenHash;
use super::open::open_reader;
use super::rows;
use super::usage::{self, OnHost};
use crate::model::event::{AuditEntry, Event};
use crate::model::host::Host;
use crate::model::id::{HostId, SandboxId, TeamId};
use crate::model::sandbox::{Reason, Sandbox, SandboxStatus};
use crate::model::time::Wall;
use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params, params_from_iter};
use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// Readers at a time, twice as many as long lists that are made at a time. Larger and each
/// costs a page cache; smaller and lists hold up who reads a row.
const POOL_MAX: u32 = 8;

/// Readers of a pool for few.
const FEW_READERS: u32 = 2;

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
        Readers::at_most(FEW_READERS, path)
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

    /// One more connection, for a thread that must not wait until others give theirs back.
    pub fn own(&self) -> Result<OwnReader, StoreError> {
        let conn = open_reader(&self.path)?;
        conn.pragma_update(None, "cache_size", -READER_CACHE_KIB)?;
        Ok(OwnReader(conn))
    }
}

/// A connection that is not of the pool.
#[derive(Debug)]
pub struct OwnReader(Connection);

impl Deref for OwnReader {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.0
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
}

impl SandboxFilter {
    /// Conditions for `WHERE`. What is written into the statement is of ids and words.
    fn conditions(&self) -> Vec<String> {
        let team = self.team.map(|team| format!("team_id = '{team}'"));
        let host = self.host.map(|host| format!("host_id = '{host}'"));
        let status = self.status.map(|status| format!("status = '{status}'"));
        team.into_iter().chain(host).chain(status).collect()
    }

    /// Of what `ended` says, the parts to look in.
    fn parts(&self) -> &'static [u8] {
        match (self.status, self.all) {
            (Some(status), _) if status.is_over() => &[1],
            (Some(_), _) | (None, false) => &[0],
            (None, true) => &[0, 1],
        }
    }
}

/// A place in the list of sandboxes, the newest first: behind this one. It stays one when the
/// sandbox is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListPlace {
    /// When the sandbox was made.
    pub created_at: Wall,
    /// Its id.
    pub id: SandboxId,
}

impl From<&Sandbox> for ListPlace {
    fn from(sandbox: &Sandbox) -> ListPlace {
        ListPlace { created_at: sandbox.created_at, id: sandbox.id }
    }
}

impl fmt::Display for ListPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.created_at.0, self.id)
    }
}

/// What is no place in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoPlace;

impl fmt::Display for NoPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("must be taken from the Link header of an earlier answer, unchanged")
    }
}

impl FromStr for ListPlace {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<ListPlace, NoPlace> {
        let (at, id) = text.split_once('.').ok_or(NoPlace)?;
        let created_at = Wall(at.parse().map_err(|_| NoPlace)?);
        let place = ListPlace { created_at, id: id.parse().map_err(|_| NoPlace)? };
        // One way to write each.
        if place.to_string() == text { Ok(place) } else { Err(NoPlace) }
    }
}

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// What is on it.
    pub rows: Vec<T>,
    /// Whether more follow.
    pub more: bool,
}

impl<T> Page<T> {
    /// Of rows that were read to one beyond the limit.
    pub(super) fn cut(mut rows: Vec<T>, limit: i64) -> Page<T> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        Page { rows, more }
    }
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

/// Hosts behind this one, in order of ids, at most so many; of one team or of all.
pub fn hosts_after(
    conn: &Connection,
    team: Option<TeamId>,
    after: Option<HostId>,
    limit: u32,
) -> Result<Page<Host>, StoreError> {
    let team = team.map_or_else(String::new, |team| format!(" AND team_id = '{team}'"));
    let sql = format!("SELECT {} FROM hosts WHERE id > ?1{team} ORDER BY id LIMIT ?2", rows::HOST);
    let after = after.map_or_else(String::new, |id| id.to_string());
    let mut select = conn.prepare_cached(&sql)?;
    let limit = i64::from(limit);
    Ok(Page::cut(collect(select.query(params![after, limit + 1])?, rows::host)?, limit))
}

/// All sandboxes that the filter lets through, in order of ids.
pub fn sandboxes(conn: &Connection, filter: &SandboxFilter) -> Result<Vec<Sandbox>, StoreError> {
    let mut all = Vec::new();
    each_sandbox(conn, filter, |sandbox| all.push(sandbox))?;
    Ok(all)
}

/// The same, one at a time, on one snapshot: `each` should not wait for anything.
pub fn each_sandbox(
    conn: &Connection,
    filter: &SandboxFilter,
    mut each: impl FnMut(Sandbox),
) -> Result<(), StoreError> {
    let mut select = conn.prepare_cached(&in_order_of_ids(filter, ""))?;
    let mut cursor = select.query([])?;
    while let Some(row) = cursor.next()? {
        each(rows::sandbox(row)?);
    }
    Ok(())
}

/// The same behind a place: a page, which holds less than the limit when rows are large.
pub fn sandboxes_after(
    conn: &Connection,
    filter: &SandboxFilter,
    after: Option<SandboxId>,
    limit: u32,
) -> Result<Page<Sandbox>, StoreError> {
    let behind = after.map_or_else(String::new, |id| format!(" AND id > '{id}'"));
    let mut select = conn.prepare(&in_order_of_ids(filter, &behind))?;
    page_of(select.query([])?, limit)
}

fn in_order_of_ids(filter: &SandboxFilter, behind: &str) -> String {
    let mut conditions = filter.conditions();
    if !filter.all && filter.status.is_none() {
        conditions.push("ended = 0".to_owned());
    }
    conditions.push("1".to_owned());
    let conditions = conditions.join(" AND ");
    format!("SELECT {} FROM sandboxes WHERE {conditions}{behind} ORDER BY id", rows::SANDBOX)
}

/// Sandboxes behind a place, the newest first: a page, which holds less than the limit when
/// rows are large. Reads little more than what it gives, however many rows there are.
pub fn newest_sandboxes(
    conn: &Connection,
    filter: &SandboxFilter,
    after: Option<ListPlace>,
    limit: u32,
) -> Result<Page<Sandbox>, StoreError> {
    // One moment, over several statements.
    let _snapshot = conn.unchecked_transaction()?;
    if let Some(status) = filter.status {
        let hosts = hosts_with(conn, status, filter.host)?;
        if hosts.iter().map(|(_, count)| count).sum::<i64>() <= FEW {
            return few_sandboxes(conn, filter, after, limit, &hosts);
        }
    }
    let sql = newest_first(rows::SANDBOX, filter, after, limit + 1);
    let mut select = conn.prepare(&sql)?;
    page_of(select.query([])?, limit)
}

/// Sandboxes of one status that are collected from their hosts and sorted, instead of being
/// met on a walk over all. Larger: more is read at once; smaller: a rare status costs a walk.
const FEW: i64 = 200;

/// Hosts, or the one, with sandboxes in this status, and how many.
fn hosts_with(
    conn: &Connection,
    status: SandboxStatus,
    host: Option<HostId>,
) -> Result<Vec<(HostId, i64)>, StoreError> {
    let one = host.map_or_else(String::new, |host| format!(" AND host_id = '{host}'"));
    let sql = format!("SELECT host_id, {status} FROM host_usage WHERE {status} > 0{one}");
    collect(conn.prepare(&sql)?.query([])?, |row| Ok((rows::id(row, 0)?, row.get(1)?)))
}

fn few_sandboxes(
    conn: &Connection,
    filter: &SandboxFilter,
    after: Option<ListPlace>,
    limit: u32,
    hosts: &[(HostId, i64)],
) -> Result<Page<Sandbox>, StoreError> {
    let mut keys: Vec<(Reverse<Wall>, SandboxId)> = Vec::new();
    for (host, _) in hosts {
        let of_host = SandboxFilter { host: Some(*host), ..filter.clone() };
        let sql = newest_first("created_at, id", &of_host, after, u32::MAX);
        let mut select = conn.prepare(&sql)?;
        keys.extend(collect(select.query([])?, |row| {
            Ok((Reverse(rows::wall(row, 0)?), rows::id(row, 1)?))
        })?);
    }
    keys.sort_unstable();
    let mut page = PageOf::new(limit);
    for (_, id) in keys {
        if page.is_full() {
            return Ok(Page { rows: page.rows, more: true });
        }
        if let Some(row) = sandbox(conn, id)? {
            page.push(row);
        }
    }
    Ok(Page { rows: page.rows, more: false })
}

/// Walks an index; what is no part of it is only asked of what it names.
fn newest_first(
    columns: &str,
    filter: &SandboxFilter,
    after: Option<ListPlace>,
    limit: u32,
) -> String {
    let index = match (filter.host, filter.team) {
        (Some(_), _) => "sandboxes_by_host",
        (None, Some(_)) => "sandboxes_by_team",
        (None, None) => "sandboxes_by_age",
    };
    // Two ranges, so that many of one age are not passed over again for every page.
    let ranges = match after {
        None => vec![String::new()],
        Some(ListPlace { created_at: Wall(at), id }) => vec![
            format!(" AND created_at = {at} AND id > '{id}'"),
            format!(" AND created_at < {at}"),
        ],
    };
    let conditions: String =
        filter.conditions().iter().map(|condition| format!(" AND {condition}")).collect();
    let part = |ended: &u8| {
        let of = format!("SELECT {columns} FROM sandboxes INDEXED BY {index}");
        let range = |range: &String| format!("{of} WHERE ended = {ended}{range}{conditions}");
        ranges.iter().map(range).collect::<Vec<_>>()
    };
    let parts: Vec<String> = filter.parts().iter().flat_map(part).collect();
    format!("{} ORDER BY created_at DESC, id LIMIT {limit}", parts.join(" UNION ALL "))
}

/// Bytes of rows on one page. Larger: a page of rows with much metadata is held in memory for
/// each client at once; smaller: more reads for the same list.
const PAGE_BYTES_MAX: usize = 256 * 1024;

/// A page that is being filled.
struct PageOf {
    rows: Vec<Sandbox>,
    limit: usize,
    bytes: usize,
}

impl PageOf {
    fn new(limit: u32) -> PageOf {
        PageOf { rows: Vec::new(), limit: limit as usize, bytes: 0 }
    }

    fn is_full(&self) -> bool {
        self.rows.len() >= self.limit || self.bytes >= PAGE_BYTES_MAX
    }

    fn push(&mut self, row: Sandbox) {
        let texts = [&row.metadata, &row.status_detail, &row.default_env, &row.template];
        self.bytes += texts.into_iter().flatten().map(String::len).sum::<usize>();
        self.rows.push(row);
    }
}

fn page_of(mut cursor: rusqlite::Rows<'_>, limit: u32) -> Result<Page<Sandbox>, StoreError> {
    let mut page = PageOf::new(limit);
    while let Some(row) = cursor.next()? {
        if page.is_full() {
            return Ok(Page { rows: page.rows, more: true });
        }
        page.push(rows::sandbox(row)?);
    }
    Ok(Page { rows: page.rows, more: false })
}

/// One sandbox.
pub fn sandbox(conn: &Connection, id: SandboxId) -> Result<Option<Sandbox>, StoreError> {
    let sql = format!("SELECT {} FROM sandboxes WHERE id = ?1", rows::SANDBOX);
    Ok(conn.prepare_cached(&sql)?.query_row([id.to_string()], rows::sandbox).optional()?)
}

/// How many sandboxes each host has in each status; reads none of them.
pub fn counts(conn: &Connection) -> Result<HashMap<HostId, Vec<(SandboxStatus, u64)>>, StoreError> {
    let some = |(at, count): (usize, i64)| {
        let count = u64::try_from(count).ok().filter(|count| *count > 0)?;
        Some((SandboxStatus::ALL[at], count))
    };
    let of = |of: OnHost| of.by_status.into_iter().enumerate().filter_map(some).collect();
    Ok(usage::hosts(conn)?.into_iter().map(|(host, sums)| (host, of(sums))).collect())
}

/// Events after a revision, oldest first.
pub fn events_after(
    conn: &Connection,
    after: u64,
    filter: &HistoryFilter,
) -> Result<Vec<Event>, StoreError> {
    events(conn, &format!("revision > {after}"), "ASC", filter)
}

/// Events after a revision and up to another, oldest first: a filter that lets nothing
/// through reads no more than that.
pub fn events_between(
    conn: &Connection,
    after: u64,
    upto: u64,
    filter: &HistoryFilter,
) -> Result<Vec<Event>, StoreError> {
    events(conn, &format!("revision > {after} AND revision <= {upto}"), "ASC", filter)
}

/// The newest events, oldest of them first.
pub fn events_latest(conn: &Connection, filter: &HistoryFilter) -> Result<Vec<Event>, StoreError> {
    let mut latest = events(conn, "1", "DESC", filter)?;
    latest.reverse();
    Ok(latest)
}

/// Revision of the oldest event from which on none is missing.
pub fn oldest_event(conn: &Connection) -> Result<Option<u64>, StoreError> {
    let mut select = conn.prepare_cached(
        "SELECT max(min(revision), coalesce((SELECT max(up_to) + 1 FROM event_shares), 0)) \
         FROM events",
    )?;
    let oldest: Option<i64> = select.query_row([], |row| row.get(0))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::open::SCHEMA;

    /// However a list is filtered, it walks an index and sorts nothing.
    #[test]
    fn lists_are_walked_in_their_order() {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(SCHEMA).unwrap();
        let (team, host) = (Some(TeamId::from_u128(1)), Some(HostId::from_u128(2)));
        let place = ListPlace { created_at: Wall(5), id: SandboxId::from_u128(3) };
        for team in [None, team] {
            for host in [None, host] {
                for status in [None, Some(SandboxStatus::Running), Some(SandboxStatus::Error)] {
                    for (all, after) in [(false, None), (true, None), (true, Some(place))] {
                        let filter = SandboxFilter { team, host, status, all };
                        let sql = newest_first(rows::SANDBOX, &filter, after, 10);
                        let mut plan = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
                        let steps = plan.query_map([], |row| row.get::<_, String>(3)).unwrap();
                        let steps: Vec<String> = steps.map(Result::unwrap).collect();
                        let sorts = steps.iter().any(|step| step.contains("TEMP B-TREE"));
                        assert!(!sorts, "{sql}: {steps:#?}");
                        let walks = steps.iter().filter(|step| step.starts_with("SEARCH"));
                        assert!(walks.count() > 0, "{sql}: {steps:#?}");
                    }
                }
            }
        }
    }
}
