//! Owns where the certificate for new connections comes from.
//!
//! Never: reads files, speaks TLS (`transport` does). Filled by the engine, asked at each
//! accepted connection.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

/// The TLS configuration for connections to come; clones share it.
#[derive(Clone)]
pub struct TlsSource {
    current: Arc<RwLock<Arc<rustls::ServerConfig>>>,
}

impl TlsSource {
    /// Starts with `config`.
    pub fn new(config: Arc<rustls::ServerConfig>) -> TlsSource {
        TlsSource { current: Arc::new(RwLock::new(config)) }
    }

    /// Takes `config` for every connection from now on; open ones keep theirs.
    pub fn replace(&self, config: Arc<rustls::ServerConfig>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
    }

    /// What a new connection gets.
    pub(super) fn current(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Nothing of the configuration: it holds a private key.
impl fmt::Debug for TlsSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsSource")
    }
}
