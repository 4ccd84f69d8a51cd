//! The lines on stderr: text for people, or one JSON object each for programs (docs/logs.md).
//!
//! Every line is written at once, so that the lines of several threads and processes do not get into one another.

use std::ffi::OsString;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::ValueEnum;
use jiff::Timestamp;
use lifeboat_core::plain::is_hidden;
use lifeboat_core::repository::Id;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::operation;

/// The environment variable that chooses the form.
pub(crate) const VARIABLE: &str = "LIFEBOAT_LOG_FORMAT";

/// The flag that does.
const FLAG: &str = "--log-format";

/// In which form lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

static JSON: AtomicBool = AtomicBool::new(false);

impl Format {
    /// As it is written.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }

    /// What the environment chooses.
    pub(crate) fn of_environment() -> Result<Option<Self>, Failure> {
        let text = std::env::var(VARIABLE).ok().filter(|text| !text.is_empty());
        text.map(|text| <Self as ValueEnum>::from_str(&text, false)).transpose().map_err(|_| {
            Failure::usage(format!("read {VARIABLE}: it is neither text nor json"))
                .hint("unset it, or choose with lifeboat --log-format json")
        })
    }

    /// What a command line and the environment choose, before anybody knows whether they can be read: for saying that they cannot.
    pub(crate) fn of_arguments(arguments: impl Iterator<Item = OsString>) -> Self {
        let words: Vec<String> = arguments.map(|word| word.to_string_lossy().into_owned()).collect();
        let behind = words.iter().position(|word| word == FLAG).and_then(|at| words.get(at + 1));
        let flag = behind.map(String::as_str).or_else(|| words.iter().find_map(|word| word.strip_prefix(FLAG)?.strip_prefix('=')));
        let chosen = flag.and_then(|text| <Self as ValueEnum>::from_str(text, false).ok());
        chosen.or_else(|| Self::of_environment().ok().flatten()).unwrap_or(Self::Text)
    }
}

/// Chooses the form of all lines from now on.
pub(crate) fn write_as(format: Format) {
    JSON.store(format == Format::Json, Ordering::Relaxed);
}

/// The form of lines.
pub(crate) fn format() -> Format {
    if JSON.load(Ordering::Relaxed) { Format::Json } else { Format::Text }
}

/// How much a line weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    Info,
    Warning,
    Error,
}

impl Level {
    /// As it stands before a text.
    fn word(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// How far a phase of an operation is.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct PhaseLine {
    pub(crate) phase: &'static str,
    pub(crate) seconds: f64,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    /// Of a phase that goes on: what it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) total_files: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) total_bytes: Option<u64>,
}

/// A line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line<'a> {
    pub(crate) level: Level,
    /// What it is, in a word that stands before the text.
    pub(crate) word: Option<&'a str>,
    pub(crate) message: &'a str,
    /// What to do: a word for that, and the text. For people a line of its own.
    pub(crate) hint: Option<(&'a str, &'a str)>,
    pub(crate) exit_code: Option<u8>,
    pub(crate) phase: Option<PhaseLine>,
    pub(crate) backtrace: Option<&'a str>,
}

impl<'a> Line<'a> {
    pub(crate) fn new(level: Level, message: &'a str) -> Self {
        Self { level, word: None, message, hint: None, exit_code: None, phase: None, backtrace: None }
    }

    /// Writes it. Nobody can be told if that fails.
    pub(crate) fn write(&self) {
        let text = match format() {
            Format::Text => self.text(),
            Format::Json => self.json(Timestamp::now(), operation::id(), operation::command()),
        };
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
    }

    fn text(&self) -> String {
        let mut text = self.word.map_or(String::new(), |word| format!("{word}: "));
        text.push_str(self.message);
        text.push('\n');
        if let Some((word, hint)) = self.hint {
            text.push_str(&format!("{word}: {hint}\n"));
        }
        text
    }

    fn json(&self, now: Timestamp, operation: Id, command: Option<&str>) -> String {
        let message = self.message.trim();
        // What is only room for the eyes.
        if message.is_empty() {
            return String::new();
        }
        let object = Object {
            time: format!("{now:.6}"),
            level: self.level,
            operation,
            command,
            kind: self.word.filter(|word| *word != self.level.word()),
            message,
            hint: self.hint.map(|(_, hint)| hint),
            exit_code: self.exit_code,
            phase: self.phase,
            backtrace: self.backtrace,
        };
        let mut text = harmless(&serde_json::to_string(&object).expect("an object has text keys only"));
        text.push('\n');
        text
    }
}

/// A line for programs; its members are in docs/logs.md.
#[derive(Serialize)]
struct Object<'a> {
    time: String,
    level: Level,
    operation: Id,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<u8>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    phase: Option<PhaseLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backtrace: Option<&'a str>,
}

/// The same JSON, with the characters escaped that would act on a terminal: JSON itself asks for that below U+0020 only. They stand within
/// texts and nowhere else, so a reader sees what was there.
fn harmless(json: &str) -> String {
    let mut units = [0; 2];
    json.chars().fold(String::with_capacity(json.len()), |mut out, c| {
        if is_hidden(c) {
            c.encode_utf16(&mut units).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
        } else {
            out.push(c);
        }
        out
    })
}

/// Passes on a line for programs that another process of ours has written: it has its own time and operation.
pub(crate) fn pass_on(object: &str) {
    let _ = std::io::stderr().lock().write_all(format!("{}\n", harmless(object)).as_bytes());
}

/// Makes a panic's message a line as all others are, where lines are for programs.
pub(crate) fn catch_panics() {
    let otherwise = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if format() == Format::Text {
            otherwise(panic);
            return;
        }
        // With RUST_BACKTRACE, as in the text that stands there otherwise.
        let backtrace = std::backtrace::Backtrace::capture();
        let captured = backtrace.status() == std::backtrace::BacktraceStatus::Captured;
        let backtrace = captured.then(|| backtrace.to_string());
        let message = panic.to_string();
        Line { word: Some("panic"), backtrace: backtrace.as_deref(), ..Line::new(Level::Error, &message) }.write();
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(line: &Line<'_>) -> serde_json::Value {
        let text = line.json(Timestamp::UNIX_EPOCH, Id([0xab; 16]), Some("wal push"));
        assert_eq!((text.matches('\n').count(), text.ends_with('\n')), (1, true), "{text}");
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_line_says_the_same_in_both_forms() {
        let line = Line { word: Some("danger"), hint: Some(("fix", "do it")), ..Line::new(Level::Error, "server: it is old") };
        assert_eq!(line.text(), "danger: server: it is old\nfix: do it\n");
        let expected = serde_json::json!({
            "time": "1970-01-01T00:00:00.000000Z", "level": "error", "operation": "ab".repeat(16), "command": "wal push",
            "kind": "danger", "message": "server: it is old", "hint": "do it",
        });
        assert_eq!(json(&line), expected);
        // The level's own word is not said twice.
        let line = Line { word: Some("warning"), ..Line::new(Level::Warning, "x") };
        assert_eq!((line.text().as_str(), json(&line).get("kind")), ("warning: x\n", None));
        assert_eq!(Line::new(Level::Info, "x").text(), "x\n");
    }

    #[test]
    fn phases_have_numbers() {
        let phase = PhaseLine { phase: "copy", seconds: 1.5, files: 3, bytes: 4096, total_files: None, total_bytes: Some(8192) };
        let line = json(&Line { phase: Some(phase), ..Line::new(Level::Info, "copy: done") });
        assert_eq!((line["phase"].as_str(), line["seconds"].as_f64(), line["files"].as_u64()), (Some("copy"), Some(1.5), Some(3)));
        assert_eq!((line["bytes"].as_u64(), line["total_bytes"].as_u64(), line.get("total_files")), (Some(4096), Some(8192), None));
    }

    #[test]
    fn many_lines_are_one_line_and_nothing_acts_on_a_terminal() {
        let message = "\n== a \"title\"\nwith\u{1b}[2K \u{9b}31m \u{202e}bad\u{E0041} größe\n";
        let line = Line::new(Level::Info, message);
        let text = line.json(Timestamp::UNIX_EPOCH, Id([0; 16]), None);
        assert!(!text.trim_end().chars().any(is_hidden), "{text:?}");
        assert_eq!(json(&line)["message"], message.trim());
        assert_eq!(Line::new(Level::Info, "\n").json(Timestamp::UNIX_EPOCH, Id([0; 16]), None), "");
    }

    #[test]
    #[ignore = "it panics: the next one looks at what that says"]
    fn panics() {
        write_as(Format::Json);
        catch_panics();
        panic!("in two\nlines");
    }

    #[test]
    fn a_panic_is_a_line() {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "log::tests::panics", "--ignored", "--nocapture"]).env("RUST_BACKTRACE", "1");
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        let line: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!((line["level"].as_str(), line["kind"].as_str()), (Some("error"), Some("panic")), "{text}");
        assert!(line["message"].as_str().unwrap().ends_with("in two\nlines") && line["backtrace"].as_str().unwrap().len() > 100, "{text}");
    }

    #[test]
    fn the_form_is_known_before_the_command_line_is() {
        let of = |line: &str| Format::of_arguments(line.split(' ').map(OsString::from));
        for line in ["lifeboat --log-format json backup", "lifeboat backup --nope --log-format=json"] {
            assert_eq!(of(line), Format::Json, "{line}");
        }
        for line in ["lifeboat backup", "lifeboat --log-format", "lifeboat --log-format=yaml", "lifeboat --log-format text"] {
            assert_eq!(of(line), Format::Text, "{line}");
        }
    }
}
