//! What goes on when the system gives no more descriptors.

use std::fs;
use std::time::Duration;

use hickory_proto::rr::RecordType;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use tokio::net::TcpStream;

use crate::harness::{Greenlane, Setup, addresses, question, read_frame, send_frame};
use crate::upstream::Upstream;

fn pid(greenlane: &Greenlane) -> Option<Pid> {
    Pid::from_raw(i32::try_from(greenlane.pid()).unwrap())
}

fn open_files(greenlane: &Greenlane) -> u64 {
    fs::read_dir(format!("/proc/{}/fd", greenlane.pid())).unwrap().count() as u64
}

#[tokio::test]
async fn as_many_files_may_be_open_as_the_system_allows() {
    let upstream = Upstream::start(|asked| asked.a([192, 0, 2, 1])).await;
    let greenlane = Setup::new(upstream.addr).start().await;
    let text = fs::read_to_string(format!("/proc/{}/limits", greenlane.pid())).unwrap();
    let line = text.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let fields: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(fields[3], fields[4], "{line}");
}

#[tokio::test]
async fn without_descriptors_hits_go_on_and_the_idlest_connections_leave() {
    let upstream = Upstream::start(|asked| asked.a([192, 0, 2, 1])).await;
    let greenlane = Setup::new(upstream.addr).with("catalogue", "watch = false").start().await;
    greenlane.ask("n1.listed.example", RecordType::A).await;
    // It has the upper bound of whoever started it: of this process.
    let maximum = getrlimit(Resource::Nofile).maximum;
    let may = Rlimit { current: maximum, maximum };
    let left = |count: u64| Rlimit { current: Some(count), ..may };
    prlimit(pid(&greenlane), Resource::Nofile, left(open_files(&greenlane) + 8)).unwrap();
    let octets = question("n1.listed.example", RecordType::A).to_vec().unwrap();
    let mut idle = Vec::new();
    for _ in 0..24 {
        idle.push(TcpStream::connect(greenlane.dns).await.unwrap());
        let hit = greenlane.udp_within(&octets, Duration::from_secs(15)).await;
        assert!(hit.is_some(), "{}", greenlane.log());
    }
    // The last of them is served: others have left for it.
    let last = idle.last_mut().unwrap();
    send_frame(last, &octets).await;
    assert!(read_frame(last).await.is_some(), "{}", greenlane.log());
    assert_eq!(greenlane.log().matches("no TCP client can be accepted").count(), 1, "{}", greenlane.log());
    prlimit(pid(&greenlane), Resource::Nofile, may).unwrap();
    drop(idle);
    assert_eq!(addresses(&greenlane.ask("n2.listed.example", RecordType::A).await), ["192.0.2.1"]);
    assert!(!greenlane.text("/prefixes.txt").await.is_empty());
}
