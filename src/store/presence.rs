//! Owns what is known of hosts between two flushes: who was heard when, whose contact had
//! a gap, who was deleted. Heartbeats end here and touch no disk.
//!
//! Never: judges a host (`plan::liveness`), blocks: the lock is held for a few map
//! operations. Shared by the HTTP intake, the scheduler and the writer.

use super::activity::Activity;
use super::unknown::UnknownHosts;
use crate::model::host::{AgentAddress, Host, Intent, Liveness, named};
use crate::model::id::{HostId, PLATFORM_TEAM, TeamId};
use crate::model::policy::{CONTACT_GAP, Policy};
use crate::model::probe::LastProbe;
use crate::model::time::{Mono, Now, Wall};
use crate::plan::liveness::Silence;
use std::collections::{HashMap, HashSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A clock that moved by more than this against the last flush is not believed.
pub const CLOCK_JUMP: Duration = Duration::from_secs(24 * 3600);

/// A clock that runs steadily for so long after a jump is trusted again. Larger: expired
/// tokens count for longer; smaller: the agents of a small machine without a clock battery
/// have no time to renew theirs.
pub const CLOCK_TRUSTED_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Shortest time between two entries of history on spent tokens of one host. Larger: a thief
/// who comes again goes unseen; smaller: one with a loop fills the database.
const REUSE_GAP: Duration = Duration::from_secs(3600);

/// How long an agent waits for the answer to a heartbeat. Larger and gaps stay open for
/// longer; smaller and a heartbeat that was given up long ago counts twice.
const HEARTBEAT_PATIENCE: Duration = Duration::from_secs(10);

/// How a heartbeat is to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beat {
    /// A host of ours. `wake`: somebody must look at it now, because it was silent.
    Known {
        /// It was unreachable or its silence had become a contact gap.
        wake: bool,
    },
    /// A host that was deleted on purpose.
    Deleted,
    /// Nobody we know.
    Unknown,
}

/// What the scheduler and the API need of one host between flushes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostNow {
    /// Whose.
    pub id: HostId,
    /// Registered and not set aside.
    pub active: bool,
    /// What the operator wants.
    pub intent: Intent,
    /// What the database says.
    pub liveness: Liveness,
    /// Where its agent listens.
    pub address: Option<AgentAddress>,
    /// Revision of its newest registration.
    pub registration: u64,
    /// Heard since we started.
    pub heard_at: Option<Mono>,
    /// Time of the last heartbeat, flushed or not.
    pub last_heartbeat_at: Option<Wall>,
}

/// What is known of an agent that was silent for long. One heartbeat alone may have waited on
/// its way while its agent gave it up, and pauses everything now: the next one is sent only
/// when that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Silenced {
    /// It was not, or its silence is over.
    Over,
    /// Not heard since.
    Silent,
    /// Heard once.
    Once(Mono),
}

#[derive(Debug)]
struct Entry {
    now: HostNow,
    /// Last contact for judging gaps: a heartbeat, or what the database remembered.
    contact_at: Option<Mono>,
    /// A gap opened and no observation has closed it.
    gap: bool,
    /// When a report was last refused; an observation asked for later closes the gap.
    refused_at: Option<Mono>,
    /// Whether that gap is one of silence, and what was heard since.
    silence: Silenced,
    /// What was absent behind a gap, which is closed, waits for another look.
    waits: bool,
    /// When an observation was last applied.
    observed_at: Mono,
    /// When a spent refresh token of it was last recorded.
    reuse_at: Option<Mono>,
    /// Something changed since the last flush.
    dirty: bool,
    last_probe: Option<LastProbe>,
    found: Found,
}

/// What the last observation of a host found beside what was applied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    /// Confirmed zombies, forgotten sandboxes included.
    pub zombies: usize,
    /// Sandboxes that belong to other hosts.
    pub misplaced: usize,
    /// Sandboxes whose stop is held.
    pub held: usize,
}

/// What is known of all watched hosts together, without the database.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overview {
    /// Age of the oldest newest heartbeat among hosts that are not unreachable.
    pub heartbeat_age_max: Duration,
    /// Time since an observation was applied, the longest among hosts that are probed.
    pub observation_age_max: Duration,
    /// Hosts whose agents may have paused everything unannounced.
    pub contact_gaps: u64,
    /// Confirmed zombies on all hosts.
    pub zombies: u64,
    /// Sandboxes that hosts have although they belong to others.
    pub misplaced: u64,
    /// Sandboxes whose stop is held on all hosts.
    pub held: u64,
}

#[derive(Debug, Default)]
struct Inner {
    hosts: HashMap<HostId, Entry>,
    deleted: HashSet<HostId>,
    /// Whose a host is, or was until it was deleted.
    teams: HashMap<HostId, TeamId>,
    listening_since: Mono,
    /// Since when the clock has been suspect, if it ever was.
    clock_suspect_since: Option<Mono>,
}

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Presence {
    inner: Mutex<Inner>,
    /// A probe was noted, or a host deleted.
    news: Condvar,
    /// When sandboxes were last used.
    pub activity: Activity,
    /// Hosts that send heartbeats and are not known.
    pub unknown: UnknownHosts,
}

/// What one flush has to write for one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flushed {
    pub(super) id: HostId,
    pub(super) last_heartbeat_at: Option<Wall>,
    pub(super) contact_gap: bool,
}

impl Presence {
    /// Starts from what the database remembers. `listened_until` is the last flush; `served`
    /// says that a server has worked on it before: while we were down, cleanly stopped or not,
    /// no report could reach us.
    pub fn load(
        hosts: &[Host],
        deleted: impl IntoIterator<Item = HostId>,
        listened_until: Option<Wall>,
        served: bool,
        now: Now,
    ) -> Presence {
        let presence = Presence::default();
        {
            let mut inner = presence.lock();
            inner.listening_since = now.mono;
            inner.deleted = deleted.into_iter().collect();
            let jumped = listened_until.is_some_and(|flushed| is_jump(flushed, now.wall));
            inner.clock_suspect_since = jumped.then_some(now.mono);
            for host in hosts {
                let mut entry = Entry::remembered(host, now);
                entry.gap |= served;
                inner.hosts.insert(host.id, entry);
                inner.teams.insert(host.id, host.team_id);
            }
        }
        presence
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every critical section leaves the maps whole, so a panic elsewhere is no reason to stop.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a heartbeat.
    pub fn heartbeat(&self, host: HostId, now: Now) -> Beat {
        let mut inner = self.lock();
        if inner.deleted.contains(&host) {
            return Beat::Deleted;
        }
        let Some(entry) = inner.hosts.get_mut(&host) else { return Beat::Unknown };
        let opened = entry.silent_too_long(now.mono);
        entry.gap |= opened;
        // Before we were started nothing was sent to us.
        if opened && entry.now.heard_at.is_some() {
            entry.silence = Silenced::Silent;
        }
        entry.silence = entry.silence.heard(now.mono);
        entry.now.heard_at = Some(now.mono);
        entry.contact_at = Some(now.mono);
        entry.now.last_heartbeat_at = Some(now.wall);
        entry.dirty = true;
        let wake = entry.now.active && (opened || entry.now.liveness == Liveness::Unreachable);
        Beat::Known { wake }
    }

    /// Whether the host is known and, if so, whether it was deleted. Counts no heartbeat.
    pub fn lookup(&self, host: HostId) -> Beat {
        let inner = self.lock();
        if inner.deleted.contains(&host) {
            Beat::Deleted
        } else if inner.hosts.contains_key(&host) {
            Beat::Known { wake: false }
        } else {
            Beat::Unknown
        }
    }

    /// Whether a host has registered again since this registration. One that is newer than
    /// the database knows of was made before a restore from a backup.
    pub fn is_superseded(&self, host: HostId, registration: u64) -> bool {
        self.lock().hosts.get(&host).is_some_and(|entry| registration < entry.now.registration)
    }

    /// Whether this database has the host, or has had it.
    pub fn is_recorded(&self, host: HostId) -> bool {
        self.lookup(host) != Beat::Unknown
    }

    /// Whether this database knows no host at all, not even a deleted one.
    pub fn is_empty(&self) -> bool {
        let inner = self.lock();
        inner.hosts.is_empty() && inner.deleted.is_empty()
    }

    /// Every host that is known, in no order.
    pub fn ids(&self) -> Vec<HostId> {
        self.lock().hosts.keys().copied().collect()
    }

    /// One host.
    pub fn get(&self, host: HostId) -> Option<HostNow> {
        self.lock().hosts.get(&host).map(|entry| entry.now.clone())
    }

    /// A host as messages name it.
    pub fn named(&self, host: HostId) -> String {
        let inner = self.lock();
        named(host, inner.hosts.get(&host).and_then(|entry| entry.now.address.as_ref()))
    }

    /// Whose a host is; also one that was deleted since we started.
    pub fn team_of(&self, host: HostId) -> TeamId {
        self.lock().teams.get(&host).copied().unwrap_or(PLATFORM_TEAM)
    }

    /// All active hosts, in no order.
    pub fn active(&self) -> Vec<HostNow> {
        let inner = self.lock();
        let active = inner.hosts.values().filter(|entry| entry.now.active);
        active.map(|entry| entry.now.clone()).collect()
    }

    /// The silence of every active host for `plan::liveness`, with what was heard when it
    /// was measured. In strict policy stored times count as they are; otherwise silence
    /// counts only while we listen.
    pub fn silences(&self, now: Now, policy: &Policy) -> Vec<(HostId, Option<Mono>, Silence)> {
        let inner = self.lock();
        let since = inner.listening_since;
        let active = inner.hosts.values().filter(|entry| entry.now.active);
        let silence = |entry: &Entry| {
            let span = match (entry.now.heard_at, policy.is_strict()) {
                (Some(heard), true) => Some(now.mono.since(heard)),
                (None, true) => entry.now.last_heartbeat_at.map(|at| now.wall.since(at)),
                (heard, false) => Some(now.mono.since(heard.unwrap_or(since).max(since))),
            };
            let unreachable = entry.now.liveness == Liveness::Unreachable;
            (entry.now.id, entry.now.heard_at, Silence { span, unreachable })
        };
        active.map(silence).collect()
    }

    /// Notes what the last probe of a host brought, for people to see.
    pub fn note_probe(&self, host: HostId, probe: LastProbe) {
        if let Some(entry) = self.lock().hosts.get_mut(&host) {
            entry.last_probe = Some(probe);
        }
        self.news.notify_all();
    }

    /// Notes what an observation of a host found.
    pub fn note_found(&self, host: HostId, found: Found) {
        if let Some(entry) = self.lock().hosts.get_mut(&host) {
            entry.found = found;
        }
    }

    /// What is known of all watched hosts together.
    pub fn overview(&self, now: Now, probe_interval: Duration) -> Overview {
        let inner = self.lock();
        let mut all = Overview::default();
        for entry in inner.hosts.values().filter(|entry| entry.now.active) {
            all.contact_gaps += u64::from(entry.gap_by(now.mono, probe_interval));
            all.zombies += entry.found.zombies as u64;
            all.misplaced += entry.found.misplaced as u64;
            all.held += entry.found.held as u64;
            if entry.now.liveness == Liveness::Alive {
                all.heartbeat_age_max = all.heartbeat_age_max.max(entry.heartbeat_age(now));
                if entry.now.address.is_some() {
                    let age = now.mono.since(entry.observed_at);
                    all.observation_age_max = all.observation_age_max.max(age);
                }
            }
        }
        all
    }

    /// Waits until a probe of the host that was asked at `since` or later is noted, or the
    /// host is deleted, or the patience is over; gives that probe.
    pub fn wait_probe(&self, host: HostId, since: Mono, patience: Duration) -> Option<LastProbe> {
        let waits = |inner: &mut Inner| {
            let entry = inner.hosts.get(&host);
            entry.is_some_and(|entry| entry.probe_since(since).is_none())
        };
        let waited = self.news.wait_timeout_while(self.lock(), patience, waits);
        let inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        inner.hosts.get(&host).and_then(|entry| entry.probe_since(since)).cloned()
    }

    /// What the last probe of a host brought since we started.
    pub fn last_probe(&self, host: HostId) -> Option<LastProbe> {
        self.lock().hosts.get(&host).and_then(|entry| entry.last_probe.clone())
    }

    /// How long we have listened without a break.
    pub fn listening(&self, now: Mono) -> Duration {
        now.since(self.lock().listening_since)
    }

    /// Begins to listen anew: after a suspend, a clock jump, or when a mass guard ends.
    /// `gap`: the break was long enough for agents to have paused everything.
    pub fn listen_anew(&self, now: Mono, gap: bool) {
        let mut inner = self.lock();
        inner.listening_since = now;
        for entry in inner.hosts.values_mut().filter(|_| gap) {
            entry.gap = true;
            entry.silence = Silenced::Silent;
            entry.dirty = true;
        }
    }

    /// A spent refresh token of this host was shown; whether that is to be recorded.
    pub(super) fn note_reuse(&self, host: HostId, now: Mono) -> bool {
        let mut inner = self.lock();
        let Some(entry) = inner.hosts.get_mut(&host) else { return false };
        let is_due = entry.reuse_at.is_none_or(|at| now.since(at) >= REUSE_GAP);
        if is_due {
            entry.reuse_at = Some(now);
        }
        is_due
    }

    /// An answer of this host was lost: what it announced will not be said again.
    pub(super) fn answer_lost(&self, host: HostId) {
        if let Some(entry) = self.lock().hosts.get_mut(&host) {
            entry.gap = true;
            entry.dirty = true;
        }
    }

    /// A report of this host could not be accepted, and its agent will not say it again: it
    /// is a contact gap until an observation asked for later.
    pub fn report_refused(&self, host: HostId, now: Mono) {
        if let Some(entry) = self.lock().hosts.get_mut(&host) {
            entry.refused_at = Some(now);
            entry.gap = true;
            entry.dirty = true;
        }
    }

    /// The machine slept for `span`: the clock for measuring stood still, but the silence
    /// between agents and us went on.
    pub fn slept(&self, now: Mono, span: Duration) {
        let mut inner = self.lock();
        for entry in inner.hosts.values_mut() {
            // The origin of the clock may be nearer than the sleep was long.
            let contact_at = entry.contact_at.filter(|_| span < CONTACT_GAP);
            entry.contact_at = contact_at.map(|at| at.before(span));
            entry.observed_at = entry.observed_at.before(span);
            if entry.silent_too_long(now) {
                entry.gap = true;
                entry.silence = Silenced::Silent;
                entry.dirty = true;
            }
        }
    }

    /// Whether an expired but genuine token must be accepted, because the clock moved by
    /// more than a day against the last flush, or back. It is trusted again after a day of
    /// steady running: a wrong clock is set right by then, which makes it suspect anew.
    pub fn clock_is_suspect(&self, now: Mono) -> bool {
        let since = self.lock().clock_suspect_since;
        since.is_some_and(|since| now.since(since) <= CLOCK_TRUSTED_AFTER)
    }

    /// Says that the clock jumped while we ran.
    pub fn suspect_clock(&self, now: Mono) {
        self.lock().clock_suspect_since = Some(now);
    }

    /// Whether the agent may have paused everything unannounced since the last applied
    /// observation: either side was silent to the other for two beats, or we were away.
    pub fn has_contact_gap(&self, host: HostId, now: Mono, policy: &Policy) -> bool {
        self.lock().hosts.get(&host).is_none_or(|entry| entry.has_gap(now, policy))
    }

    /// An observation asked for at `asked_at` was applied. It closes a gap only when the
    /// agent was heard before it was asked and after the gap, and after a silence for the
    /// second time: agents pause everything *before* they beat again, and a listing taken
    /// meanwhile says nothing of the rest.
    /// While something that was absent behind the gap `waits` for another look, the database
    /// remembers the gap: a restart forgets what waits.
    pub(super) fn observed(&self, host: HostId, asked_at: Mono, now: Mono, waits: bool) {
        let mut inner = self.lock();
        let Some(entry) = inner.hosts.get_mut(&host) else { return };
        entry.observed_at = now;
        entry.dirty |= entry.waits != waits;
        entry.waits = waits;
        let heard_before = entry.now.heard_at.is_some_and(|heard| heard <= asked_at);
        let after_refusal = entry.refused_at.is_none_or(|refused| refused < asked_at);
        let is_heard = heard_before && entry.silence == Silenced::Over;
        if entry.gap && is_heard && after_refusal && !entry.silent_too_long(now) {
            (entry.gap, entry.refused_at) = (false, None);
            entry.dirty = true;
        }
    }

    /// Sets the host unreachable unless it was heard after `heard_at`. Returns whether it
    /// was set; the writer takes it back when its transaction fails.
    pub(super) fn set_unreachable_unless_heard(
        &self,
        host: HostId,
        heard_at: Option<Mono>,
    ) -> bool {
        let mut inner = self.lock();
        let Some(entry) = inner.hosts.get_mut(&host) else { return false };
        let now = &mut entry.now;
        let still = now.active && now.heard_at == heard_at && now.liveness == Liveness::Alive;
        if still {
            now.liveness = Liveness::Unreachable;
        }
        still
    }

    /// Takes over what the database says of a host after a commit.
    pub(super) fn update(&self, host: &Host, now: Now) {
        let mut inner = self.lock();
        inner.teams.insert(host.id, host.team_id);
        let entry = inner.hosts.entry(host.id).or_insert_with(|| Entry::remembered(host, now));
        entry.now.active = host.is_active();
        entry.now.intent = host.intent;
        entry.now.liveness = host.liveness;
        entry.now.address = host.address.clone();
        entry.now.registration = entry.now.registration.max(host.registration);
    }

    /// A registration is contact like a heartbeat.
    pub(super) fn registered(&self, host: &Host, now: Now) {
        self.update(host, now);
        let mut inner = self.lock();
        if let Some(entry) = inner.hosts.get_mut(&host.id) {
            entry.gap |= entry.silent_too_long(now.mono);
            entry.silence = Silenced::Over;
            entry.now.heard_at = Some(now.mono);
            entry.contact_at = Some(now.mono);
            entry.now.last_heartbeat_at = Some(now.wall);
            entry.dirty = true;
        }
    }

    /// Forgets a host that was deleted, but for its id: its agent must be told.
    pub(super) fn delete(&self, host: HostId) {
        let mut inner = self.lock();
        inner.hosts.remove(&host);
        inner.deleted.insert(host);
        drop(inner);
        self.news.notify_all();
    }

    pub(super) fn set_liveness(&self, host: HostId, liveness: Liveness) {
        if let Some(entry) = self.lock().hosts.get_mut(&host) {
            entry.now.liveness = liveness;
        }
    }

    /// What has to be written; marks it as written. The writer gives it back with
    /// [`Presence::unflushed`] when its transaction fails.
    pub(super) fn take_dirty(&self, now: Mono, policy: &Policy) -> Vec<Flushed> {
        let mut inner = self.lock();
        let dirty = inner.hosts.values_mut().filter(|entry| entry.dirty);
        dirty
            .map(|entry| {
                entry.dirty = false;
                Flushed {
                    id: entry.now.id,
                    last_heartbeat_at: entry.now.last_heartbeat_at,
                    contact_gap: entry.waits || entry.has_gap(now, policy),
                }
            })
            .collect()
    }

    pub(super) fn unflushed(&self, hosts: &[Flushed]) {
        self.activity.unflushed();
        self.unknown.unflushed();
        let mut inner = self.lock();
        for flushed in hosts {
            if let Some(entry) = inner.hosts.get_mut(&flushed.id) {
                entry.dirty = true;
            }
        }
    }
}

impl Silenced {
    fn heard(self, now: Mono) -> Silenced {
        match self {
            Silenced::Silent => Silenced::Once(now),
            Silenced::Once(first) if now.since(first) >= HEARTBEAT_PATIENCE => Silenced::Over,
            Silenced::Over | Silenced::Once(_) => self,
        }
    }
}

impl Entry {
    fn remembered(host: &Host, now: Now) -> Entry {
        // A heartbeat from the future tells of a clock that moved: no contact to rely on.
        let age = host.last_heartbeat_at.filter(|at| *at <= now.wall).map(|at| now.wall.since(at));
        let recent = age.filter(|age| *age < CONTACT_GAP);
        // Before the origin of the clock cannot be said; the gap then opens a little late.
        let contact_at = recent.map(|age| now.mono.before(age));
        Entry {
            now: HostNow {
                id: host.id,
                active: host.is_active(),
                intent: host.intent,
                liveness: host.liveness,
                address: host.address.clone(),
                registration: host.registration,
                heard_at: None,
                last_heartbeat_at: host.last_heartbeat_at,
            },
            contact_at,
            gap: host.contact_gap || contact_at.is_none(),
            refused_at: None,
            reuse_at: None,
            silence: Silenced::Over,
            waits: false,
            observed_at: now.mono,
            dirty: false,
            last_probe: None,
            found: Found::default(),
        }
    }

    fn has_gap(&self, now: Mono, policy: &Policy) -> bool {
        self.gap_by(now, policy.probe_interval)
    }

    fn gap_by(&self, now: Mono, probe_interval: Duration) -> bool {
        // An observation is due every interval, with a tenth of jitter.
        let question_overdue = probe_interval * 11 / 10 + CONTACT_GAP;
        self.gap || self.silent_too_long(now) || now.since(self.observed_at) >= question_overdue
    }

    fn heartbeat_age(&self, now: Now) -> Duration {
        let stored = || self.now.last_heartbeat_at.map_or(Duration::ZERO, |at| now.wall.since(at));
        self.now.heard_at.map_or_else(stored, |heard| now.mono.since(heard))
    }

    fn probe_since(&self, since: Mono) -> Option<&LastProbe> {
        self.last_probe.as_ref().filter(|probe| probe.asked_at >= since)
    }

    fn silent_too_long(&self, now: Mono) -> bool {
        self.contact_at.is_none_or(|at| now.since(at) >= CONTACT_GAP)
    }
}

/// Whether the wall clock cannot be believed against the time of the last flush.
fn is_jump(flushed: Wall, now: Wall) -> bool {
    now < flushed || now.since(flushed) > CLOCK_JUMP
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::PLATFORM_TEAM;

    const START: u64 = 1_000_000;

    fn at(s: u64) -> Now {
        Now { mono: Mono(START + s * 1000), wall: Wall((START + s * 1000) as i64) }
    }

    fn host(age_s: Option<i64>) -> Host {
        Host {
            id: HostId::from_u128(1),
            team_id: PLATFORM_TEAM,
            kind: "regular".into(),
            provider: None,
            availability_zone: None,
            arch: None,
            cpu_cores: None,
            memory_mb: None,
            disk_gb: None,
            address: None,
            intent: Intent::Active,
            liveness: Liveness::Alive,
            registered_at: Some(Wall(0)),
            rejoining: false,
            degraded: false,
            contact_gap: false,
            last_heartbeat_at: age_s.map(|s| Wall(START as i64 - s * 1000)),
            probe_failure: None,
            revision: 0,
            created_at: Wall(0),
            updated_at: Wall(0),
            registration: 0,
        }
    }

    fn presence(age_s: Option<i64>) -> (Presence, HostId) {
        (Presence::load(&[host(age_s)], [], None, false, at(0)), HostId::from_u128(1))
    }

    fn gap(presence: &Presence, s: u64) -> bool {
        presence.has_contact_gap(HostId::from_u128(1), at(s).mono, &Policy::default())
    }

    #[test]
    fn the_stored_age_alone_tells_of_a_gap_before_the_start() {
        assert!(!gap(&presence(Some(5)).0, 0));
        assert!(!gap(&presence(Some(59)).0, 0));
        assert!(gap(&presence(Some(60)).0, 0));
        assert!(gap(&presence(Some(5)).0, 55), "still silent");
        assert!(gap(&presence(None).0, 0));
        assert!(gap(&presence(Some(-5)).0, 0), "a heartbeat from the future");
    }

    #[test]
    fn what_was_lost_is_a_gap() {
        let (presence, id) = presence(Some(5));
        presence.heartbeat(id, at(1));
        presence.answer_lost(id);
        assert!(gap(&presence, 2));
        presence.observed(id, at(3).mono, at(4).mono, false);
        assert!(!gap(&presence, 4));
        let interrupted = Presence::load(&[host(Some(5))], [], None, true, at(0));
        assert!(gap(&interrupted, 0));
    }

    #[test]
    fn a_refused_report_is_a_gap_until_an_observation_asked_for_later() {
        let (presence, id) = presence(Some(5));
        presence.heartbeat(id, at(1));
        presence.report_refused(id, at(3).mono);
        presence.observed(id, at(2).mono, at(4).mono, false);
        assert!(gap(&presence, 4), "asked for before the report");
        presence.report_refused(id, at(5).mono);
        presence.observed(id, at(5).mono, at(6).mono, false);
        assert!(gap(&presence, 6), "at the same moment");
        presence.observed(id, at(7).mono, at(8).mono, false);
        assert!(!gap(&presence, 8));
    }

    #[test]
    fn a_gap_is_closed_by_an_answer_asked_after_a_heartbeat_only() {
        let (presence, id) = presence(Some(600));
        presence.observed(id, at(1).mono, at(1).mono, false);
        assert!(gap(&presence, 1), "the agent may be pausing this very moment");
        assert_eq!(presence.heartbeat(id, at(10)), Beat::Known { wake: true });
        presence.observed(id, at(9).mono, at(11).mono, false);
        assert!(gap(&presence, 11), "asked before it was heard");
        presence.observed(id, at(12).mono, at(13).mono, false);
        assert!(!gap(&presence, 13));
        assert_eq!(presence.heartbeat(id, at(40)), Beat::Known { wake: false });
    }

    /// What an agent gave up on arrives when the way is free again, and it pauses everything
    /// at that moment.
    #[test]
    fn a_silence_is_over_at_the_second_heartbeat() {
        let (presence, id) = presence(Some(5));
        presence.heartbeat(id, at(1));
        presence.observed(id, at(2).mono, at(2).mono, false);
        assert!(!gap(&presence, 2), "heard once since the start");
        for (s, expected) in [(100, true), (101, true), (131, false), (161, false)] {
            presence.heartbeat(id, at(s));
            presence.observed(id, at(s).mono, at(s + 1).mono, false);
            assert_eq!(gap(&presence, s + 1), expected, "{s}");
        }
        presence.heartbeat(id, at(300));
        let host = Host { last_heartbeat_at: None, ..host(None) };
        presence.registered(&host, at(301));
        presence.observed(id, at(302).mono, at(302).mono, false);
        assert!(!gap(&presence, 302), "an agent that registers waits for the answer");
    }

    #[test]
    fn silence_goes_on_while_we_sleep() {
        let (presence, id) = presence(Some(5));
        let slept = |s, span_s| presence.slept(at(s).mono, Duration::from_secs(span_s));
        presence.heartbeat(id, at(10));
        slept(20, 49);
        assert!(!gap(&presence, 20), "59 s");
        slept(20, 1);
        assert!(gap(&presence, 20));
        presence.observed(id, at(20).mono, at(21).mono, false);
        assert!(gap(&presence, 21), "not heard since");
        assert_eq!(presence.heartbeat(id, at(22)), Beat::Known { wake: true });
        presence.heartbeat(id, at(52));
        presence.observed(id, at(52).mono, at(53).mono, false);
        assert!(!gap(&presence, 53));
        slept(54, 4_000_000);
        presence.observed(id, at(54).mono, at(55).mono, false);
        assert!(gap(&presence, 55), "longer than the machine was awake");
    }

    #[test]
    fn unanswered_questions_are_a_gap_too() {
        let (presence, id) = presence(Some(5));
        for s in (0..200).step_by(30) {
            presence.heartbeat(id, at(s));
        }
        assert!(!gap(&presence, 125));
        assert!(gap(&presence, 126), "66 s for the next question, 60 s of silence");
        let flushed = |s| presence.take_dirty(at(s).mono, &Policy::default())[0].contact_gap;
        assert!(flushed(126), "a restart must not forget it");
        presence.observed(id, at(130).mono, at(130).mono, false);
        presence.heartbeat(id, at(131));
        assert!(!flushed(131));
    }

    #[test]
    fn a_gap_is_remembered_until_what_was_absent_behind_it_is_decided() {
        let (presence, id) = presence(Some(5));
        let flushed = |s| presence.take_dirty(at(s).mono, &Policy::default())[0].contact_gap;
        presence.heartbeat(id, at(0));
        presence.answer_lost(id);
        presence.observed(id, at(1).mono, at(2).mono, true);
        assert!(!gap(&presence, 2), "what vanishes from now on does so behind no gap");
        assert!(flushed(2), "the second look may be one after a restart");
        presence.observed(id, at(5).mono, at(6).mono, false);
        assert!(!flushed(6));
    }

    #[test]
    fn a_heartbeat_in_between_spoils_the_verdict() {
        let (presence, id) = presence(Some(5));
        let heard = presence.silences(at(100), &Policy::default())[0].1;
        presence.heartbeat(id, at(100));
        assert!(!presence.set_unreachable_unless_heard(id, heard));
        let heard = presence.silences(at(200), &Policy::default())[0].1;
        assert!(presence.set_unreachable_unless_heard(id, heard));
        assert!(!presence.set_unreachable_unless_heard(id, heard), "once");
        assert_eq!(presence.heartbeat(id, at(201)), Beat::Known { wake: true });
    }

    #[test]
    fn silence_counts_only_while_we_listen_except_in_strict() {
        let (presence, _) = presence(Some(5000));
        let span = |s, policy: &Policy| presence.silences(at(s), policy)[0].2.span;
        assert_eq!(span(7, &Policy::default()), Some(Duration::from_secs(7)));
        assert_eq!(span(7, &Policy::strict()), Some(Duration::from_secs(5007)));
        presence.listen_anew(at(10).mono, false);
        assert_eq!(span(12, &Policy::default()), Some(Duration::from_secs(2)));
    }

    const DAY_S: u64 = 24 * 3600;

    #[test]
    fn a_clock_that_jumped_is_suspect() {
        let suspect = |flushed_s: i64| {
            let flushed = Wall(START as i64 + flushed_s * 1000);
            let presence = Presence::load(&[], [], Some(flushed), false, at(0));
            presence.clock_is_suspect(at(0).mono)
        };
        assert!(!suspect(-3600));
        assert!(suspect(-25 * 3600));
        assert!(suspect(1));
    }

    #[test]
    fn a_suspect_clock_is_trusted_again_after_a_day_of_steady_running() {
        let flushed = Some(Wall(START as i64 + 1000));
        let presence = Presence::load(&[], [], flushed, false, at(0));
        let suspect = |s: u64| presence.clock_is_suspect(at(s).mono);
        assert!(suspect(DAY_S));
        assert!(!suspect(DAY_S + 1));
        presence.suspect_clock(at(2 * DAY_S).mono);
        assert!(suspect(3 * DAY_S), "it jumped again");
        assert!(!suspect(3 * DAY_S + 1));
        presence.listen_anew(at(3 * DAY_S + 2).mono, true);
        assert!(!suspect(3 * DAY_S + 2), "a pause is no jump");
    }

    #[test]
    fn deleted_and_unknown_hosts_are_told_apart() {
        let deleted = HostId::from_u128(2);
        let presence = Presence::load(&[host(Some(5))], [deleted], None, false, at(0));
        assert_eq!(presence.heartbeat(deleted, at(0)), Beat::Deleted);
        assert_eq!(presence.heartbeat(HostId::from_u128(3), at(0)), Beat::Unknown);
    }
}
