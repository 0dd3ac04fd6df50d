//! A domain name as every part of greenlane compares it: lower-case, uncompressed wire form.
//!
//! [`Name`] is what catalogue triggers, sightings and the chain of an answer are keyed by. It is at most 255
//! octets long with its root label (RFC 1035 §2.3.4), each label at most 63, and holds no compression pointer.
//! Octets `A` to `Z` are folded to lower case on the way in (RFC 4343); every other octet is kept, so a hostile
//! name survives a round trip. It is printed in the escapes of RFC 1035 §5.1 and is then plain ASCII without
//! control characters; HTML, CSV or a shell still need their own escaping.

use std::fmt;

use thiserror::Error;

/// The most octets a name may take in wire form, with the root label (RFC 1035 §2.3.4).
pub const WIRE_LEN_MAX: usize = 255;

/// The most octets a label may take (RFC 1035 §2.3.4).
pub const LABEL_LEN_MAX: usize = 63;

/// A domain name: lower-case, uncompressed wire form, root label included.
///
/// Ordered by its octets; the order has no meaning in DNS and serves only stable output.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Box<[u8]>);

/// Why octets or text are no domain name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// Two dots in a row, or a leading one.
    #[error("empty label")]
    EmptyLabel,
    /// A label of more than 63 octets.
    #[error("label of {0} octets, at most 63 are allowed (RFC 1035 section 2.3.4)")]
    LabelTooLong(usize),
    /// More than 255 octets in wire form.
    #[error("name longer than 255 octets (RFC 1035 section 2.3.4)")]
    NameTooLong,
    /// A backslash not followed by a character or three digits up to 255.
    #[error("bad escape, expected `\\` and a character or `\\` and three digits up to 255 (RFC 1035 section 5.1)")]
    BadEscape,
    /// Text with a character outside ASCII; make it an A-label first.
    #[error("character outside ASCII")]
    NotAscii,
    /// Wire form that ends early, goes on after the root label, or holds a pointer.
    #[error("malformed wire form")]
    Malformed,
}

impl Name {
    /// Returns the root name.
    pub fn root() -> Self {
        Self(Box::new([0]))
    }

    /// Takes one whole uncompressed name in wire form, folding it to lower case.
    ///
    /// # Errors
    /// [`NameError::Malformed`] if `wire` is not exactly one uncompressed name of at most 255 octets.
    pub fn from_wire(wire: &[u8]) -> Result<Self, NameError> {
        if wire.len() > WIRE_LEN_MAX {
            return Err(NameError::NameTooLong);
        }
        let mut at = 0;
        loop {
            let len = usize::from(*wire.get(at).ok_or(NameError::Malformed)?);
            if len > LABEL_LEN_MAX {
                return Err(NameError::Malformed);
            }
            at += 1 + len;
            if len == 0 {
                break;
            }
        }
        if at != wire.len() {
            return Err(NameError::Malformed);
        }
        // Length octets are below `A`, so folding the whole slice leaves them alone.
        Ok(Self(wire.to_ascii_lowercase().into_boxed_slice()))
    }

    /// Reads presentation form (RFC 1035 §5.1): escapes are decoded, a trailing dot is allowed, `.` is the root.
    ///
    /// # Errors
    /// Any [`NameError`] but [`NameError::Malformed`].
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text == "." {
            return Ok(Self::root());
        }
        let mut wire = Vec::with_capacity(text.len() + 2);
        let mut label_at = 0;
        wire.push(0);
        let mut octets = text.bytes();
        let mut ended = false;
        while let Some(octet) = octets.next() {
            ended = false;
            let octet = match octet {
                b'.' => {
                    close_label(&mut wire, label_at)?;
                    label_at = wire.len();
                    wire.push(0);
                    ended = true;
                    continue;
                }
                b'\\' => escaped(&mut octets)?,
                0x80.. => return Err(NameError::NotAscii),
                plain => plain,
            };
            wire.push(octet.to_ascii_lowercase());
        }
        if !ended {
            close_label(&mut wire, label_at)?;
            wire.push(0);
        }
        if wire.len() > WIRE_LEN_MAX {
            return Err(NameError::NameTooLong);
        }
        Ok(Self(wire.into_boxed_slice()))
    }

    /// Returns the lower-case wire form, root label included.
    pub fn as_wire(&self) -> &[u8] {
        &self.0
    }

    /// Returns whether this is the root name.
    pub fn is_root(&self) -> bool {
        self.0.len() == 1
    }

    /// Returns the labels from the left, without the root label.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest: &[u8] = &self.0;
        std::iter::from_fn(move || {
            let (&len, tail) = rest.split_first()?;
            if len == 0 {
                return None;
            }
            let (label, tail) = tail.split_at(usize::from(len));
            rest = tail;
            Some(label)
        })
    }

    /// Returns how many labels the name has, without the root label.
    pub fn label_count(&self) -> usize {
        self.labels().count()
    }

    /// Returns whether this name is `ancestor` or lies below it.
    pub fn is_at_or_below(&self, ancestor: &Self) -> bool {
        let Some(cut) = self.0.len().checked_sub(ancestor.0.len()) else {
            return false;
        };
        let mut at = 0;
        while at < cut {
            at += 1 + usize::from(self.0[at]);
        }
        at == cut && self.0[cut..] == *ancestor.0
    }
}

/// Writes the length of the label that starts at `label_at` and ends with the text so far.
fn close_label(wire: &mut [u8], label_at: usize) -> Result<(), NameError> {
    match wire.len() - label_at - 1 {
        0 => Err(NameError::EmptyLabel),
        len if len > LABEL_LEN_MAX => Err(NameError::LabelTooLong(len)),
        len => {
            wire[label_at] = len as u8;
            Ok(())
        }
    }
}

/// Decodes what follows a backslash.
fn escaped(octets: &mut std::str::Bytes<'_>) -> Result<u8, NameError> {
    let first = octets.next().ok_or(NameError::BadEscape)?;
    if !first.is_ascii_digit() {
        return if first.is_ascii() { Ok(first) } else { Err(NameError::NotAscii) };
    }
    let mut value = u32::from(first - b'0');
    for _ in 0..2 {
        let digit = octets.next().filter(u8::is_ascii_digit).ok_or(NameError::BadEscape)?;
        value = value * 10 + u32::from(digit - b'0');
    }
    u8::try_from(value).map_err(|_| NameError::BadEscape)
}

/// Presentation form without a trailing dot; the root is `.`.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            return f.write_str(".");
        }
        for (i, label) in self.labels().enumerate() {
            if i > 0 {
                f.write_str(".")?;
            }
            for &octet in label {
                match octet {
                    b'.' | b'\\' | b'"' | b'(' | b')' | b';' | b'@' | b'$' => write!(f, "\\{}", char::from(octet))?,
                    0x21..=0x7e => write!(f, "{}", char::from(octet))?,
                    _ => write!(f, "\\{octet:03}")?,
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Name({self})")
    }
}

impl std::str::FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_becomes_lower_case_wire_form() {
        assert_eq!(Name::parse("LogMeIn123.com").unwrap().as_wire(), b"\x0alogmein123\x03com\0");
        assert_eq!(Name::parse("a.b.").unwrap(), Name::parse("a.b").unwrap());
        assert!(Name::parse(".").unwrap().is_root());
    }

    #[test]
    fn bad_text_is_refused_with_its_reason() {
        assert_eq!(Name::parse(""), Err(NameError::EmptyLabel));
        assert_eq!(Name::parse("a..b"), Err(NameError::EmptyLabel));
        assert_eq!(Name::parse(".a"), Err(NameError::EmptyLabel));
        assert_eq!(Name::parse(&"a".repeat(64)), Err(NameError::LabelTooLong(64)));
        assert_eq!(Name::parse(&"abc.".repeat(64)), Err(NameError::NameTooLong));
        assert_eq!(Name::parse("a\\25"), Err(NameError::BadEscape));
        assert_eq!(Name::parse("a\\256"), Err(NameError::BadEscape));
        assert_eq!(Name::parse("bücher.example"), Err(NameError::NotAscii));
    }

    #[test]
    fn hostile_octets_print_as_escapes() {
        let name = Name::from_wire(b"\x07\"<;>\n\x1b.\x03com\0").unwrap();
        assert_eq!(name.to_string(), "\\\"<\\;>\\010\\027\\..com");
        assert_eq!(Name::parse(&name.to_string()).unwrap(), name);
    }

    #[test]
    fn ancestry_goes_by_labels() {
        let zone = Name::parse("zoom.us").unwrap();
        assert!(Name::parse("a.b.zoom.us").unwrap().is_at_or_below(&zone));
        assert!(zone.is_at_or_below(&zone));
        assert!(zone.is_at_or_below(&Name::root()));
        assert!(!Name::parse("notzoom.us").unwrap().is_at_or_below(&zone));
        assert!(!Name::parse("us").unwrap().is_at_or_below(&zone));
    }

    #[test]
    fn wire_form_with_pointer_or_rest_is_refused() {
        assert_eq!(Name::from_wire(b"\x01a\xc0\x00"), Err(NameError::Malformed));
        assert_eq!(Name::from_wire(b"\x01a\0\0"), Err(NameError::Malformed));
        assert_eq!(Name::from_wire(b"\x01a"), Err(NameError::Malformed));
        assert_eq!(Name::from_wire(b""), Err(NameError::Malformed));
    }

    proptest! {
        #[test]
        fn print_then_parse_gives_the_same_name(labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..=63), 0..=3)) {
            let mut wire = Vec::new();
            for label in &labels {
                wire.push(label.len() as u8);
                wire.extend_from_slice(label);
            }
            wire.push(0);
            let name = Name::from_wire(&wire).unwrap();
            prop_assert_eq!(Name::parse(&name.to_string()).unwrap(), name);
        }
    }
}
