//! Owns a server that could not hear for a while: what it takes from that silence.
//!
//! Never: a machine that sleeps (the simulation has that).

use crate::alone;
use crate::beats::Beats;
use crate::shares::rows;
use crate::support::{Home, eventually, host, sandbox};
use rustix::process::Signal;
use serde_json::json;
use std::time::Duration;

/// Longer than a host may be silent, shorter than its heartbeats wait.
const STOPPED_FOR: Duration = Duration::from_secs(8);

const FLAGS: &[&str] =
    &["--startup-grace", "1s", "--unreachable-after", "3s", "--probe-interval", "1s"];

/// A debugger, a full terminal, `docker pause`: no clock tells of it.
#[test]
fn a_server_that_was_stopped_judges_no_host_by_what_it_did_not_hear() {
    let _alone = alone();
    // Two hosts are silent too few to be a fault of our own network.
    let home = Home::with(&rows(6, 6));
    let serving = home.serve(FLAGS);
    let beats = Beats::start(&serving, &home, 5);
    let status = |n: u128| serving.get(&format!("/v1/hosts/{}", host(n))).json()["status"].clone();
    eventually("the verdict on the silent one", || (status(6) == "unreachable").then_some(()));
    serving.beat(&host(6), &home.token(&host(6)));
    eventually("it is back", || (status(6) == "online").then_some(()));
    serving.signal(Signal::STOP);
    std::thread::sleep(STOPPED_FOR);
    serving.signal(Signal::CONT);
    serving.logged(&["WARN", "did not listen", "listening anew"]);
    // It is silent from here on; when it is judged, the others could have been.
    eventually("the verdict on the silent one", || (status(6) == "unreachable").then_some(()));
    beats.stop();
    let events = serving.get("/v1/audit").json();
    for n in 1..=5 {
        assert_eq!(status(n), "online", "{events}");
    }
    for n in (0..6).filter(|n| 1 + n % 6 != 6) {
        let shown = serving.get(&format!("/v1/capsules/{}", sandbox(n))).json();
        assert_eq!(shown["status"], json!("running"), "{shown}");
    }
    serving.stop();
    home.verify();
}
