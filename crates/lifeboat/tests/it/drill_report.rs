//! What a drill left is shown only when somebody stands for it. The reports here are not of real drills.

use std::fs;
use std::path::PathBuf;

use lifeboat_core::drill::Report;
use lifeboat_core::repository::Sha256;
use lifeboat_engine::drill::evidence::{self, History};
use lifeboat_engine::drill::page;
use lifeboat_engine::repository::Repository;
use lifeboat_engine::signing::KeyFileSigner;
use tempfile::TempDir;

use crate::cluster::temp_dir;
use crate::program::Program;

struct Place {
    home: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { home: temp_dir() };
        let init = Program::new(&place.home).arg("--repository").arg(place.path("repository"));
        init.args(["init", "--write-config", "lifeboat.toml", "--name", "conductor"]).run().success();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn lifeboat(&self, arguments: &[&str]) -> Program {
        Program::new(&self.home).args(["--config", "lifeboat.toml"]).args(arguments)
    }

    /// Stores a sample as the next drill, as a drill does.
    fn drill(&self, sample: &str, previous: Option<Sha256>, number: u64) -> (String, Sha256) {
        let url = format!("file://{}", self.path("repository").display());
        let repository = Repository::open(lifeboat_engine::store::open(&url, &Default::default(), false).unwrap()).unwrap();
        let keys = self.path(".config/lifeboat");
        let password = fs::read_to_string(keys.join("signing.password")).unwrap();
        let signer = KeyFileSigner::open(&fs::read_to_string(keys.join("signing.key")).unwrap(), password.trim_end().as_bytes()).unwrap();
        let text = fs::read(format!("{}/../../testdata/drills/{sample}.json", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let report: Report = serde_json::from_slice(&text).unwrap();
        let report = Report { repository: repository.descriptor().repository, previous, number, ..report };
        let digest = Sha256::of(&evidence::report_bytes(&report));
        let nothing = History { entries: Vec::new(), older: 0, findings: Vec::new() };
        let stored = evidence::store(&repository, &report, &page::render(&report, digest, &nothing), &signer).unwrap();
        (stored.id, stored.report)
    }
}

#[test]
fn drills_are_listed_and_shown_with_who_stands_for_them() {
    let place = Place::new();
    let none = place.lifeboat(&["drill", "show"]).run().expect_code(1);
    assert!(none.stderr.contains("there is none"), "{none}");
    let (gaps, first) = place.drill("gaps", None, 1);
    let (failed, second) = place.drill("failed", Some(first), 2);
    let (passed, _) = place.drill("passed", Some(second), 3);

    let listed = place.lifeboat(&["drill", "list"]).run().success();
    let lines: Vec<&str> = listed.stdout.lines().skip(1).collect();
    for (line, (id, verdict, times)) in lines.iter().zip([
        (&passed, "passed", ["34 s", "27 s"]),
        (&failed, "failed", ["5 h 30 min", "30 h"]),
        (&gaps, "passed, but not everything was checked", ["34 s", "27 s"]),
    ]) {
        assert!(line.starts_with(id.as_str()) && line.contains(verdict) && line.ends_with("valid"), "{line}");
        assert!(times.iter().all(|time| line.contains(time)), "{line}");
    }
    let json = place.lifeboat(&["drill", "list", "--json", "--limit", "2"]).run().success().json();
    assert_eq!((json["drills"].as_array().unwrap().len(), json["older"].as_u64()), (2, Some(1)));

    let shown = place.lifeboat(&["drill", "show"]).run().success();
    assert!(
        shown.stdout.contains(&passed) && shown.stdout.contains("PASSED") && shown.stdout.contains("after 34 s (objective 4 h: met)"),
        "{shown}"
    );
    // A failed drill is shown like any other; what it came to stands in it.
    let shown = place.lifeboat(&["drill", "show", &failed]).run().success();
    for wanted in ["FAILED", "NOT NOTICED", "objective 4 h: MISSED", "public.orders: the rows are others", "The check truth failed"] {
        assert!(shown.stdout.contains(wanted), "{wanted}: {shown}");
    }
    let json = place.lifeboat(&["drill", "show", &failed, "--json"]).run().success().json();
    assert_eq!((json["exit_code"].as_u64(), json["report"]["verdict"].as_str()), (Some(21), Some("failed")));
    assert!(json["signature"]["bundle"]["dsseEnvelope"]["payload"].is_string());

    place.lifeboat(&["drill", "show", "--html", "page.html"]).run().success();
    let page = fs::read(place.path("page.html")).unwrap();
    assert_eq!(page, fs::read(place.path("repository/drills").join(&passed).join("report.html")).unwrap());
    place.lifeboat(&["drill", "show", "--html", "page.html"]).run().expect_code(1);
    assert!(place.lifeboat(&["drill", "show", "yesterday"]).run().expect_code(2).stderr.contains("drill id"));
    place.lifeboat(&["drill", "show", "conductor-drill-20200101T000000Z"]).run().expect_code(1);
}

#[test]
fn what_nobody_stands_for_is_never_shown_as_passed() {
    let place = Place::new();
    let (failed, first) = place.drill("failed", None, 1);
    let (passed, _) = place.drill("passed", Some(first), 2);
    let object = |id: &str, name: &str| place.path("repository/drills").join(id).join(name);
    let replace = |id: &str, name: &str, bytes: &[u8]| {
        fs::remove_file(object(id, name)).unwrap();
        fs::write(object(id, name), bytes).unwrap();
    };
    let report = fs::read_to_string(object(&failed, "report.json")).unwrap();
    replace(&failed, "report.json", report.replacen("\"verdict\": \"failed\"", "\"verdict\": \"passed\"", 1).as_bytes());
    let refused = place.lifeboat(&["drill", "show", &failed]).run().expect_code(21);
    assert!(refused.stderr.contains("hint: ") && refused.stdout.is_empty(), "{refused}");
    let listed = place.lifeboat(&["drill", "list"]).run().expect_code(3);
    let line = listed.stdout.lines().find(|line| line.starts_with(&failed)).unwrap();
    assert!(line.contains("not proven") && line.ends_with("not valid"), "{line}");
    // A page that was exchanged is not handed out.
    replace(&passed, "report.html", b"<h1>all is well</h1>");
    place.lifeboat(&["drill", "show", "--html", "page.html"]).run().expect_code(21);
    assert!(!place.path("page.html").exists());
    // Without a signature there is no report, also where it is the newest.
    fs::remove_file(object(&passed, "report.sigstore.json")).unwrap();
    place.lifeboat(&["drill", "show"]).run().expect_code(21);
    let listed = place.lifeboat(&["drill", "list", "--json"]).run().expect_code(3).json();
    assert!(listed["drills"].as_array().unwrap().iter().all(|drill| drill["signature"]["state"] == "not-valid"), "{listed:#}");
}

#[test]
fn nothing_in_a_report_acts_on_a_terminal() {
    let place = Place::new();
    let (id, _) = place.drill("hostile", None, 1);
    for arguments in [vec!["drill", "show", &id], vec!["drill", "list"]] {
        let shown = place.lifeboat(&arguments).run().success();
        assert!(shown.stdout.chars().all(|c| c == '\n' || !c.is_control()) && !shown.stdout.contains('\u{202e}'), "{shown}");
    }
}
