//! Owns `GET /v1/events`: the history as server-sent events, resumable by revision, and how
//! many may listen.
//!
//! Never: drops an event silently (a cursor that is too old, or of a time that a
//! restore has undone, gets 410), delays the writer: it reads the database like every other
//! reader. New events come from `tail`, which all streams share; what is older is read for
//! each stream by itself.

use super::access::Caller;
use super::query::Query;
use super::tail::{News, Rendered, Tail, View, joined};
use super::{Problem, Ready};
use crate::http::{Body, Chunk, Feed, Request, Response, Step};
use crate::model::id::KeyId;
use crate::store::StoreError;
use crate::store::acceptance::is_undone;
use crate::store::keys::Keys;
use crate::store::read::{self, OwnReader, Readers};
use crate::store::writer::Revision;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Streams at a time. Each costs a connection, and memory for TLS and for what its client has
/// not read.
pub(super) const STREAMS_MAX: usize = 1200;

/// Of these, one key may have this part: one in so many.
const KEY_SHARE: usize = 4;

/// Places that only the admin key may take.
const RESERVED: usize = 100;

/// Time between two comments on a stream without events: shorter than the timeouts of
/// proxies (30 s at the least), longer than what keeps a phone awake.
const COMMENT_EVERY: Duration = Duration::from_secs(15);

/// Events read at a time for a stream that is behind.
const PAGE: u32 = 64;

/// Pages that are kept for the next who asks. Larger: up to 16 KiB each; smaller: more reads
/// when many resume at once.
const PAGES_MAX: usize = 64;

/// Revisions looked at for one page: a filter that lets little through must not occupy the
/// thread that serves all streams that are behind.
const WINDOW: u64 = 20_000;

/// What all streams share.
pub struct Streams {
    shared: Arc<Shared>,
}

struct Shared {
    readers: Readers,
    revision: Arc<Revision>,
    keys: Arc<Keys>,
    tail: Mutex<Tail>,
    /// For what is older than the tail.
    past: Mutex<Past>,
    places: Mutex<Places>,
    listening: Arc<Chunk>,
    comment: Arc<Chunk>,
}

impl Streams {
    /// Without any yet. Every published revision must ring the transport's bell.
    pub fn new(readers: Readers, revision: Arc<Revision>, keys: Arc<Keys>) -> Streams {
        let shared = Shared {
            readers,
            revision,
            keys,
            tail: Mutex::default(),
            past: Mutex::default(),
            places: Mutex::default(),
            listening: Chunk::new(b": listening\n\n"),
            comment: Chunk::new(b":\n\n"),
        };
        Streams { shared: Arc::new(shared) }
    }
}

/// `GET /v1/events?after=REV&sandbox_id=&host_id=`
pub(super) fn events(
    ready: &Ready,
    caller: Caller,
    request: &Request,
) -> Result<Response, Problem> {
    let query = Query::read(&request.query)?;
    let view = View {
        team: caller.team(),
        host: query.parsed("host_id")?,
        sandbox: query.parsed("sandbox_id")?,
    };
    let mut after: Option<u64> = query.parsed("after")?;
    if let Some(last) = request.headers.get("last-event-id") {
        let wrong = |_| Problem::invalid("Last-Event-ID must be a revision");
        after = Some(last.parse().map_err(wrong)?);
    }
    let newest = ready.revision.newest();
    let seen = after.unwrap_or(newest);
    let gone = |what: String| {
        let message = format!("{what}; read the state, then go on after {newest}");
        Err(Problem::new(410, "gone", message).with("newest_revision", newest))
    };
    if is_undone(&*ready.read()?, seen)? {
        return gone(format!(
            "revision {seen} is not of this database, or was undone by a restore"
        ));
    }
    if let Some(oldest) = is_gone(&ready.readers, seen)? {
        return gone(format!("events before {oldest} are gone"));
    }
    let place = Place::take(&ready.streams.shared, &caller)?;
    let listener = Listener::new(place, caller, view, seen);
    Ok(Response {
        status: 200,
        headers: vec![
            ("content-type", "text/event-stream".to_owned()),
            // What keeps proxies from storing, packing and, nginx by default, collecting it.
            ("cache-control", "no-cache, no-store, no-transform".to_owned()),
            ("x-accel-buffering", "no".to_owned()),
        ],
        body: Body::Feed(Box::new(listener)),
    })
}

/// The oldest event that is kept, when some after `seen` are not.
fn is_gone(readers: &Readers, seen: u64) -> Result<Option<u64>, StoreError> {
    let oldest = read::oldest_event(&*readers.get()?)?;
    Ok(oldest.filter(|oldest| seen + 1 < *oldest))
}

/// What reads the past, and what it read last: clients that lost their connection at the
/// same moment resume from the same place.
#[derive(Default)]
struct Past {
    reader: Option<OwnReader>,
    pages: VecDeque<((View, u64), Page)>,
}

/// Where a page ends, and what it shows.
type Page = (u64, Option<Arc<Chunk>>);

impl Past {
    fn known(&self, place: (View, u64)) -> Option<Page> {
        let known = self.pages.iter().rev().find(|(of, _)| *of == place);
        known.map(|(_, page)| page.clone())
    }

    fn remember(&mut self, place: (View, u64), page: Page) {
        self.pages.push_back((place, page));
        if self.pages.len() > PAGES_MAX {
            self.pages.pop_front();
        }
    }
}

/// How many listen, by key; the admin key has none.
#[derive(Default)]
struct Places {
    taken: usize,
    by_key: HashMap<KeyId, usize>,
}

/// One of them, for as long as a stream is open.
struct Place {
    shared: Arc<Shared>,
    key: Option<KeyId>,
}

impl Place {
    fn take(shared: &Arc<Shared>, caller: &Caller) -> Result<Place, Problem> {
        let key = match caller {
            Caller::Admin => None,
            Caller::Key(key) => Some(key.id),
        };
        let mut places = lock(&shared.places);
        let max = if key.is_some() { STREAMS_MAX - RESERVED } else { STREAMS_MAX };
        if places.taken >= max {
            return Err(Problem::unavailable(format!(
                "all {max} event streams are taken; try again when others have closed theirs"
            )));
        }
        if let Some(key) = key {
            let share = STREAMS_MAX / KEY_SHARE;
            let own = places.by_key.entry(key).or_default();
            if *own >= share {
                return Err(Problem::unavailable(format!(
                    "this key has {share} event streams open, which is its share; close some, or use one for all that is shown"
                )));
            }
            *own += 1;
        }
        places.taken += 1;
        drop(places);
        Ok(Place { shared: Arc::clone(shared), key })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = lock(&self.shared.places);
        places.taken -= 1;
        let is_last = places.taken == 0;
        if let Some(key) = self.key
            && let Some(own) = places.by_key.get_mut(&key)
        {
            *own -= 1;
            if *own == 0 {
                places.by_key.remove(&key);
            }
        }
        drop(places);
        // No stream is left that could be reading it.
        if is_last {
            *lock(&self.shared.past) = Past::default();
        }
    }
}

/// One stream.
struct Listener {
    place: Place,
    caller: Caller,
    view: View,
    /// All that the view shows up to this revision was sent.
    seen: u64,
    /// When something was last sent.
    spoken: Option<Instant>,
    /// Keys that were revoked when this one was last known to count.
    revoked: u64,
}

impl Listener {
    fn new(place: Place, caller: Caller, view: View, seen: u64) -> Listener {
        let shared = &place.shared;
        lock(&shared.tail).enter(shared.revision.newest());
        // A key that was revoked since it was shown is found out by the first event.
        Listener { place, caller, view, seen, spoken: None, revoked: u64::MAX }
    }

    /// Whether the key was not revoked.
    fn counts(&mut self) -> bool {
        let keys = &self.place.shared.keys;
        let revoked = keys.revoked();
        if self.revoked != revoked {
            self.revoked = revoked;
            return self.caller.still_counts(keys);
        }
        true
    }

    fn say(&mut self, chunk: Arc<Chunk>, now: Instant) -> Step {
        self.spoken = Some(now);
        Step::Send(chunk)
    }

    fn next_news(&mut self, now: Instant) -> Result<News, StoreError> {
        let shared = &self.place.shared;
        let newest = shared.revision.newest();
        lock(&shared.tail).news(self.view, self.seen, newest, &shared.readers, now)
    }

    /// One page of what is older than the tail; `None` when nothing of it is shown.
    fn read_page(&mut self) -> Result<Option<Arc<Chunk>>, StoreError> {
        let shared = &self.place.shared;
        let mut past = lock(&shared.past);
        let place = (self.view, self.seen);
        if let Some((upto, chunk)) = past.known(place) {
            self.seen = upto;
            return Ok(chunk);
        }
        let reader = match past.reader.take() {
            Some(reader) => reader,
            None => shared.readers.own()?,
        };
        let upto = shared.revision.newest().min(self.seen.saturating_add(WINDOW));
        let page = read::events_between(&reader, self.seen, upto, &self.view.filter(PAGE))?;
        // After the page was read: what is gone now may have been missing in it.
        let oldest = read::oldest_event(&reader)?;
        past.reader = Some(reader);
        if oldest.is_some_and(|oldest| self.seen + 1 < oldest) {
            // A client that comes back gets 410, and where to go on.
            return Err(StoreError::Sqlite("events were pruned before they were sent".to_owned()));
        }
        let full = page.len() as u32 == PAGE;
        let page: Vec<Rendered> = page.into_iter().map(Rendered::from).collect();
        let (cut, text) = joined(page.iter());
        let last = page.last().filter(|_| full).map(|event| event.revision);
        // What the filter left out is seen too.
        self.seen = cut.or(last).unwrap_or(upto);
        let chunk = (!text.is_empty()).then(|| Chunk::new(text.as_bytes()));
        past.remember(place, (self.seen, chunk.clone()));
        Ok(chunk)
    }
}

impl Feed for Listener {
    fn next(&mut self, now: Instant) -> Step {
        if !self.counts() {
            return Step::End;
        }
        let Some(spoken) = self.spoken else {
            let listening = Arc::clone(&self.place.shared.listening);
            return self.say(listening, now);
        };
        match self.next_news(now) {
            Ok(News::Some(upto, chunk)) => {
                self.seen = upto;
                match chunk {
                    Some(chunk) => return self.say(chunk, now),
                    None if upto < self.place.shared.revision.newest() => return Step::Again,
                    None => {}
                }
            }
            Ok(News::Older) => return Step::CatchUp,
            Ok(News::Nothing) => {}
            Err(error) => log::debug!("could not read what to stream: {error}"),
        }
        if now.saturating_duration_since(spoken) < COMMENT_EVERY {
            return Step::Wait;
        }
        let comment = Arc::clone(&self.place.shared.comment);
        self.say(comment, now)
    }

    fn catch_up(&mut self, now: Instant) -> Step {
        match self.read_page() {
            Ok(Some(chunk)) => self.say(chunk, now),
            Ok(None) => Step::Wait,
            Err(error) => {
                log::debug!("an event stream ended: {error}");
                Step::End
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        lock(&self.place.shared.tail).leave();
    }
}

/// What a lock guards stays valid when a thread panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
