//! Owns how a simulated agent's sandboxes look on the wire.
//!
//! Never: decides what is listed (`agent` does). Called by `agent` and `answer`.

use super::sandbox::SimSandbox;
use crate::agent::wire::{ListSandboxesResponse, Metadata, SandboxInfo};
use crate::model::id::SandboxId;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::borrow::Cow;
use std::io::Write;
use std::sync::Arc;

/// What an older agent says of itself with each sandbox.
pub(super) const METADATA: &str = r#"{"agent_version":"0.1.2","envd_version":"0.1.2","firecracker_version":"1.12.0","kernel_version":"6.1.102"}"#;

/// The same of a newer one.
const METADATA_NEWER: &str = r#"{"agent_version":"0.3.0","envd_version":"0.3.0","kernel_version":"6.1.102","vmm_version":"52.0.0"}"#;

/// What newer agents call the address of a sandbox that they read from the disk.
const NO_ADDRESS: &str = "<nil>";

/// An answer's body in both forms that real agents send it in.
#[derive(Debug, Clone)]
pub(super) struct Rendered {
    pub(super) json: Arc<[u8]>,
    pub(super) gzipped: Arc<[u8]>,
}

/// The answer to `ListSandboxes`.
pub(super) fn render<'a>(
    listed: impl Iterator<Item = (SandboxId, &'a SimSandbox, &'static str)>,
    announced: &[SandboxId],
    newer: bool,
) -> Rendered {
    let auto_paused = announced.iter().map(|id| Cow::Owned(id.to_string()));
    let answer = ListSandboxesResponse {
        sandboxes: listed.map(|(id, sandbox, status)| info(id, sandbox, status, newer)).collect(),
        auto_paused_sandbox_ids: auto_paused.collect(),
    };
    // Strings and numbers can always be written.
    let json = serde_json::to_vec(&answer).unwrap_or_default();
    Rendered { gzipped: gzip(&json).into(), json: json.into() }
}

/// A body as agents send it to a client that accepts gzip.
pub(super) fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    // Memory takes everything.
    let _ = encoder.write_all(body);
    encoder.finish().unwrap_or_default()
}

/// What an agent says of a sandbox beyond its id and status: its address and its versions.
pub(super) fn details(sandbox: &SimSandbox, newer: bool) -> (String, Metadata<'static>) {
    let host_ip = if sandbox.has_address { sandbox.host_ip() } else { NO_ADDRESS.to_owned() };
    let metadata = match (sandbox.has_versions, newer) {
        (false, _) => Metadata::default(),
        (true, false) => Metadata::from_compact(METADATA),
        (true, true) => Metadata::from_compact(METADATA_NEWER),
    };
    (host_ip, metadata)
}

fn info(
    id: SandboxId,
    sandbox: &SimSandbox,
    status: &'static str,
    newer: bool,
) -> SandboxInfo<'static> {
    let (host_ip, metadata) = details(sandbox, newer);
    SandboxInfo {
        sandbox_id: Cow::Owned(id.to_string()),
        status: Cow::Borrowed(status),
        template: Cow::Borrowed(""),
        vcpus: sandbox.vcpus,
        memory_mb: sandbox.memory_mb,
        host_ip: Cow::Owned(host_ip),
        created_at_unix: sandbox.created_at_unix,
        last_active_at_unix: sandbox.last_active_at_unix,
        timeout_sec: sandbox.timeout_sec,
        team_id: Cow::Owned(sandbox.template().team_id()),
        template_id: Cow::Owned(sandbox.template().template_id()),
        metadata,
    }
}
