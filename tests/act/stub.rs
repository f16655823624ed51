//! Owns a stand-in for the API: a real HTTP server that gives the answers of a script and
//! writes down what it was asked.
//!
//! Never: decides anything. It stands for endpoints whose answers a real server gives only
//! at moments that a test cannot choose.

use crate::support::{Done, Home};
use roost::http::{Body, Handler, Request, Response, Server, ServerConfig};
use serde_json::Value;
use std::io::Read;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The answer to one method and path, its query included.
pub(crate) struct Says {
    pub(crate) to: &'static str,
    pub(crate) status: u16,
    pub(crate) body: Value,
}

struct Script {
    says: Vec<Says>,
    /// Events that the stream sends, before it stays open.
    events: Vec<Value>,
    asked: Mutex<Vec<String>>,
}

impl Handler for Script {
    fn handle(&self, request: Request) -> Response {
        let question = if request.query.is_empty() { "" } else { "?" };
        let line = format!("{} {}{question}{}", request.method, request.path, request.query);
        assert_eq!(request.headers.get("x-api-key"), Some("roost_key"), "{line}");
        let body = String::from_utf8(request.body).unwrap();
        self.asked.lock().unwrap().push(format!("{line} {body}").trim().to_owned());
        if request.path == "/v1/events" {
            return stream(&self.events);
        }
        match self.says.iter().find(|says| says.to == line) {
            Some(says) if says.body.is_null() => Response::empty(says.status),
            Some(says) => Response::json(says.status, says.body.to_string().into_bytes()),
            None => Response::error(404, "not_found", "no such thing"),
        }
    }
}

fn stream(events: &[Value]) -> Response {
    let data = |event: &Value| format!("id: {}\ndata: {event}\n\n", event["revision"]);
    let text: String = events.iter().map(data).collect();
    let body = Body::Stream(Box::new(move |out| {
        // Whoever has heard enough leaves.
        while out.write(text.as_bytes()).is_ok() && !out.is_stopping() {
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }));
    Response { status: 200, headers: vec![("content-type", "text/event-stream".to_owned())], body }
}

/// The stand-in; it ends when dropped.
pub(crate) struct Stub {
    home: Home,
    url: String,
    script: Arc<Script>,
    server: Option<Server>,
}

impl Stub {
    pub(crate) fn start(says: Vec<Says>, events: Vec<Value>) -> Stub {
        Stub::on(TcpListener::bind("127.0.0.1:0").unwrap(), says, events)
    }

    fn on(listener: TcpListener, says: Vec<Says>, events: Vec<Value>) -> Stub {
        let url = format!("http://{}", listener.local_addr().unwrap());
        let script = Arc::new(Script { says, events, asked: Mutex::default() });
        let server =
            Server::start(vec![listener], script.clone(), ServerConfig::default()).unwrap();
        Stub { home: Home::new(), url, script, server: Some(server) }
    }

    /// How a command ends whose first request is read and never answered.
    pub(crate) fn cut_first(says: Vec<Says>, args: &[&str]) -> (Stub, Done) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let home = Home::new();
        let mut command = found(&home, &url, args);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (mut first, _) = listener.accept().unwrap();
        assert!(first.read(&mut [0; 16]).unwrap() > 0);
        drop(first);
        let stub = Stub::on(listener, says, Vec::new());
        (stub, Done::of(child.wait_with_output().unwrap()))
    }

    /// `roost` that finds this server and its key.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        found(&self.home, &self.url, args)
    }

    pub(crate) fn roost(&self, args: &[&str]) -> Done {
        Done::of(self.command(args).output().unwrap())
    }

    /// What was asked since the last time somebody looked.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.script.asked.lock().unwrap())
    }
}

fn found(home: &Home, url: &str, args: &[&str]) -> Command {
    let mut command = home.command(args);
    command.env("ROOST_URL", url).env("ROOST_API_KEY", "roost_key");
    command
}

impl Drop for Stub {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown(Duration::from_secs(5));
        }
    }
}
