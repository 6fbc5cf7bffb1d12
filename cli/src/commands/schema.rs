//! `comfy-farm schema`: the API that a file would get, without a farm.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use protocol::{BlobRef, Bundle, BundleLimits, Interface, read_bundle};
use serde_json::json;

use crate::args::{ExposeArguments, SchemaArguments};
use crate::failure::Failure;
use crate::show;

pub(super) fn schema(arguments: &SchemaArguments) -> anyhow::Result<()> {
    let bundle = read(&arguments.file)?;
    let interface = interface(&bundle, &arguments.expose)?;
    if arguments.json {
        show::json(&json!({
            "input_json_schema": interface.json_schema(),
            "input_nodes": interface.input_nodes(),
            "output_nodes": interface.output_nodes(),
        }));
        return Ok(());
    }
    let rows = interface.inputs.iter().map(|input| {
        let default = input.default.as_ref().map_or_else(|| "required".to_owned(), |value| value.to_string());
        vec![input.name.clone(), input.kind.to_string(), default, input.op.clone()]
    });
    show::table(&["INPUT", "TYPE", "DEFAULT", "NODE"], &rows.collect::<Vec<_>>());
    println!();
    let rows = interface.outputs.iter().map(|output| {
        vec![output.name.clone(), output.kind.media_type().to_owned(), output.op.clone()]
    });
    show::table(&["OUTPUT", "MEDIA TYPE", "NODE"], &rows.collect::<Vec<_>>());
    for repair in &bundle.repairs {
        eprintln!("note: {repair}");
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Bundle> {
    let shown = path.display();
    let file = File::open(path).map_err(|error| Failure::Input(format!("`{shown}` cannot be read: {error}")))?;
    let wrong = |error: &dyn std::fmt::Display| Failure::Input(format!("`{shown}`: {error}"));
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json")) {
        let mut bytes = Vec::new();
        file.take(protocol::MAX_WORKFLOW_BYTES as u64 + 1).read_to_end(&mut bytes)?;
        return Ok(Bundle::from_workflow(&bytes).map_err(|error| wrong(&error))?);
    }
    // Only the interface is wanted, so the inputs are read past.
    let mut count = |_: &str, entry: &mut dyn Read| {
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        Ok(BlobRef::of(&bytes))
    };
    let bundle = read_bundle(BufReader::new(file), &BundleLimits::default(), &mut count);
    Ok(bundle.map_err(|error| wrong(&error))?)
}

fn interface(bundle: &Bundle, expose: &ExposeArguments) -> anyhow::Result<Interface> {
    let made = if expose.input.is_empty() && expose.output.is_empty() {
        Interface::of(&bundle.workflow)
    } else {
        Interface::expose(&bundle.workflow, &expose.input, &expose.output, None)
    };
    Ok(made.map_err(|error| Failure::Input(error.to_string()))?)
}
