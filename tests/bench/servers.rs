//! Who is measured, and how each is set up: no query log, room for all answers, one worker, one upstream over UDP.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

/// A server, or a floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    Echo,
    Relay,
    Greenlane,
    Peer(&'static Peer),
}

/// A forwarder by others.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    name: &'static str,
    package: &'static str,
    program: &'static str,
    args: &'static [&'static str],
    config_file: &'static str,
    config: &'static str,
    asks_version: &'static str,
}

/// Where a server runs. `@PORT@`, `@SPARE@`, `@UPSTREAM@`, `@DIR@` and `@CONF@` stand for it in what a server is given.
pub(crate) struct Place<'a> {
    pub(crate) port: u16,
    /// A second free port, for servers that want one.
    pub(crate) spare: u16,
    pub(crate) upstream: u16,
    pub(crate) folder: &'a Path,
}

const GREENLANE: &str = r#"
[listen]
dns = ["127.0.0.1:@PORT@"]
web = "127.0.0.1:@SPARE@"
threads = 1
[forward]
upstreams = ["udp://127.0.0.1:@UPSTREAM@"]
[cache]
size = "512MiB"
prefetch = false
[catalogue]
path = "@ZONES@"
watch = false
[learn]
warm = false
max-total = 1000000
max-per-trigger = 1000000
new-per-client-per-minute = 0
treat-as-public = ["198.18.0.0/15", "2001:2::/48"]
[store]
path = "@DIR@/greenlane.redb"
"#;

/// Each with the settings that its documentation gives for speed, and all of its features off that greenlane lacks.
static PEERS: &[Peer] = &[
    Peer {
        name: "dnsdist",
        package: "dnsdist",
        program: "dnsdist",
        args: &["--supervised", "--disable-syslog", "-C", "@CONF@"],
        config_file: "dnsdist.conf",
        config: r#"
setLocal("127.0.0.1:@PORT@", {reusePort=true})
setACL({"127.0.0.0/8"})
setSecurityPollSuffix("")
setUDPMultipleMessagesVectorSize(64)
setMaxUDPOutstanding(65535)
setMaxTCPClientThreads(1)
newServer({address="127.0.0.1:@UPSTREAM@", checkInterval=60})
getServer(0):setUp()
getPool(""):setCache(newPacketCache(500000, {maxTTL=86400, numberOfShards=1}))
"#,
        asks_version: "--version",
    },
    Peer {
        name: "unbound",
        package: "unbound",
        program: "unbound",
        args: &["-d", "-p", "-c", "@CONF@"],
        config_file: "unbound.conf",
        config: r#"
server:
  interface: 127.0.0.1
  port: @PORT@
  do-daemonize: no
  use-syslog: no
  logfile: ""
  username: ""
  chroot: ""
  directory: "@DIR@"
  num-threads: 1
  so-reuseport: yes
  do-not-query-localhost: no
  module-config: "iterator"
  msg-cache-size: 256m
  rrset-cache-size: 512m
  outgoing-range: 8192
  num-queries-per-thread: 4096
  local-zone: "198.18.0.0/15" transparent
forward-zone:
  name: "."
  forward-addr: 127.0.0.1@@UPSTREAM@
remote-control:
  control-enable: no
"#,
        asks_version: "-V",
    },
    Peer {
        name: "dnsmasq",
        package: "dnsmasq-base",
        program: "dnsmasq",
        args: &["-k", "-C", "@CONF@", "--pid-file=", "--log-facility=/dev/null"],
        config_file: "dnsmasq.conf",
        config: "port=@PORT@\nlisten-address=127.0.0.1\nbind-interfaces\nno-resolv\nno-hosts\nno-poll\nserver=127.0.0.1#@UPSTREAM@\n\
                 cache-size=400000\ndns-forward-max=10000\n",
        asks_version: "-v",
    },
    Peer {
        name: "pdns-recursor",
        package: "pdns-recursor",
        program: "pdns_recursor",
        args: &["--config-dir=@DIR@"],
        config_file: "recursor.conf",
        config: "daemon=no\nsetuid=\nsetgid=\nwrite-pid=no\nsocket-dir=@DIR@\nlocal-address=127.0.0.1\nlocal-port=@PORT@\n\
                 forward-zones-recurse=.=127.0.0.1:@UPSTREAM@\ndont-query=\nquiet=yes\nloglevel=1\ndisable-syslog=yes\n\
                 security-poll-suffix=\nthreads=1\npdns-distributes-queries=no\nreuseport=yes\nmax-mthreads=4096\n\
                 max-packetcache-entries=1000000\nmax-cache-entries=2000000\ndnssec=off\nroot-nx-trust=no\nhint-file=no\n\
                 qname-minimization=no\n",
        asks_version: "--version",
    },
    Peer {
        name: "kresd",
        package: "knot-resolver",
        program: "kresd",
        args: &["-n", "-q", "-c", "@CONF@", "@DIR@"],
        config_file: "kresd.conf",
        config: r"
net.ipv6 = false
net.listen('127.0.0.1', @PORT@, { kind = 'dns' })
log_level('crit')
cache.open(600 * MB, 'lmdb://@DIR@/cache')
trust_anchors.remove('.')
for _, m in ipairs({'ta_update', 'ta_signal_query', 'ta_sentinel', 'priming', 'detect_time_skew', 'detect_time_jump',
                    'edns_keepalive', 'refuse_nord', 'workarounds', 'serve_stale', 'predict'}) do
  pcall(modules.unload, m)
end
policy.add(policy.all(policy.STUB('127.0.0.1@@UPSTREAM@')))
",
        asks_version: "--version",
    },
    Peer {
        name: "named",
        package: "bind9",
        program: "named",
        args: &["-f", "-4", "-n", "1", "-c", "@CONF@"],
        config_file: "named.conf",
        config: r#"
options {
  directory "@DIR@"; pid-file none; session-keyfile none; managed-keys-directory "@DIR@";
  listen-on port @PORT@ { 127.0.0.1; }; listen-on-v6 { none; };
  forwarders port @UPSTREAM@ { 127.0.0.1; }; forward only; recursion yes;
  empty-zones-enable no; querylog no; zone-statistics none; dnssec-validation no; minimal-responses yes;
  answer-cookie no; send-cookie no; prefetch 0; max-cache-size 1g; recursive-clients 10000;
};
controls { };
logging { category default { null; }; };
"#,
        asks_version: "-V",
    },
    Peer {
        name: "smartdns",
        package: "smartdns",
        program: "smartdns",
        args: &["-f", "-c", "@CONF@", "-p", "-"],
        config_file: "smartdns.conf",
        config: "bind 127.0.0.1:@PORT@\nbind-tcp 127.0.0.1:@PORT@\nserver 127.0.0.1:@UPSTREAM@\nspeed-check-mode none\n\
                 dualstack-ip-selection no\nresponse-mode fastest-response\nprefetch-domain no\nserve-expired no\n\
                 cache-size 600000\ncache-persist no\naudit-enable no\nlog-level fatal\nlog-num 0\nrr-ttl-max 86400\n",
        asks_version: "-v",
    },
];

/// The floors, greenlane, and the peers: those named, or every one that is installed.
pub(crate) fn chosen(only: &[String]) -> Result<Vec<Server>, String> {
    let mut servers = vec![Server::Echo, Server::Relay, Server::Greenlane];
    if let Some(unknown) = only.iter().find(|name| *name != "none" && PEERS.iter().all(|peer| peer.name != **name)) {
        let known: Vec<&str> = PEERS.iter().map(|peer| peer.name).collect();
        return Err(format!("--only: no peer is called `{unknown}`; known: {}", known.join(", ")));
    }
    for peer in PEERS {
        if !only.is_empty() && !only.iter().any(|name| name == peer.name) {
            continue;
        }
        if peer.is_installed() {
            servers.push(Server::Peer(peer));
        } else {
            eprintln!("{} is left out: not installed (package {})", peer.name, peer.package);
        }
    }
    Ok(servers)
}

impl Peer {
    fn version_line(&self) -> Option<String> {
        let output = Command::new(self.program).arg(self.asks_version).stdin(Stdio::null()).output().ok()?;
        let text = [output.stdout, output.stderr].concat();
        Some(String::from_utf8_lossy(&text).lines().next().unwrap_or("").to_owned())
    }

    fn is_installed(&self) -> bool {
        self.version_line().is_some()
    }
}

impl Server {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Relay => "relay",
            Self::Greenlane => "greenlane",
            Self::Peer(peer) => peer.name,
        }
    }

    /// The name, with the version where the program tells one.
    pub(crate) fn title(&self) -> String {
        let version = match self {
            Self::Echo | Self::Relay => None,
            Self::Greenlane => Some(env!("CARGO_PKG_VERSION").to_owned()),
            Self::Peer(peer) => peer.version_line().and_then(|line| version_in(&line)),
        };
        version.map_or_else(|| self.name().to_owned(), |version| format!("{} {version}", self.name()))
    }

    pub(crate) fn is_floor(&self) -> bool {
        matches!(self, Self::Echo | Self::Relay)
    }

    pub(crate) fn answers_hits(&self) -> bool {
        *self != Self::Relay
    }

    pub(crate) fn answers_misses(&self) -> bool {
        *self != Self::Echo
    }

    pub(crate) fn keeps_answers(&self) -> bool {
        !self.is_floor()
    }

    pub(crate) fn speaks_tcp(&self) -> bool {
        !self.is_floor()
    }

    /// Writes the configuration; returns program and arguments.
    pub(crate) fn command(&self, place: &Place<'_>) -> io::Result<Vec<String>> {
        let own = |args: &[&str]| -> io::Result<Vec<String>> {
            let this = std::env::current_exe()?.display().to_string();
            Ok([this.as_str()].iter().chain(args).map(|arg| (*arg).to_owned()).collect())
        };
        let (port, upstream) = (place.port.to_string(), place.upstream.to_string());
        match self {
            Self::Echo => own(&["--floor", "echo", &port]),
            Self::Relay => own(&["--floor", "relay", &port, &upstream]),
            Self::Greenlane => {
                let path = place.folder.join("config.toml");
                fs::write(&path, place.fill(GREENLANE, &path))?;
                let argv = [env!("CARGO_BIN_EXE_greenlane"), "serve", "-c", &path.display().to_string()];
                Ok(argv.iter().map(|arg| (*arg).to_owned()).collect())
            }
            Self::Peer(peer) => {
                let path = place.folder.join(peer.config_file);
                fs::write(&path, place.fill(peer.config, &path))?;
                let args = peer.args.iter().map(|arg| place.fill(arg, &path));
                Ok(std::iter::once(peer.program.to_owned()).chain(args).collect())
            }
        }
    }
}

/// The first word with a digit and a dot, without a packager's additions.
fn version_in(line: &str) -> Option<String> {
    let word =
        line.split_whitespace().find(|word| word.contains('.') && word.contains(|c: char| c.is_ascii_digit()))?;
    Some(word.split(['-', '+', ',', ';']).next().unwrap_or(word).to_owned())
}

impl Place<'_> {
    fn fill(&self, text: &str, config: &Path) -> String {
        text.replace("@PORT@", &self.port.to_string())
            .replace("@SPARE@", &self.spare.to_string())
            .replace("@UPSTREAM@", &self.upstream.to_string())
            .replace("@DIR@", &self.folder.display().to_string())
            .replace("@CONF@", &config.display().to_string())
            .replace("@ZONES@", concat!(env!("CARGO_MANIFEST_DIR"), "/zones"))
    }
}
