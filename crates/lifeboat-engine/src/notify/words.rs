//! What people read of a message: one line of it, and what is cut where a place takes no more.

use lifeboat_core::alert::book::{Message, Notice};
use lifeboat_core::plain::plain;

/// A text in one line that does nothing where it is shown, of at most so many characters.
pub(super) fn line(text: &str, limit: usize) -> String {
    let text = plain(text.trim());
    match text.char_indices().nth(limit) {
        None => text,
        Some(_) => text.chars().take(limit.saturating_sub(1)).chain(['…']).collect(),
    }
}

/// The message in a line: the worst of it, and how much more there is.
pub(super) fn headline(message: &Message, limit: usize) -> String {
    let first = |notice: &Notice, word: &str| format!("{word}: {}", notice.alert.summary);
    let (text, more) = match (message.firing.first(), message.resolved.first()) {
        (Some(worst), _) => {
            let others = message.firing.len() - 1;
            let others = (others > 0).then(|| format!("{others} more"));
            let resolved = (!message.resolved.is_empty()).then(|| format!("{} resolved", message.resolved.len()));
            (first(worst, worst.alert.severity.word()), others.into_iter().chain(resolved).collect::<Vec<_>>())
        }
        (None, Some(over)) => {
            let others = message.resolved.len() - 1;
            (first(over, "resolved"), (others > 0).then(|| format!("{others} more")).into_iter().collect())
        }
        (None, None) => ("nothing".to_owned(), Vec::new()),
    };
    let tail = if more.is_empty() { String::new() } else { format!(" (and {})", more.join(", ")) };
    // The tail is short, and tells of what is not in the line.
    line(&text, limit.saturating_sub(tail.chars().count())) + &tail
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use lifeboat_core::alert::{Severity, trial};

    use super::*;

    fn notice(severity: Severity, summary: &str) -> Notice {
        let alert = lifeboat_core::alert::Alert { summary: summary.to_owned(), ..trial(severity) };
        Notice { alert, since: Timestamp::UNIX_EPOCH, seen: Timestamp::UNIX_EPOCH, again: false }
    }

    #[test]
    fn a_headline_tells_the_worst_and_how_much_more_there_is() {
        let (critical, warning) = (notice(Severity::Critical, "no backup"), notice(Severity::Warning, "WAL lags"));
        let said = |firing: &[&Notice], resolved: &[&Notice]| {
            let owned = |notices: &[&Notice]| notices.iter().map(|notice| (*notice).clone()).collect();
            headline(&Message { firing: owned(firing), resolved: owned(resolved) }, 60)
        };
        assert_eq!(said(&[&critical], &[]), "critical: no backup");
        assert_eq!(said(&[&critical, &warning], &[]), "critical: no backup (and 1 more)");
        assert_eq!(said(&[&warning], &[&critical]), "warning: WAL lags (and 1 resolved)");
        assert_eq!(said(&[&critical, &warning], &[&warning]), "critical: no backup (and 1 more, 1 resolved)");
        assert_eq!(said(&[], &[&critical, &warning]), "resolved: no backup (and 1 more)");
        let long = notice(Severity::Critical, &"x".repeat(200));
        let line = said(&[&long, &warning], &[]);
        assert!(line.chars().count() == 60 && line.ends_with("…  (and 1 more)".replace("  ", " ").as_str()), "{line}");
    }

    #[test]
    fn nothing_in_a_line_breaks_it() {
        assert_eq!(line(" a\r\nBcc: everybody\u{1b}[2J ", 100), "a\\u{d}\\u{a}Bcc: everybody\\u{1b}[2J");
        assert_eq!((line("abc", 3), line("abcd", 3)), ("abc".to_owned(), "ab…".to_owned()));
    }
}
