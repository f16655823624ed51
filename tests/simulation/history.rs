//! Owns what Roost says happened: reads events and audit entries as they are committed,
//! holds them against each other, and follows every row by them.
//!
//! Never: knows what is true on the hosts (`world` does).

use crate::defect::Defect;
use roost::model::event::{ActorType, EventKind};
use roost::model::host::{Host, Liveness};
use roost::model::id::{HostId, SandboxId};
use roost::model::policy::Policy;
use roost::model::sandbox::{Reason, Sandbox, SandboxStatus};
use roost::model::time::Wall;
use roost::plan::history::audit_of_transition;
use roost::store::Connection;
use roost::store::read::{self, SandboxFilter};
use roost::store::strangers::{Recorded, strangers};
use roost::store::verify::verify;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A row as its events have led it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) host: HostId,
    pub(crate) status: SandboxStatus,
    pub(crate) reason: Option<Reason>,
}

/// One change as it was committed.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) revision: u64,
    pub(crate) kind: EventKind,
    pub(crate) host: HostId,
    pub(crate) sandbox: Option<SandboxId>,
    pub(crate) from: Option<SandboxStatus>,
    pub(crate) to: Option<SandboxStatus>,
    pub(crate) reason: Reason,
    pub(crate) by_user: bool,
    /// The host that the row was on before, when this moved it.
    pub(crate) left: Option<HostId>,
}

impl Change {
    /// Its first host did not take the create (rule 8).
    pub(crate) fn is_placed_elsewhere(&self) -> bool {
        let starting = Some(SandboxStatus::Starting);
        self.reason == Reason::PlacedElsewhere && (self.from, self.to) == (starting, starting)
    }

    /// Only that gives a row another host, and an operator who takes over what one has.
    fn may_move_hosts(&self) -> bool {
        self.is_placed_elsewhere() || self.by_user && self.reason == Reason::Adopted
    }
}

/// An audit entry, as far as it is held against its change.
#[derive(Clone)]
pub(crate) struct Entry {
    action: String,
    status: String,
    from: String,
    to: String,
    reason: String,
}

pub(crate) struct History {
    conn: Connection,
    policy: Policy,
    defect: Option<Defect>,
    pub(crate) revision: u64,
    audited: i64,
    pub(crate) rows: BTreeMap<SandboxId, Row>,
    /// Rows that were over for so long, by the clock, that they are kept no more.
    pub(crate) given_up: BTreeSet<SandboxId>,
    pub(crate) hosts: BTreeMap<HostId, Host>,
    /// What each sandbox takes of its host's memory when it runs, in MiB.
    memory: BTreeMap<SandboxId, u64>,
}

impl History {
    /// Begins with what the database says. The connection may write: whoever opens it first
    /// after the power was lost has to read the log anew.
    pub(crate) fn open(db: &Path, policy: &Policy, defect: Option<Defect>) -> History {
        History::of(Connection::open(db).expect("the database opens"), policy.clone(), defect)
    }

    /// Begins anew; and whether the database says what its events led to.
    pub(crate) fn again(self) -> (bool, History) {
        let History { conn, policy, defect, revision, rows, given_up, .. } = self;
        let history = History { given_up, ..History::of(conn, policy, defect) };
        ((revision, &rows) == (history.revision, &history.rows), history)
    }

    fn of(conn: Connection, policy: Policy, defect: Option<Defect>) -> History {
        let revision = read::revision(&conn).expect("the revision can be read");
        let audited = conn
            .query_row("SELECT coalesce(max(seq), 0) FROM audit_logs", [], |row| row.get(0))
            .expect("the audit log can be read");
        let (rows, hosts) = (rows(&conn), hosts(&conn));
        let given_up = BTreeSet::new();
        let memory = memory(&conn);
        History { conn, policy, defect, revision, audited, rows, given_up, hosts, memory }
    }

    /// What was committed since the last time. Says what is wrong with it. `aged` as for
    /// [`History::verify`].
    pub(crate) fn follow(
        &mut self,
        newest: u64,
        aged: bool,
        wrong: &mut Vec<String>,
    ) -> Vec<Change> {
        if newest == self.revision {
            return Vec::new();
        }
        let mut changes = self.read_changes();
        let mut entries = self.read_entries(wrong);
        if let Some(defect) = self.defect {
            defect.misread(&mut changes, &mut entries);
        }
        let expected: Vec<u64> = (self.revision + 1..=newest).collect();
        if changes.iter().map(|change| change.revision).ne(expected) {
            wrong.push(format!("revisions {}..={newest} have a gap", self.revision + 1));
        }
        for change in &mut changes {
            self.apply(change, aged, wrong);
            self.compare(change, entries.remove(&change.revision), wrong);
        }
        for revision in entries.keys() {
            wrong.push(format!("an audit entry tells of revision {revision}, which is no change"));
        }
        if changes.iter().any(|change| change.reason == Reason::HostDeleted) {
            let gone = |row: &Row| row.reason == Some(Reason::HostDeleted);
            for (id, row) in self.rows.iter().filter(|(_, row)| gone(row)) {
                wrong.push(format!("{id} ended with a host, and {} is still there", row.host));
            }
        }
        if changes.iter().any(|change| change.sandbox.is_none()) {
            self.look_at_hosts();
        }
        for (id, row) in &self.rows {
            let is_down = |host: &Host| host.liveness == Liveness::Unreachable;
            if row.status == SandboxStatus::Running
                && self.hosts.get(&row.host).is_some_and(is_down)
            {
                wrong.push(format!("{id} runs on {}, which is unreachable", row.host));
            }
        }
        self.revision = newest;
        changes
    }

    fn read_changes(&self) -> Vec<Change> {
        let mut select = self
            .conn
            .prepare_cached(
                "SELECT revision, kind, host_id, sandbox_id, from_status, to_status, reason, actor \
                 FROM events WHERE revision > ?1 ORDER BY revision",
            )
            .expect("events can be read");
        let rows = select.query_map([self.revision as i64], |row| {
            let text = |at| row.get::<_, Option<String>>(at);
            let status = |text: Option<String>| text.and_then(|text| text.parse().ok());
            Ok(Change {
                revision: row.get::<_, i64>(0)? as u64,
                kind: row.get::<_, String>(1)?.parse().expect("a kind of event"),
                host: row.get::<_, String>(2)?.parse().expect("a host's id"),
                sandbox: text(3)?.map(|id| id.parse().expect("a sandbox's id")),
                from: status(text(4)?),
                to: status(text(5)?),
                reason: Reason::from(row.get::<_, String>(6)?.as_str()),
                by_user: row.get::<_, String>(7)? != ActorType::System.as_str(),
                left: None,
            })
        });
        rows.and_then(Iterator::collect).expect("events can be read")
    }

    fn read_entries(&mut self, wrong: &mut Vec<String>) -> BTreeMap<u64, Entry> {
        let mut select = self
            .conn
            .prepare_cached(
                "SELECT seq, action, status, metadata FROM audit_logs WHERE seq > ?1 ORDER BY seq",
            )
            .expect("the audit log can be read");
        let mut rows = select.query([self.audited]).expect("the audit log can be read");
        let mut entries = BTreeMap::new();
        while let Some(row) = rows.next().expect("the audit log can be read") {
            let get = |at| row.get::<_, String>(at).expect("a text");
            self.audited = row.get(0).expect("a number");
            let metadata: Value = serde_json::from_str(&get(3)).expect("JSON");
            let word = |key: &str| metadata[key].as_str().unwrap_or_default().to_owned();
            let Some(revision) = metadata["revision"].as_u64() else { continue };
            let entry = Entry {
                action: get(1),
                status: get(2),
                from: word("from"),
                to: word("to"),
                reason: word("reason"),
            };
            if entries.insert(revision, entry).is_some() {
                wrong.push(format!("revision {revision} is audited twice"));
            }
        }
        entries
    }

    fn apply(&mut self, change: &mut Change, aged: bool, wrong: &mut Vec<String>) {
        if change.kind == EventKind::HostDeleted {
            self.end_rows_of(change.host, aged, wrong);
        }
        let (Some(id), Some(to)) = (change.sandbox, change.to) else {
            return;
        };
        let row = Row { host: change.host, status: to, reason: Some(change.reason.clone()) };
        let before = self.rows.insert(id, row);
        let left = before.as_ref().map(|before| before.host).filter(|left| *left != change.host);
        change.left = left;
        if left.is_some() && !change.may_move_hosts()
            || change.is_placed_elsewhere() && left.is_none()
        {
            wrong.push(format!("{id} changed with a host that is not its own: {change:?}"));
        }
        if matches!(to, SandboxStatus::Starting | SandboxStatus::Resuming) {
            self.judge_room(id, change.host, wrong);
        }
        let before = before.map(|row| row.status);
        if before != change.from {
            wrong.push(format!("{id} left {:?} and was {before:?}", change.from));
        }
    }

    /// What is to run has room on its host (rule 7). What was adopted or came back may fill it
    /// beyond that, but then nothing else starts there.
    fn judge_room(&mut self, id: SandboxId, host: HostId, wrong: &mut Vec<String>) {
        if !self.memory.contains_key(&id) {
            self.memory = memory(&self.conn);
        }
        let Some(has) = self.hosts.get(&host).and_then(|host| host.memory_mb) else { return };
        let holds = |row: &Row| row.host == host && holds_memory(row.status);
        let of = |(id, row): (&SandboxId, &Row)| {
            if holds(row) { self.memory.get(id).copied().unwrap_or(0) } else { 0 }
        };
        let used: u64 = self.rows.iter().map(of).sum();
        if used > has {
            wrong.push(format!("{id} starts on {host}, which then has {used} of {has} MiB"));
        }
    }

    /// Sandboxes on unreachable hosts that nothing will settle: their create's deadline passed
    /// before `until`.
    pub(crate) fn starting_on_unreachable(&self, until: Wall) -> Vec<SandboxId> {
        let mut select = self
            .conn
            .prepare_cached(
                "SELECT s.id FROM sandboxes s JOIN hosts h ON h.id = s.host_id \
                 WHERE h.liveness = 'unreachable' AND s.status = 'starting' AND NOT EXISTS \
                 (SELECT 1 FROM operations o WHERE o.host_id = s.host_id AND o.sandbox_id = s.id \
                 AND o.finished_at IS NULL AND o.deadline_at >= ?1)",
            )
            .expect("sandboxes can be read");
        let rows = select.query_map([until.0], |row| row.get::<_, String>(0));
        let ids: Vec<String> = rows.and_then(Iterator::collect).expect("sandboxes can be read");
        ids.iter().map(|id| id.parse().expect("a sandbox's id")).collect()
    }

    /// With a host its rows go; each had its last event before.
    fn end_rows_of(&mut self, host: HostId, aged: bool, wrong: &mut Vec<String>) {
        let ended =
            |row: &Row| row.status == SandboxStatus::Stopped || aged && row.status.is_over();
        self.rows.retain(|id, row| {
            if row.host == host && !ended(row) {
                wrong.push(format!("{id} went with {host} and was {}", row.status));
            }
            row.host != host
        });
    }

    /// Every wish, every failure and every move that nobody wished is audited, once.
    fn compare(&self, change: &Change, entry: Option<Entry>, wrong: &mut Vec<String>) {
        let wish = change.kind == EventKind::HostDeleted || change.kind == EventKind::HostIntent;
        if wish && entry.is_none() {
            wrong.push(format!("nobody is said to have wished {change:?}"));
        }
        let (Some(_), Some(to)) = (change.sandbox, change.to) else { return };
        let from = change.from.map_or("none", SandboxStatus::as_str);
        let told = entry.as_ref().is_none_or(|entry| {
            (entry.from.as_str(), entry.to.as_str(), entry.reason.as_str())
                == (from, to.as_str(), change.reason.as_str())
        });
        let expected = match (change.by_user, change.from) {
            (true, _) | (false, None) => entry.is_some(),
            (false, Some(from)) => {
                let audit = audit_of_transition(from, to, &change.reason, &self.policy);
                let found = entry.as_ref().map(|e| (e.action.as_str(), e.status.as_str()));
                found == audit.map(|(action, status)| (action.as_str(), status.as_str()))
            }
        };
        if !told || !expected {
            wrong.push(format!("the audit log does not fit {change:?}"));
        }
    }

    /// Holds the rows against where the events have led, and SQLite against itself. `aged`:
    /// by the clock on the wall what is over may be so old that it was given up.
    pub(crate) fn verify(&mut self, aged: bool, wrong: &mut Vec<String>) {
        if self.defect == Some(Defect::MovedUntold) {
            let any = "UPDATE sandboxes SET status_reason = 'adopted' \
                       WHERE id = (SELECT min(id) FROM sandboxes)";
            self.conn.execute(any, []).expect("the database can be written");
        }
        if self.defect == Some(Defect::SumsDrift) {
            let drift = "UPDATE host_usage SET memory_mb = memory_mb + 1";
            self.conn.execute(drift, []).expect("the database can be written");
        }
        let there = rows(&self.conn);
        let aged = |row: &Row| aged && row.status.is_over();
        let gone = self.rows.iter().filter(|(id, row)| aged(row) && !there.contains_key(id));
        self.given_up.extend(gone.map(|(id, _)| *id));
        self.rows.retain(|id, _| !self.given_up.contains(id));
        for (id, row) in self.rows.iter().filter(|(id, row)| there.get(id) != Some(row)) {
            wrong.push(format!("{id}: events lead to {row:?}, and there is {:?}", there.get(id)));
        }
        for id in there.keys().filter(|id| !self.rows.contains_key(id)) {
            wrong.push(format!("{id} is there, and no event tells of it"));
        }
        wrong.extend(verify(&self.conn).expect("the database can be verified"));
    }

    /// Tables that still know a host that was deleted.
    pub(crate) fn left_of(&self, host: HostId) -> Vec<&'static str> {
        const TABLES: &[(&str, &str)] = &[
            ("hosts", "SELECT 1 FROM hosts WHERE id = ?1"),
            ("sandboxes", "SELECT 1 FROM sandboxes WHERE host_id = ?1"),
            ("operations", "SELECT 1 FROM operations WHERE host_id = ?1 AND finished_at IS NULL"),
            ("auto_pause_inbox", "SELECT 1 FROM auto_pause_inbox WHERE host_id = ?1"),
            ("registration_tokens", "SELECT 1 FROM registration_tokens WHERE host_id = ?1"),
            ("refresh_tokens", "SELECT 1 FROM refresh_tokens WHERE host_id = ?1"),
        ];
        let is_left = |sql: &str| {
            self.conn.prepare(sql).and_then(|mut select| select.exists([host.to_string()]))
        };
        let left = TABLES.iter().filter(|(_, sql)| is_left(sql).expect("a table can be read"));
        left.map(|(table, _)| *table).collect()
    }

    /// Whether the database has a row of it now; one that was over for long is given up.
    pub(crate) fn has_row(&self, id: SandboxId) -> bool {
        let mut select = self
            .conn
            .prepare_cached("SELECT 1 FROM sandboxes WHERE id = ?1")
            .expect("sandboxes can be read");
        select.exists([id.to_string()]).expect("sandboxes can be read")
    }

    /// What hosts have and should not have.
    pub(crate) fn strangers(&self) -> Vec<Recorded> {
        strangers(&self.conn).expect("strangers can be read")
    }

    pub(crate) fn look_at_hosts(&mut self) {
        self.hosts = hosts(&self.conn);
    }

    /// Operations that are not over: kind, sandbox.
    pub(crate) fn open_operations(&self) -> Vec<(String, SandboxId)> {
        let mut select = self
            .conn
            .prepare("SELECT kind, sandbox_id FROM operations WHERE finished_at IS NULL")
            .expect("operations can be read");
        let rows = select.query_map([], |row| {
            Ok((row.get(0)?, row.get::<_, String>(1)?.parse().expect("a sandbox's id")))
        });
        rows.and_then(Iterator::collect).expect("operations can be read")
    }
}

fn rows(conn: &Connection) -> BTreeMap<SandboxId, Row> {
    let all = SandboxFilter { all: true, ..SandboxFilter::default() };
    let rows = read::sandboxes(conn, &all).expect("sandboxes can be read");
    let row = |row: Sandbox| {
        (row.id, Row { host: row.host_id, status: row.status, reason: row.status_reason })
    };
    rows.into_iter().map(row).collect()
}

/// Whether a sandbox in this status has a microVM, or is to have one.
fn holds_memory(status: SandboxStatus) -> bool {
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

fn memory(conn: &Connection) -> BTreeMap<SandboxId, u64> {
    let all = SandboxFilter { all: true, ..SandboxFilter::default() };
    let rows = read::sandboxes(conn, &all).expect("sandboxes can be read");
    rows.into_iter().map(|row| (row.id, row.memory_mb.unwrap_or(0))).collect()
}

fn hosts(conn: &Connection) -> BTreeMap<HostId, Host> {
    let hosts = read::hosts(conn).expect("hosts can be read");
    hosts.into_iter().map(|host| (host.id, host)).collect()
}
