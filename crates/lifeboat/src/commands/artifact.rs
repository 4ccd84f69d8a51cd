//! `lifeboat artifact …`

use std::path::{Path, PathBuf};

use lifeboat_core::policy::Operation;
use lifeboat_core::repository::layout::ArtifactName;
use lifeboat_core::verify::verdict;
use lifeboat_engine::artifacts::{ArtifactSet, Lacking, Reader, Replace, SYNC_THREADS, Sample, Source, SyncOptions, Writer, verify_set};
use lifeboat_engine::backup::{Protection, sync_complaints};
use lifeboat_engine::opened_backup;
use lifeboat_engine::repository::Repository;
use lifeboat_engine::signing::Trust;
use lifeboat_engine::verify::artifact_finding;

use crate::cli::Artifact;
use crate::config::Settings;
use crate::failure::{EXIT_FINDINGS, Failure};
use crate::gate::{self, Question};
use crate::output::{self, Level, Output, table};
use crate::progress::Shown;
use crate::session;

fn name(text: &str) -> Result<ArtifactName, Failure> {
    text.parse().map_err(|error: lifeboat_core::repository::FormatError| {
        Failure::usage(error.to_string()).hint("lifeboat artifact list shows names")
    })
}

pub(super) fn run(artifact: &Artifact, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    match artifact {
        Artifact::Put { name: text, file } => put(&name(text)?, file, settings, out),
        Artifact::Get { name: text, output, version, force, identity } => {
            get(&name(text)?, output, version.as_deref(), *force, identity.as_ref(), settings, out)
        }
        Artifact::List { prefix, versions, backup } => list(prefix.as_deref(), *versions, backup.as_deref(), settings, out),
        Artifact::Verify { backup, identity } => verify(backup.as_deref(), identity.as_ref(), settings, out),
        Artifact::Sync { directory, allow_empty, read_all } => sync(directory, *allow_empty, *read_all, settings, out),
    }
}

/// Runs `work` with a writer; one at a time is not needed, heads are created one after another.
fn with_writer(settings: &Settings, operation: Operation, work: impl FnOnce(&Writer<'_>) -> Result<u8, Failure>) -> Result<u8, Failure> {
    let repository = session::open_repository(settings)?;
    gate::guard(settings, Some(&repository), Question::new(operation), || write(settings, &repository, work))
}

fn write(settings: &Settings, repository: &Repository, work: impl FnOnce(&Writer<'_>) -> Result<u8, Failure>) -> Result<u8, Failure> {
    let signer = session::signer(settings)?;
    let protection = session::protection(settings)?;
    let recipients = match &protection {
        Protection::Recipients { recipients, .. } => Some(recipients.as_slice()),
        Protection::Plain => None,
    };
    work(&Writer::new(repository, &*signer, recipients)?)
}

fn put(name: &ArtifactName, file: &Path, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    with_writer(settings, Operation::ArtifactPut, |writer| {
        let mut stdin = std::io::stdin().lock();
        let source = if file == Path::new("-") {
            std::fs::create_dir_all(&settings.scratch.value).map_err(|error| {
                Failure::new(crate::failure::EXIT_FAILED, format!("make {}: {error}", settings.scratch.value.display()))
                    .hint("set postgres.scratch: lifeboat config show")
            })?;
            Source::Stream { input: &mut stdin, spool: &settings.scratch.value }
        } else {
            Source::File(file)
        };
        let put = writer.put(name, source)?;
        let record = &put.record;
        let document = serde_json::json!({"name": record.name, "version": record.version, "sha256": record.sha256, "bytes": record.bytes, "head": put.head, "new_bytes": put.new_bytes, "lacks": put.lacks});
        out.result(&document, || {
            format!("{} version {}, {}, sha256 {}\n", record.name, record.version, output::bytes(record.bytes), record.sha256)
        });
        if put.lacks {
            output::warn(&Lacking { count: 1, first: Some(record.name.clone()) }.to_string());
            return Ok(EXIT_FINDINGS);
        }
        Ok(0)
    })
}

/// The present set, or the one of a backup whose signature holds.
fn set<'a>(
    repository: &'a Repository,
    settings: &Settings,
    backup: Option<&str>,
    trust: Option<&Trust>,
) -> Result<(ArtifactSet<'a>, u64, u64), Failure> {
    let Some(word) = backup else {
        let (head, set) = ArtifactSet::newest(repository)?;
        return Ok((set, head.as_ref().map_or(0, |head| head.count), head.as_ref().map_or(0, |head| head.bytes)));
    };
    let id = session::find_backup(repository, settings, word, |manifest| manifest.artifacts.is_some())?;
    let manifest = match trust {
        Some(trust) => opened_backup::open(repository, &id, trust)?.manifest,
        None => opened_backup::open(repository, &id, &session::trust(settings)?)?.manifest,
    };
    let entry = manifest.artifacts.ok_or_else(|| Failure::from(lifeboat_core::restore::RestorePlanError::NoArtifacts(id.to_string())))?;
    Ok((ArtifactSet::new(repository.store(), entry.runs), entry.count, entry.bytes))
}

fn get(
    name: &ArtifactName,
    to: &Path,
    version: Option<&str>,
    force: bool,
    identity: Option<&PathBuf>,
    settings: &Settings,
    out: &Output,
) -> Result<u8, Failure> {
    let repository = session::read_repository(settings)?;
    let fetch = Fetch { name, to, version, force, identity };
    gate::guard(settings, Some(&repository), Question::new(Operation::ArtifactGet), || fetched(&repository, &fetch, settings, out))
}

/// An artifact that is wanted, and where.
struct Fetch<'a> {
    name: &'a ArtifactName,
    to: &'a Path,
    version: Option<&'a str>,
    force: bool,
    identity: Option<&'a PathBuf>,
}

fn fetched(repository: &Repository, fetch: &Fetch<'_>, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let Fetch { name, to, version, force, identity } = *fetch;
    let trust = session::trust(settings)?;
    let reader = Reader::new(repository, &trust, session::identities(settings, identity)?);
    let (set, ..) = set(repository, settings, None, Some(&trust))?;
    if to == Path::new("-") {
        if out.is_json() {
            return Err(Failure::usage("get artifact: its bytes and a JSON document cannot both go to stdout")
                .hint("lifeboat artifact get NAME --output FILE --json"));
        }
        reader.get_to_writer(&set, name, version, &mut std::io::stdout().lock())?;
        return Ok(0);
    }
    let record = reader.get_to_file(&set, name, version, to, if force { Replace::Allowed } else { Replace::Never })?;
    let document =
        serde_json::json!({"name": record.name, "version": record.version, "sha256": record.sha256, "bytes": record.bytes, "file": to});
    out.result(&document, || format!("{} version {} in {}\n", record.name, record.version, to.display()));
    Ok(0)
}

fn list(prefix: Option<&str>, versions: bool, backup: Option<&str>, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let repository = session::read_repository(settings)?;
    gate::allow(settings, Some(&repository), Question::new(Operation::ArtifactList))?;
    if versions {
        let name =
            name(prefix.ok_or_else(|| Failure::usage("list versions: name the artifact").hint("lifeboat artifact list NAME --versions"))?)?;
        let trust = session::trust(settings)?;
        let reader = Reader::new(&repository, &trust, lifeboat_engine::keys::Identities::default());
        let mut rows = Vec::new();
        for version in reader.versions(&name)? {
            rows.push(match reader.record(&name, &version) {
                Ok(record) => {
                    serde_json::json!({"version": version, "bytes": record.bytes, "sha256": record.sha256, "created": record.created})
                }
                Err(finding) => serde_json::json!({"version": version, "finding": finding}),
            });
        }
        let bad = rows.iter().any(|row| row.get("finding").is_some());
        out.result(&serde_json::json!({"name": name, "versions": rows}), || rows.iter().map(|row| format!("{row}\n")).collect());
        return Ok(if bad { EXIT_FINDINGS } else { 0 });
    }
    let (set, ..) = set(&repository, settings, backup, None)?;
    let mut entries = Vec::new();
    for entry in set.entries(prefix.unwrap_or_default()) {
        entries.push(entry?);
    }
    let document: Vec<_> = entries
        .iter()
        .map(|entry| serde_json::json!({"name": entry.name, "version": entry.version, "sha256": entry.sha256, "bytes": entry.bytes, "mode": entry.mode, "modified": entry.modified}))
        .collect();
    out.result(&serde_json::json!({"artifacts": document}), || {
        let cells: Vec<Vec<String>> =
            entries.iter().map(|entry| vec![output::bytes(entry.bytes), entry.version.clone(), entry.name.to_string()]).collect();
        table(&["SIZE", "VERSION", "NAME"], &cells)
    });
    Ok(0)
}

fn verify(backup: Option<&str>, identity: Option<&PathBuf>, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    // The primary by itself: damage must show here, not be read around. lifeboat verify looks at every place.
    let repository = session::without_copies(session::primary(settings)?)?;
    gate::guard(settings, Some(&repository), Question::new(Operation::ArtifactVerify), || {
        verified(&repository, backup, identity, settings, out)
    })
}

fn verified(
    repository: &Repository,
    backup: Option<&str>,
    identity: Option<&PathBuf>,
    settings: &Settings,
    out: &Output,
) -> Result<u8, Failure> {
    let trust = session::trust(settings)?;
    let identities = session::identities(settings, identity)?;
    let given = identity.is_some() || settings.identity_file.is_some() || settings.plain.value;
    let reader = Reader::new(repository, &trust, identities);
    let (set, count, bytes) = set(repository, settings, backup, Some(&trust))?;
    let progress = Shown::new();
    let report = verify_set(&reader, set, (count, bytes), Sample { percent: 100, seed: 0, open: given }, settings.workers.value, &progress);
    progress.finish();
    let report = report?;
    let findings: Vec<_> = report.findings.first.iter().map(|finding| artifact_finding(None, finding)).collect();
    let mut all = verdict(&findings);
    if all == lifeboat_core::verify::Verdict::Verified && report.artifacts != count {
        all = lifeboat_core::verify::Verdict::Failed;
        let message = format!("corrupt: artifacts/catalog: {} artifacts, the head says {count}", report.artifacts);
        output::tell(Level::Error, "finding", &message, None);
    }
    out.result(&serde_json::json!({"verdict": all, "report": report, "findings": findings}), || {
        format!(
            "{} artifacts, {}: {} signatures valid, {} opened and compared, {} checked without opening, {} findings\n",
            report.artifacts,
            output::bytes(report.bytes),
            report.signatures_verified,
            report.blobs_opened,
            report.blobs_checked,
            report.findings.count
        )
    });
    super::verify::say_findings(&findings);
    Ok(super::verify::code(all))
}

fn sync(directory: &Path, allow_empty: bool, read_all: bool, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    with_writer(settings, Operation::ArtifactSync, |writer| {
        let progress = Shown::new();
        let report =
            writer.sync(directory, SyncOptions { threads: settings.workers.value.max(SYNC_THREADS), read_all, allow_empty }, &progress);
        progress.finish();
        let report = report?;
        for complaint in sync_complaints(&report) {
            output::warn(&complaint);
        }
        out.result(&report, || {
            format!(
                "{} new, {} changed, {} unchanged, {} gone; {} artifacts, {}, in the set\n",
                report.new,
                report.changed,
                report.unchanged,
                report.gone,
                report.count,
                output::bytes(report.bytes)
            )
        });
        Ok(if report.has_findings() { EXIT_FINDINGS } else { 0 })
    })
}
