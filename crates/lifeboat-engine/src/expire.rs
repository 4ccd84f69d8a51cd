//! Marking backups that no rule keeps. Nothing is taken away: that is `prune`, after the grace period.

use std::collections::BTreeMap;

use jiff::Timestamp;
use lifeboat_core::expire::{Database, Decision, Plan, Policy, plan as decide};
use lifeboat_core::prune::Stored;
use lifeboat_core::repository::backup_id::BackupId;
use lifeboat_core::repository::retention::{Mark, MarkAction};
use lifeboat_core::repository::{FORMAT_VERSION, layout};
use lifeboat_core::wal::SystemId;
use lifeboat_core::wal::catalog::Archive;

use crate::lease::with_lease;
use crate::opened_backup;
use crate::repository::Repository;
use crate::retention::{self, LEASE, RetentionError};
use crate::signing::{Signer, Trust};
use crate::wal;

/// Who decides.
pub struct Author<'a> {
    /// This host.
    pub host: &'a str,
    /// Host and program, for the record.
    pub by: String,
    /// Whom to believe.
    pub trust: &'a Trust,
    /// Who signs.
    pub signer: &'a dyn Signer,
    /// Hears what an operator should know while it waits.
    pub say: &'a (dyn Fn(&str) + Sync),
}

/// Plans an expiry of the backups of `name`, or of every name.
pub fn plan(repository: &Repository, policy: Policy, name: Option<&str>, trust: &Trust, now: Timestamp) -> Result<Plan, RetentionError> {
    let (stored, doubts) = retention::survey(repository, trust, now)?;
    // Without a manifest it is no backup, and none of our business.
    let mine = |one: &Stored| one.manifest && name.is_none_or(|name| one.candidate.id.name() == name);
    let candidates: Vec<_> = stored.into_iter().filter(mine).map(|one| one.candidate).collect();
    let mut archives: BTreeMap<SystemId, Archive> = BTreeMap::new();
    let mut warnings = doubts;
    if policy.recovery_window.is_some() {
        let mut clusters: Vec<SystemId> = Vec::new();
        for facts in candidates.iter().filter_map(|candidate| candidate.facts.as_ref().ok()) {
            if let Database::Physical(system_id) = facts.content.database {
                clusters.push(system_id);
            }
        }
        clusters.sort_unstable();
        clusters.dedup();
        for system_id in clusters {
            match wal::archive::load(repository, system_id, trust) {
                Ok(archive) => archives.extend(archive.map(|archive| (system_id, archive))),
                Err(error) => warnings.push(format!(
                    "the WAL of cluster {system_id} does not count, so every backup in the recovery window stays: {}",
                    crate::causes::joined(&error)
                )),
            }
        }
    }
    let mut plan = decide(policy, &candidates, &archives, now)?;
    plan.warnings.splice(0..0, warnings);
    Ok(plan)
}

/// Plans an expiry, and marks what the plan lets go.
pub fn run(
    repository: &Repository,
    policy: Policy,
    name: Option<&str>,
    author: &Author<'_>,
    now: Timestamp,
) -> Result<Plan, RetentionError> {
    with_lease(repository.store(), LEASE, author.host, author.say, |lease| {
        let plan = plan(repository, policy, name, author.trust, now)?;
        for decision in plan.expiring() {
            lease.check()?;
            mark(repository, decision, policy, author, now)?;
        }
        Ok(plan)
    })
}

fn mark(repository: &Repository, decision: &Decision, policy: Policy, author: &Author<'_>, now: Timestamp) -> Result<(), RetentionError> {
    let backup = opened_backup::open(repository, &decision.backup, author.trust)?;
    let standing = retention::standing_of(repository, &backup, author.trust, now)?;
    let number = standing.next_mark;
    let mark = Mark {
        format: FORMAT_VERSION,
        backup: backup.id.clone(),
        number,
        action: MarkAction::Expire,
        manifest: backup.digest,
        at: now,
        by: author.by.clone(),
        reasons: decision.reasons.clone(),
        prune_after: Some(now.saturating_add(policy.grace).unwrap_or(Timestamp::MAX)),
        bundle: serde_json::Value::Null,
    };
    retention::write(repository, &layout::expiry_mark(&backup.id, number), mark, author.signer)
}

/// Whether the expiry of a backup can be undone.
pub fn check_undo(repository: &Repository, id: &BackupId, trust: &Trust, now: Timestamp) -> Result<(), RetentionError> {
    let backup = opened_backup::open(repository, id, trust)?;
    match retention::standing_of(repository, &backup, trust, now)?.expired {
        Some(_) => Ok(()),
        None => Err(RetentionError::NotExpired(id.clone())),
    }
}

/// Undoes the expiry of a backup that was not pruned yet.
pub fn undo(repository: &Repository, id: &BackupId, author: &Author<'_>, now: Timestamp) -> Result<(), RetentionError> {
    with_lease(repository.store(), LEASE, author.host, author.say, |_| {
        let backup = opened_backup::open(repository, id, author.trust)?;
        let standing = retention::standing_of(repository, &backup, author.trust, now)?;
        if standing.expired.is_none() {
            return Err(RetentionError::NotExpired(id.clone()));
        }
        let number = standing.next_mark;
        let mark = Mark {
            format: FORMAT_VERSION,
            backup: id.clone(),
            number,
            action: MarkAction::Undo,
            manifest: backup.digest,
            at: now,
            by: author.by.clone(),
            reasons: vec!["undone by hand".into()],
            prune_after: None,
            bundle: serde_json::Value::Null,
        };
        retention::write(repository, &layout::expiry_mark(id, number), mark, author.signer)
    })
}
