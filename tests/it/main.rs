//! The whole of greenlane from outside: the built binary, real sockets of loopback, scripted upstreams.

mod answers;
mod commands;
mod encrypted;
mod formats;
mod harness;
mod layers;
mod learning;
mod reload;
mod streams;
mod upstream;
