//! Owns the proof that templates are looked up, placed, removed and erased as they should be,
//! one transaction at a time.
//!
//! Never: an agent, a thread, a clock.

use super::*;
use crate::model::id::KeyId;
use crate::model::policy::Policy;
use crate::model::sandbox::SandboxStatus;
use crate::model::time::Mono;
use crate::store::deletion::Deletion;
use crate::store::fixture;
use crate::store::lifecycle::{NewSandbox, Work, unfinished};
use crate::store::open::open_writer;
use crate::store::presence::Presence;
use crate::store::read;
use crate::store::verify::verify;
use crate::store::writer::{Command, Envelope, Reply};
use std::sync::Arc;
use tempfile::TempDir;

const NOW: Now = Now { mono: Mono(1_000_000), wall: Wall(1_790_000_000_000) };

pub(in crate::store) fn host(n: u128) -> HostId {
    HostId::from_u128(n)
}

pub(in crate::store) fn team(n: u128) -> TeamId {
    TeamId::from_u128(n)
}

/// Three hosts of the platform that take sandboxes; the writer is driven by hand.
pub(in crate::store) struct World {
    pub(in crate::store) writer: Writer,
    _dir: TempDir,
}

impl World {
    pub(in crate::store) fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let mut conn = open_writer(&dir.path().join("roost.db"), true, NOW.wall).unwrap();
        let hosts = [1, 2, 3].map(|n| {
            json!({"id": host(n), "status": "online", "heartbeat_age_s": 5,
                "address": format!("127.0.0.1:{n}"), "cpu_cores": 8, "memory_mb": 65536})
        });
        let fleet = fixture::parse(&json!({"hosts": hosts}).to_string(), NOW.wall).unwrap();
        fixture::load(&mut conn, &fleet).unwrap();
        let presence = Presence::load(&read::hosts(&conn).unwrap(), [], None, false, NOW);
        let writer = Writer::new(conn, Policy::default(), Arc::new(presence)).unwrap();
        World { writer, _dir: dir }
    }

    /// Gives one command and takes its answer; the database is whole afterwards.
    pub(in crate::store) fn give<T: Send + 'static>(
        &mut self,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> T {
        let (tell, told) = crossbeam_channel::unbounded();
        let command = command(Box::new(move |result| tell.send(result).unwrap()));
        self.writer.execute(vec![Envelope { now: NOW, command }]);
        assert_eq!(verify(&self.writer.conn).unwrap(), [] as [&str; 0]);
        told.recv().unwrap().unwrap()
    }

    pub(in crate::store) fn add(&mut self, new: NewTemplate) -> Added {
        self.give(|reply| Command::AddTemplate(Box::new(new), reply))
    }

    /// Adds a template that must be taken.
    pub(in crate::store) fn added(&mut self, new: NewTemplate) -> Template {
        let added = self.add(new);
        let Added::Added(template) = added else { panic!("not added: {added:?}") };
        *template
    }

    pub(in crate::store) fn create(
        &mut self,
        owner: TeamId,
        template: &str,
    ) -> Result<(crate::model::sandbox::Sandbox, Work), NotMade> {
        let new = NewSandbox {
            team: owner,
            template: template.to_owned(),
            vcpus: None,
            memory_mb: None,
            timeout_sec: 0,
            disk_size_mb: None,
            actor: actor(),
        };
        self.give(|reply| Command::CreateSandbox(Box::new(new), reply))
    }

    pub(in crate::store) fn remove(
        &mut self,
        scope: Scope,
        wanted: &str,
        disposal: Disposal,
    ) -> Removed {
        let removal = Removal {
            wanted: wanted.to_owned(),
            scope,
            by_operator: scope == Scope::Any,
            disposal,
            actor: actor(),
        };
        self.give(|reply| Command::RemoveTemplate(Box::new(removal), reply))
    }

    pub(in crate::store) fn sql(&self, sql: &str) {
        self.writer.conn.execute_batch(sql).unwrap();
    }

    /// Gives every sandbox this status, with a history that says so.
    pub(in crate::store) fn set_status(&mut self, status: SandboxStatus) {
        self.sql(&format!(
            "UPDATE sandboxes SET status = '{status}', ended = {}; \
             UPDATE events SET to_status = '{status}', kind = 'sandbox.{status}'",
            u8::from(status.is_over())
        ));
        self.writer.count_anew();
    }

    pub(in crate::store) fn names(&self, scope: Scope) -> Vec<String> {
        let found = list(&self.writer.conn, scope, None).unwrap();
        found.into_iter().map(|template| template.name.to_string()).collect()
    }

    pub(in crate::store) fn count(&self, table: &str) -> i64 {
        let sql = format!("SELECT count(*) FROM {table}");
        self.writer.conn.query_row(&sql, [], |row| row.get(0)).unwrap()
    }

    pub(in crate::store) fn erasures(&self) -> Vec<(u128, TemplateId)> {
        let found = erasures(&self.writer.conn).unwrap();
        found.into_iter().map(|erasure| (erasure.host.as_u128(), erasure.template)).collect()
    }

    /// Audit entries about templates, oldest first: who, which, what, details.
    pub(in crate::store) fn audit(&self) -> Vec<String> {
        let sql = "SELECT actor_type || ' ' || action || ' ' || status || ' ' || metadata \
                   FROM audit_logs WHERE resource_type = 'template' ORDER BY seq";
        let mut select = self.writer.conn.prepare(sql).unwrap();
        select.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }
}

pub(in crate::store) fn actor() -> Actor {
    let id = Some(KeyId::from_u128(1).to_string());
    Actor { kind: crate::model::event::ActorType::ApiKey, id, name: Some("ci".to_owned()) }
}

/// A template of this team that these hosts have.
pub(in crate::store) fn new(owner: TeamId, name: &str, hosts: &[u128]) -> NewTemplate {
    NewTemplate {
        id: None,
        team: owner,
        name: name.parse().unwrap(),
        vcpus: None,
        memory_mb: None,
        disk_size_mb: None,
        default_user: None,
        default_env: None,
        hosts: hosts.iter().map(|n| host(*n)).collect(),
        actor: actor(),
    }
}

/// Makes snapshots of templates that were added: what only an agent can do otherwise.
fn as_snapshots(world: &World) {
    world.sql("UPDATE templates SET type = 'snapshot'");
}

#[test]
fn own_comes_before_the_platforms_and_others_are_invisible() {
    let mut world = World::new();
    for (owner, name) in [(0, "py"), (1, "py"), (2, "secret"), (0, "node")] {
        world.added(new(team(owner), name, &[]));
    }
    let owner_of = |world: &mut World, n: u128, wanted: &str| {
        let found = world.writer.template_for(team(n), wanted).unwrap();
        found.map(|template| template.team_id.as_u128())
    };
    assert_eq!(owner_of(&mut world, 1, "py"), Ok(1));
    assert_eq!(owner_of(&mut world, 2, "py"), Ok(0));
    assert_eq!(owner_of(&mut world, 0, "py"), Ok(0));
    assert_eq!(owner_of(&mut world, 1, "node"), Ok(0));
    let unknown = |names: &[&str]| {
        let available = names.iter().map(|name| (*name).to_owned()).collect();
        Err(Unknown { available, more: 0 })
    };
    assert_eq!(owner_of(&mut world, 1, "secret"), unknown(&["minimal", "node", "py"]));
    assert_eq!(owner_of(&mut world, 2, "PY"), unknown(&["minimal", "node", "py", "secret"]));
    let secret = world.names(Scope::Any);
    assert_eq!(secret, ["minimal", "node", "py", "py", "secret"]);

    let all = list(&world.writer.conn, Scope::Any, None).unwrap();
    let secret = all.iter().find(|template| template.name.as_str() == "secret").unwrap();
    let id = secret.id.to_string();
    assert_eq!(owner_of(&mut world, 2, &id), Ok(2));
    assert!(owner_of(&mut world, 1, &id).is_err(), "an id opens nothing");
    for zero in ["minimal", "tmpl-0000000000000000000000000"] {
        assert!(world.writer.template_for(team(1), zero).unwrap().unwrap().is_minimal());
    }
}

#[test]
fn a_listing_of_names_is_bounded() {
    let mut world = World::new();
    for n in 0..30 {
        world.added(new(team(1), &format!("t{n:02}"), &[]));
    }
    let unknown = world.writer.template_for(team(1), "none").unwrap().unwrap_err();
    assert_eq!((unknown.available.len(), unknown.more), (AVAILABLE_MAX, 11));
    assert_eq!(unknown.available[..2], ["minimal", "t00"]);
}

#[test]
fn a_sandbox_takes_what_the_request_leaves_out() {
    let mut world = World::new();
    let mut py = new(team(1), "py", &[]);
    (py.vcpus, py.memory_mb) = (Some(4), Some(2048));
    py.default_user = Some("app".to_owned());
    py.default_env = Some(r#"{"A":"b"}"#.to_owned());
    let template = world.added(py);
    let (sandbox, work) = world.create(team(1), "py").unwrap();
    assert_eq!((sandbox.vcpus, sandbox.memory_mb), (Some(4), Some(2048)));
    assert_eq!(sandbox.disk_size_mb, Some(5120), "neither says");
    assert_eq!(sandbox.template.as_deref(), Some("py"));
    assert_eq!(sandbox.template_id, Some(template.id));
    assert_eq!((work.template_id, work.template_team), (Some(template.id), Some(team(1))));
    assert_eq!(work.default_user.as_deref(), Some("app"));
    assert_eq!(work.default_env.as_deref(), Some(r#"{"A":"b"}"#));

    let by_id = world.create(team(1), &template.id.to_string()).unwrap().0;
    assert_eq!(by_id.template.as_deref(), Some("py"), "named, however it was asked for");
    let (minimal, work) = world.create(team(1), "minimal").unwrap();
    assert_eq!((minimal.template_id, work.template_id, work.template_team), (None, None, None));

    let asked = NewSandbox {
        team: team(1),
        template: "py".to_owned(),
        vcpus: Some(1),
        memory_mb: Some(256),
        timeout_sec: 9,
        disk_size_mb: Some(7),
        actor: actor(),
    };
    let made = world.give(|reply| Command::CreateSandbox(Box::new(asked), reply)).unwrap().0;
    assert_eq!((made.vcpus, made.memory_mb, made.disk_size_mb), (Some(1), Some(256), Some(7)));
}

#[test]
fn an_unknown_template_makes_nothing() {
    let mut world = World::new();
    world.added(new(team(2), "py", &[]));
    let before = world.writer.revision;
    let refused = world.create(team(1), "py").unwrap_err();
    let available = vec!["minimal".to_owned()];
    assert_eq!(refused, NotMade::NoTemplate(Unknown { available, more: 0 }));
    assert_eq!(world.writer.revision, before);
    assert_eq!([world.count("sandboxes"), world.count("operations")], [0, 0]);
}

#[test]
fn only_hosts_that_have_it_are_chosen() {
    let mut world = World::new();
    world.added(new(team(1), "py", &[2, 3]));
    let hosts = |world: &mut World| {
        let mut hosts: Vec<u128> =
            (0..4).map(|_| world.create(team(1), "py").unwrap().0.host_id.as_u128()).collect();
        hosts.sort_unstable();
        hosts
    };
    assert_eq!(hosts(&mut world), [2, 2, 3, 3]);
    world.sql(&format!("UPDATE hosts SET intent = 'draining' WHERE id = '{}'", host(3)));
    assert_eq!(hosts(&mut world), [2, 2, 2, 2]);
    world.sql(&format!("UPDATE hosts SET degraded = 1 WHERE id = '{}'", host(2)));
    let refused = world.create(team(1), "py").unwrap_err();
    assert_eq!(refused, NotMade::NoHostHas("py".parse().unwrap()));
    assert_eq!(world.create(team(1), "minimal").unwrap().0.host_id, host(1));
    world.sql("UPDATE hosts SET degraded = 1");
    let refused = world.create(team(1), "minimal").unwrap_err();
    assert_eq!(refused, NotMade::NoHost(NoHost::NoneAvailable));
}

#[test]
fn names_and_ids_are_taken_once() {
    let mut world = World::new();
    let first = world.added(new(team(1), "py", &[1, 1, 2]));
    assert_eq!(first.hosts, [host(1), host(2)]);
    assert!(matches!(world.add(new(team(1), "py", &[])), Added::NameTaken));
    world.added(new(team(2), "py", &[]));
    let same_id = NewTemplate { id: Some(first.id), ..new(team(2), "other", &[]) };
    assert!(matches!(world.add(same_id), Added::IdTaken(id) if id == first.id));
    assert!(matches!(world.add(new(team(1), "b", &[1, 9])), Added::NoHost(1, h) if h == host(9)));
    assert_eq!(world.names(Scope::Team(team(1))), ["minimal", "py"]);

    let id = TemplateId::from_u128(77);
    let chosen = world.added(NewTemplate { id: Some(id), ..new(team(1), "chosen", &[]) });
    assert_eq!(chosen.id, id);
    let expected = [
        r#"api_key create success {"name":"py","type":"base"}"#,
        r#"api_key create success {"name":"py","type":"base"}"#,
        r#"api_key create success {"name":"chosen","type":"base"}"#,
    ];
    assert_eq!(world.audit(), expected);
}

#[test]
fn a_team_has_so_many_templates_and_no_more() {
    let mut world = World::new();
    world.sql(&format!(
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {TEMPLATES_MAX}) \
         INSERT INTO templates (id, team_id, name, type, created_at) \
         SELECT 'tmpl-' || printf('%025d', n), '{}', 'n' || n, 'base', 0 FROM n",
        team(1)
    ));
    assert!(matches!(world.add(new(team(1), "one-more", &[])), Added::TooMany));
    world.added(new(team(2), "py", &[]));
    let forgotten = world.remove(Scope::Any, "n7", Disposal::Forget);
    assert!(matches!(forgotten, Removed::Removed(_)));
    world.added(new(team(1), "one-more", &[]));
}

#[test]
fn forgetting_leaves_nothing_and_harms_no_sandbox() {
    let mut world = World::new();
    let mut py = new(team(1), "py", &[1]);
    py.default_user = Some("app".to_owned());
    world.added(py);
    let (sandbox, work) = world.create(team(1), "py").unwrap();
    let refused = world.remove(Scope::Any, "py", Disposal::Forget);
    assert_eq!(refused, Removed::InUse(vec![sandbox.id]), "it is being made");
    world.set_status(SandboxStatus::Paused);
    world.sql("UPDATE operations SET finished_at = 1");
    assert!(matches!(world.remove(Scope::Any, "py", Disposal::Forget), Removed::Removed(_)));
    assert_eq!([world.count("templates"), world.count("template_hosts")], [0, 0]);
    world.sql("UPDATE operations SET finished_at = NULL, kind = 'resume'");
    let left = unfinished(&world.writer.conn).unwrap().pop().unwrap();
    assert_eq!((left.op, left.template_team), (work.op, None));
    assert_eq!(left.default_user.as_deref(), Some("app"), "copied at create");
}

#[test]
fn who_may_remove_what() {
    let mut world = World::new();
    for (owner, name) in [(0, "shared"), (1, "py"), (2, "py"), (2, "other")] {
        world.added(new(team(owner), name, &[1]));
    }
    let (own, any, delete) = (Scope::Team(team(1)), Scope::Any, Disposal::Delete);
    assert!(matches!(world.remove(own, "py", delete), Removed::NoSnapshot(_)));
    as_snapshots(&world);
    assert_eq!(world.remove(own, "minimal", delete), Removed::Minimal);
    assert_eq!(world.remove(any, "minimal", Disposal::Forget), Removed::Minimal);
    assert_eq!(world.remove(own, "shared", delete), Removed::Platform);
    assert!(matches!(world.remove(own, "other", delete), Removed::NotFound(_)));
    assert!(matches!(world.remove(own, "nothing", delete), Removed::NotFound(_)));
    let Removed::Ambiguous(ids) = world.remove(any, "py", delete) else { panic!("removed one") };
    assert_eq!(ids.len(), 2);
    assert_eq!(world.names(any).len(), 5, "nothing was removed until now");
    for wanted in ["shared", &ids[0].to_string(), "py", "other"] {
        assert!(matches!(world.remove(any, wanted, delete), Removed::Removed(_)), "{wanted}");
    }
    assert_eq!(world.names(any), ["minimal"]);
}

#[test]
fn a_deleted_one_is_kept_until_its_hosts_have_deleted_it() {
    let mut world = World::new();
    let template = world.added(new(team(1), "py", &[1, 2]));
    as_snapshots(&world);
    assert_eq!(world.erasures(), []);
    let own = Scope::Team(team(1));
    assert!(matches!(world.remove(own, "py", Disposal::Delete), Removed::Removed(_)));
    assert_eq!(world.names(own), ["minimal"]);
    assert!(matches!(world.remove(own, "py", Disposal::Delete), Removed::NotFound(_)));
    assert!(world.create(team(1), "py").is_err());
    assert_eq!(world.erasures(), [(1, template.id), (2, template.id)]);
    // The name is free; the id is not, as long as its files are there.
    let again = world.added(new(team(1), "py", &[1]));
    let same = NewTemplate { id: Some(template.id), ..new(team(1), "z", &[]) };
    assert!(matches!(world.add(same), Added::IdTaken(_)));

    let erasure = |n, template| Erasure { host: host(n), template, team: team(1) };
    world.give(|reply| Command::Erased(erasure(1, template.id), reply));
    assert_eq!(world.erasures(), [(2, template.id)]);
    world.give(|reply| Command::Erased(erasure(1, template.id), reply));
    world.give(|reply| Command::Erased(erasure(1, again.id), reply));
    assert_eq!(world.count("template_hosts"), 2, "one that is not deleted keeps its hosts");
    world.give(|reply| Command::Erased(erasure(2, template.id), reply));
    assert_eq!((world.erasures(), world.count("templates")), (vec![], 1));
}

#[test]
fn a_deleted_row_without_hosts_goes_with_the_rest_of_the_past() {
    let mut world = World::new();
    world.added(new(team(1), "everywhere", &[]));
    world.added(new(team(1), "there", &[1]));
    world.added(new(team(1), "kept", &[]));
    world.sql("UPDATE templates SET deleted_at = 1 WHERE name <> 'kept'");
    let more = world.give(Command::Prune);
    assert!(!more);
    let left: Vec<String> =
        all(&world.writer.conn).unwrap().iter().map(|(t, _)| t.name.to_string()).collect();
    assert_eq!(left.len(), 2, "a host has yet to delete one: {left:?}");
    assert!(!left.contains(&"everywhere".to_owned()));
}

#[test]
fn a_deleted_one_waits_for_the_sandboxes_that_need_it() {
    let mut world = World::new();
    let template = world.added(new(team(1), "py", &[1, 2]));
    as_snapshots(&world);
    let (sandbox, _) = world.create(team(1), "py").unwrap();
    world.set_status(SandboxStatus::Running);
    assert!(matches!(world.remove(Scope::Any, "py", Disposal::Delete), Removed::Removed(_)));
    let there = sandbox.host_id.as_u128();
    let other = 3 - there;
    for &status in SandboxStatus::ALL {
        world.set_status(status);
        let on_both = world.erasures().len() == 2;
        assert_eq!(on_both, status.is_over(), "{status}");
        assert!(world.erasures().contains(&(other, template.id)), "{status}");
    }
}

#[test]
fn with_its_last_host_a_template_is_gone() {
    let mut world = World::new();
    world.added(new(team(1), "on-one", &[1]));
    world.added(new(team(1), "on-two", &[1, 2]));
    world.added(new(team(1), "everywhere", &[]));
    world.added(new(team(1), "deleted", &[1]));
    world.sql("UPDATE templates SET deleted_at = 1 WHERE name = 'deleted'");
    let delete = |world: &mut World, n| {
        let deleted = world.give(|reply| Command::DeleteHost {
            host: host(n),
            force: true,
            since: NOW.mono,
            actor: actor(),
            reply,
        });
        assert!(matches!(deleted, Deletion::Deleted(_)));
    };
    delete(&mut world, 1);
    assert_eq!(world.names(Scope::Any), ["minimal", "everywhere", "on-two"]);
    assert!(world.create(team(1), "on-one").is_err(), "not everywhere all of a sudden");
    assert_eq!(world.create(team(1), "on-two").unwrap().0.host_id, host(2));
    assert_eq!(world.count("templates"), 2);
    let gone = r#"api_key delete warning {"name":"on-one","reason":"host_deleted","type":"base"}"#;
    let deletions: Vec<String> =
        world.audit().into_iter().filter(|entry| entry.contains(" delete ")).collect();
    assert_eq!(deletions, [gone], "the deleted one was audited before");
    delete(&mut world, 2);
    assert_eq!(world.names(Scope::Any), ["minimal", "everywhere"]);
}

#[test]
fn counts_leave_out_what_is_deleted() {
    let mut world = World::new();
    assert_eq!(counts(&world.writer.conn).unwrap(), [0, 0]);
    for name in ["a", "b", "c"] {
        world.added(new(team(1), name, &[1]));
    }
    world.sql("UPDATE templates SET type = 'snapshot' WHERE name <> 'a'");
    world.sql("UPDATE templates SET deleted_at = 1 WHERE name = 'b'");
    assert_eq!(counts(&world.writer.conn).unwrap(), [1, 1]);
    let snapshots = list(&world.writer.conn, Scope::Any, Some(TemplateKind::Snapshot)).unwrap();
    assert_eq!(snapshots.len(), 1, "minimal is no snapshot");
    assert_eq!(list(&world.writer.conn, Scope::Any, Some(TemplateKind::Base)).unwrap().len(), 2);
}
