//! What lifeboat does: executes plans against stores, PostgreSQL and the file system.
//!
//! Never prints, never exits, never reads the environment: the binary brings configuration in and
//! takes progress and errors out.

pub mod agent;
pub mod approval;
pub mod artifacts;
pub mod audit;
pub mod backup;
pub mod causes;
mod client;
pub mod copy;
pub mod doctor;
pub mod drill;
pub mod expire;
pub mod export;
pub mod hold;
pub mod init;
pub mod keys;
pub mod lease;
pub mod metrics;
pub mod notify;
pub mod opened_backup;
pub mod owners;
pub mod pin;
pub mod policy;
pub mod postgres;
pub mod process;
pub mod progress;
pub mod prune;
pub mod random;
mod replace;
pub mod replicate;
pub mod repository;
pub mod restore;
pub mod retention;
pub mod revoke;
pub mod runs;
pub mod seal;
pub mod secret;
mod sha256;
pub mod signing;
pub mod status;
pub mod store;
pub mod traces;
pub mod truth;
pub mod verify;
pub mod wal;
pub mod web;
