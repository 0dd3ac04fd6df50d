//! Files of earlier schemas are read, and become files of this one.
//!
//! `tests/store/` holds the files of each schema as a kill left them: the database with sightings 0 to 19, one journal
//! with 20 to 29 and without 3. Before a change of the schema its last files are written with
//! `cargo test --lib store::tests::migrate -- --ignored`.

use std::io::Read as _;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

use super::*;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/store");

const FILES: [&str; 3] = ["greenlane.redb", "greenlane.redb.journal-0", "greenlane.redb.journal-1"];

fn packed_name(schema: u64, file: &str) -> String {
    format!("{FOLDER}/schema-{schema}.{}.gz", file.replace("greenlane.redb", "store"))
}

/// A sighting of the files: IPv4 and IPv6 in turns, each with times of its own.
fn one(n: u32) -> Kept {
    let mut one = kept(n, &format!("n{n}.a.example"), NOW.after(Duration::from_secs(n.into())));
    if n % 2 == 1 {
        one.addr = std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n as u16).into();
    }
    one
}

#[test]
#[ignore = "writes the files of the present schema"]
fn write_files_of_this_schema() {
    let folder = tempfile::tempdir().unwrap();
    let mut work = Work::start(open(folder.path(), NOW));
    work.tell((0..20).map(|n| SightingChange::Put(one(n))).collect());
    work.until(|work| work.metric("greenlane_store_sightings") == 20);
    let mut later: Vec<_> = (20..30).map(|n| SightingChange::Put(one(n))).collect();
    later.push(SightingChange::Gone { addr: one(3).addr, name: one(3).name });
    work.tell(later);
    copy(folder.path(), |copy| {
        for file in FILES {
            let to = packed_name(table::SCHEMA, file);
            let mut packed = GzEncoder::new(fs::File::create(to).unwrap(), Compression::best());
            packed.write_all(&fs::read(copy.join(file)).unwrap()).unwrap();
            packed.finish().unwrap();
        }
    });
}

/// Lays out the files of a schema.
fn files_of(schema: u64) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in FILES {
        let packed = fs::File::open(packed_name(schema, file)).unwrap();
        let mut octets = Vec::new();
        GzDecoder::new(packed).read_to_end(&mut octets).unwrap();
        fs::write(folder.path().join(file), octets).unwrap();
    }
    folder
}

#[test]
fn files_of_every_schema_are_read_and_become_files_of_this_one() {
    for schema in 1..=table::SCHEMA {
        let folder = files_of(schema);
        let expected: BTreeMap<String, Kept> =
            (0..30).filter(|n| *n != 3).map(one).map(|kept| (format!("{} {}", kept.addr, kept.name), kept)).collect();
        // A second later than the last one was seen: nothing is bound.
        let now = NOW.after(Duration::from_secs(30));
        let opened = open(folder.path(), now);
        assert_eq!(by_key(&opened.restored), expected, "schema {schema}");
        let session = opened.restored.session;
        let mut work = Work::start(opened);
        work.tell(vec![put(99)]);
        work.stop_in_order();
        let disk = Disk::lock(&folder.path().join(FILES[0])).unwrap();
        let (table, _) = Table::open(disk).unwrap();
        assert_eq!(table.schema().unwrap(), table::SCHEMA);
        table.close().unwrap();
        let again = open(folder.path(), now).restored;
        assert_eq!((again.session, again.sightings.len()), (session, expected.len() + 1));
        let aside = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(aside, FILES.len(), "nothing was set aside");
    }
}
