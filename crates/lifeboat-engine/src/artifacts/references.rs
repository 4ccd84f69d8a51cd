//! Comparing what the database refers to with the artifact set.

use lifeboat_core::repository::{Sha256, layout::ArtifactName};
use serde::Serialize;

use super::ArtifactError;
use super::catalog::ArtifactSet;

/// The most missing rows that are listed.
pub const MAX_LISTED: usize = 100;

/// What the comparison found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct References {
    /// Rows that the query gave.
    pub rows: u64,
    /// Rows whose artifact is not in the set, or has another digest there.
    pub missing_count: u64,
    /// The first [`MAX_LISTED`] of them, a line of text each.
    pub missing: Vec<String>,
}

/// Checks that every artifact that the database refers to, by name and SHA-256, is in the set with just
/// that digest. The digest may be as SQL prints it: in upper case, or as a `bytea` (`\x…`).
///
/// The rows come in any order and are looked at once. For that the set is kept in memory, 16 bytes for
/// each artifact (160 MB for ten million, and nothing for the rows): 8 bytes of a keyed hash of its
/// name and 8 of its digest. A row is taken for present by mistake if both collide, which at ten
/// million artifacts and as many rows happens once in 10^24 runs; the key is random, so that nobody
/// can prepare it.
pub fn cross_check<E: From<ArtifactError>>(
    set: &ArtifactSet<'_>,
    references: impl IntoIterator<Item = Result<(String, String), E>>,
) -> Result<References, E> {
    let key: [u8; 32] = crate::random::bytes();
    let known = set.entries("").map(|entry| entry.map(|entry| place(&key, entry.name.as_str(), entry.sha256)));
    let mut known = known.collect::<Result<Vec<_>, ArtifactError>>()?;
    known.sort_unstable();
    let mut found = References::default();
    for row in references {
        let (name, digest) = row?;
        found.rows += 1;
        let Some(problem) = compare(&key, &known, &name, &digest) else { continue };
        found.missing_count += 1;
        if found.missing.len() < MAX_LISTED {
            let name: String = name.chars().take(200).collect();
            found.missing.push(format!("{}: {problem}", name.escape_debug()));
        }
    }
    Ok(found)
}

fn compare(key: &[u8; 32], known: &[(u64, u64)], name: &str, digest: &str) -> Option<String> {
    let Some(sha256) = normal(digest) else {
        let shown: String = digest.chars().take(80).collect();
        return Some(format!("the database has {shown:?}, which is no SHA-256"));
    };
    let wanted = place(key, name, sha256);
    if known.binary_search(&wanted).is_ok() {
        return None;
    }
    let start = known.partition_point(|(name, _)| *name < wanted.0);
    if known.get(start).is_some_and(|(name, _)| *name == wanted.0) {
        return Some(format!("the database wants sha256 {sha256}, the set has another"));
    }
    Some(match name.parse::<ArtifactName>() {
        Ok(_) => "not in the set".into(),
        Err(_) => "not in the set, and no name that an artifact can have".into(),
    })
}

fn place(key: &[u8; 32], name: &str, sha256: Sha256) -> (u64, u64) {
    let half = |bytes: &[u8]| {
        let hash = blake3::keyed_hash(key, bytes);
        u64::from_le_bytes(*hash.as_bytes().first_chunk().expect("BLAKE3 has 32 bytes"))
    };
    (half(name.as_bytes()), half(&sha256.0))
}

/// A digest as SQL may print it.
fn normal(text: &str) -> Option<Sha256> {
    let text = text.trim();
    let text = text.strip_prefix("\\x").or_else(|| text.strip_prefix("sha256:")).unwrap_or(text);
    text.to_ascii_lowercase().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_read_as_sql_prints_them() {
        let digest = Sha256::of(b"x");
        for text in
            [format!("{digest}"), format!("\\x{digest}"), format!(" {}\n", digest.to_string().to_uppercase()), format!("sha256:{digest}")]
        {
            assert_eq!(normal(&text), Some(digest), "{text}");
        }
        for text in ["", "\\x", "abc", &format!("{digest}0")] {
            assert_eq!(normal(text), None, "{text}");
        }
    }
}
