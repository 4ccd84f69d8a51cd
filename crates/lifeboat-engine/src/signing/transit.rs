//! Signing with a key that HashiCorp Vault or OpenBao holds: the transit secrets engine.
//!
//! Facts: Vault API documentation, "Transit secrets engine": `GET /v1/MOUNT/keys/KEY` names the versions of a key with their public halves,
//! `POST /v1/MOUNT/sign/KEY/sha2-256` signs a digest (`prehashed`), in DER (`marshaling_algorithm` `asn1`), and answers
//! `vault:vVERSION:BASE64`. OpenBao kept both, the prefix included.
//!
//! The service signs with the newest version; the bundle names the key of the version that did, also where the key was rotated a moment
//! ago. Every signature is verified before it is used: what readers would refuse is refused here.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use lifeboat_core::attestation::{PAYLOAD_TYPE, Statement};
use reqwest::Method;
use reqwest::header::HeaderValue;
use serde::Deserialize;
use serde_json::{Value, json};
use sigstore_types::dsse;
use zeroize::Zeroizing;

use super::service::{Kind, Reach, Service, ServiceError, address, body};
use super::{PublicKey, SignError, Signer, bundle};
use crate::secret::SecretSource;

/// Where transit usually is mounted.
pub const DEFAULT_MOUNT: &str = "transit";

/// How to reach a key of the transit engine.
pub struct TransitConfig {
    /// The server: `https://host:port`.
    pub address: String,
    /// The key's name.
    pub key: String,
    /// Where the engine is mounted: [`DEFAULT_MOUNT`].
    pub mount: String,
    /// The namespace, where the server has them.
    pub namespace: Option<String>,
    /// The token. Asked again when the server refuses the last one: an agent may have renewed it.
    pub token: SecretSource,
    /// The way there.
    pub reach: Reach,
}

/// Signs with a key of the transit engine.
pub struct TransitSigner {
    config: TransitConfig,
    address: String,
    service: Service,
    token: Mutex<Option<Zeroizing<String>>>,
    versions: Mutex<Versions>,
}

/// The versions of the key and their public halves.
#[derive(Debug, Clone, Default)]
struct Versions {
    known: BTreeMap<u64, PublicKey>,
}

impl TransitSigner {
    /// Reads the public halves of the key; signs nothing yet.
    ///
    /// # Errors
    ///
    /// [`SignError::Denied`] for a token that is not taken or may not read the key; [`SignError::Signer`] for a server that is not reached,
    /// and for a key that is not there or of another type than `ecdsa-p256`.
    pub fn open(config: TransitConfig) -> Result<Self, SignError> {
        let address = address("reach transit engine", &config.address)?;
        for (what, text) in [("key", &config.key), ("mount", &config.mount)] {
            // They become part of a path.
            let fits = |part: &str| {
                let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
                !part.is_empty() && part.chars().all(plain) && part.chars().any(|c| c != '.')
            };
            let fits = if what == "mount" { text.split('/').all(fits) } else { fits(text) };
            if !fits {
                return Err(SignError::Signer(format!("name transit {what} {text:?}: letters, digits, -, _ and . only")));
            }
        }
        if config.namespace.as_ref().is_some_and(|namespace| HeaderValue::from_str(namespace).is_err()) {
            return Err(SignError::Signer("name transit namespace: it has characters that no header may have".to_owned()));
        }
        let service = Service::open(&config.reach)?;
        let signer = Self { config, address, service, token: Mutex::default(), versions: Mutex::default() };
        signer.read_versions().map_err(|error| error.at(&signer.asked("read")))?;
        Ok(signer)
    }

    fn versions(&self) -> Versions {
        self.versions.lock().expect("no panic while held").clone()
    }

    fn asked(&self, what: &str) -> String {
        format!("{what} transit key {} at {}", self.config.key, self.address)
    }

    fn read_versions(&self) -> Result<(), ServiceError> {
        #[derive(Deserialize)]
        struct Key {
            #[serde(rename = "type")]
            kind: String,
            // Of a key that does not sign with two halves these are numbers.
            keys: BTreeMap<u64, Value>,
        }
        let key: Key = self.call(Method::GET, &format!("keys/{}", self.config.key), None)?;
        if key.kind != "ecdsa-p256" {
            return Err(ServiceError::new(Kind::Other, format!("it is of type {:?}; make one of type ecdsa-p256", key.kind)));
        }
        let mut known = BTreeMap::new();
        for (version, half) in key.keys {
            let pem = half.get("public_key").and_then(Value::as_str).unwrap_or_default();
            let public = PublicKey::from_pem(pem).map_err(|error| ServiceError::new(Kind::Other, format!("version {version}: {error}")))?;
            known.insert(version, public);
        }
        if known.is_empty() {
            return Err(ServiceError::new(Kind::Other, "it has no version"));
        }
        self.versions.lock().expect("no panic while held").known = known;
        Ok(())
    }

    /// The signature over a digest, and the version that made it.
    fn sign_digest(&self, sha256: &[u8; 32]) -> Result<(u64, Vec<u8>), ServiceError> {
        #[derive(Deserialize)]
        struct Signed {
            signature: String,
        }
        let asked = json!({"input": BASE64.encode(sha256), "prehashed": true, "marshaling_algorithm": "asn1"});
        let signed: Signed = self.call(Method::POST, &format!("sign/{}/sha2-256", self.config.key), Some(asked))?;
        let mut parts = signed.signature.rsplitn(3, ':');
        let signature = parts.next().and_then(|text| BASE64.decode(text).ok());
        let version = parts.next().and_then(|text| text.strip_prefix('v')?.parse().ok());
        match (version, signature) {
            (Some(version), Some(signature)) => Ok((version, signature)),
            _ => Err(ServiceError::new(Kind::Other, "the answer is not a signature")),
        }
    }

    /// The public half of a version, which may be younger than what was read.
    fn version(&self, version: u64) -> Result<PublicKey, ServiceError> {
        if let Some(public) = self.versions().known.get(&version) {
            return Ok(public.clone());
        }
        self.read_versions()?;
        let unknown = || ServiceError::new(Kind::Other, format!("it was signed with version {version}, which the service does not name"));
        self.versions().known.get(&version).cloned().ok_or_else(unknown)
    }

    /// The last token, or a fresh one.
    fn token(&self, refused: Option<&str>) -> Result<Zeroizing<String>, ServiceError> {
        let mut last = self.token.lock().expect("no panic while held");
        if let Some(token) = last.as_ref().filter(|token| refused != Some(token.as_str())) {
            return Ok(token.clone());
        }
        let token = (self.config.token)().map_err(|reason| ServiceError::new(Kind::Denied, reason))?;
        Ok(last.insert(Zeroizing::new(token.trim().to_owned())).clone())
    }

    fn call<T: for<'de> Deserialize<'de>>(&self, method: Method, path: &str, asked: Option<Value>) -> Result<T, ServiceError> {
        let token = self.token(None)?;
        match self.call_with(&token, &method, path, asked.as_ref()) {
            Err(error) if error.kind == Kind::Denied => {
                let fresh = self.token(Some(&token))?;
                if fresh == token {
                    return Err(error);
                }
                self.call_with(&fresh, &method, path, asked.as_ref())
            }
            done => done,
        }
    }

    fn call_with<T: for<'de> Deserialize<'de>>(
        &self,
        token: &str,
        method: &Method,
        path: &str,
        asked: Option<&Value>,
    ) -> Result<T, ServiceError> {
        #[derive(Deserialize)]
        struct Answer<T> {
            data: T,
        }
        #[derive(Default, Deserialize)]
        struct Refusal {
            #[serde(default)]
            errors: Vec<String>,
        }
        let mut header = HeaderValue::from_str(token).map_err(|_| ServiceError::new(Kind::Denied, "the token is not one"))?;
        header.set_sensitive(true);
        let url = format!("{}/v1/{}/{path}", self.address, self.config.mount);
        let sent = || async {
            let mut request = self.service.client().request(method.clone(), &url).header("X-Vault-Token", &header);
            if let Some(namespace) = &self.config.namespace {
                request = request.header("X-Vault-Namespace", namespace);
            }
            if let Some(asked) = asked {
                request = request.json(asked);
            }
            let response = request.send().await.map_err(|error| ServiceError::unsent(&error))?;
            let (status, bytes) = body(response).await?;
            if status.is_success() {
                let answer: Answer<T> = serde_json::from_slice(&bytes)
                    .map_err(|_| ServiceError::new(Kind::Other, "the answer is not one of a transit engine"))?;
                return Ok(answer.data);
            }
            let refusal: Refusal = serde_json::from_slice(&bytes).unwrap_or_default();
            let errors = match (status.as_u16(), refusal.errors.is_empty()) {
                (404, true) => "no such key".to_owned(),
                (301 | 302 | 307 | 308, _) => "it sends us elsewhere: give the address of the active server".to_owned(),
                _ => refusal.errors.join("; "),
            };
            Err(ServiceError::status(status.as_u16(), &errors))
        };
        self.service.again(sent).map_err(|error| error.without(token))
    }
}

impl Signer for TransitSigner {
    fn sign_statement(&self, statement: &[u8]) -> Result<String, SignError> {
        Statement::parse(statement)?;
        let pae = dsse::pae(PAYLOAD_TYPE, statement);
        let signed = || {
            let (version, signature) = self.sign_digest(&crate::sha256::of(&pae).0)?;
            Ok((self.version(version)?, signature))
        };
        let (public, signature) = signed().map_err(|error: ServiceError| error.at(&self.asked("sign with")))?;
        if !public.verifies(&pae, &signature) {
            return Err(SignError::Signer(format!("{}: what came back is not its signature", self.asked("sign with"))));
        }
        bundle(statement, &signature, public.hint())
    }

    fn public_key(&self) -> Option<PublicKey> {
        self.versions().known.values().next_back().cloned()
    }

    fn describe(&self) -> String {
        let versions = self.versions();
        let newest = versions.known.last_key_value();
        let newest = newest.map_or_else(String::new, |(version, public)| format!(", version {version}, hint {}", public.hint()));
        format!("transit key {} at {}{newest}", self.config.key, self.address)
    }
}

impl fmt::Debug for TransitSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransitSigner").field("address", &self.address).field("key", &self.config.key).finish_non_exhaustive()
    }
}
