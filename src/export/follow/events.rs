//! Server-sent events (HTML, section 9.2), as far as `/watch` uses them.
//!
//! An event's `data` line is parsed while it comes ([`Bounded`]); any other line is short or refused. Events of names
//! that we do not know are passed over, and so are fields. One `data` line makes an event: what greenlane sends, and no
//! proxy splits lines.

use std::io::{self, BufRead};

use thiserror::Error;

use super::bounded::{Bounded, Pace, Until};
use super::gate::Gate;
use super::told::{self, Malformed, Theirs, Told};
use crate::clock::Clock;

/// The longest line that is not data.
const LINE_LEN_MAX: usize = 1024;
/// The most lines between two events: comments come one at a time.
const LINES_MAX: usize = 64;

/// What came next.
#[derive(Debug)]
pub(super) enum Seen {
    /// An event.
    Told(Told),
    /// A comment or an event of another kind: the resolver lives.
    Alive,
}

/// Why nothing more comes.
#[derive(Debug, Error)]
pub(super) enum Broken {
    #[error("the stream ended")]
    Ended,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("malformed event: {0}")]
    Malformed(#[from] Malformed),
    #[error("malformed event stream: {0}")]
    Lines(&'static str),
}

/// A stream of events.
#[derive(Debug)]
pub(super) struct Events<R> {
    input: R,
    clock: Clock,
    theirs: Theirs,
}

impl<R: BufRead> Events<R> {
    pub(super) fn new(input: R, clock: Clock, theirs: Theirs) -> Self {
        Self { input, clock, theirs }
    }

    /// Waits for the next event or comment.
    pub(super) fn next(&mut self, gate: &Gate) -> Result<Seen, Broken> {
        let mut is_ours = true;
        let mut pace = None;
        for _ in 0..LINES_MAX {
            let Some(name) = self.field(&mut pace)? else { continue };
            let pace = pace.get_or_insert_with(|| Pace::new(&self.clock)).clone();
            match name.as_str() {
                // A line that starts with a colon is a comment.
                "" => {
                    self.line(&pace)?;
                    return Ok(Seen::Alive);
                }
                "event" => is_ours = matches!(self.line(&pace)?.trim(), "delta" | "renewed" | "hold"),
                "data" => return self.data(gate, pace, is_ours),
                _ => {
                    self.line(&pace)?;
                }
            }
        }
        Err(Broken::Lines("no event within 64 lines"))
    }

    fn data(&mut self, gate: &Gate, pace: Pace, is_ours: bool) -> Result<Seen, Broken> {
        let mut body = Bounded::new(&mut self.input, Until::LineFeed, pace);
        if !is_ours {
            body.finish()?;
            return Ok(Seen::Alive);
        }
        let told = told::read(&mut body, gate, self.theirs.at(self.clock.now()))?;
        body.finish()?;
        Ok(Seen::Told(told))
    }

    /// Reads the name of a field, its colon taken; `None` at an empty line.
    fn field(&mut self, pace: &mut Option<Pace>) -> Result<Option<String>, Broken> {
        let mut name = String::new();
        loop {
            let Some(octet) = self.octet()? else { return Err(Broken::Ended) };
            // The wait for an event is no slowness; from its first octet on it is.
            let pace = pace.get_or_insert_with(|| Pace::new(&self.clock));
            pace.check(0)?;
            match octet {
                b'\n' if name.trim().is_empty() => return Ok(None),
                b'\n' => return Err(Broken::Lines("a line without a colon")),
                b':' => return Ok(Some(name)),
                _ if name.len() >= LINE_LEN_MAX => return Err(Broken::Lines("a field name of more than 1024 octets")),
                octet => name.push(char::from(octet)),
            }
        }
    }

    /// Reads the rest of a line.
    fn line(&mut self, pace: &Pace) -> Result<String, Broken> {
        let mut line = String::new();
        loop {
            pace.check(0)?;
            match self.octet()?.ok_or(Broken::Ended)? {
                b'\n' => return Ok(line),
                _ if line.len() >= LINE_LEN_MAX => return Err(Broken::Lines("a line of more than 1024 octets")),
                octet => line.push(char::from(octet)),
            }
        }
    }

    fn octet(&mut self) -> Result<Option<u8>, Broken> {
        let octet = self.input.fill_buf()?.first().copied();
        self.input.consume(usize::from(octet.is_some()));
        Ok(octet)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::gate::testing::gate;
    use super::*;
    use crate::clock::Timestamp;

    fn read(text: &[u8]) -> (Vec<Seen>, Broken) {
        let clock = Clock::manual(Timestamp::from_secs(1_800_000_000));
        let theirs = Theirs::new(None, clock.now());
        let mut events = Events::new(io::BufReader::with_capacity(5, text), clock, theirs);
        let mut seen = Vec::new();
        loop {
            match events.next(&gate()) {
                Ok(next) => seen.push(next),
                Err(broken) => return (seen, broken),
            }
        }
    }

    const DELTA: &str = r#"{"session":"00000000000000ab","serial":1,"reset":true,"announced":[],"withdrawn":[]}"#;

    #[test]
    fn events_and_comments_are_told_apart() {
        let text = format!(
            ": still here\n\nevent: delta\nid: 00000000000000ab-1\ndata: {DELTA}\n\nevent: new-kind\ndata: [1,{{}}]\n\n\
             retry: 5\nevent: renewed\ndata: {{\"session\":\"00000000000000ab\",\"renewed\":[]}}\r\n\r\n"
        );
        let (seen, broken) = read(text.as_bytes());
        assert!(
            matches!(seen[..], [Seen::Alive, Seen::Told(Told::Delta(_)), Seen::Alive, Seen::Told(Told::Renewed(_))]),
            "{seen:?}"
        );
        assert!(matches!(broken, Broken::Ended), "{broken}");
    }

    #[test]
    fn broken_streams_end_with_their_reason() {
        let cut = &DELTA[..40];
        for (text, told) in [
            (format!("data: {cut}"), "malformed event"),
            (format!("data: {cut}\n\n"), "malformed event"),
            ("event delta\n".to_owned(), "a line without a colon"),
            (format!("event: {}", "x".repeat(2000)), "a line of more than"),
            ("x".repeat(2000), "a field name of more than"),
            ("\n".repeat(100), "no event within"),
            ("<html>\n".to_owned(), "a line without a colon"),
        ] {
            let (seen, broken) = read(text.as_bytes());
            assert!(seen.is_empty() && broken.to_string().contains(told), "{text}: {broken}");
        }
    }

    proptest! {
        #[test]
        fn noise_ends_and_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..400)) {
            read(&noise);
        }

        #[test]
        fn shuffled_lines_end_and_never_panic(
            picks in proptest::collection::vec(0_usize..6, 0..40),
        ) {
            let data = format!("data: {DELTA}\n");
            let lines = ["event: delta\n", "event: renewed\n", &data, "\n", ": x\n", "id: 7\n"];
            let text: String = picks.into_iter().map(|pick| lines[pick]).collect();
            read(text.as_bytes());
        }
    }
}
