//! What a client that asks us in the clear is told of our encrypted listeners (RFC 9461, RFC 9462).
//!
//! A client asks for `_dns.resolver.arpa`, type SVCB. The answer names the resolver as its certificate does, and for each
//! transport the port, the path, and the addresses to go to. Clients take it only if the certificate fits: Windows and
//! Apple's want our address in it, or the name configured beforehand. The same records stand at `_dns.` and the names of
//! the certificate, where whoever was configured with a name looks for the transports.

use std::net::IpAddr;

use crate::name::Name;

/// How long clients keep it; short, since certificates and addresses change.
pub(super) const TTL_SECS: u32 = 300;

/// The name to ask for (RFC 9462 §4).
const DISCOVERY: &str = "_dns.resolver.arpa";

/// SvcParamKeys (RFC 9460 §14.3.2, RFC 9461 §5).
const ALPN: u16 = 1;
const PORT: u16 = 3;
const IPV4_HINT: u16 = 4;
const IPV6_HINT: u16 = 6;
const DOH_PATH: u16 = 7;

/// One transport that we speak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// The protocol by its ALPN name.
    pub alpn: &'static str,
    /// The port.
    pub port: u16,
    /// The URI template's path, for DNS over HTTPS.
    pub path: Option<&'static str>,
    /// Where we are reached.
    pub addresses: Vec<IpAddr>,
}

/// The records, made once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Designated {
    owners: Vec<Name>,
    records: Vec<Vec<u8>>,
}

impl Designated {
    /// Describes the transports in the order of preference. `names` are those of the certificate, the first is the one that
    /// clients expect in it; without any there is nothing that they could check, and nothing is told.
    pub fn new(names: &[Name], ways: &[Way]) -> Self {
        let Some(target) = names.first().filter(|_| !ways.is_empty()) else { return Self::default() };
        let below = names.iter().filter_map(|name| Name::parse(&format!("_dns.{name}")).ok());
        let owners = Name::parse(DISCOVERY).into_iter().chain(below).collect();
        let records = ways.iter().zip(1..).map(|(way, priority)| record(priority, target, way)).collect();
        Self { owners, records }
    }

    /// Returns the RDATA of each record if `name` owns them; never empty.
    pub(super) fn of(&self, name: &Name) -> Option<&[Vec<u8>]> {
        self.owners.contains(name).then_some(&self.records)
    }
}

/// Writes the RDATA of one SVCB record (RFC 9460 §2.2), its parameters in the order of their keys.
fn record(priority: u16, target: &Name, way: &Way) -> Vec<u8> {
    let mut rdata = priority.to_be_bytes().to_vec();
    rdata.extend_from_slice(target.as_wire());
    let mut add = |key: u16, value: &[u8]| {
        rdata.extend_from_slice(&key.to_be_bytes());
        // Every value here is some hundred octets at most.
        rdata.extend_from_slice(&(value.len() as u16).to_be_bytes());
        rdata.extend_from_slice(value);
    };
    let mut alpn = vec![way.alpn.len() as u8];
    alpn.extend_from_slice(way.alpn.as_bytes());
    add(ALPN, &alpn);
    add(PORT, &way.port.to_be_bytes());
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for address in &way.addresses {
        match address {
            IpAddr::V4(v4_address) => v4.extend_from_slice(&v4_address.octets()),
            IpAddr::V6(v6_address) => v6.extend_from_slice(&v6_address.octets()),
        }
    }
    for (key, hints) in [(IPV4_HINT, v4), (IPV6_HINT, v6)] {
        if !hints.is_empty() {
            add(key, &hints);
        }
    }
    if let Some(path) = way.path {
        add(DOH_PATH, path.as_bytes());
    }
    rdata
}
