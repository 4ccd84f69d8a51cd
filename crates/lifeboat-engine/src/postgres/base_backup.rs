//! A base backup over the replication protocol (`BASE_BACKUP`), pulled entry by entry.
//!
//! Facts: manual, "Streaming Replication Protocol". PostgreSQL 15 and later send one COPY with typed messages;
//! 13 and 14 send one COPY per tablespace and one for the manifest. Callers see no difference. This module must
//! not decide what to keep: everything the server sends is handed on, in the server's order (the tablespaces, then the
//! data directory with `backup_label` first and `global/pg_control` last, then WAL where it was asked for).

use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};

use lifeboat_core::wal::{Lsn, Timeline};

use super::backup_session::{WalHold, clean_label, slot_name};
use super::libpq::{CopyData, Notice, ResultKind};
use super::tar_stream::{self, BLOCK, Entry, EntryKind};
use super::{Connection, Dsn, Interrupter, OLDEST_SERVER_VERSION, PgError, Purpose, ReplicationFacts, Rows};

/// SQLSTATE `data_corrupted`: how the server ends a base backup in which it found wrong page checksums.
const DATA_CORRUPTED: &str = "XX001";

/// What to ask of the server.
#[derive(Debug, Clone)]
pub struct BaseBackupOptions {
    /// Shown in `backup_label` and in the server's process list; control characters become spaces.
    pub label: String,
    /// Checkpoint at once, instead of spread over `checkpoint_completion_target`.
    pub fast: bool,
    /// Put the WAL that the backup needs into its `pg_wal`.
    pub include_wal: bool,
    /// Let the server wait until the backup's WAL is archived (where it archives at all).
    pub wait_for_archive: bool,
    /// Ask for a `backup_manifest`, with CRC32C checksums.
    pub manifest: bool,
    /// Limit of the server's sending, in kB per second; PostgreSQL takes 32 to 1048576.
    pub max_rate_kb: Option<u32>,
    /// Let the server verify page checksums; it reports in notices and at the end.
    pub verify_checksums: bool,
    /// Hold the WAL since the start with a temporary replication slot, for as long as the [`BaseBackup`] lives.
    pub hold_wal: bool,
}

impl Default for BaseBackupOptions {
    fn default() -> Self {
        Self {
            label: "lifeboat".to_owned(),
            fast: true,
            include_wal: false,
            wait_for_archive: true,
            manifest: true,
            max_rate_kb: None,
            verify_checksums: true,
            hold_wal: true,
        }
    }
}

/// A tablespace as the server announces it before the copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamTablespace {
    /// Its OID.
    pub oid: u32,
    /// The directory on the server. Relative to the data directory for an in-place tablespace.
    pub location: PathBuf,
}

/// Which part of the backup follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Archive {
    /// The data directory.
    Main,
    /// A tablespace.
    Tablespace(StreamTablespace),
}

/// What [`BaseBackup::next_item`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A new archive begins. For a tablespace its link at `pg_tblspc/<oid>` follows first ([`EntryKind::Symlink`]).
    Archive(Archive),
    /// A file, directory or link; a file's bytes are read from the [`BaseBackup`] itself.
    Entry(Entry),
    /// The `backup_manifest`; its bytes are read from the [`BaseBackup`] itself.
    Manifest,
}

/// What stands when all was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishedBaseBackup {
    /// WAL is needed from here (the checkpoint's redo position).
    pub start_lsn: Lsn,
    /// Consistent once WAL up to here is replayed.
    pub stop_lsn: Lsn,
    /// The timeline of start and stop.
    pub timeline: Timeline,
    /// The tablespaces, without the data directory.
    pub tablespaces: Vec<StreamTablespace>,
    /// The server found wrong page checksums: a degraded backup. Its notices name the pages.
    pub checksum_failure: bool,
    /// Warnings of the server since the start.
    pub notices: Vec<Notice>,
}

/// Where we are in what the server sends.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Section {
    Archive(Archive),
    Manifest,
}

enum Pulled {
    /// `buffer` has unread bytes of the current section.
    Bytes,
    /// The current section is over; the next one, or `None` at the very end, waits in `pending`.
    Boundary,
}

#[derive(PartialEq, Eq)]
enum State {
    /// Between two archives, before the first, or after the last.
    Between,
    /// In an archive, at a header, after skipping `skip` bytes.
    AtHeader,
    /// In a file.
    InFile,
    /// After the zero blocks that end an archive.
    ArchiveEnded,
    InManifest,
    Finished,
}

/// A running base backup: an iterator over items, and a `Read`/`BufRead` over the bytes of the current one.
///
/// Tablespaces come first: their entries lie below `pg_tblspc` before an entry says what `pg_tblspc` is. Where they are comes as the file
/// `tablespace_map` from 16 on, as links from servers before.
pub struct BaseBackup {
    connection: Connection,
    /// PostgreSQL 15 and later: one COPY with typed messages.
    typed_messages: bool,
    facts: ReplicationFacts,
    wal_hold: WalHold,
    start_lsn: Lsn,
    timeline: Timeline,
    tablespaces: Vec<StreamTablespace>,
    /// Of a server before 15: the archives still to come, last first.
    announced: Vec<Archive>,
    /// Whether a COPY runs (before 15 there are several).
    copying: bool,
    buffer: Option<CopyData>,
    position: usize,
    pending: Option<Section>,
    state: State,
    /// Prefix of the paths in this archive.
    prefix: PathBuf,
    /// To be given before the next header.
    queued: Option<Entry>,
    /// Bytes of the current file that are still to come, then padding to drop.
    remaining: u64,
    padding: u64,
    stop: Option<(Lsn, Timeline)>,
    checksum_failure: bool,
    notices: Vec<Notice>,
}

impl BaseBackup {
    /// Connects, holds WAL where possible, and starts the backup; returns after the server's checkpoint.
    ///
    /// # Errors
    /// [`PgError::Unsupported`] for a server before 13, [`PgError::Sql`] where the role lacks REPLICATION or `max_wal_senders` is used up.
    pub fn start(dsn: &Dsn, options: &BaseBackupOptions) -> Result<Self, PgError> {
        Self::start_on(Connection::open(dsn, Purpose::Replication)?, options)
    }

    /// As [`BaseBackup::start`], on a replication connection that the caller opened (to have its interrupter before the checkpoint).
    pub fn start_on(connection: Connection, options: &BaseBackupOptions) -> Result<Self, PgError> {
        let version = connection.server_version();
        if version < OLDEST_SERVER_VERSION {
            return Err(PgError::Unsupported { reason: format!("version {version} is older than PostgreSQL 13") });
        }
        let facts = connection.identify_system()?;
        let wal_hold = if options.hold_wal { hold_wal(&connection) } else { WalHold::not_asked() };
        let (kind, start) = connection.start_command(&command(options, version))?;
        let (start_lsn, timeline) = position(kind, &start)?;
        let Some((ResultKind::Rows, header)) = connection.next_result()? else {
            return Err(PgError::protocol("no list of tablespaces"));
        };
        let archives = read_archives(&header)?;
        let tablespaces = archives
            .iter()
            .filter_map(|archive| match archive {
                Archive::Main => None,
                Archive::Tablespace(tablespace) => Some(tablespace.clone()),
            })
            .collect();
        Ok(Self {
            connection,
            typed_messages: version >= 150_000,
            facts,
            wal_hold,
            start_lsn,
            timeline,
            tablespaces,
            announced: archives.into_iter().rev().collect(),
            copying: false,
            buffer: None,
            position: 0,
            pending: None,
            state: State::Between,
            prefix: PathBuf::new(),
            queued: None,
            remaining: 0,
            padding: 0,
            stop: None,
            checksum_failure: false,
            notices: Vec::new(),
        })
    }

    /// Who the server is.
    pub fn facts(&self) -> &ReplicationFacts {
        &self.facts
    }

    /// Whether the server holds the WAL since the start for us, and if not why.
    pub fn wal_hold(&self) -> &WalHold {
        &self.wal_hold
    }

    /// WAL is needed from here.
    pub fn start_lsn(&self) -> Lsn {
        self.start_lsn
    }

    /// The timeline at the start.
    pub fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// The tablespaces, without the data directory.
    pub fn tablespaces(&self) -> &[StreamTablespace] {
        &self.tablespaces
    }

    /// A handle to wake the thread that reads here.
    pub fn interrupter(&self) -> Result<Interrupter, PgError> {
        self.connection.interrupter()
    }

    /// What the server reported since the last call; what is not taken comes with [`BaseBackup::finish`].
    pub fn take_notices(&mut self) -> Vec<Notice> {
        self.collect_notices();
        std::mem::take(&mut self.notices)
    }

    fn collect_notices(&mut self) {
        self.notices.append(&mut self.connection.take_notices());
    }

    /// Goes on to the next archive, entry or manifest, past whatever of the current one was not read. `None` at the end.
    pub fn next_item(&mut self) -> Result<Option<Item>, PgError> {
        loop {
            if let Some(entry) = self.queued.take() {
                return Ok(Some(Item::Entry(entry)));
            }
            match self.state {
                State::Finished => return Ok(None),
                State::InFile => {
                    self.skip(self.remaining)?;
                    self.end_of_file()?;
                }
                State::AtHeader => match self.read_header()? {
                    Some(entry) => return Ok(Some(Item::Entry(entry))),
                    None => self.state = State::ArchiveEnded,
                },
                State::ArchiveEnded | State::InManifest => {
                    while let Pulled::Bytes = self.pull()? {
                        self.drop_buffer();
                    }
                    self.state = State::Between;
                }
                State::Between => {
                    if let Pulled::Bytes = self.pull()? {
                        return Err(PgError::protocol("data outside of an archive"));
                    }
                    return Ok(self.enter_section());
                }
            }
        }
    }

    fn enter_section(&mut self) -> Option<Item> {
        match self.pending.take() {
            None => {
                self.state = State::Finished;
                None
            }
            Some(Section::Manifest) => {
                self.state = State::InManifest;
                Some(Item::Manifest)
            }
            Some(Section::Archive(archive)) => {
                self.state = State::AtHeader;
                self.prefix = PathBuf::new();
                if let Archive::Tablespace(tablespace) = &archive {
                    self.prefix = Path::new("pg_tblspc").join(tablespace.oid.to_string());
                    // An in-place tablespace (a developer's setting) is a directory where others have a link.
                    let in_place = !tablespace.location.is_absolute();
                    self.queued = Some(Entry {
                        path: self.prefix.clone(),
                        kind: if in_place { EntryKind::Directory } else { EntryKind::Symlink(tablespace.location.clone()) },
                        mode: if in_place { 0o700 } else { 0o777 },
                        size_bytes: 0,
                        modified_seconds: 0,
                        uid: 0,
                        gid: 0,
                    });
                }
                Some(Item::Archive(archive))
            }
        }
    }

    /// Ends the backup and tells where it stands. Reads to the end if that was not done. The connection, and with
    /// it the slot that holds WAL, lives until the value is dropped.
    ///
    /// # Errors
    /// As for reading; [`PgError::ClusterChanged`] where the timeline changed while the backup ran.
    pub fn finish(&mut self) -> Result<FinishedBaseBackup, PgError> {
        while self.next_item()?.is_some() {}
        let (stop_lsn, stop_timeline) = self.stop.ok_or_else(|| PgError::protocol("no end position"))?;
        if stop_timeline != self.timeline {
            return Err(PgError::ClusterChanged {
                reason: format!("the backup began on timeline {} and ended on {stop_timeline}", self.timeline),
            });
        }
        Ok(FinishedBaseBackup {
            start_lsn: self.start_lsn,
            stop_lsn,
            timeline: self.timeline,
            tablespaces: self.tablespaces.clone(),
            checksum_failure: self.checksum_failure,
            notices: self.take_notices(),
        })
    }

    fn available(&self) -> &[u8] {
        self.buffer.as_deref().and_then(|buffer| buffer.get(self.position..)).unwrap_or_default()
    }

    fn drop_buffer(&mut self) {
        self.buffer = None;
        self.position = 0;
    }

    /// Makes sure that there are unread bytes of the current section, or finds that it is over.
    fn pull(&mut self) -> Result<Pulled, PgError> {
        loop {
            if !self.available().is_empty() {
                return Ok(Pulled::Bytes);
            }
            if self.pending.is_some() || self.stop.is_some() {
                return Ok(Pulled::Boundary);
            }
            self.drop_buffer();
            if !self.copying {
                self.next_copy()?;
                if !self.typed_messages || !self.copying {
                    continue;
                }
            }
            match self.connection.copy_data()? {
                None => self.copying = false,
                Some(data) if self.typed_messages => self.take_message(data)?,
                Some(data) => self.buffer = Some(data),
            }
        }
    }

    /// PostgreSQL 15 and later, manual section "Streaming Replication Protocol", BASE_BACKUP.
    fn take_message(&mut self, data: CopyData) -> Result<(), PgError> {
        match data.split_first() {
            Some((b'd', _)) => {
                self.buffer = Some(data);
                self.position = 1;
            }
            // Progress, which nobody asked for.
            Some((b'p', _)) => {}
            Some((b'm', _)) => self.pending = Some(Section::Manifest),
            Some((b'n', rest)) => {
                let mut fields = rest.split(|byte| *byte == 0);
                let name = String::from_utf8_lossy(fields.next().unwrap_or_default()).into_owned();
                self.pending = Some(Section::Archive(self.archive_named(&name)?));
            }
            _ => return Err(PgError::protocol("a message of unknown type in a base backup")),
        }
        Ok(())
    }

    /// `base.tar` or `<oid>.tar`.
    fn archive_named(&self, name: &str) -> Result<Archive, PgError> {
        if name == "base.tar" {
            return Ok(Archive::Main);
        }
        let oid = name.strip_suffix(".tar").and_then(|oid| oid.parse::<u32>().ok());
        let tablespace = self.tablespaces.iter().find(|tablespace| Some(tablespace.oid) == oid);
        tablespace.cloned().map(Archive::Tablespace).ok_or_else(|| PgError::protocol(format!("the unannounced archive {name:?}")))
    }

    /// The result after a COPY: another COPY, or the end position.
    fn next_copy(&mut self) -> Result<(), PgError> {
        match self.connection.next_result()? {
            Some((ResultKind::CopyOut, _)) => {
                self.copying = true;
                if !self.typed_messages {
                    self.pending = Some(self.announced.pop().map_or(Section::Manifest, Section::Archive));
                }
                Ok(())
            }
            Some((ResultKind::Rows, rows)) => {
                self.stop = Some(position(ResultKind::Rows, &rows)?);
                self.drain()
            }
            _ => Err(PgError::protocol("no end of the base backup")),
        }
    }

    /// What comes after the end position; an error there is the server's verdict on page checksums.
    fn drain(&mut self) -> Result<(), PgError> {
        loop {
            match self.connection.next_result() {
                Ok(None) => break,
                Ok(Some(_)) => {}
                Err(PgError::Sql { sqlstate, .. }) if sqlstate == DATA_CORRUPTED => {
                    self.checksum_failure = true;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        self.collect_notices();
        Ok(())
    }

    fn skip(&mut self, mut bytes: u64) -> Result<(), PgError> {
        while bytes > 0 {
            let Pulled::Bytes = self.pull()? else { return Err(truncated()) };
            let step = bytes.min(self.available().len() as u64);
            self.position += usize::try_from(step).unwrap_or(usize::MAX);
            bytes -= step;
        }
        Ok(())
    }

    fn end_of_file(&mut self) -> Result<(), PgError> {
        self.remaining = 0;
        let padding = std::mem::take(&mut self.padding);
        self.state = State::AtHeader;
        self.skip(padding)
    }

    /// The next header, or `None` at the end of the archive (before PostgreSQL 15 without the zero blocks).
    fn read_header(&mut self) -> Result<Option<Entry>, PgError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let Pulled::Bytes = self.pull()? else {
                return if filled == 0 { Ok(None) } else { Err(truncated()) };
            };
            let available = self.available();
            let step = available.len().min(BLOCK - filled);
            block[filled..filled + step].copy_from_slice(&available[..step]);
            self.position += step;
            filled += step;
        }
        let Some(mut entry) = tar_stream::parse_header(&block)? else { return Ok(None) };
        entry.path = self.prefix.join(&entry.path);
        if entry.kind == EntryKind::File {
            self.state = State::InFile;
            self.remaining = entry.size_bytes;
            self.padding = tar_stream::padding(entry.size_bytes);
        }
        Ok(Some(entry))
    }
}

fn truncated() -> PgError {
    PgError::protocol("an archive that ends in the middle")
}

impl BufRead for BaseBackup {
    /// Bytes of the current file or manifest straight from libpq's buffer; empty at its end.
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let limit = match self.state {
            State::InFile => self.remaining,
            State::InManifest => u64::MAX,
            _ => 0,
        };
        if limit == 0 {
            return Ok(&[]);
        }
        match self.pull().map_err(io::Error::other)? {
            Pulled::Bytes => {}
            Pulled::Boundary if self.state == State::InManifest => return Ok(&[]),
            Pulled::Boundary => return Err(io::Error::other(truncated())),
        }
        let available = self.available();
        let length = available.len().min(usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(&available[..length])
    }

    fn consume(&mut self, amount: usize) {
        self.position += amount;
        if self.state == State::InFile {
            self.remaining = self.remaining.saturating_sub(amount as u64);
        }
    }
}

impl Read for BaseBackup {
    /// Fills as much of `into` as the current file or manifest has, over as many messages as that takes.
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < into.len() {
            let bytes = match self.fill_buf() {
                Ok(bytes) => bytes,
                Err(_) if filled > 0 => break,
                Err(error) => return Err(error),
            };
            if bytes.is_empty() {
                break;
            }
            let step = bytes.len().min(into.len() - filled);
            into[filled..filled + step].copy_from_slice(&bytes[..step]);
            self.consume(step);
            filled += step;
        }
        Ok(filled)
    }
}

/// `recptr`, `tli`.
fn position(kind: ResultKind, rows: &Rows) -> Result<(Lsn, Timeline), PgError> {
    if kind != ResultKind::Rows {
        return Err(PgError::protocol(format!("{kind:?} in place of a WAL position")));
    }
    let row = rows.one()?;
    let lsn = row.text(0)?;
    let timeline = row.text(1)?;
    let bad = |text: &str| PgError::protocol(format!("the WAL position {text:?}"));
    Ok((lsn.parse().map_err(|_| bad(lsn))?, Timeline(timeline.parse().map_err(|_| bad(timeline))?)))
}

/// `spcoid`, `spclocation`, `size`; the data directory has neither OID nor location.
fn read_archives(rows: &Rows) -> Result<Vec<Archive>, PgError> {
    rows.iter()
        .map(|row| match row.parse_opt("spcoid")? {
            None => Ok(Archive::Main),
            Some(oid) => Ok(Archive::Tablespace(StreamTablespace { oid, location: row.get("spclocation")?.into() })),
        })
        .collect()
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn command(options: &BaseBackupOptions, version: u32) -> String {
    let label = quoted(&clean_label(&options.label));
    if version >= 150_000 {
        let mut list = vec![
            format!("LABEL {label}"),
            format!("CHECKPOINT '{}'", if options.fast { "fast" } else { "spread" }),
            format!("WAL {}", options.include_wal),
            format!("WAIT {}", options.wait_for_archive),
            format!("VERIFY_CHECKSUMS {}", options.verify_checksums),
            // With it, servers before 16 leave in-place tablespaces out, as pg_basebackup -Ft loses them; without it links are sent as links.
            format!("TABLESPACE_MAP {}", version >= 160_000),
            "TARGET 'client'".to_owned(),
        ];
        if options.manifest {
            list.push("MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C'".to_owned());
        } else {
            list.push("MANIFEST 'no'".to_owned());
        }
        list.extend(options.max_rate_kb.map(|rate| format!("MAX_RATE {rate}")));
        return format!("BASE_BACKUP ({})", list.join(", "));
    }
    let mut words = vec![format!("BASE_BACKUP LABEL {label}")];
    let mut flag = |set: bool, word: &str| {
        if set {
            words.push(word.to_owned());
        }
    };
    flag(options.fast, "FAST");
    flag(options.include_wal, "WAL");
    flag(!options.wait_for_archive, "NOWAIT");
    flag(!options.verify_checksums, "NOVERIFY_CHECKSUMS");
    flag(options.manifest, "MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'");
    words.extend(options.max_rate_kb.map(|rate| format!("MAX_RATE {rate}")));
    words.join(" ")
}

/// A slot in the walsender's own session keeps WAL from now on until the connection ends. Where there is no free
/// slot the backup goes on without, and says so.
fn hold_wal(connection: &Connection) -> WalHold {
    let slot = slot_name(connection);
    let reserve = if connection.server_version() >= 150_000 { "(RESERVE_WAL true)" } else { "RESERVE_WAL" };
    match connection.query(&format!("CREATE_REPLICATION_SLOT \"{slot}\" TEMPORARY PHYSICAL {reserve}"), &[]) {
        Ok(_) => WalHold::Slot(slot),
        Err(error) => WalHold::NotHeld { reason: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_of_both_grammars() {
        let options = BaseBackupOptions { label: "it's\nme".to_owned(), max_rate_kb: Some(1024), ..BaseBackupOptions::default() };
        assert_eq!(
            command(&options, 180_000),
            "BASE_BACKUP (LABEL 'it''s me', CHECKPOINT 'fast', WAL false, WAIT true, VERIFY_CHECKSUMS true, TABLESPACE_MAP true, \
             TARGET 'client', MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C', MAX_RATE 1024)"
        );
        assert_eq!(
            command(&options, 140_000),
            "BASE_BACKUP LABEL 'it''s me' FAST MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C' MAX_RATE 1024"
        );
        let bare = BaseBackupOptions {
            manifest: false,
            verify_checksums: false,
            fast: false,
            wait_for_archive: false,
            include_wal: true,
            ..options
        };
        assert_eq!(command(&bare, 130_000), "BASE_BACKUP LABEL 'it''s me' WAL NOWAIT NOVERIFY_CHECKSUMS MAX_RATE 1024");
    }
}
