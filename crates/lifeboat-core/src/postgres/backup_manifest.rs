//! PostgreSQL's `backup_manifest`: written for copies that PostgreSQL did not make itself, and
//! adjusted where a restore changes `pg_control`.
//!
//! The format is that of the manual's appendix "Backup Manifest Format" (version 1; PostgreSQL 17 and
//! later take version 2, which adds the system identifier).

use sha2::{Digest as _, Sha256};

use crate::wal::{Lsn, SystemId, Timeline};

/// One file in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestFile {
    /// Path relative to the data directory; tablespaces below `pg_tblspc/<oid>/`.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Time of last change.
    pub modified: jiff::Timestamp,
    /// CRC-32C of its bytes.
    pub crc32c: u32,
}

/// What goes into it beside files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManifestFacts {
    /// Like 150018.
    pub version_num: u32,
    /// The cluster's number.
    pub system_id: SystemId,
    /// Timeline of the WAL that is needed.
    pub timeline: Timeline,
    /// Where it begins.
    pub start: Lsn,
    /// Where it ends.
    pub stop: Lsn,
}

/// The CRC as the manifest prints it: pg_basebackup prints the bytes in memory order.
fn crc_text(crc: u32) -> String {
    hex::encode(crc.to_le_bytes())
}

/// Writes a manifest.
pub fn encode(facts: &ManifestFacts, files: &[ManifestFile]) -> Vec<u8> {
    let mut text = String::from("{ ");
    if facts.version_num >= 170_000 {
        text.push_str(&format!("\"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": {},\n", facts.system_id));
    } else {
        text.push_str("\"PostgreSQL-Backup-Manifest-Version\": 1,\n");
    }
    text.push_str("\"Files\": [");
    for (number, file) in files.iter().enumerate() {
        let path = serde_json::to_string(&file.path).expect("text is JSON");
        let at = file.modified.to_zoned(jiff::tz::TimeZone::UTC);
        let modified =
            format!("{:04}-{:02}-{:02} {:02}:{:02}:{:02} GMT", at.year(), at.month(), at.day(), at.hour(), at.minute(), at.second());
        text.push_str(&format!(
            "{}\n{{ \"Path\": {path}, \"Size\": {}, \"Last-Modified\": \"{modified}\", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{}\" }}",
            if number == 0 { "" } else { "," },
            file.size,
            crc_text(file.crc32c)
        ));
    }
    text.push_str(&format!(
        "\n],\n\"WAL-Ranges\": [\n{{ \"Timeline\": {}, \"Start-LSN\": \"{}\", \"End-LSN\": \"{}\" }}\n],\n",
        facts.timeline, facts.start, facts.stop
    ));
    finish(text)
}

fn finish(mut text: String) -> Vec<u8> {
    let digest = Sha256::digest(text.as_bytes());
    text.push_str(&format!("\"Manifest-Checksum\": \"{}\"}}\n", hex::encode(digest)));
    text.into_bytes()
}

/// Why a manifest could not be adjusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("adjust backup_manifest: {0}")]
pub struct AdjustError(&'static str);

/// The same manifest for a file with other bytes: its line and the manifest's own checksum change,
/// nothing else.
pub fn with_file(manifest: &[u8], path: &str, bytes: &[u8]) -> Result<Vec<u8>, AdjustError> {
    let text = std::str::from_utf8(manifest).map_err(|_| AdjustError("it is not text"))?;
    let path_at = text.find(&format!("\"Path\": \"{path}\"")).ok_or(AdjustError("it does not name a file that was restored"))?;
    let line_end = path_at + text[path_at..].find('}').ok_or(AdjustError("a line does not end"))?;
    let line = &text[path_at..line_end];
    let value = |name: &str, quote: &str, end: char| -> Option<std::ops::Range<usize>> {
        let marker = format!("\"{name}\": {quote}");
        let at = path_at + line.find(&marker)? + marker.len();
        Some(at..at + text[at..line_end].find(end)?)
    };
    let size = value("Size", "", ',').ok_or(AdjustError("a line has no size"))?;
    let body_end =
        text.rfind("\"Manifest-Checksum\"").filter(|at| *at > line_end).ok_or(AdjustError("its own checksum is not at the end"))?;
    let (before, rest) = (&text[..size.start], size.end);
    let head = format!("{before}{}", bytes.len());
    let (Some(algorithm), Some(checksum)) = (value("Checksum-Algorithm", "\"", '"'), value("Checksum", "\"", '"')) else {
        // MANIFEST_CHECKSUMS NONE.
        return Ok(finish(format!("{head}{}", &text[rest..body_end])));
    };
    let new = match &text[algorithm] {
        "CRC32C" => crc_text(crc32c::crc32c(bytes)),
        "SHA224" => hex::encode(sha2::Sha224::digest(bytes)),
        "SHA256" => hex::encode(Sha256::digest(bytes)),
        "SHA384" => hex::encode(sha2::Sha384::digest(bytes)),
        "SHA512" => hex::encode(sha2::Sha512::digest(bytes)),
        _ => return Err(AdjustError("a checksum algorithm is not known")),
    };
    if checksum.start < rest {
        return Err(AdjustError("the checksum stands before the size"));
    }
    Ok(finish(format!("{head}{}{new}{}", &text[rest..checksum.start], &text[checksum.end..body_end])))
}

/// The same manifest without files that were left out of the backup. As PostgreSQL writes it, every file has a line of its own
/// (`src/backend/backup/backup_manifest.c`).
pub fn without(manifest: &[u8], paths: &[String]) -> Result<Vec<u8>, AdjustError> {
    let text = std::str::from_utf8(manifest).map_err(|_| AdjustError("it is not text"))?;
    let body_end = text.rfind("\"Manifest-Checksum\"").ok_or(AdjustError("its own checksum is not at the end"))?;
    let marks: Vec<String> = paths.iter().map(|path| format!("{{ \"Path\": {},", serde_json::Value::from(path.as_str()))).collect();
    let mut kept = String::with_capacity(text.len());
    for line in text[..body_end].split_inclusive('\n') {
        if !marks.iter().any(|mark| line.starts_with(mark)) {
            if line.starts_with(']') && kept.ends_with(",\n") {
                kept.truncate(kept.len() - 2);
                kept.push('\n');
            }
            kept.push_str(line);
        }
    }
    Ok(finish(kept))
}

/// Whether the manifest's own checksum is that of its bytes.
pub fn checksum_holds(manifest: &[u8]) -> bool {
    let marker = b"\"Manifest-Checksum\": \"";
    let Some(at) = manifest.windows(marker.len()).rposition(|window| window == marker) else { return false };
    let stored = manifest.get(at + marker.len()..at + marker.len() + 64);
    stored.is_some_and(|stored| hex::encode(Sha256::digest(&manifest[..at])).as_bytes() == stored)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(version_num: u32) -> ManifestFacts {
        ManifestFacts { version_num, system_id: SystemId(7), timeline: Timeline(1), start: Lsn(0x200_0028), stop: Lsn(0x200_0100) }
    }

    fn files() -> Vec<ManifestFile> {
        let file = |path: &str, bytes: &[u8]| ManifestFile {
            path: path.into(),
            size: bytes.len() as u64,
            modified: "2024-03-15T12:00:00.9Z".parse().unwrap(),
            crc32c: crc32c::crc32c(bytes),
        };
        vec![file("PG_VERSION", b"15\n"), file("global/pg_control", b"old"), file("odd \"name\"", b"")]
    }

    #[test]
    fn what_is_written_is_json_with_its_own_checksum() {
        for version in [150_000, 170_000] {
            let manifest = encode(&facts(version), &files());
            assert!(checksum_holds(&manifest));
            let json: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
            assert_eq!(json["Files"][2]["Path"], "odd \"name\"");
            assert_eq!(json["Files"][0]["Last-Modified"], "2024-03-15 12:00:00 GMT");
            assert_eq!(json["WAL-Ranges"][0]["Start-LSN"], "0/2000028");
            assert_eq!(json.get("System-Identifier").is_some(), version >= 170_000);
            let mut damaged = manifest.clone();
            damaged[40] ^= 1;
            assert!(!checksum_holds(&damaged));
        }
    }

    #[test]
    fn only_the_line_of_the_file_changes() {
        let before = encode(&facts(150_000), &files());
        let after = with_file(&before, "global/pg_control", b"newer").unwrap();
        assert!(checksum_holds(&after));
        let (before, after): (serde_json::Value, serde_json::Value) =
            (serde_json::from_slice(&before).unwrap(), serde_json::from_slice(&after).unwrap());
        assert_eq!(before["Files"][0], after["Files"][0]);
        assert_eq!(after["Files"][1]["Checksum"], crc_text(crc32c::crc32c(b"newer")));
        assert_eq!(after["Files"][1]["Size"], 5);
        assert_eq!(before["WAL-Ranges"], after["WAL-Ranges"]);
        for (path, left) in [("PG_VERSION", 2), ("odd \"name\"", 2), ("absent", 3)] {
            let less = without(&encode(&facts(150_000), &files()), &[path.to_owned()]).unwrap();
            assert!(checksum_holds(&less));
            let json: serde_json::Value = serde_json::from_slice(&less).unwrap();
            assert_eq!(json["Files"].as_array().unwrap().len(), left, "{path}");
        }
        assert!(with_file(b"{}", "x", b"").is_err());
        assert!(with_file(&encode(&facts(150_000), &files()), "absent", b"").is_err());
    }
}
