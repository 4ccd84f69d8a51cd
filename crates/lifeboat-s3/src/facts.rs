//! What a bucket is set up to do, as the server says it. Whether it does is for who probes.

use std::time::Duration;

use aws_sdk_s3::types::{
    BucketVersioningStatus, DefaultRetention as SdkRetention, ExpirationStatus, LifecycleRule as SdkLifecycleRule, ObjectLockConfiguration,
    ObjectLockEnabled, ObjectLockRetentionMode, ObjectLockRule, ReplicationRuleStatus, VersioningConfiguration,
};

use crate::{Bucket, Kind, Mode, S3Error};

/// What the server answered, or why it did not: a restricted key may not ask everything, and some servers do not know all questions.
pub type Fact<T> = Result<T, S3Error>;

/// Whether old versions stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Versioning {
    /// Never switched on.
    Off,
    /// On.
    On,
    /// Switched off again: versions stay that were there, new ones are overwritten.
    Suspended,
}

/// How long a default retention is: days and years are the calendar's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// Days.
    Days(u32),
    /// Years.
    Years(u32),
}

impl Period {
    /// About how long, at least.
    pub fn at_least(self) -> Duration {
        let days = match self {
            Self::Days(days) => u64::from(days),
            Self::Years(years) => 365 * u64::from(years),
        };
        Duration::from_secs(days * 24 * 60 * 60)
    }
}

/// The retention of objects that are written without saying one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DefaultRetention {
    /// How they are kept.
    pub mode: Mode,
    /// How long.
    pub period: Period,
}

/// Where the store itself copies objects to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicationRule {
    /// Whether it is switched on.
    pub enabled: bool,
    /// The keys that it is of.
    pub prefix: Option<String>,
    /// The bucket, as an ARN.
    pub destination: String,
    /// Whether deletions are copied as well: then the copy does not outlive one.
    pub deletions: bool,
}

/// How objects are encrypted that are written without saying how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encryption {
    /// In S3's words: `AES256`, `aws:kms`, `aws:kms:dsse`.
    pub algorithm: String,
}

/// What of public access the bucket refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicAccess {
    /// Nothing can be made public, and nothing is.
    pub blocked: bool,
}

/// A rule by which the store deletes objects by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LifecycleRule {
    /// Its name.
    pub id: String,
    /// Whether it is switched on.
    pub enabled: bool,
    /// The keys that it is of; empty: all.
    pub prefix: String,
    /// It is of objects with certain tags only, which ours do not have.
    pub tagged: bool,
    /// It deletes objects, or hides them where the bucket has versions: so many days after they were written, 0 for a fixed day.
    pub expires_after_days: Option<u32>,
    /// It deletes versions that were replaced or deleted, so many days later.
    pub old_versions_after_days: Option<u32>,
    /// It ends uploads that were begun and never finished.
    pub aborts_uploads: bool,
}

/// What the server says of the bucket.
#[derive(Debug)]
pub struct Facts {
    /// Whether old versions stay.
    pub versioning: Fact<Versioning>,
    /// `None`: no Object Lock. `Some(None)`: Object Lock, but what says no retention has none.
    pub object_lock: Fact<Option<Option<DefaultRetention>>>,
    /// Rules by which the store copies objects elsewhere.
    pub replication: Fact<Vec<ReplicationRule>>,
    /// How objects are encrypted by default.
    pub encryption: Fact<Option<Encryption>>,
    /// Whether it can be public.
    pub public_access: Fact<PublicAccess>,
    /// Rules by which the store deletes objects.
    pub lifecycle: Fact<Vec<LifecycleRule>>,
    /// Seconds that the server's clock is ahead of ours, ± 1.
    pub clock_ahead: Option<i64>,
}

impl Bucket {
    /// Asks everything that there is to ask of the bucket. Nothing is changed.
    pub fn facts(&self) -> Facts {
        self.wait(async {
            let (versioning, object_lock) = (self.versioning().await, self.object_lock().await);
            let (replication, encryption) = (self.replication().await, self.encryption().await);
            let (public_access, lifecycle) = (self.public_access().await, self.lifecycle().await);
            Facts { versioning, object_lock, replication, encryption, public_access, lifecycle, clock_ahead: self.clock_ahead() }
        })
    }

    /// Whether old versions stay.
    pub fn keeps_versions(&self) -> Fact<Versioning> {
        self.wait(self.versioning())
    }

    async fn versioning(&self) -> Fact<Versioning> {
        let name = self.name();
        let answer = self
            .again("ask versioning of", name, |_| async move {
                let request = self.client().get_bucket_versioning().bucket(name);
                request.send().await.map_err(|error| S3Error::of("ask versioning of", name, error))
            })
            .await?;
        Ok(match answer.status() {
            Some(BucketVersioningStatus::Enabled) => Versioning::On,
            Some(BucketVersioningStatus::Suspended) => Versioning::Suspended,
            _ => Versioning::Off,
        })
    }

    async fn object_lock(&self) -> Fact<Option<Option<DefaultRetention>>> {
        let name = self.name();
        let answer = self
            .again("ask Object Lock of", name, |_| async move {
                let request = self.client().get_object_lock_configuration().bucket(name);
                request.send().await.map_err(|error| S3Error::of("ask Object Lock of", name, error))
            })
            .await;
        let Some(answer) = unless(answer, "ObjectLockConfigurationNotFoundError")? else { return Ok(None) };
        let Some(configuration) = answer.object_lock_configuration() else { return Ok(None) };
        if configuration.object_lock_enabled() != Some(&ObjectLockEnabled::Enabled) {
            return Ok(None);
        }
        let Some(default) = configuration.rule().and_then(ObjectLockRule::default_retention) else { return Ok(Some(None)) };
        let mode = match default.mode() {
            Some(ObjectLockRetentionMode::Compliance) => Mode::Compliance,
            Some(ObjectLockRetentionMode::Governance) => Mode::Governance,
            _ => return Ok(Some(None)),
        };
        let number = |count: Option<i32>| count.and_then(|count| u32::try_from(count).ok()).filter(|count| *count > 0);
        let period = number(default.days()).map(Period::Days).or(number(default.years()).map(Period::Years));
        Ok(Some(period.map(|period| DefaultRetention { mode, period })))
    }

    async fn replication(&self) -> Fact<Vec<ReplicationRule>> {
        let name = self.name();
        let answer = self
            .again("ask replication of", name, |_| async move {
                let request = self.client().get_bucket_replication().bucket(name);
                request.send().await.map_err(|error| S3Error::of("ask replication of", name, error))
            })
            .await;
        let Some(answer) = unless(answer, "ReplicationConfigurationNotFoundError")? else { return Ok(Vec::new()) };
        let rules = answer.replication_configuration().map(|configuration| configuration.rules()).unwrap_or_default();
        Ok(rules
            .iter()
            .map(|rule| ReplicationRule {
                enabled: *rule.status() == ReplicationRuleStatus::Enabled,
                prefix: rule.filter().and_then(|filter| filter.prefix()).map(str::to_owned),
                destination: rule.destination().map(|destination| destination.bucket().to_owned()).unwrap_or_default(),
                deletions: rule
                    .delete_marker_replication()
                    .and_then(|deletions| deletions.status())
                    .is_some_and(|status| status.as_str() == "Enabled"),
            })
            .collect())
    }

    async fn encryption(&self) -> Fact<Option<Encryption>> {
        let name = self.name();
        let answer = self
            .again("ask encryption of", name, |_| async move {
                let request = self.client().get_bucket_encryption().bucket(name);
                request.send().await.map_err(|error| S3Error::of("ask encryption of", name, error))
            })
            .await;
        let Some(answer) = unless(answer, "ServerSideEncryptionConfigurationNotFoundError")? else { return Ok(None) };
        let rules = answer.server_side_encryption_configuration().map(|configuration| configuration.rules()).unwrap_or_default();
        let default = rules.iter().find_map(|rule| rule.apply_server_side_encryption_by_default());
        Ok(default.map(|default| Encryption { algorithm: default.sse_algorithm().as_str().to_owned() }))
    }

    async fn public_access(&self) -> Fact<PublicAccess> {
        let name = self.name();
        let answer = self
            .again("ask public access of", name, |_| async move {
                let request = self.client().get_public_access_block().bucket(name);
                request.send().await.map_err(|error| S3Error::of("ask public access of", name, error))
            })
            .await;
        let Some(answer) = unless(answer, "NoSuchPublicAccessBlockConfiguration")? else { return Ok(PublicAccess { blocked: false }) };
        let blocked = answer.public_access_block_configuration().is_some_and(|block| {
            [block.block_public_acls(), block.ignore_public_acls(), block.block_public_policy(), block.restrict_public_buckets()]
                .iter()
                .all(|on| *on == Some(true))
        });
        Ok(PublicAccess { blocked })
    }

    async fn lifecycle(&self) -> Fact<Vec<LifecycleRule>> {
        let name = self.name();
        let answer = self
            .again("ask lifecycle of", name, |_| async move {
                let request = self.client().get_bucket_lifecycle_configuration().bucket(name);
                request.send().await.map_err(|error| S3Error::of("ask lifecycle of", name, error))
            })
            .await;
        let Some(answer) = unless(answer, "NoSuchLifecycleConfiguration")? else { return Ok(Vec::new()) };
        Ok(answer.rules().iter().map(lifecycle_rule).collect())
    }

    /// Makes the bucket, and what it is to do.
    pub(crate) async fn make(&self, lock: Option<DefaultRetention>) -> Result<(), S3Error> {
        let name = self.name();
        // Everywhere but in us-east-1, AWS wants the region a second time.
        let region = self.client().config().region().map(|region| region.as_ref().to_owned()).filter(|region| region != "us-east-1");
        let place = region.map(|region| {
            aws_sdk_s3::types::CreateBucketConfiguration::builder()
                .location_constraint(aws_sdk_s3::types::BucketLocationConstraint::from(region.as_str()))
                .build()
        });
        let request = self.client().create_bucket().bucket(name).set_create_bucket_configuration(place);
        let request = request.set_object_lock_enabled_for_bucket(lock.map(|_| true));
        self.again("make", name, |_| {
            let request = request.clone();
            async move { request.send().await.map_err(|error| exists(S3Error::of("make", name, error))) }
        })
        .await?;
        let Some(lock) = lock else {
            let on = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled).build();
            let request = self.client().put_bucket_versioning().bucket(name).versioning_configuration(on);
            request.send().await.map_err(|error| S3Error::of("make", name, error))?;
            return Ok(());
        };
        let (days, years) = match lock.period {
            Period::Days(days) => (i32::try_from(days).ok(), None),
            Period::Years(years) => (None, i32::try_from(years).ok()),
        };
        let mode = match lock.mode {
            Mode::Compliance => ObjectLockRetentionMode::Compliance,
            Mode::Governance => ObjectLockRetentionMode::Governance,
        };
        let default = SdkRetention::builder().mode(mode).set_days(days).set_years(years).build();
        let rule = ObjectLockRule::builder().default_retention(default).build();
        let configuration = ObjectLockConfiguration::builder().object_lock_enabled(ObjectLockEnabled::Enabled).rule(rule).build();
        let request = self.client().put_object_lock_configuration().bucket(name).object_lock_configuration(configuration);
        request.send().await.map_err(|error| S3Error::of("make", name, error))?;
        Ok(())
    }
}

fn lifecycle_rule(rule: &SdkLifecycleRule) -> LifecycleRule {
    let filter = rule.filter();
    let and = filter.and_then(|filter| filter.and());
    // The prefix stood in the rule itself before there were filters.
    #[expect(deprecated, reason = "rules that were made so are still answered so")]
    let old = rule.prefix();
    let prefix = filter.and_then(|filter| filter.prefix()).or_else(|| and.and_then(|and| and.prefix())).or(old);
    let days = |days: Option<i32>| days.and_then(|days| u32::try_from(days).ok());
    let expires = rule.expiration().and_then(|end| days(end.days()).or_else(|| end.date().map(|_| 0)));
    let old_versions = rule.noncurrent_version_expiration().and_then(|end| days(end.noncurrent_days()).or(Some(0)));
    LifecycleRule {
        id: rule.id().unwrap_or_default().to_owned(),
        enabled: *rule.status() == ExpirationStatus::Enabled,
        prefix: prefix.unwrap_or_default().to_owned(),
        tagged: filter.is_some_and(|filter| filter.tag().is_some()) || and.is_some_and(|and| !and.tags().is_empty()),
        expires_after_days: expires,
        old_versions_after_days: old_versions,
        aborts_uploads: rule.abort_incomplete_multipart_upload().is_some(),
    }
}

/// `None` where the server says, with this code, that there is no such configuration.
fn unless<T>(answer: Result<T, S3Error>, code: &str) -> Result<Option<T>, S3Error> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.code.as_deref() == Some(code) => Ok(None),
        Err(error) => Err(error),
    }
}

fn exists(error: S3Error) -> S3Error {
    match error.code.as_deref() {
        Some("BucketAlreadyExists" | "BucketAlreadyOwnedByYou") => S3Error { kind: Kind::Exists, ..error },
        _ => error,
    }
}
