//! `comfy-farm schema`: the API that a file would get, without a farm.

use protocol::{Input, InputKind};
use serde_json::json;

use crate::args::SchemaArguments;
use crate::commands::bundle::read;
use crate::failure::Failure;
use crate::show;

pub(super) fn schema(arguments: &SchemaArguments) -> anyhow::Result<()> {
    let bundle = read(&arguments.file)?;
    let exposure = arguments.expose.exposure().or(&bundle.manifest.interface);
    let interface = exposure.interface(&bundle.workflow, None);
    let interface = interface.map_err(|error| Failure::Input(error.to_string()))?;
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
        vec![input.name.clone(), type_of(input), default, input.op.clone()]
    });
    show::table(&["INPUT", "TYPE", "DEFAULT", "NODE"], &rows.collect::<Vec<_>>());
    println!();
    let rows = interface
        .outputs
        .iter()
        .map(|output| vec![output.name.clone(), output.media_type().to_owned(), output.op.clone()]);
    show::table(&["OUTPUT", "MEDIA TYPE", "NODE"], &rows.collect::<Vec<_>>());
    for repair in &bundle.repairs {
        eprintln!("note: {repair}");
    }
    Ok(())
}

/// The type of an input in words, with its limits.
fn type_of(input: &Input) -> String {
    let range = |word: &str, range: &protocol::Range| match (&range.minimum, &range.maximum) {
        (None, None) => word.to_owned(),
        (Some(least), None) => format!("{word} from {least}"),
        (None, Some(most)) => format!("{word} to {most}"),
        (Some(least), Some(most)) => format!("{word} {least} to {most}"),
    };
    match &input.kind {
        InputKind::Text => "text".to_owned(),
        InputKind::Integer(limits) => range("integer", limits),
        InputKind::Number(limits) => range("number", limits),
        InputKind::Boolean => "true or false".to_owned(),
        InputKind::Choice { values } => {
            let values: Vec<_> = values.iter().map(ToString::to_string).collect();
            format!("one of {}", values.join(", "))
        }
        InputKind::Null => "null".to_owned(),
        InputKind::List => "list".to_owned(),
        InputKind::Object => "object".to_owned(),
        InputKind::Image => "picture".to_owned(),
        InputKind::File => "file".to_owned(),
    }
}
