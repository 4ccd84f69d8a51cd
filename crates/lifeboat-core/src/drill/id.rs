//! Names of drills: `<name>-drill-<UTC yyyymmddThhmmssZ>`.

use std::fmt;
use std::str::FromStr;

use jiff::{Timestamp, ToSpan};

use crate::repository::FormatError;
use crate::repository::backup_id::{SystemName, of_stamp, stamp, whole_second};

/// The id of a drill. Sorts by name, then by time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DrillId {
    name: String,
    at: Timestamp,
}

impl DrillId {
    /// The id for a drill of `name` that begins `now`, later than every one of `existing` with the same name: as those of backups, also
    /// where the clock went back.
    pub fn next<'a>(name: &SystemName, now: Timestamp, existing: impl IntoIterator<Item = &'a Self>) -> Self {
        let (name, now) = (name.to_string(), whole_second(now));
        let newest = existing.into_iter().filter(|id| id.name == name).map(|id| id.at).max();
        let at = match newest {
            Some(newest) if newest >= now => newest.checked_add(1.second()).unwrap_or(now),
            _ => now,
        };
        Self { name, at }
    }

    /// The name of the protected system.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The time in the id. Usually when the drill began; the report has the true time.
    pub fn at(&self) -> Timestamp {
        self.at
    }
}

impl fmt::Display for DrillId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-drill-{}", self.name, stamp(self.at))
    }
}

impl FromStr for DrillId {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let shown = || text.chars().take(80).collect::<String>();
        let bad = || FormatError::malformed("drill id", format!("{:?} is not NAME-drill-YYYYMMDDThhmmssZ", shown()));
        let (name, at) = text.rsplit_once("-drill-").ok_or_else(bad)?;
        let id = Self { name: name.parse::<SystemName>()?.to_string(), at: of_stamp(at).ok_or_else(bad)? };
        // One spelling only.
        if id.to_string() == text { Ok(id) } else { Err(bad()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_id_has_one_spelling() {
        let id: DrillId = "conductor-drill-20261125T201500Z".parse().unwrap();
        assert_eq!((id.name(), id.at().to_string().as_str()), ("conductor", "2026-11-25T20:15:00Z"));
        assert_eq!(id.to_string(), "conductor-drill-20261125T201500Z");
        for wrong in [
            "conductor-backup-20261125T201500Z",
            "conductor-drill-20261125T201560Z",
            "conductor-drill-20261125T2015Z",
            "-drill-20261125T201500Z",
            "Conductor-drill-20261125T201500Z",
            "../x-drill-20261125T201500Z",
            "",
        ] {
            assert!(wrong.parse::<DrillId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_new_id_is_the_newest_of_its_name() {
        let (name, other) = ("a".parse().unwrap(), "b".parse().unwrap());
        let now: Timestamp = "2026-11-25T20:15:00.7Z".parse().unwrap();
        let first = DrillId::next(&name, now, []);
        assert_eq!(first.to_string(), "a-drill-20261125T201500Z");
        assert_eq!(DrillId::next(&name, now, [&first]).to_string(), "a-drill-20261125T201501Z");
        assert_eq!(DrillId::next(&other, now, [&first]).at(), first.at());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,60}") {
            let _ = text.parse::<DrillId>();
        }
    }
}
