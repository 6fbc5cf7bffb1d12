//! What flows between ops, and how a literal of a workflow becomes one: by ComfyUI's own conversions.
//!
//! Not here: links (`plan.rs`).

use std::sync::Arc;

use serde_json::Value as Json;

use super::class::Kind;
use super::pixels::{Mask, Pixels};

/// What an op takes or gives. Pictures are shared, not copied.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Image(Arc<Pixels>),
    Mask(Arc<Mask>),
    Int(i64),
    Float(f64),
    Text(String),
    Bool(bool),
}

/// Why a value does not suit an input. The message goes on after the input's name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ValueError {
    /// It is of another kind, and ComfyUI would not convert it.
    #[error("takes {expected}, not `{got}`")]
    Kind { expected: &'static str, got: String },
    /// It is out of the input's range.
    #[error("is {value}: from {min} to {max} is allowed")]
    Range { value: i64, min: i64, max: i64 },
    /// It is none of the input's choices.
    #[error("is `{got}`, not one of `{choices}`")]
    Choice { got: String, choices: String },
}

/// The value of a literal, converted as ComfyUI converts it for that kind of input.
pub(super) fn from_literal(json: &Json, kind: Kind) -> Result<Value, ValueError> {
    let refused = || ValueError::Kind { expected: kind.as_str(), got: shortened(json) };
    let value = match kind {
        Kind::Image | Kind::Mask => None,
        Kind::Int { .. } => whole(json).map(Value::Int),
        Kind::Float => number(json).map(Value::Float),
        Kind::Text => Some(Value::Text(text(json))),
        Kind::Bool => Some(Value::Bool(truth(json))),
        Kind::Choice { .. } | Kind::File => json.as_str().map(|text| Value::Text(text.to_owned())),
        Kind::Any => any(json),
    };
    suitable(value.ok_or_else(refused)?, kind)
}

/// Checks a value, which may come over a link, against what an input allows.
pub(super) fn suitable(value: Value, kind: Kind) -> Result<Value, ValueError> {
    match (kind, &value) {
        (Kind::Int { min, max }, &Value::Int(number)) if !(min..=max).contains(&number) => {
            Err(ValueError::Range { value: number, min, max })
        }
        (Kind::Choice { all, .. }, Value::Text(choice)) if !all.contains(&choice.as_str()) => {
            Err(ValueError::Choice { got: choice.clone(), choices: all.join("`, `") })
        }
        (Kind::Image, Value::Image(_))
        | (Kind::Mask, Value::Mask(_))
        | (Kind::Int { .. }, Value::Int(_))
        | (Kind::Float, Value::Float(_) | Value::Int(_))
        | (Kind::Text | Kind::Choice { .. } | Kind::File, Value::Text(_))
        | (Kind::Bool, Value::Bool(_))
        | (Kind::Any, _) => Ok(value),
        _ => Err(ValueError::Kind { expected: kind.as_str(), got: value.describe() }),
    }
}

impl Value {
    fn describe(&self) -> String {
        match self {
            Self::Image(_) => "a picture".to_owned(),
            Self::Mask(_) => "a mask".to_owned(),
            Self::Int(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Text(value) => shortened(&Json::from(value.as_str())),
            Self::Bool(value) => value.to_string(),
        }
    }
}

/// Python's `int(…)`.
fn whole(json: &Json) -> Option<i64> {
    match json {
        Json::Number(number) => number.as_i64().or_else(|| {
            let float = number.as_f64()?.trunc();
            // Beyond these bounds the conversion would give another number.
            (float >= i64::MIN as f64 && float < i64::MAX as f64).then_some(float as i64)
        }),
        Json::String(text) => text.trim().parse().ok(),
        Json::Bool(value) => Some(i64::from(*value)),
        _ => None,
    }
}

/// Python's `float(…)`.
fn number(json: &Json) -> Option<f64> {
    match json {
        Json::Number(number) => number.as_f64(),
        Json::String(text) => text.trim().parse().ok(),
        Json::Bool(value) => Some(f64::from(u8::from(*value))),
        _ => None,
    }
}

/// Python's `str(…)`, for what people put in a text input.
fn text(json: &Json) -> String {
    match json {
        Json::String(text) => text.clone(),
        Json::Bool(true) => "True".to_owned(),
        Json::Bool(false) => "False".to_owned(),
        Json::Null => "None".to_owned(),
        other => other.to_string(),
    }
}

/// Python's `bool(…)`.
fn truth(json: &Json) -> bool {
    match json {
        Json::Null => false,
        Json::Bool(value) => *value,
        Json::Number(number) => number.as_f64() != Some(0.0),
        Json::String(text) => !text.is_empty(),
        Json::Array(items) => !items.is_empty(),
        Json::Object(fields) => !fields.is_empty(),
    }
}

fn any(json: &Json) -> Option<Value> {
    match json {
        Json::Bool(value) => Some(Value::Bool(*value)),
        Json::Number(number) => number.as_i64().map(Value::Int).or(number.as_f64().map(Value::Float)),
        Json::String(text) => Some(Value::Text(text.clone())),
        _ => None,
    }
}

fn shortened(json: &Json) -> String {
    const LONGEST: usize = 60;
    let text = json.as_str().map_or_else(|| json.to_string(), str::to_owned);
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SIZE: Kind = Kind::Int { min: 1, max: 16384 };

    #[test]
    fn literals_are_converted_as_comfyui_does() {
        let check = |json: Json, kind, value| assert_eq!(from_literal(&json, kind), Ok(value), "{json}");
        check(json!(7), SIZE, Value::Int(7));
        check(json!(7.9), SIZE, Value::Int(7));
        check(json!(" 7 "), SIZE, Value::Int(7));
        check(json!(true), SIZE, Value::Int(1));
        check(json!("2.5"), Kind::Float, Value::Float(2.5));
        check(json!(3), Kind::Text, Value::Text("3".into()));
        check(json!(true), Kind::Text, Value::Text("True".into()));
        check(json!("false"), Kind::Bool, Value::Bool(true));
        check(json!(0), Kind::Bool, Value::Bool(false));
        check(json!(3), Kind::Any, Value::Int(3));
    }

    #[test]
    fn values_that_do_not_suit_say_what_would() {
        let check = |json: Json, kind, message: &str| {
            assert_eq!(from_literal(&json, kind).unwrap_err().to_string(), message);
        };
        check(json!(-5), SIZE, "is -5: from 1 to 16384 is allowed");
        check(json!("wide"), SIZE, "takes INT, not `wide`");
        check(json!(1e300), SIZE, "takes INT, not `1e+300`");
        check(json!("x"), Kind::Image, "takes IMAGE, not `x`");
        let crops = Kind::Choice { all: &["disabled", "center"], ours: 2 };
        check(json!("left"), crops, "is `left`, not one of `disabled`, `center`");
        check(json!({"a": "b".repeat(80)}), SIZE, &format!("takes INT, not `{{\"a\":\"{}…`", "b".repeat(54)));
    }

    #[test]
    fn linked_value_is_held_to_the_same_limits() {
        assert!(suitable(Value::Int(0), SIZE).is_err());
        assert!(suitable(Value::Text("8".into()), SIZE).is_err());
        assert_eq!(suitable(Value::Int(8), Kind::Float), Ok(Value::Int(8)));
    }
}
