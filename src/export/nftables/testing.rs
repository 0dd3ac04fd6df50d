//! A kernel with whims, for tests: the real one, behind what older, slower or busier ones do.
//!
//! It stands between a link and the kernel and changes what goes through: refuses what an old kernel refuses, in its
//! words; drops from a transaction what an old kernel takes and pays no heed to; waits; loses acknowledgements.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;

use super::attr::{self, Attrs};
use super::layout::{FLAG_OWNER, FLAG_PERSIST, TABLE_FLAGS};
use super::link::{Link, NotTaken, Refusal};
use super::message::{Body, EXCLUSIVE, Kind, Messages, Sealed, TableFamily};
use super::range::{ELEM_EXPIRATION, ELEM_KEY, ELEM_TIMEOUT};
use super::sets::{FLAG_TIMEOUT, SET_FLAGS};
use super::transaction::{LIST_ELEMENTS, LIST_SET, LIST_TABLE};

/// What a kernel does otherwise; cheap to clone, and all clones are one.
#[derive(Clone, Debug, Default)]
pub(super) struct Kernel(Arc<Whims>);

#[derive(Debug, Default)]
struct Whims {
    knows_no_owners: AtomicBool,
    knows_no_renewal: AtomicBool,
    knows_no_timeouts: AtomicBool,
    has_no_nf_tables: AtomicBool,
    delay_micros: AtomicU64,
    unacknowledged: AtomicUsize,
    monitor_len: AtomicUsize,
}

impl Kernel {
    /// One before Linux 6.9: tables have no owner that they outlive.
    pub(super) fn without_owners(self) -> Self {
        self.0.knows_no_owners.store(true, Ordering::Relaxed);
        self
    }

    /// One before Linux 6.12: adding an element that is there is a success that changes nothing.
    pub(super) fn without_renewal(self) -> Self {
        self.0.knows_no_renewal.store(true, Ordering::Relaxed);
        self
    }

    /// One that takes neither sets nor elements with a timeout, or takes them again.
    pub(super) fn set_without_timeouts(&self, is_so: bool) {
        self.0.knows_no_timeouts.store(is_so, Ordering::Relaxed);
    }

    /// One whose nf_tables is not loaded, or is again.
    pub(super) fn set_without_nf_tables(&self, is_so: bool) {
        self.0.has_no_nf_tables.store(is_so, Ordering::Relaxed);
    }

    /// Says what becomes of a question before it is asked: without the part that it is for, nfnetlink says EINVAL.
    pub(super) fn hears(&self) -> Result<(), Errno> {
        if self.0.has_no_nf_tables.load(Ordering::Relaxed) { Err(Errno::EINVAL) } else { Ok(()) }
    }

    /// Each transaction takes so much longer.
    pub(super) fn set_delay(&self, delay: Duration) {
        let micros = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        self.0.delay_micros.store(micros, Ordering::Relaxed);
    }

    /// So many of the next transactions are taken, and their acknowledgements lost.
    pub(super) fn lose_acknowledgements(&self, count: usize) {
        self.0.unacknowledged.store(count, Ordering::Relaxed);
    }

    /// Monitors opened from now on have room for so many bytes only.
    pub(super) fn with_monitor_room(self, len: usize) -> Self {
        self.0.monitor_len.store(len, Ordering::Relaxed);
        self
    }

    /// Returns how much room a monitor has, if not as much as it asks for.
    pub(super) fn monitor_len(&self) -> Option<usize> {
        Some(self.0.monitor_len.load(Ordering::Relaxed)).filter(|len| *len > 0)
    }

    /// Lets the time pass that each transaction takes.
    pub(super) fn wait(&self) {
        thread::sleep(Duration::from_micros(self.0.delay_micros.load(Ordering::Relaxed)));
    }

    /// Whether the acknowledgement of a transaction that was just taken is lost.
    pub(super) fn loses_acknowledgement(&self) -> bool {
        let take = |count: usize| count.checked_sub(1);
        self.0.unacknowledged.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// Says what this kernel makes of a transaction: what goes to the real one in its place, or the refusal.
    pub(super) fn alter(&self, link: &mut Link, batch: &Sealed) -> Result<Option<Vec<u8>>, NotTaken> {
        let refusals: Vec<Refusal> = things(&batch.bytes).filter_map(|thing| self.refuses(&thing)).collect();
        if !refusals.is_empty() {
            return Err(NotTaken::Messages(refusals));
        }
        let is_altered = self.0.knows_no_renewal.load(Ordering::Relaxed);
        Ok(is_altered.then(|| without_renewals(link, batch)))
    }

    fn refuses(&self, thing: &Thing<'_>) -> Option<Refusal> {
        let attrs = Attrs(thing.attrs);
        let has_owner = || attrs.number(TABLE_FLAGS).is_some_and(|flags| flags & (FLAG_OWNER | FLAG_PERSIST) != 0);
        let is_timed_set = || attrs.number(SET_FLAGS).is_some_and(|flags| flags & FLAG_TIMEOUT != 0);
        let has_timed = || attrs.inside(LIST_ELEMENTS).any(|(_, element)| Attrs(element).find(ELEM_TIMEOUT).is_some());
        let knows_no_timeouts = self.0.knows_no_timeouts.load(Ordering::Relaxed);
        let errno = match thing.kind {
            Kind::NewTable if self.0.knows_no_owners.load(Ordering::Relaxed) && has_owner() => Errno::EOPNOTSUPP,
            Kind::NewSet if knows_no_timeouts && is_timed_set() => Errno::EOPNOTSUPP,
            Kind::NewElements if knows_no_timeouts && has_timed() => Errno::EINVAL,
            _ => return None,
        };
        Some(Refusal { seq: thing.seq, errno })
    }
}

/// A message of a transaction.
struct Thing<'a> {
    seq: u32,
    kind: Kind,
    flags: u16,
    family: u8,
    attrs: &'a [u8],
}

/// Returns the messages of a transaction that a kernel may take otherwise.
fn things(bytes: &[u8]) -> impl Iterator<Item = Thing<'_>> {
    let mut at = 0;
    Messages(bytes).filter_map(move |message| {
        let head = &bytes[at..];
        at += attr::padded(u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize);
        let Body::Thing { kind, family, attrs } = message.body else { return None };
        let known = [Kind::NewTable, Kind::NewSet, Kind::NewElements, Kind::DelElements];
        let kind = known.into_iter().find(|known| *known as u16 == kind)?;
        Some(Thing { seq: message.seq, kind, flags: u16::from_ne_bytes([head[6], head[7]]), family, attrs })
    })
}

/// Leaves out of a transaction the elements that are there and were not deleted in it before.
fn without_renewals(link: &mut Link, batch: &Sealed) -> Vec<u8> {
    let mut deleted: HashSet<(String, Vec<u8>)> = HashSet::new();
    let mut bytes = Vec::new();
    let mut rest = batch.bytes.as_slice();
    while !rest.is_empty() {
        let len = attr::padded(u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize);
        let (message, after) = rest.split_at(len);
        rest = after;
        let Some(thing) = things(message).next().filter(|thing| thing.flags & EXCLUSIVE == 0) else {
            bytes.extend_from_slice(message);
            continue;
        };
        let attrs = Attrs(thing.attrs);
        let set = attrs.text(LIST_SET).unwrap_or_default().to_owned();
        let key = |element: &[u8]| (set.clone(), Attrs(element).find(ELEM_KEY).unwrap_or_default().to_vec());
        if thing.kind == Kind::DelElements {
            deleted.extend(attrs.inside(LIST_ELEMENTS).map(|(_, element)| key(element)));
        }
        let is_renewal = |link: &mut Link, element: &[u8]| {
            Attrs(element).find(ELEM_EXPIRATION).is_some()
                && !deleted.contains(&key(element))
                && is_there(link, &thing, element)
        };
        let start = bytes.len();
        bytes.extend_from_slice(&message[..message.len() - thing.attrs.len()]);
        for (kind, value) in attrs {
            if thing.kind == Kind::NewElements && kind == LIST_ELEMENTS {
                attr::nest(&mut bytes, kind, |out| {
                    for (kind, element) in Attrs(value) {
                        if !is_renewal(link, element) {
                            attr::put(out, kind | 0x8000, element);
                        }
                    }
                });
            } else {
                let nested = if kind == LIST_ELEMENTS { 0x8000 } else { 0 };
                attr::put(&mut bytes, kind | nested, value);
            }
        }
        let len = u32::try_from(bytes.len() - start).unwrap();
        bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    }
    bytes
}

fn is_there(link: &mut Link, thing: &Thing<'_>, element: &[u8]) -> bool {
    let attrs = Attrs(thing.attrs);
    let which = |out: &mut Vec<u8>| {
        attr::put_text(out, LIST_TABLE, attrs.text(LIST_TABLE).unwrap_or_default());
        attr::put_text(out, LIST_SET, attrs.text(LIST_SET).unwrap_or_default());
        attr::nest(out, LIST_ELEMENTS, |out| {
            attr::nest(out, 1, |out| {
                attr::put(out, ELEM_KEY | 0x8000, Attrs(element).find(ELEM_KEY).unwrap_or_default())
            });
        });
    };
    let family = [TableFamily::Inet, TableFamily::Ip, TableFamily::Ip6]
        .into_iter()
        .find(|family| family.number() == thing.family)
        .unwrap();
    link.ask(Kind::GetElements, family, which, |_| {}) == Ok(true)
}
