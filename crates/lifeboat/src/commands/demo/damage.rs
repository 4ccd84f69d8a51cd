//! Damage on purpose: one bit of a repository.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Copies a repository: plain files and directories, as `cp -R` does.
pub(super) fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

fn walk(directory: &Path, found: &mut Vec<(u64, PathBuf)>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), found)?;
        } else {
            found.push((entry.metadata()?.len(), entry.path()));
        }
    }
    Ok(())
}

/// Bytes of all files below a directory.
pub(super) fn bytes(directory: &Path) -> io::Result<u64> {
    let mut found = Vec::new();
    walk(directory, &mut found)?;
    Ok(found.iter().map(|(length, _)| length).sum())
}

/// The largest file below a directory.
pub(super) fn largest(directory: &Path) -> io::Result<PathBuf> {
    let mut found = Vec::new();
    walk(directory, &mut found)?;
    found.into_iter().max().map(|(_, path)| path).ok_or_else(|| io::Error::other("there is no file"))
}

/// Turns the lowest bit of the byte in the middle of a file around; returns that byte's position.
pub(super) fn flip(path: &Path) -> io::Result<u64> {
    let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    let at = file.metadata()?.len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    byte[0] ^= 1;
    file.write_all_at(&byte, at)?;
    Ok(at)
}
