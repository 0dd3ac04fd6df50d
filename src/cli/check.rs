//! `greenlane check`: read everything, start nothing.

use std::fmt::Display;
use std::path::PathBuf;

use super::{CheckArgs, ConfigFile, Failure};
use crate::catalogue;
use crate::config::Config;
use crate::daemon::today;
use crate::export::file;
use crate::listen::cookie::Secrets;
use crate::listen::tls::{Pair, PairError};
use crate::policy::Hosts;
use crate::source::Location;
use crate::warm;
use crate::web::{Options, Tokens};

/// Reads configuration and lists, and what the configuration names; prints counts and warnings of the lists to standard
/// output, other warnings and problems to standard error.
pub(super) fn run(file: &ConfigFile, args: &CheckArgs) -> Result<(), Failure> {
    let config = file.load()?;
    let mut problems = Vec::from_iter(tls_problems(&config));
    problems.extend(token_problems(&config));
    let secrets = config.listen.clients.cookie_secret_file.as_deref().map(Secrets::load);
    problems.extend(secrets.and_then(Result::err).map(|error| error.to_string()));
    problems.extend(export_problems(&config));
    if let Some(path) = &config.hosts {
        match Hosts::load(path) {
            Ok((_, skipped)) => skipped.iter().for_each(|line| warn(None, &format!("forward.hosts: {line}; skipped"))),
            Err(error) => problems.push(format!("forward.hosts: {}: cannot be read: {error}", path.display())),
        }
    }
    let warm_names = warm::read_names(&config.warm, config.places.warm_names.as_ref());
    problems.extend(warm_names.err().map(|found| found.to_string()));
    let mut options = config.catalogue;
    if let Some(zones) = &args.zones {
        options.path.clone_from(zones);
    }
    let loaded = catalogue::load(&options, today()).map_err(|found| {
        let count = found.0.len();
        let noun = if count == 1 { "error" } else { "errors" };
        format!("{found}\n{count} {noun} in {}", options.path.display())
    });
    match loaded {
        Ok(loaded) if problems.is_empty() => super::print(catalogue::report(&loaded).to_string()),
        Err(lists) if problems.is_empty() => Err(Failure::failed(lists)),
        loaded => {
            problems.extend(loaded.err());
            Err(Failure::usage(problems.join("\n")))
        }
    }
}

/// Reads the certificate and its key as a start does.
fn tls_problems(config: &Config) -> Option<String> {
    let error = Pair::load(config.listen.tls.as_ref()?).err()?;
    let place = match &error {
        PairError::Certificate { .. } => &config.places.certificate,
        _ => &config.places.key,
    };
    Some(placed(place.as_ref(), &error))
}

/// Looks at the files of tokens as a start does; tells what only should be better.
fn token_problems(config: &Config) -> Vec<String> {
    let Options { read_token_file: read, admin_token_file: admin, .. } = &config.web;
    let one = |read: &Option<PathBuf>, admin: &Option<PathBuf>| Options {
        read_token_file: read.clone(),
        admin_token_file: admin.clone(),
        ..Options::default()
    };
    let mut problems = Vec::new();
    // Each alone, so that both are told of; then together.
    let (read_place, admin_place) = (&config.places.read_token_file, &config.places.admin_token_file);
    for (options, place) in [(one(read, &None), read_place), (one(&None, admin), admin_place)] {
        match Tokens::load(&options) {
            Ok((_, warnings)) => warnings.iter().for_each(|warning| warn(place.as_ref(), warning)),
            Err(error) => problems.push(placed(place.as_ref(), &error)),
        }
    }
    if let Ok((tokens, _)) = Tokens::load(&config.web)
        && tokens.are_equal()
    {
        warn(admin_place.as_ref(), &"web.admin-token-file: holds the read token, so that every reader may act");
    }
    problems
}

/// Looks whether files can be written where the set is exported to.
fn export_problems(config: &Config) -> Vec<String> {
    let places = config.places.export_files.iter().map(Some).chain(std::iter::repeat(None));
    let checked = config.export_files.iter().zip(places);
    checked
        .filter_map(|(options, place)| {
            Some(placed(place, &format!("export.file.path: {}", file::check(options).err()?)))
        })
        .collect()
}

fn warn(place: Option<&Location>, warning: &impl Display) {
    super::tell(format_args!("warning: {}", placed(place, warning)));
}

fn placed(place: Option<&Location>, what: &impl Display) -> String {
    place.map_or_else(|| what.to_string(), |place| format!("{place}: {what}"))
}
