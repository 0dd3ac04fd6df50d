//! Replay scripts: what is asked, what is answered, how time passes, what the set is then.
//!
//! `tests/scenarios/` holds one story a file, played on a clock that nothing but the script moves. A line is a step;
//! `#` begins a comment. Spans are `500ms`, `30s`, `1m30s`; RDATA and prefixes are separated by commas.
//!
//! ```text
//! learn KEY VALUE                 a key of [learn]; in force from the start, or from the next `reload`
//! list APP LINE, LINE             the app's list; without lines there is none; in force likewise
//! reload                          puts changed lists and options in force
//! upstream NAME TYPE RDATA ttl N  what the upstream says from now on; `none` instead of RDATA and TTL takes it back
//! upstream NAME gone ttl N        NXDOMAIN from now on, with this TTL; 0: without an SOA
//! upstream silent | fails RCODE [EDE] | back
//!                                 what it does instead of answering, until it is back
//! cache KEY VALUE                 `serve-stale` or `prefetch`; in force from the start, or from the next `reload`
//! ask NAME TYPE [do] [from ADDR]  a client asks, with EDNS
//! begin NAME TYPE [do] [from ADDR]
//!                                 likewise, but the next `expect` waits for the answer
//! waiting                         there is none yet
//! asked NAME N                    how many questions for the name the upstream gets in all, before long
//! counted METRIC N                likewise what a line of the metrics says
//! settle NAME TYPE                somebody asks until the answer is not a stale one
//! expect ADDRS [ttl N] [tag APPS] [from cache|from upstream] [ede N] [rcode N]
//!                                 what it got: these addresses and hints or `nothing`, all with this TTL; no tag
//!                                 unless the apps are named, the first one first, joined by `+`; no extended error
//!                                 but the tag's, and NOERROR, unless they are named
//! pass SPAN                       time passes
//! set PREFIXES                    the exported set, exactly; or `empty`
//! end ADDR in SPAN                when the address will leave if nothing happens
//! serial same | serial +N         the serial since the last such line or the start
//! refused REASON N                how many addresses were refused so far for this reason
//! evicted N                       how many left early so far to make room
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use greenlane::cache::Ahead;
use greenlane::learn;
use hickory_proto::op::Message;
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::rdata::svcb::SvcParamValue;
use hickory_proto::rr::{RData, RecordType};

use crate::harness::{PATIENCE, question, tag};
use crate::stage::{Stage, Trouble, options};
use crate::upstream::{A, AAAA, CNAME, HTTPS, wire_name};

/// One test a file, named like it.
macro_rules! scenarios {
    ($($name:ident)*) => {
        $(#[tokio::test]
        async fn $name() {
            play(stringify!($name)).await;
        })*

        const PLAYED: &[&str] = &[$(stringify!($name)),*];
    };
}

scenarios! {
    cname_chain
    constant_address_with_a_short_ttl
    exceptions_and_several_apps
    expiry
    flood_at_the_cap
    hit_near_the_end_of_its_ttl
    https_hints
    new_addresses_of_one_client
    options_reloaded
    prefetch
    prefetch_in_vain
    prefetch_when_silent
    prefetch_without_demand
    prefetch_without_room
    reload_adds_a_trigger
    reload_removes_a_trigger
    rotation
    shorter_ttl_later
    stale_after_a_reload
    stale_and_dnssec
    stale_followed_target
    stale_limit
    stale_negative
    stale_on_failure
    stale_task
    stale_when_silent
    stale_without_room
    static_prefixes_and_hosts
    target_cached_before
    target_following
    target_until_its_record_ends
    two_names_at_one_address
    victims_at_the_cap
    victims_told_again
    whole_answer_or_none
}

#[test]
fn every_scenario_is_played() {
    let mut names: Vec<String> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "txt"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().replace('-', "_"))
        .collect();
    names.sort();
    assert_eq!(names, PLAYED);
}

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios")
}

async fn play(name: &str) {
    let file = format!("{}.txt", name.replace('_', "-"));
    let text = fs::read_to_string(folder().join(&file)).unwrap();
    let mut play = Play::default();
    for (at, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        if let Err(what) = play.step(line).await {
            panic!("tests/scenarios/{file}:{}: `{line}`: {what}", at + 1);
        }
    }
}

/// A scenario being played. A step that fails says what was found.
#[derive(Default)]
struct Play {
    lists: BTreeMap<String, String>,
    learn: Vec<(String, String)>,
    ahead: Ahead,
    /// Made at the first step that needs it.
    stage: Option<Stage>,
    answer: Option<Answer>,
    serial: u64,
}

/// What a client got.
struct Answer {
    message: Message,
    is_from_cache: bool,
}

type Step<T = ()> = Result<T, String>;

impl Play {
    async fn step(&mut self, line: &str) -> Step {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let words: Vec<&str> = rest.split_whitespace().collect();
        match (verb, &*words) {
            ("learn", [key, value]) => self.learn.push(((*key).to_owned(), (*value).to_owned())),
            ("list", [app, lines @ ..]) => self.list(app, &lines.join(" ")),
            ("reload", []) => self.reload().await?,
            ("cache", ["serve-stale", value]) => self.ahead.serve_stale = read_span(value)?,
            ("cache", ["prefetch", value]) => self.ahead.prefetch = value.parse().map_err(|_| "no flag")?,
            ("upstream", ["silent"]) => self.trouble(Some(Trouble::Silent)).await?,
            ("upstream", ["fails", rcode]) => self.trouble(Some(Trouble::Fails(read_number(rcode)?, None))).await?,
            ("upstream", ["fails", rcode, ede]) => {
                let (rcode, ede) = (read_number(rcode)?, read_number(ede)?);
                self.trouble(Some(Trouble::Fails(rcode, Some(ede)))).await?;
            }
            ("upstream", ["back"]) => self.trouble(None).await?,
            ("upstream", [name, "gone", "ttl", ttl]) => {
                let ttl = read_number(ttl)?;
                self.stage().await?.zone.lock().unwrap().remove(name, ttl.into());
            }
            ("begin", [name, rtype, rest @ ..]) => self.begin(name, rtype, rest).await?,
            ("waiting", []) => check("whether it waits", self.stage().await?.is_waiting(), true)?,
            ("asked", [name, count]) => {
                let (stage, count) = (self.stage().await?, usize::from(read_number(count)?));
                before_long(|| stage.asked_for(name) == count).await;
                check("questions", stage.asked_for(name), count)?;
            }
            ("counted", [line, count]) => {
                let (stage, count) = (self.stage().await?, u64::from(read_number(count)?));
                before_long(|| stage.metric(line) == count).await;
                check("count", stage.metric(line), count)?;
            }
            ("settle", [name, rtype]) => self.settle(name, rtype).await?,
            ("upstream", [name, rtype, rest @ ..]) => self.upstream(name, rtype, rest).await?,
            ("ask", [name, rtype, rest @ ..]) => self.ask(name, rtype, rest).await?,
            ("expect", rest) => self.expect(rest).await?,
            ("pass", [span]) => {
                let span = read_span(span)?;
                self.stage().await?.pass(span).await;
            }
            ("set", rest) => self.set(&rest.join(" ")).await?,
            ("end", [addr, "in", span]) => self.end(addr, read_span(span)?).await?,
            ("serial", [change]) => self.serial(change).await?,
            ("refused", [reason, count]) => {
                let line = format!("greenlane_learn_refused_total{{reason=\"{reason}\"}}");
                self.metric(&line, count).await?;
            }
            ("evicted", [count]) => self.metric("greenlane_learn_evicted_total", count).await?,
            _ => return Err("no such step".into()),
        }
        Ok(())
    }

    async fn stage(&mut self) -> Step<&mut Stage> {
        if self.stage.is_none() {
            let started = Stage::start(&self.lists, self.options()?, self.ahead)
                .await
                .map_err(|problems| problems.to_string())?;
            self.stage = Some(started);
        }
        self.stage.as_mut().ok_or_else(|| "no stage".into())
    }

    fn options(&self) -> Step<learn::Options> {
        let mut options = options();
        for (key, value) in &self.learn {
            let number = || value.parse().map_err(|_| format!("`{value}` is no number"));
            match &**key {
                "min-hold" => options.min_hold = read_span(value)?,
                "grace" => options.grace = read_span(value)?,
                "never" => options.never = vec![value.parse().map_err(|error| format!("{error}"))?],
                "max-total" => options.max_total = number()?,
                "max-per-name" => options.max_per_name = number()?,
                "max-per-trigger" => options.max_per_trigger = number()?,
                "new-per-client-per-minute" => {
                    options.new_per_client_per_minute = number()?.try_into().map_err(|_| "too large")?;
                }
                _ => return Err(format!("no key `{key}`")),
            }
        }
        Ok(options)
    }

    fn list(&mut self, app: &str, lines: &str) {
        match lines {
            "" => self.lists.remove(app),
            _ => self.lists.insert(app.to_owned(), lines.replace(", ", "\n")),
        };
    }

    async fn reload(&mut self) -> Step {
        let (lists, options, ahead) = (self.lists.clone(), self.options()?, self.ahead);
        self.stage().await?.reload(&lists, options, ahead).await.map_err(|problems| problems.to_string())
    }

    async fn upstream(&mut self, name: &str, rtype: &str, rest: &[&str]) -> Step {
        let number = read_type(rtype)?;
        let (rdata, ttl) = match rest {
            ["none"] => (Vec::new(), 0),
            [rdata @ .., "ttl", ttl] => {
                let each = rdata.join(" ");
                let each = each.split(", ").map(|text| read_rdata(number, text)).collect::<Step<_>>()?;
                (each, ttl.parse().map_err(|_| "no TTL")?)
            }
            _ => return Err("RDATA and TTL are missing".into()),
        };
        self.stage().await?.zone.lock().unwrap().set(name, number, rdata, ttl);
        Ok(())
    }

    async fn trouble(&mut self, trouble: Option<Trouble>) -> Step {
        self.stage().await?.zone.lock().unwrap().trouble = trouble;
        Ok(())
    }

    async fn begin(&mut self, name: &str, rtype: &str, rest: &[&str]) -> Step {
        let (query, client) = read_query(name, rtype, rest)?;
        self.stage().await?.begin(&query, client).await;
        Ok(())
    }

    async fn settle(&mut self, name: &str, rtype: &str) -> Step {
        let (query, client) = read_query(name, rtype, &[])?;
        let stage = self.stage().await?;
        for _ in 0..PATIENCE.as_millis() / 20 {
            if edes(&stage.ask(&query, client).await).is_empty() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err("it stays stale".into())
    }

    async fn ask(&mut self, name: &str, rtype: &str, rest: &[&str]) -> Step {
        let (query, client) = read_query(name, rtype, rest)?;
        let stage = self.stage().await?;
        let before = stage.upstream_count();
        let message = stage.ask(&query, client).await;
        self.answer = Some(Answer { message, is_from_cache: stage.upstream_count() == before });
        Ok(())
    }

    async fn expect(&mut self, words: &[&str]) -> Step {
        if let Some(message) = self.stage().await?.begun().await {
            self.answer = Some(Answer { message, is_from_cache: false });
        }
        let answer = self.answer.as_ref().ok_or("nobody asked")?;
        let is_key = |word: &&&str| matches!(**word, "ttl" | "tag" | "from" | "ede" | "rcode");
        let (addresses, mut rest) = words.split_at(words.iter().take_while(|word| !is_key(word)).count());
        let told = told(&answer.message);
        let mut found: Vec<String> = told.iter().map(|(addr, _)| addr.to_string()).collect();
        found.sort();
        let mut expected = read_list(&addresses.join(" "), "nothing");
        expected.sort();
        check("addresses", &found, &expected)?;
        let (mut apps, mut ede, mut rcode) = (String::new(), Vec::new(), 0);
        while let [key, value, more @ ..] = rest {
            match *key {
                "ttl" => {
                    let ttl: u32 = value.parse().map_err(|_| "no TTL")?;
                    check("TTLs", told.iter().map(|(_, ttl)| *ttl).collect(), vec![ttl; told.len()])?;
                }
                "tag" => apps = (*value).to_owned(),
                "ede" => ede = vec![read_number(value)?],
                "rcode" => rcode = read_number(value)?,
                "from" => check("where it came from", if answer.is_from_cache { "cache" } else { "upstream" }, *value)?,
                _ => return Err(format!("`{key}` may not stand here")),
            }
            rest = more;
        }
        check("rcode", u16::from(answer.message.metadata.response_code), rcode)?;
        check("extended errors", edes(&answer.message), ede)?;
        check("tag", tag(&answer.message).map(|text| apps_of(&text)).unwrap_or_default(), apps)
    }

    async fn set(&mut self, expected: &str) -> Step {
        let found: Vec<String> = self.stage().await?.prefixes().iter().map(ToString::to_string).collect();
        check("set", found, read_list(expected, "empty"))
    }

    async fn end(&mut self, addr: &str, span: Duration) -> Step {
        let addr: IpAddr = addr.parse().map_err(|_| "no address")?;
        let stage = self.stage().await?;
        let set = stage.set();
        let host = set.host(addr).ok_or("it is not in the set")?;
        check("end", host.end().since(stage.clock.now()), span)
    }

    async fn serial(&mut self, change: &str) -> Step {
        let now = self.stage().await?.set().serial();
        let expected = match change.strip_prefix('+') {
            Some(more) => more.parse().map_err(|_| "no number")?,
            None => check("change", change, "same").map(|()| 0)?,
        };
        let before = std::mem::replace(&mut self.serial, now);
        check("serials since", now - before, expected)
    }

    async fn metric(&mut self, line: &str, expected: &str) -> Step {
        check(line, self.stage().await?.metric(line).to_string(), expected.to_owned())
    }
}

/// Waits until something is so, or for as long as it may take.
async fn before_long(mut is_it: impl FnMut() -> bool) {
    for _ in 0..PATIENCE.as_millis() / 20 {
        if is_it() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The codes of the extended errors, the tag's aside.
pub(crate) fn edes(message: &Message) -> Vec<u16> {
    let options = message.edns.iter().flat_map(|edns| edns.options().as_ref());
    let codes = options.filter_map(|(_, option)| match option {
        EdnsOption::Unknown(15, value) => value.first_chunk().map(|code| u16::from_be_bytes(*code)),
        _ => None,
    });
    codes.filter(|code| *code != 0).collect()
}

/// Reads who asks what.
fn read_query(name: &str, rtype: &str, rest: &[&str]) -> Step<(Message, Ipv4Addr)> {
    let mut query = question(name, RecordType::from(read_type(rtype)?));
    let (wants_dnssec, rest) = match rest {
        ["do", rest @ ..] => (true, rest),
        _ => (false, rest),
    };
    query.edns.as_mut().ok_or("no EDNS")?.set_dnssec_ok(wants_dnssec);
    let client = match rest {
        [] => Ipv4Addr::LOCALHOST,
        ["from", client] => client.parse().map_err(|_| "no client address")?,
        _ => return Err("only `do` and `from` may follow".into()),
    };
    Ok((query, client))
}

fn read_number(text: &str) -> Step<u16> {
    text.parse().map_err(|_| format!("`{text}` is no number"))
}

fn check<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Step {
    if found == expected { Ok(()) } else { Err(format!("{what}: expected {expected:?}, found {found:?}")) }
}

/// The addresses and hints of an answer with their TTLs.
pub(crate) fn told(message: &Message) -> Vec<(IpAddr, u32)> {
    let mut told = Vec::new();
    for record in &message.answers {
        let svcb = match &record.data {
            RData::A(a) => {
                told.push((IpAddr::V4(a.0), record.ttl));
                continue;
            }
            RData::AAAA(aaaa) => {
                told.push((IpAddr::V6(aaaa.0), record.ttl));
                continue;
            }
            RData::HTTPS(https) => &https.0,
            _ => continue,
        };
        for (_, value) in &svcb.svc_params {
            match value {
                SvcParamValue::Ipv4Hint(hint) => told.extend(hint.0.iter().map(|a| (IpAddr::V4(a.0), record.ttl))),
                SvcParamValue::Ipv6Hint(hint) => told.extend(hint.0.iter().map(|a| (IpAddr::V6(a.0), record.ttl))),
                _ => {}
            }
        }
    }
    told
}

/// `app=a;match=t;also=b,c` as `a+b+c`.
fn apps_of(tag: &str) -> String {
    let fields = tag.split(';').filter_map(|field| field.split_once('='));
    let apps = fields.filter(|(key, _)| matches!(*key, "app" | "also")).map(|(_, value)| value);
    apps.collect::<Vec<_>>().join("+").replace(',', "+")
}

fn read_list(text: &str, none: &str) -> Vec<String> {
    if text == none { Vec::new() } else { text.split(", ").map(str::to_owned).collect() }
}

fn read_type(text: &str) -> Step<u16> {
    match text {
        "A" => Ok(A),
        "AAAA" => Ok(AAAA),
        "CNAME" => Ok(CNAME),
        "HTTPS" => Ok(HTTPS),
        _ => Err(format!("no type `{text}`")),
    }
}

/// Reads RDATA; of HTTPS as `1 target.example ipv4hint=192.0.2.1+192.0.2.2`.
fn read_rdata(rtype: u16, text: &str) -> Step<Vec<u8>> {
    let no_address = |_| format!("`{text}` is no address");
    match rtype {
        A => text.parse().map(|addr: Ipv4Addr| addr.octets().to_vec()).map_err(no_address),
        AAAA => text.parse().map(|addr: Ipv6Addr| addr.octets().to_vec()).map_err(no_address),
        CNAME => Ok(wire_name(text)),
        _ => {
            let mut words = text.split(' ');
            let priority: u16 = words.next().and_then(|word| word.parse().ok()).ok_or("no priority")?;
            let mut rdata = priority.to_be_bytes().to_vec();
            rdata.extend(wire_name(words.next().ok_or("no target")?));
            for word in words {
                let hint = word.strip_prefix("ipv4hint=").ok_or("only ipv4hint= may follow")?;
                let addrs = hint.split('+').map(|text| text.parse().map_err(|_| "no address in the hint".to_owned()));
                let octets: Vec<u8> =
                    addrs.collect::<Step<Vec<Ipv4Addr>>>()?.iter().flat_map(Ipv4Addr::octets).collect();
                rdata.extend([0, 4]);
                rdata.extend((octets.len() as u16).to_be_bytes());
                rdata.extend(octets);
            }
            Ok(rdata)
        }
    }
}

/// Reads `1h2m3s400ms` and its parts.
fn read_span(text: &str) -> Step<Duration> {
    let (mut total, mut rest) = (Duration::ZERO, text);
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number: u64 = rest[..digits].parse().map_err(|_| format!("no span `{text}`"))?;
        let unit = &rest[digits..];
        let (millis, len) = match unit {
            _ if unit.starts_with("ms") => (1, 2),
            _ if unit.starts_with('s') => (1000, 1),
            _ if unit.starts_with('m') => (60_000, 1),
            _ if unit.starts_with('h') => (3_600_000, 1),
            _ => return Err(format!("no unit in `{text}`")),
        };
        total += Duration::from_millis(number * millis);
        rest = &unit[len..];
    }
    Ok(total)
}
