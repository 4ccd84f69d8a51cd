//! Approvals: who asked for a plan to run, who agreed, and which of that counts.
//!
//! Values and rules. Whether a statement was signed, and by whom, is the engine's to find out; here is decided what follows from it: an
//! approval counts for one request of one plan, in one repository, environment and host, for a while, once, and once for each *person*. People
//! have several keys and names, and who has two keys is not two people: so signers are compared by everything they are known by, and who
//! shares a name with the requester has approved their own request. Doubt never counts.

pub mod allowed_signers;

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::attestation::{APPROVAL_PREDICATE_TYPE, APPROVAL_REQUEST_PREDICATE_TYPE, Statement};
use crate::expire::CLOCK_TOLERANCE;
use crate::policy::{Actor, ApprovalFacts, ApproverKind, Operation};
use crate::repository::{FORMAT_VERSION, FormatError, Id, Sha256};

/// The namespace of SSH signatures over requests and approvals: a signature that was made for anything else is none here (`PROTOCOL.sshsig`
/// of OpenSSH, "namespace").
pub const SSH_NAMESPACE: &str = "lifeboat-approval@lifeboat.dev";

/// How long a request is open where nobody says: one shift, and the one after it.
pub const DEFAULT_LIFETIME: SignedDuration = SignedDuration::from_hours(24);

/// The longest that a configuration may allow. What was agreed to a week ago was agreed to in another world.
pub const MAX_LIFETIME: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Requests, and approvals of one request, that are read. Whoever may write to the repository can put more there; then some are not seen,
/// which never lets anything happen.
pub const MAX_STATEMENTS: usize = 256;

/// The longest reason or comment, in bytes: it is read by people, at night.
pub const MAX_TEXT_BYTES: usize = 2000;

/// That somebody wants a plan to run: the predicate of an `approval-request`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The format version.
    pub format: u32,
    /// What the plan does.
    pub operation: Operation,
    /// SHA-256 of the plan's JSON, byte for byte as it is stored.
    pub plan: Sha256,
    /// In which repository.
    pub repository: Id,
    /// Random: no two requests are one.
    pub nonce: Id,
    /// Who asks, by their own word. What counts is who signed.
    pub requester: String,
    /// As whom they work on their host.
    pub actor: Actor,
    /// Where the plan runs, and nowhere else.
    pub host: String,
    /// `policy.environment` there.
    pub environment: String,
    /// Why.
    pub reason: String,
    /// When the plan was made and this was asked.
    pub requested: Timestamp,
    /// Until when it may run.
    pub expires: Timestamp,
}

impl Request {
    /// The statement that is signed.
    pub fn statement(&self) -> Statement {
        statement(self.operation, self.plan, APPROVAL_REQUEST_PREDICATE_TYPE, self)
    }

    /// The request in a statement whose signature was verified.
    pub fn of(statement: &Statement) -> Result<Self, FormatError> {
        let request: Self = predicate(statement, APPROVAL_REQUEST_PREDICATE_TYPE, "approval request")?;
        check("approval request", statement, request.format, request.operation, request.plan)?;
        Ok(request)
    }
}

/// What a request is called by those who agree to it: SHA-256 of its statement, in compact JSON. Another statement, by another signer or with
/// other words, is another request.
pub fn request_id(statement: &Statement) -> Sha256 {
    Sha256::of(&statement.to_bytes())
}

/// That somebody agrees: the predicate of an `approval`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// The format version.
    pub format: u32,
    /// What the plan does.
    pub operation: Operation,
    /// SHA-256 of the plan's JSON.
    pub plan: Sha256,
    /// Which request: [`request_id`].
    pub request: Sha256,
    /// Who agrees, by their own word. What counts is who signed.
    pub approver: String,
    /// What they want to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// When.
    pub granted: Timestamp,
    /// Until when they do. It is over with the request, whatever stands here.
    pub expires: Timestamp,
}

impl Approval {
    /// The statement that is signed.
    pub fn statement(&self) -> Statement {
        statement(self.operation, self.plan, APPROVAL_PREDICATE_TYPE, self)
    }

    /// The approval in a statement whose signature was verified.
    pub fn of(statement: &Statement) -> Result<Self, FormatError> {
        let approval: Self = predicate(statement, APPROVAL_PREDICATE_TYPE, "approval")?;
        check("approval", statement, approval.format, approval.operation, approval.plan)?;
        Ok(approval)
    }
}

fn statement(operation: Operation, plan: Sha256, predicate_type: &str, predicate: &impl Serialize) -> Statement {
    let predicate = serde_json::to_value(predicate).expect("text keys only");
    Statement::new(&operation.name(), plan.0, predicate_type, predicate)
}

fn predicate<T: for<'de> Deserialize<'de>>(statement: &Statement, predicate_type: &str, what: &'static str) -> Result<T, FormatError> {
    if statement.predicate_type != predicate_type {
        return Err(FormatError::malformed(what, "it is another kind of statement"));
    }
    T::deserialize(&statement.predicate).map_err(|error| FormatError::malformed(what, error.to_string()))
}

/// What a predicate says of itself is what its statement says of it.
fn check(what: &'static str, statement: &Statement, format: u32, operation: Operation, plan: Sha256) -> Result<(), FormatError> {
    if format > FORMAT_VERSION {
        return Err(FormatError::TooNew { what, found: format });
    }
    match statement.subject.as_slice() {
        [subject] if subject.name == operation.name() && subject.sha256() == Some(plan.0) => Ok(()),
        _ => Err(FormatError::malformed(what, "its subject is another than its plan")),
    }
}

/// Two names of one person that would make them two, or one name of two.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tell persons apart: {name} is said to be {first} and {second}")]
pub struct PersonsError {
    /// What is given twice.
    pub name: String,
    /// To this one.
    pub first: String,
    /// And to that one.
    pub second: String,
}

/// Which names are whose: keys, addresses, users of hosts. Names are compared without regard to case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Persons {
    of: BTreeMap<String, String>,
}

impl Persons {
    /// From the names of each person.
    pub fn new<'a>(persons: impl IntoIterator<Item = (&'a str, &'a [String])>) -> Result<Self, PersonsError> {
        let mut of: BTreeMap<String, String> = BTreeMap::new();
        for (person, names) in persons {
            let person = folded(person);
            for name in std::iter::once(person.clone()).chain(names.iter().map(|name| folded(name))) {
                if let Some(first) = of.insert(name.clone(), person.clone()).filter(|first| *first != person) {
                    return Err(PersonsError { name, first, second: person });
                }
            }
        }
        Ok(Self { of })
    }

    /// Whose name this is, if somebody said.
    pub fn known(&self, name: &str) -> Option<&str> {
        self.of.get(&folded(name)).map(String::as_str)
    }

    /// Whose name this is; their own, if nobody said.
    pub fn person(&self, name: &str) -> String {
        self.known(name).map_or_else(|| folded(name), str::to_owned)
    }
}

fn folded(name: &str) -> String {
    name.trim().to_lowercase()
}

/// Who signed a statement, as the engine found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// How.
    pub kind: ApproverKind,
    /// The person, if the signature is one's: a key of a host is nobody's.
    pub person: Option<String>,
    /// For people, where there is no person.
    pub shown: String,
    /// Everything they are known by: person, addresses, the key itself. Who shares one of them is the same.
    names: BTreeSet<String>,
}

impl Signed {
    /// By somebody who has these names, the one that people know first. Without a `person` they are nobody's but for `persons`.
    pub fn new(kind: ApproverKind, person: Option<&str>, names: &[String], persons: &Persons) -> Self {
        let known = || names.iter().find_map(|name| persons.known(name)).map(str::to_owned);
        let person = person.map(|person| persons.person(person)).or_else(known);
        let shown = person.clone().or_else(|| names.first().cloned()).unwrap_or_else(|| "nobody".to_owned());
        // What somebody is called, and whose name that is: both are theirs.
        let names = names.iter().flat_map(|name| [folded(name), persons.person(name)]).chain(person.clone()).collect();
        Self { kind, person, shown, names }
    }

    /// Whether both are one person.
    pub fn is_same_as(&self, other: &Self) -> bool {
        !self.names.is_disjoint(&other.names)
    }

    /// Whether this is the person behind a user of a host: by the name that somebody gave that user, or because they are called so
    /// (`alice` and `alice@example.com`).
    pub fn is_user(&self, user: &str, persons: &Persons) -> bool {
        let (user, person) = (folded(user), persons.person(user));
        self.names.iter().any(|name| *name == person || *name == user || name.split_once('@').is_some_and(|(local, _)| local == user))
    }

    /// Whether this is who works so on a host.
    pub fn is_actor(&self, actor: &Actor, persons: &Persons) -> bool {
        std::iter::once(&actor.user).chain(&actor.sudo_user).any(|user| self.is_user(user, persons))
    }
}

/// An approval that was verified, for whatever it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// What was signed.
    pub approval: Approval,
    /// By whom.
    pub by: Signed,
}

/// A request that was verified, and everything that was verified of what stands with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// [`request_id`] of its statement.
    pub id: Sha256,
    /// What was signed.
    pub request: Request,
    /// By whom.
    pub by: Signed,
    /// A run has begun.
    pub spent: bool,
    /// Approvals.
    pub given: Vec<Given>,
}

/// What is asked of a request: the plan at hand, where it would run, and when.
#[derive(Debug, Clone)]
pub struct Circumstances<'a> {
    /// The time.
    pub now: Timestamp,
    /// The plan.
    pub plan: Sha256,
    /// What it does; `None`: whatever the request says.
    pub operation: Option<Operation>,
    /// The repository.
    pub repository: Id,
    /// The host; `None`: whichever.
    pub host: Option<&'a str>,
    /// The environment; `None`: whichever.
    pub environment: Option<&'a str>,
    /// The longest that a request may be open.
    pub lifetime: SignedDuration,
}

/// Why a request or an approval does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The request is of another plan.
    #[error("it is for plan {0}")]
    OtherPlan(Sha256),
    /// The plan is for something else.
    #[error("it is for {0}")]
    OtherOperation(String),
    /// It was made for another repository.
    #[error("it is for repository {0}")]
    OtherRepository(Id),
    /// It is to run somewhere else.
    #[error("it is for host {0}")]
    OtherHost(String),
    /// It is to run somewhere else.
    #[error("it is for environment {0}")]
    OtherEnvironment(String),
    /// It agrees to another request of the plan.
    #[error("it is for request {0}")]
    OtherRequest(Sha256),
    /// Too late.
    #[error("it expired at {0}")]
    Expired(Timestamp),
    /// Its time cannot be.
    #[error("its time is in the future: {0}")]
    Future(Timestamp),
    /// It agrees to what nobody had asked for yet.
    #[error("it was given before it was asked for, at {0}")]
    TooEarly(Timestamp),
    /// Nobody may ask for so long.
    #[error("it would be open until {expires}, and a request is open for {} hours at most", .most.as_hours())]
    TooLong {
        /// What it says.
        expires: Timestamp,
        /// What is allowed.
        most: SignedDuration,
    },
    /// The plan has run.
    #[error("it was used: a plan is approved for one run")]
    Spent,
    /// A host's key, a robot's identity.
    #[error("its signer is no person: approvals.persons or trust has to say whose it is")]
    NoPerson,
    /// Whoever asks does not answer.
    #[error("they asked for it themselves")]
    Requester,
    /// Once for each person.
    #[error("{0} is counted already")]
    Counted(String),
}

/// An approval, or somebody's attempt at one, that does not count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotCounting {
    /// Whose.
    pub who: String,
    /// Why not.
    pub why: String,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// Whether the plan may run on it at all.
    pub standing: Result<(), Refusal>,
    /// Approvals that count, if it stands: one for each person, never the requester's.
    pub counting: Vec<ApprovalFacts>,
    /// Those that do not.
    pub not_counting: Vec<(Signed, Refusal)>,
}

/// Which approvals of a request count.
pub fn judge(asked: &Asked, persons: &Persons, here: &Circumstances<'_>) -> Judged {
    let standing = standing(asked, here);
    let mut given: Vec<&Given> = asked.given.iter().collect();
    // In an order of their own: where they come from must not matter.
    given.sort_by(|a, b| {
        (a.approval.granted, &a.by.shown, &a.approval.approver).cmp(&(b.approval.granted, &b.by.shown, &b.approval.approver))
    });
    let groups = groups(asked, &given, persons);
    let (mut counting, mut not_counting) = (Vec::new(), Vec::new());
    let mut counted: BTreeMap<usize, String> = BTreeMap::new();
    for (index, one) in given.iter().enumerate() {
        let group = groups[index + 1];
        let refusal = match approval_standing(asked, &one.approval, here) {
            Err(refusal) => Some(refusal),
            Ok(()) if group == groups[0] => Some(Refusal::Requester),
            Ok(()) if one.by.person.is_none() => Some(Refusal::NoPerson),
            Ok(()) => counted.get(&group).cloned().map(Refusal::Counted),
        };
        match (refusal, &one.by.person) {
            (None, Some(person)) => {
                counted.insert(group, person.clone());
                let expires = one.approval.expires.min(asked.request.expires);
                let facts = ApprovalFacts { approver: person.clone(), kind: one.by.kind, granted: one.approval.granted, expires };
                counting.push(facts);
            }
            (refusal, _) => not_counting.push((one.by.clone(), refusal.unwrap_or(Refusal::NoPerson))),
        }
    }
    if standing.is_err() {
        counting.clear();
    }
    Judged { standing, counting, not_counting }
}

/// Of several requests, the one that a plan runs on: the one with the most approvals that count, then the newest.
pub fn choose(judged: &[(Asked, Judged)]) -> Option<&(Asked, Judged)> {
    let standing = judged.iter().filter(|(_, judged)| judged.standing.is_ok());
    standing.max_by_key(|(asked, judged)| (judged.counting.len(), asked.request.requested, asked.id))
}

/// Numbers of persons: the requester's first, then that of each approval. Who shares a name is one, and who shares one with that one too.
fn groups(asked: &Asked, given: &[&Given], persons: &Persons) -> Vec<usize> {
    let mut groups: Vec<usize> = (0..=given.len()).collect();
    let mut join = |a: usize, b: usize| {
        let (from, to) = (groups[a].max(groups[b]), groups[a].min(groups[b]));
        groups.iter_mut().filter(|group| **group == from).for_each(|group| *group = to);
    };
    for (index, one) in given.iter().enumerate() {
        if one.by.is_same_as(&asked.by) || one.by.is_actor(&asked.request.actor, persons) {
            join(0, index + 1);
        }
        for (other, earlier) in given[..index].iter().enumerate() {
            if one.by.is_same_as(&earlier.by) {
                join(other + 1, index + 1);
            }
        }
    }
    groups
}

fn standing(asked: &Asked, here: &Circumstances<'_>) -> Result<(), Refusal> {
    let request = &asked.request;
    if request.plan != here.plan {
        return Err(Refusal::OtherPlan(request.plan));
    }
    if here.operation.is_some_and(|operation| operation != request.operation) {
        return Err(Refusal::OtherOperation(request.operation.name()));
    }
    if request.repository != here.repository {
        return Err(Refusal::OtherRepository(request.repository));
    }
    if here.host.is_some_and(|host| host != request.host) {
        return Err(Refusal::OtherHost(request.host.clone()));
    }
    if here.environment.is_some_and(|environment| environment != request.environment) {
        return Err(Refusal::OtherEnvironment(request.environment.clone()));
    }
    if asked.spent {
        return Err(Refusal::Spent);
    }
    in_time(request.requested, request.expires, here.now)?;
    if request.expires > later(request.requested, here.lifetime) {
        return Err(Refusal::TooLong { expires: request.expires, most: here.lifetime });
    }
    Ok(())
}

fn approval_standing(asked: &Asked, approval: &Approval, here: &Circumstances<'_>) -> Result<(), Refusal> {
    if approval.plan != asked.request.plan {
        return Err(Refusal::OtherPlan(approval.plan));
    }
    if approval.operation != asked.request.operation {
        return Err(Refusal::OtherOperation(approval.operation.name()));
    }
    if approval.request != asked.id {
        return Err(Refusal::OtherRequest(approval.request));
    }
    if later(approval.granted, CLOCK_TOLERANCE) < asked.request.requested {
        return Err(Refusal::TooEarly(approval.granted));
    }
    in_time(approval.granted, approval.expires, here.now)
}

fn in_time(from: Timestamp, until: Timestamp, now: Timestamp) -> Result<(), Refusal> {
    if from > later(now, CLOCK_TOLERANCE) {
        return Err(Refusal::Future(from));
    }
    if until <= now { Err(Refusal::Expired(until)) } else { Ok(()) }
}

fn later(at: Timestamp, span: SignedDuration) -> Timestamp {
    at.checked_add(span).unwrap_or(Timestamp::MAX)
}

/// `used.json`: that a run of the plan has begun. Whoever wrote it, it keeps the plan from running again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// The format version.
    pub format: u32,
    /// The plan.
    pub plan: Sha256,
    /// The request.
    pub request: Sha256,
    /// When the run began.
    pub at: Timestamp,
    /// Host and program that ran it.
    pub by: String,
    /// Random: of two that begin at once, one finds that this is not its own.
    pub run: Id,
    /// Who had approved.
    pub approvals: Vec<String>,
}

#[cfg(test)]
mod tests;
