//! `greenlane demo`: everything on loopback, unprivileged, without the internet.
//!
//! A built-in upstream answers for the whole catalogue ([`zone`]); the real server runs against it; real questions
//! go through its real sockets; the set is read back over its real web listener. Then it goes on serving.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use hickory_proto::rr::RecordType;

use super::ask::{Reply, ask};
use super::{DemoArgs, Failure, serve};
use crate::catalogue::Catalogue;
use crate::config::{Config, Env};
use crate::daemon::{Daemon, StartError};
use crate::forward::{Protocol, Strategy, Upstream};
use crate::listen::hickory::Zones;
use crate::listen::{self, Address, Kind, doh};
use crate::name::Name;
use crate::prefix::Family;
use crate::wire::Transport;
use certificate::{Certificate, NAME};

mod certificate;
mod zone;

/// Where the demo's addresses come from; treated as public for the demo alone.
const SPACE: [&str; 2] = ["198.18.0.0/15", "2001:2::/48"];

/// Exported prefixes shown; the rest is one `curl` away.
const PREFIXES_SHOWN: usize = 12;

/// Questions on their way at once while the rest of the catalogue is asked for.
const AT_ONCE: usize = 32;

/// Runs the demo.
pub(super) fn run(args: &DemoArgs) -> Result<(), Failure> {
    serve::runtime()?.block_on(async {
        let config = Config::without_file(&Env::of_process()).map_err(Failure::usage)?;
        serve::log_to_stderr(&config.log);
        let loopback = Address { addr: SocketAddr::from(([127, 0, 0, 1], 0)), is_default: false };
        let alone = listen::Options { dns: vec![loopback], threads: 1, ..listen::Options::default() };
        let bound = listen::bind(&alone).map_err(Failure::failed)?.remove(0);
        let certificate = args.tls.then(Certificate::make).transpose()?;
        let config = around(config, args, bound.addr, certificate.as_ref())?;
        let tag_code = config.tag.edns_option;
        let daemon = Daemon::start(config, None).await.map_err(in_terms_of_flags)?;
        let names = listed(&daemon.catalogue());
        let mut zones = Zones::new();
        zones.add(".", &zone::master_file(&names)).map_err(Failure::failed)?;
        let (udp, tcp) = bound.into_pair().map_err(Failure::failed)?;
        let upstream = zones.serve(udp, tcp);
        let authority = certificate.as_ref().map(Certificate::path);
        let show = Show { daemon: &daemon, server: daemon.dns()[0], tag_code, authority: authority.as_deref() };
        show.run(&names).await?;
        if !args.once {
            let signals = serve::Signals::new()?;
            say("\nServing until Ctrl-C.")?;
            signals.until_stopped(&daemon).await?;
        }
        daemon.drain().await;
        drop(upstream);
        Ok(())
    })
}

/// Tells why nothing was started; where the demo listens, flags say, not keys.
fn in_terms_of_flags(error: StartError) -> Failure {
    let failure = Failure::from(error);
    let message = failure.message.replace("listen.dns", "--dns").replace("listen.web", "--web");
    Failure { message, ..failure }
}

/// The configuration of the demo: the defaults, but for where it listens and whom it asks.
fn around(
    mut config: Config,
    args: &DemoArgs,
    upstream: SocketAddr,
    certificate: Option<&Certificate>,
) -> Result<Config, Failure> {
    config.listen.dns = vec![Address { addr: args.dns, is_default: false }];
    config.web.listen = Some(args.web);
    let free = SocketAddr::new(args.dns.ip(), 0);
    let secure = Vec::from_iter(certificate.map(|_| free));
    config.listen.tls = certificate.map(Certificate::files);
    (config.listen.dot, config.listen.doh, config.listen.doq) = (secure.clone(), secure.clone(), secure);
    config.forward.upstreams = vec![Upstream { protocol: Protocol::Udp, addr: upstream, tls_name: None, path: None }];
    config.forward.strategy = Strategy::Ordered;
    config.forward.routes.clear();
    // The show leaves nothing behind.
    config.store = None;
    config.export_nftables.clear();
    // It shows how questions of clients fill the set.
    config.warm.is_on = false;
    config.export_files.clear();
    for text in SPACE {
        config.learn.treat_as_public.push(text.parse().map_err(Failure::failed)?);
    }
    Ok(config)
}

/// Every name of the catalogue, below which or at which something is bypassed.
fn listed(catalogue: &Catalogue) -> Vec<Name> {
    let mut names: Vec<Name> = catalogue.names().map(|trigger| trigger.name.clone()).collect();
    names.sort();
    names.dedup();
    names
}

/// Prints one line of the show.
fn say(line: impl std::fmt::Display) -> Result<(), Failure> {
    super::print(format!("{line}\n"))
}

struct Show<'a> {
    daemon: &'a Daemon,
    server: SocketAddr,
    tag_code: u16,
    /// The file of the throw-away certificate.
    authority: Option<&'a Path>,
}

impl Show<'_> {
    async fn run(&self, names: &[Name]) -> Result<(), Failure> {
        let catalogue = self.daemon.catalogue();
        let count = |of: fn(&crate::catalogue::App) -> usize| catalogue.apps().iter().map(of).sum::<usize>();
        say(format_args!(
            "greenlane demo: {} apps, {} names, {} prefixes; DNS on {}, everything on loopback\n",
            catalogue.apps().len(),
            names.len(),
            count(|app| app.prefix_count),
            self.server
        ))?;
        say(format_args!("  {:<4}{:<6} {:<28} {:<32} {:>4}  tag", "via", "type", "question", "answer", "set"))?;
        for (transport, name, rtype) in questions(names) {
            let reply = self.ask(transport, &name, rtype).await?;
            self.row(transport, &name, rtype, &reply)?;
        }
        self.fill(names).await?;
        self.totals(&catalogue)?;
        self.prefixes().await?;
        self.by_hand()
    }

    async fn ask(&self, transport: Transport, name: &str, rtype: RecordType) -> Result<Reply, Failure> {
        ask(self.server, transport, name, rtype, self.tag_code)
            .await
            .map_err(|error| Failure::failed(format!("asking {} for {name} {rtype}: {error}", self.server)))
    }

    fn row(&self, transport: Transport, name: &str, rtype: RecordType, reply: &Reply) -> Result<(), Failure> {
        let via = transport.name();
        let mut answer = match reply.addresses.split_first() {
            None => reply.rcode.clone(),
            Some((first, [])) => first.to_string(),
            Some((first, rest)) => format!("{first} +{}", rest.len()),
        };
        if let Some(last) = reply.chain.last() {
            answer =
                format!("{answer}, {} CNAMEs to {}", reply.chain.len(), last.split('.').next().unwrap_or_default());
        }
        let tag = match &reply.tag {
            Some(text) => text.replace("app=", "").replace(";match=", ": ").replace(";also=", ", also "),
            None => "-".to_owned(),
        };
        say(format_args!("  {via:<4}{:<6} {name:<28} {answer:<32} {:>4}  {tag}", rtype.to_string(), self.size()))
    }

    /// How many addresses are learned.
    fn size(&self) -> usize {
        let snapshot = self.daemon.learner().reader().snapshot();
        snapshot.host_count(Family::V4) + snapshot.host_count(Family::V6)
    }

    /// Asks for everything else in the catalogue.
    async fn fill(&self, names: &[Name]) -> Result<(), Failure> {
        let before = self.size();
        for some in names.chunks(AT_ONCE) {
            let texts: Vec<String> = some.iter().map(Name::to_string).collect();
            let asked = texts
                .iter()
                .flat_map(|name| [RecordType::A, RecordType::AAAA].map(|rtype| self.ask(Transport::Udp, name, rtype)));
            for reply in futures_util::future::join_all(asked).await {
                reply?;
            }
        }
        say(format_args!(
            "\n  … and A and AAAA of all {} names: {before} ▶ {} addresses in the set\n",
            names.len(),
            self.size()
        ))
    }

    /// Learned addresses by app.
    fn totals(&self, catalogue: &Catalogue) -> Result<(), Failure> {
        let snapshot = self.daemon.learner().reader().snapshot();
        let mut learned: BTreeMap<String, usize> = BTreeMap::new();
        for host in snapshot.hosts() {
            for app in host.apps().iter() {
                *learned.entry(app.to_string()).or_default() += 1;
            }
        }
        say(format_args!("  {:<20} {:>8} {:>9} {:>8}", "app", "triggers", "prefixes", "learned"))?;
        for app in catalogue.apps() {
            let learned = learned.get(app.id.as_str()).copied().unwrap_or(0);
            say(format_args!("  {:<20} {:>8} {:>9} {learned:>8}", app.id.as_str(), app.name_count, app.prefix_count))?;
        }
        Ok(())
    }

    /// What a firewall would read.
    async fn prefixes(&self) -> Result<(), Failure> {
        let Some(web) = self.daemon.web() else { return Ok(()) };
        let base = format!("http://{web}");
        let url = format!("{base}/prefixes.txt");
        let body = super::site::fetch(base, "/prefixes.txt").await?;
        let lines: Vec<&str> = body.lines().collect();
        say(format_args!("\n  {url}: {} prefixes, aggregated without loss", lines.len()))?;
        for line in lines.iter().take(PREFIXES_SHOWN) {
            say(format_args!("    {line}"))?;
        }
        if let Some(more) = lines.len().checked_sub(PREFIXES_SHOWN).filter(|&more| more > 0) {
            say(format_args!("    … and {more} more"))?;
        }
        Ok(())
    }

    /// What to try next.
    fn by_hand(&self) -> Result<(), Failure> {
        let (ip, port) = (self.server.ip(), self.server.port());
        say("\n  Try it by hand:")?;
        say(format_args!("    dig @{ip} -p {port} zoom.us            # the tag shows as an extended error (EDE)"))?;
        say(format_args!("    dig @{ip} -p {port} www.example.com    # no tag: not listed, not learned"))?;
        if let Some(web) = self.daemon.web() {
            for path in [
                "prefixes.txt?family=4",
                "prefixes.nft",
                "explain?name=login.zoom.us",
                "explain?address=198.18.0.1",
                "metrics",
            ] {
                say(format_args!("    curl 'http://{web}/{path}'"))?;
            }
        }
        self.by_hand_encrypted()
    }

    /// What shows the encrypted listeners.
    fn by_hand_encrypted(&self) -> Result<(), Failure> {
        let Some(authority) = self.authority else { return Ok(()) };
        let authority = authority.display();
        say(format_args!("\n  Encrypted, with a certificate for {NAME} that ends with the demo ({authority}):"))?;
        for (kind, addr) in self.daemon.secure() {
            let (ip, port) = (addr.ip(), addr.port());
            let kdig = format!("kdig @{ip} -p {port} +tls-ca={authority} +tls-hostname={NAME}");
            match kind {
                Kind::Dot => say(format_args!("    {kdig} +tls zoom.us"))?,
                Kind::Doq => say(format_args!("    {kdig} +quic zoom.us"))?,
                Kind::Doh => {
                    let path = doh::PATH;
                    say(format_args!("    {kdig} +https={path} zoom.us"))?;
                    say(format_args!(
                        "    curl --cacert {authority} --resolve {NAME}:{port}:{ip} -sS -o /dev/null -D - \\\n      \
                         'https://{NAME}:{port}{path}?dns=AAABAAABAAAAAAAABHpvb20CdXMAAAEAAQ'"
                    ))?;
                }
            }
        }
        let (ip, port) = (self.server.ip(), self.server.port());
        say(format_args!("    dig @{ip} -p {port} _dns.resolver.arpa SVCB    # how clients find these (RFC 9462)"))
    }
}

/// The questions of the show: listed and ordinary names, all types, both transports.
fn questions(names: &[Name]) -> Vec<(Transport, String, RecordType)> {
    use RecordType::{A, AAAA, HTTPS};
    use Transport::{Tcp, Udp};
    let is_listed = |text: &str| Name::parse(text).is_ok_and(|name| names.iter().any(|zone| name.is_at_or_below(zone)));
    let mut questions = vec![
        (Udp, "zoom.us".to_owned(), A),
        (Udp, "us04web.zoom.us".to_owned(), AAAA),
        (Udp, "www.example.com".to_owned(), A),
        (Tcp, "slack.com".to_owned(), A),
        (Udp, "login.microsoftonline.com".to_owned(), A),
        (Udp, "github.com".to_owned(), AAAA),
        (Tcp, "news.example.org".to_owned(), AAAA),
        (Udp, "api.dropbox.com".to_owned(), A),
        (Udp, "nothing.example".to_owned(), A),
    ];
    questions.retain(|(_, name, _)| name.ends_with("example") || name.contains("example.") || is_listed(name));
    // One with hints and one behind a chain, wherever the catalogue of today has them.
    let place = |i: usize| names.get(i).map(Name::to_string);
    questions.extend(place(0).map(|name| (Udp, name, HTTPS)));
    questions.extend(place(4).map(|name| (Udp, name, A)));
    questions.extend(place(9).map(|name| (Tcp, name, A)));
    questions
}
