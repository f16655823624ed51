//! Owns the commands that act, and the way to the running server.
//!
//! Never: writes to the database itself; prints a key.

use super::args::{Format, HostsAdd, OneHost, Server};
use super::output::{Exit, Failure, Out};
use crate::agent::transport::{Connect, words};
use crate::api::secret;
use crate::config::{API_KEY_FILE_VARIABLE, Config};
use crate::http::trust_in;
use serde_json::{Value, json};
use std::time::Duration;
use ureq::unversioned::resolver::DefaultResolver;

/// How long the server may take. It answers at once or is not there.
const PATIENCE: Duration = Duration::from_secs(15);

/// Largest answer that is read: a listing of a large fleet.
const ANSWER_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// The running server, as a client sees it.
pub(super) struct ServerClient {
    base: String,
    key: Option<String>,
    http: ureq::Agent,
    /// Why nothing can be asked.
    trouble: Option<String>,
}

/// What the server answered.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

impl ServerClient {
    /// The server that the options, the environment or the configuration name.
    pub(super) fn of(config: &Config, server: &Server) -> ServerClient {
        let scheme = if config.https().is_some() { "https" } else { "http" };
        let base = server.url().unwrap_or_else(|| format!("{scheme}://{}", reachable(config)));
        let found = key(config, server).and_then(|key| Ok((key, connect(&base, config, server)?)));
        match found {
            Ok((key, connect)) => ServerClient::over(connect, base, key),
            Err(why) => {
                let client = ServerClient::over(Connect::refusing(why.clone()), base, None);
                ServerClient { trouble: Some(why), ..client }
            }
        }
    }

    /// The server at this URL.
    pub(super) fn at(base: String, key: Option<String>) -> ServerClient {
        ServerClient::over(Connect::plain(), base, key)
    }

    fn over(connect: Connect, base: String, key: Option<String>) -> ServerClient {
        let settings = ureq::Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .build();
        let http = ureq::Agent::with_parts(settings, connect, DefaultResolver::default());
        ServerClient { base: base.trim_end_matches('/').to_owned(), key, http, trouble: None }
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
        if let Some(trouble) = &self.trouble {
            return Err(fail().because(trouble.clone()));
        }
        let Some(key) = &self.key else {
            return Err(fail()
                .because("no API key")
                .advise("set ROOST_API_KEY, or name the server's data directory with --data-dir"));
        };
        let request = self.http.post(format!("{}{path}", self.base)).header("X-API-Key", key);
        let request = request.header("Content-Type", "application/json");
        let answer = request.send(body.to_string().as_bytes()).and_then(read).map_err(|e| {
            fail()
                .because(format!("{}: {}", self.base, words(e, PATIENCE)))
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

/// The key to show: from the environment, from a file, or from the data directory.
fn key(config: &Config, server: &Server) -> Result<Option<String>, String> {
    match (server.api_key(), server.api_key_file()) {
        (Some(key), _) => Ok(Some(key)),
        (None, Some(file)) => match secret::read(&file) {
            Ok(key) => Ok(Some(key)),
            Err(error) => Err(format!("could not read {API_KEY_FILE_VARIABLE}: {error}")),
        },
        (None, None) => Ok(secret::read(&config.paths().admin_key).ok()),
    }
}

/// How the server is reached: an https one by the certificate that it is known by here.
fn connect(base: &str, config: &Config, server: &Server) -> Result<Connect, String> {
    if !base.starts_with("https://") {
        return Ok(Connect::plain());
    }
    let file = server.ca().or_else(|| config.tls_cert.clone()).ok_or(
        "no certificate is known to trust; name the server's, or its CA's, with --ca or ROOST_CA",
    )?;
    trust_in(&file).map(Connect::over_tls)
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
