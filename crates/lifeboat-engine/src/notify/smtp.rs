//! Mail, by SMTP.
//!
//! The subject says it all. What belongs together stands together in a mail program: each time that an alert holds has an id, the mail that first tells of it has
//! it as its `Message-ID`, and every later one refers to it. So the same mail, sent twice because an answer was lost, is one mail.

use std::time::SystemTime;

use jiff::Timestamp;
use lettre::message::header::{HeaderName, HeaderValue};
use lettre::message::{Mailbox, Mailboxes, SinglePart};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, CertificateStore, Tls as Security, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::{SmtpTransport, Transport as _};
use lifeboat_core::alert::book::{Message, Notice};
use lifeboat_core::plain::plain;
use zeroize::Zeroizing;

use super::http::ask;
use super::words::{headline, line};
use super::{Arrived, NotifyError, Sink, SmtpTarget, System, TIMEOUT, Tls};
use crate::secret::SecretSource;
use crate::sha256;

/// Characters of a subject. A line of a header has 998 at most, and a telephone shows fifty.
const MAX_SUBJECT: usize = 200;

/// Characters of an error of the server that are repeated.
const MAX_REASON_CHARACTERS: usize = 200;

/// Who gets mail, by way of one server.
pub(super) struct Smtp {
    host: String,
    port: u16,
    security: Security,
    login: Option<(String, SecretSource)>,
    from: Mailbox,
    to: Vec<Mailbox>,
}

/// Whether a text is one address of mail, with or without a name: `Ops <ops@example.org>`.
pub fn is_mailbox(text: &str) -> bool {
    mailbox(text).is_some()
}

/// The parser reads as far as it understands: what it left out must not be somebody else's address.
fn mailbox(text: &str) -> Option<Mailbox> {
    let text = text.trim();
    let all: Mailboxes = text.parse().ok().filter(|_| !text.contains(char::is_control))?;
    let mut all = all.into_iter();
    let one = all.next().filter(|_| all.next().is_none())?;
    text.trim_end_matches('>').trim_end().ends_with(&one.email.to_string()).then_some(one)
}

impl Smtp {
    pub(super) fn open(target: SmtpTarget) -> Result<Self, NotifyError> {
        let address =
            |text: &String| mailbox(text).ok_or_else(|| NotifyError::Settings(format!("{:?} is no address of mail", plain(text))));
        if target.to.is_empty() {
            return Err(NotifyError::Settings("nobody is named who gets the mail".to_owned()));
        }
        let local = matches!(target.host.as_str(), "localhost" | "127.0.0.1" | "::1");
        if target.tls == Tls::None && target.login.is_some() && !local {
            return Err(NotifyError::Settings("a password would be sent in the clear to another host: use starttls or tls".to_owned()));
        }
        let security = match target.tls {
            Tls::Always => Security::Wrapper(certificates(&target)?),
            Tls::StartTls => Security::Required(certificates(&target)?),
            Tls::None => Security::None,
        };
        Ok(Self {
            security,
            from: address(&target.from)?,
            to: target.to.iter().map(address).collect::<Result<_, _>>()?,
            host: target.host,
            port: target.port,
            login: target.login,
        })
    }

    fn mail(&self, system: &System, message: &Message, at: Timestamp) -> Result<lettre::Message, NotifyError> {
        let ids = Ids::of(system, message, at);
        let mut builder = lettre::Message::builder().from(self.from.clone());
        for one in &self.to {
            builder = builder.to(one.clone());
        }
        if let Some(first) = ids.references.first() {
            builder = builder.in_reply_to(first.clone()).references(ids.references.join(" "));
        }
        builder
            .subject(subject(system, message))
            .date(SystemTime::from(at))
            .message_id(Some(ids.own))
            // No answering machine shall write back: RFC 3834.
            .raw_header(HeaderValue::new(HeaderName::new_from_ascii_str("Auto-Submitted"), "auto-generated".to_owned()))
            // Not `body`, which leaves out that this is MIME: its encoding would be taken for text.
            .singlepart(SinglePart::plain(body(system, message)))
            .map_err(|error| NotifyError::Refused(format!("write the mail: {error}")))
    }
}

fn certificates(target: &SmtpTarget) -> Result<TlsParameters, NotifyError> {
    let bad = |what: String| NotifyError::Settings(format!("secure the connection: {what}"));
    let mut builder = TlsParameters::builder(target.host.clone());
    if let Some(path) = &target.ca_file {
        let unreadable = || bad(format!("there is no certificate in {} that can be read", path.display()));
        let pem = std::fs::read(path).map_err(|error| bad(format!("read certificates {}: {error}", path.display())))?;
        if !String::from_utf8_lossy(&pem).contains("-----BEGIN CERTIFICATE-----") {
            return Err(unreadable());
        }
        let roots = Certificate::from_pem(&pem).map_err(|_| unreadable())?;
        builder = builder.certificate_store(CertificateStore::None).add_root_certificate(roots);
    }
    builder.build().map_err(|error| bad(crate::causes::joined(&error)))
}

impl Sink for Smtp {
    fn send(&self, system: &System, message: &Message, at: Timestamp) -> Result<Arrived, NotifyError> {
        let mail = self.mail(system, message, at)?;
        let login = self.login.as_ref().map(|(user, password)| Ok::<_, NotifyError>((user, ask(password, "the password")?))).transpose()?;
        let mut transport = SmtpTransport::builder_dangerous(&self.host).port(self.port).tls(self.security.clone()).timeout(Some(TIMEOUT));
        transport = transport.hello_name(ClientId::Domain(domain(&system.host)));
        let mut secret = Zeroizing::default();
        if let Some((user, password)) = login {
            transport = transport.credentials(Credentials::new(user.clone(), password.to_string()));
            secret = password;
        }
        let transport = transport.build();
        let failed = |error: &lettre::transport::smtp::Error| unsent(error, &secret);
        match transport.send(&mail) {
            Ok(_) => Ok(Arrived::default()),
            // The server may not take one of several addresses, and takes none then: whoever left must not keep the others from being told.
            Err(error) if error.is_permanent() && self.to.len() > 1 => one_by_one(&transport, &mail, &failed).ok_or_else(|| failed(&error)),
            Err(error) => Err(failed(&error)),
        }
    }
}

/// Sends the mail to each alone. `None`: to nobody.
fn one_by_one(
    transport: &SmtpTransport,
    mail: &lettre::Message,
    failed: &impl Fn(&lettre::transport::smtp::Error) -> NotifyError,
) -> Option<Arrived> {
    let envelope = mail.envelope();
    let (mut arrived, mut except) = (false, Vec::new());
    for one in envelope.to() {
        let alone = lettre::address::Envelope::new(envelope.from().cloned(), vec![one.clone()]).expect("it has one address");
        match transport.send_raw(&alone, &mail.formatted()) {
            Ok(_) => arrived = true,
            Err(error) => except.push(format!("{one} did not get it: {}", failed(&error))),
        }
    }
    arrived.then(|| Arrived { except: (!except.is_empty()).then(|| except.join("; ")) })
}

fn unsent(error: &lettre::transport::smtp::Error, secret: &str) -> NotifyError {
    let mut text = crate::causes::joined(error);
    if !secret.is_empty() {
        text = text.replace(secret, "…");
    }
    let reason = line(&text, MAX_REASON_CHARACTERS);
    // What the server says of us, and what we say of it, is the same the next time. The rest is the network's.
    if error.is_permanent() || error.is_client() || (error.is_tls() && !error.is_timeout()) {
        NotifyError::Refused(reason)
    } else if error.is_timeout() {
        NotifyError::Unreachable("no answer in time".to_owned())
    } else {
        NotifyError::Unreachable(reason)
    }
}

fn subject(system: &System, message: &Message) -> String {
    line(&format!("[lifeboat {}] {}", system.name, headline(message, MAX_SUBJECT)), MAX_SUBJECT + 80)
}

fn body(system: &System, message: &Message) -> String {
    let mut text =
        format!("System {}, environment {}, seen from host {}.\n", plain(&system.name), plain(&system.environment), plain(&system.host));
    if let Some(page) = &system.page {
        text.push_str(&format!("{}\n", plain(page)));
    }
    for notice in &message.firing {
        let alert = &notice.alert;
        let still = if notice.again { "STILL " } else { "" };
        text.push_str(&format!(
            "\n{still}{}: {}\n  {}\n  since    {:.0}\n  do       {}\n  runbook  {}\n",
            alert.severity.word().to_uppercase(),
            plain(&alert.key()),
            plain(&alert.summary),
            notice.since,
            plain(&alert.fix),
            plain(&alert.runbook_at(&system.runbook)),
        ));
    }
    for notice in &message.resolved {
        let alert = &notice.alert;
        text.push_str(&format!(
            "\nRESOLVED: {}\n  {}\n  since    {:.0}\n  until    {:.0}\n",
            plain(&alert.key()),
            plain(&alert.summary),
            notice.since,
            notice.seen,
        ));
    }
    text
}

/// A host's name as names of hosts are: what else is in it is left out.
fn domain(host: &str) -> String {
    let name: String = host.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-')).take(200).collect();
    let name = name.trim_matches(['.', '-']);
    if name.is_empty() { "localhost".to_owned() } else { name.to_owned() }
}

/// How a mail is called, and which ones it belongs to.
struct Ids {
    own: String,
    references: Vec<String>,
}

/// References of one mail: the most that a header should have.
const MAX_REFERENCES: usize = 20;

impl Ids {
    fn of(system: &System, message: &Message, at: Timestamp) -> Self {
        let place = domain(&system.host);
        let id = |parts: &[&str]| {
            let digest = sha256::of(parts.join("\0").as_bytes()).to_string();
            format!("<{}@lifeboat.{place}>", &digest[..32])
        };
        // The same for every mail about the same time that it held.
        let held = |notice: &Notice| id(&[&system.environment, &system.name, &notice.alert.key(), &notice.since.to_string()]);
        let first_told = message.firing.iter().find(|notice| !notice.again).map(held);
        let mut references: Vec<String> = message.firing.iter().chain(&message.resolved).map(held).collect();
        references.dedup();
        match first_told {
            Some(own) => {
                references.retain(|one| *one != own);
                references.truncate(MAX_REFERENCES);
                Self { own, references }
            }
            None => {
                let what = if message.firing.is_empty() { "resolved".to_owned() } else { at.to_string() };
                let own = id(&[&references.concat(), &what]);
                references.truncate(MAX_REFERENCES);
                Self { own, references }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use lifeboat_core::alert::{Alert, Severity, trial};

    use super::*;

    fn system() -> System {
        System {
            name: "shop".into(),
            environment: "production".into(),
            host: "db1.example.org".into(),
            runbook: "docs/alerts.md".into(),
            page: None,
        }
    }

    fn notice(name: &'static str, again: bool) -> Notice {
        let alert = Alert { name: name.into(), ..trial(Severity::Critical) };
        Notice { alert, since: Timestamp::UNIX_EPOCH, seen: Timestamp::from_second(60).unwrap(), again }
    }

    fn target() -> SmtpTarget {
        SmtpTarget {
            host: "mail.example.org".into(),
            port: 587,
            tls: Tls::StartTls,
            login: None,
            from: "lifeboat@example.org".into(),
            to: vec!["Ops <ops@example.org>".into()],
            ca_file: None,
        }
    }

    #[test]
    fn an_address_is_one_address() {
        for good in ["ops@example.org", "Ops <ops@example.org>", "\"Smith, John\" <john@example.org>"] {
            assert!(is_mailbox(good), "{good}");
        }
        for bad in ["", "ops", "ops@", "a@example.org, b@example.org", "a@example.org b@example.org", "a@example.org\r\nBcc: b@example.org"]
        {
            assert!(!is_mailbox(bad), "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_before_anything_is_sent() {
        let refused = |target: SmtpTarget| Smtp::open(target).err().expect("refused").to_string();
        assert!(refused(SmtpTarget { from: "nobody".into(), ..target() }).contains("\"nobody\" is no address"));
        assert!(refused(SmtpTarget { to: Vec::new(), ..target() }).contains("nobody is named"));
        let login = || Some(("me".to_owned(), Box::new(|| Ok(Zeroizing::new("hunter2".to_owned()))) as SecretSource));
        assert!(refused(SmtpTarget { tls: Tls::None, login: login(), ..target() }).contains("in the clear"));
        Smtp::open(SmtpTarget { tls: Tls::None, login: login(), host: "localhost".into(), ..target() }).unwrap();
        assert!(refused(SmtpTarget { ca_file: Some(PathBuf::from("/nowhere")), ..target() }).contains("/nowhere"));
        let empty = tempfile::NamedTempFile::new().unwrap();
        assert!(refused(SmtpTarget { ca_file: Some(empty.path().into()), ..target() }).contains("no certificate"));
    }

    #[test]
    fn nothing_in_an_alert_becomes_a_header() {
        let smtp = Smtp::open(target()).unwrap();
        let mut evil = notice("test", false);
        evil.alert.summary = "down\r\nBcc: everybody@example.org\r\n\r\nbody".into();
        evil.alert.subject = "x\r\nX-Evil: 1".into();
        let system = System { name: "shop\r\nX-Evil: 2".into(), host: "db1\r\nX-Evil: 3".into(), ..system() };
        let mail = smtp.mail(&system, &Message { firing: vec![evil], resolved: Vec::new() }, Timestamp::UNIX_EPOCH).unwrap();
        let text = String::from_utf8(mail.formatted()).unwrap();
        let (head, _) = text.split_once("\r\n\r\n").unwrap();
        let names: Vec<&str> =
            head.split("\r\n").filter(|line| !line.starts_with([' ', '\t'])).map(|line| line.split(':').next().unwrap()).collect();
        let expected =
            ["From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "MIME-Version", "Content-Type", "Content-Transfer-Encoding"];
        assert_eq!(names, expected, "{text}");
        assert_eq!(mail.envelope().to().len(), 1);
    }

    #[test]
    fn later_mails_refer_to_the_first() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let of = |firing: &[Notice], resolved: &[Notice], second| {
            Ids::of(&system(), &Message { firing: firing.to_vec(), resolved: resolved.to_vec() }, at(second))
        };
        let first = of(&[notice("wal-gap", false), notice("rpo-missed", false)], &[], 100);
        // Sent once more because the answer was lost: the same mail.
        assert_eq!(first.own, of(&[notice("wal-gap", false), notice("rpo-missed", false)], &[], 160).own);
        assert_eq!(first.references.len(), 1);
        let (again, once_more) = (of(&[notice("wal-gap", true)], &[], 200), of(&[notice("wal-gap", true)], &[], 300));
        assert_eq!(again.references, std::slice::from_ref(&first.own));
        assert!(again.own != once_more.own && again.own != first.own);
        let over = of(&[], &[notice("wal-gap", true)], 400);
        assert_eq!((&over.references, over.own == first.own), (&vec![first.own.clone()], false));
        assert_eq!(over.own, of(&[], &[notice("wal-gap", true)], 500).own);
        assert_eq!(of(&[], &[notice("rpo-missed", true)], 400).references, first.references);
    }

    #[test]
    fn the_name_of_a_host_is_one() {
        assert_eq!(
            (domain("db1.example.org"), domain("db 1\r\n"), domain("…")),
            ("db1.example.org".into(), "db1".into(), "localhost".into())
        );
    }
}
