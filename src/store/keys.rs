//! Owns API keys: their rows, and the table of them in memory that every request is looked
//! up in.
//!
//! Never: sees a key in clear, only its SHA-256; writes because a key was used (that goes
//! to disk with the heartbeats); lets a revoked key pass once its revocation is answered.

use super::StoreError;
use super::identity::TokenHash;
use super::journal::{Actor, Audit};
use super::rows;
use super::writer::{After, Writer};
use crate::model::event::{AuditAction, AuditStatus, ResourceType};
use crate::model::id::{KeyId, TeamId};
use crate::model::time::{Now, Wall};
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use subtle::ConstantTimeEq;

/// API keys that a database holds. Larger and a script that never revokes fills the memory
/// and the list; smaller and a team cannot give each of its programs a key of its own.
pub const KEYS_MAX: u32 = 1000;

/// How exactly the database knows when a key was last used. Larger and a crash forgets
/// more; smaller and a busy key costs a page of the disk with every flush.
const LAST_USED_STEP: Duration = Duration::from_secs(60);

/// A key that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Its id.
    pub id: KeyId,
    /// Whose things it opens.
    pub team: TeamId,
    /// What it is for, in the words of whoever made it.
    pub name: String,
    /// Its last digits, to tell it from others.
    pub suffix: String,
    /// When it was made.
    pub created_at: Wall,
    /// When it was last shown.
    pub last_used_at: Option<Wall>,
}

/// A key that an operator makes.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// SHA-256 of the key.
    pub hash: TokenHash,
    /// Whose things it opens.
    pub team: TeamId,
    /// What it is for.
    pub name: String,
    /// Its last digits.
    pub suffix: String,
    /// Who makes it.
    pub actor: Actor,
}

/// That a key was used, as a flush writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyUse {
    id: KeyId,
    at: Wall,
}

/// The hash of a key, compared in constant time. The map of hashes spreads them by a
/// secret of its own, so that how long a miss takes tells nothing either.
struct KeyHash(TokenHash);

impl PartialEq for KeyHash {
    fn eq(&self, other: &KeyHash) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for KeyHash {}

impl Hash for KeyHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

struct Entry {
    key: ApiKey,
    /// The last use that the database knows of.
    flushed: Option<Wall>,
}

impl Entry {
    fn must_be_flushed(&self) -> bool {
        self.key.last_used_at.is_some_and(|used| {
            // A clock that was set back is believed.
            let known = |at: Wall| used >= at && used.since(at) < LAST_USED_STEP;
            !self.flushed.is_some_and(known)
        })
    }
}

/// See the head of this file.
#[derive(Default)]
pub struct Keys {
    entries: Mutex<HashMap<KeyHash, Entry>>,
    revoked: AtomicU64,
}

impl Keys {
    /// The keys of a database.
    pub(super) fn load(conn: &Connection) -> Result<Keys, StoreError> {
        let mut select = conn.prepare(
            "SELECT hash, id, team_id, name, suffix, created_at, last_used_at FROM api_keys",
        )?;
        let entries = select.query_map([], |row| {
            let flushed = row.get::<_, Option<i64>>(6)?.map(Wall);
            let key = ApiKey {
                id: rows::id(row, 1)?,
                team: rows::id(row, 2)?,
                name: row.get(3)?,
                suffix: row.get(4)?,
                created_at: rows::wall(row, 5)?,
                last_used_at: flushed,
            };
            Ok((KeyHash(row.get(0)?), Entry { key, flushed }))
        })?;
        Ok(Keys { entries: Mutex::new(entries.collect::<Result<_, _>>()?), ..Keys::default() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<KeyHash, Entry>> {
        // Every critical section leaves the map whole, so a panic elsewhere is no reason to stop.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key with this hash, which is being used now.
    pub fn show(&self, hash: TokenHash, now: Wall) -> Option<ApiKey> {
        let mut entries = self.lock();
        let entry = entries.get_mut(&KeyHash(hash))?;
        entry.key.last_used_at = Some(now);
        Some(entry.key.clone())
    }

    /// Whether a key still counts: for what goes on after a key was shown.
    pub fn counts(&self, id: KeyId) -> bool {
        self.lock().values().any(|entry| entry.key.id == id)
    }

    /// How many keys were revoked since the start: as long as it is the same, a key that
    /// counted does.
    pub fn revoked(&self) -> u64 {
        self.revoked.load(Ordering::SeqCst)
    }

    /// All keys, the oldest first; those of one millisecond by name.
    pub fn list(&self) -> Vec<ApiKey> {
        let mut keys: Vec<ApiKey> = self.lock().values().map(|entry| entry.key.clone()).collect();
        crate::model::order::sort_by_key(&mut keys, |key| {
            (key.created_at, key.name.clone(), key.id)
        });
        keys
    }

    pub(super) fn add(&self, hash: TokenHash, key: ApiKey) {
        self.lock().insert(KeyHash(hash), Entry { key, flushed: None });
    }

    pub(super) fn remove(&self, id: KeyId) {
        self.lock().retain(|_, entry| entry.key.id != id);
        self.revoked.fetch_add(1, Ordering::SeqCst);
    }

    /// What has to be written; marks it as written. The writer gives it back with
    /// [`Keys::unflushed`] when its transaction fails.
    fn take_used(&self) -> Vec<KeyUse> {
        let mut entries = self.lock();
        let used = entries.values_mut().filter(|entry| entry.must_be_flushed());
        used.filter_map(|entry| {
            entry.flushed = entry.key.last_used_at;
            entry.flushed.map(|at| KeyUse { id: entry.key.id, at })
        })
        .collect()
    }

    pub(super) fn unflushed(&self, used: &[KeyUse]) {
        for entry in self.lock().values_mut() {
            if used.iter().any(|used| used.id == entry.key.id) {
                entry.flushed = None;
            }
        }
    }
}

impl Writer {
    /// Makes a key. `None`: there are too many.
    pub(super) fn create_key(
        &mut self,
        new: NewKey,
        now: Now,
    ) -> Result<Option<ApiKey>, StoreError> {
        let count: u32 = self
            .conn
            .prepare_cached("SELECT count(*) FROM api_keys")?
            .query_row([], |row| row.get(0))?;
        if count >= KEYS_MAX {
            return Ok(None);
        }
        self.in_savepoint(|w| {
            let key = ApiKey {
                id: w.random.id(),
                team: new.team,
                name: new.name,
                suffix: new.suffix,
                created_at: now.wall,
                last_used_at: None,
            };
            w.insert_key(new.hash, &key)?;
            w.audit_key(&key, AuditAction::Create, AuditStatus::Success, &new.actor, now)?;
            w.after.push(After::KeyCreated(new.hash, Box::new(key.clone())));
            Ok(Some(key))
        })
    }

    fn insert_key(&self, hash: TokenHash, key: &ApiKey) -> Result<(), StoreError> {
        let mut insert = self.conn.prepare_cached(
            "INSERT INTO api_keys (id, hash, team_id, name, suffix, created_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?;
        insert.execute(params![
            key.id.to_string(),
            hash,
            key.team.to_string(),
            key.name,
            key.suffix,
            key.created_at.0
        ])?;
        Ok(())
    }

    /// Revokes a key: its row goes, and after the commit nobody is let in with it. False:
    /// no such key.
    pub(super) fn revoke_key(
        &mut self,
        id: KeyId,
        actor: &Actor,
        now: Now,
    ) -> Result<bool, StoreError> {
        self.in_savepoint(|w| {
            let gone = w
                .conn
                .prepare_cached(
                    "DELETE FROM api_keys WHERE id = ?1 \
                     RETURNING team_id, name, suffix, created_at",
                )?
                .query_row([id.to_string()], |row| {
                    Ok(ApiKey {
                        id,
                        team: rows::id(row, 0)?,
                        name: row.get(1)?,
                        suffix: row.get(2)?,
                        created_at: rows::wall(row, 3)?,
                        last_used_at: None,
                    })
                })
                .optional()?;
            let Some(key) = gone else { return Ok(false) };
            w.audit_key(&key, AuditAction::Revoke, AuditStatus::Warning, actor, now)?;
            w.after.push(After::KeyRevoked(id));
            Ok(true)
        })
    }

    fn audit_key(
        &mut self,
        key: &ApiKey,
        action: AuditAction,
        status: AuditStatus,
        actor: &Actor,
        now: Now,
    ) -> Result<(), StoreError> {
        let id = key.id.to_string();
        let metadata = serde_json::json!({"name": key.name, "suffix": key.suffix}).to_string();
        self.journal(now, actor)?.audit(&Audit {
            team: key.team,
            resource: (ResourceType::ApiKey, &id),
            action,
            status,
            metadata: &metadata,
        })?;
        Ok(())
    }

    /// Writes which keys were used, in the transaction that writes heartbeats.
    pub(super) fn flush_keys(&mut self) -> Result<(), StoreError> {
        let used = self.keys.take_used();
        self.after.push(After::KeysFlushed(used.clone()));
        let mut update =
            self.conn.prepare_cached("UPDATE api_keys SET last_used_at = ?2 WHERE id = ?1")?;
        for key in used {
            update.execute(params![key.id.to_string(), key.at.0])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::PLATFORM_TEAM;

    fn keys() -> Keys {
        let keys = Keys::default();
        let key = ApiKey {
            id: KeyId::from_u128(1),
            team: PLATFORM_TEAM,
            name: "ci".to_owned(),
            suffix: "abcd".to_owned(),
            created_at: Wall(0),
            last_used_at: None,
        };
        keys.add([7; 32], key);
        keys
    }

    #[test]
    fn only_the_very_same_hash_is_a_key() {
        let keys = keys();
        assert_eq!(keys.show([7; 32], Wall(1)).map(|key| key.id), Some(KeyId::from_u128(1)));
        for at in [0, 15, 31] {
            let mut almost = [7; 32];
            almost[at] ^= 1;
            assert_eq!(keys.show(almost, Wall(1)), None, "byte {at}");
        }
        keys.remove(KeyId::from_u128(1));
        assert_eq!(keys.show([7; 32], Wall(1)), None);
        assert!(!keys.counts(KeyId::from_u128(1)));
    }

    #[test]
    fn uses_are_written_once_a_minute() {
        let keys = keys();
        assert_eq!(keys.take_used(), []);
        let used = |ms: i64| {
            keys.show([7; 32], Wall(ms)).unwrap();
            keys.take_used().iter().map(|used| used.at.0).collect::<Vec<_>>()
        };
        assert_eq!(used(100_000), [100_000]);
        assert_eq!(used(100_001), [0; 0]);
        assert_eq!(used(159_999), [0; 0]);
        assert_eq!(keys.list()[0].last_used_at, Some(Wall(159_999)), "memory knows better");
        assert_eq!(used(160_000), [160_000]);
        assert_eq!(used(150_000), [150_000], "the clock was set back");
        keys.unflushed(&[KeyUse { id: KeyId::from_u128(1), at: Wall(150_000) }]);
        assert_eq!(used(150_001), [150_001], "what failed is written again");
    }
}
