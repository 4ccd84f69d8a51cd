//! The keys that lifeboat makes for itself where nobody configured any, in the user's configuration directory.
//!
//! Which of several signs, and which are trusted until when, is said by `keys.toml` beside them, once a key was rotated or revoked. It has
//! the tables `[signing]` and `[trust]` of the configuration, with nothing but `key_file` and `keys` in them.

use std::path::PathBuf;

use serde::Deserialize;

use super::trust::{KeyEntry, KeyPlace, KeySource, sources};
use crate::failure::Failure;

/// Where they are, and what `keys.toml` says of them.
#[derive(Debug, Clone)]
pub(crate) struct UserKeys {
    pub(crate) directory: PathBuf,
    signing_key: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeysFile {
    signing: Option<SigningTable>,
    trust: Option<TrustTable>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SigningTable {
    key_file: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TrustTable {
    keys: Vec<KeyEntry>,
}

impl UserKeys {
    /// A directory for keys that are to be made.
    pub(crate) fn at(directory: PathBuf) -> Self {
        Self { directory, signing_key: None }
    }

    /// What is in a directory. A missing one has nothing.
    pub(crate) fn read(directory: PathBuf) -> Result<Self, Failure> {
        let mut keys = Self::at(directory);
        if let Some(file) = keys.file()? {
            keys.signing_key = file.signing.map(|signing| keys.directory.join(signing.key_file));
        }
        Ok(keys)
    }

    fn file(&self) -> Result<Option<KeysFile>, Failure> {
        let path = self.state();
        let failed = |problem: String| {
            Failure::usage(format!("read {}: {problem}", path.display()))
                .hint("lifeboat key rotate writes it; docs/trust.md says what is in it")
        };
        match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).map(Some).map_err(|error| failed(error.message().replace('\n', " "))),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => Ok(None),
            // Keys of somebody else: as if there were none, until something asks for them.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(None),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// The trusted keys.
    pub(super) fn trusted(&self) -> Result<Vec<KeySource>, Failure> {
        match self.file()?.and_then(|file| file.trust) {
            Some(trust) => sources(trust.keys, |path| self.directory.join(path)),
            None if self.public_key().exists() => Ok(vec![KeySource::plain(KeyPlace::File(self.public_key()))]),
            None => Ok(Vec::new()),
        }
    }

    /// `keys.toml`.
    pub(crate) fn state(&self) -> PathBuf {
        self.directory.join("keys.toml")
    }

    /// What `keys.toml` says as long as it is not there.
    pub(crate) fn initial_state() -> &'static str {
        "# Which key signs, and which keys are trusted until when. Written by lifeboat key rotate and lifeboat key revoke.\n\
         [signing]\nkey_file = \"signing.key\"\n\n[trust]\nkeys = [\n    \"signing.pub\",\n]\n"
    }

    /// The private key that signs.
    pub(crate) fn signing_key(&self) -> PathBuf {
        self.signing_key.clone().unwrap_or_else(|| self.directory.join("signing.key"))
    }

    pub(crate) fn public_key(&self) -> PathBuf {
        self.signing_key().with_extension("pub")
    }

    pub(crate) fn password(&self) -> PathBuf {
        self.directory.join("signing.password")
    }

    pub(crate) fn identity(&self) -> PathBuf {
        self.directory.join("identity.txt")
    }

    pub(crate) fn recipients(&self) -> PathBuf {
        self.directory.join("recipients.txt")
    }

    pub(crate) fn host_identity(&self) -> PathBuf {
        self.directory.join("host-identity.txt")
    }

    pub(crate) fn audit_key(&self) -> PathBuf {
        self.directory.join("audit.key")
    }

    pub(crate) fn audit_public_key(&self) -> PathBuf {
        self.directory.join("audit.pub")
    }

    /// What is wrong with a text for `keys.toml`, if anything.
    pub(crate) fn check(text: &str) -> Result<(), String> {
        toml::from_str::<KeysFile>(text).map(drop).map_err(|error| error.message().replace('\n', " "))
    }
}
