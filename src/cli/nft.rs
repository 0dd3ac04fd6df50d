//! `greenlane nft`: what greenlane keeps in the local kernel.

use super::{ConfigFile, Failure, NftCommand};
use crate::export::nftables::{self, Removed};

/// Does what was asked for each `[[export.nftables]]` of the configuration.
pub(super) fn run(file: &ConfigFile, command: &NftCommand) -> Result<(), Failure> {
    let NftCommand::Remove = command;
    let config = file.load()?;
    if config.export_nftables.is_empty() {
        return Err(Failure::usage("export.nftables: none is configured, so there is nothing to remove"));
    }
    for options in &config.export_nftables {
        let place = format!("table {} {}", options.family.as_str(), options.table);
        let removed =
            nftables::remove(options).map_err(|error| Failure::failed(format!("export.nftables: {place}: {error}")))?;
        let what = match removed {
            Removed::Table => "removed".to_owned(),
            Removed::Elements(count) => format!("{count} elements of ours removed, the sets stay"),
            Removed::Nothing => "nothing of ours was there".to_owned(),
        };
        super::print(format!("{place}: {what}\n"))?;
    }
    Ok(())
}
