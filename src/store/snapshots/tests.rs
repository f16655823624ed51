//! Owns the proof of what snapshots leave in the tables, one transaction at a time.
//!
//! Never: an agent, a thread, a clock.

use super::*;
use crate::store::lifecycle::{Begun, Wish};
use crate::store::templates::tests::{World, actor, host, new, team};
use crate::store::templates::{Added, Disposal, Removed, Scope};
use crate::store::writer::Command;

const NOW: Now = Now { mono: crate::model::time::Mono(1_000_000), wall: Wall(1_790_000_000_000) };

/// A running sandbox of team 1 with everything that a template takes over.
fn running(world: &mut World) -> Sandbox {
    let (sandbox, work) = world.create(team(1), "minimal").unwrap();
    world.sql(&format!(
        "UPDATE sandboxes SET vcpus = 3, memory_mb = 700, \
         metadata = '{{\"kernel_version\":\"6.1\"}}', default_user = 'app', \
         default_env = '{{\"A\":\"b\"}}' WHERE id = '{}'; \
         UPDATE operations SET finished_at = 1 WHERE id = '{}'",
        sandbox.id, work.op
    ));
    world.set_status(SandboxStatus::Running);
    sandbox
}

fn wanted(sandbox: SandboxId, name: Option<&str>) -> NewSnapshot {
    let name = name.map(|name| name.parse().unwrap());
    NewSnapshot { sandbox, team: Some(team(1)), name, overwrite: false, actor: actor() }
}

fn ask(world: &mut World, new: NewSnapshot) -> SnapshotBegun {
    world.give(|reply| Command::Snapshot(Box::new(new), reply))
}

fn started(begun: SnapshotBegun) -> (Sandbox, Work) {
    let SnapshotBegun::Started(sandbox, work) = begun else { panic!("not started: {begun:?}") };
    (*sandbox, *work)
}

/// The agent has made it; the sandbox is as it was.
fn finish(world: &mut World, work: &Work, error: Option<&str>) {
    let (writer, from) = (&mut world.writer, work.from.unwrap());
    writer
        .in_savepoint(|w| {
            w.close_operation(work.op, error, NOW.wall)?;
            match error {
                None => w.template_made(work, Some(4096), NOW)?,
                Some(_) => w.template_not_made(work, NOW)?,
            }
            Ok(())
        })
        .unwrap();
    world.set_status(from);
}

#[test]
fn a_snapshot_begins_with_everything_that_its_end_needs() {
    for status in [SandboxStatus::Running, SandboxStatus::Paused] {
        let mut world = World::new();
        let sandbox = running(&mut world);
        world.set_status(status);
        let (row, work) = started(ask(&mut world, wanted(sandbox.id, Some("deps"))));
        assert_eq!((row.status, work.kind), (SandboxStatus::Pausing, OperationKind::Snapshot));
        assert_eq!(work.from, Some(status));
        assert_eq!(work.makes.as_ref().unwrap().1, "deps");
        assert_eq!(world.names(Scope::Any), ["minimal"], "not yet");
        let unfinished = crate::store::lifecycle::unfinished(&world.writer.conn).unwrap();
        assert_eq!(unfinished, std::slice::from_ref(&work), "a restart finds all of it");
        let audit = "SELECT action FROM audit_logs ORDER BY seq DESC LIMIT 1";
        let action: String = world.writer.conn.query_row(audit, [], |row| row.get(0)).unwrap();
        assert_eq!(action, "snapshot");

        let outcome = |world: &World| snapshot_outcome(&world.writer.conn, work.op).unwrap();
        assert_eq!(outcome(&world), SnapshotOutcome::UnderWay);
        finish(&mut world, &work, None);
        let SnapshotOutcome::Made(template) = outcome(&world) else { panic!("not made") };
        assert_eq!((template.id, template.team_id), (work.makes.unwrap().0, team(1)));
        assert_eq!((template.vcpus, template.memory_mb), (Some(3), Some(700)));
        assert_eq!((template.disk_size_mb, template.size_bytes), (Some(5120), Some(4096)));
        assert_eq!(template.default_user.as_deref(), Some("app"));
        assert_eq!(template.default_env.as_deref(), Some(r#"{"A":"b"}"#));
        assert_eq!(template.metadata.as_deref(), Some(r#"{"kernel_version":"6.1"}"#));
        assert_eq!(template.hosts, [sandbox.host_id], "it is there and nowhere else");
        assert_eq!(template.kind, TemplateKind::Snapshot);
        assert_eq!(
            world.audit(),
            [r#"system create success {"name":"deps","reason":"snapshotted","type":"snapshot"}"#]
        );
    }
}

#[test]
fn a_repeat_is_the_same_snapshot() {
    let mut world = World::new();
    let sandbox = running(&mut world);
    let (_, work) = started(ask(&mut world, wanted(sandbox.id, Some("deps"))));
    for name in [Some("deps"), None] {
        let begun = ask(&mut world, wanted(sandbox.id, name));
        let SnapshotBegun::Already(_, again) = begun else { panic!("{name:?}: {begun:?}") };
        assert_eq!(again.op, work.op);
    }
    let another = ask(&mut world, wanted(sandbox.id, Some("another")));
    assert!(matches!(another, SnapshotBegun::InvalidState(SandboxStatus::Pausing)));
}

#[test]
fn who_may_snapshot_what() {
    let mut world = World::new();
    let sandbox = running(&mut world);
    let of_another = NewSnapshot { team: Some(team(2)), ..wanted(sandbox.id, None) };
    assert!(matches!(ask(&mut world, of_another), SnapshotBegun::NotFound));
    let unknown = wanted(SandboxId::from_u128(9), None);
    assert!(matches!(ask(&mut world, unknown), SnapshotBegun::NotFound));
    for &status in SandboxStatus::ALL {
        world.set_status(status);
        if may_begin(OperationKind::Snapshot, status, None) {
            continue;
        }
        let begun = ask(&mut world, wanted(sandbox.id, None));
        assert!(matches!(begun, SnapshotBegun::InvalidState(found) if found == status));
    }
    world.set_status(SandboxStatus::Paused);
    world.sql("UPDATE hosts SET liveness = 'unreachable'");
    let begun = ask(&mut world, wanted(sandbox.id, None));
    assert!(matches!(begun, SnapshotBegun::HostAway(HostStatus::Unreachable)));
    world.sql("UPDATE hosts SET liveness = 'alive'");
    let by_operator = NewSnapshot { team: None, ..wanted(sandbox.id, None) };
    started(ask(&mut world, by_operator));
}

#[test]
fn a_name_is_taken_by_a_template_or_by_a_snapshot_in_progress() {
    let mut world = World::new();
    let (first, second) = (running(&mut world), running(&mut world));
    world.added(new(team(1), "base", &[]));
    world.added(new(team(2), "deps", &[]));
    let (_, work) = started(ask(&mut world, wanted(first.id, Some("deps"))));
    let taken = |begun: SnapshotBegun| matches!(begun, SnapshotBegun::NameTaken(_));
    assert!(taken(ask(&mut world, wanted(second.id, Some("deps")))), "being made");
    assert!(matches!(world.add(new(team(1), "deps", &[])), Added::NameTaken));
    let over = |name| NewSnapshot { overwrite: true, ..wanted(second.id, Some(name)) };
    assert!(taken(ask(&mut world, over("deps"))), "nothing to replace yet");
    finish(&mut world, &work, None);
    assert!(taken(ask(&mut world, wanted(second.id, Some("deps")))));
    assert!(taken(ask(&mut world, over("base"))), "an operator put it there");

    let (_, work) = started(ask(&mut world, over("deps")));
    assert_eq!(world.names(Scope::Team(team(1))), ["minimal", "base", "deps"], "until it is made");
    finish(&mut world, &work, None);
    let all = crate::store::templates::list(&world.writer.conn, Scope::Team(team(1)), None);
    let deps = all.unwrap().into_iter().find(|t| t.name.as_str() == "deps").unwrap();
    assert_eq!(deps.id, work.makes.unwrap().0);
    assert_eq!(world.erasures().len(), 1, "the first is to be deleted");
    let replaced =
        r#"system delete warning {"name":"deps","reason":"requested","type":"snapshot"}"#;
    assert!(world.audit().contains(&replaced.to_owned()), "{:?}", world.audit());
}

#[test]
fn the_platforms_are_replaced_by_operators_only() {
    let mut world = World::new();
    let sandbox = running(&mut world);
    world.sql(&format!("UPDATE sandboxes SET team_id = '{}'", team(0)));
    world.writer.count_anew();
    world.added(new(team(0), "shared", &[1]));
    world.sql("UPDATE templates SET type = 'snapshot'");
    let of = |by| NewSnapshot { team: by, overwrite: true, ..wanted(sandbox.id, Some("shared")) };
    assert!(matches!(ask(&mut world, of(Some(team(0)))), SnapshotBegun::Platform(_)));
    started(ask(&mut world, of(None)));
}

#[test]
fn a_name_is_found_for_a_snapshot_without_one() {
    let mut world = World::new();
    let (first, second) = (running(&mut world), running(&mut world));
    let name = |world: &mut World, sandbox| {
        let (_, work) = started(ask(world, wanted(sandbox, None)));
        work.makes.unwrap().1
    };
    assert_eq!(name(&mut world, first.id), "minimal-20260921-141320");
    assert_eq!(name(&mut world, second.id), "minimal-20260921-141321", "the next second");
}

#[test]
fn what_a_failed_snapshot_may_have_left_is_deleted() {
    let mut world = World::new();
    let sandbox = running(&mut world);
    let (_, work) = started(ask(&mut world, wanted(sandbox.id, Some("deps"))));
    finish(&mut world, &work, Some("refused, internal: no space left"));
    let outcome = snapshot_outcome(&world.writer.conn, work.op).unwrap();
    assert_eq!(outcome, SnapshotOutcome::Failed("refused, internal: no space left".to_owned()));
    assert_eq!(world.names(Scope::Any), ["minimal"]);
    let id = work.makes.as_ref().unwrap().0;
    assert_eq!(world.erasures(), [(sandbox.host_id.as_u128(), id)]);
    assert_eq!(world.audit(), [] as [&str; 0], "there never was one");
    started(ask(&mut world, wanted(sandbox.id, Some("deps"))));
}

#[test]
fn a_destroy_overtakes_a_snapshot() {
    let mut world = World::new();
    let sandbox = running(&mut world);
    let (_, work) = started(ask(&mut world, wanted(sandbox.id, Some("deps"))));
    let wish =
        Wish { sandbox: sandbox.id, kind: OperationKind::Destroy, team: None, actor: actor() };
    let begun = world.give(|reply| Command::Begin(Box::new(wish), reply));
    assert!(matches!(begun, Begun::Started(..)));
    let outcome = snapshot_outcome(&world.writer.conn, work.op).unwrap();
    assert_eq!(outcome, SnapshotOutcome::Failed("overtaken by a destroy".to_owned()));
    assert_eq!(world.erasures().len(), 1);
}

#[test]
fn a_host_that_leaves_takes_its_snapshots_along() {
    let mut world = World::new();
    let sandbox = running(&mut world);
    let (_, work) = started(ask(&mut world, wanted(sandbox.id, Some("deps"))));
    world.give(|reply| Command::DeleteHost {
        host: sandbox.host_id,
        force: true,
        since: NOW.mono,
        actor: actor(),
        reply,
    });
    let outcome = snapshot_outcome(&world.writer.conn, work.op).unwrap();
    assert_eq!(outcome, SnapshotOutcome::Failed("the host was deleted".to_owned()));
    assert_eq!((world.count("templates"), world.erasures()), (0, vec![]));
}

#[test]
fn a_template_that_is_made_is_made_once() {
    let mut world = World::new();
    let sandbox = running(&mut world);
    let (_, work) = started(ask(&mut world, wanted(sandbox.id, Some("deps"))));
    finish(&mut world, &work, None);
    world.writer.template_made(&work, Some(1), NOW).unwrap();
    world.writer.template_not_made(&work, NOW).unwrap();
    assert_eq!((world.count("templates"), world.erasures()), (1, vec![]));
    let removed = world.remove(Scope::Team(team(1)), "deps", Disposal::Delete);
    assert!(matches!(removed, Removed::Removed(template) if template.hosts == [host(1)]));
}
