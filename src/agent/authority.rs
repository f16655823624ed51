//! Owns the certificate authority: its two files, and every certificate that it issues.
//!
//! Never: shows a key in an error, a log or a `Debug`; replaces a file that is there.
//! Called by `engine` at the start, by `api` for hosts, by `trust` for ourselves.

use super::certificate::Read;
use crate::files;
use crate::model::host::AgentAddress;
use crate::model::id::HostId;
use crate::model::time::Wall;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, date_time_ymd,
};
use ring::digest::{SHA256, digest};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::fmt;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What our own certificate says: agents let in this name and no other.
pub const CONTROL_PLANE_NAME: &str = "wrenn-cp";

/// How long a host's certificate is valid; as long as the token that comes with it, so that
/// one refresh renews both. Larger: a stolen one is of use for longer; smaller: a host that
/// was off for a few days is not reached before it has refreshed.
pub const HOST_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long our own certificate is valid. Larger: a stolen one is of use for longer;
/// smaller: agents whose clock runs ahead refuse it.
pub const CLIENT_LIFE: Duration = Duration::from_secs(24 * 3600);

/// How far before its making a certificate's validity begins. Larger: nothing is gained;
/// smaller: a box whose clock is behind ours refuses a certificate that it has just got.
pub const BACKDATE: Duration = Duration::from_secs(3600);

/// Longest file that is read as PEM. Larger: a wrong path is read whole; smaller: a
/// certificate with long comments above it is refused.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// Digits of base64 on one line of PEM, as RFC 7468 has it.
const PEM_LINE_CHARS: usize = 64;

/// Bytes of its key's hash in the name of a new authority. Larger: nobody compares it;
/// smaller: two installations may share one.
const NAME_BYTES: usize = 4;

/// The two files of an authority.
#[derive(Debug, Clone)]
pub struct CaFiles {
    /// Its certificate.
    pub certificate: PathBuf,
    /// Secret: its key.
    pub key: PathBuf,
}

/// Why there is no authority; reads after "could not use the CA: ".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaError(String);

impl fmt::Display for CaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CaError {}

impl CaError {
    pub(super) fn of(error: impl fmt::Display) -> CaError {
        CaError(error.to_string())
    }
}

/// What a certificate could not be issued for; never what was in it.
#[derive(Debug)]
pub struct IssueError(String);

impl fmt::Display for IssueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for IssueError {}

impl IssueError {
    pub(super) fn of(error: impl fmt::Display) -> IssueError {
        IssueError(error.to_string())
    }
}

impl From<rcgen::Error> for IssueError {
    fn from(error: rcgen::Error) -> IssueError {
        IssueError::of(error)
    }
}

/// A certificate and its key.
pub struct Issued {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// Secret: its key.
    pub key: PrivatePkcs8KeyDer<'static>,
}

impl Issued {
    /// The certificate as text.
    pub fn cert_pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate)
    }

    /// Secret: the key as text.
    pub fn key_pem(&self) -> String {
        pem("PRIVATE KEY", self.key.secret_pkcs8_der())
    }
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Issued(…)")
    }
}

/// The authority that agents and we trust, and nobody else.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority(…)")
    }
}

impl Authority {
    /// Reads the files, or makes them when there is neither.
    ///
    /// # Errors
    /// Files that are no CA as it must be, or that cannot be read or written.
    pub fn load_or_create(files: &CaFiles, now: Wall) -> Result<Authority, CaError> {
        finish_making(files)?;
        if !exists(&files.certificate)? && !exists(&files.key)? {
            make(files)?;
        }
        Authority::load(files, now)
    }

    /// Reads the files.
    ///
    /// # Errors
    /// As above, and when there are none.
    pub fn load(files: &CaFiles, now: Wall) -> Result<Authority, CaError> {
        both_there(files)?;
        let certificate = read_certificate(&files.certificate)?;
        check_ca(&files.certificate, &certificate, now)?;
        let key = read_key(&files.key)?;
        let read = Read::of(&certificate).map_err(|why| wrong(&files.certificate, &why))?;
        if read.public_key() != key.public_key_raw() {
            return Err(CaError(format!(
                "{} is not the key of {}; restore the pair that belongs together",
                files.key.display(),
                files.certificate.display()
            )));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|e| wrong(&files.certificate, &e.to_string()))?;
        Ok(Authority { certificate, issuer })
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Its certificate as text: only that, whatever else stands in the file.
    pub fn cert_pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate)
    }

    /// A certificate for a host's agent at this address.
    ///
    /// # Errors
    /// An address that no certificate can name.
    pub fn issue_host(
        &self,
        host: HostId,
        address: &AgentAddress,
        now: Wall,
    ) -> Result<Issued, IssueError> {
        let name = address.host();
        let name = match name.parse() {
            Ok(ip) => SanType::IpAddress(ip),
            // Certificates name hosts without the dot that ends an absolute name.
            Err(_) => SanType::DnsName(name.trim_end_matches('.').try_into()?),
        };
        let mut params = leaf(&host.to_string(), HOST_LIFE, now);
        params.subject_alt_names = vec![name];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(&params)
    }

    /// A certificate for ourselves.
    ///
    /// # Errors
    /// A system without randomness.
    pub fn issue_client(&self, now: Wall) -> Result<Issued, IssueError> {
        let mut params = leaf(CONTROL_PLANE_NAME, CLIENT_LIFE, now);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(&params)
    }

    fn issue(&self, params: &CertificateParams) -> Result<Issued, IssueError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?.der().clone();
        Ok(Issued { certificate, key: key.serialize_der().into() })
    }
}

fn leaf(common_name: &str, life: Duration, now: Wall) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(common_name);
    params.not_before = date_time_ymd(1970, 1, 1) + since_1970(now.before(BACKDATE));
    params.not_after = date_time_ymd(1970, 1, 1) + since_1970(now.after(life));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// Whole seconds since 1970; before that nothing is dated.
fn since_1970(at: Wall) -> Duration {
    Duration::from_secs(u64::try_from(at.unix_seconds()).unwrap_or(0))
}

/// Makes both files. The key is there first: whoever finds it alone, with the certificate
/// still under its other name, can finish.
fn make(files: &CaFiles) -> Result<(), CaError> {
    let failed = |e: rcgen::Error| CaError(format!("could not make one: {e}"));
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = CertificateParams::default();
    // Of two installations, each has a name of its own: a mix-up is told as what it is.
    let own: String = digest(&SHA256, key.public_key_raw()).as_ref()[..NAME_BYTES]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    params.distinguished_name = named(&format!("Roost CA {own}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // It ends with its file, not by the clock, which on a small box may say anything today.
    params.not_before = date_time_ymd(1970, 1, 1);
    params.not_after = date_time_ymd(9999, 12, 31);
    let certificate = params.self_signed(&key).map_err(failed)?;
    let new = new_name(&files.certificate);
    write_secret(&new, &pem("CERTIFICATE", certificate.der()))?;
    let new_key = new_name(&files.key);
    write_secret(&new_key, &pem("PRIVATE KEY", key.serialized_der()))?;
    rename(&new_key, &files.key)?;
    rename(&new, &files.certificate)
}

/// What a power cut left between the two renames.
fn finish_making(files: &CaFiles) -> Result<(), CaError> {
    let new = new_name(&files.certificate);
    if exists(&files.key)? && !exists(&files.certificate)? && exists(&new)? {
        rename(&new, &files.certificate)?;
    }
    Ok(())
}

fn new_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

fn write_secret(path: &Path, text: &str) -> Result<(), CaError> {
    files::write_part(path, text).map_err(|e| unusable(path, &e))
}

fn rename(from: &Path, to: &Path) -> Result<(), CaError> {
    let renamed = std::fs::rename(from, to).and_then(|()| files::sync_dir_of(to));
    renamed.map_err(|e| unusable(to, &e))
}

fn exists(path: &Path) -> Result<bool, CaError> {
    path.try_exists().map_err(|e| unusable(path, &e))
}

fn both_there(files: &CaFiles) -> Result<(), CaError> {
    let CaFiles { certificate, key } = files;
    let (missing, there) = match (exists(certificate)?, exists(key)?) {
        (true, true) => return Ok(()),
        (false, true) => (certificate, key),
        (true, false) => (key, certificate),
        (false, false) => {
            return Err(CaError(format!(
                "there is neither {} nor {}; `roost serve` makes both on its first start",
                certificate.display(),
                key.display()
            )));
        }
    };
    Err(CaError(format!(
        "{} is there and {} is not; restore it, or move both away to have a new CA made, \
         which every host must then register with",
        there.display(),
        missing.display()
    )))
}

fn unusable(path: &Path, error: &std::io::Error) -> CaError {
    CaError(format!("{}: {error}", path.display()))
}

fn wrong(path: &Path, why: &str) -> CaError {
    CaError(format!("{}: {why}", path.display()))
}

fn read_file(path: &Path) -> Result<Vec<u8>, CaError> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let read = File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map(|_| bytes));
    read.map_err(|e| {
        let denied = e.kind() == ErrorKind::PermissionDenied;
        let advice = if denied { "; give it to the user that roost runs as" } else { "" };
        wrong(path, &format!("{e}{advice}"))
    })
}

fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, CaError> {
    let bytes = read_file(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found.map(<[CertificateDer<'_>; 1]>::try_from) {
        Ok(Ok([certificate])) => Ok(certificate),
        Ok(Err(found)) => Err(wrong(
            path,
            &format!(
                "has {} certificates in PEM; it must have the CA's own and no other",
                found.len()
            ),
        )),
        // What the parser says may quote the file.
        Err(_) => Err(wrong(path, "is not PEM")),
    }
}

fn check_ca(path: &Path, certificate: &CertificateDer<'_>, now: Wall) -> Result<(), CaError> {
    let read = Read::of(certificate).map_err(|why| wrong(path, &why))?;
    if !read.is_ca() {
        let why = "is not a CA's certificate (CA:TRUE, and keyCertSign when it has a key usage)";
        return Err(wrong(path, why));
    }
    if let Some(why) = read.out_of_date(now) {
        return Err(wrong(path, &format!("{why}; put a certificate there that is valid")));
    }
    Ok(())
}

fn read_key(path: &Path) -> Result<KeyPair, CaError> {
    let not_p256 = "is not a P-256 key; make one with \
        `openssl ecparam -name prime256v1 -genkey -noout`";
    let key = match PrivateKeyDer::from_pem_slice(&read_file(path)?) {
        Ok(PrivateKeyDer::Pkcs8(key)) => key,
        Ok(PrivateKeyDer::Sec1(key)) => pkcs8_of(key.secret_sec1_der()),
        Ok(_) => return Err(wrong(path, not_p256)),
        Err(_) => {
            return Err(wrong(path, "has no private key in PEM (PKCS#8 or SEC1, not encrypted)"));
        }
    };
    // What the parser says may quote the key.
    KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256)
        .map_err(|_| wrong(path, not_p256))
}

/// A SEC1 key in the envelope that the signer reads: version 0, an elliptic curve key on
/// P-256, and the key itself.
fn pkcs8_of(sec1: &[u8]) -> PrivatePkcs8KeyDer<'static> {
    const VERSION_AND_CURVE: &[u8] = &[
        0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
        0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07,
    ];
    const SEQUENCE: u8 = 0x30;
    const OCTETS: u8 = 0x04;
    der(SEQUENCE, &[VERSION_AND_CURVE, &der(OCTETS, sec1)].concat()).into()
}

/// Tag, length and content, with the length as short as DER wants it.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes();
    let length: &[u8] = match (high, low) {
        (0, 0..=0x7f) => &[low],
        (0, _) => &[0x81, low],
        _ => &[0x82, high, low],
    };
    [&[tag], length, content].concat()
}

fn pem(label: &str, der: &[u8]) -> String {
    let digits = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in digits.as_bytes().chunks(PEM_LINE_CHARS) {
        text.extend(line.iter().map(|digit| char::from(*digit)));
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}
