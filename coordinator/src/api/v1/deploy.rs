//! Deploying a workflow: an upload becomes a checked bundle, a typed interface, and the next version of
//! a name.
//!
//! The upload is spooled to a temporary file under the limit, so that nothing of it is in the store
//! before all names in it were checked. Not here: what a bundle may hold; that is `protocol`'s.

use std::fs::File;
use std::io::{self, Read};

use axum::Json;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use mesh::store::BlobStore;
use protocol::{
    Bundle, BundleLimits, ExposeError, Exposure, Interface, LockedModel, Lockfile, MAX_WORKFLOW,
    WorkflowName, error_chain, notes_on_outputs, read_bundle,
};

use crate::api::Api;
use crate::api::error::{ApiError, FieldProblem};
use crate::api::extract::media_type;
use crate::api::openapi::Binary;
use crate::api::upload::spool_body;
use crate::api::v1::model::workflow::{
    DeployCandidates, DeployedAnswer, Missing, MissingKind, Workflow, workflow_path,
};
use crate::handle::Deployment;
use crate::view::{DeployedWorkflow, NodeView};

/// What the query of a deploy says.
#[derive(Debug, Default)]
struct DeployQuery {
    name: Option<WorkflowName>,
    exposure: Exposure,
    accept_attached: bool,
    keep_signature: bool,
    private: Vec<String>,
}

/// Deploy the next version of a workflow
///
/// The body is a bundle (`application/zip`, of comfy-pack or of comfy-farm) or a workflow in ComfyUI's
/// API format (`application/json`). What a bundle says of its API holds unless `input` or `output` say
/// otherwise. Where there is no output, the refusal lists the `candidates`.
#[utoipa::path(
    post,
    path = "/v1/workflows",
    tag = "workflows",
    params(
        ("name" = String, Query, description = "The name to deploy under"),
        ("input" = Option<Vec<String>>, Query, description = "An input to expose, as NAME=NODE.FIELD; repeatable"),
        ("output" = Option<Vec<String>>, Query, description = "The id of an op whose files are an output; repeatable"),
        ("accept_attached" = Option<bool>, Query, description = "Whether an attached ComfyUI, which proves no lockfile, may run it"),
        ("keep_signature" = Option<bool>, Query, description = "Whether the bundle's lockfile keeps its publisher's signature, so that only nodes that trust this publisher rebuild it; else the farm signs it"),
        ("private" = Option<Vec<String>>, Query, description = "A model that no peer may have, by its path below `models` or its file name: its lockfile says so from then on; repeatable"),
    ),
    request_body(content((Binary = "application/zip"), (Object = "application/json"))),
    responses((status = 201, body = DeployedAnswer)),
)]
pub(super) async fn deploy_workflow(
    State(api): State<Api>,
    Query(pairs): Query<Vec<(String, String)>>,
    request: Request,
) -> Result<Response, ApiError> {
    let query = DeployQuery::parse(pairs)?;
    let name = query.name.clone().ok_or_else(|| {
        ApiError::field("name", "required", "is required: the name to deploy under, as `?name=pixel-art`")
    })?;
    let mut bundle = match media_type(&request).as_str() {
        "application/zip" | "application/x-zip-compressed" => {
            let file = spool_body(request, api.upload_limit).await?;
            in_background(&api, move |store| bundle_of_zip(file, store)).await?
        }
        "application/json" => {
            let file = spool_body(request, api.upload_limit.min(MAX_WORKFLOW as u64)).await?;
            in_background(&api, move |store| bundle_of_graph(file, store)).await?
        }
        _ => {
            return Err(ApiError::UnsupportedMediaType(
                "a bundle is `application/zip`, a workflow in API format `application/json`".to_owned(),
            ));
        }
    };
    query.keep_private(&mut bundle.lockfile)?;
    if !query.private.is_empty() {
        let document = bundle.lockfile.to_canonical_json();
        let kept = api.coordinator.blobs().import_bytes(&document).await;
        bundle.manifest.lockfile = kept?;
    }
    if query.keep_signature {
        let kept = bundle.lockfile.verify();
        kept.map_err(|error| ApiError::field("keep_signature", "signature", error.to_string()))?;
    }
    let interface = interface(&query.exposure, &bundle)?;
    let repairs = bundle.repairs.iter().map(ToString::to_string);
    let notes =
        repairs.chain(unknown_private(&bundle.lockfile)).chain(notes_on_outputs(&interface)).collect();
    let DeployQuery { accept_attached, keep_signature, .. } = query;
    let deployment =
        Deployment { name, bundle: bundle.clone(), interface, accept_attached, keep_signature, notes };
    let deployed = api.coordinator.deploy(deployment).await?;
    let missing = missing(&deployed, &bundle, &api.coordinator.nodes().await?);
    let location = workflow_path(&deployed.id.name, deployed.id.version);
    let location = HeaderValue::try_from(location).expect("a workflow's name is ASCII");
    let answer = DeployedAnswer { workflow: Workflow::new(&deployed, true), missing };
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(answer)).into_response())
}

impl DeployQuery {
    fn parse(pairs: Vec<(String, String)>) -> Result<Self, ApiError> {
        let mut query = Self::default();
        let mut errors = Vec::new();
        for (key, value) in pairs {
            let mut fault = |message: String| errors.push(FieldProblem::new(key.as_str(), "type", message));
            match key.as_str() {
                "name" => match value.parse() {
                    Ok(name) => query.name = Some(name),
                    Err(error) => fault(protocol::ParseIdError::to_string(&error)),
                },
                "input" => match value.parse() {
                    Ok(input) => query.exposure.inputs.push(input),
                    Err(error) => fault(protocol::ParseExposedInputError::to_string(&error)),
                },
                "output" => query.exposure.outputs.push(value),
                "accept_attached" => match value.parse() {
                    Ok(accept) => query.accept_attached = accept,
                    Err(_) => fault("takes true or false".to_owned()),
                },
                "keep_signature" => match value.parse() {
                    Ok(keep) => query.keep_signature = keep,
                    Err(_) => fault("takes true or false".to_owned()),
                },
                "private" => query.private.push(value),
                _ => {
                    let message =
                        "takes `name`, `input`, `output`, `accept_attached`, `keep_signature` and `private`";
                    errors.push(FieldProblem::new(key.as_str(), "unknown", message));
                }
            }
        }
        if errors.is_empty() { Ok(query) } else { Err(ApiError::fields(errors)) }
    }

    /// Marks the models that no peer may have; it stands in the lockfile before that is hashed and signed.
    fn keep_private(&self, lockfile: &mut Lockfile) -> Result<(), ApiError> {
        let refused = |code, message: String| Err(ApiError::field("private", code, message));
        for name in &self.private {
            let mut called = lockfile.models.iter_mut().filter(|model| model.is_called(name)).peekable();
            if called.peek().is_none() {
                let names: Vec<&str> = lockfile.models.iter().map(|model| model.path.as_str()).collect();
                let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                return refused(
                    "unknown",
                    format!("no model of the lockfile is called `{name}`; it names {names}"),
                );
            }
            for model in called {
                if model.share && self.keep_signature {
                    let message = format!(
                        "`{}` is shared in what the publisher signed, and a changed lockfile does not bear that \
                         signature: deploy without `keep_signature`, or have the publisher sign it anew",
                        model.path
                    );
                    return refused("signature", message);
                }
                model.share = false;
            }
        }
        Ok(())
    }
}

/// What comfy-pack's ops make the API, and what the query exposes, or else the bundle.
fn interface(query: &Exposure, bundle: &Bundle) -> Result<Interface, ApiError> {
    let exposure = query.clone().or(&bundle.manifest.interface);
    let interface = exposure.interface(&bundle.workflow, None).map_err(|error| {
        let field = match error {
            ExposeError::Schema(_) => "workflow",
            ExposeError::NotAnOutput { .. } => "output",
            _ => "input",
        };
        ApiError::field(field, "interface", error.to_string())
    })?;
    if interface.outputs.is_empty() {
        return Err(ApiError::NothingExposed(Box::new(DeployCandidates::of(&bundle.workflow))));
    }
    Ok(interface)
}

/// Remarks on models that no peer may have, and that no node can tell from others.
fn unknown_private(lockfile: &Lockfile) -> impl Iterator<Item = String> {
    let unknown = lockfile.models.iter().filter(|model| !model.share && model.names().next().is_none());
    unknown.map(|model| {
        format!(
            "the lockfile names no hash of `{}`: a node that has it in a model folder does not know that it may not be \
             served, unless that folder's `.comfy-farm-private` lists it",
            model.path
        )
    })
}

/// Reads an upload on a thread that may block.
async fn in_background(
    api: &Api,
    read: impl FnOnce(&BlobStore) -> Result<Bundle, ApiError> + Send + 'static,
) -> Result<Bundle, ApiError> {
    let store = api.coordinator.blobs().clone();
    tokio::task::spawn_blocking(move || read(&store)).await.unwrap_or(Err(ApiError::Panic))
}

fn bundle_of_zip(file: File, store: &BlobStore) -> Result<Bundle, ApiError> {
    let mut sink = |_: &str, entry: &mut dyn Read| store_entry(entry, store);
    read_bundle(file, &BundleLimits::default(), &mut sink)
        .map_err(|error| ApiError::field("bundle", "bundle", error_chain(&error)))
}

fn bundle_of_graph(mut file: File, store: &BlobStore) -> Result<Bundle, ApiError> {
    let io = |source| ApiError::Io { attempt: "reading the upload from a temporary file", source };
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(io)?;
    let mut sink = |_: &str, entry: &mut dyn Read| store_entry(entry, store);
    Bundle::from_workflow(&bytes, &mut sink)
        .map_err(|error| ApiError::field("workflow", "workflow", error_chain(&error)))
}

/// Stores one entry of a bundle; called on a thread that may block.
fn store_entry(entry: &mut dyn Read, store: &BlobStore) -> io::Result<protocol::BlobRef> {
    let runtime = tokio::runtime::Handle::current();
    let mut writer = runtime.block_on(store.writer(u64::MAX)).map_err(io::Error::other)?;
    let mut chunk = vec![0; 256 << 10];
    loop {
        let length = entry.read(&mut chunk)?;
        if length == 0 {
            return runtime.block_on(writer.finish()).map_err(io::Error::other);
        }
        runtime.block_on(writer.write(&chunk[..length])).map_err(io::Error::other)?;
    }
}

/// What the workflow needs and nothing in the farm has.
fn missing(deployed: &DeployedWorkflow, bundle: &Bundle, nodes: &[NodeView]) -> Vec<Missing> {
    let looked = format!("looked for on {} nodes", nodes.len());
    // A managed node has what the lockfile brings, and tells by itself what that lacks.
    let is_rebuilt = deployed.requirements.lockfile.is_some()
        && nodes.iter().any(|node| matches!(node.offer.engine, protocol::Engine::Managed));
    let ops = deployed.requirements.classes.iter().filter(|_| !is_rebuilt);
    let ops = ops
        .filter(|class| !nodes.iter().any(|node| node.offer.classes.contains(*class)))
        .map(|class| Missing { kind: MissingKind::Op, name: class.clone(), detail: looked.clone() });
    let locked = |name: &str| {
        let mut models = bundle.lockfile.models.iter();
        models.find(|model| model.path.as_str().strip_prefix("models/") == Some(name))
    };
    let models = deployed.requirements.models.iter();
    let models = models
        .filter(|name| !nodes.iter().any(|node| node.offer.models.contains(*name)))
        .filter_map(|name| Some((name, unfetchable(locked(name))?)))
        .map(|(name, why)| Missing {
            kind: MissingKind::Model,
            name: name.clone(),
            detail: format!("{looked}, and {why}"),
        });
    ops.chain(models).collect()
}

/// Why no node could fetch a model: what comes from elsewhere must be proven by a hash.
fn unfetchable(locked: Option<&LockedModel>) -> Option<&'static str> {
    let Some(model) = locked else { return Some("the lockfile does not name it") };
    match (model.blob, &model.sha256, model.sources.is_empty()) {
        (Some(_), ..) | (None, Some(_), false) => None,
        (None, _, true) => Some("the lockfile gives no URL for it"),
        (None, None, false) => Some("the lockfile gives no SHA-256 to prove a download by"),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Method;
    use serde_json::{Value, json};

    use super::*;
    use crate::api::testing::{TestFarm, UPLOAD_LIMIT, graph, json_of, request};

    async fn deploy(farm: &TestFarm, query: &str, media_type: &str, body: Vec<u8>) -> (StatusCode, Value) {
        let request =
            request(Method::POST, &format!("/v1/workflows{query}")).header(header::CONTENT_TYPE, media_type);
        let response = farm.send(request.body(Body::from(body)).unwrap()).await;
        (response.status(), json_of(response).await)
    }

    fn plain_graph() -> Vec<u8> {
        let graph = json!({
            "1": { "class_type": "EmptyImage", "inputs": { "width": 64, "height": 64 } },
            "2": { "class_type": "SaveImage", "inputs": { "images": ["1", 0], "filename_prefix": "x" } },
        });
        graph.to_string().into_bytes()
    }

    #[tokio::test]
    async fn graph_becomes_the_next_version_with_its_interface() {
        let farm = TestFarm::start().await;
        let bytes = graph().to_string().into_bytes();
        let (status, answer) = deploy(&farm, "?name=paint", "application/json", bytes).await;
        assert_eq!(status, StatusCode::CREATED, "{answer}");
        assert_eq!(
            (&answer["version"], &answer["openapi_url"]),
            (&json!(2), &json!("/v1/workflows/paint@2/openapi.json"))
        );
        assert_eq!(
            answer["outputs"][0],
            json!({ "name": "image", "kind": "image", "media_type": "image/png", "many": true })
        );
        assert_eq!(answer["missing"][0]["name"], "SaveImage", "no node has it");
    }

    #[tokio::test]
    async fn what_comes_back_otherwise_than_from_comfy_pack_is_said_when_it_is_deployed() {
        let farm = TestFarm::start().await;
        let graph = json!({
            "1": { "class_type": "SomeWriter", "inputs": {} },
            "2": { "class_type": "CPackOutputFile", "inputs": { "filename": ["1", 0] }, "_meta": { "title": "mesh" } },
            "3": { "class_type": "CPackOutputTextFile", "inputs": { "text": "x" } },
        });
        let bytes = graph.to_string().into_bytes();
        let (status, answer) = deploy(&farm, "?name=mesh", "application/json", bytes).await;
        assert_eq!(status, StatusCode::CREATED, "{answer}");
        let notes: Vec<&str> =
            answer["notes"].as_array().unwrap().iter().map(|note| note.as_str().unwrap()).collect();
        assert!(notes.len() == 1 && notes[0].starts_with("output `mesh` is a file"), "{notes:?}");
    }

    #[tokio::test]
    async fn graph_that_exposes_nothing_is_answered_with_candidates() {
        let farm = TestFarm::start().await;
        let (status, problem) = deploy(&farm, "?name=plain", "application/json", plain_graph()).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
        let candidates = &problem["candidates"];
        assert!(
            candidates["inputs"].as_array().unwrap().iter().any(|one| one["input"] == "1.width"),
            "{candidates}"
        );
        assert_eq!(
            (&candidates["outputs"][0]["node"], &candidates["outputs"][0]["class"]),
            (&json!("2"), &json!("SaveImage"))
        );
        let query = "?name=plain&input=width%3D1.width&output=2&accept_attached=true";
        let (status, answer) = deploy(&farm, query, "application/json", plain_graph()).await;
        assert_eq!(status, StatusCode::CREATED, "{answer}");
        assert_eq!(answer["inputs"][0]["name"], "width");
    }

    #[tokio::test]
    async fn what_cannot_be_deployed_is_refused_with_the_reason() {
        let farm = TestFarm::start().await;
        let check = async |query: &str, media_type: &str, body: &[u8], status: u16| {
            let (got, problem) = deploy(&farm, query, media_type, body.to_vec()).await;
            assert_eq!(got.as_u16(), status, "{query} {media_type}: {problem}");
            assert!(!problem["detail"].as_str().unwrap().is_empty());
        };
        check("", "application/json", &plain_graph(), 422).await;
        check("?name=UPPER", "application/json", &plain_graph(), 422).await;
        check("?name=x&colour=red", "application/json", &plain_graph(), 422).await;
        check("?name=x&input=width", "application/json", &plain_graph(), 422).await;
        check("?name=x", "application/json", b"not json", 422).await;
        check("?name=x", "application/zip", b"not a zip", 422).await;
        check("?name=x", "text/plain", &plain_graph(), 415).await;
        check("?name=x", "application/zip", &vec![0; UPLOAD_LIMIT as usize + 1], 413).await;
        assert!(farm.store.complete().is_empty());
        check("?name=x&output=77", "application/json", &plain_graph(), 422).await;
    }

    #[tokio::test]
    async fn output_that_saves_no_file_is_refused_with_those_that_do() {
        let farm = TestFarm::start().await;
        let (status, problem) = deploy(&farm, "?name=x&output=1", "application/json", plain_graph()).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(problem["errors"][0]["field"], "output");
        assert!(problem["detail"].as_str().unwrap().contains("`2` (`SaveImage`)"), "{problem}");
    }

    #[test]
    fn model_can_be_fetched_only_with_a_hash_that_proves_it() {
        let model = |value: Value| serde_json::from_value::<LockedModel>(value).unwrap();
        let path = "models/checkpoints/tiny.safetensors";
        let sources = json!([{ "url": "https://models.example/tiny.safetensors" }]);
        let (sha256, blob) = ("a".repeat(64), "b".repeat(64));
        let check = |value: Value, can: bool| {
            assert_eq!(unfetchable(Some(&model(value.clone()))).is_none(), can, "{value}");
        };
        let locked = json!({ "path": path, "size": 15, "disabled": false });
        let with = |more: Value| {
            let mut value = locked.clone();
            value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            value
        };
        check(with(json!({ "sha256": sha256, "sources": sources })), true);
        check(with(json!({ "blob": blob })), true);
        check(with(json!({ "sources": sources })), false);
        check(with(json!({ "sha256": sha256 })), false);
        assert!(unfetchable(None).is_some());
    }

    #[test]
    fn private_models_stand_in_the_lockfile_before_it_is_signed() {
        let model = |path: &str, more: Value| {
            let mut model = json!({ "path": path, "size": 15, "disabled": false });
            model.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            serde_json::from_value::<LockedModel>(model).unwrap()
        };
        let named = model("models/loras/deep/a.safetensors", json!({ "sha256": "a".repeat(64) }));
        let unnamed = model("models/loras/b.safetensors", json!({}));
        let lockfile = Lockfile { models: vec![named, unnamed], ..Lockfile::default() };
        let kept = |name: &str, keep: bool, mut lockfile: Lockfile| {
            let pairs = vec![
                ("private".to_owned(), name.to_owned()),
                ("keep_signature".to_owned(), keep.to_string()),
            ];
            DeployQuery::parse(pairs).unwrap().keep_private(&mut lockfile).map(|()| lockfile)
        };
        for name in ["a.safetensors", "loras/deep/a.safetensors", "models/loras/deep/a.safetensors"] {
            let changed = kept(name, false, lockfile.clone()).unwrap();
            assert_eq!(
                changed.models.iter().map(|model| model.share).collect::<Vec<_>>(),
                [false, true],
                "{name}"
            );
            assert_ne!(changed.hash(), lockfile.hash());
            assert_eq!(kept(name, true, changed.clone()).unwrap(), changed, "its publisher says the same");
            assert!(kept(name, true, lockfile.clone()).is_err(), "{name}");
        }
        assert!(kept("c.safetensors", false, lockfile.clone()).is_err());
        let changed = kept("b.safetensors", false, lockfile).unwrap();
        assert_eq!(unknown_private(&changed).count(), 1);
    }

    #[tokio::test]
    async fn bundle_of_comfy_pack_is_deployed() {
        let farm = TestFarm::start().await;
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../shared/facts/comfy-pack/cpack/tiny.cpack.zip");
        let (status, answer) =
            deploy(&farm, "?name=tiny", "application/zip", std::fs::read(path).unwrap()).await;
        assert_eq!(status, StatusCode::CREATED, "{answer}");
        assert!(!answer["inputs"].as_array().unwrap().is_empty());
    }
}
