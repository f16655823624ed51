//! Owns `roost notify` and `roost hosts maintenance`.
//!
//! Never: shows where a target is.

use super::client::{PATIENCE, ServerClient};
use super::{print, said};
use crate::cli::args::{HostsMaintenance, Notify, NotifyCommand, NotifyShow};
use crate::cli::output::{Exit, Failure};
use crate::config::Config;
use serde_json::{Value, json};
use std::time::Duration;
use ureq::http::Method;

/// How long a test may take: longer than the deadline of a message.
const TEST_PATIENCE: Duration = Duration::from_secs(30);

/// Shows, or tests.
pub(in crate::cli) fn notify(config: &Config, options: &Notify) -> Result<Exit, Failure> {
    match &options.command {
        None => show(config, &options.show),
        Some(NotifyCommand::Show(options)) => show(config, options),
        Some(NotifyCommand::Test(options)) => test(config, options),
    }
}

fn show(config: &Config, options: &NotifyShow) -> Result<Exit, Failure> {
    let server = ServerClient::of(config, &options.server);
    let answer = server.ask(Method::GET, "/v1/notifications", None, PATIENCE);
    let answer = answer.map_err(|e| e.to("show notifications", "roost notify"))?;
    let mut text = String::new();
    for problem in list(&answer["problems"]) {
        let state = match (&problem["over"], &problem["announced"]) {
            (Value::Bool(true), _) => "over",
            (_, Value::Bool(true)) => "announced",
            (_, _) => "not yet announced",
        };
        let host = said(problem, "host_id");
        let on = if host.is_empty() { "all hosts" } else { &host };
        let (kind, since) = (said(problem, "kind"), said(problem, "since"));
        text += &format!("problem  {kind}  {on}  since {since}  {state}\n");
    }
    for target in list(&answer["targets"]) {
        let (name, kind) = (said(target, "name"), said(target, "kind"));
        let [sent, waiting] = ["sent", "waiting"].map(|name| target[name].as_u64().unwrap_or(0));
        let error = said(target, "error");
        let trouble = if error.is_empty() { String::new() } else { format!("; {error}") };
        text += &format!("target   {name} ({kind})  {sent} sent, {waiting} waiting{trouble}\n");
    }
    if list(&answer["targets"]).is_empty() {
        text += "nobody is told: roost.toml has no [[notify]]\n";
    }
    print(options.printing.format, &answer, &text).map(|()| Exit::Done)
}

fn test(config: &Config, options: &NotifyShow) -> Result<Exit, Failure> {
    let server = ServerClient::of(config, &options.server);
    let answer = server.ask(Method::POST, "/v1/notifications/test", None, TEST_PATIENCE);
    let answer = answer.map_err(|e| e.to("test notifications", "roost notify"))?;
    let tested = list(&answer);
    if tested.is_empty() {
        return Err(Failure::new("could not test notifications")
            .because("there is no target")
            .advise("add a [[notify]] section to roost.toml and send SIGHUP"));
    }
    let mut text = String::new();
    for target in tested {
        let (name, kind) = (said(target, "name"), said(target, "kind"));
        let outcome = if target["ok"] == json!(true) { "sent" } else { &said(target, "error") };
        text += &format!("{name} ({kind})  {outcome}\n");
    }
    print(options.printing.format, &answer, &text)?;
    let all = tested.iter().all(|target| target["ok"] == json!(true));
    Ok(if all { Exit::Done } else { Exit::Failed })
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Begins or ends the maintenance of a host.
pub(in crate::cli) fn maintain(
    config: &Config,
    options: &HostsMaintenance,
) -> Result<Exit, Failure> {
    let host = &options.host;
    let server = ServerClient::of(config, &host.server);
    let path = format!("/v1/hosts/{}/maintenance", host.id);
    let answer = match options.for_span {
        Some(span) => {
            let body = json!({"for_s": span.as_secs(), "reason": options.reason});
            server.ask(Method::POST, &path, Some(&body), PATIENCE)
        }
        None => server.ask(Method::DELETE, &path, None, PATIENCE),
    };
    let answer = answer.map_err(|e| e.to(format!("maintain {}", host.id), "roost hosts"))?;
    let until = said(&answer, "maintenance_until");
    let text = match until.is_empty() {
        true => format!("{}  in maintenance no more\n", host.id),
        false => format!("{}  in maintenance until {until}\n", host.id),
    };
    print(host.printing.format, &answer, &text).map(|()| Exit::Done)
}
