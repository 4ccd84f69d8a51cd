//! Looking at one copy of an object, byte for byte and without any key to open it: what its name, its trailer or its signature proves.

use aws_lc_rs::digest;
use lifeboat_core::attestation::Expected;
use lifeboat_core::replicate::{Look, Proof, Stage, proof};
use lifeboat_core::repository::artifact::{Head, Record};
use lifeboat_core::repository::layout::{self, Key};
use lifeboat_core::repository::manifest::Manifest;
use lifeboat_core::repository::sealed::{self, TRAILER_BYTES};
use lifeboat_core::wal::file::WAL_PREDICATE_TYPE;

use crate::repository::{MAX_DOCUMENT_BYTES, MAX_MANIFEST_BYTES};
use crate::sha256;
use crate::signing::Trust;
use crate::store::stream::StoreReader;
use crate::store::{Store, StoreError};

/// Who takes the bytes while they are looked at.
pub(super) type Sink<'s> = &'s mut dyn FnMut(&[u8]) -> Result<(), StoreError>;

/// Reads an object and says what it is. With `trust` signatures count as well. The bytes are good only if it comes out sound.
///
/// # Errors
///
/// The store failed, or the sink: then nobody knows.
pub(super) fn examine(store: &dyn Store, key: &Key, trust: Option<&Trust>, sink: Sink<'_>) -> Result<Look, StoreError> {
    match read(store, key, trust, sink) {
        Ok(look) => Ok(look),
        Err(StoreError::NotFound { .. }) => Ok(Look::Absent),
        Err(error @ StoreError::Short { .. }) => Ok(Look::Damaged(error.to_string())),
        Err(error) => Err(error),
    }
}

fn read(store: &dyn Store, key: &Key, trust: Option<&Trust>, sink: Sink<'_>) -> Result<Look, StoreError> {
    let mut reader = StoreReader::open(store, key)?;
    let how = proof(key);
    let stage = Stage::of(key);
    let parsed = matches!(stage, Some(Stage::Record | Stage::Head | Stage::Audit | Stage::Checkpoint | Stage::Bundle | Stage::Manifest));
    let most = if stage == Some(Stage::Manifest) { MAX_MANIFEST_BYTES } else { MAX_DOCUMENT_BYTES };
    if parsed && reader.length > most {
        return Ok(Look::Damaged(format!("{} bytes, more than {most}", reader.length)));
    }
    let end = reader.length.saturating_sub(TRAILER_BYTES as u64);
    let mut context = digest::Context::new(&digest::SHA256);
    let (mut hasher, mut trailer, mut header) = (blake3::Hasher::new(), Vec::with_capacity(TRAILER_BYTES), None);
    let (mut document, mut at) = (Vec::new(), 0u64);
    while let Some(part) = reader.next_range()? {
        context.update(part);
        if how == Proof::Sealed {
            if header.is_none() {
                match sealed::decode_start(part, key.as_str()) {
                    Ok(parts) => header = Some(parts.header),
                    Err(error) => return Ok(Look::Damaged(error.to_string())),
                }
            }
            let content = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX).min(part.len());
            hasher.update(&part[..content]);
            trailer.extend_from_slice(&part[content..]);
        }
        if parsed {
            document.extend_from_slice(part);
        }
        at += part.len() as u64;
        sink(part)?;
    }
    let content = sha256::finish(context);
    let sound = Ok(Look::Sound { content });
    let judged = match how {
        Proof::Named(name) if name == content => sound,
        Proof::Named(_) => Err("the digest is another than its name".to_owned()),
        Proof::Sealed => match header {
            Some(header) if trailer == hasher.finalize().as_bytes() => {
                sealed_content(key, &header, trust).map_or(sound, |named| named.map(|content| Look::Sound { content }))
            }
            _ => Err("the trailer is another".to_owned()),
        },
        Proof::Document => check_document(store, key, &document, trust)?.map_or(sound, Err),
    };
    Ok(judged.unwrap_or_else(Look::Damaged))
}

/// What makes two sealed objects of one key the same, where it is not all of their bytes: each of them has a key of its own.
fn sealed_content(key: &Key, header: &sealed::Header, trust: Option<&Trust>) -> Option<Result<lifeboat_core::repository::Sha256, String>> {
    if key.as_str().starts_with("artifacts/blobs/") {
        let name = key.as_str().rsplit('/').next().unwrap_or_default();
        return Some(name.parse().map_err(|error: lifeboat_core::repository::FormatError| error.to_string()));
    }
    let (subject, trust) = (key.as_str().strip_prefix("wal/")?, trust?);
    let Some(bundle) = &header.bundle else { return Some(Err("it has no signature".to_owned())) };
    let bundle = serde_json::to_vec(bundle).expect("what was read as JSON is written as JSON");
    let claimed = trust.claim(&bundle, WAL_PREDICATE_TYPE, subject);
    Some(claimed.map(|(_, digest)| lifeboat_core::repository::Sha256(digest)).map_err(|error| crate::causes::joined(&error)))
}

/// What is wrong with a document, if anything.
fn check_document(store: &dyn Store, key: &Key, bytes: &[u8], trust: Option<&Trust>) -> Result<Option<String>, StoreError> {
    let signed = |bundle: &[u8], expected: &Expected<'_>| match trust {
        Some(trust) => trust.verify(bundle, expected).err().map(|error| crate::causes::joined(&error)),
        None => None,
    };
    Ok(match Stage::of(key) {
        Some(Stage::Manifest) => {
            let Some(id) = layout::backup_of_manifest(key) else { return Ok(None) };
            match Manifest::decode(bytes) {
                Err(error) => Some(error.to_string()),
                Ok(manifest) if manifest.id != id => Some(format!("it is the manifest of {}", manifest.id)),
                Ok(_) => match store.get(&layout::manifest_bundle(&id), MAX_DOCUMENT_BYTES) {
                    Ok(bundle) => signed(&bundle, &Expected::backup(&id.to_string(), sha256::of(bytes).0)),
                    Err(StoreError::NotFound { .. }) => Some("its signature is not there".to_owned()),
                    Err(error) => return Err(error),
                },
            }
        }
        Some(Stage::Bundle) => {
            let id = key.as_str().split('/').next().and_then(|id| id.parse().ok());
            let Some(id) = id else { return Ok(None) };
            match store.get(&layout::manifest(&id), MAX_MANIFEST_BYTES) {
                // Which of both is damaged cannot be told: they are healed together.
                Ok(manifest) => signed(bytes, &Expected::backup(&id.to_string(), sha256::of(&manifest).0)),
                Err(StoreError::NotFound { .. }) => serde_json::from_slice::<serde_json::Value>(bytes).err().map(|error| error.to_string()),
                Err(error) => return Err(error),
            }
        }
        // Whose signatures count in the log is not known here; `audit verify` knows.
        Some(Stage::Audit | Stage::Checkpoint) => crate::audit::misshapen(key, bytes),
        Some(Stage::Head) => match Head::decode(bytes) {
            Ok(head) if layout::number_of(key) == Some(head.head) => None,
            Ok(head) => Some(format!("it says that it is head {}", head.head)),
            Err(error) => Some(error.to_string()),
        },
        Some(Stage::Record) => match Record::decode(bytes) {
            Ok(record) if layout::artifact_record(&record.name, &record.version) == *key => {
                let bundle = serde_json::to_vec(&record.bundle).expect("what was read as JSON is written as JSON");
                signed(&bundle, &Expected::artifact(record.name.as_str(), &record.version, record.sha256.0))
            }
            Ok(record) => Some(format!("it is the record of {} {}", record.name, record.version)),
            Err(error) => Some(error.to_string()),
        },
        _ => None,
    })
}
