//! Owns Roost behind the reverse proxies of docs/proxies.md: the real programs with the
//! configurations that stand there, a browser, the event stream, commands and heartbeats.
//!
//! Never: a configuration of its own. Without a proxy's program its part is skipped, loudly;
//! with `CI` set that is a failure.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

#[allow(dead_code, reason = "tests of the page use the rest")]
#[path = "page/browser.rs"]
mod browser;
#[path = "proxies/proxy.rs"]
mod proxy;

use browser::{Place, tools};
use proxy::{Kind, Proxy};
use roost::model::sandbox::SandboxStatus;
use roost::sim::SimFleet;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use support::server::Serving;
use support::{Done, Home, PATIENCE, eventually, host, sim_fleet};

const PATIENT: [&str; 4] = ["--startup-grace", "1h", "--unreachable-after", "1h"];
const LOGIN: &str = "alice:wonder";

/// A server with two hosts and six sandboxes, and what it needs.
struct World {
    _fleet: SimFleet,
    home: Home,
    serving: Serving,
}

impl World {
    fn new() -> World {
        let fleet = sim_fleet(2, 3);
        let mut fixture = Vec::new();
        fleet.write_fixture(SandboxStatus::Running, &mut fixture).unwrap();
        let fixture: Value = serde_json::from_slice(&fixture).unwrap();
        let home = Home::with(&fixture);
        let serving = home.serve(&PATIENT);
        World { _fleet: fleet, home, serving }
    }

    fn create(&self) {
        assert_eq!(self.serving.post("/v1/capsules", &json!({})).status, 202);
    }

    /// The status of what curl is answered.
    fn status(&self, proxy: &Proxy, path: &str, more: &[&str]) -> u16 {
        let url = format!("{}{path}", proxy.url);
        let mut curl = Command::new("curl");
        curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "60"]).args(more);
        if let Some(ca) = &proxy.ca {
            curl.arg("--cacert").arg(ca);
        }
        let output = curl.arg(url).output().unwrap();
        String::from_utf8(output.stdout).unwrap().parse().unwrap()
    }

    /// What every proxy must let through.
    fn passes_on(&self, proxy: &Proxy, login: &str) {
        let key = format!("X-API-Key: {}", self.serving.key());
        let login: &[&str] = if login.is_empty() { &[] } else { &["-u", login] };
        eventually("an answer through the proxy", || {
            (self.status(proxy, "v1/hosts", &[&["-H", &key], login].concat()) == 200).then_some(())
        });
        assert_eq!(self.status(proxy, "", login), 200);
        assert_eq!(self.status(proxy, "v1/hosts", login), 401, "Roost's own refusal");
        let token = format!("X-Host-Token: {}", self.home.token(&host(1)));
        let beat = format!("v1/hosts/{}/heartbeat", host(1));
        assert_eq!(self.status(proxy, &beat, &["-H", &token, "-d", "{}"]), 204, "a heartbeat");
    }

    /// What `roost` asks for through the proxy is heard through the proxy, as it happens.
    fn follows(&self, proxy: &Proxy) {
        let mut curl = Command::new("curl");
        curl.args(["-sN", "-H", &format!("X-API-Key: {}", self.serving.key())]);
        if let Some(ca) = &proxy.ca {
            curl.arg("--cacert").arg(ca);
        }
        let url = format!("{}v1/events", proxy.url);
        let mut following = curl.arg(url).stdout(Stdio::piped()).spawn().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let lines = BufReader::new(following.stdout.take().unwrap());
        let reader = std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok).filter(|line| !line.is_empty()) {
                let _ = tell.send(line);
            }
        });
        let hear = || told.recv_timeout(PATIENCE).unwrap();
        assert_eq!(hear(), ": listening", "before anything happens");
        for what in ["drain", "undrain"] {
            let mut roost = self.home.command(&["hosts", what, &host(2)]);
            roost.env("ROOST_URL", &proxy.url);
            if let Some(ca) = &proxy.ca {
                roost.env("ROOST_CA", ca);
            }
            Done::of(roost.output().unwrap()).ok();
            // Not only when the next comes, or something is full.
            let lines: Vec<String> = (0..3).map(|_| hear()).collect();
            assert!(lines[1] == "event: host.intent" && lines[2].contains("data: "), "{lines:?}");
        }
        following.kill().unwrap();
        following.wait().unwrap();
        reader.join().unwrap();
        eventually("its end, through the proxy", || {
            (self.serving.metric("roost_event_streams") == 0).then_some(())
        });
    }

    fn shows_the_page(&self, proxy: &Proxy, login: &str) {
        let Some(tools) = tools() else { return };
        let place = Place::of(&self.serving);
        tools.play_at(&proxy.url, login, "proxied", &place, |what| match what {
            "create" => self.create(),
            other => panic!("no way to {other}"),
        });
    }
}

/// Everything through one configuration.
fn check(kind: Kind, title: &str, path: &str) {
    let world = World::new();
    let Some(proxy) = Proxy::start(kind, title, path, world.serving.address()) else { return };
    world.passes_on(&proxy, "");
    world.follows(&proxy);
    world.shows_the_page(&proxy, "");
    if kind == Kind::Haproxy && title != "below a path" {
        eventually("a health check that passes", || {
            proxy.haproxy_state().contains(",L7OK,").then_some(())
        });
        assert!(!proxy.haproxy_state().contains("L7STS"), "{}", proxy.haproxy_state());
    }
    drop(proxy);
    world.serving.stop();
}

/// The same where people have to sign in at the proxy; agents do not.
fn check_login(kind: Kind) {
    let world = World::new();
    let address = world.serving.address();
    let Some(proxy) = Proxy::start(kind, "basic auth", "", address) else { return };
    world.passes_on(&proxy, LOGIN);
    let key = format!("X-API-Key: {}", world.serving.key());
    assert_eq!(world.status(&proxy, "v1/hosts", &["-H", &key]), 401, "the proxy's refusal");
    world.shows_the_page(&proxy, LOGIN);
    drop(proxy);
    world.serving.stop();
}

#[test]
fn caddy() {
    check(Kind::Caddy, "plain", "");
}

#[test]
fn caddy_below_a_path() {
    check(Kind::Caddy, "below a path", "roost/");
}

#[test]
fn caddy_with_a_sign_in() {
    check_login(Kind::Caddy);
}

#[test]
fn nginx_without_any_settings() {
    check(Kind::Nginx, "plain", "");
}

#[test]
fn nginx_as_recommended() {
    check(Kind::Nginx, "recommended", "");
}

#[test]
fn nginx_below_a_path() {
    check(Kind::Nginx, "below a path", "roost/");
}

#[test]
fn nginx_with_a_sign_in() {
    check_login(Kind::Nginx);
}

#[test]
fn haproxy_with_one_server() {
    check(Kind::Haproxy, "one server", "");
}

#[test]
fn haproxy_with_two_servers() {
    check(Kind::Haproxy, "two servers", "");
}

#[test]
fn haproxy_below_a_path() {
    check(Kind::Haproxy, "below a path", "roost/");
}

#[test]
fn every_configuration_of_the_page_is_tried() {
    let tried: [(Kind, &[&str]); 3] = [
        (Kind::Caddy, &["plain", "below a path", "basic auth"]),
        (Kind::Nginx, &["plain", "recommended", "below a path", "basic auth"]),
        (Kind::Haproxy, &["one server", "two servers", "below a path"]),
    ];
    for (kind, titles) in tried {
        assert_eq!(proxy::titles(kind), titles, "{kind:?}");
    }
}
