//! Sealing and opening: compression, encryption and checks of frames and objects (format 3 and 4).

use std::io::{self, Read, Write};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf;
use lifeboat_core::repository::{
    FormatError, Id, Suite,
    pack::{self, TAG_BYTES},
    sealed::{self, Header},
};
use zeroize::Zeroizing;

/// Why bytes could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Not in the format.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// In the format, but not the bytes that were sealed.
    #[error("open {what}: {problem}")]
    Damaged {
        /// What was being opened.
        what: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The data key is not at hand.
    #[error("open {what}: its data key {key} is not at hand")]
    NoKey {
        /// What was being opened.
        what: &'static str,
        /// The key's id.
        key: Id,
    },
}

fn damaged(what: &'static str, problem: impl Into<String>) -> OpenError {
    OpenError::Damaged { what, problem: problem.into() }
}

/// 32 secret bytes that objects of one backup are sealed with.
#[derive(Clone)]
pub struct DataKey {
    /// Its id, which is no secret.
    pub id: Id,
    secret: Zeroizing<[u8; 32]>,
}

impl std::fmt::Debug for DataKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DataKey({})", self.id)
    }
}

impl DataKey {
    /// A fresh one.
    pub fn generate() -> Self {
        Self { id: crate::random::id(), secret: Zeroizing::new(crate::random::bytes()) }
    }

    /// One that was unwrapped.
    pub fn from_secret(id: Id, secret: Zeroizing<[u8; 32]>) -> Self {
        Self { id, secret }
    }

    /// The secret, to wrap it.
    pub(crate) fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    fn derive(&self, info: &[u8]) -> LessSafeKey {
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]);
        let info = [info];
        let secret = salt.extract(&*self.secret);
        let okm = secret.expand(&info, &AES_256_GCM).expect("32 bytes are within HKDF's limit");
        LessSafeKey::new(UnboundKey::from(okm))
    }
}

/// How the bytes of one backup are sealed: with a key, or not at all.
#[derive(Clone, Debug)]
pub enum Sealing {
    /// AES-256-GCM.
    Encrypted(DataKey),
    /// The user accepted plain backups.
    Plain,
}

impl Sealing {
    /// The suite in the format's words.
    pub fn suite(&self) -> Suite {
        match self {
            Self::Encrypted(_) => Suite::Aes256Gcm,
            Self::Plain => Suite::None,
        }
    }

    fn derive(&self, info: &[u8]) -> FrameKey {
        match self {
            Self::Encrypted(key) => FrameKey(Some(key.derive(info))),
            Self::Plain => FrameKey(None),
        }
    }

    /// What seals and opens the frames of one pack.
    pub fn pack(&self, id: Id) -> FrameKey {
        self.derive(&pack::key_info(id))
    }
}

/// Seals and opens single frames of one object.
pub struct FrameKey(Option<LessSafeKey>);

impl FrameKey {
    /// Seals `out[from..]` in place and appends the tag.
    fn seal(&self, nonce: [u8; 12], aad: &[u8], out: &mut Vec<u8>, from: usize) {
        let tag: [u8; TAG_BYTES] = match &self.0 {
            Some(key) => {
                let tag = key
                    .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut out[from..])
                    .expect("frames are far below the limit of GCM");
                tag.as_ref().try_into().expect("a GCM tag has 16 bytes")
            }
            None => plain_tag(aad, &out[from..]),
        };
        out.extend_from_slice(&tag);
    }

    /// Opens in place; the plain form is what is returned.
    fn open<'a>(&self, nonce: [u8; 12], aad: &[u8], bytes: &'a mut [u8]) -> Option<&'a [u8]> {
        match &self.0 {
            Some(key) => key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(aad), bytes).ok().map(|plain| &*plain),
            None => {
                let (plain, tag) = bytes.split_at_checked(bytes.len().checked_sub(TAG_BYTES)?)?;
                (plain_tag(aad, plain) == tag).then_some(plain)
            }
        }
    }
}

fn plain_tag(aad: &[u8], plain: &[u8]) -> [u8; TAG_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(aad).update(plain);
    *hasher.finalize().as_bytes().first_chunk().expect("BLAKE3 has 32 bytes")
}

/// The lowest level with entropy coding.
const FASTEST_LEVEL: i32 = 1;

/// At that level zstd's own choice for frames of 256 KiB is a table of 64 KiB, which the caches of two threads of one core do not hold. Half of it is
/// 10 to 15 % faster, on WAL and on tables alike, and what comes out is between 0.3 % smaller (heap pages) and 0.7 % larger (WAL).
const FASTEST_HASH_LOG: u32 = 13;

/// A zstd compressor with its memory, kept by one thread.
pub struct Compressor {
    zstd: zstd::bulk::Compressor<'static>,
    scratch: Vec<u8>,
}

impl Compressor {
    /// One for a zstd level.
    pub fn new(level: i32) -> io::Result<Self> {
        let scratch = Vec::with_capacity(zstd::zstd_safe::compress_bound(sealed::CONTENT_BYTES));
        let mut zstd = zstd::bulk::Compressor::new(level)?;
        if level == FASTEST_LEVEL {
            zstd.set_parameter(zstd::zstd_safe::CParameter::HashLog(FASTEST_HASH_LOG))?;
        }
        Ok(Self { zstd, scratch })
    }

    /// Appends `plain` to `out`: compressed, if that is shorter. Returns whether it was.
    fn append(&mut self, plain: &[u8], out: &mut Vec<u8>) -> bool {
        self.scratch.clear();
        self.scratch.reserve(zstd::zstd_safe::compress_bound(plain.len()));
        match self.zstd.compress_to_buffer(plain, &mut self.scratch) {
            Ok(length) if length < plain.len() => {
                out.extend_from_slice(&self.scratch);
                true
            }
            // Larger, or it failed: keep the bytes as they are.
            _ => {
                out.extend_from_slice(plain);
                false
            }
        }
    }
}

/// A zstd decompressor with its memory, kept by one thread.
pub struct Decompressor(zstd::bulk::Decompressor<'static>);

impl Decompressor {
    /// A new one.
    pub fn new() -> io::Result<Self> {
        zstd::bulk::Decompressor::new().map(Self)
    }

    /// Decompresses into `out`, which is replaced; at most `limit` bytes come out.
    fn run(&mut self, what: &'static str, body: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), OpenError> {
        out.clear();
        out.reserve(limit);
        let length = self.0.decompress_to_buffer(body, out).map_err(|e| damaged(what, format!("zstd: {e}")))?;
        if length > limit {
            return Err(damaged(what, format!("more than {limit} bytes came out")));
        }
        Ok(())
    }
}

/// Appends the sealed frame of `plain`, which will stand at `offset` of the pack, to `out`; returns its
/// length.
pub fn seal_frame(id: Id, key: &FrameKey, compressor: &mut Compressor, plain: &[u8], offset: u64, out: &mut Vec<u8>) -> u32 {
    let from = out.len();
    out.push(pack::CODEC_ZSTD);
    if !compressor.append(plain, out) {
        out[from] = pack::CODEC_RAW;
    }
    key.seal(pack::nonce(offset), &pack::associated_data(id, offset), out, from);
    (out.len() - from) as u32
}

/// Opens the frame that stands at `offset` of the pack `id`; `sealed` is consumed, `out` replaced by
/// the plain bytes, of which there must be `expected`.
pub fn open_frame(
    id: Id,
    key: &FrameKey,
    decompressor: &mut Decompressor,
    offset: u64,
    sealed: &mut [u8],
    expected: usize,
    out: &mut Vec<u8>,
) -> Result<(), OpenError> {
    let what = "frame";
    let plain = key
        .open(pack::nonce(offset), &pack::associated_data(id, offset), sealed)
        .ok_or_else(|| damaged(what, "the bytes are not those that were sealed"))?;
    match plain.split_first() {
        Some((&pack::CODEC_RAW, body)) => {
            out.clear();
            out.extend_from_slice(body);
        }
        Some((&pack::CODEC_ZSTD, body)) => decompressor.run(what, body, expected, out)?,
        _ => return Err(damaged(what, "unknown codec")),
    }
    if out.len() != expected {
        return Err(damaged(what, format!("{} bytes came out, not {expected}", out.len())));
    }
    Ok(())
}

/// Writes one sealed object: header, frames, trailer.
pub struct ObjectSealer<W> {
    out: W,
    key: FrameKey,
    header_hash: [u8; 32],
    index: u64,
    compressor: Compressor,
    trailer: blake3::Hasher,
    pending: Vec<u8>,
    frame: Vec<u8>,
    written: u64,
}

impl<W: Write> ObjectSealer<W> {
    /// Begins the object at key `object`. `wrapped` goes into the header where no manifest will
    /// carry the key.
    pub fn new(out: W, object: &str, sealing: &Sealing, wrapped: Option<String>, level: i32) -> io::Result<Self> {
        Self::begin(out, object, sealing, (wrapped, None), None, level)
    }

    /// The same with the marks of those whom the key was wrapped to in the header.
    pub fn marked(out: W, object: &str, sealing: &Sealing, wrapped: Option<(String, Vec<String>)>, level: i32) -> io::Result<Self> {
        Self::begin(out, object, sealing, wrapped.unzip(), None, level)
    }

    /// The same with a signature bundle over the plain bytes in the header.
    pub fn signed(
        out: W,
        object: &str,
        sealing: &Sealing,
        wrapped: Option<String>,
        bundle: Option<serde_json::Value>,
        level: i32,
    ) -> io::Result<Self> {
        Self::begin(out, object, sealing, (wrapped, None), bundle, level)
    }

    fn begin(
        mut out: W,
        object: &str,
        sealing: &Sealing,
        (wrapped, wrapped_to): (Option<String>, Option<Vec<String>>),
        bundle: Option<serde_json::Value>,
        level: i32,
    ) -> io::Result<Self> {
        let key = match sealing {
            Sealing::Encrypted(key) => Some(key.id),
            Sealing::Plain => None,
        };
        let header =
            Header { object: object.to_owned(), id: crate::random::id(), suite: sealing.suite(), key, wrapped, wrapped_to, bundle };
        let start = sealed::encode_start(&header);
        let header_hash = *blake3::hash(&start[12..]).as_bytes();
        let mut trailer = blake3::Hasher::new();
        trailer.update(&start);
        out.write_all(&start)?;
        Ok(Self {
            out,
            key: sealing.derive(&sealed::key_info(object, &header_hash)),
            header_hash,
            index: 0,
            compressor: Compressor::new(level)?,
            trailer,
            pending: Vec::with_capacity(sealed::CONTENT_BYTES),
            frame: Vec::new(),
            written: start.len() as u64,
        })
    }

    fn frame(&mut self, last: bool) -> io::Result<()> {
        self.frame.clear();
        self.frame.extend_from_slice(&[0; 5]);
        let zstd = self.compressor.append(&self.pending, &mut self.frame);
        self.frame[4] = if zstd { sealed::FLAG_ZSTD } else { 0 } | if last { sealed::FLAG_LAST } else { 0 };
        self.key.seal(sealed::nonce(self.index), &sealed::associated_data(&self.header_hash, self.index), &mut self.frame, 4);
        let length = (self.frame.len() - 4) as u32;
        self.frame[..4].copy_from_slice(&length.to_le_bytes());
        self.trailer.update(&self.frame);
        self.out.write_all(&self.frame)?;
        self.written += self.frame.len() as u64;
        self.index += 1;
        self.pending.clear();
        Ok(())
    }

    /// Writes the last frame and the trailer; returns the writer and how many bytes it got.
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        self.frame(true)?;
        self.out.write_all(self.trailer.finalize().as_bytes())?;
        Ok((self.out, self.written + sealed::TRAILER_BYTES as u64))
    }
}

impl<W: Write> Write for ObjectSealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.pending.len() == sealed::CONTENT_BYTES {
            self.frame(false)?;
        }
        let take = bytes.len().min(sealed::CONTENT_BYTES - self.pending.len());
        self.pending.extend_from_slice(&bytes[..take]);
        Ok(take)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Seals `plain` as the object at key `object`.
pub fn seal_object(object: &str, sealing: &Sealing, plain: &[u8]) -> Vec<u8> {
    let write = || -> io::Result<Vec<u8>> {
        let mut sealer = ObjectSealer::new(Vec::new(), object, sealing, None, 3)?;
        sealer.write_all(plain)?;
        Ok(sealer.finish()?.0)
    };
    write().expect("writing to memory does not fail")
}

/// Opens a sealed object that is read piece by piece. The plain bytes come out only frame by
/// verified frame; [`ObjectOpener::next`] returns `None` only after the last frame and the trailer
/// were seen and nothing follows.
pub struct ObjectOpener<R> {
    input: R,
    header: Header,
    header_hash: [u8; 32],
    key: Option<FrameKey>,
    index: u64,
    trailer: blake3::Hasher,
    decompressor: Decompressor,
    sealed: Vec<u8>,
    plain: Vec<u8>,
    done: bool,
}

const OBJECT: &str = "sealed object";

impl<R: Read> ObjectOpener<R> {
    /// Reads the header of the object that was read from key `object`.
    pub fn new(mut input: R, object: &str) -> Result<Self, OpenError> {
        let cut = |e: io::Error| damaged(OBJECT, format!("cut off in its start ({e})"));
        let mut start = vec![0; 12];
        input.read_exact(&mut start).map_err(cut)?;
        let length = sealed::decode_header_length(start.first_chunk().expect("12 bytes"))?;
        start.resize(12 + length, 0);
        input.read_exact(&mut start[12..]).map_err(cut)?;
        let parts = sealed::decode_start(&start, object)?;
        let header_hash = *blake3::hash(parts.header_bytes).as_bytes();
        let header = parts.header;
        let mut trailer = blake3::Hasher::new();
        trailer.update(&start);
        let decompressor = Decompressor::new().map_err(|e| damaged(OBJECT, e.to_string()))?;
        Ok(Self {
            input,
            header,
            header_hash,
            key: None,
            index: 0,
            trailer,
            decompressor,
            sealed: Vec::new(),
            plain: Vec::new(),
            done: false,
        })
    }

    /// The header, to find the key by.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Gives the key that the header names.
    pub fn unlock(&mut self, sealing: &Sealing) -> Result<(), OpenError> {
        let fits = match (sealing, self.header.key) {
            (Sealing::Encrypted(key), Some(id)) => key.id == id,
            (Sealing::Plain, None) => true,
            _ => false,
        };
        if !fits {
            return match self.header.key {
                Some(key) => Err(OpenError::NoKey { what: OBJECT, key }),
                None => Err(damaged(OBJECT, "it is plain where encryption was asked for")),
            };
        }
        self.key = Some(sealing.derive(&sealed::key_info(&self.header.object, &self.header_hash)));
        Ok(())
    }

    /// The next plain bytes, or `None` at the proven end.
    ///
    /// # Panics
    ///
    /// Before [`ObjectOpener::unlock`].
    #[expect(clippy::should_implement_trait, reason = "lends its buffer, which Iterator cannot")]
    pub fn next(&mut self) -> Result<Option<&[u8]>, OpenError> {
        if self.done {
            return Ok(None);
        }
        let cut = |e: io::Error| damaged(OBJECT, format!("cut off in frame ({e})"));
        let mut length = [0; 4];
        self.input.read_exact(&mut length).map_err(cut)?;
        self.trailer.update(&length);
        let length = u32::from_le_bytes(length) as usize;
        if !(1 + TAG_BYTES..=sealed::MAX_FRAME_BYTES).contains(&length) {
            return Err(damaged(OBJECT, format!("a frame of {length} bytes")));
        }
        self.sealed.resize(length, 0);
        self.input.read_exact(&mut self.sealed).map_err(cut)?;
        self.trailer.update(&self.sealed);
        let key = self.key.as_ref().expect("unlocked before it is read");
        let plain = key
            .open(sealed::nonce(self.index), &sealed::associated_data(&self.header_hash, self.index), &mut self.sealed)
            .ok_or_else(|| damaged(OBJECT, "the bytes are not those that were sealed"))?;
        let (flags, body) = plain.split_first().ok_or_else(|| damaged(OBJECT, "an empty frame"))?;
        if flags & !(sealed::FLAG_ZSTD | sealed::FLAG_LAST) != 0 {
            return Err(damaged(OBJECT, "unknown flags"));
        }
        if flags & sealed::FLAG_ZSTD != 0 {
            self.decompressor.run(OBJECT, body, sealed::CONTENT_BYTES, &mut self.plain)?;
        } else {
            self.plain.clear();
            self.plain.extend_from_slice(body);
        }
        self.index += 1;
        if flags & sealed::FLAG_LAST != 0 {
            self.done = true;
            let mut trailer = [0; sealed::TRAILER_BYTES];
            self.input.read_exact(&mut trailer).map_err(cut)?;
            if self.trailer.finalize() != trailer {
                return Err(damaged(OBJECT, "the trailer is another"));
            }
            if self.input.read(&mut [0]).map_err(cut)? != 0 {
                return Err(damaged(OBJECT, "bytes after the end"));
            }
        }
        Ok(Some(&self.plain))
    }
}

/// Opens a whole sealed object; at most `limit` plain bytes come out.
pub fn open_object(bytes: &[u8], object: &str, sealing: &Sealing, limit: usize) -> Result<Vec<u8>, OpenError> {
    let mut opener = ObjectOpener::new(bytes, object)?;
    opener.unlock(sealing)?;
    let mut plain = Vec::new();
    while let Some(part) = opener.next()? {
        if plain.len() + part.len() > limit {
            return Err(damaged(OBJECT, format!("more than {limit} bytes came out")));
        }
        plain.extend_from_slice(part);
    }
    Ok(plain)
}

/// Checks header and trailer of a sealed object without its key: finds damage, not malice.
pub fn check_object(bytes: &[u8], object: &str) -> Result<Header, OpenError> {
    let parts = sealed::decode_start(bytes, object)?;
    let end = bytes.len().checked_sub(sealed::TRAILER_BYTES).filter(|end| *end > parts.frames_at);
    let end = end.ok_or_else(|| damaged(OBJECT, "shorter than its trailer"))?;
    if blake3::hash(&bytes[..end]) != *bytes[end..].first_chunk::<32>().expect("the trailer") {
        return Err(damaged(OBJECT, "the trailer is another"));
    }
    Ok(parts.header)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealings() -> [Sealing; 2] {
        [Sealing::Encrypted(DataKey::generate()), Sealing::Plain]
    }

    #[test]
    fn frames_open_only_where_they_were_sealed() {
        for sealing in sealings() {
            let id = crate::random::id();
            let key = sealing.pack(id);
            let mut pack = pack::encode_header(id, sealing.suite()).to_vec();
            let mut compressor = Compressor::new(1).unwrap();
            let noise: Vec<u8> = crate::random::bytes::<9000>().to_vec();
            let zeros = vec![7; 20_000];
            let first = seal_frame(id, &key, &mut compressor, &noise, 32, &mut pack) as usize;
            let second = seal_frame(id, &key, &mut compressor, &zeros, (32 + first) as u64, &mut pack) as usize;
            assert_eq!(first, 1 + 9000 + TAG_BYTES, "noise is kept raw");
            assert!(second < 200, "{second}");
            let mut decompressor = Decompressor::new().unwrap();
            let mut out = Vec::new();
            let mut open = |id, offset: usize, at: usize, length: usize, expected, pack: &[u8], out: &mut Vec<u8>| {
                let mut sealed = pack[at..at + length].to_vec();
                open_frame(id, &key, &mut decompressor, offset as u64, &mut sealed, expected, out)
            };
            open(id, 32, 32, first, 9000, &pack, &mut out).unwrap();
            assert_eq!(out, noise);
            open(id, 32 + first, 32 + first, second, 20_000, &pack, &mut out).unwrap();
            assert_eq!(out, zeros);
            // Another place, another pack, another length, a flipped bit.
            assert!(open(id, 33, 32, first, 9000, &pack, &mut out).is_err());
            assert!(open(crate::random::id(), 32, 32, first, 9000, &pack, &mut out).is_err());
            assert!(open(id, 32 + first, 32 + first, second, 19_999, &pack, &mut out).is_err());
            for bit in [0, 8 * 20, 8 * second - 1] {
                let mut damaged = pack.clone();
                damaged[32 + first + bit / 8] ^= 1 << (bit % 8);
                assert!(open(id, 32 + first, 32 + first, second, 20_000, &damaged, &mut out).is_err());
            }
        }
    }

    #[test]
    fn objects_round_trip_at_every_size_around_a_frame() {
        for sealing in sealings() {
            for size in [0, 1, sealed::CONTENT_BYTES - 1, sealed::CONTENT_BYTES, sealed::CONTENT_BYTES + 1, 3 * sealed::CONTENT_BYTES] {
                let plain: Vec<u8> = (0..size).map(|i| (i / 7) as u8).collect();
                let sealed = seal_object("x/files/0", &sealing, &plain);
                assert_eq!(open_object(&sealed, "x/files/0", &sealing, size).unwrap(), plain, "{size}");
                check_object(&sealed, "x/files/0").unwrap();
                assert!(open_object(&sealed, "x/files/1", &sealing, size).is_err());
                assert!(size == 0 || open_object(&sealed, "x/files/0", &sealing, size - 1).is_err());
            }
        }
    }

    #[test]
    fn every_flip_cut_and_addition_to_an_object_is_noticed() {
        for sealing in sealings() {
            let sealed = seal_object("a", &sealing, b"the quick brown fox");
            for at in 0..sealed.len() {
                let mut flipped = sealed.clone();
                flipped[at] ^= 1;
                assert!(open_object(&flipped, "a", &sealing, 100).is_err(), "byte {at}");
                assert!(check_object(&flipped, "a").is_err(), "byte {at}");
                assert!(open_object(&sealed[..at], "a", &sealing, 100).is_err(), "{at} bytes");
                assert!(check_object(&sealed[..at], "a").is_err(), "{at} bytes");
            }
            let mut longer = sealed.clone();
            longer.push(0);
            assert!(open_object(&longer, "a", &sealing, 100).is_err());
            assert!(check_object(&longer, "a").is_err());
        }
    }

    #[test]
    fn another_key_is_told_from_damage() {
        let [mine, plain] = sealings();
        let [other, _] = sealings();
        let sealed = seal_object("a", &mine, b"x");
        assert!(matches!(open_object(&sealed, "a", &other, 10), Err(OpenError::NoKey { .. })));
        assert!(matches!(open_object(&sealed, "a", &plain, 10), Err(OpenError::NoKey { .. })));
    }
}
