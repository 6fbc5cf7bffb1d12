//! A row over a path that is far and loses packets.

use std::time::Instant;

use anyhow::Result;

use super::{LONGEST, Scene, in_memory};
use crate::carry::PlaneName;
use crate::lab::{Lab, run};
use crate::processes::{Running, is_same, share};
use crate::settings::Settings;
use crate::table::{Beside, Line};

const MBIT: u64 = 100;
/// One way; there and back it is 50 ms.
const DELAY_MS: u64 = 25;
const LOST_PER_MILLE: u64 = 10;
const ENDS: [&str; 2] = ["10.97.0.1", "10.97.0.2"];
const BETWEEN: usize = 2;

/// One file from one end to the other, over the plane or, without one, as `blob get` does it.
pub(crate) fn loss(settings: &Settings, plane: Option<PlaneName>) -> Result<Line> {
    let mib = settings.mib(64);
    let scene = Scene::new(settings, 3, in_memory()?, mib)?;
    let _path = join(&scene.lab, &scene)?;
    let benches = std::env::current_exe()?;
    let (program, name) = match plane {
        None => (settings.farm.clone(), "comfy-farm".to_owned()),
        Some(plane) => (benches, format!("comfy-farm, {} alone", plane.name())),
    };
    let command = |end: usize, action: &str| {
        let mut command = scene.lab.command(end, &program.to_string_lossy());
        match plane {
            None => command.args(["blob", action]),
            Some(plane) => command.args([action, "--plane", plane.name()]),
        };
        command.args(["--listen", &format!("{}:47000", ENDS[end])]);
        command
    };
    let sharer = share(command(0, "share").arg(&scene.file), &scene.ticket)?;
    let output = scene.output(1);
    let mut get = command(1, "get");
    match plane {
        None => get.arg(format!("@{}", scene.ticket.display())).arg("-o").arg(&output),
        Some(_) => get.arg("--output").arg(&output).arg(&scene.ticket),
    };
    let began = Instant::now();
    Running::start(get.stdout(std::process::Stdio::null()))?.finish(LONGEST)?;
    let took = began.elapsed().as_secs_f64();
    drop(sharer);
    anyhow::ensure!(is_same(&scene.file, &output)?, "other bytes came");
    let least = scene.size()? * 8.0 / (MBIT as f64 * 1e6);
    let note = format!("{mib} MiB, {MBIT} Mbit/s, 50 ms there and back, 1 % lost each way");
    Ok(Line::new("far and lossy", &name, took, Beside::Links(least)).with_note(note))
}

/// Puts one device of the forwarder into each end.
fn join(lab: &Lab, scene: &Scene<'_>) -> Result<Running> {
    let names = ["far0", "far1"];
    let benches = std::env::current_exe()?;
    let mut forward = lab.command(BETWEEN, &benches.to_string_lossy());
    forward.arg("forward").args(names);
    forward.args(["--delay-ms", &DELAY_MS.to_string(), "--lost-per-mille", &LOST_PER_MILLE.to_string()]);
    forward.args(["--mbit", &MBIT.to_string()]);
    let forwarder = share(&mut forward, &scene.folder.path().join("forwarder"))?;
    for (end, name) in names.into_iter().enumerate() {
        let inside = lab.name(end);
        run("ip", &["-n", &lab.name(BETWEEN), "link", "set", name, "netns", &inside])?;
        run("ip", &["-n", &inside, "addr", "add", ENDS[end], "peer", ENDS[1 - end], "dev", name])?;
        run("ip", &["-n", &inside, "link", "set", name, "up"])?;
    }
    Ok(forwarder)
}
