//! The OpenAPI 3.1 document of one deployed workflow: its call with its own input, and its outputs by
//! name, with the media type of each and whether it is one file or many.
//!
//! What all workflows share (a job, a refusal) is taken from the farm's document. Not here: that
//! document (`openapi`).

use std::collections::BTreeSet;

use protocol::{InputKind, Interface, Output};
use serde_json::{Map, Value, json};

use crate::api::v1::submit::MAX_TTL_SECONDS;
use crate::view::DeployedWorkflow;

/// Schemas of the farm's document that this one refers to.
const SHARED: [&str; 4] = ["Job", "Problem", "Asset", "Binary"];

/// The document of a workflow. `pinned` makes its paths name the version.
pub(super) fn of(deployed: &DeployedWorkflow, pinned: bool, farm: &Value) -> Value {
    let interface = &deployed.interface;
    let name = if pinned { deployed.id.to_string() } else { deployed.id.name.to_string() };
    let mut schemas = shared_schemas(farm);
    schemas.insert("Input".to_owned(), json_input(interface));
    schemas.insert("Submission".to_owned(), submission());
    schemas.insert("Form".to_owned(), form_input(interface));
    let mut paths = Map::new();
    let operation = format!("/v1/workflows/{name}/jobs");
    paths.insert(operation, json!({ "post": submit_operation(&name, interface) }));
    for shared in ["/v1/jobs/{id}", "/v1/jobs/{id}/cancel", "/v1/assets"] {
        if let Some(item) = farm["paths"].get(shared) {
            paths.insert(shared.to_owned(), item.clone());
        }
    }
    for output in &interface.outputs {
        let (path, item) = output_path(output);
        paths.insert(path, item);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": name,
            "version": deployed.id.version.to_string(),
            "description": format!("The workflow `{}` of a comfy-farm.", deployed.id),
        },
        "servers": [{ "url": "/" }],
        "security": [{ "key": [] }],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": farm["components"]["securitySchemes"],
        },
    })
}

fn submit_operation(name: &str, interface: &Interface) -> Value {
    let job = |description: &str| {
        json!({
            "description": description,
            "headers": { "Location": { "description": "The job", "schema": { "type": "string" } } },
            "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Job" } } },
        })
    };
    let outputs: Vec<String> = interface.outputs.iter().map(in_words).collect();
    let encoding: Map<String, Value> = interface.inputs.iter().filter_map(form_encoding).collect();
    json!({
        "operationId": "submit_job",
        "summary": format!("Run {name}"),
        "description": format!("Its outputs: {}.", outputs.join("; ")),
        "parameters": [{
            "name": "wait",
            "in": "query",
            "description": "Wait up to this long for the job's end, such as `30s`; at most `5m`",
            "schema": { "type": "string" },
        }],
        "requestBody": {
            "required": true,
            "content": {
                "application/json": { "schema": { "$ref": "#/components/schemas/Submission" } },
                "multipart/form-data": {
                    "schema": { "$ref": "#/components/schemas/Form" },
                    "encoding": encoding,
                },
            },
        },
        "responses": {
            "200": job("The job has ended"),
            "202": job("The job is queued or running"),
            "default": {
                "description": "Why the request was refused (RFC 9457)",
                "content": {
                    "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } },
                },
            },
        },
    })
}

fn in_words(output: &Output) -> String {
    let count = if output.many() { "one or more files" } else { "one file" };
    format!("`{}`, {count} of {}", output.name, output.media_type())
}

fn ttl_seconds() -> Value {
    json!({
        "type": "integer",
        "minimum": 1,
        "maximum": MAX_TTL_SECONDS,
        "description": "How many seconds the job may wait for a node before it expires",
    })
}

fn submission() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["input"],
        "properties": {
            "input": { "$ref": "#/components/schemas/Input" },
            "priority": { "type": "integer", "minimum": 0, "maximum": 100, "default": 50 },
            "ttl_seconds": ttl_seconds(),
        },
    })
}

/// The input as JSON: a file is an asset that was sent before.
fn json_input(interface: &Interface) -> Value {
    let asset = json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["$asset"],
        "properties": {
            "$asset": { "type": "string", "pattern": "^[0-9a-f]{64}$", "description": "The `hash` of an asset" },
            "file_name": { "type": "string" },
        },
    });
    with_files(interface, &asset)
}

/// The input as a form: a file is a part.
fn form_input(interface: &Interface) -> Value {
    let mut form = with_files(interface, &json!({ "type": "string", "format": "binary" }));
    if interface.input("ttl_seconds").is_none() {
        form["properties"]["ttl_seconds"] = ttl_seconds();
    }
    if interface.input("priority").is_none() {
        form["properties"]["priority"] = json!({ "type": "integer", "minimum": 0, "maximum": 100 });
    }
    form
}

fn with_files(interface: &Interface, file: &Value) -> Value {
    let mut schema = interface.json_schema();
    schema["additionalProperties"] = json!(false);
    for input in interface.inputs.iter().filter(|input| input.takes_file()) {
        let mut one = file.clone();
        one["title"] = json!(input.title);
        schema["properties"][&input.name] = one;
    }
    schema
}

/// How a part of the form is written, where it is not plain text.
fn form_encoding(input: &protocol::Input) -> Option<(String, Value)> {
    let content_type = match input.kind {
        InputKind::Image => "image/*",
        InputKind::File => "*/*",
        InputKind::List | InputKind::Object => "application/json",
        _ => return None,
    };
    Some((input.name.clone(), json!({ "contentType": content_type })))
}

fn output_path(output: &Output) -> (String, Value) {
    let base = format!("/v1/jobs/{{id}}/outputs/{}", output.name);
    let id = json!({
        "name": "id", "in": "path", "required": true, "description": "The job",
        "schema": { "type": "string", "format": "uuid" },
    });
    let index = json!({
        "name": "index", "in": "path", "required": true,
        "description": "Its place among the files of the output, from 0",
        "schema": { "type": "integer", "minimum": 0 },
    });
    let (path, parameters) =
        if output.many() { (format!("{base}/{{index}}"), json!([id, index])) } else { (base, json!([id])) };
    let operation = json!({
        "operationId": format!("get_output_{}", output.name),
        "summary": format!("The output {}", in_words(output)),
        "parameters": parameters,
        "responses": {
            "200": {
                "description": "The file",
                "content": { output.media_type(): { "schema": { "type": "string", "format": "binary" } } },
            },
            "default": {
                "description": "Why the request was refused (RFC 9457)",
                "content": {
                    "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } },
                },
            },
        },
        "x-many": output.many(),
    });
    (path, json!({ "get": operation }))
}

/// The shared schemas, and all that they refer to.
fn shared_schemas(farm: &Value) -> Map<String, Value> {
    let all = &farm["components"]["schemas"];
    let mut wanted: Vec<String> = SHARED.iter().map(|&name| name.to_owned()).collect();
    let mut found = BTreeSet::new();
    let mut schemas = Map::new();
    while let Some(name) = wanted.pop() {
        if let Some(schema) = all.get(&name).filter(|_| found.insert(name.clone())) {
            collect_references(schema, &mut wanted);
            schemas.insert(name, schema.clone());
        }
    }
    schemas
}

fn collect_references(schema: &Value, names: &mut Vec<String>) {
    match schema {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value.as_str().and_then(|text| text.strip_prefix("#/components/schemas/")) {
                    Some(name) if key == "$ref" => names.push(name.to_owned()),
                    _ => collect_references(value, names),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| collect_references(value, names)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::testing::{TestFarm, deployed};

    /// Every `$ref` of a document points into it.
    fn assert_references_hold(document: &Value) {
        let mut names = Vec::new();
        collect_references(document, &mut names);
        assert!(!names.is_empty());
        for name in names {
            assert!(document["components"]["schemas"][&name].is_object(), "{name}");
        }
    }

    #[tokio::test]
    async fn document_types_the_input_and_names_the_outputs() {
        let farm = TestFarm::start().await;
        let (status, document) = farm.get("/v1/workflows/paint/openapi.json").await;
        assert_eq!(status, 200);
        assert_references_hold(&document);
        let operation = &document["paths"]["/v1/workflows/paint/jobs"]["post"];
        assert!(
            operation["description"].as_str().unwrap().contains("`image`, one or more files of image/png")
        );
        let input = &document["components"]["schemas"]["Input"];
        assert_eq!(input["required"], json!(["picture"]));
        assert_eq!(input["properties"]["seed"]["maximum"], 100);
        assert_eq!(input["properties"]["picture"]["required"], json!(["$asset"]));
        let form = &document["components"]["schemas"]["Form"];
        assert_eq!(form["properties"]["picture"]["format"], "binary");
        assert_eq!(
            operation["requestBody"]["content"]["multipart/form-data"]["encoding"]["picture"]["contentType"],
            "image/*"
        );
        let output = &document["paths"]["/v1/jobs/{id}/outputs/image/{index}"]["get"];
        assert!(output["responses"]["200"]["content"]["image/png"].is_object());
    }

    #[test]
    fn document_of_a_version_calls_that_version() {
        let farm = json!({ "paths": {}, "components": { "schemas": {}, "securitySchemes": {} } });
        let document = of(&deployed("paint", 3), true, &farm);
        assert!(document["paths"]["/v1/workflows/paint@3/jobs"].is_object());
    }
}
