//! Which templates a simulated host has, and what becomes of a sandbox that one is made of.

use crate::world::LONG;
use crate::world::{TEAM, TEMPLATE, World, new_id, newer, world_with};
use roost::agent::client::CallError;
use roost::agent::wire::{CreateSandboxRequest, CreateSnapshotRequest};
use roost::model::id::{SandboxId, TeamId, TemplateId};
use roost::sim::{Habits, Initially, SimState};
use std::borrow::Cow;

/// What `minimal` is called, in every spelling that the wire allows.
const ZEROS: &str = "00000000-0000-0000-0000-000000000000";

fn create(world: &World, id: SandboxId, team_id: &str, template_id: &str) -> Result<(), CallError> {
    let sandbox_id = Cow::Owned(id.to_string());
    let (team_id, template_id) = (Cow::Borrowed(team_id), Cow::Borrowed(template_id));
    let request = CreateSandboxRequest {
        sandbox_id,
        team_id,
        template_id,
        ..CreateSandboxRequest::default()
    };
    let (host, at) = (world.host(0).id(), world.host(0).agent_address());
    world.client.create(host, at, &request, LONG).map(|_| ())
}

fn snapshot(world: &World, id: SandboxId) -> Result<Option<u64>, CallError> {
    let request = CreateSnapshotRequest {
        sandbox_id: Cow::Owned(id.to_string()),
        name: Cow::Borrowed("mine"),
        team_id: Cow::Borrowed(TEAM),
        template_id: Cow::Borrowed(TEMPLATE),
    };
    let (host, at) = (world.host(0).id(), world.host(0).agent_address());
    world.client.create_snapshot(host, at, &request, LONG)
}

fn delete(world: &World) -> Result<(), CallError> {
    let (host, at) = (world.host(0).id(), world.host(0).agent_address());
    world.client.delete_snapshot(host, at, ids(), LONG)
}

fn size(world: &World) -> Result<Option<u64>, CallError> {
    let (host, at) = (world.host(0).id(), world.host(0).agent_address());
    world.client.template_size(host, at, ids(), LONG)
}

/// What `TEAM` and `TEMPLATE` are to the control plane.
fn ids() -> (TeamId, TemplateId) {
    let team = TeamId::from_u128(0xee00_0000_0000_0000_0000_0000_0000_0001);
    let template = TemplateId::from_u128(0x0ddb_a11c_0000_4000_8000_0000_0000_000a);
    assert_eq!((team.to_uuid().as_str(), template.to_uuid().as_str()), (TEAM, TEMPLATE));
    (team, template)
}

fn named() -> Vec<(String, String)> {
    vec![(TEAM.to_owned(), TEMPLATE.to_owned())]
}

fn message<T: std::fmt::Debug>(refused: Result<T, CallError>) -> String {
    refused.unwrap_err().to_string()
}

#[test]
fn only_what_a_host_has_can_be_booted() {
    let world = world_with(1, 0, Initially::Running, Habits::default());
    let ids = (1..).map(SandboxId::from_u128);
    for ((team, template), id) in [("", ""), (ZEROS, ZEROS), ("", ZEROS)].into_iter().zip(ids) {
        create(&world, id, team, template).unwrap();
    }
    let refused = |team, template| message(create(&world, SandboxId::from_u128(9), team, template));
    // The recorded answer of a real agent.
    let path = "/var/lib/wrenn/images/teams/e38v92pagubm6vdmmqqkgz475/0000000000000000000000000/rootfs.ext4";
    assert_eq!(
        refused(TEAM, ""),
        format!(
            "refused, internal: create sandbox: base rootfs not found at {path}: \
             stat {path}: no such file or directory"
        )
    );
    // A name is not enough: the template of one team is not that of another.
    world.host(0).put_template(TEAM, TEMPLATE).unwrap();
    assert_eq!(world.host(0).templates(), named());
    assert!(refused("", TEMPLATE).contains("base rootfs not found"));
    assert!(refused(TEAM, "").contains("base rootfs not found"));
    create(&world, SandboxId::from_u128(9), TEAM, TEMPLATE).unwrap();
    assert!(world.host(0).put_template("minimal", "").is_err());

    let (_, listing) = world.post("ListSandboxes", "{}");
    assert_eq!(listing.matches(&format!(r#""teamId":"{TEAM}""#)).count(), 1, "{listing}");
    assert_eq!(listing.matches(&format!(r#""templateId":"{TEMPLATE}""#)).count(), 1);
    assert_eq!(listing.matches(&format!(r#""templateId":"{ZEROS}""#)).count(), 3);
}

#[test]
fn a_listing_has_the_fields_that_real_agents_send() {
    let world = world_with(1, 1, Initially::Running, Habits::default());
    let (id, (_, listing)) = (world.first(0), world.post("ListSandboxes", "{}"));
    let expected = format!(
        r#"{{"sandboxes":[{{"sandboxId":"{id}","status":"running","vcpus":1,"memoryMb":512,"hostIp":"10.11.0.2","createdAtUnix":"1778999400","lastActiveAtUnix":"1778999400","timeoutSec":300,"teamId":"{ZEROS}","templateId":"{ZEROS}","metadata":{{"agent_version":"0.1.2","envd_version":"0.1.2","firecracker_version":"1.12.0","kernel_version":"6.1.102"}}}}]}}"#
    );
    assert_eq!(listing, expected);
}

#[test]
fn a_snapshot_makes_a_template_and_older_agents_destroy_the_sandbox() {
    let older = Habits::default();
    let keeping = Habits { keeps_after_snapshot: true, ..older };
    for (habits, state, after) in [
        (older, SimState::Running, None),
        (older, SimState::Paused, None),
        (keeping, SimState::Running, Some(SimState::Running)),
        (newer(), SimState::Running, Some(SimState::Running)),
        (newer(), SimState::Paused, Some(SimState::Paused)),
    ] {
        let world = world_with(1, 0, Initially::Running, habits);
        world.host(0).put(new_id(), state, LONG);
        let size_bytes = snapshot(&world, new_id()).unwrap();
        assert_eq!(size_bytes, Some((512 + 512) << 20));
        assert_eq!(world.host(0).state(new_id()), after, "{habits:?} {state:?}");
        assert_eq!(world.host(0).templates(), named());
        create(&world, SandboxId::from_u128(2), TEAM, TEMPLATE).unwrap();
        assert_eq!(size(&world).ok(), habits.lists_paused.then_some(size_bytes));
    }
}

#[test]
fn a_template_is_removed_with_or_without_being_there() {
    for (habits, in_use) in [(Habits::default(), false), (newer(), true)] {
        let world = world_with(1, 0, Initially::Running, habits);
        delete(&world).unwrap();
        world.host(0).put_template(TEAM, TEMPLATE).unwrap();
        create(&world, new_id(), TEAM, TEMPLATE).unwrap();
        if in_use {
            let expected = format!(
                "refused, internal: delete snapshot: snapshot {TEAM}/{TEMPLATE} is in use by \
                 1 sandbox(es): [{}]",
                new_id()
            );
            assert_eq!(message(delete(&world)), expected);
            world.destroy(0, new_id()).unwrap();
        }
        delete(&world).unwrap();
        assert_eq!(world.host(0).templates(), []);
    }
}

#[test]
fn only_newer_agents_know_sizes_and_keep_templates() {
    let older = world_with(1, 1, Initially::Running, Habits::default());
    older.host(0).put_template(TEAM, TEMPLATE).unwrap();
    let unimplemented = "hostagent.v1.HostAgentService.GetTemplateSize is not implemented";
    assert_eq!(message(size(&older)), format!("refused, unimplemented: {unimplemented}"));
    snapshot(&older, older.first(0)).unwrap();

    let newer = world_with(1, 1, Initially::Running, newer());
    assert!(message(size(&newer)).starts_with("refused, internal: stat template rootfs: stat /"));
    newer.host(0).put_template(TEAM, TEMPLATE).unwrap();
    let exists = format!("create snapshot: snapshot template {TEAM}/{TEMPLATE} already exists");
    assert_eq!(message(snapshot(&newer, newer.first(0))), format!("refused, internal: {exists}"));
    assert_eq!(newer.host(0).state(newer.first(0)), Some(SimState::Running));
}
