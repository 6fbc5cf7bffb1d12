//! `comfy-farm node`.

use std::io::{BufRead, IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use mesh::origin::Tokens;
use node::agent::{Agent, AgentConfig, Rebuilding};
use node::engine::Engine;
use node::engine::builtin::{Builtin, BuiltinOptions};
use node::engine::comfyui::client::AddressError;
use node::engine::comfyui::{ComfyUi, ComfyUiOptions};
use node::engine::managed::{Managed, ManagedConfig};
use node::gpu::{self, cpu, cpu_slots};
use node::sandbox::Sandbox;
use node::terms::{EngineTerms, Terms};
use node::workspace::COMFY_REGISTRY;
use node::workspace::python::UvConfig;
use protocol::{Accelerator, Device};
use tokio_util::sync::CancellationToken;

use crate::args::NodeArguments;
use crate::commands::{asked_to_stop, read_ticket};
use crate::environment;
use crate::failure::Failure;
use crate::settings::{EngineSettings, ManagedSettings, NodeSettings, SettingsError, SettingsFile};

pub(super) async fn node(arguments: NodeArguments, file: SettingsFile) -> anyhow::Result<()> {
    let settings = NodeSettings::resolve(arguments, file)?;
    let ticket = settings.join.as_deref().map(read_ticket).transpose()?;
    let found = gpu::find();
    let gpus = found.cards.clone();
    let choice = settings.engine.clone().unwrap_or(match gpus.is_empty() {
        true => EngineSettings::Builtin,
        false => EngineSettings::Managed,
    });
    let made = match choice {
        EngineSettings::Builtin => builtin(&settings),
        EngineSettings::Attached(url) => attached(url, settings.comfyui_stall, gpus)?,
        EngineSettings::Managed => managed(&settings, found.accelerator, slots(settings.slots, gpus)?).await,
    };
    let Made { engine, devices, rebuilding, terms } = made;
    agree(&settings, &Terms::of(found, devices.len(), terms, &settings.data))?;

    let agent = Agent::start(AgentConfig {
        data: settings.data,
        ticket,
        labels: settings.labels,
        data_listen: settings.data_listen,
        mesh_listen: settings.listen,
        mdns: settings.mdns,
        quota: settings.quota.map(|quota| quota.0),
        limits: settings.limits,
        relaying: settings.relaying,
        models: settings.models,
        tokens: Tokens::from_variables(environment::host_token)?,
        private_origins: settings.private_origins,
        engine,
        rebuilding,
        devices,
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

/// An engine, and what its owner is told of it.
struct Made {
    engine: Arc<dyn Engine>,
    devices: Vec<Device>,
    rebuilding: Option<Rebuilding>,
    terms: EngineTerms,
}

fn builtin(settings: &NodeSettings) -> Made {
    let options = BuiltinOptions { pause_per_op: settings.builtin_pause, ..BuiltinOptions::default() };
    let engine = Arc::new(Builtin::new(options));
    let devices = cpu_slots(settings.slots.unwrap_or(1));
    Made { engine, devices, rebuilding: None, terms: EngineTerms::Builtin }
}

fn attached(url: String, stall: Option<Duration>, gpus: Vec<Device>) -> Result<Made, AddressError> {
    // One ComfyUI runs one prompt at a time, on the first card unless its owner chose otherwise.
    let device = gpus.into_iter().next().unwrap_or_else(cpu);
    let mut options = ComfyUiOptions::default();
    options.stall_after = stall.unwrap_or(options.stall_after);
    let engine = Arc::new(ComfyUi::new(&url, options)?);
    Ok(Made { engine, devices: vec![device], rebuilding: None, terms: EngineTerms::Attached { url } })
}

/// What the slots compute on: each card, or the processor where there is none.
fn slots(wished: Option<u16>, gpus: Vec<Device>) -> Result<Vec<Device>, SettingsError> {
    match (wished, gpus.len()) {
        (wished, 0) => Ok(cpu_slots(wished.unwrap_or(1))),
        (None, _) => Ok(gpus),
        (Some(wished), cards) => Err(SettingsError::Flag(format!(
            "`--slots {wished}` is for machines without a graphics card: this one has {cards}, and each is a slot"
        ))),
    }
}

async fn managed(settings: &NodeSettings, accelerator: Accelerator, devices: Vec<Device>) -> Made {
    let ManagedSettings { policy, comfyui_args, comfyui_idle, .. } = &settings.managed;
    let folder = settings.data.join("workspaces");
    let (sandbox, no_walls) = match settings.managed.sandbox {
        false => (None, Some("you wish it so (`--no-sandbox`)".to_owned())),
        true => match Sandbox::find().await {
            Ok(sandbox) => (Some(sandbox), None),
            Err(reason) => (None, Some(reason.to_string())),
        },
    };
    let mut config = ManagedConfig::new(folder.join("slots"), devices.clone());
    config.arguments = comfyui_args.clone();
    config.idle = comfyui_idle.unwrap_or(config.idle);
    config.comfyui.stall_after = settings.comfyui_stall.unwrap_or(config.comfyui.stall_after);
    config.sandbox = sandbox.clone();
    let engine = Arc::new(Managed::new(config));
    let mut uv = UvConfig::new(folder.join("uv"));
    uv.sandbox = sandbox;
    if let Some(index) = &settings.managed.package_index {
        uv.indexes.packages.clone_from(index);
    }
    if let Some(index) = &settings.managed.torch_index {
        uv.indexes.torch = Some(index.clone());
    }
    let everybodys = || COMFY_REGISTRY.parse().expect("the constant is an https URL");
    let registry = settings.managed.comfy_registry.clone().unwrap_or_else(everybodys);
    let quota = settings.managed.workspace_quota.map(|quota| quota.0);
    let rebuilding =
        Rebuilding { policy: policy.clone(), registry, uv, accelerator, quota, engine: Arc::clone(&engine) };
    let terms = EngineTerms::Managed { policy: policy.clone(), no_walls };
    Made { engine, devices, rebuilding: Some(rebuilding), terms }
}

/// Prints what the machine would lend, and asks on a terminal.
fn agree(settings: &NodeSettings, terms: &Terms) -> Result<(), Failure> {
    eprint!("{terms}");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_the_cards_or_as_many_as_wished_that_share_the_processor() {
        let card = Device::Gpu { name: "RTX".to_owned(), uuid: "GPU-1".to_owned(), memory: 1 };
        assert_eq!(slots(None, vec![card.clone()]).expect("a card"), vec![card.clone()]);
        let refused = slots(Some(2), vec![card]).expect_err("it has a card").to_string();
        assert!(refused.contains("`--slots 2`") && refused.contains("each is a slot"), "{refused}");
        assert_eq!(slots(None, vec![]).expect("the processor"), [cpu()]);
        let shared = slots(Some(32), vec![]).expect("the processor");
        let Device::Cpu { threads, memory } = cpu() else { panic!("a processor") };
        let share = Device::Cpu { threads: (threads / 32).max(1), memory };
        assert_eq!((shared.len(), &shared[31]), (32, &share));
    }
}
