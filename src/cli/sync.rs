//! `greenlane sync`: the nftables of a firewall that is not the resolver's host.
//!
//! The same engine as in `[[export.nftables]]` of a resolver, fed by [`crate::export::follow`]: everything that the
//! command line does not say comes from the configuration file, if there is one (`[learn]` for what may be in the set,
//! `[[export.nftables]]` for where it goes, `[log]`), else from the defaults.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::serve::{log_to_stderr, runtime};
use super::{ConfigFile, Failure};
use crate::admission::Admission;
use crate::clock::{Clock, Timestamp};
use crate::config::{Config, is_nft_name, parse_duration};
use crate::daemon::interface_addresses;
use crate::export::follow::{
    Access, Follower, OnceError, Options, Printer, Resolver, Sink, Standing, UrlError, WIDEST4, WIDEST6,
};
use crate::export::nftables::{self, MARK, Mode, SetNames, SetsError, Surplus, TableFamily};
use crate::metrics::Registry;
use crate::prefix::{Prefix, PrefixError};
use crate::set::outlet::outlet;
use crate::web;

/// systemd hears that we are ready no later than this: what is in the kernel is kept even without any resolver.
const READY_PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
#[command(after_help = "\
What is not given here comes from the configuration file, if there is one: [learn] never, treat-as-public, nat64 and
max-total, [[export.nftables]] and [log]. The addresses of this host are never taken.

Every resolver named with --from is followed at the same time. An address stays until the last of them has withdrawn
it, or its end has passed; when none answers, everything stays for the time of --lease. Nothing is cleared on an error.")]
pub(super) struct SyncArgs {
    /// Web listener of a resolver; give it once for each, or several after one --from
    #[arg(long, value_name = "URL", required = true, num_args = 1.., value_parser = read_resolver)]
    from: Vec<Resolver>,
    /// File of the token to show (the resolver's web.read-token-file); read anew each time
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// File of certificates in PEM that alone may sign for a resolver, instead of the public ones
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// How long everything is kept at least once no resolver answers
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = read_duration)]
    lease: Duration,
    /// Take the present set once and end: 0 if it is held
    #[arg(long)]
    once: bool,
    /// Print what would change, and change nothing; without the privilege to read the table, as if it held nothing
    #[arg(long)]
    dry_run: bool,
    /// Serve /metrics and /healthz there
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "once")]
    metrics: Option<SocketAddr>,
    /// Never take these, whatever a resolver says; adds to learn.never
    #[arg(long, value_name = "PREFIX,…", value_delimiter = ',', value_parser = read_prefix)]
    never: Vec<Prefix>,
    /// Take these although they are private or reserved, for laboratories; adds to learn.treat-as-public
    #[arg(long, value_name = "PREFIX,…", value_delimiter = ',', value_parser = read_prefix)]
    treat_as_public: Vec<Prefix>,
    /// NAT64 prefixes whose embedded IPv4 address decides; adds to learn.nat64
    #[arg(long, value_name = "PREFIX,…", value_delimiter = ',', value_parser = read_prefix)]
    nat64: Vec<Prefix>,
    /// The most learned addresses to hold, instead of learn.max-total
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    max_total: Option<u32>,
    /// The shortest length of a static IPv4 prefix to take
    #[arg(long, value_name = "LENGTH", default_value_t = WIDEST4, value_parser = clap::value_parser!(u8).range(i64::from(WIDEST4)..=32))]
    widest_ipv4: u8,
    /// The shortest length of a static IPv6 prefix to take
    #[arg(long, value_name = "LENGTH", default_value_t = WIDEST6, value_parser = clap::value_parser!(u8).range(i64::from(WIDEST6)..=128))]
    widest_ipv6: u8,
    #[command(flatten)]
    nftables: NftablesArgs,
}

/// Where the set goes; any of these takes the place of all `[[export.nftables]]` of the file.
#[derive(Debug, Args)]
#[command(next_help_heading = "Nftables (instead of [[export.nftables]] of the configuration file)")]
struct NftablesArgs {
    /// A table of our own that marks flows, or sets of yours that we fill [default: own]
    #[arg(long, value_enum)]
    nftables: Option<PrintedMode>,
    /// Family of the table [default: inet]
    #[arg(long, value_enum)]
    family: Option<PrintedFamily>,
    /// Name of the table [default: greenlane]
    #[arg(long, value_name = "NAME", value_parser = read_nft_name)]
    table: Option<String>,
    /// Bits of the mark that our own table sets [default: 0x10000000]
    #[arg(long, value_name = "BITS", value_parser = read_mark)]
    mark: Option<u32>,
    /// Set of learned IPv4 addresses [default: learned4 in our own table, else none]
    #[arg(long, value_name = "SET", value_parser = read_nft_name)]
    learned4: Option<String>,
    /// Set of learned IPv6 addresses
    #[arg(long, value_name = "SET", value_parser = read_nft_name)]
    learned6: Option<String>,
    /// Set of static IPv4 prefixes
    #[arg(long, value_name = "SET", value_parser = read_nft_name)]
    static4: Option<String>,
    /// Set of static IPv6 prefixes
    #[arg(long, value_name = "SET", value_parser = read_nft_name)]
    static6: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PrintedMode {
    Own,
    Guest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PrintedFamily {
    Inet,
    Ip,
    Ip6,
}

/// Follows until told to stop, or asks once.
pub(super) fn run(file: &ConfigFile, args: &SyncArgs) -> Result<(), Failure> {
    let config = file.load()?;
    log_to_stderr(&config.log);
    let engines = args.engines(&config)?;
    let options = args.options(&config);
    let names: Vec<String> =
        engines.iter().map(|engine| format!("table {} {}", engine.family.as_str(), engine.table)).collect();
    runtime()?.block_on(async {
        // Before anything is greeted: whoever reads it may signal at once.
        let stop = stop_at_signals()?;
        let (clock, registry) = (Clock::system(), Registry::new());
        let sinks = if args.dry_run { vec![Sink::Printer(printer(&engines, &clock))] } else { Vec::new() };
        let mut follower = Follower::new(options, sinks, clock.clone(), &registry).map_err(Failure::usage)?;
        if !args.dry_run {
            start_engines(engines, &mut follower, &clock, &registry)?;
        }
        if args.once {
            return once(follower).await;
        }
        let metrics = match args.metrics {
            None => None,
            Some(addr) => Some(serve_metrics(addr, registry, stop.clone()).await?),
        };
        let (version, count) = (env!("CARGO_PKG_VERSION"), args.from.len());
        let noun = if count == 1 { "resolver" } else { "resolvers" };
        let to = if args.dry_run { "changing nothing".to_owned() } else { names.join(", ") };
        let metrics = metrics.map(|addr| format!(", metrics on http://{addr}/metrics")).unwrap_or_default();
        super::tell(format_args!("greenlane sync {version}: following {count} {noun}, {to}{metrics}"));
        let mut service = Service::new(&clock);
        let followed = follower.follow(stop, |standing| service.beat(&standing, clock.now())).await;
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
        match followed {
            // Whoever read the lines has enough of them.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            followed => followed.map_err(Failure::failed),
        }
    })
}

/// Makes what prints changes against what the first table holds now, or against nothing where that cannot be read.
fn printer(engines: &[nftables::Options], clock: &Clock) -> Printer {
    let printer = Printer::new(io::stdout());
    let Some(engine) = engines.first() else { return printer };
    let name = format!("table {} {}", engine.family.as_str(), engine.table);
    if engines.len() > 1 {
        super::tell(format_args!("note: of several tables the changes of {name} are printed"));
    }
    match nftables::present(engine, clock) {
        Ok(present) => printer.holding(present.hosts, present.statics),
        Err(trouble) => {
            super::tell(format_args!(
                "note: {name} cannot be read, so all is printed as if it held nothing: {trouble}"
            ));
            printer
        }
    }
}

async fn once(follower: Follower) -> Result<(), Failure> {
    match follower.once().await {
        Ok(failures) => {
            failures.iter().for_each(|failure| super::tell(format_args!("warning: {failure}")));
            Ok(())
        }
        Err(OnceError::Print(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::failed(error)),
    }
}

/// Starts an engine for each table. They adopt what they find: who put it there knew why.
fn start_engines(
    engines: Vec<nftables::Options>,
    follower: &mut Follower,
    clock: &Clock,
    registry: &Registry,
) -> Result<(), Failure> {
    let metrics = nftables::Metrics::new(registry);
    for engine in engines {
        let (outlet, intake) = outlet("nftables");
        nftables::start(engine, Surplus::Adopt, intake, clock.clone(), metrics.clone())
            .map_err(|error| Failure::failed(format!("starting threads: {error}")))?;
        follower.add(Sink::Outlet(outlet));
    }
    Ok(())
}

async fn serve_metrics(addr: SocketAddr, registry: Registry, stop: CancellationToken) -> Result<SocketAddr, Failure> {
    let in_the_way = |error: io::Error| Failure::failed(format!("--metrics {addr}: {error}"));
    let listener = TcpListener::bind(addr).await.map_err(in_the_way)?;
    let bound = listener.local_addr().map_err(in_the_way)?;
    tokio::spawn(web::serve_metrics(listener, registry, stop));
    Ok(bound)
}

/// Returns a token that SIGINT and SIGTERM cancel; SIGHUP changes nothing, since nothing is kept from files.
fn stop_at_signals() -> Result<CancellationToken, Failure> {
    let listen = |kind| signal(kind).map_err(|error| Failure::failed(format!("listening for signals: {error}")));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let mut hangup = listen(SignalKind::hangup())?;
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = hangup.recv() => tracing::info!("nothing to reload: a new command line takes a restart"),
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        stopping.cancel();
    });
    Ok(stop)
}

/// What systemd hears, where it started us.
struct Service {
    started: Timestamp,
    is_ready: bool,
    is_watched: bool,
    status: String,
}

impl Service {
    fn new(clock: &Clock) -> Self {
        let is_watched = sd_notify::watchdog_enabled().is_some();
        Self { started: clock.now(), is_ready: false, is_watched, status: String::new() }
    }

    /// Tells what is new. A service manager that does not listen is no reason to stop.
    fn beat(&mut self, standing: &Standing, now: Timestamp) {
        let mut states = Vec::new();
        if !self.is_ready && (standing.has_applied || now >= self.started.after(READY_PATIENCE)) {
            self.is_ready = true;
            states.push(NotifyState::Ready);
        }
        if self.is_watched {
            states.push(NotifyState::Watchdog);
        }
        let status = status(standing);
        let is_new = status != self.status;
        if is_new {
            states.push(NotifyState::Status(&status));
        }
        if !states.is_empty() {
            let _ = sd_notify::notify(&states);
        }
        if is_new {
            self.status = status;
        }
    }
}

fn status(standing: &Standing) -> String {
    let Standing { followed, resolvers, hosts, statics, .. } = standing;
    let held = if standing.is_held { "held" } else { "not held yet" };
    format!("following {followed} of {resolvers} resolvers; {hosts} hosts and {statics} prefixes {held}")
}

impl SyncArgs {
    fn options(&self, config: &Config) -> Options {
        let mut learn = config.learn.clone();
        // Upstreams and listeners of the file are a resolver's, and we are none.
        learn.own = interface_addresses().map(Prefix::host).collect();
        learn.never.extend(&self.never);
        learn.treat_as_public.extend(&self.treat_as_public);
        learn.nat64.extend(&self.nat64);
        Options {
            resolvers: self.from.clone(),
            access: Access { token_file: self.token_file.clone(), ca_file: self.ca.clone() },
            admission: Admission::new(&learn),
            widest4: self.widest_ipv4,
            widest6: self.widest_ipv6,
            max_total: self.max_total(config),
            lease: self.lease,
            // What is only printed is held nowhere.
            acknowledges: !self.dry_run,
        }
    }

    fn max_total(&self, config: &Config) -> usize {
        self.max_total.map_or(config.learn.max_total, |max| usize::try_from(max).unwrap_or(usize::MAX))
    }

    /// Returns the tables to keep: that of the command line, or those of the file, or our own.
    fn engines(&self, config: &Config) -> Result<Vec<nftables::Options>, Failure> {
        // What has ended counts until the kernel collects it, so there is room for twice the bound.
        let size = u32::try_from(self.max_total(config).saturating_mul(2)).unwrap_or(u32::MAX);
        let mut engines = config.export_nftables.clone();
        if self.nftables.is_given() || engines.is_empty() {
            engines = vec![self.nftables.engine(size, config.learn.hold)?];
        }
        for engine in &mut engines {
            if let Mode::Own { size: own, .. } = &mut engine.mode {
                *own = size;
            }
        }
        Ok(engines)
    }
}

impl NftablesArgs {
    fn names(&self) -> [&Option<String>; 4] {
        [&self.learned4, &self.learned6, &self.static4, &self.static6]
    }

    fn is_given(&self) -> bool {
        self.nftables.is_some()
            || self.family.is_some()
            || self.table.is_some()
            || self.mark.is_some()
            || self.names().iter().any(|name| name.is_some())
    }

    fn engine(&self, size: u32, hold: Duration) -> Result<nftables::Options, Failure> {
        let is_own = self.nftables != Some(PrintedMode::Guest);
        if !is_own && self.mark.is_some() {
            return Err(Failure::usage(
                "--mark: only a table of our own marks flows; leave it out, or use --nftables own",
            ));
        }
        let name = |given: &Option<String>, usual: &str| given.clone().or_else(|| is_own.then(|| usual.to_owned()));
        let family = match self.family {
            None | Some(PrintedFamily::Inet) => TableFamily::Inet,
            Some(PrintedFamily::Ip) => TableFamily::Ip,
            Some(PrintedFamily::Ip6) => TableFamily::Ip6,
        };
        let engine = nftables::Options {
            mode: if is_own { Mode::Own { mark: self.mark.unwrap_or(MARK), size } } else { Mode::Guest },
            family,
            table: self.table.clone().unwrap_or_else(|| "greenlane".to_owned()),
            sets: SetNames {
                learned4: name(&self.learned4, "learned4"),
                learned6: name(&self.learned6, "learned6"),
                static4: name(&self.static4, "static4"),
                static6: name(&self.static6, "static6"),
            },
            hold,
        };
        engine.check().map_err(|error| match &error {
            SetsError::Same { second, .. } => Failure::usage(format!("--{second}: {error}")),
            SetsError::NoneFits(_) => {
                let remedy = "name your sets with --learned4, --learned6, --static4 and --static6";
                Failure::usage(format!("--nftables guest: {error}; {remedy}"))
            }
        })?;
        Ok(engine)
    }
}

fn read_resolver(text: &str) -> Result<Resolver, UrlError> {
    text.parse()
}

fn read_prefix(text: &str) -> Result<Prefix, PrefixError> {
    text.trim().parse()
}

fn read_duration(text: &str) -> Result<Duration, &'static str> {
    parse_duration(text).ok_or("expected a number with its unit, such as 30m, 1h or 1h30m")
}

fn read_nft_name(text: &str) -> Result<String, &'static str> {
    let expected = "expected a letter first, then letters, digits, `_`, `-` or `.`";
    is_nft_name(text).then(|| text.to_owned()).ok_or(expected)
}

fn read_mark(text: &str) -> Result<u32, &'static str> {
    let read = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    read.ok().filter(|mark| *mark != 0).ok_or("expected bits such as 0x10000000, at least one")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Command};
    use super::*;

    fn args(words: &str) -> Result<SyncArgs, clap::Error> {
        let line =
            ["greenlane", "sync", "--from", "http://192.0.2.53:8053"].into_iter().chain(words.split_whitespace());
        match Cli::try_parse_from(line)?.command {
            Some(Command::Sync(args)) => Ok(*args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn without_words_our_own_table_is_kept() {
        let engines = args("").unwrap().engines(&Config::default()).unwrap();
        let [engine] = engines.as_slice() else { panic!("{engines:?}") };
        assert_eq!(engine.mode, Mode::Own { mark: MARK, size: 65_536 });
        assert_eq!((engine.family, engine.table.as_str()), (TableFamily::Inet, "greenlane"));
        assert_eq!(engine.sets.static6.as_deref(), Some("static6"));
    }

    #[test]
    fn words_take_the_place_of_the_file() {
        let mut config = Config::default();
        config.export_nftables = args("--table ours").unwrap().engines(&config).unwrap();
        assert_eq!(args("").unwrap().engines(&config).unwrap()[0].table, "ours");
        let args = args("--nftables guest --family ip --table fw --learned4 bypass --max-total 10").unwrap();
        let engines = args.engines(&config).unwrap();
        assert_eq!((engines.len(), engines[0].mode, engines[0].family), (1, Mode::Guest, TableFamily::Ip));
        let sets = SetNames { learned4: Some("bypass".to_owned()), ..SetNames::default() };
        assert_eq!(engines[0].sets, sets);
    }

    #[test]
    fn bounds_of_the_command_line_hold_for_the_table_too() {
        let args = args("--max-total 10 --never 8.8.8.0/24,8.8.4.4").unwrap();
        let engines = args.engines(&Config::default()).unwrap();
        assert_eq!(engines[0].mode, Mode::Own { mark: MARK, size: 20 });
        let options = args.options(&Config::default());
        assert_eq!(options.max_total, 10);
        for addr in ["8.8.8.8", "8.8.4.4"] {
            assert!(options.admission.check(addr.parse().unwrap()).is_err());
        }
    }

    #[test]
    fn mistakes_are_told() {
        for words in [
            "--from ftp://x",
            "--lease 5",
            "--never 10.0.0.1/8",
            "--widest-ipv4 7",
            "--widest-ipv6 18",
            "--table 1x",
            "--mark 0",
            "--max-total 0",
        ] {
            assert!(args(words).is_err(), "{words}");
        }
        for words in ["--nftables guest", "--nftables guest --learned4 x --mark 1"] {
            assert_eq!(args(words).unwrap().engines(&Config::default()).unwrap_err().code, 2, "{words}");
        }
    }
}
