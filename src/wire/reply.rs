//! What is done to a finished reply for the transport that carries it: padding, and how long HTTP may keep it.
//!
//! Both go through the records of a reply of ours, so that they need not know which part of the crate wrote it. What is
//! no whole message stays as it is.

use super::{HEADER_LEN, MESSAGE_LEN_MAX, rtype, u16_at, u32_at};

/// Replies are padded to a multiple of this (RFC 8467 §4.1).
const BLOCK_LEN: usize = 468;

/// The padding option (RFC 7830 §3).
const PADDING_CODE: u16 = 12;

/// Octets of an option before its value.
const OPTION_HEAD_LEN: usize = 4;

/// Pads a reply with an OPT to a multiple of 468 octets, or to the largest message. Without an OPT (the client sent none)
/// it may not be padded (RFC 7830 §4).
///
/// The OPT must be the last record, as it is in every reply of ours.
pub fn pad(reply: &mut Vec<u8>) {
    let Some(opt) = Records::of(reply).last().filter(|record| record.rtype == rtype::OPT) else { return };
    let len = reply.len();
    if opt.end != len {
        return;
    }
    let padded_len = (len + OPTION_HEAD_LEN).next_multiple_of(BLOCK_LEN).min(MESSAGE_LEN_MAX);
    let Some(padding_len) = padded_len.checked_sub(len + OPTION_HEAD_LEN) else { return };
    let rdata_len = opt.end - opt.rdata_at + OPTION_HEAD_LEN + padding_len;
    let Ok(rdata_len) = u16::try_from(rdata_len) else { return };
    super::put_u16(reply, opt.rdata_at - 2, rdata_len);
    reply.extend_from_slice(&PADDING_CODE.to_be_bytes());
    // Below a message's length, which 16 bits hold.
    reply.extend_from_slice(&(padding_len as u16).to_be_bytes());
    reply.resize(padded_len, 0);
}

/// Returns for how many seconds a reply may be kept: the lowest TTL in it, for a negative one no longer than its SOA says
/// (RFC 8484 §5.1, RFC 2308 §5). A reply without records may not be kept.
pub fn max_age_secs(reply: &[u8]) -> u32 {
    let has_answers = u16_at(reply, 6).unwrap_or_default() > 0;
    let ttls = Records::of(reply).filter(|record| record.rtype != rtype::OPT).map(|record| {
        // The last field of an SOA is its MINIMUM.
        let minimum =
            u32_at(reply, record.end.saturating_sub(4)).filter(|_| record.rtype == rtype::SOA && !has_answers);
        record.ttl.min(minimum.unwrap_or(u32::MAX))
    });
    ttls.min().unwrap_or(0)
}

/// A record's place.
#[derive(Clone, Copy, Debug)]
struct Record {
    rtype: u16,
    ttl: u32,
    rdata_at: usize,
    end: usize,
}

/// Goes through the records of a message; ends where one is not whole.
struct Records<'a> {
    octets: &'a [u8],
    at: usize,
    left: u32,
}

impl<'a> Records<'a> {
    fn of(octets: &'a [u8]) -> Self {
        let count = |at| u32::from(u16_at(octets, at).unwrap_or_default());
        let mut at = HEADER_LEN;
        let mut left = count(6) + count(8) + count(10);
        for _ in 0..count(4) {
            match skip_name(octets, at) {
                Some(end) => at = end + 4,
                None => left = 0,
            }
        }
        Self { octets, at, left }
    }

    fn read(&self) -> Option<Record> {
        let fixed_at = skip_name(self.octets, self.at)?;
        let rtype = u16_at(self.octets, fixed_at)?;
        let ttl = u32_at(self.octets, fixed_at + 4)?;
        let rdata_at = fixed_at + 10;
        let end = rdata_at + usize::from(u16_at(self.octets, fixed_at + 8)?);
        (end <= self.octets.len()).then_some(Record { rtype, ttl, rdata_at, end })
    }
}

impl Iterator for Records<'_> {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        self.left = self.left.checked_sub(1)?;
        let record = self.read();
        match record {
            Some(record) => self.at = record.end,
            None => self.left = 0,
        }
        record
    }
}

/// Returns where a name ends: behind its root or its first pointer.
fn skip_name(octets: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match usize::from(*octets.get(at)?) {
            0 => return Some(at + 1),
            len if len < 0x40 => at += 1 + len,
            _ => return Some(at + 2),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `a.` A, with an answer of TTL `ttl` per item, an SOA in the authority section if asked, and an OPT if asked.
    fn reply(ttls: &[u32], soa: Option<(u32, u32)>, has_opt: bool) -> Vec<u8> {
        let counts = [1, ttls.len() as u8, u8::from(soa.is_some()), u8::from(has_opt)];
        let mut octets = vec![0, 0, 0x81, 0x80];
        counts.iter().for_each(|count| octets.extend_from_slice(&[0, *count]));
        octets.extend_from_slice(b"\x01a\0\0\x01\0\x01");
        for ttl in ttls {
            octets.extend_from_slice(b"\xc0\x0c\0\x01\0\x01");
            octets.extend_from_slice(&ttl.to_be_bytes());
            octets.extend_from_slice(&[0, 4, 192, 0, 2, 1]);
        }
        if let Some((ttl, minimum)) = soa {
            octets.extend_from_slice(b"\0\0\x06\0\x01");
            octets.extend_from_slice(&ttl.to_be_bytes());
            octets.extend_from_slice(&[0, 22, 0, 0]);
            octets.extend_from_slice(&[0; 16]);
            octets.extend_from_slice(&minimum.to_be_bytes());
        }
        if has_opt {
            octets.extend_from_slice(&[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        }
        octets
    }

    #[test]
    fn a_reply_is_padded_to_a_whole_block() {
        for count in 0..80 {
            let plain = reply(&vec![60; count], None, true);
            let mut padded = plain.clone();
            pad(&mut padded);
            assert_eq!(padded.len() % BLOCK_LEN, 0, "{count}");
            assert!(padded.len() - plain.len() < BLOCK_LEN + OPTION_HEAD_LEN);
            assert_eq!(hickory_proto::op::Message::from_vec(&padded).unwrap().answers.len(), count);
            assert_eq!(padded[..plain.len() - 2], plain[..plain.len() - 2]);
        }
    }

    #[test]
    fn without_an_opt_nothing_is_padded() {
        let plain = reply(&[60], None, false);
        let mut same = plain.clone();
        pad(&mut same);
        assert_eq!(same, plain);
    }

    #[test]
    fn a_reply_near_the_largest_is_padded_to_it_at_most() {
        for len in [65_535, 65_534, 65_531, 65_530, 65_100] {
            let mut long = reply(&[], None, true);
            let at = long.len();
            long.extend_from_slice(&[0xfd, 0xe9]);
            long.extend_from_slice(&((len - at - 4) as u16).to_be_bytes());
            long.resize(len, 1);
            crate::wire::put_u16(&mut long, at - 2, (len - at) as u16);
            pad(&mut long);
            assert!(long.len() >= len && long.len() <= MESSAGE_LEN_MAX, "{len}: {}", long.len());
            assert!(hickory_proto::op::Message::from_vec(&long).is_ok(), "{len}");
        }
    }

    #[test]
    fn the_lowest_ttl_counts_and_the_soa_of_a_negative_one() {
        assert_eq!(max_age_secs(&reply(&[300, 60, 90], None, true)), 60);
        assert_eq!(max_age_secs(&reply(&[], Some((900, 30)), true)), 30);
        assert_eq!(max_age_secs(&reply(&[], Some((20, 30)), false)), 20);
        assert_eq!(max_age_secs(&reply(&[], None, true)), 0, "a failure may not be kept");
    }

    proptest! {
        #[test]
        fn whatever_the_octets_are_nothing_panics(mut octets in prop::collection::vec(any::<u8>(), 0..200)) {
            max_age_secs(&octets);
            pad(&mut octets);
        }
    }
}
