//! An interface for any workflow: the inputs and outputs that its deployer names, with types from
//! ComfyUI's `/object_info` or, without it, from the values in the graph.
//!
//! Not here: comfy-pack's own ops; those are exposed by themselves (`schema/comfy_pack.rs`).

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::comfy_pack::output_name;
use super::name::{is_identifier, title_of};
use super::{Input, InputKind, Interface, Output, Range, SchemaError};
use crate::nearest::nearest;
use crate::workflow::{Op, Workflow, link_of};

/// The longest name of an exposed input, in bytes.
const MAX_NAME: usize = 64;
/// How many ops of a workflow are listed where one that is named is not there.
const MAX_LISTED: usize = 40;
/// ComfyUI's own classes that people take for an output although they only pass something on.
const SAVES_NOTHING: [&str; 10] = [
    "EmptyImage",
    "ImageCrop",
    "ImageInvert",
    "ImageScale",
    "ImageScaleBy",
    "KSampler",
    "KSamplerAdvanced",
    "LoadImage",
    "VAEDecode",
    "VAEDecodeTiled",
];

/// An input that a deployer names: `NAME=NODE.FIELD`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ExposedInput {
    /// Its name in the API.
    pub name: String,
    /// The op that has it.
    pub op: String,
    /// The op's input.
    pub field: String,
}

/// A text that is not `NAME=NODE.FIELD`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not NAME=NODE.FIELD, such as prompt=6.text, with a NAME of letters, digits and `_`")]
pub struct ParseExposedInputError(String);

impl FromStr for ExposedInput {
    type Err = ParseExposedInputError;

    fn from_str(text: &str) -> Result<Self, ParseExposedInputError> {
        let parse = || {
            let (name, place) = text.split_once('=')?;
            let (op, field) = place.split_once('.')?;
            let valid = is_identifier(name) && name.len() <= MAX_NAME && !op.is_empty() && !field.is_empty();
            valid.then(|| Self { name: name.to_owned(), op: op.to_owned(), field: field.to_owned() })
        };
        parse().ok_or_else(|| ParseExposedInputError(text.chars().take(200).collect()))
    }
}

impl TryFrom<String> for ExposedInput {
    type Error = ParseExposedInputError;

    fn try_from(text: String) -> Result<Self, ParseExposedInputError> {
        text.parse()
    }
}

impl From<ExposedInput> for String {
    fn from(exposed: ExposedInput) -> Self {
        exposed.to_string()
    }
}

impl fmt::Display for ExposedInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}.{}", self.name, self.op, self.field)
    }
}

/// Why an input or output cannot be exposed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExposeError {
    /// The workflow's own interface cannot be read.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// The workflow has no such op.
    #[error("the workflow has no op `{op}`{meant}; {known}")]
    NoSuchOp {
        /// What was named.
        op: String,
        /// What may have been meant, in words.
        meant: String,
        /// The ops that it has, in words.
        known: String,
    },
    /// The op has no such input.
    #[error("op `{op}` (`{class_type}`) has no input `{field}`{meant}; it has {known}")]
    NoSuchField {
        /// The op.
        op: String,
        /// Its class.
        class_type: String,
        /// What was named.
        field: String,
        /// What may have been meant, in words.
        meant: String,
        /// The inputs that it has.
        known: String,
    },
    /// The input takes its value from another op.
    #[error("input `{op}.{field}` is wired to op `{source_op}`: expose an input of that one")]
    Wired {
        /// The op.
        op: String,
        /// Its input.
        field: String,
        /// Where its value comes from.
        source_op: String,
    },
    /// Two inputs would have one name.
    #[error("the name `{name}` is given to two inputs")]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// The op named as an output saves no file.
    #[error("op `{op}` (`{class_type}`) saves no file, so it is no output; {savers}")]
    NotAnOutput {
        /// The op.
        op: String,
        /// Its class.
        class_type: String,
        /// The ops that could be outputs, in words.
        savers: String,
    },
}

/// What could be exposed of a workflow.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Candidates {
    /// Inputs with a value of their own.
    pub inputs: Vec<CandidateInput>,
    /// Ops that seem to write results.
    pub outputs: Vec<CandidateOutput>,
}

/// An input that could be exposed, written `NODE.FIELD`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CandidateInput {
    /// The op's id.
    pub op: String,
    /// The op's title, or its class.
    pub title: String,
    /// The op's input.
    pub field: String,
    /// What the graph holds.
    pub value: Value,
}

/// An op that could be named as output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CandidateOutput {
    /// The op's id.
    pub op: String,
    /// The op's title, or its class.
    pub title: String,
    /// The op's class.
    pub class_type: String,
}

impl Interface {
    /// The workflow's own interface and, after it, the inputs and outputs named here.
    ///
    /// `object_info` is ComfyUI's answer to `GET /object_info`, or the part of it that has the classes
    /// of the ops that are named.
    pub fn expose(
        workflow: &Workflow,
        inputs: &[ExposedInput],
        outputs: &[String],
        object_info: Option<&Value>,
    ) -> Result<Self, ExposeError> {
        let mut interface = Self::of(workflow)?;
        for exposed in inputs {
            if interface.input(&exposed.name).is_some() {
                return Err(ExposeError::DuplicateName { name: exposed.name.clone() });
            }
            interface.inputs.push(exposed_input(workflow, exposed, object_info)?);
        }
        let consumed = consumed(workflow);
        for id in outputs {
            let op = workflow.get(id).ok_or_else(|| no_such_op(workflow, id))?;
            let is_consumed = consumed.contains(id.as_str());
            if !may_save(op, is_consumed, object_info) {
                let (op, class_type) = (id.clone(), op.class_type.clone());
                return Err(ExposeError::NotAnOutput { op, class_type, savers: savers(workflow, &consumed) });
            }
            if interface.outputs.iter().all(|output| output.op != *id) {
                let name = interface.free_output_name(output_name(op), id);
                interface.outputs.push(Output::new(name, id, &op.class_type));
            }
        }
        Ok(interface)
    }

    /// What could be exposed, for people to choose from.
    pub fn candidates(workflow: &Workflow) -> Candidates {
        let consumed = consumed(workflow);
        let mut candidates = Candidates::default();
        for (id, op) in workflow.iter() {
            let title = op.title().unwrap_or(&op.class_type);
            let values = op.inputs.iter().filter(|(_, value)| link_of(value).is_none());
            candidates.inputs.extend(values.map(|(field, value)| CandidateInput {
                op: id.to_owned(),
                title: title.to_owned(),
                field: field.clone(),
                value: value.clone(),
            }));
            if seems_output(op, consumed.contains(id)) {
                let (op, title, class_type) = (id.to_owned(), title.to_owned(), op.class_type.clone());
                candidates.outputs.push(CandidateOutput { op, title, class_type });
            }
        }
        candidates
    }
}

/// The ops that others take something from.
fn consumed(workflow: &Workflow) -> BTreeSet<&str> {
    let links = workflow.iter().flat_map(|(_, op)| op.inputs.values()).filter_map(link_of);
    links.map(|link| link.op).collect()
}

/// Ops that save or preview, and ops of classes that are not known at the end of a chain.
fn seems_output(op: &Op, is_consumed: bool) -> bool {
    is_called_saver(op)
        || (may_save(op, is_consumed, None) && op.inputs.values().any(|value| link_of(value).is_some()))
}

/// Whether an op could save a file: by ComfyUI's word where it is there, else by the op's class and place.
/// Of a class that is not known, the last op of a chain is believed to save.
fn may_save(op: &Op, is_consumed: bool, object_info: Option<&Value>) -> bool {
    let told = object_info.and_then(|info| info.get(&op.class_type)?.get("output_node")?.as_bool());
    let seems = || is_called_saver(op) || !(is_consumed || SAVES_NOTHING.contains(&op.class_type.as_str()));
    told.unwrap_or_else(seems)
}

fn is_called_saver(op: &Op) -> bool {
    let class = op.class_type.as_str();
    class.starts_with("CPackOutput")
        || ["Save", "Preview", "VideoCombine"].iter().any(|word| class.contains(word))
}

/// The ops that could be outputs, for people to choose from.
fn savers(workflow: &Workflow, consumed: &BTreeSet<&str>) -> String {
    let savers = workflow.iter().filter(|(id, op)| seems_output(op, consumed.contains(id)));
    let savers: Vec<String> = savers.map(|(id, op)| format!("`{id}` (`{}`)", op.class_type)).collect();
    match savers.as_slice() {
        [] => "no op of the workflow does: add one, such as `SaveImage`".to_owned(),
        savers => format!("these do: {}", savers.join(", ")),
    }
}

fn exposed_input(
    workflow: &Workflow,
    exposed: &ExposedInput,
    object_info: Option<&Value>,
) -> Result<Input, ExposeError> {
    let ExposedInput { name, op: id, field } = exposed;
    let op = workflow.get(id).ok_or_else(|| no_such_op(workflow, id))?;
    let value = op.inputs.get(field);
    if let Some(link) = value.and_then(link_of) {
        let (op, field, source_op) = (id.clone(), field.clone(), link.op.to_owned());
        return Err(ExposeError::Wired { op, field, source_op });
    }
    let declared = object_info.and_then(|object_info| Declared::find(object_info, &op.class_type, field));
    let kind = match (declared, value) {
        (Some(declared), value) => declared.kind(value),
        (None, Some(value)) => kind_from_graph(op, field, value),
        (None, None) => {
            return Err(ExposeError::NoSuchField {
                op: id.clone(),
                class_type: op.class_type.clone(),
                field: field.clone(),
                meant: meant(nearest(field, op.inputs.keys().map(String::as_str))),
                known: op.inputs.keys().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", "),
            });
        }
    };
    let default = match kind {
        InputKind::Image | InputKind::File => None,
        _ => value.or_else(|| declared?.options?.get("default")).cloned(),
    };
    let (op, field, title) = (id.clone(), field.clone(), title_of(name));
    Ok(Input { name: name.clone(), title, op, field, kind, default })
}

/// People also name an op by its class or title.
fn no_such_op(workflow: &Workflow, named: &str) -> ExposeError {
    let words = |(id, op): (&'_ str, &'_ Op)| {
        let title = op.title().unwrap_or_default().to_owned();
        [id.to_owned(), op.class_type.clone(), title].map(|word| (word.to_lowercase(), id.to_owned()))
    };
    let words: Vec<(String, String)> = workflow.iter().flat_map(words).collect();
    let best = nearest(&named.to_lowercase(), words.iter().map(|(word, _)| word.as_str()));
    let best = words.iter().find(|(word, _)| Some(word.as_str()) == best).map(|(_, id)| id.as_str());
    let mut ops: Vec<String> =
        workflow.iter().map(|(id, op)| format!("`{id}` (`{}`)", op.class_type)).collect();
    let more = ops.len().saturating_sub(MAX_LISTED);
    ops.truncate(MAX_LISTED);
    if more > 0 {
        ops.push(format!("{more} more"));
    }
    ExposeError::NoSuchOp {
        op: named.chars().take(MAX_NAME).collect(),
        meant: meant(best),
        known: format!("it has {}", ops.join(", ")),
    }
}

fn meant(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |word| format!(", did you mean `{word}`?"))
}

/// ComfyUI's own ops that take an uploaded picture are known without its help.
fn kind_from_graph(op: &Op, field: &str, value: &Value) -> InputKind {
    match (op.class_type.as_str(), field) {
        ("LoadImage" | "LoadImageMask" | "LoadImageOutput", "image") => InputKind::Image,
        _ => InputKind::of_value(value),
    }
}

/// What `/object_info` says of one input: its type and options.
#[derive(Clone, Copy)]
struct Declared<'a> {
    type_: &'a Value,
    options: Option<&'a Map<String, Value>>,
}

impl<'a> Declared<'a> {
    fn find(object_info: &'a Value, class_type: &str, field: &str) -> Option<Self> {
        let inputs = object_info.get(class_type)?.get("input")?;
        let declared = ["required", "optional"].iter().find_map(|group| inputs.get(group)?.get(field))?;
        let options = declared.get(1).and_then(Value::as_object);
        Some(Self { type_: declared.get(0)?, options })
    }

    fn kind(self, value: Option<&Value>) -> InputKind {
        let option = |key: &str| self.options.and_then(|options| options.get(key));
        let is_set = |key: &str| option(key) == Some(&Value::Bool(true));
        if is_set("image_upload") {
            return InputKind::Image;
        }
        if ["video_upload", "audio_upload", "file_upload"].into_iter().any(is_set) {
            return InputKind::File;
        }
        let limit = |key: &str| option(key).and_then(Value::as_number).cloned();
        let range = || Range { minimum: limit("min"), maximum: limit("max") };
        // Older ComfyUIs put a choice's values in the place of its type.
        let values = match self.type_ {
            Value::Array(values) => Some(values),
            _ => option("options").and_then(Value::as_array),
        };
        match (self.type_.as_str(), values) {
            (Some("INT"), _) => InputKind::Integer(range()),
            (Some("FLOAT"), _) => InputKind::Number(range()),
            (Some("STRING"), _) => InputKind::Text,
            (Some("BOOLEAN"), _) => InputKind::Boolean,
            (_, Some(values)) if !values.is_empty() => InputKind::choice(values),
            _ => value.map_or(InputKind::Text, InputKind::of_value),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::facts;

    fn workflow() -> Workflow {
        let graph = json!({
            "1": {"class_type": "LoadImage", "inputs": {"image": "cat.png"}},
            "2": {"class_type": "KSampler", "_meta": {"title": "the sampler"}, "inputs": {
                "seed": 5, "cfg": 8, "sampler_name": "euler", "latent_image": ["1", 0]}},
            "9": {"class_type": "SaveImage", "_meta": {"title": "Save Image"}, "inputs": {
                "filename_prefix": "x", "images": ["2", 0]}},
            "10": {"class_type": "PreviewImage", "_meta": {"title": "Save Image"}, "inputs": {
                "images": ["2", 0]}}
        });
        Workflow::parse(graph.to_string().as_bytes()).unwrap()
    }

    fn expose(inputs: &[&str], info: Option<&Value>) -> Result<Interface, ExposeError> {
        let inputs: Vec<ExposedInput> = inputs.iter().map(|text| text.parse().unwrap()).collect();
        Interface::expose(&workflow(), &inputs, &["9".to_owned(), "10".to_owned()], info)
    }

    #[test]
    fn types_limits_and_choices_come_from_object_info() {
        let object_info = facts::json("comfyui/object_info.json");
        let inputs = ["seed=2.seed", "cfg=2.cfg", "sampler=2.sampler_name", "photo=1.image", "steps=2.steps"];
        let interface = expose(&inputs, Some(&object_info)).unwrap();
        let range = |minimum, maximum| Range { minimum: Some(minimum), maximum: Some(maximum) };
        let float = |number| serde_json::Number::from_f64(number).unwrap();
        let kinds: Vec<&InputKind> = interface.inputs.iter().map(|input| &input.kind).collect();
        assert_eq!(kinds[0], &InputKind::Integer(range(0.into(), u64::MAX.into())));
        assert_eq!(kinds[1], &InputKind::Number(range(float(0.0), float(100.0))));
        assert!(matches!(kinds[2], InputKind::Choice { values } if values.contains(&json!("ddim"))));
        assert_eq!(kinds[3], &InputKind::Image);
        assert_eq!(interface.inputs[3].default, None);
        assert_eq!(
            interface.inputs[4].default,
            Some(json!(20)),
            "the op's own default where the graph is silent"
        );
        assert_eq!(interface.inputs[2].default, Some(json!("euler")));
    }

    #[test]
    fn without_object_info_the_values_in_the_graph_tell() {
        let interface = expose(&["seed=2.seed", "photo=1.image"], None).unwrap();
        assert_eq!(interface.inputs[0].kind, InputKind::Integer(Range::default()));
        assert_eq!(interface.inputs[1].kind, InputKind::Image);
        let names: Vec<&str> = interface.outputs.iter().map(|output| output.name.as_str()).collect();
        assert_eq!(names, ["save_image", "save_image_10"]);
    }

    #[test]
    fn what_cannot_be_exposed_is_refused_with_what_could_be() {
        let check = |input: &str, message: &str| {
            let error = expose(&[input], None).unwrap_err().to_string();
            assert!(error.contains(message), "{input}: {error}");
        };
        check("x=77.seed", "no op `77`; it has `1` (`LoadImage`), `2` (`KSampler`), `9` (`SaveImage`)");
        check("x=ksampler.seed", "no op `ksampler`, did you mean `2`?");
        check("x=the sampler.seed", "did you mean `2`?");
        check("x=1.seed", "op `1` (`LoadImage`) has no input `seed`; it has `image`");
        check("x=2.sampler", "has no input `sampler`, did you mean `sampler_name`?");
        check("x=2.latent_image", "wired to op `1`");
        let twice = expose(&["x=2.seed", "x=2.cfg"], None).unwrap_err();
        assert_eq!(twice, ExposeError::DuplicateName { name: "x".to_owned() });
    }

    #[test]
    fn op_that_saves_no_file_is_no_output() {
        let graph = json!({
            "1": {"class_type": "EmptyImage", "inputs": {"width": 8}},
            "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
            "3": {"class_type": "SomebodysWriter", "inputs": {"image": ["1", 0]}},
            "4": {"class_type": "SomebodysFilter", "inputs": {"image": ["1", 0]}},
            "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0]}}
        });
        let workflow = Workflow::parse(graph.to_string().as_bytes()).unwrap();
        let info =
            json!({"SomebodysFilter": {"output_node": true}, "SomebodysWriter": {"output_node": false}});
        let check = |op: &str, info: Option<&Value>, saves: bool| {
            let exposed = Interface::expose(&workflow, &[], &[op.to_owned()], info);
            assert_eq!(exposed.is_ok(), saves, "{op}: {exposed:?}");
        };
        check("2", None, false);
        check("3", None, true);
        check("4", None, false);
        check("5", None, true);
        check("3", Some(&info), false);
        check("4", Some(&info), true);
        let refused = Interface::expose(&workflow, &[], &["2".to_owned()], None).unwrap_err().to_string();
        assert!(refused.contains("`3` (`SomebodysWriter`), `5` (`SaveImage`)"), "{refused}");
    }

    #[test]
    fn exposed_inputs_are_written_name_node_field() {
        let parsed: ExposedInput = "width=57:3.model.width".parse().unwrap();
        assert_eq!((parsed.op.as_str(), parsed.field.as_str()), ("57:3", "model.width"));
        for text in ["", "x", "x=3", "=3.y", "x=.y", "x=3.", "a b=3.y", "1x=3.y"] {
            assert!(text.parse::<ExposedInput>().is_err(), "{text}");
        }
    }

    #[test]
    fn candidates_are_unwired_inputs_and_ops_that_save() {
        let candidates = Interface::candidates(&workflow());
        let inputs: Vec<String> =
            candidates.inputs.iter().map(|input| format!("{}.{}", input.op, input.field)).collect();
        assert_eq!(inputs, ["1.image", "2.seed", "2.cfg", "2.sampler_name", "9.filename_prefix"]);
        assert_eq!(candidates.inputs[1].title, "the sampler");
        let outputs: Vec<&str> = candidates.outputs.iter().map(|output| output.op.as_str()).collect();
        assert_eq!(outputs, ["9", "10"]);
    }
}
