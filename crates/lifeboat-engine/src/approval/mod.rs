//! Approvals in a repository: asked for, given, gathered, used up.
//!
//! Every statement is verified here, and what then counts is decided in `lifeboat_core::approval`. Nothing is believed for where it stands: a
//! plan for its digest, a request for the digest of its statement, an approval for who signed it and what they signed.
//!
//! To follow one: [`ask`] stores a plan and a request of it; [`grant`] an approval; [`gather`] reads all of it back; [`spend`] ends it.

mod alert;
pub mod ssh;

use std::collections::BTreeMap;

use jiff::Timestamp;
use lifeboat_core::approval::allowed_signers::AllowedSigners;
use lifeboat_core::approval::{
    Approval, Asked, Circumstances, Given, Judged, MAX_STATEMENTS, NotCounting, Persons, Refusal, Request, Signed, Used, choose, judge,
    request_id,
};
use lifeboat_core::attestation::{APPROVAL_PREDICATE_TYPE, APPROVAL_REQUEST_PREDICATE_TYPE, Statement};
use lifeboat_core::policy::{ApprovalFacts, ApproverKind, PlanFacts};
use lifeboat_core::repository::layout::{self, Key};
use lifeboat_core::repository::{FORMAT_VERSION, FormatError, Sha256, to_json};
use lifeboat_core::trust::When;
use serde::{Deserialize, Serialize};

use crate::causes;
use crate::repository::Repository;
use crate::sha256;
use crate::signing::{Expected, SignError, SignedBy, Signer, Trust};
use crate::store::{StoreError, create_or_mine};

pub use alert::{AlertError, alert};

/// Why something about an approval did not happen.
#[derive(Debug, thiserror::Error)]
pub enum ApprovalError {
    /// Nobody asked for a plan of this digest.
    #[error("read plan {0}: nobody asked for it")]
    NoPlan(Sha256),
    /// The plan that is stored is another than the one that was asked for.
    #[error("read plan {plan}: what is stored has digest {found}")]
    OtherPlan {
        /// What was asked for.
        plan: Sha256,
        /// What is there.
        found: Sha256,
    },
    /// It would not count, so it was not stored.
    #[error("approve plan {plan}: it would not count: {why}")]
    WouldNotCount {
        /// The plan.
        plan: Sha256,
        /// Why not.
        why: String,
    },
    /// A request that nobody would believe, so it was not stored.
    #[error("ask to approve plan {plan}: the request would not count: {why}")]
    WouldNotStand {
        /// The plan.
        plan: Sha256,
        /// Why not.
        why: String,
    },
    /// The plan has run, or begins to run somewhere else.
    #[error("run plan {0}: its approvals were used: a plan is approved for one run")]
    Spent(Sha256),
    /// Text that is not in the format.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Not signed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// Not signed with SSH.
    #[error(transparent)]
    Ssh(#[from] ssh::SshError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Who may ask, and who may approve.
#[derive(Clone, Copy)]
pub struct Approvers<'a> {
    /// Keys and identities.
    pub trust: &'a Trust,
    /// Keys of SSH.
    pub allowed: &'a AllowedSigners,
    /// Which of their names are whose.
    pub persons: &'a Persons,
}

/// A signed statement as it is stored: a Sigstore bundle, or an SSH signature beside what it is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    bytes: Vec<u8>,
    ssh: bool,
}

/// `*.ssh.json`: SSH signatures have no place for what they are over.
#[derive(Debug, Serialize, Deserialize)]
struct SshDocument {
    format: u32,
    /// The statement, byte for byte as it was signed.
    statement: String,
    /// As `ssh-keygen -Y sign` prints it.
    signature: String,
}

impl Object {
    /// Signed by a key, a key service, an identity.
    pub fn signed(statement: &Statement, signer: &dyn Signer) -> Result<Self, ApprovalError> {
        Ok(Self { bytes: signer.sign_statement(&statement.to_bytes())?.into_bytes(), ssh: false })
    }

    /// With an SSH signature over a statement's [`text`], wherever that was made.
    pub fn with_ssh(text: &str, signature: &str) -> Self {
        let document = SshDocument { format: FORMAT_VERSION, statement: text.to_owned(), signature: signature.to_owned() };
        Self { bytes: to_json(&document), ssh: true }
    }
}

/// A statement as it is signed with SSH: JSON that people can read before they sign it.
pub fn text(statement: &Statement) -> String {
    let text = to_json(statement);
    String::from_utf8(text).expect("JSON is UTF-8")
}

/// What a signed statement says and who signed it.
struct Proven {
    statement: Statement,
    by: Signed,
    /// When, by somebody else's word.
    at: Option<Timestamp>,
}

impl Proven {
    fn approval(&self) -> Result<Approval, FormatError> {
        let approval = Approval::of(&self.statement)?;
        // Where an authority says when it was, nobody has to believe the signer.
        Ok(Approval { granted: self.at.unwrap_or(approval.granted), ..approval })
    }
}

/// What a signed statement proves, or why it proves nothing.
fn verify(object: &Object, predicate_type: &str, plan: Sha256, approvers: Approvers<'_>, now: Timestamp) -> Result<Proven, String> {
    let expected = Expected { predicate_type, subject_sha256: plan.0, subject_name: None, version: None };
    if !object.ssh {
        let verified = approvers.trust.verify(&object.bytes, &expected).map_err(|error| causes::joined(&error))?;
        let at = if let When::Proven(at) = verified.when { Some(at) } else { None };
        return Ok(Proven { by: signer_of(&verified.signer, approvers.persons), statement: verified.statement, at });
    }
    let document: SshDocument = serde_json::from_slice(&object.bytes).map_err(|error| format!("read SSH signature: {error}"))?;
    if document.format > FORMAT_VERSION {
        return Err(format!("read SSH signature: it is of format version {}", document.format));
    }
    let by =
        ssh::verify(document.statement.as_bytes(), &document.signature, approvers.allowed, now).map_err(|error| causes::joined(&error))?;
    // Only now, with the signature good, is the text worth parsing.
    let statement = Statement::parse(document.statement.as_bytes()).map_err(|error| error.to_string())?;
    statement.check(&expected).map_err(|error| error.to_string())?;
    let mut names = by.names;
    let person = names.first().cloned();
    names.push(by.fingerprint);
    let by = Signed::new(ApproverKind::Ssh, person.as_deref(), &names, approvers.persons);
    Ok(Proven { statement, by, at: None })
}

/// Who signed a bundle. An address that an identity provider vouches for is somebody's name; a key, or the identity of a workflow, is one's
/// only where the configuration says whose.
fn signer_of(signer: &SignedBy, persons: &Persons) -> Signed {
    match signer {
        SignedBy::Key { hint, person } => Signed::new(ApproverKind::Key, person.as_deref(), std::slice::from_ref(hint), persons),
        SignedBy::Identity { issuer, subject, person } => {
            let address = (subject.contains('@') && !subject.contains('/')).then_some(subject);
            let names = [subject.clone(), format!("{issuer} {subject}")];
            Signed::new(ApproverKind::Identity, person.as_ref().or(address).map(String::as_str), &names, persons)
        }
    }
}

/// The plan of a digest, byte for byte.
///
/// # Errors
///
/// [`ApprovalError::NoPlan`], and [`ApprovalError::OtherPlan`] where the bytes have another digest.
pub fn plan(repository: &Repository, plan: Sha256) -> Result<Vec<u8>, ApprovalError> {
    let bytes = repository.document(&layout::approval_plan(plan))?.ok_or(ApprovalError::NoPlan(plan))?;
    let found = sha256::of(&bytes);
    if found == plan { Ok(bytes) } else { Err(ApprovalError::OtherPlan { plan, found }) }
}

/// Digests of the plans that somebody asked for, in no order that means anything.
pub fn plans(repository: &Repository) -> Result<Vec<Sha256>, ApprovalError> {
    let names = repository.store().list_segments(layout::APPROVALS)?;
    Ok(names.iter().filter_map(|name| name.strip_suffix('/')?.rsplit('/').next()?.parse().ok()).collect())
}

/// Stores a plan and a request of it; the request's id.
///
/// # Errors
///
/// [`ApprovalError::WouldNotStand`]: nobody would believe it; then nothing was stored.
pub fn ask(
    repository: &Repository,
    plan: &[u8],
    request: &Request,
    object: &Object,
    approvers: Approvers<'_>,
    here: &Circumstances<'_>,
) -> Result<Sha256, ApprovalError> {
    let digest = sha256::of(plan);
    let refused = |why: String| ApprovalError::WouldNotStand { plan: digest, why };
    let Proven { statement, by, .. } = verify(object, APPROVAL_REQUEST_PREDICATE_TYPE, digest, approvers, here.now).map_err(refused)?;
    if Request::of(&statement)? != *request {
        return Err(refused("what was signed is another request".into()));
    }
    let asked = Asked { id: request_id(&statement), request: request.clone(), by, spent: false, given: Vec::new() };
    judge(&asked, approvers.persons, here).standing.map_err(|refusal| refused(refusal.to_string()))?;
    let key = layout::approval_plan(digest);
    if !create_or_mine(repository.store(), &key, plan)? {
        return Err(ApprovalError::OtherPlan { plan: digest, found: sha256::of(&repository.document(&key)?.unwrap_or_default()) });
    }
    // Whoever finds the request finds its plan.
    let key = layout::approval_request_statement(digest, asked.id, object.ssh);
    if !create_or_mine(repository.store(), &key, &object.bytes)? {
        return Err(StoreError::Exists { key: key.to_string() }.into());
    }
    Ok(asked.id)
}

/// Stores an approval of a request, if it will count beside those that were [`gather`]ed with it.
///
/// # Errors
///
/// [`ApprovalError::WouldNotCount`]: it does not, by what is known here; then nothing was stored.
pub fn grant(
    repository: &Repository,
    asked: &Asked,
    object: &Object,
    approvers: Approvers<'_>,
    here: &Circumstances<'_>,
) -> Result<ApprovalFacts, ApprovalError> {
    let plan = asked.request.plan;
    let refused = |why: String| ApprovalError::WouldNotCount { plan, why };
    let proven = verify(object, APPROVAL_PREDICATE_TYPE, plan, approvers, here.now).map_err(refused)?;
    let (approval, by) = (proven.approval()?, proven.by);
    let mut with = asked.clone();
    let who = by.person.clone();
    with.given.push(Given { approval, by: by.clone() });
    let judged = judge(&with, approvers.persons, here);
    judged.standing.map_err(|refusal| refused(format!("of the request: {refusal}")))?;
    if let Some((_, why)) = judged.not_counting.into_iter().rfind(|(signed, _)| *signed == by) {
        return Err(refused(why.to_string()));
    }
    let counts = |facts: &&ApprovalFacts| Some(&facts.approver) == who.as_ref();
    let facts = judged.counting.iter().find(counts).ok_or_else(|| refused(Refusal::NoPerson.to_string()))?;
    let key = layout::approval(plan, asked.id, &by.shown, &object.bytes, object.ssh);
    if !create_or_mine(repository.store(), &key, &object.bytes)? {
        return Err(StoreError::Exists { key: key.to_string() }.into());
    }
    Ok(facts.clone())
}

/// What there is about a plan.
#[derive(Debug, Clone, Default)]
pub struct Gathered {
    /// Every request whose signature counts, and what became of it, the newest first.
    pub requests: Vec<(Asked, Judged)>,
    /// The request that the plan may run on, if there is one.
    pub request: Option<Asked>,
    /// Who asked, for people.
    pub requester: Option<String>,
    /// Approvals of it that count: one for each person, never the requester's.
    pub counting: Vec<ApprovalFacts>,
    /// Everything else that stands there, and why it does not count.
    pub not_counting: Vec<NotCounting>,
}

impl Gathered {
    /// The same for a policy.
    pub fn facts(&self, plan: Sha256) -> PlanFacts {
        PlanFacts { digest: plan, requester: self.requester.clone(), approvals: self.counting.clone() }
    }
}

/// Who asked, for people: the person, or the key, and the user of the host.
pub fn requester(asked: &Asked) -> String {
    let actor = &asked.request.actor;
    let user = actor.sudo_user.as_ref().map_or_else(|| actor.user.clone(), |sudo| format!("{sudo} as {}", actor.user));
    match &asked.by.person {
        Some(person) => person.clone(),
        None => format!("{user} on {}", asked.request.host),
    }
}

/// What belongs to one request.
#[derive(Default)]
struct Listed {
    request: Vec<Key>,
    approvals: Vec<Key>,
}

/// Everything about a plan, verified and judged.
///
/// # Errors
///
/// The store failed: then nobody knows.
pub fn gather(
    repository: &Repository,
    plan: Sha256,
    approvers: Approvers<'_>,
    here: &Circumstances<'_>,
) -> Result<Gathered, ApprovalError> {
    let prefix = layout::approvals(plan);
    let mut listed: BTreeMap<Sha256, Listed> = BTreeMap::new();
    for one in repository.store().list(&prefix)? {
        let Some((request, name)) = one.key.as_str().strip_prefix(&prefix).and_then(|rest| rest.split_once('/')) else { continue };
        let Ok(request) = request.parse::<Sha256>() else { continue };
        if !listed.contains_key(&request) && listed.len() == MAX_STATEMENTS {
            break;
        }
        let of = listed.entry(request).or_default();
        match name {
            "request.sigstore.json" | "request.ssh.json" => of.request.push(one.key),
            name if name.ends_with(".sigstore.json") || name.ends_with(".ssh.json") => of.approvals.push(one.key),
            _ => {}
        }
    }
    let mut gathered = Gathered::default();
    for (id, of) in listed {
        let mut asked = None;
        for key in of.request {
            match read_request(repository, &key, plan, id, approvers, here.now)? {
                Ok(found) => asked = Some(found),
                Err(why) => gathered.not_counting.push(NotCounting { who: format!("request {id}"), why }),
            }
        }
        let Some(mut asked) = asked else { continue };
        for key in of.approvals.into_iter().take(MAX_STATEMENTS) {
            match read_approval(repository, &key, plan, approvers, here.now)? {
                Ok(given) => asked.given.push(given),
                Err(why) => gathered.not_counting.push(NotCounting { who: name_of(&key), why }),
            }
        }
        let judged = judge(&asked, approvers.persons, here);
        gathered.requests.push((asked, judged));
    }
    gathered.requests.sort_by_key(|(asked, _)| (std::cmp::Reverse(asked.request.requested), asked.id));
    if let Some((asked, judged)) = choose(&gathered.requests) {
        gathered.request = Some(asked.clone());
        gathered.requester = Some(requester(asked));
        gathered.counting.clone_from(&judged.counting);
    }
    for (asked, judged) in &gathered.requests {
        if let Err(refusal) = &judged.standing {
            let who = format!("the request of {} of {:.0}", requester(asked), asked.request.requested);
            gathered.not_counting.push(NotCounting { who, why: refusal.to_string() });
        }
        let not_counting = judged.not_counting.iter();
        gathered.not_counting.extend(not_counting.map(|(by, why)| NotCounting { who: by.shown.clone(), why: why.to_string() }));
    }
    Ok(gathered)
}

/// The name in an object's key: what somebody called it, and nothing else.
fn name_of(key: &Key) -> String {
    key.as_str().rsplit('/').next().unwrap_or_default().to_owned()
}

/// A signed statement, if it is there and short enough.
fn read(repository: &Repository, key: &Key) -> Result<Result<Object, String>, StoreError> {
    let bytes = match repository.document(key) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Ok(Err("it is not there any more".to_owned())),
        Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::FileTooLarge => {
            return Ok(Err("it is too long".to_owned()));
        }
        Err(error) => return Err(error),
    };
    Ok(Ok(Object { bytes, ssh: key.as_str().ends_with(".ssh.json") }))
}

fn read_request(
    repository: &Repository,
    key: &Key,
    plan: Sha256,
    id: Sha256,
    approvers: Approvers<'_>,
    now: Timestamp,
) -> Result<Result<Asked, String>, ApprovalError> {
    let verified = read(repository, key)?.and_then(|object| verify(&object, APPROVAL_REQUEST_PREDICATE_TYPE, plan, approvers, now));
    let Proven { statement, by, .. } = match verified {
        Ok(proven) => proven,
        Err(why) => return Ok(Err(why)),
    };
    let request = match Request::of(&statement) {
        Ok(request) => request,
        Err(error) => return Ok(Err(error.to_string())),
    };
    if request_id(&statement) != id {
        return Ok(Err("it stands where another one should".to_owned()));
    }
    // Asked for by its name: a listing may be older than it is.
    let spent = match repository.store().length(&layout::approval_used(plan, id)) {
        Ok(_) => true,
        Err(StoreError::NotFound { .. }) => false,
        Err(error) => return Err(error.into()),
    };
    Ok(Ok(Asked { id, request, by, spent, given: Vec::new() }))
}

fn read_approval(
    repository: &Repository,
    key: &Key,
    plan: Sha256,
    approvers: Approvers<'_>,
    now: Timestamp,
) -> Result<Result<Given, String>, ApprovalError> {
    let verified = read(repository, key)?.and_then(|object| verify(&object, APPROVAL_PREDICATE_TYPE, plan, approvers, now));
    Ok(verified.and_then(|proven| {
        let approval = proven.approval().map_err(|error| error.to_string())?;
        Ok(Given { approval, by: proven.by })
    }))
}

/// Uses a request up, durably, before its plan runs: whoever does that is the only one.
///
/// # Errors
///
/// [`ApprovalError::Spent`] if somebody else was first.
pub fn spend(repository: &Repository, request: &Asked, approvals: &[ApprovalFacts], by: &str, now: Timestamp) -> Result<(), ApprovalError> {
    let plan = request.request.plan;
    let used = Used {
        format: FORMAT_VERSION,
        plan,
        request: request.id,
        at: now,
        by: by.to_owned(),
        run: crate::random::id(),
        approvals: approvals.iter().map(|facts| facts.approver.clone()).collect(),
    };
    match create_or_mine(repository.store(), &layout::approval_used(plan, request.id), &to_json(&used))? {
        true => Ok(()),
        false => Err(ApprovalError::Spent(plan)),
    }
}

#[cfg(test)]
mod tests;
