//! Every table and key there is, in the order of `config.toml`.
//!
//! A row gives the type, the dotted name, whether its part is built, what holds when it is not written (as TOML),
//! and the reader with its bounds. The line above a row explains the key to the operator: `config.toml` is printed
//! from these rows. Defaults of built keys stand a second time in the `Options` of their parts; a test compares.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::key::{AnyKey, Key, Shape, Spec, State, Table, Unset};
use super::{LogFormat, LogLevel};
use crate::catalogue::AppId;
use crate::export::format::Dialect;
use crate::forward::{Strategy, TrustAd, Upstream};
use crate::listen::access::Refuse;
use crate::name::Name;
use crate::prefix::Prefix;
use crate::source::Located;

use Shape::{Many, Once};
use State::{Built, Later};
use Unset::{Absent, Default, Required};

/// Makes a static [`Key`] of each row, and the list [`KEYS`] of all.
macro_rules! keys {
    ($(#[doc = $doc:literal] $id:ident: $type:ty = $path:literal, $state:expr, $unset:expr, |$item:ident, $faults:ident| $read:expr;)*) => {
        $(
            pub(super) static $id: Key<$type> =
                Key { spec: Spec { path: $path, unset: $unset, state: $state, doc: $doc }, read: |$item, $faults| $read };
        )*

        /// Every key; those of one table follow each other.
        pub(super) static KEYS: &[&dyn AnyKey] = &[$(&$id),*];
    };
}

/// Makes the list [`TABLES`].
macro_rules! tables {
    ($(#[doc = $doc:literal] $path:literal, $shape:expr, $state:expr;)*) => {
        /// Every table; one within another stands behind it.
        pub(super) static TABLES: &[Table] =
            &[$(Table { path: $path, shape: $shape, state: $state, doc: $doc }),*];
    };
}

tables! {
    /// Where questions come in, and where the set is served.
    "listen", Once, Built;
    /// The certificate for encrypted listeners; watched, and swapped without a restart.
    "tls", Once, Built;
    /// Who may ask, and how much.
    "clients", Once, Built;
    /// Whom to ask.
    "forward", Once, Built;
    /// A zone whose questions go to upstreams of its own; the deepest zone wins.
    "forward.route", Many, Built;
    /// Answers that are kept.
    "cache", Once, Built;
    /// The lists of names and prefixes that bypass inspection.
    "catalogue", Once, Built;
    /// A list that is fetched and kept fresh.
    "catalogue.source", Many, Later;
    /// How an answer under a listed name says so to clients that speak EDNS.
    "tag", Once, Built;
    /// Which addresses of answers enter the set, and for how long.
    "learn", Once, Built;
    /// Where the set survives a restart.
    "store", Once, Built;
    /// How the set reaches firewalls, besides the feeds on listen.web.
    "export", Once, Built;
    /// Sets of the local nftables, filled before the client reads the answer.
    "export.nftables", Many, Built;
    /// A file that holds the set, replaced atomically at each change.
    "export.file", Many, Built;
    /// Clients with apps of their own choice; others get every app.
    "group", Many, Later;
    /// Records of our own.
    "zone", Many, Later;
    /// Who may read what on listen.web.
    "web", Once, Built;
    /// What is written down.
    "log", Once, Built;
}

/// A whole number of 32 bits may be this large.
const U32_MAX: u64 = u32::MAX as u64;
/// Most entries that a cap may allow: 16 million sightings take some 3 GB.
const CAP_MAX: u64 = 1 << 24;
/// Most questions a second that a limit may allow.
const RATE_MAX: u64 = 1_000_000;
/// Longest span for which an address may be kept beyond what a client was told.
const SPAN_MAX: Duration = Duration::from_secs(30 * 86_400);

keys! {
    /// UDP and TCP addresses, each with its port. One of these two that the host lacks is skipped.
    LISTEN_DNS: Vec<Located<SocketAddr>> = "listen.dns", Built,
        Default(r#"["127.0.0.1:5300", "[::1]:5300"]"#), |item, faults| item.some_sockets(faults);
    /// Addresses for DNS over TLS; they need [tls].
    LISTEN_DOT: Vec<Located<SocketAddr>> = "listen.dot", Built, Default("[]"), |item, faults| item.sockets(faults);
    /// Addresses for DNS over HTTPS; they need [tls].
    LISTEN_DOH: Vec<Located<SocketAddr>> = "listen.doh", Built, Default("[]"), |item, faults| item.sockets(faults);
    /// Addresses for DNS over QUIC; they need [tls].
    LISTEN_DOQ: Vec<Located<SocketAddr>> = "listen.doq", Built, Default("[]"), |item, faults| item.sockets(faults);
    /// The address of feeds, API, dashboard and metrics, or "off".
    LISTEN_WEB: Option<SocketAddr> = "listen.web", Built, Default(r#""127.0.0.1:8053""#), |item, faults| item.socket_or_off(faults);
    /// Threads that read UDP, for each address of listen.dns; 0 for one a core.
    LISTEN_THREADS: u16 = "listen.threads", Built, Default("0"), |item, faults| item.number(0..=1024, faults);
    /// Prefixes of load balancers: a PROXY header (version 2) is demanded of them, and tells who the client is.
    LISTEN_PROXY_PROTOCOL: Vec<Prefix> = "listen.proxy-protocol", Built, Default("[]"), |item, faults| item.prefixes(faults);

    /// The certificate and its chain, PEM.
    TLS_CERTIFICATE: Located<PathBuf> = "tls.certificate", Built, Absent(r#""/etc/greenlane/fullchain.pem""#), |item, faults| item.located_path(faults);
    /// Its private key, PEM.
    TLS_KEY: Located<PathBuf> = "tls.key", Built, Absent(r#""/etc/greenlane/privkey.pem""#), |item, faults| item.located_path(faults);

    /// Client prefixes that are answered, by default loopback, private and link-local ones; others get REFUSED.
    CLIENTS_ALLOW: Vec<Prefix> = "clients.allow", Built,
        Default(r#"[
    "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16",
    "::1/128", "fc00::/7", "fe80::/10",
]"#),
        |item, faults| item.some_prefixes(faults);
    /// Client prefixes that are not answered although clients.allow holds them.
    CLIENTS_DENY: Vec<Prefix> = "clients.deny", Built, Default("[]"), |item, faults| item.prefixes(faults);
    /// What those get who may not ask: "answer" them REFUSED, or "drop" what they send.
    CLIENTS_REFUSE: Refuse = "clients.refuse", Built, Default(r#""answer""#),
        |item, faults| item.word(&[("answer", Refuse::Answer), ("drop", Refuse::Drop)], faults);
    /// Questions a second over UDP from one client prefix; 0 for no limit.
    CLIENTS_RATE_LIMIT: u32 = "clients.rate-limit", Built, Default("0"), |item, faults| item.number(0..=RATE_MAX, faults);
    /// Replies a second over UDP to one client prefix that are errors, such as NXDOMAIN; 0 for no limit.
    CLIENTS_ERROR_RATE_LIMIT: u32 = "clients.error-rate-limit", Built, Default("0"),
        |item, faults| item.number(0..=RATE_MAX, faults);
    /// Every how-many-th question beyond a limit gets a truncated reply, so that real clients come by TCP; 0 for none.
    CLIENTS_RATE_SLIP: u32 = "clients.rate-slip", Built, Default("2"), |item, faults| item.number(0..=1000, faults);
    /// Length of the IPv4 prefixes that are limited.
    CLIENTS_RATE_PREFIX4: u8 = "clients.rate-prefix4", Built, Default("24"), |item, faults| item.number(8..=32, faults);
    /// Length of the IPv6 prefixes that are limited.
    CLIENTS_RATE_PREFIX6: u8 = "clients.rate-prefix6", Built, Default("56"), |item, faults| item.number(16..=64, faults);
    /// Client prefixes without a rate limit.
    CLIENTS_RATE_EXEMPT: Vec<Prefix> = "clients.rate-exempt", Built, Default(r#"["127.0.0.0/8", "::1/128"]"#),
        |item, faults| item.prefixes(faults);
    /// A file of one or two secrets (32 hex digits a line) for DNS cookies; who shows a good one has no rate limit.
    CLIENTS_COOKIE_SECRET_FILE: PathBuf = "clients.cookie-secret-file", Built, Absent(r#""/etc/greenlane/cookie-secret""#),
        |item, faults| item.path(faults);
    /// Most connections at once, over TCP, TLS, HTTPS and QUIC together; one more closes the idlest.
    CLIENTS_MAX_CONNECTIONS: usize = "clients.max-connections", Built, Default("1000"),
        |item, faults| item.number(1..=1_000_000, faults);
    /// Most connections from one client prefix (/24, /56).
    CLIENTS_PER_CLIENT: usize = "clients.per-client", Built, Default("200"),
        |item, faults| item.number(1..=1_000_000, faults);
    /// Whether use-application-dns.net does not exist, so that browsers that ask by themselves stay with us.
    CLIENTS_KEEP_BROWSERS: bool = "clients.keep-browsers", Built, Default("false"), |item, faults| item.flag(faults);
    /// Whether the names of iCloud Private Relay do not exist, so that Apple's clients ask us instead.
    CLIENTS_BLOCK_PRIVATE_RELAY: bool = "clients.block-private-relay", Built, Default("false"), |item, faults| item.flag(faults);

    /// Upstreams: [udp|tcp]://ADDRESS[:PORT], [tls|quic]://ADDRESS[:PORT]#NAME, https://ADDRESS[:PORT]/PATH#NAME, or system.
    FORWARD_UPSTREAMS: Vec<Located<Upstream>> = "forward.upstreams", Built,
        Default(r#"[
    "tls://9.9.9.9#dns.quad9.net", "tls://149.112.112.112#dns.quad9.net",
    "tls://[2620:fe::fe]#dns.quad9.net", "tls://[2620:fe::9]#dns.quad9.net",
]"#),
        |item, faults| item.upstreams(faults);
    /// "fastest" asks the one that answered soonest of late, and the next when that is late; "ordered" the first that is up.
    FORWARD_STRATEGY: Strategy = "forward.strategy", Built, Default(r#""fastest""#),
        |item, faults| item.word(&[("fastest", Strategy::Fastest), ("ordered", Strategy::Ordered)], faults);
    /// How long a question may take over all its tries; then the client gets SERVFAIL.
    FORWARD_TIMEOUT: Duration = "forward.timeout", Built, Default(r#""8s""#),
        |item, faults| item.duration(Duration::from_millis(100)..=Duration::from_secs(60), faults);
    /// Random letter case in questions over UDP, against forged answers; upstreams that do not repeat it are let off.
    FORWARD_CASE_RANDOMIZATION: bool = "forward.case-randomization", Built, Default("false"), |item, faults| item.flag(faults);
    /// Whose AD bit reaches clients: "auto" (encrypted or loopback upstreams), "always" or "never".
    FORWARD_TRUST_AD: TrustAd = "forward.trust-ad", Built, Default(r#""auto""#),
        |item, faults| {
            item.word(&[("auto", TrustAd::Auto), ("always", TrustAd::Always), ("never", TrustAd::Never)], faults)
        };
    /// Special-use zones, such as ["home.arpa"], that upstreams are asked for; others are answered at home.
    FORWARD_SPECIAL: Vec<Located<Name>> = "forward.special", Built, Default("[]"), |item, faults| item.located_names(faults);
    /// A hosts file, such as /etc/hosts, whose names and addresses are answered at home.
    FORWARD_HOSTS: PathBuf = "forward.hosts", Built, Absent(r#""/etc/hosts""#), |item, faults| item.path(faults);

    /// The zone, from its apex down.
    ROUTE_ZONE: Located<Name> = "forward.route.zone", Built, Required(r#""corp.example""#), |item, faults| item.located_name(faults);
    /// Its upstreams, as in forward.upstreams.
    ROUTE_UPSTREAMS: Vec<Located<Upstream>> = "forward.route.upstreams", Built,
        Required(r#"["udp://10.0.0.53"]"#), |item, faults| item.upstreams(faults);

    /// Bound over all answers kept, with their overhead.
    CACHE_SIZE: u64 = "cache.size", Built, Default(r#""256MiB""#), |item, faults| item.size(1 << 16..=1 << 44, faults);
    /// Shorter TTLs are raised to this.
    CACHE_MIN_TTL: Duration = "cache.min-ttl", Built, Default(r#""0s""#), |item, faults| item.ttl(Duration::ZERO, faults);
    /// Longer TTLs are cut to this.
    CACHE_MAX_TTL: Duration = "cache.max-ttl", Built, Default(r#""1d""#),
        |item, faults| item.ttl(Duration::from_secs(1), faults);
    /// Negative answers are kept at most this long.
    CACHE_NEGATIVE_MAX_TTL: Duration = "cache.negative-max-ttl", Built, Default(r#""1h""#),
        |item, faults| item.ttl(Duration::ZERO, faults);
    /// How long past its TTL an answer may be given when no upstream answers; "0s" for never.
    CACHE_SERVE_STALE: Duration = "cache.serve-stale", Built, Default(r#""1d""#),
        |item, faults| item.duration(Duration::ZERO..=SPAN_MAX, faults);
    /// Whether answers in demand are asked anew shortly before their TTL ends.
    CACHE_PREFETCH: bool = "cache.prefetch", Built, Default("true"), |item, faults| item.flag(faults);
    /// Whether answers survive an orderly restart, in a file beside the store's, its name with .cache.
    CACHE_SAVE: bool = "cache.save", Built, Default("false"), |item, faults| item.flag(faults);

    /// The folder of .list and .rpz files, one an app.
    CATALOGUE_PATH: PathBuf = "catalogue.path", Built, Default(r#""zones""#), |item, faults| item.path(faults);
    /// Apps whose lists are checked but match nothing, such as ["goto"].
    CATALOGUE_DISABLED: Vec<AppId> = "catalogue.disabled", Built, Default("[]"), |item, faults| item.apps(faults);
    /// Names that bypass for no app, whatever lists say; each with all below it.
    CATALOGUE_NEVER: Vec<Name> = "catalogue.never", Built, Default("[]"), |item, faults| item.names(faults);
    /// Whether a change in the folder reloads the lists.
    CATALOGUE_WATCH: bool = "catalogue.watch", Built, Default("true"), |item, faults| item.flag(faults);

    /// The app that the list is for.
    SOURCE_NAME: AppId = "catalogue.source.name", Later, Required(r#""microsoft-365""#), |item, faults| item.app(faults);
    /// Where it is fetched from.
    SOURCE_URL: String = "catalogue.source.url", Later, Required(r#""https://lists.example.com/microsoft-365.json""#),
        |item, faults| item.url(&["https", "http"], faults);
    /// Its form: list, rpz, m365, v2fly, adguard, dnsmasq or plain.
    SOURCE_FORMAT: &'static str = "catalogue.source.format", Later, Default(r#""list""#),
        |item, faults| item.choice(&["list", "rpz", "m365", "v2fly", "adguard", "dnsmasq", "plain"], faults);
    /// How often it is fetched.
    SOURCE_REFRESH: Duration = "catalogue.source.refresh", Later, Default(r#""1d""#),
        |item, faults| item.duration(Duration::from_secs(60)..=SPAN_MAX, faults);

    /// Code of the EDNS option, 65001 to 65534; 0 for none.
    TAG_EDNS_OPTION: u16 = "tag.edns-option", Built, Default("65313"), |item, faults| item.option_code(faults);
    /// Whether an extended DNS error says it too, so that plain dig shows it.
    TAG_EXTENDED_ERROR: bool = "tag.extended-error", Built, Default("true"), |item, faults| item.flag(faults);

    /// How long an answer with new addresses waits for the set and the local firewall; "0s" for not at all.
    LEARN_HOLD: Duration = "learn.hold", Built, Default(r#""100ms""#),
        |item, faults| item.duration(Duration::ZERO..=Duration::from_secs(1), faults);
    /// Whether it also waits until `greenlane sync` on firewalls elsewhere has acknowledged them.
    LEARN_HOLD_FOR_FOLLOWERS: bool = "learn.hold-for-followers", Built, Default("false"), |item, faults| item.flag(faults);
    /// An address stays at least this long, however short its TTL.
    LEARN_MIN_HOLD: Duration = "learn.min-hold", Built, Default(r#""10m""#),
        |item, faults| item.duration(Duration::ZERO..=SPAN_MAX, faults);
    /// And this much longer than clients were told.
    LEARN_GRACE: Duration = "learn.grace", Built, Default(r#""5m""#),
        |item, faults| item.duration(Duration::ZERO..=SPAN_MAX, faults);
    /// An address that names outside the lists use too: "report" it, "withhold" it from exports, or "export" it.
    LEARN_SHARED: &'static str = "learn.shared", Later, Default(r#""report""#),
        |item, faults| item.choice(&["report", "withhold", "export"], faults);
    /// Prefixes that are never learned.
    LEARN_NEVER: Vec<Prefix> = "learn.never", Built, Default("[]"), |item, faults| item.prefixes(faults);
    /// Special-purpose prefixes that are learned all the same; for laboratories.
    LEARN_TREAT_AS_PUBLIC: Vec<Prefix> = "learn.treat-as-public", Built, Default("[]"), |item, faults| item.prefixes(faults);
    /// NAT64 prefixes (/96) in use here; the IPv4 address inside decides.
    LEARN_NAT64: Vec<Prefix> = "learn.nat64", Built, Default("[]"), |item, faults| item.nat64(faults);
    /// Most learned addresses.
    LEARN_MAX_TOTAL: usize = "learn.max-total", Built, Default("32768"), |item, faults| item.number(1..=CAP_MAX, faults);
    /// Most addresses of one name.
    LEARN_MAX_PER_NAME: usize = "learn.max-per-name", Built, Default("1000"),
        |item, faults| item.number(1..=CAP_MAX, faults);
    /// Most addresses under one line of a list.
    LEARN_MAX_PER_TRIGGER: usize = "learn.max-per-trigger", Built, Default("8192"),
        |item, faults| item.number(1..=CAP_MAX, faults);
    /// New addresses a minute that one client prefix (/24, /56) may bring in; 0 for no limit.
    LEARN_NEW_PER_CLIENT_PER_MINUTE: u32 = "learn.new-per-client-per-minute", Built, Default("3000"),
        |item, faults| item.number(0..=U32_MAX, faults);
    /// Whether an answer whose addresses are in no firewall yet is withheld instead of given with a TTL of 1 s.
    LEARN_STRICT: bool = "learn.strict", Later, Default("false"), |item, faults| item.flag(faults);
    /// Whether listed names are asked ahead, so that their addresses are there before anyone asks.
    LEARN_WARM: bool = "learn.warm", Built, Default("true"), |item, faults| item.flag(faults);
    /// A file of further names to ask ahead, one a line; lists must cover them.
    LEARN_WARM_NAMES: PathBuf = "learn.warm-names", Built, Absent(r#""warm-names.txt""#), |item, faults| item.path(faults);
    /// How long after a client used it a name below a trigger is asked ahead, too; "0s" for not at all.
    LEARN_WARM_USED_FOR: Duration = "learn.warm-used-for", Built, Default(r#""1h""#),
        |item, faults| item.duration(Duration::ZERO..=SPAN_MAX, faults);
    /// Most names that are asked ahead.
    LEARN_WARM_MAX_NAMES: usize = "learn.warm-max-names", Built, Default("2000"),
        |item, faults| item.number(1..=100_000, faults);
    /// Most questions a second that are asked ahead; fewer while upstreams suffer.
    LEARN_WARM_MAX_PER_SECOND: u32 = "learn.warm-max-per-second", Built, Default("20"),
        |item, faults| item.number(1..=10_000, faults);

    /// The file of the set.
    STORE_PATH: PathBuf = "store.path", Built, Default(r#""greenlane.redb""#), |item, faults| item.path(faults);
    /// What a commit survives: the end of the "process", or of the "disk"'s power.
    STORE_DURABILITY: &'static str = "store.durability", Built, Default(r#""process""#),
        |item, faults| item.choice(&["process", "disk"], faults);
    /// A Valkey or Redis server that joins several resolvers.
    STORE_CLUSTER: String = "store.cluster", Built, Absent(r#""rediss://greenlane@valkey.corp.example:6379/0""#),
        |item, faults| item.url(&["rediss", "redis"], faults);
    /// What the resolvers of one cluster share, and no others on that server.
    STORE_CLUSTER_ID: String = "store.cluster-id", Built, Default(r#""greenlane""#), |item, faults| item.cluster_id(faults);
    /// A file whose first line is the password for it.
    STORE_CLUSTER_PASSWORD_FILE: PathBuf = "store.cluster-password-file", Built, Absent(r#""/etc/greenlane/cluster-password""#),
        |item, faults| item.path(faults);
    /// Certificates to trust for it besides the public ones, PEM.
    STORE_CLUSTER_CA_FILE: PathBuf = "store.cluster-ca-file", Built, Absent(r#""/etc/greenlane/cluster-ca.pem""#),
        |item, faults| item.path(faults);
    /// Whether the cluster may be reached without TLS beyond loopback.
    STORE_INSECURE: bool = "store.insecure", Built, Default("false"), |item, faults| item.flag(faults);

    /// A reload that would withdraw more than this share of the set keeps the old entries until confirmed.
    EXPORT_MAX_SHRINK: f64 = "export.max-shrink", Built, Default("0.5"), |item, faults| item.share(faults);

    /// "own": a table of ours with sets and a mark; "guest": sets of yours.
    NFTABLES_MODE: &'static str = "export.nftables.mode", Built, Default(r#""own""#),
        |item, faults| item.choice(&["own", "guest"], faults);
    /// The table's family.
    NFTABLES_FAMILY: &'static str = "export.nftables.family", Built, Default(r#""inet""#),
        |item, faults| item.choice(&["inet", "ip", "ip6"], faults);
    /// The table's name.
    NFTABLES_TABLE: String = "export.nftables.table", Built, Default(r#""greenlane""#), |item, faults| item.nft_name(faults);
    /// The bits that mark a bypassed flow; in a table of ours only.
    NFTABLES_MARK: u32 = "export.nftables.mark", Built, Default("0x10000000"),
        |item, faults| item.number(1..=U32_MAX, faults);
    /// Set of learned IPv4 addresses. In your table only the sets that are named are filled.
    NFTABLES_LEARNED4: String = "export.nftables.learned4", Built, Default(r#""learned4""#), |item, faults| item.nft_name(faults);
    /// Set of learned IPv6 addresses.
    NFTABLES_LEARNED6: String = "export.nftables.learned6", Built, Default(r#""learned6""#), |item, faults| item.nft_name(faults);
    /// Set of listed IPv4 prefixes.
    NFTABLES_STATIC4: String = "export.nftables.static4", Built, Default(r#""static4""#), |item, faults| item.nft_name(faults);
    /// Set of listed IPv6 prefixes.
    NFTABLES_STATIC6: String = "export.nftables.static6", Built, Default(r#""static6""#), |item, faults| item.nft_name(faults);
    /// Whether an address is open to "all", or to the "client" that asked.
    NFTABLES_SCOPE: &'static str = "export.nftables.scope", Later, Default(r#""all""#),
        |item, faults| item.choice(&["all", "client"], faults);

    /// The file; its folder must exist.
    FILE_PATH: Located<PathBuf> = "export.file.path", Built, Required(r#""/var/lib/greenlane/prefixes.txt""#),
        |item, faults| item.located_path(faults);
    /// Its form: txt, json, csv, nft, ipset, rsc, domains, or the name of a feed, such as paloalto or squid-ip.
    FILE_FORMAT: Dialect = "export.file.format", Built, Default(r#""txt""#), |item, faults| item.dialect(faults);
    /// A command to run after a change: program and arguments, no shell.
    FILE_ON_CHANGE: Vec<String> = "export.file.on-change", Built, Default("[]"), |item, faults| item.command(faults);

    /// What it is called in feeds and logs.
    GROUP_NAME: String = "group.name", Later, Required(r#""guests""#), |item, faults| item.line(faults);
    /// The clients in it.
    GROUP_CLIENTS: Vec<Prefix> = "group.clients", Later, Required(r#"["10.20.0.0/16"]"#), |item, faults| item.prefixes(faults);
    /// The apps that bypass for them.
    GROUP_APPS: Vec<AppId> = "group.apps", Later, Required(r#"["zoom", "webex"]"#), |item, faults| item.apps(faults);

    /// A standard master file (RFC 1035 section 5).
    ZONE_FILE: PathBuf = "zone.file", Later, Required(r#""zones/corp.zone""#), |item, faults| item.path(faults);

    /// A file whose first line is the token for reading what is not public.
    WEB_READ_TOKEN_FILE: PathBuf = "web.read-token-file", Built, Absent(r#""/etc/greenlane/read-token""#), |item, faults| item.path(faults);
    /// A file whose first line is the token for actions.
    WEB_ADMIN_TOKEN_FILE: PathBuf = "web.admin-token-file", Built, Absent(r#""/etc/greenlane/admin-token""#), |item, faults| item.path(faults);
    /// Whether it speaks HTTPS, with the certificate of [tls].
    WEB_TLS: bool = "web.tls", Later, Default("false"), |item, faults| item.flag(faults);
    /// Prefixes that may connect; empty for all.
    WEB_ALLOW: Vec<Prefix> = "web.allow", Built, Default("[]"), |item, faults| item.prefixes(faults);

    /// The least severe messages: "off", "error", "warn", "info", "debug" or "trace".
    LOG_LEVEL: LogLevel = "log.level", Built, Default(r#""warn""#),
        |item, faults| item.word(&LogLevel::ALL.map(|level| (level.name(), level)), faults);
    /// "text" for people, "json" for machines.
    LOG_FORMAT: LogFormat = "log.format", Built, Default(r#""text""#),
        |item, faults| item.word(&[("text", LogFormat::Text), ("json", LogFormat::Json)], faults);
    /// Questions that are logged: "off", "tagged" or "all".
    LOG_QUERIES: &'static str = "log.queries", Later, Default(r#""off""#),
        |item, faults| item.choice(&["off", "tagged", "all"], faults);
    /// Where dnstap frames go: a socket's path, or tcp://ADDRESS:PORT.
    LOG_DNSTAP: String = "log.dnstap", Later, Absent(r#""/run/greenlane/dnstap.sock""#), |item, faults| item.line(faults);
    /// The file of every change of the set and its cause.
    LOG_AUDIT: PathBuf = "log.audit", Later, Absent(r#""/var/log/greenlane/audit.jsonl""#), |item, faults| item.path(faults);
}
