//! Owns what can be typed after `roost`: commands, their options, their help.
//!
//! Never: does anything, reads a file, judges a setting (`config` does). Called by `main`,
//! which parses, and by the commands, each of which gets its own struct.

mod flags;

pub use flags::{Flags, KeySet};

use crate::config::{
    API_KEY_FILE_VARIABLE, API_KEY_VARIABLE, CA_VARIABLE, Inputs, Key, URL_VARIABLE, parse_span,
};
use crate::model::id::{HostId, SandboxId};
use crate::model::sandbox::SandboxStatus;
use crate::model::time::Wall;
use clap::builder::ArgPredicate;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum, ValueHint, value_parser};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// Most simulated hosts: each takes a port of its own above `--base-port`.
const SIMULATED_HOSTS_MAX: i64 = 20_000;

/// Most simulated sandboxes on one host. Larger: a listing no longer fits the largest
/// answer a probe reads (16 MiB).
const SIMULATED_SANDBOXES_MAX: i64 = 20_000;

/// Most hosts in a demo. Larger: its output is no longer for people; `agent-sim` is for load.
const DEMO_HOSTS_MAX: i64 = 100;

/// Most sandboxes on one host of a demo. Larger: they do not fit into a simulated host.
const DEMO_SANDBOXES_MAX: i64 = 100;

/// Rows shown when nobody says how many. Larger: the newest scroll away.
const ROWS_DEFAULT: u32 = 50;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong usage: arguments or configuration
  3  with --exit-code: check made, or would make, changes

Start with:
  roost demo
  roost serve --data-dir /var/lib/roost
  roost status";

/// A control plane for a handful of machines that run sandboxes
#[derive(Debug, Parser)]
#[command(name = "roost", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    /// Configuration file, instead of roost.toml in the data directory [env ROOST_CONFIG]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[arg(help_heading = "Global settings")]
    pub config: Option<PathBuf>,
    /// Settings that every command takes.
    #[command(flatten)]
    pub global: Flags<GlobalKeys>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// What `config` gathers values from: flags, file and the environment of this process.
    pub fn inputs(&self) -> Inputs {
        let mut flags = self.global.given().to_vec();
        flags.extend_from_slice(self.command.settings());
        Inputs::from_process(self.config.clone(), flags)
    }
}

/// A script that completes `roost` in this shell.
pub fn completions(shell: clap_complete::Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "roost", &mut script);
    script
}

/// Every command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the control plane: monitor, HTTP API, status page
    ///
    /// Runs until SIGINT or SIGTERM, then finishes what is in flight and exits 0; a second
    /// signal forces. SIGHUP reads the configuration file again.
    #[command(after_help = "Examples:
  roost serve
  roost serve --data-dir /var/lib/roost --listen 0.0.0.0:8000
  roost serve --probe-interval 30s --log warn,roost::engine=debug")]
    Serve(Serve),
    /// Show roost at work with simulated hosts, on a machine with nothing installed
    ///
    /// A temporary database, simulated hosts on loopback that speak the real wire, the
    /// control plane on top, and faults now and then.
    #[command(after_help = "Examples:
  roost demo
  roost demo --for 30s --hosts 3 --sandboxes 2 --seed 7")]
    Demo(Demo),
    /// Make one full pass over the database, then exit
    #[command(after_help = "Examples:
  roost check --dry-run
  roost check --dry-run --exit-code --format json
  roost check --policy strict --db /var/lib/roost/roost.db")]
    Check(Check),
    /// Show the fleet at a glance
    #[command(after_help = "Examples:
  roost status
  roost status --format json")]
    Status(Status),
    /// List hosts, show one, or act on one
    ///
    /// Looking reads the database; acting asks the running server.
    #[command(after_help = "Examples:
  roost hosts
  roost hosts list --format json
  roost hosts show host-0000000000000000000000001
  roost hosts add --provider hetzner --availability-zone fsn1
  roost hosts token host-0000000000000000000000001")]
    Hosts(Hosts),
    /// List sandboxes, or show one
    #[command(after_help = "Examples:
  roost sandboxes
  roost sandboxes --status missing --host host-0000000000000000000000001
  roost sandboxes --all --format json
  roost sandboxes show cl-0000000000000000000000001")]
    Sandboxes(Sandboxes),
    /// Show what happened, by revision
    #[command(after_help = "Examples:
  roost events --limit 20
  roost events --follow --format json
  roost events --after 1200 --sandbox cl-0000000000000000000000001")]
    Events(Events),
    /// Show who did what, newest first
    #[command(after_help = "Examples:
  roost audit
  roost audit --limit 10 --before 2026-05-17T06:40:00Z
  roost audit --host host-0000000000000000000000001 --format json")]
    Audit(Audit),
    /// Make, load, dump or verify a database
    #[command(
        subcommand,
        after_help = "Examples:
  roost db init
  roost db load --db /tmp/roost.db fleet.json
  roost db dump --db /tmp/roost.db
  roost db verify"
    )]
    Db(Db),
    /// Run simulated hosts, for trying out, tests and load
    ///
    /// Each host listens on a port of its own from --base-port on and answers the calls of
    /// a host agent. With --join each registers with a control plane, beats, and obeys the
    /// answers as real agents do, over TLS when certificates come with the registration.
    /// Runs until SIGINT or SIGTERM.
    #[command(after_help = "Examples:
  roost agent-sim --hosts 10 --sandboxes 5 --fleet fleet.json
  roost agent-sim --hosts 1000 --sandboxes 50 --delay-ms 20
  roost agent-sim --hosts 1000 --sandboxes 50 --hang-every 10 --hang-ms 2000
  roost agent-sim --hosts 100 --sandboxes 500 --auto-paused --fleet fleet.json
  roost agent-sim --hosts 1000 --sandboxes 50 --fleet fleet.json --fleet-status missing
  roost agent-sim --join http://127.0.0.1:8000 --token-file tokens --calls-ms 3000")]
    AgentSim(AgentSim),
    /// Show the effective settings and where each came from
    #[command(after_help = "Examples:
  roost config
  roost config --config /etc/roost.toml --format json")]
    Config(ShowConfig),
    /// Print a completion script for a shell
    #[command(after_help = "Examples:
  roost completions bash > /etc/bash_completion.d/roost
  roost completions fish > ~/.config/fish/completions/roost.fish")]
    Completions(Completions),
    /// Print the version, the commit and the version of SQLite
    #[command(after_help = "Examples:
  roost version")]
    Version,
}

impl Command {
    /// The settings given as flags of this command.
    fn settings(&self) -> &[(Key, String)] {
        match self {
            Command::Serve(args) => args.settings.given(),
            Command::Demo(args) => args.settings.given(),
            Command::Check(args) => args.settings.given(),
            Command::Config(args) => args.settings.given(),
            Command::Status(_)
            | Command::Hosts(_)
            | Command::Sandboxes(_)
            | Command::Events(_)
            | Command::Audit(_)
            | Command::Db(_)
            | Command::AgentSim(_)
            | Command::Completions(_)
            | Command::Version => &[],
        }
    }
}

/// Settings of every command.
#[derive(Debug)]
pub struct GlobalKeys;

impl KeySet for GlobalKeys {
    const KEYS: &'static [Key] = &[Key::DataDir, Key::Log, Key::LogFormat];
    const GLOBAL: bool = true;
}

/// Settings of `serve`, and of `config`, which shows them: every one that is not global.
#[derive(Debug)]
pub struct ServeKeys;

impl KeySet for ServeKeys {
    const KEYS: &'static [Key] = &[
        Key::Listen,
        Key::UnreachableAfter,
        Key::StartupGrace,
        Key::ProbeInterval,
        Key::ProbeTimeout,
        Key::Workers,
        Key::TransientGrace,
        Key::ConfirmDelay,
        Key::Policy,
        Key::Zombies,
        Key::HeartbeatFlush,
        Key::MassGuardMax,
        Key::AgentTls,
        Key::TlsCert,
        Key::TlsKey,
    ];
}

/// Settings that make a demo quicker or slower. Its directory and its wire are its own, and
/// its policy is the default one: strict policy takes a create under way for a failure.
#[derive(Debug)]
pub struct DemoKeys;

impl KeySet for DemoKeys {
    const KEYS: &'static [Key] = &[
        Key::Listen,
        Key::UnreachableAfter,
        Key::ProbeInterval,
        Key::ProbeTimeout,
        Key::Workers,
        Key::TransientGrace,
        Key::ConfirmDelay,
        Key::Zombies,
    ];
}

/// Settings that one pass depends on.
#[derive(Debug)]
pub struct CheckKeys;

impl KeySet for CheckKeys {
    const KEYS: &'static [Key] = &[
        Key::Policy,
        Key::Zombies,
        Key::UnreachableAfter,
        Key::ProbeTimeout,
        Key::Workers,
        Key::TransientGrace,
        Key::ConfirmDelay,
        Key::AgentTls,
    ];
}

/// For people or for scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Tables and sentences
    Text,
    /// JSON
    Json,
}

/// Which database a command opens.
#[derive(Debug, Args)]
pub struct Database {
    /// Database file, instead of roost.db in the data directory
    #[arg(long = "db", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub path: Option<PathBuf>,
}

/// How a command prints.
#[derive(Debug, Args)]
pub struct Printing {
    /// For people or for scripts
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// Which server a command asks. The key comes from `ROOST_API_KEY`, from the file that
/// `ROOST_API_KEY_FILE` names, or from the data directory: as a flag it would show in the
/// list of processes.
#[derive(Debug, Args)]
pub struct Server {
    /// URL of the server, instead of the one that listen says [env ROOST_URL]
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url)]
    url: Option<String>,
    /// Certificate of an https server, or of its CA, in PEM, instead of tls_cert [env ROOST_CA]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    ca: Option<PathBuf>,
}

impl Server {
    /// The URL from the flag or the environment; `None`: the one that `listen` says.
    pub fn url(&self) -> Option<String> {
        self.url.clone().or_else(|| variable(URL_VARIABLE))
    }

    /// The file of certificates to trust; `None`: the one that `tls_cert` says.
    pub fn ca(&self) -> Option<PathBuf> {
        self.ca.clone().or_else(|| variable(CA_VARIABLE).map(PathBuf::from))
    }

    /// The key from the environment.
    pub fn api_key(&self) -> Option<String> {
        variable(API_KEY_VARIABLE)
    }

    /// The file with the key, from the environment.
    pub fn api_key_file(&self) -> Option<PathBuf> {
        variable(API_KEY_FILE_VARIABLE).map(PathBuf::from)
    }
}

/// As for settings, an empty variable sets nothing.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Options of `roost serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// Settings.
    #[command(flatten)]
    pub settings: Flags<ServeKeys>,
}

/// Options of `roost demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// Let things go wrong for this long, then end; without it, run until interrupted
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_span)]
    pub run_for: Option<Duration>,
    /// Simulated hosts
    #[arg(long, value_name = "N", default_value_t = 5)]
    #[arg(value_parser = value_parser!(u32).range(1..=DEMO_HOSTS_MAX))]
    pub hosts: u32,
    /// Sandboxes on each host
    #[arg(long, value_name = "N", default_value_t = 4)]
    #[arg(value_parser = value_parser!(u32).range(0..=DEMO_SANDBOXES_MAX))]
    pub sandboxes: u32,
    /// Repeat the faults of an earlier run; without it they are drawn and the seed printed
    #[arg(long, value_name = "SEED")]
    pub seed: Option<u64>,
    /// Settings.
    #[command(flatten)]
    pub settings: Flags<DemoKeys>,
}

/// Options of `roost check`.
#[derive(Debug, Args)]
pub struct Check {
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// Change nothing, only say what would change
    #[arg(long)]
    pub dry_run: bool,
    /// Only this host
    #[arg(long, value_name = "ID")]
    pub host: Option<HostId>,
    /// Exit with 3 when something changed, or would change
    #[arg(long)]
    pub exit_code: bool,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
    /// Settings.
    #[command(flatten)]
    pub settings: Flags<CheckKeys>,
}

/// Options of `roost status`. What only the running server knows is left out without one.
#[derive(Debug, Args)]
pub struct Status {
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// The server.
    #[command(flatten)]
    pub server: Server,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
}

/// Options of `roost hosts`; alone it lists.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Hosts {
    /// What to do with hosts.
    #[command(subcommand)]
    command: Option<HostsCommand>,
    /// Options of the list.
    #[command(flatten)]
    list: HostsList,
}

impl Hosts {
    /// What was asked for.
    pub fn into_command(self) -> HostsCommand {
        self.command.unwrap_or(HostsCommand::List(self.list))
    }
}

/// What can be done with hosts.
#[derive(Debug, Subcommand)]
pub enum HostsCommand {
    /// List every host
    #[command(after_help = "Examples:
  roost hosts list
  roost hosts list --db /var/lib/roost/roost.db --format json")]
    List(HostsList),
    /// Show one host, with its last probe
    #[command(after_help = "Examples:
  roost hosts show host-0000000000000000000000001")]
    Show(HostsShow),
    /// Create a host and print its registration token
    #[command(after_help = "Examples:
  roost hosts add
  roost hosts add --type metal --provider hetzner --availability-zone fsn1 --format json")]
    Add(HostsAdd),
    /// Make a new registration token for a host
    #[command(after_help = "Examples:
  roost hosts token host-0000000000000000000000001")]
    Token(OneHost),
}

/// Options of `roost hosts list`.
#[derive(Debug, Args)]
pub struct HostsList {
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
}

/// Options of `roost hosts show`.
#[derive(Debug, Args)]
pub struct HostsShow {
    /// The host
    #[arg(value_name = "ID")]
    pub id: HostId,
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// The server.
    #[command(flatten)]
    pub server: Server,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
}

/// Options of `roost hosts add`.
#[derive(Debug, Args)]
pub struct HostsAdd {
    /// Kind of host, in your own words
    #[arg(long = "type", value_name = "TYPE")]
    pub host_type: Option<String>,
    /// Who runs the machine, in your own words
    #[arg(long)]
    pub provider: Option<String>,
    /// Where it stands, in your own words
    #[arg(long, value_name = "ZONE")]
    pub availability_zone: Option<String>,
    /// The server.
    #[command(flatten)]
    pub server: Server,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
}

/// Options of a command that acts on one host.
#[derive(Debug, Args)]
pub struct OneHost {
    /// The host
    #[arg(value_name = "ID")]
    pub id: HostId,
    /// The server.
    #[command(flatten)]
    pub server: Server,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
}

/// Options of `roost sandboxes`; alone it lists.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Sandboxes {
    /// What to do with sandboxes.
    #[command(subcommand)]
    command: Option<SandboxesCommand>,
    /// Options of the list.
    #[command(flatten)]
    list: SandboxesList,
}

impl Sandboxes {
    /// What was asked for.
    pub fn into_command(self) -> SandboxesCommand {
        self.command.unwrap_or(SandboxesCommand::List(self.list))
    }
}

/// What can be done with sandboxes.
#[derive(Debug, Subcommand)]
pub enum SandboxesCommand {
    /// List sandboxes
    #[command(after_help = "Examples:
  roost sandboxes list --status paused
  roost sandboxes list --all --host host-0000000000000000000000001 --format json")]
    List(SandboxesList),
    /// Show one sandbox
    #[command(after_help = "Examples:
  roost sandboxes show cl-0000000000000000000000001")]
    Show(SandboxesShow),
}

/// Options of `roost sandboxes list`.
#[derive(Debug, Args)]
pub struct SandboxesList {
    /// Only those on this host
    #[arg(long, value_name = "ID")]
    pub host: Option<HostId>,
    /// Only those with this status
    #[arg(long)]
    pub status: Option<SandboxStatus>,
    /// Also those that are stopped or in error
    #[arg(long)]
    pub all: bool,
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
}

/// Options of `roost sandboxes show`.
#[derive(Debug, Args)]
pub struct SandboxesShow {
    /// The sandbox
    #[arg(value_name = "ID")]
    pub id: SandboxId,
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
}

/// Options of `roost events`.
#[derive(Debug, Args)]
pub struct Events {
    /// Go on with what happens from now on, until interrupted
    #[arg(long)]
    pub follow: bool,
    /// Only events after this revision
    #[arg(long, value_name = "REVISION")]
    pub after: Option<u64>,
    /// At most this many, before following; the oldest with --after, else the newest
    #[arg(long, value_name = "N", default_value_t = ROWS_DEFAULT)]
    pub limit: u32,
    /// Only events of this host
    #[arg(long, value_name = "ID")]
    pub host: Option<HostId>,
    /// Only events of this sandbox
    #[arg(long, value_name = "ID")]
    pub sandbox: Option<SandboxId>,
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
}

/// Options of `roost audit`.
#[derive(Debug, Args)]
pub struct Audit {
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = ROWS_DEFAULT)]
    pub limit: u32,
    /// Only entries older than this time, RFC 3339 in UTC
    #[arg(long, value_name = "TIME")]
    pub before: Option<Wall>,
    /// Only entries about this host
    #[arg(long, value_name = "ID")]
    pub host: Option<HostId>,
    /// Only entries about this sandbox
    #[arg(long, value_name = "ID", conflicts_with = "host")]
    pub sandbox: Option<SandboxId>,
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
}

/// What can be done with a database.
#[derive(Debug, Subcommand)]
pub enum Db {
    /// Make an empty database
    #[command(after_help = "Examples:
  roost db init
  roost db init --db /tmp/roost.db")]
    Init(Database),
    /// Make a database from a fixture
    #[command(after_help = "Examples:
  roost db load fleet.json
  roost db load --db /tmp/roost.db fleet.json")]
    Load(DbLoad),
    /// Print a database as a fixture
    #[command(after_help = "Examples:
  roost db dump > fleet.json")]
    Dump(Database),
    /// Verify integrity and invariants
    #[command(after_help = "Examples:
  roost db verify
  roost db verify --db /tmp/roost.db --format json")]
    Verify(DbVerify),
}

/// Options of `roost db load`.
#[derive(Debug, Args)]
pub struct DbLoad {
    /// The fixture
    #[arg(value_name = "FIXTURE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// The database.
    #[command(flatten)]
    pub database: Database,
}

/// Options of `roost db verify`.
#[derive(Debug, Args)]
pub struct DbVerify {
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
}

/// Options of `roost agent-sim`.
#[derive(Debug, Args)]
pub struct AgentSim {
    /// Simulated hosts; with --join there is one for each token
    #[arg(long, value_name = "N", default_value_t = 3, conflicts_with = "join")]
    #[arg(value_parser = value_parser!(u32).range(1..=SIMULATED_HOSTS_MAX))]
    pub hosts: u32,
    /// Sandboxes that each host lists; with --join none unless given
    #[arg(long, value_name = "M", default_value_t = 4)]
    #[arg(default_value_if("join", ArgPredicate::IsPresent, "0"))]
    #[arg(value_parser = value_parser!(u32).range(0..=SIMULATED_SANDBOXES_MAX))]
    pub sandboxes: u32,
    /// Port of the first host; the next ones follow
    #[arg(long, value_name = "P", default_value_t = 50_051)]
    #[arg(value_parser = value_parser!(u16).range(1..))]
    pub base_port: u16,
    /// Every answer comes this many milliseconds late
    #[arg(long, value_name = "D", default_value_t = 0)]
    pub delay_ms: u64,
    /// Every K-th host hangs before it answers; 0 for none
    #[arg(long, value_name = "K", default_value_t = 0, requires = "hang_ms")]
    pub hang_every: u32,
    /// How many milliseconds a hanging host waits
    #[arg(long, value_name = "H", default_value_t = 0)]
    pub hang_ms: u64,
    /// List every sandbox as paused, instead of running
    #[arg(long, conflicts_with = "auto_paused")]
    pub paused: bool,
    /// List no sandbox; the first answer says that all of them were paused by the agent
    #[arg(long)]
    pub auto_paused: bool,
    /// Write the fixture that matches these hosts, for `roost db load`
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub fleet: Option<PathBuf>,
    /// Status of the sandboxes in that fixture
    #[arg(long, value_name = "STATUS", default_value_t = SandboxStatus::Running)]
    #[arg(requires = "fleet")]
    pub fleet_status: SandboxStatus,
    /// Creates, pauses, resumes and destroys take this many milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub calls_ms: u64,
    /// Register with this control plane as real agents do, and beat
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url, requires = "tokens")]
    #[arg(conflicts_with = "fleet")]
    pub join: Option<String>,
    /// Registration token of a host, several with commas; others on this machine can see it
    #[arg(long, value_name = "TOKEN", value_delimiter = ',', group = "tokens")]
    #[arg(requires = "join")]
    pub token: Vec<String>,
    /// File with registration tokens, one a line
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, group = "tokens")]
    #[arg(requires = "join")]
    pub token_file: Option<PathBuf>,
    /// Milliseconds between two heartbeats
    #[arg(long, value_name = "MS", default_value_t = 30_000, requires = "join")]
    #[arg(value_parser = value_parser!(u64).range(1..))]
    pub heartbeat_ms: u64,
    /// Certificate of an https control plane, or of its CA, in PEM
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "join")]
    pub ca: Option<PathBuf>,
}

impl AgentSim {
    /// One port for each of so many hosts; `None` when they do not fit below 65536.
    pub fn ports(&self, hosts: usize) -> Option<RangeInclusive<u16>> {
        let more = u16::try_from(hosts.checked_sub(1)?).ok()?;
        Some(self.base_port..=self.base_port.checked_add(more)?)
    }
}

/// Options of `roost config`.
#[derive(Debug, Args)]
pub struct ShowConfig {
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
    /// Settings.
    #[command(flatten)]
    pub settings: Flags<ServeKeys>,
}

/// Options of `roost completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Cli {
        let words = line.split_whitespace().take_while(|word| *word != ">");
        Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    fn refused(line: &str) {
        let error = Cli::try_parse_from(line.split_whitespace()).map(|_| ()).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    fn check_examples(command: &clap::Command) {
        let name = command.get_name();
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let examples: Vec<&str> =
            help.lines().map(str::trim).filter(|line| line.starts_with("roost ")).collect();
        assert!(!examples.is_empty(), "{name} has no examples");
        for example in examples {
            let named = name == "roost" || example.split_whitespace().any(|word| word == name);
            assert!(named, "{example:?} is no example of {name}");
            parse(example);
        }
    }

    #[test]
    fn every_command_has_examples_that_parse() {
        let mut waiting = vec![Cli::command()];
        while let Some(command) = waiting.pop() {
            check_examples(&command);
            waiting.extend(command.get_subcommands().cloned());
        }
    }

    #[test]
    fn every_key_is_a_flag_of_serve() {
        let keys = GlobalKeys::KEYS.iter().chain(ServeKeys::KEYS);
        let mut keys: Vec<Key> = keys.copied().collect();
        keys.sort();
        assert_eq!(keys, Key::ALL);
    }

    #[test]
    fn settings_stay_text() {
        let cli = parse("roost serve --workers many --data-dir /a --probe-interval 0");
        let flags = cli.inputs().flags;
        let expected = [
            (Key::DataDir, "/a".to_owned()),
            (Key::ProbeInterval, "0".to_owned()),
            (Key::Workers, "many".to_owned()),
        ];
        assert_eq!(flags, expected);
        assert_eq!(parse("roost --data-dir /a status").global.given().len(), 1);
    }

    #[test]
    fn a_list_needs_no_word() {
        for line in ["roost hosts --format json", "roost hosts list --format json"] {
            let Command::Hosts(hosts) = parse(line).command else { panic!("{line}") };
            let HostsCommand::List(list) = hosts.into_command() else { panic!("{line}") };
            assert_eq!(list.printing.format, Format::Json);
        }
        let Command::Sandboxes(some) = parse("roost sandboxes --status paused").command else {
            panic!("not sandboxes")
        };
        let SandboxesCommand::List(list) = some.into_command() else { panic!("not a list") };
        assert_eq!(list.status, Some(SandboxStatus::Paused));
    }

    #[test]
    fn refusals() {
        for line in [
            "roost",
            "roost fly",
            "roost hosts show",
            "roost hosts show cl-0000000000000000000000001",
            "roost sandboxes --status lost",
            "roost demo --for 30",
            "roost demo --hosts 0",
            "roost agent-sim --hang-every 10",
            "roost agent-sim --paused --auto-paused",
            "roost agent-sim --join http://127.0.0.1:8000",
            "roost agent-sim --token abc",
            "roost agent-sim --join http://127.0.0.1:8000 --token abc --hosts 2",
            "roost agent-sim --fleet-status missing",
            "roost status --workers 3",
            "roost completions tcsh",
        ] {
            refused(line);
        }
    }

    #[test]
    fn simulated_hosts_have_ports() {
        let ports = |line: &str| {
            let Command::AgentSim(sim) = parse(line).command else { panic!("{line}") };
            sim.ports(sim.hosts as usize)
        };
        assert_eq!(ports("roost agent-sim --hosts 2 --base-port 9000"), Some(9000..=9001));
        assert_eq!(ports("roost agent-sim --hosts 1 --base-port 65535"), Some(65_535..=65_535));
        assert_eq!(ports("roost agent-sim --hosts 2 --base-port 65535"), None);
    }

    #[test]
    fn completions_know_the_flags() {
        let script = String::from_utf8(completions(clap_complete::Shell::Bash)).unwrap();
        assert!(script.contains("--probe-interval"));
    }
}
