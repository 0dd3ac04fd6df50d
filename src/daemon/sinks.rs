//! Those who keep the set elsewhere: the store and the local firewalls, each on threads of its own.
//!
//! They start before the learner, which tells them the whole set first, and end with its last word. What the store kept
//! is what the set begins with.

use std::io;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::{AgentAway, StartError};
use crate::clock::Clock;
use crate::config::Config;
use crate::export::nftables::agent::{self, RemoteMeter};
use crate::export::nftables::{self, Surplus};
use crate::metrics::Registry;
use crate::set::outlet::{Outlet, Restored, outlet};
use crate::store::{self, Store};

/// How long the store may take to close its files.
const CLOSE_PATIENCE: Duration = Duration::from_secs(3);

/// What the learner needs of them, and what must be awaited at the end.
pub(super) struct Sinks {
    /// The ways to them.
    pub(super) outlets: Vec<Outlet>,
    /// What the store kept.
    pub(super) restored: Option<Restored>,
    /// The store's thread.
    pub(super) keeper: Keeper,
}

/// The thread that closes the store's files at the end.
#[derive(Debug, Default)]
pub(super) struct Keeper(Option<JoinHandle<()>>);

impl Sinks {
    /// Opens the store and starts everything that the configuration names.
    pub(super) fn start(
        config: &Config,
        agent: Option<AgentAway>,
        clock: &Clock,
        registry: &Registry,
    ) -> Result<Self, StartError> {
        let mut sinks = Self { outlets: Vec::new(), restored: None, keeper: Keeper::default() };
        if let Some(options) = &config.store {
            sinks.start_store(options, clock, registry)?;
        }
        if !config.export_nftables.is_empty() {
            match agent {
                None => sinks.start_nftables(&config.export_nftables, clock, registry),
                Some(agent) => sinks.connect_nftables(&config.export_nftables, agent, clock, registry),
            }
            .map_err(StartError::Threads)?;
        }
        Ok(sinks)
    }

    fn start_store(&mut self, options: &store::Options, clock: &Clock, registry: &Registry) -> Result<(), StartError> {
        let opened = Store::open(options, clock)?;
        let (outlet, intake) = outlet("store");
        let (clock, metrics) = (clock.clone(), store::Metrics::new(registry));
        let thread = thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || store::run(opened.store, intake, &clock, metrics))
            .map_err(StartError::Threads)?;
        self.outlets.push(outlet);
        self.restored = Some(opened.restored);
        self.keeper = Keeper(Some(thread));
        Ok(())
    }

    fn start_nftables(&mut self, all: &[nftables::Options], clock: &Clock, registry: &Registry) -> io::Result<()> {
        let surplus = self.surplus();
        let metrics = nftables::Metrics::new(registry);
        for options in all {
            let (outlet, intake) = outlet("nftables");
            nftables::start(options.clone(), surplus, intake, clock.clone(), metrics.clone())?;
            self.outlets.push(outlet);
        }
        Ok(())
    }
}

impl Sinks {
    /// Without what was known before, elements that are there may still be told to clients.
    fn surplus(&self) -> Surplus {
        match &self.restored {
            Some(restored) if restored.serial > 0 => Surplus::Withdraw,
            _ => Surplus::Adopt,
        }
    }

    /// Leaves the firewalls to the agent.
    fn connect_nftables(
        &mut self,
        all: &[nftables::Options],
        agent: AgentAway,
        clock: &Clock,
        registry: &Registry,
    ) -> io::Result<()> {
        let (surplus, meter, mut remotes) = (self.surplus(), RemoteMeter::new(registry), Vec::new());
        for _ in all {
            let (outlet, intake) = outlet("nftables");
            let complain = agent.complain.clone();
            remotes.push(agent::connect(intake, surplus, clock.clone(), meter.clone(), complain)?);
            self.outlets.push(outlet);
        }
        agent.remotes.begin(remotes);
        Ok(())
    }
}

impl Keeper {
    /// Waits for the store to close its files; the learner has said its last word before.
    pub(super) async fn ended(self) {
        let Some(thread) = self.0 else { return };
        let joined = tokio::task::spawn_blocking(move || thread.join());
        if tokio::time::timeout(CLOSE_PATIENCE, joined).await.is_err() {
            tracing::warn!("the store did not close within {} s; nothing is lost", CLOSE_PATIENCE.as_secs());
        }
    }
}
