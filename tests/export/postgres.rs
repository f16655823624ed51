//! A PostgreSQL of the test's own: a cluster in a temporary directory that listens on a
//! socket in there and nowhere else, without fsync, gone with the last test that uses it.

use crate::support::{Done, eventually};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use tempfile::TempDir;

/// Where Debian puts the programs of a server, by version.
const DEBIAN: &str = "/usr/lib/postgresql";

/// `nobody`: the server refuses to run as root.
const NOBODY: u32 = 65534;

/// A running server.
pub(crate) struct Cluster {
    programs: PathBuf,
    dir: TempDir,
    server: Child,
    databases: AtomicUsize,
}

/// One for all tests that run at the same time.
static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());

/// `None`, loudly, on a machine without PostgreSQL.
pub(crate) fn cluster() -> Option<Arc<Cluster>> {
    let mut shared = SHARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(cluster) = shared.upgrade() {
        return Some(cluster);
    }
    let Some(programs) = programs() else {
        let why = format!("no PostgreSQL below {DEBIAN}; install the package postgresql");
        assert!(std::env::var_os("CI").is_none(), "the export cannot be tested here: {why}");
        // Not by the macro, whose words a test that succeeds keeps for itself.
        let words = format!("\nSKIPPED: the export was NOT loaded into PostgreSQL: {why}\n\n");
        let _ = std::io::stderr().write_all(words.as_bytes());
        return None;
    };
    let cluster = Arc::new(Cluster::start(programs));
    *shared = Arc::downgrade(&cluster);
    Some(cluster)
}

/// The newest version's.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir(DEBIAN).ok()?.filter_map(Result::ok);
    let found = versions.map(|version| version.path().join("bin"));
    let number = |bin: &PathBuf| -> u32 {
        let version = bin.parent().and_then(Path::file_name).and_then(|name| name.to_str());
        version.and_then(|name| name.parse().ok()).unwrap_or(0)
    };
    found.filter(|bin| bin.join("initdb").is_file()).max_by_key(number)
}

impl Cluster {
    fn start(programs: PathBuf) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        if geteuid().is_root() {
            std::os::unix::fs::chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let data = dir.path().join("data");
        let mut initdb = unprivileged(&programs.join("initdb"), dir.path());
        initdb.args(["--username=roost", "--auth=trust", "--encoding=UTF8", "--locale=C"]);
        Done::of(initdb.arg("--no-sync").arg("-D").arg(&data).output().unwrap()).ok();
        let mut server = unprivileged(&programs.join("postgres"), dir.path());
        server.arg("-D").arg(&data).arg("-k").arg(dir.path());
        server.args(["-F", "-c", "listen_addresses=", "-c", "timezone=UTC"]);
        let server = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let cluster = Cluster { programs, dir, server, databases: AtomicUsize::new(0) };
        eventually("PostgreSQL's readiness", || {
            let asked = cluster.psql("postgres").args(["-c", "SELECT 1"]).output().unwrap();
            asked.status.success().then_some(())
        });
        cluster
    }

    /// `psql` on a database, with nothing from the environment of the test.
    pub(crate) fn psql(&self, database: &str) -> Command {
        let mut psql = Command::new(self.programs.join("psql"));
        psql.env_clear().env("PGTZ", "UTC").env("PGCLIENTENCODING", "UTF8");
        psql.args(["-X", "-q", "-A", "-t", "-U", "roost", "-d", database]);
        psql.arg("-h").arg(self.dir.path()).stdin(Stdio::null());
        psql
    }

    /// Makes a database that nobody else uses.
    pub(crate) fn database(self: &Arc<Cluster>) -> Database {
        let name = format!("test{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let make = format!("CREATE DATABASE {name}");
        Done::of(self.psql("postgres").args(["-c", &make]).output().unwrap()).ok();
        Database { cluster: Arc::clone(self), name }
    }
}

fn unprivileged(program: &Path, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("TZ", "UTC").current_dir(dir).stdin(Stdio::null());
    if geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Clients are sent away and nothing is left, not even shared memory.
        let _ = kill_process(Pid::from_child(&self.server), Signal::INT);
        let _ = self.server.wait();
    }
}

/// An empty database of a cluster.
pub(crate) struct Database {
    cluster: Arc<Cluster>,
    name: String,
}

impl Database {
    /// Runs `psql` with these arguments.
    pub(crate) fn psql(&self, args: &[&str]) -> Done {
        Done::of(self.cluster.psql(&self.name).args(args).output().unwrap())
    }

    /// Loads a file as its head says.
    pub(crate) fn load(&self, file: &Path) -> Done {
        self.psql(&["-v", "ON_ERROR_STOP=1", "-1", "-f", file.to_str().unwrap()])
    }

    /// What a query finds, a line for each row.
    pub(crate) fn ask(&self, sql: &str) -> Vec<String> {
        let found = self.psql(&["-c", sql]).ok();
        found.lines().map(str::to_owned).collect()
    }

    /// Schemas that somebody made.
    pub(crate) fn schemas(&self) -> Vec<String> {
        self.ask(
            "SELECT nspname FROM pg_namespace \
             WHERE nspname NOT LIKE 'pg\\_%' AND nspname NOT IN ('public', 'information_schema') ORDER BY 1",
        )
    }

    /// For commands of others that connect by the environment.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let path = std::env::var("PATH").unwrap_or_default();
        vec![
            ("PGHOST", text(self.cluster.dir.path())),
            ("PGUSER", "roost".to_owned()),
            ("PGDATABASE", self.name.clone()),
            ("PATH", format!("{}:{path}", text(&self.cluster.programs))),
        ]
    }
}
