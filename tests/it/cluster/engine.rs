//! A real `redis-server` on a free port, with a folder of its own; it ends with its handle.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use redis::Cmd;
use redis::aio::MultiplexedConnection;
use tempfile::TempDir;
use tokio::time::sleep;

use crate::formats::lacks;
use crate::harness::PATIENCE;

/// A running engine.
pub(super) struct Engine {
    child: Child,
    pub(super) addr: SocketAddr,
    folder: TempDir,
    options: Vec<String>,
}

/// Whether the engine's program is there; says so if not.
pub(super) fn has_engine() -> bool {
    let ran = Command::new("redis-server").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    ran.is_ok_and(|status| status.success()) || lacks("redis-server")
}

impl Engine {
    /// Starts one on loopback that keeps nothing on disk.
    pub(super) async fn start() -> Self {
        Self::start_with(Ipv4Addr::LOCALHOST.into(), &["--save", "", "--appendonly", "no"]).await
    }

    /// Starts one that has everything on disk that it has answered for.
    pub(super) async fn start_durable() -> Self {
        Self::start_with(Ipv4Addr::LOCALHOST.into(), &["--save", "", "--appendonly", "yes", "--appendfsync", "always"])
            .await
    }

    /// Starts one on an address of this namespace.
    pub(super) async fn start_with(ip: IpAddr, options: &[&str]) -> Self {
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        for _ in 0..10 {
            let folder = TempDir::new().unwrap();
            let addr = TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap();
            let child = spawn(addr, &folder, &options);
            let mut engine = Self { child, addr, folder, options: options.clone() };
            if engine.is_ready().await {
                return engine;
            }
            // Somebody else took the port meanwhile.
        }
        panic!("the engine does not start");
    }

    /// The URL of a resolver's configuration.
    pub(super) fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }

    /// Ends it at once, as a crash does.
    pub(super) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again at the same place, with what its folder holds.
    pub(super) async fn begin_again(&mut self) {
        for _ in 0..PATIENCE.as_millis() / 100 {
            self.child = spawn(self.addr, &self.folder, &self.options);
            if self.is_ready().await {
                return;
            }
            // Its port may not be free yet.
            sleep(Duration::from_millis(100)).await;
        }
        panic!("the engine does not come back at {}", self.addr);
    }

    /// Removes what its folder holds.
    pub(super) fn empty(&self) {
        for entry in std::fs::read_dir(self.folder.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { std::fs::remove_dir_all(path).unwrap() } else { std::fs::remove_file(path).unwrap() }
        }
    }

    /// Waits until it answers; false if it has ended.
    async fn is_ready(&mut self) -> bool {
        for _ in 0..PATIENCE.as_millis() / 20 {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            // Anything is an answer, even one that asks for a password.
            if std::net::TcpStream::connect_timeout(&self.addr, Duration::from_secs(1)).is_ok() {
                return true;
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("the engine does not answer at {}", self.addr);
    }

    /// A connection of the test's own.
    pub(super) async fn connect(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.url()).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    }

    /// Runs one command, given in words.
    pub(super) async fn run<T: redis::FromRedisValue>(&self, words: &[&[u8]]) -> T {
        let mut command = Cmd::new();
        words.iter().for_each(|word| {
            command.arg(word);
        });
        command.query_async(&mut self.connect().await).await.unwrap()
    }
}

fn spawn(addr: SocketAddr, folder: &TempDir, options: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    command.args(["--bind", &addr.ip().to_string(), "--dir"]).arg(folder.path());
    if !options.iter().any(|option| option == "--port") {
        command.args(["--port", &addr.port().to_string()]);
    }
    command.args(["--protected-mode", "no", "--daemonize", "no"]);
    command.args(options.iter().map(|option| option.replace("{port}", &addr.port().to_string())));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.kill();
    }
}
