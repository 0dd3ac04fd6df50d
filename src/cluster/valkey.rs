//! The engine as it is: Valkey or Redis, over TCP or TLS.
//!
//! ```text
//!   greenlane:{ID}:sightings   sorted set   member → end            ZADD GT, ZSCAN, ZREMRANGEBYSCORE
//!   greenlane:{ID}:gone        sorted set   member → end            the same
//!   greenlane:{ID}:changes     stream       m = message             XADD MAXLEN ~, XREAD BLOCK, XREVRANGE
//!   greenlane:{ID}:nodes       hash         resolver → heartbeat    HSET, HGETALL, HLEN, HDEL
//!   greenlane:{ID}:mark        string       set once                SET NX GET, GET
//! ```
//! One connection is for commands, one waits for news. The braces keep all keys in one slot. A reply is bounded in octets
//! by the connection itself, so that nothing that an engine sends can fill the memory.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, ErrorKind, Pipeline, RedisError, Value};

use super::connect::{Allowance, Connector};
use super::engine::{Commit, Engine, EngineError, Link, News, Page, Pulse, STREAM_LEN, Table};
use crate::clock::Timestamp;

/// How long a command may take.
const REPLY_PATIENCE: Duration = Duration::from_secs(5);

/// How long the engine waits for news before it says that there is none.
const NEWS_PATIENCE: Duration = Duration::from_secs(2);

/// The most octets of one reply.
const REPLY_OCTETS_MAX: u64 = 64 << 20;

/// About how many members come in one part of a table.
const PAGE_LEN: usize = 1000;

/// More resolvers than this are not read.
const NODES_LEN_MAX: i64 = 4096;

/// An engine reached over the network.
#[derive(Debug)]
pub(super) struct Valkey {
    connector: Connector,
    keys: Keys,
}

#[derive(Clone, Debug)]
struct Keys {
    sightings: String,
    gone: String,
    changes: String,
    nodes: String,
    mark: String,
}

impl Keys {
    fn new(id: &str) -> Self {
        let key = |what: &str| format!("greenlane:{{{id}}}:{what}");
        Self {
            sightings: key("sightings"),
            gone: key("gone"),
            changes: key("changes"),
            nodes: key("nodes"),
            mark: key("mark"),
        }
    }

    fn of(&self, table: Table) -> &str {
        match table {
            Table::Held => &self.sightings,
            Table::Gone => &self.gone,
        }
    }
}

impl Valkey {
    /// Describes an engine, and the cluster of that id in it.
    pub(super) fn new(connector: Connector, id: &str) -> Self {
        Self { connector, keys: Keys::new(id) }
    }
}

impl Engine for Valkey {
    type Link = ValkeyLink;

    async fn connect(&self) -> Result<ValkeyLink, EngineError> {
        let (commands, for_commands) = self.connector.connect(REPLY_PATIENCE).await?;
        let (news, for_news) = self.connector.connect(NEWS_PATIENCE + REPLY_PATIENCE).await?;
        Ok(ValkeyLink {
            commands: Side { connection: commands, allowance: for_commands },
            news: Side { connection: news, allowance: for_news },
            keys: self.keys.clone(),
        })
    }
}

/// Two open connections.
#[derive(Debug)]
pub(super) struct ValkeyLink {
    commands: Side,
    news: Side,
    keys: Keys,
}

#[derive(Debug)]
struct Side {
    connection: MultiplexedConnection,
    allowance: Allowance,
}

impl Side {
    async fn ask(&self, command: &Cmd) -> Result<Value, EngineError> {
        self.allowance.reset(REPLY_OCTETS_MAX);
        let value = command.query_async(&mut self.connection.clone()).await.map_err(in_words)?;
        Ok(value)
    }

    async fn ask_all(&self, commands: &Pipeline) -> Result<Vec<Value>, EngineError> {
        self.allowance.reset(REPLY_OCTETS_MAX);
        let value = commands.query_async(&mut self.connection.clone()).await.map_err(in_words)?;
        Ok(value)
    }
}

fn in_words(error: RedisError) -> EngineError {
    if error.is_timeout() {
        return EngineError::Silent(REPLY_PATIENCE.as_secs());
    }
    match error.kind() {
        ErrorKind::Parse => EngineError::Foreign("what came is not the protocol of Valkey and Redis"),
        _ => EngineError::Engine(error),
    }
}

impl Link for ValkeyLink {
    async fn mark(&self, mark: &str) -> Result<Vec<u8>, EngineError> {
        let mut both = redis::pipe();
        both.cmd("SET").arg(&self.keys.mark).arg(mark).arg("NX").cmd("GET").arg(&self.keys.mark);
        let [_, held] = exactly(self.commands.ask_all(&both).await?)?;
        octets(held).filter(|held| held.len() <= 64).ok_or(EngineError::Foreign("the mark is not ours"))
    }

    async fn tail(&self) -> Result<String, EngineError> {
        let last = redis::cmd("XREVRANGE").arg(&self.keys.changes).arg("+").arg("-").arg("COUNT").arg(1).to_owned();
        let entries = array(self.commands.ask(&last).await?)?;
        let Some(entry) = entries.into_iter().next() else { return Ok("0-0".to_owned()) };
        entry_id(array(entry)?.into_iter().next())
    }

    async fn page(&self, table: Table, at: u64) -> Result<Page, EngineError> {
        let scan = redis::cmd("ZSCAN").arg(self.keys.of(table)).arg(at).arg("COUNT").arg(PAGE_LEN).to_owned();
        let [next, entries] = exactly(array(self.commands.ask(&scan).await?)?)?;
        let next = number(&next).ok_or(EngineError::Foreign("a table goes on nowhere"))?;
        let mut page = Page { next, entries: Vec::new() };
        let mut entries = array(entries)?.into_iter();
        while let (Some(member), Some(score)) = (entries.next(), entries.next()) {
            let Some(member) = octets(member) else { continue };
            page.entries.push((member, score_of(&score).unwrap_or(f64::NAN)));
        }
        Ok(page)
    }

    async fn commit(&self, commit: &Commit) -> Result<(), EngineError> {
        let mut all = redis::pipe();
        all.atomic();
        for (key, entries) in [(&self.keys.sightings, &commit.held), (&self.keys.gone, &commit.gone)] {
            if !entries.is_empty() {
                let add = all.cmd("ZADD").arg(key).arg("GT");
                for (member, end) in entries {
                    add.arg(*end).arg(&**member);
                }
                add.ignore();
            }
        }
        for message in &commit.messages {
            let add = all.cmd("XADD").arg(&self.keys.changes).arg("MAXLEN").arg("~").arg(STREAM_LEN);
            add.arg("*").arg("m").arg(message.as_slice()).ignore();
        }
        self.commands.ask_all(&all).await.map(drop)
    }

    async fn news(&self, cursor: &str) -> Result<News, EngineError> {
        let read = redis::cmd("XREAD")
            .arg("COUNT")
            .arg(STREAM_LEN)
            .arg("BLOCK")
            .arg(u64::try_from(NEWS_PATIENCE.as_millis()).unwrap_or(u64::MAX))
            .arg("STREAMS")
            .arg(&self.keys.changes)
            .arg(cursor)
            .to_owned();
        let mut news = News { cursor: cursor.to_owned(), ..News::default() };
        let streams = match self.news.ask(&read).await? {
            Value::Nil => return Ok(news),
            streams => array(streams)?,
        };
        let Some(stream) = streams.into_iter().next() else { return Ok(news) };
        let [_, entries] = exactly(array(stream)?)?;
        let entries = array(entries)?;
        // The stream is never trimmed below `STREAM_LEN`: who reads fewer has missed none.
        news.has_gap = entries.len() >= STREAM_LEN;
        for entry in entries {
            let [id, fields] = exactly(array(entry)?)?;
            news.cursor = entry_id(Some(id))?;
            let value = array(fields).ok().and_then(|fields| fields.into_iter().nth(1)).and_then(octets);
            // An entry without octets is no message of ours, and is counted as such.
            news.messages.push(value.unwrap_or_default());
        }
        Ok(news)
    }

    async fn beat(&self, node: &str, text: &str) -> Result<Pulse, EngineError> {
        let mut all = redis::pipe();
        all.cmd("HSET").arg(&self.keys.nodes).arg(node).arg(text);
        all.cmd("HLEN").arg(&self.keys.nodes).cmd("GET").arg(&self.keys.mark).cmd("TIME");
        let [_, len, mark, time] = exactly(self.commands.ask_all(&all).await?)?;
        let [secs, micros] = exactly(array(time)?)?;
        let (secs, micros) = (number(&secs).unwrap_or(0), number(&micros).unwrap_or(0));
        let time = Timestamp::from_millis(secs.saturating_mul(1000).saturating_add(micros / 1000));
        let mut pulse = Pulse { mark: octets(mark), time, nodes: Vec::new() };
        if !matches!(len, Value::Int(1..=NODES_LEN_MAX)) {
            return Err(EngineError::Foreign("more resolvers than there can be have left their names"));
        }
        let all = redis::cmd("HGETALL").arg(&self.keys.nodes).to_owned();
        let mut fields = array(self.commands.ask(&all).await?)?.into_iter();
        let mut stale = redis::cmd("HDEL");
        stale.arg(&self.keys.nodes);
        let mut stale_len = 0;
        while let (Some(node), Some(said)) = (fields.next().and_then(octets), fields.next().and_then(octets)) {
            if super::node::is_forgotten(&said, time) {
                stale.arg(node);
                stale_len += 1;
            } else {
                pulse.nodes.push(said);
            }
        }
        if stale_len > 0 {
            self.commands.ask(&stale).await?;
        }
        Ok(pulse)
    }

    async fn purge(&self, end: u64) -> Result<(), EngineError> {
        let mut all = redis::pipe();
        for table in Table::ALL {
            all.cmd("ZREMRANGEBYSCORE").arg(self.keys.of(table)).arg("-inf").arg(end);
        }
        self.commands.ask_all(&all).await.map(drop)
    }
}

/// Takes the elements of an array; a map's keys and values in turn.
fn array(value: Value) -> Result<Vec<Value>, EngineError> {
    match value {
        Value::Array(values) | Value::Set(values) => Ok(values),
        Value::Map(pairs) => Ok(pairs.into_iter().flat_map(|(key, value)| [key, value]).collect()),
        Value::Nil => Ok(Vec::new()),
        Value::ServerError(error) => Err(EngineError::Engine(error.into())),
        _ => Err(EngineError::Foreign("a reply is not of the form that its command has")),
    }
}

fn exactly<const N: usize>(values: Vec<Value>) -> Result<[Value; N], EngineError> {
    let mut values = values;
    if let Some(at) = values.iter().position(|value| matches!(value, Value::ServerError(_)))
        && let Value::ServerError(error) = values.swap_remove(at)
    {
        return Err(EngineError::Engine(error.into()));
    }
    <[Value; N]>::try_from(values).map_err(|_| EngineError::Foreign("a reply is not of the form that its command has"))
}

fn octets(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(octets) => Some(octets),
        Value::SimpleString(text) => Some(text.into_bytes()),
        _ => None,
    }
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(octets) => std::str::from_utf8(octets).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        value => text(value)?.parse().ok(),
    }
}

fn score_of(value: &Value) -> Option<f64> {
    match value {
        Value::Double(score) => Some(*score),
        value => text(value)?.parse().ok(),
    }
}

/// Takes the id of a stream's entry.
fn entry_id(value: Option<Value>) -> Result<String, EngineError> {
    let id = value
        .as_ref()
        .and_then(text)
        .filter(|id| id.len() <= 41 && id.bytes().all(|b| b == b'-' || b.is_ascii_digit()));
    id.map(str::to_owned).ok_or(EngineError::Foreign("an entry of the stream has no id"))
}
