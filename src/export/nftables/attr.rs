//! Netlink attributes: type, length, value, padded to four bytes (linux/netlink.h); nested ones hold more of them.
//!
//! Written here rather than with a crate's types: a transaction has up to 100,000 elements of five attributes each, and
//! the expressions of conntrack have no types there. The numbers of nf_tables are big-endian, the framing is native.
//! Reading never panics: what is cut short ends the walk, as if nothing followed.

/// The flag of a type whose value is attributes.
const NESTED: u16 = 0x8000;
/// The bits of the type itself, without `NESTED` and the byte-order flag.
const TYPE: u16 = 0x3fff;
/// The length of type and length.
const HEADER_LEN: usize = 4;

/// Returns `len` rounded up to the next multiple of four.
pub(super) const fn padded(len: usize) -> usize {
    len.next_multiple_of(4)
}

/// Appends an attribute. A value longer than 65,531 bytes cannot be told; callers stay far below.
pub(super) fn put(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let start = open(out, kind);
    out.extend_from_slice(value);
    close(out, start);
}

/// Appends a number.
pub(super) fn put_u32(out: &mut Vec<u8>, kind: u16, value: u32) {
    put(out, kind, &value.to_be_bytes());
}

/// Appends a long number.
pub(super) fn put_u64(out: &mut Vec<u8>, kind: u16, value: u64) {
    put(out, kind, &value.to_be_bytes());
}

/// Appends text with the zero that ends it.
pub(super) fn put_text(out: &mut Vec<u8>, kind: u16, text: &str) {
    let start = open(out, kind);
    out.extend_from_slice(text.as_bytes());
    out.push(0);
    close(out, start);
}

/// Appends an attribute of those that `fill` appends.
pub(super) fn nest(out: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = open(out, kind | NESTED);
    fill(out);
    close(out, start);
}

fn open(out: &mut Vec<u8>, kind: u16) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&kind.to_ne_bytes());
    start
}

fn close(out: &mut Vec<u8>, start: usize) {
    // Too long a value makes a length that the kernel refuses.
    let len = u16::try_from(out.len() - start).unwrap_or(u16::MAX);
    out[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    out.resize(start + padded(out.len() - start), 0);
}

/// Attributes in a row, as read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attrs<'a>(pub(super) &'a [u8]);

impl<'a> Attrs<'a> {
    /// Returns the value of the first attribute of this type.
    pub(super) fn find(mut self, kind: u16) -> Option<&'a [u8]> {
        Iterator::find(&mut self, |(found, _)| *found == kind).map(|(_, value)| value)
    }

    /// Returns the attributes inside the first one of this type; none if it is missing.
    pub(super) fn inside(self, kind: u16) -> Self {
        Attrs(self.find(kind).unwrap_or_default())
    }

    /// Returns the number in the first attribute of this type.
    pub(super) fn number(self, kind: u16) -> Option<u32> {
        self.find(kind)?.try_into().ok().map(u32::from_be_bytes)
    }

    /// Returns the long number in the first attribute of this type.
    pub(super) fn long(self, kind: u16) -> Option<u64> {
        self.find(kind)?.try_into().ok().map(u64::from_be_bytes)
    }

    /// Returns the text of the first attribute of this type, without the zero that ends it.
    pub(super) fn text(self, kind: u16) -> Option<&'a str> {
        let bytes = self.find(kind)?;
        std::str::from_utf8(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).ok()
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (len, rest) = self.0.split_first_chunk::<2>()?;
        let (kind, _) = rest.split_first_chunk::<2>()?;
        let len = usize::from(u16::from_ne_bytes(*len));
        let value = self.0.get(HEADER_LEN..len)?;
        self.0 = self.0.get(padded(len)..).unwrap_or_default();
        Some((u16::from_ne_bytes(*kind) & TYPE, value))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes_are_padded_and_nest() {
        let mut out = Vec::new();
        nest(&mut out, 3, |out| {
            put_text(out, 1, "ab");
            put_u32(out, 2, 0x0102_0304);
        });
        let mut expected = Vec::new();
        for (len, kind) in [(20_u16, 0x8003_u16), (7, 1)] {
            expected.extend_from_slice(&len.to_ne_bytes());
            expected.extend_from_slice(&kind.to_ne_bytes());
        }
        expected.extend_from_slice(b"ab\0\0");
        expected.extend_from_slice(&8_u16.to_ne_bytes());
        expected.extend_from_slice(&2_u16.to_ne_bytes());
        expected.extend_from_slice(&[1, 2, 3, 4]);
        assert_eq!(out, expected);
        let inside = Attrs(&out).inside(3);
        assert_eq!((inside.text(1), inside.number(2), inside.find(9)), (Some("ab"), Some(0x0102_0304), None));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(values in prop::collection::vec((1_u16..0x3fff, prop::collection::vec(any::<u8>(), 0..40)), 0..12)) {
            let mut out = Vec::new();
            for (kind, value) in &values {
                put(&mut out, *kind, value);
            }
            let read: Vec<_> = Attrs(&out).map(|(kind, value)| (kind, value.to_vec())).collect();
            prop_assert_eq!(read, values);
        }

        #[test]
        fn any_bytes_are_walked_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut walked = 0;
            for (kind, value) in Attrs(&bytes) {
                walked += HEADER_LEN + value.len();
                let _ = (Attrs(value).text(kind), Attrs(value).number(1), Attrs(value).long(1));
            }
            prop_assert!(walked <= bytes.len());
        }
    }
}
