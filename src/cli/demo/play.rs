//! Owns the course of a demo: makes faults happen, watches what Roost makes of them, lifts
//! them, and does what users of the sandboxes would do.
//!
//! Never: writes to the database; what a user would do goes through the API. Called by
//! `demo`.

use super::fault::{FaultKind, Scene, Script};
use super::show::{Interrupts, Show, tenths};
use super::stage::Stage;
use super::summary::{Record, disagreement};
use crate::api::secret;
use crate::cli::act::ServerClient;
use crate::cli::args::Demo;
use crate::cli::output::Failure;
use crate::cli::{open, unreadable};
use crate::model::event::{Event, EventKind};
use crate::model::host::{Host, HostStatus};
use crate::model::id::{HostId, SandboxId};
use crate::model::order;
use crate::model::sandbox::SandboxStatus;
use crate::sim::{Faults, SimState};
use crate::store::Connection;
use crate::store::read::{self, HistoryFilter, SandboxFilter};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Longest time without a look at everything. Larger: what makes no event is seen late;
/// smaller: the machine has more to do for nothing.
const TICK: Duration = Duration::from_millis(100);

/// Wait before the API is asked again for what it refused. Larger: repairs take longer;
/// smaller: it is asked for nothing.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// No new faults this long before the end. Larger: short demos show less; smaller: they
/// take longer than they should.
const QUIET_END: Duration = Duration::from_secs(6);

/// One fault that happened.
struct Fault {
    record: Record,
    host: usize,
    /// Only what comes after this revision is about it.
    after: u64,
    injected: Duration,
    /// When Roost had noticed, or had had time enough to.
    lifted: Option<Duration>,
    /// Sandboxes that it hit, or those that took their place.
    victims: Vec<SandboxId>,
    unnoticed: BTreeSet<SandboxId>,
    /// When the API may be asked again.
    ask_at: Duration,
    over: bool,
}

impl Fault {
    fn is_of_host(&self) -> bool {
        self.record.kind.faults().is_some()
    }

    fn name(&self) -> String {
        format!("fault {} ({})", self.record.number, self.record.kind.words())
    }
}

/// A demo under way.
pub(super) struct Play<'a> {
    stage: &'a Stage,
    server: ServerClient,
    conn: Connection,
    hosts: Vec<HostId>,
    sandboxes: usize,
    seen: u64,
    script: Script,
    next: Option<Scene>,
    next_at: Duration,
    faults: Vec<Fault>,
}

impl<'a> Play<'a> {
    /// Registers the hosts and makes their sandboxes; all of them run when this returns.
    pub(super) fn begin(
        stage: &'a Stage,
        options: &Demo,
        seed: u64,
        show: &mut Show,
        interrupts: &mut Interrupts,
    ) -> Result<Play<'a>, Failure> {
        stage.leave_address()?;
        let key = secret::read(&stage.paths().admin_key).map_err(unreadable)?;
        let server = ServerClient::at(stage.url(), Some(key));
        let conn = open(&stage.paths().db)?;
        let hosts = stage.enrol(&server)?;
        let sandboxes = hosts.len() * options.sandboxes as usize;
        let script = Script::new(seed, kinds(sandboxes), hosts.len());
        let (next, next_at, faults) = (None, Duration::ZERO, Vec::new());
        let mut play =
            Play { stage, server, conn, hosts, sandboxes, seen: 0, script, next, next_at, faults };
        play.wait("register the hosts", show, interrupts, Play::is_everybody_well)?;
        show.say("hosts", &format!("{} registered and beating", play.hosts.len()))?;
        play.populate(show, interrupts)?;
        show.say("hosts", &format!("{sandboxes} sandboxes run on them"))?;
        play.news()?;
        Ok(play)
    }

    /// The database, for looking.
    pub(super) fn conn(&self) -> &Connection {
        &self.conn
    }

    /// How many sandboxes there are.
    pub(super) fn sandboxes(&self) -> usize {
        self.sandboxes
    }

    /// What became of every fault.
    pub(super) fn records(&self) -> Vec<Record> {
        self.faults.iter().map(|fault| fault.record.clone()).collect()
    }

    fn wait(
        &mut self,
        what: &str,
        show: &Show,
        interrupts: &mut Interrupts,
        reached: fn(&Play<'a>) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let until = show.elapsed() + self.stage.patience();
        while !reached(self)? {
            let failed = || Failure::new(format!("could not {what}"));
            if interrupts.asked() {
                return Err(failed().because("interrupted"));
            }
            if show.elapsed() > until {
                return Err(failed().because("it takes too long"));
            }
            self.news()?;
        }
        Ok(())
    }

    fn populate(&mut self, show: &Show, interrupts: &mut Interrupts) -> Result<(), Failure> {
        for _ in 0..self.sandboxes {
            let until = show.elapsed() + self.stage.patience();
            while let Err(failure) = self.create() {
                if interrupts.asked() || show.elapsed() > until {
                    return Err(failure);
                }
                self.news()?;
            }
        }
        self.wait("start the sandboxes", show, interrupts, Play::is_everything_running)
    }

    fn is_everybody_well(&self) -> Result<bool, Failure> {
        let hosts = read::hosts(&self.conn).map_err(unreadable)?;
        Ok(hosts.iter().filter(|host| is_well(host)).count() == self.hosts.len())
    }

    fn is_everything_running(&self) -> Result<bool, Failure> {
        let status = Some(SandboxStatus::Running);
        let filter = SandboxFilter { status, ..SandboxFilter::default() };
        let running = read::sandboxes(&self.conn, &filter).map_err(unreadable)?;
        Ok(running.len() == self.sandboxes)
    }

    /// Lets faults happen until the time is over or somebody interrupts, then waits for
    /// those that are open.
    pub(super) fn run(
        &mut self,
        run_for: Option<Duration>,
        show: &mut Show,
        interrupts: &mut Interrupts,
    ) -> Result<(), Failure> {
        let began = show.elapsed();
        let until = run_for.map(|span| began + span);
        let quiet_from = run_for.map(|span| began + span - QUIET_END.min(span / 3));
        let is_past = |at: Option<Duration>, now: Duration| at.is_some_and(|at| now >= at);
        while !is_past(until, show.elapsed()) && !interrupts.asked() {
            if !is_past(quiet_from, show.elapsed()) {
                self.inject(show)?;
            }
            self.tick(show)?;
        }
        interrupts.obeyed();
        let open = self.open().count();
        if open > 0 {
            let patience = "waiting for open faults to be noticed and repaired";
            show.say("ending", &format!("{patience} ({open}); Ctrl-C leaves at once"))?;
        }
        while self.open().next().is_some() && !interrupts.asked() {
            self.tick(show)?;
        }
        (0..self.faults.len()).try_for_each(|at| self.lift(at, show))
    }

    /// Waits, within bounds, until the database agrees with the hosts; gives what they
    /// still disagree on.
    pub(super) fn settle(
        &mut self,
        show: &mut Show,
        interrupts: &mut Interrupts,
    ) -> Result<Vec<String>, Failure> {
        let until = show.elapsed() + self.stage.patience();
        loop {
            let disagreements = self.disagreements()?;
            if disagreements.is_empty() || show.elapsed() > until || interrupts.asked() {
                return Ok(disagreements);
            }
            self.tick(show)?;
        }
    }

    fn open(&self) -> impl Iterator<Item = &Fault> {
        self.faults.iter().filter(|fault| !fault.over)
    }

    /// Waits a moment for something to happen; gives what did.
    fn news(&mut self) -> Result<Vec<Event>, Failure> {
        self.stage.revision().wait_newer(self.seen, TICK);
        let filter = HistoryFilter { limit: read::ROWS_MAX, ..HistoryFilter::default() };
        let events = read::events_after(&self.conn, self.seen, &filter).map_err(unreadable)?;
        self.seen = events.last().map_or(self.seen, |event| event.revision);
        Ok(events)
    }

    fn tick(&mut self, show: &mut Show) -> Result<(), Failure> {
        let events = self.news()?;
        show.events(&events)?;
        for at in 0..self.faults.len() {
            if !self.faults[at].over {
                self.notice(at, &events, show)?;
                self.repair(at, show)?;
            }
        }
        Ok(())
    }

    /// Lets the next fault happen, when it is time and nothing stands against it.
    fn inject(&mut self, show: &mut Show) -> Result<(), Failure> {
        let now = show.elapsed();
        if self.next.is_none() {
            self.next = self.script.next();
            self.next_at = now + self.next.map_or(Duration::ZERO, |scene| scene.gap);
        }
        let Some(scene) = self.next.filter(|_| self.next_at <= now) else { return Ok(()) };
        if !self.is_time_for(scene.kind) {
            return Ok(());
        }
        if let Some((host, victims)) = self.target(scene)? {
            self.next = None;
            self.make_happen(scene.kind, host, victims, show)?;
        }
        Ok(())
    }

    /// New sandboxes are made only while every host that fails is known to fail, and
    /// nothing fails while they are made: no create is lost on the way. One host is silent
    /// at a time, or it would look like our own network.
    fn is_time_for(&self, kind: FaultKind) -> bool {
        let host_faults = self.open().filter(|fault| fault.is_of_host()).count();
        let replaces = self.open().any(|fault| fault.record.kind.loses());
        let silent = self.open().any(|fault| fault.record.kind.silences());
        match kind {
            FaultKind::Silent | FaultKind::CutOff if silent => false,
            FaultKind::Silent
            | FaultKind::CutOff
            | FaultKind::Hangs
            | FaultKind::Garbage
            | FaultKind::Refuses => !replaces && host_faults < self.hosts.len().div_ceil(2),
            FaultKind::Restarts | FaultKind::Dies => !replaces,
            FaultKind::AutoPauses => true,
        }
    }

    /// The host for a fault and the sandboxes that it hits; none while it must wait.
    fn target(&self, scene: Scene) -> Result<Option<(usize, Vec<SandboxId>)>, Failure> {
        let count = self.hosts.len();
        if scene.kind.faults().is_some() {
            let free = self.running_if_free(scene.host)?;
            let hit = |running| if scene.kind.silences() { running } else { Vec::new() };
            return Ok(free.map(|running| (scene.host, hit(running))));
        }
        for host in (0..count).map(|step| (scene.host + step) % count) {
            let running = self.running_if_free(host)?.unwrap_or_default();
            let Some(at) = scene.sandbox.checked_rem(running.len()) else { continue };
            let one = running[at];
            let all = scene.kind == FaultKind::Restarts;
            return Ok(Some((host, if all { running } else { vec![one] })));
        }
        Ok(None)
    }

    /// What runs on a host, when nothing is wrong with it and everybody knows that.
    fn running_if_free(&self, number: usize) -> Result<Option<Vec<SandboxId>>, Failure> {
        if self.open().any(|fault| fault.host == number) || !self.is_host_well(number)? {
            return Ok(None);
        }
        if !self.disagreements_on(number)?.is_empty() {
            return Ok(None);
        }
        let all = self.stage.fleet().hosts()[number].sandboxes().into_iter();
        Ok(Some(all.filter(|(_, state)| *state == SimState::Running).map(|(id, _)| id).collect()))
    }

    fn make_happen(
        &mut self,
        kind: FaultKind,
        number: usize,
        victims: Vec<SandboxId>,
        show: &mut Show,
    ) -> Result<(), Failure> {
        let after = self.stage.revision().newest();
        let injected = show.elapsed();
        let host = &self.stage.fleet().hosts()[number];
        let happened = match kind {
            FaultKind::Silent
            | FaultKind::CutOff
            | FaultKind::Hangs
            | FaultKind::Garbage
            | FaultKind::Refuses => {
                self.set_faults(number, kind.faults().unwrap_or_default())?;
                true
            }
            FaultKind::Restarts => {
                host.restart();
                true
            }
            FaultKind::Dies => victims.iter().all(|id| host.lose(*id)),
            FaultKind::AutoPauses => victims.iter().all(|id| host.auto_pause(*id)),
        };
        if !happened {
            return Ok(());
        }
        let id = self.hosts[number];
        let record = Record {
            number: self.faults.len() + 1,
            kind,
            host: id,
            noticed: None,
            repaired: None,
            trouble: None,
        };
        let whom = match (kind.faults(), victims.as_slice()) {
            (None, [one]) => format!("{one} on {id}"),
            (Some(_) | None, _) => id.to_string(),
        };
        show.say("FAULT", &format!("{}  {}: {whom}", record.number, kind.words()))?;
        let unnoticed = victims.iter().copied().collect();
        let (lifted, ask_at, over) = (None, injected, false);
        let fault = Fault {
            record,
            host: number,
            after,
            injected,
            lifted,
            victims,
            unnoticed,
            ask_at,
            over,
        };
        self.faults.push(fault);
        Ok(())
    }

    fn set_faults(&self, number: usize, faults: Faults) -> Result<(), Failure> {
        let set = self.stage.fleet().set_faults(number, faults);
        set.map_err(|e| Failure::new("could not change what is wrong with a host").because(e))
    }

    /// Looks whether Roost has noticed; then, or when it has had time enough, lifts the
    /// fault.
    fn notice(&mut self, at: usize, events: &[Event], show: &mut Show) -> Result<(), Failure> {
        let (now, patience) = (show.elapsed(), self.stage.patience());
        let fault = &mut self.faults[at];
        if fault.lifted.is_some() {
            return Ok(());
        }
        if is_noticed(fault, events) {
            let span = now.saturating_sub(fault.injected);
            fault.record.noticed = Some(span);
            show.say("noticed", &format!("{} after {}", fault.name(), tenths(span)))?;
            return self.lift(at, show);
        }
        if now > fault.injected + patience {
            show.say("MISSED", &fault.name())?;
            return self.lift(at, show);
        }
        Ok(())
    }

    fn lift(&mut self, at: usize, show: &mut Show) -> Result<(), Failure> {
        let fault = &mut self.faults[at];
        if fault.lifted.is_some() {
            return Ok(());
        }
        fault.lifted = Some(show.elapsed());
        if fault.is_of_host() {
            let (number, name) = (fault.host, fault.name());
            self.set_faults(number, Faults::default())?;
            show.say("lifted", &name)?;
        }
        Ok(())
    }

    /// Does what users would do about the sandboxes that a fault hit, and looks whether all
    /// is as before.
    fn repair(&mut self, at: usize, show: &mut Show) -> Result<(), Failure> {
        let now = show.elapsed();
        let Some(lifted) = self.faults[at].lifted else { return Ok(()) };
        let running = self.bring_back(at, now)?;
        let fault = &self.faults[at];
        let span = now.saturating_sub(lifted);
        if running && self.is_host_well(fault.host)? {
            show.say("repaired", &format!("{} after {}", fault.name(), tenths(span)))?;
            self.faults[at].record.repaired = Some(span);
            self.faults[at].over = true;
        } else if span > self.stage.patience() {
            show.say("BROKEN", &fault.name())?;
            self.faults[at].over = true;
        }
        Ok(())
    }

    /// Resumes what is paused and makes anew what is gone. True when everything runs.
    fn bring_back(&mut self, at: usize, now: Duration) -> Result<bool, Failure> {
        let mut running = 0;
        for position in 0..self.faults[at].victims.len() {
            let id = self.faults[at].victims[position];
            let row = read::sandbox(&self.conn, id).map_err(unreadable)?;
            let asked = match row.map(|row| row.status) {
                Some(SandboxStatus::Running) => {
                    running += 1;
                    continue;
                }
                Some(
                    SandboxStatus::Pending
                    | SandboxStatus::Starting
                    | SandboxStatus::Pausing
                    | SandboxStatus::Resuming
                    | SandboxStatus::Stopping
                    | SandboxStatus::Missing
                    | SandboxStatus::Hibernated,
                ) => continue,
                Some(_) | None if self.faults[at].ask_at > now => continue,
                Some(SandboxStatus::Paused) => self.resume(id).map(|()| id),
                Some(SandboxStatus::Stopped | SandboxStatus::Error) | None => {
                    if self.open().any(|fault| fault.is_of_host() && fault.lifted.is_none()) {
                        continue;
                    }
                    self.create()
                }
            };
            let fault = &mut self.faults[at];
            match asked {
                Ok(id) => fault.victims[position] = id,
                Err(failure) => {
                    fault.record.trouble = Some(failure.to_string());
                    fault.ask_at = now + ASK_AGAIN_AFTER;
                }
            }
        }
        Ok(running == self.faults[at].victims.len())
    }

    fn create(&self) -> Result<SandboxId, Failure> {
        let answer = self.server.post("create a sandbox", "/v1/capsules", &json!({}))?;
        let id = answer["id"].as_str().unwrap_or_default();
        id.parse().map_err(|e| Failure::new("could not create a sandbox").because(format!("{e}")))
    }

    fn resume(&self, id: SandboxId) -> Result<(), Failure> {
        let path = format!("/v1/capsules/{id}/resume");
        self.server.post("resume a sandbox", &path, &json!({})).map(drop)
    }

    fn is_host_well(&self, number: usize) -> Result<bool, Failure> {
        let host = read::host(&self.conn, self.hosts[number]).map_err(unreadable)?;
        Ok(host.as_ref().is_some_and(is_well))
    }

    fn disagreements(&self) -> Result<Vec<String>, Failure> {
        let mut all = Vec::new();
        for (number, id) in self.hosts.iter().enumerate() {
            if !self.is_host_well(number)? {
                all.push(format!(
                    "the database says that something is wrong with {id}, and nothing is"
                ));
            }
            all.extend(self.disagreements_on(number)?);
        }
        Ok(all)
    }

    fn disagreements_on(&self, number: usize) -> Result<Vec<String>, Failure> {
        let host = self.hosts[number];
        let filter = SandboxFilter { host: Some(host), all: true, ..SandboxFilter::default() };
        let rows = read::sandboxes(&self.conn, &filter).map_err(unreadable)?;
        let known: BTreeMap<SandboxId, SandboxStatus> =
            order::map_of(rows.into_iter().map(|row| (row.id, row.status)));
        let truth: BTreeMap<SandboxId, SimState> =
            order::map_of(self.stage.fleet().hosts()[number].sandboxes());
        let ids = order::set_of(known.keys().chain(truth.keys()));
        let judge = |id: &&SandboxId| {
            disagreement(**id, host, known.get(id).copied(), truth.get(id).copied())
        };
        Ok(ids.iter().filter_map(judge).collect())
    }
}

/// Without sandboxes nothing can happen to them.
fn kinds(sandboxes: usize) -> Vec<FaultKind> {
    let happens = |kind: &FaultKind| sandboxes > 0 || kind.faults().is_some();
    FaultKind::ALL.iter().copied().filter(happens).collect()
}

/// Whether Roost knows of nothing that is wrong with a host.
fn is_well(host: &Host) -> bool {
    let online = host.status() == HostStatus::Online;
    online && !host.degraded && !host.rejoining && host.probe_failure.is_none()
}

/// Whether these events, with those before, say what they must about a fault.
fn is_noticed(fault: &mut Fault, events: &[Event]) -> bool {
    let id = fault.record.host;
    let after = fault.after;
    let mut about = events.iter().filter(|e| e.host_id == id && e.revision > after);
    match fault.record.kind {
        FaultKind::Silent | FaultKind::CutOff => about.any(|e| e.kind == EventKind::HostDown),
        FaultKind::Hangs | FaultKind::Garbage | FaultKind::Refuses => {
            about.any(|e| e.kind == EventKind::HostDegraded)
        }
        FaultKind::Restarts | FaultKind::Dies | FaultKind::AutoPauses => {
            let tells =
                |e: &&Event| matches!(e.kind, EventKind::SandboxPaused | EventKind::SandboxStopped);
            for told in about.filter(tells).filter_map(|e| e.sandbox_id) {
                fault.unnoticed.remove(&told);
            }
            fault.unnoticed.is_empty()
        }
    }
}
