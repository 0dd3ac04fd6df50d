//! A certificate for the demo's encrypted listeners, made anew each time and gone with it.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

use crate::cli::Failure;
use crate::listen::tls::Files;

/// What the certificate is for, besides the loopback addresses; a name that nobody registers (RFC 6761).
pub(super) const NAME: &str = "greenlane.test";

/// A folder of our own that holds certificate and key until this is dropped.
pub(super) struct Certificate(PathBuf);

impl Certificate {
    /// Makes a certificate that signs itself, and writes it where only we can read the key.
    pub(super) fn make() -> Result<Self, Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::failed(format!("--tls: making a certificate: {error}"));
        let names = [NAME, "localhost", "127.0.0.1", "::1"].map(str::to_owned);
        let made = rcgen::generate_simple_self_signed(names).map_err(|error| failed(&error))?;
        let folder = std::env::temp_dir().join(format!("greenlane-demo-{:016x}", rand::random::<u64>()));
        fs::DirBuilder::new().mode(0o700).create(&folder).map_err(|error| failed(&error))?;
        let certificate = Self(folder);
        let Files { certificate: chain, key } = certificate.files();
        let write = |path: PathBuf, text: String| {
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(text.as_bytes())
        };
        write(chain, made.cert.pem()).map_err(|error| failed(&error))?;
        write(key, made.signing_key.serialize_pem()).map_err(|error| failed(&error))?;
        Ok(certificate)
    }

    /// Returns where both stand.
    pub(super) fn files(&self) -> Files {
        Files { certificate: self.path(), key: self.0.join("key.pem") }
    }

    /// Returns where the certificate stands.
    pub(super) fn path(&self) -> PathBuf {
        self.0.join("certificate.pem")
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        // What cannot be removed is a certificate that nobody trusts.
        let _ = fs::remove_dir_all(&self.0);
    }
}
