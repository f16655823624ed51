//! Owns the operations thread and the calls to agents that it starts: lets time and
//! messages into `operations` and carries out what it wants.
//!
//! Never: asks an agent before that is noted in the database; waits for a call.

use super::monitor;
use super::operations::{Called, Effect, Input, Job, Operations, Outcome, call_of};
use super::pool::Pool;
use super::scheduler::Mail;
use crate::agent::client::AgentClient;
use crate::agent::wire::{CreateSandboxRequest, CreateSnapshotRequest, ResumeSandboxRequest};
use crate::clock::Clock;
use crate::logging::seldom;
use crate::model::id::{PLATFORM_TEAM, TeamId};
use crate::model::operation::OperationKind;
use crate::model::template::MINIMAL_ID;
use crate::model::time::Now;
use crate::plan::operation::Call;
use crate::store::lifecycle::{Said, Work};
use crate::store::presence::Presence;
use crate::store::writer::{Command, WriterHandle};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Calls at a time, over all hosts; `operations` bounds those to one. Larger and a bad hour
/// of many hosts starts as many threads; smaller and fewer hosts that hang hold up everybody.
const CALLS_MAX: usize = 256;

/// Shortest deadline of a call: what is left of an operation may be nothing. Larger and an
/// operation is asked for after its time; smaller and it is never asked for then.
const CALL_DEADLINE_MIN: Duration = Duration::from_secs(1);

/// What can wake the operations thread.
pub(super) enum OpMail {
    /// Something happened to an operation.
    Input(Box<Input>),
    /// No new calls; the thread ends when those in flight have, or after this time.
    Stop(Duration),
}

impl OpMail {
    pub(super) fn input(input: Input) -> OpMail {
        OpMail::Input(Box::new(input))
    }
}

/// The thread.
pub(super) struct Calls {
    pub(super) operations: Operations,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) writer: WriterHandle,
    pub(super) pool: Pool<Job>,
    pub(super) mail: Receiver<OpMail>,
    pub(super) post: Sender<OpMail>,
    pub(super) scheduler: Sender<Mail>,
}

impl Calls {
    /// Runs until [`OpMail::Stop`], and then until no call is in flight: an agent breaks a
    /// call off when its caller disconnects. True when none was left.
    pub(super) fn run(mut self) -> bool {
        let mut until = None;
        loop {
            let now = self.clock.now();
            for effect in self.operations.effects(now.mono) {
                self.carry_out(effect, now);
            }
            if until.is_some() && self.operations.is_idle() {
                break;
            }
            let wakes = self.operations.next_wake().into_iter().chain(until);
            let mail = match wakes.min() {
                None => self.mail.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(wake) => self.mail.recv_timeout(wake.since(self.clock.now().mono)),
            };
            let now = self.clock.now();
            match mail {
                Ok(OpMail::Input(input)) => self.operations.handle(now, *input),
                Ok(OpMail::Stop(patience)) => {
                    self.operations.handle(now, Input::Stop);
                    until = Some(now.mono.after(patience));
                    self.say_what_is_waited_for(patience);
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if until.is_some_and(|until| until <= now.mono) {
                break;
            }
        }
        let left = self.operations.in_flight().count();
        if left > 0 {
            log::warn!("{left} calls to agents are cut off; their agents may break them off too");
        }
        self.operations.is_idle()
    }

    fn say_what_is_waited_for(&self, patience: Duration) {
        let calls: Vec<String> = self
            .operations
            .in_flight()
            .map(|work| format!("{} of {} on {}", work.kind, work.sandbox, work.host))
            .collect();
        if !calls.is_empty() {
            log::info!(
                "waiting up to {} s for {} calls to agents: {}; a second signal cuts them off",
                patience.as_secs(),
                calls.len(),
                calls.join(", ")
            );
        }
    }

    fn carry_out(&self, effect: Effect, now: Now) {
        match effect {
            Effect::Call(job) => self.pool.submit(*job),
            Effect::Look { op, since, answer, said } => {
                let reply = Box::new(move |result| {
                    if let Err(error) = result {
                        seldom!(Error, "failures of the database", "the database" =>
                            "could not record what the agent said of {op}: {error}");
                    }
                });
                self.writer.send(now, Command::Look { op, since, answer, said, reply });
            }
            Effect::PlaceElsewhere { op, clean } => {
                let post = self.post.clone();
                let reply = Box::new(move |result| {
                    drop(post.send(OpMail::input(Input::Placed(op, result))));
                });
                self.writer.send(now, Command::PlaceElsewhere { op, clean, reply });
            }
            Effect::ProbeNow(host) => {
                // Without a scheduler the next start looks.
                drop(self.scheduler.send(Mail::input(monitor::Input::ProbeNow(host))));
            }
            Effect::Write(ended) => {
                let (post, copy) = (self.post.clone(), ended.clone());
                let reply = Box::new(move |result| {
                    drop(post.send(OpMail::input(Input::Written(copy, result))));
                });
                self.writer.send(now, Command::Finish(ended, reply));
            }
        }
    }
}

/// A pool that calls agents and posts what they answered.
pub(super) fn pool(
    agent: AgentClient,
    clock: Arc<dyn Clock>,
    writer: WriterHandle,
    presence: Arc<Presence>,
    post: Sender<OpMail>,
) -> Pool<Job> {
    let run = move |job: Job| {
        let work = &job.work;
        let outcome = match writer.call(clock.now(), |reply| Command::Sent(work.op, reply)) {
            Ok(true) => ask(&agent, &presence, work, clock.now()),
            Ok(false) => Outcome::Over,
            // Not noted, so not asked: tried again like an agent that was not reached.
            Err(error) => not_asked(error.to_string()),
        };
        let called = Box::new(Called { job, outcome });
        drop(post.send(OpMail::input(Input::Called(called))));
    };
    Pool::new("operation", CALLS_MAX, Box::new(run))
}

fn ask(agent: &AgentClient, presence: &Presence, work: &Work, now: Now) -> Outcome {
    let Some(at) = presence.get(work.host).and_then(|host| host.address) else {
        return not_asked("the host has no address".to_owned());
    };
    let (host, left) = (work.host, call_deadline(work, now));
    let running = |details| (Some(details), Said::default());
    let done = |()| (None, Said::default());
    let made = |size_bytes| (None, Said { error: None, size_bytes });
    let result = match work.kind {
        OperationKind::Create => agent.create(host, &at, &create_request(work), left).map(running),
        OperationKind::Resume => agent.resume(host, &at, &resume_request(work), left).map(running),
        OperationKind::Pause => agent.pause(host, &at, work.sandbox, left).map(done),
        OperationKind::Destroy => agent.destroy(host, &at, work.sandbox, left).map(done),
        OperationKind::Snapshot => {
            agent.create_snapshot(host, &at, &snapshot_request(work), left).map(made)
        }
    };
    match result {
        Ok((details, said)) => Outcome::Told(Call::Succeeded, details, said),
        Err(error) => {
            let Work { kind, sandbox, host, .. } = work;
            seldom!(Info, "calls that failed", host =>
                "{kind} of {sandbox} on {}: {error}", presence.named(*host));
            let of_team = presence.team_of(*host) != PLATFORM_TEAM;
            let words = if of_team { error.for_team() } else { error.to_string() };
            let said = Said { error: Some(words), size_bytes: None };
            Outcome::Told(call_of(&error), None, said)
        }
    }
}

fn not_asked(why: String) -> Outcome {
    Outcome::Told(Call::NotReached, None, Said { error: Some(why), size_bytes: None })
}

/// How long a call may take: until the operation's deadline, and never longer than such an
/// operation may take at all, whatever the clock on the wall says. A destroy has all of its
/// time with each call.
fn call_deadline(work: &Work, now: Now) -> Duration {
    match work.kind {
        OperationKind::Create
        | OperationKind::Pause
        | OperationKind::Resume
        | OperationKind::Snapshot => {
            let left = work.deadline_at.since(now.wall);
            left.clamp(CALL_DEADLINE_MIN, work.kind.deadline())
        }
        OperationKind::Destroy => work.kind.deadline(),
    }
}

fn create_request(work: &Work) -> CreateSandboxRequest<'_> {
    CreateSandboxRequest {
        sandbox_id: work.sandbox.to_string().into(),
        vcpus: small(work.vcpus.map(i64::from)),
        memory_mb: small(work.memory_mb.and_then(|n| i64::try_from(n).ok())),
        timeout_sec: small(work.timeout_sec),
        disk_size_mb: small(work.disk_size_mb.and_then(|n| i64::try_from(n).ok())),
        // Both name the template, not who owns the sandbox.
        team_id: template_team(work).to_uuid().into(),
        template_id: work.template_id.unwrap_or(MINIMAL_ID).to_uuid().into(),
        default_user: work.default_user.as_deref().unwrap_or_default().into(),
        default_env: default_env(work),
        ..CreateSandboxRequest::default()
    }
}

/// A team's own when the template was removed since: the platform's are not made of
/// sandboxes by its users.
fn template_team(work: &Work) -> TeamId {
    match work.template_id {
        None => PLATFORM_TEAM,
        Some(_) => work.template_team.unwrap_or(work.team),
    }
}

fn default_env(work: &Work) -> BTreeMap<String, String> {
    let env = work.default_env.as_deref().and_then(|json| serde_json::from_str(json).ok());
    env.unwrap_or_default()
}

fn resume_request(work: &Work) -> ResumeSandboxRequest<'_> {
    ResumeSandboxRequest {
        sandbox_id: work.sandbox.to_string().into(),
        timeout_sec: small(work.timeout_sec),
        default_user: work.default_user.as_deref().unwrap_or_default().into(),
        default_env: default_env(work),
        kernel_version: kernel_version(work).unwrap_or_default().into(),
    }
}

fn snapshot_request(work: &Work) -> CreateSnapshotRequest<'_> {
    let (id, name) = match &work.makes {
        Some((id, name)) => (*id, name.as_str()),
        None => (MINIMAL_ID, ""),
    };
    CreateSnapshotRequest {
        sandbox_id: work.sandbox.to_string().into(),
        name: name.into(),
        // Of the template, which is the sandbox's team's.
        team_id: work.team.to_uuid().into(),
        template_id: id.to_uuid().into(),
    }
}

/// A snapshot runs on the kernel that it was made with.
fn kernel_version(work: &Work) -> Option<String> {
    let metadata: serde_json::Value = serde_json::from_str(work.metadata.as_deref()?).ok()?;
    metadata["kernel_version"].as_str().map(str::to_owned)
}

/// The wire's numbers are 32 bits; larger ones were refused at the edge.
fn small(number: Option<i64>) -> i32 {
    number.and_then(|n| i32::try_from(n).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{HostId, OpId, SandboxId, TemplateId};
    use crate::model::time::Wall;
    use crate::plan::operation::Earlier;
    use expect_test::expect;

    fn work() -> Work {
        Work {
            op: OpId::from_u128(1),
            kind: OperationKind::Create,
            sandbox: SandboxId::from_u128(36),
            host: HostId::from_u128(1),
            deadline_at: Wall(0),
            sent: false,
            overtook: false,
            earlier: Earlier::None,
            from: None,
            makes: None,
            team: TeamId::from_u128(7),
            template: Some("minimal".to_owned()),
            vcpus: Some(2),
            memory_mb: Some(512),
            timeout_sec: Some(0),
            disk_size_mb: Some(5120),
            metadata: Some(r#"{"kernel_version":"6.1.102"}"#.to_owned()),
            template_id: None,
            template_team: None,
            default_user: None,
            default_env: None,
        }
    }

    fn of_template(team: Option<TeamId>) -> Work {
        Work {
            template_id: Some(TemplateId::from_u128(9)),
            template_team: team,
            default_user: Some("app".to_owned()),
            default_env: Some(r#"{"LANG":"C.UTF-8"}"#.to_owned()),
            ..work()
        }
    }

    fn json(request: &impl serde::Serialize) -> String {
        serde_json::to_string(request).unwrap()
    }

    /// Agents know a template by the team that owns it, not by the team of the sandbox.
    #[test]
    fn a_create_names_the_template() {
        let ids = |work: &Work| {
            let request = create_request(work);
            (request.team_id.into_owned(), request.template_id.into_owned())
        };
        let (zero, seven) = (PLATFORM_TEAM.to_uuid(), TeamId::from_u128(7).to_uuid());
        let nine = TemplateId::from_u128(9).to_uuid();
        assert_eq!(ids(&work()), (zero.clone(), MINIMAL_ID.to_uuid()), "of every team");
        assert_eq!(ids(&of_template(Some(PLATFORM_TEAM))), (zero, nine.clone()));
        assert_eq!(ids(&of_template(Some(TeamId::from_u128(7)))), (seven.clone(), nine.clone()));
        assert_eq!(ids(&of_template(None)), (seven, nine), "removed since");
    }

    #[test]
    fn requests_as_they_are_sent() {
        expect![[r#"{"sandboxId":"cl-0000000000000000000000010","vcpus":2,"memoryMb":512,"diskSizeMb":5120,"teamId":"00000000-0000-0000-0000-000000000000","templateId":"00000000-0000-0000-0000-000000000009","defaultUser":"app","defaultEnv":{"LANG":"C.UTF-8"}}"#]].assert_eq(&json(&create_request(&of_template(Some(PLATFORM_TEAM)))));
        expect![[r#"{"sandboxId":"cl-0000000000000000000000010","defaultUser":"app","defaultEnv":{"LANG":"C.UTF-8"},"kernelVersion":"6.1.102"}"#]].assert_eq(&json(&resume_request(&of_template(None))));
        expect![[r#"{"sandboxId":"cl-0000000000000000000000010"}"#]]
            .assert_eq(&json(&resume_request(&Work { metadata: None, ..work() })));
        let made = Some((TemplateId::from_u128(10), "deps".to_owned()));
        expect![[r#"{"sandboxId":"cl-0000000000000000000000010","name":"deps","teamId":"00000000-0000-0000-0000-000000000007","templateId":"00000000-0000-0000-0000-00000000000a"}"#]]
            .assert_eq(&json(&snapshot_request(&Work { makes: made, ..of_template(None) })));
    }
}
