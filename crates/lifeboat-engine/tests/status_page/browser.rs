//! The pages in a real browser: on a telephone and on a screen, by day and by night, with a keyboard, and for those who do not see them.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use jiff::{SignedDuration, Timestamp};
use lifeboat_core::status::Status;
use lifeboat_engine::web::page::{self, View};
use serde::{Deserialize, Serialize};

use crate::samples::{DRILL, Shown, agent, judged, observed, observed_at, with_backups};

/// What the browser is to look at (`browse.cjs`).
#[derive(Debug, Clone, Serialize)]
struct Look {
    url: String,
    width: u32,
    /// Of the window; 0: as a telephone or a screen has it.
    height: u32,
    scheme: &'static str,
    javascript: bool,
    keyboard: bool,
    check: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    screenshot: Option<PathBuf>,
    /// Of the picture, only what the window shows.
    window: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pierce: Option<String>,
    lawless: bool,
}

impl Look {
    fn at(url: String) -> Self {
        Self {
            url,
            width: 1280,
            height: 0,
            scheme: "light",
            javascript: true,
            keyboard: false,
            check: false,
            screenshot: None,
            window: false,
            pierce: None,
            lawless: false,
        }
    }
}

/// What it saw.
#[derive(Debug, Deserialize)]
struct Saw {
    status: u16,
    title: String,
    text: String,
    headings: Vec<String>,
    elements: BTreeMap<String, u64>,
    overhang: u32,
    wide: Vec<String>,
    ground: String,
    console: Vec<String>,
    requests: Vec<String>,
    violations: Vec<String>,
    focusable: usize,
    stops: Vec<Stop>,
}

/// Where the Tab key led.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stop {
    what: String,
    shows: bool,
    in_window: bool,
}

fn browse(looks: &[Look]) -> Vec<Saw> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let modules = set("LIFEBOAT_TEST_BROWSER_MODULES")
        .expect("LIFEBOAT_TEST_BROWSER_MODULES is not set: run scripts/setup test, and load .tools/env");
    let node = set("LIFEBOAT_TEST_NODE").unwrap_or_else(|| "node".into());
    let chromium = set("LIFEBOAT_TEST_CHROMIUM").unwrap_or_else(|| "/usr/bin/chromium".into());
    let mut child = Command::new(node)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/status_page/browse.cjs"))
        .arg(chromium)
        .env("LIFEBOAT_TEST_BROWSER_MODULES", modules)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&serde_json::to_vec(looks).unwrap()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let seen: Vec<Saw> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(seen.len(), looks.len());
    seen
}

fn pictures() -> PathBuf {
    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR")).join("status-page");
    std::fs::create_dir_all(&pictures).unwrap();
    pictures
}

/// States of a system that a page has to be good in.
fn states() -> Vec<(&'static str, Arc<Shown>)> {
    let now = Timestamp::now();
    let just = now - SignedDuration::from_secs(3);
    let stale = Shown::new(Some(judged(observed_at("well", now - SignedDuration::from_mins(200)))));
    stale.agent.lock().unwrap().trouble =
        Some("open repository s3://conductor-backups: the store did not answer within 30 s, 8 tries".into());
    let lost = {
        let mut observed = observed_at("at-risk", just);
        observed.backups = Some(Vec::new());
        observed.wal = None;
        observed.drills.as_mut().unwrap().entries.clear();
        Shown::new(Some(judged(observed)))
    };
    let standby = Shown::sample("well");
    standby.agent.lock().unwrap().part = lifeboat_engine::web::Part::Standby { holder: Some("db2, process 412".into()) };
    standby.agent.lock().unwrap().runbook_url = Some("https://docs.example.org/alerts.html".into());
    vec![
        ("well", Shown::sample("well")),
        ("nothing", Shown::new(None)),
        ("stale", stale),
        ("lost", lost),
        ("at-risk", Shown::sample("at-risk")),
        ("hostile", Shown::sample("hostile")),
        ("many", Shown::new(Some(judged(with_backups(10_000, just))))),
        ("standby", standby),
    ]
}

/// Pages of a state that are looked at: those that say something else than in the others.
fn paths(state: &str) -> &'static [&'static str] {
    match state {
        "well" => &["/", "/backups", "/drills", "/alerts", "/nowhere"],
        "at-risk" | "hostile" => &["/", "/backups", "/drills", "/alerts"],
        "many" => &["/", "/backups", "/backups?state=degraded&page=2"],
        _ => &["/"],
    }
}

/// A telephone by night and a screen by day, and for what is looked at most, also the other way around.
fn windows(state: &str, path: &str) -> &'static [(u32, &'static str)] {
    match (state, path) {
        ("well" | "at-risk", "/") => &[(360, "dark"), (1280, "light"), (360, "light"), (1280, "dark")],
        _ => &[(360, "dark"), (1280, "light")],
    }
}

fn name_of(path: &str) -> String {
    match path.trim_matches('/') {
        "" => "overview".into(),
        other => other.replace(|c: char| !c.is_ascii_alphanumeric(), "-"),
    }
}

#[test]
fn everybody_can_read_every_page_of_a_system_that_is_well_or_was_not_seen() {
    let seen = everybody_can_read(&["well", "nothing", "stale", "standby"]);
    assert_eq!(seen["well-overview-1280-light"].title, "✓ conductor: recoverable");
    assert_eq!(seen["stale-overview-1280-light"].title, "✗ conductor: not seen");
    assert!(seen["stale-overview-360-dark"].text.contains("Unknown: nobody has looked for 3 h 2"));
    assert!(seen["nothing-overview-360-dark"].text.contains("Nothing was seen yet"));
    assert!(seen["standby-overview-360-dark"].text.contains("db2, process 412 holds the lease"));
}

#[test]
fn everybody_can_read_every_page_of_a_system_in_trouble() {
    let seen = everybody_can_read(&["at-risk", "lost"]);
    assert!(seen["lost-overview-360-dark"].text.contains("No, there is nothing to recover from"));
}

#[test]
fn everybody_can_read_what_a_hostile_system_is_called() {
    let seen = everybody_can_read(&["hostile"]);
    assert!(seen["hostile-overview-360-dark"].text.contains("\\u{202e}"));
}

#[test]
fn everybody_can_read_about_ten_thousand_backups() {
    let seen = everybody_can_read(&["many"]);
    assert!(seen["many-backups-1280-light"].text.contains("Page 1 of 100"));
}

/// Looks at the pages of these states in every window and at every time of day, and gives what was seen of each, by its name.
fn everybody_can_read(wanted: &[&str]) -> BTreeMap<String, Saw> {
    let pictures = pictures();
    let (mut looks, mut names, mut servers) = (Vec::new(), Vec::new(), Vec::new());
    for (state, shown) in states().into_iter().filter(|(state, _)| wanted.contains(state)) {
        let server = shown.serve();
        for path in paths(state) {
            for &(width, scheme) in windows(state, path) {
                let name = format!("{state}-{}-{width}-{scheme}", name_of(path));
                let keyboard = width == 1280 && scheme == "light" && matches!(state, "well" | "at-risk") && *path != "/nowhere";
                looks.push(Look {
                    width,
                    scheme,
                    keyboard,
                    check: true,
                    screenshot: Some(pictures.join(format!("{name}.png"))),
                    ..Look::at(format!("http://{}{path}", server.address()))
                });
                names.push(name);
            }
        }
        servers.push(server);
    }
    let seen = browse(&looks);
    for ((name, look), saw) in names.iter().zip(&looks).zip(&seen) {
        let expected = if look.url.ends_with("/nowhere") { 404 } else { 200 };
        assert_eq!(saw.status, expected, "{name}");
        // The answer 404 is told to the console, and is what was asked for.
        let said: Vec<&String> = saw.console.iter().filter(|line| !(expected == 404 && line.contains("404"))).collect();
        assert!(said.is_empty(), "{name}: {said:?}");
        assert_eq!(saw.overhang, 0, "{name} is wider than its window: {:?}", saw.wide);
        assert!(saw.violations.is_empty(), "{name}: {:#?}", saw.violations);
        let server = look.url.split('/').take(3).collect::<Vec<_>>().join("/");
        assert!(saw.requests.iter().all(|url| url.starts_with(&server)), "{name}: {:?}", saw.requests);
        assert!(saw.requests.len() <= 2, "{name}: a page and its icon: {:?}", saw.requests);
        assert_eq!(saw.headings.iter().filter(|heading| *heading == "h1").count(), 1, "{name}");
        assert!(!saw.elements.contains_key("script") && !saw.elements.contains_key("img"), "{name}: {:?}", saw.elements);
        let dark = saw.ground != "rgb(255, 255, 255)";
        assert_eq!(dark, look.scheme == "dark", "{name}: {}", saw.ground);
        if look.keyboard {
            assert_eq!(saw.stops.len(), saw.focusable, "{name}");
            let mut reached: Vec<&str> = saw.stops.iter().map(|stop| stop.what.as_str()).collect();
            for stop in &saw.stops {
                assert!(stop.shows && stop.in_window, "{name}: {stop:?}");
            }
            assert!(reached[0].contains("Skip"), "{name}: {}", reached[0]);
            let all = reached.len();
            reached.sort_unstable();
            reached.dedup();
            assert!(all - reached.len() < all / 2, "{name}: the key goes around in a part of the page");
        }
    }
    names.into_iter().zip(seen).collect()
}

/// The checker, the measure and the listener of the test above would say so if something were wrong.
#[test]
fn what_is_wrong_would_be_seen() {
    let server = Shown::sample("well").serve();
    let url = format!("http://{}/", server.address());
    let wrong = Look {
        width: 360,
        check: true,
        pierce: Some("<p style=\"width:900px\" class=\"x\">wide</p><svg width=\"900\" height=\"2\" style=\"max-width:none\"></svg><h5>x</h5><a href=\"x\"></a>".into()),
        lawless: true,
        ..Look::at(url)
    };
    let [saw] = &browse(&[wrong])[..] else { panic!("one page was looked at") };
    assert!(saw.overhang > 500, "{saw:?}");
    assert!(saw.violations.iter().any(|one| one.starts_with("link-name")), "{:?}", saw.violations);
}

#[test]
fn without_javascript_nothing_is_missing() {
    let shown = Shown::sample("at-risk");
    let server = shown.serve();
    let looks: Vec<Look> = [true, false]
        .into_iter()
        .flat_map(|javascript| {
            ["/", "/backups", "/drills", "/alerts"]
                .map(|path| Look { javascript, ..Look::at(format!("http://{}{path}", server.address())) })
        })
        .collect();
    let seen = browse(&looks);
    let (with, without) = seen.split_at(4);
    for (with, without) in with.iter().zip(without) {
        assert_eq!(with.elements, without.elements);
        assert!(without.text.len() > 500 && without.text.lines().count() == with.text.lines().count());
    }
}

/// What is shown is text, and even if it were not, the policy forbids it to reach anybody.
#[test]
fn no_page_asks_anybody_else_for_anything() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let elsewhere = listener.local_addr().unwrap();
    let heard = Arc::new(AtomicUsize::new(0));
    let counted = heard.clone();
    std::thread::spawn(move || listener.incoming().for_each(|_| _ = counted.fetch_add(1, Ordering::SeqCst)));
    let evil = format!(
        "<img src=\"http://{elsewhere}/x.png\"><link rel=\"stylesheet\" href=\"http://{elsewhere}/x.css\"><script src=\"http://{elsewhere}/x.js\"></script><script>fetch('http://{elsewhere}/')</script>"
    );
    let mut observed = observed_at("well", Timestamp::now());
    observed.name = evil.clone();
    observed.repositories[0].url = format!("\">{evil}");
    observed.backups.as_mut().unwrap()[0].problem = Some(format!("</td></table></main>{evil}"));
    let server = Shown::new(Some(judged(observed))).serve();
    let url = format!("http://{}/", server.address());
    browse(&[Look::at(url.clone())]);
    assert_eq!(heard.load(Ordering::SeqCst), 0, "what was seen is text");
    let pierced = Look { pierce: Some(evil), ..Look::at(url) };
    let saw = browse(std::slice::from_ref(&pierced));
    assert!(saw[0].elements.contains_key("script"), "{:?}", saw[0].elements);
    assert_eq!(heard.load(Ordering::SeqCst), 0, "the policy holds");
    browse(&[Look { lawless: true, ..pierced }]);
    assert!(heard.load(Ordering::SeqCst) > 0, "this listener hears who asks");
}

#[test]
fn the_report_of_a_drill_is_shown_as_it_was_stored() {
    let server = Shown::sample("well").serve();
    // In its sandbox nothing runs, axe-core neither.
    let looks = [360, 1280].map(|width| Look { width, ..Look::at(format!("http://{}/drills/{DRILL}", server.address())) });
    for saw in browse(&looks) {
        assert_eq!((saw.status, saw.overhang), (200, 0));
        assert!(saw.text.contains("The drill passed") && saw.elements.contains_key("svg"));
        // Its style is its own, and it has one.
        assert!(saw.console.is_empty(), "{:?}", saw.console);
    }
}

/// The picture in the documentation, as of the night of the sample. `LIFEBOAT_TEST_PICTURES=write` puts a new one there.
#[test]
fn there_is_a_picture_of_it() {
    let status: Status = judged(observed("well"));
    let now = status.observed.at + SignedDuration::from_secs(31);
    let agent = agent(now - SignedDuration::from_hours(411));
    let page = page::overview(&View { status: Some(&status), agent: &agent, now }, &page::Overview::default());
    let file = pictures().join("picture.html");
    std::fs::write(&file, page).unwrap();
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/pictures/status-page.png");
    let write = std::env::var("LIFEBOAT_TEST_PICTURES").is_ok_and(|value| value == "write");
    let target = if write { docs.clone() } else { pictures().join("picture.png") };
    let look = Look {
        screenshot: Some(target.clone()),
        window: true,
        width: 1100,
        height: 1060,
        ..Look::at(format!("file://{}", file.display()))
    };
    browse(&[look]);
    assert!(docs.is_file());
    // Fonts differ between machines, sizes do not.
    let size = |path: &Path| std::fs::read(path).unwrap()[16..24].to_vec();
    assert_eq!(size(&docs), size(&target));
}
