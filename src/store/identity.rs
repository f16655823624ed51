//! Owns who a host is: creation, registration, the tokens behind both.
//!
//! Never: sees a token in clear, only its SHA-256; signs anything (`api` does).

use super::StoreError;
use super::acceptance::LostToken;
use super::journal::{Actor, Audit, Event};
use super::writer::{After, Writer};
use super::{read, rows};
use crate::model::endpoint::{Endpoint, Resolved};
use crate::model::event::{AuditAction, AuditStatus, EventKind, ResourceType};
use crate::model::host::{AgentAddress, Host, Intent, Liveness};
use crate::model::id::{HostId, HostTokenId, PLATFORM_TEAM, RefreshTokenId, TeamId};
use crate::model::sandbox::Reason;
use crate::model::time::{Now, Wall};
use rusqlite::{OptionalExtension, params};
use std::time::Duration;

/// How long a registration token is valid: long enough to walk to the machine.
pub const REGISTRATION_TOKEN_LIFE: Duration = Duration::from_secs(3600);

/// How long a refresh token is valid.
pub const REFRESH_TOKEN_LIFE: Duration = Duration::from_secs(60 * 24 * 3600);

/// After a forward jump of the clock, tokens that were valid before it stay so for this
/// long: time for every agent to renew.
const GRACE_AFTER_JUMP: Duration = Duration::from_secs(7 * 24 * 3600);

/// A clock that moved forward by more since the last flush did not run, it jumped.
const FORWARD_JUMP: Duration = Duration::from_secs(24 * 3600);

/// Unused successors of one refresh token. Larger and a client in a loop fills the table;
/// smaller and retries that overtake each other invalidate the answer that arrived.
const SUCCESSORS_MAX: usize = 8;

/// SHA-256 of a token.
pub type TokenHash = [u8; 32];

/// A host that an operator adds.
#[derive(Debug, Clone)]
pub struct NewHost {
    /// Who owns it.
    pub team: TeamId,
    /// Kind of machine, in the operator's words.
    pub kind: String,
    /// Where it was rented.
    pub provider: Option<String>,
    /// Where it stands.
    pub availability_zone: Option<String>,
    /// Its first registration token.
    pub token: TokenHash,
    /// Who adds it.
    pub actor: Actor,
}

/// What an agent says of its host when it registers.
#[derive(Debug, Clone)]
pub struct Registration {
    /// The registration token it shows.
    pub token: TokenHash,
    /// The refresh token it will be given.
    pub refresh: TokenHash,
    /// Where its agent listens.
    pub address: AgentAddress,
    /// What the name service says of that address and of those of other hosts.
    pub resolved: Resolved,
    /// Processor architecture.
    pub arch: Option<String>,
    /// Processor cores.
    pub cpu_cores: Option<u32>,
    /// Memory in MiB.
    pub memory_mb: Option<u64>,
    /// Disk in GiB.
    pub disk_gb: Option<u64>,
}

/// What came of a registration.
#[derive(Debug, Clone)]
pub enum Registered {
    /// The host as it is now; the token is used up.
    Done(Box<Host>),
    /// The token is unknown or has expired.
    BadToken,
    /// Another host, which is alive, has the address; the token can be used again.
    AddressInUse(Box<AddressInUse>),
}

/// A registration that would put another host out of service.
#[derive(Debug, Clone)]
pub struct AddressInUse {
    /// The host that wanted to register.
    pub host: HostId,
    /// The host that has the address.
    pub by: HostId,
    /// Whether those who registered the one may know of the other.
    pub may_know: bool,
}

impl Writer {
    /// Adds a pending host with its first registration token.
    pub(super) fn create_host(&mut self, new: NewHost, now: Now) -> Result<Host, StoreError> {
        self.in_savepoint(|w| {
            let mut host = pending(w.random.id(), &new, now.wall);
            w.random_id_is_free(host.id)?;
            host.revision = w.revision;
            rows::insert_host(&w.conn, &host)?;
            w.insert_registration_token(host.id, new.token, now.wall)?;
            let id = host.id.to_string();
            w.journal(now, &new.actor)?.audit(&Audit {
                team: host.team_id,
                resource: (ResourceType::Host, &id),
                action: AuditAction::Create,
                status: AuditStatus::Success,
                metadata: "{}",
            })?;
            w.after.push(After::HostChanged { host: Box::new(host.clone()), now });
            Ok(host)
        })
    }

    /// A tombstone must never come alive again, however unlikely.
    fn random_id_is_free(&self, id: HostId) -> Result<(), StoreError> {
        let mut select = self.conn.prepare_cached("SELECT 1 FROM tombstones WHERE host_id = ?1")?;
        match select.exists([id.to_string()])? {
            true => Err(StoreError::Sqlite(format!("{id} was used before"))),
            false => Ok(()),
        }
    }

    /// Gives a host another registration token; earlier ones end. `None`: no such host.
    pub(super) fn new_registration_token(
        &mut self,
        host: HostId,
        token: TokenHash,
        now: Now,
    ) -> Result<Option<Host>, StoreError> {
        let Some(host) = self.host(host)? else { return Ok(None) };
        self.in_savepoint(|w| {
            w.conn
                .prepare_cached("DELETE FROM registration_tokens WHERE host_id = ?1")?
                .execute([host.id.to_string()])?;
            w.insert_registration_token(host.id, token, now.wall)?;
            Ok(Some(host))
        })
    }

    fn insert_registration_token(
        &mut self,
        host: HostId,
        token: TokenHash,
        now: Wall,
    ) -> Result<(), StoreError> {
        let id: HostTokenId = self.random.id();
        let mut insert = self.conn.prepare_cached(
            "INSERT INTO registration_tokens (hash, id, host_id, created_at, expires_at) \
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        let expires = now.after(REGISTRATION_TOKEN_LIFE);
        insert.execute(params![token, id.to_string(), host.to_string(), now.0, expires.0])?;
        Ok(())
    }

    /// Registers the host that the token was made for and consumes the token. Earlier
    /// refresh tokens of the host end. Nothing is written when it is refused.
    pub(super) fn register(
        &mut self,
        registration: Registration,
        now: Now,
    ) -> Result<Registered, StoreError> {
        let sql = "SELECT host_id FROM registration_tokens WHERE hash = ?1 AND expires_at > ?2";
        let token: Option<HostId> = self
            .conn
            .prepare_cached(sql)?
            .query_row(params![registration.token, now.wall.0], |row| rows::id(row, 0))
            .optional()?;
        let Some(id) = token else { return Ok(Registered::BadToken) };
        let others = self.others_at(id, &registration)?;
        if let Some(in_use) = others.iter().find(|other| other.is_live()) {
            return Ok(Registered::AddressInUse(Box::new(self.in_use(id, in_use)?)));
        }
        self.in_savepoint(|w| {
            for other in others {
                w.release_address(other, id, now)?;
            }
            w.conn
                .prepare_cached("DELETE FROM registration_tokens WHERE hash = ?1")?
                .execute([registration.token])?;
            w.write_registration(id, &registration, now)?;
            w.conn
                .prepare_cached("DELETE FROM refresh_tokens WHERE host_id = ?1")?
                .execute([id.to_string()])?;
            w.insert_refresh_token(id, registration.refresh, None, now.wall)?;
            let host = w.journal_registration(id, now)?;
            w.after.push(After::HostRegistered { host: Box::new(host.clone()), now });
            Ok(Registered::Done(Box::new(host)))
        })
    }

    /// Other hosts whose address leads where the registration's does.
    fn others_at(&self, id: HostId, registration: &Registration) -> Result<Vec<Host>, StoreError> {
        let wanted = Endpoint::of(&registration.address, &registration.resolved);
        let is_there = |host: &Host| {
            let address = host.address.as_ref().filter(|_| host.id != id);
            address.is_some_and(|at| Endpoint::of(at, &registration.resolved).is_same(&wanted))
        };
        Ok(read::hosts(&self.conn)?.into_iter().filter(is_there).collect())
    }

    fn in_use(&self, id: HostId, other: &Host) -> Result<AddressInUse, StoreError> {
        let team = self.host(id)?.map(|host| host.team_id);
        let may_know = team.is_some_and(|team| team == PLATFORM_TEAM || team == other.team_id);
        Ok(AddressInUse { host: id, by: other.id, may_know })
    }

    /// A dead host's address leads to its successor now: a probe of the dead one would take
    /// what the other announces.
    fn release_address(&mut self, dead: Host, by: HostId, now: Now) -> Result<(), StoreError> {
        log::warn!(
            "{} is {} and loses its address to {by}; let it register again when it is back",
            dead.named(),
            dead.status()
        );
        let sql = "UPDATE hosts SET address = NULL, updated_at = ?2 WHERE id = ?1";
        self.conn.prepare_cached(sql)?.execute(params![dead.id.to_string(), now.wall.0])?;
        let host = Box::new(Host { address: None, ..dead });
        self.after.push(After::HostChanged { host, now });
        Ok(())
    }

    fn write_registration(
        &mut self,
        host: HostId,
        registration: &Registration,
        now: Now,
    ) -> Result<(), StoreError> {
        let mut update = self.conn.prepare_cached(
            "UPDATE hosts SET rejoining = liveness = 'unreachable', liveness = 'alive', \
             registered_at = ?2, last_heartbeat_at = ?2, updated_at = ?2, address = ?3, \
             arch = ?4, cpu_cores = ?5, memory_mb = ?6, disk_gb = ?7, probe_outcome = NULL, \
             probe_detail = NULL, probe_at = NULL WHERE id = ?1",
        )?;
        update.execute(params![
            host.to_string(),
            now.wall.0,
            registration.address.as_str(),
            registration.arch,
            registration.cpu_cores,
            registration.memory_mb.map(|n| n as i64),
            registration.disk_gb.map(|n| n as i64),
        ])?;
        Ok(())
    }

    fn journal_registration(&mut self, id: HostId, now: Now) -> Result<Host, StoreError> {
        let gone = || StoreError::BadRow(format!("{id} has a token and no row"));
        let mut host = self.host(id)?.ok_or_else(gone)?;
        let reason = Reason::Reported;
        let mut journal = self.journal(now, &Actor::SYSTEM)?;
        host.revision = journal.event(&Event {
            kind: EventKind::HostRegistered,
            host: id,
            sandbox: None,
            team: host.team_id,
            from: None,
            to: Some(host.status().as_str()),
            reason: &reason,
            detail: host.place().as_deref(),
        })?;
        let resource = id.to_string();
        let address = serde_json::Value::from(host.address.as_ref().map(AgentAddress::as_str));
        journal.audit(&Audit {
            team: host.team_id,
            resource: (ResourceType::Host, &resource),
            action: AuditAction::Register,
            status: AuditStatus::Success,
            metadata: &format!(r#"{{"address":{address}}}"#),
        })?;
        drop(journal);
        // Revisions never repeat, not even after a restore from a backup.
        host.registration = host.revision;
        let mut update = self
            .conn
            .prepare_cached("UPDATE hosts SET revision = ?2, registration = ?2 WHERE id = ?1")?;
        update.execute(params![resource, host.revision as i64])?;
        Ok(host)
    }

    fn insert_refresh_token(
        &mut self,
        host: HostId,
        token: TokenHash,
        parent: Option<TokenHash>,
        now: Wall,
    ) -> Result<(), StoreError> {
        let id: RefreshTokenId = self.random.id();
        let mut insert = self.conn.prepare_cached(
            "INSERT INTO refresh_tokens (hash, id, host_id, parent, created_at, expires_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?;
        let expires = now.after(REFRESH_TOKEN_LIFE);
        let (id, host) = (id.to_string(), host.to_string());
        insert.execute(params![token, id, host, parent, now.0, expires.0])?;
        Ok(())
    }

    /// A token that was given out before: under what it says of itself.
    pub(super) fn insert_found_token(&mut self, found: &LostToken) -> Result<(), StoreError> {
        let id: RefreshTokenId = self.random.id();
        let (host, LostToken { issued_at, expires_at, .. }) = (found.host.to_string(), found);
        self.conn.execute(
            "INSERT INTO refresh_tokens (hash, id, host_id, parent, created_at, expires_at) \
             VALUES (?1, ?2, ?3, NULL, ?4, ?5)",
            params![found.hash, id.to_string(), host, issued_at.0, expires_at.0],
        )?;
        Ok(())
    }

    /// Exchanges a refresh token. The one shown stays valid until one that it was
    /// exchanged for is shown, so that a lost answer costs nothing. `None`: not genuine,
    /// used up, or expired (but for `lenient`).
    pub(super) fn refresh(
        &mut self,
        shown: TokenHash,
        fresh: TokenHash,
        lenient: bool,
        now: Now,
    ) -> Result<Option<Host>, StoreError> {
        let found: Option<(HostId, Option<TokenHash>)> = self
            .conn
            .prepare_cached(
                "SELECT host_id, parent FROM refresh_tokens \
                 WHERE hash = ?1 AND (expires_at > ?2 OR ?3)",
            )?
            .query_row(params![shown, now.wall.0, lenient], |row| {
                Ok((rows::id(row, 0)?, row.get(1)?))
            })
            .optional()?;
        let Some((id, parent)) = found else { return Ok(None) };
        let gone = || StoreError::BadRow(format!("{id} has a token and no row"));
        let host = self.host(id)?.ok_or_else(gone)?;
        self.in_savepoint(|w| {
            if let Some(parent) = parent {
                // Its first use: the parent and the siblings have done their work.
                w.conn
                    .prepare_cached(
                        "DELETE FROM refresh_tokens WHERE host_id = ?1 AND hash <> ?2 \
                         AND (hash = ?3 OR parent = ?3)",
                    )?
                    .execute(params![id.to_string(), shown, parent])?;
                w.conn
                    .prepare_cached("UPDATE refresh_tokens SET parent = NULL WHERE hash = ?1")?
                    .execute([shown])?;
            }
            w.insert_refresh_token(id, fresh, Some(shown), now.wall)?;
            w.conn
                .prepare_cached(
                    "DELETE FROM refresh_tokens WHERE parent = ?1 AND host_id = ?2 AND hash NOT IN \
                     (SELECT hash FROM refresh_tokens WHERE parent = ?1 AND host_id = ?2 \
                      ORDER BY created_at DESC, id LIMIT ?3)",
                )?
                .execute(params![shown, id.to_string(), SUCCESSORS_MAX as i64])?;
            Ok(Some(host))
        })
    }

    /// Refresh tokens that were valid before the clock jumped forward stay so for a while:
    /// a small box without a battery wakes up in 1970.
    pub(super) fn extend_tokens_after_jump(&mut self, now: Now) -> Result<(), StoreError> {
        let listened: Option<i64> = self
            .conn
            .prepare_cached("SELECT listened_until FROM state")?
            .query_row([], |row| row.get(0))?;
        let Some(before) = listened.map(Wall).filter(|at| now.wall.since(*at) > FORWARD_JUMP)
        else {
            return Ok(());
        };
        self.conn
            .prepare_cached(
                "UPDATE refresh_tokens SET expires_at = ?1 WHERE expires_at > ?2 AND expires_at < ?1",
            )?
            .execute([now.wall.after(GRACE_AFTER_JUMP).0, before.0])?;
        Ok(())
    }
}

fn pending(id: HostId, new: &NewHost, now: Wall) -> Host {
    Host {
        id,
        team_id: new.team,
        kind: new.kind.clone(),
        provider: new.provider.clone(),
        availability_zone: new.availability_zone.clone(),
        arch: None,
        cpu_cores: None,
        memory_mb: None,
        disk_gb: None,
        address: None,
        intent: Intent::Active,
        liveness: Liveness::Alive,
        registered_at: None,
        rejoining: false,
        degraded: false,
        contact_gap: false,
        last_heartbeat_at: None,
        probe_failure: None,
        revision: 0,
        created_at: now,
        updated_at: now,
        registration: 0,
    }
}
