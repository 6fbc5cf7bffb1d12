//! Submitting a job: a typed call becomes checked parameters, with every file in the store.
//!
//! Two ways in, one way on: JSON, where a file is an asset that was sent before, and a form, where files
//! are parts. Not here: what an input takes; that is `protocol::Interface`.

use axum::Json;
use axum::extract::multipart::{Field, Multipart};
use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use protocol::{Argument, BlobHash, Input, InputKind, Interface, Parameters};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::api::Api;
use crate::api::error::{ApiError, FieldProblem};
use crate::api::extract::{MAX_JSON, Path, Query, media_type, parse_json};
use crate::api::upload::{Allowance, read_body, read_field, store_field};
use crate::api::v1::model::job::{Job, job_path};
use crate::api::v1::wait::{self, WaitQuery};
use crate::api::v1::{jobs, workflows};
use crate::handle::Submission;

/// The priority of a job that names none.
const PRIORITY: u8 = 50;
/// The highest priority.
const MAX_PRIORITY: u8 = 100;
/// The most parts of a form.
const MAX_PARTS: usize = 256;

/// A job to submit.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SubmitRequest {
    /// The workflow's inputs by name. A file is `{"$asset": HASH}`, with `file_name` if its name matters.
    #[serde(default)]
    #[schema(value_type = Object)]
    input: Map<String, Value>,
    /// 0 to 100, within the share of whoever submits. Defaults to 50.
    #[schema(minimum = 0, maximum = 100)]
    priority: Option<u8>,
}

/// What was read of a call, however it came.
struct Call {
    given: Parameters,
    priority: Option<u8>,
}

/// Submit a job
///
/// The input is JSON, or a form (`multipart/form-data`) with a part for each input: files as file parts,
/// texts as they are, any other value as JSON, and `priority` beside them. The job is durable when this
/// answers. With `wait`, the answer is 200 once the job has ended, and 202 if it has not by then; whoever
/// hangs up meanwhile cancels nothing.
#[utoipa::path(
    post,
    path = "/v1/workflows/{name}/jobs",
    tag = "jobs",
    params(("name" = String, Path, description = "`name` or `name@3`"), WaitQuery),
    request_body(content((SubmitRequest = "application/json"), (Object = "multipart/form-data"))),
    responses(
        (status = 200, description = "The job has ended", body = Job),
        (status = 202, description = "The job is queued or running; `Location` says where to look", body = Job),
    ),
)]
pub(super) async fn submit_job(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(query): Query<WaitQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let longest = query.duration()?;
    let deployed = workflows::find(&api, &workflows::parse_selector(&name)?).await?;
    let call = match media_type(&request).as_str() {
        "application/json" => read_json(&api, request).await?,
        "multipart/form-data" => read_form(&api, &deployed.interface, request).await?,
        _ => {
            return Err(ApiError::UnsupportedMediaType(
                "a job's input is `application/json` or `multipart/form-data`".to_owned(),
            ));
        }
    };
    let priority = call.priority.unwrap_or(PRIORITY);
    if priority > MAX_PRIORITY {
        return Err(ApiError::field("priority", "maximum", format!("takes 0 to {MAX_PRIORITY}")));
    }
    let parameters = deployed
        .interface
        .check(call.given)
        .map_err(|faults| ApiError::fields(faults.into_iter().map(FieldProblem::from).collect()))?;

    // Following begins before the job exists, so that its end cannot be missed.
    let live = api.coordinator.events(None).await?.live;
    let submission = Submission { workflow: deployed.id.clone(), parameters, priority };
    let id = api.coordinator.submit(submission).await?;
    let view = match longest {
        Some(longest) => wait::until_ended(&api, id, live, longest).await?,
        None => jobs::find(&api, id).await?,
    };
    let status =
        if longest.is_some() && view.state.is_final() { StatusCode::OK } else { StatusCode::ACCEPTED };
    let location = HeaderValue::try_from(job_path(id.0)).expect("a UUID is ASCII");
    Ok((status, [(header::LOCATION, location)], Json(Job::new(view, api.peer))).into_response())
}

async fn read_json(api: &Api, request: Request) -> Result<Call, ApiError> {
    let allowance = Allowance::for_request(MAX_JSON, request.headers())?;
    let request: SubmitRequest = parse_json(&read_body(request.into_body(), allowance).await?)?;
    let mut given = Parameters::default();
    let mut errors = Vec::new();
    for (name, value) in request.input {
        match argument(api, &name, value).await {
            Ok(argument) => drop(given.insert(name, argument)),
            Err(ApiError::Invalid { errors: more, .. }) => errors.extend(more),
            Err(other) => return Err(other),
        }
    }
    if errors.is_empty() {
        Ok(Call { given, priority: request.priority })
    } else {
        Err(ApiError::fields(errors))
    }
}

async fn read_form(api: &Api, interface: &Interface, request: Request) -> Result<Call, ApiError> {
    let mut files = Allowance::for_request(api.upload_limit, request.headers())?;
    let mut texts = Allowance::new(MAX_JSON);
    let mut form = Multipart::from_request(request, &())
        .await
        .map_err(|rejection| ApiError::Malformed(rejection.body_text()))?;
    let mut call = Call { given: Parameters::default(), priority: None };
    for _ in 0..MAX_PARTS {
        let part = form.next_field().await.map_err(|error| ApiError::Malformed(error.body_text()))?;
        let Some(part) = part else { return Ok(call) };
        let name = part.name().unwrap_or("").to_owned();
        if call.given.get(&name).is_some() {
            return Err(ApiError::field(&name, "duplicate", "is given twice"));
        }
        match interface.input(&name) {
            None if name == "priority" => {
                let text = read_field(part, &mut texts).await?;
                let number = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
                let number = number.ok_or_else(|| {
                    ApiError::field("priority", "type", "takes a whole number from 0 to 100")
                })?;
                call.priority = Some(number);
            }
            // The check names all that is unknown; its bytes are not worth keeping for that.
            None => drop(call.given.insert(name, Argument::Value(Value::Null))),
            Some(input) => {
                let argument = form_argument(api, input, part, &mut files, &mut texts).await?;
                call.given.insert(name, argument);
            }
        }
    }
    Err(ApiError::Malformed(format!("the form has more than {MAX_PARTS} parts")))
}

async fn form_argument(
    api: &Api,
    input: &Input,
    part: Field<'_>,
    files: &mut Allowance,
    texts: &mut Allowance,
) -> Result<Argument, ApiError> {
    if let Some(file_name) = part.file_name().map(ToOwned::to_owned) {
        if !input.takes_file() {
            return Err(ApiError::field(&input.name, "file", "takes a value, not a file"));
        }
        let blob = store_field(part, files, api.coordinator.blobs()).await?;
        return Ok(Argument::file(blob, &file_name));
    }
    let text = String::from_utf8(read_field(part, texts).await?)
        .map_err(|_| ApiError::field(&input.name, "type", "is not UTF-8 text"))?;
    if matches!(input.kind, InputKind::Text) {
        return Ok(Argument::Value(Value::String(text)));
    }
    // A choice may be between texts, which nobody puts in quotes in a form.
    let value = match (&input.kind, serde_json::from_str::<Value>(&text)) {
        (InputKind::Choice { values }, _) if values.iter().any(|value| *value == text) => Value::String(text),
        (_, Ok(value)) => value,
        (_, Err(_)) => Value::String(text),
    };
    argument(api, &input.name, value).await
}

/// A value, or the file that it refers to.
async fn argument(api: &Api, name: &str, value: Value) -> Result<Argument, ApiError> {
    let Value::Object(reference) = &value else { return Ok(Argument::Value(value)) };
    let Some(hash) = reference.get("$asset") else { return Ok(Argument::Value(value)) };
    if let Some(unknown) = reference.keys().find(|key| *key != "$asset" && *key != "file_name") {
        let message = format!("an asset takes `$asset` and `file_name`, not `{unknown}`");
        return Err(ApiError::field(name, "asset", message));
    }
    let hash = hash.as_str().and_then(|hash| hash.parse::<BlobHash>().ok());
    let hash =
        hash.ok_or_else(|| ApiError::field(name, "asset", "`$asset` takes a BLAKE3 hash of 64 hex digits"))?;
    let file_name = match reference.get("file_name") {
        None => "file",
        Some(Value::String(file_name)) => file_name,
        Some(_) => return Err(ApiError::field(name, "asset", "`file_name` takes a text")),
    };
    let blob = api.coordinator.blobs().get(hash).ok_or_else(|| {
        ApiError::field(name, "asset", format!("there is no asset `{hash}`; send it to /v1/assets first"))
    })?;
    Ok(Argument::file(blob, file_name))
}
