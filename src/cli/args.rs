//! Owns what can be typed after `roost`: the commands and the options that several of them
//! take. A family of commands has a file of its own below.
//!
//! Never: does anything, reads a file, judges a setting (`config` does). Called by `main`,
//! which parses, and by the commands, each of which gets its own struct.

mod agent_sim;
mod db;
mod export;
mod flags;
mod history;
mod hosts;
mod keys;
mod notify;
mod run;
mod sandboxes;
mod settings;
mod templates;

pub use agent_sim::AgentSim;
pub use db::{Db, DbAccept, DbFile, DbLoad, DbVerify};
pub use export::{DbExport, ExportFormat};
pub use flags::{Flags, KeySet};
pub use history::{Audit, Events};
pub use hosts::{
    Hosts, HostsAdd, HostsCommand, HostsList, HostsMaintenance, HostsRm, HostsShow, OneHost,
};
pub use keys::{Keys, KeysCreate, KeysList, KeysRevoke};
pub use notify::{Notify, NotifyCommand, NotifyShow};
pub use run::{Check, Demo, Serve};
pub use sandboxes::{
    Sandboxes, SandboxesAdopt, SandboxesCommand, SandboxesCreate, SandboxesList, SandboxesShow,
    SomeSandboxes, Waiting,
};
pub use settings::{CheckKeys, DemoKeys, GlobalKeys, ServeKeys};
pub use templates::{
    Snapshots, SnapshotsCommand, SnapshotsCreate, SnapshotsList, Templates, TemplatesAdd,
    TemplatesCommand, TemplatesList, TemplatesRm,
};

use crate::config::{
    API_KEY_FILE_VARIABLE, API_KEY_VARIABLE, CA_VARIABLE, Inputs, Key, URL_VARIABLE, path_of_flag,
};
use crate::model::id::{Id, Kind};
use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum, ValueHint};
use std::path::PathBuf;

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
    #[arg(help_heading = "Global settings", value_parser = path_parser())]
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
  roost hosts drain host-0000000000000000000000001")]
    Hosts(Hosts),
    /// Probe a host now and show what its agent says
    ///
    /// Exits 1 when it does not answer as it should.
    #[command(after_help = "Examples:
  roost probe host-0000000000000000000000001
  roost probe host-0000000000000000000000001 --format json")]
    Probe(OneHost),
    /// List sandboxes, show one, or act on some
    ///
    /// Looking reads the database; acting asks the running server.
    #[command(after_help = "Examples:
  roost sandboxes
  roost sandboxes --status missing --host host-0000000000000000000000001
  roost sandboxes --all --format json
  roost sandboxes create --template minimal --wait
  roost sandboxes pause cl-0000000000000000000000001 --wait")]
    Sandboxes(Sandboxes),
    /// List what sandboxes are made from, or add a template that hosts have
    ///
    /// Looking reads the database; acting asks the running server.
    #[command(after_help = "Examples:
  roost templates
  roost templates add python3.12 --memory-mb 1024
  roost templates rm python3.12")]
    Templates(Templates),
    /// List snapshots, make one of a sandbox, or delete one
    ///
    /// A snapshot is a template. Looking reads the database; acting asks the running server.
    #[command(after_help = "Examples:
  roost snapshots
  roost snapshots create cl-0000000000000000000000001 with-deps
  roost snapshots rm with-deps")]
    Snapshots(Snapshots),
    /// Show what is announced to whom, or test it
    #[command(after_help = "Examples:
  roost notify
  roost notify test")]
    Notify(Notify),
    /// Create, list or revoke API keys
    #[command(
        subcommand,
        after_help = "Examples:
  roost keys create ci
  roost keys list
  roost keys revoke key-0000000000000000000000001"
    )]
    Keys(Keys),
    /// Ask whether the running server is ready; exits 1 when it is not
    #[command(after_help = "Examples:
  roost health
  roost health --url http://10.0.0.5:8000 --format json")]
    Health(Health),
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
    /// Make, load, dump, verify, back up, restore or migrate a database
    #[command(
        subcommand,
        after_help = "Examples:
  roost db init
  roost db load --db /tmp/roost.db fleet.json
  roost db dump --db /tmp/roost.db
  roost db verify
  roost db backup roost-monday.db"
    )]
    Db(Db),
    /// Run simulated hosts, for trying out, tests and load
    ///
    /// Each host listens on a port of its own from --base-port on and answers the calls of
    /// a host agent, and refuses what a real one refuses. With --join each registers with a
    /// control plane, sends heartbeats, and obeys the answers as real agents do, over TLS when
    /// certificates come with the registration. Runs until SIGINT or SIGTERM; a second signal
    /// forces.
    #[command(after_help = "Examples:
  roost agent-sim --hosts 10 --sandboxes 5 --fleet fleet.json
  roost agent-sim --hosts 1000 --sandboxes 50 --delay-ms 20
  roost agent-sim --hosts 1000 --sandboxes 50 --hang-every 10 --hang-ms 2000
  roost agent-sim --hosts 100 --sandboxes 500 --auto-paused --fleet fleet.json
  roost agent-sim --hosts 1000 --sandboxes 50 --fleet fleet.json --fleet-status missing
  roost agent-sim --join http://127.0.0.1:8000 --token-file tokens --calls-ms 3000
  roost agent-sim --lists-paused --restart-every-s 60 --index-ms 5000 --shutdown-ms 2000
  roost agent-sim --join http://127.0.0.1:8000 --token-file tokens --lists-paused --reports")]
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
    /// Print the manual page
    #[command(after_help = "Examples:
  roost man > /usr/local/share/man/man1/roost.1
  roost man > /tmp/roost.1")]
    Man,
    /// Print the service file for systemd
    #[command(after_help = "Examples:
  roost unit > /etc/systemd/system/roost.service")]
    Unit,
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
            | Command::Probe(_)
            | Command::Sandboxes(_)
            | Command::Templates(_)
            | Command::Snapshots(_)
            | Command::Keys(_)
            | Command::Notify(_)
            | Command::Health(_)
            | Command::Events(_)
            | Command::Audit(_)
            | Command::Db(_)
            | Command::AgentSim(_)
            | Command::Completions(_)
            | Command::Man
            | Command::Unit
            | Command::Version => &[],
        }
    }
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
    #[arg(long = "db", value_name = "FILE", value_hint = ValueHint::FilePath, value_parser = path_parser())]
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

/// A path by the same rule as the settings have.
fn path_parser() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(path_of_flag)
}

/// As for settings, an empty variable sets nothing.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// An id as a command takes it; a refusal shows what one looks like.
fn id<K: Kind>(text: &str) -> Result<Id<K>, String> {
    text.parse().map_err(|e| format!("{e}; one looks like {}", Id::<K>::from_u128(1)))
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

/// Options of `roost health`.
#[derive(Debug, Args)]
pub struct Health {
    /// The server.
    #[command(flatten)]
    pub server: Server,
    /// Output.
    #[command(flatten)]
    pub printing: Printing,
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
    use crate::model::sandbox::SandboxStatus;

    fn parse(line: &str) -> Cli {
        let words = line.split_whitespace().take_while(|word| !matches!(*word, ">" | "|"));
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
            "roost sandboxes pause",
            "roost sandboxes pause cl-0000000000000000000000001 --timeout 1m",
            "roost sandboxes create --vcpus 0",
            "roost hosts rm cl-0000000000000000000000001",
            "roost templates add",
            "roost templates add Python",
            "roost templates add minimal",
            "roost templates add py --id python",
            "roost templates add py --vcpus 0",
            "roost templates add py --memory-mb 2147483648",
            "roost templates add py -e =x",
            "roost templates list --type other",
            "roost snapshots create",
            "roost snapshots create cl-0000000000000000000000001 --overwrite",
            "roost snapshots rm",
            "roost keys create",
            "roost keys revoke host-0000000000000000000000001",
            "roost probe",
            "roost demo --for 30",
            "roost demo --hosts 0",
            "roost agent-sim --hang-every 10",
            "roost agent-sim --paused --auto-paused",
            "roost agent-sim --join http://127.0.0.1:8000",
            "roost agent-sim --token abc",
            "roost agent-sim --join http://127.0.0.1:8000 --token abc --hosts 2",
            "roost agent-sim --fleet-status missing",
            "roost agent-sim --reports",
            "roost agent-sim --index-ms 100",
            "roost agent-sim --join http://127.0.0.1:8000 --token abc --reports-late-ms 5",
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
        assert_eq!(ports("roost agent-sim --hosts 2 --base-port 0"), Some(0..=0));
        assert_eq!(ports("roost agent-sim --hosts 2 --base-port 65535"), None);
    }

    #[test]
    fn completions_know_the_flags() {
        let script = String::from_utf8(completions(clap_complete::Shell::Bash)).unwrap();
        assert!(script.contains("--probe-interval"));
    }
}
