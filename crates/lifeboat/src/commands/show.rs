//! `lifeboat show`

use lifeboat_core::policy::Operation;
use lifeboat_engine::opened_backup;
use lifeboat_engine::signing::SignedBy;

use crate::cli::Show;
use crate::config::Settings;
use crate::failure::Failure;
use crate::gate::{self, Question};
use crate::output::{self, Output};
use crate::session;

pub(super) fn run(show: &Show, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let repository = session::read_repository(settings)?;
    gate::allow(settings, Some(&repository), Question::new(Operation::Show))?;
    let id = session::find_backup(&repository, settings, &show.backup, |_| true)?;
    // Shown only when it is signed by somebody we trust, or with the words that it is not.
    let (manifest, signature) = if settings.trust.is_empty() {
        output::warn("the signature was not checked: no trusted key is configured (trust.keys)");
        (opened_backup::peek(&repository, &id)?, "not checked".to_owned())
    } else {
        let backup = opened_backup::open(&repository, &id, &session::trust(settings)?)?;
        (backup.manifest, format!("valid, {}, signed {}", signer(&backup.signed_by), backup.signed))
    };
    let standing = {
        let trust = session::trust(settings).ok();
        let standing = lifeboat_engine::retention::standing(repository.store(), &id, None, trust.as_ref(), jiff::Timestamp::now());
        standing.map_err(lifeboat_engine::repository::RepositoryError::from)?
    };
    out.result(&serde_json::json!({"signature": signature, "manifest": manifest, "retention": standing}), || {
        let mut lines = vec![
            ("backup", manifest.id.to_string()),
            ("signature", signature.clone()),
            ("state", format!("{:?}", manifest.state).to_lowercase()),
            ("taken", format!("{} to {} on {} by {}", manifest.started, manifest.finished, manifest.host, manifest.lifeboat)),
            (
                "size",
                format!(
                    "{} files, {}, stored as {} in {} packs",
                    manifest.files,
                    output::bytes(manifest.plain_bytes),
                    output::bytes(manifest.stored_bytes),
                    manifest.packs.len()
                ),
            ),
            ("encryption", format!("{:?}", manifest.encryption.suite).to_lowercase()),
        ];
        if let Some(expiry) = &standing.expired {
            lines.push(("expired", format!("{}, whole until {}: {}", expiry.at, expiry.prune_after, expiry.reasons.join("; "))));
        }
        for pin in &standing.pins {
            let end = pin.until.map_or_else(|| "it is ended".to_owned(), |until| until.to_string());
            lines.push(("pinned", format!("{} until {end}: {}", pin.name, pin.reason)));
        }
        lines.extend(standing.doubts.iter().map(|doubt| ("warning", doubt.clone())));
        for recipient in &manifest.encryption.recipients {
            lines.push(("recipient", recipient.clone()));
        }
        if let Some(postgres) = &manifest.postgres {
            lines.push(("database", format!("{:?} copy of {}", postgres.copy, postgres.server).to_lowercase()));
            lines.extend(postgres.version.clone().map(|version| ("version", version)));
            lines.extend(postgres.system_id.map(|id| ("system id", id.to_string())));
            if let Some(physical) = &postgres.physical {
                lines.push((
                    "positions",
                    format!("timeline {}, start {}, stop {}", physical.timeline, physical.start_lsn, physical.stop_lsn),
                ));
                lines.push(("consistent at", physical.consistent_at.to_string()));
                lines.push((
                    "WAL",
                    format!("{} to {}{}", physical.wal.first, physical.wal.last, if physical.wal.included { ", included" } else { "" }),
                ));
                let checksums = &physical.checksums;
                lines.push((
                    "checksums",
                    if checksums.enabled {
                        format!("{} pages checked, {} bad", checksums.pages, checksums.bad)
                    } else {
                        "the cluster has none".into()
                    },
                ));
                for tablespace in &physical.tablespaces {
                    lines.push((
                        "tablespace",
                        format!("{} {} in {}", tablespace.oid, tablespace.name.as_deref().unwrap_or("?"), tablespace.location),
                    ));
                }
            }
            for extension in &postgres.extensions {
                lines.push(("extension", format!("{} {} in {}", extension.name, extension.version, extension.database)));
            }
        }
        if let Some(artifacts) = &manifest.artifacts {
            lines.push(("artifacts", format!("{}, {}, head {}", artifacts.count, output::bytes(artifacts.bytes), artifacts.head)));
            if let Some(references) = &artifacts.references {
                lines.push((
                    "references",
                    format!("{} rows in the database, {} without their artifact", references.rows, references.missing_count),
                ));
                lines.extend(references.missing.iter().map(|missing| ("missing", missing.clone())));
            }
        }
        lines.extend(manifest.warnings.iter().map(|warning| ("warning", warning.clone())));
        lines.extend(
            manifest
                .findings
                .iter()
                .map(|finding| ("damaged page", format!("{} block {}: {}", finding.file, finding.block, finding.problem))),
        );
        lines.into_iter().map(|(key, value)| format!("{key:14} {value}\n")).collect()
    });
    Ok(0)
}

/// Who signed, for people.
fn signer(signer: &SignedBy) -> String {
    let person = signer.person().map_or(String::new(), |person| format!(" of {person}"));
    match signer {
        SignedBy::Key { hint, .. } => format!("key {hint}{person}"),
        SignedBy::Identity { .. } => format!("{signer}{person}"),
    }
}
