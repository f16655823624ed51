//! Owns the commands that act, and the way to the running server.
//!
//! Never: writes to the database itself; prints a key.

use super::args::{Format, HostsAdd, OneHost, Server};
use super::output::{Exit, Failure, Out};
use crate::api::secret;
use crate::config::Config;
use serde_json::{Value, json};
use std::time::Duration;

/// How long the server may take. It answers at once or is not there.
const PATIENCE: Duration = Duration::from_secs(15);

/// Largest answer that is read: a listing of a large fleet.
const ANSWER_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// The running server, as a client sees it.
pub(super) struct ServerClient {
    base: String,
    key: Option<String>,
    http: ureq::Agent,
}

/// What the server answered.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

impl ServerClient {
    /// The server that the options, the environment or the configuration name.
    pub(super) fn of(config: &Config, server: &Server) -> ServerClient {
        let base = server.url().unwrap_or_else(|| format!("http://{}", reachable(config)));
        let key = server.api_key().or_else(|| secret::read(&config.paths().admin_key).ok());
        ServerClient::at(base, key)
    }

    /// The server at this URL.
    pub(super) fn at(base: String, key: Option<String>) -> ServerClient {
        let http = ureq::Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .build()
            .new_agent();
        ServerClient { base: base.trim_end_matches('/').to_owned(), key, http }
    }

    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// Asks without a body.
    pub(super) fn get(&self, path: &str) -> Result<Answer, ureq::Error> {
        let mut request = self.http.get(format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.header("X-API-Key", key);
        }
        read(request.call()?)
    }

    /// Sends JSON; anything but 2xx is a failure with the server's own words.
    pub(super) fn post(&self, what: &str, path: &str, body: &Value) -> Result<Value, Failure> {
        let fail = || Failure::new(format!("could not {what}"));
        let Some(key) = &self.key else {
            return Err(fail()
                .because("no API key")
                .advise("set ROOST_API_KEY, or name the server's data directory with --data-dir"));
        };
        let request = self.http.post(format!("{}{path}", self.base)).header("X-API-Key", key);
        let request = request.header("Content-Type", "application/json");
        let answer = request.send(body.to_string().as_bytes()).and_then(read).map_err(|e| {
            fail()
                .because(format!("{}: {e}", self.base))
                .advise("start `roost serve`, or set ROOST_URL")
        })?;
        let value: Value = serde_json::from_str(&answer.body).unwrap_or(Value::Null);
        match answer.status {
            200..=299 => Ok(value),
            status => {
                let words = value["error"]["message"].as_str().map(str::to_owned);
                Err(fail()
                    .because(words.unwrap_or_else(|| format!("the server answered {status}"))))
            }
        }
    }
}

fn read(response: ureq::http::Response<ureq::Body>) -> Result<Answer, ureq::Error> {
    let status = response.status().as_u16();
    let body = response.into_body().into_with_config().limit(ANSWER_BYTES_MAX).read_to_string()?;
    Ok(Answer { status, body })
}

/// A server that listens everywhere is reached on this machine.
pub(super) fn reachable(config: &Config) -> std::net::SocketAddr {
    let mut address = config.listen;
    if address.ip().is_unspecified() {
        let local: std::net::IpAddr = match address {
            std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        };
        address.set_ip(local);
    }
    address
}

pub(super) fn add_host(config: &Config, options: &HostsAdd) -> Result<Exit, Failure> {
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

pub(super) fn new_token(config: &Config, options: &OneHost) -> Result<Exit, Failure> {
    let server = ServerClient::of(config, &options.server);
    let path = format!("/v1/hosts/{}/token", options.id);
    let answer = server.post("make a registration token", &path, &json!({}))?;
    show_token(&answer, options.printing.format)
}

fn show_token(answer: &Value, format: Format) -> Result<Exit, Failure> {
    let mut out = Out::stdout();
    match format {
        Format::Json => out.json(answer)?,
        Format::Text => {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            out.line(&format!("host                {}", text(&answer["host"]["id"])))?;
            out.line(&format!("registration token  {}", text(&answer["registration_token"])))?;
            out.line("Give the token to the host's agent within the hour; it is not shown again.")?;
        }
    }
    out.finish().map(|()| Exit::Done)
}
