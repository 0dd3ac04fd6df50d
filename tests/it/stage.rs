//! The real pipeline, learner and upstream sockets in this process, on a clock that moves only when it is told to.
//!
//! A [`Stage`] joins the parts as the daemon does, without listeners and web. Its upstream answers like a resolver
//! from a [`Zone`] that may change at any time. Everything runs on the one thread of the test, so that what is due
//! when the clock has moved is done when [`Stage::pass`] returns.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use greenlane::cache::{Ahead, Cache};
use greenlane::catalogue::{self, Catalogue, compile};
use greenlane::clock::{Clock, Timestamp};
use greenlane::forward::{self, Forward, Protocol, Upstream as UpstreamUrl};
use greenlane::learn::{self, Confirm, Learner, Listing, Start};
use greenlane::metrics::Registry;
use greenlane::pipeline::{Current, Pipeline, TagOptions, Tried};
use greenlane::policy::Special;
use greenlane::prefix::Prefix;
use greenlane::set::{Selection, Snapshot, StaticEntry};
use greenlane::source::Problems;
use greenlane::wire::{Rules, Seen, Transport, see};
use hickory_proto::op::Message;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::harness::PATIENCE;
use crate::upstream::{Act, Asked, CNAME, SOA, Upstream, record, wire_name};

/// When every stage begins.
const START: Timestamp = Timestamp::from_secs(1_800_000_000);

/// The clamps that a configuration has by default.
const RULES: Rules = Rules { min_ttl: 0, max_ttl: 86_400, negative_max_ttl: 3600, trust_ad: false };

/// What the upstream knows, by name and type.
#[derive(Debug, Default)]
pub(crate) struct Zone {
    rrsets: BTreeMap<(String, u16), RrSet>,
    /// Names that do not exist, with the TTL of saying so; 0: without SOA.
    absent: BTreeMap<String, u32>,
    /// What it does instead of answering.
    pub(crate) trouble: Option<Trouble>,
}

/// How an upstream fails.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trouble {
    /// It says nothing.
    Silent,
    /// It answers with an rcode, and an extended error.
    Fails(u16, Option<u16>),
}

#[derive(Debug)]
struct RrSet {
    rdata: Vec<Vec<u8>>,
    ttl: u32,
}

impl Zone {
    /// Replaces an RRset; without RDATA it is gone.
    pub(crate) fn set(&mut self, name: &str, rtype: u16, rdata: Vec<Vec<u8>>, ttl: u32) {
        self.absent.remove(name);
        self.rrsets.insert((name.to_owned(), rtype), RrSet { rdata, ttl });
    }

    /// Takes a name away.
    pub(crate) fn remove(&mut self, name: &str, ttl: u32) {
        self.absent.insert(name.to_owned(), ttl);
    }

    /// Answers as a resolver does: along CNAMEs, with all that they lead to; NODATA for what there is not.
    fn answer(&self, asked: &Asked) -> Act {
        let (mut name, mut reply) = (asked.name(), asked.reply());
        match self.trouble {
            Some(Trouble::Silent) => return Act::Drop,
            Some(Trouble::Fails(rcode, None)) => return reply.rcode(rcode).act(),
            Some(Trouble::Fails(rcode, Some(ede))) => return reply.rcode(rcode).ede(ede, "").act(),
            None => {}
        }
        if let Some(&ttl) = self.absent.get(&name) {
            let mut soa = [wire_name("ns.example"), wire_name("host.example")].concat();
            (0..5).for_each(|_| soa.extend(ttl.to_be_bytes()));
            let reply = reply.rcode(3);
            return if ttl == 0 { reply } else { reply.authority(&record(&wire_name("example"), SOA, ttl, &soa)) }
                .act();
        }
        // No chain of a test is longer.
        for _ in 0..40 {
            let found = [asked.qtype(), CNAME].map(|rtype| (rtype, self.rrsets.get(&(name.clone(), rtype))));
            let Some((rtype, rrset)) = found.into_iter().find_map(|(t, found)| Some((t, found?))) else { break };
            for rdata in &rrset.rdata {
                reply = reply.answer(&record(&wire_name(&name), rtype, rrset.ttl, rdata));
            }
            match rrset.rdata.first() {
                Some(target) if rtype == CNAME && asked.qtype() != CNAME => name = text(target),
                _ => break,
            }
        }
        reply.act()
    }
}

/// The text of a name in wire form.
fn text(mut wire: &[u8]) -> String {
    let mut labels = Vec::new();
    while let Some((&len, rest)) = wire.split_first().filter(|(len, _)| **len > 0) {
        let (label, rest) = rest.split_at(usize::from(len));
        labels.push(String::from_utf8(label.to_vec()).unwrap());
        wire = rest;
    }
    labels.join(".")
}

/// Documentation and benchmarking addresses may be learned; nothing is ever late.
pub(crate) fn options() -> learn::Options {
    let treat_as_public = ["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "198.18.0.0/15", "2001:db8::/32"];
    learn::Options {
        hold: Duration::from_secs(10),
        treat_as_public: treat_as_public.iter().map(|text| text.parse().unwrap()).collect(),
        // Lists come and go whole here.
        max_shrink: 1.0,
        ..learn::Options::default()
    }
}

/// The parts, joined.
pub(crate) struct Stage {
    pub(crate) clock: Clock,
    pub(crate) zone: Arc<Mutex<Zone>>,
    upstream: Upstream,
    pipeline: Pipeline,
    learner: Learner,
    registry: Registry,
    generation: u64,
    /// A client who waits.
    begun: Option<JoinHandle<Message>>,
}

impl Stage {
    /// Starts with these lists, by app.
    ///
    /// # Errors
    /// The lists' mistakes.
    pub(crate) async fn start(
        lists: &BTreeMap<String, String>,
        options: learn::Options,
        ahead: Ahead,
    ) -> Result<Self, Problems> {
        let zone = Arc::new(Mutex::new(Zone::default()));
        let answering = Arc::clone(&zone);
        let upstream = Upstream::start(move |asked| answering.lock().unwrap().answer(asked)).await;
        let catalogue = catalogue(lists)?;
        let (clock, registry) = (Clock::manual(START), Registry::new());
        let asked = UpstreamUrl { protocol: Protocol::Udp, addr: upstream.addr, tls_name: None, path: None };
        let forward = forward::Options { upstreams: vec![asked], ..forward::Options::default() };
        let forward = Forward::with_roots(forward, RULES, clock.clone(), &registry, Vec::new()).unwrap();
        let (learner, writer) = learn::start(Start::new(options, listing(&catalogue), 1), clock.clone(), &registry);
        tokio::spawn(writer.run());
        let current = current(1, catalogue, Arc::new(forward), ahead);
        let pipeline = Pipeline::new(current, Cache::new(1 << 20), learner.clone(), clock.clone(), &registry);
        tokio::spawn(pipeline.clone().look_ahead());
        Ok(Self { clock, zone, upstream, pipeline, learner, registry, generation: 1, begun: None })
    }

    /// Asks as a listener does.
    pub(crate) async fn ask(&self, query: &Message, client: Ipv4Addr) -> Message {
        ask(self.pipeline.clone(), self.clock.clone(), query.clone(), client).await
    }

    /// Asks likewise, without waiting for the answer.
    pub(crate) async fn begin(&mut self, query: &Message, client: Ipv4Addr) {
        let asking = ask(self.pipeline.clone(), self.clock.clone(), query.clone(), client);
        self.begun = Some(tokio::spawn(asking));
        self.pass(Duration::ZERO).await;
    }

    /// Whether whoever asked with [`Stage::begin`] waits.
    pub(crate) fn is_waiting(&self) -> bool {
        self.begun.as_ref().is_some_and(|begun| !begun.is_finished())
    }

    /// What was said to whoever asked with [`Stage::begin`].
    pub(crate) async fn begun(&mut self) -> Option<Message> {
        let begun = self.begun.take()?;
        Some(tokio::time::timeout(PATIENCE, begun).await.expect("no answer").unwrap())
    }

    /// Lets time pass, and everything happen that is due by then.
    pub(crate) async fn pass(&self, span: Duration) {
        self.clock.advance(span);
        // The writer was woken and runs before this task does again; once more for whom it wakes in turn.
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
    }

    /// Puts other lists and options in force, as the daemon does.
    ///
    /// # Errors
    /// The lists' mistakes; nothing has changed then.
    pub(crate) async fn reload(
        &mut self,
        lists: &BTreeMap<String, String>,
        options: learn::Options,
        ahead: Ahead,
    ) -> Result<(), Problems> {
        let catalogue = catalogue(lists)?;
        self.generation += 1;
        self.learner.reload(listing(&catalogue), self.generation, Some(options), Confirm::No).await;
        let forward = Arc::clone(self.pipeline.current().forward());
        self.pipeline.replace(current(self.generation, catalogue, forward, ahead));
        Ok(())
    }

    pub(crate) fn set(&self) -> Snapshot {
        self.learner.reader().snapshot()
    }

    /// The set as it is exported.
    pub(crate) fn prefixes(&self) -> Vec<Prefix> {
        self.set().prefixes(&Selection::default())
    }

    /// How many questions the upstream got.
    pub(crate) fn upstream_count(&self) -> usize {
        self.upstream.count()
    }

    /// How many of them were for this name.
    pub(crate) fn asked_for(&self, name: &str) -> usize {
        self.upstream.counts().get(name).copied().unwrap_or_default()
    }

    /// The value of a metric line, 0 if it is not there.
    pub(crate) fn metric(&self, line: &str) -> u64 {
        let text = String::from_utf8(self.registry.render()).unwrap();
        let found = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' ')?.parse().ok());
        found.unwrap_or(0)
    }
}

/// Asks as a listener does: as a task from an even client address, by the packet from an odd one.
async fn ask(pipeline: Pipeline, clock: Clock, query: Message, client: Ipv4Addr) -> Message {
    let octets = query.to_vec().unwrap();
    let Seen::Question(view) = see(&octets, Transport::Tcp) else { panic!("no question: {query:?}") };
    let mut out = Vec::new();
    match pipeline.try_answer(&view, Transport::Tcp, clock.now(), &mut out) {
        Tried::Answered => {}
        Tried::Drop => panic!("no answer to {query:?}"),
        Tried::Miss if client.octets()[3].is_multiple_of(2) => {
            pipeline.resolve(&view, Transport::Tcp, IpAddr::V4(client), &mut out).await;
        }
        Tried::Miss => {
            let (sender, reply) = oneshot::channel();
            let tell = move |octets: &[u8]| drop(sender.send(octets.to_vec()));
            pipeline.resolve_then((&octets, None), Transport::Tcp, IpAddr::V4(client), &Handle::current(), tell);
            out = reply.await.expect("every packet is answered");
        }
    }
    Message::from_vec(&out).unwrap()
}

fn catalogue(lists: &BTreeMap<String, String>) -> Result<Arc<Catalogue>, Problems> {
    let files: Vec<_> = lists.iter().map(|(app, text)| (format!("{app}.list"), text)).collect();
    let files = files.iter().map(|(file, text)| (file.as_str(), text.as_bytes()));
    let loaded = compile(files, &catalogue::Options::default(), jiff::civil::date(2027, 1, 15))?;
    Ok(Arc::new(loaded.catalogue))
}

fn listing(catalogue: &Arc<Catalogue>) -> Listing {
    let statics = catalogue.prefixes().iter();
    let statics = statics.map(|listed| StaticEntry { prefix: listed.prefix, apps: listed.apps().cloned().collect() });
    let matching = Arc::clone(catalogue);
    Listing::new(statics.collect(), move |name| matching.find(name).map(|id| matching.tag(id)))
}

fn current(generation: u64, catalogue: Arc<Catalogue>, forward: Arc<Forward>, ahead: Ahead) -> Current {
    Current::new(generation, catalogue, forward, Special::new(Vec::new()), RULES, TagOptions::default())
        .with_ahead(ahead)
}
