//! `[log]`: the form of lines on stderr (docs/logs.md).

use serde::Deserialize;
use serde_json::json;

use super::{Origin, Setting, Source};
use crate::failure::Failure;
use crate::log::{Format, VARIABLE};

/// The table as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogTable {
    format: Option<Format>,
}

/// Resolved.
#[derive(Debug)]
pub(crate) struct LogSettings {
    pub(crate) format: Setting<Format>,
}

impl LogSettings {
    pub(super) fn resolve(source: &Source<'_>, table: LogTable, flag: Option<Format>) -> Result<Self, Failure> {
        // Where the flag decides, nobody reads the environment.
        let environment = if flag.is_none() { Format::of_environment()? } else { None };
        let flag = flag.map(|format| (format, "--log-format"));
        let format = source.pick(flag, environment.map(|format| (format, VARIABLE)), table.format);
        Ok(Self { format: format.unwrap_or(Setting { value: Format::Text, origin: Origin::Default }) })
    }

    /// Its settings: key, value, origin.
    pub(super) fn rows(&self) -> Vec<(String, serde_json::Value, String)> {
        vec![("log.format".into(), json!(self.format.value), self.format.origin.to_string())]
    }
}
