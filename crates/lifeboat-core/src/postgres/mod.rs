//! PostgreSQL's own files: what they are called, what is in them, which of them a backup needs.

pub mod backup_manifest;
pub mod control_file;
pub mod data_directory;
pub mod page;
pub mod superusers;
