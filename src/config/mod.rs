//! The configuration: the file as written, and what it means.
//!
//! ```text
//!  config.toml ─┐
//!               ├─▶ raw: tables and keys, each with its place ─▶ resolve: typed, checked ─▶ Config
//!  GREENLANE__… ┘         (unknown ones are reported)               (each part's `Options`)
//! ```
//!
//! One table of keys (`table.rs`) holds every key there is: its type, its default as text, the line that explains
//! it, and whether the part behind it is built. The file `config.toml` at the top of the repository is that table
//! printed, and a test holds it to that.
//!
//! Every key has a default, so an empty file is a whole configuration. All problems of a run are reported at once,
//! each with its place: `config.toml:41:12: cache.size: expected …, found …`; for a value from the environment the
//! place is the variable's name. Relative paths start at the folder of the file, also those from the environment.
//! A key whose part is not built yet is checked like any other and, if set to something other than its default,
//! ends up in [`Config::not_built`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::name::Name;
use crate::pipeline::TagOptions;
use crate::source::{Location, Problem, Problems};
use crate::{cache, catalogue, cluster, export, forward, learn, listen, policy, store, warm, web};

mod env;
mod error;
mod key;
mod print;
mod raw;
mod read;
mod resolve;
mod table;
mod units;
mod upstream;

#[cfg(test)]
mod tests;

use error::{Fault, Faults};
use raw::Document;

pub use env::Env;
pub use print::default_file;
pub use read::is_nft_name;
pub use units::parse_duration;

/// Everything that an operator can say, checked, in the parts' own terms.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[listen]` but `web`, `[tls]`, and `[clients]`; paths already start at the file's folder.
    pub listen: listen::Options,
    /// The names that `[clients]` says do not exist.
    pub policy: policy::Options,
    /// `listen.web` and `[web]`.
    pub web: web::Options,
    /// `[forward]`.
    pub forward: forward::Options,
    /// `forward.special`: names that are not answered at home although they are special.
    pub special: Vec<Name>,
    /// `forward.hosts`; the path already starts at the file's folder.
    pub hosts: Option<PathBuf>,
    /// `[cache]`.
    pub cache: cache::Options,
    /// `[catalogue]` but `watch`; the path already starts at the file's folder.
    pub catalogue: catalogue::Options,
    /// `catalogue.watch`: whether a change in the folder reloads the catalogue.
    pub watch: bool,
    /// `[tag]`.
    pub tag: TagOptions,
    /// `[learn]`; `own` holds the addresses that we listen on and those of the upstreams, sorted.
    pub learn: learn::Options,
    /// `learn.warm` and the keys beside it; the path already starts at the file's folder.
    pub warm: warm::Options,
    /// `[store]`; the path already starts at the file's folder. `None` keeps nothing over a restart; no file says so.
    pub store: Option<store::Options>,
    /// `store.cluster` and the keys beside it; paths already start at the file's folder.
    pub cluster: Option<cluster::Options>,
    /// `[[export.nftables]]`, in the order of the file.
    pub export_nftables: Vec<export::nftables::Options>,
    /// `[[export.file]]`, in the order of the file; paths already start at the file's folder.
    pub export_files: Vec<export::file::Options>,
    /// `[log]`.
    pub log: LogOptions,
    /// Where paths were written that only the disk can tell to be right.
    pub places: Places,
    /// One warning for each key or table that is set to something other than its default while its part is not
    /// built; in the order of the file.
    pub not_built: Vec<Problem>,
}

impl Config {
    /// Reads the file at `path`, and the variables that override it.
    ///
    /// # Errors
    /// Every problem of the file and the variables; one if the file cannot be read. The place names the file as
    /// `path` does.
    pub fn load(path: &Path, env: &Env) -> Result<Self, Problems> {
        let file: Arc<str> = path.display().to_string().into();
        let octets = std::fs::read(path).map_err(|error| {
            let message = format!("cannot be read: {error}, expected a file in TOML");
            Problems(vec![Problem::new(Location::file(file.clone()), message)])
        })?;
        let text = std::str::from_utf8(&octets).map_err(|error| {
            let before = String::from_utf8_lossy(&octets[..error.valid_up_to()]);
            let location = Location::in_text(file, &before, before.len());
            Problems(vec![Problem::new(location, Fault::NotUtf8.to_string())])
        })?;
        Self::from_text(text, path, env)
    }

    /// Reads a text as if it stood in `file`, and the variables that override it. Neither the file nor anything
    /// that the text names is touched.
    ///
    /// # Errors
    /// Every problem of the text, in its order, then those of the variables. Behind a mistake in the TOML syntax
    /// only further such mistakes are noted.
    pub fn from_text(text: &str, file: &Path, env: &Env) -> Result<Self, Problems> {
        let mut faults = Faults::default();
        let name: Arc<str> = file.display().to_string().into();
        let document = Document::parse(text, name, env);
        let raw = document.walk(&mut faults);
        let config = resolve::resolve(&raw, file.parent().unwrap_or_else(|| Path::new("")), &mut faults);
        match document.first_mistake() {
            Some(location) => faults.keep_before(&location),
            None => resolve::check_required(&raw, &mut faults),
        }
        document.note_mistakes(&mut faults);
        if faults.is_empty() { Ok(config) } else { Err(faults.into_problems()) }
    }

    /// Returns the defaults with the variables that override them; for a start without any file.
    ///
    /// # Errors
    /// Every problem of the variables.
    pub fn without_file(env: &Env) -> Result<Self, Problems> {
        Self::from_text("", Path::new("config.toml"), env)
    }
}

/// What an empty file means; relative paths start at the working folder.
impl Default for Config {
    fn default() -> Self {
        let listen = listen::Options::default();
        let forward = forward::Options::default();
        let own = resolve::own_addresses(&listen, &forward);
        Self {
            listen,
            policy: policy::Options::default(),
            web: web::Options { listen: Some(WEB_BY_DEFAULT), ..web::Options::default() },
            forward,
            special: Vec::new(),
            hosts: None,
            cache: cache::Options::default(),
            catalogue: catalogue::Options::default(),
            watch: true,
            tag: TagOptions::default(),
            learn: learn::Options { own, ..learn::Options::default() },
            warm: warm::Options::default(),
            cluster: None,
            store: Some(store::Options { path: STORE_BY_DEFAULT.into(), durability: store::Durability::default() }),
            export_nftables: Vec::new(),
            export_files: Vec::new(),
            log: LogOptions::default(),
            places: Places::default(),
            not_built: Vec::new(),
        }
    }
}

/// Where paths were written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// `tls.certificate`.
    pub certificate: Option<Location>,
    /// `tls.key`.
    pub key: Option<Location>,
    /// `web.read-token-file`.
    pub read_token_file: Option<Location>,
    /// `web.admin-token-file`.
    pub admin_token_file: Option<Location>,
    /// `learn.warm-names`.
    pub warm_names: Option<Location>,
    /// The path of each `[[export.file]]`, in the order of the file.
    pub export_files: Vec<Location>,
}

/// Where the set is kept unless `store.path` says otherwise.
const STORE_BY_DEFAULT: &str = "greenlane.redb";

/// Where feeds, API and metrics are served unless `listen.web` says otherwise.
const WEB_BY_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8053);

/// What is logged, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// The least severe messages that are written.
    pub level: LogLevel,
    /// Their form.
    pub format: LogFormat,
}

/// Severity, from silence to everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What failed.
    Error,
    /// And what an operator should look at.
    #[default]
    Warn,
    /// And what happened.
    Info,
    /// And why.
    Debug,
    /// And every step.
    Trace,
}

impl LogLevel {
    /// Every level, the quietest first.
    pub const ALL: [Self; 6] = [Self::Off, Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    /// Returns the word for it in the configuration and in `tracing`'s filters.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}
