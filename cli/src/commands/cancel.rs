//! `comfy-farm cancel`.

use crate::args::CancelArguments;
use crate::commands::{connect, text};
use crate::settings::SettingsFile;
use crate::show;

pub(super) async fn cancel(arguments: &CancelArguments, file: &SettingsFile) -> anyhow::Result<()> {
    let (client, json) = connect(&arguments.tool, file);
    let job = client.post(&format!("/v1/jobs/{}/cancel", arguments.job), &serde_json::json!({})).await?;
    if json {
        show::json(&job);
    } else {
        println!("job {} is {}", text(&job, "id"), text(&job, "state"));
    }
    Ok(())
}
