//! Failures of drills.

use lifeboat_engine::drill::DrillError;
use lifeboat_engine::drill::ground::WayError;
use lifeboat_engine::drill::place::PlaceError;

use super::{EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, Failure};

impl From<WayError> for Failure {
    fn from(error: WayError) -> Self {
        match error {
            WayError::Wal(error) => error.into(),
            WayError::Locate(error) => error.into(),
        }
    }
}

impl From<DrillError> for Failure {
    fn from(error: DrillError) -> Self {
        let DrillError::Place(error) = error;
        let (code, hint) = match &error {
            PlaceError::Forbidden { .. } | PlaceError::Inside { .. } => (
                EXIT_USAGE,
                "name a directory for drills alone: drill.directory in the configuration, or lifeboat drill run --directory DIR",
            ),
            PlaceError::NotDirectory { .. } => (EXIT_USAGE, "make it, or name another one: lifeboat drill run --directory DIR"),
            PlaceError::Name(_) => (EXIT_USAGE, "lifeboat drill list shows how drills are called"),
            PlaceError::NoRoom { .. } => (EXIT_FAILED, "name a directory on a larger file system: lifeboat drill run --directory DIR"),
            PlaceError::User { .. } => {
                (EXIT_USAGE, "drill.user names a user of this host; without it an id is taken that nobody has: lifeboat config show")
            }
            PlaceError::OutOfReach { .. } => {
                (EXIT_FAILED, "chmod o+x on the directories above it, or name another one: lifeboat drill run --directory DIR")
            }
            PlaceError::Network(_) => (EXIT_FAILED, "run it as root, or set drill.require_network = false: lifeboat config show"),
            PlaceError::Ended => (EXIT_INTERRUPTED, "give the same command again"),
            PlaceError::Make { .. } => (EXIT_FAILED, "lifeboat drill run --directory DIR makes it elsewhere"),
        };
        Self::of(code, &error, hint)
    }
}
