//! `lifeboat wal push`: the `archive_command`.
//!
//! PostgreSQL waits for it and looks at its exit code alone: 0 is a promise, anything else lets it keep the file and ask again. Codes above
//! 125 would end its archiver (`pgarch_archiveXlog` in `src/backend/postmaster/pgarch.c`); none of `failure.rs` is, but for a signal's.

use lifeboat_engine::wal::WalError;
use lifeboat_engine::wal::push::{Asked, PushError, PushOptions, run as push_files};

use crate::cli::WalPush;
use crate::config::Settings;
use crate::failure::Failure;
use crate::output::{self, Output};
use crate::session::{self, LazySigner};

pub(super) fn run(push: &WalPush, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let repository = session::open_repository(settings)?;
    let asked = Asked::find(&repository, &push.path)?;
    let done = |outcome: serde_json::Value, more: serde_json::Value| {
        let mut document = serde_json::json!({"file": asked.name(), "system_id": asked.cluster.system_id, "outcome": outcome});
        if let (Some(all), serde_json::Value::Object(more)) = (document.as_object_mut(), more) {
            all.extend(more);
        }
        // Nothing for people: it would stand in the server's log, for every segment.
        out.result(&document, String::new);
    };
    if asked.take_mark(&repository, &settings.wal_spool.value) {
        done("marked".into(), serde_json::json!({}));
        return Ok(0);
    }
    let signer = LazySigner::new(settings);
    let options = PushOptions {
        spool: &settings.wal_spool.value,
        files: settings.wal_push_ahead.value,
        workers: settings.workers.value,
        signer: &signer,
        trust: &session::trust(settings)?,
        protection: &session::protection(settings)?,
        level: settings.compression_level.value,
        program: session::PROGRAM,
        host: &session::host(),
    };
    match push_files(&repository, &asked, &options) {
        Ok(report) => {
            for warning in &report.warnings {
                output::warn(warning);
            }
            let outcome = serde_json::json!(report.outcome);
            done(outcome, serde_json::json!({"ahead": report.ahead, "gaps": report.gaps, "warnings": report.warnings}));
            Ok(0)
        }
        Err(error) => {
            let of_key = matches!(error, PushError::Wal(WalError::Sign(_)));
            Err(signer.failure().filter(|_| of_key).unwrap_or_else(|| error.into()))
        }
    }
}
