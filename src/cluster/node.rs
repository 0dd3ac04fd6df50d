//! What a resolver says of itself: that it is there, and which lists it has.
//!
//! ```text
//!   1 <hash of the lists, 16 hex digits> <engine's time in milliseconds>
//! ```
//! The time is that of the engine, so that resolvers whose clocks are apart still see each other.

use std::time::Duration;

use crate::clock::Timestamp;

/// Who has said nothing for so long is not there.
pub(super) const ABSENT_AFTER: Duration = Duration::from_secs(15);

/// Whose last word is this old is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// The longest word.
const LEN_MAX: usize = 256;

/// What a resolver said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Said {
    /// The hash of its lists.
    pub(super) lists: u64,
    /// When, by the engine's clock.
    pub(super) at: Timestamp,
}

impl Said {
    /// Writes it.
    pub(super) fn write(self) -> String {
        format!("1 {:016x} {}", self.lists, self.at.as_millis())
    }

    /// Reads it; `None` if it is none. More words may follow.
    pub(super) fn read(octets: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(octets.get(..LEN_MAX.min(octets.len()))?).ok()?;
        let mut words = text.split(' ');
        if words.next() != Some("1") {
            return None;
        }
        let lists = words.next().filter(|word| word.len() == 16)?;
        let lists = u64::from_str_radix(lists, 16).ok()?;
        Some(Self { lists, at: Timestamp::from_millis(words.next()?.parse().ok()?) })
    }

    /// Returns whether it is there at `now`.
    pub(super) fn is_present(self, now: Timestamp) -> bool {
        now.since(self.at) <= ABSENT_AFTER
    }
}

/// Returns whether a word is old enough to be removed, or is none.
pub(super) fn is_forgotten(octets: &[u8], now: Timestamp) -> bool {
    // A clock of the engine that was set back makes nobody immortal.
    Said::read(octets).is_none_or(|said| now.since(said.at) > FORGOTTEN_AFTER || said.at.since(now) > FORGOTTEN_AFTER)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn word_is_read_as_written_and_ages() {
        let at = Timestamp::from_secs(1000);
        let said = Said { lists: 7, at };
        let text = said.write();
        assert_eq!(Said::read(text.as_bytes()), Some(said));
        assert_eq!(Said::read(format!("{text} and more").as_bytes()), Some(said));
        assert!(
            said.is_present(at.after(Duration::from_secs(15))) && !said.is_present(at.after(Duration::from_secs(16)))
        );
        assert!(!is_forgotten(text.as_bytes(), at.after(Duration::from_secs(600))));
        assert!(is_forgotten(text.as_bytes(), at.after(Duration::from_secs(601))));
        assert!(is_forgotten(text.as_bytes(), Timestamp::from_secs(1)));
        for bad in ["", "1", "2 0000000000000007 1", "1 7 1", "1 000000000000000z 1", "1 0000000000000007 x"] {
            assert!(Said::read(bad.as_bytes()).is_none() && is_forgotten(bad.as_bytes(), at), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_octets_are_read_without_a_panic(octets in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Said::read(&octets);
        }
    }
}
