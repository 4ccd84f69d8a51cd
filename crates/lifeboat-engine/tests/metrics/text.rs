//! A small reader of both formats that takes nothing that they do not allow: not the crate that wrote them.

use std::collections::BTreeMap;

/// The labels of a series, its name with them as `__name__`.
pub(crate) type Labels = BTreeMap<String, String>;

/// What a text says.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Text {
    /// Type by the family's name.
    pub(crate) types: BTreeMap<String, String>,
    /// Help by the family's name.
    pub(crate) help: BTreeMap<String, String>,
    /// Unit by the family's name.
    pub(crate) units: BTreeMap<String, String>,
    /// All series.
    pub(crate) series: BTreeMap<Labels, f64>,
}

/// Reads a text; panics over one that is none.
pub(crate) fn read(text: &str) -> Text {
    let mut out = Text::default();
    assert!(text.is_empty() || text.ends_with('\n'), "the last line has no end");
    // Not lines(): a carriage return is no end of a line here.
    for line in text.split_terminator('\n') {
        if let Some(comment) = line.strip_prefix("# ") {
            let words: Vec<&str> = comment.splitn(3, ' ').collect();
            let (map, name, value) = match *words.as_slice() {
                ["EOF"] => continue,
                ["TYPE", name, value] => (&mut out.types, name, value),
                ["HELP", name, value] => (&mut out.help, name, value),
                ["UNIT", name, value] => (&mut out.units, name, value),
                _ => panic!("{line:?}"),
            };
            assert_eq!(map.insert(name.to_owned(), value.to_owned()), None, "{line:?} is there twice");
            continue;
        }
        let (labels, value) = sample(line);
        assert_eq!(out.series.insert(labels, value), None, "{line:?} is there twice");
    }
    out
}

fn sample(line: &str) -> (Labels, f64) {
    let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("{line:?}"));
    let mut labels = Labels::from([("__name__".to_owned(), line[..end].to_owned())]);
    assert!(line[..end].bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{line:?}");
    let mut rest = &line[end..];
    if let Some(mut inner) = rest.strip_prefix('{') {
        loop {
            let (name, after) = inner.split_once("=\"").unwrap_or_else(|| panic!("{line:?}"));
            assert!(!name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{line:?}");
            let mut value = String::new();
            let mut chars = after.char_indices();
            let quote = loop {
                match chars.next().unwrap_or_else(|| panic!("{line:?}")) {
                    (at, '"') => break at,
                    (_, '\\') => match chars.next() {
                        Some((_, 'n')) => value.push('\n'),
                        Some((_, escaped @ ('\\' | '"'))) => value.push(escaped),
                        other => panic!("{line:?}: {other:?}"),
                    },
                    (_, plain) => value.push(plain),
                }
            };
            assert_eq!(labels.insert(name.to_owned(), value), None, "{line:?}");
            inner = &after[quote + 1..];
            match inner.strip_prefix(',') {
                Some(next) => inner = next,
                None => break,
            }
        }
        rest = inner.strip_prefix('}').unwrap_or_else(|| panic!("{line:?}"));
    }
    // A timestamp would make node_exporter refuse the file.
    let value = rest.strip_prefix(' ').and_then(|value| value.parse().ok());
    (labels, value.unwrap_or_else(|| panic!("{line:?}")))
}
