//! A snapshot as bytes, one file a dialect.

use std::str::FromStr;

/// A dialect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// A prefix a line.
    Txt,
    /// One JSON object.
    Json,
    /// CSV with a header line (RFC 4180).
    Csv,
    /// A script for `nft -f`.
    Nft,
    /// A script for `ipset restore`.
    Ipset,
    /// A RouterOS script.
    Rsc,
}

impl Format {
    /// Every dialect.
    pub const ALL: [Self; 6] = [Self::Txt, Self::Json, Self::Csv, Self::Nft, Self::Ipset, Self::Rsc];

    /// Returns its name: the file ending in `/prefixes.<name>` and the word in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Txt => "txt",
            Self::Json => "json",
            Self::Csv => "csv",
            Self::Nft => "nft",
            Self::Ipset => "ipset",
            Self::Rsc => "rsc",
        }
    }
}

/// A word that names no dialect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown format `{0}`, expected txt, json, csv, nft, ipset or rsc")]
pub struct UnknownFormat(pub String);

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        Self::ALL.into_iter().find(|f| f.name() == text).ok_or_else(|| UnknownFormat(text.to_owned()))
    }
}
