//! One resolver: asked and followed by a thread of its own.
//!
//! ```text
//!   ┌▶ GET /delta?what is held ─▶ GET /watch?what is held ─▶ event, event, … ─┐
//!   └──────────────── pause ◀── failed, told once ◀───────────────────────────┘
//! ```
//! The thread reads, checks and counts; what passed goes through a bounded channel to the one task that merges. It never
//! decides that something leaves: it only says that the resolver failed. Redirects are not followed, since the token
//! is meant for this resolver alone; no proxy of the environment is used.

use std::convert::Infallible;
use std::fs;
use std::io::{self, BufReader, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustls::crypto::ring;
use thiserror::Error;
use ureq::http::{Response, StatusCode, Uri};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::bounded::{Bounded, Pace, Until};
use super::events::{Broken, Events, Seen};
use super::gate::Gate;
use super::told::{self, Ask, Malformed, Theirs, Told};
use crate::clock::{Clock, Timestamp};
use crate::set::Session;

/// How long a connection may take to open.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// How long the head of an answer may take.
const HEAD_TIME_MAX: Duration = Duration::from_secs(20);
/// How long a word to the resolver may take.
const POST_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a stream may be silent: three of the comments that come every 15 s.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(45);
/// The first pause after a failure; each further one doubles it.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// After a longer time without a word the whole set is asked for anew. What is claimed outlives its end by more than
/// this, so that the stream can tell of a later one in time.
const GAP_MAX: Duration = Duration::from_secs(20);
/// Octets taken from a connection at once.
const BUFFER_LEN: usize = 64 * 1024;
/// What is shown of a refusal's line.
const SHOWN_MAX: u64 = 200;
/// The longest token file.
const TOKEN_LEN_MAX: u64 = 4096;

/// How a resolver is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolver {
    url: String,
}

/// Text that is no URL of a resolver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("expected http://ADDRESS:PORT or https://NAME:PORT, such as http://192.0.2.53:8053")]
pub struct UrlError;

impl std::str::FromStr for Resolver {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let uri = text.parse::<Uri>().map_err(|_| UrlError)?;
        let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
        let has_host = uri.host().is_some_and(|host| !host.is_empty());
        let has_user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
        if !is_http || !has_host || has_user || uri.path() != "/" || uri.query().is_some() || text.contains('#') {
            return Err(UrlError);
        }
        Ok(Self { url: text.trim_end_matches('/').to_owned() })
    }
}

impl Resolver {
    /// Returns the URL without a slash at its end.
    pub fn url(&self) -> &str {
        &self.url
    }
}

/// What all resolvers are shown and asked with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The file of the token; read anew for each request, so that it can be changed.
    pub token_file: Option<PathBuf>,
    /// A file of certificates in PEM: those who may sign for a resolver, in the place of the public ones.
    pub ca_file: Option<PathBuf>,
}

/// Why a resolver cannot be followed now.
#[derive(Debug, Error)]
pub(super) enum Failure {
    #[error("the token file {}: {source}", path.display())]
    Token { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Connection(Box<ureq::Error>),
    #[error("{status}: {line}{}", remedy(*status))]
    Status { status: StatusCode, line: String },
    #[error("it answers with {found} instead of {expected}; is this greenlane's web listener?")]
    Kind { found: String, expected: &'static str },
    #[error("malformed answer: {0}")]
    Malformed(#[from] Malformed),
    #[error("{0}")]
    Stream(#[from] Broken),
}

impl Failure {
    /// Every metric label value.
    pub(super) const KINDS: [&str; 5] = ["token", "unreachable", "refused", "malformed", "broken_off"];

    /// Returns the metric label value.
    pub(super) fn kind(&self) -> &'static str {
        Self::KINDS[match self {
            Self::Token { .. } => 0,
            Self::Connection(_) => 1,
            Self::Status { .. } => 2,
            Self::Kind { .. } => 3,
            Self::Malformed(malformed) | Self::Stream(Broken::Malformed(malformed)) => {
                if malformed.is_io() {
                    4
                } else {
                    3
                }
            }
            Self::Stream(Broken::Lines(_)) => 3,
            Self::Stream(Broken::Ended | Broken::Io(_)) => 4,
        }]
    }
}

fn remedy(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            "; set web.read-token-file there and name the same token here with --token-file"
        }
        StatusCode::NOT_FOUND => "; is this greenlane's web listener?",
        status if status.is_redirection() => "; redirects are not followed, name the resolver itself",
        _ => "",
    }
}

/// Why the certificates cannot be used.
#[derive(Debug, Error)]
pub enum AccessError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It holds no certificate.
    #[error("{}: expected certificates in PEM (BEGIN CERTIFICATE), found none", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
}

/// Makes what all resolvers are asked with.
fn agent(access: &Access) -> Result<Agent, AccessError> {
    let mut tls = TlsConfig::builder().unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()));
    if let Some(path) = &access.ca_file {
        let pem = fs::read(path).map_err(|source| AccessError::File { path: path.clone(), source })?;
        let items: Vec<_> = parse_pem(&pem).filter_map(Result::ok).collect();
        let certificates: Vec<Certificate<'static>> = items
            .into_iter()
            .filter_map(|item| match item {
                PemItem::Certificate(certificate) => Some(certificate),
                _ => None,
            })
            .collect();
        if certificates.is_empty() {
            return Err(AccessError::NoCertificate { path: path.clone() });
        }
        tls = tls.root_certs(RootCerts::Specific(Arc::new(certificates)));
    } else {
        tls = tls.root_certs(RootCerts::WebPki);
    }
    let config = Agent::config_builder()
        .tls_config(tls.build())
        .timeout_resolve(Some(CONNECT_TIME_MAX))
        .timeout_connect(Some(CONNECT_TIME_MAX))
        .timeout_send_request(Some(CONNECT_TIME_MAX))
        .timeout_recv_response(Some(HEAD_TIME_MAX))
        .timeout_per_read(Some(SILENCE_MAX))
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(None)
        .user_agent(concat!("greenlane-sync/", env!("CARGO_PKG_VERSION")));
    Ok(config.build().into())
}

/// What a resolver's thread has to say.
#[derive(Debug)]
pub(super) enum News {
    /// It told something.
    Told(Told),
    /// It lives and will tell by itself what changes.
    Alive,
    /// It asks when everything is held that it told so far.
    Asked(Ask),
    /// It failed; what it told may be old from now on.
    Failed(Failure),
}

/// Hands news on, waiting for room; fails once nobody listens.
pub(super) type Say = dyn Fn(News) -> Result<(), Unheard> + Send;

/// Nobody listens any more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unheard;

/// How one resolver is asked; clones share their connections.
#[derive(Clone, Debug)]
pub(super) struct Way {
    resolver: Resolver,
    access: Access,
    agent: Agent,
}

/// The thread's side of one resolver.
#[derive(Debug)]
pub(super) struct Client {
    way: Way,
    acknowledges: bool,
    gate: Arc<Gate>,
    clock: Clock,
    held: Option<(Session, u64)>,
    /// When the ends of what is held were known last: while a stream tells of later ones, or with a whole set.
    heard: Timestamp,
}

impl Client {
    /// Makes one that follows, and asks to be asked what is held if it `acknowledges`.
    pub(super) fn new(way: Way, acknowledges: bool, gate: Arc<Gate>, clock: Clock) -> Self {
        Self { way, acknowledges, gate, heard: clock.now(), clock, held: None }
    }

    /// Follows the resolver on a thread of its own until nobody listens to `say`.
    pub(super) fn start(mut self, say: Box<Say>) -> io::Result<()> {
        thread::Builder::new().name("sync-follow".to_owned()).spawn(move || self.follow(&*say)).map(|_| ())
    }

    fn follow(&mut self, say: &Say) {
        let mut pause = PAUSE_MIN;
        loop {
            let begun = self.clock.now();
            let failure = match self.round(say) {
                Err(Ended::Failed(failure)) => failure,
                Err(Ended::Unheard) => return,
                Ok(never) => match never {},
            };
            // One that lived for a while is asked again soon, one that always breaks off is not.
            let has_lived = self.clock.now().since(begun) > PAUSE_MAX && self.heard > begun;
            pause = if has_lived { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
            if say(News::Failed(failure)).is_err() {
                return;
            }
            // Followers of one resolver do not come back at the same moment.
            thread::sleep(pause.mul_f64(0.75 + rand::random::<f64>() / 2.0));
            if self.clock.now().since(self.heard) > GAP_MAX {
                // Ends that moved meanwhile may be past by the time that the stream tells of them.
                self.held = None;
            }
        }
    }

    /// Asks for what changed, then listens until the stream ends.
    fn round(&mut self, say: &Say) -> Result<Infallible, Ended> {
        let told = self.delta()?;
        say(News::Told(told))?;
        let ack = if self.acknowledges { "ack=1" } else { "" };
        let response = self.get("/watch", ack, "text/event-stream")?;
        let theirs = self.theirs(&response);
        let input = BufReader::with_capacity(BUFFER_LEN, response.into_body().into_reader());
        let mut events = Events::new(input, self.clock.clone(), theirs);
        say(News::Alive)?;
        loop {
            let seen = events.next(&self.gate).map_err(Failure::from)?;
            self.heard = self.clock.now();
            match seen {
                Seen::Alive => say(News::Alive)?,
                Seen::Told(Told::Hold(ask)) => say(News::Asked(ask))?,
                Seen::Told(told) => {
                    self.note(&told);
                    say(News::Told(told))?;
                }
            }
        }
    }

    /// Asks for what changed since, or for everything.
    pub(super) fn delta(&mut self) -> Result<Told, Failure> {
        let response = self.get("/delta", "", "application/json")?;
        let theirs = self.theirs(&response);
        let mut input = BufReader::with_capacity(BUFFER_LEN, response.into_body().into_reader());
        let body = Bounded::new(&mut input, Until::End, Pace::new(&self.clock));
        let told = told::read(body, &self.gate, theirs)?;
        if !matches!(told, Told::Delta(_)) {
            return Err(Failure::Kind { found: "an event".to_owned(), expected: "a set" });
        }
        self.note(&told);
        Ok(told)
    }

    /// Remembers what we hold with it.
    fn note(&mut self, told: &Told) {
        if let Told::Delta(delta) = told {
            if delta.reset {
                // All ends came with it.
                self.heard = self.clock.now();
            }
            self.held = Some((Session(delta.session), delta.serial));
        }
    }

    fn theirs(&self, response: &Response<Body>) -> Theirs {
        let millis = response.headers().get("x-greenlane-now").and_then(|now| now.to_str().ok()?.parse().ok());
        Theirs::new(millis, self.clock.now())
    }

    fn get(&self, path: &str, more: &str, expected: &'static str) -> Result<Response<Body>, Failure> {
        let held = self.held.map(|(session, serial)| format!("session={session}&serial={serial}")).unwrap_or_default();
        let query = [held.as_str(), more].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("&");
        let mark = if query.is_empty() { "" } else { "?" };
        self.way.get(&format!("{path}{mark}{query}"), expected)
    }
}

impl Way {
    /// Reads the certificates.
    pub(super) fn new(resolver: Resolver, access: &Access) -> Result<Self, AccessError> {
        Ok(Self { resolver, access: access.clone(), agent: agent(access)? })
    }

    /// Returns the URL of the resolver.
    pub(super) fn url(&self) -> &str {
        self.resolver.url()
    }

    fn get(&self, target: &str, expected: &'static str) -> Result<Response<Body>, Failure> {
        let mut request = self.agent.get(format!("{}{target}", self.resolver.url)).header("Accept", expected);
        if let Some(token) = self.token()? {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let response = request.call().map_err(|error| Failure::Connection(Box::new(error)))?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(Failure::Status { status, line: first_line(response) });
        }
        let kind = response.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.starts_with(expected) {
            return Err(Failure::Kind { found: shown(kind), expected });
        }
        Ok(response)
    }

    /// Sends word that needs no answer but that it was taken.
    pub(super) fn post(&self, target: &str) -> Result<(), Failure> {
        let request = self.agent.post(format!("{}{target}", self.resolver.url));
        let mut request = request.config().timeout_global(Some(POST_TIME_MAX)).build();
        if let Some(token) = self.token()? {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let response = request.send_empty().map_err(|error| Failure::Connection(Box::new(error)))?;
        match response.status() {
            status if status.is_success() => Ok(()),
            status => Err(Failure::Status { status, line: first_line(response) }),
        }
    }

    fn token(&self) -> Result<Option<String>, Failure> {
        let Some(path) = &self.access.token_file else { return Ok(None) };
        let failure = |source| Failure::Token { path: path.clone(), source };
        let mut token = String::new();
        let file = fs::File::open(path).map_err(failure)?;
        file.take(TOKEN_LEN_MAX).read_to_string(&mut token).map_err(failure)?;
        let token = token.trim();
        if token.is_empty() || !token.bytes().all(|octet| octet.is_ascii_graphic()) {
            let what = "expected one line of printable ASCII";
            return Err(failure(io::Error::new(io::ErrorKind::InvalidData, what)));
        }
        Ok(Some(token.to_owned()))
    }
}

/// Why a round ended.
enum Ended {
    Failed(Failure),
    /// Nobody listens any more.
    Unheard,
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Unheard> for Ended {
    fn from(_: Unheard) -> Self {
        Self::Unheard
    }
}

/// Returns the first line of a refusal, cut and escaped: it may come from any server.
fn first_line(response: Response<Body>) -> String {
    let mut body = Vec::new();
    let mut start = response.into_body().into_reader().take(SHOWN_MAX);
    if start.read_to_end(&mut body).is_err() {
        return "its answer broke off".to_owned();
    }
    shown(String::from_utf8_lossy(&body).lines().next().unwrap_or_default())
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN_MAX as usize).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_scheme_and_authority_alone() {
        for text in ["http://192.0.2.53:8053", "https://resolver.example/", "http://[2001:db8::1]:8053"] {
            let resolver: Resolver = text.parse().unwrap();
            assert_eq!(resolver.url(), text.trim_end_matches('/'));
        }
        for text in [
            "",
            "192.0.2.53:8053",
            "ftp://192.0.2.53",
            "http://",
            "http://a/delta",
            "http://a/?x",
            "http://user:secret@a",
            "http://a#b",
        ] {
            assert_eq!(text.parse::<Resolver>(), Err(UrlError), "{text}");
        }
    }

    #[test]
    fn certificates_are_read_from_pem() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("ca.pem");
        let access = Access { ca_file: Some(path.clone()), ..Access::default() };
        assert!(matches!(agent(&access), Err(AccessError::File { .. })));
        fs::write(&path, "nothing\n").unwrap();
        assert!(matches!(agent(&access), Err(AccessError::NoCertificate { .. })));
        let made = rcgen::generate_simple_self_signed(vec!["resolver.example".to_owned()]).unwrap();
        fs::write(&path, made.cert.pem()).unwrap();
        assert!(agent(&access).is_ok());
    }
}
