//! Names of the superusers of a cluster, read out of its files: for a server that lets everybody in who names a role that is there, but
//! does not say which are.
//!
//! What is found are candidates. Whether a row still counts, only the server knows; it is asked with each of them. Nothing here may fail:
//! bytes that are not what they should be give no names.

/// Oid of `pg_authid`, and the number of its file while it was never rewritten (`src/include/catalog/pg_authid.h`).
pub const AUTHID: u32 = 1260;

/// `RELMAPPER_FILEMAGIC` in `src/backend/utils/cache/relmapper.c`.
const MAP_MAGIC: u32 = 0x0059_2717;

/// `BOOTSTRAP_SUPERUSERID`: the role that initdb made.
const BOOTSTRAP: u32 = 10;

/// `NAMEDATALEN`.
const NAME_BYTES: usize = 64;

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at.checked_add(2)?).map(|b| u16::from_le_bytes([b[0], b[1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

/// The number of the file in `global/` that holds `pg_authid`, by `global/pg_filenode.map`.
pub fn authid_file(map: &[u8]) -> u32 {
    let find = || {
        (u32_at(map, 0)? == MAP_MAGIC).then_some(())?;
        let count = usize::try_from(u32_at(map, 4)?).ok()?.min(64);
        (0..count).find(|entry| u32_at(map, 8 + entry * 8) == Some(AUTHID)).and_then(|entry| u32_at(map, 12 + entry * 8))
    };
    find().unwrap_or(AUTHID)
}

/// Superusers that may log in, by the bytes of `pg_authid`'s file; the one that initdb made comes first.
///
/// A page (`src/include/storage/bufpage.h`) has line pointers from byte 24 on, each of 15 bits of offset, 2 of flags, and 15 of length;
/// a tuple (`htup_details.h`) says in its byte 22 where its columns begin: oid, name, `rolsuper`, `rolinherit`, `rolcreaterole`,
/// `rolcreatedb`, `rolcanlogin` (13 to 18).
pub fn superusers(heap: &[u8], block_size: u32) -> Vec<String> {
    let mut found: Vec<(u32, String)> = Vec::new();
    let Some(block_size) = usize::try_from(block_size).ok().filter(|size| *size >= 1024) else { return Vec::new() };
    for page in heap.chunks_exact(block_size) {
        let lower = u16_at(page, 12).map_or(0, usize::from).min(block_size);
        for at in (24..lower.saturating_sub(3)).step_by(4) {
            let pointer = u32_at(page, at).unwrap_or(0);
            let (offset, flags) = ((pointer & 0x7fff) as usize, (pointer >> 15) & 3);
            // LP_NORMAL
            if flags == 1
                && let Some(role) = role(page, offset)
                && !found.contains(&role)
            {
                found.push(role);
            }
        }
    }
    found.sort_by_key(|(oid, _)| (*oid != BOOTSTRAP, *oid));
    found.dedup_by(|a, b| a.1 == b.1);
    found.into_iter().map(|(_, name)| name).collect()
}

fn role(page: &[u8], tuple: usize) -> Option<(u32, String)> {
    let columns = tuple + usize::from(*page.get(tuple.checked_add(22)?)?);
    let oid = u32_at(page, columns)?;
    let name = page.get(columns + 4..columns + 4 + NAME_BYTES)?;
    let name = &name[..name.iter().position(|byte| *byte == 0)?];
    let flags = page.get(columns + 4 + NAME_BYTES..columns + 9 + NAME_BYTES)?;
    let (superuser, can_login) = (flags[0] == 1, flags[4] == 1);
    (superuser && can_login && oid != 0 && !name.is_empty()).then_some(())?;
    Some((oid, String::from_utf8(name.to_vec()).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(roles: &[(u32, &str, bool, bool)]) -> Vec<u8> {
        let mut page = vec![0; 8192];
        let mut upper = 8192;
        for (index, (oid, name, superuser, login)) in roles.iter().enumerate() {
            upper -= 128;
            let pointer = upper as u32 | 1 << 15 | 128 << 17;
            page[24 + index * 4..28 + index * 4].copy_from_slice(&pointer.to_le_bytes());
            page[upper + 22] = 32;
            page[upper + 32..upper + 36].copy_from_slice(&oid.to_le_bytes());
            page[upper + 36..upper + 36 + name.len()].copy_from_slice(name.as_bytes());
            page[upper + 100] = u8::from(*superuser);
            page[upper + 104] = u8::from(*login);
        }
        page[12..14].copy_from_slice(&((24 + roles.len() * 4) as u16).to_le_bytes());
        page
    }

    #[test]
    fn superusers_that_may_log_in_are_found_the_first_one_first() {
        let mut heap = page(&[(3373, "pg_monitor", false, false), (16400, "ops", true, true), (16401, "app", false, true)]);
        heap.extend(page(&[(10, "böss", true, true), (16402, "gone", true, false)]));
        assert_eq!(superusers(&heap, 8192), ["böss", "ops"]);
    }

    #[test]
    fn bytes_of_anything_give_no_names_and_no_panic() {
        for filler in [0u8, 0x55, 0xff] {
            assert_eq!(superusers(&vec![filler; 8192], 8192), Vec::<String>::new());
            assert_eq!(authid_file(&vec![filler; 512]), AUTHID);
        }
        let mut state = 1u64;
        let mut noise = vec![0u8; 65536];
        for byte in &mut noise {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (state >> 56) as u8;
        }
        for size in [0, 1, 1024, 8192, 32768, u32::MAX] {
            let _ = superusers(&noise, size);
        }
        assert_eq!(authid_file(&[]), AUTHID);
    }

    #[test]
    fn the_map_names_the_file() {
        let mut map = vec![0; 512];
        for (at, value) in [(0, MAP_MAGIC), (4, 2), (8, 1262), (12, 1262), (16, AUTHID), (20, 90_210)] {
            map[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        assert_eq!(authid_file(&map), 90_210);
    }
}
