//! The typed interface of a workflow: what a caller gives and what comes back.
//!
//! [`Interface::of`] reads it from comfy-pack's ops (`schema/comfy_pack.rs`), [`Interface::expose`] adds
//! inputs and outputs of any op (`schema/expose.rs`), as an [`Exposure`] names them (`schema/exposure.rs`),
//! [`Interface::check`] holds a caller's values against it (`schema/check.rs`). Not here: how values get into the graph; that is `rewrite`.

mod check;
mod comfy_pack;
mod expose;
mod exposure;
mod name;
#[cfg(test)]
mod recorded;

use std::collections::HashSet;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Number, Value, json};

pub use check::{FieldError, Rule};
pub use comfy_pack::SchemaError;
pub(crate) use comfy_pack::ZIP_SWITCH;
pub use expose::{
    CandidateInput, CandidateOutput, Candidates, ExposeError, ExposedInput, ParseExposedInputError,
};
pub use exposure::Exposure;

/// What a deployed workflow takes and gives. It is stored, as JSON, with the version.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// What a caller gives, in the order of the graph.
    pub inputs: Vec<Input>,
    /// What comes back, in the order of the graph.
    pub outputs: Vec<Output>,
    /// Whether the graph asks for all files in one zip (comfy-pack's `Enable Zip Output`).
    pub zip_switch: bool,
}

/// One value that a caller gives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// Its name in the API.
    pub name: String,
    /// Its name for people.
    pub title: String,
    /// The op that holds it.
    pub op: String,
    /// The op's input that holds it.
    pub field: String,
    /// What may be given.
    pub kind: InputKind,
    /// What is taken when nothing is given. Without one, the input is required.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub default: Option<Value>,
}

/// Null is a value like others: a field that is there is never `None`.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// What may be given for an input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum InputKind {
    /// A text.
    Text,
    /// A whole number.
    Integer(Range),
    /// Any number.
    Number(Range),
    /// True or false.
    Boolean,
    /// One of these values.
    Choice {
        /// The values.
        values: Vec<Value>,
    },
    /// Null and nothing else: the graph gives no better hint.
    Null,
    /// A list of anything.
    List,
    /// An object of anything.
    Object,
    /// A picture, as a file.
    Image,
    /// Any file.
    File,
}

/// The limits of a number, both included.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Range {
    /// The least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum: Option<Number>,
    /// The most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maximum: Option<Number>,
}

/// One result that comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Its name in the API.
    pub name: String,
    /// The op whose files it is.
    pub op: String,
    /// That op's class.
    pub class_type: String,
    /// What the files are.
    pub kind: OutputKind,
}

/// What the files of an output are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputKind {
    /// Pictures.
    Image,
    /// Text.
    Text,
    /// Sound.
    Audio,
    /// Moving pictures.
    Video,
    /// A zip of other files.
    Zip,
    /// Anything.
    File,
}

impl Interface {
    /// The input of this name.
    pub fn input(&self, name: &str) -> Option<&Input> {
        self.inputs.iter().find(|input| input.name == name)
    }

    /// The output of this name.
    pub fn output(&self, name: &str) -> Option<&Output> {
        self.outputs.iter().find(|output| output.name == name)
    }

    /// The inputs as comfy-pack's JSON schema.
    pub fn json_schema(&self) -> Value {
        let properties: Map<String, Value> =
            self.inputs.iter().map(|input| (input.name.clone(), input.json_schema())).collect();
        let required: Vec<&str> =
            self.inputs.iter().filter(|input| input.is_required()).map(|input| input.name.as_str()).collect();
        let mut schema = json!({ "properties": properties });
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
        schema["title"] = json!("ParsedWorkflowTemplate");
        schema["type"] = json!("object");
        schema
    }

    /// The op of each input, by the input's name.
    pub fn input_nodes(&self) -> Map<String, Value> {
        self.inputs.iter().map(|input| (input.name.clone(), json!(input.op))).collect()
    }

    /// The op of each output, by the output's name.
    pub fn output_nodes(&self) -> Map<String, Value> {
        self.outputs.iter().map(|output| (output.name.clone(), json!(output.op))).collect()
    }
}

impl Input {
    /// Whether a caller must give it.
    pub fn is_required(&self) -> bool {
        self.default.is_none()
    }

    /// Whether it takes a file, and no value.
    pub fn takes_file(&self) -> bool {
        matches!(self.kind, InputKind::Image | InputKind::File)
    }

    fn json_schema(&self) -> Value {
        let mut schema = Map::new();
        if let Some(default) = &self.default {
            schema.insert("default".to_owned(), default.clone());
        }
        self.kind.write_schema(&mut schema);
        schema.insert("title".to_owned(), json!(self.title));
        if let Some(name) = self.kind.schema_type() {
            schema.insert("type".to_owned(), json!(name));
        }
        schema.into()
    }
}

impl InputKind {
    fn write_schema(&self, schema: &mut Map<String, Value>) {
        let mut put = |key: &str, value: Value| schema.insert(key.to_owned(), value);
        match self {
            Self::Choice { values } => match values.as_slice() {
                [only] => drop(put("const", only.clone())),
                values => drop(put("enum", json!(values))),
            },
            Self::Integer(range) | Self::Number(range) => {
                if let Some(maximum) = &range.maximum {
                    put("maximum", json!(maximum));
                }
                if let Some(minimum) = &range.minimum {
                    put("minimum", json!(minimum));
                }
            }
            Self::List => drop(put("items", json!({}))),
            Self::Object => drop(put("additionalProperties", json!(true))),
            Self::Image | Self::File => drop(put("format", json!("path"))),
            Self::Text | Self::Boolean | Self::Null => {}
        }
    }

    /// The JSON schema's word, where there is one: a choice between kinds has none.
    fn schema_type(&self) -> Option<&'static str> {
        match self {
            Self::Text | Self::Image | Self::File => Some("string"),
            Self::Integer(_) => Some("integer"),
            Self::Number(_) => Some("number"),
            Self::Boolean => Some("boolean"),
            Self::Null => Some("null"),
            Self::List => Some("array"),
            Self::Object => Some("object"),
            Self::Choice { values } => {
                let mut kinds = values.iter().map(|value| Self::of_value(value).schema_type());
                let first = kinds.next()??;
                let uniform = first != "null" && first != "object" && kinds.all(|kind| kind == Some(first));
                uniform.then_some(first)
            }
        }
    }

    /// The kind of a value, where nothing else is known.
    fn of_value(value: &Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(_) => Self::Boolean,
            Value::Number(number) if number.is_f64() => Self::Number(Range::default()),
            Value::Number(_) => Self::Integer(Range::default()),
            Value::String(_) => Self::Text,
            Value::Array(_) => Self::List,
            Value::Object(_) => Self::Object,
        }
    }

    /// A choice between these values, each once.
    fn choice(values: &[Value]) -> Self {
        let mut seen = HashSet::new();
        let distinct = values.iter().filter(|value| seen.insert(value.to_string()));
        Self::Choice { values: distinct.cloned().collect() }
    }
}

impl Output {
    fn new(name: String, op: &str, class_type: &str) -> Self {
        let kind = OutputKind::of_class(class_type);
        Self { name, op: op.to_owned(), class_type: class_type.to_owned(), kind }
    }

    /// The media type of its files, as far as the class tells.
    pub fn media_type(&self) -> &'static str {
        match (self.class_type.as_str(), self.kind) {
            ("SaveAnimatedWEBP", _) => "image/webp",
            ("SaveAudioMP3", _) => "audio/mpeg",
            ("SaveAudioOpus", _) => "audio/ogg",
            ("SaveWEBM", _) => "video/webm",
            (_, OutputKind::Image) => "image/png",
            (_, OutputKind::Text) => "text/plain",
            (_, OutputKind::Audio) => "audio/flac",
            (_, OutputKind::Video) => "video/mp4",
            (_, OutputKind::Zip) => "application/zip",
            (_, OutputKind::File) => "application/octet-stream",
        }
    }

    /// Whether one run may give several files: a batch of pictures or sounds is one file each.
    pub fn many(&self) -> bool {
        match self.kind {
            OutputKind::Image => !self.class_type.starts_with("SaveAnimated"),
            OutputKind::Audio | OutputKind::File => self.class_type != "CPackOutputFile",
            OutputKind::Text | OutputKind::Video | OutputKind::Zip => false,
        }
    }
}

impl OutputKind {
    /// What ops of this class write.
    fn of_class(class_type: &str) -> Self {
        match class_type {
            "CPackOutputImage" | "SaveImage" | "PreviewImage" | "SaveAnimatedPNG" | "SaveAnimatedWEBP" => {
                Self::Image
            }
            "CPackOutputTextFile" | "PreviewAny" => Self::Text,
            "CPackOutputAudio" | "SaveAudio" | "SaveAudioMP3" | "SaveAudioOpus" | "PreviewAudio" => {
                Self::Audio
            }
            "CPackOutputVideo" | "SaveVideo" | "SaveWEBM" => Self::Video,
            "CPackOutputZip" => Self::Zip,
            _ => Self::File,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_survives_being_stored_with_null_defaults_and_large_limits() {
        let range = Range { minimum: Some(0.into()), maximum: Some(u64::MAX.into()) };
        let input = |name: &str, kind, default| Input {
            name: name.to_owned(),
            title: name.to_owned(),
            op: "1".to_owned(),
            field: "value".to_owned(),
            kind,
            default,
        };
        let interface = Interface {
            inputs: vec![
                input("nothing", InputKind::Null, Some(Value::Null)),
                input("seed", InputKind::Integer(range), Some(json!(7))),
                input("picture", InputKind::Image, None),
                input("size", InputKind::Choice { values: vec![json!(1), json!("auto")] }, Some(json!(1))),
            ],
            outputs: vec![Output::new("image".to_owned(), "9", "SaveImage")],
            zip_switch: false,
        };
        let stored = serde_json::to_vec(&interface).unwrap();
        assert_eq!(serde_json::from_slice::<Interface>(&stored).unwrap(), interface);
        assert_eq!(interface.json_schema()["required"], json!(["picture"]));
    }

    #[test]
    fn outputs_say_their_media_type_and_whether_they_are_many() {
        let check = |class: &str, media_type: &str, many: bool| {
            let output = Output::new("x".to_owned(), "1", class);
            assert_eq!((output.media_type(), output.many()), (media_type, many), "{class}");
        };
        check("CPackOutputImage", "image/png", true);
        check("PreviewImage", "image/png", true);
        check("SaveAnimatedWEBP", "image/webp", false);
        check("CPackOutputTextFile", "text/plain", false);
        check("CPackOutputAudio", "audio/flac", true);
        check("CPackOutputVideo", "video/mp4", false);
        check("CPackOutputZip", "application/zip", false);
        check("CPackOutputFile", "application/octet-stream", false);
        check("SaveSomethingOfACustomNode", "application/octet-stream", true);
    }
}
