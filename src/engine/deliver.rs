//! Owns how one message reaches one target: what is written for its kind, signed, sent
//! once, and what the answer means.
//!
//! Never: repeats anything (`notify` does), follows a redirect, uses a proxy, waits without
//! a deadline, or says a URL or a secret in an error.

use crate::agent::transport::{Connect, words};
use crate::config::{Target, TargetKind};
use crate::http::trust_in;
use crate::model::time::Wall;
use ring::hmac;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use ureq::http::Request;
use ureq::http::header::RETRY_AFTER;
use ureq::unversioned::resolver::DefaultResolver;

/// How long a target may take for one message. Longer: a target that hangs is noticed
/// later; shorter: a slow one is never told.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

/// Longest wait that a target can ask for. Longer: one that is wrong about it is told too
/// late; shorter: one that asks for an hour is knocked at within it.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(3600);

/// Where systems keep the certificates that everybody trusts, the usual ones first.
const ROOTS: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Why a message did not arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Undelivered {
    /// For people; tells no secret.
    pub(super) why: String,
    /// The target will never take this one.
    pub(super) refused: bool,
    /// How long the target asks to be left alone; zero when it does not.
    pub(super) wait: Duration,
}

/// Sends a message once.
pub(super) fn send(target: &Target, body: &Value, now: Wall) -> Result<(), Undelivered> {
    let later = |why: String| Undelivered { why, refused: false, wait: Duration::ZERO };
    let url = target.url.reveal().map_err(|e| later(e.to_string()))?;
    let request = request(target, &url, body, now).map_err(later)?;
    let connect = connect(target, &url).map_err(later)?;
    let settings = ureq::Agent::config_builder()
        .timeout_global(Some(DEADLINE))
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(None)
        .max_idle_connections(0)
        .user_agent(concat!("roost/", env!("CARGO_PKG_VERSION")))
        .build();
    let http = ureq::Agent::with_parts(settings, connect, DefaultResolver::default());
    let answer =
        http.run(request).map_err(|error| later(hinted(without(words(error, DEADLINE), &url))))?;
    let status = answer.status().as_u16();
    let wait = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let wait = wait.and_then(|text| retry_after(text, now)).unwrap_or_default();
    let later = |why: String| Undelivered { why, refused: false, wait };
    match status {
        200..=299 => Ok(()),
        300..=399 => Err(later(format!("it answered {status}; redirects are not followed"))),
        // Said of this very message. What is wrong with a key or a URL may be mended.
        400 | 413 | 415 | 422 => {
            Err(Undelivered { why: format!("it answered {status}"), refused: true, wait })
        }
        _ => Err(later(format!("it answered {status}"))),
    }
}

/// What `Retry-After` asks for: seconds, or the time until a date. At most [`WAIT_MAX`].
fn retry_after(text: &str, now: Wall) -> Option<Duration> {
    let text = text.trim();
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let wait = match is_number {
        true => text.parse().map_or(WAIT_MAX, Duration::from_secs),
        false => http_date(text)?.since(now),
    };
    Some(wait.min(WAIT_MAX))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, the one form of a date that is still sent.
fn http_date(text: &str) -> Option<Wall> {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let (_, date) = text.split_once(", ")?;
    let parts: Vec<&str> = date.split(' ').collect();
    let [day, month, year, time, "GMT"] = parts[..] else { return None };
    let at = MONTHS.find(month).filter(|at| month.len() == 3 && at % 3 == 0)?;
    format!("{year}-{:02}-{day}T{time}Z", at / 3 + 1).parse().ok()
}

/// What may help against a certificate that the system does not know: it is most often one's
/// own.
fn hinted(said: String) -> String {
    match said.contains("invalid peer certificate") {
        true => format!("{said}; if it is your own, name it, or its CA's, in ca_file"),
        false => said,
    }
}

/// What an error says, without the URL or the end of it: the path of some is a secret.
fn without(text: String, url: &str) -> String {
    let after = url.split_once("://").map_or(url, |(_, rest)| rest);
    let path = after.split_once('/').map_or("", |(_, path)| path);
    let mut text = text.replace(url, "its URL").replace(after, "its URL");
    if path.len() > 3 {
        text = text.replace(path, "…");
    }
    text
}

fn request(target: &Target, url: &str, body: &Value, now: Wall) -> Result<Request<String>, String> {
    let text = |name: &str| body[name].as_str().unwrap_or_default();
    let request = Request::post(url);
    let request = match target.kind {
        TargetKind::Generic => {
            let sent = body.to_string();
            let mut request = request
                .header("Content-Type", "application/json")
                .header("Roost-Delivery", text("id"));
            if let Some(secret) = &target.secret {
                let secret = secret.reveal().map_err(|e| e.to_string())?;
                request = request.header("Roost-Signature", signature(&secret, &sent, now));
            }
            request.body(sent)
        }
        TargetKind::Ntfy => {
            let (priority, tag) = match (text("state"), text("severity")) {
                ("resolved", _) => ("default", "white_check_mark"),
                (_, "critical") => ("urgent", "rotating_light"),
                (_, "warning") => ("high", "warning"),
                (_, _) => ("default", "bell"),
            };
            let mut request = request
                .header("Content-Type", "text/plain; charset=utf-8")
                .header("Title", text("title"))
                .header("Priority", priority)
                .header("Tags", tag);
            if let Some(token) = &target.token {
                let token = token.reveal().map_err(|e| e.to_string())?;
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            request.body(text("message").to_owned())
        }
        TargetKind::Slack => {
            let said = format!("*{}*\n{}", text("title"), text("message"));
            let request = request.header("Content-Type", "application/json");
            request.body(json!({ "text": said }).to_string())
        }
    };
    // What the parser found may be a part of a secret.
    request.map_err(|_| "its url, token or secret has characters that cannot be sent".to_owned())
}

/// `t=UNIX_SECONDS,v1=HEX`: the HMAC-SHA256 of `UNIX_SECONDS.BODY`.
fn signature(secret: &str, body: &str, now: Wall) -> String {
    let at = now.unix_seconds();
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let tag = hmac::sign(&key, format!("{at}.{body}").as_bytes());
    let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t={at},v1={hex}")
}

fn connect(target: &Target, url: &str) -> Result<Connect, String> {
    if !url.starts_with("https://") {
        return Ok(Connect::plain());
    }
    match &target.ca_file {
        Some(file) => trust_in(file).map(Connect::over_tls),
        None => system_trust().map(Connect::over_tls),
    }
}

/// Trust in what this system trusts, as it is now: read for every message, because there
/// are few and bundles are renewed.
fn system_trust() -> Result<Arc<ClientConfig>, String> {
    let file = ROOTS.iter().map(Path::new).find(|path| path.exists()).ok_or(
        "this system has no certificates to trust (/etc/ssl/certs/ca-certificates.crt); \
         install its package ca-certificates, or set ca_file",
    )?;
    let unreadable = |e: &dyn std::fmt::Display| format!("{}: {e}", file.display());
    let found = CertificateDer::pem_file_iter(file).map_err(|e| unreadable(&e))?;
    let mut roots = RootCertStore::empty();
    // Bundles have a few that nobody can read.
    let (added, _) = roots.add_parsable_certificates(found.filter_map(Result::ok));
    if added == 0 {
        return Err(unreadable(&"has no certificate"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_left_alone_for_as_long_as_it_asks_within_a_bound() {
        let now: Wall = "1994-11-06T08:49:37Z".parse().unwrap();
        let asked = |text: &str| retry_after(text, now).map(|wait| wait.as_secs());
        for (text, seconds) in [
            ("0", Some(0)),
            ("30", Some(30)),
            (" 30 ", Some(30)),
            ("3600", Some(3600)),
            ("86400", Some(3600)),
            ("99999999999999999999999999", Some(3600)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", Some(30)),
            ("Sun, 06 Nov 1994 08:49:07 GMT", Some(0)),
            ("Wed, 01 Jan 2098 00:00:00 GMT", Some(3600)),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("soon", None),
            ("Sun, 06 anF 1994 08:50:07 GMT", None),
            ("Sun, 06 Nov 1994 08:50:07 CET", None),
            ("Sun, 99 Nov 1994 08:50:07 GMT", None),
        ] {
            assert_eq!(asked(text), seconds, "{text:?}");
        }
    }
}
