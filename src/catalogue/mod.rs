//! The bypass catalogue: lists, and the match of a name against them.

use std::path::PathBuf;

pub mod tag;

pub use tag::{AppId, Tag, TagApp};

/// What the catalogue is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The folder of `.list` and `.rpz` files.
    pub path: PathBuf,
    /// Ids of apps whose lists are read and checked but match nothing.
    pub disabled: Vec<String>,
    /// Names that no app may bypass, from each name down.
    pub never: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { path: "zones".into(), disabled: Vec::new(), never: Vec::new() }
    }
}
