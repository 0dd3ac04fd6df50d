//! kill -9 in a loop while a load learns: what a client was told stays in the set and in the feed.
//!
//! Clients ask over real sockets for names that nobody asked before and for a few that everybody asks; the upstream
//! makes up addresses with TTLs of some seconds. At a random moment the process is killed, at times again while it
//! starts. Once it serves, each address that any client has read in an answer and whose TTL has not ended must be in
//! `/prefixes.txt`, and in `/delta` with an end that is no earlier. `min-hold` and `grace` are zero: nothing outlives
//! its TTL by a rule that would hide a loss.
//!
//! The long form, which prints `kills N, told N, lost N`:
//!
//! ```console
//! $ cargo test --test it kill_loop -- --ignored --nocapture
//! ```
//! `GREENLANE_KILLS` sets how often (200), `GREENLANE_SEED` repeats the choices of a run.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use greenlane::clock::{Clock, Timestamp};
use greenlane::prefix::Prefix;
use hickory_proto::op::Message;
use hickory_proto::rr::{RData, RecordType};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::harness::{Client, Greenlane, Setup, question};
use crate::upstream::{A, AAAA, Act, Asked, Upstream, record};

/// Clients that ask at the same time, each one question after the other.
const CLIENTS: u64 = 12;
/// What each of them leaves between two questions: the set stays at some ten thousand addresses.
const PAUSE: Duration = Duration::from_millis(4);
/// Names that are asked again and again, so that known addresses are extended.
const HOT_NAMES: u64 = 40;
/// The shortest answer says: not held in time, ask again. Nothing is promised with it.
const TTL_OF_LATE: u32 = 1;

#[tokio::test]
async fn what_clients_were_told_survives_kills() {
    Loop::new("process").run(8).await;
}

#[tokio::test]
async fn what_clients_were_told_survives_kills_with_durability_disk() {
    Loop::new("disk").run(4).await;
}

#[tokio::test]
#[ignore = "takes minutes: the long form"]
async fn many_kills() {
    let kills = std::env::var("GREENLANE_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(200);
    Loop::new("process").run(kills).await;
}

/// Random numbers from a seed: splitmix64.
#[derive(Debug)]
struct Dice(AtomicU64);

impl Dice {
    fn roll(&self) -> u64 {
        let state = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&self, bound: u64) -> u64 {
        self.roll() % bound
    }

    fn millis(&self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

/// Until when clients may hold each address, by the clock of the test: from the moment that they asked.
type Told = Arc<Mutex<HashMap<IpAddr, Timestamp>>>;

struct Loop {
    durability: &'static str,
    seed: u64,
    dice: Arc<Dice>,
    told: Told,
    told_count: Arc<AtomicU64>,
    late_count: Arc<AtomicU64>,
    names: Arc<AtomicU64>,
    checked: u64,
    lost: Vec<String>,
}

impl Loop {
    fn new(durability: &'static str) -> Self {
        let seed = std::env::var("GREENLANE_SEED").ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(rand::random);
        Self {
            durability,
            seed,
            dice: Arc::new(Dice(seed.into())),
            told: Told::default(),
            told_count: Arc::default(),
            late_count: Arc::default(),
            names: Arc::default(),
            checked: 0,
            lost: Vec::new(),
        }
    }

    async fn run(mut self, kills_wanted: u64) {
        let upstream = Upstream::start(fresh_addresses(&self.dice)).await;
        let learn = "hold = \"1s\"\nmin-hold = \"0s\"\ngrace = \"0s\"\nmax-total = 1000000\nmax-per-name = 1000000\n\
                     max-per-trigger = 1000000\nnew-per-client-per-minute = 0";
        let setup = Setup::new(upstream.addr).with("learn", learn);
        let mut greenlane = setup.with("store", &format!("durability = \"{}\"", self.durability)).start().await;
        let mut kills = 0;
        while kills < kills_wanted {
            let load = self.load(*greenlane);
            // Within the first second nothing but the journal has it; later the database has some.
            let is_long = self.dice.below(4) == 0;
            sleep(if is_long { self.dice.millis(500, 2500) } else { self.dice.millis(20, 500) }).await;
            greenlane.signal("KILL");
            kills += 1;
            greenlane.ended().await;
            drop(load);
            while kills < kills_wanted && self.dice.below(4) == 0 {
                greenlane.spawn_again();
                sleep(self.dice.millis(0, 120)).await;
                greenlane.signal("KILL");
                kills += 1;
                greenlane.ended().await;
            }
            greenlane.begin_again().await;
            self.check(&greenlane, kills).await;
        }
        let (told, late) = (self.told_count.load(Ordering::SeqCst), self.late_count.load(Ordering::SeqCst));
        println!(
            "kill loop, durability {}: kills {kills}, told {told}, lost {} (looked up {} times; {late} answers came late, \
             with a TTL of 1 s; GREENLANE_SEED={})",
            self.durability,
            self.lost.len(),
            self.checked,
            self.seed
        );
        assert!(self.lost.is_empty(), "{}", self.lost.join("\n"));
        assert!(told > 0 && self.checked > 0, "nothing was put to the test");
    }

    /// Asks until it is dropped.
    fn load(&self, client: Client) -> JoinSet<()> {
        let mut load = JoinSet::new();
        for _ in 0..CLIENTS {
            let (dice, told, names) = (Arc::clone(&self.dice), Arc::clone(&self.told), Arc::clone(&self.names));
            let (told_count, late_count) = (Arc::clone(&self.told_count), Arc::clone(&self.late_count));
            load.spawn(async move {
                let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
                socket.connect(client.dns).await.unwrap();
                let clock = Clock::system();
                loop {
                    let name = match dice.below(4) {
                        0 => format!("h{}.listed.example", dice.below(HOT_NAMES)),
                        _ => format!("n{}.listed.example", names.fetch_add(1, Ordering::Relaxed)),
                    };
                    let rtype = if dice.below(2) == 0 { RecordType::A } else { RecordType::AAAA };
                    let asked_at = clock.now();
                    // Once it is killed there is nobody, and nothing comes.
                    let Some(answers) = ask(&socket, &name, rtype).await else { continue };
                    for (addr, ttl) in answers {
                        if ttl <= TTL_OF_LATE {
                            late_count.fetch_add(1, Ordering::Relaxed);
                            continue;
                        }
                        told_count.fetch_add(1, Ordering::Relaxed);
                        let until = asked_at.after(Duration::from_secs(u64::from(ttl)));
                        let mut told = told.lock().unwrap();
                        let known = told.entry(addr).or_insert(until);
                        *known = until.max(*known);
                    }
                    sleep(PAUSE).await;
                }
            });
        }
        load
    }

    /// Looks up everything that a client may hold still.
    async fn check(&mut self, greenlane: &Greenlane, kills: u64) {
        let feed = Spans::new(&greenlane.prefixes("").await);
        let delta = greenlane.json("/delta").await;
        let ends: HashMap<IpAddr, u64> = delta["announced"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|item| Some((item["address"].as_str()?.parse().ok()?, item["end"].as_u64()?)))
            .collect();
        // What ended while we looked may be gone.
        let now = Clock::system().now();
        let mut told = self.told.lock().unwrap();
        told.retain(|_, until| *until > now);
        told.retain(|addr, until| {
            self.checked += 1;
            let trouble = match ends.get(addr) {
                _ if !feed.has(*addr) => "is not in /prefixes.txt",
                None => "is not in /delta",
                // Both clocks were read from the system, at different times; it may have been slewed.
                Some(end) if end + 1 < until.as_secs() => "ends too early in /delta",
                Some(_) => return true,
            };
            self.lost.push(format!("after kill {kills} {addr}, told until {until}, {trouble}; it is {now} by now"));
            false
        });
    }
}

/// Asks and returns addresses and TTLs; `None` if there was no answer.
async fn ask(socket: &UdpSocket, name: &str, rtype: RecordType) -> Option<Vec<(IpAddr, u32)>> {
    let question = question(name, rtype);
    let mut reply = [0; 1232];
    let exchange = async {
        socket.send(&question.to_vec().unwrap()).await.ok()?;
        loop {
            let len = socket.recv(&mut reply).await.ok()?;
            let message = Message::from_vec(&reply[..len]).unwrap();
            if message.metadata.id == question.metadata.id {
                return Some(message);
            }
        }
    };
    let Ok(Some(message)) = timeout(Duration::from_secs(5), exchange).await else {
        sleep(PAUSE).await;
        return None;
    };
    let address = |data: &RData| match data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
        _ => None,
    };
    Some(message.answers.iter().filter_map(|record| Some((address(&record.data)?, record.ttl))).collect())
}

/// Answers `n….listed.example` with up to four addresses that nobody was told before, `h7.…` with one of its own.
fn fresh_addresses(dice: &Arc<Dice>) -> impl Fn(&Asked) -> Act + Send + Sync + 'static {
    let (dice, next) = (Arc::clone(dice), AtomicU32::new(1000));
    move |asked| {
        let (name, ttl) = (asked.name(), 2 + dice.below(18) as u32);
        let is_hot = name.starts_with('h');
        let count = if is_hot { 1 } else { 1 + dice.below(4) as u32 };
        let mut reply = asked.reply();
        for _ in 0..count {
            let number = match name.split('.').next().and_then(|label| label[1..].parse::<u32>().ok()) {
                Some(number) if is_hot => number,
                _ => next.fetch_add(1, Ordering::Relaxed),
            };
            let bits = u32::from(Ipv4Addr::new(198, 18, 0, 0)) | number & 0x1_ffff;
            reply = reply.answer(&match asked.qtype() {
                AAAA => {
                    let addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, (number >> 16) as u16, number as u16);
                    record(&[0xc0, 12], AAAA, ttl, &addr.octets())
                }
                _ => record(&[0xc0, 12], A, ttl, &Ipv4Addr::from_bits(bits).octets()),
            });
        }
        reply.act()
    }
}

/// The addresses of a feed as spans, sorted.
struct Spans(Vec<(u128, u128)>);

impl Spans {
    fn new(lines: &[String]) -> Self {
        let mut spans: Vec<(u128, u128)> = lines
            .iter()
            .map(|line| {
                let prefix: Prefix = line.parse().unwrap();
                let (width, first) = match prefix.addr() {
                    IpAddr::V4(addr) => (32, addr.to_ipv6_mapped().to_bits()),
                    IpAddr::V6(addr) => (128, addr.to_bits()),
                };
                let hosts = 1_u128.checked_shl(width - u32::from(prefix.len())).unwrap_or(0);
                (first, first + hosts.wrapping_sub(1))
            })
            .collect();
        spans.sort_unstable();
        Self(spans)
    }

    fn has(&self, addr: IpAddr) -> bool {
        let bits = match addr {
            IpAddr::V4(addr) => addr.to_ipv6_mapped().to_bits(),
            IpAddr::V6(addr) => addr.to_bits(),
        };
        let after = self.0.partition_point(|(first, _)| *first <= bits);
        after > 0 && self.0[after - 1].1 >= bits
    }
}
