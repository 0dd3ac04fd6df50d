//! The whole of greenlane from outside: the built binary, real sockets of loopback, scripted upstreams.

mod answers;
mod commands;
mod consumers;
mod datagrams;
mod encrypted;
mod feeds;
mod firewall;
mod formats;
mod harness;
mod layers;
mod learning;
mod metrics;
mod ordinary;
mod promises;
mod reload;
mod restart;
mod scenarios;
mod stage;
mod strangers;
mod streams;
mod sync;
mod upstream;
mod upstreams;
