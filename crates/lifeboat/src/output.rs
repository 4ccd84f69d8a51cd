//! What is said, and where: data to stdout, everything else to stderr.

use std::io::{BufRead as _, BufReader, IsTerminal as _, Read, Write as _};
use std::sync::{Mutex, PoisonError};

pub(crate) use lifeboat_core::plain::plain;
use serde::Serialize;

use crate::failure::Failure;
use crate::log::{self, Format, Line, PhaseLine};
use crate::{operation, traces};

pub(crate) use crate::log::Level;

/// Where output goes, and in which form.
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// A command's result: one JSON document, or text for people.
    pub(crate) fn result(&self, document: &impl Serialize, text: impl FnOnce() -> String) {
        let text = if self.json {
            let mut json = serde_json::to_string_pretty(document).unwrap_or_else(|error| format!("{{\"error\": \"{error}\"}}"));
            json.push('\n');
            json
        } else {
            text()
        };
        self.raw(&text);
    }

    /// A result in a form of its own.
    pub(crate) fn raw(&self, text: &str) {
        match std::io::stdout().write_all(text.as_bytes()).and_then(|()| std::io::stdout().flush()) {
            // A closed pipe is the reader's way to say "enough".
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => warn(&format!("the result could not be printed: {error}")),
            _ => {}
        }
    }

    /// Why the command failed: one line, and a hint.
    pub(crate) fn failure(&self, failure: &Failure) {
        self.complain(Level::Error, "error", failure);
    }

    /// The same of a failure that only means "try again".
    pub(crate) fn warning(&self, failure: &Failure) {
        self.complain(Level::Warning, "warning", failure);
    }

    fn complain(&self, level: Level, word: &str, failure: &Failure) {
        if self.json {
            let document = serde_json::json!({"error": {
                "message": failure.message, "hint": failure.hint, "exit_code": failure.code, "operation": operation::id(),
            }});
            self.result(&document, String::new);
        }
        let hint = failure.hint.as_deref().map(|hint| ("hint", hint));
        Line { word: Some(word), hint, exit_code: Some(failure.code), ..Line::new(level, &failure.message) }.write();
        // Every line for programs has it.
        if log::format() == Format::Text && traces::is_sent() {
            say(&format!("trace: {}", operation::id()));
        }
    }
}

/// A line for people, on stderr.
pub(crate) fn say(line: &str) {
    Line::new(Level::Info, line).write();
}

/// The warnings of this command, for the note about how it ended.
static WARNINGS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// So many are kept: whoever wants all of them reads the log.
const MOST_WARNINGS: usize = 5;

/// A warning, on stderr.
pub(crate) fn warn(line: &str) {
    let mut warnings = WARNINGS.lock().unwrap_or_else(PoisonError::into_inner);
    if warnings.len() < MOST_WARNINGS {
        warnings.push(line.to_owned());
    }
    drop(warnings);
    tell(Level::Warning, "warning", line, None);
}

/// What was warned of so far, in one line.
pub(crate) fn warnings() -> String {
    WARNINGS.lock().unwrap_or_else(PoisonError::into_inner).join("; ")
}

/// A line on stderr that begins with a word for what it is; and what to do about it, behind a word for that.
pub(crate) fn tell(level: Level, word: &str, message: &str, hint: Option<(&str, &str)>) {
    Line { word: Some(word), hint, ..Line::new(level, message) }.write();
}

/// How far a phase is, on stderr: in words, and in numbers for programs.
pub(crate) fn tell_phase(phase: PhaseLine, words: &str) {
    Line { phase: Some(phase), ..Line::new(Level::Info, words) }.write();
}

/// Asks a person, who answers on the line where the question stands.
pub(crate) fn ask(question: &str) {
    match log::format() {
        Format::Text => {
            let _ = write!(std::io::stderr(), "{question} ");
        }
        Format::Json => say(question),
    }
}

/// How much of a program's words is passed on.
const MOST_WORDS: u64 = 1 << 20;

/// Where a program that is started here may write its own words: to our stderr, or, where all lines have a form, to [`pass_on`].
pub(crate) fn words_of_programs() -> std::process::Stdio {
    match log::format() {
        Format::Text => std::process::Stdio::inherit(),
        Format::Json => std::process::Stdio::piped(),
    }
}

/// Says what a program writes, line by line. Nobody waits for it: a child of the program may hold its stderr open for ever.
pub(crate) fn pass_on(program: &str, words: impl Read + Send + 'static) {
    let program = program.to_owned();
    std::thread::spawn(move || {
        for line in BufReader::new(words.take(MOST_WORDS)).split(b'\n').map_while(Result::ok) {
            say(&format!("{program}: {}", String::from_utf8_lossy(&line)));
        }
    });
}

/// Said when a signal ends the process.
pub(crate) fn interrupted() {
    Line::new(Level::Warning, "interrupted; nothing half-written will be taken for whole").write();
}

/// Whether progress can be drawn.
pub(crate) fn can_draw() -> bool {
    std::io::stderr().is_terminal() && log::format() == Format::Text
}

/// Bytes for people.
pub(crate) fn bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// A duration for people.
pub(crate) fn seconds(duration: std::time::Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

/// Lines of a table, its columns aligned.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> =
        (0..header.len()).map(|c| rows.iter().map(|row| row[c].chars().count()).chain([header[c].len()]).max().unwrap_or(0)).collect();
    let line = |cells: Vec<&str>| {
        let padded: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        padded.join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(header.to_vec());
    for row in rows {
        text.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    text
}
