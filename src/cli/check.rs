//! `greenlane check`: read everything, start nothing.

use super::{CheckArgs, ConfigFile, Failure};
use crate::catalogue;
use crate::daemon::today;

/// Reads configuration and lists; prints counts and warnings to standard output, problems to standard error.
pub(super) fn run(file: &ConfigFile, args: &CheckArgs) -> Result<(), Failure> {
    let mut options = file.load()?.catalogue;
    if let Some(zones) = &args.zones {
        options.path.clone_from(zones);
    }
    let loaded = catalogue::load(&options, today()).map_err(|problems| {
        let count = problems.0.len();
        let noun = if count == 1 { "error" } else { "errors" };
        Failure::failed(format!("{problems}\n{count} {noun} in {}", options.path.display()))
    })?;
    super::print(catalogue::report(&loaded).to_string())
}
