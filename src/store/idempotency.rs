//! Owns creates that a client may repeat: which `Idempotency-Key` made which sandbox.
//!
//! Never: makes a second sandbox for a key that counts, keeps a request itself (its SHA-256
//! says whether a repeat is the same). Called by the writer.

use super::StoreError;
use super::lifecycle::{NewSandbox, Work};
use super::read;
use super::templates::NotMade;
use super::writer::Writer;
use crate::model::id::SandboxId;
use crate::model::sandbox::Sandbox;
use crate::model::time::{Now, Wall};
use rusqlite::{OptionalExtension, params};
use std::time::Duration;

/// How long a key counts. Larger: the table grows with every create; smaller: a client that
/// was offline repeats its create too late.
pub const KEY_LIFE: Duration = Duration::from_secs(24 * 3600);

/// A create that its client may repeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnceKey {
    /// Whose key it is: a team's id, or `admin`.
    pub scope: String,
    /// The key, in the client's words.
    pub key: String,
    /// SHA-256 of the request.
    pub body_hash: [u8; 32],
}

/// What a create comes to.
pub type Created = Result<(Sandbox, Work), NotMade>;

/// What came of a create that its client may repeat.
#[derive(Debug)]
pub enum Once {
    /// It was the first.
    First(Box<Created>),
    /// It was carried out before; the sandbox as it is now.
    Again(Box<Sandbox>),
    /// It was carried out before, and the sandbox has left the database since.
    Gone(SandboxId),
    /// The key was used for another request.
    Reused,
}

impl Writer {
    /// Makes a sandbox, unless a create with this key did. The key is recorded together with
    /// the sandbox; nothing is recorded when none was made.
    pub(super) fn create_once(
        &mut self,
        new: NewSandbox,
        once: &OnceKey,
        now: Now,
    ) -> Result<Once, StoreError> {
        if let Some((hash, sandbox)) = self.find_key(once, now.wall)? {
            if hash != once.body_hash {
                return Ok(Once::Reused);
            }
            let found = read::sandbox(&self.conn, sandbox)?;
            return Ok(found.map_or(Once::Gone(sandbox), |found| Once::Again(Box::new(found))));
        }
        self.in_savepoint(|w| {
            let created = w.create_sandbox(new, now)?;
            if let Ok((sandbox, _)) = &created {
                w.record_key(once, sandbox.id, now.wall)?;
            }
            Ok(Once::First(Box::new(created)))
        })
    }

    fn find_key(
        &self,
        once: &OnceKey,
        now: Wall,
    ) -> Result<Option<([u8; 32], SandboxId)>, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT body_hash, sandbox_id FROM idempotency_keys \
             WHERE scope = ?1 AND key = ?2 AND created_at > ?3",
        )?;
        let counts_from = now.before(KEY_LIFE).0;
        let found = select.query_row(params![once.scope, once.key, counts_from], |row| {
            Ok((row.get(0)?, super::rows::id(row, 1)?))
        });
        Ok(found.optional()?)
    }

    fn record_key(&self, once: &OnceKey, sandbox: SandboxId, now: Wall) -> Result<(), StoreError> {
        // One that no longer counts may not be pruned yet.
        let mut insert = self.conn.prepare_cached(
            "INSERT OR REPLACE INTO idempotency_keys \
             (scope, key, body_hash, sandbox_id, created_at) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        let sandbox = sandbox.to_string();
        insert.execute(params![once.scope, once.key, once.body_hash, sandbox, now.0])?;
        Ok(())
    }
}
