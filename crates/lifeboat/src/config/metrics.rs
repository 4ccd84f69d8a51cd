//! `[metrics]`: where a run leaves what it knows for Prometheus (docs/metrics.md).

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::json;

use super::{Setting, Source};
use crate::failure::Failure;

/// The table as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MetricsTable {
    textfile: Option<PathBuf>,
}

/// Resolved.
#[derive(Debug)]
pub(crate) struct MetricsSettings {
    /// What the textfile collector of node_exporter reads; `None`: nothing is written.
    pub(crate) textfile: Option<Setting<PathBuf>>,
}

impl MetricsSettings {
    pub(super) fn resolve(source: &Source<'_>, table: MetricsTable) -> Result<Self, Failure> {
        // The collector takes nothing else, and says nothing about what it does not take.
        if let Some(path) = &table.textfile
            && path.extension().is_none_or(|extension| extension != "prom")
        {
            return Err(Failure::usage(format!("read configuration: metrics.textfile must end in .prom, and is {}", path.display()))
                .hint("docs/metrics.md says what reads it; lifeboat config show prints the settings"));
        }
        Ok(Self { textfile: source.pick(None, None, table.textfile.map(|path| source.anchor(path))) })
    }

    /// Its settings: key, value, origin.
    pub(super) fn rows(&self) -> Vec<(String, serde_json::Value, String)> {
        let none = (serde_json::Value::Null, "not set".to_owned());
        let (value, origin) = self.textfile.as_ref().map_or(none, |setting| (json!(setting.value), setting.origin.to_string()));
        vec![("metrics.textfile".to_owned(), value, origin)]
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn resolved(textfile: Option<&str>) -> Result<MetricsSettings, Failure> {
        let source = Source { path: Some(Path::new("/etc/lifeboat/lifeboat.toml")) };
        MetricsSettings::resolve(&source, MetricsTable { textfile: textfile.map(PathBuf::from) })
    }

    #[test]
    fn a_textfile_is_one_that_its_reader_sees() {
        assert!(resolved(None).unwrap().textfile.is_none());
        assert_eq!(resolved(Some("/var/lib/x.prom")).unwrap().textfile.unwrap().value, Path::new("/var/lib/x.prom"));
        assert_eq!(resolved(Some("x.prom")).unwrap().textfile.unwrap().value, Path::new("/etc/lifeboat/x.prom"));
        for wrong in ["", "/var/lib", "/var/lib/lifeboat.txt", "/var/lib/lifeboat.PROM", "/var/lib/.prom"] {
            assert!(resolved(Some(wrong)).is_err(), "{wrong}");
        }
        assert!(toml::from_str::<MetricsTable>("textfiel = 'x.prom'").is_err());
    }
}
