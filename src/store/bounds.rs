//! Owns what one host or one team may have the writer do and keep: events and operations that
//! a host causes by what it says, sandboxes of a team and how fast it changes them.
//!
//! Never: changes what is true of a sandbox. What is beyond a bound is counted, put off or
//! refused; a bound is far beyond what an honest author needs.

use super::StoreError;
use super::journal::{Actor, Event};
use super::rows;
use super::writer::Writer;
use crate::logging::seldom;
use crate::model::event::{ActorType, EventKind};
use crate::model::host::Host;
use crate::model::id::{HostId, SandboxId, TeamId};
use crate::model::limit::{Allowance, Limiter, Verdict};
use crate::model::sandbox::{Reason, SandboxStatus};
use crate::model::time::{Mono, Now};
use rusqlite::params;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

/// Events of one kind that one host causes without having done anything: strangers that it
/// lists, sandboxes that vanish at once. Larger: a host that lists other ids each time fills
/// the history; smaller: what happened after a restore is told by numbers only.
const EVENTS: Allowance = Allowance { burst: 32, per: HOUR };

/// Zombies of one host that are begun to be destroyed. Larger: a host that makes ids up fills
/// the table of operations; smaller: a restored database takes longer to be cleared up after.
const DESTROYS: Allowance = Allowance { burst: 1000, per: HOUR };

/// Destroys of one host that are open at a time; the next zombies wait for one to end. Larger:
/// an agent that never answers fills the table; smaller: a slow agent is not kept busy.
const DESTROYS_OPEN_MAX: u64 = 64;

/// Ends of trouble with probes of one host. Larger: a host that fails and answers in turn
/// fills the history; smaller: one on a bad line stays degraded for no need.
const RECOVERIES: Allowance = Allowance { burst: 32, per: HOUR };

/// How often a host may turn all of its sandboxes over by what it lists or reports, as often
/// again within an hour. Larger: a host that says another thing each time fills history and
/// audit log; smaller: one that restarts again and again is not believed.
const TURNS: u32 = 8;

/// Sandboxes that a host may turn over in any case.
const TURNS_MIN: u32 = 1000;

/// Authors that are remembered of each kind. Larger: memory; smaller: a large fleet shares.
const AUTHORS_MAX: usize = 16_384;

/// Metadata that every sandbox may have: what agents say of it is about 160 bytes. Larger: as
/// below, for all rows together; smaller: a version that a resume needs may be lost.
const METADATA_BYTES_USUAL: usize = 512;

/// Most metadata of one sandbox. Larger: lists of a few thousand sandboxes fill the memory;
/// smaller: what an agent adds one day does not fit.
const METADATA_BYTES_MAX: usize = 4 * 1024;

/// Most metadata beyond the usual on one host. Larger: as above, for a team with a host of its
/// own; smaller: as above.
const METADATA_OF_HOST_MAX: u64 = 4 * 1024 * 1024;

/// How often the metadata of a host that has too much is measured. Larger: what ended since is
/// counted for longer; smaller: each measurement reads all rows of the host.
const MEASURE_EVERY: Duration = Duration::from_secs(60);

/// What a host is limited in, beside events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Doing {
    Destroys,
    Recovers,
    Turns,
}

/// Why a team has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverQuota {
    /// It has so many sandboxes that are not over, and may have no more.
    Sandboxes(usize),
    /// It has begun so many changes within a minute; the next may begin after this.
    Changes(usize, Duration),
}

/// What is remembered of authors. Losing it (a restart) makes every allowance whole.
#[derive(Debug)]
pub(super) struct Bounds {
    events: Limiter<(HostId, EventKind)>,
    hosts: Limiter<(HostId, Doing)>,
    changes: Limiter<TeamId>,
    /// Bytes of large metadata on hosts that send such, and when they were measured.
    metadata: HashMap<HostId, (u64, Mono)>,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            events: Limiter::new(AUTHORS_MAX),
            hosts: Limiter::new(AUTHORS_MAX),
            changes: Limiter::new(AUTHORS_MAX),
            metadata: HashMap::new(),
        }
    }
}

/// The fields of a JSON object that fit into so many bytes, small ones behind a large one too.
fn fields_that_fit(metadata: &str, bytes_max: usize) -> String {
    let fields: Map<String, Value> = serde_json::from_str(metadata).unwrap_or_default();
    let mut kept = Map::new();
    let mut bytes = "{}".len();
    for (key, value) in fields {
        let field = format!("{}:{value},", Value::from(key.as_str()));
        if bytes + field.len() <= bytes_max {
            bytes += field.len();
            kept.insert(key, value);
        }
    }
    Value::Object(kept).to_string()
}

/// Whether quotas hold for this actor: for every key that an operator made, not for the
/// admin key and not for Roost itself.
fn has_quota(actor: &Actor) -> bool {
    actor.kind == ActorType::ApiKey && actor.id.is_some()
}

impl Writer {
    /// Writes an event that a host causes by what it says of `sandbox`; beyond its allowance
    /// it is only counted, and the next one says how many there were.
    pub(super) fn caused_event(
        &mut self,
        host: &Host,
        kind: EventKind,
        (sandbox, from): (Option<SandboxId>, Option<SandboxStatus>),
        words: &str,
        now: Now,
    ) -> Result<(), StoreError> {
        let Verdict::Pass(more) = self.bounds.events.take(&(host.id, kind), 1, EVENTS, now.mono)
        else {
            return Ok(());
        };
        let reason = Reason::Other(format!("{words}{more}").into());
        self.journal(now, &Actor::SYSTEM)?.event(&Event {
            kind,
            host: host.id,
            sandbox,
            team: host.team_id,
            from: from.map(SandboxStatus::as_str),
            to: None,
            reason: &reason,
            detail: None,
        })?;
        Ok(())
    }

    /// Writes an event for what was only counted, once its host may cause events again.
    pub(super) fn count_left_out(&mut self, now: Now) -> Result<(), StoreError> {
        for (author, more) in self.bounds.events.left_out(EVENTS, now.mono) {
            let Some((id, kind)) = author else {
                seldom!(Warn, "events of too many hosts", "hosts" =>
                    "{} events of hosts were left out of the history", more.count());
                continue;
            };
            let Some(host) = self.host(id)? else { continue };
            let reason = Reason::Other(format!("{} more", more.count()).into());
            self.journal(now, &Actor::SYSTEM)?.event(&Event {
                kind,
                host: id,
                sandbox: None,
                team: host.team_id,
                from: None,
                to: None,
                reason: &reason,
                detail: None,
            })?;
        }
        Ok(())
    }

    /// How many more zombies of a host may be destroyed at a time. The rest waits for the
    /// observation that follows the end of an operation.
    pub(super) fn room_for_destroys(
        &self,
        host: HostId,
        zombies: &[SandboxId],
    ) -> Result<u64, StoreError> {
        if zombies.is_empty() {
            return Ok(0);
        }
        let mut select = self.conn.prepare_cached(
            "SELECT count(*) FROM operations INDEXED BY operations_unfinished \
             WHERE host_id = ?1 AND finished_at IS NULL AND kind = 'destroy'",
        )?;
        let open = select.query_row([host.to_string()], |row| rows::unsigned(row, 0))?;
        Ok(DESTROYS_OPEN_MAX.saturating_sub(open))
    }

    /// Whether another zombie of a host may be destroyed in this hour.
    pub(super) fn may_destroy_zombie(&mut self, host: HostId, now: Now) -> bool {
        self.may_go_on(host, Doing::Destroys, 1, DESTROYS, now.mono)
    }

    /// Whether a degraded host may count as well again.
    pub(super) fn may_recover(&mut self, host: HostId, now: Now) -> bool {
        self.may_go_on(host, Doing::Recovers, 1, RECOVERIES, now.mono)
    }

    /// Whether a host with so many rows is to be believed that so many of them have changed.
    pub(super) fn may_turn(&mut self, host: HostId, turns: usize, rows: usize, now: Now) -> bool {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let burst = count(rows).saturating_mul(TURNS).max(TURNS_MIN);
        let allowance = Allowance { burst, per: HOUR };
        turns == 0 || self.may_go_on(host, Doing::Turns, count(turns), allowance, now.mono)
    }

    /// What is kept of the metadata of a sandbox: whole fields, as many as fit.
    pub(super) fn metadata_to_keep<'a>(
        &mut self,
        host: HostId,
        metadata: &'a str,
        now: Now,
    ) -> Result<Cow<'a, str>, StoreError> {
        if metadata.len() <= METADATA_BYTES_USUAL {
            return Ok(Cow::Borrowed(metadata));
        }
        let mut kept = fields_that_fit(metadata, METADATA_BYTES_MAX);
        if !self.has_room_for_metadata(host, kept.len() as u64, now.mono)? {
            kept = fields_that_fit(metadata, METADATA_BYTES_USUAL);
        }
        if kept.len() < metadata.len() {
            seldom!(Warn, "metadata that was dropped", host =>
                "{host} sends {} bytes of metadata of a sandbox; {} are kept",
                metadata.len(), kept.len());
        }
        Ok(Cow::Owned(kept))
    }

    fn has_room_for_metadata(
        &mut self,
        host: HostId,
        more: u64,
        now: Mono,
    ) -> Result<bool, StoreError> {
        let known = self.bounds.metadata.get(&host).copied();
        let fits = |(bytes, _): &(u64, Mono)| bytes + more <= METADATA_OF_HOST_MAX;
        let is_new = |(_, at): &(u64, Mono)| now.since(*at) < MEASURE_EVERY;
        let (bytes, at) = match known.filter(|known| fits(known) || is_new(known)) {
            Some(known) => known,
            None => (self.large_metadata_of(host)?, now),
        };
        let has_room = fits(&(bytes, at));
        let bytes = if has_room { bytes + more } else { bytes };
        self.bounds.metadata.insert(host, (bytes, at));
        Ok(has_room)
    }

    fn large_metadata_of(&self, host: HostId) -> Result<u64, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT coalesce(sum(length(metadata)), 0) FROM sandboxes \
             WHERE host_id = ?1 AND length(metadata) > ?2",
        )?;
        let usual = METADATA_BYTES_USUAL as i64;
        Ok(select.query_row(params![host.to_string(), usual], |row| rows::unsigned(row, 0))?)
    }

    fn may_go_on(
        &mut self,
        host: HostId,
        doing: Doing,
        cost: u32,
        allowance: Allowance,
        now: Mono,
    ) -> bool {
        self.bounds.hosts.take(&(host, doing), cost, allowance, now).passes()
    }

    /// Whether a team may have another sandbox.
    pub(super) fn may_have_one_more(&self, team: TeamId, actor: &Actor) -> Result<(), OverQuota> {
        let max = self.policy.quotas.sandboxes_max;
        let has = usize::try_from(self.usage.of_team(team)).unwrap_or(usize::MAX);
        match max == 0 || !has_quota(actor) || has < max {
            true => Ok(()),
            false => Err(OverQuota::Sandboxes(max)),
        }
    }

    /// Whether a team may begin another change. Destroys are never refused; there cannot be
    /// more of them than there were creates.
    pub(super) fn may_change(
        &mut self,
        team: TeamId,
        actor: &Actor,
        now: Now,
    ) -> Result<(), OverQuota> {
        let max = self.policy.quotas.creates_per_minute;
        let burst = u32::try_from(max).unwrap_or(u32::MAX);
        if max == 0 || !has_quota(actor) {
            return Ok(());
        }
        let allowance = Allowance { burst, per: Duration::from_secs(60) };
        match self.bounds.changes.take(&team, 1, allowance, now.mono) {
            Verdict::Pass(_) => Ok(()),
            Verdict::Over(wait) => Err(OverQuota::Changes(max, wait)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::policy::Policy;
    use crate::model::probe::{Details, FailureKind, Listed, ListedState, Listing, Probe};
    use crate::model::time::Wall;
    use crate::store::apply::{Applied, Probed};
    use crate::store::fixture;
    use crate::store::open::open_writer;
    use crate::store::presence::Presence;
    use crate::store::read;
    use crate::store::writer::{Command, Envelope};
    use serde_json::json;
    use std::sync::Arc;
    use tempfile::TempDir;

    #[test]
    fn whole_fields_of_metadata_are_kept_as_many_as_fit() {
        let long = "x".repeat(5000);
        let all = json!({"a": long, "kernel_version": "6.1", "b": "\u{1}".repeat(300), "z": "1"});
        let kept = fields_that_fit(&all.to_string(), METADATA_BYTES_USUAL);
        assert_eq!(kept, r#"{"kernel_version":"6.1","z":"1"}"#);
        let exact = json!({"k": "x".repeat(100)}).to_string();
        assert_eq!(fields_that_fit(&exact, exact.len() + 1), exact);
        assert_eq!(fields_that_fit(&exact, exact.len()), "{}");
    }

    const HOST: u128 = 1;

    /// A host with so many running sandboxes.
    fn world(count: u128) -> (Writer, TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let now = at(0);
        let mut conn = open_writer(&dir.path().join("roost.db"), true, now.wall).unwrap();
        let host = HostId::from_u128(HOST);
        let row = |n| json!({"id": SandboxId::from_u128(n), "host_id": host, "status": "running"});
        let hosts = [json!({"id": host, "status": "online", "heartbeat_age_s": 5,
            "address": "127.0.0.1:1"})];
        let rows: Vec<_> = (1..=count).map(row).collect();
        let fleet = json!({"hosts": hosts, "sandboxes": rows}).to_string();
        let fleet = fixture::parse(&fleet, now.wall).unwrap();
        fixture::load(&mut conn, &fleet).unwrap();
        let hosts = read::hosts(&conn).unwrap();
        let presence = Arc::new(Presence::load(&hosts, [], None, false, now));
        (Writer::new(conn, Policy::default(), presence).unwrap(), dir)
    }

    fn at(s: u64) -> Now {
        Now { mono: Mono(10_000_000 + s * 1000), wall: Wall(1_790_000_000_000 + s as i64 * 1000) }
    }

    /// The host lists all of its sandboxes in this state; gives what was applied.
    fn lists(writer: &mut Writer, count: u128, state: ListedState, s: u64) -> Applied {
        let listed = |n| Listed {
            id: SandboxId::from_u128(n),
            state,
            created_at_unix: 0,
            details: Details::default(),
        };
        let sandboxes = (1..=count).map(listed).collect();
        let probed = Probed {
            host: HostId::from_u128(HOST),
            revision: writer.revision,
            asked_at: at(s).mono,
            age_cap: None,
            probe: Probe::Listed(Listing { sandboxes, auto_paused: Vec::new() }),
            proven: false,
        };
        let (tell, told) = crossbeam_channel::unbounded();
        let reply = Box::new(move |result| tell.send(result).unwrap());
        let command = Command::Probed(Box::new(probed), reply);
        writer.execute(vec![Envelope { now: at(s), command }]);
        told.recv().unwrap().unwrap()
    }

    #[test]
    fn a_host_that_says_another_thing_each_time_is_not_believed_for_a_while() {
        const COUNT: u128 = 200;
        let (mut writer, _dir) = world(COUNT);
        let (mut s, mut refused) = (0, None);
        for look in 0..4000_u64 {
            s += 5;
            let state = if look / 4 % 2 == 0 { ListedState::Paused } else { ListedState::Running };
            let applied = lists(&mut writer, COUNT, state, s);
            refused = refused.or(applied.failure);
        }
        let refused = refused.expect("it was never refused");
        assert_eq!(refused.kind, FailureKind::Malformed);
        assert!(refused.detail.contains("contradicts itself"), "{refused}");
        let hours = s / 3600 + 1;
        let most = (hours + 1) * u64::from((COUNT as u32 * TURNS).max(TURNS_MIN));
        let events = "SELECT count(*) FROM events";
        let events = writer.conn.query_row(events, [], |row| rows::unsigned(row, 0)).unwrap();
        assert!((1000..=most + 200).contains(&events), "{events} events in {hours} h");
        // An hour of saying one thing, and it is believed again.
        let (mut believed, end) = (false, s + 3700);
        while s < end {
            s += 60;
            believed |= lists(&mut writer, COUNT, ListedState::Paused, s).failure.is_none();
        }
        assert!(believed);
        let paused = "SELECT count(*) FROM sandboxes WHERE status = 'paused'";
        let paused = writer.conn.query_row(paused, [], |row| rows::unsigned(row, 0)).unwrap();
        assert_eq!(u128::from(paused), COUNT);
    }
}
