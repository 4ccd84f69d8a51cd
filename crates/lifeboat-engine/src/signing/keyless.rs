//! Signing without a key of one's own: Sigstore's keyless way.
//!
//! A token of an OpenID Connect issuer says who we are; the certificate authority (Fulcio) puts that into a certificate for a key that was
//! made a moment ago and lives in memory only; transparency logs (Rekor 1 or 2) and timestamp authorities say when it signed. Which of
//! them, a signing config says ("SigningConfig" in `sigstore_trustroot.proto`); how many, its selectors do.
//!
//! A certificate is used for as long as it is valid, some ten minutes: one question to the authority for thousands of statements. Every
//! bundle is verified against the trusted root before it is used, with the reader's own code.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lifeboat_core::attestation::{PAYLOAD_TYPE, Statement};
use sigstore_bundle::BundleV03;
use sigstore_crypto::KeyPair;
use sigstore_oidc::IdentityToken;
use sigstore_rekor::{DsseEntry, HashedRekordV2, RekorApiVersion, RekorClient, RekorV2Client, RekorV2KeyDetails};
use sigstore_sign::fulcio::{self, FulcioClient};
use sigstore_trust_root::{ServiceConfiguration, ServiceEndpoint, ServiceSelector, SigningConfig};
use sigstore_types::{
    DerCertificate, DsseEnvelope, DsseSignature, KeyId, KindVersion, PayloadBytes, Sha256Hash, TransparencyLogEntry, dsse,
};

use super::certificate::line;
use super::service::{Kind, Reach, Service, ServiceError, address};
use super::stamped::timestamp;
use super::{PublicKey, Roots, SignError, Signer};
use crate::secret::SecretSource;

/// Validity that a certificate must have left to sign once more: its authority, the log and the timestamp authority have clocks of their own.
const MARGIN: Duration = Duration::from_secs(60);

/// Bytes that the JSON of a signing config may have.
pub const MAX_SIGNING_CONFIG_BYTES: usize = 1 << 20;

/// How to reach a Sigstore instance.
pub struct KeylessConfig {
    /// The contents of its `signing_config.json` (v0.2): which services there are.
    pub signing_config: String,
    /// Its trusted root: what readers verify with.
    pub roots: Roots,
    /// An identity token for it: a JSON Web Token of an issuer that it knows, with the audience that it expects (`sigstore`, usually).
    /// Asked for each certificate.
    pub token: SecretSource,
    /// The way there.
    pub reach: Reach,
}

/// Signs with certificates of a Sigstore instance.
pub struct KeylessSigner {
    config: SigningConfig,
    roots: Roots,
    token: SecretSource,
    service: Service,
    session: Mutex<Option<Arc<Session>>>,
    /// Who signed last: subject and issuer.
    identity: Mutex<Option<(String, String)>>,
}

/// A key, its certificate, and the services for as long as it lasts.
struct Session {
    key: KeyPair,
    certificate: DerCertificate,
    made: Instant,
    lifetime: Duration,
    services: Services,
}

/// The services that are to be used, and how many of them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Services {
    authorities: Vec<String>,
    logs: Needed<(String, RekorApiVersion)>,
    timestamps: Needed<String>,
}

/// That many of these, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Needed<T> {
    of: Vec<T>,
    count: usize,
}

impl KeylessSigner {
    /// Reads the signing config; nobody is asked yet, neither for the token nor for a certificate.
    ///
    /// # Errors
    ///
    /// [`SignError::Signer`] for a signing config that cannot be read, or whose services cannot make a signature that counts.
    pub fn new(config: KeylessConfig) -> Result<Self, SignError> {
        let bad = |reason: String| SignError::Signer(format!("read signing config: {reason}"));
        if config.signing_config.len() > MAX_SIGNING_CONFIG_BYTES {
            return Err(bad(format!("{} bytes, the limit is {MAX_SIGNING_CONFIG_BYTES}", config.signing_config.len())));
        }
        let parsed = SigningConfig::from_json(&config.signing_config).map_err(|error| bad(line(&error)))?;
        Services::choose(&parsed).map_err(bad)?;
        let service = Service::open(&config.reach)?;
        Ok(Self {
            config: parsed,
            roots: config.roots,
            token: config.token,
            service,
            session: Mutex::default(),
            identity: Mutex::default(),
        })
    }

    /// The certificate to sign with now, and whether it is a fresh one.
    fn session(&self) -> Result<(Arc<Session>, bool), SignError> {
        // Whoever comes meanwhile waits for the certificate instead of asking for one too.
        let mut session = self.session.lock().expect("no panic while held");
        if let Some(current) = session.as_ref().filter(|current| current.made.elapsed() + MARGIN < current.lifetime) {
            return Ok((current.clone(), false));
        }
        *session = None;
        Ok((session.insert(Arc::new(self.certify()?)).clone(), true))
    }

    /// A new key and a certificate for it.
    fn certify(&self) -> Result<Session, SignError> {
        let denied = |reason: String| SignError::Denied(format!("get signing certificate: {reason}"));
        let services = Services::choose(&self.config).map_err(|reason| SignError::Signer(format!("read signing config: {reason}")))?;
        let text = (self.token)().map_err(denied)?;
        let text = text.trim();
        // The library's reason may repeat what it read.
        let token = IdentityToken::from_jwt(text).map_err(|_| denied("the identity token is not a JSON Web Token".to_owned()))?;
        if token.is_expired() {
            return Err(denied(format!("the identity token has expired at {}", token.expiration())));
        }
        let key = KeyPair::generate_ecdsa_p256().map_err(|error| SignError::Signer(format!("generate key: {}", line(&error))))?;
        let mut last = None;
        for url in &services.authorities {
            let made = Instant::now();
            match self.certificate(url, &token, &key) {
                Ok((certificate, lifetime)) => return Ok(Session { key, certificate, made, lifetime, services }),
                Err(error) => last = Some(error.without(text).at(&format!("get signing certificate at {url}"))),
            }
        }
        Err(last.expect("there is one at least"))
    }

    fn certificate(&self, url: &str, token: &IdentityToken, key: &KeyPair) -> Result<(DerCertificate, Duration), ServiceError> {
        let client = FulcioClient::builder(url).with_http_client(self.service.client().clone()).build();
        let client = client.map_err(|error| ServiceError::new(Kind::Other, line(&error)))?;
        let answer = self.service.again(|| async {
            client.create_signing_certificate(token, key).await.map_err(|error| match error {
                // Who is refused here has the wrong token, whatever the status says.
                fulcio::Error::Status { status: status @ 400..=403, message } => {
                    ServiceError { kind: Kind::Denied, ..ServiceError::status(status, &message) }
                }
                fulcio::Error::Status { status, message } => ServiceError::status(status, &message),
                fulcio::Error::Http(_) => ServiceError::new(Kind::Transient, line(&error)),
                other => ServiceError::new(Kind::Other, line(&other)),
            })
        })?;
        let certificate = answer.leaf_certificate().clone();
        let info = sigstore_crypto::parse_certificate_info(&certificate);
        let info = info.map_err(|error| ServiceError::new(Kind::Other, format!("its certificate cannot be read: {}", line(&error))))?;
        // Its span, and not its end: our clock need not agree with the authority's.
        let lifetime = Duration::try_from(info.not_after.duration_since(info.not_before)).unwrap_or_default();
        Ok((certificate, lifetime))
    }

    /// A bundle of this certificate, verified.
    fn sign_with(&self, session: &Session, statement: &[u8]) -> Result<String, SignError> {
        let pae = dsse::pae(PAYLOAD_TYPE, statement);
        let signature = session.key.sign(&pae).map_err(|error| SignError::Signer(line(&error)))?;
        let signed = DsseSignature::new(signature.clone(), KeyId::default());
        let envelope = DsseEnvelope::new(PAYLOAD_TYPE, PayloadBytes::from_bytes(statement), signed);
        let digest = Sha256Hash::new(crate::sha256::of(&pae).0);
        let mut bundle = BundleV03::with_certificate_and_dsse(session.certificate.clone(), envelope.clone());
        let Services { logs, timestamps, .. } = &session.services;
        let entry = |(url, version): &(String, RekorApiVersion)| {
            let entry = self.log(url, *version, &envelope, &digest, &session.certificate);
            entry.map_err(|error| error.at(&format!("enter signature into transparency log at {url}")))
        };
        for entry in logs.gather(entry)? {
            bundle = bundle.with_tlog_entry(entry);
        }
        let token = |url: &String| {
            timestamp(&self.service, url, &signature, &self.roots).map_err(|error| error.at(&format!("timestamp signature at {url}")))
        };
        for token in timestamps.gather(token)? {
            bundle = bundle.with_rfc3161_timestamp(token);
        }
        let json = bundle.into_bundle().to_json().map_err(|error| SignError::Signer(line(&error)))?;
        let refused = |reason: String| SignError::Signer(format!("verify own signature against the trusted root: {reason}"));
        let verified = self.roots.verify_certificate(json.as_bytes()).map_err(|error| refused(line(&error)))?;
        if verified.statement != statement {
            return Err(refused("it is over another statement".to_owned()));
        }
        *self.identity.lock().expect("no panic while held") = Some((verified.subject, verified.issuer));
        Ok(json)
    }

    /// An entry of one log. Rekor 2 has no entries of its own for envelopes: what is entered is the digest of what is signed.
    fn log(
        &self,
        url: &str,
        version: RekorApiVersion,
        envelope: &DsseEnvelope,
        digest: &Sha256Hash,
        certificate: &DerCertificate,
    ) -> Result<TransparencyLogEntry, ServiceError> {
        let other = |error: &dyn std::error::Error| ServiceError::new(Kind::Other, line(error));
        let refused = |error: sigstore_rekor::Error| match error {
            sigstore_rekor::Error::Status { status, message } => ServiceError::status(status, &message),
            sigstore_rekor::Error::Http(_) => ServiceError::new(Kind::Transient, line(&error)),
            error => other(&error),
        };
        let http = self.service.client().clone();
        match version {
            RekorApiVersion::V1 => {
                let client = RekorClient::builder(url).with_http_client(http).build().map_err(refused)?;
                let entry = DsseEntry::new(envelope, certificate).map_err(refused)?;
                let entered = self.service.again(|| async { client.create_dsse_entry(entry.clone()).await.map_err(refused) })?;
                entered.to_bundle_entry(KindVersion::DsseV001).map_err(|error| other(&error))
            }
            RekorApiVersion::V2 => {
                let client = RekorV2Client::builder(url).with_http_client(http).build().map_err(refused)?;
                let details = RekorV2KeyDetails::PkixEcdsaP256Sha256;
                let entry = || HashedRekordV2::new_with_certificate(digest, &envelope.signature.sig, certificate, details);
                self.service.again(|| async { client.create_entry(entry()).await.map_err(refused) })
            }
            version => Err(ServiceError::new(Kind::Other, format!("Rekor {} is not known", version.major()))),
        }
    }
}

impl Services {
    /// What a signing config says now: its services have windows of validity.
    fn choose(config: &SigningConfig) -> Result<Self, String> {
        let plain = |endpoint: &ServiceEndpoint| address("use service", &endpoint.url).map_err(|error| error.to_string());
        let authorities = config.eligible_fulcio_urls().into_iter().map(plain).collect::<Result<Vec<_>, _>>()?;
        if authorities.is_empty() {
            return Err("it names no certificate authority that is valid now".to_owned());
        }
        let log = |endpoint: &ServiceEndpoint| {
            let version = RekorApiVersion::from_major(endpoint.major_api_version).ok_or("it names a Rekor of an unknown version")?;
            Ok::<_, String>((plain(endpoint)?, version))
        };
        let logs = Needed::choose("transparency logs", &config.rekor_tlog_config, config.eligible_rekor_urls(None), log)?;
        let timestamps = Needed::choose("timestamp authorities", &config.tsa_config, config.eligible_tsa_urls(), plain)?;
        // The one that says when is the first version's log, or a timestamp authority.
        let tells_time = logs.of.iter().take(logs.count).any(|(_, version)| *version == RekorApiVersion::V1);
        if timestamps.count == 0 && !tells_time {
            return Err("it names nobody who says when a signature was made: a timestamp authority, or a Rekor of version 1".to_owned());
        }
        Ok(Self { authorities, logs, timestamps })
    }
}

impl<T> Needed<T> {
    /// "Clients must use at most one service of an operator", the one with the newest version (`SigningConfig`, on its selectors).
    fn choose(
        what: &str,
        config: &ServiceConfiguration,
        eligible: Vec<&ServiceEndpoint>,
        take: impl Fn(&ServiceEndpoint) -> Result<T, String>,
    ) -> Result<Self, String> {
        let mut operators: Vec<&str> = Vec::new();
        let mut of = Vec::new();
        for endpoint in &eligible {
            match endpoint.operator.as_deref() {
                Some(operator) if operators.contains(&operator) => continue,
                Some(operator) => operators.push(operator),
                None => {}
            }
            of.push(take(endpoint)?);
        }
        let count = match config.selector {
            ServiceSelector::Any => of.len().min(1),
            ServiceSelector::All => of.len(),
            ServiceSelector::Exact => {
                let count = config.count.and_then(|count| usize::try_from(count).ok()).unwrap_or_default();
                if count == 0 || count > of.len() {
                    return Err(format!("it asks for {count} {what} of different operators and names {}", of.len()));
                }
                count
            }
            _ => return Err(format!("it does not say how many {what} to use")),
        };
        Ok(Self { of, count })
    }

    /// What the first of them give, as many as are needed; who fails is passed over while others are left.
    fn gather<R, E>(&self, ask: impl Fn(&T) -> Result<R, E>) -> Result<Vec<R>, E> {
        let mut gathered = Vec::new();
        for (index, one) in self.of.iter().enumerate() {
            if gathered.len() == self.count {
                break;
            }
            match ask(one) {
                Ok(given) => gathered.push(given),
                Err(error) if gathered.len() + (self.of.len() - index - 1) < self.count => return Err(error),
                Err(_) => {}
            }
        }
        Ok(gathered)
    }
}

impl Signer for KeylessSigner {
    fn sign_statement(&self, statement: &[u8]) -> Result<String, SignError> {
        Statement::parse(statement)?;
        let (session, fresh) = self.session()?;
        match self.sign_with(&session, statement) {
            Err(_) if !fresh => {
                // A host that slept, or a clock that jumped, has a certificate that is over without knowing it.
                self.session.lock().expect("no panic while held").take_if(|current| Arc::ptr_eq(current, &session));
                self.sign_with(&self.session()?.0, statement)
            }
            done => done,
        }
    }

    fn public_key(&self) -> Option<PublicKey> {
        None
    }

    fn describe(&self) -> String {
        match &*self.identity.lock().expect("no panic while held") {
            Some((subject, issuer)) => format!("certificate of {subject} ({issuer})"),
            None => {
                let url = self.config.fulcio_url().map_or("", |endpoint| endpoint.url.as_str());
                format!("certificate, by {url}")
            }
        }
    }
}

impl fmt::Debug for KeylessSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeylessSigner").field("roots", &self.roots).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn endpoint(url: &str, version: u32, operator: &str) -> Value {
        json!({"url": url, "majorApiVersion": version, "validFor": {"start": "2020-01-01T00:00:00Z"}, "operator": operator})
    }

    fn config(logs: Value, timestamps: Value, selectors: [Value; 2]) -> SigningConfig {
        let text = json!({
            "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
            "caUrls": [endpoint("https://ca", 1, "a")],
            "rekorTlogUrls": logs, "tsaUrls": timestamps,
            "rekorTlogConfig": selectors[0], "tsaConfig": selectors[1],
        });
        SigningConfig::from_json(&text.to_string()).unwrap()
    }

    fn any() -> [Value; 2] {
        [json!({"selector": "ANY"}), json!({"selector": "ANY"})]
    }

    #[test]
    fn of_one_operator_the_newest_log_is_used() {
        let logs = json!([endpoint("https://one", 1, "a"), endpoint("https://two", 2, "a"), endpoint("https://other", 1, "b")]);
        let chosen = Services::choose(&config(logs, json!([endpoint("https://time", 1, "a")]), any())).unwrap();
        assert_eq!(chosen.authorities, ["https://ca"]);
        let v = |url: &str, version| (url.to_owned(), version);
        assert_eq!(chosen.logs.of, [v("https://two", RekorApiVersion::V2), v("https://other", RekorApiVersion::V1)]);
        assert_eq!((chosen.logs.count, chosen.timestamps.count), (1, 1));
    }

    #[test]
    fn as_many_are_used_as_the_config_says() {
        let logs = json!([endpoint("https://1", 1, "a"), endpoint("https://2", 1, "b"), endpoint("https://3", 1, "c")]);
        let count = |selector: Value| {
            Services::choose(&config(logs.clone(), json!([]), [selector, json!({"selector": "ANY"})])).map(|chosen| chosen.logs.count)
        };
        assert_eq!(count(json!({"selector": "ANY"})), Ok(1));
        assert_eq!(count(json!({"selector": "ALL"})), Ok(3));
        assert_eq!(count(json!({"selector": "EXACT", "count": 2})), Ok(2));
        for bad in
            [json!({"selector": "EXACT", "count": 4}), json!({"selector": "EXACT"}), json!({"selector": "SERVICE_SELECTOR_UNDEFINED"})]
        {
            assert!(count(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn nobody_to_say_when_is_refused() {
        let of = |logs: Value, timestamps: Value| Services::choose(&config(logs, timestamps, any())).map(drop);
        let (one, two) = (json!([endpoint("https://1", 1, "a")]), json!([endpoint("https://2", 2, "a")]));
        assert_eq!(of(one.clone(), json!([])), Ok(()));
        assert_eq!(of(two.clone(), json!([endpoint("https://t", 1, "a")])), Ok(()));
        assert_eq!(of(json!([]), json!([endpoint("https://t", 1, "a")])), Ok(()));
        assert!(of(two, json!([])).is_err());
        assert!(of(json!([]), json!([])).is_err());
    }

    #[test]
    fn who_fails_is_passed_over_while_others_are_left() {
        let needed = |count| Needed { of: vec![1, 2, 3, 4], count };
        let even = |number: &i32| if number % 2 == 0 { Ok(*number) } else { Err(*number) };
        assert_eq!(needed(1).gather(even), Ok(vec![2]));
        assert_eq!(needed(2).gather(even), Ok(vec![2, 4]));
        assert_eq!(needed(3).gather(even), Err(3));
        assert_eq!(needed(0).gather(even), Ok(vec![]));
    }
}
