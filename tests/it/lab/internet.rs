//! The hosts out there: one TLS server on all their addresses, the authority that vouches for it, and a name server.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::netns::Place;
use crate::upstream::{Act, Asked, Upstream};

/// Somebody who signs certificates.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pub(super) pem: String,
    pub(super) certificate: CertificateDer<'static>,
}

impl Authority {
    pub(super) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, format!("{name} Authority"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let own = params.self_signed(&key).unwrap();
        Self { issuer: Issuer::new(params, key), pem: own.pem(), certificate: own.der().clone() }
    }

    pub(super) fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }
}

/// The TLS server; its connections end with it.
pub(super) struct Internet {
    pub(super) authority: Authority,
    /// What it shows to clients.
    pub(super) certificate: CertificateDer<'static>,
    _tasks: JoinSet<()>,
}

impl Internet {
    /// Listens on port 443 of every address of a place, for every name below `listed.example` and `other.example`.
    pub(super) fn start(place: &Place) -> Self {
        let authority = Authority::new("Internet");
        let names = ["*.listed.example", "*.other.example"].map(str::to_owned);
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &authority.issuer).unwrap();
        let certificate = certificate.der().clone();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .unwrap();
        let listener = place.enter(|| std::net::TcpListener::bind("[::]:443").unwrap());
        listener.set_nonblocking(true).unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(TcpListener::from_std(listener).unwrap(), TlsAcceptor::from(Arc::new(config))));
        Self { authority, certificate, _tasks: tasks }
    }
}

/// Starts the name server of a place.
pub(super) fn upstream(place: &Place, script: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> Upstream {
    let (udp, tcp) = place.enter(|| {
        let addr = "192.0.2.53:53";
        (std::net::UdpSocket::bind(addr).unwrap(), std::net::TcpListener::bind(addr).unwrap())
    });
    udp.set_nonblocking(true).unwrap();
    tcp.set_nonblocking(true).unwrap();
    Upstream::over(UdpSocket::from_std(udp).unwrap(), TcpListener::from_std(tcp).unwrap(), script)
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor) {
    let mut connections = JoinSet::new();
    let mut number = 0;
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        number += 1;
        connections.spawn(answer(stream, acceptor.clone(), number));
        while connections.try_join_next().is_some() {}
    }
}

/// Answers each request with the numbers of the connection and of the request in it.
async fn answer(stream: TcpStream, acceptor: TlsAcceptor, connection: usize) {
    let Ok(mut stream) = acceptor.accept(stream).await else { return };
    let mut came = Vec::new();
    let mut room = [0; 4096];
    let mut request = 0;
    while let Ok(len @ 1..) = stream.read(&mut room).await {
        came.extend_from_slice(&room[..len]);
        while let Some(end) = came.windows(4).position(|four| four == b"\r\n\r\n") {
            came.drain(..end + 4);
            request += 1;
            let body = format!("{connection}.{request}");
            let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            if stream.write_all(reply.as_bytes()).await.is_err() || stream.flush().await.is_err() {
                return;
            }
        }
    }
}
