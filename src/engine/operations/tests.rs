//! Owns how operations go on, call by call, under a clock that is moved by hand.
//!
//! Never: an agent, a database, a thread.

use super::*;
use crate::model::id::{PLATFORM_TEAM, SandboxId};
use crate::model::sandbox::SandboxStatus;
use crate::model::time::Wall;
use crate::plan::operation::Earlier;
use OperationKind::{Create, Destroy, Pause, Resume, Snapshot};

const BEGIN_MS: u64 = 1_000_000;

/// A machine, its clock, and what it wanted and was not given yet.
struct World {
    operations: Operations,
    at_ms: u64,
    calls: Vec<Job>,
    seen: Vec<String>,
}

fn work(n: u128, kind: OperationKind) -> Work {
    Work {
        op: OpId::from_u128(n),
        kind,
        sandbox: SandboxId::from_u128(1),
        host: HostId::from_u128(1),
        deadline_at: Wall(BEGIN_MS as i64).after(kind.deadline()),
        sent: false,
        overtook: false,
        earlier: Earlier::None,
        from: None,
        makes: None,
        team: PLATFORM_TEAM,
        template: None,
        vcpus: None,
        memory_mb: None,
        timeout_sec: None,
        disk_size_mb: None,
        metadata: None,
        template_id: None,
        template_team: None,
        default_user: None,
        default_env: None,
    }
}

impl World {
    fn new() -> World {
        let (operations, calls, seen) = (Operations::default(), Vec::new(), Vec::new());
        World { operations, at_ms: BEGIN_MS, calls, seen }
    }

    fn now(&self) -> Now {
        Now { mono: Mono(self.at_ms), wall: Wall(self.at_ms as i64) }
    }

    fn handle(&mut self, input: Input) {
        self.operations.handle(self.now(), input);
        self.settle();
    }

    fn settle(&mut self) {
        for effect in self.operations.effects(self.now().mono) {
            self.seen.push(match effect {
                Effect::Call(job) => {
                    let text = format!("call {} {}", job.work.kind, job.attempts);
                    self.calls.push(*job);
                    text
                }
                Effect::Look { answer, .. } => format!("look {answer:?}"),
                Effect::PlaceElsewhere { clean: true, .. } => "place elsewhere, clean".to_owned(),
                Effect::PlaceElsewhere { clean: false, .. } => "place elsewhere".to_owned(),
                Effect::ProbeNow(_) => "probe".to_owned(),
                Effect::Write(ended) => format!("write {}", ended.status),
            });
        }
    }

    fn begin(&mut self, work: Work) {
        self.handle(Input::Work(Box::new(work)));
    }

    /// The oldest call under way of this kind ends.
    fn ends(&mut self, kind: OperationKind, call: Call) {
        let at = self.calls.iter().position(|job| job.work.kind == kind).expect("a call");
        let job = self.calls.remove(at);
        let outcome = Outcome::Told(call, None, Said::default());
        self.handle(Input::Called(Box::new(Called { job, outcome })));
    }

    /// Lets time pass; everything that is due happens at its moment.
    fn pass(&mut self, span_s: u64) {
        let until = self.at_ms + span_s * 1000;
        while let Some(wake) = self.operations.next_wake().filter(|wake| wake.0 <= until) {
            self.at_ms = self.at_ms.max(wake.0);
            self.settle();
        }
        self.at_ms = until;
    }

    /// What was wanted since the last time.
    fn seen(&mut self) -> Vec<String> {
        std::mem::take(&mut self.seen)
    }
}

fn refused(code: ConnectCode) -> Call {
    call_of(&CallError::Refused { code, message: String::new() })
}

#[test]
fn an_agent_that_declines_a_create_has_another_host_looked_for() {
    for (call, clean) in [
        (refused(ConnectCode::Unavailable), ", clean"),
        (refused(ConnectCode::ResourceExhausted), ", clean"),
        (Call::NotReached, ""),
    ] {
        let mut world = World::new();
        world.begin(work(1, Create));
        world.ends(Create, call);
        let placing = format!("place elsewhere{clean}");
        assert_eq!(world.seen(), ["call create 1", &placing]);
        assert!(!world.operations.is_idle());
        let elsewhere = Work { host: HostId::from_u128(2), ..work(1, Create) };
        let cleaning = (!clean.is_empty()).then(|| Box::new(work(2, Destroy)));
        let placed = Placed::At(Box::new(elsewhere), cleaning);
        world.handle(Input::Placed(OpId::from_u128(1), Ok(placed)));
        let hosts: Vec<u128> = world.calls.iter().map(|job| job.work.host.as_u128()).collect();
        assert_eq!(hosts[0], 2, "at once");
        assert_eq!(world.calls.len(), if clean.is_empty() { 1 } else { 2 });
    }
}

#[test]
fn a_create_that_no_host_takes_fails_in_seconds() {
    let mut world = World::new();
    world.begin(work(1, Create));
    for _ in 0..3 {
        world.ends(Create, refused(ConnectCode::Unavailable));
        world.handle(Input::Placed(OpId::from_u128(1), Ok(Placed::NoHost)));
        world.pass(2);
    }
    assert_eq!(world.seen().last().map(String::as_str), Some("write error"));
    assert!(world.at_ms - BEGIN_MS < 10_000);
}

#[test]
fn what_no_other_host_can_do_is_tried_for_half_a_minute() {
    for kind in [Pause, Resume, Snapshot] {
        let mut world = World::new();
        world.begin(work(1, kind));
        let mut calls = 0;
        while !world.calls.is_empty() {
            calls += 1;
            world.ends(kind, refused(ConnectCode::Unavailable));
            world.pass(16);
        }
        assert_eq!(calls, 5, "{kind}");
        let last = world.seen();
        let expected = if kind == Resume { "write paused" } else { "look Refusal" };
        assert!(last.iter().any(|seen| seen == expected), "{kind}: {last:?}");
    }
    let mut world = World::new();
    world.begin(work(1, Destroy));
    world.ends(Destroy, refused(ConnectCode::Unavailable));
    world.pass(1);
    assert_eq!(world.seen(), ["call destroy 1", "call destroy 2"]);
}

#[test]
fn an_agent_without_a_snapshot_is_asked_again_later() {
    let mut world = World::new();
    world.begin(work(1, Resume));
    world.ends(Resume, Call::Gone);
    assert_eq!(world.seen(), ["call resume 1", "look NoSnapshot"]);
    world.pass(19);
    assert_eq!(world.seen(), Vec::<String>::new());
    world.pass(1);
    assert_eq!(world.seen(), ["probe"]);
    // The observation does not show it: the writer has it called again.
    world.begin(Work { earlier: Earlier::NoSnapshot, ..work(1, Resume) });
    world.ends(Resume, Call::Gone);
    assert_eq!(world.seen(), ["call resume 1", "write stopped"]);
}

#[test]
fn a_destroy_goes_out_beside_a_call_that_hangs() {
    for kind in [Create, Pause, Resume] {
        let mut world = World::new();
        world.begin(work(1, kind));
        world.begin(Work { overtook: kind != Pause, ..work(2, Destroy) });
        assert_eq!(world.seen(), [&format!("call {kind} 1"), "call destroy 1"]);
        world.ends(Destroy, Call::Gone);
        if kind == Pause {
            assert_eq!(world.seen(), ["write stopped"]);
            continue;
        }
        // What it overtook may succeed yet: sent again, until that call has ended.
        assert_eq!(world.seen(), Vec::<String>::new());
        world.pass(2);
        assert_eq!(world.seen(), ["call destroy 2"]);
        world.ends(kind, Call::Refused);
        world.ends(Destroy, Call::Gone);
        world.pass(0);
        let mut seen = world.seen();
        assert!(seen.remove(0).starts_with("write"), "of an operation that has ended");
        assert_eq!(seen, ["call destroy 3"], "it began before the other ended");
        world.ends(Destroy, Call::Gone);
        assert_eq!(world.seen(), ["look Done", "probe"], "and then the host must not show it");
    }
}

#[test]
fn a_destroy_waits_until_what_it_overtook_has_ended() {
    let mut world = World::new();
    world.begin(work(1, Create));
    world.begin(Work { overtook: true, ..work(2, Destroy) });
    for _ in 0..10 {
        world.ends(Destroy, Call::Succeeded);
        world.pass(30);
        assert!(!world.seen().contains(&"look Done".to_owned()));
    }
    // How it ended is not said, but its connection has closed.
    world.ends(Create, Call::Unknown);
    world.ends(Destroy, Call::Gone);
    world.pass(0);
    world.ends(Destroy, Call::Gone);
    assert!(world.seen().contains(&"look Done".to_owned()));
}

/// A destroy that nothing stands in the way of is not sent in a tight loop.
#[test]
fn a_destroy_that_fails_waits_before_it_is_sent_again() {
    for overtook in [false, true] {
        let mut world = World::new();
        world.begin(Work { overtook, ..work(1, Destroy) });
        for _ in 0..3 {
            world.ends(Destroy, Call::NotReached);
            assert!(world.calls.is_empty(), "at once");
            world.pass(30);
            assert_eq!(world.calls.len(), 1);
        }
    }
}

#[test]
fn calls_to_an_agent_end_when_its_host_registers() {
    for kind in [Create, Pause, Resume, Snapshot] {
        let mut world = World::new();
        world.begin(work(1, kind));
        let old = world.calls[0].clone();
        world.handle(Input::Registered(HostId::from_u128(1)));
        assert_eq!(world.seen(), [&format!("call {kind} 1"), "look Ended", "probe"]);
        // Called again by what an observation showed, while the old call hangs.
        world.begin(Work { earlier: Earlier::Unknown, ..work(1, kind) });
        let outcome = Outcome::Told(Call::Succeeded, None, Said::default());
        world.handle(Input::Called(Box::new(Called { job: old, outcome })));
        assert_eq!(world.seen(), [format!("call {kind} 1")], "the old answer is of no use");
    }
    let mut world = World::new();
    world.begin(work(1, Destroy));
    world.handle(Input::Registered(HostId::from_u128(2)));
    assert_eq!(world.calls.len(), 1, "another host's");
    world.handle(Input::Registered(HostId::from_u128(1)));
    assert_eq!(world.calls.len(), 2, "sent to the new agent");
}

/// It may have been in progress at the agent, which did not notice that its caller was gone.
#[test]
fn a_call_whose_outcome_is_not_known_has_ended_when_its_host_registers() {
    for kind in [Create, Pause, Resume, Snapshot] {
        let mut world = World::new();
        world.begin(work(1, kind));
        world.ends(kind, Call::Unknown);
        assert_eq!(world.seen(), [&format!("call {kind} 1"), "look Unclear", "probe"]);
        world.handle(Input::Registered(HostId::from_u128(2)));
        assert_eq!(world.seen(), [""; 0], "another host's");
        for expected in [&["look Ended", "probe"][..], &[]] {
            world.handle(Input::Registered(HostId::from_u128(1)));
            assert_eq!(world.seen(), expected);
        }
    }
}

#[test]
fn a_stop_begins_nothing_and_waits_for_what_is_in_flight() {
    let mut world = World::new();
    world.begin(work(1, Pause));
    world.handle(Input::Stop);
    world.begin(Work { sandbox: SandboxId::from_u128(2), ..work(2, Pause) });
    world.pass(1);
    assert_eq!(world.calls.len(), 1, "the second waits for the next start");
    assert!(!world.operations.is_idle());
    world.ends(Pause, Call::Succeeded);
    assert!(!world.operations.is_idle(), "its result is to be written");
    let ended = Ended {
        op: OpId::from_u128(1),
        host: HostId::from_u128(1),
        status: SandboxStatus::Paused,
        reason: Reason::OperationSucceeded,
        details: None,
        error: None,
        known_at: Mono(0),
    };
    world.handle(Input::Written(Box::new(ended), Ok(true)));
    assert!(world.operations.is_idle());
}

#[test]
fn a_clock_that_is_set_back_prolongs_nothing() {
    let far = Wall(BEGIN_MS as i64).after(Duration::from_secs(30 * 86_400));
    let mut world = World::new();
    world.begin(Work { deadline_at: far, ..work(1, Create) });
    while !world.calls.is_empty() {
        assert!(world.at_ms <= BEGIN_MS + 120_000, "given up when its own time is over");
        world.ends(Create, Call::NotReached);
        world.handle(Input::Placed(OpId::from_u128(1), Ok(Placed::NoHost)));
        world.pass(30);
    }
    assert_eq!(world.seen().last().map(String::as_str), Some("write error"));
}

#[test]
fn what_waited_to_be_asked_again_is_overtaken() {
    let mut world = World::new();
    world.begin(work(1, Create));
    world.ends(Create, Call::NotReached);
    world.begin(Work { overtook: true, ..work(2, Destroy) });
    world.ends(Destroy, Call::Gone);
    world.pass(3600);
    assert_eq!(
        world.seen(),
        ["call create 1", "place elsewhere", "call destroy 1", "write stopped"]
    );
}

#[test]
fn a_call_that_hangs_is_looked_after_once_it_took_long() {
    for kind in [Create, Pause, Resume] {
        let mut world = World::new();
        world.begin(work(1, kind));
        world.pass(14);
        assert_eq!(world.seen(), [format!("call {kind} 1")]);
        world.pass(3600);
        assert_eq!(world.seen(), ["look Outstanding", "probe"]);
        world.ends(kind, Call::Succeeded);
        let ends = if kind == Pause { SandboxStatus::Paused } else { SandboxStatus::Running };
        assert_eq!(world.seen(), [format!("write {ends}")]);
    }
    let mut world = World::new();
    world.begin(work(1, Destroy));
    world.pass(3600);
    assert_eq!(world.seen(), ["call destroy 1"]);
}

#[test]
fn what_was_sent_before_the_start_is_looked_after_and_not_asked() {
    for kind in [Create, Pause, Resume] {
        let mut world = World::new();
        world.begin(Work { sent: true, ..work(1, kind) });
        world.pass(3600);
        assert_eq!(world.seen(), ["probe"]);
    }
}

#[test]
fn a_result_that_cannot_be_written_is_written_again() {
    let mut world = World::new();
    world.begin(work(1, Pause));
    world.ends(Pause, Call::Succeeded);
    world.seen();
    let ended = Ended {
        op: OpId::from_u128(1),
        host: HostId::from_u128(1),
        status: SandboxStatus::Paused,
        reason: Reason::OperationSucceeded,
        details: None,
        error: None,
        known_at: Mono(0),
    };
    world.handle(Input::Written(Box::new(ended.clone()), Err(StoreError::Stopped)));
    world.pass(1);
    assert_eq!(world.seen(), ["write paused"]);
    world.handle(Input::Written(Box::new(ended), Ok(true)));
    assert_eq!(world.seen(), ["probe"], "what it left is seen at once");
}

#[test]
fn a_host_that_hangs_keeps_nobody_else_waiting() {
    let mut world = World::new();
    let of_host = |host: u128, op: u128, kind| Work {
        host: HostId::from_u128(host),
        sandbox: SandboxId::from_u128(op),
        ..work(op, kind)
    };
    let most = CALLS_PER_HOST_MAX as u128;
    // The first to come are the first to be called, whatever their ids.
    for op in (1..=most + 2).rev() {
        world.begin(of_host(1, op, Pause));
    }
    assert_eq!(world.calls.len(), CALLS_PER_HOST_MAX);
    assert!(world.calls.iter().all(|job| job.work.op > OpId::from_u128(2)));
    world.begin(of_host(1, 100, Destroy));
    world.begin(of_host(2, 101, Create));
    world.begin(Work { sandbox: SandboxId::from_u128(2), ..of_host(1, 102, Destroy) });
    assert_eq!(world.calls.len(), CALLS_PER_HOST_MAX + 3, "destroys and others go out beside");
    assert_eq!(world.operations.next_wake(), Some(world.now().mono.after(LOOK_BESIDE_AFTER)));

    world.ends(Pause, Call::Succeeded);
    world.ends(Pause, Call::Succeeded);
    world.pass(0);
    let called: Vec<OpId> = world.calls.iter().map(|job| job.work.op).collect();
    assert!(called.contains(&OpId::from_u128(1)));
    assert!(!called.contains(&OpId::from_u128(2)), "its sandbox is being destroyed");
}
