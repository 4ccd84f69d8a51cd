//! `lifeboat list`

use lifeboat_core::policy::Operation;
use lifeboat_core::repository::layout;
use lifeboat_core::repository::manifest::{Manifest, State};
use lifeboat_core::repository::retention::Standing;
use lifeboat_engine::opened_backup;
use serde::Serialize;

use crate::config::Settings;
use crate::failure::{EXIT_FINDINGS, Failure};
use crate::gate::{self, Question};
use crate::output::{self, Output, table};
use crate::session;

#[derive(Serialize)]
struct Row {
    backup: String,
    started: Option<jiff::Timestamp>,
    state: String,
    /// Signature of a trusted key: `valid`, `not valid`, `not checked`.
    signature: &'static str,
    database: Option<String>,
    consistent_at: Option<jiff::Timestamp>,
    stop_lsn: Option<String>,
    files: u64,
    plain_bytes: u64,
    stored_bytes: u64,
    artifacts: Option<u64>,
    /// Whether it has expired, and what holds it.
    #[serde(flatten)]
    standing: Standing,
    problem: Option<String>,
}

fn row(id: String, manifest: Option<&Manifest>, signature: &'static str, problem: Option<String>) -> Row {
    let postgres = manifest.and_then(|manifest| manifest.postgres.as_ref());
    let physical = postgres.and_then(|postgres| postgres.physical.as_ref());
    Row {
        backup: id,
        started: manifest.map(|manifest| manifest.started),
        state: manifest.map_or("unreadable", |manifest| if manifest.state == State::Healthy { "healthy" } else { "degraded" }).to_owned(),
        signature,
        database: postgres.map(|postgres| {
            format!("{:?} {}", postgres.copy, postgres.version_num.map_or(String::new(), |v| (v / 10_000).to_string()))
                .trim()
                .to_lowercase()
        }),
        consistent_at: physical.map(|physical| physical.consistent_at),
        stop_lsn: physical.map(|physical| physical.stop_lsn.to_string()),
        files: manifest.map_or(0, |manifest| manifest.files),
        plain_bytes: manifest.map_or(0, |manifest| manifest.plain_bytes),
        stored_bytes: manifest.map_or(0, |manifest| manifest.stored_bytes),
        artifacts: manifest.and_then(|manifest| manifest.artifacts.as_ref()).map(|artifacts| artifacts.count),
        standing: Standing::default(),
        problem,
    }
}

/// In a word or two.
fn kept(standing: &Standing) -> String {
    let mut words: Vec<String> = standing.pins.iter().map(|pin| format!("pinned ({})", pin.name)).collect();
    words.extend(standing.expired.as_ref().map(|expiry| format!("expired, whole until {:.0}", expiry.prune_after)));
    if words.is_empty() { "-".to_owned() } else { words.join(", ") }
}

pub(super) fn run(settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let repository = session::read_repository(settings)?;
    gate::allow(settings, Some(&repository), Question::new(Operation::List))?;
    let trust = session::trust(settings).ok();
    let now = jiff::Timestamp::now();
    let mut rows = Vec::new();
    for id in repository.backup_prefixes()? {
        let name = id.to_string();
        if repository.store().length(&layout::manifest(&id)).is_err() {
            // Did not finish: garbage, not a backup. But a signature without a manifest is one lost.
            if repository.store().length(&layout::manifest_bundle(&id)).is_ok() {
                let going = trust.as_ref().is_some_and(|trust| session::is_being_pruned(&repository, &id, trust).unwrap_or(false));
                if !going {
                    rows.push(row(name, None, "not checked", Some("its manifest is missing: it did not finish, or was damaged".into())));
                }
            }
            continue;
        }
        let opened = trust.as_ref().map(|trust| opened_backup::open(&repository, &id, trust));
        let digest = opened.as_ref().and_then(|opened| opened.as_ref().ok()).map(|backup| backup.digest);
        let standing = lifeboat_engine::retention::standing(repository.store(), &id, digest, trust.as_ref(), now);
        let standing = standing.map_err(lifeboat_engine::repository::RepositoryError::from)?;
        let row = match opened {
            Some(Ok(backup)) => row(name, Some(&backup.manifest), "valid", None),
            None => match opened_backup::peek(&repository, &id) {
                Ok(manifest) => row(name, Some(&manifest), "not checked", None),
                Err(error) => row(name, None, "not checked", Some(crate::failure::chain(&error))),
            },
            Some(Err(error)) => {
                row(name, opened_backup::peek(&repository, &id).ok().as_ref(), "not valid", Some(crate::failure::chain(&error)))
            }
        };
        rows.push(Row { standing, ..row });
    }
    if trust.is_none() && !rows.is_empty() {
        output::warn("signatures were not checked: no trusted key is configured (trust.keys)");
    }
    out.result(&serde_json::json!({"repository": repository.store().url(), "backups": rows}), || {
        let cells: Vec<Vec<String>> = rows
            .iter()
            .map(|row| {
                vec![
                    row.backup.clone(),
                    row.state.clone(),
                    row.signature.to_owned(),
                    row.database.clone().unwrap_or_else(|| "-".into()),
                    row.consistent_at.map_or("-".into(), |at| format!("{at:.0}")),
                    output::bytes(row.plain_bytes),
                    output::bytes(row.stored_bytes),
                    row.artifacts.map_or("-".into(), |count| count.to_string()),
                    kept(&row.standing),
                ]
            })
            .collect();
        table(&["BACKUP", "STATE", "SIGNATURE", "DATABASE", "CONSISTENT AT", "SIZE", "STORED", "ARTIFACTS", "RETENTION"], &cells)
    });
    if trust.is_some() {
        for row in &rows {
            row.standing.doubts.iter().for_each(|doubt| output::warn(&format!("backup {}: {doubt}", row.backup)));
        }
    }
    let mut code = 0;
    for problem in rows.iter().filter_map(|row| row.problem.as_ref()) {
        output::warn(problem);
        code = EXIT_FINDINGS;
    }
    Ok(code)
}
