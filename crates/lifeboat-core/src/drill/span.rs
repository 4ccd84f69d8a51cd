//! Durations for people.

/// A duration in words that fit into a sentence: `0.41 s`, `34 s`, `17 min 22 s`, `5 h 30 min`, `3.2 days`. What is no duration says so.
pub fn span(seconds: f64) -> String {
    // Beyond this nobody measured it: about three thousand years.
    if !(0.0..1e11).contains(&seconds) {
        return "no measured time".to_owned();
    }
    let (minutes, hours) = ((seconds / 60.0).floor(), (seconds / 3600.0).floor());
    match seconds {
        ..1.0 => format!("{seconds:.2} s"),
        ..10.0 => format!("{seconds:.1} s"),
        ..119.5 => format!("{seconds:.0} s"),
        ..7200.0 => format!("{minutes:.0} min {:.0} s", (seconds - minutes * 60.0).floor()),
        ..172_800.0 => format!("{hours:.0} h {:.0} min", ((seconds - hours * 3600.0) / 60.0).floor()),
        _ => format!("{:.1} days", seconds / 86_400.0),
    }
    .replace(" min 0 s", " min")
    .replace(" h 0 min", " h")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_said_as_people_say_them() {
        let said: Vec<String> =
            [0.0, 0.414, 5.04, 34.1, 119.0, 1042.0, 14_400.0, 19_830.0, 86_400.0, 276_480.0].into_iter().map(span).collect();
        assert_eq!(said, ["0.00 s", "0.41 s", "5.0 s", "34 s", "119 s", "17 min 22 s", "4 h", "5 h 30 min", "24 h", "3.2 days"]);
        for number in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
            assert_eq!(span(number), "no measured time");
        }
    }
}
