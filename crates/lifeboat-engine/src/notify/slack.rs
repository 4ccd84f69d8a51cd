//! Incoming webhooks of Slack: <https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks>.
//!
//! A headline that stands in notifications, and below it what fires and what is over, each with a bar in its colour. Slack refuses a message that is longer than it
//! takes, as a whole: what does not fit is counted.

use jiff::Timestamp;
use lifeboat_core::alert::Severity;
use lifeboat_core::alert::book::{Message, Notice};
use serde_json::{Value, json};

use super::http::Http;
use super::words::{headline, line};
use super::{Arrived, HttpTarget, NotifyError, Sink, System};

/// Characters of the headline. Slack takes 40 000 and cuts them; nobody reads so many.
const MAX_HEADLINE: usize = 300;

/// Characters of one alert's part: Slack's limit of a section's text is 3000.
const MAX_SECTION: usize = 2000;

/// Characters of all parts. Its documentation has no limit for that; above some 13 000 it answers `msg_blocks_too_long`.
const MAX_ALL: usize = 10_000;

/// Parts of a message. Slack's limit is 50 blocks.
const MAX_SECTIONS: usize = 40;

/// A channel of Slack.
pub(super) struct Slack {
    http: Http,
}

impl Slack {
    pub(super) fn open(target: HttpTarget) -> Result<Self, NotifyError> {
        Ok(Self { http: Http::open(target)? })
    }
}

impl Sink for Slack {
    fn send(&self, system: &System, message: &Message, _: Timestamp) -> Result<Arrived, NotifyError> {
        self.http.post("", &document(system, message), &[])?;
        Ok(Arrived::default())
    }
}

/// What of an alert stands under which colour.
const GROUPS: [(&str, Option<Severity>); 3] =
    [("#b3261e", Some(Severity::Critical)), ("#d98c00", Some(Severity::Warning)), ("#2e7d32", None)];

fn document(system: &System, message: &Message) -> Value {
    let title = escape(&format!("[lifeboat {}] {}", system.name, headline(message, MAX_HEADLINE)));
    let (mut attachments, mut room, mut sections, mut left_out) = (Vec::new(), MAX_ALL, MAX_SECTIONS, 0_usize);
    for (color, severity) in GROUPS {
        let notices: Vec<&Notice> = match severity {
            Some(severity) => message.firing.iter().filter(|notice| notice.alert.severity == severity).collect(),
            None => message.resolved.iter().collect(),
        };
        let mut blocks = Vec::new();
        for notice in notices {
            let text = section(system, notice, severity);
            let length = text.chars().count();
            if length > room || sections == 0 {
                left_out += 1;
                continue;
            }
            (room, sections) = (room - length, sections - 1);
            blocks.push(json!({"type": "section", "text": {"type": "mrkdwn", "text": text}}));
        }
        if !blocks.is_empty() {
            attachments.push(json!({"color": color, "blocks": blocks}));
        }
    }
    if left_out > 0 {
        let text = format!("and {left_out} more: this message was full");
        attachments.push(json!({"color": "#808080", "blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": text}}]}));
    }
    json!({"text": title, "attachments": attachments})
}

/// One alert. `None`: it is over.
fn section(system: &System, notice: &Notice, severity: Option<Severity>) -> String {
    let alert = &notice.alert;
    let (name, since) = (escape(&line(&alert.key(), 200)), format!("{:.0}", notice.since));
    // Escaped texts grow up to sixfold, in theory: cut before and after.
    let summary = escape(&line(&alert.summary, 800));
    let text = match severity {
        Some(severity) => {
            let runbook = match system.link(alert) {
                Some(url) => format!("<{}|runbook>", escape(&url).replace('|', "%7C")),
                None => escape(&alert.runbook_at(&system.runbook)),
            };
            let still = if notice.again { "still " } else { "" };
            let place = escape(&format!("{}, {}, host {}", system.name, system.environment, system.host));
            let fix = escape(&line(&alert.fix, 300));
            format!("*{still}{}: {name}*\n{summary}\n*do:* {fix}\nsince {since} · {place} · {runbook}", severity.word())
        }
        None => format!("*resolved: {name}*\n{summary}\nfrom {since} to {:.0}", notice.seen),
    };
    cut(text)
}

/// Within the limit of a section, without half of an escape at its end.
fn cut(text: String) -> String {
    if text.chars().count() <= MAX_SECTION {
        return text;
    }
    let mut short: String = text.chars().take(MAX_SECTION - 1).collect();
    if let Some(at) = short.rfind('&').filter(|at| !short[*at..].contains(';')) {
        short.truncate(at);
    }
    short + "…"
}

/// What Slack reads as something else than text: <https://docs.slack.dev/messaging/formatting-message-text#escaping>. Without it an alert could call everybody.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use lifeboat_core::alert::{Alert, trial};

    use super::*;

    fn system() -> System {
        System {
            name: "shop".into(),
            environment: "production".into(),
            host: "db1".into(),
            runbook: "https://wiki/alerts".into(),
            page: None,
        }
    }

    fn notice(severity: Severity, summary: &str) -> Notice {
        let alert = Alert { summary: summary.to_owned(), ..trial(severity) };
        Notice { alert, since: Timestamp::UNIX_EPOCH, seen: Timestamp::from_second(60).unwrap(), again: false }
    }

    #[test]
    fn firing_and_resolved_stand_apart_and_nobody_is_called_by_name() {
        let message = Message {
            firing: vec![notice(Severity::Critical, "<!channel> & <http://evil|x>"), notice(Severity::Warning, "w")],
            resolved: vec![notice(Severity::Warning, "r")],
        };
        let document = document(&system(), &message);
        assert_eq!(document["text"], "[lifeboat shop] critical: &lt;!channel&gt; &amp; &lt;http://evil|x&gt; (and 1 more, 1 resolved)");
        let colors: Vec<&Value> = document["attachments"].as_array().unwrap().iter().map(|one| &one["color"]).collect();
        assert_eq!(colors, ["#b3261e", "#d98c00", "#2e7d32"]);
        let text = document["attachments"][0]["blocks"][0]["text"]["text"].as_str().unwrap();
        assert!(
            text.starts_with("*critical: test*\n&lt;!channel&gt; &amp;") && text.ends_with("<https://wiki/alerts#test|runbook>"),
            "{text}"
        );
        assert!(document["attachments"][2]["blocks"][0]["text"]["text"].as_str().unwrap().ends_with("to 1970-01-01T00:01:00Z"));
    }

    #[test]
    fn a_message_is_never_longer_than_slack_takes() {
        let long = "<".repeat(5000);
        let message = Message {
            firing: (0..100).map(|_| notice(Severity::Critical, &long)).collect(),
            resolved: vec![notice(Severity::Warning, "r")],
        };
        let document = document(&system(), &message);
        let blocks: Vec<&Value> =
            document["attachments"].as_array().unwrap().iter().flat_map(|one| one["blocks"].as_array().unwrap()).collect();
        let lengths: Vec<usize> = blocks.iter().map(|block| block["text"]["text"].as_str().unwrap().chars().count()).collect();
        assert!(
            lengths.iter().all(|length| *length <= 3000) && lengths.iter().sum::<usize>() < 11_000 && lengths.len() < 50,
            "{lengths:?}"
        );
        let last = blocks.last().unwrap()["text"]["text"].as_str().unwrap();
        assert_eq!(last, format!("and {} more: this message was full", 101 - (blocks.len() - 1)));
        for block in &blocks {
            let text = block["text"]["text"].as_str().unwrap();
            assert!(!text.contains("&l…") && !text.contains("&…") && !text.contains("&lt…"), "half of an escape");
        }
    }
}
