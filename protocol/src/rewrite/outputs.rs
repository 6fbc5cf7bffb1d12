//! Which op of ComfyUI's own stands for each output op of comfy-pack, and what a node makes of the files of it.
//!
//! Not here: where an op saves them, and making anything of them, which is the node's.

use serde_json::{Map, Value, json};

use super::{FillError, op_of, safe_part};
use crate::schema::{Interface, ZIP_SWITCH};
use crate::workflow::{Op, Workflow, link_of};

/// Tells a text, or any other value as a text.
const TELLS_TEXT: &str = "PreviewAny";
/// The longest extension of a text file, in bytes.
const MAX_EXTENSION: usize = 16;

/// An output of the interface in a filled workflow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilledOutput {
    /// Its name.
    pub name: String,
    /// The op that makes it.
    pub op: String,
    /// How its files come about.
    pub making: Making,
}

/// How the files of an output come about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Making {
    /// The op saves them.
    Saved,
    /// The op tells a text, which becomes a file with this extension.
    Text {
        /// The extension, with its dot; empty for none.
        extension: String,
    },
    /// The op tells the path of a file that another op wrote.
    NamedFile,
    /// The pictures that the op saves become one zip, each with a text beside it.
    Zip {
        /// The op that tells the text.
        text: String,
    },
}

impl FilledOutput {
    /// The ops whose results it is made of.
    pub fn ops(&self) -> impl Iterator<Item = &str> {
        let second = match &self.making {
            Making::Zip { text } => Some(text.as_str()),
            Making::Saved | Making::Text { .. } | Making::NamedFile => None,
        };
        std::iter::once(self.op.as_str()).chain(second)
    }
}

/// What is not as comfy-pack has it with the outputs of this interface, for whoever deploys it.
pub fn notes_on_outputs(interface: &Interface) -> Vec<String> {
    let named = interface.outputs.iter().filter(|output| output.class_type == "CPackOutputFile");
    let mut notes: Vec<String> = named
        .map(|output| {
            format!(
                "output `{}` is a file that another op wrote: a node that rebuilds workspaces takes it out of \
                 ComfyUI's output, input and temp folders, an attached ComfyUI gives it only where that op saved it \
                 below its `filename_prefix`",
                output.name
            )
        })
        .collect();
    if interface.zip_switch {
        notes.push(format!("`{ZIP_SWITCH}` is ignored: all files of all outputs come back, each by itself"));
    }
    notes
}

/// Puts ComfyUI's own ops in the place of comfy-pack's outputs.
pub(super) fn substitute(
    workflow: &mut Workflow,
    interface: &Interface,
) -> Result<Vec<FilledOutput>, FillError> {
    let mut outputs = Vec::with_capacity(interface.outputs.len());
    for output in &interface.outputs {
        let (name, id) = (output.name.clone(), output.op.clone());
        let free = free_id(workflow, &id);
        let op = op_of(workflow, &name, &id)?;
        let making = match op.class_type.as_str() {
            "CPackOutputImage" => becomes(op, "SaveImage", &["images", "filename_prefix"]),
            "CPackOutputAudio" => becomes(op, "SaveAudio", &["audio", "filename_prefix"]),
            "CPackOutputVideo" => {
                for choice in ["format", "codec"] {
                    op.inputs.entry(choice).or_insert_with(|| json!("auto"));
                }
                becomes(op, "SaveVideo", &["video", "filename_prefix", "format", "codec"])
            }
            "CPackOutputTextFile" => {
                let extension = extension(op.inputs.get("file_extension"));
                tells(op, "text");
                Making::Text { extension }
            }
            "CPackOutputFile" => {
                tells(op, "filename");
                Making::NamedFile
            }
            "CPackOutputZip" => {
                let mut text = op.clone();
                tells(&mut text, "text");
                becomes(op, "SaveImage", &["images", "filename_prefix"]);
                workflow.insert(free.clone(), text);
                Making::Zip { text: free }
            }
            _ => Making::Saved,
        };
        outputs.push(FilledOutput { name, op: id, making });
    }
    Ok(outputs)
}

/// The op becomes one of another class, with these of its inputs.
fn becomes(op: &mut Op, class: &str, inputs: &[&str]) -> Making {
    op.class_type = class.to_owned();
    op.inputs.retain(|field, _| inputs.contains(&field.as_str()));
    Making::Saved
}

/// The op becomes one that tells this input of it.
fn tells(op: &mut Op, field: &str) {
    let source = op.inputs.get(field).cloned().unwrap_or_else(|| json!(""));
    op.class_type = TELLS_TEXT.to_owned();
    op.inputs = Map::from_iter([("source".to_owned(), source)]);
}

/// The extension that a text file asks for, without what is no part of one. A value that an op makes is not known.
fn extension(asked: Option<&Value>) -> String {
    let Some(asked) = asked.filter(|asked| link_of(asked).is_none()).and_then(Value::as_str) else {
        return ".txt".to_owned();
    };
    asked
        .chars()
        .filter(|letter| letter.is_ascii_alphanumeric() || *letter == '.')
        .take(MAX_EXTENSION)
        .collect()
}

/// An id that no op has.
fn free_id(workflow: &Workflow, op: &str) -> String {
    let mut id = format!("{}_text", safe_part(op));
    while workflow.get(&id).is_some() {
        id.push('_');
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    fn substituted(graph: &Value) -> (Value, Vec<FilledOutput>, Vec<String>) {
        let mut workflow = Workflow::parse(graph.to_string().as_bytes()).unwrap();
        let interface = Interface::of(&workflow).unwrap();
        let outputs = substitute(&mut workflow, &interface).unwrap();
        (workflow.to_json(), outputs, notes_on_outputs(&interface))
    }

    fn check(class: &str, inputs: Value, expected: Value, making: Making) {
        let (workflow, outputs, _) = substituted(
            &json!({ "7": { "class_type": class, "inputs": inputs, "_meta": { "title": "out" } } }),
        );
        let mut op = workflow["7"].clone();
        op.as_object_mut().unwrap().remove("_meta");
        assert_eq!(op, expected, "{class}");
        assert_eq!(outputs, [FilledOutput { name: "out".into(), op: "7".into(), making }]);
    }

    #[test]
    fn pictures_sounds_and_videos_are_saved_by_comfyui() {
        check(
            "CPackOutputImage",
            json!({ "images": ["1", 0], "filename_prefix": "p" }),
            json!({ "class_type": "SaveImage", "inputs": { "images": ["1", 0], "filename_prefix": "p" } }),
            Making::Saved,
        );
        check(
            "CPackOutputAudio",
            json!({ "audio": ["1", 0], "filename_prefix": "p", "unknown": 1 }),
            json!({ "class_type": "SaveAudio", "inputs": { "audio": ["1", 0], "filename_prefix": "p" } }),
            Making::Saved,
        );
        check(
            "CPackOutputVideo",
            json!({ "video": ["1", 0], "filename_prefix": "p", "codec": "h264" }),
            json!({ "class_type": "SaveVideo", "inputs": {
                "video": ["1", 0], "filename_prefix": "p", "codec": "h264", "format": "auto" } }),
            Making::Saved,
        );
    }

    #[test]
    fn texts_and_paths_are_told_and_a_text_keeps_its_extension() {
        let told = json!({ "class_type": "PreviewAny", "inputs": { "source": ["1", 0] } });
        let text = |extension: Value, expected: &str| {
            let inputs = json!({ "text": ["1", 0], "filename_prefix": "p", "file_extension": extension });
            check("CPackOutputTextFile", inputs, told.clone(), Making::Text { extension: expected.into() });
        };
        text(json!(".json"), ".json");
        text(json!("/../x.y"), "..x.y");
        text(json!(""), "");
        text(json!(["3", 0]), ".txt");
        text(Value::Null, ".txt");
        let inputs = json!({ "filename": ["1", 0], "filename_prefix": "p" });
        check("CPackOutputFile", inputs, told.clone(), Making::NamedFile);
    }

    #[test]
    fn zip_is_pictures_and_an_op_of_its_own_that_tells_the_text() {
        let (workflow, outputs, notes) = substituted(&json!({
            "7": { "class_type": "CPackOutputZip", "inputs": { "images": ["1", 0], "text": "hello", "filename_prefix": "p" } },
            "7_text": { "class_type": "SomeOp", "inputs": {} }
        }));
        assert_eq!(workflow["7"]["class_type"], "SaveImage");
        assert_eq!(workflow["7"]["inputs"], json!({ "images": ["1", 0], "filename_prefix": "p" }));
        let told = json!({ "class_type": "PreviewAny", "inputs": { "source": "hello" } });
        assert_eq!(workflow["7_text_"], told);
        assert_eq!(outputs[0].ops().collect::<Vec<_>>(), ["7", "7_text_"]);
        assert_eq!(notes, [""; 0]);
    }

    #[test]
    fn whoever_deploys_is_told_what_is_not_the_same() {
        let (workflow, outputs, notes) = substituted(&json!({
            "1": { "class_type": "CPackOutputFile", "inputs": { "filename": ["2", 0] }, "_meta": { "title": "mesh" } },
            "2": { "class_type": "CPackOutputZipSwitch", "inputs": {} },
            "3": { "class_type": "CPackOutputOfTomorrow", "inputs": { "x": 1 } }
        }));
        assert_eq!(workflow["3"]["class_type"], "CPackOutputOfTomorrow", "what is not known stays");
        assert_eq!(outputs[1].making, Making::Saved);
        assert!(notes[0].starts_with("output `mesh` is a file"), "{notes:?}");
        assert!(notes[1].contains("`CPackOutputZipSwitch` is ignored"), "{notes:?}");
    }
}
