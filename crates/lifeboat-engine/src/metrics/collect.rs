//! From a [`Status`] to series.

use std::collections::BTreeMap;

use jiff::Timestamp;
use lifeboat_core::alert;
use lifeboat_core::drill;
use lifeboat_core::status::answer::in_future;
use lifeboat_core::status::{BackupSeen, BackupState, Observed, Outcome, Severity, SignatureState, Status, Verdict};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use serde::Serialize;

use super::AgentFacts;
use super::catalogue::{self as c, CATALOGUE, Kind, Metric};

/// A number.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Value {
    Whole(i64),
    Real(f64),
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        // What is more than 8 EiB or 292 billion years is so on any dashboard.
        Self::Whole(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::from(number as u64)
    }
}

impl From<bool> for Value {
    fn from(yes: bool) -> Self {
        Self::Whole(i64::from(yes))
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Real(number)
    }
}

impl From<Timestamp> for Value {
    fn from(moment: Timestamp) -> Self {
        match (moment.as_second(), moment.subsec_millisecond()) {
            (seconds, 0) => Self::Whole(seconds),
            (seconds, millis) => Self::Real(seconds as f64 + f64::from(millis) / 1000.0),
        }
    }
}

/// The labels of a series, in the order of the catalogue.
type Labels = Vec<(&'static str, String)>;

/// All series. One that is set twice has the last value: two of one name and labels would make the whole text unreadable.
#[derive(Debug, Default)]
pub(super) struct Series(BTreeMap<&'static str, BTreeMap<Labels, Value>>);

impl Series {
    fn set(&mut self, metric: Metric, labels: &[&str], value: impl Into<Value>) {
        debug_assert_eq!(metric.labels.len(), labels.len(), "{}", metric.name);
        let labels = metric.labels.iter().copied().zip(labels.iter().map(|text| (*text).to_owned())).collect();
        self.0.entry(metric.name).or_default().insert(labels, value.into());
    }

    /// Sets what is known.
    fn maybe(&mut self, metric: Metric, labels: &[&str], value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.set(metric, labels, value);
        }
    }

    /// The same of a measured number, which is none if it is not finite.
    fn measured(&mut self, metric: Metric, labels: &[&str], value: Option<f64>) {
        self.maybe(metric, labels, value.filter(|value| value.is_finite()));
    }

    /// 1 for the word that holds and 0 for all others: the last label is the word.
    fn one_of<T: Serialize + Copy>(&mut self, metric: Metric, labels: &[&str], all: &[T], holds: T) {
        let mut set = |one: T, value: bool| self.set(metric, &[labels, &[word(one).as_str()]].concat(), value);
        all.iter().for_each(|one| set(*one, false));
        set(holds, true);
    }
}

/// As it stands in the JSON of a status.
fn word(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        other => unreachable!("an enum without fields is a text: {other:?}"),
    }
}

/// The labels of an info are those of its family.
const NONE_MORE: [(&str, &str); 0] = [];

impl Collector for Series {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        for metric in CATALOGUE {
            let Some(series) = self.0.get(metric.name) else { continue };
            let unit = metric.unit();
            let mut family = encoder.encode_descriptor(metric.base(), metric.help, unit.as_ref(), metric.kind.encoded())?;
            for (labels, value) in series {
                let mut one = family.encode_family(labels)?;
                match (metric.kind, *value) {
                    (Kind::Gauge, Value::Whole(number)) => one.encode_gauge(&number)?,
                    (Kind::Gauge, Value::Real(number)) => one.encode_gauge(&number)?,
                    (Kind::Counter, Value::Whole(number)) => one.encode_counter::<NoLabelSet, _, f64>(&number.unsigned_abs(), None)?,
                    (Kind::Counter, Value::Real(number)) => one.encode_counter::<NoLabelSet, _, f64>(&number, None)?,
                    (Kind::Info, _) => one.encode_info(&NONE_MORE)?,
                }
            }
        }
        Ok(())
    }
}

/// All series of a status.
pub(super) fn collect(status: &Status, agent: Option<&AgentFacts>) -> Series {
    let mut out = Series::default();
    let observed = &status.observed;
    look(observed, &mut out);
    answer(status, &mut out);
    server(observed, &mut out);
    repositories(observed, &mut out);
    backups(status, &mut out);
    wal(observed, &mut out);
    if let Some(artifacts) = &observed.artifacts {
        out.set(c::ARTIFACTS, &[], artifacts.count);
        out.set(c::ARTIFACTS_BYTES, &[], artifacts.bytes);
        out.maybe(c::ARTIFACTS_CHANGED, &[], artifacts.changed);
    }
    drills(observed, &mut out);
    keys(observed, &mut out);
    for disk in &observed.disks {
        out.set(c::DISK_FREE, &[&disk.what, &disk.path], disk.free_bytes);
        out.set(c::DISK_SIZE, &[&disk.what, &disk.path], disk.total_bytes);
    }
    runs(observed, &mut out);
    tasks(observed, &mut out);
    alerts(status, &mut out);
    if let Some(agent) = agent {
        facts(agent, &mut out);
    }
    out
}

fn look(observed: &Observed, out: &mut Series) {
    // "lifeboat 0.1.0"
    let version = observed.program.rsplit(' ').next().unwrap_or_default();
    out.set(c::BUILD, &[version], true);
    out.set(c::LOOKED, &[], observed.at);
    out.measured(c::LOOK_TOOK, &[], Some(observed.took_seconds));
    out.set(c::UNSEEN, &[], observed.unseen.len());
    for unseen in &observed.unseen {
        out.set(c::UNSEEN_THING, &[&unseen.what], true);
    }
}

fn answer(status: &Status, out: &mut Series) {
    let (answer, objectives) = (&status.answer, &status.observed.objectives);
    let recoverable = match answer.verdict {
        Verdict::Recoverable | Verdict::AtRisk => Some(true),
        Verdict::NotRecoverable => Some(false),
        Verdict::Unknown => None,
    };
    out.maybe(c::RECOVERABLE, &[], recoverable);
    let all = [Verdict::Recoverable, Verdict::AtRisk, Verdict::NotRecoverable, Verdict::Unknown];
    out.one_of(c::ANSWER, &[], &all, answer.verdict);
    out.set(c::REASONS, &[], answer.reasons.len());
    out.maybe(c::RPO, &[], answer.rpo_seconds);
    out.set(c::RPO_OBJECTIVE, &[], objectives.rpo_seconds);
    out.set(c::RTO_OBJECTIVE, &[], objectives.rto_seconds);
    out.set(c::DRILL_OBJECTIVE, &[], objectives.drill_seconds);
    out.maybe(c::OBJECTIVE_MET, &["rpo"], answer.rpo_met);
    out.maybe(c::OBJECTIVE_MET, &["rto"], answer.rto_met);
    out.maybe(c::OBJECTIVE_MET, &["drill"], answer.proof_fresh);
    out.maybe(c::WINDOW_START, &[], answer.from);
    out.maybe(c::WINDOW_END, &[], answer.to);
}

fn server(observed: &Observed, out: &mut Series) {
    let Some(server) = &observed.server else { return };
    let answered = server.version_num.is_some() || server.system_id.is_some() || server.position.is_some();
    if server.trouble.is_some() {
        out.set(c::SERVER_UP, &[], false);
    } else if answered {
        out.set(c::SERVER_UP, &[], true);
        out.set(c::SERVER_IN_RECOVERY, &[], server.in_recovery);
        out.maybe(c::SERVER_TIMELINE, &[], server.timeline.map(u64::from));
    }
}

fn repositories(observed: &Observed, out: &mut Series) {
    for one in &observed.repositories {
        out.set(c::REPOSITORY_UP, &[&one.name, &one.part], one.trouble.is_none());
        if one.part == "primary" {
            continue;
        }
        out.set(c::REPOSITORY_MISSED_EVERYTHING, &[&one.name], one.missed_everything);
        out.maybe(c::REPOSITORY_MISSED, &[&one.name], (!one.missed_everything).then_some(one.missed));
        // Found by comparing two lists: both have to be there.
        let compared = one.trouble.is_none() && observed.backups.is_some();
        out.maybe(c::REPOSITORY_LACKS, &[&one.name], compared.then_some(one.lacks.len()));
    }
}

/// The moment that a backup keeps: its database's, or when it began.
fn keeps(backup: &BackupSeen) -> Option<Timestamp> {
    backup.consistent_at.or(backup.started)
}

fn backups(status: &Status, out: &mut Series) {
    let Some(backups) = &status.observed.backups else { return };
    for state in [BackupState::Healthy, BackupState::Degraded, BackupState::Unreadable] {
        for signature in [SignatureState::Valid, SignatureState::NotValid, SignatureState::NotChecked] {
            let of_these = || backups.iter().filter(|one| (one.state, one.signature) == (state, signature) && one.whole_until.is_none());
            let labels: &[&str] = &[&word(state), &word(signature)];
            out.set(c::BACKUPS, labels, of_these().count());
            // One that is dated in the future would keep a rule from seeing for years that no other was taken.
            let dated = |moment: &Timestamp| !in_future(*moment, status.observed.at);
            out.maybe(c::BACKUPS_NEWEST, labels, of_these().filter_map(keeps).filter(dated).max());
        }
    }
    out.set(c::BACKUPS_STORED, &[], backups.iter().map(|one| one.stored_bytes).fold(0, u64::saturating_add));
    out.set(c::BACKUPS_EXPIRED, &[], backups.iter().filter(|one| one.whole_until.is_some()).count());
    out.set(c::BACKUPS_PINNED, &[], backups.iter().filter(|one| !one.pins.is_empty()).count());
    let first = |id: &String| backups.iter().find(|one| one.id == *id);
    let Some(backup) = status.answer.backup.as_ref().and_then(first) else { return };
    out.maybe(c::BACKUP_MOMENT, &[], keeps(backup));
    let took = backup.started.zip(backup.ended).map(|(started, ended)| ended.duration_since(started).as_secs_f64());
    // A clock that was set back meanwhile.
    out.measured(c::BACKUP_TOOK, &[], took.filter(|seconds| *seconds >= 0.0));
    out.set(c::BACKUP_DEGRADED, &[], backup.state == BackupState::Degraded);
    out.set(c::BACKUP_PLAIN, &[], backup.plain_bytes);
    out.set(c::BACKUP_STORED, &[], backup.stored_bytes);
    out.set(c::BACKUP_FILES, &[], backup.files);
    out.maybe(c::BACKUP_ARTIFACTS, &[], backup.artifacts);
}

fn wal(observed: &Observed, out: &mut Series) {
    let Some(wal) = &observed.wal else { return };
    out.maybe(c::WAL_LAG, &[], wal.lag_bytes);
    out.maybe(c::WAL_READY, &[], wal.ready);
    out.maybe(c::WAL_LAST_COMMIT, &[], wal.last_commit);
    out.set(c::WAL_WINDOWS, &[], wal.windows.len());
    for one in &wal.timelines {
        let timeline: &[&str] = &[&one.timeline.to_string()];
        out.set(c::WAL_SEGMENTS, timeline, one.segments);
        out.set(c::WAL_STORED, timeline, one.stored_bytes);
        out.set(c::WAL_GAPS, timeline, one.gaps.len());
    }
    for severity in [Severity::Critical, Severity::Warning] {
        let count = wal.findings.iter().filter(|finding| finding.severity == severity).count();
        out.set(c::WAL_FINDINGS, &[severity.word()], count);
    }
    if let Some(receiver) = &wal.receiver {
        out.set(c::RECEIVER_STREAMING, &[], receiver.state == "streaming");
        out.set(c::RECEIVER_DEGRADED, &[], receiver.degraded);
        let age = jiff::SignedDuration::from_secs(i64::try_from(receiver.age_seconds).unwrap_or(i64::MAX));
        out.maybe(c::RECEIVER_SPOKE, &[], observed.at.checked_sub(age).ok());
        out.set(c::RECEIVER_WAITING, &[], receiver.waiting_bytes);
    }
    for slot in &wal.slots {
        let name: &[&str] = &[&slot.name];
        out.set(c::SLOT_ACTIVE, name, slot.active);
        out.maybe(c::SLOT_LOST, name, slot.wal_status.as_ref().map(|status| status == "lost"));
        out.set(c::SLOT_HELD, name, slot.held_bytes);
        out.maybe(c::SLOT_SAFE, name, slot.safe_bytes);
    }
}

fn drills(observed: &Observed, out: &mut Series) {
    let Some(drills) = &observed.drills else { return };
    out.set(c::DRILLS, &[], (drills.entries.len() as u64).saturating_add(drills.older));
    out.set(c::DRILL_EVIDENCE, &[], drills.findings.len());
    out.set(c::DRILL_FAILURES, &[], drills.entries.iter().take_while(|one| !one.succeeded()).count());
    if let Some(last) = drills.entries.first() {
        out.set(c::DRILL_AT, &[], last.at);
        if let Some(verdict) = last.verdict {
            use drill::Verdict::{Failed, ObjectiveMissed, Passed, PassedWithGaps};
            out.one_of(c::DRILL_VERDICT, &[], &[Passed, PassedWithGaps, ObjectiveMissed, Failed], verdict);
        }
        out.measured(c::DRILL_RTO, &[], last.rto_seconds);
        out.measured(c::DRILL_VERIFIED, &[], last.verified_seconds);
        out.measured(c::DRILL_RPO, &[], last.rpo_seconds);
    }
    // Looked for here and not taken from the answer: the rule that a drill is overdue must not hang on what the answer makes of it.
    if let Some(success) = drills.entries.iter().find(|one| one.succeeded() && !in_future(one.at, observed.at)) {
        out.set(c::DRILL_SUCCESS_AT, &[], success.at);
        out.measured(c::DRILL_SUCCESS_RTO, &[], success.rto_seconds);
        out.measured(c::DRILL_SUCCESS_RPO, &[], success.rpo_seconds);
    }
}

fn keys(observed: &Observed, out: &mut Series) {
    let mut ends: Vec<_> = observed.keys.iter().filter_map(|key| Some((key.not_after?, key))).collect();
    // Of two with the same name the one that ends first is told of: it is set last.
    ends.sort_by_key(|(end, _)| std::cmp::Reverse(*end));
    for (end, key) in ends {
        out.set(c::KEY_END, &[&key.name, &key.what, &key.state, if key.signs_here { "true" } else { "false" }], end);
    }
}

const OUTCOMES: [Outcome; 5] = [Outcome::Running, Outcome::Succeeded, Outcome::Findings, Outcome::Failed, Outcome::Interrupted];

fn runs(observed: &Observed, out: &mut Series) {
    for run in &observed.runs {
        let operation: &[&str] = &[&run.operation];
        out.set(c::RUN_START, operation, run.started);
        out.maybe(c::RUN_END, operation, run.ended);
        let took = run.ended.map(|ended| ended.duration_since(run.started).as_secs_f64());
        out.measured(c::RUN_TOOK, operation, took.filter(|seconds| *seconds >= 0.0));
        out.one_of(c::RUN_OUTCOME, operation, &OUTCOMES, run.outcome);
        out.maybe(c::RUN_EXIT_CODE, operation, run.exit_code.map(u64::from));
        out.set(c::RUN_FAILURES, operation, run.failures);
        out.maybe(c::RUN_SUCCESS_AT, operation, run.last_success);
        out.measured(c::RUN_SUCCESS_TOOK, operation, run.last_success_seconds);
    }
}

fn tasks(observed: &Observed, out: &mut Series) {
    for task in &observed.tasks {
        let operation: &[&str] = &[&task.name];
        out.maybe(c::TASK_NEXT, operation, task.next);
        out.set(c::TASK_RUNNING, operation, task.running_since.is_some());
        out.maybe(c::TASK_SINCE, operation, task.running_since);
        out.set(c::TASK_DEADLINE, operation, task.deadline_seconds);
        out.set(c::TASK_ATTEMPT, operation, u64::from(task.attempt));
    }
}

fn alerts(status: &Status, out: &mut Series) {
    // Every kind that is known not to hold has a series, so that "does not hold" and "nobody looked" are two things.
    for kind in alert::CATALOGUE.iter().filter(|kind| alert::is_kind_known(&status.observed, kind.name)) {
        out.set(c::ALERT_FIRING, &[kind.name, kind.severity.word()], false);
    }
    let mut firing = BTreeMap::<(&str, Severity), u64>::new();
    for alert in &status.alerts {
        *firing.entry((&alert.name, alert.severity)).or_default() += 1;
    }
    for ((name, severity), count) in firing {
        out.set(c::ALERT_FIRING, &[name, severity.word()], count);
    }
}

fn facts(agent: &AgentFacts, out: &mut Series) {
    out.set(c::AGENT_START, &[], agent.started);
    out.set(c::AGENT_LEADER, &[], agent.leads);
    for one in &agent.deliveries {
        out.set(c::AGENT_DELIVERIES, &[&one.sink], one.total);
        out.set(c::AGENT_DELIVERY_FAILURES, &[&one.sink], one.failed);
    }
    for one in &agent.runs {
        out.set(c::AGENT_TASK_RUNS, &[&one.operation, &word(one.outcome)], one.total);
    }
}
