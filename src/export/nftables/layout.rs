//! The table that is ours: what stands in it, how it is made, and how it is known again.
//!
//! ```text
//! table inet greenlane {
//!     comment "greenlane, layout 1, mark 0x10000000"
//!     set static4 … learned6
//!     chain flows { type filter hook prerouting priority mangle
//!         first packet of a flow, and daddr in a set ─▶ set the bits in the mark of the connection
//!         every packet                               ─▶ the bits of the packet's mark = those of the connection's
//! } }
//! ```
//! So each flow is decided once, by its first packet: one that was bypassed goes on when its address leaves, one that
//! was inspected stays so when its address comes. `ct state new` alone would decide again at each repeated first packet.
//!
//! The comment of the table says that it is ours and which layout it has; rules are known by their comments in order.
//! Whatever is not as it should be makes the table [`Standing::Outdated`]: it is replaced in one transaction. A table
//! of this name without our comment is another's and left alone. The comment needs Linux 5.10.

use nix::errno::Errno;

use super::attr::{self, Attrs};
use super::link::Link;
use super::message::{APPEND, Batch, CREATE, Kind, TableFamily};
use super::sets::{self, SetInfo, Target};
use crate::prefix::Family;

/// Raised whenever something here changes, so that tables of other versions are replaced.
const LAYOUT: u32 = 1;
/// How every comment of our tables starts.
const COMMENT_START: &str = "greenlane, layout ";
const CHAIN: &str = "flows";

// linux/netfilter/nf_tables.h
const TABLE_NAME: u16 = 1;
pub(super) const TABLE_FLAGS: u16 = 2;
const TABLE_USERDATA: u16 = 6;
const TABLE_OWNER: u16 = 7;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUM: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;
/// NF_INET_PRE_ROUTING.
const PREROUTING: u32 = 0;
/// NF_IP_PRI_MANGLE: after conntrack (-200), before destination NAT (-100) and filters (0).
const PRIORITY: i32 = -150;
const ACCEPT: u32 = 1;
pub(super) const FLAG_OWNER: u32 = 2;
pub(super) const FLAG_PERSIST: u32 = 4;
/// The type of a comment in the user data of tables and rules, as `nft` keeps it.
const USERDATA_COMMENT: u8 = 0;

/// Whether the table belongs to the process that made it.
///
/// Owned, it is passed over by another's `flush ruleset` and refused to another's hands; with *persist* it outlives its
/// owner, who may come back for it (Linux 6.9). One flag without the other would lose the elements with the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ownership {
    /// Owned and persistent.
    Owned,
    /// Anybody's, as the kernel has no better.
    Shared,
}

impl Ownership {
    fn flags(self) -> u32 {
        match self {
            Self::Owned => FLAG_OWNER | FLAG_PERSIST,
            Self::Shared => 0,
        }
    }
}

/// The table as it should be.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    family: TableFamily,
    table: String,
    mark: u32,
    size: u32,
    targets: Vec<Target>,
}

/// What stands where the table should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing.
    Absent,
    /// Our table, as it should be.
    Good,
    /// Our table, as it should be, with nobody to own it.
    Orphaned,
    /// Our table, of another layout or damaged.
    Outdated,
    /// Our table, which another process owns.
    Owned,
    /// Another's table.
    Foreign,
}

impl Layout {
    /// Puts together what the table needs. `size` bounds each set of learned addresses.
    pub(super) fn new(family: TableFamily, table: &str, mark: u32, size: u32, targets: &[Target]) -> Self {
        Self { family, table: table.to_owned(), mark, size, targets: targets.to_vec() }
    }

    /// Returns what the sets of this table are like.
    pub(super) fn set_infos(&self) -> impl Iterator<Item = SetInfo> + '_ {
        self.targets.iter().map(|target| SetInfo::own(target, self.size))
    }

    fn comment(&self) -> String {
        format!("{COMMENT_START}{LAYOUT}, mark {:#x}", self.mark)
    }

    /// Looks at what stands in the kernel. `wanted` is the ownership that it should have.
    pub(super) fn look(&self, link: &mut Link, wanted: Ownership) -> Result<Standing, Errno> {
        let (mut flags, mut comment, mut owner) = (0, None, None);
        let name = |out: &mut Vec<u8>| attr::put_text(out, TABLE_NAME, &self.table);
        let is_there = link.ask(Kind::GetTable, self.family, name, |attrs| {
            flags = Attrs(attrs).number(TABLE_FLAGS).unwrap_or(0);
            owner = Attrs(attrs).number(TABLE_OWNER);
            comment = read_comment(Attrs(attrs).find(TABLE_USERDATA)).map(str::to_owned);
        })?;
        if !is_there {
            return Ok(Standing::Absent);
        }
        if !comment.as_ref().is_some_and(|comment| comment.starts_with(COMMENT_START)) {
            return Ok(Standing::Foreign);
        }
        if owner.is_some_and(|port| port != link.port()) {
            return Ok(Standing::Owned);
        }
        // A dormant table, or one that cannot get the flags that it lacks, is made anew.
        let is_adoptable = wanted == Ownership::Owned && flags == FLAG_PERSIST;
        if (flags != wanted.flags() && !is_adoptable) || comment != Some(self.comment()) || !self.is_whole(link)? {
            return Ok(Standing::Outdated);
        }
        Ok(if is_adoptable { Standing::Orphaned } else { Standing::Good })
    }

    fn is_whole(&self, link: &mut Link) -> Result<bool, Errno> {
        for (target, own) in self.targets.iter().zip(self.set_infos()) {
            if sets::look(link, self.family, &self.table, &target.name)? != Some(own) {
                return Ok(false);
            }
        }
        let mut is_hooked = false;
        let chain = |out: &mut Vec<u8>| {
            attr::put_text(out, CHAIN_TABLE, &self.table);
            attr::put_text(out, CHAIN_NAME, CHAIN);
        };
        link.ask(Kind::GetChain, self.family, chain, |attrs| {
            let hook = Attrs(attrs).inside(CHAIN_HOOK);
            is_hooked = hook.number(HOOK_NUM) == Some(PREROUTING)
                && hook.number(HOOK_PRIORITY) == Some(PRIORITY.cast_unsigned())
                && Attrs(attrs).text(CHAIN_TYPE) == Some("filter")
                && Attrs(attrs).number(CHAIN_POLICY) == Some(ACCEPT);
        })?;
        if !is_hooked {
            return Ok(false);
        }
        let of_chain = |out: &mut Vec<u8>| {
            attr::put_text(out, RULE_TABLE, &self.table);
            attr::put_text(out, RULE_CHAIN, CHAIN);
        };
        let found = link.dump(Kind::GetRule, self.family, of_chain, Vec::new, |rules, attrs| {
            // Older kernels pay no heed to the chain that is asked for.
            if Attrs(attrs).text(RULE_CHAIN) == Some(CHAIN) {
                rules.push(read_comment(Attrs(attrs).find(RULE_USERDATA)).map(str::to_owned));
            }
        })?;
        Ok(found.into_iter().eq(self.rules().map(|rule| Some(rule.comment))))
    }

    /// Appends what removes the table.
    pub(super) fn remove(&self, batch: &mut Batch) {
        batch.push(Kind::DelTable, 0, |out| attr::put_text(out, TABLE_NAME, &self.table));
    }

    /// Appends what makes the table ours again.
    pub(super) fn adopt(&self, batch: &mut Batch) {
        self.table(batch, Ownership::Owned);
    }

    /// Appends what makes the table. The kernel refuses it with EOPNOTSUPP or EINVAL if it does not know the flags of
    /// this ownership.
    pub(super) fn create(&self, batch: &mut Batch, ownership: Ownership) {
        self.table(batch, ownership);
        for (id, (target, info)) in (1..).zip(self.targets.iter().zip(self.set_infos())) {
            sets::create(batch, &self.table, target, &info, id);
        }
        batch.push(Kind::NewChain, CREATE, |out| {
            attr::put_text(out, CHAIN_TABLE, &self.table);
            attr::put_text(out, CHAIN_NAME, CHAIN);
            attr::nest(out, CHAIN_HOOK, |out| {
                attr::put_u32(out, HOOK_NUM, PREROUTING);
                attr::put_u32(out, HOOK_PRIORITY, PRIORITY.cast_unsigned());
            });
            attr::put_u32(out, CHAIN_POLICY, ACCEPT);
            attr::put_text(out, CHAIN_TYPE, "filter");
        });
        for rule in self.rules() {
            batch.push(Kind::NewRule, CREATE | APPEND, |out| {
                attr::put_text(out, RULE_TABLE, &self.table);
                attr::put_text(out, RULE_CHAIN, CHAIN);
                attr::nest(out, RULE_EXPRESSIONS, |out| out.extend_from_slice(&rule.expressions));
                put_comment(out, RULE_USERDATA, &rule.comment);
            });
        }
    }

    fn table(&self, batch: &mut Batch, ownership: Ownership) {
        batch.push(Kind::NewTable, CREATE, |out| {
            attr::put_text(out, TABLE_NAME, &self.table);
            attr::put_u32(out, TABLE_FLAGS, ownership.flags());
            put_comment(out, TABLE_USERDATA, &self.comment());
        });
    }

    fn rules(&self) -> impl Iterator<Item = Rule> + '_ {
        let decide = self.targets.iter().map(|target| Rule {
            comment: format!("a new flow to {}: mark the connection", target.name),
            expressions: self.decide(target),
        });
        let clear = Rule {
            comment: "every packet: take the mark off".to_owned(),
            expressions: expressions(|out| {
                meta_load(out, META_MARK);
                bitwise(out, !self.mark, 0);
                meta_set_mark(out);
            }),
        };
        let restore = Rule {
            comment: "every packet of a marked connection: mark it".to_owned(),
            expressions: expressions(|out| {
                ct_load(out, CT_MARK);
                bitwise(out, self.mark, 0);
                compare(out, CMP_EQ, &self.mark.to_ne_bytes());
                meta_load(out, META_MARK);
                bitwise(out, !self.mark, self.mark);
                meta_set_mark(out);
            }),
        };
        decide.chain([clear, restore])
    }

    fn decide(&self, target: &Target) -> Vec<u8> {
        let (protocol, offset, len) = match target.family {
            Family::V4 => (NFPROTO_IPV4, 16, 4),
            Family::V6 => (NFPROTO_IPV6, 24, 16),
        };
        expressions(|out| {
            ct_load(out, CT_STATE);
            bitwise(out, CT_STATE_NEW, 0);
            compare(out, CMP_NEQ, &[0; 4]);
            ct_load(out, CT_STATUS);
            bitwise(out, CT_STATUS_CONFIRMED, 0);
            compare(out, CMP_EQ, &[0; 4]);
            if self.family == TableFamily::Inet {
                meta_load(out, META_NFPROTO);
                compare(out, CMP_EQ, &[protocol]);
            }
            payload_load(out, offset, len);
            lookup(out, &target.name);
            ct_load(out, CT_MARK);
            bitwise(out, !self.mark, self.mark);
            ct_set_mark(out);
        })
    }
}

/// A rule of the chain.
struct Rule {
    comment: String,
    expressions: Vec<u8>,
}

fn put_comment(out: &mut Vec<u8>, kind: u16, comment: &str) {
    // Comments of ours are short: `nft` takes at most 128 bytes.
    let mut userdata = vec![USERDATA_COMMENT, u8::try_from(comment.len() + 1).unwrap_or(u8::MAX)];
    userdata.extend_from_slice(comment.as_bytes());
    userdata.push(0);
    attr::put(out, kind, &userdata);
}

/// Reads the comment that `nft` or we have put into user data.
fn read_comment(userdata: Option<&[u8]>) -> Option<&str> {
    let mut rest = userdata?;
    while let [kind, len, after @ ..] = rest {
        let value = after.get(..usize::from(*len))?;
        if *kind == USERDATA_COMMENT {
            return std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok();
        }
        rest = &after[value.len()..];
    }
    None
}

// Expressions, with one register for all. linux/netfilter/nf_tables.h
const LIST_ELEM: u16 = 1;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const REGISTER: u32 = 1;
const CMP_EQ: u32 = 0;
const CMP_NEQ: u32 = 1;
const CT_STATE: u32 = 0;
const CT_STATUS: u32 = 2;
const CT_MARK: u32 = 3;
const META_MARK: u32 = 3;
const META_NFPROTO: u32 = 15;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
/// NF_CT_STATE_BIT(IP_CT_NEW).
const CT_STATE_NEW: u32 = 8;
/// IPS_CONFIRMED: a packet of the flow has left this host, or reached it.
const CT_STATUS_CONFIRMED: u32 = 8;

fn expressions(fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    fill(&mut out);
    out
}

fn expression(out: &mut Vec<u8>, name: &str, fill: impl FnOnce(&mut Vec<u8>)) {
    attr::nest(out, LIST_ELEM, |out| {
        attr::put_text(out, EXPR_NAME, name);
        attr::nest(out, EXPR_DATA, fill);
    });
}

fn ct_load(out: &mut Vec<u8>, key: u32) {
    expression(out, "ct", |out| {
        attr::put_u32(out, 1, REGISTER);
        attr::put_u32(out, 2, key);
    });
}

fn ct_set_mark(out: &mut Vec<u8>) {
    expression(out, "ct", |out| {
        attr::put_u32(out, 2, CT_MARK);
        attr::put_u32(out, 4, REGISTER);
    });
}

fn meta_load(out: &mut Vec<u8>, key: u32) {
    expression(out, "meta", |out| {
        attr::put_u32(out, 1, REGISTER);
        attr::put_u32(out, 2, key);
    });
}

fn meta_set_mark(out: &mut Vec<u8>) {
    expression(out, "meta", |out| {
        attr::put_u32(out, 2, META_MARK);
        attr::put_u32(out, 3, REGISTER);
    });
}

/// register = (register & mask) ^ xor
fn bitwise(out: &mut Vec<u8>, mask: u32, xor: u32) {
    expression(out, "bitwise", |out| {
        attr::put_u32(out, 1, REGISTER);
        attr::put_u32(out, 2, REGISTER);
        attr::put_u32(out, 3, 4);
        attr::nest(out, 4, |out| attr::put(out, DATA_VALUE, &mask.to_ne_bytes()));
        attr::nest(out, 5, |out| attr::put(out, DATA_VALUE, &xor.to_ne_bytes()));
    });
}

fn compare(out: &mut Vec<u8>, operation: u32, value: &[u8]) {
    expression(out, "cmp", |out| {
        attr::put_u32(out, 1, REGISTER);
        attr::put_u32(out, 2, operation);
        attr::nest(out, 3, |out| attr::put(out, DATA_VALUE, value));
    });
}

/// Loads bytes of the network header.
fn payload_load(out: &mut Vec<u8>, offset: u32, len: u32) {
    expression(out, "payload", |out| {
        attr::put_u32(out, 1, REGISTER);
        attr::put_u32(out, 2, 1);
        attr::put_u32(out, 3, offset);
        attr::put_u32(out, 4, len);
    });
}

fn lookup(out: &mut Vec<u8>, set: &str) {
    expression(out, "lookup", |out| {
        attr::put_text(out, 1, set);
        attr::put_u32(out, 2, REGISTER);
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn comments_are_read_among_other_user_data() {
        assert_eq!(read_comment(Some(b"\x02\x01x\x00\x03ab\x00")), Some("ab"));
        assert_eq!(read_comment(Some(b"\x02\x01x")), None);
        assert_eq!(read_comment(None), None);
        let mut out = Vec::new();
        put_comment(&mut out, 7, "why");
        assert_eq!(read_comment(Attrs(&out).find(7)), Some("why"));
    }

    proptest! {
        #[test]
        fn any_user_data_is_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = read_comment(Some(&bytes));
        }
    }
}
