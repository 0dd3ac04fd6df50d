//! The `greenlane` command.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;
use greenlane::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Where nobody can hear why, the code still says that; a process that passes on a code has heard it said.
            if !failure.message.is_empty() {
                let _ = writeln!(std::io::stderr(), "{}", failure.message);
            }
            ExitCode::from(failure.code)
        }
    }
}
