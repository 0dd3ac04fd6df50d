//! The catalogue as a whole: the shipped lists, the good and the bad zones of `tests/zones/`, the match.

use std::path::{Path, PathBuf};

use jiff::civil::{Date, date};

use super::*;

fn today() -> Date {
    date(2026, 11, 24)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

fn zones() -> Loaded {
    load(&Options { path: root().join("zones"), ..Options::default() }, today()).unwrap()
}

#[test]
fn smoke() {
    println!("{}", report(&zones()));
}
