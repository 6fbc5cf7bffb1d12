//! Strict readings of a request: path, query and JSON body, where axum's own rejections become
//! problem documents and whatever is unknown is refused.
//!
//! Not here: bodies that are streamed (`upload`), or that come as a form (`v1/submit`).

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, RawQuery, Request};
use axum::http::header;
use axum::http::request::Parts;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::error::Category;

use crate::api::error::ApiError;
use crate::api::upload::read_body;

/// The longest JSON body of a command, in bytes.
pub(crate) const MAX_JSON: u64 = 1 << 20;

/// Parameters in the path. One that cannot be a name of anything is not found.
pub(crate) struct Path<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match axum::extract::Path::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(rejection) => Err(ApiError::NotFound(rejection.body_text())),
        }
    }
}

/// Parameters in the query; `T` denies unknown ones.
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match axum::extract::Query::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(ApiError::field("query", "query", rejection.body_text())),
        }
    }
}

/// That there are no parameters in the query.
pub(crate) struct NoQuery;

impl<S: Send + Sync> FromRequestParts<S> for NoQuery {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let RawQuery(query) = RawQuery::from_request_parts(parts, state).await.unwrap_or(RawQuery(None));
        match query.as_deref() {
            None | Some("") => Ok(Self),
            Some(query) => {
                let name = query.split(['=', '&']).next().unwrap_or(query);
                Err(ApiError::field(name, "unknown", "this path takes no query parameters"))
            }
        }
    }
}

/// A JSON body; `T` denies unknown fields.
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        if media_type(&request) != "application/json" {
            return Err(ApiError::UnsupportedMediaType("the body must be `application/json`".to_owned()));
        }
        parse_json(&read_body(request, MAX_JSON).await?).map(Self)
    }
}

/// Reads a JSON object: 400 where it is no JSON, also behind a fault of its shape; 422 where it is of
/// another shape.
pub(crate) fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let malformed = |error: serde_json::Error| ApiError::Malformed(format!("the body is not JSON: {error}"));
    serde_json::from_slice::<IgnoredAny>(bytes).map_err(malformed)?;
    // An array would be read as the object's fields in their order, which nobody means.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(ApiError::field("body", "type", "must be a JSON object"));
    }
    serde_json::from_slice(bytes).map_err(|error| match error.classify() {
        Category::Data => ApiError::field("body", "type", error.to_string()),
        Category::Io | Category::Syntax | Category::Eof => malformed(error),
    })
}

/// The media type of a body, in lower case and without parameters; empty where none is given.
pub(crate) fn media_type(request: &axum::http::Request<Body>) -> String {
    let value = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = value.unwrap_or("").split(';').next().unwrap_or("");
    essence.trim().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct InternalName {
        #[serde(rename = "version")]
        _version: u32,
    }

    #[test]
    fn what_is_no_json_is_malformed_and_what_is_no_such_object_invalid() {
        let check = |body: &str, malformed: bool| {
            let error = parse_json::<InternalName>(body.as_bytes()).unwrap_err();
            assert_eq!(matches!(error, ApiError::Malformed(_)), malformed, "{body}: {error}");
            assert!(!error.to_string().contains("InternalName"), "{body}: {error}");
        };
        check("", true);
        check(r#"{"version": 1"#, true);
        check(r#"{"unknown": 1, "version": "#, true);
        check(r#"{"version": 1} x"#, true);
        for body in
            ["[1]", "[]", "null", "7", r#""version""#, "{}", r#"{"version": "1"}"#, r#"{"unknown": 1}"#]
        {
            check(body, false);
        }
    }
}
