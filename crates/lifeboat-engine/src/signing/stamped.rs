//! A signer whose signatures get a timestamp, whichever signer makes them.
//!
//! Without one, a signature says itself when it was made, and whoever steals the key says what they like. The token is verified against
//! the trusted root as soon as it is there: an authority that readers do not know is found when signing, not when restoring.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use sigstore_tsa::TimestampClient;
use sigstore_types::bundle::{Rfc3161Timestamp, SignatureContent};
use sigstore_types::{Bundle, SignatureBytes, TimestampToken};

use super::certificate::line;
use super::service::{Kind, Reach, Service, ServiceError, address};
use super::{PublicKey, Roots, SignError, Signer};

/// How long nobody is asked after nobody answered, where signatures may do without: thousands of them would wait in vain, one by one.
const PAUSE: Duration = Duration::from_secs(60);

/// Which timestamps, and what happens without.
pub struct StampConfig {
    /// RFC 3161 authorities over HTTP, in the order in which they are asked; the first that answers is enough.
    pub urls: Vec<String>,
    /// Whose timestamps count.
    pub roots: Roots,
    /// A signature without a timestamp is no signature.
    pub required: bool,
    /// The way there.
    pub reach: Reach,
    /// Told why signatures go without a timestamp, once per outage; never where timestamps are required.
    pub missed: Box<dyn Fn(&str) + Send + Sync>,
}

/// Adds a timestamp to every signature of another signer.
pub struct StampedSigner {
    signer: Box<dyn Signer>,
    authorities: Authorities,
    required: bool,
    missed: Box<dyn Fn(&str) + Send + Sync>,
    /// Until when nobody is asked.
    pause: Mutex<Option<Instant>>,
}

impl StampedSigner {
    /// Wraps `signer`. Nobody is asked yet.
    ///
    /// # Errors
    ///
    /// [`SignError::Signer`] for a trusted root without timestamp authorities, an address that is none, and without any address.
    pub fn new(signer: Box<dyn Signer>, config: StampConfig) -> Result<Self, SignError> {
        let authorities = Authorities::open(&config.urls, config.roots, &config.reach)?;
        Ok(Self { signer, authorities, required: config.required, missed: config.missed, pause: Mutex::default() })
    }

    fn stamp(&self, bundle: &mut Bundle) -> Result<(), SignError> {
        let signature = match &bundle.content {
            SignatureContent::DsseEnvelope(envelope) => envelope.signature.sig.clone(),
            _ => return Err(SignError::Signer("timestamp signature: the bundle has no DSSE envelope".to_owned())),
        };
        let token = self.authorities.timestamp(&signature)?;
        bundle.verification_material.timestamp_verification_data.rfc3161_timestamps.push(Rfc3161Timestamp::new(token));
        Ok(())
    }

    fn pauses(&self) -> bool {
        self.pause.lock().expect("no panic while held").is_some_and(|until| Instant::now() < until)
    }

    /// Sets or ends the pause; whether that is news.
    fn set_pause(&self, until: Option<Instant>) -> bool {
        let mut pause = self.pause.lock().expect("no panic while held");
        let news = pause.is_some() != until.is_some();
        *pause = until;
        news
    }
}

impl Signer for StampedSigner {
    fn sign_statement(&self, statement: &[u8]) -> Result<String, SignError> {
        let json = self.signer.sign_statement(statement)?;
        if !self.required && self.pauses() {
            return Ok(json);
        }
        let unreadable = |error: sigstore_types::Error| SignError::Signer(format!("timestamp signature: {}", line(&error)));
        let mut bundle = Bundle::from_json(&json).map_err(unreadable)?;
        match self.stamp(&mut bundle) {
            Ok(()) => {
                self.set_pause(None);
                bundle.to_json().map_err(unreadable)
            }
            Err(error) if self.required => Err(error),
            Err(error) => {
                if self.set_pause(Some(Instant::now() + PAUSE)) {
                    (self.missed)(&error.to_string());
                }
                Ok(json)
            }
        }
    }

    fn public_key(&self) -> Option<PublicKey> {
        self.signer.public_key()
    }

    fn describe(&self) -> String {
        let how = if self.required { "timestamps by" } else { "if possible, timestamps by" };
        format!("{}; {how} {}", self.signer.describe(), self.authorities.urls.join(", "))
    }
}

/// Timestamp authorities, asked in order.
pub(super) struct Authorities {
    urls: Vec<String>,
    roots: Roots,
    service: Service,
}

impl Authorities {
    fn open(urls: &[String], roots: Roots, reach: &Reach) -> Result<Self, SignError> {
        let urls = urls.iter().map(|url| address("reach timestamp authority", url)).collect::<Result<Vec<_>, _>>()?;
        if urls.is_empty() {
            return Err(SignError::Signer("timestamp signatures: no authority is named".to_owned()));
        }
        if !roots.has_timestamp_authorities() {
            return Err(SignError::Signer("timestamp signatures: the trusted root names no timestamp authority".to_owned()));
        }
        Ok(Self { urls, roots, service: Service::open(reach)? })
    }

    fn timestamp(&self, signature: &SignatureBytes) -> Result<TimestampToken, SignError> {
        let mut last = None;
        for url in &self.urls {
            match timestamp(&self.service, url, signature, &self.roots) {
                Ok(token) => return Ok(token),
                Err(error) => last = Some(error.at(&format!("timestamp signature at {url}"))),
            }
        }
        Err(last.expect("there is one at least"))
    }
}

/// The token of one authority, verified.
pub(super) fn timestamp(service: &Service, url: &str, signature: &SignatureBytes, roots: &Roots) -> Result<TimestampToken, ServiceError> {
    let client = TimestampClient::builder(url).with_http_client(service.client().clone()).build();
    let client = client.map_err(|error| ServiceError::new(Kind::Other, line(&error)))?;
    let token = service.again(|| async {
        client.timestamp_signature(signature).await.map_err(|error| {
            // It says of the status only the number, in words.
            let permanent =
                |text: &str| ["status 400", "status 401", "status 403", "status 404", "status 405"].iter().any(|s| text.contains(s));
            match &error {
                sigstore_tsa::Error::Http(text) if !permanent(text) => ServiceError::new(Kind::Transient, line(&error)),
                _ => ServiceError::new(Kind::Other, line(&error)),
            }
        })
    })?;
    roots.timestamp([token.as_bytes()], signature.as_bytes()).map_err(|error| ServiceError::new(Kind::Other, line(&error)))?;
    Ok(token)
}
