//! `[drill]`: where drills work, what they check and play through (docs/drill.md), and what a backup records for them (docs/drill-truth.md).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use lifeboat_core::drill::{Assertion, Scenario};
use lifeboat_core::truth::Budget;
use serde::Deserialize;
use serde_json::json;

use super::{LongSpan, Origin, Setting, Size, Source, shown_span, state_directory};
use crate::failure::Failure;

/// The table as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DrillTable {
    directory: Option<PathBuf>,
    user: Option<String>,
    require_network: Option<bool>,
    scenarios: Option<Vec<Scenario>>,
    budget: Option<Size>,
    production_bytes: Option<Size>,
    start_timeout: Option<LongSpan>,
    settings: Option<BTreeMap<String, String>>,
    database: Option<String>,
    heartbeat_query: Option<String>,
    #[serde(default)]
    assert: Vec<Assertion>,
    assert_timeout: Option<LongSpan>,
    smoke: Option<Vec<String>>,
    smoke_timeout: Option<LongSpan>,
    truth_bytes: Option<Size>,
    truth_table_bytes: Option<Size>,
}

/// Resolved.
#[derive(Debug)]
pub(crate) struct DrillSettings {
    /// Where drills make their places.
    pub(crate) directory: Setting<PathBuf>,
    /// The user that the drill's server runs as, where we are root.
    pub(crate) user: Option<Setting<String>>,
    /// Whether a drill without a network of its own is none.
    pub(crate) require_network: Setting<bool>,
    /// What is played through where nobody says.
    pub(crate) scenarios: Setting<Vec<Scenario>>,
    /// Bytes that expensive checks may read.
    pub(crate) budget: Setting<u64>,
    /// Bytes of the production's database, where drills restore something smaller.
    pub(crate) production_bytes: Option<Setting<u64>>,
    /// How long a start may take, recovery included.
    pub(crate) start_timeout: Setting<Duration>,
    /// Settings of the drill's server.
    pub(crate) settings: Setting<BTreeMap<String, String>>,
    /// The database that the user's questions are about.
    pub(crate) database: Option<Setting<String>>,
    /// Gives the time of the last heartbeat.
    pub(crate) heartbeat_query: Option<Setting<String>>,
    /// What the user asserts.
    pub(crate) assert: Setting<Vec<Assertion>>,
    /// How long one may take.
    pub(crate) assert_timeout: Setting<Duration>,
    /// The user's own command.
    pub(crate) smoke: Setting<Vec<String>>,
    /// How long it may take.
    pub(crate) smoke_timeout: Setting<Duration>,
    /// Bytes of tables that a backup reads for the truth; 0: none.
    pub(crate) truth_bytes: Setting<u64>,
    /// Bytes of one table.
    pub(crate) truth_table_bytes: Setting<u64>,
}

/// What costs next to nothing and needs no second restore.
const CHEAP: [Scenario; 4] = [Scenario::HostLost, Scenario::WrongIdentity, Scenario::ArtifactTampered, Scenario::NoSuchBackup];

impl DrillSettings {
    pub(super) fn resolve(source: &Source<'_>, table: DrillTable) -> Result<Self, Failure> {
        let Budget { bytes, table_bytes } = Budget::default();
        fn or<T>(setting: Option<Setting<T>>, default: T) -> Setting<T> {
            setting.unwrap_or(Setting { value: default, origin: Origin::Default })
        }
        let size = |size: Option<Size>| source.pick(None, None, size.map(|size| size.0));
        let span = |span: Option<LongSpan>, default: Duration| source.span(span, default);
        for assertion in &table.assert {
            assertion.expectation().map_err(|error| {
                Failure::usage(format!("read configuration: {error}"))
                    .hint("docs/drill-assertions.md says what can be asserted; lifeboat config show")
            })?;
        }
        Ok(Self {
            directory: or(source.path("LIFEBOAT_DRILL_DIRECTORY", table.directory), default_directory()),
            user: source.pick(None, None, table.user),
            require_network: or(source.pick(None, None, table.require_network), false),
            scenarios: or(source.pick(None, None, table.scenarios), CHEAP.to_vec()),
            budget: or(size(table.budget), 8 << 30),
            production_bytes: size(table.production_bytes),
            start_timeout: span(table.start_timeout, Duration::from_secs(4 * 60 * 60)),
            settings: or(source.pick(None, None, table.settings), BTreeMap::new()),
            database: source.pick(None, None, table.database),
            heartbeat_query: source.pick(None, None, table.heartbeat_query),
            assert: or(source.pick(None, None, (!table.assert.is_empty()).then_some(table.assert)), Vec::new()),
            assert_timeout: span(table.assert_timeout, Duration::from_secs(60)),
            smoke: or(source.pick(None, None, table.smoke), Vec::new()),
            smoke_timeout: span(table.smoke_timeout, Duration::from_secs(10 * 60)),
            truth_bytes: or(size(table.truth_bytes), bytes),
            truth_table_bytes: or(size(table.truth_table_bytes), table_bytes),
        })
    }

    /// How much a backup reads of the tables.
    pub(crate) fn truth(&self) -> Budget {
        Budget { bytes: self.truth_bytes.value, table_bytes: self.truth_table_bytes.value }
    }

    /// Its settings: key, value, origin.
    pub(super) fn rows(&self) -> Vec<(String, serde_json::Value, String)> {
        fn row<T>(name: &str, setting: &Setting<T>, show: impl Fn(&T) -> serde_json::Value) -> (String, serde_json::Value, String) {
            (format!("drill.{name}"), show(&setting.value), setting.origin.to_string())
        }
        fn maybe<T>(
            name: &str,
            setting: Option<&Setting<T>>,
            show: impl Fn(&T) -> serde_json::Value,
        ) -> (String, serde_json::Value, String) {
            let none = (format!("drill.{name}"), serde_json::Value::Null, "not set".to_owned());
            setting.map_or(none, |setting| row(name, setting, show))
        }
        let span = |span: &Duration| json!(shown_span(*span));
        vec![
            row("directory", &self.directory, |path| json!(path)),
            maybe("user", self.user.as_ref(), |user| json!(user)),
            row("require_network", &self.require_network, |on| json!(on)),
            row("scenarios", &self.scenarios, |all| json!(all)),
            row("budget", &self.budget, |bytes| json!(bytes)),
            maybe("production_bytes", self.production_bytes.as_ref(), |bytes| json!(bytes)),
            row("start_timeout", &self.start_timeout, span),
            row("settings", &self.settings, |all| json!(all)),
            maybe("database", self.database.as_ref(), |name| json!(name)),
            maybe("heartbeat_query", self.heartbeat_query.as_ref(), |query| json!(query)),
            row("assert", &self.assert, |all| json!(all.iter().map(|assertion| assertion.name.as_str()).collect::<Vec<_>>())),
            row("assert_timeout", &self.assert_timeout, span),
            row("smoke", &self.smoke, |words| json!(words)),
            row("smoke_timeout", &self.smoke_timeout, span),
            row("truth_bytes", &self.truth_bytes, |bytes| json!(bytes)),
            row("truth_table_bytes", &self.truth_table_bytes, |bytes| json!(bytes)),
        ]
    }
}

/// Root's own home is closed to everybody, and so to the user that the drill's server runs as.
fn default_directory() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/lifeboat/drills");
    }
    state_directory().map_or_else(|| PathBuf::from("/var/lib/lifeboat/drills"), |state| state.join("lifeboat/drills"))
}
