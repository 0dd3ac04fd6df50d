//! `greenlane serve`: run until told to stop, reload when told to.

use std::io::IsTerminal;
use std::path::PathBuf;

use sd_notify::NotifyState;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{fmt, registry};

use super::{ConfigFile, Failure, kept};
use crate::config::{Config, LogFormat, LogOptions};
use crate::daemon::{Daemon, Given, Stopped};

/// Runs the daemon: in this process, or, where it may program the firewall, in processes of their own.
pub(super) fn run(file: &ConfigFile) -> Result<(), Failure> {
    let path = file.path();
    let config = super::read_config(path.as_deref())?;
    log_to_stderr(&config.log);
    if kept::is_due(&config) {
        return kept::keep(file, &config);
    }
    super::tell_warnings(&config);
    let stopped = serve(config, path, Given::default(), || {
        // A service manager that does not listen is no reason to stop.
        let _ = sd_notify::notify(&[NotifyState::Ready]);
    });
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    stopped
}

/// Serves until told to stop; calls `is_ready` once questions are answered.
pub(super) fn serve(
    config: Config,
    source: Option<PathBuf>,
    given: Given,
    is_ready: impl FnOnce(),
) -> Result<(), Failure> {
    runtime()?.block_on(async {
        // Before the greeting: whoever reads it may signal at once, and must not end us without a drain.
        let signals = Signals::new()?;
        let daemon = Daemon::start_with(config, source, given).await.map_err(Failure::from)?;
        super::tell(daemon.greeting());
        is_ready();
        signals.until_stopped(&daemon).await?;
        daemon.drain().await;
        Ok(())
    })
}

/// Makes the runtime that everything runs on.
pub(super) fn runtime() -> Result<Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("starting threads: {error}")))
}

/// Sends the log to standard error. `RUST_LOG`, where it is set, decides over the configured level: levels by module,
/// such as `info,greenlane::store=debug`.
pub(super) fn log_to_stderr(options: &LogOptions) {
    let asked = std::env::var("RUST_LOG").ok().and_then(|asked| asked.parse().ok());
    let level = || options.level.name().parse().unwrap_or(LevelFilter::WARN);
    let log = registry().with(asked.unwrap_or_else(|| Targets::new().with_default(level())));
    // A line that standard error does not take is lost: telling that there would end the task that logged it.
    let lines = fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    // A second start in one process keeps the first log; only tests do that.
    let _ = match options.format {
        LogFormat::Text => log.with(lines.with_ansi(std::io::stderr().is_terminal())).try_init(),
        LogFormat::Json => log.with(lines.json()).try_init(),
    };
}

/// The signals that the daemon is told by; from the moment this is made they are kept until somebody waits.
pub(super) struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Listens from now on.
    pub(super) fn new() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::failed(format!("listening for signals: {error}")));
        Ok(Self {
            hangup: listen(SignalKind::hangup())?,
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// Waits for SIGINT or SIGTERM, reloading at each SIGHUP; also ends if a part that must run has ended.
    pub(super) async fn until_stopped(mut self, daemon: &Daemon) -> Result<(), Failure> {
        loop {
            tokio::select! {
                _ = self.hangup.recv() => daemon.reload().await,
                _ = self.terminate.recv() => return Ok(()),
                _ = self.interrupt.recv() => return Ok(()),
                Stopped(part) = daemon.stopped() => {
                    return Err(Failure::failed(format!("{part} ended by itself; this is a mistake in greenlane")));
                }
            }
        }
    }
}
