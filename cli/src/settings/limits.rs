//! How much of this machine's links may be used, as it is written on the command line and in the settings
//! file: `20MB/s`, or `22:00-06:00=200MB/s` for some hours of the day.
//!
//! Not here: what keeps to it; that is the mesh's.

use std::str::FromStr;

use jiff::ZonedDateTime;
use mesh::limits::{Caps, Hours, Limits, Relaying};
use mesh::store::ByteSize;
use serde::{Deserialize, Deserializer};

const MINUTES_OF_DAY: u16 = 24 * 60;

/// A cap in bytes a second, for the whole day or some hours of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RateLimit {
    /// From one minute of the day to another; `None` for the rest of the day.
    hours: Option<(u16, u16)>,
    /// `None` for no cap.
    cap: Option<ByteSize>,
}

/// A text that is no cap.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a limit: write 20MB/s, `none`, or 22:00-06:00=200MB/s for some hours of the day")]
pub(crate) struct ParseRateLimitError(String);

impl FromStr for RateLimit {
    type Err = ParseRateLimitError;

    fn from_str(text: &str) -> Result<Self, ParseRateLimitError> {
        let parse = || {
            let (hours, cap) = match text.split_once('=') {
                Some((hours, cap)) => (Some(parse_hours(hours.trim())?), cap.trim()),
                None => (None, text.trim()),
            };
            let cap = match cap {
                "none" => None,
                cap => Some(parse_rate(cap)?),
            };
            Some(Self { hours, cap })
        };
        parse().ok_or_else(|| ParseRateLimitError(text.chars().take(80).collect()))
    }
}

impl<'de> Deserialize<'de> for RateLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Bytes a second, such as `20MB/s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ByteRate(ByteSize);

/// A text that is no rate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a rate: write 20MB/s")]
pub(crate) struct ParseByteRateError(String);

impl FromStr for ByteRate {
    type Err = ParseByteRateError;

    fn from_str(text: &str) -> Result<Self, ParseByteRateError> {
        parse_rate(text.trim()).map(Self).ok_or_else(|| ParseByteRateError(text.chars().take(80).collect()))
    }
}

impl<'de> Deserialize<'de> for ByteRate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

fn parse_rate(text: &str) -> Option<ByteSize> {
    text.strip_suffix("/s").unwrap_or(text).parse().ok().filter(|ByteSize(bytes)| *bytes > 0)
}

/// What a process does with relays whose owner forbade it to be one (`no`), or named a rate; `spares` where it
/// is to be none unless it is asked to.
pub(crate) fn relaying(no: bool, rate: Option<ByteRate>, spares: bool) -> Relaying {
    let passes_on = !no && (!spares || rate.is_some());
    Relaying { passes_on, rate: rate.map(|ByteRate(rate)| rate) }
}

/// What these caps come to on the clock of this machine.
pub(crate) fn limits(upload: &[RateLimit], download: &[RateLimit], uploads: Option<u16>) -> Limits {
    let caps = |minute| Caps { upload: cap_at(upload, minute), download: cap_at(download, minute) };
    let mut borders: Vec<u16> = upload
        .iter()
        .chain(download)
        .filter_map(|limit| limit.hours)
        .flat_map(|(from, until)| [from, until])
        .collect();
    borders.sort_unstable();
    borders.dedup();
    let next = |index: usize| borders[(index + 1) % borders.len()];
    // Between two borders nothing changes.
    let hours = borders.iter().enumerate().map(|(index, &from)| Hours {
        from,
        until: next(index),
        caps: caps(Some(from)),
    });
    let default = Limits::default();
    Limits {
        uploads: uploads.map_or(default.uploads, usize::from),
        caps: caps(None),
        hours: hours.collect(),
        utc_offset: ZonedDateTime::now().offset().seconds() / 60,
    }
}

/// The cap at a minute of the day, or that of the rest of the day.
fn cap_at(limits: &[RateLimit], minute: Option<u16>) -> Option<ByteSize> {
    let contains = |(from, until): (u16, u16), minute: u16| match from < until {
        true => (from..until).contains(&minute),
        false => minute >= from || minute < until,
    };
    let fits =
        |limit: &&RateLimit| limit.hours.zip(minute).is_some_and(|(hours, minute)| contains(hours, minute));
    let of_the_rest = || limits.iter().find(|limit| limit.hours.is_none());
    limits.iter().find(fits).or_else(of_the_rest)?.cap
}

fn parse_hours(text: &str) -> Option<(u16, u16)> {
    let (from, until) = text.split_once('-')?;
    Some((parse_minute(from.trim())?, parse_minute(until.trim())?))
}

fn parse_minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let is_short =
        |part: &str| (1..=2).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
    if !is_short(hour) || !is_short(minute) {
        return None;
    }
    let (hour, minute): (u16, u16) = (hour.parse().ok()?, minute.parse().ok()?);
    let of_day = hour * 60 + minute;
    (minute < 60 && of_day < MINUTES_OF_DAY).then_some(of_day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(texts: &[&str]) -> Vec<RateLimit> {
        texts.iter().map(|text| text.parse().expect("a limit")).collect()
    }

    fn upload(bytes: u64) -> Option<ByteSize> {
        Some(ByteSize(bytes))
    }

    #[test]
    fn limits_are_written_as_sizes_a_second_and_for_hours_of_the_day() {
        let night = RateLimit { hours: Some((22 * 60, 6 * 60 + 30)), cap: upload(200_000_000) };
        assert_eq!(
            parse(&["20MB/s", "22:00-6:30=200 MB/s", "none"]),
            [RateLimit { hours: None, cap: upload(20_000_000) }, night, RateLimit { hours: None, cap: None },]
        );
        for wrong in ["", "fast", "0", "24:00-06:00=1MB/s", "22-06=1MB/s", "22:00=1MB/s", "+1:00-2:00=1MB"] {
            assert!(wrong.parse::<RateLimit>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn caps_of_both_directions_hold_at_their_own_hours() {
        let up = parse(&["10/s", "22:00-06:00=none"]);
        let down = parse(&["05:00-08:00=30/s"]);
        let limits = limits(&up, &down, Some(3));
        assert_eq!((limits.uploads, super::limits(&[], &[], None).uploads), (3, Limits::default().uploads));
        let at = |hour: u16| {
            let Caps { upload, download } = limits.caps_at(hour * 60);
            (upload.map(|ByteSize(bytes)| bytes), download.map(|ByteSize(bytes)| bytes))
        };
        assert_eq!(
            [at(4), at(5), at(7), at(12), at(23)],
            [(None, None), (None, Some(30)), (Some(10), Some(30)), (Some(10), None), (None, None),]
        );
        assert_eq!(super::limits(&[], &[], None).caps, Caps::default());
    }

    #[test]
    fn machine_that_spares_its_line_is_no_relay_unless_a_rate_is_named() {
        let rate: ByteRate = "20 MB/s".parse().expect("a rate");
        let passes_on = |no, rate, spares| relaying(no, rate, spares).passes_on;
        assert!(passes_on(false, None, false) && passes_on(false, Some(rate), true));
        assert!(!passes_on(false, None, true) && !passes_on(true, None, false));
        assert_eq!(relaying(false, Some(rate), true).rate, Some(ByteSize(20_000_000)));
        for wrong in ["", "fast", "0", "none", "22:00-06:00=1MB/s"] {
            assert!(wrong.parse::<ByteRate>().is_err(), "{wrong}");
        }
    }
}
