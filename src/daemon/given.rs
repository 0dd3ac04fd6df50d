//! What one process prepares for another: sockets that are bound, the way to the firewall agent, and what that agent
//! needs of the files.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::handed::Handed;
use super::{StartError, learn_options, today};
use crate::admission::Admission;
use crate::catalogue;
use crate::config::{Config, Env};
use crate::export::nftables::agent::{Complain, Remotes, Rules};
use crate::listen::{self, BindError, Kind, Secure, Unread};
use crate::manager::Passed;

/// No answer lives longer than its TTL and grace, and what is granted beyond is ten minutes at most; a week at least, so
/// that what was granted under earlier options stays.
const SLACK: Duration = Duration::from_secs(600);
/// See [`SLACK`].
const SPAN_MIN: Duration = Duration::from_secs(7 * 86_400);
/// How often an address in use is tried again, and the pause between: the greenlane before us may be about to end.
const BIND_TRIES: u32 = 20;
/// See [`BIND_TRIES`].
const BIND_PAUSE: Duration = Duration::from_millis(50);

/// What a process is given instead of making it itself.
#[derive(Default)]
pub struct Given {
    /// The listening sockets.
    pub sockets: Option<Sockets>,
    /// What the service manager has passed, where the sockets are still to be bound.
    pub passed: Vec<Passed>,
    /// The firewall agent; without it the firewall is programmed in this process.
    pub agent: Option<AgentAway>,
}

/// The firewall agent in a process of its own.
pub struct AgentAway {
    /// Where the ways to it arrive.
    pub remotes: Arc<Remotes>,
    /// Hears what is wrong with it.
    pub complain: Complain,
}

/// Whether an address in use may become free in a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// It is said at once.
    None,
    /// A greenlane that was killed just now may still hold it.
    Some,
}

/// The listening sockets, which nobody reads yet.
#[derive(Debug)]
pub struct Sockets {
    /// For DNS; at least one.
    pub dns: Vec<Unread>,
    /// For the web.
    pub web: Option<TcpListener>,
    /// For encrypted transports.
    pub secure: Vec<Secure>,
}

impl Sockets {
    /// Binds what the configuration names.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn bind(config: &Config) -> Result<Self, StartError> {
        Self::take(Vec::new(), config, Patience::None)
    }

    /// Takes what the service manager has passed and the configuration asks for, and binds the rest, which the manager is
    /// given to keep.
    ///
    /// # Errors
    /// [`StartError::Handed`], [`StartError::Listen`], [`StartError::NoAddress`] or [`StartError::Web`].
    pub fn take(passed: Vec<Passed>, config: &Config, patience: Patience) -> Result<Self, StartError> {
        let handed = Handed::sort(passed, config)?;
        let mut tries = if patience == Patience::Some { BIND_TRIES } else { 0 };
        let missing = loop {
            match handed.bind_missing(config) {
                Err(error) if is_in_use(&error) && tries > 0 => {
                    tries -= 1;
                    std::thread::sleep(BIND_PAUSE);
                }
                bound => break bound?,
            }
        };
        handed.join(missing).map_err(StartError::Threads)
    }

    /// Takes those that another process has bound, as [`Self::into_fds`] gave them.
    ///
    /// # Errors
    /// What the system says of them.
    pub fn adopt(fds: Vec<OwnedFd>) -> std::io::Result<Self> {
        let (mut plain, mut secure, mut passed) = (Vec::new(), Vec::new(), 0);
        for fd in fds {
            if rustix::net::sockopt::socket_type(&fd).is_err() {
                passed += 1;
            } else if passed == 0 {
                plain.push(fd);
            } else {
                let kind = Kind::ALL.get(passed - 1).ok_or(std::io::ErrorKind::InvalidInput)?;
                secure.push(Secure::adopt(*kind, fd.into())?);
            }
        }
        let (dns, web) = listen::adopt(plain)?;
        Ok(Self { dns, web, secure })
    }

    /// Gives up the sockets, for another process to read: those for DNS and the web, which their types tell apart, then
    /// those of each encrypted transport behind a descriptor that is no socket.
    ///
    /// # Errors
    /// If no such descriptor can be had.
    pub fn into_fds(self) -> std::io::Result<Vec<OwnedFd>> {
        let dns = self.dns.into_iter().flat_map(|one| one.udp.into_iter().map(OwnedFd::from).chain([one.tcp.into()]));
        let mut fds: Vec<OwnedFd> = dns.chain(self.web.map(OwnedFd::from)).collect();
        let mut secure = self.secure;
        for kind in Kind::ALL {
            fds.push(std::fs::File::open("/dev/null")?.into());
            fds.extend(secure.extract_if(.., |one| one.kind == kind).map(|one| OwnedFd::from(one.socket)));
        }
        Ok(fds)
    }
}

fn is_in_use(error: &StartError) -> bool {
    match error {
        StartError::Listen(BindError::InUse(_)) => true,
        StartError::Web { source, .. } => source.kind() == std::io::ErrorKind::AddrInUse,
        _ => false,
    }
}

/// Says what is wrong with the web listener, which the configuration has then.
pub(super) fn web_error(config: &Config, source: std::io::Error) -> StartError {
    match config.web.listen {
        Some(addr) => StartError::Web { addr, source },
        None => StartError::Threads(source),
    }
}

/// Reads what the files let into the firewall, and how many triggers the lists have.
///
/// # Errors
/// What is wrong with them, in words.
pub fn firewall_rules(file: Option<&Path>) -> Result<(Rules, usize), String> {
    let env = Env::of_process();
    let config = match file {
        Some(path) => Config::load(path, &env),
        None => Config::without_file(&env),
    };
    let config = config.map_err(|problems| problems.to_string())?;
    let catalogue = catalogue::load(&config.catalogue, today()).map_err(|problems| problems.to_string())?.catalogue;
    let secure = Kind::ALL.into_iter().flat_map(|kind| config.listen.secure(kind)).copied();
    let options = learn_options(&config, config.listen.dns.iter().map(|address| address.addr).chain(secure));
    // What other resolvers have learned may end later than any answer of ours.
    let longest = options.min_hold.max(config.cache.max_ttl).saturating_add(options.grace);
    let longest = config.cluster.as_ref().map_or(longest, |cluster| cluster.span_max.max(longest));
    let span = longest.saturating_add(SLACK);
    let rules = Rules {
        admission: Admission::new(&options),
        max_total: options.max_total,
        span_max: span.max(SPAN_MIN),
        statics: catalogue.prefixes().iter().map(|listed| listed.prefix).collect(),
    };
    Ok((rules, catalogue.trigger_count()))
}
