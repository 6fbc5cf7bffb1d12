//! Submitting a job: a typed call becomes checked parameters, with every file in the store.
//!
//! Two ways in, one way on: JSON, where a file is an asset that was sent before, and a form, where files
//! are parts. Not here: what an input takes; that is `protocol::Interface`.

use std::collections::HashSet;
use std::str::FromStr;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use protocol::{Argument, BlobHash, Input, InputKind, Interface, Parameters};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::api::Api;
use crate::api::error::{ApiError, FieldProblem};
use crate::api::extract::{MAX_JSON, Path, Query, media_type, parse_json};
use crate::api::form::{Form, Part};
use crate::api::upload::{Allowance, read_body};
use crate::api::v1::model::job::{Job, job_path};
use crate::api::v1::wait::{self, WaitQuery};
use crate::api::v1::{jobs, pictures, workflows};
use crate::handle::Submission;

/// The priority of a job that names none.
const PRIORITY: u8 = 50;
/// The highest priority.
const MAX_PRIORITY: u8 = 100;
/// The longest that a job may be told to wait for a node: 30 days.
pub(super) const MAX_TTL_SECONDS: u64 = 30 * 24 * 3600;
/// The most parts of a form.
const MAX_PARTS: usize = 256;
/// The longest name of a part.
const MAX_NAME: usize = 1024;

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
    /// How many seconds the job may wait for a node before it expires, from 1 to 2592000, which are 30
    /// days. Defaults to no limit.
    #[schema(minimum = 1, maximum = 2_592_000)]
    ttl_seconds: Option<u64>,
}

/// What was read of a call, however it came.
#[derive(Default)]
struct Call {
    given: Parameters,
    priority: Option<u8>,
    ttl_seconds: Option<u64>,
}

/// Submit a job
///
/// The input is JSON, or a form (`multipart/form-data`) with a part for each input: files as file parts,
/// texts as they are, any other value as JSON, and `priority` and `ttl_seconds` beside them. The job is durable when this
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
        "application/json" => read_json(&api, &deployed.interface, request).await?,
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
    if call.ttl_seconds.is_some_and(|seconds| !(1..=MAX_TTL_SECONDS).contains(&seconds)) {
        return Err(ApiError::field("ttl_seconds", "range", format!("takes 1 to {MAX_TTL_SECONDS}")));
    }
    let time_to_live = call.ttl_seconds.map(Duration::from_secs);
    let parameters = deployed
        .interface
        .check(call.given)
        .map_err(|faults| ApiError::fields(faults.into_iter().map(FieldProblem::from).collect()))?;
    pictures::check(&api, &deployed.interface, &parameters).await?;

    // Following begins before the job exists, so that its end cannot be missed.
    let live = api.coordinator.events(None).await?.live;
    let workflow = deployed.id.clone();
    let submission = Submission { workflow, parameters, priority, time_to_live };
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

async fn read_json(api: &Api, interface: &Interface, request: Request) -> Result<Call, ApiError> {
    let request: SubmitRequest = parse_json(&read_body(request, MAX_JSON).await?)?;
    let mut given = Parameters::default();
    let mut errors = Vec::new();
    for (name, value) in request.input {
        match argument(api, interface, &name, value).await {
            Ok(argument) => drop(given.insert(name, argument)),
            Err(ApiError::Invalid { errors: more, .. }) => errors.extend(more),
            Err(other) => return Err(other),
        }
    }
    if errors.is_empty() {
        Ok(Call { given, priority: request.priority, ttl_seconds: request.ttl_seconds })
    } else {
        Err(ApiError::fields(errors))
    }
}

async fn read_form(api: &Api, interface: &Interface, request: Request) -> Result<Call, ApiError> {
    let mut files = Allowance::new(api.upload_limit);
    let mut texts = Allowance::new(MAX_JSON);
    let mut form = Form::open(request, api.upload_limit).await?;
    let mut call = Call::default();
    let mut names = HashSet::new();
    for _ in 0..MAX_PARTS {
        let Some(part) = form.next().await? else { return Ok(call) };
        let name = part.name().to_owned();
        if name.len() > MAX_NAME {
            let message = format!("a part of the form has a name of more than {MAX_NAME} bytes");
            return Err(ApiError::Malformed(message));
        }
        if !names.insert(name.clone()) {
            return Err(ApiError::field(&name, "duplicate", "is given twice"));
        }
        match interface.input(&name) {
            None if name == "priority" => call.priority = Some(number(part, &mut texts).await?),
            None if name == "ttl_seconds" => call.ttl_seconds = Some(number(part, &mut texts).await?),
            // The check names all that is unknown; its bytes are not worth keeping for that.
            None => {
                part.skip(&mut files).await?;
                call.given.insert(name, Argument::Value(Value::Null));
            }
            Some(input) => {
                let argument = form_argument(api, interface, input, part, (&mut files, &mut texts)).await?;
                call.given.insert(name, argument);
            }
        }
    }
    Err(ApiError::Malformed(format!("the form has more than {MAX_PARTS} parts")))
}

/// A part that is a whole number.
async fn number<T: FromStr>(part: Part<'_>, texts: &mut Allowance) -> Result<T, ApiError> {
    let name = part.name().to_owned();
    let text = part.read(texts).await?;
    let number = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
    number.ok_or_else(|| ApiError::field(&name, "type", "takes a whole number"))
}

async fn form_argument(
    api: &Api,
    interface: &Interface,
    input: &Input,
    part: Part<'_>,
    (files, texts): (&mut Allowance, &mut Allowance),
) -> Result<Argument, ApiError> {
    if let Some(file_name) = part.file_name().map(ToOwned::to_owned) {
        if !input.takes_file() {
            return Err(ApiError::field(&input.name, "file", "takes a value, not a file"));
        }
        let blob = part.store(files, api.coordinator.blobs()).await?;
        return Ok(Argument::file(blob, &file_name));
    }
    let text = String::from_utf8(part.read(texts).await?)
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
    argument(api, interface, &input.name, value).await
}

/// A value, or the file that it refers to.
async fn argument(api: &Api, interface: &Interface, name: &str, value: Value) -> Result<Argument, ApiError> {
    let Value::Object(reference) = &value else { return Ok(Argument::Value(value)) };
    let Some(hash) = reference.get("$asset") else { return Ok(Argument::Value(value)) };
    if interface.input(name).is_some_and(|input| !input.takes_file()) {
        return Err(ApiError::field(name, "file", "takes a value, not a file"));
    }
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

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Method;
    use serde_json::json;

    use super::*;
    use crate::api::testing::{TestFarm, UPLOAD_LIMIT, json_of, request};

    const JOBS: &str = "/v1/workflows/paint/jobs";

    async fn refusal(farm: &TestFarm, body: Value) -> (String, String) {
        let (status, problem) = farm.post(JOBS, body).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{problem}");
        let error = &problem["errors"][0];
        (error["field"].as_str().unwrap().to_owned(), error["rule"].as_str().unwrap().to_owned())
    }

    async fn post_form(farm: &TestFarm, form: &str) -> (StatusCode, Value) {
        let request = request(Method::POST, JOBS).header("content-type", "multipart/form-data; boundary=cut");
        let response = farm.send(request.body(Body::from(form.replace('\n', "\r\n"))).unwrap()).await;
        (response.status(), json_of(response).await)
    }

    fn part(headers: &str, body: &str) -> String {
        format!("--cut\ncontent-disposition: form-data; {headers}\n\n{body}\n")
    }

    #[tokio::test]
    async fn fault_is_told_by_field_and_rule() {
        let farm = TestFarm::start().await;
        let picture = json!({ "$asset": farm.store.import_bytes(b"GIF89a").await.unwrap().hash });
        let check = async |input: Value, field: &str, rule: &str| {
            let told = refusal(&farm, json!({ "input": input })).await;
            assert_eq!((told.0.as_str(), told.1.as_str()), (field, rule), "{input}");
        };
        check(json!({}), "picture", "required").await;
        check(json!({ "picture": picture, "seed": "7" }), "seed", "type").await;
        check(json!({ "picture": picture, "seed": 101 }), "seed", "maximum").await;
        check(json!({ "picture": picture, "sed": 1 }), "sed", "unknown").await;
        check(json!({ "picture": "cat.png" }), "picture", "file").await;
        check(json!({ "picture": picture, "seed": picture }), "seed", "file").await;
        check(json!({ "picture": { "$asset": "00".repeat(32) } }), "picture", "asset").await;
        check(json!({ "picture": { "$asset": 7 } }), "picture", "asset").await;
        let text = json!({ "$asset": farm.store.import_bytes(b"a text").await.unwrap().hash });
        check(json!({ "picture": text }), "picture", "file").await;
        assert_eq!(refusal(&farm, json!({ "input": {}, "prority": 1 })).await.1, "type");
        assert_eq!(refusal(&farm, json!({ "input": {}, "priority": 101 })).await.1, "maximum");
        for ttl in [0, 2_592_001] {
            assert_eq!(refusal(&farm, json!({ "input": {}, "ttl_seconds": ttl })).await.1, "range");
        }
        assert!(farm.tables().jobs.is_empty());
    }

    #[tokio::test]
    async fn what_is_no_json_is_400_and_another_media_type_415() {
        let farm = TestFarm::start().await;
        let post = |media_type: &'static str| {
            let request = request(Method::POST, JOBS).header("content-type", media_type);
            farm.send(request.body(Body::from("{")).unwrap())
        };
        assert_eq!(post("application/json").await.status(), StatusCode::BAD_REQUEST);
        assert_eq!(post("text/plain").await.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert_eq!(post("multipart/form-data").await.status(), StatusCode::BAD_REQUEST);
        let (status, _) = farm.post("/v1/workflows/nothing/jobs", json!({ "input": {} })).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        let (status, _) = farm.post(&format!("{JOBS}?wiat=1s"), json!({ "input": {} })).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    }

    #[tokio::test]
    async fn form_takes_texts_as_they_are_and_files_as_parts() {
        let farm = TestFarm::start().await;
        let form = [
            part("name=\"prompt\"", "123"),
            part("name=\"seed\"", "9"),
            part("name=\"priority\"", "70"),
            part("name=\"ttl_seconds\"", "60"),
            part("name=\"picture\"; filename=\"../cat.png\"", "GIF89a the bytes"),
            "--cut--\n".to_owned(),
        ];
        let (status, job) = post_form(&farm, &form.concat()).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{job}");
        assert_eq!((&job["priority"], &job["state"]), (&json!(70), &json!("queued")));
        let submission = farm.tables().submissions[0].clone();
        assert_eq!(submission.time_to_live, Some(Duration::from_secs(60)));
        assert_eq!(submission.parameters.get("prompt"), Some(&Argument::Value(json!("123"))));
        assert_eq!(submission.parameters.get("seed"), Some(&Argument::Value(json!(9))));
        let Some(Argument::File { blob, file_name }) = submission.parameters.get("picture") else {
            panic!("no file in {submission:?}");
        };
        assert_eq!(file_name, "cat.png");
        assert_eq!(farm.store.read_all(blob.hash, 100).await.unwrap(), b"GIF89a the bytes");
    }

    #[tokio::test]
    async fn form_with_a_wrong_part_leaves_nothing() {
        let farm = TestFarm::start().await;
        let check = async |parts: &[String], field: &str, rule: &str| {
            let (status, problem) = post_form(&farm, &(parts.concat() + "--cut--\n")).await;
            assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{problem}");
            let error = &problem["errors"][0];
            assert_eq!((&error["field"], &error["rule"]), (&json!(field), &json!(rule)));
        };
        check(&[part("name=\"seed\"; filename=\"x\"", "1")], "seed", "file").await;
        check(&[part("name=\"other\"; filename=\"x\"", "1")], "other", "unknown").await;
        check(&[part("name=\"seed\"", "1"), part("name=\"seed\"", "2")], "seed", "duplicate").await;
        check(&[part("name=\"seed\"", "many")], "seed", "type").await;
        let priority = || part("name=\"priority\"", "7");
        check(&[priority(), priority()], "priority", "duplicate").await;
        check(&[part("name=\"priority\"", "300")], "priority", "type").await;
        check(&[part("name=\"ttl_seconds\"", "soon")], "ttl_seconds", "type").await;
        let misnamed = part("name=\"other\"; filename=\"x\"", &"x".repeat(UPLOAD_LIMIT as usize - 1000));
        check(&[misnamed], "other", "unknown").await;
        let (status, _) = post_form(&farm, &part(&format!("name=\"{}\"", "n".repeat(2000)), "1")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        let long = part("name=\"picture\"; filename=\"x\"", &"x".repeat(UPLOAD_LIMIT as usize + 1));
        let (status, _) = post_form(&farm, &(long + "--cut--\n")).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
        assert!(farm.store.complete().is_empty());
    }

    #[tokio::test]
    async fn waiting_call_answers_with_the_ended_job_or_with_where_to_look() {
        let farm = TestFarm::start().await;
        let picture = farm.store.import_bytes(b"GIF89a").await.unwrap();
        let body = json!({ "input": { "picture": { "$asset": picture.hash } } });
        let (status, job) = farm.post(&format!("{JOBS}?wait=1ms"), body.clone()).await;
        assert_eq!((status, &job["state"]), (StatusCode::ACCEPTED, &json!("queued")));

        let path = format!("{JOBS}?wait=60s");
        let waiting = farm.post(&path, body);
        let ending = async {
            loop {
                let waits = farm.tables().jobs.keys().nth(1).copied();
                match waits {
                    Some(id) => break farm.tables().succeed(id, Vec::new()),
                    None => tokio::task::yield_now().await,
                }
            }
        };
        let ((status, job), ()) = tokio::join!(waiting, ending);
        assert_eq!((status, &job["state"]), (StatusCode::OK, &json!("succeeded")));
    }
}
