//! Owns the properties of any input at all in the normal test run: the same that `.ci/fuzz`
//! hunts for, over the corpora and over what proptest makes of them.
//!
//! Never: a property of its own.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../fuzz/properties/mod.rs"]
#[allow(unreachable_pub, reason = "the fuzz targets are other crates")]
mod properties;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use std::path::{Path, PathBuf};

/// One target's corpus or dictionary.
fn path(of: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(of).join(target)
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(path("corpus", target)).unwrap().map(|f| f.unwrap().path()).collect();
    // The directory's order is nobody's; a failing case must replay.
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// What one is likely to write, from the fuzzer's dictionary: a word in quotes a line.
fn words(target: &str) -> Vec<Vec<u8>> {
    let text = std::fs::read_to_string(path("dictionary", target)).unwrap();
    text.lines().map(|line| unquoted(line.strip_prefix('"').unwrap())).collect()
}

fn unquoted(mut rest: &str) -> Vec<u8> {
    let mut word = Vec::new();
    loop {
        let mut chars = rest.chars();
        match chars.next().unwrap() {
            '"' => return word,
            '\\' => match chars.next().unwrap() {
                'x' => {
                    word.push(u8::from_str_radix(&rest[2..4], 16).unwrap());
                    chars = rest[4..].chars();
                }
                c => word.push(c as u8),
            },
            c => word.push(c as u8),
        }
        rest = chars.as_str();
    }
}

/// One thing done to an input.
#[derive(Debug, Clone)]
enum Bend {
    Cut(Index, Index),
    Repeat(Index, Index),
    Put(Index, Vec<u8>),
    Over(Index, Vec<u8>),
}

fn bend(words: Vec<Vec<u8>>) -> impl Strategy<Value = Bend> {
    let place = any::<Index>;
    let word = prop_oneof![3 => select(words), 1 => prop::collection::vec(any::<u8>(), 1..4)];
    prop_oneof![
        (place(), place()).prop_map(|(a, b)| Bend::Cut(a, b)),
        (place(), place()).prop_map(|(a, b)| Bend::Repeat(a, b)),
        (place(), word.clone()).prop_map(|(at, word)| Bend::Put(at, word)),
        (place(), word).prop_map(|(at, word)| Bend::Over(at, word)),
    ]
}

fn bent(mut bytes: Vec<u8>, bends: &[Bend]) -> Vec<u8> {
    for bend in bends {
        let at = |index: &Index| index.index(bytes.len() + 1);
        let span = |a, b| at(a).min(at(b))..at(a).max(at(b));
        match bend {
            Bend::Cut(a, b) => drop(bytes.drain(span(a, b))),
            Bend::Repeat(a, b) => {
                let span = span(a, b);
                let piece = bytes[span.clone()].to_vec();
                bytes.splice(span.end..span.end, piece);
            }
            Bend::Put(index, word) => {
                let at = at(index);
                bytes.splice(at..at, word.iter().copied());
            }
            Bend::Over(index, word) => {
                let at = at(index);
                let end = (at + word.len()).min(bytes.len());
                bytes.splice(at..end, word.iter().copied());
            }
        }
    }
    bytes
}

/// Bytes that a failure shows as they would be written.
struct Input(Vec<u8>);

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

/// Holds a property over a target's corpus, and over `cases` inputs made of it.
fn check(target: &str, cases: u32, property: fn(&[u8])) {
    let corpus = corpus(target);
    assert!(corpus.len() > 4, "no corpus");
    corpus.iter().for_each(|bytes| property(bytes));
    let inputs = (select(corpus), prop::collection::vec(bend(words(target)), 1..5));
    let inputs = inputs.prop_map(|(bytes, bends)| Input(bent(bytes, &bends)));
    // What fails is printed shrunk, and goes into the corpus by hand under a name.
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(input in inputs)| property(&input.0));
}

#[test]
fn requests_are_where_the_grammar_says() {
    check("http", 2000, properties::http::holds);
}

#[test]
fn answers_of_agents_are_read_or_refused_and_no_announcement_is_lost() {
    check("listing", 2000, properties::listing::holds);
}

#[test]
fn ids_have_one_spelling() {
    check("id", 2000, properties::id::holds);
}

#[test]
fn a_database_printed_as_a_fixture_is_the_same_database() {
    check("fixture", 200, properties::fixture::holds);
}

#[test]
fn a_token_that_another_library_refuses_is_not_genuine() {
    check("token", 2000, properties::token::holds);
}

#[test]
fn settings_that_are_shown_are_accepted() {
    check("config", 500, properties::config::holds);
}
