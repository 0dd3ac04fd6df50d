//! `greenlane nft remove`: everything of ours leaves the kernel.

use nix::errno::Errno;
use thiserror::Error;

use super::layout::{Layout, Ownership, Standing};
use super::link::{Link, NotTaken, errno};
use super::message::{Batch, Kind};
use super::plan::{Renewal, plan};
use super::range::Dump;
use super::transaction::{self, Place, Table};
use super::trouble::Trouble;
use super::{Mode, Options, sets};
use crate::clock::Timestamp;

/// What was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// Our table, with all in it.
    Table,
    /// So many elements of ours from the operator's sets.
    Elements(usize),
    /// There was nothing of ours.
    Nothing,
}

/// Why it was not.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct RemoveError(#[from] pub Trouble);

/// Removes our table, or our elements from the operator's sets. Sets and tables of others stay as they are.
///
/// # Errors
/// [`RemoveError`] names what is in the way: the privilege, a process that owns the table, a table that is not ours.
pub fn remove(options: &Options) -> Result<Removed, RemoveError> {
    let mut link = Link::open().map_err(|error| Trouble::of(errno(&error)))?;
    match options.mode {
        Mode::Own { mark, size } => {
            let layout = Layout::new(options.family, &options.table, mark, size, &options.targets());
            remove_table(&mut link, options, &layout)
        }
        Mode::Guest => remove_elements(&mut link, options),
    }
}

/// Returns whether another running process owns the table that we would keep; false where that cannot be seen.
pub fn is_owned_by_another(options: &Options) -> bool {
    let Mode::Own { mark, size } = options.mode else { return false };
    let Ok(mut link) = Link::open() else { return false };
    let layout = Layout::new(options.family, &options.table, mark, size, &options.targets());
    layout.look(&mut link, Ownership::Owned) == Ok(Standing::Owned)
}

fn remove_table(link: &mut Link, options: &Options, layout: &Layout) -> Result<Removed, RemoveError> {
    match layout.look(link, Ownership::Owned).map_err(Trouble::of_first)? {
        Standing::Absent => return Ok(Removed::Nothing),
        Standing::Foreign => {
            let (family, table) = (options.family, options.table.clone());
            return Err(Trouble::ForeignTable { family, table }.into());
        }
        Standing::Owned => {
            let (family, table) = (options.family, options.table.clone());
            return Err(Trouble::OwnedByAnother { family, table }.into());
        }
        Standing::Good | Standing::Orphaned | Standing::Outdated => {}
    }
    let mut batch = Batch::new(options.family, link.seq());
    layout.remove(&mut batch);
    let Some(sealed) = batch.finish() else { return Ok(Removed::Nothing) };
    match link.commit(&sealed) {
        Ok(()) => Ok(Removed::Table),
        Err(NotTaken::Messages(refusals)) => Err(match refusals.first().map(|refusal| refusal.errno) {
            Some(Errno::ENOENT) => return Ok(Removed::Nothing),
            Some(Errno::EPERM) | None => {
                Trouble::OwnedByAnother { family: options.family, table: options.table.clone() }
            }
            Some(errno) => Trouble::of(errno),
        }
        .into()),
        Err(NotTaken::Whole(errno)) => Err(Trouble::of(errno).into()),
        Err(NotTaken::Unknown) => Err(Trouble::Lost.into()),
    }
}

fn remove_elements(link: &mut Link, options: &Options) -> Result<Removed, RemoveError> {
    let targets = options.targets();
    let (mut ops, mut places) = (Vec::new(), Vec::new());
    for (at, target) in targets.iter().enumerate() {
        let info = sets::look(link, options.family, &options.table, &target.name).map_err(Trouble::of_first)?;
        let Some(info) = info.filter(|info| info.flaw(target).is_none()) else {
            places.push(None);
            continue;
        };
        let shape = info.shape(target.family, true);
        places.push(Some(Place { name: &target.name, shape }));
        let question = transaction::ask_for(&options.table, &target.name, None);
        let take = |dump: &mut Dump, attrs: &[u8]| dump.take(transaction::elements(attrs));
        let dump = link.dump(Kind::GetElements, options.family, question, Dump::default, take).map_err(Trouble::of)?;
        let found = dump.finish(shape, Timestamp::from_millis(0));
        ops.extend(plan(at, shape, Renewal::Replace, &[], found, |_| false).ops);
    }
    let table = Table { family: options.family, name: &options.table, sets: places };
    let count = ops.len();
    let now = || Timestamp::from_millis(0);
    let outcome = transaction::commit(link, &table, ops, None, now, |link, sealed| link.commit(sealed));
    match (outcome.broken, outcome.failed.first()) {
        (None, None) if count == 0 => Ok(Removed::Nothing),
        (None, None) => Ok(Removed::Elements(count)),
        (None, Some((_, errno))) => Err(Trouble::of(*errno).into()),
        (Some(transaction::Broken::Head(errno) | transaction::Broken::Whole(errno)), _) => {
            Err(Trouble::of(errno).into())
        }
        (Some(transaction::Broken::Unknown), _) => Err(Trouble::Lost.into()),
    }
}
