//! Whether ComfyUI lists the models that a workflow names.
//!
//! Asked before a prompt, because ComfyUI itself refuses some missing models only in the middle of a
//! run. Not here: fetching models.

use protocol::{FailedOp, RunError, RunErrorKind, Workflow};
use serde_json::Value;

/// One place of a workflow where a model is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NamedModel<'a> {
    pub(super) op: &'a str,
    pub(super) class: &'a str,
    pub(super) input: &'a str,
    pub(super) model: &'a str,
}

/// Whether a value looks like the file of a model by its ending.
pub(crate) fn names_a_model(value: &str) -> bool {
    const ENDINGS: [&str; 20] = [
        ".safetensors",
        ".sft",
        ".ckpt",
        ".pt",
        ".pt2",
        ".pth",
        ".bin",
        ".gguf",
        ".ggml",
        ".onnx",
        ".engine",
        ".trt",
        ".plan",
        ".pkl",
        ".pickle",
        ".npz",
        ".tflite",
        ".pb",
        ".h5",
        ".torchscript",
    ];
    let value = value.to_ascii_lowercase();
    ENDINGS.iter().any(|ending| value.ends_with(ending))
}

/// Every place where a workflow names a model.
pub(super) fn named(workflow: &Workflow) -> Vec<NamedModel<'_>> {
    let inputs = workflow.iter().flat_map(|(id, op)| op.inputs.iter().map(move |input| (id, op, input)));
    let models = inputs.filter_map(|(id, op, (input, value))| {
        let model = value.as_str().filter(|value| names_a_model(value))?;
        Some(NamedModel { op: id, class: &op.class_type, input, model })
    });
    models.collect()
}

impl NamedModel<'_> {
    /// The error if the class's input is a choice and this model is none of it. `info` is the class's
    /// entry in `/object_info`.
    pub(super) fn check(&self, info: &Value) -> Result<(), RunError> {
        let choices =
            ["required", "optional"].iter().find_map(|part| choices(&info["input"][part][self.input]));
        // An input that is free text names a model in a way of its own; the op will tell.
        let Some(choices) = choices else { return Ok(()) };
        let is_this = |choice: &Value| {
            choice.as_str().is_some_and(|choice| choice.replace('\\', "/") == self.model.replace('\\', "/"))
        };
        if choices.iter().any(is_this) {
            return Ok(());
        }
        let Self { op, class, input, model } = self;
        let detail = format!(
            "op `{op}` ({class}): this ComfyUI lists no `{model}` for `{input}`; put it into its models folder"
        );
        let op = FailedOp { id: (*op).to_owned(), class: (*class).to_owned(), traceback: None };
        Err(RunError::of_op(RunErrorKind::MissingModel, detail, op))
    }
}

/// The choices of an input, in both forms that ComfyUI has for them.
fn choices(input: &Value) -> Option<&Vec<Value>> {
    match &input[0] {
        Value::Array(choices) => Some(choices),
        Value::String(kind) if kind == "COMBO" => input[1]["options"].as_array(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(ops: Value, missing: Option<&str>) {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/facts/comfyui/object_info.json");
        let info: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let workflow = Workflow::parse(&serde_json::to_vec(&ops).unwrap()).unwrap();
        let checked: Result<Vec<()>, RunError> =
            named(&workflow).iter().map(|model| model.check(&info[model.class])).collect();
        let error = checked.err();
        assert_eq!(error.as_ref().map(|error| error.kind), missing.map(|_| RunErrorKind::MissingModel));
        if let (Some(error), Some(missing)) = (error, missing) {
            assert!(error.detail.contains(missing), "{error}");
        }
    }

    #[test]
    fn models_are_looked_up_in_what_comfyui_lists() {
        let loader =
            |model: &str| json!({"1": {"class_type": "UpscaleModelLoader", "inputs": {"model_name": model}}});
        check(loader("tiny-esrgan.safetensors"), None);
        check(loader("absent.safetensors"), Some("lists no `absent.safetensors` for `model_name`"));
        let checkpoint =
            json!({"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.ckpt"}}});
        check(checkpoint, Some("lists no `a.ckpt`"));
        let prose =
            json!({"1": {"class_type": "CLIPTextEncode", "inputs": {"text": "a photo of model.bin"}}});
        check(prose, None);
    }

    #[test]
    fn links_and_other_values_name_no_model() {
        let ops = json!({
            "1": {"class_type": "A", "inputs": {"x": ["a.pt", 0], "y": 7, "z": "cat.png", "v": "B.SafeTensors"}},
        });
        let workflow = Workflow::parse(&serde_json::to_vec(&ops).unwrap()).unwrap();
        let models = named(&workflow);
        assert_eq!(models, [NamedModel { op: "1", class: "A", input: "v", model: "B.SafeTensors" }]);
    }
}
