//! Owns templates as rows: what sandboxes are made from, and which hosts have it.
//!
//! Never: calls an agent.

use super::StoreError;
use super::lifecycle::Work;
use super::writer::Writer;
use crate::model::time::Now;

impl Writer {
    /// A snapshot has made its template.
    pub(super) fn template_made(
        &mut self,
        work: &Work,
        size_bytes: Option<i64>,
        now: Now,
    ) -> Result<(), StoreError> {
        let _ = (work, size_bytes, now);
        Ok(())
    }
}
