//! Deployed workflows and their versions. Not here: how one is deployed (`deploy`) or called (`submit`).

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use protocol::{ParseIdError, WorkflowSelector, WorkflowVersion, nearest};
use serde_json::Value;

use crate::api::Api;
use crate::api::error::ApiError;
use crate::api::extract::{self, NoQuery, Path};
use crate::api::v1::model::workflow::{RestoreRequest, Workflow, WorkflowDetail, Workflows};
use crate::api::v1::workflow_document;
use crate::view::DeployedWorkflow;

/// All versions of all workflows: by name, the current version of each first
#[utoipa::path(get, path = "/v1/workflows", tag = "workflows", responses((status = 200, body = Workflows)))]
pub(super) async fn list_workflows(State(api): State<Api>, _: NoQuery) -> Result<Json<Workflows>, ApiError> {
    let deployed = api.coordinator.workflows().await?;
    let is_current = |place: usize| place == 0 || deployed[place - 1].id.name != deployed[place].id.name;
    let workflows = deployed.iter().enumerate().map(|(place, one)| Workflow::new(one, is_current(place)));
    Ok(Json(Workflows { workflows: workflows.collect() }))
}

/// One workflow: the current version of a name, or the one that is named
#[utoipa::path(
    get,
    path = "/v1/workflows/{name}",
    tag = "workflows",
    params(("name" = String, Path, description = "`name` or `name@3`")),
    responses((status = 200, body = WorkflowDetail)),
)]
pub(super) async fn get_workflow(
    State(api): State<Api>,
    Path(name): Path<String>,
    _: NoQuery,
) -> Result<Json<WorkflowDetail>, ApiError> {
    let selector = parse_selector(&name)?;
    detail(&api, &selector).await.map(Json)
}

/// Make an older version of a name the current one
#[utoipa::path(
    post,
    path = "/v1/workflows/{name}/restore",
    tag = "workflows",
    params(("name" = String, Path, description = "The name, without a version")),
    request_body = RestoreRequest,
    responses((status = 200, body = WorkflowDetail)),
)]
pub(super) async fn restore_workflow(
    State(api): State<Api>,
    Path(name): Path<String>,
    _: NoQuery,
    extract::Json(request): extract::Json<RestoreRequest>,
) -> Result<Json<WorkflowDetail>, ApiError> {
    let selector = parse_selector(&name)?;
    if selector.version.is_some() {
        return Err(ApiError::field(
            "name",
            "unknown",
            "takes the name alone; the version goes into the body",
        ));
    }
    let restored = api
        .coordinator
        .restore(WorkflowVersion { name: selector.name.clone(), version: request.version })
        .await?;
    detail(&api, &WorkflowSelector { version: Some(restored.id.version), ..selector }).await.map(Json)
}

/// The OpenAPI document of one workflow: its typed call, and its outputs
#[utoipa::path(
    get,
    path = "/v1/workflows/{name}/openapi.json",
    tag = "workflows",
    params(("name" = String, Path, description = "`name` or `name@3`")),
    responses((status = 200, description = "An OpenAPI 3.1 document", body = Object)),
)]
pub(super) async fn get_workflow_openapi(
    State(api): State<Api>,
    Path(name): Path<String>,
    _: NoQuery,
) -> Result<Json<Value>, ApiError> {
    let selector = parse_selector(&name)?;
    let deployed = find(&api, &selector).await?;
    Ok(Json(workflow_document::of(&deployed, selector.version.is_some(), &api.openapi)))
}

/// The JSON schema of one workflow's input, with the ops behind its names
#[utoipa::path(
    get,
    path = "/v1/workflows/{name}/schema",
    tag = "workflows",
    params(("name" = String, Path, description = "`name` or `name@3`")),
    responses((
        status = 200,
        description = "`input_json_schema`, `input_nodes` and `output_nodes`",
        body = Object,
    )),
)]
pub(super) async fn get_workflow_schema(
    State(api): State<Api>,
    Path(name): Path<String>,
    _: NoQuery,
) -> Result<Json<Value>, ApiError> {
    let deployed = find(&api, &parse_selector(&name)?).await?;
    let interface = &deployed.interface;
    Ok(Json(serde_json::json!({
        "input_json_schema": interface.json_schema(),
        "input_nodes": interface.input_nodes(),
        "output_nodes": interface.output_nodes(),
    })))
}

/// Reads `name` or `name@3`; what cannot be a workflow's name is not found.
pub(super) fn parse_selector(text: &str) -> Result<WorkflowSelector, ApiError> {
    text.parse().map_err(|error: ParseIdError| ApiError::NotFound(error.to_string()))
}

/// The version that is meant.
pub(super) async fn find(api: &Api, selector: &WorkflowSelector) -> Result<Arc<DeployedWorkflow>, ApiError> {
    match api.coordinator.workflow(selector.clone()).await? {
        Some(deployed) => Ok(deployed),
        None => Err(ApiError::NotFound(unknown(selector, &api.coordinator.workflows().await?))),
    }
}

/// Says that none of these is the one that is meant, and which may be.
fn unknown(selector: &WorkflowSelector, deployed: &[Arc<DeployedWorkflow>]) -> String {
    let WorkflowSelector { name, version } = selector;
    let of_name = deployed.iter().map(|one| &one.id).filter(|id| id.name == *name);
    if let (Some(version), Some(latest)) = (version, of_name.map(|id| id.version).max()) {
        return format!(
            "no workflow `{name}@{version}` is deployed; the latest version is `{name}@{latest}`"
        );
    }
    let absent = format!("no workflow `{name}` is deployed");
    match nearest(name.as_str(), deployed.iter().map(|one| one.id.name.as_str())) {
        Some(meant) => format!("{absent}; did you mean `{meant}`?"),
        None => absent,
    }
}

async fn detail(api: &Api, selector: &WorkflowSelector) -> Result<WorkflowDetail, ApiError> {
    let deployed = find(api, selector).await?;
    let all = api.coordinator.workflows().await?;
    let of_name: Vec<u32> =
        all.iter().filter(|one| one.id.name == selector.name).map(|one| one.id.version).collect();
    let current = of_name.first() == Some(&deployed.id.version);
    let mut versions = of_name;
    versions.sort_unstable_by(|left, right| right.cmp(left));
    Ok(WorkflowDetail { workflow: Workflow::new(&deployed, current), versions })
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use serde_json::json;

    use super::*;
    use crate::api::testing::{TestFarm, deployed};

    #[tokio::test]
    async fn versions_are_listed_and_an_old_one_is_restored() {
        let farm = TestFarm::start().await;
        farm.tables().workflows.insert(0, Arc::new(deployed("paint", 2)));
        let (_, listed) = farm.get("/v1/workflows").await;
        let current: Vec<_> = listed["workflows"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| (&one["version"], &one["current"]))
            .collect();
        assert_eq!(current, [(&json!(2), &json!(true)), (&json!(1), &json!(false))]);
        let (_, old) = farm.get("/v1/workflows/paint@1").await;
        assert_eq!((&old["current"], &old["versions"]), (&json!(false), &json!([2, 1])));
        assert_eq!(old["url"], "/v1/workflows/paint@1/jobs");
        assert_eq!(
            old["inputs"][1],
            json!({
                "name": "seed", "title": "Seed", "type": "integer", "required": false, "default": 7, "minimum": 0, "maximum": 100,
            })
        );
        let (status, restored) = farm.post("/v1/workflows/paint/restore", json!({ "version": 1 })).await;
        assert_eq!((status, &restored["current"]), (StatusCode::OK, &json!(true)));
    }

    #[tokio::test]
    async fn unknown_versions_names_and_fields_are_refused() {
        let farm = TestFarm::start().await;
        for path in [
            "/v1/workflows/nothing",
            "/v1/workflows/paint@9",
            "/v1/workflows/..%2Fx",
            "/v1/workflows/paint@x",
        ] {
            assert_eq!(farm.get(path).await.0, StatusCode::NOT_FOUND, "{path}");
        }
        for (name, detail) in [
            ("paint@9", "no workflow `paint@9` is deployed; the latest version is `paint@1`"),
            ("pain", "no workflow `pain` is deployed; did you mean `paint`?"),
            ("zzz", "no workflow `zzz` is deployed"),
        ] {
            let (_, problem) = farm.get(&format!("/v1/workflows/{name}")).await;
            assert_eq!(problem["detail"], detail);
        }
        let restore = async |body| farm.post("/v1/workflows/paint/restore", body).await.0;
        assert_eq!(restore(json!({ "version": 9 })).await, StatusCode::NOT_FOUND);
        assert_eq!(restore(json!({ "version": "1" })).await, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(restore(json!({ "version": 1, "why": "" })).await, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(farm.get("/v1/workflows?all=1").await.0, StatusCode::UNPROCESSABLE_ENTITY);
        let (status, problem) = farm.get("/v1/nothing").await;
        assert_eq!((status, &problem["status"]), (StatusCode::NOT_FOUND, &json!(404)));
        let (status, problem) = farm.post("/v1/farm", json!({})).await;
        assert_eq!((status, &problem["status"]), (StatusCode::METHOD_NOT_ALLOWED, &json!(405)));
    }
}
