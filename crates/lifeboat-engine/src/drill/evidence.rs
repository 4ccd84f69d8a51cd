//! The evidence of a drill in the repository: written so that it counts only when it is whole, and read so that it counts only when it is
//! signed (`docs/drill-report.md`).
//!
//! `drills/<id>/`: the page and the two bundles first, `report.json` last. Nothing is overwritten. A report without its bundle, or with one of
//! somebody who is not trusted for drills, says nothing; it is shown as that, and breaks no chain.

use lifeboat_core::attestation::{DRILL_PREDICATE_TYPE, Statement, TEST_RESULT_PREDICATE_TYPE};
use lifeboat_core::drill::history::{self, Entry, Signature, Summary};
use lifeboat_core::drill::statement::{self, Digests, PAGE_SUBJECT, REPORT_SUBJECT, drill_statement, test_result_statement};
use lifeboat_core::drill::{DrillId, Report, judge};
use lifeboat_core::repository::layout::{self, DRILLS, Key};
use lifeboat_core::repository::{FormatError, Sha256, to_json};
use lifeboat_core::trust::When;
use serde::Serialize;

use crate::causes;
use crate::repository::{MAX_DOCUMENT_BYTES, Repository};
use crate::sha256;
use crate::signing::{SignError, SignedBy, Signer, Trust, Verified, VerifyError};
use crate::store::{StoreError, create_or_mine};

/// The bundle over the statement with the numbers.
pub const REPORT_BUNDLE: &str = "report.sigstore.json";

/// The bundle over the statement for generic tools.
pub const TEST_RESULT_BUNDLE: &str = "test-result.sigstore.json";

/// The most reports that [`Latest::passed_over`] names.
const MAX_PASSED_OVER: usize = 100;

/// Why evidence was not stored, or does not count.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// There is no such drill.
    #[error("read drill {0}: there is no report of it")]
    Absent(String),
    /// The signature does not hold.
    #[error("verify drill {id}, {bundle}")]
    Unsigned {
        /// The drill.
        id: String,
        /// The bundle.
        bundle: &'static str,
        /// Why not.
        #[source]
        source: Box<VerifyError>,
    },
    /// There is no signature.
    #[error("verify drill {id}: {bundle} is not there, so nobody stands for the report")]
    NoSignature {
        /// The drill.
        id: String,
        /// The bundle.
        bundle: &'static str,
    },
    /// It is signed, and not what it should be.
    #[error("verify drill {id}: {problem}")]
    Wrong {
        /// The drill.
        id: String,
        /// What is wrong.
        problem: String,
    },
    /// A report that nobody could read again is not signed.
    #[error("store the report of drill {id}: {problem}")]
    Unfit {
        /// The drill.
        id: String,
        /// What is wrong.
        problem: String,
    },
    /// Other evidence stands there.
    #[error("store the report of drill {id}: {key} is there already, and something else")]
    Taken {
        /// The drill.
        id: String,
        /// The object.
        key: String,
    },
    /// A name that is none.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Not signed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl EvidenceError {
    /// Whether evidence was read and does not hold: exit code 21, and not trouble with reading it.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Unsigned { .. } | Self::NoSignature { .. } | Self::Wrong { .. })
    }
}

/// What was stored of a drill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stored {
    /// The drill.
    pub id: String,
    /// SHA-256 of `report.json`: the next report names it.
    pub report: Sha256,
    /// SHA-256 of `report.html`.
    pub page: Sha256,
    /// The objects, in the order in which they were created.
    pub objects: Vec<String>,
}

/// The bytes of a report, as they are stored and signed.
pub fn report_bytes(report: &Report) -> Vec<u8> {
    to_json(report)
}

/// Signs and stores a report and its page. Failed drills too: nothing here looks at the verdict.
///
/// Everything is signed before anything is written, and `report.json` is created last, so that whoever finds a report finds all of it.
///
/// # Errors
///
/// [`EvidenceError::Unfit`] if it could not be read again (a number that is none, more than 16 MiB), [`EvidenceError::Taken`] if other evidence
/// has its name; signer and store.
pub fn store(repository: &Repository, report: &Report, page: &str, signer: &dyn Signer) -> Result<Stored, EvidenceError> {
    let id: DrillId = report.id.parse()?;
    let unfit = |problem: String| EvidenceError::Unfit { id: id.to_string(), problem };
    if id.name() != report.name {
        return Err(unfit(format!("it is of {}, by its id, and of {}, by its name", id.name(), report.name)));
    }
    let bytes = report_bytes(report);
    if bytes.len().max(page.len()) as u64 > MAX_DOCUMENT_BYTES {
        return Err(unfit(format!("it has more than {MAX_DOCUMENT_BYTES} bytes")));
    }
    serde_json::from_slice::<Report>(&bytes).map_err(|error| unfit(format!("it could not be read again: {error}")))?;
    let digests = Digests { report: sha256::of(&bytes), page: sha256::of(page.as_bytes()) };
    let sign = |statement: Statement| signer.sign_statement(&statement.to_bytes());
    let bundles =
        [(REPORT_BUNDLE, sign(drill_statement(report, digests))?), (TEST_RESULT_BUNDLE, sign(test_result_statement(report, digests))?)];
    let mut stored = Stored { id: id.to_string(), report: digests.report, page: digests.page, objects: Vec::new() };
    let objects = [(PAGE_SUBJECT, page.as_bytes())]
        .into_iter()
        .chain(bundles.iter().map(|(name, bundle)| (*name, bundle.as_bytes())))
        .chain([(REPORT_SUBJECT, bytes.as_slice())]);
    for (name, bytes) in objects {
        let key = layout::drill_object(&stored.id, name)?;
        if !create_or_mine(repository.store(), &key, bytes)? {
            return Err(EvidenceError::Taken { id: stored.id, key: key.to_string() });
        }
        stored.objects.push(key.to_string());
    }
    Ok(stored)
}

/// A report that somebody stands for who is trusted to.
#[derive(Debug, Clone, PartialEq)]
pub struct VerifiedReport {
    /// The report.
    pub report: Report,
    /// SHA-256 of `report.json`.
    pub sha256: Sha256,
    /// The bytes of `report.json`.
    pub bytes: Vec<u8>,
    /// The bundle with the numbers, as it is stored.
    pub bundle: Vec<u8>,
    /// Who signed.
    pub signer: SignedBy,
    /// When, and how sure that is.
    pub when: When,
    /// SHA-256 of `report.html`, as it was signed.
    pub page: Option<Sha256>,
    /// What is odd about it although it is signed: a verdict that is better than its parts, a second bundle that is missing.
    pub doubts: Vec<String>,
}

/// The report of a drill, if its signatures hold.
///
/// # Errors
///
/// [`EvidenceError::Absent`]; those of [`EvidenceError::is_refusal`]; the store.
pub fn verify(repository: &Repository, trust: &Trust, id: &DrillId) -> Result<VerifiedReport, EvidenceError> {
    let read = read(repository, id)?.ok_or_else(|| EvidenceError::Absent(id.to_string()))?;
    let (report, verified, bundle) = authentic(repository, trust, id, &read)?;
    let mut doubts = Vec::new();
    match bundle_of(repository, id, TEST_RESULT_BUNDLE)? {
        Some(other) => {
            let said = check(trust, id, TEST_RESULT_BUNDLE, &other, TEST_RESULT_PREDICATE_TYPE, read.sha256)?;
            if let Some(problem) = statement::contradiction(&said.statement, &report) {
                return Err(EvidenceError::Wrong { id: id.to_string(), problem });
            }
        }
        None => doubts.push(format!("{TEST_RESULT_BUNDLE} is not there: generic tools have nothing to read")),
    }
    let (judged, reasons) = judge(&report);
    if judged > report.verdict {
        let why = reasons.first().map(String::as_str).unwrap_or_default();
        doubts.push(format!("the report says \"{}\", and its parts come to \"{}\": {why}", report.verdict.words(), judged.words()));
    }
    let page =
        verified.statement.subject.iter().find(|subject| subject.name == PAGE_SUBJECT).and_then(|subject| subject.sha256()).map(Sha256);
    let Verified { signer, when, .. } = verified;
    Ok(VerifiedReport { report, sha256: read.sha256, bytes: read.bytes, bundle, signer, when, page, doubts })
}

/// The page of a report, if it is the one that was signed with it.
///
/// # Errors
///
/// [`EvidenceError::Wrong`] if it is another one, or not there; the store.
pub fn page(repository: &Repository, verified: &VerifiedReport) -> Result<Vec<u8>, EvidenceError> {
    let id = &verified.report.id;
    let wrong = |problem: &str| EvidenceError::Wrong { id: id.clone(), problem: problem.to_owned() };
    let bytes = document(repository, &layout::drill_object(id, PAGE_SUBJECT)?)?.ok_or_else(|| wrong("its page is not there"))?;
    match verified.page {
        Some(digest) if digest == sha256::of(&bytes) => Ok(bytes),
        Some(_) => Err(wrong("its page is another one than was signed")),
        None => Err(wrong("its page was not signed")),
    }
}

/// The drill that a new one comes after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Latest {
    /// Its id.
    pub id: DrillId,
    /// Its number: the next one has one more.
    pub number: u64,
    /// SHA-256 of its report: the next one names it.
    pub sha256: Sha256,
    /// The first of the newer ones that were passed over because nobody who is trusted signed them, and why.
    pub passed_over: Vec<(DrillId, String)>,
}

/// The newest drill of this system whose signature holds, or, where none does, nothing. Costs a listing of the ids and the reading of one report;
/// names of other systems are passed over. What nobody signed is read as well and passed over: it must not keep a drill from running.
///
/// # Errors
///
/// The store.
pub fn latest(repository: &Repository, trust: &Trust, name: &str) -> Result<Option<Latest>, EvidenceError> {
    let mut passed_over = Vec::new();
    for id in ids(repository, name)?.into_iter().rev() {
        // Without a report it never was: a drill that ended while it wrote.
        let Some(read) = read(repository, &id)? else { continue };
        match authentic(repository, trust, &id, &read) {
            Ok((report, ..)) => return Ok(Some(Latest { id, number: report.number, sha256: read.sha256, passed_over })),
            Err(error) if error.is_refusal() && passed_over.len() == MAX_PASSED_OVER => {}
            Err(error) if error.is_refusal() => passed_over.push((id, causes::joined(&error))),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// The newest drill of a system that has a report, whoever signed it.
///
/// # Errors
///
/// The store.
pub fn newest(repository: &Repository, name: &str) -> Result<Option<DrillId>, EvidenceError> {
    for id in ids(repository, name)?.into_iter().rev() {
        match repository.store().length(&layout::drill_object(&id.to_string(), REPORT_SUBJECT)?) {
            Ok(_) => return Ok(Some(id)),
            Err(error) if error.is_absence() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// Ids of the drills of a system, oldest first, whether or not they have a report.
///
/// # Errors
///
/// The store.
pub fn ids(repository: &Repository, name: &str) -> Result<Vec<DrillId>, EvidenceError> {
    Ok(all_ids(repository)?.into_iter().filter(|id| id.name() == name).collect())
}

/// Ids of the drills of every system, by name and time.
///
/// # Errors
///
/// The store.
pub fn all_ids(repository: &Repository) -> Result<Vec<DrillId>, EvidenceError> {
    let names = repository.store().list_segments(DRILLS)?;
    let mut ids: Vec<DrillId> = names.iter().filter_map(|name| name.strip_suffix('/')?.rsplit('/').next()?.parse().ok()).collect();
    ids.sort();
    Ok(ids)
}

/// What there is of a system's drills.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct History {
    /// The newest, oldest of them first.
    pub entries: Vec<Entry>,
    /// How many older ones were not looked at.
    pub older: usize,
    /// What is wrong with the row: reports left out, exchanged, not signed.
    pub findings: Vec<String>,
}

/// The newest `limit` drills of a system, each with its signature verified; without `trust` they are shown as not checked.
///
/// # Errors
///
/// The store.
pub fn history(repository: &Repository, trust: Option<&Trust>, name: &str, limit: usize) -> Result<History, EvidenceError> {
    let mut ids = ids(repository, name)?;
    let older = ids.len().saturating_sub(limit);
    let mut entries = Vec::new();
    for id in ids.drain(older..) {
        entries.extend(entry(repository, trust, &id)?);
    }
    let findings = if trust.is_some() { history::gaps(&entries, older == 0) } else { Vec::new() };
    Ok(History { entries, older, findings })
}

/// What is known of one drill. `None`: it left nothing that anybody could take for a report.
fn entry(repository: &Repository, trust: Option<&Trust>, id: &DrillId) -> Result<Option<Entry>, EvidenceError> {
    let Some(read) = read(repository, id)? else {
        // A signature without its report is one that was taken away.
        let lost = trust.is_some() && bundle_of(repository, id, REPORT_BUNDLE)?.is_some();
        let why = "its report is not there: it did not finish, or was deleted".to_owned();
        let signature = Signature::NotValid { why };
        return Ok(lost.then(|| Entry { id: id.to_string(), at: id.at(), sha256: None, summary: None, signature }));
    };
    let unsigned = |read: &Read| serde_json::from_slice::<Report>(&read.bytes).ok().map(|report| Summary::of(&report));
    let (summary, signature) = match trust {
        None => (unsigned(&read), Signature::NotChecked),
        Some(trust) => match authentic(repository, trust, id, &read) {
            Ok((report, verified, _)) => (Some(Summary::of(&report)), Signature::Valid { by: verified.signer.to_string() }),
            Err(error) if error.is_refusal() => (unsigned(&read), Signature::NotValid { why: causes::joined(&error) }),
            Err(error) => return Err(error),
        },
    };
    Ok(Some(Entry { id: id.to_string(), at: id.at(), sha256: Some(read.sha256), summary, signature }))
}

/// A report as it is stored, unverified.
struct Read {
    bytes: Vec<u8>,
    sha256: Sha256,
}

fn read(repository: &Repository, id: &DrillId) -> Result<Option<Read>, EvidenceError> {
    let bytes = document(repository, &layout::drill_object(&id.to_string(), REPORT_SUBJECT)?)?;
    Ok(bytes.map(|bytes| Read { sha256: sha256::of(&bytes), bytes }))
}

fn bundle_of(repository: &Repository, id: &DrillId, name: &str) -> Result<Option<Vec<u8>>, EvidenceError> {
    Ok(document(repository, &layout::drill_object(&id.to_string(), name)?)?)
}

/// A document. One that is longer than any of ours is none of ours: nobody signed it, and it keeps nobody from reading the others.
fn document(repository: &Repository, key: &Key) -> Result<Option<Vec<u8>>, StoreError> {
    match repository.document(key) {
        Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::FileTooLarge => Ok(Some(Vec::new())),
        other => other,
    }
}

fn check(
    trust: &Trust,
    id: &DrillId,
    name: &'static str,
    bundle: &[u8],
    predicate_type: &str,
    report: Sha256,
) -> Result<Verified, EvidenceError> {
    let verified = trust.verify(bundle, &statement::expected(predicate_type, report));
    verified.map_err(|source| EvidenceError::Unsigned { id: id.to_string(), bundle: name, source: Box::new(source) })
}

/// The report, if its own bundle says so. The bytes are read only after that.
fn authentic(repository: &Repository, trust: &Trust, id: &DrillId, read: &Read) -> Result<(Report, Verified, Vec<u8>), EvidenceError> {
    let wrong = |problem: String| EvidenceError::Wrong { id: id.to_string(), problem };
    let Some(bundle) = bundle_of(repository, id, REPORT_BUNDLE)? else {
        return Err(EvidenceError::NoSignature { id: id.to_string(), bundle: REPORT_BUNDLE });
    };
    let verified = check(trust, id, REPORT_BUNDLE, &bundle, DRILL_PREDICATE_TYPE, read.sha256)?;
    let report: Report = serde_json::from_slice(&read.bytes).map_err(|error| wrong(format!("its report cannot be read: {error}")))?;
    // A genuine report under the name of another drill is none of that drill.
    if report.id != id.to_string() || report.name != id.name() {
        return Err(wrong(format!("the report that stands there is that of drill {:?}", report.id)));
    }
    if report.repository != repository.descriptor().repository {
        return Err(wrong(format!("the report that stands there is of another repository, {}", report.repository)));
    }
    if let Some(problem) = statement::contradiction(&verified.statement, &report) {
        return Err(wrong(problem));
    }
    Ok((report, verified, bundle))
}

#[cfg(test)]
mod tests;
