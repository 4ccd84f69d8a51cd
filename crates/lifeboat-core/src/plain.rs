//! Text from elsewhere, made harmless to look at.

/// The text with everything spelled out that does not stand for itself: nothing in it moves a cursor, changes colours, hides itself or turns the
/// direction of writing around.
pub fn plain(text: &str) -> String {
    text.chars().flat_map(|c| if is_hidden(c) { c.escape_unicode().collect::<Vec<char>>() } else { vec![c] }).collect()
}

/// Control characters, and those that are nothing to see but change what is seen around them.
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{00AD}' | '\u{061C}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{206F}' | '\u{FEFF}' | '\u{E0000}'..='\u{E007F}')
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
