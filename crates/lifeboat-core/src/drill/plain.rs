//! Text from elsewhere, as a report may carry it.

use crate::plain::is_hidden;

/// The most characters of one sentence of a report. Names are at most 63 bytes long in PostgreSQL, but messages quote whole values.
pub const MAX_CHARS: usize = 600;

/// Text that a database, a program or a file chose, made harmless for a terminal and a page: nothing in it moves the cursor, changes
/// colours, hides itself or turns the direction of writing around, and it is one line of at most [`MAX_CHARS`] characters. What is hidden is
/// shown as `\u{…}`; line ends and tabs become a space.
pub fn plain(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.trim().chars();
    let mut count = 0;
    for c in chars.by_ref() {
        if count >= MAX_CHARS {
            out.push('…');
            break;
        }
        match c {
            '\n' | '\r' | '\t' if out.ends_with(' ') => continue,
            '\n' | '\r' | '\t' => out.push(' '),
            c if is_hidden(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
        count += 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_acts_on_a_terminal_and_nothing_is_endless() {
        assert_eq!(plain("a \u{1b}[2Jb\u{202e}c"), "a \\u{1b}[2Jb\\u{202e}c");
        assert_eq!(plain(" one\r\n\ttwo\0 "), "one two\\u{0}");
        assert_eq!(plain("schöne Größe „so“ ✓"), "schöne Größe „so“ ✓");
        let long = plain(&"x".repeat(1_000_000));
        assert_eq!(long.chars().count(), MAX_CHARS + 1);
        assert!(long.ends_with('…'));
        assert!(!plain(&"y".repeat(MAX_CHARS)).ends_with('…'));
    }
}
