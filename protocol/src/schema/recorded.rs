//! comfy-pack's recorded schemas, replayed.

use std::collections::HashMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Interface, SchemaError};
use crate::facts;
use crate::workflow::{Workflow, WorkflowError};

/// What this does where comfy-pack fails to start, or loses something.
enum Instead {
    /// The name that comfy-pack cannot use is used.
    Property(&'static str, Value),
    /// An input is called otherwise.
    Renamed(&'static str, &'static str, Value),
    /// The outputs are these.
    Outputs(Value),
    /// Every name of an op is another.
    Names(Value),
    /// It is refused, as comfy-pack does.
    EditorFormat,
    /// It is refused, as comfy-pack does: an op lacks this.
    OpLacks(&'static str),
    /// It is refused, as comfy-pack does: the type of an input is not known.
    UnknownInputClass,
}

/// Every case in which this deviates from what was recorded, or which comfy-pack cannot serve.
fn deviations() -> HashMap<&'static str, Instead> {
    use Instead::*;
    let text = |title: &str| json!({"default": "x", "title": title, "type": "string"});
    HashMap::from([
        // Pydantic takes no leading underscore and none of its own names; JSON does.
        ("title '__x__', node not connected", Property("__x__", text("X"))),
        ("title starts with underscore", Property("_secret", text("Secret"))),
        ("title shadows a pydantic attribute", Property("model_config", text("Model Config"))),
        ("title 'model_dump'", Property("model_dump", text("Model Dump"))),
        // No usable letter in title or class: the class and the id make a name.
        ("title '  ', node not connected", Renamed("_", "string_1", text("String 1"))),
        ("title '_', node not connected", Renamed("_", "string_1", text("String 1"))),
        (
            "no _meta, not connected: string/int/image/file/any class-name fallback",
            Names(json!({"text": "1", "int_2": "2", "mage": "3", "file": "4", "any": "5"})),
        ),
        // Limits by name, and missing ones are none.
        ("Int with value only", Property("n", json!({"default": 5, "title": "N", "type": "integer"}))),
        (
            "Int with value and min only",
            Property("n", json!({"default": 5, "minimum": 0, "title": "N", "type": "integer"})),
        ),
        (
            "Int keys in the order min,max,value: positions are used, not names",
            Property(
                "n",
                json!({"default": 5, "minimum": 0, "maximum": 10, "title": "N", "type": "integer"}),
            ),
        ),
        (
            "Any int options with only min",
            Property("a", json!({"default": 3, "minimum": 0, "title": "A", "type": "integer"})),
        ),
        (
            "Any int options with only step",
            Property("a", json!({"default": 3, "title": "A", "type": "integer"})),
        ),
        // A float is a number, whatever the options lack.
        (
            "Any float value, options without round: becomes integer",
            Property(
                "a",
                json!({"default": 0.75, "minimum": 0, "maximum": 1, "title": "A", "type": "number"}),
            ),
        ),
        // Both outputs stay.
        (
            "two outputs with the same title: the later replaces the earlier",
            Outputs(json!({"image_output": "30", "image_output_31": "31"})),
        ),
        // Refused here as there, with a better message.
        ("UI-format workflow is refused", EditorFormat),
        ("unknown CPackInput class", UnknownInputClass),
        ("node without inputs key", OpLacks("inputs")),
        ("node without class_type", OpLacks("class_type")),
    ])
}

fn interface(workflow_api: &Value) -> Interface {
    let workflow = Workflow::parse(workflow_api.to_string().as_bytes()).unwrap();
    Interface::of(&workflow).unwrap()
}

/// Equal, also in the order of names.
fn assert_same_names(case: &str, ours: &Value, expected: &Value) {
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(ours), keys(expected), "{case}");
    assert_eq!(ours, expected, "{case}");
}

fn assert_as_recorded(case: &str, recorded: &Value) {
    let interface = interface(&recorded["workflow_api"]);
    let schema = interface.json_schema();
    assert_same_names(case, &schema["properties"], &recorded["input_json_schema"]["properties"]);
    assert_eq!(schema, recorded["input_json_schema"], "{case}");
    assert_same_names(case, &interface.input_nodes().into(), &recorded["input_nodes"]);
    assert_same_names(case, &interface.output_nodes().into(), &recorded["output_nodes"]);
}

fn assert_deviation(case: &str, recorded: &Value, instead: &Instead) {
    let graph = &recorded["workflow_api"];
    match instead {
        Instead::Property(name, property) => {
            let interface = interface(graph);
            assert_eq!(&interface.json_schema()["properties"][name], property, "{case}");
            assert_same_names(case, &interface.input_nodes().into(), &recorded["input_nodes"]);
        }
        Instead::Renamed(theirs, ours, property) => {
            let interface = interface(graph);
            assert_eq!(&interface.json_schema()["properties"][ours], property, "{case}");
            assert_eq!(interface.input_nodes()[*ours], recorded["input_nodes"][theirs], "{case}");
        }
        Instead::Names(names) => {
            let interface = interface(graph);
            assert_same_names(case, &interface.input_nodes().into(), names);
            assert_same_names(case, &interface.output_nodes().into(), &recorded["output_nodes"]);
        }
        Instead::Outputs(outputs) => {
            let interface = interface(graph);
            assert_eq!(interface.json_schema(), recorded["input_json_schema"], "{case}");
            assert_same_names(case, &interface.output_nodes().into(), outputs);
        }
        Instead::EditorFormat => {
            let error = Workflow::parse(graph.to_string().as_bytes()).unwrap_err();
            assert!(matches!(error, WorkflowError::EditorFormat), "{case}: {error}");
        }
        Instead::OpLacks(expected) => {
            let error = Workflow::parse(graph.to_string().as_bytes()).unwrap_err();
            assert!(
                matches!(error, WorkflowError::Op { field, .. } if field == *expected),
                "{case}: {error}"
            );
        }
        Instead::UnknownInputClass => {
            let workflow = Workflow::parse(graph.to_string().as_bytes()).unwrap();
            let error = Interface::of(&workflow).unwrap_err();
            assert!(matches!(error, SchemaError::UnknownInputClass { .. }), "{case}: {error}");
        }
    }
}

#[test]
fn all_ninety_edge_cases_give_the_recorded_schema_or_the_stated_deviation() {
    let recorded = facts::json("comfy-pack/schema-edge-cases.json");
    let mut deviations = deviations();
    let cases = recorded["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 90);
    for recorded in cases {
        let case = recorded["case"].as_str().unwrap();
        match deviations.remove(case) {
            Some(instead) => assert_deviation(case, recorded, &instead),
            None => {
                let failed = recorded.get("schema_error").or(recorded.get("parse_error"));
                assert_eq!(failed, None, "comfy-pack fails on this case, and no deviation is stated: {case}");
                assert_as_recorded(case, recorded);
            }
        }
    }
    let unused: Vec<_> = deviations.keys().collect();
    assert!(unused.is_empty(), "deviations without a recorded case: {unused:?}");
}

#[test]
fn larger_recorded_schemas_are_equal() {
    for name in ["schema-every-input", "schema-no-titles", "schema-pixel-art"] {
        assert_as_recorded(name, &facts::json(&format!("comfy-pack/{name}.json")));
    }
}

/// Any JSON up to a few levels.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((".{0,6}", inner), 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// An op as the schema rules look at it, with anything in its places.
fn any_op() -> impl Strategy<Value = Value> {
    let class = prop::sample::select(vec![
        "CPackInputString",
        "CPackInputInt",
        "CPackInputAny",
        "CPackInputImage",
        "CPackInputFile",
        "CPackInputFloat",
        "CPackOutputImage",
        "CPackOutputZipSwitch",
        "KSampler",
    ]);
    let field = prop::sample::select(vec!["value", "min", "max", "input", "image"]);
    let option = prop::sample::select(vec!["values", "min", "max", "round", "step", "on"]);
    let fields = prop::collection::vec((field, any_json()), 0..4);
    let options = prop::collection::vec((option, any_json()), 0..4);
    (class, fields, options, any_json()).prop_map(|(class, fields, options, title)| {
        let object = |fields: Vec<(&str, Value)>| -> Value {
            fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<serde_json::Map<_, _>>().into()
        };
        json!({"class_type": class, "inputs": object(fields), "_meta": {"title": title, "options": object(options)}})
    })
}

proptest! {
    #[test]
    fn schema_of_any_json_never_panics(json in any_json(), ops in prop::collection::vec(any_op(), 0..6)) {
        let _ = Workflow::parse(json.to_string().as_bytes());
        let ops: serde_json::Map<String, Value> =
            ops.into_iter().enumerate().map(|(id, op)| (id.to_string(), op)).collect();
        if let Ok(workflow) = Workflow::parse(Value::Object(ops).to_string().as_bytes())
            && let Ok(interface) = Interface::of(&workflow)
        {
            let names: std::collections::HashSet<_> = interface.inputs.iter().map(|input| &input.name).collect();
            prop_assert_eq!(names.len(), interface.inputs.len());
            let stored: Interface = serde_json::from_value(serde_json::to_value(&interface).unwrap()).unwrap();
            prop_assert_eq!(stored, interface);
        }
    }
}
