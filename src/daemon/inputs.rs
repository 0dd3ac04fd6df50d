//! What the files say that a configuration names: read whole before anything is started, and again before a reload
//! changes anything.

use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use super::today;
use crate::catalogue::{self, Catalogue};
use crate::config::Config;
use crate::export::file;
use crate::listen::cookie::{SecretError, Secrets};
use crate::policy::Hosts;
use crate::source::{Problem, Problems};
use crate::warm::Wanted;
use crate::web;

/// Why they cannot be used.
#[derive(Debug, Error)]
pub enum InputError {
    /// The lists have mistakes.
    #[error("{0}")]
    Catalogue(Problems),
    /// The lists hold nothing, and held something before.
    #[error("{0}: no trigger is left, while {1} are in force; remove `catalogue.path` entries one by one, or restart")]
    Emptied(String, usize),
    /// A file to export to.
    #[error("export.file: {0}")]
    Export(#[from] file::CheckError),
    /// A token of the web listener.
    #[error("{0}")]
    Token(#[from] web::TokenError),
    /// The secrets of cookies.
    #[error("{0}")]
    Cookie(#[from] SecretError),
    /// The hosts file.
    #[error("{0}")]
    Hosts(#[from] HostsError),
    /// The file of names to ask ahead.
    #[error("{0}")]
    WarmNames(Problems),
}

impl InputError {
    /// Returns whether the configuration or a file must change, rather than the host.
    pub(super) fn is_configuration(&self) -> bool {
        !matches!(self, Self::Export(error) if !matches!(error, file::CheckError::NoFile(_)))
    }
}

/// A hosts file that cannot be read.
#[derive(Debug, Error)]
#[error("forward.hosts: {}: cannot be read: {source}", .path.display())]
pub struct HostsError {
    path: PathBuf,
    source: std::io::Error,
}

/// The lists and what else is read with them.
pub(super) struct Inputs {
    pub(super) catalogue: Arc<Catalogue>,
    /// Of the lists.
    pub(super) warnings: Vec<Problem>,
    /// What is asked ahead under these lists.
    pub(super) wanted: Arc<Wanted>,
    /// Of cookies, if clients get any.
    pub(super) secrets: Option<Secrets>,
    pub(super) hosts: Arc<Hosts>,
}

impl Inputs {
    /// Reads them; lists that hold nothing are refused where `in_force` triggers would go.
    ///
    /// # Errors
    /// The first that cannot be used.
    pub(super) fn read(config: &Config, in_force: usize) -> Result<Self, InputError> {
        let read = catalogue::load(&config.catalogue, today()).map_err(InputError::Catalogue)?;
        if read.catalogue.is_empty() && in_force > 0 {
            return Err(InputError::Emptied(config.catalogue.path.display().to_string(), in_force));
        }
        config.export_files.iter().try_for_each(file::check)?;
        let catalogue = Arc::new(read.catalogue);
        let wanted = Wanted::new(&config.warm, config.places.warm_names.as_ref(), &catalogue);
        let wanted = Arc::new(wanted.map_err(InputError::WarmNames)?);
        let secrets = config.listen.clients.cookie_secret_file.as_deref().map(Secrets::load).transpose()?;
        let hosts = read_hosts(config)?;
        Ok(Self { catalogue, warnings: read.warnings, wanted, secrets, hosts })
    }
}

/// Reads the hosts file, and says what of it was skipped.
fn read_hosts(config: &Config) -> Result<Arc<Hosts>, HostsError> {
    let Some(path) = &config.hosts else { return Ok(Arc::default()) };
    let (hosts, skipped) = Hosts::load(path).map_err(|source| HostsError { path: path.clone(), source })?;
    skipped.iter().for_each(|line| tracing::warn!("forward.hosts: {line}; skipped"));
    Ok(Arc::new(hosts))
}

/// Reads the tokens and says which of their files others can read.
pub(super) fn read_tokens(config: &Config) -> Result<web::Tokens, InputError> {
    let (tokens, warnings) = web::Tokens::load(&config.web)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok(tokens)
}
