//! `lifeboat wal push`: the `archive_command`.
//!
//! PostgreSQL waits for it and looks at its exit code alone: 0 is a promise, anything else lets it keep the file and ask again. Codes above
//! 125 would end its archiver (`pgarch_archiveXlog` in `src/backend/postmaster/pgarch.c`); none of `failure.rs` is, but for a signal's.

use lifeboat_core::policy::Operation;
use lifeboat_engine::wal::push::{Asked, PushError, PushOptions, run as push_files};
use lifeboat_engine::wal::{WalError, known};

use crate::cli::WalPush;
use crate::config::Settings;
use crate::failure::Failure;
use crate::gate::{self, Question};
use crate::output::{self, Output};
use crate::session::{self, LazySigner};

pub(super) fn run(push: &WalPush, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    gate::allow(settings, None, Question::new(Operation::WalPush))?;
    let places = session::far_places(settings);
    if let Some(places) = &places
        && let Some(id) = known::recall(&settings.wal_spool.value, places)
        && let Some(asked) = Asked::alone(&push.path)
        && asked.take_fresh_mark(id, &settings.wal_spool.value, places)
    {
        say(out, &asked, "marked".into(), serde_json::json!({}));
        return Ok(0);
    }
    let repository = session::open_repository(settings)?;
    if let Some(places) = &places {
        // Without a spool everything is only slower, and the push itself says so.
        let _ = known::remember(&settings.wal_spool.value, places, repository.descriptor().repository);
    }
    let asked = Asked::find(&repository, &push.path)?;
    if asked.take_mark(&repository, &settings.wal_spool.value) {
        say(out, &asked, "marked".into(), serde_json::json!({}));
        return Ok(0);
    }
    let signer = LazySigner::new(settings);
    let options = PushOptions {
        spool: &settings.wal_spool.value,
        places: places.as_deref(),
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
            say(out, &asked, outcome, serde_json::json!({"ahead": report.ahead, "gaps": report.gaps, "warnings": report.warnings}));
            Ok(0)
        }
        Err(error) => {
            let of_key = matches!(error, PushError::Wal(WalError::Sign(_)));
            Err(signer.failure().filter(|_| of_key).unwrap_or_else(|| error.into()))
        }
    }
}

/// Nothing for people: it would stand in the server's log, for every segment.
fn say(out: &Output, asked: &Asked, outcome: serde_json::Value, more: serde_json::Value) {
    let mut document = serde_json::json!({"file": asked.name(), "system_id": asked.cluster.system_id, "outcome": outcome});
    if let (Some(all), serde_json::Value::Object(more)) = (document.as_object_mut(), more) {
        all.extend(more);
    }
    out.result(&document, String::new);
}
