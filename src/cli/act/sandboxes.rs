//! Owns `roost sandboxes create`, `pause`, `resume` and `destroy`.
//!
//! Never: takes one sandbox's trouble for another's: each is tried, and told by itself.

use super::client::{PATIENCE, ServerClient, Trouble};
use super::follow::{Deadline, Rest, Unseen, rest_of};
use super::{print, said, word};
use crate::cli::args::{SandboxesAdopt, SandboxesCreate, SomeSandboxes, Waiting};
use crate::cli::output::{Exit, Failure};
use crate::config::Config;
use crate::model::id::SandboxId;
use crate::model::operation::OperationKind;
use crate::model::sandbox::SandboxStatus;
use serde_json::{Value, json};
use ureq::http::Method;

/// Lists what can be named.
const LIST: &str = "roost sandboxes";

/// Creates a sandbox, and waits for it when asked to.
pub(in crate::cli) fn create_sandbox(
    config: &Config,
    options: &SandboxesCreate,
) -> Result<Exit, Failure> {
    let server = ServerClient::of(config, &options.server);
    let deadline = Deadline::after(options.waiting.timeout);
    let fail = |trouble: Trouble| trouble.to("create a sandbox", "roost templates");
    let wanted = wanted(options);
    let mut capsule =
        server.ask(Method::POST, "/v1/capsules", Some(&wanted), PATIENCE).map_err(fail)?;
    let id = word(&capsule, "id").parse();
    let id = id.map_err(|e| fail(Trouble::Strange(format!("{}: {e}", server.base()))))?;
    let begun = Begun { server: &server, kind: OperationKind::Create, id };
    if options.waiting.wait {
        capsule = begun.wait(capsule, &options.waiting, &deadline)?;
    }
    print(options.printing.format, &capsule, &line(&capsule))?;
    Ok(Exit::Done)
}

/// The fields that were given; the server has a default for every other.
fn wanted(options: &SandboxesCreate) -> Value {
    let fields = [
        ("template", options.template.as_ref().map(|name| json!(name))),
        ("vcpus", options.vcpus.map(|n| json!(n))),
        ("memory_mb", options.memory_mb.map(|n| json!(n))),
        ("timeout_sec", options.timeout_sec.map(|n| json!(n))),
        ("disk_size_mb", options.disk_size_mb.map(|n| json!(n))),
        ("team_id", options.team.map(|id| json!(id.to_string()))),
    ];
    let given = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(given.collect())
}

/// Pauses, resumes or destroys sandboxes: asks for all, then waits for each when asked to.
pub(in crate::cli) fn operate(
    config: &Config,
    kind: OperationKind,
    options: &SomeSandboxes,
) -> Result<Exit, Failure> {
    let server = ServerClient::of(config, &options.server);
    let deadline = Deadline::after(options.waiting.timeout);
    let mut exit = Exit::Done;
    let mut tell = |result: Result<Value, Failure>| match result {
        Ok(capsule) => print(options.printing.format, &capsule, &line(&capsule)),
        Err(failure) => {
            failure.report();
            exit = Exit::Failed;
            Ok(())
        }
    };
    let mut awaited = Vec::new();
    for &id in &options.ids {
        let begun = Begun { server: &server, kind, id };
        match begun.begin(&options.waiting, &deadline) {
            Ok(capsule) if options.waiting.wait => awaited.push((begun, capsule)),
            result => tell(result)?,
        }
    }
    for (begun, capsule) in awaited {
        tell(begun.wait(capsule, &options.waiting, &deadline))?;
    }
    Ok(exit)
}

/// Takes over a sandbox that a host has although it should not.
pub(in crate::cli) fn adopt(config: &Config, options: &SandboxesAdopt) -> Result<Exit, Failure> {
    let server = ServerClient::of(config, &options.server);
    let fields = [
        ("host_id", options.host.map(|id| json!(id.to_string()))),
        ("team_id", options.team.map(|id| json!(id.to_string()))),
    ];
    let given = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let wanted = Value::Object(given.collect());
    let path = format!("/v1/strangers/{}/adopt", options.id);
    let capsule = server
        .ask(Method::POST, &path, Some(&wanted), PATIENCE)
        .map_err(|trouble| trouble.to(format!("adopt {}", options.id), "roost status"))?;
    print(options.printing.format, &capsule, &line(&capsule))?;
    Ok(Exit::Done)
}

/// One operation on one sandbox.
struct Begun<'a> {
    server: &'a ServerClient,
    kind: OperationKind,
    id: SandboxId,
}

impl Begun<'_> {
    /// Asks for it; gives the sandbox as it is then. When the server went away with the
    /// question, whoever waits anyway asks again, which begins nothing twice.
    fn begin(&self, waiting: &Waiting, deadline: &Deadline) -> Result<Value, Failure> {
        let mut answer = self.ask();
        if waiting.wait && matches!(answer, Err(Trouble::Cut(_))) {
            while is_no_answer(&answer) && deadline.wait() {
                answer = self.ask();
            }
            if let Err(Trouble::Refused(404 | 409, _)) = answer {
                // Done in the meantime, or not possible: the row tells.
                return Ok(json!({"id": self.id.to_string(), "status": "unknown"}));
            }
        }
        answer.map_err(|trouble| trouble.to(self.what(), LIST))
    }

    fn ask(&self) -> Result<Value, Trouble> {
        let path = format!("/v1/capsules/{}", self.id);
        let (method, path) = match self.kind {
            OperationKind::Destroy => (Method::DELETE, path),
            OperationKind::Snapshot => (Method::POST, "/v1/snapshots".to_owned()),
            OperationKind::Create | OperationKind::Pause | OperationKind::Resume => {
                (Method::POST, format!("{path}/{}", self.kind.as_str()))
            }
        };
        let capsule = self.server.ask(method, &path, None, PATIENCE)?;
        if capsule.is_null() {
            // There was nothing to do.
            let ended = json!({"id": self.id.to_string(), "status": "stopped"});
            return Ok(self.server.ask(Method::GET, &path, None, PATIENCE).unwrap_or(ended));
        }
        Ok(capsule)
    }

    fn what(&self) -> String {
        format!("{} {}", self.kind.as_str(), self.id)
    }

    /// Waits until it is done; gives the sandbox as it is then, or as `before` when it is
    /// no longer there to be shown.
    fn wait(
        &self,
        before: Value,
        waiting: &Waiting,
        deadline: &Deadline,
    ) -> Result<Value, Failure> {
        let rest =
            rest_of(self.server, self.id, word(&before, "status"), deadline).map_err(|unseen| {
                match unseen {
                    Unseen::Trouble(trouble) => trouble.to(self.what(), LIST),
                    Unseen::TimeUp(status) => self.time_up(&status, waiting),
                }
            })?;
        if !self.is_done(&rest) {
            return Err(self.not_done(&rest));
        }
        let path = format!("/v1/capsules/{}", self.id);
        Ok(self.server.ask(Method::GET, &path, None, PATIENCE).unwrap_or(before))
    }

    fn is_done(&self, rest: &Rest) -> bool {
        let wished = match self.kind {
            OperationKind::Create | OperationKind::Resume | OperationKind::Snapshot => {
                SandboxStatus::Running
            }
            OperationKind::Pause => SandboxStatus::Paused,
            OperationKind::Destroy => SandboxStatus::Stopped,
        };
        // Who wants it gone minds no more where it went.
        rest.status.map_or(self.kind == OperationKind::Destroy, |status| status == wished)
    }

    fn not_done(&self, rest: &Rest) -> Failure {
        let why = match rest.status {
            None => "it is gone".to_owned(),
            Some(status) if rest.reason.is_empty() => format!("its status is {status}"),
            Some(status) => format!("its status is {status} ({})", rest.reason),
        };
        let advice = format!("`roost audit --sandbox {}` says what was done", self.id);
        Failure::new(format!("could not {}", self.what())).because(why).advise(advice)
    }

    fn time_up(&self, status: &str, waiting: &Waiting) -> Failure {
        let span = humantime::format_duration(waiting.timeout);
        let why = format!("it was {status} when last seen, and {span} are over");
        let advice = format!("it may still be done; see `roost sandboxes show {}`", self.id);
        Failure::new(format!("could not {}", self.what())).because(why).advise(advice)
    }
}

fn is_no_answer(answer: &Result<Value, Trouble>) -> bool {
    matches!(answer, Err(Trouble::Away(_) | Trouble::Cut(_) | Trouble::Refused(500.., _)))
}

/// A sandbox for people.
fn line(capsule: &Value) -> String {
    let [id, status, host] = ["id", "status", "host_id"].map(|name| said(capsule, name));
    format!("{id}  {status} on {host}\n")
}
