//! Blobs as the farm knows them: who holds one, and who is to keep it.
//!
//! Not here: their bytes, which move between peers.

use axum::Json;
use axum::extract::State;
use protocol::{BlobName, BlobRef, PeerId};

use crate::api::Api;
use crate::api::error::{ApiError, FieldProblem};
use crate::api::extract::{self, NoQuery, Path};
use crate::api::v1::model::blob::{Blob, KeepRequest, MAX_COPIES};
use crate::handle::KeepWish;

/// Who holds a blob
///
/// A blob that nobody holds is answered with empty lists.
#[utoipa::path(
    get,
    path = "/v1/blobs/{name}",
    tag = "blobs",
    params(("name" = String, Path, description = "Its BLAKE3 hash in hex, or `sha256:` and its SHA-256")),
    responses((status = 200, body = Blob)),
)]
pub(super) async fn get_blob(
    State(api): State<Api>,
    Path(name): Path<String>,
    _: NoQuery,
) -> Result<Json<Blob>, ApiError> {
    let name = parse_name(&name)?;
    let view = api.coordinator.blob(name).await?;
    Ok(Json(Blob::new(&name, view)))
}

/// Have nodes fetch a blob and pin it
///
/// The wish lasts a minute; whoever waits for it makes it again. The nodes with most room are asked.
#[utoipa::path(
    post,
    path = "/v1/blobs/{name}/keep",
    tag = "blobs",
    params(("name" = String, Path, description = "Its BLAKE3 hash in hex")),
    request_body = KeepRequest,
    responses((status = 200, body = Blob)),
)]
pub(super) async fn keep_blob(
    State(api): State<Api>,
    Path(name): Path<String>,
    _: NoQuery,
    extract::Json(request): extract::Json<KeepRequest>,
) -> Result<Json<Blob>, ApiError> {
    let name = parse_name(&name)?;
    let BlobName::Blake3(hash) = name else {
        return Err(ApiError::field("name", "blake3", "is a SHA-256: nodes keep blobs by their BLAKE3 hash"));
    };
    let mut errors = Vec::new();
    if !(1..=MAX_COPIES).contains(&request.copies) {
        errors.push(FieldProblem::new("copies", "range", format!("takes 1 to {MAX_COPIES}")));
    }
    let author = request.author.as_deref().map(str::parse::<PeerId>).transpose();
    let author = author.unwrap_or_else(|error| {
        errors.push(FieldProblem::new("author", "type", error.to_string()));
        None
    });
    if !errors.is_empty() {
        return Err(ApiError::fields(errors));
    }
    let blob = BlobRef { hash, size: request.size };
    let wish = KeepWish { blob, copies: request.copies as usize, author };
    let view = api.coordinator.keep(wish).await?;
    Ok(Json(Blob::new(&name, view)))
}

fn parse_name(text: &str) -> Result<BlobName, ApiError> {
    text.parse().map_err(|error: protocol::ParseBlobNameError| {
        ApiError::field("name", "type", format!("{error}; or write `sha256:` before a SHA-256"))
    })
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use protocol::{BlobHash, WorkflowVersion};
    use serde_json::{Value, json};

    use super::*;
    use crate::api::testing::TestFarm;
    use crate::view::{BlobHolder, BlobPart, BlobUse, BlobView, KeepView};

    fn view() -> BlobView {
        let (host_name, node) = ("studio-3".to_owned(), PeerId([9; 32]));
        let workflow = WorkflowVersion { name: "paint".parse().expect("a name"), version: 3 };
        BlobView {
            blob: Some(BlobRef { hash: BlobHash([1; 32]), size: 7 }),
            sha256: Some(protocol::Sha256([2; 32])),
            holders: vec![BlobHolder {
                peer: node,
                host_name: host_name.clone(),
                connected: true,
                pinned: true,
            }],
            parts: vec![BlobPart { peer: PeerId([8; 32]), host_name, here: 3, size: 7 }],
            in_coordinator: true,
            used_by: vec![BlobUse { workflow, path: "models/loras/a.safetensors".to_owned() }],
            keep: Some(KeepView { copies: 2, refused: vec![(node, "over its quota".to_owned())] }),
        }
    }

    #[tokio::test]
    async fn blob_is_shown_by_either_name_and_an_unknown_one_with_empty_lists() {
        let farm = TestFarm::start().await;
        let (hash, sha256) = ("01".repeat(32), "02".repeat(32));
        let (status, unknown) = farm.get(&format!("/v1/blobs/{hash}")).await;
        assert_eq!(
            (status, &unknown["holders"], &unknown["size"]),
            (StatusCode::OK, &json!([]), &Value::Null)
        );
        farm.tables().blob = view();
        for name in [hash.clone(), format!("sha256:{sha256}")] {
            let (_, shown) = farm.get(&format!("/v1/blobs/{name}")).await;
            assert_eq!(
                (&shown["name"], &shown["hash"], &shown["size"]),
                (&json!(name), &json!(hash), &json!(7))
            );
            assert_eq!(shown["sha256"], json!(sha256));
            assert_eq!(
                (&shown["holders"][0]["pinned"], &shown["parts"][0]["here"]),
                (&json!(true), &json!(3))
            );
            assert_eq!(shown["used_by"][0]["workflow"], "paint@3");
            assert_eq!(shown["keep"]["refused"][0]["reason"], "over its quota");
        }
        let (status, problem) = farm.get("/v1/blobs/md5:1").await;
        assert_eq!(
            (status, &problem["errors"][0]["field"]),
            (StatusCode::UNPROCESSABLE_ENTITY, &json!("name"))
        );
    }

    #[tokio::test]
    async fn keeping_is_wished_within_limits() {
        let farm = TestFarm::start().await;
        let hash = "01".repeat(32);
        let path = format!("/v1/blobs/{hash}/keep");
        let author = PeerId([9; 32]);
        let (status, _) = farm.post(&path, json!({ "size": 7, "author": author.to_string() })).await;
        assert_eq!(status, StatusCode::OK);
        let blob = BlobRef { hash: BlobHash([1; 32]), size: 7 };
        assert_eq!(farm.tables().wishes, [KeepWish { blob, copies: 2, author: Some(author) }]);
        let check = async |path: &str, body: Value, field: &str| {
            let (status, problem) = farm.post(path, body).await;
            assert_eq!(
                (status, &problem["errors"][0]["field"]),
                (StatusCode::UNPROCESSABLE_ENTITY, &json!(field))
            );
        };
        check(&path, json!({ "size": 7, "copies": 0 }), "copies").await;
        check(&path, json!({ "size": 7, "author": "me" }), "author").await;
        check(&format!("/v1/blobs/sha256:{hash}/keep"), json!({ "size": 7 }), "name").await;
    }
}
