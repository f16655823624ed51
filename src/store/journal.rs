//! Owns the revision counter and the two histories: one event for every transition, one
//! audit entry for whoever did something.
//!
//! Never: changes a host or sandbox; commits. Used by the writer inside its transaction.

use super::error::StoreError;
use crate::model::event::{ActorType, AuditAction, AuditStatus, EventKind, ResourceType};
use crate::model::id::{HostId, Id, IdText, Kind, LogId, SandboxId, TeamId};
use crate::model::sandbox::Reason;
use crate::model::time::Wall;
use ring::rand::{SecureRandom, SystemRandom};
use rusqlite::{CachedStatement, Connection, params};

/// Random bytes for ids and tokens, fetched from their source in blocks.
pub struct Random {
    source: Source,
    block: [u8; Random::BLOCK],
    used: usize,
}

enum Source {
    System(SystemRandom),
    /// The same bytes for the same number: a simulation must take the same course twice.
    Seeded(u64),
}

impl std::fmt::Debug for Random {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Random")
    }
}

impl Random {
    /// Bytes per system call: enough for an audit entry on each sandbox of a host.
    const BLOCK: usize = 1024;

    /// A source that asks the system at first use.
    pub fn new() -> Random {
        Random::from(Source::System(SystemRandom::new()))
    }

    /// Bytes that anybody can foretell, for simulations only.
    pub fn foreseeable(seed: u64) -> Random {
        Random::from(Source::Seeded(seed))
    }

    fn from(source: Source) -> Random {
        Random { source, block: [0; Random::BLOCK], used: Random::BLOCK }
    }

    fn fill(&mut self) {
        match &mut self.source {
            Source::System(system) => {
                system.fill(&mut self.block).expect("the system gives random bytes");
            }
            Source::Seeded(seed) => {
                for bytes in self.block.as_chunks_mut::<8>().0 {
                    *bytes = splitmix64(seed).to_le_bytes();
                }
            }
        }
        self.used = 0;
    }

    /// Fresh random bytes. An operating system without randomness is beyond help: panics.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        if self.used + N > Random::BLOCK {
            self.fill();
        }
        let mut out = [0; N];
        out.copy_from_slice(&self.block[self.used..self.used + N]);
        self.used += N;
        out
    }

    /// A fresh id.
    pub fn id<K: Kind>(&mut self) -> Id<K> {
        Id::from_random(self.bytes())
    }
}

/// Public domain, by Vigna: well spread, not secret.
fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Default for Random {
    fn default() -> Random {
        Random::new()
    }
}

/// Who acts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// Person, key or Roost itself.
    pub kind: ActorType,
    /// Id of the key or person.
    pub id: Option<String>,
    /// Name for people.
    pub name: Option<String>,
}

impl Actor {
    /// Roost itself.
    pub const SYSTEM: Actor = Actor { kind: ActorType::System, id: None, name: None };
}

/// What happened to whom.
pub(super) struct Event<'a> {
    pub(super) kind: EventKind,
    pub(super) host: HostId,
    pub(super) sandbox: Option<SandboxId>,
    pub(super) team: TeamId,
    pub(super) from: Option<&'a str>,
    pub(super) to: Option<&'a str>,
    pub(super) reason: &'a Reason,
    pub(super) detail: Option<&'a str>,
}

/// Who did what; goes with the event that was written last.
pub(super) struct Audit<'a> {
    pub(super) team: TeamId,
    pub(super) resource: (ResourceType, &'a str),
    pub(super) action: AuditAction,
    pub(super) status: AuditStatus,
    /// A JSON object.
    pub(super) metadata: &'a str,
}

/// Writes history inside a transaction. Its statements are fetched once, however many
/// entries follow.
pub(super) struct Journal<'a> {
    events: CachedStatement<'a>,
    audit_logs: CachedStatement<'a>,
    revision: &'a mut u64,
    random: &'a mut Random,
    now: Wall,
    actor: &'a Actor,
    /// Those that were written last; mostly the next entry has the same.
    host: Option<(HostId, IdText)>,
    team: Option<(TeamId, IdText)>,
}

/// The text of an id that may be the one of before.
fn text_of<K: Kind>(last: &mut Option<(Id<K>, IdText)>, id: Id<K>) -> IdText {
    match last {
        Some((known, text)) if *known == id => *text,
        Some(_) | None => last.insert((id, id.text())).1,
    }
}

impl<'a> Journal<'a> {
    pub(super) fn new(
        conn: &'a Connection,
        (revision, random): (&'a mut u64, &'a mut Random),
        now: Wall,
        actor: &'a Actor,
    ) -> Result<Journal<'a>, StoreError> {
        let events = conn.prepare_cached(
            "INSERT INTO events (revision, at, kind, host_id, sandbox_id, team_id, from_status, \
             to_status, reason, actor, detail) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        )?;
        let audit_logs = conn.prepare_cached(
            "INSERT INTO audit_logs (id, team_id, actor_type, actor_id, actor_name, \
             resource_type, resource_id, action, scope, status, metadata, created_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 'team', ?9, ?10, ?11)",
        )?;
        let (host, team) = (None, None);
        Ok(Journal { events, audit_logs, revision, random, now, actor, host, team })
    }

    /// The revision that the next event takes.
    pub(super) fn next_revision(&self) -> u64 {
        *self.revision + 1
    }

    /// Takes the next revision and writes the event under it.
    pub(super) fn event(&mut self, event: &Event<'_>) -> Result<u64, StoreError> {
        *self.revision += 1;
        let sandbox = event.sandbox.map(|id| id.text());
        let (host, team) =
            (text_of(&mut self.host, event.host), text_of(&mut self.team, event.team));
        self.events.execute(params![
            *self.revision as i64,
            self.now.0,
            event.kind.as_str(),
            host.as_str(),
            sandbox.as_ref().map(IdText::as_str),
            team.as_str(),
            event.from,
            event.to,
            event.reason.as_str(),
            self.actor.kind.as_str(),
            event.detail,
        ])?;
        Ok(*self.revision)
    }

    /// Writes an audit entry.
    pub(super) fn audit(&mut self, audit: &Audit<'_>) -> Result<LogId, StoreError> {
        let id: LogId = self.random.id();
        let team = text_of(&mut self.team, audit.team);
        self.audit_logs.execute(params![
            id.text().as_str(),
            team.as_str(),
            self.actor.kind.as_str(),
            self.actor.id,
            self.actor.name,
            audit.resource.0.as_str(),
            audit.resource.1,
            audit.action.as_str(),
            audit.status.as_str(),
            audit.metadata,
            self.now.0,
        ])?;
        Ok(id)
    }
}

/// The metadata of an audit entry about a transition.
pub(super) fn metadata(
    from: &str,
    to: &str,
    reason: &Reason,
    detail: Option<&str>,
    host: HostId,
    revision: u64,
) -> String {
    // Words and ids need no escaping; a reason from outside and the agent's words may.
    let reason = serde_json::Value::from(reason.as_str());
    let detail = detail.map_or_else(String::new, |detail| {
        format!(r#","detail":{}"#, serde_json::Value::from(detail))
    });
    format!(
        r#"{{"from":"{from}","to":"{to}","reason":{reason}{detail},"host_id":"{host}","revision":{revision}}}"#
    )
}
