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
