//! The checks of a drill, one file per family. Each is a function that gives a [`CheckResult`] and never an error: what could not be
//! looked at is `not-checked` with the reason, and what ended the server while it was looked at is a failure.
//!
//! They must not know in which order they run, nor where the server came from. What they conclude from texts is decided in
//! `core/src/drill/`.

mod amcheck;
mod assertions;
mod backup_manifest;
mod catalog;
mod checksums;
mod collations;
mod cross_count;
mod heartbeat;
mod process;
mod references;
mod relations;
mod server_log;
mod smoke;
mod stored;
mod visibility_map;
mod write_probe;

pub use amcheck::{Depth, amcheck};
pub use assertions::assertions;
pub use backup_manifest::backup_manifest;
pub use catalog::catalog;
pub use checksums::{ChecksumsOf, checksums};
pub use collations::collations;
pub use heartbeat::{Recovered, recovered_moment};
pub use references::references;
pub use server_log::{LogPart, server_log};
pub use smoke::{Behind, Smoke, smoke};
pub use stored::stored;
pub use visibility_map::visibility_map;
pub use write_probe::write_probe;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lifeboat_core::drill::{Check, CheckResult, Outcome, tool_output};

use crate::postgres::{Connection, Dsn, PgError, Purpose, identifier};
use crate::restore::server;
use process::{How, Run};

/// The programs of PostgreSQL, and who runs them.
#[derive(Debug, Clone, Copy)]
pub struct Programs<'a> {
    /// Where they are; the usual places of `major` if not given.
    pub bin_directory: Option<&'a Path>,
    /// The version of the restored server.
    pub major: u32,
    /// User and group that they run as, where we are root.
    pub run_as: Option<(u32, u32)>,
    /// The directory that they run in: that user may enter it.
    pub directory: &'a Path,
}

/// How much is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Bytes of tables and indexes, or of files, that one check reads; `u64::MAX`: all.
    pub bytes: u64,
    /// Chooses which, if that is not all: the number of the drill, so that drills in a row see all of it
    /// ([`lifeboat_core::drill::rotation::rotate`]).
    pub seed: u64,
    /// When to stop; what is not looked at by then is said.
    pub deadline: Option<Instant>,
}

impl Budget {
    /// Everything, whatever it takes.
    pub const ALL: Self = Self { bytes: u64::MAX, seed: 0, deadline: None };

    /// How long there is left.
    fn left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    fn is_over(&self) -> bool {
        self.left().is_some_and(|left| left.is_zero())
    }
}

/// The drill's server, out of recovery.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Its superuser, over its socket. The database is replaced where another one is asked.
    pub dsn: &'a Dsn,
    /// Programs.
    pub programs: Programs<'a>,
    /// How much.
    pub budget: Budget,
}

impl Target<'_> {
    /// A session that nothing which production configured gets in the way of: no timeout, no read-only default, and no trigger (event
    /// triggers are fired by extensions that a check installs).
    fn connect(&self, database: &str) -> Result<Connection, PgError> {
        session(self.dsn, Some(database), self.budget.left())
    }

    /// The databases that take connections, by number and name.
    fn databases(&self) -> Result<Vec<(u32, String)>, PgError> {
        let connection = session(self.dsn, None, self.budget.left())?;
        let sql = "SELECT oid, datname FROM pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY oid";
        let rows = connection.query(sql, &[])?;
        rows.iter().map(|row| Ok((row.parse("oid")?, row.get("datname")?.to_owned()))).collect()
    }
}

/// See [`Target::connect`].
fn session(dsn: &Dsn, database: Option<&str>, left: Option<Duration>) -> Result<Connection, PgError> {
    let mut dsn = dsn.clone().with("application_name", "lifeboat drill");
    if let Some(database) = database {
        dsn = dsn.with("dbname", database);
    }
    let connection = Connection::open(&dsn, Purpose::Sql)?;
    for setting in [
        "SET session_replication_role = replica",
        "SET default_transaction_read_only = off",
        "SET lock_timeout = 0",
        "SET row_security = off",
        "SET role = none",
    ] {
        connection.execute(setting, &[])?;
    }
    if let Some(left) = left {
        connection.execute(&format!("SET statement_timeout = {}", left.as_millis().clamp(1, i32::MAX as u128)), &[])?;
    }
    Ok(connection)
}

/// The settings of [`session`], for programs that connect by themselves (manual, "Environment Variables", `PGOPTIONS`).
const SESSION_OPTIONS: &str = "-c session_replication_role=replica -c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0 \
     -c default_transaction_read_only=off -c role=none";

/// What an error of the server means for a check.
enum Trouble {
    /// What was looked at is damaged, or ended the server.
    Damage,
    /// There was no time left.
    Late,
    /// It could not be looked at.
    Unable,
}

impl Trouble {
    fn of(error: &PgError) -> Self {
        match error {
            // Reading data does not end a sound server. If memory was short, that is worth a red light too.
            PgError::Lost { .. } => Self::Damage,
            PgError::Sql { sqlstate, .. } if sqlstate == "57014" => Self::Late,
            // Classes: internal errors and data_corrupted, system errors, data exceptions (manual, appendix A).
            PgError::Sql { sqlstate, .. } if ["XX", "58", "22"].iter().any(|class| sqlstate.starts_with(class)) => Self::Damage,
            _ => Self::Unable,
        }
    }
}

/// What a check gathered while it looked at one thing after the other.
#[derive(Debug, Default)]
struct Gathered {
    /// What is bad.
    bad: Vec<String>,
    /// How much is.
    bad_count: u64,
    /// What could not be looked at, and why.
    unable: Vec<String>,
    /// What an operator should know, and is not bad.
    notes: Vec<String>,
    /// Bytes that were looked at.
    bytes: u64,
}

impl Gathered {
    fn bad(&mut self, finding: String) {
        self.bad_count += 1;
        if self.bad.len() < CheckResult::MAX_FINDINGS {
            self.bad.push(finding);
        }
    }

    fn unable(&mut self, why: String) {
        if self.unable.len() < CheckResult::MAX_FINDINGS {
            self.unable.push(why);
        }
    }

    fn note(&mut self, note: String) {
        if self.notes.len() < CheckResult::MAX_FINDINGS {
            self.notes.push(note);
        }
    }

    /// An error met while looking at `what`.
    fn error(&mut self, what: &str, error: &PgError) {
        match Trouble::of(error) {
            Trouble::Damage => self.bad(format!("{what}: {error}")),
            Trouble::Late => self.unable(format!("{what}: the time was over")),
            Trouble::Unable => self.unable(format!("{what}: {error}")),
        }
    }

    /// The result: bad beats not looked at, which beats good. `good` is the reason of a pass.
    fn result(self, check: Check, good: impl AsRef<str>) -> CheckResult {
        let more = |count: usize| if count > 1 { format!(", and {} more", count - 1) } else { String::new() };
        let (outcome, reason) = if let Some(first) = self.bad.first() {
            (Outcome::Failed, format!("{first}{}", more(self.bad_count as usize)))
        } else if let Some(first) = self.unable.first() {
            (Outcome::NotChecked, format!("{first}{}", more(self.unable.len())))
        } else {
            (Outcome::Passed, good.as_ref().to_owned())
        };
        CheckResult::new(check, outcome, reason).with(self.bad.into_iter().chain(self.unable).chain(self.notes))
    }
}

/// Runs a check and notes how long it took.
fn timed(check: impl FnOnce() -> CheckResult) -> CheckResult {
    let begun = Instant::now();
    let result = check();
    result.took(begun.elapsed().as_secs_f64())
}

/// A value in a connection string (manual, "Connection Strings"): in quotes, with backslashes before quotes and backslashes.
fn conninfo_value(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// One of PostgreSQL's programs that is there and has the right version.
struct Program {
    path: PathBuf,
    /// Its name and version, for reports.
    words: String,
}

impl Programs<'_> {
    /// Finds a program; the sentence says why there is none to use.
    fn find(&self, name: &str) -> Result<Program, String> {
        let path = server::program(self.bin_directory, self.major, name).map_err(|error| error.to_string())?;
        let ended = self.run(&path, vec!["--version".into()], Vec::new(), Duration::from_secs(30))?;
        let text = ended.output.head();
        match tool_output::major_version(&text) {
            Some(major) if major == self.major => Ok(Program { path, words: text.trim().replace("(PostgreSQL) ", "").trim().to_owned() }),
            _ => Err(format!("{} is not of PostgreSQL {}: it says {:?}", path.display(), self.major, text.trim())),
        }
    }

    /// Runs a program of PostgreSQL in an environment that holds nothing else; the sentence says why it did not start.
    fn run(
        &self,
        path: &Path,
        arguments: Vec<String>,
        environment: Vec<(String, String)>,
        timeout: Duration,
    ) -> Result<process::Ended, String> {
        let mut all = vec![("LC_ALL".into(), "C".into()), ("TZ".into(), "UTC".into()), ("PATH".into(), "/usr/bin:/bin".into())];
        all.extend(environment);
        let run = Run { program: path, arguments: &arguments, environment: &all, directory: self.directory, run_as: self.run_as, timeout };
        run.run().map_err(|error| format!("{} cannot be run: {error}", path.display()))
    }
}

/// How a program ended, where that is no answer.
fn no_answer(program: &str, how: &How) -> String {
    match how {
        How::Code(code) => format!("{program} ended with {code}"),
        How::Signal(signal) => format!("{program} was ended by signal {signal}"),
        How::TimedOut => format!("{program} was stopped: the time was over"),
    }
}

/// What time a program gets that nobody limits: a week, so that nothing hangs for ever.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_quotes_stay_names() {
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(conninfo_value("it's \\"), "'it\\'s \\\\'");
    }

    #[test]
    fn bad_beats_not_looked_at_beats_good() {
        let mut gathered = Gathered::default();
        gathered.note("n".into());
        let passed = Gathered { notes: vec!["n".into()], ..Gathered::default() }.result(Check::Log, "good");
        assert_eq!((passed.outcome, passed.reason.as_str(), passed.findings.len()), (Outcome::Passed, "good", 1));
        gathered.unable("u".into());
        gathered.error("t", &PgError::Sql { sqlstate: "57014".into(), message: "m".into(), hint: String::new() });
        let unable = Gathered { unable: gathered.unable.clone(), ..Gathered::default() }.result(Check::Log, "good");
        assert_eq!((unable.outcome, unable.reason.as_str()), (Outcome::NotChecked, "u, and 1 more"));
        gathered.error("t", &PgError::Lost { reason: "gone".into() });
        assert_eq!(gathered.result(Check::Log, "good").outcome, Outcome::Failed);
    }
}
