//! `comfy-farm invite`: the ticket alone on stdout, remarks on stderr.

use serde_json::json;

use crate::args::InviteArguments;
use crate::commands::{connect, text};
use crate::settings::SettingsFile;
use crate::show;

pub(super) async fn invite(arguments: &InviteArguments, file: &SettingsFile) -> anyhow::Result<()> {
    let (client, json) = connect(&arguments.tool, file);
    let body = json!({ "uses": arguments.uses, "lifetime_seconds": arguments.hours * 3600 });
    let answer = client.post("/v1/invites", &body).await?;
    if json {
        show::json(&answer);
        return Ok(());
    }
    println!("{}", text(&answer, "ticket"));
    if answer["loopback_only"] == true {
        eprintln!(
            "note: this ticket works on this machine only; start the coordinator with `--announce ADDR` for others"
        );
    }
    Ok(())
}
