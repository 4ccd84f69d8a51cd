//! A connection to one bucket: the client, its runtime, and the loop that tries again.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{ConfigBag, Intercept, RequestChecksumCalculation, ResponseChecksumValidation, RuntimeComponents};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use aws_types::service_config::ServiceConfigKey;
use lifeboat_aws::{Account, endpoint_problem};
use lifeboat_http::Roots;
use tokio::runtime::Runtime;

use crate::{Config, Kind, S3Error};

/// Tries of the first request: who gives a wrong address wants to know soon.
const FIRST_ATTEMPTS: u32 = 3;

/// The first wait between two tries; each further one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(200);

/// The longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Threads that move bytes between sockets and those who wait for them. TLS is their work: one core of it is several hundred MB/s.
const RUNTIME_THREADS: usize = 2;

/// A bucket. Cheap to clone; used by many threads at once.
#[derive(Clone)]
pub struct Bucket {
    pub(crate) inner: Arc<Inner>,
}

impl std::fmt::Debug for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bucket({})", self.inner.name)
    }
}

pub(crate) struct Inner {
    pub(crate) client: Client,
    pub(crate) name: String,
    pub(crate) read_timeout: Duration,
    max_attempts: u32,
    runtime: Runtime,
    /// Whether the server takes SHA-256 checksums. Some clones refuse headers that they do not know.
    pub(crate) checksums: AtomicBool,
    /// Whether everything goes through TLS.
    encrypted: bool,
    requests: Mutex<BTreeMap<&'static str, u64>>,
    observed: Observer,
}

/// Looks at every answer.
#[derive(Debug, Clone)]
struct Observer {
    /// Seconds that the server's clock is ahead; `i64::MIN`: not known.
    ahead: Arc<AtomicI64>,
}

impl Intercept for Observer {
    fn name(&self) -> &'static str {
        "server clock"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), aws_sdk_s3::error::BoxError> {
        let date = context.response().headers().get("date").and_then(|date| DateTime::from_str(date, Format::HttpDate).ok());
        if let (Some(date), Ok(now)) = (date, SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)) {
            self.ahead.store(date.secs() - now.as_secs() as i64, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Bucket {
    /// Connects, and makes sure that the bucket is there: some servers would make one of any name that is written to.
    ///
    /// # Errors
    ///
    /// [`Kind::NoBucket`], [`Kind::Denied`], [`Kind::Transient`] for a server that cannot be reached after three tries, [`Kind::Other`]
    /// for a configuration that cannot be used.
    pub fn connect(config: &Config) -> Result<Self, S3Error> {
        let bucket = Self::prepare(config)?;
        bucket.wait(bucket.attempts("open", &bucket.inner.name, FIRST_ATTEMPTS.min(config.max_attempts), |_| bucket.look()))?;
        Ok(bucket)
    }

    /// Makes the bucket, with versioning; with `lock`, also with Object Lock and this retention for every object that says nothing else.
    pub fn create(config: &Config, lock: Option<crate::DefaultRetention>) -> Result<Self, S3Error> {
        let bucket = Self::prepare(config)?;
        bucket.wait(bucket.make(lock))?;
        Ok(bucket)
    }

    /// A client without a request.
    pub(crate) fn prepare(config: &Config) -> Result<Self, S3Error> {
        let bad = |reason: String| S3Error::new(Kind::Other, "open", &config.bucket, reason);
        if let Some(problem) = endpoint_problem(config.endpoint.as_deref()) {
            return Err(bad(problem.into()));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(RUNTIME_THREADS)
            .thread_name("s3")
            .enable_all()
            .build()
            .map_err(|error| bad(format!("start threads: {error}")))?;
        let http = lifeboat_http::client(Roots::of(config.ca_file.as_deref()).map_err(bad)?);
        let observed = Observer { ahead: Arc::new(AtomicI64::new(i64::MIN)) };
        let client = runtime.block_on(client(config, http, observed.clone()));
        Ok(Self {
            inner: Arc::new(Inner {
                client,
                name: config.bucket.clone(),
                read_timeout: config.read_timeout,
                max_attempts: config.max_attempts.max(1),
                runtime,
                checksums: AtomicBool::new(true),
                encrypted: config.endpoint.as_deref().is_none_or(|endpoint| endpoint.starts_with("https://")),
                requests: Mutex::default(),
                observed,
            }),
        })
    }

    /// Whether a body need not be hashed once more for its request's signature: the signature is over its checksum, which the server
    /// compares, and TLS lets nobody change it on the way. Plain HTTP has the signature only.
    pub(crate) fn leaves_body_unsigned(&self, has_checksum: bool) -> bool {
        self.inner.encrypted && has_checksum
    }

    /// The name of the bucket.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Seconds that the server's clock was ahead of ours at the last answer; a second of it may be rounding.
    pub fn clock_ahead(&self) -> Option<i64> {
        Some(self.inner.observed.ahead.load(Ordering::Relaxed)).filter(|ahead| *ahead != i64::MIN)
    }

    /// Requests so far, by what they did, repeated ones included.
    pub fn requests(&self) -> BTreeMap<&'static str, u64> {
        self.inner.requests.lock().expect("no panic while held").clone()
    }

    /// Runs a future on the calling thread; sockets and timers are the runtime's.
    pub(crate) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.inner.runtime.handle().block_on(future)
    }

    pub(crate) fn spawn<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T> {
        self.inner.runtime.spawn(future)
    }

    pub(crate) fn client(&self) -> &Client {
        &self.inner.client
    }

    pub(crate) fn count(&self, action: &'static str) {
        *self.inner.requests.lock().expect("no panic while held").entry(action).or_default() += 1;
    }

    pub(crate) fn max_attempts(&self) -> u32 {
        self.inner.max_attempts
    }

    /// Tries until it succeeds, until an error says that trying is of no use, or until it was tried often enough.
    pub(crate) async fn again<T, F>(&self, action: &'static str, key: &str, operation: impl Fn(u32) -> F) -> Result<T, S3Error>
    where
        F: Future<Output = Result<T, S3Error>>,
    {
        self.attempts(action, key, self.inner.max_attempts, operation).await
    }

    async fn attempts<T, F>(&self, action: &'static str, key: &str, most: u32, operation: impl Fn(u32) -> F) -> Result<T, S3Error>
    where
        F: Future<Output = Result<T, S3Error>>,
    {
        let mut attempt = 1;
        loop {
            self.count(action);
            match operation(attempt).await {
                Err(error) if error.is_transient() && attempt < most => {
                    tokio::time::sleep(wait_before(attempt)).await;
                    attempt += 1;
                }
                Err(mut error) => {
                    debug_assert_eq!((error.action, error.key.as_str()), (action, key));
                    if error.kind == Kind::ClockSkew
                        && let Some(ahead) = self.clock_ahead()
                    {
                        let direction = if ahead > 0 { "behind" } else { "ahead of" };
                        error.reason = format!("this host's clock is {} s {direction} the server's", ahead.unsigned_abs());
                    }
                    if attempt > 1 && error.is_transient() {
                        error.reason.push_str(&format!(" ({attempt} tries)"));
                    }
                    return Err(error);
                }
                done => return done,
            }
        }
    }

    /// Whether the bucket is there and may be listed.
    async fn look(&self) -> Result<(), S3Error> {
        let name = &self.inner.name;
        match self.client().head_bucket().bucket(name).send().await {
            Ok(_) => Ok(()),
            Err(error) => {
                let error = S3Error::of("open", name, error);
                match error.kind {
                    // An answer to HEAD has no body, so no code either: it may be the clock, the key or the permission.
                    Kind::Denied if error.status.is_some() => self.look_closer().await,
                    Kind::Other if error.status == Some(400) => self.look_closer().await,
                    Kind::NotFound => Err(S3Error { kind: Kind::NoBucket, ..error }),
                    _ => Err(error),
                }
            }
        }
    }

    async fn look_closer(&self) -> Result<(), S3Error> {
        let name = &self.inner.name;
        self.count("open");
        match self.client().list_objects_v2().bucket(name).max_keys(1).send().await {
            Ok(_) => Ok(()),
            Err(error) => Err(S3Error::of("open", name, error)),
        }
    }
}

/// The time to wait before the next try: twice as long each time, and by chance between half and all of it, so that those who were
/// sent away together do not come back together.
pub(crate) fn wait_before(attempt: u32) -> Duration {
    let longest = FIRST_WAIT.saturating_mul(1 << attempt.saturating_sub(1).min(16)).min(LONGEST_WAIT);
    let mut byte = [0; 2];
    // Without chance, half of it.
    let _ = aws_lc_rs::rand::fill(&mut byte);
    longest / 2 + longest.mul_f64(f64::from(u16::from_le_bytes(byte)) / 65536.0 / 2.0)
}

async fn client(config: &Config, http: SharedHttpClient, observer: Observer) -> Client {
    let account = Account {
        region: config.region.as_deref(),
        endpoint: config.endpoint.as_deref(),
        profile: config.profile.as_deref(),
        profile_file: config.profile_file.as_deref(),
    };
    let shared = account.load(http).await;
    let other = config.endpoint.is_some() || shared.endpoint_url().is_some() || endpoint_of_service(&shared).is_some();
    let mut builder = aws_sdk_s3::config::Builder::from(&shared);
    if let Some(endpoint) = &config.endpoint {
        // Also before what the environment says for this service alone.
        builder = builder.endpoint_url(endpoint);
    }
    let timeouts = TimeoutConfig::builder().connect_timeout(config.connect_timeout).read_timeout(config.read_timeout).build();
    let builder = builder
        .force_path_style(config.path_style.unwrap_or(other))
        // Bodies and conditional writes need more care than the SDK's own tries take; two loops would multiply.
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts)
        // We send SHA-256 ourselves; newer defaults break older servers.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .interceptor(observer);
    Client::from_conf(builder.build())
}

/// What environment or profile say of this service alone.
fn endpoint_of_service(shared: &aws_config::SdkConfig) -> Option<String> {
    let key = ServiceConfigKey::builder().service_id("S3").env("AWS_ENDPOINT_URL").profile("endpoint_url").build().ok()?;
    shared.service_config()?.load_config(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit() {
        for attempt in 1..40 {
            let wait = wait_before(attempt);
            assert!(wait >= FIRST_WAIT / 2 && wait <= LONGEST_WAIT, "{attempt}: {wait:?}");
        }
        assert!(wait_before(1) <= FIRST_WAIT);
        assert!(wait_before(12) >= LONGEST_WAIT / 2);
    }

    #[test]
    fn an_endpoint_with_credentials_is_refused_and_not_repeated() {
        for endpoint in ["https://me:hunter2@host", "ftp://host", "http://", "host:9000"] {
            let config = Config { bucket: "b".into(), endpoint: Some(endpoint.into()), ..Config::default() };
            let error = Bucket::connect(&config).expect_err("not an endpoint");
            assert_eq!(error.kind, Kind::Other);
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn a_file_of_roots_without_a_certificate_is_told() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let config = Config { bucket: "b".into(), ca_file: Some(file.path().to_owned()), ..Config::default() };
        let error = Bucket::connect(&config).expect_err("no certificate");
        assert!(error.reason.contains("no certificate"), "{error}");
    }
}
