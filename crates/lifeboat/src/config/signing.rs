//! `[signing]`: who signs on this host. A key file, a key service, or certificates for ten minutes; one of them (docs/signing.md).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Origin, Secret, Setting, Source, aws, environment, without_credentials};
use crate::failure::Failure;

/// The table as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SigningTable {
    pub(crate) key_file: Option<PathBuf>,
    pub(crate) password: Option<Secret>,
    transit: Option<TransitTable>,
    aws_kms: Option<AwsKms>,
    keyless: Option<KeylessTable>,
    timestamp_url: Option<Urls>,
    timestamp: Option<TimestampPart>,
    trusted_root: Option<PathBuf>,
    ca_file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct TransitTable {
    address: Option<String>,
    key: String,
    mount: Option<String>,
    namespace: Option<String>,
    token: Option<Secret>,
    ca_file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeylessTable {
    signing_config: PathBuf,
    token: Option<Secret>,
    #[serde(default)]
    ambient: bool,
}

/// One URL or several.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a URL, or a list of them")]
enum Urls {
    One(String),
    Several(Vec<String>),
}

/// What a signature is without its timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TimestampPart {
    /// None.
    Required,
    /// One, and that it lacks one is said.
    BestEffort,
}

/// A key of Vault's or OpenBao's transit engine, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Transit {
    pub(crate) address: String,
    pub(crate) key: String,
    pub(crate) mount: String,
    pub(crate) namespace: Option<String>,
    pub(crate) token: Secret,
    pub(crate) ca_file: Option<PathBuf>,
}

/// A key of AWS KMS.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AwsKms {
    pub(crate) key: String,
    pub(crate) region: Option<String>,
    pub(crate) endpoint: Option<String>,
    pub(crate) profile: Option<String>,
}

/// Certificates of a Sigstore instance, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Keyless {
    pub(crate) signing_config: PathBuf,
    pub(crate) token: Token,
}

/// Where the identity token comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Token {
    /// From where the user says.
    Secret(Secret),
    /// From the system that runs the job.
    Ambient,
}

/// Everything of the table but the key file and its password, resolved. Where one of the services signs, there is no key file.
#[derive(Debug, Clone)]
pub(crate) struct SigningSettings {
    pub(crate) transit: Option<Setting<Transit>>,
    pub(crate) aws_kms: Option<Setting<AwsKms>>,
    pub(crate) keyless: Option<Setting<Keyless>>,
    pub(crate) timestamp_urls: Option<Setting<Vec<String>>>,
    pub(crate) timestamp: Setting<TimestampPart>,
    pub(crate) trusted_root: Option<Setting<PathBuf>>,
    /// PEM certificates to believe of Sigstore's services and of timestamp authorities, instead of the system's.
    pub(crate) ca_file: Option<Setting<PathBuf>>,
}

impl SigningTable {
    /// Whether something else than a key file signs.
    pub(super) fn names_service(&self) -> bool {
        self.transit.is_some() || self.aws_kms.is_some() || self.keyless.is_some()
    }
}

impl SigningSettings {
    /// `root` is what readers here verify with, if they do: it counts for what is signed here too.
    pub(super) fn resolve(source: &Source<'_>, table: SigningTable, root: Option<&Setting<PathBuf>>) -> Result<Self, Failure> {
        let bad = |message: &str, hint: &str| Failure::usage(format!("read configuration: {message}")).hint(hint);
        let named = [
            ("signing.key_file", table.key_file.is_some()),
            ("signing.transit", table.transit.is_some()),
            ("signing.aws_kms", table.aws_kms.is_some()),
            ("signing.keyless", table.keyless.is_some()),
        ];
        let named: Vec<&str> = named.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect();
        if named.len() > 1 {
            return Err(bad(
                &format!("{} cannot all sign", named.join(" and ")),
                "leave one of them; lifeboat config show prints the settings",
            ));
        }
        if table.password.is_some() && table.names_service() {
            return Err(bad(
                &format!("signing.password is that of a key file, and {} signs", named.join("")),
                "leave signing.password out; lifeboat config show prints the settings",
            ));
        }
        let urls = table.timestamp_url.map(|urls| match urls {
            Urls::One(url) => vec![url],
            Urls::Several(urls) => urls,
        });
        if urls.as_ref().is_some_and(|urls| urls.is_empty() || urls.len() > 16) {
            return Err(bad("signing.timestamp_url must name 1 to 16 authorities", "lifeboat config show prints the settings"));
        }
        if table.timestamp.is_some() && urls.is_none() {
            return Err(bad(
                "signing.timestamp says what is without a timestamp, but signing.timestamp_url does not say whose",
                "name an authority in signing.timestamp_url; docs/signing.md, lifeboat config show",
            ));
        }
        let trusted_root = source.pick(None, None, table.trusted_root.map(|path| source.anchor(path))).or_else(|| root.cloned());
        let needs_root = table.keyless.is_some() || urls.is_some();
        if needs_root && trusted_root.is_none() {
            return Err(bad(
                "trust.trusted_root is missing: what certificates and timestamps are verified with",
                "name the trusted_root.json of your Sigstore instance or timestamp authority; docs/signing.md, lifeboat config show",
            ));
        }
        let transit = table.transit.map(|transit| resolve_transit(source, transit)).transpose()?;
        let keyless = match table.keyless {
            None => None,
            Some(KeylessTable { signing_config, token, ambient }) => {
                let token = match (token, ambient) {
                    (Some(secret), false) => Token::Secret(anchored(source, secret)),
                    (None, true) => Token::Ambient,
                    _ => {
                        return Err(bad(
                            "signing.keyless needs an identity token from one place",
                            "write token = { file = \"…\" }, { env = \"…\" } or { command = [\"…\"] }, or ambient = true; lifeboat config show",
                        ));
                    }
                };
                Some(Keyless { signing_config: source.anchor(signing_config), token })
            }
        };
        Ok(Self {
            transit,
            aws_kms: source.pick(None, None, table.aws_kms),
            keyless: source.pick(None, None, keyless),
            timestamp_urls: source.pick(None, None, urls),
            timestamp: source
                .pick(None, None, table.timestamp)
                .unwrap_or(Setting { value: TimestampPart::Required, origin: Origin::Default }),
            trusted_root,
            ca_file: source.pick(None, None, table.ca_file.map(|path| source.anchor(path))),
        })
    }

    /// Whether something else than a key file signs.
    pub(crate) fn names_service(&self) -> bool {
        self.transit.is_some() || self.aws_kms.is_some() || self.keyless.is_some()
    }

    /// The rows of `config show`.
    pub(super) fn rows(&self) -> Vec<(&'static str, Value, String)> {
        fn row<T>(key: &'static str, setting: Option<&Setting<T>>, show: impl Fn(&T) -> Value) -> (&'static str, Value, String) {
            setting.map_or((key, Value::Null, "not set".into()), |setting| (key, show(&setting.value), setting.origin.to_string()))
        }
        let path = |path: &PathBuf| json!(path.display().to_string());
        let url = |url: &String| without_credentials(url);
        vec![
            row("signing.transit", self.transit.as_ref(), |transit| {
                json!({
                    "address": url(&transit.address), "key": transit.key, "mount": transit.mount, "namespace": transit.namespace,
                    "token": shown(&transit.token), "ca_file": transit.ca_file,
                })
            }),
            row(
                "signing.aws_kms",
                self.aws_kms.as_ref(),
                |kms| json!({"key": kms.key, "region": kms.region, "endpoint": kms.endpoint.as_ref().map(url), "profile": kms.profile}),
            ),
            row("signing.keyless", self.keyless.as_ref(), |keyless| match &keyless.token {
                Token::Secret(secret) => json!({"signing_config": keyless.signing_config, "token": shown(secret)}),
                Token::Ambient => json!({"signing_config": keyless.signing_config, "ambient": true}),
            }),
            row("signing.timestamp_url", self.timestamp_urls.as_ref(), |urls| json!(urls.iter().map(url).collect::<Vec<_>>())),
            row("signing.timestamp", Some(&self.timestamp), |part| json!(part)),
            row("signing.trusted_root", self.trusted_root.as_ref(), path),
            row("signing.ca_file", self.ca_file.as_ref(), path),
        ]
    }

    /// Files of this table that hold a secret.
    pub(crate) fn secret_files(&self) -> Vec<(&'static str, &Path)> {
        let transit = self.transit.as_ref().map(|setting| &setting.value.token);
        let keyless = self.keyless.as_ref().and_then(|setting| match &setting.value.token {
            Token::Secret(secret) => Some(secret),
            Token::Ambient => None,
        });
        let all = [("token of the transit engine", transit), ("identity token", keyless)];
        let mut files = Vec::new();
        for (what, secret) in all {
            if let Some(Secret::File(path)) = secret {
                files.push((what, path.as_path()));
            }
        }
        files
    }
}

/// The programs of Vault and OpenBao have variables for most of it; as those of other programs, they come after the file.
fn resolve_transit(source: &Source<'_>, table: TransitTable) -> Result<Setting<Transit>, Failure> {
    let missing = |what: &str, hint: &str| Failure::usage(format!("read configuration: signing.transit has no {what}")).hint(hint);
    let address = table.address.or_else(|| aws(&["BAO_ADDR", "VAULT_ADDR"]).map(|setting| setting.value));
    let address = address
        .ok_or_else(|| missing("address", "write address = \"https://vault.example:8200\", or set VAULT_ADDR; lifeboat config show"))?;
    let token = match table.token {
        Some(secret) => anchored(source, secret),
        None => {
            let variable = ["BAO_TOKEN", "VAULT_TOKEN"].into_iter().find(|name| environment(name).is_some());
            let hint = "write token = { file = \"…\" }, { env = \"…\" } or { command = [\"…\"] }, or set VAULT_TOKEN; lifeboat config show";
            Secret::Env(variable.ok_or_else(|| missing("token", hint))?.to_owned())
        }
    };
    let ca_file = table.ca_file.map(|path| source.anchor(path));
    let transit = Transit {
        address,
        key: table.key,
        mount: table.mount.unwrap_or_else(|| lifeboat_engine::signing::DEFAULT_MOUNT.to_owned()),
        namespace: table.namespace.or_else(|| aws(&["BAO_NAMESPACE", "VAULT_NAMESPACE"]).map(|setting| setting.value)),
        token,
        ca_file: ca_file.or_else(|| aws(&["BAO_CACERT", "VAULT_CACERT"]).map(|setting| setting.value.into())),
    };
    Ok(source.pick(None, None, Some(transit)).expect("there is one"))
}

fn anchored(source: &Source<'_>, secret: Secret) -> Secret {
    match secret {
        Secret::File(path) => Secret::File(source.anchor(path)),
        other => other,
    }
}

/// Where a secret is, for people.
pub(super) fn shown(secret: &Secret) -> Value {
    match secret {
        Secret::Env(name) => json!({"env": name}),
        Secret::File(path) => json!({"file": path}),
        Secret::Command(words) => json!({"command": words}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str) -> Result<SigningSettings, Failure> {
        let file: super::super::File = toml::from_str(&format!("[signing]\n{text}")).unwrap();
        SigningSettings::resolve(&Source { path: Some(Path::new("/etc/lifeboat.toml")) }, file.signing.unwrap(), None)
    }

    const TRANSIT: &str = "transit = { address = 'https://vault:8200', key = 'backups', token = { file = 'token' } }\n";
    const KEYLESS: &str = "keyless = { signing_config = 'signing_config.json', token = { env = 'T' } }\ntrusted_root = 'root.json'\n";

    #[test]
    fn every_signer_is_read() {
        let transit = resolve(TRANSIT).unwrap().transit.unwrap().value;
        assert_eq!((transit.mount.as_str(), transit.token), ("transit", Secret::File("/etc/token".into())));
        let kms = resolve("aws_kms = { key = 'alias/backups', region = 'eu-west-1' }").unwrap().aws_kms.unwrap().value;
        assert_eq!((kms.key.as_str(), kms.region.as_deref(), kms.profile), ("alias/backups", Some("eu-west-1"), None));
        let keyless = resolve(KEYLESS).unwrap();
        assert_eq!(keyless.trusted_root.unwrap().value, Path::new("/etc/root.json"));
        assert_eq!(keyless.keyless.unwrap().value.token, Token::Secret(Secret::Env("T".into())));
        let ambient = resolve("keyless = { signing_config = '/c', ambient = true }\ntrusted_root = '/r'").unwrap();
        assert_eq!(ambient.keyless.unwrap().value.token, Token::Ambient);
    }

    #[test]
    fn timestamps_are_required_where_an_authority_is_named() {
        let one = resolve("timestamp_url = 'https://tsa'\ntrusted_root = '/r'").unwrap();
        assert_eq!((one.timestamp_urls.unwrap().value.len(), one.timestamp.value), (1, TimestampPart::Required));
        let two = resolve("timestamp_url = ['https://a', 'https://b']\ntimestamp = 'best-effort'\ntrusted_root = '/r'").unwrap();
        assert_eq!((two.timestamp_urls.unwrap().value.len(), two.timestamp.value), (2, TimestampPart::BestEffort));
    }

    #[test]
    fn c121_signers_that_cannot_be_meant_are_refused() {
        for bad in [
            "key_file = 'k'\naws_kms = { key = 'x' }",
            &format!("{TRANSIT}aws_kms = {{ key = 'x' }}"),
            &format!("{TRANSIT}password = {{ env = 'P' }}"),
            "keyless = { signing_config = '/c', token = { env = 'T' }, ambient = true }\ntrusted_root = '/r'",
            "keyless = { signing_config = '/c' }\ntrusted_root = '/r'",
            "keyless = { signing_config = '/c', ambient = true }",
            "timestamp_url = 'https://tsa'",
            "timestamp_url = []\ntrusted_root = '/r'",
            "timestamp = 'required'",
        ] {
            assert_eq!(resolve(bad).unwrap_err().code, crate::failure::EXIT_USAGE, "{bad}");
        }
        for unknown in [
            "transit = { kee = 'x' }",
            "aws_kms = { key = 'x', secret = 'y' }",
            "timestamp = 'maybe'",
            "transit = { key = 'x', token = 'hunter2' }",
        ] {
            assert!(toml::from_str::<super::super::File>(&format!("[signing]\n{unknown}")).is_err(), "{unknown}");
        }
    }

    #[test]
    fn nothing_secret_is_shown() {
        let rows = resolve("transit = { address = 'https://me:hunter2@vault', key = 'k', token = { env = 'T' } }").unwrap().rows();
        assert!(!format!("{rows:?}").contains("hunter2"));
    }
}
