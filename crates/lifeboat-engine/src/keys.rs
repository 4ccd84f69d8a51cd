//! Wrapping data keys to restore identities with age (age-encryption.org/v1).

use std::io::{Read as _, Write as _};
use std::str::FromStr as _;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use lifeboat_core::repository::{
    Id,
    manifest::{KeyPurpose, WrappedKey},
};
use zeroize::Zeroizing;

use crate::seal::DataKey;

/// Why keys could not be wrapped or unwrapped.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not an age recipient.
    #[error("parse recipient {0:?}: it is not an age1… public key")]
    Recipient(String),
    /// Not an identity file.
    #[error("parse identity file: line {0} is not an AGE-SECRET-KEY-1… line")]
    Identity(usize),
    /// An identity file without an identity.
    #[error("parse identity file: no AGE-SECRET-KEY-1… line in it")]
    NoIdentity,
    /// None of the identities at hand is one that the key was wrapped to.
    #[error("unwrap data key {0}: no identity at hand opens it")]
    WrongIdentity(Id),
    /// No identity was given at all.
    #[error("unwrap data key {0}: no identity given")]
    NoneGiven(Id),
    /// The wrapped key is damaged.
    #[error("unwrap data key {id}: {problem}")]
    Damaged {
        /// The key.
        id: Id,
        /// What is wrong.
        problem: String,
    },
}

/// A restore identity's public half: keys are wrapped to it.
#[derive(Clone)]
pub struct Recipient(age::x25519::Recipient);

impl std::str::FromStr for Recipient {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        age::x25519::Recipient::from_str(text.trim()).map(Self).map_err(|_| KeyError::Recipient(text.chars().take(80).collect()))
    }
}

impl std::fmt::Display for Recipient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl Recipient {
    /// What tells it from others in the catalog of artifacts: the first 16 hexadecimal digits of the SHA-256 of its text (format 8).
    pub fn mark(&self) -> String {
        crate::sha256::of(self.to_string().as_bytes()).to_string()[..16].to_owned()
    }
}

/// Restore identities: what opens backups.
#[derive(Clone, Default)]
pub struct Identities(Vec<age::x25519::Identity>);

impl std::fmt::Debug for Identities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identities({})", self.0.len())
    }
}

/// A fresh identity: the text of its file, and its recipient.
pub fn generate_identity(created: jiff::Timestamp) -> (Zeroizing<String>, Recipient) {
    use age::secrecy::ExposeSecret as _;
    let identity = age::x25519::Identity::generate();
    let recipient = identity.to_public();
    let text = format!("# created: {created}\n# public key: {recipient}\n{}\n", identity.to_string().expose_secret());
    (Zeroizing::new(text), Recipient(recipient))
}

impl Identities {
    /// Reads an identity file, as age-keygen writes it.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let mut identities = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                identities.push(age::x25519::Identity::from_str(line).map_err(|_| KeyError::Identity(number + 1))?);
            }
        }
        if identities.is_empty() { Err(KeyError::NoIdentity) } else { Ok(Self(identities)) }
    }

    /// Both together.
    pub fn join(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The public halves.
    pub fn recipients(&self) -> Vec<Recipient> {
        self.0.iter().map(|identity| Recipient(identity.to_public())).collect()
    }

    /// Unwraps a data key.
    pub fn unwrap(&self, id: Id, wrapped: &str) -> Result<DataKey, KeyError> {
        if self.0.is_empty() {
            return Err(KeyError::NoneGiven(id));
        }
        let damaged = |problem: String| KeyError::Damaged { id, problem };
        let bytes = BASE64.decode(wrapped).map_err(|e| damaged(e.to_string()))?;
        let decryptor = age::Decryptor::new(&bytes[..]).map_err(|error| damaged(words(&error)))?;
        let mut reader = decryptor.decrypt(self.0.iter().map(|identity| identity as &dyn age::Identity)).map_err(|error| match error {
            age::DecryptError::NoMatchingKeys => KeyError::WrongIdentity(id),
            other => damaged(words(&other)),
        })?;
        let mut secret = Zeroizing::new([0; 32]);
        let whole = reader.read_exact(&mut *secret).and_then(|()| reader.read(&mut [0]));
        match whole {
            Ok(0) => Ok(DataKey::from_secret(id, secret)),
            Ok(_) => Err(damaged("it is longer than 32 bytes".into())),
            Err(error) => Err(damaged(error.to_string())),
        }
    }
}

/// What age says of a file, in our words: its own text is translated with files that are read when it is first shown, and where they
/// cannot be read it panics.
fn words(error: &age::DecryptError) -> String {
    match error {
        age::DecryptError::Io(error) => error.to_string(),
        age::DecryptError::InvalidHeader => "its header is damaged".into(),
        age::DecryptError::InvalidMac => "its header is not the one that was written".into(),
        age::DecryptError::DecryptionFailed => "its bytes are not those that were encrypted".into(),
        age::DecryptError::KeyDecryptionFailed => "its key is damaged".into(),
        age::DecryptError::UnknownFormat => "it is no file of age's".into(),
        other => format!("{other:?}"),
    }
}

/// Wraps a data key to every recipient; base64 of an age file.
pub fn wrap(key: &DataKey, recipients: &[Recipient]) -> Result<String, KeyError> {
    let wrap = || -> Result<String, Box<dyn std::error::Error>> {
        let encryptor = age::Encryptor::with_recipients(recipients.iter().map(|r| &r.0 as &dyn age::Recipient))?;
        let mut out = Vec::new();
        let mut writer = encryptor.wrap_output(&mut out)?;
        writer.write_all(key.secret())?;
        writer.finish()?;
        Ok(BASE64.encode(out))
    };
    wrap().map_err(|error| KeyError::Damaged { id: key.id, problem: format!("{error:?}") })
}

/// The two data keys of a new backup, and how the manifest carries them.
pub fn backup_keys(recipients: &[Recipient], host: Option<&Recipient>) -> Result<([DataKey; 2], Vec<WrappedKey>), KeyError> {
    let (data, tables) = (DataKey::generate(), DataKey::generate());
    let mut table_readers = recipients.to_vec();
    table_readers.extend(host.cloned());
    let entries = vec![
        WrappedKey { id: data.id, purpose: KeyPurpose::Data, wrapped: wrap(&data, recipients)? },
        WrappedKey { id: tables.id, purpose: KeyPurpose::Tables, wrapped: wrap(&tables, &table_readers)? },
    ];
    Ok(([data, tables], entries))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_it_was_wrapped_to_unwrap_a_key() {
        let (text, recipient) = generate_identity(jiff::Timestamp::UNIX_EPOCH);
        let (other, host) = generate_identity(jiff::Timestamp::UNIX_EPOCH);
        let mine = Identities::parse(&text).unwrap();
        let host_only = Identities::parse(&other).unwrap();
        let ([data, tables], wrapped) = backup_keys(&[recipient], Some(&host)).unwrap();
        assert_eq!(mine.unwrap(data.id, &wrapped[0].wrapped).unwrap().secret(), data.secret());
        assert_eq!(mine.unwrap(tables.id, &wrapped[1].wrapped).unwrap().secret(), tables.secret());
        // The host plans with the tables, and cannot read data.
        assert_eq!(host_only.unwrap(tables.id, &wrapped[1].wrapped).unwrap().secret(), tables.secret());
        assert!(matches!(host_only.unwrap(data.id, &wrapped[0].wrapped), Err(KeyError::WrongIdentity(_))));
        assert!(matches!(Identities::default().unwrap(data.id, &wrapped[0].wrapped), Err(KeyError::NoneGiven(_))));
        assert!(matches!(mine.unwrap(data.id, "AAAA"), Err(KeyError::Damaged { .. })));
    }

    #[test]
    fn identity_files_are_those_of_age_keygen() {
        assert!(matches!(Identities::parse("# nothing\n"), Err(KeyError::NoIdentity)));
        assert!(matches!(Identities::parse("# x\nnonsense"), Err(KeyError::Identity(2))));
        assert!("age1nonsense".parse::<Recipient>().is_err());
    }
}
