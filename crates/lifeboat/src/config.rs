//! Configuration: one TOML file, joined as flag > environment > file > default, each setting with
//! where it came from. Unknown keys are errors (c121); secrets are references, never values.

mod agent;
mod alerts;
mod approvals;
mod audit;
mod drill;
pub(crate) mod edit;
mod log;
mod measure;
mod metrics;
mod policy;
pub(crate) mod reference;
mod repositories;
mod signing;
mod traces;
mod trust;
mod user_keys;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use lifeboat_engine::store::Part;

use crate::cli::Cli;
use crate::failure::Failure;

pub(crate) use agent::AgentSettings;
pub(crate) use alerts::{Address, AlertSettings, HEARTBEAT, Http, Kind as SinkKind, MailSecurity, SinkSettings, Way};
pub(crate) use approvals::{Approvals, ApprovalsTable};
pub(crate) use audit::AuditSettings;
pub(crate) use drill::DrillSettings;
pub(crate) use log::LogSettings;
use measure::{LongSpan, Size, Span, shown_span};
pub(crate) use measure::{parse_bytes, parse_days, parse_span};
pub(crate) use metrics::MetricsSettings;
pub(crate) use policy::{PolicyTable, PolicyTerms};
pub(crate) use repositories::{Repositories, RepositorySettings, RepositoryTable};
pub(crate) use signing::{SigningSettings, SigningTable, TimestampPart, Token};
pub(crate) use traces::{Headers, TracesSettings};
pub(crate) use trust::{KeyPlace, KeySource, TrustSettings};
pub(crate) use user_keys::UserKeys;

/// What a file may say.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    pub(crate) name: Option<String>,
    pub(crate) postgres: Option<Postgres>,
    #[serde(default)]
    pub(crate) repository: Vec<RepositoryTable>,
    pub(crate) artifacts: Option<Artifacts>,
    pub(crate) encryption: Option<Encryption>,
    pub(crate) signing: Option<SigningTable>,
    pub(crate) trust: Option<trust::TrustTable>,
    pub(crate) limits: Option<Limits>,
    pub(crate) wal: Option<Wal>,
    pub(crate) objectives: Option<Objectives>,
    pub(crate) retention: Option<Retention>,
    pub(crate) approvals: Option<ApprovalsTable>,
    pub(crate) policy: Option<PolicyTable>,
    pub(crate) audit: Option<audit::AuditTable>,
    pub(crate) drill: Option<drill::DrillTable>,
    pub(crate) agent: Option<agent::AgentTable>,
    pub(crate) schedule: Option<agent::ScheduleTable>,
    pub(crate) metrics: Option<metrics::MetricsTable>,
    pub(crate) alerts: Option<alerts::AlertsTable>,
    pub(crate) log: Option<log::LogTable>,
    pub(crate) traces: Option<traces::TracesTable>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Retention {
    pub(crate) keep_last: Option<u32>,
    pub(crate) keep_daily: Option<u32>,
    pub(crate) keep_weekly: Option<u32>,
    pub(crate) keep_monthly: Option<u32>,
    pub(crate) keep_yearly: Option<u32>,
    pub(crate) recovery_window: Option<LongSpan>,
    pub(crate) grace: Option<LongSpan>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Objectives {
    pub(crate) rpo: Option<LongSpan>,
    pub(crate) rto: Option<LongSpan>,
    pub(crate) drill: Option<LongSpan>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wal {
    pub(crate) mode: Option<WalMode>,
    pub(crate) durability: Option<Durability>,
    pub(crate) on_fallout: Option<OnFallout>,
    pub(crate) degrade_after: Option<Span>,
    pub(crate) flush_interval: Option<Span>,
    pub(crate) slot: Option<String>,
    pub(crate) spool: Option<PathBuf>,
    pub(crate) spool_limit: Option<Size>,
    pub(crate) push_ahead: Option<usize>,
    pub(crate) fetch_ahead: Option<usize>,
}

/// How WAL reaches the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum WalMode {
    /// Finished segments, by archive_command.
    Archive,
    /// Also the open segment, by the receiver, every few seconds.
    Stream,
    /// The receiver acknowledges a flush only when the bytes are durable.
    Sync,
}

/// Where bytes have to be durable before the receiver acknowledges them in mode `sync`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Durability {
    /// In the local spool, synced.
    Spool,
    /// In the repository.
    Repository,
}

/// What happens to commits when the receiver cannot keep its promise in mode `sync`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnFallout {
    /// They wait.
    Block,
    /// They go on without it, loudly.
    Degrade,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Postgres {
    pub(crate) dsn: Option<DsnText>,
    pub(crate) data_directory: Option<PathBuf>,
    pub(crate) copy: Option<lifeboat_core::backup::CopyChoice>,
    pub(crate) bin_directory: Option<PathBuf>,
    pub(crate) checkpoint: Option<Checkpoint>,
    pub(crate) scratch: Option<PathBuf>,
    pub(crate) check_pages: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Checkpoint {
    Fast,
    Spread,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Artifacts {
    pub(crate) directory: Option<PathBuf>,
    pub(crate) reference_query: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Encryption {
    pub(crate) recipients: Option<Vec<String>>,
    pub(crate) host_identity: Option<PathBuf>,
    pub(crate) identity_file: Option<PathBuf>,
    pub(crate) none: Option<String>,
}

/// What encryption.none must say.
pub(crate) const PLAIN_WORDS: &str = "I accept plain backups";

/// Where a secret is.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Secret {
    /// In an environment variable.
    Env(String),
    /// In a file; one newline at its end does not count.
    File(PathBuf),
    /// What a command prints; one newline at its end does not count.
    Command(Vec<String>),
}

/// A connection string, which may hold a password: it is not printed but through [`lifeboat_engine::postgres::Dsn`], and wiped.
#[derive(Default)]
pub(crate) struct DsnText(lifeboat_engine::secret::Secret);

impl DsnText {
    /// The string, for libpq.
    pub(crate) fn as_str(&self) -> &str {
        self.0.expose_text().expect("made from text")
    }
}

impl From<String> for DsnText {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for DsnText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DsnText(***)")
    }
}

impl<'de> Deserialize<'de> for DsnText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}

/// A secret as the file names it. Whatever else stands there may be the secret itself, so the error must
/// not repeat it as serde's own would.
impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const FORM: &str = "a secret is not written here: write { file = \"…\" }, { env = \"…\" } or { command = [\"…\"] }";
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Place {
            env: Option<String>,
            file: Option<PathBuf>,
            command: Option<Vec<String>>,
        }
        match toml::Value::deserialize(deserializer)?.try_into::<Place>() {
            Ok(Place { env: Some(name), file: None, command: None }) => Ok(Self::Env(name)),
            Ok(Place { env: None, file: Some(path), command: None }) => Ok(Self::File(path)),
            Ok(Place { env: None, file: None, command: Some(words) }) => Ok(Self::Command(words)),
            _ => Err(serde::de::Error::custom(FORM)),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limits {
    pub(crate) memory: Option<Size>,
    pub(crate) workers: Option<usize>,
    pub(crate) bandwidth: Option<Size>,
    pub(crate) compression_level: Option<i32>,
}

/// Where a setting came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    Flag(&'static str),
    Environment(&'static str),
    File(PathBuf),
    /// Keys in the user's configuration directory.
    User(PathBuf),
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Environment(variable) => write!(f, "environment {variable}"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::User(path) => write!(f, "user's directory {}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A setting and where it came from.
#[derive(Debug, Clone)]
pub(crate) struct Setting<T> {
    pub(crate) value: T,
    pub(crate) origin: Origin,
}

/// Every setting, resolved.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The file that was read.
    pub(crate) file: Option<PathBuf>,
    pub(crate) name: Setting<String>,
    /// `None`: no server is configured.
    pub(crate) dsn: Option<Setting<DsnText>>,
    pub(crate) data_directory: Option<Setting<PathBuf>>,
    pub(crate) copy: Setting<lifeboat_core::backup::CopyChoice>,
    pub(crate) bin_directory: Option<Setting<PathBuf>>,
    pub(crate) checkpoint: Setting<Checkpoint>,
    pub(crate) scratch: Setting<PathBuf>,
    pub(crate) check_pages: Setting<bool>,
    pub(crate) repositories: Repositories,
    /// Names of repositories that were left out by hand.
    pub(crate) without: Vec<String>,
    /// When the repositories are looked at, if not now.
    pub(crate) as_of: Option<jiff::Timestamp>,
    pub(crate) artifacts: Option<Setting<PathBuf>>,
    pub(crate) reference_query: Option<Setting<String>>,
    pub(crate) recipients: Setting<Vec<String>>,
    pub(crate) host_identity: Option<Setting<PathBuf>>,
    pub(crate) identity_file: Option<Setting<PathBuf>>,
    pub(crate) plain: Setting<bool>,
    pub(crate) key_file: Option<Setting<PathBuf>>,
    pub(crate) password: Option<Setting<Secret>>,
    /// The rest of `[signing]`.
    pub(crate) signing: SigningSettings,
    pub(crate) trust: TrustSettings,
    pub(crate) memory_bytes: Setting<u64>,
    pub(crate) workers: Setting<usize>,
    pub(crate) bandwidth: Option<Setting<u64>>,
    pub(crate) compression_level: Setting<i32>,
    pub(crate) rpo: Setting<Duration>,
    pub(crate) rto: Setting<Duration>,
    /// How old the last successful drill may be.
    pub(crate) drill_every: Setting<Duration>,
    pub(crate) wal_mode: Setting<WalMode>,
    pub(crate) wal_durability: Setting<Durability>,
    pub(crate) wal_on_fallout: Setting<OnFallout>,
    pub(crate) wal_degrade_after: Setting<Duration>,
    pub(crate) wal_flush_interval: Setting<Duration>,
    pub(crate) wal_slot: Setting<String>,
    pub(crate) wal_spool: Setting<PathBuf>,
    pub(crate) wal_spool_limit: Setting<u64>,
    pub(crate) wal_push_ahead: Setting<usize>,
    pub(crate) wal_fetch_ahead: Setting<usize>,
    pub(crate) keep_last: Option<Setting<u32>>,
    pub(crate) keep_daily: Option<Setting<u32>>,
    pub(crate) keep_weekly: Option<Setting<u32>>,
    pub(crate) keep_monthly: Option<Setting<u32>>,
    pub(crate) keep_yearly: Option<Setting<u32>>,
    pub(crate) recovery_window: Option<Setting<Duration>>,
    pub(crate) grace: Setting<Duration>,
    pub(crate) approvals: Approvals,
    pub(crate) policy: PolicyTerms,
    pub(crate) audit: AuditSettings,
    pub(crate) drill: DrillSettings,
    /// What runs day and night.
    pub(crate) agent: AgentSettings,
    pub(crate) metrics: MetricsSettings,
    pub(crate) alerts: AlertSettings,
    pub(crate) log: LogSettings,
    pub(crate) traces: TracesSettings,
    /// Why somebody goes around the approvals, if they do: for one command, and never from a file.
    pub(crate) break_glass: Option<String>,
    /// Where the user's own keys are, whether or not they are there.
    pub(crate) user_keys: UserKeys,
    /// Whether the file names a server.
    pub(crate) postgres_configured: bool,
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The user's directory for what programs keep (XDG Base Directory Specification).
fn state_directory() -> Option<PathBuf> {
    let named = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    named.or_else(|| environment("HOME").map(|home| Path::new(&home).join(".local/state")))
}

/// The user's configuration directory for lifeboat.
pub(crate) fn user_directory() -> Result<PathBuf, Failure> {
    use etcetera::BaseStrategy as _;
    let base = etcetera::choose_base_strategy().map_err(|_| {
        Failure::usage("find the configuration directory: HOME is not set")
            .hint("set HOME, or name the keys in a configuration file: lifeboat --config FILE")
    })?;
    Ok(base.config_dir().join("lifeboat"))
}

/// serde repeats the text that stands in a wrong place, and that may be a connection string with its password.
fn without_text(message: &str) -> String {
    match message.split_once(": string \"").zip(message.rsplit_once("\", expected ")) {
        Some(((before, _), (_, expected))) => format!("{before}: a text, expected {expected}"),
        None => message.to_owned(),
    }
}

/// Reads the configuration file that applies.
fn read_file(cli: &Cli) -> Result<(File, Option<PathBuf>), Failure> {
    let path = match &cli.config {
        Some(path) => Some(path.clone()),
        None => [PathBuf::from("lifeboat.toml"), PathBuf::from("/etc/lifeboat/lifeboat.toml")].into_iter().find(|path| path.exists()),
    };
    let Some(path) = path else { return Ok((File::default(), None)) };
    let text = std::fs::read_to_string(&path).map_err(|error| {
        Failure::usage(format!("read configuration {}: {error}", path.display()))
            .hint("lifeboat init --write-config FILE writes one to begin with")
    })?;
    Ok((parse(&text, &path)?, Some(path)))
}

/// What a file says.
pub(crate) fn parse(text: &str, path: &Path) -> Result<File, Failure> {
    toml::from_str(text).map_err(|error| {
        let line = |at: usize| text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1;
        let place = error.span().map_or(String::new(), |span| format!(" line {}", line(span.start)));
        let message = without_text(&error.message().replace('\n', " "));
        Failure::usage(format!("read configuration {}{place}: {message}", path.display()))
            .hint("docs/configuration.md lists the settings; lifeboat config show prints them as read")
    })
}

/// How long an expired backup stays whole where nobody says: long enough for somebody to come back from a holiday week.
pub(crate) const DEFAULT_GRACE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// One setting: from the environment, else from the file.
struct Source<'a> {
    path: Option<&'a Path>,
}

impl Source<'_> {
    fn pick<T>(&self, flag: Option<(T, &'static str)>, environment: Option<(T, &'static str)>, file: Option<T>) -> Option<Setting<T>> {
        if let Some((value, name)) = flag {
            return Some(Setting { value, origin: Origin::Flag(name) });
        }
        if let Some((value, name)) = environment {
            return Some(Setting { value, origin: Origin::Environment(name) });
        }
        let path = self.path.map(Path::to_owned).unwrap_or_default();
        file.map(|value| Setting { value, origin: Origin::File(path) })
    }

    /// A span in a file, or what it is without one.
    fn span(&self, file: Option<LongSpan>, default: Duration) -> Setting<Duration> {
        self.pick(None, None, file.map(|span| span.0)).unwrap_or(Setting { value: default, origin: Origin::Default })
    }

    /// Paths in a file are relative to its directory: PostgreSQL runs `wal push` and `wal fetch` in the data directory.
    fn path(&self, variable: &'static str, file: Option<PathBuf>) -> Option<Setting<PathBuf>> {
        self.pick(None, environment(variable).map(|value| (value.into(), variable)), file.map(|path| self.anchor(path)))
    }

    fn anchor(&self, path: PathBuf) -> PathBuf {
        match self.path.and_then(Path::parent) {
            Some(parent) if !parent.as_os_str().is_empty() => parent.join(path),
            _ => path,
        }
    }

    /// The same of a repository's URL, which may be a path.
    fn anchor_url(&self, url: String) -> String {
        if url.contains("://") { url } else { self.anchor(PathBuf::from(url)).display().to_string() }
    }
}

/// What S3's own programs read as well. Unlike this program's own variables they come after the file: they are set for other programs.
fn aws(variables: &[&'static str]) -> Option<Setting<String>> {
    let (value, name) = variables.iter().find_map(|name| Some((environment(name)?, *name)))?;
    Some(Setting { value, origin: Origin::Environment(name) })
}

/// An endpoint has no user and password; who writes them there does not see them printed.
fn without_credentials(url: &str) -> String {
    match url.split_once("://").map_or(url, |(_, rest)| rest).contains('@') {
        true => "an address with credentials".to_owned(),
        false => url.to_owned(),
    }
}

/// What was fetched ahead from a repository as it was is no part of it as it is, and the other way round.
fn as_of_spool(mut spool: Setting<PathBuf>, as_of: Option<jiff::Timestamp>) -> Setting<PathBuf> {
    if let Some(moment) = as_of {
        spool.value.push(format!("as-of-{}", moment.as_millisecond()));
    }
    spool
}

/// The bucket or container of a URL, with its scheme.
fn bucket_of(url: &str) -> Option<&str> {
    let (scheme, rest) = url.split_once("://")?;
    let bucket = rest.split('/').next().unwrap_or_default();
    matches!(scheme, "s3" | "gs" | "az" | "azure").then(|| &url[..scheme.len() + 3 + bucket.len()])
}

/// A drill each quarter: one is up to 92 days long, and the drill takes its time, and may be tried again.
const QUARTER: Duration = Duration::from_secs(100 * 24 * 60 * 60);

/// Any standard variable that says where the server is.
const PG_VARIABLES: [&str; 5] = ["PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE", "PGPORT"];

impl Settings {
    /// Resolves all settings.
    pub(crate) fn resolve(cli: &Cli) -> Result<Self, Failure> {
        let (file, path) = read_file(cli)?;
        let source = Source { path: path.as_deref() };
        let flag = cli.repository.clone().map(|value| (value, "--repository or LIFEBOAT_REPOSITORY"));
        let repositories = Repositories::resolve(&source, &file.repository, flag, &cli.without_repository, cli.as_of)?;
        let postgres_configured = file.postgres.is_some();
        let postgres = file.postgres.unwrap_or_default();
        let artifacts = file.artifacts.unwrap_or_default();
        let encryption = file.encryption.unwrap_or_default();
        let signing = file.signing.unwrap_or_default();
        let limits = file.limits.unwrap_or_default();
        let user_keys = UserKeys::read(user_directory().unwrap_or_else(|_| PathBuf::from(".lifeboat")))?;
        let user = |path: PathBuf| path.exists().then(|| Setting { value: path, origin: Origin::User(user_keys.directory.clone()) });
        let plain = match &encryption.none {
            None => Setting { value: false, origin: Origin::Default },
            Some(words) if words == PLAIN_WORDS => Setting { value: true, origin: Origin::File(path.clone().unwrap_or_default()) },
            Some(_) => {
                return Err(Failure::usage(format!("read configuration: encryption.none must say {PLAIN_WORDS:?}"))
                    .hint("or give encryption.recipients; lifeboat key generate makes one"));
            }
        };
        let recipients = match encryption.recipients {
            Some(list) => Setting { value: list, origin: Origin::File(path.clone().unwrap_or_default()) },
            None => match std::fs::read_to_string(user_keys.recipients()) {
                Ok(text) if !plain.value => {
                    let list =
                        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect();
                    Setting { value: list, origin: Origin::User(user_keys.directory.clone()) }
                }
                _ => Setting { value: Vec::new(), origin: Origin::Default },
            },
        };
        let dsn = source.pick(None, environment("LIFEBOAT_DSN").map(|value| (DsnText::from(value), "LIFEBOAT_DSN")), postgres.dsn).or_else(
            || {
                let variable = PG_VARIABLES.into_iter().find(|name| environment(name).is_some());
                variable.map(|name| Setting { value: DsnText::default(), origin: Origin::Environment(name) })
            },
        );
        let key_file = match signing.names_service() {
            false => source.path("LIFEBOAT_SIGNING_KEY", signing.key_file.clone()).or_else(|| user(user_keys.signing_key())),
            true => None,
        };
        let password = signing.password.clone();
        let password = match (environment("COSIGN_PASSWORD"), password) {
            _ if key_file.is_none() => None,
            (_, Some(Secret::File(path))) => source.pick(None, None, Some(Secret::File(source.anchor(path)))),
            (_, Some(secret)) => source.pick(None, None, Some(secret)),
            (Some(_), None) => {
                Some(Setting { value: Secret::Env("COSIGN_PASSWORD".into()), origin: Origin::Environment("COSIGN_PASSWORD") })
            }
            (None, None) => {
                user(user_keys.password()).map(|setting| Setting { value: Secret::File(setting.value), origin: setting.origin })
            }
        };
        // One root, wherever it is named: what is signed here is verified with what readers here have.
        let mut trust = file.trust.unwrap_or_default();
        let root = source.path("LIFEBOAT_TRUSTED_ROOT", trust.trusted_root.take());
        let services = SigningSettings::resolve(&source, signing, root.as_ref())?;
        let trust = TrustSettings::resolve(&source, trust, root.or(services.trusted_root.clone()), &user_keys)?;
        let memory = limits.memory.map(|size| size.0);
        if memory.is_some_and(|bytes| bytes < 64 << 20) {
            return Err(
                Failure::usage("read configuration: limits.memory must be at least 64MiB").hint("lifeboat config show prints the settings")
            );
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = limits.workers;
        if workers == Some(0) || workers.is_some_and(|workers| workers > 1024) {
            return Err(
                Failure::usage("read configuration: limits.workers must be 1 to 1024").hint("lifeboat config show prints the settings")
            );
        }
        let level = limits.compression_level;
        if level.is_some_and(|level| !(-7..=19).contains(&level)) {
            return Err(Failure::usage("read configuration: limits.compression_level must be -7 to 19")
                .hint("lifeboat config show prints the settings"));
        }
        let wal = file.wal.unwrap_or_default();
        let retention = file.retention.unwrap_or_default();
        let ahead = |key: &str, value: Option<usize>| match value {
            Some(count) if !(1..=1024).contains(&count) => {
                Err(Failure::usage(format!("read configuration: wal.{key} must be 1 to 1024"))
                    .hint("lifeboat config show prints the settings"))
            }
            other => Ok(other),
        };
        let (push_ahead, fetch_ahead) = (ahead("push_ahead", wal.push_ahead)?, ahead("fetch_ahead", wal.fetch_ahead)?);
        if let Some(slot) = &wal.slot
            && !(1..64).contains(&slot.len()) | slot.bytes().any(|b| !(b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'))
        {
            return Err(Failure::usage("read configuration: wal.slot may have a-z, 0-9 and _, at most 63 of them")
                .hint("lifeboat config show prints the settings"));
        }
        let spool_default = state_directory().map_or_else(|| PathBuf::from("/var/spool/lifeboat"), |base| base.join("lifeboat/spool"));
        let objectives = file.objectives.unwrap_or_default();
        let rpo = source.span(objectives.rpo, Duration::from_secs(24 * 60 * 60));
        let alerts = AlertSettings::resolve(&source, file.alerts.unwrap_or_default(), rpo.value)?;
        let or_default = |setting: Option<Setting<_>>, value| setting.unwrap_or(Setting { value, origin: Origin::Default });
        let scratch_default = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| environment("HOME").map(|home| Path::new(&home).join(".cache")))
            .unwrap_or_else(|| PathBuf::from("/var/tmp"))
            .join("lifeboat");
        let wal_mode = source.pick(None, None, wal.mode).unwrap_or(Setting { value: WalMode::Archive, origin: Origin::Default });
        let keeps = [retention.keep_last, retention.keep_daily, retention.keep_weekly, retention.keep_monthly, retention.keep_yearly];
        let identity_file = source.path("LIFEBOAT_IDENTITY_FILE", encryption.identity_file).or_else(|| user(user_keys.identity()));
        let duties = agent::Duties {
            restores: identity_file.is_some() || plain.value,
            replicas: repositories.used.iter().skip(1).any(|one| one.part.value != Part::KeptByStore),
            retention: keeps.iter().any(Option::is_some) || retention.recovery_window.is_some(),
            receives: wal_mode.value != WalMode::Archive,
        };
        let agent = AgentSettings::resolve(&source, file.agent.unwrap_or_default(), file.schedule.unwrap_or_default(), &duties)?;
        Ok(Self {
            name: source
                .pick(None, environment("LIFEBOAT_NAME").map(|value| (value, "LIFEBOAT_NAME")), file.name)
                .unwrap_or(Setting { value: "conductor".into(), origin: Origin::Default }),
            dsn,
            data_directory: source
                .path("PGDATA", None)
                .filter(|_| postgres.data_directory.is_none())
                .or_else(|| source.pick(None, None, postgres.data_directory.map(|path| source.anchor(path)))),
            copy: source
                .pick(None, None, postgres.copy)
                .unwrap_or(Setting { value: lifeboat_core::backup::CopyChoice::Auto, origin: Origin::Default }),
            bin_directory: source.path("LIFEBOAT_PG_BIN", postgres.bin_directory),
            checkpoint: source
                .pick(None, None, postgres.checkpoint)
                .unwrap_or(Setting { value: Checkpoint::Fast, origin: Origin::Default }),
            scratch: source
                .path("LIFEBOAT_SCRATCH", postgres.scratch)
                .unwrap_or(Setting { value: scratch_default, origin: Origin::Default }),
            check_pages: source.pick(None, None, postgres.check_pages).unwrap_or(Setting { value: true, origin: Origin::Default }),
            repositories,
            without: cli.without_repository.clone(),
            as_of: cli.as_of,
            artifacts: source.path("LIFEBOAT_ARTIFACTS", artifacts.directory),
            reference_query: source.pick(None, None, artifacts.reference_query),
            recipients,
            host_identity: source.path("LIFEBOAT_HOST_IDENTITY", encryption.host_identity).or_else(|| user(user_keys.host_identity())),
            identity_file,
            plain,
            key_file,
            password,
            signing: services,
            trust,
            memory_bytes: or_default(source.pick(None, None, memory), 512 << 20),
            workers: source.pick(None, None, workers).unwrap_or(Setting { value: cores, origin: Origin::Default }),
            bandwidth: source.pick(None, None, limits.bandwidth.map(|size| size.0)),
            compression_level: source.pick(None, None, level).unwrap_or(Setting { value: 1, origin: Origin::Default }),
            rpo,
            rto: source.span(objectives.rto, Duration::from_secs(4 * 60 * 60)),
            drill_every: source.span(objectives.drill, QUARTER),
            wal_mode,
            wal_durability: source
                .pick(None, None, wal.durability)
                .unwrap_or(Setting { value: Durability::Spool, origin: Origin::Default }),
            wal_on_fallout: source.pick(None, None, wal.on_fallout).unwrap_or(Setting { value: OnFallout::Block, origin: Origin::Default }),
            wal_degrade_after: source
                .pick(None, None, wal.degrade_after.map(|span| span.0))
                .unwrap_or(Setting { value: Duration::from_secs(10), origin: Origin::Default }),
            wal_flush_interval: source
                .pick(None, None, wal.flush_interval.map(|span| span.0))
                .unwrap_or(Setting { value: Duration::from_secs(5), origin: Origin::Default }),
            wal_slot: source.pick(None, None, wal.slot).unwrap_or(Setting { value: "lifeboat".into(), origin: Origin::Default }),
            wal_spool: as_of_spool(
                source.path("LIFEBOAT_SPOOL", wal.spool).unwrap_or(Setting { value: spool_default, origin: Origin::Default }),
                cli.as_of,
            ),
            wal_spool_limit: or_default(source.pick(None, None, wal.spool_limit.map(|size| size.0)), 4 << 30),
            wal_push_ahead: source.pick(None, None, push_ahead).unwrap_or(Setting { value: 128, origin: Origin::Default }),
            wal_fetch_ahead: source.pick(None, None, fetch_ahead).unwrap_or(Setting { value: 16, origin: Origin::Default }),
            keep_last: source.pick(None, None, retention.keep_last),
            keep_daily: source.pick(None, None, retention.keep_daily),
            keep_weekly: source.pick(None, None, retention.keep_weekly),
            keep_monthly: source.pick(None, None, retention.keep_monthly),
            keep_yearly: source.pick(None, None, retention.keep_yearly),
            recovery_window: source.pick(None, None, retention.recovery_window.map(|span| span.0)),
            grace: source.span(retention.grace, DEFAULT_GRACE),
            policy: PolicyTerms::resolve(&source, file.policy.unwrap_or_default())?,
            approvals: Approvals::resolve(&source, file.approvals.unwrap_or_default())?,
            agent,
            drill: DrillSettings::resolve(&source, file.drill.unwrap_or_default())?,
            metrics: MetricsSettings::resolve(&source, file.metrics.unwrap_or_default())?,
            alerts,
            log: LogSettings::resolve(&source, file.log.unwrap_or_default(), cli.log_format)?,
            traces: TracesSettings::resolve(&source, file.traces.unwrap_or_default())?,
            audit: AuditSettings::resolve(&source, file.audit.unwrap_or_default(), &user_keys),
            break_glass: cli.break_glass.clone(),
            user_keys,
            postgres_configured,
            file: path,
        })
    }

    /// How to reach the repository at `url`: as configured, if it is of the bucket that these settings are of.
    pub(crate) fn store_options(&self, url: &str) -> lifeboat_engine::store::StoreOptions {
        self.repositories.options(url)
    }

    /// Every setting for people and programs: key, value, origin. Secrets are not values here.
    pub(crate) fn rows(&self) -> Vec<(String, serde_json::Value, String)> {
        use serde_json::json;
        fn of<T, V: Into<serde_json::Value>>(
            key: &'static str,
            setting: &Setting<T>,
            show: impl Fn(&T) -> V,
        ) -> (&'static str, serde_json::Value, String) {
            (key, show(&setting.value).into(), setting.origin.to_string())
        }
        fn maybe<T, V: Into<serde_json::Value>>(
            key: &'static str,
            setting: Option<&Setting<T>>,
            show: impl Fn(&T) -> V,
        ) -> (&'static str, serde_json::Value, String) {
            setting.map_or((key, serde_json::Value::Null, "not set".into()), |setting| of(key, setting, show))
        }
        let path = |path: &PathBuf| path.display().to_string();
        let dsn = |text: &DsnText| {
            lifeboat_engine::postgres::Dsn::parse(text.as_str())
                .map_or_else(|_| "not a connection string".to_owned(), |dsn| dsn.to_string())
        };
        let before = vec![
            of("name", &self.name, String::clone),
            maybe("postgres.dsn", self.dsn.as_ref(), dsn),
            maybe("postgres.data_directory", self.data_directory.as_ref(), path),
            of("postgres.copy", &self.copy, |copy| json!(copy)),
            maybe("postgres.bin_directory", self.bin_directory.as_ref(), path),
            of("postgres.checkpoint", &self.checkpoint, |checkpoint| json!(checkpoint)),
            of("postgres.scratch", &self.scratch, path),
            of("postgres.check_pages", &self.check_pages, |on| *on),
        ];
        let after = vec![
            maybe("artifacts.directory", self.artifacts.as_ref(), path),
            maybe("artifacts.reference_query", self.reference_query.as_ref(), String::clone),
            of("encryption.recipients", &self.recipients, |list| json!(list)),
            maybe("encryption.host_identity", self.host_identity.as_ref(), path),
            maybe("encryption.identity_file", self.identity_file.as_ref(), path),
            of("encryption.none", &self.plain, |plain| json!(if *plain { PLAIN_WORDS } else { "" })),
            maybe("signing.key_file", self.key_file.as_ref(), path),
            maybe("signing.password", self.password.as_ref(), signing::shown),
        ];
        let last = vec![
            of("limits.memory", &self.memory_bytes, |bytes| json!(bytes)),
            of("limits.workers", &self.workers, |workers| json!(workers)),
            maybe("limits.bandwidth", self.bandwidth.as_ref(), |bytes| json!(bytes)),
            of("limits.compression_level", &self.compression_level, |level| json!(level)),
            of("objectives.rpo", &self.rpo, |span| shown_span(*span)),
            of("objectives.rto", &self.rto, |span| shown_span(*span)),
            of("objectives.drill", &self.drill_every, |span| shown_span(*span)),
            maybe("retention.keep_last", self.keep_last.as_ref(), |count| *count),
            maybe("retention.keep_daily", self.keep_daily.as_ref(), |count| *count),
            maybe("retention.keep_weekly", self.keep_weekly.as_ref(), |count| *count),
            maybe("retention.keep_monthly", self.keep_monthly.as_ref(), |count| *count),
            maybe("retention.keep_yearly", self.keep_yearly.as_ref(), |count| *count),
            maybe("retention.recovery_window", self.recovery_window.as_ref(), |span| shown_span(*span)),
            of("retention.grace", &self.grace, |span| shown_span(*span)),
            of("wal.mode", &self.wal_mode, |mode| json!(mode)),
            of("wal.durability", &self.wal_durability, |durability| json!(durability)),
            of("wal.on_fallout", &self.wal_on_fallout, |on_fallout| json!(on_fallout)),
            of("wal.degrade_after", &self.wal_degrade_after, |span| shown_span(*span)),
            of("wal.flush_interval", &self.wal_flush_interval, |span| shown_span(*span)),
            of("wal.slot", &self.wal_slot, String::clone),
            of("wal.spool", &self.wal_spool, path),
            of("wal.spool_limit", &self.wal_spool_limit, |bytes| json!(bytes)),
            of("wal.push_ahead", &self.wal_push_ahead, |count| json!(count)),
            of("wal.fetch_ahead", &self.wal_fetch_ahead, |count| json!(count)),
        ];
        let owned = |rows: Vec<(&'static str, serde_json::Value, String)>| {
            rows.into_iter().map(|(key, value, origin)| (key.to_owned(), value, origin)).collect::<Vec<_>>()
        };
        let mut rows = owned(before);
        if self.repositories.used.is_empty() {
            rows.push(("repository.url".to_owned(), serde_json::Value::Null, "not set".to_owned()));
        }
        let several = self.repositories.used.len() > 1;
        for (index, one) in self.repositories.used.iter().enumerate() {
            let part = match one.part.value {
                _ if index == 0 => "primary",
                Part::Required => "required",
                Part::BestEffort => "best effort",
                Part::KeptByStore => "kept by its store",
            };
            // The primary's keys have no number: most have one repository.
            let number = if index == 0 { "repository".to_owned() } else { format!("repository.{}", index + 1) };
            let of_one = vec![
                of("url", &one.url, String::clone),
                of("name", &one.name, String::clone),
                of("part", &one.part, |_| part),
                maybe("endpoint", one.endpoint.as_ref(), |url| without_credentials(url)),
                maybe("region", one.region.as_ref(), String::clone),
                maybe("path_style", one.path_style.as_ref(), |on| *on),
                maybe("profile", one.profile.as_ref(), String::clone),
                maybe("ca_file", one.ca_file.as_ref(), path),
                maybe("account", one.account.as_ref(), String::clone),
                maybe("credentials_file", one.credentials_file.as_ref(), path),
                maybe("retention", one.retention.as_ref(), |retention| format!("{:#}", retention.span)),
                maybe("retention_mode", one.retention.as_ref(), |retention| json!(retention.mode)),
            ];
            let shown = of_one.into_iter().filter(|(key, ..)| several || !matches!(*key, "name" | "part"));
            rows.extend(shown.map(|(key, value, origin)| (format!("{number}.{key}"), value, origin)));
        }
        rows.extend(owned(after));
        rows.extend(owned(self.signing.rows()));
        rows.extend(owned(self.trust.rows()));
        rows.extend(owned(self.approvals.rows()));
        rows.extend(owned(self.policy.rows()));
        rows.extend(owned(last));
        rows.extend(self.audit.rows());
        rows.extend(self.drill.rows());
        rows.extend(self.agent.rows());
        rows.extend(self.metrics.rows());
        rows.extend(self.alerts.rows());
        rows.extend(self.log.rows());
        rows.extend(self.traces.rows());
        rows
    }
}

/// `[alerts]` of a file, for tests of what pages show.
#[cfg(test)]
pub(crate) fn alerts_of(file: File) -> Result<AlertSettings, Failure> {
    AlertSettings::resolve(&Source { path: None }, file.alerts.unwrap_or_default(), Duration::from_secs(86_400))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c121_unknown_keys_are_errors() {
        assert!(toml::from_str::<File>("nmae = 'x'").is_err());
        assert!(toml::from_str::<File>("[postgres]\npassword = 'x'").is_err());
        assert!(toml::from_str::<File>("[signing]\npassword = 'hunter2'").is_err(), "a secret is a reference");
        let file: File = toml::from_str("[signing]\npassword = { file = '/x' }\n[[repository]]\nurl = 'file:///r'").unwrap();
        assert_eq!(file.signing.unwrap().password, Some(Secret::File("/x".into())));
    }

    #[test]
    fn c121_a_repository_has_no_unknown_keys_and_no_secrets() {
        let file: File = toml::from_str(
            "[[repository]]\nurl = 's3://b/p'\nendpoint = 'https://h:9000'\nregion = 'r'\npath_style = false\nprofile = 'p'\nca_file = 'ca.pem'",
        )
        .unwrap();
        assert_eq!((file.repository[0].path_style, file.repository[0].region.as_deref()), (Some(false), Some("r")));
        for key in ["access_key = 'x'", "secret_key = 'x'", "endpont = 'x'"] {
            assert!(toml::from_str::<File>(&format!("[[repository]]\nurl = 's3://b/p'\n{key}")).is_err(), "{key}");
        }
        assert_eq!(bucket_of("s3://b/p/q"), Some("s3://b"));
        assert_eq!((bucket_of("gs://b"), bucket_of("az://b/")), (Some("gs://b"), Some("az://b")));
        assert_eq!(bucket_of("file:///b"), None);
        assert!(!without_credentials("https://me:hunter2@h").contains("hunter2"));
    }

    #[test]
    fn what_may_hold_a_password_is_not_printed() {
        let dsn = "postgresql://me:hunter2@db1/app";
        let file: File = toml::from_str(&format!("[postgres]\ndsn = '{dsn}'")).unwrap();
        assert!(!format!("{file:?}").contains("hunter2"), "{file:?}");
        assert_eq!(file.postgres.unwrap().dsn.unwrap().as_str(), dsn);
        for wrong in ["postgres", "trust", "repository", "postgres.dsn.host", "limits.workers", "wal.spool_limit.x"] {
            let error = toml::from_str::<File>(&format!("{wrong} = \"{dsn}\\\" and\"")).unwrap_err();
            let message = without_text(error.message());
            assert!(!message.contains("hunter2") && !message.is_empty(), "{wrong}: {message}");
        }
        assert_eq!(without_text("unknown field `dns`, expected `dsn`"), "unknown field `dns`, expected `dsn`");
    }

    #[test]
    fn options_are_of_the_stores_that_have_them() {
        let misplaced = |text: &str| {
            let file: File = toml::from_str(&format!("[[repository]]\n{text}")).unwrap();
            file.repository[0].misplaced().map(|(option, _)| option)
        };
        assert_eq!(misplaced("url = 'az://c/p'\naccount = 'a'\nendpoint = 'https://h'\nca_file = 'ca.pem'"), None);
        assert_eq!(misplaced("url = 'gs://b'\ncredentials_file = 'key.json'"), None);
        for (text, option) in [
            ("url = '/r'\nendpoint = 'https://h'", "endpoint"),
            ("url = 'gs://b'\nregion = 'r'", "region"),
            ("url = 'az://c'\nprofile = 'p'", "profile"),
            ("url = 's3://b'\naccount = 'a'", "account"),
            ("url = 'az://c'\ncredentials_file = 'f'", "credentials_file"),
        ] {
            assert_eq!(misplaced(text), Some(option), "{text}");
        }
    }

    #[test]
    fn paths_in_a_file_are_relative_to_its_directory() {
        let source = Source { path: Some(Path::new("/etc/lifeboat/lifeboat.toml")) };
        assert_eq!(source.anchor("keys/x".into()), Path::new("/etc/lifeboat/keys/x"));
        assert_eq!(source.anchor("/keys/x".into()), Path::new("/keys/x"));
        assert_eq!(source.anchor_url("repo".into()), "/etc/lifeboat/repo");
        assert_eq!(source.anchor_url("file:///repo".into()), "file:///repo");
        assert_eq!(Source { path: Some(Path::new("lifeboat.toml")) }.anchor("x".into()), Path::new("x"));
    }

    #[test]
    fn a_setting_that_there_is_not_is_refused() {
        assert!(toml::from_str::<File>("[retention]\nkeep_dayly = 3").is_err());
    }
}
