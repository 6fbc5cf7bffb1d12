//! The same transfer by others: runs `transfer_peers.sh`, which knows how each of them is called, and reads
//! what it measured.
//!
//! Not here: the script itself; it lies beside the checkout, in `shared/bench`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::settings::Settings;
use crate::table::{Beside, GIB, Line, MIB};

/// How the script starts what is ours.
pub(crate) struct Ours {
    pub(crate) name: &'static str,
    pub(crate) seed: String,
    pub(crate) get: String,
}

impl Ours {
    /// `blob share` and `blob get`; those who fetch go on serving each other where `swarm` is set.
    pub(crate) fn of(farm: &Path, is_swarm: bool) -> Self {
        let farm = farm.display();
        let share = format!("'{farm}' blob share \"$FILE\" --listen \"$ADDR:$PORT\"");
        let get = format!("'{farm}' blob get @\"$META/ticket\" -o \"$OUT\" --listen \"$ADDR:$PORT\"");
        let get = if is_swarm { format!("{get} --keep-serving | {WHEN_DONE}") } else { get };
        Self { name: "comfy-farm", seed: format!("{share} >\"$META/ticket\" & {UNTIL_READY}"), get }
    }

    /// The same over QUIC alone.
    pub(crate) fn over_quic(benches: &Path) -> Self {
        let benches = benches.display();
        let share = format!("'{benches}' share --plane quic --listen \"$ADDR:$PORT\" \"$FILE\"");
        let seed = format!("{share} >\"$META/ticket\" & {UNTIL_READY}");
        let get = format!(
            "'{benches}' get --plane quic --listen \"$ADDR:$PORT\" --output \"$OUT\" \"$META/ticket\""
        );
        Self { name: "comfy-farm, QUIC alone", seed, get }
    }
}

const UNTIL_READY: &str = "while [ ! -s \"$META/ticket\" ]; do sleep .02; done; touch \"$READY\"; wait";
/// It waits for the line that says so: to look again and again would take the processor from those measured.
const WHEN_DONE: &str =
    "{ read -r; date +%s.%N >\"$DONE.t\"; mv \"$DONE.t\" \"$DONE\"; exec cat >/dev/null; }";

/// One transfer, as the script tells of it.
#[derive(Debug, Deserialize)]
struct Transfer {
    peer: String,
    n: u32,
    size: f64,
    wall: f64,
    cpu_seed: f64,
    cpu_recv: f64,
    seed_tx: f64,
    ok: String,
}

/// Runs one shape of the script, `pair` or `swarm`; `least` is what the links allow at the best, where they
/// are shaped.
pub(crate) fn transfers(
    settings: &Settings,
    shape: &str,
    peers: &str,
    ours: &Ours,
    least: Option<f64>,
) -> Result<Vec<Line>> {
    let folder = tempfile::tempdir()?;
    let told = folder.path().join("transfers.json");
    let mut command = script(settings, shape, peers, ours)?;
    command.arg("--json").arg(&told);
    let (printed, said) = run(&mut command)?;
    let text = fs::read_to_string(&told).unwrap_or_default();
    ensure!(!text.is_empty(), "the script of the rivals measured nothing: {printed}{said}");
    let transfers = text.lines().map(serde_json::from_str::<Transfer>);
    lines(shape, transfers.collect::<Result<Vec<_>, _>>()?, ours.name, least)
}

/// What the script says of a receiver that is killed in the middle and started again.
pub(crate) fn resumed(settings: &Settings, peers: &str, ours: &Ours) -> Result<Vec<Line>> {
    let (text, said) = run(script(settings, "resume", peers, ours)?.args(["--rate", "400mbit"]))?;
    let rows = text.lines().filter_map(|line| {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let [_, peer, before, all, again, ok, _] = cells[..] else { return None };
        let name = if peer == "ours" { ours.name } else { peer };
        let note = format!("killed at {before} MiB, {all} MiB sent in all, {again} MiB over the size");
        let mut line = Line::new("killed and resumed", name, 0.0, Beside::Nothing).with_note(note);
        line.seconds.clear();
        matches!(ok, "yes" | "no").then(|| Line { has_failed: ok == "no", ..line })
    });
    let rows: Vec<_> = rows.collect();
    ensure!(!rows.is_empty(), "the script of the rivals resumed nothing: {text}{said}");
    Ok(rows)
}

/// What the script prints and what it complains of. Its exit status is that of its tidying up, so whether it
/// worked shows in its results.
fn run(script: &mut Command) -> Result<(String, String)> {
    let output = script.output().context("the script of the rivals cannot be run")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((text(&output.stdout), text(&output.stderr)))
}

fn script(settings: &Settings, shape: &str, peers: &str, ours: &Ours) -> Result<Command> {
    let script = settings.script.as_ref().context("the script of the rivals is not there")?;
    let mut command = Command::new("bash");
    command.arg(script).arg(shape).args(["--peers", peers]);
    command.args(["--reps", &settings.repetitions.to_string()]);
    command.args(["--pair-mib", &settings.mib(2048).to_string()]);
    command.args(["--swarm-mib", &settings.mib(256).to_string()]);
    command.env("OURS_SEED", &ours.seed).env("OURS_GET", &ours.get);
    Ok(command)
}

fn lines(shape: &str, transfers: Vec<Transfer>, ours: &str, least: Option<f64>) -> Result<Vec<Line>> {
    let mut merged: Vec<(String, Vec<Line>)> = Vec::new();
    let mut seconds: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for transfer in &transfers {
        let delivered = transfer.size * f64::from(transfer.n);
        let who = if transfer.peer == "ours" { ours } else { &transfer.peer };
        let mut line = Line::new(shape, who, transfer.wall, Beside::Nothing)
            .with_cpu((transfer.cpu_seed + transfer.cpu_recv) / delivered * GIB)
            .with_note(format!(
                "{} MiB, the seed sent {:.2} copies",
                transfer.size / MIB,
                transfer.seed_tx / transfer.size
            ));
        if transfer.ok != "yes" {
            line.has_failed = true;
            line.seconds.clear();
            line.cpu.clear();
        }
        seconds.entry(who.to_owned()).or_default().extend(&line.seconds);
        match merged.iter_mut().find(|(name, _)| name == who) {
            Some((_, lines)) => lines.push(line),
            None => merged.push((who.to_owned(), vec![line])),
        }
    }
    let curl = seconds.get("curl").and_then(|seconds| crate::table::median(seconds));
    let beside = match (least, curl) {
        (Some(least), _) => Beside::Links(least),
        (None, Some(curl)) => Beside::Rival("curl", curl),
        (None, None) => Beside::Nothing,
    };
    let lines = merged.into_iter().filter_map(|(_, lines)| Line::merged(lines));
    Ok(lines.map(|line| Line { beside: beside.clone(), ..line }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfers_of_one_peer_become_one_line_beside_curl() {
        let transfer = |peer: &str, wall, ok: &str| Transfer {
            peer: peer.to_owned(),
            n: 1,
            size: GIB,
            wall,
            cpu_seed: 1.0,
            cpu_recv: 1.0,
            seed_tx: GIB,
            ok: ok.to_owned(),
        };
        let transfers =
            [("curl", 1.0, "yes"), ("ours", 2.0, "yes"), ("curl", 1.0, "yes"), ("ours", 9.0, "no")];
        let transfers = transfers.map(|(peer, wall, ok)| transfer(peer, wall, ok)).into();
        let lines = lines("pair", transfers, "comfy-farm", None).expect("they are well-formed");
        let shown: Vec<_> = lines.iter().map(Line::to_string).collect();
        let note = "1024 MiB, the seed sent 1.00 copies";
        assert_eq!(
            shown,
            [
                format!("| pair | curl | 1.00 | 1.00 x curl | 2.00 | {note} |"),
                format!("| pair | comfy-farm | failed 2.00 | 2.00 x curl | 2.00 | {note} |")
            ]
        );
    }
}
