//! Sizes and time spans as people write them, in a file and on the command line. A file reads them while it is read, so that an error names the line.

use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::failure::Failure;

const SIZE: &str = "write a number with KiB, MiB, GiB or TiB";
const SPAN: &str = "write a number with ms, s, m or h";
const LONG_SPAN: &str = "write a number with w, d, h, m or s";

/// Bytes in a file, as [`parse_bytes`] reads them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size(pub(crate) u64);

/// A time span in a file, as [`parse_span`] reads it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span(pub(crate) Duration);

/// A time span in a file, as [`parse_days`] reads it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LongSpan(pub(crate) Duration);

/// Reads a text of a file; what is wrong is told in the words of [`parsed`], and with its line by whoever reads the file.
fn from_text<'de, D: Deserializer<'de>, T>(deserializer: D, what: &str, read: fn(&str) -> Option<T>, form: &str) -> Result<T, D::Error> {
    let text = String::deserialize(deserializer)?;
    read(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is not a {what}: {form}")))
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "size", bytes, SIZE).map(Self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "time span", span, SPAN).map(Self)
    }
}

impl<'de> Deserialize<'de> for LongSpan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "time span", days, LONG_SPAN).map(Self)
    }
}

fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let shift = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

fn span(text: &str) -> Option<Duration> {
    let span = text.trim().parse::<jiff::SignedDuration>().ok().and_then(|span| Duration::try_from(span).ok());
    span.filter(|span| !span.is_zero())
}

fn days(text: &str) -> Option<Duration> {
    let text = text.trim();
    let hours = |number: &str, each: u64| {
        let number: u64 = number.trim().parse().ok()?;
        number.checked_mul(each * 60 * 60).filter(|seconds| *seconds <= 1000 * 366 * 24 * 60 * 60).map(Duration::from_secs)
    };
    if let Some(days) = text.strip_suffix('d') {
        hours(days, 24)
    } else if let Some(weeks) = text.strip_suffix('w') {
        hours(weeks, 7 * 24)
    } else if matches!(text, "0" | "0s" | "0m" | "0h") {
        Some(Duration::ZERO)
    } else {
        span(text)
    }
}

fn parsed<T>(what: &str, text: &str, read: fn(&str) -> Option<T>, form: &str) -> Result<T, Failure> {
    read(text).ok_or_else(|| Failure::usage(format!("parse {what} {text:?}: {form}")).hint("lifeboat config show prints the settings"))
}

/// Bytes as people write them: `512MiB`, `1G`, `65536`.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, Failure> {
    parsed("size", text, bytes, SIZE)
}

/// A time span as people write it: `5s`, `24h`, `500ms`.
pub(crate) fn parse_span(text: &str) -> Result<Duration, Failure> {
    parsed("time span", text, span, SPAN)
}

/// A long span: `7d`, `4w` (days of 24 hours), or as [`parse_span`] reads it; `0` is one.
pub(crate) fn parse_days(text: &str) -> Result<Duration, Failure> {
    parsed("time span", text, days, LONG_SPAN)
}

/// A span as it could be written, without parts that are none.
pub(super) fn shown_span(span: Duration) -> String {
    if span.is_zero() { "0s".to_owned() } else { format!("{span:?}") }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn spans_are_read_as_people_write_them() {
        assert_eq!(parse_span("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(parse_span(" 24h").unwrap(), Duration::from_secs(86_400));
        for bad in ["", "5", "0s", "-5s", "1 parsec"] {
            assert!(parse_span(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn long_spans_are_read_in_days_and_weeks() {
        assert_eq!(parse_days("7d").unwrap(), Duration::from_secs(7 * 86_400));
        assert_eq!(parse_days(" 4 w").unwrap(), Duration::from_secs(28 * 86_400));
        assert_eq!(parse_days("36h").unwrap(), Duration::from_secs(36 * 3600));
        assert_eq!((parse_days("0s").unwrap(), parse_days("0d").unwrap()), (Duration::ZERO, Duration::ZERO));
        for bad in ["", "d", "-1d", "1.5d", "7", "1 month", "99999999999999999999d", "999999999999d", "7dd"] {
            assert!(parse_days(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(parse_bytes("512MiB").unwrap(), 512 << 20);
        assert_eq!(parse_bytes("1 G").unwrap(), 1 << 30);
        assert_eq!(parse_bytes("65536").unwrap(), 65536);
        for bad in ["", "MiB", "1.5G", "-1", "1 parsec", "99999999999T"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    /// `parse time span "off"` alone leaves a reader of a file of three hundred lines with a search.
    #[test]
    fn what_is_wrong_in_a_file_is_told_with_its_line() {
        for (text, told) in [
            ("name = \"x\"\n[objectives]\ndrill = \"off\"\n", "line 3: \"off\" is not a time span"),
            ("[limits]\nmemory = \"much\"\n", "line 2: \"much\" is not a size"),
            ("[wal]\n\nflush_interval = \"0s\"\n", "line 3: \"0s\" is not a time span"),
            ("[schedule.deadline]\nbackup = \"long\"\n", "line 2: \"long\" is not a time span"),
        ] {
            let error = super::super::parse(text, Path::new("lifeboat.toml")).unwrap_err();
            assert!(format!("{error:?}").replace("\\\"", "\"").contains(&format!("lifeboat.toml {told}")), "{error:?}");
        }
    }
}
