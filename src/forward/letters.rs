//! Letter case as a secret ("0x20"): the letters of a question over UDP are drawn at random, and only a reply that
//! repeats them counts.
//!
//! Whoever forges a reply must guess them beside the id and the port (RFC 5452 §4.3): one bit for each letter of the
//! name. Almost all servers repeat the question as it came; one that does not is found out and asked as before:
//! [`STRIKES_MAX`] replies in a row in other letters let an upstream off for [`PLAIN_FOR`], then it is tried anew.
//! Until then such a reply is dropped like one with a wrong id. A forger gains nothing by it: what is let off needs a
//! right id on the right port, in which case the reply would have been taken without all this.
//!
//! Over connections nothing is drawn: nobody forges there who does not stand in between, where he reads the letters.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::{Clock, Timestamp};

/// How many replies in a row in other letters it takes until an upstream is let off: one may be a forger's luck.
const STRIKES_MAX: u32 = 2;

/// How long an upstream is let off; then it may have been replaced by one that knows better.
const PLAIN_FOR: Duration = Duration::from_secs(60 * 60);

/// Which letters of a name are capital ones: one bit for each octet, in turn anew after 64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Letters(Option<u64>);

impl Letters {
    /// The letters as they are; any will do in the reply.
    pub(super) const ANY: Self = Self(None);

    /// Draws them at random.
    pub(super) fn draw() -> Self {
        Self(Some(rand::random()))
    }

    /// Gives a name in lower case and wire form these letters. Length octets are below `A` and stay.
    pub(super) fn apply(self, name: &mut [u8]) {
        let Some(bits) = self.0 else { return };
        for (at, octet) in name.iter_mut().enumerate() {
            *octet = write(bits, at, *octet);
        }
    }

    /// Returns whether `repeated` is `name`, a lower-case one in wire form, in these letters; both are as long.
    pub(super) fn are_in(self, repeated: &[u8], name: &[u8]) -> bool {
        let Some(bits) = self.0 else { return true };
        repeated.iter().zip(name).enumerate().all(|(at, (&repeated, &octet))| repeated == write(bits, at, octet))
    }
}

fn write(bits: u64, at: usize, octet: u8) -> u8 {
    if bits >> (at % 64) & 1 == 1 { octet.to_ascii_uppercase() } else { octet }
}

/// Whether an upstream repeats letters, as far as is known.
#[derive(Debug)]
pub(super) struct Repeats {
    /// Whether letters are drawn at all.
    is_on: bool,
    clock: Clock,
    /// Replies in other letters since the last in the right ones.
    strikes: AtomicU32,
    /// It is let off until then, in milliseconds; zero if it is not.
    plain_until: AtomicU64,
}

impl Repeats {
    /// Makes one of which nothing is known.
    pub(super) fn new(is_on: bool, clock: Clock) -> Self {
        Self { is_on, clock, strikes: AtomicU32::new(0), plain_until: AtomicU64::new(0) }
    }

    /// Draws letters for a question, unless the upstream is let off.
    pub(super) fn draw(&self) -> Letters {
        if !self.is_on {
            return Letters::ANY;
        }
        let until = self.plain_until.load(Ordering::Relaxed);
        if until != 0 {
            if self.clock.now() < Timestamp::from_millis(until) {
                return Letters::ANY;
            }
            self.plain_until.store(0, Ordering::Relaxed);
        }
        Letters::draw()
    }

    /// Notes a reply in the letters that were drawn.
    pub(super) fn kept(&self, letters: Letters) {
        // Mostly there is nothing to write, and what is only read costs no other core anything.
        if letters != Letters::ANY && self.strikes.load(Ordering::Relaxed) != 0 {
            self.strikes.store(0, Ordering::Relaxed);
        }
    }

    /// Notes a reply that came in other letters; returns whether the upstream is let off from now on.
    pub(super) fn changed(&self) -> bool {
        if self.strikes.fetch_add(1, Ordering::Relaxed) + 1 < STRIKES_MAX {
            return false;
        }
        self.strikes.store(0, Ordering::Relaxed);
        let until = self.clock.now().after(PLAIN_FOR).as_millis();
        self.plain_until.swap(until, Ordering::Relaxed) == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn repeats() -> (Repeats, Clock) {
        let clock = Clock::manual(Timestamp::from_secs(1_000_000));
        (Repeats::new(true, clock.clone()), clock)
    }

    #[test]
    fn letters_are_drawn_and_nothing_else_changes() {
        let name = *b"\x03www\x08ex4mpl-e\x03com\x00";
        let mut seen = std::collections::HashSet::new();
        for _ in 0..200 {
            let letters = Letters::draw();
            let mut mixed = name;
            letters.apply(&mut mixed);
            assert!(mixed.eq_ignore_ascii_case(&name));
            assert!(letters.are_in(&mixed, &name));
            seen.insert(mixed);
        }
        assert!(seen.len() > 150, "{}", seen.len());
    }

    proptest! {
        /// A reply in the letters of another draw counts only where both draws are the same.
        #[test]
        fn only_the_drawn_letters_count(name in "[a-z0-9-]{1,80}", one: u64, other: u64) {
            let (mut first, mut second) = (name.clone().into_bytes(), name.clone().into_bytes());
            Letters(Some(one)).apply(&mut first);
            Letters(Some(other)).apply(&mut second);
            prop_assert_eq!(Letters(Some(one)).are_in(&second, name.as_bytes()), first == second);
            prop_assert!(Letters::ANY.are_in(&second, name.as_bytes()));
        }
    }

    #[test]
    fn upstream_that_keeps_changing_letters_is_let_off_for_an_hour() {
        let (repeats, clock) = repeats();
        assert!(!repeats.changed());
        assert_ne!(repeats.draw(), Letters::ANY);
        assert!(repeats.changed());
        assert!(!repeats.changed() && !repeats.changed(), "it is told once");
        assert_eq!(repeats.draw(), Letters::ANY);
        clock.advance(PLAIN_FOR - Duration::from_secs(1));
        assert_eq!(repeats.draw(), Letters::ANY);
        clock.advance(Duration::from_secs(1));
        assert_ne!(repeats.draw(), Letters::ANY);
    }

    #[test]
    fn strikes_count_in_a_row_only() {
        let (repeats, _) = repeats();
        for _ in 0..10 {
            assert!(!repeats.changed());
            repeats.kept(repeats.draw());
        }
        assert!(!repeats.changed());
        repeats.kept(Letters::ANY);
        assert!(repeats.changed(), "a reply to a question whose letters were not drawn says nothing");
    }

    #[test]
    fn nothing_is_drawn_unless_wanted() {
        let repeats = Repeats::new(false, Clock::system());
        assert_eq!(repeats.draw(), Letters::ANY);
    }
}
