//! Which files a prompt made, out of what its output ops reported.
//!
//! Not here: downloading them (`client.rs`).

use protocol::{RunError, RunErrorKind};
use serde_json::{Map, Value};

use super::answer::ServedFile;

/// One result of an output op.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Output {
    pub(super) op: String,
    pub(super) content: Content,
}

/// Where its bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// In a folder of ComfyUI's.
    File(ServedFile),
    /// In the report itself.
    Text(String),
}

/// The results of the wanted ops, in the order in which they are wanted. Each of them must have one.
///
/// Ops report files under names of their own (`images`, `gifs`, `audio`, `files`), so whatever has a
/// file name is a file. A text counts where an op reports no file.
/// `unreported` says which files an op wrote that reported nothing, where that can be known.
pub(super) fn outputs_of(
    reported: &Map<String, Value>,
    wanted: &[String],
    unreported: impl Fn(&str) -> Vec<ServedFile>,
) -> Result<Vec<Output>, RunError> {
    let mut outputs = Vec::new();
    let mut without = Vec::new();
    for op in wanted {
        let before = outputs.len();
        let report = reported.get(op).and_then(Value::as_object);
        let lists = || report.into_iter().flat_map(Map::values).filter_map(Value::as_array);
        let files = lists().flatten().filter_map(|item| serde_json::from_value(item.clone()).ok());
        for file in files.map(Content::File) {
            let output = Output { op: op.clone(), content: file };
            if !outputs.contains(&output) {
                outputs.push(output);
            }
        }
        if outputs.len() == before {
            let texts = report.and_then(|report| report.get("text")?.as_array()).into_iter().flatten();
            let texts = texts.filter_map(Value::as_str).map(|text| Content::Text(text.to_owned()));
            outputs.extend(texts.map(|content| Output { op: op.clone(), content }));
        }
        if outputs.len() == before {
            let files = unreported(op).into_iter().map(Content::File);
            outputs.extend(files.map(|content| Output { op: op.clone(), content }));
        }
        if outputs.len() == before {
            without.push(op.as_str());
        }
    }
    if without.is_empty() {
        return Ok(outputs);
    }
    let detail = format!("ComfyUI ended the run without a file of op `{}`", without.join("`, `"));
    Err(RunError::new(RunErrorKind::NoOutput, detail))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(reported: Value, wanted: &[&str], names: &[(&str, &str)]) {
        let wanted: Vec<String> = wanted.iter().map(|&op| op.to_owned()).collect();
        let outputs = outputs_of(reported.as_object().unwrap(), &wanted, |_| Vec::new()).unwrap();
        let found: Vec<(&str, &str)> = outputs
            .iter()
            .map(|output| match &output.content {
                Content::File(file) => (output.op.as_str(), file.filename.as_str()),
                Content::Text(text) => (output.op.as_str(), text.as_str()),
            })
            .collect();
        assert_eq!(found, names);
    }

    #[test]
    fn whatever_has_a_file_name_is_an_output() {
        let file = |name: &str| json!({"filename": name, "subfolder": "run", "type": "output"});
        let reported = json!({
            "5": {"images": [file("b.png"), file("a.png")], "animated": [false]},
            "6": {"gifs": [{"filename": "c.mp4", "type": "temp", "format": "video/h264-mp4"}]},
            "7": {"text": ["a note"], "files": [file("note.txt")]},
            "8": {"text": ["only", "text"]},
            "9": {"images": [file("unwanted.png")]},
            "10": {"audio": [file("d.flac"), file("d.flac")]},
        });
        check(
            reported,
            &["6", "5", "7", "8", "10"],
            &[
                ("6", "c.mp4"),
                ("5", "b.png"),
                ("5", "a.png"),
                ("7", "note.txt"),
                ("8", "only"),
                ("8", "text"),
                ("10", "d.flac"),
            ],
        );
    }

    #[test]
    fn wanted_op_without_a_file_is_an_error_that_names_it() {
        let reported = json!({"5": {"images": []}, "6": null});
        let wanted = ["5", "6", "7"].map(str::to_owned);
        let error = outputs_of(reported.as_object().unwrap(), &wanted, |_| Vec::new()).unwrap_err();
        assert_eq!(error.kind, RunErrorKind::NoOutput);
        assert!(error.detail.contains("`5`, `6`, `7`"), "{error}");
    }
}
