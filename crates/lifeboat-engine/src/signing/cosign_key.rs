//! Signing keys in the file format of cosign (`cosign.key`, `cosign.pub`), ECDSA P-256 only.
//!
//! The private file is PEM around JSON: scrypt derives a key from the password, NaCl's secretbox
//! seals a PKCS#8 document with it. Facts: `go-securesystemslib`, package `encrypted` (the JSON,
//! and the three scrypt settings it accepts); cosign, `pkg/cosign/keys.go` (the PEM types).
//!
//! Secrets are wiped when dropped and have no `Debug`. Nothing here reads or writes files, so
//! that passwords and paths stay with the caller.
//!
//! Only P-256: it is what cosign generates, and what every Sigstore verifier takes. Ed25519 over a
//! DSSE envelope is refused by parts of Sigstore (no prehash), so we do not offer it.

use std::fmt;

use aws_lc_rs::error::KeyRejected;
use aws_lc_rs::rand;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _, ParsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use crypto_secretbox::aead::{Aead as _, KeyInit as _};
use crypto_secretbox::{Key, Nonce, XSalsa20Poly1305};
use pem::{EncodeConfig, LineEnding, Pem};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Bytes that a key file may have. A real one has about 650.
pub const MAX_KEY_FILE_BYTES: usize = 64 << 10;

const TAG_SEALED: &str = "ENCRYPTED SIGSTORE PRIVATE KEY";
/// What cosign wrote before 2.0.
const TAG_SEALED_OLD: &str = "ENCRYPTED COSIGN PRIVATE KEY";
const TAG_PKCS8: &str = "PRIVATE KEY";
const TAG_SEC1: &str = "EC PRIVATE KEY";
const TAG_PUBLIC: &str = "PUBLIC KEY";

const KDF: &str = "scrypt";
const CIPHER: &str = "nacl/secretbox";

/// The scrypt settings that go-securesystemslib, and so cosign, accepts: "legacy", "standard" and
/// "OWASP". Taking these only also bounds what a hostile file can cost: 128 MiB, half a second.
const SCRYPT_N: [u64; 3] = [1 << 15, SCRYPT_N_WRITTEN, 1 << 17];
const SCRYPT_N_WRITTEN: u64 = 1 << 16;
const SCRYPT_R: u32 = 8;
const SCRYPT_P: u32 = 1;

/// DER of a SubjectPublicKeyInfo up to the point: id-ecPublicKey, prime256v1, 66 bits-string bytes
/// of which the first says "no unused bits" (RFC 5480). The uncompressed point follows.
const SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01,
    0x07, 0x03, 0x42, 0x00,
];
const POINT_BYTES: usize = 65;

/// A key file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The password does not open it (or its ciphertext is damaged: secretbox cannot tell).
    #[error("open signing key: wrong password")]
    WrongPassword,
    /// It is not a key file, or a damaged one.
    #[error("read key: {0}")]
    Malformed(String),
    /// It is a key file, of a kind that lifeboat does not use.
    #[error("use key: {0}")]
    Unsupported(String),
    /// The system's random source, or the cryptographic library, failed.
    #[error("generate or seal key: the cryptographic library failed")]
    Crypto,
}

/// A private key, ECDSA P-256, and its public key.
pub struct SigningKey {
    pair: EcdsaKeyPair,
    public: PublicKey,
}

impl SigningKey {
    /// A fresh key.
    pub fn generate() -> Result<Self, KeyError> {
        Self::from_pair(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(|_| KeyError::Crypto)?)
    }

    /// Open an encrypted key file, given its contents. An empty password is a password.
    ///
    /// A file whose key is not encrypted is [`KeyError::Unsupported`]: see [`SigningKey::import`].
    pub fn open(pem: &str, password: &[u8]) -> Result<Self, KeyError> {
        let pem = parse_pem(pem)?;
        match pem.tag() {
            TAG_SEALED | TAG_SEALED_OLD => Self::from_der(&unseal(pem.contents(), password)?),
            TAG_PKCS8 | TAG_SEC1 => Err(KeyError::Unsupported("it is not encrypted; import it first".to_owned())),
            other => Err(unsupported_pem(other)),
        }
    }

    /// Take over a key that is not encrypted: PKCS#8 (`PRIVATE KEY`) or SEC 1 (`EC PRIVATE KEY`)
    /// in PEM, as openssl writes them. To be sealed and stored by the caller.
    pub fn import(pem: &str) -> Result<Self, KeyError> {
        let pem = parse_pem(pem)?;
        match pem.tag() {
            TAG_PKCS8 | TAG_SEC1 => Self::from_der(&Zeroizing::new(pem.into_contents())),
            other => Err(unsupported_pem(other)),
        }
    }

    /// The contents of an encrypted key file (`cosign.key`) that `password` opens.
    pub fn seal(&self, password: &[u8]) -> Result<String, KeyError> {
        let pkcs8 = self.pair.to_pkcs8v1().map_err(|_| KeyError::Crypto)?;
        let (mut salt, mut nonce) = ([0; 32], [0; 24]);
        rand::fill(&mut salt).and_then(|()| rand::fill(&mut nonce)).map_err(|_| KeyError::Crypto)?;
        seal(pkcs8.as_ref(), password, &salt, &nonce)
    }

    /// The key that verifies what this one signs.
    pub fn public_key(&self) -> &PublicKey {
        &self.public
    }

    pub(super) fn pair(&self) -> &EcdsaKeyPair {
        &self.pair
    }

    fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        let rejected = |error: KeyRejected| match error.description_() {
            "WrongAlgorithm" => KeyError::Unsupported("not an ECDSA P-256 key".to_owned()),
            reason => KeyError::Malformed(format!("private key rejected: {reason}")),
        };
        let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
        // PKCS#8, or else SEC 1. Of the two errors the first tells more: SEC 1 names no algorithm.
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, der)
            .or_else(|error| EcdsaKeyPair::from_private_key_der(algorithm, der).map_err(|_| error))
            .map_err(rejected)?;
        Self::from_pair(pair)
    }

    fn from_pair(pair: EcdsaKeyPair) -> Result<Self, KeyError> {
        let public = PublicKey::from_point(pair.public_key().as_ref())?;
        Ok(Self { pair, public })
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("hint", &self.public.hint).finish_non_exhaustive()
    }
}

/// A public key, ECDSA P-256, parsed once and ready to verify.
#[derive(Clone)]
pub struct PublicKey {
    parsed: ParsedPublicKey,
    spki: [u8; SPKI_PREFIX.len() + POINT_BYTES],
    hint: String,
}

impl PublicKey {
    /// The key in the contents of a `cosign.pub` (PEM `PUBLIC KEY`: SubjectPublicKeyInfo).
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let pem = parse_pem(pem)?;
        match pem.tag() {
            TAG_PUBLIC => Self::from_spki(pem.contents()),
            TAG_SEALED | TAG_SEALED_OLD | TAG_PKCS8 | TAG_SEC1 => {
                Err(KeyError::Unsupported("a private key where a public key is expected".to_owned()))
            }
            other => Err(unsupported_pem(other)),
        }
    }

    /// The contents of a `cosign.pub`.
    pub fn to_pem(&self) -> String {
        encode_pem(TAG_PUBLIC, self.spki.to_vec())
    }

    /// Base64 of the SHA-256 of the SubjectPublicKeyInfo in DER: how bundles name their key. What
    /// cosign writes; verifiers may use it to look a trusted key up, and for nothing else.
    pub fn hint(&self) -> &str {
        &self.hint
    }

    /// Whether `signature` (DER) is this key's over the SHA-256 of `message`.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.parsed.verify_sig(message, signature).is_ok()
    }

    /// The key in a SubjectPublicKeyInfo, DER. Only the one encoding that cosign and openssl write, so that a key has one hint.
    pub fn from_spki(der: &[u8]) -> Result<Self, KeyError> {
        match der.strip_prefix(&SPKI_PREFIX) {
            Some(point) => Self::from_point(point),
            None => Err(KeyError::Unsupported("not an ECDSA P-256 public key (uncompressed, named curve)".to_owned())),
        }
    }

    fn from_point(point: &[u8]) -> Result<Self, KeyError> {
        let off_curve = || KeyError::Malformed("public key is not a point of P-256".to_owned());
        let point: &[u8; POINT_BYTES] = point.try_into().map_err(|_| off_curve())?;
        let parsed = ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point).map_err(|_| off_curve())?;
        let mut spki = [0; SPKI_PREFIX.len() + POINT_BYTES];
        spki[..SPKI_PREFIX.len()].copy_from_slice(&SPKI_PREFIX);
        spki[SPKI_PREFIX.len()..].copy_from_slice(point);
        let hint = BASE64.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &spki));
        Ok(Self { parsed, spki, hint })
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.spki == other.spki
    }
}

impl Eq for PublicKey {}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PublicKey").field(&self.hint).finish()
    }
}

/// The JSON inside the PEM, in the order in which Go writes it.
#[derive(Serialize, Deserialize)]
struct Sealed {
    kdf: SealedKdf,
    cipher: SealedCipher,
    ciphertext: String,
}

#[derive(Serialize, Deserialize)]
struct SealedKdf {
    name: String,
    params: ScryptParams,
    salt: String,
}

#[derive(Serialize, Deserialize)]
struct ScryptParams {
    #[serde(rename = "N")]
    n: u64,
    r: u32,
    p: u32,
}

#[derive(Serialize, Deserialize)]
struct SealedCipher {
    name: String,
    nonce: String,
}

fn seal(pkcs8: &[u8], password: &[u8], salt: &[u8; 32], nonce: &[u8; 24]) -> Result<String, KeyError> {
    let params = ScryptParams { n: SCRYPT_N_WRITTEN, r: SCRYPT_R, p: SCRYPT_P };
    let secretbox = secretbox(password, salt, &params)?;
    let ciphertext = secretbox.encrypt(Nonce::from_slice(nonce), pkcs8).map_err(|_| KeyError::Crypto)?;
    let sealed = Sealed {
        kdf: SealedKdf { name: KDF.to_owned(), params, salt: BASE64.encode(salt) },
        cipher: SealedCipher { name: CIPHER.to_owned(), nonce: BASE64.encode(nonce) },
        ciphertext: BASE64.encode(ciphertext),
    };
    Ok(encode_pem(TAG_SEALED, serde_json::to_vec(&sealed).expect("text and numbers are JSON")))
}

fn unseal(json: &[u8], password: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let sealed: Sealed = serde_json::from_slice(json).map_err(|error| KeyError::Malformed(format!("encrypted key: {error}")))?;
    if sealed.kdf.name != KDF || sealed.cipher.name != CIPHER {
        return Err(KeyError::Unsupported(format!("encryption by other means than {KDF} and {CIPHER}")));
    }
    let salt = base64_field("salt", &sealed.kdf.salt)?;
    let nonce: [u8; 24] = base64_field("nonce", &sealed.cipher.nonce)?
        .try_into()
        .map_err(|_| KeyError::Malformed("encrypted key: the nonce has not 24 bytes".to_owned()))?;
    let ciphertext = base64_field("ciphertext", &sealed.ciphertext)?;
    if ciphertext.len() < XSalsa20Poly1305::TAG_SIZE {
        return Err(KeyError::Malformed("encrypted key: the ciphertext is cut short".to_owned()));
    }
    let secretbox = secretbox(password, &salt, &sealed.kdf.params)?;
    let pkcs8 = secretbox.decrypt(Nonce::from_slice(&nonce), ciphertext.as_slice()).map_err(|_| KeyError::WrongPassword)?;
    Ok(Zeroizing::new(pkcs8))
}

fn secretbox(password: &[u8], salt: &[u8], params: &ScryptParams) -> Result<XSalsa20Poly1305, KeyError> {
    let &ScryptParams { n, r, p } = params;
    if !SCRYPT_N.contains(&n) || r != SCRYPT_R || p != SCRYPT_P {
        return Err(KeyError::Unsupported(format!("scrypt parameters N={n} r={r} p={p}, which cosign does not accept either")));
    }
    let log_n = u8::try_from(n.trailing_zeros()).expect("a u64 has at most 64 zeros");
    let params = scrypt::Params::new(log_n, r, p, 32).expect("these parameters are within scrypt's bounds");
    let mut key = Zeroizing::new([0; 32]);
    scrypt::scrypt(password, salt, &params, key.as_mut()).expect("32 bytes are within scrypt's bounds");
    Ok(XSalsa20Poly1305::new(Key::from_slice(key.as_ref())))
}

fn base64_field(name: &str, text: &str) -> Result<Vec<u8>, KeyError> {
    BASE64.decode(text).map_err(|_| KeyError::Malformed(format!("encrypted key: the {name} is not base64")))
}

/// Exactly one PEM block: of several, readers would not agree which one counts.
fn parse_pem(text: &str) -> Result<Pem, KeyError> {
    if text.len() > MAX_KEY_FILE_BYTES {
        return Err(KeyError::Malformed(format!("{} bytes, the limit is {MAX_KEY_FILE_BYTES}", text.len())));
    }
    let mut blocks = pem::parse_many(text).map_err(|error| KeyError::Malformed(format!("not PEM: {error}")))?;
    match (blocks.pop(), blocks.len()) {
        (Some(block), 0) => Ok(block),
        (None, _) => Err(KeyError::Malformed("not PEM: no block in it".to_owned())),
        (Some(_), more) => Err(KeyError::Malformed(format!("{} PEM blocks, expected one", more + 1))),
    }
}

fn encode_pem(tag: &str, contents: Vec<u8>) -> String {
    pem::encode_config(&Pem::new(tag, contents), EncodeConfig::new().set_line_ending(LineEnding::LF))
}

fn unsupported_pem(tag: &str) -> KeyError {
    KeyError::Unsupported(format!("PEM block {:?}", tag.chars().take(60).collect::<String>()))
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::{AsDer as _, EcPrivateKeyRfc5915Der};

    use super::*;

    fn reseal(change: impl Fn(&mut serde_json::Value)) -> String {
        let sealed = parse_pem(GOLDEN_KEY).unwrap();
        let mut json = serde_json::from_slice(sealed.contents()).unwrap();
        change(&mut json);
        encode_pem(TAG_SEALED, serde_json::to_vec(&json).unwrap())
    }

    const GOLDEN_KEY: &str = include_str!("testdata/golden.key");
    const GOLDEN_PUB: &str = include_str!("testdata/golden.pub");
    const GOLDEN_PASSWORD: &[u8] = b"correct horse battery staple";

    #[test]
    fn the_golden_key_opens_and_seals_to_the_same_bytes() {
        let key = SigningKey::open(GOLDEN_KEY, GOLDEN_PASSWORD).unwrap();
        assert_eq!(key.public_key(), &PublicKey::from_pem(GOLDEN_PUB).unwrap());
        assert_eq!(key.public_key().to_pem(), GOLDEN_PUB);

        let sealed: Sealed = serde_json::from_slice(parse_pem(GOLDEN_KEY).unwrap().contents()).unwrap();
        let salt = BASE64.decode(sealed.kdf.salt).unwrap().try_into().unwrap();
        let nonce = BASE64.decode(sealed.cipher.nonce).unwrap().try_into().unwrap();
        assert_eq!(seal(key.pair.to_pkcs8v1().unwrap().as_ref(), GOLDEN_PASSWORD, &salt, &nonce).unwrap(), GOLDEN_KEY);
    }

    #[test]
    fn a_wrong_password_is_told_from_a_bad_file() {
        assert_eq!(SigningKey::open(GOLDEN_KEY, b"").unwrap_err(), KeyError::WrongPassword);
        for (what, bad) in [
            ("empty", String::new()),
            ("not PEM", "hello".to_owned()),
            ("not JSON", encode_pem(TAG_SEALED, b"hello".to_vec())),
            ("nonce", reseal(|json| json["cipher"]["nonce"] = "AAAA".into())),
            ("base64", reseal(|json| json["ciphertext"] = "?".into())),
            ("short ciphertext", reseal(|json| json["ciphertext"] = "AAAA".into())),
            ("negative N", reseal(|json| json["kdf"]["params"]["N"] = (-1).into())),
            ("two blocks", GOLDEN_KEY.repeat(2)),
            ("too long", format!("{}{GOLDEN_KEY}", " ".repeat(MAX_KEY_FILE_BYTES))),
        ] {
            let error = SigningKey::open(&bad, GOLDEN_PASSWORD).unwrap_err();
            assert!(matches!(error, KeyError::Malformed(_)), "{what}: {error:?}");
        }
    }

    #[test]
    fn what_a_hostile_file_may_cost_is_bounded() {
        for (n, r, p) in
            [(1u64 << 40, 8, 1), (1 << 16, 1 << 20, 1), (1 << 16, 8, 1000), (0, 8, 1), (1 << 16, 0, 1), (65_537, 8, 1), (u64::MAX, 8, 1)]
        {
            let bad = reseal(|json| json["kdf"]["params"] = serde_json::json!({"N": n, "r": r, "p": p}));
            assert!(matches!(SigningKey::open(&bad, GOLDEN_PASSWORD), Err(KeyError::Unsupported(_))), "{n} {r} {p}");
        }
        let bad = reseal(|json| json["kdf"]["name"] = "argon2".into());
        assert!(matches!(SigningKey::open(&bad, GOLDEN_PASSWORD), Err(KeyError::Unsupported(_))));
    }

    #[test]
    fn the_old_pem_type_of_cosign_is_read() {
        let old = GOLDEN_KEY.replace(TAG_SEALED, TAG_SEALED_OLD);
        assert_eq!(SigningKey::open(&old, GOLDEN_PASSWORD).unwrap().public_key().to_pem(), GOLDEN_PUB);
        // An editor's line endings do not matter.
        let crlf = GOLDEN_KEY.replace('\n', "\r\n");
        assert!(SigningKey::open(&crlf, GOLDEN_PASSWORD).is_ok());
    }

    #[test]
    fn plain_keys_are_imported_and_only_imported() {
        let key = SigningKey::generate().unwrap();
        let pkcs8 = encode_pem(TAG_PKCS8, key.pair.to_pkcs8v1().unwrap().as_ref().to_vec());
        assert_eq!(SigningKey::import(&pkcs8).unwrap().public_key(), key.public_key());
        assert!(matches!(SigningKey::open(&pkcs8, b""), Err(KeyError::Unsupported(_))));

        let sec1: EcPrivateKeyRfc5915Der<'_> = key.pair.private_key().as_der().unwrap();
        let sec1 = encode_pem(TAG_SEC1, sec1.as_ref().to_vec());
        assert_eq!(SigningKey::import(&sec1).unwrap().public_key(), key.public_key());
        assert!(matches!(SigningKey::import(GOLDEN_KEY), Err(KeyError::Unsupported(_))));
        assert!(matches!(SigningKey::import(GOLDEN_PUB), Err(KeyError::Unsupported(_))));
        assert!(matches!(PublicKey::from_pem(&pkcs8), Err(KeyError::Unsupported(_))));
        let broken = encode_pem(TAG_PKCS8, vec![0x30, 0x03, 1, 2, 3]);
        assert!(matches!(SigningKey::import(&broken), Err(KeyError::Malformed(_))));
    }

    #[test]
    fn other_kinds_of_key_are_unsupported_not_malformed() {
        use aws_lc_rs::signature::{ECDSA_P384_SHA384_ASN1_SIGNING, Ed25519KeyPair};
        let p384 = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_ASN1_SIGNING).unwrap().to_pkcs8v1().unwrap();
        let ed25519 = Ed25519KeyPair::generate().unwrap().to_pkcs8v1().unwrap();
        let rsa = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
        let rsa: aws_lc_rs::encoding::Pkcs8V1Der<'_> = rsa.as_der().unwrap();
        for der in [p384.as_ref(), ed25519.as_ref(), rsa.as_ref()] {
            let error = SigningKey::import(&encode_pem(TAG_PKCS8, der.to_vec())).unwrap_err();
            assert!(matches!(error, KeyError::Unsupported(_)), "{error:?}");
        }
        let mut spki = parse_pem(GOLDEN_PUB).unwrap().into_contents();
        spki[22] ^= 1; // the curve
        assert!(matches!(PublicKey::from_pem(&encode_pem(TAG_PUBLIC, spki.clone())), Err(KeyError::Unsupported(_))));
        spki[22] ^= 1;
        spki[90] ^= 1; // y
        assert!(matches!(PublicKey::from_pem(&encode_pem(TAG_PUBLIC, spki.clone())), Err(KeyError::Malformed(_))));
        spki.truncate(80);
        assert!(matches!(PublicKey::from_pem(&encode_pem(TAG_PUBLIC, spki)), Err(KeyError::Malformed(_))));
    }

    #[test]
    fn debug_shows_the_hint_and_nothing_else() {
        let key = SigningKey::generate().unwrap();
        assert_eq!(format!("{key:?}"), format!("SigningKey {{ hint: {:?}, .. }}", key.public_key().hint()));
    }
}
