//! The command line: one file a command.
//!
//! Data goes to standard output, talk to standard error. A command ends with 0 (done), 1 (failed) or 2 (usage or
//! configuration), which is what [`Failure`] carries to `main`.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};

use crate::config::{Config, Env};
use crate::daemon::StartError;
use crate::export::format::Format;

mod ask;
mod check;
mod demo;
mod explain;
mod kept;
mod nft;
mod prefixes;
mod serve;
mod site;
mod store;
mod sync;

/// A DNS forwarder that keeps a firewall's TLS-inspection bypass exact.
///
/// Without a command it serves, as `greenlane serve` does.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    file: ConfigFile,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer clients, learn addresses, serve the set
    Serve(ConfigFile),
    /// Show everything on loopback with a built-in upstream, then go on serving
    Demo(DemoArgs),
    /// Read configuration and lists, print the counts and every problem
    Check(CheckArgs),
    /// Tell why a name or an address is bypassed, or why not
    Explain(ExplainArgs),
    /// Print the set of a running greenlane
    Prefixes(PrefixesArgs),
    /// Keep this host's nftables as resolvers elsewhere say
    Sync(Box<sync::SyncArgs>),
    /// Look after what is kept in the local nftables
    #[command(subcommand)]
    Nft(NftCommand),
    /// Look after what survives a restart
    #[command(subcommand)]
    Store(StoreCommand),
    /// Program the local firewall for a resolver; `serve` starts this
    #[command(hide = true)]
    Agent(ConfigFile),
    /// Answer without privileges; `serve` starts this
    #[command(hide = true)]
    Resolver(ConfigFile),
}

#[derive(Debug, Subcommand)]
enum NftCommand {
    /// Remove our table, or our elements from sets of the operator
    Remove,
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Say whether the store can be read and what is in it, and change nothing
    Check,
    /// Print every address with its names and times; a running greenlane is asked
    Dump(StoreDumpArgs),
    /// Put the sightings of a dump back that are listed and may be learned; no greenlane may be running
    Restore(StoreRestoreArgs),
}

#[derive(Debug, Args)]
struct StoreDumpArgs {
    /// Print lines of JSON, which `restore` reads
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    site: SiteArgs,
}

#[derive(Debug, Args)]
struct StoreRestoreArgs {
    /// The output of `greenlane store dump --json`; - for standard input
    #[arg(value_name = "FILE", value_parser = store::dump_file)]
    file: PathBuf,
}

/// Which configuration.
#[derive(Clone, Debug, Args)]
struct ConfigFile {
    /// Configuration file; without it ./config.toml, else /etc/greenlane/config.toml, else the defaults
    #[arg(short, long = "config", value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct DemoArgs {
    /// End after the show
    #[arg(long)]
    once: bool,
    /// Address of the DNS server
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:5300")]
    dns: SocketAddr,
    /// Address of the web listener
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8053")]
    web: SocketAddr,
    /// Answer over TLS, HTTPS and QUIC, too, with a throw-away certificate, on free ports beside the DNS server
    #[arg(long)]
    tls: bool,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// Check the lists of this folder instead of the configured one
    #[arg(long, value_name = "FOLDER")]
    zones: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ExplainArgs {
    /// A domain name or an IP address
    #[arg(value_name = "NAME|ADDRESS")]
    what: String,
    /// Read lists and store; a greenlane that has the store open is asked instead
    #[arg(long, conflicts_with_all = ["url", "token_file"])]
    offline: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    site: SiteArgs,
}

/// Which running greenlane, and as whom.
#[derive(Debug, Args)]
struct SiteArgs {
    /// The web listener of the greenlane to ask, if not the configured one
    #[arg(long, value_name = "URL", value_parser = site::read_url)]
    url: Option<String>,
    /// File of the token to show there, if not the configured one; on loopback none is needed
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct PrefixesArgs {
    /// The form to print
    #[arg(long, value_parser = formats(), default_value = Format::Txt.name())]
    format: Format,
    /// Only this IP version
    #[arg(long, value_name = "4|6", value_parser = ["4", "6"], hide_possible_values = true)]
    family: Option<String>,
    /// Only these apps, separated by commas
    #[arg(long, value_name = "APP,…")]
    app: Option<String>,
    /// Only static or only learned ones
    #[arg(long, value_name = "static|learned", value_parser = ["static", "learned"], hide_possible_values = true)]
    origin: Option<String>,
    /// Confirm that the set may shrink as the lists say, and print what left it
    #[arg(long, conflicts_with_all = ["format", "family", "app", "origin"])]
    accept_shrink: bool,
    #[command(flatten)]
    site: SiteArgs,
}

/// Reads the name of a form of the set.
fn formats() -> impl TypedValueParser<Value = Format> {
    let all = || Format::PREFIXES.into_iter().chain(Format::FEEDS);
    let names = PossibleValuesParser::new(all().map(Format::name));
    // The parser lets only these names through.
    names.map(move |word| all().find(|format| format.name() == word).unwrap_or(Format::Txt))
}

/// Why a command ended early.
#[derive(Debug)]
pub struct Failure {
    /// The exit code: 1 failed, 2 usage or configuration.
    pub code: u8,
    /// What to tell the user, place first; may have several lines.
    pub message: String,
}

impl Failure {
    /// Something did not work.
    fn failed(message: impl ToString) -> Self {
        Self { code: 1, message: message.to_string() }
    }

    /// Something was asked for or configured that cannot be.
    fn usage(message: impl ToString) -> Self {
        Self { code: 2, message: message.to_string() }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        if error.is_configuration() { Self::usage(error) } else { Self::failed(error) }
    }
}

/// Where a configuration is looked for without `--config`, in this order.
const CONFIG_PATHS: [&str; 2] = ["config.toml", "/etc/greenlane/config.toml"];

impl ConfigFile {
    /// Returns the file to read; `None` if none was named and none stands at the usual places.
    fn path(&self) -> Option<PathBuf> {
        self.config.clone().or_else(|| CONFIG_PATHS.map(PathBuf::from).into_iter().find(|path| path.exists()))
    }

    /// Reads the configuration and tells its warnings.
    fn load(&self) -> Result<Config, Failure> {
        let path = self.path();
        let config = read_config(path.as_deref())?;
        tell_warnings(&config);
        Ok(config)
    }
}

fn tell_warnings(config: &Config) {
    for warning in &config.not_built {
        tell(format_args!("warning: {warning}"));
    }
}

/// Reads a configuration; the defaults without a file, with the environment's values over them.
fn read_config(path: Option<&Path>) -> Result<Config, Failure> {
    let env = Env::of_process();
    match path {
        Some(path) => Config::load(path, &env),
        None => Config::without_file(&env),
    }
    .map_err(Failure::usage)
}

/// Writes data to standard output. A reader that has closed its end (`… | head`) has what it wanted.
fn print(data: impl AsRef<[u8]>) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    match output.write_all(data.as_ref()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Writes a line of talk to standard error; where nobody listens it is lost, and that is no reason to stop.
fn tell(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

impl Cli {
    /// Runs the command.
    ///
    /// # Errors
    /// What to print and the exit code.
    pub fn run(self) -> Result<(), Failure> {
        match self.command {
            None => serve::run(&self.file),
            Some(Command::Serve(file)) => serve::run(&file),
            Some(Command::Demo(_)) if self.file.config.is_some() => {
                Err(Failure::usage("--config: the demo reads no configuration file, its flags say all; leave it out"))
            }
            Some(Command::Demo(args)) => demo::run(&args),
            Some(Command::Check(args)) => check::run(&self.file, &args),
            Some(Command::Explain(args)) => explain::run(&self.file, &args),
            Some(Command::Prefixes(args)) => prefixes::run(&self.file, &args),
            Some(Command::Sync(args)) => sync::run(&self.file, &args),
            Some(Command::Nft(command)) => nft::run(&self.file, &command),
            Some(Command::Store(command)) => store::run(&self.file, &command),
            Some(Command::Agent(file)) => kept::agent(&file),
            Some(Command::Resolver(file)) => kept::resolver(&file),
        }
    }
}
