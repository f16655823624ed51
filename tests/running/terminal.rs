//! Owns what people see on a real terminal: lines that fit, colour that can be refused,
//! progress that goes away, help and a manual page with everything.
//!
//! Never: takes a pipe for a terminal.

use crate::support::{Done, Home, PATIENCE, host, sandbox};
use crate::{program, skipped};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::json;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Instant;

/// A terminal of so many columns; the side that people sit at.
struct Terminal {
    people: File,
    programs: File,
}

impl Terminal {
    fn new(columns: u16) -> Terminal {
        let people = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&people).unwrap();
        unlockpt(&people).unwrap();
        let name = ptsname(&people, Vec::new()).unwrap().into_string().unwrap();
        let programs = File::options().read(true).write(true).open(name).unwrap();
        let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&programs, size).unwrap();
        Terminal { people: File::from(people), programs }
    }

    fn side(&self) -> File {
        self.programs.try_clone().unwrap()
    }

    /// Everything that was written, once nobody holds the other side any more.
    fn seen(self) -> String {
        drop(self.programs);
        let mut seen = Vec::new();
        let mut people = self.people;
        let mut bytes = [0; 4096];
        let until = Instant::now() + PATIENCE;
        // The end of a terminal is an error.
        while let Ok(length @ 1..) = people.read(&mut bytes) {
            seen.extend_from_slice(&bytes[..length]);
            assert!(Instant::now() < until);
        }
        String::from_utf8(seen).unwrap().replace("\r\n", "\n")
    }
}

/// What a command shows on a terminal.
fn shown(home: &Home, args: &[&str], columns: u16, variables: &[(&str, &str)]) -> String {
    let terminal = Terminal::new(columns);
    let mut command = home.command(args);
    command.env("TERM", "xterm").envs(variables.iter().copied());
    command.stdout(terminal.side()).stderr(terminal.side());
    let mut child = command.spawn().unwrap();
    drop(command);
    let seen = terminal.seen();
    assert!(child.wait().unwrap().success(), "{seen}");
    seen
}

fn without_colour(text: &str) -> String {
    let mut plain = String::new();
    let mut parts = text.split('\x1b');
    plain.push_str(parts.next().unwrap());
    for part in parts {
        plain.push_str(part.split_once('m').unwrap().1);
    }
    plain
}

/// Two hosts, one of them in trouble, sandboxes and a history.
fn home() -> Home {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    drop(silent);
    let home = Home::with(&json!({
        "hosts": [
            {"id": host(1), "status": "online", "heartbeat_age_s": 5, "address": address},
            {"id": host(2), "status": "online", "heartbeat_age_s": 500, "address": "[fd00:1:2:3:4:5:6:7]:50051"},
        ],
        "sandboxes": [
            {"id": sandbox(1), "host_id": host(1), "status": "running"},
            {"id": sandbox(2), "host_id": host(2), "status": "running"},
        ],
    }));
    home.roost(&["check", "--mass-guard-max", "0s"]);
    home.roost(&["check"]).ok();
    home
}

const LOOKING: &[&[&str]] = &[&["hosts"], &["sandboxes"], &["events"], &["audit"], &["status"]];

#[test]
fn lines_fit_the_terminal() {
    let home = home();
    for args in LOOKING {
        for columns in [120, 80, 40, 20] {
            let seen = shown(&home, args, columns, &[]);
            let plain = without_colour(&seen);
            assert!(plain.lines().count() > 1, "{args:?}: {plain}");
            for line in plain.lines() {
                let width = line.chars().count();
                assert!(width <= usize::from(columns), "{args:?} at {columns}: {line:?}\n{plain}");
            }
        }
    }
}

#[test]
fn what_matters_stays() {
    let home = home();
    let seen = |args: &[&str], columns| without_colour(&shown(&home, args, columns, &[]));
    let hosts = seen(&["hosts"], 80);
    assert!(hosts.contains(&host(1)) && hosts.contains("unreachable"), "{hosts}");
    assert!(hosts.lines().next().unwrap().contains("HEARD"), "{hosts}");
    let hosts = seen(&["hosts"], 40);
    assert!(hosts.contains("unreachable") && hosts.contains("000002"), "{hosts}");
    let sandboxes = seen(&["sandboxes"], 40);
    assert!(sandboxes.contains(&sandbox(2)) && sandboxes.contains("running"), "{sandboxes}");
    let events = seen(&["events"], 40);
    assert!(events.contains("unreachable"), "{events}");
    let audit = seen(&["audit"], 80);
    assert!(audit.lines().next().unwrap().contains("ACTION"), "{audit}");
    let status = seen(&["status"], 40);
    assert!(status.contains("not running"), "{status}");
}

#[test]
fn elsewhere_nothing_is_cut() {
    let home = home();
    for args in LOOKING {
        let text = home.roost(args).ok();
        assert!(!text.contains(['…', '\x1b']), "{text}");
    }
    let text = home.roost(&["hosts"]).ok();
    assert!(text.contains("[fd00:1:2:3:4:5:6:7]:50051") && text.contains("NOTE"), "{text}");
}

#[test]
fn colour_can_be_refused() {
    let home = home();
    for args in [&["hosts"][..], &["sandboxes"]] {
        assert!(shown(&home, args, 80, &[]).contains("\x1b["), "{args:?}");
        for refusal in [("NO_COLOR", "1"), ("TERM", "dumb")] {
            let seen = shown(&home, args, 80, &[refusal]);
            assert!(!seen.contains('\x1b'), "{args:?} {refusal:?}: {seen}");
        }
    }
    // The log too: a start that fails after its first warning.
    let log = |variables: &[(&str, &str)]| {
        let terminal = Terminal::new(80);
        let mut command = home.command(&["serve", "--listen", "203.0.113.9:1"]);
        command.env("TERM", "xterm").envs(variables.iter().copied());
        command.stdout(Stdio::null()).stderr(terminal.side());
        let mut child = command.spawn().unwrap();
        drop(command);
        let seen = terminal.seen();
        assert_eq!(child.wait().unwrap().code(), Some(1), "{seen}");
        seen
    };
    assert!(log(&[]).contains("\x1b[33mWARN"), "{}", log(&[]));
    for refusal in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let seen = log(&[refusal]);
        assert!(seen.contains("WARN") && !seen.contains('\x1b'), "{refusal:?}: {seen}");
    }
}

/// A command with a terminal for its stderr, or none; what was seen there.
fn progress(mut command: Command, terminal: Option<Terminal>, wait: impl FnOnce()) -> String {
    command.env("TERM", "xterm").stdout(Stdio::null());
    match &terminal {
        Some(terminal) => command.stderr(terminal.side()),
        None => command.stderr(Stdio::piped()),
    };
    let child = command.spawn().unwrap();
    drop(command);
    let people = std::thread::spawn(move || terminal.map(Terminal::seen));
    wait();
    let done = Done::of(child.wait_with_output().unwrap());
    assert_eq!(done.code, 0, "{done:?}");
    people.join().unwrap().unwrap_or(done.stderr)
}

#[test]
fn a_long_pass_shows_how_far_it_is() {
    // Accepts by way of its backlog, and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let home = Home::with(&json!({"sandboxes": [], "hosts": [
        {"id": host(1), "status": "online", "heartbeat_age_s": 5, "address": address}]}));
    let check = || home.command(&["check", "--dry-run", "--probe-timeout", "2s"]);
    let seen = progress(check(), Some(Terminal::new(80)), || {});
    assert!(seen.contains("checking: 0 of 1 hosts, 0s\r"), "{seen:?}");
    assert!(seen.ends_with("\r\x1b[K\r"), "it goes away: {seen:?}");
    assert_eq!(progress(check(), None, || {}), "", "nobody looks");
    let narrow = progress(check(), Some(Terminal::new(12)), || {});
    let shown = narrow.split("\x1b[K").map(|text| text.trim_end_matches('\r').chars().count());
    assert!(shown.max() <= Some(11), "{narrow:?}");
}

#[test]
fn a_load_that_waits_shows_that_it_goes_on() {
    let home = Home::new();
    home.roost(&["db", "init"]).ok();
    home.write("fleet.json", &json!({"hosts": [], "sandboxes": []}).to_string());
    let fleet = home.path("fleet.json");
    let lock = rusqlite::Connection::open(home.path("roost.db")).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    let load = home.command(&["db", "load", fleet.to_str().unwrap()]);
    let seen = progress(load, Some(Terminal::new(80)), || {
        // Long enough for the line, not for the patience of the command.
        std::thread::sleep(std::time::Duration::from_secs(2));
        drop(lock);
    });
    assert!(seen.contains("loading, "), "{seen:?}");
}

/// The commands that the help of `args` names.
fn commands(home: &Home, args: &[String]) -> (String, Vec<String>) {
    let args: Vec<&str> = args.iter().map(String::as_str).chain(["--help"]).collect();
    let help = home.roost(&args).ok();
    let list = help.split("\nCommands:\n").nth(1).unwrap_or_default();
    let list = list.lines().take_while(|line| !line.is_empty());
    let names = list.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = names.filter_map(|line| line.split_whitespace().next());
    let names = names.filter(|name| *name != "help").map(str::to_owned).collect();
    (help, names)
}

#[test]
fn every_help_has_examples_and_the_first_has_exit_codes() {
    let home = Home::new();
    let mut waiting = vec![Vec::<String>::new()];
    let mut seen = 0;
    while let Some(args) = waiting.pop() {
        let (help, names) = commands(&home, &args);
        let examples = help.lines().filter(|line| line.starts_with("  roost ")).count();
        assert!(examples > 0, "{args:?}: {help}");
        if args.is_empty() {
            for code in ["Exit codes:", "  0  ", "  1  ", "  2  ", "  3  "] {
                assert!(help.contains(code), "{code}: {help}");
            }
        }
        seen += 1;
        waiting.extend(names.into_iter().map(|name| [args.clone(), vec![name]].concat()));
    }
    assert!(seen > 30, "only {seen} commands");
}

#[test]
fn the_manual_page_is_well_made() {
    let page = Home::new().roost(&["man"]).ok();
    let Some(mandoc) = program("mandoc") else { return skipped("no mandoc") };
    let lint = |page: &str| {
        let mut lint = Command::new(&mandoc);
        lint.args(["-Tlint", "-W", "warning"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut lint = lint.spawn().unwrap();
        lint.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
        String::from_utf8(lint.wait_with_output().unwrap().stdout).unwrap()
    };
    assert_eq!(lint(&page), "");
    assert_ne!(lint(&page.replace(".SH", ".XX")), "", "mandoc looks");
}
