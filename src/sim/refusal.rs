//! Owns the words in which a simulated agent refuses a call: codes and messages as real
//! agents have them.
//!
//! Never: decides whether to refuse. Called by `agent` and `answer`.

use super::template::Template;
use crate::agent::wire::{ConnectCode, Method};
use crate::model::id::SandboxId;

/// Why a call is refused: its code and its message.
pub(super) type Refusal = (ConnectCode, String);

/// Agents say this for nearly every failure.
pub(super) fn internal(message: String) -> Refusal {
    (ConnectCode::Internal, message)
}

/// The request makes no sense.
pub(super) fn invalid(message: String) -> Refusal {
    (ConnectCode::InvalidArgument, message)
}

/// Destroys, pings, and resumes by newer agents.
pub(super) fn not_found(id: SandboxId) -> Refusal {
    (ConnectCode::NotFound, no_sandbox(id))
}

/// Why an agent finds nothing by this id.
pub(super) fn no_sandbox(id: SandboxId) -> String {
    format!("sandbox not found: {id}")
}

/// Why an older agent cannot resume or copy a sandbox.
pub(super) fn no_snapshot(id: SandboxId) -> String {
    format!("no snapshot found for sandbox {id}")
}

/// Why a sandbox cannot be paused, copied or pinged.
pub(super) fn not_running(id: SandboxId, status: &str) -> String {
    format!("sandbox {id} is not running (status: {status})")
}

/// Why a newer agent cannot resume a sandbox.
pub(super) fn not_paused(id: SandboxId, status: &str) -> String {
    format!("sandbox {id} is not paused (status: {status})")
}

/// An older agent resumes a sandbox that runs, and finds its snapshot without the disk.
pub(super) fn disk_in_use(id: SandboxId) -> Refusal {
    let (from, to) = (format!("snapshots/{id}/rootfs.cow"), format!("sandboxes/{id}.cow"));
    let rename = format!("rename /var/lib/wrenn/{from} /var/lib/wrenn/{to}");
    internal(format!("move cow file: {rename}: no such file or directory"))
}

/// The id is taken.
pub(super) fn exists(id: SandboxId) -> Refusal {
    internal(format!("create sandbox: sandbox {id} already exists"))
}

/// The host does not have this template.
pub(super) fn no_template(template: Template) -> Refusal {
    let path = template.rootfs();
    let missing = format!("stat {path}: no such file or directory");
    internal(format!("create sandbox: base rootfs not found at {path}: {missing}"))
}

/// The size of a template that the host does not have is asked for.
pub(super) fn no_size(template: Template) -> Refusal {
    let path = template.rootfs();
    internal(format!("stat template rootfs: stat {path}: no such file or directory"))
}

/// A newer agent never replaces a template.
pub(super) fn template_exists(template: Template) -> Refusal {
    let (team, id) = (template.team_id(), template.template_id());
    internal(format!("create snapshot: snapshot template {team}/{id} already exists"))
}

/// A newer agent keeps a template that one of its sandboxes was made from.
pub(super) fn template_in_use(template: Template, users: &[SandboxId]) -> Refusal {
    let (team, id) = (template.team_id(), template.template_id());
    let count = users.len();
    let what = format!("snapshot {team}/{id} is in use by {count} sandbox(es): {users:?}");
    internal(format!("delete snapshot: {what}"))
}

/// Something else ended the sandbox while the call was in progress.
pub(super) fn canceled(step: &str) -> Refusal {
    internal(format!("{step}: context canceled"))
}

/// The agent shuts down.
pub(super) fn shutting_down() -> Refusal {
    (ConnectCode::Unavailable, "sandbox host is shutting down".to_owned())
}

/// The agent is too old for this method.
pub(super) fn unimplemented(method: Method) -> Refusal {
    let name = format!("hostagent.v1.HostAgentService.{method}");
    (ConnectCode::Unimplemented, format!("{name} is not implemented"))
}
