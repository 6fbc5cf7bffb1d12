//! Holding a caller's values against an interface: strict about types, every fault at once.
//!
//! Not here: the lax conversions of comfy-pack's own API; a surface that promises those makes them
//! before it comes here.

use serde::Serialize;
use serde_json::{Number, Value};

use super::{Input, InputKind, Interface, Range};
use crate::nearest::nearest;
use crate::parameters::{Argument, Parameters};
use crate::workflow::kind_of;

/// The most values of a choice that a message lists.
const LISTED: usize = 12;

/// One fault in what a caller gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("`{field}`: {message}")]
pub struct FieldError {
    /// The input, or the name that is none.
    pub field: String,
    /// The rule that is broken.
    pub rule: Rule,
    /// What kind of value was given.
    pub got: &'static str,
    /// What is wrong and what is right, in words.
    pub message: String,
}

/// The rules that a value can break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// It is of another type.
    Type,
    /// It is less than the least.
    Minimum,
    /// It is more than the most.
    Maximum,
    /// It is none of the values to choose from.
    Enum,
    /// It is missing.
    Required,
    /// The workflow has no such input.
    Unknown,
    /// A file was given for a value, or a value for a file.
    File,
}

impl Interface {
    /// Checks what a caller gave and adds the defaults of what it did not give.
    pub fn check(&self, mut given: Parameters) -> Result<Parameters, Vec<FieldError>> {
        let mut faults: Vec<FieldError> = given
            .iter()
            .filter(|(name, _)| self.input(name).is_none())
            .map(|(name, argument)| self.unknown(name, argument))
            .collect();
        for input in &self.inputs {
            match (given.get(&input.name), &input.default) {
                (Some(argument), _) => match input.check(argument) {
                    Ok(Some(value)) => drop(given.insert(input.name.clone(), Argument::Value(value))),
                    Ok(None) => {}
                    Err(fault) => faults.push(fault),
                },
                (None, Some(default)) => {
                    given.insert(input.name.clone(), Argument::Value(default.clone()));
                }
                (None, None) => faults.push(input.missing()),
            }
        }
        if faults.is_empty() { Ok(given) } else { Err(faults) }
    }

    fn unknown(&self, name: &str, argument: &Argument) -> FieldError {
        let message = match nearest(name, self.inputs.iter().map(|input| input.name.as_str())) {
            Some(nearest) => format!("the workflow has no such input; did you mean `{nearest}`?"),
            None => "the workflow has no such input".to_owned(),
        };
        let field = name.chars().take(128).collect();
        FieldError { field, rule: Rule::Unknown, got: kind_of_argument(argument), message }
    }
}

impl Input {
    /// Checks one argument; gives the value to take in its place where it is written otherwise, as 7.0 for 7.
    fn check(&self, argument: &Argument) -> Result<Option<Value>, FieldError> {
        let fault = |rule, message: String| {
            Err(FieldError { field: self.name.clone(), rule, got: kind_of_argument(argument), message })
        };
        let value = match (argument, self.takes_file()) {
            (Argument::File { .. }, true) => return Ok(None),
            (Argument::File { .. }, false) => {
                return fault(Rule::File, format!("takes {}, not a file", self.kind.in_words()));
            }
            (Argument::Value(value), true) => {
                let message = format!("takes {}, not {}", self.kind.in_words(), kind_of(value));
                return fault(Rule::File, message);
            }
            (Argument::Value(value), false) => value,
        };
        let wrong_type =
            || fault(Rule::Type, format!("takes {}, not {}", self.kind.in_words(), kind_of(value)));
        match &self.kind {
            InputKind::Integer(range) => {
                let Some(whole) = value.as_number().and_then(whole_number) else { return wrong_type() };
                match range.check(&whole) {
                    Some((rule, message)) => fault(rule, message),
                    None => Ok((value.as_number() != Some(&whole)).then_some(Value::Number(whole))),
                }
            }
            InputKind::Number(range) => {
                let Value::Number(number) = value else { return wrong_type() };
                match range.check(number) {
                    Some((rule, message)) => fault(rule, message),
                    None => Ok(None),
                }
            }
            InputKind::Choice { values } if values.iter().any(|choice| is_same(choice, value)) => Ok(None),
            InputKind::Choice { values } => fault(Rule::Enum, format!("takes one of {}", listed(values))),
            InputKind::Text if value.is_string() => Ok(None),
            InputKind::Boolean if value.is_boolean() => Ok(None),
            InputKind::Null if value.is_null() => Ok(None),
            InputKind::List if value.is_array() => Ok(None),
            InputKind::Object if value.is_object() => Ok(None),
            _ => wrong_type(),
        }
    }

    fn missing(&self) -> FieldError {
        let message = format!("is required: {}", self.kind.in_words());
        FieldError { field: self.name.clone(), rule: Rule::Required, got: "nothing", message }
    }
}

impl InputKind {
    fn in_words(&self) -> &'static str {
        match self {
            Self::Text => "a text",
            Self::Integer(_) => "a whole number",
            Self::Number(_) => "a number",
            Self::Boolean => "true or false",
            Self::Choice { .. } => "one of some values",
            Self::Null => "null",
            Self::List => "a list",
            Self::Object => "an object",
            Self::Image => "a picture as a file",
            Self::File => "a file",
        }
    }
}

impl Range {
    fn check(&self, number: &Number) -> Option<(Rule, String)> {
        if let Some(minimum) = &self.minimum
            && is_less(number, minimum)
        {
            return Some((Rule::Minimum, format!("must be at least {minimum}, not {number}")));
        }
        if let Some(maximum) = &self.maximum
            && is_less(maximum, number)
        {
            return Some((Rule::Maximum, format!("must be at most {maximum}, not {number}")));
        }
        None
    }
}

/// A number as a whole one, which 7.0 is and 7.5 is not.
fn whole_number(number: &Number) -> Option<Number> {
    let Some(float) = number.as_f64().filter(|_| number.is_f64()) else { return Some(number.clone()) };
    if float.fract() != 0.0 {
        return None;
    }
    // A double beyond 64 bits is whole, and stays what it is.
    let whole = float as i64;
    Some(if whole as f64 == float && whole != i64::MAX { whole.into() } else { number.clone() })
}

/// Compares whole numbers exactly, and others as doubles.
fn is_less(left: &Number, right: &Number) -> bool {
    let exact = |number: &Number| number.as_i64().map(i128::from).or(number.as_u64().map(i128::from));
    match (exact(left), exact(right)) {
        (Some(left), Some(right)) => left < right,
        _ => left.as_f64() < right.as_f64(),
    }
}

/// Whether a value is the one to choose; 1.0 is 1.
fn is_same(choice: &Value, value: &Value) -> bool {
    match (choice, value) {
        (Value::Number(choice), Value::Number(value)) => !is_less(choice, value) && !is_less(value, choice),
        _ => choice == value,
    }
}

fn listed(values: &[Value]) -> String {
    let mut listed: Vec<String> = values.iter().take(LISTED).map(|value| format!("`{value}`")).collect();
    if values.len() > LISTED {
        listed.push(format!("… ({} in all)", values.len()));
    }
    listed.join(", ")
}

fn kind_of_argument(argument: &Argument) -> &'static str {
    match argument {
        Argument::Value(value) => kind_of(value),
        Argument::File { .. } => "a file",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::blob::BlobRef;
    use crate::workflow::Workflow;

    fn interface() -> Interface {
        let graph = json!({
            "1": {"class_type": "CPackInputString", "inputs": {"value": "fox"}, "_meta": {"title": "prompt"}},
            "2": {"class_type": "CPackInputInt", "inputs": {"value": 20, "min": 1, "max": u64::MAX}, "_meta": {"title": "steps"}},
            "3": {"class_type": "CPackInputAny", "inputs": {"cfg": 7.5}, "_meta": {"title": "cfg", "options": {"min": 0, "max": 30, "round": 0.1}}},
            "4": {"class_type": "CPackInputAny", "inputs": {"x": "a"}, "_meta": {"title": "size", "options": {"values": ["a", "b", 1]}}},
            "5": {"class_type": "CPackInputAny", "inputs": {"x": true}, "_meta": {"title": "tiled"}},
            "6": {"class_type": "CPackInputImage", "inputs": {"image": "x.png"}, "_meta": {"title": "image"}}
        });
        Interface::of(&Workflow::parse(graph.to_string().as_bytes()).unwrap()).unwrap()
    }

    fn picture() -> Argument {
        Argument::file(BlobRef::of(b"png"), "cat.png")
    }

    /// Checks one value beside a good picture: the rules that it breaks, or what is taken.
    fn checked(name: &str, argument: Argument) -> Result<Argument, Vec<(Rule, &'static str)>> {
        let given = [("image".to_owned(), picture()), (name.to_owned(), argument)].into_iter().collect();
        match interface().check(given) {
            Ok(parameters) => Ok(parameters.get(name).unwrap().clone()),
            Err(faults) => {
                assert!(faults.iter().all(|fault| fault.field == name), "{faults:?}");
                Err(faults.iter().map(|fault| (fault.rule, fault.got)).collect())
            }
        }
    }

    #[test]
    fn defaults_fill_what_is_not_given_and_only_files_are_required() {
        let only_image: Parameters = [("image".to_owned(), picture())].into_iter().collect();
        let filled = interface().check(only_image).unwrap();
        assert_eq!(filled.get("steps"), Some(&Argument::Value(json!(20))));
        assert_eq!(filled.iter().count(), 6);
        let faults = interface().check(Parameters::default()).unwrap_err();
        assert_eq!(faults.len(), 1);
        assert_eq!((faults[0].rule, faults[0].got), (Rule::Required, "nothing"));
        assert_eq!(faults[0].to_string(), "`image`: is required: a picture as a file");
    }

    #[test]
    fn types_are_strict_and_limits_exact() {
        let good = |name: &str, value: Value, taken: Value| {
            assert_eq!(checked(name, Argument::Value(value)), Ok(Argument::Value(taken)));
        };
        good("steps", json!(7), json!(7));
        good("steps", json!(7.0), json!(7));
        good("steps", json!(u64::MAX), json!(u64::MAX));
        good("cfg", json!(3), json!(3));
        good("size", json!(1.0), json!(1.0));
        let bad = |name: &str, value: Value, rule: Rule, got: &'static str| {
            assert_eq!(checked(name, Argument::Value(value)), Err(vec![(rule, got)]));
        };
        bad("steps", json!("7"), Rule::Type, "a text");
        bad("steps", json!(7.5), Rule::Type, "a number");
        bad("steps", json!(true), Rule::Type, "a boolean");
        bad("steps", json!(null), Rule::Type, "null");
        bad("steps", json!(0), Rule::Minimum, "a whole number");
        bad("steps", json!(1e30), Rule::Maximum, "a number");
        bad("cfg", json!(30.1), Rule::Maximum, "a number");
        bad("cfg", json!("3"), Rule::Type, "a text");
        bad("prompt", json!(3), Rule::Type, "a whole number");
        bad("tiled", json!(1), Rule::Type, "a whole number");
        bad("size", json!("c"), Rule::Enum, "a text");
        bad("size", json!(true), Rule::Enum, "a boolean");
    }

    #[test]
    fn file_where_a_number_belongs_and_number_where_a_file_belongs_are_refused() {
        assert_eq!(checked("steps", picture()), Err(vec![(Rule::File, "a file")]));
        let path = Argument::Value(json!("/etc/passwd"));
        assert_eq!(checked("image", path), Err(vec![(Rule::File, "a text")]));
    }

    #[test]
    fn unknown_input_is_refused_and_the_nearest_named() {
        let given = [("image".to_owned(), picture()), ("promt".to_owned(), Argument::Value(json!("x")))];
        let faults = interface().check(given.into_iter().collect()).unwrap_err();
        assert_eq!(faults[0].rule, Rule::Unknown);
        assert!(faults[0].message.contains("did you mean `prompt`?"), "{}", faults[0].message);
        assert_eq!(checked("qqq", Argument::Value(json!(1))), Err(vec![(Rule::Unknown, "a whole number")]));
    }

    #[test]
    fn all_faults_come_at_once() {
        let given = [("steps", json!("x")), ("tiled", json!(2)), ("nonsense", json!(1))];
        let given = given.map(|(name, value)| (name.to_owned(), Argument::Value(value)));
        let faults = interface().check(given.into_iter().collect()).unwrap_err();
        let fields: Vec<&str> = faults.iter().map(|fault| fault.field.as_str()).collect();
        assert_eq!(fields, ["nonsense", "steps", "tiled", "image"]);
    }
}
