//! A small DNS client for the demo: one question over UDP or TCP, as any stub would ask it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsCode;
use hickory_proto::rr::rdata::svcb::SvcParamValue;
use hickory_proto::rr::{Name, RData, RecordType};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::wire::Transport;

/// How long the client waits; longer than the server may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What came back.
#[derive(Debug)]
pub(super) struct Reply {
    /// The response code; `NODATA` for an answer without records.
    pub(super) rcode: String,
    /// Names that the chain went through, the last one owning the addresses.
    pub(super) chain: Vec<String>,
    /// Addresses, those of hints included.
    pub(super) addresses: Vec<IpAddr>,
    /// The tag option's text.
    pub(super) tag: Option<String>,
}

/// Why nothing did.
#[derive(Debug, Error)]
pub(super) enum AskError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Silence,
    #[error("{0}")]
    Malformed(String),
}

/// Asks `server` and reads the answer; `tag_code` is the EDNS option that carries tags.
pub(super) async fn ask(
    server: SocketAddr,
    transport: Transport,
    name: &str,
    rtype: RecordType,
    tag_code: u16,
) -> Result<Reply, AskError> {
    let question = question(name, rtype)?;
    let exchange = async {
        match transport {
            Transport::Udp => over_udp(server, &question).await,
            _ => over_tcp(server, &question).await,
        }
    };
    let octets = timeout(PATIENCE, exchange).await.map_err(|_| AskError::Silence)??;
    let message = Message::from_vec(&octets).map_err(|error| AskError::Malformed(error.to_string()))?;
    Ok(read(&message, tag_code))
}

fn question(name: &str, rtype: RecordType) -> Result<Vec<u8>, AskError> {
    let malformed = |error: &dyn std::fmt::Display| AskError::Malformed(error.to_string());
    let mut name = Name::from_ascii(name).map_err(|error| malformed(&error))?;
    name.set_fqdn(true);
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, rtype));
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.edns = Some(edns);
    message.to_vec().map_err(|error| malformed(&error))
}

async fn over_udp(server: SocketAddr, question: &[u8]) -> Result<Vec<u8>, AskError> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut reply = vec![0; 65_535];
    let len = socket.recv(&mut reply).await?;
    reply.truncate(len);
    Ok(reply)
}

async fn over_tcp(server: SocketAddr, question: &[u8]) -> Result<Vec<u8>, AskError> {
    let mut stream = TcpStream::connect(server).await?;
    // One question is far below 64 KiB.
    stream.write_all(&(question.len() as u16).to_be_bytes()).await?;
    stream.write_all(question).await?;
    let mut reply = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut reply).await?;
    Ok(reply)
}

/// The response code as `dig` prints it.
fn rcode(message: &Message) -> String {
    match message.metadata.response_code {
        ResponseCode::NoError => "NODATA".to_owned(),
        ResponseCode::NXDomain => "NXDOMAIN".to_owned(),
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        other => other.to_string(),
    }
}

fn read(message: &Message, tag_code: u16) -> Reply {
    let mut reply = Reply { rcode: rcode(message), chain: Vec::new(), addresses: Vec::new(), tag: None };
    for record in &message.answers {
        match &record.data {
            RData::A(a) => reply.addresses.push(a.0.into()),
            RData::AAAA(aaaa) => reply.addresses.push(aaaa.0.into()),
            RData::CNAME(target) => reply.chain.push(target.0.to_ascii()),
            RData::HTTPS(https) => {
                for (_, value) in &https.0.svc_params {
                    match value {
                        SvcParamValue::Ipv4Hint(hint) => reply.addresses.extend(hint.0.iter().map(|a| IpAddr::V4(a.0))),
                        SvcParamValue::Ipv6Hint(hint) => reply.addresses.extend(hint.0.iter().map(|a| IpAddr::V6(a.0))),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let option = message.edns.as_ref().and_then(|edns| edns.option(EdnsCode::Unknown(tag_code)));
    if let Some(hickory_proto::rr::rdata::opt::EdnsOption::Unknown(_, text)) = option {
        reply.tag = Some(String::from_utf8_lossy(text).into_owned());
    }
    reply
}
