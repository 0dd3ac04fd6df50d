//! The loss of power, played: of what was not synced any part reaches the disk, by sectors, in any order.

use super::*;
use crate::store::disk::Power;

/// The files as a loss of power at this moment may leave them. The journals first, see `copy`.
fn lose_power(powers: &[Arc<Power>; 3], seed: u64) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let names = ["greenlane.redb.journal-0", "greenlane.redb.journal-1", "greenlane.redb"];
    for (n, (name, power)) in names.iter().zip(powers).enumerate() {
        fs::write(folder.path().join(name), power.lose(seed ^ n as u64)).unwrap();
    }
    folder
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Whatever reaches the disk of what was not synced: with `disk` all that was answered as held is there, with
    /// `process` all that the database had taken; never anything else, and consumers are told a new session.
    #[test]
    fn loss_of_power_leaves_what_was_synced(
        is_disk: bool,
        steps in proptest::collection::vec((1_u32..30, 0_u8..4), 1..8),
        seeds in proptest::collection::vec(any::<u64>(), 3),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let durability = if is_disk { Durability::Disk } else { Durability::Process };
        let opened = Store::open_in_boot(&Options { durability, ..options(folder.path()) }, NOW, boot("first")).unwrap();
        let [first, second] = &opened.store.journals;
        let powers = [first.faults(), second.faults(), opened.store.disk.faults()].map(|faults| faults.power());
        let mut work = Work::start(opened);
        let session = work.session;
        let (mut told, mut synced) = (0, 0);
        for (count, what) in steps {
            let sightings = (told..told + count).map(put).collect();
            prop_assert_eq!(work.tell(sightings), Applied::Held);
            told += count;
            if what == 0 {
                work.until(|work| work.metric("greenlane_store_sightings") == u64::from(told));
                synced = told;
            }
            if is_disk {
                synced = told;
            }
            for seed in &seeds {
                let left = lose_power(&powers, *seed);
                let restored = Store::open_in_boot(&options(left.path()), NOW, boot("second")).unwrap().restored;
                let there = hosts(&restored);
                prop_assert!(there.iter().all(|host| *host < told), "{:?}", there);
                let found = by_key(&restored);
                for host in &there {
                    let one = kept(*host, "a.example", NOW);
                    prop_assert_eq!(&found[&format!("{} a.example", one.addr)], &one);
                }
                prop_assert!((0..synced).all(|host| there.binary_search(&host).is_ok()), "{} synced, {:?}", synced, there);
                prop_assert!(restored.session != session, "a new session");
            }
        }
    }
}
