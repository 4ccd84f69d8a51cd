//! `lifeboat config show` and `lifeboat config example`

use std::collections::BTreeMap;

use crate::config::{Settings, reference};
use crate::failure::Failure;
use crate::output::{Output, table};

pub(super) fn show(settings: &Settings, out: &Output) -> Result<u8, Failure> {
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

pub(super) fn example(out: &Output) -> Result<u8, Failure> {
    let text = reference::commented(&BTreeMap::new());
    out.result(&serde_json::json!({"configuration": text}), || text.clone());
    Ok(0)
}
