//! What a drill breaks on purpose, and what must happen then.

use serde::{Deserialize, Serialize};

use super::Check;

/// A night that a drill plays through. None of them touches the repository: what is damaged or missing is so in a view of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// The database's host is gone: all comes from the repository.
    HostLost,
    /// The primary store is gone: all comes from a replica.
    PrimaryStoreLost,
    /// A table was dropped: back to the moment before.
    YesterdaysAccident,
    /// Objects of the backup were deleted from the store: they are read from its older versions, or from a replica.
    DeletedObjects,
    /// The last WAL segment is damaged: everything before it comes back, and the loss is said.
    LastWalDamaged,
    /// The identity at hand does not open the backup.
    WrongIdentity,
    /// An artifact's bytes were changed.
    ArtifactTampered,
    /// The clock of this host is wrong by hours.
    ClockSkew,
    /// Somebody asks for a backup that does not exist.
    NoSuchBackup,
}

/// What must happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expected {
    /// All comes back, and every check that is made passes.
    Restores,
    /// It comes back as far as it can, and what is lost is said.
    RestoresWithLoss,
    /// It is refused before anything is written, and nothing is left behind.
    Refuses,
    /// What is bad is found and left out; the rest comes back.
    Reports,
}

impl Expected {
    /// In words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Restores => "all comes back",
            Self::RestoresWithLoss => "it comes back as far as it can, and says what is lost",
            Self::Refuses => "it is refused, and nothing is left behind",
            Self::Reports => "what is bad is found and left out, and the rest comes back",
        }
    }
}

impl Scenario {
    /// All, in the order of the documentation.
    pub const ALL: [Self; 9] = [
        Self::HostLost,
        Self::PrimaryStoreLost,
        Self::YesterdaysAccident,
        Self::DeletedObjects,
        Self::LastWalDamaged,
        Self::WrongIdentity,
        Self::ArtifactTampered,
        Self::ClockSkew,
        Self::NoSuchBackup,
    ];

    /// Its name, as it is typed.
    pub fn name(self) -> String {
        super::word(&self)
    }

    /// What must happen in it.
    pub const fn expected(self) -> Expected {
        match self {
            Self::HostLost | Self::PrimaryStoreLost | Self::YesterdaysAccident | Self::DeletedObjects | Self::ClockSkew => {
                Expected::Restores
            }
            Self::LastWalDamaged => Expected::RestoresWithLoss,
            Self::WrongIdentity | Self::NoSuchBackup => Expected::Refuses,
            Self::ArtifactTampered => Expected::Reports,
        }
    }

    /// What it is about, for people.
    pub const fn story(self) -> &'static str {
        match self {
            Self::HostLost => "the database's host is gone; all comes from the repository",
            Self::PrimaryStoreLost => "the primary store is gone; all comes from a replica",
            Self::YesterdaysAccident => "a table was dropped; back to the moment before",
            Self::DeletedObjects => "objects of the backup were deleted from the store",
            Self::LastWalDamaged => "the last WAL segment is damaged",
            Self::WrongIdentity => "the identity at hand does not open the backup",
            Self::ArtifactTampered => "an artifact's bytes were changed in the store",
            Self::ClockSkew => "the clock of the restoring host is wrong by hours",
            Self::NoSuchBackup => "somebody asks for a backup that does not exist",
        }
    }
}

/// Something that is broken in a view of the repository to see that a check can fail. Every drill tries all that apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Control {
    /// One bit of a pack is turned over.
    BitFlipped,
    /// A WAL segment that recovery needs is not there.
    WalMissing,
    /// The bundle of the backup carries another signature.
    SignatureBroken,
    /// A row of the artifact catalog is another one.
    CatalogChanged,
    /// A row of a restored table is another one.
    RowChanged,
}

impl Control {
    /// All, in order.
    pub const ALL: [Self; 5] = [Self::BitFlipped, Self::WalMissing, Self::SignatureBroken, Self::CatalogChanged, Self::RowChanged];

    /// Its name.
    pub fn name(self) -> String {
        super::word(&self)
    }

    /// The check that has to turn red.
    pub const fn check(self) -> Check {
        match self {
            Self::BitFlipped => Check::Extents,
            Self::WalMissing => Check::Recovery,
            Self::SignatureBroken => Check::Signature,
            Self::CatalogChanged => Check::Artifacts,
            Self::RowChanged => Check::Truth,
        }
    }

    /// What is done, for people.
    pub const fn story(self) -> &'static str {
        match self {
            Self::BitFlipped => "one bit of a pack was turned over",
            Self::WalMissing => "a WAL segment that recovery needs was taken away",
            Self::SignatureBroken => "the backup's signature was replaced by another one",
            Self::CatalogChanged => "a row of the artifact catalog was changed",
            Self::RowChanged => "a row of a restored table was changed",
        }
    }
}
