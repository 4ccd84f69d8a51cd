//! `docs/alerts.md` has what its readers need at night: a section for every kind, and commands that exist.

use std::collections::BTreeSet;
use std::path::Path;

use clap::Parser as _;
use lifeboat_core::alert::CATALOGUE;

use crate::cli::Cli;
use crate::config;

const PAGE: &str = include_str!("../../../../../docs/alerts.md");

/// The sections of the runbook: name and text.
fn sections() -> Vec<(&'static str, &'static str)> {
    let runbook = PAGE.split_once("\n## Runbook\n").expect("the page has a runbook").1;
    runbook.split("\n### ").skip(1).map(|section| section.split_once('\n').expect("a section has a text")).collect()
}

/// Blocks of a kind, without their fences, with the line that they begin in.
fn blocks(page: &'static str, kind: &str) -> Vec<(usize, &'static str)> {
    let (mut found, mut begun) = (Vec::new(), None);
    let mut at = 0;
    for (number, line) in page.split_inclusive('\n').enumerate() {
        match (line.trim_end().strip_prefix("```"), begun) {
            (Some(info), None) => begun = Some((info, number + 2, at + line.len())),
            (Some(_), Some((info, first, from))) => {
                if info == kind {
                    found.push((first, &page[from..at]));
                }
                begun = None;
            }
            _ => {}
        }
        at += line.len();
    }
    assert_eq!(begun, None, "a block does not end");
    found
}

/// The words of a command line, as a shell reads them, without what stands behind a `#`.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (c, quote) {
            ('"' | '\'', None) => (quote, word) = (Some(c), Some(word.unwrap_or_default())),
            (_, Some(open)) if c == open => quote = None,
            ('#', None) if word.is_none() => break,
            (' ', None) => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    assert_eq!(quote, None, "{line}: a quotation that does not end");
    words.extend(word);
    words
}

/// Every command of lifeboat on the page, in blocks and in the text.
fn commands() -> Vec<String> {
    let in_blocks = blocks(PAGE, "sh").into_iter().flat_map(|(_, text)| text.lines());
    let mut outside = String::new();
    let mut fenced = false;
    for line in PAGE.lines() {
        let fence = line.starts_with("```");
        fenced ^= fence;
        if !fenced && !fence {
            outside.push_str(line);
            outside.push('\n');
        }
    }
    let in_text = outside.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let all = in_blocks.map(str::to_owned).chain(in_text);
    all.filter(|line| line.starts_with("lifeboat ")).collect()
}

#[test]
fn every_kind_has_its_section_and_every_section_its_kind() {
    let names: Vec<&str> = sections().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, CATALOGUE.iter().map(|kind| kind.name).collect::<Vec<_>>());
}

#[test]
fn every_section_says_what_somebody_needs_in_the_order_of_a_night() {
    for (name, text) in sections() {
        assert!(!text.trim_start().starts_with("**"), "{name}: what it means");
        let mut at = 0;
        for part in ["\n**Danger:** ", "\n**Look**", "\n```sh\n", "\n**Do**\n\n1. ", "\n**Ends** when ", "\n**Ends** with "] {
            match text[at..].find(part) {
                Some(found) => at += found,
                None if part.starts_with("\n**Ends**") && text.contains("\n**Ends** w") => {}
                None => panic!("{name} has no {part:?} where it belongs"),
            }
        }
    }
}

#[test]
fn every_command_of_the_page_is_one() {
    let commands = commands();
    assert!(commands.len() > 100, "only {}: was something not read?", commands.len());
    let wrong: Vec<String> = commands
        .iter()
        .filter_map(|line| {
            Cli::try_parse_from(words(line)).err().map(|error| format!("{line}: {}", error.to_string().lines().next().unwrap_or_default()))
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(Cli::try_parse_from(words("lifeboat backup --now")).is_err(), "and the parser would say so");
    assert_eq!(words("lifeboat pin x --reason \"it's bad\"   # why"), ["lifeboat", "pin", "x", "--reason", "it's bad"]);
}

/// The anchor of a heading, as it is made of it.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#').trim())).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let links: Vec<&str> =
        PAGE.split("](").skip(1).filter_map(|rest| rest.split(')').next()).filter(|link| !link.contains("://")).collect();
    assert!(links.len() > 40, "{links:?}");
    for link in links {
        let (file, wanted) = link.split_once('#').unwrap_or((link, ""));
        let page = if file.is_empty() {
            PAGE.to_owned()
        } else {
            std::fs::read_to_string(docs.join(file)).unwrap_or_else(|error| panic!("{link}: {error}"))
        };
        assert!(wanted.is_empty() || anchors(&page).contains(wanted), "{link}: no such section");
    }
}

#[test]
fn every_sink_can_be_written_as_the_page_shows_it() {
    let blocks = blocks(PAGE, "toml");
    let mut kinds = BTreeSet::new();
    for (line, text) in blocks {
        let file = config::parse(text, Path::new("alerts.md")).unwrap_or_else(|failure| panic!("line {line}: {}", failure.message));
        let settings = config::alerts_of(file).unwrap_or_else(|failure| panic!("line {line}: {}", failure.message));
        kinds.extend(settings.sinks.value.iter().map(|sink| sink.kind.word()));
        kinds.extend(settings.heartbeat_url.map(|_| config::HEARTBEAT));
    }
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), ["alertmanager", "heartbeat", "pagerduty", "slack", "smtp", "webhook"]);
}

#[test]
fn every_setting_stands_on_both_pages() {
    let configuration = include_str!("../../../../../docs/configuration.md");
    let settings = config::alerts_of(config::File::default()).unwrap_or_else(|failure| panic!("{}", failure.message));
    for (key, ..) in settings.rows() {
        let name = if key == "alerts.sink" { "[[alerts.sink]]".to_owned() } else { key };
        for (page, text) in [("alerts.md", PAGE), ("configuration.md", configuration)] {
            assert!(text.lines().any(|line| line.starts_with(&format!("| `{name}"))), "docs/{page} has no row for {name}");
        }
    }
}
