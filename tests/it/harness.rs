//! A real greenlane on free ports of loopback, and clients for it.
//!
//! [`Setup`] writes a configuration and lists into a folder of its own and starts the built binary there; the ports
//! are read from the line that it greets with. Dropping a [`Greenlane`] ends that process and no other.

#![allow(unreachable_pub, reason = "the modules beside it use it; a test binary has nothing to reach it from")]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{sleep, timeout};

use crate::manager::Manager;
use crate::netns::Place;

/// How long a test waits for what must come; generous, since the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// A greenlane to be started.
pub struct Setup {
    lists: Vec<(String, String)>,
    files: Vec<(String, String)>,
    sections: HashMap<String, String>,
    environment: Vec<(String, String)>,
    place: Option<Place>,
    manager: Option<Manager>,
}

impl Setup {
    /// One list, `demo`, with the names below `listed.example`; everything is asked of `upstream`; documentation and
    /// benchmarking addresses may be learned.
    pub fn new(upstream: SocketAddr) -> Self {
        let (lists, files, sections, environment) = (Vec::new(), Vec::new(), HashMap::new(), Vec::new());
        Self { lists, files, sections, environment, place: None, manager: None }
            .list("demo.list", "# Demo\nlisted.example\n")
            .with("listen", "dns = [\"127.0.0.1:0\"]\nweb = \"127.0.0.1:0\"")
            .with("forward", &format!("upstreams = [\"udp://{upstream}\"]"))
            .with("catalogue", "path = \"zones\"")
            .with(
                "learn",
                "treat-as-public = [\"192.0.2.0/24\", \"198.51.100.0/24\", \"203.0.113.0/24\", \"198.18.0.0/15\", \
                 \"2001:db8::/32\"]",
            )
    }

    /// Adds a file to the zones folder, in the place of one of that name.
    pub fn list(mut self, file: &str, text: &str) -> Self {
        self.lists.retain(|(name, _)| name != file);
        self.lists.push((file.to_owned(), text.to_owned()));
        self
    }

    /// Adds a file beside the configuration.
    pub fn file(mut self, file: &str, text: &str) -> Self {
        self.files.push((file.to_owned(), text.to_owned()));
        self
    }

    /// Adds lines to a section of the configuration.
    pub fn with(mut self, section: &str, lines: &str) -> Self {
        let text = self.sections.entry(section.to_owned()).or_default();
        text.push_str(lines);
        text.push('\n');
        self
    }

    /// Replaces a section of the configuration.
    pub fn only(mut self, section: &str, lines: &str) -> Self {
        self.sections.insert(section.to_owned(), format!("{lines}\n"));
        self
    }

    /// Sets an environment variable; an empty value removes it.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs it in another network namespace than that of the test.
    pub fn inside(mut self, place: &Place) -> Self {
        self.place = Some(place.clone());
        self
    }

    /// Has a service manager start it.
    pub fn kept_by(mut self, manager: &Manager) -> Self {
        self.manager = Some(manager.clone());
        self
    }

    /// Writes the folder without starting anything.
    pub fn write(&self) -> TempDir {
        let folder = TempDir::new().unwrap();
        fs::create_dir(folder.path().join("zones")).unwrap();
        for (file, text) in &self.lists {
            fs::write(folder.path().join("zones").join(file), text).unwrap();
        }
        for (file, text) in &self.files {
            fs::write(folder.path().join(file), text).unwrap();
        }
        fs::write(folder.path().join("config.toml"), self.config()).unwrap();
        folder
    }

    /// The configuration's text; sections whose name starts with `[` are arrays of tables.
    pub fn config(&self) -> String {
        let mut names: Vec<&String> = self.sections.keys().collect();
        names.sort();
        names.iter().map(|name| format!("[{name}]\n{}", self.sections[*name])).collect()
    }

    /// Starts it and waits for its greeting.
    pub async fn start(self) -> Greenlane {
        let folder = self.write();
        let (child, log) = spawn(&folder, &self.environment, self.place.as_ref(), self.manager.as_ref());
        let none = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let client = Client { dns: none, web: none };
        let Self { environment, place, manager, .. } = self;
        let mut started = Greenlane { child, client, folder, log, environment, place, manager };
        started.read_ports().await;
        started
    }
}

/// Starts the binary on the configuration in a folder; what it writes to standard error is gathered.
fn spawn(
    folder: &TempDir,
    environment: &[(String, String)],
    place: Option<&Place>,
    manager: Option<&Manager>,
) -> (Child, Arc<Mutex<String>>) {
    let mut command = manager.map_or_else(greenlane, Manager::command);
    command.arg("serve").arg("-c").arg(folder.path().join("config.toml"));
    for (name, value) in environment {
        match value.as_str() {
            "" => command.env_remove(name),
            value => command.env(name, value),
        };
    }
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = match place {
        Some(place) => place.enter(|| command.spawn()),
        None => command.spawn(),
    }
    .unwrap();
    let log = Arc::new(Mutex::new(String::new()));
    let stderr = child.stderr.take().unwrap();
    let lines = Arc::clone(&log);
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let mut log = lines.lock().unwrap();
            log.push_str(&line);
            log.push('\n');
        }
    });
    (child, log)
}

/// The variable that lets it ask ahead or not.
pub const WARM: &str = "GREENLANE__LEARN__WARM";

/// The built binary, without any of the environment that it reads; it asks nothing ahead, so that tests can count what
/// upstreams are asked.
pub fn greenlane() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_greenlane"));
    command.env_remove("RUST_LOG").env(WARM, "false");
    command
}

/// A running greenlane.
pub struct Greenlane {
    child: Child,
    client: Client,
    folder: TempDir,
    log: Arc<Mutex<String>>,
    environment: Vec<(String, String)>,
    place: Option<Place>,
    manager: Option<Manager>,
}

/// Somebody who asks a greenlane, whoever started it.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    /// Where it answers DNS.
    pub dns: SocketAddr,
    /// Where it serves the set.
    pub web: SocketAddr,
}

impl Deref for Greenlane {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Greenlane {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Greenlane {
    async fn read_ports(&mut self) {
        let started = self
            .until(|this| {
                if let Ok(Some(status)) = this.child.try_wait() {
                    panic!("greenlane ended with {status}:\n{}", this.log());
                }
                let log = this.log();
                let line = log.lines().find(|line| line.contains(": DNS on "))?;
                let between = |from: &str, to: &str| {
                    let rest = &line[line.find(from)? + from.len()..];
                    rest.split(to).next().map(str::to_owned)
                };
                let dns = between("DNS on ", " (")?.split(", ").next()?.parse().ok()?;
                let web = between("http://", "/").and_then(|text| text.parse().ok());
                Some((dns, web))
            })
            .await;
        self.client.dns = started.0;
        self.client.web = started.1.unwrap_or(self.client.web);
    }

    /// What it wrote to standard error so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its files are.
    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// Sends a signal by name, such as `HUP`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status().unwrap();
        assert!(status.success());
    }

    /// Ends it with a signal, such as `KILL` or `TERM`, and starts it again in the same folder.
    pub async fn restart(&mut self, signal: &str) {
        self.signal(signal);
        self.ended().await;
        self.begin_again().await;
    }

    /// Starts it again in the same folder after it has ended.
    pub async fn begin_again(&mut self) {
        self.spawn_again();
        self.read_ports().await;
    }

    /// The same without waiting for it: where it listens is not known.
    pub fn spawn_again(&mut self) {
        let Self { folder, environment, place, manager, .. } = self;
        (self.child, self.log) = spawn(folder, environment, place.as_ref(), manager.as_ref());
    }

    /// Waits for it to end by itself and returns its exit code.
    pub async fn ended(&mut self) -> Option<i32> {
        self.until(|this| this.child.try_wait().unwrap()).await.code()
    }

    /// Looks until `look` gives something.
    pub async fn until<T>(&mut self, mut look: impl FnMut(&mut Self) -> Option<T>) -> T {
        for _ in 0..PATIENCE.as_millis() / 20 {
            if let Some(found) = look(self) {
                return found;
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("waited in vain; the log says:\n{}", self.log());
    }
}

impl Client {
    /// Asks over UDP with EDNS.
    pub async fn ask(&self, name: &str, rtype: RecordType) -> Message {
        let reply = self.udp(&question(name, rtype).to_vec().unwrap()).await.expect("an answer");
        Message::from_vec(&reply).unwrap()
    }

    /// Sends octets over UDP; `None` if nothing comes back within a second and a half more than the longest time-out
    /// that a test configures.
    pub async fn udp(&self, octets: &[u8]) -> Option<Vec<u8>> {
        self.udp_within(octets, PATIENCE).await
    }

    /// Sends octets over UDP and waits that long.
    pub async fn udp_within(&self, octets: &[u8], patience: Duration) -> Option<Vec<u8>> {
        let from = if self.dns.ip().is_loopback() { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
        let socket = UdpSocket::bind((from, 0)).await.unwrap();
        socket.connect(self.dns).await.unwrap();
        socket.send(octets).await.unwrap();
        let mut reply = vec![0; 65_535];
        let len = timeout(patience, socket.recv(&mut reply)).await.ok()?.ok()?;
        reply.truncate(len);
        Some(reply)
    }

    /// Asks over TCP with EDNS.
    pub async fn ask_tcp(&self, name: &str, rtype: RecordType) -> Message {
        let mut stream = TcpStream::connect(self.dns).await.unwrap();
        send_frame(&mut stream, &question(name, rtype).to_vec().unwrap()).await;
        Message::from_vec(&read_frame(&mut stream).await.unwrap()).unwrap()
    }

    /// Gets a page.
    pub async fn get(&self, path: &str) -> Page {
        self.request("GET", path, &[]).await
    }

    /// Gets a page that is there.
    pub async fn text(&self, path: &str) -> String {
        let page = self.get(path).await;
        assert_eq!(page.status, 200, "{path}: {}", page.body);
        page.body
    }

    /// Gets JSON.
    pub async fn json(&self, path: &str) -> serde_json::Value {
        serde_json::from_str(&self.text(path).await).unwrap()
    }

    /// Sends a request with more headers.
    pub async fn request(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Page {
        let mut stream = TcpStream::connect(self.web).await.unwrap();
        let mut request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            request.push_str(&format!("Host: {}\r\n", self.web));
        }
        headers.iter().for_each(|(name, value)| request.push_str(&format!("{name}: {value}\r\n")));
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut octets = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut octets)).await.unwrap().unwrap();
        Page::read(&octets)
    }

    /// The prefixes of `/prefixes.txt`, with a query such as `?family=4`.
    pub async fn prefixes(&self, query: &str) -> Vec<String> {
        self.text(&format!("/prefixes.txt{query}")).await.lines().map(str::to_owned).collect()
    }

    /// The value of a metric line such as `greenlane_set_serial` or `x_total{result="hit"}`; 0 if it is not there.
    pub async fn metric(&self, line: &str) -> f64 {
        let text = self.text("/metrics").await;
        let found = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' ')?.parse().ok());
        found.unwrap_or(0.0)
    }

    /// Waits until a metric line has a value that `is_it` takes.
    pub async fn until_metric(&self, line: &str, is_it: impl Fn(f64) -> bool) {
        let mut value = f64::NAN;
        for _ in 0..PATIENCE.as_millis() / 20 {
            value = self.metric(line).await;
            if is_it(value) {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("waited in vain: {line} is {value}");
    }
}

/// A page that came back.
#[derive(Debug)]
pub struct Page {
    pub status: u16,
    headers: Vec<(String, String)>,
    /// The body as it came, and as text.
    pub octets: Vec<u8>,
    pub body: String,
}

impl Page {
    fn read(octets: &[u8]) -> Self {
        let end = octets.windows(4).position(|four| four == b"\r\n\r\n").expect("a whole head");
        let head = String::from_utf8(octets[..end].to_vec()).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: Vec<(String, String)> = lines
            .map(|line| {
                let (name, value) = line.split_once(':').unwrap();
                (name.to_ascii_lowercase(), value.trim().to_owned())
            })
            .collect();
        let is_chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
        let rest = &octets[end + 4..];
        let body = if is_chunked { unchunked(rest) } else { rest.to_vec() };
        Self { status, headers, body: String::from_utf8_lossy(&body).into_owned(), octets: body }
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let len = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        if len == 0 {
            break;
        }
        body.extend_from_slice(&rest[end + 2..end + 2 + len]);
        rest = &rest[end + 2 + len + 2..];
    }
    body
}

/// A question as a stub asks it: RD, EDNS with 1232 octets.
pub fn question(name: &str, rtype: RecordType) -> Message {
    let mut message = question_without_edns(name, rtype);
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.edns = Some(edns);
    message
}

/// The same as an old stub asks it.
pub fn question_without_edns(name: &str, rtype: RecordType) -> Message {
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, rtype));
    message
}

/// The addresses in the answer section, sorted.
pub fn addresses(message: &Message) -> Vec<String> {
    let mut found: Vec<String> = message
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(a) => Some(a.0.to_string()),
            RData::AAAA(aaaa) => Some(aaaa.0.to_string()),
            _ => None,
        })
        .collect();
    found.sort();
    found
}

/// The text of an EDNS option.
pub fn option(message: &Message, code: u16) -> Option<String> {
    use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
    match message.edns.as_ref()?.option(EdnsCode::from(code))? {
        EdnsOption::Unknown(_, value) => Some(String::from_utf8_lossy(value).into_owned()),
        other => Some(format!("{other:?}")),
    }
}

/// The tag's text.
pub fn tag(message: &Message) -> Option<String> {
    option(message, 65_313)
}

pub async fn send_frame(stream: &mut TcpStream, octets: &[u8]) {
    let mut frame = (octets.len() as u16).to_be_bytes().to_vec();
    frame.extend_from_slice(octets);
    stream.write_all(&frame).await.unwrap();
}

/// Reads one frame; `None` if the connection ended or nothing came.
pub async fn read_frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let read = async {
        let mut octets = vec![0; usize::from(stream.read_u16().await.ok()?)];
        stream.read_exact(&mut octets).await.ok()?;
        Some(octets)
    };
    timeout(PATIENCE, read).await.ok()?
}
