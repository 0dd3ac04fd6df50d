//! `greenlane prefixes`: the set of a running greenlane, as its feeds give it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ureq::http::Uri;

use super::{ConfigFile, Failure, PrefixesArgs};
use crate::config::Config;
use crate::export::format::Format;

/// How long a feed may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The largest body read; a million prefixes as JSON take some 60 MB.
const BODY_BYTES_MAX: u64 = 1 << 30;

/// Fetches and prints the set.
pub(super) fn run(file: &ConfigFile, args: &PrefixesArgs) -> Result<(), Failure> {
    let page = match args.format {
        format if Format::PREFIXES.contains(&format) => format!("prefixes.{}", format.name()),
        feed => format!("feeds/{}.txt", feed.name()),
    };
    let base = match &args.url {
        Some(url) => url.clone(),
        None => base_url(&file.load()?)?,
    };
    let mut query = Vec::new();
    query.extend(args.family.as_ref().map(|family| format!("family={family}")));
    query.extend(args.app.as_ref().map(|apps| format!("app={}", percent_encoded(apps))));
    query.extend(args.origin.as_ref().map(|origin| format!("origin={}", percent_encoded(origin))));
    let url = format!("{base}/{page}{}{}", if query.is_empty() { "" } else { "?" }, query.join("&"));
    super::print(get(&url)?)
}

/// Reads the URL of a web listener; returns it without a slash at its end.
pub(super) fn read_url(text: &str) -> Result<String, &'static str> {
    let is_base = |uri: &Uri| {
        uri.scheme_str() == Some("http") && uri.host().is_some_and(|host| !host.is_empty()) && uri.path() == "/"
    };
    match text.parse::<Uri>() {
        Ok(uri) if is_base(&uri) && uri.query().is_none() => Ok(text.trim_end_matches('/').to_owned()),
        _ => Err("expected http://ADDRESS:PORT, such as http://127.0.0.1:8053"),
    }
}

/// Returns the URL of the configured web listener.
pub(super) fn base_url(config: &Config) -> Result<String, Failure> {
    let Some(addr) = config.web.listen else {
        return Err(Failure::usage("listen.web: is off, so there is nothing to ask; name a listener with --url"));
    };
    // A listener on all addresses is asked on loopback, where everything is open.
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::from(std::net::Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    Ok(format!("http://{}", SocketAddr::new(ip, addr.port())))
}

/// Fetches a page; the server's own line says why if it does not give it.
pub(super) fn get(url: &str) -> Result<String, Failure> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(PATIENCE))
        .http_status_as_error(false)
        .proxy(None)
        .build()
        .into();
    let unreachable = |error: ureq::Error| {
        Failure::failed(format!("{url}: {error}: is greenlane running there? `listen.web` says where it listens"))
    };
    let mut response = agent.get(url).call().map_err(unreachable)?;
    let status = response.status();
    let body = response.body_mut().with_config().limit(BODY_BYTES_MAX).read_to_string().map_err(unreachable)?;
    if status.is_success() { Ok(body) } else { Err(Failure::failed(format!("{url}: {status}: {}", first_line(&body)))) }
}

/// Returns the first line of what a server says, cut and escaped: it may be any server.
fn first_line(body: &str) -> String {
    const SHOWN_MAX: usize = 200;
    body.lines().next().unwrap_or_default().chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect()
}

/// The same from asynchronous code.
pub(super) async fn fetch(url: &str) -> Result<String, Failure> {
    let url = url.to_owned();
    tokio::task::spawn_blocking(move || get(&url)).await.map_err(Failure::failed)?
}

/// Escapes what a query value must not hold as it stands (RFC 3986 §3.4).
pub(super) fn percent_encoded(text: &str) -> String {
    let mut encoded = String::new();
    for octet in text.bytes() {
        match octet {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b',' | b':' => {
                encoded.push(char::from(octet));
            }
            _ => encoded.push_str(&format!("%{octet:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_values_are_escaped() {
        assert_eq!(percent_encoded("zoom,slack"), "zoom,slack");
        assert_eq!(percent_encoded("a&b=c d\\"), "a%26b%3Dc%20d%5C");
    }

    #[test]
    fn a_listener_on_all_addresses_is_asked_on_loopback() {
        let mut config = Config::default();
        config.web.listen = Some("0.0.0.0:80".parse().unwrap());
        assert_eq!(base_url(&config).unwrap(), "http://127.0.0.1:80");
        config.web.listen = Some("[::]:80".parse().unwrap());
        assert_eq!(base_url(&config).unwrap(), "http://[::1]:80");
        config.web.listen = None;
        assert_eq!(base_url(&config).unwrap_err().code, 2);
    }
}
