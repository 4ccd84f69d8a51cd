//! `[drill]`: what a backup records so that a drill can compare it (docs/drill-truth.md).

use lifeboat_core::truth::Budget;
use serde::Deserialize;
use serde_json::json;

use super::{Origin, Setting, Source, parse_bytes};
use crate::failure::Failure;

/// The table as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DrillTable {
    truth_bytes: Option<String>,
    truth_table_bytes: Option<String>,
}

/// Resolved.
#[derive(Debug)]
pub(crate) struct DrillSettings {
    /// Bytes of tables that a backup reads for the truth; 0: none.
    pub(crate) truth_bytes: Setting<u64>,
    /// Bytes of one table.
    pub(crate) truth_table_bytes: Setting<u64>,
}

impl DrillSettings {
    pub(super) fn resolve(source: &Source<'_>, table: &DrillTable) -> Result<Self, Failure> {
        let Budget { bytes, table_bytes } = Budget::default();
        let size = |text: &Option<String>, default: u64| -> Result<Setting<u64>, Failure> {
            let configured = source.pick(None, None, text.as_deref().map(parse_bytes).transpose()?);
            Ok(configured.unwrap_or(Setting { value: default, origin: Origin::Default }))
        };
        Ok(Self { truth_bytes: size(&table.truth_bytes, bytes)?, truth_table_bytes: size(&table.truth_table_bytes, table_bytes)? })
    }

    /// How much a backup reads of the tables.
    pub(crate) fn truth(&self) -> Budget {
        Budget { bytes: self.truth_bytes.value, table_bytes: self.truth_table_bytes.value }
    }

    /// Its settings: key, value, origin.
    pub(super) fn rows(&self) -> Vec<(String, serde_json::Value, String)> {
        let row = |name: &str, setting: &Setting<u64>| (format!("drill.{name}"), json!(setting.value), setting.origin.to_string());
        vec![row("truth_bytes", &self.truth_bytes), row("truth_table_bytes", &self.truth_table_bytes)]
    }
}
