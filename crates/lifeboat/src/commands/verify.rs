//! `lifeboat verify`

use lifeboat_core::verify::{Depth, Finding, Verdict, verdict};
use lifeboat_engine::verify::{self, VerifySettings};

use crate::cli::Verify;
use crate::config::Settings;
use crate::failure::{EXIT_FINDINGS, EXIT_UNVERIFIED, Failure};
use crate::output::{self, Output};
use crate::progress::Shown;
use crate::session;

/// The exit code of a verdict.
pub(super) fn code(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Verified => 0,
        Verdict::Incomplete => EXIT_FINDINGS,
        Verdict::Failed => EXIT_UNVERIFIED,
    }
}

/// The most findings that are printed for people; all are in the JSON document.
const PRINTED: usize = 50;

/// Says findings on stderr.
pub(super) fn say_findings(findings: &[Finding]) {
    for finding in findings.iter().take(PRINTED) {
        output::say(&format!("finding: {finding}"));
    }
    if findings.len() > PRINTED {
        output::say(&format!("and {} more findings; --json lists them all", findings.len() - PRINTED));
    }
}

pub(super) fn run(verify: &Verify, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    if !(verify.sample > 0.0 && verify.sample <= 100.0) {
        return Err(Failure::usage(format!("verify: a sample of {} percent is not more than 0 and up to 100", verify.sample))
            .hint("lifeboat verify BACKUP --sample 10"));
    }
    let repository = session::open_repository(settings)?;
    let trust = session::trust(settings)?;
    let identities = session::identities(settings, verify.identity.as_ref())?;
    let ids = match &verify.backup {
        Some(word) => vec![session::find_backup(&repository, settings, word, |_| true)?],
        // Also those that lost their manifest: their bundle tells that there was one.
        None => {
            let mut ids = repository.backup_prefixes()?;
            ids.retain(|id| {
                let there = |key| repository.store().length(&key).is_ok();
                there(lifeboat_core::repository::layout::manifest(id)) || there(lifeboat_core::repository::layout::manifest_bundle(id))
            });
            ids
        }
    };
    if ids.is_empty() {
        return Err(Failure::new(EXIT_FINDINGS, "verify: the repository has no backup").hint("lifeboat backup takes one"));
    }
    let seed = verify.seed.unwrap_or_else(|| u64::from_le_bytes(lifeboat_engine::random::bytes()));
    let verify_settings =
        VerifySettings { trust: &trust, identities, sample_percent: verify.sample, sample_seed: seed, workers: settings.workers.value };
    let progress = Shown::new();
    let mut reports = Vec::new();
    for id in &ids {
        let report = verify::run(&repository, id, &verify_settings, &progress);
        progress.finish();
        reports.push(report?);
    }
    let all = verdict(reports.iter().flat_map(|report| &report.findings));
    out.result(&serde_json::json!({"verdict": all, "reports": reports}), || {
        let mut text = String::new();
        for report in &reports {
            let word = match verdict(&report.findings) {
                Verdict::Verified => "verified",
                Verdict::Incomplete => "INCOMPLETE",
                Verdict::Failed => "FAILED",
            };
            let depth = match report.depth {
                // Without a manifest to believe there was nothing to compare with.
                _ if report.objects == 0 => "nothing could be compared",
                Depth::Stored => "stored bytes compared with signed digests (no identity here)",
                Depth::Opened => "every frame opened and compared",
            };
            text.push_str(&format!(
                "{}  {word}: {} of {} objects, {}, {} artifacts; {depth}",
                report.backup,
                report.objects,
                report.objects_total,
                output::bytes(report.bytes),
                report.artifacts
            ));
            if let Some(seed) = report.sample_seed {
                text.push_str(&format!("; sample of {} % with seed {seed}", verify.sample));
            }
            text.push('\n');
        }
        text
    });
    for report in &reports {
        say_findings(&report.findings);
    }
    Ok(code(all))
}
