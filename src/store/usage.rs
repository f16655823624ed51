//! Owns what the sandboxes of each host and each team come to: how many are in each status,
//! and what those take that hold a microVM. Kept by the writer with every change, so that a
//! create, a page and a scrape cost the same with a million rows as with ten.
//!
//! Never: counts rows, but for a database that says nothing yet; keeps what a savepoint or a
//! transaction has taken back. `verify` compares it with the rows.

use super::rows;
use super::{Connection, StoreError};
use crate::model::id::{HostId, TeamId};
use crate::model::sandbox::{Sandbox, SandboxStatus};
use rusqlite::{Row, ToSql, params, params_from_iter};
use std::collections::HashMap;
use std::hash::Hash;

const STATUSES: usize = SandboxStatus::ALL.len();

/// Columns of `host_usage` behind its key, in the order of [`SandboxStatus::ALL`].
macro_rules! columns {
    () => {
        "vcpus, memory_mb, pending, starting, running, pausing, paused, resuming, stopping, \
         stopped, missing, error, hibernated"
    };
}

/// The same, from the rows of one host.
macro_rules! sums {
    () => {
        "sum(CASE WHEN status NOT IN ('paused', 'stopped', 'error', 'hibernated') \
             THEN coalesce(vcpus, 0) ELSE 0 END) AS vcpus, \
         sum(CASE WHEN status NOT IN ('paused', 'stopped', 'error', 'hibernated') \
             THEN coalesce(memory_mb, 0) ELSE 0 END) AS memory_mb, \
         sum(status = 'pending') AS pending, sum(status = 'starting') AS starting, \
         sum(status = 'running') AS running, sum(status = 'pausing') AS pausing, \
         sum(status = 'paused') AS paused, sum(status = 'resuming') AS resuming, \
         sum(status = 'stopping') AS stopping, sum(status = 'stopped') AS stopped, \
         sum(status = 'missing') AS missing, sum(status = 'error') AS error, \
         sum(status = 'hibernated') AS hibernated"
    };
}

/// Counts every row anew: for a database whose rows were written by other means than the
/// writer's.
pub(super) const COUNT: &str = concat!(
    "DELETE FROM host_usage; DELETE FROM team_usage; INSERT INTO host_usage SELECT host_id, ",
    sums!(),
    " FROM sandboxes GROUP BY host_id; \
     INSERT INTO team_usage SELECT team_id, count(*) FROM sandboxes WHERE ended = 0 \
     GROUP BY team_id"
);

/// What the sandboxes of one host come to, or how that changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct OnHost {
    /// Virtual processors of those that hold a microVM, or may.
    pub(super) vcpus: i64,
    /// Their memory in MiB.
    pub(super) memory_mb: i64,
    /// How many there are, in the order of [`SandboxStatus::ALL`].
    pub(super) by_status: [i64; STATUSES],
}

impl OnHost {
    /// One sandbox more in this status, or with `-1` one less.
    pub(super) fn add(
        &mut self,
        status: SandboxStatus,
        (vcpus, memory_mb): (i64, i64),
        count: i64,
    ) {
        self.by_status[status as usize] += count;
        if takes_room(status) {
            self.vcpus += vcpus * count;
            self.memory_mb += memory_mb * count;
        }
    }

    fn add_all(&mut self, more: &OnHost, times: i64) {
        self.vcpus += more.vcpus * times;
        self.memory_mb += more.memory_mb * times;
        self.by_status.iter_mut().zip(more.by_status).for_each(|(n, more)| *n += more * times);
    }

    /// How many have ended.
    pub(super) fn ended(&self) -> i64 {
        SandboxStatus::ALL.iter().filter(|s| s.is_over()).map(|s| self.by_status[*s as usize]).sum()
    }

    /// How many have not.
    pub(super) fn alive(&self) -> i64 {
        self.by_status.iter().sum::<i64>() - self.ended()
    }

    fn read(row: &Row<'_>) -> rusqlite::Result<OnHost> {
        let mut on_host =
            OnHost { vcpus: row.get(1)?, memory_mb: row.get(2)?, ..OnHost::default() };
        for (at, count) in on_host.by_status.iter_mut().enumerate() {
            *count = row.get(at + 3)?;
        }
        Ok(on_host)
    }
}

/// Whether a sandbox of this status holds a microVM on its host, or may hold one.
fn takes_room(status: SandboxStatus) -> bool {
    match status {
        SandboxStatus::Pending
        | SandboxStatus::Starting
        | SandboxStatus::Running
        | SandboxStatus::Pausing
        | SandboxStatus::Resuming
        | SandboxStatus::Stopping
        | SandboxStatus::Missing => true,
        SandboxStatus::Paused
        | SandboxStatus::Stopped
        | SandboxStatus::Error
        | SandboxStatus::Hibernated => false,
    }
}

/// Whether a move between these changes what is taken of the host.
pub(super) fn room_changes(from: SandboxStatus, to: SandboxStatus) -> bool {
    takes_room(from) != takes_room(to)
}

/// What changed since a savepoint or a transaction began.
#[derive(Debug, Default)]
struct Change {
    hosts: HashMap<HostId, OnHost>,
    teams: HashMap<TeamId, i64>,
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Usage {
    hosts: HashMap<HostId, OnHost>,
    teams: HashMap<TeamId, i64>,
    /// Of the transaction; above it of its savepoints, the innermost last.
    changes: Vec<Change>,
}

impl Usage {
    /// What is stored; a database that says nothing of the sandboxes it has is counted once.
    pub(super) fn load(conn: &Connection) -> Result<Usage, StoreError> {
        let counted = conn.prepare("SELECT 1 FROM host_usage")?.exists([])?;
        if !counted && conn.prepare("SELECT 1 FROM sandboxes")?.exists([])? {
            conn.execute_batch(COUNT)?;
        }
        let hosts = hosts(conn)?;
        let mut select = conn.prepare("SELECT team_id, sandboxes FROM team_usage")?;
        let teams = select.query_map([], |row| Ok((rows::id(row, 0)?, row.get(1)?)))?;
        let teams = teams.collect::<Result<_, _>>()?;
        Ok(Usage { hosts, teams, changes: vec![Change::default()] })
    }

    /// What is on a host.
    pub(super) fn on(&self, host: HostId) -> OnHost {
        self.hosts.get(&host).copied().unwrap_or_default()
    }

    /// Hosts that have sandboxes in this status.
    pub(super) fn hosts_with(&self, status: SandboxStatus) -> impl Iterator<Item = HostId> {
        let some = move |of: &OnHost| of.by_status[status as usize] > 0;
        self.hosts.iter().filter(move |(_, of)| some(of)).map(|(host, _)| *host)
    }

    /// How many sandboxes of a team have not ended.
    pub(super) fn of_team(&self, team: TeamId) -> u64 {
        self.teams.get(&team).map_or(0, |count| u64::try_from(*count).unwrap_or_default())
    }

    /// There is one more row.
    pub(super) fn made(&mut self, row: &Sandbox) {
        self.add(row, 1);
    }

    /// A row is on another host now.
    pub(super) fn rehosted(&mut self, row: &Sandbox, to: HostId) {
        self.add(row, -1);
        self.add(&Sandbox { host_id: to, ..row.clone() }, 1);
    }

    /// A row is over because its host goes, and will go with it.
    pub(super) fn ended_with_host(&mut self, row: &Sandbox) {
        self.add(row, -1);
        self.add(&Sandbox { status: SandboxStatus::Stopped, ..row.clone() }, 1);
    }

    fn add(&mut self, row: &Sandbox, count: i64) {
        let mut change = OnHost::default();
        let memory_mb = row.memory_mb.map_or(0, |mb| mb as i64);
        change.add(row.status, (row.vcpus.map_or(0, i64::from), memory_mb), count);
        self.change_host(row.host_id, &change);
        if !row.status.is_over() {
            self.change_team(row.team_id, count);
        }
    }

    /// A row changed its status. `takes`: its processors and memory, where
    /// [`room_changes`] says that they count.
    pub(super) fn moved(
        &mut self,
        (host, team): (HostId, TeamId),
        (from, to): (SandboxStatus, SandboxStatus),
        takes: (i64, i64),
    ) {
        let mut change = OnHost::default();
        change.add(from, takes, -1);
        change.add(to, takes, 1);
        self.change_host(host, &change);
        match (from.is_over(), to.is_over()) {
            (false, true) => self.change_team(team, -1),
            (true, false) => self.change_team(team, 1),
            (false, false) | (true, true) => {}
        }
    }

    /// A row that had ended is gone.
    pub(super) fn forgotten(&mut self, host: HostId, status: SandboxStatus) {
        let mut change = OnHost::default();
        change.add(status, (0, 0), -1);
        self.change_host(host, &change);
    }

    /// A host is gone; all its sandboxes had ended.
    pub(super) fn host_gone(&mut self, host: HostId) {
        let mut change = OnHost::default();
        change.add_all(&self.on(host), -1);
        self.change_host(host, &change);
    }

    fn change_host(&mut self, host: HostId, change: &OnHost) {
        shift_host(&mut self.hosts, host, change, 1);
        if let Some(last) = self.changes.last_mut() {
            last.hosts.entry(host).or_default().add_all(change, 1);
        }
    }

    fn change_team(&mut self, team: TeamId, change: i64) {
        shift_team(&mut self.teams, team, change);
        if let Some(last) = self.changes.last_mut() {
            *last.teams.entry(team).or_default() += change;
        }
    }

    /// A savepoint begins.
    pub(super) fn begin(&mut self) {
        self.changes.push(Change::default());
    }

    /// The innermost savepoint is kept.
    pub(super) fn keep(&mut self) {
        let Some(kept) = self.changes.pop() else { return };
        if let Some(outer) = self.changes.last_mut() {
            for (host, change) in kept.hosts {
                outer.hosts.entry(host).or_default().add_all(&change, 1);
            }
            for (team, change) in kept.teams {
                *outer.teams.entry(team).or_default() += change;
            }
        }
    }

    /// The innermost savepoint is taken back.
    pub(super) fn undo(&mut self) {
        let Some(undone) = self.changes.pop() else { return };
        for (host, change) in undone.hosts {
            shift_host(&mut self.hosts, host, &change, -1);
        }
        for (team, change) in undone.teams {
            shift_team(&mut self.teams, team, -change);
        }
    }

    /// Writes what the transaction changed.
    pub(super) fn store(&self, conn: &Connection) -> Result<(), StoreError> {
        let Some(change) = self.changes.first() else { return Ok(()) };
        for host in change.hosts.iter().filter(|(_, of)| **of != OnHost::default()) {
            store_host(conn, *host.0, &self.on(*host.0))?;
        }
        for (team, _) in change.teams.iter().filter(|(_, count)| **count != 0) {
            let count = self.teams.get(team).copied().unwrap_or_default();
            let team = team.to_string();
            match count {
                0 => conn
                    .prepare_cached("DELETE FROM team_usage WHERE team_id = ?1")?
                    .execute([team])?,
                _ => conn
                    .prepare_cached("INSERT OR REPLACE INTO team_usage VALUES (?1, ?2)")?
                    .execute(params![team, count])?,
            };
        }
        Ok(())
    }

    /// The transaction is committed, or all of it is taken back.
    pub(super) fn settle(&mut self, committed: bool) {
        while !committed && !self.changes.is_empty() {
            self.undo();
        }
        self.changes.clear();
        self.changes.push(Change::default());
    }
}

/// What comes to nothing is left out.
fn shift_host(hosts: &mut HashMap<HostId, OnHost>, host: HostId, change: &OnHost, times: i64) {
    let of = hosts.entry(host).or_default();
    of.add_all(change, times);
    if *of == OnHost::default() {
        hosts.remove(&host);
    }
}

fn shift_team(teams: &mut HashMap<TeamId, i64>, team: TeamId, change: i64) {
    let count = teams.entry(team).or_default();
    *count += change;
    if *count == 0 {
        teams.remove(&team);
    }
}

fn store_host(conn: &Connection, host: HostId, of: &OnHost) -> Result<(), StoreError> {
    let host = host.to_string();
    if *of == OnHost::default() {
        conn.prepare_cached("DELETE FROM host_usage WHERE host_id = ?1")?.execute([host])?;
        return Ok(());
    }
    let sql = "INSERT OR REPLACE INTO host_usage \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)";
    let sums: [&dyn ToSql; 3] = [&host, &of.vcpus, &of.memory_mb];
    let counts = of.by_status.iter().map(|count| count as &dyn ToSql);
    conn.prepare_cached(sql)?.execute(params_from_iter(sums.into_iter().chain(counts)))?;
    Ok(())
}

/// What is on each host, as it is stored; reads no sandbox.
pub(super) fn hosts(conn: &Connection) -> Result<HashMap<HostId, OnHost>, StoreError> {
    each_host(conn, |row| rows::id(row, 0))
}

/// The same by the text of the key, whatever it says.
pub(super) fn stored_hosts(conn: &Connection) -> Result<HashMap<String, OnHost>, StoreError> {
    each_host(conn, |row| row.get(0))
}

fn each_host<K: Eq + Hash>(
    conn: &Connection,
    key: impl Fn(&Row<'_>) -> rusqlite::Result<K>,
) -> Result<HashMap<K, OnHost>, StoreError> {
    let mut select =
        conn.prepare_cached(concat!("SELECT host_id, ", columns!(), " FROM host_usage"))?;
    let hosts = select.query_map([], |row| Ok((key(row)?, OnHost::read(row)?)))?;
    Ok(hosts.collect::<Result<_, _>>()?)
}

/// How many sandboxes of each team have not ended, as it is stored.
pub(super) fn stored_teams(conn: &Connection) -> Result<HashMap<String, i64>, StoreError> {
    let mut select = conn.prepare("SELECT team_id, sandboxes FROM team_usage")?;
    let teams = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(teams.collect::<Result<_, _>>()?)
}

/// How many sandboxes are in each status, in the order of [`SandboxStatus::ALL`].
pub(super) fn totals(conn: &Connection) -> Result<[u64; STATUSES], StoreError> {
    let mut all = OnHost::default();
    hosts(conn)?.values().for_each(|of| all.add_all(of, 1));
    Ok(all.by_status.map(|count| u64::try_from(count).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::Id;
    use crate::model::time::Wall;
    use crate::store::open::SCHEMA;
    use proptest::prelude::*;

    #[test]
    fn columns_are_in_the_order_of_the_statuses() {
        let names: Vec<&str> = columns!().split(", ").map(str::trim).collect();
        let statuses = SandboxStatus::ALL.iter().map(|status| status.as_str());
        let expected: Vec<&str> = ["vcpus", "memory_mb"].into_iter().chain(statuses).collect();
        assert_eq!(names, expected);
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(SCHEMA).unwrap();
        let table = conn.prepare("SELECT * FROM host_usage").unwrap();
        assert_eq!(table.column_names()[1..], expected);
        for status in SandboxStatus::ALL {
            let sql = "SELECT ?1 NOT IN ('paused', 'stopped', 'error', 'hibernated')";
            let sql: bool = conn.query_row(sql, [status.as_str()], |row| row.get(0)).unwrap();
            assert_eq!(sql, takes_room(*status), "{status}");
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Make(u8, usize),
        Move(usize, usize),
        Rehost(usize, u8),
        Begin,
        Keep,
        Undo,
        Commit,
        Fail,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..3u8, 0..STATUSES).prop_map(|(host, status)| Step::Make(host, status)),
            (any::<usize>(), 0..STATUSES).prop_map(|(row, to)| Step::Move(row, to)),
            (any::<usize>(), 0..3u8).prop_map(|(row, host)| Step::Rehost(row, host)),
            Just(Step::Begin),
            Just(Step::Keep),
            Just(Step::Undo),
            Just(Step::Commit),
            Just(Step::Fail),
        ]
    }

    /// The plain way: all rows, a copy of them for every savepoint, counted anew.
    fn counted(rows: &[Sandbox]) -> (HashMap<HostId, OnHost>, HashMap<TeamId, i64>) {
        let (mut hosts, mut teams) = (HashMap::new(), HashMap::new());
        for row in rows {
            let of: &mut OnHost = hosts.entry(row.host_id).or_default();
            of.by_status[row.status as usize] += 1;
            if takes_room(row.status) {
                of.vcpus += i64::from(row.vcpus.unwrap_or_default());
                of.memory_mb += row.memory_mb.unwrap_or_default() as i64;
            }
            if !row.status.is_over() {
                *teams.entry(row.team_id).or_default() += 1;
            }
        }
        (hosts, teams)
    }

    proptest! {
        #[test]
        fn sums_follow_the_rows_over_savepoints_and_failures(
            steps in prop::collection::vec(step(), 0..60)
        ) {
            let conn = Connection::open_in_memory().unwrap();
            conn.execute_batch(SCHEMA).unwrap();
            let mut usage = Usage::load(&conn).unwrap();
            // The rows now, and as they were at the start of the transaction and savepoints.
            let (mut rows, mut saved): (Vec<Sandbox>, Vec<Vec<Sandbox>>) = (vec![], vec![vec![]]);
            for (n, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Make(host, status) => {
                        let host = Id::from_u128(u128::from(host) + 1);
                        let (team, status) = (Id::from_u128(n as u128 % 2), SandboxStatus::ALL[status]);
                        let mut row =
                            Sandbox::new(Id::from_u128(n as u128), host, team, status, Wall(0));
                        (row.vcpus, row.memory_mb) = (Some(n as u32), Some(7 * n as u64));
                        usage.made(&row);
                        rows.push(row);
                    }
                    Step::Move(at, to) if !rows.is_empty() => {
                        let at = at % rows.len();
                        let (row, to) = (&mut rows[at], SandboxStatus::ALL[to]);
                        let takes = match room_changes(row.status, to) {
                            true => (i64::from(row.vcpus.unwrap()), row.memory_mb.unwrap() as i64),
                            false => (0, 0),
                        };
                        usage.moved((row.host_id, row.team_id), (row.status, to), takes);
                        row.status = to;
                    }
                    Step::Rehost(at, host) if !rows.is_empty() => {
                        let (at, to) = (at % rows.len(), Id::from_u128(u128::from(host) + 1));
                        usage.rehosted(&rows[at], to);
                        rows[at].host_id = to;
                    }
                    Step::Move(..) | Step::Rehost(..) => {}
                    Step::Begin => {
                        usage.begin();
                        saved.push(rows.clone());
                    }
                    Step::Keep | Step::Undo if saved.len() == 1 => {}
                    Step::Keep => {
                        usage.keep();
                        saved.pop();
                    }
                    Step::Undo => {
                        usage.undo();
                        rows = saved.pop().unwrap();
                    }
                    Step::Commit => {
                        while saved.len() > 1 {
                            usage.keep();
                            saved.pop();
                        }
                        usage.store(&conn).unwrap();
                        usage.settle(true);
                        saved = vec![rows.clone()];
                        let again = Usage::load(&conn).unwrap();
                        let (hosts, teams) = counted(&rows);
                        prop_assert_eq!(&again.hosts, &hosts);
                        prop_assert_eq!(&again.teams, &teams);
                        prop_assert_eq!(&usage.hosts, &hosts);
                        prop_assert_eq!(&usage.teams, &teams);
                    }
                    Step::Fail => {
                        usage.settle(false);
                        rows = saved[0].clone();
                        saved = vec![rows.clone()];
                    }
                }
                let (hosts, teams) = counted(&rows);
                for host in 1..=3u128 {
                    let host = Id::from_u128(host);
                    prop_assert_eq!(usage.on(host), hosts.get(&host).copied().unwrap_or_default());
                }
                for team in 0..2u128 {
                    let team = Id::from_u128(team);
                    let expected = teams.get(&team).copied().unwrap_or_default() as u64;
                    prop_assert_eq!(usage.of_team(team), expected);
                }
            }
        }
    }
}
