//! Consumers take the set: formats and files.

pub mod file;
pub mod format;
