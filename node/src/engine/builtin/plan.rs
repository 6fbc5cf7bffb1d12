//! From a workflow to the steps that make its wanted outputs: everything that can be refused is
//! refused here, before anything runs.
//!
//! Not here: executing them (`op.rs`). This file reads no file and no clock.

use std::collections::{BTreeMap, BTreeSet};

use protocol::{Op, RunError, RunErrorKind, Workflow, link_of};
use serde_json::Value as Json;

use super::class::{self, Class, Kind};
use super::value::{Value, from_literal};
use crate::engine::op_error;

/// One op to execute.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Step {
    /// The op's id.
    pub(super) id: String,
    /// Its class.
    pub(super) class: &'static Class,
    /// Its inputs, in the order of the class.
    pub(super) arguments: Vec<Argument>,
}

/// Where a step takes an input from.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Argument {
    /// It stands in the workflow.
    Value(Value),
    /// An earlier step gives it.
    Output { step: usize, slot: usize },
}

/// The ops that the wanted outputs need, each after those that it needs.
pub(super) fn plan(workflow: &Workflow, wanted: &[String]) -> Result<Vec<Step>, RunError> {
    refuse_missing_classes(workflow)?;
    if wanted.is_empty() {
        return Err(RunError::new(RunErrorKind::InvalidInput, "no output of the workflow is wanted"));
    }
    let mut planner = Planner { workflow, steps: Vec::new(), places: BTreeMap::new() };
    for id in wanted {
        let Some(op) = workflow.get(id) else {
            let detail = format!("output op `{id}` is not in the workflow");
            return Err(RunError::new(RunErrorKind::InvalidInput, detail));
        };
        if class::find(&op.class_type).is_some_and(|class| class.action != class::Action::Save) {
            return Err(invalid(id, op, "is wanted as an output and makes no files"));
        }
        planner.add(id)?;
    }
    Ok(planner.steps)
}

fn refuse_missing_classes(workflow: &Workflow) -> Result<(), RunError> {
    let lacking = |(_, op): &(&str, &Op)| class::find(&op.class_type).is_none();
    let Some((id, op)) = workflow.iter().find(lacking) else { return Ok(()) };
    let missing: BTreeSet<&str> =
        workflow.iter().filter(lacking).map(|(_, op)| op.class_type.as_str()).collect();
    let missing: Vec<&str> = missing.into_iter().collect();
    let what = format!(
        "the built-in engine has no `{}`: a node with ComfyUI can execute this workflow",
        missing.join("`, `")
    );
    Err(op_error(RunErrorKind::MissingOp, id, &op.class_type, what))
}

struct Planner<'a> {
    workflow: &'a Workflow,
    steps: Vec<Step>,
    /// By op id: its step, or none while those that it needs are being added.
    places: BTreeMap<&'a str, Option<usize>>,
}

/// An op whose inputs are being added. A stack of these takes the place of recursion, which a long
/// chain of ops from elsewhere could drive as deep as it likes.
struct Open<'a> {
    id: &'a str,
    op: &'a Op,
    class: &'static Class,
    arguments: Vec<Argument>,
}

impl<'a> Planner<'a> {
    fn add(&mut self, wanted: &'a str) -> Result<(), RunError> {
        if self.places.contains_key(wanted) {
            return Ok(());
        }
        let mut stack = vec![self.open(wanted)?];
        while let Some(open) = stack.last_mut() {
            let Some(input) = open.class.inputs.get(open.arguments.len()) else {
                let done = stack.pop().expect("the loop saw it");
                self.places.insert(done.id, Some(self.steps.len()));
                let id = done.id.to_owned();
                self.steps.push(Step { id, class: done.class, arguments: done.arguments });
                continue;
            };
            let given = open.op.inputs.get(input.name);
            let linked = given.filter(|json| json.is_array());
            let Some(json) = linked else {
                let value = literal(open.id, open.op, input, given)?;
                open.arguments.push(Argument::Value(value));
                continue;
            };
            let (source, slot) = self.linked(open, input, json)?;
            match self.places.get(source) {
                Some(Some(step)) => open.arguments.push(Argument::Output { step: *step, slot }),
                Some(None) => {
                    let what = format!("input `{}` leads back to the op itself over links", input.name);
                    return Err(invalid(open.id, open.op, what));
                }
                None => {
                    let next = self.open(source)?;
                    stack.push(next);
                }
            }
        }
        Ok(())
    }

    fn open(&mut self, id: &'a str) -> Result<Open<'a>, RunError> {
        let op = self.workflow.get(id).expect("callers looked it up");
        let class = class::find(&op.class_type).expect("missing classes were refused");
        self.places.insert(id, None);
        Ok(Open { id, op, class, arguments: Vec::new() })
    }

    /// The op and slot that a link names, if they exist and fit.
    fn linked(
        &self,
        open: &Open<'a>,
        input: &class::Input,
        json: &'a Json,
    ) -> Result<(&'a str, usize), RunError> {
        let name = input.name;
        let error = |what: String| Err(invalid(open.id, open.op, what));
        let Some(link) = link_of(json) else {
            return error(format!("input `{name}` is a list and no link of an op's id and a slot"));
        };
        let Some(source) = self.workflow.get(link.op) else {
            return error(format!("input `{name}` is linked to op `{}`, which is not there", link.op));
        };
        let class = class::find(&source.class_type).expect("missing classes were refused");
        let slot = link.slot.as_u64().and_then(|slot| usize::try_from(slot).ok());
        let Some((slot, kind)) = slot.and_then(|slot| Some((slot, *class.outputs.get(slot)?))) else {
            return error(format!(
                "input `{name}` is linked to output {} of op `{}` ({}), which has {}",
                link.slot,
                link.op,
                class.name,
                class.outputs.len()
            ));
        };
        if !kind.fits(input.kind) {
            return error(format!(
                "input `{name}` takes {}, and op `{}` gives {}",
                input.kind.as_str(),
                link.op,
                kind.as_str()
            ));
        }
        Ok((link.op, slot))
    }
}

/// The value of an input that is not linked.
fn literal(id: &str, op: &Op, input: &class::Input, given: Option<&Json>) -> Result<Value, RunError> {
    let default = input.default.map(Json::from);
    let Some(json) = given.or(default.as_ref()) else {
        return Err(invalid(id, op, format!("required input `{}` is missing", input.name)));
    };
    let value = from_literal(json, input.kind)
        .map_err(|error| invalid(id, op, format!("input `{}` {error}", input.name)))?;
    refuse_choice_of_others(id, op, input, &value)?;
    Ok(value)
}

/// Refuses a choice that ComfyUI has and this engine has not.
fn refuse_choice_of_others(id: &str, op: &Op, input: &class::Input, value: &Value) -> Result<(), RunError> {
    let (Kind::Choice { all, ours }, Value::Text(choice)) = (input.kind, value) else { return Ok(()) };
    if all[..ours].contains(&choice.as_str()) {
        return Ok(());
    }
    let what = format!(
        "the built-in engine has only `{}` for `{}`, not `{choice}`: a node with ComfyUI can execute this",
        all[..ours].join("`, `"),
        input.name
    );
    Err(op_error(RunErrorKind::MissingOp, id, &op.class_type, what))
}

fn invalid(id: &str, op: &Op, what: impl std::fmt::Display) -> RunError {
    op_error(RunErrorKind::InvalidInput, id, &op.class_type, what)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plan_of(ops: Json, wanted: &[&str]) -> Result<Vec<Step>, RunError> {
        let workflow = Workflow::parse(&serde_json::to_vec(&ops).unwrap()).unwrap();
        plan(&workflow, &wanted.iter().map(|&id| id.to_owned()).collect::<Vec<_>>())
    }

    fn op(class: &str, inputs: Json) -> Json {
        json!({ "class_type": class, "inputs": inputs })
    }

    fn empty() -> Json {
        op("EmptyImage", json!({"width": 4, "height": 4, "batch_size": 1, "color": 0}))
    }

    fn save(source: &str) -> Json {
        op("SaveImage", json!({"images": [source, 0], "filename_prefix": "x"}))
    }

    #[test]
    fn only_what_an_output_needs_is_planned_and_in_order() {
        let ops = json!({
            "9": save("5"),
            "5": op("ImageInvert", json!({"image": ["2", 0]})),
            "7": save("2"),
            "2": empty(),
        });
        let ids = |steps: Vec<Step>| steps.into_iter().map(|step| step.id).collect::<Vec<_>>();
        assert_eq!(ids(plan_of(ops.clone(), &["9"]).unwrap()), ["2", "5", "9"]);
        assert_eq!(ids(plan_of(ops, &["7", "9"]).unwrap()), ["2", "7", "5", "9"]);
    }

    #[test]
    fn classes_that_the_engine_lacks_are_refused_by_name() {
        let ops =
            json!({"1": empty(), "2": save("1"), "3": op("KSampler", json!({})), "4": op("B", json!({}))});
        let error = plan_of(ops, &["2"]).unwrap_err();
        assert_eq!(error.kind, RunErrorKind::MissingOp);
        assert!(error.detail.contains("`B`, `KSampler`"), "{error}");
        assert_eq!(error.op.unwrap().class, "KSampler");
    }

    #[test]
    fn graph_that_cannot_run_is_refused_with_op_and_input() {
        let check = |ops: Json, kind, message: &str| {
            let error = plan_of(ops, &["9"]).unwrap_err();
            assert_eq!(error.kind, kind, "{error}");
            assert!(error.detail.contains(message), "{error}");
        };
        let invalid = RunErrorKind::InvalidInput;
        check(json!({"1": empty()}), invalid, "output op `9` is not in the workflow");
        check(json!({"9": empty()}), invalid, "makes no files");
        check(json!({"9": save("77")}), invalid, "`images` is linked to op `77`, which is not there");
        check(
            json!({"9": op("SaveImage", json!({"images": [1], "filename_prefix": ""}))}),
            invalid,
            "no link",
        );
        check(json!({"9": op("SaveImage", json!({"filename_prefix": ""}))}), invalid, "`images` is missing");
        check(
            json!({"9": save("1"), "1": op("PrimitiveInt", json!({"value": 1}))}),
            invalid,
            "takes IMAGE, and op `1` gives INT",
        );
        check(
            json!({"9": op("SaveImage", json!({"images": ["1", 3], "filename_prefix": ""})), "1": empty()}),
            invalid,
            "output 3 of op `1` (EmptyImage), which has 1",
        );
        let scale = |method: &str| {
            json!({"1": empty(), "9": save("2"), "2": op("ImageScale", json!({
                "image": ["1", 0], "upscale_method": method, "width": 8, "height": 8, "crop": "disabled",
            }))})
        };
        check(scale("lanczos"), RunErrorKind::MissingOp, "only `nearest-exact` for `upscale_method`");
        check(scale("magic"), invalid, "`magic`");
    }

    #[test]
    fn cycle_is_refused_and_a_long_chain_is_not() {
        let ops = json!({
            "9": save("1"),
            "1": op("ImageInvert", json!({"image": ["2", 0]})),
            "2": op("ImageInvert", json!({"image": ["1", 0]})),
        });
        let error = plan_of(ops, &["9"]).unwrap_err();
        assert!(error.detail.contains("leads back to the op itself"), "{error}");

        let mut chain =
            serde_json::Map::from_iter([("9".to_owned(), save("c0")), ("c9990".to_owned(), empty())]);
        for link in 0..9990 {
            let next = format!("c{}", link + 1);
            chain.insert(format!("c{link}"), op("ImageInvert", json!({"image": [next, 0]})));
        }
        assert_eq!(plan_of(chain.into(), &["9"]).unwrap().len(), 9992);
    }
}
