//! Owns `/v1/templates` and `/v1/snapshots`: what capsules are made from.
//!
//! Never: talks to an agent itself; shows a team the hosts of the platform's templates.

use super::access::{Caller, operator};
use super::body::Fields;
use super::capsules::{WIRE_NUMBER_MAX, host_away, invalid_state};
use super::lanes::Lane;
use super::query::Query;
use super::view::{CapsuleView, TemplateView};
use super::waiting::{NOTICE, still_needed};
use super::{Problem, Ready, Wake, json};
use crate::http::{Caller as Client, Request, Response};
use crate::model::id::{HostId, OpId, PLATFORM_TEAM, SandboxId, TemplateId};
use crate::model::template::{Template, TemplateName};
use crate::store::lifecycle::Work;
use crate::store::read;
use crate::store::snapshots::{NewSnapshot, SnapshotBegun, SnapshotOutcome, snapshot_outcome};
use crate::store::templates::{
    self, Added, Disposal, NewTemplate, Removal, Removed, Scope, TEMPLATES_MAX, Unknown,
};
use crate::store::writer::Command;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// How long a request waits for its snapshot. Larger: proxies give up on it first; smaller:
/// clients that do not know 202 fail for a large disk.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(60);

/// Characters of an unknown name that its refusal repeats.
const NAME_CHARS_SHOWN: usize = 64;

/// Largest environment in bytes of JSON. Larger: every create of it fills the database and
/// the wire; smaller: real ones do not fit.
const ENV_BYTES_MAX: usize = 16 * 1024;

/// Longest name of a user.
const USER_BYTES_MAX: usize = 64;

/// `GET /v1/snapshots?type=`, and `GET /v1/templates` for operators.
pub(super) fn list(ready: &Ready, caller: &Caller, request: &Request) -> Result<Response, Problem> {
    let query = Query::read(&request.query)?;
    let found = templates::list(&*ready.read()?, scope(caller), query.parsed("type")?)?;
    let views: Vec<TemplateView> = found.into_iter().map(|found| view(caller, found)).collect();
    json(200, &views)
}

fn scope(caller: &Caller) -> Scope {
    caller.team().map_or(Scope::Any, Scope::Team)
}

fn view(caller: &Caller, template: Template) -> TemplateView {
    let sees_hosts = caller.sees(template.team_id);
    let view = TemplateView::from(template);
    if sees_hosts { view } else { view.without_hosts() }
}

/// `POST /v1/templates`
pub(super) fn add(ready: &Ready, request: &Request) -> Result<Response, Problem> {
    let new = new_template(&Fields::read(request)?)?;
    let name = new.name.clone();
    match ready.write(|reply| Command::AddTemplate(Box::new(new), reply))? {
        Added::Added(template) => json(201, &TemplateView::from(*template)),
        Added::NameTaken => Err(name_taken(&name, "remove it first")),
        Added::IdTaken(id) => {
            Err(Problem::new(409, "template_exists", format!("another template has the id {id}")))
        }
        Added::NoHost(at, host) => {
            Err(Problem::invalid(format!("hosts[{at}]: there is no host {host}")))
        }
        Added::TooMany => Err(too_many()),
    }
}

fn new_template(fields: &Fields) -> Result<NewTemplate, Problem> {
    let size = |name: &str| fields.count_in(name, 1..=WIRE_NUMBER_MAX);
    Ok(NewTemplate {
        id: fields.optional::<AgentsId>("id")?.map(|AgentsId(id)| id),
        team: fields.optional("team_id")?.unwrap_or(PLATFORM_TEAM),
        name: fields.parsed("name")?,
        vcpus: size("vcpus")?,
        memory_mb: size("memory_mb")?,
        disk_size_mb: size("disk_size_mb")?,
        default_user: default_user(fields)?,
        default_env: default_env(fields)?,
        hosts: fields.list::<HostId>("hosts")?,
        actor: operator(),
    })
}

/// The id of a template as an operator finds it on a host, or as we write it.
struct AgentsId(TemplateId);

impl FromStr for AgentsId {
    type Err = NoTemplateId;

    fn from_str(text: &str) -> Result<AgentsId, NoTemplateId> {
        let id = TemplateId::from_uuid(text).or_else(|| text.parse().ok());
        let id = id.filter(|id| id.as_u128() != 0);
        id.map(AgentsId).ok_or(NoTemplateId)
    }
}

/// Why a text is not an [`AgentsId`].
struct NoTemplateId;

impl fmt::Display for NoTemplateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let example = TemplateId::from_u128(1);
        write!(f, "must be a UUID other than zero, or look like {example}")
    }
}

fn default_user(fields: &Fields) -> Result<Option<String>, Problem> {
    let name = "default_user";
    let begins = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let is_name = |user: &String| {
        let is_allowed = |c: char| begins(c) || ".-".contains(c);
        user.len() <= USER_BYTES_MAX && user.starts_with(begins) && user.chars().all(is_allowed)
    };
    let user = fields.text(name)?;
    if user.as_ref().is_none_or(is_name) {
        return Ok(user);
    }
    Err(Problem::invalid(format!(
        "{name} must be 1 to {USER_BYTES_MAX} letters, digits, dots, underscores and dashes"
    )))
}

fn default_env(fields: &Fields) -> Result<Option<String>, Problem> {
    let name = "default_env";
    let Some(env) = fields.strings(name)? else { return Ok(None) };
    let is_odd = |key: &str| key.is_empty() || key.contains(['=', '\0']);
    if let Some(key) = env.keys().find(|key| is_odd(key)) {
        return Err(Problem::invalid(format!("{name}: {key:?} is no name of a variable")));
    }
    let has_nul = |value: &serde_json::Value| value.as_str().is_some_and(|v| v.contains('\0'));
    if let Some((key, _)) = env.iter().find(|(_, value)| has_nul(value)) {
        return Err(Problem::invalid(format!("{name}.{} has a NUL", key.escape_debug())));
    }
    let json = serde_json::to_string(env);
    let json = json.map_err(|error| Problem::invalid(format!("{name}: {error}")))?;
    if json.len() > ENV_BYTES_MAX {
        return Err(Problem::invalid(format!("{name} is longer than {ENV_BYTES_MAX} bytes")));
    }
    Ok(Some(json))
}

/// `DELETE /v1/snapshots/{name}` and, for operators, `DELETE /v1/templates/{name}`, both
/// with `?team_id=` for operators.
pub(super) fn remove(
    ready: &Ready,
    caller: &Caller,
    wanted: &str,
    request: &Request,
    disposal: Disposal,
) -> Result<Response, Problem> {
    let query = Query::read(&request.query)?;
    let team = match query.parsed("team_id")? {
        None => caller.team(),
        Some(team) => Some(caller.owner(Some(team))?),
    };
    let removal = Removal {
        wanted: wanted.to_owned(),
        scope: team.map_or(Scope::Any, Scope::Team),
        by_operator: *caller == Caller::Admin,
        disposal,
        actor: caller.actor(),
    };
    match ready.write(|reply| Command::RemoveTemplate(Box::new(removal), reply))? {
        Removed::Removed(_) => {
            (ready.wake)(Wake::Erase);
            Ok(Response::empty(204))
        }
        Removed::NotFound(unknown) => Err(unknown_template(wanted, &unknown)),
        Removed::Ambiguous(ids) => {
            let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
            let message = format!(
                "several teams have a template of this name; name it by its id ({}), or add \
                 ?team_id=",
                ids.join(", ")
            );
            Err(Problem::new(409, "ambiguous", message))
        }
        Removed::Platform => {
            Err(Problem::forbidden("the template is the platform's; this needs the admin key"))
        }
        Removed::Minimal => Err(Problem::forbidden("minimal is part of every agent")),
        Removed::NoSnapshot(template) => {
            let message = format!(
                "{} was put on the hosts by an operator; `roost templates rm` forgets it",
                template.name
            );
            Err(Problem::new(409, "not_a_snapshot", message))
        }
        Removed::InUse(ids) => {
            let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
            let message = "capsules are being made from the template; try again when they run";
            Err(Problem::new(409, "template_in_use", message).with("sandbox_ids", ids))
        }
    }
}

/// `POST /v1/snapshots?overwrite=true`
pub(super) fn snapshot(
    ready: &Arc<Ready>,
    caller: &Caller,
    request: &Request,
) -> Result<Response, Problem> {
    let fields = Fields::read(request)?;
    let new = NewSnapshot {
        sandbox: fields.parsed::<SandboxId>("sandbox_id")?,
        team: caller.team(),
        name: fields.optional::<TemplateName>("name")?,
        overwrite: Query::read(&request.query)?.flag("overwrite")?,
        actor: caller.actor(),
    };
    let slot = ready.place(Lane::Conversation, caller.into())?;
    let work = begin_snapshot(ready, new)?;
    Ok(ready.in_lane(Lane::Conversation, slot, move |ready, client| {
        wait_for_snapshot(ready, client, work.sandbox, work.op)
    }))
}

fn begin_snapshot(ready: &Ready, new: NewSnapshot) -> Result<Box<Work>, Problem> {
    match ready.write(|reply| Command::Snapshot(Box::new(new), reply))? {
        SnapshotBegun::Started(_, work) => {
            (ready.wake)(Wake::Work(work.clone()));
            Ok(work)
        }
        SnapshotBegun::Already(_, work) => Ok(work),
        SnapshotBegun::InvalidState(status) => Err(invalid_state("snapshot", status)),
        SnapshotBegun::HostAway(status) => Err(host_away(status)),
        SnapshotBegun::NotFound => Err(Problem::not_found("capsule")),
        SnapshotBegun::NameTaken(name) => {
            Err(name_taken(&name, "a snapshot is replaced with ?overwrite=true"))
        }
        SnapshotBegun::Platform(name) => {
            let message = format!("{name} is the platform's; replacing it needs the admin key");
            Err(Problem::forbidden(message))
        }
        SnapshotBegun::TooMany => Err(too_many()),
    }
}

/// The template when it is made in time; else the capsule as it is then.
fn wait_for_snapshot(
    ready: &Ready,
    client: &mut Client,
    sandbox: SandboxId,
    op: OpId,
) -> Result<Response, Problem> {
    let since = ready.now().mono;
    loop {
        let seen = ready.revision.newest();
        match snapshot_outcome(&*ready.read()?, op)? {
            SnapshotOutcome::Made(template) => {
                // It may have taken the place of another.
                (ready.wake)(Wake::Erase);
                return json(201, &TemplateView::from(*template));
            }
            SnapshotOutcome::Failed(why) => return Err(Problem::new(502, "agent_error", why)),
            SnapshotOutcome::UnderWay => {}
        }
        let waited = ready.now().mono.since(since) >= SNAPSHOT_PATIENCE;
        if waited || still_needed(ready, client).is_err() {
            break;
        }
        ready.revision.wait_newer(seen, NOTICE);
    }
    let capsule = read::sandbox(&*ready.read()?, sandbox)?;
    let capsule = capsule.ok_or_else(|| Problem::not_found("capsule"))?;
    json(202, &CapsuleView::from(capsule))
}

fn name_taken(name: &TemplateName, advice: &str) -> Problem {
    let message = format!("there is a template {name:?} already; {advice}", name = name.as_str());
    Problem::new(409, "template_exists", message)
}

fn too_many() -> Problem {
    let message = format!("the team has {TEMPLATES_MAX} templates; delete some first");
    Problem::new(409, "too_many_templates", message)
}

/// A template that does not exist, or not for this caller, with those that do.
pub(super) fn unknown_template(wanted: &str, unknown: &Unknown) -> Problem {
    let shown: String = wanted.chars().take(NAME_CHARS_SHOWN).collect();
    let mut message = format!("no such template {shown:?}; available: ");
    message += &unknown.available.join(", ");
    if unknown.more > 0 {
        message += &format!(" and {} more; see GET /v1/snapshots", unknown.more);
    }
    Problem::new(404, "template_not_found", message)
}
