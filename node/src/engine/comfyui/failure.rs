//! What ComfyUI's ways of failing mean for a run: every mapping from its words to a kind of error.
//!
//! Not here: the requests and events that carry them.

use protocol::{FailedOp, RunError, RunErrorKind, Workflow, error_chain};
use serde_json::Value;

use super::answer::{HistoryStatus, Rejection};
use super::client::RequestError;
use super::events::{self, Event, Exception};
use super::models::names_a_model;
use super::session::Verdict;
use crate::os::file::tells_full_disk;

/// The longest text of a detail, and of a traceback; exceptions can be of any length.
const MAX_DETAIL: usize = 2_000;
const MAX_TRACEBACK: usize = 16_000;

/// The error of a prompt that ComfyUI refused.
pub(super) fn rejected(rejection: &Rejection, workflow: &Workflow) -> RunError {
    let error = &rejection.error;
    if error.kind == "missing_node_type" || error.message.ends_with("does not exist.") {
        return missing_op(rejection, workflow);
    }
    let errors: Vec<(&String, &Value, &Value)> = rejection
        .node_errors
        .iter()
        .flat_map(|(id, node)| {
            let errors = node["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
            errors.iter().map(move |error| (id, node, error))
        })
        .collect();
    let Some(&(id, node, first)) = errors.first() else {
        let detail = format!("ComfyUI refused the workflow: {}: {}", error.message, error.details);
        return RunError::new(RunErrorKind::InvalidInput, cut(detail.trim_end_matches(": "), MAX_DETAIL));
    };
    let not_listed = first["type"] == "value_not_in_list";
    let names_a_model = first["extra_info"]["received_value"].as_str().is_some_and(names_a_model);
    let kind = match not_listed && names_a_model {
        true => RunErrorKind::MissingModel,
        false => RunErrorKind::InvalidInput,
    };
    let sentences: Vec<String> = errors.iter().map(|(id, node, error)| sentence(id, node, error)).collect();
    let op = FailedOp { id: id.clone(), class: text(node, "class_type"), traceback: None };
    RunError::of_op(kind, cut(&sentences.join("; "), MAX_DETAIL), op)
}

/// The error of an exception that an op raised.
pub(super) fn raised(exception: &Exception) -> RunError {
    let message = exception.message.trim_end();
    let kind = kind_of(&exception.kind, message);
    let Exception { op, class, kind: exception_type, traceback, .. } = exception;
    let mut detail = match message {
        "" => format!("op `{op}` ({class}) raised {exception_type}"),
        message => format!("op `{op}` ({class}) raised {exception_type}: {message}"),
    };
    if kind == RunErrorKind::NodeFault {
        detail.push_str(
            ": the disk of this node is full, or what its user may take of it; its owner has to make room",
        );
    }
    let traceback = format!("{exception_type}: {}\n{}", cut(message, MAX_DETAIL), traceback.concat());
    let traceback = Some(cut(&traceback, MAX_TRACEBACK));
    let op = FailedOp { id: op.clone(), class: class.clone(), traceback };
    RunError::of_op(kind, cut(&detail, MAX_DETAIL), op)
}

/// The error of a run that somebody other than us interrupted: the owner wants the machine back.
pub(super) fn interrupted_by_owner() -> RunError {
    RunError::new(RunErrorKind::NodeStopping, "the run was interrupted in ComfyUI by its owner")
}

/// The error of a run whose ComfyUI does not answer as it should.
pub(super) fn unavailable(error: &RequestError) -> RunError {
    let kind = match error {
        RequestError::File { .. } => RunErrorKind::NodeFault,
        _ => RunErrorKind::EngineUnavailable,
    };
    RunError::new(kind, error_chain(error))
}

/// How a prompt ended, by its history; none if that does not tell.
pub(super) fn verdict(status: &HistoryStatus) -> Option<Verdict> {
    let ends = status.messages.iter().rev().find_map(|(kind, data)| {
        match events::from_parts(kind, data.clone()).event {
            Event::Succeeded => Some(Verdict::Succeeded),
            Event::Failed(exception) => Some(Verdict::Failed(exception)),
            Event::Interrupted => Some(Verdict::Interrupted),
            _ => None,
        }
    });
    ends.or_else(|| (status.status_str == "success").then_some(Verdict::Succeeded))
}

fn missing_op(rejection: &Rejection, workflow: &Workflow) -> RunError {
    let error = &rejection.error;
    let info = &error.extra_info;
    // Newer versions say the id in a field of its own, older ones in `Node ID '#7'`.
    let in_details = || Some(error.details.split_once("'#")?.1.trim_end_matches('\'').to_owned());
    let id = info["node_id"].as_str().map(str::to_owned).or_else(in_details).unwrap_or_default();
    let class = workflow.get(&id).map(|op| op.class_type.clone()).unwrap_or_default();
    let detail =
        format!("op `{id}`: this ComfyUI has no class `{class}`; install the custom node that has it");
    RunError::of_op(RunErrorKind::MissingOp, detail, FailedOp { id, class, traceback: None })
}

fn sentence(id: &str, node: &Value, error: &Value) -> String {
    let (message, details) = (text(error, "message"), text(error, "details"));
    format!("op `{id}` ({}): {message}: {details}", text(node, "class_type"))
}

fn kind_of(exception_type: &str, message: &str) -> RunErrorKind {
    /// What torch's allocators say, on devices and processors, in exceptions of no special type.
    const NO_MEMORY: [&str; 3] = ["out of memory", "can't allocate memory", "not enough memory"];
    if tells_full_disk(message) {
        return RunErrorKind::NodeFault;
    }
    let message = message.to_lowercase();
    let no_memory = exception_type.ends_with("OutOfMemoryError")
        || exception_type == "MemoryError"
        || NO_MEMORY.iter().any(|words| message.contains(words));
    if no_memory {
        RunErrorKind::OutOfMemory
    } else if exception_type == "FileNotFoundError" && message.starts_with("model in folder") {
        RunErrorKind::MissingModel
    } else {
        RunErrorKind::OpFailed
    }
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_default().to_owned()
}

fn cut(text: &str, longest: usize) -> String {
    match text.char_indices().nth(longest) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recording(file: &str) -> Value {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/facts/comfyui/");
        serde_json::from_str(&std::fs::read_to_string(format!("{path}{file}")).unwrap()).unwrap()
    }

    fn rejected_as(answer: &Value, ops: &Value) -> RunError {
        let rejection: Rejection = serde_json::from_value(answer.clone()).unwrap();
        let workflow = Workflow::parse(&serde_json::to_vec(ops).unwrap()).unwrap_or_default();
        rejected(&rejection, &workflow)
    }

    #[test]
    fn every_recorded_refusal_has_its_kind_and_names_the_op() {
        let recorded = recording("prompt-errors.json");
        let check = |case: &str, kind, op: Option<(&str, &str)>, words: &str| {
            let error = rejected_as(&recorded[case]["body"], &recorded[case]["prompt"]);
            assert_eq!(error.kind, kind, "{case}: {error}");
            let named = error.op.as_ref().map(|op| (op.id.as_str(), op.class.as_str()));
            assert_eq!(named, op, "{case}");
            assert!(error.detail.contains(words), "{case}: {error}");
        };
        let invalid = RunErrorKind::InvalidInput;
        check("empty", invalid, None, "Prompt has no outputs");
        check("no_outputs", invalid, None, "Prompt has no outputs");
        check("unknown_node", RunErrorKind::MissingOp, Some(("1", "NoSuchNode")), "`NoSuchNode`");
        check("value_too_small", invalid, Some(("1", "EmptyImage")), "smaller than min of 1: width");
        check("missing_input", invalid, Some(("1", "EmptyImage")), "Required input is missing: width");
        let loader = Some(("1", "UpscaleModelLoader"));
        check("value_not_in_list", RunErrorKind::MissingModel, loader, "'absent.safetensors' not in");
        check("bad_link", invalid, Some(("2", "SaveImage")), "'77'");
        check("type_mismatch", invalid, Some(("2", "SaveImage")), "UPSCALE_MODEL");

        let missing = recording("0.3.75/missing-files-at-prompt.json");
        let check = |class: &str, kind| {
            let case = &missing[class];
            let error = rejected_as(&case["body"], &case["json"]["prompt"]);
            assert_eq!((error.kind, &*error.op.unwrap().class), (kind, class));
        };
        check("CheckpointLoaderSimple", RunErrorKind::MissingModel);
        check("LoadImage", invalid);
    }

    #[test]
    fn full_disk_is_the_nodes_fault_and_no_jobs() {
        let check =
            |exception: &str, message: &str, kind| assert_eq!(kind_of(exception, message), kind, "{message}");
        check("OSError", "[Errno 28] No space left on device", RunErrorKind::NodeFault);
        check("OSError", "[Errno 122] Disk quota exceeded: 'x.png'", RunErrorKind::NodeFault);
        check("SafetensorError", "I/O error: No space left on device (os error 28)", RunErrorKind::NodeFault);
        check("OSError", "[Errno 2] No such file or directory", RunErrorKind::OpFailed);
    }

    fn raised_in(session: &Value) -> RunError {
        let events = session.as_array().unwrap().iter();
        let mut exceptions = events.filter_map(|line| {
            match events::from_parts(line["type"].as_str()?, line["data"].clone()).event {
                Event::Failed(exception) => Some(exception),
                _ => None,
            }
        });
        raised(&exceptions.next().unwrap())
    }

    #[test]
    fn every_recorded_exception_has_its_kind_and_a_text_of_bounded_length() {
        let exceptions = recording("0.3.75/run-exceptions.json");
        let check = |session: &Value, kind, detail: &str| {
            let error = raised_in(session);
            assert_eq!(error.kind, kind, "{error}");
            assert!(error.detail.starts_with(detail), "{error}");
            assert!(error.detail.chars().count() <= MAX_DETAIL + 1);
            let traceback = error.op.unwrap().traceback.unwrap();
            assert!(traceback.contains("execution.py"), "{traceback}");
            assert!(traceback.chars().count() <= MAX_TRACEBACK + 1);
        };
        let failed = RunErrorKind::OpFailed;
        check(&exceptions["value_error"], failed, "op `2` (TestFail) raised ValueError: told to fail");
        check(&exceptions["memory_error"], RunErrorKind::OutOfMemory, "op `2` (TestFail) raised MemoryError");
        check(&exceptions["cuda_oom"], RunErrorKind::OutOfMemory, "op `2` (TestFail) raised torch.OutOf");
        check(&exceptions["cpu_alloc"], RunErrorKind::OutOfMemory, "op `2` (TestFail) raised RuntimeError");
        check(&exceptions["big_message"], failed, "op `2` (TestFail) raised RuntimeError: xxx");
        let models = recording("0.3.75/model-file-faults.json");
        check(&models["missing"], RunErrorKind::MissingModel, "op `2` (UpscaleModelLoader) raised File");
        check(&models["truncated"], failed, "op `2` (UpscaleModelLoader) raised safetensors.");
    }

    #[test]
    fn history_tells_how_a_prompt_ended() {
        let entries = recording("history.json");
        let entry = entries.as_object().unwrap().values().next().unwrap();
        let status: HistoryStatus = serde_json::from_value(entry["status"].clone()).unwrap();
        assert_eq!(verdict(&status), Some(Verdict::Succeeded));
        assert_eq!(verdict(&HistoryStatus::default()), None);
        let interrupted = serde_json::json!({
            "status_str": "error", "completed": false,
            "messages": [["execution_start", {}], ["execution_interrupted", {"node_id": "3"}]],
        });
        let status: HistoryStatus = serde_json::from_value(interrupted).unwrap();
        assert_eq!(verdict(&status), Some(Verdict::Interrupted));
    }
}
