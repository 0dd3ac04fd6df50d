//! DNS over HTTPS (RFC 8484), over HTTP/2 and HTTP/1.1: GET and POST at `/dns-query`.
//!
//! | request | status |
//! |---|---|
//! | a DNS message, whatever its answer's rcode | 200 |
//! | no `dns=`, no base64url, an empty message, one that asks nothing | 400 |
//! | another path | 404 |
//! | another method | 405, with `Allow` |
//! | a body that does not come | 408 |
//! | a body above the largest message | 413 |
//! | a body of another type than `application/dns-message` | 415 |
//!
//! `Cache-Control: max-age` is the lowest TTL of the answer (§5.1), so that an HTTP cache keeps no address longer than we
//! say. The id is kept as it was sent; clients send 0 for the sake of such caches. An idle connection is closed as one over
//! TCP is; streams, heads and bodies are bounded.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Front;
use super::meter::Way;
use super::open::{Activity, Seat};
use super::streams::{IDLE, LINGER_MAX};
use crate::clock::Stopwatch;
use crate::pipeline::Tried;
use crate::wire::{self, MESSAGE_LEN_MAX, Transport};

/// Where questions are asked; the one path that discovery names.
pub const PATH: &str = "/dns-query";

/// The media type of a DNS message (RFC 8484 §6).
const DNS_MESSAGE: &str = "application/dns-message";

/// Requests of one connection that are answered at once.
const STREAMS_MAX: u32 = 128;

/// Octets of a request's head; a question in base64 takes some hundred.
const HEAD_LEN_MAX: u32 = 16 << 10;

/// Octets of all bodies of a connection that are on their way to us.
const WINDOW_LEN: u32 = 256 << 10;

/// How long a body may take.
const BODY_TIME_MAX: Duration = Duration::from_secs(5);

/// Serves one connection to its end.
pub(super) async fn converse<S>(
    front: &Front,
    stream: S,
    client: IpAddr,
    seat: &Seat,
    stop: &CancellationToken,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let talk =
        Arc::new(Talk { front: front.clone(), client, activity: seat.activity(), under_way: AtomicUsize::new(0) });
    let serving = Arc::clone(&talk);
    let service = service_fn(move |request| {
        let talk = Arc::clone(&serving);
        async move { Ok::<_, Infallible>(talk.answer(request).await) }
    });
    let builder = builder();
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut stopped = pin!(stop.cancelled());
    let mut look = pin!(sleep(IDLE));
    let mut is_leaving = false;
    loop {
        tokio::select! {
            done = connection.as_mut() => return done.map_err(io::Error::other),
            () = &mut stopped, if !is_leaving => {
                is_leaving = true;
                connection.as_mut().graceful_shutdown();
                look.as_mut().reset(Instant::now() + LINGER_MAX);
            }
            () = &mut look => {
                let idle = talk.idle();
                let rest = if is_leaving { LINGER_MAX } else { IDLE }.saturating_sub(idle);
                if !rest.is_zero() {
                    look.as_mut().reset(Instant::now() + rest);
                } else if is_leaving {
                    return Ok(());
                } else {
                    is_leaving = true;
                    connection.as_mut().graceful_shutdown();
                    look.as_mut().reset(Instant::now() + LINGER_MAX);
                }
            }
        }
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE).max_buf_size(HEAD_LEN_MAX as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_LEN_MAX)
        .initial_stream_window_size(u32::from(u16::MAX) + 1)
        .initial_connection_window_size(WINDOW_LEN);
    builder
}

/// What the requests of a connection share.
struct Talk {
    front: Front,
    client: IpAddr,
    activity: Activity,
    under_way: AtomicUsize,
}

/// A request that is being answered.
struct UnderWay<'a>(&'a Talk);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.activity.touch(self.0.front.clock.now());
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Talk {
    /// Returns for how long nothing was asked.
    fn idle(&self) -> Duration {
        if self.under_way.load(Ordering::Relaxed) > 0 {
            return Duration::ZERO;
        }
        self.activity.idle(self.front.clock.now())
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        let _under_way = UnderWay(self);
        let (request, mut body) = request.into_parts();
        let is_head = request.method == Method::HEAD;
        let reply = match question(&request, &mut body).await {
            Ok(message) => self.reply(&message).await,
            Err(refused) => {
                // A socket that is closed with octets unread may take the answer along. Who waits to be told to send them
                // is not told.
                if !request.headers.contains_key(EXPECT) {
                    let _ = timeout(BODY_TIME_MAX, swallow(body)).await;
                }
                Err(refused)
            }
        };
        match reply {
            Ok(reply) => respond(reply, is_head),
            Err(refused) => refused.respond(is_head),
        }
    }

    /// Makes the pipeline's two calls.
    async fn reply(&self, message: &[u8]) -> Result<Vec<u8>, Refused> {
        let mut out = Vec::new();
        let (tried, began) = self.quick(message, &mut out);
        if tried == Tried::Miss {
            self.front.slow(message, Transport::Doh, self.client, &mut out).await;
            self.front.meter.answered(Transport::Doh, Way::Miss, began.elapsed(), 1);
        }
        if out.is_empty() { Err(Refused::Bad("the message asks nothing")) } else { Ok(out) }
    }

    fn quick(&self, message: &[u8], out: &mut Vec<u8>) -> (Tried, Stopwatch) {
        let mut moment = self.front.moment();
        let tried = moment.quick(message, Transport::Doh, self.client, out);
        if tried == Tried::Drop {
            out.clear();
        }
        let began = moment.began();
        moment.end();
        (tried, began)
    }
}

/// Why a request is no question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    Bad(&'static str),
    Path,
    Method,
    Time,
    Size,
    Type,
}

impl Refused {
    fn respond(self, is_head: bool) -> Response<Full<Bytes>> {
        let (status, text) = match self {
            Self::Bad(why) => (StatusCode::BAD_REQUEST, why),
            Self::Path => (StatusCode::NOT_FOUND, "questions are asked at /dns-query"),
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, "expected GET or POST"),
            Self::Time => (StatusCode::REQUEST_TIMEOUT, "the body did not come in time"),
            Self::Size => (StatusCode::PAYLOAD_TOO_LARGE, "a DNS message has at most 65535 octets"),
            Self::Type => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "expected Content-Type: application/dns-message"),
        };
        let mut response = whole(status, format!("{text}\n").into(), "text/plain; charset=utf-8", is_head);
        if self == Self::Method {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST"));
        }
        response
    }
}

fn respond(reply: Vec<u8>, is_head: bool) -> Response<Full<Bytes>> {
    let max_age = HeaderValue::try_from(format!("max-age={}", wire::max_age_secs(&reply)));
    let mut response = whole(StatusCode::OK, reply.into(), DNS_MESSAGE, is_head);
    if let Ok(max_age) = max_age {
        response.headers_mut().insert(CACHE_CONTROL, max_age);
    }
    response
}

/// A response that says how long its body is, also where that is left out.
fn whole(status: StatusCode, body: Bytes, media_type: &'static str, is_head: bool) -> Response<Full<Bytes>> {
    let len = body.len();
    let mut response = Response::new(Full::new(if is_head { Bytes::new() } else { body }));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(len));
    response
}

/// Takes the DNS message out of a request.
async fn question(request: &Parts, body: &mut Incoming) -> Result<Bytes, Refused> {
    if request.uri.path() != PATH {
        return Err(Refused::Path);
    }
    match request.method {
        Method::GET | Method::HEAD => from_query(request.uri.query().unwrap_or_default()),
        Method::POST => from_body(&request.headers, body).await,
        _ => Err(Refused::Method),
    }
}

/// Reads what is left of a body that nobody wants, up to a bound.
async fn swallow(mut body: Incoming) {
    let mut left = WINDOW_LEN as usize;
    while let Some(Ok(frame)) = body.frame().await {
        match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

/// Reads `dns=`; padding is not to be there (RFC 8484 §4.1), but harms nobody.
fn from_query(query: &str) -> Result<Bytes, Refused> {
    let value = query.split('&').find_map(|field| field.strip_prefix("dns="));
    let mut value = value.ok_or(Refused::Bad("expected ?dns= with a DNS message in base64url"))?;
    while let Some(rest) = ["=", "%3D", "%3d"].iter().find_map(|padding| value.strip_suffix(padding)) {
        value = rest;
    }
    match BASE64URL_NOPAD.decode(value.as_bytes()) {
        Ok(message) if message.len() > MESSAGE_LEN_MAX => Err(Refused::Size),
        Ok(message) => Ok(message.into()),
        Err(_) => Err(Refused::Bad("?dns= is no base64url (RFC 4648 section 5)")),
    }
}

async fn from_body(headers: &HeaderMap, body: &mut Incoming) -> Result<Bytes, Refused> {
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    // Parameters, which the type has none of, are ignored.
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case(DNS_MESSAGE) {
        return Err(Refused::Type);
    }
    if body.size_hint().lower() > MESSAGE_LEN_MAX as u64 {
        return Err(Refused::Size);
    }
    match timeout(BODY_TIME_MAX, Limited::new(body, MESSAGE_LEN_MAX).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Refused::Size),
        Ok(Err(_)) => Err(Refused::Bad("the body ended early")),
        Err(_) => Err(Refused::Time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_of_base64_is_let_through_and_other_signs_are_not() {
        for query in ["dns=AAAB", "dns=AAABAA", "dns=AAABAA==", "a=b&dns=AAABAA%3D%3d", "dns=AAABAAA="] {
            assert!(from_query(query).is_ok(), "{query}");
        }
        for query in ["", "dns", "dn=AAAB", "dns=A", "dns=A+AB", "dns=A/AB", "dns=A AB", "dns=%41AAB", "dns=é"] {
            assert!(matches!(from_query(query), Err(Refused::Bad(_))), "{query}");
        }
        assert_eq!(from_query("dns=").unwrap(), Bytes::new());
    }
}
