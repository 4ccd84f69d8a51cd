//! What a user asserts by SQL about a restored database (`docs/drill-assertions.md`), and whether an answer is the asserted one.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

/// The most rows that `rows` may ask for: they are counted by being fetched.
pub const MAX_ROWS: u64 = 1_000_000;

/// One `[[drill.assert]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assertion {
    /// What it is called in reports.
    pub name: String,
    /// Database that is asked; the configured one if it is not named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// Role that asks; the superuser of the drill's server if none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// One `SELECT`, `VALUES` or `TABLE`.
    pub query: String,
    /// The one value must be just this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expected>,
    /// The one value is a number, and no less than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_least: Option<Number>,
    /// The one value is a number, and no more than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_most: Option<Number>,
    /// So many rows, of any kind: 0 for a query that lists what must not be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Seconds that it may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
}

/// A value as the configuration has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Expected {
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Number(Number),
    /// Text, compared byte by byte with what PostgreSQL prints.
    Text(String),
}

/// A number as the configuration has it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Number {
    /// A whole one.
    Whole(i64),
    /// Any other.
    Real(f64),
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole(number) => number.fmt(f),
            Self::Real(number) => number.fmt(f),
        }
    }
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => write!(f, "{text:?}"),
        }
    }
}

/// What an assertion asks of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Expectation {
    /// One row with one value: this one.
    Value(Expected),
    /// One row with one value: a number between these.
    Between(Option<Number>, Option<Number>),
    /// So many rows.
    Rows(u64),
}

/// An assertion that asserts nothing that could be judged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("drill.assert {name:?}: {problem}")]
pub struct AssertionError {
    /// Which.
    pub name: String,
    /// What is wrong with it.
    pub problem: String,
}

/// What a query gave, as far as a judgement needs it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// Rows that were counted: at most one more than was asked for.
    pub rows: u64,
    /// Columns of a row.
    pub columns: usize,
    /// The first value of the first row; `None`: NULL, or there is no row.
    pub value: Option<String>,
}

impl Assertion {
    /// What it asks of an answer, or why it asks nothing sensible.
    pub fn expectation(&self) -> Result<Expectation, AssertionError> {
        let bad = |problem: &str| Err(AssertionError { name: self.name.clone(), problem: problem.to_owned() });
        if self.name.trim().is_empty() {
            return bad("it has no name");
        }
        if self.query.trim().is_empty() || self.query.contains('\0') {
            return bad("it has no query");
        }
        if self.timeout_seconds == Some(0) {
            return bad("timeout_seconds is 0");
        }
        let finite = |number: &Option<Number>| !matches!(number, Some(Number::Real(number)) if !number.is_finite());
        let expected_finite = !matches!(&self.expect, Some(Expected::Number(Number::Real(number))) if !number.is_finite());
        if !finite(&self.at_least) || !finite(&self.at_most) || !expected_finite {
            return bad("infinities and \"not a number\" cannot be compared");
        }
        match (&self.expect, self.at_least, self.at_most, self.rows) {
            (Some(expected), None, None, None) => Ok(Expectation::Value(expected.clone())),
            // A query that always gives a row (`SELECT count(*) …`) would assert nothing if a row were enough.
            (None, None, None, None) => Ok(Expectation::Value(Expected::Bool(true))),
            (None, None, None, Some(rows)) if rows <= MAX_ROWS => Ok(Expectation::Rows(rows)),
            (None, None, None, Some(_)) => bad("rows is more than 1000000: let the query count, and use expect"),
            (None, low, high, None) => {
                if let (Some(low), Some(high)) = (low, high)
                    && compare(&high.to_string(), &low.to_string()) == Some(Ordering::Less)
                {
                    return bad("at_most is less than at_least");
                }
                Ok(Expectation::Between(low, high))
            }
            _ => bad("it has more than one of expect, at_least/at_most and rows"),
        }
    }
}

impl Expectation {
    /// So many rows have to be fetched to judge: one more than may come.
    pub fn rows_to_fetch(&self) -> u64 {
        match self {
            Self::Value(_) | Self::Between(..) => 2,
            Self::Rows(rows) => rows + 1,
        }
    }

    /// Whether the answer is the asserted one; the sentence says what it was instead.
    pub fn judge(&self, answer: &Answer) -> Result<(), String> {
        if let Self::Rows(rows) = self {
            return match answer.rows.cmp(rows) {
                Ordering::Equal => Ok(()),
                Ordering::Less => Err(format!("it gave {} rows, {rows} are expected", answer.rows)),
                Ordering::Greater => Err(format!("it gave more rows than the {rows} that are expected")),
            };
        }
        if (answer.rows, answer.columns) != (1, 1) {
            let rows = if answer.rows > 1 { "several rows".to_owned() } else { format!("{} rows", answer.rows) };
            return Err(format!("it gave {rows} of {} columns, one row with one value is expected", answer.columns));
        }
        let Some(value) = answer.value.as_deref() else { return Err(format!("it gave NULL, {} is expected", self.words())) };
        let holds = match self {
            Self::Value(Expected::Bool(expected)) => match value {
                "t" | "true" => *expected,
                "f" | "false" => !*expected,
                _ => false,
            },
            Self::Value(Expected::Number(number)) => compare(value, &number.to_string()) == Some(Ordering::Equal),
            Self::Value(Expected::Text(text)) => value == text,
            Self::Between(low, high) => {
                let against = |number: &Option<Number>, bad: Ordering| match number {
                    None => true,
                    Some(number) => compare(value, &number.to_string()).is_some_and(|order| order != bad),
                };
                against(low, Ordering::Less) && against(high, Ordering::Greater)
            }
            Self::Rows(_) => false,
        };
        if holds { Ok(()) } else { Err(format!("it gave {}, {} is expected", shown(value), self.words())) }
    }

    fn words(&self) -> String {
        match self {
            Self::Value(expected) => expected.to_string(),
            Self::Between(Some(low), Some(high)) => format!("a number from {low} to {high}"),
            Self::Between(Some(low), None) => format!("a number of at least {low}"),
            Self::Between(None, Some(high)) => format!("a number of at most {high}"),
            Self::Between(None, None) => "a number".into(),
            Self::Rows(rows) => format!("{rows} rows"),
        }
    }
}

/// A value in a sentence; the data of a table is not for reports, so no more of it than tells what it was.
fn shown(value: &str) -> String {
    let short: String = value.chars().take(80).collect();
    if short.len() < value.len() { format!("{short:?}… ({} bytes)", value.len()) } else { format!("{short:?}") }
}

/// A decimal number: its sign, its digits without zeros around, and the power of ten of the first of them.
struct Decimal {
    negative: bool,
    digits: Vec<u8>,
    exponent: i64,
}

/// Reads what PostgreSQL prints for any kind of number (`-12`, `3.50`, `1e+20`); `None` for everything else, `NaN` and `Infinity` too.
fn decimal(text: &str) -> Option<Decimal> {
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(at) => (&text[..at], text[at + 1..].parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    let digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).collect();
    let zeros = digits.iter().take_while(|digit| **digit == b'0').count();
    let mut digits = digits[zeros..].to_vec();
    while digits.last() == Some(&b'0') {
        digits.pop();
    }
    let exponent = whole.len() as i64 - zeros as i64 + i64::from(exponent);
    // There is one zero.
    let negative = negative && !digits.is_empty();
    let exponent = if digits.is_empty() { i64::MIN } else { exponent };
    Some(Decimal { negative, digits, exponent })
}

/// Compares two numbers exactly, whatever their size: through `f64`, 2^53 and 2^53 + 1 would be equal.
fn compare(left: &str, right: &str) -> Option<Ordering> {
    let (left, right) = (decimal(left)?, decimal(right)?);
    let sizes = || left.exponent.cmp(&right.exponent).then_with(|| left.digits.cmp(&right.digits));
    Some(match (left.negative, right.negative) {
        (false, false) => sizes(),
        (true, true) => sizes().reverse(),
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn assertion(json: &str) -> Result<Assertion, serde_json::Error> {
        serde_json::from_str(&format!("{{\"name\": \"n\", \"query\": \"SELECT 1\"{json}}}"))
    }

    fn judge(json: &str, value: Option<&str>) -> Result<(), String> {
        let answer = Answer { rows: 1, columns: 1, value: value.map(str::to_owned) };
        assertion(json).unwrap().expectation().unwrap().judge(&answer)
    }

    #[test]
    fn values_are_compared_as_what_they_are() {
        for (json, good, bad) in [
            (
                r#", "expect": 3"#,
                &["3", "3.00", "+3", "3e0", "0.3e1"][..],
                &["4", "3.0000000000000000000001", "three", "", "NaN", "-3"][..],
            ),
            (r#", "expect": 9007199254740993"#, &["9007199254740993"], &["9007199254740992"]),
            (r#", "expect": 0.1"#, &["0.1", "0.10", "1e-1"], &["0.1000001"]),
            (r#", "expect": "3""#, &["3"], &["3.0", " 3"]),
            (r#", "expect": true"#, &["t", "true"], &["f", "1", "yes"]),
            (r#", "expect": false"#, &["f"], &["t", ""]),
            ("", &["t"], &["f", "0", "17"]),
            (r#", "at_least": 10"#, &["10", "1e400", "10.5"], &["9.99", "-11", "Infinity", "x"]),
            (r#", "at_least": -2, "at_most": 2.5"#, &["-2", "0", "-0.0", "2.5"], &["-2.01", "2.51"]),
        ] {
            good.iter().for_each(|value| assert_eq!(judge(json, Some(value)), Ok(()), "{json} {value}"));
            bad.iter().for_each(|value| assert!(judge(json, Some(value)).is_err(), "{json} {value}"));
            assert!(judge(json, None).unwrap_err().contains("NULL"));
        }
    }

    #[test]
    fn a_value_is_one_row_with_one_value_and_rows_are_counted() {
        let value = assertion(r#", "expect": 1"#).unwrap().expectation().unwrap();
        for (rows, columns) in [(0, 1), (2, 1), (1, 2), (1, 0)] {
            assert!(value.judge(&Answer { rows, columns, value: Some("1".into()) }).is_err());
        }
        let rows = assertion(r#", "rows": 2"#).unwrap().expectation().unwrap();
        assert_eq!(rows.rows_to_fetch(), 3);
        for (count, holds) in [(0, false), (2, true), (3, false)] {
            assert_eq!(rows.judge(&Answer { rows: count, columns: 7, value: None }).is_ok(), holds);
        }
        let none = assertion(r#", "rows": 0"#).unwrap().expectation().unwrap();
        assert!(none.judge(&Answer { rows: 0, columns: 1, value: None }).is_ok());
        assert!(none.judge(&Answer { rows: 1, columns: 1, value: None }).is_err());
    }

    #[test]
    fn what_asserts_nothing_is_refused() {
        for json in [
            r#", "expect": 1, "rows": 1"#,
            r#", "expect": 1, "at_least": 1"#,
            r#", "at_least": 3, "at_most": 2"#,
            r#", "rows": 1000001"#,
            r#", "timeout_seconds": 0"#,
        ] {
            assert!(assertion(json).unwrap().expectation().is_err(), "{json}");
        }
        for json in [r#", "expected": 1"#, r#", "rows": -1"#, r#", "expect": [1]"#, r#", "at_least": "1""#] {
            assert!(assertion(json).is_err(), "{json}");
        }
        let nan = Assertion { at_least: Some(Number::Real(f64::NAN)), ..assertion("").unwrap() };
        assert!(nan.expectation().is_err());
        assert!(Assertion { query: " ".into(), ..assertion("").unwrap() }.expectation().is_err());
        assert!(Assertion { name: String::new(), ..assertion("").unwrap() }.expectation().is_err());
    }

    #[test]
    fn a_long_value_is_not_told_whole() {
        let said = judge(r#", "expect": "x""#, Some(&"s".repeat(5000))).unwrap_err();
        assert!(said.len() < 200 && said.contains("5000 bytes"), "{said}");
    }

    proptest! {
        #[test]
        fn numbers_compare_as_numbers(left in any::<i64>(), right in any::<i64>(), zeros in 0usize..3) {
            let padded = format!("{right}.{}", "0".repeat(zeros));
            prop_assert_eq!(compare(&left.to_string(), &padded), Some(left.cmp(&right)));
        }

        #[test]
        fn text_never_panics(text in ".{0,40}") {
            let _ = compare(&text, "1");
            let _ = compare("-0.5e7", &text);
        }
    }
}
