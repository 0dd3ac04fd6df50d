//! The operator's file of further names to ask ahead: one a line, `#` starts a comment.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use crate::catalogue::{Entry, Found, Kind};
use crate::name::Name;
use crate::source::{Located, Location, Problem, Problems};

/// The most octets of the file: some 100,000 names, of which no more are asked than the budget lets.
const LEN_MAX: u64 = 4 << 20;

/// Reads the file; `place` is where the configuration names it.
///
/// # Errors
/// Every mistake in it, each with its place.
pub(super) fn read(path: &Path, place: Option<&Location>) -> Result<Vec<Located<Name>>, Problems> {
    let file: Arc<str> = path.display().to_string().into();
    let refuse = |message: String| {
        let location = place.cloned().unwrap_or_else(|| Location::file("learn.warm-names"));
        Problems(vec![Problem::new(location, format!("learn.warm-names: {file}: {message}"))])
    };
    let mut octets = Vec::new();
    let opened = File::open(path).and_then(|file| file.take(LEN_MAX + 1).read_to_end(&mut octets));
    opened.map_err(|error| refuse(format!("cannot be read: {error}, expected a text file with one name a line")))?;
    if octets.len() as u64 > LEN_MAX {
        return Err(refuse(format!("more than {LEN_MAX} octets, expected one name a line")));
    }
    parse(&octets, &file)
}

fn parse(octets: &[u8], file: &Arc<str>) -> Result<Vec<Located<Name>>, Problems> {
    let octets = octets.strip_prefix(b"\xef\xbb\xbf").unwrap_or(octets);
    let text = std::str::from_utf8(octets).map_err(|error| {
        let before = String::from_utf8_lossy(&octets[..error.valid_up_to()]);
        let location = Location::in_text(Arc::clone(file), &before, before.len());
        Problems(vec![Problem::new(location, "not UTF-8, expected the file saved as UTF-8")])
    })?;
    let (mut names, mut problems) = (Vec::new(), Problems::default());
    for (line, number) in text.lines().zip(1..) {
        let body = line.split('#').next().unwrap_or_default();
        let entry = body.trim();
        if entry.is_empty() {
            continue;
        }
        let col = u32::try_from(body.chars().take_while(|c| c.is_whitespace()).count() + 1).unwrap_or(u32::MAX);
        let location = Location { file: Arc::clone(file), line: number, col };
        match name(entry) {
            Ok(name) => names.push(Located::new(name, location)),
            Err(message) => problems.0.push(Problem::new(location, message)),
        }
    }
    if problems.0.is_empty() { Ok(names) } else { Err(problems) }
}

/// Reads a name as lists write it, without a sign: there is nothing to ask below a name.
fn name(text: &str) -> Result<Name, String> {
    match text.parse::<Entry>() {
        Ok(Entry::Name(trigger)) if trigger.kind == Kind::Suffix => Ok(trigger.name),
        Ok(_) => Err(format!("`{}`: expected one whole name such as `www.example.com`", Found::new(text))),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &[u8]) -> Result<Vec<String>, String> {
        let names = parse(text, &"warm-names.txt".into()).map_err(|problems| problems.to_string())?;
        Ok(names.iter().map(|name| format!("{} {}", name.location.line, name.value)).collect())
    }

    #[test]
    fn one_name_a_line_with_comments() {
        let text = "\u{feff}# Ours\nwww.Example.com  # the portal\r\n\n\tb\u{fc}cher.example.\n#off.example\n";
        assert_eq!(read_text(text.as_bytes()).unwrap(), ["2 www.example.com", "4 xn--bcher-kva.example"]);
        assert_eq!(read_text(b"").unwrap(), [""; 0]);
    }

    #[test]
    fn every_mistake_is_told_with_its_place() {
        let text = "a.example\n  *.b.example\nc.example, d.example\n192.0.2.1\n!e.example\nhttps://f.example/\n";
        let said = read_text(text.as_bytes()).unwrap_err();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[0], "warm-names.txt:2:3: `*.b.example`: expected one whole name such as `www.example.com`");
        assert_eq!(lines.len(), 5, "{said}");
        for (line, place) in lines.iter().zip(["2:3", "3:1", "4:1", "5:1", "6:1"]) {
            assert!(line.starts_with(&format!("warm-names.txt:{place}: `")), "{line}");
        }
        assert_eq!(
            read_text(b"a\n\xff").unwrap_err(),
            "warm-names.txt:2:1: not UTF-8, expected the file saved as UTF-8"
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_told_where_it_was_named() {
        let place = Location { file: "config.toml".into(), line: 9, col: 14 };
        let said = read(Path::new("/nowhere/names"), Some(&place)).unwrap_err().to_string();
        assert!(said.starts_with("config.toml:9:14: learn.warm-names: /nowhere/names: cannot be read: "), "{said}");
    }
}
