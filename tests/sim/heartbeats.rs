//! What simulated agents say to a control plane, and how they obey its answers.

use crate::world::{FOREVER, LONG, world};
use roost::http::{Handler, Request, Response, Server, ServerConfig};
use roost::model::id::HostId;
use roost::model::probe::{FailureKind, Listing};
use roost::sim::{
    Beat, Beater, BeaterOptions, Credentials, Faults, HEARTBEAT_TIMEOUT, HeartbeatFault,
    Heartbeats, RegisterError, SimHost, SimState,
};
use std::collections::VecDeque;
use std::net::TcpListener;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// A control plane that says what it is told, in order, and remembers what it was asked.
pub struct Stub {
    pub server: Server,
    script: Arc<Script>,
    pub options: BeaterOptions,
}

#[derive(Default)]
struct Script {
    answers: Mutex<VecDeque<Response>>,
    asked: Mutex<Vec<String>>,
    changed: Condvar,
}

impl Handler for Script {
    fn handle(&self, request: Request) -> Response {
        let token = request.headers.get("x-host-token").unwrap_or("-");
        let body = String::from_utf8(request.body.clone()).unwrap();
        let asked = format!("{} {} {token} {body}", request.method, request.path);
        self.asked.lock().unwrap().push(asked);
        self.changed.notify_all();
        self.answers.lock().unwrap().pop_front().unwrap()
    }
}

impl Stub {
    pub fn saying(answers: Vec<Response>) -> Stub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answers = Mutex::new(answers.into());
        let script = Arc::new(Script { answers, ..Script::default() });
        let config = ServerConfig { workers: 2, ..ServerConfig::default() };
        let server = Server::start(vec![listener], script.clone(), config).unwrap();
        Stub { server, script, options: BeaterOptions { url, timeout: LONG, tls: None } }
    }

    pub fn beater(&self) -> Beater {
        let (token, refresh_token) = ("token-1".to_owned(), "refresh-1".to_owned());
        Beater::new(&self.options, Credentials { host_id: host_id(), token, refresh_token })
    }

    /// Waits until so many requests came.
    pub fn wait_asked(&self, count: usize) {
        let Script { asked, changed, .. } = &*self.script;
        let few = |asked: &mut Vec<String>| asked.len() < count;
        let (asked, waited) = changed.wait_timeout_while(asked.lock().unwrap(), LONG, few).unwrap();
        assert!(!waited.timed_out(), "{asked:?}");
    }

    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.script.asked.lock().unwrap())
    }
}

fn host_id() -> HostId {
    HostId::from_u128(1)
}

pub const HEARTBEAT: &str = "POST /v1/hosts/host-0000000000000000000000001/heartbeat";

pub const REFRESH: &str = r#"POST /v1/hosts/auth/refresh - {"refresh_token":"refresh-1"}"#;

/// `{"host_id":"host-0000000000000000000000001"}` as an agent finds it in its token.
pub const TOKEN: &str = "h.eyJob3N0X2lkIjoiaG9zdC0wMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAxIn0.s";

pub fn empty(status: u16) -> Response {
    Response::empty(status)
}

pub fn registered(status: u16) -> Response {
    let body = format!(r#"{{"host":{{}},"token":"{TOKEN}","refresh_token":"refresh-2"}}"#);
    Response::json(status, body.into_bytes())
}

fn running(host: &SimHost) -> usize {
    host.sandboxes().iter().filter(|(_, state)| *state == SimState::Running).count()
}

#[test]
fn a_host_registers_and_learns_its_id_from_the_token() {
    let world = world(1, 0);
    let stub = Stub::saying(vec![registered(201), registered(200), empty(401)]);
    let register = || Beater::register(&stub.options, world.host(0), "secret");
    let beater = register().unwrap();
    assert_eq!(beater.credentials().host_id, host_id());
    assert_eq!(beater.credentials().refresh_token, "refresh-2");
    let address = world.host(0).address();
    let asked = stub.asked().pop().unwrap();
    assert!(asked.starts_with("POST /v1/hosts/register - {\"token\":\"secret\""), "{asked}");
    assert!(asked.contains(&format!("\"address\":\"{address}\"")), "{asked}");
    assert_eq!(register().unwrap_err(), RegisterError::Refused(200));
    assert_eq!(register().unwrap_err(), RegisterError::Refused(401));
}

#[test]
fn a_refused_token_is_refreshed_once() {
    let world = world(1, 2);
    for status in [401, 403] {
        let stub = Stub::saying(vec![empty(status), registered(200), empty(204)]);
        let mut beater = stub.beater();
        assert_eq!(beater.beat(world.host(0)), Beat::Refreshed);
        assert_eq!(beater.beat(world.host(0)), Beat::Acknowledged);
        assert_eq!(
            stub.asked(),
            [format!("{HEARTBEAT} token-1 "), REFRESH.to_owned(), format!("{HEARTBEAT} {TOKEN} "),]
        );
        assert_eq!(running(world.host(0)), 2);
    }
}

#[test]
fn a_refresh_that_fails_in_any_way_is_the_end() {
    let unusable = || Response::json(200, b"{}".to_vec());
    for answer in [empty(401), empty(500), registered(201), unusable(), Response::cut()] {
        let world = world(1, 2);
        let stub = Stub::saying(vec![empty(401), answer]);
        let mut beater = stub.beater();
        assert_eq!(beater.beat(world.host(0)), Beat::Expelled);
        assert_eq!(running(world.host(0)), 0);
        assert_eq!(world.host(0).sandboxes().len(), 2, "paused, not destroyed");
        assert_eq!(world.list(0), Listing::default(), "nothing is announced");
        assert!(beater.is_over());
        assert_eq!(beater.beat(world.host(0)), Beat::NotSent);
        assert_eq!(stub.asked().len(), 2);
    }
}

#[test]
fn not_found_is_the_end_of_everything() {
    let world = world(1, 2);
    let stub = Stub::saying(vec![empty(404)]);
    let mut beater = stub.beater();
    assert_eq!(beater.beat(world.host(0)), Beat::Deleted);
    assert_eq!(world.host(0).sandboxes(), []);
    assert_eq!(beater.beat(world.host(0)), Beat::NotSent);
    assert_eq!(world.failure(0), FailureKind::Unreachable);
    assert_eq!(stub.asked().len(), 1);
}

#[test]
fn other_answers_are_harmless() {
    let world = world(1, 2);
    let statuses = [500, 503, 200, 302, 429];
    let stub = Stub::saying(statuses.map(empty).into());
    let mut beater = stub.beater();
    for status in statuses {
        assert_eq!(beater.beat(world.host(0)), Beat::Ignored(status));
    }
    assert_eq!(running(world.host(0)), 2);
}

#[test]
fn three_beats_without_an_answer_pause_everything_unannounced() {
    let world = world(1, 2);
    let answered = vec![Response::cut(), Response::cut(), empty(204), Response::cut()];
    let stub = Stub::saying(answered);
    let mut beater = stub.beater();
    assert_eq!(beater.beat(world.host(0)), Beat::Unanswered(1));
    assert_eq!(beater.beat(world.host(0)), Beat::Unanswered(2));
    assert_eq!(beater.beat(world.host(0)), Beat::Acknowledged, "and the count starts anew");
    assert_eq!(beater.beat(world.host(0)), Beat::Unanswered(1));
    stub.server.shutdown(LONG);
    assert_eq!(beater.beat(world.host(0)), Beat::Unanswered(2));
    assert_eq!(running(world.host(0)), 2);
    assert_eq!(beater.beat(world.host(0)), Beat::PausedAll);
    assert_eq!(running(world.host(0)), 0);
    world.clock.advance(LONG);
    assert_eq!(world.list(0), Listing::default());
    let id = world.first(0);
    world.resume(0, id).unwrap();
}

#[test]
fn silence_goes_unnoticed_by_the_agent_and_a_partition_does_not() {
    let world = world(1, 2);
    let stub = Stub::saying(vec![]);
    let mut beater = stub.beater();
    world.fleet.set_faults(0, Faults::beating(HeartbeatFault::Silent)).unwrap();
    for _ in 0..5 {
        assert_eq!(beater.beat(world.host(0)), Beat::NotSent);
    }
    assert_eq!(running(world.host(0)), 2);
    world.fleet.set_faults(0, Faults::partitioned()).unwrap();
    assert_eq!(beater.beat(world.host(0)), Beat::Unanswered(1));
    assert_eq!(beater.beat(world.host(0)), Beat::Unanswered(2));
    assert_eq!(beater.beat(world.host(0)), Beat::PausedAll);
    assert_eq!(running(world.host(0)), 0);
    assert_eq!(world.failure(0), FailureKind::Unreachable);
    assert_eq!(stub.asked(), Vec::<String>::new());
}

#[test]
fn one_thread_beats_for_all_hosts() {
    let world = world(3, 1);
    let stub = Stub::saying((0..6).map(|_| empty(204)).collect());
    let heartbeats = Heartbeats::start(FOREVER).unwrap();
    for host in world.fleet.hosts() {
        heartbeats.enrol(host.clone(), stub.beater());
    }
    // The first beats are due at enrolment; whether they came before these or come after
    // does not matter.
    assert_eq!(heartbeats.beat_all(), [Beat::Acknowledged; 3]);
    heartbeats.enrol(world.host(0).clone(), stub.beater());
    world.fleet.set_faults(1, Faults::beating(HeartbeatFault::Silent)).unwrap();
    world.host(2).terminate();
    let beats = heartbeats.beat_all();
    assert_eq!(beats[1..], [Beat::NotSent, Beat::NotSent]);
}

/// A real agent waits 10 s for the answer to a heartbeat and 15 s for that to a renewal.
#[test]
fn an_agent_gives_up_waiting_later_for_a_renewal() {
    assert_eq!(HEARTBEAT_TIMEOUT, Duration::from_secs(10));
    let timeout = Duration::from_millis(200);
    let never = || {
        Response::deferred(|caller| {
            caller.wait(FOREVER);
            Response::cut()
        })
    };
    let beat = |answers| {
        let world = world(1, 1);
        let stub = Stub::saying(answers);
        let options = BeaterOptions { timeout, ..stub.options.clone() };
        let mut beater = Beater::new(&options, stub.beater().credentials().clone());
        let began = Instant::now();
        (beater.beat(world.host(0)), began.elapsed())
    };
    let (unanswered, heartbeat_took) = beat(vec![never()]);
    assert_eq!(unanswered, Beat::Unanswered(1));
    assert!(heartbeat_took >= timeout, "{heartbeat_took:?}");
    let (expelled, renewal_took) = beat(vec![empty(401), never()]);
    assert_eq!(expelled, Beat::Expelled);
    assert!(renewal_took >= timeout * 3 / 2, "{renewal_took:?}");
    assert!(renewal_took < LONG);
}
