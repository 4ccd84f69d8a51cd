//! What lifeboat decides: values in, values out.
//!
//! No I/O, no clock, no randomness, no async and no logging here: whoever calls brings the facts,
//! the time included, and gets back a value, a plan with reasons, or an error.

#![forbid(unsafe_code)]

pub mod alert;
pub mod approval;
pub mod artifacts;
pub mod attestation;
pub mod audit;
pub mod backup;
pub mod doctor;
pub mod drill;
pub mod expire;
pub mod export;
pub mod hold;
pub mod plain;
pub mod policy;
pub mod postgres;
pub mod prune;
pub mod replicate;
pub mod repository;
pub mod restore;
pub mod status;
pub mod task;
pub mod trace_context;
pub mod trust;
pub mod truth;
pub mod verify;
pub mod wal;
