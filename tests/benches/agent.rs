//! Times the hop to the firewall agent: a change over the socket pair beside the queue inside one process.
//!
//! Both ways end in an engine that programs a kernel, so the difference of the two is what the hop costs; target: less
//! than 100 µs. Needs root; it works in a network namespace of its own.

use std::net::IpAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use greenlane::admission::{Admission, Rules as Admitted};
use greenlane::clock::{Clock, Timestamp};
use greenlane::export::nftables::agent::{self, RemoteMeter, Rules, Start};
use greenlane::export::nftables::{Metrics, Mode, Options, SetNames, Surplus, TableFamily, start};
use greenlane::keeper::pair;
use greenlane::metrics::Registry;
use greenlane::set::Session;
use greenlane::set::outlet::{Applied, Change, Outlet, outlet};
use nix::sched::{CloneFlags, unshare};
use tokio::time::Instant;

const SINGLES: u32 = 5_000;

fn main() {
    let timed = thread::spawn(|| {
        if unshare(CloneFlags::CLONE_NEWNET).is_err() {
            println!("skipped: needs root");
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let clock = Clock::system();
        let here = runtime.block_on(singles(&in_process(&clock), &clock, "in one process"));
        let away = runtime.block_on(singles(&over_the_socket(&clock), &clock, "over the socket"));
        for (share, name) in [(500, "p50"), (990, "p99")] {
            let (here, away) = (at(&here, share), at(&away, share));
            println!("the hop, {name}: {:?}", away.saturating_sub(here));
        }
    });
    timed.join().unwrap();
}

fn options(table: &str) -> Options {
    Options {
        mode: Mode::Own { mark: 1, size: 100_000 },
        family: TableFamily::Inet,
        table: table.to_owned(),
        sets: SetNames { learned4: Some("learned4".to_owned()), ..SetNames::default() },
        hold: Duration::from_millis(100),
    }
}

fn in_process(clock: &Clock) -> Outlet {
    let (outlet, intake) = outlet("nftables");
    start(options("here"), Surplus::Withdraw, intake, clock.clone(), Metrics::new(&Registry::new())).unwrap();
    outlet
}

/// The agent's threads are in this process, which costs nothing: what is timed is the way to them.
fn over_the_socket(clock: &Clock) -> Outlet {
    let rules = || Rules {
        admission: Admission::new(Admitted::default()),
        max_total: 50_000,
        span_max: Duration::from_secs(86_400),
        statics: Vec::new(),
    };
    let start = Start {
        firewalls: vec![options("away")],
        rules: rules(),
        read: Box::new(move || Ok(rules())),
        complain: Box::new(|| {}),
    };
    let (one, other) = pair().unwrap();
    let (outlet, intake) = outlet("nftables");
    let meter = RemoteMeter::new(&Registry::new());
    agent::start(start, clock.clone()).unwrap().take_ways(vec![one]);
    agent::connect(intake, Surplus::Withdraw, clock.clone(), meter, Arc::new(|| {})).unwrap().take_way(other);
    outlet
}

async fn send(outlet: &Outlet, clock: &Clock, is_whole: bool, hosts: std::ops::Range<u32>) -> Duration {
    let mut change = Change::empty(Session(1), 1, clock.now());
    let until = Some(Timestamp::from_secs(change.now.as_secs() + 3600));
    change.whole = is_whole;
    change.hosts = hosts.map(|n| (IpAddr::from((0x0b00_0000 + n * 7).to_be_bytes()), until)).collect();
    let change = Arc::new(change);
    let begun = Instant::now();
    let answer = outlet.send(&change).unwrap().wait().await;
    assert_eq!(answer, Applied::Held);
    begun.elapsed()
}

/// Adds hosts at 1,000 a second and returns the times from order to answer, sorted.
async fn singles(outlet: &Outlet, clock: &Clock, what: &str) -> Vec<Duration> {
    send(outlet, clock, true, 0..0).await;
    let begun = Instant::now();
    let mut took = Vec::new();
    for n in 0..SINGLES {
        // Spins, since timers are coarser than the pace.
        while begun.elapsed() < Duration::from_millis(u64::from(n)) {
            thread::sleep(Duration::from_micros(50));
        }
        took.push(send(outlet, clock, false, n..n + 1).await);
    }
    took.sort_unstable();
    println!("one host at 1,000/s {what}: p50 {:?}, p99 {:?}", at(&took, 500), at(&took, 990));
    took
}

fn at(took: &[Duration], share: usize) -> Duration {
    took[(took.len() * share / 1000).min(took.len() - 1)]
}
