//! When a task is due: cron expressions in a time zone, and a spread of the host's own.

use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use lifeboat_core::repository::Sha256;

/// A cron expression (POSIX `crontab`, with the extensions of the `cronexpr` crate) in a time zone of the IANA database.
///
/// Read on the wall clock: a time that does not exist on the day on which clocks go forward is due as much later as they were set, so that no night is
/// left out; one that exists twice is due once.
#[derive(Debug, Clone)]
pub struct Schedule {
    text: String,
    /// As if the wall clock were UTC's.
    cron: cronexpr::Crontab,
    zone: TimeZone,
}

/// Why it cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} in time zone {time_zone}: {reason}")]
pub struct ScheduleError {
    text: String,
    time_zone: String,
    reason: String,
}

impl Schedule {
    /// Reads minute, hour, day of month, month, day of week.
    ///
    /// # Errors
    ///
    /// It is no cron expression, the time zone is none, or it is never due.
    pub fn parse(text: &str, time_zone: &str) -> Result<Self, ScheduleError> {
        let failed = |reason: String| ScheduleError { text: text.to_owned(), time_zone: time_zone.to_owned(), reason };
        let fields = text.split_whitespace().count();
        if fields != 5 {
            return Err(failed(format!("it has {fields} fields, not 5")));
        }
        let zone = match time_zone {
            // Every command reads the schedules, and to look a zone up is to walk through the whole database, where there is one.
            "UTC" => Ok(TimeZone::UTC),
            name => TimeZone::get(name),
        };
        let zone = zone.map_err(|_| failed("the IANA database has no such time zone; UTC and Europe/Berlin are some".to_owned()))?;
        let one_line = |error: cronexpr::Error| {
            let text = error.to_string();
            text.lines().next_back().unwrap_or_default().trim_start_matches([' ', '^', '|', '-']).trim().to_owned()
        };
        let mut options = cronexpr::ParseOptions::default();
        options.fallback_timezone_option = cronexpr::FallbackTimezoneOption::UTC;
        let cron = cronexpr::parse_crontab_with(text, options).map_err(|error| failed(one_line(error)))?;
        let schedule = Self { text: text.to_owned(), cron, zone };
        // The thirtieth of February.
        match schedule.next(Timestamp::UNIX_EPOCH) {
            Some(_) => Ok(schedule),
            None => Err(failed("it is never due".to_owned())),
        }
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The first moment behind `now` at which it is due, without spread. `None`: never again.
    pub fn next(&self, now: Timestamp) -> Option<Timestamp> {
        let mut wall = self.zone.to_datetime(now);
        // In the hour that clocks are set back, the wall clock shows times that are over already.
        for _ in 0..LOOK_AHEAD {
            let as_utc = TimeZone::UTC.to_timestamp(wall).ok()?;
            wall = self.cron.find_next(as_utc.to_string().as_str()).ok()?.datetime();
            let next = self.zone.to_timestamp(wall).ok()?;
            if next > now {
                return Some(next);
            }
        }
        None
    }
}

/// So many times may be over already: every minute of the hour that is there twice, and some to spare.
const LOOK_AHEAD: usize = 300;

/// How much later than others a host does something: always the same for the same host and thing, so that a day stays a day; less than `most`.
pub fn spread(system: &str, host: &str, what: &str, most: Duration) -> SignedDuration {
    let digest = Sha256::of(format!("{system}\n{host}\n{what}").as_bytes());
    let number = u64::from_be_bytes(digest.0[..8].try_into().expect("8 bytes"));
    let most = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
    SignedDuration::from_millis(i64::try_from(number.checked_rem(most).unwrap_or(0)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn next(cron: &str, zone: &str, now: &str) -> String {
        Schedule::parse(cron, zone).unwrap().next(at(now)).unwrap().to_string()
    }

    #[test]
    fn a_schedule_is_read_in_its_time_zone() {
        assert_eq!(next("0 2 * * *", "UTC", "2026-11-26T02:00:00Z"), "2026-11-27T02:00:00Z");
        assert_eq!(next("0 2 * * *", "UTC", "2026-11-26T01:59:59Z"), "2026-11-26T02:00:00Z");
        assert_eq!(next("0 2 * * *", "America/New_York", "2026-11-26T02:00:00Z"), "2026-11-26T07:00:00Z");
        assert_eq!(next("0 4 1 1,4,7,10 *", "UTC", "2026-11-26T02:00:00Z"), "2027-01-01T04:00:00Z");
        assert_eq!(next("*/15 * * * *", "Asia/Kathmandu", "2026-11-26T02:07:00Z"), "2026-11-26T02:15:00Z");
    }

    /// Every day has its backup, also those on which clocks are changed, and none has two.
    #[test]
    fn clocks_that_are_changed_leave_nothing_out_and_do_nothing_twice() {
        for (zone, first) in [
            ("Europe/Berlin", "2026-03-27T12:00:00Z"),
            ("Europe/Berlin", "2026-10-23T12:00:00Z"),
            ("America/New_York", "2026-03-06T12:00:00Z"),
            ("Australia/Lord_Howe", "2026-10-02T12:00:00Z"),
        ] {
            for cron in ["30 2 * * *", "0 2 * * *", "0 0 * * *", "15 1 * * *"] {
                let schedule = Schedule::parse(cron, zone).unwrap();
                let mut now = schedule.next(at(first)).unwrap();
                for _ in 0..5 {
                    let before = now;
                    now = schedule.next(now).unwrap();
                    let hours = now.duration_since(before).as_secs_f64() / 3600.0;
                    assert!((22.9..=25.1).contains(&hours), "{zone} {cron}: {before} {now}");
                }
            }
        }
        // What is done every few minutes pauses for the hour that is there twice, and goes on.
        let often = Schedule::parse("*/15 * * * *", "Europe/Berlin").unwrap();
        let mut now = at("2026-10-24T22:00:00Z");
        for _ in 0..40 {
            let before = now;
            now = often.next(now).unwrap();
            assert!((1..=75).contains(&now.duration_since(before).as_mins()), "{before} {now}");
        }
        assert!(often.next(at("2026-10-25T01:10:00Z")).unwrap() <= at("2026-10-25T02:00:00Z"));
    }

    #[test]
    fn what_is_no_schedule_says_why_in_a_line() {
        for (cron, zone, why) in [
            ("0 2 * *", "UTC", "it has 4 fields"),
            ("61 2 * * *", "UTC", ""),
            ("0 2 * * *", "Europe/Atlantis", "no such time zone"),
            ("0 2 30 2 *", "UTC", ""),
            ("0 2 * * *", "UTC x", "no such time zone"),
            ("", "UTC", "it has 0 fields"),
        ] {
            let error = Schedule::parse(cron, zone).unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains('\n') && !error.ends_with(": "), "{error}");
        }
    }

    #[test]
    fn the_spread_is_the_hosts_own_and_always_the_same() {
        let most = Duration::from_secs(600);
        let of = |host: &str| spread("conductor", host, "backup", most);
        assert_eq!(of("a"), of("a"));
        let distinct: std::collections::BTreeSet<_> = (0..20).map(|number| of(&format!("host{number}"))).collect();
        assert!(distinct.len() > 15 && distinct.iter().all(|spread| !spread.is_negative() && spread.as_secs() < 600));
        assert_eq!(spread("conductor", "a", "backup", Duration::ZERO), SignedDuration::ZERO);
    }
}
