//! `comfy-farm coordinator`.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use coordinator::api::{self, ApiConfig};
use coordinator::handle::Invitation;
use coordinator::service::{Coordinator, CoordinatorConfig};
use mesh::control::ControlServer;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::args::CoordinatorArguments;
use crate::commands::asked_to_stop;
use crate::settings::{CoordinatorSettings, SettingsFile, admin_key_file};
use crate::show;

/// The first ticket is for a day and a handful of machines.
const FIRST_TICKET: Invitation = Invitation { uses: 16, lifetime: Duration::from_secs(24 * 3600) };

pub(super) async fn coordinator(arguments: CoordinatorArguments, file: SettingsFile) -> anyhow::Result<()> {
    let settings = CoordinatorSettings::resolve(arguments, file)?;
    // What is wrong with the address is found before a farm is made.
    let api = api::bind(ApiConfig {
        listen: settings.http,
        allowed_hosts: settings.allow_host,
        allowed_origins: settings.allow_origin,
        tls: settings.tls,
        insecure_http: settings.insecure_http,
        ..ApiConfig::default()
    })
    .await?;
    let coordinator = Coordinator::start(CoordinatorConfig {
        mesh_listen: vec![settings.listen],
        data_listen: settings.data_listen,
        mdns: settings.mdns,
        limits: settings.limits,
        relaying: settings.relaying,
        announce: settings.announce.clone(),
        lease_duration: settings.lease,
        heartbeat: settings.lease / 6,
        ..CoordinatorConfig::new(settings.data.clone())
    })
    .await?;
    if let Some(key) = &coordinator.first_key {
        write_private(&admin_key_file(&settings.data), key)?;
    }
    let stop = CancellationToken::new();
    let control = ControlServer::bind(&settings.data, coordinator.handle.blobs().clone())?;
    let commands = tokio::spawn(control.serve(stop.clone()));
    let server = api.serve(coordinator.handle.clone(), stop.clone()).await?;
    let ticket = coordinator.handle.invite(FIRST_TICKET).await?;

    if settings.json {
        show::json(&json!({
            "url": server.url,
            "ticket": ticket.to_string(),
            "key": coordinator.first_key,
            "addresses": ticket.addresses,
        }));
    } else {
        println!("page and API   {}", server.url);
        println!("mesh           {}", ticket.addresses.join("\n               "));
        if let Some(key) = &coordinator.first_key {
            println!("admin key      {key}");
            println!("               shown this once; tools on this machine find it in the data folder");
        }
        println!("join with      comfy-farm node --join {ticket}");
        if ticket.is_loopback_only() {
            println!(
                "               this ticket works on this machine only; `--announce ADDR` is for others"
            );
        }
        if settings.insecure_http && !settings.http.ip().is_loopback() {
            println!("warning        HTTP without encryption: keys and pictures can be read on the way");
        }
    }
    let failed = tokio::select! {
        () = asked_to_stop() => false,
        () = coordinator.failed() => true,
    };
    stop.cancel();
    server.stopped().await;
    commands.await?;
    coordinator.shutdown().await;
    ensure!(!failed, "the coordinator's store has failed; its log says why");
    Ok(())
}

/// Writes a file that only its owner can read.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    writeln!(file, "{text}")
}
