//! Owns what is read out of a certificate: whose it is, what it is for, how long it counts.
//!
//! Never: trusts what it reads. Who signed a certificate is checked elsewhere, and before.
//! Called by `authority` and `trust`, and by the simulated agents.

use crate::model::time::Wall;
use rustls::pki_types::CertificateDer;
use std::fmt;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

/// One certificate, read.
pub struct Read<'a>(X509Certificate<'a>);

impl fmt::Debug for Read<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Read({:?})", self.common_name())
    }
}

impl<'a> Read<'a> {
    /// Reads a certificate; says why it cannot be read.
    ///
    /// # Errors
    /// Bytes that are no certificate, or more than one.
    pub fn of(certificate: &'a CertificateDer<'_>) -> Result<Read<'a>, String> {
        match X509Certificate::from_der(certificate) {
            Ok((&[], read)) => Ok(Read(read)),
            Ok(_) => Err("is not a certificate: something follows it".to_owned()),
            Err(error) => Err(format!("is not a certificate: {error}")),
        }
    }

    /// The one common name of the subject; `None` when it has none, or several.
    pub fn common_name(&self) -> Option<&str> {
        let mut names = self.0.subject().iter_common_name();
        match (names.next(), names.next()) {
            (Some(name), None) => name.as_str().ok(),
            _ => None,
        }
    }

    /// Whether it says that it may be shown by a server.
    pub fn is_for_servers(&self) -> bool {
        let usage = self.0.extended_key_usage();
        usage.ok().flatten().is_some_and(|usage| usage.value.server_auth)
    }

    /// The public key's bytes.
    pub fn public_key(&self) -> &[u8] {
        &self.0.public_key().subject_public_key.data
    }

    /// The serial number's bytes.
    pub fn serial(&self) -> &[u8] {
        self.0.raw_serial()
    }

    /// Whether it may sign other certificates.
    pub fn is_ca(&self) -> bool {
        let usage = self.0.key_usage().ok().flatten();
        self.0.is_ca() && usage.is_none_or(|usage| usage.value.key_cert_sign())
    }

    /// The last moment at which it counts.
    pub fn expires_at(&self) -> Wall {
        Wall(self.0.validity().not_after.timestamp().saturating_mul(1000))
    }

    /// Why it does not count at this moment; `None` when it does.
    pub fn out_of_date(&self, now: Wall) -> Option<String> {
        let (from, until) = (self.0.validity().not_before, self.0.validity().not_after);
        let now_s = now.unix_seconds();
        if now_s < from.timestamp() {
            Some(format!("is not valid before {from}"))
        } else if now_s > until.timestamp() {
            Some(format!("has expired on {until}"))
        } else {
            None
        }
    }
}
