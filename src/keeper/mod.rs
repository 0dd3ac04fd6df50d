//! The keeper: the first of three processes, where greenlane programs the local firewall.
//!
//! ```text
//!   keeper ── starts, waits, starts again, passes signals on; holds the listening sockets
//!     ├─ agent      CAP_NET_ADMIN and nothing else; programs nftables     ▲ one way (a pair of sockets)
//!     └─ resolver   no capability; reads packets, answers, learns ────────┘ for each firewall
//! ```
//! Each child is this program again, started before any thread, with its end of a [`Line`] as standard input. When one
//! ends, the other gets new ways to its successor. A listening socket outlives the resolver, so that questions wait in it
//! until the next one reads them. A child that ends soon after its start is started again after a pause that doubles.
//! Until the resolver has once been ready, its own failure is the keeper's: the exit code is passed on, and what is wrong
//! it has said itself.
//!
//! The children have process groups of their own, so that what a terminal sends reaches them once, through us. They do not
//! outlive us: the system kills them (`privilege::end_with_parent`), and their lines end.

use std::io;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::clock::{Clock, Timestamp};
use crate::{manager, privilege};

mod line;

pub use line::{Line, Word, pair};

/// A child that lived this long is started again at once.
const STEADY: Duration = Duration::from_secs(10);
/// The pause after one that did not; it doubles each time.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long the agent may take to end once nobody uses it.
const END_PATIENCE: Duration = Duration::from_secs(3);
/// How far apart new ways between the two are at least, while neither ends.
const CONNECT_PAUSE: Duration = Duration::from_secs(1);
/// How long the keeper sleeps at most.
const SLEEP_MAX: Duration = Duration::from_secs(5);
/// The most words that are taken from a child before others have their turn.
const WORDS_MAX: usize = 16;
/// Variables that are the keeper's alone: it is the main process of the service.
const OWN_VARIABLES: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// The two that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Programs the firewall.
    Agent,
    /// Answers.
    Resolver,
}

impl Role {
    /// Returns what it is called in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "the firewall agent",
            Self::Resolver => "the resolver",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Agent => Self::Resolver,
            Self::Resolver => Self::Agent,
        }
    }
}

/// What is kept.
pub struct Plan<'a> {
    /// The command of each; standard input and process group are set here.
    pub command: &'a dyn Fn(Role) -> Command,
    /// The listening sockets.
    pub sockets: Vec<OwnedFd>,
    /// How many firewalls the agent programs.
    pub ways: usize,
}

/// Begins as a child: takes its line, ends with the keeper, and shows which one it is.
///
/// # Errors
/// [`io::ErrorKind::NotConnected`] if no keeper started this process.
pub fn begin(role: Role) -> io::Result<Line> {
    let line = Line::of_stdin()?;
    // A keeper that ended before this has ended the line.
    privilege::end_with_parent()?;
    // `/proc/self/exe` is no name to find a process by.
    let name = match role {
        Role::Agent => c"greenlane-agent",
        Role::Resolver => c"greenlane",
    };
    let _ = rustix::thread::set_name(name);
    Ok(line)
}

/// Signals that the keeper reads; children begin with these blocked. Blocked before the first child is started.
///
/// # Errors
/// What the system says.
pub fn block_signals() -> io::Result<()> {
    Ok(signals().thread_block()?)
}

/// Lets those signals through again, for a child that handles them itself.
///
/// # Errors
/// What the system says.
pub fn unblock_signals() -> io::Result<()> {
    Ok(signals().thread_unblock()?)
}

fn signals() -> SigSet {
    [Signal::SIGCHLD, Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM].into_iter().collect()
}

/// Starts both and keeps them until told to stop; call [`block_signals`] before. Returns the exit code.
///
/// # Errors
/// If the system gives no descriptor for signals, or this program cannot be started a first time.
pub fn keep(plan: Plan<'_>, clock: Clock) -> io::Result<u8> {
    let signals = SignalFd::with_flags(&signals(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let now = clock.now();
    let (agent, resolver) = (Seat::new(Role::Agent, now), Seat::new(Role::Resolver, now));
    let mut keeper =
        Keeper { plan, clock, signals, agent, resolver, phase: Phase::Starting, must_reload: false, connected_at: now };
    keeper.start(Role::Agent)?;
    keeper.start(Role::Resolver)?;
    loop {
        if let Some(code) = keeper.code() {
            return Ok(code);
        }
        keeper.wait();
        keeper.take_signals();
        keeper.hear(Role::Resolver);
        keeper.hear(Role::Agent);
        keeper.reap(Role::Resolver);
        keeper.reap(Role::Agent);
        keeper.start_those_due();
    }
}

/// How far we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The resolver has never been ready.
    Starting,
    /// It has been.
    Running,
    /// Nobody is started any more; this will be our exit code.
    Ending(u8),
}

struct Keeper<'a> {
    plan: Plan<'a>,
    clock: Clock,
    signals: SignalFd,
    agent: Seat,
    resolver: Seat,
    phase: Phase,
    /// A reload was asked for that the resolver, not being ready, has not been told of.
    must_reload: bool,
    connected_at: Timestamp,
}

/// The place of a child.
struct Seat {
    role: Role,
    child: Option<Running>,
    pause: Duration,
    /// When it is to be started, if nobody is there.
    start_at: Timestamp,
}

struct Running {
    process: Child,
    /// `None` once it has ended: then the child is about to end, too.
    line: Option<Line>,
    since: Timestamp,
    is_ready: bool,
    kill_at: Option<Timestamp>,
}

impl Keeper<'_> {
    fn seat(&mut self, role: Role) -> &mut Seat {
        match role {
            Role::Agent => &mut self.agent,
            Role::Resolver => &mut self.resolver,
        }
    }

    /// Returns the exit code once both are gone and none is to come.
    fn code(&self) -> Option<u8> {
        match self.phase {
            Phase::Ending(code) if self.agent.child.is_none() && self.resolver.child.is_none() => Some(code),
            _ => None,
        }
    }

    fn start(&mut self, role: Role) -> io::Result<()> {
        let (ours, theirs) = pair()?;
        let mut command = (self.plan.command)(role);
        OWN_VARIABLES.iter().for_each(|name| {
            command.env_remove(name);
        });
        let process = command.stdin(Stdio::from(theirs)).process_group(0).spawn()?;
        let (line, since) = (Line::new(ours), self.clock.now());
        if role == Role::Resolver {
            let sockets: Vec<_> = self.plan.sockets.iter().map(AsFd::as_fd).collect();
            // A child that does not take them ends, and that is seen.
            let _ = line.say(Word::Sockets, &sockets).and_then(|()| line.say(Word::Begin, &[]));
        }
        self.seat(role).child = Some(Running { process, line: Some(line), since, is_ready: false, kill_at: None });
        self.connect()
    }

    /// Makes new ways between the two, if both are there.
    fn connect(&mut self) -> io::Result<()> {
        let (Some(agent), Some(resolver)) = (self.agent.line(), self.resolver.line()) else { return Ok(()) };
        self.connected_at = self.clock.now();
        let pairs: Vec<_> = (0..self.plan.ways).map(|_| pair()).collect::<io::Result<_>>()?;
        let _ = agent.say(Word::Ways, &pairs.iter().map(|(one, _)| one.as_fd()).collect::<Vec<_>>());
        let _ = resolver.say(Word::Ways, &pairs.iter().map(|(_, other)| other.as_fd()).collect::<Vec<_>>());
        Ok(())
    }

    /// Makes new ways for a resolver that has lost them although the agent has not ended; at most once in a while.
    fn connect_again(&mut self) {
        let is_rested = self.clock.now().since(self.connected_at) >= CONNECT_PAUSE;
        if is_rested && let Err(error) = self.connect() {
            tracing::warn!("no way from the resolver to the firewall agent: {error}");
        }
    }

    fn start_those_due(&mut self) {
        for role in [Role::Agent, Role::Resolver] {
            let now = self.clock.now();
            let seat = self.seat(role);
            let is_due = seat.child.is_none() && seat.start_at <= now;
            if is_due
                && !matches!(self.phase, Phase::Ending(_))
                && let Err(error) = self.start(role)
            {
                tracing::error!("{} cannot be started: {error}", role.name());
                let seat = self.seat(role);
                if seat.child.is_none() {
                    seat.wait_longer(Duration::ZERO, now);
                }
            }
        }
    }

    /// Sleeps until a signal or a word comes, or it is time for something.
    fn wait(&mut self) {
        let now = self.clock.now();
        let times = [&self.agent, &self.resolver].into_iter().filter_map(|seat| match &seat.child {
            Some(running) => running.kill_at,
            None if matches!(self.phase, Phase::Ending(_)) => None,
            None => Some(seat.start_at),
        });
        let sleep = times.map(|at| at.since(now)).fold(SLEEP_MAX, Duration::min);
        let lines = [&self.agent, &self.resolver].into_iter().filter_map(Seat::line);
        let mut fds: Vec<_> = lines.map(|line| PollFd::new(line, PollFlags::IN)).collect();
        fds.push(PollFd::new(&self.signals, PollFlags::IN));
        let timeout = Timespec::try_from(sleep).ok();
        // Interrupted or not: everybody is looked at.
        let _ = poll(&mut fds, timeout.as_ref());
        let now = self.clock.now();
        for seat in [&mut self.agent, &mut self.resolver] {
            if seat.child.as_ref().is_some_and(|running| running.kill_at.is_some_and(|at| at <= now)) {
                seat.kill();
            }
        }
    }

    fn take_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            let number = i32::try_from(signal.ssi_signo).unwrap_or_default();
            match Signal::try_from(number) {
                Ok(Signal::SIGHUP) => self.reload(),
                Ok(Signal::SIGINT | Signal::SIGTERM) => self.stop(),
                // Children that ended are looked for in any case.
                _ => {}
            }
        }
    }

    fn reload(&mut self) {
        // The agent first: what its files allow must be known when the resolver asks for it.
        if let Some(line) = self.agent.line() {
            let _ = line.say(Word::Reload, &[]);
        }
        if self.resolver.child.as_ref().is_some_and(|running| running.is_ready) {
            self.resolver.signal(rustix::process::Signal::HUP);
        } else {
            // The signal would end it, or come after it has read the files.
            self.must_reload = true;
        }
    }

    fn stop(&mut self) {
        manager::tell_stopping();
        if !matches!(self.phase, Phase::Ending(_)) {
            self.phase = Phase::Ending(0);
        }
        match self.resolver.child {
            Some(_) => self.resolver.signal(rustix::process::Signal::TERM),
            None => self.dismiss_agent(),
        }
    }

    /// Ends the agent's line, at which it ends.
    fn dismiss_agent(&mut self) {
        let kill_at = self.clock.now().after(END_PATIENCE);
        if let Some(running) = &mut self.agent.child {
            running.line = None;
            running.kill_at.get_or_insert(kill_at);
        }
    }

    fn hear(&mut self, role: Role) {
        for _ in 0..WORDS_MAX {
            let Some(line) = self.seat(role).line() else { return };
            match line.hear_now() {
                Ok(Some((Word::Ready, _))) if role == Role::Resolver => self.is_ready(),
                Ok(Some((Word::Alive, _))) if role == Role::Resolver => manager::tell_alive(),
                Ok(Some((Word::Apart, _))) if role == Role::Resolver => self.connect_again(),
                Ok(Some((Word::Broken, _))) => {
                    let other = role.other();
                    tracing::error!("{} does not speak as it should: ending it", other.name());
                    self.seat(other).kill();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(Some(_)) | Err(_) => {
                    tracing::error!("{} does not speak as it should: ending it", role.name());
                    return self.seat(role).kill();
                }
                // It has ended, or has closed its line, and then it must end, too.
                Ok(None) => return self.seat(role).kill(),
            }
        }
    }

    fn is_ready(&mut self) {
        if let Some(running) = &mut self.resolver.child {
            running.is_ready = true;
        }
        manager::tell_ready();
        if self.phase == Phase::Starting {
            self.phase = Phase::Running;
        }
        if mem::take(&mut self.must_reload) {
            self.reload();
        }
    }

    /// Takes note of a child that has ended.
    fn reap(&mut self, role: Role) {
        let now = self.clock.now();
        let phase = self.phase;
        let seat = self.seat(role);
        let Some(running) = &mut seat.child else { return };
        let Ok(Some(status)) = running.process.try_wait() else { return };
        let lived = now.since(running.since);
        seat.child = None;
        match (phase, role, status.code()) {
            (Phase::Ending(_), Role::Agent, _) => {}
            (Phase::Ending(code), Role::Resolver, _) => {
                self.phase = Phase::Ending(code.max(code_of(status)));
                self.dismiss_agent();
            }
            (Phase::Starting, Role::Resolver, Some(code)) => {
                self.phase = Phase::Ending(u8::try_from(code).unwrap_or(1));
                self.dismiss_agent();
            }
            _ => {
                seat.wait_longer(lived, now);
                let pause = seat.pause;
                tracing::warn!("{} ended ({status}), starting it again in {pause:?}", role.name());
            }
        }
    }
}

impl Seat {
    fn new(role: Role, now: Timestamp) -> Self {
        Self { role, child: None, pause: Duration::ZERO, start_at: now }
    }

    fn line(&self) -> Option<&Line> {
        self.child.as_ref()?.line.as_ref()
    }

    fn wait_longer(&mut self, lived: Duration, now: Timestamp) {
        self.pause = if lived >= STEADY { Duration::ZERO } else { (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX) };
        self.start_at = now.after(self.pause);
    }

    /// Signals the child. It is not reaped before we say so, so its number is its own.
    fn signal(&self, signal: rustix::process::Signal) {
        let Some(running) = &self.child else { return };
        let pid = i32::try_from(running.process.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(Err(error)) = pid.map(|pid| rustix::process::kill_process(pid, signal)) {
            tracing::warn!("{} takes no signal: {error}", self.role.name());
        }
    }

    fn kill(&mut self) {
        if let Some(running) = &mut self.child {
            running.line = None;
            running.kill_at = None;
            let _ = running.process.kill();
        }
    }
}

/// The exit code that a child's end comes to when we asked for it.
fn code_of(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(1),
        // Before it could handle the signal.
        (None, Some(signal)) if signal == Signal::SIGTERM as i32 => 0,
        (None, _) => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_until_a_child_lives() {
        let now = Timestamp::from_secs(1_800_000_000);
        let mut seat = Seat::new(Role::Agent, now);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            seat.wait_longer(Duration::from_secs(1), now);
            pauses.push(seat.pause.as_millis());
        }
        assert_eq!(pauses[..4], [100, 200, 400, 800]);
        assert_eq!(pauses[11], 30_000);
        seat.wait_longer(STEADY, now);
        assert_eq!((seat.pause, seat.start_at), (Duration::ZERO, now));
    }
}
