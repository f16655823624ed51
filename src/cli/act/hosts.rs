//! Owns the commands that act on one host: `roost hosts add`, `token`, `drain`, `undrain`,
//! `offline`, `rm`, and `roost probe`.
//!
//! Never: deletes a host with sandboxes unless somebody said yes.

use super::client::{AGENT_PATIENCE, PATIENCE, ServerClient, Trouble};
use super::{print, said, word};
use crate::cli::args::{Format, HostsAdd, HostsRm, OneHost};
use crate::cli::output::{Exit, Failure};
use crate::config::Config;
use crate::logging::one_line;
use crate::model::host::Intent;
use crate::model::id::HostId;
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use ureq::http::Method;

/// Lists what can be named.
const LIST: &str = "roost hosts";

/// Creates a host.
pub(in crate::cli) fn add_host(config: &Config, options: &HostsAdd) -> Result<Exit, Failure> {
    let server = ServerClient::of(config, &options.server);
    let mut body = json!({});
    let fields = [
        ("type", &options.host_type),
        ("provider", &options.provider),
        ("availability_zone", &options.availability_zone),
    ];
    for (name, value) in fields {
        if let Some(value) = value {
            body[name] = json!(value);
        }
    }
    let answer = server.post("add a host", "/v1/hosts", &body)?;
    show_token(&answer, options.printing.format)
}

/// Makes a registration token.
pub(in crate::cli) fn new_token(config: &Config, options: &OneHost) -> Result<Exit, Failure> {
    let server = ServerClient::of(config, &options.server);
    let path = format!("/v1/hosts/{}/token", options.id);
    let answer = server.ask(Method::POST, &path, None, PATIENCE);
    let what = format!("make a registration token for {}", options.id);
    show_token(&answer.map_err(|e| e.to(what, LIST))?, options.printing.format)
}

fn show_token(answer: &Value, format: Format) -> Result<Exit, Failure> {
    let text = format!(
        "host                {}\nregistration token  {}\n\
         Give the token to the host's agent within the hour; it is not shown again.\n",
        said(&answer["host"], "id"),
        said(answer, "registration_token"),
    );
    print(format, answer, &text).map(|()| Exit::Done)
}

/// Drains a host, takes it back, or sets it aside.
pub(in crate::cli) fn set_intent(
    config: &Config,
    intent: Intent,
    options: &OneHost,
) -> Result<Exit, Failure> {
    let verb = match intent {
        Intent::Draining => "drain",
        Intent::Active => "undrain",
        Intent::Offline => "offline",
    };
    let what = match intent {
        Intent::Draining | Intent::Active => format!("{verb} {}", options.id),
        Intent::Offline => format!("set {} offline", options.id),
    };
    let server = ServerClient::of(config, &options.server);
    let path = format!("/v1/hosts/{}/{verb}", options.id);
    let answer = server.ask(Method::POST, &path, None, PATIENCE);
    let host = answer.map_err(|e| e.to(what, LIST))?;
    let text = format!("{}  {}\n", named(&host), said(&host, "status"));
    print(options.printing.format, &host, &text).map(|()| Exit::Done)
}

/// Asks a host's agent now and tells what it says; failed when that is no listing.
pub(in crate::cli) fn probe(config: &Config, options: &OneHost) -> Result<Exit, Failure> {
    let server = ServerClient::of(config, &options.server);
    let path = format!("/v1/hosts/{}/probe", options.id);
    let answer = server.ask(Method::POST, &path, None, AGENT_PATIENCE);
    let answer = answer.map_err(|e| e.to(format!("probe {}", options.id), LIST))?;
    let (outcome, took) = (word(&answer, "outcome"), answer["took_ms"].as_u64());
    let took = took.map(|ms| format!(" in {ms} ms")).unwrap_or_default();
    let (said, exit) = match outcome {
        "observation" => {
            let count = answer["sandboxes"].as_u64().unwrap_or(0);
            (format!("listed {}{took}", sandboxes(count)), Exit::Done)
        }
        outcome => {
            let detail = word(&answer, "detail");
            let colon = if detail.is_empty() { "" } else { ": " };
            (format!("no listing{took} ({outcome}{colon}{detail})"), Exit::Failed)
        }
    };
    let text = one_line(&format!("{}  {said}", options.id));
    print(options.printing.format, &answer, &format!("{text}\n")).map(|()| exit)
}

fn sandboxes(count: u64) -> String {
    match count {
        1 => "1 sandbox".to_owned(),
        count => format!("{count} sandboxes"),
    }
}

/// Deletes a host; with its sandboxes only by force, and only after a yes.
pub(in crate::cli) fn delete_host(config: &Config, options: &HostsRm) -> Result<Exit, Failure> {
    let (id, format) = (options.host.id, options.host.printing.format);
    let server = ServerClient::of(config, &options.host.server);
    if options.force && !options.yes {
        confirm(&server, id)?;
    }
    let query = if options.force { "?force=true" } else { "" };
    let answer =
        server.ask(Method::DELETE, &format!("/v1/hosts/{id}{query}"), None, AGENT_PATIENCE);
    match answer {
        Ok(answer) => print(format, &answer, &format!("{id}  deleted\n")).map(|()| Exit::Done),
        Err(Trouble::Refused(409, error)) if word(&error, "code") == "has_active_sandboxes" => {
            let ids = ids(&error);
            let lines: String = ids.iter().map(|id| format!("{id}\n")).collect();
            print(format, &json!({"error": error}), &lines)?;
            Err(not_deleted(id)
                .because(format!("it has {}", sandboxes(ids.len() as u64)))
                .advise("destroy them first, or delete it together with them: --force"))
        }
        Err(trouble) => Err(trouble.to(format!("delete {id}"), LIST)),
    }
}

/// A host as people know it.
fn named(host: &Value) -> String {
    match (said(host, "id"), said(host, "address")) {
        (id, address) if address.is_empty() => id,
        (id, address) => format!("{id} ({address})"),
    }
}

fn not_deleted(id: HostId) -> Failure {
    Failure::new(format!("could not delete {id}"))
}

fn ids(value: &Value) -> Vec<String> {
    value["sandbox_ids"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(one_line)
        .collect()
}

/// Shows what goes with a host and asks; whoever does not say yes means no.
fn confirm(server: &ServerClient, id: HostId) -> Result<(), Failure> {
    if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
        return Err(not_deleted(id)
            .because("--force asks first, and nobody is there to answer")
            .advise("add --yes")
            .exit_with(Exit::Usage));
    }
    let path = format!("/v1/hosts/{id}/delete-preview");
    let preview = server.ask(Method::GET, &path, None, PATIENCE);
    let preview = preview.map_err(|e| e.to(format!("delete {id}"), LIST))?;
    let ids = ids(&preview);
    let mut question: String = ids.iter().map(|id| format!("{id}\n")).collect();
    question += &format!(
        "Delete {} ({}) and {}? What runs there is lost. [y/N] ",
        named(&preview["host"]),
        said(&preview["host"], "status"),
        sandboxes(ids.len() as u64),
    );
    let cause = |e: std::io::Error| not_deleted(id).because(e);
    std::io::stderr().write_all(question.as_bytes()).map_err(cause)?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(cause)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(not_deleted(id).because("nobody said yes")),
    }
}
