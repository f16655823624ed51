//! Owns `roost keys`: create, list, revoke.
//!
//! Never: shows a key that was made before; nobody can.

use super::client::{PATIENCE, ServerClient};
use super::{print, said, word};
use crate::cli::args::{Keys, KeysCreate, KeysList, KeysRevoke};
use crate::cli::output::{Cell, Column, Exit, Failure, Screen, Table};
use crate::config::Config;
use serde_json::{Value, json};
use ureq::http::Method;

/// Lists what can be named.
const LIST: &str = "roost keys list";

/// Carries out one of the commands.
pub(in crate::cli) fn keys(config: &Config, command: &Keys) -> Result<Exit, Failure> {
    match command {
        Keys::Create(options) => create(config, options),
        Keys::List(options) => list(config, options),
        Keys::Revoke(options) => revoke(config, options),
    }
}

fn create(config: &Config, options: &KeysCreate) -> Result<Exit, Failure> {
    let server = ServerClient::of(config, &options.server);
    let mut body = json!({"name": options.name});
    if let Some(team) = options.team {
        body["team_id"] = json!(team.to_string());
    }
    let answer = server.ask(Method::POST, "/v1/api-keys", Some(&body), PATIENCE);
    let answer = answer.map_err(|e| e.to("create an API key", LIST))?;
    let made = &answer["api_key"];
    let text = format!(
        "id    {}\nname  {}\nteam  {}\nkey   {}\n\
         Keep the key in a safe place; it is not shown again.\n",
        said(made, "id"),
        said(made, "name"),
        said(made, "team_id"),
        said(&answer, "key"),
    );
    print(options.printing.format, &answer, &text).map(|()| Exit::Done)
}

fn list(config: &Config, options: &KeysList) -> Result<Exit, Failure> {
    let server = ServerClient::of(config, &options.server);
    let answer = server.ask(Method::GET, "/v1/api-keys", None, PATIENCE);
    let keys = answer.map_err(|e| e.to("list API keys", LIST))?;
    let mut table = Table::new(&[
        Column::id("KEY"),
        Column::other_id("TEAM").leaves(1),
        Column::time("CREATED").leaves(2),
        Column::time("LAST USED").leaves(3),
        Column::flexible("NAME"),
    ]);
    for key in keys.as_array().into_iter().flatten() {
        let last_used = key["last_used_at"].as_str().unwrap_or("never");
        table.row([
            Cell::from(word(key, "id")),
            Cell::from(word(key, "team_id")),
            Cell::from(word(key, "created_at")),
            Cell::from(last_used),
            Cell::from(word(key, "name")),
        ]);
    }
    let text = table.render(Screen::of_stdout());
    print(options.printing.format, &keys, &text).map(|()| Exit::Done)
}

fn revoke(config: &Config, options: &KeysRevoke) -> Result<Exit, Failure> {
    let server = ServerClient::of(config, &options.server);
    let path = format!("/v1/api-keys/{}", options.id);
    let answer = server.ask(Method::DELETE, &path, None, PATIENCE);
    let answer: Value = answer.map_err(|e| e.to(format!("revoke {}", options.id), LIST))?;
    let text = format!("{}  revoked\n", options.id);
    print(options.printing.format, &answer, &text).map(|()| Exit::Done)
}
