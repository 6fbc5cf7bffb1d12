//! Measures what moves bytes, beside whatever else is installed that does, and prints one table.
//!
//! `benches/run [ROW]...`, as root and with nothing else running: it makes
//! network namespaces, shapes their links and starts real processes in them. `--smaller 16` takes a minute
//! in place of a quarter of an hour. The processes that it needs besides `comfy-farm` are its own
//! subcommands. Not here: tests; nothing fails because it was slow.

mod settings;
mod table;
mod limits;
mod rows;
mod rivals;
mod lab;
mod left;
mod processes;
mod carry;
mod forward;
mod origin;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};

use crate::carry::PlaneName;
use crate::rivals::Ours;
use crate::settings::{MeasureArguments, Row, Settings};
use crate::table::{HEAD, Line, MIB};

#[derive(Debug, Parser)]
#[command(about, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    process: Option<Process>,
    #[command(flatten)]
    measure: MeasureArguments,
}

/// A process of a row.
#[derive(Debug, Subcommand)]
enum Process {
    /// Serves a file over one plane.
    #[command(hide = true)]
    Share(carry::Share),
    /// Fetches it.
    #[command(hide = true)]
    Get(carry::Get),
    /// Is a path that is far and loses packets.
    #[command(hide = true)]
    Forward(forward::Forward),
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match arguments.process {
        Some(Process::Share(share)) => carry::share(share).await,
        Some(Process::Get(get)) => carry::get(get).await,
        Some(Process::Forward(forward)) => forward::forward(&forward),
        None => measure(&Settings::new(arguments.measure)?).await,
    }
}

/// Prints the lines of each row as soon as they are there; a row that fails is told, does not end the others,
/// and makes the whole fail.
async fn measure(settings: &Settings) -> Result<()> {
    left::remove()?;
    println!("{HEAD}");
    let mut failed = Vec::new();
    for row in &settings.rows {
        let lines = match row {
            Row::Limits => limits::measure(settings.mib(2048)).await,
            row => tokio::task::block_in_place(|| lines(settings, *row)),
        };
        match lines {
            Ok(lines) => lines.iter().for_each(|line| println!("{line}")),
            Err(error) => {
                eprintln!("{row:?}: {error:#}");
                failed.push(*row);
            }
        }
    }
    ensure!(failed.is_empty(), "not measured: {failed:?}");
    Ok(())
}

fn lines(settings: &Settings, row: Row) -> Result<Vec<Line>> {
    let farm = &settings.farm;
    let with_rivals = format!("{},ours", settings.rivals);
    let repeated = |measure: &dyn Fn() -> Result<Line>| -> Result<Vec<Line>> {
        let lines = (0..settings.repetitions).map(|_| measure()).collect::<Result<Vec<_>>>()?;
        Ok(Line::merged(lines).into_iter().collect())
    };
    match row {
        Row::Limits => Ok(Vec::new()),
        Row::Pair => rivals::transfers(settings, "pair", &with_rivals, &Ours::of(farm, false), None),
        Row::Quic => {
            let ours = Ours::over_quic(&std::env::current_exe()?);
            rivals::transfers(settings, "pair", "curl,ours", &ours, None)
        }
        Row::Swarm => {
            let least = settings.mib(256) as f64 * MIB * 8.0 / 200e6;
            rivals::transfers(settings, "swarm", &with_rivals, &Ours::of(farm, true), Some(least))
        }
        Row::Resume => rivals::resumed(settings, &with_rivals, &Ours::of(farm, false)),
        Row::Unequal => repeated(&|| rows::unequal(settings)),
        Row::Disk => repeated(&|| rows::disk(settings)),
        Row::Collection => repeated(&|| rows::collection(settings)),
        Row::Liar => repeated(&|| rows::liar(settings)),
        Row::Stall => repeated(&|| rows::stall(settings)),
        Row::Origin => repeated(&|| rows::origin(settings)),
        Row::OriginKilled => repeated(&|| rows::origin_killed(settings)),
        Row::Loss => {
            let planes = [None, Some(PlaneName::Tls), Some(PlaneName::Quic)];
            let lines = planes.into_iter().map(|plane| repeated(&|| rows::loss(settings, plane)));
            Ok(lines.collect::<Result<Vec<_>>>()?.concat())
        }
    }
}
