//! Can I recover, to when, how fast, and when was that proven?

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::seen::{BackupSeen, BackupState, Observed, RunSeen, SignatureState, WindowSeen};

/// Whether a disaster now would be survived, as far as was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Yes, within the objectives, and a drill has proven it.
    Recoverable,
    /// Yes, but something speaks against it: an objective, a proof, a doubt.
    AtRisk,
    /// There is nothing to recover from.
    NotRecoverable,
    /// Nobody could look.
    Unknown,
}

impl Verdict {
    /// In words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Recoverable => "yes",
            Self::AtRisk => "yes, but",
            Self::NotRecoverable => "no",
            Self::Unknown => "unknown",
        }
    }
}

/// What a drill has proven.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Proof {
    /// The last drill that succeeded.
    pub drill: String,
    /// When it was.
    pub at: Timestamp,
    /// Seconds until everything was back.
    #[serde(default)]
    pub rto_seconds: Option<f64>,
    /// Seconds of commits that would have been lost then.
    #[serde(default)]
    pub rpo_seconds: Option<f64>,
    /// Later drills that did not succeed.
    pub failed_since: u64,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// In a word.
    pub verdict: Verdict,
    /// What speaks against it, the worst first.
    pub reasons: Vec<String>,
    /// The first moment that the database can be brought back to.
    #[serde(default)]
    pub from: Option<Timestamp>,
    /// The last one.
    #[serde(default)]
    pub to: Option<Timestamp>,
    /// What would be lost if the host went now, in seconds; `None`: nobody knows.
    #[serde(default)]
    pub rpo_seconds: Option<u64>,
    /// That is within the objective.
    #[serde(default)]
    pub rpo_met: Option<bool>,
    /// What the last successful drill has proven.
    #[serde(default)]
    pub proof: Option<Proof>,
    /// Its time is within the objective.
    #[serde(default)]
    pub rto_met: Option<bool>,
    /// It is not older than drills may be; `None`: there is none, or it is dated in the future.
    #[serde(default)]
    pub proof_fresh: Option<bool>,
    /// The backup that a restore of the present would begin with.
    #[serde(default)]
    pub backup: Option<String>,
}

/// Seconds from one moment to a later one; 0 if it is not later.
pub(crate) fn seconds_between(earlier: Timestamp, later: Timestamp) -> u64 {
    later.duration_since(earlier).as_secs().max(0).unsigned_abs()
}

/// Later than clocks that are set may differ: whatever has this date, nobody knows how old it is.
pub fn in_future(moment: Timestamp, now: Timestamp) -> bool {
    moment.duration_since(now).as_secs() > CLOCKS_DIFFER
}

/// Seconds that the clocks of two hosts may differ.
const CLOCKS_DIFFER: i64 = 60;

/// The backup of a cluster, or of artifacts where the system has no cluster, that restores begin with.
fn newest(observed: &Observed, wanted: impl Fn(&BackupSeen) -> bool) -> Option<&BackupSeen> {
    observed.backups.iter().flatten().find(|backup| backup.counts() && backup.whole_until.is_none() && wanted(backup))
}

/// The moment up to which the newest backup that counts keeps the system: its database's, or when it began.
pub(crate) fn covers(backup: &BackupSeen) -> Option<Timestamp> {
    backup.consistent_at.or(backup.started)
}

/// The newest backup that has what the system is: a database where a server is configured.
pub(crate) fn newest_whole(observed: &Observed) -> Option<&BackupSeen> {
    let database = observed.server.is_some();
    newest(observed, |backup| !database || backup.copy.is_some())
}

/// The moments along the timeline that the present lies on: the server's; where nobody knows it, the newest that there is WAL of. No other window
/// has what is committed now. `None`: no backup leads along it, or nobody knows where it came from.
fn present(observed: &Observed) -> Option<&WindowSeen> {
    let wal = observed.wal.as_ref().filter(|wal| !wal.findings.iter().any(|finding| finding.code == "history-missing"))?;
    let there = || wal.timelines.iter().filter(|one| one.to.is_some()).map(|one| one.timeline).max();
    let timeline = observed.server.as_ref().and_then(|server| server.timeline).or_else(there)?;
    wal.windows.iter().find(|window| window.timeline == timeline)
}

/// Answers.
pub fn answer(observed: &Observed) -> Answer {
    let backup = newest_whole(observed);
    let (from, to) = span(observed, backup);
    let complete = observed.wal.as_ref().is_some_and(|wal| wal.lag_bytes == Some(0))
        && present(observed).is_some_and(|window| window.stopped_by.is_none());
    let rpo_seconds = match (backup, complete) {
        (None, _) => None,
        // Everything that the server has written is in the repository.
        (Some(_), true) => Some(0),
        // One of the clocks is wrong, so nobody knows what their difference means.
        (Some(_), false) if to.is_some_and(|to| in_future(to, observed.at)) => None,
        (Some(_), false) => to.map(|to| seconds_between(to, observed.at)),
    };
    let rpo_met = rpo_seconds.map(|seconds| seconds <= observed.objectives.rpo_seconds);
    let proof = proof(observed);
    let rto_met = proof.as_ref().and_then(|proof| proof.rto_seconds).map(|seconds| seconds <= observed.objectives.rto_seconds as f64);
    let age_known = proof.as_ref().filter(|proof| !in_future(proof.at, observed.at));
    let proof_fresh = age_known.map(|proof| seconds_between(proof.at, observed.at) <= observed.objectives.drill_seconds);
    let mut answer = Answer {
        verdict: Verdict::Unknown,
        reasons: Vec::new(),
        from,
        to,
        rpo_seconds,
        rpo_met,
        proof,
        rto_met,
        proof_fresh,
        backup: backup.map(|backup| backup.id.clone()),
    };
    answer.reasons = reasons(observed, &answer, backup);
    answer.verdict = match (backup, &observed.backups) {
        (Some(_), _) if answer.reasons.is_empty() => Verdict::Recoverable,
        (Some(_), _) => Verdict::AtRisk,
        (None, Some(_)) => Verdict::NotRecoverable,
        (None, None) => Verdict::Unknown,
    };
    answer
}

/// From when to when the database can be brought back; without WAL, the moments of the backups.
fn span(observed: &Observed, newest: Option<&BackupSeen>) -> (Option<Timestamp>, Option<Timestamp>) {
    let backups = || observed.backups.iter().flatten().filter(|backup| backup.counts()).filter_map(covers);
    let windows = || observed.wal.iter().flat_map(|wal| &wal.windows);
    let from = windows().filter_map(|window| window.from.time).chain(backups()).min();
    // What is on another timeline is not what was committed here. A window that a hole ended does not reach the present, whatever is behind it.
    let present = present(observed);
    let reached = present.and_then(|window| window.to.time);
    let reaches = observed.wal.as_ref().filter(|_| present.is_some_and(|window| window.stopped_by.is_none()));
    let kept = reaches.and_then(|wal| wal.kept_until.max(wal.last_commit));
    let to = [reached, kept, newest.and_then(covers)].into_iter().flatten().max();
    (from, to)
}

fn proof(observed: &Observed) -> Option<Proof> {
    let entries = &observed.drills.as_ref()?.entries;
    // One whose host's clock was wrong must not stand for years before those that came after it.
    let dated = |drill: &super::DrillSeen| drill.succeeded() && !in_future(drill.at, observed.at);
    let at = entries.iter().position(dated).or_else(|| entries.iter().position(super::DrillSeen::succeeded))?;
    let drill = &entries[at];
    Some(Proof {
        drill: drill.id.clone(),
        at: drill.at,
        rto_seconds: drill.rto_seconds,
        rpo_seconds: drill.rpo_seconds,
        failed_since: entries[..at].iter().filter(|drill| !drill.succeeded()).count() as u64,
    })
}

fn reasons(observed: &Observed, answer: &Answer, backup: Option<&BackupSeen>) -> Vec<String> {
    let mut reasons = Vec::new();
    match (&observed.backups, backup) {
        (None, _) => reasons.push("nobody could look at the backups".to_owned()),
        (Some(all), None) if all.is_empty() => reasons.push("there is no backup".to_owned()),
        (Some(all), None) if all.iter().all(|one| one.signature == SignatureState::NotChecked) => {
            reasons.push("no signature was checked: no trusted key is configured".to_owned());
        }
        (Some(_), None) => reasons
            .push("no backup counts: each is damaged, expired, without the database, or not signed by anybody who is trusted".to_owned()),
        (Some(all), Some(backup)) => {
            let newer = all.iter().take_while(|one| one.id != backup.id).count();
            if newer > 0 {
                reasons.push(format!("{newer} newer backups do not count"));
            }
            if backup.state == BackupState::Degraded {
                reasons.push(format!("backup {} has damaged pages", backup.id));
            }
            if backup.missing_artifacts > 0 {
                reasons.push(format!("backup {} lacks {} artifacts that its database refers to", backup.id, backup.missing_artifacts));
            }
        }
    }
    if observed.runs.iter().any(RunSeen::found_damage) {
        reasons.push("the last verification found damage".to_owned());
    }
    if answer.rpo_met == Some(false) {
        reasons.push("the RPO is missed".to_owned());
    }
    if backup.is_some() && answer.to.is_some_and(|to| in_future(to, observed.at)) {
        reasons.push("the last moment that can be gone back to lies in the future: a clock is wrong".to_owned());
    } else if backup.is_some() && answer.rpo_seconds.is_none() {
        reasons.push("nobody knows what would be lost".to_owned());
    }
    let primary = observed.repositories.first();
    if let Some(trouble) = primary.and_then(|primary| primary.trouble.as_ref()) {
        reasons.push(format!("the primary repository cannot be read: {trouble}"));
    }
    match (&answer.proof, answer.proof_fresh) {
        (None, _) => reasons.push("no drill has proven it".to_owned()),
        (Some(_), Some(false)) => reasons.push("the last drill that succeeded is too old".to_owned()),
        (Some(_), None) => reasons.push("the last drill that succeeded is dated in the future: a clock was wrong".to_owned()),
        (Some(proof), _) if proof.failed_since > 0 => reasons.push("the last drill did not succeed".to_owned()),
        _ => {}
    }
    if answer.rto_met == Some(false) {
        reasons.push("the last drill took longer than the RTO allows".to_owned());
    }
    if observed.wal.as_ref().is_some_and(|wal| wal.findings.iter().any(|finding| finding.severity == super::Severity::Critical)) {
        reasons.push("something is wrong with the way of WAL".to_owned());
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::samples;

    #[test]
    fn all_is_well_where_it_is() {
        let answer = answer(&samples::well());
        assert_eq!((answer.verdict, answer.reasons.as_slice()), (Verdict::Recoverable, [].as_slice()), "{answer:?}");
        assert_eq!((answer.rpo_met, answer.rto_met, answer.proof_fresh), (Some(true), Some(true), Some(true)));
    }

    #[test]
    fn nothing_to_recover_from_is_no_and_nobody_who_looked_is_unknown() {
        let verdict = |backups| answer(&Observed { backups, ..samples::well() }).verdict;
        assert_eq!(verdict(Some(Vec::new())), Verdict::NotRecoverable);
        assert_eq!(verdict(None), Verdict::Unknown);
        let of = |signature| {
            let mut observed = samples::well();
            observed.backups.iter_mut().flatten().for_each(|backup| backup.signature = signature);
            answer(&observed)
        };
        assert_eq!(of(SignatureState::NotValid).verdict, Verdict::NotRecoverable);
        assert_eq!(of(SignatureState::NotChecked).verdict, Verdict::NotRecoverable, "nobody stands for it");
        assert_eq!(of(SignatureState::NotValid).rpo_seconds, None, "nobody says how little would be lost of what is lost");
    }

    /// What lies behind a hole is in the repository, and nobody can go there.
    #[test]
    fn an_archive_with_a_hole_before_its_end_loses_what_is_behind_it() {
        let mut observed = samples::well();
        let wal = observed.wal.as_mut().unwrap();
        wal.lag_bytes = Some(0);
        assert_eq!(answer(&observed).rpo_seconds, Some(0));
        let wal = observed.wal.as_mut().unwrap();
        for window in &mut wal.windows {
            (window.stopped_by, window.to.time) = (Some("a segment is missing".into()), Some(samples::ago(2)));
        }
        let kept = covers(newest_whole(&observed).unwrap()).unwrap();
        assert_eq!(answer(&observed).rpo_seconds, Some(seconds_between(kept, observed.at)), "as far as the newest backup");
    }

    /// What is missing is 96 bytes that the server wrote for itself.
    #[test]
    fn what_was_not_committed_is_not_lost() {
        let mut observed = samples::well();
        let wal = observed.wal.as_mut().unwrap();
        (wal.lag_bytes, wal.last_commit, wal.windows[0].to.time) = (Some(96), Some(samples::ago(26)), Some(samples::ago(26)));
        assert_eq!(answer(&observed).to, covers(newest_whole(&observed).unwrap()), "for all that anybody knows");
        observed.wal.as_mut().unwrap().kept_until = Some(samples::at());
        assert_eq!((answer(&observed).rpo_seconds, answer(&observed).to), (Some(0), Some(samples::at())));
        // Of a window that reaches the present it says something, and of no other.
        observed.wal.as_mut().unwrap().windows[0].stopped_by = Some("a segment is missing".into());
        assert_ne!(answer(&observed).rpo_seconds, Some(0));
    }

    /// All of a timeline is in the repository, and nothing leads to it.
    #[test]
    fn c076_moments_of_another_timeline_are_not_the_present() {
        let on_timeline_2 = || {
            let mut observed = samples::well();
            observed.server.as_mut().unwrap().timeline = Some(2);
            let wal = observed.wal.as_mut().unwrap();
            let second = crate::status::TimelineSeen { timeline: 2, ..wal.timelines[0].clone() };
            wal.timelines.push(second);
            observed
        };
        let kept = |observed: &Observed| Some(seconds_between(covers(newest_whole(observed).unwrap()).unwrap(), observed.at));
        // No backup leads along it.
        let observed = on_timeline_2();
        assert_eq!(answer(&observed).rpo_seconds, kept(&observed));
        // Nor does one where no server was asked.
        let asked = Observed { server: None, ..observed };
        assert_eq!(answer(&asked).to, covers(newest_whole(&asked).unwrap()));
        // One does, and a hole is behind it; the old primary's timeline has none.
        let mut observed = on_timeline_2();
        let wal = observed.wal.as_mut().unwrap();
        let mut second = crate::status::WindowSeen { timeline: 2, ..wal.windows[0].clone() };
        (second.stopped_by, second.to.time) = (Some("a segment is missing".into()), Some(samples::ago(20)));
        wal.windows.push(second);
        assert_eq!(answer(&observed).rpo_seconds, kept(&observed));
        // All leads there; without its history nothing does.
        let wal = observed.wal.as_mut().unwrap();
        wal.windows[1].stopped_by = None;
        assert_eq!(answer(&observed).rpo_seconds, Some(0));
        let finding = crate::status::FindingSeen {
            code: "history-missing".into(),
            severity: crate::status::Severity::Critical,
            message: String::new(),
            hint: String::new(),
        };
        observed.wal.as_mut().unwrap().findings.push(finding);
        assert_eq!(answer(&observed).rpo_seconds, kept(&observed));
        // A clone's timeline is newer than the server's, and says nothing of it.
        let mut observed = on_timeline_2();
        observed.server.as_mut().unwrap().timeline = Some(1);
        let wal = observed.wal.as_mut().unwrap();
        wal.windows[0].to.time = Some(samples::ago(20));
        (wal.lag_bytes, wal.last_commit) = (Some(1), Some(samples::ago(20)));
        wal.windows.push(crate::status::WindowSeen { timeline: 2, ..samples::well().wal.unwrap().windows[0].clone() });
        assert_eq!(answer(&observed).rpo_seconds, kept(&observed));
    }

    #[test]
    fn clocks_that_differ_make_no_promise() {
        let mut observed = samples::well();
        if let Some(wal) = &mut observed.wal {
            wal.lag_bytes = Some(1);
        }
        assert!(answer(&observed).rpo_seconds.is_some());
        observed.at -= jiff::SignedDuration::from_hours(48);
        let answer = answer(&observed);
        assert_eq!((answer.verdict, answer.rpo_seconds, answer.rpo_met), (Verdict::AtRisk, None, None), "{answer:?}");
        assert!(answer.reasons.iter().any(|reason| reason.contains("a clock is wrong")), "{answer:?}");
    }

    #[test]
    fn a_drill_of_a_clock_that_was_wrong_proves_nothing_for_years() {
        let mut observed = samples::well();
        let drills = observed.drills.as_mut().unwrap();
        let mut odd = drills.entries.iter().find(|drill| drill.succeeded()).unwrap().clone();
        let real = odd.id.clone();
        odd.at += jiff::SignedDuration::from_hours(2 * 365 * 24);
        odd.id = "odd".into();
        drills.entries.insert(0, odd.clone());
        let proof = answer(&observed).proof.unwrap();
        assert_eq!((proof.drill, proof.failed_since), (real, 0), "those whose age is known come first");
        observed.drills.as_mut().unwrap().entries = vec![odd];
        let answer = answer(&observed);
        assert_eq!((answer.verdict, answer.proof_fresh), (Verdict::AtRisk, None));
        assert!(answer.reasons.iter().any(|reason| reason.contains("dated in the future")), "{answer:?}");
    }

    #[test]
    fn what_is_damaged_or_missing_speaks_against_it() {
        let reasons = |change: &dyn Fn(&mut Observed)| {
            let mut observed = samples::well();
            change(&mut observed);
            let answer = answer(&observed);
            assert_eq!(answer.verdict, Verdict::AtRisk);
            answer.reasons.join(", ")
        };
        assert!(reasons(&|seen| seen.backups.as_mut().unwrap()[0].missing_artifacts = 3).contains("lacks 3 artifacts"));
        let found = |seen: &mut Observed| seen.runs.iter_mut().find(|run| run.operation == "verify").unwrap().exit_code = Some(21);
        assert!(reasons(&found).contains("the last verification found damage"));
    }

    #[test]
    fn without_proof_nobody_is_sure() {
        let mut observed = samples::well();
        observed.drills = None;
        let answer = answer(&observed);
        assert_eq!((answer.verdict, answer.proof), (Verdict::AtRisk, None));
        assert!(answer.reasons.contains(&"no drill has proven it".to_owned()));
    }
}
