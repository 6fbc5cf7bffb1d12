//! The files that an op wrote under its `filename_prefix` and did not report, in a ComfyUI of the node's own.
//!
//! A prefix that holds the run's id is nobody else's. Not here: what an op reports (`outputs.rs`).

use std::path::Path;

use protocol::Workflow;

use super::answer::ServedFile;

/// Those of an op, by their names; none where its prefix is not this run's alone.
pub(super) fn files_of(op: &str, workflow: &Workflow, run: &str, folder: &Path) -> Vec<ServedFile> {
    let Some(prefix) = prefix_of(op, workflow).filter(|prefix| prefix.contains(run)) else {
        return Vec::new();
    };
    let (subfolder, begin) = prefix.rsplit_once('/').unwrap_or(("", prefix));
    if subfolder.split('/').any(|name| name == "..") {
        return Vec::new();
    }
    // Of `picture` and `picture_2` the latter has what begins with both.
    let others = workflow.iter().filter_map(|(id, _)| prefix_of(id, workflow));
    let longer: Vec<&str> =
        others.filter(|other| other.len() > prefix.len() && other.starts_with(prefix)).collect();
    let entries = std::fs::read_dir(folder.join("output").join(subfolder)).into_iter().flatten().flatten();
    // What a link leads to is not looked at.
    let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    let names = files.filter_map(|file| file.file_name().into_string().ok());
    let is_of_another =
        |name: &str| longer.iter().any(|other| format!("{subfolder}/{name}").starts_with(*other));
    let mut names: Vec<String> =
        names.filter(|name| name.starts_with(begin) && !is_of_another(name)).collect();
    names.sort_unstable();
    let served =
        |filename| ServedFile { filename, subfolder: subfolder.to_owned(), folder: "output".to_owned() };
    names.into_iter().map(served).collect()
}

fn prefix_of<'a>(op: &str, workflow: &'a Workflow) -> Option<&'a str> {
    workflow.get(op)?.inputs.get("filename_prefix")?.as_str()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn files_under_the_prefix_of_an_op_are_its_own_in_the_order_of_their_names() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let output = folder.path().join("output/comfy-farm/run-1");
        std::fs::create_dir_all(&output).expect("made");
        for name in ["mesh_00002_.glb", "mesh_00001_.glb", "mesh_2_00001_.glb", "other.glb"] {
            std::fs::write(output.join(name), name).expect("written");
        }
        std::os::unix::fs::symlink("other.glb", output.join("mesh_00003_.glb")).expect("linked");
        let op = |prefix: &str| json!({"class_type": "Save", "inputs": {"filename_prefix": prefix}});
        let graph = json!({
            "1": op("comfy-farm/run-1/mesh"),
            "2": op("comfy-farm/run-1/mesh_2"),
            "3": op("mesh"),
            "4": op("../run-1/x"),
            "5": {"class_type": "Save", "inputs": {}},
        });
        let workflow = Workflow::parse(graph.to_string().as_bytes()).expect("a workflow");
        let check = |op: &str, expected: &[&str]| {
            let files = files_of(op, &workflow, "run-1", folder.path());
            assert_eq!(files.iter().map(|file| file.filename.as_str()).collect::<Vec<_>>(), expected, "{op}");
            assert!(files.iter().all(|file| file.subfolder == "comfy-farm/run-1" && file.folder == "output"));
        };
        check("1", &["mesh_00001_.glb", "mesh_00002_.glb"]);
        check("2", &["mesh_2_00001_.glb"]);
        for none in ["3", "4", "5"] {
            check(none, &[]);
        }
    }
}
