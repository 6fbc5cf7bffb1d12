//! Rows with a source that does harm, beside one that does not.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::signal::Signal;

use super::{LONGEST, Scene, in_memory};
use crate::processes::{Running, share};
use crate::settings::Settings;
use crate::table::{Beside, Line};

/// What each link carries.
const MBIT: u64 = 200;

/// Of two sources one alters every sixteenth piece; the least is what the other alone needs.
pub(crate) fn liar(settings: &Settings) -> Result<Line> {
    let mib = settings.mib(256);
    let scene = Scene::new(settings, 3, in_memory()?, mib)?;
    let benches = std::env::current_exe()?;
    let mut lying = scene.lab.command(0, &benches.to_string_lossy());
    lying.args(["share", "--plane", "tls", "--lie", "--listen", &scene.lab.address(0).to_string()]);
    // The honest one fetches first, from an honest sharer of the same ticket's farm.
    let honest = scene.honest_beside(&mut lying)?;
    (0..3).try_for_each(|node| scene.lab.shape(node, MBIT))?;
    let took = scene.fetch([2].into_iter())?;
    drop(honest);
    let least = scene.size()? * 8.0 / (MBIT as f64 * 1e6);
    let note = format!("{mib} MiB; the other source alone needs 1.00 x links");
    Ok(Line::new("a source that lies", "comfy-farm", took, Beside::Links(least)).with_note(note))
}

impl Scene<'_> {
    /// A node that holds everything, and then the liar, who alters what it shares from now on.
    fn honest_beside(&self, lying: &mut std::process::Command) -> Result<(Running, Running)> {
        let liar = share(lying.arg(&self.file), &self.ticket)?;
        let honest = self.provider(1)?;
        liar.signal(Signal::SIGUSR1)?;
        Ok((liar, honest))
    }
}

/// Of two sources one stops in the middle and says nothing any more.
pub(crate) fn stall(settings: &Settings) -> Result<Line> {
    let mib = settings.mib(256);
    let scene = Scene::new(settings, 3, in_memory()?, mib)?;
    let sharer = scene.share()?;
    let provider = scene.provider(1)?;
    (0..3).try_for_each(|node| scene.lab.shape(node, MBIT))?;
    let least = scene.size()? * 8.0 / (MBIT as f64 * 1e6);
    let began = Instant::now();
    let getting = Running::start(&mut scene.get(2))?;
    sleep(Duration::from_secs_f64(least / 4.0));
    provider.signal(Signal::SIGSTOP)?;
    getting.finish(LONGEST)?;
    let took = began.elapsed().as_secs_f64();
    provider.signal(Signal::SIGCONT)?;
    drop((sharer, provider));
    let note = format!("{mib} MiB; one of two sources stops after a quarter");
    Ok(Line::new("a source that stalls", "comfy-farm", took, Beside::Links(least)).with_note(note))
}
