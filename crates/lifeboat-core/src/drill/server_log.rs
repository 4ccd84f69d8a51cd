//! What a server's log says: errors that nobody provoked, and words of damage.
//!
//! The log is of a server that runs with `lc_messages = C`: in other languages severities have other names. What a message looks like is
//! said by `src/backend/utils/error/elog.c`, `send_message_to_server_log`: a prefix of the user's choice, the severity, a colon, two spaces.

use super::plain;

/// A part of a log.
#[derive(Debug, Clone, Copy)]
pub struct LogPart<'a> {
    /// Its text.
    pub text: &'a str,
    /// Somebody was allowed to provoke errors meanwhile: the user's own command. Then crashes and damage count only.
    pub provoked: bool,
}

/// What was read in a log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogFindings {
    /// Messages that were read.
    pub messages: u64,
    /// Messages that must not be there.
    pub bad: u64,
    /// The first of them.
    pub findings: Vec<String>,
    /// Warnings that an operator should know.
    pub notes: Vec<String>,
}

/// As `elog.c` names them. `NOTICE`, `INFO` and `DEBUG` are for clients.
const SEVERITIES: [&str; 16] = [
    "PANIC", "FATAL", "ERROR", "WARNING", "NOTICE", "INFO", "LOG", "DEBUG", "DEBUG1", "DEBUG2", "DEBUG3", "DEBUG4", "DEBUG5", "DETAIL",
    "HINT", "CONTEXT",
];

/// Messages of an error's severity that belong to starting, stopping, asking and cancelling. (`src/backend/postmaster/postmaster.c`,
/// `src/backend/tcop/postgres.c`, `src/backend/utils/init/postinit.c`.)
const EXPECTED: [(&str, &str); 12] = [
    ("the database system is starting up", ""),
    ("the database system is shutting down", ""),
    ("the database system is not yet accepting connections", ""),
    ("the database system is not accepting connections", ""),
    ("terminating connection due to administrator command", ""),
    ("terminating background worker ", "due to administrator command"),
    ("terminating autovacuum process due to administrator command", ""),
    ("terminating walreceiver process due to administrator command", ""),
    ("terminating connection due to conflict with recovery", ""),
    ("canceling statement due to conflict with recovery", ""),
    ("canceling statement due to statement timeout", ""),
    ("canceling statement due to user request", ""),
];

/// What a connection is refused with that asks for something which is not there: whoever connects to a restored server tries the names that its
/// superuser may have, and a user's assertion may name any database. Those that should be there are the business of other checks.
const REFUSED: [(&str, &str); 2] = [("role \"", "does not exist"), ("database \"", "does not exist")];

/// Words of damage, whatever the severity of the message they stand in.
const DAMAGE: [&str; 22] = [
    "page verification failed",
    "invalid page in block",
    "invalid page header",
    "could not read block",
    "could not read blocks",
    "could not access status of transaction",
    "is uninitialized --- fixing",
    "page is not marked all-visible",
    "PD_ALL_VISIBLE",
    "is incorrectly marked",
    "WAL contains references to invalid pages",
    "has subcommitted XIDs",
    "missing chunk number",
    "unexpected chunk number",
    "WAL was generated with \"wal_level=minimal\"",
    "WAL was generated with wal_level=minimal",
    "was terminated by signal",
    "terminated by exception",
    "all server processes terminated; reinitializing",
    "database files are incompatible",
    "invalid checkpoint record",
    "TRAP: ",
];

/// Warnings that say nothing about a backup: collations have a check of their own.
const HARMLESS: [&str; 3] = ["has a collation version mismatch", "has no actual collation version", "could not flush dirty data"];

/// The most notes that are kept.
const MAX_NOTES: usize = 10;

/// Reads a log.
pub fn judge(parts: &[LogPart<'_>]) -> LogFindings {
    let mut out = LogFindings::default();
    for part in parts {
        for line in part.text.lines() {
            judge_line(line, part.provoked, &mut out);
        }
    }
    out
}

fn judge_line(line: &str, provoked: bool, out: &mut LogFindings) {
    // Further lines of a message begin with a tab; what has no severity is of a program that the server ran.
    let Some((severity, message)) = split(line) else {
        if line.starts_with("TRAP: ") {
            bad(line, out);
        }
        return;
    };
    // Details and the text of statements quote what users write.
    if matches!(severity, "DETAIL" | "HINT" | "CONTEXT" | "STATEMENT") {
        return;
    }
    out.messages += 1;
    let damage = DAMAGE.iter().any(|words| message.contains(words));
    let is_one_of = |known: &[(&str, &str)]| known.iter().any(|(begin, end)| message.starts_with(begin) && message.ends_with(end));
    let fatal = match severity {
        "PANIC" => true,
        "FATAL" => !provoked && !is_one_of(&EXPECTED) && !is_one_of(&REFUSED),
        "ERROR" => !provoked && !is_one_of(&EXPECTED),
        _ => false,
    };
    if damage || fatal {
        bad(&format!("{severity}: {message}"), out);
    } else if severity == "WARNING" && !provoked && !HARMLESS.iter().any(|words| message.contains(words)) && out.notes.len() < MAX_NOTES {
        out.notes.push(plain(&format!("{severity}: {message}")));
    }
}

fn bad(text: &str, out: &mut LogFindings) {
    out.bad += 1;
    let text = plain(text);
    // One cause says the same again and again.
    if out.findings.len() < super::CheckResult::MAX_FINDINGS && !out.findings.contains(&text) {
        out.findings.push(text);
    }
}

/// Severity and message of a line. The prefix may hold anything, so the first severity with its colon and two spaces counts.
fn split(line: &str) -> Option<(&str, &str)> {
    if line.starts_with('\t') {
        return None;
    }
    line.match_indices(":  ").find_map(|(at, marker)| {
        let before = &line[..at];
        let word = before.rsplit(|c: char| !c.is_ascii_alphanumeric()).next()?;
        let known = SEVERITIES.contains(&word) || matches!(word, "STATEMENT" | "QUERY" | "LOCATION");
        known.then(|| (word, &line[at + marker.len()..]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(text: &str, provoked: bool) -> Vec<String> {
        judge(&[LogPart { text, provoked }]).findings
    }

    #[test]
    fn an_ordinary_recovery_has_nothing_to_say() {
        let log = "2026-08-01 12:00:00.000 UTC [17] LOG:  starting archive recovery\n\
            cp: cannot stat '/archive/000000010000000000000003': No such file or directory\n\
            2026-08-01 12:00:00 UTC [18] FATAL:  the database system is starting up\n\
            2026-08-01 12:00:00 UTC [18] FATAL:  role \"app\" does not exist\n\
            2026-08-01 12:00:01 UTC [17] LOG:  invalid record length at 0/3000110: expected at least 24, got 0\n\
            2026-08-01 12:00:02 UTC [19] WARNING:  database \"app\" has a collation version mismatch\n\
            2026-08-01 12:00:02 UTC [19] DETAIL:  ERROR:  quoted\n\
            2026-08-01 12:00:02 UTC [19] LOG:  statement: SELECT 'ERROR:  none'\n\
            \tERROR:  in a literal\n\
            2026-08-01 12:00:03 UTC [20] ERROR:  canceling statement due to statement timeout\n\
            2026-08-01 12:00:03 UTC [20] STATEMENT:  SELECT 'PANIC:  no'\n\
            2026-08-01 12:00:04 UTC [21] FATAL:  terminating background worker \"logical replication launcher\" due to administrator command\n\
            2026-08-01 12:00:04 UTC [22] FATAL:  terminating connection due to administrator command\n";
        let read = judge(&[LogPart { text: log, provoked: false }]);
        assert_eq!((read.bad, &read.findings[..], &read.notes[..]), (0, &[][..], &[][..]));
        assert_eq!(read.messages, 9);
    }

    #[test]
    fn errors_crashes_and_words_of_damage_count() {
        for (line, words) in [
            ("[1] PANIC:  could not locate a valid checkpoint record", "PANIC: could not locate a valid checkpoint record"),
            (
                "[1] FATAL:  could not restore file \"0001\" from archive: child process exited with exit code 127",
                "FATAL: could not restore",
            ),
            ("x ERROR:  could not read block 3 in file \"base/5/1\": read only 0 of 8192 bytes", "ERROR: could not read block"),
            ("x WARNING:  page verification failed, calculated checksum 1 but expected 2", "WARNING: page verification failed"),
            ("x LOG:  server process (PID 7) was terminated by signal 11: Segmentation fault", "LOG: server process"),
            ("ERROR:  no prefix at all", "ERROR: no prefix"),
            ("x ERROR:  role \"a\" does not exist", "ERROR: role"),
            ("app@db ERROR:  a second ERROR:  inside", "ERROR: a second ERROR:  inside"),
            ("TRAP: failed Assert(\"false\")", "TRAP: failed"),
            ("x FATAL:  role \"a\" is not permitted to log in", "FATAL: role"),
            ("x FATAL:  terminating connection due to unexpected postmaster exit", "FATAL: terminating"),
        ] {
            let found = findings(line, false);
            assert!(found.len() == 1 && found[0].starts_with(words), "{line}: {found:?}");
        }
    }

    #[test]
    fn what_a_user_may_provoke_is_no_damage_but_a_crash_is() {
        assert!(findings("x ERROR:  duplicate key value violates unique constraint", true).is_empty());
        assert_eq!(findings("x ERROR:  invalid page in block 3 of relation base/5/1", true).len(), 1);
        assert_eq!(findings("x PANIC:  corrupted item pointer", true).len(), 1);
    }

    #[test]
    fn control_characters_and_repetition_do_not_get_through() {
        let log = "x ERROR:  a\u{1b}[31m\n".repeat(1000) + &(0..100).map(|n| format!("x ERROR:  {n}\n")).collect::<String>();
        let read = judge(&[LogPart { text: &log, provoked: false }]);
        assert_eq!((read.bad, read.findings.len()), (1100, 20));
        assert_eq!(read.findings[0], "ERROR: a\\u{1b}[31m");
    }
}
