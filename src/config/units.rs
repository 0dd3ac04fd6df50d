//! Durations and sizes as an operator writes them: a number with its unit, `"100ms"`, `"1h30m"`, `"256MiB"`.
//!
//! A number without a unit is refused, since nobody can tell what it counts. Sizes with `i` are powers of 1024
//! (IEC 80000-13), those without are powers of 1000; letter case does not matter in sizes, in durations it does.

use std::time::Duration;

/// Units of a duration and how many milliseconds each has, the longest first.
const DURATION_UNITS: [(&str, u64); 6] =
    [("w", 604_800_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Units of a size and how many octets each has, the largest first.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1000),
    ("B", 1),
];

/// Reads a duration: one or more whole numbers, each with its unit, the longer units first, without spaces.
/// `None` if it is none or beyond 2^64 milliseconds.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut millis = 0u64;
    let mut rest = text;
    let mut units = DURATION_UNITS.iter();
    while !rest.is_empty() {
        let (number, tail) = number(rest)?;
        let unit_len = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        // `units` only moves on, so a unit comes once and after the longer ones.
        let (_, factor) = units.find(|(name, _)| *name == unit)?;
        millis = millis.checked_add(number.checked_mul(*factor)?)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(Duration::from_millis(millis))
}

/// Writes a duration so that [`parse_duration`] reads it, in the longest unit that divides it; zero is `0s`.
pub(super) fn print_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if millis == 0 {
        return "0s".to_owned();
    }
    print(millis, &DURATION_UNITS)
}

/// Reads a size in octets: one whole number with its unit, without a space. `None` if it is none or beyond 2^64.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = number(text)?;
    let (_, factor) = SIZE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    number.checked_mul(*factor)
}

/// Writes a size so that [`parse_size`] reads it, in the largest unit that divides it.
pub(super) fn print_size(octets: u64) -> String {
    print(octets, &SIZE_UNITS)
}

/// Splits the digits off the front; `None` without any or beyond 2^64.
fn number(text: &str) -> Option<(u64, &str)> {
    let len = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(len);
    Some((digits.parse().ok()?, rest))
}

/// Writes `amount` in the first unit that divides it; the last one has the factor 1.
fn print(amount: u64, units: &[(&str, u64)]) -> String {
    let mut fitting = units.iter().filter(|(_, factor)| amount >= *factor && amount.is_multiple_of(*factor));
    let (unit, factor) = fitting.next().or_else(|| units.last()).copied().unwrap_or(("", 1));
    format!("{}{unit}", amount / factor)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read() {
        for (text, millis) in [
            ("100ms", 100),
            ("8s", 8000),
            ("0s", 0),
            ("10m", 600_000),
            ("1h30m", 5_400_000),
            ("1d", 86_400_000),
            ("2w", 1_209_600_000),
            ("1m5ms", 60_005),
        ] {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn durations_without_unit_or_sense_are_refused() {
        for text in
            ["", "10", "ms", "10 ms", " 10ms", "-1s", "+1s", "1.5s", "1S", "1y", "30m1h", "1s1s", "1ms1s", "1s1"]
        {
            assert_eq!(parse_duration(text), None, "{text}");
        }
        assert_eq!(parse_duration("99999999999999999999s"), None);
        assert_eq!(parse_duration("18446744073709551615w"), None);
        assert_eq!(parse_duration("18446744073709551615ms1ms"), None);
    }

    #[test]
    fn sizes_are_read() {
        for (text, octets) in
            [("256MiB", 268_435_456), ("16MB", 16_000_000), ("512B", 512), ("1kb", 1000), ("2gib", 2 << 30), ("0B", 0)]
        {
            assert_eq!(parse_size(text), Some(octets), "{text}");
        }
    }

    #[test]
    fn sizes_without_unit_or_sense_are_refused() {
        for text in ["", "256", "256M", "MiB", "1.5GiB", "-1B", "1 MiB", "1MiB1B", "20000000000TiB"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn the_longest_unit_that_divides_is_printed() {
        assert_eq!(print_duration(Duration::from_secs(86_400)), "1d");
        assert_eq!(print_duration(Duration::from_secs(90)), "90s");
        assert_eq!(print_duration(Duration::ZERO), "0s");
        assert_eq!(print_size(256 << 20), "256MiB");
        assert_eq!(print_size(16_000_000), "16MB");
        assert_eq!(print_size(0), "0B");
    }

    proptest! {
        #[test]
        fn print_then_parse_gives_the_same_duration(millis: u64) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&print_duration(duration)), Some(duration));
        }

        #[test]
        fn print_then_parse_gives_the_same_size(octets: u64) {
            prop_assert_eq!(parse_size(&print_size(octets)), Some(octets));
        }
    }
}
