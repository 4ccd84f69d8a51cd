//! Packs: objects of many frames (format 3).

use super::{FormatError, Id, Suite};

/// First bytes of a pack.
pub const MAGIC: &[u8; 8] = b"LBPACK1\n";

/// Bytes before the first frame.
pub const HEADER_BYTES: usize = 32;

/// Bytes that sealing adds to a frame's plain form: the tag.
pub const TAG_BYTES: usize = 16;

/// The most a pack may hold, so that a reader can bound what it reads.
pub const MAX_BYTES: u64 = 64 << 20;

/// The most a sealed frame may take: codec, an extent that did not shrink, tag.
pub const MAX_FRAME_BYTES: u64 = 1 + super::extent::EXTENT_BYTES + TAG_BYTES as u64;

/// The body is the bytes themselves.
pub const CODEC_RAW: u8 = 0;

/// The body is one zstd frame.
pub const CODEC_ZSTD: u8 = 1;

/// The header of a pack.
pub fn encode_header(id: Id, suite: Suite) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..24].copy_from_slice(&id.0);
    header[24] = suite.code();
    header
}

/// Id and suite from the first bytes of a pack.
pub fn decode_header(bytes: &[u8]) -> Result<(Id, Suite), FormatError> {
    let bad = |problem: &str| FormatError::malformed("pack", problem);
    let header: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or_else(|| bad("shorter than its header"))?;
    let (magic, rest) = header.split_at(8);
    if magic != MAGIC {
        return Err(bad("does not begin with the magic of a pack"));
    }
    let (id, rest) = rest.split_at(16);
    if rest[1..].iter().any(|b| *b != 0) {
        return Err(bad("reserved bytes are not zero"));
    }
    Ok((Id(id.try_into().expect("split at 16")), Suite::from_code(rest[0])?))
}

/// What the key of a pack is derived with (HKDF info).
pub fn key_info(id: Id) -> Vec<u8> {
    format!("lifeboat/v1/pack/{id}").into_bytes()
}

/// Nonce of the frame at `offset`.
pub fn nonce(offset: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&offset.to_le_bytes());
    nonce
}

/// Associated data of the frame at `offset`.
pub fn associated_data(id: Id, offset: u64) -> [u8; 24] {
    let mut data = [0; 24];
    data[..16].copy_from_slice(&id.0);
    data[16..].copy_from_slice(&offset.to_le_bytes());
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_round_trips_and_every_flip_in_it_is_noticed_or_changes_the_id() {
        let header = encode_header(Id([3; 16]), Suite::Aes256Gcm);
        assert_eq!(decode_header(&header), Ok((Id([3; 16]), Suite::Aes256Gcm)));
        for byte in 0..HEADER_BYTES {
            let mut damaged = header;
            damaged[byte] ^= 0x40;
            assert_ne!(decode_header(&damaged), decode_header(&header), "byte {byte}");
        }
        assert!(decode_header(&header[..31]).is_err());
    }
}
