//! Placeholder

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Lsn;

/// A restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePoint {
    /// Its name.
    pub name: String,
    /// Where its record ends.
    pub lsn: Lsn,
    /// When it was made.
    pub time: Timestamp,
}

/// What one segment holds, as far as recovery targets are concerned. Signed with the segment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Summary {
    /// End of the last whole record that ends in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Lsn>,
    /// Earliest time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_time: Option<Timestamp>,
    /// Latest time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_time: Option<Timestamp>,
    /// Lowest and highest transaction id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xids: Option<(u32, u32)>,
    /// Restore points.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restore_points: Vec<RestorePoint>,
    /// There were more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more_restore_points: bool,
    /// A record begins in it and does not end in it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tail: bool,
    /// It ends with a switch.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub switched: bool,
}
