//! The wall clock is set between two runs, forward and back, and again; what clients were told stays as long.

use super::*;

const HOUR: i64 = 3_600_000;

/// Opens in one boot whose wall clock was set by so much since it started at [`NOW`] and is so old.
fn open_at(folder: &Path, set_millis: i64, age: Duration) -> Opened {
    let ahead_millis = i64::try_from(NOW.as_millis()).unwrap() + set_millis;
    let boot = Boot { ahead_millis: Some(ahead_millis), ..boot("this boot") };
    let now = NOW.shifted(set_millis).after(age);
    Store::open_in_boot(&options(folder), now, boot).unwrap()
}

fn times(restored: &Restored, set_millis: i64) -> Vec<(u32, Timestamp, Timestamp)> {
    let back = |time: Timestamp| time.shifted(-set_millis);
    let hosts = hosts(restored);
    let ends = hosts.iter().map(|host| {
        let kept = restored.sightings.iter().find(|kept| kept.addr == put_addr(*host)).unwrap();
        (*host, back(kept.told_until), back(kept.end))
    });
    ends.collect()
}

fn put_addr(host: u32) -> std::net::IpAddr {
    kept(host, "a.example", NOW).addr
}

#[test]
fn wall_clock_that_is_set_between_two_runs_moves_no_end() {
    for set in [-HOUR, 24 * HOUR, -30 * 24 * HOUR, 101, -101, 3, 0] {
        let folder = tempfile::tempdir().unwrap();
        let mut work = Work::start(open_at(folder.path(), 0, Duration::ZERO));
        work.tell(vec![put(1)]);
        work.until(|work| work.metric("greenlane_store_sightings") == 1);
        work.tell(vec![put(2)]);
        work.stop();
        // Killed, set, and started 40 seconds later; what the process writes then is told in the new clock.
        let opened = open_at(folder.path(), set, Duration::from_secs(40));
        let expected = [1, 2].map(|host| {
            let kept = kept(host, "a.example", NOW);
            (host, kept.told_until, kept.end)
        });
        let unseen = if set.abs() < 100 { set } else { 0 };
        assert_eq!(times(&opened.restored, set - unseen), expected, "set by {set} ms");
        drop(opened);
        // Killed before it wrote anything, and the clock is set right.
        let opened = open_at(folder.path(), 0, Duration::from_secs(50));
        assert_eq!(times(&opened.restored, 0), expected, "set by {set} ms and back");
        drop(opened);
        // The ends come when they come.
        let opened = open_at(folder.path(), set, Duration::from_secs(1600));
        assert!(opened.restored.sightings.is_empty(), "set by {set} ms");
    }
}

#[test]
fn over_a_reboot_ends_are_wall_time_and_never_longer_than_granted() {
    for (set, expected) in [(0, vec![1]), (24 * HOUR, vec![]), (-HOUR, vec![1])] {
        let folder = tempfile::tempdir().unwrap();
        let mut work = Work::start(open_at(folder.path(), 0, Duration::ZERO));
        work.tell(vec![put(1)]);
        work.stop_in_order();
        let now = NOW.shifted(set).after(Duration::from_secs(40));
        let next = Boot { id: Some("next boot".to_owned()), ahead_millis: Some(77) };
        let opened = Store::open_in_boot(&options(folder.path()), now, next).unwrap();
        assert_eq!(hosts(&opened.restored), expected, "set by {set} ms");
        for kept in &opened.restored.sightings {
            assert!(kept.end.since(now) <= Duration::from_secs(900), "{kept:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// However often the clock is set and the process killed, an end stays where it is in the boot's own time.
    #[test]
    fn no_sequence_of_steps_moves_an_end(steps in proptest::collection::vec((-90_000_000_i64..90_000_000, 0_u64..40), 1..8)) {
        let folder = tempfile::tempdir().unwrap();
        let mut work = Work::start(open_at(folder.path(), 0, Duration::ZERO));
        work.tell(vec![put(1)]);
        work.stop();
        let mut age = Duration::ZERO;
        for (set, pause) in steps {
            age += Duration::from_secs(pause);
            let opened = open_at(folder.path(), set, age);
            let granted = opened.restored.sightings.first().map(|kept| kept.granted.shifted(-set));
            let expected = kept(1, "a.example", NOW).granted;
            let difference = granted.map(|granted| granted.as_millis().abs_diff(expected.as_millis()));
            // Steps below a tenth of a second are not seen; eight of them are less than a second.
            prop_assert!(difference.is_some_and(|difference| difference < 1000), "{:?}", granted);
        }
    }
}
