//! Files that are damaged, or never were ours.

use std::sync::OnceLock;

use super::*;

const FILES: [&str; 3] = ["greenlane.redb", "greenlane.redb.journal-0", "greenlane.redb.journal-1"];

/// The files of [`fill`], made once.
fn filled() -> &'static [Vec<u8>; 3] {
    static FILLED: OnceLock<[Vec<u8>; 3]> = OnceLock::new();
    FILLED.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        fill(folder.path());
        FILES.map(|file| fs::read(folder.path().join(file)).unwrap())
    })
}

fn lay_out(files: &[Vec<u8>; 3]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (file, octets) in FILES.iter().zip(files) {
        fs::write(folder.path().join(file), octets).unwrap();
    }
    folder
}

/// Opens, and holds what comes to what was stored. Looking first says the same or refuses, and changes nothing.
fn open_damaged(files: &[Vec<u8>; 3]) -> Restored {
    let folder = lay_out(files);
    let looked = look(&options(folder.path()).path, &Clock::manual(NOW));
    for (file, octets) in FILES.iter().zip(files) {
        assert!(fs::read(folder.path().join(file)).unwrap() == *octets, "looking writes nothing");
    }
    let restored = open(folder.path(), NOW).restored;
    for one in &restored.sightings {
        let host = one_host(one);
        assert!(host < 300, "{host} was never stored");
        assert_eq!(*one, kept(host, "a.example", NOW), "nor with these times");
    }
    match looked {
        Ok(look) => assert_eq!(by_key(&look.restored), by_key(&restored)),
        Err(error) => {
            assert!(matches!(error, StoreError::Unsound { .. }), "{error}");
            assert!(restored.sightings.is_empty(), "{error}");
        }
    }
    restored
}

fn one_host(one: &Kept) -> u32 {
    match one.addr {
        std::net::IpAddr::V4(addr) => addr.to_bits(),
        std::net::IpAddr::V6(_) => u32::MAX,
    }
}

#[test]
fn nothing_is_missing_without_damage() {
    assert_eq!(open_damaged(filled()).sightings.len(), 300);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]

    /// Any flipped bits, few or many: never a panic, never a sighting or a time that was not stored.
    #[test]
    fn flipped_bits_yield_nothing_that_was_not_stored(
        flips in proptest::collection::vec((0_usize..3, any::<proptest::sample::Index>(), 0_u8..8), 1..6),
    ) {
        let mut files = filled().clone();
        for (file, at, bit) in flips {
            let octets = &mut files[file];
            if !octets.is_empty() {
                let at = at.index(octets.len());
                octets[at] ^= 1 << bit;
            }
        }
        open_damaged(&files);
    }

    /// The same where it hurts: in what is used of the file, not in its empty room.
    #[test]
    fn flipped_bits_of_used_octets_yield_nothing_that_was_not_stored(
        at in any::<proptest::sample::Index>(), bit in 0_u8..8,
    ) {
        let mut files = filled().clone();
        let used: Vec<usize> = (0..files[0].len()).filter(|at| files[0][*at] != 0).collect();
        let at = used[at.index(used.len())];
        files[0][at] ^= 1 << bit;
        open_damaged(&files);
    }

    #[test]
    fn cut_files_yield_nothing_that_was_not_stored(file in 0_usize..3, len in any::<proptest::sample::Index>()) {
        let mut files = filled().clone();
        let len = len.index(files[file].len().max(1));
        files[file].truncate(len);
        open_damaged(&files);
    }
}

#[test]
fn every_kind_of_stranger_is_set_aside_whole() {
    let sound = &filled()[0];
    let strangers: [(&str, Vec<u8>); 9] = [
        ("text", b"dear diary".to_vec()),
        ("one octet", vec![0]),
        ("zeros", vec![0; 4096]),
        ("many zeros", vec![0; 3 << 20]),
        ("SQLite", [&b"SQLite format 3\0"[..], &[1; 5000]].concat()),
        ("an executable", [&b"\x7fELF\x02\x01\x01"[..], &[7; 9000]].concat()),
        ("a journal in its place", filled()[1].clone()),
        ("half a database", sound[..sound.len() / 2].to_vec()),
        ("a database without its head", sound[4096..].to_vec()),
    ];
    for (what, octets) in strangers {
        let folder = tempfile::tempdir().unwrap();
        let path = options(folder.path()).path;
        fs::write(&path, &octets).unwrap();
        let error = look(&path, &Clock::manual(NOW)).unwrap_err();
        assert!(matches!(error, StoreError::Unsound { .. }), "{what}: {error}");
        let mut work = Work::start(open(folder.path(), NOW));
        assert_eq!(work.tell(vec![put(1)]), Applied::Held, "{what}");
        work.stop();
        let aside = folder.path().join("greenlane.redb.damaged-1800000000");
        // What begins as a database of ours may be half repaired before that proves vain.
        let is_ours = octets.starts_with(&sound[..64]);
        assert!(is_ours || fs::read(&aside).unwrap() == octets, "{what}: it is whole");
        assert_eq!(hosts(&open(folder.path(), NOW).restored), [1], "{what}");
    }
}
