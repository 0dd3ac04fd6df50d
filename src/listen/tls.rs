//! The certificate of encrypted listeners: read, checked, swapped while they run (RFC 8310, RFC 9325).
//!
//! A [`Pair`] is a certificate chain and its key, read from PEM files and known to belong together. [`Identity`] holds the
//! one in force; every listener's `rustls` configuration asks it at each handshake, so that a new pair counts from the next
//! handshake on and no connection is cut. [`Identity::watch`] looks at the files every second, whatever put them there (a
//! rename, a symbolic link that points elsewhere, a mounted secret); two files are seldom replaced at once, so they are read
//! when they have been the same for one look. A pair that cannot be used leaves the old one in force, and that is said once.
//!
//! TLS 1.2 and 1.3 (QUIC: 1.3); tickets are kept by the clients, so that a session costs no memory here; no early data.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ProducesTickets, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, SupportedProtocolVersion};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::name::Name;

/// How often the files are looked at.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// How long a client may take for its handshake.
pub(super) const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(5);

/// Where certificate and key stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The certificate and its chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// Why a certificate and its key cannot be used; the text starts with the key of the configuration.
#[derive(Debug, Error)]
pub enum PairError {
    /// The chain cannot be read.
    #[error("tls.certificate: {}: {reason}; expected the certificate and its chain in PEM", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The key cannot be read.
    #[error("tls.key: {}: {reason}; expected the private key in PEM, readable by the user that greenlane runs as", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong; never the key itself.
        reason: String,
    },
    /// The key belongs to another certificate.
    #[error("tls.key: {}: is not the key of the certificate in {}; expected the two that were made together", key.display(), certificate.display())]
    Apart {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// TLS cannot be set up.
    #[error("tls: {0}")]
    Tls(#[from] rustls::Error),
}

/// A certificate chain with its key.
#[derive(Clone, Debug)]
pub struct Pair {
    certified: Arc<CertifiedKey>,
    names: Vec<Name>,
}

impl Pair {
    /// Reads and checks the two files.
    ///
    /// # Errors
    /// [`PairError`] for the first file that cannot be used.
    pub fn load(files: &Files) -> Result<Self, PairError> {
        let Files { certificate, key } = files;
        let broken = |reason: String| PairError::Certificate { path: certificate.clone(), reason };
        let text = fs::read(certificate).map_err(|error| broken(format!("cannot be read: {error}")))?;
        let chain = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| broken(format!("no PEM: {error}")))?;
        let Some(leaf) = chain.first() else { return Err(broken("no certificate in it".to_owned())) };
        let parsed = webpki::EndEntityCert::try_from(leaf);
        let parsed = parsed.map_err(|error| broken(format!("the first certificate is none: {error}")))?;
        // One for all names below another says nothing of where we are.
        let names = parsed.valid_dns_names().filter_map(|name| Name::parse(name).ok()).filter(|name| !is_wild(name));
        let names = names.collect();
        let key_der = read_key(key)?;
        match CertifiedKey::from_der(chain, key_der, &default_provider()) {
            Ok(certified) => Ok(Self { certified: Arc::new(certified), names }),
            Err(rustls::Error::InconsistentKeys(_)) => {
                Err(PairError::Apart { certificate: certificate.clone(), key: key.clone() })
            }
            Err(error) => Err(PairError::Key { path: key.clone(), reason: error.to_string() }),
        }
    }

    /// Returns the names that the certificate is for, in its order; without those that start with `*`.
    pub fn names(&self) -> &[Name] {
        &self.names
    }
}

fn is_wild(name: &Name) -> bool {
    name.as_wire().starts_with(b"\x01*")
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, PairError> {
    let broken = |reason: String| PairError::Key { path: path.to_owned(), reason };
    let text = fs::read(path).map_err(|error| broken(format!("cannot be read: {error}")))?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => broken("no private key in it".to_owned()),
        error => broken(format!("no PEM: {error}")),
    })
}

/// What a listener speaks inside TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Dot,
    Doh,
    Doq,
}

impl Use {
    /// The protocols by the names of IANA's ALPN registry. A client of DoT may offer none (RFC 7858 knows no ALPN).
    fn alpn(self) -> &'static [&'static [u8]] {
        match self {
            Self::Dot => &[b"dot"],
            Self::Doh => &[b"h2", b"http/1.1"],
            Self::Doq => &[b"doq"],
        }
    }

    fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        static SINCE_12: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
        static SINCE_13: [&SupportedProtocolVersion; 1] = [&TLS13];
        match self {
            Self::Dot | Self::Doh => &SINCE_12,
            Self::Doq => &SINCE_13,
        }
    }
}

/// The pair in force, shared by all listeners.
#[derive(Debug)]
pub struct Identity {
    files: ArcSwap<Files>,
    pair: Arc<InForce>,
    provider: Arc<CryptoProvider>,
    /// Keys of tickets, which change by themselves.
    tickets: Arc<dyn ProducesTickets>,
}

/// What handshakes ask.
#[derive(Debug)]
struct InForce(ArcSwapOption<Pair>);

impl ResolvesServerCert for InForce {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load().as_ref().map(|pair| Arc::clone(&pair.certified))
    }
}

impl Identity {
    /// Reads the pair.
    ///
    /// # Errors
    /// As [`Pair::load`]; [`PairError::Tls`] if the system has no randomness.
    pub fn load(files: Files) -> Result<Self, PairError> {
        let pair = Pair::load(&files)?;
        Ok(Self {
            files: ArcSwap::from_pointee(files),
            pair: Arc::new(InForce(ArcSwapOption::from_pointee(pair))),
            provider: Arc::new(default_provider()),
            tickets: Ticketer::new()?,
        })
    }

    /// Returns the names that the certificate in force is for.
    pub fn names(&self) -> Vec<Name> {
        self.pair.0.load().as_ref().map(|pair| pair.names.clone()).unwrap_or_default()
    }

    /// Puts a pair in force, and looks after its files from now on.
    pub fn put(&self, pair: Pair, files: &Files) {
        self.files.store(Arc::new(files.clone()));
        self.pair.0.store(Some(Arc::new(pair)));
    }

    /// Makes the TLS side of a listener.
    pub(super) fn server(&self, of: Use) -> Result<ServerConfig, rustls::Error> {
        let builder = ServerConfig::builder_with_provider(Arc::clone(&self.provider));
        let resolver: Arc<dyn ResolvesServerCert> = Arc::clone(&self.pair) as _;
        let mut config =
            builder.with_protocol_versions(of.versions())?.with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols = of.alpn().iter().map(|name| name.to_vec()).collect();
        config.ticketer = Arc::clone(&self.tickets);
        // Sessions in memory are for clients of TLS 1.2 that take no tickets; they shake hands anew.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(config)
    }

    /// Looks after the files until `stop`; calls `swapped` after each swap.
    pub async fn watch(&self, swapped: impl Fn(), stop: CancellationToken) {
        let mut in_force = self.stamps();
        let mut last = in_force;
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_PAUSE) => {}
                () = stop.cancelled() => return,
            }
            let now = self.stamps();
            let is_quiet = std::mem::replace(&mut last, now) == now;
            if now == in_force || !is_quiet {
                continue;
            }
            in_force = now;
            let files = self.files.load_full();
            match Pair::load(&files) {
                Ok(pair) => {
                    self.pair.0.store(Some(Arc::new(pair)));
                    swapped();
                    tracing::info!("a new certificate is in force: {}", files.certificate.display());
                }
                Err(error) => tracing::error!("the old certificate stays in force: {error}"),
            }
        }
    }

    /// What tells one content of the files from another without reading it.
    fn stamps(&self) -> [Option<Stamp>; 2] {
        let files = self.files.load();
        [&files.certificate, &files.key].map(|path| Stamp::of(path))
    }
}

/// What the system tells of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    len: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt as _;
        let metadata = fs::metadata(path).ok()?;
        Some(Self { inode: metadata.ino(), len: metadata.len(), modified: metadata.modified().ok() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn files(&self) -> Files {
            Files { certificate: self.0.path().join("chain.pem"), key: self.0.path().join("key.pem") }
        }

        /// Writes a new pair for these names and returns the certificate.
        fn write(&self, names: &[&str]) -> CertificateDer<'static> {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            let made = rcgen::generate_simple_self_signed(names).unwrap();
            fs::write(self.files().certificate, made.cert.pem()).unwrap();
            fs::write(self.files().key, made.signing_key.serialize_pem()).unwrap();
            made.cert.der().clone()
        }
    }

    fn shown(identity: &Identity) -> CertificateDer<'static> {
        identity.pair.0.load().as_ref().unwrap().certified.cert[0].clone()
    }

    #[test]
    fn names_are_those_of_the_certificate_but_for_wildcards() {
        let folder = Folder::new();
        folder.write(&["*.example.net", "dns.example.net", "192.0.2.1", "other.example"]);
        let names: Vec<String> = Pair::load(&folder.files()).unwrap().names().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["dns.example.net", "other.example"]);
    }

    #[test]
    fn what_cannot_be_used_is_named_with_its_file() {
        let folder = Folder::new();
        let files = folder.files();
        let told = || Pair::load(&files).unwrap_err().to_string();
        assert!(told().starts_with(&format!("tls.certificate: {}: cannot be read: ", files.certificate.display())));
        folder.write(&["dns.example.net"]);
        let key = fs::read(&files.key).unwrap();
        fs::write(&files.key, "nothing\n").unwrap();
        assert!(told().starts_with(&format!("tls.key: {}: no private key in it", files.key.display())), "{}", told());
        fs::remove_file(&files.key).unwrap();
        assert!(told().starts_with(&format!("tls.key: {}: cannot be read: ", files.key.display())));
        folder.write(&["dns.example.net"]);
        fs::write(&files.key, key).unwrap();
        assert!(told().contains("is not the key of the certificate in "), "{}", told());
        fs::write(&files.certificate, "nothing\n").unwrap();
        assert!(told().contains(": no certificate in it; expected "), "{}", told());
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_pair_is_put_in_force_and_a_bad_one_is_not() {
        let folder = Folder::new();
        let first = folder.write(&["dns.example.net"]);
        let identity = Arc::new(Identity::load(folder.files()).unwrap());
        let (stop, swaps) = (CancellationToken::new(), Arc::new(std::sync::atomic::AtomicUsize::new(0)));
        let (watching, counting, stopping) = (Arc::clone(&identity), Arc::clone(&swaps), stop.clone());
        let watch = tokio::spawn(async move {
            let swapped = || {
                counting.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            };
            watching.watch(swapped, stopping).await;
        });
        let looks = || tokio::time::sleep(3 * LOOK_PAUSE);
        looks().await;
        assert_eq!(shown(&identity), first);
        let second = folder.write(&["new.example.net"]);
        looks().await;
        assert_eq!(shown(&identity), second);
        assert_eq!(identity.names()[0].to_string(), "new.example.net");
        fs::write(folder.files().key, "half\n").unwrap();
        looks().await;
        assert_eq!(shown(&identity), second, "the old pair stays");
        let third = folder.write(&["third.example.net"]);
        looks().await;
        assert_eq!(shown(&identity), third);
        assert_eq!(swaps.load(std::sync::atomic::Ordering::Relaxed), 2);
        stop.cancel();
        watch.await.unwrap();
    }
}
