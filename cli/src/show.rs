//! What people see: the log on stderr, tables and progress on the terminal.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use mesh::folders::IndexProgress;
use serde_json::Value;
use tracing_subscriber::EnvFilter;

use crate::client::JobEvent;
use crate::environment;

/// Sends the log to stderr, as the environment says or at this level.
pub(crate) fn set_up_logging(default: &str) {
    let filter = EnvFilter::try_from_env(environment::LOG)
        .unwrap_or_else(|_| EnvFilter::new(format!("{default},libp2p_swarm=warn")));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::env::var(environment::LOG_FORMAT).is_ok_and(|format| format == "json") {
        log.json().init();
    } else {
        log.with_target(false).with_ansi(std::io::stderr().is_terminal()).init();
    }
}

/// Prints a value as one line of JSON.
pub(crate) fn json(value: &Value) {
    println!("{value}");
}

/// The end of a member's id, by which people tell it from others.
pub(crate) fn short_peer(peer: &str) -> &str {
    &peer[peer.len().saturating_sub(10)..]
}

/// Prints rows below a header, columns as wide as they need.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([header[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        println!("{}", padded.collect::<Vec<_>>().join("  ").trim_end());
    };
    line(header.to_vec());
    for row in rows {
        line(row.iter().map(String::as_str).collect());
    }
}

/// How a job goes: a bar on a terminal, plain lines elsewhere, both on stderr.
pub(crate) struct JobProgress {
    bar: Option<ProgressBar>,
    told: String,
}

impl JobProgress {
    pub(crate) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:32} {percent:>3}%  {msg}");
            ProgressBar::new(1000).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { bar, told: String::new() }
    }

    /// Shows what an event says.
    pub(crate) fn show(&mut self, event: &JobEvent) {
        let run = &event.data["run"];
        let phase = run["phase"].as_str().unwrap_or_default();
        let node = run["node"].as_str().unwrap_or_default();
        let node = short_peer(node);
        let text = match event.name.as_str() {
            "started" => format!("on node {node}"),
            "progress" => phase.to_owned(),
            "waits" => {
                format!("waits: {}", event.data["waits"][0]["reason"].as_str().unwrap_or("for a node"))
            }
            "requeued" => format!("waits again: {}", event.data["reason"].as_str().unwrap_or_default()),
            "ended" => event.data["state"].as_str().unwrap_or("ended").to_owned(),
            _ => return,
        };
        let fraction = run["progress"]["fraction"].as_f64();
        match &self.bar {
            Some(bar) => {
                if let Some(fraction) = fraction {
                    bar.set_position((fraction * 1000.0) as u64);
                }
                bar.set_message(text.clone());
            }
            // A line for each change of words, not for each step.
            None if text != self.told => eprintln!("  {text}"),
            None => {}
        }
        if self.bar.is_none() && event.name != "snapshot" {
            self.told = match event.name.as_str() {
                "progress" | "waits" => text,
                _ => String::new(),
            };
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Ends the program quietly where nobody reads any more what it prints, as before `| head`: the standard library
/// makes a panic of that.
pub(crate) fn end_with_the_reader() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let said = panic.payload().downcast_ref::<String>().map_or("", String::as_str);
        if said.starts_with("failed printing to stdout") && said.contains("Broken pipe") {
            std::process::exit(0);
        }
        usual(panic);
    }));
}

/// How far work on bytes is: a bar on a terminal, nothing elsewhere.
pub(crate) struct ByteProgress {
    bar: ProgressBar,
}

impl ByteProgress {
    pub(crate) fn new() -> Self {
        let style = ProgressStyle::with_template("{bar:32} {bytes} of {total_bytes}, {eta} left");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        Self { bar: ProgressBar::new(0).with_style(style) }
    }

    pub(crate) fn show(&self, now: IndexProgress) {
        self.bar.set_length(now.total);
        self.bar.set_position(now.done);
    }
}

impl Drop for ByteProgress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
