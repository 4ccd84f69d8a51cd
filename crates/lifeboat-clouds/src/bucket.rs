//! A connection to one bucket: the client, its runtime, and the loop that tries again.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use object_store::list::PaginatedListStore;
use object_store::{ObjectStore, RetryConfig};
use tokio::runtime::Runtime;

use crate::azure::Azure;
use crate::google::Google;
use crate::http::{Transport, noting};
use crate::{Cloud, CloudError, Config, Kind};

/// Tries of the first request: who gives a wrong address wants to know soon.
const FIRST_ATTEMPTS: u32 = 3;

/// The first wait between two tries; each further one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(200);

/// The longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Threads that move bytes between sockets and those who wait for them.
const RUNTIME_THREADS: usize = 2;

/// A bucket, or a container of Azure. Cheap to clone; used by many threads at once.
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
    pub(crate) service: Service,
    pub(crate) transport: Transport,
    pub(crate) read_timeout: Duration,
    name: String,
    max_attempts: u32,
    runtime: Runtime,
    requests: Mutex<BTreeMap<&'static str, u64>>,
}

/// What is different between the two.
pub(crate) enum Service {
    Google(Google),
    Azure(Azure),
}

impl Service {
    pub(crate) fn objects(&self) -> &dyn ObjectStore {
        match self {
            Self::Google(google) => &google.store,
            Self::Azure(azure) => &azure.store,
        }
    }

    pub(crate) fn pages(&self) -> &dyn PaginatedListStore {
        match self {
            Self::Google(google) => &google.store,
            Self::Azure(azure) => &azure.store,
        }
    }
}

impl Bucket {
    /// Connects, and makes sure that the bucket is there and may be listed.
    ///
    /// # Errors
    ///
    /// [`Kind::NoBucket`], [`Kind::Denied`], [`Kind::Transient`] for a server that cannot be reached after three tries, [`Kind::Other`]
    /// for a configuration that cannot be used.
    pub fn connect(config: &Config) -> Result<Self, CloudError> {
        let bucket = Self::prepare(config)?;
        let name = &bucket.inner.name;
        bucket.wait(bucket.attempts("open", name, FIRST_ATTEMPTS.min(config.max_attempts), |_| bucket.look()))?;
        Ok(bucket)
    }

    /// Makes the bucket.
    pub fn create(config: &Config) -> Result<Self, CloudError> {
        let bucket = Self::prepare(config)?;
        bucket.wait(async {
            match &bucket.inner.service {
                Service::Google(google) => google.make_bucket(&bucket.inner.transport).await,
                Service::Azure(azure) => azure.make_container(&bucket.inner.transport).await,
            }
        })?;
        Ok(bucket)
    }

    /// A client without a request.
    fn prepare(config: &Config) -> Result<Self, CloudError> {
        let bad = |reason: String| CloudError::new(Kind::Other, "open", &config.bucket, reason);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(RUNTIME_THREADS)
            .thread_name("cloud")
            .enable_all()
            .build()
            .map_err(|error| bad(format!("start threads: {error}")))?;
        let _entered = runtime.enter();
        // Bodies and conditional writes need more care than its own tries take, and they would all be made with one token.
        let once = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        let (service, transport) = match config.cloud {
            Cloud::Google => {
                let resolved = config.google().map_err(bad)?;
                let transport = Transport::new(config, &resolved.endpoint).map_err(bad)?;
                (Service::Google(Google::new(config, resolved, once, transport.clone())?), transport)
            }
            Cloud::Azure => {
                let resolved = config.azure().map_err(bad)?;
                let transport = Transport::new(config, &resolved.endpoint).map_err(bad)?;
                (Service::Azure(Azure::new(config, resolved, once, transport.clone())?), transport)
            }
        };
        drop(_entered);
        let inner = Inner {
            service,
            transport,
            read_timeout: config.read_timeout,
            name: config.bucket.clone(),
            max_attempts: config.max_attempts.max(1),
            runtime,
            requests: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The name of the bucket.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Whose store it is.
    pub fn cloud(&self) -> Cloud {
        match self.inner.service {
            Service::Google(_) => Cloud::Google,
            Service::Azure(_) => Cloud::Azure,
        }
    }

    /// Seconds that the server's clock was ahead of ours at the last answer; a second of it may be rounding.
    pub fn clock_ahead(&self) -> Option<i64> {
        self.inner.transport.clock_ahead()
    }

    /// Requests to the store so far, by what they did, repeated ones included.
    pub fn requests(&self) -> BTreeMap<&'static str, u64> {
        self.inner.requests.lock().expect("no panic while held").clone()
    }

    /// Runs a future on the calling thread; sockets and timers are the runtime's.
    pub(crate) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.inner.runtime.handle().block_on(noting(future))
    }

    pub(crate) fn spawn<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T> {
        self.inner.runtime.spawn(noting(future))
    }

    pub(crate) fn count(&self, action: &'static str) {
        *self.inner.requests.lock().expect("no panic while held").entry(action).or_default() += 1;
    }

    pub(crate) fn max_attempts(&self) -> u32 {
        self.inner.max_attempts
    }

    /// Tries until it succeeds, until an error says that trying is of no use, or until it was tried often enough.
    pub(crate) async fn again<T, F>(&self, action: &'static str, key: &str, operation: impl Fn(u32) -> F) -> Result<T, CloudError>
    where
        F: Future<Output = Result<T, CloudError>>,
    {
        self.attempts(action, key, self.inner.max_attempts, operation).await
    }

    async fn attempts<T, F>(&self, action: &'static str, key: &str, most: u32, operation: impl Fn(u32) -> F) -> Result<T, CloudError>
    where
        F: Future<Output = Result<T, CloudError>>,
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
                    if attempt > 1 && error.is_transient() {
                        error.reason.push_str(&format!(" ({attempt} tries)"));
                    }
                    return Err(error);
                }
                done => return done,
            }
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
    fn a_file_of_credentials_that_is_none_is_told_without_its_content() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), r#"{"type":"service_account","private_key":"hunter2"}"#).expect("own file");
        for path in [file.path().to_owned(), "/does/not/exist.json".into()] {
            let config = Config { credentials_file: Some(path), variables: Some(Vec::new()), ..Config::of(Cloud::Google, "b") };
            let error = Bucket::connect(&config).expect_err("no credentials");
            assert_eq!(error.kind, Kind::Denied, "{error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn a_file_of_roots_without_a_certificate_is_told() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let config = Config { ca_file: Some(file.path().to_owned()), variables: Some(Vec::new()), ..Config::of(Cloud::Google, "b") };
        let error = Bucket::connect(&config).expect_err("no certificate");
        assert!(error.reason.contains("no certificate"), "{error}");
    }
}
