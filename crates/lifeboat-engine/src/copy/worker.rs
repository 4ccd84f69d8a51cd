//! One worker: reads pieces, checks pages, seals extents into packs of its own.

use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use lifeboat_core::postgres::page::{self, PAGE_BYTES, PageProblem};
use lifeboat_core::repository::{
    extent::{EXTENT_BYTES, Extent, full_bitmap},
    manifest::PageFinding,
};

use super::pack_writer::{FullPack, OpenPack};
use super::{Alarm, Content, CopyError, CopyFile, Job, Piece, Shared, open_source};
use crate::seal::Compressor;

/// How often a page that looks bad is read again before it counts as bad.
const PAGE_READS: u32 = 8;

/// How long to wait between those reads: a page being written is whole again far sooner.
const PAGE_PAUSE: Duration = Duration::from_millis(25);

struct Worker<'s, 'a> {
    shared: &'s Shared<'a>,
    full: Sender<FullPack<'a>>,
    compressor: Compressor,
    buffer: Vec<u8>,
    /// The pack being filled, and the boot pack being filled.
    open: [Option<OpenPack<'a>>; 2],
}

pub(super) fn work<'a>(shared: &Shared<'a>, jobs: Receiver<Job>, full: Sender<FullPack<'a>>) {
    let _alarm = Alarm(shared);
    let compressor = match Compressor::new(shared.settings.level) {
        Ok(compressor) => compressor,
        Err(error) => return shared.fail(CopyError::Compressor(error)),
    };
    let buffer = vec![0; EXTENT_BYTES as usize];
    let mut worker = Worker { shared, full, compressor, buffer, open: [None, None] };
    for job in jobs {
        let done = shared.check().and_then(|()| worker.job(job));
        *shared.outstanding.lock().expect("no panic while held") -= 1;
        shared.drained.notify_all();
        if let Err(error) = done {
            shared.fail(error);
        }
    }
    if shared.check().is_ok() {
        for open in worker.open.into_iter().flatten() {
            let sent = open.close().and_then(|full| worker.full.send(full).map_err(|_| CopyError::Stopped));
            if let Err(error) = sent {
                shared.fail(error);
            }
        }
    }
}

impl Worker<'_, '_> {
    fn job(&mut self, job: Job) -> Result<(), CopyError> {
        for piece in job.pieces {
            self.shared.check()?;
            self.piece(&piece, job.boot)?;
        }
        Ok(())
    }

    fn piece(&mut self, piece: &Piece, boot: bool) -> Result<(), CopyError> {
        let copied = match &piece.content {
            Content::Bytes(bytes) => self.bytes(piece, bytes, boot).map(Some),
            Content::Read(length) => self.read(piece, *length, boot),
        }?;
        let mut parts = piece.file.parts.lock().expect("no panic while held");
        parts.open -= 1;
        match copied {
            Some((bytes, crc, extents)) => parts.done.push((piece.first_extent, bytes, crc, extents)),
            None => parts.vanished = true,
        }
        self.shared.settle(&piece.file, &mut parts)
    }

    fn bytes(&mut self, piece: &Piece, bytes: &[u8], boot: bool) -> Result<(u64, u32, Vec<Extent>), CopyError> {
        let mut extents = Vec::with_capacity(bytes.len().div_ceil(EXTENT_BYTES as usize));
        for (number, plain) in bytes.chunks(EXTENT_BYTES as usize).enumerate() {
            self.shared.check()?;
            let mut reread = |_: u64, _: &mut [u8]| Ok(None);
            let first_page = (piece.first_extent + number as u64) * (EXTENT_BYTES / PAGE_BYTES as u64);
            check_pages(self.shared, &piece.file.file, first_page, &mut PageBytes::Fixed(plain), &mut reread)?;
            extents.push(self.extent(plain, boot)?);
            self.shared.progress.add(0, plain.len() as u64);
        }
        Ok((bytes.len() as u64, crc32c::crc32c(bytes), extents))
    }

    fn read(&mut self, piece: &Piece, length: u64, boot: bool) -> Result<Option<(u64, u32, Vec<Extent>)>, CopyError> {
        let file = &piece.file.file;
        let read_error = |source: io::Error| CopyError::Read { path: file.meta.path.clone(), source };
        let path = file.source.as_deref().expect("a file to be read has a source");
        let source = match open_source(path) {
            Ok(source) => source,
            Err(error) if error.kind() == io::ErrorKind::NotFound && file.may_vanish => return Ok(None),
            Err(error) => return Err(read_error(error)),
        };
        let start = piece.first_extent * EXTENT_BYTES;
        let _ = rustix::fs::fadvise(&source, start, std::num::NonZeroU64::new(length), rustix::fs::Advice::Sequential);
        let mut buffer = std::mem::take(&mut self.buffer);
        let (mut done, mut crc, mut extents) = (0, 0, Vec::with_capacity(length.div_ceil(EXTENT_BYTES) as usize));
        while done < length {
            self.shared.check()?;
            let wanted = (length - done).min(EXTENT_BYTES) as usize;
            self.shared.throttle.take(wanted as u64);
            let got = read_full(&source, &mut buffer[..wanted], start + done).map_err(read_error)?;
            if got == 0 {
                break;
            }
            let first_page = (start + done) / PAGE_BYTES as u64;
            let mut reread = |page: u64, into: &mut [u8]| {
                let bytes = read_full(&source, into, page * PAGE_BYTES as u64).map_err(read_error)?;
                Ok(Some(bytes))
            };
            check_pages(self.shared, file, first_page, &mut PageBytes::Live(&mut buffer[..got]), &mut reread)?;
            crc = crc32c::crc32c_append(crc, &buffer[..got]);
            let plain = std::mem::take(&mut buffer);
            let sealed = self.extent(&plain[..got], boot);
            buffer = plain;
            extents.push(sealed?);
            done += got as u64;
            self.shared.progress.add(0, got as u64);
            if got < wanted {
                break;
            }
        }
        self.buffer = buffer;
        Ok(Some((done, crc, extents)))
    }

    fn extent(&mut self, plain: &[u8], boot: bool) -> Result<Extent, CopyError> {
        if is_zero(plain) {
            return Ok(Extent::default());
        }
        let packs = &self.shared.packs;
        let slot = &mut self.open[usize::from(boot)];
        let mut open = match slot.take() {
            Some(open) => open,
            None => packs.begin(boot)?,
        };
        let fragment = open.add(&mut self.compressor, plain, full_bitmap(plain.len() as u64))?;
        if packs.is_full(&open) {
            self.full.send(open.close()?).map_err(|_| CopyError::Stopped)?;
        } else {
            *slot = Some(open);
        }
        Ok(Extent { fragments: vec![fragment] })
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    // Most extents end the search in the first words; all-zero ones run at memory speed.
    let (before, words, after) = (bytes.chunks_exact(64), 0u8, bytes.chunks_exact(64).remainder());
    let mut chunks = before;
    chunks.all(|chunk| chunk.iter().fold(words, |all, byte| all | byte) == 0) && after.iter().all(|byte| *byte == 0)
}

fn read_full(file: &std::fs::File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], at + done as u64) {
            Ok(0) => break,
            Ok(bytes) => done += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Bytes whose pages are checked: still in the file, or gone by.
enum PageBytes<'b> {
    Live(&'b mut [u8]),
    Fixed(&'b [u8]),
}

impl PageBytes<'_> {
    fn get(&self) -> &[u8] {
        match self {
            Self::Live(bytes) => bytes,
            Self::Fixed(bytes) => bytes,
        }
    }
}

type Reread<'r> = dyn FnMut(u64, &mut [u8]) -> Result<Option<usize>, CopyError> + 'r;

/// Checks the pages in `bytes`, which begin with page `first_page` of the file. A page that fails
/// is read again until it holds or stays the same: a torn read heals, damage does not (c013, c014).
/// What is read again replaces what was read before, so that the copy has the newer bytes.
fn check_pages(
    shared: &Shared<'_>,
    file: &CopyFile,
    first_page: u64,
    bytes: &mut PageBytes<'_>,
    reread: &mut Reread<'_>,
) -> Result<(), CopyError> {
    let Some(check) = file.pages else { return Ok(()) };
    let (pages, tail) = bytes.get().as_chunks::<PAGE_BYTES>();
    shared.pages.fetch_add(pages.len() as u64, Ordering::Relaxed);
    let block = |number: usize| check.first_block.wrapping_add((first_page + number as u64) as u32);
    let bad: Vec<(usize, PageProblem)> = pages
        .iter()
        .enumerate()
        .filter_map(|(number, page)| page::check(page, block(number)).err().map(|problem| (number, problem)))
        .collect();
    let finding = |number: usize, problem: PageProblem| {
        shared.finding(PageFinding { file: file.meta.path.clone(), block: first_page + number as u64, problem: problem.to_string() });
    };
    if !tail.is_empty()
        && let Err(problem) = page::check_tail(tail.len())
    {
        finding(pages.len(), problem);
    }
    for (number, mut problem) in bad {
        let mut last: [u8; PAGE_BYTES] = bytes.get().as_chunks().0[number];
        let mut healed = false;
        for _ in 0..PAGE_READS {
            if matches!(bytes, PageBytes::Fixed(_)) {
                break;
            }
            std::thread::sleep(PAGE_PAUSE);
            let mut again = [0; PAGE_BYTES];
            // Cut off meanwhile, or a stream that cannot be read twice.
            let Some(PAGE_BYTES) = reread(first_page + number as u64, &mut again)? else { break };
            match page::check(&again, block(number)) {
                Ok(()) => {
                    healed = true;
                    last = again;
                    break;
                }
                Err(_) if again == last => break,
                Err(other) => (problem, last) = (other, again),
            }
        }
        if let PageBytes::Live(live) = bytes {
            live[number * PAGE_BYTES..(number + 1) * PAGE_BYTES].copy_from_slice(&last);
        }
        let lsn = page::lsn(&last);
        match check.suspect_from {
            _ if healed => {}
            Some(from) if lsn >= from && matches!(problem, PageProblem::Checksum { .. }) => {
                let finding = PageFinding { file: file.meta.path.clone(), block: first_page + number as u64, problem: problem.to_string() };
                shared.suspect(finding, lsn);
            }
            _ => finding(number, problem),
        }
    }
    Ok(())
}
