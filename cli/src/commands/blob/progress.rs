//! How a fetch goes: a bar on a terminal, a line for each tenth elsewhere, both on stderr.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, HumanDuration, ProgressBar, ProgressStyle};

/// What is shown while a blob comes.
pub(super) struct FetchProgress {
    bar: Option<ProgressBar>,
    size: u64,
    /// What is said of the bytes that came.
    state: &'static str,
    /// What was there before, and since when more comes.
    start: (u64, Instant),
    /// The tenths that have been told.
    told: u64,
}

impl FetchProgress {
    /// Of something whose pieces are verified as they come.
    pub(super) fn new(size: u64, here: u64) -> Self {
        Self::of(size, here, "verified")
    }

    /// Of a file that only the whole proves.
    pub(super) fn unproven(size: u64, here: u64) -> Self {
        Self::of(size, here, "here")
    }

    fn of(size: u64, here: u64, state: &'static str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:32} {msg}");
            let bar =
                ProgressBar::new(size).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_position(here);
            bar.reset_eta();
            bar
        });
        if here > 0 {
            eprintln!("{} of {} are here from an earlier run", BinaryBytes(here), BinaryBytes(size));
        }
        Self { bar, size, state, start: (here, Instant::now()), told: tenths(here, size) }
    }

    /// Shows that so many bytes are here, and from how many sources more come; 0 where that
    /// is not known.
    pub(super) fn show(&mut self, bytes: u64, sources: usize) {
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
            bar.set_message(words(bytes, self.size, self.state, bar.per_sec(), sources));
        } else if tenths(bytes, self.size) > self.told {
            self.told = tenths(bytes, self.size);
            let rate = bytes.saturating_sub(self.start.0) as f64 / self.start.1.elapsed().as_secs_f64();
            eprintln!("{}", words(bytes, self.size, self.state, rate, sources));
        }
    }

    /// Takes the bar away.
    pub(super) fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// How far it is, at so many bytes a second.
fn words(bytes: u64, size: u64, state: &str, rate: f64, sources: usize) -> String {
    let from = match sources {
        0 => String::new(),
        1 => ", from 1 source".to_owned(),
        several => format!(", from {several} sources"),
    };
    let left = Duration::try_from_secs_f64(size.saturating_sub(bytes) as f64 / rate);
    let left = left.map_or_else(|_| "?".to_owned(), |left| format!("{:#}", HumanDuration(left)));
    let [bytes, size, rate] = [bytes, size, rate as u64].map(BinaryBytes);
    format!("{bytes} of {size} {state}, {rate}/s, {left} left{from}")
}

fn tenths(bytes: u64, size: u64) -> u64 {
    (bytes * 10).checked_div(size).unwrap_or(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenths_of_any_size_are_counted() {
        assert_eq!([0, 99, 100, 1000].map(|bytes| tenths(bytes, 1000)), [0, 0, 1, 10]);
        assert_eq!(tenths(0, 0), 10);
    }

    #[test]
    fn line_has_what_is_verified_the_speed_the_time_left_and_the_sources() {
        let check = |bytes, rate, sources, expected: &str| {
            assert_eq!(words(bytes, 3 << 30, "verified", rate, sources), expected);
        };
        let rate = f64::from(16 << 20);
        check(1 << 30, rate, 3, "1.00 GiB of 3.00 GiB verified, 16.00 MiB/s, 2m left, from 3 sources");
        check(2 << 30, rate, 1, "2.00 GiB of 3.00 GiB verified, 16.00 MiB/s, 64s left, from 1 source");
        check(3 << 30, rate, 0, "3.00 GiB of 3.00 GiB verified, 16.00 MiB/s, 0s left");
        check(0, 0.0, 1, "0 B of 3.00 GiB verified, 0 B/s, ? left, from 1 source");
    }
}
