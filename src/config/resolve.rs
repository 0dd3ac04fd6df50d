//! The file's values as the parts' options, checked against each other.
//!
//! A value that is not written, or wrong, takes its default, so that the checks go on and one run notes every
//! fault; the caller uses the result only if there was none.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::error::{Fault, Faults, First, quoted};
use super::key::{AnyKey, State, Unset};
use super::raw::{At, Entries, Raw};
use super::units::print_duration;
use super::{Config, LogOptions, Places, table, upstream};
use crate::export::nftables::{self, Mode, SetNames, SetsError, TableFamily};
use crate::forward::{Route, Upstream};
use crate::listen::{Kind, access, rate};
use crate::name::Name;
use crate::pipeline::TagOptions;
use crate::policy::Special;
use crate::prefix::Prefix;
use crate::source::{Located, Location, Problem};
use crate::store::Durability;
use crate::{cache, catalogue, cluster, export, forward, learn, listen, policy, store, warm, web};

/// Makes the configuration. Relative paths start at `folder`.
pub(super) fn resolve(raw: &Raw<'_>, folder: &Path, faults: &mut Faults) -> Config {
    let entries = &raw.entries;
    let (listen, web) = sockets(entries, folder, faults);
    let forward = forward(raw, &listen, faults);
    let own = own_addresses(&listen, &forward);
    let mut learn = learn(entries, own, faults);
    let cache = cache(entries, faults);
    let cluster = cluster(entries, folder, &learn, &cache, faults);
    learn.is_shared = cluster.is_some();
    let (export_files, export_places) = export_files(raw, folder, faults);
    let policy = policy::Options {
        keep_browsers: entries.read(&table::CLIENTS_KEEP_BROWSERS, faults).unwrap_or_default(),
        block_private_relay: entries.read(&table::CLIENTS_BLOCK_PRIVATE_RELAY, faults).unwrap_or_default(),
    };
    Config {
        web,
        policy,
        cache,
        cluster,
        catalogue: catalogue(entries, folder, faults),
        watch: entries.read(&table::CATALOGUE_WATCH, faults).unwrap_or(true),
        tag: tag(entries, faults),
        warm: warm(entries, folder, faults),
        store: Some(store(entries, folder, faults)),
        export_nftables: export_nftables(raw, &learn, faults),
        learn,
        places: Places {
            certificate: place(entries, table::TLS_CERTIFICATE.spec.path),
            key: place(entries, table::TLS_KEY.spec.path),
            read_token_file: place(entries, table::WEB_READ_TOKEN_FILE.spec.path),
            admin_token_file: place(entries, table::WEB_ADMIN_TOKEN_FILE.spec.path),
            warm_names: place(entries, table::LEARN_WARM_NAMES.spec.path),
            export_files: export_places,
        },
        export_files,
        log: log(entries, faults),
        not_built: not_built(raw, faults),
        listen,
        forward,
        special: special(entries, faults),
        hosts: entries.read(&table::FORWARD_HOSTS, faults).map(|path| start_at(folder, path)),
    }
}

/// Notes each key that a `[[table]]` cannot do without and has not.
pub(super) fn check_required(raw: &Raw<'_>, faults: &mut Faults) {
    for table in &raw.tables {
        let of_table = table::KEYS.iter().map(|key| key.spec()).filter(|spec| spec.table() == table.table.path);
        for spec in of_table.filter(|spec| table.entries.item(spec.path).is_none()) {
            if let Unset::Required(example) = spec.unset {
                let expected = format!("{} = {example}", spec.name());
                faults.push(table.at.location(), spec.path, Fault::Missing { expected });
            }
        }
    }
}

/// `[listen]`, `[clients]` and `[web]`, which share the ports of this host.
fn sockets(entries: &Entries<'_>, folder: &Path, faults: &mut Faults) -> (listen::Options, web::Options) {
    let default = Config::default();
    let dns = entries.read(&table::LISTEN_DNS, faults);
    let web = entries.read(&table::LISTEN_WEB, faults);
    let secure = [&table::LISTEN_DOT, &table::LISTEN_DOH, &table::LISTEN_DOQ];
    let secure = secure.map(|key| (key.spec.path, entries.read(key, faults).unwrap_or_default()));
    let tls = tls(entries, folder, &secure, faults);
    check_overlaps(entries, dns.as_deref(), web, &secure, &default, faults);
    let [dot, doh, doq] = secure.map(|(_, written)| values(written));
    let listen = listen::Options {
        dot,
        doh,
        doq,
        tls,
        dns: dns.map_or_else(|| default.listen.dns.clone(), |dns| addresses(&dns, &default.listen.dns)),
        threads: entries.read(&table::LISTEN_THREADS, faults).unwrap_or(default.listen.threads),
        backend: default.listen.backend,
        waiting_max: default.listen.waiting_max,
        clients: clients(entries, folder, default.listen.clients, faults),
        max_connections: entries
            .read(&table::CLIENTS_MAX_CONNECTIONS, faults)
            .unwrap_or(default.listen.max_connections),
        max_connections_per_client: entries
            .read(&table::CLIENTS_PER_CLIENT, faults)
            .unwrap_or(default.listen.max_connections_per_client),
    };
    let web = web::Options {
        listen: web.unwrap_or(default.web.listen),
        allow: entries.read(&table::WEB_ALLOW, faults).unwrap_or(default.web.allow),
        read_token_file: entries.read(&table::WEB_READ_TOKEN_FILE, faults).map(|path| start_at(folder, path)),
        admin_token_file: entries.read(&table::WEB_ADMIN_TOKEN_FILE, faults).map(|path| start_at(folder, path)),
    };
    (listen, web)
}

/// `[tls]`: both files if a listener needs them.
fn tls(
    entries: &Entries<'_>,
    folder: &Path,
    secure: &[(&'static str, Vec<Located<SocketAddr>>)],
    faults: &mut Faults,
) -> Option<listen::tls::Files> {
    let files = [&table::TLS_CERTIFICATE, &table::TLS_KEY].map(|key| entries.read(key, faults));
    let missing = match &files {
        [Some(_), Some(_)] => None,
        [None, Some(_)] => Some(table::TLS_CERTIFICATE.spec.path),
        [Some(_), None] => Some(table::TLS_KEY.spec.path),
        [None, None] => Some("tls.certificate and tls.key"),
    };
    for (key, written) in secure {
        if let (Some(missing), Some(at)) = (missing, written.first()) {
            faults.push(at.location.clone(), key, Fault::NoCertificate { missing });
        }
    }
    match files.map(|file| file.map(|at| start_at(folder, at.value))) {
        [Some(certificate), Some(key)] => Some(listen::tls::Files { certificate, key }),
        _ => None,
    }
}

/// `[clients]` but what it says of connections, and `listen.proxy-protocol`.
fn clients(entries: &Entries<'_>, folder: &Path, default: access::Options, faults: &mut Faults) -> access::Options {
    access::Options {
        allow: entries.read(&table::CLIENTS_ALLOW, faults).unwrap_or(default.allow),
        deny: entries.read(&table::CLIENTS_DENY, faults).unwrap_or(default.deny),
        refuse: entries.read(&table::CLIENTS_REFUSE, faults).unwrap_or(default.refuse),
        rate: rate::Options {
            per_second: entries.read(&table::CLIENTS_RATE_LIMIT, faults).unwrap_or(default.rate.per_second),
            errors_per_second: entries
                .read(&table::CLIENTS_ERROR_RATE_LIMIT, faults)
                .unwrap_or(default.rate.errors_per_second),
            slip: entries.read(&table::CLIENTS_RATE_SLIP, faults).unwrap_or(default.rate.slip),
            len4: entries.read(&table::CLIENTS_RATE_PREFIX4, faults).unwrap_or(default.rate.len4),
            len6: entries.read(&table::CLIENTS_RATE_PREFIX6, faults).unwrap_or(default.rate.len6),
            exempt: entries.read(&table::CLIENTS_RATE_EXEMPT, faults).unwrap_or(default.rate.exempt),
        },
        balancers: entries.read(&table::LISTEN_PROXY_PROTOCOL, faults).unwrap_or(default.balancers),
        cookie_secret_file: entries.read(&table::CLIENTS_COOKIE_SECRET_FILE, faults).map(|path| start_at(folder, path)),
    }
}

/// Takes addresses as they were written. One that equals a built-in default counts as that default, so that the
/// shipped file behaves like an empty one.
fn addresses(written: &[Located<SocketAddr>], defaults: &[listen::Address]) -> Vec<listen::Address> {
    let is_default = |addr| defaults.iter().any(|default| default.addr == addr);
    written.iter().map(|at| listen::Address { addr: at.value, is_default: is_default(at.value) }).collect()
}

/// A socket that will be opened, and where it was written.
struct Socket {
    key: &'static str,
    addr: SocketAddr,
    /// `None` for a default.
    location: Option<Location>,
    /// Whether it takes UDP, and TCP.
    ports: [bool; 2],
}

impl Socket {
    fn collides(&self, other: &Self) -> bool {
        self.ports.iter().zip(other.ports).any(|(mine, theirs)| *mine && theirs) && overlap(self.addr, other.addr)
    }
}

/// Notes addresses that cannot be open together: the same one twice, or one and the wildcard of its family.
fn check_overlaps(
    entries: &Entries<'_>,
    dns: Option<&[Located<SocketAddr>]>,
    web: Option<Option<SocketAddr>>,
    secure: &[(&'static str, Vec<Located<SocketAddr>>)],
    default: &Config,
    faults: &mut Faults,
) {
    let (dns_key, web_key) = (table::LISTEN_DNS.spec.path, table::LISTEN_WEB.spec.path);
    let mut sockets: Vec<Socket> = match dns {
        Some(written) => written
            .iter()
            .map(|at| Socket { key: dns_key, addr: at.value, location: Some(at.location.clone()), ports: [true; 2] })
            .collect(),
        None => default
            .listen
            .dns
            .iter()
            .map(|address| Socket { key: dns_key, addr: address.addr, location: None, ports: [true; 2] })
            .collect(),
    };
    let web_location = entries.item(web_key).map(|item| item.at.location());
    let web = web.unwrap_or(default.web.listen).map(|addr| Socket {
        key: web_key,
        addr,
        location: web_location,
        ports: [false, true],
    });
    sockets.extend(web);
    for (key, written) in secure {
        let is_udp = *key == table::LISTEN_DOQ.spec.path;
        let socket = |at: &Located<SocketAddr>| Socket {
            key,
            addr: at.value,
            location: Some(at.location.clone()),
            ports: [is_udp, !is_udp],
        };
        sockets.extend(written.iter().map(socket));
    }
    for (i, later) in sockets.iter().enumerate() {
        if let Some(first) = sockets[..i].iter().find(|first| first.collides(later)) {
            note_overlap(first, later, faults);
        }
    }
}

/// Notes two sockets that cannot be open together where one of them is written, the later one if both are.
fn note_overlap(first: &Socket, later: &Socket, faults: &mut Faults) {
    let (here, location, other) = match (&first.location, &later.location) {
        (_, Some(location)) => (later, location, first),
        (Some(location), None) => (first, location, later),
        (None, None) => return,
    };
    let place = other.location.clone().map_or(First::DefaultOf(other.key), First::At);
    let what = here.addr.to_string();
    let fault = if here.addr == other.addr {
        Fault::Twice { what, first: place }
    } else {
        Fault::Overlap { what, other: other.addr.to_string(), first: place }
    };
    faults.push(location.clone(), here.key, fault);
}

/// Returns whether two sockets cannot be open together. Each family has its own wildcard (IPV6_V6ONLY), and port 0
/// is another port each time.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let is_wildcard = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && a.port() != 0 && a.is_ipv4() == b.is_ipv4() && (a.ip() == b.ip() || is_wildcard)
}

/// `[forward]` and its routes.
fn forward(raw: &Raw<'_>, listen: &listen::Options, faults: &mut Faults) -> forward::Options {
    let default = forward::Options::default();
    let entries = &raw.entries;
    let upstreams = entries.read(&table::FORWARD_UPSTREAMS, faults);
    if let Some(upstreams) = &upstreams {
        check_upstreams(table::FORWARD_UPSTREAMS.spec.path, upstreams, listen, faults);
    }
    forward::Options {
        upstreams: upstreams.map_or(default.upstreams, values),
        strategy: entries.read(&table::FORWARD_STRATEGY, faults).unwrap_or(default.strategy),
        timeout: entries.read(&table::FORWARD_TIMEOUT, faults).unwrap_or(default.timeout),
        trust_ad: entries.read(&table::FORWARD_TRUST_AD, faults).unwrap_or(default.trust_ad),
        case_randomization: entries.read(&table::FORWARD_CASE_RANDOMIZATION, faults).unwrap_or_default(),
        routes: routes(raw, listen, faults),
    }
}

/// `forward.special`: what is not special anyway is a slip.
fn special(entries: &Entries<'_>, faults: &mut Faults) -> Vec<Name> {
    let names = entries.read(&table::FORWARD_SPECIAL, faults).unwrap_or_default();
    let all = Special::new(Vec::new());
    for at in names.iter().filter(|at| !all.holds(&at.value)) {
        let fault = Fault::NotSpecial { name: at.value.to_string() };
        faults.push(at.location.clone(), table::FORWARD_SPECIAL.spec.path, fault);
    }
    values(names)
}

/// `[[forward.route]]`, each zone once.
fn routes(raw: &Raw<'_>, listen: &listen::Options, faults: &mut Faults) -> Vec<Route> {
    let mut routes = Vec::new();
    let mut zones = Vec::new();
    for table in raw.tables("forward.route") {
        // Both are read before either is missed, so that each fault is noted.
        let zone = table.entries.read(&table::ROUTE_ZONE, faults);
        let upstreams = table.entries.read(&table::ROUTE_UPSTREAMS, faults);
        if let Some(upstreams) = &upstreams {
            check_upstreams(table::ROUTE_UPSTREAMS.spec.path, upstreams, listen, faults);
        }
        if let Some(zone) = &zone {
            check_once(table::ROUTE_ZONE.spec.path, &mut zones, zone.clone(), ToString::to_string, faults);
        }
        if let (Some(zone), Some(upstreams)) = (zone, upstreams) {
            routes.push(Route { zone: zone.value, upstreams: values(upstreams) });
        }
    }
    routes
}

/// Notes an upstream that stands twice in its list, and one that is this server itself.
fn check_upstreams(key: &str, upstreams: &[Located<Upstream>], listen: &listen::Options, faults: &mut Faults) {
    let mut seen = Vec::new();
    for at in upstreams {
        check_once(key, &mut seen, at.clone(), upstream::print, faults);
        let secure = Kind::ALL.into_iter().flat_map(|kind| listen.secure(kind)).copied();
        let mut ours = listen.dns.iter().map(|address| address.addr).chain(secure);
        if let Some(ours) = ours.find(|&ours| is_reached(ours, at.value.addr)) {
            let fault = Fault::Circle { upstream: upstream::print(&at.value), listening: ours.to_string() };
            faults.push(at.location.clone(), key, fault);
        }
    }
}

/// Returns whether a question to `asked` surely reaches a socket on `listening`. A wildcard also takes the host's
/// other addresses, which only the running host knows.
fn is_reached(listening: SocketAddr, asked: SocketAddr) -> bool {
    let same_host = listening.ip() == asked.ip() || (listening.ip().is_unspecified() && asked.ip().is_loopback());
    listening.port() == asked.port() && listening.is_ipv4() == asked.is_ipv4() && same_host
}

/// Notes `later` if its value was seen, else remembers it.
fn check_once<T: PartialEq>(
    key: &str,
    seen: &mut Vec<Located<T>>,
    later: Located<T>,
    print: impl Fn(&T) -> String,
    faults: &mut Faults,
) {
    match seen.iter().find(|first| first.value == later.value) {
        Some(first) => {
            let fault = Fault::Twice { what: print(&later.value), first: First::At(first.location.clone()) };
            faults.push(later.location, key, fault);
        }
        None => seen.push(later),
    }
}

/// Drops the places.
fn values<T>(located: Vec<Located<T>>) -> Vec<T> {
    located.into_iter().map(|at| at.value).collect()
}

/// `[cache]`.
fn cache(entries: &Entries<'_>, faults: &mut Faults) -> cache::Options {
    let default = cache::Options::default();
    let ahead = cache::Ahead {
        serve_stale: entries.read(&table::CACHE_SERVE_STALE, faults).unwrap_or(default.ahead.serve_stale),
        prefetch: entries.read(&table::CACHE_PREFETCH, faults).unwrap_or(default.ahead.prefetch),
    };
    let options = cache::Options {
        size_bytes: entries.read(&table::CACHE_SIZE, faults).unwrap_or(default.size_bytes),
        min_ttl: entries.read(&table::CACHE_MIN_TTL, faults).unwrap_or(default.min_ttl),
        max_ttl: entries.read(&table::CACHE_MAX_TTL, faults).unwrap_or(default.max_ttl),
        negative_max_ttl: entries.read(&table::CACHE_NEGATIVE_MAX_TTL, faults).unwrap_or(default.negative_max_ttl),
        ahead,
        save: entries.read(&table::CACHE_SAVE, faults).unwrap_or(default.save),
    };
    if options.min_ttl > options.max_ttl {
        let (min, max) = (&table::CACHE_MIN_TTL.spec, &table::CACHE_MAX_TTL.spec);
        let least = Fault::Unexpected {
            expected: format!("at most {} ({})", max.path, print_duration(options.max_ttl)),
            found: print_duration(options.min_ttl),
        };
        let most = Fault::Unexpected {
            expected: format!("at least {} ({})", min.path, print_duration(options.min_ttl)),
            found: print_duration(options.max_ttl),
        };
        // One of them is written, since the defaults are in order.
        if let Some(item) = entries.item(min.path) {
            item.fault(least, faults);
        } else if let Some(item) = entries.item(max.path) {
            item.fault(most, faults);
        }
    }
    options
}

/// `[catalogue]` but `watch`.
fn catalogue(entries: &Entries<'_>, folder: &Path, faults: &mut Faults) -> catalogue::Options {
    let default = catalogue::Options::default();
    let disabled = entries.read(&table::CATALOGUE_DISABLED, faults);
    let never = entries.read(&table::CATALOGUE_NEVER, faults);
    catalogue::Options {
        path: start_at(folder, entries.read(&table::CATALOGUE_PATH, faults).unwrap_or(default.path)),
        disabled: disabled.map_or(default.disabled, |ids| ids.iter().map(ToString::to_string).collect()),
        never: never.map_or(default.never, |names| names.iter().map(ToString::to_string).collect()),
    }
}

/// `[tag]`.
fn tag(entries: &Entries<'_>, faults: &mut Faults) -> TagOptions {
    let default = TagOptions::default();
    TagOptions {
        edns_option: entries.read(&table::TAG_EDNS_OPTION, faults).unwrap_or(default.edns_option),
        extended_error: entries.read(&table::TAG_EXTENDED_ERROR, faults).unwrap_or(default.extended_error),
    }
}

/// `[learn]`, with the addresses that the rest of the file makes our own.
fn learn(entries: &Entries<'_>, own: Vec<Prefix>, faults: &mut Faults) -> learn::Options {
    let default = learn::Options::default();
    learn::Options {
        hold: entries.read(&table::LEARN_HOLD, faults).unwrap_or(default.hold),
        hold_for_followers: entries
            .read(&table::LEARN_HOLD_FOR_FOLLOWERS, faults)
            .unwrap_or(default.hold_for_followers),
        min_hold: entries.read(&table::LEARN_MIN_HOLD, faults).unwrap_or(default.min_hold),
        grace: entries.read(&table::LEARN_GRACE, faults).unwrap_or(default.grace),
        never: entries.read(&table::LEARN_NEVER, faults).unwrap_or(default.never),
        treat_as_public: entries.read(&table::LEARN_TREAT_AS_PUBLIC, faults).unwrap_or(default.treat_as_public),
        nat64: entries.read(&table::LEARN_NAT64, faults).unwrap_or(default.nat64),
        own,
        max_total: entries.read(&table::LEARN_MAX_TOTAL, faults).unwrap_or(default.max_total),
        max_per_name: entries.read(&table::LEARN_MAX_PER_NAME, faults).unwrap_or(default.max_per_name),
        max_per_trigger: entries.read(&table::LEARN_MAX_PER_TRIGGER, faults).unwrap_or(default.max_per_trigger),
        is_shared: default.is_shared,
        new_per_client_per_minute: entries
            .read(&table::LEARN_NEW_PER_CLIENT_PER_MINUTE, faults)
            .unwrap_or(default.new_per_client_per_minute),
        max_shrink: entries.read(&table::EXPORT_MAX_SHRINK, faults).unwrap_or(default.max_shrink),
    }
}

/// `learn.warm` and the keys beside it.
fn warm(entries: &Entries<'_>, folder: &Path, faults: &mut Faults) -> warm::Options {
    let default = warm::Options::default();
    warm::Options {
        is_on: entries.read(&table::LEARN_WARM, faults).unwrap_or(default.is_on),
        names_file: entries.read(&table::LEARN_WARM_NAMES, faults).map(|path| start_at(folder, path)),
        used_for: entries.read(&table::LEARN_WARM_USED_FOR, faults).unwrap_or(default.used_for),
        names_max: entries.read(&table::LEARN_WARM_MAX_NAMES, faults).unwrap_or(default.names_max),
        per_second: entries.read(&table::LEARN_WARM_MAX_PER_SECOND, faults).unwrap_or(default.per_second),
    }
}

/// `[store]`.
fn store(entries: &Entries<'_>, folder: &Path, faults: &mut Faults) -> store::Options {
    let path = entries.read(&table::STORE_PATH, faults).unwrap_or_else(|| super::STORE_BY_DEFAULT.into());
    let durability = match entries.read(&table::STORE_DURABILITY, faults) {
        Some("disk") => Durability::Disk,
        _ => Durability::Process,
    };
    store::Options { path: start_at(folder, path), durability }
}

/// `store.cluster` and the keys beside it.
fn cluster(
    entries: &Entries<'_>,
    folder: &Path,
    learn: &learn::Options,
    cache: &cache::Options,
    faults: &mut Faults,
) -> Option<cluster::Options> {
    // Each is read, so that each fault is noted.
    let is_insecure = entries.read(&table::STORE_INSECURE, faults).unwrap_or(false);
    let id = entries.read(&table::STORE_CLUSTER_ID, faults).unwrap_or_else(|| "greenlane".to_owned());
    let password_file = entries.read(&table::STORE_CLUSTER_PASSWORD_FILE, faults).map(|path| start_at(folder, path));
    let ca_file = entries.read(&table::STORE_CLUSTER_CA_FILE, faults).map(|path| start_at(folder, path));
    let url = entries.read(&table::STORE_CLUSTER, faults)?;
    let longest = learn.min_hold.max(cache.max_ttl).saturating_add(learn.grace);
    match cluster::Options::new(&url, is_insecure, id, longest) {
        Ok(options) => Some(options.with_files(password_file, ca_file)),
        Err(error) => {
            if let Some(item) = entries.item(table::STORE_CLUSTER.spec.path) {
                item.fault(error, faults);
            }
            None
        }
    }
}

/// `[[export.nftables]]`: in a table of ours every set is there, in the operator's only those that are named.
fn export_nftables(raw: &Raw<'_>, learn: &learn::Options, faults: &mut Faults) -> Vec<nftables::Options> {
    let mut engines = Vec::new();
    let mut places = Vec::new();
    for table in raw.tables("export.nftables") {
        let entries = &table.entries;
        let is_own = entries.read(&table::NFTABLES_MODE, faults) != Some("guest");
        let set = |key, name: &str, faults: &mut Faults| {
            entries.read(key, faults).or_else(|| is_own.then(|| name.to_owned()))
        };
        let sets = SetNames {
            learned4: set(&table::NFTABLES_LEARNED4, "learned4", faults),
            learned6: set(&table::NFTABLES_LEARNED6, "learned6", faults),
            static4: set(&table::NFTABLES_STATIC4, "static4", faults),
            static6: set(&table::NFTABLES_STATIC6, "static6", faults),
        };
        let mark = entries.read(&table::NFTABLES_MARK, faults).unwrap_or(nftables::MARK);
        // What has ended counts until the kernel collects it, so there is room for twice the bound.
        let size = u32::try_from(learn.max_total.saturating_mul(2)).unwrap_or(u32::MAX);
        let family = match entries.read(&table::NFTABLES_FAMILY, faults) {
            Some("ip") => TableFamily::Ip,
            Some("ip6") => TableFamily::Ip6,
            _ => TableFamily::Inet,
        };
        let name = entries.read(&table::NFTABLES_TABLE, faults).unwrap_or_else(|| "greenlane".to_owned());
        let place = Located::new(format!("{} {name}", family.as_str()), table.at.location());
        check_once(table::NFTABLES_TABLE.spec.path, &mut places, place, String::clone, faults);
        let mode = if is_own { Mode::Own { mark, size } } else { Mode::Guest };
        let engine = nftables::Options { mode, family, table: name, sets, hold: learn.hold };
        if let Err(error) = engine.check() {
            let path = |key: &str| format!("export.nftables.{key}");
            // Of two names, one is written; the other may be the default.
            let (written, key) = match &error {
                SetsError::Same { first, second, .. } => {
                    (entries.item(&path(second)).or_else(|| entries.item(&path(first))), path(second))
                }
                SetsError::NoneFits(_) => (None, "export.nftables".to_owned()),
            };
            faults.push(written.map_or_else(|| table.at.location(), |item| item.at.location()), &key, error);
        }
        engines.push(engine);
    }
    engines
}

/// `[[export.file]]`, each path once, and where the paths were written.
fn export_files(raw: &Raw<'_>, folder: &Path, faults: &mut Faults) -> (Vec<export::file::Options>, Vec<Location>) {
    let mut files = Vec::new();
    let mut paths = Vec::new();
    let mut places = Vec::new();
    for table in raw.tables("export.file") {
        let path = table.entries.read(&table::FILE_PATH, faults);
        let format = table.entries.read(&table::FILE_FORMAT, faults).unwrap_or_default();
        let on_change = table.entries.read(&table::FILE_ON_CHANGE, faults).unwrap_or_default();
        let Some(path) = path else {
            continue;
        };
        let path = Located::new(start_at(folder, path.value), path.location);
        check_once(
            table::FILE_PATH.spec.path,
            &mut paths,
            path.clone(),
            |path| quoted(&path.display().to_string()),
            faults,
        );
        places.push(path.location);
        files.push(export::file::Options { path: path.value, format, on_change: command(folder, on_change) });
    }
    (files, places)
}

/// Returns where a key was written.
fn place(entries: &Entries<'_>, path: &str) -> Option<Location> {
    entries.item(path).map(|item| item.at.location())
}

/// Lets a program that is given by a relative path start at `folder`; a bare name is looked up in `PATH`.
fn command(folder: &Path, mut command: Vec<String>) -> Vec<String> {
    if let Some(program) = command.first_mut().filter(|program| program.contains('/')) {
        let path = start_at(folder, PathBuf::from(&*program));
        // A folder that is not UTF-8 leaves the program as it was written.
        if let Some(path) = path.to_str() {
            *program = path.to_owned();
        }
    }
    command
}

/// Puts `folder` before a relative path.
fn start_at(folder: &Path, path: PathBuf) -> PathBuf {
    if folder.as_os_str().is_empty() { path } else { folder.join(path) }
}

/// `[log]`.
fn log(entries: &Entries<'_>, faults: &mut Faults) -> LogOptions {
    LogOptions {
        level: entries.read(&table::LOG_LEVEL, faults).unwrap_or_default(),
        format: entries.read(&table::LOG_FORMAT, faults).unwrap_or_default(),
    }
}

/// Checks every value whose part is not built, and warns of those that are not at their default; a `[[table]]`
/// whose part is not built is warned of as a whole.
fn not_built(raw: &Raw<'_>, faults: &mut Faults) -> Vec<Problem> {
    let mut warnings = Faults::default();
    let mut later = |at: At<'_>, path: &str| warnings.push(at.location(), path, Fault::NotBuilt);
    let is_later = |key: &dyn AnyKey| key.spec().state == State::Later;
    for (key, item) in raw.entries.iter().filter(|(key, _)| is_later(*key)) {
        if key.differs(item, faults) {
            later(item.at, key.spec().path);
        }
    }
    for table in &raw.tables {
        for (key, item) in table.entries.iter().filter(|(key, _)| is_later(*key)) {
            let differs = key.differs(item, faults);
            if differs && table.table.state == State::Built {
                later(item.at, key.spec().path);
            }
        }
        if table.table.state == State::Later {
            later(table.at, &format!("[[{}]]", table.table.path));
        }
    }
    warnings.into_problems().0
}

/// Collects the addresses that must never be learned: those that we listen on and those of the upstreams.
pub(super) fn own_addresses(listen: &listen::Options, forward: &forward::Options) -> Vec<Prefix> {
    let secure = Kind::ALL.into_iter().flat_map(|kind| listen.secure(kind)).map(SocketAddr::ip);
    let listening = listen.dns.iter().map(|address| address.addr.ip()).chain(secure).filter(|ip| !ip.is_unspecified());
    let routed = forward.routes.iter().flat_map(|route| &route.upstreams);
    let upstreams = forward.upstreams.iter().chain(routed).map(|upstream| upstream.addr.ip());
    let mut own: Vec<Prefix> = listening.chain(upstreams).map(|ip| Prefix::host(ip.to_canonical())).collect();
    own.sort();
    own.dedup();
    own
}
