//! `[approvals]`: who approves plans, for how long, and who is told (docs/approvals.md).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use jiff::SignedDuration;
use lifeboat_core::approval::{DEFAULT_LIFETIME, MAX_LIFETIME, Persons};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Origin, Setting, Source, Span};
use crate::failure::Failure;

/// The table as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ApprovalsTable {
    pub(crate) allowed_signers: Option<PathBuf>,
    pub(crate) persons: Option<BTreeMap<String, Vec<String>>>,
    pub(crate) lifetime: Option<Span>,
    pub(crate) alert_command: Option<Vec<String>>,
}

/// The same, resolved.
#[derive(Debug)]
pub(crate) struct Approvals {
    /// OpenSSH's file of keys and whose they are.
    pub(crate) allowed_signers: Option<Setting<PathBuf>>,
    /// Which names are whose, as written and as understood.
    pub(crate) persons: Setting<BTreeMap<String, Vec<String>>>,
    pub(crate) known: Persons,
    /// The longest that a request is open.
    pub(crate) lifetime: Setting<SignedDuration>,
    /// Who is told.
    pub(crate) alert_command: Option<Setting<Vec<String>>>,
}

impl Approvals {
    pub(super) fn resolve(source: &Source<'_>, table: ApprovalsTable) -> Result<Self, Failure> {
        let bad = |what: String| {
            Failure::usage(format!("read configuration: {what}")).hint("docs/approvals.md; lifeboat config show prints the settings")
        };
        let lifetime = match table.lifetime {
            None => None,
            Some(Span(span)) => match SignedDuration::try_from(span) {
                Ok(span) if span <= MAX_LIFETIME => Some(span),
                _ => return Err(bad(format!("approvals.lifetime must be at most {}h", MAX_LIFETIME.as_hours()))),
            },
        };
        if table.alert_command.as_ref().is_some_and(Vec::is_empty) {
            return Err(bad("approvals.alert_command is empty".into()));
        }
        let persons = table.persons.unwrap_or_default();
        let known = Persons::new(persons.iter().map(|(person, names)| (person.as_str(), names.as_slice())))
            .map_err(|error| bad(format!("approvals.persons: {error}")))?;
        let or_default = |value| Setting { value, origin: Origin::Default };
        Ok(Self {
            allowed_signers: source.path("LIFEBOAT_ALLOWED_SIGNERS", table.allowed_signers),
            persons: source
                .pick(None, None, Some(persons).filter(|persons| !persons.is_empty()))
                .unwrap_or_else(|| Setting { value: BTreeMap::new(), origin: Origin::Default }),
            known,
            lifetime: source.pick(None, None, lifetime).unwrap_or_else(|| or_default(DEFAULT_LIFETIME)),
            alert_command: source.pick(None, None, table.alert_command),
        })
    }

    /// For `config show`.
    pub(super) fn rows(&self) -> Vec<(&'static str, Value, String)> {
        let unset = |key| (key, Value::Null, "not set".to_owned());
        let lifetime = Duration::try_from(self.lifetime.value).unwrap_or_default();
        let file = self.allowed_signers.as_ref();
        let alert = self.alert_command.as_ref();
        vec![
            file.map_or_else(
                || unset("approvals.allowed_signers"),
                |setting| ("approvals.allowed_signers", json!(setting.value), setting.origin.to_string()),
            ),
            ("approvals.persons", json!(self.persons.value), self.persons.origin.to_string()),
            ("approvals.lifetime", json!(format!("{lifetime:?}")), self.lifetime.origin.to_string()),
            alert.map_or_else(
                || unset("approvals.alert_command"),
                |setting| ("approvals.alert_command", json!(setting.value), setting.origin.to_string()),
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str) -> Result<Approvals, Failure> {
        let table: ApprovalsTable = toml::from_str(text).map_err(|error| Failure::usage(error.to_string()))?;
        Approvals::resolve(&Source { path: Some(std::path::Path::new("/etc/lifeboat/lifeboat.toml")) }, table)
    }

    #[test]
    fn what_is_written_is_checked() {
        let good = resolve("allowed_signers = 'signers'\nlifetime = '4h'\n[persons]\nalice = ['a@example.com', 'SHA256:x']").unwrap();
        assert_eq!(good.allowed_signers.unwrap().value, std::path::Path::new("/etc/lifeboat/signers"));
        assert_eq!(good.known.person("A@example.com"), "alice");
        assert_eq!(good.lifetime.value, SignedDuration::from_hours(4));
        assert_eq!(resolve("").unwrap().lifetime.value, DEFAULT_LIFETIME);
        for bad in [
            "lifetime = '8d'",
            "lifetime = '169h'",
            "lifetime = '0s'",
            "alert_command = []",
            "alowed_signers = 'x'",
            "[persons]\na = ['x']\nb = ['x']",
        ] {
            assert!(resolve(bad).is_err(), "{bad}");
        }
    }
}
