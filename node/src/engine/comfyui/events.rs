//! What ComfyUI says over its WebSocket, read leniently: what is unknown is [`Event::Other`].
//!
//! Not here: what it means for a run (`session.rs`).

use protocol::PreviewFrame;
use serde::Deserialize;
use serde_json::{Map, Value};

/// One message.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Message {
    /// The prompt that it is about; not every message says.
    pub(super) prompt: Option<String>,
    /// What happened.
    pub(super) event: Event,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Event {
    /// The prompt began.
    Started,
    /// These ops need not be executed again.
    Cached(Vec<String>),
    /// This op begins.
    Executing(String),
    /// Nothing of the prompt is left to execute. It follows every end.
    Idle,
    /// How far an op is, from 0 to 1.
    Progress { op: String, fraction: f32 },
    /// How far all ops are that began.
    States(Vec<OpState>),
    /// An op reported its output.
    Executed { op: String, output: Option<Map<String, Value>> },
    /// The prompt succeeded.
    Succeeded,
    /// An op raised an exception.
    Failed(Exception),
    /// Somebody interrupted it.
    Interrupted,
    /// A picture in the making, if it is small enough to be passed on.
    Preview(Option<PreviewFrame>),
    /// Anything else.
    Other,
}

/// How far one op is.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct OpState {
    pub(super) op: String,
    pub(super) fraction: f32,
    pub(super) finished: bool,
}

/// An exception, as `execution_error` tells it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Exception {
    #[serde(rename = "node_id")]
    pub(super) op: String,
    #[serde(rename = "node_type")]
    pub(super) class: String,
    #[serde(rename = "exception_type")]
    pub(super) kind: String,
    #[serde(rename = "exception_message")]
    pub(super) message: String,
    pub(super) traceback: Vec<String>,
}

/// Reads a text message. What is no message of ComfyUI's is none.
pub(super) fn from_text(text: &str) -> Option<Message> {
    #[derive(Deserialize)]
    struct Envelope {
        #[serde(rename = "type")]
        kind: String,
        #[serde(default)]
        data: Value,
    }
    let Envelope { kind, data } = serde_json::from_str(text).ok()?;
    Some(from_parts(&kind, data))
}

/// Reads a message that is already parsed, such as those in the history.
pub(super) fn from_parts(kind: &str, data: Value) -> Message {
    let prompt = text(&data, "prompt_id");
    Message { prompt, event: event(kind, data).unwrap_or(Event::Other) }
}

/// Reads a binary message: a big-endian number that tells its kind, then what belongs to that kind.
pub(super) fn from_binary(bytes: &[u8]) -> Option<Message> {
    const PREVIEW: u32 = 1;
    const PREVIEW_WITH_METADATA: u32 = 4;
    let (kind, rest) = split_number(bytes)?;
    match kind {
        PREVIEW => {
            let (_format, picture) = split_number(rest)?;
            Some(Message { prompt: None, event: Event::Preview(PreviewFrame::of(picture)) })
        }
        PREVIEW_WITH_METADATA => {
            let (length, rest) = split_number(rest)?;
            let (metadata, picture) = rest.split_at_checked(usize::try_from(length).ok()?)?;
            let metadata: Value = serde_json::from_slice(metadata).ok()?;
            let event = Event::Preview(PreviewFrame::of(picture));
            Some(Message { prompt: text(&metadata, "prompt_id"), event })
        }
        _ => Some(Message { prompt: None, event: Event::Other }),
    }
}

fn event(kind: &str, mut data: Value) -> Option<Event> {
    Some(match kind {
        "execution_start" => Event::Started,
        "execution_cached" => Event::Cached(serde_json::from_value(data["nodes"].take()).ok()?),
        "executing" => match text(&data, "node") {
            Some(op) => Event::Executing(op),
            None => Event::Idle,
        },
        "progress" => Event::Progress { op: text(&data, "node")?, fraction: fraction(&data) },
        "progress_state" => {
            let states = data["nodes"].as_object()?.iter().map(|(op, state)| OpState {
                op: op.clone(),
                fraction: fraction(state),
                finished: state["state"] == "finished",
            });
            Event::States(states.collect())
        }
        "executed" => {
            let output = match data["output"].take() {
                Value::Object(output) => Some(output),
                _ => None,
            };
            Event::Executed { op: text(&data, "node")?, output }
        }
        "execution_success" => Event::Succeeded,
        "execution_error" => Event::Failed(serde_json::from_value(data).ok()?),
        "execution_interrupted" => Event::Interrupted,
        _ => Event::Other,
    })
}

fn text(data: &Value, field: &str) -> Option<String> {
    data.get(field)?.as_str().map(str::to_owned)
}

fn fraction(data: &Value) -> f32 {
    let (value, max) = (data["value"].as_f64().unwrap_or(0.0), data["max"].as_f64().unwrap_or(0.0));
    if max > 0.0 { (value / max).clamp(0.0, 1.0) as f32 } else { 0.0 }
}

fn split_number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_other_kinds_and_shapes_are_not_trusted() {
        let check = |text: &str, event| assert_eq!(from_text(text).map(|message| message.event), event);
        check(r#"{"type": "status", "data": {"status": {}}}"#, Some(Event::Other));
        check(r#"{"type": "progress", "data": {"value": 1, "max": 0, "node": null}}"#, Some(Event::Other));
        check(r#"{"type": "progress_state", "data": {"nodes": 7}}"#, Some(Event::Other));
        check(r#"{"type": "executing"}"#, Some(Event::Idle));
        check(r#"{"data": {}}"#, None);
        check("[", None);
    }

    #[test]
    fn fraction_is_between_0_and_1_whatever_is_claimed() {
        let check = |value: i64, max: i64, fraction| {
            let text = format!(
                r#"{{"type": "progress", "data": {{"node": "3", "prompt_id": "p", "value": {value}, "max": {max}}}}}"#
            );
            let message = from_text(&text).unwrap();
            assert_eq!(message.event, Event::Progress { op: "3".into(), fraction });
            assert_eq!(message.prompt.as_deref(), Some("p"));
        };
        check(1, 4, 0.25);
        check(9, 4, 1.0);
        check(-9, 4, 0.0);
        check(1, 0, 0.0);
    }

    #[test]
    fn binary_frames_are_read_within_their_bounds() {
        let legacy = hex::decode("0000000100000001ffd8ffe0").unwrap();
        let picture = Event::Preview(PreviewFrame::of(b"\xff\xd8\xff\xe0"));
        assert_eq!(from_binary(&legacy), Some(Message { prompt: None, event: picture }));
        let huge = [&legacy[..], &vec![0; protocol::MAX_PREVIEW]].concat();
        assert_eq!(from_binary(&huge).unwrap().event, Event::Preview(None), "it moves, and is not passed on");
        let metadata = br#"{"node_id": "5", "prompt_id": "p"}"#;
        let mut frame = vec![0, 0, 0, 4, 0, 0, 0, metadata.len() as u8];
        frame.extend_from_slice(metadata);
        frame.extend_from_slice(b"\xff\xd8\xff");
        let picture = Event::Preview(PreviewFrame::of(b"\xff\xd8\xff"));
        assert_eq!(from_binary(&frame).unwrap().event, picture);
        assert_eq!(from_binary(&frame).unwrap().prompt.as_deref(), Some("p"));
        frame[4] = 0xff;
        assert_eq!(from_binary(&frame), None, "a length beyond the frame");
        assert_eq!(from_binary(&[0, 0, 1]), None);
        assert_eq!(from_binary(&[0, 0, 0, 9]).unwrap().event, Event::Other);
    }
}
