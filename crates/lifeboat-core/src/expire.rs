//! Which backups are kept, and why: a keep-set with reasons for every backup. What is not in it expires; nothing is taken away here.
//!
//! A function of values, time included (c106). Times are those of signed manifests, never those of a store (c107). Backups that cannot be
//! told to be good neither count nor expire.

use std::collections::{BTreeMap, BTreeSet};

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::repository::Sha256;
use crate::repository::backup_id::BackupId;
use crate::repository::manifest::{CopyMethod, Manifest, State};
use crate::wal::SystemId;
use crate::wal::catalog::{Archive, BackupPoint};

/// A backup that is later than this from now has a time that cannot be.
pub const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(5);

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Policy {
    /// So many of the newest.
    pub keep_last: u32,
    /// The newest of each of the last so many days that have one.
    pub keep_daily: u32,
    /// The same of weeks (ISO 8601: from Monday on).
    pub keep_weekly: u32,
    /// The same of months.
    pub keep_monthly: u32,
    /// The same of years.
    pub keep_yearly: u32,
    /// Every moment of this span up to now can be gone back to.
    #[serde(serialize_with = "seconds")]
    pub recovery_window: Option<SignedDuration>,
    /// Between expiring and pruning.
    #[serde(serialize_with = "some_seconds")]
    pub grace: SignedDuration,
}

fn seconds<S: serde::Serializer>(span: &Option<SignedDuration>, serializer: S) -> Result<S::Ok, S::Error> {
    span.map(|span| span.as_secs()).serialize(serializer)
}

fn some_seconds<S: serde::Serializer>(span: &SignedDuration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_i64(span.as_secs())
}

impl Policy {
    /// Whether it says to keep anything. One that does not is no policy.
    pub fn keeps_something(&self) -> bool {
        let counts = [self.keep_last, self.keep_daily, self.keep_weekly, self.keep_monthly, self.keep_yearly];
        counts.iter().any(|count| *count > 0) || self.recovery_window.is_some_and(|window| window.is_positive())
    }
}

/// What a backup has of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Database {
    /// Nothing.
    None,
    /// A dump.
    Logical,
    /// A data directory of this cluster.
    Physical(SystemId),
}

/// What a backup has. Backups of one name that have different things do not stand for each other: artifacts alone every hour must not push
/// out the database of every night.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Content {
    /// Of the database.
    pub database: Database,
    /// Whether it has artifacts.
    pub artifacts: bool,
}

/// What a verified manifest says, as far as keeping is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// When it is consistent, or finished.
    pub at: Timestamp,
    /// Nothing wrong was seen in it.
    pub healthy: bool,
    /// What it has.
    pub content: Content,
    /// Digest of the manifest.
    pub manifest: Sha256,
    /// Where recovery from it begins, if it has a data directory.
    pub point: Option<BackupPoint>,
}

impl Facts {
    /// Of a manifest whose signature was verified.
    pub fn of(manifest: &Manifest, digest: Sha256) -> Self {
        let postgres = manifest.postgres.as_ref();
        let system_id = postgres.and_then(|postgres| postgres.system_id);
        let point = system_id.and_then(|system_id| BackupPoint::of(manifest, system_id));
        let database = match postgres {
            Some(postgres) if postgres.copy.is_physical() => Database::Physical(system_id.unwrap_or(SystemId(0))),
            Some(postgres) if postgres.copy == CopyMethod::Logical => Database::Logical,
            _ => Database::None,
        };
        Self {
            at: point.as_ref().map_or(manifest.finished, |point| point.consistent_at),
            healthy: manifest.state == State::Healthy,
            content: Content { database, artifacts: manifest.artifacts.is_some() },
            manifest: digest,
            point,
        }
    }
}

/// A backup in the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub id: BackupId,
    /// What its manifest says; or why that is not known.
    pub facts: Result<Facts, String>,
    /// Names of the pins that hold it.
    pub pins: Vec<String>,
    /// It has expired already, and stays whole until then.
    pub prune_after: Option<Timestamp>,
}

/// What becomes of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// It stays.
    Keep,
    /// It expires now.
    Expire,
    /// It has expired before.
    Expired,
}

/// One backup and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// Which.
    pub backup: BackupId,
    /// What becomes of it.
    pub fate: Fate,
    /// Why.
    pub reasons: Vec<String>,
    /// Digest of its manifest, if that was verified.
    pub manifest: Option<Sha256>,
}

/// What an expiry does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// By which rules.
    pub policy: Policy,
    /// Every backup, oldest first.
    pub decisions: Vec<Decision>,
    /// What to know before.
    pub warnings: Vec<String>,
}

impl Plan {
    /// The plan's digest: SHA-256 of its JSON. Approvals sign it.
    pub fn digest(&self) -> Sha256 {
        Sha256::of(&serde_json::to_vec(self).expect("a plan has text keys only"))
    }

    /// The backups that expire now.
    pub fn expiring(&self) -> impl Iterator<Item = &Decision> {
        self.decisions.iter().filter(|decision| decision.fate == Fate::Expire)
    }
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpirePlanError {
    /// Nobody said what to keep.
    #[error("plan expiry: no rule says what to keep")]
    NoPolicy,
}

/// Plans an expiry. `archives` says how far WAL joins the backups of each cluster; without, every backup in the recovery window is needed.
pub fn plan(
    policy: Policy,
    candidates: &[Candidate],
    archives: &BTreeMap<SystemId, Archive>,
    now: Timestamp,
) -> Result<Plan, ExpirePlanError> {
    if !policy.keeps_something() {
        return Err(ExpirePlanError::NoPolicy);
    }
    let mut kept: BTreeMap<&BackupId, Vec<String>> = BTreeMap::new();
    let mut warnings = Vec::new();
    let mut groups: BTreeMap<(&str, Content), Vec<Counted<'_>>> = BTreeMap::new();
    for candidate in candidates {
        let keep = kept.entry(&candidate.id).or_default();
        keep.extend(candidate.pins.iter().map(|pin| format!("pin {pin} holds it")));
        match &candidate.facts {
            Err(why) => {
                keep.push("it cannot be told whether it is good".into());
                warnings.push(format!("backup {} neither counts nor expires: {why}", candidate.id));
            }
            Ok(facts) if facts.at > now.saturating_add(CLOCK_TOLERANCE).unwrap_or(Timestamp::MAX) => {
                keep.push("its time is in the future".into());
                let id = &candidate.id;
                warnings.push(format!("backup {id} neither counts nor expires: its time, {}, is in the future; compare clocks", facts.at));
            }
            // What is on its way out stands for nothing.
            Ok(_) if candidate.prune_after.is_some() => {
                groups.entry((candidate.id.name(), content(candidate))).or_default();
            }
            Ok(facts) => groups.entry((candidate.id.name(), facts.content)).or_default().push(Counted { id: &candidate.id, facts }),
        }
    }
    for ((name, content), mut group) in groups {
        group.sort_by(|a, b| (b.facts.at, b.id).cmp(&(a.facts.at, a.id)));
        for (id, reason) in keep_set(&policy, &group, archives, now) {
            kept.entry(id).or_default().push(reason);
        }
        let of_group = |candidate: &&Candidate| {
            candidate.id.name() == name && candidate.facts.as_ref().is_ok_and(|facts| facts.content == content && facts.healthy)
        };
        let last = candidates.iter().filter(of_group).filter(|candidate| candidate.prune_after.is_some()).max_by_key(|c| time_of(c));
        if let Some(last) = last.filter(|_| !group.iter().any(|counted| counted.facts.healthy)) {
            warnings.push(format!("the last healthy backup of its kind has expired and is not pruned: {}", last.id));
        }
    }
    let mut order: Vec<&Candidate> = candidates.iter().collect();
    order.sort_by(|a, b| (a.id.at(), &a.id).cmp(&(b.id.at(), &b.id)));
    let decisions = order.into_iter().map(|candidate| {
        let mut reasons = kept.remove(&candidate.id).unwrap_or_default();
        let fate = match candidate.prune_after {
            Some(_) => Fate::Expired,
            None if reasons.is_empty() => Fate::Expire,
            None => Fate::Keep,
        };
        if let Some(prune_after) = candidate.prune_after {
            reasons.push(format!("it has expired, and may be pruned from {prune_after} on"));
        } else if reasons.is_empty() {
            reasons.push("no rule keeps it".into());
        }
        Decision { backup: candidate.id.clone(), fate, reasons, manifest: candidate.facts.as_ref().ok().map(|facts| facts.manifest) }
    });
    let decisions = decisions.collect();
    Ok(Plan { policy, decisions, warnings })
}

fn content(candidate: &Candidate) -> Content {
    candidate.facts.as_ref().map_or(Content { database: Database::None, artifacts: false }, |facts| facts.content)
}

fn time_of(candidate: &Candidate) -> Timestamp {
    candidate.facts.as_ref().map_or(Timestamp::MIN, |facts| facts.at)
}

/// A backup that counts.
#[derive(Clone, Copy)]
struct Counted<'a> {
    id: &'a BackupId,
    facts: &'a Facts,
}

/// What is kept of backups that stand for each other, newest first, and why.
fn keep_set<'a>(
    policy: &Policy,
    group: &[Counted<'a>],
    archives: &BTreeMap<SystemId, Archive>,
    now: Timestamp,
) -> Vec<(&'a BackupId, String)> {
    let mut kept = Vec::new();
    let healthy: Vec<Counted<'a>> = group.iter().copied().filter(|counted| counted.facts.healthy).collect();
    if let Some(newest) = healthy.first() {
        kept.push((newest.id, "the newest healthy one".to_owned()));
    }
    for counted in group.iter().take_while(|counted| !counted.facts.healthy) {
        kept.push((counted.id, "degraded, but no healthy one is newer".to_owned()));
    }
    for (index, counted) in healthy.iter().take(policy.keep_last as usize).enumerate() {
        kept.push((counted.id, format!("number {} of the last {}", index + 1, policy.keep_last)));
    }
    type Period = fn(Timestamp) -> String;
    let periods: [(&str, u32, Period); 4] = [
        ("day", policy.keep_daily, day),
        ("week", policy.keep_weekly, week),
        ("month", policy.keep_monthly, month),
        ("year", policy.keep_yearly, year),
    ];
    for (word, count, period) in periods {
        let mut seen = BTreeSet::new();
        for counted in &healthy {
            let period = period(counted.facts.at);
            if seen.len() as u32 == count {
                break;
            }
            if seen.insert(period.clone()) {
                kept.push((counted.id, format!("the newest of {word} {period}")));
            }
        }
        // Of a period that has no healthy one, within those that are kept, a degraded one is better than nothing.
        let oldest = healthy.iter().filter(|counted| seen.contains(&period(counted.facts.at))).map(|counted| counted.facts.at).min();
        let all: BTreeSet<String> = healthy.iter().map(|counted| period(counted.facts.at)).collect();
        let mut poor = BTreeSet::new();
        for counted in group.iter().filter(|counted| !counted.facts.healthy && oldest.is_some_and(|oldest| counted.facts.at >= oldest)) {
            let period = period(counted.facts.at);
            if !all.contains(&period) && poor.insert(period.clone()) {
                kept.push((counted.id, format!("degraded, but {word} {period} has no healthy one")));
            }
        }
    }
    if let Some(window) = policy.recovery_window.filter(|window| window.is_positive()) {
        kept.extend(window_set(window, &healthy, archives, now));
    }
    kept
}

/// What going back to any moment of the window needs: a backup from before it, and each one to which WAL does not lead from the one before.
fn window_set<'a>(
    window: SignedDuration,
    healthy: &[Counted<'a>],
    archives: &BTreeMap<SystemId, Archive>,
    now: Timestamp,
) -> Vec<(&'a BackupId, String)> {
    let begin = now.saturating_sub(window).unwrap_or(Timestamp::MIN);
    // Newest first: the first that is not in the window, or the oldest there is.
    let base = healthy.iter().position(|counted| counted.facts.at <= begin).unwrap_or(healthy.len().saturating_sub(1));
    let Some(oldest) = healthy.get(base) else { return Vec::new() };
    let mut kept = vec![(oldest.id, format!("moments from {begin} on are reached from it"))];
    for pair in healthy[..=base].windows(2) {
        let [newer, older] = pair else { continue };
        if !joined(older.facts, newer.facts, archives) {
            kept.push((newer.id, "in the recovery window, and WAL does not lead to it from the one before".to_owned()));
        }
    }
    kept
}

/// Whether WAL leads from one backup to where another is consistent, so that the other is not needed to get there.
fn joined(older: &Facts, newer: &Facts, archives: &BTreeMap<SystemId, Archive>) -> bool {
    let (Database::Physical(system_id), Some(from), Some(to)) = (newer.content.database, &older.point, &newer.point) else { return false };
    let Some(archive) = archives.get(&system_id) else { return false };
    let Ok(path) = archive.path(to.timeline) else { return false };
    let on_the_way = path.leg_of(from.timeline).is_some_and(|leg| leg.to.is_none_or(|end| from.stop_lsn <= end));
    on_the_way && archive.reach_of(&path, from).to >= to.stop_lsn
}

fn day(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC).date().to_string()
}

fn week(at: Timestamp) -> String {
    let week = at.to_zoned(TimeZone::UTC).date().iso_week_date();
    format!("{:04}-W{:02}", week.year(), week.week())
}

fn month(at: Timestamp) -> String {
    let date = at.to_zoned(TimeZone::UTC).date();
    format!("{:04}-{:02}", date.year(), date.month())
}

fn year(at: Timestamp) -> String {
    format!("{:04}", at.to_zoned(TimeZone::UTC).date().year())
}

#[cfg(test)]
mod tests;
