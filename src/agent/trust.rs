//! Owns whom we trust to be a host's agent, and what we show to it: TLS 1.3, certificates
//! of our own CA on both sides.
//!
//! Never: lets a byte of a request out before the other side has shown a certificate of our
//! CA that names the host we mean, at the address we asked. Called by `client` for each call.
//!
//! Every call opens a connection of its own, so sessions are kept: by host, not by address,
//! because what a ticket stands for is who was on the other side.

use super::authority::{Authority, CLIENT_LIFE, CaError, IssueError};
use super::certificate::Read;
use crate::clock::Clock;
use crate::model::id::HostId;
use crate::model::time::Wall;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
    verify_server_name,
};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, DigitallySignedStruct, NamedGroup, RootCertStore, SignatureScheme};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Age at which our certificate is renewed. Larger: agents whose clock runs ahead refuse it;
/// smaller: more whole handshakes, one for each host and renewal.
pub const RENEW_AFTER: Duration = CLIENT_LIFE.checked_div(2).expect("two is not zero");

/// Hosts whose sessions are kept. Larger: memory, about a kilobyte for each; smaller: in a
/// larger fleet every call makes a whole handshake.
const SESSIONS_MAX: usize = 20_000;

/// Tickets kept for one host: a probe and an operation may call it at the same time. Larger:
/// memory; smaller: the second of them makes a whole handshake.
const TICKETS_MAX: usize = 2;

/// Our side of TLS to agents; one for all threads.
pub struct Trust {
    authority: Arc<Authority>,
    clock: Arc<dyn Clock>,
    verifier: Arc<OfOurCa>,
    shown: Mutex<Shown>,
}

/// What we show until it is renewed.
struct Shown {
    config: ClientConfig,
    sessions: Arc<Sessions>,
    since: Wall,
}

/// Nothing of it: it holds a private key.
impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trust(…)")
    }
}

impl Trust {
    /// Trusts what `authority` has issued, and shows what it issues for us.
    ///
    /// # Errors
    /// A CA that cannot be trusted in TLS.
    pub fn new(authority: Arc<Authority>, clock: Arc<dyn Clock>) -> Result<Trust, CaError> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate().clone()).map_err(CaError::of)?;
        let algorithms = ring::default_provider().signature_verification_algorithms;
        let verifier = Arc::new(OfOurCa { roots, algorithms });
        let shown = Mutex::new(show(&authority, &clock, &verifier).map_err(CaError::of)?);
        Ok(Trust { authority, clock, verifier, shown })
    }

    /// What a call to this host is made with.
    pub(super) fn config_for(&self, host: HostId) -> Arc<ClientConfig> {
        let mut shown = lock(&self.shown);
        if !shown.is_fresh(self.clock.now().wall) {
            match show(&self.authority, &self.clock, &self.verifier) {
                Ok(renewed) => *shown = renewed,
                // The old one counts for as long again.
                Err(error) => log::error!("could not renew our certificate: {error}"),
            }
        }
        let mut config = shown.config.clone();
        let sessions = SessionsOf { host, all: Arc::clone(&shown.sessions) };
        config.resumption = Resumption::store(Arc::new(sessions));
        Arc::new(config)
    }
}

impl Shown {
    /// A clock that was set back makes it as stale as one that went on.
    fn is_fresh(&self, now: Wall) -> bool {
        now >= self.since && now.since(self.since) < RENEW_AFTER
    }
}

/// A new certificate, and so no sessions: agents remember with them what we showed.
fn show(
    authority: &Authority,
    clock: &Arc<dyn Clock>,
    verifier: &Arc<OfOurCa>,
) -> Result<Shown, IssueError> {
    let since = clock.now().wall;
    let issued = authority.issue_client(since)?;
    let config = ClientConfig::builder_with_details(provider(), time_of(clock))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(IssueError::of)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(verifier) as Arc<dyn ServerCertVerifier>)
        .with_client_auth_cert(vec![issued.certificate], issued.key.into())
        .map_err(IssueError::of)?;
    Ok(Shown { config, sessions: Arc::default(), since })
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Our clock, as TLS asks for the time.
pub fn time_of(clock: &Arc<dyn Clock>) -> Arc<dyn TimeProvider> {
    Arc::new(TlsTime(Arc::clone(clock)))
}

struct TlsTime(Arc<dyn Clock>);

impl fmt::Debug for TlsTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsTime")
    }
}

impl TimeProvider for TlsTime {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().wall.unix_seconds()).unwrap_or(0);
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

/// Accepts servers with a certificate of our CA that is valid now. Whom it names is asked
/// afterwards, by [`check_names`], of resumed sessions too.
#[derive(Debug)]
struct OfOurCa {
    roots: RootCertStore,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for OfOurCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Somebody else answered: what the certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WrongPeer(String);

impl fmt::Display for WrongPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongPeer {}

/// Whether a certificate of our CA is this host's, for this address.
pub(super) fn check_names(
    shown: Option<&[CertificateDer<'_>]>,
    host: HostId,
    address: &ServerName<'_>,
) -> Result<(), WrongPeer> {
    let Some(certificate) = shown.and_then(<[_]>::first) else {
        return Err(WrongPeer("it shows no certificate".to_owned()));
    };
    let read = Read::of(certificate).map_err(|why| WrongPeer(format!("what it shows {why}")))?;
    let name = read.common_name().unwrap_or_default();
    if name != host.to_string() {
        return Err(WrongPeer(format!("its certificate names {name:?}, not {host}")));
    }
    if !read.is_for_servers() {
        return Err(WrongPeer(format!("the certificate of {name} is not for servers")));
    }
    let names_address =
        ParsedCertificate::try_from(certificate).and_then(|c| verify_server_name(&c, address));
    names_address.map_err(|error| WrongPeer(format!("{name} has another address: {error}")))
}

/// Tickets of every host.
#[derive(Default)]
struct Sessions(Mutex<HashMap<HostId, VecDeque<Tls13ClientSessionValue>>>);

/// The tickets of one host, as TLS asks for them: by an address that other hosts may share.
struct SessionsOf {
    host: HostId,
    all: Arc<Sessions>,
}

impl fmt::Debug for SessionsOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionsOf({})", self.host)
    }
}

impl ClientSessionStore for SessionsOf {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let mut all = lock(&self.all.0);
        if all.len() >= SESSIONS_MAX && !all.contains_key(&self.host) {
            return;
        }
        let tickets = all.entry(self.host).or_default();
        tickets.push_back(ticket);
        if tickets.len() > TICKETS_MAX {
            tickets.pop_front();
        }
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        lock(&self.all.0).get_mut(&self.host)?.pop_back()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
