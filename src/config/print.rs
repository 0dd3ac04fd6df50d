//! `config.toml` as the repository ships it: every key at its default, with the line that explains it.
//!
//! A line that begins with `# ` explains. One that begins with `#` and no space is an example of a key or table
//! that has no default: it is right once the `#` is gone.

use super::key::{Shape, State, Table, Unset};
use super::table::{KEYS, TABLES};

const HEAD: &str = "\
# The configuration of greenlane. Every key stands at its default; an empty file means the same.
# Durations and sizes have units (\"100ms\", \"1h30m\", \"256MiB\", \"16MB\"), relative paths start at this file's folder.
# A variable GREENLANE__SECTION__KEY overrides a key: GREENLANE__LEARN__MIN_HOLD=5m sets min-hold of [learn].
";

/// Returns the text of `config.toml`.
pub fn default_file() -> String {
    let mut text = HEAD.to_owned();
    for table in TABLES {
        push_table(table, &mut text);
    }
    text
}

fn push_table(table: &Table, text: &mut String) {
    let header = match table.shape {
        Shape::Once => format!("[{}]", table.path),
        Shape::Many => format!("#[[{}]]", table.path),
    };
    text.push_str(&format!("\n#{}{}\n{header}\n", table.doc, remark(table.state)));
    for spec in KEYS.iter().map(|key| key.spec()).filter(|spec| spec.table() == table.path) {
        let is_example = table.shape == Shape::Many || matches!(spec.unset, Unset::Absent(_));
        let mark = if is_example { "#" } else { "" };
        // What the table says of itself need not be said of each key.
        let remark = if table.state == State::Later { "" } else { remark(spec.state) };
        text.push_str(&format!("#{}{remark}\n{mark}{} = {}\n", spec.doc, spec.name(), spec.unset.text()));
    }
}

/// Returns what is added to the line of a key or table without effect.
fn remark(state: State) -> &'static str {
    match state {
        State::Built => "",
        State::Later => " Not built yet.",
    }
}
