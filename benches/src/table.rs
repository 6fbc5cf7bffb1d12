//! The table that is printed: one line for each thing that was measured, as a median beside what it is
//! compared with.
//!
//! Not here: how anything is measured.

use std::fmt;

/// Bytes of a GiB.
pub(crate) const GIB: f64 = (1u64 << 30) as f64;
/// Bytes of a MiB.
pub(crate) const MIB: f64 = (1u64 << 20) as f64;

/// What is compared, in seconds.
#[derive(Debug, Clone)]
pub(crate) enum Beside {
    /// Nothing.
    Nothing,
    /// The least that the links allow.
    Links(f64),
    /// What the named rival needed in the same run.
    Rival(&'static str, f64),
}

/// One line of the table.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) row: String,
    pub(crate) who: String,
    /// Wall seconds of each repetition; none where time was not what was measured.
    pub(crate) seconds: Vec<f64>,
    pub(crate) beside: Beside,
    /// CPU seconds of both ends for each GiB that was delivered.
    pub(crate) cpu: Vec<f64>,
    pub(crate) note: String,
    /// Whether a repetition failed.
    pub(crate) has_failed: bool,
}

impl Line {
    /// A line of one measurement.
    pub(crate) fn new(row: &str, who: &str, seconds: f64, beside: Beside) -> Self {
        let (row, who) = (row.to_owned(), who.to_owned());
        Self {
            row,
            who,
            seconds: vec![seconds],
            beside,
            cpu: Vec::new(),
            note: String::new(),
            has_failed: false,
        }
    }

    /// The same with CPU seconds for each GiB.
    pub(crate) fn with_cpu(self, cpu: f64) -> Self {
        Self { cpu: vec![cpu], ..self }
    }

    /// The same with a remark.
    pub(crate) fn with_note(self, note: impl Into<String>) -> Self {
        Self { note: note.into(), ..self }
    }

    /// Several repetitions of one line as one; the remark is that of the last.
    pub(crate) fn merged(lines: Vec<Self>) -> Option<Self> {
        let mut lines = lines.into_iter();
        let mut merged = lines.next()?;
        for line in lines {
            merged.seconds.extend(line.seconds);
            merged.cpu.extend(line.cpu);
            merged.note = line.note;
            merged.has_failed |= line.has_failed;
        }
        Some(merged)
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.2}"));
        let seconds = median(&self.seconds);
        let ratio = match self.beside {
            Beside::Nothing => String::new(),
            Beside::Links(least) => {
                seconds.map_or(String::new(), |took| format!("{:.2} x links", took / least))
            }
            Beside::Rival(name, other) => {
                seconds.map_or(String::new(), |took| format!("{:.2} x {name}", took / other))
            }
        };
        let took = if self.has_failed { "failed ".to_owned() } else { String::new() } + &number(seconds);
        let Self { row, who, note, .. } = self;
        write!(f, "| {row} | {who} | {took} | {ratio} | {} | {note} |", number(median(&self.cpu)))
    }
}

/// The head of the table.
pub(crate) const HEAD: &str =
    "| row | what | s | ratio | CPU s per GiB | |\n| --- | --- | --- | --- | --- | --- |";

/// The value in the middle, or between the two there.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length.is_multiple_of(2) => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
        _ => Some(sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_shows_the_median_and_its_ratio() {
        let lines = [3.0, 1.0, 2.0].map(|took| Line::new("pair", "ours", took, Beside::Links(1.0)));
        let merged = Line::merged(lines.to_vec()).expect("there are three").with_note("two copies");
        assert_eq!(merged.to_string(), "| pair | ours | 2.00 | 2.00 x links |  | two copies |");
        let failed = Line { has_failed: true, ..merged };
        assert_eq!(failed.to_string(), "| pair | ours | failed 2.00 | 2.00 x links |  | two copies |");
    }

    #[test]
    fn median_of_an_even_number_lies_between_the_two_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
    }
}
