//! Artifacts as a user stores, lists, fetches, verifies and restores them.
