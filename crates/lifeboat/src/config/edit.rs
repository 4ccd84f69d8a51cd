//! Changing a configuration file in place: one value replaced where it stands, everything else as somebody wrote it.
//!
//! A new text is read again before it replaces the file, and replaces it at once and durably: a crash leaves the one or the other.

use std::io::Write as _;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Spanned, Value};

use crate::failure::{EXIT_FAILED, Failure};

/// A file and its text to be.
pub(crate) struct Edit {
    path: PathBuf,
    text: String,
}

#[derive(Deserialize)]
struct Shape {
    signing: Option<Signing>,
    trust: Option<Trust>,
}

#[derive(Deserialize)]
struct Signing {
    key_file: Option<Spanned<String>>,
}

#[derive(Deserialize)]
struct Trust {
    keys: Option<Spanned<Vec<Spanned<Value>>>>,
}

impl Edit {
    /// Begins with what is in the file, or with `initial` where there is none.
    pub(crate) fn open(path: &Path, initial: Option<&str>) -> Result<Self, Failure> {
        // The file itself, not a link to it: the link stays.
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        match (std::fs::read_to_string(&path), initial) {
            (Ok(text), _) => Ok(Self { path, text }),
            (Err(error), Some(initial)) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self { path, text: initial.to_owned() }),
            (Err(error), _) => Err(failed(&path, "read", &error)),
        }
    }

    fn shape(&self) -> Result<Shape, Failure> {
        toml::from_str(&self.text).map_err(|error| {
            Failure::usage(format!("read configuration {}: {}", self.path.display(), error.message().replace('\n', " ")))
                .hint("lifeboat config show prints it as read")
        })
    }

    /// The entries of `trust.keys`, as written.
    pub(crate) fn trust_keys(&self) -> Result<Vec<Value>, Failure> {
        let keys = self.shape()?.trust.and_then(|trust| trust.keys);
        Ok(keys.map_or_else(Vec::new, |keys| keys.into_inner().into_iter().map(Spanned::into_inner).collect()))
    }

    /// Sets `signing.key_file`, which has to stand there.
    pub(crate) fn set_key_file(&mut self, value: &str) -> Result<(), Failure> {
        let place = self.shape()?.signing.and_then(|signing| signing.key_file).map(|key_file| key_file.span());
        let place = place.ok_or_else(|| self.nowhere("signing.key_file"))?;
        self.replace(place, &Value::String(value.to_owned()).to_string());
        Ok(())
    }

    /// Replaces the entry number `index` of `trust.keys`.
    pub(crate) fn set_trust_key(&mut self, index: usize, entry: &Value) -> Result<(), Failure> {
        let keys = self.shape()?.trust.and_then(|trust| trust.keys).ok_or_else(|| self.nowhere("trust.keys"))?;
        let place = keys.get_ref().get(index).map(Spanned::span).ok_or_else(|| self.nowhere("trust.keys"))?;
        self.replace(place, &entry.to_string());
        Ok(())
    }

    /// Adds an entry at the end of `trust.keys`, which has to stand there.
    pub(crate) fn add_trust_key(&mut self, entry: &Value) -> Result<(), Failure> {
        let keys = self.shape()?.trust.and_then(|trust| trust.keys).ok_or_else(|| self.nowhere("trust.keys"))?;
        match keys.get_ref().last().map(Spanned::span) {
            Some(last) => {
                let line_start = self.text[..last.start].rfind('\n').map_or(0, |at| at + 1);
                let indent = self.text[line_start..last.start].to_owned();
                let behind = &self.text[last.end..];
                let comma =
                    behind.trim_start_matches([' ', '\t']).starts_with(',').then(|| last.end + behind.find(',').unwrap_or_default() + 1);
                let line_end = behind.find('\n').map_or(self.text.len(), |at| last.end + at);
                let rest = self.text[comma.unwrap_or(last.end).min(line_end)..line_end].trim();
                if indent.trim().is_empty() && (rest.is_empty() || rest.starts_with('#')) {
                    // On a line of its own, as the last one has, indented alike; a comment stays with what it is about.
                    self.replace(line_end..line_end, &format!("\n{indent}{entry},"));
                    if comma.is_none() {
                        self.replace(last.end..last.end, ",");
                    }
                } else {
                    self.replace(last.end..last.end, &format!(", {entry}"));
                }
            }
            None => self.replace(keys.span(), &format!("[{entry}]")),
        }
        Ok(())
    }

    fn replace(&mut self, place: Range<usize>, with: &str) {
        self.text.replace_range(place, with);
    }

    fn nowhere(&self, setting: &str) -> Failure {
        Failure::usage(format!("change configuration {}: {setting} does not stand there", self.path.display()))
            .hint("write it there by hand as printed without --write-config; lifeboat config show prints where it comes from")
    }

    /// Replaces the file. `check` reads the new text; what it refuses is not written.
    pub(crate) fn commit(self, check: impl FnOnce(&str) -> Result<(), Failure>) -> Result<PathBuf, Failure> {
        check(&self.text)?;
        let Self { path, text } = self;
        let (directory, name) = (path.parent().unwrap_or(Path::new(".")), path.file_name().unwrap_or_default());
        let temporary = directory.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
        let write = || -> std::io::Result<()> {
            let before = std::fs::metadata(&path).ok();
            let mode = before.as_ref().map_or(0o600, |meta| meta.permissions().mode() & 0o7777);
            let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.set_permissions(std::fs::Permissions::from_mode(mode))?;
            // Only root can give a file away, and only root finds one of somebody else that it may replace.
            if let Some(meta) = before {
                let _ = std::os::unix::fs::fchown(&file, Some(meta.uid()), Some(meta.gid()));
            }
            file.sync_all()?;
            std::fs::rename(&temporary, &path)?;
            std::fs::File::open(directory)?.sync_all()
        };
        write().map_err(|error| {
            let _ = std::fs::remove_file(&temporary);
            failed(&path, "change", &error)
        })?;
        Ok(path)
    }
}

fn failed(path: &Path, action: &str, error: &std::io::Error) -> Failure {
    Failure::new(EXIT_FAILED, format!("{action} configuration {}: {error}", path.display()))
        .hint("write it there by hand as printed without --write-config; lifeboat config show names the file")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edit(text: &str) -> Edit {
        Edit { path: "x.toml".into(), text: text.to_owned() }
    }

    #[test]
    fn one_value_changes_and_nothing_else() {
        let text = "# mine\nname = 'x' # really\n[signing] # who\nkey_file = 'a.key' # old\n[trust]\nkeys = [\n    # the first\n    'a.pub', # ours\n    { file = 'b.pub' }, # theirs\n]\n";
        let mut edit = edit(text);
        edit.set_key_file("a-2.key").unwrap();
        edit.set_trust_key(0, &toml::from_str::<toml::Table>("file = 'a.pub'\nnot_after = '2024-01-01T00:00:00Z'").unwrap().into())
            .unwrap();
        edit.add_trust_key(&Value::String("a-2.pub".into())).unwrap();
        assert_eq!(
            edit.text,
            "# mine\nname = 'x' # really\n[signing] # who\nkey_file = \"a-2.key\" # old\n[trust]\nkeys = [\n    # the first\n    { file = \"a.pub\", not_after = \"2024-01-01T00:00:00Z\" }, # ours\n    { file = 'b.pub' }, # theirs\n    \"a-2.pub\",\n]\n"
        );
        assert_eq!(edit.trust_keys().unwrap().len(), 3);
    }

    #[test]
    fn keys_in_one_line_and_none_at_all() {
        let mut one = edit("[trust]\nkeys = ['a.pub'] # those\n");
        one.add_trust_key(&Value::String("b".into())).unwrap();
        assert_eq!(one.text, "[trust]\nkeys = ['a.pub', \"b\"] # those\n");
        let mut bare = edit("[trust]\nkeys = [\n  'a.pub' # those\n]\n");
        bare.add_trust_key(&Value::String("b".into())).unwrap();
        assert_eq!(bare.text, "[trust]\nkeys = [\n  'a.pub', # those\n  \"b\",\n]\n");
        let mut none = edit("trust.keys = []\n");
        none.add_trust_key(&Value::String("b".into())).unwrap();
        assert_eq!(none.text, "trust.keys = [\"b\"]\n");
        assert!(edit("name = 'x'").add_trust_key(&Value::String("b".into())).is_err());
        assert!(edit("name = 'x'").set_key_file("b").is_err());
        assert!(edit("[trust]\nkeys = []").set_trust_key(0, &Value::String("b".into())).is_err());
    }

    #[test]
    fn a_file_is_replaced_at_once_and_keeps_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.toml");
        std::fs::write(&path, "trust.keys = []\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let link = directory.path().join("link.toml");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let mut edit = Edit::open(&link, None).unwrap();
        edit.add_trust_key(&Value::String("b".into())).unwrap();
        edit.commit(|_| Ok(())).unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "trust.keys = [\"b\"]\n");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        let refused = Edit::open(&path, None).unwrap().commit(|_| Err(Failure::usage("no")));
        assert!(refused.is_err());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2, "nothing is left behind");
    }
}
