//! A policy that cannot be used says where and why, and denies everything.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use lifeboat_core::policy::Code;
use lifeboat_engine::policy::{Engines, LoadError, OpaSettings, Policy, PolicySettings, SHIPPED, Sources};
use zeroize::Zeroizing;

use crate::facts::{Dice, facts};
use crate::{embedded, remote};

const YES: &str = "package lifeboat\ndecision := {\"allow\": true}\n";

fn files(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    directory
}

/// Loads it, sees that it denies, and gives the line that says why.
#[track_caller]
fn trouble(settings: &PolicySettings, code: Code) -> String {
    let policy = Policy::open(settings);
    let trouble = policy.trouble().expect("cannot be used").clone();
    assert_eq!(trouble.code(), code, "{trouble}");
    let decided = policy.decide(&facts(&mut Dice(7)));
    assert!(!decided.decision.allow && decided.code == code, "{decided:?}");
    let line = trouble.to_string();
    assert!(!line.contains('\n') && decided.decision.reasons.len() == 1, "{line}");
    line
}

#[test]
fn what_is_not_there_is_no_policy() {
    let directory = files(&[("readme.md", "x"), ("empty/.keep", ""), ("data.json", "{}"), (".hidden.rego", YES)]);
    for path in ["nothing", "nothing.rego", "empty", "readme.md", "."] {
        let line = trouble(&embedded(&directory.path().join(path)), Code::NoPolicy);
        assert!(line.contains(directory.path().to_str().unwrap()), "{line}");
    }
    trouble(&PolicySettings { engines: Engines::Opa, ..PolicySettings::default() }, Code::NoPolicy);
}

#[test]
fn a_pipe_is_no_policy_and_nobody_waits_for_what_comes_out_of_it() {
    let directory = files(&[("one/other.rego", YES)]);
    for name in ["pipe.rego", "one/pipe.rego"] {
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, directory.path().join(name), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    }
    for path in ["pipe.rego", "one"] {
        let place = directory.path().join(path);
        let (sender, said) = std::sync::mpsc::channel();
        // On a thread of its own: an open that waits for a writer cannot be ended.
        std::thread::spawn(move || sender.send(trouble(&embedded(&place), Code::Broken)));
        let line = said.recv_timeout(std::time::Duration::from_secs(60)).expect("it does not wait, or says something else");
        assert!(line.contains("pipe.rego") && line.contains("no regular file"), "{line}");
    }
}

#[test]
fn mistakes_are_named_with_file_and_line() {
    for (text, expected) in [
        ("package lifeboat\n\ndecision := {\"allow\": }\n", "policy.rego:3:"),
        ("package lifeboat\n\nallow { input.x }\n", "policy.rego:3:"),
        ("package lifeboat\nallow := true\n", "no rule data.lifeboat.decision"),
        ("package other\ndecision := {\"allow\": true}\n", "no rule data.lifeboat.decision"),
        ("package lifeboat\ndecision := {\"allow\": true} if\n\thttp.send({\"url\": \"x\"}).ok\n", "policy.rego:3: http.send is not given"),
        (
            "package lifeboat\ndecision := {\"allow\": time.now_ns() > 1}\n",
            "policy.rego:2: time.now_ns is not given to policies: the time is a fact",
        ),
        (
            "package lifeboat\ndecision := {\"allow\": crypto.sha256(\"x\") == \"\"}\n",
            "policy.rego:2: crypto.sha256 is not given to policies: signatures are",
        ),
        ("package lifeboat\ndecision := {\"allow\": io.jwt.decode(\"x\")[0] == \"\"}\n", "policy.rego:2: io.jwt.decode is not given"),
        ("package lifeboat\ndecision := {\"allow\": allowed(1)}\n", "policy.rego:2: there is no function allowed"),
        ("package lifeboat\nimport data.other\ndecision := {\"allow\": other.f(1)}\n", "policy.rego:3: there is no function other.f"),
        (
            "package lifeboat\nf(x) := x\ndecision := {\"allow\": x} if x := f(1) with f as time.now_ns\n",
            "policy.rego:3: with is for tests",
        ),
        (
            "package lifeboat\ndecision := {\"allow\": count(numbers.range(1, 1000000000)) > 1}\n",
            "policy.rego:2: numbers.range is not given",
        ),
    ] {
        let directory = files(&[("policy.rego", text)]);
        let line = trouble(&embedded(directory.path()), Code::Broken);
        assert!(line.contains(expected), "{line} has no {expected}");
    }
    // However deep it is nested, and whatever bytes it has.
    for text in [
        format!("package lifeboat\ndecision := {}1{}\n", "(".repeat(100_000), ")".repeat(100_000)),
        format!("package lifeboat\ndecision := {}1{}\n", "[\n".repeat(15_000), "]".repeat(100)),
        format!("package lifeboat\ndecision := x{}\n", ".a\n".repeat(100_000)),
        format!("package lifeboat\ndecision := x{}\n", ".a".repeat(400)),
        format!("package lifeboat\ndecision := x{}\n", "[0]".repeat(400)),
        format!("package lifeboat\ndecision := 1{}\n", " +\n1".repeat(100_000)),
        format!("package lifeboat\ndecision := 1{}\n", "\n- 1".repeat(100_000)),
        format!("package lifeboat\ndecision := {{1}}{}\n", " | a.b".repeat(100_000)),
        "package lifeboat\ndecision := \"\\".to_owned(),
        "package lifeboat\ndecision := `".to_owned(),
        "\u{feff}package".to_owned(),
        "x".repeat((1 << 20) + 1),
    ] {
        let directory = files(&[("policy.rego", &text)]);
        trouble(&embedded(directory.path()), Code::Broken);
    }
    // What is long, and not too long, is evaluated.
    for text in [format!("{{\"allow\": 0{} == 190}}", " + 1".repeat(190)), format!("{{\"allow\": input{} == 1}}", ".a".repeat(190))] {
        let directory = files(&[("policy.rego", &format!("package lifeboat\ndecision := {text}\n"))]);
        let policy = Policy::open(&embedded(directory.path()));
        assert_eq!(policy.trouble(), None);
        policy.decide(&facts(&mut Dice(7)));
    }
    let directory = files(&[]);
    std::fs::write(directory.path().join("policy.rego"), [0xff, 0xfe]).unwrap();
    assert!(trouble(&embedded(directory.path()), Code::Broken).contains("UTF-8"));
}

#[test]
fn a_builtin_that_is_withheld_fails_however_it_is_called() {
    for call in ["time[\"now_ns\"]()", "rand[\"intn\"](\"x\", 2)", "opa[\"runtime\"]()"] {
        let text = format!("package lifeboat\ndecision := {{\"allow\": {call} != \"\"}}\n");
        let directory = files(&[("policy.rego", &text)]);
        let decided = Policy::open(&embedded(directory.path())).decide(&facts(&mut Dice(7)));
        assert!(!decided.decision.allow && matches!(decided.code, Code::Error | Code::Broken), "{call}: {decided:?}");
    }
}

/// The evaluator would answer with the rules of the first file alone, and `not` would make that a yes.
#[test]
fn a_package_in_several_files_is_one() {
    let team = ("tc.rego", "package team\nimport data.words as w\nbanned if bad\nbad if input.host == w.bad\n");
    let parts = [
        ("l.rego", "package lifeboat\nimport data.team\ndefault allow := false\nallow if not team.banned\n"),
        ("m.rego", "package lifeboat\n\n# The rest.\ndecision := {\"allow\": allow}\n"),
        ("ta.rego", "package team\nimport data.words as w\nx := w.good\n"),
        team,
        ("words.rego", "package words\ngood := \"db1\"\nbad := \"evil\"\n"),
    ];
    let directory = files(&parts);
    let opa = crate::server::Opa::start(&[directory.path()]);
    let policies = [Policy::open(&embedded(directory.path())), Policy::open(&remote(&opa.url))];
    for policy in &policies {
        assert_eq!(policy.trouble(), None);
        for (host, allowed) in [("evil", false), ("db1", true)] {
            let facts = lifeboat_core::policy::Facts { host: host.into(), ..facts(&mut Dice(7)) };
            assert_eq!(policy.decide(&facts).decision.allow, allowed, "{policy:?}");
        }
    }
    for (name, text, expected) in [
        ("tc.rego", "package team\n\n\nx := to_number(\"x\")\nbanned := nothing\n", "tc.rego:4:17: could not parse"),
        ("tc.rego", "package team\n\n\n\nbanned := nothing\n", "tc.rego:5:11: var nothing is unsafe"),
        ("tc.rego", "package team\nimport data.other as w\nbanned := w.x\n", "w is something else in another file"),
        ("tc.rego", "package team\nw := 1\nbanned := w\n", "w is something else in another file"),
        ("tc.rego", "package team.sub\nbanned := true\n", "stands inside package data.team"),
        ("tc.rego", "package team\nbanned if {\n", "tc.rego:"),
        ("m.rego", "package lifeboat\ndecision := {\"allow\": true} if data.words.x with input as {}\n", "m.rego:2: with is for tests"),
        ("m.rego", "package lifeboat\ndecision := {\"allow\": data[\"x\"]}\n", "m.rego:2: data alone is not given"),
    ] {
        let directory = files(&parts);
        std::fs::write(directory.path().join(name), text).unwrap();
        let policy = Policy::open(&embedded(directory.path()));
        // What is found only when it is evaluated is said with its place too.
        let line = policy.decide(&facts(&mut Dice(7))).decision.reasons.join("; ");
        assert!(line.contains(expected), "{line} has no {expected}");
    }
}

#[test]
fn a_directory_is_read_as_opa_reads_it() {
    let uses =
        "package lifeboat\nimport data.team\ndecision := {\"allow\": data.staff.list[0] == \"ada\", \"reasons\": [team.word(data.top)]}\n";
    let parts = [
        ("a.rego", uses),
        ("below/team.rego", "package team\nword(x) := concat(\"\", [\"top is \", x])\n"),
        ("data.json", "{\"top\": \"here\"}"),
        ("staff/data.json", "{\"list\": [\"ada\"]}"),
        ("a_test.rego", "package broken {"),
    ];
    let directory = files(&parts);
    let here = Policy::open(&embedded(directory.path()));
    let decided = here.decide(&facts(&mut Dice(7)));
    assert!(decided.decision.allow && decided.decision.reasons == ["top is here"], "tests are not loaded to decide: {decided:?}");
    let opa = crate::server::Opa::start(&[files(&parts[..4]).path()]);
    assert_eq!(Policy::open(&remote(&opa.url)).decide(&facts(&mut Dice(7))).decision, decided.decision);

    // Its digest is of what decides, and of nothing else.
    let digest = |files: &tempfile::TempDir| Sources::read(files.path()).unwrap().digest().to_owned();
    assert_eq!(decided.policy, digest(&directory));
    assert_eq!(digest(&files(&parts[..4])), digest(&directory));
    let mut other = parts;
    other[2].1 = "{\"top\": \"there\"}";
    assert_ne!(digest(&files(&other)), digest(&directory));
    other[2].0 = "below/data.json";
    assert_ne!(digest(&files(&other)), digest(&directory));

    for (name, text, expected) in [
        ("data.yaml", "top: 1", "data.yaml: data is read from data.json only"),
        ("data.json", "[1]", "has to be an object"),
        ("data.json", "{", "EOF"),
        ("staff/list/data.json", "{\"x\": 1}", "has a value in another data.json already"),
        ("lifeboat/data.json", "{\"settings\": 1}", "where a package is"),
    ] {
        let directory = files(&parts);
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        let line = trouble(&embedded(directory.path()), Code::Broken);
        assert!(line.contains(expected), "{line} has no {expected}");
    }
}

#[test]
fn a_file_is_read_alone_and_with_its_tests() {
    let directory = files(&[("a.rego", YES), ("a_test.rego", "package t\ntest_x if true\n"), ("b.rego", "package lifeboat\nbroken {")]);
    let path = directory.path().join("a.rego");
    let sources = Sources::read(&path).unwrap();
    assert_eq!(sources.files().len(), 2);
    assert!(Policy::open(&embedded(&path)).decide(&facts(&mut Dice(7))).decision.allow);
    let twice = Sources::read_all([path.as_path(), path.as_path()]);
    assert!(matches!(twice, Err(LoadError::Broken(_))), "{twice:?}");
}

#[test]
fn a_policy_that_everybody_can_change_is_told() {
    let directory = files(&[("policy.rego", SHIPPED)]);
    let path = directory.path().join("policy.rego");
    let warnings = |path: &Path| Policy::open(&embedded(path)).warnings().to_vec();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(warnings(&path).is_empty() && warnings(directory.path()).is_empty());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    assert!(warnings(directory.path())[0].contains("policy.rego can be changed by everybody"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(warnings(directory.path()).len(), 1);
    assert!(Policy::open(&PolicySettings::default()).warnings().is_empty());
}

#[test]
fn an_address_of_opa_is_looked_at_before_it_is_asked() {
    let with = |url: &str, token: bool| {
        let mut settings = remote(url);
        settings.opa = settings.opa.map(|opa| OpaSettings { token: token.then(|| Zeroizing::new("hunter2".to_owned())), ..opa });
        settings
    };
    for url in
        ["", "localhost:8181", "ftp://localhost", "http://", "unix:/run/opa", "http://ada:hunter2@localhost", "http://localhost?x=hunter2"]
    {
        let line = trouble(&with(url, false), Code::Broken);
        assert!(line.contains("policy.opa_url") && !line.contains("hunter2"), "{line}");
    }
    assert!(trouble(&with("http://opa.example.org:8181", true), Code::Broken).contains("use https"));
    for url in ["http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1", "https://opa.example.org"] {
        let policy = Policy::open(&with(url, true));
        assert!(policy.trouble().is_none() && policy.warnings().is_empty(), "{policy:?}");
    }
    assert!(Policy::open(&with("http://opa.example.org", false)).warnings()[0].contains("use https"));
    let policy = Policy::open(&with("https://opa.example.org/prefix/", false));
    assert_eq!(policy.opa_address(), Some("https://opa.example.org/prefix/v1/data/lifeboat/decision"));
    for (ca, identity) in [(Some(b"x".to_vec()), None), (None, Some(Zeroizing::new(b"hunter2".to_vec())))] {
        let mut settings = with("https://opa.example.org", false);
        settings.opa = settings.opa.map(|opa| OpaSettings { ca, identity, ..opa });
        assert!(!trouble(&settings, Code::Broken).contains("hunter2"));
    }
}
