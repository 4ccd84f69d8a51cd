//! Credentials, region, connections.

use std::path::Path;
use std::time::Duration;

use aws_config::provider_config::ProviderConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use lifeboat_http::Roots;

/// The instance's metadata is asked once and briefly: elsewhere than on an instance nobody answers.
const METADATA_CONNECT: Duration = Duration::from_millis(500);
const METADATA_READ: Duration = Duration::from_secs(1);

/// Where, and with whose credentials. `Default` is what AWS itself needs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Account<'a> {
    /// The region. Otherwise `AWS_REGION`, the profile's or the instance's, and `us-east-1` where nobody says.
    pub region: Option<&'a str>,
    /// The server, where it is not AWS: `https://host:port`. Otherwise what environment or profile say.
    pub endpoint: Option<&'a str>,
    /// The profile whose credentials count. It then stands before credentials in the environment.
    pub profile: Option<&'a str>,
    /// The file with profiles and their keys, instead of `~/.aws/credentials` and `~/.aws/config`.
    pub profile_file: Option<&'a Path>,
}

/// What is wrong with an endpoint, if anything. Never repeats it: it may hold credentials.
pub fn endpoint_problem(endpoint: Option<&str>) -> Option<&'static str> {
    let endpoint = endpoint?;
    let rest = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
    let is_bad = rest.is_none_or(|rest| rest.is_empty() || rest.contains(['@', '?', '#', ' ']));
    is_bad.then_some("an endpoint is http:// or https://, a host and maybe a port, without credentials")
}

impl Account<'_> {
    /// The configuration that a service's client is made of.
    pub async fn load(&self, http: SharedHttpClient) -> SdkConfig {
        let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http);
        if let Some(profile) = self.profile {
            let mut credentials = aws_config::profile::ProfileFileCredentialsProvider::builder().profile_name(profile).configure(&asking());
            if let Some(path) = self.profile_file {
                let files = EnvConfigFiles::builder().with_file(EnvConfigFileKind::Credentials, path).build();
                credentials = credentials.profile_files(files.clone());
                loader = loader.profile_files(files);
            }
            loader = loader.profile_name(profile).credentials_provider(credentials.build());
        } else {
            let chain = aws_config::default_provider::credentials::DefaultCredentialsChain::builder()
                .configure(asking())
                .imds_client(metadata())
                .build()
                .await;
            loader = loader.credentials_provider(chain);
        }
        loader = loader.region(self.region().await);
        if let Some(endpoint) = self.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        loader.load().await
    }

    async fn region(&self) -> Region {
        use aws_config::environment::region::EnvironmentVariableRegionProvider;
        use aws_config::profile::region::ProfileFileRegionProvider;
        if let Some(region) = self.region {
            return Region::new(region.to_owned());
        }
        let mut profile = ProfileFileRegionProvider::builder();
        if let Some(name) = self.profile {
            profile = profile.profile_name(name);
        }
        let environment = EnvironmentVariableRegionProvider::new();
        let chain = aws_config::meta::region::RegionProviderChain::first_try(environment).or_else(profile.build());
        match chain.region().await {
            Some(region) => region,
            // A server of one's own takes any region, and stands on no instance that would know.
            None if self.endpoint.is_some() => Region::from_static("us-east-1"),
            None => {
                let instance = aws_config::imds::region::ImdsRegionProvider::builder().imds_client(metadata()).build();
                instance.region().await.unwrap_or(Region::from_static("us-east-1"))
            }
        }
    }
}

/// How those who hand out credentials are asked: through the environment's proxy like everybody, and they have public certificates, whatever the store has.
fn asking() -> ProviderConfig {
    ProviderConfig::without_region().with_http_client(lifeboat_http::client(Roots::system()))
}

/// By the SDK's own connector: no proxy leads to the instance's metadata.
fn metadata() -> aws_config::imds::Client {
    aws_config::imds::Client::builder().max_attempts(1).connect_timeout(METADATA_CONNECT).read_timeout(METADATA_READ).build()
}
