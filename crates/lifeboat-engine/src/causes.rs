//! An error with what led to it, as text: for findings and events, which are values.

use std::error::Error;

/// An error and its causes, none of them twice in a row.
pub fn joined(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let cause = source.to_string();
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Outer {
        text: &'static str,
        source: io::Error,
    }

    #[test]
    fn a_cause_that_is_named_already_is_not_named_again() {
        let joined = |text| joined(&Outer { text, source: io::Error::other("no such thing") });
        assert_eq!(joined("read it"), "read it: no such thing");
        assert_eq!(joined("read it: no such thing"), "read it: no such thing");
    }
}
