//! Owns how hosts, sandboxes, templates, keys, events and audit entries look as JSON, to clients and on
//! the command line alike. Empty fields are left out.
//!
//! Never: reads anything itself.

use crate::model::event::{AuditEntry, Event};
use crate::model::host::{Host, HostStatus, Intent, Liveness};
use crate::model::id::{HostId, KeyId, LogId, SandboxId, TeamId, TemplateId};
use crate::model::probe::{FailureKind, LastProbe};
use crate::model::sandbox::{Reason, Sandbox, SandboxStatus, StrangerKind};
use crate::model::template::{Template, TemplateKind};
use crate::model::time::Wall;
use crate::store::keys::ApiKey;
use crate::store::presence::Presence;
use crate::store::strangers::Recorded;
use crate::store::unknown::UnknownHost;
use serde::Serialize;
use serde_json::value::RawValue;

/// A host.
#[derive(Debug, Clone, Serialize)]
pub struct HostView {
    id: HostId,
    team_id: TeamId,
    #[serde(rename = "type")]
    kind: String,
    status: HostStatus,
    liveness: Liveness,
    intent: Intent,
    degraded: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    availability_zone: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_cores: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_mb: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_gb: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_heartbeat_at: Option<Wall>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_probe: Option<ProbeView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    maintenance_until: Option<Wall>,
    created_at: Wall,
    updated_at: Wall,
}

/// What the last probe brought, or since when probes fail.
#[derive(Debug, Clone, Serialize)]
pub struct ProbeView {
    at: Wall,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    took_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sandboxes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'static str>,
}

impl HostView {
    /// A host with what the running server knows beyond its row.
    pub fn of(host: &Host, presence: &Presence) -> HostView {
        let mut view = HostView::stored(host);
        if let Some(now) = presence.get(host.id) {
            view.last_heartbeat_at = now.last_heartbeat_at;
        }
        if let Some(probe) = presence.last_probe(host.id) {
            view.last_probe = Some(ProbeView::live(probe, host.status()));
        }
        view
    }

    /// A host as its row says.
    pub fn stored(host: &Host) -> HostView {
        HostView {
            id: host.id,
            team_id: host.team_id,
            kind: host.kind.clone(),
            status: host.status(),
            liveness: host.liveness,
            intent: host.intent,
            degraded: host.degraded,
            provider: host.provider.clone(),
            availability_zone: host.availability_zone.clone(),
            arch: host.arch.clone(),
            cpu_cores: host.cpu_cores,
            memory_mb: host.memory_mb,
            disk_gb: host.disk_gb,
            address: host.address.as_ref().map(ToString::to_string),
            last_heartbeat_at: host.last_heartbeat_at,
            last_probe: host.probe_failure.as_ref().map(|trouble| ProbeView {
                at: trouble.since,
                outcome: trouble.kind.as_str(),
                detail: Some(trouble.detail.clone()),
                took_ms: None,
                sandboxes: None,
                note: None,
            }),
            maintenance_until: None,
            created_at: host.created_at,
            updated_at: host.updated_at,
        }
    }

    /// The same host, worked on until then.
    pub fn maintained(self, until: Option<Wall>) -> HostView {
        HostView { maintenance_until: until, ..self }
    }
}

impl HostView {
    /// The same host for its team, which may know less of what answers at an address.
    pub fn for_team(self) -> HostView {
        HostView { last_probe: self.last_probe.map(ProbeView::for_team), ..self }
    }
}

impl ProbeView {
    fn for_team(self) -> ProbeView {
        let Ok(kind) = self.outcome.parse::<FailureKind>() else { return self };
        let (kind, detail) = kind.for_team();
        // How long a port takes to refuse tells as much as its words.
        let (outcome, took_ms) = (kind.as_str(), None);
        ProbeView { outcome, detail: Some(detail.to_owned()), took_ms, ..self }
    }

    pub(super) fn live(probe: LastProbe, status: HostStatus) -> ProbeView {
        let took_ms = Some(u64::try_from(probe.took.as_millis()).unwrap_or(u64::MAX));
        match probe.outcome {
            Ok(sandboxes) => ProbeView {
                at: probe.at,
                outcome: "observation",
                detail: None,
                took_ms,
                sandboxes: Some(sandboxes),
                note: (status == HostStatus::Unreachable)
                    .then_some("agent answers, heartbeats missing"),
            },
            Err(failure) => ProbeView {
                at: probe.at,
                outcome: failure.kind.as_str(),
                detail: Some(failure.detail),
                took_ms,
                sandboxes: None,
                note: None,
            },
        }
    }
}

/// A host that sends heartbeats and is not known.
#[derive(Debug, Clone, Serialize)]
pub struct UnknownHostView {
    host_id: HostId,
    genuine: bool,
    first_seen_at: Wall,
    last_seen_at: Wall,
}

impl From<&UnknownHost> for UnknownHostView {
    fn from(host: &UnknownHost) -> UnknownHostView {
        UnknownHostView {
            host_id: host.id,
            genuine: host.genuine,
            first_seen_at: host.first_seen_at,
            last_seen_at: host.last_seen_at,
        }
    }
}

/// A sandbox; a *capsule* in public.
#[derive(Debug, Clone, Serialize)]
pub struct CapsuleView {
    id: SandboxId,
    team_id: TeamId,
    status: SandboxStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    template: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vcpus: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_mb: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_sec: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_size_mb: Option<u64>,
    host_id: HostId,
    #[serde(skip_serializing_if = "Option::is_none")]
    guest_ip: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_ip: Option<String>,
    created_at: Wall,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<Wall>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_active_at: Option<Wall>,
    last_updated: Wall,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status_reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status_detail: Option<String>,
}

impl CapsuleView {
    /// A sandbox with what the running server knows beyond its row.
    pub(super) fn of(sandbox: Sandbox, presence: &Presence) -> CapsuleView {
        let used = presence.activity.last(sandbox.id);
        let mut view = CapsuleView::from(sandbox);
        view.last_active_at = view.last_active_at.max(used);
        view
    }
}

impl From<Sandbox> for CapsuleView {
    fn from(sandbox: Sandbox) -> CapsuleView {
        CapsuleView {
            id: sandbox.id,
            team_id: sandbox.team_id,
            status: sandbox.status,
            template: sandbox.template,
            vcpus: sandbox.vcpus,
            memory_mb: sandbox.memory_mb,
            timeout_sec: sandbox.timeout_sec,
            disk_size_mb: sandbox.disk_size_mb,
            host_id: sandbox.host_id,
            guest_ip: sandbox.guest_ip,
            host_ip: sandbox.host_ip,
            created_at: sandbox.created_at,
            started_at: sandbox.started_at,
            last_active_at: sandbox.last_active_at,
            last_updated: sandbox.status_changed_at,
            metadata: sandbox.metadata.and_then(|json| RawValue::from_string(json).ok()),
            status_reason: sandbox.status_reason,
            status_detail: sandbox.status_detail,
        }
    }
}

/// A template.
#[derive(Debug, Clone, Serialize)]
pub struct TemplateView {
    id: TemplateId,
    team_id: TeamId,
    name: String,
    #[serde(rename = "type")]
    kind: TemplateKind,
    platform: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    vcpus: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_mb: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_size_mb: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    default_user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    default_env: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hosts: Vec<HostId>,
    created_at: Wall,
}

impl From<Template> for TemplateView {
    fn from(template: Template) -> TemplateView {
        let object = |json: Option<String>| json.and_then(|json| RawValue::from_string(json).ok());
        TemplateView {
            id: template.id,
            team_id: template.team_id,
            platform: template.is_platform(),
            name: template.name.to_string(),
            kind: template.kind,
            vcpus: template.vcpus,
            memory_mb: template.memory_mb,
            disk_size_mb: template.disk_size_mb,
            size_bytes: template.size_bytes,
            default_user: template.default_user,
            default_env: object(template.default_env),
            metadata: object(template.metadata),
            hosts: template.hosts,
            created_at: template.created_at,
        }
    }
}

impl TemplateView {
    /// The same for a team that does not see the hosts of others.
    pub fn without_hosts(self) -> TemplateView {
        TemplateView { hosts: Vec::new(), ..self }
    }
}

/// A sandbox that a host has although the database does not place it there.
#[derive(Debug, Clone, Serialize)]
pub struct StrangerView {
    host_id: HostId,
    sandbox_id: SandboxId,
    kind: StrangerKind,
    seen_at: Wall,
    #[serde(skip_serializing_if = "Option::is_none")]
    belongs_to: Option<HostId>,
}

impl From<&Recorded> for StrangerView {
    fn from(recorded: &Recorded) -> StrangerView {
        StrangerView {
            host_id: recorded.host,
            sandbox_id: recorded.sandbox,
            kind: recorded.kind,
            seen_at: recorded.seen_at,
            belongs_to: recorded.owner,
        }
    }
}

/// An API key, without the key.
#[derive(Debug, Clone, Serialize)]
pub struct KeyView {
    id: KeyId,
    name: String,
    team_id: TeamId,
    key_suffix: String,
    created_at: Wall,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_used_at: Option<Wall>,
}

impl From<ApiKey> for KeyView {
    fn from(key: ApiKey) -> KeyView {
        KeyView {
            id: key.id,
            name: key.name,
            team_id: key.team,
            key_suffix: key.suffix,
            created_at: key.created_at,
            last_used_at: key.last_used_at,
        }
    }
}

/// An event, as the stream sends it.
#[derive(Debug, Clone, Serialize)]
pub struct EventView {
    revision: u64,
    at: Wall,
    kind: &'static str,
    host_id: HostId,
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox_id: Option<SandboxId>,
    team_id: TeamId,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<String>,
    reason: Reason,
    actor: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

impl From<Event> for EventView {
    fn from(event: Event) -> EventView {
        EventView {
            revision: event.revision,
            at: event.at,
            kind: event.kind.as_str(),
            host_id: event.host_id,
            sandbox_id: event.sandbox_id,
            team_id: event.team_id,
            from: event.from,
            to: event.to,
            reason: event.reason,
            actor: event.actor.as_str(),
            detail: event.detail,
        }
    }
}

/// An audit entry.
#[derive(Debug, Clone, Serialize)]
pub struct AuditView {
    id: LogId,
    team_id: TeamId,
    actor_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    actor_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    actor_name: Option<String>,
    resource_type: &'static str,
    resource_id: String,
    action: &'static str,
    scope: String,
    status: &'static str,
    metadata: Option<Box<RawValue>>,
    created_at: Wall,
}

impl From<AuditEntry> for AuditView {
    fn from(entry: AuditEntry) -> AuditView {
        AuditView {
            id: entry.id,
            team_id: entry.team_id,
            actor_type: entry.actor_type.as_str(),
            actor_id: entry.actor_id,
            actor_name: entry.actor_name,
            resource_type: entry.resource_type.as_str(),
            resource_id: entry.resource_id,
            action: entry.action.as_str(),
            scope: entry.scope,
            status: entry.status.as_str(),
            metadata: RawValue::from_string(entry.metadata).ok(),
            created_at: entry.created_at,
        }
    }
}
