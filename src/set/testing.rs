//! Small sets for the tests of this part.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use super::{Draft, Host, NameRecord, Need, Session, Sighting, StaticEntry, Times};
use crate::catalogue::{AppId, Tag, TagApp};
use crate::clock::Timestamp;
use crate::metrics::Registry;
use crate::source::Location;

pub(crate) const START: Timestamp = Timestamp::from_secs(1_800_000_000);

/// Returns the `n`th address of a small space.
pub(crate) fn addr(n: u16, is_v4: bool) -> IpAddr {
    if is_v4 {
        Ipv4Addr::from_bits(0xc000_0000 | u32::from(n)).into()
    } else {
        Ipv6Addr::from_bits((0x2001_0db8_u128 << 96) | u128::from(n)).into()
    }
}

/// Makes a name wanted by these apps.
pub(crate) fn record(name: &str, apps: &[&str]) -> Arc<NameRecord> {
    let hit = |app: &&str| TagApp { app: AppId::new(*app), trigger: name.into(), location: Location::file(*app) };
    Arc::new(NameRecord::new(name.parse().unwrap(), Tag::new(apps.iter().map(hit).collect::<Vec<_>>())))
}

/// Makes a sighting with a TTL of a minute, a hold of ten and five of grace.
pub(crate) fn sighting(addr: IpAddr, record: &Arc<NameRecord>, now: Timestamp) -> Sighting {
    let need = Need::new(now, Duration::from_secs(60), Duration::from_secs(600), Duration::from_secs(300));
    Sighting::new(addr, Arc::clone(record), now, Times::from(need))
}

/// Makes a host of one sighting.
pub(crate) fn host(addr: IpAddr) -> Host {
    Host::new(Arc::new(sighting(addr, &record("one.test", &["one"]), START)))
}

/// Makes a static entry.
pub(crate) fn entry(prefix: &str, apps: &[&str]) -> StaticEntry {
    StaticEntry { prefix: prefix.parse().unwrap(), apps: apps.iter().map(|app| AppId::new(*app)).collect() }
}

/// Makes an empty set.
pub(crate) fn draft() -> Draft {
    Draft::new(Session(7), START, &Registry::new())
}
