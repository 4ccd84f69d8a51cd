//! Names of backups: `<name>-backup-<UTC yyyymmddThhmmssZ>`.

use std::fmt;
use std::str::FromStr;

use jiff::{Timestamp, ToSpan, civil, tz::TimeZone};

use super::{FormatError, clip, serde_through_text};

/// The id of a backup. Sorts by name, then by time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupId {
    name: String,
    at: Timestamp,
}

impl BackupId {
    /// The id for a backup of `name` that begins `now`, given the ids that exist (of any name).
    ///
    /// Later than every id of the same name even if the clock went back or two begin in one
    /// second, so that "the newest id" always is the newest backup (c043).
    pub fn next<'a>(name: &SystemName, now: Timestamp, existing: impl IntoIterator<Item = &'a Self>) -> Self {
        let now = whole_second(now);
        let newest = existing.into_iter().filter(|id| id.name == name.0).map(|id| id.at).max();
        let at = match newest {
            Some(newest) if newest >= now => newest.checked_add(1.second()).unwrap_or(now),
            _ => now,
        };
        Self { name: name.0.clone(), at }
    }

    /// The name of the protected system.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The time in the id. Usually when the backup began; the manifest has the true time.
    pub fn at(&self) -> Timestamp {
        self.at
    }
}

/// A moment as ids have it: `yyyymmddThhmmssZ`, in UTC.
pub(crate) fn stamp(at: Timestamp) -> String {
    let at = at.to_zoned(TimeZone::UTC);
    format!("{:04}{:02}{:02}T{:02}{:02}{:02}Z", at.year(), at.month(), at.day(), at.hour(), at.minute(), at.second())
}

/// The moment of a stamp. Not every text that is taken is one that [`stamp`] writes: jiff takes second 60 for 59.
pub(crate) fn of_stamp(text: &str) -> Option<Timestamp> {
    let digits = |range: std::ops::Range<usize>| -> Option<i16> {
        let part = text.get(range)?;
        part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok()).flatten()
    };
    let small = |range| digits(range).and_then(|v| i8::try_from(v).ok());
    if text.len() != 16 || text.get(8..9) != Some("T") || text.get(15..16) != Some("Z") {
        return None;
    }
    let date = civil::DateTime::new(digits(0..4)?, small(4..6)?, small(6..8)?, small(9..11)?, small(11..13)?, small(13..15)?, 0);
    date.ok()?.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

pub(crate) fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-backup-{}", self.name, stamp(self.at))
    }
}

impl FromStr for BackupId {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let bad = || FormatError::malformed("backup id", format!("{:?} is not NAME-backup-YYYYMMDDThhmmssZ", clip(text)));
        let (name, at) = text.rsplit_once("-backup-").ok_or_else(bad)?;
        let name: SystemName = name.parse()?;
        let id = Self { name: name.0, at: of_stamp(at).ok_or_else(bad)? };
        // One spelling only: jiff would take second 60 for 59.
        if id.to_string() == text { Ok(id) } else { Err(bad()) }
    }
}

/// The name of the protected system: `[a-z0-9][a-z0-9-]{0,62}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemName(String);

impl FromStr for SystemName {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let ok = text.len() <= 63
            && text.bytes().next().is_some_and(plain)
            && text.bytes().all(|b| plain(b) || b == b'-')
            && !text.contains("-backup-");
        if ok {
            Ok(Self(text.to_owned()))
        } else {
            Err(FormatError::malformed("name", format!("{:?} is not 1 to 63 of a-z, 0-9 and - (not first)", clip(text))))
        }
    }
}

impl fmt::Display for SystemName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

serde_through_text!(BackupId, SystemName);

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn prints_and_parses() {
        let id = BackupId::next(&"conductor".parse().unwrap(), time("2024-03-15T12:00:00.75Z"), []);
        assert_eq!(id.to_string(), "conductor-backup-20240315T120000Z");
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in [
            "",
            "x",
            "-backup-20240315T120000Z",
            "a-backup-20240315T120060Z",
            "a-backup-20240230T120000Z",
            "A-backup-20240315T120000Z",
            "a-backup-20240315T120000Z/",
        ] {
            assert!(bad.parse::<BackupId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn c043_two_in_one_second_or_a_clock_that_went_back_do_not_collide() {
        let name: SystemName = "conductor".parse().unwrap();
        let first = BackupId::next(&name, time("2024-03-15T12:00:00Z"), []);
        let second = BackupId::next(&name, time("2024-03-15T12:00:00.9Z"), [&first]);
        let third = BackupId::next(&name, time("2024-03-15T11:00:00Z"), [&second, &first]);
        assert!(first < second && second < third, "{first} {second} {third}");
        assert_eq!(third.to_string(), "conductor-backup-20240315T120002Z");
    }
}
