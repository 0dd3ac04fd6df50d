//! Runs greenlane and every other forwarder that is installed through the same steps and prints one Markdown table.
//!
//! ```sh
//! cargo bench --bench peers                                  # all that are installed, three rounds, some 2 minutes a round
//! cargo bench --bench peers -- --rounds 9 --only dnsdist      # a close ratio needs more pairs
//! cargo bench --bench peers --profile dev -- --short          # whether every step works
//! ```
//!
//! The figure to trust is CPU seconds a million questions, and of it the ratio to the floor that ran in the same round:
//! a batched echo for hits, a relay that only swaps ids for misses. The server has one core; load, upstream and this
//! program share another. `dnsperf` is the load. All traffic stays on loopback; what is started is ended by its pid.
//!
//! Needs two cores, `dnsperf` and `taskset`. Root is not needed.

mod floor;
mod load;
mod names;
mod process;
mod report;
mod servers;
mod upstream;

use std::time::Duration;

use load::{Load, Spent};
use names::Files;
use process::Running;
use report::{Figure, Report};
use servers::Server;

/// How long a step lasts that has no end of its own.
const STEP_SECS: u32 = 3;

/// What the latency at a fixed rate is measured at, in questions a second.
const RATE: u32 = 5_000;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(floor) = floor::asked_for(&args) {
        return floor();
    }
    let asked = match Asked::read(&args) {
        Ok(asked) => asked,
        Err(message) => {
            eprintln!("{message}");
            std::process::exit(2);
        }
    };
    if let Err(message) = run(&asked) {
        eprintln!("{message}");
        std::process::exit(1);
    }
}

/// The command line.
struct Asked {
    rounds: u32,
    /// Peers to run beside greenlane; empty means every one that is installed.
    only: Vec<String>,
    /// One round of small files: shows that every step works, and measures nothing.
    is_short: bool,
}

impl Asked {
    fn read(args: &[String]) -> Result<Self, String> {
        const USAGE: &str =
            "usage: cargo bench --bench peers -- [--rounds N] [--only PEER,PEER… | --only none] [--short]";
        let mut asked = Self { rounds: 3, only: Vec::new(), is_short: false };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value\n{USAGE}"));
            match arg.as_str() {
                // cargo's own word to every bench.
                "--bench" => {}
                "--short" => (asked.rounds, asked.is_short) = (1, true),
                "--rounds" => {
                    let given = value()?;
                    asked.rounds = given.parse().map_err(|_| format!("--rounds: `{given}` is no number\n{USAGE}"))?;
                }
                "--only" => asked.only = value()?.split(',').map(str::to_owned).collect(),
                other => return Err(format!("unknown argument `{other}`\n{USAGE}")),
            }
        }
        Ok(asked)
    }
}

fn run(asked: &Asked) -> Result<(), String> {
    let servers = servers::chosen(&asked.only)?;
    let folder = tempfile::tempdir().map_err(|error| format!("no temporary folder: {error}"))?;
    let files = Files::write(folder.path(), asked.is_short)
        .map_err(|error| format!("question files cannot be written: {error}"))?;
    process::stay_on(process::LOAD_CORE);
    let upstream = upstream::start().map_err(|error| format!("upstream cannot listen: {error}"))?;
    let mut report = Report::new(&servers);
    let mut is_whole = true;
    for round in 1..=asked.rounds {
        let mut order: Vec<usize> = (0..servers.len()).collect();
        order.rotate_left(round as usize % servers.len());
        for at in order {
            let server = &servers[at];
            eprintln!("round {round}: {}", server.name());
            let mut figures = Vec::new();
            if let Err(error) = measure(server, upstream, &files, folder.path(), &mut figures) {
                is_whole &= matches!(server, Server::Peer(_));
                eprintln!("{}: {error}; what came before stands", server.name());
            }
            for (figure, value) in figures {
                report.add(at, figure, value);
            }
        }
        report.end_round();
    }
    print!("{report}");
    if is_whole { Ok(()) } else { Err("greenlane or a floor did not go through all steps".to_owned()) }
}

/// Takes one server through all steps that it can; what it measured before a step that failed stands in `out`.
fn measure(
    server: &Server,
    upstream: u16,
    files: &Files,
    folder: &std::path::Path,
    out: &mut Vec<(Figure, f64)>,
) -> Result<(), String> {
    let running = Running::start(server, upstream, folder)?;
    let load = Load { port: running.port };
    let empty = running.resident_bytes();
    if server.answers_misses() {
        let cold = spent(&running, || load.once(&files.cold))?;
        out.push((Figure::Miss, cold.per_million()));
        if server.keeps_answers() {
            std::thread::sleep(Duration::from_millis(500));
            let full = running.resident_bytes();
            out.push((Figure::EmptyMib, empty / 1_048_576.0));
            out.push((Figure::FullMib, full / 1_048_576.0));
            out.push((Figure::BytesAName, (full - empty) / f64::from(files.cold_names)));
        }
    }
    if !server.answers_hits() {
        return Ok(());
    }
    load.once(&files.warm_up)?;
    let hot = spent(&running, || load.as_fast_as_it_goes(&files.hot, STEP_SECS, &[]))?;
    out.push((Figure::Hit, hot.per_million()));
    let with_opt = spent(&running, || load.as_fast_as_it_goes(&files.hot, STEP_SECS, &["-e"]))?;
    out.push((Figure::HitWithOpt, with_opt.per_million()));
    let steady = spent(&running, || load.at_rate(&files.hot, RATE, STEP_SECS))?;
    out.push((Figure::Steady, steady.per_million()));
    out.push((Figure::SteadyP50, steady.told.latency_micros(0.50)));
    out.push((Figure::SteadyP99, steady.told.latency_micros(0.99)));
    if server.answers_misses() {
        let mixed = spent(&running, || load.once(&files.mixed))?;
        out.push((Figure::Mixed, mixed.per_million()));
        let busy = spent(&running, || load.at_rate(&files.busy, (hot.told.per_second * 0.7) as u32, STEP_SECS))?;
        out.push((Figure::BusyP99, busy.told.latency_micros(0.99)));
        out.push((Figure::BusyLost, f64::from(busy.told.lost)));
    }
    if server.speaks_tcp() {
        let tcp = spent(&running, || load.as_fast_as_it_goes(&files.hot, STEP_SECS, &["-m", "tcp"]))?;
        out.push((Figure::Tcp, tcp.per_million()));
    }
    Ok(())
}

/// Runs a load, and says what it cost the server.
fn spent(running: &Running, load: impl FnOnce() -> Result<load::Told, String>) -> Result<Spent, String> {
    let before = running.cpu_seconds();
    let told = load()?;
    Ok(Spent { cpu_seconds: running.cpu_seconds() - before, told })
}
