//! What a resolver may put into this firewall: it is believed no more than an answer.
//!
//! A seized or mistaken resolver must not open a private network, the whole Internet, or more than the operator said.
//! So each address passes the same [`Admission`] as an answer, under the rules of this host, each static prefix passes it
//! with all that it holds and is no wider than allowed, and both are bounded in number.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::admission::{Admission, Refused};
use crate::prefix::{Family, Prefix};

/// The widest static prefixes that may be allowed at all, as for lists: IPv4 /8, IPv6 /19.
pub const WIDEST4: u8 = 8;
/// See [`WIDEST4`].
pub const WIDEST6: u8 = 19;
/// The most static prefixes of all resolvers together.
const STATICS_MAX: usize = 65_536;

/// Why something is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// No such address may be in the set.
    Address(Refused),
    /// A static prefix wider than allowed.
    TooWide,
    /// The bound of learned addresses is reached.
    FullTotal,
    /// The bound of static prefixes is reached.
    FullStatics,
}

impl Refusal {
    const OTHERS: [&str; 3] = ["too-wide", "max-total", "max-statics"];

    /// Returns every metric label value.
    pub(super) fn labels() -> impl Iterator<Item = &'static str> {
        Refused::LABELS.into_iter().chain(Self::OTHERS)
    }

    /// Returns the metric label value.
    pub(super) fn as_str(self) -> &'static str {
        Self::OTHERS[match self {
            Self::Address(refused) => return refused.as_str(),
            Self::TooWide => 0,
            Self::FullTotal => 1,
            Self::FullStatics => 2,
        }]
    }
}

/// How much was refused, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Refusals(BTreeMap<&'static str, u64>);

impl Refusals {
    /// Counts one.
    pub(super) fn count(&mut self, refusal: Refusal) {
        *self.0.entry(refusal.as_str()).or_default() += 1;
    }

    /// Returns the counts by metric label value, zeros left out.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.iter().map(|(reason, count)| (*reason, *count))
    }

    /// Returns the count of one reason.
    #[cfg(test)]
    pub(super) fn of(&self, reason: &str) -> u64 {
        self.0.get(reason).copied().unwrap_or_default()
    }
}

/// The rules of this host.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    admission: Admission,
    widest4: u8,
    widest6: u8,
    max_total: usize,
}

impl Gate {
    pub(super) fn new(admission: Admission, (widest4, widest6): (u8, u8), max_total: usize) -> Self {
        Self { admission, widest4: widest4.max(WIDEST4), widest6: widest6.max(WIDEST6), max_total }
    }

    /// Lets a host through, or says why not.
    pub(super) fn check_host(&self, addr: IpAddr) -> Result<(), Refusal> {
        self.admission.check(addr).map_err(Refusal::Address)
    }

    /// Lets a static prefix through, or says why not.
    pub(super) fn check_static(&self, prefix: &Prefix) -> Result<(), Refusal> {
        let widest = match prefix.family() {
            Family::V4 => self.widest4,
            Family::V6 => self.widest6,
        };
        if prefix.len() < widest {
            return Err(Refusal::TooWide);
        }
        self.admission.check_prefix(prefix).map_err(Refusal::Address)
    }

    /// Returns how many hosts one object may bring: what may be held, and as many again that take their place.
    pub(super) fn hosts_max(&self) -> usize {
        self.max_total.saturating_mul(2)
    }

    /// Returns how many hosts may be held.
    pub(super) fn max_total(&self) -> usize {
        self.max_total
    }

    /// Returns how many static prefixes may be held.
    pub(super) fn statics_max(&self) -> usize {
        STATICS_MAX
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;
    use crate::admission::Rules;

    /// A thousand hosts, the usual widths, nothing excluded.
    pub(in super::super) fn gate() -> Gate {
        Gate::new(Admission::new(Rules::default()), (0, 0), 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Rules;

    #[test]
    fn hostile_sets_are_refused_by_reason() {
        let rules = Rules { never: vec!["8.8.4.0/24".parse().unwrap()], ..Rules::default() };
        let gate = Gate::new(Admission::new(rules), (16, 32), 10);
        let host = |addr: &str| gate.check_host(addr.parse().unwrap()).map_err(Refusal::as_str);
        assert_eq!(host("10.0.0.1"), Err("special-purpose"));
        assert_eq!(host("8.8.4.4"), Err("never"));
        assert_eq!(host("8.8.8.8"), Ok(()));
        let prefix = |prefix: &str| gate.check_static(&prefix.parse().unwrap()).map_err(Refusal::as_str);
        assert_eq!(prefix("0.0.0.0/0"), Err("too-wide"));
        assert_eq!(prefix("8.0.0.0/15"), Err("too-wide"));
        assert_eq!(prefix("8.8.0.0/16"), Err("never"));
        assert_eq!(prefix("10.0.0.0/16"), Err("special-purpose"));
        assert_eq!(prefix("20.50.0.0/16"), Ok(()));
        assert_eq!(prefix("2600::/31"), Err("too-wide"));
        assert_eq!(prefix("2600::/32"), Ok(()));
    }

    #[test]
    fn no_option_goes_below_the_floors() {
        let gate = Gate::new(Admission::new(Rules::default()), (0, 0), 10);
        assert_eq!(gate.check_static(&"4.0.0.0/7".parse().unwrap()), Err(Refusal::TooWide));
        assert_eq!(gate.check_static(&"2600::/18".parse().unwrap()), Err(Refusal::TooWide));
    }
}
