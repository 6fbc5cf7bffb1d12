//! The farm's OpenAPI 3.1 document: what is true of all routes, around what each route says of itself.
//!
//! `web/openapi.json` is its committed form, from which the page's types are made; a test below holds
//! the two together. Not here: the document of one workflow (`v1/workflow_document`).

use serde_json::{Value, json};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, InfoBuilder, OpenApi, OpenApiBuilder, SecurityRequirement};
use utoipa::{PartialSchema, ToSchema};

use crate::api::error::{FieldProblem, Problem};
use crate::api::v1::model::event::Event;

/// The media type of refusals.
const PROBLEM: &str = "application/problem+json";

/// Bytes as they are, of whatever media type stands beside them.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
pub(crate) struct Binary(#[expect(dead_code, reason = "it only describes a body")] Vec<u8>);

/// The document that the routes are added to.
pub(crate) fn base() -> OpenApi {
    let info = InfoBuilder::new()
        .title("comfy-farm")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "The API of a farm: deployed workflows, jobs on them, and the nodes that do the jobs. URLs in \
             answers are paths on this server. Whatever is unknown, in a query or in a body, is refused.",
        ))
        .build();
    let key = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("A key of the farm; the coordinator prints the first one at its first start."))
        .build();
    let mut schemas = Vec::new();
    Event::schemas(&mut schemas);
    Problem::schemas(&mut schemas);
    let components = ComponentsBuilder::new()
        .security_scheme("key", SecurityScheme::Http(key))
        .schema(<Event as ToSchema>::name(), Event::schema())
        .schema(<Problem as ToSchema>::name(), Problem::schema())
        .schema(<FieldProblem as ToSchema>::name(), FieldProblem::schema())
        .schemas_from_iter(schemas)
        .build();
    let key_needed = SecurityRequirement::new("key", Vec::<String>::new());
    OpenApiBuilder::new().info(info).components(Some(components)).security(Some([key_needed])).build()
}

/// The document with the routes in it, completed: every operation says what its refusals look like.
pub(crate) fn complete(document: OpenApi) -> Value {
    let mut document = serde_json::to_value(document).expect("the document has only text keys");
    let refusal = json!({
        "description": "Why the request was refused (RFC 9457)",
        "content": { PROBLEM: { "schema": { "$ref": "#/components/schemas/Problem" } } },
    });
    let paths = document["paths"].as_object_mut().expect("the document has paths");
    for operation in paths.values_mut().filter_map(Value::as_object_mut).flat_map(|item| item.values_mut()) {
        if let Some(responses) = operation.get_mut("responses").and_then(Value::as_object_mut) {
            for response in responses.values_mut().filter_map(Value::as_object_mut) {
                response.entry("description").or_insert_with(|| json!("As asked"));
            }
            responses.insert("default".to_owned(), refusal.clone());
        }
    }
    document
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::api::v1;

    #[test]
    fn committed_document_is_the_document_of_the_routes() {
        let (_, document) = v1::routes().split_for_parts();
        let mut text = serde_json::to_string_pretty(&complete(document)).unwrap();
        text.push('\n');
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../web/openapi.json");
        if std::env::var_os("COMFY_FARM_UPDATE_OPENAPI").is_some_and(|value| value == "1") {
            std::fs::write(&path, &text).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == text,
            "web/openapi.json is not what the routes say; run this test with COMFY_FARM_UPDATE_OPENAPI=1 \
             and commit the file"
        );
    }
}
