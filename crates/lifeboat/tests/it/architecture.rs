//! The rooms stay what they are: core decides and does nothing, the engine does and says nothing.
//!
//! These are checks of sources and dependencies. A clippy lint of core (`crates/lifeboat-core/clippy.toml`) names single functions, with the
//! reason at the place where one is used; here whole modules are looked for.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cluster::expect_success;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The lines of a crate's sources that are compiled into the program and are no comment: (file, number, line).
fn source_lines(crate_name: &str) -> Vec<(String, usize, String)> {
    let root = workspace().join("crates").join(crate_name).join("src");
    let mut lines = Vec::new();
    let mut waiting = vec![root.clone()];
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        // A file of tests alone; within other files everything behind the tests' attribute is theirs, as they stand at the end.
        if path.extension().is_none_or(|extension| extension != "rs") || path.file_name().is_some_and(|name| name == "tests.rs") {
            continue;
        }
        let name = path.strip_prefix(&root).unwrap().display().to_string();
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            // `#[cfg(test)]` before `mod tests;` in the middle is followed by a declaration, not by a body.
            if line == "mod tests {" {
                break;
            }
            if !line.trim_start().starts_with("//") {
                lines.push((name.clone(), number + 1, line.to_owned()));
            }
        }
    }
    assert!(lines.len() > 500, "the sources of {crate_name} are not where they were");
    lines
}

/// Fails with every line that holds one of `words`, but for those that are allowed: (file, what the line holds, why).
#[track_caller]
fn assert_absent(crate_name: &str, words: &[&str], allowed: &[(&str, &str, &str)]) {
    let mut used = BTreeSet::new();
    let mut found = Vec::new();
    for (file, number, line) in source_lines(crate_name) {
        if !words.iter().any(|word| line.contains(word)) {
            continue;
        }
        match allowed.iter().position(|(name, text, _)| *name == file && line.contains(text)) {
            Some(exception) => {
                used.insert(exception);
            }
            None => found.push(format!("crates/{crate_name}/src/{file}:{number}: {}", line.trim())),
        }
    }
    assert!(found.is_empty(), "not in this room:\n{}", found.join("\n"));
    let unused: Vec<_> = allowed.iter().enumerate().filter(|(index, _)| !used.contains(index)).map(|(_, exception)| exception).collect();
    assert!(unused.is_empty(), "exceptions that nothing needs any more: {unused:?}");
}

/// What core may be built from, and what for: nothing that waits, reads, writes, tells the time, throws dice or logs.
const CORE_MAY_USE: [(&str, &str); 26] = [
    ("block-buffer", "sha2"),
    ("cfg-if", "sha2"),
    ("cpufeatures", "sha2"),
    ("crc32c", "PostgreSQL's checksums"),
    ("crypto-common", "sha2"),
    ("digest", "sha2"),
    ("generic-array", "sha2"),
    ("hex", "digests and ids as text"),
    ("itoa", "serde_json"),
    ("jiff", "times as values; its clock needs a feature that core does not ask for"),
    ("jiff-core", "jiff"),
    ("memchr", "serde_json"),
    ("multiversion", "page checksums at the speed of the machine"),
    ("multiversion-macros", "multiversion"),
    ("proc-macro2", "derives"),
    ("quote", "derives"),
    ("rustversion", "crc32c, at build time"),
    ("serde", "documents"),
    ("serde_core", "serde"),
    ("serde_derive", "serde"),
    ("serde_json", "documents"),
    ("sha2", "digests"),
    ("syn", "derives"),
    ("thiserror", "errors"),
    ("thiserror-impl", "thiserror"),
    ("zmij", "serde_json: numbers as text"),
];

/// Parts of the above that have no name worth a reason.
const CORE_MAY_USE_TOO: [&str; 2] = ["typenum", "unicode-ident"];

#[test]
fn core_is_built_from_nothing_that_acts() {
    let mut tree = Command::new(env!("CARGO"));
    tree.current_dir(workspace()).args(["tree", "--offline", "--locked", "--package", "lifeboat-core", "--edges", "normal"]);
    tree.args(["--prefix", "none", "--format", "{p}|{f}"]);
    let output = expect_success(&mut tree);
    let text = String::from_utf8(output.stdout).unwrap();
    let mut unexpected = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for line in text.lines() {
        let (package, features) = line.split_once('|').expect("as the format says");
        let name = package.split(' ').next().unwrap_or_default();
        if name == "lifeboat-core" {
            continue;
        }
        seen.insert(name.to_owned());
        if !CORE_MAY_USE.iter().any(|(allowed, _)| *allowed == name) && !CORE_MAY_USE_TOO.contains(&name) {
            unexpected.insert(name.to_owned());
        }
        if name == "jiff" {
            // With `std` it would have a clock, and with a time zone database it would read files.
            let features: Vec<&str> = features.trim_end_matches(" (*)").split(',').collect();
            assert!(!features.iter().any(|feature| *feature == "std" || feature.starts_with("tz")), "{features:?}");
        }
    }
    assert!(seen.contains("serde_json"), "cargo tree printed something else:\n{text}");
    assert!(unexpected.is_empty(), "core would be built from {unexpected:?}: does one of them act? If not, add it with a reason");
}

#[test]
fn core_does_not_act() {
    let modules = ["fs", "net", "env", "process", "thread", "io", "os", "sync::mpsc"].map(|module| format!("std::{module}"));
    let mut words: Vec<&str> = modules.iter().map(String::as_str).collect();
    words.extend(["SystemTime", "Instant", "::now()", "println!", "eprintln!", "print!(", "dbg!", "async fn", "async move", ".await"]);
    words.extend(["include_str!", "include_bytes!", "unsafe {", "RandomState", "static mut"]);
    assert_absent("lifeboat-core", &words, &[]);
    // The lint names single functions; it must be there to be of use.
    let lints = fs::read_to_string(workspace().join("crates/lifeboat-core/clippy.toml")).unwrap();
    for list in ["disallowed-methods", "disallowed-types", "disallowed-macros"] {
        assert!(lints.contains(list), "{list}");
    }
}

#[test]
fn the_engine_says_nothing_and_asks_nobody() {
    let words =
        ["println!", "eprintln!", "print!(", "dbg!", "process::exit", "process::abort", "env::", "io::stdout", "io::stderr", "io::stdin"];
    assert_absent("lifeboat-engine", &words, &[]);
}

#[test]
fn the_engine_does_not_know_the_binary_nor_core_the_engine() {
    for (room, above) in [("lifeboat-core", "lifeboat_engine"), ("lifeboat-engine", "clap")] {
        assert_absent(room, &[above], &[]);
        let manifest = fs::read_to_string(workspace().join("crates").join(room).join("Cargo.toml")).unwrap();
        assert!(!manifest.contains(&above.replace('_', "-")), "{room} depends on {above}");
    }
}

#[test]
fn every_module_says_what_it_is_for() {
    for room in ["lifeboat-core", "lifeboat-engine", "lifeboat"] {
        let mut waiting = vec![workspace().join("crates").join(room)];
        while let Some(path) = waiting.pop() {
            if path.is_dir() {
                waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                assert!(text.starts_with("//!"), "{} does not open with //!", path.display());
                let name = path.file_stem().unwrap().to_str().unwrap();
                assert!(
                    !["utils", "common", "helpers", "types", "manager", "misc"].contains(&name),
                    "{}: a name for nothing",
                    path.display()
                );
            }
        }
    }
}
