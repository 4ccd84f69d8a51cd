//! All sinks, and what each was told: round after round.
//!
//! Sinks are sent to at the same time, each from a thread of its own, so that one that hangs keeps nobody else from being told; and it is not asked again before it has
//! answered. What did not arrive comes again with the next round, as the books have it.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_core::alert::Alert;
use lifeboat_core::alert::book::{Book, Message, Rhythm};

use super::books::Place;
use super::{Arrived, NamedSink, NotifyError, Sink, System, Telling};

/// How long a round waits for its sinks: a request has ten seconds, and a mail takes a few of them. What takes longer is looked at in the next round.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What became of one sink's message in a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The sink.
    pub sink: String,
    /// So many alerts it was told of, begun and over.
    pub sent: usize,
    /// Why it was not told; it is tried again in the next round.
    pub error: Option<NotifyError>,
    /// What somebody should know all the same: its book was begun anew, or cannot be kept; somebody did not get the mail.
    pub warning: Option<String>,
}

/// All sinks.
pub struct Notifier {
    system: Arc<System>,
    rhythm: Rhythm,
    patience: Duration,
    ways: Vec<Way>,
}

/// One sink, and what it was told.
struct Way {
    to: NamedSink,
    book: Book,
    place: Place,
    /// What its book was found as, until it was said.
    found: Option<String>,
    sending: Option<Sending>,
}

/// A message on its way.
struct Sending {
    message: Message,
    begun: Instant,
    answer: Receiver<Result<Arrived, NotifyError>>,
}

impl Notifier {
    /// Opens the books below `directory`, one file for each sink.
    pub fn open(system: System, rhythm: Rhythm, sinks: Vec<NamedSink>, directory: &Path) -> Self {
        let way = |to: NamedSink| {
            let (place, book, found) = Place::open(directory, &to.name);
            Way { to, book, place, found, sending: None }
        };
        Self { system: Arc::new(system), rhythm, patience: PATIENCE, ways: sinks.into_iter().map(way).collect() }
    }

    /// The same, waiting for its sinks for so long in a round.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Tells each sink what it has to hear, now that this holds; one delivery for each sink. Returns when all have answered, or when patience has run out.
    pub fn round(&mut self, firing: &[Alert], now: Timestamp) -> Vec<Delivery> {
        self.round_of(firing, now, |_| true, |_| false)
    }

    /// The same for alerts in a scope: of those outside of it somebody else tells, so that they neither begin nor end. Those of which nothing is known now,
    /// because nobody could look, do not end either.
    pub fn round_of(
        &mut self,
        firing: &[Alert],
        now: Timestamp,
        scope: impl Fn(&Alert) -> bool,
        unknown: impl Fn(&Alert) -> bool,
    ) -> Vec<Delivery> {
        let firing_keys: Vec<String> = firing.iter().map(Alert::key).collect();
        let unknown = |alert: &Alert| unknown(alert) && !firing_keys.contains(&alert.key());
        let mut deliveries = Vec::with_capacity(self.ways.len());
        for way in &mut self.ways {
            let mut delivery = Delivery { sink: way.to.name.clone(), sent: 0, error: None, warning: way.found.take() };
            // What it was told in an earlier round, and has answered meanwhile.
            way.settle(Duration::ZERO, now, &mut delivery);
            let wanted: Vec<Alert> = firing.iter().filter(|alert| alert.severity <= way.to.min_severity && scope(alert)).cloned().collect();
            let mut aside = way.book.set_aside(|alert| !scope(alert));
            aside.extend(way.book.hold(unknown, now, &self.rhythm));
            way.book.note(&wanted, now, &self.rhythm);
            if way.sending.is_none()
                && let Some(message) = way.message(now, &self.rhythm)
            {
                way.sending = Some(begin(&way.to.sink, &self.system, message, now));
            }
            way.book.entries.extend(aside);
            deliveries.push(delivery);
        }
        let end = Instant::now() + self.patience;
        for (way, delivery) in self.ways.iter_mut().zip(&mut deliveries) {
            way.settle(end.saturating_duration_since(Instant::now()), now, delivery);
            if let Err(problem) = way.place.keep(&way.book) {
                delivery.warn(format!("{problem}; after a restart what holds is told anew"));
            }
        }
        deliveries
    }
}

impl Way {
    fn message(&self, now: Timestamp, rhythm: &Rhythm) -> Option<Message> {
        match self.to.sink.telling() {
            Telling::News => self.book.message(now, rhythm),
            Telling::Everything => self.book.everything(now, rhythm),
        }
    }

    /// Waits for the answer to what is on its way, if something is, and notes what it comes to.
    fn settle(&mut self, wait: Duration, now: Timestamp, delivery: &mut Delivery) {
        let Some(sending) = &self.sending else { return };
        let answer = match sending.answer.try_recv() {
            Err(TryRecvError::Empty) if !wait.is_zero() => sending.answer.recv_timeout(wait),
            Err(TryRecvError::Empty) => Err(RecvTimeoutError::Timeout),
            Err(TryRecvError::Disconnected) => Err(RecvTimeoutError::Disconnected),
            Ok(answer) => Ok(answer),
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => {
                delivery.error = Some(NotifyError::Busy { seconds: sending.begun.elapsed().as_secs() });
                return;
            }
            // It panicked, or could not begin.
            Err(RecvTimeoutError::Disconnected) => {
                Err(NotifyError::Unreachable("the thread that sends ended without an answer".to_owned()))
            }
        };
        let message = self.sending.take().expect("looked at above").message;
        match answer {
            Ok(Arrived { except }) => {
                self.book.arrived(&message, now);
                delivery.sent += message.firing.len() + message.resolved.len();
                delivery.error = None;
                if let Some(except) = except {
                    delivery.warn(except);
                }
            }
            Err(error) => delivery.error = Some(error),
        }
    }
}

impl Delivery {
    fn warn(&mut self, text: String) {
        self.warning = Some(match self.warning.take() {
            Some(before) => format!("{before}; {text}"),
            None => text,
        });
    }
}

/// Sends a message from a thread of its own. It is left to itself when it hangs: it has nothing but copies.
fn begin(sink: &Arc<dyn Sink>, system: &Arc<System>, message: Message, at: Timestamp) -> Sending {
    let (said, answer) = channel();
    let (sink, system, copy) = (Arc::clone(sink), Arc::clone(system), message.clone());
    // Without a thread the channel closes at once, which is the answer.
    let _ = std::thread::Builder::new().name("alert".to_owned()).spawn(move || {
        let _ = said.send(sink.send(&system, &copy, at));
    });
    Sending { message, begun: Instant::now(), answer }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use jiff::SignedDuration;
    use lifeboat_core::alert::Severity;

    use super::*;

    /// Answers as it is told to, and remembers what it was sent.
    #[derive(Default)]
    struct Scripted {
        everything: bool,
        answers: Mutex<VecDeque<Answer>>,
        heard: Mutex<Vec<Message>>,
    }

    enum Answer {
        Fail(NotifyError),
        Except(&'static str),
        Hang(Receiver<()>),
        Panic,
    }

    impl Sink for Scripted {
        fn telling(&self) -> Telling {
            if self.everything { Telling::Everything } else { Telling::News }
        }

        fn send(&self, _: &System, message: &Message, _: Timestamp) -> Result<Arrived, NotifyError> {
            let next = self.answers.lock().unwrap().pop_front();
            let arrived = match next {
                Some(Answer::Fail(error)) => return Err(error),
                Some(Answer::Panic) => panic!("on purpose"),
                Some(Answer::Hang(until)) => {
                    let _ = until.recv();
                    Arrived::default()
                }
                Some(Answer::Except(who)) => Arrived { except: Some(who.to_owned()) },
                None => Arrived::default(),
            };
            self.heard.lock().unwrap().push(message.clone());
            Ok(arrived)
        }
    }

    impl Scripted {
        fn heard(&self) -> Vec<(Vec<String>, Vec<String>)> {
            let keys = |notices: &[lifeboat_core::alert::book::Notice]| notices.iter().map(|notice| notice.alert.key()).collect();
            self.heard.lock().unwrap().iter().map(|message| (keys(&message.firing), keys(&message.resolved))).collect()
        }

        fn will(&self, answer: Answer) {
            self.answers.lock().unwrap().push_back(answer);
        }
    }

    const RHYTHM: Rhythm =
        Rhythm { group_wait: SignedDuration::ZERO, repeat: SignedDuration::from_hours(4), resolve_after: SignedDuration::ZERO };

    fn system() -> System {
        System { name: "shop".into(), environment: "test".into(), host: "db1".into(), runbook: "docs/alerts.md".into(), page: None }
    }

    fn alert(name: &'static str, severity: Severity) -> Alert {
        Alert { name: name.into(), ..lifeboat_core::alert::trial(severity) }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn notifier(directory: &Path, sinks: &[(&str, Severity, &Arc<Scripted>)]) -> Notifier {
        let sinks = sinks.iter().map(|(name, min_severity, sink)| NamedSink {
            name: (*name).to_owned(),
            min_severity: *min_severity,
            sink: Arc::clone(sink) as Arc<dyn Sink>,
        });
        Notifier::open(system(), RHYTHM, sinks.collect(), directory).with_patience(Duration::from_secs(120))
    }

    fn said(deliveries: &[Delivery]) -> Vec<(&str, usize, bool)> {
        deliveries.iter().map(|one| (one.sink.as_str(), one.sent, one.error.is_some())).collect()
    }

    fn list(keys: &[&str]) -> Vec<String> {
        keys.iter().map(|key| (*key).to_owned()).collect()
    }

    #[test]
    fn each_sink_hears_what_is_for_it_and_what_failed_comes_again() {
        let directory = tempfile::tempdir().unwrap();
        let (all, worst) = (Arc::new(Scripted::default()), Arc::new(Scripted::default()));
        let mut notifier = notifier(directory.path(), &[("all", Severity::Warning, &all), ("worst", Severity::Critical, &worst)]);
        let (lag, gap) = (alert("wal-lag", Severity::Warning), alert("wal-gap", Severity::Critical));
        all.will(Answer::Fail(NotifyError::Refused("it answered 404".into())));
        let first = notifier.round(&[lag.clone(), gap.clone()], at(0));
        assert_eq!(said(&first), [("all", 0, true), ("worst", 1, false)]);
        assert_eq!(said(&notifier.round(&[lag.clone(), gap.clone()], at(1))), [("all", 2, false), ("worst", 0, false)]);
        assert_eq!(said(&notifier.round(&[lag, gap], at(2))), [("all", 0, false), ("worst", 0, false)]);
        assert_eq!(said(&notifier.round(&[], at(3))), [("all", 2, false), ("worst", 1, false)]);
        assert_eq!(all.heard(), [(list(&["wal-gap", "wal-lag"]), vec![]), (vec![], list(&["wal-gap", "wal-lag"]))]);
        assert_eq!(worst.heard(), [(list(&["wal-gap"]), vec![]), (vec![], list(&["wal-gap"]))]);
    }

    #[test]
    fn one_that_hangs_keeps_nobody_waiting_and_is_not_asked_again_before_it_answers() {
        let directory = tempfile::tempdir().unwrap();
        let (stuck, well) = (Arc::new(Scripted::default()), Arc::new(Scripted::default()));
        let sinks = [("stuck", Severity::Warning, &stuck), ("well", Severity::Warning, &well)];
        let mut notifier = notifier(directory.path(), &sinks).with_patience(Duration::from_millis(100));
        let (release, until) = channel();
        stuck.will(Answer::Hang(until));
        let gap = alert("wal-gap", Severity::Critical);
        let both = [gap.clone(), alert("no-backup", Severity::Critical)];
        // However slow this machine is, in one of the rounds the answer of the well one is there.
        let mut second = 0;
        let mut until_heard = |notifier: &mut Notifier, firing: &[Alert], sink: usize, wanted: usize| {
            let mut sent = 0;
            while sent < wanted && second < 1000 {
                second += 1;
                let deliveries = notifier.round(firing, at(second));
                sent += deliveries[sink].sent;
                if sink == 1 {
                    let stuck = &deliveries[0];
                    assert!(
                        stuck.sent == 0 && matches!(&stuck.error, Some(error @ NotifyError::Busy { .. }) if error.is_transient()),
                        "{stuck:?}"
                    );
                }
            }
        };
        until_heard(&mut notifier, std::slice::from_ref(&gap), 1, 1);
        until_heard(&mut notifier, &both, 1, 1);
        assert_eq!(stuck.heard(), [], "it still hangs");
        release.send(()).unwrap();
        // What came meanwhile goes out when it has answered.
        until_heard(&mut notifier, &both, 0, 2);
        assert_eq!(stuck.heard(), [(list(&["wal-gap"]), vec![]), (list(&["no-backup"]), vec![])]);
        assert_eq!(well.heard(), [(list(&["wal-gap"]), vec![]), (list(&["no-backup"]), vec![])]);
    }

    /// An agent that waits for another one tells of its own host only, and takes nothing back of what it told before.
    #[test]
    fn what_is_out_of_scope_neither_begins_nor_ends() {
        let directory = tempfile::tempdir().unwrap();
        let sink = Arc::new(Scripted::default());
        let mut notifier = notifier(directory.path(), &[("ops", Severity::Warning, &sink)]);
        let (disk, gap) = (alert("disk-space", Severity::Critical), alert("wal-gap", Severity::Critical));
        notifier.round(std::slice::from_ref(&gap), at(0));
        let scope = |alert: &Alert| alert.name == "disk-space";
        notifier.round_of(&[disk.clone(), alert("no-backup", Severity::Critical)], at(10), scope, |_| false);
        notifier.round_of(&[], at(20), scope, |_| false);
        notifier.round(std::slice::from_ref(&gap), at(30));
        notifier.round(&[], at(40));
        let told =
            [(list(&["wal-gap"]), vec![]), (list(&["disk-space"]), vec![]), (vec![], list(&["disk-space"])), (vec![], list(&["wal-gap"]))];
        assert_eq!(sink.heard(), told);
    }

    /// An archive that nobody could look at has no gap that is over.
    #[test]
    fn what_nobody_could_look_at_does_not_end() {
        let directory = tempfile::tempdir().unwrap();
        let sink = Arc::new(Scripted::default());
        let open = || notifier(directory.path(), &[("ops", Severity::Warning, &sink)]);
        let (gap, disk) = (alert("wal-gap", Severity::Critical), alert("disk-space", Severity::Critical));
        let unknown = |alert: &Alert| alert.name == "wal-gap";
        let mut before = open();
        before.round(&[gap.clone(), disk], at(0));
        before.round_of(&[], at(600), |_| true, unknown);
        // An agent that begins and has not seen anything yet.
        let mut notifier = open();
        notifier.round_of(&[], at(3000), |_| true, unknown);
        notifier.round_of(std::slice::from_ref(&gap), at(3015), |_| true, unknown);
        notifier.round(&[], at(3030));
        assert_eq!(
            sink.heard(),
            [(list(&["disk-space", "wal-gap"]), vec![]), (vec![], list(&["disk-space"])), (vec![], list(&["wal-gap"]))]
        );
    }

    #[test]
    fn a_restart_tells_nothing_twice_and_forgets_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let sink = Arc::new(Scripted::default());
        let open = || notifier(directory.path(), &[("ops", Severity::Warning, &sink)]);
        let gap = alert("wal-gap", Severity::Critical);
        assert_eq!(open().round(std::slice::from_ref(&gap), at(0))[0].sent, 1);
        assert_eq!(open().round(std::slice::from_ref(&gap), at(60))[0].sent, 0);
        assert_eq!(open().round(&[], at(120))[0].sent, 1);
        assert_eq!(sink.heard(), [(list(&["wal-gap"]), vec![]), (vec![], list(&["wal-gap"]))]);
        // Without its book it is told anew, and that is said once.
        std::fs::write(directory.path().join("ops.json"), "torn").unwrap();
        let mut again = open();
        let first = again.round(std::slice::from_ref(&gap), at(180));
        assert!(first[0].warning.as_ref().is_some_and(|text| text.contains("told anew")) && first[0].sent == 1, "{first:?}");
        assert_eq!(again.round(&[gap], at(181))[0].warning, None);
    }

    #[test]
    fn who_wants_everything_is_sent_it_every_time() {
        let directory = tempfile::tempdir().unwrap();
        let sink = Arc::new(Scripted { everything: true, ..Scripted::default() });
        let mut notifier = notifier(directory.path(), &[("am", Severity::Warning, &sink)]);
        let lag = [alert("wal-lag", Severity::Warning)];
        for second in [0, 30, 60] {
            assert_eq!(notifier.round(&lag, at(second))[0].sent, 1);
        }
        assert_eq!(notifier.round(&[], at(90))[0].sent, 1);
        assert_eq!(notifier.round(&[], at(120))[0].sent, 0);
        assert_eq!(sink.heard().len(), 4);
    }

    #[test]
    fn a_sink_that_breaks_is_an_error_and_one_that_leaves_somebody_out_a_warning() {
        let directory = tempfile::tempdir().unwrap();
        let sink = Arc::new(Scripted::default());
        let mut notifier = notifier(directory.path(), &[("ops", Severity::Warning, &sink)]);
        let gap = [alert("wal-gap", Severity::Critical)];
        sink.will(Answer::Panic);
        sink.will(Answer::Except("john did not get it"));
        let first = notifier.round(&gap, at(0));
        assert!(first[0].error.as_ref().is_some_and(NotifyError::is_transient), "{first:?}");
        let second = notifier.round(&gap, at(1));
        assert_eq!((second[0].sent, second[0].warning.as_deref()), (1, Some("john did not get it")));
        assert_eq!(second[0].error, None);
    }
}
