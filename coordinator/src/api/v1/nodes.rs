//! The nodes of the farm: who they are, what they do, and whether they take more.
//!
//! Not here: which node gets which job.

use axum::Json;
use axum::extract::State;
use protocol::PeerId;

use crate::api::Api;
use crate::api::error::ApiError;
use crate::api::extract::{NoQuery, Path};
use crate::api::v1::model::node::{Node, Nodes};

/// All nodes that the coordinator knows
#[utoipa::path(get, path = "/v1/nodes", tag = "nodes", responses((status = 200, body = Nodes)))]
pub(super) async fn list_nodes(State(api): State<Api>, _: NoQuery) -> Result<Json<Nodes>, ApiError> {
    let nodes = api.coordinator.nodes().await?.into_iter().map(Node::from).collect();
    Ok(Json(Nodes { nodes }))
}

/// One node
#[utoipa::path(
    get,
    path = "/v1/nodes/{peer}",
    tag = "nodes",
    params(("peer" = String, Path, description = "The node's peer id")),
    responses((status = 200, body = Node)),
)]
pub(super) async fn get_node(
    State(api): State<Api>,
    Path(peer): Path<String>,
    _: NoQuery,
) -> Result<Json<Node>, ApiError> {
    let peer = parse_peer(&peer)?;
    let node = api.coordinator.nodes().await?.into_iter().find(|node| node.peer == peer);
    node.map(|node| Json(node.into())).ok_or_else(|| unknown(peer))
}

/// Give a node no more runs; what it runs, it ends, and it still serves its blobs
#[utoipa::path(
    post,
    path = "/v1/nodes/{peer}/drain",
    tag = "nodes",
    params(("peer" = String, Path, description = "The node's peer id")),
    responses((status = 200, body = Node)),
)]
pub(super) async fn drain_node(
    State(api): State<Api>,
    Path(peer): Path<String>,
    _: NoQuery,
) -> Result<Json<Node>, ApiError> {
    set_draining(&api, &peer, true).await
}

/// Give a drained node runs again
#[utoipa::path(
    post,
    path = "/v1/nodes/{peer}/undrain",
    tag = "nodes",
    params(("peer" = String, Path, description = "The node's peer id")),
    responses((status = 200, body = Node)),
)]
pub(super) async fn undrain_node(
    State(api): State<Api>,
    Path(peer): Path<String>,
    _: NoQuery,
) -> Result<Json<Node>, ApiError> {
    set_draining(&api, &peer, false).await
}

async fn set_draining(api: &Api, peer: &str, draining: bool) -> Result<Json<Node>, ApiError> {
    let peer = parse_peer(peer)?;
    let node = api.coordinator.set_draining(peer, draining).await?;
    node.map(|node| Json(node.into())).ok_or_else(|| unknown(peer))
}

fn parse_peer(text: &str) -> Result<PeerId, ApiError> {
    text.parse().map_err(|error: protocol::ParseIdError| ApiError::NotFound(error.to_string()))
}

fn unknown(peer: PeerId) -> ApiError {
    ApiError::NotFound(format!("this farm has no node `{peer}`"))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use axum::http::StatusCode;
    use protocol::{
        BlobName, Device, Engine, Fault, JobId, Offer, Phase, RunId, SlotId, SlotOffer, SourceName, Transfer,
        TransferSource, Transfers,
    };
    use serde_json::{Value, json};
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;
    use crate::api::testing::TestFarm;
    use crate::view::{NodeView, RunView};

    fn transfers(peer: PeerId) -> Transfers {
        let source = |from| TransferSource { from, plane: "tls".to_owned(), bytes: 3, rate: 2 };
        let sources = vec![source(SourceName::Peer(peer)), source(SourceName::Origin("hf.co".to_owned()))];
        let name = BlobName::Sha256(protocol::Sha256([2; 32]));
        let fault = Fault { peer, blob: name, reason: "a wrong byte".to_owned() };
        Transfers { transfers: vec![Transfer { name, size: 9, here: 6, sources }], faults: vec![fault] }
    }

    fn node(peer: PeerId) -> NodeView {
        let slot =
            |id: u16| SlotOffer { id: SlotId(id), device: Device::Cpu { threads: 4, memory: 8 << 30 } };
        let offer = Offer {
            host_name: "studio-3".to_owned(),
            agent_version: "0.1.0".to_owned(),
            platform: "linux-x86_64".to_owned(),
            engine: Engine::Attached { comfyui_version: "0.8.0".to_owned() },
            classes: BTreeSet::new(),
            models: BTreeSet::new(),
            slots: vec![slot(0), slot(1)],
        };
        let id = RunId(Uuid::nil());
        let run = RunView { id, node: peer, slot: SlotId(1), phase: Phase::Fetching, progress: None };
        NodeView {
            peer,
            connected: true,
            draining: false,
            offer,
            labels: BTreeMap::new(),
            address: Some([192, 0, 2, 7].into()),
            runs: vec![(JobId(Uuid::nil()), run)],
            workspaces: vec![],
            aside: vec![],
            blobs: 3,
            transfers: transfers(peer),
            seen: OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[tokio::test]
    async fn node_is_shown_with_its_slots_and_drained() {
        let farm = TestFarm::start().await;
        let peer = PeerId([9; 32]);
        farm.tables().nodes.push(node(peer));
        let (_, shown) = farm.get(&format!("/v1/nodes/{peer}")).await;
        assert_eq!(shown["engine"], json!({ "kind": "attached", "comfyui_version": "0.8.0" }));
        assert_eq!(
            (&shown["address"], &shown["seen"]),
            (&json!("192.0.2.7"), &json!("1970-01-01T00:00:00Z"))
        );
        assert_eq!(
            shown["slots"][0],
            json!({ "id": 0, "device": { "kind": "cpu", "threads": 4 }, "run": null })
        );
        let run = &shown["slots"][1]["run"];
        assert_eq!((&run["job"], &run["phase"]), (&json!(Uuid::nil()), &json!("fetching")));
        let transfer = &shown["transfers"][0];
        assert_eq!(transfer["blob"], format!("sha256:{}", "02".repeat(32)));
        assert_eq!(
            (&transfer["sources"][0]["peer"], &transfer["sources"][1]["host"]),
            (&json!(peer), &json!("hf.co"))
        );
        assert_eq!(shown["faults"][0]["reason"], "a wrong byte");
        let (status, drained) = farm.post(&format!("/v1/nodes/{peer}/drain"), Value::Null).await;
        assert_eq!((status, &drained["draining"]), (StatusCode::OK, &json!(true)));
        let (_, undrained) = farm.post(&format!("/v1/nodes/{peer}/undrain"), Value::Null).await;
        assert_eq!(undrained["draining"], false);
        for unknown in [PeerId([8; 32]).to_string(), "nobody".to_owned()] {
            let (status, _) = farm.post(&format!("/v1/nodes/{unknown}/drain"), Value::Null).await;
            assert_eq!(status, StatusCode::NOT_FOUND);
        }
    }
}
