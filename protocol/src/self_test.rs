//! A self-test: a workflow that a node runs for nobody, to show that it can, or can again.
//!
//! Its inputs are those that the bundle recorded, else small ones of the node's own. Not here: when one is asked for,
//! which is the coordinator's, and when it is done, which is the node's: never before a job.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::blob::BlobRef;
use crate::id::WorkflowVersion;
use crate::job::RunError;
use crate::lockfile::LockfileHash;
use crate::message::BlobProviders;
use crate::parameters::{Argument, Parameters};
use crate::schema::{Input, InputKind, Interface, Range};
use crate::workflow::Workflow;

/// A workflow to try as soon as a slot has nothing else to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfTest {
    /// Which workflow it is.
    pub workflow: WorkflowVersion,
    /// The lockfile in whose workspace it runs, on a managed engine.
    pub lockfile: LockfileHash,
    /// The workflow in ComfyUI's API format.
    pub graph: BlobRef,
    /// The workflow's interface, as JSON.
    pub interface: BlobRef,
    /// Files that came with the bundle, by the name under which the graph knows them.
    pub inputs: BTreeMap<String, BlobRef>,
    /// Who holds these.
    pub providers: Vec<BlobProviders>,
}

/// What came of a self-test. One that was broken off, because a run came, is no result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfTested {
    /// Of which workflow.
    pub workflow: WorkflowVersion,
    /// Why it failed; `None` where it succeeded.
    pub failure: Option<RunError>,
}

/// A small file that a node makes where the bundle recorded none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmallFile {
    /// A picture, as PNG.
    Picture,
    /// A sound, as WAV.
    Sound,
    /// A text, which is empty JSON as well.
    Text,
}

impl SmallFile {
    /// A name that tells what it is.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Picture => "test.png",
            Self::Sound => "test.wav",
            Self::Text => "test.txt",
        }
    }

    /// What stands in for a file of this name; `None` where nothing small does.
    fn in_place_of(recorded: &str) -> Option<Self> {
        let extension = recorded.rsplit_once('.')?.1.to_ascii_lowercase();
        match extension.as_str() {
            "png" | "jpg" | "jpeg" | "webp" | "bmp" | "gif" | "tiff" => Some(Self::Picture),
            "wav" | "mp3" | "flac" | "ogg" | "opus" | "m4a" => Some(Self::Sound),
            "txt" | "json" | "csv" | "md" => Some(Self::Text),
            _ => None,
        }
    }
}

impl Interface {
    /// What a self-test gives for the inputs that have no default: the files of the bundle where the graph names some,
    /// else `small` ones, and plain values. `None` where an input takes a file that nothing can stand in for.
    pub fn test_parameters(
        &self,
        workflow: &Workflow,
        bundled: &BTreeMap<String, BlobRef>,
        mut small: impl FnMut(SmallFile) -> BlobRef,
    ) -> Option<Parameters> {
        let mut argument = |input: &Input| {
            if !input.takes_file() {
                return Some(Argument::Value(plain(&input.kind)));
            }
            let recorded = workflow.get(&input.op).and_then(|op| op.inputs.get(&input.field)?.as_str());
            let recorded = recorded.unwrap_or_default();
            if let Some(blob) = bundled.get(recorded) {
                return Some(Argument::file(*blob, recorded));
            }
            let file = match input.kind {
                InputKind::Image => SmallFile::Picture,
                _ => SmallFile::in_place_of(recorded)?,
            };
            Some(Argument::file(small(file), file.file_name()))
        };
        let required = self.inputs.iter().filter(|input| input.is_required());
        required.map(|input| Some((input.name.clone(), argument(input)?))).collect()
    }
}

/// A value that an input of this kind takes.
fn plain(kind: &InputKind) -> Value {
    let least = |range: &Range| range.minimum.clone().or(range.maximum.clone()).unwrap_or_else(|| 1.into());
    match kind {
        InputKind::Integer(range) | InputKind::Number(range) => Value::Number(least(range)),
        InputKind::Choice { values } => values.first().cloned().unwrap_or(Value::Null),
        InputKind::Boolean => json!(false),
        InputKind::Null => Value::Null,
        InputKind::List => json!([]),
        InputKind::Object => json!({}),
        InputKind::Text | InputKind::Image | InputKind::File => json!("a test"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(fields: &[&str]) -> (Workflow, Interface) {
        let graph = json!({
            "1": { "class_type": "LoadImage", "inputs": { "image": "cat.png" } },
            "2": { "class_type": "CPackInputFile", "inputs": { "path": "hum.mp3" }, "_meta": { "title": "sound" } },
            "3": { "class_type": "CPackInputFile", "inputs": { "path": "film.mp4" }, "_meta": { "title": "film" } },
            "4": { "class_type": "KSampler", "inputs": { "seed": 7 } },
            "9": { "class_type": "SaveImage", "inputs": { "images": ["1", 0] } },
        });
        let workflow = Workflow::parse(graph.to_string().as_bytes()).expect("a workflow");
        let exposed = ["picture=1.image", "seed=4.seed"].map(|input| input.parse().expect("an input"));
        let mut interface =
            Interface::expose(&workflow, &exposed, &["9".to_owned()], None).expect("all are there");
        interface.inputs.retain(|input| fields.contains(&input.name.as_str()));
        (workflow, interface)
    }

    #[test]
    fn recorded_files_go_before_small_ones_and_what_nothing_stands_in_for_is_not_tried() {
        let cat = BlobRef::of(b"a cat");
        let check = |fields: &[&str], bundled: &[(&str, BlobRef)], expected: Option<&[(&str, &[u8])]>| {
            let (workflow, interface) = interface(fields);
            let bundled = bundled.iter().map(|(name, blob)| ((*name).to_owned(), *blob)).collect();
            let small = |file: SmallFile| BlobRef::of(file.file_name().as_bytes());
            let given = interface.test_parameters(&workflow, &bundled, small);
            let files = given.as_ref().map(|given| given.blobs().collect::<Vec<_>>());
            let expected = expected
                .map(|expected| expected.iter().map(|(_, bytes)| BlobRef::of(bytes)).collect::<Vec<_>>());
            assert_eq!(files, expected, "{fields:?}");
            if let Some(given) = given {
                interface.check(given).expect("it fits");
            }
        };
        check(&["picture", "seed"], &[("cat.png", cat)], Some(&[("picture", b"a cat")]));
        check(&["picture", "sound"], &[], Some(&[("picture", b"test.png"), ("sound", b"test.wav")]));
        check(&["film"], &[], None);
    }

    #[test]
    fn plain_values_are_within_their_limits() {
        let range = |minimum: Option<i64>, maximum: Option<i64>| Range {
            minimum: minimum.map(Into::into),
            maximum: maximum.map(Into::into),
        };
        let check = |kind: InputKind, expected: Value| assert_eq!(plain(&kind), expected, "{kind:?}");
        check(InputKind::Integer(range(Some(8), Some(64))), json!(8));
        check(InputKind::Integer(range(None, Some(-3))), json!(-3));
        check(InputKind::Number(range(None, None)), json!(1));
        check(InputKind::Choice { values: vec![json!("euler"), json!("heun")] }, json!("euler"));
    }
}
