//! Who may ask, and how much.
//!
//! [`Options`] is what the operator says. [`Access`] holds it in the form that listeners ask, and a reload replaces it
//! while they do: each read looks once and gets the [`Rules`] of that moment.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use super::cookie::Secrets;
use super::rate::{self, Limiter};
use crate::prefix::Prefix;

/// The private ranges and loopback that may ask when nothing else is configured (RFC 1918, 4193, 6598, 3927, 4291).
pub const ALLOWED_BY_DEFAULT: [&str; 9] = [
    "127.0.0.0/8",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "169.254.0.0/16",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
];

/// What those hear who may not ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Refuse {
    /// REFUSED, so that they turn to another server at once.
    #[default]
    Answer,
    /// Nothing: who looks for open resolvers finds none, and nobody gets a packet that was asked for in their name.
    Drop,
}

/// Who may ask, and how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Client prefixes that are answered.
    pub allow: Vec<Prefix>,
    /// Those that are not, although `allow` holds them.
    pub deny: Vec<Prefix>,
    /// What others hear.
    pub refuse: Refuse,
    /// How much one client may ask over UDP.
    pub rate: rate::Options,
    /// Load balancers, of which a PROXY header is demanded and believed.
    pub balancers: Vec<Prefix>,
    /// The file of the secrets of cookies.
    pub cookie_secret_file: Option<PathBuf>,
}

/// Loopback and the private ranges, as much as they like.
impl Default for Options {
    fn default() -> Self {
        Self {
            // Each text is a prefix, as a test of the configuration holds.
            allow: ALLOWED_BY_DEFAULT.iter().filter_map(|text| text.parse().ok()).collect(),
            deny: Vec::new(),
            refuse: Refuse::default(),
            rate: rate::Options::default(),
            balancers: Vec::new(),
            cookie_secret_file: None,
        }
    }
}

/// The rules in force; a reload replaces them while listeners ask.
#[derive(Debug)]
pub struct Access(ArcSwap<Inner>);

#[derive(Debug)]
struct Inner {
    options: Options,
    limiter: Option<Arc<Limiter>>,
    secrets: Option<Secrets>,
}

impl Access {
    /// Takes the rules, and the secrets of cookies if there are to be any.
    pub fn new(options: Options, secrets: Option<Secrets>) -> Self {
        let limiter = Limiter::new(&options.rate);
        Self(ArcSwap::from_pointee(Inner { options, limiter, secrets }))
    }

    /// Takes others in their place. What clients have asked so far is forgotten only if the limits are others.
    pub fn replace(&self, options: Options, secrets: Option<Secrets>) {
        let old = self.0.load();
        let limiter = match old.options.rate == options.rate {
            true => old.limiter.clone(),
            false => Limiter::new(&options.rate),
        };
        self.0.store(Arc::new(Inner { options, limiter, secrets }));
    }

    /// Returns the rules of this moment.
    pub fn look(&self) -> Rules {
        Rules(self.0.load())
    }
}

/// The rules at one moment. Not to be kept: a reload does not change them.
#[derive(Debug)]
pub struct Rules(Guard<Arc<Inner>>);

impl Rules {
    /// Returns whether `client` may ask; an IPv4-mapped address counts as its IPv4 address.
    pub fn may_ask(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        let has = |prefixes: &[Prefix]| prefixes.iter().any(|prefix| prefix.contains(client));
        has(&self.0.options.allow) && !has(&self.0.options.deny)
    }

    /// Returns whether `peer` is a load balancer, whose PROXY header tells the client.
    pub fn is_balancer(&self, peer: IpAddr) -> bool {
        let balancers = &self.0.options.balancers;
        !balancers.is_empty() && balancers.iter().any(|prefix| prefix.contains(peer.to_canonical()))
    }

    /// Returns whether those who may not ask hear nothing.
    pub fn is_silent(&self) -> bool {
        self.0.options.refuse == Refuse::Drop
    }

    /// Returns what bounds how much `client` may ask, if anything does.
    pub fn limiter(&self, client: IpAddr) -> Option<&Arc<Limiter>> {
        self.0.limiter.as_ref().filter(|limiter| !limiter.exempts(client))
    }

    /// Returns the secrets of cookies, if clients get any.
    pub(super) fn secrets(&self) -> Option<&Secrets> {
        self.0.secrets.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefixes(texts: &[&str]) -> Vec<Prefix> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn may_ask(access: &Access, client: &str) -> bool {
        access.look().may_ask(client.parse().unwrap())
    }

    #[test]
    fn who_is_denied_may_not_ask_although_allowed() {
        let (allow, deny) = (prefixes(&["10.0.0.0/8", "fd00::/8"]), prefixes(&["10.9.0.0/16"]));
        let access = Access::new(Options { allow, deny, ..Options::default() }, None);
        for client in ["10.0.0.1", "::ffff:10.0.0.1", "fd00::1"] {
            assert!(may_ask(&access, client), "{client}");
        }
        for client in ["10.9.0.1", "::ffff:10.9.0.1", "192.0.2.1", "2001:db8::1"] {
            assert!(!may_ask(&access, client), "{client}");
        }
    }

    #[test]
    fn a_reload_keeps_what_clients_have_asked_unless_the_limits_are_others() {
        let options =
            |per_second| Options { rate: rate::Options { per_second, ..Default::default() }, ..Default::default() };
        let limiter = |access: &Access| access.look().0.limiter.clone();
        let access = Access::new(options(7), None);
        let first = limiter(&access).unwrap();
        access.replace(Options { deny: prefixes(&["10.0.0.0/8"]), ..options(7) }, None);
        assert!(Arc::ptr_eq(&first, &limiter(&access).unwrap()));
        access.replace(options(8), None);
        assert!(!Arc::ptr_eq(&first, &limiter(&access).unwrap()));
        access.replace(options(0), None);
        assert!(limiter(&access).is_none());
    }
}
