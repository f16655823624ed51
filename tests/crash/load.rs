//! Owns what goes on while a server is killed: users, operators and agents, each on a thread
//! of its own, until nobody answers any more.
//!
//! Never: waits for anything but an answer; judges more of an answer than that it is one of
//! those that may be given.

#![allow(unreachable_pub, reason = "a part of one test")]

use crate::journal::{Journal, Verb};
use crate::support::client::{Answer, try_ask};
use crate::support::random::Random;
use roost::clock::{Clock, SystemClock};
use roost::model::id::SandboxId;
use roost::sim::{Beat, Beater, BeaterOptions, Credentials, SimFleet, SimHost};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

/// Capsules of one user that are not over. More and every round does the same to others;
/// fewer and there is little to kill.
const CAPSULES_MAX: usize = 6;

/// Longest wait of an agent for an answer to a heartbeat.
const BEAT_PATIENCE: Duration = Duration::from_secs(15);

/// A server to press.
#[derive(Clone)]
pub struct Target {
    pub address: SocketAddr,
    pub key: String,
}

impl Target {
    /// Asks as a user; `None` when the server is gone.
    fn ask(&self, method: &str, path: &str, body: &Value) -> Option<Answer> {
        let headers = [("X-API-Key", self.key.as_str())];
        try_ask(self.address, method, path, &headers, &body.to_string()).ok()
    }

    fn json(&self, method: &str, path: &str, body: &Value, status: u16) -> Option<Value> {
        let answer = self.ask(method, path, body)?;
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        Some(answer.json())
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

/// A user with capsules of its own; what they are doing is asked before every wish.
pub fn use_capsules(
    target: &Target,
    journal: &Journal,
    agents: &Agents<'_>,
    mut own: Vec<SandboxId>,
    mut random: Random,
) -> Option<()> {
    loop {
        if own.len() < CAPSULES_MAX {
            own.extend(create(target, journal)?);
            continue;
        }
        let id = *random.pick(&own)?;
        let capsule = target.json("GET", &format!("/v1/capsules/{id}"), &Value::Null, 200)?;
        let verb = match capsule["status"].as_str() {
            Some("stopped" | "error") => {
                own.retain(|other| *other != id);
                continue;
            }
            Some("running") if random.one_in(3) => {
                agents.pause_by_itself(target, journal, id, &mut random)?;
                continue;
            }
            Some("running") if random.one_in(2) => Verb::Pause,
            Some("paused") if !random.one_in(3) => Verb::Resume,
            // What is under way may be overtaken, but seldom: it then waits for long.
            Some("starting" | "pausing" | "resuming") if !random.one_in(40) => continue,
            Some("stopping") => {
                own.retain(|other| *other != id);
                continue;
            }
            Some(_) => Verb::Destroy,
            None => panic!("no status: {capsule}"),
        };
        wish(target, journal, id, verb)?;
    }
}

fn create(target: &Target, journal: &Journal) -> Option<Option<SandboxId>> {
    let answer = target.ask("POST", "/v1/capsules", &json!({"memory_mb": 128}))?;
    if answer.status == 503 {
        assert_eq!(answer.refusal().1, "no_hosts_available");
        return Some(None);
    }
    assert_eq!(answer.status, 202, "{answer:?}");
    let id = text(&answer.json()["id"]).parse().unwrap();
    journal.created(id);
    Some(Some(id))
}

fn wish(target: &Target, journal: &Journal, id: SandboxId, verb: Verb) -> Option<()> {
    let (method, path) = match verb {
        Verb::Create => unreachable!("what is there cannot be created"),
        Verb::Pause => ("POST", "/pause"),
        Verb::Resume => ("POST", "/resume"),
        Verb::Destroy => ("DELETE", ""),
    };
    journal.ask(id, verb);
    let answer = target.ask(method, &format!("/v1/capsules/{id}{path}"), &Value::Null)?;
    let accepted = answer.status == 202;
    // Its status has changed since it was asked for, or others have taken its room.
    let ended = answer.status == 204 && verb == Verb::Destroy;
    let is_full = verb == Verb::Resume && answer.body.contains("no_room");
    assert!(accepted || ended || is_full || answer.status == 409, "{verb:?} {id}: {answer:?}");
    if accepted {
        assert_eq!(answer.json()["status"], verb.status(), "{answer:?}");
    }
    journal.answered(id, accepted);
    Some(())
}

/// The simulated hosts with what they prove themselves with; it outlives every server.
pub struct Agents<'a> {
    pub fleet: &'a SimFleet,
    pub credentials: Mutex<Vec<Credentials>>,
}

impl Agents<'_> {
    fn credentials(&self, n: usize) -> Credentials {
        self.credentials.lock().unwrap()[n].clone()
    }

    fn owner(&self, id: SandboxId) -> Option<(usize, &SimHost)> {
        let hosts = self.fleet.hosts().iter().map(AsRef::as_ref).enumerate();
        hosts.into_iter().find(|(_, host)| host.state(id).is_some())
    }

    /// An agent pauses an idle capsule; the next listing says so, and often a report before.
    fn pause_by_itself(
        &self,
        target: &Target,
        journal: &Journal,
        id: SandboxId,
        random: &mut Random,
    ) -> Option<()> {
        let Some((n, host)) = self.owner(id) else { return Some(()) };
        if !host.auto_pause(id) || random.one_in(2) {
            return Some(());
        }
        let Credentials { host_id, token, .. } = self.credentials(n);
        let body = json!({"event": "sandbox.auto_paused", "sandbox_id": id.to_string(),
            "host_id": host_id.to_string(), "timestamp": SystemClock.now().wall.to_string()});
        let headers = [("X-Host-Token", token.as_str())];
        let path = "/v1/hosts/sandbox-events";
        let answer = try_ask(target.address, "POST", path, &headers, &body.to_string()).ok()?;
        assert_eq!(answer.status, 204, "{answer:?}");
        journal.announced(id);
        Some(())
    }

    /// Host `n` beats and now and then renews its tokens.
    pub fn beat(
        &self,
        target: &Target,
        journal: &Journal,
        n: usize,
        mut random: Random,
    ) -> Option<()> {
        let host = &self.fleet.hosts()[n];
        let options = BeaterOptions {
            url: format!("http://{}", target.address),
            timeout: BEAT_PATIENCE,
            tls: None,
        };
        loop {
            let credentials = self.credentials(n);
            let id = credentials.host_id.to_string();
            let mut beater = Beater::new(&options, credentials);
            for _ in 0..random.below(20) {
                let beat = beater.beat(host);
                if beat == Beat::Unanswered(1) {
                    return None;
                }
                assert_eq!(beat, Beat::Acknowledged, "of {id}");
            }
            let shown = beater.credentials().refresh_token.clone();
            let (token, refresh_token) = renew(target, journal, &id, &shown)?;
            let mut credentials = self.credentials.lock().unwrap();
            credentials[n].token = token;
            credentials[n].refresh_token = refresh_token;
        }
    }
}

/// Renews the tokens of a host; the new ones.
fn renew(target: &Target, journal: &Journal, id: &str, shown: &str) -> Option<(String, String)> {
    let body = json!({"refresh_token": shown});
    let answer = target.json("POST", "/v1/hosts/auth/refresh", &body, 200)?;
    let fresh = (text(&answer["token"]), text(&answer["refresh_token"]));
    journal.host(id, |host| host.refresh_token.clone_from(&fresh.1));
    Some(fresh)
}

/// An operator adds a host that never takes a capsule and changes what is wanted of it, and
/// its agent renews its tokens.
pub fn operate(target: &Target, journal: &Journal, mut random: Random) -> Option<()> {
    let added = target.json("POST", "/v1/hosts", &json!({}), 201)?;
    let id = text(&added["host"]["id"]);
    journal.host(&id, |host| host.intent = "active");
    intend(target, journal, &id, "drain", "draining")?;
    // One of its own: another live host's is refused.
    let at = id.bytes().fold(1_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    let [a, b, c, _] = at.to_be_bytes();
    let address = format!("127.{a}.{b}.{}:1", c.max(1));
    let body = json!({"token": added["registration_token"], "address": address});
    let registered = target.json("POST", "/v1/hosts/register", &body, 201)?;
    let mut shown = text(&registered["refresh_token"]);
    journal.host(&id, |host| {
        host.registered = true;
        host.refresh_token.clone_from(&shown);
    });
    loop {
        match random.below(4) {
            0 => intend(target, journal, &id, "drain", "draining")?,
            1 => intend(target, journal, &id, "offline", "offline")?,
            _ => shown = renew(target, journal, &id, &shown)?.1,
        }
    }
}

fn intend(
    target: &Target,
    journal: &Journal,
    id: &str,
    verb: &str,
    intent: &'static str,
) -> Option<()> {
    journal.notes().hosts.get_mut(id).unwrap().intent_asked = Some(intent);
    target.json("POST", &format!("/v1/hosts/{id}/{verb}"), &Value::Null, 200)?;
    journal.host(id, |host| {
        host.intent = intent;
        host.intent_asked = None;
    });
    Some(())
}
