//! Sealed objects: one header, a run of frames, a trailer (format 4).

use serde::{Deserialize, Serialize};

use super::{FormatError, Id, Suite, pack::TAG_BYTES};

/// First bytes of a sealed object.
pub const MAGIC: &[u8; 8] = b"LBSEAL1\n";

/// The most a header may take.
pub const MAX_HEADER_BYTES: usize = 65536;

/// Plain bytes in one frame.
pub const CONTENT_BYTES: usize = 256 * 1024;

/// The most a sealed frame may take: flag, content, tag.
pub const MAX_FRAME_BYTES: usize = 1 + CONTENT_BYTES + TAG_BYTES;

/// BLAKE3 of everything before it.
pub const TRAILER_BYTES: usize = 32;

/// Flag of a frame whose body is a zstd frame.
pub const FLAG_ZSTD: u8 = 1;

/// Flag of the last frame.
pub const FLAG_LAST: u8 = 2;

/// The header of a sealed object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The key of the object.
    pub object: String,
    /// Random, so that no two objects share a derived key.
    pub id: Id,
    /// How it is sealed.
    pub suite: Suite,
    /// The data key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Id>,
    /// The data key wrapped with age, base64, where no manifest carries it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wrapped: Option<String>,
    /// Marks of the recipients that it was wrapped to: of artifact blobs, so that a host without any identity can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wrapped_to: Option<Vec<String>>,
    /// Sigstore bundle over the plain bytes: of WAL, which no manifest names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<serde_json::Value>,
}

/// The bytes before the first frame.
pub fn encode_start(header: &Header) -> Vec<u8> {
    let json = serde_json::to_vec(header).expect("a header has text keys only");
    let mut bytes = Vec::with_capacity(12 + json.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&(json.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&json);
    bytes
}

/// A sealed object taken apart; nothing is opened yet.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The header.
    pub header: Header,
    /// The header's bytes, which the frames are bound to.
    pub header_bytes: &'a [u8],
    /// Where the first frame begins.
    pub frames_at: usize,
}

/// Length of the header that `start`, the first 12 bytes of an object, announces.
pub fn decode_header_length(start: &[u8; 12]) -> Result<usize, FormatError> {
    let (magic, length) = start.split_at(8);
    if magic != MAGIC {
        return Err(FormatError::malformed("sealed object", "does not begin with the magic of a sealed object"));
    }
    let length = u32::from_le_bytes(length.try_into().expect("4 of 12 bytes")) as usize;
    if length > MAX_HEADER_BYTES {
        return Err(FormatError::malformed("sealed object", format!("header of {length} bytes")));
    }
    Ok(length)
}

/// Takes the beginning of a sealed object apart and checks that it is the object at `key`.
pub fn decode_start<'a>(bytes: &'a [u8], key: &str) -> Result<Parts<'a>, FormatError> {
    let bad = |problem: String| FormatError::malformed("sealed object", problem);
    let start = bytes.first_chunk().ok_or_else(|| bad(format!("{} bytes, shorter than its start", bytes.len())))?;
    let length = decode_header_length(start)?;
    let header_bytes = bytes.get(12..12 + length).ok_or_else(|| bad("cut off in its header".into()))?;
    let header: Header = serde_json::from_slice(header_bytes).map_err(|e| bad(format!("header: {e}")))?;
    if header.object != key {
        return Err(bad(format!("says that it is {:?}", super::clip(&header.object))));
    }
    if header.key.is_some() != (header.suite != Suite::None) {
        return Err(bad("suite and key do not go together".into()));
    }
    Ok(Parts { header, header_bytes, frames_at: 12 + length })
}

/// What the key of an object is derived with (HKDF info).
pub fn key_info(object: &str, header_hash: &[u8; 32]) -> Vec<u8> {
    format!("lifeboat/v1/object/{object}/{}", hex::encode(header_hash)).into_bytes()
}

/// Nonce of frame `index`.
pub fn nonce(index: u64) -> [u8; 12] {
    super::pack::nonce(index)
}

/// Associated data of frame `index`.
pub fn associated_data(header_hash: &[u8; 32], index: u64) -> [u8; 40] {
    let mut data = [0; 40];
    data[..32].copy_from_slice(header_hash);
    data[32..].copy_from_slice(&index.to_le_bytes());
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_under_another_key_is_refused() {
        let header = Header {
            object: "a/files/0".into(),
            id: Id([1; 16]),
            suite: Suite::Aes256Gcm,
            key: Some(Id([2; 16])),
            wrapped: None,
            wrapped_to: None,
            bundle: None,
        };
        let bytes = encode_start(&header);
        assert_eq!(decode_start(&bytes, "a/files/0").unwrap().header, header);
        assert!(decode_start(&bytes, "b/files/0").is_err());
        for length in 0..bytes.len() {
            assert!(decode_start(&bytes[..length], "a/files/0").is_err(), "{length} bytes");
        }
        let plain = Header { suite: Suite::None, ..header };
        assert!(decode_start(&encode_start(&plain), "a/files/0").is_err(), "a key without a suite");
    }
}
