//! Owns the rules that a compiler does not keep: imports run downwards, files say what they
//! are, SQL stays in the store, nothing unfinished and nothing private is checked in.
//!
//! Never: judges what code does. Every rule is shown to find a planted violation.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// Longest source file. Larger and nobody reads it in one go.
const LINES_MAX: usize = 1000;

/// Which rooms each room may use beside itself; architecture.md draws the same. A room that
/// is missing here is a complaint, so that a new one is decided on.
const ROOMS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("plan", &["model"]),
    ("store", &["model", "plan", SIDE]),
    ("agent", &["model", "plan", SIDE]),
    ("http", &["model", "plan", SIDE]),
    ("api", &["model", "plan", "store", "agent", "http", SIDE]),
    ("engine", &["model", "plan", "store", "agent", "http", "api", SIDE]),
    ("sim", &["model", "store", "agent", "http", SIDE]),
    ("cli", &["model", "plan", "store", "agent", "http", "api", "engine", "sim", SIDE]),
    ("clock", &["model", SIDE]),
    ("config", &["model", SIDE]),
    ("logging", &["model", SIDE]),
    ("figures", &[]),
    ("files", &[]),
];

/// Stands for the rooms beside the layers.
const SIDE: &str = "side rooms";
const SIDE_ROOMS: &[&str] = &["clock", "config", "figures", "files", "logging"];

/// One checked-in file.
struct File {
    /// From the top of the repository, with `/` between.
    path: String,
    text: String,
}

impl File {
    fn new(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn is_source(&self) -> bool {
        self.is_rust() && self.path.starts_with("src/")
    }

    /// The modules that lead to the file: `src/store/open.rs` is `store`, `open`.
    fn modules(&self) -> Vec<&str> {
        let inner = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        inner.split('/').filter(|part| *part != "mod").collect()
    }

    /// The text without the lines that are comments.
    fn code(&self) -> String {
        let is_code = |line: &&str| !line.trim_start().starts_with("//");
        self.text.lines().filter(is_code).map(|line| format!("{line}\n")).collect()
    }
}

/// Everything that is wrong with a file, a line each.
fn complaints(file: &File) -> Vec<String> {
    let rules: [fn(&File) -> Vec<String>; 7] =
        [layers, header, length, sql, unfinished, without_leave, private];
    rules.iter().flat_map(|rule| rule(file)).map(|what| format!("{}: {what}", file.path)).collect()
}

fn layers(file: &File) -> Vec<String> {
    if !file.is_source() {
        return Vec::new();
    }
    let modules = file.modules();
    let code = file.code();
    let used = match modules.as_slice() {
        ["lib" | "build"] => return Vec::new(),
        ["main"] => return not_allowed("main", &["cli"], roots(&code, "roost::")),
        _ => roots(&code, "crate::").into_iter().chain(above(&code, modules.len())).collect(),
    };
    let room = modules[0];
    match ROOMS.iter().find(|(name, _)| *name == room) {
        Some((_, allowed)) => not_allowed(room, allowed, used),
        None => vec![format!("{room} is no room of the architecture")],
    }
}

fn not_allowed(room: &str, allowed: &[&str], used: Vec<String>) -> Vec<String> {
    let may = |used: &str| {
        used == room
            || allowed.contains(&used)
            || allowed.contains(&SIDE) && SIDE_ROOMS.contains(&used)
    };
    let wrong = used.into_iter().filter(|used| !may(used));
    wrong.map(|used| format!("{room} must not use {used}")).collect()
}

/// What stands at the root of every path that begins with `start`, groups in braces
/// included.
fn roots(code: &str, start: &str) -> Vec<String> {
    let whole = |at: usize| !code[..at].ends_with(is_word);
    let places = code.match_indices(start).filter(|(at, _)| whole(*at));
    places.flat_map(|(at, _)| first_names(&code[at + start.len()..])).collect()
}

/// Paths that climb with `super::` to the root: `depth` steps lead there. Test modules
/// inside a file are one deeper and are left out.
fn above(code: &str, depth: usize) -> Vec<String> {
    let code = code.split("#[cfg(test)]").next().unwrap_or_default();
    roots(code, &"super::".repeat(depth))
}

fn first_names(rest: &str) -> Vec<String> {
    let Some(group) = rest.strip_prefix('{') else {
        return vec![rest.chars().take_while(|c| is_word(*c)).collect()];
    };
    let (mut depth, mut names, mut part) = (1, Vec::new(), String::new());
    for c in group.chars() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        if depth == 0 || depth == 1 && c == ',' {
            names.push(std::mem::take(&mut part));
        } else {
            part.push(c);
        }
        if depth == 0 {
            break;
        }
    }
    let first = |part: &String| part.trim().chars().take_while(|c| is_word(*c)).collect();
    names.iter().map(first).filter(|name: &String| !name.is_empty()).collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// A file of one line, such as a bench to come, says all it is itself.
fn header(file: &File) -> Vec<String> {
    if !file.is_rust() || file.text.lines().count() < 2 {
        return Vec::new();
    }
    let head: Vec<&str> = file.text.lines().take_while(|line| line.starts_with("//!")).collect();
    let head = head.join("\n");
    let mut wrong = Vec::new();
    if head.is_empty() {
        wrong.push("does not open with what it is for".to_owned());
    } else if file.is_source() {
        let missing = ["Owns", "Never"].into_iter().filter(|word| !head.contains(word));
        wrong.extend(missing.map(|word| format!("the head has no {word:?}")));
    }
    wrong
}

fn length(file: &File) -> Vec<String> {
    match file.text.lines().count() {
        lines if file.is_rust() && lines > LINES_MAX => vec![format!("has {lines} lines")],
        _ => Vec::new(),
    }
}

/// Words that begin a statement. In capitals followed by a space they are nothing else.
const SQL: &[&str] =
    &["SELECT ", "INSERT INTO ", "UPDATE ", "DELETE FROM ", "PRAGMA ", "CREATE TABLE "];

fn sql(file: &File) -> Vec<String> {
    if !file.is_source() || file.path.starts_with("src/store/") {
        return Vec::new();
    }
    // The command line says which SQLite it was built with.
    let code = match file.path.as_str() {
        "src/cli/mod.rs" => file.code().replace("rusqlite::version()", ""),
        _ => file.code(),
    };
    let named = ["rusqlite", "r2d2"].iter().chain(SQL).filter(|word| code.contains(**word));
    named.map(|word| format!("names {word:?}, which is the store's")).collect()
}

/// Words are put together here, or this file would complain of itself.
fn unfinished(file: &File) -> Vec<String> {
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("to", "do!")];
    let found = words.iter().filter(|word| file.text.contains(**word));
    found.map(|word| format!("says {word}")).collect()
}

/// The program's one call, and the tests that stand between SQLite and its files.
const WITH_LEAVE: &[&str] = &["src/main.rs", "tests/power/vfs.rs", "tests/simulation/disk.rs"];

fn without_leave(file: &File) -> Vec<String> {
    let word = concat!("un", "safe");
    if !file.is_rust() || WITH_LEAVE.contains(&file.path.as_str()) {
        return Vec::new();
    }
    match has_word(&file.code(), word) {
        true => vec![format!("has {word} code")],
        false => Vec::new(),
    }
}

fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        !text[..at].ends_with(is_word) && !text[at + word.len()..].starts_with(is_word)
    })
}

/// Directories of somebody's machine and hosts that packages come from.
fn private(file: &File) -> Vec<String> {
    let mut wrong = Vec::new();
    for home in ["home", "root", "work", "Users"] {
        let path = format!("/{home}/");
        let begins = |at: usize| !file.text[..at].ends_with(|c| is_word(c) || "./}~".contains(c));
        if file.text.match_indices(&path).any(|(at, _)| begins(at)) {
            wrong.push(format!("names a path of one machine under {path}"));
        }
    }
    let registries =
        [("crates", "io"), ("pypi", "org"), ("npmjs", "org"), ("docker", "io"), ("golang", "org")];
    // Cargo writes the public registry's name into its lock files, whatever was asked.
    let lock_file = file.path.ends_with("Cargo.lock");
    for host in registries.iter().map(|(name, end)| format!("{name}.{end}")) {
        if !lock_file && file.text.contains(&host) {
            wrong.push(format!("names the registry {host}"));
        }
    }
    let public = ["registry+https://github.com/rust-lang/", "crates", ".io-index"].concat();
    let source = |line: &&str| line.starts_with("source = ") && !line.contains(&public);
    if lock_file {
        wrong.extend(file.text.lines().filter(source).map(|line| format!("has {line}")));
    }
    wrong
}

/// Every text that is checked in; without git, every file but what a build leaves.
fn checked_in() -> Vec<File> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let listed = Command::new("git").arg("-C").arg(top).args(["ls-files", "-z"]).output();
    let listed = listed.ok().filter(|out| out.status.success() && !out.stdout.is_empty());
    let paths: Vec<PathBuf> = match listed {
        Some(out) => {
            let names = String::from_utf8(out.stdout).unwrap();
            names.split_terminator('\0').map(PathBuf::from).collect()
        }
        None => walk(top, Path::new("")),
    };
    // Some are removed and not yet committed, some are no text.
    let read = |path: &PathBuf| std::fs::read_to_string(top.join(path)).ok();
    paths.iter().filter_map(|path| Some(File::new(path.to_str()?, &read(path)?))).collect()
}

fn walk(top: &Path, under: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(top.join(under)).unwrap() {
        let entry = entry.unwrap();
        let path = under.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true if [".git", "target", "roost-data"].contains(&path.to_str().unwrap()) => {}
            true => found.extend(walk(top, &path)),
            false => found.push(path),
        }
    }
    found
}

#[test]
fn the_repository_is_tidy() {
    let files = checked_in();
    let sources = files.iter().filter(|file| file.is_source()).count();
    assert!(sources > 50, "only {sources} source files were found");
    let wrong: Vec<String> = files.iter().flat_map(complaints).collect();
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn every_source_file_is_found_without_git_too() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let walked = walk(top, Path::new("src"));
    let listed = checked_in();
    for file in listed.iter().filter(|file| file.is_source()) {
        assert!(walked.contains(&PathBuf::from(&file.path)), "{}", file.path);
    }
}

/// A file of this path and text, below a right head, has exactly these complaints.
fn check(path: &str, text: &str, expected: &[&str]) {
    let text = format!("//! Owns x.\n//!\n//! Never: y.\n\n{text}\n");
    let found = complaints(&File::new(path, &text));
    let expected: Vec<String> = expected.iter().map(|what| format!("{path}: {what}")).collect();
    assert_eq!(found, expected, "{text}");
}

#[test]
fn imports_that_run_upwards_or_sideways_are_found() {
    let upwards = [
        ("model", "plan"),
        ("plan", "store"),
        ("store", "api"),
        ("agent", "store"),
        ("http", "agent"),
        ("api", "engine"),
        ("engine", "cli"),
        ("engine", "sim"),
        ("sim", "engine"),
        ("sim", "plan"),
        ("model", "clock"),
        ("plan", "config"),
        ("clock", "store"),
        ("config", "http"),
    ];
    for (room, other) in upwards {
        let complaint = format!("{room} must not use {other}");
        let path = format!("src/{room}/some.rs");
        for import in [
            format!("use crate::{other}::Thing;"),
            format!("fn f() -> crate::{other}::Thing {{}}"),
            format!("use crate::{{{room}::{{a, b}}, {other}::{{c, d}}}};"),
            format!("use super::super::{other}::Thing;"),
        ] {
            check(&path, &import, &[&complaint]);
        }
        check(&format!("src/{room}/mod.rs"), &format!("use super::{other}::Thing;"), &[&complaint]);
        check(&format!("src/{room}.rs"), &format!("use super::{other};"), &[&complaint]);
    }
    check("src/main.rs", "use roost::store;", &["main must not use store"]);
    check("src/attic/some.rs", "", &["attic is no room of the architecture"]);
}

#[test]
fn imports_that_run_downwards_are_fine() {
    check("src/cli/x.rs", "use crate::{engine, sim::Fleet, model::id};", &[]);
    check("src/api/x.rs", "use crate::store::read;\nuse crate::clock::Clock;", &[]);
    check("src/sim/x.rs", "use super::agent::Answer;\nuse crate::agent::wire;", &[]);
    check("src/store/mod.rs", "#[cfg(test)]\nmod tests { use super::engine; }", &[]);
    check("src/model/x.rs", "// as crate::engine says\n/// See [`crate::cli`].", &[]);
    check("src/model/x.rs", "macro_rules! m { () => { $crate::model::id } }", &[]);
    check("src/main.rs", "use roost::cli::{self, args::Cli};", &[]);
}

#[test]
fn a_file_without_its_head_is_found() {
    let head = |text: &str| complaints(&File::new("src/plan/x.rs", text));
    let none = "src/plan/x.rs: does not open with what it is for";
    assert_eq!(head("use std::fmt;\nuse std::io;"), [none]);
    assert_eq!(head("\n//! Owns x. Never: y."), [none], "not in the first line");
    assert_eq!(head("//! Owns x.\n"), [] as [&str; 0]);
    assert_eq!(head("//! Owns x.\n\n"), ["src/plan/x.rs: the head has no \"Never\""]);
    assert_eq!(head("//! Never: y.\n\n"), ["src/plan/x.rs: the head has no \"Owns\""]);
    let test = complaints(&File::new("tests/x.rs", "use roost;\nfn f() {}"));
    assert_eq!(test, ["tests/x.rs: does not open with what it is for"]);
}

#[test]
fn other_violations_are_found() {
    let names = |word: &str| format!("names {word:?}, which is the store's");
    check("src/api/x.rs", "use rusqlite::Connection;", &[&names("rusqlite")]);
    check("src/cli/mod.rs", "rusqlite::version();", &[]);
    check("src/cli/look.rs", "rusqlite::version();", &[&names("rusqlite")]);
    check("src/engine/x.rs", "let q = \"SELECT 1\";", &[&names("SELECT ")]);
    check("src/store/x.rs", "use rusqlite::Connection; const Q: &str = \"SELECT 1\";", &[]);

    let later = ["TO", "DO"].concat();
    check("src/api/x.rs", &format!("// {later}: later"), &[&format!("says {later}")]);
    let later = ["to", "do!"].concat();
    check("tests/x.rs", &format!("{later}()"), &[&format!("says {later}")]);

    let bare = ["un", "safe"].concat();
    let complaint = format!("has {bare} code");
    check("src/api/x.rs", &format!("{bare} {{ f() }}"), &[&complaint]);
    check("tests/x.rs", &format!("{bare} {{ f() }}"), &[&complaint]);
    check("src/main.rs", &format!("{bare} {{ f() }}"), &[]);
    check("src/api/x.rs", &format!("#![deny({bare}_code)] // nothing {bare}"), &[&complaint]);
    check("src/api/x.rs", &format!("fn is_{bare}() {{}}\n// nothing {bare}"), &[]);

    check("src/api/x.rs", &"\n".repeat(LINES_MAX), &["has 1005 lines"]);

    let home = ["/ho", "me/"].concat();
    let complaint = format!("names a path of one machine under {home}");
    check("docs/x.md", &format!("see {home}me/roost"), &[&complaint]);
    check("docs/x.md", &format!("see https://example.org{home}me"), &[]);
    let host = ["crates", "io"].join(".");
    let complaint = format!("names the registry {host}");
    check("docs/x.md", &format!("from https://{host}/"), &[&complaint]);
    let source = "source = \"registry+https://mirror.example/index\"";
    check("Cargo.lock", source, &[&format!("has {source}")]);
}
