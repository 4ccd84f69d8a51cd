//! The key: how it is reached, its public half, signatures.

use std::future::Future;
use std::time::Duration;

use aws_sdk_kms::Client;
use aws_sdk_kms::config::retry::RetryConfig;
use aws_sdk_kms::config::timeout::TimeoutConfig;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{KeySpec, KeyUsageType, MessageType, SigningAlgorithmSpec};
use lifeboat_aws::{Account, endpoint_problem};
use lifeboat_http::Roots;
use tokio::runtime::Runtime;

use crate::{Kind, KmsError};

/// How to reach a key. `Default` is what AWS itself needs, apart from the key.
#[derive(Debug, Clone)]
pub struct Config {
    /// The key: id, ARN, or alias (`alias/NAME` or its ARN).
    pub key: String,
    /// The region. Otherwise that of the ARN, `AWS_REGION`, the profile's or the instance's.
    pub region: Option<String>,
    /// The server, where it is not AWS: `https://host:port`. Otherwise `AWS_ENDPOINT_URL_KMS`, `AWS_ENDPOINT_URL` or the profile's.
    pub endpoint: Option<String>,
    /// The profile whose credentials count. It then stands before credentials in the environment.
    pub profile: Option<String>,
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
            key: String::new(),
            region: None,
            endpoint: None,
            profile: None,
            connect_timeout: Duration::from_secs(3),
            read_timeout: Duration::from_secs(10),
            max_attempts: 5,
        }
    }
}

/// An asymmetric key, ECDSA P-256, whose private half stays with the service. Used by many threads at once.
pub struct Key {
    client: Client,
    runtime: Runtime,
    name: String,
    arn: String,
    spki: Vec<u8>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("arn", &self.arn).finish_non_exhaustive()
    }
}

impl Key {
    /// Looks the key up and fetches its public half.
    ///
    /// An alias is followed once, here: whoever turns it to another key meanwhile does not mix the signatures of two.
    ///
    /// # Errors
    ///
    /// [`Kind::Denied`] without credentials or `kms:GetPublicKey`; [`Kind::Transient`] for a service that does not answer;
    /// [`Kind::Other`] for a key that is not there, disabled, or not one that signs with ECDSA P-256.
    pub fn open(config: &Config) -> Result<Self, KmsError> {
        const ACTION: &str = "open";
        let bad = |reason: String| KmsError::new(Kind::Other, ACTION, &config.key, reason);
        if let Some(problem) = endpoint_problem(config.endpoint.as_deref()) {
            return Err(bad(problem.into()));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("kms")
            .enable_all()
            .build()
            .map_err(|error| bad(format!("start a thread: {error}")))?;
        let client = runtime.block_on(client(config));
        let answer = runtime.block_on(client.get_public_key().key_id(&config.key).send());
        let answer = answer.map_err(|error| KmsError::of(ACTION, &config.key, error))?;
        // Servers that imitate AWS may leave these out; what kind of key it is, its public half says as well.
        let usage = answer.key_usage().unwrap_or(&KeyUsageType::SignVerify);
        let spec = answer.key_spec().unwrap_or(&KeySpec::EccNistP256);
        if *usage != KeyUsageType::SignVerify || *spec != KeySpec::EccNistP256 {
            let found = format!("{} and {}", usage.as_str(), spec.as_str());
            return Err(bad(format!("it is of {found}; make one with key usage SIGN_VERIFY and key spec ECC_NIST_P256")));
        }
        let spki = answer.public_key().map(|blob| blob.as_ref().to_vec()).ok_or_else(|| bad("the answer has no public key".into()))?;
        let arn = answer.key_id().unwrap_or(&config.key).to_owned();
        Ok(Self { client, runtime, name: config.key.clone(), arn, spki })
    }

    /// The public key, SubjectPublicKeyInfo in DER.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// The ARN of the key that signs.
    pub fn arn(&self) -> &str {
        &self.arn
    }

    /// Signs a SHA-256 digest; returns the signature, DER.
    ///
    /// # Errors
    ///
    /// As [`Key::open`], for `kms:Sign`.
    pub fn sign_digest(&self, sha256: &[u8; 32]) -> Result<Vec<u8>, KmsError> {
        const ACTION: &str = "sign with";
        let request = self
            .client
            .sign()
            .key_id(&self.arn)
            .message(Blob::new(sha256.as_slice()))
            .message_type(MessageType::Digest)
            .signing_algorithm(SigningAlgorithmSpec::EcdsaSha256);
        let answer = self.wait(request.send()).map_err(|error| KmsError::of(ACTION, &self.name, error))?;
        let signature = answer.signature().map(|blob| blob.as_ref().to_vec());
        signature.ok_or_else(|| KmsError::new(Kind::Other, ACTION, &self.name, "the answer has no signature"))
    }

    /// Runs a future on the calling thread; sockets and timers are the runtime's.
    fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.handle().block_on(future)
    }
}

/// The region in `arn:aws:kms:REGION:…`.
fn region_of_arn(key: &str) -> Option<String> {
    let mut parts = key.split(':');
    let (arn, _, service, region) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    (arn == "arn" && service == "kms" && !region.is_empty()).then(|| region.to_owned())
}

async fn client(config: &Config) -> Client {
    let of_arn = region_of_arn(&config.key);
    let account = Account {
        region: config.region.as_deref().or(of_arn.as_deref()),
        endpoint: config.endpoint.as_deref(),
        profile: config.profile.as_deref(),
        profile_file: None,
    };
    let shared = account.load(lifeboat_http::client(Roots::system())).await;
    let mut builder = aws_sdk_kms::config::Builder::from(&shared);
    if let Some(endpoint) = &config.endpoint {
        builder = builder.endpoint_url(endpoint);
    }
    let timeouts = TimeoutConfig::builder().connect_timeout(config.connect_timeout).read_timeout(config.read_timeout).build();
    // The SDK waits a random time between tries, twice as long each time.
    let retries = RetryConfig::standard().with_max_attempts(config.max_attempts.max(1));
    Client::from_conf(builder.retry_config(retries).timeout_config(timeouts).build())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arn_says_its_region() {
        assert_eq!(region_of_arn("arn:aws:kms:eu-west-1:111122223333:key/1234").as_deref(), Some("eu-west-1"));
        assert_eq!(region_of_arn("arn:aws-cn:kms:cn-north-1:1:alias/x").as_deref(), Some("cn-north-1"));
        for other in ["alias/x", "1234abcd-12ab-34cd-56ef-1234567890ab", "arn:aws:s3:::bucket", "arn:aws:kms::1:key/2", ""] {
            assert_eq!(region_of_arn(other), None, "{other}");
        }
    }

    #[test]
    fn an_endpoint_with_credentials_is_refused_and_not_repeated() {
        for endpoint in ["https://me:hunter2@host", "ftp://host", "http://", "host:9000"] {
            let config = Config { key: "k".into(), endpoint: Some(endpoint.into()), ..Config::default() };
            let error = Key::open(&config).expect_err("not an endpoint");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }
}
