//! `[policy]`: which policy is asked, and who evaluates it (docs/policy.md).

use std::path::PathBuf;
use std::time::Duration;

use lifeboat_engine::policy::{DEFAULT_TIMEOUT, Engines};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Origin, Secret, Setting, Source, Span, without_credentials};
use crate::failure::Failure;

/// The table as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PolicyTable {
    environment: Option<String>,
    engine: Option<Engines>,
    path: Option<PathBuf>,
    opa_url: Option<String>,
    opa_path: Option<String>,
    opa_token: Option<Secret>,
    opa_ca_file: Option<PathBuf>,
    opa_identity_file: Option<PathBuf>,
    timeout: Option<Span>,
}

/// The table, resolved. None of it comes from the environment: whoever runs a command does not choose the rules for it there.
#[derive(Debug)]
pub(crate) struct PolicyTerms {
    /// What this host belongs to.
    pub(crate) environment: Setting<String>,
    pub(crate) engine: Setting<Engines>,
    /// `None`: the policy that is shipped.
    pub(crate) path: Option<Setting<PathBuf>>,
    pub(crate) opa_url: Option<Setting<String>>,
    pub(crate) opa_path: Setting<String>,
    pub(crate) opa_token: Option<Setting<Secret>>,
    pub(crate) opa_ca_file: Option<Setting<PathBuf>>,
    pub(crate) opa_identity_file: Option<Setting<PathBuf>>,
    pub(crate) timeout: Setting<Duration>,
}

/// The longest that a policy may take: a server waits for `wal fetch`, and an operator for everything.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);

impl PolicyTerms {
    pub(super) fn resolve(source: &Source<'_>, table: PolicyTable) -> Result<Self, Failure> {
        let hint = "docs/policy.md lists the settings; lifeboat config show prints them as read";
        let bad = |problem: String| Failure::usage(format!("read configuration: {problem}")).hint(hint);
        let timeout = table.timeout.map(|span| span.0);
        if timeout.is_some_and(|timeout| timeout > MAX_TIMEOUT) {
            return Err(bad(format!("policy.timeout is more than {MAX_TIMEOUT:?}")));
        }
        // "Production" and "production " would not be what a policy looks for, and would not be protected.
        let plain =
            |text: &String| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if let Some(environment) = table.environment.as_ref().filter(|text| !plain(text)) {
            return Err(bad(format!("policy.environment is {environment:?}: write it in small letters, digits and hyphens")));
        }
        // Who names a service wants it asked, and who names a file as well wants both.
        let engine = match (&table.opa_url, &table.path) {
            (None, _) => Engines::Embedded,
            (Some(_), None) => Engines::Opa,
            (Some(_), Some(_)) => Engines::Both,
        };
        let asks_opa = table.engine.unwrap_or(engine) != Engines::Embedded;
        if asks_opa && table.opa_url.is_none() {
            return Err(bad("policy.engine asks OPA, and policy.opa_url does not say where it is".to_owned()));
        }
        if !asks_opa && table.opa_url.is_some() {
            return Err(bad("policy.opa_url names an OPA, and policy.engine does not ask it".to_owned()));
        }
        let default_engine = match &table.opa_url {
            None => Setting { value: engine, origin: Origin::Default },
            Some(_) => source.pick(None, None, Some(engine)).unwrap_or(Setting { value: engine, origin: Origin::Default }),
        };
        let anchored = |path: Option<PathBuf>| source.pick(None, None, path.map(|path| source.anchor(path)));
        let token = table.opa_token.map(|secret| match secret {
            Secret::File(path) => Secret::File(source.anchor(path)),
            other => other,
        });
        Ok(Self {
            environment: source
                .pick(None, None, table.environment)
                .unwrap_or_else(|| Setting { value: "unspecified".to_owned(), origin: Origin::Default }),
            engine: source.pick(None, None, table.engine).unwrap_or(default_engine),
            path: anchored(table.path),
            opa_url: source.pick(None, None, table.opa_url),
            opa_path: source
                .pick(None, None, table.opa_path)
                .unwrap_or_else(|| Setting { value: "lifeboat/decision".to_owned(), origin: Origin::Default }),
            opa_token: source.pick(None, None, token),
            opa_ca_file: anchored(table.opa_ca_file),
            opa_identity_file: anchored(table.opa_identity_file),
            timeout: source.pick(None, None, timeout).unwrap_or(Setting { value: DEFAULT_TIMEOUT, origin: Origin::Default }),
        })
    }

    /// For `config show`.
    pub(super) fn rows(&self) -> Vec<(&'static str, Value, String)> {
        fn row<T>(key: &'static str, setting: Option<&Setting<T>>, show: impl Fn(&T) -> Value) -> (&'static str, Value, String) {
            setting.map_or((key, Value::Null, "not set".into()), |setting| (key, show(&setting.value), setting.origin.to_string()))
        }
        let path = |path: &PathBuf| json!(path.display().to_string());
        let secret = |secret: &Secret| match secret {
            Secret::Env(name) => json!({"env": name}),
            Secret::File(path) => json!({"file": path}),
            Secret::Command(words) => json!({"command": words}),
        };
        vec![
            row("policy.environment", Some(&self.environment), |text| json!(text)),
            row("policy.engine", Some(&self.engine), |engine| json!(engine)),
            row("policy.path", self.path.as_ref(), path),
            row("policy.opa_url", self.opa_url.as_ref(), |url| json!(without_credentials(url))),
            row("policy.opa_path", Some(&self.opa_path), |text| json!(text)),
            row("policy.opa_token", self.opa_token.as_ref(), secret),
            row("policy.opa_ca_file", self.opa_ca_file.as_ref(), path),
            row("policy.opa_identity_file", self.opa_identity_file.as_ref(), path),
            row("policy.timeout", Some(&self.timeout), |span| json!(format!("{span:?}"))),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str) -> Result<PolicyTerms, Failure> {
        PolicyTerms::resolve(&Source { path: Some(std::path::Path::new("/etc/lifeboat/lifeboat.toml")) }, toml::from_str(text).unwrap())
    }

    #[test]
    fn engines_follow_from_what_is_named() {
        let engine = |text: &str| resolve(text).unwrap().engine.value;
        assert_eq!(engine(""), Engines::Embedded);
        assert_eq!(engine("path = 'p.rego'"), Engines::Embedded);
        assert_eq!(engine("opa_url = 'http://localhost:8181'"), Engines::Opa);
        assert_eq!(engine("opa_url = 'http://localhost:8181'\npath = 'p'"), Engines::Both);
        assert_eq!(engine("opa_url = 'http://localhost:8181'\npath = 'p'\nengine = 'opa'"), Engines::Opa);
        for text in ["engine = 'opa'", "engine = 'both'\npath = 'p'", "engine = 'embedded'\nopa_url = 'http://localhost:8181'"] {
            assert!(resolve(text).is_err(), "{text}");
        }
    }

    #[test]
    fn environments_are_written_in_one_way() {
        assert_eq!(resolve("").unwrap().environment.value, "unspecified");
        assert_eq!(resolve("environment = 'eu-1'").unwrap().environment.value, "eu-1");
        for text in ["Production", "production ", "", "prod_1"] {
            assert!(resolve(&format!("environment = '{text}'")).is_err(), "{text}");
        }
    }

    #[test]
    fn c121_the_table_has_no_unknown_keys_and_no_secrets() {
        for text in ["file = 'p'", "opa_token = 'hunter2'", "engine = 'none'", "enviroment = 'x'"] {
            let error = toml::from_str::<PolicyTable>(text).unwrap_err();
            assert!(!error.message().contains("hunter2"), "{text}");
        }
        assert!(resolve("timeout = '1h'").is_err());
        let terms = resolve("path = 'p'\nopa_token = { file = 't' }\nopa_url = 'https://u:hunter2@h'").unwrap();
        assert_eq!(terms.path.as_ref().unwrap().value, std::path::Path::new("/etc/lifeboat/p"));
        assert!(!format!("{:?}", terms.rows()).contains("hunter2"));
    }
}
