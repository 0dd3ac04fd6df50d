//! The table: a row a figure, a column a server; medians over the rounds, and their ratio to the floor's.

use std::collections::BTreeMap;
use std::fmt;

use crate::servers::Server;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Figure {
    Hit,
    HitWithOpt,
    Steady,
    SteadyP50,
    SteadyP99,
    Miss,
    Mixed,
    BusyP99,
    BusyLost,
    Tcp,
    EmptyMib,
    FullMib,
    BytesAName,
}

impl Figure {
    fn title(self) -> &'static str {
        match self {
            Self::Hit => "hit over UDP, s/M",
            Self::HitWithOpt => "hit with an OPT, s/M",
            Self::Steady => "hit at 5,000 a second, s/M",
            Self::SteadyP50 => "… half of the answers within, µs",
            Self::SteadyP99 => "… 99 % within, µs",
            Self::Miss => "miss over UDP, s/M",
            Self::Mixed => "9 hits to a miss, s/M",
            Self::BusyP99 => "at 70 % of its most, 5 % misses: 99 % within, µs",
            Self::BusyLost => "… answers lost",
            Self::Tcp => "hit over TCP, 20 connections kept open, s/M",
            Self::EmptyMib => "resident memory empty, MiB",
            Self::FullMib => "… with 100,000 names, MiB",
            Self::BytesAName => "… octets a name",
        }
    }

    /// Whether a column's ratio to the floor of the same round means something.
    fn is_cost(self) -> bool {
        matches!(self, Self::Hit | Self::HitWithOpt | Self::Steady | Self::Miss | Self::Mixed)
    }

    fn digits(self) -> usize {
        match self {
            Self::Hit | Self::HitWithOpt | Self::Tcp | Self::Mixed => 2,
            Self::Steady | Self::Miss | Self::EmptyMib | Self::FullMib => 1,
            _ => 0,
        }
    }

    /// The figure of the floor that this one is a multiple of.
    fn floor(self) -> Self {
        if self == Self::Mixed { Self::Hit } else { self }
    }
}

/// All rounds so far.
pub(crate) struct Report {
    columns: Vec<(String, bool)>,
    round: BTreeMap<(Figure, usize), f64>,
    rounds: Vec<BTreeMap<(Figure, usize), f64>>,
}

impl Report {
    pub(crate) fn new(servers: &[Server]) -> Self {
        let columns = servers.iter().map(|server| (server.title(), server.is_floor())).collect();
        Self { columns, round: BTreeMap::new(), rounds: Vec::new() }
    }

    /// Takes a figure of the present round.
    pub(crate) fn add(&mut self, column: usize, figure: Figure, value: f64) {
        self.round.insert((figure, column), value);
    }

    pub(crate) fn end_round(&mut self) {
        self.rounds.push(std::mem::take(&mut self.round));
    }

    fn cell(&self, figure: Figure, column: usize) -> String {
        let mut values: Vec<f64> =
            self.rounds.iter().filter_map(|round| round.get(&(figure, column)).copied()).collect();
        let Some(middle) = median(&mut values) else { return String::new() };
        let digits = figure.digits();
        let mut cell = format!("{middle:.digits$}");
        if let [least, .., most] = values.as_slice() {
            cell += &format!(" ({least:.digits$} to {most:.digits$})");
        }
        let floor = |round: &BTreeMap<(Figure, usize), f64>| {
            (0..self.columns.len())
                .filter(|at| self.columns[*at].1)
                .find_map(|at| round.get(&(figure.floor(), at)).copied())
        };
        let mut ratios: Vec<f64> =
            self.rounds.iter().filter_map(|round| Some(round.get(&(figure, column))? / floor(round)?)).collect();
        if figure.is_cost()
            && !self.columns[column].1
            && let Some(ratio) = median(&mut ratios)
        {
            cell += &format!("; **{ratio:.2}**");
        }
        cell
    }
}

/// Sorts the values; returns the one in the middle.
fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles: Vec<&str> = self.columns.iter().map(|(title, _)| title.as_str()).collect();
        writeln!(
            f,
            "Medians of {} rounds (lowest to highest); in bold times the floor of the same round.\n",
            self.rounds.len()
        )?;
        writeln!(f, "| | {} |", titles.join(" | "))?;
        writeln!(f, "|---|{}", "--:|".repeat(titles.len()))?;
        for figure in [
            Figure::Hit,
            Figure::HitWithOpt,
            Figure::Steady,
            Figure::SteadyP50,
            Figure::SteadyP99,
            Figure::Miss,
            Figure::Mixed,
            Figure::BusyP99,
            Figure::BusyLost,
            Figure::Tcp,
            Figure::EmptyMib,
            Figure::FullMib,
            Figure::BytesAName,
        ] {
            let cells: Vec<String> = (0..titles.len()).map(|column| self.cell(figure, column)).collect();
            writeln!(f, "| {} | {} |", figure.title(), cells.join(" | "))?;
        }
        Ok(())
    }
}
