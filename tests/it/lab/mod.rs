//! The firewall as an operator builds it, with a proxy that really inspects: who looks at a connection's certificate
//! sees whether it was let through.
//!
//! ```text
//!   client             gateway (where the test's thread is)           internet
//!   10.99.0.2 ── lan0 ┬ nftables: greenlane's table, the      ┬ wan0 ── 192.0.2.2  TLS on every address of
//!   fd99::2           │ operator's rules of docs/firewalls.md │         198.18.0.0/15 and 2001:db8:1::/48
//!                     ├ greenlane, 10.99.0.1:53               │
//!                     └ squid, 3129 (REDIRECT), 3130 (TPROXY) ┘         192.0.2.53 the scripted upstream
//! ```
//! The rules are read out of `docs/firewalls.md`, so that what stands there is what was tried. The client trusts the
//! internet's authority and the proxy's, and tells them apart ([`Seen`]). Needs root, `nft`, `ip` and Debian's
//! `squid-openssl`; the rule for skipping is that of `formats`. No test asserts how long something took; a *law with a
//! time in it* ("until a second later") is judged only where the machine was quick enough to keep it.

mod across;
mod client;
mod faults;
mod first;
mod flows;
mod internet;
mod proxy;
mod pulled;
mod rules;
mod shapes;
mod strangers;

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::time::Duration;

use tokio::time::sleep;

use crate::formats::has_tools;
use crate::harness::{Greenlane, PATIENCE, Setup};
use crate::netns::{Place, in_namespace, ip};
use crate::upstream::{A, AAAA, Act, Asked, Upstream, record};
use client::{Client, Seen};
use internet::Internet;
use proxy::Proxy;
use rules::Way;

/// Where greenlane answers.
const DNS: &str = "10.99.0.1:53";

/// Runs a test in the gateway's namespace, if this machine can build the rest.
fn in_gateway<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    if has_tools(&["ip", "squid"]) {
        in_namespace(test);
    }
}

/// The same, once with each way to the proxy; they share the claim and run one after the other.
fn either_way<F: Future<Output = ()>>(test: impl Fn(Way) -> F + Clone + Send + 'static) {
    for way in [Way::Redirect, Way::Tproxy] {
        let test = test.clone();
        in_gateway(move || async move {
            if way.is_there() {
                test(way).await;
            } else {
                eprintln!("skipped: this kernel has no {way:?} for nftables");
            }
        });
    }
}

/// Three hosts, connected.
struct Net {
    client: Place,
    internet: Place,
}

impl Net {
    /// Builds it around the namespace where the thread is, which becomes the gateway.
    fn build() -> Self {
        let net = Self { client: Place::new(), internet: Place::new() };
        ip(&format!("link add name lan0 type veth peer name eth0 netns {}", net.client.path()));
        ip(&format!("link add name wan0 type veth peer name eth0 netns {}", net.internet.path()));
        net.client.enter(|| {
            up("eth0", &["10.99.0.2/24", "fd99::2/64"]);
            ip("route add default via 10.99.0.1");
            ip("-6 route add default via fd99::1");
        });
        net.internet.enter(|| {
            up("eth0", &["192.0.2.2/24", "192.0.2.53/24", "2001:db8:ffff::2/64"]);
            ip("route add default via 192.0.2.1");
            ip("-6 route add default via 2001:db8:ffff::1");
            ip("route add local 198.18.0.0/15 dev lo");
            ip("-6 route add local 2001:db8:1::/48 dev lo");
        });
        up("lan0", &["10.99.0.1/24", "fd99::1/64"]);
        up("wan0", &["192.0.2.1/24", "2001:db8:ffff::1/64"]);
        ip("route add default via 192.0.2.2");
        ip("-6 route add default via 2001:db8:ffff::2");
        for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{switch}"), "1").unwrap();
        }
        net
    }
}

fn up(link: &str, addresses: &[&str]) {
    for address in addresses {
        let nodad = if address.contains(':') { " nodad" } else { "" };
        ip(&format!("address add {address} dev {link}{nodad}"));
    }
    ip(&format!("link set {link} up"));
}

/// Everything but greenlane.
struct Ground {
    net: Net,
    client: Client,
    upstream: Upstream,
    proxy: Proxy,
    _internet: Internet,
}

impl Ground {
    /// Builds it around the thread's namespace; `bump` may say otherwise what the proxy inspects.
    async fn lay(bump: Option<&str>, script: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> Self {
        let net = Net::build();
        let internet = Internet::start(&net.internet);
        let proxy = Proxy::start(&internet.authority, bump).await;
        let upstream = internet::upstream(&net.internet, script);
        let client = Client::new(&net.client, &internet, &proxy);
        Self { net, client, upstream, proxy, _internet: internet }
    }

    /// A greenlane of the gateway that waits for the firewall as long as it may be told to, so that a busy machine
    /// makes no answer late.
    fn setup(&self) -> Setup {
        Setup::new(self.upstream.addr)
            .only("listen", &format!("dns = [\"{DNS}\"]\nweb = \"127.0.0.1:0\""))
            .with("learn", "hold = \"1s\"")
            .with("catalogue", "watch = false")
    }
}

/// The whole, running: greenlane fills a table of its own, and everything is inspected that has no mark.
struct Lab {
    greenlane: Greenlane,
    ground: Ground,
}

impl Deref for Lab {
    type Target = Ground;

    fn deref(&self) -> &Ground {
        &self.ground
    }
}

impl Lab {
    async fn start(
        way: Way,
        setup: impl FnOnce(Setup) -> Setup,
        script: impl Fn(&Asked) -> Act + Send + Sync + 'static,
    ) -> Self {
        let ground = Ground::lay(None, script).await;
        way.take();
        let greenlane = setup(ground.setup().with("[export.nftables]", "mode = \"own\"")).start().await;
        Self { greenlane, ground }
    }

    /// How many answers left before the kernel had their addresses.
    async fn late(&self) -> f64 {
        self.greenlane.metric("greenlane_learn_offers_total{outcome=\"late\"}").await
    }
}

/// Waits until something is so.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..PATIENCE.as_millis() / 10 {
        if is_so() {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: waited in vain\n{}", crate::netns::nft("list ruleset"));
}

/// The addresses of `n7.listed.example`.
fn listed4(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 1)) + n)
}

fn listed6(n: u32) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(Ipv6Addr::new(0x2001, 0xdb8, 1, 1, 0, 0, 0, 1)) + u128::from(n))
}

/// The number in the name asked: 7 in `n7.listed.example`.
fn number(asked: &Asked) -> u32 {
    asked.name().split('.').next().unwrap()[1..].parse().unwrap_or(0)
}

/// Whether the name asked is below `listed.example`.
fn is_listed(asked: &Asked) -> bool {
    asked.name().ends_with(".listed.example")
}

/// The address of the name asked, each name having its own; unlisted ones live in 198.19.0.0/16 and 2001:db8:1:2::.
fn address(asked: &Asked) -> IpAddr {
    let n = number(asked);
    match (asked.qtype(), is_listed(asked)) {
        (AAAA, true) => listed6(n).into(),
        (AAAA, false) => Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 0, 0, 0, n as u16 + 1).into(),
        (_, true) => listed4(n).into(),
        (_, false) => Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 19, 0, 1)) + n).into(),
    }
}

/// An address record of the name asked.
fn told(address: impl Into<IpAddr>, ttl: u32) -> Vec<u8> {
    match address.into() {
        IpAddr::V4(address) => record(&[0xc0, 12], A, ttl, &address.octets()),
        IpAddr::V6(address) => record(&[0xc0, 12], AAAA, ttl, &address.octets()),
    }
}

/// The ordinary script: every name has one address of each family for five minutes.
fn numbering(asked: &Asked) -> Act {
    if matches!(asked.qtype(), A | AAAA) {
        asked.reply().answer(&told(address(asked), 300)).act()
    } else {
        asked.reply().act()
    }
}
