use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use proptest::prelude::*;

use super::disk::Faults;
use super::testing::kept;
use super::*;
use crate::clock::Clock;
use crate::metrics::Registry;
use crate::set::outlet::{Applied, Change, Outlet, Reply, SightingChange, State, outlet};

mod clocks;
mod damage;
mod migrate;
mod power;

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

fn options(folder: &Path) -> Options {
    Options { path: folder.join("greenlane.redb"), durability: Durability::Process }
}

fn boot(id: &str) -> Boot {
    Boot { id: Some(id.to_owned()), ahead_millis: None }
}

fn open(folder: &Path, now: Timestamp) -> Opened {
    Store::open_in_boot(&options(folder), now, boot("this boot")).unwrap()
}

/// What was restored, by address and name.
fn by_key(restored: &Restored) -> BTreeMap<String, Kept> {
    let named = restored.sightings.iter().map(|kept| (format!("{} {}", kept.addr, kept.name), kept.clone()));
    let found: BTreeMap<_, _> = named.collect();
    assert_eq!(found.len(), restored.sightings.len(), "each pair once");
    found
}

fn hosts(restored: &Restored) -> Vec<u32> {
    let bits = |kept: &Kept| match kept.addr {
        std::net::IpAddr::V4(addr) => addr.to_bits(),
        std::net::IpAddr::V6(_) => unreachable!("the tests use IPv4"),
    };
    let mut hosts: Vec<_> = restored.sightings.iter().map(bits).collect();
    hosts.sort_unstable();
    hosts
}

fn put(host: u32) -> SightingChange {
    SightingChange::Put(kept(host, "a.example", NOW))
}

fn gone(host: u32) -> SightingChange {
    let Kept { addr, name, .. } = kept(host, "a.example", NOW);
    SightingChange::Gone { addr, name }
}

/// A store at work, with its writer in our hands.
struct Work {
    outlet: Option<Outlet>,
    thread: Option<JoinHandle<()>>,
    clock: Clock,
    registry: Registry,
    session: Session,
    serial: u64,
}

impl Work {
    fn start(opened: Opened) -> Self {
        let (outlet, intake) = outlet("store");
        let (registry, clock) = (Registry::new(), Clock::manual(NOW));
        let (metrics, twin) = (Metrics::new(&registry), clock.clone());
        let Restored { session, serial, .. } = opened.restored;
        let thread = std::thread::spawn(move || run(opened.store, intake, &twin, metrics));
        Self { outlet: Some(outlet), thread: Some(thread), clock, registry, session, serial }
    }

    fn send(&mut self, sightings: Vec<SightingChange>, (whole, last): (bool, bool)) -> Reply {
        self.serial += 1;
        let change = Change { whole, last, sightings, ..Change::empty(self.session, self.serial, NOW) };
        self.outlet.as_ref().unwrap().send(&Arc::new(change)).unwrap()
    }

    fn tell(&mut self, sightings: Vec<SightingChange>) -> Applied {
        answer(self.send(sightings, (false, false)))
    }

    /// Lets time pass until `is_so`: transactions begin and end.
    fn until(&mut self, is_so: impl Fn(&Self) -> bool) {
        for _ in 0..2000 {
            if is_so(self) {
                return;
            }
            self.clock.advance(Duration::from_millis(200));
            // Any change makes the store look at the clock.
            self.tell(Vec::new());
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("waited in vain: {}", self.metrics());
    }

    fn state(&self) -> State {
        self.outlet.as_ref().unwrap().state()
    }

    fn metrics(&self) -> String {
        let text = String::from_utf8(self.registry.render()).unwrap();
        text.lines()
            .filter(|line| line.starts_with("greenlane_store") && !line.contains("bucket"))
            .collect::<Vec<_>>()
            .join("\n")
    }

    fn metric(&self, name: &str) -> u64 {
        let text = self.metrics();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    }

    /// Ends the writer, and waits until the files are closed.
    fn stop(mut self) {
        self.end();
    }

    fn stop_in_order(mut self) {
        let reply = self.send(Vec::new(), (false, true));
        assert_eq!(answer(reply), Applied::Held);
        self.end();
    }

    fn end(&mut self) {
        self.outlet = None;
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
        }
    }
}

fn answer(mut reply: Reply) -> Applied {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(reply.wait())
}

#[test]
fn set_survives_an_orderly_restart() {
    let folder = tempfile::tempdir().unwrap();
    let opened = open(folder.path(), NOW);
    assert!(opened.restored.sightings.is_empty());
    let session = opened.restored.session;
    let mut work = Work::start(opened);
    assert_eq!(work.tell(vec![put(1), put(2), put(3)]), Applied::Held);
    assert_eq!(work.tell(vec![gone(2), put(4)]), Applied::Held);
    let serial = work.serial;
    work.stop_in_order();
    let restored = open(folder.path(), NOW).restored;
    assert_eq!((restored.session, restored.serial, restored.is_complete), (session, serial + 1, true));
    assert_eq!(hosts(&restored), [1, 3, 4]);
    assert_eq!(by_key(&restored)["0.0.0.1 a.example"], kept(1, "a.example", NOW));
}

#[test]
fn restart_without_a_last_change_jumps_ahead_of_what_was_announced() {
    let folder = tempfile::tempdir().unwrap();
    let mut work = Work::start(open(folder.path(), NOW));
    work.tell(vec![put(1)]);
    let (session, serial) = (work.session, work.serial);
    work.stop();
    let restored = open(folder.path(), NOW).restored;
    assert_eq!((restored.session, restored.is_complete), (session, false));
    assert!(restored.serial >= serial + SERIALS_LOST_MAX);
    assert_eq!(hosts(&restored), [1]);
    // A process that was told nothing leaves no gap behind it but is no orderly end either.
    let again = open(folder.path(), NOW).restored;
    assert_eq!((again.session, again.is_complete), (session, false));
    assert!(again.serial > restored.serial);
}

#[test]
fn loss_of_power_begins_a_new_session_and_a_kill_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let in_boot =
        |id: Option<&str>| Store::open_in_boot(&options(folder.path()), NOW, id.map(boot).unwrap_or_default()).unwrap();
    let mut work = Work::start(in_boot(Some("first")));
    work.tell(vec![put(1)]);
    let session = work.session;
    work.stop();
    assert_eq!(in_boot(Some("first")).restored.session, session);
    assert_eq!(in_boot(None).restored.session, session, "the kernel does not tell: taken for a kill");
    Work::start(in_boot(Some("first"))).stop();
    let other = in_boot(Some("second")).restored;
    assert_ne!(other.session, session);
    assert_eq!((other.serial, hosts(&other)), (0, vec![1]));
    Work::start(in_boot(Some("second"))).stop_in_order();
    assert_eq!(in_boot(Some("third")).restored.session, other.session, "closed in order: a plain reboot");
}

#[test]
fn ended_sightings_are_not_restored_and_leave_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut work = Work::start(open(folder.path(), NOW));
    work.tell(vec![put(1), SightingChange::Put(kept(2, "a.example", NOW.after(Duration::from_secs(600))))]);
    work.stop();
    // Between end and grant it may have been extended without another word, as the last change was not kept.
    let between = open(folder.path(), NOW.after(Duration::from_secs(1000))).restored;
    assert_eq!(hosts(&between), [1, 2]);
    let after = open(folder.path(), NOW.after(Duration::from_secs(1500))).restored;
    assert_eq!(hosts(&after), [2]);
    assert_eq!(open(folder.path(), NOW).restored.sightings.len(), 1, "gone for good");
}

#[test]
fn end_counts_when_the_last_change_was_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut work = Work::start(open(folder.path(), NOW));
    work.tell(vec![put(1)]);
    work.stop_in_order();
    assert!(open(folder.path(), NOW.after(Duration::from_secs(900))).restored.sightings.is_empty());
}

#[test]
fn whole_change_replaces_all_that_was_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut work = Work::start(open(folder.path(), NOW));
    work.tell(vec![put(1), put(2)]);
    work.until(|work| work.metric("greenlane_store_sightings") == 2);
    let reply = work.send(vec![put(2), put(3), put(4), gone(3)], (true, false));
    assert_eq!(answer(reply), Applied::Held);
    work.tell(vec![put(9)]);
    // Once out of the journal …
    copy(folder.path(), |copy| assert_eq!(hosts(&open(copy, NOW).restored), [2, 4, 9]));
    // … and once out of the database.
    work.until(|work| work.metric("greenlane_store_sightings") == 3);
    work.stop();
    assert_eq!(hosts(&open(folder.path(), NOW).restored), [2, 4, 9]);
}

/// Looks at the files as a kill at this moment would leave them.
fn copy(folder: &Path, look: impl FnOnce(&Path)) {
    let twin = tempfile::tempdir().unwrap();
    // The journals first: a transaction that ends meanwhile makes nothing missing.
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort_unstable_by_key(|path| std::cmp::Reverse(path.file_name().map(ToOwned::to_owned)));
    let there = |path: &PathBuf| twin.path().join(path.file_name().unwrap());
    // A kill stops all at one moment; a copy that the store wrote into meanwhile is made again.
    loop {
        for path in &files {
            fs::copy(path, there(path)).unwrap();
        }
        if files.iter().all(|path| fs::read(path).unwrap() == fs::read(there(path)).unwrap()) {
            break;
        }
    }
    look(twin.path());
}

#[test]
fn journals_take_turns_and_stale_ones_say_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut work = Work::start(open(folder.path(), NOW));
    work.tell(vec![put(1)]);
    let stale = fs::read(folder.path().join("greenlane.redb.journal-0")).unwrap();
    assert!(stale.len() > 28);
    work.until(|work| work.metric("greenlane_store_checkpoints_total{result=\"done\"}") >= 1);
    work.tell(vec![gone(1), put(2)]);
    work.until(|work| work.metric("greenlane_store_checkpoints_total{result=\"done\"}") >= 3);
    work.stop();
    // A disk that forgot to empty the journal: its number is covered by the database.
    fs::write(folder.path().join("greenlane.redb.journal-0"), stale).unwrap();
    assert_eq!(hosts(&open(folder.path(), NOW).restored), [2]);
}

#[test]
fn second_open_of_one_file_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path(), NOW);
    let error = Store::open(&options(folder.path()), &Clock::manual(NOW)).unwrap_err();
    assert!(error.to_string().contains("is in use by another greenlane"), "{error}");
    assert!(matches!(error, StoreError::InUse(_)));
    drop(first);
    Store::open(&options(folder.path()), &Clock::manual(NOW)).unwrap();
}

#[test]
fn paths_that_cannot_be_are_told_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let message = |path: &str| {
        let options = Options { path: folder.path().join(path), durability: Durability::Process };
        Store::open(&options, &Clock::manual(NOW)).unwrap_err().to_string()
    };
    assert!(message("missing/greenlane.redb").contains("create it first"));
    assert!(message("..").contains("is no path of a file"));
    assert!(message("").contains("is no path of a file"));
    fs::write(folder.path().join("plain"), "").unwrap();
    assert!(message("plain/greenlane.redb").contains("cannot be used"));
    assert!(message("/dev/null").contains("is no path of a file"));
    assert!(message("/proc/greenlane.redb").contains("/proc/greenlane.redb"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
}

#[test]
fn files_are_for_us_alone() {
    let folder = tempfile::tempdir().unwrap();
    let _opened = open(folder.path(), NOW);
    let files: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap()).collect();
    assert_eq!(files.len(), 3);
    for file in files {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", file.path());
    }
}

#[test]
fn foreign_file_is_set_aside_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = options(folder.path()).path;
    fs::write(&path, "dear diary").unwrap();
    assert!(open(folder.path(), NOW).restored.sightings.is_empty());
    fs::write(&path, "dear diary, again").unwrap();
    open(folder.path(), NOW);
    let aside =
        |ending: &str| fs::read_to_string(folder.path().join(format!("greenlane.redb.damaged-{ending}"))).unwrap();
    assert_eq!(aside("1800000000"), "dear diary");
    assert_eq!(aside("1800000000-1"), "dear diary, again");
}

#[test]
fn database_of_another_program_is_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = options(folder.path()).path;
    let theirs: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("theirs");
    let database = redb::Database::create(&path).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(theirs).unwrap().insert("answer", 42).unwrap();
    write.commit().unwrap();
    drop(database);
    open(folder.path(), NOW);
    let aside = redb::Database::open(folder.path().join("greenlane.redb.damaged-1800000000")).unwrap();
    let read = redb::ReadableDatabase::begin_read(&aside).unwrap();
    assert_eq!(read.open_table(theirs).unwrap().get("answer").unwrap().unwrap().value(), 42);
}

#[test]
fn schema_of_a_newer_greenlane_is_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let mut work = Work::start(open(folder.path(), NOW));
    work.tell(vec![put(1)]);
    let session = work.session;
    work.stop_in_order();
    let numbers: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("greenlane.numbers");
    let database = redb::Database::open(options(folder.path()).path).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(numbers).unwrap().insert("schema", table::SCHEMA + 1).unwrap();
    write.commit().unwrap();
    drop(database);
    let restored = open(folder.path(), NOW).restored;
    assert!(restored.sightings.is_empty() && restored.session != session);
    assert!(folder.path().join("greenlane.redb.damaged-1800000000").exists());
}

#[test]
fn failing_journal_is_covered_by_the_database() {
    let folder = tempfile::tempdir().unwrap();
    let opened = open(folder.path(), NOW);
    let faults: Vec<Arc<Faults>> = opened.store.journals.iter().map(|one| Arc::clone(one.faults())).collect();
    let mut work = Work::start(opened);
    assert_eq!(work.tell(vec![put(1)]), Applied::Held);
    faults.iter().for_each(|faults| faults.after(0));
    assert_eq!(work.tell(vec![put(2)]), Applied::Failed);
    assert_eq!(work.state(), State::Down);
    // The database takes what the journal could not, but the next batch has nowhere to go at once.
    work.until(|work| work.metric("greenlane_store_sightings") == 2);
    faults.iter().for_each(|faults| faults.mend());
    work.until(|work| work.state() == State::Up);
    assert_eq!(work.tell(vec![put(3)]), Applied::Held);
    copy(folder.path(), |copy| assert_eq!(hosts(&open(copy, NOW).restored), [1, 2, 3]));
    work.stop();
    assert_eq!(hosts(&open(folder.path(), NOW).restored), [1, 2, 3]);
}

#[test]
fn failing_database_is_covered_by_the_journals() {
    let folder = tempfile::tempdir().unwrap();
    let opened = open(folder.path(), NOW);
    let faults = Arc::clone(opened.store.disk.faults());
    let mut work = Work::start(opened);
    work.tell(vec![put(1)]);
    faults.after(3);
    let failed = "greenlane_store_checkpoints_total{result=\"failed\"}";
    work.until(|work| work.metric(failed) >= 1);
    assert_eq!(work.tell(vec![put(2), gone(1)]), Applied::Held);
    work.until(|work| work.metric(failed) >= 2);
    assert_eq!(work.tell(vec![put(3)]), Applied::Held);
    assert_eq!(work.state(), State::Up, "nothing is lost yet");
    copy(folder.path(), |copy| assert_eq!(hosts(&open(copy, NOW).restored), [2, 3]));
    faults.mend();
    work.until(|work| work.metric("greenlane_store_sightings") == 2);
    work.stop();
    assert_eq!(hosts(&open(folder.path(), NOW).restored), [2, 3]);
}

#[test]
fn sink_is_down_until_everything_is_held() {
    let folder = tempfile::tempdir().unwrap();
    let opened = open(folder.path(), NOW);
    let database = Arc::clone(opened.store.disk.faults());
    let journals: Vec<Arc<Faults>> = opened.store.journals.iter().map(|one| Arc::clone(one.faults())).collect();
    let mut work = Work::start(opened);
    database.after(0);
    journals.iter().for_each(|faults| faults.after(0));
    assert_eq!(work.tell(vec![put(1)]), Applied::Failed);
    journals.iter().for_each(|faults| faults.mend());
    assert_eq!(work.tell(vec![put(2)]), Applied::Failed, "it would stand behind a gap");
    let failed = "greenlane_store_checkpoints_total{result=\"failed\"}";
    for count in 1..4 {
        work.until(|work| work.metric(failed) >= count);
        // Settled, and the next one not begun: the first one is in memory alone.
        assert_eq!(work.state(), State::Down);
    }
    database.mend();
    work.until(|work| work.state() == State::Up);
    copy(folder.path(), |copy| assert_eq!(hosts(&open(copy, NOW).restored), [1, 2]));
}

#[test]
fn slow_disk_is_not_waited_for_until_it_is_quick_again() {
    let folder = tempfile::tempdir().unwrap();
    let opened = open(folder.path(), NOW);
    let journals: Vec<Arc<Faults>> = opened.store.journals.iter().map(|one| Arc::clone(one.faults())).collect();
    let mut work = Work::start(opened);
    journals.iter().for_each(|faults| faults.delay(60));
    for host in 1..20 {
        assert_eq!(work.tell(vec![put(host)]), Applied::Held);
        assert_eq!(work.state(), State::Up, "{host} slow batches are none too many");
    }
    assert_eq!(work.tell(vec![put(20)]), Applied::Held);
    assert_eq!(work.state(), State::Slow);
    journals.iter().for_each(|faults| faults.delay(0));
    // A busy machine may take its time, too; what counts is that it comes back by itself.
    work.until(|work| work.state() == State::Up);
    work.stop();
    assert_eq!(hosts(&open(folder.path(), NOW).restored), (1..=20).collect::<Vec<_>>());
}

/// Runs a test with a small file system of its own, which goes with the thread.
fn on_small_disk(test: impl FnOnce(&Path) + Send + 'static) {
    let ran = std::thread::spawn(move || {
        let folder = tempfile::tempdir().unwrap();
        let mount = |words: &[&str]| {
            Command::new("mount").args(words).arg(folder.path()).status().is_ok_and(|status| status.success())
        };
        let is_alone = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).is_ok();
        let is_private =
            || Command::new("mount").args(["--make-rprivate", "/"]).status().is_ok_and(|status| status.success());
        if !is_alone || !is_private() || !mount(&["-t", "tmpfs", "-o", "size=8m", "tmpfs"]) {
            return false;
        }
        test(folder.path());
        let _ = Command::new("umount").arg("-l").arg(folder.path()).status();
        true
    });
    let ran = ran.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let is_required = std::env::var("GREENLANE_TEST_REQUIRE").is_ok_and(|value| value == "all");
    assert!(ran || !is_required, "needs root");
    if !ran {
        println!("skipped: needs root");
    }
}

#[test]
fn full_disk_loses_nothing_and_is_told() {
    on_small_disk(|folder| {
        let opened = open(folder, NOW);
        let mut work = Work::start(opened);
        assert_eq!(work.tell(vec![put(0)]), Applied::Held);
        let filler = folder.join("filler");
        let mut file = fs::File::create(&filler).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
        // What is left of the journal's last page is used up first.
        let mut told = 0;
        while work.state() == State::Up {
            told += 1;
            assert!(told < 20_000, "{}", work.metrics());
            work.tell(vec![put(told)]);
        }
        assert_eq!(work.state(), State::Down);
        assert_eq!(work.tell(vec![put(told + 1)]), Applied::Failed);
        assert!(work.metric("greenlane_store_commits_total{result=\"failed\"}") >= 1);
        work.until(|work| work.metric("greenlane_store_checkpoints_total{result=\"failed\"}") >= 1);
        drop(file);
        fs::remove_file(&filler).unwrap();
        work.until(|work| work.state() == State::Up);
        assert_eq!(work.tell(vec![put(told + 2)]), Applied::Held);
        work.stop();
        assert_eq!(hosts(&open(folder, NOW).restored), (0..=told + 2).collect::<Vec<_>>());
    });
}

#[test]
fn folder_that_cannot_be_written_is_told_with_a_remedy() {
    on_small_disk(|folder| {
        let remount = |how: &str| {
            let options = format!("remount,{how}");
            assert!(Command::new("mount").args(["-o", &options]).arg(folder).status().unwrap().success());
        };
        remount("ro");
        let error = Store::open(&options(folder), &Clock::manual(NOW)).unwrap_err();
        assert!(matches!(error, StoreError::Denied { .. }));
        assert!(error.to_string().contains("let greenlane write it and its folder"), "{error}");
        remount("rw");
        let first = open(folder, NOW);
        drop(first);
        remount("ro");
        let error = Store::open(&options(folder), &Clock::manual(NOW)).unwrap_err();
        assert!(error.to_string().contains("let greenlane write it and its folder"), "{error}");
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Whatever call fails and for however long: what was answered as held is there after a kill, and what was not is
    /// there once the store is up again.
    #[test]
    fn no_failing_call_loses_what_is_held(which in 0_usize..3, call in 0_u64..40, mended_after in 0_u32..6) {
        let folder = tempfile::tempdir().unwrap();
        let opened = open(folder.path(), NOW);
        let journals = &opened.store.journals;
        let faults = Arc::clone([opened.store.disk.faults(), journals[0].faults(), journals[1].faults()][which]);
        let mut work = Work::start(opened);
        faults.after(call);
        let mut held = Vec::new();
        for host in 0..10 {
            if work.tell(vec![put(host)]) == Applied::Held {
                held.push(host);
            }
            work.clock.advance(Duration::from_millis(700));
            if host == mended_after {
                faults.mend();
            }
            copy(folder.path(), |copy| {
                let there = hosts(&open(copy, NOW).restored);
                assert!(held.iter().all(|host| there.contains(host)), "{held:?} were held, {there:?} are there");
            });
        }
        faults.mend();
        work.until(|work| work.state() == State::Up);
        copy(folder.path(), |copy| assert_eq!(hosts(&open(copy, NOW).restored), (0..10).collect::<Vec<_>>()));
        work.stop();
        assert_eq!(hosts(&open(folder.path(), NOW).restored), (0..10).collect::<Vec<_>>());
    }

    /// A sequence of changes leaves what a plain map says, wherever it is cut by transactions and restarts.
    #[test]
    fn restored_set_is_that_of_a_plain_map(
        batches in proptest::collection::vec((proptest::collection::vec((0_u32..8, any::<bool>()), 0..5), 0_u8..10), 1..12)
    ) {
        let folder = tempfile::tempdir().unwrap();
        let mut work = Work::start(open(folder.path(), NOW));
        let mut model = std::collections::BTreeSet::new();
        for (changes, what) in batches {
            let is_whole = what == 0;
            if is_whole {
                model.clear();
            }
            let sightings = changes.iter().map(|&(host, is_put)| if is_put { put(host) } else { gone(host) }).collect();
            for (host, is_put) in changes {
                if is_put { model.insert(host) } else { model.remove(&host) };
            }
            let reply = work.send(sightings, (is_whole, false));
            prop_assert_eq!(answer(reply), Applied::Held);
            match what {
                1 | 2 => {
                    let before = work.metric("greenlane_store_checkpoints_total{result=\"done\"}");
                    work.until(|work| work.metric("greenlane_store_checkpoints_total{result=\"done\"}") > before);
                }
                3 => {
                    work.stop();
                    work = Work::start(open(folder.path(), NOW));
                }
                _ => copy(folder.path(), |copy| {
                    let expected: Vec<u32> = model.iter().copied().collect();
                    assert_eq!(hosts(&open(copy, NOW).restored), expected);
                }),
            }
        }
        work.stop();
        let expected: Vec<u32> = model.into_iter().collect();
        prop_assert_eq!(hosts(&open(folder.path(), NOW).restored), expected);
    }

    /// Damage anywhere in any file: never a panic, and either part of what was kept or an empty store.
    #[test]
    fn damage_is_survived(
        which in 0_usize..3,
        at in any::<proptest::sample::Index>(),
        octets in proptest::collection::vec(any::<u8>(), 1..600),
        cut in proptest::option::of(any::<proptest::sample::Index>()),
    ) {
        let folder = tempfile::tempdir().unwrap();
        fill(folder.path());
        let names = ["greenlane.redb", "greenlane.redb.journal-0", "greenlane.redb.journal-1"];
        let path = folder.path().join(names[which]);
        let file = fs::File::options().read(true).write(true).open(&path).unwrap();
        let len = file.metadata().unwrap().len();
        if len > 0 {
            file.write_all_at(&octets, at.index(len as usize) as u64).unwrap();
            if let Some(cut) = cut {
                file.set_len(cut.index(len as usize) as u64).unwrap();
            }
        }
        drop(file);
        let opened = open(folder.path(), NOW);
        let there = hosts(&opened.restored);
        prop_assert!(there.iter().all(|host| (0..300).contains(host)), "nothing that was never kept");
        let mut work = Work::start(opened);
        prop_assert_eq!(work.tell(vec![put(1000)]), Applied::Held, "it works");
        work.stop();
        prop_assert!(hosts(&open(folder.path(), NOW).restored).contains(&1000));
    }
}

/// Leaves files as a kill does: 200 sightings in the database, 100 more in both journals.
fn fill(folder: &Path) {
    let twin = tempfile::tempdir().unwrap();
    let opened = open(twin.path(), NOW);
    let faults = Arc::clone(opened.store.disk.faults());
    let mut work = Work::start(opened);
    for host in 0..200 {
        work.tell(vec![put(host)]);
    }
    work.until(|work| work.metric("greenlane_store_sightings") == 200);
    // From here on transactions fail, so that both journals keep what they have.
    faults.after(0);
    for host in 200..250 {
        work.tell(vec![put(host)]);
    }
    work.until(|work| work.metric("greenlane_store_checkpoints_total{result=\"failed\"}") >= 1);
    for host in 250..300 {
        work.tell(vec![put(host)]);
    }
    for entry in fs::read_dir(twin.path()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    work.stop();
}

/// The variable that makes [`killed_process`] the victim of [`kill_loses_nothing_that_was_held`].
const VICTIM: &str = "GREENLANE_STORE_VICTIM";

/// Not a test by itself: keeps sightings and says each number once it is held, until it is killed.
#[test]
fn killed_process() {
    let Some(folder) = std::env::var_os(VICTIM) else { return };
    let opened = Store::open(&options(Path::new(&folder)), &Clock::system()).unwrap();
    println!("\nsession {}", opened.restored.session);
    let (outlet, intake) = outlet("store");
    let Restored { session, mut serial, .. } = opened.restored;
    let metrics = Metrics::new(&Registry::new());
    std::thread::spawn(move || run(opened.store, intake, &Clock::system(), metrics));
    for host in 0.. {
        serial += 1;
        let sightings = vec![SightingChange::Put(kept(host, "a.example", Clock::system().now()))];
        let change = Change { sightings, ..Change::empty(session, serial, Clock::system().now()) };
        let reply = outlet.send(&Arc::new(change)).unwrap();
        assert_eq!(answer(reply), Applied::Held);
        println!("{host} {serial}");
        io::stdout().flush().unwrap();
    }
}

#[test]
fn kill_loses_nothing_that_was_held() {
    let folder = tempfile::tempdir().unwrap();
    let mut session = None;
    // Short and long enough for some transactions.
    for lines in [1, 500, 15_000] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["store::tests::killed_process", "--exact", "--nocapture", "--test-threads=1"])
            .env(VICTIM, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let opened = said.find_map(|line| line.strip_prefix("session ").map(str::to_owned)).unwrap();
        assert_eq!(*session.get_or_insert_with(|| opened.clone()), opened, "the session goes on");
        let held = said.by_ref().take(lines).last().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        // What was said before the kill and not read yet was held too; the last line may be torn.
        let rest: Vec<String> = said.collect();
        let last = rest.iter().rev().nth(1).unwrap_or(&held);
        let (host, serial) = last.split_once(' ').unwrap();
        let (host, serial): (u32, u64) = (host.parse().unwrap(), serial.parse().unwrap());
        let restored = Store::open(&options(folder.path()), &Clock::system()).unwrap().restored;
        assert_eq!(restored.session.to_string(), opened);
        assert!(!restored.is_complete && restored.serial > serial);
        let there = hosts(&restored);
        assert!(there.len() > host as usize, "{} are there, {host} was held last", there.len());
        assert!(there.iter().copied().eq(0..there.len() as u32), "there are holes");
    }
}

#[test]
fn disk_durability_syncs_before_it_answers() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { durability: Durability::Disk, ..options(folder.path()) };
    let opened = Store::open(&options, &Clock::manual(NOW)).unwrap();
    let faults = Arc::clone(opened.store.journals[0].faults());
    let mut work = Work::start(opened);
    // The write passes, the sync does not.
    faults.after(1);
    assert_eq!(work.tell(vec![put(1)]), Applied::Failed);
    faults.mend();
    work.until(|work| work.state() == State::Up);
    assert_eq!(work.tell(vec![put(2)]), Applied::Held);
    work.stop();
    assert_eq!(hosts(&open(folder.path(), NOW).restored), [1, 2]);
}

#[test]
fn changes_that_wait_are_written_together() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { durability: Durability::Disk, ..options(folder.path()) };
    let opened = Store::open(&options, &Clock::manual(NOW)).unwrap();
    let faults: Vec<Arc<Faults>> = opened.store.journals.iter().map(|one| Arc::clone(one.faults())).collect();
    let mut work = Work::start(opened);
    let done = "greenlane_store_commits_total{result=\"done\"}";
    let before = work.metric(done);
    faults.iter().for_each(|faults| faults.delay(100));
    let replies: Vec<Reply> = (0..40).map(|host| work.send(vec![put(host)], (false, false))).collect();
    assert!(replies.into_iter().all(|reply| answer(reply) == Applied::Held));
    let writes = work.metric(done) - before;
    // The first one alone, and those that came meanwhile; a busy machine may cut them once more.
    assert!(writes < 20, "{writes} writes for 40 changes");
    faults.iter().for_each(|faults| faults.delay(0));
    work.stop();
    assert_eq!(hosts(&open(folder.path(), NOW).restored), (0..40).collect::<Vec<_>>());
}

#[test]
fn file_gives_back_what_it_does_not_need() {
    let folder = tempfile::tempdir().unwrap();
    let mut work = Work::start(open(folder.path(), NOW));
    let all: Vec<u32> = (0..120_000).map(|n: u32| n.wrapping_mul(2_654_435_761)).collect();
    for part in all.chunks(6000) {
        work.tell(part.iter().map(|host| put(*host)).collect());
    }
    work.until(|work| work.metric("greenlane_store_sightings") == 120_000);
    let len = || options(folder.path()).path.metadata().unwrap().len();
    let full = len();
    assert!(full > 4 << 20, "so short a file is left as it is: {full}");
    for part in all[100..].chunks(6000) {
        work.tell(part.iter().map(|host| gone(*host)).collect());
    }
    work.until(|work| work.metric("greenlane_store_sightings") == 100);
    work.until(|_| len() < 4 << 20);
    work.tell(vec![put(7)]);
    copy(folder.path(), |copy| assert_eq!(open(copy, NOW).restored.sightings.len(), 101));
    work.stop();
    assert_eq!(open(folder.path(), NOW).restored.sightings.len(), 101);
}

#[test]
fn whole_change_writes_only_what_is_another() {
    let folder = tempfile::tempdir().unwrap();
    let mut work = Work::start(open(folder.path(), NOW));
    work.tell((0..50).map(put).collect());
    work.until(|work| work.metric("greenlane_store_sightings") == 50);
    // The end of one moves, one is new between two, one before all and one behind; odd ones leave.
    let mut whole: Vec<_> = (0..50).filter(|host| host % 2 == 0 && *host != 0).map(put).collect();
    whole[3] = SightingChange::Put(kept(8, "a.example", NOW.after(Duration::from_secs(5))));
    whole.extend([put(11), SightingChange::Put(kept(4, "z.example", NOW)), put(u32::MAX)]);
    let count = whole.len() as u64;
    answer(work.send(whole, (true, false)));
    work.until(|work| work.metric("greenlane_store_sightings") == count);
    work.stop();
    let restored = open(folder.path(), NOW.after(Duration::from_secs(5))).restored;
    let found = by_key(&restored);
    assert_eq!(found.len() as u64, count);
    assert_eq!(found["0.0.0.8 a.example"], kept(8, "a.example", NOW.after(Duration::from_secs(5))));
    assert!(!found.contains_key("0.0.0.0 a.example") && found.contains_key("0.0.0.4 z.example"));
}

#[test]
fn metrics_have_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let mut work = Work::start(open(folder.path(), NOW));
    work.tell(vec![put(1)]);
    work.until(|work| work.metric("greenlane_store_sightings") == 1);
    assert!(work.metric("greenlane_store_commits_total{result=\"done\"}") >= 1);
    assert_eq!(work.metric("greenlane_store_commits_total{result=\"failed\"}"), 0);
    assert!(work.metric("greenlane_store_commit_seconds_count") >= 1);
    assert!(work.metric("greenlane_store_file_bytes") > 4096);
}
