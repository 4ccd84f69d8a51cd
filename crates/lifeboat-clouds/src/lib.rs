//! Google Cloud Storage and Azure Blob Storage, as a small blocking API with types of its own, over `object_store`.
//!
//! Reading, listing, credentials and signatures are `object_store`'s. Writing is not: its long writes cannot be conditional, and none of
//! its writes carries a checksum (see docs/decisions/0012). Sockets, TLS and proxies are those that `lifeboat-s3` uses. There is a runtime
//! inside; every call blocks its thread until the store has answered, and calls of several threads run at the same time (see
//! docs/decisions/0004).
//!
//! Nothing here knows what a repository is, and nothing prints. Credentials are found where the clouds' own programs find them, and
//! are never shown or put into an error.

mod azure;
mod bucket;
mod config;
mod error;
mod federation;
mod google;
mod http;
mod list;
mod object;
mod upload;

pub use bucket::Bucket;
pub use config::{Cloud, Config};
pub use error::{CloudError, Kind};
pub use list::Listed;
pub use object::Head;
pub use upload::{PART_BYTES, Upload};
