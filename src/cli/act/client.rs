//! Owns the way to the running server: requests with the key, and what stands in the way
//! of one, in words.
//!
//! Never: prints anything; repeats a request by itself. Called by the commands that act,
//! and by those that look for what only the running server knows.

use crate::agent::transport::{Connect, may_be_sent, words};
use crate::api::secret;
use crate::cli::args::Server;
use crate::cli::output::Failure;
use crate::config::{API_KEY_FILE_VARIABLE, Config};
use crate::http::trust_in;
use serde_json::Value;
use std::fmt::Display;
use std::io::{BufReader, Read};
use std::time::Duration;
use ureq::http::{Method, Request, Response};
use ureq::unversioned::resolver::DefaultResolver;

/// How long the server may take when it need not ask anybody. It answers at once or is
/// not there.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);

/// How long it may take when it asks an agent and waits: the longest `probe_timeout` there
/// is, and what the answer itself takes. Smaller: we leave before the server knows.
pub(super) const AGENT_PATIENCE: Duration = Duration::from_secs(5 * 60 + 15);

/// Longest silence on a stream of events before it counts as dead: two of the comments
/// that the server sends every 15 s, and some. Smaller: a slow network ends good streams.
const STREAM_SILENCE_MAX: Duration = Duration::from_secs(35);

/// Largest answer that is read: a listing of a large fleet.
const ANSWER_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// The running server, as a client sees it.
pub(in crate::cli) struct ServerClient {
    base: String,
    key: Option<String>,
    http: ureq::Agent,
    /// Why nothing can be asked.
    trouble: Option<String>,
}

/// What the server answered.
pub(in crate::cli) struct Answer {
    pub(in crate::cli) status: u16,
    pub(in crate::cli) body: String,
}

/// What stands in the way of a request.
pub(super) enum Trouble {
    /// There is no key to show.
    NoKey,
    /// What says how to ask cannot be used.
    Unusable(String),
    /// Nobody is there; nothing was asked.
    Away(String),
    /// The connection broke, or it took too long: what was asked may have been done.
    Cut(String),
    /// It answered, and refused: status, and the error in its own words.
    Refused(u16, Value),
    /// What it answered is none of ours.
    Strange(String),
}

impl Trouble {
    /// The failure to do `what`; `lists` is the command that lists what can be named.
    pub(super) fn to(self, what: impl Display, lists: &str) -> Failure {
        let fail = Failure::new(format!("could not {what}"));
        match self {
            Trouble::NoKey => fail.because("no API key").advise(KEY_ADVICE),
            Trouble::Unusable(why) => fail.because(why),
            Trouble::Away(why) => fail.because(why).advise("start `roost serve`, or set ROOST_URL"),
            Trouble::Cut(why) => {
                fail.because(why).advise("it may have been done; look before you ask again")
            }
            Trouble::Strange(why) => fail.because(why).advise("is ROOST_URL right?"),
            Trouble::Refused(status, error) => {
                let words = error["message"].as_str().map(str::to_owned);
                let words = words.unwrap_or_else(|| format!("the server answered {status}"));
                let fail = fail.because(words);
                match status {
                    401 => fail.advise(KEY_ADVICE),
                    404 => fail.advise(format!("`{lists}` lists them")),
                    _ => fail,
                }
            }
        }
    }
}

const KEY_ADVICE: &str = "set ROOST_API_KEY, or name the server's data directory with --data-dir";

impl ServerClient {
    /// The server that the options, the environment or the configuration name.
    pub(in crate::cli) fn of(config: &Config, server: &Server) -> ServerClient {
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
    pub(in crate::cli) fn at(base: String, key: Option<String>) -> ServerClient {
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

    pub(in crate::cli) fn base(&self) -> &str {
        &self.base
    }

    /// Looks, with the key if there is one; every status is an answer.
    ///
    /// # Errors
    /// In words, when nobody answers.
    pub(in crate::cli) fn get(&self, path: &str) -> Result<Answer, String> {
        let mut request = self.http.get(format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.header("X-API-Key", key);
        }
        request.call().and_then(read).map_err(|error| words(error, PATIENCE))
    }

    /// Asks for something: the JSON of a 2xx answer, null when it has no body.
    pub(super) fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        patience: Duration,
    ) -> Result<Value, Trouble> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = self.request(method, path, body)?;
        let request = self.http.configure_request(request).timeout_global(Some(patience)).build();
        let answer =
            self.http.run(request).and_then(read).map_err(|e| self.no_answer(e, patience))?;
        self.judge(answer)
    }

    /// Asks for something that `what` names in a failure.
    pub(in crate::cli) fn post(
        &self,
        what: &str,
        path: &str,
        body: &Value,
    ) -> Result<Value, Failure> {
        let answer = self.ask(Method::POST, path, Some(body), PATIENCE);
        answer.map_err(|trouble| trouble.to(what, "roost sandboxes"))
    }

    /// The events of a sandbox, after this revision or from now on, line by line and for
    /// at most so long.
    pub(super) fn events(
        &self,
        query: &str,
        patience: Duration,
    ) -> Result<BufReader<impl Read + use<>>, Trouble> {
        let request = self.request(Method::GET, &format!("/v1/events?{query}"), String::new())?;
        let request = self.http.configure_request(request).timeout_global(Some(patience));
        let request = request.timeout_per_read(Some(STREAM_SILENCE_MAX)).build();
        let response = self.http.run(request).map_err(|e| self.no_answer(e, patience))?;
        if response.status().as_u16() == 200 {
            return Ok(BufReader::new(response.into_body().into_reader()));
        }
        let answer = read(response).map_err(|e| self.no_answer(e, patience))?;
        self.judge(answer)?;
        Err(Trouble::Strange(format!("{} answered with no stream", self.base)))
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<Request<String>, Trouble> {
        if let Some(why) = &self.trouble {
            return Err(Trouble::Unusable(why.clone()));
        }
        let key = self.key.as_ref().ok_or(Trouble::NoKey)?;
        let request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        let request = request.header("X-API-Key", key).header("Content-Type", "application/json");
        // Whatever `answers` says: a command that waits follows the events.
        let request = request.header("Prefer", "respond-async");
        request.body(body).map_err(|e| Trouble::Strange(format!("{}: {e}", self.base)))
    }

    fn no_answer(&self, error: ureq::Error, patience: Duration) -> Trouble {
        let sent = may_be_sent(&error);
        let why = format!("{}: {}", self.base, words(error, patience));
        if sent { Trouble::Cut(why) } else { Trouble::Away(why) }
    }

    fn judge(&self, answer: Answer) -> Result<Value, Trouble> {
        let value: Option<Value> = serde_json::from_str(&answer.body).ok();
        match (answer.status, value) {
            (200..=299, Some(value)) => Ok(value),
            (204, None) => Ok(Value::Null),
            (200..=299, None) => Err(Trouble::Strange(format!("{} answered no JSON", self.base))),
            (status, value) => {
                Err(Trouble::Refused(status, value.unwrap_or_default()["error"].take()))
            }
        }
    }
}

fn read(response: Response<ureq::Body>) -> Result<Answer, ureq::Error> {
    let status = response.status().as_u16();
    let body = response.into_body().into_with_config().limit(ANSWER_BYTES_MAX).read_to_string()?;
    Ok(Answer { status, body })
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

/// A server that listens everywhere is reached on this machine.
pub(in crate::cli) fn reachable(config: &Config) -> std::net::SocketAddr {
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
