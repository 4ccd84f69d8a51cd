//! `lifeboat verify`

use jiff::Timestamp;
use lifeboat_core::policy::Operation;
use lifeboat_core::repository::backup_id::BackupId;
use lifeboat_core::repository::layout;
use lifeboat_core::verify::{Depth, Finding, FindingKind, Report, Verdict, verdict};
use lifeboat_core::wal::SystemId;
use lifeboat_core::wal::catalog::Archive;
use lifeboat_engine::opened_backup::OpenBackupError;
use lifeboat_engine::repository::Repository;
use lifeboat_engine::signing::Trust;
use lifeboat_engine::store::is_there;
use lifeboat_engine::verify::{self, VerifyError, VerifySettings};
use lifeboat_engine::wal::verify::{Verified, WalReport};
use lifeboat_engine::wal::{self, Cluster, WalReader};

use crate::cli::Verify;
use crate::config::{RepositorySettings, Settings};
use crate::failure::{EXIT_FINDINGS, EXIT_NO_REPOSITORY, EXIT_UNVERIFIED, Failure};
use crate::gate::{self, Permit, Question};
use crate::output::{self, Level, Output};
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
        let level = if matches!(finding.kind, FindingKind::NotChecked | FindingKind::Lost) { Level::Warning } else { Level::Error };
        output::tell(level, "finding", &finding.to_string(), None);
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
    session::primary(settings)?;
    // Of a repository that cannot be opened, verify itself says more than the policy could.
    let permit = gate::ask(settings, session::read_repository(settings).ok().as_ref(), Question::new(Operation::Verify))?;
    let verified = verified(verify, settings, &permit, out);
    permit.end(settings, verified)
}

fn verified(verify: &Verify, settings: &Settings, permit: &Permit, out: &Output) -> Result<u8, Failure> {
    let trust = session::trust(settings)?;
    let identities = session::identities(settings, verify.identity.as_ref())?;
    let places: Vec<&RepositorySettings> = match &verify.repository_name {
        Some(name) => vec![session::named(settings, name)?],
        None => settings.repositories.used.iter().collect(),
    };
    // Another part each day, each going on where the one before it ended.
    let day = jiff::Timestamp::now().as_second() / (24 * 60 * 60);
    let seed = verify.seed.unwrap_or_else(|| u64::try_from(day).unwrap_or(0));
    let verify_settings =
        VerifySettings { trust: &trust, identities, sample_percent: verify.sample, sample_seed: seed, workers: settings.workers.value };
    let mut word = verify.backup.clone();
    let mut all = Vec::new();
    for place in &places {
        let outcome = one_place(verify, settings, &verify_settings, place, word.as_deref(), !all.is_empty());
        let place = match outcome {
            Ok(place) => place,
            Err(failure) if places.len() == 1 => return Err(failure),
            // The others are looked at all the same; that this one was not is no pass.
            Err(failure) => {
                let mut unseen = Place::of(place);
                let problem = failure.message;
                let kind = if failure.code == EXIT_NO_REPOSITORY { FindingKind::Missing } else { FindingKind::NotChecked };
                let object = format!("repository {}", unseen.name);
                unseen.findings.push(Finding { kind, backup: None, object, file: None, problem });
                unseen
            }
        };
        // "latest" is one backup everywhere: that of the first place.
        if let Some(report) = place.reports.first().filter(|_| word.is_some()) {
            word = Some(report.backup.clone());
        }
        all.push(place);
    }
    let total = verdict(all.iter().flat_map(Place::all_findings));
    permit.found(all.iter().flat_map(Place::all_findings).count());
    let reports: Vec<&Report> = all.iter().flat_map(|place| &place.reports).collect();
    let wal: Vec<_> = all.iter().flat_map(|place| &place.wal).map(wal_document).collect();
    let documents: Vec<_> = all
        .iter()
        .map(|place| {
            let wal: Vec<_> = place.wal.iter().map(wal_document).collect();
            let verdict = verdict(place.all_findings());
            serde_json::json!({"name": place.name, "url": place.url, "verdict": verdict, "reports": place.reports, "wal": wal, "findings": place.findings})
        })
        .collect();
    out.result(&serde_json::json!({"verdict": total, "reports": reports, "wal": wal, "repositories": documents}), || {
        let mut text = String::new();
        for place in &all {
            if all.len() > 1 {
                text.push_str(&format!("repository {}\n", place.name));
            }
            place.reports.iter().for_each(|report| text.push_str(&report_line(report, verify.sample)));
            place.wal.iter().for_each(|(system_id, report)| text.push_str(&wal_line(*system_id, report)));
        }
        text
    });
    for place in &all {
        if all.len() > 1 && place.all_findings().next().is_some() {
            output::say(&format!("repository {}:", place.name));
        }
        for report in &place.reports {
            say_findings(&report.findings);
        }
        for (_, report) in &place.wal {
            say_findings(&report.findings);
        }
        say_findings(&place.findings);
    }
    Ok(code(total))
}

/// What one place of the repository came to.
struct Place {
    name: String,
    url: String,
    reports: Vec<Report>,
    wal: Vec<(SystemId, WalReport)>,
    findings: Vec<Finding>,
}

impl Place {
    fn of(one: &RepositorySettings) -> Self {
        let (name, url) = (one.name.value.clone(), one.url.value.clone());
        Self { name, url, reports: Vec::new(), wal: Vec::new(), findings: Vec::new() }
    }

    fn all_findings(&self) -> impl Iterator<Item = &Finding> {
        let reports = self.reports.iter().flat_map(|report| &report.findings);
        reports.chain(self.wal.iter().flat_map(|(_, report)| &report.findings)).chain(&self.findings)
    }
}

/// Verifies one place by itself: what is damaged in it shows, also where another place has a good copy.
fn one_place(
    verify: &Verify,
    settings: &Settings,
    verify_settings: &VerifySettings<'_>,
    one: &RepositorySettings,
    word: Option<&str>,
    is_replica: bool,
) -> Result<Place, Failure> {
    let repository = session::without_copies(one)?;
    let mut place = Place::of(one);
    let ids = match word {
        Some(word) => vec![session::find_backup(&repository, settings, word, |_| true)?],
        // Also those that lost their manifest: their bundle tells that there was one.
        None => {
            let ids = repository.backup_prefixes()?;
            let mut found = Vec::new();
            for id in ids {
                if !is_gone(&repository, &id, verify_settings.trust)? {
                    found.push(id);
                }
            }
            found
        }
    };
    if ids.is_empty() {
        return Err(Failure::new(EXIT_FINDINGS, "verify: the repository has no backup").hint("lifeboat backup takes one"));
    }
    let progress = Shown::new();
    for id in &ids {
        let report = verify::run(&repository, id, verify_settings, &progress);
        progress.finish();
        match report {
            Err(VerifyError::Open(OpenBackupError::Absent(_))) if is_replica => place.findings.push(Finding {
                kind: FindingKind::Missing,
                backup: Some(id.to_string()),
                object: layout::manifest(id).to_string(),
                file: None,
                problem: "this replica does not have the backup; lifeboat replicate brings it".into(),
            }),
            // A prune took it away while others were read.
            Err(VerifyError::Open(OpenBackupError::Absent(_))) if word.is_none() && is_gone(&repository, id, verify_settings.trust)? => {}
            report => place.reports.push(report?),
        }
    }
    if word.is_none() {
        place.wal = wal(verify, settings, &repository, verify_settings.trust)?;
    }
    Ok(place)
}

fn wal_document((system_id, report): &(SystemId, WalReport)) -> serde_json::Value {
    serde_json::json!({"system_id": system_id, "report": report})
}

fn word(findings: &[Finding]) -> &'static str {
    match verdict(findings) {
        Verdict::Verified => "verified",
        Verdict::Incomplete => "INCOMPLETE",
        Verdict::Failed => "FAILED",
    }
}

fn report_line(report: &Report, sample: f64) -> String {
    let word = word(&report.findings);
    let depth = match report.depth {
        // Without a manifest to believe there was nothing to compare with.
        _ if report.objects == 0 => "nothing could be compared",
        Depth::Stored => "stored bytes compared with signed digests (no identity here)",
        Depth::Opened => "every frame opened and compared",
    };
    let mut text = format!(
        "{}  {word}: {} of {} objects, {}, {} artifacts; {depth}",
        report.backup,
        report.objects,
        report.objects_total,
        output::bytes(report.bytes),
        report.artifacts
    );
    if let Some(seed) = report.sample_seed {
        text.push_str(&format!("; sample of {sample} % with seed {seed}"));
    }
    text.push('\n');
    text
}

fn wal_line(system_id: SystemId, report: &WalReport) -> String {
    let word = word(&report.findings);
    let depth = match report.depth {
        Depth::Stored => "stored bytes compared with their checksums (no identity here)",
        Depth::Opened => "every frame opened and compared",
    };
    format!("WAL of cluster {system_id}  {word}: {} objects, {}; {depth}\n", report.objects, output::bytes(report.bytes))
}

/// Everything that the repository has of WAL, read back, and the holes in it.
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
        let mut report = report?;
        // What was read counts, whatever becomes of this.
        report.findings.extend(holes(settings, repository, &archive, trust).unwrap_or_else(|failure| {
            let problem = format!("holes were not looked for: {}", failure.message);
            vec![Finding { kind: FindingKind::NotChecked, backup: None, object: format!("wal/{system_id}"), file: None, problem }]
        }));
        reports.push((system_id, report));
    }
    Ok(reports)
}

/// Holes that were there before all was read, and still are: who takes a backup behind one meanwhile has a window again.
fn holes(settings: &Settings, repository: &Repository, before: &Archive, trust: &Trust) -> Result<Vec<Finding>, Failure> {
    let system_id = before.system_id();
    let now = wal::archive::load(repository, system_id, trust)?.unwrap_or_else(|| before.clone());
    let everywhere = match settings.repositories.used.len() {
        0 | 1 => None,
        _ => wal::archive::load(&session::read_repository(settings)?, system_id, trust)?,
    };
    // Backups that cannot be looked at are findings of their own.
    let (backups, _) = wal::survey::backups(repository, system_id, trust)?;
    Ok(wal::verify::holes(before, &now, everywhere.as_ref().unwrap_or(&now), &backups))
}

/// Whether what was listed is no backup any more: a prune took it, or has taken half of it.
fn is_gone(repository: &Repository, id: &BackupId, trust: &Trust) -> Result<bool, Failure> {
    let there = |key| is_there(repository.store(), &key);
    Ok(!there(layout::manifest(id))? && (!there(layout::manifest_bundle(id))? || session::is_being_pruned(repository, id, trust)?))
}
