//! Owns how a host leaves for good: with its sandboxes, operations, announcements and
//! tokens, in one transaction. What stays is its history and its tombstone.
//!
//! Never: tells the agent (`api` does, after the commit; a heartbeat hears it otherwise).
//! Called by the writer.

use super::StoreError;
use super::journal::{Actor, Audit, Event};
use super::read::{self, SandboxFilter};
use super::rows;
use super::transition::Move;
use super::writer::{After, Writer};
use crate::model::event::{AuditAction, AuditStatus, EventKind, ResourceType};
use crate::model::host::Host;
use crate::model::id::{HostId, OpId, SandboxId};
use crate::model::operation::OperationKind;
use crate::model::sandbox::{Reason, Sandbox, SandboxStatus};
use crate::model::time::{Mono, Now, Wall};
use crate::plan::history::audit_of_wish;
use rusqlite::params;
use std::time::Duration;

/// How long a sandbox that ended without a user's request counts as one that may still
/// exist. Larger: a host with failed creates is deleted by force only; smaller: what was
/// wrongly taken for gone is destroyed with its host.
const MAY_COME_BACK: Duration = Duration::from_secs(3600);

/// What came of a request to delete a host.
#[derive(Debug, Clone)]
pub enum Deletion {
    /// It is gone.
    Deleted(Box<Deleted>),
    /// It has sandboxes that may exist, and was to be deleted without them only.
    HasActive(Vec<SandboxId>),
    /// Its agent lists so many sandboxes, whatever the database says.
    Lists(usize),
    /// No observation of it is new enough to say that it is empty.
    NotObserved,
    /// No such host.
    NotFound,
}

/// A host that was deleted.
#[derive(Debug, Clone)]
pub struct Deleted {
    /// As it was last.
    pub host: Host,
    /// An observation asked for after the request lists sandboxes of this host, and no
    /// others: what answers at its address is its agent.
    pub is_its_agent: bool,
}

/// Whether a sandbox may exist on its host, so that it stands in the way of a deletion.
pub fn may_exist(sandbox: &Sandbox, now: Wall) -> bool {
    let is_recent = now.since(sandbox.status_changed_at) < MAY_COME_BACK;
    !sandbox.status.is_over() || (is_recent && !sandbox.is_ended_by_user())
}

/// What is left of a host in the tables, but for its history. Sandboxes and tokens name
/// the host, so they go first.
const FORGET: &[&str] = &[
    "DELETE FROM auto_pause_inbox WHERE host_id = ?1",
    "DELETE FROM registration_tokens WHERE host_id = ?1",
    "DELETE FROM refresh_tokens WHERE host_id = ?1",
    "DELETE FROM host_maintenance WHERE host_id = ?1",
    "DELETE FROM strangers WHERE host_id = ?1",
    "DELETE FROM sandboxes WHERE host_id = ?1",
    "DELETE FROM hosts WHERE id = ?1",
];

impl Writer {
    /// Deletes a host; `force`: also when it has sandboxes that may exist, and when no
    /// observation asked for at `since` or later shows that it has none.
    pub(super) fn delete_host(
        &mut self,
        id: HostId,
        force: bool,
        since: Mono,
        actor: &Actor,
        now: Now,
    ) -> Result<Deletion, StoreError> {
        let Some(host) = self.host(id)? else { return Ok(Deletion::NotFound) };
        let sandboxes = self.left_on(id, now.wall)?;
        let last = self.records.get(&id).and_then(|record| record.last);
        let last = last.filter(|last| last.asked_at >= since);
        if !force {
            let active = sandboxes.iter().filter(|sandbox| may_exist(sandbox, now.wall));
            let active: Vec<SandboxId> = active.map(|sandbox| sandbox.id).collect();
            match last {
                _ if !active.is_empty() => return Ok(Deletion::HasActive(active)),
                // It has never run anything.
                _ if host.registered_at.is_none() => {}
                None => return Ok(Deletion::NotObserved),
                Some(last) if last.listed > 0 => return Ok(Deletion::Lists(last.listed)),
                Some(_) => {}
            }
        }
        let is_its_agent = last.is_some_and(|last| last.listed > 0 && last.listed == last.own);
        self.in_savepoint(|w| {
            w.close_operations_of(id, now)?;
            w.drop_templates_of(id, actor, now)?;
            let left = sandboxes.iter().filter(|s| s.status != SandboxStatus::Stopped);
            let mut destroyed = 0;
            for sandbox in left {
                w.journal_end_of(sandbox, actor, now)?;
                destroyed += 1;
            }
            w.journal_deletion(&host, destroyed, actor, now)?;
            w.conn
                .prepare_cached("INSERT INTO tombstones (host_id, deleted_at) VALUES (?1, ?2)")?
                .execute(params![id.to_string(), now.wall.0])?;
            for sql in FORGET {
                w.conn.prepare_cached(sql)?.execute([id.to_string()])?;
            }
            // By now all of them are stopped.
            w.usage.host_gone(id);
            w.after.push(After::HostDeleted(id));
            Ok(Deletion::Deleted(Box::new(Deleted { host, is_its_agent })))
        })
    }

    /// Sandboxes of a host whose end is still to be written, or that stand in the way. What
    /// ended long ago may be many times as much.
    fn left_on(&self, host: HostId, now: Wall) -> Result<Vec<Sandbox>, StoreError> {
        let of_host = SandboxFilter { host: Some(host), all: true, ..SandboxFilter::default() };
        let mut left = Vec::new();
        read::each_sandbox(&self.conn, &of_host, |sandbox| {
            if may_exist(&sandbox, now) || sandbox.status != SandboxStatus::Stopped {
                left.push(sandbox);
            }
        })?;
        Ok(left)
    }

    fn close_operations_of(&mut self, host: HostId, now: Now) -> Result<(), StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT id FROM operations WHERE host_id = ?1 AND finished_at IS NULL",
        )?;
        let open: Vec<OpId> = select
            .query_map([host.to_string()], |row| rows::id(row, 0))?
            .collect::<Result<_, _>>()?;
        drop(select);
        for op in open {
            self.close_operation(op, Some("the host was deleted"), now.wall)?;
        }
        Ok(())
    }

    /// The last that is written of a sandbox; its row goes with the host's.
    fn journal_end_of(
        &mut self,
        sandbox: &Sandbox,
        actor: &Actor,
        now: Now,
    ) -> Result<(), StoreError> {
        let key = sandbox.host_id.to_string();
        let gone = Move {
            host: sandbox.host_id,
            key: &key,
            id: sandbox.id,
            team: sandbox.team_id,
            from: sandbox.status,
            to: SandboxStatus::Stopped,
            reason: &Reason::HostDeleted,
            detail: None,
            filled_by: None,
        };
        self.usage.ended_with_host(sandbox);
        let audit = Some(audit_of_wish(OperationKind::Destroy));
        self.mover(now, actor)?.tell_move(&gone, Some(sandbox.status), audit).map(drop)
    }

    fn journal_deletion(
        &mut self,
        host: &Host,
        destroyed: usize,
        actor: &Actor,
        now: Now,
    ) -> Result<(), StoreError> {
        let (from, to, reason) = (host.status(), "deleted", Reason::Requested);
        let mut journal = self.journal(now, actor)?;
        let revision = journal.event(&Event {
            kind: EventKind::HostDeleted,
            host: host.id,
            sandbox: None,
            team: host.team_id,
            from: Some(from.as_str()),
            to: Some(to),
            reason: &reason,
            detail: host.place().as_deref(),
        })?;
        let id = host.id.to_string();
        journal.audit(&Audit {
            team: host.team_id,
            resource: (ResourceType::Host, &id),
            action: AuditAction::Delete,
            status: AuditStatus::Warning,
            metadata: &format!(
                r#"{{"from":"{from}","to":"{to}","reason":"{reason}","revision":{revision},"sandboxes_destroyed":{destroyed}}}"#
            ),
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::host::{HostStatus, Intent};
    use crate::model::operation::OperationKind;
    use crate::model::policy::Policy;
    use crate::model::probe::{Listing, Probe};
    use crate::model::time::{Mono, Wall};
    use crate::store::apply::Probed;
    use crate::store::fixture;
    use crate::store::lifecycle::{Begun, Wish};
    use crate::store::open::open_writer;
    use crate::store::presence::{Beat, Presence};
    use crate::store::verify::verify;
    use crate::store::writer::{Command, Envelope, LastObservation};
    use crossbeam_channel::unbounded;
    use std::sync::Arc;
    use tempfile::TempDir;

    const NOW: Now = Now { mono: Mono(1_000_000), wall: Wall(1_790_000_000_000) };

    fn host(n: u128) -> HostId {
        HostId::from_u128(n)
    }

    fn sandbox(n: u128) -> SandboxId {
        SandboxId::from_u128(n)
    }

    /// Two hosts; the first has a sandbox in each of these statuses, from 1 on.
    fn world(statuses: &[&str]) -> (Writer, Arc<Presence>, TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let mut conn = open_writer(&dir.path().join("roost.db"), true, NOW.wall).unwrap();
        let hosts = [1, 2].map(|n| {
            serde_json::json!({"id": host(n), "status": "online", "heartbeat_age_s": 5,
                "address": "127.0.0.1:1"})
        });
        let row = |(n, status): (usize, &&str)| serde_json::json!({"id": sandbox(n as u128 + 1), "host_id": host(1), "status": status});
        let sandboxes: Vec<_> = statuses.iter().enumerate().map(row).collect();
        let fleet = serde_json::json!({"hosts": hosts, "sandboxes": sandboxes}).to_string();
        let fleet = fixture::parse(&fleet, NOW.wall).unwrap();
        fixture::load(&mut conn, &fleet).unwrap();
        let hosts = read::hosts(&conn).unwrap();
        let presence = Arc::new(Presence::load(&hosts, [], None, false, NOW));
        let writer = Writer::new(conn, Policy::default(), Arc::clone(&presence)).unwrap();
        (writer, presence, dir)
    }

    fn delete(n: u128, force: bool, reply: crate::store::writer::Reply<Deletion>) -> Command {
        Command::DeleteHost { host: host(n), force, since: NOW.mono, actor: Actor::SYSTEM, reply }
    }

    fn execute(writer: &mut Writer, commands: Vec<Command>) {
        let envelope = |command| Envelope { now: NOW, command };
        writer.execute(commands.into_iter().map(envelope).collect());
        assert_eq!(verify(&writer.conn).unwrap(), [] as [&str; 0]);
    }

    fn count(writer: &Writer, table: &str) -> i64 {
        let sql = format!("SELECT count(*) FROM {table}");
        writer.conn.query_row(&sql, [], |row| row.get(0)).unwrap()
    }

    /// What the last observation of the first host showed, asked for at this moment.
    fn observed(writer: &mut Writer, asked_at: Mono, listed: usize, own: usize) {
        let last = LastObservation { asked_at, listed, own };
        writer.records.entry(host(1)).or_default().last = Some(last);
    }

    /// Deletes the first host without force; gives what came of it, in short.
    fn try_delete(writer: &mut Writer) -> String {
        let (tell, told) = unbounded();
        execute(writer, vec![delete(1, false, Box::new(move |r| tell.send(r).unwrap()))]);
        match told.recv().unwrap().unwrap() {
            Deletion::Deleted(gone) => format!("deleted, proved {}", gone.is_its_agent),
            Deletion::HasActive(ids) => format!("{} active", ids.len()),
            Deletion::Lists(count) => format!("lists {count}"),
            Deletion::NotObserved => "not observed".to_owned(),
            Deletion::NotFound => "not found".to_owned(),
        }
    }

    #[test]
    fn without_force_only_what_has_ended_goes_along() {
        let (mut writer, presence, _dir) = world(&["stopped", "error", "paused", "hibernated"]);
        observed(&mut writer, NOW.mono, 0, 0);
        let long_ago = NOW.wall.before(MAY_COME_BACK).0;
        let age = |ids: &str, at: i64| {
            format!("UPDATE sandboxes SET status_changed_at = {at} WHERE id IN ({ids})")
        };
        let over = [sandbox(1), sandbox(2)].map(|id| format!("'{id}'")).join(",");
        writer.conn.execute_batch(&age(&over, long_ago + 1)).unwrap();
        assert_eq!(try_delete(&mut writer), "4 active", "what ended lately may come back");
        writer.conn.execute_batch(&age(&over, long_ago)).unwrap();
        assert_eq!(try_delete(&mut writer), "2 active");
        assert_eq!((writer.revision, count(&writer, "hosts")), (0, 2));
        assert_eq!(presence.lookup(host(1)), Beat::Known { wake: false });

        let by_user = "UPDATE sandboxes SET status = 'stopped', ended = 1, \
                       status_reason = 'operation_succeeded' WHERE status <> 'error'";
        writer.conn.execute_batch(by_user).unwrap();
        writer.count_anew();
        assert_eq!(try_delete(&mut writer), "deleted, proved false");
        assert_eq!((count(&writer, "hosts"), count(&writer, "sandboxes")), (1, 0));
        assert_eq!(count(&writer, "events"), 2, "the failed one's end and the host's");
        assert_eq!(presence.lookup(host(1)), Beat::Deleted);
    }

    #[test]
    fn without_force_a_new_observation_must_show_that_the_host_is_empty() {
        let (mut writer, _presence, _dir) = world(&[]);
        assert_eq!(try_delete(&mut writer), "not observed");
        observed(&mut writer, NOW.mono.before(Duration::from_millis(1)), 0, 0);
        assert_eq!(try_delete(&mut writer), "not observed", "older than the request");
        observed(&mut writer, NOW.mono, 1, 0);
        assert_eq!(try_delete(&mut writer), "lists 1", "whosever it is");
        observed(&mut writer, NOW.mono, 0, 0);
        assert_eq!(try_delete(&mut writer), "deleted, proved false");
    }

    #[test]
    fn only_an_observation_of_its_own_sandboxes_proves_an_agent() {
        for (asked_at, listed, own, expected) in [
            (NOW.mono, 2, 2, true),
            (NOW.mono, 2, 1, false),
            (NOW.mono, 1, 0, false),
            (NOW.mono, 0, 0, false),
            (NOW.mono.before(Duration::from_millis(1)), 2, 2, false),
        ] {
            let (mut writer, _presence, _dir) = world(&["running"]);
            observed(&mut writer, asked_at, listed, own);
            let (tell, told) = unbounded();
            let reply = Box::new(move |r| tell.send(r).unwrap());
            execute(&mut writer, vec![delete(1, true, reply)]);
            let Deletion::Deleted(gone) = told.recv().unwrap().unwrap() else { panic!("kept") };
            assert_eq!((gone.host.id, gone.host.status()), (host(1), HostStatus::Online));
            assert_eq!(gone.is_its_agent, expected, "{listed} listed, {own} of them its own");
        }
    }

    /// Everything about the host that is in the same transaction comes after its end.
    #[test]
    fn what_follows_a_deletion_in_one_transaction_finds_nothing() {
        let (mut writer, presence, _dir) = world(&["running"]);
        let (tell, told) = unbounded();
        let begin = |n: u128, kind, tell: crossbeam_channel::Sender<String>| {
            let wish = Wish { sandbox: sandbox(n), kind, team: None, actor: Actor::SYSTEM };
            let reply = move |begun: Result<Begun, StoreError>| {
                let word = match begun.unwrap() {
                    Begun::Started(..) => "started",
                    Begun::NotFound => "not found",
                    Begun::Already(_)
                    | Begun::AlreadyTerminal(_)
                    | Begun::NoRoom(_)
                    | Begun::InvalidState(_)
                    | Begun::OverQuota(_)
                    | Begun::HostAway(_) => "other",
                };
                tell.send(word.to_owned()).unwrap();
            };
            Command::Begin(Box::new(wish), Box::new(reply))
        };
        let listing = Listing { sandboxes: Vec::new(), auto_paused: vec![sandbox(1)] };
        let probed = Probed {
            host: host(1),
            revision: 0,
            asked_at: NOW.mono,
            age_cap: None,
            probe: Probe::Listed(listing),
            proven: false,
        };
        let say = |tell: &crossbeam_channel::Sender<String>| {
            let tell = tell.clone();
            move |what: String| tell.send(what).unwrap()
        };
        let (a, b, c, d, e) = (say(&tell), say(&tell), say(&tell), say(&tell), say(&tell));
        presence.heartbeat(host(1), NOW);
        execute(
            &mut writer,
            vec![
                begin(1, OperationKind::Pause, tell.clone()),
                delete(
                    1,
                    true,
                    Box::new(move |r| a(format!("{}", matches!(r, Ok(Deletion::Deleted(_)))))),
                ),
                delete(
                    1,
                    true,
                    Box::new(move |r| b(format!("{}", matches!(r, Ok(Deletion::NotFound))))),
                ),
                begin(1, OperationKind::Destroy, tell.clone()),
                Command::Probed(
                    Box::new(probed),
                    Box::new(move |r| c(format!("{}", r.unwrap().observed))),
                ),
                Command::MarkUp(host(1), Box::new(move |r| d(format!("{}", r.unwrap())))),
                Command::SetIntent(
                    host(1),
                    Intent::Draining,
                    Actor::SYSTEM,
                    Box::new(move |r| e(format!("{:?}", r.unwrap()))),
                ),
                Command::Flush(Box::new(|r| r.unwrap())),
            ],
        );
        let told: Vec<String> = told.try_iter().collect();
        assert_eq!(told, ["started", "true", "true", "not found", "false", "false", "None"]);
        assert_eq!(presence.heartbeat(host(1), NOW), Beat::Deleted);
        let open = "operations WHERE finished_at IS NULL";
        let left = ["sandboxes", "auto_pause_inbox", open].map(|table| count(&writer, table));
        assert_eq!(left, [0, 0, 0]);
        let mut select = writer.conn.prepare("SELECT kind FROM events ORDER BY revision").unwrap();
        let kinds: Vec<String> =
            select.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(kinds, ["sandbox.pausing", "sandbox.stopped", "host.deleted"]);
    }

    #[test]
    fn a_deletion_that_cannot_be_written_leaves_the_host() {
        let (mut writer, presence, _dir) = world(&["running"]);
        // The last step fails: the host's row is held by something else.
        writer
            .conn
            .execute_batch(
                "CREATE TABLE holds (host_id TEXT REFERENCES hosts (id)); \
                 INSERT INTO holds SELECT id FROM hosts",
            )
            .unwrap();
        let (tell, told) = unbounded();
        let command = delete(1, true, Box::new(move |r| tell.send(r.is_err()).unwrap()));
        writer.execute(vec![Envelope { now: NOW, command }]);
        assert!(told.recv().unwrap());
        writer.conn.execute_batch("DROP TABLE holds").unwrap();
        assert_eq!(verify(&writer.conn).unwrap(), [] as [&str; 0]);
        let left = ["hosts", "sandboxes", "tombstones", "events", "audit_logs"];
        assert_eq!(left.map(|table| count(&writer, table)), [2, 1, 0, 0, 0]);
        assert_eq!(presence.heartbeat(host(1), NOW), Beat::Known { wake: false });
    }
}
