//! The routes of `/v1`, one file a resource. All of them need a key.
//!
//! Not here: what the answers look like (`model`) and what a refusal becomes (`error`).

mod assets;
mod blobs;
mod deploy;
mod events;
mod farm;
mod jobs;
pub(crate) mod model;
mod nodes;
mod outputs;
mod pictures;
mod submit;
mod wait;
mod workflow_document;
mod workflows;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::{Api, openapi};

/// All routes, each with what it says of itself.
pub(crate) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(openapi::base())
        .routes(routes!(farm::get_farm))
        .routes(routes!(farm::create_invite))
        .routes(routes!(nodes::list_nodes))
        .routes(routes!(nodes::get_node))
        .routes(routes!(nodes::drain_node))
        .routes(routes!(nodes::undrain_node))
        .routes(routes!(workflows::list_workflows, deploy::deploy_workflow))
        .routes(routes!(workflows::get_workflow))
        .routes(routes!(workflows::restore_workflow))
        .routes(routes!(workflows::get_workflow_openapi))
        .routes(routes!(workflows::get_workflow_schema))
        .routes(routes!(submit::submit_job))
        .routes(routes!(jobs::list_jobs))
        .routes(routes!(jobs::get_job))
        .routes(routes!(jobs::cancel_job))
        .routes(routes!(outputs::get_first_output))
        .routes(routes!(outputs::get_output))
        .routes(routes!(events::stream_job_events))
        .routes(routes!(events::stream_events))
        .routes(routes!(assets::create_asset))
        .routes(routes!(assets::get_asset))
        .routes(routes!(blobs::get_blob))
        .routes(routes!(blobs::keep_blob))
}
