//! Does the user's own command succeed against the restored server?

use std::path::{Path, PathBuf};
use std::time::Duration;

use lifeboat_core::drill::{Check, CheckResult, Outcome};
use lifeboat_core::trace_context::{self, TraceContext};

use super::process::{How, Run};
use super::{conninfo_value, no_answer, timed};
use crate::postgres::Dsn;

/// Lines of its output that a report keeps.
const LINES: usize = 20;

/// Words that run a program behind something.
pub type Behind<'a> = dyn Fn(&Path) -> Vec<String> + 'a;

/// A command of the user, and what it is told.
#[derive(Clone, Copy)]
pub struct Smoke<'a> {
    /// The program and its arguments; no shell has a part in it. Empty: none is configured.
    pub command: &'a [String],
    /// The restored server, with the database that the command is to use.
    pub dsn: &'a Dsn,
    /// Where the artifacts were restored.
    pub artifacts: Option<&'a Path>,
    /// Id of the backup.
    pub backup: &'a str,
    /// The drill's directory: where the command runs, and its `HOME` and `TMPDIR`.
    pub directory: &'a Path,
    /// `PATH`.
    pub path: &'a str,
    /// User and group, where we are root.
    pub run_as: Option<(u32, u32)>,
    /// The words that run a program where the server runs: behind what keeps it apart, as its user. None: as it is.
    pub behind: Option<&'a Behind<'a>>,
    /// How long it may take.
    pub timeout: Duration,
    /// The span that what it does belongs to.
    pub trace: &'a TraceContext,
}

/// Runs it. It passes if it ends with 0; where it does not, the report has the last lines that it wrote. Its environment holds what it needs
/// for the drill and nothing of production's; when it ends, everything in its process group ends.
pub fn smoke(smoke: &Smoke<'_>) -> CheckResult {
    timed(|| {
        let result = |outcome, reason: String| CheckResult::new(Check::Smoke, outcome, reason);
        let Some((program, arguments)) = smoke.command.split_first() else {
            return result(Outcome::NotApplicable, "no drill.smoke is configured".into());
        };
        let environment = smoke.environment();
        let (program, arguments, run_as) = match smoke.entered(program, arguments) {
            Ok(entered) => entered,
            Err(why) => return result(Outcome::NotChecked, why),
        };
        let run = Run {
            program: &program,
            arguments: &arguments,
            environment: &environment,
            directory: smoke.directory,
            run_as,
            timeout: smoke.timeout,
        };
        let name = &smoke.command[0];
        let ended = match run.run() {
            Ok(ended) => ended,
            // A command that is not there says nothing about the backup, and nothing good about the drill.
            Err(error) => return result(Outcome::NotChecked, format!("{name} cannot be run: {error}")),
        };
        let passed = ended.how == How::Code(0);
        let last = ended.output.last_lines(LINES);
        let reason = match ended.how {
            How::Code(0) => format!("{name} ended with 0"),
            How::TimedOut => format!("{name} was stopped after {} s", smoke.timeout.as_secs()),
            how => no_answer(name, &how),
        };
        result(if passed { Outcome::Passed } else { Outcome::Failed }, reason).by(name.as_str()).with(last)
    })
}

impl Smoke<'_> {
    fn environment(&self) -> Vec<(String, String)> {
        let at = self.dsn.endpoint();
        let directory = self.directory.display().to_string();
        let dsn = [("host", &at.host), ("port", &at.port), ("user", &at.user), ("dbname", &at.database)]
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| format!("{name}={}", conninfo_value(value)))
            .collect::<Vec<_>>()
            .join(" ");
        let mut out: Vec<(String, String)> = [
            ("LIFEBOAT_DRILL_DSN", dsn),
            ("LIFEBOAT_DRILL_BACKUP", self.backup.to_owned()),
            ("LIFEBOAT_DRILL_DIRECTORY", directory.clone()),
            ("PGHOST", at.host),
            ("PGPORT", at.port),
            ("PGUSER", at.user),
            ("PGDATABASE", at.database),
            ("HOME", directory.clone()),
            ("TMPDIR", directory),
            ("PATH", self.path.to_owned()),
            ("LANG", "C.UTF-8".to_owned()),
            ("TZ", "UTC".to_owned()),
            (trace_context::VARIABLE, self.trace.to_string()),
        ]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        if let Some(artifacts) = self.artifacts {
            out.push(("LIFEBOAT_DRILL_ARTIFACTS".to_owned(), artifacts.display().to_string()));
        }
        out
    }

    /// The command, behind what keeps the server apart.
    #[allow(clippy::type_complexity, reason = "three parts of one command")]
    fn entered(&self, program: &str, arguments: &[String]) -> Result<(PathBuf, Vec<String>, Option<(u32, u32)>), String> {
        // A name without a slash is looked for in the command's PATH, not in ours.
        let program = match program.contains('/') {
            true => PathBuf::from(program),
            false => self
                .path
                .split(':')
                .map(|directory| Path::new(directory).join(program))
                .find(|path| path.is_file())
                .ok_or_else(|| format!("{program} is not in {}", self.path))?,
        };
        if let Some((wall, rest)) = self.behind.map(|behind| behind(&program)).as_deref().and_then(|words| words.split_first()) {
            return Ok((PathBuf::from(wall), rest.iter().chain(arguments).cloned().collect(), None));
        }
        Ok((program, arguments.to_vec(), self.run_as))
    }
}
