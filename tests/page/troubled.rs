//! A small fleet on a bad day: a host in every state, sandboxes in every status, and what
//! befell them since yesterday. Made for looking at.

use crate::days::{Past, ago, write_past};
use crate::support::{Home, host, sandbox, sim_fleet};
use roost::sim::{Faults, SimFleet, SimState};
use serde_json::{Value, json};
use std::time::Duration;

const HOSTS: u128 = 6;
/// The one that fell silent.
const SILENT: u128 = 3;
/// The one whose agent hangs.
const HUNG: u128 = 4;
/// The one that is being emptied.
const DRAINING: u128 = 5;

pub(crate) struct Troubled {
    pub(crate) home: Home,
    _agents: SimFleet,
}

/// Ids that look as random as real ones.
fn id(n: u128) -> u128 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
}

impl Troubled {
    pub(crate) const FLAGS: [&str; 8] = [
        "--startup-grace",
        "1h",
        "--unreachable-after",
        "1h",
        "--probe-timeout",
        "1s",
        "--probe-interval",
        "5s",
    ];

    pub(crate) fn start() -> Troubled {
        let agents = sim_fleet(HOSTS as usize, 0);
        let boxes: Vec<Value> = (0..190).map(|n| row(&agents, n)).collect();
        agents.set_faults(2, Faults { closed: true, ..Faults::default() }).unwrap();
        agents.set_faults(3, Faults::slow(Duration::from_secs(60))).unwrap();
        let hosts: Vec<Value> = (1..=HOSTS).map(|n| host_row(&agents, n)).collect();
        let home = Home::with(&json!({"hosts": hosts, "sandboxes": boxes}));
        write_past(&home, &past());
        Troubled { home, _agents: agents }
    }
}

fn host_row(agents: &SimFleet, n: u128) -> Value {
    let (status, heard_s) = match n {
        SILENT => ("unreachable", 840),
        DRAINING => ("draining", 9),
        _ => ("online", 4 + n as u64 * 3),
    };
    json!({"id": host(id(n)), "status": status, "degraded": n == HUNG, "heartbeat_age_s": heard_s,
        "address": agents.hosts()[n as usize - 1].address().to_string(), "arch": "x86_64",
        "availability_zone": (["rack-a", "rack-b", "rack-c"][n as usize % 3]), "cpu_cores": 16,
        "memory_mb": 65536, "disk_gb": 1000, "created_at": ago(60 * 24 * 40)})
}

/// A sandbox, and the same on its agent where its agent should have it.
fn row(agents: &SimFleet, n: u128) -> Value {
    let on = n % HOSTS + 1;
    let (status, reason, age_s) = match n {
        _ if on == SILENT => ("missing", "host_unreachable", 840),
        7 => ("error", "operation_failed", 5400),
        12 => ("resuming", "requested", 6),
        13 => ("starting", "requested", 3),
        18 => ("pausing", "requested", 11),
        _ if n % 5 == 1 => ("paused", "auto_paused", 4000 + 977 * n as u64),
        _ => ("running", "operation_succeeded", 60 + 811 * n as u64),
    };
    let has = match status {
        "running" | "pausing" => Some(SimState::Running),
        "paused" => Some(SimState::Paused),
        _ => None,
    };
    if let Some(state) = has {
        let agent = &agents.hosts()[on as usize - 1];
        agent.put(sandbox(id(1000 + n)).parse().unwrap(), state, Duration::from_secs(6000));
    }
    let (template, vcpus, memory_mb) =
        [("minimal", 1, 512), ("python-3.13", 2, 2048), ("browser", 4, 2048)][(n / 7) as usize % 3];
    json!({"id": sandbox(id(1000 + n)), "host_id": host(id(on)), "status": status,
        "status_reason": reason, "status_age_s": age_s, "template": template, "vcpus": vcpus,
        "memory_mb": memory_mb, "disk_size_mb": 5120, "timeout_sec": 300, "created_at": ago(900)})
}

/// A day on which load comes and goes.
fn past() -> Vec<Past<'static>> {
    let mut past = Vec::new();
    for minutes in (20..1430).rev().step_by(9) {
        let n = (minutes / 9) as u128;
        let on = id(n % HOSTS + 1);
        let about = Some(id(5000 + n));
        let busy = (600..1100).contains(&minutes);
        let (kind, from, to, reason) = match (busy, n % 4) {
            (true, 3) => ("sandbox.running", "paused", "running", "operation_succeeded"),
            (true, _) => ("sandbox.paused", "running", "paused", "auto_paused"),
            (false, 3) => ("sandbox.paused", "running", "paused", "auto_paused"),
            (false, 2) => ("sandbox.stopped", "paused", "stopped", "operation_succeeded"),
            (false, _) => ("sandbox.running", "paused", "running", "operation_succeeded"),
        };
        past.push((minutes, kind, on, about, Some(from), Some(to), reason));
    }
    past.extend(outage(1, 910, 868));
    past.extend(outage(2, 420, 405));
    past.extend(host_events());
    past.extend((0..32).map(|n| missing(SILENT, 14, 2 + n * HOSTS)));
    past.sort_by_key(|(minutes, ..)| -minutes);
    past
}

fn host_events() -> Vec<Past<'static>> {
    let (online, away) = (Some("online"), Some("unreachable"));
    let slow = "timed_out: no whole answer within 1 s";
    let move_of = |minutes, on, n: u128, kind, from, to, reason| {
        (minutes, kind, id(on), Some(id(1000 + n)), from, Some(to), reason)
    };
    vec![
        (330, "host.degraded", id(6), None, None, None, slow),
        (290, "host.recovered", id(6), None, None, None, "probes succeed again"),
        move_of(90, 2, 7, "sandbox.error", Some("running"), "error", "operation_failed"),
        (41, "host.intent", id(DRAINING), None, online, Some("draining"), "requested"),
        (14, "host.down", id(SILENT), None, online, away, "host_unreachable"),
        (6, "host.degraded", id(HUNG), None, None, None, slow),
        move_of(0, 1, 18, "sandbox.pausing", Some("running"), "pausing", "requested"),
        move_of(0, 1, 12, "sandbox.resuming", Some("paused"), "resuming", "requested"),
        move_of(0, 2, 13, "sandbox.starting", None, "starting", "requested"),
    ]
}

/// A host that was silent for a while, with eighteen of its sandboxes.
fn outage(on: u128, from: i64, to: i64) -> Vec<Past<'static>> {
    let (online, away) = (Some("online"), Some("unreachable"));
    let boxes: Vec<u128> = (0..18).map(|n| on - 1 + n * HOSTS).collect();
    let mut past = vec![(from, "host.down", id(on), None, online, away, "host_unreachable")];
    past.extend(boxes.iter().map(|n| missing(on, from, *n)));
    past.push((to, "host.up", id(on), None, away, online, "heartbeat_received"));
    past.extend(boxes.iter().map(|n| {
        let (from, back) = (Some("missing"), Some("running"));
        (to, "sandbox.running", id(on), Some(id(1000 + n)), from, back, "restored")
    }));
    past
}

fn missing(on: u128, minutes: i64, n: u128) -> Past<'static> {
    let (from, to) = (Some("running"), Some("missing"));
    (minutes, "sandbox.missing", id(on), Some(id(1000 + n)), from, to, "host_unreachable")
}
