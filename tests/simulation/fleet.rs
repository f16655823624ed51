//! Owns how a simulated fleet comes about: registered hosts in a fresh database.
//!
//! Never: anything after that.

use crate::agent::{Agent, Habits};
use crate::chance::Chance;
use crate::leaving::Standing;
use crate::people::person;
use crate::world::{Heart, Link, MINUTE, Machine, SECOND, TOKEN_LIFE};
use roost::model::endpoint::Resolved;
use roost::model::host::AgentAddress;
use roost::model::id::{HostId, PLATFORM_TEAM};
use roost::model::policy::Policy;
use roost::model::time::{Now, Wall};
use roost::store::identity::{NewHost, Registration};
use roost::store::journal::Random;
use roost::store::open::{begin_serving, open_writer};
use roost::store::presence::Presence;
use roost::store::writer::{Command, Envelope, Writer};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

/// Hosts that registered long ago.
pub(crate) fn settlers(
    db: &std::path::Path,
    policy: &Policy,
    count: usize,
    seed: u64,
    chance: &mut Chance,
    now: Now,
) -> Vec<Machine> {
    let conn = open_writer(db, true, now.wall).expect("the database is made");
    begin_serving(&conn, None).expect("the start can be noted");
    let random = Random::foreseeable(seed);
    let presence = Arc::new(Presence::default());
    let writer = Writer::with_random(conn, policy.clone(), presence, random);
    let mut writer = writer.expect("the writer starts");
    (0..count).map(|n| settle_one(&mut writer, n, chance, now)).collect()
}

pub(crate) fn settle_one(writer: &mut Writer, n: usize, chance: &mut Chance, now: Now) -> Machine {
    let token = [n as u8; 32];
    let refresh_token = [n as u8 + 100; 32];
    let new = NewHost {
        team: PLATFORM_TEAM,
        kind: "regular".to_owned(),
        provider: None,
        availability_zone: None,
        token,
        actor: person(),
    };
    let made = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&made);
    let reply = Box::new(move |result| *keep.lock().expect("one thread") = Some(result));
    let address: AgentAddress = format!("10.0.0.{}:50051", n + 1).parse().expect("an address");
    writer.execute(vec![Envelope { now, command: Command::CreateHost(new, reply) }]);
    let host = made.lock().expect("one thread").take().expect("an answer").expect("a host");
    let mut settler = machine(host.id, address, chance, now.wall);
    let registration = registration(&settler, token, refresh_token);
    let register = Command::Register(Box::new(registration), Box::new(|_| {}));
    writer.execute(vec![Envelope { now, command: register }]);
    settler.standing.registered = true;
    settler.heart.refresh_token = refresh_token;
    settler
}

/// What the agent of a machine says when it registers.
pub(crate) fn registration(machine: &Machine, token: [u8; 32], refresh: [u8; 32]) -> Registration {
    Registration {
        token,
        refresh,
        address: machine.address.clone(),
        resolved: Resolved::new(),
        arch: None,
        cpu_cores: Some(64),
        memory_mb: Some(machine.memory_mb),
        disk_gb: None,
    }
}

/// Memory of hosts in MiB: half of them have room for a few sandboxes only.
const MEMORY_MB: &[u64] = &[2_048, 3_000, 65_536, 65_536];

/// A host that nobody has heard of yet.
pub(crate) fn machine(
    id: HostId,
    address: AgentAddress,
    chance: &mut Chance,
    now: Wall,
) -> Machine {
    let habits = Habits {
        lists_paused: chance.permille(400),
        lists_after_restart: chance.permille(700),
        announces: chance.permille(750),
        tells_failures: chance.permille(500),
        finishes_orphans: chance.permille(250),
        lists_slowly: chance.permille(300),
        waits_for_creates: chance.permille(500),
    };
    let reports = chance.permille(600) || !habits.announces;
    Machine {
        id,
        address,
        instead_of: None,
        standing: Standing::default(),
        agent: Agent::new(habits),
        link: Link::GOOD,
        heart: Heart {
            failures: 0,
            over: false,
            pausing_until: 0,
            beat_ms: None,
            token_expires_at: now.after(TOKEN_LIFE),
            refresh_token: [0; 32],
            registration: 0,
            issued_at: now,
            asked_at: now,
            straggler_ms: None,
            renewing: None,
        },
        skew_ms: skew_ms(chance),
        reports,
        memory_mb: chance.pick(MEMORY_MB).copied().unwrap_or(65_536),
        refused: BTreeSet::new(),
        stale: BTreeSet::new(),
        half_declined: BTreeSet::new(),
        gone: BTreeSet::new(),
        heard_ms: None,
        verdict: None,
        asked: BTreeMap::new(),
        sighted_ms: 0,
        found_ms: 0,
        late: BTreeSet::new(),
        creates_asked: BTreeMap::new(),
    }
}

/// Most clocks are a little off, some by days.
fn skew_ms(chance: &mut Chance) -> i64 {
    let most = if chance.permille(300) { 3 * 24 * 60 * MINUTE } else { 2 * SECOND };
    chance.within(0, 2 * most) as i64 - most as i64
}
