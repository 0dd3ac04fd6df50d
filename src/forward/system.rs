//! The servers that this host itself would ask: `upstreams = ["system"]`.
//!
//! hickory-resolver knows where each system keeps them (`/etc/resolv.conf` on most Unixes) and reads it. They are asked
//! over UDP, and over TCP where an answer is cut. They are read when the configuration is: a change there takes a
//! reload. A host whose own resolver is greenlane must not say `system`, or it would ask itself.

use std::net::SocketAddr;

use hickory_resolver::config::{ProtocolConfig, ResolverConfig};
use hickory_resolver::system_conf::read_system_conf;
use thiserror::Error;

use super::{Protocol, Upstream};

/// Why the system's servers cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "the system's DNS servers cannot be read ({0}), expected `nameserver` lines in /etc/resolv.conf, or an address"
)]
pub struct SystemError(String);

/// Reads the servers that this host asks, in its order.
///
/// # Errors
/// [`SystemError`] if the system does not tell them, or has none.
pub fn system_upstreams() -> Result<Vec<Upstream>, SystemError> {
    let (config, _) = read_system_conf().map_err(|error| SystemError(error.to_string()))?;
    upstreams_of(&config)
}

fn upstreams_of(config: &ResolverConfig) -> Result<Vec<Upstream>, SystemError> {
    let of_server = |server: &hickory_resolver::config::NameServerConfig| {
        let udp = server.connections.iter().find(|way| matches!(way.protocol, ProtocolConfig::Udp))?;
        Some(Upstream {
            protocol: Protocol::Udp,
            addr: SocketAddr::new(server.ip, udp.port),
            tls_name: None,
            path: None,
        })
    };
    let upstreams: Vec<Upstream> = config.name_servers.iter().filter_map(of_server).collect();
    if upstreams.is_empty() { Err(SystemError("there is none".to_owned())) } else { Ok(upstreams) }
}

#[cfg(test)]
mod tests {
    use hickory_resolver::system_conf::parse_resolv_conf;

    use super::*;

    #[test]
    fn servers_of_a_resolv_conf_are_asked_in_its_order() {
        let text =
            "# made by hand\nsearch corp.example\nnameserver 192.0.2.53\nnameserver 2001:db8::53\noptions edns0\n";
        let (config, _) = parse_resolv_conf(text).unwrap();
        let upstreams = upstreams_of(&config).unwrap();
        let shown: Vec<String> = upstreams.iter().map(|upstream| upstream.addr.to_string()).collect();
        assert_eq!(shown, ["192.0.2.53:53", "[2001:db8::53]:53"]);
        assert!(upstreams.iter().all(|upstream| upstream.protocol == Protocol::Udp));
    }

    #[test]
    fn without_servers_the_error_says_what_is_missing() {
        assert!(parse_resolv_conf("search corp.example\n").is_err(), "hickory-resolver says so itself");
        let error = upstreams_of(&ResolverConfig::default()).unwrap_err().to_string();
        assert!(error.contains("there is none") && error.contains("/etc/resolv.conf"), "{error}");
    }
}
