//! `lifeboat config show`

use crate::cli::Config;
use crate::config::Settings;
use crate::failure::Failure;
use crate::output::{Output, table};

pub(super) fn run(Config::Show: &Config, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let rows = settings.rows();
    let document: Vec<_> =
        rows.iter().map(|(key, value, origin)| serde_json::json!({"setting": key, "value": value, "origin": origin})).collect();
    let document = serde_json::json!({"file": settings.file, "settings": document});
    out.result(&document, || {
        let cells: Vec<Vec<String>> =
            rows.iter().map(|(key, value, origin)| vec![key.clone(), value.to_string(), origin.clone()]).collect();
        table(&["SETTING", "VALUE", "FROM"], &cells)
    });
    Ok(0)
}
