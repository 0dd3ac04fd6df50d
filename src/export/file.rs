//! `[[export.file]]`: the set in a file, replaced atomically, and a command afterwards.

use std::path::PathBuf;

use super::format::Format;

/// One file to keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The file; its folder must exist.
    pub path: PathBuf,
    /// What is written into it.
    pub format: Format,
    /// The command to run after a change: program and arguments, no shell; empty for none.
    pub on_change: Vec<String>,
}
