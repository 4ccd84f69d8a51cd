//! `[alerts]`: when somebody is told, how often, and by which way (docs/alerts.md).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use lifeboat_core::alert::book::Rhythm;
use lifeboat_core::alert::{RUNBOOK, Severity, Terms};
use lifeboat_engine::notify;
use lifeboat_engine::secret;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use super::{LongSpan, Origin, Secret, Setting, Settings, Source, shown_span};
use crate::failure::Failure;

/// The table as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AlertsTable {
    backup_age: Option<LongSpan>,
    key_days: Option<u32>,
    disk_free_percent: Option<u8>,
    group_wait: Option<LongSpan>,
    repeat: Option<LongSpan>,
    resolve_after: Option<LongSpan>,
    runbook_url: Option<String>,
    heartbeat_url: Option<Address>,
    #[serde(default)]
    sink: Vec<SinkTable>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SinkTable {
    name: String,
    #[serde(rename = "type")]
    kind: Kind,
    min_severity: Option<Severity>,
    url: Option<Address>,
    token: Option<Secret>,
    headers: Option<BTreeMap<String, Secret>>,
    ca_file: Option<PathBuf>,
    routing_key: Option<Secret>,
    host: Option<String>,
    port: Option<u16>,
    tls: Option<MailSecurity>,
    user: Option<String>,
    password: Option<Secret>,
    from: Option<String>,
    to: Option<Readers>,
}

/// One address of mail or several.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "an address of mail, or a list of them")]
enum Readers {
    One(String),
    Several(Vec<String>),
}

/// By which way somebody is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Alertmanager,
    Webhook,
    Slack,
    PagerDuty,
    Smtp,
}

impl Kind {
    /// As the file has it.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Alertmanager => "alertmanager",
            Self::Webhook => "webhook",
            Self::Slack => "slack",
            Self::PagerDuty => "pagerduty",
            Self::Smtp => "smtp",
        }
    }

    /// The settings that it has beside `name`, `type` and `min_severity`.
    const fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Alertmanager | Self::Webhook => &["url", "token", "headers", "ca_file"],
            Self::Slack => &["url", "ca_file"],
            Self::PagerDuty => &["url", "routing_key", "ca_file"],
            Self::Smtp => &["host", "port", "tls", "user", "password", "from", "to", "ca_file"],
        }
    }
}

/// How a connection to a mail server is secured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum MailSecurity {
    StartTls,
    Tls,
    None,
}

/// An address that may be a secret as a whole, as Slack's is.
#[derive(Clone)]
pub(crate) enum Address {
    /// As it stands in the file; not printed all the same.
    Text(Arc<secret::Secret>),
    /// Somewhere else.
    Reference(Secret),
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Text(***)"),
            Self::Reference(secret) => secret.fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match toml::Value::deserialize(deserializer)? {
            toml::Value::String(text) => Ok(Self::Text(Arc::new(text.into()))),
            other => other.try_into().map(Self::Reference).map_err(|_| {
                serde::de::Error::custom(
                    "an address is a text, or { file = \"…\" }, { env = \"…\" } or { command = [\"…\"] } where it is secret",
                )
            }),
        }
    }
}

impl Address {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => text.expose_text().ok(),
            Self::Reference(_) => None,
        }
    }

    /// Why it cannot be one.
    fn problem(&self) -> Option<&'static str> {
        let text = self.text()?;
        let Some(rest) = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")) else {
            return Some("has to be http://host… or https://host…");
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if authority.contains('@') {
            return Some("has a user in it: write it into a file, and name that: { file = \"…\" }");
        }
        (authority.is_empty() || text.contains(char::is_whitespace)).then_some("has to be http://host… or https://host…")
    }

    /// For `config show`: of a text only the host, because what stands behind it is a password in all but name.
    fn shown(&self, whole: bool) -> Value {
        match (self, self.text()) {
            (Self::Reference(secret), _) => super::signing::shown(secret),
            (Self::Text(_), Some(text)) if whole => json!(super::without_credentials(text)),
            (Self::Text(_), text) => {
                let (scheme, rest) = text.and_then(|text| text.split_once("://")).unwrap_or_default();
                let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
                json!(if host.len() == rest.len() { format!("{scheme}://{host}") } else { format!("{scheme}://{host}/…") })
            }
        }
    }
}

/// A sink, resolved.
#[derive(Debug, Clone)]
pub(crate) struct SinkSettings {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) min_severity: Severity,
    pub(crate) way: Way,
}

/// How a sink is reached.
#[derive(Debug, Clone)]
pub(crate) enum Way {
    /// Alertmanager, webhook, Slack.
    Http(Http),
    PagerDuty {
        http: Http,
        routing_key: Secret,
    },
    Smtp {
        host: String,
        port: u16,
        tls: MailSecurity,
        login: Option<(String, Secret)>,
        from: String,
        to: Vec<String>,
        ca_file: Option<PathBuf>,
    },
}

/// A program that is told by HTTP.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    pub(crate) url: Address,
    pub(crate) token: Option<Secret>,
    pub(crate) headers: BTreeMap<String, Secret>,
    pub(crate) ca_file: Option<PathBuf>,
}

/// The table, resolved.
#[derive(Debug)]
pub(crate) struct AlertSettings {
    /// How old the newest backup may be.
    pub(crate) backup_age: Setting<Duration>,
    /// So many days before its end a key is told of.
    pub(crate) key_days: Setting<u32>,
    /// So much of a file system must be free.
    pub(crate) disk_free_percent: Setting<u8>,
    pub(crate) group_wait: Setting<Duration>,
    pub(crate) repeat: Setting<Duration>,
    pub(crate) resolve_after: Setting<Duration>,
    /// Where the runbook is, without an anchor.
    pub(crate) runbook_url: Setting<String>,
    /// The dead man's switch.
    pub(crate) heartbeat_url: Option<Setting<Address>>,
    pub(crate) sinks: Setting<Vec<SinkSettings>>,
}

/// What `lifeboat alert test` calls the dead man's switch.
pub(crate) const HEARTBEAT: &str = "heartbeat";

/// So many sinks at most: each has a thread while it is told.
const MAX_SINKS: usize = 32;

/// An alert is not repeated more often.
const SHORTEST_REPEAT: Duration = Duration::from_secs(60);

fn bad(problem: impl fmt::Display) -> Failure {
    Failure::usage(format!("read configuration: {problem}"))
        .hint("docs/alerts.md lists the settings; lifeboat config show prints them as read")
}

impl AlertSettings {
    /// `rpo` is what a backup may be old, where nobody says.
    pub(super) fn resolve(source: &Source<'_>, table: AlertsTable, rpo: Duration) -> Result<Self, Failure> {
        fn or<T>(setting: Option<Setting<T>>, default: T) -> Setting<T> {
            setting.unwrap_or(Setting { value: default, origin: Origin::Default })
        }
        let span = |span: Option<LongSpan>, default: Duration| source.span(span, default);
        let defaults = Terms::for_rpo(rpo);
        let repeat = span(table.repeat, Duration::from_secs(4 * 60 * 60));
        if repeat.value < SHORTEST_REPEAT {
            return Err(bad(format_args!("alerts.repeat is less than {}s", SHORTEST_REPEAT.as_secs())));
        }
        if table.disk_free_percent.is_some_and(|percent| percent > 99) {
            return Err(bad("alerts.disk_free_percent is more than 99"));
        }
        if table.key_days.is_some_and(|days| days > 3660) {
            return Err(bad("alerts.key_days is more than ten years"));
        }
        if let Some(problem) = table.heartbeat_url.as_ref().and_then(Address::problem) {
            return Err(bad(format_args!("alerts.heartbeat_url {problem}")));
        }
        if table.runbook_url.as_ref().is_some_and(|url| url.is_empty() || url.contains('#') || url.contains(char::is_whitespace)) {
            return Err(bad("alerts.runbook_url is the address of a page, without an anchor: the name of the alert is put behind it"));
        }
        let sinks = table.sink.into_iter().map(|sink| resolve_sink(source, sink)).collect::<Result<Vec<_>, _>>()?;
        if sinks.len() > MAX_SINKS {
            return Err(bad(format_args!("there are more than {MAX_SINKS} [[alerts.sink]]")));
        }
        for (index, sink) in sinks.iter().enumerate() {
            if sinks[..index].iter().any(|other| other.name == sink.name) {
                return Err(bad(format_args!("two [[alerts.sink]] are called {:?}", sink.name)));
            }
        }
        let days = |span: Duration| u32::try_from(span.as_secs() / 86_400).unwrap_or(u32::MAX);
        Ok(Self {
            backup_age: span(table.backup_age, defaults.backup_age),
            key_days: or(source.pick(None, None, table.key_days), days(defaults.key_ahead)),
            disk_free_percent: or(source.pick(None, None, table.disk_free_percent), defaults.disk_free_percent),
            group_wait: span(table.group_wait, Duration::from_secs(30)),
            repeat,
            resolve_after: span(table.resolve_after, Duration::from_secs(2 * 60)),
            runbook_url: or(source.pick(None, None, table.runbook_url), RUNBOOK.to_owned()),
            heartbeat_url: source.pick(None, None, table.heartbeat_url.map(|url| anchored_address(source, url))),
            sinks: or(source.pick(None, None, (!sinks.is_empty()).then_some(sinks)), Vec::new()),
        })
    }

    /// Files of this table that hold a secret.
    pub(crate) fn secret_files(&self) -> Vec<(&'static str, &Path)> {
        let mut secrets: Vec<&Secret> = Vec::new();
        fn in_address(address: &Address) -> Option<&Secret> {
            if let Address::Reference(secret) = address { Some(secret) } else { None }
        }
        secrets.extend(self.heartbeat_url.as_ref().and_then(|setting| in_address(&setting.value)));
        for sink in &self.sinks.value {
            match &sink.way {
                Way::Http(http) => secrets.extend(in_address(&http.url).into_iter().chain(&http.token).chain(http.headers.values())),
                Way::PagerDuty { http, routing_key } => secrets.extend(in_address(&http.url).into_iter().chain([routing_key])),
                Way::Smtp { login, .. } => secrets.extend(login.as_ref().map(|(_, password)| password)),
            }
        }
        // One file may serve several.
        let files = secrets.into_iter().filter_map(|secret| if let Secret::File(path) = secret { Some(path.as_path()) } else { None });
        files.collect::<BTreeSet<_>>().into_iter().map(|path| ("secret of an alert sink", path)).collect()
    }

    /// Its settings: key, value, origin.
    pub(crate) fn rows(&self) -> Vec<(String, Value, String)> {
        fn row<T>(name: &str, setting: &Setting<T>, show: impl Fn(&T) -> Value) -> (String, Value, String) {
            (format!("alerts.{name}"), show(&setting.value), setting.origin.to_string())
        }
        let span = |span: &Duration| json!(shown_span(*span));
        let mut rows = vec![
            row("backup_age", &self.backup_age, span),
            row("key_days", &self.key_days, |days| json!(days)),
            row("disk_free_percent", &self.disk_free_percent, |percent| json!(percent)),
            row("group_wait", &self.group_wait, span),
            row("repeat", &self.repeat, span),
            row("resolve_after", &self.resolve_after, span),
            row("runbook_url", &self.runbook_url, |url| json!(url)),
        ];
        rows.push(match &self.heartbeat_url {
            Some(url) => row("heartbeat_url", url, |url| url.shown(false)),
            None => ("alerts.heartbeat_url".to_owned(), Value::Null, "not set".to_owned()),
        });
        if self.sinks.value.is_empty() {
            rows.push(("alerts.sink".to_owned(), Value::Null, "not set".to_owned()));
        }
        let origin = self.sinks.origin.to_string();
        rows.extend(self.sinks.value.iter().map(|sink| (format!("alerts.sink.{}", sink.name), sink.shown(), origin.clone())));
        rows
    }
}

impl SinkSettings {
    fn shown(&self) -> Value {
        let secret = super::signing::shown;
        let mut document = json!({"type": self.kind, "min_severity": self.min_severity});
        let mut add = |name: &str, value: Value| document[name] = value;
        // What stands behind the host of an Alertmanager is a path; that of the others lets everybody write there who knows it.
        let mut http = |http: &Http| {
            add("url", http.url.shown(self.kind == Kind::Alertmanager));
            add("token", json!(http.token.as_ref().map(secret)));
            add("headers", http.headers.iter().map(|(name, value)| (name.clone(), secret(value))).collect());
            add("ca_file", json!(http.ca_file));
        };
        match &self.way {
            Way::Http(of) => http(of),
            Way::PagerDuty { http: of, routing_key } => {
                http(of);
                add("routing_key", secret(routing_key));
            }
            Way::Smtp { host, port, tls, login, from, to, ca_file } => {
                add("host", json!(host));
                add("port", json!(port));
                add("tls", json!(tls));
                add("user", json!(login.as_ref().map(|(user, _)| user)));
                add("password", json!(login.as_ref().map(|(_, password)| secret(password))));
                add("from", json!(from));
                add("to", json!(to));
                add("ca_file", json!(ca_file));
            }
        }
        // What it does not have is not shown.
        if let Value::Object(members) = &mut document {
            members.retain(|_, value| !value.is_null() && value.as_object().is_none_or(|members| !members.is_empty()));
        }
        document
    }
}

fn anchored(source: &Source<'_>, secret: Secret) -> Secret {
    match secret {
        Secret::File(path) => Secret::File(source.anchor(path)),
        other => other,
    }
}

fn anchored_address(source: &Source<'_>, address: Address) -> Address {
    match address {
        Address::Reference(secret) => Address::Reference(anchored(source, secret)),
        text => text,
    }
}

fn resolve_sink(source: &Source<'_>, table: SinkTable) -> Result<SinkSettings, Failure> {
    let name = table.name.clone();
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.is_empty() || name.len() > 63 || !name.bytes().all(fits) || name == HEARTBEAT {
        return Err(bad(format_args!(
            "an [[alerts.sink]] is called {name:?}: write a name in small letters, digits and hyphens, and not {HEARTBEAT:?}"
        )));
    }
    let kind = table.kind;
    let of = format!("sink {name} of type {}", kind.word());
    let there = [
        ("url", table.url.is_some()),
        ("token", table.token.is_some()),
        ("headers", table.headers.is_some()),
        ("ca_file", table.ca_file.is_some()),
        ("routing_key", table.routing_key.is_some()),
        ("host", table.host.is_some()),
        ("port", table.port.is_some()),
        ("tls", table.tls.is_some()),
        ("user", table.user.is_some()),
        ("password", table.password.is_some()),
        ("from", table.from.is_some()),
        ("to", table.to.is_some()),
    ];
    if let Some((key, _)) = there.iter().find(|(key, there)| *there && !kind.keys().contains(key)) {
        return Err(bad(format_args!("{of} has no {key}: it has {}", kind.keys().join(", "))));
    }
    let missing = |key: &str| bad(format_args!("{of} needs {key}"));
    if let Some(problem) = table.url.as_ref().and_then(Address::problem) {
        return Err(bad(format_args!("{of}: url {problem}")));
    }
    let ca_file = table.ca_file.map(|path| source.anchor(path));
    let secret = |secret: Secret| anchored(source, secret);
    let http = |url: Address| Http {
        url: anchored_address(source, url),
        token: table.token.map(secret),
        headers: table.headers.unwrap_or_default().into_iter().map(|(name, value)| (name, secret(value))).collect(),
        ca_file: ca_file.clone(),
    };
    let way = match kind {
        Kind::Alertmanager | Kind::Webhook | Kind::Slack => Way::Http(http(table.url.ok_or_else(|| missing("url"))?)),
        Kind::PagerDuty => {
            let url = table.url.unwrap_or_else(|| Address::Text(Arc::new(notify::PAGERDUTY_URL.to_owned().into())));
            Way::PagerDuty { routing_key: secret(table.routing_key.ok_or_else(|| missing("routing_key"))?), http: http(url) }
        }
        Kind::Smtp => {
            let tls = table.tls.unwrap_or(MailSecurity::StartTls);
            let default_port = match tls {
                MailSecurity::StartTls => 587,
                MailSecurity::Tls => 465,
                MailSecurity::None => 25,
            };
            let login = match (table.user, table.password) {
                (Some(user), Some(password)) => Some((user, secret(password))),
                (None, None) => None,
                (Some(_), None) => return Err(missing("password beside user")),
                (None, Some(_)) => return Err(missing("user beside password")),
            };
            let from = table.from.ok_or_else(|| missing("from"))?;
            let to = match table.to.ok_or_else(|| missing("to"))? {
                Readers::One(one) => vec![one],
                Readers::Several(all) => all,
            };
            if to.is_empty() {
                return Err(missing("somebody in to"));
            }
            if let Some(wrong) = to.iter().chain([&from]).find(|text| !notify::is_mailbox(text)) {
                return Err(bad(format_args!("{of}: {wrong:?} is no address of mail")));
            }
            Way::Smtp {
                host: table.host.ok_or_else(|| missing("host"))?,
                port: table.port.unwrap_or(default_port),
                tls,
                login,
                from,
                to,
                ca_file,
            }
        }
    };
    Ok(SinkSettings { name, kind, min_severity: table.min_severity.unwrap_or(Severity::Warning), way })
}

impl Settings {
    /// When somebody is told, and how often.
    pub(crate) fn alerting(&self) -> (Terms, Rhythm) {
        let alerts = &self.alerts;
        // Longer than anybody lives is as good as for ever.
        let signed = |span: Duration| SignedDuration::try_from(span).unwrap_or(SignedDuration::MAX);
        let terms = Terms {
            backup_age: alerts.backup_age.value,
            key_ahead: Duration::from_secs(u64::from(alerts.key_days.value) * 86_400),
            disk_free_percent: alerts.disk_free_percent.value,
        };
        let rhythm = Rhythm {
            group_wait: signed(alerts.group_wait.value),
            repeat: signed(alerts.repeat.value),
            resolve_after: signed(alerts.resolve_after.value),
        };
        (terms, rhythm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str) -> Result<AlertSettings, Failure> {
        let table: AlertsTable = toml::from_str(text).map_err(|error| Failure::usage(error.message().to_owned()))?;
        AlertSettings::resolve(&Source { path: Some(Path::new("/etc/lifeboat/lifeboat.toml")) }, table, Duration::from_secs(86_400))
    }

    fn sink(text: &str) -> Result<SinkSettings, Failure> {
        resolve(&format!("[[sink]]\nname = 'ops'\n{text}")).map(|settings| settings.sinks.value.into_iter().next().unwrap())
    }

    const SMTP: &str = "type = 'smtp'\nhost = 'mail'\nfrom = 'lifeboat@example.org'\nto = 'ops@example.org'\n";

    #[test]
    fn what_nobody_says_follows_from_the_rpo() {
        let settings = resolve("").unwrap();
        assert_eq!(settings.backup_age.value, Duration::from_secs(30 * 3600));
        assert_eq!((settings.key_days.value, settings.disk_free_percent.value), (30, 10));
        assert_eq!(
            (settings.group_wait.value.as_secs(), settings.repeat.value.as_secs(), settings.resolve_after.value.as_secs()),
            (30, 14_400, 120)
        );
        assert_eq!((settings.runbook_url.value.as_str(), settings.sinks.value.len()), ("docs/alerts.md", 0));
        let settings = resolve("backup_age = '2d'\ngroup_wait = '0s'\nresolve_after = '0'\nrepeat = '1d'\nkey_days = 0").unwrap();
        assert_eq!((settings.backup_age.value.as_secs(), settings.group_wait.value, settings.key_days.value), (172_800, Duration::ZERO, 0));
        for wrong in [
            "repeat = '0s'",
            "repeat = '5s'",
            "disk_free_percent = 100",
            "key_days = 5000",
            "runbook_url = 'https://wiki#x'",
            "runbook_url = ''",
        ] {
            assert_eq!(resolve(wrong).unwrap_err().code, crate::failure::EXIT_USAGE, "{wrong}");
        }
    }

    #[test]
    fn every_kind_of_sink_is_read() {
        let Way::Http(http) =
            sink("type = 'alertmanager'\nurl = 'http://am:9093'\ntoken = { file = 'token' }\nca_file = 'ca.pem'").unwrap().way
        else {
            panic!("it is asked by HTTP")
        };
        assert_eq!((http.token, http.ca_file), (Some(Secret::File("/etc/lifeboat/token".into())), Some("/etc/lifeboat/ca.pem".into())));
        let Way::Http(http) = sink("type = 'webhook'\nurl = 'https://h/x'\nheaders = { X-Key = { env = 'K' } }").unwrap().way else {
            panic!("it is asked by HTTP")
        };
        assert_eq!(http.headers["X-Key"], Secret::Env("K".into()));
        let slack = sink("type = 'slack'\nurl = { file = 'slack' }\nmin_severity = 'critical'").unwrap();
        assert_eq!(slack.min_severity, Severity::Critical);
        let Way::Http(Http { url: Address::Reference(Secret::File(path)), .. }) = slack.way else { panic!("its address is a secret") };
        assert_eq!(path, Path::new("/etc/lifeboat/slack"));
        let Way::PagerDuty { http, routing_key } = sink("type = 'pagerduty'\nrouting_key = { env = 'PD' }").unwrap().way else {
            panic!("PagerDuty")
        };
        assert_eq!((http.url.text(), routing_key), (Some(notify::PAGERDUTY_URL), Secret::Env("PD".into())));
        for (text, expected) in [("", 587), ("tls = 'tls'", 465), ("tls = 'none'", 25), ("port = 2525", 2525)] {
            let Way::Smtp { port, to, login, .. } = sink(&format!("{SMTP}{text}")).unwrap().way else { panic!("mail") };
            assert_eq!((port, to, login.is_none()), (expected, vec!["ops@example.org".to_owned()], true), "{text}");
        }
    }

    #[test]
    fn c121_what_cannot_be_meant_is_refused() {
        for wrong in [
            "type = 'alertmanager'",
            "type = 'slack'\nurl = 'https://h'\ntoken = { env = 'T' }",
            "type = 'webhook'\nurl = 'am:9093'",
            "type = 'webhook'\nurl = 'https://me:hunter2@h/x'",
            "type = 'webhook'\nurl = 5",
            "type = 'webhook'\nurl = 'https://h'\ntoken = 'hunter2'",
            "type = 'webhook'\nurl = 'https://h'\nheaders = { X-Key = 'hunter2' }",
            "type = 'pagerduty'",
            "type = 'pagerduty'\nrouting_key = 'hunter2'",
            "type = 'teams'\nurl = 'https://h'",
            "type = 'webhook'\nurl = 'https://h'\nmin_severity = 'info'",
            "type = 'webhook'\nurl = 'https://h'\nfrom = 'a@b'",
            "type = 'webhook'\nurl = 'https://h'\nurll = 'x'",
            "type = 'smtp'\nhost = 'mail'\nfrom = 'a@example.org'",
            "type = 'smtp'\nhost = 'mail'\nfrom = 'nobody'\nto = 'ops@example.org'",
            "type = 'smtp'\nhost = 'mail'\nfrom = 'a@example.org'\nto = []",
            "type = 'smtp'\nhost = 'mail'\nfrom = 'a@example.org'\nto = 'ops@example.org'\nuser = 'me'",
            "type = 'smtp'\nhost = 'mail'\nfrom = 'a@example.org'\nto = 'ops@example.org'\npassword = { env = 'P' }",
        ] {
            let failure = sink(wrong).unwrap_err();
            assert!(failure.code == crate::failure::EXIT_USAGE && !failure.message.contains("hunter2"), "{wrong}: {}", failure.message);
        }
        for name in ["", "Ops", "a/b", "..", "heartbeat", &"x".repeat(64)] {
            let failure = resolve(&format!("[[sink]]\nname = '{name}'\ntype = 'webhook'\nurl = 'https://h'")).unwrap_err();
            assert!(failure.message.contains("is called"), "{name}");
        }
        let twice = "[[sink]]\nname = 'a'\ntype = 'webhook'\nurl = 'https://h'\n".repeat(2);
        assert!(resolve(&twice).unwrap_err().message.contains("two [[alerts.sink]] are called"));
        let many: String = (0..33).map(|number| format!("[[sink]]\nname = 'a{number}'\ntype = 'webhook'\nurl = 'https://h'\n")).collect();
        assert!(resolve(&many).is_err());
        assert!(resolve("heartbeat_url = 'hc.example.org/x'").is_err() && resolve("backup_aeg = '1d'").is_err());
    }

    #[test]
    fn nothing_secret_is_shown() {
        let text = "heartbeat_url = 'https://hc.example.org/hunter2'\n\
             [[sink]]\nname = 'a'\ntype = 'slack'\nurl = 'https://hooks.slack.com/services/hunter2'\n\
             [[sink]]\nname = 'b'\ntype = 'webhook'\nurl = 'https://h?key=hunter2'\ntoken = { env = 'T' }\n\
             [[sink]]\nname = 'c'\ntype = 'pagerduty'\nrouting_key = { file = 'key' }\n\
             [[sink]]\nname = 'd'\ntype = 'alertmanager'\nurl = 'http://am:9093/prefix'\n";
        let settings = resolve(text).unwrap();
        let shown = format!("{:?} {settings:?}", settings.rows());
        assert!(!shown.contains("hunter2"), "{shown}");
        let value = |name: &str| settings.rows().into_iter().find(|(key, ..)| key == name).unwrap().1;
        assert_eq!(value("alerts.heartbeat_url"), "https://hc.example.org/…");
        assert_eq!(value("alerts.sink.a"), json!({"type": "slack", "min_severity": "warning", "url": "https://hooks.slack.com/…"}));
        assert_eq!(value("alerts.sink.d")["url"], "http://am:9093/prefix");
        assert_eq!(value("alerts.sink.c")["routing_key"], json!({"file": "/etc/lifeboat/key"}));
        assert_eq!(settings.secret_files(), [("secret of an alert sink", Path::new("/etc/lifeboat/key"))]);
    }
}
