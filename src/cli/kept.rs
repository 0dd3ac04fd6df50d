//! `greenlane serve` where it programs the local firewall: a keeper, and the two processes that it keeps.
//!
//! Which is which is said by a command that nobody types (`greenlane agent`, `greenlane resolver`); each gives up what it
//! does not need as its first act, while it has one thread.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use std::{panic, process, thread};

use super::serve::{Oversight, Sign, confine, log_to_stderr, serve};
use super::{ConfigFile, Failure, read_config};
use crate::clock::Clock;
use crate::config::Config;
use crate::daemon::{AgentAway, Given, Patience, Sockets, firewall_rules};
use crate::export::nftables::agent::{self, Complain, Complaint, Read, Remotes, Rules, Start};
use crate::export::nftables::{self, Options};
use crate::keeper::{self, Line, Plan, Role, Word};
use crate::manager::Passed;
use crate::privilege::{self, Kept};

/// The greenlane that runs, even if another was installed in its place.
const OURSELVES: &str = "/proc/self/exe";
/// How long the agent waits between two looks at files that have mistakes.
const READ_PAUSE: Duration = Duration::from_millis(500);

/// How often the keeper hears that the resolver is alive; a watchdog that waits for less would be hasty.
const ALIVE_PAUSE: Duration = Duration::from_secs(1);

/// Returns whether this process should be a keeper: there is a firewall to program, and the right to do so.
pub(super) fn is_due(config: &Config) -> bool {
    !config.export_nftables.is_empty() && privilege::has_net_admin()
}

/// Keeps agent and resolver until told to stop.
pub(super) fn keep(file: &ConfigFile, config: &Config, passed: Vec<Passed>) -> Result<(), Failure> {
    keeper::block_signals().map_err(|error| Failure::failed(format!("listening for signals: {error}")))?;
    let sockets = Sockets::take(passed, config, Patience::Some)?.into_fds();
    let sockets = sockets.map_err(|error| Failure::failed(format!("handing on the sockets: {error}")))?;
    let command = |role| {
        let mut command = Command::new(OURSELVES);
        command.arg0("greenlane").arg(match role {
            Role::Agent => "agent",
            Role::Resolver => "resolver",
        });
        if let Some(path) = &file.config {
            command.arg("--config").arg(path);
        }
        command
    };
    let plan = Plan { command: &command, sockets, ways: config.export_nftables.len() };
    match keeper::keep(plan, Clock::system()) {
        Ok(0) => Ok(()),
        // Whoever failed has said why.
        Ok(code) => Err(Failure { code, message: String::new() }),
        Err(error) => Err(Failure::failed(format!("starting processes: {error}"))),
    }
}

/// Begins as a child of the keeper, and keeps no more than it needs.
fn begin(role: Role, kept: Kept) -> Result<Line, Failure> {
    let line = keeper::begin(role).map_err(|_| Failure::usage("this command is for `greenlane serve` alone"))?;
    privilege::keep_only(kept).map_err(|error| Failure::failed(format!("giving up privileges: {error}")))?;
    Ok(line)
}

/// Answers, without any privilege.
pub(super) fn resolver(file: &ConfigFile) -> Result<(), Failure> {
    let line = Arc::new(begin(Role::Resolver, Kept::Nothing)?);
    keeper::unblock_signals().map_err(|error| Failure::failed(format!("listening for signals: {error}")))?;
    let config = file.load()?;
    log_to_stderr(&config.log);
    confine(&config, file.path().as_deref());
    let sockets = sockets(&line)?;
    let remotes = Arc::new(Remotes::default());
    let (listening, ways) = (Arc::clone(&line), Arc::clone(&remotes));
    let listener = thread::Builder::new().name("keeper-line".to_owned()).spawn(move || {
        // Once the keeper is gone, so are we.
        while let Ok(Some((word, fds))) = listening.hear() {
            if word == Word::Ways {
                ways.take_ways(fds);
            }
        }
    });
    listener.map_err(|error| Failure::failed(format!("starting threads: {error}")))?;
    let complain = complain_on(&line);
    let given = Given { sockets: Some(sockets), agent: Some(AgentAway { remotes, complain }), ..Given::default() };
    let tell = |sign| {
        let word = match sign {
            Sign::Ready => Word::Ready,
            Sign::Alive => Word::Alive,
            // It was the keeper that said so.
            Sign::Stopping => return,
        };
        // The keeper that does not hear it has ended.
        let _ = line.say(word, &[]);
    };
    serve(config, file.path(), given, Oversight { pause: Some(ALIVE_PAUSE), tell: &tell })
}

/// Has complaints go to the keeper.
fn complain_on(line: &Arc<Line>) -> Complain {
    let line = Arc::clone(line);
    Arc::new(move |complaint| {
        let word = match complaint {
            Complaint::Broken => Word::Broken,
            Complaint::Apart => Word::Apart,
        };
        // A keeper that does not hear it has ended.
        let _ = line.say(word, &[]);
    })
}

/// Takes the listening sockets off the line.
fn sockets(line: &Line) -> Result<Sockets, Failure> {
    let broken = |error: std::io::Error| Failure::failed(format!("taking the sockets of the keeper: {error}"));
    let mut sockets = Vec::new();
    loop {
        match line.hear().map_err(broken)? {
            Some((Word::Sockets, some)) => sockets.extend(some),
            Some((Word::Begin, _)) => return Sockets::adopt(sockets).map_err(broken),
            Some(_) => return Err(broken(std::io::ErrorKind::InvalidData.into())),
            None => return Err(broken(std::io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

/// Programs the firewall as the resolver asks and the files allow.
pub(super) fn agent(file: &ConfigFile) -> Result<(), Failure> {
    let line = Arc::new(begin(Role::Agent, Kept::NetAdmin)?);
    let path = file.path();
    let config = read_config(path.as_deref())?;
    log_to_stderr(&config.log);
    end_on_panic();
    let Some((rules, read)) = read_rules(path, &line) else { return Ok(()) };
    wait_for_tables(&config.export_nftables);
    let complain = complain_on(&line);
    let start = Start { firewalls: config.export_nftables, rules, read, complain };
    let agent =
        agent::start(start, Clock::system()).map_err(|error| Failure::failed(format!("starting threads: {error}")))?;
    loop {
        match line.hear() {
            Ok(Some((Word::Ways, ways))) => agent.take_ways(ways),
            Ok(Some((Word::Reload, _))) => agent.reload(),
            Ok(Some(_)) => {}
            // What is in the kernel stays.
            Ok(None) => return Ok(()),
            Err(error) => return Err(Failure::failed(format!("the keeper's line: {error}"))),
        }
    }
}

/// Reads the files until they have no mistakes; `None` if the keeper ends before. The resolver tells these mistakes, so
/// they are told here only if they last.
fn read_rules(path: Option<PathBuf>, line: &Line) -> Option<(Rules, Read)> {
    let mut tries = 0;
    let (rules, mut trigger_count) = loop {
        match firewall_rules(path.as_deref()) {
            Ok(read) => break read,
            Err(fault) => {
                tries += 1;
                if tries == 4 {
                    tracing::error!("the firewall agent waits for files without mistakes: {fault}");
                }
                if line.ends_within(READ_PAUSE) {
                    return None;
                }
            }
        }
    };
    let read = move || {
        let (rules, count) = firewall_rules(path.as_deref())?;
        if count == 0 && trigger_count > 0 {
            return Err(format!("{}: no trigger is left", shown(path.as_deref())));
        }
        trigger_count = count;
        Ok(rules)
    };
    Some((rules, Box::new(read)))
}

fn shown(path: Option<&Path>) -> String {
    path.map_or_else(|| "the default configuration".to_owned(), |path| path.display().to_string())
}

/// An engine without one of its threads is none; the keeper starts another.
fn end_on_panic() {
    let tell = panic::take_hook();
    panic::set_hook(Box::new(move |what| {
        tell(what);
        process::exit(1);
    }));
}

/// Waits a moment where the agent before us, which was killed, still owns a table.
fn wait_for_tables(firewalls: &[Options]) {
    for _ in 0..20 {
        if !firewalls.iter().any(nftables::is_owned_by_another) {
            return;
        }
        thread::sleep(Duration::from_millis(25));
    }
}
