//! What clients of AWS have in common, whichever service they ask: whose credentials count, which region, and what it means that a request
//! did not get through.
//!
//! Nothing here knows a service, and nothing prints. Credentials are found by the SDK's own chain, as AWS's own programs do, and never kept, shown
//! or put into an error.

mod account;
mod unsent;

pub use account::{Account, endpoint_problem};
pub use unsent::{Unsent, clean};
