//! Owns the CA's two files: made once, brought by the operator, refused; and what the
//! certificates say that it issues.
//!
//! Never: a handshake.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, date_time_ymd,
};
use roost::agent::authority::{Authority, BACKDATE, CLIENT_LIFE, CaFiles, HOST_LIFE, Issued};
use roost::clock::{Clock, ManualClock, SystemClock};
use roost::model::id::HostId;
use roost::model::time::Wall;
use rustls::pki_types::CertificateDer;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;
use x509_parser::prelude::{FromDer, X509Certificate};

fn files(dir: &Path) -> CaFiles {
    CaFiles { certificate: dir.join("ca.pem"), key: dir.join("ca.key") }
}

fn now() -> Wall {
    SystemClock.now().wall
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// A pair of files of the operator's own.
struct Own {
    dir: TempDir,
    files: CaFiles,
}

impl Own {
    fn new(certificate: &str, key: &str) -> Own {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path());
        std::fs::write(&files.certificate, certificate).unwrap();
        std::fs::write(&files.key, key).unwrap();
        Own { dir, files }
    }

    fn error(&self) -> String {
        Authority::load_or_create(&self.files, now()).unwrap_err().to_string()
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let digits = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{digits}\n-----END {label}-----\n")
}

/// A CA as an operator might make it, but for a change: certificate, and key in PKCS#8.
fn own_ca(key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, "Operators");
    params.distinguished_name.push(DnType::CommonName, "Fleet CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    change(&mut params);
    pem("CERTIFICATE", params.self_signed(key).unwrap().der())
}

fn pkcs8(key: &KeyPair) -> String {
    pem("PRIVATE KEY", key.serialized_der())
}

fn p256() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

/// Nothing of it may be in `text`.
pub(crate) fn assert_untold(secret: &str, text: &str) {
    let lines = secret.lines().filter(|line| !line.starts_with("-----") && line.len() >= 16);
    let parts: Vec<&str> = lines
        .flat_map(|line| line.as_bytes().chunks(16))
        .map(|part| std::str::from_utf8(part).unwrap())
        .filter(|part| part.len() == 16)
        .collect();
    assert!(!parts.is_empty(), "no secret to look for");
    for part in parts {
        assert!(!text.contains(part), "a secret was told: {text}");
    }
}

#[test]
fn it_is_made_once_and_only_its_owner_can_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let files = files(dir.path());
    let missing = Authority::load(&files, now()).unwrap_err().to_string();
    assert!(missing.contains("`roost serve` makes both"), "{missing}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "looking makes nothing");

    let made = Authority::load_or_create(&files, now()).unwrap();
    let texts = (read(&files.certificate), read(&files.key));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left behind");
    for path in [&files.certificate, &files.key] {
        let mode = std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", path.display());
    }
    assert_eq!(made.cert_pem(), texts.0);
    assert_untold(&texts.1, &format!("{made:?} {:?}", made.issue_client(now()).unwrap()));

    let again = Authority::load_or_create(&files, now()).unwrap();
    assert_eq!(again.certificate(), made.certificate());
    assert_eq!((read(&files.certificate), read(&files.key)), texts);
    // A box without a battery starts in 1970; what it makes then counts later too.
    let early = tempfile::tempdir().unwrap();
    let early = super::authority::files(early.path());
    std::fs::create_dir_all(early.key.parent().unwrap()).unwrap();
    Authority::load_or_create(&early, Wall(5000)).unwrap();
    Authority::load(&early, now().after(HOST_LIFE * 5000)).unwrap();
}

#[test]
fn a_power_cut_while_it_is_made_needs_no_hand() {
    let dir = tempfile::tempdir().unwrap();
    let files = files(dir.path());
    Authority::load_or_create(&files, now()).unwrap();
    let whole = read(&files.certificate);
    let part = dir.path().join("ca.pem.new");
    // After the first of two renames, and before both.
    std::fs::rename(&files.certificate, &part).unwrap();
    assert_eq!(Authority::load_or_create(&files, now()).unwrap().cert_pem(), whole);
    std::fs::rename(&files.certificate, &part).unwrap();
    std::fs::rename(&files.key, dir.path().join("ca.key.new")).unwrap();
    Authority::load_or_create(&files, now()).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn the_operator_s_own_is_taken() {
    let key = p256();
    // The inner key of what `KeyPair` writes: behind version, algorithm and two lengths.
    let sec1 = pem("EC PRIVATE KEY", &key.serialized_der()[29..]);
    let with_parameters = format!("{}{sec1}", pem("EC PARAMETERS", b"\x06\x08ignored."));
    let plain = own_ca(&key, |_| ());
    let unlimited = own_ca(&key, |params| params.key_usages.clear());
    for (certificate, key) in [
        (&plain, pkcs8(&key)),
        (&plain, sec1),
        (&plain, with_parameters),
        (&unlimited, pkcs8(&key)),
        (&format!("Subject: Fleet CA\n\n{plain}"), pkcs8(&key)),
    ] {
        let own = Own::new(certificate, &key);
        let authority = Authority::load_or_create(&own.files, now()).unwrap();
        assert_eq!(read(&own.files.key), key, "left as it is");
        let issued = authority.issue_host(HostId::from_u128(1), &"a:1".parse().unwrap(), now());
        let issued = issued.unwrap();
        let (_, ca) = X509Certificate::from_der(authority.certificate()).unwrap();
        let (_, leaf) = X509Certificate::from_der(&issued.certificate).unwrap();
        assert_eq!(leaf.issuer(), ca.subject());
        leaf.verify_signature(Some(ca.public_key())).unwrap();
    }
}

#[test]
fn what_is_no_ca_as_it_must_be_is_refused_and_no_key_is_told() {
    let key = p256();
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let ed25519 = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let good = own_ca(&key, |_| ());
    let expired = own_ca(&key, |params| params.not_after = date_time_ymd(2020, 1, 1));
    let early = own_ca(&key, |params| params.not_before = date_time_ymd(4000, 1, 1));
    let leaf = own_ca(&key, |params| params.is_ca = IsCa::NoCa);
    let no_signing =
        own_ca(&key, |params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
    let pkcs8 = pkcs8(&key);
    let cut = &pkcs8[..pkcs8.len() / 2];
    let cases = [
        ("another curve", own_ca(&p384, |_| ()), super::authority::pkcs8(&p384), "not a P-256 key"),
        (
            "no curve",
            own_ca(&ed25519, |_| ()),
            super::authority::pkcs8(&ed25519),
            "not a P-256 key",
        ),
        ("another's key", good.clone(), super::authority::pkcs8(&p256()), "is not the key of"),
        ("expired", expired, pkcs8.clone(), "has expired on"),
        ("not yet", early, pkcs8.clone(), "is not valid before"),
        ("a leaf", leaf, pkcs8.clone(), "is not a CA's certificate"),
        ("must not sign", no_signing, pkcs8.clone(), "is not a CA's certificate"),
        ("two", format!("{good}{good}"), pkcs8.clone(), "has 2 certificates"),
        ("none", pkcs8.clone(), pkcs8.clone(), "has 0 certificates"),
        ("empty", String::new(), pkcs8.clone(), "has 0 certificates"),
        ("no key", good.clone(), good.clone(), "has no private key in PEM"),
        ("half a key", good.clone(), cut.to_owned(), "has no private key in PEM"),
        ("garbage", pem("CERTIFICATE", b"garbage"), pkcs8.clone(), "is not a certificate"),
    ];
    for (name, certificate, key, words) in cases {
        let own = Own::new(&certificate, &key);
        let error = own.error();
        assert!(error.contains(words), "{name}: {error}");
        assert!(error.contains(own.dir.path().to_str().unwrap()), "{name}: {error}");
        assert_untold(&pkcs8, &error);
        assert_eq!((read(&own.files.certificate), read(&own.files.key)), (certificate, key));
    }
    for (missing, there) in [("ca.pem", "ca.key"), ("ca.key", "ca.pem")] {
        let own = Own::new(&good, &pkcs8);
        std::fs::remove_file(own.dir.path().join(missing)).unwrap();
        let error = own.error();
        let words = format!("{} is not; restore it", own.dir.path().join(missing).display());
        assert!(error.contains(&words) && error.contains(there), "{error}");
        assert!(!own.dir.path().join(missing).exists());
    }
}

/// What a certificate says, one thing a line.
fn told(authority: &Authority, issued: &Issued) -> String {
    let der: &CertificateDer<'_> = &issued.certificate;
    let (rest, certificate) = X509Certificate::from_der(der).unwrap();
    assert!(rest.is_empty());
    let (_, ca) = X509Certificate::from_der(authority.certificate()).unwrap();
    certificate.verify_signature(Some(ca.public_key())).unwrap();
    assert_eq!(certificate.issuer(), ca.subject());
    let mut lines = vec![format!("subject {}", certificate.subject())];
    let key = &certificate.public_key().algorithm;
    let curve = key.parameters.as_ref().unwrap().as_oid().unwrap();
    lines.push(format!("key {} {}", key.algorithm, curve));
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    lines.push(format!("server {} client {}", usage.server_auth, usage.client_auth));
    assert!(!usage.any && !certificate.is_ca());
    let names = certificate.subject_alternative_name().unwrap();
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        lines.push(name.to_string());
    }
    lines.join("\n")
}

fn valid(issued: &Issued) -> (i64, i64) {
    let (_, certificate) = X509Certificate::from_der(&issued.certificate).unwrap();
    let validity = certificate.validity();
    (validity.not_before.timestamp(), validity.not_after.timestamp())
}

#[test]
fn certificates_say_what_agents_and_we_look_for() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::load_or_create(&files(dir.path()), now()).unwrap();
    let at = Wall(1_779_000_000_000);
    let host = |address: &str| {
        authority.issue_host(HostId::from_u128(5), &address.parse().unwrap(), at).unwrap()
    };
    let ours = authority.issue_client(at).unwrap();
    let told = [
        told(&authority, &host("10.1.2.3:50051")),
        told(&authority, &host("[fe80::1]:50051")),
        told(&authority, &host("https://edge-1.example./agent")),
        told(&authority, &ours),
    ];
    expect_test::expect![[r#"
        subject CN=host-0000000000000000000000005
        key 1.2.840.10045.2.1 1.2.840.10045.3.1.7
        server true client false
        IPAddress(0a:01:02:03)

        subject CN=host-0000000000000000000000005
        key 1.2.840.10045.2.1 1.2.840.10045.3.1.7
        server true client false
        IPAddress(fe:80:00:00:00:00:00:00:00:00:00:00:00:00:00:01)

        subject CN=host-0000000000000000000000005
        key 1.2.840.10045.2.1 1.2.840.10045.3.1.7
        server true client false
        DNSName(edge-1.example)

        subject CN=wrenn-cp
        key 1.2.840.10045.2.1 1.2.840.10045.3.1.7
        server false client true"#]]
    .assert_eq(&told.join("\n\n"));
    let at_s = at.unix_seconds();
    let seconds = |span: Duration| i64::try_from(span.as_secs()).unwrap();
    assert_eq!((seconds(HOST_LIFE), seconds(CLIENT_LIFE)), (7 * 86_400, 86_400));
    let from = at_s - seconds(BACKDATE);
    assert_eq!(valid(&host("a:1")), (from, at_s + 7 * 86_400));
    assert_eq!(valid(&ours), (from, at_s + 86_400));
    // A clock that stands before 1970 is no reason to give up.
    let clock = ManualClock::new(Wall(-5));
    authority.issue_client(clock.now().wall).unwrap();
}
