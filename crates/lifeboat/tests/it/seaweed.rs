//! SeaweedFS for whole runs of the program: the server that the store's own tests use, a bucket as a repository should have it, and
//! the environment in which lifeboat finds both.
//!
//! It must not use lifeboat.

#[path = "../../../lifeboat-s3/tests/support/seaweed.rs"]
mod server;

use std::path::Path;

use lifeboat_s3::{Bucket, Config, DefaultRetention, Mode, Period};

pub(crate) use server::{ACCESS_KEY, READER_KEY, READER_SECRET, ROLES, SECRET_KEY, Seaweed};

use crate::program::Program;

/// The bucket that [`make_bucket`] makes.
pub(crate) const BUCKET: &str = "lifeboat-tests";

/// A bucket with versions and Object Lock; objects stay for a day.
pub(crate) fn make_bucket(server: &Seaweed, place: &Path) -> Bucket {
    let profiles = place.join("aws-credentials");
    std::fs::write(&profiles, format!("[test]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"))
        .expect("own directory");
    let config = Config {
        bucket: BUCKET.into(),
        endpoint: Some(server.endpoint()),
        region: Some("us-east-1".into()),
        profile: Some("test".into()),
        profile_file: Some(profiles),
        ..Config::default()
    };
    let lock = DefaultRetention { mode: Mode::Governance, period: Period::Days(1) };
    Bucket::create(&config, Some(lock)).expect("a new server takes a bucket")
}

/// The program with credentials and the address of a server.
pub(crate) fn with_server(program: Program, endpoint: &str) -> Program {
    let program = program.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
    program.env("AWS_ENDPOINT_URL_S3", endpoint).env("AWS_REGION", "us-east-1").env("AWS_EC2_METADATA_DISABLED", "true")
}
