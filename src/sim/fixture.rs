//! Owns the fixture that matches simulated hosts (interfaces.md section 6).
//!
//! Never: keeps the whole of it in memory: a fleet may have a million sandboxes. Called by
//! `fleet`.

use super::host::SimHost;
use super::listing::METADATA;
use super::sandbox::SimSandbox;
use crate::model::host::AgentAddress;
use crate::model::id::{HostId, SandboxId};
use crate::model::sandbox::SandboxStatus;
use serde::Serialize;
use serde_json::value::RawValue;
use std::io::{self, Write};
use std::sync::Arc;

/// Age of every host's last heartbeat in seconds: well within one beat.
const HEARTBEAT_AGE_S: u32 = 5;

/// Age of every sandbox's status in seconds: beyond every grace.
const STATUS_AGE_S: u32 = 600;

#[derive(Serialize)]
struct HostRow<'a> {
    id: String,
    address: &'a AgentAddress,
    status: &'static str,
    heartbeat_age_s: u32,
    arch: &'static str,
    cpu_cores: u32,
    memory_mb: u32,
    disk_gb: u32,
}

#[derive(Serialize)]
struct SandboxRow<'a> {
    id: String,
    host_id: String,
    status: SandboxStatus,
    status_age_s: u32,
    vcpus: i32,
    memory_mb: i32,
    timeout_sec: i32,
    host_ip: String,
    metadata: &'a RawValue,
}

/// Writes the fixture, one row a line.
pub(super) fn write(
    hosts: &[Arc<SimHost>],
    status: SandboxStatus,
    to: &mut impl Write,
) -> io::Result<()> {
    let metadata: &RawValue = serde_json::from_str(METADATA)?;
    let mut rows = Rows { to, first: true };
    rows.to.write_all(b"{\"hosts\":[")?;
    hosts.iter().try_for_each(|host| rows.row(&host_row(host)))?;
    rows.first = true;
    rows.to.write_all(b"\n],\"sandboxes\":[")?;
    for host in hosts {
        let host_id = host.id();
        host.each_sandbox(|id, sandbox| {
            rows.row(&sandbox_row(id, host_id, sandbox, status, metadata))
        })?;
    }
    rows.to.write_all(b"\n]}\n")
}

/// The rows of one list.
struct Rows<'w, W: Write> {
    to: &'w mut W,
    first: bool,
}

impl<W: Write> Rows<'_, W> {
    fn row(&mut self, row: &impl Serialize) -> io::Result<()> {
        self.to.write_all(if self.first { b"\n" } else { b",\n" })?;
        self.first = false;
        Ok(serde_json::to_writer(&mut *self.to, row)?)
    }
}

fn host_row(host: &SimHost) -> HostRow<'_> {
    HostRow {
        id: host.id().to_string(),
        address: host.agent_address(),
        status: "online",
        heartbeat_age_s: HEARTBEAT_AGE_S,
        arch: "x86_64",
        cpu_cores: 16,
        memory_mb: 65_536,
        disk_gb: 1000,
    }
}

fn sandbox_row<'a>(
    id: SandboxId,
    host_id: HostId,
    sandbox: &SimSandbox,
    status: SandboxStatus,
    metadata: &'a RawValue,
) -> SandboxRow<'a> {
    SandboxRow {
        id: id.to_string(),
        host_id: host_id.to_string(),
        status,
        status_age_s: STATUS_AGE_S,
        vcpus: sandbox.vcpus,
        memory_mb: sandbox.memory_mb,
        timeout_sec: sandbox.timeout_sec,
        host_ip: sandbox.host_ip(),
        metadata,
    }
}
