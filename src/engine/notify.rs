//! Owns the threads that announce: one that looks for what is wrong whenever something
//! happened, and one for each target, so that a slow one delays nobody.
//!
//! Never: decides what is announced (`plan::notify`, inside the writer), keeps a message
//! anywhere but in the database. A message is sent until the target takes it, it refuses it
//! for good, or a day is over; who is killed between sending and noting sends it again,
//! under the same id.

use super::deliver::{self, DEADLINE, Undelivered};
use crate::api::Pulse;
use crate::api::notify::{Notify, TargetState, Tested};
use crate::clock::Clock;
use crate::config::{Config, Target};
use crate::logging::SECRET_THREAD;
use crate::model::time::Wall;
use crate::plan::notify::Rules;
use crate::store::StoreError;
use crate::store::notify::{
    self, Delivery, GIVE_UP_AFTER, Guard, Listener, Lookout, Noticed, OUTBOX_MAX,
};
use crate::store::read::Readers;
use crate::store::writer::{Command, WriterHandle};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};
use ring::rand::{SecureRandom, SystemRandom};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Shortest time between two looks. Longer: news wait; shorter: a busy fleet's writer is
/// asked for little else.
const LOOK_GAP: Duration = Duration::from_millis(250);

/// Longest time between two looks while something is wrong: that zombies are gone rings no
/// bell.
const LOOK_WHILE_OPEN: Duration = Duration::from_secs(5);

/// Longest time between two looks while nothing is.
const LOOK_ANYWAY: Duration = Duration::from_secs(60);

/// First wait after a failed attempt; doubles with each.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);

/// Longest wait between two attempts. Longer: a target that is back hears late; shorter: a
/// dead one is knocked at for nothing.
const BACKOFF_MAX: Duration = Duration::from_secs(300);

/// Stack of each thread: TLS and SQLite's reads.
const STACK_BYTES: usize = 512 * 1024;

/// What the threads need of the rest.
#[derive(Clone)]
pub(super) struct Sources {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) writer: WriterHandle,
    pub(super) readers: Readers,
    pub(super) pulse: Arc<Pulse>,
}

/// What the thread that looks is told.
pub(super) enum NotifyMail {
    /// Other settings count from now on.
    Reload(Box<Config>),
    /// Nobody is told any more.
    Stop,
}

/// The targets as they are now, and how they fared.
#[derive(Default)]
pub(super) struct Roll {
    posts: Mutex<Vec<Arc<Post>>>,
}

impl Roll {
    fn posts(&self) -> MutexGuard<'_, Vec<Arc<Post>>> {
        self.posts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One target.
struct Post {
    target: Target,
    state: Mutex<TargetState>,
}

impl Post {
    fn new(target: Target) -> Post {
        let state = TargetState {
            name: target.name.clone(),
            kind: target.kind.as_str(),
            sent: 0,
            failed: 0,
            given_up: 0,
            sent_at: None,
            error: None,
        };
        Post { target, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, TargetState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a section of a newer configuration means the same.
    fn is(&self, target: &Target) -> bool {
        let moved = Target { source: target.source.clone(), ..self.target.clone() };
        moved == *target
    }
}

/// A target and the thread that serves it; the thread ends when the bell is dropped.
struct Served {
    post: Arc<Post>,
    bell: Sender<()>,
}

/// Looks and decides; see the head of this file.
pub(super) struct Notifier {
    sources: Sources,
    roll: Arc<Roll>,
    served: Vec<Served>,
    rules: Rules,
}

impl Notifier {
    pub(super) fn new(sources: Sources, roll: Arc<Roll>, config: &Config) -> Notifier {
        let mut notifier = Notifier { sources, roll, served: Vec::new(), rules: rules_of(config) };
        notifier.take(config);
        notifier
    }

    /// Takes over targets; who is the same goes on as before.
    fn take(&mut self, config: &Config) {
        self.rules = rules_of(config);
        let mut before = std::mem::take(&mut self.served);
        for target in &config.targets {
            let same = before.iter().position(|served| served.post.is(target));
            match same {
                Some(at) => self.served.push(before.swap_remove(at)),
                None => self.served.extend(self.start(target)),
            }
        }
        for gone in &before {
            log::info!("notifications to {} end", gone.post.target.name);
        }
        *self.roll.posts() = self.served.iter().map(|s| Arc::clone(&s.post)).collect();
    }

    fn start(&self, target: &Target) -> Option<Served> {
        let secrets = [Some(&target.url), target.secret.as_ref(), target.token.as_ref()];
        for error in secrets.into_iter().flatten().filter_map(|secret| secret.reveal().err()) {
            log::error!("notifications to {} cannot be sent: {error}", target.name);
        }
        let post = Arc::new(Post::new(target.clone()));
        let (bell, rung) = bounded(1);
        let carrier = Carrier { post: Arc::clone(&post), sources: self.sources.clone() };
        let thread = std::thread::Builder::new().name(SECRET_THREAD.to_owned());
        match thread.stack_size(STACK_BYTES).spawn(move || carrier.run(&rung)) {
            Ok(_) => {
                log::info!("notifications go to {} ({})", target.name, target.kind);
                Some(Served { post, bell })
            }
            Err(error) => {
                log::error!("could not start a thread for {}: {error}", target.name);
                None
            }
        }
    }

    pub(super) fn run(mut self, rung: &Receiver<()>, mail: &Receiver<NotifyMail>) {
        let mut next_at: Option<Wall> = None;
        loop {
            let now = self.sources.clock.now();
            let is_due = next_at.is_some_and(|at| at <= now.wall);
            let noticed = self.look(is_due);
            let wait = match &noticed {
                Ok(noticed) => {
                    next_at = noticed.next_at;
                    self.wait_after(noticed)
                }
                Err(StoreError::Stopped) => return,
                Err(error) => {
                    log::error!("could not look for what to announce: {error}");
                    LOOK_WHILE_OPEN
                }
            };
            let gap = crossbeam_channel::after(LOOK_GAP);
            let late = crossbeam_channel::after(wait);
            let news = select! {
                recv(mail) -> news => Some(news),
                recv(rung) -> _ => None,
                recv(late) -> _ => None,
            };
            // Looks keep their distance, but nobody waits for a stop.
            let news = news.or_else(|| {
                select! {
                    recv(mail) -> news => Some(news),
                    recv(gap) -> _ => None,
                }
            });
            match news {
                Some(Ok(NotifyMail::Reload(config))) => self.take(&config),
                Some(Ok(NotifyMail::Stop) | Err(_)) => return,
                None => {}
            }
        }
    }

    fn look(&self, is_due: bool) -> Result<Noticed, StoreError> {
        let listeners = self.served.iter().map(|served| Listener {
            name: served.post.target.name.clone(),
            kinds: served.post.target.events.clone(),
        });
        let guard = match self.sources.pulse.held.load(Ordering::Relaxed) {
            Pulse::NOT_JUDGED => Guard::Unknown,
            0 => Guard::Free,
            hosts => Guard::Holding(hosts),
        };
        let lookout = Lookout { rules: self.rules, listeners: listeners.collect(), guard, is_due };
        let now = self.sources.clock.now();
        self.sources.writer.call(now, |reply| Command::Notice(Box::new(lookout), reply))
    }

    fn wait_after(&self, noticed: &Noticed) -> Duration {
        if noticed.queued {
            // A full bell rings already.
            self.served.iter().for_each(|served| {
                let _ = served.bell.try_send(());
            });
        }
        if noticed.dropped > 0 {
            log::error!(
                "{} notifications were dropped: more than {OUTBOX_MAX} waited for a target, or too long",
                noticed.dropped
            );
        }
        if noticed.more {
            return Duration::ZERO;
        }
        let anyway = if noticed.open > 0 { LOOK_WHILE_OPEN } else { LOOK_ANYWAY };
        let now = self.sources.clock.now().wall;
        noticed.next_at.map_or(anyway, |at| at.since(now).min(anyway))
    }
}

fn rules_of(config: &Config) -> Rules {
    Rules { delay: config.notify_delay, reminder: config.notify_reminder, mute: false }
}

/// Serves one target: its messages in order, one at a time.
struct Carrier {
    post: Arc<Post>,
    sources: Sources,
}

impl Carrier {
    fn run(self, rung: &Receiver<()>) {
        let mut failures = 0;
        loop {
            let wait = match self.carry_next() {
                Ok(true) => {
                    failures = 0;
                    Duration::ZERO
                }
                Ok(false) => LOOK_ANYWAY,
                Err(asked) => {
                    failures += 1;
                    backoff(failures).max(asked)
                }
            };
            if !self.stays(rung, wait, failures > 0) {
                return;
            }
        }
    }

    /// Waits; false when nobody wants this target served any more.
    fn stays(&self, rung: &Receiver<()>, wait: Duration, patiently: bool) -> bool {
        let late = crossbeam_channel::after(wait);
        loop {
            select! {
                recv(rung) -> bell => match bell {
                    Err(_) => return false,
                    // News make no target answer sooner.
                    Ok(()) if patiently => {}
                    Ok(()) => return true,
                },
                recv(late) -> _ => return !matches!(rung.try_recv(), Err(e) if e.is_disconnected()),
            }
        }
    }

    /// True when a message was dealt with, false when there is none; otherwise how long the
    /// target asks to be left alone.
    fn carry_next(&self) -> Result<bool, Duration> {
        let name = &self.post.target.name;
        let next = self.sources.readers.get().and_then(|r| notify::next_delivery(&r, name));
        let delivery = match next {
            Ok(Some(delivery)) => delivery,
            Ok(None) => return Ok(false),
            Err(error) => {
                log::error!("could not read what {name} is to be told: {error}");
                return Err(Duration::ZERO);
            }
        };
        let now = self.sources.clock.now().wall;
        let sent = deliver::send(&self.post.target, &delivery.body, now);
        self.judge(&delivery, sent, now)?;
        let (target, seq) = (name.clone(), delivery.seq);
        let noted = self
            .sources
            .writer
            .call(self.sources.clock.now(), |reply| Command::Delivered { target, seq, reply });
        noted.map(|()| true).map_err(|error| {
            log::error!("could not note what {name} was told; it will be told again: {error}");
            Duration::ZERO
        })
    }

    /// Whether the message is dealt with; otherwise how long the target asks to be left alone.
    fn judge(
        &self,
        delivery: &Delivery,
        sent: Result<(), Undelivered>,
        now: Wall,
    ) -> Result<(), Duration> {
        let name = &self.post.target.name;
        let id = delivery.body["id"].as_str().unwrap_or_default();
        let mut state = self.post.state();
        let Err(undelivered) = sent else {
            state.sent += 1;
            state.sent_at = Some(now);
            if state.error.take().is_some() {
                log::info!("{name} takes notifications again");
            }
            return Ok(());
        };
        state.failed += 1;
        let news = state.error.as_ref() != Some(&undelivered.why);
        state.error = Some(undelivered.why.clone());
        if undelivered.refused || now.since(delivery.at) >= GIVE_UP_AFTER {
            state.given_up += 1;
            log::error!("notification {id} to {name} is given up: {}", undelivered.why);
            return Ok(());
        }
        if news {
            log::warn!("could not notify {name}: {}; trying again", undelivered.why);
        }
        Err(undelivered.wait)
    }
}

/// Doubles, up to a bound; somewhere in the upper half of it, so that targets behind one
/// server do not knock together.
fn backoff(failures: u32) -> Duration {
    let whole = BACKOFF_FIRST.saturating_mul(1 << (failures - 1).min(16)).min(BACKOFF_MAX);
    let mut byte = [0; 1];
    // Without randomness everybody waits as long as may be.
    let share =
        SystemRandom::new().fill(&mut byte).map_or(u32::from(u8::MAX), |()| u32::from(byte[0]));
    whole / 2 + whole / 2 * share / 255
}

/// What came of one attempt.
type Outcome = Result<(), Undelivered>;

/// What the API asks of notifications.
pub(super) struct Desk {
    pub(super) roll: Arc<Roll>,
    pub(super) sources: Sources,
    pub(super) bell: Sender<()>,
}

impl Notify for Desk {
    fn targets(&self) -> Vec<TargetState> {
        self.roll.posts().iter().map(|post| post.state().clone()).collect()
    }

    fn test(&self) -> Vec<Tested> {
        let now = self.sources.clock.now().wall;
        let posts = self.roll.posts().clone();
        let asked: Vec<(Arc<Post>, Receiver<Outcome>)> = posts
            .into_iter()
            .map(|post| {
                let (tell, told) = bounded(1);
                let asked = Arc::clone(&post);
                let test = move || {
                    let id = format!("ntf-test-{}", now.0);
                    let body = notify::test_body(&id, now);
                    drop(tell.send(deliver::send(&asked.target, &body, now)));
                };
                let thread = std::thread::Builder::new().name(SECRET_THREAD.to_owned());
                // Not started: the channel is closed and says so below.
                drop(thread.stack_size(STACK_BYTES).spawn(test));
                (post, told)
            })
            .collect();
        asked.into_iter().map(|(post, told)| tested(&post, &told)).collect()
    }

    fn look(&self) {
        let _ = self.bell.try_send(());
    }
}

fn tested(post: &Post, told: &Receiver<Outcome>) -> Tested {
    let error = match told.recv_timeout(DEADLINE + Duration::from_secs(1)) {
        Ok(Ok(())) => None,
        Ok(Err(undelivered)) => Some(undelivered.why),
        Err(RecvTimeoutError::Timeout) => Some("no answer in time".to_owned()),
        Err(RecvTimeoutError::Disconnected) => Some("no thread could be started".to_owned()),
    };
    let (name, kind) = (post.target.name.clone(), post.target.kind.as_str());
    Tested { name, kind, ok: error.is_none(), error }
}
