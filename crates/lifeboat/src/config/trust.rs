//! `[trust]`: whose signatures count, for what, and until when (docs/trust.md).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use lifeboat_core::trust::{Identity, Kind, Revocation, SubjectRule, Terms};
use serde::{Deserialize, Deserializer};
use toml::Value;

use super::{Origin, Setting, Source, UserKeys};
use crate::failure::Failure;

const HINT: &str = "docs/trust.md shows how [trust] is written; lifeboat key list prints it as read";

/// The table as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TrustTable {
    pub(crate) keys: Option<Vec<KeyEntry>>,
    pub(crate) identities: Option<Vec<IdentityTable>>,
    pub(crate) trusted_root: Option<PathBuf>,
    pub(crate) require_timestamp: Option<bool>,
}

/// An entry of `keys`: a path or PEM text, trusted for everything and for ever; or a table with terms.
#[derive(Debug)]
pub(crate) enum KeyEntry {
    Text(String),
    Table(Box<KeyTable>),
}

// Not an untagged enum: its errors would not name the member that is wrong.
impl<'de> Deserialize<'de> for KeyEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Self::Text(text)),
            table @ Value::Table(_) => match table.try_into() {
                Ok(table) => Ok(Self::Table(Box::new(table))),
                Err(error) => Err(serde::de::Error::custom(format_args!("trust.keys: {}", error.to_string().trim().replace('\n', " ")))),
            },
            _ => Err(serde::de::Error::custom("trust.keys: an entry is a path, PEM text, or a table { file = \"…\", … }")),
        }
    }
}

/// A key and its terms.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeyTable {
    file: Option<PathBuf>,
    pem: Option<String>,
    #[serde(rename = "for")]
    kinds: Option<BTreeSet<Kind>>,
    person: Option<String>,
    not_before: Option<Moment>,
    not_after: Option<Moment>,
    revoked_since: Option<Moment>,
    reason: Option<String>,
    known_good: Option<PathBuf>,
}

/// An entry of `identities`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IdentityTable {
    issuer: String,
    subject: Option<String>,
    subject_pattern: Option<String>,
    #[serde(rename = "for")]
    kinds: Option<BTreeSet<Kind>>,
    person: Option<String>,
    not_before: Option<Moment>,
    not_after: Option<Moment>,
    revoked_since: Option<Moment>,
    reason: Option<String>,
}

/// A moment, as text or as TOML's own date and time; never without an offset, which would mean another moment on every host.
#[derive(Debug, Clone, Copy)]
struct Moment(Timestamp);

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = match Value::deserialize(deserializer)? {
            Value::String(text) => text,
            Value::Datetime(time) => time.to_string(),
            other => other.to_string(),
        };
        let time =
            text.parse().map_err(|_| serde::de::Error::custom(format_args!("{text:?} is no RFC 3339 time, like 2024-03-15T12:00:00Z")))?;
        Ok(Self(time))
    }
}

/// Where a key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KeyPlace {
    File(PathBuf),
    Pem(String),
}

/// A trusted key, not read yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeySource {
    pub(crate) place: KeyPlace,
    pub(crate) terms: Terms,
    /// What was vouched for when it was revoked.
    pub(crate) known_good: Option<PathBuf>,
}

/// `[trust]`, resolved.
#[derive(Debug)]
pub(crate) struct TrustSettings {
    pub(crate) keys: Setting<Vec<KeySource>>,
    pub(crate) identities: Setting<Vec<Identity>>,
    pub(crate) trusted_root: Option<Setting<PathBuf>>,
    pub(crate) require_timestamp: Setting<bool>,
}

impl TrustSettings {
    /// From the file; keys also from the user's own directory, where the file trusts nobody. `signing_root` is the trusted root that own signatures
    /// are verified with: the same one counts here, unless the table names another.
    pub(super) fn resolve(
        source: &Source<'_>,
        table: TrustTable,
        signing_root: Option<Setting<PathBuf>>,
        user: &UserKeys,
    ) -> Result<Self, Failure> {
        let file = Origin::File(source.path.map(Path::to_owned).unwrap_or_default());
        let keys = match table.keys {
            Some(entries) => Setting { value: sources(entries, |path| source.anchor(path))?, origin: file.clone() },
            None if table.identities.is_some() => Setting { value: Vec::new(), origin: Origin::Default },
            None => {
                let own = user.trusted()?;
                let origin = if own.is_empty() { Origin::Default } else { Origin::User(user.directory.clone()) };
                Setting { value: own, origin }
            }
        };
        let identities = match table.identities {
            Some(entries) => Setting { value: entries.into_iter().map(identity).collect::<Result<_, _>>()?, origin: file },
            None => Setting { value: Vec::new(), origin: Origin::Default },
        };
        let trusted_root = source.pick(None, None, table.trusted_root.map(|path| source.anchor(path))).or(signing_root);
        if !identities.value.is_empty() && trusted_root.is_none() {
            let message = "read configuration: trust.identities counts for nothing without trust.trusted_root";
            return Err(Failure::usage(message).hint("name the trusted_root.json of the Sigstore instance: docs/trust.md"));
        }
        if table.require_timestamp == Some(true) && trusted_root.is_none() {
            let message = "read configuration: trust.require_timestamp needs trust.trusted_root, which names the timestamp authorities";
            return Err(Failure::usage(message).hint("name the trusted_root.json of the Sigstore instance: docs/trust.md"));
        }
        let require = source.pick(None, None, table.require_timestamp);
        let require_timestamp = require.unwrap_or(Setting { value: false, origin: Origin::Default });
        Ok(Self { keys, identities, trusted_root, require_timestamp })
    }

    /// Whether nobody is trusted.
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.value.is_empty() && self.identities.value.is_empty()
    }

    /// For `config show`: key, value, origin.
    pub(super) fn rows(&self) -> Vec<(&'static str, serde_json::Value, String)> {
        use serde_json::json;
        let identities = json!(self.identities.value);
        vec![
            ("trust.keys", self.keys.value.iter().map(KeySource::shown).collect(), self.keys.origin.to_string()),
            ("trust.identities", identities, self.identities.origin.to_string()),
            match &self.trusted_root {
                Some(root) => ("trust.trusted_root", json!(root.value), root.origin.to_string()),
                None => ("trust.trusted_root", serde_json::Value::Null, "not set".to_owned()),
            },
            ("trust.require_timestamp", json!(self.require_timestamp.value), self.require_timestamp.origin.to_string()),
        ]
    }
}

impl KeySource {
    /// A key trusted for everything and for ever.
    pub(crate) fn plain(place: KeyPlace) -> Self {
        Self { place, terms: Terms::default(), known_good: None }
    }

    /// As `config show` has it: text where there are no terms, as it was before there were any.
    fn shown(&self) -> serde_json::Value {
        use serde_json::json;
        let text = match &self.place {
            KeyPlace::File(path) => path.display().to_string(),
            KeyPlace::Pem(pem) => pem.clone(),
        };
        if self.terms == Terms::default() {
            return json!(text);
        }
        let mut value = json!(self.terms);
        value["key"] = json!(text);
        if let Some(list) = &self.known_good {
            value["known_good"] = json!(list);
        }
        value
    }

    /// As an entry of `trust.keys`, with absolute paths.
    pub(crate) fn toml(&self) -> String {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string();
        let text = match &self.place {
            KeyPlace::File(path) => absolute(path),
            KeyPlace::Pem(pem) => pem.clone(),
        };
        if self.terms == Terms::default() {
            return Value::String(text).to_string();
        }
        let mut table = toml::Table::new();
        table.insert(if matches!(self.place, KeyPlace::Pem(_)) { "pem" } else { "file" }.into(), Value::String(text));
        let Terms { kinds, person, not_before, not_after, revoked } = &self.terms;
        if let Some(kinds) = kinds {
            table.insert("for".into(), Value::Array(kinds.iter().map(|kind| Value::String(kind.name().into())).collect()));
        }
        let (since, reason) = revoked.as_ref().map_or((None, None), |revoked| (Some(revoked.since), revoked.reason.clone()));
        let texts = [
            ("person", person.clone()),
            ("not_before", not_before.map(|time| time.to_string())),
            ("not_after", not_after.map(|time| time.to_string())),
            ("revoked_since", since.map(|time| time.to_string())),
            ("reason", reason),
            ("known_good", self.known_good.as_deref().map(absolute)),
        ];
        table.extend(texts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), Value::String(text?)))));
        Value::Table(table).to_string()
    }
}

/// The entries of `keys`, with their paths made absolute or relative to where we stand.
pub(super) fn sources(entries: Vec<KeyEntry>, anchor: impl Fn(PathBuf) -> PathBuf) -> Result<Vec<KeySource>, Failure> {
    let text = |text: String| match text.contains("-----BEGIN") {
        true => KeyPlace::Pem(text),
        false => KeyPlace::File(anchor(PathBuf::from(text))),
    };
    entries
        .into_iter()
        .map(|entry| match entry {
            KeyEntry::Text(one) => Ok(KeySource::plain(text(one))),
            KeyEntry::Table(table) => {
                let place = match (table.file, table.pem) {
                    (Some(file), None) => KeyPlace::File(anchor(file)),
                    (None, Some(pem)) => KeyPlace::Pem(pem),
                    _ => return Err(refused("trust.keys: an entry names its key by either file or pem")),
                };
                let terms = terms(table.kinds, table.person, table.not_before, table.not_after, table.revoked_since, table.reason)
                    .map_err(|problem| refused(&format!("trust.keys: {problem}")))?;
                if table.known_good.is_some() && terms.revoked.is_none() {
                    return Err(refused("trust.keys: known_good belongs to a key with revoked_since"));
                }
                Ok(KeySource { place, terms, known_good: table.known_good.map(&anchor) })
            }
        })
        .collect()
}

fn identity(table: IdentityTable) -> Result<Identity, Failure> {
    let subject = match (table.subject, table.subject_pattern) {
        (Some(one), None) => SubjectRule::Exactly(one),
        (None, Some(pattern)) => SubjectRule::Pattern(pattern),
        _ => return Err(refused("trust.identities: an entry has either subject or subject_pattern")),
    };
    if table.issuer.is_empty() || subject.to_string().is_empty() {
        return Err(refused("trust.identities: issuer and subject are not empty"));
    }
    let terms = terms(table.kinds, table.person, table.not_before, table.not_after, table.revoked_since, table.reason)
        .map_err(|problem| refused(&format!("trust.identities: {problem}")))?;
    Ok(Identity { issuer: table.issuer, subject, terms })
}

fn terms(
    kinds: Option<BTreeSet<Kind>>,
    person: Option<String>,
    not_before: Option<Moment>,
    not_after: Option<Moment>,
    revoked_since: Option<Moment>,
    reason: Option<String>,
) -> Result<Terms, &'static str> {
    let time = |moment: Option<Moment>| moment.map(|moment| moment.0);
    let revoked = match (revoked_since, reason) {
        (Some(since), reason) => Some(Revocation { since: since.0, reason }),
        (None, Some(_)) => return Err("reason belongs to revoked_since"),
        (None, None) => None,
    };
    let terms = Terms { kinds, person, not_before: time(not_before), not_after: time(not_after), revoked };
    terms.contradiction().map_or(Ok(terms), Err)
}

fn refused(problem: &str) -> Failure {
    Failure::usage(format!("read configuration: {problem}")).hint(HINT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str) -> Result<TrustSettings, String> {
        let table: TrustTable = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        let source = Source { path: Some(Path::new("/etc/lifeboat/lifeboat.toml")) };
        let user = UserKeys::at("/nowhere".into());
        TrustSettings::resolve(&source, table, None, &user).map_err(|failure| failure.message)
    }

    #[test]
    fn keys_are_text_or_tables_with_terms() {
        let trust = resolve(
            r#"keys = ["a.pub", { file = "b.pub", for = ["backup", "wal"], person = "ada", not_before = 2024-01-01T00:00:00Z, not_after = "2025-01-01T00:00:00+01:00" },
                { pem = "-----BEGIN", revoked_since = 2024-06-01T00:00:00Z, reason = "stolen", known_good = "good.txt" }]"#,
        )
        .unwrap();
        let [a, b, c] = trust.keys.value.as_slice() else { panic!("{trust:?}") };
        assert_eq!(*a, KeySource::plain(KeyPlace::File("/etc/lifeboat/a.pub".into())));
        assert_eq!(b.terms.kinds, Some([Kind::Backup, Kind::Wal].into()));
        assert_eq!(b.terms.not_after, Some("2024-12-31T23:00:00Z".parse().unwrap()));
        assert_eq!(c.known_good, Some("/etc/lifeboat/good.txt".into()));
        // What is written is read as the same again.
        let text = format!("keys = [{}]", trust.keys.value.iter().map(KeySource::toml).collect::<Vec<_>>().join(", "));
        assert_eq!(resolve(&text).unwrap().keys.value, trust.keys.value, "{text}");
    }

    #[test]
    fn identities_have_one_subject_and_a_root() {
        let root = "trusted_root = 'root.json'\n";
        let trust =
            resolve(&format!("{root}identities = [{{ issuer = 'https://i', subject_pattern = '*@example.org', for = ['approval'] }}]"));
        let trust = trust.unwrap();
        assert_eq!(trust.trusted_root.unwrap().value, Path::new("/etc/lifeboat/root.json"));
        assert!(trust.identities.value[0].matches("https://i", "ada@example.org"));
        for bad in ["issuer = 'i'", "issuer = 'i', subject = 's', subject_pattern = 'p'", "issuer = '', subject = 's'", "subject = 's'"] {
            assert!(resolve(&format!("{root}identities = [{{ {bad} }}]")).is_err(), "{bad}");
        }
        assert!(resolve("identities = [{ issuer = 'i', subject = 's' }]").unwrap_err().contains("trusted_root"));
        assert!(resolve("require_timestamp = true").unwrap_err().contains("trusted_root"));
    }

    #[test]
    fn c121_what_is_not_understood_is_refused() {
        for (bad, word) in [
            ("keys = [17]", "a path"),
            ("keys = [{ file = 'a', fro = ['backup'] }]", "fro"),
            ("keys = [{ file = 'a', for = ['backups'] }]", "backups"),
            ("keys = [{ file = 'a', for = [] }]", "empty"),
            ("keys = [{ file = 'a', pem = 'b' }]", "either"),
            ("keys = [{ person = 'ada' }]", "either"),
            ("keys = [{ file = 'a', not_after = 2024-01-01 }]", "RFC 3339"),
            ("keys = [{ file = 'a', not_after = 2024-01-01T00:00:00 }]", "RFC 3339"),
            ("keys = [{ file = 'a', not_before = 2025-01-01T00:00:00Z, not_after = 2024-01-01T00:00:00Z }]", "later"),
            ("keys = [{ file = 'a', reason = 'x' }]", "revoked_since"),
            ("keys = [{ file = 'a', known_good = 'x' }]", "revoked_since"),
            ("key = ['a']", "key"),
        ] {
            let error = resolve(bad).unwrap_err();
            assert!(error.contains(word), "{bad}: {error}");
        }
    }
}
