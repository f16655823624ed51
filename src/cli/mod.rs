//! Owns the command line: what can be asked, and how answers are printed.
//!
//! Never: decides about hosts or sandboxes; it asks the rooms below. Called by `main`.

mod act;
pub mod agent_sim;
pub mod args;
mod check;
mod db;
mod demo;
mod events;
mod export;
mod look;
pub mod output;
mod progress;
mod serve;

use crate::clock::{Clock, SystemClock};
use crate::config::{Config, KEYS, Key, Paths, Source};
use crate::logging;
use crate::model::host::Intent;
use crate::model::operation::OperationKind;
use crate::model::template::TemplateKind;
use args::{Cli, Command, Database, Format};
use output::{Exit, Failure, Out};
use std::path::Path;
use std::sync::Arc;

/// Carries out one command.
///
/// # Errors
/// Whatever stands in the way, worded for people, with the exit code that goes with it.
pub fn run(cli: Cli) -> Result<Exit, Failure> {
    let inputs = cli.inputs();
    let config = Config::load(&inputs)?;
    logging::start(log_filter(&cli.command, &config), config.log_format)
        .map_err(|e| Failure::new("could not start the log").because(e))?;
    match cli.command {
        Command::Serve(options) => serve::run(&inputs, &config, &options),
        Command::Check(options) => check::run(&config, &options),
        Command::Status(options) => look::status(&config, &options),
        Command::Hosts(options) => hosts(&config, options),
        Command::Probe(options) => act::probe(&config, &options),
        Command::Sandboxes(options) => sandboxes(&config, options),
        Command::Templates(options) => templates(&config, options),
        Command::Snapshots(options) => snapshots(&config, options),
        Command::Keys(command) => act::keys(&config, &command),
        Command::Notify(options) => act::notify(&config, &options),
        Command::Health(options) => look::health(&config, &options),
        Command::Events(options) => events::events(&config, &options),
        Command::Audit(options) => look::audit(&config, &options),
        Command::Db(command) => db::run(&config, &command),
        Command::Config(options) => show_config(&config, options.printing.format),
        Command::Completions(options) => completions(options.shell),
        Command::Man => print(&crate::api::page::unpacked(MANUAL)),
        Command::Unit => print(UNIT),
        Command::Version => version(),
        Command::AgentSim(options) => agent_sim::run(&options),
        Command::Demo(options) => demo::run(&inputs, &options),
    }
}

/// Commands that end by themselves report on stdout; what the log would repeat is left
/// out unless somebody asked for it.
fn log_filter<'a>(command: &Command, config: &'a Config) -> &'a str {
    let asked = config
        .settings()
        .iter()
        .zip(KEYS)
        .any(|(setting, info)| info.key == Key::Log && setting.source != Source::Default);
    match command {
        Command::Serve(_) => &config.log,
        _ if asked => &config.log,
        Command::Demo(_)
        | Command::Check(_)
        | Command::Status(_)
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
        | Command::Config(_)
        | Command::Completions(_)
        | Command::Man
        | Command::Unit
        | Command::Version => "warn,roost::store::apply=error",
    }
}

fn hosts(config: &Config, options: args::Hosts) -> Result<Exit, Failure> {
    use args::HostsCommand;
    match options.into_command() {
        HostsCommand::List(options) => look::hosts(config, &options),
        HostsCommand::Show(options) => look::host(config, &options),
        HostsCommand::Add(options) => act::add_host(config, &options),
        HostsCommand::Token(options) => act::new_token(config, &options),
        HostsCommand::Drain(options) => act::set_intent(config, Intent::Draining, &options),
        HostsCommand::Undrain(options) => act::set_intent(config, Intent::Active, &options),
        HostsCommand::Offline(options) => act::set_intent(config, Intent::Offline, &options),
        HostsCommand::Maintenance(options) => act::maintain(config, &options),
        HostsCommand::Rm(options) => act::delete_host(config, &options),
    }
}

fn sandboxes(config: &Config, options: args::Sandboxes) -> Result<Exit, Failure> {
    use args::SandboxesCommand;
    match options.into_command() {
        SandboxesCommand::List(options) => look::sandboxes(config, &options),
        SandboxesCommand::Show(options) => look::sandbox(config, &options),
        SandboxesCommand::Create(options) => act::create_sandbox(config, &options),
        SandboxesCommand::Pause(options) => act::operate(config, OperationKind::Pause, &options),
        SandboxesCommand::Resume(options) => act::operate(config, OperationKind::Resume, &options),
        SandboxesCommand::Destroy(options) => {
            act::operate(config, OperationKind::Destroy, &options)
        }
        SandboxesCommand::Adopt(options) => act::adopt(config, &options),
    }
}

fn templates(config: &Config, options: args::Templates) -> Result<Exit, Failure> {
    use args::TemplatesCommand;
    match options.into_command() {
        TemplatesCommand::List(options) => {
            look::templates(config, &options.database, options.kind, options.printing.format)
        }
        TemplatesCommand::Add(options) => act::add_template(config, &options),
        TemplatesCommand::Rm(options) => act::forget_template(config, &options),
    }
}

fn snapshots(config: &Config, options: args::Snapshots) -> Result<Exit, Failure> {
    use args::SnapshotsCommand;
    match options.into_command() {
        SnapshotsCommand::List(options) => {
            let kind = Some(TemplateKind::Snapshot);
            look::templates(config, &options.database, kind, options.printing.format)
        }
        SnapshotsCommand::Create(options) => act::create_snapshot(config, &options),
        SnapshotsCommand::Rm(options) => act::delete_snapshot(config, &options),
    }
}

/// Where this command's files are.
fn paths(config: &Config, database: &Database) -> Paths {
    config.paths().with_db(database.path.as_deref())
}

/// Opens a database for looking.
fn open(path: &Path) -> Result<crate::store::Connection, Failure> {
    crate::store::open::open_reader(path)
        .map_err(|e| Failure::new(format!("could not open {}", path.display())).because(e))
}

fn unreadable(error: crate::store::StoreError) -> Failure {
    Failure::new("could not read the database").because(error)
}

fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock)
}

fn show_config(config: &Config, format: Format) -> Result<Exit, Failure> {
    let mut out = Out::stdout();
    let warnings = warnings(config);
    match format {
        Format::Text => {
            out.lines(&config.to_text())?;
            warnings.iter().try_for_each(|warning| out.line(&format!("# warning: {warning}")))?;
        }
        Format::Json => {
            let mut value = config.to_json();
            value["warnings"] = warnings.into();
            out.json(&value)?;
        }
    }
    out.finish().map(|()| Exit::Done)
}

/// Everything that `serve` would warn about, with or without a database.
fn warnings(config: &Config) -> Vec<String> {
    let paths = config.paths();
    let mut warnings = config.warnings_here(&paths, clock().now().wall);
    warnings.extend(warnings_of_agents(config, &paths));
    warnings
}

fn warnings_of_agents(config: &Config, paths: &Paths) -> Vec<String> {
    let hosts =
        crate::store::open::open_reader(&paths.db).and_then(|c| crate::store::read::hosts(&c));
    hosts.map(|hosts| config.warnings_of_agents(&hosts)).unwrap_or_default()
}

fn completions(shell: clap_complete::Shell) -> Result<Exit, Failure> {
    let script = String::from_utf8_lossy(&args::completions(shell)).into_owned();
    let mut out = Out::stdout();
    out.text(&script)?;
    out.finish().map(|()| Exit::Done)
}

/// Made by tests/running/manual.rs; packed by the build.
const MANUAL: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/roost.1.gz"));

/// The service file for systemd.
const UNIT: &str = include_str!("../../contrib/roost.service");

fn print(text: &str) -> Result<Exit, Failure> {
    let mut out = Out::stdout();
    out.text(text)?;
    out.finish().map(|()| Exit::Done)
}

fn version() -> Result<Exit, Failure> {
    let mut out = Out::stdout();
    out.line(&format!("roost {}", env!("CARGO_PKG_VERSION")))?;
    out.line(&format!("commit {}", env!("BUILT_FROM_COMMIT")))?;
    out.line(&format!("sqlite {}", rusqlite::version()))?;
    out.finish().map(|()| Exit::Done)
}
