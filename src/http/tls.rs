//! Owns where the certificate for new connections comes from.
//!
//! Never: reads files, speaks TLS (`transport` does). Filled by the engine and by simulated
//! agents, asked at each accepted connection.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The TLS configuration for connections to come; clones share it.
#[derive(Clone)]
pub struct TlsSource {
    current: Arc<RwLock<Current>>,
}

#[derive(Default)]
struct Current {
    every: Option<Arc<rustls::ServerConfig>>,
    own: HashMap<usize, Arc<rustls::ServerConfig>>,
}

impl TlsSource {
    /// Starts with `config` for every listener.
    pub fn new(config: Arc<rustls::ServerConfig>) -> TlsSource {
        let source = TlsSource::by_listener();
        source.replace(config);
        source
    }

    /// Every listener speaks plainly until it gets a configuration of its own.
    pub fn by_listener() -> TlsSource {
        TlsSource { current: Arc::default() }
    }

    /// Takes `config` for every connection from now on; open ones keep theirs.
    pub fn replace(&self, config: Arc<rustls::ServerConfig>) {
        self.write().every = Some(config);
    }

    /// Takes `config` for connections to this listener from now on.
    pub fn replace_of(&self, listener: usize, config: Arc<rustls::ServerConfig>) {
        self.write().own.insert(listener, config);
    }

    /// What a new connection to this listener gets; `None`: plain.
    pub(super) fn current(&self, listener: usize) -> Option<Arc<rustls::ServerConfig>> {
        let current = self.read();
        current.own.get(&listener).or(current.every.as_ref()).cloned()
    }

    fn read(&self) -> RwLockReadGuard<'_, Current> {
        self.current.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Current> {
        self.current.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nothing of the configuration: it holds a private key.
impl fmt::Debug for TlsSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsSource")
    }
}
