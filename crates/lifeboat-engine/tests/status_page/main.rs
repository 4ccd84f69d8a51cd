//! The status page: what is on it, what a browser makes of it, and what the server lets pass.
//!
//! Pages and pictures stay in `target/tmp/status-page/` to be looked at.

mod browser;
mod http;
#[path = "../support/schema.rs"]
mod json_schema;
mod pages;
mod samples;
mod schema;
