//! The one bridge to hickory-server.
//!
//! [`Zones`] is the `RequestHandler` that hickory's listeners call: it answers from zones in memory, read from master
//! files. The upstream of `greenlane demo` and the ordinary upstream of the tests are made of it. hickory's own
//! catalogue would also take dynamic updates and zone transfers; nothing of the kind gets past this adapter.

use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Header, HeaderCounts, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use hickory_proto::serialize::txt::Parser;
use hickory_server::Server;
use hickory_server::net::runtime::{Time, TokioRuntimeProvider};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::store::in_memory::InMemoryZoneHandler;
use hickory_server::zone_handler::{AxfrPolicy, Catalog, MessageResponseBuilder, ZoneType};
use thiserror::Error;
use tokio::net::{TcpListener, UdpSocket};

/// Idle connections of this server are closed after it.
const TCP_TIMEOUT: Duration = Duration::from_secs(30);

/// Answers that one connection may have ready at once.
const TCP_RESPONSES_MAX: usize = 32;

/// Why a zone could not be taken.
#[derive(Debug, Error)]
pub enum ZoneError {
    /// The origin is no domain name.
    #[error("`{0}` is no domain name")]
    Origin(String),
    /// The text is no master file (RFC 1035 §5).
    #[error("zone {origin}: {source}")]
    Text {
        /// The zone.
        origin: String,
        /// What is wrong.
        source: hickory_proto::serialize::txt::ParseError,
    },
    /// The records make no zone, such as one without SOA.
    #[error("zone {origin}: {message}")]
    Records {
        /// The zone.
        origin: String,
        /// What is wrong.
        message: String,
    },
}

/// Zones in memory, behind hickory's request handler.
#[derive(Default)]
pub struct Zones(Catalog);

impl Zones {
    /// Makes a server that knows no zone and refuses every question.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the zone of `origin` from the text of a master file.
    ///
    /// # Errors
    /// See [`ZoneError`]; the zones added before stay.
    pub fn add(&mut self, origin: &str, text: &str) -> Result<(), ZoneError> {
        let name = Name::from_ascii(origin).map_err(|_| ZoneError::Origin(origin.to_owned()))?;
        let (name, records) = Parser::new(text, None, Some(name))
            .parse()
            .map_err(|source| ZoneError::Text { origin: origin.to_owned(), source })?;
        let zone = InMemoryZoneHandler::<TokioRuntimeProvider>::new(
            name.clone(),
            records,
            ZoneType::Primary,
            AxfrPolicy::Deny,
        )
        .map_err(|message| ZoneError::Records { origin: origin.to_owned(), message })?;
        self.0.upsert(name.into(), vec![Arc::new(zone)]);
        Ok(())
    }

    /// Serves the zones on both sockets until the server is dropped or shut down.
    pub fn serve(self, udp: UdpSocket, tcp: TcpListener) -> Server<Self> {
        let mut server = Server::new(self);
        server.register_socket(udp);
        server.register_listener(tcp, TCP_TIMEOUT, TCP_RESPONSES_MAX);
        server
    }
}

#[async_trait::async_trait]
impl RequestHandler for Zones {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut response: R) -> ResponseInfo {
        let is_transfer = request
            .queries
            .queries()
            .iter()
            .any(|query| matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR));
        let refused = match request.metadata.op_code {
            _ if request.metadata.message_type != MessageType::Query => Some(ResponseCode::FormErr),
            OpCode::Query if is_transfer => Some(ResponseCode::Refused),
            OpCode::Query => None,
            _ => Some(ResponseCode::NotImp),
        };
        let Some(rcode) = refused else { return self.0.handle_request::<R, T>(request, response).await };
        let message = MessageResponseBuilder::from_message_request(request).error_msg(&request.metadata, rcode);
        match response.send_response(message).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!("refusing a request: {error}");
                let mut metadata = Metadata::new(request.metadata.id, MessageType::Response, OpCode::Query);
                metadata.response_code = ResponseCode::ServFail;
                ResponseInfo::from(Header { metadata, counts: HeaderCounts::default() })
            }
        }
    }
}
