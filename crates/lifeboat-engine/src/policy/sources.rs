//! The files of a policy: found, read with limits, and named by one digest.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::LoadError;
use crate::sha256;

/// The policy that is shipped, which is in force where none is configured.
pub const SHIPPED: &str = include_str!("../../../../policies/lifeboat.rego");

/// Its tests.
pub const SHIPPED_TEST: &str = include_str!("../../../../policies/lifeboat_test.rego");

/// Files of one policy.
const MAX_FILES: usize = 256;

/// Bytes of one file: what the evaluator takes too.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Directories below that of the policy.
const MAX_DEPTH: usize = 16;

/// One file in Rego.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// As messages name it.
    pub path: String,
    /// Its text.
    pub text: String,
}

impl SourceFile {
    /// Whether it holds tests, by the rule of OPA's own tools: its name ends in `_test.rego`.
    pub fn is_test(&self) -> bool {
        self.path.ends_with("_test.rego")
    }
}

/// All files of a policy.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    files: Vec<SourceFile>,
    data: Map<String, Value>,
    digest: String,
    warnings: Vec<String>,
}

impl Sources {
    /// The policy that is shipped.
    pub fn shipped() -> Self {
        let file = |path: &str, text: &str| SourceFile { path: path.to_owned(), text: text.to_owned() };
        let files = vec![file("lifeboat.rego", SHIPPED), file("lifeboat_test.rego", SHIPPED_TEST)];
        let digest = digest(&[("lifeboat.rego".to_owned(), SHIPPED.as_bytes())]);
        Self { files, data: Map::new(), digest, warnings: Vec::new() }
    }

    /// The policy at a path: a file, with the tests that stand beside it, or a directory with everything below.
    ///
    /// # Errors
    ///
    /// If there is nothing at the path, or something that is no policy.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        Self::read_all([path])
    }

    /// The policies at several paths as one: a policy and what adds to it. What stands beside a file is its tests alone, and they need not
    /// pass any more when something was added: of several paths only the named are read.
    ///
    /// # Errors
    ///
    /// As [`Sources::read`].
    pub fn read_all<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Result<Self, LoadError> {
        let mut reading = Reading::default();
        let paths: Vec<&Path> = paths.into_iter().collect();
        for path in &paths {
            reading.add(path, paths.len() == 1)?;
        }
        reading.finish()
    }

    /// The files in Rego, tests included, by name.
    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }

    /// What `data.json` files add to `data`.
    pub const fn data(&self) -> &Map<String, Value> {
        &self.data
    }

    /// SHA-256 over names and bytes of everything but tests, as `sha256:…`.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// What is odd about the files, and does not keep them from being used.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// Names and lengths stand before the bytes, so that no two sets of files have one digest.
fn digest(files: &[(String, &[u8])]) -> String {
    let mut bytes = Vec::new();
    for (name, content) in files {
        for part in [name.as_bytes(), content] {
            bytes.extend_from_slice(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            bytes.extend_from_slice(part);
        }
    }
    format!("sha256:{}", hex::encode(sha256::of(&bytes).0))
}

#[derive(Default)]
struct Reading {
    /// Name within the policy, path for people, bytes.
    found: BTreeMap<String, (String, String)>,
    data: Map<String, Value>,
    warnings: Vec<String>,
}

fn missing(path: &Path, problem: impl Into<String>) -> LoadError {
    LoadError::Missing { place: path.display().to_string(), problem: problem.into() }
}

fn broken(path: &Path, problem: impl std::fmt::Display) -> LoadError {
    LoadError::Broken(format!("{}: {problem}", path.display()))
}

impl Reading {
    fn add(&mut self, path: &Path, alone: bool) -> Result<(), LoadError> {
        let metadata = fs::metadata(path).map_err(|error| missing(path, error.to_string()))?;
        self.look_at(path, &metadata);
        let before = self.found.len();
        if metadata.is_dir() {
            self.directory(path, &mut Vec::new())?;
        } else if path.extension().is_some_and(|extension| extension == "rego") {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            self.file(path, name)?;
            let test = path.with_file_name(format!("{}_test.rego", path.file_stem().unwrap_or_default().to_string_lossy()));
            if alone && test.is_file() {
                let name = test.file_name().unwrap_or_default().to_string_lossy().into_owned();
                self.file(&test, name)?;
            }
        } else {
            return Err(missing(path, "it is neither a directory nor a file that ends in .rego"));
        }
        if self.found.len() == before {
            return Err(missing(path, "there is no file in it that ends in .rego"));
        }
        Ok(())
    }

    /// Whoever can write the policy can do everything.
    fn look_at(&mut self, path: &Path, metadata: &fs::Metadata) {
        // In a directory of everybody's with the sticky bit, like /tmp, files of others cannot be replaced.
        let sticky = metadata.is_dir() && metadata.permissions().mode() & 0o1000 != 0;
        if metadata.permissions().mode() & 0o002 != 0 && !sticky {
            self.warnings.push(format!("policy {} can be changed by everybody on this host: chmod o-w it", path.display()));
        }
    }

    fn directory(&mut self, path: &Path, below: &mut Vec<String>) -> Result<(), LoadError> {
        if below.len() > MAX_DEPTH {
            return Err(broken(path, format_args!("directories deeper than {MAX_DEPTH} are not read")));
        }
        let entries = fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let mut entries: Vec<PathBuf> =
            entries.map_err(|error| missing(path, error.to_string()))?.into_iter().map(|entry| entry.path()).collect();
        entries.sort();
        for entry in entries {
            let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // Editors and version control leave such.
            if name.starts_with('.') {
                continue;
            }
            // Follows links: a Kubernetes volume consists of them.
            let metadata = fs::metadata(&entry).map_err(|error| missing(&entry, error.to_string()))?;
            if metadata.is_dir() {
                self.look_at(&entry, &metadata);
                below.push(name);
                self.directory(&entry, below)?;
                below.pop();
            } else if name.ends_with(".rego") {
                let name = below.iter().chain([&name]).cloned().collect::<Vec<_>>().join("/");
                self.file(&entry, name)?;
            } else if name == "data.json" {
                self.data(&entry, below)?;
            } else if matches!(name.as_str(), "data.yaml" | "data.yml") {
                // Passing over it would decide without it.
                return Err(broken(&entry, "data is read from data.json only"));
            }
        }
        Ok(())
    }

    fn text(&mut self, path: &Path) -> Result<String, LoadError> {
        // Without waiting: a pipe opens when somebody writes into it, and every operation waits for the policy.
        let options = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file = fs::File::options().read(true).custom_flags(options).open(path).map_err(|error| missing(path, error.to_string()))?;
        let metadata = file.metadata().map_err(|error| missing(path, error.to_string()))?;
        if !metadata.is_file() {
            return Err(broken(path, "it is no regular file"));
        }
        self.look_at(path, &metadata);
        let mut bytes = Vec::new();
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|error| missing(path, error.to_string()))?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(broken(path, format_args!("it is more than {MAX_FILE_BYTES} bytes")));
        }
        String::from_utf8(bytes).map_err(|_| broken(path, "it is not UTF-8"))
    }

    fn file(&mut self, path: &Path, name: String) -> Result<(), LoadError> {
        if self.found.len() >= MAX_FILES {
            return Err(broken(path, format_args!("a policy has at most {MAX_FILES} files")));
        }
        let text = self.text(path)?;
        if self.found.insert(name.clone(), (path.display().to_string(), text)).is_some() {
            return Err(broken(path, format_args!("there are two files {name}")));
        }
        Ok(())
    }

    /// As OPA does it: the directories that a `data.json` stands in are where it stands in `data`.
    fn data(&mut self, path: &Path, below: &[String]) -> Result<(), LoadError> {
        let text = self.text(path)?;
        let value: Value = serde_json::from_str(&text).map_err(|error| broken(path, error))?;
        let Value::Object(members) = value else { return Err(broken(path, "it has to be an object")) };
        let mut into = &mut self.data;
        for name in below {
            into = match into.entry(name.clone()).or_insert_with(|| Value::Object(Map::new())) {
                Value::Object(map) => map,
                _ => return Err(broken(path, format_args!("{name} has a value in another data.json already"))),
            };
        }
        merge(into, members).map_err(|name| broken(path, format_args!("{name} has a value in another data.json already")))
    }

    fn finish(self) -> Result<Sources, LoadError> {
        let data = if self.data.is_empty() { String::new() } else { Value::Object(self.data.clone()).to_string() };
        let is_test = |name: &str| name.ends_with("_test.rego");
        let mut parts: Vec<(String, &[u8])> =
            self.found.iter().filter(|(name, _)| !is_test(name)).map(|(name, (_, text))| (name.clone(), text.as_bytes())).collect();
        if !data.is_empty() {
            parts.push(("data.json".to_owned(), data.as_bytes()));
        }
        let digest = digest(&parts);
        let files = self.found.into_values().map(|(path, text)| SourceFile { path, text }).collect();
        Ok(Sources { files, data: self.data, digest, warnings: self.warnings })
    }
}

/// Joins objects; a value that is in both is named.
fn merge(into: &mut Map<String, Value>, from: Map<String, Value>) -> Result<(), String> {
    for (name, value) in from {
        match (into.get_mut(&name), value) {
            (None, value) => drop(into.insert(name, value)),
            (Some(Value::Object(into)), Value::Object(from)) => merge(into, from)?,
            (Some(_), _) => return Err(name),
        }
    }
    Ok(())
}
