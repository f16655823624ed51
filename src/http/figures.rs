//! Owns what the transport counts of its work.
//!
//! Never: holds a connection or a handler: whoever reads the figures may outlive the server.

use super::table::Table;
use crate::figures::{Counter, Counters};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Classes of status codes: 1xx to 5xx.
pub(super) const CLASSES: usize = 5;

/// What the threads of one server count together.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Streams with a thread of their own that run.
    pub(super) streams: AtomicUsize,
    /// Deferred responses that are being made.
    pub(super) deferred: AtomicUsize,
    /// Streams and feeds whose peer did not read in time.
    pub(super) streams_cut: Counter,
    /// Connections that were dropped for want of room.
    pub(super) dropped: Counter,
    answers: Counters<CLASSES>,
}

impl Counts {
    /// An answer with this status code was made.
    pub(super) fn answered(&self, status: u16) {
        self.answers.count(usize::from(status / 100).wrapping_sub(1));
    }
}

/// What a server counts, to be read while it runs and after.
#[derive(Clone)]
pub struct HttpFigures {
    table: Arc<Table>,
    counts: Arc<Counts>,
    feeds: Arc<AtomicUsize>,
}

impl fmt::Debug for HttpFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.counts.fmt(f)
    }
}

impl HttpFigures {
    pub(super) fn new(
        table: Arc<Table>,
        counts: Arc<Counts>,
        feeds: Arc<AtomicUsize>,
    ) -> HttpFigures {
        HttpFigures { table, counts, feeds }
    }

    /// Connections that are open.
    pub fn connections(&self) -> usize {
        self.table.len()
    }

    /// Feeds that are open.
    pub fn feeds(&self) -> usize {
        self.feeds.load(Ordering::SeqCst)
    }

    /// Streams with a thread of their own that are open.
    pub fn streams(&self) -> usize {
        self.counts.streams.load(Ordering::SeqCst)
    }

    /// Deferred responses that are being made.
    pub fn deferred(&self) -> usize {
        self.counts.deferred.load(Ordering::SeqCst)
    }

    /// Streams and feeds that were cut because their peer did not read.
    pub fn streams_cut(&self) -> u64 {
        self.counts.streams_cut.get()
    }

    /// Connections that were dropped because there was no room.
    pub fn dropped(&self) -> u64 {
        self.counts.dropped.get()
    }

    /// Answers by class of their status code, 1xx first.
    pub fn answers(&self) -> [u64; CLASSES] {
        self.counts.answers.get()
    }
}
