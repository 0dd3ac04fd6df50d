//! Connections to the engine: TCP, TLS if wanted, and a bound on what comes.
//!
//! TLS is that of the rest of greenlane. The password is read from its file for each connection, so that it can be
//! changed without a restart.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use prometheus::IntCounter;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisConnectionInfo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::engine::EngineError;
use super::{Options, OptionsError, Password};

/// How long it may take until a connection stands.
const CONNECT_PATIENCE: Duration = Duration::from_secs(4);

/// The octets that may come while a connection is set up.
const SETUP_OCTETS_MAX: u64 = 1 << 20;

/// The longest password in a file.
const PASSWORD_LEN_MAX: usize = 4096;

/// Opens connections.
#[derive(Debug)]
pub(super) struct Connector {
    host: String,
    port: u16,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    user: Option<String>,
    password: Password,
    db: i64,
    octets_in: IntCounter,
    octets_out: IntCounter,
}

/// What may still come over a connection; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Allowance(Arc<AtomicU64>);

impl Allowance {
    /// Lets so many octets come from now on.
    pub(super) fn reset(&self, octets: u64) {
        self.0.store(octets, Ordering::Relaxed);
    }
}

impl Connector {
    /// Takes the options; files that they name are read.
    pub(super) fn new(options: &Options, octets: [IntCounter; 2]) -> Result<Self, OptionsError> {
        read_password(&options.password)?;
        let tls = match options.is_tls {
            true => Some((tls_config(options.ca_file.as_deref())?, server_name(&options.host)?)),
            false => None,
        };
        let [octets_in, octets_out] = octets;
        Ok(Self {
            host: options.host.clone(),
            port: options.port,
            tls,
            user: options.user.clone(),
            password: options.password.clone(),
            db: options.db,
            octets_in,
            octets_out,
        })
    }

    /// Opens a connection whose replies may take `patience`. It closes once it is dropped.
    pub(super) async fn connect(&self, patience: Duration) -> Result<(MultiplexedConnection, Allowance), EngineError> {
        let connecting = tokio::time::timeout(CONNECT_PATIENCE, self.connect_once(patience));
        connecting.await.map_err(|_| EngineError::Silent(CONNECT_PATIENCE.as_secs()))?
    }

    async fn connect_once(&self, patience: Duration) -> Result<(MultiplexedConnection, Allowance), EngineError> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            None => self.log_in(stream, patience).await,
            Some((config, name)) => {
                let stream = TlsConnector::from(Arc::clone(config)).connect(name.clone(), stream).await?;
                self.log_in(stream, patience).await
            }
        }
    }

    async fn log_in<S>(&self, stream: S, patience: Duration) -> Result<(MultiplexedConnection, Allowance), EngineError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let allowance = Allowance(Arc::new(AtomicU64::new(SETUP_OCTETS_MAX)));
        let stream = Metered {
            stream,
            allowance: allowance.clone(),
            octets_in: self.octets_in.clone(),
            octets_out: self.octets_out.clone(),
        };
        let mut info = RedisConnectionInfo::default().set_db(self.db).set_skip_set_lib_name();
        if let Some(user) = &self.user {
            info = info.set_username(user);
        }
        let password = read_password(&self.password).map_err(|error| EngineError::Secret(error.to_string()))?;
        if let Some(password) = password {
            info = info.set_password(password);
        }
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(patience));
        let (connection, driver) = MultiplexedConnection::new_with_config(&info, stream, config).await?;
        // It ends with the last handle to the connection.
        tokio::spawn(driver);
        Ok((connection, allowance))
    }
}

/// Returns the password to log in with.
fn read_password(password: &Password) -> Result<Option<String>, OptionsError> {
    let path = match password {
        Password::None => return Ok(None),
        Password::Given(text) => return Ok(Some(text.clone())),
        Password::File(path) => path,
    };
    let wrong = |reason: &str| OptionsError::PasswordFile { path: path.clone(), reason: reason.to_owned() };
    let octets = read_plain(path).map_err(|error| wrong(&error.to_string()))?;
    let line = octets.split(|octet| *octet == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    match std::str::from_utf8(line) {
        Ok("") => Err(wrong("its first line is empty, expected the password there")),
        Ok(line) if line.len() <= PASSWORD_LEN_MAX => Ok(Some(line.to_owned())),
        Ok(_) => Err(wrong("its first line is longer than any password")),
        Err(_) => Err(wrong("its first line is no text")),
    }
}

/// Reads the head of a plain file. A pipe or device would keep us waiting.
fn read_plain(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read;
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("is no plain file"));
    }
    let mut octets = Vec::new();
    std::fs::File::open(path)?.take(PASSWORD_LEN_MAX as u64 + 2).read_to_end(&mut octets)?;
    Ok(octets)
}

fn tls_config(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, OptionsError> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(path) = ca_file {
        let wrong = |reason: String| OptionsError::CaFile { path: PathBuf::from(path), reason };
        let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let read = read.map_err(|error| wrong(error.to_string()))?;
        let (added, _) = roots.add_parsable_certificates(read);
        if added == 0 {
            return Err(wrong("no certificate in it".to_owned()));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| OptionsError::Tls(error.to_string()))?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

fn server_name(host: &str) -> Result<ServerName<'static>, OptionsError> {
    ServerName::try_from(host.to_owned()).map_err(|_| OptionsError::Tls(format!("no certificate can be for {host}")))
}

/// A stream that counts, and ends when more comes than is allowed.
struct Metered<S> {
    stream: S,
    allowance: Allowance,
    octets_in: IntCounter,
    octets_out: IntCounter,
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        let came = (buffer.filled().len() - before) as u64;
        this.octets_in.inc_by(came);
        let left = this.allowance.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(came));
        Poll::Ready(match left {
            Ok(_) => Ok(()),
            Err(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "a reply is longer than any of a greenlane")),
        })
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write(cx, octets))?;
        this.octets_out.inc_by(written as u64);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
