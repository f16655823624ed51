//! Owns the newest events, each rendered once, for all who are listening to them.
//!
//! Never: reads more than what was committed since it was last asked; keeps anything while
//! there are no listeners, or more than its bounds. What is older is `stream`'s to read.

use super::view::EventView;
use crate::http::Chunk;
use crate::model::event::Event;
use crate::model::id::{HostId, SandboxId, TeamId};
use crate::store::StoreError;
use crate::store::read::{self, HistoryFilter, OwnReader, Readers};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

/// Events that are kept for those who are a little behind. Larger: memory; smaller: slow
/// clients read the database.
const EVENTS_MAX: usize = 1024;

/// Bytes of them, rendered.
const EVENTS_BYTES_MAX: usize = 512 * 1024;

/// Events read at a time.
const READ_MAX: u32 = 256;

/// Bytes that one client is sent at a time, if no single event is larger. Larger: memory of
/// a thousand clients that are slow to read; smaller: more system calls for those that catch
/// up.
pub(super) const CHUNK_BYTES: usize = 16 * 1024;

/// Which events one stream shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct View {
    pub(super) team: Option<TeamId>,
    pub(super) host: Option<HostId>,
    pub(super) sandbox: Option<SandboxId>,
}

impl View {
    /// The same as the database understands it.
    pub(super) fn filter(&self, limit: u32) -> HistoryFilter {
        HistoryFilter { team: self.team, host: self.host, sandbox: self.sandbox, limit }
    }

    fn shows(&self, event: &Rendered) -> bool {
        self.team.is_none_or(|team| team == event.team)
            && self.host.is_none_or(|host| host == event.host)
            && self.sandbox.is_none_or(|sandbox| Some(sandbox) == event.sandbox)
    }
}

/// An event as it is sent.
pub(super) struct Rendered {
    pub(super) revision: u64,
    pub(super) text: String,
    team: TeamId,
    host: HostId,
    sandbox: Option<SandboxId>,
}

impl From<Event> for Rendered {
    fn from(event: Event) -> Rendered {
        let (revision, kind) = (event.revision, event.kind);
        let (team, host, sandbox) = (event.team_id, event.host_id, event.sandbox_id);
        let data = serde_json::to_string(&EventView::from(event)).unwrap_or_else(|error| {
            log::error!("could not write event {revision}: {error}");
            "null".to_owned()
        });
        let text = format!("id: {revision}\nevent: {kind}\ndata: {data}\n\n");
        Rendered { revision, text, team, host, sandbox }
    }
}

/// What there is for a stream.
#[derive(Debug, Clone)]
pub(super) enum News {
    /// Nothing newer.
    Nothing,
    /// What is newer begins before what is kept here.
    Older,
    /// Up to this revision: bytes to send, if the view shows any of it.
    Some(u64, Option<Arc<Chunk>>),
}

/// See the head of this file. `now` stands for a round in which everyone is asked: within
/// one, all are given the same.
#[derive(Default)]
pub(super) struct Tail {
    listeners: usize,
    reader: Option<OwnReader>,
    /// All events after `from` up to `upto` are in `events`.
    from: u64,
    upto: u64,
    events: VecDeque<Rendered>,
    bytes: usize,
    round: Option<Instant>,
    /// What was made in this round, by view and place.
    made: HashMap<(View, u64), News>,
}

impl Tail {
    /// One more listens; `newest` is the newest revision.
    pub(super) fn enter(&mut self, newest: u64) {
        if self.listeners == 0 {
            (self.from, self.upto) = (newest, newest);
        }
        self.listeners += 1;
    }

    /// One less listens.
    pub(super) fn leave(&mut self) {
        self.listeners -= 1;
        if self.listeners == 0 {
            *self = Tail::default();
        }
    }

    /// What there is for a stream that has seen all of `view` up to `seen`.
    pub(super) fn news(
        &mut self,
        view: View,
        seen: u64,
        newest: u64,
        readers: &Readers,
        now: Instant,
    ) -> Result<News, StoreError> {
        if self.upto < newest && self.round != Some(now) {
            self.round = Some(now);
            self.advance(newest, readers)?;
        }
        if seen >= self.upto {
            return Ok(News::Nothing);
        }
        if seen < self.from {
            return Ok(News::Older);
        }
        if let Some(made) = self.made.get(&(view, seen)) {
            return Ok(made.clone());
        }
        let made = self.make(view, seen);
        self.made.insert((view, seen), made.clone());
        Ok(made)
    }

    fn make(&self, view: View, seen: u64) -> News {
        let first = self.events.partition_point(|event| event.revision <= seen);
        let shown = self.events.range(first..).filter(|event| view.shows(event));
        let (upto, text) = joined(shown);
        let upto = upto.unwrap_or(self.upto);
        News::Some(upto, (!text.is_empty()).then(|| Chunk::new(text.as_bytes())))
    }

    fn advance(&mut self, newest: u64, readers: &Readers) -> Result<(), StoreError> {
        let reader = match self.reader.take() {
            Some(reader) => reader,
            None => readers.own()?,
        };
        let all = HistoryFilter { limit: READ_MAX, ..HistoryFilter::default() };
        let read = read::events_between(&reader, self.upto, newest, &all)?;
        // After they were read: what is gone now may have been missing.
        let oldest = read::oldest_event(&reader)?;
        self.reader = Some(reader);
        self.made.clear();
        if oldest.is_some_and(|oldest| self.upto + 1 < oldest) {
            // A stream that is not at the newest finds out by reading what is older.
            self.events.clear();
            (self.from, self.upto, self.bytes) = (newest, newest, 0);
            return Ok(());
        }
        let full = read.len() as u32 == READ_MAX;
        self.upto = read.last().filter(|_| full).map_or(newest, |last| last.revision);
        for event in read {
            let event = Rendered::from(event);
            self.bytes += event.text.len();
            self.events.push_back(event);
        }
        while self.events.len() > EVENTS_MAX || self.bytes > EVENTS_BYTES_MAX {
            let Some(dropped) = self.events.pop_front() else { break };
            self.bytes -= dropped.text.len();
            self.from = dropped.revision;
        }
        Ok(())
    }
}

/// Events of one chunk, and where it ends when there are more.
pub(super) fn joined<'a>(events: impl Iterator<Item = &'a Rendered>) -> (Option<u64>, String) {
    let (mut text, mut last) = (String::new(), None);
    for event in events {
        if !text.is_empty() && text.len() + event.text.len() > CHUNK_BYTES {
            return (last, text);
        }
        text.push_str(&event.text);
        last = Some(event.revision);
    }
    (None, text)
}
