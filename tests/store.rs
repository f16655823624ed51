//! Owns what the database promises, with real files: whole commands or none, no write that
//! is not needed, a disk that fills and frees, here for whoever may not mount one.
//!
//! Never: the meaning of what is written.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use crossbeam_channel::{Receiver, Sender, unbounded};
use roost::clock::{Clock, SystemClock};
use roost::model::event::ActorType;
use roost::model::host::{Host, Intent};
use roost::model::id::{HostId, PLATFORM_TEAM};
use roost::model::operation::OperationKind;
use roost::model::policy::Policy;
use roost::model::probe::{
    Details, FailureKind, Listed, ListedState, Listing, Probe, ProbeFailure,
};
use roost::model::sandbox::{Reason, SandboxStatus};
use roost::model::time::Now;
use roost::plan::report::ReportKind;
use roost::store::StoreError;
use roost::store::apply::{Applied, Probed, Written};
use roost::store::fixture;
use roost::store::identity::NewHost;
use roost::store::journal::Actor;
use roost::store::lifecycle::{Begun, Ended, Wish};
use roost::store::open::{open_reader, open_writer};
use roost::store::presence::{Beat, Presence};
use roost::store::read;
use roost::store::reports::AgentReport;
use roost::store::strangers::{Adopted, Adoption};
use roost::store::verify::verify;
use roost::store::writer::{Command, Envelope, Reply, Writer, WriterFigures, WriterHandle};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};
use support::agents::{Agents, Says};
use support::client::Answer;
use support::server::Serving;
use support::{Home, eventually, host, sandbox};
use tempfile::TempDir;

/// A writer that has not begun to take commands.
struct Store {
    dir: TempDir,
    writer: Writer,
    figures: Arc<WriterFigures>,
    send: Sender<Envelope>,
    commands: Receiver<Envelope>,
}

impl Store {
    fn new() -> Store {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemClock.now();
        let conn = open_writer(&dir.path().join("roost.db"), true, now.wall).unwrap();
        let presence = Arc::new(Presence::load(&[], [], None, false, now));
        let writer = Writer::new(conn, Policy::default(), presence).unwrap();
        let (send, commands) = unbounded();
        Store { figures: writer.figures(), dir, writer, send, commands }
    }

    fn db(&self) -> PathBuf {
        self.dir.path().join("roost.db")
    }

    fn send(&self, command: Command) {
        let now = SystemClock.now();
        self.send.send(Envelope { now, command }).unwrap();
    }
}

fn new_host(token: u8) -> NewHost {
    NewHost {
        team: PLATFORM_TEAM,
        kind: "regular".to_owned(),
        provider: None,
        availability_zone: None,
        token: [token; 32],
        actor: Actor { kind: ActorType::ApiKey, id: None, name: None },
    }
}

fn hosts(db: &Path) -> usize {
    read::hosts(&open_reader(db).unwrap()).unwrap().len()
}

#[test]
fn what_is_queued_goes_into_one_transaction() {
    let store = Store::new();
    let db = store.db();
    let (tell, told) = unbounded();
    for token in 0..100 {
        let (tell, db) = (tell.clone(), db.clone());
        let reply: Reply<Host> = Box::new(move |result| {
            // By now anybody can read it.
            let seen = read::host(&open_reader(&db).unwrap(), result.unwrap().id).unwrap();
            tell.send(seen.is_some()).unwrap();
        });
        store.send(Command::CreateHost(new_host(token), reply));
    }
    store.send(Command::Stop);
    store.writer.run(&store.commands);
    drop(tell);
    let told: Vec<bool> = told.iter().collect();
    assert_eq!((told.len(), told.iter().all(|seen| *seen)), (100, true));
    assert_eq!(store.figures.commits.load(Ordering::Relaxed), 1);
    assert_eq!(hosts(&db), 100);
}

/// A token of the same hash cannot be stored twice: such a host is refused half-way, after
/// its row was written.
#[test]
fn a_refused_command_spoils_no_other() {
    let store = Store::new();
    let (tell, told) = unbounded();
    for token in [1, 1, 2, 2, 3] {
        let tell = tell.clone();
        let reply: Reply<Host> = Box::new(move |result| tell.send(result.is_ok()).unwrap());
        store.send(Command::CreateHost(new_host(token), reply));
    }
    store.send(Command::Stop);
    let (db, figures) = (store.db(), Arc::clone(&store.figures));
    store.writer.run(&store.commands);
    let told: Vec<bool> = told.try_iter().collect();
    assert_eq!(told, [true, false, true, false, true]);
    let count = |figure: &std::sync::atomic::AtomicU64| figure.load(Ordering::Relaxed);
    assert_eq!((count(&figures.commits), count(&figures.failures)), (1, 0));
    assert_eq!(hosts(&db), 3, "nothing is left of the refused");
    assert_eq!(verify(&open_reader(&db).unwrap()).unwrap(), [] as [&str; 0]);
}

#[test]
fn nothing_is_written_after_the_end() {
    let store = Store::new();
    let handle = WriterHandle::new(store.send.clone());
    let now = SystemClock.now();
    store.send(Command::Stop);
    let (tell, late) = unbounded();
    let reply: Reply<Host> = Box::new(move |result| tell.send(result.is_ok()).unwrap());
    store.send(Command::CreateHost(new_host(1), reply));
    let db = store.db();
    store.writer.run(&store.commands);
    drop(store.commands);
    assert_eq!(hosts(&db), 0, "what came after the end");
    assert!(late.try_recv().is_err(), "and was not said to be written");
    let call = handle.call(now, |reply| Command::CreateHost(new_host(2), reply));
    assert_eq!(call.map(|_| ()), Err(StoreError::Stopped));
}

/// A fleet in which nobody needs a probe.
/// A writer on a fleet that is watched: host 1 with what is said of its sandboxes.
struct Watched {
    dir: TempDir,
    writer: Writer,
    presence: Arc<Presence>,
    now: Now,
}

impl Watched {
    fn new(sandboxes: Value) -> Watched {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemClock.now();
        let mut conn = open_writer(&dir.path().join("roost.db"), true, now.wall).unwrap();
        conn.busy_timeout(Duration::ZERO).unwrap();
        let row = json!({"id": host(1), "address": "10.0.0.1:50051", "status": "online",
            "heartbeat_age_s": 5});
        let fleet = json!({"hosts": [row], "sandboxes": sandboxes});
        let fleet = fixture::parse(&fleet.to_string(), now.wall).unwrap();
        fixture::load(&mut conn, &fleet).unwrap();
        let hosts = read::hosts(&conn).unwrap();
        let presence = Arc::new(Presence::load(&hosts, [], None, false, now));
        let writer = Writer::new(conn, Policy::default(), Arc::clone(&presence)).unwrap();
        presence.heartbeat(host(1).parse().unwrap(), now);
        Watched { dir, writer, presence, now }
    }

    /// So many milliseconds after the beginning.
    fn at(&self, ms: u64) -> Now {
        let span = Duration::from_millis(ms);
        Now { mono: self.now.mono.after(span), wall: self.now.wall.after(span) }
    }

    /// Hands over what came of a question of the beginning.
    fn probed(&mut self, ended: Now, probe: Probe) -> Result<Applied, StoreError> {
        let (revision, asked_at) = (u64::MAX, self.now.mono);
        let host = host(1).parse().unwrap();
        let probed =
            Box::new(Probed { host, revision, asked_at, age_cap: None, probe, proven: false });
        self.execute(ended, |reply| Command::Probed(probed, reply))
    }

    /// What comes of a command so many milliseconds after the beginning.
    fn ask<T: Send + 'static>(
        &mut self,
        ms: u64,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, StoreError> {
        self.execute(self.at(ms), command)
    }

    fn execute<T: Send + 'static>(
        &mut self,
        now: Now,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, StoreError> {
        let (tell, told) = unbounded();
        let command = command(Box::new(move |result| tell.send(result).unwrap()));
        self.writer.execute(vec![Envelope { now, command }]);
        told.recv().unwrap()
    }
}

/// The next looks come when the disk works again: without the gap they would say that what
/// paused meanwhile is gone.
#[test]
fn an_answer_lost_while_nothing_can_be_written_is_a_gap_all_the_same() {
    let mut watched = Watched::new(json!([]));
    let (now, presence) = (watched.now, Arc::clone(&watched.presence));
    let is_gap =
        || presence.has_contact_gap(host(1).parse().unwrap(), now.mono, &Policy::default());
    watched.probed(now, Probe::Listed(Listing::default())).unwrap();
    assert!(!is_gap());

    let other = open_writer(&watched.dir.path().join("roost.db"), false, now.wall).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let failure = ProbeFailure::new(FailureKind::TimedOut, "no answer within 8 s");
    let probe = Probe::Failed(ProbeFailure { answer_lost: true, ..failure });
    assert!(watched.probed(now, probe).is_err());
    assert!(is_gap());
}

/// The agent gives up after three tries, and does not say it again.
#[test]
fn a_report_that_could_not_be_stored_is_a_gap_and_its_notice_is_kept() {
    let row = |n| json!({"id": sandbox(n), "host_id": host(1), "status": "running"});
    let mut watched = Watched::new(json!([row(1), row(2)]));
    let (began, presence) = (watched.now, Arc::clone(&watched.presence));
    let id = host(1).parse().unwrap();
    let is_gap = || presence.has_contact_gap(id, began.mono, &Policy::default());
    assert!(!is_gap());
    let other = open_writer(&watched.dir.path().join("roost.db"), false, began.wall).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert!(watched.ask(1, |reply| Command::Report(auto_paused(), reply)).is_err());
    assert!(is_gap());

    other.execute_batch("ROLLBACK").unwrap();
    let mut moves = |after_ms| {
        watched.now = watched.at(after_ms);
        let applied = watched.probed(watched.at(1), Probe::Listed(Listing::default())).unwrap();
        let of = |t: &Written| (t.sandbox.to_string(), t.to, t.reason.clone());
        applied.transitions.iter().map(of).collect::<Vec<_>>()
    };
    let paused = |n, reason| (sandbox(n), SandboxStatus::Paused, reason);
    assert_eq!(moves(100), [], "asked for before the notice could be kept");
    assert_eq!(moves(1_000), [paused(1, Reason::AutoPaused)]);
    assert_eq!(moves(4_000), [paused(2, Reason::PresumedPaused)]);
}

/// What its agent announced of it while it had no row was ignored.
#[test]
fn what_was_adopted_may_have_paused_itself_before() {
    let mut watched = Watched::new(json!([]));
    let other = open_writer(&watched.dir.path().join("roost.db"), false, watched.now.wall).unwrap();
    let row = (host(1), sandbox(1));
    other
        .execute("INSERT INTO strangers VALUES (?1, ?2, 'forgotten', 1)", [row.0, row.1.clone()])
        .unwrap();
    let sandbox = row.1.parse().unwrap();
    let actor = Actor { kind: ActorType::ApiKey, id: None, name: None };
    let wanted = Box::new(Adoption { sandbox, host: None, team: None, actor });
    let adopted = watched.ask(1, |reply| Command::Adopt(wanted, reply)).unwrap();
    assert!(matches!(adopted, Adopted::Done(row) if row.status == SandboxStatus::Running));
    for (after_ms, expected) in [(100, None), (4_000, Some(Reason::PresumedPaused))] {
        watched.now = watched.at(after_ms);
        let applied = watched.probed(watched.at(1), Probe::Listed(Listing::default())).unwrap();
        assert_eq!(applied.transitions.first().map(|t| t.reason.clone()), expected);
    }
}

/// The list was made before the pause, and its answer read before the report and handed over
/// behind it; the clock on the wall tells milliseconds, and they may be the same.
#[test]
fn a_report_is_not_outdated_by_a_list_that_was_asked_for_before_it() {
    for (reported_ms, ended_ms) in [(2, 1), (2, 3), (1, 1), (0, 0)] {
        let row = json!([{"id": sandbox(1), "host_id": host(1), "status": "running"}]);
        let mut watched = Watched::new(row);
        let look = watched.ask(reported_ms, |reply| Command::Report(auto_paused(), reply));
        assert!(look.unwrap());
        watched.probed(watched.at(ended_ms), running(sandbox(1))).unwrap();

        // The next list has it no more, whatever becomes of what it announces.
        watched.now = watched.at(100);
        let gone = Probe::Listed(Listing::default());
        let applied = watched.probed(watched.at(101), gone).unwrap();
        let moves: Vec<_> = applied.transitions.iter().map(|t| (t.to, t.reason.clone())).collect();
        let expected = [(SandboxStatus::Paused, Reason::AutoPaused)];
        assert_eq!(moves, expected, "reported after {reported_ms} ms, ended after {ended_ms}");
    }
}

/// The agent listed it as running all the time; its pause was asked for, and nobody knows what
/// became of that.
#[test]
fn a_pause_that_is_over_is_asked_for_again_though_the_clock_was_set_back() {
    let row = json!([{"id": sandbox(1), "host_id": host(1), "status": "pausing",
        "status_age_s": 5, "operation": {"kind": "pause", "deadline_in_s": 595}}]);
    let mut watched = Watched::new(row);
    let day = Duration::from_secs(86_400);
    let ended = watched.at(700_000);
    let ended = Now { wall: ended.wall.before(day), ..ended };
    let applied = watched.probed(ended, running(sandbox(1))).unwrap();
    let work: Vec<_> = applied.work.iter().map(|work| (work.kind, work.sent)).collect();
    assert_eq!(work, [(OperationKind::Pause, false)]);
}

/// The disk cannot be written: what came of a resume waits, and meanwhile the sandbox has
/// paused by itself. What was announced before the agent answered is of the life before.
#[test]
fn a_result_that_is_written_late_does_not_outdate_what_was_announced_since() {
    for (known_ms, expected) in [(10_000, Some(Reason::AutoPaused)), (60_000, None)] {
        let row = json!([{"id": sandbox(1), "host_id": host(1), "status": "paused"}]);
        let mut watched = Watched::new(row);
        let actor = Actor { kind: ActorType::ApiKey, id: None, name: None };
        let (kind, id) = (OperationKind::Resume, sandbox(1).parse().unwrap());
        let wish = Wish { sandbox: id, kind, team: None, actor };
        let begun = watched.ask(0, |reply| Command::Begin(Box::new(wish), reply)).unwrap();
        let Begun::Started(_, work) = begun else { panic!("{begun:?}") };
        assert!(watched.ask(50_000, |reply| Command::Report(auto_paused(), reply)).unwrap());
        let ended = Ended {
            op: work.op,
            host: work.host,
            status: SandboxStatus::Running,
            reason: Reason::OperationSucceeded,
            details: None,
            error: None,
            known_at: watched.at(known_ms).mono,
        };
        assert!(watched.ask(70_000, |reply| Command::Finish(Box::new(ended), reply)).unwrap());
        watched.now = watched.at(71_000);
        let applied = watched.probed(watched.at(1), Probe::Listed(Listing::default())).unwrap();
        let moves: Vec<_> = applied.transitions.iter().map(|t| t.reason.clone()).collect();
        assert_eq!(moves, Vec::from_iter(expected), "known after {known_ms} ms");
    }
}

/// What an operator wants and the verdict go into one transaction.
#[test]
fn a_host_that_is_down_is_down_for_its_next_heartbeat_too() {
    let watched = Watched::new(json!([]));
    let Watched { mut writer, presence, now, dir: _dir } = watched;
    let id: HostId = host(1).parse().unwrap();
    let actor = Actor { kind: ActorType::ApiKey, id: None, name: None };
    let heard = presence.get(id).unwrap().heard_at;
    let (tell, told) = unbounded();
    let down =
        Box::new(move |down: Result<Vec<Applied>, _>| tell.send(down.unwrap().len()).unwrap());
    let intent = Command::SetIntent(id, Intent::Draining, actor, Box::new(drop));
    let batch = [intent, Command::MarkDown(vec![(id, heard)], down)];
    writer.execute(batch.into_iter().map(|command| Envelope { now, command }).collect());
    assert_eq!(told.recv(), Ok(1));
    assert_eq!(presence.heartbeat(id, now), Beat::Known { wake: true }, "it comes back");
}

/// A report of the sandbox on host 1 that it was paused.
fn auto_paused() -> Box<AgentReport> {
    Box::new(AgentReport {
        host: host(1).parse().unwrap(),
        sandbox: sandbox(1).parse().unwrap(),
        kind: ReportKind::AutoPaused,
        host_ip: None,
        error: None,
    })
}

/// What an agent lists that has this sandbox.
fn running(id: String) -> Probe {
    let (id, state, details) = (id.parse().unwrap(), ListedState::Running, Details::default());
    let listed = Listed { id, state, created_at_unix: 0, details };
    Probe::Listed(Listing { sandboxes: vec![listed], auto_paused: Vec::new() })
}

fn quiet_fleet(n: u128) -> Value {
    let row = |n| json!({"id": host(n), "status": "online", "heartbeat_age_s": 5});
    json!({"hosts": (1..=n).map(row).collect::<Vec<_>>()})
}

/// Size and time of the files that a write would touch.
fn touched(home: &Home) -> Vec<(u64, SystemTime)> {
    let of = |name: &&str| {
        let file = std::fs::metadata(home.path(name)).unwrap();
        (file.len(), file.modified().unwrap())
    };
    ["roost.db", "roost.db-wal"].iter().map(of).collect()
}

#[test]
fn heartbeats_touch_no_disk_between_flushes() {
    let home = Home::with(&quiet_fleet(20));
    let serving = home.serve(&["--heartbeat-flush", "5m"]);
    let tokens: Vec<(String, String)> = (1..=20).map(|n| (host(n), home.token(&host(n)))).collect();
    let before = (touched(&home), serving.metric("roost_commits_total"));
    for (host, token) in tokens.iter().cycle().take(500) {
        assert_eq!(serving.beat(host, token).status, 204);
    }
    assert_eq!((touched(&home), serving.metric("roost_commits_total")), before);
}

#[test]
fn a_pass_in_which_nothing_changed_writes_nothing() {
    let listing = |n: u128| Says::lists(&[(&sandbox(n), "running")]);
    let agents = Agents::start((1..=3).map(listing).collect());
    let mut fleet = quiet_fleet(3);
    for n in 0..3 {
        fleet["hosts"][n]["address"] = json!(agents.address(n));
    }
    let row = |n| json!({"id": sandbox(n), "host_id": host(n), "status": "running"});
    fleet["sandboxes"] = (1..=3).map(row).collect();
    let home = Home::with(&fleet);
    let asked = |times: usize| {
        let all = || (0..3).all(|n| agents.calls(n) >= times).then_some(());
        eventually("a pass", all);
    };

    let flags = ["--probe-interval", "1s", "--probe-timeout", "1s", "--heartbeat-flush", "5m"];
    let serving = home.serve(&flags);
    // Asked a second time, the first answer has been dealt with.
    asked(2);
    let before = (touched(&home), serving.metric("roost_commits_total"));
    asked(5);
    assert_eq!((touched(&home), serving.metric("roost_commits_total")), before);
    serving.stop();

    // The same for a pass of its own, which leaves everything in one file.
    home.roost(&["check"]).ok();
    let before = std::fs::read(home.path("roost.db")).unwrap();
    home.roost(&["check"]).ok();
    assert!(std::fs::read(home.path("roost.db")).unwrap() == before);
}

/// The same command, in a process that is told of a full disk instead of being ended.
fn told_of_limits(command: &std::process::Command) -> std::process::Command {
    let mut shell = std::process::Command::new("/bin/sh");
    shell.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]);
    shell.arg(command.get_program()).args(command.get_args());
    let set = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    shell.env_clear().envs(set).current_dir(command.get_current_dir().unwrap());
    shell
}

/// Lets no file of the process grow, or lets them grow again.
fn set_disk_full(serving: &Serving, full: bool) {
    let pid = Pid::from_raw(serving.pid().cast_signed());
    let maximum = getrlimit(Resource::Fsize).maximum;
    let current = if full { Some(0) } else { maximum };
    prlimit(pid, Resource::Fsize, Rlimit { current, maximum }).unwrap();
}

/// A server whose one host is asked every second, and a host that is about to register.
struct FullDisk {
    agents: Agents,
    home: Home,
    serving: Serving,
    registered: Value,
    token: Value,
}

impl FullDisk {
    fn new(flush: &str) -> FullDisk {
        let running = Says::lists(&[(&sandbox(1), "running")]);
        let agents = Agents::start(vec![running, Says::lists(&[])]);
        let mut fleet = quiet_fleet(1);
        fleet["hosts"][0]["address"] = json!(agents.address(0));
        fleet["sandboxes"] = json!([{"id": sandbox(1), "host_id": host(1), "status": "running"}]);
        let home = Home::with(&fleet);
        let interval = ["--probe-interval", "1s", "--probe-timeout", "1s"];
        let flags = [&interval[..], &["--confirm-delay", "100ms", "--heartbeat-flush", flush]];
        let serving = home.served(told_of_limits(&home.serving(&flags.concat())));
        let registered = serving.register(&agents.address(1));
        let token = serving.post("/v1/hosts", &json!({})).json()["registration_token"].clone();
        FullDisk { agents, home, serving, registered, token }
    }

    fn fill(&self) {
        set_disk_full(&self.serving, true);
        let refusal = self.serving.post("/v1/hosts", &json!({})).refusal();
        assert_eq!(refusal, (503, "unavailable".to_owned()));
        assert_eq!(self.serving.get("/readyz").status, 503);
    }

    fn free(&self) {
        set_disk_full(&self.serving, false);
        eventually("readiness", || (self.serving.get("/readyz").status == 200).then_some(()));
    }

    fn beat(&self, token: &str) -> Answer {
        self.serving.beat(&host(1), token)
    }

    fn register(&self) -> Answer {
        let body = json!({"token": self.token, "address": "127.0.0.1:1"});
        self.serving.ask("POST", "/v1/hosts/register", &[], &body.to_string())
    }

    fn refresh(&self) -> Answer {
        let body = json!({"refresh_token": self.registered["refresh_token"]});
        self.serving.ask("POST", "/v1/hosts/auth/refresh", &[], &body.to_string())
    }

    fn capsule(&self) -> Value {
        self.serving.get(&format!("/v1/capsules/{}", sandbox(1))).json()
    }
}

#[test]
fn a_full_disk_harms_nobody_and_is_over_when_it_is_over() {
    let disk = FullDisk::new("100ms");
    let token = disk.home.token(&host(1));
    let expired = disk.home.expired_token(&host(1));
    assert_eq!(disk.beat(&expired).refusal(), (401, "unauthorized".to_owned()));
    disk.fill();
    let line = disk.serving.logged(&["ERROR", "could not write"]);
    assert!(line.contains("the disk refused a write") && line.contains("free space"), "{line}");
    let unavailable = (503, "unavailable".to_owned());
    assert_eq!(disk.register().refusal(), unavailable);
    assert_eq!(disk.refresh().refusal(), unavailable);
    // The agent must not be sent to renew what cannot be renewed.
    assert_eq!(disk.beat(&expired).refusal(), unavailable);
    assert_eq!(disk.beat(&support::token::forged(&host(1))).refusal(), unavailable);
    assert_eq!(disk.beat(&token).status, 204, "a heartbeat needs no disk");
    assert_eq!(disk.serving.get("/v1/hosts").status, 200, "nor does a look");
    assert_eq!(disk.serving.get("/healthz").status, 200);
    assert!(disk.serving.metric("roost_commit_failures_total") > 0);

    disk.free();
    assert_eq!(disk.register().status, 201, "the token was not used up");
    assert_eq!(disk.refresh().status, 200);
    assert_eq!(disk.serving.post("/v1/hosts", &json!({})).status, 201);
    assert_eq!(disk.beat(&expired).refusal(), (401, "unauthorized".to_owned()));
    disk.serving.stop();
    disk.home.verify();
}

/// The database takes a transaction in which there is nothing to write whatever the disk
/// does; that must send no agent to renew what cannot be renewed.
#[test]
fn looks_that_write_nothing_do_not_prove_the_disk() {
    let disk = FullDisk::new("5m");
    disk.fill();
    let idle = || disk.agents.calls(0).min(disk.agents.calls(1));
    let before = idle();
    eventually("several passes", || (idle() >= before + 3).then_some(()));
    assert_eq!(disk.serving.get("/readyz").status, 503);
    let expired = disk.home.expired_token(&host(1));
    assert_eq!(disk.beat(&expired).refusal(), (503, "unavailable".to_owned()));
    set_disk_full(&disk.serving, false);
    assert_eq!(disk.register().status, 201);
    assert_eq!(disk.serving.get("/readyz").status, 200, "a write proves it");
}

/// Agents say only once what they paused by themselves: it waits in memory for as long as
/// it cannot be written.
#[test]
fn what_agents_said_while_the_disk_was_full_is_not_lost() {
    let disk = FullDisk::new("100ms");
    disk.fill();
    disk.agents.say(0, Says::listing(&[], &[&sandbox(1)]));
    disk.agents.then(0, Says::lists(&[]));
    let asked = disk.agents.calls(0);
    // Said once, and several answers and flushes later still not written.
    eventually("more looks", || (disk.agents.calls(0) >= asked + 4).then_some(()));
    assert_eq!(disk.capsule()["status"], json!("running"));
    disk.free();
    let capsule = eventually("a decision", || {
        let capsule = disk.capsule();
        (capsule["status"] != json!("running")).then_some(capsule)
    });
    let decided = (&capsule["status"], &capsule["status_reason"]);
    assert_eq!(decided, (&json!("paused"), &json!("auto_paused")));
    disk.serving.stop();
    disk.home.verify();
}
