//! The independent reader in tools/rescue against repositories that this program wrote.
