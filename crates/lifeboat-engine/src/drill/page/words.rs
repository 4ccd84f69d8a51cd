//! Numbers, moments and foreign text on the page.

use jiff::Timestamp;
use lifeboat_core::plain::plain;
use maud::{Markup, html};

/// Text from elsewhere: escaped by the template, with everything spelled out that hides or turns around, and in a direction of its own.
pub(crate) fn shown(text: &str) -> Markup {
    html! { bdi { (plain(text)) } }
}

/// A number with its thousands apart.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push('\u{202F}');
        }
        text.push(digit);
    }
    text
}

/// Bytes, in units of 1024.
pub(crate) fn bytes(bytes: u64) -> String {
    let (mut number, mut unit) = (bytes as f64, "bytes");
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        if number < 1024.0 {
            break;
        }
        (number, unit) = (number / 1024.0, next);
    }
    if unit == "bytes" { format!("{bytes} bytes") } else { format!("{number:.1} {unit}") }
}

/// A moment, to the second.
pub(crate) fn moment(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// A place on a picture, in percent of its width. What is no number is at its beginning.
pub(crate) fn percent(part: f64) -> String {
    let part = if part.is_finite() { part.clamp(0.0, 100.0) } else { 0.0 };
    format!("{part:.2}%")
}

/// A duration that a picture can show.
pub(crate) fn measured(seconds: f64) -> Option<f64> {
    (0.0..1e11).contains(&seconds).then_some(seconds)
}
