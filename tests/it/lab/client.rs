//! Who asks greenlane and connects at once, and knows by the certificate who looked on.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::internet::Internet;
use super::proxy::Proxy;
use crate::harness::{PATIENCE, addresses, question, read_frame, send_frame};
use crate::netns::Place;

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// The server's own certificate came.
    Bypassed,
    /// One of the proxy's came.
    Inspected,
}

#[derive(Clone)]
pub(super) struct Client {
    place: Place,
    dns: SocketAddr,
    connector: TlsConnector,
    /// What the servers show.
    certificate: CertificateDer<'static>,
}

impl Client {
    pub(super) fn new(place: &Place, internet: &Internet, proxy: &Proxy) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(internet.authority.certificate.clone()).unwrap();
        roots.add(proxy.authority.certificate.clone()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        // A resumed session shows no certificate.
        config.resumption = rustls::client::Resumption::disabled();
        let connector = TlsConnector::from(Arc::new(config));
        Self {
            place: place.clone(),
            dns: super::DNS.parse().unwrap(),
            connector,
            certificate: internet.certificate.clone(),
        }
    }

    /// The same client with another resolver.
    pub(super) fn with_resolver(mut self, dns: SocketAddr) -> Self {
        self.dns = dns;
        self
    }

    /// Asks over UDP with EDNS.
    pub(super) async fn ask(&self, name: &str, rtype: RecordType) -> Message {
        let socket = self.udp(self.dns).await;
        socket.send(&question(name, rtype).to_vec().unwrap()).await.unwrap();
        let mut reply = vec![0; 65_535];
        let len = timeout(PATIENCE, socket.recv(&mut reply)).await.expect("an answer").unwrap();
        Message::from_vec(&reply[..len]).unwrap()
    }

    /// Asks over TCP with EDNS.
    pub(super) async fn ask_tcp(&self, name: &str, rtype: RecordType) -> Message {
        let mut stream = self.connect(self.dns).await;
        send_frame(&mut stream, &question(name, rtype).to_vec().unwrap()).await;
        Message::from_vec(&read_frame(&mut stream).await.unwrap()).unwrap()
    }

    /// Connects to an address under a name.
    pub(super) async fn open(&self, addr: impl Into<IpAddr>, name: &str) -> Flow {
        let stream = self.connect(SocketAddr::new(addr.into(), 443)).await;
        let server = ServerName::try_from(name.to_owned()).unwrap();
        let handshake = timeout(PATIENCE, self.connector.connect(server, stream)).await;
        let stream = handshake.expect("a handshake in time").unwrap_or_else(|error| panic!("{name}: {error}"));
        let shown = &stream.get_ref().1.peer_certificates().unwrap()[0];
        let seen = if *shown == self.certificate { Seen::Bypassed } else { Seen::Inspected };
        Flow { stream, seen, name: name.to_owned() }
    }

    /// Connects and tells what came of it.
    pub(super) async fn sees(&self, addr: impl Into<IpAddr>, name: &str) -> Seen {
        self.open(addr, name).await.seen
    }

    /// Asks for the address of a name and connects to it at once.
    pub(super) async fn visit(&self, name: &str, rtype: RecordType) -> Seen {
        let told = addresses(&self.ask(name, rtype).await);
        let addr: IpAddr = told.first().unwrap_or_else(|| panic!("{name} has an address")).parse().unwrap();
        self.sees(addr, name).await
    }

    /// A socket that talks to an address.
    pub(super) async fn udp(&self, addr: SocketAddr) -> UdpSocket {
        let socket = self.place.enter(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
        socket.set_nonblocking(true).unwrap();
        let socket = UdpSocket::from_std(socket).unwrap();
        socket.connect(addr).await.unwrap();
        socket
    }

    async fn connect(&self, addr: SocketAddr) -> TcpStream {
        let make = || if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let socket = self.place.enter(make).unwrap();
        let connecting = timeout(PATIENCE, socket.connect(addr)).await;
        connecting.expect("a connection in time").unwrap_or_else(|error| panic!("{addr}: {error}"))
    }
}

/// An open connection.
pub(super) struct Flow {
    stream: TlsStream<TcpStream>,
    pub(super) seen: Seen,
    name: String,
}

impl Flow {
    /// Sends a request; returns which connection of the server it came out of, and which request of that it was.
    pub(super) async fn get(&mut self) -> (u32, u32) {
        let request = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", self.name);
        self.stream.write_all(request.as_bytes()).await.unwrap();
        let mut came = String::new();
        let mut room = [0; 4096];
        loop {
            let len = timeout(PATIENCE, self.stream.read(&mut room)).await.expect("a reply in time").unwrap();
            assert!(len > 0, "{}: the connection ended: {came}", self.name);
            came.push_str(std::str::from_utf8(&room[..len]).unwrap());
            let Some((head, body)) = came.split_once("\r\n\r\n") else { continue };
            assert!(head.starts_with("HTTP/1.1 200"), "{}: {came}", self.name);
            let wanted = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
            if body.len() == wanted.parse::<usize>().unwrap() {
                let (connection, request) = body.split_once('.').unwrap();
                return (connection.parse().unwrap(), request.parse().unwrap());
            }
        }
    }
}
