//! greenlane: a DNS forwarder that keeps a firewall's TLS-inspection bypass exact.
//!
//! Clients ask it instead of their resolver, over UDP, TCP, TLS, HTTPS or QUIC. It forwards each question, tags every
//! answer whose name lies under a bypass trigger, learns the addresses in that answer into a set, and exports the set to
//! the inspection firewall. The modules stand in the order in which data flows:
//!
//! ```text
//!  UDP, TCP ─▶ listen ─▶ pipeline::try_answer ─ hit ─▶ wire::finish ─▶ client
//!                              └─ miss ─▶ pipeline::resolve      warm ─▶ the same way, before any client asks
//!                                           ├─ policy     names answered at home
//!                                           ├─ cache      equal questions share one exchange; ended answers in need
//!                                           ├─ forward    ask an upstream
//!                                           ├─ catalogue  match the name ─▶ tag
//!                                           └─ learn      admit addresses ─▶ the one writer ─▶ set
//!                        the answer waits for both, at most the hold: store, export::nftables ◀─┤
//!                                                                    cluster, export, web ◀──────┘ ─▶ firewalls
//! ```
//!
//! Where nftables is programmed these are three processes: `keeper` starts and joins them, `learn` and all before it are
//! in the resolver, which holds no privilege, and the engine of `export::nftables` is in the agent.
//!
//! # Who may import whom
//! Layers, lower ones never import higher ones (`tests/it/layers.rs` holds us to it):
//!
//! ```text
//! 0  name, prefix, source, clock, metrics, wire, admission, privilege, sandbox, manager, keeper   nothing of ours but each other
//! 1  catalogue                              layer 0
//! 2  cache, forward                         wire, name, clock, metrics
//!    set                                    name, prefix, clock, metrics, catalogue's Tag
//! 3  store                                  set, name, clock, metrics
//!    learn                                  set, catalogue, wire, admission, name, prefix, clock, metrics
//!    export                                 set, catalogue, admission, name, prefix, clock, metrics
//!    policy                                 catalogue, wire, name, prefix
//! 4  pipeline                               policy, cache, forward, catalogue, learn, wire, clock, metrics
//!    cluster                                learn, set, catalogue, name, clock, metrics
//!    warm                                   pipeline, catalogue, learn's read side, wire, name, source, clock, metrics
//!    web                                    export, set, catalogue, learn's read side, metrics
//! 5  listen                                 pipeline, wire, metrics
//! 6  config                                 source, prefix, name, policy's names, and the `Options` that each part defines
//! 7  daemon, cli, main                      everything
//! ```

pub mod admission;
pub mod clock;
pub mod keeper;
pub mod manager;
pub mod metrics;
pub mod name;
pub mod prefix;
pub mod privilege;
pub mod sandbox;
pub mod source;
pub mod wire;

pub mod catalogue;

pub mod cache;
pub mod forward;
pub mod set;

pub mod export;
pub mod learn;
pub mod policy;
pub mod store;

pub mod pipeline;

pub mod cluster;

pub mod warm;

pub mod web;

pub mod listen;

pub mod config;

pub mod daemon;

pub mod cli;
