//! The URL of a cluster: `redis://` or `rediss://`, user, password, host, port, database.

use std::net::IpAddr;

use redis::{ConnectionAddr, IntoConnectionInfo};
use thiserror::Error;

use super::Password;

/// Why a text is no URL of a cluster. None repeats the text, which may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UrlError {
    /// It is malformed.
    #[error("expected rediss://[USER[:PASSWORD]@]HOST[:PORT][/DATABASE], found something else")]
    Malformed,
    /// It asks not to check the certificate.
    #[error(
        "expected no `#`: the certificate is always checked; name a certificate to trust with store.cluster-ca-file"
    )]
    Fragment,
    /// It leaves the host in the clear.
    #[error("expected rediss:// beyond loopback, found redis://; store.insecure = true allows it")]
    InTheClear,
}

/// What an URL says.
#[derive(Debug, PartialEq)]
pub(super) struct Url {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) is_tls: bool,
    pub(super) user: Option<String>,
    pub(super) password: Password,
    pub(super) db: i64,
}

impl Url {
    pub(super) fn parse(text: &str, is_insecure: bool) -> Result<Self, UrlError> {
        let (scheme, rest) = text.split_once("://").ok_or(UrlError::Malformed)?;
        let is_tls = scheme.eq_ignore_ascii_case("rediss");
        if rest.contains('#') {
            return Err(UrlError::Fragment);
        }
        // The library knows of TLS only when it brings its own.
        let info = format!("redis://{rest}").as_str().into_connection_info().map_err(|_| UrlError::Malformed)?;
        let ConnectionAddr::Tcp(host, port) = info.addr() else { return Err(UrlError::Malformed) };
        let settings = info.redis_settings();
        let password = settings.password().map_or(Password::None, |text| Password::Given(text.to_owned()));
        let user = settings.username().map(str::to_owned);
        let (host, port, db) = (host.trim_matches(['[', ']']).to_owned(), *port, settings.db());
        if host.is_empty() || db < 0 {
            return Err(UrlError::Malformed);
        }
        if !is_tls && !is_insecure && !is_loopback(&host) {
            return Err(UrlError::InTheClear);
        }
        Ok(Self { host, port, is_tls, user, password, db })
    }
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|addr| addr.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_is_read_whole() {
        let url = Url::parse("rediss://gl%20a:p%40ss@valkey.corp.example:7000/3", false).unwrap();
        assert_eq!((url.host.as_str(), url.port, url.is_tls, url.db), ("valkey.corp.example", 7000, true, 3));
        assert_eq!(url.user.as_deref(), Some("gl a"));
        assert!(url.password == Password::Given("p@ss".to_owned()));
        let url = Url::parse("redis://[::1]", false).unwrap();
        assert_eq!((url.host.as_str(), url.port, url.is_tls), ("::1", 6379, false));
        assert!(url.password == Password::None && url.user.is_none());
        let url = Url::parse("rediss://me@h", false).unwrap();
        assert!(url.user.as_deref() == Some("me") && url.password == Password::None);
    }

    #[test]
    fn clear_text_stays_on_loopback() {
        let parse = |text, insecure| Url::parse(text, insecure).map(|_| ()).unwrap_err();
        assert_eq!(parse("redis://10.0.0.1", false), UrlError::InTheClear);
        assert_eq!(parse("redis://localhost.example", false), UrlError::InTheClear);
        assert_eq!(parse("rediss://h/#insecure", true), UrlError::Fragment);
        assert_eq!(parse("redis:///0", true), UrlError::Malformed);
        assert_eq!(parse("redis://h/x", true), UrlError::Malformed);
        for text in ["redis://127.0.0.1:1", "redis://localhost", "redis://[::ffff:127.0.0.1]"] {
            assert!(Url::parse(text, false).is_ok(), "{text}");
        }
        assert!(Url::parse("redis://10.0.0.1", true).is_ok());
    }
}
