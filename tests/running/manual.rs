//! Owns the manual page, contrib/roost.1: everything that `--help` says of every command, on
//! one page. `UPDATE_EXPECT=1 cargo test --test running manual` renews it. Made here and
//! not by the program, whose share of it would be twice as large as the page.
//!
//! Never: says anything that the definitions of the commands do not; only what belongs to
//! all of them stands here.

use crate::support::Home;
use clap::{Arg, Command, CommandFactory};
use expect_test::expect_file;
use roff::{Inline, Roff, bold, italic, line_break, roman};
use roost::cli::args::Cli;
use roost::config::{KEYS, OTHER_VARIABLES, Paths};
use std::path::Path;

/// Since when the page has this form.
const DAY: &str = "2026-11-24";

/// The page in roff, for man(1).
fn page() -> String {
    let mut command = Cli::command().max_term_width(0);
    command.build();
    let mut page = Roff::new();
    let version = concat!("roost ", env!("CARGO_PKG_VERSION"));
    page.control("TH", ["ROOST", "1", DAY, version]);
    page.control("SH", ["NAME"]);
    page.text([roman(format!("roost - {}", about(&command)))]);
    page.control("SH", ["SYNOPSIS"]);
    page.text([bold("roost"), roman(" [settings] "), italic("command"), roman(" [options]")]);
    page.control("SH", ["COMMANDS"]);
    for part in command.get_subcommands_mut().filter(|part| part.get_name() != "help") {
        let name = format!("roost {}", part.get_name());
        describe(&mut page, part, &name);
    }
    page.control("SH", ["GLOBAL SETTINGS"]);
    options(&mut page, command.get_arguments().filter(|arg| arg.is_global_set()));
    environment(&mut page);
    files(&mut page);
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let (codes, start) = help.split_once("\n\n").unwrap_or((&help, ""));
    for (title, lines) in [("EXIT STATUS", codes), ("EXAMPLES", start)] {
        page.control("SH", [title]);
        literal(&mut page, lines.lines().skip(1));
    }
    page.render()
}

fn about(command: &Command) -> String {
    command.get_about().map(ToString::to_string).unwrap_or_default()
}

/// One command and those below it.
fn describe(page: &mut Roff, command: &mut Command, name: &str) {
    page.control("SS", [name]);
    let about = command.get_long_about().or(command.get_about());
    let about = about.map(ToString::to_string).unwrap_or_default();
    for (at, paragraph) in about.split("\n\n").enumerate() {
        if at > 0 {
            page.control("PP", []);
        }
        page.text([roman(paragraph.replace('\n', " "))]);
    }
    page.control("PP", []);
    let usage = command.render_usage().to_string();
    page.text([bold(usage.trim_start_matches("Usage: "))]);
    options(page, command.get_arguments().filter(|arg| !arg.is_global_set()));
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    if let Some(examples) = help.strip_prefix("Examples:\n") {
        page.control("PP", []);
        literal(page, examples.lines());
    }
    for part in command.get_subcommands_mut().filter(|part| part.get_name() != "help") {
        let name = format!("{name} {}", part.get_name());
        describe(page, part, &name);
    }
}

fn options<'a>(page: &mut Roff, args: impl Iterator<Item = &'a Arg>) {
    let shown = args.filter(|arg| !arg.is_hide_set() && arg.get_id() != "help");
    for arg in shown.filter(|arg| arg.get_id() != "version") {
        page.control("TP", []);
        let value = arg.get_value_names().and_then(|names| names.first());
        let value = value.map_or(arg.get_id().as_str(), |name| name.as_str());
        let takes = arg.get_action().takes_values();
        match arg.get_long() {
            Some(long) if takes => {
                page.text([bold(format!("--{long}")), roman(" "), italic(value)]);
            }
            Some(long) => drop(page.text([bold(format!("--{long}"))])),
            None => drop(page.text([italic(value)])),
        }
        let mut text = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let defaults = arg.get_default_values().iter().map(|value| value.to_string_lossy());
        let defaults = defaults.collect::<Vec<_>>().join(",");
        if takes && !defaults.is_empty() {
            text += &format!(" [default: {defaults}]");
        }
        page.text([roman(text.replace('\n', " "))]);
    }
}

/// Lines as they are, indented.
fn literal<'a>(page: &mut Roff, lines: impl Iterator<Item = &'a str>) {
    page.control("RS", ["4"]);
    let lines: Vec<Inline> = lines.flat_map(|line| [roman(line.trim()), line_break()]).collect();
    page.text(&lines[..lines.len().saturating_sub(1)]);
    page.control("RE", []);
}

fn environment(page: &mut Roff) {
    page.control("SH", ["ENVIRONMENT"]);
    for (name, about) in KEYS.iter().map(|key| (key.key.variable(), key.about)) {
        page.control("TP", []);
        page.text([bold(name)]);
        page.text([roman(about.replace('`', ""))]);
    }
    page.control("PP", []);
    page.text([roman(format!("Other variables: {}.", OTHER_VARIABLES.join(", ")))]);
    page.control("PP", []);
    page.text([roman(
        "With NO_COLOR set, or TERM=dumb, nothing is coloured; elsewhere than on a terminal nothing ever is.",
    )]);
}

fn files(page: &mut Roff) {
    page.control("SH", ["FILES"]);
    page.text([roman("In the data directory:")]);
    let Paths { dir: _, db, lock, served, admin_key, host_token_key, ca_cert, ca_key, config_file } =
        Paths::of(Path::new(""));
    for (path, what) in [
        (db, "the database, with -wal and -shm beside it while it is open"),
        (config_file, "the configuration, when no other file is named"),
        (admin_key, "the API key of the operator on this machine; secret"),
        (host_token_key, "signs the tokens of hosts; secret"),
        (ca_cert, "the certificate of the CA for agents"),
        (ca_key, "its key; secret"),
        (lock, "held by the one process that may write"),
        (served, "which database was served last, and up to which revision"),
    ] {
        page.control("TP", []);
        page.text([bold(path.to_string_lossy())]);
        page.text([roman(what)]);
    }
}

#[test]
fn the_page_is_that_of_these_commands() {
    expect_file![concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/roost.1")].assert_eq(&page());
    assert_eq!(
        Home::new().roost(&["man"]).ok(),
        page(),
        "the program prints it; after UPDATE_EXPECT run this once more"
    );
}

#[test]
fn every_command_flag_and_variable_is_on_the_page() {
    let page = Home::new().roost(&["man"]).ok().replace("\\-", "-");
    let mut waiting = vec![(Cli::command(), "roost".to_owned())];
    while let Some((command, name)) = waiting.pop() {
        for part in command.get_subcommands() {
            let name = format!("{name} {}", part.get_name());
            assert!(page.contains(&format!(".SS \"{name}\"")), "{name} is missing");
            waiting.push((part.clone(), name));
        }
        let flags = command.get_arguments().filter_map(|arg| arg.get_long());
        for flag in flags.filter(|flag| !["help", "version"].contains(flag)) {
            assert!(page.contains(&format!("--{flag}")), "--{flag} of {name} is missing");
        }
    }
    for key in &KEYS {
        assert!(page.contains(key.key.variable()), "{}", key.key);
    }
}
