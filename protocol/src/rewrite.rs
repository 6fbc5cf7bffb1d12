//! A job's parameters put into its workflow: a pure function from graph and values to the graph that an
//! engine executes.
//!
//! comfy-pack's ops are replaced, so that no node needs comfy-pack: values stand in the place of every link
//! to them, `CPackInputImage` becomes `LoadImage`, and each output an op of ComfyUI's own
//! (`rewrite/outputs.rs`). Not here: whether the values are allowed, which `schema` checks, and how files
//! reach an engine.

mod outputs;

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};

use crate::blob::BlobRef;
use crate::parameters::{Argument, Parameters};
use crate::schema::{Input, Interface, ZIP_SWITCH};
use crate::workflow::{Op, Workflow, link_of};

pub use outputs::{FilledOutput, Making, notes_on_outputs};

/// The longest extension that a file keeps in the graph, in bytes.
const MAX_EXTENSION: usize = 8;

/// What a run adds to the graph beside the job's parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filling {
    /// A folder of this run's own, below the engine's output folder: all results are saved in it.
    pub output_prefix: String,
    /// The files that came with the bundle, by the name under which the graph knows them.
    pub inputs: BTreeMap<String, BlobRef>,
}

/// A workflow that an engine can execute.
#[derive(Clone, Debug, PartialEq)]
pub struct Filled {
    /// The graph.
    pub workflow: Workflow,
    /// The files that it reads, by the name in the graph; equal contents have one name.
    pub files: Vec<(String, BlobRef)>,
    /// The outputs of the interface, in its order.
    pub outputs: Vec<FilledOutput>,
}

/// Why parameters do not fit into a workflow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FillError {
    /// The interface names an op that the workflow has not: they do not belong together.
    #[error("`{name}` of the interface belongs to op `{op}`, which the workflow has not")]
    NoSuchOp {
        /// The input or output.
        name: String,
        /// The op.
        op: String,
    },
    /// Nothing is given for an input; checked parameters have all.
    #[error("nothing is given for input `{name}`")]
    Missing {
        /// The input.
        name: String,
    },
    /// Something is given that is no input.
    #[error("the workflow has no input `{name}`")]
    Unknown {
        /// The name.
        name: String,
    },
    /// A file is given for a value, or a value for a file.
    #[error("input `{name}` takes {expected}")]
    WrongArgument {
        /// The input.
        name: String,
        /// What it takes.
        expected: &'static str,
    },
    /// The values of ops lead in a circle.
    #[error("op `{op}` takes its value from itself")]
    Circle {
        /// One of the ops.
        op: String,
    },
}

/// Puts the parameters into the workflow.
pub fn fill(
    workflow: &Workflow,
    interface: &Interface,
    parameters: &Parameters,
    filling: &Filling,
) -> Result<Filled, FillError> {
    if let Some((name, _)) = parameters.iter().find(|(name, _)| interface.input(name).is_none()) {
        return Err(FillError::Unknown { name: name.clone() });
    }
    let mut workflow = workflow.clone();
    let mut files = Files::default();
    let mut values = HashMap::new();
    for input in &interface.inputs {
        let value = value_in_graph(input, parameters, &mut files)?;
        let op = op_of(&mut workflow, &input.name, &input.op)?;
        match Replacement::of(op) {
            Replacement::Value => drop(values.insert(input.op.clone(), value)),
            Replacement::LoadImage => {
                op.class_type = "LoadImage".to_owned();
                op.inputs = Map::from_iter([("image".to_owned(), value)]);
            }
            Replacement::None => drop(op.inputs.insert(input.field.clone(), value)),
        }
    }
    set_prefixes(&mut workflow, interface, &filling.output_prefix)?;
    let mut workflow = without_replaced(&workflow, &values)?;
    let outputs = outputs::substitute(&mut workflow, interface)?;
    use_bundled_files(&mut workflow, &filling.inputs, &mut files);
    Ok(Filled { workflow, files: files.0.into_iter().collect(), outputs })
}

/// What becomes of an op that holds an input.
enum Replacement {
    /// It goes, and its value stands in the place of every link to it.
    Value,
    /// It becomes ComfyUI's own op, with the same slots.
    LoadImage,
    /// It stays, with the value set.
    None,
}

impl Replacement {
    fn of(op: &Op) -> Self {
        match op.class_type.as_str() {
            "CPackInputString" | "CPackInputInt" | "CPackInputAny" | "CPackInputFile" => Self::Value,
            "CPackInputImage" => Self::LoadImage,
            _ => Self::None,
        }
    }
}

/// The files of a graph, by their name in it.
#[derive(Default)]
struct Files(BTreeMap<String, BlobRef>);

impl Files {
    /// Adds a file and gives its name in the graph: the same for equal bytes, whatever it was called.
    fn add(&mut self, blob: BlobRef, file_name: &str) -> String {
        let extension = file_name.rsplit_once('.').map_or("", |(_, extension)| extension);
        let safe =
            extension.len() <= MAX_EXTENSION && extension.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let extension = if safe && !extension.is_empty() { extension } else { "bin" };
        let name =
            format!("comfy-farm-{}.{}", hex::encode(&blob.hash.0[..8]), extension.to_ascii_lowercase());
        self.0.insert(name.clone(), blob);
        name
    }
}

fn op_of<'a>(workflow: &'a mut Workflow, name: &str, op: &str) -> Result<&'a mut Op, FillError> {
    let no_such_op = || FillError::NoSuchOp { name: name.to_owned(), op: op.to_owned() };
    workflow.get_mut(op).ok_or_else(no_such_op)
}

/// The value of an input as the graph holds it: a file is its name.
fn value_in_graph(input: &Input, parameters: &Parameters, files: &mut Files) -> Result<Value, FillError> {
    let name = || input.name.clone();
    match (parameters.get(&input.name), input.takes_file()) {
        (None, _) => Err(FillError::Missing { name: name() }),
        (Some(Argument::Value(value)), false) => Ok(value.clone()),
        (Some(Argument::File { blob, file_name }), true) => Ok(json!(files.add(*blob, file_name))),
        (Some(_), true) => Err(FillError::WrongArgument { name: name(), expected: "a file" }),
        (Some(_), false) => Err(FillError::WrongArgument { name: name(), expected: "a value, not a file" }),
    }
}

/// Replaces the names of files that came with the bundle, wherever a value is exactly such a name.
fn use_bundled_files(workflow: &mut Workflow, inputs: &BTreeMap<String, BlobRef>, files: &mut Files) {
    let named = |value: &Value| inputs.get_key_value(value.as_str()?);
    let places: Vec<(String, String, &String, BlobRef)> = workflow
        .iter()
        .flat_map(|(id, op)| op.inputs.iter().map(move |(field, value)| (id, field, value)))
        .filter_map(|(id, field, value)| {
            let (name, blob) = named(value)?;
            Some((id.to_owned(), field.clone(), name, *blob))
        })
        .collect();
    for (id, field, name, blob) in places {
        let name = files.add(blob, name);
        let op = workflow.get_mut(&id).expect("the id was just taken from the workflow");
        op.inputs.insert(field, json!(name));
    }
}

/// Sends everything that an op saves into the run's own folder: nothing collides, and nothing is
/// taken from an earlier run's cache.
fn set_prefixes(workflow: &mut Workflow, interface: &Interface, prefix: &str) -> Result<(), FillError> {
    let unnamed: Vec<String> = workflow
        .iter()
        .filter(|(_, op)| op.inputs.get("filename_prefix").is_some_and(Value::is_string))
        .map(|(id, _)| id.to_owned())
        .collect();
    for id in unnamed {
        let op = workflow.get_mut(&id).expect("the id was just taken from the workflow");
        op.inputs.insert("filename_prefix".to_owned(), json!(format!("{prefix}/op_{}", safe_part(&id))));
    }
    for output in &interface.outputs {
        let op = op_of(workflow, &output.name, &output.op)?;
        let takes_prefix = op.class_type.starts_with("CPackOutput") || op.class_type == "SaveImage";
        if takes_prefix || op.inputs.contains_key("filename_prefix") {
            let prefix = format!("{prefix}/{}", safe_part(&output.name));
            op.inputs.insert("filename_prefix".to_owned(), json!(prefix));
        }
    }
    Ok(())
}

/// A name as a part of a path that every file system takes.
fn safe_part(name: &str) -> String {
    name.chars().map(|letter| if letter.is_alphanumeric() || letter == '-' { letter } else { '_' }).collect()
}

/// Leaves out the ops that became values, and puts these in the place of the links to them.
fn without_replaced(workflow: &Workflow, values: &HashMap<String, Value>) -> Result<Workflow, FillError> {
    // An output without inputs was cut off in the editor.
    let is_nothing = |op: &Op| op.class_type.starts_with("CPackOutput") && op.inputs.is_empty();
    let goes = |id: &str, op: &Op| op.class_type == ZIP_SWITCH || is_nothing(op) || values.contains_key(id);
    let kept = workflow.iter().filter(|(id, op)| !goes(id, op));
    kept.map(|(id, op)| {
        let mut op = op.clone();
        for value in op.inputs.values_mut() {
            if let Some(replacement) = follow(value, values)? {
                *value = replacement;
            }
        }
        Ok((id.to_owned(), op))
    })
    .collect()
}

/// The value that stands where a link to a replaced op stood; such a value may be a link again.
fn follow(value: &Value, values: &HashMap<String, Value>) -> Result<Option<Value>, FillError> {
    let mut found: Option<&Value> = None;
    let mut current = value;
    for _ in 0..=values.len() {
        let Some(next) = link_of(current).and_then(|link| values.get(link.op)) else {
            return Ok(found.cloned());
        };
        found = Some(next);
        current = next;
    }
    let op = link_of(current).map_or_else(String::new, |link| link.op.to_owned());
    Err(FillError::Circle { op })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts;

    fn workflow(graph: &Value) -> Workflow {
        Workflow::parse(graph.to_string().as_bytes()).unwrap()
    }

    fn filling() -> Filling {
        Filling { output_prefix: "run-1".to_owned(), inputs: BTreeMap::new() }
    }

    fn given<const N: usize>(arguments: [(&str, Argument); N]) -> Parameters {
        arguments.into_iter().map(|(name, argument)| (name.to_owned(), argument)).collect()
    }

    fn filled(graph: &Value, arguments: Parameters) -> Filled {
        let workflow = workflow(graph);
        let interface = Interface::of(&workflow).unwrap();
        fill(&workflow, &interface, &interface.check(arguments).unwrap(), &filling()).unwrap()
    }

    #[test]
    fn values_stand_where_links_stood_and_images_are_loaded_and_saved_by_comfyui_itself() {
        let graph = json!({
            "1": {"class_type": "CPackInputImage", "inputs": {"image": "x.png"}, "_meta": {"title": "photo"}},
            "2": {"class_type": "CPackInputInt", "inputs": {"value": 4, "min": 1, "max": 9}, "_meta": {"title": "width"}},
            "3": {"class_type": "CPackInputFile", "inputs": {"path": "a"}, "_meta": {"title": "lut"}},
            "4": {"class_type": "ImageScale", "inputs": {"image": ["1", 0], "width": ["2", 0], "height": ["2", 0]}},
            "5": {"class_type": "ApplyLut", "inputs": {"image": ["4", 0], "mask": ["1", 1], "file": ["3", 0]}},
            "6": {"class_type": "CPackOutputImage", "inputs": {"images": ["5", 0], "filename_prefix": "x"}, "_meta": {"title": "result"}},
            "7": {"class_type": "CPackOutputTextFile", "inputs": {"text": "t"}, "_meta": {"title": "my text"}},
            "8": {"class_type": "CPackOutputZipSwitch", "inputs": {}},
            "9": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "ComfyUI"}}
        });
        let (photo, lut) = (BlobRef::of(b"photo"), BlobRef::of(b"lut"));
        let result = filled(
            &graph,
            given([
                ("photo", Argument::file(photo, "Cat.PNG")),
                ("lut", Argument::file(lut, "grade.tar/../cube")),
                ("width", Argument::Value(json!(8))),
            ]),
        );
        let photo_name = format!("comfy-farm-{}.png", &photo.hash.to_string()[..16]);
        let lut_name = format!("comfy-farm-{}.bin", &lut.hash.to_string()[..16]);
        let expected = json!({
            "1": {"class_type": "LoadImage", "inputs": {"image": photo_name}, "_meta": {"title": "photo"}},
            "4": {"class_type": "ImageScale", "inputs": {"image": ["1", 0], "width": 8, "height": 8}},
            "5": {"class_type": "ApplyLut", "inputs": {"image": ["4", 0], "mask": ["1", 1], "file": lut_name}},
            "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "run-1/result"}, "_meta": {"title": "result"}},
            "7": {"class_type": "PreviewAny", "inputs": {"source": "t"}, "_meta": {"title": "my text"}},
            "9": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "run-1/op_9"}}
        });
        assert_eq!(result.workflow.to_json(), expected);
        let mut files = result.files;
        files.sort_by_key(|(_, blob)| blob.hash);
        let mut expected = [(photo_name, photo), (lut_name, lut)];
        expected.sort_by_key(|(_, blob)| blob.hash);
        assert_eq!(files, expected);
        let output = |name: &str, op: &str, making| FilledOutput { name: name.into(), op: op.into(), making };
        let text = Making::Text { extension: ".txt".to_owned() };
        assert_eq!(result.outputs, [output("result", "6", Making::Saved), output("my_text", "7", text)]);
    }

    #[test]
    fn exposed_inputs_are_set_and_bundled_files_renamed() {
        let workflow = workflow(&json!({
            "1": {"class_type": "LoadImage", "inputs": {"image": "cat.png"}},
            "2": {"class_type": "LoadImage", "inputs": {"image": "sub/style.jpg"}},
            "3": {"class_type": "KSampler", "inputs": {"seed": 1, "a": ["1", 0], "b": ["2", 0]}},
            "57:4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}}
        }));
        let exposed = ["photo=1.image", "seed=3.seed"].map(|text| text.parse().unwrap());
        let interface = Interface::expose(&workflow, &exposed, &["57:4".to_owned()], None).unwrap();
        let (photo, style) = (BlobRef::of(b"photo"), BlobRef::of(b"style"));
        let bundled = Filling { inputs: [("sub/style.jpg".to_owned(), style)].into(), ..filling() };
        let arguments =
            given([("photo", Argument::file(photo, "p.png")), ("seed", Argument::Value(json!(u64::MAX)))]);
        let filled = fill(&workflow, &interface, &arguments, &bundled).unwrap();
        let json = filled.workflow.to_json();
        assert_eq!(json["3"]["inputs"]["seed"], json!(u64::MAX));
        assert!(json["1"]["inputs"]["image"].as_str().unwrap().ends_with(".png"));
        assert!(json["2"]["inputs"]["image"].as_str().unwrap().ends_with(".jpg"));
        assert_eq!(json["57:4"]["inputs"], json!({"images": ["3", 0]}), "previews take no prefix");
        assert_eq!(filled.files.len(), 2);
        let preview =
            FilledOutput { name: "previewimage".to_owned(), op: "57:4".to_owned(), making: Making::Saved };
        assert_eq!(filled.outputs, [preview]);
    }

    #[test]
    fn values_that_are_links_are_followed_and_a_circle_is_refused() {
        let chain = |last: Value| {
            json!({
                "1": {"class_type": "CPackInputInt", "inputs": {"value": ["2", 0]}, "_meta": {"title": "a"}},
                "2": {"class_type": "CPackInputInt", "inputs": {"value": last}, "_meta": {"title": "b"}},
                "3": {"class_type": "KSampler", "inputs": {"seed": ["1", 0]}}
            })
        };
        let result = filled(&chain(json!(["7", 0])), Parameters::default());
        assert_eq!(result.workflow.to_json()["3"]["inputs"]["seed"], json!(["7", 0]));
        let workflow = workflow(&chain(json!(["1", 0])));
        let interface = Interface::of(&workflow).unwrap();
        let defaults = interface.check(Parameters::default()).unwrap();
        let error = fill(&workflow, &interface, &defaults, &filling()).unwrap_err();
        assert!(matches!(error, FillError::Circle { .. }));
    }

    #[test]
    fn parameters_of_another_workflow_are_refused() {
        let workflow = workflow(&json!({
            "1": {"class_type": "CPackInputString", "inputs": {"value": "x"}, "_meta": {"title": "prompt"}}
        }));
        let interface = Interface::of(&workflow).unwrap();
        let check = |arguments: Parameters, expected: &str| {
            let error = fill(&workflow, &interface, &arguments, &filling()).unwrap_err();
            assert_eq!(error.to_string(), expected);
        };
        check(Parameters::default(), "nothing is given for input `prompt`");
        check(given([("x", Argument::Value(json!(1)))]), "the workflow has no input `x`");
        let file = Argument::file(BlobRef::of(b""), "x");
        check(given([("prompt", file)]), "input `prompt` takes a value, not a file");
    }

    /// comfy-pack sets values in its own ops; here they stand where these were linked to.
    #[test]
    fn recorded_runs_get_the_same_values_without_comfy_packs_ops() {
        let recorded = facts::json("comfy-pack/served/workflow-runs.json");
        let runs = recorded["runs"].as_array().unwrap();
        assert_eq!(runs.len(), 11);
        for run in runs {
            let graph = &run["workflow"];
            let original = workflow(graph);
            let interface = Interface::of(&original).unwrap();
            // The recorded graph holds the values that were sent, and files by their path.
            let files = interface.inputs.iter().filter(|input| input.takes_file());
            let files = files.map(|input| {
                let path = graph[&input.op]["inputs"][&input.field].as_str().unwrap();
                (input.name.clone(), Argument::file(BlobRef::of(path.as_bytes()), path))
            });
            let filled = filled(graph, files.collect());
            for (id, op) in original.iter() {
                let ours = filled.workflow.get(id);
                match op.class_type.as_str() {
                    "CPackInputString" | "CPackInputInt" | "CPackInputAny" | "CPackInputFile"
                    | ZIP_SWITCH => {
                        assert_eq!(ours, None);
                    }
                    "CPackInputImage" => assert_eq!(ours.unwrap().class_type, "LoadImage"),
                    "CPackOutputImage" => {
                        assert_eq!(ours.unwrap().class_type, "SaveImage");
                        assert_eq!(ours.unwrap().inputs["images"], op.inputs["images"]);
                    }
                    "CPackOutputTextFile" => {
                        let source = link_of(&op.inputs["text"]).unwrap().op;
                        assert_eq!(ours.unwrap().inputs["source"], graph[source]["inputs"]["value"]);
                    }
                    _ => assert_eq!(ours, Some(op)),
                }
            }
        }
    }
}
