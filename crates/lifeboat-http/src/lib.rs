//! How clients of clouds connect: HTTP/1.1 over TCP and TLS, through the proxy that the environment names, with the time that each step may take.
//!
//! The connector of AWS's SDK speaks HTTP/2 wherever a server offers it, and cannot be told not to. For whole segments and packs that is the slower one: all
//! requests share one connection and its window, and every byte passes through frames. This one has as many connections as there are requests at
//! the same time, as S3 itself offers it, and keeps them (docs/decisions/0008-s3-client.md has the numbers).
//!
//! Nothing here knows a service, and nothing prints. What an error says never holds a header, or more of an address than host and port.

mod connections;
mod dial;
mod roots;

pub use connections::{Connections, client};
pub use roots::Roots;
