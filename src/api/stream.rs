//! Owns `GET /v1/events`: the history as server-sent events, resumable by revision.
//!
//! Never: drops an event silently (a cursor that is too old, or of a time that a
//! restore has undone, hears 410), holds up the
//! writer: it reads the database like every other reader.

use super::access::Caller;
use super::query::Query;
use super::view::EventView;
use super::{Problem, Ready, load_newest};
use crate::http::{Body, Request, Response, StreamWriter};
use crate::store::StoreError;
use crate::store::acceptance::is_undone;
use crate::store::keys::Keys;
use crate::store::read::{self, HistoryFilter, Readers};
use crate::store::writer::Revision;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time between two comments on a stream without events: shorter than the timeouts of
/// proxies, longer than what keeps a phone awake.
const COMMENT_EVERY: Duration = Duration::from_secs(15);

/// How long a stream waits for news before it looks whether the server stops.
const WAIT: Duration = Duration::from_secs(1);

/// Events read at a time: bounds the memory of one stream.
const PAGE: u32 = 200;

/// `GET /v1/events?after=REV&sandbox_id=&host_id=`
pub(super) fn events(
    ready: &Ready,
    caller: Caller,
    request: &Request,
) -> Result<Response, Problem> {
    let query = Query::read(&request.query)?;
    let filter = HistoryFilter {
        team: caller.team(),
        host: query.parsed("host_id")?,
        sandbox: query.parsed("sandbox_id")?,
        limit: PAGE,
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
    let feed = Feed {
        readers: ready.readers.clone(),
        revision: Arc::clone(&ready.revision),
        keys: Arc::clone(&ready.keys),
        caller,
        filter,
        seen,
    };
    let body = Body::Stream(Box::new(move |out| feed.run(out)));
    Ok(Response {
        status: 200,
        headers: vec![
            ("content-type", "text/event-stream".to_owned()),
            ("cache-control", "no-store".to_owned()),
        ],
        body,
    })
}

/// The oldest event that is kept, when some after `seen` are not.
fn is_gone(readers: &Readers, seen: u64) -> Result<Option<u64>, StoreError> {
    let oldest = read::oldest_event(&*readers.get()?)?;
    Ok(oldest.filter(|oldest| seen + 1 < *oldest))
}

struct Feed {
    readers: Readers,
    revision: Arc<Revision>,
    keys: Arc<Keys>,
    caller: Caller,
    filter: HistoryFilter,
    seen: u64,
}

impl Feed {
    fn run(mut self, out: &mut StreamWriter) {
        // A peer that is gone ends the stream; nobody else needs to know.
        if let Err(error) = self.feed(out) {
            log::debug!("an event stream ended: {error}");
        }
    }

    fn feed(&mut self, out: &mut StreamWriter) -> io::Result<()> {
        out.write(b": listening\n\n")?;
        let mut spoken = Instant::now();
        // A key that was revoked since hears no more.
        while !out.is_stopping() && self.caller.still_counts(&self.keys) {
            if self.send_page(out)? {
                spoken = Instant::now();
                continue;
            }
            if spoken.elapsed() >= COMMENT_EVERY {
                out.write(b":\n\n")?;
                spoken = Instant::now();
            }
            self.revision.wait_newer(self.seen, WAIT);
        }
        Ok(())
    }

    /// Sends what is new, at most one page; false when nothing is.
    fn send_page(&mut self, out: &mut StreamWriter) -> io::Result<bool> {
        let newest = self.revision.newest();
        if newest <= self.seen {
            return Ok(false);
        }
        let page = load_newest(&self.readers, self.seen, &self.filter).map_err(io::Error::other)?;
        // After the page was read: what is gone now may have been missing in it.
        if is_gone(&self.readers, self.seen).map_err(io::Error::other)?.is_some() {
            // Whoever comes back hears 410, and where to go on.
            return Err(io::Error::other("events were given up before they were sent"));
        }
        let full = page.len() as u32 == PAGE;
        let last = page.last().map(|event| event.revision);
        let mut text = String::new();
        for event in page {
            let (id, kind) = (event.revision, event.kind);
            let data = serde_json::to_string(&EventView::from(event))?;
            text.push_str(&format!("id: {id}\nevent: {kind}\ndata: {data}\n\n"));
        }
        // What the filter left out is seen too.
        self.seen = if full { last.unwrap_or(newest) } else { newest.max(last.unwrap_or(0)) };
        if !text.is_empty() {
            out.write(text.as_bytes())?;
        }
        Ok(true)
    }
}
