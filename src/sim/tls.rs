//! Owns what a simulated agent shows when it is called, and whom it lets in: with the
//! certificates of its registration TLS 1.3, and only the control plane.
//!
//! Never: talks; the server's transport does. Called by `host`.

use super::lock;
use crate::agent::authority::CONTROL_PLANE_NAME;
use crate::agent::certificate::Read;
use crate::agent::trust::time_of;
use crate::clock::Clock;
use crate::http::TlsSource;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
};
use std::fmt;
use std::sync::{Arc, Mutex};

/// What came with a registration or a refresh.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificates {
    /// What the agent shows.
    pub cert_pem: String,
    /// Secret: its key.
    pub key_pem: String,
    /// Whose certificates it lets in.
    pub ca_cert_pem: String,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificates(…)")
    }
}

/// Who called over TLS so far. Sessions that are resumed are not seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Callers {
    /// Whole handshakes of callers that were let in.
    pub handshakes: u64,
    /// Serial number of the certificate that the last of them showed.
    pub last_serial: Vec<u8>,
}

/// One agent's side of TLS.
pub(super) struct HostTls {
    source: TlsSource,
    listener: usize,
    clock: Arc<dyn Clock>,
    callers: Arc<Mutex<Callers>>,
}

impl HostTls {
    /// Plain until there are certificates.
    pub(super) fn new(source: TlsSource, listener: usize, clock: Arc<dyn Clock>) -> HostTls {
        HostTls { source, listener, clock, callers: Arc::default() }
    }

    /// Speaks TLS from the next connection on; says what is wrong with the certificates.
    pub(super) fn use_certificates(&self, certificates: &Certificates) -> Result<(), String> {
        let config = self.config(certificates)?;
        self.source.replace_of(self.listener, Arc::new(config));
        Ok(())
    }

    /// Who called.
    pub(super) fn callers(&self) -> Callers {
        lock(&self.callers).clone()
    }

    fn config(&self, certificates: &Certificates) -> Result<ServerConfig, String> {
        let pem = |e: rustls::pki_types::pem::Error| e.to_string();
        let ca = CertificateDer::from_pem_slice(certificates.ca_cert_pem.as_bytes());
        let own = CertificateDer::from_pem_slice(certificates.cert_pem.as_bytes()).map_err(pem)?;
        let key = PrivateKeyDer::from_pem_slice(certificates.key_pem.as_bytes()).map_err(pem)?;
        let tls = |e: rustls::Error| e.to_string();
        let mut roots = RootCertStore::empty();
        roots.add(ca.map_err(pem)?).map_err(tls)?;
        let provider = Arc::new(ring::default_provider());
        let of_ca =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let of_ca = of_ca.build().map_err(|e| e.to_string())?;
        let verifier = OnlyControlPlane { of_ca, callers: Arc::clone(&self.callers) };
        ServerConfig::builder_with_details(provider, time_of(&self.clock))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls)?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_single_cert(vec![own], key)
            .map_err(tls)
    }
}

/// Lets in who shows a certificate of the CA with the control plane's name.
#[derive(Debug)]
struct OnlyControlPlane {
    of_ca: Arc<dyn ClientCertVerifier>,
    callers: Arc<Mutex<Callers>>,
}

impl ClientCertVerifier for OnlyControlPlane {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.of_ca.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.of_ca.verify_client_cert(end_entity, intermediates, now)?;
        let read = Read::of(end_entity).map_err(rustls::Error::General)?;
        if read.common_name() != Some(CONTROL_PLANE_NAME) {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        let mut callers = lock(&self.callers);
        callers.handshakes += 1;
        callers.last_serial = read.serial().to_vec();
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.of_ca.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.of_ca.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.of_ca.supported_verify_schemes()
    }
}
