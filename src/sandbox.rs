//! Which files this process may still use (Landlock).
//!
//! Whoever reads a stranger's packets needs few files, and knows them at the start. A process that says which ones
//! ([`confine`]) is held to that by the kernel from then on, with all threads and programs that it starts; there is no way
//! back. What is open stays open. A rule belongs to a folder as it is at that moment: files in it may come, go and be
//! replaced, but a folder that is removed and made anew is another one.

use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, BitFlags, LandlockStatus, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    make_bitflags, path_beneath_rules,
};
use thiserror::Error;

/// The newest form of rules that is used; an older kernel gives what it has.
const FORM: ABI = ABI::V5;

/// What this process may do to files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// What it may read: folders with all below them, and files.
    pub read: Vec<PathBuf>,
    /// Folders in which it may read, write, make and remove files.
    pub write: Vec<PathBuf>,
}

/// Why nothing is confined.
#[derive(Debug, Error)]
pub enum ConfineError {
    /// The kernel cannot do it.
    #[error("this kernel has no Landlock, or it is switched off (`lsm=` of the kernel's command line)")]
    Absent,
    /// It could, and did not.
    #[error("{0}")]
    Refused(#[from] RulesetError),
}

/// Confines this process to these files, for ever. Call it before any thread starts. Paths that do not exist are left out.
///
/// # Errors
/// [`ConfineError`]; everything is as it was then.
pub fn confine(files: &Files) -> Result<(), ConfineError> {
    let written: BitFlags<AccessFs> =
        make_bitflags!(AccessFs::{ReadFile | ReadDir | WriteFile | Truncate | MakeReg | RemoveFile | Refer});
    let read: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let devices: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | WriteFile});
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(FORM))?
        .create()?
        .add_rules(path_beneath_rules(["/dev/null", "/dev/urandom"], devices))?
        .add_rules(path_beneath_rules(&files.read, read))?
        .add_rules(path_beneath_rules(&files.write, written))?
        .restrict_self()?;
    match status.landlock {
        LandlockStatus::Available { .. } => Ok(()),
        _ => Err(ConfineError::Absent),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::ErrorKind;

    use super::*;

    #[test]
    fn a_confined_thread_uses_no_other_files() {
        let (lists, store, other) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for folder in [&lists, &store, &other] {
            fs::write(folder.path().join("there"), "before").unwrap();
        }
        let files =
            Files { read: vec![lists.path().into(), "/no/such/folder".into()], write: vec![store.path().into()] };
        let [lists, store, other] = [&lists, &store, &other].map(|folder| folder.path().to_owned());
        // Rules are for the thread that makes them, as long as it starts no other.
        let confined = std::thread::spawn(move || {
            if let Err(error) = confine(&files) {
                assert!(matches!(error, ConfineError::Absent), "{error}");
                return;
            }
            let denied = |result: std::io::Result<()>| result.is_err_and(|it| it.kind() == ErrorKind::PermissionDenied);
            assert_eq!(fs::read(lists.join("there")).unwrap(), b"before");
            assert!(denied(fs::write(lists.join("there"), "after")) && denied(fs::write(lists.join("new"), "")));
            fs::write(store.join("new"), "after").unwrap();
            fs::rename(store.join("new"), store.join("there")).unwrap();
            fs::remove_file(store.join("there")).unwrap();
            assert!(denied(fs::read(other.join("there")).map(drop)) && denied(fs::remove_file(other.join("there"))));
            assert!(denied(std::process::Command::new("/bin/true").status().map(drop)));
            fs::write("/dev/null", "nothing").unwrap();
        });
        confined.join().unwrap();
    }
}
