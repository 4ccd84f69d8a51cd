//! AWS KMS for lifeboat: one asymmetric key that signs digests, as a small blocking API with types of its own.
//!
//! The SDK takes long to build, so it stands in a crate that an edit elsewhere does not rebuild, and none of its types leave it. There is
//! a runtime inside; every call blocks its thread until the service has answered, and calls of several threads run at the same time.
//!
//! Nothing here knows what is signed, and nothing prints. Credentials are found by the SDK's own chain, as AWS's own programs do, and
//! never kept, shown or put into an error.
//!
//! Facts: AWS KMS API reference, "Sign" and "GetPublicKey": with `MessageType` `DIGEST` the caller hashes, the signature of `ECDSA_SHA_256`
//! is DER (ANSI X9.62), the public key is a SubjectPublicKeyInfo in DER.

mod error;
mod key;

pub use error::{Kind, KmsError};
pub use key::{Config, Key};
