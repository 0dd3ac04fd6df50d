//! The variables that override the file.

use std::ffi::{OsStr, OsString};

/// What the name of each of our variables begins with.
pub(super) const PREFIX: &str = "GREENLANE__";

/// The variables `GREENLANE__SECTION__KEY`, sorted by name; others are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Env(Vec<(String, OsString)>);

impl Env {
    /// Returns no variables.
    pub fn none() -> Self {
        Self::default()
    }

    /// Takes the variables of this process.
    pub fn of_process() -> Self {
        std::env::vars_os().collect()
    }

    /// Goes through name and text of each; `None` for a text that is not UTF-8.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.to_str()))
    }
}

/// Keeps those that are ours; of two with the same name the last one.
impl<N: Into<OsString>, V: Into<OsString>> FromIterator<(N, V)> for Env {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        let mut ours: Vec<(String, OsString)> = variables
            .into_iter()
            .map(|(name, value)| (printable(&name.into()), value.into()))
            .filter(|(name, _)| name.starts_with(PREFIX))
            .collect();
        ours.reverse();
        ours.sort_by(|a, b| a.0.cmp(&b.0));
        ours.dedup_by(|later, kept| later.0 == kept.0);
        Self(ours)
    }
}

/// Makes a name that can be printed: what is no text or a control character is replaced.
fn printable(name: &OsStr) -> String {
    name.to_string_lossy().replace(char::is_control, "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ours_are_kept_and_the_last_wins() {
        let env: Env = [("PATH", "/bin"), ("GREENLANE__B__C", "1"), ("GREENLANE_A", "x"), ("GREENLANE__B__C", "2")]
            .into_iter()
            .collect();
        assert_eq!(env.iter().collect::<Vec<_>>(), [("GREENLANE__B__C", Some("2"))]);
    }
}
