//! `lifeboat verify`

use jiff::Timestamp;
use lifeboat_core::repository::layout;
use lifeboat_core::verify::{Depth, Finding, Verdict, verdict};
use lifeboat_core::wal::SystemId;
use lifeboat_engine::repository::Repository;
use lifeboat_engine::signing::Trust;
use lifeboat_engine::verify::{self, VerifySettings};
use lifeboat_engine::wal::verify::{Verified, WalReport};
use lifeboat_engine::wal::{self, Cluster, WalReader};

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
            let ids = repository.backup_prefixes()?;
            let there = |key| repository.store().length(&key).is_ok();
            let mut found = Vec::new();
            for id in ids {
                let manifest = there(layout::manifest(&id));
                // What is half pruned is no backup any more.
                if manifest || there(layout::manifest_bundle(&id)) && !session::is_being_pruned(&repository, &id, &trust)? {
                    found.push(id);
                }
            }
            found
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
    let wal = if verify.backup.is_none() { wal(verify, settings, &repository, &trust)? } else { Vec::new() };
    let all = verdict(reports.iter().flat_map(|report| &report.findings).chain(wal.iter().flat_map(|(_, report)| &report.findings)));
    let documents: Vec<_> = wal.iter().map(|(system_id, report)| serde_json::json!({"system_id": system_id, "report": report})).collect();
    out.result(&serde_json::json!({"verdict": all, "reports": reports, "wal": documents}), || {
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
        for (system_id, report) in &wal {
            let word = if report.findings.is_empty() { "verified" } else { "FAILED" };
            let depth = match report.depth {
                Depth::Stored => "stored bytes compared with their checksums (no identity here)",
                Depth::Opened => "every frame opened and compared",
            };
            text.push_str(&format!(
                "WAL of cluster {system_id}  {word}: {} objects, {}; {depth}\n",
                report.objects,
                output::bytes(report.bytes)
            ));
        }
        text
    });
    for report in &reports {
        say_findings(&report.findings);
    }
    for (_, report) in &wal {
        say_findings(&report.findings);
    }
    Ok(code(all))
}

/// Everything that the repository has of WAL, read back.
fn wal(verify: &Verify, settings: &Settings, repository: &Repository, trust: &Trust) -> Result<Vec<(SystemId, WalReport)>, Failure> {
    let mut reports = Vec::new();
    for system_id in wal::clusters(repository)? {
        let Some(archive) = wal::archive::load(repository, system_id, trust)? else { continue };
        let cluster = Cluster { system_id, segment_size: archive.segment_size() };
        let reader = WalReader::new(repository, cluster, trust, session::identities(settings, verify.identity.as_ref())?);
        let opens = wal::verify::opens(&reader)?.unwrap_or(false);
        let progress = Shown::new();
        let report = wal::verify::verify(&reader, &Verified::default(), opens, settings.workers.value, Timestamp::now(), &progress);
        progress.finish();
        reports.push((system_id, report?));
    }
    Ok(reports)
}
