//! What an author or a deployer makes the API of a workflow: the inputs and outputs that are named for it. A bundle
//! carries its author's, which whoever deploys it may replace.
//!
//! Not here: what becomes of them in a workflow; that is `schema/expose.rs`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Interface;
use super::expose::{ExposeError, ExposedInput};
use crate::workflow::Workflow;

/// The inputs and outputs that are named to be a workflow's API, after those of comfy-pack's ops.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exposure {
    /// Its inputs, each written `NAME=NODE.FIELD`.
    #[serde(default)]
    pub inputs: Vec<ExposedInput>,
    /// The ops whose files are its outputs.
    #[serde(default)]
    pub outputs: Vec<String>,
}

impl Exposure {
    /// Whether it names nothing.
    pub fn is_empty(&self) -> bool {
        self.inputs.is_empty() && self.outputs.is_empty()
    }

    /// Its inputs, or where it names none those of another; and its outputs likewise.
    pub fn or(self, other: &Self) -> Self {
        let Self { mut inputs, mut outputs } = self;
        if inputs.is_empty() {
            inputs.clone_from(&other.inputs);
        }
        if outputs.is_empty() {
            outputs.clone_from(&other.outputs);
        }
        Self { inputs, outputs }
    }

    /// The interface that a workflow has by it; see [`Interface::expose`].
    pub fn interface(
        &self,
        workflow: &Workflow,
        object_info: Option<&Value>,
    ) -> Result<Interface, ExposeError> {
        Interface::expose(workflow, &self.inputs, &self.outputs, object_info)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exposure(inputs: &[&str], outputs: &[&str]) -> Exposure {
        let inputs = inputs.iter().map(|text| text.parse().unwrap()).collect();
        Exposure { inputs, outputs: outputs.iter().map(|&op| op.to_owned()).collect() }
    }

    #[test]
    fn each_kind_that_is_named_replaces_the_other_alone() {
        let author = exposure(&["prompt=6.text"], &["9"]);
        let check = |inputs: &[&str], outputs: &[&str], expected: Exposure| {
            assert_eq!(exposure(inputs, outputs).or(&author), expected);
        };
        check(&[], &[], author.clone());
        check(&["seed=3.seed"], &[], exposure(&["seed=3.seed"], &["9"]));
        check(&[], &["10"], exposure(&["prompt=6.text"], &["10"]));
    }

    #[test]
    fn it_is_stored_as_it_is_written_on_a_command_line() {
        let stored = serde_json::to_string(&exposure(&["width=57:3.model.width"], &["9"])).unwrap();
        assert_eq!(stored, r#"{"inputs":["width=57:3.model.width"],"outputs":["9"]}"#);
        assert_eq!(
            serde_json::from_str::<Exposure>(&stored).unwrap(),
            exposure(&["width=57:3.model.width"], &["9"])
        );
        for wrong in [r#"{"inputs":["width"]}"#, r#"{"output":["9"]}"#] {
            assert!(serde_json::from_str::<Exposure>(wrong).is_err(), "{wrong}");
        }
    }
}
