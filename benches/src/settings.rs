//! What is measured, how large and how often.
//!
//! Not here: the rows themselves.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

/// A part of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Row {
    /// What memory, hashing and TLS allow on this machine.
    Limits,
    /// One file from one process to another over loopback.
    Pair,
    /// The same over QUIC alone.
    Quic,
    /// One file to eight nodes over links of 200 Mbit/s.
    Swarm,
    /// Four sources of unequal links.
    Unequal,
    /// One large file to four nodes on the disk.
    Disk,
    /// Ten thousand small files at once.
    Collection,
    /// A receiver that is killed in the middle.
    Resume,
    /// A source that sends wrong bytes beside one that does not.
    Liar,
    /// A source that falls silent beside one that does not.
    Stall,
    /// A link of 100 Mbit/s with 50 ms and 1 % loss.
    Loss,
    /// A file of the internet to eight nodes behind one uplink of 100 Mbit/s.
    Origin,
    /// The same, and the node that read most of it is killed in the middle.
    OriginKilled,
}

#[derive(Debug, Args)]
pub(crate) struct MeasureArguments {
    /// The rows; all of them if none is named.
    rows: Vec<Row>,
    /// How much smaller the files are than those that the results in `docs/performance.md` are of.
    #[arg(long, default_value_t = 1)]
    smaller: u64,
    /// How often each row is measured.
    #[arg(long, default_value_t = 3)]
    repetitions: u32,
    /// The `comfy-farm` to measure. Defaults to the one beside this program.
    #[arg(long)]
    farm: Option<PathBuf>,
    /// The script that runs the rivals.
    #[arg(long, default_value = "../shared/bench/transfer_peers.sh")]
    script: PathBuf,
    /// The rivals, separated by commas, of those that the script knows. Those not installed are left out.
    #[arg(long, default_value = "curl,curl+tls,curl+b3sum,rsync,aria2bt,libtorrent,sendme")]
    rivals: String,
}

/// The arguments, checked.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) rows: Vec<Row>,
    pub(crate) repetitions: u32,
    pub(crate) farm: PathBuf,
    /// `None` where it is missing: the rows that need it are left out.
    pub(crate) script: Option<PathBuf>,
    pub(crate) rivals: String,
    smaller: u64,
}

impl Settings {
    pub(crate) fn new(arguments: MeasureArguments) -> Result<Self> {
        let MeasureArguments { mut rows, smaller, repetitions, farm, script, rivals } = arguments;
        ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root");
        if rows.is_empty() {
            rows = Row::value_variants().to_vec();
        }
        let farm = match farm {
            Some(farm) => farm,
            None => std::env::current_exe()?.with_file_name("comfy-farm"),
        };
        let farm = farm.canonicalize().with_context(|| format!("no `{}`", farm.display()))?;
        let script = script.canonicalize().ok();
        Ok(Self { rows, repetitions: repetitions.max(1), farm, script, rivals, smaller: smaller.max(1) })
    }

    /// This many MiB, or less where less was asked for.
    pub(crate) fn mib(&self, mib: u64) -> u64 {
        (mib / self.smaller).max(4)
    }

    /// This many things, or less where less was asked for.
    pub(crate) fn count(&self, count: u64) -> u64 {
        (count / self.smaller).max(10)
    }
}
