//! The audit log, as values: what a record says, which records belong together, and what two accounts of one log come to (format 13).
//!
//! Signatures and trees are the engine's. Here is what stands in a record, and what it means when a checkpoint, or this host's own
//! journal, tells of another log than the one in the repository.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::policy::{ActionClass, Actor, BreakGlass, DeletionFacts, Facts, Operation, TargetFacts};
use crate::repository::backup_id::BackupId;
use crate::repository::layout;
use crate::repository::{FormatError, Id, Sha256};
use crate::verify::{Finding, FindingKind};

/// Version of a record.
pub const EVENT_SCHEMA: u32 = 1;

/// The most bytes of a record. An entry bundle of C2SP's tlog-tiles gives each entry 16 bits for its length; the signature takes some.
pub const MAX_RECORD_BYTES: usize = 60_000;

/// An operation that began so long ago and did not end is over: its process died, or its host.
pub const UNFINISHED_AFTER: SignedDuration = SignedDuration::from_hours(24);

const WHAT: &str = "audit record";

/// Where in an operation a record was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Before it: the decision is known. One that was denied has no end.
    Start,
    /// Behind it: what became of it is known.
    End,
}

/// What was decided, and by what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// It may be done.
    pub allow: bool,
    /// Why, or why not.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// SHA-256 of the policy that decided, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Sha256>,
    /// What evaluated it: `embedded`, `opa`, `none`.
    pub engine: String,
    /// Why there was no decision, in a word: `undefined`, `timeout`. It is a no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

/// What became of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The exit code of the command.
    pub exit_code: u8,
    /// Why it failed, or what it made; one line, without secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Findings that it ended with.
    #[serde(default)]
    pub findings: u64,
}

/// One event: the start or the end of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// [`EVENT_SCHEMA`].
    pub schema: u32,
    /// Random; no other event has it.
    pub id: Id,
    /// By the clock of the host.
    pub time: Timestamp,
    /// Start or end.
    pub phase: Phase,
    /// Of an end: the id of its start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Id>,
    /// What is done.
    pub operation: Operation,
    /// Its class.
    pub action: ActionClass,
    /// Only the plan was asked for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// By whom.
    pub actor: Actor,
    /// On which host.
    pub host: String,
    /// `policy.environment` of the configuration.
    pub environment: String,
    /// By which program.
    pub program: String,
    /// The id that this program's log lines and its trace have (docs/logs.md).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<Id>,
    /// Where the repository is, without credentials. Its id is beside the event, in the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// About which backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupId>,
    /// By which plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Sha256>,
    /// Who approved that plan.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvers: Vec<String>,
    /// Where a restore goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<TargetFacts>,
    /// What is taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion: Option<DeletionFacts>,
    /// Of a start: what was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decided>,
    /// Somebody went around the rules, and this is why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub break_glass: Option<BreakGlass>,
    /// Of an end: what became of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

impl Event {
    /// The start of what `facts` are about, with what was decided about it. `id` is a fresh random one.
    pub fn start(id: Id, program: &str, facts: &Facts, decision: Decided) -> Self {
        let plan = facts.plan.as_ref();
        Self {
            schema: EVENT_SCHEMA,
            id,
            time: facts.time,
            phase: Phase::Start,
            start: None,
            operation: facts.operation,
            action: facts.action,
            dry_run: facts.dry_run,
            actor: facts.actor.clone(),
            host: facts.host.clone(),
            environment: facts.environment.clone(),
            program: program.to_owned(),
            trace: None,
            url: facts.repository.as_ref().map(|repository| repository.url.clone()),
            backup: facts.backup.as_ref().map(|backup| backup.id.clone()),
            plan: plan.map(|plan| plan.digest),
            approvers: plan.into_iter().flat_map(|plan| &plan.approvals).map(|approval| approval.approver.clone()).collect(),
            target: facts.target.clone(),
            deletion: facts.deletion.clone(),
            decision: Some(decision),
            break_glass: facts.break_glass.clone(),
            outcome: None,
        }
    }

    /// The end of an operation that this event is the start of. `backup` is the one that it made, where it made one.
    pub fn end(&self, id: Id, time: Timestamp, backup: Option<BackupId>, outcome: Outcome) -> Self {
        Self {
            id,
            time,
            phase: Phase::End,
            start: Some(self.id),
            backup: backup.or_else(|| self.backup.clone()),
            decision: None,
            outcome: Some(outcome),
            ..self.clone()
        }
    }

    /// Whether it was decided that it must not be done.
    pub fn is_denied(&self) -> bool {
        self.decision.as_ref().is_some_and(|decision| !decision.allow)
    }

    /// The same with texts no longer than a record can hold: whoever wrote a long reason must not keep the record from being made.
    #[must_use]
    pub fn clipped(mut self) -> Self {
        let mut most = 4096;
        while self.to_json().len() > MAX_RECORD_BYTES && most > 0 {
            most /= 2;
            let clip = |text: &mut String| {
                if let Some((at, _)) = text.char_indices().nth(most) {
                    text.truncate(at);
                    text.push('…');
                }
            };
            let [host, environment, program, user] = [&mut self.host, &mut self.environment, &mut self.program, &mut self.actor.user];
            [host, environment, program, user].into_iter().for_each(clip);
            self.actor.sudo_user.iter_mut().chain(&mut self.url).for_each(clip);
            self.break_glass.iter_mut().for_each(|broken| clip(&mut broken.reason));
            self.outcome.iter_mut().filter_map(|outcome| outcome.message.as_mut()).for_each(clip);
            self.target.iter_mut().flat_map(|target| target.pgdata.iter_mut().chain(&mut target.artifacts)).for_each(clip);
            let lists = self.decision.iter_mut().map(|decision| &mut decision.reasons);
            let lists = lists.chain([&mut self.approvers]).chain(self.deletion.iter_mut().map(|deletion| &mut deletion.forget));
            for list in lists {
                list.iter_mut().for_each(clip);
                list.truncate(most.max(1));
            }
        }
        self
    }

    /// Canonical JSON: no blanks, members sorted by their names, one line.
    pub fn to_json(&self) -> String {
        canonical(&serde_json::to_value(self).expect("an event has text keys only"))
    }
}

/// JSON without blanks, the members of every object sorted by the bytes of their names.
fn canonical(value: &serde_json::Value) -> String {
    use serde_json::Value;
    match value {
        Value::Object(members) => {
            // Not left to the map, whose order is a feature that any dependency may switch.
            let sorted: BTreeMap<&str, &Value> = members.iter().map(|(name, value)| (name.as_str(), value)).collect();
            let members: Vec<String> =
                sorted.into_iter().map(|(name, value)| format!("{}:{}", Value::String(name.to_owned()), canonical(value))).collect();
            format!("{{{}}}", members.join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
        other => other.to_string(),
    }
}

/// What a record is, beside the event: where it belongs. It is signed with it, so that a record counts at its place only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its index in the log, from 0.
    pub index: u64,
    /// The repository.
    pub repository: Id,
    /// The event's id.
    pub id: Id,
}

/// The text of a record: canonical JSON of the event with `index` and `repository`, and one newline.
pub fn record_text(event: &Event, index: u64, repository: Id) -> String {
    let mut value = serde_json::to_value(event).expect("an event has text keys only");
    value["index"] = index.into();
    value["repository"] = repository.to_string().into();
    canonical(&value) + "\n"
}

/// A record that was read. What it says is to be believed only after its signature was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where it belongs.
    pub place: Place,
    /// What it says; `None`: a later version of lifeboat wrote it, and this one does not know what it means.
    pub event: Option<Event>,
}

impl Record {
    /// Reads the text of a record.
    pub fn decode(text: &[u8]) -> Result<Self, FormatError> {
        let json = |e: serde_json::Error| FormatError::malformed(WHAT, e.to_string());
        let place: Place = serde_json::from_slice(text).map_err(json)?;
        Ok(Self { place, event: serde_json::from_slice(text).ok() })
    }
}

/// How an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It ended with exit code 0.
    Done,
    /// It ended with findings: exit code 3.
    Findings,
    /// It ended in another way.
    Failed,
    /// It was not allowed.
    Denied,
    /// It began, and has not ended yet.
    Running,
    /// It began longer than [`UNFINISHED_AFTER`] ago, and nobody wrote that it ended.
    Unfinished,
    /// There is an end, and not its start.
    Headless,
}

impl State {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Findings => "findings",
            Self::Failed => "failed",
            Self::Denied => "denied",
            Self::Running => "running",
            Self::Unfinished => "unfinished",
            Self::Headless => "headless",
        }
    }
}

/// One operation: its start and its end, as far as there are records of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its place in the log: the first of both; `None`: it is only in this host's journal yet.
    pub index: Option<u64>,
    /// How it stands.
    pub state: State,
    /// Its start.
    pub start: Option<Event>,
    /// Its end.
    pub end: Option<Event>,
}

impl Entry {
    /// The record that says most of what was done: its start, or, where that is not there, its end.
    pub fn event(&self) -> &Event {
        self.start.as_ref().or(self.end.as_ref()).expect("an entry is made of a record")
    }
}

/// Joins starts and ends, in the order in which operations first appear. `records` are events with their places in the log.
pub fn entries(records: impl IntoIterator<Item = (Option<u64>, Event)>, now: Timestamp) -> Vec<Entry> {
    let mut all: Vec<Entry> = Vec::new();
    let mut by_start: BTreeMap<Id, usize> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for (index, event) in records {
        // The same event from the repository and from the journal.
        if !seen.insert(event.id) {
            continue;
        }
        let operation = event.start.unwrap_or(event.id);
        let at = *by_start.entry(operation).or_insert_with(|| {
            all.push(Entry { index, state: State::Running, start: None, end: None });
            all.len() - 1
        });
        let slot = if event.phase == Phase::Start { &mut all[at].start } else { &mut all[at].end };
        slot.get_or_insert(event);
    }
    for entry in &mut all {
        entry.state = standing(entry.start.as_ref(), entry.end.as_ref(), now);
    }
    all
}

fn standing(start: Option<&Event>, end: Option<&Event>, now: Timestamp) -> State {
    match (start, end) {
        (Some(start), None) if start.is_denied() => State::Denied,
        (Some(start), None) if now.duration_since(start.time) > UNFINISHED_AFTER => State::Unfinished,
        (Some(_), None) => State::Running,
        (None, Some(_)) => State::Headless,
        (_, Some(end)) => match end.outcome.as_ref().map(|outcome| outcome.exit_code) {
            Some(0) => State::Done,
            Some(3) => State::Findings,
            _ => State::Failed,
        },
        (None, None) => State::Running,
    }
}

/// Which operations are wanted. What is not said does not count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Not before.
    pub since: Option<Timestamp>,
    /// Not after.
    pub until: Option<Timestamp>,
    /// One of these.
    pub operations: Vec<Operation>,
    /// By this user, or whoever called `sudo`.
    pub actor: Option<String>,
    /// That stand so.
    pub states: Vec<State>,
    /// About this backup.
    pub backup: Option<BackupId>,
    /// On this host.
    pub host: Option<String>,
}

impl Filter {
    /// Whether an operation is wanted.
    pub fn wants(&self, entry: &Entry) -> bool {
        let event = entry.event();
        let about = |id: &BackupId| [&entry.start, &entry.end].into_iter().flatten().any(|event| event.backup.as_ref() == Some(id));
        let by = |name: &String| event.actor.user == *name || event.actor.sudo_user.as_ref() == Some(name);
        self.since.is_none_or(|since| event.time >= since)
            && self.until.is_none_or(|until| event.time <= until)
            && (self.operations.is_empty() || self.operations.contains(&event.operation))
            && self.actor.as_ref().is_none_or(by)
            && (self.states.is_empty() || self.states.contains(&entry.state))
            && self.backup.as_ref().is_none_or(about)
            && self.host.as_ref().is_none_or(|host| event.host == *host)
    }
}

/// The head of a log at some moment, told by somebody: a checkpoint whose signature was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// Records it is of.
    pub size: u64,
    /// The root of their tree.
    pub root: Sha256,
    /// Where it was found.
    pub object: String,
    /// The backup that carries it.
    pub backup: Option<String>,
}

/// What a checkpoint says about a log of `size` records, whose tree of the first n has the root `root(n)` (`None`: records are missing, so nobody
/// can tell). `None`: it fits.
pub fn judge(anchor: &Anchor, size: u64, root: impl Fn(u64) -> Option<Sha256>) -> Option<Finding> {
    let (kind, problem) = if anchor.size > size {
        (FindingKind::Missing, format!("it is of {} records, and the log has {size}: its end was cut off", anchor.size))
    } else {
        match root(anchor.size) {
            Some(found) if found == anchor.root => return None,
            Some(_) => {
                (FindingKind::Corrupt, "it is of another log than the one that is here: records were changed or exchanged".to_owned())
            }
            None => (FindingKind::NotChecked, "records that it covers are missing, so it could not be compared".to_owned()),
        }
    };
    Some(Finding { kind, backup: anchor.backup.clone(), object: anchor.object.clone(), file: None, problem })
}

/// A record that this host has stored, by its own journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// The event.
    pub id: Id,
    /// In which repository.
    pub repository: Id,
    /// Where.
    pub index: u64,
    /// Hash of the leaf (RFC 6962, section 2.1).
    pub leaf: Sha256,
}

/// Compares the journal of a host with a log of `size` records; `leaf(n)` is the hash of the leaf n, `None` if it is missing.
pub fn judge_journal(stored: &Stored, size: u64, leaf: impl Fn(u64) -> Option<Sha256>) -> Option<Finding> {
    let (kind, problem) = match leaf(stored.index) {
        Some(found) if found == stored.leaf => return None,
        Some(_) => (FindingKind::Corrupt, "it is another record than the one that this host's journal has"),
        None if stored.index >= size => (FindingKind::Missing, "this host stored it, and the log ends before it"),
        // That it is missing is a finding already.
        None => return None,
    };
    let object = layout::audit_leaf(stored.index).to_string();
    Some(Finding { kind, backup: None, object, file: None, problem: format!("{problem} (event {})", stored.id) })
}

#[cfg(test)]
mod tests;
