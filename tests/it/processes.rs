//! Keeper, firewall agent and resolver: what each may do, and what becomes of the others when one ends.
//!
//! In network namespaces, as `firewall`, with its rule for skipping.

use std::fs;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hickory_proto::rr::RecordType;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv,
    send, sendmsg, socketpair,
};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::firewall::numbering;
use crate::harness::{Greenlane, PATIENCE, Setup, addresses, question, read_frame, send_frame};
use crate::netns::{has, in_namespace, nft};
use crate::upstream::Upstream;

/// Whether the kernel holds everything.
const UP: &str = "greenlane_nftables_up{table=\"inet greenlane\"}";

fn own(upstream: &Upstream) -> Setup {
    // A busy machine is late sooner than in a tenth of a second.
    let setup = Setup::new(upstream.addr).with("learn", "hold = \"1s\"").with("catalogue", "watch = false");
    setup.with("[export.nftables]", "mode = \"own\"")
}

/// A field of `/proc/<pid>/status`; `None` once there is no such process, or only what is left of one.
fn status(pid: u32, field: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = |field: &str| text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(":\t"));
    let is_dead = value("State")?.starts_with(['Z', 'X']);
    (!is_dead).then(|| value(field).unwrap_or_default().to_owned())
}

fn is_alive(pid: u32) -> bool {
    status(pid, "State").is_some()
}

/// The children of a process that were started as `greenlane <role>`.
fn children(parent: u32, role: &str) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        status(*pid, "PPid") == Some(parent.to_string())
            && command.split(|octet| *octet == 0).nth(1) == Some(role.as_bytes())
    })
    .collect()
}

fn agent(greenlane: &Greenlane) -> u32 {
    only(greenlane, "agent").expect("an agent")
}

fn resolver(greenlane: &Greenlane) -> u32 {
    only(greenlane, "resolver").expect("a resolver")
}

fn only(greenlane: &Greenlane, role: &str) -> Option<u32> {
    let found = children(greenlane.pid(), role);
    assert!(found.len() <= 1, "{role}: {found:?}");
    found.first().copied()
}

fn kill(pid: u32) {
    assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap().success());
}

async fn until(what: &str, greenlane: &Greenlane, mut is_so: impl FnMut() -> bool) {
    for _ in 0..PATIENCE.as_millis() / 10 {
        if is_so() {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: waited in vain\n{}\n{}", nft("list ruleset"), greenlane.log());
}

/// Asks as a stub does: again when no answer comes.
async fn answered(greenlane: &Greenlane, name: &str) {
    let octets = question(name, RecordType::A).to_vec().unwrap();
    for _ in 0..20 {
        if greenlane.udp_within(&octets, Duration::from_secs(1)).await.is_some() {
            return;
        }
    }
    panic!("{name} was never answered\n{}", greenlane.log());
}

#[test]
fn the_process_that_reads_packets_holds_no_capability() {
    in_namespace(async || {
        let upstream = numbering().await;
        // Ports below 1024 are bound by the keeper.
        let greenlane = own(&upstream).only("listen", "dns = [\"127.0.0.1:53\"]\nweb = \"127.0.0.1:80\"").start().await;
        assert_eq!(addresses(&greenlane.ask("n1.listed.example", RecordType::A).await), ["203.0.113.1"]);
        let sets = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
        let held = |pid| sets.map(|set| u64::from_str_radix(&status(pid, set).unwrap(), 16).unwrap());
        assert_eq!(held(resolver(&greenlane)), [0; 5]);
        let admin = CapabilitySet::NET_ADMIN.bits();
        assert_eq!(held(agent(&greenlane)), [0, admin, admin, admin, 0]);
        for pid in [agent(&greenlane), resolver(&greenlane)] {
            assert_eq!(status(pid, "NoNewPrivs").unwrap(), "1");
        }
        let of_threads = fs::read_dir(format!("/proc/{}/task", resolver(&greenlane))).unwrap();
        for thread in of_threads {
            let text = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
            assert!(text.contains("CapEff:\t0000000000000000"), "{text}");
        }
    });
}

#[test]
fn a_killed_agent_stops_no_answer_and_its_successor_has_the_whole_set() {
    in_namespace(async || {
        let upstream = numbering().await;
        let greenlane = own(&upstream).list("demo.list", "# Demo\nlisted.example\n192.0.2.0/24\n").start().await;
        greenlane.ask("n1.listed.example", RecordType::A).await;
        let killed = agent(&greenlane);
        kill(killed);
        for i in 2..30u8 {
            assert!(!greenlane.ask(&format!("n{i}.listed.example"), RecordType::A).await.answers.is_empty());
            assert!(has("learned4", "203.0.113.1") && has("static4", "192.0.2.0/24"), "the kernel keeps what it has");
        }
        until("a new agent", &greenlane, || only(&greenlane, "agent").is_some_and(|pid| pid != killed)).await;
        until("all of it", &greenlane, || (1..30u8).all(|i| has("learned4", &format!("203.0.113.{i}")))).await;
        greenlane.until_metric(UP, |up| up == 1.0).await;
        greenlane.until_metric("greenlane_learn_sink_waited{sink=\"nftables\"}", |waited| waited == 1.0).await;
        greenlane.ask("n30.listed.example", RecordType::A).await;
        assert!(has("learned4", "203.0.113.30"), "answers wait for it again: {}", greenlane.log());
        let line = "the firewall agent ended (signal: 9 (SIGKILL)), starting it again";
        until("the line", &greenlane, || greenlane.log().contains(line)).await;
    });
}

#[test]
fn a_killed_resolver_loses_no_question_and_no_element() {
    in_namespace(async || {
        let upstream = numbering().await;
        let greenlane = own(&upstream).start().await;
        for i in 1..10u8 {
            greenlane.ask(&format!("n{i}.listed.example"), RecordType::A).await;
        }
        let (killed, firewall) = (resolver(&greenlane), agent(&greenlane));
        kill(killed);
        until("its end", &greenlane, || !is_alive(killed)).await;
        // Nobody reads now; the sockets are there all the same.
        let mut stream = tokio::net::TcpStream::connect(greenlane.dns).await.unwrap();
        send_frame(&mut stream, &question("n10.listed.example", RecordType::A).to_vec().unwrap()).await;
        greenlane.ask("n11.listed.example", RecordType::A).await;
        assert!(read_frame(&mut stream).await.is_some(), "{}", greenlane.log());
        assert_ne!(resolver(&greenlane), killed);
        assert_eq!(agent(&greenlane), firewall, "it has nothing to do with that");
        until("all of it", &greenlane, || (1..=11u8).all(|i| has("learned4", &format!("203.0.113.{i}")))).await;
        greenlane.until_metric(UP, |up| up == 1.0).await;
        let kept = ["203.0.113.1/32", "203.0.113.2/31", "203.0.113.4/30", "203.0.113.8/30"];
        assert_eq!(greenlane.prefixes("").await, kept, "the store has kept the set");
    });
}

#[test]
fn questions_are_answered_while_processes_are_killed() {
    in_namespace(async || {
        let upstream = numbering().await;
        let greenlane = own(&upstream).start().await;
        for i in 0..40u8 {
            answered(&greenlane, &format!("n{i}.listed.example")).await;
            match i {
                10 | 30 => kill(agent(&greenlane)),
                20 => kill(resolver(&greenlane)),
                _ => {}
            }
        }
        until("all of it", &greenlane, || (0..40u8).all(|i| has("learned4", &format!("203.0.113.{i}")))).await;
        answered(&greenlane, "n40.listed.example").await;
        until("the last one", &greenlane, || has("learned4", "203.0.113.40")).await;
    });
}

#[test]
fn nobody_outlives_the_keeper() {
    in_namespace(async || {
        let upstream = numbering().await;
        let mut greenlane = own(&upstream).start().await;
        greenlane.ask("n1.listed.example", RecordType::A).await;
        let all = [agent(&greenlane), resolver(&greenlane)];
        greenlane.signal("KILL");
        greenlane.ended().await;
        until("their end", &greenlane, || !all.into_iter().any(is_alive)).await;
        assert!(has("learned4", "203.0.113.1"));
        for signal in ["TERM", "INT"] {
            greenlane.begin_again().await;
            let all = [agent(&greenlane), resolver(&greenlane)];
            greenlane.signal(signal);
            assert_eq!(greenlane.ended().await, Some(0), "{}", greenlane.log());
            assert!(!all.into_iter().any(is_alive), "they end before the keeper does");
            assert!(!greenlane.log().contains("starting it again"), "{}", greenlane.log());
            assert!(has("learned4", "203.0.113.1"));
        }
    });
}

#[test]
fn a_process_that_ends_again_and_again_is_started_with_growing_pauses() {
    in_namespace(async || {
        let upstream = numbering().await;
        let greenlane = own(&upstream).start().await;
        for pause in ["100ms", "200ms", "400ms"] {
            until("an agent", &greenlane, || only(&greenlane, "agent").is_some()).await;
            kill(agent(&greenlane));
            let line = format!("the firewall agent ended (signal: 9 (SIGKILL)), starting it again in {pause}");
            until("the line", &greenlane, || greenlane.log().contains(&line)).await;
        }
        assert!(!greenlane.ask("n1.listed.example", RecordType::A).await.answers.is_empty());
    });
}

#[test]
fn a_hangup_reaches_both() {
    in_namespace(async || {
        let upstream = numbering().await;
        let greenlane = own(&upstream).with("learn", "max-total = 9").start().await;
        greenlane.ask("n1.listed.example", RecordType::A).await;
        greenlane.ask("n200.listed.example", RecordType::A).await;
        fs::write(greenlane.path("zones/demo.list"), "# Demo\nlisted.example\n192.0.2.0/24\n").unwrap();
        greenlane.signal("HUP");
        until("the new prefix", &greenlane, || has("static4", "192.0.2.0/24")).await;
        let config = fs::read_to_string(greenlane.path("config.toml")).unwrap();
        let stricter = config.replace("max-total = 9", "max-total = 9\nnever = [\"203.0.113.128/25\"]");
        fs::write(greenlane.path("config.toml"), stricter).unwrap();
        greenlane.signal("HUP");
        until("the excluded address to leave", &greenlane, || !has("learned4", "203.0.113.200")).await;
        assert!(has("learned4", "203.0.113.1"));
        assert_eq!(greenlane.metric("greenlane_agent_refused_total{reason=\"unlisted-prefix\"}").await, 0.0);
        assert!(!greenlane.log().contains("starting it again"), "{}", greenlane.log());
    });
}

#[test]
fn prefixes_that_must_be_confirmed_to_leave_stay_until_the_second_hangup() {
    in_namespace(async || {
        let upstream = numbering().await;
        let many: String = (0..20).map(|i| format!("20.{i}.0.0/24\n")).collect();
        let list = |prefixes: &str| format!("# Demo\nlisted.example\n{prefixes}");
        let greenlane = own(&upstream).list("demo.list", &list(&many)).start().await;
        assert!(has("static4", "20.19.0.0/24"));
        fs::write(greenlane.path("zones/demo.list"), list("30.0.0.0/24\n")).unwrap();
        greenlane.signal("HUP");
        until("the new prefix", &greenlane, || has("static4", "30.0.0.0/24")).await;
        assert!((0..20).all(|i| has("static4", &format!("20.{i}.0.0/24"))), "{}", nft("list ruleset"));
        greenlane.signal("HUP");
        until("the others to leave", &greenlane, || !has("static4", "20.0.0.0/24")).await;
        assert!(has("static4", "30.0.0.0/24"));
    });
}

#[test]
fn a_list_that_changes_reaches_the_kernel_without_a_signal() {
    in_namespace(async || {
        let upstream = numbering().await;
        let setup = Setup::new(upstream.addr).with("[export.nftables]", "mode = \"own\"");
        let greenlane = setup.start().await;
        fs::write(greenlane.path("zones/demo.list"), "# Demo\nlisted.example\n192.0.2.0/24\n").unwrap();
        until("the new prefix", &greenlane, || has("static4", "192.0.2.0/24")).await;
    });
}

#[test]
fn what_stops_the_start_is_said_once_with_the_same_code() {
    in_namespace(async || {
        let upstream = numbering().await;
        let run = |setup: Setup| {
            let folder = setup.write();
            let mut command = crate::harness::greenlane();
            let output = command.arg("serve").arg("-c").arg(folder.path().join("config.toml")).output().unwrap();
            (output.status.code(), String::from_utf8(output.stderr).unwrap())
        };
        let (code, text) = run(own(&upstream).list("demo.list", "com\n"));
        assert_eq!((code, text.matches("demo.list:1:1").count()), (Some(2), 1), "{text}");
        let (code, text) = run(own(&upstream).with("cache", "size = 7"));
        assert_eq!((code, text.matches("cache.size").count()), (Some(2), 1), "{text}");
        let taken = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = taken.local_addr().unwrap();
        let (code, text) = run(own(&upstream).only("listen", &format!("dns = [\"{at}\"]")));
        assert_eq!((code, text.matches("is in use").count()), (Some(1), 1), "{text}");
    });
}

#[test]
fn without_the_privilege_one_process_goes_on_and_says_so() {
    in_namespace(async || {
        let upstream = numbering().await;
        remove_capability_from_bounding_set(CapabilitySet::NET_ADMIN).unwrap();
        let greenlane = own(&upstream).start().await;
        assert!(!greenlane.ask("n1.listed.example", RecordType::A).await.answers.is_empty());
        assert!(children(greenlane.pid(), "agent").is_empty() && children(greenlane.pid(), "resolver").is_empty());
        until("the line", &greenlane, || greenlane.log().contains("CAP_NET_ADMIN")).await;
        assert!(greenlane.text("/metrics").await.contains(&format!("{UP} 0\n")));
    });
}

#[test]
fn nobody_else_starts_the_processes() {
    for role in ["agent", "resolver"] {
        let output = crate::harness::greenlane().arg(role).stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("greenlane serve"), "{text}");
    }
}

/// Speaks to a real agent as keeper and resolver at once, octet by octet.
struct Forged {
    process: Child,
    line: OwnedFd,
    way: OwnedFd,
    _folder: TempDir,
}

const MILLIS: u64 = 1_800_000_000_000;

impl Forged {
    fn start(setup: Setup) -> Self {
        let folder = setup.write();
        let (line, theirs) = pair();
        let mut command = crate::harness::greenlane();
        command.arg("agent").arg("-c").arg(folder.path().join("config.toml"));
        let process = command.stdin(Stdio::from(theirs)).stderr(Stdio::piped()).spawn().unwrap();
        let (way, theirs) = pair();
        let mut forged = Self { process, line, way, _folder: folder };
        forged.give(theirs);
        forged
    }

    fn give(&mut self, way: OwnedFd) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [way.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(&self.line, &[IoSlice::new(b"C")], &mut control, SendFlags::NOSIGNAL).unwrap();
    }

    /// Begins another conversation.
    fn begin_again(&mut self) {
        let (way, theirs) = pair();
        self.way = way;
        self.give(theirs);
        self.greet();
    }

    fn greet(&self) {
        assert_eq!(self.hear(&self.way).unwrap(), [3, 1]);
        self.say(&[&[1, 1][..], &MILLIS.to_be_bytes(), &[0]].concat());
    }

    fn say(&self, octets: &[u8]) {
        send(&self.way, octets, SendFlags::NOSIGNAL).unwrap();
    }

    fn hear(&self, from: &OwnedFd) -> Option<Vec<u8>> {
        set_socket_timeout(from, Timeout::Recv, Some(PATIENCE)).unwrap();
        let mut octets = vec![0; 40_000];
        let (_, len) = match recv(from, &mut octets[..], RecvFlags::empty()) {
            // Who hangs up with something unread makes a reset of it.
            Err(Errno::CONNRESET) => return None,
            heard => heard.expect("an answer"),
        };
        octets.truncate(len);
        (len > 0).then_some(octets)
    }

    /// Sends an order and returns whether it was held; `None` if the agent hung up.
    fn order(&self, flags: u8, hosts: &[([u8; 4], u64)], prefixes: &[([u8; 4], u8)]) -> Option<bool> {
        let mut octets = [&[2][..], &7_u64.to_be_bytes(), &[flags], &(hosts.len() as u16).to_be_bytes()].concat();
        for (addr, secs) in hosts {
            octets.push(4);
            octets.extend(addr);
            octets.extend((MILLIS + secs * 1000).to_be_bytes());
        }
        octets.extend((prefixes.len() as u16).to_be_bytes());
        for (addr, len) in prefixes {
            octets.push(4);
            octets.extend(addr);
            octets.push(*len);
        }
        self.say(&octets);
        loop {
            let told = self.hear(&self.way)?;
            if told[0] == 4 {
                assert_eq!(told[1..9], 7_u64.to_be_bytes());
                return Some(told[9] == 1);
            }
        }
    }

    /// Ends the agent and returns its log.
    fn end(self) -> String {
        let Self { mut process, line, way, _folder } = self;
        drop((line, way));
        let mut log = String::new();
        process.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        assert_eq!(process.wait().unwrap().code(), Some(0), "{log}");
        log
    }
}

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

const LAST: u8 = 4;
const WHOLE: u8 = 1;
const STATICS: u8 = 2;

fn forged_setup() -> Setup {
    Setup::new(([127, 0, 0, 1], 9).into())
        .list("demo.list", "# Demo\nlisted.example\n20.5.0.0/16\n")
        .with("[export.nftables]", "mode = \"own\"")
        .only("learn", "max-total = 8\nmax-per-name = 8\nmax-per-trigger = 8\nnever = [\"9.9.8.0/24\"]")
}

#[test]
fn a_seized_resolver_gets_nothing_else_into_the_kernel() {
    in_namespace(async || {
        let forged = Forged::start(forged_setup());
        forged.greet();
        // Listed: everything; else: one of the lists, one too wide, the whole Internet.
        let statics = [([20, 5, 0, 0], 16), ([20, 0, 0, 0], 8), ([0, 0, 0, 0], 0), ([20, 5, 1, 0], 24)];
        assert_eq!(forged.order(WHOLE | STATICS | LAST, &[([9, 9, 9, 9], 600)], &statics), Some(false));
        let hostile =
            [[10, 0, 0, 1], [127, 0, 0, 1], [169, 254, 169, 254], [224, 0, 0, 1], [9, 9, 8, 8], [192, 0, 2, 1]];
        assert_eq!(forged.order(LAST, &hostile.map(|addr| (addr, 600)), &[]), Some(false));
        let many: Vec<_> = (0..1000_u16).map(|n| ([8, 8, (n >> 8) as u8, n as u8], 600)).collect();
        for some in many.chunks(100) {
            assert_eq!(forged.order(LAST, some, &[]), Some(false));
        }
        let elements = |set: &str| -> Vec<String> {
            let text = nft(&format!("list set inet greenlane {set}"));
            let is_address = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.');
            text.split([' ', ',', '\n', '\t']).filter(is_address).map(str::to_owned).collect()
        };
        assert_eq!(elements("static4"), ["20.5.0.0/16"]);
        let learned = elements("learned4");
        assert_eq!(learned.len(), 8, "max-total: {learned:?}");
        assert!(learned.iter().all(|addr| addr == "9.9.9.9" || addr.starts_with("8.8.")), "{learned:?}");
        // An end in a hundred years.
        assert_eq!(forged.order(WHOLE | LAST, &[([9, 9, 9, 9], 3_000_000_000)], &[]), Some(true));
        let text = nft("list set inet greenlane learned4");
        let days = text.split("timeout ").nth(1).and_then(|rest| rest.split('d').next()?.parse::<u32>().ok());
        assert!(days.is_some_and(|days| days <= 7), "{text}");
        let log = forged.end();
        for reason in ["special-purpose", "never", "max-total", "multicast", "unlisted-prefix"] {
            assert!(log.contains(reason), "{reason}: {log}");
        }
        assert!(has("learned4", "9.9.9.9"), "what it leaves behind ends by itself");
    });
}

#[test]
fn garbage_ends_the_conversation_and_changes_nothing() {
    in_namespace(async || {
        let mut forged = Forged::start(forged_setup());
        forged.greet();
        assert_eq!(forged.order(WHOLE | LAST, &[([9, 9, 9, 9], 600)], &[]), Some(true));
        let long = vec![2; 33_000];
        let hello = [&[1, 1][..], &MILLIS.to_be_bytes(), &[0]].concat();
        let part = |flags: u8, hosts: u16| [&[2][..], &[0; 8], &[flags], &hosts.to_be_bytes(), &[0; 2]].concat();
        let garbage =
            [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0], &[2], &long, &hello, &part(8, 0), &part(LAST, 60_000), &[5, 0]];
        for octets in garbage {
            forged.say(octets);
            while forged.hear(&forged.way).is_some() {}
            assert_eq!(forged.hear(&forged.line).unwrap(), b"F", "the keeper hears of it");
            assert!(has("learned4", "9.9.9.9"));
            forged.begin_again();
        }
        // An order that never ends is too much at some time.
        let host = [&[4, 8, 8, 8, 8][..], &(MILLIS + 1000).to_be_bytes()].concat();
        let endless = [&[2][..], &[0; 8], &[0], &1000_u16.to_be_bytes(), &host.repeat(1000), &[0; 2]].concat();
        for _ in 0..3 {
            if send(&forged.way, &endless, SendFlags::NOSIGNAL).is_err() {
                break;
            }
        }
        while forged.hear(&forged.way).is_some() {}
        assert_eq!(forged.hear(&forged.line).unwrap(), b"F");
        forged.begin_again();
        assert_eq!(forged.order(LAST, &[([9, 9, 9, 10], 600)], &[]), Some(true), "the next resolver is served");
        let log = forged.end();
        assert_eq!(log.matches("the connection is closed").count(), 9, "{log}");
    });
}

#[test]
fn each_process_can_be_found_by_its_name() {
    in_namespace(async || {
        let upstream = numbering().await;
        let greenlane = own(&upstream).start().await;
        for (pid, name) in [(agent(&greenlane), "greenlane-agent"), (resolver(&greenlane), "greenlane")] {
            assert_eq!(status(pid, "Name").unwrap(), name);
        }
    });
}
