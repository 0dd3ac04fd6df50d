//! The load: `dnsperf`, and what it tells.

use std::path::Path;
use std::process::Command;

/// A server to ask.
pub(crate) struct Load {
    /// Its port on 127.0.0.1.
    pub(crate) port: u16,
}

/// What a run told of itself.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) completed: u32,
    pub(crate) lost: u32,
    pub(crate) per_second: f64,
    /// Sorted, in seconds; empty unless the run was at a fixed rate.
    latencies: Vec<f64>,
}

/// A run, and what it cost the server.
pub(crate) struct Spent {
    pub(crate) cpu_seconds: f64,
    pub(crate) told: Told,
}

impl Spent {
    /// CPU seconds a million answered questions.
    pub(crate) fn per_million(&self) -> f64 {
        self.cpu_seconds * 1e6 / f64::from(self.told.completed.max(1))
    }
}

impl Load {
    /// Asks every question of a file once.
    pub(crate) fn once(&self, file: &Path) -> Result<Told, String> {
        self.run(file, &["-n", "1"])
    }

    /// Asks for so many seconds, from the start of the file again where it ends, with 200 questions in flight.
    pub(crate) fn as_fast_as_it_goes(&self, file: &Path, seconds: u32, more: &[&str]) -> Result<Told, String> {
        self.run(file, &[&["-l", &seconds.to_string()], more].concat())
    }

    /// Asks at a fixed rate, and takes the time of each answer.
    pub(crate) fn at_rate(&self, file: &Path, per_second: u32, seconds: u32) -> Result<Told, String> {
        self.run(file, &["-l", &seconds.to_string(), "-Q", &per_second.to_string(), "-v"])
    }

    fn run(&self, file: &Path, more: &[&str]) -> Result<Told, String> {
        let output = Command::new("dnsperf")
            .args(["-s", "127.0.0.1", "-p", &self.port.to_string(), "-c", "20", "-q", "200", "-t", "2", "-d"])
            .arg(file)
            .args(more)
            .output()
            .map_err(|error| format!("dnsperf (package dnsperf) cannot be run: {error}"))?;
        if !output.status.success() {
            return Err(format!("dnsperf: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        read(&String::from_utf8_lossy(&output.stdout)).ok_or_else(|| {
            let asked = file.file_name().unwrap_or_default().display();
            format!("no answer to `{asked}` {}: {}", more.join(" "), String::from_utf8_lossy(&output.stderr).trim())
        })
    }
}

/// Reads the lines that dnsperf prints: `> NOERROR name A 0.000123` for an answer, a block of sums at the end.
/// `None` without a single answer.
fn read(printed: &str) -> Option<Told> {
    let mut told = Told::default();
    let mut is_whole = false;
    for line in printed.lines() {
        if let Some(answer) = line.strip_prefix("> ") {
            told.latencies.extend(answer.rsplit(' ').next().and_then(|seconds| seconds.parse::<f64>().ok()));
        } else if let Some((what, value)) = line.trim().split_once(':') {
            let number = value.split_whitespace().next().unwrap_or("");
            match what {
                "Queries completed" => told.completed = number.parse().unwrap_or(0),
                "Queries lost" => told.lost = number.parse().unwrap_or(0),
                "Queries per second" => {
                    told.per_second = number.parse().unwrap_or(0.0);
                    is_whole = true;
                }
                _ => {}
            }
        }
    }
    told.latencies.sort_by(f64::total_cmp);
    (is_whole && told.completed > 0).then_some(told)
}

impl Told {
    /// The time within which this share of the answers came, in microseconds.
    pub(crate) fn latency_micros(&self, share: f64) -> f64 {
        let at = (self.latencies.len() as f64 * share) as usize;
        self.latencies.get(at.min(self.latencies.len().saturating_sub(1))).map_or(0.0, |seconds| seconds * 1e6)
    }
}
