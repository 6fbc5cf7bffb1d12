//! `comfy-farm deploy`.

mod author;
mod keeping;
mod models;

use std::path::Path;

use protocol::WorkflowName;
use serde_json::Value;

use crate::args::DeployArguments;
use crate::client::{Client, ClientError};
use crate::commands::{connect, text};
use crate::failure::Failure;
use crate::settings::SettingsFile;
use crate::show;

pub(super) async fn deploy(arguments: &DeployArguments, file: &SettingsFile) -> anyhow::Result<()> {
    let (client, json) = connect(&arguments.tool, file);
    let name = match &arguments.name {
        Some(name) => name.clone(),
        None => name_of(&arguments.file)?,
    };
    let mut query = vec![("name", name)];
    query.extend(arguments.expose.input.iter().map(|input| ("input", input.to_string())));
    query.extend(arguments.expose.output.iter().map(|output| ("output", output.clone())));
    query.extend(arguments.private.iter().map(|model| ("private", model.clone())));
    if arguments.accept_attached {
        query.push(("accept_attached", "true".to_owned()));
    }
    if arguments.keep_signature {
        query.push(("keep_signature", "true".to_owned()));
    }
    let deployed = match client.deploy(&arguments.file, &query).await {
        Err(ClientError::Refused { problem, .. }) if problem["candidates"].is_object() => {
            if json {
                show::json(&problem);
            }
            return Err(Failure::Input(candidates(&problem)).into());
        }
        deployed => deployed?,
    };
    if json {
        show::json(&deployed);
    } else {
        tell(&client, &deployed);
    }
    if arguments.models.is_empty() { Ok(()) } else { keeping::keep(arguments, &client, &deployed).await }
}

fn tell(client: &Client, deployed: &Value) {
    println!("deployed {}@{}", text(deployed, "name"), deployed["version"]);
    println!("  call      {}", client.absolute(text(deployed, "url")));
    println!("  OpenAPI   {}", client.absolute(text(deployed, "openapi_url")));
    for (title, list) in
        [("input", "inputs"), ("output", "outputs"), ("missing", "missing"), ("note", "notes")]
    {
        for entry in deployed[list].as_array().into_iter().flatten() {
            println!("  {title:8}  {}", one_line(entry));
        }
    }
}

/// `Pixel Art.cpack.zip` is deployed as `pixel-art`.
fn name_of(file: &Path) -> Result<String, Failure> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.split('.').next().unwrap_or_default();
    let name = WorkflowName::from_free_text(stem);
    let hint = || Failure::Input(format!("`{stem}` makes no workflow name: give one with `--name`"));
    name.map(|name| name.to_string()).ok_or_else(hint)
}

fn one_line(entry: &Value) -> String {
    match entry {
        Value::String(text) => text.clone(),
        entry if entry["detail"].is_string() => format!("{}: {}", text(entry, "name"), text(entry, "detail")),
        entry => {
            let kind = [text(entry, "type"), text(entry, "media_type")].concat();
            let default = &entry["default"];
            let default = if default.is_null() { String::new() } else { format!(" = {default}") };
            format!("{} ({kind}){default}", text(entry, "name"))
        }
    }
}

/// What the workflow could expose, as flags to copy.
fn candidates(problem: &Value) -> String {
    let mut words = "the workflow does not say what comes in and out; choose with:".to_owned();
    for input in problem["candidates"]["inputs"].as_array().into_iter().flatten() {
        let place = text(input, "input");
        let field = place.split_once('.').map_or(place, |(_, field)| field);
        let (class, value) = (text(input, "class"), &input["value"]);
        words.push_str(&format!("\n  --input {field}={place}  ({class}, now {value})"));
    }
    for output in problem["candidates"]["outputs"].as_array().into_iter().flatten() {
        words.push_str(&format!("\n  --output {}  ({})", text(output, "node"), text(output, "class")));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_made_of_the_file_name() {
        assert_eq!(name_of(Path::new("x/Pixel Art.cpack.zip")).expect("has letters"), "pixel-art");
        assert!(name_of(Path::new("***.json")).is_err());
    }
}
