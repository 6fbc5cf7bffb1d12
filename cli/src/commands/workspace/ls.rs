//! `comfy-farm workspace ls`.

use anyhow::bail;
use jiff::Timestamp;
use mesh::store::ByteSize;
use node::workspace::care::{CareReply, CareRequest, WorkspaceEntry};
use serde_json::{Value, json};

use super::{LsArguments, ask};
use crate::show;

pub(super) async fn ls(arguments: &LsArguments) -> anyhow::Result<()> {
    let CareReply::Listed(workspaces) = ask(&arguments.node, CareRequest::List).await? else {
        bail!("the process answered something else: it may be of another version");
    };
    if arguments.json {
        let workspaces: Vec<_> = workspaces.iter().map(to_json).collect();
        show::json(&json!({ "workspaces": workspaces }));
        return Ok(());
    }
    let header = ["LOCKFILE", "WORKFLOWS", "STATE", "WANTED", "CODE", "PYTHON", "MODELS", "LAST USED"];
    show::table(&header, &workspaces.iter().map(row).collect::<Vec<_>>());
    for workspace in &workspaces {
        if let Some(detail) = &workspace.detail {
            println!("\n{}: {detail}", short(workspace));
        }
        if let Some(log) = &workspace.log {
            println!("\n{}: the log of what failed last is `{}`", short(workspace), log.display());
        }
        if workspace.equivalent {
            println!(
                "\n{}: equivalent and not identical: torch is another build of the recorded version, as this machine \
                 needs it",
                short(workspace)
            );
        }
    }
    Ok(())
}

fn row(workspace: &WorkspaceEntry) -> Vec<String> {
    let workflows: Vec<_> = workspace.workflows.iter().map(String::as_str).collect();
    let mut state = workspace.state.clone();
    for (holds, word) in [(workspace.equivalent, "equivalent"), (workspace.at_work, "at work")] {
        if holds {
            state.push_str(", ");
            state.push_str(word);
        }
    }
    let wanted = match workspace.wanted {
        Some(true) => "yes",
        Some(false) => "no",
        None => "?",
    };
    let size = |bytes: u64| ByteSize(bytes).to_string();
    vec![
        short(workspace),
        workflows.join(", "),
        state,
        wanted.to_owned(),
        size(workspace.code_bytes),
        size(workspace.python_bytes),
        size(workspace.model_bytes),
        used(workspace).unwrap_or_default(),
    ]
}

/// As much of a lockfile's hash as the other commands need to know which is meant.
fn short(workspace: &WorkspaceEntry) -> String {
    workspace.lockfile.to_string().chars().take(16).collect()
}

fn used(workspace: &WorkspaceEntry) -> Option<String> {
    let used = i64::try_from(workspace.used?).ok()?;
    Timestamp::from_second(used).ok().map(|used| used.to_string())
}

fn to_json(workspace: &WorkspaceEntry) -> Value {
    let mut value = json!(workspace);
    value["used"] = json!(used(workspace));
    value
}

#[cfg(test)]
mod tests {
    use protocol::{BlobHash, LockfileHash};

    use super::*;

    #[test]
    fn workspace_is_a_row_and_its_last_use_a_time() {
        let workspace = WorkspaceEntry {
            lockfile: LockfileHash(BlobHash([0xab; 32])),
            workflows: ["fox@1".to_owned(), "fox@2".to_owned()].into(),
            state: "proven".to_owned(),
            detail: None,
            log: None,
            equivalent: true,
            wanted: Some(true),
            at_work: true,
            code_bytes: 0,
            python_bytes: 5_000_000_000,
            model_bytes: 0,
            own_bytes: 0,
            used: Some(1_700_000_000),
        };
        let expected = ["abababababababab", "fox@1, fox@2", "proven, equivalent, at work", "yes"];
        assert_eq!(row(&workspace)[..4], expected);
        assert_eq!(to_json(&workspace)["used"], "2023-11-14T22:13:20Z");
    }
}
