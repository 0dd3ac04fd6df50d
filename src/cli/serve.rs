//! `greenlane serve`: run until told to stop, reload when told to.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{fmt, registry};

use super::{ConfigFile, Failure, kept};
use crate::config::{Config, LogFormat, LogOptions};
use crate::daemon::{Daemon, Given, HandedError, StartError, Stopped};
use crate::{daemon, manager, privilege, sandbox};

/// Runs the daemon: in this process, or, where it may program the firewall, in processes of their own.
pub(super) fn run(file: &ConfigFile) -> Result<(), Failure> {
    let path = file.path();
    let config = super::read_config(path.as_deref())?;
    log_to_stderr(&config.log);
    privilege::raise_file_limit();
    let passed = manager::passed().map_err(|error| StartError::from(HandedError::from(error)))?;
    if kept::is_due(&config) {
        return kept::keep(file, &config, passed);
    }
    super::tell_warnings(&config);
    confine(&config, path.as_deref());
    // Twice in the span, and a turn of the threads takes a moment, too.
    let pause = manager::watchdog().map(|span| span / 3);
    serve(config, path, Given { passed, ..Given::default() }, Oversight { pause, tell: &tell_manager })
}

/// Confines this process to the files that the configuration names, as far as the kernel can; before any thread starts.
pub(super) fn confine(config: &Config, source: Option<&Path>) {
    let Some(files) = daemon::files(config, source) else {
        return tracing::info!("files are not confined: `on-change` runs commands that may need any");
    };
    match sandbox::confine(&files) {
        Ok(()) => tracing::info!("confined to the files that the configuration names"),
        Err(error) => tracing::warn!("files are not confined: {error}"),
    }
}

/// What is told to whoever oversees this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// Questions are answered.
    Ready,
    /// They still are.
    Alive,
    /// The end has begun.
    Stopping,
}

/// Who oversees this process, and how often it wants to hear that we are alive; `None` for never.
pub(super) struct Oversight<'a> {
    pub(super) pause: Option<Duration>,
    pub(super) tell: &'a dyn Fn(Sign),
}

/// Tells the service manager.
fn tell_manager(sign: Sign) {
    match sign {
        Sign::Ready => manager::tell_ready(),
        Sign::Alive => manager::tell_alive(),
        Sign::Stopping => manager::tell_stopping(),
    }
}

/// Serves until told to stop.
pub(super) fn serve(
    config: Config,
    source: Option<PathBuf>,
    given: Given,
    Oversight { pause, tell }: Oversight<'_>,
) -> Result<(), Failure> {
    runtime()?.block_on(async {
        // Before the greeting: whoever reads it may signal at once, and must not end us without a drain.
        let signals = Signals::new()?;
        let daemon = Daemon::start_with(config, source, given).await.map_err(Failure::from)?;
        super::tell(daemon.greeting());
        tell(Sign::Ready);
        let show_life = async {
            // Without a pause nobody wants to hear it.
            let Some(pause) = pause else { return std::future::pending().await };
            loop {
                daemon.shown_life().await;
                tell(Sign::Alive);
                tokio::time::sleep(pause).await;
            }
        };
        let stopped = tokio::select! {
            stopped = signals.until_stopped(&daemon) => stopped,
            () = show_life => Ok(()),
        };
        tell(Sign::Stopping);
        stopped?;
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
