//! `lifeboat drill list`

use clap::Args;
use lifeboat_core::drill::history::{Entry, Summary};
use lifeboat_core::drill::span;
use lifeboat_core::policy::Operation;
use lifeboat_engine::drill::evidence;
use serde_json::json;

use crate::config::Settings;
use crate::failure::{EXIT_FINDINGS, Failure};
use crate::gate::{self, Question};
use crate::output::{self, Output, plain};
use crate::session;

#[derive(Debug, Args)]
pub(crate) struct DrillList {
    /// Only the newest so many of each system
    #[arg(long, value_name = "NUMBER", default_value_t = 50)]
    limit: usize,
}

pub(super) fn run(list: &DrillList, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let repository = session::read_repository(settings)?;
    gate::allow(settings, Some(&repository), Question::new(Operation::DrillList))?;
    let trust = if settings.trust.is_empty() { None } else { Some(session::trust(settings)?) };
    let (mut entries, mut findings, mut older) = (Vec::new(), Vec::new(), 0);
    for name in super::systems(&repository, settings)? {
        let history = evidence::history(&repository, trust.as_ref(), &name, list.limit)?;
        entries.extend(history.entries);
        findings.extend(history.findings);
        older += history.older;
    }
    entries.sort_by(|a, b| (b.at, &b.id).cmp(&(a.at, &a.id)));
    if trust.is_none() && !entries.is_empty() {
        output::warn("signatures were not checked, so nobody stands for what is listed: no trusted key is configured (trust.keys)");
    }
    let document = json!({"repository": repository.store().url(), "drills": entries, "older": older, "findings": findings});
    out.result(&document, || table(&entries));
    if older > 0 {
        output::say(&format!("{older} older ones are not listed (--limit)"));
    }
    findings.iter().for_each(|finding| output::warn(&plain(finding)));
    Ok(if findings.is_empty() { 0 } else { EXIT_FINDINGS })
}

fn table(entries: &[Entry]) -> String {
    let row = |entry: &Entry| {
        let time = |of: fn(&Summary) -> Option<f64>| entry.summary.as_ref().and_then(of).map_or("-".to_owned(), span);
        vec![
            entry.id.clone(),
            // What nobody signed has no verdict.
            entry.verdict().map_or("not proven", |verdict| verdict.words()).to_owned(),
            time(|summary| summary.rto_seconds),
            time(|summary| summary.rpo_seconds),
            entry.summary.as_ref().map_or("-".to_owned(), |summary| plain(&summary.backup)),
            entry.signature.words().to_owned(),
        ]
    };
    let rows: Vec<Vec<String>> = entries.iter().map(row).collect();
    output::table(&["DRILL", "VERDICT", "BACK AFTER", "LOST", "BACKUP", "SIGNATURE"], &rows)
}
