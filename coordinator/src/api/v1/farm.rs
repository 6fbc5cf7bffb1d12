//! The farm as a whole, and invitations into it. Not here: who is admitted; the coordinator decides.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use crate::api::Api;
use crate::api::error::{ApiError, FieldProblem};
use crate::api::extract::{self, NoQuery};
use crate::api::v1::model::farm::{Farm, Invite, InviteRequest, MAX_LIFETIME_SECONDS, MAX_USES};
use crate::handle::Invitation;

/// The farm as a whole
#[utoipa::path(get, path = "/v1/farm", tag = "farm", responses((status = 200, body = Farm)))]
pub(super) async fn get_farm(State(api): State<Api>, _: NoQuery) -> Result<Json<Farm>, ApiError> {
    Ok(Json(api.coordinator.farm().await?.into()))
}

/// Make a ticket that admits machines to the farm
#[utoipa::path(
    post,
    path = "/v1/invites",
    tag = "farm",
    request_body = InviteRequest,
    responses((status = 201, body = Invite)),
)]
pub(super) async fn create_invite(
    State(api): State<Api>,
    _: NoQuery,
    extract::Json(request): extract::Json<InviteRequest>,
) -> Result<(StatusCode, Json<Invite>), ApiError> {
    let mut errors = Vec::new();
    if !(1..=MAX_USES).contains(&request.uses) {
        errors.push(FieldProblem::new("uses", "range", format!("takes 1 to {MAX_USES}")));
    }
    if !(1..=MAX_LIFETIME_SECONDS).contains(&request.lifetime_seconds) {
        let message = format!("takes 1 to {MAX_LIFETIME_SECONDS}, which are 30 days");
        errors.push(FieldProblem::new("lifetime_seconds", "range", message));
    }
    if !errors.is_empty() {
        return Err(ApiError::fields(errors));
    }
    let lifetime = Duration::from_secs(request.lifetime_seconds);
    let ticket = api.coordinator.invite(Invitation { uses: request.uses, lifetime }).await?;
    Ok((StatusCode::CREATED, Json(ticket.into())))
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use serde_json::json;

    use crate::api::testing::{COORDINATOR, TestFarm};

    #[tokio::test]
    async fn invitation_has_defaults_and_limits() {
        let farm = TestFarm::start().await;
        let (status, invite) = farm.post("/v1/invites", json!({})).await;
        assert_eq!(status, StatusCode::CREATED);
        assert_eq!(invite["expires"], "2027-01-16T08:00:00Z");
        assert_eq!(invite["loopback_only"], true);
        let check = async |body| farm.post("/v1/invites", body).await.0;
        assert_eq!(check(json!({ "uses": 0 })).await, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(check(json!({ "uses": 1001 })).await, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(check(json!({ "lifetime_seconds": 2_592_001 })).await, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(check(json!({ "lifetime": 1 })).await, StatusCode::UNPROCESSABLE_ENTITY);
        let (_, shown) = farm.get("/v1/farm").await;
        assert_eq!(shown["coordinator"], COORDINATOR.to_string());
    }
}
