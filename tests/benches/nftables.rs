//! Times the local nftables: single hosts at 1,000 a second, 100,000 from nothing, a compare of them, and what is fresh
//! while they leave.
//!
//! Needs root; it works in a network namespace of its own. Targets: p50 ≤ 0.2 ms, p99 ≤ 1.5 ms from order to answer;
//! 100,000 ≤ 2 s; a compare ≤ 100 ms of CPU.

use std::net::IpAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use greenlane::clock::{Clock, Timestamp};
use greenlane::export::nftables::{Metrics, Mode, Options, SetNames, Surplus, TableFamily, remove, start};
use greenlane::metrics::Registry;
use greenlane::set::Session;
use greenlane::set::outlet::{Applied, Change, Outlet, outlet};
use nix::sched::{CloneFlags, unshare};
use tokio::time::Instant;

const MANY: u32 = 100_000;
const SINGLES: u32 = 5_000;

fn main() {
    let timed = thread::spawn(|| {
        if unshare(CloneFlags::CLONE_NEWNET).is_err() {
            println!("skipped: needs root");
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(singles());
        runtime.block_on(many());
    });
    timed.join().unwrap();
}

fn options() -> Options {
    let name = |name: &str| Some(name.to_owned());
    Options {
        mode: Mode::Own { mark: 1, size: 4 * MANY },
        family: TableFamily::Inet,
        table: "greenlane".to_owned(),
        sets: SetNames { learned4: name("learned4"), learned6: name("learned6"), ..SetNames::default() },
        hold: Duration::from_millis(100),
    }
}

fn engine(clock: &Clock) -> Outlet {
    let (outlet, intake) = outlet("nftables");
    start(options(), Surplus::Withdraw, intake, clock.clone(), Metrics::new(&Registry::new())).unwrap();
    outlet
}

fn addr(n: u32) -> IpAddr {
    IpAddr::from((0x0b00_0000 + n * 7).to_be_bytes())
}

async fn send(outlet: &Outlet, clock: &Clock, is_whole: bool, hosts: std::ops::Range<u32>) -> Duration {
    let mut change = Change::empty(Session(1), 1, clock.now());
    // The same for all who ask within the hour: nothing is to be renewed.
    let until = Some(Timestamp::from_secs((change.now.as_secs() / 3600 + 2) * 3600));
    change.whole = is_whole;
    change.hosts = hosts.map(|n| (addr(n), until)).collect();
    let change = Arc::new(change);
    let begun = Instant::now();
    let answer = outlet.send(&change).unwrap().wait().await;
    assert_eq!(answer, Applied::Held);
    begun.elapsed()
}

async fn singles() {
    let clock = Clock::system();
    let outlet = engine(&clock);
    send(&outlet, &clock, true, 0..0).await;
    let begun = Instant::now();
    let mut took = Vec::new();
    for n in 0..SINGLES {
        // Spins, since timers are coarser than the pace.
        while begun.elapsed() < Duration::from_millis(u64::from(n)) {
            thread::sleep(Duration::from_micros(50));
        }
        took.push(send(&outlet, &clock, false, n..n + 1).await);
    }
    took.sort_unstable();
    let at = |share: usize| took[(took.len() * share / 1000).min(took.len() - 1)];
    println!("one host at 1,000/s: p50 {:?}, p99 {:?}, p99.9 {:?}", at(500), at(990), at(999));
    end(outlet);
}

async fn many() {
    let clock = Clock::system();
    let outlet = engine(&clock);
    println!("{MANY} from nothing: {:?}", send(&outlet, &clock, true, 0..MANY).await);
    // What the fill itself set off is over then.
    thread::sleep(Duration::from_secs(1));
    let before = Cpu::now();
    let took = send(&outlet, &clock, true, 0..MANY).await;
    println!("{MANY} told again, so dumped and compared: {took:?}, {}", before.spent());
    let before = Cpu::now();
    thread::sleep(Duration::from_secs(61));
    println!("a minute with nothing to do: {}", before.spent());
    let bulk =
        Change { hosts: (0..MANY).map(|n| (addr(n), None)).collect(), ..Change::empty(Session(1), 1, clock.now()) };
    let mut bulk = outlet.send(&Arc::new(bulk)).unwrap();
    let mut took: Vec<Duration> = Vec::new();
    while std::future::poll_fn(|cx| std::task::Poll::Ready(bulk.poll(cx).is_pending())).await {
        let n = MANY + u32::try_from(took.len()).unwrap();
        took.push(send(&outlet, &clock, false, n..n + 1).await);
    }
    took.sort_unstable();
    println!(
        "one host while {MANY} leave: {} of them, median {:?}, slowest {:?}",
        took.len(),
        took[took.len() / 2],
        took[took.len() - 1]
    );
    end(outlet);
}

fn end(outlet: Outlet) {
    drop(outlet);
    thread::sleep(Duration::from_millis(600));
    remove(&options()).unwrap();
}

/// CPU time of this process: fields 14 and 15 of proc_pid_stat(5), in hundredths of a second.
struct Cpu {
    user: u64,
    system: u64,
}

impl Cpu {
    fn now() -> Self {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let millis = |at: usize| fields[at].parse::<u64>().unwrap() * 10;
        Self { user: millis(11), system: millis(12) }
    }

    fn spent(&self) -> String {
        let now = Self::now();
        let (user, system) = (now.user - self.user, now.system - self.system);
        format!("{} ms of CPU, {system} of them in the kernel", user + system)
    }
}
