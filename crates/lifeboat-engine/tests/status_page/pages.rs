//! What is on the pages, what does not get out of them, and how long they can get.

use jiff::{SignedDuration, Timestamp};
use lifeboat_core::alert::{Alert, Severity};
use lifeboat_core::status::Status;
use lifeboat_engine::web::page::{self, BackupsPage, ListPage, Overview, View};
use lifeboat_engine::web::{AgentView, Part};

use crate::samples::{agent, judged, observed, with_backups};

/// The pages, as they are so many seconds after everything was seen.
struct Pages {
    status: Option<Status>,
    agent: AgentView,
    now: Timestamp,
}

impl Pages {
    fn of(status: Status, seconds_later: i64) -> Self {
        let now = status.observed.at.saturating_add(SignedDuration::from_secs(seconds_later)).unwrap();
        Self { status: Some(status), agent: agent("2024-02-27T00:00:00Z".parse().unwrap()), now }
    }

    fn sample(name: &str) -> Self {
        Self::of(judged(observed(name)), 31)
    }

    fn view(&self) -> View<'_> {
        View { status: self.status.as_ref(), agent: &self.agent, now: self.now }
    }

    fn overview(&self) -> String {
        page::overview(&self.view(), &Overview::default())
    }

    fn backups(&self, query: &str) -> String {
        page::backups(&self.view(), &parsed::<BackupsPage>(query))
    }

    fn all(&self) -> Vec<String> {
        let first = ListPage::default();
        vec![self.overview(), self.backups(""), page::drills(&self.view(), &first), page::alerts(&self.view(), &first)]
    }
}

/// As the server reads what stands behind the question mark.
fn parsed<T: for<'a> serde::Deserialize<'a>>(query: &str) -> T {
    let members: serde_json::Map<String, serde_json::Value> = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.parse::<u64>().map_or_else(|_| value.into(), Into::into)))
        .collect();
    serde_json::from_value(members.into()).unwrap()
}

/// The text between tags, which is what a person reads.
fn read(page: &str) -> String {
    let text = page.split('<').filter_map(|part| part.split_once('>')).map(|(_, text)| text).collect::<Vec<_>>().join("");
    text.replace("&quot;", "\"").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
}

#[test]
fn the_four_questions_are_answered_first() {
    let text = read(&Pages::sample("well").overview());
    let at = |words: &str| text.find(words).unwrap_or_else(|| panic!("{words} is not on the page: {text}"));
    let order = [
        "Can conductor (production) be recovered?",
        "Yes, it can be recovered",
        "Both objectives are met, and a drill has proven it.",
        "To when?02:14:30 UTCFri, 15 Mar 2024, 6.0 s before it was looked at. Any moment since 2024-01-26 01:34:14 UTC.",
        "Lost, if it happened now6.0 s✓ met The objective (RPO) is 24 h.",
        "Back after17 min 22 s✓ met The objective (RTO) is 4 h.",
        "Proven11.9 days ago✓ in time by conductor-drill-20240303T040000Z; once in 90 days is asked for.",
        "✓ none Nobody has to be told anything.",
        "Recovery window",
    ];
    for pair in order.windows(2) {
        assert!(at(pair[0]) < at(pair[1]), "{} comes before {}", pair[0], pair[1]);
    }
}

#[test]
fn everything_that_was_seen_is_on_a_page() {
    for name in ["well", "at-risk"] {
        let pages = Pages::sample(name);
        let status = pages.status.clone().unwrap();
        let (seen, text) = (&status.observed, read(&pages.all().join("")));
        let mut wanted: Vec<String> = status.answer.reasons.clone();
        wanted.extend(status.alerts.iter().flat_map(|alert| [alert.summary.clone(), alert.fix.clone(), alert.key(), alert.runbook()]));
        wanted.extend(
            seen.backups.iter().flatten().flat_map(|backup| backup.pins.iter().chain(&backup.problem).chain([&backup.id]).cloned()),
        );
        wanted.extend(seen.repositories.iter().flat_map(|one| [one.name.clone(), one.url.clone(), one.part.clone()]));
        wanted.extend(seen.repositories.iter().filter_map(|one| one.trouble.clone()));
        let wal = seen.wal.as_ref().unwrap();
        wanted.extend(wal.findings.iter().flat_map(|finding| [finding.message.clone(), finding.hint.clone()]));
        wanted.extend(wal.slots.iter().map(|slot| slot.name.clone()));
        wanted.extend(wal.timelines.iter().flat_map(|timeline| timeline.gaps.clone()));
        wanted.extend(
            wal.windows
                .iter()
                .flat_map(|window| window.except.iter().filter_map(|except| except.why.clone()).chain(window.stopped_by.clone())),
        );
        let drills = seen.drills.as_ref().unwrap();
        wanted.extend(drills.entries.iter().map(|drill| drill.id.clone()).chain(drills.findings.clone()));
        wanted.extend(seen.keys.iter().flat_map(|key| [key.name.clone(), key.what.clone(), key.state.clone()]));
        wanted.extend(seen.disks.iter().flat_map(|disk| [disk.what.clone(), disk.path.clone()]));
        wanted.extend(
            seen.runs
                .iter()
                .flat_map(|run| run.message.iter().chain(&run.hint).chain([&run.operation, &run.id]).cloned().collect::<Vec<_>>()),
        );
        wanted.extend(seen.tasks.iter().flat_map(|task| [task.name.clone(), task.schedule.clone(), task.time_zone.clone()]));
        wanted.extend(seen.unseen.iter().flat_map(|one| [one.what.clone(), one.why.clone()]));
        assert!(wanted.len() > 80, "{}", wanted.len());
        for wanted in wanted {
            assert!(text.contains(&wanted), "{name}: {wanted} is on no page");
        }
    }
}

#[test]
fn what_is_old_is_not_called_good() {
    let status = judged(observed("well"));
    let fresh = Pages::of(status.clone(), 180).overview();
    assert!(fresh.contains("<title>✓ conductor: recoverable</title>") && read(&fresh).contains("Lost, if it happened now"));
    let mut pages = Pages::of(status, 181);
    pages.agent.trouble = Some("the store did not answer".into());
    for page in pages.all() {
        let text = read(&page);
        assert!(text.contains("What follows was seen 2024-03-15 02:14:36 UTC, 3 min 1 s ago. It need not hold any more."), "{text}");
        assert!(text.contains("last look failed the store did not answer") && page.contains("<title>✗ "), "{text}");
        assert!(!page.contains("verdict good") && !text.contains("Yes, it can be recovered"));
    }
    let text = read(&pages.overview());
    assert!(
        text.contains("Unknown: nobody has looked for 3 min 1 s")
            && text.contains("the answer was: yes.")
            && text.contains("Lost, had it happened then"),
        "{text}"
    );
}

#[test]
fn before_anything_was_seen_the_pages_say_so() {
    let now: Timestamp = "2024-03-15T02:14:36Z".parse().unwrap();
    let mut agent = agent(now);
    agent.trouble = Some("open repository: it does not exist".into());
    for page in (Pages { status: None, agent, now }).all() {
        assert!(
            page.contains("<h1>Nothing was seen yet</h1>")
                && page.contains("open repository: it does not exist")
                && page.contains("icon/none.svg")
        );
    }
}

#[test]
fn nothing_of_a_hostile_system_gets_out_of_its_text() {
    let mut pages = Pages::sample("hostile");
    let evil = pages.status.as_ref().unwrap().observed.environment.clone();
    assert!(evil.contains("<script") && evil.contains('"') && evil.contains('\u{202e}') && evil.contains('\u{1b}'));
    pages.agent.host = evil.clone();
    pages.agent.trouble = Some(evil.clone());
    pages.agent.part = Part::Standby { holder: Some(evil.clone()) };
    pages.agent.runbook_url = Some(format!("https://docs.example/{evil}"));
    let mut all = pages.all();
    all.push(page::error(400, &evil, &evil));
    for page in all {
        for tag in ["<script", "<img", "<iframe", "<object", "<base", "<form"] {
            assert!(!page.contains(tag), "{tag}");
        }
        assert_eq!((page.matches("</style>").count(), page.matches("</title>").count()), (1, 1));
        assert!(page.chars().all(|c| c == '\n' || !c.is_control()) && !page.contains(['\u{202e}', '\u{200b}']));
        // Within every tag, what is in quotes is ours: no handler, no style, and every link leads to where links may lead.
        let body = page.split("</style>").nth(1).unwrap();
        for tag in body.split('<').skip(1).filter_map(|part| part.split_once('>')).map(|(tag, _)| tag) {
            assert!(tag.matches('"').count().is_multiple_of(2), "{tag}");
            let names: String = tag.split('"').step_by(2).collect();
            assert!(!names.contains(" on") && !names.contains(" style="), "{tag}");
            if let Some(address) = tag.split("href=\"").nth(1) {
                let ours = ["./", "/", "#main", "backups", "drills", "alerts", "api/v1/", "metrics", "icon/", "https://docs.example/"];
                assert!(ours.iter().any(|start| address.starts_with(start)), "{address}");
            }
        }
        // Places that no picture has, and times that nobody measured.
        assert!(!body.contains("NaN") && !body.contains("inf%") && !body.contains("e300"), "a number that is none");
        assert!(page.len() < 600_000, "{}", page.len());
    }
    assert!(pages.overview().contains("\\u{202e}") && pages.overview().contains("&lt;script"));
    // A runbook that is a script is no link.
    pages.agent.runbook_url = Some("javascript:alert(1)//".into());
    assert!(!pages.overview().contains("javascript:alert(1)//"));
}

/// However many there are, one page has a hundred, and the overview a few.
#[test]
fn a_page_does_not_grow_with_the_number_of_backups() {
    let at: Timestamp = "2024-03-15T02:14:36Z".parse().unwrap();
    let pages = |count| Pages::of(judged(with_backups(count, at)), 31);
    let (hundred, many, most) = (pages(100), pages(10_000), pages(100_000));
    assert!(many.overview().len() < 100_000, "{}", many.overview().len());
    // Marks of the picture stand apart, so that their number has an end.
    assert!(most.overview().len() < many.overview().len() + 10_000);
    let rows = |page: &str| page.matches("scope=\"row\"").count();
    for (query, count, words) in [
        ("", 100, "1 to 100 of 10\u{202f}000"),
        ("page=100", 100, "9901 to 10000 of 10\u{202f}000"),
        ("page=18446744073709551615", 100, "9901 to 10000 of 10\u{202f}000"),
        ("page=0", 100, "1 to 100 of 10\u{202f}000"),
        ("state=unreadable", 9, "1 to 9 of 9"),
        ("state=degraded", 90, "1 to 90 of 90"),
        ("state=pinned", 0, "There is none of these."),
        ("state=usable&page=100", 91, "9901 to 9991 of 9\u{202f}991"),
    ] {
        let page = many.backups(query);
        assert_eq!(rows(&page), count, "{query}");
        assert!(read(&page).contains(words), "{query}: {:.900}", read(&page));
        assert!(page.len() < hundred.backups("").len() + 20_000, "{query}: {}", page.len());
    }
    let last = many.backups("state=degraded");
    assert!(last.contains("Degraded (90)") && !last.contains("class=\"pager\""));
    let middle = many.backups("page=7");
    for link in [
        "backups?state=all&amp;page=1\"",
        "backups?state=all&amp;page=6\"",
        "backups?state=all&amp;page=8\"",
        "backups?state=all&amp;page=100\"",
    ] {
        assert!(middle.contains(link), "{link}");
    }
}

#[test]
fn every_list_has_an_end() {
    let mut status = judged(observed("at-risk"));
    let alert = status.alerts[0].clone();
    status.alerts =
        (0..5000).map(|number| Alert { subject: format!("backup {number}"), severity: Severity::Critical, ..alert.clone() }).collect();
    status.answer.reasons = vec!["r".repeat(20_000); 300];
    let seen = &mut status.observed;
    fn grow<T: Clone>(list: &mut Vec<T>) {
        *list = list.iter().cycle().take(500).cloned().collect();
    }
    grow(&mut seen.repositories);
    grow(&mut seen.keys);
    grow(&mut seen.disks);
    grow(&mut seen.runs);
    grow(&mut seen.tasks);
    grow(&mut seen.unseen);
    let wal = seen.wal.as_mut().unwrap();
    wal.windows.iter_mut().filter(|window| !window.except.is_empty()).for_each(|window| grow(&mut window.except));
    grow(&mut wal.windows);
    grow(&mut wal.slots);
    grow(&mut wal.findings);
    wal.timelines.iter_mut().for_each(|timeline| grow(&mut timeline.gaps));
    grow(&mut wal.timelines);
    let drills = seen.drills.as_mut().unwrap();
    grow(&mut drills.entries);
    grow(&mut drills.findings);
    seen.backups.as_mut().unwrap().iter_mut().for_each(|backup| backup.pins = vec!["p".repeat(9000); 900]);
    let pages = Pages::of(status, 31);
    for (page, limit) in pages.all().iter().zip([500_000, 400_000, 250_000, 250_000]) {
        assert!(page.len() < limit, "{}", page.len());
    }
    let second = page::alerts(&pages.view(), &ListPage { page: Some(2) });
    assert!(
        second.contains("backup 100<")
            && second.contains("backup 199<")
            && !second.contains("backup 200<")
            && second.contains("Page 2 of 50")
    );
    let last = page::drills(&pages.view(), &ListPage { page: Some(5) });
    assert!(last.contains("Page 5 of 5") && !last.contains("Next"));
}

#[test]
fn colour_never_says_anything_alone() {
    for page in Pages::sample("at-risk").all().into_iter().chain(Pages::sample("well").all()) {
        for (number, badge) in page.split("class=\"badge ").skip(1).enumerate() {
            let symbol = badge.split("aria-hidden=\"true\">").nth(1).and_then(|rest| rest.split('<').next()).unwrap();
            assert!(["✓", "✗", "!", "?", "–"].contains(&symbol), "{badge:.80}");
            // The word stands in the badge, or right behind it.
            let after = read(&format!(">{}", badge.split_once("</span>").unwrap().1.chars().take(200).collect::<String>()));
            assert!(after.trim_start().chars().take(12).any(char::is_alphanumeric), "badge {number} has no word: {badge:.80}");
        }
        let outline: Vec<u32> = page.match_indices("<h").filter_map(|(at, _)| page[at + 2..].chars().next()?.to_digit(10)).collect();
        assert!(outline.windows(2).all(|pair| pair[1] <= pair[0] + 1), "{outline:?}");
        assert_eq!(outline.iter().filter(|level| **level == 1).count(), 1, "{outline:?}");
        for svg in page.split("<svg").skip(1) {
            let open = svg.split('>').next().unwrap();
            assert!(open.contains("aria-hidden=\"true\"") || (open.contains("role=\"img\"") && svg.contains("<desc")), "{open}");
        }
    }
}

#[test]
fn a_page_is_loaded_anew_only_where_that_was_asked_for() {
    let pages = Pages::sample("well");
    let with = |seconds| page::overview(&pages.view(), &Overview { refresh: seconds });
    assert!(!with(None).contains("http-equiv"));
    for (asked, content) in [(60, 60), (1, 60), (0, 60), (90, 90), (u64::MAX, 3600)] {
        assert!(with(Some(asked)).contains(&format!("<meta http-equiv=\"refresh\" content=\"{content}\">")), "{asked}");
    }
    assert!(pages.all()[1..].iter().all(|page| !page.contains("http-equiv")));
}

#[test]
fn the_picture_shows_every_hole() {
    let page = Pages::sample("at-risk").overview();
    let pictures: Vec<&str> = page.split("<figure class=\"window\">").skip(1).map(|rest| rest.split("</figure>").next().unwrap()).collect();
    assert_eq!(pictures.len(), 2, "all of it, and the last day");
    let count = |picture: &str, what: &str| picture.matches(what).count();
    assert_eq!((count(pictures[0], "class=\"hole bad\""), count(pictures[0], "class=\"hole\"")), (2, 1));
    assert_eq!((count(pictures[1], "class=\"hole bad\""), count(pictures[1], "class=\"hole\"")), (1, 0), "of the last day, one");
    assert!(pictures[0].contains("ends here") && page.contains("would be lost now: 47 min"));
    // Forty minutes in seven weeks are less than a pixel on a telephone.
    for hole in pictures[0].split("class=\"hole").skip(1) {
        let width: f64 = hole.split("width=\"").nth(1).unwrap().split('%').next().unwrap().parse().unwrap();
        assert!(width >= 0.6, "{width}");
    }
    assert!(pictures[0].contains("2 windows with 3 stretches that cannot be reached, 32 backups and 2 drills between"), "{}", pictures[0]);
    // Without a window there are the moments of backups.
    let mut seen = observed("well");
    seen.wal = None;
    let text = read(&Pages::of(judged(seen), 31).overview());
    assert!(
        text.contains("Without WAL there are only the moments of backups, from 2024-01-26 01:34:14 UTC to 2024-03-15 01:33:25 UTC."),
        "{text}"
    );
}
