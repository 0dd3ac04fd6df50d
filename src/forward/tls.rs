//! The TLS side of encrypted upstreams: whom to trust and what name to expect (RFC 8310 §8.1, strict privacy).
//!
//! Certificates are checked against the roots of Mozilla's programme, which are built in, and against those that the
//! environment adds. There is no way to switch the check off: an upstream whose certificate fails is not asked.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use hyper::Uri;
use rustls::RootCertStore;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};

use super::link::Dial;
use super::{OptionsError, Protocol, ROOTS_VARIABLE, Upstream, https, quic};

/// How many sessions a protocol keeps to resume.
const SESSIONS_MAX: usize = 64;

/// Returns what the certificate must be for: the name after `#`, else the address.
fn server_name(upstream: &Upstream) -> Result<ServerName<'static>, OptionsError> {
    let Some(name) = &upstream.tls_name else {
        return Ok(ServerName::IpAddress(upstream.addr.ip().into()));
    };
    ServerName::try_from(name.clone())
        .map_err(|_| OptionsError::TlsName { upstream: upstream.to_string(), name: name.clone() })
}

/// The TLS side of each encrypted protocol. Sessions are resumed within a protocol, by name (RFC 8446 §2.2).
pub(super) struct Configs {
    tls: Arc<rustls::ClientConfig>,
    https: Arc<rustls::ClientConfig>,
    quic: quinn::ClientConfig,
}

impl Configs {
    /// Makes them, with `roots` beside the built-in ones.
    pub(super) fn new(roots: Vec<CertificateDer<'static>>) -> Result<Self, OptionsError> {
        let tls = client_config(roots)?;
        let quic = quic::client_config(speaking(quic::ALPN, &tls))?;
        Ok(Self { https: Arc::new(speaking(https::ALPN, &tls)), tls: Arc::new(tls), quic })
    }

    /// Returns how `upstream` is connected to.
    pub(super) fn dial(&self, upstream: &Upstream) -> Result<Dial, OptionsError> {
        Ok(match upstream.protocol {
            Protocol::Udp | Protocol::Tcp => Dial::Tcp,
            Protocol::Tls => Dial::Tls(server_name(upstream)?, self.tls.clone()),
            Protocol::Https => Dial::Https(server_name(upstream)?, self.https.clone(), uri(upstream)?),
            Protocol::Quic => Dial::Quic(server_name(upstream)?.to_str().into_owned(), self.quic.clone()),
        })
    }
}

/// Returns what is asked over HTTPS: the host is what the certificate is for, as it would be without `#`.
fn uri(upstream: &Upstream) -> Result<Uri, OptionsError> {
    let host = match (&upstream.tls_name, upstream.addr) {
        (Some(name), _) => name.clone(),
        (None, SocketAddr::V4(addr)) => addr.ip().to_string(),
        (None, SocketAddr::V6(addr)) => format!("[{}]", addr.ip()),
    };
    let port = match upstream.addr.port() {
        443 => String::new(),
        port => format!(":{port}"),
    };
    let uri = format!("https://{host}{port}{}", upstream.path());
    uri.parse().map_err(|_| OptionsError::Uri(upstream.to_string()))
}

/// Makes the side of another protocol, which keeps its own sessions.
fn speaking(alpn: &[u8], config: &rustls::ClientConfig) -> rustls::ClientConfig {
    let mut config = config.clone();
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
    config
}

/// Makes the TLS side of encrypted upstreams: built-in roots and `more`, no client certificate, SNI sent.
fn client_config(more: Vec<CertificateDer<'static>>) -> Result<rustls::ClientConfig, rustls::Error> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    // What cannot be used as a root is left out; the handshake that needs it says so.
    roots.add_parsable_certificates(more);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Reads the file that [`ROOTS_VARIABLE`] names; nothing if it is unset or empty.
pub(super) fn roots_from_environment() -> Result<Vec<CertificateDer<'static>>, OptionsError> {
    let path = match std::env::var_os(ROOTS_VARIABLE) {
        Some(path) if !path.is_empty() => PathBuf::from(path),
        _ => return Ok(Vec::new()),
    };
    roots_from_file(path)
}

fn roots_from_file(path: PathBuf) -> Result<Vec<CertificateDer<'static>>, OptionsError> {
    let read = CertificateDer::pem_file_iter(&path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(roots) if roots.is_empty() => Err(OptionsError::Roots { path, reason: "no certificate in it".to_owned() }),
        Ok(roots) => Ok(roots),
        Err(error) => Err(OptionsError::Roots { path, reason: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_of_roots_is_read_whole_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("roots.pem");
        let reason = |path: &PathBuf| roots_from_file(path.clone()).unwrap_err().to_string();
        assert!(reason(&path).starts_with(&format!("SSL_CERT_FILE: {}: ", path.display())));
        std::fs::write(&path, "nothing of the kind\n").unwrap();
        assert!(reason(&path).ends_with("no certificate in it"), "{}", reason(&path));
        let pem = || rcgen::generate_simple_self_signed(vec!["dns.example".to_owned()]).unwrap().cert.pem();
        std::fs::write(&path, pem() + &pem()).unwrap();
        assert_eq!(roots_from_file(path).unwrap().len(), 2);
    }
}
