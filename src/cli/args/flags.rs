//! Owns the flags that are settings: one per key, made from the table of keys.
//!
//! Never: judges a value; that is left to `config`, so that a bad flag is refused in the
//! same words as a bad line in the file. Called by `args` for the commands' definitions.

use crate::config::{Key, Rule};
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, ValueHint};
use std::fmt;
use std::marker::PhantomData;

/// Which keys a command takes as flags.
pub trait KeySet {
    /// The keys, in the order of the help.
    const KEYS: &'static [Key];
    /// Whether every command takes them.
    const GLOBAL: bool = false;
}

/// The settings given as flags, as text.
pub struct Flags<S> {
    given: Vec<(Key, String)>,
    set: PhantomData<S>,
}

impl<S> Flags<S> {
    /// Key and text of each flag that was given.
    pub fn given(&self) -> &[(Key, String)] {
        &self.given
    }
}

impl<S> fmt::Debug for Flags<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.given.fmt(f)
    }
}

impl<S: KeySet> Args for Flags<S> {
    fn augment_args(command: Command) -> Command {
        S::KEYS.iter().fold(command, |command, key| command.arg(flag(*key, S::GLOBAL)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<S: KeySet> FromArgMatches for Flags<S> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let text = |key: &Key| matches.get_one::<String>(key.as_str()).cloned();
        let given = S::KEYS.iter().filter_map(|key| Some((*key, text(key)?)));
        Ok(Flags { given: given.collect(), set: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn flag(key: Key, global: bool) -> Arg {
    let rule = &key.info().rule;
    let hint = match rule {
        Rule::Path { .. } | Rule::OptionalPath { .. } => ValueHint::AnyPath,
        Rule::Address { .. }
        | Rule::Span { .. }
        | Rule::Count { .. }
        | Rule::Factor { .. }
        | Rule::Word { .. }
        | Rule::Networks { .. }
        | Rule::Filter { .. } => ValueHint::Other,
    };
    Arg::new(key.as_str())
        .long(key.flag())
        .value_name(rule.placeholder())
        .value_hint(hint)
        .global(global)
        .help(key.help())
        .help_heading(if global { "Global settings" } else { "Settings" })
}
