//! Who serves the author's models: the node that runs on this machine, or else this process as a member
//! without slots.
//!
//! Not here: how long.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::bail;
use mesh::control::{Custodian, Progress, Reply, Request};
use mesh::limits::{Limits, Relaying};
use mesh::origin::Tokens;
use mesh::store::BlobEntry;
use node::agent::{Agent, AgentConfig};
use node::engine::builtin::{Builtin, BuiltinOptions};
use node::join::Belonging;
use protocol::message::AUTHOR_LABEL;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::commands::{read_ticket, text};
use crate::{settings, show};

/// Whoever serves.
pub(super) struct Author {
    /// Its peer id.
    pub(super) peer: String,
    data: PathBuf,
    serving: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Author {
    /// The node on this machine where it belongs to this farm, or this process, which joins and serves at
    /// this address.
    pub(super) async fn find(client: &Client, listen: Option<SocketAddr>) -> anyhow::Result<Self> {
        let farm = client.get("/v1/farm").await?;
        let farm = text(&farm, "farm");
        if let Some(author) = running_node(farm).await {
            return Ok(author);
        }
        let data = settings::author_data(farm)?;
        let ticket = match Belonging::load(&data.join("membership.json"))? {
            Some(_) => None,
            None => {
                let invite = json!({ "uses": 1, "lifetime_seconds": 600 });
                Some(read_ticket(text(&client.post("/v1/invites", &invite).await?, "ticket"))?)
            }
        };
        let agent = Agent::start(AgentConfig {
            data: data.clone(),
            ticket,
            labels: BTreeMap::from([(AUTHOR_LABEL.0.to_owned(), AUTHOR_LABEL.1.to_owned())]),
            data_listen: listen,
            mesh_listen: None,
            mdns: false,
            quota: None,
            limits: Limits::default(),
            // It is here for a while only.
            relaying: Relaying { passes_on: false, ..Relaying::default() },
            models: Vec::new(),
            tokens: Tokens::default(),
            private_origins: false,
            engine: Arc::new(Builtin::new(BuiltinOptions::default())),
            rebuilding: None,
            devices: Vec::new(),
        })
        .await?;
        let (peer, stop) = (agent.peer().to_string(), CancellationToken::new());
        let serving = tokio::spawn(agent.serve(stop.clone()));
        Ok(Self { peer, data, serving: Some((stop, serving)) })
    }

    /// Serves a file where it lies, and says which blob it is.
    pub(super) async fn serve(&self, file: &Path) -> anyhow::Result<BlobEntry> {
        let custodian = Custodian::find(&self.data).await?;
        let progress = show::ByteProgress::new();
        let adding = custodian.ask(Request::Add { path: file.to_owned() }, move |now| {
            if let Progress::Reading(now) = now {
                progress.show(now);
            }
        });
        adding.await?;
        let Reply::Listed(blobs) = custodian.ask(Request::List, |_| {}).await? else {
            bail!("the process answered something else: it may be of another version");
        };
        let found = blobs.into_iter().find(|blob| blob.in_place.iter().any(|place| place == file));
        match found {
            Some(blob) if blob.shared => Ok(blob),
            Some(_) => bail!("`{}` is listed in a `.comfy-farm-private` and not served", file.display()),
            None => bail!("`{}` could not be read or changed meanwhile", file.display()),
        }
    }

    /// Stops, where it was this process that served.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        if let Some((stop, serving)) = self.serving {
            stop.cancel();
            serving.await?;
        }
        Ok(())
    }
}

async fn running_node(farm: &str) -> Option<Author> {
    let data = settings::node_data(None).ok().filter(|data| data.is_dir())?;
    let belonging = Belonging::load(&data.join("membership.json")).ok()??;
    if belonging.farm.to_string() != farm {
        return None;
    }
    let is_running = matches!(Custodian::find(&data).await, Ok(Custodian::Process(_)));
    let peer = belonging.membership.member.body.peer.to_string();
    is_running.then_some(Author { peer, data, serving: None })
}
