//! S3 and what speaks its protocol, as a small blocking API with types of its own.
//!
//! The AWS SDK takes minutes to build, so it stands in a crate that an edit elsewhere does not rebuild, and none of its types leave
//! it. There is a runtime inside; every call blocks its thread until the store has answered, and calls of several threads run at the
//! same time (see docs/decisions/0004 and 0008).
//!
//! Nothing here knows what a repository is, and nothing prints. Credentials are found by the SDK's own chain and never kept, shown or
//! put into an error.

mod bucket;
mod config;
mod error;
mod facts;
mod list;
mod object;
mod upload;

pub use bucket::Bucket;
pub use config::Config;
pub use error::{Kind, S3Error};
pub use facts::{DefaultRetention, Encryption, Fact, Facts, LifecycleRule, Period, PublicAccess, ReplicationRule, Versioning};
pub use list::{Listed, Version};
pub use object::{Head, Mode, Retention, Written};
pub use upload::{MAX_PARTS, PART_BYTES, Upload};
