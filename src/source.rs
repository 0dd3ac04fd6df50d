//! Text that a user wrote in a file, and where it stood.
//!
//! A value read from a list or from the configuration keeps its [`Location`], so a check made much later still
//! says `file:line:col`. A [`Problem`] is one message for the user; readers collect all of a file before they fail.

use std::fmt;
use std::sync::Arc;

/// A place in a file: line and column start at 1, the column counts characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Location {
    /// The file as the user would name it.
    pub file: Arc<str>,
    /// Line, from 1; 0 speaks of the file as a whole.
    pub line: u32,
    /// Column in characters, from 1; 0 speaks of the line as a whole.
    pub col: u32,
}

impl Location {
    /// Makes the location of a whole file.
    pub fn file(file: impl Into<Arc<str>>) -> Self {
        Self { file: file.into(), line: 0, col: 0 }
    }

    /// Finds line and column of the octet at `offset` in `text`.
    pub fn in_text(file: Arc<str>, text: &str, offset: usize) -> Self {
        let mut cut = offset.min(text.len());
        while !text.is_char_boundary(cut) {
            cut -= 1;
        }
        let before = &text[..cut];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let line = before.matches('\n').count() + 1;
        let col = before[line_start..].chars().count() + 1;
        Self { file, line: u32::try_from(line).unwrap_or(u32::MAX), col: u32::try_from(col).unwrap_or(u32::MAX) }
    }
}

/// `file:line:col`, without the parts that are 0.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
            if self.col > 0 {
                write!(f, ":{}", self.col)?;
            }
        }
        Ok(())
    }
}

/// A value and the place it was written at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located<T> {
    /// What was read.
    pub value: T,
    /// Where it stood.
    pub location: Location,
}

impl<T> Located<T> {
    /// Puts a value and its place together.
    pub fn new(value: T, location: Location) -> Self {
        Self { value, location }
    }
}

/// One thing to tell the user about a file: `place: what is wrong, what was found, what would be right`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where.
    pub location: Location,
    /// What is wrong, what was found, what would be right; one line, no full stop.
    pub message: String,
}

impl Problem {
    /// Makes a problem.
    pub fn new(location: Location, message: impl Into<String>) -> Self {
        Self { location, message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.location, self.message)
    }
}

/// Every problem of one run, in the order of files and lines; never empty when it is an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_from_one() {
        let text = "a\nbüch x\n";
        let place = |offset| Location::in_text("f".into(), text, offset).to_string();
        assert_eq!(place(0), "f:1:1");
        assert_eq!(place(2), "f:2:1");
        assert_eq!(place(text.find('x').unwrap()), "f:2:6");
        assert_eq!(place(999), "f:3:1");
    }
}
