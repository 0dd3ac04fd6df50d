//! Start, reload, drain, stop: the only file that joins all parts.
//!
//! ```text
//!  Config ─▶ catalogue, export folders, sockets ── all checked and bound before anything runs
//!         ─▶ learner and its writer ─▶ pipeline ─▶ listeners, web, files, watch
//! ```
//!
//! A reload builds everything new first and then swaps it in, under the next generation number; if any of it fails
//! the old state stays whole. What cannot change while running (the sockets, the cache's size, the log) is named in
//! one line and waits for a restart. At the end listeners stop taking questions, those that wait are answered, and
//! the streams of consumers are closed.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use prometheus::{IntCounterVec, IntGauge, IntGaugeVec, Opts};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch as latest};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cache::Cache;
use crate::catalogue::Catalogue;
use crate::clock::Clock;
use crate::cluster::{self, Cluster};
use crate::config::{Config, Env};
use crate::export::file;
use crate::forward::{self, Forward};
use crate::learn::{self, Confirm, Learner, Listing};
use crate::listen::plain::{Beats, Plain};
use crate::listen::streams::{Door, Streams};
use crate::listen::tls::PairError;
use crate::listen::{self, Access, BindError, Bound, Front, Kind, Open, doh};
use crate::metrics::Registry;
use crate::pipeline::{Current, Pipeline};
use crate::policy::{Hosts, Special};
use crate::prefix::Prefix;
use crate::set::outlet::{Intake, outlet_aside};
use crate::set::{Joins, StaticEntry};
use crate::source::Problems;
use crate::store::StoreError;
use crate::warm::{Wanted, Warm};
use crate::web;
use crate::wire::Rules;

mod files;
mod given;
mod handed;
mod inputs;
mod saved;
mod secure;
mod sinks;
mod stats;
mod watch;

pub use files::files;
pub use given::{AgentAway, Given, Patience, Sockets, firewall_rules};
pub use handed::HandedError;
pub use inputs::{HostsError, InputError};
pub use secure::SecureError;

use given::web_error;
use inputs::Inputs;
use secure::Certified;
use sinks::{Keeper, Sinks};

/// How long questions that wait may take to be answered once the end has begun.
const DRAIN_PATIENCE: Duration = Duration::from_secs(3);

/// How often it is looked for signs of life.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// How long everything else may take to end.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// How long the cluster may take to tell what the others know, before the first question.
const JOIN_PATIENCE: Duration = Duration::from_secs(3);

/// How long the others may take to be told the last changes.
const TELL_PATIENCE: Duration = Duration::from_secs(1);

/// A part that must run as long as the daemon, and ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped(pub &'static str);

/// Why nothing was started.
#[derive(Debug, Error)]
pub enum StartError {
    /// The lists, or another file that the configuration names.
    #[error("{0}")]
    Input(#[from] InputError),
    /// A DNS socket.
    #[error("{0}")]
    Listen(#[from] BindError),
    /// A socket that the service manager passed.
    #[error("{0}")]
    Handed(#[from] HandedError),
    /// No DNS socket is left: every address is a default one that this host lacks.
    #[error("listen.dns: this host has none of the default addresses; name one that it has")]
    NoAddress,
    /// The web socket.
    #[error("listen.web: {addr}: {}", in_words(.source))]
    Web {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Encrypted listeners.
    #[error("{0}")]
    Secure(#[from] SecureError),
    /// The upstreams.
    #[error("{0}")]
    Forward(#[from] forward::OptionsError),
    /// The store.
    #[error("store.path: {0}")]
    Store(#[from] StoreError),
    /// The cluster.
    #[error("{0}")]
    Cluster(#[from] cluster::OptionsError),
    /// Threads.
    #[error("starting threads: {0}")]
    Threads(std::io::Error),
}

impl StartError {
    /// Returns whether the configuration or the lists must change, rather than the host.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Input(error) => error.is_configuration(),
            Self::Handed(_) | Self::NoAddress | Self::Forward(_) | Self::Cluster(_) => true,
            Self::Secure(error) => matches!(error, SecureError::Pair(_)),
            Self::Listen(_) | Self::Web { .. } | Self::Store(_) | Self::Threads(_) => false,
        }
    }
}

fn in_words(source: &std::io::Error) -> String {
    match source.kind() {
        std::io::ErrorKind::AddrInUse => {
            "the port is in use (TCP): stop the other server, or choose another address with `listen.web`".to_owned()
        }
        std::io::ErrorKind::AddrNotAvailable => {
            "is no address of this host: take one that `ip address` shows".to_owned()
        }
        std::io::ErrorKind::PermissionDenied => {
            "needs the right to bind ports below 1024: grant CAP_NET_BIND_SERVICE, or choose another port".to_owned()
        }
        _ => source.to_string(),
    }
}

/// Why a reload changed nothing.
#[derive(Debug, Error)]
pub enum ReloadError {
    /// The configuration has mistakes.
    #[error("{0}")]
    Config(Problems),
    /// The lists, or another file that the configuration names.
    #[error("{0}")]
    Input(#[from] InputError),
    /// The certificate.
    #[error("{0}")]
    Pair(#[from] PairError),
    /// The upstreams.
    #[error("{0}")]
    Forward(#[from] forward::OptionsError),
}

/// What is in force.
#[derive(Debug)]
struct Loaded {
    config: Config,
    generation: u64,
    hosts: Arc<Hosts>,
}

/// A running greenlane.
pub struct Daemon {
    source: Option<PathBuf>,
    loaded: tokio::sync::Mutex<Loaded>,
    pipeline: Pipeline,
    learner: Learner,
    catalogue: Arc<ArcSwap<Catalogue>>,
    /// The same for those who wait for another one.
    relisted: latest::Sender<Arc<Catalogue>>,
    /// What is asked ahead of clients.
    warmed: latest::Sender<Arc<Wanted>>,
    tokens: Arc<ArcSwap<web::Tokens>>,
    access: Arc<Access>,
    clock: Clock,
    meter: Meter,
    dns: Vec<SocketAddr>,
    web: Option<SocketAddr>,
    certified: Certified,
    waiting: Arc<Semaphore>,
    waiting_max: usize,
    ready: Arc<AtomicBool>,
    /// Ends listeners.
    stop: CancellationToken,
    /// Ends the parts behind them: files, web, watch.
    stop_rest: CancellationToken,
    files: Mutex<CancellationToken>,
    watch: Mutex<Option<watch::Watch>>,
    file_metrics: file::Metrics,
    keeper: Mutex<Keeper>,
    beats: Beats,
    tasks: TaskTracker,
    listeners: TaskTracker,
    ended: tokio::sync::Mutex<mpsc::Receiver<Stopped>>,
    ending: mpsc::Sender<Stopped>,
    cluster: Mutex<Option<Cluster>>,
}

impl Daemon {
    /// Checks, binds and starts everything. `source` is the file that a reload reads again.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left running.
    pub async fn start(config: Config, source: Option<PathBuf>) -> Result<Arc<Self>, StartError> {
        Self::start_with(config, source, Given::default()).await
    }

    /// The same with what the keeper of this process has given it.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left running.
    pub async fn start_with(config: Config, source: Option<PathBuf>, given: Given) -> Result<Arc<Self>, StartError> {
        let Given { sockets, passed, agent } = given;
        let clock = Clock::system();
        let registry = Registry::new();
        let Inputs { catalogue, warnings, wanted, secrets, hosts } = Inputs::read(&config, 0)?;
        let tokens = inputs::read_tokens(&config)?;
        let Sockets { dns, web, secure } =
            sockets.map_or_else(|| Sockets::take(passed, &config, Patience::None), Ok)?;
        let bound = dns.into_iter().map(listen::read).collect::<Result<Vec<_>, _>>()?;
        let web = web.map(TcpListener::from_std).transpose().map_err(|source| web_error(&config, source))?;
        let secure = secure::Prepared::new(&config, secure)?;
        let certified = Certified::new(&secure);
        let forward = Arc::new(Forward::new(config.forward.clone(), clamps(&config), clock.clone(), &registry)?);

        tell_warnings(&warnings);
        let generation = 1;
        let listening = bound.iter().map(|sockets| sockets.addr).chain(secure.places.iter().map(|place| place.1));
        let options = learn_options(&config, listening);
        let cluster = config.cluster.as_ref().map(|options| cluster::Prepared::new(options, &registry)).transpose()?;
        let Sinks { mut outlets, restored, keeper } = Sinks::start(&config, agent, &clock, &registry)?;
        let cluster = cluster.map(|prepared| {
            let (outlet, intake) = outlet_aside("cluster");
            outlets.push(outlet);
            (prepared, intake)
        });
        let joins = Joins::default();
        let start =
            learn::Start { options, listing: listing(&catalogue), generation, outlets, joins: joins.clone(), restored };
        let (learner, writer) = learn::start(start, clock.clone(), &registry);
        let current = current(&config, generation, &catalogue, forward, (&certified, &hosts));
        let cache = Cache::new(config.cache.size_bytes);
        let pipeline = Pipeline::new(current, cache, learner.clone(), clock.clone(), &registry);
        let meter = Meter::new(&registry);
        meter.triggers.set(i64::try_from(catalogue.trigger_count()).unwrap_or(i64::MAX));
        let (ending, ended) = mpsc::channel(4);
        let daemon = Arc::new(Self {
            source,
            pipeline,
            learner,
            relisted: latest::Sender::new(Arc::clone(&catalogue)),
            warmed: latest::Sender::new(wanted),
            catalogue: Arc::new(ArcSwap::new(catalogue)),
            tokens: Arc::new(ArcSwap::from_pointee(tokens)),
            access: Arc::new(Access::new(config.listen.clients.clone(), secrets)),
            clock,
            meter,
            dns: bound.iter().map(|sockets| sockets.addr).collect(),
            web: web.as_ref().and_then(|listener| listener.local_addr().ok()),
            certified,
            waiting: Arc::new(Semaphore::new(config.listen.waiting_max)),
            waiting_max: config.listen.waiting_max,
            ready: Arc::new(AtomicBool::new(false)),
            stop: CancellationToken::new(),
            stop_rest: CancellationToken::new(),
            files: Mutex::new(CancellationToken::new()),
            watch: Mutex::new(None),
            file_metrics: file::Metrics::new(&registry),
            keeper: Mutex::new(keeper),
            beats: Beats::default(),
            tasks: TaskTracker::new(),
            listeners: TaskTracker::new(),
            ended: tokio::sync::Mutex::new(ended),
            ending,
            cluster: Mutex::new(None),
            loaded: tokio::sync::Mutex::new(Loaded { config: config.clone(), generation, hosts }),
        });
        daemon.must_run("the writer of the set", &daemon.tasks, writer.run());
        daemon.start_looking_ahead();
        // What was kept over the restart is in the set and in the firewall before the first question is read.
        daemon.learner.begun().await;
        if let Some((prepared, intake)) = cluster {
            daemon.join(prepared, intake).await;
        }
        daemon.start_files(&config.export_files);
        daemon.start_listeners(bound, secure, &config.listen, &registry);
        daemon.start_warm(&registry);
        saved::start_reading(&daemon, &config);
        if let Some(listener) = web {
            daemon.start_web(listener, &config, registry, joins);
        }
        if config.watch {
            *daemon.watch.lock() = watch::start(&daemon, &config.catalogue.path);
        }
        daemon.ready.store(true, Ordering::Release);
        Ok(daemon)
    }

    /// Returns the DNS addresses, UDP and TCP, with the ports that the system chose.
    pub fn dns(&self) -> &[SocketAddr] {
        &self.dns
    }

    /// Returns the address of the web listener.
    pub fn web(&self) -> Option<SocketAddr> {
        self.web
    }

    /// Returns what each encrypted listener speaks, and where.
    pub fn secure(&self) -> &[(Kind, SocketAddr)] {
        self.certified.places()
    }

    /// Returns the catalogue in force.
    pub fn catalogue(&self) -> Arc<Catalogue> {
        self.catalogue.load_full()
    }

    /// Returns the learner.
    pub fn learner(&self) -> &Learner {
        &self.learner
    }

    /// Returns one line that tells where everything is.
    pub fn greeting(&self) -> String {
        let dns: Vec<String> = self.dns.iter().map(SocketAddr::to_string).collect();
        let web = self.web.map_or_else(|| "off".to_owned(), |addr| format!("http://{addr}/"));
        let (version, dns, lists) = (env!("CARGO_PKG_VERSION"), dns.join(", "), counted(&self.catalogue()));
        let secure = self.secure().iter().map(|(kind, addr)| match kind {
            Kind::Doh => format!("DoH on https://{addr}{}, ", doh::PATH),
            kind => format!("{} on {addr}, ", kind.title()),
        });
        let secure: String = secure.collect();
        format!("greenlane {version}: DNS on {dns} (UDP and TCP), {secure}web on {web}, {lists}")
    }

    /// Reads configuration and lists again and puts both in force, or neither. Says so once, either way.
    pub async fn reload(&self) {
        let mut loaded = self.loaded.lock().await;
        let env = Env::of_process();
        let config = match &self.source {
            Some(path) => Config::load(path, &env),
            None => Ok(loaded.config.clone()),
        };
        let result = match config {
            Ok(config) => self.apply_with_tokens(config, &mut loaded).await,
            Err(problems) => Err(ReloadError::Config(problems)),
        };
        self.tell(result);
    }

    /// Puts a configuration, its lists and its tokens in force, as the operator asked. A change of the lists alone leaves the tokens.
    async fn apply_with_tokens(&self, config: Config, loaded: &mut Loaded) -> Result<u64, ReloadError> {
        let tokens = inputs::read_tokens(&config)?;
        let generation = self.apply(config, loaded, Confirm::Explicit).await?;
        self.tokens.store(Arc::new(tokens));
        Ok(generation)
    }

    /// Reads the lists again, under the configuration in force.
    async fn reload_catalogue(&self) {
        let mut loaded = self.loaded.lock().await;
        let config = loaded.config.clone();
        let result = self.apply(config, &mut loaded, Confirm::No).await;
        self.tell(result);
    }

    fn tell(&self, result: Result<u64, ReloadError>) {
        match result {
            Ok(generation) => {
                tracing::info!("reloaded as generation {generation}: {}", counted(&self.catalogue()));
                // Whoever waits for the count finds the line.
                self.meter.reloads.with_label_values(&["done"]).inc();
            }
            Err(error) => {
                tracing::error!("reload refused, the old state stays in force: {error}");
                self.meter.reloads.with_label_values(&["failed"]).inc();
            }
        }
    }

    /// Puts a configuration and its lists in force: everything is built before anything is swapped.
    async fn apply(&self, config: Config, loaded: &mut Loaded, confirm: Confirm) -> Result<u64, ReloadError> {
        let in_force = self.catalogue().trigger_count();
        let Inputs { catalogue, warnings, wanted, secrets, hosts } = Inputs::read(&config, in_force)?;
        let upstreams_change = config.forward != loaded.config.forward || clamps(&config) != clamps(&loaded.config);
        let forward = if upstreams_change {
            Arc::new(self.pipeline.current().forward().renewed(config.forward.clone(), clamps(&config))?)
        } else {
            Arc::clone(self.pipeline.current().forward())
        };
        let pair = self.certified.renewed(config.listen.tls.as_ref())?;

        // From here on nothing fails.
        tell_warnings(&warnings);
        let generation = loaded.generation + 1;
        self.access.replace(config.listen.clients.clone(), secrets);
        self.certified.put(pair, config.listen.tls.as_ref());
        // The learner first: what is matched by the old catalogue meanwhile, it matches again.
        let listening = self.dns.iter().copied().chain(self.secure().iter().map(|place| place.1));
        let mut options = learn_options(&config, listening);
        // A cluster is joined or left with a restart.
        options.is_shared = self.cluster.lock().is_some();
        self.learner.reload(listing(&catalogue), generation, Some(options), confirm).await;
        let own = (&self.certified, &hosts);
        self.pipeline.replace(current(&config, generation, &catalogue, forward, own));
        self.catalogue.store(Arc::clone(&catalogue));
        self.relisted.send_replace(Arc::clone(&catalogue));
        // What was answered at home is to be asked for now, or the other way.
        if upstreams_change || config.special != loaded.config.special || hosts != loaded.hosts {
            self.pipeline.clear_cache();
        }
        self.warmed.send_replace(wanted);
        if config.export_files != loaded.config.export_files {
            self.start_files(&config.export_files);
        }
        if let Some(watch) = &mut *self.watch.lock() {
            watch.turn_to(&config.catalogue.path);
        }
        self.meter.triggers.set(i64::try_from(catalogue.trigger_count()).unwrap_or(i64::MAX));
        name_what_waits_for_a_restart(&loaded.config, &config);
        *loaded = Loaded { config, generation, hosts };
        Ok(generation)
    }

    /// Waits until a part that must run has ended.
    pub async fn stopped(&self) -> Stopped {
        match self.ended.lock().await.recv().await {
            Some(stopped) => stopped,
            // We hold a sender ourselves, so the channel never closes.
            None => std::future::pending().await,
        }
    }

    /// Waits until every thread that reads datagrams has taken a turn from now on, and the writer of the set, too. If one
    /// of them hangs it does not return.
    pub async fn shown_life(&self) {
        let before = self.beats.counts();
        while !self.learner.is_alive().await || !self.beats.have_all_moved(&before) {
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    /// Saves the cache if asked to, takes no more questions, answers those that wait, ends everything.
    pub async fn drain(&self) {
        saved::write(self).await;
        self.stop.cancel();
        self.listeners.close();
        let answered = async {
            self.listeners.wait().await;
            // Every question over UDP that waits holds a permit.
            let _all = self.waiting.acquire_many(u32::try_from(self.waiting_max).unwrap_or(u32::MAX)).await;
        };
        if tokio::time::timeout(DRAIN_PATIENCE, answered).await.is_err() {
            tracing::warn!("questions were left unanswered after {} s", DRAIN_PATIENCE.as_secs());
        }
        self.learner.close().await;
        let keeper = std::mem::take(&mut *self.keeper.lock());
        let cluster = self.cluster.lock().take();
        if let Some(cluster) = cluster {
            let _ = tokio::time::timeout(TELL_PATIENCE, cluster.told()).await;
        }
        keeper.ended().await;
        self.stop_rest.cancel();
        self.files.lock().cancel();
        // Requests under way on the web get their second.
        self.tasks.close();
        if tokio::time::timeout(END_PATIENCE, self.tasks.wait()).await.is_err() {
            tracing::debug!("some tasks did not end within {} s", END_PATIENCE.as_secs());
        }
    }

    /// Joins the cluster, and waits a moment for what the others know: a consumer that comes here from one of them finds
    /// what it had there.
    async fn join(self: &Arc<Self>, prepared: cluster::Prepared, intake: Intake) {
        let (cluster, running) =
            prepared.join(self.learner.clone(), intake, self.relisted.subscribe(), self.clock.clone());
        self.tasks.spawn(running);
        if tokio::time::timeout(JOIN_PATIENCE, cluster.joined()).await.is_err() {
            tracing::warn!(
                "the cluster has not told all within {} s: starting with what is known",
                JOIN_PATIENCE.as_secs()
            );
        }
        *self.cluster.lock() = Some(cluster);
    }

    fn start_listeners(
        self: &Arc<Self>,
        bound: Vec<Bound>,
        secure: secure::Prepared,
        options: &listen::Options,
        registry: &Registry,
    ) {
        let front = Front {
            pipeline: self.pipeline.clone(),
            access: Arc::clone(&self.access),
            clock: self.clock.clone(),
            meter: listen::Meter::new(registry),
        };
        let (waiting, beats) = (Arc::clone(&self.waiting), self.beats.clone());
        let plain = Plain { front: front.clone(), waiting, backend: options.backend, beats };
        let open = Arc::new(Open::new(options.max_connections, options.max_connections_per_client));
        let streams = Streams { front, open, talking: self.listeners.clone(), door: Door::Tcp };
        for sockets in bound {
            let udp = plain.clone().run(sockets.udp, self.stop.clone());
            self.must_run("a UDP listener", &self.listeners, udp);
            self.must_run("a TCP listener", &self.listeners, streams.clone().run(sockets.tcp, self.stop.clone()));
        }
        secure::start(self, secure, &streams);
    }

    /// Asks ahead from now on, until questions of clients are taken no more.
    fn start_warm(&self, registry: &Registry) {
        let (pipeline, learner, wanted) = (self.pipeline.clone(), self.learner.clone(), self.warmed.subscribe());
        let warm = Warm::new(pipeline, learner, self.clock.clone(), wanted, registry);
        self.tasks.spawn(warm.run(self.stop.clone()));
    }

    fn start_web(self: &Arc<Self>, listener: TcpListener, config: &Config, registry: Registry, joins: Joins) {
        let state = web::State {
            reader: self.learner.reader(),
            catalogue: Arc::clone(&self.catalogue),
            registry,
            clock: self.clock.clone(),
            ready: Arc::clone(&self.ready),
            tokens: Arc::clone(&self.tokens),
            joins,
            hooks: self.hooks(),
        };
        let server = web::serve(listener, state, config.web.clone(), self.stop_rest.clone());
        self.must_run("the web listener", &self.tasks, server);
    }

    /// What the web listener asks of parts that it does not know.
    fn hooks(self: &Arc<Self>) -> web::Hooks {
        let (admitting, following, clock) = (self.learner.clone(), self.learner.clone(), self.clock.clone());
        let releasing = self.learner.clone();
        web::Hooks {
            stats: stats::of(self),
            why_not: Arc::new(move |addr| admitting.admits(addr).err().map(|reason| reason.to_string())),
            followed: Arc::new(move |name| following.followed(name, clock.now())),
            accept_shrink: Arc::new(move || {
                let learner = releasing.clone();
                Box::pin(async move { learner.accept_shrink().await })
            }),
        }
    }

    /// Keeps the cache ahead of need until the end.
    fn start_looking_ahead(self: &Arc<Self>) {
        let (stop, pipeline) = (self.stop_rest.clone(), self.pipeline.clone());
        self.must_run("the task that looks ahead", &self.tasks, async move {
            stop.run_until_cancelled(pipeline.look_ahead()).await;
        });
    }

    /// Keeps these files from now on, instead of those kept so far.
    fn start_files(&self, files: &[file::Options]) {
        let stop = self.stop_rest.child_token();
        std::mem::replace(&mut *self.files.lock(), stop.clone()).cancel();
        for options in files {
            let sources = file::Sources { reader: self.learner.reader(), catalogue: self.relisted.subscribe() };
            self.tasks.spawn(file::keep(options.clone(), sources, self.file_metrics.clone(), stop.clone()));
        }
    }

    /// Runs a part, and tells when it ends before the daemon does.
    fn must_run(
        self: &Arc<Self>,
        part: &'static str,
        tracker: &TaskTracker,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let (ending, stop) = (self.ending.clone(), self.stop.clone());
        let handle = tracker.spawn(task);
        self.tasks.spawn(async move {
            let _ = handle.await;
            if !stop.is_cancelled() {
                // A full channel means that somebody is about to hear of another part.
                let _ = ending.try_send(Stopped(part));
            }
        });
    }
}

/// What the daemon itself counts.
#[derive(Debug)]
struct Meter {
    reloads: IntCounterVec,
    triggers: IntGauge,
}

impl Meter {
    fn new(registry: &Registry) -> Self {
        let reloads = registry.add(IntCounterVec::new(
            Opts::new(
                "greenlane_catalogue_reloads_total",
                "Reloads of configuration and lists by result; after one that failed the old state stays in force.",
            ),
            &["result"],
        ));
        for result in ["done", "failed"] {
            reloads.with_label_values(&[result]);
        }
        let triggers =
            registry.add(IntGauge::new("greenlane_catalogue_triggers", "Triggers in the catalogue in force."));
        let build = registry.add(IntGaugeVec::new(
            Opts::new("greenlane_build_info", "Always 1; the labels say which greenlane this is."),
            &["version"],
        ));
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Self { reloads, triggers }
    }
}

/// Says how much a catalogue holds.
fn counted(catalogue: &Catalogue) -> String {
    let of = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
    format!("{} with {}", of(catalogue.apps().len(), "app"), of(catalogue.trigger_count(), "trigger"))
}

/// Returns today's date in UTC, for review dates.
pub fn today() -> jiff::civil::Date {
    let millis = i64::try_from(Clock::system().now().as_millis()).unwrap_or(i64::MAX);
    let now = jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    jiff::tz::Offset::UTC.to_datetime(now).date()
}

fn current(
    config: &Config,
    generation: u64,
    catalogue: &Arc<Catalogue>,
    forward: Arc<Forward>,
    (certified, hosts): (&Certified, &Arc<Hosts>),
) -> Current {
    let routed = config.forward.routes.iter().map(|route| &route.zone);
    let routes = routed.chain(&config.special).cloned().collect();
    let special = Special::new(routes).denying(config.policy).telling(certified.told()).with_hosts(Arc::clone(hosts));
    Current::new(generation, Arc::clone(catalogue), forward, special, clamps(config), config.tag)
        .with_ahead(config.cache.ahead)
}

/// How answers are clamped; whose AD is believed is for each upstream to say.
fn clamps(config: &Config) -> Rules {
    let secs = |span: Duration| u32::try_from(span.as_secs()).unwrap_or(u32::MAX);
    Rules {
        min_ttl: secs(config.cache.min_ttl),
        max_ttl: secs(config.cache.max_ttl),
        negative_max_ttl: secs(config.cache.negative_max_ttl),
        trust_ad: false,
    }
}

/// What the learner needs of a catalogue.
pub(crate) fn listing(catalogue: &Arc<Catalogue>) -> Listing {
    let statics = catalogue.prefixes().iter();
    let statics = statics.map(|listed| StaticEntry { prefix: listed.prefix, apps: listed.apps().cloned().collect() });
    let matching = Arc::clone(catalogue);
    Listing::new(statics.collect(), move |name| matching.find(name).map(|id| matching.tag(id)))
}

/// The learner's options, with the addresses that this host has where we listen on all of them.
fn learn_options(config: &Config, dns: impl Iterator<Item = SocketAddr>) -> learn::Options {
    let mut options = config.learn.clone();
    if dns.map(|addr| addr.ip()).any(|ip| ip.is_unspecified()) {
        options.own.extend(interface_addresses().map(Prefix::host));
    }
    options
}

/// Every address of this host's interfaces; none if the system does not tell.
pub(crate) fn interface_addresses() -> impl Iterator<Item = IpAddr> {
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|addr| IpAddr::V4(addr.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|addr| IpAddr::V6(addr.ip())))
    })
}

/// Warnings of the lists go to the log in one line; `greenlane check` prints them all.
fn tell_warnings(warnings: &[crate::source::Problem]) {
    if !warnings.is_empty() {
        tracing::info!("{} warnings about the lists; `greenlane check` prints them", warnings.len());
    }
}

fn name_what_waits_for_a_restart(old: &Config, new: &Config) {
    let waiting = [
        ("listen.dns", old.listen.dns != new.listen.dns),
        ("listen.dot", old.listen.dot != new.listen.dot),
        ("listen.doh", old.listen.doh != new.listen.doh),
        ("listen.doq", old.listen.doq != new.listen.doq),
        ("tls", old.listen.tls.is_some() != new.listen.tls.is_some()),
        ("listen.threads", old.listen.threads != new.listen.threads),
        ("listen.web", old.web.listen != new.web.listen),
        ("web.allow", old.web.allow != new.web.allow),
        ("clients.max-connections", old.listen.max_connections != new.listen.max_connections),
        ("clients.per-client", old.listen.max_connections_per_client != new.listen.max_connections_per_client),
        ("cache.size", old.cache.size_bytes != new.cache.size_bytes),
        ("catalogue.watch", old.watch != new.watch),
        ("store", old.store != new.store || old.cluster != new.cluster),
        ("export.nftables", old.export_nftables != new.export_nftables),
        ("log", old.log != new.log),
    ];
    let keys: Vec<&str> = waiting.iter().filter(|(_, changed)| *changed).map(|(key, _)| *key).collect();
    if !keys.is_empty() {
        tracing::warn!("changed, but in force only after a restart: {}", keys.join(", "));
    }
}
