//! Owns `roost templates add` and `rm`, `roost snapshots create` and `rm`.
//!
//! Never: reports a snapshot in progress as failed.

use super::client::{PATIENCE, ServerClient, Trouble};
use super::follow::{Deadline, Unseen, rest_of};
use super::{print, said, word};
use crate::cli::args::{SnapshotsCreate, TemplatesAdd, TemplatesRm};
use crate::cli::output::{Exit, Failure};
use crate::config::Config;
use crate::model::order;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::time::Duration;
use ureq::http::Method;

/// Lists what can be named.
const LIST: &str = "roost templates";

/// How long the server may take with a snapshot: as long as it waits for one, and some.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(75);

/// Adds a template that is on hosts.
pub(in crate::cli) fn add_template(
    config: &Config,
    options: &TemplatesAdd,
) -> Result<Exit, Failure> {
    let server = ServerClient::of(config, &options.server);
    let answer = server.ask(Method::POST, "/v1/templates", Some(&wanted(options)), PATIENCE);
    let made = answer.map_err(|e| e.to(format!("add {}", options.name), "roost hosts"))?;
    let text = format!("{}  {}\n", said(&made, "id"), said(&made, "name"));
    print(options.printing.format, &made, &text).map(|()| Exit::Done)
}

/// The fields that were given.
fn wanted(options: &TemplatesAdd) -> Value {
    let env = options.env.iter().map(|(name, value)| (name.clone(), json!(value)));
    let env: Map<String, Value> = env.collect();
    let hosts: Vec<String> = options.host.iter().map(ToString::to_string).collect();
    let fields = [
        ("name", Some(json!(options.name.as_str()))),
        ("id", options.id.map(|id| json!(id.to_string()))),
        ("team_id", options.team.map(|id| json!(id.to_string()))),
        ("vcpus", options.vcpus.map(|n| json!(n))),
        ("memory_mb", options.memory_mb.map(|n| json!(n))),
        ("disk_size_mb", options.disk_size_mb.map(|n| json!(n))),
        ("default_user", options.user.as_ref().map(|name| json!(name))),
        ("default_env", (!env.is_empty()).then_some(Value::Object(env))),
        ("hosts", (!hosts.is_empty()).then_some(json!(hosts))),
    ];
    let given = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(given.collect())
}

/// Forgets a template.
pub(in crate::cli) fn forget_template(
    config: &Config,
    options: &TemplatesRm,
) -> Result<Exit, Failure> {
    remove(config, options, "templates", "forget", "forgotten")
}

/// Deletes a snapshot.
pub(in crate::cli) fn delete_snapshot(
    config: &Config,
    options: &TemplatesRm,
) -> Result<Exit, Failure> {
    remove(config, options, "snapshots", "delete", "deleted")
}

fn remove(
    config: &Config,
    options: &TemplatesRm,
    resource: &str,
    verb: &str,
    done: &str,
) -> Result<Exit, Failure> {
    let server = ServerClient::of(config, &options.server);
    let name = crate::logging::one_line(&options.name);
    if !options.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        let failure = Failure::new(format!("could not {verb} {name}"));
        return Err(failure.because("this is neither a name nor an id").exit_with(Exit::Usage));
    }
    let team = options.team.map(|team| format!("?team_id={team}")).unwrap_or_default();
    let path = format!("/v1/{resource}/{name}{team}");
    let answer = server.ask(Method::DELETE, &path, None, PATIENCE);
    let answer = answer.map_err(|e| e.to(format!("{verb} {name}"), LIST))?;
    print(options.printing.format, &answer, &format!("{name}  {done}\n")).map(|()| Exit::Done)
}

/// Makes a template of a sandbox, and waits for it when asked to.
pub(in crate::cli) fn create_snapshot(
    config: &Config,
    options: &SnapshotsCreate,
) -> Result<Exit, Failure> {
    let server = ServerClient::of(config, &options.server);
    let deadline = Deadline::after(options.waiting.timeout);
    let snapshot = Snapshot { server: &server, options };
    let answer = match options.waiting.wait {
        true => snapshot.begin_and_wait(&deadline)?,
        false => snapshot.begin().map_err(|trouble| snapshot.because(trouble))?,
    };
    let text = match is_template(&answer) {
        true => format!("{}  {}\n", said(&answer, "id"), said(&answer, "name")),
        false => format!(
            "{}  {} on {}; the snapshot is in progress, `roost snapshots` will list it\n",
            said(&answer, "id"),
            said(&answer, "status"),
            said(&answer, "host_id"),
        ),
    };
    print(options.printing.format, &answer, &text).map(|()| Exit::Done)
}

/// The server answers with the template when it is made, with the capsule before.
fn is_template(answer: &Value) -> bool {
    answer["platform"].is_boolean()
}

struct Snapshot<'a> {
    server: &'a ServerClient,
    options: &'a SnapshotsCreate,
}

impl Snapshot<'_> {
    fn fail(&self) -> Failure {
        Failure::new(format!("could not make a snapshot of {}", self.options.id))
    }

    fn because(&self, trouble: Trouble) -> Failure {
        if let Trouble::Refused(409, error) = &trouble
            && word(error, "code") == "template_exists"
        {
            let failure = self.fail().because("there is a template of this name already");
            return failure.advise("--overwrite takes the place of a snapshot");
        }
        trouble.to(format!("make a snapshot of {}", self.options.id), "roost sandboxes")
    }

    fn begin(&self) -> Result<Value, Trouble> {
        let mut body = json!({"sandbox_id": self.options.id.to_string()});
        if let Some(name) = &self.options.name {
            body["name"] = json!(name.as_str());
        }
        let query = if self.options.overwrite { "?overwrite=true" } else { "" };
        let path = format!("/v1/snapshots{query}");
        self.server.ask(Method::POST, &path, Some(&body), SNAPSHOT_PATIENCE)
    }

    /// Every snapshot there is.
    fn list(&self) -> Result<Vec<Value>, Failure> {
        let answer = self.server.ask(Method::GET, "/v1/snapshots?type=snapshot", None, PATIENCE);
        let mut answer = answer.map_err(|trouble| self.because(trouble))?;
        Ok(answer.as_array_mut().map(std::mem::take).unwrap_or_default())
    }

    /// Makes it and waits for it, also when the server goes away meanwhile.
    fn begin_and_wait(&self, deadline: &Deadline) -> Result<Value, Failure> {
        let path = format!("/v1/capsules/{}", self.options.id);
        let capsule = self.server.ask(Method::GET, &path, None, PATIENCE);
        let capsule = capsule.map_err(|trouble| self.because(trouble))?;
        let before: BTreeSet<String> =
            order::set_of(self.list()?.iter().map(|template| word(template, "id").to_owned()));
        match self.begin() {
            Ok(answer) if is_template(&answer) => Ok(answer),
            // Not done in a minute, or perhaps begun.
            Ok(_) | Err(Trouble::Cut(_)) => self.wait(&capsule, &before, deadline),
            Err(trouble) => Err(self.because(trouble)),
        }
    }

    /// Waits until the sandbox has come to rest; the template is there then, or it failed.
    fn wait(
        &self,
        capsule: &Value,
        before: &BTreeSet<String>,
        deadline: &Deadline,
    ) -> Result<Value, Failure> {
        let id = self.options.id;
        let rest = rest_of(self.server, id, word(capsule, "status"), deadline);
        if let Err(unseen) = rest {
            return Err(match unseen {
                Unseen::Trouble(trouble) => self.because(trouble),
                Unseen::TimeUp(status) => self.fail().because(format!(
                    "it was {status} when last seen, and {} have passed",
                    humantime::format_duration(self.options.waiting.timeout)
                )),
            });
        }
        let (team, name) = (word(capsule, "team_id"), self.options.name.as_ref());
        let is_it = |template: &Value| {
            !before.contains(word(template, "id"))
                && word(template, "team_id") == team
                && name.is_none_or(|name| word(template, "name") == name.as_str())
        };
        let advice = format!("`roost audit --sandbox {id}` says what was done");
        let missing = || self.fail().because("the agent did not make it").advise(advice);
        self.list()?.into_iter().find(is_it).ok_or_else(missing)
    }
}
