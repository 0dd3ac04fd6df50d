//! Which snapshot a consumer holds: a session and a serial inside it.
//!
//! A [`Session`] is drawn at random when the history of the set begins anew; serials count its snapshots from 0, the
//! empty set. A serial says nothing outside its session. One batch of changes makes at most one new serial; a change
//! of ends alone, or none, makes none. (The words are those of RFC 8210; with 64 bits no serial ever wraps, so the
//! arithmetic of RFC 1982 is not needed.)

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// One unbroken history of the set; printed as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Session(pub u64);

impl Session {
    /// Draws a new session.
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Text that is not 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a session is written as 16 hexadecimal digits")]
pub struct SessionError;

/// Reads what [`Session`] prints; upper case is taken too.
impl FromStr for Session {
    type Err = SessionError;

    fn from_str(text: &str) -> Result<Self, SessionError> {
        if text.len() != 16 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(SessionError);
        }
        u64::from_str_radix(text, 16).map(Self).map_err(|_| SessionError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_text_round_trips() {
        for session in [Session(0), Session(0xabc), Session(u64::MAX), Session::random()] {
            assert_eq!(session.to_string().len(), 16);
            assert_eq!(session.to_string().parse(), Ok(session));
        }
    }

    #[test]
    fn other_text_is_no_session() {
        for text in ["", "1", "+000000000000001", "00000000000000001", "000000000000000g", "00000000000000é"] {
            assert_eq!(text.parse::<Session>(), Err(SessionError), "{text}");
        }
    }
}
