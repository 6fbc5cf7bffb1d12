//! A ComfyUI workflow in API format: ops by id, in file order, and the links between them.
//!
//! Not here: what an op of a class means. `schema` knows which ops are a workflow's interface,
//! `rewrite` fills them in, and only an engine knows the rest.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

/// The largest workflow that is read, in bytes.
pub const MAX_WORKFLOW: usize = 16 << 20;
/// The most ops that a workflow may have.
pub const MAX_OPS: usize = 10_000;
/// The longest id of an op, in bytes.
pub const MAX_OP_ID: usize = 256;

/// A graph of ops. The order of the file is kept: names in the interface depend on it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Workflow {
    ops: Vec<(String, Op)>,
    /// Where in `ops` each id stands.
    places: BTreeMap<String, usize>,
}

/// One op of a workflow.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Op {
    /// The class that ComfyUI looks up, such as `KSampler`.
    pub class_type: String,
    /// Values and links by the name of the input, in file order.
    pub inputs: Map<String, Value>,
    /// What the editor keeps beside them: the title, and the options of the first widget.
    pub meta: Map<String, Value>,
}

/// Where an input takes its value from: an output slot of another op.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link<'a> {
    /// The id of the other op.
    pub op: &'a str,
    /// The slot, as it was written.
    pub slot: &'a Value,
}

/// Why a file is not a workflow in API format.
#[derive(Debug, thiserror::Error)]
pub enum WorkflowError {
    /// It is larger than [`MAX_WORKFLOW`].
    #[error("workflow of {size} bytes: at most {MAX_WORKFLOW} are read")]
    TooLarge {
        /// How large it is.
        size: usize,
    },
    /// It is no JSON, or nested deeper than 128 levels.
    #[error("workflow is not valid JSON")]
    Json(#[source] serde_json::Error),
    /// It is JSON, and no object.
    #[error("workflow is {got}, not an object of ops by id")]
    NotAnObject {
        /// What it is.
        got: &'static str,
    },
    /// It is what the editor's "Save" writes.
    #[error(
        "workflow is in the editor's format, which cannot be executed: in ComfyUI save it with \
         `Export (API)` (older versions: `Save (API Format)`)"
    )]
    EditorFormat,
    /// It has no op at all.
    #[error("workflow has no ops")]
    Empty,
    /// It has more than [`MAX_OPS`].
    #[error("workflow of {count} ops: at most {MAX_OPS} are taken")]
    TooManyOps {
        /// How many it has.
        count: usize,
    },
    /// An op's id is longer than [`MAX_OP_ID`].
    #[error("workflow has an op whose id is longer than {MAX_OP_ID} bytes")]
    OpId,
    /// An op is no object, or lacks what every op has.
    #[error("op `{op}` of the workflow has no `{field}`, or one of the wrong kind")]
    Op {
        /// The op's id.
        op: String,
        /// What it lacks: `class_type` or `inputs`.
        field: &'static str,
    },
}

impl Workflow {
    /// Reads what ComfyUI's `Export (API)` writes.
    pub fn parse(bytes: &[u8]) -> Result<Self, WorkflowError> {
        if bytes.len() > MAX_WORKFLOW {
            return Err(WorkflowError::TooLarge { size: bytes.len() });
        }
        let object = match serde_json::from_slice(bytes).map_err(WorkflowError::Json)? {
            Value::Object(object) => object,
            other => return Err(WorkflowError::NotAnObject { got: kind_of(&other) }),
        };
        if object.contains_key("last_node_id") || object.get("nodes").is_some_and(Value::is_array) {
            return Err(WorkflowError::EditorFormat);
        }
        match object.len() {
            0 => return Err(WorkflowError::Empty),
            count if count > MAX_OPS => return Err(WorkflowError::TooManyOps { count }),
            _ => {}
        }
        object.into_iter().map(|(id, op)| Ok((id.clone(), Op::from_json(id, op)?))).collect()
    }

    /// The workflow as ComfyUI takes it in `POST /prompt`.
    pub fn to_json(&self) -> Value {
        let ops = self.ops.iter().map(|(id, op)| (id.clone(), op.to_json()));
        Value::Object(ops.collect())
    }

    /// The op of this id.
    pub fn get(&self, id: &str) -> Option<&Op> {
        self.places.get(id).map(|&place| &self.ops[place].1)
    }

    /// The op of this id, to change it.
    pub fn get_mut(&mut self, id: &str) -> Option<&mut Op> {
        self.places.get(id).map(|&place| &mut self.ops[place].1)
    }

    /// Adds an op after all others, or puts it in the place of the one of this id.
    pub fn insert(&mut self, id: String, op: Op) {
        match self.places.get(&id) {
            Some(&place) => self.ops[place].1 = op,
            None => {
                self.places.insert(id.clone(), self.ops.len());
                self.ops.push((id, op));
            }
        }
    }

    /// All ops with their ids, in file order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Op)> {
        self.ops.iter().map(|(id, op)| (id.as_str(), op))
    }

    /// How many ops it has.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether it has no ops.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Every class that an engine must have to execute it.
    pub fn classes(&self) -> BTreeSet<String> {
        self.ops.iter().map(|(_, op)| op.class_type.clone()).collect()
    }
}

/// Ops in the order they come; of two with one id the later takes the place of the earlier.
impl FromIterator<(String, Op)> for Workflow {
    fn from_iter<T: IntoIterator<Item = (String, Op)>>(ops: T) -> Self {
        let mut workflow = Self::default();
        for (id, op) in ops {
            match workflow.places.get(&id) {
                Some(&place) => workflow.ops[place].1 = op,
                None => {
                    workflow.places.insert(id.clone(), workflow.ops.len());
                    workflow.ops.push((id, op));
                }
            }
        }
        workflow
    }
}

impl Op {
    /// The title that its author gave it, if any.
    pub fn title(&self) -> Option<&str> {
        self.meta.get("title").and_then(Value::as_str)
    }

    /// The options of its first widget, as the editor wrote them.
    pub fn options(&self) -> Option<&Map<String, Value>> {
        self.meta.get("options").and_then(Value::as_object)
    }

    fn from_json(id: String, json: Value) -> Result<Self, WorkflowError> {
        if id.len() > MAX_OP_ID {
            return Err(WorkflowError::OpId);
        }
        let lacks = |field| WorkflowError::Op { op: id.clone(), field };
        let Value::Object(mut fields) = json else { return Err(lacks("class_type")) };
        let Some(Value::String(class_type)) = fields.remove("class_type") else {
            return Err(lacks("class_type"));
        };
        let Some(Value::Object(inputs)) = fields.remove("inputs") else { return Err(lacks("inputs")) };
        let meta = match fields.remove("_meta") {
            Some(Value::Object(meta)) => meta,
            _ => Map::new(),
        };
        Ok(Self { class_type, inputs, meta })
    }

    fn to_json(&self) -> Value {
        let mut json = json!({ "class_type": self.class_type, "inputs": self.inputs });
        if !self.meta.is_empty() {
            json["_meta"] = Value::Object(self.meta.clone());
        }
        json
    }
}

/// Reads an input's value as a link: ComfyUI takes any list of two that begins with a text for one.
pub fn link_of(value: &Value) -> Option<Link<'_>> {
    match value.as_array()?.as_slice() {
        [Value::String(op), slot] => Some(Link { op, slot }),
        _ => None,
    }
}

/// What a JSON value is, in the words of an error message.
pub(crate) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a number",
        Value::Number(_) => "a whole number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_OPS: &str = r#"{
        "9": {"class_type": "EmptyImage", "inputs": {"width": 8}, "_meta": {"title": "Blank"}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["9", 0]}}
    }"#;

    #[test]
    fn workflow_keeps_the_order_of_the_file_and_comes_back_as_it_was() {
        let workflow = Workflow::parse(TWO_OPS.as_bytes()).unwrap();
        let ids: Vec<&str> = workflow.iter().map(|(id, _)| id).collect();
        assert_eq!(ids, ["9", "3"]);
        assert_eq!(workflow.to_json(), serde_json::from_str::<Value>(TWO_OPS).unwrap());
        assert_eq!(workflow.get("9").unwrap().title(), Some("Blank"));
        assert_eq!(workflow.classes(), ["EmptyImage", "SaveImage"].map(String::from).into());
    }

    #[test]
    fn only_a_list_of_two_that_begins_with_an_id_is_a_link() {
        let slot = json!(1);
        assert_eq!(link_of(&json!(["4", 1])), Some(Link { op: "4", slot: &slot }));
        for other in [json!([4, 1]), json!(["4"]), json!(["4", 1, 2]), json!("4"), json!({"4": 1})] {
            assert_eq!(link_of(&other), None, "{other}");
        }
    }

    #[test]
    fn what_is_no_workflow_is_refused_with_what_it_lacks() {
        let check = |text: &str, message: &str| {
            let error = Workflow::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        };
        check("{", "not valid JSON");
        check("[]", "is a list, not an object");
        check("{}", "no ops");
        check(r#"{"last_node_id": 3, "nodes": []}"#, "`Export (API)`");
        check(r#"{"nodes": [], "links": []}"#, "`Export (API)`");
        check(r#"{"1": {"inputs": {}}}"#, "op `1` of the workflow has no `class_type`");
        check(r#"{"1": {"class_type": "A"}}"#, "op `1` of the workflow has no `inputs`");
        check(r#"{"1": 7}"#, "op `1`");
        check(&"[".repeat(1000), "not valid JSON");
    }

    #[test]
    fn limits_hold_for_bytes_ops_and_ids() {
        let large = vec![b' '; MAX_WORKFLOW + 1];
        assert!(matches!(Workflow::parse(&large), Err(WorkflowError::TooLarge { .. })));
        let op = json!({"class_type": "A", "inputs": {}});
        let many: Map<String, Value> = (0..=MAX_OPS).map(|id| (id.to_string(), op.clone())).collect();
        let bytes = serde_json::to_vec(&many).unwrap();
        assert!(matches!(Workflow::parse(&bytes), Err(WorkflowError::TooManyOps { .. })));
        let long = json!({ "x".repeat(MAX_OP_ID + 1): op });
        let bytes = serde_json::to_vec(&long).unwrap();
        assert!(matches!(Workflow::parse(&bytes), Err(WorkflowError::OpId)));
    }
}
