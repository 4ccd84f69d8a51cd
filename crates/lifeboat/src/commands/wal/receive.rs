//! `lifeboat wal receive`

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use lifeboat_core::audit::Outcome;
use lifeboat_core::policy::Operation;
use lifeboat_core::wal::Lsn;
use lifeboat_engine::postgres::Dsn;
use lifeboat_engine::repository::Repository;
use lifeboat_engine::store;
use lifeboat_engine::wal::receive::{
    self, Course, Event, EventKind, Mode, RealDisk, ReceiveError, ReceiveRequest, SlotMade, Status, Stop, Watcher,
};

use crate::cli::WalReceive;
use crate::commands::policy::facts;
use crate::config::{Durability, OnFallout, Settings, WalMode};
use crate::failure::{EXIT_FAILED, EXIT_FINDINGS, EXIT_FORMAT, EXIT_LEASED, EXIT_UNVERIFIED, EXIT_USAGE, Failure, chain};
use crate::gate::{self, Question};
use crate::output::{self, Output};
use crate::session::{self, PatientSigner};
use crate::signals;

/// Tells people on stderr, and programs one JSON object in a line on stdout.
struct Told {
    json: bool,
    last: Mutex<Option<Status>>,
    /// Who makes records of what is told.
    records: Sender<Outcome>,
}

impl Told {
    /// Whether commits wait for this receiver is what anybody may ask about who has lost some.
    fn record(&self, event: &Event) {
        let exit_code = match event.event {
            EventKind::Degraded => EXIT_FINDINGS,
            EventKind::Restored => 0,
            _ => return,
        };
        let _ = self.records.send(Outcome { exit_code, message: Some(event.text.clone()), findings: u64::from(exit_code != 0) });
    }

    fn line(&self, document: &serde_json::Value) {
        use std::io::Write as _;
        if self.json {
            let _ = writeln!(std::io::stdout(), "{document}");
        }
    }
}

impl Watcher for Told {
    fn event(&self, event: &Event) {
        if event.loud {
            output::warn(&event.text);
        } else {
            output::say(&event.text);
        }
        self.line(&serde_json::json!(event));
        self.record(event);
    }

    fn progress(&self, status: &Status) {
        let mut last = self.last.lock().expect("no panic while held");
        if last.as_ref() == Some(status) {
            return;
        }
        *last = Some(status.clone());
        drop(last);
        let lag = |lsn: Lsn| output::bytes(status.server.0.saturating_sub(lsn.0));
        output::say(&format!(
            "timeline {}: received {}, stored {} ({} behind the server), acknowledged {}; {} wait for the repository",
            status.timeline.map_or(0, |timeline| timeline.0),
            status.received,
            status.stored,
            lag(status.stored),
            status.acknowledged,
            output::bytes(status.waiting_bytes),
        ));
        self.line(&serde_json::json!({
            "event": "progress",
            "host": status.host,
            "timeline": status.timeline,
            "received": status.received,
            "stored": status.stored,
            "acknowledged": status.acknowledged,
            "server": status.server,
            "waiting_bytes": status.waiting_bytes,
            "degraded": status.degraded,
        }));
    }
}

pub(super) fn run(receive: &WalReceive, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    // Without a connection string libpq's own defaults count, as for psql.
    let dsn = Dsn::parse(settings.dsn.as_ref().map_or("", |setting| setting.value.as_str()))?;
    let slot = settings.wal_slot.value.clone();
    gate::allow(settings, None, Question::new(Operation::WalReceive))?;
    if receive.create_slot_only {
        let made = receive::create_slot(&dsn, &slot)?;
        let text = match made {
            SlotMade::Kept => format!("slot {slot} is there already\n"),
            SlotMade::Made => format!("made slot {slot}\n"),
            SlotMade::Renewed => format!("slot {slot} had lost WAL: made it anew\n"),
        };
        out.result(&serde_json::json!({"slot": slot, "created": made != SlotMade::Kept}), || text);
        return Ok(0);
    }
    if receive.drop_slot {
        let dropped = receive::drop_slot(&dsn, &slot)?;
        let text = if dropped { format!("dropped slot {slot}\n") } else { format!("there is no slot {slot}\n") };
        out.result(&serde_json::json!({"slot": slot, "dropped": dropped}), || text);
        return Ok(0);
    }
    let stop = Arc::new(Stop::default());
    let asked = Arc::clone(&stop);
    signals::on_stop(move || asked.request());
    let signer = PatientSigner::new(settings);
    match signer.open() {
        Ok(_) => {}
        // A service may be away when the host starts: WAL is received all the same, and waits for it in the spool.
        Err(failure) if settings.signing.names_service() && failure.code != EXIT_USAGE && !receive.once && !receive.drain => {
            output::warn(&format!("WAL cannot be signed, and waits in the spool until it can: {}", failure.message));
        }
        Err(failure) => return Err(failure),
    }
    let trust = session::trust(settings)?;
    let protection = session::protection(settings)?;
    let repository = match session::open_repository(settings) {
        Ok(repository) => repository,
        Err(failure) => awaited(settings, receive.once || receive.drain, failure)?,
    };
    let mode = match (settings.wal_mode.value, settings.wal_durability.value) {
        // Who runs a receiver beside the archiver wants the open segment too.
        (WalMode::Archive | WalMode::Stream, _) => Mode::Stream,
        (WalMode::Sync, Durability::Spool) => Mode::SyncSpool,
        (WalMode::Sync, Durability::Repository) => Mode::SyncRepository,
    };
    let request = ReceiveRequest {
        dsn,
        slot,
        spool: settings.wal_spool.value.clone(),
        spool_limit: settings.wal_spool_limit.value,
        memory_bytes: settings.memory_bytes.value,
        flush_interval: settings.wal_flush_interval.value,
        mode,
        degrade_after: (settings.wal_on_fallout.value == OnFallout::Degrade).then_some(settings.wal_degrade_after.value),
        server_timeout: receive::SERVER_TIMEOUT,
        accept_fork: receive.accept_fork,
        course: match receive {
            WalReceive { drain: true, .. } => Course::Drain,
            WalReceive { once: true, .. } => Course::Once,
            WalReceive { unless_received: true, .. } => Course::UnlessReceived,
            _ => Course::Always,
        },
        busy_slot: receive::BUSY_SLOT,
        signer: &signer,
        trust: &trust,
        protection: &protection,
        level: settings.compression_level.value,
        host: session::host(),
        program: session::PROGRAM.to_owned(),
        disk: &RealDisk,
    };
    let (records, made) = channel();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (noted, carried) = channel();
        scope.spawn(move || note(settings, &made, &noted));
        scope.spawn(|| carry(settings, || stop.is_asked() || over.load(Ordering::SeqCst), carried));
        let told = Told { json: out.is_json(), last: Mutex::default(), records };
        let outcome = receive::run(&repository, &request, &told, &stop);
        over.store(true, Ordering::SeqCst);
        outcome.map_err(failure)
    })?;
    if receive.drain && receive::waits(&settings.wal_spool.value, &settings.wal_slot.value) {
        return Err(failure(ReceiveError::Left { path: settings.wal_spool.value.display().to_string() }));
    }
    Ok(0)
}

/// Makes records in this host's journal, each at once.
fn note(settings: &Settings, made: &Receiver<Outcome>, noted: &Sender<()>) {
    if gate::waits(settings) {
        let _ = noted.send(());
    }
    for outcome in made {
        match gate::note(settings, Operation::WalReceive, "wal.on_fallout is \"degrade\"", outcome) {
            Ok(()) => drop(noted.send(())),
            Err(failure) => output::warn(&format!("what this receiver did is not in the audit log: {}", failure.message)),
        }
    }
}

/// Brings records to the repository, beside the WAL. Where the receiver is about to end that is not waited for: the next record of this host takes
/// them along, or the next receiver.
fn carry(settings: &Settings, is_over: impl Fn() -> bool, noted: Receiver<()>) {
    for () in noted {
        if !is_over()
            && let Err(problem) = gate::carry(settings)
        {
            output::warn(&format!("what the audit log is to have of this receiver is on this host only: {problem}"));
        }
    }
}

/// The repository, where it does not answer and the spool tells which one it is: for outages of it there is the spool, and commits may wait
/// for what goes there.
fn awaited(settings: &Settings, once: bool, failure: Failure) -> Result<Repository, Failure> {
    let known = receive::repositories(&settings.wal_spool.value, &settings.wal_slot.value);
    let ([id], false) = (&known[..], once || matches!(failure.code, EXIT_USAGE | EXIT_FORMAT)) else { return Err(failure) };
    output::warn(&format!("WAL is received into the spool of repository {id} alone, until it can be opened: {}", failure.message));
    let url = facts::without_user(session::repository_url(settings)?);
    Ok(store::await_repository(*id, url, session::open_later(settings)))
}

fn failure(error: ReceiveError) -> Failure {
    let (code, hint) = match error {
        ReceiveError::Postgres(error) => return error.into(),
        ReceiveError::Left { .. } => (
            EXIT_FINDINGS,
            "what is damaged (.suspect), or of another repository or cluster, stays there; lifeboat wal status shows what the repository has; run it again where it was ended",
        ),
        ReceiveError::SlotInUse { .. } => {
            (EXIT_LEASED, "lifeboat wal status shows who has the slot; give this receiver one of its own: wal.slot")
        }
        ReceiveError::Locked { .. } => (EXIT_LEASED, "stop the other receiver, or give this one a spool of its own: wal.spool"),
        ReceiveError::Spool { .. } => (
            EXIT_FAILED,
            "make room where wal.spool is (lifeboat config show): what lies there may be acknowledged and nowhere else, so give it no other place before it is stored",
        ),
        ReceiveError::OtherCluster { .. } => (
            EXIT_FAILED,
            "postgres.dsn names another cluster than that whose WAL waits in wal.spool: lifeboat config show has both; lifeboat wal receive stores what waits when postgres.dsn names that cluster, or a host that does not answer",
        ),
        ReceiveError::Diverged { .. } => (
            EXIT_UNVERIFIED,
            "two servers write the same timeline (a copy was promoted without recovery?): find out which of them is yours; lifeboat wal status shows what there is",
        ),
        ReceiveError::Wal(_) => (
            EXIT_UNVERIFIED,
            "the repository has, or would get, WAL that is not of this server: lifeboat wal status shows what there is; nothing was overwritten",
        ),
    };
    Failure::new(code, chain(&error)).hint(hint)
}
