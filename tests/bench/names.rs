//! The questions: a zone made from the lists and of names that nobody lists.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use greenlane::catalogue::{self, Kind};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Names that are asked once each, for the cost of a miss and the memory of an answer.
const COLD: u32 = 100_000;

/// Names that the hits are drawn from.
const HOT: u32 = 10_000;

/// Lines of a file that is read again from its start.
const HOT_LINES: u32 = 400_000;

/// Lines of the files that are read once.
const MIXED_LINES: u32 = 200_000;
const BUSY_LINES: u32 = 600_000;

/// What all these are divided by for a run that only shows that the steps work.
const SHORT: u32 = 50;

/// Files for `dnsperf -d`, one question a line.
pub(crate) struct Files {
    /// Lines of `cold`.
    pub(crate) cold_names: u32,
    /// Every name of the zone once.
    pub(crate) cold: PathBuf,
    /// Every hot name once, so that all of `hot` are hits.
    pub(crate) warm_up: PathBuf,
    /// Hot names by Zipf's law, exponent 1.
    pub(crate) hot: PathBuf,
    /// Nine hits to a name that was never asked.
    pub(crate) mixed: PathBuf,
    /// Nineteen hits to a name that was never asked.
    pub(crate) busy: PathBuf,
}

impl Files {
    /// Writes all files into `folder`, the same ones each time.
    pub(crate) fn write(folder: &Path, is_short: bool) -> io::Result<Self> {
        let zone = Zone::read();
        let lines = |all: u32| if is_short { all / SHORT } else { all };
        let mut random = StdRng::seed_from_u64(7);
        let hot = |random: &mut StdRng| {
            let rank = (f64::from(lines(HOT)).powf(random.random::<f64>())) as u32 - 1;
            zone.question("c", rank.min(lines(HOT) - 1))
        };
        let mixed = |random: &mut StdRng, i: u32, fresh: &str, one_in: u32| {
            if i.is_multiple_of(one_in) { zone.question(fresh, i) } else { hot(random) }
        };
        let path = |name: &str| folder.join(name);
        Ok(Self {
            cold_names: lines(COLD),
            cold: write(path("cold"), (0..lines(COLD)).map(|i| zone.question("c", i)))?,
            warm_up: write(path("warm-up"), (0..lines(HOT)).map(|i| zone.question("c", i)))?,
            hot: write(path("hot"), (0..lines(HOT_LINES)).map(|_| hot(&mut random)))?,
            mixed: write(path("mixed"), (0..lines(MIXED_LINES)).map(|i| mixed(&mut random, i, "m", 10)))?,
            busy: write(path("busy"), (0..lines(BUSY_LINES)).map(|i| mixed(&mut random, i, "b", 20)))?,
        })
    }
}

fn write(path: PathBuf, lines: impl Iterator<Item = String>) -> io::Result<PathBuf> {
    let mut file = BufWriter::new(File::create(&path)?);
    for line in lines {
        writeln!(file, "{line}")?;
    }
    file.flush()?;
    Ok(path)
}

/// Where names are made: three in ten under a trigger of the lists in `zones/`.
struct Zone {
    listed: Vec<String>,
}

impl Zone {
    fn read() -> Self {
        let options = catalogue::Options {
            path: Path::new(env!("CARGO_MANIFEST_DIR")).join("zones"),
            ..catalogue::Options::default()
        };
        let loaded = catalogue::load(&options, greenlane::daemon::today()).expect("the lists of this repository load");
        let listed =
            loaded.catalogue.names().filter(|listed| listed.kind != Kind::Exact).map(|listed| listed.name.to_string());
        Self { listed: listed.collect() }
    }

    /// One name, one type: four in five for an IPv4 address.
    fn question(&self, series: &str, i: u32) -> String {
        let qtype = if i % 5 == 4 { "AAAA" } else { "A" };
        if i % 10 < 3 {
            format!("{series}{i}.{} {qtype}", self.listed[i as usize % self.listed.len()])
        } else {
            format!("{series}{i}.site{}.example.net {qtype}", i % 977)
        }
    }
}
