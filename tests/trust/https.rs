//! Owns HTTPS for the API: served, reloaded, reached by our own commands; and keys that
//! come from files.
//!
//! Never: TLS to agents.

use super::agents::Joined;
use super::authority::assert_untold;
use crate::support::server::Serving;
use crate::support::{Done, Home, eventually};
use rcgen::{CertificateParams, KeyPair};
use roost::http::trust_in;
use rustix::process::Signal;
use rustls::{ClientConnection, StreamOwned};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use x509_parser::prelude::{FromDer, X509Certificate};

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let digits = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{digits}\n-----END {label}-----\n")
}

/// A certificate for a name, and its key.
fn pair(name: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let certificate = pem("CERTIFICATE", params.self_signed(&key).unwrap().der());
    (certificate, pem("PRIVATE KEY", key.serialized_der()))
}

/// A home whose configuration names these files.
fn home(pair: &(String, String)) -> Home {
    let home = Home::new();
    home.write("tls.pem", &pair.0);
    home.write("tls.key", &pair.1);
    configure(&home, "127.0.0.1:0");
    home
}

fn configure(home: &Home, listen: &str) {
    let (cert, key) = (home.path("tls.pem"), home.path("tls.key"));
    let text = format!(
        "listen = \"{listen}\"\nheartbeat_flush = '100ms'\ntls_cert = {cert:?}\ntls_key = {key:?}\n"
    );
    home.write("roost.toml", &text);
}

fn start(home: &Home) -> Serving {
    let serving = Serving::start(home.command(&["serve"]));
    // Commands find it where it is, not where it was asked to be.
    configure(home, &serving.address().to_string());
    eventually("readiness", || {
        (get(serving.address(), "tls.example", &home.path("tls.pem"))?.0 == 200).then_some(())
    });
    serving
}

/// Status of `/readyz` and serial number of what was shown; `None` when not trusted.
fn get(address: SocketAddr, name: &str, trusted: &Path) -> Option<(u16, Vec<u8>)> {
    let config = trust_in(trusted).unwrap();
    let connection = ClientConnection::new(config, name.to_owned().try_into().unwrap()).unwrap();
    let mut stream = StreamOwned::new(connection, TcpStream::connect(address).unwrap());
    let request = "GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let shown = stream.conn.peer_certificates().unwrap()[0].clone();
    let (_, read) = X509Certificate::from_der(&shown).unwrap();
    let status = std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap();
    Some((status, read.raw_serial().to_vec()))
}

fn run(mut command: Command) -> Done {
    let output = command.output().unwrap();
    Done {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn a_new_certificate_is_shown_after_a_signal_and_a_bad_one_never() {
    let (first, second, third) = (pair("tls.example"), pair("tls.example"), pair("x"));
    let home = home(&first);
    let serving = start(&home);
    let address = serving.address();
    serving.logged(&["listening on https://"]);
    let elsewhere = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = elsewhere.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (trust_first, trust_second) = (file("first", &first.0), file("second", &second.0));
    let (status, serial) = get(address, "tls.example", &trust_first).unwrap();
    assert_eq!(status, 200);
    assert!(get(address, "tls.example", &trust_second).is_none());

    home.write("tls.pem", &second.0);
    home.write("tls.key", &second.1);
    serving.signal(Signal::HUP);
    let renewed = eventually("the new one", || get(address, "tls.example", &trust_second));
    assert!(renewed.0 == 200 && renewed.1 != serial);
    assert!(get(address, "tls.example", &trust_first).is_none());

    // Another's key, then none at all.
    for (round, key) in [third.1.as_str(), "nothing"].into_iter().enumerate() {
        home.write("tls.key", key);
        serving.signal(Signal::HUP);
        eventually("an error", || {
            let log = serving.log();
            let errors = log.iter().filter(|line| line.contains("keeping the old one"));
            (errors.count() == round + 1).then_some(())
        });
        assert_eq!(get(address, "tls.example", &trust_second).unwrap().1, renewed.1);
    }
    let log = serving.stop().join("\n");
    for (_, key) in [first, second, third] {
        assert_untold(&key, &log);
    }
}

#[test]
fn a_pair_that_does_not_fit_is_refused_at_the_start() {
    let (own, other) = (pair("a"), pair("a"));
    for (cert, key, words) in [
        (own.0.as_str(), other.1.as_str(), "the key it was made for"),
        ("nothing", own.1.as_str(), "has no certificate in PEM"),
        (own.0.as_str(), own.0.as_str(), "has no private key in PEM"),
    ] {
        let home = home(&(cert.to_owned(), key.to_owned()));
        let done = home.roost(&["serve"]);
        assert_eq!((done.code, done.stdout.as_str()), (1, ""));
        assert!(done.stderr.contains("could not serve HTTPS: "), "{}", done.stderr);
        assert!(done.stderr.contains(words), "{}", done.stderr);
        assert_untold(&own.1, &done.stderr);
        assert_untold(&other.1, &done.stderr);
    }
}

#[test]
fn commands_reach_it_by_the_certificate_that_they_know() {
    let own = pair("roost.example");
    let home = home(&own);
    let serving = start(&home);
    // By its loopback address, which the certificate does not name.
    let added = home.roost(&["hosts", "add"]).ok();
    assert!(added.contains("registration token"), "{added}");
    let status = home.json(&["status"]);
    assert_eq!(status["server"]["ready"], serde_json::json!(true), "{status}");

    // An agent that joins and beats over HTTPS.
    let added = home.json(&["hosts", "add"]);
    let token = added["registration_token"].as_str().unwrap().to_owned();
    let ca = home.path("tls.pem");
    let options = ["--ca", ca.to_str().unwrap(), "--heartbeat-ms", "100"];
    let url = format!("https://{}", serving.address());
    let joined = Joined::start(&home, &url, &[token], &options);
    let heard = || {
        let shown = home.json(&["hosts", "show", added["host"]["id"].as_str().unwrap()]);
        shown["last_heartbeat_at"].as_str().map(str::to_owned)
    };
    let first = eventually("a beat", heard);
    eventually("the next beat", || heard().filter(|at| *at != first));
    drop(joined);

    // From elsewhere, with nothing but what it is told.
    let far = Home::new();
    let key = home.path("admin.key");
    let ask = |ca: Option<&Path>| {
        let mut command = far.command(&["hosts", "add", "--url", &url]);
        command.env("ROOST_API_KEY_FILE", &key);
        if let Some(ca) = ca {
            command.env("ROOST_CA", ca);
        }
        run(command)
    };
    ask(Some(&home.path("tls.pem"))).ok();
    let unknown = ask(None);
    assert_eq!(unknown.code, 1);
    assert!(unknown.stderr.contains("--ca or ROOST_CA"), "{}", unknown.stderr);
    far.write("other.pem", &pair("roost.example").0);
    let other = ask(Some(&far.path("other.pem")));
    assert_eq!(other.code, 1);
    assert!(other.stderr.contains("TLS: invalid peer certificate"), "{}", other.stderr);
    let missing = ask(Some(Path::new("nowhere.pem")));
    assert!(missing.code == 1 && missing.stderr.contains("nowhere.pem"), "{}", missing.stderr);
    serving.stop();
}

#[test]
fn a_key_from_a_file_is_used_and_never_told() {
    let home = Home::new();
    let serving = home.serve(&[]);
    let url = format!("http://{}", serving.address());
    let far = Home::new();
    let ask = |variables: &[(&str, &str)]| {
        let mut command = far.command(&["hosts", "add", "--url", &url]);
        command.envs(variables.iter().copied());
        run(command)
    };
    let file = home.path("admin.key");
    let file = file.to_str().unwrap();
    ask(&[("ROOST_API_KEY_FILE", file)]).ok();
    let missing = ask(&[("ROOST_API_KEY_FILE", "/nowhere/key")]);
    assert_eq!(missing.code, 1);
    let words = "could not read ROOST_API_KEY_FILE: /nowhere/key";
    assert!(missing.stderr.contains(words), "{}", missing.stderr);
    let both = ask(&[("ROOST_API_KEY_FILE", file), ("ROOST_API_KEY", serving.key())]);
    assert_eq!(both.code, 2);
    assert!(both.stderr.contains("are both set"), "{}", both.stderr);
    assert!(!both.stderr.contains(serving.key()));
    serving.stop();
}
