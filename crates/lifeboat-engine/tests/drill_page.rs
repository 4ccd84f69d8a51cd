//! The page of a drill in a real browser: it renders, fits on a telephone, and asks nobody for anything.
//!
//! Pages stay in `target/tmp/drill-pages/` to be looked at.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lifeboat_core::drill::Report;
use lifeboat_core::drill::history::{Entry, Signature, Summary};
use lifeboat_core::repository::Sha256;
use lifeboat_engine::drill::evidence::{History, report_bytes};
use lifeboat_engine::drill::page::render;

fn sample(name: &str) -> Report {
    let path = format!("{}/../../testdata/drills/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A row of drills as it may have been, with one that failed and one that nobody signed.
fn history() -> History {
    let mut entries = Vec::new();
    for number in 1..=11u64 {
        let mut report = sample(if number == 11 { "failed" } else { "passed" });
        let started: jiff::Timestamp = "2024-02-25T02:00:00Z".parse().unwrap();
        report.started = started + jiff::SignedDuration::from_hours(24 * 91 * (number as i64 - 1));
        report.number = number;
        report.id = format!("conductor-drill-{}", report.started.strftime("%Y%m%dT%H%M%SZ"));
        let grown = 20.0 + 3.0 * number as f64 + if number == 6 { 900.0 } else { 0.0 };
        if number < 11 {
            report.rto.first_query_seconds = Some(grown);
            report.rpo.seconds = Some(if number < 4 { 40_000.0 } else { 20.0 + number as f64 });
        }
        let why = "verify drill, report.sigstore.json: trust signature: key is not configured as trusted".to_owned();
        let signature = if number == 3 { Signature::NotValid { why } } else { Signature::Valid { by: "qXm4c8l2".into() } };
        let sha256 = Some(Sha256::of(&report_bytes(&report)));
        entries.push(Entry { id: report.id.clone(), at: report.started, sha256, summary: Some(Summary::of(&report)), signature });
    }
    let findings = vec![format!("drill {}: its signature does not hold: the key is not configured as trusted", entries[2].id)];
    History { entries, older: 2, findings }
}

struct Browser {
    pages: PathBuf,
}

impl Browser {
    fn new(test: &str) -> Self {
        let pages = Path::new(env!("CARGO_TARGET_TMPDIR")).join("drill-pages").join(test);
        let _ = std::fs::remove_dir_all(&pages);
        std::fs::create_dir_all(&pages).unwrap();
        Self { pages }
    }

    fn write(&self, name: &str, page: &str) -> PathBuf {
        let path = self.pages.join(name);
        std::fs::write(&path, page).unwrap();
        path
    }

    /// The document as the browser understood it, after everything was loaded.
    fn dom(&self, page: &Path) -> String {
        // A browser that is started for one page hangs now and then, whatever the page.
        (0..3).find_map(|_| self.try_dom(page)).unwrap_or_else(|| panic!("the browser showed nothing of {}", page.display()))
    }

    fn try_dom(&self, page: &Path) -> Option<String> {
        let program = std::env::var("LIFEBOAT_TEST_CHROMIUM").ok().filter(|path| !path.is_empty()).unwrap_or_else(|| "chromium".to_owned());
        let profile = tempfile::tempdir().unwrap();
        let mut command = Command::new(&program);
        command.args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-sync",
        ]);
        command.args(["--disable-component-update", "--disable-dev-shm-usage", "--window-size=1200,2000", "--timeout=30000", "--dump-dom"]);
        command.arg(format!("--user-data-dir={}", profile.path().display())).arg(format!("file://{}", page.display()));
        // Through a file: a browser that hangs is ended, and its children may have the pipe.
        let dump = profile.path().join("dump.html");
        command.stdout(std::fs::File::create(&dump).unwrap()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("run {program}: {error}; scripts/setup installs it"));
        let end = Instant::now() + Duration::from_secs(90);
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break Some(status),
                None if Instant::now() > end => break None,
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        if status.is_none() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let text = std::fs::read_to_string(&dump).unwrap();
        (status.is_some_and(|status| status.success()) && text.contains("</html>")).then_some(text)
    }

    /// How many pixels the page is wider than a window of so many.
    fn overhang_in(&self, name: &str, page: &str, window: u32) -> u32 {
        let quoted = page.replace('&', "&amp;").replace('"', "&quot;");
        let frame = format!(
            r#"<!doctype html><html><body><iframe width="{window}" height="800" style="border:0" srcdoc="{quoted}"></iframe>
<script>addEventListener("load", () => {{ const page = document.querySelector("iframe").contentDocument.documentElement; document.title = "wider by " + (page.scrollWidth - page.clientWidth); }});</script></body></html>"#
        );
        let dom = self.dom(&self.write(name, &frame));
        let title = dom.split("<title>wider by ").nth(1).unwrap_or_else(|| panic!("nothing was measured: {dom:.300}"));
        title.split('<').next().unwrap().parse().unwrap()
    }
}

#[test]
fn a_browser_shows_the_verdict_and_every_heading() {
    let browser = Browser::new("shows");
    for name in ["passed", "failed", "gaps", "hostile"] {
        let report = sample(name);
        let page = render(&report, Sha256::of(&report_bytes(&report)), &history());
        let dom = browser.dom(&browser.write(&format!("{name}.html"), &page));
        for id in ["timeline", "checks", "controls", "scenarios", "environment", "history", "identity", "verify"] {
            assert!(dom.contains(&format!("<h2 id=\"{id}\">")), "{name}: {id}");
        }
        let verdict = if matches!(name, "failed" | "hostile") { "The drill failed" } else { "The drill passed" };
        let heading = dom.split("<h1>").nth(1).unwrap().split("</h1>").next().unwrap();
        assert!(heading.contains(verdict), "{name}: {heading}");
        // What the browser made of it is what was written: no element was opened, closed or moved by what stands in the report.
        for tag in ["table", "svg", "section", "rect", "li", "td"] {
            let count = |text: &str| text.matches(&format!("<{tag}")).count();
            assert_eq!(count(&dom), count(&page), "{name}: {tag}");
        }
        assert!(!dom.contains("<script") && !dom.contains("<img"), "{name}");
    }
}

#[test]
fn it_fits_on_a_telephone() {
    let browser = Browser::new("fits");
    for name in ["passed", "failed", "hostile"] {
        let report = sample(name);
        let page = render(&report, Sha256::of(&report_bytes(&report)), &history());
        for window in [320, 390, 1200] {
            assert_eq!(browser.overhang_in(&format!("{name}-{window}.html"), &page, window), 0, "{name} at {window}");
        }
    }
    // And it would show if it did not.
    let report = sample("passed");
    let wide = render(&report, Sha256([0; 32]), &history()).replace("<main>", "<main><svg width=\"800\" height=\"9\"></svg>");
    assert!(browser.overhang_in("wide.html", &wide, 390) >= 390);
}

#[test]
fn it_asks_nobody_for_anything() {
    let browser = Browser::new("asks");
    // Hangs up on everybody, and counts them: a browser that waits for an answer waits for long.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let heard = Arc::new(AtomicUsize::new(0));
    let counted = heard.clone();
    std::thread::spawn(move || listener.incoming().for_each(|_| _ = counted.fetch_add(1, Ordering::SeqCst)));
    let asked = || heard.load(Ordering::SeqCst);
    let picture = format!("<img src=\"http://{address}/x.png\"><link rel=\"stylesheet\" href=\"http://{address}/x.css\">");
    let mut report = sample("passed");
    report.host = picture.clone();
    report.checks[0].findings =
        vec![format!("\"{picture}"), format!("</li></ul>{picture}"), format!("<script src=\"http://{address}/x.js\">")];
    let page = render(&report, Sha256([0; 32]), &history());
    browser.dom(&browser.write("escaped.html", &page));
    assert_eq!(asked(), 0, "what stands in the report is text");
    // Even if something got through, the policy of the page forbids it.
    let pierced = page.replace("<main>", &format!("<main>{picture}<script src=\"http://{address}/x.js\"></script>"));
    assert!(pierced.len() > page.len());
    browser.dom(&browser.write("pierced.html", &pierced));
    assert_eq!(asked(), 0, "the policy holds");
    // And that somebody asks would be noticed.
    let open = pierced.replacen("http-equiv=\"Content-Security-Policy\"", "name=\"nothing\"", 1);
    browser.dom(&browser.write("open.html", &open));
    assert!(asked() > 0, "this listener hears who asks");
}
