//! Upstreams as URLs, in the form that AdGuard's dnsproxy made common.
//!
//! `udp://192.0.2.53`, `tcp://192.0.2.53:5353`, `tls://[2001:db8::53]#dns.example`; a bare `192.0.2.53` or
//! `[2001:db8::53]:5353` is UDP. The port may be left out: 53, for TLS and QUIC 853 (RFC 7858 §3.1, RFC 9250 §4.1.1), for HTTPS 443. After `#` stands the
//! name that the certificate must have; without it the address itself must be in the certificate. With `https://` a path
//! may stand before it, `/dns-query` by default: `https://9.9.9.9/dns-query#dns.quad9.net`. `system` stands for the
//! servers that the host itself asks. A host is always an address: a name would first have to be asked, and there is
//! nobody yet to ask.

use std::net::{IpAddr, SocketAddr};

use thiserror::Error;

use super::error::quoted;
use crate::forward::{DEFAULT_PATH, Protocol, SystemError, Upstream, system_upstreams};
use crate::name::Name;

/// Why text is no upstream.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum UpstreamError {
    /// A scheme that nobody speaks.
    #[error("{} has an unknown scheme, expected udp://, tcp://, tls://, https:// or quic://", quoted(.0))]
    Scheme(String),
    /// A way to ask that comes in a later release.
    #[error("{} is not built yet, expected udp://, tcp://, tls://, https:// or quic:// with an address, such as tls://9.9.9.9#dns.quad9.net", quoted(.0))]
    NotBuilt(String),
    /// The host does not tell whom it asks.
    #[error(transparent)]
    System(#[from] SystemError),
    /// A host name where an address must stand.
    #[error("{} names a host, write {}", quoted(found), example(*protocol))]
    HostName {
        /// The text found.
        found: String,
        /// How the upstream would be spoken to.
        protocol: Protocol,
    },
    /// Neither an address nor an address and port.
    #[error("{} is no upstream, expected {}", quoted(found), example(*protocol))]
    Malformed {
        /// The text found.
        found: String,
        /// How the upstream would be spoken to.
        protocol: Protocol,
    },
    /// A port that is no number from 1 to 65535.
    #[error("port of {}: expected 1 to 65535, found {}", quoted(found), quoted(port))]
    Port {
        /// The text found.
        found: String,
        /// Its port.
        port: String,
    },
    /// An address at which no server can be.
    #[error("{} is no server's address, expected a unicast address", quoted(.0))]
    NotUnicast(String),
    /// A path, a query or a user.
    #[error("{} has more than an address, expected {}", quoted(found), example(*protocol))]
    TooMuch {
        /// The text found.
        found: String,
        /// How the upstream would be spoken to.
        protocol: Protocol,
    },
    /// A path with signs that cannot stand there.
    #[error("{} has no path of a URI, expected one such as https://9.9.9.9/dns-query#dns.quad9.net", quoted(.0))]
    Path(String),
    /// A certificate's name where there is no certificate.
    #[error("{} names a certificate, only tls://, https:// and quic:// have one", quoted(.0))]
    NameWithoutTls(String),
    /// After `#` stands no host name.
    #[error("{} is no name of a certificate, expected a host name such as dns.quad9.net", quoted(.0))]
    TlsName(String),
}

/// Returns what a right one looks like.
fn example(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Udp => "an address such as udp://192.0.2.53 or udp://[2001:db8::53]:53",
        Protocol::Tcp => "an address such as tcp://192.0.2.53 or tcp://[2001:db8::53]:53",
        Protocol::Tls => "an address such as tls://9.9.9.9#dns.quad9.net",
        Protocol::Https => "an address such as https://9.9.9.9/dns-query#dns.quad9.net",
        Protocol::Quic => "an address such as quic://9.9.9.9#dns.quad9.net",
    }
}

/// Reads one upstream, or with `system` all that the host asks.
///
/// # Errors
/// Any [`UpstreamError`]; each says what would be right.
pub(super) fn parse_all(text: &str) -> Result<Vec<Upstream>, UpstreamError> {
    if text.eq_ignore_ascii_case("system") { Ok(system_upstreams()?) } else { parse(text).map(|one| vec![one]) }
}

/// Reads one upstream.
///
/// # Errors
/// Any [`UpstreamError`]; each says what would be right.
fn parse(text: &str) -> Result<Upstream, UpstreamError> {
    let (protocol, rest) = match text.split_once("://") {
        None => (Protocol::Udp, text),
        Some((scheme, rest)) => (scheme_of(scheme, text)?, rest),
    };
    let (authority, tls_name) = match rest.split_once('#') {
        None => (rest, None),
        Some((authority, name)) => (authority, Some(certificate_name(protocol, name, text)?)),
    };
    let (authority, path) = match authority.find('/') {
        Some(at) if protocol == Protocol::Https => (&authority[..at], Some(path(&authority[at..], text)?)),
        _ => (authority, None),
    };
    // One way to say it: what is asked at the same place is the same upstream.
    let path = path.filter(|path| path != DEFAULT_PATH);
    Ok(Upstream { protocol, addr: address(protocol, authority, text)?, tls_name, path })
}

/// Writes an upstream so that [`parse`] reads it, the port always written.
pub(super) fn print(upstream: &Upstream) -> String {
    let name = upstream.tls_name.as_ref().map_or_else(String::new, |name| format!("#{name}"));
    format!("{}://{}{}{name}", upstream.protocol.scheme(), upstream.addr, upstream.path())
}

/// Reads a scheme, without regard to letter case (RFC 3986 §3.1).
fn scheme_of(scheme: &str, text: &str) -> Result<Protocol, UpstreamError> {
    match scheme.to_ascii_lowercase().as_str() {
        "udp" => Ok(Protocol::Udp),
        "tcp" => Ok(Protocol::Tcp),
        "tls" => Ok(Protocol::Tls),
        "https" => Ok(Protocol::Https),
        "quic" => Ok(Protocol::Quic),
        "h3" | "sdns" => Err(UpstreamError::NotBuilt(text.to_owned())),
        _ => Err(UpstreamError::Scheme(text.to_owned())),
    }
}

/// Reads what stands after `#`: a host name, or the address that the certificate holds.
fn certificate_name(protocol: Protocol, name: &str, text: &str) -> Result<String, UpstreamError> {
    if !protocol.is_encrypted() {
        return Err(UpstreamError::NameWithoutTls(text.to_owned()));
    }
    if name.parse::<IpAddr>().is_ok() {
        return Ok(name.to_owned());
    }
    let is_host_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    match Name::parse(name) {
        Ok(parsed) if is_host_name && !parsed.is_root() => Ok(parsed.to_string()),
        _ => Err(UpstreamError::TlsName(name.to_owned())),
    }
}

/// Reads a path: what a URI may have there without `?` and `#` (RFC 3986 §3.3).
fn path(path: &str, text: &str) -> Result<String, UpstreamError> {
    let may_stand = |octet: u8| octet.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@%".contains(&octet);
    if path.bytes().all(may_stand) { Ok(path.to_owned()) } else { Err(UpstreamError::Path(text.to_owned())) }
}

/// Reads `address`, `address:port` or, for IPv6, `[address]:port`.
fn address(protocol: Protocol, authority: &str, text: &str) -> Result<SocketAddr, UpstreamError> {
    let port = protocol.default_port();
    let found = || text.to_owned();
    let bare = authority.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, port)).ok();
    // `[::1]` alone is no socket address to the standard library; with a port it is.
    let addr = bare.or_else(|| authority.parse().ok()).or_else(|| format!("{authority}:{port}").parse().ok());
    let Some(addr) = addr else {
        return Err(no_address(protocol, authority, text));
    };
    if addr.port() == 0 {
        return Err(UpstreamError::Port { found: found(), port: "0".to_owned() });
    }
    let ip = addr.ip().to_canonical();
    let is_broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    if ip.is_unspecified() || ip.is_multicast() || is_broadcast {
        return Err(UpstreamError::NotUnicast(found()));
    }
    Ok(addr)
}

/// Tells why `authority` is no address.
fn no_address(protocol: Protocol, authority: &str, text: &str) -> UpstreamError {
    let found = text.to_owned();
    if authority.contains(['/', '?', '@']) {
        return UpstreamError::TooMuch { found, protocol };
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if let (Some(port), Ok(_)) = (port, bracketed.unwrap_or(host).parse::<IpAddr>()) {
        return UpstreamError::Port { found, port: port.to_owned() };
    }
    let is_name = host.bytes().any(|b| b.is_ascii_alphabetic()) && !host.contains([':', '[']);
    if is_name && (!host.is_ascii() || Name::parse(host).is_ok()) {
        return UpstreamError::HostName { found, protocol };
    }
    UpstreamError::Malformed { found, protocol }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn upstreams_are_read() {
        for (text, printed) in [
            ("192.0.2.1", "udp://192.0.2.1:53"),
            ("192.0.2.1:5353", "udp://192.0.2.1:5353"),
            ("2001:db8::1", "udp://[2001:db8::1]:53"),
            ("[2001:db8::1]", "udp://[2001:db8::1]:53"),
            ("[2001:db8::1]:5353", "udp://[2001:db8::1]:5353"),
            ("udp://192.0.2.1", "udp://192.0.2.1:53"),
            ("tcp://192.0.2.1:5353", "tcp://192.0.2.1:5353"),
            ("TLS://9.9.9.9#DNS.quad9.net.", "tls://9.9.9.9:853#dns.quad9.net"),
            ("tls://[2620:fe::fe]#dns.quad9.net", "tls://[2620:fe::fe]:853#dns.quad9.net"),
            ("tls://[2620:fe::fe]:8853#dns.quad9.net", "tls://[2620:fe::fe]:8853#dns.quad9.net"),
            ("tls://1.1.1.1", "tls://1.1.1.1:853"),
            ("tls://1.1.1.1#1.1.1.1", "tls://1.1.1.1:853#1.1.1.1"),
            ("udp://[fe80::1%3]:53", "udp://[fe80::1%3]:53"),
            ("https://9.9.9.9#dns.quad9.net", "https://9.9.9.9:443/dns-query#dns.quad9.net"),
            (
                "HTTPS://[2620:fe::fe]:8443/a/b;c=%20#dns.quad9.net",
                "https://[2620:fe::fe]:8443/a/b;c=%20#dns.quad9.net",
            ),
            ("https://1.1.1.1/", "https://1.1.1.1:443/"),
            ("quic://94.140.14.14#dns.adguard-dns.com", "quic://94.140.14.14:853#dns.adguard-dns.com"),
        ] {
            let upstream = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(print(&upstream), printed);
            assert_eq!(parse(printed), Ok(upstream));
        }
    }

    #[test]
    fn what_is_no_upstream_says_what_would_be_right() {
        const TLS: &str = "tls://9.9.9.9#dns.quad9.net";
        const ONE: &str = "an address such as udp://192.0.2.53 or udp://[2001:db8::53]:53";
        let not_built =
            "is not built yet, expected udp://, tcp://, tls://, https:// or quic:// with an address, such as";
        const HTTPS: &str = "https://9.9.9.9/dns-query#dns.quad9.net";
        for (text, message) in [
            ("h3://9.9.9.9", format!("\"h3://9.9.9.9\" {not_built} {TLS}")),
            (
                "https://dns.quad9.net/dns-query",
                format!("\"https://dns.quad9.net/dns-query\" names a host, write an address such as {HTTPS}"),
            ),
            (
                "https://9.9.9.9/dns-query?x",
                format!("\"https://9.9.9.9/dns-query?x\" has no path of a URI, expected one such as {HTTPS}"),
            ),
            (
                "quic://9.9.9.9/x",
                "\"quic://9.9.9.9/x\" has more than an address, expected an address such as quic://9.9.9.9#dns.quad9.net"
                    .to_owned(),
            ),
            ("ftp://9.9.9.9", "\"ftp://9.9.9.9\" has an unknown scheme, expected udp://, tcp://, tls://, https:// or quic://".to_owned()),
            ("tls://dns.quad9.net", format!("\"tls://dns.quad9.net\" names a host, write an address such as {TLS}")),
            ("dns.example:53", format!("\"dns.example:53\" names a host, write {ONE}")),
            ("", format!("\"\" is no upstream, expected {ONE}")),
            ("udp://", format!("\"udp://\" is no upstream, expected {ONE}")),
            ("1.2.3", format!("\"1.2.3\" is no upstream, expected {ONE}")),
            (" 192.0.2.1", format!("\" 192.0.2.1\" is no upstream, expected {ONE}")),
            ("udp://[::1", format!("\"udp://[::1\" is no upstream, expected {ONE}")),
            ("192.0.2.1:70000", "port of \"192.0.2.1:70000\": expected 1 to 65535, found \"70000\"".to_owned()),
            ("[2001:db8::1]:x", "port of \"[2001:db8::1]:x\": expected 1 to 65535, found \"x\"".to_owned()),
            ("udp://192.0.2.1:0", "port of \"udp://192.0.2.1:0\": expected 1 to 65535, found \"0\"".to_owned()),
            ("udp://0.0.0.0", "\"udp://0.0.0.0\" is no server's address, expected a unicast address".to_owned()),
            ("ff02::1", "\"ff02::1\" is no server's address, expected a unicast address".to_owned()),
            ("udp://192.0.2.1/x", format!("\"udp://192.0.2.1/x\" has more than an address, expected {ONE}")),
            ("udp://me@192.0.2.1", format!("\"udp://me@192.0.2.1\" has more than an address, expected {ONE}")),
            ("192.0.2.1#dns.example", "\"192.0.2.1#dns.example\" names a certificate, only tls://, https:// and quic:// have one".to_owned()),
            (
                "tls://192.0.2.1#",
                "\"\" is no name of a certificate, expected a host name such as dns.quad9.net".to_owned(),
            ),
            (
                "tls://192.0.2.1#a b",
                "\"a b\" is no name of a certificate, expected a host name such as dns.quad9.net".to_owned(),
            ),
        ] {
            assert_eq!(parse(text).map_err(|error| error.to_string()), Err(message), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_read_prints_back(text in "((udp|tcp|tls|x)://)?[\\[]?[0-9a-f.:]{0,20}[\\]]?(:[0-9]{0,6})?(#.{0,9})?") {
            if let Ok(upstream) = parse(&text) {
                prop_assert_eq!(parse(&print(&upstream)), Ok(upstream));
            }
        }
    }
}
