//! What every request passes first, and what every answer carries.
//!
//! Three kinds of access. *Open* endpoints are lists and health: any client that may connect gets them, under whatever
//! name it reaches us and whatever else it sends, since a firewall that is refused once may drop its whole list. To
//! *read* the others, which tell what people look up, takes loopback or a token; to *act*, which is any method that
//! is no reading one, loopback or the admin token; followers acknowledge with what lets them read. On loopback a web page must not get at either through a name that
//! it points there (DNS rebinding): without a token the `Host` has to be an address, `localhost`, or a name of this
//! host.
//!
//! | | peer on loopback | other peer |
//! |---|---|---|
//! | open endpoint, whatever is sent | served | served |
//! | other, a token that suffices | served | served |
//! | other, the read token for an action | as without | 403, `insufficient_scope` |
//! | other, no token or a wrong one | `Host` is ours: served; else 421 | 401; 403 if no token is configured that could do it |
//!
//! A method that is no reading one is refused with 403 to pages of other sites, whatever token comes with it: browsers say
//! where a request comes from in `Origin` and `Sec-Fetch-Site`, and others send neither.
//!
//! A request of HTTP/1.1 without exactly one valid `Host` is answered with 400 (RFC 9112 §3.2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{Method, StatusCode, Version};
use axum::middleware::Next;
use axum::response::Response;
use thiserror::Error;

use super::reply::refused;
use super::state::Web;
use super::token::{Grant, Tokens};

/// Whether the page that a browser sends a request for is of our site (Fetch Metadata).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The address at the other end of the connection; IPv4-mapped addresses are IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peer(pub(super) IpAddr);

/// What a path is for; the metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Prefixes,
    Feeds,
    Domains,
    Delta,
    Watch,
    Ack,
    ShrinkAccept,
    Explain,
    Sightings,
    Apps,
    Stats,
    Metrics,
    Healthz,
    Readyz,
    Index,
    /// No endpoint.
    Other,
}

impl Endpoint {
    fn of(path: &str) -> Self {
        match path {
            "/domains.txt" => Self::Domains,
            "/delta" => Self::Delta,
            "/watch" => Self::Watch,
            super::ACK => Self::Ack,
            super::SHRINK_ACCEPT => Self::ShrinkAccept,
            "/explain" => Self::Explain,
            "/sightings" => Self::Sightings,
            "/apps" => Self::Apps,
            "/stats" => Self::Stats,
            "/metrics" => Self::Metrics,
            "/healthz" => Self::Healthz,
            "/readyz" => Self::Readyz,
            "/" => Self::Index,
            path if path.starts_with("/prefixes.") => Self::Prefixes,
            path if path.starts_with("/feeds/") => Self::Feeds,
            _ => Self::Other,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Prefixes => "prefixes",
            Self::Feeds => "feeds",
            Self::Domains => "domains",
            Self::Delta => "delta",
            Self::Watch => "watch",
            Self::Ack => "ack",
            Self::ShrinkAccept => "shrink_accept",
            Self::Explain => "explain",
            Self::Sightings => "sightings",
            Self::Apps => "apps",
            Self::Stats => "stats",
            Self::Metrics => "metrics",
            Self::Healthz => "healthz",
            Self::Readyz => "readyz",
            Self::Index => "index",
            Self::Other => "other",
        }
    }

    /// Returns what it takes to use it by this method; what is not there is not secret either.
    fn access(self, method: &Method) -> Access {
        match self {
            Self::Prefixes
            | Self::Feeds
            | Self::Domains
            | Self::Metrics
            | Self::Healthz
            | Self::Readyz
            | Self::Other => Access::Open,
            // Whoever may follow may say how far it has come.
            Self::Ack => Access::Read,
            Self::Delta
            | Self::Watch
            | Self::ShrinkAccept
            | Self::Explain
            | Self::Sightings
            | Self::Apps
            | Self::Stats
            | Self::Index => {
                if is_reading(method) {
                    Access::Read
                } else {
                    Access::Act
                }
            }
        }
    }
}

fn is_reading(method: &Method) -> bool {
    [Method::GET, Method::HEAD].contains(method)
}

/// What it takes to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// Nothing.
    Open,
    /// Loopback, or any token.
    Read,
    /// Loopback, or the admin token.
    Act,
}

/// Lets a request pass or answers it, and counts the answer.
pub(super) async fn guard(State(web): State<Arc<Web>>, request: Request, next: Next) -> Response {
    let endpoint = Endpoint::of(request.uri().path());
    let mut response = match admit(&web, endpoint, &request) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.response(),
    };
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin"));
    let status = response.status();
    web.metrics.requests.with_label_values(&[endpoint.name(), status.as_str()]).inc();
    response
}

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
enum Refusal {
    #[error("expected one Host field (RFC 9112 section 3.2)")]
    NoHost,
    #[error("this is served under an address, localhost or this host's own name only")]
    ForeignHost,
    #[error(
        "only loopback may use this, as no token for it is configured; /prefixes.*, /feeds/*, /domains.txt, /metrics, \
         /healthz and /readyz are open"
    )]
    ForeignPeer,
    #[error("from here this takes a token: `Authorization: Bearer …`")]
    NoToken,
    #[error("this is no token of ours")]
    WrongToken,
    #[error("pages of other sites may not do this")]
    ForeignPage,
    #[error("this takes the admin token")]
    OnlyReader,
}

impl Refusal {
    fn status(self) -> StatusCode {
        match self {
            Self::NoHost => StatusCode::BAD_REQUEST,
            Self::ForeignHost => StatusCode::MISDIRECTED_REQUEST,
            Self::ForeignPeer | Self::ForeignPage | Self::OnlyReader => StatusCode::FORBIDDEN,
            Self::NoToken | Self::WrongToken => StatusCode::UNAUTHORIZED,
        }
    }

    /// Returns what the client is challenged to send (RFC 6750 §3).
    fn challenge(self) -> Option<&'static str> {
        match self {
            Self::NoHost | Self::ForeignHost | Self::ForeignPeer | Self::ForeignPage => None,
            Self::NoToken => Some("Bearer realm=\"greenlane\""),
            Self::WrongToken => Some("Bearer realm=\"greenlane\", error=\"invalid_token\""),
            Self::OnlyReader => Some("Bearer realm=\"greenlane\", error=\"insufficient_scope\""),
        }
    }

    fn response(self) -> Response {
        let mut response = refused(self.status(), &self.to_string());
        if let Some(challenge) = self.challenge() {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        response
    }
}

/// Decides whether the request is served.
fn admit(web: &Web, endpoint: Endpoint, request: &Request) -> Result<(), Refusal> {
    let host = host(request)?;
    let access = endpoint.access(request.method());
    if access == Access::Open {
        return Ok(());
    }
    if !is_reading(request.method()) && is_of_foreign_page(request.headers(), host) {
        return Err(Refusal::ForeignPage);
    }
    let by_token = by_token(&web.state.tokens.load(), access, request);
    let is_local = request.extensions().get::<Peer>().is_some_and(|peer| peer.0.is_loopback());
    match by_token {
        Ok(()) => Ok(()),
        Err(_) if is_local && host.is_some_and(|host| is_own(host, &web.host_names)) => Ok(()),
        Err(_) if is_local => Err(Refusal::ForeignHost),
        Err(refusal) => Err(refusal),
    }
}

/// Decides what the token that came with the request is worth.
fn by_token(tokens: &Tokens, access: Access, request: &Request) -> Result<(), Refusal> {
    let is_configured = if access == Access::Act { tokens.can_act() } else { tokens.can_read() };
    match (access, tokens.grant(request.headers())) {
        (Access::Open, _) | (_, Grant::Admin) | (Access::Read, Grant::Read) => Ok(()),
        _ if !is_configured => Err(Refusal::ForeignPeer),
        (Access::Act, Grant::Read) => Err(Refusal::OnlyReader),
        (_, Grant::Absent) => Err(Refusal::NoToken),
        (_, Grant::Wrong) => Err(Refusal::WrongToken),
    }
}

/// Returns whether a browser sends this for a page that did not come from `host`.
fn is_of_foreign_page(headers: &HeaderMap, host: Option<&str>) -> bool {
    let is_own_origin = |origin: &HeaderValue| {
        let authority = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
        authority.zip(host).is_some_and(|((_, authority), host)| authority.eq_ignore_ascii_case(host))
    };
    let is_own_site = |site: &HeaderValue| [&b"same-origin"[..], b"none"].contains(&site.as_bytes());
    !headers.get_all(ORIGIN).iter().all(is_own_origin) || !headers.get_all(SEC_FETCH_SITE).iter().all(is_own_site)
}

/// Returns the host that the request is for: that of an absolute target, else the `Host` field.
fn host(request: &Request) -> Result<Option<&str>, Refusal> {
    let mut lines = request.headers().get_all(HOST).iter();
    let line = match (lines.next(), lines.next()) {
        (None, _) if request.version() == Version::HTTP_11 => return Err(Refusal::NoHost),
        (_, Some(_)) => return Err(Refusal::NoHost),
        (line, None) => line.map(|line| line.to_str().map_err(|_| Refusal::NoHost)).transpose()?,
    };
    Ok(request.uri().authority().map(|authority| authority.as_str()).or(line))
}

/// Returns whether `host`, with or without a port, is an address, `localhost` or one of `names`.
fn is_own(host: &str, names: &[String]) -> bool {
    let Some(host) = without_port(host) else { return false };
    if let Some(inner) = host.strip_prefix('[') {
        return inner.strip_suffix(']').is_some_and(|inner| inner.parse::<Ipv6Addr>().is_ok());
    }
    if host.parse::<Ipv4Addr>().is_ok() {
        return true;
    }
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost") || names.contains(&host)
}

/// Cuts the port off; `None` if what follows the host is no port.
fn without_port(host: &str) -> Option<&str> {
    let port_at = match host.rfind(']') {
        Some(at) => at + 1,
        None => host.find(':').unwrap_or(host.len()),
    };
    let (host, port) = host.split_at(port_at);
    let is_port =
        port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()));
    is_port.then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_hosts_are_addresses_localhost_and_own_names() {
        let names = ["gate".to_owned(), "gate.corp.example".to_owned()];
        for host in [
            "127.0.0.1",
            "127.0.0.1:8053",
            "192.0.2.1:80",
            "[::1]",
            "[::1]:8053",
            "localhost:8053",
            "LOCALHOST",
            "localhost.",
            "a.localhost",
            "Gate:8053",
            "gate.corp.example",
        ] {
            assert!(is_own(host, &names), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:8053",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "notlocalhost",
            "gate.evil.example",
            "127.1",
            "::1",
            "[::1]x",
            "[::1",
            "[localhost]",
            "127.0.0.1:80:80",
            "127.0.0.1:http",
            "user@localhost",
        ] {
            assert!(!is_own(host, &names), "{host}");
        }
    }
}
