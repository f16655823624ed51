//! Owns the secrets that live in files: made on first use, mode 0600.
//!
//! Never: prints one, keeps more of it than is needed, compares one byte by byte.

use crate::files;
use crate::store::StoreError;
use ring::digest::{SHA256, digest};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use std::fmt;
use std::io::{ErrorKind, Read};
use std::path::Path;
use subtle::ConstantTimeEq;

/// Random bytes in a key or token: 256 bits.
const SECRET_BYTES: usize = 32;

/// What every API key begins with, so that scanners for leaked secrets know it.
pub const API_KEY_PREFIX: &str = "roost_";

/// SHA-256 of a secret: what is stored and compared.
pub fn hash(secret: &str) -> [u8; 32] {
    hash_bytes(secret.as_bytes())
}

/// SHA-256 of any bytes.
pub(super) fn hash_bytes(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

/// A fresh secret: 64 hexadecimal digits.
pub fn fresh() -> String {
    bytes::<SECRET_BYTES>().iter().map(|b| format!("{b:02x}")).collect()
}

/// Random bytes. An operating system without randomness is beyond help: panics.
pub(super) fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the system gives random bytes");
    bytes
}

/// The operator's key, as a hash.
#[derive(Clone, Copy)]
pub struct AdminKey([u8; 32]);

impl AdminKey {
    /// Reads the key file, or makes it.
    pub fn load_or_create(path: &Path) -> Result<AdminKey, StoreError> {
        let key = read_or_create(path, || format!("{API_KEY_PREFIX}{}", fresh()))?;
        Ok(AdminKey::of(&key))
    }

    /// The key with this text.
    pub fn of(key: &str) -> AdminKey {
        AdminKey(hash(key))
    }

    /// Whether this is the [`hash`] of the key; takes the same time whatever it is.
    pub fn is(&self, shown: &[u8; 32]) -> bool {
        self.0.ct_eq(shown).into()
    }
}

impl fmt::Debug for AdminKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminKey(…)")
    }
}

/// Signs and checks host tokens. Not in the database, so that a restored or emptied
/// database does not make genuine agents strangers.
#[derive(Clone)]
pub struct TokenKey(pub(super) hmac::Key);

impl TokenKey {
    /// Reads the key file, or makes it.
    pub fn load_or_create(path: &Path) -> Result<TokenKey, StoreError> {
        Ok(TokenKey::of(&read_or_create(path, fresh)?))
    }

    /// The key with this text.
    pub fn of(secret: &str) -> TokenKey {
        TokenKey(hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()))
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(…)")
    }
}

/// The secret in a file, without white space around it.
pub fn read(path: &Path) -> Result<String, StoreError> {
    let mut text = String::new();
    let mut file = std::fs::File::open(path).map_err(|e| StoreError::io(path, &e))?;
    file.read_to_string(&mut text).map_err(|e| StoreError::io(path, &e))?;
    let secret = files::without_mark(&text).trim();
    if secret.is_empty() {
        let empty = std::io::Error::new(
            ErrorKind::InvalidData,
            "is empty; restore it from a backup, or delete it to have a new one made",
        );
        return Err(StoreError::io(path, &empty));
    }
    Ok(secret.to_owned())
}

fn read_or_create(path: &Path, make: impl Fn() -> String) -> Result<String, StoreError> {
    if path.try_exists().map_err(|e| StoreError::io(path, &e))? {
        return read(path);
    }
    let secret = make();
    let written = files::write_whole(path, &path.with_extension("new"), &format!("{secret}\n"));
    written.map_err(|e| StoreError::io(path, &e))?;
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_file_is_made_once_and_is_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.key");
        let made = AdminKey::load_or_create(&path).unwrap();
        let text = read(&path).unwrap();
        assert!(text.starts_with(API_KEY_PREFIX) && text.len() == API_KEY_PREFIX.len() + 64);
        assert!(made.is(&hash(&text)) && !made.is(&hash("roost_")) && !made.is(&hash("")));
        assert!(AdminKey::load_or_create(&path).unwrap().is(&hash(&text)));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, " \n").unwrap();
        assert!(AdminKey::load_or_create(&path).is_err(), "an empty key would let everybody in");
        assert_ne!(fresh(), fresh());
    }
}
