//! What the tests of the store share.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::clock::Timestamp;
use crate::set::outlet::Kept;

/// A sighting as it is granted at `now`: told for a minute, ends in 15, granted for 25.
pub(super) fn kept(host: u32, name: &str, now: Timestamp) -> Kept {
    let after = |secs| now.after(Duration::from_secs(secs));
    Kept {
        addr: IpAddr::V4(Ipv4Addr::from_bits(host)),
        name: name.parse().unwrap(),
        first_seen: now,
        last_seen: now,
        told_until: after(60),
        end: after(900),
        granted: after(1500),
    }
}
