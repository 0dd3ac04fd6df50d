//! What is ours in the kernel now, for those who only look.

use std::net::IpAddr;

use super::layout::{Layout, Ownership, Standing};
use super::link::{Link, errno};
use super::message::Kind;
use super::range::{Dump, address};
use super::trouble::Trouble;
use super::{Mode, Options, sets, transaction};
use crate::clock::{Clock, Timestamp};
use crate::prefix::Prefix;

/// What one table holds of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Present {
    /// Learned hosts, each with its end; `None`: it does not end by itself.
    pub hosts: Vec<(IpAddr, Option<Timestamp>)>,
    /// Static prefixes, aggregated as they are in the kernel.
    pub statics: Vec<Prefix>,
}

/// Reads what is ours in the sets of a table; nothing is changed. Sets that are missing or unfit hold nothing.
///
/// # Errors
/// As when the table is filled: the privilege, no nf_tables, a table that is not ours.
pub fn present(options: &Options, clock: &Clock) -> Result<Present, Trouble> {
    let mut link = Link::open().map_err(|error| Trouble::of(errno(&error)))?;
    let targets = options.targets();
    let is_signed = match options.mode {
        Mode::Own { mark, size } => {
            let layout = Layout::new(options.family, &options.table, mark, size, &targets);
            // One that another greenlane fills holds ours all the same.
            if layout.look(&mut link, Ownership::Owned).map_err(Trouble::of_first)? == Standing::Foreign {
                return Err(Trouble::ForeignTable { family: options.family, table: options.table.clone() });
            }
            false
        }
        Mode::Guest => true,
    };
    let mut present = Present::default();
    for target in targets {
        let info = sets::look(&mut link, options.family, &options.table, &target.name).map_err(Trouble::of_first)?;
        let Some(info) = info.filter(|info| info.flaw(&target).is_none()) else { continue };
        let question = transaction::ask_for(&options.table, &target.name, None);
        let take = |dump: &mut Dump, attrs: &[u8]| dump.take(transaction::elements(attrs), clock.now());
        let dump = link.dump(Kind::GetElements, options.family, question, Dump::default, take).map_err(Trouble::of)?;
        let found = dump.finish(info.shape(target.family, is_signed)).into_iter();
        for found in found.filter(|found| found.is_signed || !is_signed) {
            if target.is_learned() {
                present.hosts.push((address(found.range.first, target.family), found.until));
            } else {
                present.statics.extend(found.range.prefixes(target.family));
            }
        }
    }
    Ok(present)
}
