//! Messages of nf_tables: headers, transactions, and what comes back.
//!
//! A [`Batch`] is one transaction: the kernel takes all of its messages or none. Each message has a sequence number;
//! an error names the number of the message that failed, and the last message asks for an acknowledgement. [`Messages`]
//! walks what was read from the socket; it never panics, and ends where bytes are cut short.

use super::attr;

// linux/netlink.h
const HEADER_LEN: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
/// Create it, if it is not there.
pub(super) const CREATE: u16 = 0x400;
/// Fail if it is there.
pub(super) const EXCLUSIVE: u16 = 0x200;
/// Put it behind the others.
pub(super) const APPEND: u16 = 0x800;

// linux/netfilter/nfnetlink.h
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// The length of family, version and resource.
const FAMILY_LEN: usize = 4;

/// What a message is about, in the kernel's words (linux/netfilter/nf_tables.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Kind {
    NewTable = 0,
    GetTable = 1,
    DelTable = 2,
    NewChain = 3,
    GetChain = 4,
    NewRule = 6,
    GetRule = 7,
    NewSet = 9,
    GetSet = 10,
    NewElements = 12,
    GetElements = 13,
    DelElements = 14,
    NewGeneration = 15,
    GetGeneration = 16,
}

/// A family of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TableFamily {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4 only.
    Ip,
    /// IPv6 only.
    Ip6,
}

impl TableFamily {
    /// Returns the word that `nft` has for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        }
    }

    /// Returns the kernel's number.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Ip6 => 10,
        }
    }
}

/// One transaction in the making.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    family: u8,
    begin: u32,
    next: u32,
    /// Where the last message starts.
    last_at: usize,
}

impl Batch {
    /// Starts a transaction for tables of one family; `seq` is the number of its first message.
    pub(super) fn new(family: TableFamily, seq: u32) -> Self {
        let mut batch =
            Self { bytes: Vec::with_capacity(512), family: family.number(), begin: seq, next: seq, last_at: 0 };
        batch.frame(BATCH_BEGIN, 0, 0, SUBSYSTEM, |_| {});
        batch
    }

    /// Makes one without messages.
    pub(super) fn empty(seq: u32) -> Sealed {
        let mut batch = Self::new(TableFamily::Inet, seq);
        batch.frame(BATCH_END, 0, 0, SUBSYSTEM, |_| {});
        Sealed { bytes: batch.bytes, begin: seq, last: seq, next: batch.next }
    }

    /// Appends a message and returns its number.
    pub(super) fn push(&mut self, kind: Kind, flags: u16, fill: impl FnOnce(&mut Vec<u8>)) -> u32 {
        self.last_at = self.bytes.len();
        self.frame(SUBSYSTEM << 8 | kind as u16, flags, self.family, 0, fill)
    }

    /// Returns how many bytes the transaction has so far.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Ends it: the last message will be acknowledged. Nothing is left of a transaction without messages.
    pub(super) fn finish(mut self) -> Option<Sealed> {
        if self.last_at == 0 {
            return None;
        }
        let flags = &mut self.bytes[self.last_at + 6..self.last_at + 8];
        let with_ack = u16::from_ne_bytes([flags[0], flags[1]]) | NLM_F_ACK;
        flags.copy_from_slice(&with_ack.to_ne_bytes());
        let last = self.next.wrapping_sub(1);
        self.frame(BATCH_END, 0, 0, SUBSYSTEM, |_| {});
        Some(Sealed { bytes: self.bytes, begin: self.begin, last, next: self.next })
    }

    fn frame(&mut self, kind: u16, flags: u16, family: u8, resource: u16, fill: impl FnOnce(&mut Vec<u8>)) -> u32 {
        let seq = self.next;
        self.next = seq.wrapping_add(1);
        frame(&mut self.bytes, (kind, NLM_F_REQUEST | flags, seq), (family, resource), fill);
        seq
    }
}

/// A whole transaction, ready to be sent.
#[derive(Debug)]
pub(super) struct Sealed {
    /// What is sent, in one piece.
    pub(super) bytes: Vec<u8>,
    /// The number under which the kernel reports what befalls the transaction as such.
    pub(super) begin: u32,
    /// The number of the last message.
    pub(super) last: u32,
    /// The first number that is free again.
    pub(super) next: u32,
}

/// How much is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// The one that the attributes name.
    One,
    /// All of them.
    All,
}

/// Makes a question outside of a transaction.
pub(super) fn question(
    kind: Kind,
    family: TableFamily,
    extent: Extent,
    seq: u32,
    fill: impl FnOnce(&mut Vec<u8>),
) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    let flags = if extent == Extent::All { NLM_F_REQUEST | NLM_F_DUMP } else { NLM_F_REQUEST };
    frame(&mut out, (SUBSYSTEM << 8 | kind as u16, flags, seq), (family.number(), 0), fill);
    out
}

fn frame(out: &mut Vec<u8>, head: (u16, u16, u32), to: (u8, u16), fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    let (kind, flags, seq) = head;
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&seq.to_ne_bytes());
    out.extend_from_slice(&[0; 4]);
    let (family, resource) = to;
    out.extend_from_slice(&[family, 0]);
    out.extend_from_slice(&resource.to_be_bytes());
    fill(out);
    let len = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&len.to_ne_bytes());
}

/// A message as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message<'a> {
    /// The number of the request that it answers.
    pub(super) seq: u32,
    /// The socket that made the change, in a message about a change.
    pub(super) port: u32,
    /// What it says.
    pub(super) body: Body<'a>,
    /// Whether things changed while they were told, so that the whole is not to be relied on.
    pub(super) is_interrupted: bool,
}

/// What a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body<'a> {
    /// A request failed with this error, or was done: 0.
    Status(i32),
    /// All was told.
    Done,
    /// A thing of nf_tables.
    Thing {
        /// The kernel's number of the message, see [`Kind`].
        kind: u16,
        /// The kernel's number of the family.
        family: u8,
        /// Its attributes.
        attrs: &'a [u8],
    },
    /// Something else.
    Other,
}

/// Messages in a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Messages<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let head: &[u8; HEADER_LEN] = self.0.first_chunk()?;
        let long = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let short = |at: usize| u16::from_ne_bytes([head[at], head[at + 1]]);
        let len = usize::try_from(long(0)).ok()?;
        let payload = self.0.get(HEADER_LEN..len)?;
        self.0 = self.0.get(attr::padded(len)..).unwrap_or_default();
        Some(Message {
            seq: long(8),
            port: long(12),
            body: body(short(4), payload),
            is_interrupted: short(6) & NLM_F_DUMP_INTR != 0,
        })
    }
}

fn body(kind: u16, payload: &[u8]) -> Body<'_> {
    match kind {
        NLMSG_ERROR => {
            payload.first_chunk().map_or(Body::Other, |code| Body::Status(i32::from_ne_bytes(*code).saturating_neg()))
        }
        // A dump that failed half-way says so here.
        NLMSG_DONE => match payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code)) {
            code if code < 0 => Body::Status(code.saturating_neg()),
            _ => Body::Done,
        },
        kind if kind >> 8 == SUBSYSTEM && payload.len() >= FAMILY_LEN => {
            Body::Thing { kind: kind & 0xff, family: payload[0], attrs: &payload[FAMILY_LEN..] }
        }
        _ => Body::Other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn transaction_is_framed_and_asks_for_one_acknowledgement() {
        let mut batch = Batch::new(TableFamily::Inet, 7);
        assert_eq!(batch.push(Kind::NewTable, CREATE, |out| attr::put_text(out, 1, "t")), 8);
        assert_eq!(batch.push(Kind::DelTable, 0, |out| attr::put_text(out, 1, "t")), 9);
        let sealed = batch.finish().unwrap();
        assert_eq!((sealed.begin, sealed.last, sealed.next), (7, 9, 11));
        let messages: Vec<_> = Messages(&sealed.bytes).collect();
        assert_eq!(messages.iter().map(|message| message.seq).collect::<Vec<_>>(), [7, 8, 9, 10]);
        let Body::Thing { kind, family, attrs } = messages[2].body else { panic!("{messages:?}") };
        assert_eq!((kind, family, attr::Attrs(attrs).text(1)), (Kind::DelTable as u16, 1, Some("t")));
        let flags = |at: usize| u16::from_ne_bytes([sealed.bytes[at + 6], sealed.bytes[at + 7]]);
        assert_eq!((flags(20), flags(48), flags(76)), (NLM_F_REQUEST | CREATE, NLM_F_REQUEST | NLM_F_ACK, 1));
        assert!(Batch::new(TableFamily::Ip, 1).finish().is_none());
    }

    #[test]
    fn errors_are_told_as_positive_numbers() {
        let mut bytes = Vec::new();
        for (kind, code) in [(NLMSG_ERROR, -1_i32), (NLMSG_ERROR, 0), (NLMSG_DONE, 0), (NLMSG_DONE, -4)] {
            bytes.extend_from_slice(&20_u32.to_ne_bytes());
            bytes.extend_from_slice(&kind.to_ne_bytes());
            bytes.extend_from_slice(&[0; 10]);
            bytes.extend_from_slice(&code.to_ne_bytes());
        }
        let bodies: Vec<_> = Messages(&bytes).map(|message| message.body).collect();
        assert_eq!(bodies, [Body::Status(1), Body::Status(0), Body::Done, Body::Status(4)]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_walked_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Messages(&bytes).count() <= bytes.len() / HEADER_LEN);
        }
    }
}
