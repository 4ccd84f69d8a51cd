//! `[audit]`: who signs this host's records, whose records count, and where its journal is (docs/audit.md).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Origin, Setting, Source, UserKeys, state_directory};

/// The table as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuditTable {
    key_file: Option<PathBuf>,
    directory: Option<PathBuf>,
    trust: Option<Vec<String>>,
    retired: Option<Vec<Retired>>,
}

/// A key that counts for the first records of the log only.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Retired {
    /// The public half.
    pub(crate) key: String,
    /// How many records the log had when it was retired.
    pub(crate) size: u64,
}

/// Resolved.
#[derive(Debug)]
pub(crate) struct AuditSettings {
    pub(crate) key_file: Option<Setting<PathBuf>>,
    pub(crate) directory: Setting<PathBuf>,
    pub(crate) trust: Setting<Vec<String>>,
    pub(crate) retired: Setting<Vec<Retired>>,
}

impl AuditSettings {
    pub(super) fn resolve(source: &Source<'_>, table: AuditTable, user_keys: &UserKeys) -> Self {
        let own = user_keys.audit_key();
        let own = own.exists().then(|| Setting { value: own, origin: Origin::User(user_keys.directory.clone()) });
        let state = state_directory().unwrap_or_else(|| PathBuf::from("/var/lib"));
        let by_default = Setting { value: state.join("lifeboat/audit"), origin: Origin::Default };
        Self {
            key_file: source.path("LIFEBOAT_AUDIT_KEY", table.key_file).or(own),
            directory: source.path("LIFEBOAT_AUDIT_DIRECTORY", table.directory).unwrap_or(by_default),
            trust: source.pick(None, None, table.trust).unwrap_or(Setting { value: Vec::new(), origin: Origin::Default }),
            retired: source.pick(None, None, table.retired).unwrap_or(Setting { value: Vec::new(), origin: Origin::Default }),
        }
    }

    /// Its settings: key, value, origin.
    pub(super) fn rows(&self) -> Vec<(String, serde_json::Value, String)> {
        let key = self.key_file.as_ref().map(|setting| (json!(setting.value), setting.origin.to_string()));
        let (key, key_origin) = key.unwrap_or((serde_json::Value::Null, "not set".into()));
        vec![
            ("audit.key_file".into(), key, key_origin),
            ("audit.directory".into(), json!(self.directory.value), self.directory.origin.to_string()),
            ("audit.trust".into(), json!(self.trust.value), self.trust.origin.to_string()),
            ("audit.retired".into(), json!(self.retired.value), self.retired.origin.to_string()),
        ]
    }
}
