//! A running `greenlane sync`, and what it said.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::sleep;

use crate::harness::{Client, PATIENCE, greenlane};

/// Whatever the tests' resolvers learn may be taken.
pub(crate) const LABORATORY: &str = "192.0.2.0/24,198.51.100.0/24,203.0.113.0/24,198.18.0.0/15,2001:db8::/32";

/// Makes the command; its folder has no configuration file.
pub(crate) fn command(urls: &[String], words: &str) -> Command {
    let mut command = greenlane();
    command.current_dir(std::env::temp_dir()).arg("sync").args(["--treat-as-public", LABORATORY]);
    for url in urls {
        command.args(["--from", url]);
    }
    command.args(words.split_whitespace());
    command
}

/// Runs it to its end.
pub(crate) async fn run(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// A running one; it is killed with the test.
pub(crate) struct Agent {
    child: Child,
    lines: Arc<Mutex<String>>,
    log: Arc<Mutex<String>>,
    /// Where its metrics are.
    pub(crate) metrics: Client,
}

impl Agent {
    /// Starts it with `--metrics`, and waits for its greeting.
    pub(crate) async fn start(urls: &[String], words: &str) -> Self {
        Self::start_command(command(urls, words)).await
    }

    /// The same with a command made beforehand.
    pub(crate) async fn start_command(mut command: Command) -> Self {
        command.args(["--metrics", "127.0.0.1:0"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = gather(child.stdout.take().unwrap());
        let log = gather(child.stderr.take().unwrap());
        let none = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut agent = Self { child, lines, log, metrics: Client { dns: none, web: none } };
        let greeted = agent.until("the greeting", |agent| {
            let log = agent.log();
            let rest = log.split_once("metrics on http://")?.1;
            rest.split('/').next()?.parse().ok()
        });
        agent.metrics.web = greeted.await;
        agent
    }

    /// What it wrote to standard output so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().lines().map(str::to_owned).collect()
    }

    /// What it wrote to standard error so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until it has printed a line that starts so.
    pub(crate) async fn until_line(&self, start: &str) -> String {
        let find = |agent: &Self| agent.lines().into_iter().find(|line| line.starts_with(start));
        self.until(start, find).await
    }

    /// Looks until `look` gives something.
    pub(crate) async fn until<T>(&self, what: &str, look: impl Fn(&Self) -> Option<T>) -> T {
        for _ in 0..PATIENCE.as_millis() / 10 {
            if let Some(found) = look(self) {
                return found;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("{what}: waited in vain; {:?}\n{}", self.lines(), self.log());
    }

    /// Ends it at once, without a chance to do anything about it.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        assert_eq!(self.child.wait().unwrap().signal(), Some(9));
    }

    /// Sends a signal by name.
    pub(super) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    /// Sends a signal by name and returns the exit code.
    pub(crate) async fn ended_by(&mut self, signal: &str) -> Option<i32> {
        self.signal(signal);
        for _ in 0..PATIENCE.as_millis() / 10 {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("it does not end; {}", self.log());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn gather(from: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::new(Mutex::new(String::new()));
    let lines = Arc::clone(&text);
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            let mut text = lines.lock().unwrap();
            text.push_str(&line);
            text.push('\n');
        }
    });
    text
}
