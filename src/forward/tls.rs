//! The TLS side of encrypted upstreams: whom to trust and what name to expect (RFC 8310 §8.1, strict privacy).
//!
//! Certificates are checked against the roots of Mozilla's programme, which are built in, and against those that the
//! environment adds. There is no way to switch the check off: an upstream whose certificate fails is not asked.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};

use super::{OptionsError, ROOTS_VARIABLE, Upstream};

/// Returns what the certificate must be for: the name after `#`, else the address.
pub(super) fn server_name(upstream: &Upstream) -> Result<ServerName<'static>, OptionsError> {
    let Some(name) = &upstream.tls_name else {
        return Ok(ServerName::IpAddress(upstream.addr.ip().into()));
    };
    ServerName::try_from(name.clone())
        .map_err(|_| OptionsError::TlsName { upstream: upstream.to_string(), name: name.clone() })
}

/// Makes the TLS side of encrypted upstreams: built-in roots and `more`, no client certificate, SNI sent.
pub(super) fn client_config(more: Vec<CertificateDer<'static>>) -> Result<rustls::ClientConfig, rustls::Error> {
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
