//! Owns what lifecycle tests share: the real `roost serve` and simulated hosts that are
//! registered with it, an HTTP client, and what must be true at the end of every test.
//!
//! Never: decides what an operation should do. The simulated hosts know what is really
//! there; the end of every test compares that with what the database says.
#![allow(unreachable_pub, reason = "each test uses its part")]

use crate::support::client::{self, Answer as Whole};
use crate::support::server::Serving;
use crate::support::truth::check_host;
use crate::support::{Done, Home, PATIENCE, eventually};
use roost::agent::wire::Method;
use roost::clock::SystemClock;
use roost::model::id::SandboxId;
use roost::sim::{
    Beater, BeaterOptions, Credentials, Faults, FleetOptions, Habits, Heartbeats, Initially,
    SimFleet, SimHost, SimState,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Beats are far more frequent than any verdict, and rare enough that a restart of the
/// server loses fewer than the three that make an agent pause everything.
const BEAT_EVERY: Duration = Duration::from_secs(20);

/// A probe may come at any time: nothing may depend on there being none.
const PROBE_INTERVAL: &str = "1s";

/// Time between two looks at what takes minutes.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// One answer: its status and its JSON, null without a body.
pub type Answer = (u16, Value);

/// The client side of the API.
#[derive(Clone)]
pub struct Api {
    http: ureq::Agent,
    url: String,
    key: String,
}

impl Api {
    fn of(server: &Serving) -> Api {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(PATIENCE))
            .build();
        let (url, key) = (format!("http://{}", server.address), server.key().to_owned());
        Api { http: ureq::Agent::new_with_config(config), url, key }
    }

    /// Sends a request; an error when the server is gone.
    pub fn try_ask(&self, method: &str, path: &str, body: &str) -> Result<Answer, ureq::Error> {
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header("X-API-Key", &self.key)
            .header("Content-Type", "application/json")
            .body(body.to_owned());
        let mut answer = self.http.run(request.unwrap())?;
        let text = answer.body_mut().read_to_string()?;
        let json = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
        Ok((answer.status().as_u16(), json))
    }

    pub fn ask(&self, method: &str, path: &str, body: &Value) -> Answer {
        self.try_ask(method, path, &body.to_string()).unwrap()
    }

    /// Sends a request with these headers as well; gives all of the answer.
    pub fn send(&self, method: &str, path: &str, more: &[(&str, &str)], body: &str) -> Whole {
        let own = [("X-API-Key", self.key.as_str())];
        client::try_ask(self.address(), method, path, &[&own[..], more].concat(), body).unwrap()
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.url.strip_prefix("http://").unwrap().parse().unwrap()
    }

    /// The same server, with another key.
    pub fn with_key(&self, key: &str) -> Api {
        Api { key: key.to_owned(), ..self.clone() }
    }

    /// Asks for a create.
    pub fn create(&self, body: &Value) -> Answer {
        self.ask("POST", "/v1/capsules", body)
    }

    /// Asks for `pause`, `resume`, `destroy` or `ping`.
    pub fn wish(&self, id: &str, verb: &str) -> Answer {
        match verb {
            "destroy" => self.ask("DELETE", &format!("/v1/capsules/{id}"), &Value::Null),
            verb => self.ask("POST", &format!("/v1/capsules/{id}/{verb}"), &Value::Null),
        }
    }

    /// Asks for an operation that must begin; the capsule must be in this status then.
    pub fn begin(&self, id: &str, verb: &str, status: &str) {
        let (code, capsule) = self.wish(id, verb);
        assert_eq!((code, &capsule["status"]), (202, &json!(status)), "{verb}: {capsule}");
        assert_eq!(capsule["id"], *id);
    }

    pub fn capsule(&self, id: &str) -> Value {
        let (code, capsule) = self.ask("GET", &format!("/v1/capsules/{id}"), &Value::Null);
        assert_eq!(code, 200, "{capsule}");
        capsule
    }

    /// Waits until a capsule has this status; gives it.
    pub fn until(&self, id: &str, status: &str) -> Value {
        eventually(&format!("{id} {status}"), || {
            let capsule = self.capsule(id);
            (capsule["status"] == status).then_some(capsule)
        })
    }

    /// Waits for so long until a capsule has this status; gives it.
    pub fn until_within(&self, id: &str, status: &str, patience: Duration) -> Value {
        let until = Instant::now() + patience;
        loop {
            let capsule = self.capsule(id);
            if capsule["status"] == status {
                return capsule;
            }
            assert!(Instant::now() < until, "not {status} within {patience:?}: {capsule}");
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until a capsule has this status for this reason.
    pub fn until_because(&self, id: &str, status: &str, reason: &str) {
        let capsule = self.until(id, status);
        assert_eq!(capsule["status_reason"], *reason, "{capsule}");
    }
}

/// The code and the sentence of a refusal with this status.
pub fn refusal((status, body): Answer, expected: u16) -> (String, String) {
    assert_eq!(status, expected, "{body}");
    let text = |name: &str| body["error"][name].as_str().unwrap().to_owned();
    (text("code"), text("message"))
}

/// A control plane and its simulated hosts.
pub struct World {
    home: Home,
    flags: Vec<String>,
    pub fleet: SimFleet,
    server: Option<Serving>,
    hosts: Vec<Credentials>,
    heartbeats: Heartbeats,
    pub api: Api,
}

impl World {
    /// With this many hosts, all registered.
    pub fn new(hosts: usize) -> World {
        World::with(hosts, Habits::default(), &[])
    }

    pub fn with(hosts: usize, habits: Habits, flags: &[&str]) -> World {
        let options = FleetOptions {
            hosts,
            sandboxes: 0,
            base_port: 0,
            initially: Initially::Running,
            habits,
            seed: 11,
            clock: Arc::new(SystemClock),
        };
        let (home, fleet) = (Home::new(), SimFleet::start(&options).unwrap());
        let mut all = vec!["--probe-interval", PROBE_INTERVAL, "--probe-timeout", "1s"];
        all.extend(["--confirm-delay", "50ms"]);
        all.extend(flags);
        let server = home.serve(&all);
        let api = Api::of(&server);
        let heartbeats = Heartbeats::start(BEAT_EVERY).unwrap();
        let flags = all.into_iter().map(str::to_owned).collect();
        let (hosts, server) = (Vec::new(), Some(server));
        let mut world = World { home, flags, fleet, server, hosts, heartbeats, api };
        world.register();
        world
    }

    fn beater_options(&self) -> BeaterOptions {
        BeaterOptions { url: self.api.url.clone(), timeout: PATIENCE, tls: None }
    }

    fn register(&mut self) {
        for host in self.fleet.hosts() {
            let (code, added) = self.api.ask("POST", "/v1/hosts", &json!({}));
            assert_eq!(code, 201, "{added}");
            let token = added["registration_token"].as_str().unwrap();
            let beater = Beater::register(&self.beater_options(), host, token).unwrap();
            self.hosts.push(beater.credentials().clone());
            self.heartbeats.enrol(Arc::clone(host), beater);
        }
    }

    /// Host number `n`.
    pub fn host(&self, n: usize) -> &SimHost {
        &self.fleet.hosts()[n]
    }

    /// What the control plane calls host number `n`.
    pub fn host_id(&self, n: usize) -> String {
        self.hosts[n].host_id.to_string()
    }

    pub fn fault(&self, n: usize, faults: Faults) {
        self.fleet.set_faults(n, faults).unwrap();
    }

    /// Asks for a capsule and waits until it has this status.
    pub fn capsule(&self, status: &str) -> String {
        let (code, capsule) = self.api.create(&json!({}));
        assert_eq!((code, &capsule["status"]), (202, &json!("starting")), "{capsule}");
        let id = capsule["id"].as_str().unwrap().to_owned();
        let steps: &[(&str, &str)] = match status {
            "starting" => &[],
            "running" => &[("", "running")],
            "paused" => &[("", "running"), ("pause", "paused")],
            other => panic!("no way to {other}"),
        };
        for (verb, status) in steps {
            if !verb.is_empty() {
                assert_eq!(self.api.wish(&id, verb).0, 202);
            }
            self.api.until(&id, status);
        }
        id
    }

    /// Waits until this host was called so often by this method for this capsule.
    pub fn wait_called(&self, n: usize, method: Method, id: &str, count: u64) {
        let id = id.parse().unwrap();
        let called = || (self.host(n).calls_of(method, id) >= count).then_some(());
        eventually(&format!("{count} calls of {method}"), called);
    }

    /// Waits until this is what is really there of a capsule on host 0.
    pub fn wait_state(&self, id: &str, state: Option<SimState>) {
        let reached = self.host(0).wait_state(id.parse().unwrap(), state, PATIENCE);
        assert!(reached, "{id} is not {state:?} but {:?}", self.state(id));
    }

    /// What is really there of a capsule on host 0.
    pub fn state(&self, id: &str) -> Option<SimState> {
        self.host(0).state(id.parse().unwrap())
    }

    /// Has the server read this configuration file.
    pub fn reload(&self, file: &str, logged: &[&str]) {
        let server = self.server.as_ref().unwrap();
        self.home.write("roost.toml", file);
        server.signal(Signal::HUP);
        server.logged(logged);
    }

    /// Tells the server to stop, and does not wait.
    pub fn begin_stop(&self) {
        self.server.as_ref().unwrap().signal(Signal::TERM);
    }

    /// The value of a metric without labels.
    pub fn metric(&self, name: &str) -> u64 {
        self.server.as_ref().unwrap().metric(name)
    }

    /// Ends the server as a power cut would.
    pub fn kill(&mut self) {
        self.server.take().unwrap().kill();
    }

    /// Waits for a server that was told to stop.
    pub fn stopped(&mut self) {
        assert_eq!(self.server.take().unwrap().wait(), 0);
    }

    /// Ends the server in order.
    pub fn stop(&mut self) {
        self.server.take().unwrap().stop();
    }

    /// Tells the server to end in order, without waiting for that.
    pub fn terminate(&self) {
        self.server.as_ref().unwrap().signal(Signal::TERM);
    }

    /// Waits until a server that was told to end has ended.
    pub fn wait_end(&mut self) {
        self.server.take().unwrap().wait();
    }

    /// Sends a heartbeat of host number `n`; gives the status of the answer.
    pub fn beat(&self, n: usize) -> u16 {
        let path = format!("{}/v1/hosts/{}/heartbeat", self.api.url, self.host_id(n));
        let request = self.api.http.post(path).header("X-Host-Token", &self.hosts[n].token);
        request.send_empty().unwrap().status().as_u16()
    }

    /// Starts the server again on what the last one left.
    pub fn start(&mut self) {
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        let server = self.home.serve(&flags);
        self.take_over(server);
    }

    fn take_over(&mut self, server: Serving) {
        self.api = Api::of(&server);
        self.server = Some(server);
        for (host, credentials) in self.fleet.hosts().iter().zip(&self.hosts) {
            let beater = Beater::new(&self.beater_options(), credentials.clone());
            self.heartbeats.enrol(Arc::clone(host), beater);
        }
    }

    /// Audit entries of a capsule, oldest first: who, action, status.
    pub fn audit(&self, id: &str) -> Vec<(String, String, String)> {
        let entries = self.home.json(&["audit", "--sandbox", id]);
        let text = |entry: &Value, name: &str| entry[name].as_str().unwrap().to_owned();
        let entry = |e: &Value| (text(e, "actor_type"), text(e, "action"), text(e, "status"));
        let mut entries: Vec<_> = entries.as_array().unwrap().iter().map(entry).collect();
        entries.reverse();
        entries
    }

    /// Statuses that a capsule went through, by its events.
    pub fn path(&self, id: &str) -> Vec<String> {
        let events = self.home.json(&["events", "--after", "0", "--sandbox", id]);
        let statuses = events.as_array().unwrap().iter().filter_map(|event| event["to"].as_str());
        statuses.map(str::to_owned).collect()
    }

    /// Every capsule, as the database has it. Checks that the database is whole, that its
    /// history is without gaps and says what the rows say.
    pub fn rows(&self) -> BTreeMap<SandboxId, Value> {
        self.home.verify();
        let rows = self.home.json(&["sandboxes", "list", "--all"]);
        let id = |row: &Value| row["id"].as_str().unwrap().parse().unwrap();
        let rows: BTreeMap<SandboxId, Value> =
            rows.as_array().unwrap().iter().map(|row| (id(row), row.clone())).collect();
        check_history(&self.home, &rows);
        rows
    }

    /// Runs a command that acts on the running server.
    pub fn cli(&self, args: &[&str]) -> Done {
        let url = self.api.url.as_str();
        Done::of(self.home.command(args).env("ROOST_URL", url).output().unwrap())
    }

    /// Copies the database.
    pub fn backup(&self, to: &Path) {
        self.home.roost(&["db", "backup", to.to_str().unwrap()]).ok();
    }

    /// Puts a copy in the place of the database of a stopped server, starts it and accepts it.
    pub fn restore(&mut self, from: &Path) {
        self.home.roost(&["db", "restore", from.to_str().unwrap()]).ok();
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        let server = self.home.serve_restored(&flags);
        self.take_over(server);
        self.cli(&["db", "accept"]).ok();
    }

    /// Ends the world and checks that all is well: what `rows` checks, and that on the hosts
    /// there is what the rows say and nothing else but `strangers`.
    pub fn end(mut self, strangers: &[SandboxId]) {
        self.heartbeats.beat_all();
        if let Some(server) = self.server.take() {
            server.stop();
        }
        let rows = self.rows();
        for (host, credentials) in self.fleet.hosts().iter().zip(&self.hosts) {
            let host_id = credentials.host_id.to_string();
            let here = rows.iter().filter(|(_, row)| row["host_id"] == host_id);
            let here = here.map(|(id, row)| (*id, row["status"].as_str().unwrap()));
            check_host(host, here, strangers);
        }
        assert!(self.fleet.shutdown(PATIENCE), "a call is still under way");
    }
}

fn check_history(home: &Home, rows: &BTreeMap<SandboxId, Value>) {
    let events = home.json(&["events", "--after", "0", "--limit", "1000"]);
    let events = events.as_array().unwrap();
    let revisions: Vec<u64> = events.iter().map(|e| e["revision"].as_u64().unwrap()).collect();
    assert_eq!(revisions, (1..=revisions.len() as u64).collect::<Vec<_>>());
    let mut last: BTreeMap<SandboxId, &str> = BTreeMap::new();
    for event in events {
        let Some(to) = event["to"].as_str() else { continue };
        let Some(id) = event["sandbox_id"].as_str() else { continue };
        let before = last.insert(id.parse().unwrap(), to);
        assert_eq!(before, event["from"].as_str(), "an event begins where the last ended: {event}");
    }
    let statuses = rows.iter().map(|(id, row)| (*id, row["status"].as_str().unwrap()));
    assert_eq!(last, statuses.collect());
    for id in rows.keys() {
        let audit = home.json(&["audit", "--sandbox", &id.to_string()]);
        let actions: Vec<&Value> =
            audit.as_array().unwrap().iter().map(|entry| &entry["action"]).collect();
        assert_eq!(actions.last(), Some(&&json!("create")), "the first entry of {id}");
    }
}
