//! Owns the monitor at work in a running server: real agents are asked, silent hosts fall
//! and return, and what follows is seen through the API and the history.
//!
//! Never: the whole table of decisions, which is shown case by case elsewhere.

use crate::support::agents::{Agents, HungAgent, Says};
use crate::support::server::Serving;
use crate::support::{Home, eventually, host, sandbox};
use serde_json::{Value, json};

/// Host `n` at this address with sandbox `n` in this status.
fn fleet(hosts: &[(u128, String, &str)]) -> Value {
    let row = |(n, address, _): &(u128, String, &str)| json!({"id": host(*n), "status": "online", "address": address, "heartbeat_age_s": 5});
    let sandbox = |(n, _, status): &(u128, String, &str)| json!({"id": sandbox(*n), "host_id": host(*n), "status": status});
    let hosts_of: Vec<Value> = hosts.iter().map(row).collect();
    let sandboxes: Vec<Value> = hosts.iter().map(sandbox).collect();
    json!({"hosts": hosts_of, "sandboxes": sandboxes})
}

fn running(n: u128) -> Says {
    Says::lists(&[(&sandbox(n), "running")])
}

/// Waits until sandbox `n` has this status; gives the reason.
fn becomes(serving: &Serving, n: u128, status: &str) -> String {
    eventually(&format!("sandbox {n} is {status}"), || {
        let capsule = serving.get(&format!("/v1/capsules/{}", sandbox(n))).json();
        let is = capsule["status"] == json!(status);
        is.then(|| capsule["status_reason"].as_str().unwrap_or("").to_owned())
    })
}

fn host_now(serving: &Serving, n: u128) -> Value {
    serving.get(&format!("/v1/hosts/{}", host(n))).json()
}

/// Every event so far, oldest first, as `kind from→to reason`.
fn events(home: &Home) -> Vec<String> {
    let events = home.json(&["events", "--limit", "1000"]);
    let text = |event: &Value, key: &str| event[key].as_str().unwrap_or("").to_owned();
    let line = |e: &Value| {
        format!("{} {}→{} {}", text(e, "kind"), text(e, "from"), text(e, "to"), text(e, "reason"))
    };
    events.as_array().unwrap().iter().map(line).collect()
}

/// Every audit entry so far, oldest first, as `action status`.
fn audit(home: &Home) -> Vec<String> {
    let entries = home.json(&["audit", "--limit", "1000"]);
    let line = |e: &Value| format!("{} {}", e["action"], e["status"]).replace('"', "");
    entries.as_array().unwrap().iter().rev().map(line).collect()
}

#[test]
fn a_missing_sandbox_that_is_listed_is_restored_at_the_start() {
    let agents = Agents::start(vec![running(1)]);
    let home = Home::with(&fleet(&[(1, agents.address(0), "missing")]));
    let serving = home.serve(&[]);
    assert_eq!(becomes(&serving, 1, "running"), "restored");
    let capsule = serving.get(&format!("/v1/capsules/{}", sandbox(1))).json();
    assert_eq!(capsule["host_ip"], json!("10.11.0.2"), "filled from the report");
    assert_eq!(capsule["metadata"], json!({"vmm": "1.2"}));
    let probe = eventually("the probe to be shown", || {
        let probe = host_now(&serving, 1)["last_probe"].clone();
        (!probe.is_null()).then_some(probe)
    });
    assert_eq!((&probe["outcome"], &probe["sandboxes"]), (&json!("observation"), &json!(1)));
    assert_eq!(events(&home), ["sandbox.running missing→running restored"]);
    assert_eq!(audit(&home), ["restore success"]);
    home.verify();
}

#[test]
fn a_sandbox_vanishes_after_two_looks_and_not_before() {
    let agents = Agents::start(vec![Says::lists(&[])]);
    let home = Home::with(&fleet(&[(1, agents.address(0), "running")]));
    let serving = home.serve(&["--confirm-delay", "500ms"]);
    // Asked a second time, the first answer has been dealt with: it changed nothing.
    eventually("a second look", || (agents.calls(0) == 2).then_some(()));
    assert_eq!(becomes(&serving, 1, "stopped"), "vanished");
    assert_eq!(agents.calls(0), 2);
    assert_eq!(events(&home), ["sandbox.stopped running→stopped vanished"]);
    assert_eq!(audit(&home), ["vanish warning"]);
}

#[test]
fn one_look_that_the_second_contradicts_is_no_proof() {
    let agents = Agents::start(vec![Says::lists(&[])]);
    agents.then(0, running(1));
    let home = Home::with(&fleet(&[(1, agents.address(0), "running")]));
    let serving = home.serve(&["--confirm-delay", "100ms"]);
    eventually("a second look", || {
        let probe = &host_now(&serving, 1)["last_probe"];
        (probe["sandboxes"] == json!(1)).then_some(())
    });
    assert_eq!(becomes(&serving, 1, "running"), "");
    assert_eq!(events(&home), [] as [&str; 0]);
}

#[test]
fn what_an_agent_paused_by_itself_is_paused() {
    let agents = Agents::start(vec![Says::listing(&[], &[&sandbox(1)])]);
    let home = Home::with(&fleet(&[(1, agents.address(0), "running")]));
    let serving = home.serve(&[]);
    assert_eq!(becomes(&serving, 1, "paused"), "auto_paused");
    assert_eq!(audit(&home), ["pause info"]);
}

#[test]
fn a_silent_host_falls_and_its_next_heartbeat_brings_it_back() {
    let agents = Agents::start(vec![running(1)]);
    let home = Home::with(&fleet(&[(1, agents.address(0), "running")]));
    let serving = home.serve(&["--startup-grace", "0s", "--unreachable-after", "2s"]);
    assert_eq!(becomes(&serving, 1, "missing"), "host_unreachable");
    assert_eq!(host_now(&serving, 1)["status"], json!("unreachable"));
    // Its agent answers all the same; that is shown and changes nothing.
    assert_eq!(
        events(&home),
        [
            "host.down online→unreachable host_unreachable",
            "sandbox.missing running→missing host_unreachable",
        ]
    );
    let asked = agents.calls(0);
    assert_eq!(serving.beat(&host(1), &home.token(&host(1))).status, 204);
    let restored = eventually("the sandbox is restored", || {
        let events = events(&home);
        (events.len() >= 4).then_some(events)
    });
    assert!(agents.calls(0) > asked, "by a probe at once");
    assert_eq!(
        restored[2..4],
        [
            "host.up unreachable→online heartbeat_received",
            "sandbox.running missing→running restored",
        ]
    );
    // With such a short patience it may fall again meanwhile.
    assert_eq!(audit(&home)[..3], ["marked_down error", "marked_up success", "restore success"]);
    home.verify();
}

#[test]
fn most_of_the_fleet_silent_at_once_is_held() {
    let agents = Agents::start((1..=4).map(running).collect());
    let hosts: Vec<_> = (1..=4).map(|n| (n, agents.address(n as usize - 1), "running")).collect();
    let home = Home::with(&fleet(&hosts));
    let serving = home.serve(&["--startup-grace", "0s", "--unreachable-after", "1s"]);
    serving.logged(&["ERROR", "4 hosts fell silent together"]);
    eventually("the metric", || (serving.metric("roost_mass_guard_holding") == 1).then_some(()));
    assert_eq!(events(&home), [] as [&str; 0]);
    let url = format!("http://{}", serving.address);
    let status = home.roost(&["status", "--url", &url]).ok();
    assert!(status.contains("MASS GUARD"), "{status}");
}

/// One worker, one host that hangs, others behind it.
#[test]
fn a_hung_agent_delays_nobody_else() {
    let hung = HungAgent::start();
    let agents = Agents::start((2..=5).map(running).collect());
    let mut hosts = vec![(1, hung.address(), "missing")];
    hosts.extend((2..=5).map(|n| (n, agents.address(n as usize - 2), "missing")));
    let home = Home::with(&fleet(&hosts));
    let serving = home.serve(&["--workers", "1", "--probe-timeout", "60s"]);
    for n in 2..=5 {
        assert_eq!(becomes(&serving, n, "running"), "restored");
    }
    assert_eq!(host_now(&serving, 1).get("last_probe"), None, "still hanging");
    let alone = || (serving.metric("roost_probes_in_flight") == 1).then_some(());
    eventually("no other probe in flight", alone);
    assert_eq!(serving.get("/readyz").status, 200);
}

#[test]
fn the_verdict_on_a_host_does_not_wait_for_its_probe() {
    let hung = HungAgent::start();
    let home = Home::with(&fleet(&[(1, hung.address(), "running")]));
    let flags = ["--startup-grace", "0s", "--unreachable-after", "1s", "--probe-timeout", "60s"];
    let serving = home.serve(&flags);
    assert_eq!(becomes(&serving, 1, "missing"), "host_unreachable");
    assert_eq!(host_now(&serving, 1).get("last_probe"), None, "still hanging");
    assert_eq!(serving.metric("roost_probes_in_flight"), 1);
}

#[test]
fn a_host_that_registers_is_probed_at_once() {
    let agents = Agents::start(vec![running(1), running(2)]);
    let home = Home::new();
    let serving = home.serve(&[]);
    let registered = serving.register(&agents.address(0));
    let id = registered["host"]["id"].as_str().unwrap();
    let probe = eventually("a probe", || {
        let host = serving.get(&format!("/v1/hosts/{id}")).json();
        host.get("last_probe").cloned()
    });
    assert_eq!((&probe["outcome"], &probe["sandboxes"]), (&json!("observation"), &json!(1)));
    assert_eq!((agents.calls(0), agents.calls(1)), (1, 0));
}

/// A control plane that was away for hours must not declare its fleet dead.
#[test]
fn a_restart_marks_nobody_down_for_what_it_did_not_hear() {
    const AWAY_S: u64 = 2 * 3600;
    let agents = Agents::start(vec![running(1), running(2), running(3)]);
    let hosts: Vec<_> = (1..=3).map(|n| (n, agents.address(n as usize - 1), "running")).collect();
    let mut fleet = fleet(&hosts);
    fleet["listened_age_s"] = json!(AWAY_S);
    for host in fleet["hosts"].as_array_mut().unwrap() {
        host["heartbeat_age_s"] = json!(AWAY_S + 5);
    }
    let home = Home::with(&fleet);
    let check = home.json(&["check"]);
    assert_eq!(check["host_transitions"], json!([]), "it does not listen, so it does not judge");

    let serving = home.serve(&["--probe-interval", "1s", "--probe-timeout", "1s"]);
    // Several rounds of the scheduler have passed.
    eventually("some rounds", || (0..3).all(|n| agents.calls(n) >= 5).then_some(()));
    for n in 1..=3 {
        assert_eq!(host_now(&serving, n)["status"], json!("online"));
    }
    assert_eq!(events(&home), [] as [&str; 0]);
    serving.stop();

    // What was silent already while we listened is another matter.
    fleet["hosts"][0]["heartbeat_age_s"] = json!(AWAY_S + 300);
    let check = Home::with(&fleet).json(&["check"]);
    assert_eq!(check["host_transitions"][0]["host_id"], json!(host(1)));
    assert_eq!(check["host_transitions"].as_array().unwrap().len(), 1);
}
