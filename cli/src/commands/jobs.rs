//! `comfy-farm jobs`.

use serde_json::Value;

use crate::args::JobsArguments;
use crate::commands::{connect, text};
use crate::settings::SettingsFile;
use crate::show;

pub(super) async fn jobs(arguments: &JobsArguments, file: &SettingsFile) -> anyhow::Result<()> {
    let (client, json) = connect(&arguments.tool, file);
    let mut path = format!("/v1/jobs?limit={}", arguments.limit);
    for (name, value) in [("state", &arguments.state), ("workflow", &arguments.workflow)] {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={value}"));
        }
    }
    let answer = client.get(&path).await?;
    if json {
        show::json(&answer);
        return Ok(());
    }
    let jobs = answer["jobs"].as_array().map(Vec::as_slice).unwrap_or_default();
    if jobs.is_empty() {
        println!("no jobs; submit one with `comfy-farm run NAME key=value`");
        return Ok(());
    }
    let rows: Vec<_> = jobs.iter().map(row).collect();
    show::table(&["JOB", "WORKFLOW", "STATE", "SUBMITTED", "REMARK"], &rows);
    Ok(())
}

fn row(job: &Value) -> Vec<String> {
    let remark = match text(job, "state") {
        "running" => text(&job["run"], "phase").to_owned(),
        "queued" => waits_for(job),
        "failed" => text(&job["error"], "detail").to_owned(),
        _ => String::new(),
    };
    let submitted = text(job, "submitted").split('.').next().unwrap_or_default();
    let remark = remark.lines().next().unwrap_or_default();
    [text(job, "id"), text(job, "workflow"), text(job, "state"), submitted, remark]
        .map(str::to_owned)
        .to_vec()
}

/// The first node's reason, which says more than the one of the farm as a whole.
fn waits_for(job: &Value) -> String {
    let mut waits = job["waits"].as_array().into_iter().flatten();
    match waits.find(|wait| !wait["node"].is_null()) {
        Some(wait) => format!("node {}: {}", show::short_peer(text(wait, "node")), text(wait, "reason")),
        None => text(&job["waits"][0], "reason").to_owned(),
    }
}
