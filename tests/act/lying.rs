//! Owns what a terminal gets to see of a server that lies: nothing that it would obey, in
//! text, JSON and errors, and no line more than there is to say.
//!
//! Never: judges what is said.

use crate::support::{Done, Home, host, sandbox};
use roost::http::{Handler, Request, Response, Server, ServerConfig};
use roost::logging::is_unsafe;
use serde_json::{Value, json};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

/// Cursor and colours, C0, C1, delete, both directions of reading, and a line of its own.
const EVIL: &str =
    "x\u{1b}[2J\u{1b}[31m\u{7}\u{7f}\u{9b}1m\u{61c}\u{200e}\u{200f}\u{202e}\u{2066}\r\nforged";

/// Says it in every field, with this status.
struct Liar(u16);

impl Handler for Liar {
    fn handle(&self, request: Request) -> Response {
        let body = if self.0 < 300 { answer(&request.path) } else { refusal() };
        Response::json(self.0, body.to_string().into_bytes())
    }
}

fn answer(path: &str) -> Value {
    let fields = [
        "name",
        "status",
        "host_id",
        "team_id",
        "registration_token",
        "key",
        "outcome",
        "detail",
        "kind",
        "since",
        "error",
        "maintenance_until",
        "created_at",
        "last_used_at",
        "as_of",
    ];
    let mut all = json!({"id": EVIL, EVIL: EVIL});
    fields.into_iter().for_each(|field| all[field] = json!(EVIL));
    all["host"] = all.clone();
    all["api_key"] = all["host"].clone();
    all["problems"] = json!([all["host"]]);
    all["targets"] = json!([all["host"]]);
    all["sandbox_ids"] = json!([EVIL]);
    match path {
        "/v1/api-keys" | "/v1/notifications/test" => json!([all]),
        _ => all,
    }
}

fn refusal() -> Value {
    json!({"error": {"code": EVIL, "message": EVIL, "sandbox_ids": [EVIL]}})
}

fn says(status: u16, args: &[&str]) -> Done {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server =
        Server::start(vec![listener], Arc::new(Liar(status)), ServerConfig::default()).unwrap();
    let home = Home::new();
    let mut command = home.command(args);
    command.env("ROOST_URL", url).env("ROOST_API_KEY", "roost_key");
    let done = Done::of(command.output().unwrap());
    server.shutdown(Duration::from_secs(5));
    done
}

#[test]
fn nothing_that_a_server_says_moves_the_cursor() {
    let (host, sandbox) = (host(1), sandbox(1));
    let commands: &[&[&str]] = &[
        &["hosts", "add"],
        &["hosts", "token", &host],
        &["hosts", "drain", &host],
        &["hosts", "offline", &host],
        &["hosts", "probe", &host],
        &["hosts", "rm", &host, "--force", "--yes"],
        &["hosts", "maintenance", &host, "--for", "1h"],
        &["sandboxes", "create"],
        &["sandboxes", "pause", &sandbox],
        &["sandboxes", "resume", &sandbox],
        &["sandboxes", "destroy", &sandbox],
        &["sandboxes", "adopt", &sandbox],
        &["snapshots", "create", &sandbox],
        &["templates", "add", "one"],
        &["templates", "rm", "one"],
        &["keys", "create", "one"],
        &["keys", "list"],
        &["notify", "show"],
        &["notify", "test"],
        &["health"],
    ];
    for command in commands {
        for status in [200, 201, 400, 409, 503] {
            for format in ["text", "json"] {
                let args = [command, &["--format", format][..]].concat();
                let done = says(status, &args);
                let all = format!("{}{}", done.stdout, done.stderr);
                let seen = all.replace('\n', "");
                assert!(!seen.contains(is_unsafe), "{args:?} {status}: {all:?}");
                assert!(!all.lines().any(|line| line.starts_with("forged")), "{args:?}: {all}");
                assert!(!all.contains("unexpected argument"), "{args:?}: {all}");
                if format == "json" && !done.stdout.is_empty() {
                    done.stdout.lines().for_each(|line| {
                        serde_json::from_str::<Value>(line).unwrap();
                    });
                }
            }
        }
    }
}
