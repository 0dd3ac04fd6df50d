//! A running greenlane, asked over its web listener.
//!
//! It is the configured one, or that of `--url`. The token that is shown is that of `--token-file`; without it that of the
//! configuration, which goes to the configured listener alone and is done without if it cannot be read: on loopback
//! none is needed. Redirects are not followed, and no proxy of the environment is used.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use serde_json::Value;
use ureq::Body;
use ureq::http::{Response, StatusCode, Uri};

use super::{ConfigFile, Failure, SiteArgs, read_config};
use crate::config::Config;
use crate::web::read_token;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The largest body read; a million prefixes as JSON take some 60 MB.
const BODY_BYTES_MAX: u64 = 1 << 30;

/// What the answer takes from beyond loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Right {
    /// Nothing.
    Open,
    /// A token that reads.
    Read,
    /// The admin token.
    Act,
}

/// Whom to ask, and as whom.
#[derive(Debug)]
pub(super) struct Site {
    base: String,
    token: Option<String>,
    /// Why no token is shown although one is configured.
    without: Option<String>,
}

impl Site {
    /// Finds the greenlane that is meant, and the token.
    pub(super) fn find(file: &ConfigFile, args: &SiteArgs, right: Right) -> Result<Self, Failure> {
        let (base, config) = match &args.url {
            // Nothing but the token is wanted of a configuration then.
            Some(url) => (url.clone(), read_config(file.path().as_deref()).ok()),
            None => {
                let config = file.load()?;
                (base_url(&config)?, Some(config))
            }
        };
        let mut site = Self { base, token: None, without: None };
        if let Some(path) = &args.token_file {
            let (token, warnings) = read_token("--token-file", path).map_err(Failure::usage)?;
            warnings.iter().for_each(|warning| super::tell(format_args!("warning: {warning}")));
            site.token = Some(token);
        } else if let Some(config) = config.filter(|config| base_url(config).is_ok_and(|own| own == site.base)) {
            site.take_configured(&config, right);
        }
        Ok(site)
    }

    fn take_configured(&mut self, config: &Config, right: Right) {
        let read = ("web.read-token-file", &config.web.read_token_file);
        let admin = ("web.admin-token-file", &config.web.admin_token_file);
        let files = match right {
            Right::Open => return,
            Right::Read => vec![read, admin],
            Right::Act => vec![admin],
        };
        for (key, path) in files.into_iter().filter_map(|(key, path)| Some((key, path.as_ref()?))) {
            match read_token(key, path) {
                Ok((token, _)) => {
                    self.token = Some(token);
                    return;
                }
                Err(error) => drop(self.without.get_or_insert_with(|| error.to_string())),
            }
        }
    }

    /// Returns the URL of its web listener, without a slash at its end.
    pub(super) fn url(&self) -> &str {
        &self.base
    }

    /// Fetches a page; the server's own line says why if it does not give it.
    pub(super) fn get(&self, target: &str) -> Result<String, Failure> {
        self.ask(target, agent().get(format!("{}{target}", self.base)), |request| request.call())
    }

    /// Fetches JSON.
    pub(super) fn get_json(&self, target: &str) -> Result<Value, Failure> {
        self.json(target, &self.get(target)?)
    }

    /// Has it do something; returns the JSON that it answers.
    pub(super) fn post_json(&self, target: &str) -> Result<Value, Failure> {
        let request = agent().post(format!("{}{target}", self.base));
        let body = self.ask(target, request, |request| request.send_empty())?;
        self.json(target, &body)
    }

    fn json(&self, target: &str, body: &str) -> Result<Value, Failure> {
        serde_json::from_str(body).map_err(|error| Failure::failed(format!("{}{target}: no JSON: {error}", self.base)))
    }

    fn ask<B>(
        &self,
        target: &str,
        mut request: ureq::RequestBuilder<B>,
        send: impl FnOnce(ureq::RequestBuilder<B>) -> Result<Response<Body>, ureq::Error>,
    ) -> Result<String, Failure> {
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let url = format!("{}{target}", self.base);
        let unreachable = |error: ureq::Error| {
            Failure::failed(format!("{url}: {error}: is greenlane running there? `listen.web` says where it listens"))
        };
        let mut response = send(request).map_err(unreachable)?;
        let status = response.status();
        let body = response.body_mut().with_config().limit(BODY_BYTES_MAX).read_to_string().map_err(unreachable)?;
        if status.is_success() {
            return Ok(body);
        }
        let mut message = format!("{url}: {status}: {}", first_line(&body));
        if let Some(without) = self.without.as_ref().filter(|_| is_about_rights(status)) {
            message.push_str(&format!("\n{without}"));
        } else if self.token.is_none() && is_about_rights(status) {
            message.push_str("\n(`--token-file` names a file with a token)");
        }
        Err(Failure::failed(message))
    }
}

fn is_about_rights(status: StatusCode) -> bool {
    [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status)
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(PATIENCE))
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(None);
    config.build().into()
}

/// Fetches an open page from asynchronous code.
pub(super) async fn fetch(base: String, target: &'static str) -> Result<String, Failure> {
    let site = Site { base, token: None, without: None };
    tokio::task::spawn_blocking(move || site.get(target)).await.map_err(Failure::failed)?
}

/// Reads the URL of a web listener; returns it without a slash at its end.
pub(super) fn read_url(text: &str) -> Result<String, &'static str> {
    let is_base = |uri: &Uri| {
        uri.scheme_str() == Some("http") && uri.host().is_some_and(|host| !host.is_empty()) && uri.path() == "/"
    };
    match text.parse::<Uri>() {
        Ok(uri) if is_base(&uri) && uri.query().is_none() => Ok(text.trim_end_matches('/').to_owned()),
        _ => Err("expected http://ADDRESS:PORT, such as http://127.0.0.1:8053"),
    }
}

/// Returns the URL of the configured web listener.
fn base_url(config: &Config) -> Result<String, Failure> {
    let Some(addr) = config.web.listen else {
        return Err(Failure::usage("listen.web: is off, so there is nothing to ask; name a listener with --url"));
    };
    // A listener on all addresses is asked on loopback, where everything is open.
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::from(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    Ok(format!("http://{}", SocketAddr::new(ip, addr.port())))
}

/// Returns the first line of what a server says, cut and escaped: it may be any server.
fn first_line(body: &str) -> String {
    const SHOWN_MAX: usize = 200;
    body.lines().next().unwrap_or_default().chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect()
}

/// Escapes what a query value must not hold as it stands (RFC 3986 §3.4).
pub(super) fn percent_encoded(text: &str) -> String {
    let mut encoded = String::new();
    for octet in text.bytes() {
        match octet {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b',' | b':' => {
                encoded.push(char::from(octet));
            }
            _ => encoded.push_str(&format!("%{octet:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_values_are_escaped() {
        assert_eq!(percent_encoded("zoom,slack"), "zoom,slack");
        assert_eq!(percent_encoded("a&b=c d\\"), "a%26b%3Dc%20d%5C");
    }

    #[test]
    fn a_listener_on_all_addresses_is_asked_on_loopback() {
        let mut config = Config::default();
        config.web.listen = Some("0.0.0.0:80".parse().unwrap());
        assert_eq!(base_url(&config).unwrap(), "http://127.0.0.1:80");
        config.web.listen = Some("[::]:80".parse().unwrap());
        assert_eq!(base_url(&config).unwrap(), "http://[::1]:80");
        config.web.listen = None;
        assert_eq!(base_url(&config).unwrap_err().code, 2);
    }

    #[test]
    fn token_of_the_configuration_goes_to_its_own_listener_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        file("read", "read-token-0123456789\n");
        file("admin", "admin-token-0123456789\n");
        file("config.toml", "[web]\nread-token-file = \"read\"\nadmin-token-file = \"admin\"\n");
        let config = ConfigFile { config: Some(folder.path().join("config.toml")) };
        let find = |url: Option<&str>, token: Option<&str>, right| {
            let token_file = token.map(|name| folder.path().join(name));
            Site::find(&config, &SiteArgs { url: url.map(str::to_owned), token_file }, right)
        };
        let token = |url, token, right| find(url, token, right).unwrap().token;
        assert_eq!(token(None, None, Right::Read).as_deref(), Some("read-token-0123456789"));
        assert_eq!(token(None, None, Right::Act).as_deref(), Some("admin-token-0123456789"));
        assert_eq!(token(None, None, Right::Open), None);
        let own = Some("http://127.0.0.1:8053");
        assert_eq!(token(own, None, Right::Read).as_deref(), Some("read-token-0123456789"));
        assert_eq!(token(Some("http://192.0.2.1:8053"), None, Right::Read), None);
        let shown = token(Some("http://192.0.2.1:8053"), Some("admin"), Right::Open);
        assert_eq!(shown.as_deref(), Some("admin-token-0123456789"));
        assert_eq!(find(None, Some("none"), Right::Read).unwrap_err().code, 2);
        // The other one reads, too; without any it is tried all the same.
        file("read", "\n");
        let site = find(None, None, Right::Read).unwrap();
        assert_eq!(site.token.as_deref(), Some("admin-token-0123456789"));
        std::fs::remove_file(folder.path().join("admin")).unwrap();
        let site = find(None, None, Right::Act).unwrap();
        assert!(site.token.is_none() && site.without.unwrap().starts_with("web.admin-token-file: "));
    }
}
