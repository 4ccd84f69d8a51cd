//! The settings of a drill's server, and what its log says of its start.
//!
//! The configuration files of production are not used. `postgresql.auto.conf` is read whatever one does, but what stands on the command line
//! wins over it (manual, "Setting Parameters"), and what a session asks for at its start wins over what `ALTER ROLE` and `ALTER DATABASE` set.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::postgres::control_file::Limits;

/// Libraries that act by themselves once they are loaded, and why a drill does not load them. Everything else that was recorded is.
const ACTING: [(&str, &str); 30] = [
    ("pg_cron", "it runs scheduled jobs"),
    ("pg_partman_bgw", "it makes and drops partitions"),
    ("pg_squeeze", "it rewrites tables"),
    ("pg_task", "it runs scheduled jobs"),
    ("pg_dbms_job", "it runs scheduled jobs"),
    ("pg_later", "it runs queued statements"),
    ("pg_durable", "it runs workflows"),
    ("pg_background", "it runs statements in the background"),
    ("pg_net", "it sends HTTP requests"),
    ("vectorize", "it runs queued jobs"),
    ("pglogical", "it replicates"),
    ("spock", "it replicates"),
    ("bdr", "it replicates"),
    ("pg_failover_slots", "it connects to the primary"),
    ("repmgr", "it takes part in a cluster of servers"),
    ("pgautofailover", "it steers a cluster of servers"),
    ("citus", "it connects to other servers and runs maintenance"),
    ("citus_columnar", "it belongs to citus"),
    ("bgw_replstatus", "it listens on a TCP port"),
    ("pg_prewarm", "it reads the cache of production back in"),
    ("powa", "it takes snapshots"),
    ("pgsentinel", "it samples sessions"),
    ("pg_wait_sampling", "it samples sessions"),
    ("pgpro_scheduler", "it runs scheduled jobs"),
    ("pg_timetable", "it runs scheduled jobs"),
    ("worker_spi", "it runs statements in the background"),
    ("basebackup_to_shell", "it runs commands"),
    ("basic_archive", "it archives"),
    ("pglogical_output", "it replicates"),
    ("steampipe_postgres_fdw", "it connects to services"),
];

/// What of `shared_preload_libraries` a drill loads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preload {
    /// Loaded, in their order.
    pub kept: Vec<String>,
    /// Not loaded, and why.
    pub left_out: Vec<(String, String)>,
}

/// Sorts out the recorded `shared_preload_libraries`: a list with commas, in which names may stand in double quotes.
pub fn preload(recorded: &str) -> Preload {
    let mut preload = Preload::default();
    for entry in recorded.split(',') {
        let entry = entry.trim();
        let entry = entry.strip_prefix('"').and_then(|entry| entry.strip_suffix('"')).unwrap_or(entry).replace("\"\"", "\"");
        if entry.is_empty() {
            continue;
        }
        let name = entry.rsplit('/').next().unwrap_or(&entry);
        let name = name.strip_suffix(".so").unwrap_or(name).to_ascii_lowercase();
        match ACTING.iter().find(|(acting, _)| *acting == name) {
            Some((_, why)) => preload.left_out.push((entry, (*why).to_owned())),
            None => preload.kept.push(entry),
        }
    }
    preload
}

/// What a server is started with.
#[derive(Debug, Clone, Default)]
pub struct ServerSettings<'a> {
    /// Major version.
    pub major: u32,
    /// Directory of its socket.
    pub socket: &'a str,
    /// Port, which with a socket is part of a file's name.
    pub port: u16,
    /// Its `pg_hba.conf`.
    pub hba: &'a str,
    /// Its `pg_ident.conf`.
    pub ident: &'a str,
    /// What hot standby needs.
    pub limits: Limits,
    /// As the server had it that wrote the WAL.
    pub track_commit_timestamp: bool,
    /// `shared_preload_libraries`.
    pub preload: &'a [String],
    /// Brings WAL.
    pub restore_command: &'a str,
    /// Where recovery ends: settings whose name begins with `recovery_target`.
    pub target: &'a [(String, String)],
    /// Whether it stops there and waits, instead of taking writes.
    pub pause: bool,
    /// Whether it answers while it is in recovery.
    pub hot_standby: bool,
    /// What the operator wants otherwise.
    pub wanted: BTreeMap<String, String>,
}

/// Settings that nobody may set, as they would undo what keeps a drill apart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// It is one of those that isolate the server, or that decide over what is checked.
    #[error("set {0} for the drill's server: a drill decides over it")]
    Fixed(String),
    /// Not a name.
    #[error("set {0:?} for the drill's server: that is no name of a setting")]
    Name(String),
    /// A value with a NUL byte or a line break.
    #[error("set {0} for the drill's server: its value has a line break or a NUL byte")]
    Value(String),
}

const LIMITS: [&str; 5] =
    ["max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_transactions", "max_locks_per_transaction"];

/// What the server runs with whatever anybody wants: the reasons stand beside each group.
fn fixed(server: &ServerSettings<'_>) -> Vec<(&'static str, String)> {
    let major = server.major;
    let mut all: Vec<(&'static str, String)> = Vec::new();
    let mut set = |name, value: &str| all.push((name, value.to_owned()));
    // Nobody outside of this host, and nobody on it who cannot enter the socket's directory.
    set("listen_addresses", "");
    set("unix_socket_directories", &list_entry(server.socket));
    set("unix_socket_permissions", "0700");
    set("unix_socket_group", "");
    set("port", &server.port.to_string());
    set("bonjour", "off");
    set("ssl", "off");
    set("ssl_passphrase_command", "");
    set("krb_server_keyfile", "");
    set("hba_file", server.hba);
    set("ident_file", server.ident);
    set("external_pid_file", "");
    // Nothing into an archive.
    set("archive_mode", "off");
    set("archive_command", "");
    if major >= 15 {
        set("archive_library", "");
    }
    set("archive_cleanup_command", "");
    set("recovery_end_command", "");
    // No replication, in neither direction; and nobody is waited for.
    set("primary_conninfo", "");
    set("primary_slot_name", "");
    set("wal_receiver_create_temp_slot", "off");
    set("hot_standby_feedback", "off");
    set("synchronous_standby_names", "");
    set("max_logical_replication_workers", "0");
    if major >= 17 {
        set("sync_replication_slots", "off");
        set("synchronized_standby_slots", "");
        set("summarize_wal", "off");
    }
    if major <= 15 {
        set("promote_trigger_file", "");
    }
    // No jobs, nothing that acts by itself.
    set("autovacuum", "off");
    set("shared_preload_libraries", &server.preload.iter().map(|library| list_entry(library)).collect::<Vec<_>>().join(", "));
    set("session_preload_libraries", "");
    set("local_preload_libraries", "");
    if server.preload.iter().any(|library| library.contains("timescaledb")) {
        set("timescaledb.max_background_workers", "0");
        set("timescaledb.telemetry_level", "off");
    }
    if major >= 17 {
        set("event_triggers", "off");
    }
    if major >= 18 {
        set("oauth_validator_libraries", "");
        // What the build of production had need not be in this one.
        set("io_method", "worker");
    }
    // The log in our file, in a language that is understood.
    set("logging_collector", "off");
    set("log_destination", "stderr");
    set("log_line_prefix", LINE_PREFIX);
    set("log_timezone", "UTC");
    set("log_min_messages", "warning");
    set("log_min_error_statement", "error");
    set("log_error_verbosity", "default");
    set("log_statement", "none");
    set("log_duration", "off");
    set("lc_messages", "C");
    if major <= 14 {
        // In the data directory, not where production has its own.
        set("stats_temp_directory", "pg_stat_tmp");
    }
    // Damage is an error, and a crash the end.
    set("zero_damaged_pages", "off");
    set("ignore_checksum_failure", "off");
    set("ignore_invalid_pages", "off");
    set("ignore_system_indexes", "off");
    set("restart_after_crash", "off");
    // Recovery, where and how it was planned. Two targets are an error, so all are cleared before one is set.
    set("restore_command", server.restore_command);
    for name in ["recovery_target", "recovery_target_name", "recovery_target_time", "recovery_target_xid", "recovery_target_lsn"] {
        set(name, "");
    }
    set("recovery_min_apply_delay", "0");
    set("hot_standby", if server.hot_standby { "on" } else { "off" });
    // Whoever checks a standby is not thrown out because replay goes on.
    set("max_standby_archive_delay", "-1");
    set("max_standby_streaming_delay", "-1");
    set("wal_level", "replica");
    set("track_commit_timestamp", if server.track_commit_timestamp { "on" } else { "off" });
    set("default_transaction_read_only", "off");
    all
}

/// In front of every line of the log: milliseconds since 1970 as seconds with a point (`%n`), and the process (`%p`).
pub const LINE_PREFIX: &str = "%n [%p] ";

/// An entry of a list (`SplitGUCList`, `SplitDirectoriesString` in `src/backend/utils/adt/varlena.c`): in double quotes.
fn list_entry(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// The settings, in the order in which they are given to the server.
///
/// # Errors
/// Where the operator wants one of those that a drill decides over.
pub fn settings(server: &ServerSettings<'_>) -> Result<Vec<(String, String)>, SettingError> {
    let fixed = fixed(server);
    // Sizes and pages of production need not be there on the host of a drill.
    let sized = [("shared_buffers", "128MB"), ("huge_pages", "try"), ("cluster_name", "lifeboat drill")];
    let mut all: Vec<(String, String)> = sized.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    if server.major >= 14 {
        all.push(("min_dynamic_shared_memory".into(), "0".into()));
    }
    let limits = server.limits;
    let floors =
        [limits.connections, limits.worker_processes, limits.wal_senders, limits.prepared_transactions, limits.locks_per_transaction];
    // The defaults of a server that was never configured.
    let defaults = [100, 8, 10, 0, 64];
    for ((name, floor), default) in LIMITS.into_iter().zip(floors).zip(defaults) {
        let wanted = server.wanted.get(name).and_then(|value| value.trim().parse().ok()).unwrap_or(default);
        all.push((name.into(), floor.max(wanted).to_string()));
    }
    for (name, value) in &server.wanted {
        let is_name = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        if name.is_empty() || !name.split('.').all(is_name) {
            return Err(SettingError::Name(name.clone()));
        }
        let lower = name.to_ascii_lowercase();
        let decided = ["config_file", "data_directory", "recovery_target_action", "recovery_target_timeline", "recovery_target_inclusive"];
        if fixed.iter().any(|(fixed, _)| *fixed == lower) || decided.contains(&lower.as_str()) || lower.starts_with("recovery_target") {
            return Err(SettingError::Fixed(name.clone()));
        }
        if value.contains(['\n', '\r', '\0']) {
            return Err(SettingError::Value(name.clone()));
        }
        if !LIMITS.contains(&lower.as_str()) {
            all.push((lower, value.clone()));
        }
    }
    all.extend(fixed.into_iter().map(|(name, value)| (name.to_owned(), value)));
    for (name, value) in server.target.iter().filter(|(name, _)| name.starts_with("recovery_target") && name != "recovery_target_action") {
        all.push((name.clone(), value.clone()));
    }
    all.push(("recovery_target_action".into(), if server.pause { "pause" } else { "promote" }.into()));
    Ok(all)
}

/// What a session of the drill asks for at its start (`options`): `ALTER ROLE … SET` and `ALTER DATABASE … SET` came back with the backup,
/// and win over the command line.
pub fn session_options(major: u32) -> String {
    let mut options = vec![
        "session_preload_libraries=",
        "local_preload_libraries=",
        "zero_damaged_pages=off",
        "ignore_checksum_failure=off",
        "default_transaction_read_only=off",
        "statement_timeout=0",
        "lock_timeout=0",
        "idle_in_transaction_session_timeout=0",
        "lc_messages=C",
    ];
    if major >= 17 {
        options.push("event_triggers=off");
    }
    options.iter().map(|option| format!("-c {option}")).collect::<Vec<_>>().join(" ")
}

/// What a log says of a start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogMoments {
    /// Replay begins.
    pub redo: Option<Timestamp>,
    /// From here on what is there is consistent.
    pub consistent: Option<Timestamp>,
    /// It takes queries, and no writes.
    pub read_only: Option<Timestamp>,
    /// Replay stops at its target, and waits.
    pub paused: Option<Timestamp>,
    /// Recovery is over.
    pub recovered: Option<Timestamp>,
    /// It takes writes.
    pub ready: Option<Timestamp>,
    /// A setting is lower than on the server that wrote the WAL, in its words.
    pub insufficient: Option<String>,
    /// The last FATAL or PANIC of a process that is not a session turned away.
    pub fatal: Option<String>,
    /// Complaints about settings: without them a FATAL says only that there are errors.
    pub complaints: Vec<String>,
}

/// A line of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLine<'a> {
    /// When; `None` where the line has another form: a program's output, the next line of a message.
    pub at: Option<Timestamp>,
    /// `LOG`, `ERROR`, `FATAL`, …; empty where there is none.
    pub severity: &'a str,
    /// What it says.
    pub message: &'a str,
}

/// Reads a line that begins with [`LINE_PREFIX`].
pub fn log_line(line: &str) -> LogLine<'_> {
    let parse = || {
        let (time, rest) = line.split_once(' ')?;
        let (seconds, milliseconds) = time.split_once('.')?;
        let milliseconds = seconds.parse::<i64>().ok()?.checked_mul(1000)?.checked_add(milliseconds.parse::<i64>().ok()?)?;
        let rest = rest.strip_prefix('[')?.split_once("] ")?.1;
        let (severity, message) = rest.split_once(':')?;
        Some(LogLine { at: Timestamp::from_millisecond(milliseconds).ok(), severity, message: message.trim_start() })
    };
    parse().unwrap_or(LogLine { at: None, severity: "", message: line })
}

/// What a session is told that comes too early or too late: no trouble of the server.
fn is_turned_away(message: &str) -> bool {
    message.starts_with("the database system is ")
        || message.starts_with("terminating connection due to administrator command")
        || message.starts_with("role ")
        || message.starts_with("database ")
}

/// What the log of one start says; the messages are PostgreSQL's (`xlogrecovery.c`, `xlog.c`, `postmaster.c`), in the language that
/// [`settings`] asks for.
pub fn moments(log: &str) -> LogMoments {
    let mut found = LogMoments::default();
    for line in log.lines() {
        let LogLine { at, severity, message } = log_line(line);
        let begins = |text: &str| message.starts_with(text);
        match severity {
            "LOG" if begins("redo starts at") => found.redo = found.redo.or(at),
            "LOG" if begins("consistent recovery state reached") => found.consistent = found.consistent.or(at),
            "LOG" if begins("database system is ready to accept read") => found.read_only = found.read_only.or(at),
            "LOG" if begins("pausing at the end of recovery") => found.paused = found.paused.or(at),
            "LOG" if begins("archive recovery complete") => found.recovered = found.recovered.or(at),
            "LOG" if begins("database system is ready to accept connections") => found.ready = found.ready.or(at),
            "LOG" if begins("invalid value for parameter") || begins("unrecognized configuration parameter") || begins("parameter \"") => {
                found.complaints.push(message.to_owned());
            }
            "WARNING" if begins("hot standby is not possible because of insufficient") => found.insufficient = Some(message.to_owned()),
            "FATAL" if begins("hot standby is not possible") || begins("recovery aborted because of insufficient") => {
                found.insufficient = Some(message.to_owned());
                found.fatal = Some(message.to_owned());
            }
            "FATAL" | "PANIC" if !is_turned_away(message) => found.fatal = Some(message.to_owned()),
            _ => {}
        }
    }
    found
}

/// The library that kept a server from starting (`load_libraries` in `src/backend/utils/init/miscinit.c`, `expand_dynamic_library_name`
/// and `internal_load_library` in `dfmgr.c`).
pub fn missing_library(fatal: &str) -> Option<&str> {
    let rest = fatal.strip_prefix("could not access file \"").or_else(|| fatal.strip_prefix("could not load library \""))?;
    rest.split_once('"').map(|(library, _)| library)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value<'a>(all: &'a [(String, String)], name: &str) -> &'a str {
        // The last one wins.
        all.iter().rfind(|(found, _)| found == name).map_or("(unset)", |(_, value)| value)
    }

    #[test]
    fn libraries_that_act_are_left_out() {
        let found = preload(r#" pg_stat_statements,"$libdir/pg_cron", "Odd, name" ,PGLOGICAL.so, auto_explain,"#);
        // A comma in quotes is not understood: both halves are kept, and the server says what it cannot find.
        assert_eq!(found.kept.first().map(String::as_str), Some("pg_stat_statements"));
        assert_eq!(found.kept.last().map(String::as_str), Some("auto_explain"));
        let left: Vec<&str> = found.left_out.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(left, ["$libdir/pg_cron", "PGLOGICAL.so"]);
        assert_eq!(preload(""), Preload::default());
    }

    #[test]
    fn nothing_that_isolates_can_be_set_otherwise() {
        for major in 13..=18 {
            let server = ServerSettings { major, socket: "/s", port: 5432, ..ServerSettings::default() };
            for (name, _) in fixed(&server) {
                for name in [name.to_owned(), name.to_ascii_uppercase()] {
                    let wanted = BTreeMap::from([(name.clone(), "x".to_owned())]);
                    assert_eq!(settings(&ServerSettings { wanted, ..server.clone() }), Err(SettingError::Fixed(name)));
                }
            }
        }
        let wanted = |name: &str, value: &str| {
            let wanted = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            settings(&ServerSettings { major: 15, wanted, ..ServerSettings::default() })
        };
        for name in ["config_file", "Data_Directory", "recovery_target_xid", "recovery_target_action"] {
            assert!(matches!(wanted(name, "1"), Err(SettingError::Fixed(_))), "{name}");
        }
        for name in ["", "a b", "a=b", "-c", "a..b", "1a"] {
            assert!(matches!(wanted(name, "1"), Err(SettingError::Name(_))), "{name}");
        }
        assert!(matches!(wanted("work_mem", "1\n2"), Err(SettingError::Value(_))));
        assert_eq!(value(&wanted("Work_Mem", "64MB").unwrap(), "work_mem"), "64MB");
        assert_eq!(value(&wanted("shared_buffers", "1GB").unwrap(), "shared_buffers"), "1GB");
    }

    #[test]
    fn limits_are_as_high_as_hot_standby_needs_and_the_target_comes_last() {
        let limits = Limits { connections: 500, prepared_transactions: 7, ..Limits::default() };
        let target = [
            ("recovery_target_lsn".to_owned(), "0/3000000".to_owned()),
            ("recovery_target_action".to_owned(), "promote".to_owned()),
            ("archive_mode".to_owned(), "on".to_owned()),
        ];
        let wanted = BTreeMap::from([("max_connections".to_owned(), "20".to_owned()), ("max_wal_senders".to_owned(), "30".to_owned())]);
        let server = ServerSettings { major: 15, limits, target: &target, pause: true, wanted, ..ServerSettings::default() };
        let all = settings(&server).unwrap();
        let found =
            ["max_connections", "max_prepared_transactions", "max_wal_senders", "max_worker_processes"].map(|name| value(&all, name));
        assert_eq!(found, ["500", "7", "30", "8"]);
        assert_eq!(value(&all, "recovery_target_lsn"), "0/3000000");
        assert_eq!(value(&all, "recovery_target_action"), "pause");
        assert_eq!(value(&all, "archive_mode"), "off");
        let clear = all.iter().position(|(name, value)| name == "recovery_target_time" && value.is_empty()).unwrap();
        let set = all.iter().position(|(name, value)| name == "recovery_target_lsn" && !value.is_empty()).unwrap();
        assert!(clear < set);
    }

    #[test]
    fn a_log_tells_when_what_happened() {
        let log = "1700000000.100 [7] LOG:  starting PostgreSQL 15.18\n\
                   1700000000.200 [9] LOG:  redo starts at 0/2000028\n\
                   1700000000.300 [9] LOG:  consistent recovery state reached at 0/2000100\n\
                   1700000000.310 [7] LOG:  database system is ready to accept read-only connections\n\
                   the feeder said something\n\
                   1700000000.320 [9] FATAL:  the database system is starting up\n\
                   1700000000.400 [9] LOG:  pausing at the end of recovery\n";
        let at = |milliseconds| Some(Timestamp::from_millisecond(milliseconds).unwrap());
        let found = moments(log);
        let times = (found.redo, found.consistent, found.read_only, found.paused, found.ready);
        assert_eq!(times, (at(1_700_000_000_200), at(1_700_000_000_300), at(1_700_000_000_310), at(1_700_000_000_400), None));
        assert_eq!(found.fatal, None);
        let died = moments("1.001 [9] FATAL:  could not access file \"nosuch\": No such file or directory\n");
        assert_eq!(missing_library(&died.fatal.unwrap()), Some("nosuch"));
        for odd in [
            "",
            "x",
            "1.2",
            "1.2 [",
            "1.2 [3] ",
            "99999999999999999999.1 [1] LOG:  x",
            "9223372036854775807.999 [1] LOG:  x",
            "é.é [é] é:é",
        ] {
            let _ = moments(odd);
        }
    }
}
