//! `[traces]`: where the trace of every command is sent (docs/logs.md).
//!
//! Where the table names a place, the environment has no say: its variables are set for other programs too, and a header is a secret of one
//! place. Nor can they keep a command from running: what is wrong with them is a warning.

use std::collections::BTreeMap;
use std::path::PathBuf;

use lifeboat_engine::traces::Address;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Origin, Secret, Setting, Source, environment};
use crate::failure::Failure;

/// The table as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TracesTable {
    endpoint: Option<String>,
    headers: Option<BTreeMap<String, Secret>>,
    ca_file: Option<PathBuf>,
}

/// What is sent along to the collector.
#[derive(Debug, Clone)]
pub(crate) enum Headers {
    /// Each by its name.
    Named(BTreeMap<String, Secret>),
    /// A list in this environment variable, as OpenTelemetry has it.
    Listed(&'static str),
}

/// Resolved.
#[derive(Debug, Clone)]
pub(crate) struct TracesSettings {
    /// `None`: nothing is sent.
    pub(crate) endpoint: Option<Setting<Address>>,
    pub(crate) headers: Setting<Headers>,
    pub(crate) ca_file: Option<Setting<PathBuf>>,
    /// Why nothing is sent although the environment asks for it.
    pub(crate) trouble: Option<String>,
}

const OPEN: &str = "its headers would be sent in the clear to another host: use https, or a collector on this host";

impl TracesSettings {
    pub(super) fn resolve(source: &Source<'_>, table: TracesTable) -> Result<Self, Failure> {
        let bad = |problem: String| {
            Failure::usage(format!("read configuration: {problem}"))
                .hint("docs/logs.md says how traces are sent; lifeboat config show prints the settings")
        };
        let Some(endpoint) = table.endpoint else {
            if table.headers.is_some() || table.ca_file.is_some() {
                return Err(bad("traces.endpoint does not say where traces go".into()));
            }
            return Ok(Self::from_environment(environment));
        };
        let mut settings = Self::nothing();
        if endpoint.is_empty() {
            return Ok(settings);
        }
        let address = Address::base(&endpoint).map_err(|problem| bad(format!("traces.endpoint: {problem}")))?;
        let headers: BTreeMap<String, Secret> = table.headers.unwrap_or_default();
        if address.is_open() && !headers.is_empty() {
            return Err(bad(format!("traces.endpoint: {OPEN}")));
        }
        let anchored = |(name, secret)| match secret {
            Secret::File(path) => (name, Secret::File(source.anchor(path))),
            other => (name, other),
        };
        let headers = (!headers.is_empty()).then(|| Headers::Named(headers.into_iter().map(anchored).collect()));
        settings.endpoint = source.pick(None, None, Some(address));
        settings.headers = source.pick(None, None, headers).unwrap_or(settings.headers);
        settings.ca_file = source.pick(None, None, table.ca_file.map(|path| source.anchor(path)));
        Ok(settings)
    }

    fn nothing() -> Self {
        let headers = Setting { value: Headers::Named(BTreeMap::new()), origin: Origin::Default };
        Self { endpoint: None, headers, ca_file: None, trouble: None }
    }

    /// What OpenTelemetry's own variables ask for ("OpenTelemetry Protocol Exporter", "General SDK Configuration").
    fn from_environment(read: impl Fn(&str) -> Option<String>) -> Self {
        let mut settings = Self::nothing();
        let first = |names: [&'static str; 2]| names.into_iter().find_map(|name| Some((name, read(name)?)));
        let off = read("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true"));
        let elsewhere = read("OTEL_TRACES_EXPORTER").is_some_and(|text| !text.split(',').any(|one| one.trim() == "otlp"));
        let Some((name, text)) =
            first(["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"]).filter(|_| !off && !elsewhere)
        else {
            return settings;
        };
        let address = if name == "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" { Address::exact(&text) } else { Address::base(&text) };
        let headers = first(["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"]);
        let protocol = first(["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"]);
        let address = match (address, protocol) {
            (Err(problem), _) => Err(format!("{name}: {problem}")),
            (_, Some((name, text))) if text != "http/protobuf" => Err(format!("{name} asks for another protocol than http/protobuf")),
            (Ok(address), _) if address.is_open() && headers.is_some() => Err(format!("{name}: {OPEN}")),
            (Ok(address), _) => Ok(address),
        };
        match address {
            Ok(address) => settings.endpoint = Some(Setting { value: address, origin: Origin::Environment(name) }),
            Err(trouble) => {
                settings.trouble = Some(trouble);
                return settings;
            }
        }
        if let Some((name, _)) = headers {
            settings.headers = Setting { value: Headers::Listed(name), origin: Origin::Environment(name) };
        }
        let certificate = first(["OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE"]);
        settings.ca_file = certificate.map(|(name, path)| Setting { value: path.into(), origin: Origin::Environment(name) });
        settings
    }

    /// Its settings: key, value, origin.
    pub(super) fn rows(&self) -> Vec<(String, Value, String)> {
        let none = || (Value::Null, "not set".to_owned());
        let shown = |value: Value, origin: &Origin| (value, origin.to_string());
        let endpoint = self.endpoint.as_ref().map_or_else(none, |one| shown(json!(one.value.to_string()), &one.origin));
        let headers = match &self.headers.value {
            Headers::Named(all) if all.is_empty() => none(),
            Headers::Named(all) => shown(json!(all), &self.headers.origin),
            Headers::Listed(name) => shown(json!({"env": name}), &self.headers.origin),
        };
        let ca_file = self.ca_file.as_ref().map_or_else(none, |one| shown(json!(one.value), &one.origin));
        let rows = [("traces.endpoint", endpoint), ("traces.headers", headers), ("traces.ca_file", ca_file)];
        rows.map(|(key, (value, origin))| (key.to_owned(), value, origin)).into()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn resolve(text: &str) -> Result<TracesSettings, Failure> {
        TracesSettings::resolve(&Source { path: Some(Path::new("/etc/lifeboat/lifeboat.toml")) }, toml::from_str(text).unwrap())
    }

    fn address(settings: &TracesSettings) -> Option<String> {
        settings.endpoint.as_ref().map(|endpoint| endpoint.value.to_string())
    }

    #[test]
    fn the_table_names_a_place_and_where_its_secrets_are() {
        let settings =
            resolve("endpoint = 'https://h:4318'\nheaders = { authorization = { file = 'token' } }\nca_file = 'ca.pem'").unwrap();
        assert_eq!(address(&settings).as_deref(), Some("https://h:4318/v1/traces"));
        let rows = format!("{:?}", settings.rows());
        assert!(rows.contains("/etc/lifeboat/token") && rows.contains("/etc/lifeboat/ca.pem"), "{rows}");
        assert_eq!(address(&resolve("endpoint = ''").unwrap()), None);
        assert!(toml::from_str::<TracesTable>("endpoint = 'http://h'\nheaders = { a = 'hunter2' }").is_err(), "a secret is a reference");
        for wrong in ["headers = { a = { env = 'X' } }", "endpoint = 'h:4318'", "endpoint = 'http://me:hunter2@h'"] {
            let message = resolve(wrong).unwrap_err().message;
            assert!(message.contains("traces.endpoint") && !message.contains("hunter2"), "{wrong}: {message}");
        }
        let with_header = |url: &str| resolve(&format!("endpoint = '{url}'\nheaders = {{ a = {{ env = 'X' }} }}"));
        assert!(with_header("http://collector:4318").is_err(), "in the clear");
        assert!(with_header("http://127.0.0.1:4318").is_ok() && with_header("https://collector").is_ok());
    }

    #[test]
    fn the_environment_is_read_as_opentelemetry_has_it() {
        let of = |variables: &[(&str, &str)]| {
            let read = |name: &str| variables.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned());
            TracesSettings::from_environment(read)
        };
        const BASE: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318/");
        assert_eq!(address(&of(&[BASE])).as_deref(), Some("http://127.0.0.1:4318/v1/traces"));
        let both = of(&[BASE, ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1/x"), ("OTEL_EXPORTER_OTLP_HEADERS", "a=b")]);
        assert_eq!(address(&both).as_deref(), Some("http://127.0.0.1:1/x"));
        assert!(matches!(both.headers.value, Headers::Listed("OTEL_EXPORTER_OTLP_HEADERS")));
        for off in [("OTEL_SDK_DISABLED", "TRUE"), ("OTEL_TRACES_EXPORTER", "none"), ("OTEL_TRACES_EXPORTER", "console")] {
            let settings = of(&[BASE, off]);
            assert_eq!((address(&settings), settings.trouble), (None, None), "{off:?}");
        }
        assert_eq!(address(&of(&[])), None);
        for wrong in [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://me:hunter2@h"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector:4317"),
        ] {
            let settings = of(&[BASE, wrong]);
            let trouble = settings.trouble.clone().unwrap();
            assert!(address(&settings).is_none() && trouble.contains(wrong.0) && !trouble.contains("hunter2"), "{trouble}");
        }
        let open = of(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://h:4318"), ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a=hunter2")]);
        assert!(open.trouble.is_some_and(|trouble| trouble.contains("in the clear")));
        let spoken = of(&[BASE, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"), ("OTEL_TRACES_EXPORTER", "otlp,console")]);
        assert!(spoken.endpoint.is_some() && spoken.trouble.is_none());
    }
}
