//! Which ops of a workflow are its interface by comfy-pack's rules, and the type of each input.
//!
//! Equal to comfy-pack where that works; where it fails to start or loses an output, this does not:
//! an op without a usable name is called by its class and id, limits of an integer are looked up by
//! name and may be missing, a float value makes a number, and of two outputs with one name both stay.

use std::collections::HashMap;

use serde_json::{Map, Number, Value};

use super::name::{NAMELESS, is_identifier, slug, slug_of_class, title_of, unique};
use super::{Input, InputKind, Interface, Output, Range};
use crate::workflow::{Op, Workflow, link_of};

const INPUT: &str = "CPackInput";
const OUTPUT: &str = "CPackOutput";
/// Its presence makes the result one zip; it is no output itself.
pub(crate) const ZIP_SWITCH: &str = "CPackOutputZipSwitch";
/// The largest whole number that comfy-pack's inputs know; with either sign it means no limit.
const NO_LIMIT: i64 = i64::MAX;

/// Why a workflow has no interface.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// An op is an input of a class that is not known, so that its type is not.
    #[error(
        "op `{op}` is a `{class_type}`, an input class that is not known: use `CPackInputAny`, or expose \
         the input that it is wired to"
    )]
    UnknownInputClass {
        /// The op's id.
        op: String,
        /// Its class.
        class_type: String,
    },
}

impl Interface {
    /// The interface that comfy-pack's ops give a workflow; empty where it has none.
    pub fn of(workflow: &Workflow) -> Result<Self, SchemaError> {
        let consumers = consumers_of_first_slots(workflow);
        let mut interface = Self::default();
        for (id, op) in workflow.iter() {
            if op.class_type == ZIP_SWITCH {
                interface.zip_switch = true;
            } else if op.inputs.is_empty() {
                // An op of the interface that has no inputs was cut off in the editor.
            } else if op.class_type.starts_with(INPUT) {
                let consumer = consumers.get(id).copied();
                let name = interface.free_input_name(input_name(id, op, consumer), id);
                interface.inputs.push(input_of(id, op, name)?);
            } else if op.class_type.starts_with(OUTPUT) {
                let name = interface.free_output_name(output_name(op), id);
                interface.outputs.push(Output::new(name, id, &op.class_type));
            }
        }
        Ok(interface)
    }

    pub(super) fn free_input_name(&self, name: String, op: &str) -> String {
        unique(name, op, |name| self.input(name).is_some())
    }

    /// An output may not be called like an input that stands before it in the graph, or another output.
    pub(super) fn free_output_name(&self, name: String, op: &str) -> String {
        unique(name, op, |name| self.input(name).is_some() || self.output(name).is_some())
    }
}

/// Who takes the first slot of each op: the name of the input, of the last one in file order.
fn consumers_of_first_slots(workflow: &Workflow) -> HashMap<&str, &str> {
    let mut consumers = HashMap::new();
    for (_, op) in workflow.iter() {
        for (field, value) in &op.inputs {
            if let Some(link) = link_of(value)
                && link.slot.as_f64() == Some(0.0)
            {
                consumers.insert(link.op, field.as_str());
            }
        }
    }
    consumers
}

fn input_name(id: &str, op: &Op, consumer: Option<&str>) -> String {
    let name = match (op.title().unwrap_or_default(), consumer) {
        (title, _) if is_identifier(title) => title.to_owned(),
        (_, Some(consumer)) => slug(consumer),
        ("", None) => slug_of_class(&op.class_type),
        (title, None) => slug(title),
    };
    if name == NAMELESS {
        let class = op.class_type.strip_prefix(INPUT).unwrap_or(&op.class_type);
        return format!("{}_{id}", class.to_lowercase());
    }
    name
}

pub(super) fn output_name(op: &Op) -> String {
    match op.title().unwrap_or_default() {
        title if is_identifier(title) => title.to_owned(),
        "" => slug_of_class(&op.class_type),
        title => slug(title),
    }
}

fn input_of(id: &str, op: &Op, name: String) -> Result<Input, SchemaError> {
    let (first_field, first) = op.inputs.iter().next().expect("ops without inputs are skipped before");
    let mut field = first_field.as_str();
    let (kind, default) = match op.class_type.as_str() {
        "CPackInputString" => (InputKind::Text, Some(first)),
        "CPackInputInt" => {
            field = integer_field(&op.inputs).unwrap_or(field);
            (InputKind::Integer(integer_range(&op.inputs)), op.inputs.get(field))
        }
        "CPackInputAny" => (any_kind(first, op.options()), Some(first)),
        "CPackInputImage" => (InputKind::Image, None),
        "CPackInputFile" => (InputKind::File, None),
        class_type => {
            let (op, class_type) = (id.to_owned(), class_type.to_owned());
            return Err(SchemaError::UnknownInputClass { op, class_type });
        }
    };
    let (op, field) = (id.to_owned(), field.to_owned());
    Ok(Input { title: title_of(&name), name, op, field, kind, default: default.cloned() })
}

/// The field of an integer's value: `value`, or the first that is no limit.
fn integer_field(inputs: &Map<String, Value>) -> Option<&str> {
    let is_limit = |field: &&String| field.as_str() != "min" && field.as_str() != "max";
    let mut fields = inputs.keys();
    fields.clone().find(|field| *field == "value").or_else(|| fields.find(is_limit)).map(String::as_str)
}

fn integer_range(inputs: &Map<String, Value>) -> Range {
    let limit = |field: &str, no_limit: i64| {
        let number = inputs.get(field)?.as_number()?;
        (number.as_i64() != Some(no_limit)).then(|| number.clone())
    };
    Range { minimum: limit("min", -NO_LIMIT), maximum: limit("max", NO_LIMIT) }
}

/// The kind of an op that takes on the widget it is wired to: that widget's options tell.
fn any_kind(value: &Value, options: Option<&Map<String, Value>>) -> InputKind {
    let Some(options) = options else { return InputKind::of_value(value) };
    if let Some(Value::Array(values)) = options.get("values")
        && !values.is_empty()
    {
        return InputKind::choice(values);
    }
    if !["min", "max", "round", "precision", "step"].iter().any(|key| options.contains_key(*key)) {
        return InputKind::of_value(value);
    }
    let limit = |key: &str| options.get(key).and_then(Value::as_number).cloned();
    let (minimum, maximum) = (limit("min"), limit("max"));
    let round = match options.get("round") {
        Some(Value::Bool(false)) => 0.0,
        Some(Value::Number(round)) => round.as_f64().unwrap_or(1.0),
        _ => 1.0,
    };
    if round < 1.0 || value.is_f64() {
        return InputKind::Number(Range { minimum, maximum });
    }
    let is_limit = |number: &Number| match number.as_i64() {
        Some(whole) => whole >= -NO_LIMIT,
        None => number.as_f64().is_some_and(|number| number.abs() < NO_LIMIT as f64),
    };
    InputKind::Integer(Range { minimum: minimum.filter(is_limit), maximum: maximum.filter(is_limit) })
}
