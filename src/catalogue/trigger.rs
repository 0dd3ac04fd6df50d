//! One entry of a list: what it covers.
//!
//! A list is made of *triggers*. A [`Trigger`] is one that speaks of names: its [`Kind`] says whether the name
//! itself, what lies below it, or both are meant, or neither ever. The other triggers are prefixes. [`Entry`] is
//! either, and the one parser for both; it knows nothing of files, so [`TriggerError`] carries what was found and
//! the reader of the file adds the place.
//!
//! Names are taken as host names are written: letters, digits, `-`, `_` and dots, in any letter case, with or
//! without the final dot. Other scripts become A-labels (UTS #46, RFC 5890).

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
use thiserror::Error;

use crate::name::{Name, NameError};
use crate::prefix::{Family, Prefix, PrefixError};

/// The shortest IPv4 prefix that a list may hold.
pub const V4_LEN_MIN: u8 = 8;

/// The shortest IPv6 prefix that a list may hold; registries hand out no shorter one.
pub const V6_LEN_MIN: u8 = 19;

/// The most octets of an entry's text: a name of 255 octets, even in escapes or in a script outside ASCII.
const ENTRY_LEN_MAX: usize = 1024;

/// What a trigger says of its name. Ordered by strength: where triggers of one app stand at the same name and both
/// cover a name that was asked, the lesser kind decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `!name`: never, from this name down.
    Never,
    /// `=name`: this name only.
    Exact,
    /// `*.name`: everything below, not the name itself.
    Below,
    /// `name`: the name and everything below it.
    Suffix,
}

impl Kind {
    /// Returns what stands before the name in a list.
    pub fn sign(self) -> &'static str {
        match self {
            Self::Never => "!",
            Self::Exact => "=",
            Self::Below => "*.",
            Self::Suffix => "",
        }
    }

    /// Returns whether the name itself is covered.
    pub fn covers_itself(self) -> bool {
        self != Self::Below
    }

    /// Returns whether the names below are covered.
    pub fn covers_below(self) -> bool {
        self != Self::Exact
    }
}

/// A trigger that speaks of names.
///
/// ```
/// use greenlane::catalogue::{Kind, Trigger};
/// use greenlane::name::Name;
///
/// let trigger: Trigger = "*.Example.net.".parse()?;
/// assert_eq!((trigger.kind, trigger.to_string().as_str()), (Kind::Below, "*.example.net"));
/// assert!(trigger.covers(&Name::parse("www.example.net")?));
/// assert!(!trigger.covers(&Name::parse("example.net")?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Trigger {
    /// The name after the sign.
    pub name: Name,
    /// What is said of it.
    pub kind: Kind,
}

impl Trigger {
    /// Returns whether `name` is one that this trigger speaks of, for yes or (`!`) for no.
    pub fn covers(&self, name: &Name) -> bool {
        if *name == self.name {
            self.kind.covers_itself()
        } else {
            self.kind.covers_below() && name.is_at_or_below(&self.name)
        }
    }
}

/// The form of a list, lower-case, without a trailing dot.
impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.kind.sign(), self.name)
    }
}

impl FromStr for Trigger {
    type Err = TriggerError;

    fn from_str(text: &str) -> Result<Self, TriggerError> {
        let (kind, rest) = split_sign(text)?;
        Ok(Self { name: parse_name(text, rest)?, kind })
    }
}

/// A trigger of either sort, as one entry of a list gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Names.
    Name(Trigger),
    /// Addresses.
    Prefix(Prefix),
}

impl FromStr for Entry {
    type Err = TriggerError;

    fn from_str(text: &str) -> Result<Self, TriggerError> {
        if text.len() > ENTRY_LEN_MAX {
            return Err(TriggerError::TooLong { found: Found::new(text), len: text.len() });
        }
        if is_address_like(text) {
            let prefix = text.parse()?;
            check_width(&prefix)?;
            return Ok(Self::Prefix(prefix));
        }
        text.parse().map(Self::Name)
    }
}

/// Why an entry is no trigger.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TriggerError {
    /// White space inside an entry.
    #[error("`{0}`: white space inside an entry, expected a comma or a new line between two entries")]
    Space(Found),
    /// A `*` that is not the leftmost label.
    #[error("`{found}`: `*` stands only as the leftmost label (RFC 4592 §2.1.1); write `*.{below}` or list the names")]
    InnerStar {
        /// The entry.
        found: Found,
        /// The name right of the last `*`.
        below: Found,
    },
    /// A `*` that is only a part of a label.
    #[error(
        "`{found}`: `*` stands only as a whole label (RFC 4592 section 2.1.1); write `*.{below}` or list the names"
    )]
    PartStar {
        /// The entry.
        found: Found,
        /// The name right of the last `*`.
        below: Found,
    },
    /// The root, or `*` alone.
    #[error("`{0}`: opens every name there is, expected a name such as `example.com`")]
    Everything(Found),
    /// Two signs, or one before a `*`.
    #[error("`{found}`: `{sign}` takes a plain name, expected `{sign}{name}`")]
    TwoSigns {
        /// The entry.
        found: Found,
        /// The first sign.
        sign: &'static str,
        /// What follows the signs.
        name: Found,
    },
    /// A sign before a prefix.
    #[error("`{found}`: `{sign}` takes a name, not a prefix; a prefix is listed as it stands or not at all")]
    SignedPrefix {
        /// The entry.
        found: Found,
        /// The sign.
        sign: &'static str,
    },
    /// A URL.
    #[error("`{found}`: a URL, expected its host name alone, `{host}`")]
    Url {
        /// The entry.
        found: Found,
        /// The part between `//` and the next `/` or `:`.
        host: Found,
    },
    /// A character that no host name has.
    #[error("`{found}`: {character:?} cannot stand in a name, expected letters, digits, `-`, `_` and dots")]
    Character {
        /// The entry.
        found: Found,
        /// The first such character.
        character: char,
    },
    /// A name in another script that has no A-label form.
    #[error("`{0}`: has no form in A-labels (UTS #46), expected an internationalised domain name")]
    Idn(Found),
    /// A sign alone.
    #[error("`{0}`: no name after the sign, expected one such as `{0}example.com`")]
    NoName(Found),
    /// Two dots in a row, or one in front.
    #[error("`{0}`: empty label, expected one dot between two labels and none in front")]
    EmptyLabel(Found),
    /// A name that DNS does not allow.
    #[error("`{found}`: {source}")]
    Name {
        /// The entry.
        found: Found,
        /// Why.
        source: NameError,
    },
    /// More text than any name has.
    #[error("`{found}`: entry of {len} octets, at most {ENTRY_LEN_MAX} are allowed")]
    TooLong {
        /// The entry.
        found: Found,
        /// Its length in octets.
        len: usize,
    },
    /// No canonical prefix.
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    /// A prefix that opens too much.
    #[error("prefix {found} is too wide, expected /{len_min} or longer; list the parts that are meant")]
    Wide {
        /// The prefix.
        found: Prefix,
        /// The shortest length allowed for its family.
        len_min: u8,
    },
}

/// Text out of a user's file, fit to be printed: control characters escaped, cut after 80 characters.
#[derive(Clone, PartialEq, Eq)]
pub struct Found(Box<str>);

impl Found {
    /// The most characters shown.
    const CHARS_MAX: usize = 80;

    /// Takes the text as it was found.
    pub fn new(text: &str) -> Self {
        let mut shown = String::with_capacity(text.len().min(Self::CHARS_MAX));
        for (i, character) in text.chars().enumerate() {
            if i == Self::CHARS_MAX {
                shown.push('…');
                break;
            }
            // Format characters turn the direction of text or hide; a terminal must not be fooled by a list.
            let is_hidden = matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
            if character.is_control() || is_hidden {
                shown.extend(character.escape_unicode());
            } else {
                shown.push(character);
            }
        }
        Self(shown.into_boxed_str())
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Takes the sign off; a leading `*.` is one.
fn split_sign(text: &str) -> Result<(Kind, &str), TriggerError> {
    let (kind, rest) = if let Some(rest) = text.strip_prefix('!') {
        (Kind::Never, rest)
    } else if let Some(rest) = text.strip_prefix('=') {
        (Kind::Exact, rest)
    } else if let Some(rest) = text.strip_prefix("*.") {
        (Kind::Below, rest)
    } else {
        (Kind::Suffix, text)
    };
    let bare = rest.trim_start_matches(['!', '=', '*']);
    if kind != Kind::Suffix && is_address_like(bare) {
        return Err(TriggerError::SignedPrefix { found: Found::new(text), sign: kind.sign() });
    }
    if matches!(kind, Kind::Never | Kind::Exact) && bare.len() < rest.len() {
        let bare = bare.trim_start_matches('.');
        let name = Found::new(if bare.is_empty() { "example" } else { bare });
        return Err(TriggerError::TwoSigns { found: Found::new(text), sign: kind.sign(), name });
    }
    Ok((kind, rest))
}

/// Reads the name `rest` of the entry `text`.
fn parse_name(text: &str, rest: &str) -> Result<Name, TriggerError> {
    let found = || Found::new(text);
    match rest {
        "" => return Err(TriggerError::NoName(found())),
        "." | "*" => return Err(TriggerError::Everything(found())),
        _ => {}
    }
    check_characters(text, rest)?;
    let ascii = if rest.is_ascii() {
        Cow::Borrowed(rest)
    } else {
        to_a_labels(rest).ok_or_else(|| TriggerError::Idn(found()))?
    };
    // The mapping may bring new ASCII characters in, such as the solidus out of a fraction.
    check_characters(text, &ascii)?;
    let name = Name::parse(&ascii).map_err(|source| match source {
        NameError::EmptyLabel => TriggerError::EmptyLabel(found()),
        source => TriggerError::Name { found: found(), source },
    })?;
    if name.is_root() { Err(TriggerError::Everything(found())) } else { Ok(name) }
}

/// Turns a name with characters outside ASCII into A-labels.
fn to_a_labels(name: &str) -> Option<Cow<'_, str>> {
    Uts46::new().to_ascii(name.as_bytes(), AsciiDenyList::EMPTY, Hyphens::Allow, DnsLength::Ignore).ok()
}

/// Finds the first ASCII character that no host name has; others are left to UTS #46.
fn check_characters(text: &str, name: &str) -> Result<(), TriggerError> {
    let is_fine = |octet: &u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_' | b'.' | 0x80..);
    if name.as_bytes().iter().all(is_fine) {
        return Ok(());
    }
    let found = Found::new(text);
    if let Some((_, after)) = name.split_once("://") {
        let host = after.split(['/', ':', '?', '#']).next().unwrap_or_default();
        return Err(TriggerError::Url { found, host: Found::new(host) });
    }
    if name.contains(char::is_whitespace) {
        return Err(TriggerError::Space(found));
    }
    if let Some(at) = name.rfind('*') {
        let after = &name[at + 1..];
        let is_whole = (at == 0 || name[..at].ends_with('.')) && (after.is_empty() || after.starts_with('.'));
        let below = Found::new(after.split_once('.').map_or("", |(_, below)| below));
        let below = if below.0.is_empty() { Found::new("example") } else { below };
        return Err(if is_whole {
            TriggerError::InnerStar { found, below }
        } else {
            TriggerError::PartStar { found, below }
        });
    }
    let is_bad = |character: &char| character.is_ascii() && !is_fine(&(*character as u8));
    match name.chars().find(is_bad) {
        Some(character) => Err(TriggerError::Character { found, character }),
        None => Ok(()),
    }
}

/// Returns whether the text is meant as an address or a prefix, well-formed or not: hexadecimal digits, dots and
/// colons before an optional `/`, and among them two colons or a last part of digits alone.
fn is_address_like(text: &str) -> bool {
    let before = text.split('/').next().unwrap_or_default();
    if !before.bytes().all(|octet| octet.is_ascii_hexdigit() || matches!(octet, b'.' | b':')) {
        return false;
    }
    let last = before.strip_suffix('.').unwrap_or(before).rsplit('.').next().unwrap_or_default();
    let is_number = !last.is_empty() && last.bytes().all(|octet| octet.is_ascii_digit());
    is_number || before.bytes().filter(|&octet| octet == b':').count() > 1
}

/// Refuses a prefix that would open a good part of the address space.
fn check_width(prefix: &Prefix) -> Result<(), TriggerError> {
    let len_min = match prefix.family() {
        Family::V4 => V4_LEN_MIN,
        Family::V6 => V6_LEN_MIN,
    };
    if prefix.len() < len_min { Err(TriggerError::Wide { found: *prefix, len_min }) } else { Ok(()) }
}

/// Checks a prefix that came in another form than text.
pub(super) fn admit_prefix(addr: IpAddr, len: u8) -> Result<Prefix, TriggerError> {
    let prefix = Prefix::new(addr, len)?;
    check_width(&prefix)?;
    Ok(prefix)
}

/// Checks a name that came in another form than text; `text` is what messages call it.
pub(super) fn admit_name(text: &str, name: Name, kind: Kind) -> Result<Trigger, TriggerError> {
    if name.is_root() {
        return Err(TriggerError::Everything(Found::new(text)));
    }
    check_characters(text, &name.to_string())?;
    Ok(Trigger { name, kind })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(text: &str) -> String {
        text.parse::<Entry>().unwrap_err().to_string()
    }

    fn trigger(text: &str) -> Trigger {
        text.parse().unwrap()
    }

    #[test]
    fn four_kinds_are_told_apart_by_their_sign() {
        for (text, kind) in [
            ("zoom.us", Kind::Suffix),
            ("=zoom.us", Kind::Exact),
            ("*.zoom.us", Kind::Below),
            ("!zoom.us", Kind::Never),
        ] {
            assert_eq!(trigger(text), Trigger { name: Name::parse("zoom.us").unwrap(), kind });
        }
    }

    #[test]
    fn kinds_cover_what_they_say() {
        let covered = |text: &str, name: &str| trigger(text).covers(&Name::parse(name).unwrap());
        for (text, itself, below) in [
            ("a.example", true, true),
            ("=a.example", true, false),
            ("*.a.example", false, true),
            ("!a.example", true, true),
        ] {
            assert_eq!(covered(text, "A.example"), itself, "{text}");
            assert_eq!(covered(text, "x.y.a.example"), below, "{text}");
            assert!(!covered(text, "xa.example"), "{text}");
            assert!(!covered(text, "example"), "{text}");
        }
    }

    #[test]
    fn names_fold_case_and_scripts() {
        assert_eq!(trigger("LogMeIn123.com").to_string(), "logmein123.com");
        assert_eq!(trigger("=Login.Example.").to_string(), "=login.example");
        assert_eq!(trigger("*.Bücher.example").to_string(), "*.xn--bcher-kva.example");
        assert_eq!(trigger("例え。テスト").to_string(), "xn--r8jz45g.xn--zckzah");
        assert_eq!(trigger("_dmarc.example").to_string(), "_dmarc.example");
    }

    #[test]
    fn addresses_are_prefixes() {
        for (text, shown) in [
            ("198.51.100.0/24", "198.51.100.0/24"),
            ("192.0.2.1", "192.0.2.1/32"),
            ("2001:DB8:1::/48", "2001:db8:1::/48"),
            ("::1", "::1/128"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("2001::/19", "2001::/19"),
        ] {
            assert_eq!(text.parse::<Entry>(), Ok(Entry::Prefix(shown.parse().unwrap())));
        }
        for text in ["123rescue.com", "face.cafe", "1.2.3.4.example", "dead.beef.de"] {
            assert!(matches!(text.parse::<Entry>(), Ok(Entry::Name(_))), "{text}");
        }
    }

    #[test]
    fn refusals_say_what_would_be_right() {
        for (text, says) in [
            (
                "a.*.example",
                "`a.*.example`: `*` stands only as the leftmost label (RFC 4592 §2.1.1); write `*.example` or list the names",
            ),
            (
                "*.*.example",
                "`*.*.example`: `*` stands only as the leftmost label (RFC 4592 §2.1.1); write `*.example` or list the names",
            ),
            (
                "w*.example",
                "`w*.example`: `*` stands only as a whole label (RFC 4592 section 2.1.1); write `*.example` or list the names",
            ),
            ("*", "`*`: opens every name there is, expected a name such as `example.com`"),
            (".", "`.`: opens every name there is, expected a name such as `example.com`"),
            ("!*.example", "`!*.example`: `!` takes a plain name, expected `!example`"),
            ("=!x.example", "`=!x.example`: `=` takes a plain name, expected `=x.example`"),
            (
                "!198.51.100.0/24",
                "`!198.51.100.0/24`: `!` takes a name, not a prefix; a prefix is listed as it stands or not at all",
            ),
            ("https://zoom.us:443/j", "`https://zoom.us:443/j`: a URL, expected its host name alone, `zoom.us`"),
            ("zoom.us:443", "`zoom.us:443`: ':' cannot stand in a name, expected letters, digits, `-`, `_` and dots"),
            (
                "zoom.us webex.com",
                "`zoom.us webex.com`: white space inside an entry, expected a comma or a new line between two entries",
            ),
            ("a..example", "`a..example`: empty label, expected one dot between two labels and none in front"),
            ("=", "`=`: no name after the sign, expected one such as `=example.com`"),
            ("!=", "`!=`: `!` takes a plain name, expected `!example`"),
            ("198.51.100.7/24", "host bits are set in 198.51.100.7/24, the prefix is 198.51.100.0/24"),
            ("1.2.3", "`1.2.3` is no IP prefix, expected address/length such as 198.51.100.0/24 or 2001:db8:1::/48"),
            ("0.0.0.0/0", "prefix 0.0.0.0/0 is too wide, expected /8 or longer; list the parts that are meant"),
            ("2000::/18", "prefix 2000::/18 is too wide, expected /19 or longer; list the parts that are meant"),
        ] {
            assert_eq!(message(text), says);
        }
        assert!(message(&"a".repeat(2000)).ends_with("entry of 2000 octets, at most 1024 are allowed"));
        assert!(message("½\u{0}.example").contains("cannot stand"), "{}", message("½\u{0}.example"));
    }

    #[test]
    fn hostile_text_is_shown_harmless() {
        assert_eq!(Found::new("a\u{1b}[31m\u{202e}b").to_string(), "a\\u{1b}[31m\\u{202e}b");
        assert_eq!(Found::new(&"é".repeat(100)).to_string(), format!("{}…", "é".repeat(80)));
    }

    proptest! {
        #[test]
        fn print_then_parse_gives_the_same_trigger(text in "[!=]?([a-z0-9_-]{1,20}\\.){1,5}[a-z]{2,9}\\.?") {
            let trigger: Trigger = text.parse().unwrap();
            prop_assert_eq!(trigger.to_string().parse::<Trigger>().unwrap(), trigger);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}|[a-f0-9.:/*!=]{0,20}") {
            let _ = text.parse::<Entry>();
        }
    }
}
