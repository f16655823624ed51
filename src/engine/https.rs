//! Owns the certificate that the API shows: read at the start and again when asked.
//!
//! Never: shows a key in an error; gives up a certificate that works for one that does not.

use crate::agent::certificate::Read;
use crate::http::TlsSource;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What we speak over TLS, for clients that would choose something else.
const PROTOCOL: &[u8] = b"http/1.1";

/// Why a certificate and its key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpsError(String);

impl fmt::Display for HttpsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for HttpsError {}

/// Two files, and what they last said that was right.
pub(super) struct Https {
    cert: PathBuf,
    key: PathBuf,
    source: TlsSource,
    expires_s: AtomicU64,
}

impl Https {
    /// Reads the files.
    pub(super) fn load(cert: &Path, key: &Path) -> Result<Https, HttpsError> {
        let (config, expires_s) = read(cert, key)?;
        let (source, expires_s) = (TlsSource::new(config), AtomicU64::new(expires_s));
        Ok(Https { cert: cert.to_owned(), key: key.to_owned(), source, expires_s })
    }

    /// When the certificate expires, in unix seconds; 0: it does not say.
    pub(super) fn expires_s(&self) -> u64 {
        self.expires_s.load(Ordering::Relaxed)
    }

    /// Where new connections get it from.
    pub(super) fn source(&self) -> TlsSource {
        self.source.clone()
    }

    /// Reads the files again; new connections get what they say, if it is right.
    pub(super) fn reload(&self) {
        match read(&self.cert, &self.key) {
            Ok((config, expires_s)) => {
                self.source.replace(config);
                self.expires_s.store(expires_s, Ordering::Relaxed);
                log::info!("certificate of the API read again from {}", self.cert.display());
            }
            Err(error) => log::error!(
                "could not read the certificate of the API again: {error}; keeping the old one"
            ),
        }
    }
}

/// A configuration, and when its certificate expires in unix seconds; 0: it does not say.
fn read(cert: &Path, key: &Path) -> Result<(Arc<ServerConfig>, u64), HttpsError> {
    let chain = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect);
    let chain: Vec<_> = chain.map_err(|e| unreadable(cert, "certificate", &e))?;
    if chain.is_empty() {
        return Err(unreadable(cert, "certificate", &pem::Error::NoItemsFound));
    }
    let expires_s = chain.first().map_or(0, expires_s);
    let private = PrivateKeyDer::from_pem_file(key);
    let private = private.map_err(|e| unreadable(key, "private key", &e))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private));
    let mut config = config.map_err(|e| {
        let (cert, key) = (cert.display(), key.display());
        HttpsError(format!("{cert} and {key}: {e}; name a certificate and the key it was made for"))
    })?;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok((Arc::new(config), expires_s))
}

fn expires_s(certificate: &CertificateDer<'_>) -> u64 {
    // Whether it can be read is for the peers to judge: rustls has taken it.
    Read::of(certificate)
        .map_or(0, |read| u64::try_from(read.expires_at().unix_seconds()).unwrap_or(0))
}

/// What the parser found may be part of a key: only its kind of failure is told.
fn unreadable(path: &Path, what: &str, error: &pem::Error) -> HttpsError {
    let path = path.display();
    if let pem::Error::Io(e) = error {
        return HttpsError(format!("{path}: {e}"));
    }
    let nothing = matches!(error, pem::Error::NoItemsFound);
    let why = if nothing { format!("has no {what} in PEM") } else { "is not PEM".to_owned() };
    HttpsError(format!("{path}: {why}"))
}
