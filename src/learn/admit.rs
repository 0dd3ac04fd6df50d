//! What may never be learned, and why: by its address, or because of a bound.

use std::fmt;

use super::Options;
use crate::admission::{Refused, Rules};

pub use crate::admission::Admission;

/// Why an address or an answer is not learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No such address may be in the set.
    Address(Refused),
    /// `learn.max-total` is reached and no address can leave.
    FullTotal,
    /// `learn.max-per-name` is reached and no address of the name can leave, or one answer holds more.
    FullName,
    /// `learn.max-per-trigger` is reached and no address under the trigger can leave.
    FullTrigger,
    /// Too many names share addresses, and none of these can leave.
    FullSightings,
    /// The client's prefix brought too many new sightings this minute.
    ClientRate,
    /// Too many targets are being followed.
    FullTargets,
}

impl Reason {
    /// The metric label values of the bounds; those of addresses are [`Refused::LABELS`].
    const BOUNDS: [&str; 6] =
        ["max-total", "max-per-name", "max-per-trigger", "max-sightings", "client-rate", "max-targets"];

    /// Returns every metric label value.
    pub fn labels() -> impl Iterator<Item = &'static str> {
        Refused::LABELS.into_iter().chain(Self::BOUNDS)
    }

    /// Returns the metric label value.
    pub fn as_str(self) -> &'static str {
        Self::BOUNDS[match self {
            Self::Address(refused) => return refused.as_str(),
            Self::FullTotal => 0,
            Self::FullName => 1,
            Self::FullTrigger => 2,
            Self::FullSightings => 3,
            Self::ClientRate => 4,
            Self::FullTargets => 5,
        }]
    }
}

impl From<Refused> for Reason {
    fn from(refused: Refused) -> Self {
        Self::Address(refused)
    }
}

/// One clause for a person who asks why.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(refused) => refused.fmt(f),
            Self::FullTotal => f.write_str("learn.max-total is reached"),
            Self::FullName => f.write_str("learn.max-per-name is reached"),
            Self::FullTrigger => f.write_str("learn.max-per-trigger is reached"),
            Self::FullSightings => f.write_str("too many names share addresses"),
            Self::ClientRate => f.write_str("learn.new-per-client-per-minute is reached"),
            Self::FullTargets => f.write_str("too many targets are followed"),
        }
    }
}

/// Takes the rules of admission out of the options.
impl From<&Options> for Rules {
    fn from(options: &Options) -> Self {
        Self {
            own: options.own.clone(),
            never: options.never.clone(),
            nat64: options.nat64.clone(),
            treat_as_public: options.treat_as_public.clone(),
        }
    }
}
