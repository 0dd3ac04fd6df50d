//! The whole of greenlane from outside: the built binary, real sockets of loopback, scripted upstreams.

mod answers;
mod commands;
mod formats;
mod harness;
mod layers;
mod strangers;
mod streams;
mod upstream;
