//! `comfy-farm node`.

use std::io::{BufRead, IsTerminal, Write};
use std::sync::Arc;

use mesh::origin::Tokens;
use node::agent::{Agent, AgentConfig};
use node::engine::Engine;
use node::engine::builtin::{Builtin, BuiltinOptions};
use node::engine::comfyui::{ComfyUi, ComfyUiOptions};
use node::gpu::{GpuProbe, cpu, system_probe};
use node::terms::{EngineTerms, Terms};
use tokio_util::sync::CancellationToken;

use crate::args::NodeArguments;
use crate::commands::{asked_to_stop, read_ticket};
use crate::environment;
use crate::failure::Failure;
use crate::settings::{NodeSettings, SettingsFile};

pub(super) async fn node(arguments: NodeArguments, file: SettingsFile) -> anyhow::Result<()> {
    let settings = NodeSettings::resolve(arguments, file)?;
    let ticket = settings.join.as_deref().map(read_ticket).transpose()?;
    let probe = system_probe();
    let (engine, device): (Arc<dyn Engine>, _) = match &settings.comfyui {
        // One ComfyUI runs one prompt at a time, on the first card unless its owner chose otherwise.
        Some(url) => {
            let gpu = probe.gpus().ok().and_then(|gpus| gpus.into_iter().next());
            (Arc::new(ComfyUi::new(url, ComfyUiOptions::default())?), gpu.unwrap_or_else(cpu))
        }
        None => {
            let options =
                BuiltinOptions { pause_per_op: settings.builtin_pause, ..BuiltinOptions::default() };
            (Arc::new(Builtin::new(options)), cpu())
        }
    };
    agree(&settings, &probe)?;

    let agent = Agent::start(AgentConfig {
        data: settings.data,
        ticket,
        labels: settings.labels,
        data_listen: settings.data_listen,
        mesh_listen: settings.listen,
        mdns: settings.mdns,
        quota: settings.quota.map(|quota| quota.0),
        limits: settings.limits,
        models: settings.models,
        tokens: Tokens::from_variables(environment::host_token)?,
        private_origins: settings.private_origins,
        engine,
        devices: vec![device],
    })
    .await?;
    println!("node {} of farm {}", agent.peer(), agent.belonging().farm);

    let stop = CancellationToken::new();
    let serving = tokio::spawn(agent.serve(stop.clone()));
    asked_to_stop().await;
    stop.cancel();
    serving.await?;
    Ok(())
}

/// Prints what the machine would lend, and asks on a terminal.
fn agree(settings: &NodeSettings, probe: &impl GpuProbe) -> Result<(), Failure> {
    let engine = match &settings.comfyui {
        Some(url) => EngineTerms::Attached { url: url.clone() },
        None => EngineTerms::Builtin,
    };
    eprint!("{}", Terms::of(probe, engine, &settings.data));
    if settings.yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::NotAgreed("nobody is here to agree to this".to_owned()));
    }
    eprint!("Join? [y/N] ");
    // If the prompt cannot be shown, the answer below still decides.
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    match (read, answer.trim().to_lowercase().as_str()) {
        (Ok(_), "y" | "yes") => Ok(()),
        _ => Err(Failure::NotAgreed("not joined, as you wish".to_owned())),
    }
}
