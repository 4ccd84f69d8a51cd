//! What a connection is made of. No secrets stand here: the SDK finds them where AWS's own programs do.

use std::path::PathBuf;
use std::time::Duration;

/// How to reach a bucket. `Default` is what AWS itself needs.
#[derive(Debug, Clone)]
pub struct Config {
    /// The bucket.
    pub bucket: String,
    /// The server, where it is not AWS: `https://host:port`. Otherwise `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL` or the profile's.
    pub endpoint: Option<String>,
    /// The region. Otherwise `AWS_REGION`, the profile's or the instance's, and `us-east-1` where nobody says.
    pub region: Option<String>,
    /// Whether the bucket stands in the path and not in the host name. `None`: if and only if there is an endpoint.
    pub path_style: Option<bool>,
    /// The profile whose credentials count. It then stands before credentials in the environment.
    pub profile: Option<String>,
    /// The file with profiles and their keys, instead of `~/.aws/credentials` and `~/.aws/config`.
    pub profile_file: Option<PathBuf>,
    /// PEM certificates to believe instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Time for the connection to stand.
    pub connect_timeout: Duration,
    /// Time without a byte before an answer counts as lost.
    pub read_timeout: Duration,
    /// How often an operation is tried before it fails.
    pub max_attempts: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bucket: String::new(),
            endpoint: None,
            region: None,
            path_style: None,
            profile: None,
            profile_file: None,
            ca_file: None,
            connect_timeout: Duration::from_secs(3),
            read_timeout: Duration::from_secs(30),
            // With the waits between them, about forty seconds of a store that is away.
            max_attempts: 9,
        }
    }
}
