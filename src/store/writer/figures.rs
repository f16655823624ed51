//! Owns what the writer counts, and why the database cannot be relied on.
//!
//! Never: decides what follows from it. Read by the API from many threads at once.

use crate::figures::{Counter, Counters, Histogram, Stopwatch};
use crate::model::operation::OperationKind;
use crate::store::StoreError;
use crate::store::tally::Tallied;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Figures of the writer since it started.
#[derive(Debug, Default)]
pub struct WriterFigures {
    /// Transactions committed with something in them.
    pub commits: AtomicU64,
    /// Transactions that found nothing to write.
    pub idle: AtomicU64,
    /// Transactions that failed.
    pub failures: AtomicU64,
    /// Rows changed.
    pub rows: AtomicU64,
    /// Commands that were taken in.
    pub commands: Counter,
    /// Events that were written.
    pub events: Counter,
    /// How long commits took that had something to write.
    pub commit_took: Histogram,
    /// Operations that succeeded, in the order of [`OperationKind::ALL`].
    pub succeeded: Counters<{ OperationKind::ALL.len() }>,
    /// Operations that failed, in the same order.
    pub failed: Counters<{ OperationKind::ALL.len() }>,
    /// What hosts said about sandboxes that are not their own.
    pub foreign: Counter,
    /// How sandboxes moved.
    pub tallied: Tallied,
    trouble: Mutex<Option<StoreError>>,
    /// Runs while a batch is carried out.
    at_work: Mutex<Option<Stopwatch>>,
}

/// A batch that takes longer waits for its disk. Larger: agents are sent to renew tokens that
/// cannot be renewed; smaller: a slow commit looks like trouble.
const STALLED_AFTER: Duration = Duration::from_secs(2);

impl WriterFigures {
    /// Why the database cannot be relied on: what the last transaction that wrote, or tried
    /// to, failed of, or that the present one does not get on. Damage that was found is never
    /// over.
    pub fn trouble(&self) -> Option<StoreError> {
        let known = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        known.or_else(|| {
            let at_work = self.at_work.lock().unwrap_or_else(PoisonError::into_inner);
            let span = (*at_work)?.elapsed();
            (span >= STALLED_AFTER).then_some(StoreError::Stalled(span))
        })
    }

    pub(super) fn set_at_work(&self, at_work: Option<Stopwatch>) {
        *self.at_work.lock().unwrap_or_else(PoisonError::into_inner) = at_work;
    }

    /// Notes what ails the database.
    pub fn suffer(&self, error: &StoreError) {
        self.set_trouble(Some(error.clone()));
    }

    pub(super) fn set_trouble(&self, trouble: Option<StoreError>) {
        let mut known = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*known, Some(StoreError::Damaged(_))) {
            *known = trouble;
        }
    }
}
