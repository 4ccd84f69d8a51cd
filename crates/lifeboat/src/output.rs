//! What is said, and where: data to stdout, everything else to stderr.

use std::io::{IsTerminal as _, Write as _};

use serde::Serialize;

use crate::failure::Failure;

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
        match std::io::stdout().write_all(text.as_bytes()).and_then(|()| std::io::stdout().flush()) {
            // A closed pipe is the reader's way to say "enough".
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => warn(&format!("the result could not be printed: {error}")),
            _ => {}
        }
    }

    /// Why the command failed: one line, and a hint.
    pub(crate) fn failure(&self, failure: &Failure) {
        self.complain("error", failure);
    }

    /// The same of a failure that only means "try again".
    pub(crate) fn warning(&self, failure: &Failure) {
        self.complain("warning", failure);
    }

    fn complain(&self, what: &str, failure: &Failure) {
        if self.json {
            let document = serde_json::json!({"error": {"message": failure.message, "hint": failure.hint, "exit_code": failure.code}});
            self.result(&document, String::new);
        }
        say(&format!("{what}: {}", failure.message));
        if let Some(hint) = &failure.hint {
            say(&format!("hint: {hint}"));
        }
    }
}

/// A line for people, on stderr.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A warning, on stderr.
pub(crate) fn warn(line: &str) {
    say(&format!("warning: {line}"));
}

/// Said when a signal ends the process.
pub(crate) fn interrupted() {
    say("interrupted; nothing half-written will be taken for whole");
}

/// Whether progress can be drawn.
pub(crate) fn stderr_is_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// Bytes for people.
pub(crate) fn bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// A duration for people.
pub(crate) fn seconds(duration: std::time::Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

/// Text from elsewhere, for a terminal: nothing in it moves the cursor, changes colours, hides itself or turns the direction of writing around.
pub(crate) fn plain(text: &str) -> String {
    let is_hidden = lifeboat_core::drill::plain::is_hidden;
    text.chars().flat_map(|c| if is_hidden(c) { c.escape_unicode().collect::<Vec<char>>() } else { vec![c] }).collect()
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

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn nothing_in_text_from_elsewhere_acts_on_a_terminal() {
        assert_eq!(plain("/srv/größe"), "/srv/größe");
        assert_eq!(plain("a\u{1b}[2Kb\rc\nd\u{202e}e\u{200b}"), "a\\u{1b}[2Kb\\u{d}c\\u{a}d\\u{202e}e\\u{200b}");
    }
}
