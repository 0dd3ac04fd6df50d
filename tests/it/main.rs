//! The whole of greenlane from outside: the built binary, real sockets of loopback, scripted upstreams.

mod answers;
mod commands;
mod encrypted;
mod feeds;
mod formats;
mod harness;
mod layers;
mod learning;
mod promises;
mod reload;
mod scenarios;
mod stage;
mod strangers;
mod streams;
mod upstream;
