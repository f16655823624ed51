//! Owns the commands that act: they ask the running server. A family of commands has a
//! file of its own below.
//!
//! Never: writes to the database itself; prints a key that the server did not just make.

mod client;
mod follow;
mod hosts;
mod keys;
mod notify;
mod sandboxes;
mod templates;

pub(super) use client::{ServerClient, reachable};
pub(super) use hosts::{add_host, delete_host, new_token, probe, set_intent};
pub(super) use keys::keys;
pub(super) use notify::{maintain, notify};
pub(super) use sandboxes::{adopt, create_sandbox, operate};
pub(super) use templates::{add_template, create_snapshot, delete_snapshot, forget_template};

use super::args::Format;
use super::output::{Failure, Out};
use crate::logging::one_line;
use serde_json::Value;

/// What the API answered, or what people are told of it.
fn print(format: Format, answer: &Value, text: &str) -> Result<(), Failure> {
    let mut out = Out::stdout();
    match format {
        Format::Json if answer.is_null() => {}
        Format::Json => out.json(answer)?,
        Format::Text => out.lines(text)?,
    }
    out.finish()
}

/// A field that is a string, to be shown: of what a server says nothing ends the line.
fn said(value: &Value, name: &str) -> String {
    one_line(word(value, name))
}

/// A field that is a string; empty when it is none.
fn word<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}
