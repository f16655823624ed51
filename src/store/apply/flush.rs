//! Owns the flush: what was kept in memory until now goes into the database.
//!
//! Never: judges a host.

use super::ANSWER_AGE_MAX;
use crate::model::time::Now;
use crate::store::StoreError;
use crate::store::writer::{After, Writer};
use rusqlite::params;

impl Writer {
    /// Writes the heartbeats since the last flush, and that we listened until now.
    pub(in crate::store) fn flush(&mut self, now: Now) -> Result<(), StoreError> {
        self.noted.retain(|_, at| now.mono.since(*at) < ANSWER_AGE_MAX);
        let dirty = self.presence.take_dirty(now.mono, &self.policy);
        self.in_savepoint(|w| {
            w.after.push(After::Flushed(dirty.clone()));
            let mut beat = w.conn.prepare_cached(
                "UPDATE hosts SET last_heartbeat_at = ?2, contact_gap = ?3 WHERE id = ?1",
            )?;
            for host in &dirty {
                let at = host.last_heartbeat_at.map(|at| at.0);
                beat.execute(params![host.id.to_string(), at, host.contact_gap])?;
            }
            drop(beat);
            w.settle_on_unreachable(now)?;
            w.flush_keys()?;
            w.flush_activity(now)?;
            w.flush_unknown(now)?;
            w.count_left_out(now)?;
            w.extend_tokens_after_jump(now)?;
            w.prune_overgrown(now)?;
            let mut listened = w.conn.prepare_cached("UPDATE state SET listened_until = ?1")?;
            listened.execute([now.wall.0])?;
            drop(listened);
            if w.is_mark_behind() {
                w.change_a_byte()?;
            }
            Ok(())
        })
    }
}
