//! DNS over HTTPS to one upstream (RFC 8484): each question a POST, all of them over one HTTP/2 connection.
//!
//! The id is 0 as RFC 8484 §4.1 asks; what belongs together HTTP tells. Anything but status 200 with a DNS message of
//! at most 65,535 octets fails the try, redirects among them: where questions go is the operator's to say. HTTP/1.1 is
//! not spoken: there one slow answer would hold up all that come after it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prometheus::IntCounter;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use super::connection;
use super::hopes::Broken;
use super::letters::Letters;
use super::link::Lost;
use super::message::{Manner, is_reply, query};
use crate::wire::{MESSAGE_LEN_MAX, Question};

/// What HTTP/2 is called in a handshake.
pub(super) const ALPN: &[u8] = b"h2";

/// What a message is called in HTTP.
const MEDIA_TYPE: &str = "application/dns-message";

/// How long a connection with questions on it may be silent before the peer is asked whether it lives.
const PING_AFTER: Duration = Duration::from_secs(10);

/// How long the peer may take to say so.
const PING_MAX: Duration = Duration::from_secs(5);

/// Octets of headers that are read at most.
const HEADERS_LEN_MAX: u32 = 16 << 10;

/// An HTTP/2 connection.
#[derive(Clone)]
pub(super) struct Https {
    requests: SendRequest<Full<Bytes>>,
    uri: Uri,
    is_retired: Arc<AtomicBool>,
    mismatches: IntCounter,
}

impl Https {
    /// Connects; the certificate must be for `name`, and `uri` is what is asked.
    ///
    /// # Errors
    /// What the system or the handshake says.
    pub(super) async fn connect(
        addr: SocketAddr,
        name: ServerName<'static>,
        config: Arc<rustls::ClientConfig>,
        uri: Uri,
        mismatches: IntCounter,
    ) -> Result<Self, Broken> {
        let stream = TlsConnector::from(config).connect(name, connection::connect(addr).await?).await?;
        if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(Broken("the server speaks no HTTP/2".to_owned()));
        }
        let (requests, running) = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PING_MAX)
            .max_header_list_size(HEADERS_LEN_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| Broken(reason(&error)))?;
        // It ends with the last handle, or tells each request why it failed.
        tokio::spawn(running);
        Ok(Self { requests, uri, is_retired: Arc::default(), mismatches })
    }

    /// Asks and waits for the reply to exactly this question. Safe to cancel: the request is reset.
    ///
    /// # Errors
    /// [`Lost`] as its variants say.
    pub(super) async fn ask(&self, question: &Question, manner: Manner) -> Result<Vec<u8>, Lost> {
        let octets = query(0, question, Letters::ANY, manner);
        let mut request = Request::new(Full::new(Bytes::copy_from_slice(&octets)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        let media_type = HeaderValue::from_static(MEDIA_TYPE);
        request.headers_mut().insert(CONTENT_TYPE, media_type.clone());
        request.headers_mut().insert(ACCEPT, media_type);
        let sent = self.requests.clone().send_request(request).await;
        let response = sent.map_err(|error| Lost::connection(reason(&error)))?;
        let reply = message_in(response).await?;
        if reply.starts_with(&[0, 0]) && is_reply(&reply, question) {
            return Ok(reply);
        }
        self.mismatches.inc();
        Err(Lost::question("the response answers another question"))
    }

    /// Returns whether nothing can be asked over it any more.
    pub(super) fn is_over(&self) -> bool {
        self.is_retired.load(Ordering::Acquire) || self.requests.is_closed()
    }

    /// Lets nothing further be asked over it; what waits goes on waiting.
    pub(super) fn retire(&self) {
        self.is_retired.store(true, Ordering::Release);
    }
}

/// Returns the message in a response.
async fn message_in(response: Response<Incoming>) -> Result<Vec<u8>, Lost> {
    if response.status() != StatusCode::OK {
        return Err(Lost::question(format!("HTTP status {}", response.status().as_u16())));
    }
    let media_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case(MEDIA_TYPE) {
        return Err(Lost::question(format!("the response is no {MEDIA_TYPE}")));
    }
    match Limited::new(response.into_body(), MESSAGE_LEN_MAX).collect().await {
        Ok(body) => Ok(body.to_bytes().into()),
        Err(error) if error.is::<LengthLimitError>() => Err(Lost::question("the response is longer than a message")),
        Err(error) => Err(Lost::connection(reason(&*error))),
    }
}

/// Tells what is wrong, down to the cause: what hyper says itself is only where.
fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
