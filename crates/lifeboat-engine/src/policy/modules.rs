//! What the evaluator is given: the files of a policy, those of one package as one.
//!
//! regorus 0.14.1 takes a package for evaluated as soon as the first of its files is. A rule of another file that needs one behind it is
//! then undefined, without an error, where the package was reached by its name from another one: `not` makes that a yes (a test shows
//! what the policies here make of it). So files of one package are joined, and packages do not stand inside one another. What the
//! evaluator says about a line is said about the line of the file.

use std::collections::{BTreeMap, BTreeSet};

use super::scan::Words;
use super::{LoadError, SourceFile, Sources};

/// The texts for the evaluator.
#[derive(Debug, Default)]
pub(super) struct Modules {
    /// Name and text of each.
    pub(super) texts: Vec<(String, String)>,
    places: Places,
}

/// Where lines come from, of modules that were joined: by module, the file and line of each line.
#[derive(Debug, Default, Clone)]
pub(super) struct Places(BTreeMap<String, Vec<(String, u32)>>);

impl Places {
    /// The file and line of a module's line.
    pub(super) fn of(&self, module: &str, line: u32) -> (String, u32) {
        let found = self.0.get(module).and_then(|lines| lines.get(usize::try_from(line).ok()?.checked_sub(1)?));
        found.cloned().unwrap_or_else(|| (module.to_owned(), line))
    }

    /// The evaluator's errors show the line of the policy, on lines of their own; this is place and message.
    pub(super) fn one_line(&self, error: &dyn std::fmt::Display) -> String {
        let text = error.to_string();
        let message = text.split("error: ").nth(1).unwrap_or(&text);
        let message = message.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it failed");
        let place = text.lines().find_map(|line| {
            let mut parts = line.strip_prefix("--> ")?.rsplitn(3, ':');
            let (column, line, module) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?);
            let (file, line) = self.of(module, line);
            Some(format!("{file}:{line}:{column}: "))
        });
        format!("{}{message}", place.unwrap_or_default())
    }
}

impl Modules {
    /// Joins what has to be joined.
    pub(super) fn of(sources: &Sources, with_tests: bool) -> Result<Self, LoadError> {
        let mut packages = BTreeMap::<String, Vec<(&SourceFile, Words<'_>)>>::new();
        for file in sources.files().iter().filter(|file| with_tests || !file.is_test()) {
            let words = Words::of(file);
            if let Some((line, what)) = words.misuse.filter(|(_, what)| *what == "data" || !file.is_test()) {
                let why = match what {
                    "with" => "with is for tests: a policy decides by the facts as they are",
                    _ => "data alone is not given to policies: name what is meant, data.NAME",
                };
                return Err(LoadError::Broken(format!("{}:{line}: {why}", file.path)));
            }
            packages.entry(words.package.clone()).or_default().push((file, words));
        }
        for inner in packages.keys() {
            let around = packages.keys().find(|outer| inner.strip_prefix(outer.as_str()).is_some_and(|rest| rest.starts_with(['.', '['])));
            if let Some(outer) = around {
                let path = &packages[inner][0].0.path;
                return Err(LoadError::Broken(format!("{path}: package {inner} stands inside package {outer}: give it a name beside it")));
            }
        }
        let mut modules = Self::default();
        for (package, files) in packages {
            match files.as_slice() {
                [(file, _)] => modules.texts.push((file.path.clone(), file.text.clone())),
                files => modules.join(&package, files)?,
            }
        }
        Ok(modules)
    }

    /// Whether any module is more than one file.
    pub(super) fn joined(&self) -> bool {
        !self.places.0.is_empty()
    }

    pub(super) fn places(&self) -> &Places {
        &self.places
    }

    fn join(&mut self, package: &str, files: &[(&SourceFile, Words<'_>)]) -> Result<(), LoadError> {
        let mut imports = BTreeMap::<&str, &str>::new();
        for (file, words) in files {
            for (alias, path) in &words.imports {
                let taken = files.iter().any(|(other, words)| other.path != file.path && words.heads.contains(alias));
                if taken || imports.insert(alias, path).is_some_and(|before| before != *path) {
                    let problem =
                        format!("{}: {alias} is something else in another file of {package}: import it by another name", file.path);
                    return Err(LoadError::Broken(problem));
                }
            }
        }
        let name = files.iter().map(|(file, _)| file.path.as_str()).collect::<Vec<_>>().join(" + ");
        let head = files[0].0;
        let mut text = format!("package {}\n", package.trim_start_matches("data."));
        let mut lines = vec![(head.path.clone(), 1)];
        // Imports stand before rules. Those of `rego.v1` and of input count for what they are, once.
        let mut seen = BTreeSet::new();
        for (file, words) in files {
            for line in &words.import_lines {
                let import = file.text.lines().nth(line - 1).unwrap_or_default();
                if seen.insert(import.split('#').next().unwrap_or_default().trim()) {
                    text.push_str(import);
                    text.push('\n');
                    lines.push((file.path.clone(), u32::try_from(*line).unwrap_or(u32::MAX)));
                }
            }
        }
        for (file, words) in files {
            for (index, line) in file.text.lines().enumerate() {
                let number = index + 1;
                let moved = words.package_line == number || words.import_lines.contains(&number);
                text.push_str(if moved { "" } else { line });
                text.push('\n');
                lines.push((file.path.clone(), u32::try_from(number).unwrap_or(u32::MAX)));
            }
        }
        self.places.0.insert(name.clone(), lines);
        self.texts.push((name, text));
        Ok(())
    }
}
