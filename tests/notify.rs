//! Owns notifications as their receivers see them: a real server, real targets over HTTP
//! and TLS, kills in between.
//!
//! Never: looks inside. Times are short, and what is waited for are events.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use rcgen::{CertificateParams, KeyPair};
use roost::http::{Handler, Request, Response, Server, ServerConfig, TlsSource};
use rustix::process::Signal;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use std::collections::{BTreeSet, VecDeque};
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use support::agents::HungAgent;
use support::server::Serving;
use support::{Home, eventually};

/// What a target was sent.
#[derive(Debug, Clone)]
struct Got {
    path: String,
    headers: Vec<(&'static str, String)>,
    body: String,
    at: Instant,
}

impl Got {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(found, _)| *found == name);
        found.map_or("", |(_, value)| value)
    }
}

const HEADERS: [&str; 7] = [
    "Roost-Delivery",
    "Roost-Signature",
    "Content-Type",
    "Title",
    "Priority",
    "Tags",
    "Authorization",
];

#[derive(Default)]
struct Inbox {
    got: Mutex<Vec<Got>>,
    /// Statuses of the next answers; 200 when there is none.
    answers: Mutex<VecDeque<u16>>,
    /// `Retry-After` of the next answers.
    retry_after: Mutex<VecDeque<String>>,
}

impl Handler for Inbox {
    fn handle(&self, request: Request) -> Response {
        let header = |name| Some((name, request.headers.get(name)?.to_owned()));
        let headers = HEADERS.into_iter().filter_map(header).collect();
        let body = String::from_utf8(request.body.clone()).unwrap();
        self.got.lock().unwrap().push(Got {
            path: request.path.clone(),
            headers,
            body,
            at: Instant::now(),
        });
        let status = self.answers.lock().unwrap().pop_front().unwrap_or(200);
        let answer = Response::bytes(status, "text/plain", Vec::new());
        match self.retry_after.lock().unwrap().pop_front() {
            Some(wait) => answer.with_header("retry-after", wait),
            None => answer,
        }
    }
}

/// A target; it ends when dropped.
struct Target {
    inbox: Arc<Inbox>,
    address: SocketAddr,
    server: Option<Server>,
}

impl Target {
    fn start(tls: Option<TlsSource>) -> Target {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let inbox = Arc::new(Inbox::default());
        let config = ServerConfig { tls, ..ServerConfig::default() };
        let server = Server::start(vec![listener], inbox.clone(), config).unwrap();
        Target { inbox, address, server: Some(server) }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn answers(&self, statuses: &[u16]) {
        self.inbox.answers.lock().unwrap().extend(statuses);
    }

    fn got(&self) -> Vec<Got> {
        self.inbox.got.lock().unwrap().clone()
    }

    /// Waits until so many messages came; gives them.
    fn waits_for(&self, count: usize) -> Vec<Got> {
        eventually(&format!("{count} messages"), || {
            Some(self.got()).filter(|got| got.len() >= count)
        })
    }

    /// The states and kinds of what came.
    fn states(&self) -> Vec<String> {
        let of = |got: &Got| {
            let body = got.json();
            format!("{} {}", body["state"].as_str().unwrap(), body["kind"].as_str().unwrap())
        };
        self.got().iter().map(of).collect()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown(Duration::from_secs(5));
        }
    }
}

/// A home with these settings and targets; hosts are judged after a second.
fn home(delay: &str, targets: &str) -> Home {
    let home = Home::new();
    configure(&home, delay, targets);
    home
}

fn configure(home: &Home, delay: &str, targets: &str) {
    let text = format!(
        "unreachable_after = '1s'\nstartup_grace = '1s'\nprobe_interval = '1s'\n\
         mass_guard_max = '0s'\nnotify_delay = '{delay}'\nnotify_reminder = '0s'\n{targets}"
    );
    home.write("roost.toml", &text);
}

/// A host that beats only when told to: its id and token.
fn host(serving: &Serving) -> (String, String) {
    // Of its own: that of another live host is refused.
    let count = serving.get("/v1/hosts").json().as_array().unwrap().len();
    let registered = serving.register(&format!("127.0.0.1:{}", count + 1));
    let text = |name: &str| registered[name].as_str().unwrap().to_owned();
    (registered["host"]["id"].as_str().unwrap().to_owned(), text("token"))
}

fn problems(serving: &Serving) -> Vec<Value> {
    serving.get("/v1/notifications").json()["problems"].as_array().unwrap().clone()
}

/// Beats until the host is online again.
fn comes_back(serving: &Serving, id: &str, token: &str) {
    eventually("a host that is back", || {
        serving.beat(id, token);
        let host = serving.get(&format!("/v1/hosts/{id}")).json();
        (host["status"] == json!("online")).then_some(())
    });
}

#[test]
fn a_target_that_asks_to_be_left_alone_is() {
    let target = Target::start(None);
    target.answers(&[429, 503]);
    let date = SystemTime::now() + Duration::from_secs(8);
    let date =
        roost::model::time::Wall(date.duration_since(UNIX_EPOCH).unwrap().as_millis() as i64);
    let (day, time) = (date.to_string()[..10].to_owned(), date.to_string()[11..19].to_owned());
    let [year, month, day] = day.split('-').collect::<Vec<_>>()[..] else { panic!("{day}") };
    let name =
        &"JanFebMarAprMayJunJulAugSepOctNovDec"[month.parse::<usize>().unwrap() * 3 - 3..][..3];
    let date = format!("Sun, {day} {name} {year} {time} GMT");
    target.inbox.retry_after.lock().unwrap().extend(["4".to_owned(), date]);
    let url = target.url("/g");
    let home = home(
        "0s",
        &format!("[[notify]]\nkind = 'generic'\nurl = '{url}'\nevents = ['host_down']\n"),
    );
    let serving = home.serve(&[]);
    let began = Instant::now();
    host(&serving);
    let got = target.waits_for(3);
    let gap = |n: usize| got[n + 1].at.duration_since(got[n].at);
    assert!(gap(0) >= Duration::from_secs(4), "seconds: {:?}", gap(0));
    // Dates have no parts of seconds.
    let until = Duration::from_secs(7);
    assert!(got[2].at.duration_since(began) + Duration::from_secs(1) >= until, "{got:?}");
    let ids: BTreeSet<String> =
        got.iter().map(|got| got.header("Roost-Delivery").to_owned()).collect();
    assert_eq!(ids.len(), 1, "the same message");
}

#[test]
fn every_kind_of_target_hears_of_a_host_that_is_down_and_back() {
    let target = Target::start(None);
    let (generic, ntfy, slack) = (target.url("/g"), target.url("/n"), target.url("/s"));
    let home = home(
        "100ms",
        &format!(
            "[[notify]]\nkind = 'generic'\nurl = '{generic}'\nsecret = 'hush'\n\
             events = ['host_down']\n[[notify]]\nkind = 'ntfy'\nurl = '{ntfy}'\ntoken = 'tk_1'\n\
             events = ['host_down']\n[[notify]]\nkind = 'slack'\nurl = '{slack}'\n\
             events = ['host_down']\n"
        ),
    );
    let serving = home.serve(&[]);
    let (id, token) = host(&serving);
    let got = target.waits_for(3);
    let of = |path: &str| got.iter().find(|got| got.path == path).unwrap().clone();
    let (generic, ntfy, slack) = (of("/g"), of("/n"), of("/s"));

    let body = generic.json();
    assert_eq!(body["kind"], json!("host_down"));
    assert_eq!((&body["state"], &body["host_id"]), (&json!("open"), &json!(id)));
    assert_eq!((&body["sandboxes"], &body["severity"]), (&json!(0), &json!("critical")));
    assert_eq!(body["title"], json!(format!("{id} (127.0.0.1:1) unreachable")));
    assert_eq!(body["addresses"], json!({&*id: "127.0.0.1:1"}));
    let where_ = [body["message"].as_str().unwrap(), &ntfy.body, &slack.body, ntfy.header("Title")];
    assert!(where_.iter().all(|text| text.contains("127.0.0.1:1")), "{where_:?}");
    assert_eq!(generic.header("Roost-Delivery"), body["id"]);
    assert!(is_genuine("hush", generic.header("Roost-Signature"), &generic.body));
    assert!(!is_genuine("other", generic.header("Roost-Signature"), &generic.body));
    let changed = generic.body.replace("critical", "whatever");
    assert!(!is_genuine("hush", generic.header("Roost-Signature"), &changed));
    // The documentation shows what is sent.
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(keys(&body), keys(&serde_json::from_str(&documented("json")).unwrap()));

    assert_eq!(ntfy.header("Title"), format!("{id} (127.0.0.1:1) unreachable"));
    assert_eq!((ntfy.header("Priority"), ntfy.header("Tags")), ("urgent", "rotating_light"));
    assert_eq!(ntfy.header("Authorization"), "Bearer tk_1");
    assert_eq!(body["message"], json!(ntfy.body));
    assert_eq!(keys(&slack.json()), BTreeSet::from(["text".to_owned()]));
    assert_eq!(
        slack.json()["text"],
        json!(format!("*{id} (127.0.0.1:1) unreachable*\n{}", ntfy.body))
    );

    comes_back(&serving, &id, &token);
    let got = target.waits_for(6);
    let back = got[3..].iter().find(|got| got.path == "/g").unwrap().json();
    assert_eq!((&back["state"], &back["problem"]), (&json!("resolved"), &body["id"]));
    assert_ne!(back["id"], body["id"]);
    assert_eq!(back["title"], json!(format!("{id} (127.0.0.1:1) is back")));
    eventually("figures", || (serving.metric("roost_notifications_waiting") == 0).then_some(()));
    assert!(serving.metric("roost_notifications_sent_total") >= 6);
    home.verify();
}

/// The first fenced block of this language in the documentation.
fn documented(language: &str) -> String {
    let text = include_str!("../docs/notifications.md");
    let (_, rest) = text.split_once(&format!("```{language}\n")).unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

/// Asks the documented verification, with Python; without one OpenSSL.
fn is_genuine(secret: &str, header: &str, body: &str) -> bool {
    let script = format!(
        "{}\nimport sys\nsys.exit(0 if is_genuine(sys.argv[1], sys.argv[2], \
         sys.stdin.buffer.read()) else 3)",
        documented("python")
    );
    let mut python = Command::new("python3");
    python.args(["-c", &script, secret, header]).stdin(Stdio::piped());
    let mut child = python.spawn().expect("python3 is there to verify a signature");
    child.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
    match child.wait().unwrap().code() {
        Some(0) => true,
        Some(3) => false,
        other => panic!("python3 ended with {other:?}"),
    }
}

#[test]
fn what_is_over_within_the_delay_is_never_mentioned() {
    let target = Target::start(None);
    let home = home("1h", &format!("[[notify]]\nkind = 'generic'\nurl = '{}'\n", target.url("/")));
    let serving = home.serve(&[]);
    let (id, token) = host(&serving);
    let is_open = |p: &Value| p["kind"] == json!("host_down") && p["announced"] == json!(false);
    eventually("an open problem", || problems(&serving).iter().any(is_open).then_some(()));
    comes_back(&serving, &id, &token);
    eventually("no host is down", || {
        let down = problems(&serving).iter().any(|p| p["kind"] == json!("host_down"));
        (!down).then_some(())
    });
    // Whatever was to be sent has been: the test message comes after it.
    assert_eq!(
        home.command(&["notify", "test"])
            .env("ROOST_URL", url(&serving))
            .output()
            .unwrap()
            .status
            .code(),
        Some(0)
    );
    let kinds: Vec<Value> = target.got().iter().map(|got| got.json()["kind"].clone()).collect();
    assert_eq!(kinds, [json!("test")]);
}

fn url(serving: &Serving) -> String {
    format!("http://{}", serving.address())
}

#[test]
fn a_target_that_hangs_and_one_that_fails_delay_nobody_and_are_tried_again() {
    let (good, shaky, hung) = (Target::start(None), Target::start(None), HungAgent::start());
    shaky.answers(&[500, 503]);
    let home = home(
        "100ms",
        &format!(
            "[[notify]]\nname = 'hung'\nkind = 'generic'\nurl = 'http://{}/'\nevents = ['host_down']\n\
             [[notify]]\nname = 'shaky'\nkind = 'generic'\nurl = '{}'\nevents = ['host_down']\n\
             [[notify]]\nname = 'good'\nkind = 'generic'\nurl = '{}'\nevents = ['host_down']\n",
            hung.address(),
            shaky.url("/"),
            good.url("/")
        ),
    );
    let serving = home.serve(&[]);
    let (id, token) = host(&serving);
    good.waits_for(1);
    comes_back(&serving, &id, &token);
    assert_eq!(good.waits_for(2).len(), 2);
    assert_eq!(good.states()[..2], ["open host_down", "resolved host_down"]);
    let tried = shaky.waits_for(4);
    let ids: Vec<&str> = tried.iter().map(|got| got.header("Roost-Delivery")).collect();
    assert!(ids[0] == ids[1] && ids[1] == ids[2] && ids[2] != ids[3], "in order: {ids:?}");
    let waits = serving.metric("roost_notifications_waiting");
    assert!(waits >= 2, "for the one that hangs: {waits}");
    let answer = home.command(&["notify"]).env("ROOST_URL", url(&serving)).output().unwrap();
    let text = String::from_utf8(answer.stdout).unwrap();
    assert!(text.contains("hung (generic)  0 sent, "), "{text}");
    serving.stop();
}

#[test]
fn a_killed_server_goes_on_with_the_delay_and_announces_once() {
    let target = Target::start(None);
    let section = format!(
        "[[notify]]\nkind = 'generic'\nurl = '{}'\nevents = ['host_down']\n",
        target.url("/")
    );
    let home = home("4s", &section);
    let serving = home.serve(&[]);
    let (id, _) = host(&serving);
    let open = eventually("an open problem", || {
        problems(&serving).into_iter().find(|p| p["kind"] == json!("host_down"))
    });
    serving.kill();
    let serving = home.serve(&[]);
    let again = problems(&serving).into_iter().find(|p| p["kind"] == json!("host_down")).unwrap();
    assert_eq!((&again["since"], &again["host_id"]), (&open["since"], &json!(id)));
    let said = target.waits_for(1)[0].json();
    assert_eq!(said["since"], open["since"], "the delay did not begin anew");
    serving.kill();
    // Announced and delivered: after another kill nobody hears of it again.
    let serving = home.serve(&[]);
    let test = home.command(&["notify", "test"]).env("ROOST_URL", url(&serving)).output().unwrap();
    assert_eq!(test.status.code(), Some(0));
    let ids: BTreeSet<String> =
        target.got().iter().map(|got| got.header("Roost-Delivery").to_owned()).collect();
    assert_eq!(ids.len(), 2, "one announcement, one test");
    home.verify();
}

#[test]
fn what_was_announced_but_not_delivered_arrives_after_a_kill() {
    let target = Target::start(None);
    let address = target.address;
    // Nobody listens there until the server was killed.
    drop(target);
    let section = format!(
        "[[notify]]\nkind = 'generic'\nurl = 'http://{address}/'\nevents = ['host_down']\n"
    );
    let home = home("100ms", &section);
    let serving = home.serve(&[]);
    let (id, _) = host(&serving);
    eventually("a message that waits", || {
        (serving.metric("roost_notifications_waiting") == 1).then_some(())
    });
    serving.kill();
    let target = Target::start(None);
    let moved = section.replace(&address.to_string(), &target.address.to_string());
    configure(&home, "100ms", &moved);
    let _serving = home.serve(&[]);
    assert_eq!(target.waits_for(1)[0].json()["host_id"], json!(id));
}

#[test]
fn a_host_in_maintenance_is_announced_when_that_ends() {
    let target = Target::start(None);
    let section = format!(
        "[[notify]]\nkind = 'generic'\nurl = '{}'\nevents = ['host_down']\n",
        target.url("/")
    );
    let home = home("100ms", &section);
    let serving = home.serve(&[]);
    let (id, token) = host(&serving);
    serving.beat(&id, &token);
    let run = |args: &[&str]| {
        home.command(args).env("ROOST_URL", url(&serving)).output().unwrap().status.code()
    };
    assert_eq!(run(&["hosts", "maintenance", &id, "--for", "2h", "--reason", "disk"]), Some(0));
    let shown = &serving.get("/v1/hosts").json()[0];
    assert!(shown["maintenance_until"].is_string(), "{shown}");
    assert!(home.roost(&["hosts"]).ok().contains("maintenance until"));
    eventually("an open problem", || {
        problems(&serving).iter().any(|p| p["kind"] == json!("host_down")).then_some(())
    });
    assert_eq!(run(&["notify", "test"]), Some(0));
    let kinds: Vec<Value> = target.got().iter().map(|got| got.json()["kind"].clone()).collect();
    assert_eq!(kinds, [json!("test")], "nothing of the host");
    assert_eq!(run(&["hosts", "maintenance", &id, "--end"]), Some(0));
    assert_eq!(target.waits_for(2)[1].json()["host_id"], json!(id));
    assert!(serving.get("/v1/hosts").json()[0].get("maintenance_until").is_none());
    let path = format!("/v1/hosts/{id}/maintenance");
    for wrong in
        [json!({}), json!({"for_s": 0}), json!({"for_s": 99_999_999}), json!({"for_s": "2h"})]
    {
        assert_eq!(serving.post(&path, &wrong).status, 400, "{wrong}");
    }
    let nobody = format!("/v1/hosts/{}/maintenance", support::host(9));
    assert_eq!(serving.post(&nobody, &json!({"for_s": 9})).status, 404);
}

#[test]
fn an_operator_s_drain_offline_and_deletion_are_no_trouble() {
    let target = Target::start(None);
    let home = home(
        "0s",
        &format!(
            "[[notify]]\nkind = 'generic'\nurl = '{}'\nevents = ['host_down']\n",
            target.url("/")
        ),
    );
    let serving = home.serve(&[]);
    let (gone, _) = host(&serving);
    assert_eq!(target.waits_for(1)[0].json()["host_id"], json!(gone));
    assert_eq!(serving.post(&format!("/v1/hosts/{gone}/offline"), &json!({})).status, 200);
    let end = target.waits_for(2)[1].json();
    assert_eq!(end["title"], json!(format!("{gone} (127.0.0.1:1) is no longer watched")));
    let deleted = serving.ask(
        "DELETE",
        &format!("/v1/hosts/{gone}?force=true"),
        &[("X-API-Key", serving.key())],
        "",
    );
    assert_eq!(deleted.status, 204);
    assert_eq!(target.got().len(), 2);
}

/// A certificate for 127.0.0.1 that signed itself: what a TLS server needs, and its PEM.
fn certificate() -> (TlsSource, String) {
    use base64::Engine;
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let digits = base64::engine::general_purpose::STANDARD.encode(certificate.der());
    let pem = format!("-----BEGIN CERTIFICATE-----\n{digits}\n-----END CERTIFICATE-----\n");
    let private = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)
        .unwrap();
    (TlsSource::new(Arc::new(config)), pem)
}

#[test]
fn tls_is_trusted_by_file_and_a_stranger_is_not_and_no_secret_shows_anywhere() {
    let (tls, pem) = certificate();
    let target = Target::start(Some(tls));
    let address = target.address;
    let home = home("100ms", "");
    home.write("ca.crt", &pem);
    let ca = home.path("ca.crt");
    let secret_file = home.path("secret");
    home.write("secret", "topsecret-hmac\n");
    configure(
        &home,
        "100ms",
        &format!(
            "[[notify]]\nname = 'known'\nkind = 'generic'\nurl = 'https://{address}/topsecret-path'\n\
             secret_file = {secret_file:?}\nca_file = {ca:?}\n\
             [[notify]]\nname = 'stranger'\nkind = 'slack'\nurl = 'https://{address}/topsecret-path'\n\
             [[notify]]\nname = 'away'\nkind = 'ntfy'\nurl = 'http://127.0.0.1:1/topsecret-path'\n\
             token = 'topsecret-token'\n"
        ),
    );
    let serving = home.serve(&["--log", "trace"]);
    let test = home.command(&["notify", "test"]).env("ROOST_URL", url(&serving)).output().unwrap();
    assert_eq!(test.status.code(), Some(1), "one is a stranger");
    let tested = String::from_utf8(test.stdout).unwrap();
    assert!(tested.contains("known (generic)  sent"), "{tested}");
    assert!(!tested.contains("stranger (slack)  sent"), "{tested}");
    // Where the system has no certificates at all it says so, and names it as well.
    let stranger = tested.lines().find(|line| line.starts_with("stranger")).unwrap();
    assert!(stranger.contains("ca_file"), "{stranger}");
    let got = target.waits_for(1)[0].clone();
    assert!(is_genuine("topsecret-hmac", got.header("Roost-Signature"), &got.body));
    host(&serving);
    target.waits_for(2);
    let config = home.roost(&["config"]).ok();
    assert!(config.contains("notify: known (generic"), "{config}");
    let shown = [
        tested,
        config,
        home.json(&["config"]).to_string(),
        serving.get("/v1/notifications").body,
        serving.get("/metrics").body,
        std::fs::read_to_string(format!("/proc/{}/cmdline", serving.pid())).unwrap(),
    ];
    for text in shown.into_iter().chain(serving.stop()) {
        assert!(!text.contains("topsecret"), "{text}");
    }
}

#[test]
fn a_held_verdict_on_the_fleet_is_one_message_and_its_end_another() {
    let target = Target::start(None);
    let home = Home::new();
    let section = format!("[[notify]]\nkind = 'generic'\nurl = '{}'\n", target.url("/"));
    home.write(
        "roost.toml",
        &format!(
            "unreachable_after = '3s'\nstartup_grace = '1s'\nnotify_delay = '100ms'\n\
             notify_reminder = '0s'\nmass_guard_max = '1h'\n{section}"
        ),
    );
    let serving = home.serve(&[]);
    let hosts = [host(&serving), host(&serving), host(&serving)];
    let of = |target: &Target| -> Vec<Value> {
        let all = target.got().iter().map(Got::json).collect::<Vec<_>>();
        all.into_iter().filter(|body| body["kind"] == json!("mass_guard")).collect()
    };
    let held = eventually("a held verdict", || of(&target).into_iter().next());
    assert_eq!(held["title"], json!("3 hosts silent together"));
    assert!(held.get("host_id").is_none(), "{held}");
    let free = eventually("its end", || {
        hosts.iter().for_each(|(id, token)| drop(serving.beat(id, token)));
        of(&target).into_iter().nth(1)
    });
    assert_eq!((&free["state"], &free["problem"]), (&json!("resolved"), &held["id"]));
    let down = target.got().iter().filter(|got| got.json()["kind"] == json!("host_down")).count();
    assert_eq!(down, 0, "the verdict was never given");
}

#[test]
fn a_signal_adds_a_target_that_hears_of_what_is_still_wrong() {
    let target = Target::start(None);
    let home = home("0s", "");
    let serving = home.serve(&[]);
    let (id, _) = host(&serving);
    eventually("an open problem", || {
        problems(&serving).iter().any(|p| p["kind"] == json!("host_down")).then_some(())
    });
    let section = format!(
        "[[notify]]\nkind = 'generic'\nurl = '{}'\nevents = ['host_down']\n",
        target.url("/")
    );
    configure(&home, "0s", &section);
    serving.signal(Signal::HUP);
    assert_eq!(target.waits_for(1)[0].json()["host_id"], json!(id));
}

#[test]
fn every_command_of_the_page_runs() {
    let home = Home::new();
    home.load(
        &json!({"hosts": [{"id": support::host(1), "address": "127.0.0.1:9", "status": "online"}]}),
    );
    let serving = home.serve(&[]);
    let mut shell = support::docs::Shell::new();
    shell.set("ROOST_URL", &url(&serving));
    shell.set("ROOST_API_KEY", serving.key());
    shell.follow("docs/notifications.md");
    let shown = serving.get(&format!("/v1/hosts/{}", support::host(1))).json();
    assert_eq!(shown["maintenance_until"], Value::Null, "it was begun and ended");
}
