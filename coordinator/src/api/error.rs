//! The one place where an error becomes a status and a body: problem documents of RFC 9457.
//!
//! 400 is for what cannot be parsed, 422 for what is parsed and invalid or unknown. Not here: the
//! shapes that the compatible surfaces answer with.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use mesh::store::StoreError;
use protocol::{FieldError, Rule};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::v1::model::workflow::DeployCandidates;
use crate::handle::{CommandError, Stopping};

/// Why a request got no other answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// The request cannot be parsed.
    #[error("{0}")]
    Malformed(String),
    /// It is parsed, and one or more fields of it are invalid or unknown.
    #[error("{detail}")]
    Invalid {
        /// What is invalid, in words.
        detail: String,
        /// Field by field.
        errors: Vec<FieldProblem>,
    },
    /// A workflow to deploy exposes no output.
    #[error(
        "this workflow has no output: name at least one with `output=NODE`, and inputs with \
         `input=NAME=NODE.FIELD`; `candidates` lists what there is"
    )]
    NothingExposed(Box<DeployCandidates>),
    /// There is no key, or a wrong one.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// A web page of somewhere else sent it.
    #[error("{0}")]
    Forbidden(String),
    /// It was sent to a name that is not this farm's.
    #[error(
        "this farm does not answer to the host `{0}`; allow it with `--allow-host` if it is the farm's name"
    )]
    Misdirected(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// The path is there, and does not take this method.
    #[error("this path does not take that method")]
    MethodNotAllowed,
    /// What is asked for does not fit the state of the thing.
    #[error("{0}")]
    Conflict(String),
    /// The body is longer than is taken.
    #[error("the body is longer than {limit} bytes, which is the most that is taken here")]
    TooLarge {
        /// The most that is taken, in bytes.
        limit: u64,
    },
    /// The body does not come.
    #[error("nothing of the body came for {0} seconds")]
    TooSlow(u64),
    /// The body is of another kind.
    #[error("{0}")]
    UnsupportedMediaType(String),
    /// The range lies beyond the end.
    #[error("the range lies beyond the end of {size} bytes")]
    RangeNotSatisfiable {
        /// How many bytes there are.
        size: u64,
    },
    /// The coordinator could not carry it out.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The blob store failed.
    #[error("the coordinator's blob store failed")]
    Store(#[from] StoreError),
    /// A file of ours could not be written or read.
    #[error("{attempt} did not succeed")]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// A handler panicked; the log has more.
    #[error("the coordinator failed at this request; its log says more")]
    Panic,
}

/// Why a request was refused (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// Which kind of problem it is, as a fixed name: `urn:comfy-farm:problem:invalid`.
    r#type: String,
    /// That kind in words.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// What was wrong, and what to do.
    detail: String,
    /// Field by field, where fields are to blame.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    errors: Vec<FieldProblem>,
    /// What a workflow to deploy could expose, where it exposes nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    candidates: Option<DeployCandidates>,
}

/// What is wrong with one field.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct FieldProblem {
    /// The field.
    pub(crate) field: String,
    /// The rule that it breaks, such as `type`, `maximum` or `unknown`.
    pub(crate) rule: String,
    /// In words.
    pub(crate) message: String,
}

impl FieldProblem {
    /// A field that breaks a rule.
    pub(crate) fn new(field: impl Into<String>, rule: &str, message: impl Into<String>) -> Self {
        Self { field: field.into(), rule: rule.to_owned(), message: message.into() }
    }
}

impl From<FieldError> for FieldProblem {
    fn from(error: FieldError) -> Self {
        let rule = match error.rule {
            Rule::Type => "type",
            Rule::Minimum => "minimum",
            Rule::Maximum => "maximum",
            Rule::Enum => "enum",
            Rule::Required => "required",
            Rule::Unknown => "unknown",
            Rule::File => "file",
        };
        Self::new(error.field, rule, error.message)
    }
}

impl From<Stopping> for ApiError {
    fn from(stopping: Stopping) -> Self {
        Self::Command(stopping.into())
    }
}

impl ApiError {
    /// One field that breaks a rule.
    pub(crate) fn field(field: &str, rule: &str, message: impl Into<String>) -> Self {
        Self::fields(vec![FieldProblem::new(field, rule, message)])
    }

    /// Fields that break rules; there is at least one.
    pub(crate) fn fields(errors: Vec<FieldProblem>) -> Self {
        let named: Vec<String> =
            errors.iter().map(|error| format!("`{}`: {}", error.field, error.message)).collect();
        Self::Invalid { detail: named.join("; "), errors }
    }

    /// What the caller sees of it: the status, a name for the kind of problem, and the kind in words.
    fn classify(&self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::Malformed(_) => (StatusCode::BAD_REQUEST, "malformed", "cannot be parsed"),
            Self::Invalid { .. } => {
                (StatusCode::UNPROCESSABLE_ENTITY, "invalid", "invalid or unknown fields")
            }
            Self::NothingExposed(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "nothing-exposed", "workflow without an output")
            }
            Self::Unauthorized(_) => (StatusCode::UNAUTHORIZED, "unauthorized", "a key is needed"),
            Self::Forbidden(_) => (StatusCode::FORBIDDEN, "forbidden", "refused"),
            Self::Misdirected(_) => {
                (StatusCode::MISDIRECTED_REQUEST, "misdirected", "not a name of this farm")
            }
            Self::NotFound(_) => (StatusCode::NOT_FOUND, "not-found", "not found"),
            Self::MethodNotAllowed => {
                (StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "method not allowed")
            }
            Self::Conflict(_) => (StatusCode::CONFLICT, "conflict", "does not fit the present state"),
            Self::TooLarge { .. } | Self::Command(CommandError::ParametersTooLarge(_)) => {
                (StatusCode::PAYLOAD_TOO_LARGE, "too-large", "too large")
            }
            Self::TooSlow(_) => (StatusCode::REQUEST_TIMEOUT, "too-slow", "the body does not come"),
            Self::UnsupportedMediaType(_) => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "unsupported media type")
            }
            Self::RangeNotSatisfiable { .. } => {
                (StatusCode::RANGE_NOT_SATISFIABLE, "range", "range not satisfiable")
            }
            Self::Command(CommandError::UnknownWorkflow(_)) => {
                (StatusCode::NOT_FOUND, "not-found", "not found")
            }
            Self::Command(CommandError::QueueFull(_)) => {
                (StatusCode::SERVICE_UNAVAILABLE, "queue-full", "the queue is full")
            }
            Self::Command(CommandError::Stopping(_)) => {
                (StatusCode::SERVICE_UNAVAILABLE, "stopping", "the coordinator is stopping")
            }
            Self::Command(CommandError::Store(_)) | Self::Store(_) | Self::Io { .. } | Self::Panic => {
                (StatusCode::INTERNAL_SERVER_ERROR, "internal", "the coordinator failed")
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, kind, title) = self.classify();
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(error = &self as &dyn std::error::Error, "request failed");
        }
        let detail = self.to_string();
        let mut headers = vec![(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"))];
        match &self {
            Self::Unauthorized(_) => {
                let challenge = HeaderValue::from_static("Bearer realm=\"comfy-farm\"");
                headers.push((header::WWW_AUTHENTICATE, challenge));
            }
            Self::RangeNotSatisfiable { size } => {
                let range = HeaderValue::try_from(format!("bytes */{size}")).expect("digits are a header");
                headers.push((header::CONTENT_RANGE, range));
            }
            Self::Command(CommandError::QueueFull(_)) => {
                headers.push((header::RETRY_AFTER, HeaderValue::from_static("5")));
            }
            _ => {}
        }
        let (errors, candidates) = match self {
            Self::Invalid { errors, .. } => (errors, None),
            Self::NothingExposed(candidates) => (Vec::new(), Some(*candidates)),
            _ => (Vec::new(), None),
        };
        let r#type = format!("urn:comfy-farm:problem:{kind}");
        let problem = Problem { r#type, title, status: status.as_u16(), detail, errors, candidates };
        let body = serde_json::to_vec(&problem).expect("a problem has only text keys");
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        response.headers_mut().extend(headers);
        response
    }
}
