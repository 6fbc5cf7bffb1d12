//! `comfy-farm nodes`.

use serde_json::Value;

use crate::args::ToolArguments;
use crate::commands::{connect, text};
use crate::settings::SettingsFile;
use crate::show;

pub(super) async fn nodes(arguments: &ToolArguments, file: &SettingsFile) -> anyhow::Result<()> {
    let (client, json) = connect(arguments, file);
    let answer = client.get("/v1/nodes").await?;
    if json {
        show::json(&answer);
        return Ok(());
    }
    let nodes = answer["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    if nodes.is_empty() {
        println!(
            "no nodes; make a ticket with `comfy-farm invite` and join with `comfy-farm node --join TICKET`"
        );
        return Ok(());
    }
    let rows: Vec<_> = nodes.iter().map(row).collect();
    show::table(&["NODE", "HOST", "ENGINE", "STATE", "SLOTS", "RUNS"], &rows);
    Ok(())
}

fn row(node: &Value) -> Vec<String> {
    let slots = node["slots"].as_array().map(Vec::as_slice).unwrap_or_default();
    let runs = slots.iter().filter(|slot| !slot["run"].is_null()).count();
    let cells = [text(node, "peer"), text(node, "host_name"), text(&node["engine"], "kind"), state(node)];
    let mut row = cells.map(str::to_owned).to_vec();
    row.extend([slots.len().to_string(), runs.to_string()]);
    row
}

fn state(node: &Value) -> &'static str {
    match (node["connected"].as_bool(), node["draining"].as_bool()) {
        (Some(false) | None, _) => "lost",
        (_, Some(true)) => "draining",
        _ => "connected",
    }
}
