//! Custom nodes whose folders are called otherwise than `git clone` calls them.

use super::*;

#[test]
fn folder_that_git_clone_would_call_otherwise_is_recorded_by_its_name() {
    let (folder, nodes, fork) = (Folder::new(), Upstream::new(), Upstream::new());
    let (name, pin) = folder.clone_node(&nodes, "nodes.py");
    let forked = fork.commit(&[("__init__.py", 0o100644, "fork\n")]);
    let custom_nodes = folder.path().join("custom_nodes");
    for (url, own) in [(&pin.url, "again"), (&forked.url, "own-fork"), (&forked.url, "a fork")] {
        Repository::clone(url.as_str(), custom_nodes.join(own)).expect("cloned");
    }
    let locked = folder.lock(bare());
    let recorded: Vec<(Option<&str>, &str)> = locked
        .lockfile
        .custom_nodes
        .iter()
        .map(|node| match node {
            CustomNode::Git { folder, .. } => (folder.as_ref().map(FileName::as_str), node.name()),
            other => panic!("{other:?}"),
        })
        .collect();
    let fork_name = forked.url.folder();
    let mut expected =
        [(None, name.as_str()), (Some("again"), "again"), (Some("own-fork"), "own-fork"), (None, fork_name)];
    let mut recorded = recorded;
    expected.sort_unstable();
    recorded.sort_unstable();
    assert_eq!(recorded, expected);
    let told: Vec<&String> = locked.notes.iter().filter(|note| note.contains("becomes")).collect();
    let [told] = told.as_slice() else { panic!("{told:?}") };
    assert!(
        told.starts_with(&format!("custom node `a fork` becomes `custom_nodes/{fork_name}`")),
        "what is none that a lockfile can have is told: {told}"
    );
}
