//! The pages of the documentation hang together: all are in the index, and every link between them leads somewhere.
//!
//! What is in a page is the business of its own test (`runbook.rs`, `install.rs`, `tutorial.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::cluster::temp_dir;
use crate::program::Program;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("it is there")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files below a directory of the workspace, by their paths in it.
fn files(directory: &str) -> BTreeSet<PathBuf> {
    let (root, mut waiting, mut found) = (workspace(), vec![PathBuf::from(directory)], BTreeSet::new());
    while let Some(path) = waiting.pop() {
        if root.join(&path).is_dir() {
            waiting.extend(fs::read_dir(root.join(&path)).unwrap().map(|entry| path.join(entry.unwrap().file_name())));
        } else {
            found.insert(path);
        }
    }
    found
}

fn pages() -> BTreeSet<PathBuf> {
    files("docs").into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect()
}

/// The lines of a page that are no code, with their numbers.
fn prose(page: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_block = false;
    page.lines().enumerate().filter_map(move |(index, line)| {
        let fence = line.trim_start().starts_with("```");
        in_block ^= fence;
        (!fence && !in_block).then_some((index + 1, line))
    })
}

/// A line with what stands between backticks blanked out.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("``")
}

/// The targets of a page's links and pictures, with the lines that they stand in.
fn links(page: &str) -> Vec<(usize, String)> {
    let targets = |line: &str| {
        let line = without_code(line);
        line.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target.to_owned()).collect::<Vec<_>>()
    };
    prose(page).flat_map(|(number, line)| targets(line).into_iter().map(move |target| (number, target))).collect()
}

/// What can stand behind `#` in a link to a page: its headings, as GitHub makes anchors of them, and what it names itself.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for (_, line) in prose(page) {
        let heading = line.trim_start_matches('#');
        if let (1..=6, Some(heading)) = (line.len() - heading.len(), heading.strip_prefix(' ')) {
            let anchor = anchor(heading);
            let count = seen.entry(anchor.clone()).or_default();
            anchors.insert(if *count == 0 { anchor } else { format!("{anchor}-{count}") });
            *count += 1;
        }
        anchors.extend(line.split("<a id=\"").skip(1).filter_map(|rest| rest.split_once('"')).map(|(name, _)| name.to_owned()));
    }
    anchors
}

fn anchor(heading: &str) -> String {
    // Of a link in a heading the text counts.
    let mut text = String::new();
    for (index, part) in heading.trim().split("](").enumerate() {
        text.push_str(if index == 0 { part } else { part.split_once(')').map_or(part, |(_, rest)| rest) });
    }
    let kept = text.chars().filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'));
    kept.flat_map(char::to_lowercase).map(|letter| if letter == ' ' { '-' } else { letter }).collect()
}

/// Where a relative link leads, as a path in the workspace; `None` if out of it.
fn resolve(from: &Path, target: &str) -> Option<PathBuf> {
    let mut path = from.parent().unwrap_or(Path::new("")).to_path_buf();
    for component in Path::new(target).components() {
        match component {
            Component::ParentDir => {
                if !path.pop() {
                    return None;
                }
            }
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}

/// Why a link of a page leads nowhere.
fn wrong(from: &Path, page: &str, target: &str) -> Option<&'static str> {
    if target.starts_with("https://") || target.starts_with("http://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = target.split_once('#').map_or((target, None), |(file, anchor)| (file, Some(anchor)));
    let Some(path) = (if file.is_empty() { Some(from.to_path_buf()) } else { resolve(from, file) }) else {
        return Some("leads out of the sources");
    };
    let full = workspace().join(&path);
    if !full.exists() {
        return Some("is not there");
    }
    let anchor = anchor?;
    let found = if file.is_empty() { anchors(page) } else { anchors(&read(&full)) };
    (!found.contains(anchor)).then_some("has no such section")
}

#[test]
fn every_page_is_in_the_index() {
    let index = Path::new("docs/README.md");
    let page = read(&workspace().join(index));
    let listed: BTreeSet<PathBuf> = links(&page).iter().filter_map(|(_, target)| resolve(index, target)).collect();
    let missing: Vec<PathBuf> = files("docs")
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "md" || extension == "json"))
        .filter(|path| path != index && !listed.contains(path))
        .collect();
    assert!(missing.is_empty(), "give each of these its line in docs/README.md: {missing:#?}");
    // One line for each page, in one of the kinds.
    for kind in ["Tutorial", "How-to", "Reference", "Explanation"] {
        let section = page.split("\n## ").find(|section| section.starts_with(&format!("{kind}\n"))).unwrap_or_else(|| panic!("no {kind}"));
        assert!(section.lines().any(|line| line.starts_with("- [")), "nothing in {kind}");
    }
    assert!(pages().len() > 50, "the pages are not where they were");
}

#[test]
fn every_link_leads_somewhere() {
    let mut count = 0;
    let mut nowhere = Vec::new();
    let more = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "tools/rescue/README.md", "tools/audit-verify/README.md"];
    for path in pages().into_iter().chain(more.map(PathBuf::from)) {
        let page = read(&workspace().join(&path));
        for (line, target) in links(&page) {
            count += 1;
            if let Some(why) = wrong(&path, &page, &target) {
                nowhere.push(format!("{}:{line}: {target} {why}", path.display()));
            }
        }
    }
    assert!(nowhere.is_empty(), "{nowhere:#?}");
    assert!(count > 300, "only {count} links: was something not read?");
}

/// Those that the reference names, and no others.
#[test]
fn the_environment_wins_where_the_reference_says_so() {
    let page = read(&workspace().join("docs/reference/configuration.md"));
    let (mut table, mut named) = (String::new(), BTreeMap::new());
    for line in page.lines() {
        if let Some(header) = line.strip_prefix("## ") {
            table = header.trim_matches(['`', '[', ']']).to_owned();
        } else if let Some((row, _)) = line.split_once("` in the environment wins.") {
            let (key, variable) = (row.split('`').nth(1).unwrap(), row.rsplit('`').next().unwrap());
            let setting = if table.starts_with("Before") { key.to_owned() } else { format!("{table}.{key}") };
            named.insert(variable.to_owned(), setting);
        }
    }
    let home = temp_dir();
    for (variable, setting) in &named {
        let value = match setting.as_str() {
            "log.format" => "json",
            "postgres.dsn" => "host=/nowhere",
            "name" => "plant",
            _ => "/nowhere",
        };
        let shown = Program::new(&home).env(variable, value).args(["config", "show", "--json"]).run().success().json();
        let of = |row: &&serde_json::Value| row["origin"].as_str().unwrap().ends_with(variable.as_str());
        let moved: Vec<&str> =
            shown["settings"].as_array().unwrap().iter().filter(of).map(|row| row["setting"].as_str().unwrap()).collect();
        assert!(moved.contains(&setting.as_str()), "{variable} is not where {setting} comes from, but {moved:?}");
    }
    // What stands in the sources and is not a setting's.
    let others = ["LIFEBOAT_CONFIG", "LIFEBOAT_DRILL_ARTIFACTS", "LIFEBOAT_DRILL_BACKUP", "LIFEBOAT_DRILL_DSN", "LIFEBOAT_TEST_WRITE"];
    let mut unnamed = BTreeSet::new();
    for file in files("crates/lifeboat/src").into_iter().filter(|file| file.extension().is_some_and(|one| one == "rs")) {
        for word in read(&workspace().join(file)).split('"') {
            let rest =
                word.strip_prefix("LIFEBOAT_").filter(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'));
            if rest.is_some() && !named.contains_key(word) && !others.contains(&word) {
                unnamed.insert(word.to_owned());
            }
        }
    }
    assert!(unnamed.is_empty(), "variables that the reference does not name: {unnamed:?}");
}

/// The checks above fail when something is wrong.
#[test]
fn what_leads_nowhere_is_found() {
    let page = "# A `b` c!\n\n## Twice\n## Twice\n```\n# no heading\n[no](link)\n```\n`[no](link)` [one](#twice-1) <a id=\"own\"></a>![two](x.png)\n";
    assert_eq!(links(page), [(9, "#twice-1".to_owned()), (9, "x.png".to_owned())]);
    assert_eq!(anchors(page), ["a-b-c", "twice", "twice-1", "own"].map(String::from).into());
    let from = Path::new("docs/wal.md");
    for (target, why) in [
        ("#twice", None),
        ("#own", None),
        ("https://example.org/", None),
        ("drill.md", None),
        ("../README.md#install", None),
        ("#three", Some("has no such section")),
        ("../README.md#nothing-like-it", Some("has no such section")),
        ("reference/nothing.md", Some("is not there")),
        ("/docs/wal.md", Some("leads out of the sources")),
        ("../../outside.md", Some("leads out of the sources")),
    ] {
        assert_eq!(wrong(from, page, target), why, "{target}");
    }
}
