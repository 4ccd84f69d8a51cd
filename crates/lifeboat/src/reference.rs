//! The pages of `docs/reference` that the program knows by itself: commands, exit codes, settings, alerts.
//!
//! They are written by the test below with `LIFEBOAT_TEST_WRITE`, and compared by it otherwise, so that no page says anything else than the
//! program does. Nothing here is in the program.

use std::fmt::{Display, Write as _};
use std::fs;
use std::path::Path;

use clap::{Arg, CommandFactory as _};
use lifeboat_core::alert::{CATALOGUE, alertname};
use lifeboat_core::status::Severity;

use crate::cli::Cli;
use crate::config::reference::{TABLES, Value, variable};
use crate::failure::{EXIT_CODES, ExitCode, FETCH_CODES, PUSH_CODES};

/// What stands below each of them.
const ORIGIN: &str = "\nThis page is made from the program, and a test holds it equal.\n";

/// Text in a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;").replace('\n', " ")
}

/// The same, as it is typed.
fn typed(text: &str) -> String {
    format!("`{}`", text.replace('|', "\\|"))
}

fn line(page: &mut String, text: impl Display) {
    writeln!(page, "{text}").expect("a string takes all");
}

/// `docs/reference/commands.md`
fn commands() -> String {
    let mut page = String::from(
        "# Commands\n\nEvery command, as `--help` of it has it; `man lifeboat-backup` and its like say the same. How commands end: [exit codes](exit-codes.md). What they read: [configuration](configuration.md).\n",
    );
    let mut root = Cli::command();
    root.build();
    line(&mut page, "\n## Options of every command\n");
    arguments(&mut page, root.get_arguments().filter(|arg| arg.is_global_set()));
    // Below the root, what is global to a group of commands is told with each of them.
    let everywhere: Vec<&str> = root.get_arguments().filter(|arg| arg.is_global_set()).map(|arg| arg.get_id().as_str()).collect();
    root.get_subcommands().for_each(|command| one_command(&mut page, command, &everywhere));
    page + ORIGIN
}

/// A command and those below it; not one that is hidden, which people do not type.
fn one_command(page: &mut String, command: &clap::Command, everywhere: &[&str]) {
    if command.is_hide_set() {
        return;
    }
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    let about = command.get_long_about().or_else(|| command.get_about()).map(ToString::to_string).unwrap_or_default();
    line(page, format_args!("\n## {name}\n\n{}", about.replace('<', "&lt;")));
    let usage = command.clone().render_usage().to_string();
    line(page, format_args!("\n```text\n{}\n```", usage.trim_start_matches("Usage: ").trim_end()));
    let own: Vec<&Arg> = command.get_arguments().filter(|arg| !everywhere.contains(&arg.get_id().as_str())).collect();
    if own.iter().any(|arg| is_shown(arg)) {
        page.push('\n');
        arguments(page, own.into_iter());
    }
    command.get_subcommands().for_each(|command| one_command(page, command, everywhere));
}

/// Help and version are everywhere.
fn is_shown(arg: &Arg) -> bool {
    use clap::ArgAction::{Help, HelpLong, HelpShort, Version};
    !arg.is_hide_set() && !matches!(arg.get_action(), Help | HelpLong | HelpShort | Version)
}

fn arguments<'a>(page: &mut String, arguments: impl Iterator<Item = &'a Arg>) {
    line(page, "| argument | environment | meaning |\n|---|---|---|");
    for arg in arguments.filter(|arg| is_shown(arg)) {
        let environment = arg.get_env().map_or_else(|| "–".to_owned(), |name| typed(&name.to_string_lossy()));
        line(page, format_args!("| {} | {environment} | {} |", typed(&spelling(arg)), meaning(arg)));
    }
}

/// As it is typed, with what stands behind it.
fn spelling(arg: &Arg) -> String {
    let names = arg.get_value_names().map(|names| names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap_or_default();
    let value = if names.is_empty() { arg.get_id().as_str().to_uppercase() } else { names.join(" ") };
    let takes_value = arg.get_action().takes_values();
    let name = match (arg.get_short(), arg.get_long()) {
        (Some(short), Some(long)) => format!("-{short}, --{long}"),
        (Some(short), None) => format!("-{short}"),
        (None, Some(long)) => format!("--{long}"),
        (None, None) if arg.is_required_set() => return value,
        (None, None) => return format!("[{value}]"),
    };
    let optional = arg.get_num_args().is_some_and(|count| count.min_values() == 0);
    match takes_value {
        true if optional => format!("{name} [{value}]"),
        true => format!("{name} {value}"),
        false => name,
    }
}

/// What it is for, with its values and what it is without.
fn meaning(arg: &Arg) -> String {
    let mut text = cell(&arg.get_help().map(ToString::to_string).unwrap_or_default());
    let takes_value = arg.get_action().takes_values();
    let values: Vec<String> =
        arg.get_possible_values().iter().filter(|value| !value.is_hide_set()).map(|value| typed(value.get_name())).collect();
    if takes_value && !values.is_empty() && !arg.is_hide_possible_values_set() {
        write!(text, " ({})", values.join(", ")).expect("a string takes all");
    }
    let defaults: Vec<String> = arg.get_default_values().iter().map(|value| typed(&value.to_string_lossy())).collect();
    if takes_value && !defaults.is_empty() && !arg.is_hide_default_value_set() {
        write!(text, "; {} by default", defaults.join(" ")).expect("a string takes all");
    }
    text
}

/// `docs/reference/exit-codes.md`
fn exit_codes() -> String {
    let mut page = String::from(
        "# Exit codes\n\nHow commands end, for scripts. **0 is done, 3 is done with something to read; anything else is not done.** The reason is on stderr, in one line with a hint below it; with `--json` on stdout as well. [The runbook](../runbook.md#exit-codes) says the same for the night.\n\n| code | meaning | what to do |\n|---|---|---|\n",
    );
    rows(&mut page, &EXIT_CODES);
    page.push_str(
        "\nTwo commands are called by PostgreSQL, which makes of their exit codes what that means to a server ([WAL](../postgres.md#wal-out-of-the-archive)).\n",
    );
    page.push_str("\n## lifeboat wal push\n\n| code | meaning | what to do |\n|---|---|---|\n");
    rows(&mut page, &PUSH_CODES);
    page.push_str("\n## lifeboat wal fetch\n\n| code | meaning | what to do |\n|---|---|---|\n");
    rows(&mut page, &FETCH_CODES);
    page + ORIGIN
}

fn rows<Code: Display>(page: &mut String, codes: &[ExitCode<Code>]) {
    for one in codes {
        line(page, format_args!("| {} | {} | {} |", cell(&one.code.to_string()), cell(one.meaning), cell(one.advice)));
    }
}

/// `docs/reference/configuration.md`
fn configuration() -> String {
    let mut page = String::from(
        "# Settings\n\nEvery setting of the configuration file, in its order. `lifeboat config example` prints it as a file, `lifeboat config show` what counts here and where it came from. [Configuration](../configuration.md) has the rules.\n\nA value in brackets is an example: such a setting has no default, or the one that its meaning names.\n",
    );
    for table in TABLES {
        if table.header.is_empty() {
            line(&mut page, "\n## Before all tables\n");
        } else {
            line(
                &mut page,
                format_args!("\n## {}\n\n{} [More](../{}).\n", typed(table.header), table.meaning.replace('<', "&lt;"), table.page),
            );
        }
        line(&mut page, "| setting | default | meaning |\n|---|---|---|");
        for entry in table.entries {
            let value = match entry.value {
                Value::Default(value) => typed(value),
                Value::Example(value) => format!("({})", typed(value)),
            };
            let variable = variable(table, entry.key).map_or(String::new(), |name| format!(" {} in the environment wins.", typed(name)));
            line(&mut page, format_args!("| {} | {value} | {}{variable} |", typed(entry.key), cell(entry.meaning)));
        }
    }
    page + ORIGIN
}

/// `docs/reference/alerts.md`
fn alerts() -> String {
    let mut page = String::from(
        "# Alerts\n\nEvery kind of alert, and when it is raised. The name leads to what to do about it. Prometheus and Alertmanager know it by its `alertname`. How people are told: [alerts](../alerts.md).\n\n| name | alertname | at most | when |\n|---|---|---|---|\n",
    );
    for kind in CATALOGUE {
        let severity = match kind.severity {
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        };
        let name = kind.name;
        line(&mut page, format_args!("| [{name}](../alerts.md#{name}) | `{}` | {severity} | {} |", alertname(name), cell(kind.when)));
    }
    page + ORIGIN
}

#[test]
fn the_reference_follows_the_program() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference");
    let pages =
        [("commands.md", commands()), ("exit-codes.md", exit_codes()), ("configuration.md", configuration()), ("alerts.md", alerts())];
    let mut behind = Vec::new();
    for (name, text) in pages {
        let path = directory.join(name);
        if std::env::var_os("LIFEBOAT_TEST_WRITE").is_some() {
            fs::create_dir_all(&directory).expect("the sources can be written");
            fs::write(&path, &text).expect("the sources can be written");
        } else if fs::read_to_string(&path).ok().as_deref() != Some(&text) {
            behind.push(name);
        }
    }
    assert!(
        behind.is_empty(),
        "in docs/reference, {behind:?} are not what the program says: LIFEBOAT_TEST_WRITE=1 scripts/test the_reference_follows_the_program"
    );
}

/// Nothing that can be typed is left out, and nothing that is hidden is shown.
#[test]
fn every_command_has_its_section() {
    let page = commands();
    for name in ["lifeboat backup", "lifeboat wal push", "lifeboat drill run", "lifeboat alert test", "lifeboat config show"] {
        assert!(page.contains(&format!("\n## {name}\n")), "{name}\n{page}");
    }
    for words in ["`--identity FILE` | `LIFEBOAT_IDENTITY_FILE`", "`--output DIR\\|URL`", "`auto`, `local`, `stream`, `logical`"] {
        assert!(page.contains(words), "{words}\n{page}");
    }
    assert!(!page.contains("completions") && !page.contains("prefetch"), "hidden");
}
