//! Values as typed, read as one type each.
//!
//! Every reader notes what is wrong with a value and returns `None`; a list goes on behind a bad element, so all of
//! them are noted. The text of a variable may also stand for a number, a flag, or a comma-separated list.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::error::{Fault, Faults, quoted};
use super::raw::Item;
use super::units::{parse_duration, parse_size, print_duration, print_size};
use super::upstream;
use crate::catalogue::AppId;
use crate::export::format::Dialect;
use crate::forward::Upstream;
use crate::name::Name;
use crate::prefix::{Family, Prefix, PrefixError};
use crate::source::Located;

/// The longest span of DNS: 31 bits of seconds (RFC 2181 §8).
const TTL_MAX: Duration = Duration::from_secs(0x7fff_ffff);

impl Item<'_> {
    /// Reads a text that is not empty.
    fn text(&self, expected: &str, faults: &mut Faults) -> Option<&str> {
        match self.value.as_str() {
            Some(text) if !text.is_empty() => Some(text),
            _ => {
                self.unexpected(expected, faults);
                None
            }
        }
    }

    /// Reads what `parse` takes, from a text.
    fn parsed<T>(&self, expected: &str, faults: &mut Faults, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let value = self.value.as_str().and_then(parse);
        if value.is_none() {
            self.unexpected(expected, faults);
        }
        value
    }

    /// Reads what `parse` takes, from a text; its error says what is wrong.
    fn checked<T>(&self, expected: &str, faults: &mut Faults, parse: impl Fn(&str) -> Result<T, Fault>) -> Option<T> {
        match parse(self.text(expected, faults)?) {
            Ok(value) => Some(value),
            Err(fault) => {
                self.fault(fault, faults);
                None
            }
        }
    }

    /// Reads `true` or `false`.
    pub(super) fn flag(&self, faults: &mut Faults) -> Option<bool> {
        let flag = match self.value {
            DeValue::Boolean(flag) => Some(*flag),
            DeValue::String(text) if self.is_variable() => text.parse().ok(),
            _ => None,
        };
        if flag.is_none() {
            self.unexpected("true or false", faults);
        }
        flag
    }

    /// Reads a whole number within bounds.
    pub(super) fn number<T: TryFrom<u64>>(&self, bounds: RangeInclusive<u64>, faults: &mut Faults) -> Option<T> {
        let (least, most) = (bounds.start(), bounds.end());
        let is_number = match self.value {
            DeValue::Integer(_) => true,
            DeValue::String(text) => self.is_variable() && whole(text, 10).is_some(),
            _ => false,
        };
        let number = match self.value {
            DeValue::Integer(number) => whole(number.as_str(), number.radix()),
            DeValue::String(text) if self.is_variable() => whole(text, 10),
            _ => None,
        };
        // A number beyond 64 bits is out of bounds all the same.
        let fitting = number.and_then(|n| u64::try_from(n).ok()).filter(|n| bounds.contains(n));
        let value = fitting.and_then(|n| T::try_from(n).ok());
        if value.is_none() {
            let kind = if is_number { "" } else { "a whole number, " };
            self.unexpected(format!("{kind}{least} to {most}"), faults);
        }
        value
    }

    /// Reads a number from 0 to 1, a fraction allowed.
    pub(super) fn share(&self, faults: &mut Faults) -> Option<f64> {
        let number = match self.value {
            DeValue::Float(number) => number.as_str().parse::<f64>().ok(),
            DeValue::Integer(number) => whole(number.as_str(), number.radix()).map(|n| n as f64),
            DeValue::String(text) if self.is_variable() => text.parse().ok(),
            _ => None,
        };
        let share = number.filter(|n| (0.0..=1.0).contains(n));
        if share.is_none() {
            self.unexpected("a number from 0 to 1", faults);
        }
        share
    }

    /// Reads a duration within bounds.
    pub(super) fn duration(&self, bounds: RangeInclusive<Duration>, faults: &mut Faults) -> Option<Duration> {
        let expected = "a duration such as \"100ms\", \"8s\", \"10m\" or \"1d\"";
        let duration = self.parsed(expected, faults, parse_duration)?;
        if !bounds.contains(&duration) {
            let (least, most) = (print_duration(*bounds.start()), print_duration(*bounds.end()));
            self.unexpected(format!("{least} to {most}"), faults);
            return None;
        }
        Some(duration)
    }

    /// Reads a time to live: whole seconds, since that is what DNS counts.
    pub(super) fn ttl(&self, least: Duration, faults: &mut Faults) -> Option<Duration> {
        let ttl = self.duration(least..=TTL_MAX, faults)?;
        if ttl.subsec_nanos() > 0 {
            self.unexpected("whole seconds", faults);
            return None;
        }
        Some(ttl)
    }

    /// Reads a size in octets within bounds.
    pub(super) fn size(&self, bounds: RangeInclusive<u64>, faults: &mut Faults) -> Option<u64> {
        let size = self.parsed("a size such as \"256MiB\" or \"16MB\"", faults, parse_size)?;
        if !bounds.contains(&size) {
            self.unexpected(format!("{} to {}", print_size(*bounds.start()), print_size(*bounds.end())), faults);
            return None;
        }
        Some(size)
    }

    /// Reads one of a few words.
    pub(super) fn word<T: Copy>(&self, words: &[(&str, T)], faults: &mut Faults) -> Option<T> {
        let names: Vec<String> = words.iter().map(|(word, _)| quoted(word)).collect();
        let expected = match names.split_last() {
            Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
            _ => names.join(""),
        };
        self.parsed(&expected, faults, |text| words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value))
    }

    /// Reads one of a few words that need no type yet.
    pub(super) fn choice(&self, words: &[&'static str], faults: &mut Faults) -> Option<&'static str> {
        let words: Vec<(&str, &'static str)> = words.iter().map(|word| (*word, *word)).collect();
        self.word(&words, faults)
    }

    /// Reads a path as it stands; the caller knows which folder it starts at.
    pub(super) fn path(&self, faults: &mut Faults) -> Option<PathBuf> {
        self.printable("a path", faults).map(PathBuf::from)
    }

    /// Reads a path, with its place.
    pub(super) fn located_path(&self, faults: &mut Faults) -> Option<Located<PathBuf>> {
        Some(Located::new(self.path(faults)?, self.at.location()))
    }

    /// Reads one line of text that is not empty.
    pub(super) fn line(&self, faults: &mut Faults) -> Option<String> {
        self.printable("one line of text", faults).map(str::to_owned)
    }

    /// Reads a text that is not empty and holds no control characters.
    fn printable(&self, expected: &str, faults: &mut Faults) -> Option<&str> {
        let text = self.text(expected, faults)?;
        if text.chars().any(char::is_control) {
            self.unexpected(expected, faults);
            return None;
        }
        Some(text)
    }

    /// Reads a command: program and arguments, no shell. Empty for none.
    pub(super) fn command(&self, faults: &mut Faults) -> Option<Vec<String>> {
        let argument = |item: &Item<'_>, faults: &mut Faults| {
            let argument = item.value.as_str().filter(|text| !text.contains('\0'));
            if argument.is_none() {
                item.unexpected("a program or argument as text", faults);
            }
            argument.map(str::to_owned)
        };
        let command = self.list("a list of program and arguments", argument, faults)?;
        if command.first().is_some_and(String::is_empty) {
            self.unexpected("a program first", faults);
            return None;
        }
        Some(command)
    }

    /// Reads an URL of one of these schemes. It may hold a password, so a message repeats the scheme only.
    pub(super) fn url(&self, schemes: &[&str], faults: &mut Faults) -> Option<String> {
        let expected = || format!("an URL that begins with {}", schemes.join("://, ") + "://");
        let Some(text) = self.value.as_str() else {
            self.unexpected(expected(), faults);
            return None;
        };
        let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
        let is_known = schemes.iter().any(|known| known.eq_ignore_ascii_case(scheme));
        if !is_known || rest.is_empty() || rest.chars().any(|c| c.is_control() || c == ' ') {
            let found =
                if scheme.is_empty() { "text without one".to_owned() } else { quoted(&format!("{scheme}://…")) };
            self.fault(Fault::Unexpected { expected: expected(), found }, faults);
            return None;
        }
        Some(text.to_owned())
    }

    /// Reads the id of a cluster, which is a part of keys elsewhere.
    pub(super) fn cluster_id(&self, faults: &mut Faults) -> Option<String> {
        let expected = "1 to 64 letters, digits, `_`, `-` or `.`";
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        let is_id = |text: &str| (1..=64).contains(&text.len()) && text.chars().all(is_plain);
        self.parsed(expected, faults, |text| is_id(text).then(|| text.to_owned()))
    }

    /// Reads the name of a table or set of nftables, within the kernel's bounds.
    pub(super) fn nft_name(&self, faults: &mut Faults) -> Option<String> {
        let expected = "a name of nftables, a letter first, then letters, digits, `_`, `-` or `.`";
        self.parsed(expected, faults, |text| is_nft_name(text).then(|| text.to_owned()))
    }

    /// Reads an address and a port; port 0 lets the system choose.
    pub(super) fn socket(&self, faults: &mut Faults) -> Option<SocketAddr> {
        let expected = "an address and port such as \"127.0.0.1:5300\" or \"[::1]:5300\"";
        self.parsed(expected, faults, |text| text.parse().ok())
    }

    /// Reads addresses and ports, at least one.
    pub(super) fn some_sockets(&self, faults: &mut Faults) -> Option<Vec<Located<SocketAddr>>> {
        let sockets = self.sockets(faults);
        self.filled(sockets, "at least one address", faults)
    }

    /// Reads an address and a port, or `off` for no listener.
    pub(super) fn socket_or_off(&self, faults: &mut Faults) -> Option<Option<SocketAddr>> {
        if self.value.as_str() == Some("off") { Some(None) } else { self.socket(faults).map(Some) }
    }

    /// Reads addresses and ports.
    pub(super) fn sockets(&self, faults: &mut Faults) -> Option<Vec<Located<SocketAddr>>> {
        let expected = "a list of addresses and ports such as [\"127.0.0.1:5300\"]";
        self.list(expected, |item, faults| Some(Located::new(item.socket(faults)?, item.at.location())), faults)
    }

    /// Reads a prefix without host bits; a bare address is a host prefix.
    fn prefix(&self, faults: &mut Faults) -> Option<Prefix> {
        let expected = "a prefix such as \"198.51.100.0/24\" or \"2001:db8:1::/48\"";
        self.checked(expected, faults, |text| {
            text.parse().map_err(|error| match error {
                // The text may hold anything, so it is quoted; in the other errors it has been understood.
                PrefixError::Malformed(found) => {
                    Fault::Unexpected { expected: expected.to_owned(), found: quoted(&found) }
                }
                understood => Fault::Prefix(understood),
            })
        })
    }

    /// Reads prefixes, in their order.
    pub(super) fn prefixes(&self, faults: &mut Faults) -> Option<Vec<Prefix>> {
        self.list("a list of prefixes such as [\"198.51.100.0/24\"]", |item, faults| item.prefix(faults), faults)
    }

    /// Reads the prefixes of clients, at least one: whether none means nobody or everybody is too easily mistaken.
    pub(super) fn some_prefixes(&self, faults: &mut Faults) -> Option<Vec<Prefix>> {
        let prefixes = self.prefixes(faults);
        self.filled(prefixes, "at least one prefix, \"0.0.0.0/0\" and \"::/0\" for everyone", faults)
    }

    /// Reads the prefixes of NAT64 translators: those of 96 bits, the one length whose embedded IPv4 address ends
    /// the address (RFC 6052 §2.2).
    pub(super) fn nat64(&self, faults: &mut Faults) -> Option<Vec<Prefix>> {
        let expected = "an IPv6 prefix of 96 bits such as \"64:ff9b::/96\"";
        let translator = |item: &Item<'_>, faults: &mut Faults| {
            let prefix = item.prefix(faults)?;
            if prefix.family() != Family::V6 || prefix.len() != 96 {
                item.unexpected(expected, faults);
                return None;
            }
            Some(prefix)
        };
        self.list("a list of IPv6 prefixes such as [\"64:ff9b::/96\"]", translator, faults)
    }

    /// Reads a domain name; characters outside ASCII become A-labels (RFC 5891). It speaks for all below it, so
    /// the marks that a list puts before a name have no place here.
    pub(super) fn name(&self, faults: &mut Faults) -> Option<Name> {
        let expected = "a domain name such as \"example.com\", which includes all below it";
        let is_marked =
            |text: &str| text.contains(|c: char| c.is_whitespace() || c.is_control() || "*=!/,:".contains(c));
        if self.value.as_str().is_some_and(is_marked) {
            self.unexpected(expected, faults);
            return None;
        }
        self.checked(expected, faults, parse_name)
    }

    /// Reads a domain name, with its place.
    pub(super) fn located_name(&self, faults: &mut Faults) -> Option<Located<Name>> {
        Some(Located::new(self.name(faults)?, self.at.location()))
    }

    /// Reads domain names, in their order.
    pub(super) fn names(&self, faults: &mut Faults) -> Option<Vec<Name>> {
        self.list("a list of domain names such as [\"example.com\"]", |item, faults| item.name(faults), faults)
    }

    /// Reads domain names with their places.
    pub(super) fn located_names(&self, faults: &mut Faults) -> Option<Vec<Located<Name>>> {
        self.list("a list of domain names such as [\"example.com\"]", |item, faults| item.located_name(faults), faults)
    }

    /// Reads the dialect of an exported file.
    pub(super) fn dialect(&self, faults: &mut Faults) -> Option<Dialect> {
        let words: Vec<(&str, Dialect)> = Dialect::all().map(|dialect| (dialect.name(), dialect)).collect();
        self.word(&words, faults)
    }

    /// Reads the code of an EDNS option: 0 for none, or one for local use (RFC 6891 §9).
    pub(super) fn option_code(&self, faults: &mut Faults) -> Option<u16> {
        let code = self.number(0..=0xffff, faults)?;
        if code != 0 && !(65_001..=65_534).contains(&code) {
            self.unexpected("0 or 65001 to 65534", faults);
            return None;
        }
        Some(code)
    }

    /// Reads the id of an app: the file name of a list without its ending.
    pub(super) fn app(&self, faults: &mut Faults) -> Option<AppId> {
        let is_id = |id: &str| {
            !id.is_empty() && !id.starts_with('.') && id.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c))
        };
        let expected = "the id of an app such as \"zoom\"";
        self.parsed(expected, faults, |text| is_id(text).then(|| AppId::new(text)))
    }

    /// Reads ids of apps, in their order.
    pub(super) fn apps(&self, faults: &mut Faults) -> Option<Vec<AppId>> {
        self.list("a list of apps such as [\"zoom\"]", |item, faults| item.app(faults), faults)
    }

    /// Reads upstreams, at least one, each with its place.
    pub(super) fn upstreams(&self, faults: &mut Faults) -> Option<Vec<Located<Upstream>>> {
        let expected = "a list of upstreams such as [\"tls://9.9.9.9#dns.quad9.net\"]";
        let one = |item: &Item<'_>, faults: &mut Faults| {
            let read = |text: &str| Ok(upstream::parse_all(text)?);
            let upstreams = item.checked("an upstream such as \"udp://192.0.2.53\"", faults, read)?;
            let located = |upstream| Located::new(upstream, item.at.location());
            Some(upstreams.into_iter().map(located).collect::<Vec<_>>())
        };
        let upstreams = self.list(expected, one, faults).map(|lists| lists.into_iter().flatten().collect());
        self.filled(upstreams, "at least one upstream", faults)
    }

    /// Refuses a list without elements.
    fn filled<T>(&self, list: Option<Vec<T>>, expected: &str, faults: &mut Faults) -> Option<Vec<T>> {
        let list = list?;
        if list.is_empty() {
            self.unexpected(expected, faults);
            return None;
        }
        Some(list)
    }

    /// Reads each element of a list; `None` if any is wrong.
    pub(super) fn list<T>(
        &self,
        expected: &str,
        read: impl Fn(&Item<'_>, &mut Faults) -> Option<T>,
        faults: &mut Faults,
    ) -> Option<Vec<T>> {
        match self.value {
            DeValue::Array(items) => {
                // All are read before any is missed, so that each bad one is noted.
                let read: Vec<Option<T>> = items.iter().map(|item| read(&self.element(item), faults)).collect();
                read.into_iter().collect()
            }
            DeValue::String(text) if self.is_variable() => {
                let pieces = text.split(',').map(str::trim).filter(|piece| !piece.is_empty());
                let read: Vec<Option<T>> = pieces
                    .map(|piece| read(&Item { value: &DeValue::String(Cow::Borrowed(piece)), ..*self }, faults))
                    .collect();
                read.into_iter().collect()
            }
            _ => {
                self.unexpected(expected, faults);
                None
            }
        }
    }
}

/// Reads a whole number of a radix; a sign and `_` between digits are allowed, as TOML has them.
fn whole(text: &str, radix: u32) -> Option<i128> {
    i128::from_str_radix(text, radix).ok()
}

/// Reads a domain name, by way of its A-labels if it needs them.
fn parse_name(text: &str) -> Result<Name, Fault> {
    let found = || quoted(text);
    let ascii = if text.is_ascii() {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(idna::domain_to_ascii(text).map_err(|_| Fault::Idna { found: found() })?)
    };
    Name::parse(&ascii).map_err(|source| Fault::Name { found: found(), source })
}

/// Returns whether the kernel and `nft` take this as the name of a table or set.
pub fn is_nft_name(text: &str) -> bool {
    text.len() <= 255
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
}
