//! What is right and wrong with a cluster's WAL on its way into the repository: facts in, findings out.
//!
//! The findings are what somebody should be told; how serious each is, and what to do, is decided here and nowhere else.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::catalog::GapStory;
use super::{Lsn, SegmentSize, SystemId, Timeline};

/// What a server says of its WAL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServerWal {
    /// `server_version_num`, like 150018.
    pub version_num: u32,
    /// The cluster.
    pub system_id: SystemId,
    /// The timeline that it writes, or replays.
    pub timeline: Timeline,
    /// It is a standby, or recovers.
    pub in_recovery: bool,
    /// How a standby stands to its primary; `None`: it is none.
    pub standby: Option<Standby>,
    /// How far its WAL is written and synced (`pg_current_wal_flush_lsn`); on a standby, how far it has been received or replayed.
    pub position: Lsn,
    /// Its clock.
    pub now: Timestamp,
    /// `wal_level`.
    pub wal_level: String,
    /// `archive_mode`.
    pub archive_mode: String,
    /// `archive_command` or `archive_library` is set. `None`: the role may not see it.
    pub archiver_set: Option<bool>,
    /// `archive_timeout`, seconds; 0 is off (c065).
    pub archive_timeout_seconds: u32,
    /// `pg_stat_archiver`, once it has done anything.
    pub archiver: Option<Archiver>,
    /// Files that wait for the archiver: `.ready` in `pg_wal/archive_status`. `None`: the role may not look.
    pub ready: Option<u64>,
    /// Replication slots that hold WAL.
    pub slots: Vec<Slot>,
    /// `max_slot_wal_keep_size` in bytes; `None`: no limit (or PostgreSQL says -1).
    pub max_slot_wal_keep_bytes: Option<u64>,
    /// `synchronous_standby_names`.
    pub synchronous_standby_names: String,
    /// Names of the synchronous standbys that are connected and in step (`pg_stat_replication`).
    pub synchronous_now: Vec<String>,
    /// Bytes in `pg_wal`. `None`: the role may not look.
    pub pg_wal_bytes: Option<u64>,
}

/// How a standby stands to its primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Standby {
    /// It receives WAL from it at this moment (`pg_stat_wal_receiver`).
    pub streams: bool,
    /// The time of the last commit that it replayed (`pg_last_xact_replay_timestamp`).
    pub replayed: Option<Timestamp>,
}

impl ServerWal {
    /// Its position is that of the system: a standby that does not follow its primary knows nothing of what was written since.
    pub fn is_at_the_end(&self) -> bool {
        self.standby.as_ref().is_none_or(|standby| standby.streams)
    }
}

/// `pg_stat_archiver` (manual section 27.2.10).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Archiver {
    /// The last file that was archived.
    pub last_archived: Option<String>,
    /// When.
    pub last_archived_time: Option<Timestamp>,
    /// The last file that could not be.
    pub last_failed: Option<String>,
    /// When.
    pub last_failed_time: Option<Timestamp>,
    /// How often.
    pub failed_count: u64,
}

/// A row of `pg_replication_slots` (manual section 54.20).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// Physical, so WAL as it is.
    pub physical: bool,
    /// Somebody is connected.
    pub active: bool,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// WAL from here on is kept for it.
    pub restart_lsn: Option<Lsn>,
    /// Bytes that may be written before it loses WAL. `None`: no limit, or lost already.
    pub safe_wal_bytes: Option<u64>,
}

/// What is known of the way from the server to the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalFacts<'a> {
    /// The server, if it answered.
    pub server: Option<&'a ServerWal>,
    /// Why it did not answer.
    pub server_trouble: Option<String>,
    /// Where the archive of the server's timeline ends; `None`: it has nothing of it.
    pub archive_end: Option<Lsn>,
    /// Why what the archive has of the server's timeline cannot be replayed, in words: a history file is missing.
    pub no_way: Option<String>,
    /// There are backups, and none leads along the server's timeline, of which the archive has WAL.
    pub stranded: bool,
    /// Latest time of a commit that the archive has.
    pub last_commit: Option<Timestamp>,
    /// When the piece was signed with which the archive of the server's timeline ends; `None`: it ends with a segment.
    pub last_piece: Option<Timestamp>,
    /// Bytes in a segment of the archive.
    pub segment_size: Option<SegmentSize>,
    /// Gaps behind the oldest backup.
    pub gaps: Vec<GapSeen>,
    /// The receiver runs in this mode, by the configuration: `stream` or `sync`.
    pub receives: bool,
    /// What a commit waits for, as the receiver is configured.
    pub synchronous: Synchronous,
    /// Its slot.
    pub slot: &'a str,
    /// What the receiver last said of itself, and how long ago.
    pub receiver: Option<ReceiverSeen>,
    /// The objective.
    pub rpo: Duration,
    /// This moment here.
    pub now: Timestamp,
}

/// What a commit waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Synchronous {
    /// For no receiver.
    No,
    /// Until it is durable in the receiver's spool.
    Spool,
    /// Until it is in the repository.
    Repository,
}

/// A gap that cuts into what could be gone back to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GapSeen {
    /// What is missing, in words.
    pub text: String,
    /// A backup is behind it ([`super::catalog::Cut::is_passed`]).
    pub is_passed: bool,
    /// Why.
    pub story: GapStory,
}

/// The receiver's own word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReceiverSeen {
    /// How old its status is.
    pub age_seconds: u64,
    /// It gave up being synchronous.
    pub degraded: bool,
    /// It is connected to a server.
    pub connected: bool,
    /// When everything that it had received was in the repository; `None`: it is not.
    pub caught_up: Option<Timestamp>,
    /// Why the repository takes nothing from it, and has not for a while.
    pub store_trouble: Option<String>,
    /// Why its spool takes nothing, and has not for a while.
    pub spool_trouble: Option<String>,
}

/// How old a receiver's word is. One from the future is as good as none: a clock was set back, and nobody knows by how much.
pub fn age_seconds(updated: Timestamp, now: Timestamp) -> u64 {
    let age = now.duration_since(updated);
    if age.is_negative() && age.unsigned_abs() <= SKEW { 0 } else { age.unsigned_abs().as_secs() }
}

/// Trouble that lasts: nothing was taken since `at`. A store that is slow down for a moment is tried again.
pub fn lasting(trouble: Option<&String>, at: Timestamp, now: Timestamp) -> Option<String> {
    trouble.filter(|_| now.duration_since(at).unsigned_abs() > TROUBLE_LASTS).cloned()
}

/// How serious a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Warning,
    /// A promise is broken, or about to be.
    Critical,
}

/// Something to be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WalFinding {
    /// A word for programs: does not change.
    pub code: &'static str,
    /// How serious.
    pub severity: Severity,
    /// What it is.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

/// Files waiting for the archiver that are no backlog yet.
const READY_WARNING: u64 = 16;

/// Bytes of WAL behind which the archive may be without a word in mode `archive`: two default segments.
const LAG_WARNING_BYTES: u64 = 32 << 20;

/// A receiver that said nothing for so long is gone: it speaks every second.
const RECEIVER_SILENT_SECONDS: u64 = 30;

/// How long a store or a spool may take nothing before that is told.
const TROUBLE_LASTS: Duration = Duration::from_secs(30);

/// How far clocks may differ.
const SKEW: Duration = Duration::from_secs(60);

fn is_up(receiver: &ReceiverSeen) -> bool {
    receiver.connected && receiver.age_seconds <= RECEIVER_SILENT_SECONDS
}

fn archives(server: &ServerWal) -> bool {
    server.archive_mode != "off" && server.archiver_set != Some(false)
}

fn is_failing(archiver: &Archiver) -> bool {
    match (archiver.last_failed_time, archiver.last_archived_time) {
        (Some(failed), Some(archived)) => failed > archived,
        (failed, _) => failed.is_some(),
    }
}

/// The moment before which nothing is missing in the archive, as far as anybody knows: that of the last commit there, or a later one where it is known
/// that nothing was committed in between. A missing byte is not yet a missing commit.
pub fn kept_until(facts: &WalFacts<'_>) -> Option<Timestamp> {
    let (Some(server), Some(end)) = (facts.server, facts.archive_end) else { return facts.last_commit };
    // Whoever is further behind may be storing what is hours old.
    let is_near = server.position.0.saturating_sub(end.0) <= LAG_WARNING_BYTES;
    // Pieces say nothing of commits; what is in one was written before it was signed.
    let piece = facts.last_piece.filter(|_| is_near);
    let receiver = facts.receiver.as_ref().filter(|seen| facts.receives && is_near && is_up(seen) && seen.store_trouble.is_none());
    [facts.last_commit, piece, receiver.and_then(|seen| seen.caught_up), quiet_since(server, end, facts.segment_size?)]
        .into_iter()
        .flatten()
        .max()
}

/// Since when a server that archives has committed nothing, or later. A segment with anything in it but what the server notes for itself is ended
/// after `archive_timeout`, and archived (`CheckArchiveTimeout` in `src/backend/postmaster/checkpointer.c`, which goes by
/// `GetLastImportantRecPtr`); a record about running transactions ends none, and stays in the open segment for as long as nothing else is
/// written.
fn quiet_since(server: &ServerWal, end: Lsn, size: SegmentSize) -> Option<Timestamp> {
    let all_archived = end.0.is_multiple_of(size.bytes()) && server.position.0 / size.bytes() == end.0 / size.bytes();
    let works = archives(server) && server.ready.unwrap_or(0) == 0 && !server.archiver.as_ref().is_some_and(is_failing);
    if !all_archived || !works || server.in_recovery || server.archive_timeout_seconds == 0 {
        return None;
    }
    server.now.checked_sub(Duration::from_secs(server.archive_timeout_seconds.into())).ok()
}

/// Every code of a finding. They do not change; `docs/wal.md` says what each of them means.
pub const CODES: [&str; 26] = [
    "gap",
    "receiver-down",
    "degraded",
    "store-failing",
    "spool-failing",
    "server-unreachable",
    "clock-skew",
    "standby-behind",
    "wal-level",
    "archive-off",
    "archive-command",
    "archive-timeout",
    "archive-failing",
    "archive-backlog",
    "archive-empty",
    "archive-ahead",
    "rpo",
    "lag",
    "no-backup-on-timeline",
    "history-missing",
    "not-synchronous",
    "no-synchronous-standby",
    "slot-lost",
    "slot-at-risk",
    "slot-unbounded",
    "slot-missing",
];

/// What is wrong.
pub fn assess(facts: &WalFacts<'_>) -> Vec<WalFinding> {
    let mut findings = Vec::new();
    let mut say = |code, severity, message: String, hint: &str| {
        debug_assert!(CODES.contains(&code), "{code}");
        findings.push(WalFinding { code, severity, message, hint: hint.to_owned() });
    };
    use Severity::{Critical, Warning};
    for GapSeen { text, is_passed, story } in &facts.gaps {
        let (severity, hint) = match (story, is_passed) {
            (_, false) => (Critical, "take a new backup: lifeboat backup; recovery across the gap is not possible"),
            // There was no word of it when the backup was taken, so the backup is no answer to it.
            (GapStory::Gone, true) => {
                (Critical, "see who deletes from the repository: lifeboat verify --all; nothing in the gap can be gone back to")
            }
            (_, true) => (Warning, "nothing to be done: a newer backup is behind it; it ends when the last backup before it expires"),
        };
        say("gap", severity, text.clone(), hint);
    }
    let receiver_up = facts.receiver.as_ref().is_some_and(is_up);
    if facts.receives && !receiver_up {
        let how = match &facts.receiver {
            None => "it has never run here".to_owned(),
            Some(seen) if seen.age_seconds > RECEIVER_SILENT_SECONDS => format!("it said nothing for {} s", seen.age_seconds),
            Some(_) => "it is not connected to a server".to_owned(),
        };
        say("receiver-down", Critical, format!("the WAL receiver does not receive: {how}"), "start it: lifeboat wal receive");
    }
    if facts.receiver.as_ref().is_some_and(|seen| seen.degraded) {
        let message = "the receiver took itself out of synchronous_standby_names: commits are no longer durable elsewhere".to_owned();
        say("degraded", Critical, message, "see why in its log; it comes back by itself when it has caught up: lifeboat wal status");
    }
    for (code, what, trouble, hint) in [
        (
            "store-failing",
            "repository",
            facts.receiver.as_ref().and_then(|seen| seen.store_trouble.as_ref()),
            "lifeboat doctor looks at the repository",
        ),
        (
            "spool-failing",
            "spool",
            facts.receiver.as_ref().and_then(|seen| seen.spool_trouble.as_ref()),
            "make room there, or see to its disk: lifeboat config show prints wal.spool",
        ),
    ] {
        if let Some(trouble) = trouble.filter(|_| receiver_up) {
            let waits = match (facts.synchronous, code) {
                (Synchronous::No, _) => "",
                (Synchronous::Spool, "store-failing") => ": commits wait when the spool is full",
                _ => ": commits wait",
            };
            say(code, Critical, format!("the {what} takes nothing from the WAL receiver{waits}: {trouble}"), hint);
        }
    }
    let Some(server) = facts.server else {
        if let Some(trouble) = &facts.server_trouble {
            say(
                "server-unreachable",
                Critical,
                format!("the server was not asked: {trouble}"),
                "see that it runs; lifeboat config show prints postgres.dsn",
            );
        }
        return findings;
    };
    let skew = server.now.duration_since(facts.now).unsigned_abs();
    if skew > SKEW {
        let message = format!("the server's clock differs from this one by {} s", skew.as_secs());
        say("clock-skew", Warning, message, "set both clocks by NTP: recovery to a time goes by the server's clock");
    }
    if let Some(standby) = server.standby.as_ref().filter(|standby| !standby.streams) {
        let age = standby.replayed.map(|replayed| server.now.duration_since(replayed).unsigned_abs());
        if age.is_none_or(|age| age > facts.rpo) {
            let since = age.map_or("has replayed no commit".to_owned(), |age| format!("last replayed a commit of {} s ago", age.as_secs()));
            say(
                "standby-behind",
                Critical,
                format!("the server is a standby that receives nothing from its primary and {since}: what is backed up here is as old"),
                "see why it does not follow: its log, primary_conninfo, restore_command; or name the primary in postgres.dsn",
            );
        }
    }
    if server.wal_level == "minimal" {
        say(
            "wal-level",
            Critical,
            "wal_level = minimal writes too little to recover from".into(),
            "set wal_level = replica and restart the server",
        );
    }
    let archives = archives(server);
    if !facts.receives {
        if server.archive_mode == "off" {
            say(
                "archive-off",
                Critical,
                "archive_mode is off, and no receiver is configured: no WAL reaches the repository".into(),
                "set archive_mode = on and archive_command = 'lifeboat wal push %p', and restart the server",
            );
        } else if server.archiver_set == Some(false) {
            say(
                "archive-command",
                Critical,
                "archive_mode is on, but neither archive_command nor archive_library is set".into(),
                "set archive_command = 'lifeboat wal push %p' and reload the server",
            );
        } else if server.archive_timeout_seconds == 0 {
            // c065: an idle server keeps its last segment open for ever.
            say(
                "archive-timeout",
                Warning,
                "archive_timeout is off: a quiet server may keep hours of commits in an open segment".into(),
                "set archive_timeout = 60s, or receive: lifeboat wal receive",
            );
        }
    }
    if let Some(archiver) = server.archiver.as_ref().filter(|archiver| archives && is_failing(archiver)) {
        let file = archiver.last_failed.as_deref().unwrap_or("a file");
        say(
            "archive-failing",
            Critical,
            format!("archive_command fails: {file}, {} times so far", archiver.failed_count),
            "read the server's log: what lifeboat wal push says stands there",
        );
    }
    if let Some(ready) = server.ready.filter(|ready| archives && *ready > READY_WARNING) {
        // c055: a full pg_wal stops the server.
        let message = format!("{ready} WAL files wait for the archiver");
        say("archive-backlog", Warning, message, "raise wal.push_ahead or limits.workers, and see that pg_wal has room: df");
    }
    match facts.archive_end {
        None => say(
            "archive-empty",
            Critical,
            format!("the repository has no WAL of timeline {}", server.timeline),
            "set archive_command = 'lifeboat wal push %p', or receive: lifeboat wal receive",
        ),
        Some(end) if end > server.position && !server.in_recovery => {
            // The end of a whole segment, as a rule; another server's WAL, if it is far.
            if end.0 - server.position.0 > 1 << 30 {
                say(
                    "archive-ahead",
                    Critical,
                    format!(
                        "the archive of timeline {} reaches {end}, the server only {}: another server writes there",
                        server.timeline, server.position
                    ),
                    "find the other server before one overwrites what the other means: lifeboat wal status --json",
                );
            }
        }
        Some(end) => {
            let bytes = server.position.0.saturating_sub(end.0);
            let behind = kept_until(facts).map(|time| server.now.duration_since(time).unsigned_abs());
            if bytes > 0 && behind.is_some_and(|behind| behind > facts.rpo) {
                let seconds = behind.unwrap_or_default().as_secs();
                say(
                    "rpo",
                    Critical,
                    format!(
                        "the last commit in the repository is {seconds} s old and {bytes} bytes of WAL are missing: the RPO of {} s is missed",
                        facts.rpo.as_secs()
                    ),
                    "see why WAL does not arrive: the server's log, lifeboat wal status",
                );
            } else if bytes > 0 && behind.is_none() {
                say(
                    "lag",
                    Warning,
                    format!("{bytes} bytes of WAL are missing, and nobody knows how old the last commit in the repository is"),
                    "see how old the last segment there is: lifeboat wal status; a backup has a time: lifeboat backup",
                );
            } else if bytes > LAG_WARNING_BYTES {
                say(
                    "lag",
                    Warning,
                    format!("the repository is {bytes} bytes of WAL behind the server"),
                    "see why WAL arrives late: the server's log",
                );
            }
        }
    }
    if facts.stranded {
        // c076: the segments arrive, and yet nothing leads to them.
        say(
            "no-backup-on-timeline",
            Critical,
            format!(
                "no backup leads along timeline {}: what is committed on it reaches the repository, and cannot be brought back",
                server.timeline
            ),
            "take one now: lifeboat backup",
        );
    }
    if let Some(why) = facts.no_way.as_ref().filter(|_| facts.archive_end.is_some()) {
        // c051: the segments arrive, and yet recovery cannot go by them.
        say(
            "history-missing",
            Critical,
            format!("the WAL of timeline {} in the repository cannot be replayed: {why}", server.timeline),
            &format!(
                "in the server's data directory, as its user: lifeboat wal push pg_wal/{:08X}.history; then look again",
                server.timeline.0
            ),
        );
    }
    slots(server, facts, &mut say);
    if facts.synchronous != Synchronous::No && facts.receives {
        if server.synchronous_standby_names.trim().is_empty() {
            say(
                "not-synchronous",
                Critical,
                "wal.mode is sync, but synchronous_standby_names is empty: commits wait for nobody".into(),
                "set synchronous_standby_names to the receiver's application_name and reload the server",
            );
        } else if server.synchronous_now.is_empty() {
            say(
                "no-synchronous-standby",
                Critical,
                "no synchronous receiver is connected: commits wait".into(),
                "start it: lifeboat wal receive",
            );
        }
    }
    findings
}

fn slots(server: &ServerWal, facts: &WalFacts<'_>, say: &mut dyn FnMut(&'static str, Severity, String, &str)) {
    use Severity::{Critical, Warning};
    for slot in server.slots.iter().filter(|slot| slot.physical) {
        let ours = slot.name == facts.slot;
        match slot.wal_status.as_deref() {
            Some("lost") if ours => say(
                "slot-lost",
                Critical,
                format!("slot {} has lost WAL that it needed", slot.name),
                "drop it and receive anew: lifeboat wal receive --drop-slot, then start the receiver; and only then take a new backup: lifeboat backup",
            ),
            Some("unreserved") if ours => say(
                "slot-at-risk",
                Critical,
                format!("slot {} loses WAL with the next checkpoint", slot.name),
                "let the receiver catch up: lifeboat wal receive; raise max_slot_wal_keep_size",
            ),
            _ => {}
        }
        let held = slot.restart_lsn.map_or(0, |lsn| server.position.0.saturating_sub(lsn.0));
        if slot.safe_wal_bytes.is_some_and(|safe| ours && safe < held / 4 && slot.wal_status.as_deref() == Some("extended")) {
            say(
                "slot-at-risk",
                Warning,
                format!("slot {} holds {held} bytes of WAL, near max_slot_wal_keep_size", slot.name),
                "let the receiver catch up: lifeboat wal receive; raise max_slot_wal_keep_size",
            );
        }
        if !slot.active && held > 1 << 30 && server.max_slot_wal_keep_bytes.is_none() {
            // c055
            say(
                "slot-unbounded",
                Warning,
                format!("slot {} is not in use and holds {held} bytes of WAL, without a limit", slot.name),
                "start its receiver or drop it; max_slot_wal_keep_size limits what a slot may hold",
            );
        }
    }
    let there = server.slots.iter().any(|slot| slot.physical && slot.name == facts.slot);
    if facts.receives && !there && !server.in_recovery {
        // c056, c057
        say(
            "slot-missing",
            Critical,
            format!("the server has no physical slot {}", facts.slot),
            "lifeboat wal receive makes it when it starts",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> ServerWal {
        ServerWal {
            version_num: 150_018,
            system_id: SystemId(7),
            timeline: Timeline(1),
            in_recovery: false,
            standby: None,
            position: Lsn(0x300_0000),
            now: "2024-03-15T12:00:00Z".parse().unwrap(),
            wal_level: "replica".into(),
            archive_mode: "on".into(),
            archiver_set: Some(true),
            archive_timeout_seconds: 60,
            archiver: None,
            ready: Some(0),
            slots: Vec::new(),
            max_slot_wal_keep_bytes: None,
            synchronous_standby_names: String::new(),
            synchronous_now: Vec::new(),
            pg_wal_bytes: None,
        }
    }

    fn facts(server: &ServerWal) -> WalFacts<'_> {
        WalFacts {
            server: Some(server),
            server_trouble: None,
            archive_end: Some(Lsn(0x300_0000)),
            no_way: None,
            stranded: false,
            last_commit: Some("2024-03-15T11:59:00Z".parse().unwrap()),
            last_piece: None,
            segment_size: Some(SegmentSize::DEFAULT),
            gaps: Vec::new(),
            receives: false,
            synchronous: Synchronous::No,
            slot: "lifeboat",
            receiver: None,
            rpo: Duration::from_secs(3600),
            now: "2024-03-15T12:00:01Z".parse().unwrap(),
        }
    }

    /// A receiver that is well.
    fn receiver() -> ReceiverSeen {
        ReceiverSeen { age_seconds: 1, degraded: false, connected: true, caught_up: None, store_trouble: None, spool_trouble: None }
    }

    /// Its slot, in use.
    fn slot(status: &str) -> Slot {
        Slot {
            name: "lifeboat".into(),
            physical: true,
            active: true,
            wal_status: Some(status.into()),
            restart_lsn: None,
            safe_wal_bytes: None,
        }
    }

    fn codes(facts: &WalFacts<'_>) -> Vec<&'static str> {
        assess(facts).iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn every_code_is_documented() {
        let page = include_str!("../../../../docs/wal.md");
        for code in CODES {
            assert!(page.contains(&format!("| `{code}` |")), "{code} is not in docs/wal.md");
        }
    }

    #[test]
    fn nothing_is_said_when_all_is_well() {
        assert_eq!(assess(&facts(&server())), []);
    }

    #[test]
    fn c063_a_gap_that_a_newer_backup_has_behind_it_is_no_longer_critical_unless_somebody_made_it() {
        let server = server();
        let severity = |story, is_passed| {
            let gaps = vec![GapSeen { text: "WAL is missing".into(), is_passed, story }];
            let findings = assess(&WalFacts { gaps, ..facts(&server) });
            assert_eq!((findings.len(), findings[0].code, findings[0].message.as_str()), (1, "gap", "WAL is missing"));
            findings[0].severity
        };
        for story in [GapStory::Recorded, GapStory::NotBegun, GapStory::BeforeAll, GapStory::Gone] {
            assert_eq!(severity(story, false), Severity::Critical, "{story:?}");
            let passed = if story == GapStory::Gone { Severity::Critical } else { Severity::Warning };
            assert_eq!(severity(story, true), passed, "{story:?}");
        }
    }

    #[test]
    fn a_receiver_that_streams_and_can_store_nothing_is_told() {
        let server = server();
        let seen = receiver();
        let with =
            |synchronous, seen: ReceiverSeen| assess(&WalFacts { receives: true, synchronous, receiver: Some(seen), ..facts(&server) });
        let of = |seen| with(Synchronous::Repository, seen);
        let well: Vec<_> = of(seen.clone()).iter().map(|finding| finding.code).collect();
        let found = of(ReceiverSeen { store_trouble: Some("no space".into()), ..seen.clone() });
        let finding = found.iter().find(|finding| finding.code == "store-failing").expect("a finding");
        assert_eq!(finding.message, "the repository takes nothing from the WAL receiver: commits wait: no space");
        assert_eq!((found.len(), finding.severity), (well.len() + 1, Severity::Critical));
        let found = of(ReceiverSeen { spool_trouble: Some("no space".into()), ..seen.clone() });
        assert!(found.iter().any(|finding| finding.code == "spool-failing"));
        let says = |synchronous, code, seen: &ReceiverSeen| {
            with(synchronous, seen.clone()).into_iter().find(|finding| finding.code == code).expect("a finding").message
        };
        let store = ReceiverSeen { store_trouble: Some("no space".into()), ..seen.clone() };
        let spool = ReceiverSeen { spool_trouble: Some("no space".into()), ..seen };
        assert_eq!(
            says(Synchronous::Spool, "store-failing", &store),
            "the repository takes nothing from the WAL receiver: commits wait when the spool is full: no space"
        );
        assert_eq!(says(Synchronous::No, "store-failing", &store), "the repository takes nothing from the WAL receiver: no space");
        assert_eq!(
            says(Synchronous::Spool, "spool-failing", &spool),
            "the spool takes nothing from the WAL receiver: commits wait: no space"
        );

        let (now, trouble) = (Timestamp::UNIX_EPOCH, Some("it".to_owned()));
        let before = |seconds: i64| Timestamp::from_second(-seconds).unwrap();
        assert_eq!(lasting(trouble.as_ref(), before(30), now), None);
        assert_eq!(lasting(trouble.as_ref(), before(31), now), trouble);
        assert_eq!((age_seconds(before(7), now), age_seconds(before(-60), now), age_seconds(before(-3600), now)), (7, 0, 3600));
    }

    #[test]
    fn c055_wal_that_piles_up_is_told_before_it_fills_the_disk() {
        let slot = Slot {
            name: "forgotten".into(),
            physical: true,
            active: false,
            wal_status: Some("extended".into()),
            restart_lsn: Some(Lsn(0)),
            safe_wal_bytes: None,
        };
        let server = ServerWal { ready: Some(17), position: Lsn(2 << 30), slots: vec![slot], ..server() };
        assert_eq!(codes(&WalFacts { archive_end: Some(Lsn(2 << 30)), ..facts(&server) }), ["archive-backlog", "slot-unbounded"]);
    }

    #[test]
    fn c056_a_slot_that_lost_or_will_lose_wal_is_told() {
        for (status, code) in [("lost", "slot-lost"), ("unreserved", "slot-at-risk")] {
            let slot = slot(status);
            let server = ServerWal { slots: vec![slot], ..server() };
            let up = Some(receiver());
            assert_eq!(codes(&WalFacts { receives: true, receiver: up, ..facts(&server) }), [code]);
        }
        let up = Some(receiver());
        assert_eq!(codes(&WalFacts { receives: true, receiver: up, ..facts(&server()) }), ["slot-missing"]);
    }

    #[test]
    fn c065_an_idle_server_without_archive_timeout_is_told() {
        let quiet = ServerWal { archive_timeout_seconds: 0, ..server() };
        assert_eq!(codes(&facts(&quiet)), ["archive-timeout"]);
        let off = ServerWal { archive_mode: "off".into(), ..server() };
        assert_eq!(codes(&facts(&off)), ["archive-off"]);
    }

    #[test]
    fn an_archiver_that_fails_is_told_and_one_that_recovered_is_not() {
        let mut archiver = Archiver {
            last_archived: None,
            last_archived_time: Some("2024-03-15T11:00:00Z".parse().unwrap()),
            last_failed: Some("000000010000000000000003".into()),
            last_failed_time: Some("2024-03-15T11:30:00Z".parse().unwrap()),
            failed_count: 3,
        };
        let failing = ServerWal { archiver: Some(archiver.clone()), ..server() };
        assert_eq!(codes(&facts(&failing)), ["archive-failing"]);
        archiver.last_archived_time = Some("2024-03-15T11:31:00Z".parse().unwrap());
        let recovered = ServerWal { archiver: Some(archiver), ..server() };
        assert_eq!(codes(&facts(&recovered)), [""; 0]);
    }

    /// Its own position is all that it knows: the archive has all of that, and yet days may be lost.
    #[test]
    fn a_standby_that_follows_nobody_is_told() {
        let of = |streams, minutes: Option<i64>| {
            let replayed = minutes.map(|minutes| server().now - jiff::SignedDuration::from_mins(minutes));
            ServerWal { in_recovery: true, standby: Some(Standby { streams, replayed }), ..server() }
        };
        assert!(server().is_at_the_end() && of(true, Some(10_000)).is_at_the_end() && !of(false, Some(1)).is_at_the_end());
        let rpo = Duration::from_secs(24 * 3600);
        let told = |server: &ServerWal| codes(&WalFacts { rpo, ..facts(server) });
        assert_eq!(told(&of(true, Some(10_000))), [""; 0], "it is in step with a primary that has nothing to do");
        assert_eq!(told(&of(false, Some(60))), [""; 0], "it replays what an archive brings");
        assert_eq!(told(&of(false, Some(25 * 60))), ["standby-behind"]);
        assert_eq!(told(&of(false, None)), ["standby-behind"]);
    }

    #[test]
    fn lag_is_judged_by_bytes_and_by_the_objective() {
        let server = server();
        let behind =
            |end, last: &str| codes(&WalFacts { archive_end: Some(Lsn(end)), last_commit: Some(last.parse().unwrap()), ..facts(&server) });
        assert_eq!(behind(0x2FF_FF00, "2024-03-15T10:00:00Z"), ["rpo"]);
        // Old, but nothing is missing: a quiet server.
        assert_eq!(behind(0x300_0000, "2024-03-15T10:00:00Z"), [""; 0]);
        assert_eq!(behind(0x2FF_FF00, "2024-03-15T11:59:00Z"), [""; 0]);
        assert_eq!(behind(0, "2024-03-15T11:59:00Z"), ["lag"]);
        assert_eq!(codes(&WalFacts { archive_end: None, ..facts(&server) }), ["archive-empty"]);
    }

    /// The server notes once more which transactions run, and then nothing for days.
    #[test]
    fn c065_a_quiet_server_whose_segments_are_all_there_misses_no_objective() {
        let server = ServerWal { position: Lsn(0x300_0060), ..server() };
        let day_old = Some("2024-03-14T10:00:00Z".parse().unwrap());
        let told = |server: &ServerWal| codes(&WalFacts { last_commit: day_old, ..facts(server) });
        assert_eq!(told(&server), [""; 0]);
        assert_eq!(kept_until(&WalFacts { last_commit: day_old, ..facts(&server) }), Some("2024-03-15T11:59:00Z".parse().unwrap()));
        assert_eq!(told(&ServerWal { ready: None, ..server.clone() }), [""; 0], "the role may not look");
        // Otherwise a commit may be in what is missing.
        let failing =
            Archiver { last_archived: None, last_archived_time: None, last_failed: None, last_failed_time: day_old, failed_count: 1 };
        for (other, code) in [
            (ServerWal { archive_timeout_seconds: 0, ..server.clone() }, "archive-timeout"),
            (ServerWal { archive_mode: "off".into(), ..server.clone() }, "archive-off"),
            (ServerWal { archiver: Some(failing), ..server.clone() }, "archive-failing"),
        ] {
            assert_eq!(told(&other), [code, "rpo"]);
        }
        for other in [
            ServerWal { ready: Some(1), ..server.clone() },
            ServerWal { position: Lsn(0x400_0060), ..server.clone() },
            ServerWal { in_recovery: true, standby: Some(Standby { streams: true, replayed: None }), ..server.clone() },
        ] {
            assert_eq!(told(&other), ["rpo"]);
        }
        let open = WalFacts { archive_end: Some(Lsn(0x300_0020)), last_commit: day_old, ..facts(&server) };
        assert_eq!(codes(&open), ["rpo"], "a piece of the segment is there, and not the rest");
    }

    #[test]
    fn c058_what_was_streamed_a_moment_ago_is_no_day_old() {
        let slot = slot("reserved");
        let server = ServerWal { position: Lsn(0x900_0060), archive_timeout_seconds: 0, slots: vec![slot], ..server() };
        let seen = receiver();
        let time = |text: &str| Some(text.parse().unwrap());
        let base = WalFacts {
            receives: true,
            receiver: Some(seen.clone()),
            archive_end: Some(Lsn(0x900_0020)),
            last_commit: time("2024-03-14T10:00:00Z"),
            ..facts(&server)
        };
        assert_eq!(codes(&base), ["rpo"]);
        let fresh = WalFacts { last_piece: time("2024-03-15T11:59:58Z"), ..base.clone() };
        assert_eq!((codes(&fresh), kept_until(&fresh)), (vec![], fresh.last_piece));
        // Far behind, it may be storing what is a day old.
        assert_eq!(codes(&WalFacts { archive_end: Some(Lsn(0x600_0000)), ..fresh.clone() }), ["rpo"]);
        assert_eq!(codes(&WalFacts { last_piece: time("2024-03-15T10:00:00Z"), ..base.clone() }), ["rpo"]);
        // A commit after hours in which there was none: all before it is there.
        let caught_up = |seen: ReceiverSeen| {
            codes(&WalFacts { receiver: Some(ReceiverSeen { caught_up: time("2024-03-15T11:59:59Z"), ..seen }), ..base.clone() })
        };
        assert_eq!(caught_up(seen.clone()), [""; 0]);
        assert_eq!(caught_up(ReceiverSeen { age_seconds: 31, ..seen.clone() }), ["receiver-down", "rpo"]);
        assert_eq!(caught_up(ReceiverSeen { store_trouble: Some("no space".into()), ..seen }), ["store-failing", "rpo"]);
        // Nobody knows is not well.
        let unknown = WalFacts { last_commit: None, ..base };
        assert_eq!(codes(&unknown), ["lag"]);
        assert!(assess(&unknown)[0].message.contains("nobody knows how old the last commit"));
    }

    #[test]
    fn c059_a_synchronous_promise_that_nobody_keeps_is_told() {
        let slot = slot("reserved");
        let server = ServerWal { slots: vec![slot], ..server() };
        let seen = |connected, degraded, age_seconds| Some(ReceiverSeen { age_seconds, degraded, connected, ..receiver() });
        let sync = WalFacts { receives: true, synchronous: Synchronous::Spool, receiver: seen(true, false, 0), ..facts(&server) };
        assert_eq!(codes(&sync), ["not-synchronous"]);
        let waiting = ServerWal { synchronous_standby_names: "lifeboat".into(), ..server.clone() };
        assert_eq!(codes(&WalFacts { server: Some(&waiting), ..sync.clone() }), ["no-synchronous-standby"]);
        let in_step = ServerWal { synchronous_now: vec!["lifeboat".into()], ..waiting };
        assert_eq!(codes(&WalFacts { server: Some(&in_step), ..sync.clone() }), [""; 0]);
        assert_eq!(codes(&WalFacts { server: Some(&in_step), receiver: seen(true, true, 0), ..sync.clone() }), ["degraded"]);
        assert_eq!(codes(&WalFacts { server: Some(&in_step), receiver: seen(true, false, 31), ..sync.clone() }), ["receiver-down"]);
        assert_eq!(codes(&WalFacts { server: Some(&in_step), receiver: None, ..sync }), ["receiver-down"]);
    }

    #[test]
    fn c051_segments_that_arrive_without_their_history_are_told() {
        let server = ServerWal { timeline: Timeline(2), ..server() };
        let why = Some("follow timeline 2: the archive has no history file 00000002.history".to_owned());
        let lost = WalFacts { no_way: why.clone(), ..facts(&server) };
        assert_eq!(codes(&lost), ["history-missing"]);
        assert!(assess(&lost)[0].hint.contains("lifeboat wal push pg_wal/00000002.history"));
        // Nothing of the timeline is there at all: that says more.
        assert_eq!(codes(&WalFacts { archive_end: None, no_way: why, ..facts(&server) }), ["archive-empty"]);
    }

    #[test]
    fn c076_a_timeline_along_which_no_backup_leads_is_told_though_all_of_it_arrives() {
        let server = ServerWal { timeline: Timeline(2), ..server() };
        let stranded = WalFacts { stranded: true, ..facts(&server) };
        assert_eq!(codes(&stranded), ["no-backup-on-timeline"]);
        let finding = &assess(&stranded)[0];
        assert_eq!((finding.severity, finding.hint.as_str()), (Severity::Critical, "take one now: lifeboat backup"));
        assert!(finding.message.starts_with("no backup leads along timeline 2"), "{finding:?}");
    }

    #[test]
    fn a_server_that_does_not_answer_is_a_finding() {
        let server = server();
        let silent = WalFacts { server: None, server_trouble: Some("connection refused".into()), ..facts(&server) };
        assert_eq!(codes(&silent), ["server-unreachable"]);
    }
}
