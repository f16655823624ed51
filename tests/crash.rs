//! Owns the proof that `kill -9` at any moment loses nothing: the real `roost serve` under
//! users, operators, agents and probes, ended at random moments and opened again, round
//! after round on the same database.
//!
//! Never: a moment of our choosing. `ROOST_CRASH_ROUNDS` sets how many rounds,
//! `ROOST_CRASH_SEED` repeats what was done in them.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(clippy::print_stdout, reason = "what the rounds came to")]

#[path = "crash/check.rs"]
mod check;
#[path = "crash/journal.rs"]
mod journal;
#[path = "crash/load.rs"]
mod load;
mod support;

use check::Found;
use journal::{Asked, Capsule, Journal, Verb};
use load::{Agents, Target, operate, use_capsules};
use roost::clock::SystemClock;
use roost::model::id::SandboxId;
use roost::sim::{
    Beater, BeaterOptions, FleetOptions, Habits, Initially, SimFleet, SimHost, SimState,
};
use serde_json::json;
use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::random::{Random, number_in, seed_from};
use support::server::Serving;
use support::truth::{check_host, fits};
use support::{Home, PATIENCE, eventually};

/// Rounds when nobody says how many; `.ci/run` says more.
const ROUNDS_DEFAULT: u64 = 20;

const HOSTS: usize = 3;
const USERS: usize = 3;

/// Longest time between readiness and the kill, in milliseconds. Larger: fewer kills a
/// minute; smaller: what takes longer is never under way.
const ALIVE_MS_MAX: usize = 500;

/// The same for a server that is killed while it starts.
const STARTING_MS_MAX: usize = 60;

/// Agents announce what they paused a moment after it left their list: the second look
/// must come later than that.
const FLAGS: &[&str] = &[
    "--probe-interval",
    "1s",
    "--probe-timeout",
    "1s",
    "--confirm-delay",
    "500ms",
    "--heartbeat-flush",
    "100ms",
];

/// What outlives every server.
struct World {
    home: Home,
    fleet: SimFleet,
    journal: Journal,
}

impl World {
    fn new() -> World {
        let short = Duration::from_millis(20);
        let habits = Habits {
            create_takes: short,
            pause_takes: short,
            resume_takes: short,
            ..Habits::default()
        };
        let fleet = SimFleet::start(&FleetOptions {
            hosts: HOSTS,
            sandboxes: 0,
            base_port: 0,
            initially: Initially::Running,
            habits,
            seed: 1,
            clock: Arc::new(SystemClock),
        });
        World { home: Home::new(), fleet: fleet.unwrap(), journal: Journal::default() }
    }

    fn register(&self) -> Agents<'_> {
        let serving = self.home.serve(FLAGS);
        let options = BeaterOptions {
            url: format!("http://{}", serving.address),
            timeout: PATIENCE,
            tls: None,
        };
        let register = |host: &Arc<SimHost>| {
            let added = serving.post("/v1/hosts", &json!({})).json();
            let token = added["registration_token"].as_str().unwrap();
            let credentials =
                Beater::register(&options, host, token).unwrap().credentials().clone();
            self.journal.host(&credentials.host_id.to_string(), |host| {
                host.registered = true;
                host.intent = "active";
                host.refresh_token.clone_from(&credentials.refresh_token);
            });
            credentials
        };
        let credentials = self.fleet.hosts().iter().map(register).collect();
        Agents { fleet: &self.fleet, credentials: Mutex::new(credentials) }
    }

    /// One server from its start to its end.
    fn round(&self, agents: &Agents<'_>, mut random: Random) {
        if random.one_in(5) {
            return self.kill_while_it_starts(&mut random);
        }
        let serving = self.home.serve(FLAGS);
        self.renew_some(&serving, &mut random);
        let target = &Target { address: serving.address, key: serving.key().to_owned() };
        let journal = &self.journal;
        let shares = self.shares();
        std::thread::scope(|scope| {
            for (user, own) in shares.into_iter().enumerate() {
                let random = random.fork(user as u64);
                scope.spawn(move || use_capsules(target, journal, agents, own, random));
            }
            for n in 0..HOSTS {
                let random = random.fork(100 + n as u64);
                scope.spawn(move || agents.beat(target, journal, n, random));
            }
            let fork = random.fork(200);
            scope.spawn(move || operate(target, journal, fork));
            // The moment must not depend on anything that happens.
            std::thread::sleep(Duration::from_millis(random.below(ALIVE_MS_MAX) as u64));
            serving.kill();
        });
    }

    fn kill_while_it_starts(&self, random: &mut Random) {
        let mut command = self.home.serving(FLAGS);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(random.below(STARTING_MS_MAX) as u64));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Every capsule has one user, those included whose creation was never answered.
    fn shares(&self) -> Vec<Vec<SandboxId>> {
        let mut shares = vec![Vec::new(); USERS];
        let all = check::sandboxes(&self.home.path("roost.db"));
        let live = all.into_iter().filter(|(_, found)| found.status != "stopped");
        live.enumerate().for_each(|(n, (id, _))| shares[n % USERS].push(id));
        shares
    }

    /// The newest refresh tokens of some hosts still work. An operator's host uses the one
    /// that it had in another round only here.
    fn renew_some(&self, serving: &Serving, random: &mut Random) {
        let hosts = &mut self.journal.notes().hosts;
        for (id, host) in hosts.iter_mut().filter(|(_, host)| host.registered) {
            if !random.one_in(1 + HOSTS) {
                continue;
            }
            let body = json!({"refresh_token": host.refresh_token}).to_string();
            let answer = serving.ask("POST", "/v1/hosts/auth/refresh", &[], &body);
            assert_eq!(answer.status, 200, "{id}: {answer:?}");
            // Not used, so the one before stays good.
        }
    }

    fn check(&self) -> BTreeMap<SandboxId, Found> {
        self.home.verify();
        let db = self.home.path("roost.db");
        let sandboxes = check::sandboxes(&db);
        check::nothing_is_lost(&db, &sandboxes, &mut self.journal.notes());
        check::nothing_is_by_half(&db, &sandboxes);
        sandboxes
    }

    /// A server that is left alone brings the database and the hosts together, in seconds.
    fn settle(&self) {
        let serving = self.home.serve(FLAGS);
        let db = self.home.path("roost.db");
        eventually("what is left to end", || {
            let rows = check::sandboxes(&db);
            let fits = |(id, found): (&SandboxId, &Found)| fits(&found.status, self.state(*id));
            rows.iter().all(fits).then_some(())
        });
        serving.stop();
        let rows = self.check();
        for (host, id) in self.fleet.hosts().iter().zip(self.host_ids()) {
            let here = rows.iter().filter(|(_, found)| found.host == id);
            check_host(host, here.map(|(id, found)| (*id, found.status.as_str())), &[]);
        }
        let moves = || rows.values().flat_map(|found| &found.history);
        let because = |why: &str| moves().filter(|(_, reason)| reason == why).count();
        println!(
            "{} capsules in {} steps: {} announced, {} presumed paused; {} requests accepted",
            rows.len(),
            moves().count(),
            because("auto_paused"),
            because("presumed_paused"),
            self.journal.notes().accepted,
        );
    }

    fn state(&self, id: SandboxId) -> Option<SimState> {
        self.fleet.hosts().iter().find_map(|host| host.state(id))
    }

    /// What the control plane calls the simulated hosts.
    fn host_ids(&self) -> Vec<String> {
        let hosts = self.home.json(&["hosts"]);
        let id_at = |address: String| {
            let host = hosts.as_array().unwrap().iter().find(|host| host["address"] == address);
            host.unwrap()["id"].as_str().unwrap().to_owned()
        };
        self.fleet.hosts().iter().map(|host| id_at(host.address().to_string())).collect()
    }
}

#[test]
fn what_was_acknowledged_survives_kills_at_any_moment() {
    let random = Random::new(seed_from("ROOST_CRASH_SEED"));
    let rounds = number_in("ROOST_CRASH_ROUNDS").unwrap_or(ROUNDS_DEFAULT);
    let world = World::new();
    let agents = world.register();
    world.check();
    for round in 0..rounds {
        world.round(&agents, random.fork(round));
        world.check();
    }
    world.settle();
    let accepted = world.journal.notes().accepted;
    assert!(accepted as u64 > rounds * 5, "{accepted} in {rounds} rounds is next to nothing");
    assert!(world.fleet.shutdown(PATIENCE), "a call is still under way");
}

/// The comparison finds what is missing.
#[test]
fn what_is_missing_is_found() {
    let found = |history: &[(&str, &str)], status: &str, announced: bool| Found {
        host: String::new(),
        status: status.to_owned(),
        history: history.iter().map(|(to, why)| ((*to).into(), (*why).into())).collect(),
        announced,
    };
    let asked = |verbs: &[Verb], announced| Capsule {
        asked: verbs.iter().map(|&verb| Asked { verb, accepted: true }).collect(),
        announced,
    };
    let (made, ran) = (("starting", "requested"), ("running", "operation_succeeded"));
    let paused = [made, ran, ("pausing", "requested")];
    let both = asked(&[Verb::Create, Verb::Pause], false);
    assert!(check::holds_all(&both, &found(&paused, "pausing", false)).is_ok());
    assert!(check::holds_all(&both, &found(&paused[..2], "running", false)).is_err());
    let other = [made, ran, ("pausing", "reported")];
    assert!(check::holds_all(&both, &found(&other, "pausing", false)).is_err());
    let twice = asked(&[Verb::Create, Verb::Pause, Verb::Pause], false);
    assert!(check::holds_all(&twice, &found(&paused, "pausing", false)).is_err());
    let told = asked(&[Verb::Create], true);
    assert!(check::holds_all(&told, &found(&[made, ran], "running", false)).is_err());
    assert!(check::holds_all(&told, &found(&[made, ran], "running", true)).is_ok());
    assert!(check::holds_all(&told, &found(&[made, ran], "paused", false)).is_ok());
}
