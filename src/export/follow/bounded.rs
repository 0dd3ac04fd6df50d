//! Reading what a stranger sends without believing its lengths or its pace.
//!
//! A [`Bounded`] passes octets on to a JSON parser and refuses three things: a *word* (string, number, run of spaces)
//! longer than [`WORD_LEN_MAX`], since a parser gathers those in memory; more than [`BODY_LEN_MAX`] in all; and a
//! sender slower than [`Pace`] allows. So a body costs no more memory than the items that its reader keeps.

use std::io::{self, BufRead, Read};
use std::time::Duration;

use crate::clock::{Clock, Timestamp};

/// Longer than every name, address and app id by far.
pub(super) const WORD_LEN_MAX: usize = 1024;
/// A million hosts take some 90 MB.
pub(super) const BODY_LEN_MAX: u64 = 1 << 30;
/// How long a body may take whatever its length.
const PATIENCE: Duration = Duration::from_secs(45);
/// Octets for which it may take a second more.
const PER_SECOND_MIN: u64 = 16 * 1024;

/// How long one body or event may take: a sender that drips octets is as good as gone.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    clock: Clock,
    begun: Timestamp,
}

impl Pace {
    /// Begins now.
    pub(super) fn new(clock: &Clock) -> Self {
        Self { clock: clock.clone(), begun: clock.now() }
    }

    /// Returns an error if `len` octets took too long.
    pub(super) fn check(&self, len: u64) -> io::Result<()> {
        let allowed = PATIENCE + Duration::from_secs(len / PER_SECOND_MIN);
        if self.clock.now().since(self.begun) > allowed {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it sends too slowly"));
        }
        Ok(())
    }
}

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// With the input.
    End,
    /// With the line, and not before: input that ends inside is cut off.
    LineFeed,
}

/// A body on its way to a parser.
#[derive(Debug)]
pub(super) struct Bounded<'a, R> {
    input: &'a mut R,
    until: Until,
    pace: Pace,
    words: Words,
    len: u64,
    has_ended: bool,
}

impl<'a, R: BufRead> Bounded<'a, R> {
    /// Reads from `input`; the line feed that ends a line is taken, too.
    pub(super) fn new(input: &'a mut R, until: Until, pace: Pace) -> Self {
        Self { input, until, pace, words: Words::default(), len: 0, has_ended: false }
    }

    /// Takes what the parser left, so that the next line can be read.
    pub(super) fn finish(mut self) -> io::Result<()> {
        let mut left = [0; 4096];
        while self.read(&mut left)? > 0 {}
        Ok(())
    }
}

impl<R: BufRead> Read for Bounded<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.has_ended || out.is_empty() {
            return Ok(0);
        }
        self.pace.check(self.len)?;
        let ready = self.input.fill_buf()?;
        let line_feed = match self.until {
            Until::LineFeed => ready.iter().take(out.len()).position(|octet| *octet == b'\n'),
            Until::End => None,
        };
        let len = line_feed.unwrap_or_else(|| ready.len().min(out.len()));
        out[..len].copy_from_slice(&ready[..len]);
        if ready.is_empty() {
            self.has_ended = true;
            if self.until == Until::LineFeed {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        self.has_ended |= line_feed.is_some();
        self.input.consume(len + usize::from(line_feed.is_some()));
        self.len += len as u64;
        if self.len > BODY_LEN_MAX {
            return Err(too_long("it sends more than 1 GiB at once"));
        }
        self.words.check(&out[..len])?;
        Ok(len)
    }
}

/// Measures the words of JSON.
#[derive(Debug, Default)]
struct Words {
    len: usize,
    is_in_string: bool,
    is_escaped: bool,
}

impl Words {
    fn check(&mut self, octets: &[u8]) -> io::Result<()> {
        for &octet in octets {
            self.len += 1;
            if self.is_escaped {
                self.is_escaped = false;
            } else if self.is_in_string {
                self.is_escaped = octet == b'\\';
                self.is_in_string = octet != b'"';
            } else if octet == b'"' {
                (self.is_in_string, self.len) = (true, 0);
            } else if b"{}[],:".contains(&octet) {
                self.len = 0;
            }
            if self.len > WORD_LEN_MAX {
                return Err(too_long("it sends a word of more than 1024 octets"));
            }
        }
        Ok(())
    }
}

fn too_long(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, until: Until) -> io::Result<(String, String)> {
        let clock = Clock::manual(Timestamp::from_secs(1));
        let mut input = io::BufReader::with_capacity(7, text.as_bytes());
        let mut body = String::new();
        Bounded::new(&mut input, until, Pace::new(&clock)).read_to_string(&mut body)?;
        let mut rest = String::new();
        input.read_to_string(&mut rest)?;
        Ok((body, rest))
    }

    #[test]
    fn line_ends_at_its_line_feed_and_nowhere_else() {
        let (body, rest) = read("{\"a\": [1]}\nevent: x\n", Until::LineFeed).unwrap();
        assert_eq!((body.as_str(), rest.as_str()), ("{\"a\": [1]}", "event: x\n"));
        assert_eq!(read("{\"a\": [1]", Until::LineFeed).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(read("1\n2", Until::End).unwrap().0, "1\n2");
    }

    #[test]
    fn long_words_are_refused_inside_and_outside_of_strings() {
        let long = "x".repeat(WORD_LEN_MAX);
        for text in [format!("[\"{long}y\"]"), format!("[{}]", " ".repeat(1030)), format!("[\"\\\"{long}\"]")] {
            assert_eq!(read(&text, Until::End).unwrap_err().kind(), io::ErrorKind::InvalidData, "{text}");
        }
        let many = format!("[{}1]", "\"x\",".repeat(2000));
        assert!(read(&many, Until::End).is_ok());
    }

    #[test]
    fn sender_that_drips_is_given_up() {
        let clock = Clock::manual(Timestamp::from_secs(1));
        let mut input = io::BufReader::with_capacity(1, &b"[1,2]"[..]);
        let mut body = Bounded::new(&mut input, Until::End, Pace::new(&clock));
        let mut octet = [0];
        assert_eq!(body.read(&mut octet).unwrap(), 1);
        clock.advance(Duration::from_secs(46));
        assert_eq!(body.read(&mut octet).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
