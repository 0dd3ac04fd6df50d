//! Over a restart: no question is lost, and the sockets are the same ones.

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use hickory_proto::rr::RecordType;
use tokio::net::TcpStream;

use crate::harness::{Greenlane, Setup, addresses, question, read_frame, send_frame};
use crate::load::{Load, Outcome};
use crate::manager::Manager;
use crate::netns::in_namespace;
use crate::upstream::{Asked, Upstream};

/// Answers `n7.…` with 203.0.113.7; what was not asked before takes a moment.
async fn numbering(delay: Duration) -> Upstream {
    let number = |asked: &Asked| asked.name().split('.').next().unwrap()[1..].parse().unwrap_or(0);
    Upstream::start(move |asked| asked.a([203, 0, 113, number(asked)]).after(delay)).await
}

fn setup(upstream: &Upstream) -> Setup {
    Setup::new(upstream.addr).with("catalogue", "watch = false")
}

/// The sockets for datagrams on a port, by their inodes.
fn sockets_at(greenlane: &Greenlane, at: SocketAddr) -> BTreeSet<String> {
    // That process's network is the test's own.
    let table = fs::read_to_string(format!("/proc/{}/net/udp", greenlane.pid())).unwrap();
    let port = format!(":{:04X}", at.port());
    let lines = table.lines().filter(|line| line.split_whitespace().nth(1).is_some_and(|local| local.ends_with(&port)));
    lines.map(|line| line.split_whitespace().nth(9).unwrap().to_owned()).collect()
}

fn tell(what: &str, outcome: &Outcome) {
    let Outcome { asked, answered, lost, refused, longest, per_second } = outcome;
    println!(
        "{what}: {asked} asked ({per_second} a second), {answered} answered, {} lost, {refused} refused, the longest \
         wait {longest:?}",
        lost.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_asked_before_the_end_is_answered() {
    let upstream = numbering(Duration::from_millis(100)).await;
    for round in 0..3 {
        let mut greenlane = setup(&upstream).start().await;
        let load = Load::start(greenlane.dns, 2000);
        let mut idle = TcpStream::connect(greenlane.dns).await.unwrap();
        let mut asking = TcpStream::connect(greenlane.dns).await.unwrap();
        load.more(500).await;
        // Until it goes on, all that is asked waits in its sockets, a connection to be accepted, too.
        greenlane.signal("STOP");
        load.more(500).await;
        let octets = question("n9.late.listed.example", RecordType::A).to_vec().unwrap();
        send_frame(&mut asking, &octets).await;
        let mut last = TcpStream::connect(greenlane.dns).await.unwrap();
        send_frame(&mut last, &octets).await;
        load.stop_asking();
        load.until_still().await;
        greenlane.signal("TERM");
        greenlane.signal("CONT");
        assert!(read_frame(&mut asking).await.is_some() && read_frame(&mut last).await.is_some());
        assert_eq!(read_frame(&mut idle).await, None, "closed");
        assert_eq!(greenlane.ended().await, Some(0), "{}", greenlane.log());
        let outcome = load.end().await;
        tell("the end", &outcome);
        assert_eq!(outcome.lost, [], "round {round}: {}", greenlane.log());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_question_is_lost_over_restarts() {
    let upstream = numbering(Duration::ZERO).await;
    let manager = Manager::new();
    let mut greenlane = setup(&upstream).with("listen", "threads = 2").kept_by(&manager).start().await;
    let (client, sockets) = (*greenlane, sockets_at(&greenlane, greenlane.dns));
    assert_eq!(sockets.len(), 2);
    assert_eq!(manager.kept(), ["kept-dns-0", "kept-dns-1", "kept-dns-2", "kept-web-3"]);
    let load = Load::start(greenlane.dns, 2500);
    for _ in 0..5 {
        load.more(1000).await;
        greenlane.restart("TERM").await;
        assert_eq!((greenlane.dns, greenlane.web), (client.dns, client.web));
        assert_eq!(sockets_at(&greenlane, greenlane.dns), sockets, "the very same");
    }
    load.more(1000).await;
    let outcome = load.end().await;
    tell("five restarts", &outcome);
    assert_eq!((outcome.lost.len(), outcome.refused), (0, 0), "{}", greenlane.log());
    assert_eq!(manager.kept().len(), 4, "nothing is kept twice");
    assert_eq!((manager.heard("READY=1"), manager.heard("STOPPING=1")), (6, 5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_loses_no_question_that_was_not_being_answered() {
    let upstream = numbering(Duration::ZERO).await;
    let manager = Manager::new();
    let mut greenlane = setup(&upstream).kept_by(&manager).start().await;
    let load = Load::start(greenlane.dns, 2500);
    load.more(1000).await;
    greenlane.signal("KILL");
    greenlane.ended().await;
    let killed = load.now();
    load.more(200).await;
    greenlane.begin_again().await;
    load.more(1000).await;
    let outcome = load.end().await;
    tell("a kill", &outcome);
    let later: Vec<_> = outcome.lost.iter().filter(|asked| **asked > killed).collect();
    assert!(later.is_empty() && outcome.refused == 0, "{later:?}: {}", greenlane.log());
    // What the threads had read, 64 at once each, and what waited for an upstream: on a busy machine that is more.
    assert!(outcome.lost.len() <= 1000, "{outcome:?}");
}

#[test]
fn no_question_is_lost_where_there_is_a_keeper() {
    in_namespace(async || {
        let upstream = crate::firewall::numbering().await;
        let manager = Manager::new();
        let setup = setup(&upstream).with("[export.nftables]", "mode = \"own\"").with("learn", "hold = \"1s\"");
        let mut greenlane = setup.with("listen", "threads = 2").kept_by(&manager).start().await;
        let sockets = sockets_at(&greenlane, greenlane.dns);
        let load = Load::start(greenlane.dns, 2000);
        for _ in 0..5 {
            load.more(600).await;
            greenlane.restart("TERM").await;
            assert_eq!(sockets_at(&greenlane, greenlane.dns), sockets, "the very same");
        }
        load.more(600).await;
        let outcome = load.end().await;
        tell("five restarts of three processes", &outcome);
        assert_eq!((outcome.lost.len(), outcome.refused), (0, 0), "{}", greenlane.log());
        assert_eq!((manager.heard("READY=1"), manager.heard("STOPPING=1")), (6, 5));
    });
}

#[tokio::test]
async fn sockets_of_a_socket_unit_are_used() {
    let upstream = numbering(Duration::ZERO).await;
    let manager = Manager::new();
    let (udp, tcp) = loop {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()) {
            break (udp, tcp);
        }
    };
    let web = TcpListener::bind("127.0.0.1:0").unwrap();
    let stray = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (dns, at) = (udp.local_addr().unwrap(), web.local_addr().unwrap());
    manager.open("dns", udp);
    manager.open("dns", tcp);
    manager.open("greenlane-web.socket", web);
    manager.open("greenlane-else.socket", stray);
    // The built-in addresses for DNS are not bound: others may use them while this test runs.
    let setup = setup(&upstream).only("listen", &format!("web = \"{at}\"")).kept_by(&manager);
    let mut greenlane = setup.start().await;
    assert_eq!((greenlane.dns, greenlane.web), (dns, at));
    assert_eq!(addresses(&greenlane.ask("n1.listed.example", RecordType::A).await), ["203.0.113.1"]);
    assert!(!greenlane.ask_tcp("n2.listed.example", RecordType::A).await.answers.is_empty());
    let line = "socket 4 of the service manager (`greenlane-else.socket`): the configuration asks for nothing";
    assert!(greenlane.log().contains(line), "{}", greenlane.log());
    assert_eq!(manager.kept(), Vec::<String>::new(), "the manager has them all");
    greenlane.restart("TERM").await;
    assert_eq!((greenlane.dns, greenlane.web), (dns, at));
}

#[tokio::test]
async fn a_watchdog_hears_that_all_is_alive() {
    let upstream = numbering(Duration::ZERO).await;
    let manager = Manager::new();
    let mut greenlane = setup(&upstream).kept_by(&manager).env("WATCHDOG_USEC", "3000000").start().await;
    greenlane.until(|_| (manager.heard("WATCHDOG=1") >= 3).then_some(())).await;
    let unwatched = Manager::new();
    let other = setup(&upstream).kept_by(&unwatched).start().await;
    other.ask("n1.listed.example", RecordType::A).await;
    assert_eq!(unwatched.heard("WATCHDOG=1"), 0);
}

#[test]
fn a_watchdog_hears_it_through_the_keeper() {
    in_namespace(async || {
        let upstream = crate::firewall::numbering().await;
        let manager = Manager::new();
        let setup = setup(&upstream).with("[export.nftables]", "mode = \"own\"").env("WATCHDOG_USEC", "3000000");
        let mut greenlane = setup.kept_by(&manager).start().await;
        greenlane.until(|_| (manager.heard("WATCHDOG=1") >= 3).then_some(())).await;
    });
}

#[tokio::test]
async fn fewer_threads_leave_no_socket_that_nobody_reads() {
    let upstream = numbering(Duration::ZERO).await;
    let manager = Manager::new();
    let mut greenlane = setup(&upstream).with("listen", "threads = 4").kept_by(&manager).start().await;
    let config = fs::read_to_string(greenlane.path("config.toml")).unwrap();
    fs::write(greenlane.path("config.toml"), config.replace("threads = 4", "threads = 2")).unwrap();
    greenlane.restart("TERM").await;
    let is_told = |_: &mut Greenlane| (manager.kept().len() == 4).then_some(());
    greenlane.until(is_told).await;
    assert_eq!(sockets_at(&greenlane, greenlane.dns).len(), 2);
    // Each client is spread anew.
    for i in 1..30 {
        greenlane.ask(&format!("n{i}.listed.example"), RecordType::A).await;
    }
}

#[test]
fn a_socket_that_is_none_for_questions_stops_the_start() {
    let folder = setup_folder();
    let unix = std::os::unix::net::UnixListener::bind(folder.path().join("socket")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connection = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let web = UdpSocket::bind("127.0.0.1:0").unwrap();
    let told = |name: &str, socket: std::os::fd::OwnedFd| {
        let manager = Manager::new();
        manager.open(name, socket);
        let mut command: Command = manager.command();
        command.arg("serve").arg("-c").arg(folder.path().join("config.toml")).stdin(Stdio::null());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let text = told("dns", unix.into());
    assert!(text.contains("socket 1 of the service manager (`dns`): neither UDP nor TCP"), "{text}");
    let text = told("dns", connection.into());
    assert!(text.contains("a connection, expected a socket that listens") && text.contains("Accept=no"), "{text}");
    let text = told("web", web.into());
    assert!(text.contains("expected TCP"), "{text}");
}

fn setup_folder() -> tempfile::TempDir {
    Setup::new(([127, 0, 0, 1], 9).into()).write()
}
