//! Signing statements and verifying signatures, the Sigstore way.
