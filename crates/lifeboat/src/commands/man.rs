//! `lifeboat man`: manual pages, from what the parser of the command line and the list of settings know anyway.

use std::path::Path;

use clap::CommandFactory as _;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

use crate::cli::Cli;
use crate::config::reference::{self, Value};
use crate::failure::{EXIT_CODES, EXIT_FAILED, ExitCode, FETCH_CODES, Failure, PUSH_CODES};
use crate::output::Output;
use crate::session::PROGRAM;

/// Where the documentation is that the pages name.
const DOCS: &str = "/usr/share/doc/lifeboat";

pub(super) fn run(directory: &Path, out: &Output) -> Result<u8, Failure> {
    let failed = |path: &Path, error: &std::io::Error| {
        Failure::new(EXIT_FAILED, format!("write {}: {error}", path.display())).hint("name another directory: lifeboat man --out DIR")
    };
    std::fs::create_dir_all(directory).map_err(|error| failed(directory, &error))?;
    let mut command = Cli::command();
    command.build();
    let mut pages = Vec::new();
    collect(&command, &mut pages);
    pages.push(("lifeboat.toml.5".to_owned(), configuration()));
    for (name, text) in &pages {
        let path = directory.join(name);
        std::fs::write(&path, text).map_err(|error| failed(&path, &error))?;
    }
    let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
    out.result(&serde_json::json!({"directory": directory, "pages": names}), || {
        format!("wrote {} manual pages to {}\n", names.len(), directory.display())
    });
    Ok(0)
}

/// The pages of a command and of what is below it; a hidden one has none.
fn collect(command: &clap::Command, pages: &mut Vec<(String, Vec<u8>)>) {
    let below: Vec<&clap::Command> = command.get_subcommands().filter(|command| !command.is_hide_set()).collect();
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    pages.push((format!("{name}.1"), page(command, &name, &below)));
    below.into_iter().for_each(|command| collect(command, pages));
}

fn page(command: &clap::Command, name: &str, below: &[&clap::Command]) -> Vec<u8> {
    let man = Man::new(command.clone()).title(name.to_uppercase()).source(PROGRAM).manual("lifeboat");
    let mut text = Vec::new();
    let written = man
        .render_title(&mut text)
        .and_then(|()| man.render_name_section(&mut text))
        .and_then(|()| man.render_synopsis_section(&mut text))
        .and_then(|()| man.render_description_section(&mut text))
        .and_then(|()| man.render_options_section(&mut text))
        .and_then(|()| if below.is_empty() { Ok(()) } else { man.render_subcommands_section(&mut text) });
    written.expect("memory takes all");
    let mut roff = Roff::new();
    exit_status(&mut roff, name);
    if name == "lifeboat" {
        roff.control("SH", ["FILES"]);
        for (path, meaning) in [
            ("./lifeboat.toml, /etc/lifeboat/lifeboat.toml", "The configuration, lifeboat.toml(5). The first that is there counts."),
            (
                "~/.config/lifeboat",
                "The user's own keys, where the configuration names no others. Without identity.txt nothing can be restored.",
            ),
            ("~/.local/state/lifeboat", "Spool, journals and drills, where the configuration names no other places."),
        ] {
            term(&mut roff, [bold(path)], meaning);
        }
    }
    let parent = name.rsplit_once('-').map(|(parent, _)| parent).filter(|parent| parent.starts_with("lifeboat"));
    let others = below.iter().filter_map(|command| command.get_display_name()).map(|name| (name, "1"));
    see_also(&mut roff, parent.map(|parent| (parent, "1")).into_iter().chain(others).chain([("lifeboat.toml", "5")]));
    text.extend_from_slice(roff.to_roff().as_bytes());
    text
}

/// PostgreSQL makes of the exit code of a command of its own what that means to a server.
fn exit_status(roff: &mut Roff, name: &str) {
    roff.control("SH", ["EXIT STATUS"]);
    match name {
        "lifeboat-wal-push" => exit_codes(roff, &PUSH_CODES),
        "lifeboat-wal-fetch" => exit_codes(roff, &FETCH_CODES),
        _ => exit_codes(roff, &EXIT_CODES),
    }
}

fn exit_codes<Code: std::fmt::Display>(roff: &mut Roff, codes: &[ExitCode<Code>]) {
    codes.iter().for_each(|one| term(roff, [bold(one.code.to_string())], format!("{} {}", one.meaning, one.advice).trim_end()));
}

/// lifeboat.toml(5).
fn configuration() -> Vec<u8> {
    let mut roff = Roff::new();
    roff.control("TH", ["LIFEBOAT.TOML", "5", "", PROGRAM, "lifeboat"]);
    roff.control("SH", ["NAME"]);
    roff.text([roman("lifeboat.toml - configuration of lifeboat")]);
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([
        bold("./lifeboat.toml"),
        roman(", "),
        bold("/etc/lifeboat/lifeboat.toml"),
        roman(", or the file that --config or LIFEBOAT_CONFIG names"),
    ]);
    roff.control("SH", ["DESCRIPTION"]);
    roff.text([roman(
        "A TOML file. A flag wins over the environment, that over the file, that over the default. Relative paths are relative to the file's \
         directory. Unknown keys are errors. Secrets are named, never written here.",
    )]);
    roff.control("PP", []);
    roff.text([
        bold("lifeboat config example"),
        roman(" prints a file with all settings; "),
        bold("lifeboat init --write-config FILE"),
        roman(" writes one for this host; "),
        bold("lifeboat config show"),
        roman(" prints each setting and where it came from."),
    ]);
    roff.control("SH", ["SETTINGS"]);
    for table in reference::TABLES {
        if !table.header.is_empty() {
            roff.control("SS", [table.header]);
            roff.text([roman(format!("{} {DOCS}/{}", table.meaning, table.page))]);
        }
        for entry in table.entries {
            let (word, value) = match entry.value {
                Value::Default(value) => ("Default: ", value),
                Value::Example(value) => ("For example: ", value),
            };
            roff.control("TP", []);
            roff.text([bold(entry.key)]);
            roff.text([roman(format!("{} {word}", entry.meaning)), italic(value)]);
            if let Some(name) = reference::variable(table, entry.key) {
                roff.text([roman("In the environment: "), bold(name)]);
            }
        }
    }
    see_also(&mut roff, [("lifeboat", "1"), ("lifeboat-config-show", "1"), ("lifeboat-init", "1")]);
    roff.to_roff().into_bytes()
}

fn term(roff: &mut Roff, name: impl Into<Vec<Inline>>, meaning: &str) {
    roff.control("TP", []);
    roff.text(name);
    roff.text([roman(meaning)]);
}

fn see_also<'a>(roff: &mut Roff, pages: impl IntoIterator<Item = (&'a str, &'a str)>) {
    roff.control("SH", ["SEE ALSO"]);
    let mut words = Vec::new();
    for (name, section) in pages {
        if !words.is_empty() {
            words.push(roman(", "));
        }
        words.extend([bold(name), roman(format!("({section})"))]);
    }
    roff.text(words);
    roff.control("PP", []);
    roff.text([roman(DOCS)]);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Every code that is one has its meaning.
    #[test]
    fn every_exit_code_has_a_meaning() {
        let codes = include_str!("../failure.rs").lines().filter_map(|line| {
            let (_, number) = line.strip_prefix("pub(crate) const EXIT_")?.split_once("u8 = ")?;
            number.strip_suffix(';')?.parse::<u8>().ok()
        });
        let known: BTreeSet<u8> = codes.chain([0]).collect();
        assert!(known.len() > 10, "{known:?}");
        assert_eq!(known, EXIT_CODES.iter().map(|one| one.code).collect());
    }

    #[test]
    fn the_page_of_a_command_has_its_parts() {
        let mut command = Cli::command();
        command.build();
        let mut pages = Vec::new();
        collect(&command, &mut pages);
        let text = |name: &str| {
            let (_, text) = pages.iter().find(|(page, _)| page == name).unwrap_or_else(|| panic!("no page {name}"));
            String::from_utf8(text.clone()).unwrap()
        };
        for (page, words) in [
            ("lifeboat.1", [".SH FILES", "lifeboat\\-backup", ".SH \"EXIT STATUS\""]),
            ("lifeboat-wal-push.1", ["lifeboat\\-wal\\-push", "asks again", "lifeboat\\-wal"]),
            ("lifeboat-restore.1", ["\\-\\-target\\-time", "Verification or signature failed", "lifeboat.toml"]),
        ] {
            let text = text(page);
            words.iter().for_each(|word| assert!(text.contains(word), "{page}: {word}\n{text}"));
        }
        assert!(!pages.iter().any(|(name, _)| name.contains("completions") || name.contains("prefetch")), "hidden");
    }
}
